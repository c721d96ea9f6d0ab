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
from ._guided import SCALES, dense_prior, draw
from ._study import Bench, Findings, Study

SIDE = 16
MAX_STEPS = 60
LM_NAMES = ("LM from the mean", "LM from pinv", "LM with a normal prior")


class Pressures(AbstractMap):
    """`u -> p` at `5 x 5` wells: `p` the pressure for the log-permeability `1.5 u` on the unit square."""

    dtype: np.dtype = eqx.field(static=True)

    def __call__(self, x: Float[Array, " n"]) -> Float[Array, " m"]:
        """The pressures, in row-major order."""
        with jax.default_matmul_precision("highest"):
            pressure = darcy_pressure(jnp.exp(1.5 * x.reshape(SIDE, SIDE)))
        return jnp.ravel(pressure[2::3, 2::3])

    def in_structure(self) -> jax.ShapeDtypeStruct:
        """Shape and dtype of `u`."""
        return jax.ShapeDtypeStruct((SIDE * SIDE,), self.dtype)


class Snapshot(AbstractMap):
    """`u -> w` at every other point: `w` the vorticity that `12 u` has become."""

    flow: NavierStokes2D

    def __call__(self, x: Float[Array, " n"]) -> Float[Array, " m"]:
        """The vorticity in units of 12, in row-major order."""
        return jnp.ravel(self.flow(12 * x.reshape(SIDE, SIDE))[::2, ::2]) / 12

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
    """

    forward: Callable[[DTypeLike], AbstractMap]
    fields: Callable[[DTypeLike], Callable[..., Any]]
    noise: float


DARCY = Science(
    forward=lambda dtype: Pressures(jnp.dtype(dtype)),  # pyright: ignore[reportCallIssue]
    fields=lambda dtype: Rocks(periodic_field_2d(2 * SIDE, 0.2, dtype=dtype)),  # pyright: ignore[reportCallIssue]
    noise=0.02,
)
VORTICITY = Science(
    forward=lambda dtype: Snapshot(NavierStokes2D(SIDE, 1e-3, 0.5, max_speed=1.5, dtype=dtype)),  # pyright: ignore[reportCallIssue]
    fields=lambda dtype: Vortices(jnp.asarray(np.arange(SIDE) / SIDE, dtype)),  # pyright: ignore[reportCallIssue]
    noise=0.1,
)


class Within(eqx.Module):
    """Whether a prediction is within the noise of the data."""

    noise_std: Float[Array, ""]

    def __call__(self, y: Float[Array, " m"], data: Float[Array, " m"]) -> Bool[Array, ""]:
        """Root mean square at most one standard deviation."""
        return jnp.mean((y - data) ** 2) <= self.noise_std**2


def descend(problem: Problem, start: Array) -> tuple[Array, Array, Array]:
    """Levenberg-Marquardt until the data are met within the noise: where it ends, its steps, the evaluations of f."""
    found = solve(problem, LevenbergMarquardt(SVD(), discrepancy=1.0), start, max_steps=MAX_STEPS)
    return found.value, found.stats.num_steps, found.stats.num_steps + found.stats.num_rejected


def _sampled(make: Any, num_steps: int, models: Any, y: Array, key: PRNGKeyArray) -> Array:
    return sample(models["prior"], DDPM(num_steps), key=key, guide=make(models, y))


def _dps(scale: float, models: Any, y: Array) -> DPS:
    # in units of the noise, in which one scale suits all equations
    return DPS(lambda x: models["h"](x) / models["noise"], y / models["noise"], scale)


def _nlbp(models: Any, y: Array) -> Any:
    return project_after(models["natural"], y, stop=Within(models["noise"]))  # pyright: ignore[reportCallIssue]


def _from(start: Any, models: Any, y: Array, key: PRNGKeyArray) -> Any:
    x = start(models, y, key)
    return descend(Problem(models["h"], y, noise_std=models["noise"]), x)


def _with_normal_prior(models: Any, y: Array, key: PRNGKeyArray) -> Any:
    problem = Problem(models["h"], y, noise_std=models["noise"], prior=models["normal"])
    solver = LevenbergMarquardt(SVD(), atol=0.0, rtol=1e-4)
    found = solve(problem, solver, models["mean"], max_steps=MAX_STEPS)
    return found.value, found.stats.num_steps, found.stats.num_steps + found.stats.num_rejected


def _plain(method: Any, models: Any, y: Array, key: PRNGKeyArray) -> Any:
    return method(models, y, key), jnp.zeros((), jnp.int32), jnp.zeros((), jnp.int32)


def _mean(models: Any, y: Array, key: PRNGKeyArray) -> Array:
    return models["mean"]


def _pinv(models: Any, y: Array, key: PRNGKeyArray) -> Array:
    return models["natural"].pinv(y)


def methods(num_steps: int, scale: float) -> dict[str, tuple[Any, int, bool]]:
    """By name: `(models, y, key) -> (x, steps of LM, evaluations of f)`, denoiser calls, and whether it is drawn."""
    dps, ours = (functools.partial(_sampled, g, num_steps) for g in (functools.partial(_dps, scale), _nlbp))
    alone = functools.partial(_sampled, lambda models, y: None, num_steps)
    return {
        "mean field": (functools.partial(_plain, _mean), 0, False),
        "pinv": (functools.partial(_plain, _pinv), 0, False),
        LM_NAMES[0]: (functools.partial(_from, _mean), 0, False),
        LM_NAMES[1]: (functools.partial(_from, _pinv), 0, False),
        LM_NAMES[2]: (_with_normal_prior, 0, False),
        "prior alone": (functools.partial(_plain, alone), num_steps, True),
        "DPS": (functools.partial(_plain, dps), num_steps, True),
        "NLBP on the network": (functools.partial(_plain, ours), num_steps, True),
        "NLBP on the network, then LM": (functools.partial(_from, ours), num_steps, True),
    }


@eqx.filter_jit
def _batch(method: Any, models: Any, ys: Array, keys: PRNGKeyArray) -> Any:
    with jax.default_matmul_precision("highest"):
        return jax.lax.map(lambda keys: jax.vmap(lambda y, key: method(models, y, key))(ys, keys), keys)


def timed_batch(method: Any, models: Any, ys: Array, key: PRNGKeyArray, num_seeds: int) -> tuple[Any, float]:
    """What a method finds, of shape `(seeds, items, ...)`, and the seconds of processor time per item and seed."""
    keys = jax.random.split(key, (num_seeds, len(ys)))
    run = _batch.lower(method, models, ys, keys).compile()
    start = time.process_time()
    found = jax.block_until_ready(run(method, models, ys, keys))
    return found, (time.process_time() - start) / (num_seeds * len(ys))


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
    num, num_items = (256, 4) if bench.quick else (2048, 32)
    keys = jax.random.split(key_of(bench, "fields"), 3)
    train, test = (
        jax.jit(jax.vmap(fields))(jax.random.split(k, n)) for k, n in zip(keys[:2], (num, num_items), strict=True)
    )
    ys, clean = _data(h, train), _data(h, test)
    noise = science.noise * jnp.std(ys - jnp.mean(ys, axis=0, keepdims=True))
    return h, train, ys, test, clean + noise * jax.random.normal(keys[2], clean.shape, bench.dtype), noise


def _relative(x: Array, truth: Array) -> np.ndarray:
    """The error of every field, relative to the truth without its mean over all fields."""
    scale = np.sqrt(np.mean((truth - np.mean(truth, axis=0)) ** 2, axis=-1))
    return np.sqrt(np.mean((np.asarray(x) - np.asarray(truth)) ** 2, axis=-1)) / scale


def fields_part(bench: Bench, science: Science) -> Findings:
    """Every method on the same observations."""
    h, train, ys, test, data, noise = _setting(bench, science)
    prior = dense_prior(bench, "prior", science.fields(bench.dtype), (SIDE * SIDE,), width=256, num_steps=6000)
    natural = _network(bench, h, train, ys, len(train))
    normal = _normal(train)
    models = {"prior": prior, "h": h, "natural": natural, "normal": normal, "mean": normal.mean, "noise": noise}
    num_steps, num_seeds = (8, 2) if bench.quick else (50, 3)
    scale = 0.1
    if not bench.quick:
        errors = []
        for tried in SCALES:
            method = functools.partial(_sampled, functools.partial(_dps, tried), num_steps)
            x = draw(method, models, ys[:16], key=bench.key, num_seeds=1).x[0]
            errors.append(np.nan_to_num(np.median(_relative(x, train[:16])), nan=np.inf))
        scale = SCALES[int(np.argmin(errors))]
    rows, arrays = [], {"truth": test[:8]}
    for name, (method, cost, drawn) in methods(num_steps, scale).items():
        (x, steps, evaluations), seconds = timed_batch(method, models, data, bench.key, num_seeds if drawn else 1)
        misfit = jnp.sqrt(
            jnp.mean((_data(h, x.reshape(-1, x.shape[-1])).reshape(len(x), *data.shape) - data) ** 2, axis=-1)
        )
        rows.append(
            {
                "method": name,
                "error": float(np.median(_relative(x, test))),
                "error of the mean": float(np.median(_relative(np.mean(x, axis=0), test))),
                "misfit / noise": float(jnp.median(misfit / noise)),
                "worst": float(jnp.max(misfit / noise)),
                "steps of LM": float(np.median(steps)),
                "of f": float(np.median(evaluations)) + (num_steps if name == "DPS" else 0),
                "evaluations": cost,
                "derivatives": cost if name == "DPS" else 0,
                "CPU ms": 1e3 * seconds,
            }
        )
        arrays[name] = x[0, :8]
    arrays["deviation of the samples"] = np.std(x, axis=0)[:8]
    measures = {"fields": len(test), "seeds": num_seeds, "scale of DPS": scale, "noise": float(noise)}
    arrays = {name: np.asarray(array).reshape(-1, SIDE, SIDE) for name, array in arrays.items()}
    return Findings(rows, measures, arrays)


def pairs_part(bench: Bench, science: Science) -> Findings:
    """Levenberg-Marquardt from the mean and from the pseudo-inverse of networks trained with few pairs."""
    h, train, ys, test, data, noise = _setting(bench, science)
    rows = []
    for num in (0, 32, 128) if bench.quick else (0, 32, 128, 512, 2048):
        models = {"h": h, "noise": noise, "mean": jnp.mean(train, axis=0)}
        if num:
            models["natural"] = _network(bench, h, train, ys, num)
        method = functools.partial(_from, _pinv if num else _mean)
        (x, steps, evaluations), seconds = timed_batch(method, models, data, bench.key, 1)
        begin = _data(
            h, jax.vmap(models["natural"].pinv)(data) if num else jnp.broadcast_to(models["mean"], test.shape)
        )
        rows.append(
            {
                "pairs": num,
                "misfit / noise at the start": float(
                    jnp.median(jnp.sqrt(jnp.mean((begin - data) ** 2, axis=1)) / noise)
                ),
                "steps of LM": float(np.mean(steps)),
                "most": int(np.max(steps)),
                "of f": float(np.mean(evaluations)),
                "CPU ms": 1e3 * seconds,
                "error": float(np.median(_relative(x[0], test))),
            }
        )
    saved = {row["pairs"]: 1 - row["steps of LM"] / max(rows[0]["steps of LM"], 1) for row in rows[1:]}
    measures = {"share of the steps saved": {str(num): share for num, share in saved.items()}, "fields": len(test)}
    return Findings(rows, measures)


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
