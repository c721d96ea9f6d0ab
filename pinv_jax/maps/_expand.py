"""`(x, a) -> f(x) + a`: auxiliary coordinates that make any map a surjection."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ._base import AbstractMap, AbstractSurjection, store


class Expand(AbstractSurjection[Float[Array, "*x"]]):
    """Any map `f`, onto its whole output space thanks to `m` more inputs.

    The input is the flat vector `(x, a)` of `n + m` numbers, `a` shaped like `y`; `z = x`. `merge(y, x)` puts into `a`
    whatever `f(x)` misses of `y`, so that `pinv(y) = (inverse(y), y - f(inverse(y)))` meets any `y`, in the range of
    `f` or not. `distance(y) = |a|` bounds how far `y` is from that range, and is that distance where `inverse` returns
    a least-squares solution. So let it solve::

        Expand(f, lambda y: solve(Problem(f, y), solvers.LevenbergMarquardt(), x0).value)

    Args:
        forward: the map `f`. Wrap a function as `Ravelled(fn, example)`.
        inverse: `y -> x`, approximate; a learned inverse or a solver. By default `x = 0`.

    Raises:
        ValueError: `forward` is not an `AbstractMap`, its input and output differ in dtype, or `inverse` does not
            return an `x`.
    """

    forward: AbstractMap
    inverse: Any

    def __init__(self, forward: Callable[..., Any], inverse: Callable[..., Any] | None = None):
        if not isinstance(forward, AbstractMap):
            raise ValueError(
                f"Expand expected an AbstractMap, which says the shape of x, got {type(forward).__name__}. Wrap a "
                "function as Ravelled(fn, example)."
            )
        self.forward = forward
        self.inverse = inverse if isinstance(inverse, AbstractMap) else store(inverse)
        x, y = forward.in_structure(), forward.out_structure()
        if x.dtype != y.dtype:
            raise ValueError(
                f"Expand expected one dtype for x and y, got {x.dtype} and {y.dtype}. Convert one of them."
            )
        if inverse is not None:
            got = jax.eval_shape(self.inverse, y)
            if (got.shape, got.dtype) != (x.shape, x.dtype):
                raise ValueError(
                    f"Expand expected inverse to return an x of shape {x.shape} and dtype {x.dtype}, got {got.shape} "
                    f"and {got.dtype}."
                )

    def split(self, x: Float[Array, " n_plus_m"]) -> tuple[Float[Array, "*y"], Float[Array, "*x"]]:
        """`(f(x) + a, x)`."""
        size = self.forward.in_structure().size
        inner = x[:size].reshape(self.forward.in_structure().shape)
        y = self.forward(inner)
        return y + x[size:].reshape(y.shape), inner

    def merge(self, y: Float[Array, "*y"], z: Float[Array, "*x"]) -> Float[Array, " n_plus_m"]:
        """`(x, y - f(x))` with `x = z`."""
        return jnp.concatenate([jnp.ravel(z), jnp.ravel(y - self.forward(z))])

    def section(self, y: Float[Array, "*y"]) -> Float[Array, "*x"]:
        """`inverse(y)`, or zeros."""
        if self.inverse is None:
            return jnp.zeros(self.forward.in_structure().shape, y.dtype)
        return self.inverse(y)

    def in_structure(self) -> jax.ShapeDtypeStruct:
        """Shape and dtype of `(x, a)`."""
        x, y = self.forward.in_structure(), self.forward.out_structure()
        return jax.ShapeDtypeStruct((x.size + y.size,), x.dtype)

    def embed(self, x: Float[Array, "*x"]) -> Float[Array, " n_plus_m"]:
        """`(x, 0)`, which this map takes to `f(x)`."""
        return jnp.concatenate([jnp.ravel(x), jnp.zeros(self.forward.out_structure().size, x.dtype)])

    def distance(self, y: Float[Array, "*y"]) -> Float[Array, ""]:
        """`|y - f(inverse(y))|`, an upper bound of the Euclidean distance from `y` to the range of `f`."""
        return jnp.linalg.norm(jnp.ravel(y - self.forward(self.section(y))))
