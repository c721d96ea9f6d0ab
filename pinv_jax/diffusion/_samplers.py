"""From noise to an image, step by step: `DDPM`, `DDIM`, `DDNM`. Each is one scan over precomputed pairs of times."""

import abc
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray, Scalar

from ._prior import Denoise, Prior
from ._schedules import AbstractSchedule

Guide = Callable[..., Any]


def unguided(denoise: Denoise, x_t: Float[Array, "*x"], t: Scalar, key: PRNGKeyArray) -> Float[Array, "*x"]:
    """The guide that leaves everything to the prior."""
    del key
    return denoise(x_t, t)


class AbstractSampler(eqx.Module):
    """A way from a noisy image to an image.

    Implementing a sampler:

    - `times(schedule)`: the times it visits from noise to data, `schedule.clean` the last;
    - `run(prior, guide, x_t, times, key)`: the image, from `x_t` at `times[0]`.
    """

    @abc.abstractmethod
    def times(self, schedule: AbstractSchedule) -> np.ndarray:
        """The times from noise to data."""

    @abc.abstractmethod
    def run(
        self, prior: Prior, guide: Guide, x_t: Float[Array, "*x"], times: np.ndarray, key: PRNGKeyArray
    ) -> Float[Array, "*x"]:
        """The image at the end of the way from `x_t`."""


class AbstractStepSampler(AbstractSampler):
    """`x_next = a' x0 + kept e + fresh noise`, from one time to the next; `a'^2 = alpha_bar(t_next)`.

    `x0` is the guided estimate of the image. `e` is the noise that the estimate of the prior leaves in `x_t`; or, for
    a guide that `is_score`, the one that the guided estimate leaves. The last step leads to the image without noise,
    which is the guided estimate itself.

    Implementing such a sampler:

    - `num_steps` and `own_times` are fields;
    - `scales(schedule, t, t_next)`: `kept` and `fresh`;
    - `visits(times)`, if it goes back and forth.
    """

    num_steps: eqx.AbstractVar[int]
    own_times: eqx.AbstractVar[tuple[float, ...] | None]

    def times(self, schedule: AbstractSchedule) -> np.ndarray:
        """See `AbstractSampler`."""
        if self.own_times is None:
            return schedule.times(self.num_steps)
        times = np.asarray(self.own_times, float)
        if len(times) < 2 or times[-1] != schedule.clean or np.any(np.diff(times) >= 0) or times[0] > schedule.last:
            raise ValueError(
                f"times={self.own_times} do not end at the data: expected decreasing times from at most "
                f"{schedule.last:g} to {schedule.clean:g}, the image without noise."
            )
        return times

    def visits(self, times: np.ndarray) -> np.ndarray:
        """The times in the order in which they are visited; where they rise, noise is added again."""
        return times

    @abc.abstractmethod
    def scales(self, schedule: AbstractSchedule, t: Scalar, t_next: Scalar) -> tuple[Scalar, Scalar]:
        """What of the noise is `kept`, and the standard deviation of the `fresh` noise."""

    def run(
        self, prior: Prior, guide: Guide, x_t: Float[Array, "*x"], times: np.ndarray, key: PRNGKeyArray
    ) -> Float[Array, "*x"]:
        """See `AbstractSampler`."""
        visits, schedule = self.visits(times), prior.schedule
        t, t_next = (jnp.asarray(part, prior.dtype) for part in (visits[:-1], visits[1:]))
        keys = jax.random.split(key, len(t))
        is_score = getattr(guide, "is_score", False)

        def down(x_t: Array, t: Array, t_next: Array, noise: Array, key: PRNGKeyArray) -> tuple[Array, Array]:
            (signal, spread), signal_next = schedule.scales(t), schedule.scales(t_next)[0]
            kept, fresh = self.scales(schedule, t, t_next)
            gain = signal_next - kept * signal / spread if is_score else signal_next
            denoise = Denoise(prior, x_t, t, gain)
            x0 = guide(denoise, x_t, t, key)
            left = (x_t - signal * (x0 if is_score else denoise.free)) / spread
            return signal_next * x0 + kept * left + fresh * noise, x0

        def body(carry: tuple[Array, Array], row: Any) -> tuple[tuple[Array, Array], None]:
            (x_t, x0), (t, t_next, key) = carry, row
            noise_key, guide_key = jax.random.split(key)
            noise = jax.random.normal(noise_key, x_t.shape, x_t.dtype)

            def up() -> tuple[Array, Array]:
                signal, spread = schedule.scales(t_next)
                return signal * x0 + spread * noise, x0

            if not np.any(np.diff(visits) > 0):
                return down(x_t, t, t_next, noise, guide_key), None
            return jax.lax.cond(t_next > t, up, lambda: down(x_t, t, t_next, noise, guide_key)), None

        (_, x0), _ = jax.lax.scan(body, (x_t, jnp.zeros_like(x_t)), (t, t_next, keys))
        return x0


def _check_steps(name: str, num_steps: int, times: Any) -> tuple[float, ...] | None:
    if num_steps < 1:
        raise ValueError(f"{name}: num_steps={num_steps}, expected a positive number.")
    return None if times is None else tuple(float(t) for t in times)


