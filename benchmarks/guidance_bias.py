"""`python -m benchmarks guidance_bias`: how far guided samples are from the true posterior, where that is known.

For a normal prior and a linear observation without noise a guided chain is affine in the noise it draws: `recursion`
gives the mean and covariance of its images without drawing any (`tests/test_diffusion_exact.py` holds the chain against
it). The first table has their distances from the posterior, by the number of steps: they fall with it, as long as the
noise of a step is that of the prior and there is no time travel, which shrinks the spread. For a mixture of two normals
the second table has the share of samples at the upper mode, drawn, against the true one. There back-projection is no
exact sampler of the posterior, however many steps it makes.
"""

import argparse
import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pinv_jax import _store, diffusion, maps

from ._timing import environment

REPORT = Path(__file__).parent / "reports" / "guidance_bias.json"
STEPS = (10, 20, 50, 100, 200, 500, 1000)


def problem(size: int = 6, num_data: int = 2, seed: int = 0) -> dict[str, np.ndarray]:
    """A normal prior and an observation of one draw from it."""
    rng = np.random.default_rng(seed)
    root = rng.normal(size=(size, size)) / size**0.5
    mean, matrix = rng.normal(size=size), rng.normal(size=(num_data, size))
    covariance = root @ root.T + 0.1 * np.eye(size)
    x = mean + np.linalg.cholesky(covariance) @ rng.normal(size=size)
    return {"mean": mean, "covariance": covariance, "matrix": matrix, "data": matrix @ x}


