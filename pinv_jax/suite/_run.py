"""`run`: builds the data of a named problem, trains, solves, and writes a report; resumable at any moment."""

import dataclasses
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from .. import _store
from .._problem import Problem
from .._progress import Meter, fit_progress
from .._solution import RESULTS, Solution
from ..diagnostics import jacobian_spectrum, wilson_interval
from ..io import save_model
from ..solvers import AbstractSolver, solve_batch
from ._base import Dataset, InverseProblem, Row
from ._folder import FORMAT, Options, check_dtype, claim, environment
from ._report import draw
from ._study import Study, run_study


def run(
    problem: InverseProblem | Study,
    options: Options,
    out: Path,
    *,
    resume: bool = False,
    stream: Any = "stderr",
) -> dict[str, Any]:
    """Runs a problem and writes `report.json`, `solutions.npz`, models and figures into a folder.

    Every finished stage of training and every finished row (of a `Study`: part) is on disk before the next begins.
    With `resume`, they are read back, and the numbers of the report, times apart, are those of a run that was not
    interrupted.

    Args:
        problem: one of `suite.PROBLEMS`.
        options: see `Options`.
        out: the folder.
        resume: continue what is in the folder; else results of the same problem there are replaced.
        stream: where progress goes; `None` is silent.

    Returns:
        The report, as written.

    Raises:
        ValueError: the folder belongs to something else, or to a run with other options; nothing is overwritten.
    """
    if isinstance(problem, Study):
        return run_study(problem, options, out, resume=resume, stream=stream)
    check_dtype(options)
    num_test = options.num_test
    if num_test is None:
        num_test = min(problem.num_test, 2) if options.quick else problem.num_test
    recipes = options.recipes
    if recipes is None:
        recipes = tuple(name for name, recipe in problem.recipes.items() if recipe.in_quick or not options.quick)
    identity = {
        "format": FORMAT,
        "problem": problem.name,
        "seed": options.seed,
        "num_test": num_test,
        "dtype": options.dtype,
        "quick": options.quick,
    }
    claim(out, identity, resume=resume)

    dtype = jnp.dtype(options.dtype)
    dataset = problem.dataset(seed=options.seed, num_test=num_test, dtype=dtype, quick=options.quick)
    report: dict[str, Any] = identity | environment() | _noise(dataset) | {"tolerance": problem.tolerance}
    report |= {"training_seconds": {}, "measures": {}, "rows": []}
    solutions: dict[str, Array] = {}
    keys = dict(
        zip(problem.recipes, jax.random.split(jax.random.key(options.seed + 1), len(problem.recipes)), strict=True)
    )
    results: dict[str, list[tuple[Row, Any]]] = {}
    for recipe_name in recipes:
        recipe = problem.recipes[recipe_name]
        train_key, measure_key = jax.random.split(keys[recipe_name])
        models, seconds = _train(recipe, recipe_name, dataset, train_key, out, options.quick, stream)
        report["training_seconds"][recipe_name] = seconds
        report["measures"][recipe_name] = recipe.measure(dataset, models, key=measure_key)
        rows = [row for row in recipe.rows(dataset, models) if _wanted(row, options.solvers)]
        if options.quick:
            rows = [_shortened(row) for row in _first_of_each_solver(rows)]
        results[recipe_name] = _solve_rows(rows, out, stream)
        for row, outcome in results[recipe_name]:
            report["rows"].append(row_entry(row, outcome, dataset))
            solutions[row.name] = outcome["x"]
    report["spectrum"] = np.asarray(
        jacobian_spectrum(dataset.physics, jnp.mean(dataset.train.x, axis=0)), np.float64
    ).tolist()
    _store.write_npz(out / "solutions.npz", truth=dataset.test.x, data=dataset.test.y, **solutions)
    figure_recipe = problem.figure_recipe if problem.figure_recipe in results else recipes[-1]
    report["figures"] = draw(out, dataset, results[figure_recipe], report)
    _store.write_json(out / "report.json", report)
    return report


