"""Blind deconvolution, kernel and image, with a diffusion prior of sharp pictures: the study `restore-blind`.

The observation is `y = k * x + noise` with an unknown kernel `k`, positive and of sum one.

1. The kernel is the most probable of many random motions: `evidence` is `log p(y | k)` with the picture integrated out,
   for pictures of which only the spectrum is known, a power of the frequency. Alternating between the prior and the
   kernel that fits its picture best did not find it.
2. A spectrum does not tell a kernel from the same turned by 180 degrees. The diffusion prior restores the picture for
   both, and the one with the sparser gradients is taken.

Parts:

- `synthetic`: random motions of test photographs, from the family that the kernel is looked for in; against the true
  kernel and against a Gaussian;
- `clock`: the motion-blurred photograph of scikit-image, whose kernel nobody knows.

What is left to do (`benchmarks/reports/restore-blind-seed0.json`): the kernel found is worth as much as the true one to
the diffusion prior, but a sample of that prior, even the mean of three, is worse in PSNR than the blurred observation,
and a Wiener filter with the true kernel is better than it. On the clock the halves of the picture disagree about the
kernel.

References:
    A. Levin, Y. Weiss, F. Durand, W. Freeman, "Understanding and evaluating blind deconvolution algorithms", 2009,
    DOI 10.1109/CVPR.2009.5206815, for the kernel alone instead of both; D. Krishnan, T. Tay, R. Fergus, "Blind
    deconvolution using a normalized sparsity measure", 2011, DOI 10.1109/CVPR.2011.5995521; H. Chung, J. Kim, S. Kim,
    J. C. Ye, "Parallel diffusion models of operator and image for blind inverse problems", 2022, arXiv:2211.10656,
    with a prior on kernels too.
"""

import functools
import time
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.sparse.linalg import cg
from jaxtyping import Array, Float, Key, PRNGKeyArray, Scalar

from .. import plots
from ..diffusion import DDIM, Prior, sample
from ._blind_kernel import (
    NOISE,
    SIDE,
    blob,
    convolve,
    evidence,
    gradients,
    most_probable,
    motion,
    similarity,
)
from ._lens_camera import quality, shown
from ._priors import tiles, trained_prior
from ._psf_photographs import TEST, grey
from ._restoration import ETA, REFERENCE, to_unit, uncertainty
from ._study import Bench, Findings, Study

TRUST = 2.0
"""By how much the noise is overestimated when the picture is restored: the errors of the prior's estimates are no white
noise, and the data at face value amplify their own. On training images (`python -m benchmarks restoration_settings`)
1, 2, 3 and 5 give 26.7, 29.0, 28.6 and 27.6 dB with the true kernel."""
NUM_KERNELS = 2048
"""Motions that the kernel is looked for among, and as many turned ones."""
SIDE_OF_PICTURES = 96
"""Pixels. Of 64 x 64 the spectrum says less about the kernel."""


class Deconvolution(eqx.Module):
    """A guide: `x0 + A^T (A A^T + (noise / r_t)^2)^-1 (y - A x0)` for the convolution `A` with a known kernel.

    `r_t` is how far off the estimate may be, `uncertainty`: towards the end the prior is believed more than the noisy
    data.

    Attributes:
        kernel: of the convolution.
        y: the observation, between -1 and 1.
        noise: its standard deviation, or rather more, see `TRUST`.
        num_iterations: of conjugate gradients.
    """

    kernel: Float[Array, "k k"]
    y: Float[Array, "1 h w"]
    noise: Any
    num_iterations: int = eqx.field(static=True, default=15)

    def __call__(self, denoise: Any, x_t: Float[Array, "1 H W"], t: Scalar, key: PRNGKeyArray) -> Float[Array, "1 H W"]:
        """The guided estimate."""
        del key
        x0 = denoise(x_t, t)
        level = (self.noise / uncertainty(denoise, t)) ** 2
        forward = functools.partial(convolve, self.kernel)
        transpose = jax.linear_transpose(forward, x0)
        through = lambda v: forward(transpose(v)[0]) + level * v
        weights, _ = cg(through, self.y - forward(x0), tol=1e-5, maxiter=self.num_iterations)
        return x0 + transpose(weights)[0]


@eqx.filter_jit
def deconvolved(
    prior: Prior,
    kernel: Float[Array, "n k k"],
    y: Float[Array, "n 1 h w"],
    keys: Key[Array, " n"],
    num_steps: int,
    trust: Any = TRUST,
) -> Float[Array, "n 1 H W"]:
    """Pictures for known kernels, from noise."""

    def one(kernel: Array, y: Array, key: PRNGKeyArray) -> Array:
        return sample(prior, DDIM(num_steps, ETA), key=key, guide=Deconvolution(kernel, y, 2 * NOISE * trust))

    return jax.vmap(one)(kernel, y, keys)


