"""Activations of a whole array: softmax, block soft-threshold, projections, and products of activations."""

import functools
import operator
from collections.abc import Callable, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.scipy.special import xlogy
from jaxtyping import Array, Bool, Float, Scalar

from ..maps import store
from ._abstract_activation import AbstractActivation, Step, rounding

NUM_NEWTON = 16


class Softmax(AbstractActivation):
    """`sigma(z) = exp(z) / sum(exp(z))`, `phi(u) = sum(u log u)` on the simplex.

    For a last layer: `B(y, z)` is the cross-entropy less the entropy of `y`, so that a softmax head with one-hot data
    is trained by the cross-entropy.
    """

    def __call__(self, z: Float[Array, "*y"]) -> Float[Array, "*y"]:
        """`exp(z) / sum(exp(z))` over the whole array."""
        return jax.nn.softmax(z, axis=None)

    @property
    def curvature(self) -> float:
        """`1/2`."""
        return 0.5

    def potential(self, u: Float[Array, "*y"]) -> Scalar:
        """`sum(u log u)`."""
        u_in = jnp.maximum(u, 0)
        return jnp.where(self.contains(u), jnp.sum(xlogy(u_in, u_in)), jnp.inf)

    def conjugate(self, z: Float[Array, "*y"]) -> Scalar:
        """`log sum(exp(z))`."""
        return jax.nn.logsumexp(z)

    def gap_value(self, y: Float[Array, "*y"], z: Float[Array, "*y"]) -> Scalar:
        """`sum(y log y) - <y, log_softmax(z)>`."""
        y_in = jnp.maximum(y, 0)
        terms = xlogy(y_in, y_in) - y_in * jax.nn.log_softmax(z, axis=None)
        return jnp.where(self.contains(y), jnp.maximum(jnp.sum(terms), 0), jnp.inf)

    def contains(self, y: Float[Array, "*y"]) -> Bool[Array, ""]:
        """Whether `y` is a distribution; its sum may be one up to the square root of the rounding error."""
        tolerance = float(jnp.finfo(y.dtype).eps) ** 0.5
        return jnp.all(y >= -rounding(y)) & (jnp.abs(jnp.sum(y) - 1) <= tolerance)

    def project(self, y: Float[Array, "*y"]) -> Float[Array, "*y"]:
        """The nearest distribution: `max(y - t, 0)` with the `t` that makes it sum to one."""
        ordered = jnp.sort(jnp.ravel(y), descending=True)
        levels = (jnp.cumsum(ordered) - 1) / jnp.arange(1, y.size + 1, dtype=y.dtype)
        return jnp.maximum(y - jnp.max(levels), 0)

    def interior(self, y: Float[Array, "*y"], margin: float | int = 1e-6) -> Float[Array, "*y"]:
        """The nearest distribution, mixed with the uniform one so that no entry is below `margin`."""
        weight = margin * y.size
        return (1 - weight) * self.project(y) + margin

    def prox(self, v: Float[Array, "*y"], step: Step) -> Float[Array, "*y"]:
        """`exp(a)` with `step a + (1 - step) exp(a) = v + l`, and the `l` that makes it sum to one; `step` a scalar.

        Both equations by Newton's method, the one inside the other. For each `l` the entries of `exp(a)` are increasing
        and convex in `l`, and at the start the largest is one: from there it is monotone.
        """
        fixed, t = jax.lax.stop_gradient((v, step))

        def logarithms(level: Array) -> Array:
            w = fixed + level
            start = jnp.minimum(w / t, 0)
            newton = lambda _, a: a - (t * a + (1 - t) * jnp.exp(a) - w) / (t + (1 - t) * jnp.exp(a))
            return jax.lax.fori_loop(0, NUM_NEWTON, newton, start)

        def improve(_: Any, level: Array) -> Array:
            u = jnp.exp(logarithms(level))
            return level - (jnp.sum(u) - 1) / jnp.sum(u / (t + (1 - t) * u))

        level = jax.lax.fori_loop(0, NUM_NEWTON, improve, 1 - t - jnp.max(fixed))
        a = logarithms(level)
        # One more step for both at once: it carries the derivatives in v and in the step.
        u = jnp.exp(a)
        slope = t + (1 - t) * u
        residual = step * a + (1 - step) * u - v - level
        shift = (jnp.sum(u * residual / slope) - (jnp.sum(u) - 1)) / jnp.sum(u / slope)
        return jnp.exp(a + (shift - residual) / slope)

    def preimage(self, u: Float[Array, "*y"]) -> Float[Array, "*y"]:
        """`log(u)`."""
        return jnp.log(u)


