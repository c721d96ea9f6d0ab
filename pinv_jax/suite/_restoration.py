"""Image restoration with a prior that was never trained for it: one table and one figure per degradation.

A task is a `Degradation` of the images of a prior. Every method restores the same held-out images from the same
observations; those that sample do so with several seeds, the same ones for all.
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
from jaxtyping import Array, Float, Key, PRNGKeyArray, Scalar

from .. import plots
from .._problem import Problem
from ..diffusion import DDIM, DPS, Prior, Start, project_after_interval, sample
from ..maps import AbstractSurjection, Affine, SurjectiveChain, store
from ..solvers import SVD, GaussNewton, solve
from ._lens_camera import quality, relative, shown
from ._priors import TrainedPrior, trained_prior
from ._study import Bench, Findings, Study

SCALES = (1.0, 3.0, 10.0, 30.0)
"""Of the gradient of DPS; the best on images of training is taken."""
NUM_STEPS, ETA = 20, 1.0
"""Of DDIM. On training images (`python -m benchmarks restoration_settings`, mean of four tasks) half the noise or half
the steps lose 0.2 to 0.3 dB, no noise 0.7 dB, and twice the steps gain 0.1 dB."""
FROM = 400
"""The time of the schedule to which `pinv` is noised, for the row that begins there. On training images 200, 400 and
600 are within 0.6 dB of each other where `pinv` is a picture; where it is none (compressed sensing), the later the
better."""
DPS_NAME, LINEAR_NAME, OURS = "DPS", "linear back-projection, non-linearity ignored", "NLBP"
WARM = f"{OURS}, from pinv noised to t = {FROM}"
REFERENCE = (
    "Y. Ehrlich, A. Berman, A. Shocher, Pseudo-Invertible Neural Networks, 2026, arXiv:2602.06042; Y. Wang, J. Yu, "
    "J. Zhang, DDNM, 2023, arXiv:2212.00490; H. Chung et al., DPS, 2023, arXiv:2209.14687"
)


class Observation(eqx.Module):
    """What is observed: `lower <= f(x) <= upper`, equal to `y` where it is known exactly.

    Attributes:
        y: what a method is shown that knows no bounds.
        lower: bounds, shaped like `y`.
        upper: likewise.
    """

    y: Float[Array, "*y"]
    lower: Float[Array, "*y"]
    upper: Float[Array, "*y"]


def exactly(y: Float[Array, "*y"], key: PRNGKeyArray) -> Observation:
    """A sensor that returns `y` as it is."""
    del key
    return Observation(y, y, y)  # pyright: ignore[reportCallIssue]


class Degradation(eqx.Module):
    """What happened to the images, which lie between -1 and 1.

    Args:
        f: the map, a surjection.
        linear: the linear map that a method believes in which ignores the non-linearity.
        sense: `(f(x), key) -> Observation`; by default the value itself.
        enlarge: an observation as an image, for the first row of the table: `y -> x`; by default `linear.pinv`.
        stand_in: what is back-projected onto where `f` counts as unknown, and is only used to finish.
    """

    f: AbstractSurjection[Any]
    linear: AbstractSurjection[Any]
    sense: Any
    enlarge: Any
    stand_in: AbstractSurjection[Any] | None

    def __init__(
        self,
        f: AbstractSurjection[Any],
        linear: AbstractSurjection[Any],
        *,
        sense: Callable[..., Observation] = exactly,
        enlarge: Callable[..., Any] | None = None,
        stand_in: AbstractSurjection[Any] | None = None,
    ):
        self.f, self.linear, self.sense, self.stand_in = f, linear, store(sense), stand_in
        self.enlarge = store(linear.pinv if enlarge is None else enlarge)

    @property
    def known(self) -> AbstractSurjection[Any]:
        """The map that may be inverted."""
        return self.f if self.stand_in is None else self.stand_in


Method = Callable[[Prior, Degradation, Observation, PRNGKeyArray], Any]


@dataclasses.dataclass(frozen=True)
class Task:
    """One part of a study of restoration.

    Attributes:
        prior: its name.
        build: `(bench, prior) -> degradation`.
        extra: further methods by name: `num_steps -> method`, one evaluation of the denoiser per step.
        more_steps: of further rows of DPS.
        single: further methods by name, with one evaluation of the denoiser.
        ours: the method whose samples are averaged, shown, and compared with DPS; its name begins with "NLBP".
    """

    prior: str
    build: Callable[[Bench, TrainedPrior], Degradation]
    extra: Mapping[str, Callable[[int], Method]] = dataclasses.field(default_factory=dict)
    more_steps: tuple[int, ...] = ()
    single: Mapping[str, Method] = dataclasses.field(default_factory=dict)
    ours: str = OURS


def centred(f: AbstractSurjection[Any]) -> SurjectiveChain:
    """A map of images between 0 and 1 as one of images between -1 and 1."""
    structure = f.in_structure()
    half = jnp.full(structure.shape, 0.5, structure.dtype)
    return SurjectiveChain([Affine(half, half), f])  # pyright: ignore[reportCallIssue]


def outside(f: AbstractSurjection[Any], seen: Observation, x: Float[Array, "*x"]) -> Float[Array, "*y"]:
    """How far `f(x)` is from its bounds."""
    y = f(x)
    return y - jnp.clip(y, seen.lower, seen.upper)


def guided(make: Callable[..., Any], num_steps: int) -> Method:
    """A method that samples with the guide `make(degradation, observation)`."""

    def method(prior: Prior, task: Degradation, seen: Observation, key: PRNGKeyArray) -> Any:
        return sample(prior, DDIM(num_steps, ETA), key=key, guide=make(task, seen))

    return method


def warm(num_steps: int) -> Method:
    """NLBP that begins with the pseudo-inverse, noised, in place of noise alone."""

    def method(prior: Prior, task: Degradation, seen: Observation, key: PRNGKeyArray) -> Any:
        start = Start(task.known.pinv(seen.y), FROM)
        return sample(prior, DDIM(num_steps, ETA), key=key, guide=onto_bounds(task, seen), start=start)

    return method


def onto_bounds(task: Degradation, seen: Observation) -> Any:
    return project_after_interval(task.known, seen.lower, seen.upper)


def finished(method: Method, prior: Prior, task: Degradation, seen: Observation, key: PRNGKeyArray) -> Any:
    """A method, and Gauss-Newton steps on the map itself from where it ends."""
    x = method(prior, task, seen, key)
    return solve(Problem(task.f, seen.y), GaussNewton(SVD(rcond=1e-5)), x, max_steps=10).value


def ignoring(task: Degradation, seen: Observation) -> Any:
    """A guide: DDNM with the linear map, `x0 + A^+ (y - A x0)`.

    As a difference of two pseudo-inverses, for the maps here are affine: the images lie between -1 and 1.
    """

    def guide(denoise: Any, x_t: Array, t: Scalar, key: PRNGKeyArray) -> Array:
        del key
        x0 = denoise(x_t, t)
        with jax.default_matmul_precision("highest"):
            return x0 + task.linear.pinv(seen.y) - task.linear.pinv(task.linear(x0))

    return guide


def by_gradient(task: Degradation, seen: Observation, scale: Any) -> Any:
    return DPS(jax.tree_util.Partial(outside, task.f, seen), jnp.zeros_like(seen.y), scale)


ESTIMATES: Mapping[str, Method] = {
    "observation, enlarged": lambda prior, task, seen, key: task.enlarge(seen.y),
    "linear pinv, non-linearity ignored": lambda prior, task, seen, key: task.linear.pinv(seen.y),
    "pinv": lambda prior, task, seen, key: task.known.pinv(seen.y),
}
"""What needs no prior."""


@eqx.filter_jit
def _apply(method: Any, prior: Prior, task: Degradation, seen: Observation, keys: Key[Array, " n"]) -> Array:
    return jax.vmap(lambda seen, key: method(prior, task, seen, key))(seen, keys)


@eqx.filter_jit
def observe(task: Degradation, x: Float[Array, "n *x"], keys: Key[Array, " n"]) -> Observation:
    with jax.default_matmul_precision("highest"):
        return jax.vmap(lambda x, key: task.sense(task.f(x), key))(x, keys)


@eqx.filter_jit
def misses(task: Degradation, seen: Observation, x: Float[Array, "n *x"]) -> Float[Array, " n"]:
    """How far the images are from the bounds, relative to what is observed: `|outside| / |y|`.

    A code that is rounded to nothing but zeros has no size; the error is relative to that of its cell then.
    """

    def one(seen: Observation, x: Array) -> Array:
        cell = seen.upper - seen.lower
        return relative(outside(task.f, seen, x), jnp.where(jnp.any(seen.y != 0), seen.y, cell))

    with jax.default_matmul_precision("highest"):
        return jax.vmap(one)(seen, x)


def uncertainty(denoise: Any, t: Scalar) -> Scalar:
    """The deviation of an image of which only a noisy version is known, if images were white with deviation 0.5."""
    signal, spread = denoise.schedule.scales(t)
    return 0.5 * spread / jnp.sqrt(0.25 * signal**2 + spread**2)


def to_unit(x: Float[Array, "*x"]) -> Float[Array, "*x"]:
    """From -1 and 1 to 0 and 1."""
    return 0.5 * (x + 1)


def measured(
    name: str, task: Degradation, seen: Observation, x: Array, estimates: list[Array], seconds: float, cost: int
) -> dict[str, Any]:
    """A row of the table: medians over images and seeds."""
    scores = [quality(to_unit(x), to_unit(estimate)) for estimate in estimates]
    missed = np.stack([misses(task, seen, estimate) for estimate in estimates])
    return {
        "method": name,
        "PSNR dB": float(np.median([score["psnr"] for score in scores])),
        "SSIM": float(np.median([score["ssim"] for score in scores])),
        "consistency": float(np.median(missed)),
        "worst": float(np.max(missed)),
        "evaluations": cost,
        "derivatives": cost if name.startswith((DPS_NAME, "PiGDM")) else 0,
        "ms/image": 1e3 * seconds / len(x),
    }


def run_method(
    method: Method, prior: Prior, task: Degradation, seen: Observation, keys: list[PRNGKeyArray]
) -> tuple[list[Array], float]:
    """Estimates for each seed, and the median seconds of a batch, without compilation."""
    each = [jax.random.split(key, len(seen.y)) for key in keys]
    run = _apply.lower(method, prior, task, seen, each[0]).compile()
    estimates, seconds = [], []
    for key in each:
        start = time.perf_counter()
        estimates.append(jax.block_until_ready(run(method, prior, task, seen, key)))
        seconds.append(time.perf_counter() - start)
    return estimates, float(np.median(seconds))


def best_scale(trained: TrainedPrior, task: Degradation, num_steps: int, num: int, key: PRNGKeyArray) -> float:
    """The scale of DPS with the best PSNR on images of training."""
    draw_key, sense_key, sample_key = jax.random.split(key, 3)
    x = jax.jit(jax.vmap(trained.images.draw))(jax.random.split(draw_key, num))
    seen = observe(task, x, jax.random.split(sense_key, num))

    @eqx.filter_jit
    def level(trained: Prior, task: Degradation, scale: Array) -> Array:
        method = guided(functools.partial(by_gradient, scale=scale), num_steps)
        estimate = _apply(method, trained, task, seen, jax.random.split(sample_key, num))
        return jnp.median(quality(to_unit(x), to_unit(estimate))["psnr"])

    levels = [float(level(trained.prior, task, jnp.asarray(scale, x.dtype))) for scale in SCALES]
    return SCALES[int(np.nanargmax(levels))]


def findings(bench: Bench, task: Task) -> Findings:
    """All methods on one degradation."""
    folder = bench.models.parent.parent / "priors"
    trained = trained_prior(
        task.prior, folder, quick=bench.quick, seed=bench.seed, dtype=bench.dtype, progress=bench.progress
    )
    degradation = task.build(bench, trained)
    num_test, num_seeds, num_steps = (3, 2, 3) if bench.quick else (32, 3, NUM_STEPS)
    x = trained.images.test[:num_test]
    choice_key, sense_key, sample_key = jax.random.split(bench.key, 3)
    seen = observe(degradation, x, jax.random.split(sense_key, num_test))
    keys = list(jax.random.split(sample_key, num_seeds))
    steps_of = {DPS_NAME: num_steps} | {f"{DPS_NAME}, {num} steps": num for num in task.more_steps if not bench.quick}
    scales = {
        name: 1.0 if bench.quick else best_scale(trained, degradation, num, 6, choice_key)
        for name, num in steps_of.items()
    }
    ours = guided(onto_bounds, num_steps)
    guides = {
        LINEAR_NAME: guided(ignoring, num_steps),
        **{name: guided(functools.partial(by_gradient, scale=scales[name]), num) for name, num in steps_of.items()},
        **{name: make(num_steps) for name, make in task.extra.items()},
        OURS: ours if degradation.stand_in is None else functools.partial(finished, ours),
    }
    begun = warm(num_steps)
    guides[WARM] = begun if degradation.stand_in is None else functools.partial(finished, begun)
    if degradation.stand_in is not None:
        guides[f"{OURS} on the stand-in, not finished"] = ours
    costs = dict.fromkeys(guides, num_steps) | dict.fromkeys(task.single, 1)
    costs |= steps_of | {WARM: int(np.sum(trained.prior.schedule.times(num_steps) <= FROM)) - 1}
    rows, found = [], {}
    for name, method in (dict(ESTIMATES) | dict(task.single) | guides).items():
        each = keys if name in guides else keys[:1]
        found[name], seconds = run_method(method, trained.prior, degradation, seen, each)
        rows.append(measured(name, degradation, seen, x, found[name], seconds, costs.get(name, 0)))
    averaged = {name: [jnp.mean(jnp.stack(found[name]), axis=0)] for name in (DPS_NAME, task.ours)}
    for name, estimate in averaged.items():
        title, cost = f"{name}, mean of {num_seeds}", num_seeds * costs[name]
        rows.append(measured(title, degradation, seen, x, estimate, 0.0, cost))
        rows[-1]["ms/image"] = num_seeds * next(row["ms/image"] for row in rows if row["method"] == name)
    by_name = {row["method"]: row for row in rows}
    linear, dps, ours = (by_name[name] for name in (LINEAR_NAME, DPS_NAME, task.ours))
    measures = {
        "images": num_test,
        "seeds": num_seeds,
        "steps": num_steps,
        "scales of DPS": scales,
        "training of the prior, s": trained.seconds,
        "PSNR above linear, dB": ours["PSNR dB"] - linear["PSNR dB"],
        "PSNR above DPS, dB": ours["PSNR dB"] - dps["PSNR dB"],
        "consistency of linear / ours": linear["consistency"] / max(ours["consistency"], 1e-30),
        "consistency of DPS / ours": dps["consistency"] / max(ours["consistency"], 1e-30),
        "time of ours / DPS": ours["ms/image"] / dps["ms/image"],
        "time of ours / linear": ours["ms/image"] / linear["ms/image"],
        "largest difference to linear": max(
            float(jnp.max(jnp.abs(a - b))) for a, b in zip(found[task.ours], found[LINEAR_NAME], strict=True)
        ),
    }
    return Findings(rows, measures, _pictures(x, found, task.ours))


def _pictures(x: Array, found: Mapping[str, list[Array]], ours: str) -> dict[str, np.ndarray]:
    """What the figure shows: four images."""

    def some(images: Array) -> np.ndarray:
        return shown(to_unit(images[:4]))

    names = [name for name in found if name not in ESTIMATES and not name.startswith(OURS)]
    arrays = {"image": some(x)} | {name: some(found[name][0]) for name in (*ESTIMATES, *names)}
    arrays |= {f"{ours}, sample {index + 1}": some(each) for index, each in enumerate(found[ours])}
    deviation = jnp.std(to_unit(jnp.stack(found[ours])), axis=0)
    return arrays | {"8 x deviation\nof the samples": shown(8 * deviation[:4])}


def figures(found: Mapping[str, Findings]) -> dict[str, Any]:
    """A grid of images for every part that was run."""
    return {
        name: plots.image_grid(
            {title.replace(", ", ",\n"): array for title, array in part.arrays.items()}, limits=(0.0, 1.0)
        )
        for name, part in found.items()
        if part.arrays
    }


def restoration_study(name: str, summary: str, tasks: Mapping[str, Task]) -> Study:
    """The study of these tasks."""
    recipes = {part: functools.partial(findings, task=task) for part, task in tasks.items()}
    return Study(name=name, summary=summary, reference=REFERENCE, recipes=recipes, figures=figures)
