"""The default learned inverse of a problem with flat unknowns: ridge plus a network, trained on fresh noisy draws."""

import functools
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

    def __call__(self, x: Float[Array, " m"]) -> Float[Array, " d"]:
        """The estimate for the observation `x`."""
        return self.skip(x) + self.network(jax.lax.stop_gradient(self.encoder) @ x)

    def in_structure(self) -> jax.ShapeDtypeStruct:
        """Shape and dtype of the observation."""
        return self.skip.in_structure()


def ridge_skip_inverse(
    x: Float[Array, "n d"], y: Float[Array, "n m"], *, key: PRNGKeyArray, num_directions: int = 6, width: int = 128
) -> SkipInverse:
    """A `SkipInverse` that is the ridge regression of `x` on the noisy observations `y`."""
    skip_key, network_key = jax.random.split(key)
    x64, y64 = np.asarray(x, np.float64), np.asarray(y, np.float64)
    design = np.concatenate([np.ones((len(y64), 1)), y64], axis=1)
    penalty = 1e-4 * len(y64) * np.diag([0.0] + [1.0] * y64.shape[1])
    weight = np.linalg.solve(design.T @ design + penalty, design.T @ x64).T
    values, vectors = np.linalg.eigh(np.cov((y64 @ weight[:, 1:].T).T))
    leading = vectors[:, ::-1][:, :num_directions] / np.sqrt(values[::-1][:num_directions])
    encoder = leading.T @ weight[:, 1:]

    skip = Linear(y.shape[1], x.shape[1], dtype=x.dtype, key=skip_key)
    skip = with_parameters(skip, weight=jnp.asarray(weight[:, 1:], x.dtype), bias=jnp.asarray(weight[:, 0], x.dtype))
    # kaiming_uniform(5**0.5) is the default of PyTorch and equinox; LinearSkipMLP starts its last layer at zero.
    sizes = (num_directions, width, width, width, x.shape[1])
    network = LinearSkipMLP(sizes, init=kaiming_uniform(5**0.5), dtype=x.dtype, key=network_key)
    return SkipInverse(skip, jnp.asarray(encoder, x.dtype), network.network)


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


def train_inverse(dataset: Dataset, *, key: PRNGKeyArray, folder: Any, progress: Any, quick: bool) -> InversePair:
    """The default inverse: reconstruction from noisy fresh draws, and the penalty in the metric of the data."""
    model_key, draw_key, fit_key = jax.random.split(key, 3)
    physics, sample = dataset.physics, dataset.sample
    # Data are generated: the regression and the metric are not limited to the training set either.
    draws = generate(sample, physics, 1024 if quick else 8192, key=draw_key, noise_std=dataset.noise_std)
    metric = DataMetric.from_samples(draws.x, dataset.noise_std)
    num_steps = 300 if quick else 10_000
    terms = {
        "reconstruction": Term(functools.partial(reconstruction, source="data", noise_std=dataset.noise_std)),
        "jcp": Term(functools.partial(jcp, target="data", metric=metric, num_probes=1, probe="normal"), 3e-4, 64),
    }
    # Fresh draws cannot be overfitted and the rate decays to zero: the last model is kept, without selection.
    stage = Stage(terms, the_inverse, num_steps, 256, cosine_adam(3e-3, num_steps))

    def draw(key: PRNGKeyArray) -> tuple[Array, Array]:
        x = sample(key)
        return x, physics(x)

    pair = InversePair(physics, ridge_skip_inverse(draws.x, draws.y, key=model_key))
    pair, _ = fit(pair, {"inverse": stage}, draw, key=fit_key, checkpoint=folder, progress=progress)
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


def default_measures(dataset: Dataset, models: dict[str, InversePair], *, key: PRNGKeyArray) -> dict[str, Any]:
    """RJCP with identity and with data probes, and the excess over the floor, for every inverse of the physics."""
    metric = default_metric(dataset)
    xs = dataset.val.x[:64]

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
