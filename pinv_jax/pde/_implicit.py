"""Linear systems `A u = b` inside a map: preconditioned conjugate gradients, differentiated implicitly, and SDIRK2."""

from collections.abc import Callable
from typing import Any, ClassVar

import diffrax
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Integer


def solve_spd(
    matvec: Callable[[Any], Any],
    b: Float[Array, "*u"],
    preconditioner: Callable[[], Callable[[Any], Any]],
    *,
    max_steps: int = 500,
) -> Float[Array, "*u"]:
    """`A^-1 b` for a symmetric positive definite `A`, matrix-free.

    Derivatives in both modes reach `b` and whatever `matvec` closes over, by one more solve each; the iterations are
    not differentiated. Under `jax.vmap` the lanes do not see each other: a lane that fails is NaN and ends nothing.

    Args:
        matvec: `u -> A u`, linear, for arrays of the shape of `b`.
        b: the right-hand side, any shape.
        preconditioner: called with no argument, returns `r -> M^-1 r` for a symmetric positive definite `M` near `A`.
            It is called once per solve, and never differentiated.
        max_steps: the most steps; see `conjugate_gradients`.

    Returns:
        `A^-1 b`, or NaN as in `conjugate_gradients`.
    """

    def solve(matvec, b):
        return conjugate_gradients(matvec, b, preconditioner(), max_steps=max_steps)[0]

    return jax.lax.custom_linear_solve(matvec, b, solve, symmetric=True)


def conjugate_gradients(
    matvec: Callable[[Any], Any],
    b: Float[Array, "*u"],
    precondition: Callable[[Any], Any],
    *,
    max_steps: int = 500,
) -> tuple[Float[Array, "*u"], Integer[Array, ""]]:
    """Preconditioned conjugate gradients, from zero to a residual of 10 roundings.

    The residual is measured by `sqrt(r^T M^-1 r)`, which is the energy norm of the error where `M = A`, and no
    matter how fine the grid: the Euclidean norm of `r` would be that of its highest frequencies.

    Args:
        matvec: `u -> A u`.
        b: the right-hand side.
        precondition: `r -> M^-1 r`.
        max_steps: the most steps; each is one product with `A` and one with `M^-1`.

    Returns:
        The solution and the number of steps. The solution is NaN where the residual is not finite, or has not fallen by
        half the digits of the dtype within `max_steps`.

    References:
        M. R. Hestenes, E. Stiefel, "Methods of conjugate gradients for solving linear systems", J. Res. Nat. Bur.
        Stand. 49(6), 1952, doi:10.6028/jres.049.044.
    """
    eps = float(jnp.finfo(b.dtype).eps)
    scale = jnp.max(jnp.abs(b))  # squares of a small b would underflow in float32
    scale = jnp.where(scale == 0, 1, scale)
    residual = b / scale
    direction = precondition(residual)
    first = jnp.sum(residual * direction)

    def unfinished(state):
        *_, energy, step = state
        return (energy > (10 * eps) ** 2 * first) & (step < max_steps)  # False where the energy is NaN

    def body(state):
        u, residual, direction, energy, step = state
        image = matvec(direction)
        length = energy / jnp.sum(direction * image)
        residual = residual - length * image
        preconditioned = precondition(residual)
        after = jnp.sum(residual * preconditioned)
        u = u + length * direction
        return u, residual, preconditioned + after / energy * direction, after, step + 1

    state = (jnp.zeros_like(b), residual, direction, first, jnp.zeros((), jnp.int32))
    u, _, _, energy, step = jax.lax.while_loop(unfinished, body, state)
    converged = jnp.isfinite(first) & (energy <= eps * first)
    return jnp.where(converged, scale * u, jnp.nan), step


class AffineSDIRK2(diffrax.AbstractSolver):
    """Alexander's diagonally implicit Runge-Kutta method of order 2 for `u' = F(t, u)` with `F` affine in `u`.

    With `g = 1 - 1 / sqrt(2)` and step `h`, both stages solve a system with the same matrix:
    `(1 - g h F') k_1 = F(u)`, `(1 - g h F') k_2 = F(u + (1 - g) h k_1)`, and `u + h ((1 - g) k_1 + g k_2)` is the next
    state. L-stable: steps longer than the fastest time scales damp them, and the stationary state is exact.
    The implicit solvers of diffrax find roots by factorising a dense Jacobian; here the problem brings its own solve.

    Args:
        resolvent: `(tau, b, args) -> (1 - tau F')^-1 b`, for instance by `solve_spd`.

    References:
        R. Alexander, "Diagonally implicit Runge-Kutta methods for stiff O.D.E.'s", SIAM J. Numer. Anal. 14(6), 1977,
        doi:10.1137/0714068.
    """

    resolvent: Callable[..., Array]
    term_structure: ClassVar = diffrax.ODETerm
    interpolation_cls: ClassVar = diffrax.LocalLinearInterpolation

    def order(self, terms: Any) -> int:
        """Two."""
        return 2

    def init(self, terms: Any, t0: Any, t1: Any, y0: Any, args: Any) -> None:
        """No state."""

    def step(self, terms: Any, t0: Any, t1: Any, y0: Any, args: Any, solver_state: Any, made_jump: Any) -> Any:
        """One step, without an error estimate."""
        g = 1 - 0.5**0.5
        h = t1 - t0
        k1 = self.resolvent(g * h, terms.vf(t0 + g * h, y0, args), args)
        k2 = self.resolvent(g * h, terms.vf(t1, y0 + (1 - g) * h * k1, args), args)
        y1 = y0 + h * ((1 - g) * k1 + g * k2)
        return y1, None, {"y0": y0, "y1": y1}, None, diffrax.RESULTS.successful

    def func(self, terms: Any, t0: Any, y0: Any, args: Any) -> Any:
        """`F(t0, y0)`."""
        return terms.vf(t0, y0, args)
