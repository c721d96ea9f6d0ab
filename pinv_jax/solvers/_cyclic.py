"""Several surjections of one unknown: back-projection onto one after the other, then joint Gauss-Newton."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray, Scalar

from .._problem import Problem
from .._solution import RESULTS, result_where
from ..maps import AbstractSurjection, Joint, Natural, unstore
from ._base import AbstractSolver, AbstractState, Evaluations, Point, Record, Stop
from ._check import concrete
from ._descent import counted, evaluate, make_trial, select, when, with_gradient
from ._gauss_newton import NewtonDescent
from ._nlbp import as_surjection, back_project
from ._normal import SVD, AbstractNormalSolver
from ._search import AbstractSearch, Armijo


def cyclic_nlbp(
    f: Joint,
    x: Float[Array, "*x"],
    data: Float[Array, " m"],
    num_cycles: int = 1,
    step_size: float | int | Scalar = 1.0,
) -> Float[Array, "*x"]:
    """Back-projects `x` onto the fibres of the surjections in `f`, one after the other, `num_cycles` times.

    The last one is met exactly (at step size one). Whether the others are met in the limit depends on the maps: the
    back-projections are orthogonal each in its own metric, not in a common one, and may cycle or diverge. Use
    `CyclicProjection` unless a fixed cost matters more than the data.

    Args:
        f: the `maps.Joint` of surjections.
        x: one point.
        data: `f.join` of the single observations.
        num_cycles: sweeps over all surjections.
        step_size: of every back-projection.

    Returns:
        The last point, shaped like `x`.

    Raises:
        ValueError: `f` is no `Joint` of surjections.
    """
    surjections, parts = _surjections(f, "cyclic_nlbp"), f.separate(data)
    with jax.default_matmul_precision("highest"):
        picked = _sections(surjections, parts)
        return jax.lax.fori_loop(0, num_cycles, lambda _, x: _sweep(surjections, x, parts, picked, step_size), x)


class CyclicState(AbstractState):
    """The state of `CyclicProjection`.

    Attributes:
        record: what `solve` reports; `record.num_fallbacks` counts the Gauss-Newton steps.
        point: the problem at the iterate; its gradient is current while Gauss-Newton is at work.
        direction: of the next Gauss-Newton trial.
        sections: the sections of the data.
        best: the best iterate and the problem there.
        sweeping: whether the next step is a sweep.
        kick: whether that sweep is accepted wherever it leads.
        gave_up: whether every means is spent.
        num_sweeps, num_kicks: made so far.
        step_size: of the next Gauss-Newton trial.
        num_trials: rejected trials at this iterate.
        promise: the decrease that the first of them promised.
    """

    record: Record
    point: Point
    direction: Float[Array, "*x"]
    sections: Any
    best: tuple[Float[Array, "*x"], Point]
    sweeping: Bool[Array, ""]
    kick: Bool[Array, ""]
    gave_up: Bool[Array, ""]
    num_sweeps: Int[Array, ""]
    num_kicks: Int[Array, ""]
    step_size: Scalar
    num_trials: Int[Array, ""]
    promise: Scalar


class CyclicProjection(AbstractSolver[CyclicState]):
    """Meets several non-linear constraints at once: cyclic back-projection while it pays, then joint Gauss-Newton.

    One step is a sweep of `nlbp` over all surjections, as long as sweeps shrink the joint residual by the factor
    `progress`. Then Gauss-Newton steps of least norm on the joint residual take over. Where their line search fails, a
    sweep is made wherever it leads, and Gauss-Newton starts again from there: where the Jacobians are badly
    conditioned this rescues most of the solves that either method loses alone.

    `stats.num_fallbacks` counts Gauss-Newton steps, `stats.residual_rms` is the residual that remains. Data that
    contradict each other end as `stationary`, at the best point found. A sweep counts as one evaluation of `f` (a
    `split` of every surjection) and one of `g` (a `merge` of every one), sections apart; then `f` is evaluated for the
    joint residual.

    Args:
        num_cycles: sweeps at most, kicks apart; zero leaves all to Gauss-Newton.
        progress: see above; between 0 and 1.
        num_kicks: how often Gauss-Newton starts again.
        step_size: of every back-projection.
        linear_solver: of Gauss-Newton; `SVD()` by default, `ConjugateGradients()` for large problems.
        atol, discrepancy, rtol: see `Stop`; of the joint residual.
        search: the line search of Gauss-Newton.

    Raises:
        ValueError: `progress` is not between 0 and 1.
    """

    num_cycles: int = eqx.field(static=True)
    num_kicks: int = eqx.field(static=True)
    progress: Any
    step_size: Any
    descent: NewtonDescent
    search: AbstractSearch
    stop: Stop

    def __init__(
        self,
        num_cycles: int = 20,
        *,
        progress: Any = 0.5,
        num_kicks: int = 10,
        step_size: Any = 1.0,
        linear_solver: AbstractNormalSolver | None = None,
        atol: Any = 1e-6,
        discrepancy: Any = None,
        rtol: Any = None,
        search: AbstractSearch | None = None,
    ):
        if concrete(progress) and not 0 < progress < 1:
            raise ValueError(f"progress={progress}; expected the factor by which a sweep must shrink the residual.")
        self.num_cycles, self.progress, self.num_kicks, self.step_size = num_cycles, progress, num_kicks, step_size
        self.descent = NewtonDescent(SVD() if linear_solver is None else linear_solver, 0.0, 1.0, active_set=True)
        self.search = Armijo() if search is None else search
        self.stop = Stop(atol, discrepancy, rtol)

    def check(self, problem: Problem, x: Float[Array, "*x"]) -> None:
        """See `AbstractSolver`."""
        _surjections(unstore(problem.forward), "CyclicProjection")
        if problem.prior is not None:
            raise ValueError("CyclicProjection knows no prior: drop it, or use `LevenbergMarquardt`.")

    def init(
        self, problem: Problem, x: Float[Array, "*x"], *, key: PRNGKeyArray | None = None
    ) -> tuple[Float[Array, "*x"], CyclicState]:
        """See `AbstractSolver`."""
        del key
        f = unstore(problem.forward)
        point, _ = evaluate(problem, x)
        zero, no = jnp.zeros((), jnp.int32), jnp.asarray(False)
        record = Record(
            num_steps=zero,
            num_rejected=zero,
            num_fallbacks=zero,
            evaluations=counted(Evaluations(f=1)),
            residual_rms=problem.residual_rms(point.residual),
            objective=point.objective,
            step_size=jnp.asarray(jnp.nan, x.dtype),
            rjcp=jnp.asarray(jnp.nan, x.dtype),
        )
        state = CyclicState(
            record=record,
            point=point,
            direction=jnp.zeros_like(x),
            sections=_sections(f.maps, f.separate(problem.data)),
            best=(x, point),
            sweeping=jnp.asarray(self.num_cycles > 0),
            kick=no,
            gave_up=no,
            num_sweeps=zero,
            num_kicks=zero,
            step_size=jnp.asarray(self.search.first_step_size, x.dtype),
            num_trials=zero,
            promise=jnp.asarray(jnp.inf, x.dtype),
        )
        return x, state if self.num_cycles > 0 else self._aim(problem, x, state, ~no)

    def _aim(self, problem: Problem, x: Float[Array, "*x"], state: CyclicState, wanted: Bool[Array, ""]) -> CyclicState:
        """Computes the Gauss-Newton direction where it is wanted and the data are not met."""

        def advance() -> tuple[Array, Array, Evaluations]:
            point, gradient = evaluate(problem, x)
            here = with_gradient(point, gradient())
            direction, work = self.descent.init(problem, x, here)
            return here.gradient, direction, counted(Evaluations(f=1, vjp=1) + work)

        wanted = wanted & ~self.stop.met(problem, state.point.residual)
        gradient, direction, work = when(
            wanted, advance, (state.point.gradient, state.direction, counted(Evaluations()))
        )
        record = dataclasses.replace(state.record, evaluations=state.record.evaluations + work)
        point = with_gradient(state.point, gradient)
        return dataclasses.replace(state, record=record, point=point, direction=direction)

    def step(
        self, problem: Problem, x: Float[Array, "*x"], state: CyclicState
    ) -> tuple[Float[Array, "*x"], CyclicState]:
        """See `AbstractSolver`."""
        f, old, record, sweeping = unstore(problem.forward), state.point, state.record, state.sweeping

        def sweep() -> Float[Array, "*x"]:
            return _sweep(f.maps, x, f.separate(problem.data), state.sections, self.step_size)

        displacement = state.step_size * state.direction
        x_try = problem.feasible(when(sweeping, sweep, x + displacement))
        point, _ = evaluate(problem, x_try)
        finite = jnp.isfinite(point.objective)
        trial = make_trial(old, point, x, x_try, displacement, jnp.zeros_like(old.objective), state.step_size)
        descends, step_size = self.search.judge(trial)
        pays = state.kick | (point.objective <= self.progress**2 * old.objective)
        accept = finite & jnp.where(sweeping, pays, descends)

        promise = jnp.where(state.num_trials == 0, -trial.slope, state.promise)
        num_trials = jnp.where(accept | sweeping, 0, state.num_trials + 1)
        stationary = jnp.abs(promise) <= self.stop.promise(x.dtype) * old.objective
        stuck = ~sweeping & (stationary | (num_trials >= self.search.max_trials))
        kick = stuck & (state.num_kicks < self.num_kicks)
        gave_up = (stuck & ~kick) | (sweeping & state.kick & ~finite)
        num_sweeps = state.num_sweeps + (sweeping & ~state.kick)
        again = sweeping & accept & ~state.kick & (num_sweeps < self.num_cycles)

        here = select(accept, (x_try, point), (x, old))
        best = select(here[1].objective < state.best[1].objective, here, state.best)
        x, point = select(gave_up, best, here)
        record = dataclasses.replace(
            record,
            num_steps=record.num_steps + accept,
            num_rejected=record.num_rejected + ~accept,
            num_fallbacks=record.num_fallbacks + (accept & ~sweeping),
            evaluations=record.evaluations
            + Evaluations(f=1 + sweeping.astype(jnp.int32), g=sweeping.astype(jnp.int32)),
            residual_rms=problem.residual_rms(point.residual),
            objective=point.objective,
            step_size=jnp.where(accept, jnp.where(sweeping, self.step_size, state.step_size), record.step_size),
        )
        after = CyclicState(
            record=record,
            point=point,
            direction=state.direction,
            sections=state.sections,
            best=best,
            sweeping=kick | again,
            kick=kick,
            gave_up=gave_up,
            num_sweeps=num_sweeps,
            num_kicks=state.num_kicks + kick,
            step_size=jnp.where(sweeping, self.search.first_step_size, step_size),
            num_trials=num_trials,
            promise=promise,
        )
        return x, self._aim(problem, x, after, (accept | sweeping) & ~after.sweeping & ~gave_up)

    def terminate(self, problem: Problem, x: Float[Array, "*x"], state: CyclicState) -> tuple[Bool[Array, ""], RESULTS]:
        """See `AbstractSolver`."""
        met = self.stop.met(problem, state.point.residual)
        finite = jnp.isfinite(state.point.objective)
        result = result_where(finite, RESULTS.stationary, RESULTS.nonfinite_input)
        return met | ~finite | state.gave_up, result_where(met, RESULTS.successful, result)


def _surjections(f: Any, name: str) -> tuple[AbstractSurjection[Any], ...]:
    if not isinstance(f, Joint):
        raise ValueError(
            f"{name} expected a maps.Joint of surjections, got {type(f).__name__}: write "
            "`Problem(maps.Joint([f1, f2]), joint.join([data1, data2]))`. For one surjection use NLBP."
        )
    return tuple(as_surjection(part, name) for part in f.maps)


def _sections(surjections: Sequence[Any], parts: Sequence[Array]) -> tuple[Any, ...]:
    """The section of each observation, `None` where it is constant and so cancels."""
    return tuple(None if isinstance(f, Natural) else f.section(y) for f, y in zip(surjections, parts, strict=True))


def _sweep(surjections: Any, x: Array, parts: Sequence[Array], sections: Sequence[Any], step_size: Any) -> Array:
    for f, data, section in zip(surjections, parts, sections, strict=True):
        y, z = f.split(x)
        x = back_project(f, y, z, data, step_size, section)
    return x
