"""D-IPG while its learned inverse is trusted, otherwise a matrix-free Levenberg-Marquardt step."""

from typing import Any, ClassVar, Literal

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray, Scalar

from .._problem import Problem
from .._solution import RESULTS
from ..maps import store
from ._base import AbstractSolver, AbstractState, Evaluations, Point, Record, Stop
from ._check import check_inverse
from ._descent import counted, evaluate, judge_end, make_trial, select, when, with_gradient, zeros_like
from ._dipg import LearnedDescent, jump
from ._levenberg_marquardt import DampedDescent
from ._normal import AbstractNormalSolver, ConjugateGradients
from ._search import Armijo, Damping
from ._trust import Trust


class SafeguardedState(AbstractState):
    """The state of `Safeguarded`.

    Attributes:
        record: what `solve` reports; `record.num_fallbacks` counts the accepted steps of the fallback.
        point: the problem at the iterate.
        learned_memo, damped_memo: the memories of the two descents.
        learned: whether the next trial is the learned one.
        step_size: the inverse damping of the fallback.
        num_trials: rejected trials of the fallback since the last accepted step.
        promise: the decrease that the first trial of the fallback at this iterate promises.
    """

    record: Record
    point: Point
    learned_memo: Any
    damped_memo: Any
    learned: Bool[Array, ""]
    step_size: Scalar
    num_trials: Int[Array, ""]
    promise: Scalar


