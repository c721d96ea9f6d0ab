"""What lifted training is made of: steps in one block of states or of weights, and the bounds of their step sizes."""

from collections.abc import Callable, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree, Scalar

from ..maps import Linear
from ._activations import Identity
from ._network import Layer, LiftedNetwork, penalties, power_iteration, tree_axpy, tree_dot, tree_norm, tree_sub
from ._penalties import MACQP, AbstractPenalty, Bregman

Hidden = tuple[PyTree, ...]


class Model(eqx.Module):
    """What is minimised: `mean_i sum_l P(x_l, A_l x_{l-1}) + sparsity_l |x_l|_1 + R(weights)`.

    Args:
        penalty: of the hidden layers; the last one always has `Bregman`, which is the loss.
        sparsity: by the number of the hidden layer, counted from 1, the weight of the 1-norm of its states. Their
            activation must leave zero where it is.
        weight_prox: `(weights, step) -> weights`, the proximal map of a regulariser of the weights, or none.
    """

    penalty: AbstractPenalty
    sparsity: dict[int, float]
    weight_prox: Any

    def of(self, layer: int, num_layers: int) -> AbstractPenalty:
        """The penalty of a layer, counted from 0."""
        return self.penalty if layer < num_layers - 1 else Bregman()

    def energies(
        self, network: LiftedNetwork, x: PyTree, hidden: Hidden, target: PyTree
    ) -> tuple[Scalar, Float[Array, " layers"]]:
        """The mean over the batch of the energy, and of the penalty of each layer."""

        def one(x: Array, hidden: Hidden, target: PyTree) -> tuple[Scalar, Array]:
            each = penalties(network, x, hidden, target, self.penalty)
            codes = [weight * jnp.sum(jnp.abs(hidden[i - 1])) for i, weight in self.sparsity.items()]
            return sum(codes, start=jnp.sum(each)), each

        energy, each = jax.vmap(one)(x, hidden, target)
        return jnp.mean(energy), jnp.mean(each, axis=0)

    def check(self, network: LiftedNetwork) -> None:
        """Raises a `ValueError` for a sparsity that no step can treat."""
        if self.sparsity and isinstance(self.penalty, MACQP):
            raise ValueError("sparsity of the states goes with the Bregman and the classical penalty, not with MACQP.")
        for index in self.sparsity:
            if not 1 <= index < len(network.layers):
                raise ValueError(
                    f"sparsity of layer {index}; the network has the hidden layers 1 to {len(network.layers) - 1}."
                )
            at_zero = float(network.layers[index - 1].activation(jnp.zeros(())))
            if at_zero != 0:
                raise ValueError(
                    f"sparsity of layer {index}, whose activation is {at_zero:.2g} at zero; expected one that leaves "
                    "zero where it is, such as SoftThreshold or ReLU."
                )


def forward_states(network: LiftedNetwork, x: PyTree) -> Hidden:
    """The hidden states of a batch, of the ordinary forward pass."""
    return jax.vmap(network.states)(x)[:-1]


# Blocks of states -----------------------------------------------------------------------------------------------------


def state_step(
    model: Model, network: LiftedNetwork, index: int, x: PyTree, hidden: Hidden, target: PyTree, step_size: Any
) -> PyTree:
    """The proximal gradient step in the states of hidden layer `index` (from 0), for a batch.

    `x_l <- prox_{m P(., z_l)}(x_l - m A_{l+1}' dP(x_{l+1}, z_{l+1})/dz)`.
    """
    layers, num = network.layers, len(network.layers)
    after = layers[index + 1]
    sparsity = model.sparsity.get(index + 1)

    def one(x: Array, previous: PyTree, state: PyTree, following: PyTree) -> PyTree:
        z, pullback = jax.vjp(lambda u: after.preactivation(u, x), state)
        (slope,) = pullback(model.of(index + 1, num).slope(after.activation, following, z))
        moved = tree_axpy(-step_size, slope, state)
        own = layers[index].preactivation(previous, x)
        if sparsity is not None:
            # The penalty pulls towards own; with the 1-norm on top, its proximal map is that of a shrunk argument.
            moved = _shrunk(tree_axpy(step_size, own, moved), step_size * sparsity)
            moved = tree_axpy(-step_size, own, moved)
        return model.of(index, num).prox(layers[index].activation, moved, own, step_size)

    all_states = (x, *hidden, target)
    return jax.vmap(one)(x, all_states[index], hidden[index], all_states[index + 2])


def _shrunk(tree: PyTree, threshold: Any) -> PyTree:
    return jax.tree.map(lambda v: jnp.sign(v) * jnp.maximum(jnp.abs(v) - threshold, 0), tree)


def state_bound(layer: Layer, state: PyTree, x: PyTree, direction: PyTree, num_steps: int) -> tuple[Scalar, PyTree]:
    """Lipschitz constant of the slope with which `layer` pulls at the state before it, and the direction found.

    Args:
        layer: `A` and its activation.
        state: one state before it; only its structure matters.
        x: one input of the network, likewise.
        direction: where the power iteration starts, shaped like `state`.
        num_steps: of the iteration.
    """
    norm, direction = power_iteration(lambda u: layer.preactivation(u, x), state, direction, num_steps)
    return layer.activation.curvature * norm**2, direction


# Blocks of weights ----------------------------------------------------------------------------------------------------


