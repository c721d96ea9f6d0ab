"""Solvers: one observation in, one solution out.

| solver | step | needs |
|---|---|---|
| `GradientDescent` | the gradient | f, VJP |
| `LBFGS` | quasi-Newton, limited memory | f, VJP |
| `GaussNewton` | pseudo-inverse of the Jacobian | f, JVP or VJP |
| `LevenbergMarquardt` | damped Gauss-Newton, adaptive or fixed | f, JVP, VJP |
| `DIPG` | a learned inverse | f, VJP, g |
| `Safeguarded` | `DIPG` while it is trusted, else matrix-free Levenberg-Marquardt | f, JVP, VJP, g |
| `NLBP` | non-linear back-projection; exact in one step | `maps.AbstractSurjection` |
| `CyclicProjection` | back-projections in turn, then joint Gauss-Newton | `maps.Joint` of surjections, VJP |
| `MinimumNorm` | to the point of the fibre nearest to a reference | f, JVP, VJP |
| `Unrolled` | the next step of a network trained end to end | f, the network |

`Implicit` differentiates a solve at its minimiser; `laplace` and `randomise_then_optimise` sample what the data leave
open.

Plain functions for one step: `nlbp`, `nlbp_interval` (with `quantisation_box`, `clipping_box`), `cyclic_nlbp`.
"""

from ._base import AbstractSolver as AbstractSolver
from ._base import AbstractState as AbstractState
from ._base import Evaluations as Evaluations
from ._base import Point as Point
from ._base import Record as Record
from ._base import Stop as Stop
from ._batch import solve_batch as solve_batch
from ._columns import Streamed as Streamed
from ._columns import read_stream as read_stream
from ._cyclic import CyclicProjection as CyclicProjection
from ._cyclic import cyclic_nlbp as cyclic_nlbp
from ._descent import AbstractDescent as AbstractDescent
from ._descent import AbstractDescentSolver as AbstractDescentSolver
from ._dipg import DIPG as DIPG
from ._gauss_newton import GaussNewton as GaussNewton
from ._gradient_descent import GradientDescent as GradientDescent
from ._implicit_derivative import Implicit as Implicit
from ._intervals import clipping_box as clipping_box
from ._intervals import quantisation_box as quantisation_box
from ._lbfgs import LBFGS as LBFGS
from ._levenberg_marquardt import LevenbergMarquardt as LevenbergMarquardt
from ._minimum_norm import MinimumNorm as MinimumNorm
from ._multistart import solve_multistart as solve_multistart
from ._nlbp import NLBP as NLBP
from ._nlbp import nlbp as nlbp
from ._nlbp import nlbp_interval as nlbp_interval
from ._normal import SVD as SVD
from ._normal import AbstractNormalSolver as AbstractNormalSolver
from ._normal import Cholesky as Cholesky
from ._normal import ConjugateGradients as ConjugateGradients
from ._posterior import LaplacePosterior as LaplacePosterior
from ._posterior import WeightedSamples as WeightedSamples
from ._posterior import laplace as laplace
from ._posterior import randomise_then_optimise as randomise_then_optimise
from ._projections import Ball as Ball
from ._projections import Box as Box
from ._projections import Simplex as Simplex
from ._safeguarded import Safeguarded as Safeguarded
from ._search import AbstractSearch as AbstractSearch
from ._search import Armijo as Armijo
from ._search import Damping as Damping
from ._search import PublishedArmijo as PublishedArmijo
from ._solve import solve as solve
from ._stream import solve_stream as solve_stream
from ._trust import Trust as Trust
from ._unrolled import Unrolled as Unrolled
