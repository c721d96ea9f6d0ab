"""Grids and differences on the unit interval with zero values at both ends."""

import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float


def interior_grid(num_points: int, dtype: DTypeLike | None = None) -> Float[Array, " n"]:
    """The `num_points` points `j / (num_points + 1)`, `j = 1, ..., num_points`: both ends of (0, 1) left out."""
    points = np.arange(1, num_points + 1) / (num_points + 1)
    return jnp.asarray(points, jnp.result_type(float if dtype is None else dtype))


def sine_basis(num_points: int, num_modes: int, dtype: DTypeLike | None = None) -> Float[Array, "n k"]:
    """Orthonormal columns `sqrt(2 / (n + 1)) sin(pi k s_j)` on the interior grid, `k = 1, ..., num_modes`.

    Raises:
        ValueError: more modes than points.
    """
    return jnp.asarray(sines_on_host(num_points, num_modes), jnp.result_type(float if dtype is None else dtype))


def sines_on_host(num_points: int, num_modes: int) -> np.ndarray:
    """`sine_basis` in float64 on the host, for constants that are rounded once, at the end."""
    if num_modes > num_points:
        raise ValueError(
            f"sine_basis expected at most as many modes as grid points, got {num_modes} modes on {num_points} points."
        )
    angle = np.pi * np.outer(np.arange(1, num_points + 1), np.arange(1, num_modes + 1)) / (num_points + 1)
    return np.sqrt(2.0 / (num_points + 1)) * np.sin(angle)


def second_difference(u: Float[Array, " n"]) -> Float[Array, " n"]:
    """`u_{j+1} - 2 u_j + u_{j-1}` with zeros beyond both ends."""
    padded = jnp.pad(u, 1)
    return padded[2:] - 2 * u + padded[:-2]
