"""Priors whose denoiser is known in closed form, `gaussian_prior` and `mixture_prior`: for tests, and for fields."""

import math

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Scalar

from ._prior import Prior
from ._schedules import AbstractSchedule


class GaussianDenoiser(eqx.Module):
    """`E[x | x_t] = mean + a C (a^2 C + s^2)^-1 (x_t - a mean)` with `a^2 = alpha_bar`, `s^2 = 1 - alpha_bar`.

    Attributes:
        mean: of `x`; in a mixture, as all the rest, with a leading axis.
        variances: along the principal axes, flat.
        axes: principal axes, one per column; None if they are the entries of `x`.
    """

    mean: Float[Array, "..."]
    variances: Float[Array, "..."]
    axes: Float[Array, "..."] | None
    schedule: AbstractSchedule

    def __call__(self, x_t: Float[Array, "*x"], t: Scalar) -> Float[Array, "*x"]:
        """The mean of `x` given `x_t`."""
        return self.moments(x_t, t)[0]

    def moments(self, x_t: Float[Array, "*x"], t: Scalar) -> tuple[Float[Array, "*x"], Scalar]:
        """The mean of `x` given `x_t`, and the logarithm of the density of `x_t` up to a constant."""
        signal, spread = self.schedule.scales(t)
        offset = jnp.ravel(x_t - signal * self.mean)
        with jax.default_matmul_precision("highest"):
            offset = offset if self.axes is None else self.axes.T @ offset
            total = signal**2 * self.variances + spread**2
            shift = signal * self.variances / total * offset
            shift = shift if self.axes is None else self.axes @ shift
        log_density = -0.5 * jnp.sum(offset**2 / total + jnp.log(total))
        return self.mean + shift.reshape(self.mean.shape), log_density


class MixtureDenoiser(eqx.Module):
    """`E[x | x_t] = sum_k r_k E_k[x | x_t]` with the responsibilities `r_k` of the components for `x_t`.

    Attributes:
        log_weights: of the components.
        components: Gaussians, stacked.
    """

    log_weights: Float[Array, " k"]
    components: GaussianDenoiser

    def __call__(self, x_t: Float[Array, "*x"], t: Scalar) -> Float[Array, "*x"]:
        """The mean of `x` given `x_t`."""
        means, logs = eqx.filter_vmap(lambda part: part.moments(x_t, t))(self.components)
        return jnp.tensordot(jax.nn.softmax(self.log_weights + logs), means, 1)


def gaussian_prior(mean: Float[Array, "*x"], covariance: Float[Array, "..."], schedule: AbstractSchedule) -> Prior:
    """The prior `N(mean, covariance)`, with its exact denoiser.

    Args:
        mean: shape `*x`.
        covariance: a matrix of the flattened `x`; or variances shaped like `mean`, of independent entries.
        schedule: of the noise.

    Raises:
        ValueError: a covariance of another shape, not symmetric, or with an eigenvalue that is not positive.
    """
    return Prior(_gaussian(mean, covariance, schedule), schedule, shape=mean.shape, prediction="x0")


def mixture_prior(
    weights: Float[Array, " k"],
    means: Float[Array, "..."],
    covariances: Float[Array, "..."],
    schedule: AbstractSchedule,
) -> Prior:
    """The prior `sum_k weights_k N(means_k, covariances_k)`, with its exact denoiser.

    Args:
        weights: positive; they are divided by their sum.
        means: shape `(k, *x)`. With the images of a training set for means, and small variances, this is the kernel
            density estimate of it, a prior that needs no training.
        covariances: k covariances as in `gaussian_prior`.
        schedule: of the noise.

    Raises:
        ValueError: as `gaussian_prior`; numbers of components that differ, or weights that are not positive.
    """
    if not len(weights) == len(means) == len(covariances) or not np.all(np.asarray(weights) > 0):
        raise ValueError(
            f"mixture_prior: {len(weights)} weights {np.asarray(weights)}, {len(means)} means and {len(covariances)} "
            "covariances; expected equal numbers and positive weights."
        )
    components = _gaussian(means, covariances, schedule, batched=True)
    denoiser = MixtureDenoiser(jnp.log(weights / jnp.sum(weights)), components)
    return Prior(denoiser, schedule, shape=means.shape[1:], prediction="x0")


def _gaussian(mean: Array, covariance: Array, schedule: AbstractSchedule, *, batched: bool = False) -> GaussianDenoiser:
    """The denoiser of one normal distribution, or of several, with a leading axis."""
    lead, shape = (mean.shape[:1], mean.shape[1:]) if batched else ((), mean.shape)
    size = math.prod(shape)
    if covariance.shape == (*lead, *shape):
        variances, axes = covariance.reshape(*lead, size), None
    elif covariance.shape == (*lead, size, size):
        if not np.allclose(covariance, covariance.mT, rtol=1e-4, atol=1e-6 * float(jnp.max(jnp.abs(covariance)))):
            raise ValueError("A covariance is not symmetric.")
        variances, axes = jnp.linalg.eigh(covariance)
    else:
        raise ValueError(
            f"covariance of shape {covariance.shape[len(lead) :]} for x of shape {shape}; expected ({size}, {size}), "
            "or variances shaped like x."
        )
    if not np.all(np.asarray(variances) > 0):
        raise ValueError(
            f"The smallest variance along a principal axis is {float(jnp.min(variances)):.3g}, expected positive ones."
        )
    return GaussianDenoiser(mean, variances, axes, schedule)