def blind(
    prior: Prior, y: Float[Array, "n 1 h w"], keys: Key[Array, " n"], num_steps: int, num_kernels: int = NUM_KERNELS
) -> tuple[Float[Array, "n 1 H W"], Float[Array, "n k k"]]:
    """Pictures and kernels from observations alone."""
    found = most_probable(y, num_kernels)
    both = [found, found[:, ::-1, ::-1]]
    restored = [deconvolved(prior, kernel, y, keys, num_steps) for kernel in both]
    first = jax.vmap(spread)(restored[0]) <= jax.vmap(spread)(restored[1])
    choose = lambda pair: jnp.where(jnp.expand_dims(first, tuple(range(1, pair[0].ndim))), *pair)
    return choose(restored), choose(both)


def spread(x: Float[Array, "1 h w"]) -> Scalar:
    """`|g|_1 / |g|_2` of the gradients: small for few edges and flat ground between them."""
    g = jnp.ravel(gradients(x))
    return jnp.sum(jnp.abs(g)) / jnp.linalg.norm(g)


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


def _prior(bench: Bench, shape: tuple[int, int, int]) -> Prior:
    """The prior of small pictures for larger ones: its network is made of convolutions alone."""
    folder = bench.models.parent.parent / "priors"
    options = {"quick": bench.quick, "seed": bench.seed, "dtype": bench.dtype, "progress": bench.progress}
    prior = trained_prior("photographs32", folder, **options).prior
    return Prior(prior.network.fn, prior.schedule, shape=shape, prediction=prior.prediction, dtype=prior.dtype)


def _surrounded(y: Float[Array, "n 1 h w"]) -> Float[Array, "n 1 H W"]:
    margin = SIDE // 2
    return jnp.pad(y, ((0, 0), (0, 0), (margin, margin), (margin, margin)), mode="edge")


def wiener(kernel: Float[Array, "n k k"], y: Float[Array, "n 1 h w"]) -> Float[Array, "n 1 H W"]:
    """What scikit-image makes of known kernels, without a prior: `restoration.unsupervised_wiener`."""
    from skimage.restoration import unsupervised_wiener

    pictures = [
        # it convolves, `convolve` correlates; and it expects values between -1 and 1
        np.asarray(unsupervised_wiener(picture[0], each[::-1, ::-1], clip=False, rng=0)[0])[None]
        for each, picture in zip(np.asarray(kernel, np.float64), np.asarray(_surrounded(y), np.float64), strict=True)
    ]
    return jnp.asarray(np.stack(pictures), y.dtype)


def pictures(num: int, side: int, dtype: Any) -> Float[Array, "n 1 s s"]:
    """Squares of the test photographs at two scales."""
    squares = [tiles(2 * grey(TEST, factor * side, dtype) - 1, side, 3 * factor**2) for factor in (2, 3)]
    return jnp.concatenate(squares)[np.random.default_rng(0).permutation(39)[:num]]


