"""The part `photographs` of the study `psf`: patches of photographs, none of which is in training and test both."""

import functools
import time
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Key

from .._problem import GaussianPrior
from ..data import add_noise
from ..learn import CoarseToFine, DeceptronNet, LearnedISTA, fit, unrolled_stages
from ..maps import Chain, SigmoidSensor, blurring_camera, linear_camera, unstore
from ..solvers import LBFGS, ConjugateGradients, LevenbergMarquardt, Unrolled
from . import _lens_camera
from ._psf_methods import LOOSE, linear_patches, plug_and_play, smooth_guess, smoothness, solved, wiener
from ._study import Bench, Findings

TRAIN = (("astronaut", "coffee", "rocket"), ("coins", "gravel", "brick", "grass"))
"""The photographs of training: those in colour, of which the mean of the channels is taken, and those in grey."""
TEST = (("chelsea",), ("camera", "moon"))
"""The photographs that nothing is trained or chosen on."""
SIGMA, WRONG = 1.5, 2.2
"""Width of the point spread that every method assumes, pixels; and what it is where the assumption is wrong."""
NOISE = 0.01
"""Standard deviation of the noise on `y`, over the square root of `y`."""


def grey(names: tuple[tuple[str, ...], ...], side: int, dtype: DTypeLike) -> Float[Array, "n 1 h w"]:
    """Photographs as grey squares of `side` pixels."""
    groups = [_lens_camera.photographs(group, side, dtype) for group in names]
    return jnp.concatenate([jnp.mean(group, axis=1, keepdims=True) for group in groups])


def camera(side: int, sigma: float, dtype: DTypeLike) -> Chain:
    """What patches are seen with; beyond its borders a patch goes on as its mirror image."""
    return blurring_camera((1, side, side), sigma, padding="reflect", dtype=dtype)


def noisy(y: Float[Array, "c h w"], key: Key[Array, ""]) -> Float[Array, "c h w"]:
    """`y` with noise, between 0 and 1."""
    return jnp.clip(add_noise(y, NOISE * jnp.sqrt(y), key=key), 0, 1)


class Crop(eqx.Module):
    """A sampler for `fit`: the observation of a random patch of a photograph, and that patch.

    Args:
        images: the photographs.
        seen: the camera, which says the size of a patch.
    """

    images: Float[Array, "n 1 H W"]
    seen: Chain

    def __call__(self, key: Key[Array, ""]) -> tuple[Float[Array, "1 h w"], Float[Array, "1 s s"]]:
        """One pair `(y, x)`, flipped at random as well."""
        where, noise, flip = jax.random.split(key, 3)
        shape = self.seen.in_structure().shape
        ends = (self.images.shape[0], *(b - a + 1 for a, b in zip(shape[1:], self.images.shape[2:], strict=True)))
        which, top, left = (
            jax.random.randint(k, (), 0, end) for k, end in zip(jax.random.split(where, 3), ends, strict=True)
        )
        x = jax.lax.dynamic_slice(self.images, (which, 0, top, left), (1, *shape))[0]
        x = jnp.where(jax.random.bernoulli(flip), x[:, :, ::-1], x)
        return noisy(self.seen(x), noise), x


