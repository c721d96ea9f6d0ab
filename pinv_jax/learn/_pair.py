"""A forward map and its learned inverse as one model: `InversePair`, and the single-layer `Deceptron`."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, PRNGKeyArray

from ..maps import Linear, Stored, kaiming_uniform, store

Affine = tuple[Float[Array, "_ _"], Float[Array, " _"]]


def _first_affine(fn: Any) -> Affine:
    def found(node: Any) -> bool:
        return isinstance(node, Linear | eqx.nn.Linear | Stored)

    for node in jax.tree.leaves(fn, is_leaf=found):
        if isinstance(node, Stored):
            return _first_affine(node.fn)
        if isinstance(node, Linear | eqx.nn.Linear):
            return node.weight, jnp.zeros(node.weight.shape[0], node.weight.dtype) if node.bias is None else node.bias
    raise ValueError(
        f"{type(fn).__name__} has no affine layer, which the spectral, bias and composition terms act on; "
        "leave those terms out for this map."
    )


class InversePair(eqx.Module):
    """A forward map `x -> y` and an inverse `y -> x`, on single examples; a valid argument of `jax.jit`.

    Either may be fixed: `Stage(trainable=lambda model: model.inverse)` trains the inverse of a known physics.

    Args:
        forward: any callable `x -> y`.
        inverse: any callable `y -> x`. Given to a solver as `pair.inverse`.
    """

    forward: Any
    inverse: Any

    def __init__(self, forward: Callable[..., Any], inverse: Callable[..., Any]):
        self.forward = store(forward)
        self.inverse = store(inverse)

    def first_affine(self) -> tuple[Affine, Affine]:
        """Weight and bias of the first affine layer of the forward map, and of the inverse.

        Raises:
            ValueError: if one of them has no affine layer.
        """
        return _first_affine(self.forward), _first_affine(self.inverse)


class Deceptron(eqx.Module):
    """The single-layer pair `f(x) = s(W x + b)`, `g(y) = V m(y) + c`, with `m` the mirror of the leaky ReLU `s`.

    The mirror comes first, because `m` undoes `s` and `V` the matrix. The published code applies it last,
    `m(V y + c)`, which is no inverse; with `slope=1.0`, the published setting, the two agree.

    Args:
        in_size, out_size: lengths of `x` and `y`.
        slope: of the negative side of `s`; 1.0 makes both activations the identity.
        tied: `V` is the transpose of `W`, no parameter of its own.
        dtype: of the parameters; the default float by default.
        key: random key of the initial weights, uniform on `(-b, b)` with `b = 1 / sqrt(fan_in)`; biases start at zero.

    References:
        A. L. Kachhadiya, Deceptron: Learned Local Inverses for Fast and Stable Physics Inversion, 2025,
        arXiv:2511.21076.
    """

    weight: Float[Array, "m d"]
    bias: Float[Array, " m"]
    inverse_weight: Float[Array, "d m"] | None
    inverse_bias: Float[Array, " d"]
    slope: float = eqx.field(static=True)

    def __init__(
        self,
        in_size: int,
        out_size: int,
        *,
        slope: float = 1.0,
        tied: bool = False,
        dtype: DTypeLike | None = None,
        key: PRNGKeyArray,
    ):
        if not slope > 0:
            raise ValueError(f"Deceptron: slope={slope}; expected a positive number, 1.0 for no activation.")
        dtype = jnp.result_type(float if dtype is None else dtype)
        init = kaiming_uniform(5**0.5)
        forward_key, inverse_key = jax.random.split(key)
        self.weight = init(forward_key, (out_size, in_size), dtype)
        self.bias = jnp.zeros(out_size, dtype)
        self.inverse_weight = None if tied else init(inverse_key, (in_size, out_size), dtype)
        self.inverse_bias = jnp.zeros(in_size, dtype)
        self.slope = slope

    def forward(self, x: Float[Array, " d"]) -> Float[Array, " m"]:
        """`s(W x + b)`."""
        z = self.weight @ x + self.bias
        return jnp.where(z >= 0, z, self.slope * z)

    def inverse(self, y: Float[Array, " m"]) -> Float[Array, " d"]:
        """`V m(y) + c`."""
        (_, _), (weight, bias) = self.first_affine()
        return weight @ jnp.where(y >= 0, y, y / self.slope) + bias

    def first_affine(self) -> tuple[Affine, Affine]:
        """`(W, b), (V, c)`."""
        inverse_weight = self.weight.T if self.inverse_weight is None else self.inverse_weight
        return (self.weight, self.bias), (inverse_weight, self.inverse_bias)
