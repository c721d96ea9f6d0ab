"""Grids and differences on the unit interval, square or cube with zero values at the ends."""

import jax
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


def second_difference(u: Float[Array, "*n"]) -> Float[Array, "*n"]:
    """`u_{j+1} - 2 u_j + u_{j-1}` with zeros beyond both ends, summed over the axes of `u`."""
    padded = jnp.pad(u, 1)  # once: a pad for each axis costs twice as much
    first, *others = [neighbour(padded, axis, side) for axis in range(u.ndim) for side in (1, -1)]
    total = first - 2 * u.ndim * u
    for other in others:
        total = total + other
    return total


def neighbour(padded: Float[Array, "*m"], axis: int, side: int) -> Float[Array, "*n"]:
    """`u_{j+side}` along `axis` for every `j`, from `u` with one more layer all around."""
    start = [1 + side * (other == axis) for other in range(padded.ndim)]
    return jax.lax.slice(padded, start, [first + size - 2 for first, size in zip(start, padded.shape, strict=True)])
