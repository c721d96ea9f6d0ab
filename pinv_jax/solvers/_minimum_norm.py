"""The pre-image nearest to a reference: `min 1/2 |x - reference|^2` subject to `f(x) = data`."""

import dataclasses
from typing import Any

import equinox as eqx
import equinox.internal as eqxi
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray, Scalar

from .._problem import Problem
from .._solution import RESULTS, result_where
from ._base import AbstractSolver, AbstractState, Evaluations, Record, Stop
from ._descent import counted, select, when
from ._normal import dense_jacobian, thin_svd


class Plan(eqx.Module):
    """The step from an iterate, and what judges its trials.

    Attributes:
        direction: `-J^+ residual` plus a step along the fibre, flat.
        factors: `u, 1 / s, vt` of the Jacobian, `1 / s` zero for the singular values that count as zero.
        penalty: the weight of the residual in the merit, above the norm of the multipliers.
        promise: minus the slope of the merit along `d`.
        tangent: the part of `x - reference` along the fibre, relative to all of it; zero at a solution.
    """

    direction: Float[Array, " n"]
    factors: tuple[Float[Array, "m k"], Float[Array, " k"], Float[Array, "k n"]]
    penalty: Scalar
    promise: Scalar
    tangent: Scalar


class MinimumNormState(AbstractState):
    """The state of `MinimumNorm`.

    Attributes:
        record: what `solve` reports.
        reference: shaped like `x`.
        residual: at the iterate.
        plan: the next step.
        step_size: to try next.
        num_trials: rejections since the last accepted step.
    """

    record: Record
    reference: Float[Array, "*x"]
    residual: Float[Array, "*y"]
    plan: Plan
    step_size: Scalar
    num_trials: Int[Array, ""]


