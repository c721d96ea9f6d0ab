"""`solve_multistart`: several starts for each observation, as lanes of one batch; the best is kept."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .._problem import Problem
from .._solution import Solution
from ._batch import solve_batch
from ._check import as_floating


def solve_multistart(
    problem: Problem, solver: Any, x0: Float[Array, "..."], **options: Any
) -> tuple[Solution, Solution]:
    """Solves each observation from several starts.

    Args:
        problem: as for `solve_batch`, with `data` of shape `(batch, *y)`.
        solver: likewise.
        x0: the starts, shape `(starts, *x)`, or `(batch, starts, *x)` where each observation has its own.
        **options: those of `solve_batch`, except `axes`.

    Returns:
        Of every observation the solution of least objective, with leading axis `batch`; and all of them, with leading
        axes `(batch, starts)`. A start that ends without a finite objective never is the best, unless all do.

    Raises:
        ValueError: as `solve_batch`.
    """
    data, x0 = as_floating(problem.data, "data"), as_floating(x0, "x0")
    if data.ndim == 0 or x0.ndim == 0 or "axes" in options:
        raise ValueError(
            f"solve_multistart: data has shape {data.shape}, x0 {x0.shape}, options {sorted(options)}; expected "
            "(batch, *y), starts of shape (starts, *x) or (batch, starts, *x), and no axes."
        )
    num, shape = data.shape[0], data.shape[1:]
    try:
        common = jax.eval_shape(problem.forward, jax.ShapeDtypeStruct(x0.shape[1:], x0.dtype)).shape == shape
    except (TypeError, ValueError):
        common = False
    starts = jnp.broadcast_to(x0, (num, *x0.shape)) if common else x0
    if starts.shape[0] != num or starts.ndim < 2:
        raise ValueError(f"solve_multistart: x0 has shape {x0.shape}; expected starts for each of {num} observations.")
    num_starts = starts.shape[1]

    def repeated(a: Any) -> Array:
        return jnp.repeat(jnp.asarray(a), num_starts, axis=0)

    noise_std = problem.noise_std
    if noise_std is not None and jnp.shape(noise_std) == data.shape:
        noise_std = repeated(noise_std)
    lanes = Problem(problem.forward, repeated(data), problem.project, noise_std, problem.prior)
    found = solve_batch(lanes, solver, starts.reshape(num * num_starts, *starts.shape[2:]), **options)
    found = jax.tree.map(lambda a: a.reshape(num, num_starts, *a.shape[1:]), found)
    objective = found.stats.objective
    best = jnp.argmin(jnp.where(jnp.isfinite(objective), objective, jnp.inf), axis=1)
    rows = jnp.arange(num)
    return jax.tree.map(lambda a: a[rows, best], found), found
