"""What is known of an image before it is observed: `Prior`, a network that tells an image from its noise."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Scalar

from ..maps import Stored, store
from ._schedules import AbstractSchedule

PREDICTIONS = ("epsilon", "v", "x0")


class Prior(eqx.Module):
    """A diffusion prior: `denoise(x_t, t)` is the mean of all images that noise may have turned into `x_t`.

    The output `n` of the network is `"epsilon"`, the noise; `"x0"`, the image; or `"v"`, which is
    `sqrt(alpha_bar) noise - sqrt(1 - alpha_bar) image`.

    Args:
        network: `(x_t, t) -> n` on one example, n shaped like `x_t`, t a scalar in the units of the schedule: any
            callable, such as a `DenoisingUNet`. For flax see `flax_denoiser`.
        schedule: the one it was trained with.
        shape: of `x`.
        prediction: "epsilon", "v" or "x0".
        dtype: of `x`; by default that of the network's parameters, if it has any.

    Raises:
        ValueError: the network does not take `(x_t, t)` or does not return one array shaped like `x_t`, the prediction
            is unknown, or the schedule does not lead from noise to data.

    References:
        J. Ho, A. Jain, P. Abbeel, "Denoising Diffusion Probabilistic Models", 2020, arXiv:2006.11239.
        T. Salimans, J. Ho, "Progressive Distillation for Fast Sampling of Diffusion Models", 2022, arXiv:2202.00512,
        for "v".
    """

    network: Stored
    schedule: AbstractSchedule
    shape: tuple[int, ...] = eqx.field(static=True)
    prediction: str = eqx.field(static=True)
    dtype: np.dtype = eqx.field(static=True)

    def __init__(
        self,
        network: Callable[..., Any],
        schedule: Any,
        *,
        shape: tuple[int, ...],
        prediction: str = "epsilon",
        dtype: DTypeLike | None = None,
    ):
        if prediction not in PREDICTIONS:
            raise ValueError(f"Prior: prediction={prediction!r}, expected one of {', '.join(PREDICTIONS)}.")
        if not isinstance(schedule, AbstractSchedule):
            raise ValueError(
                f"Prior: schedule is a {type(schedule).__name__}, expected one such as LinearSchedule() or "
                "ContinuousCosineSchedule()."
            )
        schedule.check()
        self.network = store(network)
        self.schedule, self.shape, self.prediction = schedule, tuple(shape), prediction
        found = [leaf.dtype for leaf in jax.tree.leaves(self.network) if jnp.issubdtype(leaf.dtype, jnp.floating)]
        self.dtype = jnp.result_type(*found) if dtype is None and found else jnp.result_type(dtype or float)
        self._check()

    def _check(self) -> None:
        x, t = jax.ShapeDtypeStruct(self.shape, self.dtype), jax.ShapeDtypeStruct((), self.dtype)
        wanted = (
            f"Prior expected a network (x_t, t) -> array shaped like x_t, on one example x_t of shape {self.shape} and "
            f"dtype {self.dtype.name}, without a batch axis, and a scalar t"
        )
        try:
            y = jax.eval_shape(self.network.fn, x, t)
        except Exception as error:  # a network may raise whatever it likes
            raise ValueError(f"{wanted}; it raised {type(error).__name__}: {error}") from error
        if not isinstance(y, jax.ShapeDtypeStruct) or (y.shape, y.dtype) != (x.shape, x.dtype):
            got = jax.tree.map(lambda leaf: f"{leaf.dtype.name}{list(leaf.shape)}", y)
            raise ValueError(f"{wanted}; it returns {got}.")

    def denoise(self, x_t: Float[Array, "*x"], t: Scalar) -> Float[Array, "*x"]:
        """The image that the network sees in `x_t`; it is not clipped."""
        signal, spread = self.schedule.scales(t)
        n = self.network(x_t, t)
        if self.prediction == "epsilon":
            return (x_t - spread * n) / signal
        return signal * x_t - spread * n if self.prediction == "v" else n

    def target(self, x: Float[Array, "*x"], noise: Float[Array, "*x"], t: Scalar) -> Float[Array, "*x"]:
        """What the network should return for the image `x` with this noise at time `t`."""
        if self.prediction == "epsilon":
            return noise
        signal, spread = self.schedule.scales(t)
        return signal * noise - spread * x if self.prediction == "v" else x


class Denoise:
    """`denoise(x_t, t) -> x0_hat`, as a guide is given it.

    At the point where the sampler stands, the network has been evaluated already, and is not once more.

    Attributes:
        schedule: of the noise.
        free: `denoise(x_t, t)` where the sampler stands.
        gain: how much of a change of the estimate is in the noisy image after the step; None where there are no steps.
    """

    def __init__(self, prior: Prior, x_t: Float[Array, "*x"], t: Scalar, gain: Scalar | None = None):
        self._prior, self._at = prior, (x_t, t)
        self.schedule, self.gain = prior.schedule, gain
        self.free = prior.denoise(x_t, t)

    def __call__(self, x_t: Float[Array, "*x"], t: Scalar) -> Float[Array, "*x"]:
        """The image that the network sees in `x_t`."""
        if x_t is self._at[0] and t is self._at[1]:
            return self.free
        return self._prior.denoise(x_t, t)