def _first_of_each_solver(rows: Sequence[Row]) -> list[Row]:
    """Without the further settings of a solver, each of which takes seconds to compile; estimates stay."""
    firsts = {row.solver: row.method for row in reversed(rows) if isinstance(row.method, AbstractSolver)}
    return [row for row in rows if firsts.get(row.solver, row.method) is row.method]


def _shortened(row: Row) -> Row:
    """With few steps; on a surrogate that is hardly trained they lead nowhere, and a dense one may take seconds."""
    return dataclasses.replace(row, max_steps=min(row.max_steps, 2 if row.surrogate else 8))


def _wanted(row: Row, solvers: Sequence[str] | None) -> bool:
    return solvers is None or row.solver in solvers or not isinstance(row.method, AbstractSolver)


def _noise(dataset: Dataset) -> dict[str, Any]:
    return {
        "noise_level": float(jnp.sqrt(jnp.mean(dataset.noise_std**2))),
        "noise_level_meaning": "root mean square over coordinates of the noise standard deviation, z-scored units",
    }


def _train(
    recipe: Any, name: str, dataset: Dataset, key: Any, out: Path, quick: Any, stream: Any
) -> tuple[dict[str, Any], float]:
    times = out / "fits" / name / "seconds.json"
    start = time.perf_counter()
    models = recipe.train(
        dataset, key=key, folder=out / "fits" / name, progress=fit_progress(stream), quick=bool(quick)
    )
    jax.block_until_ready(eqx.filter(models, eqx.is_array))
    if not times.exists():  # a resumed training reports the time of the session that finished it
        _store.write_json(times, {"seconds": time.perf_counter() - start})
    for model_name, model in models.items():
        save_model(out / "models" / f"{name}-{model_name}.npz", model, meta={"recipe": name, "model": model_name})
    return models, _store.read_json(times)["seconds"]


def _solve_rows(rows: Sequence[Row], out: Path, stream: Any) -> list[tuple[Row, Any]]:
    names = [row.name for row in rows]
    if len(set(names)) != len(names):
        raise ValueError(f"rows need different names, got {sorted(names)}: change a note.")
    results = []
    with Meter(f"solve {rows[0].recipe}" if rows else "solve", len(rows), stream) as meter:
        for index, row in enumerate(rows):
            path = out / "rows" / f"{row.name}.npz"
            if path.exists():
                leaves, meta = _store.load_leaves(path, kind="row")
                outcome = _unpack(leaves, meta)
            else:
                outcome = solve_row(row)
                arrays, meta = _pack(outcome)
                _store.save(path, arrays, kind="row", meta=meta)
            results.append((row, outcome))
            meter.update(index + 1, success=float(np.mean(outcome["success"])))
    return results


