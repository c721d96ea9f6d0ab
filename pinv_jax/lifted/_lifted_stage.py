"""What the stages of lifted training share: sweeps over the states, backwards, then over the weights."""

from collections.abc import Callable, Mapping
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, PyTree

from ..learn import AbstractStage
from ..maps import store
from ._network import LiftedNetwork, random_direction, tree_norm, tree_sub
from ._penalties import AbstractPenalty, Bregman
from ._sweeps import (
    Hidden,
    Model,
    WeightProblem,
    forward_states,
    has_closed_form,
    stacked_alike,
    state_bound,
    state_step,
    weight_step,
)

FIRST_POWER_STEPS = 10
POWER_STEPS = 1


class Bounds(eqx.Module):
    """Directions of the power iterations, kept from sweep to sweep: of the states and of the weights of each layer."""

    states: tuple[PyTree, ...]
    weights: tuple[PyTree, ...]


class LiftedStage(AbstractStage):
    """A stage whose steps are sweeps: `ImplicitGradient` and `BlockDescent` say when and from where."""

    num_layers: int
    num_steps: int
    batch_size: int
    trainable: Any
    select: Any
    model: Model
    num_backtracks: int
    closed_form: bool
    mesh: Any

    @property
    def names(self) -> tuple[str, ...]:
        """Of the columns: of every layer the penalty, of every hidden layer the distance from what it should be."""
        penalties = [f"penalty {i + 1}" for i in range(self.num_layers)]
        return (*penalties, *(f"feasibility {i + 1}" for i in range(self.num_layers - 1)))

    def bare(self) -> "LiftedStage":
        """See `AbstractStage`."""
        return eqx.tree_at(lambda stage: stage.num_steps, self, 0)

    def power_directions(self, params: PyTree, frozen: PyTree, x: Array) -> Bounds:
        """Directions that are good already, from examples `x`."""
        network = eqx.combine(params, frozen)
        one = jax.tree.map(lambda a: a[0], x)
        states = (one, *jax.eval_shape(network.states, one)[:-1])
        zeros = lambda tree: jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), tree)
        random = Bounds(
            tuple(random_direction(zeros(state)) for state in states[1:]),
            tuple(random_direction(layer) for layer in params.layers),
        )
        hidden = forward_states(network, x)
        target = jax.vmap(network)(x)
        _, bounds = self.weight_sweep(params, frozen, x, hidden, target, params, 0.0, random, FIRST_POWER_STEPS)
        _, bounds = self.state_sweep(network, x, hidden, target, bounds, FIRST_POWER_STEPS)
        return bounds

    def state_sweep(
        self, network: LiftedNetwork, x: Array, hidden: Hidden, target: PyTree, bounds: Bounds, num_power: int
    ) -> tuple[Hidden, Bounds]:
        """One proximal gradient step in every hidden layer, from the last to the first, each with the newest values."""
        directions = list(bounds.states)
        for index in reversed(range(len(hidden))):
            first = lambda tree: jax.tree.map(lambda a: a[0], tree)
            bound, directions[index] = state_bound(
                network.layers[index + 1], first(hidden[index]), first(x), directions[index], num_power
            )
            moved = state_step(self.model, network, index, x, hidden, target, 1 / bound)
            hidden = (*hidden[:index], moved, *hidden[index + 1 :])
        return hidden, Bounds(tuple(directions), bounds.weights)

    def weight_sweep(
        self,
        params: PyTree,
        frozen: PyTree,
        x: Array,
        hidden: Hidden,
        target: PyTree,
        anchor: PyTree,
        inverse_tau: Any,
        bounds: Bounds,
        num_power: int,
    ) -> tuple[PyTree, Bounds]:
        """One step in the weights of every layer. They do not see each other: those alike are stacked and mapped."""

        def update(item: Any) -> Any:
            problem, penalty, weights, direction = item
            if self.closed_form and has_closed_form(problem.layer, weights):
                return problem.ridge(), direction
            bound, direction = problem.bound(weights, direction, num_power)
            options: dict[str, Any] = {"weight_prox": self.model.weight_prox, "num_backtracks": self.num_backtracks}
            return weight_step(problem, penalty, weights, bound, **options), direction

        problems = self.weight_problems(frozen, x, hidden, target, anchor, inverse_tau)
        found = self._each_layer(
            update, [(*p, w, d) for p, w, d in zip(problems, params.layers, bounds.weights, strict=True)]
        )
        layers = tuple(weights for weights, _ in found)
        return with_layers(params, layers), Bounds(bounds.states, tuple(direction for _, direction in found))

    def weight_problems(
        self, frozen: PyTree, x: Array, hidden: Hidden, target: PyTree, anchor: PyTree, inverse_tau: Any
    ) -> list[tuple[WeightProblem, AbstractPenalty]]:
        states, dtype = (x, *hidden, target), jax.tree.leaves(x)[0].dtype
        inverse_tau = jnp.asarray(inverse_tau, dtype)
        return [
            (
                WeightProblem(frozen.layers[i], states[i], states[i + 1], x, anchor.layers[i], inverse_tau),
                self.model.of(i, self.num_layers),
            )
            for i in range(self.num_layers)
        ]

    def _each_layer(self, update: Callable[[Any], Any], items: list[Any]) -> list[Any]:
        """`update` of the item of every layer; an item ends with weights and what belongs to them."""
        found = [(weights, rest) for *_, weights, rest in items]
        busy = [i for i, item in enumerate(items) if jax.tree.leaves(item[-2])]  # the others have nothing to train
        for members in stacked_alike([items[i] for i in busy]):
            positions = [busy[i] for i in members]
            for i, result in zip(positions, self._mapped(update, [items[i] for i in positions]), strict=True):
                found[i] = result
        return found

    def _mapped(self, update: Callable[[Any], Any], items: list[Any]) -> list[Any]:
        """`update` of every item; of several in one call, which a mesh spreads over its devices."""
        if len(items) == 1:
            return [update(items[0])]
        arrays, static = zip(*(eqx.partition(item, eqx.is_array) for item in items), strict=True)
        stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *arrays)
        if self.mesh is not None:
            spread = NamedSharding(self.mesh, PartitionSpec(self.mesh.axis_names[0]))
            stacked = jax.lax.with_sharding_constraint(stacked, spread)
        results = jax.vmap(lambda arrays: update(eqx.combine(arrays, static[0])))(stacked)
        return [jax.tree.map(lambda a, i=i: a[i], results) for i in range(len(items))]

    def record(self, network: LiftedNetwork, x: Array, hidden: Hidden, target: PyTree) -> Any:
        energy, each = self.model.energies(network, x, hidden, target)

        def distances(x: Array, hidden: Hidden) -> list[Array]:
            layers = zip(network.layers[:-1], hidden, network.preactivations(x, hidden)[:-1], strict=True)
            return [tree_norm(tree_sub(y, layer.activation(z))) ** 2 for layer, y, z in layers]

        apart = [jnp.sqrt(jnp.mean(square)) for square in jax.vmap(distances)(x, hidden)]
        values = dict(zip(self.names, [*each, *apart], strict=True))
        return energy, values, {name: jnp.ones((), energy.dtype) for name in values}


