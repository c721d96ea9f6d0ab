"""Optimistix solvers behind `solve`, as they are: the outside yardstick."""

from typing import Any

import jax.numpy as jnp
import optimistix as optx
from jaxtyping import Array, Float

from .._problem import Problem
from .._solution import RESULTS, Solution, Stats, result_where


def run_optimistix(problem: Problem, solver: Any, x0: Float[Array, "*x"], max_steps: int) -> Solution:
    """Runs an optimistix least-squares solver or minimiser and returns our `Solution`.

    Its evaluations are not counted by optimistix: those counts are -1. The trials it rejects are part of `num_steps`.
    """
    finite = jnp.all(jnp.isfinite(x0)) & jnp.all(jnp.isfinite(problem.data))

    def misfit(x: Float[Array, "*x"], args: Any) -> Float[Array, " k"]:
        del args
        return problem.misfit(x, problem.forward(x))

    # A budget of zero is legal here and an error there.
    sol = optx.least_squares(misfit, solver, x0, max_steps=max(max_steps, 1), throw=False)
    x = sol.value if max_steps > 0 else x0
    result = RESULTS.promote(sol.result) if max_steps > 0 else RESULTS.nonlinear_max_steps_reached
    prediction = problem.forward(x)
    rms = problem.residual_rms(prediction - problem.data)
    ended = result_where(jnp.isfinite(rms), result, RESULTS.nonlinear_divergence)  # never a success with a NaN
    unknown = jnp.asarray(-1, jnp.int32)
    stats = Stats(
        num_steps=jnp.asarray(sol.stats["num_steps"] if max_steps > 0 else 0, jnp.int32),
        num_rejected=unknown,
        num_fallbacks=jnp.asarray(0, jnp.int32),
        num_f=unknown,
        num_g=jnp.asarray(0, jnp.int32),
        num_jvp=unknown,
        num_vjp=unknown,
        num_idle=unknown,
        residual_rms=rms,
        objective=problem.merit(x, prediction),
    )
    return Solution(x, result_where(finite, ended, RESULTS.nonfinite_input), stats)
