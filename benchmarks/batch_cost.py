"""What a batch costs: a turn of D-IPG against its own f, VJP and g; training with JCP; memory against batch size.

The memory model: peak bytes are affine in the batch size, `fixed + per_lane * batch`; both numbers come from compiling
(not running) at the two smallest sizes, and must predict the larger ones.
"""

import argparse
import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax

import pinv_jax as pj
from pinv_jax import _store, learn, maps, solvers, suite
from pinv_jax.suite import _inverse

from ._timing import environment, race
from .throughput import BOX, per_step, published_problem

BATCHES = (64, 256, 1024, 4096, 16384)


def peak_bytes(fn: Callable[..., Any], *args: Any) -> int:
    """Arguments, results and temporaries of the compiled program, by XLA's own analysis."""
    found = jax.jit(fn).lower(*args).compile().memory_analysis()
    return found.argument_size_in_bytes + found.output_size_in_bytes + found.temp_size_in_bytes


def memory_rows(name: str, batches: Sequence[int], peak: Callable[[int], int]) -> list[dict[str, Any]]:
    """Peak bytes against batch size, and what the model of the two smallest sizes predicts."""
    sizes = list(batches)
    found = [peak(size) for size in sizes]
    per_lane = (found[1] - found[0]) / (sizes[1] - sizes[0])
    fixed = found[0] - per_lane * sizes[0]
    rows = []
    for size, value in zip(sizes, found, strict=True):
        rows.append({"what": name, "batch": size, "bytes": value, "model": fixed + per_lane * size})
        rows[-1]["model_over_bytes"] = rows[-1]["model"] / value
        print(
            f"{name:28} batch {size:6}  {value / 2**20:9.2f} MiB  model {rows[-1]['model'] / 2**20:9.2f} MiB"
            f"  ({rows[-1]['model_over_bytes']:.3f})  {per_lane:.0f} bytes a lane",
            flush=True,
        )
    return rows


def solve_memory(name: str, problem: pj.Problem, solver: Any, start: Any) -> list[dict[str, Any]]:
    """Of `solve_batch`."""

    def peak(num: int) -> int:
        data = jax.ShapeDtypeStruct((num, *problem.data.shape[1:]), problem.data.dtype)
        x0 = jax.ShapeDtypeStruct((num, *start.shape), start.dtype)
        run = lambda data, x0: pj.solve_batch(
            pj.Problem(problem.forward, data, problem.project), solver, x0, mode="masked"
        )
        return peak_bytes(run, data, x0)

    return memory_rows(name, BATCHES, peak)


def stages() -> dict[str, Callable[[int, int], learn.Stage]]:
    """Training of a surrogate alone, and of surrogate and inverse with the composition penalty."""
    forward = {"forward_fit": learn.Term(learn.forward_fit)}
    inverse = {"reconstruction": learn.Term(learn.reconstruction), "jcp": learn.Term(learn.jcp)}

    def stage(terms: dict[str, Any], part: Callable[..., Any]) -> Callable[[int, int], learn.Stage]:
        return lambda num_steps, size: learn.Stage(terms, part, num_steps, size, optax.adam(1e-3))

    return {
        "forward only": stage(forward, lambda m: m.forward),
        "forward and reconstruction": stage(
            forward | {"reconstruction": inverse["reconstruction"]}, lambda m: [m.forward, m.inverse]
        ),
        "forward, reconstruction, JCP": stage(forward | inverse, lambda m: [m.forward, m.inverse]),
    }


