"""Inversion of nonlinear maps in JAX: one problem, one solver, one `solve`, or a million of them at once.

`solve(Problem(f, y), solver, x0)` undoes `y = f(x)` for one observation, `solve_batch` for many. The rooms: `maps`,
`pde`, `learn`, `solvers`, `lifted`, `diffusion`, `diagnostics`, `suite`, `data`, `io`, `plots`; each is imported at its
first use.
"""

import importlib
from types import ModuleType
from typing import TYPE_CHECKING

from ._problem import GaussianPrior as GaussianPrior
from ._problem import Linearisation as Linearisation
from ._problem import Problem as Problem
from ._solution import RESULTS as RESULTS
from ._solution import History as History
from ._solution import Solution as Solution
from ._solution import Stats as Stats
from .solvers import solve as solve
from .solvers import solve_batch as solve_batch

if TYPE_CHECKING:
    from . import data as data
    from . import diagnostics as diagnostics
    from . import diffusion as diffusion
    from . import io as io
    from . import learn as learn
    from . import lifted as lifted
    from . import maps as maps
    from . import pde as pde
    from . import plots as plots
    from . import solvers as solvers
    from . import suite as suite

_ROOMS = ("data", "diagnostics", "diffusion", "io", "learn", "lifted", "maps", "pde", "plots", "solvers", "suite")


def __getattr__(name: str) -> ModuleType:
    if name in _ROOMS:
        return importlib.import_module(f".{name}", __name__)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_ROOMS})
