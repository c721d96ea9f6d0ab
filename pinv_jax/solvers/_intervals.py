"""Observations that are boxes in y-space: quantised or clipped data, and the back-projection onto them."""

from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ._check import concrete

Bound = Float[Array, "*y"] | float | int
Boxed = tuple[Float[Array, "*y"], Float[Array, "*y"]]


def quantisation_box(data: Float[Array, "*y"], step: Any) -> Boxed:
    """The `y` that a quantiser rounds to `data`: `(data - step / 2, data + step / 2)`.

    Args:
        data: multiples of `step`, as the quantiser returned them.
        step: the distance of neighbouring levels, positive.

    Raises:
        ValueError: `step` is not positive.
    """
    if concrete(step) and not np.all(np.asarray(step) > 0):
        raise ValueError(f"step={step}; expected the positive distance of two levels of the quantiser.")
    return data - step / 2, data + step / 2


def clipping_box(data: Float[Array, "*y"], low: Any, high: Any) -> Boxed:
    """The `y` that a sensor with the range `[low, high]` shows as `data`: `data` itself, or all beyond a saturated one.

    For a sensor that quantises too, take the hull of both boxes: `jnp.minimum` of the lower bounds, `jnp.maximum` of
    the upper ones.

    Args:
        data: what the sensor returned, within its range.
        low: the lower end of the range; a sensor without one has `-inf`.
        high: the upper end, or `inf`.

    Returns:
        `(lower, upper)`, `-inf` and `inf` where the data are clipped.

    Raises:
        ValueError: data outside the range, which no such sensor returns. Under `jax.jit`, where this cannot be known,
            both bounds are NaN there, and `solve` says `nonfinite_input`.
    """
    low, high = jnp.asarray(low, data.dtype), jnp.asarray(high, data.dtype)
    possible = (data >= low) & (data <= high)
    if concrete(data) and concrete(possible) and not np.all(possible | jnp.isnan(data)):
        raise ValueError(
            f"data lie between {np.min(data)} and {np.max(data)}, outside the range [{low}, {high}] that clips them: "
            "write the range in the units of data."
        )
    lower = jnp.where(data <= low, -jnp.inf, data)
    upper = jnp.where(data >= high, jnp.inf, data)
    return jnp.where(possible, lower, jnp.nan), jnp.where(possible, upper, jnp.nan)


def nearest(y: Float[Array, "*y"], lower: Bound, upper: Bound) -> Float[Array, "*y"]:
    """The point of the box that is nearest to `y`; NaN where the box is empty."""
    lower, upper = (jnp.broadcast_to(jnp.asarray(bound, y.dtype), y.shape) for bound in (lower, upper))
    return jnp.where(lower <= upper, jnp.clip(y, lower, upper), jnp.nan)
