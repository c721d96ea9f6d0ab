"""The loop of one lane in pieces, `begin`, `going`, `turn` and `finish`, and whole: `run_lane`."""

from typing import Any, Literal

import equinox.internal as eqxi
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from .._problem import Problem
from .._solution import RESULTS, History, Solution, Stats, result_where
from ._base import AbstractSolver, Record
from ._check import check_problem
from ._implicit_derivative import Implicit, differentiate, unrolls
from ._optimistix import run_optimistix

Adjoint = Literal["forward", "checkpointed", "implicit"] | Implicit
Lane = tuple[Array, Any, History | None]
"""What crosses a turn of the loop: `x`, the state of the solver, and the history."""


def as_arrays(solver: Any, max_steps: int, adjoint: Adjoint, dtype: Any) -> tuple[Any, Any]:
    """Tolerances and budgets as arrays, so that another value does not compile again; optimistix needs its own."""
    if not isinstance(solver, AbstractSolver):
        return solver, max_steps
    solver = jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype) if isinstance(leaf, float) else leaf, solver)
    return solver, max_steps if unrolls(adjoint) else jnp.asarray(max_steps)


def begin(problem: Problem, solver: AbstractSolver, x0: Array, key: Any, history: int | None) -> Lane:
    """Evaluates the start."""
    x, state = solver.init(problem, problem.feasible(x0), key=key)
    return x, state, None if history is None else _start(history, state.record)


def finite_input(problem: Problem, x0: Array) -> Bool[Array, ""]:
    """Whether a lane can be solved at all."""
    return jnp.all(jnp.isfinite(x0)) & jnp.all(jnp.isfinite(problem.data))


def going(problem: Problem, solver: AbstractSolver, lane: Lane, max_steps: Any) -> Bool[Array, ""]:
    """Whether the lane makes another turn; its input must be finite besides."""
    x, state, _ = lane
    done, _ = solver.terminate(problem, x, state)
    return ~done & (state.record.num_steps < max_steps)


def turn(problem: Problem, solver: AbstractSolver, lane: Lane, precision: str) -> Lane:
    """One trial."""
    # Opened again because a reverse pass may trace this body on its own.
    with jax.default_matmul_precision(precision):
        x, state, rows = lane
        x, after = solver.step(problem, x, state)
        if rows is not None:
            accepted = after.record.num_steps > state.record.num_steps
            rows = _put(rows, after.record, after.record.num_steps, accepted)
        return x, after, rows


def finish(
    problem: Problem, solver: AbstractSolver, lane: Lane, finite: Bool[Array, ""], num_idle: Int[Array, ""]
) -> Solution:
    """What the lane has found, and why it ended."""
    x, state, rows = lane
    done, result = solver.terminate(problem, x, state)
    result = result_where(done, result, RESULTS.nonlinear_max_steps_reached)
    result = result_where(finite, result, RESULTS.nonfinite_input)
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
        num_idle=num_idle,
        residual_rms=record.residual_rms,
        objective=record.objective,
    )
    return Solution(x, result, stats, rows)


def run_lane(
    problem: Problem,
    solver: Any,
    x0: Array,
    key: Any,
    max_steps: Any,
    history: int | None,
    adjoint: Adjoint,
    precision: str,
) -> Solution:
    """The whole loop of one observation."""
    check_problem(problem, solver, x0)  # here, so that it runs once per trace
    if adjoint == "implicit" or isinstance(adjoint, Implicit):
        options = Implicit() if adjoint == "implicit" else adjoint
        steps: Adjoint = "checkpointed" if unrolls(options) else "forward"
        run = lambda p, s, x: run_lane(p, s, x, key, max_steps, history, steps, precision)
        return differentiate(run, problem, solver, x0, options, precision)
    if not isinstance(solver, AbstractSolver):
        return run_optimistix(problem, solver, x0, max_steps)
    finite = finite_input(problem, x0)
    # Without a bound on the turns the checkpointed loop needs a number of checkpoints; one per step is plenty.
    checkpoints = None if adjoint == "forward" else max(max_steps, 1)
    lane = eqxi.while_loop(
        lambda lane: finite & going(problem, solver, lane, max_steps),
        lambda lane: turn(problem, solver, lane, precision),
        begin(problem, solver, x0, key, history),
        kind="lax" if adjoint == "forward" else "checkpointed",
        checkpoints=checkpoints,
    )
    # A batch under `vmap` goes on until its last lane has finished.
    record = lane[1].record
    num_turns = record.num_steps + record.num_rejected
    return finish(problem, solver, lane, finite, eqxi.unvmap_max(num_turns) - num_turns)


def _start(num: int, record: Record) -> History:
    empty = jnp.full((num,), jnp.nan, record.objective.dtype)
    return _put(History(empty, empty, empty, empty), record, jnp.asarray(0), jnp.asarray(True))


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
