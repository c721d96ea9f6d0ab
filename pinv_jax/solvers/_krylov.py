"""Lanczos with full reorthogonalisation, and what is made of it: `H^+ b` and the leading eigenpairs of `H`.

For symmetric matrices that are only ever applied. Every step keeps one vector, and orthogonality to all of them: the
short recurrence of conjugate gradients would need none, but loses directions of little curvature to rounding, and a
singular matrix would have to be regularised before it is known where.
"""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Scalar

Matvec = Callable[..., Any]


class Tridiagonal(eqx.Module):
    """`H` on a Krylov space: `basis H basis^T` is tridiagonal. Rows beyond `num` are zero.

    Attributes:
        basis: orthonormal rows (in the metric of the inverse preconditioner, if there is one).
        diagonal: of the tridiagonal matrix.
        coupling: entry `j` couples the rows `j` and `j + 1`; the one of the last row says what the space leaves out.
        num: dimension of the space.
        size: norm of the start.
    """

    basis: Float[Array, "k n"]
    diagonal: Float[Array, " k"]
    coupling: Float[Array, " k"]
    num: Int[Array, ""]
    size: Scalar

    def eigh(self) -> tuple[Float[Array, " k"], Float[Array, "k k"]]:
        """Eigenvalues in ascending order, and eigenvectors in coordinates of the basis; zeros for unused rows."""
        inner = jnp.where(jnp.arange(self.diagonal.size) < self.num - 1, self.coupling, 0.0)[:-1]
        return jnp.linalg.eigh(jnp.diag(self.diagonal) + jnp.diag(inner, 1) + jnp.diag(inner, -1))

    def last_coupling(self) -> Scalar:
        """The coupling of the space to what it leaves out."""
        return self.coupling[jnp.maximum(self.num - 1, 0)]


def lanczos(
    matvec: Matvec, start: Float[Array, " n"], num: int, *, rtol: Any = 0.0, precondition: Matvec | None = None
) -> Tridiagonal:
    """Steps of the Lanczos method, until the space is invariant, or holds the solution of `H x = start` to `rtol`.

    Args:
        matvec: `v -> H v`, symmetric.
        start: the first vector.
        num: steps at most.
        rtol: of the residual of `H x = start`, relative to `start`; estimated as conjugate gradients would know it.
        precondition: `v -> M v`, symmetric positive definite, about the inverse of `H`.

    References:
        B. N. Parlett, The Symmetric Eigenvalue Problem, 1998, chapter 13, doi:10.1137/1.9781611971163.
        N. I. M. Gould, S. Lucidi, M. Roma, Ph. L. Toint, Solving the trust-region subproblem using the Lanczos method,
        1999, doi:10.1137/S1052623497322735 (the preconditioned form).
    """
    dtype, n = start.dtype, start.size
    tiny, eps = jnp.finfo(dtype).tiny, jnp.finfo(dtype).eps
    smooth = precondition if precondition is not None else lambda v: v

    def norm(t: Array, y: Array) -> Array:
        return jnp.sqrt(jnp.maximum(t @ y, 0.0))

    def going(carry: Any) -> Bool[Array, ""]:
        *_, gamma, j, scale, _, _, residual, first = carry
        return (j < num) & (gamma > eps * scale + tiny) & (residual > rtol * first)

    def turn(carry: Any) -> Any:
        duals, basis, diagonal, coupling, t, y, gamma, j, scale, pivot, entry, _, first = carry
        dual, q = t / gamma, y / gamma
        duals, basis = duals.at[j].set(dual), basis.at[j].set(q)
        hq = matvec(q)
        alpha = q @ hq
        t = hq
        for _ in range(2):  # twice is enough
            t = t - duals.T @ (basis @ t)
        y = smooth(t)
        after = norm(t, y)
        # The pivots of the factorised tridiagonal matrix: what conjugate gradients would know of the residual.
        back = jnp.where(j > 0, coupling[jnp.maximum(j - 1, 0)] / jnp.where(pivot == 0, 1.0, pivot), 0.0)
        entry = jnp.where(j > 0, -back * entry, entry)
        pivot = alpha - jnp.where(j > 0, coupling[jnp.maximum(j - 1, 0)] * back, 0.0)
        residual = jnp.where(pivot > 0, after * jnp.abs(entry) / jnp.where(pivot > 0, pivot, 1.0), jnp.inf)
        diagonal, coupling = diagonal.at[j].set(alpha), coupling.at[j].set(after)
        scale = jnp.maximum(scale, jnp.abs(alpha) + after)
        return duals, basis, diagonal, coupling, t, y, after, j + 1, scale, pivot, entry, residual, first

    y = smooth(start)
    first, zero = norm(start, y), jnp.zeros((), dtype)
    rows, line = jnp.zeros((num, n), dtype), jnp.zeros(num, dtype)
    one = jnp.ones((), dtype)
    state = (rows, rows, line, line, start, y, first, jnp.zeros((), jnp.int32), zero, one, first, first + tiny, first)
    _, basis, diagonal, coupling, *_, after, steps, _, _, _, _, _ = jax.lax.while_loop(going, turn, state)
    return Tridiagonal(basis, diagonal, coupling, steps, first)


def pseudo_solve(
    matvec: Matvec,
    right: Float[Array, " n"],
    *,
    max_steps: int,
    rtol: Any,
    rcond: Any,
    precondition: Matvec | None = None,
) -> tuple[Float[Array, " n"], Scalar, Bool[Array, ""]]:
    """`H^+ b` of a symmetric positive semi-definite matrix: eigenvalues within `rcond` of zero count as zero.

    With a preconditioner `M` the eigenvalues are those of `M H`, and the solution is the one of least norm in the
    metric of `M^-1`.

    Returns:
        The solution; how much of its norm rounding may be; whether it is one: the method has converged, and met no
        negative curvature.
    """
    steps, eps = min(right.size, max_steps), jnp.finfo(right.dtype).eps
    tri = lanczos(matvec, right, steps, rtol=rtol, precondition=precondition)
    values, vectors = tri.eigh()
    largest = jnp.max(jnp.abs(values))
    kept = (jnp.abs(values) > rcond * largest) & (values != 0)
    parts = jnp.where(kept, tri.size * vectors[0] / jnp.where(kept, values, 1.0), 0.0)
    coordinates = vectors @ parts
    # An eigenvalue is known to a few rounding units of the largest one.
    doubt = jnp.where(kept, jnp.minimum(4 * eps * largest / jnp.where(kept, jnp.abs(values), 1.0), 1.0), 0.0)
    coupling = tri.last_coupling()
    # Of a space that is invariant, or the whole, rounding is left; that is for the doubt to judge.
    coupling = jnp.where((coupling <= 10 * eps * largest) | (tri.num == right.size), 0.0, coupling)
    last = jnp.maximum(jnp.abs(coordinates[jnp.maximum(tri.num - 1, 0)]) - 10 * eps * jnp.linalg.norm(parts), 0.0)
    converged = coupling * last <= 10 * rtol * tri.size
    finite, convex = jnp.isfinite(tri.size), jnp.all((values >= 0) | ~kept | (doubt == 1.0))
    solution = jnp.where(finite, tri.basis.T @ coordinates, jnp.nan)
    share = jnp.linalg.norm(parts * doubt) / jnp.where(tri.size > 0, jnp.linalg.norm(parts), 1.0)
    return solution, share, converged & convex & finite
