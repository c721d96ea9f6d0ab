"""`python -m benchmarks cost`: D-IPG against dense, matrix-free and quasi-Newton solvers at one residual, true physics.

All solvers invert the physics itself, to the same root mean square of the residual, from the same start; the residual
that was reached is computed anew. The price of the learned inverse is its training, and the number of solves after
which that is paid is `training / (t_other - t_dipg)`. Times are medians of rounds in which all take turns: of a batch
in one compiled call, and of single observations one by one (then the median over observations).

Last known output, a busy 4-core CPU, float32, batch 64 and single, ratios of time to D-IPG's, which meets these
tolerances with its start `g(data)`; heat2d and heat3d with `--training-steps 300`:

                                heat1d (64)     heat2d (256)     heat3d (512)
    D-IPG, ms/solve         0.013      0.19     0.24    0.23      2.0    0.64
    LM, dense, damping fixed   17       1.9       76      47       74     193
    best of the dense ones    5.4       1.1      8.4     5.5      5.9      22
    LM, CG                    1.7       1.0      1.3     1.5     0.22    0.50
    L-BFGS                    2.6       1.6     0.49     1.4    0.058    0.47

Navier-Stokes (1024 unknowns, `--problem navier-stokes2d --num 16 --few 4 --rounds 3 --training-steps 400`, without the
dense solvers: `--only`), batch 16 and single: D-IPG 22 and 17 ms/solve, LM with conjugate gradients 19 and 32 times as
long, L-BFGS 2.2 and 3.0 times; the 182 s of training are paid after 460 and 6800 solves in batches.

The paper's "up to 77x" is over dense solvers such as that of fixed damping. Where g costs more than the physics, as on
heat3d, solvers without a Jacobian matrix and without training are faster.
"""

import argparse
import dataclasses
import functools
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optimistix as optx

import pinv_jax as pj
from pinv_jax import _store, solvers, suite
from pinv_jax.suite import _heat1d, _inverse

from ._timing import environment, race

PROBLEMS = ("heat1d", "heat2d", "heat3d")
MAX_STEPS = 200
REFERENCE = "D-IPG"
FIXED = "LM, dense, damping fixed"
LEARNED = (REFERENCE, "D-IPG, no jump", "D-IPG, published form", "Safeguarded")
DENSE = ("LM, dense", "optimistix LM", "optimistix Dogleg")
COLUMNS = {
    "problem": "problem",
    "solver": "solver",
    "batch": "batch",
    "ms": "median ms/solve",
    "ratio": "ratio to D-IPG",
    "steps": "steps",
    "residual": "residual",
    "met": "met",
    "evaluations": "f/g/JVP/VJP",
    "compile_seconds": "compile s",
    "break_even": "break-even solves",
}


@dataclasses.dataclass(frozen=True)
class Subject:
    """One problem, ready to be solved.

    Attributes:
        name: of the problem.
        physics: the true one, `x -> z-scored y`.
        data: observations, leading axis.
        x0: the start.
        project: of the unknown onto what it can be, or none.
        tolerance: on the root mean square of the residual.
        inverse: `y -> x`.
        training_seconds: what it cost, compilation included.
    """

    name: str
    physics: Any
    data: Any
    x0: Any
    project: Any
    tolerance: float
    inverse: Any
    training_seconds: float


def timed_training(train: Callable[..., Any], folder: Path) -> tuple[Any, float]:
    """`train(folder=..., progress=...)` and its seconds, over all the runs that it took."""
    path = folder / "seconds.json"
    found = _store.read_json(path) if path.exists() else {"seconds": 0.0, "finished": False}
    start = time.perf_counter()

    def note(*, finished: bool) -> None:
        seconds = found["seconds"] + time.perf_counter() - start
        _store.write_json(path, {"seconds": seconds, "finished": finished})

    def progress(stage: str, done: int, total: int, loss: float) -> None:
        if not found["finished"]:
            note(finished=False)

    folder.mkdir(parents=True, exist_ok=True)
    result = train(folder=folder, progress=progress)
    if not found["finished"]:
        note(finished=True)
    return result, _store.read_json(path)["seconds"]


