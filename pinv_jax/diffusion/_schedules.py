"""How much of the image is left at time t, `alpha_bar(t)`: linear and cosine schedules, discrete and continuous.

A noisy image is `x_t = sqrt(alpha_bar(t)) x_0 + sqrt(1 - alpha_bar(t)) noise`.
"""

import abc
import functools
import math

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float, PRNGKeyArray, Scalar

Time = Scalar | float | int


class AbstractSchedule(eqx.Module):
    """A schedule of noise.

    Implementing a schedule:

    - `log_alpha_bar(t)`, zero at `clean` and decreasing to `last`, by operations that jax can trace;
    - `clean`, the time of the image without noise, `first`, a time with hardly any, and `last`, the noisiest time;
    - `times(num_steps)`, from a noisy time down to `clean`;
    - `draw(key, dtype)`, a random noisy time for training.
    """

    @property
    @abc.abstractmethod
    def clean(self) -> float:
        """The time of the image without noise."""

    @property
    @abc.abstractmethod
    def first(self) -> float:
        """A time with hardly any noise, where the probability-flow ODE ends."""

    @property
    @abc.abstractmethod
    def last(self) -> float:
        """The noisiest time."""

    @abc.abstractmethod
    def log_alpha_bar(self, t: Time) -> Scalar:
        """`log(alpha_bar(t))`."""

    @abc.abstractmethod
    def times(self, num_steps: int) -> np.ndarray:
        """`num_steps` times from noise to data, and `clean` after them."""

    @abc.abstractmethod
    def draw(self, key: PRNGKeyArray, dtype: DTypeLike) -> Scalar:
        """A random noisy time, uniform."""

    def alpha_bar(self, t: Time) -> Scalar:
        """The share of the variance of `x_t` that the image has."""
        return jnp.exp(self.log_alpha_bar(t))

    def scales(self, t: Time) -> tuple[Scalar, Scalar]:
        """`sqrt(alpha_bar)` and `sqrt(1 - alpha_bar)`, both accurate at either end."""
        log = self.log_alpha_bar(t)
        return jnp.exp(0.5 * log), jnp.sqrt(-jnp.expm1(log))

    def check(self) -> None:
        """Raises a `ValueError` for a schedule that does not lead from noise to data."""
        ends = [float(self.alpha_bar(t)) for t in (self.clean, self.last)]
        if not abs(ends[0] - 1) <= 1e-6:
            raise ValueError(
                f"{type(self).__name__} does not end at the data: alpha_bar({self.clean:g}) = {ends[0]:.4g}, expected "
                "1. Make log_alpha_bar zero at the time `clean`."
            )
        if not 0 < ends[1] <= 0.05:
            raise ValueError(
                f"{type(self).__name__} does not begin at noise: alpha_bar({self.last:g}) = {ends[1]:.4g}, expected "
                "above 0 and at most 0.05. With fewer steps take larger ones, for LinearSchedule(num_steps) "
                "start=0.1 / num_steps and end=20 / num_steps."
            )


