"""Convolutional networks that keep the positions: the inner nets of couplings, `(c_in, *space) -> (c_out, *space)`."""

import dataclasses
import itertools
import math
from collections.abc import Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Key

from ._base import AbstractMap, unstore
from ._reshape import shuffle as pixel_shuffle

# Up to this many positions a convolution is a product with unfolded patches: several times faster there than XLA's
# CPU convolution (forty times at 2 x 2 positions). Beyond, the unfolded patches would take too much memory.
_MAX_UNFOLDED = 256


class ConvLayer(eqx.Module):
    """`y_o = b_o + sum_i w_oi * x_i`: a convolution with zero padding `(window - 1) / 2`, in any number of dimensions.

    Args:
        num_inputs, num_outputs: channels.
        num_dims: of space; 0 for vectors, where the layer is `W x + b`.
        window: odd side of the window.
        stride: 1 keeps the positions, 2 halves every (even) side.
        dtype: of the parameters; the default float by default.
        key: random key of the weights; zeros without one. Biases start at zero.
    """

    weight: Float[Array, "out in *window"]
    bias: Float[Array, " out"]
    stride: int = eqx.field(static=True)

    def __init__(
        self,
        num_inputs: int,
        num_outputs: int,
        *,
        num_dims: int = 2,
        window: int = 3,
        stride: int = 1,
        dtype: DTypeLike | None = None,
        key: Key[Array, ""] | None = None,
    ):
        shape = (num_outputs, num_inputs, *(window,) * num_dims)
        self.weight = _weights(shape, num_inputs * window**num_dims, dtype, key)
        self.bias = jnp.zeros(num_outputs, self.weight.dtype)
        self.stride = stride

    def __call__(self, x: Float[Array, "in *space"]) -> Float[Array, "out *smaller"]:
        """The convolution."""
        num_outputs, _, *window = self.weight.shape
        space = tuple(side // self.stride for side in x.shape[1:])
        if math.prod(window) > 1 and math.prod(space) > _MAX_UNFOLDED:
            margin = [(side // 2, side // 2) for side in window]
            y = jax.lax.conv_general_dilated(x[None], self.weight, (self.stride,) * len(space), margin)[0]
        else:
            patches = _unfold(x, window, self.stride)
            y = (self.weight.reshape(num_outputs, -1) @ patches).reshape(num_outputs, *space)
        return y + self.bias.reshape(-1, *(1,) * len(space))


class UpsamplingLayer(eqx.Module):
    """A transposed convolution with window 4, stride 2 and padding 1: every side doubles.

    Args:
        num_inputs, num_outputs: channels.
        num_dims: of space.
        dtype: of the parameters; the default float by default.
        key: random key of the weights; zeros without one. Biases start at zero.
    """

    weight: Float[Array, "in out *window"]
    bias: Float[Array, " out"]

    def __init__(
        self,
        num_inputs: int,
        num_outputs: int,
        *,
        num_dims: int = 2,
        dtype: DTypeLike | None = None,
        key: Key[Array, ""] | None = None,
    ):
        # The axes of PyTorch: inputs first. Of the window half the entries per dimension meet at any one output.
        shape = (num_inputs, num_outputs, *(4,) * num_dims)
        self.weight = _weights(shape, num_inputs * 2**num_dims, dtype, key)
        self.bias = jnp.zeros(num_outputs, self.weight.dtype)

    def __call__(self, x: Float[Array, "in *space"]) -> Float[Array, "out *larger"]:
        """The transposed convolution."""
        num_inputs, num_outputs, *window = self.weight.shape
        spread = self.weight.reshape(num_inputs, -1).T @ x.reshape(num_inputs, -1)
        y = spread.reshape(num_outputs, *window, *x.shape[1:])
        for axis in range(1, x.ndim):  # the leading window axis and the leading space axis not yet doubled
            y = _fold(jnp.moveaxis(y, (1, 1 + x.ndim - axis), (0, 1)))
            y = jnp.moveaxis(y, 0, -1)
        return y + self.bias.reshape(-1, *(1,) * (x.ndim - 1))


class ConvNet(AbstractMap):
    """Convolutions with a ReLU between, from `(c_in, *space)` to `(c_out, *space)`; the last one starts at zero.

    Args:
        shape: `(c_in, *space)` of `x`; `(n,)` for vectors.
        num_outputs: `c_out`.
        hidden: channels of the hidden layers.
        strides: one per layer, the last included: 1 keeps the positions, 2 halves every side, 0.5 doubles it (an
            `UpsamplingLayer`). All 1 by default.
        window: odd side of the windows of all layers but upsampling ones.
        shuffle: where above 1, channels first become pixels, `shuffle` times larger in height and width.
        dtype: of the parameters; the default float by default.
        key: random key.

    Raises:
        ValueError: a side that is not even where a stride halves it, strides after which the positions are not those
            of `x`, or channels that do not make whole pixels.
    """

    layers: tuple[ConvLayer | UpsamplingLayer, ...]
    shape: tuple[int, ...] = eqx.field(static=True)
    shuffle: int = eqx.field(static=True)

    def __init__(
        self,
        shape: tuple[int, ...],
        num_outputs: int,
        *,
        hidden: Sequence[int],
        strides: Sequence[int | float] | None = None,
        window: int = 3,
        shuffle: int = 1,
        dtype: DTypeLike | None = None,
        key: Key[Array, ""],
    ):
        strides = (1,) * (len(hidden) + 1) if strides is None else tuple(strides)
        self.shape, self.shuffle = shape, shuffle
        num_inputs, space = _check(shape, strides, len(hidden) + 1, window, shuffle)
        layers = []
        keys = [*jax.random.split(key, len(hidden)), None] if hidden else [None]
        for width, stride, layer_key in zip((*hidden, num_outputs), strides, keys, strict=True):
            options: dict[str, Any] = {"num_dims": len(space), "dtype": dtype, "key": layer_key}
            if stride == 0.5:
                layers.append(UpsamplingLayer(num_inputs, width, **options))
            else:
                layers.append(ConvLayer(num_inputs, width, window=window, stride=int(stride), **options))
            num_inputs = width
        self.layers = tuple(layers)

    def __call__(self, x: Float[Array, "in *space"]) -> Float[Array, "out *space"]:
        """The output of the network."""
        if self.shuffle > 1:
            x = pixel_shuffle(x, self.shuffle)
        for layer in self.layers[:-1]:
            x = jax.nn.relu(layer(x))
        return self.layers[-1](x)

    def in_structure(self) -> jax.ShapeDtypeStruct:
        """Shape and dtype of `x`."""
        return jax.ShapeDtypeStruct(self.shape, self.layers[0].weight.dtype)


@dataclasses.dataclass(frozen=True)
class ConvDesign:
    """The layers of a `ConvNet` as a value; calling it with a shape builds the network.

    Args:
        hidden, strides, window, shuffle: as in `ConvNet`.
    """

    hidden: tuple[int, ...]
    strides: tuple[int | float, ...] | None = None
    window: int = 3
    shuffle: int = 1

    def __call__(
        self, shape: tuple[int, ...], num_outputs: int, *, dtype: DTypeLike | None = None, key: Key[Array, ""]
    ) -> ConvNet:
        """The network from `shape` to `num_outputs` channels at the same positions."""
        return ConvNet(shape, num_outputs, **dataclasses.asdict(self), dtype=dtype, key=key)


@dataclasses.dataclass(frozen=True)
class AdaptiveDesign:
    """A `ConvNet` for any shape, the do-it-yourself design of the SPNN paper.

    With `h1 = min(max(hidden, c_in), 1024)` and `h2 = min(2 h1, 2048)`: at a single position four layers with window 1,
    `c_in -> h1 -> h2 -> h1 -> c_out`; where all sides are even six layers that halve and double them once,
    `c_in -> h1 -> h1 -> h2 -> h2 -> h1 -> c_out`; elsewhere five layers `c_in -> h1 -> h2 -> h2 -> h1 -> c_out`.

    Args:
        hidden: the least number of hidden channels.

    References:
        Y. Ehrlich, A. Berman, A. Shocher, "Pseudo-Invertible Neural Networks", 2026, arXiv:2602.06042.
    """

    hidden: int = 64

    def __call__(
        self, shape: tuple[int, ...], num_outputs: int, *, dtype: DTypeLike | None = None, key: Key[Array, ""]
    ) -> ConvNet:
        """The network from `shape` to `num_outputs` channels at the same positions."""
        h1 = min(max(self.hidden, shape[0]), 1024)
        h2 = min(2 * h1, 2048)
        if math.prod(shape[1:]) == 1:
            design = ConvDesign((h1, h2, h1), window=1)
        elif all(side % 2 == 0 for side in shape[1:]):
            design = ConvDesign((h1, h1, h2, h2, h1), strides=(1, 1, 2, 1, 0.5, 1))
        else:
            design = ConvDesign((h1, h2, h2, h1))
        return design(shape, num_outputs, dtype=dtype, key=key)


def torch_names(net: Any) -> list[tuple[tuple[int, str], str]]:
    """Where the parameters of a `ConvNet` are in a PyTorch `nn.Sequential` of the same layers.

    Shapes and axes agree, so that arrays are copied as they are. In such a sequence a ReLU follows every layer but the
    last, and a pixel shuffle takes one place at the front.

    Args:
        net: a `ConvNet`, or one kept by `store`.

    Returns:
        For every parameter `((layer, attribute), name)`: `getattr(net.layers[layer], attribute)` is called `name`, the
        index in the sequence and the attribute, such as `"2.weight"`.
    """
    first = 1 if unstore(net).shuffle > 1 else 0
    return [
        ((layer, attribute), f"{first + 2 * layer}.{attribute}")
        for layer in range(len(unstore(net).layers))
        for attribute in ("weight", "bias")
    ]


def _weights(
    shape: tuple[int, ...], fan_in: int, dtype: DTypeLike | None, key: Key[Array, ""] | None
) -> Float[Array, "..."]:
    dtype = jnp.result_type(float if dtype is None else dtype)
    if key is None:
        return jnp.zeros(shape, dtype)
    bound = (6.0 / fan_in) ** 0.5  # keeps the variance through ReLUs: He et al., 2015, arXiv:1502.01852
    # Drawn as a vector: XLA takes four times as long to compile random bits in four dimensions.
    return jax.random.uniform(key, (math.prod(shape),), dtype, -bound, bound).reshape(shape)


def _unfold(x: Float[Array, "in *space"], window: Sequence[int], stride: int) -> Float[Array, "entries positions"]:
    """The entries under the window as columns, one for each position; rows are ordered as the weights are."""
    space = x.shape[1:]
    if math.prod(window) > 1 or stride > 1:
        padded = jnp.pad(x, [(0, 0)] + [(side // 2, side // 2) for side in window])
        taps = [
            padded[(slice(None), *(slice(o, o + n, stride) for o, n in zip(offset, space, strict=True)))]
            for offset in itertools.product(*map(range, window))
        ]
        x = jnp.stack(taps, axis=1)
    return x.reshape(math.prod((x.shape[0], *window)), -1)


def _fold(y: Float[Array, "4 n *rest"]) -> Float[Array, "m *rest"]:
    """Sums `y[d, i]` into row `2 i + d - 1` of the `2 n` rows: rows `2 i` from `d = 1, 3`, rows `2 i + 1` from 2, 0."""
    none = jnp.zeros_like(y[0, :1])
    even = y[1] + jnp.concatenate([none, y[3, :-1]])
    odd = y[2] + jnp.concatenate([y[0, 1:], none])
    return jnp.stack([even, odd], axis=1).reshape(2 * y.shape[1], *y.shape[2:])


def _check(
    shape: tuple[int, ...], strides: Sequence[int | float], num_layers: int, window: int, shuffle: int
) -> tuple[int, tuple[int, ...]]:
    """Channels and space in front of the first layer, once all that could fail has been checked."""
    num_inputs, *space = shape
    if window % 2 == 0 or len(strides) != num_layers or any(stride not in (0.5, 1, 2) for stride in strides):
        raise ValueError(
            f"A ConvNet of {num_layers} layers expected an odd window and one stride per layer, each 0.5, 1 or 2; got "
            f"window={window} and strides={tuple(strides)}."
        )
    if shuffle > 1:
        if len(space) != 2 or num_inputs % shuffle**2:
            raise ValueError(
                f"A ConvNet with shuffle={shuffle} expected x of shape (channels, height, width) with channels a "
                f"multiple of {shuffle**2}, got {shape}. Leave out shuffle, or use another number of channels."
            )
        num_inputs, space = num_inputs // shuffle**2, [side * shuffle for side in space]
    now = list(space)
    for index, stride in enumerate(strides):
        if stride == 2 and any(side % 2 for side in now):
            raise ValueError(
                f"Layer {index} of a ConvNet for x of shape {shape} halves sides {tuple(now)}, which are not all even. "
                "Use strides of 1, as AdaptiveDesign does at odd sizes, or pad the image."
            )
        now = [int(side / stride) for side in now]
    if now != list(shape[1:]):
        raise ValueError(
            f"A ConvNet returns the positions that it is given, {shape[1:]}, but its strides {tuple(strides)} and "
            f"shuffle={shuffle} lead to {tuple(now)}. Halve as often as the shuffle and strides of 0.5 double."
        )
    return num_inputs, tuple(space)
