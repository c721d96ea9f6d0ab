"""Invertible elementwise maps: `y_i = t(x_i)` with `t` increasing, bijections of the whole real line."""

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Scalar

from ._bijection import AbstractBijection


class AbstractPointwise(AbstractBijection):
    """An increasing scalar function applied to every element.

    Implementing a pointwise map:

    - `apply(x)` and its exact inverse `invert(y)`, elementwise and defined on the whole real line;
    - the fields `shape` and `dtype` of `x`, both static.
    """

    def log_det(self, x: Float[Array, "*x"]) -> Scalar:
        """The sum of the logarithms of the slopes."""
        slope = jax.jvp(self.apply, (x,), (jnp.ones_like(x),))[1]
        return jnp.sum(jnp.log(jnp.abs(slope)))


class LeakyReLU(AbstractPointwise):
    """`y = x` where `x >= 0`, else `slope * x`.

    Args:
        shape: shape of `x`.
        slope: the slope of the negative side, positive.
        dtype: of `x`; the default float by default.
    """

    shape: tuple[int, ...] = eqx.field(static=True)
    slope: float = eqx.field(static=True)
    dtype: np.dtype = eqx.field(static=True)

    def __init__(self, shape: tuple[int, ...], slope: float = 0.1, dtype: DTypeLike | None = None):
        self.shape, self.slope, self.dtype = shape, _positive(slope), _dtype(dtype)

    def apply(self, x: Float[Array, "*x"]) -> Float[Array, "*x"]:
        """`x` where `x >= 0`, else `slope * x`."""
        return jnp.where(x >= 0, x, self.slope * x)

    def invert(self, y: Float[Array, "*x"]) -> Float[Array, "*x"]:
        """`y` where `y >= 0`, else `y / slope`."""
        return jnp.where(y >= 0, y, y / self.slope)


class MirrorLeakyReLU(AbstractPointwise):
    """`y = x` where `x >= 0`, else `x / slope`: the inverse of `LeakyReLU(slope)` as a map of its own.

    The inverse of a layer `LeakyReLU(W x + b)` applies it first: `V (mirror(y) - b)`.

    Args:
        shape: shape of `x`.
        slope: the slope of the leaky ReLU it undoes, positive.
        dtype: of `x`; the default float by default.
    """

    shape: tuple[int, ...] = eqx.field(static=True)
    slope: float = eqx.field(static=True)
    dtype: np.dtype = eqx.field(static=True)

    def __init__(self, shape: tuple[int, ...], slope: float = 0.1, dtype: DTypeLike | None = None):
        self.shape, self.slope, self.dtype = shape, _positive(slope), _dtype(dtype)

    def apply(self, x: Float[Array, "*x"]) -> Float[Array, "*x"]:
        """`x` where `x >= 0`, else `x / slope`."""
        return jnp.where(x >= 0, x, x / self.slope)

    def invert(self, y: Float[Array, "*x"]) -> Float[Array, "*x"]:
        """`y` where `y >= 0`, else `slope * y`."""
        return jnp.where(y >= 0, y, self.slope * y)


class LeakyTanh(AbstractPointwise):
    """`y = slope * x + (1 - slope) * tanh(x)`: tanh-like near zero, yet onto the whole real line.

    A plain tanh is onto (-1, 1) only, and rounds to its bounds already at `x = 20`: there it has no inverse.

    Args:
        shape: shape of `x`.
        slope: the slope at infinity, in (0, 1].
        dtype: of `x`; the default float by default.
    """

    shape: tuple[int, ...] = eqx.field(static=True)
    slope: float = eqx.field(static=True)
    dtype: np.dtype = eqx.field(static=True)

    def __init__(self, shape: tuple[int, ...], slope: float = 0.1, dtype: DTypeLike | None = None):
        if not 0 < slope <= 1:
            raise ValueError(f"LeakyTanh expected a slope in (0, 1], got {slope}; below that it has no inverse.")
        self.shape, self.slope, self.dtype = shape, slope, _dtype(dtype)

    def apply(self, x: Float[Array, "*x"]) -> Float[Array, "*x"]:
        """`slope * x + (1 - slope) * tanh(x)`."""
        return self.slope * x + (1 - self.slope) * jnp.tanh(x)

    def invert(self, y: Float[Array, "*x"]) -> Float[Array, "*x"]:
        """The inverse, to rounding, by safeguarded Newton steps."""
        bend = 1 - self.slope

        def slope_of(x):
            return self.slope + bend * (1 - jnp.tanh(x) ** 2)

        def bracket(y):
            return (y - bend) / self.slope, (y + bend) / self.slope

        return _increasing_inverse(self.apply, slope_of, bracket, y)


