"""Training of a prior, `fit_prior`: the network learns to tell images from noise, at all times of a schedule."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, PRNGKeyArray, Scalar

from ..learn import Averaged, AveragedStage, Stage, Term, clipped_adam, fit
from ..maps import store
from ._prior import Prior
from ._schedules import AbstractSchedule, noised


def denoising(prior: Prior, x: Float[Array, "*x"], y: Any, key: PRNGKeyArray) -> Scalar:
    """The mean square of what the network misses at a random time of the schedule: a loss for `learn.fit`.

    Args:
        prior: what is trained.
        x: one image.
        y: not used.
        key: of the time and the noise.
    """
    del y
    time_key, noise_key = jax.random.split(key)
    t = prior.schedule.draw(time_key, x.dtype)
    noise = jax.random.normal(noise_key, x.shape, x.dtype)
    output = prior.network(noised(prior.schedule, x, t, noise), t)
    return jnp.mean((output - prior.target(x, noise, t)) ** 2)


def _network(prior: Prior) -> Any:
    return prior.network


def _drawn(images: Any, key: PRNGKeyArray) -> tuple[Array, Array]:
    """A sampler of pairs from a sampler of images."""
    x = images(key)
    return x, jnp.zeros((), x.dtype)


def fit_prior(
    network: Any,
    images: Any,
    schedule: AbstractSchedule,
    *,
    prediction: str = "epsilon",
    key: PRNGKeyArray,
    num_steps: int = 10_000,
    batch_size: int = 64,
    learning_rate: float = 1e-3,
    optimiser: optax.GradientTransformation | None = None,
    ema: float = 0.999,
    steps_per_round: int | None = None,
    checkpoint: str | Path | None = None,
    progress: Callable[..., Any] | None = None,
) -> Prior:
    """Trains a diffusion prior from images.

    Args:
        network: `(x_t, t) -> array` with parameters, such as a `DenoisingUNet`.
        images: an array with a leading axis, best with values between -1 and 1; or a sampler `key -> image`, for
            random crops and flips.
        schedule: of the noise.
        prediction: see `Prior`.
        key: random key.
        num_steps: optimiser steps.
        batch_size: images per step.
        learning_rate: of Adam; see `learn.clipped_adam`, with a warm-up of 100 steps.
        optimiser: in place of Adam.
        ema: the prior has the moving average of the parameters with this decay.
        steps_per_round: see `learn.fit`.
        checkpoint: a folder, from which a run that was killed goes on; see `learn.fit`.
        progress: see `learn.fit`, and `pinv_jax.suite` for one that writes a line.

    Returns:
        The prior with the averaged parameters.

    Raises:
        ValueError: images that are no floating-point numbers or have no leading axis, and as for `Prior` and `fit`.

    References:
        J. Ho, A. Jain, P. Abbeel, "Denoising Diffusion Probabilistic Models", 2020, arXiv:2006.11239.
    """
    if callable(images):
        example = jax.eval_shape(images, key)
        shape, data = example.shape, jax.tree_util.Partial(_drawn, store(images))
    else:
        example = jnp.asarray(images)
        if example.ndim < 2 or not jnp.issubdtype(example.dtype, jnp.floating):
            raise ValueError(
                f"fit_prior: images of shape {example.shape} and dtype {example.dtype}; expected floating-point "
                "numbers with a leading axis, best between -1 and 1: images / 127.5 - 1 for bytes."
            )
        shape, data = example.shape[1:], (example, jnp.zeros(len(example), example.dtype))
    prior = Prior(network, schedule, shape=shape, prediction=prediction, dtype=example.dtype)
    if optimiser is None:
        optimiser = clipped_adam(learning_rate, num_steps=num_steps, warmup_steps=min(100, num_steps // 10))
    stage = Stage({"denoising": Term(denoising)}, _network, num_steps, batch_size, optimiser)
    stages = {"prior": AveragedStage(stage, ema)}
    run = functools.partial(fit, steps_per_round=steps_per_round, checkpoint=checkpoint, progress=progress)
    pair, _ = run(Averaged(prior, prior), stages, data, key=key)
    return pair.average
