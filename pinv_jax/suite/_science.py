"""The studies `science-darcy` and `science-vorticity`: random fields from few noisy data of a differential equation.

The fields are not normal: a log-permeability of two rocks, and an initial vorticity of a few vortices. Their prior is a
small diffusion model. Its estimates are guided by a surjective network that imitates the equation, by the same network
corrected by the equation, or by a learned local inverse of the equation (D-IPG); the last steps are made on the
equation itself. Baselines are Levenberg-Marquardt without a prior and with a normal one, and DPS through the equation.

Parts: `fields`, all methods on the same observations; `pairs`, what the pseudo-inverse of the network saves
Levenberg-Marquardt as a start, against the number of pairs that the network was trained with.
"""

import functools
import time
from collections.abc import Mapping
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from .. import plots
from .._problem import GaussianPrior, Problem
from ..diffusion import DDPM, DPS, project_after, sample
from ..solvers import DIPG, SVD, LevenbergMarquardt, solve
from ._digits import key_of
from ._guided import Corrected, Descended, best_scale, draw
from ._random_fields import SIDE
from ._science_maps import DARCY, VORTICITY, Science, flat_prior, normal_prior, setting
from ._science_models import data_of, denoising, guiding_network, learned_inverse, network_of_pairs
from ._study import Bench, Findings, Study

MAX_STEPS = 30


class Within(eqx.Module):
    """Whether a prediction is within the noise of the data."""

    noise_std: Float[Array, ""]

    def __call__(self, y: Float[Array, " m"], data: Float[Array, " m"]) -> Bool[Array, ""]:
        """Root mean square at most one standard deviation."""
        return jnp.mean((y - data) ** 2) <= self.noise_std**2


def _solved(models: Any, solver: LevenbergMarquardt, normal: GaussianPrior | None, y: Array, start: Array) -> Any:
    problem = Problem(models["h"], y, noise_std=models["noise"], prior=normal)
    found = solve(problem, solver, start, max_steps=MAX_STEPS)
    return found.value, found.stats.num_steps, found.stats.num_steps + found.stats.num_rejected


@eqx.filter_jit
def _descend(models: Any, solver: Any, normal: Any, ys: Array, starts: Array) -> Any:
    return jax.vmap(functools.partial(_solved, models, solver, normal))(ys, starts)


class Descent:
    """Levenberg-Marquardt for a batch of observations, compiled once: `starts -> (x, steps, evaluations of f)`.

    Args:
        models: with the map `"h"` and the `"noise"`.
        ys: the observations.
        normal: a normal prior; without it a descent ends when the data are met within the noise.
    """

    def __init__(self, models: Any, ys: Array, normal: GaussianPrior | None = None):
        # with a prior the least objective is wanted: no residual is small enough, it ends where the objective stays
        solver = LevenbergMarquardt(SVD(), discrepancy=1.0) if normal is None else LevenbergMarquardt(atol=1e-9)
        self._arguments = {"h": models["h"], "noise": models["noise"]}, solver, normal, ys
        blank = jnp.zeros((len(ys), SIDE * SIDE), ys.dtype)
        self._run = _descend.lower(*self._arguments, blank).compile()

    def __call__(self, starts: Float[Array, "seeds num n"]) -> tuple[Array, Array, Array, float]:
        """Where the descents end, their steps and evaluations, and the processor seconds of one of them."""
        begin = time.process_time()
        found = [jax.block_until_ready(self._run(*self._arguments, each)) for each in starts]
        seconds = (time.process_time() - begin) / (starts.shape[0] * starts.shape[1])
        x, steps, evaluations = (jnp.stack(part) for part in zip(*found, strict=True))
        return x, steps, evaluations, seconds


def _sampled(make: Any, num_steps: int, models: Any, y: Array, key: PRNGKeyArray) -> Array:
    return sample(models["prior"], DDPM(num_steps), key=key, guide=make(models, y))


def _dps(models: Any, y: Array) -> DPS:
    # in units of the noise, in which one scale suits all equations
    return DPS(lambda x: models["h"](x) / models["noise"], y / models["noise"], models["scale"])


def _nlbp(models: Any, y: Array) -> Any:
    return project_after(models["natural"], y, stop=Within(models["noise"]))  # pyright: ignore[reportCallIssue]


