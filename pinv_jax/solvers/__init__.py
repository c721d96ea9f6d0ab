"""Solvers: one observation in, one solution out.

| solver | step | needs |
|---|---|---|
| `GradientDescent` | the gradient | f, VJP |
| `LBFGS` | quasi-Newton, limited memory | f, VJP |
| `GaussNewton` | pseudo-inverse of the Jacobian | f, JVP or VJP |
| `LevenbergMarquardt` | damped Gauss-Newton, adaptive or fixed | f, JVP, VJP |
| `DIPG` | a learned inverse | f, VJP, g |
| `Safeguarded` | `DIPG` while it is trusted, else matrix-free Levenberg-Marquardt | f, JVP, VJP, g |
"""

from ._base import AbstractSolver as AbstractSolver
from ._base import AbstractState as AbstractState
from ._base import Evaluations as Evaluations
from ._base import Point as Point
from ._base import Record as Record
from ._base import Stop as Stop
from ._descent import AbstractDescent as AbstractDescent
from ._descent import AbstractDescentSolver as AbstractDescentSolver
from ._dipg import DIPG as DIPG
from ._gauss_newton import GaussNewton as GaussNewton
from ._gradient_descent import GradientDescent as GradientDescent
from ._lbfgs import LBFGS as LBFGS
from ._levenberg_marquardt import LevenbergMarquardt as LevenbergMarquardt
from ._normal import SVD as SVD
from ._normal import AbstractNormalSolver as AbstractNormalSolver
from ._normal import Cholesky as Cholesky
from ._normal import ConjugateGradients as ConjugateGradients
from ._projections import Ball as Ball
from ._projections import Box as Box
from ._projections import Simplex as Simplex
from ._safeguarded import Safeguarded as Safeguarded
from ._search import AbstractSearch as AbstractSearch
from ._search import Armijo as Armijo
from ._search import Damping as Damping
from ._search import PublishedArmijo as PublishedArmijo
from ._solve import solve as solve
from ._solve import solve_batch as solve_batch
from ._trust import Trust as Trust
