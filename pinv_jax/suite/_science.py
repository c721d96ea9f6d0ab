"""The studies `science-darcy` and `science-vorticity`: random fields from few noisy data of a differential equation.

The fields are not normal: a log-permeability of two rocks, and an initial vorticity of a few vortices. Their prior is a
small diffusion model. What is guided is cheap, a surjective network that imitates the equation; the last steps are
made on the equation itself. Baselines are Levenberg-Marquardt without a prior and with a normal one, and DPS through
the equation.

Parts: `fields`, all methods on the same observations; `pairs`, what the pseudo-inverse of the network saves
Levenberg-Marquardt as a start, against the number of pairs that the network was trained with.
"""

import dataclasses
import functools
import time
from collections.abc import Callable, Mapping
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Key, PRNGKeyArray

from .. import plots
from .._problem import GaussianPrior, Problem
from ..data import periodic_field_2d
from ..diffusion import DDPM, DPS, project_after, sample
from ..learn import imitate
from ..maps import AbstractMap, AbstractSurjection, Natural, prepare
from ..pde import NavierStokes2D, darcy_pressure
from ..solvers import SVD, LevenbergMarquardt, solve
from ._digits import key_of
from ._guided import Corrected, best_scale, dense_prior, draw
from ._study import Bench, Findings, Study

SIDE = 16
MAX_STEPS = 30


class Pressures(AbstractMap):
    """`u -> p` at `5 x 5` wells: `p` the pressure for the log-permeability `2 u` on the unit square."""

    dtype: np.dtype = eqx.field(static=True)

    def __call__(self, x: Float[Array, " n"]) -> Float[Array, " m"]:
        """The pressures, in row-major order."""
        with jax.default_matmul_precision("highest"):
            pressure = darcy_pressure(jnp.exp(2 * x.reshape(SIDE, SIDE)))
        return jnp.ravel(pressure[2::3, 2::3])

    def in_structure(self) -> jax.ShapeDtypeStruct:
        """Shape and dtype of `u`."""
        return jax.ShapeDtypeStruct((SIDE * SIDE,), self.dtype)


class Snapshot(AbstractMap):
    """`u -> w` at every third point: `w` the vorticity that `12 u` has become."""

    flow: NavierStokes2D

    def __call__(self, x: Float[Array, " n"]) -> Float[Array, " m"]:
        """The vorticity in units of 12, in row-major order."""
        return jnp.ravel(self.flow(12 * x.reshape(SIDE, SIDE))[::3, ::3]) / 12

    def in_structure(self) -> jax.ShapeDtypeStruct:
        """Shape and dtype of `u`."""
        return jax.ShapeDtypeStruct((SIDE * SIDE,), self.flow.in_structure().dtype)


class Rocks(eqx.Module):
    """Draws two kinds of rock, -1 and 1, with a smooth transition: a normal field through a steep sigmoid."""

    field: Callable[..., Any]

    def __call__(self, key: Key[Array, ""]) -> Float[Array, " n"]:
        """One field, flat."""
        return jnp.ravel(jnp.tanh(4 * self.field(key)[:SIDE, :SIDE]))


class Vortices(eqx.Module):
    """Draws four vortices of either sense on the torus, without mean vorticity."""

    points: Float[Array, " n"]

    def __call__(self, key: Key[Array, ""]) -> Float[Array, " n"]:
        """One field, flat."""
        place_key, width_key, sense_key = jax.random.split(key, 3)
        dtype = self.points.dtype
        centres = jax.random.uniform(place_key, (4, 2, 1), dtype)
        widths = jax.random.uniform(width_key, (4, 1, 1), dtype, 0.09, 0.14)
        offsets = (self.points[None, None] - centres + 0.5) % 1 - 0.5
        lobes = jnp.exp(-0.5 * (offsets / widths) ** 2)
        senses = jax.random.rademacher(sense_key, (4, 1, 1), dtype)
        field = jnp.sum(senses * lobes[:, 0, :, None] * lobes[:, 1, None, :], axis=0)
        return jnp.ravel(field - jnp.mean(field))