def set_shared(
    stage: Any,
    network: LiftedNetwork,
    num_steps: int,
    batch_size: int,
    penalty: AbstractPenalty | None,
    sparsity: Mapping[int, float] | None,
    weight_prox: Callable[..., Any] | None,
    trainable: Callable[..., Any] | None,
    select: Callable[..., Any] | None,
) -> None:
    """The fields that both stages have."""
    stage.num_layers = len(network.layers)
    stage.num_steps = num_steps
    stage.batch_size = batch_size
    stage.model = Model(Bregman() if penalty is None else penalty, dict(sparsity or {}), store(weight_prox))
    stage.model.check(network)
    stage.trainable = store(trainable or _whole)
    stage.select = store(select)


def _whole(network: LiftedNetwork) -> Any:
    return network


def with_layers(tree: PyTree, layers: tuple[PyTree, ...]) -> PyTree:
    return eqx.tree_at(lambda t: t.layers, tree, layers, is_leaf=lambda leaf: leaf is None)


def refreshed_weights(params: PyTree, frozen: PyTree) -> PyTree:
    """The weights after every layer has set what follows from them, such as a step size of its own."""
    network = eqx.combine(params, frozen)
    layers = tuple(layer.refreshed() for layer in network.layers)
    keep = lambda old, new: None if old is None else new
    return with_layers(params, jax.tree.map(keep, params.layers, layers, is_leaf=lambda leaf: leaf is None))
