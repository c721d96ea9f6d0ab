"""`lifted-shallow`: a scalar function as 25 ReLUs, inverted with the hidden values as unknowns, sweep by sweep.

- `weights`: the error against alpha and the number of sweeps, which is large;
- `data`: exact data, data of the function itself, and noise; beside descent, Newton's method and bisection.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Scalar

from .._problem import Problem
from ..lifted import HalfSquaredNorm, ShallowDescent, ShallowNetwork, VariationalDescent, shallow_interpolant
from ..solvers import Box, GaussNewton
from ._curves import Panel, draw
from ._study import Bench, Findings, Study
from ._timed import timed, timed_solve

END = 1.5
"""Targets are above 0 and at most this."""
START = 0.75
ALPHAS = (0.0, 1e-6, 1e-4, 1e-2)
SWEEPS = (10, 100, 1000, 3000, 10_000, 30_000, 100_000)


HALVINGS = 60
"""Steps of the bisection."""


def function(u: Float[Array, ""]) -> Scalar:
    """`K(u) = u (2 u / 3)^(3 u)`, increasing, with slopes between 0.1 and 4.9 on [0, 1.5]."""
    return u * (2 * u / 3) ** (3 * u)


@functools.partial(jax.jit, static_argnums=0)
def network(dtype: DTypeLike) -> ShallowNetwork:
    """Its interpolant at the multiples of 0.06, as 25 ReLUs."""
    return shallow_interpolant(function, jnp.linspace(0, END, 26, dtype=dtype))


def bisection(forward: Callable[..., Any], data: Float[Array, "*y"], low: float, high: float) -> Float[Array, "*y"]:
    """Where in an interval an increasing scalar function has the value `data`, or the end nearest to that."""

    def halve(_: Any, ends: tuple[Array, Array]) -> tuple[Array, Array]:
        middle = 0.5 * (ends[0] + ends[1])
        below = forward(middle) < data
        return jnp.where(below, middle, ends[0]), jnp.where(below, ends[1], middle)

    ends = jax.lax.fori_loop(0, HALVINGS, halve, (jnp.full_like(data, low), jnp.full_like(data, high)))
    return 0.5 * (ends[0] + ends[1])


def targets(dtype: DTypeLike) -> Float[Array, " n"]:
    """0.05, 0.1, ..., 1.5."""
    return 0.05 * jnp.arange(1, 31, dtype=dtype)


def _errors(found: Float[Array, " n"], truth: Float[Array, " n"]) -> dict[str, float]:
    error = jnp.abs(found - truth)
    return {"max error": float(jnp.max(error)), "mean error": float(jnp.mean(error))}


def weights(bench: Bench) -> Findings:
    """Every alpha for every number of sweeps; and from other starts, as with a large alpha the limit depends on it."""
    forward, truth = network(bench.dtype), targets(bench.dtype)
    problem = Problem(forward, jax.vmap(forward)(truth))
    budgets = SWEEPS[:4] if bench.quick else SWEEPS
    rows, curves = [], []
    for alpha in ALPHAS:
        runs = [(START, budget) for budget in budgets] + [(0.0, budgets[-1]), (END, budgets[-1])]
        curve = []
        for start, budget in runs:
            solver = ShallowDescent(jnp.asarray(alpha, bench.dtype), rtol=0.0)
            x0 = jnp.full_like(truth, start)
            solution, seconds = timed_solve(problem, solver, x0, max_steps=budget, batch=True)
            errors = _errors(solution.value, truth)
            rows.append({"alpha": alpha, "start": start, "sweeps": budget} | errors | {"seconds": seconds})
            if start == START:
                curve.append(errors["max error"])
                last = solution.value
        curves.append((curve, last))
    grid = jnp.linspace(0, END, 301, dtype=bench.dtype)
    arrays = {
        "sweeps": np.asarray(budgets),
        "max error": np.asarray([curve for curve, _ in curves]),
        "inverse": np.stack([np.asarray(last) for _, last in curves]),
        "data": np.asarray(problem.data),
        "targets": np.asarray(truth),
        "grid": np.asarray(grid),
        "K": np.asarray(jax.vmap(function)(grid)),
        "N": np.asarray(jax.vmap(forward)(grid)),
    }
    slopes = jnp.cumsum(forward.outer)
    measures = {
        "units": forward.bias.size,
        "max |N - K|": float(np.max(np.abs(arrays["N"] - arrays["K"]))),
        "least slope": float(jnp.min(slopes)),
        "largest slope": float(jnp.max(slopes)),
        "negative c": int(jnp.sum(forward.outer < 0)),
    }
    return Findings(rows, measures, arrays)


def data(bench: Bench) -> Findings:
    """Lifted descent beside what else there is for a scalar; bisection, the trivial one, is exact.

    All solvers know that `0 <= u <= 1.5`. At 0 the network has a kink and, on one side, no slope: a Newton step that
    ends there is the last.
    """
    forward, truth = network(bench.dtype), targets(bench.dtype)
    clean = jax.vmap(forward)(truth)
    standard = jax.random.normal(bench.key, truth.shape, bench.dtype)
    cases = {
        "N(u)": clean,
        "K(u)": jax.vmap(function)(truth),
        "N(u), noise 0.001": clean + 1e-3 * standard,
        "N(u), noise 0.01": clean + 1e-2 * standard,
    }
    many = 3000 if bench.quick else 30_000
    methods = {
        "lifted descent, alpha 0.0001": (ShallowDescent(1e-4, rtol=0.0), many),
        "lifted descent, alpha 0.01": (ShallowDescent(1e-2, rtol=0.0), many),
        "quadratic fidelity, alpha 0.0001": (VariationalDescent(1e-4, HalfSquaredNorm(), rtol=1e-7), 1000),
        "quadratic fidelity, alpha 0.01": (VariationalDescent(1e-2, HalfSquaredNorm(), rtol=1e-7), 1000),
        "Newton": (GaussNewton(atol=1e-6), 100),
    }
    invert = jax.jit(jax.vmap(lambda y: bisection(forward, y, 0.0, END)))
    rows = []
    for case, observed in cases.items():
        x0 = jnp.full_like(truth, START)
        found, seconds = timed(invert, observed)
        estimates: dict[str, tuple[Array, Any, float]] = {
            "the start": (x0, 0, 0.0),
            "bisection": (found, HALVINGS, seconds),
        }
        for name, (solver, budget) in methods.items():
            problem = Problem(forward, observed, project=Box(0.0, END))
            solution, seconds = timed_solve(problem, solver, x0, max_steps=budget, batch=True)
            estimates[name] = (solution.value, float(jnp.median(solution.stats.num_steps)), seconds)
        for name, (value, steps, seconds) in estimates.items():
            row = {"data": case, "method": name, "steps": steps}
            rows.append(row | _errors(value, truth) | {"seconds": seconds})
    return Findings(rows)


def figures(found: Mapping[str, Findings]) -> dict[str, Any]:
    """The function and the network, its inverse for every alpha, and errors against sweeps."""
    if "weights" not in found:
        return {}
    arrays = found["weights"].arrays
    chosen = [index for index, alpha in enumerate(ALPHAS) if alpha in (1e-4, 1e-2)]
    inverses: dict[str, Any] = {"true inverse": (arrays["N"], arrays["grid"])}
    inverses |= {f"alpha {ALPHAS[i]:g}": (arrays["data"], arrays["inverse"][i]) for i in chosen}
    errors = {f"alpha {alpha:g}": (arrays["sweeps"], arrays["max error"][i]) for i, alpha in enumerate(ALPHAS)}
    panels = [
        Panel({"K": (arrays["grid"], arrays["K"]), "N, 25 ReLUs": (arrays["grid"], arrays["N"])}, "u", "value"),
        Panel(inverses, "data", "u"),
        Panel(errors, "sweeps", "largest error", log=True),
    ]
    return {"weights": draw(panels)}


LIFTED_SHALLOW = Study(
    name="lifted-shallow",
    summary="a scalar function as 25 ReLUs, inverted by lifted coordinate descent, beside Newton and bisection",
    reference="X. Wang, M. Benning, A lifted Bregman formulation for the inversion of deep neural networks, 2023, "
    "arXiv:2303.01965",
    recipes={"weights": weights, "data": data},
    figures=figures,
)
