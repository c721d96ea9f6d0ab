"""The command `pinv-jax`: `run` solves a named inverse problem, `list` names them, `restore` restores a picture."""

import argparse
import gc
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

QUICK_COMPILATION = "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false"
"""Flags with which XLA compiles several times as fast for a CPU, and what it makes runs more slowly."""


def compile_quickly() -> None:
    """For programs whose compilation takes longer than they run; to be called before jax computes anything.

    Nothing changes if `XLA_FLAGS` is set already. XLA ends a process that has a flag which it does not know, and
    flags come and go: a process that does nothing else tries them first.
    """
    if "XLA_FLAGS" not in os.environ:
        trial = [sys.executable, "-c", "import jax; jax.devices('cpu')"]
        flags = {"XLA_FLAGS": QUICK_COMPILATION, "JAX_PLATFORMS": "cpu"}
        if subprocess.run(trial, env=os.environ | flags, capture_output=True, check=False).returncode == 0:
            os.environ["XLA_FLAGS"] = QUICK_COMPILATION


def collect_rarely() -> None:
    """For programs that trace much: that makes many objects and hardly any cycles, so that looking often is in vain."""
    gc.set_threshold(50_000, 20, 50)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="pinv-jax", description="Inversion of nonlinear maps in JAX.")
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="build the data of a problem, train, solve, and write a report")
    run.add_argument("problem", help="its name, see `pinv-jax list`; or `all` of them")
    run.add_argument("--seed", type=int, default=0, help="of data, training and probes (default 0)")
    run.add_argument(
        "--recipe", action="append", metavar="NAME", help="a recipe or part by name; repeatable; all if absent"
    )
    run.add_argument("--solver", action="append", metavar="NAME", help="repeatable; all if absent")
    run.add_argument("--num-test", type=int, metavar="N", help="test observations")
    run.add_argument("--dtype", choices=("float32", "float64"), default="float32")
    run.add_argument("--out", type=Path, metavar="FOLDER", help="default results/PROBLEM; for `all`, of all folders")
    run.add_argument("--resume", action="store_true", help="continue a run that was interrupted")
    run.add_argument("--quick", action="store_true", help="small and short, to see that everything runs")
    run.add_argument("--jobs", type=int, default=2, metavar="N", help="for `all`: so many at a time (default 2)")
    _add_restore(commands)
    commands.add_parser("list", help="name the problems, their recipes and the solvers")
    return parser


