"""Gradient descent: `x <- x - step_size * learning_rate * gradient`."""

from typing import Any

from jaxtyping import Array, Float, Scalar

from .._problem import Problem
from ._base import Evaluations, Point, Stop
from ._descent import AbstractDescent, AbstractDescentSolver
from ._search import AbstractSearch, Armijo


class SteepestDescent(AbstractDescent[None]):
    """The curve `-step_size * learning_rate * gradient`."""

    learning_rate: Any = 1.0

    def init(self, problem: Problem, x: Float[Array, "*x"], point: Point) -> tuple[None, Evaluations]:
        """See `AbstractDescent`."""
        return None, Evaluations()

    def displacement(
        self, problem: Problem, x: Float[Array, "*x"], point: Point, memo: None, step_size: Scalar
    ) -> tuple[Float[Array, "*x"], Evaluations]:
        """See `AbstractDescent`."""
        return -step_size * self.learning_rate * point.gradient, Evaluations()


class GradientDescent(AbstractDescentSolver):
    """Projected gradient descent with a line search; the baseline that every other method must beat.

    The objective is a *mean* of squares, so its gradient carries a factor `1 / size(data)`; by default the step size
    is therefore carried over from step to step and doubled after each acceptance. The published baseline restarts it
    at one: `search=Armijo()`, `learning_rate=0.4` there.

    Args:
        learning_rate: multiplies the gradient.
        atol, discrepancy, rtol: see `Stop`.
        search: the line search.
    """

    descent: SteepestDescent
    search: AbstractSearch
    stop: Stop

    def __init__(
        self,
        learning_rate: Any = 1.0,
        *,
        atol: Any = 1e-6,
        discrepancy: Any = None,
        rtol: Any = None,
        search: AbstractSearch | None = None,
    ):
        self.descent = SteepestDescent(learning_rate)
        self.search = Armijo(grow=2.0, max_trials=30) if search is None else search
        self.stop = Stop(atol, discrepancy, rtol)
