"""What a solve returns: `Solution`, `Stats`, `History` and the result codes `RESULTS`."""

from typing import Any

import equinox as eqx
import jax.numpy as jnp
import optimistix as optx
from jaxtyping import Array, Bool, Float, Int, Scalar


class RESULTS(optx.RESULTS):  # pyright: ignore[reportGeneralTypeIssues]
    """Why a solve ended; extends `optimistix.RESULTS`. `successful` means the observation is met to tolerance."""

    stationary = (
        "A stationary point of the objective was reached whose residual is above the tolerance: the observation "
        "cannot be met from here. Expected with noisy data and a small `atol`; use `discrepancy` to stop at the noise."
    )
    line_search_failed = (
        "No trial of the line search was acceptable. For a learned inverse this means its proposal is not a descent "
        "direction here: use `solvers.Safeguarded`, or proposal='defect'."
    )


def result_where(pred: Bool[Array, "..."], yes: Any, no: Any) -> RESULTS:
    """`RESULTS.where`, typed for members that `RESULTS` inherits."""
    return RESULTS.where(pred, yes, no)


class Stats(eqx.Module):
    """Counts of one solve: what was done and what it cost.

    Attributes:
        num_steps: accepted steps.
        num_rejected: trials that were evaluated and rejected; tried is the sum of both.
        num_fallbacks: accepted steps that a fallback, not the learned inverse, proposed.
        num_f, num_g, num_jvp, num_vjp: evaluations of the forward map, the inverse, and the derivative products of
            either. Evaluations that a finished lane of a batch repeats in vain are not counted.
        num_idle: turns of a batch's loop that the lane was carried through in vain after it had finished.
        residual_rms: `sqrt(mean((f(x) - data)**2))` at the returned value.
        objective: the objective at the returned value.
    """

    num_steps: Int[Array, "*batch"]
    num_rejected: Int[Array, "*batch"]
    num_fallbacks: Int[Array, "*batch"]
    num_f: Int[Array, "*batch"]
    num_g: Int[Array, "*batch"]
    num_jvp: Int[Array, "*batch"]
    num_vjp: Int[Array, "*batch"]
    num_idle: Int[Array, "*batch"]
    residual_rms: Float[Array, "*batch"]
    objective: Float[Array, "*batch"]

    @property
    def useful(self) -> Scalar:
        """The useful share of the lane-steps of a batch: trials of lanes that had not finished, among all made."""
        useful = jnp.sum(self.num_steps + self.num_rejected, dtype=float)
        made = useful + jnp.sum(self.num_idle, dtype=float)
        return jnp.where(made > 0, useful / jnp.maximum(made, 1.0), 1.0)


class History(eqx.Module):
    """A record per accepted step, of fixed size `K`; slot 0 is the start, unused slots are NaN.

    Attributes:
        objective: the objective.
        residual_rms: the root mean square of the residual.
        step_size: the step size that was accepted (NaN in slot 0).
        rjcp: the data-metric composition defect of the learned inverse, where the solver computes it, else NaN.
    """

    objective: Float[Array, "*batch K"]
    residual_rms: Float[Array, "*batch K"]
    step_size: Float[Array, "*batch K"]
    rjcp: Float[Array, "*batch K"]


class Solution(eqx.Module):
    """The outcome of `solve`: arrays only, so that `jax.jit` and `jax.vmap` may return it.

    Attributes:
        value: the solution `x`.
        result: a `RESULTS` code; `RESULTS[sol.result]` is its message.
        stats: see `Stats`.
        history: see `History`; `None` unless `history=K` was asked for.
    """

    value: Float[Array, "..."]
    result: RESULTS
    stats: Stats
    history: History | None = None

    @property
    def success(self) -> Bool[Array, "..."]:
        """Whether the observation was met to tolerance."""
        return self.result == RESULTS.successful