def make_subject(
    problem: suite.InverseProblem, *, seed: int, num: int, folder: Path, quick: bool, training_steps: int | None = None
) -> Subject:
    """Draws observations and trains the inverse of the default recipe, or reads it back from the folder.

    Raises:
        ValueError: other `training_steps` for a recipe that has no schedule.
    """
    dataset = problem.dataset(seed=seed, num_test=num, dtype=jnp.float32, quick=quick)
    key = jax.random.key(seed + 1)
    recipe = problem.recipes["default"]
    if problem is suite.HEAT1D:  # its recipe trains two more models, which do not run here
        schedule = _shortened(_inverse.Schedule(), training_steps)
        train = functools.partial(_inverse.train_inverse, dataset, key=key, quick=quick, schedule=schedule)
        pair, seconds = timed_training(train, folder)
        inverse, project = pair.inverse, _heat1d.BOX
        x0 = jnp.zeros_like(dataset.test.x[0])
    else:
        train = recipe.train
        if training_steps is not None:
            if not (isinstance(train, functools.partial) and isinstance(train.args[-1], _inverse.Schedule)):
                raise ValueError(f"{problem.name} has no schedule to shorten; leave out --training-steps.")
            train = functools.partial(train.func, *train.args[:-1], _shortened(train.args[-1], training_steps))
        models, seconds = timed_training(functools.partial(train, dataset, key=key, quick=quick), folder)
        row = next(row for row in recipe.rows(dataset, models) if isinstance(row.method, solvers.DIPG))
        inverse, project, x0 = row.method.descent.inverse, row.project, row.x0
    return Subject(
        problem.name, dataset.physics, dataset.test.y, x0, project, problem.tolerance, inverse, float(seconds)
    )


def _shortened(schedule: _inverse.Schedule, num_steps: int | None) -> _inverse.Schedule:
    return schedule if num_steps is None else dataclasses.replace(schedule, num_steps=num_steps)


def stopped_at(kind: Any, tolerance: float) -> Any:
    """A least-squares solver of optimistix that stops like ours: once the root mean square of the residual is small."""

    class Stopped(kind):
        def terminate(self, fn: Any, y: Any, args: Any, options: Any, state: Any, tags: Any) -> Any:
            done, result = super().terminate(fn, y, args, options, state, tags)
            met = ~state.first_step & (jnp.sqrt(jnp.mean(state.f_info.residual**2)) <= tolerance)
            return done | met, result

    return Stopped(rtol=1e-5, atol=1e-5)


def methods(subject: Subject) -> dict[str, Any]:
    """Every solver; the first is what the others are compared with."""
    rules: dict[str, Any] = {"atol": subject.tolerance}
    published: dict[str, Any] = rules | {"rtol": 0.0, "relaxation": 0.4, "search": solvers.PublishedArmijo()}
    g, cg = subject.inverse, solvers.ConjugateGradients()
    return {
        REFERENCE: solvers.DIPG(g, **rules),
        "D-IPG, no jump": solvers.DIPG(g, jump_first=False, **rules),
        "D-IPG, published form": solvers.DIPG(g, proposal="paper", **published),
        "Safeguarded": solvers.Safeguarded(g, **rules),
        FIXED: solvers.LevenbergMarquardt(damping=1e-2, active_set=False, **published),
        "LM, dense": solvers.LevenbergMarquardt(**rules),
        "LM, CG": solvers.LevenbergMarquardt(cg, **rules),
        "L-BFGS": solvers.LBFGS(**rules),
        "optimistix LM": stopped_at(optx.LevenbergMarquardt, subject.tolerance),
        "optimistix Dogleg": stopped_at(optx.Dogleg, subject.tolerance),
    }


def compiled(function: Callable[..., Any], *arguments: Any) -> tuple[Callable[..., Any], float]:
    """The compiled program, and the seconds that tracing and compiling took."""
    start = time.perf_counter()
    program = jax.jit(function).lower(*arguments).compile()
    return program, time.perf_counter() - start