class MinimumNorm(AbstractSolver[MinimumNormState]):
    """The point of the fibre `f(x) = data` that is nearest to a reference in the Euclidean norm of `x`.

    With `reference=0` this is the minimum-norm pseudo-inverse of a nonlinear map; of a linear map it is Moore and
    Penrose's. With `reference=None` it is the point of the fibre that is nearest to the start `x0`: what `NLBP` would
    return if its metric were that of `x`. Any map will do, but its Jacobian is formed: for data that are not many.

    Sequential quadratic programming: the step is `-J^+ (f(x) - data)` plus one along the fibre, from truncated
    conjugate gradients on the Hessian of the Lagrangian. With the identity for that Hessian it is the Gauss-Newton step
    to `reference + J^+ (data - f(x) + J (x - reference))`. One more `J^+` corrects the step for the curvature of the
    fibre, and it is halved until `1/2 |x - reference|^2 + penalty |f(x) - data|` falls.

    A solve has succeeded when the data are met *and* `x - reference` is normal to the fibre. That makes it a stationary
    point; a fibre that bends may have others. The objective in `stats` is the misfit, and may rise on the way.

    Args:
        reference: a scalar, an array shaped like `x`, or `None` for the start.
        normal_rtol: tolerance of the second condition: the sine of the angle between `x - reference` and the row space
            of `J`. The distance exceeds the least one by about the square of it, relatively.
        atol, discrepancy, rtol: see `Stop`.
        max_cg_steps: conjugate gradients per step; zero leaves out the curvature term, for maps without second
            derivatives, and converges slowly where the fibre bends.
        max_trials: halvings of one step.

    References:
        J. Nocedal, S. J. Wright, Numerical Optimization, 2006, chapter 18, doi:10.1007/978-0-387-40065-5.
    """

    reference: Any
    normal_rtol: Any
    stop: Stop
    max_cg_steps: int = eqx.field(static=True)
    max_trials: int = eqx.field(static=True)

    def __init__(
        self,
        reference: Any = 0.0,
        *,
        normal_rtol: Any = 1e-4,
        atol: Any = 1e-6,
        discrepancy: Any = None,
        rtol: Any = None,
        max_cg_steps: int = 20,
        max_trials: int = 20,
    ):
        self.reference = reference
        self.normal_rtol = normal_rtol
        self.stop = Stop(atol, discrepancy, rtol)
        self.max_cg_steps = max_cg_steps
        self.max_trials = max_trials

    def check(self, problem: Problem, x: Float[Array, "*x"]) -> None:
        """See `AbstractSolver`."""
        if self.reference is not None and jnp.shape(self.reference) not in ((), x.shape):
            raise ValueError(
                f"reference has shape {jnp.shape(self.reference)}; expected a scalar, {x.shape} like x0, or None for "
                "x0 itself."
            )
        if problem.prior is not None or problem.project is not None:
            raise ValueError(
                "MinimumNorm knows no prior and no projection: it minimises the distance to `reference` and nothing "
                "else. Drop them, or use `LevenbergMarquardt`."
            )

    def init(
        self, problem: Problem, x: Float[Array, "*x"], *, key: PRNGKeyArray | None = None
    ) -> tuple[Float[Array, "*x"], MinimumNormState]:
        """See `AbstractSolver`."""
        del key
        reference = x if self.reference is None else jnp.broadcast_to(jnp.asarray(self.reference, x.dtype), x.shape)
        prediction = problem.forward(x)
        residual = prediction - problem.data
        plan, work = _plan(problem, x, reference, residual, jnp.zeros((), x.dtype), self.max_cg_steps)
        zero = jnp.zeros((), jnp.int32)
        record = Record(
            num_steps=zero,
            num_rejected=zero,
            num_fallbacks=zero,
            evaluations=counted(Evaluations(f=1) + work),
            residual_rms=problem.residual_rms(residual),
            objective=problem.merit(x, prediction),
            step_size=jnp.asarray(jnp.nan, x.dtype),
            rjcp=jnp.asarray(jnp.nan, x.dtype),
        )
        return x, MinimumNormState(record, reference, residual, plan, jnp.ones((), x.dtype), zero)

    def step(
        self, problem: Problem, x: Float[Array, "*x"], state: MinimumNormState
    ) -> tuple[Float[Array, "*x"], MinimumNormState]:
        """See `AbstractSolver`."""
        plan, old, step_size = state.plan, state.record, state.step_size

        def merit(x: Float[Array, "*x"], residual: Float[Array, "*y"]) -> Scalar:
            scaled = problem.misfit(x, problem.data + residual)
            return 0.5 * jnp.sum((x - state.reference) ** 2) + plan.penalty * jnp.linalg.norm(scaled)

        x_straight = x + step_size * plan.direction.reshape(x.shape)
        straight = problem.forward(x_straight) - problem.data
        # Without this correction the merit would refuse good steps along a curved fibre (the Maratos effect).
        surplus = problem.misfit(x, problem.data + straight - (1 - step_size) * state.residual)
        x_bent = x_straight - _apply_pinv(plan.factors, surplus).reshape(x.shape)
        bent = problem.forward(x_bent) - problem.data
        better = merit(x_bent, bent) < merit(x_straight, straight)
        x_try, residual = select(better, (x_bent, bent), (x_straight, straight))

        before, after = merit(x, state.residual), merit(x_try, residual)
        # Rounding of the merit is allowed for: it would end the solve at the root of the rounding unit.
        slack = 10 * jnp.finfo(x.dtype).eps * before
        accept = after <= before - 1e-4 * step_size * plan.promise + slack

        def advance() -> tuple[Plan, Evaluations]:
            new, work = _plan(problem, x_try, state.reference, residual, plan.penalty, self.max_cg_steps)
            return new, counted(work)

        plan, work = when(accept, advance, (plan, counted(Evaluations())))
        kept = select(accept, residual, state.residual)
        record = dataclasses.replace(
            old,
            num_steps=old.num_steps + accept,
            num_rejected=old.num_rejected + ~accept,
            evaluations=old.evaluations + Evaluations(f=2) + work,
            residual_rms=problem.residual_rms(kept),
            objective=0.5 * problem.discrepancy(kept) ** 2,
            step_size=jnp.where(accept, step_size, old.step_size),
        )
        return jnp.where(accept, x_try, x), MinimumNormState(
            record=record,
            reference=state.reference,
            residual=kept,
            plan=plan,
            step_size=jnp.where(accept, 1.0, 0.5 * step_size),
            num_trials=jnp.where(accept, 0, state.num_trials + 1),
        )

    def terminate(
        self, problem: Problem, x: Float[Array, "*x"], state: MinimumNormState
    ) -> tuple[Bool[Array, ""], RESULTS]:
        """See `AbstractSolver`."""
        plan = state.plan
        data_met = self.stop.met(problem, state.residual)
        met = data_met & (plan.tangent <= self.normal_rtol)
        finite = jnp.isfinite(state.record.objective) & jnp.isfinite(plan.promise)
        exhausted = state.num_trials >= self.max_trials
        distance = 0.5 * jnp.sum((x - state.reference) ** 2)
        value = distance + plan.penalty * jnp.sqrt(2 * state.residual.size * state.record.objective)
        stationary = ~data_met & (plan.promise <= self.stop.promise(x.dtype) * value)
        result = result_where(stationary, RESULTS.stationary, RESULTS.line_search_failed)
        result = result_where(finite, result, RESULTS.nonfinite_input)
        return met | ~finite | stationary | exhausted, result_where(met, RESULTS.successful, result)


