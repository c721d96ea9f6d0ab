"""Training by back-propagation, on the same losses: the term `network_loss` and the stage `ImplicitBackprop`."""

from collections.abc import Callable, Mapping
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray, PyTree, Scalar

from ..learn import AbstractStage, Batch
from ..maps import store
from ._network import LiftedNetwork, tree_axpy, tree_sub


def network_loss(
    network: LiftedNetwork,
    x: Float[Array, "*x"],
    y: Float[Array, "*y"],
    key: Any = None,
    *,
    sparsity: Mapping[int, float] | None = None,
) -> Scalar:
    """`B(y, z_L)`, what lifted training minimises where all states are those of the network: a term of `learn.Stage`.

    Cross-entropy behind `Softmax` (for `y` with one entry of one), half a squared error behind `Identity`.

    Args:
        network: the network.
        x: the input.
        y: what it should return.
        key: not used.
        sparsity: by number of the hidden layer, counted from 1, the weight of the 1-norm of its states.
    """
    del key
    states = network.states(x)
    last = network.layers[-1]
    previous = states[-2] if len(states) > 1 else x
    loss = last.activation.gap(y, last.preactivation(previous, x))
    return loss + sum(weight * jnp.sum(jnp.abs(states[i - 1])) for i, weight in (sparsity or {}).items())


class ImplicitBackprop(AbstractStage):
    """Implicit stochastic gradient with back-propagation: `argmin_W loss(W) + |W - W_k|^2 / (2 tau)` by gradient steps.

    Args:
        num_steps: batches.
        batch_size: examples in each.
        tau: of the implicit step.
        learning_rate: of the gradient steps within.
        num_inner: of them, per batch.
        sparsity: see `network_loss`.
        trainable, select: see `learn.Stage`.

    References:
        P. Toulis, E. M. Airoldi, "Asymptotic and finite-sample properties of estimators based on stochastic gradients",
        2017, arXiv:1408.2923.
    """

    num_steps: int
    batch_size: int
    trainable: Any
    select: Any
    tau: float | int
    learning_rate: float | int
    num_inner: int
    sparsity: dict[int, float]

    def __init__(
        self,
        num_steps: int,
        batch_size: int,
        *,
        tau: float | int = 1.0,
        learning_rate: float | int = 0.1,
        num_inner: int = 10,
        sparsity: Mapping[int, float] | None = None,
        trainable: Callable[..., Any] | None = None,
        select: Callable[..., Any] | None = None,
    ):
        if not tau > 0 or not learning_rate > 0 or num_inner < 1:
            raise ValueError(
                f"tau={tau}, learning_rate={learning_rate}, num_inner={num_inner}; expected positive ones."
            )
        self.num_steps = num_steps
        self.batch_size = batch_size
        self.tau = tau
        self.learning_rate = learning_rate
        self.num_inner = num_inner
        self.sparsity = dict(sparsity or {})
        self.trainable = store(trainable or (lambda network: network))
        self.select = store(select)

    @property
    def names(self) -> tuple[str, ...]:
        """Of the columns."""
        return ("loss",)

    def bare(self) -> "ImplicitBackprop":
        """See `AbstractStage`."""
        return eqx.tree_at(lambda stage: stage.num_steps, self, 0)

    def start(self, params: PyTree, frozen: PyTree, data: Any) -> tuple[()]:
        """See `AbstractStage`."""
        del params, frozen, data
        return ()

    def advance(
        self, params: PyTree, frozen: PyTree, state: PyTree, batch: Batch, key: PRNGKeyArray
    ) -> tuple[PyTree, PyTree, Any]:
        """See `AbstractStage`."""
        del key
        anchor = params

        def loss(params: PyTree) -> Scalar:
            network = eqx.combine(params, frozen)
            return jnp.mean(
                jax.vmap(lambda x, y: network_loss(network, x, y, sparsity=self.sparsity))(batch.x, batch.y)
            )

        def inner(_: Any, params: PyTree) -> PyTree:
            gradient = tree_axpy(1 / self.tau, tree_sub(params, anchor), eqx.filter_grad(loss)(params))
            return tree_axpy(-self.learning_rate, gradient, params)

        params = jax.lax.fori_loop(0, self.num_inner, inner, params)
        value = loss(params)
        return params, state, (value, {"loss": value}, {"loss": jnp.ones_like(value)})
