"""Restoration of what is linear up to rounding: the studies `restore-jpeg` and `restore-linear`."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray, Scalar

from ..diffusion import PiGDM, Prior
from ..maps import (
    AbstractSurjection,
    Affine,
    BlockDCT,
    DenseSurjection,
    Downsample,
    SurjectiveChain,
    VaryingBlur,
    frequency_steps,
)
from ..solvers import nlbp_interval, quantisation_box
from ._priors import TrainedPrior
from ._restoration import Degradation, Observation, Task, centred, guided, restoration_study
from ._study import Bench

ONCE = 120
"""The time of the schedule at which a decoded image is denoised."""


def compressed(y: Float[Array, "c h w"], key: PRNGKeyArray, *, steps: Float[Array, "c h w"]) -> Observation:
    """Coefficients rounded to multiples of their steps, and the cell that each may come from."""
    del key
    rounded = steps * jnp.round(y / steps)
    return Observation(rounded, *quantisation_box(rounded, steps))


def _kept(task: Degradation, seen: Observation) -> Callable[..., Any]:
    """A guide that takes coefficients that are not zero as exact, and leaves the others to the prior."""

    def guide(denoise: Any, x_t: Array, t: Scalar, key: PRNGKeyArray) -> Array:
        del key
        y = task.f(denoise(x_t, t))
        return task.f.pinv(jnp.where(seen.y == 0, y, seen.y))

    return guide


def _denoised_once(prior: Prior, task: Degradation, seen: Observation, key: PRNGKeyArray) -> Any:
    """What the prior makes of the decoded image, as if rounding were a little noise, put back into the cell.

    An estimate, as the decoded image is one, and no draw; the time was chosen on images of training.
    """
    del key
    t = jnp.asarray(ONCE, seen.y.dtype)
    signal, _ = prior.schedule.scales(t)
    return nlbp_interval(task.f, prior.denoise(signal * task.f.pinv(seen.y), t), seen.lower, seen.upper)


def _jpeg(quality: int) -> Callable[[Bench, TrainedPrior], Degradation]:
    def build(bench: Bench, trained: TrainedPrior) -> Degradation:
        shape = trained.prior.shape
        half, zero = (jnp.full(shape, value, bench.dtype) for value in (0.5, 0.0))
        f = SurjectiveChain([Affine(half, zero), BlockDCT(shape, dtype=bench.dtype)])  # pyright: ignore
        steps = frequency_steps(shape, quality, dtype=bench.dtype)
        return Degradation(f, f, sense=jax.tree_util.Partial(compressed, steps=steps))

    return build


RESTORE_JPEG = restoration_study(
    "restore-jpeg",
    "restoration with a diffusion prior: rounded cosine coefficients of blocks, each known up to its cell",
    {
        f"quality {quality}": Task(
            "photographs32",
            _jpeg(quality),
            {"linear back-projection, coefficients that are not zero": functools.partial(guided, _kept)},
            single={f"pinv, denoised once at t = {ONCE}, back-projected": _denoised_once},
        )
        for quality in (0, 1)
    },
)


def _pigdm(task: Degradation, seen: Observation) -> Any:
    return PiGDM(task.f, seen.y, data_std=0.5)


def _linear(make: Callable[[tuple[int, int, int], Any], AbstractSurjection[Any]]) -> Task:
    def build(bench: Bench, trained: TrainedPrior) -> Degradation:
        shape: Any = trained.prior.shape
        f = centred(make(shape, bench.dtype))
        return Degradation(f, f)

    return Task("photographs32", build, {"PiGDM": functools.partial(guided, _pigdm)})


def _sensing(shape: tuple[int, int, int], dtype: Any) -> DenseSurjection:
    """A quarter as many numbers as pixels, each the product with a random image."""
    size = shape[0] * shape[1] * shape[2]
    rows = jax.random.normal(jax.random.key(0), (size, size // 4), dtype)
    return DenseSurjection(jnp.linalg.qr(rows)[0].T, shape, (size // 4,))


RESTORE_LINEAR = restoration_study(
    "restore-linear",
    "restoration with a diffusion prior of what is linear, where NLBP must equal DDNM: coarser, blurred, compressed",
    {
        "super-resolution x4": _linear(lambda shape, dtype: Downsample(shape, 4, dtype)),
        "deblurring": _linear(lambda shape, dtype: VaryingBlur(shape, 0.6, 1.0, dtype=dtype)),
        "compressed sensing": _linear(_sensing),
    },
)
