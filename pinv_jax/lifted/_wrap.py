"""`wrap` an ordinary network as a `LiftedNetwork` of the same parameters, and `unwrap` it again."""

from collections.abc import Callable, Iterator
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from ..maps import MLP, AbstractMap, Linear, ResidualCNN, unstore
from ._activations import AbstractActivation, Identity, Product, as_activation
from ._network import Layer, LiftedNetwork, random_direction, tree_axpy, tree_norm, tree_sub

AFFINE_TOLERANCE = 1e-3


class ResidualBlock(eqx.Module):
    """`x -> x + outer(activation(inner(x)))`, a residual block that `wrap` understands within an `eqx.nn.Sequential`.

    Args:
        inner, outer: affine layers, the second back to the shape of `x`.
        activation: between them: a name, a function or an `AbstractActivation`, see `as_activation`.
    """

    inner: Any
    activation: AbstractActivation
    outer: Any

    def __init__(self, inner: Any, outer: Any, activation: Any = "relu"):
        self.inner = inner
        self.activation = as_activation(activation)
        self.outer = outer

    def __call__(self, x: Float[Array, "*x"], *, key: Any = None) -> Float[Array, "*x"]:
        """The output of the block."""
        del key
        return x + self.outer(self.activation(self.inner(x)))


class Composed(eqx.Module):
    """Affine maps, one after the other."""

    parts: tuple[Any, ...]

    def __call__(self, u: PyTree) -> PyTree:
        """The last one's value."""
        for part in self.parts:
            u = part(u)
        return u


class _Branch(eqx.Module):
    """`u -> (u, inner(u))`."""

    inner: Any

    def __call__(self, u: Array) -> tuple[Array, Array]:
        return u, self.inner(u)


class _Join(eqx.Module):
    """`(h, t) -> h + outer(t)`."""

    outer: Any

    def __call__(self, branches: tuple[Array, Array]) -> Array:
        h, t = branches
        return h + self.outer(t)


def wrap(model: Any, structure: Any = None) -> LiftedNetwork:
    """The same network, of the same parameters, as a `LiftedNetwork`.

    Understood are `eqx.nn.MLP`, `eqx.nn.Linear`, `maps.Linear`, `maps.MLP`, `maps.ResidualCNN`, and `eqx.nn.Sequential`
    of affine layers (linear, convolutional, average pooling, reshaping functions in `eqx.nn.Lambda`), of activations
    (in `eqx.nn.Lambda`, or ours) and of `ResidualBlock`s.

    Args:
        model: the network.
        structure: an array or `jax.ShapeDtypeStruct` like `x`, where the model does not say it.

    Raises:
        ValueError: a model or layer that is not understood, an activation that is not proximal, a layer that is neither
            an activation nor affine.
    """
    if isinstance(model, LiftedNetwork):
        return model
    network = LiftedNetwork(layers_of(model), _structure(model, structure))
    _check_affine(network)
    return network


def unwrap(network: LiftedNetwork, like: Any) -> Any:
    """The ordinary network of the type of `like`, with the parameters of `network = wrap(like)` after training.

    Raises:
        ValueError: `network` is not one that `wrap(like)` gives.
    """
    leaves, treedef = jax.tree.flatten(like)
    # Wrapping only rearranges: a copy whose arrays are numbered says where each of them went.
    numbered = treedef.unflatten([_Label(i) if eqx.is_array(leaf) else leaf for i, leaf in enumerate(leaves)])
    where = jax.tree.leaves(layers_of(numbered), is_leaf=lambda leaf: isinstance(leaf, _Label))
    found = jax.tree.leaves(network.layers)
    if len(where) != len(found):
        raise ValueError(f"unwrap: `like` has {len(where)} leaves in its layers, the network {len(found)}.")
    for label, leaf in zip(where, found, strict=True):
        if isinstance(label, _Label):
            if leaf.shape != leaves[label.index].shape:
                raise ValueError(
                    f"unwrap: expected the network that wrap(like) gives; a parameter of like has shape "
                    f"{leaves[label.index].shape}, that of the network {leaf.shape}."
                )
            leaves[label.index] = leaf
    return treedef.unflatten(leaves)


class _Label:
    def __init__(self, index: int):
        self.index = index


def layers_of(model: Any) -> tuple[Layer, ...]:
    """The layers of a network that `wrap` understands; nothing is computed."""
    return tuple(_layers(_pieces(model)))


def _layers(pieces: Iterator[Any]) -> Iterator[Layer]:
    """Affine pieces are collected until an activation ends the layer."""
    collected: list[Any] = []
    for piece in pieces:
        if isinstance(piece, AbstractActivation):
            yield Layer(_compose(collected), piece)
            collected = []
        else:
            collected.append(piece)
    if collected:
        yield Layer(_compose(collected), Identity())


def _compose(parts: list[Any]) -> Any:
    return parts[0] if len(parts) == 1 else Composed(tuple(parts))


