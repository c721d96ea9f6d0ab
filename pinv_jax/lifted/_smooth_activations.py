"""Smooth activations, entry by entry: tanh, sigmoid, ELU, softplus; their proximal maps by Newton's method."""

import math

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.scipy.special import xlog1py, xlogy
from jaxtyping import Array, Float

from ._abstract_activation import AbstractEntrywise, Step

NUM_NEWTON = 12
"""Enough for rounding at steps down to 1e-4; convergence is monotone from the first step on."""


class Tanh(AbstractEntrywise):
    """`sigma(z) = tanh(z)`, `phi(u) = ((1 + u) log(1 + u) + (1 - u) log(1 - u)) / 2` on [-1, 1].

    `B(y, z)` is the divergence of a coin with mean `y` from one with mean `tanh(z)`, both on {-1, 1}. `phi` is finite
    at the ends, `log 2`, but its slope is not: `interior` keeps data away from them.
    """

    def __call__(self, z: Float[Array, "*y"]) -> Float[Array, "*y"]:
        """`tanh(z)`."""
        return jnp.tanh(z)

    def bounds(self) -> tuple[float, float]:
        """`-1 <= u <= 1`."""
        return -1.0, 1.0

    def interior(self, y: Float[Array, "*y"], margin: float | int = 1e-6) -> Float[Array, "*y"]:
        """`y` clipped to `[-1 + margin, 1 - margin]`."""
        return jnp.clip(y, -1 + margin, 1 - margin)

    def prox(self, v: Float[Array, "*y"], step: Step) -> Float[Array, "*y"]:
        """`tanh(s)` with `(1 - step) tanh(s) + step s = v`."""
        a, b = 1 - step, step
        s = jnp.sign(v) * _concave_root(jnp.tanh, lambda s: 1 - jnp.tanh(s) ** 2, a, b, jnp.abs(v))
        s = jax.lax.stop_gradient(s)
        return jnp.tanh(s - (a * jnp.tanh(s) + b * s - v) / (a * (1 - jax.lax.stop_gradient(jnp.tanh(s)) ** 2) + b))

    def preimage(self, u: Float[Array, "*y"]) -> Float[Array, "*y"]:
        """`artanh(u)`."""
        return jnp.arctanh(u)

    def potential_entries(self, u: Float[Array, "*y"]) -> Float[Array, "*y"]:
        """`((1 + u) log(1 + u) + (1 - u) log(1 - u)) / 2`."""
        return 0.5 * (xlog1py(1 + u, u) + xlog1py(1 - u, -u))

    def conjugate_entries(self, z: Float[Array, "*y"]) -> Float[Array, "*y"]:
        """`log cosh(z)`."""
        return jnp.logaddexp(z, -z) - math.log(2)

    def gap_entries(self, y: Float[Array, "*y"], z: Float[Array, "*y"]) -> Float[Array, "*y"]:
        """`phi(y) - log 2 + |z| (1 - y sign(z)) + log(1 + exp(-2 |z|))`."""
        size = jnp.abs(z)
        linear = size * (1 - y * jnp.sign(z)) + jnp.log1p(jnp.exp(-2 * size))
        return jnp.maximum(self.potential_entries(y) - math.log(2) + linear, 0)  # below zero only by rounding


