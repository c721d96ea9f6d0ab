"""Reshapings as surjections that lose nothing: `PixelUnshuffle` and `Flatten`."""

import abc
import math

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from ._base import AbstractSurjection


class AbstractReshape(AbstractSurjection[tuple[()]]):
    """A rearrangement of the elements of `x`; nothing is lost, so `z` is the empty tuple.

    Implementing a reshaping:

    - `apply(x)` and its exact inverse `invert(y)`;
    - the fields `shape` and `dtype` of `x`, both static.
    """

    shape: eqx.AbstractVar[tuple[int, ...]]
    dtype: eqx.AbstractVar[np.dtype]

    @abc.abstractmethod
    def apply(self, x: Float[Array, "*x"]) -> Float[Array, "*y"]:
        """The elements of `x` in their new places."""

    @abc.abstractmethod
    def invert(self, y: Float[Array, "*y"]) -> Float[Array, "*x"]:
        """The inverse of `apply`."""

    def split(self, x: Float[Array, "*x"]) -> tuple[Float[Array, "*y"], tuple[()]]:
        """`(apply(x), ())`."""
        return self.apply(x), ()

    def merge(self, y: Float[Array, "*y"], z: tuple[()]) -> Float[Array, "*x"]:
        """The elements back in their old places."""
        return self.invert(y)

    def section(self, y: Float[Array, "*y"]) -> tuple[()]:
        """The empty tuple."""
        return ()

    def in_structure(self) -> jax.ShapeDtypeStruct:
        """Shape and dtype of `x`."""
        return jax.ShapeDtypeStruct(self.shape, self.dtype)


class PixelUnshuffle(AbstractReshape):
    """`y[c*r*r + dy*r + dx, i, j] = x[c, i*r + dy, j*r + dx]`: space into channels, `r` the factor.

    Args:
        shape: `(channels, height, width)` of `x`; `y` has shape `(channels*r*r, height/r, width/r)`.
        factor: `r`, a divisor of height and width.
        dtype: of `x`; the default float by default.

    Raises:
        ValueError: `x` is not an image, or the factor divides height and width not both.
    """

    shape: tuple[int, int, int] = eqx.field(static=True)
    factor: int = eqx.field(static=True)
    dtype: np.dtype = eqx.field(static=True)

    def __init__(self, shape: tuple[int, ...], factor: int, dtype: DTypeLike | None = None):
        check_patches("PixelUnshuffle", shape, factor)
        self.shape, self.factor = shape, factor  # pyright: ignore[reportAttributeAccessIssue]
        self.dtype = jnp.result_type(float if dtype is None else dtype)

    def apply(self, x: Float[Array, "c h w"]) -> Float[Array, "d i j"]:
        """The pixels of every `r x r` patch as channels of their own."""
        return unshuffle(x, self.factor)

    def invert(self, y: Float[Array, "d i j"]) -> Float[Array, "c h w"]:
        """The channels back as pixels."""
        return shuffle(y, self.factor)


class Flatten(AbstractReshape):
    """`y = ravel(x)`, in row-major order.

    Args:
        shape: of `x`, any.
        dtype: of `x`; the default float by default.
    """

    shape: tuple[int, ...] = eqx.field(static=True)
    dtype: np.dtype = eqx.field(static=True)

    def __init__(self, shape: tuple[int, ...], dtype: DTypeLike | None = None):
        self.shape, self.dtype = shape, jnp.result_type(float if dtype is None else dtype)

    def apply(self, x: Float[Array, "*x"]) -> Float[Array, " n"]:
        """`x` as a vector."""
        return x.reshape(math.prod(self.shape))

    def invert(self, y: Float[Array, " n"]) -> Float[Array, "*x"]:
        """The vector in the shape of `x`."""
        return y.reshape(self.shape)


def unshuffle(x: Float[Array, "c h w"], factor: int) -> Float[Array, "d i j"]:
    """The `factor x factor` patches of an image as channels."""
    c, h, w = x.shape
    x = x.reshape(c, h // factor, factor, w // factor, factor)
    return x.transpose(0, 2, 4, 1, 3).reshape(c * factor * factor, h // factor, w // factor)


def shuffle(y: Float[Array, "d i j"], factor: int) -> Float[Array, "c h w"]:
    """The inverse of `unshuffle`."""
    d, i, j = y.shape
    y = y.reshape(d // (factor * factor), factor, factor, i, j)
    return y.transpose(0, 3, 1, 4, 2).reshape(d // (factor * factor), i * factor, j * factor)


def check_patches(name: str, shape: tuple[int, ...], factor: int) -> None:
    """Raises a `ValueError` unless `shape` is that of an image made of whole `factor x factor` patches."""
    if len(shape) != 3:
        raise ValueError(f"{name} expected an image, shape (channels, height, width), got {shape}.")
    if factor < 1 or shape[1] % factor or shape[2] % factor:
        common = math.gcd(shape[1], shape[2])
        divisors = [k for k in range(1, common + 1) if common % k == 0]
        raise ValueError(
            f"{name} expected patches that tile the image, got {factor} x {factor} patches and shape {shape}. Use one "
            f"of the sizes {divisors}, or pad the image."
        )
