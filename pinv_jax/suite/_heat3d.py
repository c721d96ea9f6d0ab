"""Heat-3D: the initial temperature in a cube from a blurred, weakly nonlinear, noisy view of it (arXiv:2605.13068).

`x` on 8^3 interior points, products of up to three sines along each axis and a weak bump, scaled to [0, 1]; `y` after
diffusion (0.1 for time 0.012), blur and `z + 0.02 z^3 + 0.008 sin(2 z)`; noise 0.0015. Nearly linear and well
conditioned: a ridge regression has an error of 0.0013. The published tolerance, 0.38, is 46 times the noise. The recipe
`reduced` is the published one with a seventh of its epochs.
"""

import dataclasses
import functools

from ..data import minmax_sine_bump_3d
from ..learn import THREE_STAGE
from ..pde import observed_heat_3d
from ..solvers import Cholesky
from ._fields import UNIT_BOX, FieldProblem, Networks, field_inverse
from ._inverse import Schedule

NETWORKS = Networks(12, 2, "zeros", "identity", THREE_STAGE["heat3d"], tolerance=0.38, linear_solver=Cholesky())

HEAT3D = FieldProblem(
    name="heat3d",
    summary="initial temperature on 8 x 8 x 8 points from a blurred, nonlinear, noisy view of the diffused one",
    physics=lambda dtype: observed_heat_3d(8, dtype=dtype),
    sample=lambda dtype: minmax_sine_bump_3d(8, dtype=dtype),
    noise_std=0.0015,
    tolerance=0.0165,
    inverse=functools.partial(field_inverse, width=12, num_blocks=1, padding="zeros"),
    schedule=Schedule(16384, 4000, 5, 32, 2e-3, 3e-3, 8, fresh=False),
    project=UNIT_BOX,
    networks=NETWORKS,
    reduced=dataclasses.replace(NETWORKS, constants=dataclasses.replace(NETWORKS.constants, epochs=(20, 15, 18))),
).problem()
