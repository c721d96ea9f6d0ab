"""`Unrolled`: the steps of a network that was trained end to end, as a solver."""

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from .._problem import Problem
from .._solution import RESULTS, result_where
from ..maps import store, unstore
from ._base import AbstractSolver, AbstractState, Evaluations, Record, Stop


class UnrolledState(AbstractState):
    """The state of `Unrolled`.

    Attributes:
        record: what `solve` reports.
        residual: of the problem's forward map at the iterate.
        index: of the next step.
    """

    record: Record
    residual: Float[Array, "*y"]
    index: Int[Array, ""]


class Unrolled(AbstractSolver[UnrolledState]):
    """The steps `x <- network.step(x, data, t)`, `t = 0, 1, ...`, of a network such as `learn.DeceptronNet`.

    The network has its own model of the map; residual, objective and success are those of the problem's forward map,
    at one evaluation per step. No step is refused: none promises to lower the objective. The solve ends after
    `network.num_steps` steps at the latest, as `stationary` if the residual is not within tolerance then. Start from
    `network.start(data)`, where training started: from elsewhere the steps mean little.

    `stats` counts a step as one evaluation of `g`.

    Args:
        network: with `num_steps` and `step(x, data, index)`.
        atol, discrepancy: see `Stop`.
    """

    network: Any
    stop: Stop

    def __init__(self, network: Any, *, atol: Any = 1e-6, discrepancy: Any = None):
        self.network = store(network)
        self.stop = Stop(atol, discrepancy, None)

    def check(self, problem: Problem, x: Float[Array, "*x"]) -> None:
        """See `AbstractSolver`."""
        network = unstore(self.network)
        for name in ("num_steps", "step"):
            if not hasattr(network, name):
                raise ValueError(
                    f"Unrolled expected a network with num_steps and step(x, data, index), as learn.DeceptronNet has "
                    f"them; {type(network).__name__} has no {name}."
                )
        if problem.prior is not None:
            raise ValueError("Unrolled knows no prior: drop it, or use `LevenbergMarquardt`.")
        expected = network.in_structure().shape
        if problem.data.shape != expected:
            raise ValueError(f"data has shape {problem.data.shape}; the network was made for {expected}.")

    def init(
        self, problem: Problem, x: Float[Array, "*x"], *, key: PRNGKeyArray | None = None
    ) -> tuple[Float[Array, "*x"], UnrolledState]:
        """See `AbstractSolver`."""
        del key
        zero = jnp.zeros((), jnp.int32)
        work = Evaluations(f=zero, g=zero, jvp=zero, vjp=zero)
        return x, self._state(problem, x, zero, work)

    def step(
        self, problem: Problem, x: Float[Array, "*x"], state: UnrolledState
    ) -> tuple[Float[Array, "*x"], UnrolledState]:
        """See `AbstractSolver`."""
        x = problem.feasible(unstore(self.network).step(x, problem.data, state.index))
        return x, self._state(problem, x, state.index + 1, state.record.evaluations + Evaluations(g=1))

    def _state(
        self, problem: Problem, x: Float[Array, "*x"], index: Int[Array, ""], work: Evaluations
    ) -> UnrolledState:
        residual = problem.forward(x) - problem.data
        zero = jnp.zeros((), jnp.int32)
        record = Record(
            num_steps=index,
            num_rejected=zero,
            num_fallbacks=zero,
            evaluations=work + Evaluations(f=1),
            residual_rms=problem.residual_rms(residual),
            objective=0.5 * problem.discrepancy(residual) ** 2,
            step_size=jnp.where(index > 0, jnp.ones((), x.dtype), jnp.nan),
            rjcp=jnp.asarray(jnp.nan, x.dtype),
        )
        return UnrolledState(record, residual, index)

    def terminate(
        self, problem: Problem, x: Float[Array, "*x"], state: UnrolledState
    ) -> tuple[Bool[Array, ""], RESULTS]:
        """See `AbstractSolver`."""
        met = self.stop.met(problem, state.residual)
        finite = jnp.isfinite(state.record.objective)
        last = state.index >= unstore(self.network).num_steps
        result = result_where(finite, RESULTS.stationary, RESULTS.nonfinite_input)
        return met | ~finite | last, result_where(met, RESULTS.successful, result)