@dataclasses.dataclass(frozen=True)
class Science:
    """An inverse problem of these studies.

    Attributes:
        forward: dtype to map.
        fields: dtype to sampler.
        noise: standard deviation, relative to that of the data.
        num_items: held-out fields.
        pairs: numbers of training pairs, for the part of this name.
    """

    forward: Callable[[DTypeLike], AbstractMap]
    fields: Callable[[DTypeLike], Callable[..., Any]]
    noise: float
    num_items: int
    pairs: tuple[int, ...]


DARCY = Science(
    forward=lambda dtype: Pressures(jnp.dtype(dtype)),  # pyright: ignore[reportCallIssue]
    fields=lambda dtype: Rocks(periodic_field_2d(2 * SIDE, 0.2, dtype=dtype)),  # pyright: ignore[reportCallIssue]
    noise=0.01,
    num_items=32,
    pairs=(32, 128, 512, 2048),
)
VORTICITY = Science(
    forward=lambda dtype: Snapshot(NavierStokes2D(SIDE, 1e-3, 0.5, max_speed=1.5, dtype=dtype)),  # pyright: ignore[reportCallIssue]
    fields=lambda dtype: Vortices(jnp.asarray(np.arange(SIDE) / SIDE, dtype)),  # pyright: ignore[reportCallIssue]
    noise=0.1,
    num_items=16,
    pairs=(128, 2048),
)


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


OURS = "NLBP on the network"
CORRECTED = "NLBP, corrected by the equation"
EQUATION = ("DPS", CORRECTED)
"""These evaluate the equation at every step."""


@functools.cache
def methods(num_steps: int) -> dict[str, tuple[Any, int]]:
    """By name: `(models, y, key) -> x`, and the evaluations of the denoiser."""
    by = lambda make: functools.partial(_sampled, make, num_steps)
    return {
        "mean field": (lambda models, y, key: models["mean"], 0),
        "pinv": (lambda models, y, key: models["natural"].pinv(y), 0),
        "prior alone": (by(lambda models, y: None), num_steps),
        "DPS": (by(_dps), num_steps),
        OURS: (by(_nlbp), num_steps),
        CORRECTED: (by(_corrected), num_steps),
    }


@eqx.filter_jit
def _data(h: Any, xs: Array) -> Array:
    return jax.lax.map(h, xs, batch_size=64)


def _network(bench: Bench, h: AbstractMap, xs: Array, ys: Array, num: int) -> AbstractSurjection[Any]:
    """The network trained with so many pairs."""
    found = imitate(
        h,
        (xs[:num], ys[:num]),
        key=key_of(bench, "imitate"),
        num_steps=100 if bench.quick else 1500,
        checkpoint=bench.fits.parent / f"imitate {num}",
        progress=bench.progress,
    )
    return prepare(Natural(found.model))


def _normal(xs: Array) -> GaussianPrior:
    """The normal distribution with the mean and covariance of the fields."""
    samples = np.asarray(xs, np.float64)
    values, vectors = np.linalg.eigh(np.cov(samples.T))
    values = np.maximum(values, 1e-4 * values[-1])
    return GaussianPrior(
        jnp.asarray(samples.mean(axis=0), xs.dtype), jnp.asarray((vectors / np.sqrt(values)).T, xs.dtype)
    )


def _setting(bench: Bench, science: Science) -> tuple[AbstractMap, Array, Array, Array, Array, Array]:
    """The map, fields and clean data for training, held-out fields, their noisy data, and the noise."""
    h, fields = science.forward(bench.dtype), science.fields(bench.dtype)
    num, num_items = (256, 4) if bench.quick else (2048, science.num_items)
    keys = jax.random.split(key_of(bench, "fields"), 3)
    train, test = (
        jax.jit(jax.vmap(fields))(jax.random.split(k, n)) for k, n in zip(keys[:2], (num, num_items), strict=True)
    )
    ys, clean = _data(h, train), _data(h, test)
    noise = science.noise * jnp.std(ys - jnp.mean(ys, axis=0, keepdims=True))
    return h, train, ys, test, clean + noise * jax.random.normal(keys[2], clean.shape, bench.dtype), noise


