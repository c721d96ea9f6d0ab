"""The autoencoders of the study `lifted-autoencoder`, as chains of affine maps and ReLUs."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from .. import lifted
from ..maps import Linear
from ..maps._convnets import ConvLayer, UpsamplingLayer

CHANNELS = (8, 8, 16, 16, 16)
"""Of the convolutions, the first and the third of which halve both sides."""


class Flat(eqx.Module):
    """`W x + b` of an array of any shape."""

    linear: Linear

    def __call__(self, x: Float[Array, "*x"]) -> Float[Array, " m"]:
        """Of the entries in order."""
        return self.linear(jnp.ravel(x))


class Shaped(eqx.Module):
    """`W x + b` as an array of some shape."""

    linear: Linear
    shape: tuple[int, ...] = eqx.field(static=True)

    def __call__(self, x: Float[Array, " n"]) -> Float[Array, "..."]:
        """The array."""
        return jnp.reshape(self.linear(x), self.shape)


class WithChannel(eqx.Module):
    """A layer that takes images with a channel, of images without."""

    layer: Any

    def __call__(self, x: Float[Array, "h w"]) -> Float[Array, "c h2 w2"]:
        """Of the image as its only channel."""
        return self.layer(x[None])


class WithoutChannel(eqx.Module):
    """A layer that gives one channel, which is left out."""

    layer: Any

    def __call__(self, x: Float[Array, "c h w"]) -> Float[Array, "h2 w2"]:
        """The channel."""
        return self.layer(x)[0]


def dense_autoencoder(shape: tuple[int, ...], widths: tuple[int, ...], dtype: Any, key: PRNGKeyArray) -> Any:
    """An encoder with ReLUs of these widths, the last of which is the code, and its mirror image without the last."""
    pixels = int(np.prod(shape))
    sizes = (pixels, *widths, *widths[-2::-1], pixels)
    keys = jax.random.split(key, len(sizes) - 1)
    linear: list[Any] = [Linear(a, b, dtype=dtype, key=k) for a, b, k in zip(sizes[:-1], sizes[1:], keys, strict=True)]
    linear[0], linear[-1] = Flat(linear[0]), Shaped(linear[-1], shape)
    kinds = [lifted.ReLU()] * (len(linear) - 1) + [lifted.Identity()]
    layers = [lifted.Layer(affine, kind) for affine, kind in zip(linear, kinds, strict=True)]
    return lifted.LiftedNetwork(layers, jax.ShapeDtypeStruct(shape, dtype))


def convolutional_autoencoder(shape: tuple[int, ...], code: int, dtype: Any, key: PRNGKeyArray) -> Any:
    """Five convolutions and a dense layer, all with ReLUs, and the way back.

    Raises:
        ValueError: sides that four does not divide.
    """
    if shape[0] % 4 or shape[1] % 4:
        raise ValueError(f"images of {shape[0]} x {shape[1]} pixels: the convolutions expect multiples of four.")
    keys = iter(jax.random.split(key, 12))
    inputs = (1, *CHANNELS[:-1])
    convolutions: list[Any] = [
        ConvLayer(a, b, stride=stride, dtype=dtype, key=next(keys))
        for a, b, stride in zip(inputs, CHANNELS, (2, 1, 2, 1, 1), strict=True)
    ]
    convolutions[0] = WithChannel(convolutions[0])
    small = (CHANNELS[-1], shape[0] // 4, shape[1] // 4)
    size = int(np.prod(small))
    middle = [
        Flat(Linear(size, code, dtype=dtype, key=next(keys))),
        Shaped(Linear(code, size, dtype=dtype, key=next(keys)), small),
    ]
    back = [
        ConvLayer(CHANNELS[4], CHANNELS[2], dtype=dtype, key=next(keys)),
        UpsamplingLayer(CHANNELS[2], CHANNELS[1], dtype=dtype, key=next(keys)),
        ConvLayer(CHANNELS[1], CHANNELS[0], dtype=dtype, key=next(keys)),
        WithoutChannel(UpsamplingLayer(CHANNELS[0], 1, dtype=dtype, key=next(keys))),
    ]
    affine = [*convolutions, *middle, *back]
    kinds = [lifted.ReLU()] * (len(affine) - 1) + [lifted.Identity()]
    layers = [lifted.Layer(each, kind) for each, kind in zip(affine, kinds, strict=True)]
    return lifted.LiftedNetwork(layers, jax.ShapeDtypeStruct(shape, dtype))


def halves(network: Any, num_layers: int) -> tuple[Any, Any]:
    """The encoder, of the first so many layers, and the decoder."""
    encoder = lifted.LiftedNetwork(network.layers[:num_layers], network.structure)
    return encoder, lifted.LiftedNetwork(network.layers[num_layers:], encoder.out_structure())