class AbstractDiscreteSchedule(AbstractSchedule):
    """A table of `alpha_bar` at the times `0, ..., num_steps - 1`; the image without noise has the time -1.

    Between two of them, which the probability-flow ODE asks for, `log(alpha_bar)` is linear.

    Implementing a discrete schedule:

    - `alpha_bars()`, a float64 NumPy array, and `check` at the end of `__init__`.
    """

    @abc.abstractmethod
    def alpha_bars(self) -> np.ndarray:
        """`alpha_bar` at `0, ..., num_steps - 1`."""

    @property
    def clean(self) -> float:
        """See `AbstractSchedule`."""
        return -1.0

    @property
    def first(self) -> float:
        """See `AbstractSchedule`."""
        return 0.0

    @property
    def last(self) -> float:
        """See `AbstractSchedule`."""
        return len(self.alpha_bars()) - 1.0

    def log_alpha_bar(self, t: Time) -> Scalar:
        """See `AbstractSchedule`."""
        floating = isinstance(t, jnp.ndarray) and jnp.issubdtype(t.dtype, jnp.floating)
        t = jnp.asarray(t, None if floating else float)
        logs = jnp.asarray(np.concatenate([[0.0], np.log(self.alpha_bars())]), t.dtype)
        before = jnp.clip(jnp.floor(t), -1, len(logs) - 2)
        index, share = before.astype(jnp.int32) + 1, t - before
        return (1 - share) * logs[index] + share * logs[jnp.minimum(index + 1, len(logs) - 1)]

    def times(self, num_steps: int) -> np.ndarray:
        """See `AbstractSchedule`: every so manieth time, `0` the last before `clean`."""
        total = len(self.alpha_bars())
        if not 1 <= num_steps <= total:
            raise ValueError(f"num_steps={num_steps}, expected between 1 and the {total} steps of the schedule.")
        return np.append((np.arange(num_steps) * total // num_steps)[::-1], -1).astype(float)

    def draw(self, key: PRNGKeyArray, dtype: DTypeLike) -> Scalar:
        """See `AbstractSchedule`."""
        return jax.random.randint(key, (), 0, len(self.alpha_bars())).astype(dtype)

    def check(self) -> None:
        """See `AbstractSchedule`."""
        bars = self.alpha_bars()
        if not bars[0] >= 0.9:
            raise ValueError(
                f"{type(self).__name__} does not end at the data: alpha_bar(0) = {bars[0]:.4g}, expected at least 0.9. "
                "Begin with a smaller step."
            )
        if not (np.all(np.diff(bars) < 0) and bars[-1] > 0 and bars[0] < 1):
            raise ValueError(f"{type(self).__name__}: alpha_bar must decrease from below 1 to above 0, got {bars}.")
        super().check()


@functools.cache
def _linear(num_steps: int, start: float, end: float) -> np.ndarray:
    return np.cumprod(1 - np.linspace(start, end, num_steps))


@functools.cache
def _cosine(num_steps: int, offset: float) -> np.ndarray:
    share = (np.arange(num_steps + 1) / num_steps + offset) / (1 + offset)
    levels = np.cos(0.5 * np.pi * share) ** 2
    return np.cumprod(np.maximum(levels[1:] / levels[:-1], 1e-3))


class LinearSchedule(AbstractDiscreteSchedule):
    """`alpha_bar(t) = prod_{s <= t} (1 - b_s)` with `b` growing linearly.

    Args:
        num_steps: number of noisy times.
        start: the first `b`.
        end: the last `b`.

    Raises:
        ValueError: not `0 < start <= end < 1`, or a schedule that does not lead from noise to data.

    References:
        J. Ho, A. Jain, P. Abbeel, "Denoising Diffusion Probabilistic Models", 2020, arXiv:2006.11239.
    """

    num_steps: int = eqx.field(static=True)
    start: float = eqx.field(static=True)
    end: float = eqx.field(static=True)

    def __init__(self, num_steps: int = 1000, start: float = 1e-4, end: float = 0.02):
        if num_steps < 1 or not 0 < start <= end < 1:
            raise ValueError(
                f"LinearSchedule: num_steps={num_steps}, start={start}, end={end}; expected a positive number of "
                "steps and 0 < start <= end < 1."
            )
        self.num_steps, self.start, self.end = num_steps, start, end
        self.check()

    def alpha_bars(self) -> np.ndarray:
        """See `AbstractDiscreteSchedule`."""
        return _linear(self.num_steps, self.start, self.end)


class CosineSchedule(AbstractDiscreteSchedule):
    """`alpha_bar(t) = c(t + 1) / c(0)`, `c(s) = cos(pi / 2 (s / num_steps + offset) / (1 + offset))^2`.

    No step leaves less than a thousandth, as published.

    Args:
        num_steps: number of noisy times.
        offset: keeps the first steps from being too small.

    Raises:
        ValueError: too few steps, or an offset that is not positive.

    References:
        A. Nichol, P. Dhariwal, "Improved Denoising Diffusion Probabilistic Models", 2021, arXiv:2102.09672.
    """

    num_steps: int = eqx.field(static=True)
    offset: float = eqx.field(static=True)

    def __init__(self, num_steps: int = 1000, offset: float = 0.008):
        if num_steps < 1 or not offset > 0:
            raise ValueError(f"CosineSchedule: num_steps={num_steps}, offset={offset}; expected positive numbers.")
        self.num_steps, self.offset = num_steps, offset
        self.check()

    def alpha_bars(self) -> np.ndarray:
        """See `AbstractDiscreteSchedule`."""
        return _cosine(self.num_steps, self.offset)


class AbstractContinuousSchedule(AbstractSchedule):
    """A schedule of times between 0, the image, and at most 1, noise.

    Implementing a continuous schedule:

    - `log_alpha_bar(t)`, and `last` if it is not 1.
    """

    @property
    def clean(self) -> float:
        """See `AbstractSchedule`."""
        return 0.0

    @property
    def first(self) -> float:
        """See `AbstractSchedule`."""
        return 1e-3

    @property
    def last(self) -> float:
        """See `AbstractSchedule`."""
        return 1.0

    def times(self, num_steps: int) -> np.ndarray:
        """See `AbstractSchedule`: equidistant."""
        if num_steps < 1:
            raise ValueError(f"num_steps={num_steps}, expected a positive number.")
        return self.last * np.arange(num_steps, -1, -1) / num_steps

    def draw(self, key: PRNGKeyArray, dtype: DTypeLike) -> Scalar:
        """See `AbstractSchedule`."""
        return jax.random.uniform(key, (), jnp.dtype(dtype), 0.0, self.last)


class ContinuousLinearSchedule(AbstractContinuousSchedule):
    """`log(alpha_bar(t)) = -start t - (end - start) t^2 / 2`, the limit of `LinearSchedule` for many steps.

    Args:
        start: rate of the noise at time 0.
        end: rate at time 1.

    Raises:
        ValueError: not `0 <= start <= end`, or a schedule that does not begin at noise.

    References:
        Y. Song et al., "Score-Based Generative Modeling through Stochastic Differential Equations", 2021,
        arXiv:2011.13456.
    """

    start: float = eqx.field(static=True)
    end: float = eqx.field(static=True)

    def __init__(self, start: float = 0.1, end: float = 20.0):
        if not 0 <= start <= end:
            raise ValueError(f"ContinuousLinearSchedule: start={start}, end={end}; expected 0 <= start <= end.")
        self.start, self.end = start, end
        self.check()

    def log_alpha_bar(self, t: Time) -> Scalar:
        """See `AbstractSchedule`."""
        t = jnp.asarray(t)
        return -t * (self.start + 0.5 * (self.end - self.start) * t)


class ContinuousCosineSchedule(AbstractContinuousSchedule):
    """`alpha_bar(t) = c(t) / c(0)`, `c(t) = cos(pi / 2 (t + offset) / (1 + offset))^2`, up to `t = 0.9946`.

    Beyond, where the cosine ends, nothing of the image is left and the ODE is singular.

    Args:
        offset: as in `CosineSchedule`.

    References:
        A. Nichol, P. Dhariwal, "Improved Denoising Diffusion Probabilistic Models", 2021, arXiv:2102.09672.
        C. Lu et al., "DPM-Solver", 2022, arXiv:2206.00927, from which the last time is.
    """

    offset: float = eqx.field(static=True)

    def __init__(self, offset: float = 0.008):
        if not offset > 0:
            raise ValueError(f"ContinuousCosineSchedule: offset={offset}, expected a positive number.")
        self.offset = offset
        self.check()

    @property
    def last(self) -> float:
        """See `AbstractSchedule`."""
        return 0.9946

    def log_alpha_bar(self, t: Time) -> Scalar:
        """See `AbstractSchedule`."""
        angle, first = (0.5 * math.pi * (s + self.offset) / (1 + self.offset) for s in (jnp.asarray(t), 0.0))
        return 2 * (jnp.log(jnp.cos(angle)) - math.log(math.cos(first)))


def noised(schedule: AbstractSchedule, x: Float[Array, "*x"], t: Time, noise: Float[Array, "*x"]) -> Float[Array, "*x"]:
    """`x_t = sqrt(alpha_bar(t)) x + sqrt(1 - alpha_bar(t)) noise`."""
    signal, spread = schedule.scales(jnp.asarray(t, x.dtype))
    return signal * x + spread * noise
