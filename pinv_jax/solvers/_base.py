"""What a solver is: `AbstractSolver`, and the records every solver keeps: `Point`, `Evaluations`, `Record`, `Stop`."""

import abc
from typing import Any, ClassVar, Generic, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray, Scalar

from .._problem import Problem
from .._solution import RESULTS

Number = int | Int[Array, ""]


class Evaluations(eqx.Module):
    """How often the forward map `f`, the inverse `g` and the derivative products of either were evaluated."""

    f: Number = 0
    g: Number = 0
    jvp: Number = 0
    vjp: Number = 0

    def __add__(self, other: "Evaluations") -> "Evaluations":
        return jax.tree.map(lambda a, b: a + b, self, other)


class Point(eqx.Module):
    """What is known at the current iterate, computed once when it is accepted.

    Attributes:
        prediction: `f(x)`.
        residual: `f(x) - data`.
        objective: the objective.
        gradient: its gradient.
    """

    prediction: Float[Array, "*y"]
    residual: Float[Array, "*y"]
    objective: Scalar
    gradient: Float[Array, "*x"]


class Record(eqx.Module):
    """What the loop reports of a solver's state.

    Attributes:
        num_steps, num_rejected, num_fallbacks: as in `Stats`.
        evaluations: as in `Stats`.
        residual_rms, objective: at the current iterate.
        step_size: the step size accepted last (NaN before the first).
        rjcp: the data-metric composition defect at the current iterate, NaN where it is not computed.
    """

    num_steps: Int[Array, ""]
    num_rejected: Int[Array, ""]
    num_fallbacks: Int[Array, ""]
    evaluations: Evaluations
    residual_rms: Scalar
    objective: Scalar
    step_size: Scalar
    rjcp: Scalar


class AbstractState(eqx.Module):
    """The state of a solver: whatever it needs for its next step, and the `record` that the loop reads."""

    record: eqx.AbstractVar[Record]


State = TypeVar("State", bound=AbstractState)


class Stop(eqx.Module):
    """When a solve has succeeded, and when it cannot progress.

    Args:
        atol: succeed once the root mean square of the residual is at most this, in the units of `data`.
        discrepancy: if given, succeed instead once the root mean square of `residual / noise_std` is at most this (the
            discrepancy principle; 1 to 1.5 is usual). The problem must then have a `noise_std`.
        rtol: end as `stationary` once a full step promises, to first order, to lower the objective by less than this
            fraction of it. By default ten times the rounding unit of the dtype.
    """

    atol: Any = 1e-6
    discrepancy: Any = None
    rtol: Any = None

    def met(self, problem: Problem, residual: Float[Array, "*y"]) -> Bool[Array, ""]:
        """Whether the residual is within tolerance; never for a residual that is not finite."""
        if self.discrepancy is None:
            return problem.residual_rms(residual) <= self.atol
        return problem.discrepancy(residual) <= self.discrepancy

    def promise(self, dtype: jnp.dtype) -> Any:
        """The smallest relative decrease of the objective worth a step, in `dtype`."""
        return 10 * jnp.finfo(dtype).eps if self.rtol is None else self.rtol


class AbstractSolver(eqx.Module, Generic[State]):
    """A method that improves `x` step by step; the loop belongs to `solve`.

    Implementing a solver:

    - `init(problem, x, *, key) -> (x, state)` evaluates the start; it may move `x` if that lowers the objective;
    - `step(problem, x, state) -> (x, state)` makes one trial; `state.record` says whether it was accepted;
    - `terminate(problem, x, state) -> (done, result)` reads the state, and costs nothing;
    - a `stop: Stop` field, which `solve` checks before tracing;
    - `minimises_objective = True` if what it converges to is a minimiser of `problem.objective`, which implicit
      differentiation needs to know.

    All arrays live in the state, nothing throws, and callable fields are kept as `maps.store(fn)`, so that a solver is
    a valid argument of `jax.jit`. Methods that leave the iterate along a curve and search along it need only a
    *descent* and a *search*: see `AbstractDescentSolver`.
    """

    stop: eqx.AbstractVar[Stop]
    minimises_objective: ClassVar[bool] = False

    def check(self, problem: Problem, x: Float[Array, "*x"]) -> None:
        """Raises a `ValueError` where the solver's own parts do not fit the problem; called once per trace."""

    @abc.abstractmethod
    def init(
        self, problem: Problem, x: Float[Array, "*x"], *, key: PRNGKeyArray | None
    ) -> tuple[Float[Array, "*x"], State]:
        """Evaluates the start."""

    @abc.abstractmethod
    def step(self, problem: Problem, x: Float[Array, "*x"], state: State) -> tuple[Float[Array, "*x"], State]:
        """Makes one trial."""

    @abc.abstractmethod
    def terminate(self, problem: Problem, x: Float[Array, "*x"], state: State) -> tuple[Bool[Array, ""], RESULTS]:
        """Whether to stop, and why."""
