"""Advection-diffusion-2D: where a tracer was released, from what wind and diffusion have made of it.

`x` on 32 x 32 points of a torus, blobs, fronts and rings with values in [-1, 1] (the prior of Allen-Cahn); `y` at time
0.25, in a steady wind with vortices at Peclet number 50; noise 0.01. The paper names the problem and does not specify
it: all constants are ours.
"""

import functools

from ..data import interfaces_2d
from ..learn import THREE_STAGE
from ..pde import AdvectionDiffusion2D
from ..solvers import Box
from ._fields import PUBLISHED_CG, FieldProblem, Networks, field_inverse
from ._inverse import Schedule

ADVECTION_DIFFUSION2D = FieldProblem(
    name="advection-diffusion2d",
    summary="a tracer on 32 x 32 points of a torus from a noisy view of it after advection and diffusion",
    physics=lambda dtype: AdvectionDiffusion2D(32, 50.0, 0.25, dtype=dtype),
    sample=lambda dtype: interfaces_2d(32, dtype=dtype),
    noise_std=0.01,
    tolerance=0.03,
    inverse=functools.partial(field_inverse, width=16, num_blocks=2, padding="circular"),
    schedule=Schedule(16384, 4000, 5, 32, 2e-3, 1e-3, 4, fresh=False),
    sizes=(2000, 240),
    one_scale=True,
    project=Box(-1.0, 1.0),
    networks=Networks(
        48, 4, "circular", "tanh", THREE_STAGE["advection_diffusion2d"], tolerance=0.12, linear_solver=PUBLISHED_CG
    ),
).problem()
