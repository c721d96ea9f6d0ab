"""Random fields of partial differential equations on `16 x 16` points: two kinds of rock, and a few vortices."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Key

from ..data import periodic_field_2d

SIDE = 16


class Rocks(eqx.Module):
    """Draws two kinds of rock, -1 and 1, with a smooth transition: a normal field through a steep sigmoid."""

    field: Callable[..., Any]

    def __call__(self, key: Key[Array, ""]) -> Float[Array, " n"]:
        """One field, flat."""
        return jnp.ravel(jnp.tanh(4 * self.field(key)[:SIDE, :SIDE]))


class Vortices(eqx.Module):
    """Draws four vortices of either sense on the torus, without mean vorticity."""

    points: Float[Array, " n"]

    def __call__(self, key: Key[Array, ""]) -> Float[Array, " n"]:
        """One field, flat."""
        place_key, width_key, sense_key = jax.random.split(key, 3)
        dtype = self.points.dtype
        centres = jax.random.uniform(place_key, (4, 2, 1), dtype)
        widths = jax.random.uniform(width_key, (4, 1, 1), dtype, 0.09, 0.14)
        offsets = (self.points[None, None] - centres + 0.5) % 1 - 0.5
        lobes = jnp.exp(-0.5 * (offsets / widths) ** 2)
        senses = jax.random.rademacher(sense_key, (4, 1, 1), dtype)
        field = jnp.sum(senses * lobes[:, 0, :, None] * lobes[:, 1, None, :], axis=0)
        return jnp.ravel(field - jnp.mean(field))


def rocks(dtype: DTypeLike) -> Rocks:
    """Samples of a log-permeability."""
    return Rocks(periodic_field_2d(2 * SIDE, 0.2, dtype=dtype))  # pyright: ignore[reportCallIssue]


def vortices(dtype: DTypeLike) -> Vortices:
    """Samples of a vorticity."""
    return Vortices(jnp.asarray(np.arange(SIDE) / SIDE, dtype))  # pyright: ignore[reportCallIssue]


class AsImage(eqx.Module):
    """Draws a flat field of `SIDE x SIDE` points as an image of one channel."""

    field: Callable[..., Any]

    def __call__(self, key: Key[Array, ""]) -> Float[Array, "1 n n"]:
        """One field."""
        return self.field(key).reshape(1, SIDE, SIDE)
