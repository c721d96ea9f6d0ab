"""The natural pseudo-inverse of a surjection: `pinv(y) = merge(y, z(0))`, in closed form."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ._base import AbstractSurjection


class Natural(AbstractSurjection[Any]):
    """The same surjection as `f`, with the natural pseudo-inverse for its `pinv`.

    With the completion `G(x) = (y, z) = f.split(x)` the natural pseudo-inverse of `y` is the pre-image that minimises
    `|G(x) - G(0)|`: among all `x` with `f(x) = y` the one with `z(x) = z(0)`. So `section` is the constant
    `f.split(0)[1]`, whatever section `f` has, and `pinv(f(0)) = 0`. The minimum is over the norm of the completion
    and not of `x`, and it depends on which completion `split` uses.

    `prepare` computes `z(0)` once; unprepared every `section` splits the zero vector.

    Args:
        f: any surjection, a `SurjectiveChain` say.

    References:
        Y. Ehrlich, A. Berman, A. Shocher, "Pseudo-Invertible Neural Networks", 2026, arXiv:2602.06042.
    """

    f: AbstractSurjection[Any]
    prepared: Any

    def __init__(self, f: AbstractSurjection[Any]):
        self.f = f
        self.prepared = None

    def split(self, x: Float[Array, "*x"]) -> tuple[Float[Array, "*y"], Any]:
        """`f.split(x)`."""
        return self.f.split(x)

    def merge(self, y: Float[Array, "*y"], z: Any) -> Float[Array, "*x"]:
        """`f.merge(y, z)`."""
        return self.f.merge(y, z)

    def section(self, y: Float[Array, "*y"]) -> Any:
        """`z(0)`, the same for every `y`."""
        if self.prepared is not None:
            return self.prepared
        structure = self.f.in_structure()
        return self.f.split(jnp.zeros(structure.shape, structure.dtype))[1]

    def in_structure(self) -> jax.ShapeDtypeStruct:
        """Shape and dtype of `x`."""
        return self.f.in_structure()

    def prepare(self) -> "Natural":
        """The same map with `z(0)` computed."""
        if self.prepared is not None:
            return self
        y = jnp.zeros(self.out_structure().shape, self.out_structure().dtype)
        return eqx.tree_at(lambda m: m.prepared, self, self.section(y), is_leaf=lambda leaf: leaf is None)
