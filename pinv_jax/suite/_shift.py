"""`shift`: does the learned inverse say so when the observations, or the physics, are not what it was trained on?

- `trust`: noise and prior are shifted. What can be known at run time, without the truth, is calibrated on solves of the
  usual observations, and must flag the solves whose error is more than twice the usual one. An error in directions that
  the observation does not determine cannot be seen by anything: the visible ones are those that change the prediction
  by more than in 95 % of the usual solves, and are counted apart.
- `drift`: the diffusivity of `heat1d` grows. The excess composition defect of the old inverse on the new physics is
  compared with its usual range; the inverse is refitted from where it was, and trained anew.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PRNGKeyArray

from .. import plots
from .._problem import Problem
from ..data import GaussianSeries, generate, minmax_sine_series
from ..pde import interior_grid, sine_basis
from ..solvers import DIPG, AbstractSolver, Box, Safeguarded, solve_batch
from . import _heat1d, _oscillator
from ._base import Dataset
from ._drift import drift
from ._inverse import default_trust, train_inverse
from ._study import Bench, Findings, Study
from ._watch import DIAGNOSTICS, LEVEL, Watch, calibrate


@dataclasses.dataclass(frozen=True)
class Case:
    """A problem with its trained inverse and the shifts that it must notice.

    Attributes:
        dataset: of the problem.
        inverse: the trained `g`.
        project: see `Problem`.
        shifts: by name, the sampler of the unknown and the factor of the noise.
        scored: what of the unknown the error is measured in.
    """

    dataset: Dataset
    inverse: Any
    project: Any
    shifts: Mapping[str, tuple[Callable[..., Any], float]]
    scored: Callable[..., Any]


def heat1d_case(bench: Bench) -> Case:
    """Shifts of the published prior: larger, with a narrow bump added, and with more weight on short waves."""
    dataset = _heat1d.dataset(seed=bench.seed, num_test=1, dtype=bench.dtype, quick=bench.quick)
    key = jax.random.key(bench.seed + 1)
    pair = train_inverse(dataset, key=key, folder=bench.fits / "heat1d", progress=bench.progress, quick=bench.quick)
    bench.keep("trust-heat1d", pair.inverse)
    usual = dataset.sample
    points = interior_grid(_heat1d.SIZE, bench.dtype)
    many = minmax_sine_series(_heat1d.SIZE, 20, dtype=bench.dtype)
    flat = GaussianSeries(sine_basis(_heat1d.SIZE, 10, bench.dtype), jnp.ones(10, bench.dtype), usual.transform)

    def bumped(key: PRNGKeyArray) -> Array:
        field_key, centre_key = jax.random.split(key)
        centre = jax.random.uniform(centre_key, (), bench.dtype, 0.2, 0.8)
        return usual(field_key) + jnp.exp(-(((points - centre) / 0.05) ** 2) / 2)

    shifts = {
        "none": (usual, 1.0),
        "noise x 2": (usual, 2.0),
        "noise x 3": (usual, 3.0),
        "amplitude x 1.5": (lambda key: 1.5 * usual(key), 1.0),
        "amplitude x 2": (lambda key: 2.0 * usual(key), 1.0),
        "narrow bump added": (bumped, 1.0),
        "20 modes": (many, 1.0),
        "flat spectrum": (flat, 1.0),
    }
    return Case(dataset, pair.inverse, _heat1d.BOX, shifts, lambda x: x)


def oscillator_case(bench: Bench) -> Case:
    """Shifts of the ranges of the parameters; scored in what the motion determines of them."""
    dataset = _oscillator.dataset(seed=bench.seed, num_test=1, dtype=bench.dtype, quick=bench.quick)
    pair = _oscillator.train_default(
        dataset,
        key=jax.random.key(bench.seed + 1),
        folder=bench.fits / "oscillator",
        progress=bench.progress,
        quick=bench.quick,
    )["good"]
    bench.keep("trust-oscillator", pair.inverse)
    usual = dataset.sample

    def between(**ranges: tuple[float, float]) -> Callable[..., Any]:
        def sample(key: PRNGKeyArray) -> Array:
            theta = _oscillator.to_theta(bench.dtype)(usual(key))
            for name, (low, high) in ranges.items():
                index = ("m", "c", "k", "x0", "v0").index(name)
                share = (theta[index] - _oscillator.LOW[index]) / (_oscillator.HIGH[index] - _oscillator.LOW[index])
                theta = theta.at[index].set(low + share * (high - low))
            return _oscillator.from_theta(theta)

        return sample

    shifts = {
        "none": (usual, 1.0),
        "noise x 2": (usual, 2.0),
        "noise x 3": (usual, 3.0),
        "start x 1.5": (between(x0=(-3.0, 3.0), v0=(-3.0, 3.0)), 1.0),
        "c in [1, 2]": (between(c=(1.0, 2.0)), 1.0),
        "k in [5, 10]": (between(k=(5.0, 10.0)), 1.0),
        "m in [0.25, 0.5]": (between(m=(0.25, 0.5)), 1.0),
    }
    project = Box(-_oscillator.UNIT, _oscillator.UNIT)
    return Case(dataset, pair.inverse, project, shifts, _oscillator.Identified(dataset))


def _solvers(case: Case) -> dict[str, AbstractSolver]:
    # Both stop at the noise that they know of; where it cannot be met they go on to a stationary point.
    noise: dict[str, Any] = {"discrepancy": 1.1, "rtol": 2 / case.dataset.noise_std.size}
    trust = default_trust(case.dataset)
    return {"dipg": DIPG(case.inverse, **noise), "safeguarded": Safeguarded(case.inverse, trust=trust, **noise)}


def _solved(
    case: Case, watch: Watch, solver: AbstractSolver, sample: Any, factor: float, num: int, key: PRNGKeyArray
) -> dict[str, Any]:
    """Errors of unknown and prediction, diagnostics, success, and how many accepted steps raised the objective."""
    dataset = case.dataset
    drawn = generate(sample, dataset.physics, num, key=key, noise_std=factor * dataset.noise_std)
    problem = Problem(dataset.physics, drawn.y, case.project, dataset.noise_std)
    solution = solve_batch(problem, solver, jnp.zeros_like(drawn.x), max_steps=100, history=101)
    assert solution.history is not None
    values = eqx.filter_jit(eqx.filter_vmap(watch, in_axes=(None, 0, 0)))(case.inverse, solution.value, drawn.y)
    error = jax.vmap(case.scored)(solution.value) - jax.vmap(case.scored)(drawn.x)
    predict = eqx.filter_jit(eqx.filter_vmap(dataset.physics))
    misfit = (predict(solution.value) - predict(drawn.x)) / dataset.noise_std[None]
    with np.errstate(invalid="ignore"):
        raised = np.diff(np.asarray(solution.history.objective), axis=1) > 0  # NaN, after the end, is not
    return {
        "error": np.sqrt(np.mean(np.asarray(error, np.float64) ** 2, axis=1)),
        "misfit": np.sqrt(np.mean(np.asarray(misfit, np.float64) ** 2, axis=1)),
        "success": np.asarray(solution.success),
        "raised": int(raised.sum()),
        "steps": np.asarray(solution.stats.num_steps),
        "values": {name: np.asarray(values[name], np.float64) for name in DIAGNOSTICS},
    }


def detection(bench: Bench) -> Findings:
    """Every shift of both problems, with D-IPG and with the safeguarded solver."""
    num = 40 if bench.quick else 500
    rows, arrays, steps, raised, totals = [], {}, 0, 0, {}
    for problem, case in (("heat1d", heat1d_case(bench)), ("oscillator", oscillator_case(bench))):
        watch, alarmed = Watch(case.dataset), {what: [] for what in ("doubled", "visible", "in distribution")}
        for name, solver in _solvers(case).items():
            keys = jax.random.split(jax.random.fold_in(bench.key, len(case.shifts)), 1 + len(case.shifts))
            usual = _solved(case, watch, solver, case.dataset.sample, 1.0, num, keys[0])
            alarms, typical = calibrate(usual["values"]), float(np.median(usual["error"]))
            seen = float(np.quantile(usual["misfit"], LEVEL))
            shifts = list(zip(case.shifts.items(), keys[1:], strict=True))
            for (shift, (sample, factor)), key in shifts[::2] if bench.quick else shifts:
                found = _solved(case, watch, solver, sample, factor, num, key)
                flags, doubled = alarms.flags(found["values"]), found["error"] > 2 * typical
                visible = doubled & (found["misfit"] > seen)
                rows.append(
                    {
                        "problem": problem,
                        "solver": name,
                        "shift": shift,
                        "success %": 100 * float(found["success"].mean()),
                        "error/usual": float(np.median(found["error"])) / typical,
                        "doubled": int(doubled.sum()),
                        **{f"{who} %": _percent(flag[doubled]) for who, flag in flags.items()},
                        "visible": int(visible.sum()),
                        "any, visible %": _percent(flags["any"][visible]),
                        "any, others %": _percent(flags["any"][~doubled]),
                        "raised objective": found["raised"],
                    }
                )
                steps, raised = steps + int(found["steps"].sum()), raised + found["raised"]
                if shift == "none":
                    alarmed["in distribution"].append(flags["any"])
                else:
                    alarmed["doubled"].append(flags["any"][doubled])
                    alarmed["visible"].append(flags["any"][visible])
                where = f"{problem}, {name}, {shift}"
                arrays |= {f"{where}, {d}": found["values"][d] / alarms.alone[d] for d in DIAGNOSTICS}
                arrays[f"{where}, error"] = found["error"] / typical
        together = {what: np.concatenate(parts) for what, parts in alarmed.items()}
        totals[problem] = {f"number of {what}": len(flags) for what, flags in together.items()}
        totals[problem] |= {f"flagged % of {what}": _percent(flags) for what, flags in together.items() if flags.size}
    return Findings(rows, totals | {"every accepted step": {"number": steps, "raised the objective": raised}}, arrays)


def _percent(flags: np.ndarray) -> float | None:
    return 100 * float(flags.mean()) if flags.size else None


def figures(found: Mapping[str, Findings]) -> dict[str, Any]:
    """Error against each diagnostic over its threshold, a point per shift; error against excess RJCP in the drift."""
    drawn: dict[str, Any] = {}
    if "trust" in found:
        part = found["trust"]
        for problem in dict.fromkeys(row["problem"] for row in part.rows):
            shifts = [r["shift"] for r in part.rows if (r["problem"], r["solver"]) == (problem, "safeguarded")]

            def middle(shift: str, what: str, problem: str = problem) -> float:
                return float(np.median(part.arrays[f"{problem}, safeguarded, {shift}, {what}"]))

            for what in DIAGNOSTICS:
                points = {shift: (middle(shift, what), middle(shift, "error")) for shift in shifts}
                name = what.replace(" ", "-").lower()
                drawn[f"trust-{problem}-{name}"] = plots.labelled_points(
                    {what: points}, xlabel="{} / threshold, median", ylabel="error / usual error, median"
                )
    if "drift" in found:
        best: dict[str, tuple[float, float]] = {}
        for row in found["drift"].rows:  # the longest training of each kind comes last
            name = f"{row['inverse']}, {row['diffusivity']:g}"
            best[name] = (row["excess RJCP"], row["g(data) RMSE x"])
        drawn["drift"] = plots.labelled_points({"excess RJCP": best}, ylabel="RMSE of g(data)")
    return drawn


SHIFT = Study(
    name="shift",
    summary="shifted noise, prior and physics: what the diagnostics notice, and what refitting the inverse costs",
    reference=_heat1d.HEAT1D.reference,
    recipes={"trust": detection, "drift": drift},
    figures=figures,
)
