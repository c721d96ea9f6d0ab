"""What a map is: `AbstractMap`, `AbstractSurjection`, `prepare`, and `Stored`, a callable kept as a valid pytree."""

import abc
from collections.abc import Callable
from typing import Any, Generic, TypeVar

import equinox as eqx
import jax
import numpy as np
from jaxtyping import Array, Float, PyTree

Z = TypeVar("Z")


class AbstractMap(eqx.Module):
    """A forward map `x -> y` on single examples; batches come from `jax.vmap`.

    Any callable is a forward map. A class is needed only to say more: the shape it expects, which `solve` then checks
    before tracing anything.

    Implementing a map:

    - `__call__` takes one array (no batch axis) and returns one array; it must pass `jax.jvp` and `jax.vjp`.
    - `in_structure` returns the shape and dtype of `x`. `out_structure` follows by `jax.eval_shape`.
    - `prepare` is overridden only if something expensive depends on the parameters alone; it is kept in a field
      `prepared`, `None` until then, which `unprepare` clears.
    """

    @abc.abstractmethod
    def __call__(self, x: Float[Array, "*x"]) -> Float[Array, "*y"]:
        """Applies the map to one example."""

    @abc.abstractmethod
    def in_structure(self) -> jax.ShapeDtypeStruct:
        """Shape and dtype of `x`."""

    def out_structure(self) -> jax.ShapeDtypeStruct:
        """Shape and dtype of `y`."""
        return jax.eval_shape(self.__call__, self.in_structure())

    def prepare(self) -> "AbstractMap":
        """Returns an equal map with whatever depends on the parameters alone computed once."""
        return self


class AbstractSurjection(AbstractMap, Generic[Z]):
    """A map onto its whole range with an exact right inverse.

    `split` is a bijection `x -> (y, z)`; the map keeps `y`. With `section` choosing `z`, `pinv` is
    `merge(y, section(y))`, so `f(pinv(y)) == y` and `pinv(f(pinv(y))) == pinv(y)` hold by construction, whatever
    `section` has learned.

    Implementing a surjection:

    - `split(x) -> (y, z)` and its exact inverse `merge(y, z) -> x`;
    - `section(y) -> z`, the completion that `pinv` picks (zeros for the natural pseudo-inverse);
    - `in_structure`, as for any map. `__call__` and `pinv` are final.
    """

    @abc.abstractmethod
    def split(self, x: Float[Array, "*x"]) -> tuple[Float[Array, "*y"], Z]:
        """The completion `x -> (y, z)`, a bijection."""

    @abc.abstractmethod
    def merge(self, y: Float[Array, "*y"], z: Z) -> Float[Array, "*x"]:
        """The inverse of `split`."""

    @abc.abstractmethod
    def section(self, y: Float[Array, "*y"]) -> Z:
        """The `z` that `pinv` picks for `y`."""

    def __call__(self, x: Float[Array, "*x"]) -> Float[Array, "*y"]:
        """Applies the map: `split(x)[0]`."""
        return self.split(x)[0]

    def pinv(self, y: Float[Array, "*y"]) -> Float[Array, "*x"]:
        """The exact right inverse: `merge(y, section(y))`."""
        return self.merge(y, self.section(y))


class Stored(eqx.Module):
    """A callable kept as arrays plus a hashable rest, so that it may cross `jax.jit`, `vmap` and `in_axes`.

    A plain function, or an `eqx.nn.MLP` with its activation function, is not a valid argument of `jax.jit`. Split in
    two it is: the arrays are leaves, everything else is static.

    Args:
        fn: any callable: a function, an equinox module, a `functools.partial`, a bound flax module.
    """

    arrays: PyTree
    rest: tuple[Any, ...] = eqx.field(static=True)

    def __init__(self, fn: Callable[..., Any]):
        leaves, treedef = jax.tree.flatten(fn)
        is_array = [isinstance(leaf, jax.Array | np.ndarray | np.generic) for leaf in leaves]
        self.arrays = [leaf for leaf, yes in zip(leaves, is_array, strict=True) if yes]
        self.rest = (tuple(None if yes else leaf for leaf, yes in zip(leaves, is_array, strict=True)), treedef)

    @property
    def fn(self) -> Callable[..., Any]:
        """The callable that was stored."""
        leaves, treedef = self.rest
        arrays = iter(self.arrays)
        return jax.tree.unflatten(treedef, [next(arrays) if leaf is None else leaf for leaf in leaves])

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Calls the stored callable."""
        return self.fn(*args, **kwargs)


def store(fn: Any) -> Any:
    """`Stored(fn)` for a callable; `None`, an `in_axes` integer or what is stored already pass unchanged."""
    return Stored(fn) if callable(fn) and not isinstance(fn, Stored) else fn


def unstore(fn: Any) -> Any:
    """The callable that `store` was given."""
    return fn.fn if isinstance(fn, Stored) else fn


def prepare(model: PyTree) -> PyTree:
    """Computes once, outside loops, what depends on the parameters of the maps inside `model` alone.

    Args:
        model: a map, or any pytree with maps inside (an `InversePair`, a solver, a `Problem`).

    Returns:
        The same structure with every map replaced by its prepared form, innermost first. Models work unprepared too;
        `solve` and `fit` call this by themselves.
    """
    return _each_map(model, lambda node: node.prepare())


def unprepare(model: PyTree) -> PyTree:
    """Undoes `prepare`: what it computed is no parameter, and would go stale when the parameters change.

    `fit` calls this by itself; call it before changing parameters by other means.
    """

    def bare(node: AbstractMap) -> AbstractMap:
        if getattr(node, "prepared", None) is None:
            return node
        return eqx.tree_at(lambda m: m.prepared, node, None)

    return _each_map(model, bare)


def _each_map(model: PyTree, change: Callable[[AbstractMap], AbstractMap]) -> PyTree:
    """`model` with `change` applied to every map inside, innermost first."""

    def inner(node: Any) -> bool:
        return node is not model and isinstance(node, AbstractMap | Stored)

    if isinstance(model, Stored):
        return Stored(_each_map(model.fn, change))
    model = jax.tree.map(lambda node: _each_map(node, change) if inner(node) else node, model, is_leaf=inner)
    return change(model) if isinstance(model, AbstractMap) else model
