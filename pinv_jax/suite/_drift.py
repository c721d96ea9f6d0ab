"""Changing physics: the diffusivity of `heat1d` grows, the excess RJCP of its inverse notices, the inverse is refitted.

The excess composition defect of the inverse on the new physics is compared with its usual range, and so is its
reconstruction error. The former is over what the best inverse can reach, and returns to its range once the inverse is
refitted; the latter notices smaller changes, but also grows because the problem itself becomes harder. Then the inverse
is refitted from where it was, and trained anew, for several numbers of steps.
"""

import dataclasses
import time
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from .. import _store
from .._problem import Problem
from ..pde import SpectralHeat1D
from ..solvers import DIPG, solve_batch
from . import _heat1d
from ._base import Dataset
from ._inverse import Schedule, train_inverse
from ._study import Bench, Findings
from ._watch import LEVEL, Watch, rms

USUAL_DIFFUSIVITY = 0.18
DIFFUSIVITIES = (0.20, 0.22, 0.26, 0.30)
REFITS, ANEW = (100, 300, 1000), (300, 1000, 10_000)
QUICK_REFITS, QUICK_ANEW = (30,), (100,)
BATCH = 64
"""Unknowns whose mean diagnostics are compared with their usual ranges."""


def diffusing(dataset: Dataset, diffusivity: float) -> Dataset:
    """`heat1d` with another diffusivity, its outputs z-scored as before; the prior and the noise are as they were."""
    changed = SpectralHeat1D(_heat1d.SIZE, diffusivity, dtype=dataset.train.x.dtype)
    physics = eqx.tree_at(lambda scaled: scaled.forward.layers[0], dataset.physics, changed)
    return dataclasses.replace(dataset, physics=physics)


def _trained(bench: Bench, name: str, dataset: Dataset, num_steps: int, start: Any = None) -> tuple[Any, float]:
    """An inverse of the physics of `dataset`, from `start` or from the regression, and the seconds that it took."""
    schedule, options = Schedule(num_steps=num_steps, num_quick_steps=num_steps), {}
    if start is not None:
        schedule = dataclasses.replace(schedule, learning_rate=1e-3)
        options["build"] = lambda x, y, *, key, physics: start
    times, begin = bench.fits / name / "seconds.json", time.perf_counter()
    pair = train_inverse(
        dataset,
        key=jax.random.key(bench.seed + 1),
        folder=bench.fits / name,
        progress=bench.progress,
        quick=bench.quick,
        schedule=schedule,
        **options,
    )
    jax.block_until_ready(eqx.filter(pair.inverse, eqx.is_array))
    if not times.exists():  # a resumed training reports the time of the session that finished it
        _store.write_json(times, {"seconds": time.perf_counter() - begin})
    return pair.inverse, _store.read_json(times)["seconds"]


NOTICING = ("excess RJCP", "reconstruction")


def _watched(dataset: Dataset, inverse: Any) -> dict[str, np.ndarray]:
    """Diagnostics of `Watch` at each validation unknown, whose observation is what the physics says."""
    watch, val = Watch(dataset), dataset.val
    found = eqx.filter_jit(eqx.filter_vmap(watch, in_axes=(None, 0, 0)))(inverse, val.x, val.y)
    return {name: np.asarray(found[name], np.float64) for name in NOTICING}


def batch_means(values: np.ndarray, *, seed: int, num: int = 2000) -> np.ndarray:
    """Means of `num` random batches of `BATCH` of the values."""
    draws = np.random.default_rng(seed).integers(len(values), size=(num, BATCH))
    return values[draws].mean(axis=1)


