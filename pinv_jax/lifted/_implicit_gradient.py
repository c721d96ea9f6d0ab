"""Lifted training on mini-batches, each solved for near the weights one has: the stage `ImplicitGradient`."""

from collections.abc import Callable, Mapping
from typing import Any

import equinox as eqx
import jax
from jaxtyping import PRNGKeyArray, PyTree

from ..learn import Batch
from ._lifted_stage import POWER_STEPS, Bounds, LiftedStage, refreshed_weights, set_shared
from ._network import LiftedNetwork
from ._penalties import AbstractPenalty
from ._sweeps import forward_states


class ImplicitGradient(LiftedStage):
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
        set_shared(self, network, num_steps, batch_size, penalty, sparsity, weight_prox, trainable, select)
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
        return self.power_directions(params, frozen, x)

    def advance(
        self, params: PyTree, frozen: PyTree, state: Bounds, batch: Batch, key: PRNGKeyArray
    ) -> tuple[PyTree, PyTree, Any]:
        """See `AbstractStage`."""
        del key
        x, target, anchor = batch.x, batch.y, params
        hidden = forward_states(eqx.combine(params, frozen), x)

        def sweep(_: Any, carry: Any) -> Any:
            params, hidden, bounds = carry
            hidden, bounds = self.state_sweep(eqx.combine(params, frozen), x, hidden, target, bounds, POWER_STEPS)
            params, bounds = self.weight_sweep(
                params, frozen, x, hidden, target, anchor, 1 / self.tau, bounds, POWER_STEPS
            )
            return params, hidden, bounds

        params, hidden, state = jax.lax.fori_loop(0, self.num_sweeps, sweep, (params, hidden, state))
        params = refreshed_weights(params, frozen)
        return params, state, self.record(eqx.combine(params, frozen), x, hidden, target)
