"""Limited-memory BFGS: `x <- x - step_size * H gradient`, the two-loop recursion of optax under our line search."""

from typing import Any

import equinox as eqx
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Scalar

from .._problem import Problem
from ._base import Evaluations, Point, Stop
from ._descent import AbstractDescent, AbstractDescentSolver
from ._search import AbstractSearch, Armijo


class QuasiNewtonDescent(AbstractDescent[tuple[Any, Array]]):
    """The line along `-H gradient`, or along the gradient where that is not a descent direction."""

    memory_size: int = eqx.field(static=True)

    def _direction(
        self, x: Float[Array, "*x"], point: Point, state: Any
    ) -> tuple[tuple[Any, Float[Array, "*x"]], Evaluations]:
        update, state = optax.scale_by_lbfgs(self.memory_size).update(point.gradient, state, x)
        direction = jnp.asarray(update)
        descends = jnp.sum(direction * point.gradient) > 0
        return (state, -jnp.where(descends, direction, point.gradient)), Evaluations()

    def init(
        self, problem: Problem, x: Float[Array, "*x"], point: Point
    ) -> tuple[tuple[Any, Float[Array, "*x"]], Evaluations]:
        """See `AbstractDescent`."""
        return self._direction(x, point, optax.scale_by_lbfgs(self.memory_size).init(x))

    def update(
        self, problem: Problem, x: Float[Array, "*x"], point: Point, memo: tuple[Any, Float[Array, "*x"]]
    ) -> tuple[tuple[Any, Float[Array, "*x"]], Evaluations]:
        """See `AbstractDescent`."""
        return self._direction(x, point, memo[0])

    def displacement(
        self,
        problem: Problem,
        x: Float[Array, "*x"],
        point: Point,
        memo: tuple[Any, Float[Array, "*x"]],
        step_size: Scalar,
    ) -> tuple[Float[Array, "*x"], Evaluations]:
        """See `AbstractDescent`."""
        return step_size * memo[1], Evaluations()


class LBFGS(AbstractDescentSolver):
    """Projected L-BFGS with an Armijo search; needs one VJP and no JVP per step.

    Args:
        memory_size: pairs of differences kept.
        atol, discrepancy, rtol: see `Stop`.
        search: the line search.

    References:
        J. Nocedal, S. Wright, Numerical Optimization, 2006, algorithm 7.4, doi:10.1007/978-0-387-40065-5.
    """

    descent: QuasiNewtonDescent
    search: AbstractSearch
    stop: Stop

    def __init__(
        self,
        memory_size: int = 10,
        *,
        atol: Any = 1e-6,
        discrepancy: Any = None,
        rtol: Any = None,
        search: AbstractSearch | None = None,
    ):
        self.descent = QuasiNewtonDescent(memory_size)
        self.search = Armijo(max_trials=20) if search is None else search
        self.stop = Stop(atol, discrepancy, rtol)