class CubicSine(AbstractPointwise):
    """`y = x + cubic * x^3 + sine * sin(frequency * x)`: the tone curve of a nonlinear sensor.

    Args:
        shape: shape of `x`.
        cubic: the coefficient of the cube, not negative.
        sine: the amplitude of the ripple; the curve is increasing for `|sine * frequency| < 1`.
        frequency: of the ripple, radians per unit of `x`.
        dtype: of `x`; the default float by default.

    Raises:
        ValueError: the curve would not be increasing.

    References:
        A. L. Kachhadiya, "Local Inverse Geometry Can Be Amortized", 2026, arXiv:2605.13068; the defaults are the
        observation of its Heat-1D.
    """

    shape: tuple[int, ...] = eqx.field(static=True)
    cubic: float = eqx.field(static=True)
    sine: float = eqx.field(static=True)
    frequency: float = eqx.field(static=True)
    dtype: np.dtype = eqx.field(static=True)

    def __init__(
        self,
        shape: tuple[int, ...],
        cubic: float = 0.18,
        sine: float = 0.08,
        frequency: float = 3.0,
        dtype: DTypeLike | None = None,
    ):
        if cubic < 0 or abs(sine * frequency) >= 1:
            raise ValueError(
                f"CubicSine expected cubic >= 0 and |sine * frequency| < 1, so that the curve is increasing; got "
                f"cubic={cubic}, sine={sine}, frequency={frequency}. Use a smaller ripple."
            )
        self.shape, self.dtype = shape, _dtype(dtype)
        self.cubic, self.sine, self.frequency = cubic, sine, frequency

    def apply(self, x: Float[Array, "*x"]) -> Float[Array, "*x"]:
        """`x + cubic * x^3 + sine * sin(frequency * x)`."""
        return x + self.cubic * x**3 + self.sine * jnp.sin(self.frequency * x)

    def invert(self, y: Float[Array, "*x"]) -> Float[Array, "*x"]:
        """The inverse, to rounding, by safeguarded Newton steps."""

        def slope_of(x):
            return 1 + 3 * self.cubic * x**2 + self.sine * self.frequency * jnp.cos(self.frequency * x)

        def without_ripple(y):  # Cardano's root of x + cubic x^3 = y, in the form that never cancels
            if self.cubic == 0:
                return y
            scale = (3 * self.cubic) ** 0.5
            return 2 / scale * jnp.sinh(jnp.arcsinh(1.5 * scale * y) / 3)

        def bracket(y):
            return without_ripple(y - abs(self.sine)), without_ripple(y + abs(self.sine))

        return _increasing_inverse(self.apply, slope_of, bracket, y)


