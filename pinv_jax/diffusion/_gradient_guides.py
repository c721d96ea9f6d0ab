"""Guides through the derivative of the network, for any differentiable map: `DPS`, `PiGDM`. Baselines."""

from collections.abc import Callable
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.scipy.sparse.linalg import cg
from jaxtyping import Array, Float, PRNGKeyArray, Scalar

from ..maps import store
from ..solvers._check import concrete
from ._guides import AbstractGuide
from ._prior import Denoise


class DPS(AbstractGuide):
    """`x_next <- x_next - scale grad_{x_t} |data - f(x0_hat(x_t))|`, diffusion posterior sampling.

    Written as a change of the estimate that has this effect after the step; so it needs a sampler that makes steps.

    Args:
        forward: any differentiable map.
        data: the observation.
        scale: of the gradient; 1 is the published choice for most tasks.

    Raises:
        ValueError: when it is used, data of another shape than `forward(x)`, or a sampler without steps.

    References:
        H. Chung et al., "Diffusion Posterior Sampling for General Noisy Inverse Problems", 2023, arXiv:2209.14687.
    """

    forward: Any
    data: Float[Array, "*y"]
    scale: Any

    def __init__(self, forward: Callable[..., Any], data: Any, scale: Any = 1.0):
        self.forward, self.data, self.scale = store(forward), jnp.asarray(data), scale

    def __call__(self, denoise: Denoise, x_t: Float[Array, "*x"], t: Scalar, key: PRNGKeyArray) -> Float[Array, "*x"]:
        """See `AbstractGuide`."""
        del key
        if denoise.gain is None:
            raise ValueError("DPS changes a step, and this sampler makes none: use DDPM, DDIM or DDNM, or PiGDM.")

        def misfit(x_t: Array) -> tuple[Scalar, Array]:
            x0 = denoise(x_t, t)
            residual = _residual(self.forward(x0), self.data)
            square = jnp.sum(residual**2)
            # the norm has no derivative at zero, where there is nothing to do
            return jnp.where(square > 0, jnp.sqrt(jnp.where(square > 0, square, 1)), 0), x0

        gradient, x0 = jax.grad(misfit, has_aux=True)(x_t)
        return x0 - self.scale / denoise.gain * gradient


class PiGDM(AbstractGuide):
    """`x0 + s^2 / a J_d' J_f' (r^2 J_f J_f' + noise_std^2)^-1 (data - f(x0))`, pseudo-inverse-guided diffusion.

    The score of the observation when the image, given `x_t`, is normal with variance `r^2` around `x0`; `J_d` and `J_f`
    are the derivatives of the denoiser and of `f`. For a linear `f` and a normal prior of variance `data_std^2` in all
    directions this is exact. For a non-linear `f` it is linearised at `x0`.

    Args:
        forward: any differentiable map.
        data: the observation.
        noise_std: of the observation.
        data_std: of images, so that `r^2 = data_std^2 s^2 / (data_std^2 a^2 + s^2)`; with 1 the published `s^2`.
        num_iterations: of conjugate gradients for the inverse; more never hurt.

    Raises:
        ValueError: a negative `noise_std`, a `data_std` that is not positive; when it is used, data of another shape
            than `forward(x)`.

    References:
        J. Song, A. Vahdat, M. Mardani, J. Kautz, "Pseudoinverse-Guided Diffusion Models for Inverse Problems", 2023,
        ICLR.
    """

    forward: Any
    data: Float[Array, "*y"]
    noise_std: Any
    data_std: Any
    num_iterations: int = eqx.field(static=True)
    is_score: ClassVar[bool] = True

    def __init__(
        self,
        forward: Callable[..., Any],
        data: Any,
        *,
        noise_std: Any = 0.0,
        data_std: Any = 1.0,
        num_iterations: int = 30,
    ):
        if (concrete(noise_std) and noise_std < 0) or (concrete(data_std) and not data_std > 0):
            raise ValueError(f"PiGDM: noise_std={noise_std}, data_std={data_std}; expected >= 0 and > 0.")
        self.forward, self.data = store(forward), jnp.asarray(data)
        self.noise_std, self.data_std, self.num_iterations = noise_std, data_std, num_iterations

    def __call__(self, denoise: Denoise, x_t: Float[Array, "*x"], t: Scalar, key: PRNGKeyArray) -> Float[Array, "*x"]:
        """See `AbstractGuide`."""
        del key
        signal, spread = denoise.schedule.scales(t)
        variance = self.data_std**2 * spread**2 / (self.data_std**2 * signal**2 + spread**2)
        x0, back_through_denoiser = jax.vjp(lambda x: denoise(x, t), x_t)
        prediction, tangent = jax.linearize(self.forward, x0)
        transpose = jax.linear_transpose(tangent, x0)

        def covariance(v: Array) -> Array:
            return variance * tangent(transpose(v)[0]) + self.noise_std**2 * v

        residual = _residual(prediction, self.data)
        weighted, _ = cg(covariance, -residual, tol=1e-12, maxiter=self.num_iterations)
        return x0 + spread**2 / signal * back_through_denoiser(transpose(weighted)[0])[0]


def _residual(prediction: Float[Array, "*y"], data: Float[Array, "*z"]) -> Float[Array, "*y"]:
    if prediction.shape != data.shape:
        raise ValueError(
            f"data has shape {data.shape}, forward returns {prediction.shape}. For many observations put jax.vmap "
            "around sample."
        )
    return prediction - data