class Sigmoid(AbstractEntrywise):
    """`sigma(z) = 1 / (1 + exp(-z))`, `phi(u) = u log u + (1 - u) log(1 - u)` on [0, 1].

    `B(y, z)` is the divergence of a coin with probability `y` from one with `sigma(z)`.
    """

    def __call__(self, z: Float[Array, "*y"]) -> Float[Array, "*y"]:
        """`1 / (1 + exp(-z))`."""
        return jax.nn.sigmoid(z)

    @property
    def curvature(self) -> float:
        """`1/4`."""
        return 0.25

    def bounds(self) -> tuple[float, float]:
        """`0 <= u <= 1`."""
        return 0.0, 1.0

    def interior(self, y: Float[Array, "*y"], margin: float | int = 1e-6) -> Float[Array, "*y"]:
        """`y` clipped to `[margin, 1 - margin]`."""
        return jnp.clip(y, margin, 1 - margin)

    def prox(self, v: Float[Array, "*y"], step: Step) -> Float[Array, "*y"]:
        """`sigma(2 s)` with `(1 - step) tanh(s) + 4 step s = 2 v - (1 - step)`."""
        a, b = 1 - step, 4 * step
        w = 2 * v - a
        s = jnp.sign(w) * _concave_root(jnp.tanh, lambda s: 1 - jnp.tanh(s) ** 2, a, b, jnp.abs(w))
        s = jax.lax.stop_gradient(s)
        slope = a * (1 - jnp.tanh(s) ** 2) + b
        return jax.nn.sigmoid(2 * (s - (a * jnp.tanh(s) + b * s - w) / slope))

    def preimage(self, u: Float[Array, "*y"]) -> Float[Array, "*y"]:
        """`log(u / (1 - u))`."""
        return jnp.log(u) - jnp.log1p(-u)

    def potential_entries(self, u: Float[Array, "*y"]) -> Float[Array, "*y"]:
        """`u log u + (1 - u) log(1 - u)`."""
        return xlogy(u, u) + xlog1py(1 - u, -u)

    def conjugate_entries(self, z: Float[Array, "*y"]) -> Float[Array, "*y"]:
        """`log(1 + exp(z))`."""
        return jax.nn.softplus(z)

    def gap_entries(self, y: Float[Array, "*y"], z: Float[Array, "*y"]) -> Float[Array, "*y"]:
        """`phi(y) + |z| (1 - y or y) + log(1 + exp(-|z|))`, `1 - y` where `z > 0`."""
        size = jnp.abs(z)
        linear = size * jnp.where(z > 0, 1 - y, y) + jnp.log1p(jnp.exp(-size))
        return jnp.maximum(self.potential_entries(y) + linear, 0)  # below zero only by rounding


class ELU(AbstractEntrywise):
    """`sigma(z) = z` for `z > 0`, else `c (exp(z) - 1)`; `phi(u) = (u + c) log(1 + u/c) - u` on [-c, 0].

    Args:
        coefficient: `c`, in (0, 1]; the slope exceeds one for a larger one.

    Raises:
        ValueError: another coefficient.
    """

    coefficient: float = eqx.field(static=True)

    def __init__(self, coefficient: float | int = 1.0):
        if not 0 < coefficient <= 1:
            raise ValueError(
                f"ELU(coefficient={coefficient}) is not proximal; expected 0 < coefficient <= 1. The default of "
                "jax.nn.elu, 1, is admissible; SELU is not."
            )
        self.coefficient = float(coefficient)

    def __call__(self, z: Float[Array, "*y"]) -> Float[Array, "*y"]:
        """`z` for `z > 0`, else `c (exp(z) - 1)`."""
        return jnp.where(z > 0, z, self.coefficient * jnp.expm1(jnp.minimum(z, 0)))

    def bounds(self) -> tuple[float, float]:
        """`u >= -c`."""
        return -self.coefficient, jnp.inf

    def interior(self, y: Float[Array, "*y"], margin: float | int = 1e-6) -> Float[Array, "*y"]:
        """`max(y, -c + margin)`."""
        return jnp.maximum(y, -self.coefficient + margin)

    def prox(self, v: Float[Array, "*y"], step: Step) -> Float[Array, "*y"]:
        """`v` for `v > 0`, else `c (exp(-r) - 1)` with `(1 - step) c (1 - exp(-r)) + step r = -v`."""
        a, b = (1 - step) * self.coefficient, step
        w = jnp.maximum(-v, 0)
        r = jax.lax.stop_gradient(_concave_root(lambda r: -jnp.expm1(-r), lambda r: jnp.exp(-r), a, b, w))
        r = r - (b * r - a * jnp.expm1(-r) - w) / (a * jnp.exp(-r) + b)
        return jnp.where(v > 0, v, self.coefficient * jnp.expm1(-r))

    def preimage(self, u: Float[Array, "*y"]) -> Float[Array, "*y"]:
        """`u` for `u > 0`, else `log(1 + u/c)`."""
        return jnp.where(u > 0, u, jnp.log1p(jnp.minimum(u, 0) / self.coefficient))

    def potential_entries(self, u: Float[Array, "*y"]) -> Float[Array, "*y"]:
        """`u^2/2` for `u > 0`, else `(u + c) log(1 + u/c) - u`."""
        low = jnp.minimum(u, 0)
        return 0.5 * jnp.maximum(u, 0) ** 2 + xlog1py(low + self.coefficient, low / self.coefficient) - low

    def conjugate_entries(self, z: Float[Array, "*y"]) -> Float[Array, "*y"]:
        """`z^2/2` for `z > 0`, else `c (exp(z) - 1 - z)`."""
        low = jnp.minimum(z, 0)
        return 0.5 * jnp.maximum(z, 0) ** 2 + self.coefficient * (jnp.expm1(low) - low)

    def gap_entries(self, y: Float[Array, "*y"], z: Float[Array, "*y"]) -> Float[Array, "*y"]:
        """`(y - z)^2/2` where both are positive; `w log(w/q) - w + q` at `w = y + c`, `q = c exp(z)` where none is."""
        c = self.coefficient
        w, q = jnp.minimum(y, 0) + c, c * jnp.exp(jnp.minimum(z, 0))
        # Of `w log(w/q) - w + q` the leading terms cancel where w is near q.
        low = jnp.maximum(xlogy(w, w / c) - w * jnp.minimum(z, 0) - w + q, 0)
        mixed = self.potential_entries(y) + self.conjugate_entries(z) - y * z  # no term is negative
        return jnp.where((y > 0) & (z > 0), 0.5 * (y - z) ** 2, jnp.where((y <= 0) & (z <= 0), low, mixed))