class Gamma(AbstractPointwise):
    """`|y| = (1 + offset) |x|^(1 / exponent) - offset`, linear near zero, the sign kept: the tone curve of photographs.

    The line through zero is tangent to the power, so the curve is smooth, and onto the whole real line.

    Args:
        shape: shape of `x`.
        exponent: above one.
        offset: positive; the line reaches up to `y = offset / (exponent - 1)`.
        dtype: of `x`; the default float by default.

    Raises:
        ValueError: there is no such tangent.

    References:
        IEC 61966-2-1:1999 (sRGB), whose constants are the defaults; its rounded slope, 12.92, is the exact 12.9232.
    """

    shape: tuple[int, ...] = eqx.field(static=True)
    exponent: float = eqx.field(static=True)
    offset: float = eqx.field(static=True)
    dtype: np.dtype = eqx.field(static=True)

    def __init__(
        self, shape: tuple[int, ...], exponent: float = 2.4, offset: float = 0.055, dtype: DTypeLike | None = None
    ):
        if exponent <= 1 or offset <= 0:
            raise ValueError(f"Gamma expected exponent > 1 and offset > 0, got {exponent} and {offset}.")
        self.shape, self.dtype = shape, _dtype(dtype)
        self.exponent, self.offset = exponent, offset

    def apply(self, x: Float[Array, "*x"]) -> Float[Array, "*x"]:
        """The tone curve."""
        end, slope = self._line()
        bent = jnp.abs(x) > end / slope
        power = jnp.where(bent, jnp.abs(x), 1) ** (1 / self.exponent)  # the slope at zero would be infinite
        return jnp.where(bent, jnp.sign(x) * ((1 + self.offset) * power - self.offset), slope * x)

    def invert(self, y: Float[Array, "*x"]) -> Float[Array, "*x"]:
        """`|x| = ((|y| + offset) / (1 + offset))^exponent`, or the line."""
        end, slope = self._line()
        power = ((jnp.abs(y) + self.offset) / (1 + self.offset)) ** self.exponent
        return jnp.where(jnp.abs(y) > end, jnp.sign(y) * power, y / slope)

    def _line(self) -> tuple[float, float]:
        """Where the line ends, in `y`, and its slope."""
        end = self.offset / (self.exponent - 1)
        return end, end / ((end + self.offset) / (1 + self.offset)) ** self.exponent


class Affine(AbstractPointwise):
    """`y = scale * x + shift`, elementwise.

    Args:
        scale: shape of `x`, nowhere zero. `Affine(1 / std, -mean / std)` is a z-score.
        shift: the same shape.
    """

    scale: Float[Array, "*x"]
    shift: Float[Array, "*x"]

    @property
    def shape(self) -> tuple[int, ...]:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Shape of `x`."""
        return self.scale.shape

    @property
    def dtype(self) -> np.dtype:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Dtype of `x`."""
        return self.scale.dtype

    def apply(self, x: Float[Array, "*x"]) -> Float[Array, "*x"]:
        """`scale * x + shift`."""
        return self.scale * x + self.shift

    def invert(self, y: Float[Array, "*x"]) -> Float[Array, "*x"]:
        """`(y - shift) / scale`."""
        return (y - self.shift) / self.scale


def _increasing_inverse(
    curve: Callable[..., Array],
    slope_of: Callable[..., Array],
    bracket: Callable[..., tuple[Array, Array]],
    y: Float[Array, "*x"],
) -> Float[Array, "*x"]:
    """Solves `curve(x) = y` elementwise to rounding; derivatives are implicit, `dx = dy / curve'(x)`.

    Newton steps inside a bracket, with a bisection wherever a step would leave it or does not halve the one before. A
    fixed count, the bits of the mantissa and a few more, so that bisections alone would reach rounding too.
    """

    @jax.custom_jvp
    def solve(y):
        eps = jnp.finfo(y.dtype).eps
        lower, upper = bracket(y)
        start = 0.5 * (lower + upper)

        def body(_, carry):
            lower, upper, x, last = carry
            miss = curve(x) - y
            lower, upper = jnp.where(miss < 0, x, lower), jnp.where(miss > 0, x, upper)
            step = -miss / slope_of(x)
            # At rounding level steps no longer shrink: there a bisection of a one-sided bracket would throw x far off.
            rounding = jnp.abs(step) <= 4 * eps * jnp.abs(x)
            inside = (x + step >= lower) & (x + step <= upper) & (jnp.abs(step) <= 0.5 * jnp.abs(last))
            step = jnp.where(inside | rounding, step, 0.5 * (lower + upper) - x)
            return lower, upper, x + step, step

        num_steps = jnp.finfo(y.dtype).nmant + 8
        return jax.lax.fori_loop(0, num_steps, body, (lower, upper, start, upper - lower))[2]

    @solve.defjvp
    def _(primals, tangents):
        x = solve(primals[0])
        return x, tangents[0] / slope_of(x)

    return solve(y)


def _positive(slope: float) -> float:
    if slope <= 0:
        raise ValueError(f"A leaky ReLU is invertible only for a positive slope, got slope={slope}.")
    return slope


def _dtype(dtype: DTypeLike | None) -> np.dtype:
    return jnp.result_type(float if dtype is None else dtype)
