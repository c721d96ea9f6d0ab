"""The networks of `science-darcy` and `science-vorticity`, and how good their prior is."""

import functools
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from ..diffusion import Prior
from ..learn import ImitationErrors, imitate
from ..maps import AbstractMap, AbstractSurjection, Natural, prepare
from ._base import Dataset
from ._darcy2d import component_inverse
from ._digits import key_of
from ._inverse import train_inverse
from ._science_maps import Science
from ._study import Bench


@eqx.filter_jit
def data_of(h: Any, xs: Array) -> Array:
    return jax.lax.map(h, xs, batch_size=64)


def network_of_pairs(bench: Bench, h: AbstractMap, xs: Array, ys: Array, num: int) -> AbstractSurjection[Any]:
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


@eqx.filter_jit
def _estimates(prior: Prior, xs: Array, keys: Array) -> Array:
    def one(given: tuple[Array, Array]) -> Array:
        x, key = given
        time_key, noise_key = jax.random.split(key)
        t = prior.schedule.draw(time_key, x.dtype)
        signal, spread = prior.schedule.scales(t)
        return prior.denoise(signal * x + spread * jax.random.normal(noise_key, x.shape, x.dtype), t)

    return jax.lax.map(one, (xs, keys), batch_size=64)


def guiding_network(bench: Bench, dataset: Dataset, prior: Prior) -> tuple[AbstractSurjection[Any], ImitationErrors]:
    """The network that guides, and its errors: it imitates the equation where it will be asked.

    What it meets are not fields but estimates of the prior, blurred ones at first; it trains on both. A further round
    on estimates that it had back-projected itself did not help.
    """
    xs, h = dataset.train.x, dataset.physics
    keys = jax.random.split(key_of(bench, "guiding"))
    asked = jnp.concatenate([xs, _estimates(prior, xs, jax.random.split(keys[0], len(xs)))])
    found = imitate(
        h,
        (asked, data_of(h, asked)),
        key=keys[1],
        num_steps=100 if bench.quick else 1500,
        batch_size=128,
        checkpoint=bench.fits.parent / "guiding",
        progress=bench.progress,
    )
    return prepare(Natural(found.model)), found.errors


def learned_inverse(bench: Bench, dataset: Dataset, science: Science) -> Any:
    """A local inverse of the equation: reconstruction from noisy data, and the Jacobian composition penalty."""
    pair = train_inverse(
        dataset,
        key=key_of(bench, "inverse"),
        folder=bench.fits.parent / "inverse",
        progress=bench.progress,
        quick=bench.quick,
        build=functools.partial(component_inverse, num_components=dataset.test.y.shape[1]),
        schedule=science.schedule,
    )
    return pair.inverse


def denoising(bench: Bench, science: Science, prior: Prior, train: Array) -> dict[str, Any]:
    """Root mean squares of what the prior, and the best linear denoiser, miss of held-out fields at some times."""
    keys = jax.random.split(key_of(bench, "held out"), 64 if bench.quick else 512)
    x = jax.jit(jax.vmap(science.fields(bench.dtype)))(keys)
    fields = np.asarray(train, np.float64)
    mean, (values, vectors) = fields.mean(axis=0), np.linalg.eigh(np.cov(fields.T))
    found = {}
    for time_of in (100.0, 300.0, 500.0, 700.0, 900.0):
        t = jnp.asarray(time_of, bench.dtype)
        noise = jax.random.normal(key_of(bench, f"noise {time_of}"), x.shape, x.dtype)
        signal, spread = (float(scale) for scale in prior.schedule.scales(t))
        x_t = signal * x + spread * noise
        gain = signal * values / (signal**2 * values + spread**2)
        linear = mean + ((np.asarray(x_t, np.float64) - signal * mean) @ vectors * gain) @ vectors.T
        ours = jax.lax.map(lambda x_t, t=t: prior.denoise(x_t, t), x_t, batch_size=64)
        rms = lambda estimate: float(np.sqrt(np.mean((np.asarray(estimate) - np.asarray(x)) ** 2)))
        found[f"t = {time_of:.0f}"] = {"prior": rms(ours), "linear": rms(linear)}
    return found
