"""`y = A x + h(N x)`: any network `h` of the null-space coordinates, as an exactly invertible part of a surjection."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ._base import AbstractMap, AbstractSurjection, store


class NullSpace(AbstractSurjection[Any]):
    """A surjection to which a function of its own completion is added.

    With `(y0, z) = linear.split(x)`, `split(x) = (y0 + h(z), z)` and `merge(y, z) = linear.merge(y - h(z), z)`: however
    nonlinear `h` is, it never has to be inverted. It need not be a jax-style module either:
    `jax.tree_util.Partial(net.apply, params)` of flax does, its parameters being leaves.

    Args:
        linear: `LinearSurjection`, `OperatorSurjection`, `Downsample`, ...; any surjection works.
        h: `z -> y`; `z` is whatever `linear.split` returns second.
        section: `y -> z`, a learned choice of `z`; by default that of `linear`, zeros.

    Raises:
        ValueError: `linear` has no exact inverse, or `h` or `section` return another shape or dtype.
    """

    linear: AbstractSurjection[Any]
    h: Any
    section_net: Any

    def __init__(
        self,
        linear: AbstractMap,
        h: Callable[..., Any],
        section: Callable[..., Any] | None = None,
    ):
        if not isinstance(linear, AbstractSurjection):
            raise ValueError(
                f"NullSpace expected an AbstractSurjection with split and merge, got {type(linear).__name__}. For a "
                "matrix write LinearSurjection(matrix), for a lineax operator OperatorSurjection(operator)."
            )
        self.linear, self.h = linear, store(h)
        self.section_net = store(section)
        y, z = jax.eval_shape(linear.split, linear.in_structure())
        _check("h", jax.eval_shape(self.h, z), y)
        if section is not None:
            _check("section", jax.eval_shape(self.section_net, y), z)

    def split(self, x: Float[Array, "*x"]) -> tuple[Float[Array, "*y"], Any]:
        """`(y0 + h(z), z)` where `(y0, z) = linear.split(x)`."""
        y, z = self.linear.split(x)
        return y + self.h(z), z

    def merge(self, y: Float[Array, "*y"], z: Any) -> Float[Array, "*x"]:
        """`linear.merge(y - h(z), z)`."""
        # A matrix-free z has redundant coordinates: h must see what split would return.
        z = self.linear.split(self.linear.merge(jnp.zeros_like(y), z))[1]
        return self.linear.merge(y - self.h(z), z)

    def section(self, y: Float[Array, "*y"]) -> Any:
        """What the section net picks, or `linear`."""
        return self.linear.section(y) if self.section_net is None else self.section_net(y)

    def in_structure(self) -> jax.ShapeDtypeStruct:
        """Shape and dtype of `x`, those of `linear`."""
        return self.linear.in_structure()


def _check(name: str, got: Any, expected: Any) -> None:
    def described(tree):
        return jax.tree.map(lambda leaf: (leaf.shape, str(leaf.dtype)), tree)

    if described(got) != described(expected):
        raise ValueError(
            f"NullSpace expected {name} to return {described(expected)}, got {described(got)}. Reshape or convert its "
            "output; z is what linear.split returns second."
        )
