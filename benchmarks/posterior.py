"""Credible intervals of Heat-1D: how often they hold the truth, and what a posterior sample costs.

The unknown lives in the eleven dimensions that the generator of Heat-1D spans; the prior there is the Gaussian with the
mean and the covariance of the published training unknowns, which the generator, being no Gaussian, matches to second
order only. Every observation gets its minimiser, samples by randomise-then-optimise, started from the minimiser and
from a linear regression of the unknown on the data, and samples of the Laplace approximation.
"""

import argparse
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import pinv_jax as pj
from pinv_jax import _store, plots, solvers
from pinv_jax.suite._heat1d import dataset
from pinv_jax.suite._inverse import ridge_regression

from ._timing import environment

LEVELS = (0.5, 0.7, 0.8, 0.9, 0.95)
RANK = 11


def posterior_problem(data: Any) -> tuple[Any, Any, Any]:
    """`y -> Problem` in whitened coordinates of the prior, `z -> x`, and a linear inverse `y -> z`."""
    train = np.asarray(data.train.x, np.float64)
    values, vectors = np.linalg.eigh(np.cov(train.T))
    scale, basis = np.sqrt(values[::-1][:RANK]), vectors[:, ::-1][:, :RANK]
    dtype = data.train.x.dtype
    mean, spread = jnp.asarray(train.mean(axis=0), dtype), jnp.asarray(basis * scale, dtype)
    decode = lambda z: mean + spread @ z
    noise = data.noise_std[None] * jax.random.normal(jax.random.key(1), data.train.y.shape, dtype)
    weight, bias = ridge_regression(jnp.asarray((train - train.mean(axis=0)) @ basis / scale), data.train.y + noise)
    weight, bias = jnp.asarray(weight, dtype), jnp.asarray(bias, dtype)
    prior = pj.GaussianPrior(jnp.zeros(RANK, dtype), jnp.eye(RANK, dtype=dtype))
    problem = lambda y: pj.Problem(lambda z: data.physics(decode(z)), y, noise_std=data.noise_std, prior=prior)
    return problem, decode, lambda y: weight @ y + bias


def main(argv: Sequence[str]) -> None:
    """Measures coverage over the published test observations; 90 % intervals must cover 85 to 95 %."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks posterior", description=__doc__)
    parser.add_argument("--num", type=int, default=300, help="observations")
    parser.add_argument("--samples", type=int, default=400, help="samples of each posterior")
    parser.add_argument("--chunk", type=int, default=50, help="observations solved at once")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="write the numbers to this JSON file")
    parser.add_argument("--figures", type=Path, help="draw the figures into this folder")
    options = parser.parse_args(argv)
    data = dataset(seed=0, num_test=options.num, dtype=jnp.float32, quick=False)
    problem, decode, inverse = posterior_problem(data)
    tails = jnp.asarray([(1 - level) / 2 for level in LEVELS])

    def ends(quantile: Any) -> Any:
        return jax.vmap(quantile)(tails), jax.vmap(quantile)(1 - tails)

    def map_point(y: Any) -> Any:
        return pj.solve(problem(y), solvers.LevenbergMarquardt(atol=1e-9), jnp.zeros(RANK), max_steps=50)

    def randomised(y: Any, key: Any, **start: Any) -> Any:
        solver = solvers.GaussNewton(solvers.Cholesky(), atol=1e-3)  # the systems are square and regular
        at = map_point(y).value
        found = solvers.randomise_then_optimise(
            problem(y), solver, at, key=key, num_samples=options.samples, max_steps=50, **start
        )
        steps = jnp.mean(found.solution.stats.num_steps.astype(at.dtype))
        return *ends(found.map(decode).quantile), found.effective_size, jnp.mean(found.solution.success), steps

    def gaussian(y: Any, key: Any) -> Any:
        keys = jax.random.split(key)
        posterior = solvers.laplace(problem(y), map_point(y).value, key=keys[0])
        samples = jax.vmap(decode)(posterior.sample(options.samples, key=keys[1]))
        nothing = jnp.asarray(float(options.samples)), jnp.ones(()), jnp.zeros(())
        return *ends(lambda p: jnp.quantile(samples, p, axis=0)), *nothing

    methods = {
        "randomise-then-optimise": randomised,
        "randomise-then-optimise from a learned inverse": lambda y, key: randomised(y, key, inverse=inverse),
        "laplace": gaussian,
    }
    keys = jax.random.split(jax.random.key(options.seed), options.num)
    parts = [slice(i, i + options.chunk) for i in range(0, options.num, options.chunk)]
    truth = np.asarray(data.test.x)[:, None]
    report: dict[str, Any] = environment() | {
        "command": f"python -m benchmarks posterior --num {options.num} --samples {options.samples}",
        "seed": options.seed,
        "dtype": str(data.test.x.dtype),
        "levels": LEVELS,
        "rows": [],
    }
    bands = {}
    for name, method in methods.items():
        run = jax.jit(jax.vmap(method))
        jax.block_until_ready(run(data.test.y[parts[0]], keys[parts[0]]))
        start = time.process_time()
        found = [jax.tree.map(np.asarray, run(data.test.y[part], keys[part])) for part in parts]
        seconds = time.process_time() - start
        lower, upper, effective, success, steps = (np.concatenate(columns) for columns in zip(*found, strict=True))
        covered = np.mean((truth >= lower) & (truth <= upper), axis=(0, 2))
        bands[name] = lower[:, LEVELS.index(0.9)], upper[:, LEVELS.index(0.9)]
        row = {
            "method": name,
            "coverage": covered.tolist(),
            "mean_width": np.mean(upper - lower, axis=(0, 2)).tolist(),
            "samples_found": float(np.mean(success)),
            "effective_share": float(np.median(effective) / options.samples),
            "steps_per_sample": float(np.mean(steps)),
            "cpu_ms_per_sample": 1e3 * seconds / (options.num * options.samples),
        }
        report["rows"].append(row)
        print(
            f"{name:48} 90 % intervals cover {100 * covered[LEVELS.index(0.9)]:.1f} %  found {row['samples_found']:.3f}"
            f"  worth {row['effective_share']:.3f}  {row['steps_per_sample']:.2f} steps  "
            f"{row['cpu_ms_per_sample']:.4f} ms of CPU per sample"
        )
    if options.figures:
        options.figures.mkdir(parents=True, exist_ok=True)
        shares = {row["method"]: row["coverage"] for row in report["rows"]}
        plots.coverage(LEVELS, shares).savefig(options.figures / "coverage.png")
        first = {name: bands[name] for name in ("randomise-then-optimise", "laplace")}
        figure = plots.credible_bands(truth[:, 0], first, level=0.9, unknown="initial temperature")
        figure.savefig(options.figures / "bands.png")
    if options.out:
        _store.write_json(options.out, report)
    for row in report["rows"]:
        share = row["coverage"][LEVELS.index(0.9)]
        assert 0.85 <= share <= 0.95, f"{row['method']}: 90 % intervals cover {100 * share:.1f} %"
