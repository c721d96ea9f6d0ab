"""The methods of the study `psf` that need no network: solvers, linear estimates, deconvolution, plug-and-play."""

import functools
import time
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.fft import dctn, idctn
from jaxtyping import Array, Float, Num

from .._problem import GaussianPrior, Problem
from ..maps import Chain, SigmoidSensor, blurring_camera
from ..solvers import AbstractSolver, Box, solve
from ._lens_camera import image_shape

MAX_STEPS = 80
LOOSE = 1e-4
"""The `rtol` of a solve with a prior, which no residual ends."""


class Differences(eqx.Module):
    """The differences of neighbouring pixels, over `std`.

    Args:
        std: their standard deviation, a scalar.
    """

    std: Float[Array, ""]

    def __call__(self, x: Float[Array, "c h w"]) -> Float[Array, " k"]:
        """Those down the columns, then those along the rows."""
        return jnp.concatenate([jnp.diff(x, axis=axis).ravel() for axis in (1, 2)]) / self.std


def smoothness(images: Float[Array, "n c h w"]) -> GaussianPrior:
    """Independent Gaussian differences of neighbouring pixels, with the standard deviation they have in `images`."""
    unit = Differences(jnp.ones((), images.dtype))
    std = jnp.sqrt(jnp.mean(jax.vmap(unit)(images) ** 2))
    return GaussianPrior(jnp.zeros_like(images[0]), Differences(std))


@functools.partial(jax.jit, static_argnames="padding")
def _solve_all(
    solver: Any, sigmas: Array, data: Array, starts: Array, noise: Any, prior: Any, padding: str
) -> tuple[Array, Array]:
    def one(case: tuple[Array, Array, Array]) -> tuple[Array, Array]:
        sigma, y, x0 = case
        camera = blurring_camera(image_shape(x0[None]), sigma, padding=padding, dtype=y.dtype)
        problem = Problem(camera, y, Box(0.0, 1.0), noise * jnp.sqrt(y), prior)
        solution = solve(problem, solver, x0, max_steps=MAX_STEPS)
        return solution.value, solution.stats.num_steps

    return jax.lax.map(one, (sigmas, data, starts), batch_size=50)


def solved(
    solver: AbstractSolver[Any],
    sigmas: Float[Array, " n"],
    data: Float[Array, "n c h w"],
    starts: Float[Array, "n c H W"],
    noise: float,
    *,
    padding: str,
    prior: GaussianPrior | None = None,
) -> tuple[Float[Array, "n c H W"], Num[Array, " n"], float]:
    """Every observation solved for an image between 0 and 1, with the camera of its own point spread.

    Args:
        solver: the method.
        sigmas: widths of the point spreads.
        data: observations.
        starts: where the solves begin.
        noise: the noise on `y` is `noise sqrt(y)`.
        padding: of the camera's blur.
        prior: of the images.

    Returns:
        Images, steps, and the seconds of all solves without compilation.
    """
    arguments = (solver, sigmas, data, starts, noise, prior)
    compiled = _solve_all.lower(*arguments, padding=padding).compile()
    start = time.perf_counter()
    x, steps = jax.block_until_ready(compiled(*arguments))
    return x, steps, time.perf_counter() - start


def smooth_guess(
    sensor: SigmoidSensor, y: Float[Array, "n c h w"], sides: tuple[int, int], kind: str
) -> Float[Array, "n c H W"]:
    """The sensor undone, then enlarged by interpolation: `kind` is "linear" or "cubic"."""
    return jnp.clip(jax.image.resize(sensor.undo(y), (*y.shape[:2], *sides), kind), 0, 1)