class Softplus(AbstractEntrywise):
    """`sigma(z) = log(1 + exp(z))`, with `phi'(u) = log(exp(u) - 1)` on `u >= 0`.

    `phi` and `phi*` need a dilogarithm: their values and that of `gap` are refused. The gradient `sigma(z) - y` of the
    penalty, its proximal maps, and so training and inversion, do not need them.
    """

    def __call__(self, z: Float[Array, "*y"]) -> Float[Array, "*y"]:
        """`log(1 + exp(z))`."""
        return jax.nn.softplus(z)

    def bounds(self) -> tuple[float, float]:
        """`u >= 0`."""
        return 0.0, jnp.inf

    def interior(self, y: Float[Array, "*y"], margin: float | int = 1e-6) -> Float[Array, "*y"]:
        """`max(y, margin)`."""
        return jnp.maximum(y, margin)

    def prox(self, v: Float[Array, "*y"], step: Step) -> Float[Array, "*y"]:
        """`sigma(s)` with `(1 - step) sigma(s) + step s = v`."""

        def newton(s: Array, v: Array) -> Array:
            residual = (1 - step) * jax.nn.softplus(s) + step * s - v
            return s - residual / ((1 - step) * jax.nn.sigmoid(s) + step)

        # With max(s, 0) for softplus the equation is solved by the start: from there Newton's method is monotone.
        start = jax.lax.stop_gradient(jnp.where(v > 0, v, v / step))
        s = jax.lax.fori_loop(0, NUM_NEWTON, lambda _, s: newton(s, jax.lax.stop_gradient(v)), start)
        return jax.nn.softplus(newton(jax.lax.stop_gradient(s), v))

    def preimage(self, u: Float[Array, "*y"]) -> Float[Array, "*y"]:
        """`log(exp(u) - 1)`."""
        return u + jnp.log(-jnp.expm1(-u))

    def potential_entries(self, u: Float[Array, "*y"]) -> Float[Array, "*y"]:
        """Refused."""
        raise ValueError(_NO_VALUE)

    def conjugate_entries(self, z: Float[Array, "*y"]) -> Float[Array, "*y"]:
        """Refused."""
        raise ValueError(_NO_VALUE)

    def gap_entries(self, y: Float[Array, "*y"], z: Float[Array, "*y"]) -> Float[Array, "*y"]:
        """Refused."""
        raise ValueError(_NO_VALUE)


_NO_VALUE = (
    "Softplus has no potential, conjugate or gap in elementary functions; its activation, its proximal maps and the "
    "gradient `activation(z) - y` of the penalty do exist. Where values are needed use `ELU()` or `ReLU()`."
)


def _concave_root(h, h_slope, a, b, w):
    """The `s >= 0` with `a h(s) + b s = w >= 0`, for a concave `h` with `0 <= h(s) <= min(1, s)`, `a + b > 0`, `b > 0`.

    With `min(1, s)` for `h` the equation is solved by the start: it lies left of the root where `a >= 0` and the
    left-hand side is concave, right of it where `a < 0` and that is convex. Newton's method is monotone from there.
    """
    a, b, w = jax.lax.stop_gradient((a, b, w))
    ends = w / (a + b), (w - a) / b
    start = jnp.where(jnp.asarray(a) >= 0, jnp.maximum(*ends), jnp.minimum(*ends))
    return jax.lax.fori_loop(0, NUM_NEWTON, lambda _, s: s - (a * h(s) + b * s - w) / (a * h_slope(s) + b), start)
