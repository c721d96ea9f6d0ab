"""Navier-Stokes-2D: the vorticity of a flow half a time unit ago, from a noisy view of it now.

`x` on 32 x 32 points of the unit torus, a Gaussian field of standard deviation 3 and correlation length 0.2; `y` the
vorticity at time 0.5 with viscosity 1e-3; noise 0.03, 1 % of its standard deviation. Modes above a third of the grid's
are removed by the dealiasing and cannot be recovered. The paper names the problem and does not specify it: all
constants are ours.
"""

import functools

from ..data import periodic_field_2d
from ..pde import NavierStokes2D
from ._fields import PUBLISHED_CG, FieldProblem, Networks, field_inverse
from ._inverse import Schedule

NAVIER_STOKES2D = FieldProblem(
    name="navier-stokes2d",
    summary="the vorticity on 32 x 32 points of a torus from a noisy view half a time unit later",
    physics=lambda dtype: NavierStokes2D(32, 1e-3, 0.5, max_speed=1.5, dtype=dtype),
    sample=lambda dtype: periodic_field_2d(32, 0.2, std=3.0, dtype=dtype),
    noise_std=0.03,
    tolerance=0.021,
    inverse=functools.partial(field_inverse, width=24, num_blocks=2, padding="circular"),
    schedule=Schedule(16384, 4000, 20, 32, 2e-3, 1e-3, 4, fresh=False),
    sizes=(2000, 240),
    one_scale=True,
    networks=Networks(48, 4, "circular", "identity", "navier_stokes2d", tolerance=0.12, linear_solver=PUBLISHED_CG),
).problem()
