"""`solve_batch`: many observations with a leading axis."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import optimistix as optx
from jaxtyping import Array, Float, PRNGKeyArray

from .._problem import Problem
from .._solution import Solution
from ..maps import prepare
from ._base import AbstractSolver
from ._check import as_floating, check_arguments, check_batch
from ._loop import Adjoint, as_arrays, run_lane


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
    solver, limit = as_arrays(solver, int(max_steps), adjoint, x0.dtype)
    with jax.default_matmul_precision(precision):
        return _run_batch(problem, solver, x0, keys, per_lane, limit, history, adjoint, precision)


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
        return run_lane(lane, solver, x0, key, max_steps, history, adjoint, precision)

    in_axes = (0, 0 if per_lane else None, 0, None if keys is None else 0)
    return jax.vmap(one, in_axes=in_axes)(problem.data, problem.noise_std, x0, keys)
