"""`x_l = sigma_l(A_l x_{l-1})`, a chain of affine maps and proximal activations: `Layer` and `LiftedNetwork`."""

from collections.abc import Callable, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree, Scalar

from ..maps import AbstractMap
from ._activations import AbstractActivation
from ._penalties import AbstractPenalty, Bregman

NORM_MARGIN = 1.05
"""Of a norm by power iteration, which is one from below."""


class Layer(eqx.Module):
    """One layer: an affine map, then an activation.

    States are arrays, or pytrees of arrays where the activation is a `Product` of several (the branches of a residual
    block). The map must be affine in its argument, and in its parameters if those are trained.

    Args:
        affine: `previous state -> z`: a linear or convolutional layer, or a chain of such.
        activation: `z -> state`.
    """

    affine: Any
    activation: AbstractActivation

    def preactivation(self, previous: PyTree, x: Float[Array, "*x"]) -> PyTree:
        """`z`, from the state before and the input `x` of the network, which only some layers look at."""
        del x
        return self.affine(previous)

    def refreshed(self) -> "Layer":
        """The layer after what follows from its parameters has been set anew; most have no such thing."""
        return self


class LiftedNetwork(AbstractMap):
    """A network `x -> x_L` with states `x_l = sigma_l(z_l)`, `z_l = A_l(x_{l-1})`, `x_0 = x`.

    Called, it is the ordinary network. Training and inversion treat its hidden states as unknowns of their own, and
    bind them to each other by a penalty that vanishes where `x_l = sigma_l(z_l)`.

    Args:
        layers: the layers; a last layer without activation has `Identity()`.
        structure: shape and dtype of `x`.

    Raises:
        ValueError: no layer, or layers that do not fit together.

    References:
        X. Wang, M. Benning, "Lifted Bregman Training of Neural Networks", 2023, arXiv:2208.08772.
    """

    layers: tuple[Layer, ...]
    structure: jax.ShapeDtypeStruct = eqx.field(static=True)

    def __init__(self, layers: Sequence[Layer], structure: Any):
        if not layers:
            raise ValueError("LiftedNetwork expected at least one layer, got none.")
        self.layers = tuple(layers)
        self.structure = jax.ShapeDtypeStruct(structure.shape, structure.dtype)
        state: Any = self.structure
        for index, layer in enumerate(self.layers):
            try:
                state = jax.eval_shape(
                    lambda u, x, layer=layer: layer.activation(layer.preactivation(u, x)), state, self.structure
                )
            except (TypeError, ValueError) as error:
                raise ValueError(f"LiftedNetwork: layer {index} does not take a state of {state}: {error}") from error

    def __call__(self, x: Float[Array, "*x"]) -> Float[Array, "*y"]:
        """The output of the network."""
        return self.states(x)[-1]

    def in_structure(self) -> jax.ShapeDtypeStruct:
        """Shape and dtype of `x`."""
        return self.structure

    def states(self, x: Float[Array, "*x"]) -> tuple[PyTree, ...]:
        """`x_1, ..., x_L`, of the ordinary forward pass."""
        state, states = x, []
        for layer in self.layers:
            state = layer.activation(layer.preactivation(state, x))
            states.append(state)
        return tuple(states)

    def preactivations(self, x: Float[Array, "*x"], hidden: tuple[PyTree, ...]) -> tuple[PyTree, ...]:
        """`z_1, ..., z_L`, where the hidden states are `x_1, ..., x_{L-1}`."""
        return tuple(
            layer.preactivation(previous, x) for layer, previous in zip(self.layers, (x, *hidden), strict=True)
        )


def penalties(
    network: LiftedNetwork,
    x: Float[Array, "*x"],
    hidden: tuple[PyTree, ...],
    target: PyTree,
    penalty: AbstractPenalty | None = None,
) -> Float[Array, " layers"]:
    """The penalty of every layer; the last is the loss of the network where the hidden states are those of `states`.

    Args:
        network: the network.
        x: its input.
        hidden: `x_1, ..., x_{L-1}`.
        target: `x_L`.
        penalty: `Bregman()` by default; the last layer always has the Bregman one, which is the loss.

    References:
        X. Wang, M. Benning, "Lifted Bregman Training of Neural Networks", 2023, arXiv:2208.08772.
    """
    penalty = Bregman() if penalty is None else penalty
    kinds = [penalty] * len(hidden) + [Bregman()]
    terms = zip(kinds, network.layers, (*hidden, target), network.preactivations(x, hidden), strict=True)
    return jnp.stack([kind.value(layer.activation, y, z) for kind, layer, y, z in terms])


def feasibility(network: LiftedNetwork, x: Float[Array, "*x"], hidden: tuple[PyTree, ...]) -> Float[Array, " hidden"]:
    """Norms of `x_l - sigma_l(z_l)` for the hidden states: zero for those of the network itself."""
    layers = zip(network.layers[:-1], hidden, network.preactivations(x, hidden)[:-1], strict=True)
    return jnp.stack([tree_norm(tree_sub(y, layer.activation(z))) for layer, y, z in layers])


# Linear algebra of states that may be pytrees -------------------------------------------------------------------------


def tree_sub(a: PyTree, b: PyTree) -> PyTree:
    """`a - b`."""
    return jax.tree.map(jnp.subtract, a, b)


def tree_axpy(scale: Any, a: PyTree, b: PyTree) -> PyTree:
    """`scale a + b`."""
    return jax.tree.map(lambda x, y: scale * x + y, a, b)


def tree_norm(tree: PyTree) -> Scalar:
    """The Euclidean norm of all entries."""
    return jnp.sqrt(tree_dot(tree, tree))


def tree_dot(a: PyTree, b: PyTree) -> Scalar:
    """The inner product of all entries."""
    return jnp.sum(jnp.stack([jnp.sum(x * y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)]))


def random_direction(like: PyTree, seed: int = 0) -> PyTree:
    """A fixed normal direction, shaped like `like`."""
    leaves, treedef = jax.tree.flatten(like)
    keys = jax.random.split(jax.random.key(seed), max(len(leaves), 1))
    return treedef.unflatten([jax.random.normal(k, a.shape, a.dtype) for k, a in zip(keys, leaves, strict=False)])


def power_iteration(
    affine: Callable[[PyTree], PyTree], point: PyTree, direction: PyTree, num_steps: int
) -> tuple[Scalar, PyTree]:
    """A norm of the linear part of an affine map, times `NORM_MARGIN`, and the direction in which it was found.

    Args:
        affine: the map.
        point: any argument; only its structure matters.
        direction: where the iteration starts; that of an earlier call for a map that has changed little.
        num_steps: of the iteration.
    """
    _, tangent = jax.linearize(affine, point)
    transpose = jax.linear_transpose(tangent, point)

    def unit(v: PyTree) -> PyTree:
        norm = tree_norm(v)
        return jax.tree.map(lambda a: a / jnp.where(norm > 0, norm, 1), v)

    direction = jax.lax.fori_loop(0, num_steps, lambda _, v: unit(transpose(tangent(v))[0]), unit(direction))
    return NORM_MARGIN * tree_norm(tangent(direction)), direction


def operator_norm(affine: Callable[[PyTree], PyTree], point: PyTree, *, num_steps: int = 12) -> Scalar:
    """The norm that `power_iteration` finds from a fixed start."""
    return power_iteration(affine, point, random_direction(point), num_steps)[0]