def contest(subject: Subject, contestants: Mapping[str, Any], *, few: int, rounds: int) -> list[dict[str, Any]]:
    """Rows of one problem: the batch, then the first `few` observations one by one."""
    num = subject.data.shape[0]
    starts = jnp.broadcast_to(subject.x0, (num, *subject.x0.shape))
    batched: dict[str, Callable[[], Any]] = {}
    single: dict[str, Callable[[], Any]] = {}
    compiling: dict[tuple[str, int], float] = {}
    for name, method in contestants.items():
        # optimistix knows no projection
        project = subject.project if isinstance(method, solvers.AbstractSolver) else None

        def run(data: Any, x0: Any, solve: Any, method: Any = method, project: Any = project) -> Any:
            return solve(pj.Problem(subject.physics, data, project), method, x0, max_steps=MAX_STEPS)

        batch, compiling[name, num] = compiled(functools.partial(run, solve=pj.solve_batch), subject.data, starts)
        one, compiling[name, 1] = compiled(functools.partial(run, solve=pj.solve), subject.data[0], subject.x0)
        batched[name] = functools.partial(batch, subject.data, starts)
        single |= {f"{name}/{i}": functools.partial(one, subject.data[i], subject.x0) for i in range(few)}

    @jax.jit
    def residual(x: Any, data: Any) -> Any:
        with jax.default_matmul_precision("highest"):
            misfit = jax.vmap(subject.physics)(x) - data
        return jnp.sqrt(jnp.mean(misfit**2, axis=tuple(range(1, misfit.ndim))))

    found = race(batched, rounds)
    alone = race(single, rounds)
    rows = []
    for name in contestants:
        parts = [alone[f"{name}/{i}"] for i in range(few)]
        several = jax.tree.map(lambda *leaves: jnp.stack(leaves), *(part["value"] for part in parts))
        seconds = [part["seconds"] for part in parts]
        lone = {"seconds": np.median(seconds), "low": np.quantile(seconds, 0.25), "high": np.quantile(seconds, 0.75)}
        rows.append(_row(subject, name, num, num, found[name], found[name]["value"], residual))
        rows.append(_row(subject, name, 1, few, lone, several, residual))
    for row in rows:
        row["compile_seconds"] = compiling[row["solver"], row["batch"]]
    rows.sort(key=lambda row: -row["batch"])
    reference = {row["batch"]: row["ms"] for row in rows if row["solver"] == next(iter(contestants))}
    for row in rows:
        saved = 1e-3 * (row["ms"] - reference[row["batch"]])
        row["ratio"] = row["ms"] / reference[row["batch"]]
        # a learned one needs the training too, and who did not arrive did something else
        pays = saved > 0 and row["solver"] not in LEARNED and row["met"] == 1.0
        row["break_even"] = subject.training_seconds / saved if pays else None
    return rows