class BlockSoftThreshold(AbstractActivation):
    """`sigma(z) = max(1 - threshold/|z|, 0) z`, `Psi(u) = threshold |u|` with the norm of the whole array.

    Args:
        threshold: not negative.

    Raises:
        ValueError: a negative threshold.
    """

    threshold: float = eqx.field(static=True)

    def __init__(self, threshold: float | int):
        if not threshold >= 0:
            raise ValueError(f"BlockSoftThreshold(threshold={threshold}); expected threshold >= 0.")
        self.threshold = float(threshold)

    def __call__(self, z: Float[Array, "*y"]) -> Float[Array, "*y"]:
        """`max(1 - threshold/|z|, 0) z`."""
        return self.prox(z, 1)

    def potential(self, u: Float[Array, "*y"]) -> Scalar:
        """`|u|^2/2 + threshold |u|`."""
        return 0.5 * jnp.sum(u**2) + self.threshold * _norm(u)

    def conjugate(self, z: Float[Array, "*y"]) -> Scalar:
        """`max(|z| - threshold, 0)^2/2`."""
        return 0.5 * jnp.sum(self(z) ** 2)

    def gap_value(self, y: Float[Array, "*y"], z: Float[Array, "*y"]) -> Scalar:
        """`|y - p|^2/2 + |y| (threshold - |q| + |q| |y/|y| - q/|q||^2/2)`, `p = sigma(z)`, `q = z - p`."""
        p = self(z)
        size = jnp.minimum(_norm(z), self.threshold)
        angle = 0.5 * jnp.sum((_direction(y) - _direction(z)) ** 2)
        return 0.5 * jnp.sum((y - p) ** 2) + _norm(y) * (self.threshold - size + size * angle)

    def project(self, y: Float[Array, "*y"]) -> Float[Array, "*y"]:
        """`y`."""
        return y

    def prox(self, v: Float[Array, "*y"], step: Step) -> Float[Array, "*y"]:
        """`max(1 - step threshold/|v|, 0) v`."""
        size, level = _norm(v), step * self.threshold
        kept = size > level
        return jnp.where(kept, 1 - level / jnp.where(kept, size, 1), 0) * v

    def preimage(self, u: Float[Array, "*y"]) -> Float[Array, "*y"]:
        """`u + threshold u/|u|`."""
        return u + self.threshold * _direction(u)


class BallProjection(AbstractActivation):
    """`sigma(z) = z / max(1, |z|/radius)`, `Psi` the indicator of the ball `|u| <= radius`.

    Args:
        radius: positive.

    Raises:
        ValueError: a radius that is not positive.
    """

    radius: float = eqx.field(static=True)

    def __init__(self, radius: float | int = 1.0):
        if not radius > 0:
            raise ValueError(f"BallProjection(radius={radius}); expected radius > 0.")
        self.radius = float(radius)

    def __call__(self, z: Float[Array, "*y"]) -> Float[Array, "*y"]:
        """`z / max(1, |z|/radius)`."""
        return z / jnp.maximum(_norm(z) / self.radius, 1)

    def potential(self, u: Float[Array, "*y"]) -> Scalar:
        """`|u|^2/2`."""
        return jnp.where(self.contains(u), 0.5 * jnp.sum(u**2), jnp.inf)

    def conjugate(self, z: Float[Array, "*y"]) -> Scalar:
        """`|z|^2/2 - max(|z| - radius, 0)^2/2`, as `<z, p> - |p|^2/2`."""
        p = self(z)
        return jnp.sum(p * (z - 0.5 * p))

    def gap_value(self, y: Float[Array, "*y"], z: Float[Array, "*y"]) -> Scalar:
        """`(1 + k) |y - p|^2/2 + k (radius^2 - |y|^2)/2`, `p = sigma(z)`, `k = max(|z|/radius - 1, 0)`."""
        excess, size = jnp.maximum(_norm(z) / self.radius - 1, 0), _norm(y)
        room = jnp.maximum(self.radius - size, 0) * (self.radius + size)
        value = 0.5 * (1 + excess) * jnp.sum((y - self(z)) ** 2) + 0.5 * excess * room
        return jnp.where(self.contains(y), value, jnp.inf)

    def contains(self, y: Float[Array, "*y"]) -> Bool[Array, ""]:
        """Whether `|y| <= radius`, up to rounding."""
        return _norm(y) <= self.radius * (1 + rounding(y))

    def project(self, y: Float[Array, "*y"]) -> Float[Array, "*y"]:
        """`sigma(y)`."""
        return self(y)

    def prox(self, v: Float[Array, "*y"], step: Step) -> Float[Array, "*y"]:
        """`sigma(v)` for every step."""
        del step
        return self(v)

    def preimage(self, u: Float[Array, "*y"]) -> Float[Array, "*y"]:
        """`u`."""
        return u