def _quality(bench: Bench, dataset: Dataset, inverse: Any, limits: dict[str, float]) -> dict[str, Any]:
    """What the inverse is worth on the physics of `dataset`, alone and in D-IPG that stops at the noise."""
    xs = dataset.test.x
    clean = eqx.filter_jit(eqx.filter_vmap(dataset.physics))(xs)
    noise = dataset.noise_std[None] * jax.random.normal(jax.random.key(bench.seed), clean.shape, clean.dtype)
    own = jnp.broadcast_to(jnp.sqrt(jnp.mean(noise**2, axis=1, keepdims=True)), clean.shape)
    problem = Problem(dataset.physics, clean + noise, _heat1d.BOX, own)
    solver = DIPG(inverse, discrepancy=_heat1d.DISCREPANCY, rtol=2 / _heat1d.SIZE)
    solution = solve_batch(problem, solver, jnp.zeros_like(xs), max_steps=100)
    shot = jax.vmap(_heat1d.BOX)(eqx.filter_jit(eqx.filter_vmap(inverse))(problem.data))
    watched = _watched(dataset, inverse)
    return {
        **{name: float(values.mean()) for name, values in watched.items()},
        **{
            f"noticed by {name} %": 100 * float((batch_means(values, seed=1) > limits[name]).mean())
            for name, values in watched.items()
        },
        "g(data) RMSE x": float(jnp.mean(jax.vmap(rms)(shot - xs))),
        "success %": 100 * float(jnp.mean(solution.success)),
        "steps": float(jnp.mean(solution.stats.num_steps)),
        "RMSE x": float(jnp.mean(jax.vmap(rms)(solution.value - xs))),
    }


def drift(bench: Bench) -> Findings:
    """Every diffusivity with the inverse that was kept, refitted from the one before it, and trained anew."""
    num_test = 40 if bench.quick else 300
    refits, anew = (QUICK_REFITS, QUICK_ANEW) if bench.quick else (REFITS, ANEW)
    usual = _heat1d.dataset(seed=bench.seed, num_test=num_test, dtype=bench.dtype, quick=bench.quick)
    kept, seconds = _trained(bench, "usual", usual, anew[-1])
    bench.keep("drift-usual", kept)
    limits = {
        name: float(np.quantile(batch_means(values, seed=0), LEVEL)) for name, values in _watched(usual, kept).items()
    }

    def line(diffusivity: float, name: str, steps: int, seconds: float, dataset: Dataset, inverse: Any) -> Any:
        trained = {"diffusivity": diffusivity, "inverse": name, "trained": steps, "seconds": seconds}
        return trained | _quality(bench, dataset, inverse, limits)

    rows = [line(USUAL_DIFFUSIVITY, "kept", anew[-1], seconds, usual, kept)]
    measures: dict[str, Any] = {"thresholds on means of 64 unknowns": limits}
    current = kept
    for diffusivity in DIFFUSIVITIES[-1:] if bench.quick else DIFFUSIVITIES:
        dataset = diffusing(usual, diffusivity)
        rows.append(line(diffusivity, "kept", 0, 0.0, dataset, kept))
        runs = {"refitted": (refits, current), "anew": (anew, None)}
        here = []
        for name, (lengths, start) in runs.items():
            for num_steps in lengths:
                folder = f"{diffusivity:g}-{name}-{num_steps}"
                inverse, seconds = _trained(bench, folder, dataset, num_steps, start)
                bench.keep(f"drift-{folder}", inverse)
                here.append(line(diffusivity, name, num_steps, seconds, dataset, inverse))
                current = inverse if name == "refitted" else current
        rows += here
        measures[f"diffusivity {diffusivity:g}"] = steps_to_match(here)
    return Findings(rows, measures)


def steps_to_match(rows: list[dict[str, Any]], slack: float = 1.01) -> dict[str, float]:
    """By kind of training, the fewest steps whose one-shot error is within `slack` of the longest training anew.

    Args:
        rows: with "inverse", "trained" and "g(data) RMSE x".
        slack: factor on that error.

    Returns:
        Steps by kind; NaN where none gets there.
    """
    target = slack * [row for row in rows if row["inverse"] == "anew"][-1]["g(data) RMSE x"]
    kinds = dict.fromkeys(row["inverse"] for row in rows)
    met = {
        kind: [r["trained"] for r in rows if r["inverse"] == kind and r["g(data) RMSE x"] <= target] for kind in kinds
    }
    return {f"steps {kind}": float(min(steps, default=float("nan"))) for kind, steps in met.items()}
