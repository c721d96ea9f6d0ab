"""Navier-Stokes-2D: the vorticity of a flow half a time unit ago, from a noisy view of it now.

`x` on 32 x 32 points of the unit torus, a Gaussian field of standard deviation 3 and correlation length 0.2; `y` the
vorticity at time 0.5 with viscosity 1e-3; noise 0.03, 1 % of its standard deviation. Modes above a third of the grid's
are removed by the dealiasing and cannot be recovered. The paper names the problem and does not specify it: all
constants are ours.

Without viscosity the equation is reversible: run the other way it takes the observation back. That is the guess that
the learned inverse corrects; what viscosity has damped is left to the network.
"""

from collections.abc import Callable
from typing import Any

import jax
from jaxtyping import Array, Float, PRNGKeyArray

from ..data import periodic_field_2d
from ..learn import THREE_STAGE
from ..maps import AbstractMap
from ..pde import NavierStokes2D
from ._base import Dataset
from ._fields import PUBLISHED_CG, Corrected, FieldProblem, Networks, corrected
from ._inverse import Schedule

STD = 3.0
MAX_SPEED = 1.5


class Reversed(AbstractMap):
    """`y -> -F(-y)` with the flow `F` without viscosity: the vorticity half a time unit before, up to what it damps."""

    flow: NavierStokes2D
    mean: Float[Array, "n n"]
    std: Float[Array, "n n"]

    def __init__(self, physics: Any):
        dtype = physics.in_structure().dtype
        self.flow = NavierStokes2D(32, 0.0, 0.5, max_speed=MAX_SPEED, dtype=dtype)
        self.mean, self.std = physics.y_mean, physics.y_std

    def __call__(self, x: Float[Array, "n n"]) -> Float[Array, "n n"]:
        """The earlier vorticity for the z-scored later one."""
        return -self.flow(-(self.mean + self.std * x))

    def in_structure(self) -> jax.ShapeDtypeStruct:
        """Shape and dtype of the observation."""
        return self.flow.in_structure()


def reversal(dataset: Dataset) -> Callable[..., Any]:
    """The flow run backwards, without learning."""
    return Reversed(dataset.physics)


def reversed_inverse(x: Float[Array, "n *x"], y: Float[Array, "n *x"], *, key: PRNGKeyArray, physics: Any) -> Corrected:
    """The flow run backwards, corrected by a network."""
    return corrected(Reversed(physics), width=24, num_blocks=2, padding="circular", scale=STD, key=key)


NAVIER_STOKES2D = FieldProblem(
    name="navier-stokes2d",
    summary="the vorticity on 32 x 32 points of a torus from a noisy view half a time unit later",
    physics=lambda dtype: NavierStokes2D(32, 1e-3, 0.5, max_speed=MAX_SPEED, dtype=dtype),
    sample=lambda dtype: periodic_field_2d(32, 0.2, std=STD, dtype=dtype),
    noise_std=0.03,
    tolerance=0.021,
    inverse=reversed_inverse,
    schedule=Schedule(16384, 2000, 5, 32, 2e-3, 1e-3, 4, fresh=False),
    sizes=(2000, 240),
    one_scale=True,
    networks=Networks(
        48, 4, "circular", "identity", THREE_STAGE["navier_stokes2d"], tolerance=0.12, linear_solver=PUBLISHED_CG
    ),
    baselines={"reversal": reversal},
).problem()
