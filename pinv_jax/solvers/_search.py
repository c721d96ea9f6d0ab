"""How far to go along a descent: `Armijo`, `PublishedArmijo` and the damping control of Levenberg-Marquardt."""

import abc
from typing import Any

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Bool, Scalar


class Trial(eqx.Module):
    """One trial, as a search sees it.

    Attributes:
        objective, objective_before: at the trial and at the iterate.
        slope: `<gradient, displacement>` of the displacement after projection.
        slope_unprojected: the same before projection.
        predicted: the decrease that the descent's own model predicts.
        step_size: the step size that was tried.
    """

    objective: Scalar
    objective_before: Scalar
    slope: Scalar
    slope_unprojected: Scalar
    predicted: Scalar
    step_size: Scalar


class AbstractSearch(eqx.Module):
    """Decides on one trial at a time: accept it or not, and which step size to try next.

    One trial is made per turn of the loop, so a batch under `vmap` never evaluates a trial that no lane needs.

    Implementing a search: `judge(trial) -> (accept, next_step_size)`, the fields `first_step_size` and `max_trials`
    (how many rejections in a row end the solve).
    """

    first_step_size: eqx.AbstractVar[Any]
    max_trials: eqx.AbstractVar[int]

    @abc.abstractmethod
    def judge(self, trial: Trial) -> tuple[Bool[Array, ""], Scalar]:
        """Whether to accept the trial, and the step size to try next."""


class Armijo(AbstractSearch):
    """Backtracking with sufficient decrease along the true displacement.

    Accepts if `objective_try <= objective + slope_factor * <gradient, x_try - x>` and the inner product is negative:
    an accepted step never raises the objective.

    Args:
        slope_factor: the constant of the sufficient decrease.
        shrink: the factor of the step size after a rejection.
        grow: `None` starts every search from `first_step_size`; a number starts it from the last accepted step size
            times this.
        first_step_size: where the search starts.
        max_trials: trials per search.

    References:
        L. Armijo, Minimization of functions having Lipschitz continuous first partial derivatives, 1966,
        doi:10.2140/pjm.1966.16.1.
    """

    slope_factor: Any = 1e-4
    shrink: Any = 0.5
    grow: Any = None
    first_step_size: Any = 1.0
    max_trials: int = eqx.field(default=9, static=True)

    def judge(self, trial: Trial) -> tuple[Bool[Array, ""], Scalar]:
        """See `AbstractSearch`."""
        bound = trial.objective_before + self.slope_factor * trial.slope
        accept = (trial.slope < 0) & (trial.objective <= bound)
        after = self.first_step_size if self.grow is None else self.grow * trial.step_size
        return accept, jnp.where(accept, after, self.shrink * trial.step_size)


class PublishedArmijo(AbstractSearch):
    """The line search of the published D-IPG code, for parity runs only.

    Differs from `Armijo` in two ways: the slope is that of the *unprojected* displacement, and it need not be negative;
    so an ascent direction is accepted as long as the objective rises by less than `slope_factor * slope`.

    References:
        A. L. Kachhadiya, Local Inverse Geometry Can Be Amortized, 2026, arXiv:2605.13068.
    """

    slope_factor: Any = 1e-4
    shrink: Any = 0.5
    first_step_size: Any = 1.0
    max_trials: int = eqx.field(default=9, static=True)

    def judge(self, trial: Trial) -> tuple[Bool[Array, ""], Scalar]:
        """See `AbstractSearch`."""
        accept = trial.objective <= trial.objective_before + self.slope_factor * trial.slope_unprojected
        return accept, jnp.where(accept, self.first_step_size, self.shrink * trial.step_size)


class Damping(AbstractSearch):
    """Trust control for damped descents: the step size is the inverse damping, kept from step to step.

    Accepts like `Armijo`. The damping falls where the quadratic model predicts the decrease well and rises where it
    does not.

    Args:
        slope_factor: the constant of the sufficient decrease.
        shrink: the factor of the step size after a rejection.
        grow: the factor after a step whose decrease is at least `good` of the predicted one.
        good: see `grow`; below `1 - good` of the predicted decrease, an accepted step also shrinks the step size.
        first_step_size: the inverse of the first damping, relative to the curvature along the first gradient.
        max_trials: rejections in a row that end the solve.

    References:
        J. J. More, The Levenberg-Marquardt algorithm: implementation and theory, 1978, doi:10.1007/BFb0067700.
    """

    slope_factor: Any = 1e-4
    shrink: Any = 0.125
    grow: Any = 8.0
    good: Any = 0.75
    first_step_size: Any = 1e2
    max_trials: int = eqx.field(default=12, static=True)

    def judge(self, trial: Trial) -> tuple[Bool[Array, ""], Scalar]:
        """See `AbstractSearch`."""
        bound = trial.objective_before + self.slope_factor * trial.slope
        accept = (trial.slope < 0) & (trial.objective <= bound)
        gain = (trial.objective_before - trial.objective) / trial.predicted
        factor = jnp.where(gain >= self.good, self.grow, jnp.where(gain >= 1 - self.good, 1.0, self.shrink))
        largest = 0.1 / jnp.finfo(trial.step_size.dtype).eps  # beyond it the damping is lost in rounding
        return accept, jnp.minimum(jnp.where(accept, factor, self.shrink) * trial.step_size, largest)
