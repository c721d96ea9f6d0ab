"""`lifted-resnet`: residual networks of 20 blocks fitted to `u^3 + u`, inverted with all states as unknowns at once.

- `certificate`: when the lifted energy is known to be convex, for either sign and for a general `V`;
- `inversion`: trained networks of all three kinds, inverted by lifted splitting, Newton, descent and bisection.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.typing import DTypeLike
from jaxtyping import Array, Float, PRNGKeyArray, Scalar

from .._problem import Problem
from ..learn import Stage, Term, fit
from ..lifted import HalfSquaredNorm, ResidualFlow, ResidualSplitting, VariationalDescent
from ..solvers import GaussNewton, LevenbergMarquardt
from ._curves import Panel, draw
from ._lifted_shallow import HALVINGS, bisection
from ._study import Bench, Findings, Study
from ._timed import timed, timed_solve

BLOCKS, UNITS = 20, 4
NOISE = 0.01
"""Standard deviation of the noise on the data, in the rows with noise."""


@dataclasses.dataclass(frozen=True)
class Kind:
    """A kind of network.

    Attributes:
        sign: of `V = W^T` or `V = -W^T`; zero for a `V` of its own.
        inverse: whether it is fitted to the inverse of `u^3 + u` on [-2, 2], not to `u^3 + u` on [-1, 1].
        scale: standard deviation of its weights at the start.
    """

    sign: int
    inverse: bool = False
    scale: float = 0.3


KINDS = {
    "V = W'": Kind(1),
    "V = -W'": Kind(-1, scale=0.6),  # on a line it must turn states over to grow: small weights cannot
    "V = -W', inverse": Kind(-1, inverse=True),
    "V free": Kind(0),
}
LEFT_OUT = ("V = -W'", "V free")
"""Of a quick run."""


def cubic(u: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    """`u^3 + u`."""
    return u**3 + u


def flow_at_start(kind: Kind, dtype: DTypeLike, *, key: PRNGKeyArray) -> ResidualFlow:
    """A network of small weights, with kinks on both sides of the origin; with `V = W^T` on the outer side of it."""
    w_key, b_key, v_key = jax.random.split(key, 3)
    w = kind.scale * jax.random.normal(w_key, (BLOCKS, UNITS, 1), dtype)
    low = 0.0 if kind.sign == 1 else -1.5
    b = -jnp.abs(w[..., 0]) * jax.random.uniform(b_key, (BLOCKS, UNITS), dtype, low, 1.5)
    if kind.sign:
        return ResidualFlow(w, b, sign=kind.sign)
    return ResidualFlow(w, b, returns=kind.scale * jax.random.normal(v_key, (BLOCKS, 1, UNITS), dtype))


def squared_error(
    model: ResidualFlow, x: Float[Array, " n"], y: Float[Array, " n"], key: PRNGKeyArray | None
) -> Scalar:
    """The loss of one example."""
    del key
    return jnp.sum((model(x) - y) ** 2)


def examples(kind: Kind, num: int, dtype: DTypeLike) -> tuple[Float[Array, "num 1"], Float[Array, "num 1"]]:
    """Points and values on a regular grid."""
    u = np.linspace(-1, 1, 100 * num)
    x = np.linspace(-2, 2, num) if kind.inverse else np.linspace(-1, 1, num)
    y = np.interp(x, cubic(u), u) if kind.inverse else cubic(x)
    return jnp.asarray(x[:, None], dtype), jnp.asarray(y[:, None], dtype)


def trained(bench: Bench, name: str) -> tuple[ResidualFlow, dict[str, float]]:
    """A network of the kind called `name`, and how well it fits."""
    kind = KINDS[name]
    num_steps = 1000 if bench.quick else 4000
    x, y = examples(kind, 201, bench.dtype)
    init_key, fit_key = jax.random.split(bench.key)
    optimiser = optax.adam(optax.cosine_decay_schedule(1e-2, num_steps))
    stage = Stage({"fit": Term(squared_error)}, lambda model: model, num_steps, len(x), optimiser)
    file = f"flow-{list(KINDS).index(name)}"
    flow, _ = fit(
        flow_at_start(kind, bench.dtype, key=init_key),
        {"fit": stage},
        (x, y),
        key=fit_key,
        checkpoint=bench.fits / file,
        progress=bench.progress,
    )
    bench.keep(file, flow)
    error = jnp.abs(jax.vmap(flow)(x) - y)
    slopes = jax.vmap(jax.grad(lambda u: flow(u[None])[0]))(x[:, 0])
    quality = {"max error": float(jnp.max(error)), "MSE": float(jnp.mean(error**2))}
    return flow, quality | {"least slope": float(jnp.min(slopes)), "largest slope": float(jnp.max(slopes))}


def certificate(bench: Bench) -> Findings:
    """The smallest eigenvalue of `Q`, for weights `lambda` of the data and `rho` of the equations of the blocks.

    It depends on the number of blocks and on `V` alone, not on how a network was trained.
    """
    rows = []
    for name, kind in KINDS.items():
        if kind.inverse:
            continue
        flow = flow_at_start(kind, bench.dtype, key=bench.key)
        for weight in (0.9, BLOCKS / (BLOCKS + 1), 1.0, 10.0):
            for rho in (np.inf, 200.0, 100.0) if kind.sign == 1 else (np.inf,):
                found = flow.certificate(weight, rho)
                row = {"network": name, "lambda": weight, "rho": rho, "certificate": "yes" if found.holds else "no"}
                row |= {"smallest eigenvalue": found.smallest_eigenvalue, "smallest rho": found.smallest_rho}
                rows.append(row | {"reason": found.reason})
    return Findings(rows)


def _methods(kind: Kind, *, quick: bool) -> list[tuple[str, float | None, float, Any, int]]:
    """Name, `lambda`, alpha, solver and budget."""
    exact = BLOCKS / (BLOCKS + 1)
    weights = (0.9, exact, 1.0, 10.0) if kind.sign == 1 else (1.0, 10.0)
    budgets = (100, 1000) if quick else (100, 1000, 10_000)
    found: list[tuple[str, float | None, float, Any, int]] = [
        ("lifted splitting", weight, 0.0, ResidualSplitting(weight, rtol=0.0), budget)
        for weight in weights
        for budget in (budgets if weight >= 1 else budgets[-1:])
    ]
    found += [
        ("lifted splitting", 1.0, 1e-3, ResidualSplitting(1.0, 1e-3, rtol=0.0), budgets[-1]),
        ("quadratic fidelity", None, 1e-3, VariationalDescent(1e-3, HalfSquaredNorm(), rtol=1e-7), 1000),
        ("quadratic fidelity", None, 1e-6, VariationalDescent(1e-6, HalfSquaredNorm(), rtol=1e-7), 1000),
        ("Newton", None, 0.0, GaussNewton(atol=1e-7), 100),
    ]
    if not quick:
        found.append(("Levenberg-Marquardt", None, 0.0, LevenbergMarquardt(atol=1e-7), 100))
    return found


def inversion(bench: Bench) -> Findings:
    """39 unknowns from the outputs of each network, with and without noise; all solvers start at 0.

    The error is that of the unknown, the residual what the network makes of it: a network that is not monotone has
    several inverses.
    """
    rows, measures, arrays = [], {}, {}
    for name, kind in KINDS.items():
        if bench.quick and name in LEFT_OUT:
            continue
        flow, measures[name] = trained(bench, name)
        end = 2.0 if kind.inverse else 1.0
        truth = end * jnp.linspace(-0.95, 0.95, 39, dtype=bench.dtype)[:, None]
        clean = jax.vmap(flow)(truth)
        noise = NOISE * jax.random.normal(bench.key, clean.shape, bench.dtype)
        for std, data in ((0.0, clean), (NOISE, clean + noise)):
            rows += _rows(name, kind, flow, truth, data, std, quick=bench.quick)
        x, y = examples(kind, 201, bench.dtype)
        arrays |= {f"x {name}": x[:, 0], f"y {name}": y[:, 0], f"N {name}": jax.vmap(flow)(x)[:, 0]}
    return Findings(rows, measures, {name: np.asarray(array) for name, array in arrays.items()})


def _rows(
    name: str,
    kind: Kind,
    flow: ResidualFlow,
    truth: Float[Array, "n 1"],
    data: Float[Array, "n 1"],
    std: float,
    *,
    quick: bool,
) -> list[dict[str, Any]]:
    zero = jnp.zeros_like(truth)
    ends = float(jnp.min(truth)) - 0.1, float(jnp.max(truth)) + 0.1
    invert: Callable[..., Any] = jax.jit(jax.vmap(lambda y: bisection(flow, y, *ends)))
    found, seconds = timed(invert, data)
    rows = [
        _row(name, std, "the start", None, 0.0, "", 0, flow, zero, truth, data, 0.0),
        _row(name, std, "bisection", None, 0.0, "", HALVINGS, flow, found, truth, data, seconds),
    ]
    for method, weight, alpha, solver, budget in _methods(kind, quick=quick):
        solution, seconds = timed_solve(Problem(flow, data), solver, zero, max_steps=budget, batch=True)
        known = "" if weight is None else "yes" if flow.certificate(weight).holds else "no"
        steps = int(jnp.median(solution.stats.num_steps))
        rows.append(_row(name, std, method, weight, alpha, known, steps, flow, solution.value, truth, data, seconds))
    return rows


def _row(
    name: str,
    std: float,
    method: str,
    weight: float | None,
    alpha: float,
    known: str,
    steps: int,
    flow: ResidualFlow,
    value: Float[Array, "n 1"],
    truth: Float[Array, "n 1"],
    data: Float[Array, "n 1"],
    seconds: float,
) -> dict[str, Any]:
    error, residual = jnp.abs(value - truth), jnp.abs(jax.vmap(flow)(value) - data)
    row = {"network": name, "noise": std, "method": method, "lambda": weight, "alpha": alpha, "certificate": known}
    row |= {"steps": steps, "max error": float(jnp.max(error)), "RMS error": float(jnp.sqrt(jnp.mean(error**2)))}
    return row | {"max residual": float(jnp.max(residual)), "seconds": seconds}


def figures(found: Mapping[str, Findings]) -> dict[str, Any]:
    """What the networks were fitted to, and what they became."""
    if "inversion" not in found:
        return {}
    arrays = found["inversion"].arrays
    lines: tuple[dict[str, Any], dict[str, Any]] = ({}, {})
    for name, kind in KINDS.items():
        if f"N {name}" not in arrays:
            continue
        panel = lines[kind.inverse]
        panel.setdefault("target", (arrays[f"x {name}"], arrays[f"y {name}"]))
        panel[name] = (arrays[f"x {name}"], arrays[f"N {name}"])
    return {"networks": draw([Panel(panel, "u", "output") for panel in lines])}


LIFTED_RESNET = Study(
    name="lifted-resnet",
    summary="20 residual blocks fitted to u^3 + u, inverted with all states as unknowns; where that is convex",
    reference="X. Wang, M. Benning, A lifted Bregman formulation for the inversion of deep neural networks, 2023, "
    "arXiv:2303.01965",
    recipes={"certificate": certificate, "inversion": inversion},
    figures=figures,
)