class DDIM(AbstractStepSampler):
    """`x_next = a' x0 + sqrt(s'^2 - r^2) e + r noise`, `e = (x_t - a x0) / s`, `a^2 = 1 - s^2 = alpha_bar`.

    With `eta = 0` the way is deterministic, with `eta = 1` it is that of `DDPM`; `r` is eta times the spread there.

    Args:
        num_steps: evaluations of the denoiser.
        eta: between 0 and 1.
        times: the times themselves, in place of `num_steps` equidistant ones: decreasing, the last the clean one.

    Raises:
        ValueError: a number that cannot be; and, when it is used, times that do not end at the data.

    References:
        J. Song, C. Meng, S. Ermon, "Denoising Diffusion Implicit Models", 2021, arXiv:2010.02502.
    """

    num_steps: int = eqx.field(static=True)
    eta: float = eqx.field(static=True)
    own_times: tuple[float, ...] | None = eqx.field(static=True)

    def __init__(self, num_steps: int = 100, eta: float | int = 0.0, *, times: Any = None):
        if not 0 <= eta <= 1:
            raise ValueError(f"DDIM: eta={eta}, expected between 0 and 1.")
        self.own_times = _check_steps("DDIM", num_steps, times)
        self.num_steps, self.eta = num_steps, float(eta)

    def scales(self, schedule: AbstractSchedule, t: Scalar, t_next: Scalar) -> tuple[Scalar, Scalar]:
        """See `AbstractStepSampler`."""
        spread, spread_next = schedule.scales(t)[1], schedule.scales(t_next)[1]
        if self.eta == 0:
            return spread_next, jnp.zeros_like(spread_next)
        step_variance = -jnp.expm1(schedule.log_alpha_bar(t) - schedule.log_alpha_bar(t_next))
        fresh = self.eta * spread_next / spread * jnp.sqrt(step_variance)
        return jnp.sqrt(jnp.maximum(spread_next**2 - fresh**2, 0)), fresh


def DDPM(num_steps: int = 1000, *, times: Any = None) -> DDIM:  # noqa: N802 (the name of a sampler)
    """Ancestral sampling, `x_next ~ q(x_next | x_t, x0)`: `DDIM` with `eta = 1`.

    Args:
        num_steps: evaluations of the denoiser.
        times: see `DDIM`.

    References:
        J. Ho, A. Jain, P. Abbeel, "Denoising Diffusion Probabilistic Models", 2020, arXiv:2006.11239.
    """
    return DDIM(num_steps, 1.0, times=times)


class DDNM(AbstractStepSampler):
    """`x_next = a' x0 + c e + r noise`, `r^2 = 1 - a^2 / a'^2`, `c^2 = max(0, 1 - a'^2 - r^2)`, with time travel.

    The sampler of the published code of the SPNN paper. Over long steps close to the image `r^2` exceeds `1 - a'^2`,
    and the step adds more noise than belongs there; `c` is zero then.

    Time travel repeats stretches of `travel_length` steps, each from its end with fresh noise added, `travel_repeat`
    times in all. A guide that acts on single estimates can thus make itself heard.

    Args:
        num_steps: steps of a way without time travel.
        travel_length: steps in a stretch.
        travel_repeat: how often a stretch is gone; once is no time travel.
        times: see `DDIM`.

    Raises:
        ValueError: numbers that are not positive; and, when it is used, times that do not end at the data.

    References:
        Y. Wang, J. Yu, J. Zhang, "Zero-Shot Image Restoration Using Denoising Diffusion Null-Space Model", 2023,
        arXiv:2212.00490.
        A. Lugmayr et al., "RePaint: Inpainting using Denoising Diffusion Probabilistic Models", 2022, arXiv:2201.09865.
        Y. Ehrlich, A. Berman, A. Shocher, "Pseudo-Invertible Neural Networks", 2026, arXiv:2602.06042.
    """

    num_steps: int = eqx.field(static=True)
    travel_length: int = eqx.field(static=True)
    travel_repeat: int = eqx.field(static=True)
    own_times: tuple[float, ...] | None = eqx.field(static=True)

    def __init__(self, num_steps: int = 100, travel_length: int = 1, travel_repeat: int = 1, *, times: Any = None):
        if travel_length < 1 or travel_repeat < 1:
            raise ValueError(
                f"DDNM: travel_length={travel_length}, travel_repeat={travel_repeat}; expected positive numbers, 1 and "
                "1 for no time travel."
            )
        self.own_times = _check_steps("DDNM", num_steps, times)
        self.num_steps, self.travel_length, self.travel_repeat = num_steps, travel_length, travel_repeat

    def visits(self, times: np.ndarray) -> np.ndarray:
        """See `AbstractStepSampler`."""
        total = len(times) - 1  # position p, noisy times before the clean one: times[total - 1 - p]
        left = dict.fromkeys(range(0, total - self.travel_length, self.travel_length), self.travel_repeat - 1)
        order, position = [], total
        while position > 0:
            position -= 1
            order.append(position)
            if left.get(position, 0) > 0:
                left[position] -= 1
                order += range(position + 1, position + self.travel_length + 1)
                position += self.travel_length
        return np.append(times[total - 1 - np.asarray(order)], times[-1])

    def scales(self, schedule: AbstractSchedule, t: Scalar, t_next: Scalar) -> tuple[Scalar, Scalar]:
        """See `AbstractStepSampler`."""
        step_variance = -jnp.expm1(schedule.log_alpha_bar(t) - schedule.log_alpha_bar(t_next))
        kept = jnp.maximum(schedule.scales(t_next)[1] ** 2 - step_variance, 0)
        return jnp.sqrt(kept), jnp.sqrt(step_variance)