class WeightProblem(eqx.Module):
    """`mean_i P(y_i, A_w u_i) + |w - anchor|^2 / (2 tau)` in the weights `w` of one layer.

    Attributes:
        layer: the layer without its weights.
        previous, target, x: states before and after it and inputs of the network, of a batch.
        anchor: weights at the start of the implicit step.
        inverse_tau: `1 / tau`; zero without such a term.
    """

    layer: Layer
    previous: PyTree
    target: PyTree
    x: PyTree
    anchor: PyTree
    inverse_tau: Any

    def preactivations(self, weights: PyTree) -> PyTree:
        """`A_w u_i` for all `i`."""
        return jax.vmap(eqx.combine(weights, self.layer).preactivation)(self.previous, self.x)

    def value_and_gradient(self, penalty: AbstractPenalty, weights: PyTree) -> tuple[Scalar, PyTree]:
        """The function and its gradient; no activation is differentiated, except by `MACQP`."""
        activation = self.layer.activation
        z, pullback = jax.vjp(self.preactivations, weights)
        num = jax.tree.leaves(self.target)[0].shape[0]
        slopes = jax.vmap(lambda y, z: penalty.slope(activation, y, z))(self.target, z)
        (gradient,) = pullback(jax.tree.map(lambda a: a / num, slopes))
        offset = tree_sub(weights, self.anchor)
        value = jnp.mean(jax.vmap(lambda y, z: penalty.value(activation, y, z))(self.target, z))
        value = value + 0.5 * self.inverse_tau * tree_norm(offset) ** 2
        return value, tree_axpy(self.inverse_tau, offset, gradient)

    def value(self, penalty: AbstractPenalty, weights: PyTree) -> Scalar:
        """The function."""
        z = self.preactivations(weights)
        each = jax.vmap(lambda y, z: penalty.value(self.layer.activation, y, z))(self.target, z)
        return jnp.mean(each) + 0.5 * self.inverse_tau * tree_norm(tree_sub(weights, self.anchor)) ** 2

    def bound(self, weights: PyTree, direction: PyTree, num_steps: int) -> tuple[Scalar, PyTree]:
        """Lipschitz constant of the gradient where the layer is affine in its weights, and the direction found."""
        num = jax.tree.leaves(self.target)[0].shape[0]
        norm, direction = power_iteration(self.preactivations, weights, direction, num_steps)
        return self.layer.activation.curvature * norm**2 / num + self.inverse_tau, direction

    def ridge(self) -> PyTree:
        """The minimiser for a dense layer without activation, in closed form."""
        layer = eqx.combine(self.anchor, self.layer).affine
        num = self.target.shape[0]
        u = self.previous
        old = layer.weight
        if layer.bias is not None:
            u = jnp.concatenate([u, jnp.ones_like(u[:, :1])], axis=1)
            old = jnp.concatenate([old, layer.bias[:, None]], axis=1)
        gram = u.T @ u / num
        # Without the implicit term directions that no example has stay as they are, up to rounding.
        damping = self.inverse_tau + 10 * jnp.finfo(u.dtype).eps * jnp.trace(gram)
        moment = u.T @ self.target / num + damping * old.T
        found = jnp.linalg.solve(gram + damping * jnp.eye(len(gram), dtype=u.dtype), moment).T
        where = (lambda w: w.affine.weight) if layer.bias is None else (lambda w: (w.affine.weight, w.affine.bias))
        return eqx.tree_at(where, self.anchor, found if layer.bias is None else (found[:, :-1], found[:, -1]))


def has_closed_form(frozen: Layer, weights: PyTree) -> bool:
    """Whether `WeightProblem.ridge` applies: a dense layer, all of it trained, without activation."""
    dense = isinstance(frozen.affine, Linear | eqx.nn.Linear) and isinstance(frozen.activation, Identity)
    return dense and not jax.tree.leaves(eqx.filter(frozen.affine, eqx.is_array))


def weight_step(
    problem: WeightProblem,
    penalty: AbstractPenalty,
    weights: PyTree,
    bound: Scalar,
    *,
    weight_prox: Callable[..., Any] | None = None,
    num_backtracks: int = 0,
) -> PyTree:
    """`w <- prox(w - gradient / bound)`; the bound is doubled while the quadratic it promises is exceeded.

    Args:
        problem: of this layer.
        penalty: of this layer.
        weights: where the step starts.
        bound: of the curvature.
        weight_prox: see `Model`.
        num_backtracks: doublings at most; zero trusts the bound.
    """
    value, gradient = problem.value_and_gradient(penalty, weights)

    def trial(bound: Scalar) -> PyTree:
        moved = tree_axpy(-1 / bound, gradient, weights)
        return moved if weight_prox is None else weight_prox(moved, 1 / bound)

    if num_backtracks == 0:
        return trial(bound)

    def exceeds(carry: Any) -> Any:
        bound, count = carry
        moved = trial(bound)
        step = tree_sub(moved, weights)
        promised = value + tree_dot(gradient, step) + 0.5 * bound * tree_dot(step, step)
        slack = 10 * jnp.finfo(value.dtype).eps * jnp.abs(value)
        return (count < num_backtracks) & ~(problem.value(penalty, moved) <= promised + slack)

    bound, _ = jax.lax.while_loop(exceeds, lambda carry: (2 * carry[0], carry[1] + 1), (bound, 0))
    return trial(bound)


def stacked_alike(items: Sequence[tuple[PyTree, ...]]) -> list[list[int]]:
    """Positions of the items whose pytrees have the same structure and shapes, in groups."""
    groups: list[tuple[Any, list[int]]] = []
    for position, item in enumerate(items):
        arrays, static = eqx.partition(item, eqx.is_array)
        shapes = (jax.tree.structure(arrays), [(a.shape, a.dtype) for a in jax.tree.leaves(arrays)])
        for (other, other_shapes), members in groups:
            if shapes == other_shapes and eqx.tree_equal(static, other) is True:
                members.append(position)
                break
        else:
            groups.append(((static, shapes), [position]))
    return [members for _, members in groups]
