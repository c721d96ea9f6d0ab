"""Levenberg-Marquardt: `x <- x - (J'J / m + damping I)^-1 gradient`, with adaptive or fixed damping."""

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float, Scalar

from .._problem import Problem
from ._base import Evaluations, Point, Stop
from ._descent import AbstractDescent, AbstractDescentSolver, free_variables
from ._gauss_newton import NewtonDescent
from ._normal import AbstractNormalSolver, Cholesky
from ._search import AbstractSearch, Armijo, Damping

Memo = tuple[Any, Scalar, Any]


class DampedDescent(AbstractDescent[Memo]):
    """The curve of damped Gauss-Newton steps, `damping = scale / step_size`.

    `scale` is the curvature of the objective along its first gradient, so that step sizes are free of units.
    """

    linear_solver: AbstractNormalSolver

    def init(self, problem: Problem, x: Float[Array, "*x"], point: Point) -> tuple[Memo, Evaluations]:
        """See `AbstractDescent`."""
        free = free_variables(problem, x, point.gradient)
        inner, work = self.linear_solver.init(problem, x, point, free)
        squared = jnp.sum(point.gradient**2)
        curvature, curvature_work = self.linear_solver.curvature(problem, x, inner, point.gradient)
        scale = jnp.where(squared > 0, curvature / jnp.where(squared > 0, squared, 1.0), 1.0)
        return (inner, scale, free), work + curvature_work

    def update(self, problem: Problem, x: Float[Array, "*x"], point: Point, memo: Memo) -> tuple[Memo, Evaluations]:
        """See `AbstractDescent`."""
        free = free_variables(problem, x, point.gradient)
        inner, work = self.linear_solver.init(problem, x, point, free)
        return (inner, memo[1], free), work

    def displacement(
        self, problem: Problem, x: Float[Array, "*x"], point: Point, memo: Memo, step_size: Scalar
    ) -> tuple[Float[Array, "*x"], Evaluations]:
        """See `AbstractDescent`."""
        inner, scale, free = memo
        return self.linear_solver.solve(problem, x, point, free, inner, scale / step_size)

    def predicted(
        self, problem: Problem, x: Float[Array, "*x"], point: Point, memo: Memo, moved: Float[Array, "*x"]
    ) -> tuple[Scalar, Evaluations]:
        """The decrease of the quadratic model, `-<gradient, d> - ||J d||^2 / (2 m)`."""
        curvature, work = self.linear_solver.curvature(problem, x, memo[0], moved)
        return -jnp.sum(point.gradient * moved) - 0.5 * curvature, work


class LevenbergMarquardt(AbstractDescentSolver):
    """Levenberg-Marquardt.

    Args:
        linear_solver: `Cholesky()` (default), `SVD()`, or `ConjugateGradients()` (matrix-free).
        damping: `None` adapts it (the method of this name); a number keeps it fixed, in the *mean* scaling of the
            objective, and searches along the step instead. A damping `c` of the sum-scaled system
            `(J'J + c I) p = -J' residual` is `c / size(data)` here; the published 1e-2 is `0.64` there at 64 data.
        relaxation: multiplies every step of the fixed form.
        active_set: of the fixed form, see `GaussNewton`.
        atol, discrepancy, rtol: see `Stop`.
        search: by default `Damping()` for the adaptive and `Armijo()` for the fixed form.

    References:
        D. W. Marquardt, An algorithm for least-squares estimation of nonlinear parameters, 1963,
        doi:10.1137/0111030.
    """

    descent: AbstractDescent
    search: AbstractSearch
    stop: Stop

    def __init__(
        self,
        linear_solver: AbstractNormalSolver | None = None,
        *,
        damping: Any = None,
        relaxation: Any = 1.0,
        active_set: bool = True,
        atol: Any = 1e-6,
        discrepancy: Any = None,
        rtol: Any = None,
        search: AbstractSearch | None = None,
    ):
        linear_solver = Cholesky() if linear_solver is None else linear_solver
        if damping is None:
            self.descent = DampedDescent(linear_solver)
            self.search = Damping() if search is None else search
        else:
            self.descent = NewtonDescent(linear_solver, damping, relaxation, active_set)
            self.search = Armijo() if search is None else search
        self.stop = Stop(atol, discrepancy, rtol)
