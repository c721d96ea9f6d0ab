"""Residual convolutional networks of fields in one, two or three dimensions, `ResidualCNN`."""

import functools
import math
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Key

from ._base import AbstractMap, Stored
from ._networks import _activation, kaiming_uniform

_WINDOW = 3
_MODES = {"zeros": "constant", "circular": "wrap"}


class FieldConv(eqx.Module):
    """`y_o = b_o + sum_i w_oi * x_i`, a cross-correlation with window 3, channels last; the sides of the field stay.

    Args:
        num_inputs, num_outputs: channels.
        num_dims: of space.
        padding: what lies outside the field: zeros, or its periodic continuation.
        dtype: of the parameters; the default float by default.
        key: random key. Weights and biases are uniform on `(-b, b)` with `b = 1 / sqrt(3^num_dims num_inputs)`, the
            default of PyTorch.
    """

    weight: Float[Array, "out in *window"]
    bias: Float[Array, " out"]
    padding: str = eqx.field(static=True)

    def __init__(
        self,
        num_inputs: int,
        num_outputs: int,
        *,
        num_dims: int,
        padding: str = "zeros",
        dtype: DTypeLike | None = None,
        key: Key[Array, ""],
    ):
        dtype = jnp.result_type(float if dtype is None else dtype)
        fan_in = num_inputs * _WINDOW**num_dims
        weight_key, bias_key = jax.random.split(key)
        # As a matrix: XLA takes much longer to compile random bits in more dimensions.
        weight = kaiming_uniform(5**0.5)(weight_key, (num_outputs, fan_in), dtype)
        self.weight = weight.reshape(num_outputs, num_inputs, *(_WINDOW,) * num_dims)
        self.bias = jax.random.uniform(bias_key, (num_outputs,), dtype, -(fan_in**-0.5), fan_in**-0.5)
        self.padding = padding

    def __call__(self, x: Float[Array, "*space in"]) -> Float[Array, "*space out"]:
        """The cross-correlation."""
        # On a CPU the two cost the same, except inside a loop, where a solver or a training is: there XLA's convolution
        # takes 10 to 40 times as long (`benchmarks/convolutions.py`). Other devices have kernels of their own for it.
        forms = {"cpu": _unfolded, "default": _convolved}
        forms = {device: functools.partial(form, padding=self.padding) for device, form in forms.items()}
        y = jax.lax.platform_dependent(self.weight, x, **forms)
        return y + self.bias.reshape(*(1,) * (x.ndim - 1), -1)


def _unfolded(
    weight: Float[Array, "out in *window"], x: Float[Array, "*space in"], *, padding: str
) -> Float[Array, "*space out"]:
    """The product of the weights with the entries under the window at every position.

    One gather: a slice for each of the 9 or 27 taps computes as fast, and compiles half as fast.
    """
    num_outputs, num_inputs, *window = weight.shape
    space = x.shape[:-1]
    entries = x.reshape(-1, num_inputs).at[_taps(space, padding)].get(mode="fill", fill_value=0)
    matrix = weight.reshape(num_outputs, num_inputs, -1).transpose(2, 1, 0).reshape(-1, num_outputs)
    return (entries.reshape(-1, matrix.shape[0]) @ matrix).reshape(*space, num_outputs)


def _taps(space: tuple[int, ...], padding: str) -> np.ndarray:
    """`(positions, taps)`: which of the positions lie under the window at each; out of range beyond a border."""
    num_positions = math.prod(space)
    own = np.arange(num_positions, dtype=np.int32).reshape(space)
    padded = np.pad(own, 1, mode="wrap") if padding == "circular" else np.pad(own, 1, constant_values=num_positions)
    return np.lib.stride_tricks.sliding_window_view(padded, (_WINDOW,) * len(space)).reshape(num_positions, -1)


def _convolved(
    weight: Float[Array, "out in *window"], x: Float[Array, "*space in"], *, padding: str
) -> Float[Array, "*space out"]:
    """The same by XLA's convolution."""
    num_dims = x.ndim - 1
    axes = "DHW"[-num_dims:]
    layout = (f"N{axes}C", f"OI{axes}", f"N{axes}C")
    padded = jnp.pad(x, [*[(1, 1)] * num_dims, (0, 0)], mode=_MODES[padding])
    return jax.lax.conv_general_dilated(padded[None], weight, (1,) * num_dims, "VALID", dimension_numbers=layout)[0]