def networks(side: int, num_steps: int, key: Key[Array, ""], dtype: DTypeLike) -> dict[str, Any]:
    """The untrained networks by name, all with as many steps.

    The nominal model of the corrections has no sensor curve, as published; soft-thresholding is given the whole camera.
    """
    keys = jax.random.split(key, 4)
    fine = linear_camera((1, side, side), SIGMA, padding="reflect", dtype=dtype)
    coarse = linear_camera((1, side // 2, side // 2), SIGMA / 2, factor=1, padding="reflect", dtype=dtype)
    half = num_steps // 2
    return {
        "LISTA": LearnedISTA(camera(side, SIGMA, dtype), num_steps=num_steps, key=keys[0]),
        "DeceptronNet": DeceptronNet(fine, num_steps=num_steps, key=keys[1]),
        "DeceptronNet, two scales": CoarseToFine(
            [DeceptronNet(part, num_steps=half, key=k) for part, k in zip((coarse, fine), keys[2:], strict=True)]
        ),
    }


def _trained(bench: Bench, nets: dict[str, Any], sampler: Crop, key: Key[Array, ""]) -> tuple[dict[str, Any], Any]:
    """The networks after the same training, and what it took."""
    fast = bench.quick or jax.default_backend() == "cpu"
    schedule = {"num_examples": 32 if bench.quick else 6400 if fast else 48_000, "epochs": 1}
    schedule["batch_size"] = 4 if bench.quick else 16 if fast else 64
    seconds = {}
    for name, net in nets.items():
        letters = "".join(c if c.isalnum() else "-" for c in name)
        start = time.perf_counter()
        nets[name], _ = fit(
            net,
            unrolled_stages(**schedule),
            sampler,
            key=key,
            checkpoint=bench.fits / letters,
            progress=bench.progress,
        )
        seconds[name] = time.perf_counter() - start
        bench.keep(f"psf-photographs-{letters}", nets[name])
    return nets, schedule | {"seconds": seconds}


def _denoisers() -> dict[str, Callable[[float], Callable[[np.ndarray], np.ndarray]]]:
    """By name, strength to denoiser of one image."""
    from skimage.restoration import denoise_nl_means, denoise_tv_chambolle

    def total_variation(strength: float) -> Callable[[np.ndarray], np.ndarray]:
        return functools.partial(denoise_tv_chambolle, weight=strength, max_num_iter=30)

    def non_local_means(strength: float) -> Callable[[np.ndarray], np.ndarray]:
        return functools.partial(denoise_nl_means, patch_size=5, patch_distance=5, h=strength, fast_mode=True)

    return {"plug-and-play, total variation": total_variation, "plug-and-play, non-local means": non_local_means}


def _best(estimate: Callable[[float], Array], strengths: tuple[float, ...], truth: Array) -> float:
    """The strength with the least error on patches of the photographs of training."""
    errors = [float(jnp.mean((estimate(strength) - truth) ** 2)) for strength in strengths]
    return strengths[int(np.argmin(errors))]


def _tiles(images: Float[Array, "n 1 H W"], side: int, per_side: int) -> Float[Array, "m 1 s s"]:
    """`per_side` x `per_side` patches of every photograph, side by side from its top left corner."""
    places = [(side * i, side * j) for i in range(per_side) for j in range(per_side)]
    return jnp.concatenate([images[:, :, i : i + side, j : j + side] for i, j in places])


def photographs(bench: Bench) -> Findings:
    """Every method on patches of other photographs than those it was trained or chosen on, with PSNR and SSIM.

    All assume one point spread; the last columns are for observations made with a wider one.
    """
    side, dtype = (32 if bench.quick else 64), bench.dtype
    train_images, test_images = grey(TRAIN, 3 * side, dtype), grey(TEST, 3 * side, dtype)
    net_key, fit_key, choice_key, right_key, wrong_key = jax.random.split(bench.key, 5)
    sampler = Crop(train_images, camera(side, SIGMA, dtype))
    nets = networks(side, 2 if bench.quick else 6, net_key, dtype)
    if bench.quick:
        del nets["DeceptronNet, two scales"]  # compiling it takes as long as everything else
    nets, training = _trained(bench, nets, sampler, fit_key)

    num_train = 8 if bench.quick else 100
    seen, chosen = jax.jit(jax.vmap(sampler))(jax.random.split(choice_key, num_train))
    x = _tiles(test_images, side, 1 if bench.quick else 3)

    @jax.jit
    def observed(sigma: Array, key: Array) -> Array:
        see = blurring_camera((1, side, side), sigma, padding="reflect", dtype=dtype)
        return jax.vmap(lambda x, key: noisy(see(x), key))(x, jax.random.split(key, len(x)))

    data = [observed(jnp.asarray(s, dtype), key) for s, key in ((SIGMA, right_key), (WRONG, wrong_key))]
    methods, choices = _methods(bench, nets, seen, chosen, side)
    rows, images = [], {"photograph": x}
    for name, method in methods.items():
        start = time.perf_counter()
        found = [jax.block_until_ready(method(y)) for y in data]
        spent = time.perf_counter() - start
        right, wrong = (_lens_camera.quality(x, estimate) for estimate in found)
        rows.append(
            {
                "method": name,
                "PSNR dB": float(jnp.mean(right["psnr"])),
                "SSIM": float(jnp.mean(right["ssim"])),
                "least PSNR": float(jnp.min(right["psnr"])),
                f"PSNR dB, sigma {WRONG}": float(jnp.mean(wrong["psnr"])),
                f"SSIM, sigma {WRONG}": float(jnp.mean(wrong["ssim"])),
                "seconds": spent,
            }
        )
        images[name] = found[0]
    measures = {
        "training": training,
        "chosen strengths": choices,
        "patches": {"test": len(x), "pixels": side, "photographs of test": len(test_images)},
    }
    picked = np.asarray([0, 1, 2])
    return Findings(rows, measures, {name: np.asarray(stack)[picked, 0] for name, stack in images.items()})


def _methods(
    bench: Bench, nets: dict[str, Any], seen: Array, chosen: Array, side: int
) -> tuple[dict[str, Callable[[Array], Array]], dict[str, float]]:
    """Estimates `y -> x` of batches by name; and the strengths that were chosen on pairs of training."""
    dtype = bench.dtype
    sensor, assumed = SigmoidSensor((1, side, side), dtype=dtype), camera(side, SIGMA, dtype)
    enlarge = functools.partial(smooth_guess, sensor, sides=(side, side))
    steps = 4 if bench.quick else 20
    choices = {}

    def deconvolved(y: Array, strength: float) -> Array:
        return wiener(enlarge(y, kind="linear"), SIGMA, strength)

    few = seen[:6], chosen[:6]
    grid = (1e-3, 1e-2, 1e-1) if bench.quick else (3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1)
    choices["Wiener"] = _best(lambda strength: deconvolved(seen, strength), grid, chosen)
    middle = jnp.full((1, side, side), 0.5, dtype)
    step_size = float(1 / jax.jit(_lens_camera.spectral_norm)(jax.tree_util.Partial(assumed), middle) ** 2)

    def plugged(y: Array, denoise: Callable[[np.ndarray], np.ndarray]) -> Array:
        start = enlarge(y, kind="linear")
        return plug_and_play(assumed, denoise, y, start, step_size=step_size, num_steps=steps)

    plug = {}
    for name, denoiser in _denoisers().items():
        grid = (0.02,) if bench.quick else (0.005, 0.01, 0.02, 0.04, 0.08)
        choices[name] = _best(lambda strength, make=denoiser: plugged(few[0], make(strength)), grid, few[1])
        plug[name] = functools.partial(plugged, denoise=denoiser(choices[name]))

    def run(method: Any, y: Array, prior: GaussianPrior | None = None) -> Array:
        sigmas = jnp.full(len(y), SIGMA, y.dtype)
        start = (
            jax.vmap(unstore(method.network).start)(y) if isinstance(method, Unrolled) else enlarge(y, kind="linear")
        )
        return solved(method, sigmas, y, start, NOISE, padding="reflect", prior=prior)[0]

    damped = LevenbergMarquardt(ConjugateGradients(max_steps=50), rtol=LOOSE)
    return {
        "y repeated, sensor ignored": lambda y: jax.vmap(nets["DeceptronNet"].start)(y),
        "sensor undone, bilinear": lambda y: enlarge(y, kind="linear"),
        "sensor undone, bicubic": lambda y: enlarge(y, kind="cubic"),
        "sensor undone, linear in 9 x 9 pixels": linear_patches(sensor, chosen, seen),
        "sensor undone, bilinear, Wiener": lambda y: deconvolved(y, choices["Wiener"]),
        "LM with CG, smoothness prior": functools.partial(run, damped, prior=smoothness(chosen)),
        "L-BFGS": functools.partial(run, LBFGS(discrepancy=1.0)),
        **plug,
        "DeceptronNet": functools.partial(run, Unrolled(nets["DeceptronNet"])),
        **{name: functools.partial(_estimated, net) for name, net in nets.items() if name != "DeceptronNet"},
    }, choices


@jax.jit
def _estimated(net: Any, y: Float[Array, "n c h w"]) -> Float[Array, "n c H W"]:
    return jax.lax.map(net, y, batch_size=50)
