"""A camera as the papers on learned inverses have it: `average(sensor(blur(x)))`, with a Gaussian point spread."""

import math
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from ._base import AbstractMap
from ._chain import Chain
from ._optics import Downsample

Image = tuple[int, int, int]


class GaussianBlur(AbstractMap):
    """Every channel averaged with the weights `exp(-(i^2 + j^2) / (2 sigma^2))`, `|i|, |j| <= window // 2`, sum one.

    The point-spread function of a lens.

    The width is a parameter, and gradients reach it. One blur per image is made inside a batch:
    `jax.vmap(lambda sigma, x: GaussianBlur(x.shape, sigma)(x))`. No inverse comes with it; `VaryingBlur` is an exact
    surjection. Columns and rows are multiplied by one banded matrix each.

    Args:
        shape: `(c, h, w)` of `x`.
        sigma: standard deviation in pixels, a positive scalar.
        window: side of the square of weights, odd.
        padding: what lies beyond the borders: `"zeros"`, as published, which darkens them; or `"reflect"`, the mirror
            image with the border pixel repeated (`mode="reflect"` of SciPy), which leaves a constant constant.
        dtype: of `x`; the default float by default.

    Raises:
        ValueError: sigma is not a positive scalar, the window is even or reaches further than a whole image, or the
            padding is unknown.
    """

    sigma: Float[Array, ""]
    shape: Image = eqx.field(static=True)
    window: int = eqx.field(static=True)
    padding: str = eqx.field(static=True)

    def __init__(
        self,
        shape: Image,
        sigma: Any,
        window: int = 11,
        *,
        padding: str = "zeros",
        dtype: DTypeLike | None = None,
    ):
        if np.shape(sigma) != () or not (isinstance(sigma, Tracer) or float(sigma) > 0):
            raise ValueError(
                f"GaussianBlur expected a positive standard deviation in pixels, a scalar, got sigma={sigma}. For one "
                "per image write jax.vmap(lambda sigma, x: GaussianBlur(x.shape, sigma)(x))(sigmas, images)."
            )
        if window < 1 or window % 2 == 0 or window // 2 > min(shape[1:]):
            raise ValueError(
                f"GaussianBlur expected an odd window of at most {2 * min(shape[1:]) + 1} pixels for images of shape "
                f"{shape}, got {window}."
            )
        if padding not in ("zeros", "reflect"):
            raise ValueError(f'GaussianBlur expected padding "zeros" or "reflect", got {padding!r}.')
        self.sigma = jnp.asarray(sigma, jnp.result_type(float if dtype is None else dtype))
        self.shape, self.window, self.padding = shape, window, padding

    def __call__(self, x: Float[Array, "c h w"]) -> Float[Array, "c h w"]:
        """The blurred image."""
        offsets = jnp.arange(self.window, dtype=x.dtype) - self.window // 2
        weights = jnp.exp(-0.5 * (offsets / self.sigma) ** 2)
        weights = weights / jnp.sum(weights)
        _, height, width = x.shape
        with jax.default_matmul_precision("highest"):
            rows = jnp.tensordot(weights, self._taps(height, x.dtype), 1)
            columns = rows if height == width else jnp.tensordot(weights, self._taps(width, x.dtype), 1)
            # A batch of images is then one product per side, instead of many small ones.
            x = jnp.einsum("chw,vw->chv", x, columns)
            return jnp.einsum("chw,gh->cgw", x, rows)

    def _taps(self, size: int, dtype: np.dtype) -> Float[Array, "window size size"]:
        """Matrix `k` moves a line by `k - window // 2`."""
        position = np.arange(size)[None] + np.arange(self.window)[:, None] - self.window // 2
        if self.padding == "reflect":
            position = np.minimum(position % (2 * size), 2 * size - 1 - position % (2 * size))
        return jnp.asarray(position[..., None] == np.arange(size), dtype)

    def in_structure(self) -> jax.ShapeDtypeStruct:
        """Shape and dtype of `x`."""
        return jax.ShapeDtypeStruct(self.shape, self.sigma.dtype)


