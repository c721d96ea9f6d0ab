"""Lifted training with the states of all examples kept from step to step: the stage `BlockDescent`."""

from collections.abc import Callable, Mapping
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int, PRNGKeyArray, PyTree

from ..learn import Batch
from ._lifted_stage import POWER_STEPS, Bounds, LiftedStage, refreshed_weights, set_shared, with_layers
from ._network import LiftedNetwork, tree_axpy, tree_sub
from ._penalties import AbstractPenalty
from ._sweeps import Hidden


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


class BlockDescent(LiftedStage):
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
        set_shared(self, network, num_steps, batch_size, penalty, sparsity, weight_prox, trainable, select)
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
        bounds = self.power_directions(params, frozen, data[0][: self.batch_size])
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
            hidden, bounds = self.state_sweep(network, x, hidden, target, state.bounds, POWER_STEPS)
            state = eqx.tree_at(lambda s: s.bounds, state, bounds)
            new, state = self._moved(params, frozen, state, x, hidden, target)
            return new, hidden, state

        params, hidden, state = jax.lax.fori_loop(0, self.num_sweeps, sweep, (params, hidden, state))
        params = refreshed_weights(params, frozen)
        kept = jax.tree.map(lambda a, b: a.at[batch.rows].set(b), state.hidden, hidden)
        state = eqx.tree_at(lambda s: s.hidden, state, kept)
        return params, state, self.record(eqx.combine(params, frozen), x, hidden, target)

    def _moved(
        self, params: PyTree, frozen: PyTree, state: DescentState, x: Array, hidden: Hidden, target: PyTree
    ) -> tuple[PyTree, DescentState]:
        """One step in the weights by the rule."""

        def plain(start: PyTree) -> tuple[PyTree, Bounds]:
            return self.weight_sweep(start, frozen, x, hidden, target, start, 0.0, state.bounds, POWER_STEPS)

        if not isinstance(self.rule, str):
            gradients = [
                problem.value_and_gradient(penalty, weights)[1]
                for (problem, penalty), weights in zip(
                    self.weight_problems(frozen, x, hidden, target, params, 0.0), params.layers, strict=True
                )
            ]
            updates, moments = self.rule.update(with_layers(params, tuple(gradients)), state.moments, params)
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
