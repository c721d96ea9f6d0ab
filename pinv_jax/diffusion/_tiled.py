"""A prior of small images as one of large ones, `tiled`: the estimates of overlapping squares, averaged."""

import math

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Scalar

from ..maps import Stored
from ._prior import Prior


class Tiles(eqx.Module):
    """The network of `tiled`.

    Attributes:
        network: of a square.
        corners: rows and columns of the upper left corners.
        shape: of the large image.
        tile: of a square.
    """

    network: Stored
    corners: tuple[tuple[int, ...], tuple[int, ...]] = eqx.field(static=True)
    shape: tuple[int, int, int] = eqx.field(static=True)
    tile: tuple[int, int, int] = eqx.field(static=True)

    def __call__(self, x_t: Float[Array, "c H W"], t: Scalar) -> Float[Array, "c H W"]:
        """What the network says of each square, averaged where they overlap."""
        _, height, width = self.tile
        top, left = (jnp.asarray(grid.ravel()) for grid in np.meshgrid(*self.corners, indexing="ij"))
        rows = top[:, None, None] + jnp.arange(height)[None, :, None]
        columns = left[:, None, None] + jnp.arange(width)[None, None, :]
        squares = jnp.moveaxis(x_t[:, rows, columns], 1, 0)
        said = jnp.moveaxis(jax.vmap(lambda square: self.network(square, t))(squares), 0, 1)
        zero = jnp.zeros_like(x_t)
        total = zero.at[:, rows, columns].add(said)
        return total / zero.at[:, rows, columns].add(jnp.ones_like(said))


def tiled(prior: Prior, shape: tuple[int, int, int], *, overlap: float = 0.5) -> Prior:
    """The prior of images of another size that look like those of `prior` in every square.

    At every step the network sees squares of its own size, which overlap, and what it says of them is averaged. What is
    further apart than a square is only kept together by the observation.

    Args:
        prior: of images `(c, height, width)`.
        shape: of the larger images, with as many channels.
        overlap: of neighbouring squares, at least this share of their sides.

    Raises:
        ValueError: an image that is smaller than the squares or has other channels, or an overlap that is not between
            0 and 1.

    References:
        O. Bar-Tal, L. Yariv, Y. Lipman, T. Dekel, "MultiDiffusion: Fusing Diffusion Paths for Controlled Image
        Generation", 2023, arXiv:2302.08113.
    """
    if len(prior.shape) != 3 or len(shape) != 3 or shape[0] != prior.shape[0] or not 0 <= overlap < 1:
        raise ValueError(
            f"tiled: shape={shape}, overlap={overlap} for a prior of shape {prior.shape}; expected images with equal "
            "channels, and an overlap of at least 0 and below 1."
        )
    if shape[1] < prior.shape[1] or shape[2] < prior.shape[2]:
        raise ValueError(f"tiled: images of shape {shape} are smaller than those of the prior, {prior.shape}.")
    channels, *tile = prior.shape
    rows, columns = (_corners(side, own, overlap) for side, own in zip(shape[1:], tile, strict=True))
    network = Tiles(prior.network, (rows, columns), shape, (channels, tile[0], tile[1]))
    return Prior(network, prior.schedule, shape=shape, prediction=prior.prediction, dtype=prior.dtype)


def _corners(side: int, own: int, overlap: float) -> tuple[int, ...]:
    """Where squares of length `own` begin that cover `side`, evenly spread."""
    num = 1 + math.ceil((side - own) / ((1 - overlap) * own))
    return tuple(round((side - own) * index / max(num - 1, 1)) for index in range(num))
