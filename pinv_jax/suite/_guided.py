"""What the studies of guided sampling share: a small prior, batches of samples with their cost, and measures."""

import dataclasses
import math
import time
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Key, PRNGKeyArray, Scalar

from .._problem import Problem
from ..diffusion import AbstractGuide, CosineSchedule, Prior, fit_prior
from ..maps import AbstractSurjection, Affine, Linear, SurjectiveChain
from ..solvers import nlbp, solve
from ._digits import key_of
from ._study import Bench

_NUM_FEATURES = 64
SCALES = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0)
"""Of the gradient of DPS; every study takes the one that its own measure likes best."""


class DenseDenoiser(eqx.Module):
    """`(x_t, t) -> x0`: residual perceptrons on the image as a vector, for images so small that convolutions cost more.

    It predicts the image: the noise would not fit through layers narrower than it. The last layer starts at zero.

    Args:
        shape: of `x`.
        width: of all layers.
        num_blocks: residual blocks.
        dtype: of the parameters.
        key: random key.
    """

    inlet: Linear
    outlet: Linear
    clock: Linear
    blocks: tuple[tuple[Linear, Linear, Linear], ...]
    shape: tuple[int, ...] = eqx.field(static=True)

    def __init__(
        self,
        shape: Sequence[int],
        *,
        width: int = 256,
        num_blocks: int = 3,
        dtype: DTypeLike | None = None,
        key: Key[Array, ""],
    ):
        size, keys = math.prod(shape), iter(jax.random.split(key, 3 + 3 * num_blocks))
        linear = lambda before, after: Linear(before, after, dtype=dtype, key=next(keys))
        self.shape = tuple(shape)
        self.inlet, self.clock = linear(size, width), linear(_NUM_FEATURES, _NUM_FEATURES)
        self.outlet = jax.tree.map(jnp.zeros_like, linear(width, size))
        self.blocks = tuple(
            (linear(width, width), linear(_NUM_FEATURES, width), linear(width, width)) for _ in range(num_blocks)
        )

    def __call__(self, x_t: Float[Array, "*x"], t: Scalar) -> Float[Array, "*x"]:
        """The image in `x_t` at the time `t` of a schedule of 1000 steps."""
        frequencies = jnp.asarray(np.geomspace(1e-3, 1.0, _NUM_FEATURES // 2), x_t.dtype)
        phases = t * frequencies
        features = jax.nn.silu(self.clock(jnp.concatenate([jnp.sin(phases), jnp.cos(phases)])))
        h = self.inlet(jnp.ravel(x_t))
        for first, timed, second in self.blocks:
            inner = (h - jnp.mean(h)) * jax.lax.rsqrt(jnp.var(h) + 1e-5)
            h = h + second(jax.nn.silu(first(inner) + timed(features)))
        return self.outlet(h).reshape(self.shape)


def dense_prior(
    bench: Bench, name: str, images: Any, shape: Sequence[int], *, width: int, num_steps: int, **options: Any
) -> Prior:
    """A prior for images between -1 and 1, trained, or read back where it is trained already.

    Args:
        bench: of the study.
        name: of its checkpoint.
        images: an array of them, or a sampler.
        shape: of one image.
        width: of the `DenseDenoiser`.
        num_steps: of training; hardly any in a quick run.
        **options: of `fit_prior`.
    """
    network = DenseDenoiser(shape, width=width, dtype=bench.dtype, key=key_of(bench, name))
    options = {"batch_size": 64, "learning_rate": 2e-3, "ema": 0.998} | options
    return fit_prior(
        network,
        images,
        CosineSchedule(),
        prediction="x0",
        key=key_of(bench, name),
        num_steps=200 if bench.quick else num_steps,
        steps_per_round=100 if bench.quick else 500,
        checkpoint=bench.fits.parent / name,
        progress=bench.progress,
        **options,
    )


def of_unit(f: AbstractSurjection[Any]) -> SurjectiveChain:
    """A map of images between 0 and 1 as one of images between -1 and 1."""
    structure = f.in_structure()
    half = jnp.full(structure.shape, 0.5, structure.dtype)
    return SurjectiveChain([Affine(half, half), f])  # pyright: ignore[reportCallIssue]


class Corrected(AbstractGuide):
    """Back-projection by a stand-in f of h onto `f(x0) + a (data - h(x0))`; with `a = 1` h then holds to first order.

    Of the step sizes `a = 1, 1/2, 1/4, 1/8` and the estimate itself the one whose h is nearest to the data is taken, so
    that a poor stand-in costs evaluations of h and does no harm; no derivative is taken of anything. The fixed points
    meet `h(x) = data`. An estimate that meets the data within the noise stays where it is.

    Attributes:
        f: the stand-in, a surjection.
        h: the map itself.
        data: the observation.
        noise_std: its standard deviation, or 0.
    """

    f: AbstractSurjection[Any]
    h: Any
    data: Float[Array, "*y"]
    noise_std: Any
    evaluations: ClassVar[int] = 5

    def __call__(self, denoise: Any, x_t: Float[Array, "*x"], t: Scalar, key: PRNGKeyArray) -> Float[Array, "*x"]:
        """See `AbstractGuide`."""
        del key
        x0 = denoise(x_t, t)
        y, residual = self.f(x0), self.h(x0) - self.data
        step_sizes = jnp.asarray([1.0, 0.5, 0.25, 0.125], x0.dtype)
        moved = jax.vmap(lambda a: nlbp(self.f, x0, y - a * residual))(step_sizes)
        square = lambda residual: jnp.mean(residual**2)
        missed = jax.vmap(lambda x: square(self.h(x) - self.data))(moved)
        missed = jnp.where(jnp.isfinite(missed), missed, jnp.inf)
        best, before = jnp.argmin(missed), square(residual)
        helps = (missed[best] < before) | (jnp.isfinite(missed[best]) & ~jnp.isfinite(before))
        return jnp.where(helps & ~(before <= self.noise_std**2), moved[best], x0)


class Descended(AbstractGuide):
    """A few steps of a solver from every estimate, towards `h(x) = data`, with the line search of the solver.

    Attributes:
        h: the map.
        data: the observation.
        noise_std: its standard deviation.
        solver: for instance `DIPG` with a learned inverse of h.
        num_steps: at most, for each estimate.
    """

    h: Any
    data: Float[Array, "*y"]
    noise_std: Any
    solver: Any
    num_steps: int = eqx.field(static=True)

    def __call__(self, denoise: Any, x_t: Float[Array, "*x"], t: Scalar, key: PRNGKeyArray) -> Float[Array, "*x"]:
        """See `AbstractGuide`."""
        del key
        x0 = denoise(x_t, t)
        problem = Problem(self.h, self.data, noise_std=self.noise_std)
        x = solve(problem, self.solver, x0, max_steps=self.num_steps).value
        return jnp.where(jnp.all(jnp.isfinite(x)), x, x0)


def to_unit(x: Float[Array, "*x"]) -> Float[Array, "*x"]:
    """From between -1 and 1 to between 0 and 1, cut off there: what a judge is shown."""
    return jnp.clip(0.5 * (x + 1), 0.0, 1.0)


@dataclasses.dataclass(frozen=True)
class Samples:
    """What a method drew.

    Attributes:
        x: of shape `(seeds, items, *x)`.
        seconds: of processor time per sample, all threads together, without compilation.
    """

    x: Array
    seconds: float


@eqx.filter_jit
def _apply(method: Any, models: Any, items: Any, keys: Key[Array, "seeds items"]) -> Array:
    one_seed = lambda keys: jax.vmap(lambda item, key: method(models, item, key))(items, keys)
    with jax.default_matmul_precision("highest"):
        return jax.lax.map(one_seed, keys)


def draw(method: Callable[..., Any], models: Any, items: Any, *, key: PRNGKeyArray, num_seeds: int) -> Samples:
    """Samples by a method `(models, item, key) -> x` for every item, with several seeds.

    Args:
        method: on one item.
        models: what all items share.
        items: observations, with a leading axis.
        key: random key.
        num_seeds: samples per item.
    """
    num = jax.tree.leaves(items)[0].shape[0]
    keys = jax.random.split(key, (num_seeds, num))
    run = _apply.lower(method, models, items, keys).compile()
    start = time.process_time()
    x = jax.block_until_ready(run(method, models, items, keys))
    return Samples(x, (time.process_time() - start) / (num_seeds * num))


def best_scale(
    method: Callable[..., Any], models: dict[str, Any], items: Any, score: Callable[[Array], Any], *, key: PRNGKeyArray
) -> Array:
    """Of `SCALES` the one as `models["scale"]` whose samples `(1, items, *x)` have the best score; NaN is the worst."""
    keys = jax.random.split(key, (1, jax.tree.leaves(items)[0].shape[0]))
    scales = [jnp.asarray(scale, jax.tree.leaves(items)[0].dtype) for scale in SCALES]
    run = _apply.lower(method, models | {"scale": scales[0]}, items, keys).compile()
    scores = [float(score(run(method, models | {"scale": scale}, items, keys))) for scale in scales]
    return scales[int(np.argmax(np.nan_to_num(scores, nan=-np.inf)))]


@eqx.filter_jit
def misses(f: Any, x: Float[Array, "seeds num *x"], data: Float[Array, "num *y"]) -> Float[Array, "seeds num"]:
    """The root mean square of `f(x) - data`, relative to the standard deviation of the data."""
    with jax.default_matmul_precision("highest"):
        residuals = jax.lax.map(lambda x: jax.vmap(f)(x) - data, x)
    return jnp.sqrt(jnp.mean(residuals**2, axis=tuple(range(2, residuals.ndim)))) / jnp.std(data)


def spread(x: Float[Array, "seeds num *x"]) -> float:
    """The mean distance, as a root mean square over pixels, of two samples of one item; 0 for a single seed."""
    flat = np.asarray(x, np.float64).reshape(*x.shape[:2], -1)
    pairs = [(i, j) for i in range(len(flat)) for j in range(i)]
    return float(np.mean([np.sqrt(np.mean((flat[i] - flat[j]) ** 2, axis=-1)) for i, j in pairs])) if pairs else 0.0


def spread_within(x: Float[Array, "num *x"], labels: np.ndarray) -> float:
    """The mean distance of two images with the same label: what `spread` is measured against."""
    flat = np.asarray(x, np.float64).reshape(len(x), -1)
    found = []
    for label in np.unique(labels):
        members = flat[labels == label]
        square = np.sum(members**2, axis=1)
        distances = np.maximum(square[:, None] + square[None] - 2 * members @ members.T, 0) / flat.shape[1]
        found.append(np.sqrt(distances[np.triu_indices(len(members), 1)]))
    return float(np.mean(np.concatenate(found)))


def nearest(x: Float[Array, "num *x"], reference: Float[Array, "many *x"]) -> float:
    """The median distance, as a root mean square over pixels, to the nearest of the reference images."""
    flat, others = (np.asarray(a, np.float64).reshape(len(a), -1) for a in (x, reference))
    square = np.sum(flat**2, axis=1)[:, None] + np.sum(others**2, axis=1)[None] - 2 * flat @ others.T
    return float(np.median(np.sqrt(np.maximum(np.min(square, axis=1), 0) / flat.shape[1])))


def all_samples(x: Float[Array, "seeds num *x"]) -> Array:
    """The samples of all seeds, one after the other."""
    return x.reshape(-1, *x.shape[2:])


def over_seeds(right: np.ndarray) -> dict[str, Any]:
    """Two cells from what was judged right, `(seeds, ...)`: the share in per cent, and the range over the seeds."""
    shares = 100 * np.mean(right.reshape(len(right), -1), axis=1)
    return {"agreement %": float(np.mean(shares)), "seeds": f"{shares.min():.0f}-{shares.max():.0f}"}
