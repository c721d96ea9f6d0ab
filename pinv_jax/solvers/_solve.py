"""`solve`: one observation."""

from typing import Any

import equinox as eqx
import jax
import optimistix as optx
from jaxtyping import Array, Float, PRNGKeyArray

from .._problem import Problem
from .._solution import Solution
from ..maps import prepare
from ._base import AbstractSolver
from ._check import as_floating, check_arguments
from ._loop import Adjoint, as_arrays, run_lane


def solve(
    problem: Problem,
    solver: AbstractSolver | optx.AbstractLeastSquaresSolver | optx.AbstractMinimiser,
    x0: Float[Array, "*x"],
    *,
    max_steps: int = 100,
    history: int | None = None,
    adjoint: Adjoint = "forward",
    precision: str = "highest",
    key: PRNGKeyArray | None = None,
    throw: bool = False,
) -> Solution:
    """Solves `forward(x) = data` for one observation.

    A pure function of its arguments: `jax.jit`, `jax.vmap` and `jax.jvp` compose with it, so
    `jax.vmap(lambda y, x0: solve(Problem(f, y), solver, x0))` solves many; a failure is a code of its own lane. A
    second call with new arrays of the same shapes does not trace again.

    Args:
        problem: the map, the observation and what is known besides; see `Problem`.
        solver: one of `pinv_jax.solvers`, or a least-squares solver or minimiser of optimistix as it is. Those stop
            by their own `rtol` and `atol`, on the change of the iterate, and report no evaluation counts.
        x0: the start, shape `*x`, of the dtype of `data`. It is projected first.
        max_steps: accepted steps at most; zero is legal and returns the start.
        history: if given, the number of slots of the `History` to keep (slot 0 is the start).
        adjoint: `"forward"` allows forward-mode derivatives through the solve; `"checkpointed"` also reverse mode, at
            the price of recomputation, by checkpointing the loop; `"implicit"`, or `Implicit(...)` with options, both
            modes of the minimiser instead of the steps, and NaN for a lane that has not reached one; see `Implicit`.
        precision: the matrix multiplication precision of everything inside; the accelerators' default (bfloat16 passes
            or TF32) breaks Gauss-Newton steps. Gradients of the solve inherit it, except that the backward rule of a
            `jax.custom_vjp` function in your map must open the context by itself.
        key: for solvers that draw random numbers; none of the built-in ones does.
        throw: raise on failure, through a host callback. By default failures are codes.

    Returns:
        A `Solution`: `value`, `result`, `success`, `stats`, `history`.

    Raises:
        ValueError: for shapes, dtypes or options that do not fit together. A leading batch axis belongs to `jax.vmap`
            or to `solve_batch`.
    """
    check_arguments(problem, solver, max_steps=max_steps, history=history, adjoint=adjoint)
    x0, data = as_floating(x0, "x0"), as_floating(problem.data, "data")
    problem = Problem(problem.forward, data, problem.project, problem.noise_std, problem.prior)
    solver, limit = as_arrays(solver, int(max_steps), adjoint, x0.dtype)
    # Opened here, around the compiled function: differentiating a solve traces the rules of custom_jvp functions in the
    # user's map once more, after the trace inside has ended.
    with jax.default_matmul_precision(precision):
        solution = _run(problem, solver, x0, key, limit, history, adjoint, precision)
    if throw:
        return solution.result.error_if(solution, ~solution.success)
    return solution


@eqx.filter_jit
def _run(
    problem: Problem,
    solver: Any,
    x0: Array,
    key: Any,
    max_steps: Any,
    history: int | None,
    adjoint: Adjoint,
    precision: str,
) -> Solution:
    problem, solver = prepare(problem), prepare(solver)
    return run_lane(problem, solver, x0, key, max_steps, history, adjoint, precision)
