"""Gauss-Newton: `x <- x - step_size * pinv(J) residual`, dense and rank-aware or matrix-free."""

from typing import Any

import equinox as eqx
from jaxtyping import Array, Float, Scalar

from .._problem import Problem
from ._base import Evaluations, Point, Stop
from ._descent import AbstractDescent, AbstractDescentSolver, free_variables
from ._normal import SVD, AbstractNormalSolver
from ._search import AbstractSearch, Armijo


class NewtonDescent(AbstractDescent[Float[Array, "*x"]]):
    """The curve `step_size * relaxation * p`, where `p` solves the normal equations with a fixed damping."""

    linear_solver: AbstractNormalSolver
    damping: Any
    relaxation: Any
    active_set: bool = eqx.field(static=True)

    def init(self, problem: Problem, x: Float[Array, "*x"], point: Point) -> tuple[Float[Array, "*x"], Evaluations]:
        """See `AbstractDescent`."""
        free = free_variables(problem, x, point.gradient) if self.active_set else None
        memo, work = self.linear_solver.init(problem, x, point, free)
        direction, solve_work = self.linear_solver.solve(problem, x, point, free, memo, self.damping)
        return self.relaxation * direction, work + solve_work

    def displacement(
        self, problem: Problem, x: Float[Array, "*x"], point: Point, memo: Float[Array, "*x"], step_size: Scalar
    ) -> tuple[Float[Array, "*x"], Evaluations]:
        """See `AbstractDescent`."""
        return step_size * memo, Evaluations()


class GaussNewton(AbstractDescentSolver):
    """Gauss-Newton with a line search.

    Args:
        linear_solver: `SVD()` (default, the minimum-norm step for any rank), `Cholesky()` (faster, full rank only), or
            `ConjugateGradients()` (matrix-free).
        relaxation: multiplies every step; 0.4 in the published comparison.
        active_set: leave variables out of a step that the feasible set holds against the gradient; without it, a step
            for all variables is projected, as in the published comparison, and may stall at a bound.
        atol, discrepancy, rtol: see `Stop`.
        search: the line search.

    References:
        A. Bjorck, Numerical Methods for Least Squares Problems, 1996, chapter 9, doi:10.1137/1.9781611971484.
    """

    descent: NewtonDescent
    search: AbstractSearch
    stop: Stop

    def __init__(
        self,
        linear_solver: AbstractNormalSolver | None = None,
        *,
        relaxation: Any = 1.0,
        active_set: bool = True,
        atol: Any = 1e-6,
        discrepancy: Any = None,
        rtol: Any = None,
        search: AbstractSearch | None = None,
    ):
        self.descent = NewtonDescent(SVD() if linear_solver is None else linear_solver, 0.0, relaxation, active_set)
        self.search = Armijo() if search is None else search
        self.stop = Stop(atol, discrepancy, rtol)
