"""Blind deconvolution, kernel and image in turns, with a diffusion prior of sharp pictures: the study `restore-blind`.

The observation is `y = k * x + noise` with an unknown kernel `k`, positive and of sum one. In each round the prior
restores `x` for the kernel at hand, from the picture of the round before; then the gradients of both say which kernel
turns the one into the other. What no kernel can tell, a common shift of both, is taken out by keeping the kernel's
centre of mass in the middle.

- `synthetic`: random motions of test photographs, against the true kernel and against a Gaussian;
- `clock`: the motion-blurred photograph of scikit-image, whose kernel nobody knows.
"""

import functools
import time
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.scipy.sparse.linalg import cg
from jaxtyping import Array, Float, Key, PRNGKeyArray, Scalar

from .. import plots
from ..diffusion import DDIM, Prior, Start, sample
from ._lens_camera import quality, shown
from ._priors import trained_prior
from ._restoration import REFERENCE, to_unit
from ._study import Bench, Findings, Study

SIDE = 7
"""Of the kernel, pixels."""
NOISE = 0.01
"""Standard deviation of the noise, of pictures between 0 and 1."""
FROM, CAUTION = 700, 8.0
"""The time of the schedule to which the picture of the round before is noised; by how much the noise is overestimated
in the first round, when the kernel is hardly known."""


def convolve(kernel: Float[Array, "k k"], x: Float[Array, "1 H W"]) -> Float[Array, "1 h w"]:
    """`y[p, q] = sum_ij kernel[i, j] x[p + i, q + j]`, where all of the kernel lies on the picture."""
    return jnp.tensordot(kernel, windows(x), 2)


def windows(x: Float[Array, "1 H W"]) -> Float[Array, "k k 1 h w"]:
    """The picture moved by every entry of the kernel."""
    height, width = (side - SIDE + 1 for side in x.shape[1:])
    return jnp.stack([jnp.stack([x[:, i : i + height, j : j + width] for j in range(SIDE)]) for i in range(SIDE)])


def blob(sigma: float, dtype: Any) -> Float[Array, "k k"]:
    """A Gaussian, what is assumed of a kernel before anything is known."""
    offset = jnp.arange(SIDE, dtype=dtype) - SIDE // 2
    line = jnp.exp(-0.5 * (offset / sigma) ** 2)
    kernel = line[:, None] * line[None]
    return kernel / jnp.sum(kernel)


