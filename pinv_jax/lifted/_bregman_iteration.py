"""Iterative regularisation, `x <- argmin F(x) + alpha (J(x) - <p, x>)`, `p <- p - grad F(x) / alpha`, to the noise."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PRNGKeyArray, Scalar

from .._problem import Problem
from .._solution import RESULTS, result_where
from ..solvers import AbstractSolver, AbstractState, Record, Stop
from ._functionals import AbstractRegulariser, Kind, Number
from ._inversion import next_record
from ._invert_deep import BlockInversion, as_network, input_gradient
from ._perceptron import as_perceptron
from ._primal_dual import AbstractPrimalDual
from ._quadratic import VariationalDescent


class Tilted(AbstractRegulariser):
    """`J(u) - <slope, u>`.

    Args:
        regulariser: `J`.
        slope: shaped like `u`.
    """

    regulariser: AbstractRegulariser
    slope: Float[Array, "*u"]

    @property
    def kind(self) -> Kind:
        """See `AbstractRegulariser`."""
        return self.regulariser.kind

    def __call__(self, u: Float[Array, "*u"]) -> Scalar:
        """See `AbstractRegulariser`."""
        return self.regulariser(u) - jnp.sum(self.slope * u)

    def simple_prox(self, v: Float[Array, "*u"], step: Number) -> Float[Array, "*u"]:
        """See `AbstractRegulariser`."""
        return self.regulariser.simple_prox(v + step * self.slope, step)

    def analysis(self, u: Float[Array, "*u"]) -> Float[Array, "*z"]:
        """See `AbstractRegulariser`."""
        return self.regulariser.analysis(u)

    def adjoint(self, z: Float[Array, "*z"], u: Float[Array, "*u"]) -> Float[Array, "*u"]:
        """See `AbstractRegulariser`."""
        return self.regulariser.adjoint(z, u)

    def norm_bound(self, u: Float[Array, "*u"]) -> float:
        """See `AbstractRegulariser`."""
        return self.regulariser.norm_bound(u)

    def dual_project(self, z: Float[Array, "*z"]) -> Float[Array, "*z"]:
        """See `AbstractRegulariser`."""
        return self.regulariser.dual_project(z)

    def check(self, u: Any) -> None:
        """See `AbstractRegulariser`."""
        self.regulariser.check(u)


class BregmanState(AbstractState):
    """The state of `BregmanIteration`.

    Attributes:
        record: what `solve` reports; its objective is `F`.
        inner: the state of the inner solver.
        slope: `p`, a subgradient of `J` at the iterate where the inner problem was solved exactly.
        residual: `forward(x) - data`, of the data as they were given.
        stalled: whether the last step lowered `F` by no more than `rtol`, relative to it.
    """

    record: Record
    inner: Any
    slope: Float[Array, "*x"]
    residual: Float[Array, "*y"]
    stalled: Bool[Array, ""]


class BregmanIteration(AbstractSolver[BregmanState]):
    """Iterative regularisation by Bregman distances, stopped at the level of the noise.

    From `p = 0`, with `F` the data term of an inner solver and a large `alpha`,

        x <- argmin_x F(x) + alpha (J(x) - <p, x>),   p <- p - grad F(x) / alpha.

    Each step is a fixed number of steps of the inner solver, which goes on from where it stopped. The first gives what
    the inner solver alone would, much too regular; those that follow put back what the regulariser took, contrast above
    all, and in the end the noise. Not `alpha` but the number of steps regularises.

    The inner solver says what `F` is: `VariationalDescent`, `|N(x) - data|^2/2`; `FullSplitting` and
    `ExplicitPrimalDual`, `B(data, W x + b)`; `BlockInversion`, the penalties of all layers at its hidden states.

    It stops, successfully, at the first step after which the residual `N(x) - data` is at the level of the noise: its
    root mean square in units of `problem.noise_std` is at most `discrepancy`. Without a discrepancy, once its root mean
    square is at most `atol`. It stops as `stationary` once a step lowers `F` by at most `rtol`, relative to it.
    `rtol` and `discrepancy` of the inner solver play no part.

    Args:
        inner: the inner solver, of a large `alpha`, and of the regulariser.
        num_inner: steps of it in each step; so many that its first result is about right. Too few, above all with a
            small `alpha`, and the iteration diverges, or meets the noise with a wrong image.
        discrepancy: 1 to 1.5 is usual.
        atol, rtol: see above.

    Raises:
        ValueError: another inner solver, or `num_inner` below 1.

    References:
        S. Osher, M. Burger, D. Goldfarb, J. Xu, W. Yin, An iterative regularization method for total variation-based
        image restoration, 2005, doi:10.1137/040605412. M. Bachmayr, M. Burger, Iterative total variation schemes for
        nonlinear inverse problems, 2009, doi:10.1088/0266-5611/25/10/105004. W. Yin, S. Osher, Error forgetting of
        Bregman iteration, 2013, doi:10.1007/s10915-012-9616-5.
    """

    inner: AbstractSolver
    num_inner: int = eqx.field(static=True)
    stop: Stop

    def __init__(
        self,
        inner: AbstractSolver,
        *,
        num_inner: int = 50,
        discrepancy: Any = None,
        atol: Any = 1e-6,
        rtol: Any = 1e-5,
    ):
        if not isinstance(inner, AbstractPrimalDual | BlockInversion | VariationalDescent):
            raise ValueError(
                f"inner is a {type(inner).__name__}; expected VariationalDescent, FullSplitting, ExplicitPrimalDual or "
                "BlockInversion, as an instance: `BregmanIteration(FullSplitting(alpha), discrepancy=1.0)`."
            )
        if not isinstance(num_inner, int) or num_inner < 1:
            raise ValueError(f"num_inner={num_inner!r}; expected the number of inner steps, at least 1.")
        self.inner = inner
        self.num_inner = num_inner
        self.stop = Stop(atol, discrepancy, rtol)

    def check(self, problem: Problem, x: Float[Array, "*x"]) -> None:
        """See `AbstractSolver`."""
        self.inner.check(problem, x)

    def tilted(self, slope: Float[Array, "*x"]) -> AbstractSolver:
        """The inner solver with `J - <p, .>` for `J`."""
        inner: Any = self.inner
        return eqx.tree_at(lambda s: s.regulariser, inner, Tilted(inner.regulariser, slope))

    def init(
        self, problem: Problem, x: Float[Array, "*x"], *, key: PRNGKeyArray | None = None
    ) -> tuple[Float[Array, "*x"], BregmanState]:
        """See `AbstractSolver`."""
        slope = jnp.zeros_like(x)
        x, inner = self.tilted(slope).init(problem, x, key=key)
        value, _ = data_term(self.inner, problem, x, inner)
        record = eqx.tree_at(lambda r: r.objective, inner.record, value.astype(x.dtype))
        return x, BregmanState(record, inner, slope, problem.forward(x) - problem.data, jnp.asarray(False))

    def step(
        self, problem: Problem, x: Float[Array, "*x"], state: BregmanState
    ) -> tuple[Float[Array, "*x"], BregmanState]:
        """See `AbstractSolver`."""
        solver: Any = self.tilted(state.slope)
        x, inner = jax.lax.fori_loop(0, self.num_inner, lambda _, carry: solver.step(problem, *carry), (x, state.inner))
        value, gradient = data_term(self.inner, problem, x, inner)
        residual = problem.forward(x) - problem.data
        work = jax.tree.map(jnp.subtract, inner.record.evaluations, state.inner.record.evaluations)
        record = next_record(state.record, problem, residual, value, inner.record.step_size, work)
        alpha: Any = self.inner.alpha  # pyright: ignore[reportAttributeAccessIssue]
        fallen = state.record.objective - value
        stalled = jnp.abs(fallen) <= self.stop.rtol * jnp.abs(state.record.objective)
        return x, BregmanState(record, inner, state.slope - gradient / alpha, residual, stalled)

    def terminate(
        self, problem: Problem, x: Float[Array, "*x"], state: BregmanState
    ) -> tuple[Bool[Array, ""], RESULTS]:
        """See `AbstractSolver`."""
        met = self.stop.met(problem, state.residual)
        finite = jnp.isfinite(state.record.residual_rms)
        result = result_where(finite, RESULTS.stationary, RESULTS.nonlinear_divergence)
        return met | ~finite | state.stalled, result_where(met, RESULTS.successful, result)


def data_term(
    solver: AbstractSolver, problem: Problem, x: Float[Array, "*x"], state: Any
) -> tuple[Scalar, Float[Array, "*x"]]:
    """The data term of a regularising solver at its iterate, and the gradient."""
    if isinstance(solver, VariationalDescent):
        return state.fidelity, state.gradient
    if isinstance(solver, BlockInversion):
        network = as_network(problem.forward, "BlockInversion")
        return state.fidelity, input_gradient(network, x, state.hidden, state.data)
    forward = as_perceptron(problem.forward, type(solver).__name__)
    slope = forward.activation(state.affine) - state.data
    return forward.activation.gap(state.data, state.affine), forward.adjoint(slope)
