"""Useful lane-steps and wall time of masked, compacting and streaming batches, on uneven problems and an even one."""

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import pinv_jax as pj
from pinv_jax import _store, solvers

from ._timing import environment, race


class Subject(NamedTuple):
    """A batch: the map, the observations, the starts, the solver and its budget."""

    forward: Callable[..., Any]
    data: Any
    x0: Any
    solver: Any
    max_steps: int


def biexponential(num: int, seed: int) -> Subject:
    """Fits `a exp(-k t) + b exp(-l t)` to 32 noisy samples; close rates make a narrow valley."""
    times = jnp.linspace(0.0, 4.0, 32)

    def forward(x: Any) -> Any:
        return x[0] * jnp.exp(-jnp.exp(x[1]) * times) + x[2] * jnp.exp(-jnp.exp(x[3]) * times)

    rng = np.random.default_rng(seed)
    rates = np.log(rng.uniform(0.3, 3.0, (num, 2)))
    x_true = np.stack([rng.uniform(0.5, 2, num), rates[:, 0], rng.uniform(0.5, 2, num), rates[:, 1]], axis=1)
    data = jax.vmap(forward)(jnp.asarray(x_true)) + 1e-3 * rng.normal(size=(num, 32))
    x0 = jnp.broadcast_to(jnp.array([1.0, 0.7, 1.0, -0.7]), (num, 4))
    return Subject(forward, data, x0, solvers.LevenbergMarquardt(atol=1e-6, rtol=1e-6), 512)


def phase_retrieval(num: int, seed: int) -> Subject:
    """Recovers 8 numbers from 24 squared projections, from random starts."""
    rng = np.random.default_rng(seed)
    a = jnp.asarray(rng.normal(size=(24, 8)))
    x_true, x0 = jnp.asarray(rng.normal(size=(2, num, 8)))
    forward = lambda x: (a @ x) ** 2
    return Subject(forward, jax.vmap(forward)(x_true), x0, solvers.LevenbergMarquardt(atol=1e-8, rtol=1e-8), 512)


def uneven(num: int, seed: int) -> Subject:
    """Rosenbrock's valley, curved a little for most observations and very much for one in 64."""
    rng = np.random.default_rng(seed)
    curvature = np.where(np.arange(num) % 64 == 0, 300.0, rng.uniform(0.1, 1.0, num))
    rng.shuffle(curvature)

    def forward(x: Any) -> Any:
        # The curvature is carried by the last unknown, which the data fix.
        return jnp.stack([10 * (x[1] - x[2] * x[0] ** 2), 1 - x[0], x[2]])

    data = jnp.asarray(np.stack([np.zeros(num), np.zeros(num), curvature], axis=1))
    x0 = jnp.asarray(np.stack([np.full(num, -1.2), np.ones(num), curvature], axis=1))
    return Subject(forward, data, x0, solvers.LevenbergMarquardt(atol=1e-8), 2000)


def even(num: int, seed: int) -> Subject:
    """A mild map of 16 unknowns: every observation takes nearly the same number of steps."""
    rng = np.random.default_rng(seed)
    a = jnp.asarray(rng.normal(size=(16, 16)) / 4 + 2 * np.eye(16))
    forward = lambda x: jnp.tanh(a @ x / 4) + 0.1 * a @ x
    x_true = jnp.asarray(0.3 * rng.normal(size=(num, 16)))
    return Subject(
        forward, jax.vmap(forward)(x_true), jnp.zeros((num, 16)), solvers.GradientDescent(atol=1e-30, rtol=0.0), 60
    )


SUBJECTS = {"bi-exponential": biexponential, "phase retrieval": phase_retrieval, "uneven": uneven, "even": even}