def _row(
    subject: Subject, name: str, batch: int, num: int, times: Mapping[str, Any], solution: pj.Solution, residual: Any
) -> dict[str, Any]:
    rms = np.asarray(residual(solution.value, subject.data[:num]))
    stats = solution.stats
    counts = [float(jnp.mean(getattr(stats, f"num_{kind}"))) for kind in ("f", "g", "jvp", "vjp")]
    return {
        "problem": subject.name,
        "solver": name,
        "batch": batch,
        "n": num,
        "ms": 1e3 * float(times["seconds"]) / batch,
        "quartiles_ms": [1e3 * float(times[end]) / batch for end in ("low", "high")],
        "steps": float(jnp.median(stats.num_steps)),
        "residual": float(np.mean(rms)),
        "worst_residual": float(np.max(rms)),
        "tolerance": subject.tolerance,
        # the stop was decided in float32 on another compilation of the physics
        "met": float(np.mean(rms <= 1.001 * subject.tolerance)),
        "evaluations": counts if counts[0] >= 0 else None,  # optimistix counts none
    }


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """The rows as Markdown."""

    def cell(name: str, value: Any) -> str:
        if value is None:
            return "-"
        if name == "evaluations":
            return "/".join(f"{count:.3g}" for count in value)
        if name == "break_even":
            return f"{value:,.0f}"
        if name == "met":
            return f"{100 * value:.0f} %"
        return f"{value:.3g}" if isinstance(value, float) else str(value)

    lines = [list(COLUMNS.values()), ["---"] * len(COLUMNS)]
    lines += [[cell(name, row[name]) for name in COLUMNS] for row in rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def verdict(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """By problem and batch: how many times cheaper D-IPG is than dense LM as published, good dense ones, the best."""
    found = []
    for problem, batch in dict.fromkeys((row["problem"], row["batch"]) for row in rows):
        ratios = {
            row["solver"]: row["ratio"]
            for row in rows
            if (row["problem"], row["batch"]) == (problem, batch) and row["met"] == 1.0
        }
        others = {name: ratio for name, ratio in ratios.items() if name not in LEARNED}
        best = min(others, key=lambda name: others[name], default=None)
        found.append(
            {
                "problem": problem,
                "batch": batch,
                "damping fixed": others.get(FIXED),
                "best dense": min((others[name] for name in DENSE if name in others), default=None),
                "best": None if best is None else others[best],
                "best is": best,
            }
        )
    return found


def main(argv: Sequence[str]) -> None:
    """Trains what is needed, races, prints and writes a report per problem."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks cost", description=__doc__)
    parser.add_argument("--problem", nargs="+", default=list(PROBLEMS), help="names of `pinv-jax list`", metavar="NAME")
    parser.add_argument("--num", type=int, default=64, help="observations in the batch")
    parser.add_argument("--few", type=int, default=8, help="observations solved one by one")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0, help="of the data and the training")
    parser.add_argument("--quick", action="store_true", help="short training, to see that everything runs")
    parser.add_argument("--training-steps", type=int, help="by default those of the recipe; fewer make a cheaper g")
    parser.add_argument("--only", nargs="+", metavar="SOLVER", help="these, by their names in the table, and D-IPG")
    parser.add_argument("--fits", type=Path, default=Path("results") / "cost", help="where trained inverses are kept")
    parser.add_argument("--out", type=Path, help="write cost-PROBLEM-seedN.json into this folder")
    options = parser.parse_args(argv)
    named = {name: p for name, p in suite.PROBLEMS.items() if isinstance(p, suite.InverseProblem)}
    unknown = [name for name in options.problem if name not in named]
    if unknown:
        parser.error(f"no inverse problem is called {', '.join(unknown)}; choose from {', '.join(named)}")
    if options.num < 2 or options.few < 1:
        parser.error(f"a batch has two observations or more, got --num {options.num} and --few {options.few}")

    device = environment()
    for name in options.problem:
        steps = "" if options.training_steps is None else f"-steps{options.training_steps}"
        folder = options.fits / f"{name}-seed{options.seed}{steps}{'-quick' * options.quick}"
        subject = make_subject(
            named[name],
            seed=options.seed,
            num=options.num,
            folder=folder,
            quick=options.quick,
            training_steps=options.training_steps,
        )
        contestants = methods(subject)
        if options.only is not None:
            unknown = [solver for solver in options.only if solver not in contestants]
            if unknown:
                parser.error(f"no solver is called {', '.join(unknown)}; choose from {', '.join(contestants)}")
            kept = {REFERENCE, *options.only}
            contestants = {solver: method for solver, method in contestants.items() if solver in kept}
        rows = contest(subject, contestants, few=min(options.few, options.num), rounds=options.rounds)
        report = device | {
            "problem": name,
            "seed": options.seed,
            "dtype": "float32",
            "rounds": options.rounds,
            "quick": options.quick,
            "training_steps": options.training_steps,
            "training_seconds": subject.training_seconds,
            "size_x": subject.x0.size,
            "size_y": subject.data[0].size,
            "rows": rows,
            "verdict": verdict(rows),
        }
        print(f"{name}: {subject.x0.size} unknowns, residual <= {subject.tolerance:g}, ", end="")
        print(f"training {subject.training_seconds:.0f} s; seed {options.seed}, float32, {device['device']}, ", end="")
        print(f"jax {device['versions']['jax']}\n\n{table(rows)}\n")
        for line in report["verdict"]:
            print(
                f"the paper: up to 77x over its dense baselines; here, batch {line['batch']}: "
                f"over dense LM with fixed damping {_times(line['damping fixed'])}, "
                f"over the best of the dense ones {_times(line['best dense'])}, "
                f"over the best of all, {line['best is']}, {_times(line['best'])}"
            )
        print(flush=True)
        if options.out:
            _store.write_json(options.out / f"cost-{name}-seed{options.seed}.json", report)


def _times(ratio: float | None) -> str:
    return "not met by all" if ratio is None else f"{ratio:.3g}x"
