"""Projections for `Problem(project=...)`, those of `optax.projections` with their sets filled in."""

from typing import Any

import equinox as eqx
import optax
from jaxtyping import Array, Float


class Box(eqx.Module):
    """The nearest point with `lower <= x <= upper`, entry by entry.

    Args:
        lower, upper: scalars, or arrays shaped like `x`.
    """

    lower: Any
    upper: Any

    def __call__(self, x: Float[Array, "*x"]) -> Float[Array, "*x"]:
        """Projects `x`."""
        return optax.projections.projection_box(x, self.lower, self.upper)


class Ball(eqx.Module):
    """The nearest point with Euclidean norm at most `radius`."""

    radius: Any = 1.0

    def __call__(self, x: Float[Array, "*x"]) -> Float[Array, "*x"]:
        """Projects `x`."""
        return optax.projections.projection_l2_ball(x, self.radius)


class Simplex(eqx.Module):
    """The nearest vector of non-negative entries that sum to `total`."""

    total: Any = 1.0

    def __call__(self, x: Float[Array, " n"]) -> Float[Array, " n"]:
        """Projects `x`."""
        return optax.projections.projection_simplex(x, self.total)