def _corrected(models: Any, y: Array) -> Corrected:
    return Corrected(models["natural"], models["h"], y, models["noise"])  # pyright: ignore[reportCallIssue]


def _descended(models: Any, y: Array) -> Descended:
    solver = DIPG(models["inverse"], jump_first=False, discrepancy=1.0)
    return Descended(models["h"], y, models["noise"], solver, 1)  # pyright: ignore[reportCallIssue]


OURS = "NLBP on the network"
CORRECTED = "NLBP, corrected by the equation"
LEARNED = "D-IPG with a learned inverse"
ON_EQUATION = {"DPS": 1, CORRECTED: Corrected.evaluations, LEARNED: 3}
"""How often these evaluate the equation at every step, a gradient counted as one; a line search may need more."""


@functools.cache
def methods(num_steps: int) -> dict[str, tuple[Any, int]]:
    """By name: `(models, y, key) -> x`, and the evaluations of the denoiser."""
    by = lambda make: functools.partial(_sampled, make, num_steps)
    return {
        "mean field": (lambda models, y, key: models["mean"], 0),
        "pinv": (lambda models, y, key: models["natural"].pinv(y), 0),
        "learned inverse": (lambda models, y, key: models["inverse"](y), 0),
        "prior alone": (by(lambda models, y: None), num_steps),
        "DPS": (by(_dps), num_steps),
        OURS: (by(_nlbp), num_steps),
        CORRECTED: (by(_corrected), num_steps),
        LEARNED: (by(_descended), num_steps),
    }


def _misfit(h: Any, x: Float[Array, "num n"], data: Float[Array, "num m"]) -> Float[Array, " num"]:
    """The root mean square for every field; infinite where the equation has no finite solution."""
    misfit = jnp.sqrt(jnp.mean((data_of(h, x) - data) ** 2, axis=-1))
    return jnp.where(jnp.isnan(misfit), jnp.inf, misfit)


def _relative(x: Array, truth: Array) -> np.ndarray:
    """The error of every field, relative to the truth without its mean over all fields."""
    found, true = np.asarray(x), np.asarray(truth)
    scale = np.sqrt(np.mean((true - np.mean(true, axis=0)) ** 2, axis=-1))
    return np.sqrt(np.mean((found - true) ** 2, axis=-1)) / scale


def fields_part(bench: Bench, science: Science) -> Findings:
    """Every method on the same observations."""
    dataset, noise = setting(bench, science)
    h, train, test, data = dataset.physics, dataset.train.x, dataset.test.x, dataset.test.y
    prior, seconds_of_prior = flat_prior(bench, science)
    natural, errors = guiding_network(bench, dataset, prior)
    inverse = learned_inverse(bench, dataset, science)
    normal = normal_prior(train)
    models = {"prior": prior, "h": h, "natural": natural, "inverse": inverse, "mean": normal.mean, "noise": noise}
    num_steps, num_seeds = (8, 2) if bench.quick else (50, 3)
    every = methods(num_steps)
    # chosen on fields of training
    known = train[:4] if bench.quick else train[:16]
    seen = dataset.train.y[: len(known)]
    seen = seen + noise * jax.random.normal(key_of(bench, "choice"), seen.shape, seen.dtype)
    score = lambda x: -np.median(_relative(x[0], known))
    models["scale"] = jnp.asarray(0.1, bench.dtype)
    if not bench.quick:
        models["scale"] = best_scale(every["DPS"][0], models, seen, score, key=bench.key)
    found = {
        name: (draw(method, models, data, key=bench.key, num_seeds=num_seeds if cost else 1), cost)
        for name, (method, cost) in every.items()
    }
    rows: list[dict[str, Any]] = []
    arrays: dict[str, Any] = {"truth": test[:8]}

    def add(name: str, x: Array, steps: Any, evaluations: Any, cost: int, seconds: float) -> None:
        misfit = jnp.stack([_misfit(h, each, data) for each in x]) / noise
        rows.append(
            {
                "method": name,
                "error": float(np.median(_relative(x, test))),
                "error of the mean": float(np.median(_relative(np.mean(x, axis=0), test))),
                "misfit / noise": float(jnp.median(misfit)),
                "worst": float(jnp.max(misfit)),
                "steps of LM": float(np.mean(steps)),
                "of f": float(np.mean(evaluations)),
                "evaluations": cost,
                "derivatives": cost if name == "DPS" else 0,
                "CPU ms": 1e3 * seconds,
            }
        )
        arrays[name] = x[0, :8]

    def finish(title: str, name: str, descent: Descent) -> None:
        drawn, cost = found[name]
        x, steps, evaluations, seconds = descent(drawn.x)
        evaluations = evaluations + num_steps * ON_EQUATION.get(name, 0)
        add(title, x, steps, evaluations, cost, drawn.seconds + seconds)

    for name, (drawn, cost) in found.items():
        add(name, drawn.x, 0, num_steps * ON_EQUATION.get(name, 0), cost, drawn.seconds)
    descent = Descent(models, data)
    for name in ("mean field", "pinv", "learned inverse", OURS, CORRECTED, LEARNED):
        finish(f"LM from {name}", name, descent)
    arrays["deviation of the samples"] = np.std(found[LEARNED][0].x, axis=0)[:8]
    finish("LM with a normal prior", "mean field", Descent(models, data, normal))
    measures = {
        "fields": len(test),
        "seeds": num_seeds,
        "scale of DPS": float(models["scale"]),
        "noise": float(noise),
        "the network": {"fit": errors.fit, "consistency": errors.consistency},
        "training of the prior, s": seconds_of_prior,
        "denoising": denoising(bench, science, prior, train),
    }
    arrays = {name: np.asarray(array).reshape(-1, SIDE, SIDE) for name, array in arrays.items()}
    return Findings(rows, measures, arrays)


