"""Inversion of nonlinear maps in JAX: one problem, one solver, one `solve`, or a million of them at once.

`solve(Problem(f, y), solver, x0)` undoes `y = f(x)` for one observation, `solve_batch` for many. The rooms: `maps`,
`pde`, `learn`, `solvers`, `lifted`, `diagnostics`, `suite`, `data`, `io`, `plots`.
"""

from . import data as data
from . import diagnostics as diagnostics
from . import io as io
from . import learn as learn
from . import lifted as lifted
from . import maps as maps
from . import pde as pde
from . import plots as plots
from . import solvers as solvers
from ._problem import GaussianPrior as GaussianPrior
from ._problem import Linearisation as Linearisation
from ._problem import Problem as Problem
from ._solution import RESULTS as RESULTS
from ._solution import History as History
from ._solution import Solution as Solution
from ._solution import Stats as Stats
from .solvers import solve as solve
from .solvers import solve_batch as solve_batch
