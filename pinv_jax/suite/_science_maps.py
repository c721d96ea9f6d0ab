"""The equations of `science-darcy` and `science-vorticity`, their data, and what is known of the fields beforehand."""

import dataclasses
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from .._problem import GaussianPrior
from ..diffusion import Prior
from ..maps import AbstractMap
from ..pde import NavierStokes2D, darcy_pressure
from ._base import Dataset, make_dataset
from ._digits import key_of
from ._inverse import Schedule
from ._priors import trained_prior
from ._random_fields import SIDE, rocks, vortices
from ._study import Bench

NUM_ITEMS = 32


class Pressures(AbstractMap):
    """`u -> p` at `5 x 5` wells: `p` the pressure for the log-permeability `2 u` on the unit square."""

    dtype: np.dtype = eqx.field(static=True)

    def __call__(self, x: Float[Array, " n"]) -> Float[Array, " m"]:
        """The pressures, in row-major order."""
        with jax.default_matmul_precision("highest"):
            pressure = darcy_pressure(jnp.exp(2 * x.reshape(SIDE, SIDE)))
        return jnp.ravel(pressure[2::3, 2::3])

    def in_structure(self) -> jax.ShapeDtypeStruct:
        """Shape and dtype of `u`."""
        return jax.ShapeDtypeStruct((SIDE * SIDE,), self.dtype)


class Snapshot(AbstractMap):
    """`u -> w` at every third point: `w` the vorticity that `12 u` has become."""

    flow: NavierStokes2D

    def __call__(self, x: Float[Array, " n"]) -> Float[Array, " m"]:
        """The vorticity in units of 12, in row-major order."""
        return jnp.ravel(self.flow(12 * x.reshape(SIDE, SIDE))[::3, ::3]) / 12

    def in_structure(self) -> jax.ShapeDtypeStruct:
        """Shape and dtype of `u`."""
        return jax.ShapeDtypeStruct((SIDE * SIDE,), self.flow.in_structure().dtype)


@dataclasses.dataclass(frozen=True)
class Science:
    """An inverse problem of these studies.

    Attributes:
        forward: dtype to map.
        fields: dtype to sampler.
        prior: its name in `PRIORS`.
        noise_std: of the data, in the units of the map.
        schedule: of the training of the learned inverse.
        pairs: numbers of training pairs, for the part of this name.
    """

    forward: Callable[[DTypeLike], AbstractMap]
    fields: Callable[[DTypeLike], Callable[..., Any]]
    prior: str
    noise_std: float
    schedule: Schedule
    pairs: tuple[int, ...]


DARCY = Science(
    forward=lambda dtype: Pressures(jnp.dtype(dtype)),  # pyright: ignore[reportCallIssue]
    fields=rocks,
    prior="permeability16",
    noise_std=7.5e-4,  # 1 % of their deviation
    schedule=Schedule(16384, 4000, 100, 128, 1e-3, 0.1, 16, fresh=False),
    pairs=(32, 128, 512, 2048),
)
VORTICITY = Science(
    forward=lambda dtype: Snapshot(NavierStokes2D(SIDE, 1e-3, 0.5, max_speed=1.5, dtype=dtype)),  # pyright: ignore[reportCallIssue]
    fields=vortices,
    prior="vorticity16",
    noise_std=0.035,  # 10 % of its deviation
    schedule=Schedule(16384, 4000, 100, 128, 1e-3, 1e-3, 4, fresh=False),
    pairs=(128, 512, 2048),
)


def setting(bench: Bench, science: Science) -> tuple[Dataset, Float[Array, ""]]:
    """Fields and data in z-scored units, with one scale for all; and the noise in these."""
    sizes = (256, 16, 2) if bench.quick else (8192, 16, NUM_ITEMS)
    dataset = make_dataset(
        science.forward(bench.dtype),
        science.fields(bench.dtype),
        science.noise_std,
        sizes,
        key=key_of(bench, "fields"),
        one_scale=True,
    )
    return dataset, dataset.noise_std[0]


def normal_prior(xs: Array) -> GaussianPrior:
    """The normal distribution with the mean and covariance of the fields."""
    samples = np.asarray(xs, np.float64)
    values, vectors = np.linalg.eigh(np.cov(samples.T))
    values = np.maximum(values, 1e-4 * values[-1])
    return GaussianPrior(
        jnp.asarray(samples.mean(axis=0), xs.dtype), jnp.asarray((vectors / np.sqrt(values)).T, xs.dtype)
    )


def flat_prior(bench: Bench, science: Science) -> tuple[Prior, float]:
    """The prior of the fields as vectors, and the seconds that its training took."""
    folder = bench.models.parent.parent / "priors"
    options: Any = {"quick": bench.quick, "seed": bench.seed, "dtype": bench.dtype, "progress": bench.progress}
    trained = trained_prior(science.prior, folder, **options)
    network, shape = trained.prior.network, trained.prior.shape
    flat = jax.tree_util.Partial(lambda network, x, t: jnp.ravel(network(x.reshape(shape), t)), network)
    given = trained.prior
    prior = Prior(flat, given.schedule, shape=(SIDE * SIDE,), prediction=given.prediction, dtype=given.dtype)
    return prior, trained.seconds
