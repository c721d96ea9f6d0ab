"""The study `imitate`: surjections that stand in for a denoiser, a super-resolver and a simulator of heat.

Parts, each a table:

- `networks`: how well `f(x) = h(x)` is met, what h itself says of points that f back-projected onto the data of
  another example, and the Gauss-Newton correction on h that starts there;
- `pairs`: fit and consistency against the number of training pairs.
"""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float, PRNGKeyArray

from .. import plots
from .._problem import Problem
from ..data import PairedData
from ..learn import Imitation, imitate, imitation_errors, ridge_network
from ..maps import prepare
from ..solvers import GaussNewton, nlbp, solve_batch
from ._imitate_maps import Case, denoiser, heat, super_resolver
from ._study import Bench, Findings, Study

NONE = "none (mean of y, x kept)"
CURVES = ("fit, ridge", "consistency, ridge", "fit, SPNN", "consistency, SPNN")
MAX_STEPS = 50


def tolerance(dtype: DTypeLike) -> float:
    """Of the residual on h, relative to the data."""
    return 1e-6 if dtype == jnp.float64 else 1e-5


def _stand_in(bench: Bench, name: str, h: Any, pairs: PairedData, num_steps: int, key: PRNGKeyArray) -> Imitation:
    found = imitate(
        h,
        (pairs.x, pairs.y),
        key=key,
        num_steps=num_steps,
        checkpoint=bench.fits / name,
        progress=bench.progress,
    )
    bench.keep(name, found.model)
    return found


@jax.jit
def _moved(model: Any, xs: Float[Array, "num *x"], data: Float[Array, "num m"]) -> Float[Array, "num *x"]:
    return jax.vmap(functools.partial(nlbp, model))(xs, data)


@jax.jit
def _relative_residual(h: Any, xs: Float[Array, "num *x"], data: Float[Array, "num m"]) -> Float[Array, " num"]:
    return jnp.linalg.norm(jax.vmap(h)(xs) - data, axis=1) / jnp.linalg.norm(data, axis=1)


def corrected(case: Case, starts: Float[Array, "num *x"], data: Float[Array, "num m"]) -> tuple[Array, Array, Array]:
    """Gauss-Newton on h itself: where it ends, the residual there relative to the data, and its steps."""
    size = jnp.sqrt(jnp.mean(data**2, axis=1, keepdims=True))
    problem = Problem(case.h, data, noise_std=jnp.broadcast_to(size, data.shape))
    solver = GaussNewton(discrepancy=0.5 * tolerance(data.dtype))
    solution = solve_batch(problem, solver, starts, max_steps=MAX_STEPS)
    return solution.value, _relative_residual(case.h, solution.value, data), solution.stats.num_steps


def compare(bench: Bench, case: Case, key: PRNGKeyArray) -> tuple[list[dict[str, Any]], dict[str, np.ndarray]]:
    """The rows of one h: no stand-in (mean of y; x is kept), the ridge surjection, and the network."""
    ridge = ridge_network(case.train.x, case.train.y, num_layers=0, key=key)
    found = _stand_in(bench, f"{case.name} stand-in", case.h, case.train, 150 if bench.quick else 3000, key)
    num_corrected = 16 if bench.quick else 100
    test = case.test
    x, data = test.x[:num_corrected], jnp.asarray(np.roll(test.y, 1, axis=0)[:num_corrected])
    models = {"ridge surjection": ridge, "SPNN": found.model}
    errors = {name: imitation_errors(model, case.h, test.x, test.y) for name, model in models.items()}
    starts_of = {NONE: x} | {name: _moved(prepare(model), x, data) for name, model in models.items()}
    rows, arrays = [], {"x": x, "data": data}
    for name, starts in starts_of.items():
        fitted = errors[name].fit if name in models else _error_of_mean(case)
        consistency = errors[name].consistency if name in models else errors["SPNN"].before
        before = np.asarray(_relative_residual(case.h, starts, data))
        ends, after, steps = map(np.asarray, corrected(case, starts, data))
        rows.append(
            {
                "h": case.name,
                "numbers": f"{x[0].size} to {data[0].size}",
                "stand-in": name,
                "fit": fitted,
                "consistency": consistency,
                "residual, median": float(np.median(before)),
                f"below {tolerance(bench.dtype):g}, %": 100 * float(np.mean(after < tolerance(bench.dtype))),
                "steps, median": float(np.median(steps)),
                "steps, max": int(np.max(steps)),
                "|x' - x| / |x|": float(np.linalg.norm(ends - np.asarray(x)) / np.linalg.norm(x)),
            }
        )
        arrays |= {f"start, {name}": starts, f"end, {name}": ends}
    return rows, {f"{case.name}, {what}": np.asarray(array)[:8] for what, array in arrays.items()}


