"""A descent, the curve that leaves the iterate, and the solver that searches along it."""

import abc
from collections.abc import Callable
from typing import Any, ClassVar, Generic, TypeVar

import equinox as eqx
import equinox.internal as eqxi
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray, PyTree, Scalar

from .._problem import Problem
from .._solution import RESULTS, result_where
from ._base import AbstractSolver, AbstractState, Evaluations, Point, Record, Stop
from ._search import AbstractSearch, Trial

Memo = TypeVar("Memo", bound=PyTree)


class AbstractDescent(eqx.Module, Generic[Memo]):
    """A curve `step_size -> displacement` that leaves the iterate.

    The curve is not a closure, because one trial is made per turn of the loop and closures cannot cross a turn: what
    is worth computing once per iterate is kept in `memo`, a pytree of arrays.

    Implementing a descent:

    - `init(problem, x, point) -> (memo, evaluations)`, at the start;
    - `update(problem, x, point, memo) -> (memo, evaluations)`, at every further accepted iterate; by default `init`;
    - `displacement(problem, x, point, memo, step_size) -> (displacement, evaluations)`, zero at step size zero;
    - `predicted(problem, x, point, memo, moved) -> (decrease, evaluations)`, only for searches that compare with a
      model: the decrease predicted for a displacement after projection.
    """

    @abc.abstractmethod
    def init(self, problem: Problem, x: Float[Array, "*x"], point: Point) -> tuple[Memo, Evaluations]:
        """What is worth computing once, at the start."""

    def update(self, problem: Problem, x: Float[Array, "*x"], point: Point, memo: Memo) -> tuple[Memo, Evaluations]:
        """What is worth computing once per accepted iterate."""
        return self.init(problem, x, point)

    @abc.abstractmethod
    def displacement(
        self, problem: Problem, x: Float[Array, "*x"], point: Point, memo: Memo, step_size: Scalar
    ) -> tuple[Float[Array, "*x"], Evaluations]:
        """The displacement from the iterate, before projection."""

    def predicted(
        self, problem: Problem, x: Float[Array, "*x"], point: Point, memo: Memo, moved: Float[Array, "*x"]
    ) -> tuple[Scalar, Evaluations]:
        """The predicted decrease of the objective; to first order by default."""
        return -jnp.sum(point.gradient * moved), Evaluations()


class DescentState(AbstractState, Generic[Memo]):
    """The state of a descent with a search.

    Attributes:
        record: what `solve` reports.
        point: the problem at the iterate; its gradient is zero once the iterate meets the tolerance.
        memo: the memory of the descent.
        step_size: the step size to try next.
        num_trials: rejections since the last accepted step.
        promise: the decrease that the first trial at this iterate promises, to first order.
    """

    record: Record
    point: Point
    memo: Memo
    step_size: Scalar
    num_trials: Int[Array, ""]
    promise: Scalar


def counted(evaluations: Evaluations) -> Evaluations:
    """The same counts as arrays, so that they can cross `lax.cond`."""
    return jax.tree.map(lambda n: jnp.asarray(n, jnp.int32), evaluations)


def evaluate(problem: Problem, x: Float[Array, "*x"]) -> tuple[Point, Any]:
    """The problem at `x`, without its gradient, and the function that returns it: one `f`, and one VJP if called."""
    prediction, pullback = jax.vjp(problem.forward, x)
    objective = problem.merit(x, prediction)

    def gradient() -> Float[Array, "*x"]:
        direct, through = jax.grad(problem.merit, argnums=(0, 1))(x, prediction)
        return direct + pullback(through)[0]

    return Point(prediction, prediction - problem.data, objective, jnp.zeros_like(x)), gradient


def with_gradient(point: Point, gradient: Float[Array, "*x"]) -> Point:
    """`point` with its gradient filled in."""
    return Point(point.prediction, point.residual, point.objective, gradient)