def posterior(case: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Mean and covariance of the prior given the data."""
    mean, covariance, matrix, data = (case[name] for name in ("mean", "covariance", "matrix", "data"))
    gain = covariance @ matrix.T @ np.linalg.inv(matrix @ covariance @ matrix.T)
    return mean + gain @ (data - matrix @ mean), covariance - gain @ matrix @ covariance


def steps(case: dict[str, np.ndarray], sampler: Any, *, guided: bool) -> Iterator[tuple[np.ndarray, np.ndarray, float]]:
    """The chain as `s' = M s + b + [r noise; 0]` with `s` the noisy image on top of the last estimate."""
    mean, covariance, matrix, data = (case[name] for name in ("mean", "covariance", "matrix", "data"))
    n = len(mean)
    schedule = diffusion.LinearSchedule()
    bars = np.append(schedule.alpha_bars(), 1.0)  # index -1 is the clean image
    pinv = np.linalg.pinv(matrix)
    keep, target = (np.eye(n) - pinv @ matrix, pinv @ data) if guided else (np.eye(n), np.zeros(n))
    visits = sampler.visits(sampler.times(schedule)).astype(int)
    for t, t_next in zip(visits[:-1], visits[1:], strict=True):
        bar, bar_next = bars[t], bars[t_next]
        a, s, a_next = bar**0.5, (1 - bar) ** 0.5, bar_next**0.5
        if t_next > t:
            yield (
                np.block([[np.zeros((n, n)), a_next * np.eye(n)], [np.zeros((n, n)), np.eye(n)]]),
                np.zeros(2 * n),
                (1 - bar_next) ** 0.5,
            )
            continue
        gain = a * covariance @ np.linalg.inv(bar * covariance + (1 - bar) * np.eye(n))
        free, free_shift = gain, mean - a * gain @ mean
        image, shift = keep @ free, keep @ free_shift + target
        step_variance = 1 - bar / bar_next
        left, left_shift = (np.eye(n) - a * free) / s, -a * free_shift / s
        if isinstance(sampler, diffusion.DDNM):
            fresh, kept = step_variance**0.5, max(0.0, 1 - bar_next - step_variance) ** 0.5
        else:
            fresh = sampler.eta * ((1 - bar_next) / (1 - bar) * step_variance) ** 0.5
            kept = max(0.0, 1 - bar_next - fresh**2) ** 0.5
        top = np.hstack([a_next * image + kept * left, np.zeros((n, n))])
        bottom = np.hstack([image, np.zeros((n, n))])
        yield np.vstack([top, bottom]), np.concatenate([a_next * shift + kept * left_shift, shift]), fresh


def recursion(case: dict[str, np.ndarray], sampler: Any, *, guided: bool) -> tuple[np.ndarray, np.ndarray]:
    """Mean and covariance of the images of a chain."""
    n = len(case["mean"])
    mean, covariance = np.zeros(2 * n), np.diag(np.repeat([1.0, 0.0], n))
    for matrix, shift, fresh in steps(case, sampler, guided=guided):
        mean = matrix @ mean + shift
        covariance = matrix @ covariance @ matrix.T + np.diag(np.repeat([fresh**2, 0.0], n))
    return mean[n:], covariance[n:, n:]


def samplers(num_steps: int) -> dict[str, Any]:
    """By name."""
    return {
        "DDIM": diffusion.DDIM(num_steps),
        "DDPM": diffusion.DDPM(num_steps),
        "DDNM": diffusion.DDNM(num_steps),
        "DDNM, travel 1 x 3": diffusion.DDNM(num_steps, 1, 3),
        "DDNM, travel 10 x 3": diffusion.DDNM(num_steps, 10, 3),
    }


def normal_rows(case: dict[str, np.ndarray]) -> list[dict[str, Any]]:
    """Distances of the chains from what they should sample, in units of its standard deviation."""
    rows = []
    goals = {"prior": (case["mean"], case["covariance"]), "posterior": posterior(case)}
    for num_steps in STEPS:
        for name, sampler in samplers(num_steps).items():
            for goal, (mean, covariance) in goals.items():
                found, spread = recursion(case, sampler, guided=goal == "posterior")
                scale = np.sqrt(np.trace(covariance))
                rows.append(
                    {
                        "sampler": name,
                        "steps": num_steps,
                        "of": goal,
                        "mean error": float(np.linalg.norm(found - mean) / scale),
                        "covariance error": float(np.linalg.norm(spread - covariance) / np.linalg.norm(covariance)),
                        "spread": float(np.sqrt(np.trace(spread)) / scale),
                    }
                )
    return rows


def mixture_rows(num_samples: int, seed: int) -> list[dict[str, Any]]:
    """The share of samples at the upper of two modes, given the first of two coordinates."""
    means, stds, weights = np.array([[0.0, -1.0], [0.5, 1.0]]), np.array([0.5, 0.3]), np.array([0.5, 0.5])
    data = 0.7
    prior = diffusion.mixture_prior(
        jnp.asarray(weights),
        jnp.asarray(means),
        jnp.broadcast_to(jnp.asarray(stds**2)[:, None], (2, 2)),
        diffusion.LinearSchedule(),
    )
    density = weights * np.exp(-0.5 * ((data - means[:, 0]) / stds) ** 2) / stds
    truth = float(density[1] / density.sum())
    f = maps.LinearSurjection(jnp.asarray([[1.0, 0.0]]))
    y = jnp.asarray([data])
    guides = {
        "NLBP": diffusion.project_after(f, y),
        "PiGDM": diffusion.PiGDM(f, y, data_std=0.5),
        "DPS": diffusion.DPS(f, y, 0.3),
        "noisy back-projection": diffusion.ProjectNoisy(f, y),
    }
    rows = []
    for guide_name, guide in guides.items():
        for num_steps, (name, sampler) in itertools.product((100, 1000), samplers(100).items()):
            if num_steps == 1000:
                if "travel" in name:
                    continue
                sampler = samplers(1000)[name]
            keys = jax.random.split(jax.random.key(seed), num_samples)
            draw = jax.jit(jax.vmap(lambda k, s=sampler, g=guide: diffusion.sample(prior, s, key=k, guide=g)))
            x = np.asarray(draw(keys))
            rows.append(
                {
                    "guide": guide_name,
                    "sampler": name,
                    "steps": num_steps,
                    "upper mode": float(np.mean(x[:, 1] > 0)),
                    "true": truth,
                    "RMS f(x) - y": float(np.sqrt(np.mean((x[:, 0] - data) ** 2))),
                }
            )
    return rows


def main(argv: Sequence[str]) -> None:
    """Prints both tables and writes the report."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks guidance_bias", description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--num-samples", type=int, default=4000)
    parser.add_argument("--out", type=Path, default=REPORT)
    options = parser.parse_args(argv)
    jax.config.update("jax_enable_x64", True)
    tables = {
        "normal": normal_rows(problem(seed=options.seed)),
        "mixture": mixture_rows(options.num_samples, options.seed),
    }
    for rows in tables.values():
        print("  ".join(f"{name:>22}" for name in rows[0]))
        for row in rows:
            print("  ".join(f"{v:22.4g}" if isinstance(v, float) else f"{v!s:>22}" for v in row.values()))
        print()
    about = {
        "command": f"python -m benchmarks guidance_bias --seed {options.seed} --num-samples {options.num_samples}",
        "seed": options.seed,
        "dtype": "float64",
    }
    _store.write_json(options.out, about | environment() | tables)


if __name__ == "__main__":
    import sys

    main(sys.argv[1:])
