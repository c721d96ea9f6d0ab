"""What the inversion methods for more than one layer share: state, record, checks and stopping."""

from typing import Any, TypeVar

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Scalar

from .._problem import Problem
from .._solution import RESULTS, result_where
from ..maps import unstore
from ..solvers import AbstractSolver, AbstractState, Evaluations, Record, Stop
from ..solvers import Box as BoxProjection
from ._functionals import AbstractRegulariser


class InversionState(AbstractState):
    """What is known after a step.

    Attributes:
        record: what `solve` reports; its objective is the energy of the method.
        residual: `forward(x) - data`, of the network itself and of the data as they were given.
        fidelity: the energy without the regulariser.
        defect: how far from stationary, relative to the terms that cancel in it; infinite at the start.
    """

    record: Record
    residual: Float[Array, "*y"]
    fidelity: Scalar
    defect: Scalar


State = TypeVar("State", bound=InversionState)


class AbstractInversion(AbstractSolver[State]):
    """A method for `data term + alpha J(x)` that keeps an `InversionState`.

    Implementing one: the fields below, `init` and `step`, with `first_record` and `next_record`.
    """

    alpha: eqx.AbstractVar[Any]
    regulariser: eqx.AbstractVar[AbstractRegulariser]
    stop: eqx.AbstractVar[Stop]

    def check(self, problem: Problem, x: Float[Array, "*x"]) -> None:
        """See `AbstractSolver`."""
        check_regularisation(type(self).__name__, problem, self.regulariser, x)

    def prox(self, problem: Problem, v: Float[Array, "*x"], step: Any) -> Float[Array, "*x"]:
        """The prox of `step J0`, and of the constraint of the problem."""
        return problem.feasible(self.regulariser.simple_prox(v, step))

    def admissible(self, problem: Problem, x: Float[Array, "*x"]) -> Float[Array, "*x"]:
        """A start moved into the domain of `J`."""
        return x if self.regulariser.kind == "other" else self.prox(problem, x, 0.0)

    def terminate(self, problem: Problem, x: Float[Array, "*x"], state: State) -> tuple[Bool[Array, ""], RESULTS]:
        """See `AbstractSolver`."""
        stationary = state.defect <= self.stop.rtol
        met = stationary
        if self.stop.discrepancy is not None:
            met = problem.discrepancy(state.residual) <= self.stop.discrepancy
        broken = ~jnp.isfinite(state.record.residual_rms) | ~(jnp.asarray(self.alpha) >= 0)
        result = result_where(stationary, RESULTS.stationary, RESULTS.nonlinear_divergence)
        result = result_where(met & ~broken, RESULTS.successful, result)
        return met | stationary | broken, result


def first_record(problem: Problem, residual: Float[Array, "*y"], energy: Scalar, work: Evaluations) -> Record:
    """The record of a start."""
    zero, nan = jnp.zeros((), jnp.int32), jnp.asarray(jnp.nan, residual.dtype)
    none = Evaluations(f=zero, g=zero, jvp=zero, vjp=zero)
    return Record(
        num_steps=zero,
        num_rejected=zero,
        num_fallbacks=zero,
        evaluations=none + work,
        residual_rms=problem.residual_rms(residual),
        objective=energy.astype(residual.dtype),
        step_size=nan,
        rjcp=nan,
    )


def next_record(
    record: Record, problem: Problem, residual: Float[Array, "*y"], energy: Scalar, step_size: Any, work: Evaluations
) -> Record:
    """The record after one more accepted step."""
    return Record(
        num_steps=record.num_steps + 1,
        num_rejected=record.num_rejected,
        num_fallbacks=record.num_fallbacks,
        evaluations=record.evaluations + work,
        residual_rms=problem.residual_rms(residual),
        objective=energy.astype(residual.dtype),
        step_size=jnp.asarray(step_size, residual.dtype),
        rjcp=record.rjcp,
    )


def check_regularisation(name: str, problem: Problem, regulariser: AbstractRegulariser, x: Float[Array, "*x"]) -> None:
    """Raises a `ValueError` where a prior or a projection does not go with the regulariser."""
    if problem.prior is not None:
        raise ValueError(f"{name} knows no prior: write it as the regulariser, `{name}(alpha, HalfSquaredNorm())`.")
    regulariser.check(x)
    project = unstore(problem.project)
    fits = {"none": True, "quadratic": True, "entrywise": isinstance(project, BoxProjection), "other": False}
    if project is not None and not fits[regulariser.kind]:
        raise ValueError(
            f"{type(regulariser).__name__} and project={project!r} have no joint prox; expected "
            "`solvers.Box(lower, upper)` beside an L1 or Box, and no projection beside a Proximal: put it into "
            "that prox."
        )
