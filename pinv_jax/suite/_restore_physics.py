"""Restoration where light is absorbed or mixed: the studies `restore-ct` and `restore-colour`."""

import functools
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray, Scalar

from .._problem import GaussianPrior, Problem
from ..diffusion import AbstractGuide, project_after
from ..maps import (
    AbstractSurjection,
    Affine,
    BeerLambert,
    FixedOrthogonal,
    ParallelBeam,
    SurjectiveChain,
    SurjectiveCoupling,
)
from ..solvers import ConjugateGradients, GaussNewton, nlbp_interval, solve
from ._priors import TrainedPrior
from ._restoration import Degradation, Observation, Task, centred, guided, restoration_study, uncertainty
from ._study import Bench

THICKNESS = 8.0
"""Optical thickness of bone as wide as the picture."""
LIGHT = 0.55
"""Share of the unattenuated light at which a detector saturates."""


def counted(
    y: Float[Array, "angles bins"], key: PRNGKeyArray, *, photons: float | int, deviations: float | int
) -> Observation:
    """Counts of photons, normal for many: saturated beyond `LIGHT`, else known up to so many standard deviations."""
    spread = jnp.sqrt(jnp.maximum(y, 1 / photons) / photons)
    seen = y + spread * jax.random.normal(key, y.shape, y.dtype)
    seen = jnp.clip(seen, 1 / photons, LIGHT)
    margin = deviations * jnp.sqrt(seen / photons)
    upper = jnp.where(seen >= LIGHT, jnp.inf, seen + margin)
    return Observation(seen, jnp.where(seen >= LIGHT, seen, seen - margin), upper)  # pyright: ignore[reportCallIssue]


def _all_exact(task: Degradation, seen: Observation) -> Any:
    return project_after(task.f, seen.y)


class Beyond(eqx.Module):
    """`x ->` how many deviations the counts are from those observed; a saturated detector only says "at least"."""

    f: AbstractSurjection[Any]
    seen: Observation
    photons: float = eqx.field(static=True)

    def __call__(self, x: Float[Array, "*x"]) -> Float[Array, "*y"]:
        """The differences, shaped like the counts."""
        y = self.seen.y
        miss = self.f(x) - y
        return jnp.where(jnp.isinf(self.seen.upper), jnp.minimum(miss, 0), miss) / jnp.sqrt(y / self.photons)


class Weighed(AbstractGuide):
    """Every estimate moved to the least of `|misses(x)|^2 + |x - x0|^2 / r^2`, where `r` is how uncertain it is.

    Back-projection onto counts takes their noise for signal where the map is badly conditioned. Here an estimate moves
    as far as the data are more certain than it is: early freely, late hardly at all. The image is put into the bounds
    in the end, by NLBP. The weights of DDNM+ do the same for linear maps; here two Gauss-Newton steps are made, on the
    map alone and not through the network. `r` is `uncertainty`.

    Attributes:
        misses: in deviations of the noise.
        f: the map.
        seen: the observation.

    References:
        Y. Wang, J. Yu, J. Zhang, "Zero-Shot Image Restoration Using Denoising Diffusion Null-Space Model", 2023,
        arXiv:2212.00490, section 3.3.
    """

    misses: Beyond
    f: AbstractSurjection[Any]
    seen: Observation

    def __call__(self, denoise: Any, x_t: Float[Array, "*x"], t: Scalar, key: PRNGKeyArray) -> Float[Array, "*x"]:
        """See `AbstractGuide`."""
        del key
        x0 = denoise(x_t, t)
        deviation = uncertainty(denoise, t)
        near = GaussianPrior(x0, lambda offset: offset / deviation)
        problem = Problem(self.misses, jnp.zeros_like(self.seen.y), prior=near)
        x = solve(problem, GaussNewton(ConjugateGradients(max_steps=30)), x0, max_steps=2).value
        return jnp.where(jnp.all(jnp.isfinite(x)), x, x0)

    def finish(self, x: Float[Array, "*x"]) -> Float[Array, "*x"]:
        """See `AbstractGuide`."""
        return nlbp_interval(self.f, x, self.seen.lower, self.seen.upper)