def linear_patches(
    sensor: SigmoidSensor, x: Float[Array, "n 1 H W"], y: Float[Array, "n 1 h w"], window: int = 9
) -> Callable[[Array], Array]:
    """The best linear estimate of every pixel from the `window` x `window` pixels of `y` around it, sensor undone.

    Least squares over training images `x` and what is observed of them, one set of weights for each position of a
    pixel of `x` within the pixel of `y`.
    """
    factor = x.shape[-1] // y.shape[-1]
    margin = window // 2

    @jax.jit
    def windows(y: Array) -> Array:
        z = jnp.pad(sensor.undo(y)[:, 0], ((0, 0), (margin, margin), (margin, margin)), mode="symmetric")
        h, w = y.shape[-2:]
        taps = [z[:, i : i + h, j : j + w] for i in range(window) for j in range(window)]
        return jnp.stack([*taps, jnp.ones_like(taps[0])], axis=-1)

    def cells(x: Array) -> Array:
        num, _, height, width = x.shape
        split = x.reshape(num, height // factor, factor, width // factor, factor)
        return split.transpose(0, 1, 3, 2, 4).reshape(num, height // factor, width // factor, factor**2)

    seen, wanted = windows(y), cells(x)
    flat = seen.reshape(-1, seen.shape[-1])
    with jax.default_matmul_precision("highest"):
        gram = flat.T @ flat + 1e-6 * flat.shape[0] * jnp.eye(flat.shape[1], dtype=flat.dtype)
        weights = jnp.linalg.solve(gram, flat.T @ wanted.reshape(-1, factor**2))

    def estimate(y: Array) -> Array:
        num, _, h, w = y.shape
        found = (windows(y) @ weights).reshape(num, h, w, factor, factor)
        return jnp.clip(found.transpose(0, 1, 3, 2, 4).reshape(num, 1, h * factor, w * factor), 0, 1)

    return estimate


@functools.partial(jax.jit, static_argnames="window")
def wiener(
    image: Float[Array, "n 1 H W"], sigma: float | Array, strength: float | Array, window: int = 11
) -> Float[Array, "n 1 H W"]:
    """Deconvolution of an enlarged image: `h / (h^2 + strength k^2)` at every frequency `k` of the cosine transform.

    `h` is what the Gaussian point spread and the averages over two pixels leave of a frequency; the cosine transform
    continues an image by its mirror image, as the camera does.
    """
    side = image.shape[-1]
    frequency = np.pi * np.arange(side) / side
    offsets = np.arange(window) - window // 2
    weights = jnp.exp(-0.5 * (jnp.asarray(offsets, image.dtype) / sigma) ** 2)
    waves = jnp.asarray(np.cos(offsets[:, None] * frequency) * np.cos(frequency / 2), image.dtype)
    line = (weights / jnp.sum(weights)) @ waves
    transfer = line[:, None] * line[None, :]
    squared = jnp.asarray(frequency[:, None] ** 2 + frequency[None, :] ** 2, image.dtype)
    gain = transfer / (transfer**2 + strength * squared + 1e-6)
    spectrum = dctn(image, axes=(2, 3), norm="ortho") * jnp.broadcast_to(gain, image.shape)
    return jnp.clip(idctn(spectrum, axes=(2, 3), norm="ortho"), 0, 1)


@jax.jit
def _descended(camera: Chain, x: Array, y: Array, step_size: Array) -> Array:
    def one(x: Array, y: Array) -> Array:
        prediction, pullback = jax.vjp(camera, x)
        return x - step_size * pullback(prediction - y)[0]

    return jax.vmap(one)(x, y)


def plug_and_play(
    camera: Chain,
    denoise: Callable[[np.ndarray], np.ndarray],
    y: Float[Array, "n 1 h w"],
    start: Float[Array, "n 1 H W"],
    *,
    step_size: float,
    num_steps: int = 20,
) -> Float[Array, "n 1 H W"]:
    """Proximal gradient descent with a denoiser for the proximal map: `x <- denoise(x - step_size f'(x)' (f(x) - y))`.

    Args:
        camera: `f`.
        denoise: of one grey image, `(H, W)` to `(H, W)`, on the host.
        y: observations.
        start: where the descent begins.
        step_size: at most one over the squared norm of the derivative.
        num_steps: how many.

    References:
        S. V. Venkatakrishnan, C. A. Bouman, B. Wohlberg, "Plug-and-Play priors for model based reconstruction", 2013,
        doi:10.1109/GlobalSIP.2013.6737048. U. S. Kamilov, H. Mansour, B. Wohlberg, "A Plug-and-Play Priors Approach for
        Solving Nonlinear Imaging Inverse Problems", 2017, doi:10.1109/LSP.2017.2763583.
    """
    x = start
    for _ in range(num_steps):
        moved = np.asarray(_descended(camera, x, y, jnp.asarray(step_size, y.dtype)))
        x = jnp.asarray(np.stack([denoise(image[0])[None] for image in moved]), y.dtype)
    return jnp.clip(x, 0, 1)