def when(pred: Bool[Array, ""], fn: Callable[[], PyTree], otherwise: PyTree) -> PyTree:
    """`fn()` where `pred`, else `otherwise`; evaluated only if some lane of the batch needs it.

    A plain `lax.cond` becomes a `select` under `vmap`, and copies whatever it closes over, parameters of the forward
    map included, once for every lane.
    """
    new = jax.lax.cond(eqxi.unvmap_any(pred), fn, lambda: otherwise)
    return select(pred, new, otherwise)


def zeros_like(fn: Callable[[], PyTree]) -> PyTree:
    """Zeros of the structure of `fn()`."""
    return jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), jax.eval_shape(fn))


def free_variables(problem: Problem, x: Float[Array, "*x"], gradient: Float[Array, "*x"]) -> Bool[Array, "*x"] | None:
    """The variables that the feasible set does not hold against the gradient; `None` without a projection.

    A variable that stays put when `x - gradient` is projected lies at a bound through which descent leaves the set.
    Second-order steps must leave it out: clipping a step that was computed for all variables need not descend.

    References:
        D. P. Bertsekas, Projected Newton methods for optimization problems with simple constraints, 1982,
        doi:10.1137/0320018.
    """
    if problem.project is None:
        return None
    return (problem.feasible(x - gradient) != x) | (gradient == 0)


def select(pred: Bool[Array, ""], new: PyTree, old: PyTree) -> PyTree:
    """`new` where `pred`, else `old`, leaf by leaf."""
    return jax.tree.map(lambda a, b: jnp.where(pred, a, b), new, old)


def make_trial(
    old: Point,
    new: Point,
    x: Float[Array, "*x"],
    x_try: Float[Array, "*x"],
    displacement: Float[Array, "*x"],
    predicted: Scalar,
    step_size: Scalar,
) -> Trial:
    """What a search wants to know of a trial."""
    return Trial(
        objective=new.objective,
        objective_before=old.objective,
        slope=jnp.sum(old.gradient * (x_try - x)),
        slope_unprojected=jnp.sum(old.gradient * displacement),
        predicted=predicted,
        step_size=step_size,
    )


def judge_end(
    stop: Stop, problem: Problem, point: Point, promise: Scalar, exhausted: Bool[Array, ""]
) -> tuple[Bool[Array, ""], RESULTS]:
    """Whether to stop, and why.

    Args:
        stop: the tolerances.
        problem: the problem.
        point: the iterate.
        promise: the decrease of the objective that a first trial promised, to first order.
        exhausted: whether every trial at this iterate has failed.
    """
    met = stop.met(problem, point.residual)
    finite = jnp.isfinite(point.objective)
    eps = jnp.finfo(point.objective.dtype).eps
    # A promise too small to measure means stationarity; so does, once all trials have failed, one below the square root
    # of the rounding unit, where the curvature of the objective along the trial drowns it.
    least = jnp.where(exhausted, jnp.maximum(jnp.sqrt(eps), stop.promise(eps.dtype)), stop.promise(eps.dtype))
    stationary = jnp.abs(promise) <= least * point.objective
    result = result_where(stationary, RESULTS.stationary, RESULTS.line_search_failed)
    result = result_where(finite, result, RESULTS.nonfinite_input)
    return met | ~finite | stationary | exhausted, result_where(met, RESULTS.successful, result)