class Projection(AbstractActivation):
    """The projection onto a closed convex set, `Psi` its indicator.

    Args:
        projection: `z -> ` the nearest point of the set; any callable.
        membership: `y -> ` a boolean scalar, whether `y` lies in the set. By default `y` may differ from its projection
            by rounding.
    """

    projection: Any
    membership: Any

    def __init__(self, projection: Callable[[Any], Any], membership: Callable[[Any], Any] | None = None):
        self.projection, self.membership = store(projection), store(membership)

    def __call__(self, z: Float[Array, "*y"]) -> Float[Array, "*y"]:
        """The nearest point of the set."""
        return self.projection(z)

    def potential(self, u: Float[Array, "*y"]) -> Scalar:
        """`|u|^2/2` in the set."""
        return jnp.where(self.contains(u), 0.5 * jnp.sum(u**2), jnp.inf)

    def conjugate(self, z: Float[Array, "*y"]) -> Scalar:
        """`<z, p> - |p|^2/2`, `p` the projection."""
        p = self(z)
        return jnp.sum(p * (z - 0.5 * p))

    def gap_value(self, y: Float[Array, "*y"], z: Float[Array, "*y"]) -> Scalar:
        """`|y - p|^2/2 + <p - z, y - p>`."""
        p = self(z)
        value = 0.5 * jnp.sum((y - p) ** 2) + jnp.maximum(jnp.sum((p - z) * (y - p)), 0)
        return jnp.where(self.contains(y), value, jnp.inf)

    def contains(self, y: Float[Array, "*y"]) -> Bool[Array, ""]:
        """Whether `y` lies in the set."""
        return super().contains(y) if self.membership is None else jnp.asarray(self.membership(y))

    def project(self, y: Float[Array, "*y"]) -> Float[Array, "*y"]:
        """`sigma(y)`."""
        return self(y)

    def prox(self, v: Float[Array, "*y"], step: Step) -> Float[Array, "*y"]:
        """`sigma(v)` for every step."""
        del step
        return self(v)

    def preimage(self, u: Float[Array, "*y"]) -> Float[Array, "*y"]:
        """`u`."""
        return u


class Product(AbstractActivation):
    """One activation for each array of a tuple; values are added up.

    Args:
        activations: as many as there are arrays. A step is a scalar, the same for all of them.

    Raises:
        ValueError: no activation, or something else.
    """

    activations: tuple[AbstractActivation, ...]

    def __init__(self, activations: Sequence[Any]):
        activations = tuple(activations)
        if not activations or not all(isinstance(each, AbstractActivation) for each in activations):
            raise ValueError(
                f"Product({activations}); expected a tuple of activations. `as_activation` makes one of a function."
            )
        self.activations = activations

    @property
    def curvature(self) -> float:
        """The largest."""
        return max(each.curvature for each in self.activations)

    def _each(self, method: str, *parts: Any, rest: tuple[Any, ...] = ()) -> tuple[Any, ...]:
        return tuple(getattr(each, method)(*part, *rest) for each, *part in zip(self.activations, *parts, strict=True))

    def _sum(self, method: str, *parts: Any) -> Scalar:
        return functools.reduce(operator.add, self._each(method, *parts))

    def __call__(self, z: tuple[Array, ...]) -> tuple[Array, ...]:
        """Each activation on its array."""
        return self._each("__call__", z)

    def potential(self, u: tuple[Array, ...]) -> Scalar:
        """The sum."""
        return self._sum("potential", u)

    def conjugate(self, z: tuple[Array, ...]) -> Scalar:
        """The sum."""
        return self._sum("conjugate", z)

    def gap_value(self, y: tuple[Array, ...], z: tuple[Array, ...]) -> Scalar:
        """The sum."""
        return self._sum("gap_value", y, z)

    def contains(self, y: tuple[Array, ...]) -> Bool[Array, ""]:
        """Whether all do."""
        return jnp.all(jnp.stack(self._each("contains", y)))

    def project(self, y: tuple[Array, ...]) -> tuple[Array, ...]:
        """Each on its array."""
        return self._each("project", y)

    def interior(self, y: tuple[Array, ...], margin: float | int = 1e-6) -> tuple[Array, ...]:
        """Each on its array."""
        return self._each("interior", y, rest=(margin,))

    def preimage(self, u: tuple[Array, ...]) -> tuple[Array, ...]:
        """Each on its array."""
        return self._each("preimage", u)

    def prox(self, v: tuple[Array, ...], step: Step) -> tuple[Array, ...]:
        """Each on its array."""
        return self._each("prox", v, rest=(step,))

    def prox_potential(self, v: tuple[Array, ...], step: Step) -> tuple[Array, ...]:
        """Each on its array."""
        return self._each("prox_potential", v, rest=(step,))

    def prox_gap(self, t: tuple[Array, ...], y: tuple[Array, ...], step: Step) -> tuple[Array, ...]:
        """Each on its array."""
        return self._each("prox_gap", t, y, rest=(step,))

    def prox_gap_conjugate(self, t: tuple[Array, ...], y: tuple[Array, ...], step: Step) -> tuple[Array, ...]:
        """Each on its array."""
        return self._each("prox_gap_conjugate", t, y, rest=(step,))


def _norm(v: Array) -> Array:
    """The norm of the whole array, with derivative zero at zero."""
    square = jnp.sum(v**2)
    return jnp.where(square > 0, jnp.sqrt(jnp.where(square > 0, square, 1)), 0)


def _direction(v: Array) -> Array:
    size = _norm(v)
    return v / jnp.where(size > 0, size, 1)
