"""What compression by cosine transforms does before it rounds, `BlockDCT`, and how coarsely: `frequency_steps`."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Scalar

from ._bijection import AbstractBijection
from ._reshape import check_patches


class BlockDCT(AbstractBijection):
    """The orthonormal discrete cosine transform of every `block x block` square of every channel, in its place.

    Pixel `(8 i + u, 8 j + v)` of `y` is the coefficient of the square `(i, j)` at the frequencies `u` and `v`. A
    compressed picture says of each coefficient only between which bounds it lies, a box for
    `solvers.nlbp_interval(f, x, *solvers.quantisation_box(data, frequency_steps(...)))`.

    Args:
        shape: `(c, h, w)` of `x`, with `h` and `w` multiples of `block`.
        block: the side of a square.
        dtype: of `x`; the default float by default.

    Raises:
        ValueError: the squares do not tile the image.
    """

    shape: tuple[int, ...] = eqx.field(static=True)
    block: int = eqx.field(static=True)
    dtype: np.dtype = eqx.field(static=True)

    def __init__(self, shape: tuple[int, ...], block: int = 8, dtype: DTypeLike | None = None):
        check_patches("BlockDCT", shape, block)
        self.shape, self.block, self.dtype = shape, block, jnp.result_type(float if dtype is None else dtype)

    def apply(self, x: Float[Array, "c h w"]) -> Float[Array, "c h w"]:
        """The coefficients."""
        return self._both(jnp.asarray(dct_matrix(self.block), x.dtype), x)

    def invert(self, y: Float[Array, "c h w"]) -> Float[Array, "c h w"]:
        """The pixels."""
        return self._both(jnp.asarray(dct_matrix(self.block).T, y.dtype), y)

    def log_det(self, x: Float[Array, "c h w"]) -> Scalar:
        """Zero."""
        return jnp.zeros((), x.dtype)

    def _both(self, matrix: Float[Array, "b b"], x: Float[Array, "c h w"]) -> Float[Array, "c h w"]:
        c, h, w = x.shape
        tiles = x.reshape(c, h // self.block, self.block, w // self.block, self.block)
        with jax.default_matmul_precision("highest"):
            return jnp.einsum("ua,vb,ciajb->ciujv", matrix, matrix, tiles).reshape(x.shape)


def dct_matrix(size: int) -> np.ndarray:
    """The discrete cosine transform as a matrix with orthonormal rows, the first of them constant."""
    rows = np.sqrt(2 / size) * np.cos(np.pi * (np.arange(size)[None] + 0.5) * np.arange(size)[:, None] / size)
    rows[0] = np.sqrt(1 / size)
    return rows


def frequency_steps(
    shape: tuple[int, ...], quality: float | int, block: int = 8, dtype: DTypeLike | None = None
) -> Float[Array, "c h w"]:
    """How far apart the levels lie to which the coefficients of a `BlockDCT` are rounded, for pixels between 0 and 1.

    `(1 + (u + v) / 2) 2^(-quality) / 2` at the frequencies `u` and `v`: coarser for finer detail, a tilt and a scale
    of our own in place of the tables of a standard. At quality 1 pictures show their squares, at 4 hardly anything.

    Args:
        shape: of the image.
        quality: each unit halves all steps.
        block: the side of a square.
        dtype: the default float by default.

    Returns:
        Steps in the places of their coefficients.
    """
    check_patches("frequency_steps", shape, block)
    frequency = np.arange(block)
    steps = 0.5 * 2.0 ** (-quality) * (1 + (frequency[:, None] + frequency) / 2)
    whole = np.tile(steps, (shape[1] // block, shape[2] // block))
    return jnp.asarray(np.broadcast_to(whole, shape), float if dtype is None else dtype)