def pairs_part(bench: Bench, science: Science) -> Findings:
    """Levenberg-Marquardt from the mean and from the pseudo-inverse of networks trained with few pairs."""
    dataset, noise = setting(bench, science)
    h, train, test, data = dataset.physics, dataset.train, dataset.test.x, dataset.test.y
    descent, rows = Descent({"h": h, "noise": noise}, data), []
    for num in (0, 64) if bench.quick else (0, *science.pairs):
        if num:
            starts = jax.jit(jax.vmap(network_of_pairs(bench, h, train.x, train.y, num).pinv))(data)
        else:
            starts = jnp.broadcast_to(jnp.mean(train.x, axis=0), test.shape)
        x, steps, evaluations, seconds = descent(starts[None])
        misfit = _misfit(h, starts, data) / noise
        rows.append(
            {
                "pairs": num,
                "misfit / noise at the start": float(jnp.median(misfit)),
                "error at the start": float(np.median(_relative(starts, test))),
                "steps of LM": float(np.mean(steps)),
                "most": int(np.max(steps)),
                "of f": float(np.mean(evaluations)),
                "CPU ms": 1e3 * seconds,
                "error": float(np.median(_relative(x[0], test))),
            }
        )
    saved = {str(row["pairs"]): 1 - row["steps of LM"] / max(rows[0]["steps of LM"], 1) for row in rows[1:]}
    return Findings(rows, {"share of the steps saved": saved, "fields": len(test)})


def figures(found: Mapping[str, Findings]) -> dict[str, Any]:
    """The fields that every method finds."""
    return {
        name: plots.image_grid({title.replace(", ", ",\n"): array for title, array in part.arrays.items()})
        for name, part in found.items()
        if part.arrays
    }


def _study(name: str, summary: str, science: Science) -> Study:
    return Study(
        name=name,
        summary=summary,
        reference="H. Chung et al., DPS, 2023, arXiv:2209.14687; Y. Ehrlich, A. Berman, A. Shocher, Pseudo-Invertible "
        "Neural Networks, 2026, arXiv:2602.06042",
        recipes={
            "fields": functools.partial(fields_part, science=science),
            "pairs": functools.partial(pairs_part, science=science),
        },
        figures=figures,
    )


SCIENCE_DARCY = _study(
    "science-darcy", "two kinds of rock from 25 noisy pressures: a diffusion prior and a surjective network", DARCY
)
SCIENCE_VORTICITY = _study(
    "science-vorticity",
    "an initial vorticity from a late noisy snapshot: a diffusion prior and a surjective network",
    VORTICITY,
)
