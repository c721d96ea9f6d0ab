"""Both terms of the energy met by a prox: `FullSplitting`."""

from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from .._problem import Problem
from ..solvers import Evaluations, Stop
from ..solvers._check import concrete
from ._functionals import AbstractRegulariser
from ._perceptron import as_perceptron
from ._primal_dual import AbstractPrimalDual, PrimalDualState, check_alpha, check_regulariser, norm, ratio


class FullSplittingState(PrimalDualState):
    """As `PrimalDualState`; besides, the extrapolated point `2 u - u_before`, and `affine` there."""

    ahead: Float[Array, "*u"]
    affine_ahead: Float[Array, "*y"]


class FullSplitting(AbstractPrimalDual[FullSplittingState]):
    """Primal-dual hybrid gradients that meet the data term `B(data, .)` by its prox, not by its gradient.

    The energy `B(data, W u + b) + alpha (G(A u) + J0(u))` is split off both `W` and `A`, each with a dual variable of
    its own, `p` and `z`. With `u'' = 2 u - u_before`,

        p <- prox_{s1 phi}(p + s1 (W u'' + b) + data) - data,   z <- P(z + s2 alpha A u''),
        u <- prox_{t alpha J0}(u - t (W^T p + alpha A^T z)),

    `P` the projection onto the dual ball of `G`. No step size is tied to the curvature of the data term, so that weak
    regularisation costs no more steps than strong. One product with `W` and one with `W^T` a step.

    A solve has succeeded once the primal-dual residual, relative to the terms that cancel in it, is at most `rtol`: `u`
    is then a minimiser to that tolerance. With a `discrepancy` it has succeeded as soon as the residual
    `sigma(W u + b) - data` is at the level of the noise, and a minimiser that is not is `stationary`. The objective in
    `stats` is the energy, which need not fall at every step.

    `problem.forward` is a `Perceptron`, or a network of one layer. The data are first made admissible, see
    `admissible_data`: projected onto the domain of the activation always, thresholded where the problem has a
    `noise_std`. `problem.project` is taken into `J0`. `dual_variable` gives `p` at the solution.

    Args:
        alpha: weight of the regulariser, positive.
        regulariser: `J`; total variation by default.
        step_size: `t alpha`, the shrinkage a step may cause: about 0.01 to 0.03 of the range of the entries of `u`.
        shares: of the bound `t (s1 |W|^2 + s2 alpha^2 |A|^2) <= 1`, for `s1` and `s2`; their sum is at most one.
        rtol: see above.
        discrepancy: see above; the problem must have a `noise_std`.
        duals: where `p` and `z` start, if not at zero.

    Raises:
        ValueError: `alpha` or `step_size` not positive, shares past their bound. Traced values past them end the solve
            at once, as `nonlinear_divergence`.

    References:
        A. Chambolle, T. Pock, A first-order primal-dual algorithm for convex problems with applications to imaging,
        2011, doi:10.1007/s10851-010-0251-1. X. Wang, M. Benning, A lifted Bregman formulation for the inversion of
        deep neural networks, 2023, arXiv:2303.01965. T. Goldstein, M. Li, X. Yuan, Adaptive primal-dual splitting
        methods for statistical learning and image processing, 2015 (the residual).
    """

    alpha: Any
    regulariser: AbstractRegulariser
    step_size: Any
    shares: tuple[Any, Any]
    stop: Stop
    duals: tuple[Any, Any] | None

    def __init__(
        self,
        alpha: Any,
        regulariser: Any = None,
        *,
        step_size: Any = 0.01,
        shares: tuple[Any, Any] = (0.49, 0.49),
        rtol: Any = 1e-3,
        discrepancy: Any = None,
        duals: tuple[Any, Any] | None = None,
    ):
        self.alpha = check_alpha(alpha)
        self.regulariser = check_regulariser(regulariser)
        if concrete(step_size) and not np.all(np.asarray(step_size) > 0):
            raise ValueError(f"step_size={step_size}; expected a positive number, for example 0.01.")
        first, second = shares
        if concrete(first) and concrete(second) and (min(first, second) <= 0 or first + second > 1):
            raise ValueError(
                f"shares={shares}; expected two positive numbers of sum at most 1, the bound of "
                f"t (s1 |W|^2 + s2 alpha^2 |A|^2); the largest second one is {1 - first:.3g}."
            )
        self.step_size = step_size
        self.shares = (first, second)
        self.stop = Stop(None, discrepancy, rtol)
        self.duals = duals

    def legal(self) -> Bool[Array, ""]:
        """See `AbstractPrimalDual`."""
        first, second = (jnp.asarray(share) for share in self.shares)
        slack = 1e-6  # of 0.49 + 0.51 in float32
        return (first > 0) & (second > 0) & (first + second <= 1 + slack) & (jnp.asarray(self.step_size) > 0)

    def init(
        self, problem: Problem, x: Float[Array, "*u"], *, key: PRNGKeyArray | None = None
    ) -> tuple[Float[Array, "*u"], FullSplittingState]:
        """See `AbstractSolver`."""
        del key
        x, _, common = self.begin(problem, x, Evaluations(f=1))
        return x, FullSplittingState(**vars(common), ahead=x, affine_ahead=common.affine)

    def step(
        self, problem: Problem, x: Float[Array, "*u"], state: FullSplittingState
    ) -> tuple[Float[Array, "*u"], FullSplittingState]:
        """See `AbstractSolver`."""
        forward, regulariser = as_perceptron(problem.forward, "FullSplitting"), self.regulariser
        alpha, (first, second) = self.alpha, self.shares
        bound = regulariser.norm_bound(x)
        step = self.step_size / alpha
        if bound == 0:
            first = first + second
        data_step = first / (step * state.norm**2)
        regulariser_step = second / (step * (alpha * bound) ** 2) if bound > 0 else 1.0

        p = forward.activation.prox_gap_conjugate(state.dual + data_step * state.affine_ahead, state.data, data_step)
        analysis_ahead = regulariser.analysis(state.ahead)
        z = regulariser.dual_project(state.regulariser_dual + regulariser_step * alpha * analysis_ahead)
        from_data, from_regulariser = forward.adjoint(p), alpha * regulariser.adjoint(z, x)
        u = self.prox(problem, x - step * (from_data + from_regulariser), step * alpha)
        affine = forward.affine(u)

        defects = (
            ratio(norm(x - u) / step, norm(from_data) + norm(from_regulariser)),
            ratio(norm((state.dual - p) / data_step + state.affine_ahead - affine), norm(affine) + norm(state.data)),
            ratio(
                norm(
                    (state.regulariser_dual - z) / (regulariser_step * alpha) + analysis_ahead - regulariser.analysis(u)
                ),
                bound * norm(u),
            ),
        )
        record = self.reported(
            problem, forward, u, state.data, affine, state.record, jnp.asarray(step), Evaluations(f=1, vjp=1)
        )
        return u, FullSplittingState(
            record=record,
            data=state.data,
            norm=state.norm,
            affine=affine,
            dual=p,
            regulariser_dual=z,
            defect=jnp.max(jnp.stack(defects)).astype(x.dtype),
            legal=state.legal,
            ahead=2 * u - x,
            affine_ahead=2 * affine - state.affine,
        )
