"""Classical degradations of images as exact linear surjections: down-sampling, varying blur, lens distortion.

Followed by an invertible sensor curve they are a nonlinear camera: `SurjectiveChain([VaryingBlur(s), CubicSine(s)])`.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from ._base import AbstractSurjection
from ._block_dct import dct_matrix
from ._operator import AbstractOperatorSurjection

Image = tuple[int, int, int]


class Downsample(AbstractSurjection[Float[Array, "c k h w"]]):
    """Means over blocks of `factor` x `factor` pixels.

    Every block is written in the orthonormal basis of the two-dimensional discrete cosine transform, whose first vector
    is constant: the first coefficient is `y` (times `factor`), the other `factor^2 - 1` are `z`. `pinv` repeats pixels,
    the Moore-Penrose pseudo-inverse; all singular values are `1 / factor`.

    Args:
        shape: `(c, h, w)` of `x`, multiples of `factor` in `h` and `w`.
        factor: the side of a block.
        dtype: of `x`; the default float by default.

    Raises:
        ValueError: `factor` does not divide the image.
    """

    shape: Image = eqx.field(static=True)
    factor: int = eqx.field(static=True)
    dtype: np.dtype = eqx.field(static=True)

    def __init__(self, shape: Image, factor: int, dtype: DTypeLike | None = None):
        _check_factor("Downsample", shape, factor)
        self.shape, self.factor, self.dtype = shape, factor, jnp.result_type(float if dtype is None else dtype)

    def split(self, x: Float[Array, "c H W"]) -> tuple[Float[Array, "c h w"], Float[Array, "c k h w"]]:
        """Means of the blocks, and the other coefficients of each."""
        c, height, width = self.shape
        f, basis = self.factor, jnp.asarray(dct_matrix(self.factor), x.dtype)
        blocks = x.reshape(c, height // f, f, width // f, f)
        with jax.default_matmul_precision("highest"):
            coefficients = jnp.einsum("ia,jb,chawb->cijhw", basis, basis, blocks)
        coefficients = coefficients.reshape(c, f * f, height // f, width // f)
        return coefficients[:, 0] / f, coefficients[:, 1:]

    def merge(self, y: Float[Array, "c h w"], z: Float[Array, "c k h w"]) -> Float[Array, "c H W"]:
        """The image with these means and coefficients."""
        f, basis = self.factor, jnp.asarray(dct_matrix(self.factor), y.dtype)
        c, height, width = y.shape
        coefficients = jnp.concatenate([f * y[:, None], z], axis=1).reshape(c, f, f, height, width)
        with jax.default_matmul_precision("highest"):
            return jnp.einsum("ia,jb,cijhw->chawb", basis, basis, coefficients).reshape(self.shape)

    def section(self, y: Float[Array, "c h w"]) -> Float[Array, "c k h w"]:
        """Zeros: blocks of one value."""
        return jnp.zeros((y.shape[0], self.factor**2 - 1, *y.shape[1:]), y.dtype)

    def in_structure(self) -> jax.ShapeDtypeStruct:
        """Shape and dtype of `x`."""
        return jax.ShapeDtypeStruct(self.shape, self.dtype)


class Factor(eqx.Module):
    """One matrix of a `Separable` map, of shape `(m, n)` and full row rank, and its singular value decomposition."""

    matrix: Float[Array, "m n"]
    right_inverse: Float[Array, "n m"]
    values: Float[Array, " m"]
    basis: Float[Array, "n n"]

    def __init__(self, name: str, matrix: Float[Array, "m n"]):
        m, n = matrix.shape
        with jax.default_matmul_precision("highest"):
            u, s, vt = jnp.linalg.svd(matrix, full_matrices=True)
            known = not isinstance(s, Tracer)
            if m > n or (known and s[-1] <= n * jnp.finfo(s.dtype).eps * s[0]):
                raise ValueError(
                    f"Separable expected linearly independent rows in the matrix for the {name}, got shape "
                    f"{matrix.shape} with singular values from {s[0] if known else '?'} to {s[-1] if known else '?'}. "
                    "A narrower blur, fewer outputs or float64 help."
                )
            self.matrix, self.values, self.basis = matrix, s, vt.T
            self.right_inverse = (vt[:m].T / s[None, :]) @ u.T


class Separable(AbstractSurjection[Float[Array, "c k"]]):
    """`y_c = L x_c R^T` in every channel, for two matrices of full row rank.

    The singular value decompositions of `L` and `R` make that of the whole, at the cost of two small products: `pinv`
    is `L^+ y_c R^+^T`, the Moore-Penrose pseudo-inverse, and `z` are the coordinates of `x_c` in the products of right
    singular vectors that `L` or `R` maps to zero, `h w - h' w'` per channel. `L` and `R` are data: no gradient reaches
    them.

    Args:
        shape: `(c, h, w)` of `x`.
        rows: `L`, shape `(h', h)` with `h' <= h`.
        columns: `R`, shape `(w', w)` with `w' <= w`.

    Raises:
        ValueError: shapes do not fit, or the rows of a matrix are linearly dependent.
    """

    shape: Image = eqx.field(static=True)
    rows: Factor
    columns: Factor

    def __init__(self, shape: Image, rows: Float[Array, "h H"], columns: Float[Array, "w W"]):
        if (rows.shape[1], columns.shape[1]) != shape[1:]:
            raise ValueError(
                f"Separable expected matrices (h', {shape[1]}) and (w', {shape[2]}) for images of shape {shape}, got "
                f"{rows.shape} and {columns.shape}."
            )
        self.shape = shape
        self.rows, self.columns = Factor("rows", rows), Factor("columns", columns)

    def split(self, x: Float[Array, "c H W"]) -> tuple[Float[Array, "c h w"], Float[Array, "c k"]]:
        """`(L x_c R^T, the rest)`."""
        rows, columns = jax.lax.stop_gradient((self.rows, self.columns))
        y = _both(rows.matrix, x, columns.matrix)
        (h, w), c = y.shape[1:], x.shape[0]
        if y.shape == x.shape:
            return y, jnp.zeros((c, 0), x.dtype)
        coordinates = _both(rows.basis.T, x, columns.basis.T)
        rest = coordinates[:, :h, w:].reshape(c, -1), coordinates[:, h:].reshape(c, -1)
        return y, jnp.concatenate(rest, axis=1)

    def merge(self, y: Float[Array, "c h w"], z: Float[Array, "c k"]) -> Float[Array, "c H W"]:
        """`L^+ y_c R^+^T` and what `z` adds."""
        rows, columns = jax.lax.stop_gradient((self.rows, self.columns))
        x = _both(rows.right_inverse, y, columns.right_inverse)
        if x.shape == y.shape:
            return x
        (c, h, w), (height, width) = y.shape, x.shape[1:]
        beside, below = jnp.split(z, [h * (width - w)], axis=1)
        above = jnp.concatenate([jnp.zeros_like(y), beside.reshape(c, h, width - w)], axis=2)
        coordinates = jnp.concatenate([above, below.reshape(c, height - h, width)], axis=1)
        return x + _both(rows.basis, coordinates, columns.basis)

    def section(self, y: Float[Array, "c h w"]) -> Float[Array, "c k"]:
        """Zeros: the null-space component of least norm."""
        return jnp.zeros((y.shape[0], self.shape[1] * self.shape[2] - y.shape[1] * y.shape[2]), y.dtype)

    def in_structure(self) -> jax.ShapeDtypeStruct:
        """Shape and dtype of `x`."""
        return jax.ShapeDtypeStruct(self.shape, self.rows.matrix.dtype)

    def condition_number(self) -> Float[Array, ""]:
        """The largest singular value over the smallest; rounding of `y` grows at most by it."""
        values = self.rows.values, self.columns.values
        return (values[0][0] / values[0][-1]) * (values[1][0] / values[1][-1])


class VaryingBlur(Separable):
    """A Gaussian blur whose width grows from the centre of the image to its borders, separable, rows that sum to one.

    At row `i`, with `u` in [-1, 1] its distance from the middle, the vertical width is
    `centre + (border - centre) u^2` pixels; likewise for columns. With `factor > 1` only one
    blurred value per block of `factor` x `factor` pixels is kept, taken at its centre.

    `condition_number()` says how much its inverse amplifies rounding and noise. At 64 x 64 pixels that is 2 with
    `border=0.5`, 31 with 0.8, 270 with 1.0 and 2800 with 1.2; with `factor=2` it stays below 5 for all of these.

    Args:
        shape: `(c, h, w)` of `x`.
        centre: standard deviation of the Gaussian in the middle, pixels.
        border: standard deviation at the borders, pixels.
        factor: of the down-sampling.
        dtype: of `x`; the default float by default.

    Raises:
        ValueError: a width is not positive, `factor` does not divide the image, or the blur is too wide for the dtype.
    """

    def __init__(
        self,
        shape: Image,
        centre: float = 0.3,
        border: float = 0.8,
        *,
        factor: int = 1,
        dtype: DTypeLike | None = None,
    ):
        if centre <= 0 or border <= 0:
            raise ValueError(f"VaryingBlur expected positive widths in pixels, got centre={centre}, border={border}.")
        _check_factor("VaryingBlur", shape, factor)
        dtype = jnp.result_type(float if dtype is None else dtype)
        rows, columns = (_gaussian_rows(size, centre, border, factor) for size in shape[1:])
        super().__init__(shape, jnp.asarray(rows, dtype), jnp.asarray(columns, dtype))


class Resample(AbstractOperatorSurjection):
    """Bilinear resampling: pixel `(i, j)` of `y` is the value of `x` at row `coordinates[0, i, j]`, column `[1, i, j]`.

    A lens distortion, rotation or crop. Matrix-free: four weights per pixel of `y`, their transpose scatters. The
    output must be coarser than what it sees: where many pixels of `y` fall between the same pixels of `x` they are
    linearly dependent. The coordinates are parameters, and gradients reach them, through `pinv` too: a lens can be
    calibrated.

    Args:
        shape: `(c, h, w)` of `x`, at least 2 x 2 pixels.
        coordinates: shape `(2, h', w')`, in pixels of `x`: rows in [0, h - 1], columns in [0, w - 1].
        max_steps: the most conjugate-gradient steps of a solve.

    Raises:
        ValueError: coordinates lie outside of the image, or the pixels of `y` are linearly dependent; the message says
            the smallest singular value.
    """

    shape: Image = eqx.field(static=True)
    coordinates: Float[Array, "2 h w"]
    max_steps: int = eqx.field(static=True)

    def __init__(self, shape: Image, coordinates: Float[Array, "2 h w"], max_steps: int = 2000):
        if min(shape[1:]) < 2:
            raise ValueError(f"Resample expected an image of at least 2 x 2 pixels, got shape {shape}.")
        last = jnp.asarray(shape[1:], coordinates.dtype) - 1
        if not isinstance(coordinates, Tracer):
            low, high = jnp.min(coordinates, axis=(1, 2)), jnp.max(coordinates, axis=(1, 2))
            if not (jnp.all(low >= 0) and jnp.all(high <= last)):
                raise ValueError(
                    f"Resample expected rows in [0, {last[0]:g}] and columns in [0, {last[1]:g}], got [{low[0]:g}, "
                    f"{high[0]:g}] and [{low[1]:g}, {high[1]:g}]. Clip or rescale the coordinates."
                )
        self.shape, self.coordinates, self.max_steps = shape, coordinates, max_steps
        self.check_rank()

    def mv(self, x: Float[Array, "c H W"]) -> Float[Array, "c h w"]:
        """The image at the coordinates."""
        row, column = self.coordinates[0], self.coordinates[1]
        top = jnp.clip(jnp.floor(row), 0, self.shape[1] - 2)
        left = jnp.clip(jnp.floor(column), 0, self.shape[2] - 2)
        down, right = row - top, column - left
        weights = jnp.stack([(1 - down) * (1 - right), (1 - down) * right, down * (1 - right), down * right])
        i, j = top.astype(jnp.int32), left.astype(jnp.int32)
        corners = x[:, jnp.stack([i, i, i + 1, i + 1]), jnp.stack([j, j + 1, j, j + 1])]
        return jnp.sum(weights[None] * corners, axis=1)

    def in_structure(self) -> jax.ShapeDtypeStruct:
        """Shape and dtype of `x`."""
        return jax.ShapeDtypeStruct(self.shape, self.coordinates.dtype)


def fisheye(
    shape: Image,
    out_shape: tuple[int, int],
    strength: float = 0.2,
    *,
    max_steps: int = 2000,
    dtype: DTypeLike | None = None,
) -> Resample:
    """Barrel distortion: the middle is magnified against the corners, which stay where they are.

    With `u` and `v` in [-1, 1] across the output, it shows the input at `(u, v) (1 + s r^2) / (1 + 2 s)`, where
    `r^2 = u^2 + v^2`.

    Args:
        shape: `(c, h, w)` of the undistorted image.
        out_shape: `(h', w')` of the distorted one. Independent pixels need about `h' <= h / (1 + 2 s)`, likewise `w'`.
        strength: `s`, at least 0.
        max_steps: the most conjugate-gradient steps of a solve.
        dtype: of `x`; the default float by default.

    Returns:
        The resampling, a surjection.

    Raises:
        ValueError: `strength` is negative, or `out_shape` is too large for independent pixels.
    """
    if strength < 0:
        raise ValueError(f"fisheye expected strength >= 0, got {strength}; below, the corners would leave the image.")
    u, v = np.meshgrid(*(np.linspace(-1, 1, size) for size in out_shape), indexing="ij")
    grown = (1 + strength * (u**2 + v**2)) / (1 + 2 * strength)
    middle = (np.asarray(shape[1:]) - 1).reshape(2, 1, 1) / 2
    coordinates = np.clip(middle + middle * np.stack([u * grown, v * grown]), 0, 2 * middle)
    return Resample(shape, jnp.asarray(coordinates, float if dtype is None else dtype), max_steps)


def _both(left: Float[Array, "a b"], x: Float[Array, "c b d"], right: Float[Array, "e d"]) -> Float[Array, "c a e"]:
    with jax.default_matmul_precision("highest"):
        return jnp.einsum("ab,cbd,ed->cae", left, x, right)


def _gaussian_rows(size: int, centre: float, border: float, factor: int) -> np.ndarray:
    position = factor * (np.arange(size // factor) + 0.5) - 0.5
    distance = (position - (size - 1) / 2) / max((size - 1) / 2, 1)
    width = centre + (border - centre) * distance**2
    weights = np.exp(-0.5 * ((np.arange(size)[None] - position[:, None]) / width[:, None]) ** 2)
    return weights / weights.sum(axis=1, keepdims=True)


def _check_factor(name: str, shape: Image, factor: int) -> None:
    if factor < 1 or shape[1] % factor or shape[2] % factor:
        raise ValueError(
            f"{name} expected a factor that divides the height and width of {shape}, got {factor}. Crop the image."
        )
