"""Heat-2D: the initial temperature on a square from a blurred, nonlinear, noisy view of the diffused one.

`x` on 16 x 16 interior points, products of up to four sines along either axis, scaled to [0, 1]; `y` after diffusion
(0.1 for time 0.03), blur and `z + 0.02 z^3 + 0.008 sin(2 z)`; noise 0.003. The paper names the problem and does not
specify it: grid, constants, prior and noise are ours, after its Heat-3D.
"""

import functools

from ..data import sine_series_2d
from ..learn import THREE_STAGE
from ..pde import observed_heat_2d
from ._fields import PUBLISHED_CG, UNIT_BOX, FieldProblem, Networks, field_inverse
from ._inverse import Schedule

HEAT2D = FieldProblem(
    name="heat2d",
    summary="initial temperature on 16 x 16 points from a blurred, nonlinear, noisy view of the diffused one",
    physics=lambda dtype: observed_heat_2d(16, dtype=dtype),
    sample=lambda dtype: sine_series_2d(16, 4, dtype=dtype),
    noise_std=0.003,
    tolerance=0.038,
    inverse=functools.partial(field_inverse, width=16, num_blocks=1, padding="zeros"),
    schedule=Schedule(16384, 4000, 5, 64, 2e-3, 3e-3, 16, fresh=False),
    project=UNIT_BOX,
    networks=Networks(12, 2, "zeros", "identity", THREE_STAGE["heat2d"], tolerance=0.38, linear_solver=PUBLISHED_CG),
).problem()
