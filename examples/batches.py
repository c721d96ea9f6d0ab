"""Uneven batches: lanes that retire and are refilled, parameters of their own, several starts, a stream on disk."""

import tempfile
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

import pinv_jax as pj
from pinv_jax import solvers

NUM = 2048
TIMES = jnp.linspace(0.0, 4.0, 32)


def decays(x):
    """Two decays, `a exp(-k t) + b exp(-l t)`, at 32 times."""
    return x[0] * jnp.exp(-jnp.exp(x[1]) * TIMES) + x[2] * jnp.exp(-jnp.exp(x[3]) * TIMES)


def observations(num):
    """Close rates make a narrow valley: most fits take ten steps, some take hundreds."""
    rng = np.random.default_rng(0)
    rates = np.log(rng.uniform(0.3, 3.0, (num, 2)))
    x_true = np.stack([rng.uniform(0.5, 2, num), rates[:, 0], rng.uniform(0.5, 2, num), rates[:, 1]], axis=1)
    return jax.vmap(decays)(jnp.asarray(x_true, jnp.float32)), jnp.asarray([1.0, 0.7, 1.0, -0.7])


def timed(call):
    """The second call: the first compiles."""
    jax.block_until_ready(call())
    begin = time.perf_counter()
    found = jax.block_until_ready(call())
    return found, time.perf_counter() - begin


def main():
    data, start = observations(NUM)
    x0 = jnp.broadcast_to(start, (NUM, 4))
    solver = solvers.LevenbergMarquardt(atol=1e-4)
    problem = pj.Problem(decays, data)

    print(f"{NUM} fits of two decays, at most 300 steps each")
    for mode, options in {"masked": {}, "streaming": {"lanes": 256}}.items():
        sol, seconds = timed(lambda o=options, m=mode: pj.solve_batch(problem, solver, x0, mode=m, max_steps=300, **o))
        turns = sol.stats.num_steps + sol.stats.num_rejected
        print(
            f"  {mode:10} {1e3 * seconds:7.1f} ms   useful lane-steps {100 * float(sol.stats.useful):5.1f} %   "
            f"turns: median {int(jnp.median(turns))}, most {int(jnp.max(turns))}   "
            f"met {100 * float(jnp.mean(sol.success)):.1f} %"
        )

    # One observation, a path of regularisation: what differs from lane to lane is said by `axes`.
    weights = jnp.logspace(-4, 0, 8)
    prior = pj.GaussianPrior(start, weights[:, None, None] * jnp.eye(4))
    path = pj.solve_batch(
        pj.Problem(decays, data[0], prior=prior),
        solvers.LevenbergMarquardt(atol=1e-8),
        x0[:8],
        axes=pj.Problem(None, None, prior=pj.GaussianPrior(None, 0)),
    )
    print("\nresidual along a path of regularisation:", " ".join(f"{r:.1e}" for r in path.stats.residual_rms))

    # Several starts are one more axis of lanes; the best of each observation is kept.
    starts = start + 0.5 * jax.random.normal(jax.random.key(0), (4, 4))
    best, everything = solvers.solve_multistart(pj.Problem(decays, data[:64]), solver, starts, max_steps=100)
    print(f"four starts: each meets {100 * float(jnp.mean(everything.success)):.0f} % of 64 observations,", end=" ")
    print(f"the best of them {100 * float(jnp.mean(best.success)):.0f} %")

    # More than memory holds: from a file to files, chunk after chunk; the same call goes on after it was killed.
    with tempfile.TemporaryDirectory() as folder:
        np.save(Path(folder) / "data.npy", np.asarray(data))
        mapped = np.load(Path(folder) / "data.npy", mmap_mode="r")
        found = solvers.solve_stream(
            pj.Problem(decays, mapped), solver, start, Path(folder) / "out", chunk_size=1024, lanes=256, max_steps=300
        )
        names = ", ".join(sorted(path.name for path in (Path(folder) / "out").glob("v*.npy")))
        print(f"\nstreamed {found.num} observations into {names} and {len(found.stats) + 1} columns more:", end=" ")
        print(f"{100 * float(np.mean(found.success)):.1f} % met")


if __name__ == "__main__":
    main()