def _apply_pinv(factors: tuple[Array, Array, Array], v: Float[Array, " m"]) -> Float[Array, " n"]:
    u, inverse, vt = factors
    return vt.T @ (inverse * (u.T @ v))


def _tangential_step(
    problem: Problem,
    x: Float[Array, "*x"],
    multipliers: Float[Array, " m"],
    vt: Float[Array, "k n"],
    gradient: Float[Array, " n"],
    max_steps: int,
) -> tuple[Float[Array, " n"], Int[Array, ""]]:
    """A descent direction along the fibre: truncated conjugate gradients on the Hessian of the Lagrangian."""

    def lagrangian_of_constraint(flat: Float[Array, " n"]) -> Scalar:
        v = flat.reshape(x.shape)
        return multipliers @ problem.misfit(v, problem.forward(v))

    _, curvature = jax.linearize(jax.grad(lagrangian_of_constraint), x.ravel())

    def hessian(v: Float[Array, " n"]) -> Float[Array, " n"]:
        v = v + curvature(v)
        return v - vt.T @ (vt @ v)

    size = jnp.sum(gradient**2)
    # Tighter and tighter as the gradient vanishes, for superlinear convergence.
    goal = size * jnp.minimum(0.01, size / jnp.maximum(jnp.sum(x**2), 1.0))

    def going(carry: Any) -> Bool[Array, ""]:
        _, _, _, squared, num, convex = carry
        return (squared > goal) & (num < max_steps) & convex

    def turn(carry: Any) -> Any:
        t, r, d, squared, num, _ = carry
        hd = hessian(d)
        bent = jnp.sum(d * hd)
        convex = bent > 1e-3 * jnp.sum(d**2)
        # Against curvature that is not positive the gradient itself must do, or what was found before.
        step = jnp.where(convex, squared / jnp.where(convex, bent, 1.0), jnp.where(num == 0, 1.0, 0.0))
        r = r - step * hd
        after = jnp.sum(r**2)
        return t + step * d, r, r + after / squared * d, after, num + 1, convex

    start = (jnp.zeros_like(gradient), -gradient, -gradient, size, jnp.zeros((), jnp.int32), jnp.asarray(True))
    # Bounded, because a reverse pass cannot go through any other loop.
    t, *_, num, _ = eqxi.while_loop(going, turn, start, max_steps=max_steps, kind="bounded", base=max_steps)
    return t, num


def _plan(
    problem: Problem,
    x: Float[Array, "*x"],
    reference: Float[Array, "*x"],
    residual: Float[Array, "*y"],
    penalty: Scalar,
    max_steps: int,
) -> tuple[Plan, Evaluations]:
    jac, work = dense_jacobian(problem, x)
    u, s, vt = thin_svd(jac)
    kept = s > jnp.finfo(s.dtype).eps * max(jac.shape) * jnp.max(s)
    inverse = jnp.where(kept, 1 / jnp.where(kept, s, 1.0), 0.0)
    vt = jnp.where(kept[:, None], vt, 0.0)
    offset, scaled = (x - reference).ravel(), problem.misfit(x, problem.data + residual)
    rows, pushed = vt @ offset, u.T @ scaled
    along = offset - vt.T @ rows
    multipliers = -u @ (inverse * rows)  # J' multipliers = -offset, as well as can be
    moved = -along
    if max_steps > 0:
        moved, num = _tangential_step(problem, x, multipliers, vt, along, max_steps)
        work = work + Evaluations(f=1, jvp=num, vjp=num + 1)
    normal = -inverse * pushed  # in the coordinates of the row space
    direction = moved + vt.T @ normal
    size = jnp.linalg.norm(scaled)
    # Above the multipliers here and where the step leads: the reference itself has none.
    largest = jnp.maximum(jnp.linalg.norm(inverse * rows), jnp.linalg.norm(inverse * (rows + normal)))
    penalty = jnp.maximum(penalty, 2 * largest)
    removed = jnp.sum(jnp.where(kept, pushed**2, 0.0)) / jnp.where(size > 0, size, 1.0)
    promise = penalty * removed - jnp.sum(offset * direction)
    tangent = jnp.linalg.norm(along) / jnp.maximum(jnp.linalg.norm(offset), jnp.finfo(x.dtype).tiny)
    return Plan(direction, (u, inverse, vt), penalty, promise, tangent), work
