"""Trainable networks for surrogates and inverses: multi-layer perceptrons, plain and with a linear skip."""

from collections.abc import Callable, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Key

from ._base import AbstractMap, Stored, store

Initialiser = Callable[[Array, tuple[int, ...], Any], Array]


def _identity(x: Float[Array, "*x"]) -> Float[Array, "*x"]:
    return x


def _leaky_relu(x: Float[Array, "*x"]) -> Float[Array, "*x"]:
    return jax.nn.leaky_relu(x, negative_slope=0.1)


ACTIVATIONS: dict[str, Callable[..., Array]] = {
    "identity": _identity,
    "leaky_relu": _leaky_relu,  # slope 0.1, that of the Deceptron papers; jax.nn's default is 0.01
    "relu": jax.nn.relu,
    "tanh": jnp.tanh,
    "sigmoid": jax.nn.sigmoid,
    "silu": jax.nn.silu,
    "gelu": jax.nn.gelu,
    "softplus": jax.nn.softplus,
}
"""The activations that networks know by name."""


def kaiming_uniform(negative_slope: float = 0.1) -> Initialiser:
    """Weights uniform on `(-b, b)` with `b = sqrt(6 / ((1 + negative_slope^2) * fan_in))`.

    Args:
        negative_slope: of the leaky ReLU that follows. The default is the init of the published Heat-1D networks;
            `5**0.5` is the default of PyTorch's `nn.Linear`, `b = 1 / sqrt(fan_in)`.

    Returns:
        `init(key, shape, dtype)` for weights of shape `(out, in)` or `(out, in, *window)`.

    References:
        K. He, X. Zhang, S. Ren, J. Sun, "Delving Deep into Rectifiers", 2015, arXiv:1502.01852.
    """

    def init(key: Array, shape: tuple[int, ...], dtype: Any) -> Array:
        fan_in = 1
        for size in shape[1:]:
            fan_in *= size
        bound = (6.0 / ((1.0 + negative_slope**2) * fan_in)) ** 0.5
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init


class Linear(AbstractMap):
    """`y = W x + b`.

    Args:
        in_size, out_size: lengths of `x` and `y`.
        init: initialises the weight, `init(key, (out_size, in_size), dtype)`; the bias starts at zero.
        dtype: of the parameters; the default float by default.
        key: random key.
    """

    weight: Float[Array, "out in"]
    bias: Float[Array, " out"]

    def __init__(
        self,
        in_size: int,
        out_size: int,
        *,
        init: Initialiser | None = None,
        dtype: DTypeLike | None = None,
        key: Key[Array, ""],
    ):
        dtype = jnp.result_type(float if dtype is None else dtype)
        self.weight = (init or kaiming_uniform())(key, (out_size, in_size), dtype)
        self.bias = jnp.zeros(out_size, dtype)

    def __call__(self, x: Float[Array, " in"]) -> Float[Array, " out"]:
        """`W x + b`."""
        return self.weight @ x + self.bias

    def in_structure(self) -> jax.ShapeDtypeStruct:
        """Shape and dtype of `x`."""
        return jax.ShapeDtypeStruct(self.weight.shape[1:], self.weight.dtype)


class MLP(AbstractMap):
    """`x -> output_activation(W_n a(... a(W_1 x + b_1)) + b_n)`, a multi-layer perceptron.

    The single layer `LeakyReLU(W x + b)` of the papers is `MLP((64, 64), output_activation="leaky_relu", key=key)`;
    their inverse network is `MLP((64, 128, 64), key=key)`. Weights computed elsewhere go in by
    `eqx.tree_at(lambda net: net.layers[0].weight, net, weight)`, and `bias` likewise, in PyTorch's shapes.

    Args:
        sizes: the length of `x`, of every hidden layer, and of `y`: at least two numbers.
        activation: between layers: a name in `ACTIVATIONS` or a callable.
        output_activation: after the last layer, likewise.
        init: initialises the weights, `init(key, (out, in), dtype)`; biases start at zero. By default
            `kaiming_uniform(0.1)`.
        dtype: of the parameters; the default float by default.
        key: random key.

    Raises:
        ValueError: fewer than two sizes, or an unknown activation.
    """

    layers: tuple[Linear, ...]
    activation: Stored
    output_activation: Stored

    def __init__(
        self,
        sizes: Sequence[int],
        *,
        activation: str | Callable[..., Any] = "leaky_relu",
        output_activation: str | Callable[..., Any] = "identity",
        init: Initialiser | None = None,
        dtype: DTypeLike | None = None,
        key: Key[Array, ""],
    ):
        if len(sizes) < 2:
            raise ValueError(f"A network expected sizes (in, ..., out), at least two numbers, got {tuple(sizes)}.")
        keys = jax.random.split(key, len(sizes) - 1)
        self.layers = tuple(
            Linear(sizes[i], sizes[i + 1], init=init, dtype=dtype, key=keys[i]) for i in range(len(sizes) - 1)
        )
        self.activation = _activation(activation)
        self.output_activation = _activation(output_activation)

    def __call__(self, x: Float[Array, " in"]) -> Float[Array, " out"]:
        """The output of the network."""
        for layer in self.layers[:-1]:
            x = self.activation(layer(x))
        return self.output_activation(self.layers[-1](x))

    def in_structure(self) -> jax.ShapeDtypeStruct:
        """Shape and dtype of `x`."""
        return self.layers[0].in_structure()


class LinearSkipMLP(AbstractMap):
    """`y = A x + b + N(x)`: an affine map plus a network that learns what is not affine.

    The last layer of `N` starts at zero, so that the map starts as `A x + b`: a least-squares fit put into `skip` is
    the exact starting point.

    Args:
        sizes: of the network `N`; the first and last are also the lengths of `x` and `y`.
        activation: between the layers of `N`: a name in `ACTIVATIONS` or a callable.
        init: initialises the weights, `init(key, (out, in), dtype)`. By default `kaiming_uniform(0.1)`.
        dtype: of the parameters; the default float by default.
        key: random key.
    """

    skip: Linear
    network: MLP

    def __init__(
        self,
        sizes: Sequence[int],
        *,
        activation: str | Callable[..., Any] = "leaky_relu",
        init: Initialiser | None = None,
        dtype: DTypeLike | None = None,
        key: Key[Array, ""],
    ):
        skip_key, network_key = jax.random.split(key)
        network = MLP(sizes, activation=activation, init=init, dtype=dtype, key=network_key)
        self.network = eqx.tree_at(lambda net: net.layers[-1].weight, network, replace_fn=jnp.zeros_like)
        self.skip = Linear(sizes[0], sizes[-1], init=init, dtype=dtype, key=skip_key)

    def __call__(self, x: Float[Array, " in"]) -> Float[Array, " out"]:
        """`A x + b + N(x)`."""
        return self.skip(x) + self.network(x)

    def in_structure(self) -> jax.ShapeDtypeStruct:
        """Shape and dtype of `x`."""
        return self.skip.in_structure()


def _activation(activation: str | Callable[..., Any]) -> Stored:
    if isinstance(activation, str):
        if activation not in ACTIVATIONS:
            raise ValueError(
                f"Unknown activation '{activation}'. Known are {', '.join(ACTIVATIONS)}; or pass a callable."
            )
        activation = ACTIVATIONS[activation]
    return store(activation)
