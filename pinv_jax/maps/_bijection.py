"""Bijections that keep the shape of `x`: `AbstractBijection`, with the log-determinant of its Jacobian."""

import abc
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Scalar

from ._base import AbstractSurjection


class AbstractBijection(AbstractSurjection[tuple[()]]):
    """A map that keeps the shape of `x` and loses nothing, so `z` is the empty tuple.

    Implementing a bijection:

    - `apply(x)` and its exact inverse `invert(y)`;
    - the fields `shape` and `dtype` of `x`, both static;
    - `log_det` is overridden where it costs less than a dense Jacobian.
    """

    shape: eqx.AbstractVar[tuple[int, ...]]
    dtype: eqx.AbstractVar[np.dtype]

    @abc.abstractmethod
    def apply(self, x: Float[Array, "*x"]) -> Float[Array, "*x"]:
        """The map."""

    @abc.abstractmethod
    def invert(self, y: Float[Array, "*x"]) -> Float[Array, "*x"]:
        """The inverse of `apply`."""

    def log_det(self, x: Float[Array, "*x"]) -> Scalar:
        """`log |det J(x)|`, from the dense Jacobian: `O(n^3)` time and `O(n^2)` memory."""
        return dense_log_det(self.apply, x)

    def split(self, x: Float[Array, "*x"]) -> tuple[Float[Array, "*x"], tuple[()]]:
        """`(apply(x), ())`."""
        return self.apply(x), ()

    def merge(self, y: Float[Array, "*x"], z: tuple[()]) -> Float[Array, "*x"]:
        """`invert(y)`."""
        return self.invert(y)

    def section(self, y: Float[Array, "*x"]) -> tuple[()]:
        """The empty tuple."""
        return ()

    def in_structure(self) -> jax.ShapeDtypeStruct:
        """Shape and dtype of `x`."""
        return jax.ShapeDtypeStruct(self.shape, self.dtype)


def dense_log_det(f: Callable[..., Any], x: Float[Array, "*x"]) -> Scalar:
    """`log |det J(x)|` by forward mode."""
    n = x.size
    with jax.default_matmul_precision("highest"):
        jac = jax.jacfwd(lambda flat: jnp.ravel(f(flat.reshape(x.shape))))(jnp.ravel(x))
        return jnp.linalg.slogdet(jac.reshape(n, n))[1]