def main(argv: Sequence[str]) -> None:
    """Races the modes on every subject at the given sizes; the answers must agree."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks lanes", description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--num", type=int, nargs="+", default=[256, 4096], help="observations in the batch")
    parser.add_argument("--lanes", type=int, default=256, help="of streaming; only batches of 16 times as many stream")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", choices=SUBJECTS, nargs="+", default=list(SUBJECTS))
    parser.add_argument("--out", type=Path, help="write the numbers to this JSON file")
    options = parser.parse_args(argv)
    jax.config.update("jax_enable_x64", True)  # noqa: FBT003 - has no keyword
    report: dict[str, Any] = environment() | {"seed": options.seed, "dtype": "float64", "rows": []}
    for name in options.only:
        for num in options.num:
            report["rows"] += contest(name, num, options)
    # Lower quartiles: what else runs on the machine only ever adds.
    quartile = {(row["n"], row["mode"]): row["low_seconds"] for row in report["rows"] if row["subject"] == "even"}
    report["auto_over_masked_on_even"] = {
        str(num): quartile[num, "auto"] / low for (num, mode), low in quartile.items() if mode == "masked"
    }
    print(f"auto takes of the time of masked on the even batch: {report['auto_over_masked_on_even']}")
    if options.out:
        _store.write_json(options.out, report)
    assert all(ratio <= 1.1 for ratio in report["auto_over_masked_on_even"].values()), "auto must not cost a tenth more"


def contest(name: str, num: int, options: Any) -> list[dict[str, Any]]:
    """All modes on one batch."""
    subject = SUBJECTS[name](num, options.seed)
    problem = pj.Problem(subject.forward, subject.data)

    def call(**settings: Any) -> Callable[[], Any]:
        return lambda: pj.solve_batch(problem, subject.solver, subject.x0, max_steps=subject.max_steps, **settings)

    calls = {"masked": call(mode="masked"), "compacting": call(mode="compacting"), "auto": call()}
    if num >= 16 * options.lanes:
        calls["streaming"] = call(mode="streaming", lanes=options.lanes)
        # What so narrow a pool costs by itself: lanes that wait for each other, no more of them at once than stream.
        calls["masked in turn"] = lambda: _in_turn(subject, options.lanes)
    found = race(calls, options.rounds)
    reference = found["masked"]
    rows = []
    for mode, row in found.items():
        value, expected = row["value"], reference["value"]
        stats = value.stats
        turns = np.asarray(stats.num_steps + stats.num_rejected)
        rows.append(
            {
                "subject": name,
                "n": num,
                "mode": mode,
                "useful": float(stats.useful),
                "seconds": row["seconds"],
                "low_seconds": float(row["low"]),
                "speed_up": reference["seconds"] / row["seconds"],
                "first_call_seconds": row["first"],
                "turns_median_max": [float(np.median(turns)), int(turns.max())],
                "success": float(jnp.mean(value.success)),
                "equal_codes": float(jnp.mean(value.result == expected.result)),
                "equal_steps": float(jnp.mean(stats.num_steps == expected.stats.num_steps)),
                "largest_difference": float(jnp.max(jnp.abs(value.value - expected.value))),
                # Of values along which the data say nothing, predictions are what can agree.
                "largest_difference_of_predictions": _predictions_differ(subject, value.value, expected.value),
            }
        )
        line = rows[-1]
        print(
            f"{name:16} n {num:6} {mode:14} useful {100 * line['useful']:5.1f} %  {1e3 * line['seconds']:9.2f} ms"
            f"  {line['speed_up']:6.2f}x  first {line['first_call_seconds']:5.1f} s  turns {line['turns_median_max']}"
            f"  success {line['success']:.3f}  steps equal {line['equal_steps']:.3f}"
            f"  codes {line['equal_codes']:.3f}  difference {line['largest_difference']:.1e}"
            f"  of predictions {line['largest_difference_of_predictions']:.1e}",
            flush=True,
        )
    return rows


def _in_turn(subject: Subject, width: int) -> Any:
    """Masked batches of `width` observations, one after another, put together."""
    found = [
        pj.solve_batch(
            pj.Problem(subject.forward, subject.data[begin : begin + width]),
            subject.solver,
            subject.x0[begin : begin + width],
            max_steps=subject.max_steps,
            mode="masked",
        )
        for begin in range(0, subject.x0.shape[0], width)
    ]
    return jax.tree.map(lambda *parts: jnp.concatenate(parts), *found)


def _predictions_differ(subject: Subject, values: Any, expected: Any) -> float:
    forward = jax.jit(jax.vmap(subject.forward))
    return float(jnp.max(jnp.abs(forward(values) - forward(expected))))
