"""Levenberg-Marquardt: `x <- x - (J'J / m + damping I)^-1 gradient`, with adaptive or fixed damping."""

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float, Scalar

from .._problem import Problem
from ._base import Evaluations, Point, Stop
from ._descent import AbstractDescent, AbstractDescentSolver
from ._gauss_newton import NewtonDescent
from ._normal import AbstractNormalSolver, Cholesky, curvature_along
from ._search import AbstractSearch, Armijo, Damping


class DampedDescent(AbstractDescent[tuple[Any, Scalar]]):
    """The curve of damped Gauss-Newton steps, `damping = scale / step_size`.

    `scale` is the curvature of the objective along its first gradient, so that step sizes are free of units.
    """

    linear_solver: AbstractNormalSolver

    def init(self, problem: Problem, x: Float[Array, "*x"], point: Point) -> tuple[tuple[Any, Scalar], Evaluations]:
        """See `AbstractDescent`."""
        memo, work = self.linear_solver.init(problem, x, point)
        return (memo, curvature_along(problem, x, point.gradient)), work + Evaluations(f=1, jvp=1)

    def update(
        self, problem: Problem, x: Float[Array, "*x"], point: Point, memo: tuple[Any, Scalar]
    ) -> tuple[tuple[Any, Scalar], Evaluations]:
        """See `AbstractDescent`."""
        new, work = self.linear_solver.init(problem, x, point)
        return (new, memo[1]), work

    def displacement(
        self, problem: Problem, x: Float[Array, "*x"], point: Point, memo: tuple[Any, Scalar], step_size: Scalar
    ) -> tuple[Float[Array, "*x"], Evaluations]:
        """See `AbstractDescent`."""
        inner, scale = memo
        return self.linear_solver.solve(problem, x, point, inner, scale / step_size)

    def predicted(
        self, point: Point, memo: tuple[Any, Scalar], displacement: Float[Array, "*x"], step_size: Scalar
    ) -> Scalar:
        """The decrease of the quadratic model, `(damping ||d||^2 - <gradient, d>) / 2` at its minimiser."""
        damping = memo[1] / step_size
        return 0.5 * (damping * jnp.sum(displacement**2) - jnp.sum(point.gradient * displacement))


class LevenbergMarquardt(AbstractDescentSolver):
    """Levenberg-Marquardt.

    Args:
        linear_solver: `Cholesky()` (default), `SVD()`, or `ConjugateGradients()` (matrix-free).
        damping: `None` adapts it (the method of this name); a number keeps it fixed, in the *mean* scaling of the
            objective, and searches along the step instead. A damping `c` of the sum-scaled system
            `(J'J + c I) p = -J' residual` is `c / size(data)` here; the published 1e-2 is `0.64` there at 64 data.
        relaxation: multiplies every step of the fixed form.
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
            self.descent = NewtonDescent(linear_solver, damping, relaxation)
            self.search = Armijo() if search is None else search
        self.stop = Stop(atol, discrepancy, rtol)
