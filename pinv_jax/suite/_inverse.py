"""The default learned inverse of a problem with flat unknowns: ridge plus a network, trained on fresh noisy draws."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, PRNGKeyArray

from ..data import generate
from ..diagnostics import DataMetric, rjcp, rjcp_floor
from ..learn import InversePair, Stage, Term, fit, jcp, reconstruction
from ..maps import MLP, AbstractMap, Linear, LinearSkipMLP, kaiming_uniform
from ..solvers import Trust
from ._base import Dataset


@dataclasses.dataclass(frozen=True)
class Schedule:
    """How long the default inverse trains.

    Attributes:
        num_draws: pairs for the regression and the metric; what it trains on, unless `fresh`.
        num_steps, num_quick_steps: of the optimiser.
        batch_size: pairs per step.
        learning_rate: at the start; decays to zero by a cosine.
        jcp_weight: of the penalty.
        jcp_examples: pairs of each batch that the penalty sees.
        fresh: whether every batch is drawn anew, which cannot be overfitted, and costs an evaluation of the physics.
    """

    num_draws: int = 8192
    num_steps: int = 10_000
    num_quick_steps: int = 300
    batch_size: int = 256
    learning_rate: float = 3e-3
    jcp_weight: float = 3e-4
    jcp_examples: int = 64
    fresh: bool = True


class SkipInverse(AbstractMap):
    """`g(y) = W y + b + N(E y)`: ridge regression, plus a network that sees only what the data determine.

    Args:
        skip: starts as the ridge regression of `x` on noisy `y`.
        encoder: the leading, whitened directions of the ridge estimate; fixed.
        network: starts at zero.
    """

    skip: Linear
    encoder: Float[Array, "r m"]
    network: MLP
    shape: tuple[int, ...] = eqx.field(static=True)

    def __call__(self, x: Float[Array, "*m"]) -> Float[Array, " d"]:
        """The estimate for the observation `x`."""
        flat = jnp.ravel(x)
        return self.skip(flat) + self.network(jax.lax.stop_gradient(self.encoder) @ flat)

    def in_structure(self) -> jax.ShapeDtypeStruct:
        """Shape and dtype of the observation."""
        return jax.ShapeDtypeStruct(self.shape, self.encoder.dtype)


def ridge_skip_inverse(
    x: Float[Array, "n d"],
    y: Float[Array, "n *m"],
    *,
    key: PRNGKeyArray,
    physics: Any = None,
    num_directions: int = 6,
    width: int = 128,
) -> SkipInverse:
    """A `SkipInverse` that is the ridge regression of `x` on the noisy observations `y`."""
    skip_key, network_key = jax.random.split(key)
    weight, bias = ridge_regression(x, y)
    values, vectors = np.linalg.eigh(np.cov(weight @ np.asarray(y, np.float64).reshape(len(y), -1).T))
    leading = vectors[:, ::-1][:, :num_directions] / np.sqrt(values[::-1][:num_directions])
    encoder = leading.T @ weight

    skip = Linear(weight.shape[1], x.shape[1], dtype=x.dtype, key=skip_key)
    skip = with_parameters(skip, weight=jnp.asarray(weight, x.dtype), bias=jnp.asarray(bias, x.dtype))
    # kaiming_uniform(5**0.5) is the default of PyTorch and equinox; LinearSkipMLP starts its last layer at zero.
    sizes = (num_directions, width, width, width, x.shape[1])
    network = LinearSkipMLP(sizes, init=kaiming_uniform(5**0.5), dtype=x.dtype, key=network_key)
    return SkipInverse(skip, jnp.asarray(encoder, x.dtype), network.network, y.shape[1:])


def ridge_regression(
    x: Float[Array, "n *x"], y: Float[Array, "n *y"], penalty: float = 1e-4
) -> tuple[np.ndarray, np.ndarray]:
    """Matrix and intercept of the ridge regression of the flat `x` on the flat noisy `y`, in float64."""
    x64, y64 = (np.asarray(values, np.float64).reshape(len(values), -1) for values in (x, y))
    x_mean, y_mean = x64.mean(0), y64.mean(0)
    gram = (y64 - y_mean).T @ (y64 - y_mean) / len(y64) + penalty * np.eye(y64.shape[1])
    weight = np.linalg.solve(gram, (y64 - y_mean).T @ (x64 - x_mean) / len(y64)).T
    return weight, x_mean - weight @ y_mean


def with_parameters(linear: Linear, *, weight: Array, bias: Array) -> Linear:
    return eqx.tree_at(lambda layer: (layer.weight, layer.bias), linear, (weight, bias))


@functools.lru_cache(maxsize=4)
def cosine_adam(peak: float, num_steps: int) -> optax.GradientTransformation:
    schedule = optax.cosine_decay_schedule(peak, num_steps)
    return optax.chain(optax.clip_by_global_norm(1.0), optax.adam(schedule))


def the_inverse(model: Any) -> Any:
    return model.inverse


def default_metric(dataset: Dataset) -> DataMetric:
    """Covariance of the training unknowns and noise of the observations."""
    return DataMetric.from_samples(dataset.train.x, dataset.noise_std)


def train_inverse(
    dataset: Dataset,
    *,
    key: PRNGKeyArray,
    folder: Any,
    progress: Any,
    quick: bool,
    build: Callable[..., Any] = ridge_skip_inverse,
    schedule: Schedule = Schedule(),
) -> InversePair:
    """The default inverse: reconstruction from noisy data, and the penalty in the metric of the data.

    Args:
        dataset: of the problem.
        key: random key.
        folder: of the checkpoint.
        progress: see `learn.fit`.
        quick: few draws and few steps.
        build: `(x, y, *, physics, key) -> g`, from draws of the unknown and noisy observations.
        schedule: how many draws and steps.
    """
    model_key, draw_key, fit_key = jax.random.split(key, 3)
    physics, sample = dataset.physics, dataset.sample
    # Data are generated: the regression and the metric are not limited to the training set either.
    num_draws = 1024 if quick else schedule.num_draws
    draws = generate(sample, physics, num_draws, key=draw_key, noise_std=dataset.noise_std)
    metric = DataMetric.from_samples(draws.x, dataset.noise_std)
    num_steps = schedule.num_quick_steps if quick else schedule.num_steps
    terms = {
        "reconstruction": Term(functools.partial(reconstruction, source="data", noise_std=dataset.noise_std)),
        "jcp": Term(
            functools.partial(jcp, target="data", metric=metric, num_probes=1, probe="normal"),
            schedule.jcp_weight,
            schedule.jcp_examples,
        ),
    }
    # The rate decays to zero: the last model is kept, without selection.
    optimiser = cosine_adam(schedule.learning_rate, num_steps)
    stage = Stage(terms, the_inverse, num_steps, schedule.batch_size, optimiser)

    def draw(key: PRNGKeyArray) -> tuple[Array, Array]:
        x = sample(key)
        return x, physics(x)

    data: Any = draw
    if not schedule.fresh:
        clean = generate(sample, physics, num_draws, key=draw_key)
        data = (clean.x, clean.y)
    pair = InversePair(physics, build(draws.x, draws.y, physics=physics, key=model_key))
    pair, _ = fit(pair, {"inverse": stage}, data, key=fit_key, checkpoint=folder, progress=progress)
    return pair


def default_trust(dataset: Dataset, num_probes: int = 16) -> Trust:
    """Probes from the training unknowns and the noise; trusted while the excess RJCP is at most one."""
    metric = default_metric(dataset)
    mean = jnp.mean(dataset.train.x, axis=0)
    keys = jax.random.split(jax.random.key(0))
    return Trust(
        probes=metric.probes(mean, num_probes, key=keys[0]),
        noise=metric.noise(dataset.noise_std, num_probes, key=keys[1]),
        floor=rjcp_floor(dataset.physics, mean, metric=metric),
        threshold=jnp.ones((), mean.dtype),
    )


def default_measures(
    dataset: Dataset, models: dict[str, InversePair], *, key: PRNGKeyArray, num_points: int = 64
) -> dict[str, Any]:
    """RJCP of every inverse with identity and with data probes, and the excess over the floor.

    Averages over the first `num_points` validation points.
    """
    metric = default_metric(dataset)
    xs = dataset.val.x[:num_points]

    @eqx.filter_jit
    def measure(pair: InversePair) -> tuple[Array, Array]:
        identity = rjcp(pair.forward, pair.inverse, xs, key=key)
        return identity, rjcp(pair.forward, pair.inverse, xs, key=key, metric=metric)

    floors = jax.jit(jax.vmap(lambda x: rjcp_floor(dataset.physics, x, metric=metric)))(xs)
    floor = float(jnp.mean(floors))
    found: dict[str, Any] = {"RJCP floor data": floor}
    for name, pair in models.items():
        identity, data = (float(value) for value in measure(pair))
        found[f"RJCP {name}"] = {"identity": identity, "data": data, "excess": data - floor}
    return found
