"""The loop: `solve` for one observation, `solve_batch` for many with a leading axis."""

from typing import Any, Literal

import equinox as eqx
import equinox.internal as eqxi
import jax
import jax.numpy as jnp
import optimistix as optx
from jaxtyping import Array, Float, PRNGKeyArray

from .._problem import Problem
from .._solution import RESULTS, History, Solution, Stats, result_where
from ..maps import prepare
from ._base import AbstractSolver, Record
from ._check import as_floating, check_arguments, check_batch, check_problem
from ._optimistix import run_optimistix

Adjoint = Literal["forward", "checkpointed"]


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
            the price of recomputation, by checkpointing the loop.
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
    solver, limit = _as_arrays(solver, int(max_steps), adjoint, x0.dtype)
    # Opened here, around the compiled function: differentiating a solve traces the rules of custom_jvp functions in the
    # user's map once more, after the trace inside has ended.
    with jax.default_matmul_precision(precision):
        solution = _run(problem, solver, x0, key, limit, history, adjoint, precision)
    if throw:
        return solution.result.error_if(solution, ~solution.success)
    return solution


def solve_batch(
    problem: Problem,
    solver: AbstractSolver | optx.AbstractLeastSquaresSolver | optx.AbstractMinimiser,
    x0: Float[Array, "batch *x"],
    *,
    max_steps: int = 100,
    history: int | None = None,
    adjoint: Adjoint = "forward",
    precision: str = "highest",
    key: PRNGKeyArray | None = None,
) -> Solution:
    """Solves one problem per observation, in one compiled call; `data` and `x0` carry a leading axis.

    Args:
        problem: `data` has shape `(batch, *y)`. A `noise_std` of that same shape is one per observation; anything
            else is shared.
        solver: shared by all observations.
        x0: the starts, shape `(batch, *x)`.
        max_steps: see `solve`.
        history: see `solve`.
        adjoint: see `solve`.
        precision: see `solve`.
        key: split, one for each observation.

    Returns:
        A `Solution` whose arrays carry the leading axis. A bad observation never touches its neighbours.

    Raises:
        ValueError: as `solve`, and where the leading axes of `data` and `x0` differ or are empty.
    """
    check_arguments(problem, solver, max_steps=max_steps, history=history, adjoint=adjoint)
    x0, data = as_floating(x0, "x0"), as_floating(problem.data, "data")
    check_batch(data, x0)
    per_lane = problem.noise_std is not None and jnp.shape(problem.noise_std) == data.shape
    problem = Problem(problem.forward, data, problem.project, problem.noise_std, problem.prior)
    keys = None if key is None else jax.random.split(key, x0.shape[0])
    solver, limit = _as_arrays(solver, int(max_steps), adjoint, x0.dtype)
    with jax.default_matmul_precision(precision):
        return _run_batch(problem, solver, x0, keys, per_lane, limit, history, adjoint, precision)


def _as_arrays(solver: Any, max_steps: int, adjoint: Adjoint, dtype: Any) -> tuple[Any, Any]:
    """Tolerances and budgets as arrays, so that another value does not compile again; optimistix needs its own."""
    if not isinstance(solver, AbstractSolver):
        return solver, max_steps
    solver = jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype) if isinstance(leaf, float) else leaf, solver)
    return solver, max_steps if adjoint == "checkpointed" else jnp.asarray(max_steps)


@eqx.filter_jit
def _run_batch(
    problem: Problem,
    solver: Any,
    x0: Array,
    keys: Any,
    per_lane: bool,  # noqa: FBT001 (static under filter_jit, never written by a user)
    max_steps: Any,
    history: int | None,
    adjoint: Adjoint,
    precision: str,
) -> Solution:
    problem, solver = prepare(problem), prepare(solver)  # once for the batch

    def one(data: Array, noise_std: Any, x0: Array, key: Any) -> Solution:
        lane = Problem(problem.forward, data, problem.project, noise_std, problem.prior)
        return _loop(lane, solver, x0, key, max_steps, history, adjoint, precision)

    in_axes = (0, 0 if per_lane else None, 0, None if keys is None else 0)
    return jax.vmap(one, in_axes=in_axes)(problem.data, problem.noise_std, x0, keys)


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
    return _loop(problem, solver, x0, key, max_steps, history, adjoint, precision)


def _loop(
    problem: Problem,
    solver: Any,
    x0: Array,
    key: Any,
    max_steps: Any,
    history: int | None,
    adjoint: Adjoint,
    precision: str,
) -> Solution:
    check_problem(problem, solver, x0)  # here, so that it runs once per trace
    if not isinstance(solver, AbstractSolver):
        return run_optimistix(problem, solver, x0, max_steps)
    finite_input = jnp.all(jnp.isfinite(x0)) & jnp.all(jnp.isfinite(problem.data))
    x, state = solver.init(problem, problem.feasible(x0), key=key)
    record = state.record

    def going(carry: Any) -> Any:
        x, state, _ = carry
        done, _ = solver.terminate(problem, x, state)
        return finite_input & ~done & (state.record.num_steps < max_steps)

    def turn(carry: Any) -> Any:
        # Opened again because a reverse pass may trace this body on its own.
        with jax.default_matmul_precision(precision):
            x, state, rows = carry
            x, after = solver.step(problem, x, state)
            if rows is not None:
                accepted = after.record.num_steps > state.record.num_steps
                rows = _write(rows, after.record, accepted)
            return x, after, rows

    rows = None if history is None else _start(history, record)
    kind = "lax" if adjoint == "forward" else "checkpointed"
    # Without a bound on the turns the checkpointed loop needs a number of checkpoints; one per step is plenty.
    checkpoints = None if adjoint == "forward" else max(max_steps, 1)
    x, state, rows = eqxi.while_loop(going, turn, (x, state, rows), kind=kind, checkpoints=checkpoints)

    done, result = solver.terminate(problem, x, state)
    result = result_where(done, result, RESULTS.nonlinear_max_steps_reached)
    result = result_where(finite_input, result, RESULTS.nonfinite_input)
    record = state.record
    evaluations = record.evaluations
    stats = Stats(
        num_steps=record.num_steps,
        num_rejected=record.num_rejected,
        num_fallbacks=record.num_fallbacks,
        num_f=evaluations.f,
        num_g=evaluations.g,
        num_jvp=evaluations.jvp,
        num_vjp=evaluations.vjp,
        residual_rms=record.residual_rms,
        objective=record.objective,
    )
    return Solution(x, result, stats, rows)


def _start(num: int, record: Record) -> History:
    empty = jnp.full((num,), jnp.nan, record.objective.dtype)
    return _put(History(empty, empty, empty, empty), record, jnp.asarray(0), jnp.asarray(True))


def _write(rows: History, record: Record, accepted: Any) -> History:
    return _put(rows, record, record.num_steps, accepted)


def _put(rows: History, record: Record, slot: Any, accepted: Any) -> History:
    slot = jnp.where(accepted, slot, rows.objective.shape[0])  # out of range is dropped

    def put(row: Array, value: Array) -> Array:
        return row.at[slot].set(value, mode="drop")

    return History(
        put(rows.objective, record.objective),
        put(rows.residual_rms, record.residual_rms),
        put(rows.step_size, record.step_size),
        put(rows.rjcp, record.rjcp),
    )
