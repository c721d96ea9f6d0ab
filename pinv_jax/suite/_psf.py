"""`psf`: blurred, pooled images through a sensor curve: a network of unrolled corrections beside solvers and estimates.

- `published`: random smooth images, a point spread of another width in every image, the published sizes. The training
  is the published one on an accelerator; on a CPU it is shorter, and the report says what it was.
- `photographs`: patches of photographs; see `_psf_photographs`.
"""

import functools
import time
from collections.abc import Callable, Mapping
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key, Num, Scalar

from .. import plots
from ..data import add_noise, smooth_images
from ..diagnostics import psnr
from ..learn import DeceptronNet, fit, unrolled_stages
from ..maps import SigmoidSensor, blurring_camera, linear_camera
from ..solvers import LBFGS, ConjugateGradients, GradientDescent, LevenbergMarquardt, Unrolled
from ._lens_camera import image_shape
from ._psf_methods import LOOSE, linear_patches, smooth_guess, smoothness, solved
from ._psf_photographs import photographs
from ._study import Bench, Findings, Study

NOISE = 0.03
"""Standard deviation of the noise on `y`, over the square root of `y`."""
NOMINAL = 1.3
"""Width of the point spread that the network assumes, pixels."""
WIDTHS = (0.7, 2.0)
"""Between these it is drawn for every image."""


class Observation(eqx.Module):
    """An image, its point spread and what is observed of it.

    Attributes:
        x: the image.
        sigma: width of the point spread, pixels.
        y: the noisy observation, between 0 and 1.
    """

    x: Float[Array, "*batch c H W"]
    sigma: Float[Array, "*batch"]
    y: Float[Array, "*batch c h w"]


def observe(sample: Any, key: Key[Array, ""]) -> Observation:
    """A random image, seen with a random point spread."""
    image_key, width_key, noise_key = jax.random.split(key, 3)
    x = sample(image_key)
    sigma = jax.random.uniform(width_key, (), x.dtype, *WIDTHS)
    y = blurring_camera(image_shape(x[None]), sigma, dtype=x.dtype)(x)
    return Observation(x, sigma, jnp.clip(add_noise(y, NOISE * jnp.sqrt(y), key=noise_key), 0, 1))


@functools.partial(jax.jit, static_argnames="num")
def observations(sample: Any, key: Key[Array, ""], num: int) -> Observation:
    """`num` of them."""
    return jax.lax.map(functools.partial(observe, sample), jax.random.split(key, num), batch_size=50)


def _schedule(bench: Bench) -> dict[str, int]:
    """Images of training, epochs and batch."""
    if bench.quick:
        return {"num_examples": 32, "epochs": 1, "batch_size": 4}
    if jax.default_backend() == "cpu":
        return {"num_examples": 4000, "epochs": 3, "batch_size": 16}
    return {"num_examples": 4000, "epochs": 12, "batch_size": 64}


def published(bench: Bench) -> Findings:
    """Every method on the same images; the solvers know the point spread of each, the estimates and the net do not."""
    size, num_test = (32, 8) if bench.quick else (64, 400)
    sample = smooth_images(size, dtype=bench.dtype)
    draw_key, net_key, fit_key = jax.random.split(bench.key, 3)
    schedule = _schedule(bench)
    drawn = observations(sample, draw_key, num_test + schedule["num_examples"])
    test, train = jax.tree.map(lambda a: a[:num_test], drawn), jax.tree.map(lambda a: a[num_test:], drawn)

    nominal = linear_camera((1, size, size), NOMINAL, dtype=bench.dtype)
    net = DeceptronNet(nominal, num_steps=2 if bench.quick else 6, key=net_key)
    start = time.perf_counter()
    net, _ = fit(
        net,
        unrolled_stages(**schedule),
        (train.y, train.x),
        key=fit_key,
        checkpoint=bench.fits / "published",
        progress=bench.progress,
    )
    seconds = time.perf_counter() - start
    bench.keep("psf-published", net)

    guess = jax.jit(jax.vmap(net.start))(test.y)
    sensor = SigmoidSensor((1, size, size), dtype=bench.dtype)
    estimates = {
        "mean of the training images": jnp.broadcast_to(jnp.mean(train.x), test.x.shape),
        "initial guess, y repeated": guess,
        "sensor undone, bilinear": smooth_guess(sensor, test.y, (size, size), "linear"),
        "sensor undone, linear in 9 x 9 pixels": linear_patches(sensor, train.x[:200], train.y[:200])(test.y),
    }
    smooth, damped = smoothness(train.x), LevenbergMarquardt(ConjugateGradients(max_steps=50), rtol=LOOSE)
    methods = {
        "GD, true point spread": (GradientDescent(discrepancy=1.0), None),
        "LM with CG, true point spread": (LevenbergMarquardt(ConjugateGradients(max_steps=10), discrepancy=1.0), None),
        "LM with CG, true point spread, smoothness prior": (damped, smooth),
        "L-BFGS, true point spread": (LBFGS(discrepancy=1.0), None),
        "DeceptronNet": (Unrolled(net), None),
    }
    rows, images = [], {"image": test.x}
    for name, x in estimates.items():
        rows.append(_row(name, test, x))
        images[name] = x
    for name, (method, prior) in methods.items():
        x, steps, spent = solved(method, test.sigma, test.y, guess, NOISE, padding="zeros", prior=prior)
        rows.append(_row(name, test, x, steps, spent))
        images[name] = x
    shown = {name: np.asarray(stack[:4, 0]) for name, stack in images.items()}
    return Findings(rows, {"training": schedule | {"seconds": seconds, "pixels": size, "test": num_test}}, shown)


@jax.jit
def _scores(test: Observation, x: Float[Array, "n c H W"]) -> tuple[Scalar, Scalar, Scalar]:
    """RMSE over all pixels, mean PSNR, and the median of the residual in units of the noise."""

    def one(case: tuple[Observation, Array]) -> Scalar:
        seen, x = case
        residual = blurring_camera(image_shape(x[None]), seen.sigma, dtype=x.dtype)(x) - seen.y
        return jnp.sqrt(jnp.mean(residual**2 / (NOISE**2 * seen.y)))

    levels = jax.vmap(functools.partial(psnr, data_range=1.0))(test.x, x)
    misfit = jax.lax.map(one, (test, x), batch_size=50)
    return jnp.sqrt(jnp.mean((x - test.x) ** 2)), jnp.mean(levels), jnp.median(misfit)


def _row(
    name: str, test: Observation, x: Float[Array, "n c H W"], steps: Num[Array, " n"] | None = None, spent: float = 0.0
) -> dict[str, Any]:
    error, level, misfit = map(float, _scores(test, x))
    return {
        "method": name,
        "RMSE x": error,
        "PSNR dB": level,
        "discrepancy": misfit,
        "steps": 0.0 if steps is None else float(jnp.median(steps)),
        "ms/image": 1e3 * spent / len(x),
    }


def figures(found: Mapping[str, Findings]) -> dict[str, Any]:
    """Images, a row per method."""
    drawn = {}
    for name, part in found.items():
        labels: Callable[[str], str] = lambda text: text.replace(", ", ",\n")
        rows = {labels(title): images for title, images in part.arrays.items()}
        drawn[name] = plots.image_grid(rows, limits=(0.0, 1.0))
    return drawn


PSF = Study(
    name="psf",
    summary="images through a Gaussian point spread, a sensor curve and pooling: unrolled networks and solvers",
    reference="A. L. Kachhadiya, Deceptron: Learned Local Inverses, 2025, arXiv:2511.21076",
    recipes={"published": published, "photographs": photographs},
    figures=figures,
)
