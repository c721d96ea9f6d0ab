"""Limited-memory BFGS: `x <- x - step_size * H gradient`, `H` from the last differences of `x` and gradient."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Scalar

from .._problem import Problem
from ._base import Evaluations, Point, Stop
from ._descent import AbstractDescent, AbstractDescentSolver, free_variables
from ._search import AbstractSearch, Armijo


class Pairs(eqx.Module):
    """The memory of L-BFGS, the newest pair last.

    `optax.scale_by_lbfgs` computes the same direction, but divides zero by zero behind a `where` at the first step and
    on finished lanes of a batch, and so turns every reverse-mode derivative into NaN.

    Attributes:
        x, gradient: at the newest iterate.
        steps, changes: differences of `x` and of the gradient, `s_i` and `y_i`.
        weights: `1 / <s_i, y_i>`, zero for slots that are empty.
        scale: `H` before the pairs is this times the identity.
    """

    x: Float[Array, "*x"]
    gradient: Float[Array, "*x"]
    steps: Float[Array, "m *x"]
    changes: Float[Array, "m *x"]
    weights: Float[Array, " m"]
    scale: Scalar

    def push(self, x: Float[Array, "*x"], gradient: Float[Array, "*x"]) -> "Pairs":
        """With the pair that leads to `x`, unless the objective does not curve upwards along it."""
        step, change = x - self.x, gradient - self.gradient
        curvature = jnp.sum(step * change)
        good = curvature > 0
        weight = 1 / jnp.where(good, curvature, 1.0)
        scale = curvature / jnp.where(good, jnp.sum(change**2), 1.0)

        def append(rows: Array, row: Array) -> Array:
            return jnp.where(good, jnp.concatenate([rows[1:], row[None]]), rows)

        return Pairs(
            x=x,
            gradient=gradient,
            steps=append(self.steps, step),
            changes=append(self.changes, change),
            weights=append(self.weights, weight),
            scale=jnp.where(good, scale, self.scale),
        )

    def direction(self, free: Bool[Array, "*x"] | None) -> Float[Array, "*x"]:
        """`-P H P gradient`, a descent direction, by the two-loop recursion; `P` keeps the free variables."""

        def newest_first(vector: Array, pair: Any) -> tuple[Array, Array]:
            step, change, weight = pair
            coefficient = weight * jnp.sum(step * vector)
            return vector - coefficient * change, coefficient

        def oldest_first(vector: Array, pair: Any) -> tuple[Array, None]:
            step, change, weight, coefficient = pair
            return vector + (coefficient - weight * jnp.sum(change * vector)) * step, None

        pairs = (self.steps, self.changes, self.weights)
        vector, coefficients = jax.lax.scan(newest_first, _kept(self.gradient, free), pairs, reverse=True)
        vector, _ = jax.lax.scan(oldest_first, self.scale * vector, (*pairs, coefficients))
        return -_kept(vector, free)


def _kept(vector: Float[Array, "*x"], free: Bool[Array, "*x"] | None) -> Float[Array, "*x"]:
    return vector if free is None else jnp.where(free, vector, 0.0)


class QuasiNewtonDescent(AbstractDescent[tuple[Pairs, Array]]):
    """The line along `-H gradient`."""

    memory_size: int = eqx.field(static=True)

    def init(
        self, problem: Problem, x: Float[Array, "*x"], point: Point
    ) -> tuple[tuple[Pairs, Float[Array, "*x"]], Evaluations]:
        """See `AbstractDescent`."""
        empty = jnp.zeros((self.memory_size, *x.shape), x.dtype)
        # Nothing is known of the curvature: the first step is no longer than one.
        squared = jnp.sum(point.gradient**2)
        length = jnp.sqrt(jnp.where(squared > 0, squared, 1.0))
        weights = jnp.zeros(self.memory_size, x.dtype)
        pairs = Pairs(x, point.gradient, empty, empty, weights, 1 / jnp.maximum(length, 1.0))
        return (pairs, pairs.direction(free_variables(problem, x, point.gradient))), Evaluations()

    def update(
        self, problem: Problem, x: Float[Array, "*x"], point: Point, memo: tuple[Pairs, Float[Array, "*x"]]
    ) -> tuple[tuple[Pairs, Float[Array, "*x"]], Evaluations]:
        """See `AbstractDescent`."""
        pairs = memo[0].push(x, point.gradient)
        return (pairs, pairs.direction(free_variables(problem, x, point.gradient))), Evaluations()

    def displacement(
        self,
        problem: Problem,
        x: Float[Array, "*x"],
        point: Point,
        memo: tuple[Pairs, Float[Array, "*x"]],
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
