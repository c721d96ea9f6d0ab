"""Composition: `y = f_n(... f_2(f_1(x)))`; a chain of surjections is a surjection."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
from jaxtyping import Array, Float

from ._base import AbstractMap, AbstractSurjection, Stored, store


class Chain(AbstractMap):
    """Maps applied one after the other.

    A composition of surjections keeps its exact inverse only as a `SurjectiveChain`.

    Args:
        layers: the maps in the order in which they are applied. The first is an `AbstractMap`, so that the shape of
            `x` is known; the others may be any callables.

    Raises:
        ValueError: there is no layer, the first says no shape, or two neighbours do not fit.
    """

    layers: tuple[AbstractMap | Stored, ...]

    def __init__(self, layers: Sequence[Callable[..., Any]]):
        self.layers = tuple(layer if isinstance(layer, AbstractMap) else store(layer) for layer in layers)
        _check(self.layers)

    def __call__(self, x: Float[Array, "*x"]) -> Float[Array, "*y"]:
        """Applies the layers in order."""
        for layer in self.layers:
            x = layer(x)
        return x

    def in_structure(self) -> jax.ShapeDtypeStruct:
        """Shape and dtype of `x`, those of the first layer."""
        return self.layers[0].in_structure()  # pyright: ignore[reportAttributeAccessIssue]


class SurjectiveChain(AbstractSurjection[tuple[Any, ...]]):
    """Surjections applied one after the other; `z` is the tuple of their `z`.

    `merge` undoes the layers from the last to the first. `section` picks the last `z` from `y`, undoes that layer,
    picks the next, and so on; so `pinv` of the chain is the chain of the `pinv`, in reverse.

    Args:
        layers: the surjections in the order in which they are applied.

    Raises:
        ValueError: a layer is not an `AbstractSurjection`, or two neighbours do not fit.
    """

    layers: tuple[AbstractSurjection[Any], ...]

    def __init__(self, layers: Sequence[AbstractMap]):
        kept = []
        for index, layer in enumerate(layers):
            if not isinstance(layer, AbstractSurjection):
                raise ValueError(
                    f"SurjectiveChain expected an AbstractSurjection as layer {index}, got {type(layer).__name__}, "
                    "which has no exact inverse. Use Chain for maps that are not all surjections."
                )
            kept.append(layer)
        self.layers = tuple(kept)
        _check(self.layers)

    def split(self, x: Float[Array, "*x"]) -> tuple[Float[Array, "*y"], tuple[Any, ...]]:
        """`(y, (z_1, ..., z_n))`."""
        completed = []
        for layer in self.layers:
            x, z = layer.split(x)
            completed.append(z)
        return x, tuple(completed)

    def merge(self, y: Float[Array, "*y"], z: tuple[Any, ...]) -> Float[Array, "*x"]:
        """The inverse of `split`."""
        for layer, part in zip(reversed(self.layers), reversed(z), strict=True):
            y = layer.merge(y, part)
        return y

    def section(self, y: Float[Array, "*y"]) -> tuple[Any, ...]:
        """The `z` that each layer picks for what the later layers hand back."""
        picked = []
        for layer in reversed(self.layers):
            picked.append(layer.section(y))
            y = layer.merge(y, picked[-1])
        return tuple(reversed(picked))

    def in_structure(self) -> jax.ShapeDtypeStruct:
        """Shape and dtype of `x`, those of the first layer."""
        return self.layers[0].in_structure()


def _check(layers: Sequence[Callable[..., Any]]) -> None:
    if not layers or not isinstance(layers[0], AbstractMap):
        raise ValueError(
            f"A chain expected an AbstractMap as its first layer, got {layers[0] if layers else 'no layers'}. Only "
            "such a map says the shape of x: wrap a function as Ravelled(fn, example)."
        )
    structure = layers[0].in_structure()
    for index, layer in enumerate(layers):
        expected = layer.in_structure() if isinstance(layer, AbstractMap) else structure
        if (expected.shape, expected.dtype) != (structure.shape, structure.dtype):
            raise ValueError(
                f"Layer {index} of the chain ({type(layer).__name__}) expects shape {expected.shape} and dtype "
                f"{expected.dtype}, but the layers before it return {structure.shape} and {structure.dtype}. Build "
                "the layers with matching shapes and one dtype."
            )
        structure = jax.eval_shape(layer, structure)
