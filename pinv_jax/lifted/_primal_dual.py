"""`min_u B(data, W u + b) + alpha J(u)` for one perceptron: what its primal-dual methods share."""

import abc
from typing import Any, TypeVar

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Scalar

from .._problem import Problem
from .._solution import RESULTS, result_where
from ..solvers import AbstractSolver, AbstractState, Evaluations, Record, Stop
from ..solvers._check import concrete
from ._functionals import AbstractRegulariser, TotalVariation
from ._inversion import check_regularisation
from ._perceptron import Perceptron, admit, as_perceptron


class PrimalDualState(AbstractState):
    """The state of a primal-dual solver.

    Attributes:
        record: what `solve` reports.
        data: the admissible data.
        norm: of `W`, an upper bound.
        affine: `W u + b` at the iterate.
        dual: `p`, shaped like the data.
        regulariser_dual: `z`, shaped like `A u`.
        defect: the relative primal-dual residual; infinite at the start.
        legal: whether the parameters are within their bounds.
    """

    record: Record
    data: Float[Array, "*y"]
    norm: Scalar
    affine: Float[Array, "*y"]
    dual: Float[Array, "*y"]
    regulariser_dual: Float[Array, "*z"]
    defect: Scalar
    legal: Bool[Array, ""]


State = TypeVar("State", bound=PrimalDualState)


class AbstractPrimalDual(AbstractSolver[State]):
    """What the two methods share: the energy `B(data, W u + b) + alpha J(u)`, its checks and its stopping.

    Implementing one: the fields below, `start` (the method's own state), and `step`.
    """

    alpha: Any
    regulariser: AbstractRegulariser
    stop: Stop
    duals: tuple[Any, Any] | None

    @abc.abstractmethod
    def legal(self) -> Bool[Array, ""]:
        """Whether the step sizes are within their bounds."""

    def energy(self, problem: Problem, u: Float[Array, "*u"]) -> Scalar:
        """`B(data, W u + b) + alpha J(u)`, with admissible data."""
        forward = as_perceptron(problem.forward, type(self).__name__)
        data = admit(forward.activation, problem.data, problem.noise_std)
        return forward.activation.gap(data, forward.affine(u)) + self.alpha * self.regulariser(u)

    def check(self, problem: Problem, x: Float[Array, "*u"]) -> None:
        """See `AbstractSolver`."""
        name = type(self).__name__
        as_perceptron(problem.forward, name)
        check_regularisation(name, problem, self.regulariser, x)
        if self.duals is not None:
            expected = problem.data.shape, self.regulariser.analysis(x).shape
            given = tuple(jnp.shape(dual) for dual in self.duals)
            if given != expected:
                raise ValueError(f"duals have shapes {given}; expected {expected}, like the data and like A u.")

    def prox(self, problem: Problem, v: Float[Array, "*u"], step: Any) -> Float[Array, "*u"]:
        """The prox of `step J0`, and of the constraint of the problem."""
        return problem.feasible(self.regulariser.simple_prox(v, step))

    def begin(
        self, problem: Problem, x: Float[Array, "*u"], work: Evaluations
    ) -> tuple[Float[Array, "*u"], Perceptron, PrimalDualState]:
        """The start, which takes `work`: `x` moved into the domain of `J`, and what all methods keep."""
        forward = as_perceptron(problem.forward, type(self).__name__)
        if self.regulariser.kind != "other":
            x = self.prox(problem, x, 0.0)
        data = admit(forward.activation, problem.data, problem.noise_std)
        affine = forward.affine(x)
        if self.duals is None:
            p, z = jnp.zeros_like(data), jnp.zeros_like(self.regulariser.analysis(x))
        else:
            p, z = (jnp.asarray(dual, x.dtype) for dual in self.duals)
        zero, nan = jnp.zeros((), jnp.int32), jnp.asarray(jnp.nan, x.dtype)
        none = Evaluations(f=zero, g=zero, jvp=zero, vjp=zero)
        record = Record(zero, zero, zero, none, nan, nan, nan, nan)
        record = self.reported(problem, forward, x, data, affine, record, nan, work)
        norm = jnp.asarray(forward.norm(), x.dtype)
        defect = jnp.asarray(jnp.inf, x.dtype)
        legal = self.legal() & (jnp.asarray(self.alpha) > 0)
        return x, forward, PrimalDualState(record, data, norm, affine, p, z, defect, legal)

    def reported(
        self,
        problem: Problem,
        forward: Perceptron,
        u: Float[Array, "*u"],
        data: Float[Array, "*y"],
        affine: Float[Array, "*y"],
        record: Record,
        step_size: Scalar,
        work: Evaluations,
    ) -> Record:
        """The record at `u`, after `work`; a step has been made if it has a size."""
        energy = forward.activation.gap(data, affine) + self.alpha * self.regulariser(u)
        return Record(
            num_steps=record.num_steps + ~jnp.isnan(step_size),
            num_rejected=record.num_rejected,
            num_fallbacks=record.num_fallbacks,
            evaluations=record.evaluations + work,
            residual_rms=problem.residual_rms(forward.activation(affine) - problem.data),
            objective=energy.astype(u.dtype),
            step_size=step_size.astype(u.dtype),
            rjcp=record.rjcp,
        )

    def terminate(self, problem: Problem, x: Float[Array, "*u"], state: State) -> tuple[Bool[Array, ""], RESULTS]:
        """See `AbstractSolver`."""
        stationary = state.defect <= self.stop.rtol
        if self.stop.discrepancy is None:
            met = stationary
        else:
            forward = as_perceptron(problem.forward, type(self).__name__)
            residual = forward.activation(state.affine) - problem.data
            met = problem.discrepancy(residual) <= self.stop.discrepancy
        finite = jnp.isfinite(state.record.residual_rms)
        result = result_where(stationary, RESULTS.stationary, RESULTS.nonfinite_input)
        result = result_where(met, RESULTS.successful, result)
        result = result_where(state.legal, result, RESULTS.nonlinear_divergence)
        return met | stationary | ~finite | ~state.legal, result


def check_alpha(alpha: Any) -> Any:
    """`alpha`, refused if it is not positive."""
    if alpha is None or (concrete(alpha) and not np.all(np.asarray(alpha) > 0)):
        raise ValueError(
            f"alpha={alpha}; expected a positive weight of the regulariser. Without regularisation take a small "
            "one, or a solver of `pinv_jax.solvers`."
        )
    return alpha


def check_regulariser(regulariser: Any) -> AbstractRegulariser:
    """`regulariser`, total variation by default, refused if it is none."""
    regulariser = TotalVariation() if regulariser is None else regulariser
    if not isinstance(regulariser, AbstractRegulariser):
        raise ValueError(
            f"regulariser is a {type(regulariser).__name__}; expected one of L1, HalfSquaredNorm, TotalVariation, Box, "
            "their sums, or `Proximal(prox, value)` of your own."
        )
    return regulariser


def norm(array: Array) -> Array:
    """The Euclidean norm of all entries."""
    return jnp.sqrt(jnp.vdot(array, array))


def ratio(defect: Array, scale: Any) -> Array:
    """`defect / scale`, zero where both are."""
    scale = jnp.asarray(scale, defect.dtype)
    return jnp.where(scale > 0, defect / jnp.where(scale > 0, scale, 1), jnp.where(defect > 0, jnp.inf, 0))