def training(dataset: suite.Dataset, rounds: int) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Seconds per epoch, interleaved, and peak bytes of one step against the batch size."""
    size = dataset.noise_std.shape[0]
    nets = [maps.MLP((size, 128, size), activation="gelu", dtype=jnp.float32, key=jax.random.key(i)) for i in (0, 1)]
    pair, epochs, batch = learn.InversePair(*nets), 20, 128
    x, y = dataset.train.x, dataset.train.y
    per_epoch = x.shape[0] // batch
    kinds = stages()

    def call(kind: str) -> Callable[[], Any]:
        stage = kinds[kind](epochs * per_epoch, batch)
        return lambda: (
            learn.fit(pair, {"s": stage}, (x, y), key=jax.random.key(0), steps_per_round=epochs * per_epoch)[1][
                "s"
            ].loss
        )

    found = race({kind: call(kind) for kind in kinds}, rounds)
    reference = found["forward only"]["seconds"]
    rows = []
    for kind, row in found.items():
        rows.append(
            {
                "terms": kind,
                "seconds_per_epoch": row["seconds"] / epochs,
                "ratio_to_forward_only": row["seconds"] / reference,
                "examples": x.shape[0],
                "batch_size": batch,
            }
        )
        print(
            f"{kind:30} {1e3 * row['seconds'] / epochs:8.3f} ms per epoch  {rows[-1]['ratio_to_forward_only']:.2f}x",
            flush=True,
        )

    def peak(num: int) -> int:
        stage = kinds["forward, reconstruction, JCP"](1, num)
        params, frozen = eqx.partition(pair, eqx.is_inexact_array)
        state = stage.start(params, frozen, (x, y))
        examples = [jax.ShapeDtypeStruct((num, *a.shape[1:]), a.dtype) for a in (x, y)]

        def step(params: Any, state: Any, x: Any, y: Any, key: Any) -> Any:
            zero = jnp.zeros((), jnp.int32)
            return stage.advance(params, frozen, state, learn.Batch(x, y, None, zero, zero, {}), key)

        return peak_bytes(step, params, state, *examples, jax.random.key(0))

    return rows, memory_rows("fit, one step with JCP", BATCHES[:4], peak)


def probes_share_one_linearisation() -> dict[str, int]:
    """How often the program of JCP evaluates `f`, marked by a sine, with 1 and with 8 probes."""
    pair = learn.InversePair(lambda x: jnp.sin(x), lambda y: 2 * y)
    counts = {}
    for num in (1, 8):
        loss = lambda x, n=num: learn.jcp(pair, x, x, jax.random.key(0), num_probes=n)
        counts[f"{num} probes"] = str(jax.make_jaxpr(loss)(jnp.ones(3))).count("sin ")
    return counts


def main(argv: Sequence[str]) -> None:
    """Trains the inverse, measures, prints and writes."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks batch_cost", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="write the numbers to this JSON file")
    options = parser.parse_args(argv)
    dataset = suite.HEAT1D.dataset(seed=0, num_test=300, dtype=jnp.float32, quick=False)
    key = jax.random.key(options.seed)
    inverse = _inverse.train_inverse(dataset, key=key, folder=None, progress=None, quick=False).inverse
    report: dict[str, Any] = environment() | {"seed": options.seed, "dtype": "float32", "rounds": options.rounds}
    report["per_step"] = []
    for num in (64, 300, 2048):
        rows = np.resize(np.arange(300), num)
        problem = pj.Problem(dataset.physics, dataset.test.y[rows], BOX)
        x0 = jnp.zeros((num, *dataset.test.x.shape[1:]), jnp.float32)
        report["per_step"].append({"batch": num} | per_step(problem, inverse, x0, options.rounds))
    report["training"], memory = training(dataset, options.rounds)
    report["sines_in_jcp"] = probes_share_one_linearisation()
    print(f"evaluations of f in the program of JCP: {report['sines_in_jcp']}")
    start = jnp.zeros_like(dataset.test.x[0])
    problem = pj.Problem(dataset.physics, dataset.test.y, BOX)
    for name, solver in {
        "D-IPG": solvers.DIPG(inverse, atol=0.3),
        "LM (Cholesky)": solvers.LevenbergMarquardt(atol=0.3),
        "L-BFGS": solvers.LBFGS(atol=0.3),
    }.items():
        memory += solve_memory(name, problem, solver, start)
    report["memory"] = memory
    report["paper_form"] = paper_form(options.rounds)
    if options.out:
        _store.write_json(options.out, report)


def paper_form(rounds: int) -> list[dict[str, Any]]:
    """The published form on the published surrogate: milliseconds per solve by mode and batch size."""
    rows = []
    for num in (300, 4096):
        problem, x0, g = published_problem(num)
        rule = {"proposal": "paper", "relaxation": 0.4, "search": solvers.PublishedArmijo(), "rtol": 0.0}
        solver = solvers.DIPG(g, atol=0.3, **rule)
        modes: dict[str, dict[str, Any]] = {"masked": {"mode": "masked"}, "compacting": {"mode": "compacting"}}
        if num > 1024:
            modes["streaming"] = {"mode": "streaming", "lanes": 256}
        run = functools.partial(pj.solve_batch, problem, solver, x0, max_steps=120)
        found = race({mode: functools.partial(run, **options) for mode, options in modes.items()}, rounds)
        for mode, row in found.items():
            useful = float(row["value"].stats.useful)
            rows.append({"n": num, "mode": mode, "ms_per_solve": 1e3 * row["seconds"] / num, "useful": useful})
            print(f"paper form, n {num:5} {mode:11} {rows[-1]['ms_per_solve']:.4f} ms per solve, useful {useful:.3f}")
    return rows