def motion(key: PRNGKeyArray, dtype: Any) -> Float[Array, "k k"]:
    """A random path of the camera: a smooth curve through the window, each moment spread over four pixels."""
    start, turn, bend = jax.random.split(key, 3)
    moments = jnp.linspace(-1, 1, 41, dtype=dtype)
    angle = jax.random.uniform(turn, (), dtype, 0, 2 * np.pi)
    bends, length = jax.random.normal(bend, (2,), dtype), jax.random.uniform(start, (), dtype, 1.6, 2.8)
    along, across = length * moments, 0.8 * bends[0] * (moments**2 - 0.4) + 0.4 * bends[1] * moments**3
    path = jnp.stack(
        [along * jnp.cos(angle) - across * jnp.sin(angle), along * jnp.sin(angle) + across * jnp.cos(angle)]
    )
    path = jnp.clip(path + SIDE // 2, 0, SIDE - 1)
    grid = jnp.arange(SIDE, dtype=dtype)
    rows, columns = (jnp.maximum(1 - jnp.abs(grid[:, None] - line[None]), 0) for line in path)
    kernel = rows @ columns.T
    return middle(kernel / jnp.sum(kernel))


def middle(kernel: Float[Array, "k k"]) -> Float[Array, "k k"]:
    """The kernel moved by whole pixels so that its centre of mass is in the middle."""
    grid = jnp.arange(SIDE, dtype=kernel.dtype)
    shift = [SIDE // 2 - jnp.round(jnp.sum(grid * jnp.sum(kernel, axis=axis))).astype(int) for axis in (1, 0)]
    padded = jnp.pad(kernel, SIDE)
    kernel = jax.lax.dynamic_slice(padded, (SIDE - shift[0], SIDE - shift[1]), kernel.shape)
    return kernel / jnp.sum(kernel)


class Deconvolution(eqx.Module):
    """A guide: `x0 + A^T (A A^T + (noise / r_t)^2)^-1 (y - A x0)` for the convolution `A` with a known kernel.

    `r_t` is how far off the estimate may be, `0.5 s / sqrt(0.25 a^2 + s^2)` for images of standard deviation a half:
    towards the end the prior is believed more than the noisy data.

    Attributes:
        kernel: of the convolution.
        y: the observation, between -1 and 1.
        noise: its standard deviation.
        num_iterations: of conjugate gradients.
    """

    kernel: Float[Array, "k k"]
    y: Float[Array, "1 h w"]
    noise: Any = 2 * NOISE
    num_iterations: int = eqx.field(static=True, default=15)

    def __call__(self, denoise: Any, x_t: Float[Array, "1 H W"], t: Scalar, key: PRNGKeyArray) -> Float[Array, "1 H W"]:
        """The guided estimate."""
        del key
        x0 = denoise(x_t, t)
        signal, spread = denoise.schedule.scales(t)
        level = self.noise**2 * (signal**2 / spread**2 + 4)
        forward = functools.partial(convolve, self.kernel)
        transpose = jax.linear_transpose(forward, x0)
        through = lambda v: forward(transpose(v)[0]) + level * v
        weights, _ = cg(through, self.y - forward(x0), tol=1e-5, maxiter=self.num_iterations)
        return x0 + transpose(weights)[0]


def fitted(x: Float[Array, "1 H W"], y: Float[Array, "1 h w"]) -> Float[Array, "k k"]:
    """The kernel on the simplex that best turns the gradients of `x` into those of `y`."""

    def gradients(a: Array) -> Array:
        return jnp.concatenate([jnp.ravel(jnp.diff(a, axis=axis)) for axis in (-1, -2)])

    columns = jax.vmap(gradients)(windows(x).reshape(SIDE * SIDE, *y.shape))
    gram, right = columns @ columns.T, columns @ gradients(y)
    gram = gram + 1e-3 * jnp.trace(gram) * jnp.eye(SIDE * SIDE, dtype=x.dtype) / SIDE**2
    step = 1 / jnp.trace(gram)  # above the largest eigenvalue: a safe step

    def body(i: Array, carry: tuple[Array, Array]) -> tuple[Array, Array]:
        kernel, before = carry
        ahead = kernel + (i / (i + 3)).astype(kernel.dtype) * (kernel - before)
        return optax.projections.projection_simplex(ahead - step * (gram @ ahead - right)), kernel

    start = jnp.full(SIDE * SIDE, 1 / SIDE**2, x.dtype)
    kernel, _ = jax.lax.fori_loop(0, 300, body, (start, start))
    return middle(kernel.reshape(SIDE, SIDE))


@eqx.filter_jit
def deconvolved(
    prior: Prior, kernel: Float[Array, "n k k"], y: Float[Array, "n 1 h w"], keys: Key[Array, " n"], num_steps: int
) -> Float[Array, "n 1 H W"]:
    """Pictures for known kernels, from noise."""

    def one(kernel: Array, y: Array, key: PRNGKeyArray) -> Array:
        return sample(prior, DDIM(num_steps, 1.0), key=key, guide=Deconvolution(kernel, y))

    return jax.vmap(one)(kernel, y, keys)


@eqx.filter_jit
def blind(
    prior: Prior, y: Float[Array, "n 1 h w"], keys: Key[Array, " n"], num_steps: int, num_rounds: int
) -> tuple[Float[Array, "n 1 H W"], Float[Array, "n k k"]]:
    """Pictures and kernels from observations alone."""

    def one(y: Array, key: PRNGKeyArray) -> tuple[Array, Array]:
        margin = SIDE // 2
        first = jnp.pad(y, ((0, 0), (margin, margin), (margin, margin)), mode="edge")

        def body(carry: tuple[Array, Array], row: tuple[Array, PRNGKeyArray]) -> tuple[tuple[Array, Array], None]:
            (x, kernel), (noise, key) = carry, row
            guide = Deconvolution(kernel, y, noise)
            x = sample(prior, DDIM(num_steps, 1.0), key=key, guide=guide, start=Start(x, FROM))
            return (x, fitted(x, y)), None

        noises = 2 * NOISE * jnp.geomspace(CAUTION, 1.0, num_rounds, dtype=y.dtype)
        rounds = noises, jax.random.split(key, num_rounds)
        (x, kernel), _ = jax.lax.scan(body, (first, blob(1.2, y.dtype)), rounds)
        return x, kernel

    return jax.vmap(one)(y, keys)


@eqx.filter_jit
def observed(x: Float[Array, "n 1 H W"], key: PRNGKeyArray) -> tuple[Float[Array, "n k k"], Float[Array, "n 1 h w"]]:
    """A random motion for every picture, and what it makes of it, with noise."""
    motion_key, noise_key = jax.random.split(key)
    kernels = jax.vmap(lambda k: motion(k, x.dtype))(jax.random.split(motion_key, len(x)))
    y = jax.vmap(convolve)(kernels, x)
    return kernels, y + 2 * NOISE * jax.random.normal(noise_key, y.shape, y.dtype)


def aligned(
    x: Float[Array, "n 1 H W"], estimate: Float[Array, "n 1 H W"], margin: int = 3, most: int = 2
) -> Float[Array, "n 1 h w"]:
    """The inner part of every estimate, moved by up to two pixels, whichever is nearest to the truth.

    A shift of the picture that the kernel takes back is in no observation.
    """
    inner = slice(margin, -margin)
    moves = [(i, j) for i in range(-most, most + 1) for j in range(-most, most + 1)]
    moved = jnp.stack([jnp.roll(estimate, move, axis=(2, 3))[:, :, inner, inner] for move in moves])
    errors = jnp.mean((moved - x[None, :, :, inner, inner]) ** 2, axis=(2, 3, 4))
    return moved[jnp.argmin(errors, axis=0), jnp.arange(len(x))]


def _prior(bench: Bench, shape: tuple[int, int, int] | None = None) -> tuple[Prior, Array]:
    folder = bench.models.parent.parent / "priors"
    options = {"quick": bench.quick, "seed": bench.seed, "dtype": bench.dtype, "progress": bench.progress}
    trained = trained_prior("photographs32", folder, **options)
    prior = trained.prior
    if shape is not None:  # the network is made of convolutions alone and takes pictures of any even sides
        prior = Prior(prior.network.fn, prior.schedule, shape=shape, prediction=prior.prediction, dtype=prior.dtype)
    return prior, trained.images.test


def _surrounded(y: Float[Array, "n 1 h w"]) -> Float[Array, "n 1 H W"]:
    margin = SIDE // 2
    return jnp.pad(y, ((0, 0), (0, 0), (margin, margin), (margin, margin)), mode="edge")


def synthetic(bench: Bench) -> Findings:
    """Random motions of test photographs."""
    prior, test = _prior(bench)
    num_test, num_seeds, num_steps, num_rounds = (2, 1, 3, 2) if bench.quick else (32, 3, 20, 10)
    x = test[:num_test]
    observe_key, sample_key = jax.random.split(bench.key)
    kernels, y = observed(x, observe_key)
    assumed = jnp.broadcast_to(blob(1.2, x.dtype)[None], kernels.shape)
    later = int(np.sum(prior.schedule.times(num_steps) <= FROM)) - 1

    def without(keys: Key[Array, " n"]) -> tuple[Array, Array]:
        del keys
        return _surrounded(y), jnp.zeros_like(kernels).at[:, SIDE // 2, SIDE // 2].set(1)

    methods = {
        "observation": (without, 0),
        "kernel assumed Gaussian": (lambda keys: (deconvolved(prior, assumed, y, keys, num_steps), assumed), num_steps),
        "kernel and image": (lambda keys: blind(prior, y, keys, num_steps, num_rounds), later * num_rounds),
        "true kernel": (lambda keys: (deconvolved(prior, kernels, y, keys, num_steps), kernels), num_steps),
    }
    rows, pictures, shapes = [], {"image": x}, {"true": kernels}
    for name, (method, cost) in methods.items():
        each = [jax.random.split(key, num_test) for key in jax.random.split(sample_key, num_seeds)]
        jax.block_until_ready(method(each[0]))
        levels, similar, missed, wrong, seconds = [], [], [], [], []
        for keys in each:
            start = time.perf_counter()
            estimate, kernel = jax.block_until_ready(method(keys))
            seconds.append(time.perf_counter() - start)
            scores = quality(to_unit(x[:, :, 3:-3, 3:-3]), to_unit(aligned(x, estimate)))
            levels.append(scores["psnr"])
            similar.append(scores["ssim"])
            residual = jax.vmap(convolve)(kernel, estimate) - y
            missed.append(jnp.sqrt(jnp.mean(residual**2, axis=(1, 2, 3))) / (2 * NOISE))
            error = jnp.linalg.norm(kernel - kernels, axis=(1, 2)) / jnp.linalg.norm(kernels, axis=(1, 2))
            wrong.append(error)
            if name not in pictures:
                pictures[name], shapes[name] = estimate, kernel
        rows.append(
            {
                "method": name,
                "PSNR dB": float(np.median(levels)),
                "SSIM": float(np.median(similar)),
                "residual / noise": float(np.median(missed)),
                "error of the kernel": float(np.median(wrong)),
                "evaluations": cost,
                "ms/image": 1e3 * float(np.median(seconds)) / num_test,
            }
        )
    arrays = {name: shown(to_unit(images[:4])) for name, images in pictures.items()}
    arrays |= {f"kernel, {name}": np.asarray(each[:4]) for name, each in shapes.items() if name != "true kernel"}
    return Findings(rows, {"images": num_test, "seeds": num_seeds, "rounds": num_rounds, "noise": NOISE}, arrays)


def clock(bench: Bench) -> Findings:
    """The real photograph, a third as fine: its dial, and the kernel found for it from several starts."""
    try:
        from skimage.data import clock as photograph
        from skimage.transform import resize_local_mean
    except ImportError as error:
        raise ValueError('The photographs come with scikit-image: pip install "pinv_jax[data]"') from error
    whole = resize_local_mean(np.asarray(photograph(), np.float64) / 255, (100, 134))
    side = 32 if bench.quick else 64
    top, left = 50 - side // 2, 67 - side // 2
    y = jnp.asarray(2 * whole[None, None, top : top + side, left : left + side] - 1, bench.dtype)
    y = y[:, :, SIDE // 2 : -(SIDE // 2), SIDE // 2 : -(SIDE // 2)]
    prior, _ = _prior(bench, (1, side, side))
    num_steps, num_rounds, num_starts = (3, 2, 2) if bench.quick else (20, 10, 4)
    repeated = jnp.broadcast_to(y, (num_starts, *y.shape[1:]))
    start = time.perf_counter()
    estimate, kernel = jax.block_until_ready(
        blind(prior, repeated, jax.random.split(bench.key, num_starts), num_steps, num_rounds)
    )
    seconds = time.perf_counter() - start
    residual = jax.vmap(convolve)(kernel, estimate) - repeated
    gradient = lambda a: sum(float(jnp.mean(jnp.abs(jnp.diff(to_unit(a), axis=axis)))) for axis in (-1, -2))
    spread = float(jnp.mean(jnp.std(kernel, axis=0)) / jnp.mean(kernel))
    rows = [
        {
            "what": name,
            "residual, grey levels of 255": error,
            "mean gradient": gradient(images),
        }
        for name, images, error in (
            ("observation", repeated, 0.0),
            ("restored", estimate, 127.5 * float(jnp.sqrt(jnp.mean(residual**2)))),
        )
    ]
    measures = {"seconds": seconds, "kernel, deviation over starts / mean": spread, "pixels": side}
    arrays = {"observation": shown(to_unit(_surrounded(repeated))), "restored": shown(to_unit(estimate))}
    return Findings(rows, measures, arrays | {"kernel": np.asarray(kernel)})


def _figures(found: Any) -> dict[str, Any]:
    drawn = {}
    for name, part in found.items():
        pictures = {title: a for title, a in part.arrays.items() if not title.startswith("kernel")}
        kernels = {title: a for title, a in part.arrays.items() if title.startswith("kernel")}
        drawn[name] = plots.image_grid(pictures, limits=(0.0, 1.0))
        drawn[f"{name}-kernels"] = plots.image_grid(kernels)
    return drawn


RESTORE_BLIND = Study(
    name="restore-blind",
    summary="blind deconvolution with a diffusion prior, kernel and image; scikit-image's motion-blurred clock",
    reference=REFERENCE,
    recipes={"synthetic": synthetic, "clock": clock},
    figures=_figures,
)
