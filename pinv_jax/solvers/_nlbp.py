"""Non-linear back-projection: `merge(y + a (data - y), z + a (section(data) - section(y)))` with `y, z = split(x)`."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, PRNGKeyArray, Scalar

from .._problem import Problem
from .._solution import RESULTS, result_where
from ..maps import AbstractSurjection, Natural, store, unstore
from ._base import AbstractSolver, AbstractState, Evaluations, Record, Stop
from ._check import concrete
from ._descent import select
from ._intervals import Bound, nearest


def nlbp(
    f: Any,
    x: Float[Array, "*x"],
    data: Float[Array, "*y"],
    step_size: float | int | Scalar = 1.0,
    *,
    section_of_data: Any = None,
) -> Float[Array, "*x"]:
    """Back-projects `x` onto `f(x) = data`, exactly and in one step.

    With `y, z = split(x)`,

        x' = merge(y + a (data - y), z + a (section(data) - section(y))),

    so that `f(x') = (1 - a) f(x) + a data` for every `a`, whatever the section has learned; `a = 0` returns `x`. Data
    with a NaN give an `x'` with NaN.

    For `maps.Natural(f)` the section is constant and drops out: `x'` takes `y` from the data and keeps `z`, at the
    price of one forward (`split`) and one inverse (`merge`). Of all points on `f(x) = data` it is then the nearest to
    `x` in the coordinates `(y, z)`, not in `x`; for that see `MinimumNorm`. With a learned section `x'` is the nearest
    in the coordinates `(y, z - section(y))`.

    The formula `x + pinv(data - f(x))`, right for a linear map, does not meet the data of any other.

    Args:
        f: an `AbstractSurjection`; `maps.prepare(f)` once if it is called often.
        x: one point.
        data: what `f(x')` shall be, shape `*y`.
        step_size: `a`.
        section_of_data: `f.section(data)`, if many points are projected onto the same data; it is a constant then.

    Returns:
        `x'`, shaped like `x`.

    Raises:
        ValueError: `f` is no surjection, or `data` has another shape than `f(x)`.

    References:
        Y. Ehrlich, A. Berman, A. Shocher, "Pseudo-Invertible Neural Networks", 2026, arXiv:2602.06042.
    """
    f = as_surjection(f, "nlbp")
    with jax.default_matmul_precision("highest"):
        y, z = f.split(x)
        if data.shape != y.shape:
            raise ValueError(
                f"data has shape {data.shape}; f returns {y.shape} for x of shape {x.shape}. For a batch write "
                "`jax.vmap(lambda x, y: nlbp(f, x, y))(xs, data)`."
            )
        return back_project(f, y, z, data, step_size, section_of_data)


def nlbp_interval(
    f: Any,
    x: Float[Array, "*x"],
    lower: Bound,
    upper: Bound,
    step_size: float | int | Scalar = 1.0,
) -> Float[Array, "*x"]:
    """Back-projects `x` onto `lower <= f(x) <= upper`: `nlbp` with the nearest point of the box for the data.

    `f(x') = f(x) + a (clip(f(x), lower, upper) - f(x))`; a point that meets the bounds stays where it is. See
    `quantisation_box` and `clipping_box` for the bounds that observations of a sensor give.

    Args:
        f: an `AbstractSurjection`.
        x: one point.
        lower: lower bounds of `y`, shaped like `y` or scalar; `-inf` where there is none.
        upper: upper bounds, or `inf`.
        step_size: `a`.

    Returns:
        `x'`, shaped like `x`; NaN where the box is empty.

    Raises:
        ValueError: `f` is no surjection, or a lower bound exceeds its upper one.
    """
    f = as_surjection(f, "nlbp_interval")
    if concrete(lower) and concrete(upper):
        empty = np.asarray(lower) > np.asarray(upper)
        if np.any(empty):
            raise ValueError(
                f"lower exceeds upper in {np.sum(empty)} of {empty.size} entries; expected lower <= upper everywhere. "
                "Were they swapped?"
            )
    with jax.default_matmul_precision("highest"):
        y, z = f.split(x)
        return back_project(f, y, z, nearest(y, lower, upper), step_size)


def back_project(
    f: AbstractSurjection[Any],
    y: Float[Array, "*y"],
    z: Any,
    target: Float[Array, "*y"],
    step_size: float | int | Scalar,
    section_of_target: Any = None,
) -> Float[Array, "*x"]:
    """`nlbp` from `y, z = f.split(x)`."""

    def blend(start: Array, end: Array) -> Array:
        # Not `start + a (end - start)`, which misses the end by the rounding of a start that is much larger.
        return (1 - step_size) * start + step_size * end

    if not isinstance(f, Natural):
        picked = f.section(target) if section_of_target is None else section_of_target
        z = jax.tree.map(lambda z, a, b: z + step_size * (a - b), z, picked, f.section(y))
    return f.merge(blend(y, target), z)


def as_surjection(f: Any, name: str) -> AbstractSurjection[Any]:
    """`f` itself, taken out of its store; refused if it has no exact inverse."""
    f = unstore(f)
    if not isinstance(f, AbstractSurjection):
        raise ValueError(
            f"{name} back-projects onto an AbstractSurjection, which knows its exact inverse; got {type(f).__name__}. "
            "Compose the map of surjections, `maps.SurjectiveChain([...])`, or use `GaussNewton` or `MinimumNorm`."
        )
    return f


class NLBPState(AbstractState):
    """The state of `NLBP`.

    Attributes:
        record: what `solve` reports.
        y, z: the split of the iterate.
        target: the admissible observation that is nearest to `y`.
        section_of_data: the section of the data where it is constant, else `None`.
        stalled: whether the last step did not progress, and was undone.
    """

    record: Record
    y: Float[Array, "*y"]
    z: Any
    target: Float[Array, "*y"]
    section_of_data: Any
    stalled: Bool[Array, ""]


class NLBP(AbstractSolver[NLBPState]):
    """Non-linear back-projection `nlbp` as a solver: one step meets the data, and a second forward verifies it.

    Smaller steps shrink the residual by `1 - step_size` each. With `Problem(project=...)` back-projection and
    projection alternate, until the data are met or the residual no longer falls (`stationary`).

    `stats` counts a `split` as an evaluation of `f` and a `merge` as one of `g`. A section is not counted; that of a
    learned chain costs about as much as a merge, that of `maps.Natural` nothing.

    Args:
        step_size: between 0 and 2.
        box: `data -> (lower, upper)` if an observation only says between which bounds `y` lies:
            `lambda data: quantisation_box(data, 1 / 255)`. Residuals are then the distances to the box, entry by entry.
        atol, discrepancy, rtol: see `Stop`.

    Raises:
        ValueError: `step_size` is not between 0 and 2.

    References:
        Y. Ehrlich, A. Berman, A. Shocher, "Pseudo-Invertible Neural Networks", 2026, arXiv:2602.06042.
    """

    step_size: Any
    box: Any
    stop: Stop

    def __init__(
        self,
        step_size: Any = 1.0,
        *,
        box: Any = None,
        atol: Any = 1e-6,
        discrepancy: Any = None,
        rtol: Any = None,
    ):
        if concrete(step_size) and not 0 < step_size < 2:
            raise ValueError(
                f"step_size={step_size}; expected between 0 and 2: a step multiplies the residual by 1 - step_size."
            )
        self.step_size = step_size
        self.box = store(box)
        self.stop = Stop(atol, discrepancy, rtol)

    def check(self, problem: Problem, x: Float[Array, "*x"]) -> None:
        """See `AbstractSolver`."""
        as_surjection(problem.forward, "NLBP")
        if problem.prior is not None:
            raise ValueError("NLBP knows no prior: drop it, or use `LevenbergMarquardt`.")
        if self.box is not None:
            for bound in self.box(problem.data):
                if jnp.shape(bound) not in ((), problem.data.shape):
                    raise ValueError(
                        f"box returns a bound of shape {jnp.shape(bound)}; expected {problem.data.shape}, like data."
                    )

    def _target(self, problem: Problem, y: Float[Array, "*y"]) -> Float[Array, "*y"]:
        return problem.data if self.box is None else nearest(y, *self.box(problem.data))

    def init(
        self, problem: Problem, x: Float[Array, "*x"], *, key: PRNGKeyArray | None = None
    ) -> tuple[Float[Array, "*x"], NLBPState]:
        """See `AbstractSolver`."""
        del key
        f = as_surjection(problem.forward, "NLBP")
        y, z = f.split(x)
        target = self._target(problem, y)
        zero = jnp.zeros((), jnp.int32)
        record = Record(
            num_steps=zero,
            num_rejected=zero,
            num_fallbacks=zero,
            evaluations=Evaluations(f=zero + 1, g=zero, jvp=zero, vjp=zero),
            residual_rms=problem.residual_rms(y - target),
            objective=0.5 * problem.discrepancy(y - target) ** 2,
            step_size=jnp.asarray(jnp.nan, x.dtype),
            rjcp=jnp.asarray(jnp.nan, x.dtype),
        )
        constant = self.box is None and not isinstance(f, Natural)
        picked = f.section(problem.data) if constant else None
        return x, NLBPState(record, y, z, target, picked, jnp.asarray(False))

    def step(self, problem: Problem, x: Float[Array, "*x"], state: NLBPState) -> tuple[Float[Array, "*x"], NLBPState]:
        """See `AbstractSolver`."""
        f, old = as_surjection(problem.forward, "NLBP"), state.record
        x_try = back_project(f, state.y, state.z, state.target, self.step_size, state.section_of_data)
        x_try = problem.feasible(x_try)
        y, z = f.split(x_try)
        target = self._target(problem, y)
        objective = 0.5 * problem.discrepancy(y - target) ** 2
        accept = objective < (1 - self.stop.promise(objective.dtype)) * old.objective
        new = dataclasses.replace(
            old,
            num_steps=old.num_steps + 1,
            residual_rms=problem.residual_rms(y - target),
            objective=objective,
            step_size=jnp.asarray(self.step_size, x.dtype),
        )
        old = dataclasses.replace(old, num_rejected=old.num_rejected + 1)
        x, record, y, z, target = select(accept, (x_try, new, y, z, target), (x, old, state.y, state.z, state.target))
        record = dataclasses.replace(record, evaluations=record.evaluations + Evaluations(f=1, g=1))
        return x, NLBPState(record, y, z, target, state.section_of_data, ~accept)

    def terminate(self, problem: Problem, x: Float[Array, "*x"], state: NLBPState) -> tuple[Bool[Array, ""], RESULTS]:
        """See `AbstractSolver`."""
        met = self.stop.met(problem, state.y - state.target)
        finite = jnp.isfinite(state.record.objective)
        result = result_where(finite, RESULTS.stationary, RESULTS.nonfinite_input)
        return met | ~finite | state.stalled, result_where(met, RESULTS.successful, result)
