"""Statistics of images as exact surjections: quantiles of colours, energies of coarse waves, moments of channels."""

import math
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from ..maps import AbstractSurjection


class Quantiles(AbstractSurjection[Any]):
    """`num` quantiles of every channel: its histogram, as the values between which equal shares of the pixels lie.

    `z` is the order of the pixels, and where each one lies between the two quantiles next to it; below the lowest and
    above the highest one, by how much. So `merge` matches the histogram: every pixel keeps its rank. Data have to
    rise along the last axis; from others `merge` makes an image with other quantiles.

    The order is no array of floats, so that only `maps.Natural` of this map can be back-projected onto.

    Args:
        shape: of `x`, `(channels, height, width)`.
        num: quantiles per channel, at the levels `(k + 1/2) / num`.
        dtype: of `x`; the default float by default.
    """

    shape: tuple[int, ...] = eqx.field(static=True)
    ranks: tuple[int, ...] = eqx.field(static=True)
    dtype: np.dtype = eqx.field(static=True)

    def __init__(self, shape: tuple[int, ...], num: int, dtype: DTypeLike | None = None):
        pixels = math.prod(shape[1:])
        self.shape, self.dtype = shape, jnp.result_type(float if dtype is None else dtype)
        self.ranks = tuple(int((k + 0.5) / num * pixels) for k in range(num))
        if len(set(self.ranks)) < num:
            raise ValueError(f"Quantiles expected no more quantiles than the {pixels} pixels of a channel, got {num}.")

    def _segments(self) -> tuple[Int[np.ndarray, " n"], Int[np.ndarray, " n"]]:
        """For every rank the quantile below it and that above it; the same one outside."""
        pixels, last = math.prod(self.shape[1:]), len(self.ranks) - 1
        below = np.searchsorted(self.ranks, np.arange(pixels), side="right") - 1
        return np.maximum(below, 0), np.where(below < 0, 0, np.minimum(below + 1, last))

    def split(self, x: Float[Array, "c h w"]) -> tuple[Float[Array, "c num"], Any]:
        """The quantiles; the order, and the places in between."""
        flat = x.reshape(self.shape[0], -1)
        order = jnp.argsort(flat, axis=1)
        values = jnp.take_along_axis(flat, order, axis=1)
        y = values[:, np.asarray(self.ranks)]
        below, above = self._segments()
        low, high = y[:, below], y[:, above]
        wide, inside = high > low, jnp.broadcast_to(below != above, low.shape)
        place = jnp.where(wide, (values - low) / jnp.where(wide, high - low, 1), jnp.where(inside, 0, values - low))
        return y, (order, place)

    def merge(self, y: Float[Array, "c num"], z: Any) -> Float[Array, "c h w"]:
        """Every pixel at its rank and place."""
        order, place = z
        below, above = self._segments()
        low, high = y[:, below], y[:, above]
        values = low + place * jnp.where(jnp.broadcast_to(below != above, low.shape), high - low, 1)
        back = jnp.argsort(order, axis=1)
        return jnp.take_along_axis(values, back, axis=1).reshape(self.shape)

    def section(self, y: Float[Array, "c num"]) -> Any:
        """The pixels in their order, each at the quantile below it."""
        order = jnp.broadcast_to(jnp.arange(math.prod(self.shape[1:])), (self.shape[0], math.prod(self.shape[1:])))
        return order, jnp.zeros(order.shape, y.dtype)

    def in_structure(self) -> jax.ShapeDtypeStruct:
        """Shape and dtype of `x`."""
        return jax.ShapeDtypeStruct(self.shape, self.dtype)