WEIGHED = "NLBP, weighed by the noise"


def _weighed(task: Degradation, seen: Observation, photons: float) -> Any:
    return Weighed(Beyond(task.f, seen, photons), task.f, seen)  # pyright: ignore[reportCallIssue]


def _scan(photons: float) -> Task:
    extra = {
        "NLBP, counts exact": functools.partial(guided, _all_exact),
        WEIGHED: functools.partial(guided, functools.partial(_weighed, photons=photons)),
    }
    return Task("phantoms32", _scanner(photons), extra, ours=WEIGHED)


def _scanner(photons: float) -> Any:
    def build(bench: Bench, trained: TrainedPrior) -> Degradation:
        beams = ParallelBeam(trained.prior.shape, 16, 12, width=2.0, dtype=bench.dtype)
        structure = beams.out_structure()
        full = lambda value: jnp.full(structure.shape, value, structure.dtype)
        thickness = Affine(full(THICKNESS), full(0.0))  # pyright: ignore[reportCallIssue]
        light = BeerLambert(structure.shape, dtype=bench.dtype)
        # what is left of the exponential to first order, where most of the shadows lie
        middle = 1.5
        level, slope = jnp.exp(-middle) * (1 + middle), -jnp.exp(-middle)
        first_order = Affine(full(THICKNESS * slope), full(level))  # pyright: ignore[reportCallIssue]
        return Degradation(
            centred(SurjectiveChain([beams, thickness, light])),
            centred(SurjectiveChain([beams, first_order])),
            sense=functools.partial(counted, photons=photons, deviations=2.0),
        )

    return build


RESTORE_CT = restoration_study(
    "restore-ct",
    "restoration with a diffusion prior: tomography by few directions, counts of photons, detectors that saturate",
    {"1e6 photons": _scan(1e6), "1e4 photons": _scan(1e4)},
)


class Dye(eqx.Module):
    """A smooth function of the colours that a film does not tell apart: `weight * sin(rate * sum of them)`."""

    weight: float = eqx.field(static=True)
    rate: float = eqx.field(static=True)
    num_outputs: int = eqx.field(static=True)

    def __call__(self, z: Float[Array, "c h w"]) -> Float[Array, "d h w"]:
        """The value, in every channel."""
        value = self.weight * jnp.sin(self.rate * jnp.sum(z, axis=0, keepdims=True))
        return jnp.broadcast_to(value, (self.num_outputs, *z.shape[1:]))


def _repeated(y: Float[Array, "d h w"]) -> Float[Array, "3 h w"]:
    """The first channel as a grey picture."""
    return jnp.broadcast_to(y[:1] * 3**-0.5, (3, *y.shape[1:]))


def _film(num_outputs: int) -> Any:
    def build(bench: Bench, trained: TrainedPrior) -> Degradation:
        shape: Any = trained.prior.shape
        # grey, blue against yellow, red against green
        axes = jnp.asarray([[1, 1, 1], [-0.5, -0.5, 1], [1, -1, 0]], bench.dtype)
        axes = axes / jnp.linalg.norm(axes, axis=1, keepdims=True)
        mixed = FixedOrthogonal(shape, axes)
        scale, shift = Dye(0.8, 4.0, num_outputs), Dye(0.3, 2.5, num_outputs)
        film = SurjectiveCoupling(shape, num_outputs, scale=scale, shift=shift, scale_bound=1.0, dtype=bench.dtype)
        plain = SurjectiveCoupling(shape, num_outputs, dtype=bench.dtype)
        return Degradation(SurjectiveChain([mixed, film]), SurjectiveChain([mixed, plain]), enlarge=_repeated)

    return build


RESTORE_COLOUR = restoration_study(
    "restore-colour",
    "restoration with a diffusion prior: a film that mixes the colours non-linearly into fewer",
    {"one channel": Task("colours32", _film(1)), "two channels": Task("colours32", _film(2))},
)
