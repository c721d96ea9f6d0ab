"""Lifted training as stages of `learn.fit`: `ImplicitGradient` on mini-batches, `BlockDescent` with kept states."""

from collections.abc import Callable, Mapping
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, Int, PRNGKeyArray, PyTree

from ..learn import AbstractStage, Batch
from ..maps import store
from ._network import LiftedNetwork, random_direction, tree_axpy, tree_norm, tree_sub
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


class _Lifted(AbstractStage):
    """What both kinds of training share: sweeps over the states, backwards, then over the weights."""

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

    def bare(self) -> "_Lifted":
        """See `AbstractStage`."""
        return eqx.tree_at(lambda stage: stage.num_steps, self, 0)

    def check(self, name: str) -> None:
        """See `AbstractStage`."""
        del name

    def _bounds(self, params: PyTree, frozen: PyTree, x: Array) -> Bounds:
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
        _, bounds = self._weight_sweep(params, frozen, x, hidden, target, params, 0.0, random, FIRST_POWER_STEPS)
        _, bounds = self._state_sweep(network, x, hidden, target, bounds, FIRST_POWER_STEPS)
        return bounds

    def _state_sweep(
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

    def _weight_sweep(
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

        problems = self._problems(frozen, x, hidden, target, anchor, inverse_tau)
        found = self._each_layer(
            update, [(*p, w, d) for p, w, d in zip(problems, params.layers, bounds.weights, strict=True)]
        )
        layers = tuple(weights for weights, _ in found)
        return _with_layers(params, layers), Bounds(bounds.states, tuple(direction for _, direction in found))

    def _problems(
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

    def _record(self, network: LiftedNetwork, x: Array, hidden: Hidden, target: PyTree) -> Any:
        energy, each = self.model.energies(network, x, hidden, target)

        def distances(x: Array, hidden: Hidden) -> list[Array]:
            layers = zip(network.layers[:-1], hidden, network.preactivations(x, hidden)[:-1], strict=True)
            return [tree_norm(tree_sub(y, layer.activation(z))) ** 2 for layer, y, z in layers]

        apart = [jnp.sqrt(jnp.mean(square)) for square in jax.vmap(distances)(x, hidden)]
        values = dict(zip(self.names, [*each, *apart], strict=True))
        return energy, values, {name: jnp.ones((), energy.dtype) for name in values}


class ImplicitGradient(_Lifted):
    """Implicit stochastic gradient: each mini-batch is solved for, near the weights one has.

    `argmin_{W, X} mean_i sum_l P(x_l, A_l x_{l-1}) + |W - W_k|^2 / (2 tau)`, approximately: states from a forward
    pass, then `num_sweeps` sweeps of proximal gradient steps through all states, from the last layer to the first, and
    all weights. No activation is differentiated. Steps are as long as norms by power iteration allow.

    Args:
        network: the network that will be trained; only its form is used.
        num_steps: batches.
        batch_size: examples in each.
        tau: of the implicit step; a large one is safe.
        num_sweeps: per batch; one is too few.
        penalty: of the hidden layers, `Bregman()` by default.
        sparsity: by number of the hidden layer, counted from 1, the weight of the 1-norm of its states.
        weight_prox: `(weights of a layer, step) -> weights`, the proximal map of a regulariser of the weights.
        num_backtracks: how often a weight step may be halved where it overshoots; needed for layers that are not
            affine in their weights and for `MACQP`.
        closed_form: solve for the weights of a dense layer without activation, instead of a gradient step.
        trainable: `network -> part of it`, all by default.
        select: see `learn.Stage`.
        mesh: spreads layers that are alike over the first axis of this `jax.sharding.Mesh`.

    Raises:
        ValueError: options that do not fit together.

    References:
        X. Wang, M. Benning, "Lifted Bregman Training of Neural Networks", 2023, arXiv:2208.08772. P. Toulis,
        E. M. Airoldi, "Asymptotic and finite-sample properties of estimators based on stochastic gradients", 2017,
        arXiv:1408.2923.
    """

    tau: Any
    num_sweeps: int

    def __init__(
        self,
        network: LiftedNetwork,
        num_steps: int,
        batch_size: int,
        *,
        tau: float | int = 1.0,
        num_sweeps: int = 10,
        penalty: AbstractPenalty | None = None,
        sparsity: Mapping[int, float] | None = None,
        weight_prox: Callable[..., Any] | None = None,
        num_backtracks: int = 0,
        closed_form: bool = False,
        trainable: Callable[..., Any] | None = None,
        select: Callable[..., Any] | None = None,
        mesh: jax.sharding.Mesh | None = None,
    ):
        if not tau > 0 or num_sweeps < 1:
            raise ValueError(f"tau={tau}, num_sweeps={num_sweeps}; expected positive ones.")
        _set(self, network, num_steps, batch_size, penalty, sparsity, weight_prox, trainable, select)
        self.num_backtracks = num_backtracks
        self.closed_form = closed_form
        self.mesh = mesh
        self.tau = tau
        self.num_sweeps = num_sweeps

    def start(self, params: PyTree, frozen: PyTree, data: Any) -> Bounds:
        """See `AbstractStage`."""
        if isinstance(data, tuple | list):
            x = data[0][: self.batch_size]
        else:
            x = jax.vmap(data)(jax.random.split(jax.random.key(0), self.batch_size))[0]
        return self._bounds(params, frozen, x)

    def advance(
        self, params: PyTree, frozen: PyTree, state: Bounds, batch: Batch, key: PRNGKeyArray
    ) -> tuple[PyTree, PyTree, Any]:
        """See `AbstractStage`."""
        del key
        x, target, anchor = batch.x, batch.y, params
        hidden = forward_states(eqx.combine(params, frozen), x)

        def sweep(_: Any, carry: Any) -> Any:
            params, hidden, bounds = carry
            hidden, bounds = self._state_sweep(eqx.combine(params, frozen), x, hidden, target, bounds, POWER_STEPS)
            params, bounds = self._weight_sweep(
                params, frozen, x, hidden, target, anchor, 1 / self.tau, bounds, POWER_STEPS
            )
            return params, hidden, bounds

        params, hidden, state = jax.lax.fori_loop(0, self.num_sweeps, sweep, (params, hidden, state))
        params = _refreshed(params, frozen)
        return params, state, self._record(eqx.combine(params, frozen), x, hidden, target)


class DescentState(eqx.Module):
    """The state of `BlockDescent`.

    Attributes:
        hidden: of every training example.
        bounds: see `Bounds`.
        before: the weights before the last step.
        count: steps since the momentum began anew.
        moments: the state of the optimiser of the weights, where there is one.
        num_restarts: how often momentum raised the energy.
    """

    hidden: Hidden
    bounds: Bounds
    before: PyTree
    count: Int[Array, ""]
    moments: PyTree
    num_restarts: Int[Array, ""]


class BlockDescent(_Lifted):
    """Block-coordinate descent on weights and states together; the states of all examples are kept from step to step.

    A step is `num_sweeps` times: proximal gradient steps in the states of the batch, from the last layer to the first,
    then a step in all weights. With `batch_size` the whole training set it is deterministic and, without momentum,
    never raises the energy.

    Args:
        network: the network that will be trained; only its form is used.
        num_steps: batches.
        batch_size: examples in each.
        rule: of the weights: `"plain"`, `"nesterov"` (from weights extrapolated by `(k - 1) / (k + 2)`), `"heavy-ball"`
            (0.9 of the last step), or an optax transformation, which brings its own step sizes.
        restart: whether a step by `"nesterov"` or `"heavy-ball"` that raises the energy is replaced by a plain one,
            from which the momentum begins anew.
        num_sweeps: per batch.
        penalty, sparsity, weight_prox, num_backtracks, closed_form, trainable, select, mesh: see `ImplicitGradient`.

    Raises:
        ValueError: options that do not fit together.

    References:
        X. Wang, A. Valavanis, A. Mahmood, A. Mang, M. Benning, A. Repetti, 2025, arXiv:2510.09796. J. Bolte, S. Sabach,
        M. Teboulle, "Proximal alternating linearized minimization for nonconvex and nonsmooth problems", 2014,
        doi:10.1007/s10107-013-0701-9.
    """

    rule: Any
    restart: bool
    num_sweeps: int

    def __init__(
        self,
        network: LiftedNetwork,
        num_steps: int,
        batch_size: int,
        *,
        rule: str | optax.GradientTransformation = "plain",
        restart: bool = True,
        num_sweeps: int = 1,
        penalty: AbstractPenalty | None = None,
        sparsity: Mapping[int, float] | None = None,
        weight_prox: Callable[..., Any] | None = None,
        num_backtracks: int = 0,
        closed_form: bool = False,
        trainable: Callable[..., Any] | None = None,
        select: Callable[..., Any] | None = None,
        mesh: jax.sharding.Mesh | None = None,
    ):
        if isinstance(rule, str) and rule not in ("plain", "nesterov", "heavy-ball"):
            raise ValueError(
                f"rule={rule!r}; expected 'plain', 'nesterov', 'heavy-ball', or an optax transformation such as "
                "optax.adam(1e-3)."
            )
        if num_sweeps < 1:
            raise ValueError(f"num_sweeps={num_sweeps}; expected a positive number.")
        _set(self, network, num_steps, batch_size, penalty, sparsity, weight_prox, trainable, select)
        self.num_backtracks = num_backtracks
        self.closed_form = closed_form
        self.mesh = mesh
        self.rule = rule
        self.restart = restart
        self.num_sweeps = num_sweeps

    def start(self, params: PyTree, frozen: PyTree, data: Any) -> DescentState:
        """See `AbstractStage`."""
        if callable(data):
            raise ValueError(
                "BlockDescent keeps the states of every example: data must be a pair (x, y), not a sampler."
            )
        network = eqx.combine(params, frozen)
        hidden = jax.lax.map(lambda x: network.states(x)[:-1], data[0], batch_size=self.batch_size)
        moments = () if isinstance(self.rule, str) else self.rule.init(params)
        bounds = self._bounds(params, frozen, data[0][: self.batch_size])
        zero = jnp.zeros((), jnp.int32)
        return DescentState(hidden, bounds, params, zero, moments, zero)

    def advance(
        self, params: PyTree, frozen: PyTree, state: DescentState, batch: Batch, key: PRNGKeyArray
    ) -> tuple[PyTree, PyTree, Any]:
        """See `AbstractStage`."""
        del key
        x, target = batch.x, batch.y
        hidden = jax.tree.map(lambda a: a[batch.rows], state.hidden)

        def sweep(_: Any, carry: Any) -> Any:
            params, hidden, state = carry
            network = eqx.combine(params, frozen)
            hidden, bounds = self._state_sweep(network, x, hidden, target, state.bounds, POWER_STEPS)
            state = eqx.tree_at(lambda s: s.bounds, state, bounds)
            new, state = self._moved(params, frozen, state, x, hidden, target)
            return new, hidden, state

        params, hidden, state = jax.lax.fori_loop(0, self.num_sweeps, sweep, (params, hidden, state))
        params = _refreshed(params, frozen)
        kept = jax.tree.map(lambda a, b: a.at[batch.rows].set(b), state.hidden, hidden)
        state = eqx.tree_at(lambda s: s.hidden, state, kept)
        return params, state, self._record(eqx.combine(params, frozen), x, hidden, target)

    def _moved(
        self, params: PyTree, frozen: PyTree, state: DescentState, x: Array, hidden: Hidden, target: PyTree
    ) -> tuple[PyTree, DescentState]:
        """One step in the weights by the rule."""

        def plain(start: PyTree) -> tuple[PyTree, Bounds]:
            return self._weight_sweep(start, frozen, x, hidden, target, start, 0.0, state.bounds, POWER_STEPS)

        if not isinstance(self.rule, str):
            gradients = [
                problem.value_and_gradient(penalty, weights)[1]
                for (problem, penalty), weights in zip(
                    self._problems(frozen, x, hidden, target, params, 0.0), params.layers, strict=True
                )
            ]
            updates, moments = self.rule.update(_with_layers(params, tuple(gradients)), state.moments, params)
            return eqx.apply_updates(params, updates), eqx.tree_at(lambda s: s.moments, state, moments)
        if self.rule == "plain":
            moved, bounds = plain(params)
            return moved, eqx.tree_at(lambda s: s.bounds, state, bounds)

        last = tree_sub(params, state.before)
        k = state.count.astype(jax.tree.leaves(x)[0].dtype)
        if self.rule == "nesterov":
            moved, bounds = plain(tree_axpy(k / (k + 3), last, params))  # k = 0 at first: (k - 1) / (k + 2) one later
        else:
            moved, bounds = plain(params)
            moved = tree_axpy(0.9, last, moved)
        raised = jnp.asarray(False)
        if self.restart:
            energy = lambda weights: self.model.energies(eqx.combine(weights, frozen), x, hidden, target)[0]
            raised = ~(energy(moved) <= energy(params))
            moved = jax.lax.cond(raised, lambda: plain(params)[0], lambda: moved)
        count = jnp.where(raised, 0, state.count + 1)
        return moved, DescentState(
            state.hidden, bounds, params, count, state.moments, state.num_restarts + raised.astype(jnp.int32)
        )


def _set(
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


def _with_layers(tree: PyTree, layers: tuple[PyTree, ...]) -> PyTree:
    return eqx.tree_at(lambda t: t.layers, tree, layers, is_leaf=lambda leaf: leaf is None)


def _refreshed(params: PyTree, frozen: PyTree) -> PyTree:
    """The weights after every layer has set what follows from them, such as a step size of its own."""
    network = eqx.combine(params, frozen)
    layers = tuple(layer.refreshed() for layer in network.layers)
    keep = lambda old, new: None if old is None else new
    return _with_layers(params, jax.tree.map(keep, params.layers, layers, is_leaf=lambda leaf: leaf is None))
