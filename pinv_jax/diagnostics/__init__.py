"""Measurements: numbers, no opinions.

Composition of a map and its inverse (JCP, RJCP)

- `composition_defect`: `||G (J v + e) - v||^2` for explicit probes `v`; `normal_equation_defect`.
- `rjcp`, `rjcp_floor`, `excess_rjcp`: its average over points, the smallest value any inverse can reach, and the gap.
- `rademacher`, `normal`, `DataMetric`: probes with identity covariance, and with the covariance of the data.

Jacobians

- `dense_jacobian`, `jacobian_spectrum`, `adjoint_dot_test`, `taylor_test`.
- `gauss_newton_deviation`: how far the step of a learned inverse is from Gauss-Newton, and the bound term by term.

Pseudo-inverses

- `penrose_errors`, `penrose_symmetry`: the four Penrose identities; the last two through Jacobians.
- `completion_distance`, `natural_defect`: the norm that the natural pseudo-inverse minimises, and how far one is off.

Errors

- `rmse`, `psnr`, `ssim`, `wilson_interval`.
"""

from ._deviation import GaussNewtonDeviation as GaussNewtonDeviation
from ._deviation import gauss_newton_deviation as gauss_newton_deviation
from ._jacobian import CompositionDefect as CompositionDefect
from ._jacobian import adjoint_dot_test as adjoint_dot_test
from ._jacobian import composition_defect as composition_defect
from ._jacobian import dense_jacobian as dense_jacobian
from ._jacobian import excess_rjcp as excess_rjcp
from ._jacobian import jacobian_spectrum as jacobian_spectrum
from ._jacobian import normal_equation_defect as normal_equation_defect
from ._jacobian import rjcp as rjcp
from ._jacobian import rjcp_floor as rjcp_floor
from ._jacobian import taylor_test as taylor_test
from ._metrics import psnr as psnr
from ._metrics import rmse as rmse
from ._metrics import ssim as ssim
from ._metrics import wilson_interval as wilson_interval
from ._penrose import PenroseErrors as PenroseErrors
from ._penrose import PenroseSymmetry as PenroseSymmetry
from ._penrose import completion_distance as completion_distance
from ._penrose import natural_defect as natural_defect
from ._penrose import penrose_errors as penrose_errors
from ._penrose import penrose_symmetry as penrose_symmetry
from ._probes import DataMetric as DataMetric
from ._probes import normal as normal
from ._probes import probe_maker as probe_maker
from ._probes import rademacher as rademacher
