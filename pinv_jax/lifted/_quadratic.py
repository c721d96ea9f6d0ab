"""`|N(x) - data|^2/2 + alpha J(x)` by gradients of the network: `VariationalDescent`, the classical comparison."""

import dataclasses
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray, Scalar

from .._problem import Problem
from .._solution import RESULTS, result_where
from ..solvers import Evaluations, Stop
from ._functionals import AbstractRegulariser
from ._inversion import AbstractInversion, InversionState, first_record, next_record
from ._primal_dual import check_alpha, check_regulariser, norm, ratio

GROW = 2.0
"""Factor of the curvature where it was found too small."""
RELAX = 0.9
"""Factor of the curvature after an accepted step, so that one bad place does not slow all that follow."""
MAX_TRIALS = 40


class VariationalState(InversionState):
    """As `InversionState`; besides, what the next trial needs.

    Attributes:
        gradient: of `|N(x) - data|^2/2` at the iterate.
        regulariser_dual: shaped like `A x`.
        curvature: along the next step, as is believed.
        num_trials: rejected in a row.
    """

    gradient: Float[Array, "*x"]
    regulariser_dual: Float[Array, "*z"]
    curvature: Scalar
    num_trials: Int[Array, ""]


class VariationalDescent(AbstractInversion[VariationalState]):
    """Tikhonov-like regularisation: minimises `|N(x) - data|^2/2 + alpha (G(A x) + J0(x))`, through back-propagation.

    With `g` the gradient of the first term, and `C` an estimate of its curvature, one step is

        x <- prox_{alpha J / C}(x - g / C).

    Where `J` has a part `G(A x)` the prox is found by a fixed number of accelerated steps on its dual, which start from
    the dual variable of the step before; they cost no evaluation of `N`. The energy never rises where the prox is
    exact, and hardly where it is not. A trial is rejected, and `C` doubled, where the first term exceeds its quadratic
    model. A linearised primal-dual method would do without inner steps, but its dual variable can go round in circles
    where the first term is concave, and does for the ReLU.

    The activations of `N` are differentiated, and the term is not convex even for one layer: this is what lifted
    inversion is to be compared with. Any differentiable `problem.forward` will do.

    It stops, successfully, once the residual of the step, relative to the terms that cancel in it, is at most `rtol`.
    With a `discrepancy` it has succeeded as soon as the residual `N(x) - data` is at the level of the noise, and a
    stationary point that is not is `stationary`. It stops as `line_search_failed` after 40 rejections in a row.

    Args:
        alpha: weight of the regulariser, positive.
        regulariser: `J`; total variation by default.
        num_inner: steps on the dual in each step.
        rtol, discrepancy: see above.

    Raises:
        ValueError: `alpha` not positive, or `num_inner` below 1.

    References:
        H. W. Engl, M. Hanke, A. Neubauer, Regularization of inverse problems, 1996, doi:10.1007/978-94-009-1740-8.
        A. Beck, M. Teboulle, Fast gradient-based algorithms for constrained total variation image denoising and
        deblurring problems, 2009, doi:10.1109/TIP.2009.2028250 (the dual steps).
    """

    alpha: Any
    regulariser: AbstractRegulariser
    num_inner: int = eqx.field(static=True)
    stop: Stop

    def __init__(
        self,
        alpha: Any,
        regulariser: Any = None,
        *,
        num_inner: int = 20,
        rtol: Any = 1e-4,
        discrepancy: Any = None,
    ):
        self.alpha = check_alpha(alpha)
        self.regulariser = check_regulariser(regulariser)
        if not isinstance(num_inner, int) or num_inner < 1:
            raise ValueError(f"num_inner={num_inner!r}; expected the number of steps on the dual, at least 1.")
        self.num_inner = num_inner
        self.stop = Stop(None, discrepancy, rtol)

    def init(
        self, problem: Problem, x: Float[Array, "*x"], *, key: PRNGKeyArray | None = None
    ) -> tuple[Float[Array, "*x"], VariationalState]:
        """See `AbstractSolver`."""
        del key
        x = self.admissible(problem, x)
        residual, gradient = _evaluate(problem, x)
        fidelity = 0.5 * jnp.sum(residual**2)
        work = Evaluations(f=1, vjp=1, jvp=1)
        record = first_record(problem, residual, fidelity + self.alpha * self.regulariser(x), work)
        # Along the gradient; too small in other directions, which the trials find out.
        tangent = jax.jvp(problem.forward, (x,), (gradient,))[1]
        curvature = ratio(jnp.sum(tangent**2), jnp.sum(gradient**2))
        return x, VariationalState(
            record=record,
            residual=residual,
            fidelity=fidelity,
            defect=jnp.asarray(jnp.inf, x.dtype),
            gradient=gradient,
            regulariser_dual=jnp.zeros_like(self.regulariser.analysis(x)),
            curvature=jnp.where(curvature > 0, curvature, 1).astype(x.dtype),
            num_trials=jnp.zeros((), jnp.int32),
        )

    def step(
        self, problem: Problem, x: Float[Array, "*x"], state: VariationalState
    ) -> tuple[Float[Array, "*x"], VariationalState]:
        """See `AbstractSolver`."""
        step = 1 / state.curvature
        u, dual = self._prox(problem, x - step * state.gradient, step * self.alpha, state.regulariser_dual)
        residual, gradient = _evaluate(problem, u)
        fidelity = 0.5 * jnp.sum(residual**2)

        moved = u - x
        model = state.fidelity + jnp.sum(state.gradient * moved) + 0.5 * state.curvature * jnp.sum(moved**2)
        slack = 10 * jnp.finfo(x.dtype).eps * state.fidelity
        accept = fidelity <= model + slack

        pull = norm(state.gradient) + self.alpha * norm(self.regulariser.adjoint(dual, x))
        defect = jnp.maximum(ratio(norm(moved) / step, pull), ratio(norm(dual - state.regulariser_dual), norm(dual)))
        work = Evaluations(f=1, vjp=1)
        new = VariationalState(
            record=next_record(
                state.record, problem, residual, fidelity + self.alpha * self.regulariser(u), step, work
            ),
            residual=residual,
            fidelity=fidelity,
            defect=defect.astype(x.dtype),
            gradient=gradient,
            regulariser_dual=dual,
            curvature=RELAX * state.curvature,
            num_trials=jnp.zeros((), jnp.int32),
        )
        rejected = dataclasses.replace(
            state.record, num_rejected=state.record.num_rejected + 1, evaluations=state.record.evaluations + work
        )
        old = dataclasses.replace(
            state, record=rejected, curvature=GROW * state.curvature, num_trials=state.num_trials + 1
        )
        return jax.tree.map(lambda a, b: jnp.where(accept, a, b), (u, new), (x, old))

    def _prox(self, problem: Problem, v: Array, weight: Any, dual: Array) -> tuple[Array, Array]:
        """`prox_{weight J}(v)`, and the dual variable it was found with."""
        regulariser = self.regulariser
        bound = regulariser.norm_bound(v)
        primal = lambda z: self.prox(problem, v - weight * regulariser.adjoint(z, v), weight)
        if bound == 0:
            return primal(dual), dual

        def turn(_: Any, carry: Any) -> Any:
            z, ahead, momentum = carry
            new = regulariser.dual_project(ahead + regulariser.analysis(primal(ahead)) / (weight * bound**2))
            momentum = jnp.where(jnp.sum((ahead - new) * (new - z)) > 0, 1, momentum)  # it points uphill
            after = (1 + jnp.sqrt(1 + 4 * momentum**2)) / 2
            return new, new + ((momentum - 1) / after) * (new - z), after

        start = (dual, dual, jnp.ones((), v.dtype))
        dual, _, _ = jax.lax.fori_loop(0, self.num_inner, turn, start)
        return primal(dual), dual

    def terminate(
        self, problem: Problem, x: Float[Array, "*x"], state: VariationalState
    ) -> tuple[Bool[Array, ""], RESULTS]:
        """See `AbstractSolver`."""
        done, result = super().terminate(problem, x, state)
        exhausted = ~done & (state.num_trials >= MAX_TRIALS)
        return done | exhausted, result_where(exhausted, RESULTS.line_search_failed, result)


def _evaluate(problem: Problem, x: Array) -> tuple[Array, Array]:
    """`N(x) - data`, and the gradient of half its squared norm."""
    prediction, pullback = jax.vjp(problem.forward, x)
    residual = prediction - problem.data
    return residual, pullback(residual)[0]