class SigmoidSensor(AbstractMap):
    """`y = 1 / (1 + exp(-gain (clip(x, 0, 1) - offset)))`, elementwise: light below 0 or above 1 is not told apart.

    Not a bijection, since it clips: `undo` returns the light between 0 and 1 that comes nearest to `y`.

    Args:
        shape: of `x`.
        gain: slope of the curve, positive.
        offset: the light in the middle of the curve.
        dtype: of `x`; the default float by default.

    Raises:
        ValueError: the gain is not positive.
    """

    shape: tuple[int, ...] = eqx.field(static=True)
    gain: float = eqx.field(static=True)
    offset: float = eqx.field(static=True)
    dtype: np.dtype = eqx.field(static=True)

    def __init__(
        self, shape: tuple[int, ...], gain: float = 1.2, offset: float = 0.5, *, dtype: DTypeLike | None = None
    ):
        if gain <= 0:
            raise ValueError(f"SigmoidSensor expected a positive gain, got {gain}.")
        self.shape, self.gain, self.offset = shape, gain, offset
        self.dtype = jnp.result_type(float if dtype is None else dtype)

    def __call__(self, x: Float[Array, "*x"]) -> Float[Array, "*x"]:
        """What the sensor returns for the light `x`."""
        return jax.nn.sigmoid(self.gain * (jnp.clip(x, 0, 1) - self.offset))

    def undo(self, y: Float[Array, "*y"]) -> Float[Array, "*y"]:
        """The light in [0, 1] that returns what is nearest to `y`, for any shape."""
        low, high = (1 / (1 + math.exp(-self.gain * (end - self.offset))) for end in (0.0, 1.0))
        y = jnp.clip(y, low, high)
        return jnp.clip(self.offset + jnp.log(y / (1 - y)) / self.gain, 0, 1)

    def in_structure(self) -> jax.ShapeDtypeStruct:
        """Shape and dtype of `x`."""
        return jax.ShapeDtypeStruct(self.shape, self.dtype)


def blurring_camera(
    shape: Image = (1, 64, 64),
    sigma: Any = 1.3,
    *,
    window: int = 11,
    factor: int = 2,
    padding: str = "zeros",
    dtype: DTypeLike | None = None,
) -> Chain:
    """`x -> average(sensor(blur(x)))`: Gaussian point spread, sigmoid sensor, means over `factor` x `factor` pixels.

    The published forward map of the imaging problem, whose truth has another `sigma` for every image.

    Args:
        shape: `(c, h, w)` of `x`.
        sigma: of the `GaussianBlur`, pixels of `x`.
        window: likewise.
        factor: of `Downsample`.
        padding: of the blur.
        dtype: of `x`; the default float by default.

    References:
        A. L. Kachhadiya, "Deceptron: Learned Local Inverses", 2025, arXiv:2511.21076.
    """
    blur = GaussianBlur(shape, sigma, window, padding=padding, dtype=dtype)
    return Chain([blur, SigmoidSensor(shape, dtype=dtype), Downsample(shape, factor, dtype)])


def linear_camera(
    shape: Image = (1, 64, 64),
    sigma: Any = 1.3,
    *,
    window: int = 11,
    factor: int = 2,
    padding: str = "zeros",
    dtype: DTypeLike | None = None,
) -> Chain:
    """`x -> average(blur(x))`: `blurring_camera` without its sensor, the published nominal model of it.

    Args:
        shape: `(c, h, w)` of `x`.
        sigma: of the `GaussianBlur`, pixels of `x`.
        window: likewise.
        factor: of `Downsample`.
        padding: of the blur.
        dtype: of `x`; the default float by default.
    """
    return Chain([GaussianBlur(shape, sigma, window, padding=padding, dtype=dtype), Downsample(shape, factor, dtype)])
