"""D-IPG, steps proposed by a learned inverse: `x + relaxation * (g(y - step_size * residual) - g(y))`, `y = f(x)`."""

from typing import Any, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Scalar

from .._problem import Problem
from ..maps import store
from ._base import Evaluations, Point, Stop
from ._check import check_inverse
from ._descent import AbstractDescent, AbstractDescentSolver
from ._search import AbstractSearch, Armijo
from ._trust import Trust

Proposal = Literal["paper", "defect", "jvp"]
Memo = Float[Array, "*x"] | None


class LearnedDescent(AbstractDescent[Memo]):
    """The curve that a learned inverse proposes.

    With `y = f(x)`, `r = f(x) - data`, step size `a`:

    - `"defect"`: `g(y - a r) - g(y)`, which vanishes at `a = 0`, whatever the reconstruction error of `g`;
    - `"jvp"`: `-a G r`, with `G` the Jacobian of `g` at `y`;
    - `"paper"`: `g(y - a r) - x`. At `a = 1` this is `g(data) - x` for every `x`, and at `a = 0` it is the
      reconstruction error `g(f(x)) - x`, which backtracking cannot get below.
    """

    inverse: Any
    proposal: Proposal = eqx.field(static=True)
    relaxation: Any

    def init(self, problem: Problem, x: Float[Array, "*x"], point: Point) -> tuple[Memo, Evaluations]:
        """See `AbstractDescent`."""
        if self.proposal == "paper":
            return None, Evaluations()
        if self.proposal == "defect":
            return self.inverse(point.prediction), Evaluations(g=1)
        _, direction = jax.jvp(self.inverse, (point.prediction,), (-point.residual,))
        return direction, Evaluations(g=1, jvp=1)

    def displacement(
        self, problem: Problem, x: Float[Array, "*x"], point: Point, memo: Memo, step_size: Scalar
    ) -> tuple[Float[Array, "*x"], Evaluations]:
        """See `AbstractDescent`."""
        if self.proposal == "jvp":
            return self.relaxation * step_size * memo, Evaluations()
        anchor = x if self.proposal == "paper" else memo
        return self.relaxation * (self.inverse(point.prediction - step_size * point.residual) - anchor), Evaluations(
            g=1
        )


def jump(inverse: Any, problem: Problem, x: Float[Array, "*x"]) -> tuple[Float[Array, "*x"], Evaluations]:
    """`g(data)` where its objective is lower than that of `x`, else `x`."""
    x_jump = problem.feasible(inverse(problem.data))
    before = problem.merit(x, problem.forward(x))
    after = problem.merit(x_jump, problem.forward(x_jump))
    return jnp.where(after < before, x_jump, x), Evaluations(f=2, g=1)


class DIPG(AbstractDescentSolver):
    """Deceptron inverse-preconditioned gradient: the learned inverse replaces the linear solve of Gauss-Newton.

    Where `g` inverts `f` locally (its Jacobian composition defect is small), the step is a Gauss-Newton step at the
    price of one evaluation of `g`; `diagnostics.gauss_newton_deviation` bounds the difference.

    Args:
        inverse: `g: y -> x` on one example; for an `InversePair`, `pair.inverse`.
        proposal: `"defect"` (default) or `"jvp"`, the forms that converge; `"paper"`, the published one, for parity.
        relaxation: multiplies every displacement; 0.4 in the published code.
        atol, discrepancy, rtol: see `Stop`.
        search: by default `Armijo()`; `PublishedArmijo()` for parity.
        jump_first: start from `g(data)` if that has a lower objective than `x0`; by default true except for the
            `"paper"` proposal, which makes that jump by itself.
        trust: optional `Trust`: its value is recorded along the trajectory (`history=K`), and costs its probes.

    Raises:
        ValueError: for an unknown proposal.

    References:
        A. L. Kachhadiya, Local Inverse Geometry Can Be Amortized, 2026, arXiv:2605.13068. The defect and JVP forms and
        the jump are ours.
    """

    descent: LearnedDescent
    search: AbstractSearch
    stop: Stop
    jump_first: bool = eqx.field(static=True)
    trust: Trust | None

    def __init__(
        self,
        inverse: Any,
        *,
        proposal: Proposal = "defect",
        relaxation: Any = 1.0,
        atol: Any = 1e-6,
        discrepancy: Any = None,
        rtol: Any = None,
        search: AbstractSearch | None = None,
        jump_first: bool | None = None,
        trust: Trust | None = None,
    ):
        if proposal not in ("paper", "defect", "jvp"):
            raise ValueError(f"proposal={proposal!r} is unknown; use 'defect', 'jvp' or 'paper'.")
        self.descent = LearnedDescent(store(inverse), proposal, relaxation)
        self.search = Armijo() if search is None else search
        self.stop = Stop(atol, discrepancy, rtol)
        self.jump_first = proposal != "paper" if jump_first is None else jump_first
        self.trust = trust

    def check(self, problem: Problem, x: Float[Array, "*x"]) -> None:
        """See `AbstractSolver`."""
        check_inverse(self.descent.inverse, problem.data, x)

    def start(self, problem: Problem, x: Float[Array, "*x"]) -> tuple[Float[Array, "*x"], Evaluations]:
        """Jumps to `g(data)` if that helps."""
        return jump(self.descent.inverse, problem, x) if self.jump_first else (x, Evaluations())

    def rjcp(self, problem: Problem, x: Float[Array, "*x"]) -> tuple[Scalar, Evaluations]:
        """The value of `trust` at `x`."""
        if self.trust is None:
            return super().rjcp(problem, x)
        return self.trust(problem.forward, self.descent.inverse, x)
