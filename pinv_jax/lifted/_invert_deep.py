"""Inverts a deep network with its hidden states as unknowns of their own, block after block: `BlockInversion`."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray, PyTree, Scalar

from .._problem import Problem
from ..maps import unstore
from ..solvers import Evaluations, Stop
from ..solvers._check import concrete
from ._functionals import AbstractRegulariser
from ._inversion import AbstractInversion, InversionState, first_record, next_record
from ._network import Layer, LiftedNetwork, operator_norm, tree_axpy, tree_norm, tree_sub
from ._penalties import Bregman
from ._perceptron import NUM_POWER_STEPS, Perceptron, admit
from ._primal_dual import check_alpha, check_regulariser, norm, ratio

STEP = 0.99
"""Of the largest step size of a hidden state for which the bound is a majorant."""


class BlockState(InversionState):
    """As `InversionState`; besides, the lifted variables.

    Attributes:
        data: the admissible data.
        hidden: `x_1, ..., x_{L-1}`.
        preactivations: `z_1, ..., z_L` at them.
        regulariser_dual: shaped like `A x`.
        bounds: curvatures of the energy in `x` and in each hidden state, from above.
    """

    data: Float[Array, "*y"]
    hidden: tuple[PyTree, ...]
    preactivations: tuple[PyTree, ...]
    regulariser_dual: Float[Array, "*z"]
    bounds: tuple[Scalar, ...]


class BlockInversion(AbstractInversion[BlockState]):
    """Block-coordinate inversion of a deep network of proximal activations, without a derivative of any of them.

    It minimises, over `x` and the hidden states `x_1, ..., x_{L-1}` together,

        sum_{l < L} B(x_l, A_l x_{l-1}) + B(data, A_L x_{L-1}) + alpha (G(A x) + J0(x)).

    One step moves every block once, from the last hidden state back to `x`, each with the newest of the others: a
    hidden state by a proximal gradient step,

        x_l <- prox_{m phi_l}(x_l - m (A_{l+1}^T (sigma(z_{l+1}) - x_{l+1}) - z_l)),

    then `x` and the dual variable of `G` by a step of `ExplicitPrimalDual`, with `x_1` for the data. Norms of layers
    are found once, by power iteration. In `x`, and in each state, the energy is convex, but not jointly; for
    regularisers without `A` it never rises, else it may.

    A solve has succeeded once the residual of all blocks, relative to the terms that cancel in it, is at most `rtol`,
    so that the energy is stationary. With a `discrepancy` it has succeeded as soon as the residual of the network
    itself is at the level of the noise, and a stationary point that is not is `stationary`. Deep networks take
    thousands of steps, the more the smaller `alpha`.

    `problem.forward` is a `LiftedNetwork`: `wrap(model, structure)` makes one of an ordinary network. Data and
    `problem.project` are treated as by `FullSplitting`.

    Args:
        alpha: weight of the regulariser, positive.
        regulariser: `J`; total variation by default.
        theta: of the dual step, see `ExplicitPrimalDual`; at most 1.
        rtol, discrepancy: see above.

    Raises:
        ValueError: `alpha` not positive, or `theta` out of its range.

    References:
        X. Wang, M. Benning, A lifted Bregman formulation for the inversion of deep neural networks, 2023,
        arXiv:2303.01965. J. Bolte, S. Sabach, M. Teboulle, Proximal alternating linearized minimization for nonconvex
        and nonsmooth problems, 2014, doi:10.1007/s10107-013-0701-9.
    """

    alpha: Any
    regulariser: AbstractRegulariser
    theta: Any
    stop: Stop

    def __init__(
        self,
        alpha: Any,
        regulariser: Any = None,
        *,
        theta: Any = 0.01,
        rtol: Any = 1e-4,
        discrepancy: Any = None,
    ):
        self.alpha = check_alpha(alpha)
        self.regulariser = check_regulariser(regulariser)
        self.theta = check_theta(theta)
        self.stop = Stop(None, discrepancy, rtol)

    def check(self, problem: Problem, x: Float[Array, "*x"]) -> None:
        """See `AbstractSolver`."""
        as_network(problem.forward, "BlockInversion")
        super().check(problem, x)

    def init(
        self, problem: Problem, x: Float[Array, "*x"], *, key: PRNGKeyArray | None = None
    ) -> tuple[Float[Array, "*x"], BlockState]:
        """See `AbstractSolver`; the hidden states start at those of the network."""
        del key
        network = as_network(problem.forward, "BlockInversion")
        x = self.admissible(problem, x)
        data = admit(network.layers[-1].activation, problem.data, problem.noise_std)
        states = network.states(x)
        hidden, residual = states[:-1], states[-1] - problem.data
        z = network.preactivations(x, hidden)
        fidelity = _fidelity(network, z, hidden, data)
        record = first_record(problem, residual, fidelity + self.alpha * self.regulariser(x), Evaluations(f=1))
        return x, BlockState(
            record=record,
            residual=residual,
            fidelity=fidelity,
            defect=jnp.asarray(jnp.inf, x.dtype),
            data=data,
            hidden=hidden,
            preactivations=z,
            regulariser_dual=jnp.zeros_like(self.regulariser.analysis(x)),
            bounds=_bounds(network, x, hidden),
        )

    def step(self, problem: Problem, x: Float[Array, "*x"], state: BlockState) -> tuple[Float[Array, "*x"], BlockState]:
        """See `AbstractSolver`."""
        network, regulariser, alpha = as_network(problem.forward, "BlockInversion"), self.regulariser, self.alpha
        layers = network.layers
        blocks, z, defects = [*state.hidden, state.data], list(state.preactivations), []
        for i in reversed(range(len(layers) - 1)):
            blocks[i], z[i + 1], defect = _hidden_step(
                layers[i], layers[i + 1], x, blocks[i], blocks[i + 1], z[i], z[i + 1], STEP / state.bounds[i + 1]
            )
            defects.append(defect)
        hidden = tuple(blocks[:-1])

        bound = regulariser.norm_bound(x)
        step = STEP * 2 / ((1 + self.theta) * state.bounds[0])
        dual_step = self.theta * state.bounds[0] / (2 * (alpha * bound) ** 2) if bound > 0 else 1.0
        gradient = input_gradient(network, x, hidden, state.data)
        from_regulariser = alpha * regulariser.adjoint(state.regulariser_dual, x)
        u = self.prox(problem, x - step * (gradient + from_regulariser), step * alpha)
        dual = regulariser.dual_project(state.regulariser_dual + dual_step * alpha * regulariser.analysis(2 * u - x))

        turned = (state.regulariser_dual - dual) / (dual_step * alpha) + regulariser.analysis(u - x)
        defects.append(ratio(norm(x - u) / step, norm(gradient) + norm(from_regulariser)))
        defects.append(ratio(norm(turned), bound * norm(u)))
        z = network.preactivations(u, hidden)
        fidelity = _fidelity(network, z, hidden, state.data)
        residual = network(u) - problem.data
        energy = fidelity + alpha * regulariser(u)
        record = next_record(state.record, problem, residual, energy, step, Evaluations(f=2, vjp=1))
        return u, BlockState(
            record=record,
            residual=residual,
            fidelity=fidelity,
            defect=jnp.max(jnp.stack(defects)).astype(x.dtype),
            data=state.data,
            hidden=hidden,
            preactivations=z,
            regulariser_dual=dual,
            bounds=state.bounds,
        )


def _hidden_step(
    layer: Layer,
    following: Layer,
    x: Array,
    state: PyTree,
    target: PyTree,
    own: PyTree,
    ahead: PyTree,
    step: Any,
) -> tuple[PyTree, PyTree, Scalar]:
    """The state after `layer` moved, the preactivation it gives `following`, and how far it was from stationary."""
    slope = tree_sub(following.activation(ahead), target)
    _, pullback = jax.vjp(lambda u: following.preactivation(u, x), state)
    (pull,) = pullback(slope)
    moved = Bregman().prox(layer.activation, tree_axpy(-step, pull, state), own, step)
    defect = ratio(tree_norm(tree_sub(moved, state)) / step, tree_norm(pull) + tree_norm(own))
    return moved, following.preactivation(moved, x), defect


def input_gradient(
    network: LiftedNetwork, x: Float[Array, "*x"], hidden: tuple[PyTree, ...], data: Float[Array, "*y"]
) -> Float[Array, "*x"]:
    """The gradient in `x` of the sum of the penalties, `A_1^T (sigma_1(z_1) - x_1)` where only layer 1 looks at `x`."""
    z, pullback = jax.vjp(lambda x: network.preactivations(x, hidden), x)
    slopes = (tree_sub(layer.activation(z), y) for layer, y, z in zip(network.layers, (*hidden, data), z, strict=True))
    return pullback(tuple(slopes))[0]


def _fidelity(network: LiftedNetwork, z: tuple[PyTree, ...], hidden: tuple[PyTree, ...], data: Array) -> Scalar:
    """The sum of the penalties of all layers."""
    terms = zip(network.layers, (*hidden, data), z, strict=True)
    return jnp.sum(jnp.stack([layer.activation.gap(y, z) for layer, y, z in terms]))


def _bounds(network: LiftedNetwork, x: Array, hidden: tuple[PyTree, ...]) -> tuple[Scalar, ...]:
    """Curvatures of the energy in `x` and in each hidden state; the maps are affine, so that zeros do for a point."""
    zero_x, zeros = jax.tree.map(jnp.zeros_like, (x, hidden))
    curvatures = [layer.activation.curvature for layer in network.layers]

    def scaled(x: Array) -> Any:
        each = network.preactivations(x, zeros)
        return tuple(
            tree_axpy(c**0.5, z, jax.tree.map(jnp.zeros_like, z)) for c, z in zip(curvatures, each, strict=True)
        )

    found = [operator_norm(scaled, zero_x, num_steps=NUM_POWER_STEPS) ** 2]
    for layer, state, curvature in zip(network.layers[1:], zeros, curvatures[1:], strict=True):
        affine = lambda u, layer=layer: layer.preactivation(u, zero_x)
        found.append(curvature * operator_norm(affine, state, num_steps=NUM_POWER_STEPS) ** 2)
    return tuple(jnp.asarray(bound, x.dtype) for bound in found)


def as_network(forward: Any, name: str) -> LiftedNetwork:
    """The forward map of a problem as a `LiftedNetwork`, for the solver called `name`."""
    forward = unstore(forward)
    if isinstance(forward, Perceptron):
        return LiftedNetwork([Layer(jax.tree_util.Partial(_affine, forward), forward.activation)], forward.structure)
    if not isinstance(forward, LiftedNetwork):
        raise ValueError(
            f"{name} inverts a `LiftedNetwork`; got {type(forward).__name__}. Write `lifted.wrap(model, structure)`, "
            "which verifies that the model is made of affine layers and proximal activations."
        )
    return forward


def _affine(forward: Perceptron, u: Array) -> Array:
    return forward.affine(u)


def check_theta(theta: Any) -> Any:
    """`theta`, checked to be within its bound."""
    if concrete(theta) and not np.all((np.asarray(theta) > 0) & (np.asarray(theta) <= 1)):
        raise ValueError(f"theta={theta}; expected above 0 and at most 1, for example 0.01.")
    return theta
