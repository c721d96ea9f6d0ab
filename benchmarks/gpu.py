"""Solves per second on this device, at the batch size that saturates it, against batched optimistix LM; roofline share.

For Heat-1D, Heat-3D, Allen-Cahn and Navier-Stokes: the batch doubles until the rate grows by less than 5 %. Both
solvers stop at the same residual. The roofline is measured here, by a large matrix product and a large copy; the share
is that of the forward maps and derivative products which the solves counted, each taken at XLA's own count of its
floating-point operations and bytes for the batch, against whichever of the two limits is nearer; what stays in a cache
can exceed it. It runs on any device: without an accelerator the numbers are those of the CPU.
"""

import argparse
import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optimistix as optx

import pinv_jax as pj
from pinv_jax import _store, solvers, suite

from ._timing import environment, race

PROBLEMS = {
    "heat1d": suite.HEAT1D,
    "heat3d": suite.HEAT3D,
    "allen-cahn2d": suite.ALLEN_CAHN2D,
    "navier-stokes2d": suite.NAVIER_STOKES2D,
}


def stopped_at(tolerance: float) -> optx.LevenbergMarquardt:
    """optimistix's Levenberg-Marquardt, stopped like ours, once the root mean square of the residual is small."""

    class StopsAtResidual(optx.LevenbergMarquardt):
        def terminate(self, fn: Any, y: Any, args: Any, options: Any, state: Any, tags: Any) -> Any:
            done, result = super().terminate(fn, y, args, options, state, tags)
            met = ~state.first_step & (jnp.sqrt(jnp.mean(state.f_info.residual**2)) <= tolerance)
            return done | met, result

    return StopsAtResidual(rtol=1e-3, atol=1e-3)


def roofline(size: int, rounds: int) -> dict[str, float]:
    """Floating-point operations and bytes per second that this device reaches."""
    a = jnp.ones((size, size), jnp.float32)
    b = jnp.ones(size * size, jnp.float32)
    product = jax.jit(lambda a: jnp.matmul(a, a, precision="highest"))
    copy = jax.jit(lambda b: b + 1)
    found = race({"product": lambda: product(a), "copy": lambda: copy(b)}, rounds)
    return {
        "flops_per_second": 2 * size**3 / found["product"]["seconds"],
        "bytes_per_second": 8 * size**2 / found["copy"]["seconds"],
    }


def cost(fn: Callable[..., Any], *args: Any) -> np.ndarray:
    """Floating-point operations and bytes of one call, by XLA's own analysis."""
    found = jax.jit(lambda *a: fn(*a)).lower(*args).compile().cost_analysis()  # modules with arrays do not hash
    found = found[0] if isinstance(found, list) else found
    return np.array([found.get("flops", 0.0), found.get("bytes accessed", 0.0)])


def saturate(call: Callable[[int], Callable[[], Any]], largest: int, rounds: int) -> tuple[int, dict[str, Any]]:
    """The batch size from which on the rate grows by less than 5 %, and its race."""
    size, best = 64, None
    while True:
        found = race({"it": call(size)}, rounds)["it"]
        if best is not None and size / found["seconds"] < 1.05 * best[0] / best[1]["seconds"]:
            return best
        best = (size, found)
        if 2 * size > largest:
            return best
        size *= 2


def contest(name: str, options: Any, peak: dict[str, float]) -> list[dict[str, Any]]:
    """Our solvers and optimistix on one problem."""
    dataset = PROBLEMS[name].dataset(seed=0, num_test=64, dtype=jnp.float32, quick=options.quick)
    forward = dataset.physics
    x = dataset.test.x[0]

    def per_example(num: int) -> tuple[np.ndarray, np.ndarray]:
        """Of the map and of a derivative product, in a batch: parameters are read once for all its examples."""
        xs = jnp.zeros((num, *x.shape), x.dtype)
        rs = jnp.zeros((num, *dataset.test.y.shape[1:]), x.dtype)
        per_f = cost(jax.vmap(forward), xs)
        per_pair = cost(jax.vmap(lambda x, r: jax.vjp(forward, x)[1](r)), xs, rs)
        return per_f / num, (per_pair - per_f).clip(0) / num

    methods = {
        "LM (CG)": solvers.LevenbergMarquardt(solvers.ConjugateGradients(), atol=options.tolerance),
        "L-BFGS": solvers.LBFGS(atol=options.tolerance),
    }
    if x.size <= options.dense:
        methods["optimistix LM"] = stopped_at(options.tolerance)
    rows = []
    for method, solver in methods.items():

        def call(num: int, solver: Any = solver) -> Callable[[], Any]:
            data = jnp.asarray(np.resize(np.asarray(dataset.test.y), (num, *dataset.test.y.shape[1:])))
            run = jax.jit(
                lambda data, x0: pj.solve_batch(pj.Problem(forward, data), solver, x0, max_steps=options.max_steps)
            )
            return functools.partial(run, data, jnp.zeros((num, *x.shape), x.dtype))

        size, found = saturate(call, options.largest, options.rounds)
        stats = found["value"].stats
        row: dict[str, Any] = {
            "problem": name,
            "method": method,
            "batch": size,
            "solves_per_second": size / found["seconds"],
            "residual_rms": float(jnp.mean(stats.residual_rms)),
            "met": float(jnp.mean(stats.residual_rms <= 1.01 * options.tolerance)),
        }
        if int(stats.num_f[0]) >= 0:
            num_f, products = (int(jnp.sum(n)) for n in (stats.num_f, stats.num_jvp + stats.num_vjp))
            per_f, per_product = per_example(size)
            work = num_f * per_f + products * per_product
            limits = np.array([peak["flops_per_second"], peak["bytes_per_second"]])
            row["roofline_share"] = float(np.max(work / limits) / found["seconds"])
        rows.append(row)
        print(
            f"{name:16} {method:14} batch {size:6}  {row['solves_per_second']:10.1f} solves/s"
            f"  residual {row['residual_rms']:.3g}  roofline {100 * row.get('roofline_share', float('nan')):.1f} %",
            flush=True,
        )
    return rows


def main(argv: Sequence[str]) -> None:
    """Races on this device, prints and writes."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks gpu", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", choices=PROBLEMS, nargs="+", default=list(PROBLEMS))
    parser.add_argument("--tolerance", type=float, default=0.3, help="root mean square of the residual, z-scored")
    parser.add_argument("--max-steps", type=int, default=100)
    parser.add_argument("--largest", type=int, default=65536, help="batch size at most")
    parser.add_argument("--dense", type=int, default=1024, help="unknowns at most for optimistix, whose LM is dense")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--product", type=int, default=8192, help="size of the matrix of the roofline")
    parser.add_argument("--quick", action="store_true", help="small data sets")
    parser.add_argument("--out", type=Path, help="write the numbers to this JSON file")
    options = parser.parse_args(argv)
    report: dict[str, Any] = environment() | {"dtype": "float32", "tolerance": options.tolerance}
    report["roofline"] = roofline(options.product, options.rounds)
    report["rows"] = [row for name in options.only for row in contest(name, options, report["roofline"])]
    if options.out:
        _store.write_json(options.out, report)