def _error_of_mean(case: Case) -> float:
    """The fit of a constant: about 1, a little more where the examples for testing have another mean."""
    ys = np.asarray(case.test.y)
    misses = [ys - np.mean(y, axis=0, keepdims=True) for y in (np.asarray(case.train.y), ys)]
    squares = [np.mean(miss**2) for miss in misses]
    return float(np.sqrt(squares[0] / squares[1]))


def networks(bench: Bench) -> Findings:
    """Three existing maps; the super-resolver is left out of a quick run."""
    keys = jax.random.split(bench.key, 6)
    measures: dict[str, Any] = {}
    rows, arrays = [], {}
    builders = (denoiser, heat) if bench.quick else (denoiser, super_resolver, heat)
    for build in builders:
        index = (denoiser, super_resolver, heat).index(build)
        case, quality = build(bench, keys[index])
        found, kept = compare(bench, case, keys[3 + index])
        rows += found
        arrays |= kept
        measures |= {case.name: quality} if quality else {}
        if build is denoiser:
            for what in ("x", "start, SPNN", "end, SPNN", f"end, {NONE}"):
                shown = jax.vmap(case.h.full)(jnp.asarray(kept[f"denoiser, {what}"]))
                arrays[f"denoised, {what}"] = np.asarray(shown)
    return Findings(rows, measures, arrays)


def pairs(bench: Bench) -> Findings:
    """Fit and consistency for the heat map against the number of pairs `(x, h(x))`, on the same held-out ones."""
    numbers = (16, 64) if bench.quick else (16, 64, 256, 1024, 4096)
    data_key, model_key = jax.random.split(bench.key)
    case, _ = heat(bench, data_key, numbers[-1])
    rows, errors = [], []
    for num in numbers:
        some = case.train.take(jnp.arange(num))
        ridge = ridge_network(some.x, some.y, num_layers=0, key=model_key)
        spnn = _stand_in(bench, f"{num} pairs", case.h, some, 100 if bench.quick else 2000, model_key).model
        found = [imitation_errors(model, case.h, case.test.x, case.test.y) for model in (ridge, spnn)]
        row: dict[str, Any] = {"pairs": num}
        for name, each in zip(("ridge", "SPNN"), found, strict=True):
            row |= {f"fit, {name}": each.fit, f"consistency, {name}": each.consistency}
        rows.append(row | {"before": found[0].before})
        errors.append([row[name] for name in CURVES])
    return Findings(rows, {}, {"numbers": np.asarray(numbers), "errors": np.asarray(errors)})


def figures(found: Mapping[str, Findings]) -> dict[str, Any]:
    """Pieces of photographs before and after back-projection and correction; errors against the number of pairs."""
    drawn = {}
    if "networks" in found:
        arrays = {name: array[:, 0] for name, array in found["networks"].arrays.items() if array.ndim == 4}
        titles = {
            "x": "x",
            "start, SPNN": "x', SPNN",
            "end, SPNN": "corrected",
            f"end, {NONE}": "from x itself",
        }
        rows = {}
        for what, title in titles.items():
            rows |= {title: arrays[f"denoiser, {what}"], f"denoised\n{title}": arrays[f"denoised, {what}"]}
        rows["denoised\ntarget"] = np.roll(arrays["denoised, x"], 1, axis=0)
        # the target of the first is the last of all examples, which is not among those kept
        drawn["denoiser"] = plots.image_grid({name: row[1:] for name, row in rows.items()}, limits=(0.0, 1.0))
    if "pairs" in found:
        drawn["pairs"] = _against_number(found["pairs"].arrays["numbers"], found["pairs"].arrays["errors"])
    return drawn


def _against_number(numbers: np.ndarray, errors: np.ndarray) -> Any:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3.5, 2.8), dpi=200, layout="constrained")
    axes = figure.subplots()
    styles = (("#0072B2", "-"), ("#0072B2", "--"), ("#D55E00", "-"), ("#D55E00", "--"))
    for name, curve, (colour, dash) in zip(CURVES, errors.T, styles, strict=True):
        axes.loglog(numbers, curve, label=name, color=colour, linestyle=dash, marker="o", markersize=3, linewidth=1.2)
    axes.set_xlabel("training pairs", fontsize=8)
    axes.set_ylabel("error / deviation of y", fontsize=8)
    axes.tick_params(which="both", labelsize=7)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    axes.legend(fontsize=7, frameon=False)
    return figure


IMITATE = Study(
    name="imitate",
    summary="stand-ins for a denoiser, a super-resolver and a PDE map: fit, consistency, correction on the map itself",
    reference="Y. Ehrlich, A. Berman, A. Shocher, Pseudo-Invertible Neural Networks, 2026, arXiv:2602.06042",
    recipes={"networks": networks, "pairs": pairs},
    figures=figures,
)