def _pack(outcome: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    numbers = {"compile_seconds", "run_seconds", "results"}
    return {k: v for k, v in outcome.items() if k not in numbers}, {k: outcome[k] for k in numbers}


def _unpack(leaves: dict[str, Any], meta: dict[str, Any]) -> dict[str, Any]:
    return {path.strip("[]'\""): np.asarray(leaf) for path, leaf in leaves.items()} | {
        k: meta[k] for k in ("compile_seconds", "run_seconds", "results")
    }


def solve_row(row: Row) -> dict[str, Any]:
    """Solves one row twice: once with compilation, once for the clock."""
    num = row.data.shape[0]
    x0 = jnp.broadcast_to(row.x0, (num, *row.x0.shape))
    if isinstance(row.method, AbstractSolver):
        problem = Problem(row.forward, row.data, row.project, row.noise_std)
        slots = row.max_steps + 1

        def call() -> Any:
            return solve_batch(problem, row.method, x0, max_steps=row.max_steps, history=slots)

    else:
        estimate = jax.jit(jax.vmap(lambda y: row.method(y)))

        def call() -> Any:
            return estimate(row.data)

    start = time.perf_counter()
    jax.block_until_ready(eqx.filter(call(), eqx.is_array))
    first = time.perf_counter() - start
    start = time.perf_counter()
    found = call()
    jax.block_until_ready(eqx.filter(found, eqx.is_array))
    seconds = time.perf_counter() - start

    solution = found if isinstance(found, Solution) else None
    unknown: Any = found if solution is None else solution.value
    if row.project is not None:
        unknown = _each(row.project, unknown)
    x = _each(row.decode, unknown)
    rms = _rms(_each(row.forward, unknown) - row.data)
    error = _rms(x - row.truth)
    success = rms <= row.tolerance if solution is None else solution.success
    if row.rmse_tolerance is not None:
        success = error <= row.rmse_tolerance
    outcome: dict[str, Any] = {
        "x": np.asarray(x),
        "residual_rms": np.asarray(rms),
        "physics_residual_rms": np.asarray(_rms(_each(row.physics, x) - row.data)),
        "rmse_x": np.asarray(error),
        "success": np.asarray(success),
        "compile_seconds": first - seconds,
        "run_seconds": seconds,
        "results": {},
    }
    if solution is not None:
        outcome |= {f"stats.{field}": np.asarray(getattr(solution.stats, field)) for field in STATS}
        history = solution.history
        assert history is not None
        outcome |= {f"history.{f.name}": np.asarray(getattr(history, f.name)) for f in dataclasses.fields(history)}
        codes = np.asarray(solution.result._value)
        outcome["results"] = {
            name: int(np.sum(codes == int(item._value)))
            for name, item in RESULTS._name_to_item.items()
            if np.any(codes == int(item._value))
        }
    return outcome


STATS = ("num_steps", "num_rejected", "num_fallbacks", "num_f", "num_g", "num_jvp", "num_vjp")


@eqx.filter_jit
def _each(fn: Any, values: Any) -> Array:
    return jax.vmap(fn)(values)


def _rms(values: Array) -> Array:
    return jnp.sqrt(jnp.mean(values**2, axis=tuple(range(1, values.ndim))))


def row_entry(row: Row, outcome: dict[str, Any], dataset: Dataset) -> dict[str, Any]:
    """One row of `report.json`."""
    num = len(outcome["success"])
    wins = int(outcome["success"].sum())
    low, high = wilson_interval(wins, num)
    entry: dict[str, Any] = {
        "recipe": row.recipe,
        "solver": row.solver,
        "note": row.note,
        "dtype": str(row.data.dtype),
        "n": num,
        "success_rate": wins / num,
        "success_interval": [float(low), float(high)],
        "rmse_x": float(np.mean(outcome["rmse_x"])),
        "residual_rms_surrogate": float(np.mean(outcome["residual_rms"])) if row.surrogate else None,
        "residual_rms_physics": float(np.mean(outcome["physics_residual_rms"])),
        "seconds_per_solve": outcome["run_seconds"] / num,
        "compile_seconds": outcome["compile_seconds"],
        "results": outcome["results"],
    }
    if "stats.num_steps" not in outcome:
        return entry
    steps = outcome["stats.num_steps"]
    tried = steps + outcome["stats.num_rejected"]
    total = int(steps.sum())
    return entry | {
        "median_steps": float(np.median(steps)),
        "steps_quartiles": [float(q) for q in np.quantile(steps, [0.25, 0.75])],
        "max_steps_taken": int(steps.max()),
        "accepted": total,
        "tried": int(tried.sum()),
        "accepted_share": total / int(tried.sum()) if tried.sum() else None,
        "seconds_per_step": outcome["run_seconds"] / total if total else None,
        "evaluations_per_solve": {
            name: float(np.mean(outcome[f"stats.num_{name}"])) for name in ("f", "g", "jvp", "vjp")
        },
        "fallbacks": int(outcome["stats.num_fallbacks"].sum()),
        "fallbacks_per_solve": float(np.mean(outcome["stats.num_fallbacks"])),
        "failed_line_searches": outcome["results"].get("line_search_failed", 0),
    }
