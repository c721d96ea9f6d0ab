"""The layers of `DenoisingUNet`; one image, channels last."""

import math
from typing import TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Key

from ..maps import Linear
from ..maps._residual_cnn import FieldConv

Layer = TypeVar("Layer")


class GroupNorm(eqx.Module):
    """Mean zero and variance one over each group of channels, then a scale and a shift per channel; channels last."""

    weight: Float[Array, " c"]
    bias: Float[Array, " c"]
    num_groups: int = eqx.field(static=True)

    def __init__(self, num_channels: int, num_groups: int, dtype: DTypeLike | None):
        dtype = jnp.result_type(float if dtype is None else dtype)
        self.weight, self.bias, self.num_groups = (
            jnp.ones(num_channels, dtype),
            jnp.zeros(num_channels, dtype),
            num_groups,
        )

    def __call__(self, x: Float[Array, "h w c"]) -> Float[Array, "h w c"]:
        groups = x.reshape(-1, self.num_groups, x.shape[-1] // self.num_groups)
        mean = jnp.mean(groups, axis=(0, 2), keepdims=True)
        variance = jnp.mean((groups - mean) ** 2, axis=(0, 2), keepdims=True)
        normal = ((groups - mean) / jnp.sqrt(variance + 1e-6)).reshape(x.shape)
        return normal * self.weight.reshape(1, 1, -1) + self.bias.reshape(1, 1, -1)


class PixelLinear(eqx.Module):
    """The same affine map of the channels at every pixel: a convolution of window 1."""

    weight: Float[Array, "out in 1 1"]
    bias: Float[Array, " out"]

    def __init__(self, num_inputs: int, num_outputs: int, *, dtype: DTypeLike | None, key: Key[Array, ""]):
        layer = Linear(num_inputs, num_outputs, dtype=dtype, key=key)
        self.weight, self.bias = layer.weight[:, :, None, None], layer.bias

    def __call__(self, x: Float[Array, "h w in"]) -> Float[Array, "h w out"]:
        return x @ self.weight[:, :, 0, 0].T + self.bias.reshape(1, 1, -1)


class ResBlock(eqx.Module):
    """`x + conv2(act(norm2(conv1(act(norm1(x))) + time)))`, with a linear map of `x` where the channels change."""

    norm1: GroupNorm
    conv1: FieldConv
    temb_proj: Linear
    norm2: GroupNorm
    conv2: FieldConv
    nin_shortcut: PixelLinear | None

    def __init__(
        self,
        num_inputs: int,
        num_outputs: int,
        num_time: int,
        num_groups: int,
        dtype: DTypeLike | None,
        key: Key[Array, ""],
    ):
        keys = jax.random.split(key, 4)
        self.norm1, self.norm2 = (GroupNorm(size, num_groups, dtype) for size in (num_inputs, num_outputs))
        self.conv1 = FieldConv(num_inputs, num_outputs, num_dims=2, dtype=dtype, key=keys[0])
        self.temb_proj = Linear(num_time, num_outputs, dtype=dtype, key=keys[1])
        self.conv2 = silent(FieldConv(num_outputs, num_outputs, num_dims=2, dtype=dtype, key=keys[2]))
        same = num_inputs == num_outputs
        self.nin_shortcut = None if same else PixelLinear(num_inputs, num_outputs, dtype=dtype, key=keys[3])

    def __call__(self, x: Float[Array, "h w in"], time: Float[Array, " time"]) -> Float[Array, "h w out"]:
        h = self.conv1(jax.nn.silu(self.norm1(x))) + self.temb_proj(jax.nn.silu(time)).reshape(1, 1, -1)
        h = self.conv2(jax.nn.silu(self.norm2(h)))
        return (x if self.nin_shortcut is None else self.nin_shortcut(x)) + h


class Attention(eqx.Module):
    """`x + out(softmax(q k / sqrt(c)) v)` over all pixels, of the normalised `x`."""

    norm: GroupNorm
    q: PixelLinear
    k: PixelLinear
    v: PixelLinear
    proj_out: PixelLinear

    def __init__(self, num_channels: int, num_groups: int, dtype: DTypeLike | None, key: Key[Array, ""]):
        self.norm = GroupNorm(num_channels, num_groups, dtype)
        self.q, self.k, self.v, out = (
            PixelLinear(num_channels, num_channels, dtype=dtype, key=k) for k in jax.random.split(key, 4)
        )
        self.proj_out = silent(out)

    def __call__(self, x: Float[Array, "h w c"]) -> Float[Array, "h w c"]:
        normal = self.norm(x)
        q, k, v = (layer(normal).reshape(-1, x.shape[-1]) for layer in (self.q, self.k, self.v))
        weights = jax.nn.softmax(q @ k.T / math.sqrt(x.shape[-1]), axis=-1)
        return x + self.proj_out((weights @ v).reshape(x.shape))


def silent(layer: Layer) -> Layer:
    """The layer with weights and biases zero."""
    return eqx.tree_at(lambda l: (l.weight, l.bias), layer, replace_fn=jnp.zeros_like)


def halved(conv: FieldConv, x: Float[Array, "h w in"]) -> Float[Array, "h2 w2 out"]:
    """`conv` at every other pixel, with zeros beyond the right and the lower border alone."""
    # see FieldConv: inside a loop, a CPU takes long over XLA's convolution
    y = jax.lax.platform_dependent(conv.weight, x, cpu=_unfolded, default=_convolved)
    return y + conv.bias.reshape(1, 1, -1)


def _unfolded(weight: Float[Array, "out in 3 3"], x: Float[Array, "h w in"]) -> Float[Array, "h2 w2 out"]:
    height, width, channels = x.shape
    own = np.arange(height * width, dtype=np.int32).reshape(height, width)
    padded = np.pad(own, (0, 1), constant_values=own.size)
    taps = np.lib.stride_tricks.sliding_window_view(padded, (3, 3))[::2, ::2].reshape(-1, 9)
    entries = x.reshape(-1, channels).at[taps].get(mode="fill", fill_value=0)
    matrix = weight.transpose(2, 3, 1, 0).reshape(9 * channels, -1)
    return (entries.reshape(-1, len(matrix)) @ matrix).reshape(height // 2, width // 2, -1)


def _convolved(weight: Float[Array, "out in 3 3"], x: Float[Array, "h w in"]) -> Float[Array, "h2 w2 out"]:
    layout = ("NHWC", "OIHW", "NHWC")
    padded = jnp.pad(x, [(0, 1), (0, 1), (0, 0)])
    return jax.lax.conv_general_dilated(padded[None], weight, (2, 2), "VALID", dimension_numbers=layout)[0]


def doubled(conv: FieldConv, x: Float[Array, "h w in"]) -> Float[Array, "h2 w2 out"]:
    """`conv` of the image with every pixel repeated in a square of four."""
    return conv(jnp.repeat(jnp.repeat(x, 2, axis=0), 2, axis=1))


def time_features(t: Float[Array, ""], size: int) -> Float[Array, " size"]:
    """Sines and cosines of `t` with periods that grow from 2 pi to 20,000 pi."""
    half = size // 2
    rates = jnp.exp(-math.log(1e4) / (half - 1) * jnp.arange(half, dtype=t.dtype))
    features = jnp.concatenate([jnp.sin(t * rates), jnp.cos(t * rates)])
    return jnp.pad(features, (0, size - 2 * half))