class AbstractDescentSolver(AbstractSolver[DescentState]):
    """A solver made of a descent and a search; a named solver is these two and its defaults.

    Implementing one: the fields `descent`, `search` and `stop`. `start` may be overridden to begin elsewhere than at
    the given `x`.
    """

    descent: eqx.AbstractVar[AbstractDescent]
    search: eqx.AbstractVar[AbstractSearch]
    stop: eqx.AbstractVar[Stop]
    minimises_objective: ClassVar[bool] = True

    def start(self, problem: Problem, x: Float[Array, "*x"]) -> tuple[Float[Array, "*x"], Evaluations]:
        """Where to begin."""
        return x, Evaluations()

    def rjcp(self, problem: Problem, x: Float[Array, "*x"]) -> tuple[Scalar, Evaluations]:
        """The composition defect to record at an accepted iterate, if this solver computes one."""
        return jnp.asarray(jnp.nan, x.dtype), Evaluations()

    def init(
        self, problem: Problem, x: Float[Array, "*x"], *, key: PRNGKeyArray | None = None
    ) -> tuple[Float[Array, "*x"], DescentState]:
        """See `AbstractSolver`."""
        del key
        x, work = self.start(problem, x)
        point, gradient = evaluate(problem, x)

        def advance():
            here = with_gradient(point, gradient())
            memo, memo_work = self.descent.init(problem, x, here)
            return here.gradient, memo, counted(Evaluations(vjp=1) + memo_work)

        goes_on = ~self.stop.met(problem, point.residual)
        grad, memo, advance_work = when(goes_on, advance, zeros_like(advance))
        point = with_gradient(point, grad)
        rjcp, rjcp_work = self.rjcp(problem, x)
        zero = jnp.zeros((), jnp.int32)
        record = Record(
            num_steps=zero,
            num_rejected=zero,
            num_fallbacks=zero,
            evaluations=advance_work + Evaluations(f=1) + work + rjcp_work,
            residual_rms=problem.residual_rms(point.residual),
            objective=point.objective,
            step_size=jnp.asarray(jnp.nan, x.dtype),
            rjcp=rjcp,
        )
        step_size = jnp.asarray(self.search.first_step_size, x.dtype)
        return x, DescentState(record, point, memo, step_size, zero, jnp.asarray(jnp.inf, x.dtype))

    def step(
        self, problem: Problem, x: Float[Array, "*x"], state: DescentState
    ) -> tuple[Float[Array, "*x"], DescentState]:
        """See `AbstractSolver`."""
        old = state.point
        displacement, work = self.descent.displacement(problem, x, old, state.memo, state.step_size)
        x_try = problem.feasible(x + displacement)
        point, gradient = evaluate(problem, x_try)
        model, model_work = self.descent.predicted(problem, x, old, state.memo, x_try - x)
        trial = make_trial(old, point, x, x_try, displacement, model, state.step_size)
        accept, step_size = self.search.judge(trial)
        accept = accept & jnp.isfinite(point.objective)
        # The gradient and the descent's memory are needed only where another step will follow.
        goes_on = accept & ~self.stop.met(problem, point.residual)

        def advance():
            here = with_gradient(point, gradient())
            memo, memo_work = self.descent.update(problem, x_try, here, state.memo)
            return here.gradient, memo, counted(Evaluations(vjp=1) + memo_work)

        def measure():
            rjcp, rjcp_work = self.rjcp(problem, x_try)
            return rjcp, counted(rjcp_work)

        nothing = counted(Evaluations())
        grad, memo, advance_work = when(goes_on, advance, (old.gradient, state.memo, nothing))
        rjcp, rjcp_work = when(accept, measure, (state.record.rjcp, nothing))
        here = with_gradient(select(accept, point, old), grad)
        record = state.record
        record = Record(
            num_steps=record.num_steps + accept,
            num_rejected=record.num_rejected + ~accept,
            num_fallbacks=record.num_fallbacks,
            evaluations=record.evaluations + Evaluations(f=1) + work + model_work + advance_work + rjcp_work,
            residual_rms=problem.residual_rms(here.residual),
            objective=here.objective,
            step_size=jnp.where(accept, state.step_size, record.step_size),
            rjcp=rjcp,
        )
        return jnp.where(accept, x_try, x), DescentState(
            record=record,
            point=here,
            memo=memo,
            step_size=step_size,
            num_trials=jnp.where(accept, 0, state.num_trials + 1),
            promise=jnp.where(state.num_trials == 0, -trial.slope, state.promise),
        )

    def terminate(
        self, problem: Problem, x: Float[Array, "*x"], state: DescentState
    ) -> tuple[Bool[Array, ""], RESULTS]:
        """See `AbstractSolver`."""
        exhausted = state.num_trials >= self.search.max_trials
        return judge_end(self.stop, problem, state.point, state.promise, exhausted)