def synthetic(bench: Bench) -> Findings:
    """Random motions of test photographs."""
    num_test, num_seeds, num_steps, side, num = (
        (2, 1, 2, 32, 32) if bench.quick else (32, 3, 20, SIDE_OF_PICTURES, NUM_KERNELS)
    )
    prior, x = _prior(bench, (1, side, side)), pictures(num_test, side, bench.dtype)
    observe_key, sample_key = jax.random.split(bench.key)
    kernels, y = observed(x, observe_key)
    assumed = jnp.broadcast_to(blob(1.2, x.dtype)[None], kernels.shape)
    none = jnp.zeros_like(kernels).at[:, SIDE // 2, SIDE // 2].set(1)
    keys = [jax.random.split(key, num_test) for key in jax.random.split(sample_key, num_seeds)]
    known = lambda kernel: lambda keys: (deconvolved(prior, kernel, y, keys, num_steps), kernel)

    def without(keys: Key[Array, " n"]) -> tuple[Array, Array]:
        del keys
        kernel = found["kernel and image"][0][1]
        return wiener(kernel, y), kernel

    methods = {
        "observation": (lambda keys: (_surrounded(y), none), 0),
        "kernel assumed Gaussian": (known(assumed), num_steps),
        "kernel and image": (lambda keys: blind(prior, y, keys, num_steps, num), 2 * num_steps),
        "that kernel, Wiener filter": (without, 0),
        "true kernel, Wiener filter": (lambda keys: (wiener(kernels, y), kernels), 0),
        "true kernel": (known(kernels), num_steps),
    }
    rows, found = [], {}
    for name, (method, cost) in methods.items():
        each = keys if cost else keys[:1]
        found[name], seconds = [], []
        for some in each:
            start = time.perf_counter()
            found[name].append(jax.block_until_ready(method(some)))
            seconds.append(time.perf_counter() - start)
        # of three the median is without compilation
        rows.append(_row(name, x, y, kernels, found[name], cost, float(np.median(seconds))))
        if cost:
            mean = jnp.mean(jnp.stack([estimate for estimate, _ in found[name]]), axis=0)
            title = f"{name}, mean of {num_seeds}"
            averaged = [(mean, found[name][0][1])]
            rows.append(_row(title, x, y, kernels, averaged, num_seeds * cost, num_seeds * float(np.median(seconds))))
    right = np.concatenate([jax.vmap(similarity)(kernel, kernels) for _, kernel in found["kernel and image"]])
    turned = [
        jnp.maximum(*(jax.vmap(similarity)(k, kernels) for k in (kernel, kernel[:, ::-1, ::-1])))
        for _, kernel in found["kernel and image"][:1]
    ]
    measures = {
        "images": num_test,
        "seeds": num_seeds,
        "pixels": side,
        "noise": NOISE,
        "kernels with similarity above 0.9, share": float(np.mean(right > 0.9)),
        "the same up to 180 degrees": float(np.mean(np.asarray(turned) > 0.9)),
    }
    arrays = {"image": shown(to_unit(x[:4]))} | {name: shown(to_unit(each[0][0][:4])) for name, each in found.items()}
    arrays |= {
        "kernel, true": np.asarray(kernels[:4]),
        "kernel, found": np.asarray(found["kernel and image"][0][1][:4]),
    }
    return Findings(rows, measures, arrays)


def _row(name: str, x: Array, y: Array, kernels: Array, found: list[Any], cost: int, seconds: float) -> dict[str, Any]:
    """Medians over images and seeds."""
    scores = [quality(to_unit(x[:, :, 3:-3, 3:-3]), to_unit(aligned(x, estimate))) for estimate, _ in found]
    missed = [jnp.sqrt(jnp.mean((jax.vmap(convolve)(k, a) - y) ** 2, axis=(1, 2, 3))) / (2 * NOISE) for a, k in found]
    return {
        "method": name,
        "PSNR dB": float(np.median([score["psnr"] for score in scores])),
        "SSIM": float(np.median([score["ssim"] for score in scores])),
        "residual / noise": float(np.median(missed)),
        "similarity of the kernel": float(np.median([jax.vmap(similarity)(k, kernels) for _, k in found])),
        "evaluations": cost,
        "ms/image": 1e3 * seconds / len(x),
    }


def clock(bench: Bench) -> Findings:
    """The dial of the real photograph, a third as fine; the kernel found from all of it and from its halves."""
    try:
        from skimage.data import clock as photograph
        from skimage.transform import resize_local_mean
    except ImportError as error:
        raise ValueError('The photographs come with scikit-image: pip install "pinv_jax[data]"') from error
    whole = resize_local_mean(np.asarray(photograph(), np.float64) / 255, (100, 134))
    num_samples, num_steps, side, num = (2, 2, 32, 32) if bench.quick else (4, 20, SIDE_OF_PICTURES, NUM_KERNELS)
    top, left = 50 - side // 2, 67 - side // 2
    y = jnp.asarray(2 * whole[None, None, top : top + side, left : left + side] - 1, bench.dtype)
    y = y[:, :, SIDE // 2 : -(SIDE // 2), SIDE // 2 : -(SIDE // 2)]
    prior = _prior(bench, (1, side, side))
    repeated = jnp.broadcast_to(y, (num_samples, *y.shape[1:]))
    start = time.perf_counter()
    estimate, kernel = jax.block_until_ready(
        blind(prior, repeated, jax.random.split(bench.key, num_samples), num_steps, num)
    )
    seconds = time.perf_counter() - start
    half = y.shape[-1] // 2
    parts = [most_probable(part, num)[0] for part in (y[..., :half], y[..., half:])]
    agree = max(float(similarity(parts[0], other)) for other in (parts[1], parts[1][::-1, ::-1]))
    none = jnp.zeros_like(kernel[0]).at[SIDE // 2, SIDE // 2].set(1)
    compared = evidence(y[0], jnp.stack([kernel[0], blob(1.2, y.dtype), none]))
    rows = []
    for name, images in (
        ("observation", _surrounded(repeated)),
        ("that kernel, Wiener filter", wiener(kernel, repeated)),
        ("restored", estimate),
    ):
        error = jax.vmap(convolve)(kernel, images) - repeated
        rows.append(
            {
                "what": name,
                "residual with the kernel, grey levels of 255": 127.5 * float(jnp.sqrt(jnp.mean(error**2))),
                "mean gradient": float(jnp.mean(jnp.abs(jax.vmap(gradients)(to_unit(images))))),
                "|gradient|_1 / |gradient|_2": float(jnp.mean(jax.vmap(spread)(images[:, :, 3:-3, 3:-3]))),
            }
        )
    measures = {
        "seconds": seconds,
        "pixels": side,
        "log evidence above a Gaussian kernel": float(compared[0] - compared[1]),
        "log evidence above no blur": float(compared[0] - compared[2]),
        "similarity of the kernels of both halves, up to 180 degrees": agree,
        "samples that choose the same of two orientations": float(jnp.mean(jnp.all(kernel == kernel[:1], axis=(1, 2)))),
    }
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