class ResidualCNN(AbstractMap):
    """`x -> s(C_out h_n)` with `h_0 = a(C_in x)` and `h_k = a(h_{k-1} + C''_k a(C'_k h_{k-1}))`; `C` have window 3.

    The networks of the published three-dimensional heat problem, surrogate and inverse, are
    `ResidualCNN((8, 8, 8), width=12, num_blocks=2, key=key)`; the surrogate of the Allen-Cahn problem is
    `ResidualCNN((32, 32), width=48, num_blocks=4, padding="circular", key=key)`, and its inverse has in addition
    `output_activation="tanh"`. Positions further apart than `2 num_blocks + 2` do not see each other. Weights are in
    PyTorch's shapes: layers are `first`, then two per block in `blocks`, then `last`. There is no linear skip: a map of
    one's own whose fields are a `LinearMap` and a `ResidualCNN` adds the two.

    Args:
        shape: of the field: one, two or three sides.
        channels: `(c_in, c_out)` for `x` of shape `(c_in, *shape)` and `y` of shape `(c_out, *shape)`. By default both
            are scalar fields of shape `shape`, without an axis of channels.
        width: channels of the hidden layers.
        num_blocks: residual blocks.
        padding: what lies outside the field: `"zeros"`, or `"circular"` for its periodic continuation.
        activation: `a`: a name in `ACTIVATIONS` or a callable. The leaky ReLU has slope 0.1.
        output_activation: `s`, likewise.
        dtype: of the parameters; the default float by default.
        key: random key. Parameters are uniform within `1 / sqrt(fan_in)`, the default of PyTorch.

    Raises:
        ValueError: a shape that is not of one to three positive sides, a width or number of blocks that is none, an
            unknown padding or activation.

    References:
        A. L. Kachhadiya, "Local Inverse Geometry Can Be Amortized", 2026, arXiv:2605.13068.
    """

    first: FieldConv
    blocks: tuple[tuple[FieldConv, FieldConv], ...]
    last: FieldConv
    activation: Stored
    output_activation: Stored
    shape: tuple[int, ...] = eqx.field(static=True)
    has_channels: bool = eqx.field(static=True)

    def __init__(
        self,
        shape: tuple[int, ...],
        *,
        channels: tuple[int, int] | None = None,
        width: int,
        num_blocks: int,
        padding: str = "zeros",
        activation: str | Callable[..., Any] = "leaky_relu",
        output_activation: str | Callable[..., Any] = "identity",
        dtype: DTypeLike | None = None,
        key: Key[Array, ""],
    ):
        num_inputs, num_outputs = (1, 1) if channels is None else channels
        check_field("ResidualCNN", shape, (num_inputs, num_outputs, width), padding)
        if num_blocks < 0:
            raise ValueError(f"ResidualCNN: num_blocks={num_blocks}, expected 0 or more.")
        sizes = [(num_inputs, width), *[(width, width)] * (2 * num_blocks), (width, num_outputs)]
        keys = jax.random.split(key, len(sizes))
        layers = [
            FieldConv(*size, num_dims=len(shape), padding=padding, dtype=dtype, key=layer_key)
            for size, layer_key in zip(sizes, keys, strict=True)
        ]
        self.first, self.last = layers[0], layers[-1]
        self.blocks = tuple(zip(layers[1:-1:2], layers[2:-1:2], strict=True))
        self.activation = _activation(activation)
        self.output_activation = _activation(output_activation)
        self.shape, self.has_channels = tuple(shape), channels is not None

    def __call__(self, x: Float[Array, "*x"]) -> Float[Array, "*y"]:
        """The output of the network."""
        h = jnp.moveaxis(x, 0, -1) if self.has_channels else x[..., None]
        h = self.activation(self.first(h))
        for before, after in self.blocks:
            h = self.activation(h + after(self.activation(before(h))))
        y = self.output_activation(self.last(h))
        return jnp.moveaxis(y, -1, 0) if self.has_channels else y[..., 0]

    def in_structure(self) -> jax.ShapeDtypeStruct:
        """Shape and dtype of `x`."""
        shape = (self.first.weight.shape[1], *self.shape) if self.has_channels else self.shape
        return jax.ShapeDtypeStruct(shape, self.first.weight.dtype)


def check_field(name: str, shape: tuple[int, ...], sizes: tuple[int, ...], padding: str) -> None:
    """Raises a `ValueError` for a network of fields that cannot be.

    Args:
        name: of the network, for the message.
        shape: of the field.
        sizes: numbers of channels.
        padding: by name.
    """
    if len(shape) not in (1, 2, 3) or min(shape) < 1:
        raise ValueError(
            f"{name}: shape={tuple(shape)}, expected the 1, 2 or 3 positive sides of the field. Channels are no "
            "part of it: pass channels=(c_in, c_out) for x of shape (c_in, *shape)."
        )
    if min(sizes) < 1:
        raise ValueError(f"{name}: {sizes} channels in its layers, expected at least one in each.")
    if padding not in ("zeros", "circular"):
        raise ValueError(f"{name}: padding={padding!r}, expected 'zeros' or 'circular'.")
