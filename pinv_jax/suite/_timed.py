"""Solves with their time, without that of compiling."""

import time
from collections.abc import Callable
from typing import Any

import jax
from jaxtyping import Array

from .._problem import Problem
from .._solution import Solution
from ..solvers import solve, solve_batch


def timed_solve(
    problem: Problem, solver: Any, x0: Array, *, max_steps: int, batch: bool = False
) -> tuple[Solution, float]:
    """What `solve`, or `solve_batch`, returns, and the seconds that it took once compiled."""
    run = solve_batch if batch else solve
    jax.block_until_ready(run(problem, solver, x0, max_steps=0).value)  # a budget is a value: this compiles for all
    start = time.perf_counter()
    solution = jax.block_until_ready(run(problem, solver, x0, max_steps=max_steps))
    return solution, time.perf_counter() - start


def timed(fn: Callable[..., Any], *arguments: Any) -> tuple[Any, float]:
    """What a compiled function returns, and the seconds of its second call."""
    jax.block_until_ready(fn(*arguments))
    start = time.perf_counter()
    value = jax.block_until_ready(fn(*arguments))
    return value, time.perf_counter() - start
