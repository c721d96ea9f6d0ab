"""`u -> sum_j c_j sigma(<w_j, u> + b_j) + d`: `ShallowNetwork`, and its inversion by coordinates, `ShallowDescent`."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float, PRNGKeyArray, Scalar

from .._problem import Problem
from ..maps import AbstractMap, unstore
from ..solvers import Evaluations, Stop
from ..solvers._check import concrete
from ._activations import AbstractEntrywise, ReLU
from ._functionals import AbstractRegulariser, HalfSquaredNorm
from ._inversion import AbstractInversion, InversionState, first_record, next_record
from ._primal_dual import check_regulariser, ratio


class ShallowNetwork(AbstractMap):
    """One hidden layer of `m` units, `u -> sum_j c_j sigma(<w_j, u> + b_j) + d`.

    Args:
        outer: `c`, of shape `(m, *y)`; `(m,)` for a scalar output.
        inner: `w`, of shape `(m, *u)`; `(m,)` for a scalar unknown.
        bias: `b`, of shape `(m,)`.
        activation: entrywise; the ReLU by default.
        offset: `d`, shaped like the output; zero by default.

    Raises:
        ValueError: shapes that do not fit, or an activation that is not entrywise.
    """

    outer: Float[Array, "m *y"]
    inner: Float[Array, "m *u"]
    bias: Float[Array, " m"]
    activation: AbstractEntrywise
    offset: Float[Array, "*y"]

    def __init__(
        self,
        outer: ArrayLike,
        inner: ArrayLike,
        bias: ArrayLike,
        activation: Any = None,
        *,
        offset: ArrayLike | None = None,
    ):
        self.outer, self.inner, self.bias = jnp.asarray(outer), jnp.asarray(inner), jnp.asarray(bias)
        num = self.bias.shape
        if len(num) != 1 or self.outer.shape[:1] != num or self.inner.shape[:1] != num or num[0] == 0:
            raise ValueError(
                f"outer has shape {self.outer.shape}, inner {self.inner.shape} and bias {num}; expected (m, *y), "
                "(m, *u) and (m,) for m hidden units."
            )
        self.activation = ReLU() if activation is None else activation
        if not isinstance(self.activation, AbstractEntrywise):
            raise ValueError(
                f"activation is a {type(activation).__name__}; expected an entrywise one, such as `ReLU()` or "
                "`Tanh()`: hidden values are moved one by one. For others use `BlockInversion`."
            )
        shape = self.outer.shape[1:]
        self.offset = jnp.zeros(shape, self.outer.dtype) if offset is None else jnp.asarray(offset)
        if self.offset.shape != shape:
            raise ValueError(f"offset has shape {self.offset.shape}; expected {shape}, like the output.")

    def __call__(self, x: Float[Array, "*u"]) -> Float[Array, "*y"]:
        """The output."""
        return self.readout(self.activation(self.preactivation(x)))

    def in_structure(self) -> jax.ShapeDtypeStruct:
        """Shape and dtype of `u`."""
        return jax.ShapeDtypeStruct(self.inner.shape[1:], self.inner.dtype)

    def preactivation(self, x: Float[Array, "*u"]) -> Float[Array, " m"]:
        """`<w_j, u> + b_j` for all `j`."""
        return self._rows(self.inner) @ jnp.ravel(x) + self.bias

    def readout(self, hidden: Float[Array, " m"]) -> Float[Array, "*y"]:
        """`sum_j c_j h_j + d`."""
        return jnp.reshape(hidden @ self._rows(self.outer), self.offset.shape) + self.offset

    def adjoint(self, slope: Float[Array, " m"]) -> Float[Array, "*u"]:
        """`sum_j w_j s_j`."""
        return jnp.reshape(slope @ self._rows(self.inner), self.inner.shape[1:])

    def norm(self) -> Scalar:
        """An upper bound of `|w|` as an operator; exact for a scalar unknown."""
        rows = self._rows(self.inner)
        gram = rows.T @ rows if rows.shape[0] >= rows.shape[1] else rows @ rows.T
        return jnp.sqrt(jnp.max(jnp.sum(jnp.abs(gram), axis=1)))

    def _rows(self, weights: Array) -> Array:
        return jnp.reshape(weights, (self.bias.size, -1))


def shallow_interpolant(fn: Callable[..., Any], nodes: Float[Array, " nodes"]) -> ShallowNetwork:
    """The piecewise linear interpolant of a scalar function as a network of ReLUs, one for each interval.

    `w_j = 1`, `b_j = -x_{j-1}`, and `c_j` is the change of slope at `x_{j-1}`. It is constant before the first node,
    and goes on with the last slope after the last.

    Args:
        fn: maps a scalar to a scalar.
        nodes: `x_0 < ... < x_m`.

    Raises:
        ValueError: fewer than two nodes, or nodes that do not increase.
    """
    nodes = jnp.asarray(nodes)
    if nodes.ndim != 1 or nodes.size < 2 or (concrete(nodes) and not np.all(np.diff(np.asarray(nodes)) > 0)):
        raise ValueError(f"nodes={nodes}; expected at least two increasing numbers, as `jnp.linspace(0, 1.5, 26)`.")
    values = jax.vmap(fn)(nodes)
    slopes = jnp.diff(values) / jnp.diff(nodes)
    changes = jnp.diff(slopes, prepend=jnp.zeros((1,), slopes.dtype))
    return ShallowNetwork(changes, jnp.ones_like(changes), -nodes[:-1], ReLU(), offset=values[0])


class ShallowState(InversionState):
    """As `InversionState`; besides, the hidden values."""

    hidden: Float[Array, " m"]


class ShallowDescent(AbstractInversion[ShallowState]):
    """Coordinate descent for a shallow network whose hidden values `h` are unknowns of their own.

    It minimises

        |sum_j c_j h_j + d - data|^2/2 + sum_j B(h_j, <w_j, u> + b_j) + alpha J(u).

    One step is a sweep: every `h_j` in turn is set to its exact minimiser, a prox of the activation, with the sum
    `sum_j c_j h_j` carried along; then `u` makes one proximal gradient step. The energy never rises. Jointly in `u` and
    `h` it is not convex; where the limit depends on the start, a smaller `alpha` helps.

    A solve has succeeded once a sweep moves neither `h` nor `u` by more than `rtol`, relative to their size; with a
    `discrepancy`, as soon as the residual of the network is at the level of the noise, and `stationary` is the end of
    progress without that. Coordinates move slowly, and the error left is a multiple of the last move: a
    thousand sweeps may look converged in the energy, but not in `u`. Hence the small `rtol`.

    Args:
        alpha: weight of the regulariser; zero is allowed, where the data alone determine `u`.
        regulariser: one with an explicit prox; half the squared norm by default.
        rtol, discrepancy: see above.

    Raises:
        ValueError: `alpha` negative, a regulariser without explicit prox.

    References:
        X. Wang, M. Benning, A lifted Bregman formulation for the inversion of deep neural networks, 2023,
        arXiv:2303.01965.
    """

    alpha: Any
    regulariser: AbstractRegulariser
    stop: Stop

    def __init__(
        self,
        alpha: Any,
        regulariser: Any = None,
        *,
        rtol: Any = 1e-7,
        discrepancy: Any = None,
    ):
        self.alpha = not_negative(alpha)
        self.regulariser = HalfSquaredNorm() if regulariser is None else check_regulariser(regulariser)
        self.stop = Stop(None, discrepancy, rtol)

    def check(self, problem: Problem, x: Float[Array, "*u"]) -> None:
        """See `AbstractSolver`."""
        _as_shallow(problem.forward)
        super().check(problem, x)
        self.regulariser.prox(x, 0.0)  # refuses one that has none

    def init(
        self, problem: Problem, x: Float[Array, "*u"], *, key: PRNGKeyArray | None = None
    ) -> tuple[Float[Array, "*u"], ShallowState]:
        """See `AbstractSolver`; the hidden values start at those of the network."""
        del key
        forward = _as_shallow(problem.forward)
        x = self.admissible(problem, x)
        hidden = forward.activation(forward.preactivation(x))
        residual = forward.readout(hidden) - problem.data
        fidelity = 0.5 * jnp.sum(residual**2)
        record = first_record(problem, residual, fidelity + self.alpha * self.regulariser(x), Evaluations(f=1))
        return x, ShallowState(record, residual, fidelity, jnp.asarray(jnp.inf, x.dtype), hidden)

    def step(
        self, problem: Problem, x: Float[Array, "*u"], state: ShallowState
    ) -> tuple[Float[Array, "*u"], ShallowState]:
        """See `AbstractSolver`."""
        forward = _as_shallow(problem.forward)
        z = forward.preactivation(x)
        hidden = sweep(forward, z, state.hidden, problem.data)
        step = 1 / (forward.activation.curvature * forward.norm() ** 2)
        gradient = forward.adjoint(forward.activation(z) - hidden)
        u = self.prox(problem, x - step * gradient, step * self.alpha)

        z = forward.preactivation(u)
        fidelity = 0.5 * jnp.sum((forward.readout(hidden) - problem.data) ** 2) + forward.activation.gap(hidden, z)
        residual = forward.readout(forward.activation(z)) - problem.data
        energy = fidelity + self.alpha * self.regulariser(u)
        record = next_record(state.record, problem, residual, energy, step, Evaluations(f=1, vjp=1))
        moved = jnp.sum((u - x) ** 2) + jnp.sum((hidden - state.hidden) ** 2)
        size = jnp.sum(u**2) + jnp.sum(hidden**2)
        return u, ShallowState(record, residual, fidelity, jnp.sqrt(ratio(moved, size)), hidden)


def sweep(
    forward: ShallowNetwork, z: Float[Array, " m"], hidden: Float[Array, " m"], data: Float[Array, "*y"]
) -> Float[Array, " m"]:
    """Every hidden value in turn at its minimiser of `|sum_j c_j h_j + d - data|^2/2 + sum_j B(h_j, z_j)`."""
    outer = jnp.reshape(forward.outer, (hidden.size, -1))
    curvature = 1 + jnp.sum(outer**2, axis=1)

    def one(residual: Array, unit: tuple[Array, ...]) -> tuple[Array, Array]:
        c, curvature, h, z = unit
        # The prox of phi - z h + |residual + c (h - h_old)|^2/2 in h.
        target = z - jnp.sum(c * residual) + (curvature - 1) * h
        new = forward.activation.prox(target / curvature, 1 / curvature)
        return residual + c * (new - h), new

    residual = jnp.ravel(forward.readout(hidden) - data)  # anew in every sweep, so that no rounding piles up
    return jax.lax.scan(one, residual, (outer, curvature, hidden, z))[1]


def not_negative(alpha: Any) -> Any:
    """`alpha`, checked to be zero or more."""
    if alpha is None or (concrete(alpha) and not np.all(np.asarray(alpha) >= 0)):
        raise ValueError(f"alpha={alpha}; expected the weight of the regulariser, positive, or zero for none.")
    return alpha


def _as_shallow(forward: Any) -> ShallowNetwork:
    forward = unstore(forward)
    if not isinstance(forward, ShallowNetwork):
        raise ValueError(
            f"ShallowDescent inverts a `ShallowNetwork(outer, inner, bias, activation)`; got {type(forward).__name__}. "
            "For other networks use `BlockInversion` on `wrap(model)`."
        )
    return forward