def _relative(x: Array, truth: Array) -> np.ndarray:
    """The error of every field, relative to the truth without its mean over all fields."""
    found, true = np.asarray(x), np.asarray(truth)
    scale = np.sqrt(np.mean((true - np.mean(true, axis=0)) ** 2, axis=-1))
    return np.sqrt(np.mean((found - true) ** 2, axis=-1)) / scale


def fields_part(bench: Bench, science: Science) -> Findings:
    """Every method on the same observations."""
    h, train, ys, test, data, noise = _setting(bench, science)
    prior = dense_prior(bench, "prior", science.fields(bench.dtype), (SIDE * SIDE,), width=256, num_steps=6000)
    natural = _network(bench, h, train, ys, len(train))
    normal = _normal(train)
    models = {"prior": prior, "h": h, "natural": natural, "normal": normal, "mean": normal.mean, "noise": noise}
    num_steps, num_seeds = (8, 2) if bench.quick else (50, 3)
    models["scale"] = jnp.asarray(0.1, bench.dtype)
    if not bench.quick:
        score = lambda x: -np.median(_relative(x[0], train[:16]))
        models["scale"] = best_scale(methods(num_steps)["DPS"][0], models, ys[:16], score, key=bench.key)
    found = {
        name: (draw(method, models, data, key=bench.key, num_seeds=num_seeds if cost else 1), cost)
        for name, (method, cost) in methods(num_steps).items()
    }
    rows: list[dict[str, Any]] = []
    arrays: dict[str, Any] = {"truth": test[:8]}

    def add(name: str, x: Array, steps: Any, evaluations: Any, cost: int, seconds: float) -> None:
        seen = _data(h, x.reshape(-1, x.shape[-1])).reshape(len(x), *data.shape)
        misfit = jnp.sqrt(jnp.mean((seen - data[None]) ** 2, axis=-1)) / noise
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

    for name, (drawn, cost) in found.items():
        add(name, drawn.x, 0, num_steps if name in EQUATION else 0, cost, drawn.seconds)
    descent = Descent(models, data)
    for name in ("mean field", "pinv", OURS, CORRECTED):
        drawn, cost = found[name]
        x, steps, evaluations, seconds = descent(drawn.x)
        evaluations = evaluations + (num_steps if name in EQUATION else 0)
        add(f"LM from {name}", x, steps, evaluations, cost, drawn.seconds + seconds)
    arrays["deviation of the samples"] = np.std(x, axis=0)[:8]
    x, steps, evaluations, seconds = Descent(models, data, normal)(found["mean field"][0].x)
    add("LM with a normal prior", x, steps, evaluations, 0, seconds)
    measures = {"fields": len(test), "seeds": num_seeds, "scale of DPS": float(models["scale"]), "noise": float(noise)}
    arrays = {name: np.asarray(array).reshape(-1, SIDE, SIDE) for name, array in arrays.items()}
    return Findings(rows, measures, arrays)


def pairs_part(bench: Bench, science: Science) -> Findings:
    """Levenberg-Marquardt from the mean and from the pseudo-inverse of networks trained with few pairs."""
    h, train, ys, test, data, noise = _setting(bench, science)
    descent, rows = Descent({"h": h, "noise": noise}, data), []
    for num in (0, 64) if bench.quick else (0, *science.pairs):
        if num:
            starts = jax.jit(jax.vmap(_network(bench, h, train, ys, num).pinv))(data)
        else:
            starts = jnp.broadcast_to(jnp.mean(train, axis=0), test.shape)
        x, steps, evaluations, seconds = descent(starts[None])
        misfit = jnp.sqrt(jnp.mean((_data(h, starts) - data) ** 2, axis=1)) / noise
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
