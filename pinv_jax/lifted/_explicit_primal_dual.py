"""A gradient step on the data term, a prox of the regulariser: `ExplicitPrimalDual`."""

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


class ExplicitState(PrimalDualState):
    """As `PrimalDualState`; besides, the gradient of the data term."""

    gradient: Float[Array, "*u"]


class ExplicitPrimalDual(AbstractPrimalDual[ExplicitState]):
    """The explicit primal-dual method: a gradient step on `B(data, W u + b)`, a dual one on `alpha G(A u)`.

    With `L = c |W|^2`, `c` the curvature of the activation,

        u' = prox_{t alpha J0}(u - t (W^T (sigma(W u + b) - data) + alpha A^T z)),   z' = P(z + s alpha A (2 u' - u)),

    which converges if `1 / t - s alpha^2 |A|^2 >= L / 2`. A step moves `u` by at most about `alpha / L` of what the
    regulariser asks for: where `alpha` is small against `L` it needs many more steps than `FullSplitting`. For
    regularisers without `A`, this is the proximal gradient method.

    Problem, data, `discrepancy` and the objective as for `FullSplitting`. A solve has succeeded once the
    primal-dual residual, relative to the terms that cancel in it, is at most `rtol`.

    Args:
        alpha: weight of the regulariser, positive.
        regulariser: `J`; total variation by default.
        step_size: `t L`, at most `2 / (1 + theta)`; by default 0.99 of that.
        theta: `s` is `theta` times the largest that any `t` admits for half of the bound, `s = theta L / (2 alpha^2
            |A|^2)`. It matters by orders of magnitude.
        rtol, discrepancy: see `FullSplitting`.
        duals: where the duals start, if not at zero; the first, that of the data, is always `sigma(W u + b) - data`.

    Raises:
        ValueError: `alpha` or `theta` not positive, or a step past its bound. Traced values past it end the solve at
            once, as `nonlinear_divergence`.

    References:
        L. Condat, A primal-dual splitting method for convex optimization involving Lipschitzian, proximable and linear
        composite terms, 2013, doi:10.1007/s10957-012-0245-9. B. C. Vu, A splitting algorithm for dual monotone
        inclusions involving cocoercive operators, 2013, doi:10.1007/s10444-011-9254-8.
    """

    alpha: Any
    regulariser: AbstractRegulariser
    step_size: Any
    theta: Any
    stop: Stop
    duals: tuple[Any, Any] | None

    def __init__(
        self,
        alpha: Any,
        regulariser: Any = None,
        *,
        step_size: Any = None,
        theta: Any = 0.01,
        rtol: Any = 1e-3,
        discrepancy: Any = None,
        duals: tuple[Any, Any] | None = None,
    ):
        self.alpha = check_alpha(alpha)
        self.regulariser = check_regulariser(regulariser)
        if concrete(theta) and not np.all(np.asarray(theta) > 0):
            raise ValueError(f"theta={theta}; expected a positive number, for example 0.01.")
        if step_size is None:
            step_size = 0.99 * 2 / (1 + theta)
        if concrete(step_size) and concrete(theta) and not 0 < step_size <= 2 / (1 + theta):
            raise ValueError(
                f"step_size={step_size} (in units of 1 / L); expected above 0 and at most 2 / (1 + theta) = "
                f"{2 / (1 + theta):.4g}, where 1 / t - s alpha^2 |A|^2 = L / 2: beyond it the energy need not fall."
            )
        self.step_size = step_size
        self.theta = theta
        self.stop = Stop(None, discrepancy, rtol)
        self.duals = duals

    def legal(self) -> Bool[Array, ""]:
        """See `AbstractPrimalDual`."""
        step_size, theta = jnp.asarray(self.step_size), jnp.asarray(self.theta)
        slack = 1e-6
        return (theta > 0) & (step_size > 0) & (step_size * (1 + theta) <= 2 + slack)

    def init(
        self, problem: Problem, x: Float[Array, "*u"], *, key: PRNGKeyArray | None = None
    ) -> tuple[Float[Array, "*u"], ExplicitState]:
        """See `AbstractSolver`."""
        del key
        x, forward, common = self.begin(problem, x, Evaluations(f=1, vjp=1))
        p = forward.activation(common.affine) - common.data
        parts: dict[str, Any] = vars(common) | {"dual": p}
        return x, ExplicitState(**parts, gradient=forward.adjoint(p))

    def step(
        self, problem: Problem, x: Float[Array, "*u"], state: ExplicitState
    ) -> tuple[Float[Array, "*u"], ExplicitState]:
        """See `AbstractSolver`."""
        forward, regulariser = as_perceptron(problem.forward, "ExplicitPrimalDual"), self.regulariser
        alpha, bound = self.alpha, regulariser.norm_bound(x)
        lipschitz = forward.activation.curvature * state.norm**2
        step = self.step_size / lipschitz
        dual_step = self.theta * lipschitz / (2 * (alpha * bound) ** 2) if bound > 0 else 1.0

        from_regulariser = alpha * regulariser.adjoint(state.regulariser_dual, x)
        u = self.prox(problem, x - step * (state.gradient + from_regulariser), step * alpha)
        z = regulariser.dual_project(state.regulariser_dual + dual_step * alpha * regulariser.analysis(2 * u - x))
        affine = forward.affine(u)
        p = forward.activation(affine) - state.data
        gradient, after = forward.adjoint(p), alpha * regulariser.adjoint(z, x)

        moved = (x - u) / step - state.gradient + gradient - from_regulariser + after
        turned = (state.regulariser_dual - z) / (dual_step * alpha) + regulariser.analysis(u - x)
        defect = jnp.maximum(ratio(norm(moved), norm(gradient) + norm(after)), ratio(norm(turned), bound * norm(u)))
        record = self.reported(
            problem, forward, u, state.data, affine, state.record, jnp.asarray(step), Evaluations(f=1, vjp=1)
        )
        return u, ExplicitState(
            record=record,
            data=state.data,
            norm=state.norm,
            affine=affine,
            dual=p,
            regulariser_dual=z,
            defect=defect.astype(x.dtype),
            legal=state.legal,
            gradient=gradient,
        )
