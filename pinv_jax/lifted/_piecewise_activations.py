"""Piecewise linear activations, entry by entry: identity, ReLU, leaky ReLU, soft-threshold, clipping."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ._abstract_activation import AbstractEntrywise, Step


class Identity(AbstractEntrywise):
    """`sigma(z) = z`, `Psi = 0`: a layer without activation; `B(y, z) = |y - z|^2/2`."""

    def __call__(self, z: Float[Array, "*y"]) -> Float[Array, "*y"]:
        """`z`."""
        return z

    def prox(self, v: Float[Array, "*y"], step: Step) -> Float[Array, "*y"]:
        """`v`."""
        del step
        return v

    def preimage(self, u: Float[Array, "*y"]) -> Float[Array, "*y"]:
        """`u`."""
        return u

    def potential_entries(self, u: Float[Array, "*y"]) -> Float[Array, "*y"]:
        """`u^2/2`."""
        return 0.5 * u**2

    def conjugate_entries(self, z: Float[Array, "*y"]) -> Float[Array, "*y"]:
        """`z^2/2`."""
        return 0.5 * z**2

    def gap_entries(self, y: Float[Array, "*y"], z: Float[Array, "*y"]) -> Float[Array, "*y"]:
        """`(y - z)^2/2`."""
        return 0.5 * (y - z) ** 2


class ReLU(AbstractEntrywise):
    """`sigma(z) = max(z, 0)`, `Psi` the indicator of `u >= 0`; data below zero are not admissible."""

    def __call__(self, z: Float[Array, "*y"]) -> Float[Array, "*y"]:
        """`max(z, 0)`."""
        return jax.nn.relu(z)

    def bounds(self) -> tuple[float, float]:
        """`u >= 0`."""
        return 0.0, jnp.inf

    def prox(self, v: Float[Array, "*y"], step: Step) -> Float[Array, "*y"]:
        """`max(v, 0)`."""
        del step
        return jax.nn.relu(v)

    def preimage(self, u: Float[Array, "*y"]) -> Float[Array, "*y"]:
        """`u`."""
        return u

    def potential_entries(self, u: Float[Array, "*y"]) -> Float[Array, "*y"]:
        """`u^2/2`."""
        return 0.5 * u**2

    def conjugate_entries(self, z: Float[Array, "*y"]) -> Float[Array, "*y"]:
        """`max(z, 0)^2/2`."""
        return 0.5 * jax.nn.relu(z) ** 2

    def gap_entries(self, y: Float[Array, "*y"], z: Float[Array, "*y"]) -> Float[Array, "*y"]:
        """`(y - max(z, 0))^2/2 + y max(-z, 0)`."""
        return 0.5 * (y - jax.nn.relu(z)) ** 2 + y * jax.nn.relu(-z)


class LeakyReLU(AbstractEntrywise):
    """`sigma(z) = z` for `z > 0`, else `slope z`; `Psi(u) = (1/slope - 1)/2 min(u, 0)^2`.

    Args:
        slope: of the negative side, in (0, 1]; outside of it the map is not proximal.

    Raises:
        ValueError: another slope.
    """

    slope: float = eqx.field(static=True)

    def __init__(self, slope: float | int = 0.01):
        if not 0 < slope <= 1:
            raise ValueError(
                f"LeakyReLU(slope={slope}) is not proximal; expected 0 < slope <= 1. For slope 0 use `ReLU()`; a "
                "steeper side can be had by scaling the weights around it."
            )
        self.slope = float(slope)

    @property
    def _excess(self) -> float:
        return 1 / self.slope - 1

    def __call__(self, z: Float[Array, "*y"]) -> Float[Array, "*y"]:
        """`z` for `z > 0`, else `slope z`."""
        return jnp.where(z > 0, z, self.slope * z)

    def prox(self, v: Float[Array, "*y"], step: Step) -> Float[Array, "*y"]:
        """`v` for `v > 0`, else `v / (1 + step (1/slope - 1))`."""
        return jnp.where(v > 0, v, v / (1 + step * self._excess))

    def preimage(self, u: Float[Array, "*y"]) -> Float[Array, "*y"]:
        """`u` for `u > 0`, else `u / slope`."""
        return jnp.where(u > 0, u, u / self.slope)

    def potential_entries(self, u: Float[Array, "*y"]) -> Float[Array, "*y"]:
        """`u^2/2 + (1/slope - 1)/2 min(u, 0)^2`."""
        return 0.5 * u**2 + 0.5 * self._excess * jnp.minimum(u, 0) ** 2

    def conjugate_entries(self, z: Float[Array, "*y"]) -> Float[Array, "*y"]:
        """`max(z, 0)^2/2 + slope/2 min(z, 0)^2`."""
        return 0.5 * z * self(z)

    def gap_entries(self, y: Float[Array, "*y"], z: Float[Array, "*y"]) -> Float[Array, "*y"]:
        """`(y - p)^2/2 + k/2 (y_- - p_-)^2 - k p_- y_+`, with `k = 1/slope - 1`, `p = sigma(z)`."""
        p, k = self(z), self._excess
        low = jnp.minimum(p, 0)
        return 0.5 * (y - p) ** 2 + 0.5 * k * (jnp.minimum(y, 0) - low) ** 2 - k * low * jnp.maximum(y, 0)


class SoftThreshold(AbstractEntrywise):
    """`sigma(z) = sign(z) max(|z| - threshold, 0)`, `Psi(u) = threshold |u|`: codes with exact zeros.

    Args:
        threshold: not negative.

    Raises:
        ValueError: a negative threshold.
    """

    threshold: float = eqx.field(static=True)

    def __init__(self, threshold: float | int):
        if not threshold >= 0:
            raise ValueError(f"SoftThreshold(threshold={threshold}); expected threshold >= 0.")
        self.threshold = float(threshold)

    def __call__(self, z: Float[Array, "*y"]) -> Float[Array, "*y"]:
        """`sign(z) max(|z| - threshold, 0)`."""
        return self.prox(z, 1)

    def prox(self, v: Float[Array, "*y"], step: Step) -> Float[Array, "*y"]:
        """Soft-thresholding by `step * threshold`."""
        level = step * self.threshold
        return v - jnp.clip(v, -level, level)

    def preimage(self, u: Float[Array, "*y"]) -> Float[Array, "*y"]:
        """`u + threshold sign(u)`."""
        return u + self.threshold * jnp.sign(u)

    def potential_entries(self, u: Float[Array, "*y"]) -> Float[Array, "*y"]:
        """`u^2/2 + threshold |u|`."""
        return 0.5 * u**2 + self.threshold * jnp.abs(u)

    def conjugate_entries(self, z: Float[Array, "*y"]) -> Float[Array, "*y"]:
        """`max(|z| - threshold, 0)^2/2`."""
        return 0.5 * self(z) ** 2

    def gap_entries(self, y: Float[Array, "*y"], z: Float[Array, "*y"]) -> Float[Array, "*y"]:
        """`(y - p)^2/2 + |y| (threshold - sign(y) clip(z, -threshold, threshold))`, `p = sigma(z)`."""
        dual = jnp.clip(z, -self.threshold, self.threshold)
        return 0.5 * (y - self(z)) ** 2 + jnp.abs(y) * (self.threshold - jnp.sign(y) * dual)


class Clip(AbstractEntrywise):
    """`sigma(z) = min(max(z, lower), upper)`, `Psi` the indicator of the interval.

    The hard tanh is `Clip(-1, 1)`, the ReLU6 is `Clip(0, 6)`.

    Args:
        lower, upper: the interval; one of them may be infinite.

    Raises:
        ValueError: an empty interval.
    """

    lower: float = eqx.field(static=True)
    upper: float = eqx.field(static=True)

    def __init__(self, lower: float | int = -1.0, upper: float | int = 1.0):
        if not lower < upper:
            raise ValueError(f"Clip(lower={lower}, upper={upper}); expected lower < upper. Were they swapped?")
        self.lower, self.upper = float(lower), float(upper)

    def __call__(self, z: Float[Array, "*y"]) -> Float[Array, "*y"]:
        """`min(max(z, lower), upper)`."""
        return jnp.clip(z, self.lower, self.upper)

    def bounds(self) -> tuple[float, float]:
        """The interval."""
        return self.lower, self.upper

    def prox(self, v: Float[Array, "*y"], step: Step) -> Float[Array, "*y"]:
        """`sigma(v)` for every step."""
        del step
        return self(v)

    def preimage(self, u: Float[Array, "*y"]) -> Float[Array, "*y"]:
        """`u`."""
        return u

    def potential_entries(self, u: Float[Array, "*y"]) -> Float[Array, "*y"]:
        """`u^2/2`."""
        return 0.5 * u**2

    def conjugate_entries(self, z: Float[Array, "*y"]) -> Float[Array, "*y"]:
        """`z p - p^2/2`, `p = sigma(z)`."""
        p = self(z)
        return p * (z - 0.5 * p)

    def gap_entries(self, y: Float[Array, "*y"], z: Float[Array, "*y"]) -> Float[Array, "*y"]:
        """`(y - p)^2/2 + (p - z)(y - p)`, `p = sigma(z)`."""
        p = self(z)
        return 0.5 * (y - p) ** 2 + (p - z) * (y - p)