def _add_restore(commands: Any) -> None:
    restore = commands.add_parser("restore", help="restore a picture file with a diffusion prior that is trained here")
    restore.add_argument("picture", type=Path, help="a PNG or JPEG file; its middle square is restored")
    restore.add_argument(
        "--degradation",
        required=True,
        metavar="NAME",
        help="what happened to it: blur, lens, jpeg, clip, bits or small",
    )
    restore.add_argument("--strength", type=float, help="of the degradation; `list` says what it means")
    restore.add_argument(
        "--prior", metavar="NAME|FILE", help="of a prior that is trained here, or published DDPM weights (256 x 256)"
    )
    restore.add_argument("--train", action="store_true", help="train the prior if there is none yet, and keep it")
    restore.add_argument(
        "--size", type=int, metavar="N", help="side of the result in pixels; that of the prior if absent"
    )
    restore.add_argument("--simulate", action="store_true", help="take the picture for the truth, and degrade it first")
    restore.add_argument("--num-samples", type=int, default=4, metavar="N", help="pictures to draw (default 4)")
    restore.add_argument("--num-steps", type=int, default=100, metavar="N", help="of the sampler (default 100)")
    restore.add_argument("--seed", type=int, default=0, help="of what is drawn (default 0)")
    restore.add_argument("--out", type=Path, metavar="FOLDER", help="default results/restore-PICTURE")
    restore.add_argument("--quick", action="store_true", help="a prior hardly trained, to see that everything runs")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit status: 0, or 2 with one line on standard error for bad input."""
    options = _parser().parse_args(arguments)
    # Many small decompositions: LAPACK's own threads wait for each other and cost more than they give.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    collect_rarely()
    if getattr(options, "quick", False):
        compile_quickly()
    try:
        return {"list": _list, "run": _run, "restore": _restore}[options.command](options)
    except (ValueError, FileNotFoundError) as error:
        print(f"pinv-jax: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("pinv-jax: interrupted; repeat the command with --resume to continue", file=sys.stderr)
        return 130


def _list(options: argparse.Namespace) -> int:
    del options
    from . import suite

    for problem in suite.PROBLEMS.values():
        print(f"{problem.name}: {problem.summary}\n    recipes: {', '.join(problem.recipes)}; {problem.reference}")
    print(f"solvers: {', '.join(suite.SOLVER_NAMES)}")
    print("degradations of `restore`:")
    for name, kind in suite.DEGRADATIONS.items():
        print(f"    {name}: {kind.summary}; strength {kind.strength:g}, {kind.meaning}")
    return 0


def _restore(options: argparse.Namespace) -> int:
    from . import suite
    from ._progress import fit_progress

    if not options.picture.is_file():
        raise ValueError(f"{options.picture} is no file; expected a picture")
    for name in ("num_samples", "num_steps"):
        if getattr(options, name) < 1:
            raise ValueError(f"--{name.replace('_', '-')} {getattr(options, name)}; expected at least 1")
    out = Path("results") / f"restore-{options.picture.stem}" if options.out is None else options.out
    names = ("prior", "strength", "size", "simulate", "num_samples", "num_steps", "seed", "train", "quick")
    chosen = {name: getattr(options, name) for name in names}
    report = suite.restore_picture(options.picture, options.degradation, out, progress=fit_progress(), **chosen)
    for name, values in report.items():
        if "PSNR" in name or "RMS" in name:
            print(f"{name}: {values}")
    print(f"written to {out}: observed.png, sample-0.png, ..., mean.png, std.png, report.json")
    return 0


def _known(kind: str, names: Sequence[str] | None, known: Sequence[str]) -> tuple[str, ...] | None:
    for name in names or ():
        if name not in known:
            raise ValueError(f"unknown {kind} {name!r}; known are {', '.join(known)}")
    return tuple(names) if names else None


def _run(options: argparse.Namespace) -> int:
    import jax

    from . import suite

    _known("problem", [options.problem], [*suite.PROBLEMS, "all"])
    if options.dtype == "float64":
        jax.config.update("jax_enable_x64", True)
    if options.problem != "all":
        out = Path("results") / options.problem if options.out is None else options.out
        _run_one(options, options.problem, out)
        return 0
    for name in ("recipe", "solver", "num_test"):
        if getattr(options, name) is not None:
            raise ValueError(f"--{name.replace('_', '-')}: not all problems have the same; run them by name")
    return _run_all(options, Path("results") if options.out is None else options.out)


def _run_all(options: argparse.Namespace, root: Path) -> int:
    """Every problem in a process of its own, `options.jobs` at a time, as most of a quick run is compilation."""
    from . import suite

    if options.jobs < 1:
        raise ValueError(f"--jobs {options.jobs}; expected at least 1")
    flags = ["--seed", str(options.seed), "--dtype", options.dtype]
    flags += [f"--{name}" for name in ("quick", "resume") if getattr(options, name)]
    root.mkdir(parents=True, exist_ok=True)

    def run(name: str) -> bool:
        command = [sys.executable, "-m", "pinv_jax.cli", "run", name, *flags, "--out", str(root / name)]
        start, log = time.monotonic(), root / f"{name}.log"
        with open(log, "w", encoding="utf-8") as output:
            ended = subprocess.run(command, env=environment, stdout=output, stderr=subprocess.STDOUT, check=False)
        end = "done" if ended.returncode == 0 else f"failed with exit status {ended.returncode}"
        print(f"{name}: {end} in {time.monotonic() - start:.0f} s, {log}", flush=True)
        return ended.returncode == 0

    with tempfile.TemporaryDirectory() as compiled, ThreadPoolExecutor(options.jobs) as pool:
        environment = dict(os.environ)
        if options.quick:  # what one has compiled the next need not; a full run reports what compilation takes
            environment.setdefault("JAX_COMPILATION_CACHE_DIR", compiled)
            environment.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
        return 0 if all(list(pool.map(run, suite.PROBLEMS))) else 1


def _run_one(options: argparse.Namespace, name: str, out: Path) -> None:
    from . import suite

    problem = suite.PROBLEMS[name]
    recipes = _known("recipe", options.recipe, list(problem.recipes))
    solvers = _known("solver", options.solver, suite.SOLVER_NAMES)
    if options.num_test is not None and options.num_test < 2:
        raise ValueError(f"--num-test {options.num_test}; expected at least 2")
    chosen = suite.Options(options.seed, recipes, solvers, options.num_test, options.dtype, options.quick)
    report = suite.run(problem, chosen, out, resume=options.resume)
    print(suite.format_table(report))
    arrays = "parts/" if "tables" in report else "solutions.npz"
    print(f"\nwritten to {out}: report.json, {arrays}, models/{', figures/' if report['figures'] else ''}")
    if not report["figures"]:
        print('no figures: matplotlib is not installed; `pip install "pinv_jax[plot]"`')


if __name__ == "__main__":
    sys.exit(main())
