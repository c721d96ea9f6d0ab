"""Restoration where light is absorbed or mixed: the studies `restore-ct` and `restore-colour`."""

import functools
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from ..diffusion import project_after
from ..maps import Affine, BeerLambert, FixedOrthogonal, ParallelBeam, SurjectiveChain, SurjectiveCoupling
from ._priors import TrainedPrior
from ._restoration import Degradation, Observation, Task, centred, guided, restoration_study
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
    {
        name: Task("phantoms32", _scanner(photons), {"NLBP, counts exact": functools.partial(guided, _all_exact)})
        for name, photons in (("1e6 photons", 1e6), ("1e4 photons", 1e4))
    },
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