def _pieces(model: Any) -> Iterator[Any]:
    """Affine maps and activations in order."""
    if isinstance(model, eqx.nn.MLP):
        if model.scan:
            raise ValueError("wrap: an eqx.nn.MLP with scan=True keeps its layers stacked; build it with scan=False.")
        for layer in model.layers[:-1]:
            yield layer
            yield as_activation(model.activation)
        yield model.layers[-1]
        yield from _last(model.final_activation)
    elif isinstance(model, MLP):
        for layer in model.layers[:-1]:
            yield layer
            yield as_activation(unstore(model.activation))
        yield model.layers[-1]
        yield from _last(unstore(model.output_activation))
    elif isinstance(model, ResidualCNN):
        yield from _residual_cnn(model)
    elif isinstance(model, eqx.nn.Sequential):
        for layer in model.layers:
            yield from _sequential_piece(layer)
    elif isinstance(model, Linear | eqx.nn.Linear | eqx.nn.Conv):
        yield model
    else:
        raise ValueError(
            f"wrap: {type(model).__name__} is not understood. Write the network as an eqx.nn.Sequential of affine "
            "layers and activations, or give LiftedNetwork its layers."
        )


def _last(activation: Callable[..., Any]) -> Iterator[Any]:
    found = as_activation(activation)
    if not isinstance(found, Identity):
        yield found


def _sequential_piece(layer: Any) -> Iterator[Any]:
    if isinstance(layer, ResidualBlock):
        yield _Branch(layer.inner)
        yield Product((Identity(), layer.activation))
        yield _Join(layer.outer)
    elif isinstance(layer, AbstractActivation):
        yield layer
    elif isinstance(layer, eqx.nn.Lambda):
        try:
            yield as_activation(layer.fn)
        except ValueError:
            yield layer  # a reshaping, or else `_check_affine` refuses it
    elif isinstance(layer, eqx.nn.Sequential):
        for inner in layer.layers:
            yield from _sequential_piece(inner)
    elif isinstance(layer, eqx.nn.Dropout):
        raise ValueError("wrap: Dropout is random and belongs to back-propagation; leave it out.")
    elif isinstance(layer, eqx.nn.StatefulLayer) and layer.is_stateful():
        raise ValueError(
            f"wrap: {type(layer).__name__} carries a state; fold its frozen statistics into the layer before it."
        )
    else:
        yield layer


def _residual_cnn(model: ResidualCNN) -> Iterator[Any]:
    activation = as_activation(unstore(model.activation))
    yield _Channels(model.has_channels, last=True)
    yield model.first
    yield activation
    for before, after in model.blocks:
        yield _Branch(before)
        yield Product((Identity(), activation))
        yield _Join(after)
        yield activation
    yield model.last
    yield _Channels(model.has_channels, last=False)  # before the entrywise output activation: the two commute
    yield from _last(unstore(model.output_activation))


class _Channels(eqx.Module):
    """Moves the channels of a field to the end or to the front; a scalar field has none there."""

    has_channels: bool = eqx.field(static=True)
    last: bool = eqx.field(static=True)

    def __init__(self, has_channels: bool, *, last: bool):  # noqa: FBT001 (one flag of the model, handed on)
        self.has_channels = has_channels
        self.last = last

    def __call__(self, x: Array) -> Array:
        if self.has_channels:
            return jnp.moveaxis(x, 0, -1) if self.last else jnp.moveaxis(x, -1, 0)
        return x[..., None] if self.last else x[..., 0]


def _structure(model: Any, structure: Any) -> jax.ShapeDtypeStruct:
    if structure is not None:
        return jax.ShapeDtypeStruct(structure.shape, structure.dtype)
    if isinstance(model, AbstractMap):
        return model.in_structure()
    first = model.layers[0] if isinstance(model, eqx.nn.MLP | eqx.nn.Sequential) else model
    if not isinstance(first, eqx.nn.Linear) or first.in_features == "scalar":
        raise ValueError("wrap: the shape of x is not known; pass structure=x, an array like the inputs.")
    return jax.ShapeDtypeStruct((first.in_features,), first.weight.dtype)


def _check_affine(network: LiftedNetwork) -> None:
    """Refuses a layer `A` with `A(u + v) - A(u) - A(v) + A(0)` not small for random `u`, `v`."""
    for index, defect in enumerate(np.asarray(_affine_defects(network))):
        if not defect <= AFFINE_TOLERANCE:
            raise ValueError(
                f"wrap: what comes before the activation of layer {index} is not affine (relative defect "
                f"{defect:.2g}): {network.layers[index].affine}. Normalisation and pooling by maxima have no place in "
                "it; an activation must be proximal, see `lifted.check_proximal`."
            )


@eqx.filter_jit
def _affine_defects(network: LiftedNetwork) -> Float[Array, " layers"]:
    """Of every layer, relative to its values."""
    state: Any = network.structure
    x, defects = jnp.zeros(state.shape, state.dtype), []
    for layer in network.layers:
        zero = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), state)
        u, v = (random_direction(zero, seed) for seed in (0, 1))
        points = jax.tree.map(lambda *leaves: jnp.stack(leaves), u, v, tree_axpy(1, u, v), zero)
        values = jax.vmap(lambda u, layer=layer: layer.preactivation(u, x))(points)
        first, second, both, none = (jax.tree.map(lambda a, i=i: a[i], values) for i in range(4))
        size = tree_norm(tree_sub(first, none)) + tree_norm(tree_sub(second, none))
        defect = tree_norm(tree_sub(tree_sub(both, first), tree_sub(second, none)))
        defects.append(defect / jnp.maximum(size, jnp.finfo(size.dtype).tiny))
        state = jax.eval_shape(layer.activation, first)
    return jnp.stack(defects)