class Safeguarded(AbstractSolver[SafeguardedState]):
    """The learned step where it can be trusted, a matrix-free Levenberg-Marquardt step where it cannot.

    At every iterate the learned step is tried once at full length, unless `trust` rejects the inverse there; if it
    fails the Armijo test of the true displacement, the fallback takes over until one of its steps is accepted.
    `stats.num_fallbacks` says how many steps came from it. A poor inverse therefore costs time, never the answer.

    In a batch under `jax.vmap` the fallback is evaluated only in turns where some lane needs it, and lanes on the
    learned step add no iterations to it.

    Args:
        inverse: `g: y -> x` on one example.
        proposal: `"defect"` or `"jvp"`; see `DIPG`.
        trust: optional `Trust`. Armijo alone catches a step that does not descend; the excess composition defect also
            catches one that descends too little to be worth its price.
        linear_solver: of the fallback; `ConjugateGradients()` by default.
        least_progress: after a learned step that lowers the objective by less than this fraction of it, the fallback
            takes the next one: a poor inverse can descend for ever without arriving.
        atol, discrepancy, rtol: see `Stop`.

    References:
        A. L. Kachhadiya, Local Inverse Geometry Can Be Amortized, 2026, arXiv:2605.13068, which proposes such a
        fallback as future work.
    """

    learned: LearnedDescent
    damped: DampedDescent
    armijo: Armijo
    damping: Damping
    stop: Stop
    trust: Trust | None
    least_progress: Any
    minimises_objective: ClassVar[bool] = True

    def __init__(
        self,
        inverse: Any,
        *,
        proposal: Literal["defect", "jvp"] = "defect",
        trust: Trust | None = None,
        linear_solver: AbstractNormalSolver | None = None,
        least_progress: Any = 0.1,
        atol: Any = 1e-6,
        discrepancy: Any = None,
        rtol: Any = None,
    ):
        if proposal not in ("defect", "jvp"):
            raise ValueError(f"proposal={proposal!r}; expected 'defect' or 'jvp'. The 'paper' form belongs to DIPG.")
        self.learned = LearnedDescent(store(inverse), proposal, 1.0)
        self.damped = DampedDescent(ConjugateGradients() if linear_solver is None else linear_solver)
        self.armijo = Armijo()
        self.damping = Damping()
        self.stop = Stop(atol, discrepancy, rtol)
        self.trust = trust
        self.least_progress = least_progress

    def check(self, problem: Problem, x: Float[Array, "*x"]) -> None:
        """See `AbstractSolver`."""
        check_inverse(self.learned.inverse, problem.data, x)

    def _trusted(self, problem: Problem, x: Float[Array, "*x"]) -> tuple[Bool[Array, ""], Scalar, Evaluations]:
        if self.trust is None:
            return jnp.asarray(True), jnp.asarray(jnp.nan, x.dtype), counted(Evaluations())
        rjcp, work = self.trust(problem.forward, self.learned.inverse, x)
        return jnp.asarray(self.trust.holds(rjcp)), rjcp, counted(work)

    def init(
        self, problem: Problem, x: Float[Array, "*x"], *, key: PRNGKeyArray | None = None
    ) -> tuple[Float[Array, "*x"], SafeguardedState]:
        """See `AbstractSolver`."""
        del key
        x, work = jump(self.learned.inverse, problem, x)
        point, gradient = evaluate(problem, x)

        def advance():
            here = with_gradient(point, gradient())
            learned_memo, learned_work = self.learned.init(problem, x, here)
            damped_memo, damped_work = self.damped.init(problem, x, here)
            return here.gradient, learned_memo, damped_memo, counted(Evaluations(vjp=1) + learned_work + damped_work)

        goes_on = ~self.stop.met(problem, point.residual)
        grad, learned_memo, damped_memo, spent = when(goes_on, advance, zeros_like(advance))
        trusted, rjcp, trust_work = self._trusted(problem, x)
        zero = jnp.zeros((), jnp.int32)
        record = Record(
            num_steps=zero,
            num_rejected=zero,
            num_fallbacks=zero,
            evaluations=spent + Evaluations(f=1) + work + trust_work,
            residual_rms=problem.residual_rms(point.residual),
            objective=point.objective,
            step_size=jnp.asarray(jnp.nan, x.dtype),
            rjcp=rjcp,
        )
        return x, SafeguardedState(
            record=record,
            point=with_gradient(point, grad),
            learned_memo=learned_memo,
            damped_memo=damped_memo,
            learned=trusted,
            step_size=jnp.asarray(self.damping.first_step_size, x.dtype),
            num_trials=zero,
            promise=jnp.asarray(jnp.inf, x.dtype),
        )

    def step(
        self, problem: Problem, x: Float[Array, "*x"], state: SafeguardedState
    ) -> tuple[Float[Array, "*x"], SafeguardedState]:
        """See `AbstractSolver`."""
        old, learned = state.point, state.learned
        one = jnp.ones_like(state.step_size)
        # Zero for lanes on the learned step: their conjugate gradients end before the first iteration.
        masked = with_gradient(old, jnp.where(learned, 0.0, old.gradient))

        def by_inverse():
            displacement, work = self.learned.displacement(problem, x, old, state.learned_memo, one)
            return displacement, one, counted(work)

        def by_fallback():
            displacement, work = self.damped.displacement(problem, x, masked, state.damped_memo, state.step_size)
            moved = problem.feasible(x + displacement) - x
            model, model_work = self.damped.predicted(problem, x, old, state.damped_memo, moved)
            return displacement, model, counted(work + model_work)

        displacement, model, work = when(~learned, by_fallback, by_inverse())
        x_try = problem.feasible(x + displacement)
        point, gradient = evaluate(problem, x_try)
        trial = make_trial(old, point, x, x_try, displacement, model, jnp.where(learned, one, state.step_size))
        accept_learned, _ = self.armijo.judge(trial)
        accept_damped, step_size = self.damping.judge(trial)
        accept = jnp.where(learned, accept_learned, accept_damped) & jnp.isfinite(point.objective)
        goes_on = accept & ~self.stop.met(problem, point.residual)

        def advance():
            here = with_gradient(point, gradient())
            learned_memo, learned_work = self.learned.update(problem, x_try, here, state.learned_memo)
            damped_memo, damped_work = self.damped.update(problem, x_try, here, state.damped_memo)
            return here.gradient, learned_memo, damped_memo, counted(Evaluations(vjp=1) + learned_work + damped_work)

        nothing = counted(Evaluations())
        kept = (old.gradient, state.learned_memo, state.damped_memo, nothing)
        grad, learned_memo, damped_memo, spent = when(goes_on, advance, kept)
        # After a rejection the fallback stays in charge until one of its steps is accepted.
        doubted = (jnp.asarray(False), state.record.rjcp, nothing)
        trusted, rjcp, trust_work = when(accept, lambda: self._trusted(problem, x_try), doubted)
        here = with_gradient(select(accept, point, old), grad)
        progressed = ~learned | (point.objective <= (1 - self.least_progress) * old.objective)
        record = state.record
        fallback_rejected = ~accept & ~learned
        first = state.num_trials == 0  # of the fallback: a learned step that promises little only hands over to it
        return jnp.where(accept, x_try, x), SafeguardedState(
            record=Record(
                num_steps=record.num_steps + accept,
                num_rejected=record.num_rejected + ~accept,
                num_fallbacks=record.num_fallbacks + (accept & ~learned),
                evaluations=record.evaluations + Evaluations(f=1) + work + spent + trust_work,
                residual_rms=problem.residual_rms(here.residual),
                objective=here.objective,
                step_size=jnp.where(accept, trial.step_size, record.step_size),
                rjcp=rjcp,
            ),
            point=here,
            learned_memo=learned_memo,
            damped_memo=damped_memo,
            learned=trusted & progressed,
            step_size=jnp.where(learned, state.step_size, step_size),
            num_trials=jnp.where(accept, 0, state.num_trials + fallback_rejected),
            promise=jnp.where(learned, jnp.inf, jnp.where(first, -trial.slope, state.promise)),
        )

    def terminate(
        self, problem: Problem, x: Float[Array, "*x"], state: SafeguardedState
    ) -> tuple[Bool[Array, ""], RESULTS]:
        """See `AbstractSolver`."""
        exhausted = state.num_trials >= self.damping.max_trials
        return judge_end(self.stop, problem, state.point, state.promise, exhausted)
