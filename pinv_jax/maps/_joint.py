"""Several maps of one unknown as one map: `y = (f_1(x), ..., f_k(x))`, flat and one after the other."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ._base import AbstractMap


class Joint(AbstractMap):
    """`y = (f_1(x), ..., f_k(x))`: several observations of one `x`, raveled and concatenated.

    Separate surjections have no joint pseudo-inverse in closed form, nor need they be jointly onto: their data can
    contradict each other. See `solvers.CyclicProjection`.

    Args:
        maps: maps of the same `x`, in the order of their observations.

    Raises:
        ValueError: there is no map, or one says no shape, or another shape or dtype of `x` than the first.
    """

    maps: tuple[AbstractMap, ...]

    def __init__(self, maps: Sequence[Callable[..., Any]]):
        kept: list[AbstractMap] = []
        for index, f in enumerate(maps):
            if not isinstance(f, AbstractMap):
                raise ValueError(
                    f"Joint expected an AbstractMap as map {index}, got {type(f).__name__}, which says no shape of x. "
                    "Wrap a function as Ravelled(fn, example)."
                )
            kept.append(f)
            expected, got = kept[0].in_structure(), f.in_structure()
            if (got.shape, got.dtype) != (expected.shape, expected.dtype):
                raise ValueError(
                    f"Map {index} of Joint ({type(f).__name__}) takes x of shape {got.shape} in {got.dtype}, the first "
                    f"one {expected.shape} in {expected.dtype}. Build them for the same x."
                )
        if not kept:
            raise ValueError("Joint expected at least one map, got none.")
        self.maps = tuple(kept)

    def __call__(self, x: Float[Array, "*x"]) -> Float[Array, " m"]:
        """All predictions, joined."""
        return self.join([f(x) for f in self.maps])

    def in_structure(self) -> jax.ShapeDtypeStruct:
        """Shape and dtype of `x`, those of the first map."""
        return self.maps[0].in_structure()

    def join(self, parts: Sequence[Float[Array, "..."]]) -> Float[Array, " m"]:
        """One flat array of the observations of the single maps.

        Raises:
            ValueError: their number or shapes are not those of the maps.
        """
        expected = [f.out_structure().shape for f in self.maps]
        if [part.shape for part in parts] != expected:
            raise ValueError(f"join got parts of shapes {[part.shape for part in parts]}; expected {expected}.")
        return jnp.concatenate([jnp.ravel(part) for part in parts])

    def separate(self, y: Float[Array, " m"]) -> tuple[Float[Array, "..."], ...]:
        """The observations of the single maps; undoes `join`."""
        shapes = [f.out_structure().shape for f in self.maps]
        parts = jnp.split(y, np.cumsum([int(np.prod(shape)) for shape in shapes])[:-1])
        return tuple(part.reshape(shape) for part, shape in zip(parts, shapes, strict=True))
