"""`u_k = u_{k-1} + V_k sigma(W_k u_{k-1} + b_k)`: `ResidualFlow`, and its inversion, convex where `V_k = W_k^T`."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, PRNGKeyArray, Scalar

from .._problem import Problem
from .._solution import RESULTS, result_where
from ..maps import AbstractMap, unstore
from ..solvers import Evaluations, Stop
from ..solvers._check import concrete
from ._abstract_activation import AbstractActivation
from ._activations import ReLU
from ._functionals import AbstractRegulariser, HalfSquaredNorm
from ._inversion import AbstractInversion, InversionState, first_record, next_record
from ._invert_shallow import not_negative
from ._primal_dual import check_regulariser, norm, ratio
from ._theory import Certificate, convexity_certificate, residual_operators


class ResidualFlow(AbstractMap):
    """A residual network of `l` blocks, `u_k = u_{k-1} + V_k sigma(W_k u_{k-1} + b_k)`; its output is `u_l`.

    With `V_k = W_k^T` every block moves along the gradient of a convex function, and the map is monotone and expands:
    its inverse is a contraction. With `V_k = -W_k^T` it descends along such gradients.

    Args:
        weights: `W`, of shape `(l, d, n)`: `d` units in each block.
        biases: `b`, of shape `(l, d)`.
        activation: of every block, on its `d` values; the ReLU by default.
        sign: 1 for `V_k = W_k^T`, -1 for `V_k = -W_k^T`.
        returns: `V`, of shape `(l, n, d)`, instead of plus or minus the transpose; `sign` must then be 1.

    Raises:
        ValueError: shapes that do not fit, or another sign.
    """

    weights: Float[Array, "l d n"]
    biases: Float[Array, "l d"]
    activation: AbstractActivation
    sign: int = eqx.field(static=True)
    returns: Float[Array, "l n d"] | None

    def __init__(
        self,
        weights: ArrayLike,
        biases: ArrayLike,
        activation: AbstractActivation | None = None,
        *,
        sign: int = 1,
        returns: ArrayLike | None = None,
    ):
        self.weights, self.biases = jnp.asarray(weights), jnp.asarray(biases)
        if self.weights.ndim != 3 or self.biases.shape != self.weights.shape[:2] or self.weights.size == 0:
            raise ValueError(
                f"weights have shape {self.weights.shape} and biases {self.biases.shape}; expected (l, d, n) and "
                "(l, d) for l blocks of d units, on states of n numbers."
            )
        if sign not in (1, -1) or (returns is not None and sign != 1):
            raise ValueError(f"sign={sign!r}; expected 1, or -1 for V_k = -W_k^T, which leaves no room for returns.")
        self.activation = ReLU() if activation is None else activation
        self.sign = sign
        self.returns = None if returns is None else jnp.asarray(returns)
        blocks, units, size = self.weights.shape
        if self.returns is not None and self.returns.shape != (blocks, size, units):
            raise ValueError(
                f"returns have shape {self.returns.shape}; expected {(blocks, size, units)}, as W_k^T has."
            )

    def __call__(self, x: Float[Array, " n"]) -> Float[Array, " n"]:
        """The output `u_l`."""
        return self.states(x)[0][-1]

    def in_structure(self) -> jax.ShapeDtypeStruct:
        """Shape and dtype of `u_0`."""
        return jax.ShapeDtypeStruct(self.weights.shape[2:], self.weights.dtype)

    def states(self, x: Float[Array, " n"]) -> tuple[Float[Array, "states n"], Float[Array, "l d"]]:
        """All states `u_0, ..., u_l`, and the values of the units, block by block."""

        def block(u: Array, parameters: Any) -> Any:
            w, b, v = parameters
            h = self.activation(w @ u + b)
            u = u + v @ h
            return u, (u, h)

        _, (after, hidden) = jax.lax.scan(block, x, (self.weights, self.biases, self.outgoing()))
        return jnp.concatenate([x[None], after]), hidden

    def outgoing(self) -> Float[Array, "l n d"]:
        """`V`."""
        return self.sign * jnp.swapaxes(self.weights, 1, 2) if self.returns is None else self.returns

    def certificate(self, fidelity_weight: Any, rho: Any = np.inf) -> Certificate:
        """Whether the lifted energy is known to be jointly convex; see `convexity_certificate`.

        Args:
            fidelity_weight: `lambda`, of the data.
            rho: penalty weight of the blocks' equations; infinite where they are enforced.
        """
        blocks, units, size = self.weights.shape
        w = np.reshape(np.asarray(self.weights), (blocks * units, size))
        v = np.reshape(np.moveaxis(np.asarray(self.outgoing()), 1, 0), (size, blocks * units))
        return convexity_certificate(*residual_operators(blocks), fidelity_weight, rho, weights=w, returns=v)


class ResidualState(InversionState):
    """As `InversionState`; besides, the lifted variables.

    Attributes:
        states: `u_0, ..., u_l`.
        units: `z`, the values of the units.
        dual: `y`, of the equations `u_k - u_{k-1} = V_k z_k`.
        weight_norm, return_norm: the largest `|W_k|` and `|V_k|`.
    """

    states: Float[Array, "states n"]
    units: Float[Array, "l d"]
    dual: Float[Array, "l n"]
    weight_norm: Scalar
    return_norm: Scalar


class ResidualSplitting(AbstractInversion[ResidualState]):
    """Inverts a `ResidualFlow` with all of its states and units as unknowns; no block is ever evaluated after another.

    It minimises

        lambda/2 |u_l - data|^2 + sum_k B(z_k, W_k u_{k-1} + b_k) + alpha J(u_0)  with  u_k - u_{k-1} = V_k z_k

    by the primal-dual method of Condat and Vu with a dual variable for the equations. Where `V_k = W_k^T` the bilinear
    terms of `B` become, by the equations, the quadratic form `-<M u, u>`, `M u` the differences of the states. The
    problem is then convex if `lambda >= l / (l + 1)`, see `ResidualFlow.certificate`, and the method finds the global
    minimum from any start.

    For any other `V` there is no certificate. The bilinear terms stay, and `rho/2 |u_k - u_{k-1} - V_k z_k|^2` is
    added, which makes the problem convex near a solution that fits the data; nothing is promised of a limit elsewhere.

    A solve has succeeded once the primal-dual residual, relative to the terms that cancel in it, is at most `rtol`;
    with a `discrepancy`, as soon as the residual of the network itself is at the level of the noise. The objective in
    `stats` is the energy at the lifted variables, which need not fall and is not one while the equations do not hold.

    Args:
        fidelity_weight: `lambda`, positive.
        alpha: weight of the regulariser; zero is allowed.
        regulariser: of `u_0`, one with an explicit prox; half the squared norm by default.
        rho: not negative; used only where `V_k` is not `W_k^T`.
        dual_step: of the dual variable; the primal step follows from its bound.
        rtol, discrepancy: see above.

    Raises:
        ValueError: a parameter out of its range. `V_k = W_k^T` and `lambda < l / (l + 1)`, where convexity is lost, end
            the solve at once, as `nonlinear_divergence`.

    References:
        X. Wang, M. Benning, A lifted Bregman formulation for the inversion of deep neural networks, 2023,
        arXiv:2303.01965. L. Condat, A primal-dual splitting method for convex optimization involving Lipschitzian,
        proximable and linear composite terms, 2013, doi:10.1007/s10957-012-0245-9.
    """

    fidelity_weight: Any
    alpha: Any
    regulariser: AbstractRegulariser
    rho: Any
    dual_step: Any
    stop: Stop

    def __init__(
        self,
        fidelity_weight: Any = 1.0,
        alpha: Any = 0.0,
        regulariser: Any = None,
        *,
        rho: Any = 0.1,
        dual_step: Any = 0.3,
        rtol: Any = 1e-5,
        discrepancy: Any = None,
    ):
        for name, value in (("fidelity_weight", fidelity_weight), ("dual_step", dual_step)):
            if concrete(value) and not np.all(np.asarray(value) > 0):
                raise ValueError(f"{name}={value}; expected a positive number.")
        if concrete(rho) and not np.all(np.asarray(rho) >= 0):
            raise ValueError(f"rho={rho}; expected a number of at least zero.")
        self.fidelity_weight = fidelity_weight
        self.alpha = not_negative(alpha)
        self.regulariser = HalfSquaredNorm() if regulariser is None else check_regulariser(regulariser)
        self.rho = rho
        self.dual_step = dual_step
        self.stop = Stop(None, discrepancy, rtol)

    def check(self, problem: Problem, x: Float[Array, " n"]) -> None:
        """See `AbstractSolver`."""
        _as_flow(problem.forward)
        super().check(problem, x)
        self.regulariser.prox(x, 0.0)  # refuses one that has none

    def init(
        self, problem: Problem, x: Float[Array, " n"], *, key: PRNGKeyArray | None = None
    ) -> tuple[Float[Array, " n"], ResidualState]:
        """See `AbstractSolver`; states and units start at those of the network."""
        del key
        flow = _as_flow(problem.forward)
        x = self.admissible(problem, x)
        states, units = flow.states(x)
        norms = (jnp.max(jnp.linalg.norm(w, ord=2, axis=(1, 2))) for w in (flow.weights, flow.outgoing()))
        residual = states[-1] - problem.data
        fidelity = 0.5 * self.fidelity_weight * jnp.sum(residual**2)
        record = first_record(problem, residual, fidelity + self.alpha * self.regulariser(x), Evaluations(f=1))
        defect = jnp.asarray(jnp.inf, x.dtype)
        return x, ResidualState(record, residual, fidelity, defect, states, units, jnp.zeros_like(states[1:]), *norms)

    def step(
        self, problem: Problem, x: Float[Array, " n"], state: ResidualState
    ) -> tuple[Float[Array, " n"], ResidualState]:
        """See `AbstractSolver`."""
        flow = _as_flow(problem.forward)
        w, v, activation = flow.weights, flow.outgoing(), flow.activation
        u, z, y = state.states, state.units, state.dual
        certified = flow.returns is None and flow.sign == 1
        step = self._step_size(flow, state)

        affine = _apply(w, u[:-1]) + flow.biases
        data_pull = self.fidelity_weight * (u[-1] - problem.data)
        if certified:
            smooth = -_into_states(_differences(u)) - _from_blocks(u[:-1])
            smooth = smooth + _into_states(_apply_transposed(w, activation(affine)))
            towards = flow.biases
        else:
            defect = self.rho * (_differences(u) - _apply(v, z))
            smooth = _into_states(_apply_transposed(w, activation(affine) - z)) + _from_blocks(defect)
            towards = affine + _apply_transposed(v, defect)
        smooth = smooth.at[-1].add(data_pull)
        from_dual = _from_blocks(y)

        moved = u - step * (smooth + from_dual)
        after = moved.at[0].set(self.prox(problem, moved[0], step * self.alpha))
        pull = towards + _apply_transposed(v, y)
        prox = lambda t: activation.prox_potential(t, step)
        units = jax.vmap(prox)(z + step * pull)
        ahead_u, ahead_z = 2 * after - u, 2 * units - z
        dual = y + self.dual_step * (_differences(ahead_u) - _apply(v, ahead_z))

        z_after = _apply(w, after[:-1]) + flow.biases
        gaps = jnp.sum(jax.vmap(activation.gap)(units, z_after))
        fidelity = 0.5 * self.fidelity_weight * jnp.sum((after[-1] - problem.data) ** 2) + gaps
        energy = fidelity + self.alpha * self.regulariser(after[0])
        residual = flow(after[0]) - problem.data
        flux = _apply(v, units)
        defects = (
            ratio(norm(after - u) / step, norm(smooth) + norm(from_dual)),
            ratio(norm(units - z) / step, norm(pull) + norm(units)),
            ratio(norm(_differences(after) - flux), norm(after) + norm(flux)),
        )
        record = next_record(state.record, problem, residual, energy, step, Evaluations(f=2, vjp=1))
        return after[0], ResidualState(
            record=record,
            residual=residual,
            fidelity=fidelity,
            defect=jnp.max(jnp.stack(defects)),
            states=after,
            units=units,
            dual=dual,
            weight_norm=state.weight_norm,
            return_norm=state.return_norm,
        )

    def terminate(
        self, problem: Problem, x: Float[Array, " n"], state: ResidualState
    ) -> tuple[Bool[Array, ""], RESULTS]:
        """See `AbstractSolver`."""
        done, result = super().terminate(problem, x, state)
        flow = _as_flow(problem.forward)
        blocks = flow.biases.shape[0]
        slack = 1e-6
        lost = jnp.asarray(self.fidelity_weight) < (1 - slack) * blocks / (blocks + 1)
        lost = lost & (flow.returns is None) & (flow.sign == 1)
        return done | lost, result_where(lost, RESULTS.nonlinear_divergence, result)

    def _step_size(self, flow: ResidualFlow, state: ResidualState) -> Scalar:
        """`1 / step = L/2 + dual_step |C|^2`, with `|C|^2 <= 4 + max |V_k|^2` for `C (u, z) = M u - V z`."""
        constraint = 4 + state.return_norm**2
        lipschitz = flow.activation.curvature * state.weight_norm**2
        if flow.returns is None and flow.sign == 1:
            # Rows of the quadratic form: (2, -1), (-1, 2, -1), (-1, lambda).
            lipschitz = lipschitz + jnp.maximum(4.0, 1 + self.fidelity_weight)
        else:
            lipschitz = lipschitz + state.weight_norm + self.fidelity_weight + self.rho * constraint
        return 0.99 / (0.5 * lipschitz + self.dual_step * constraint)


def _as_flow(forward: Any) -> ResidualFlow:
    forward = unstore(forward)
    if not isinstance(forward, ResidualFlow):
        raise ValueError(
            f"ResidualSplitting inverts a `ResidualFlow(weights, biases, activation)`; got {type(forward).__name__}. "
            "For other networks use `BlockInversion` on `wrap(model)`."
        )
    return forward


# Linear algebra of states, one row each; the equations have one row for each block ------------------------------------


def _apply(blocks: Array, rows: Array) -> Array:
    return jnp.einsum("lij,lj->li", blocks, rows)


def _apply_transposed(blocks: Array, rows: Array) -> Array:
    return jnp.einsum("lij,li->lj", blocks, rows)


def _differences(u: Array) -> Array:
    """`M u`, without its last row, which is zero."""
    return u[1:] - u[:-1]


def _from_blocks(y: Array) -> Array:
    """The transpose of `_differences`."""
    nothing = jnp.zeros_like(y[:1])
    return jnp.concatenate([nothing, y]) - jnp.concatenate([y, nothing])


def _into_states(y: Array) -> Array:
    """Rows of the blocks at the states they start from."""
    return jnp.concatenate([y, jnp.zeros_like(y[:1])])
