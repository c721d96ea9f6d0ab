"""Random two-phase fields: blobs, fronts and rings of +1 in a background of -1."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Key

_MAX_BLOBS = 5


class Interfaces2D(eqx.Module):
    """Two-phase fields on the unit square; see `interfaces_2d`.

    Args:
        points: the grid of one axis.
    """

    points: Float[Array, " n"]

    def __call__(self, key: Key[Array, ""]) -> Float[Array, "n n"]:
        """One random field."""
        family_key, blob_key, front_key, ring_key, noise_key = jax.random.split(key, 5)
        num_points, dtype = self.points.shape[0], self.points.dtype
        family = jax.random.randint(family_key, (), 0, 4)  # blobs, a front, a ring, all three
        grid = jnp.stack(jnp.meshgrid(self.points, self.points, indexing="ij"))
        mixed = family == 3
        blobs = _blobs(grid, key=blob_key) & ((family == 0) | mixed)
        front = _front(grid, key=front_key)
        drawn = (jnp.abs(front) > 0.4) & ((family == 1) | mixed)
        ring = _ring(grid, key=ring_key) & ((family == 2) | mixed)
        field = jnp.where(blobs, 1.0, -1.0)
        field = jnp.where(ring, 1.0, jnp.where(drawn, front, field.astype(dtype)))
        return jnp.clip(field + 0.05 * jax.random.normal(noise_key, (num_points, num_points), dtype), -1.0, 1.0)


def interfaces_2d(num_points: int = 32, *, dtype: DTypeLike | None = None) -> Interfaces2D:
    """The published initial states of the Allen-Cahn equation: +1 on random shapes, -1 elsewhere, slightly noisy.

    One of four families, equally likely: blobs; a front; a ring; all three, later ones over earlier ones.

    - Blobs: two to five, each a disc of radius U[.05, .16], an ellipse of semi-axes U[.05, .18], or a rectangle with
      sides U[.07, .22], equally likely; centres U[.15, .85]^2, any orientation.
    - Front: `tanh(25 d)`, where that is beyond 0.4 in magnitude, with `d` the signed distance to a line through a
      point of U[.3, .7]^2 in any direction.
    - Ring: +1 where `exp(-(r - r0)^2 / (2 w^2)) > 0.35`, `r` the distance to a centre in U[.3, .7]^2, `r0` in
      U[.10, .24], `w` in U[.02, .05].

    Then `N(0, 0.05^2)` is added at every point and the field clipped to [-1, 1]. The shapes do not continue across the
    edges of the square. Ranges and thresholds are the published ones; what is not specified there is chosen here so
    that the statistics of `pde.AllenCahn2D` come out: one front and one ring, where they lie, the profile of the ring,
    and the order of the mixed family.

    Args:
        num_points: points `i / num_points` along either axis.
        dtype: of the samples; the default float by default.

    References:
        A. L. Kachhadiya, "Local Inverse Geometry Can Be Amortized", 2026, arXiv:2605.13068 (Allen-Cahn-2D).
    """
    return Interfaces2D(
        jnp.asarray(np.arange(num_points) / num_points, jnp.result_type(float if dtype is None else dtype))
    )


def _blobs(grid: Float[Array, "2 n n"], *, key: Array) -> Bool[Array, "n n"]:
    """Where the union of the blobs is."""

    def one(key: Array) -> Bool[Array, "n n"]:
        kind_key, centre_key, angle_key, size_key = jax.random.split(key, 4)
        across, along = _rotated(grid, centre_key, angle_key, 0.15, 0.85)
        low, high = jnp.asarray([[0.05, 0.05, 0.07], [0.16, 0.18, 0.22]], grid.dtype)
        sizes = low[:, None] + (high - low)[:, None] * jax.random.uniform(size_key, (3, 2), grid.dtype)
        (radius, _), (first, second), (width, height) = sizes
        disc = across**2 + along**2 < radius**2
        ellipse = (across / first) ** 2 + (along / second) ** 2 < 1
        rectangle = (2 * jnp.abs(across) < width) & (2 * jnp.abs(along) < height)
        kind = jnp.broadcast_to(jax.random.randint(kind_key, (), 0, 3), disc.shape)
        return jax.lax.select_n(kind, disc, ellipse, rectangle)

    count_key, key = jax.random.split(key)
    count = jax.random.randint(count_key, (), 2, _MAX_BLOBS + 1)
    used = jnp.arange(_MAX_BLOBS) < count
    return jnp.any(jax.vmap(one)(jax.random.split(key, _MAX_BLOBS)) & used[:, None, None], axis=0)


def _front(grid: Float[Array, "2 n n"], *, key: Array) -> Float[Array, "n n"]:
    """A smooth step across a random line."""
    centre_key, angle_key = jax.random.split(key)
    return jnp.tanh(25 * _rotated(grid, centre_key, angle_key, 0.3, 0.7)[0])


def _ring(grid: Float[Array, "2 n n"], *, key: Array) -> Bool[Array, "n n"]:
    """Where a random ring is."""
    centre_key, radius_key, width_key = jax.random.split(key, 3)
    centre = jax.random.uniform(centre_key, (2, 1, 1), grid.dtype, 0.3, 0.7)
    radius = jax.random.uniform(radius_key, (), grid.dtype, 0.10, 0.24)
    width = jax.random.uniform(width_key, (), grid.dtype, 0.02, 0.05)
    distance = jnp.sqrt(jnp.sum((grid - centre) ** 2, axis=0))
    return jnp.exp(-((distance - radius) ** 2) / (2 * width**2)) > 0.35


def _rotated(
    grid: Float[Array, "2 n n"], centre_key: Array, angle_key: Array, low: float, high: float
) -> tuple[Float[Array, "n n"], Float[Array, "n n"]]:
    """Coordinates relative to a random centre in `[low, high]^2`, along axes of a random direction."""
    first, second = grid - jax.random.uniform(centre_key, (2, 1, 1), grid.dtype, low, high)
    angle = jax.random.uniform(angle_key, (), grid.dtype, 0.0, 2 * np.pi)
    return (
        jnp.cos(angle) * first + jnp.sin(angle) * second,
        jnp.cos(angle) * second - jnp.sin(angle) * first,
    )