class BandEnergies(AbstractSurjection[Any]):
    """`log sum c^2` over the cosine coefficients of all channels with `max(i, j) = 1`, `2`, ... `num`.

    `z` are all coefficients, those of a band divided by their norm, so that `merge` scales the bands. An image without
    energy in a band has none to scale, and `-inf` for data.

    Args:
        shape: of `x`, `(channels, n, n)`.
        num: bands.
        dtype: of `x`; the default float by default.
    """

    shape: tuple[int, ...] = eqx.field(static=True)
    num: int = eqx.field(static=True)
    dtype: np.dtype = eqx.field(static=True)

    def __init__(self, shape: tuple[int, ...], num: int = 3, dtype: DTypeLike | None = None):
        if shape[1] != shape[2] or not 0 < num < shape[1]:
            raise ValueError(f"BandEnergies expected a square image and fewer bands than rows, got {shape} and {num}.")
        self.shape, self.num, self.dtype = shape, num, jnp.result_type(float if dtype is None else dtype)

    def _cosines(self, dtype: Any) -> Float[Array, "n n"]:
        n = self.shape[1]
        rows = np.cos(np.pi * np.outer(np.arange(n), np.arange(n) + 0.5) / n) * np.sqrt(2 / n)
        rows[0] /= np.sqrt(2)
        return jnp.asarray(rows, dtype)

    def _bands(self, dtype: Any) -> Float[Array, "num n n"]:
        index = np.maximum.outer(np.arange(self.shape[1]), np.arange(self.shape[1]))
        return jnp.asarray(index[None] == np.arange(1, self.num + 1)[:, None, None], dtype)

    def split(self, x: Float[Array, "c n n"]) -> tuple[Float[Array, " num"], Float[Array, "c n n"]]:
        """The logarithms of the energies, and the coefficients."""
        cosines, bands = self._cosines(x.dtype), self._bands(x.dtype)
        coefficients = cosines @ x @ cosines.T
        y = jnp.log(jnp.einsum("cij,bij->b", coefficients**2, bands))
        return y, coefficients * self._scales(-y, bands)

    def merge(self, y: Float[Array, " num"], z: Float[Array, "c n n"]) -> Float[Array, "c n n"]:
        """The image with its bands scaled."""
        cosines = self._cosines(z.dtype)
        return cosines.T @ (z * self._scales(y, self._bands(z.dtype))) @ cosines

    @staticmethod
    def _scales(y: Float[Array, " num"], bands: Float[Array, "num n n"]) -> Float[Array, "1 n n"]:
        """`exp(y / 2)` where its band is, else one."""
        return jnp.exp(jnp.einsum("b,bij->ij", 0.5 * y, bands))[None]

    def section(self, y: Float[Array, " num"]) -> Float[Array, "c n n"]:
        """No other coefficients, and in every band all equal."""
        bands = self._bands(y.dtype)
        sizes = self.shape[0] * jnp.sum(bands, axis=(1, 2))
        one = jnp.einsum("b,bij->ij", 1 / jnp.sqrt(sizes), bands)
        return jnp.broadcast_to(one[None], self.shape)

    def in_structure(self) -> jax.ShapeDtypeStruct:
        """Shape and dtype of `x`."""
        return jax.ShapeDtypeStruct(self.shape, self.dtype)


class Style(AbstractSurjection[Any]):
    """`(x - mean) / std` channel by channel; what is lost is mean and log std of every channel, the style.

    The data have mean zero and deviation one in every channel: `f(merge(y, z)) = y` for these. Adaptive instance
    normalisation is `merge(f(x), style)`.

    Args:
        shape: of `x`, `(channels, height, width)`.
        mean: of each channel, what `section` picks.
        log_std: likewise.

    References:
        X. Huang, S. Belongie, "Arbitrary Style Transfer in Real-time with Adaptive Instance Normalization", 2017,
        arXiv:1703.06868.
    """

    mean: Float[Array, " c"]
    log_std: Float[Array, " c"]
    shape: tuple[int, ...] = eqx.field(static=True)

    def __init__(self, shape: tuple[int, ...], mean: Float[Array, " c"], log_std: Float[Array, " c"]):
        self.shape, self.mean, self.log_std = shape, mean, log_std

    def split(self, x: Float[Array, "c h w"]) -> tuple[Float[Array, "c h w"], Any]:
        """The normalised channels; means and logarithms of the deviations."""
        mean = jnp.mean(x, axis=(1, 2))
        centred = x - mean[:, None, None]
        log_std = 0.5 * jnp.log(jnp.mean(centred**2, axis=(1, 2)))
        return centred * jnp.exp(-log_std)[:, None, None], (mean, log_std)

    def merge(self, y: Float[Array, "c h w"], z: Any) -> Float[Array, "c h w"]:
        """The channels with this style."""
        mean, log_std = z
        return y * jnp.exp(log_std)[:, None, None] + mean[:, None, None]

    def section(self, y: Float[Array, "c h w"]) -> Any:
        """The fields."""
        return self.mean, self.log_std

    def in_structure(self) -> jax.ShapeDtypeStruct:
        """Shape and dtype of `x`."""
        return jax.ShapeDtypeStruct(self.shape, self.mean.dtype)
