"""Maps around other maps: `Normalised` (z-scored inputs and outputs) and `Ravelled` (pytrees as flat arrays)."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from ._base import AbstractMap, Stored, store


class Normalised(AbstractMap):
    """`y = (f(x_mean + x_std * x) - y_mean) / y_std`: a map in z-scored units.

    To keep the exact inverse of a surjection, write `SurjectiveChain([f, Affine(1 / y_std, -y_mean / y_std)])`.

    Args:
        forward: the map `f` in physical units.
        y_mean, y_std: shaped like the output of `f`; see `pinv_jax.data.statistics`.
        x_mean, x_std: shaped like its input; both or neither. Without them `x` stays in physical units.

    Raises:
        ValueError: `forward` is not an `AbstractMap`, a shape differs from the map's, or only one of `x_mean` and
            `x_std` is given.
    """

    forward: AbstractMap
    y_mean: Float[Array, "*y"]
    y_std: Float[Array, "*y"]
    x_mean: Float[Array, "*x"] | None
    x_std: Float[Array, "*x"] | None

    def __init__(
        self,
        forward: Callable[..., Any],
        y_mean: Float[Array, "..."],
        y_std: Float[Array, "..."],
        x_mean: Float[Array, "..."] | None = None,
        x_std: Float[Array, "..."] | None = None,
    ):
        if not isinstance(forward, AbstractMap):
            raise ValueError(
                f"Normalised expected an AbstractMap, which says the shape of x, got {type(forward).__name__}. Wrap a "
                "function as Ravelled(fn, example)."
            )
        if (x_mean is None) != (x_std is None):
            raise ValueError("Normalised expected both x_mean and x_std or neither, got only one of them.")
        x_shape, y_shape = forward.in_structure().shape, forward.out_structure().shape
        given = {"y_mean": (y_mean, y_shape), "y_std": (y_std, y_shape)}
        given |= {"x_mean": (x_mean, x_shape), "x_std": (x_std, x_shape)}
        for name, (value, shape) in given.items():
            if value is not None and value.shape != shape:
                raise ValueError(
                    f"Normalised expected {name} of shape {shape}, got {value.shape}. Write "
                    f"jnp.broadcast_to({name}, {shape})."
                )
        self.forward = forward
        self.y_mean, self.y_std = y_mean, y_std
        self.x_mean, self.x_std = x_mean, x_std

    def __call__(self, x: Float[Array, "*x"]) -> Float[Array, "*y"]:
        """The normalised output for a (normalised) input."""
        if self.x_mean is not None and self.x_std is not None:
            x = self.x_mean + self.x_std * x
        return (self.forward(x) - self.y_mean) / self.y_std

    def in_structure(self) -> jax.ShapeDtypeStruct:
        """Shape and dtype of `x`."""
        return self.forward.in_structure()


class Ravelled(AbstractMap):
    """A function between pytrees of arrays, seen as a map between flat arrays.

    Args:
        fn: takes one pytree of arrays, returns one pytree of arrays.
        example: an input of `fn`, as arrays or `jax.ShapeDtypeStruct`s. All leaves have one real float dtype.

    Raises:
        ValueError: the leaves of `example`, or of what `fn` returns, do not have one real float dtype.
    """

    fn: Any
    in_tree: Any = eqx.field(static=True)
    out_tree: Any = eqx.field(static=True)

    def __init__(self, fn: Callable[..., Any] | Stored, example: PyTree):
        self.fn = fn if isinstance(fn, AbstractMap) else store(fn)
        self.in_tree = _structure(example, "example")
        self.out_tree = _structure(jax.eval_shape(self.fn, example), "the output of fn")

    def __call__(self, x: Float[Array, " n"]) -> Float[Array, " m"]:
        """`ravel(fn(unravel(x)))`."""
        return self.ravel(self.fn(self.unravel(x)))

    def in_structure(self) -> jax.ShapeDtypeStruct:
        """Shape and dtype of `x`."""
        leaves = self.in_tree[1]
        return jax.ShapeDtypeStruct((sum(leaf.size for leaf in leaves),), leaves[0].dtype)

    def ravel(self, tree: PyTree[Array]) -> Float[Array, " k"]:
        """The leaves of a pytree (an input or an output of `fn`), flat and one after the other."""
        return jnp.concatenate([jnp.ravel(leaf) for leaf in jax.tree.leaves(tree)])

    def unravel(self, x: Float[Array, " n"]) -> PyTree[Array]:
        """The input of `fn` that `ravel` turns into `x`."""
        return _unravel(self.in_tree, x)

    def unravel_output(self, y: Float[Array, " m"]) -> PyTree[Array]:
        """The output of `fn` that `ravel` turns into `y`."""
        return _unravel(self.out_tree, y)


def _structure(tree: PyTree, name: str) -> tuple[Any, tuple[jax.ShapeDtypeStruct, ...]]:
    """A hashable record of the tree: its definition, and the shape and dtype of every leaf."""
    leaves, treedef = jax.tree.flatten(tree)
    leaves = tuple(jax.ShapeDtypeStruct(jnp.shape(leaf), jnp.result_type(leaf)) for leaf in leaves)
    dtypes = {leaf.dtype for leaf in leaves}
    if len(dtypes) != 1 or not jnp.issubdtype(next(iter(dtypes)), jnp.floating):
        raise ValueError(
            f"Ravelled expected every leaf of {name} to have one real float dtype, got "
            f"{sorted(str(dtype) for dtype in dtypes)}. Cast them to one dtype; see a complex array as its real and "
            "imaginary parts, for example z.view(float)."
        )
    return treedef, leaves


def _unravel(structure: tuple[Any, tuple[jax.ShapeDtypeStruct, ...]], flat: Float[Array, " k"]) -> PyTree[Array]:
    treedef, leaves = structure
    parts = jnp.split(flat, np.cumsum([leaf.size for leaf in leaves])[:-1])
    return jax.tree.unflatten(treedef, [part.reshape(leaf.shape) for part, leaf in zip(parts, leaves, strict=True)])
