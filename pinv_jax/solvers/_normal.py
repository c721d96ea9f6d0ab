"""The linear systems of Gauss-Newton and Levenberg-Marquardt: `(J'J / m + damping I) p = -gradient`, dense or not.

`lineax` is not called here although it is what the rest of the library uses: the derivative rule of its solves throws
through a host callback, which would put one into every gradient of a solve. `jax.numpy` and `jax.scipy` do the
dense algebra.
"""

import abc
from typing import Any, Generic, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Scalar

from .._problem import Problem
from ._base import Evaluations, Point

Memo = TypeVar("Memo")
Free = Bool[Array, "..."] | None
MOST, PART = 256, 32
"""Columns of a Jacobian that are computed at once; of more, so many at a time. A batch of solves holds for each a copy
of all that the forward map computes: with 80 observations and 512 columns one unfolded layer of a network of 8^3 points
and 12 channels has 80 x 512 x 512 x 324 numbers, 27 GB."""


def _masked(v: Float[Array, "*x"], free: Free) -> Float[Array, "*x"]:
    return v if free is None else jnp.where(free, v, 0.0)


def dense_jacobian(problem: Problem, x: Float[Array, "*x"]) -> tuple[Float[Array, "k n"], Evaluations]:
    """The Jacobian of the misfit vector, by JVPs or VJPs, whichever are fewer."""

    def misfit(flat: Float[Array, " n"]) -> Float[Array, " k"]:
        v = flat.reshape(x.shape)
        return problem.misfit(v, problem.forward(v))

    size_y, size_x = jnp.size(problem.data), x.size
    if size_x <= size_y:
        if size_x <= MOST:
            return jax.jacfwd(misfit)(x.ravel()), Evaluations(f=1, jvp=size_x)
        _, push = jax.linearize(misfit, x.ravel())
        basis = jnp.diag(jax.lax.optimization_barrier(jnp.ones(size_x, x.dtype)))  # else folded, for seconds
        return jax.lax.map(push, basis, batch_size=PART).T, Evaluations(f=1, jvp=size_x)
    return jax.jacrev(misfit)(x.ravel()), Evaluations(f=1, vjp=size_y)


def thin_svd(matrix: Float[Array, "k n"]) -> tuple[Array, Array, Array]:
    """Thin SVD.

    On a CPU by QR iteration: LAPACK's divide and conquer, the default, was measured ten times slower on many small
    matrices, because its threads wait for each other.
    """

    def by_qr(a: Array) -> tuple[Array, Array, Array]:
        u, s, vt = jax.lax.linalg.svd(a, full_matrices=False, algorithm=jax.lax.linalg.SvdAlgorithm.QR)
        return u, s, vt

    def by_default(a: Array) -> tuple[Array, Array, Array]:
        u, s, vt = jax.lax.linalg.svd(a, full_matrices=False)
        return u, s, vt

    return jax.lax.platform_dependent(matrix, cpu=by_qr, default=by_default)


class AbstractNormalSolver(eqx.Module, Generic[Memo]):
    """Solves the damped normal equations of a linearised problem, in the free variables.

    Implementing one: `init` computes what depends on the point alone, `solve` returns the direction for a damping,
    zero where a variable is not free (`free` is `None` where all are), and `curvature` is `||J v||^2 / m`. None
    throws; a direction that is not finite is rejected by the search.
    """

    @abc.abstractmethod
    def init(self, problem: Problem, x: Float[Array, "*x"], point: Point, free: Free) -> tuple[Memo, Evaluations]:
        """What does not depend on the damping."""

    @abc.abstractmethod
    def solve(
        self, problem: Problem, x: Float[Array, "*x"], point: Point, free: Free, memo: Memo, damping: Any
    ) -> tuple[Float[Array, "*x"], Evaluations]:
        """The direction `p`."""

    @abc.abstractmethod
    def curvature(
        self, problem: Problem, x: Float[Array, "*x"], memo: Memo, v: Float[Array, "*x"]
    ) -> tuple[Scalar, Evaluations]:
        """`||J v||^2 / m`."""


class Cholesky(AbstractNormalSolver[Float[Array, "n n"]]):
    """Forms `J'J / m` once per point and factorises it once per damping; needs a positive damping or full rank."""

    def init(
        self, problem: Problem, x: Float[Array, "*x"], point: Point, free: Free
    ) -> tuple[Float[Array, "n n"], Evaluations]:
        """See `AbstractNormalSolver`."""
        jac, work = dense_jacobian(problem, x)
        return jac.T @ jac / point.residual.size, work

    def solve(
        self, problem: Problem, x: Float[Array, "*x"], point: Point, free: Free, memo: Float[Array, "n n"], damping: Any
    ) -> tuple[Float[Array, "*x"], Evaluations]:
        """See `AbstractNormalSolver`."""
        # A lane of a batch that met its tolerance at the start holds zeros: NaN here would be NaN in its derivatives.
        damping = jnp.where(jnp.trace(memo) + damping > 0, damping, 1.0)
        eye = jnp.eye(x.size, dtype=memo.dtype)
        if free is not None:
            kept = free.ravel()
            memo = jnp.where(kept[:, None] & kept[None, :], memo, eye)
        factor = jax.scipy.linalg.cho_factor(memo + damping * eye)
        right = _masked(point.gradient, free).ravel()
        return -jax.scipy.linalg.cho_solve(factor, right).reshape(x.shape), Evaluations()

    def curvature(
        self, problem: Problem, x: Float[Array, "*x"], memo: Float[Array, "n n"], v: Float[Array, "*x"]
    ) -> tuple[Scalar, Evaluations]:
        """See `AbstractNormalSolver`."""
        return v.ravel() @ (memo @ v.ravel()), Evaluations()


class SVD(AbstractNormalSolver[tuple[Array, Array, Array]]):
    """Singular value decomposition of `J`: the minimum-norm direction, for any rank.

    Args:
        rcond: singular values below `rcond` times the largest count as zero; by default the rounding unit times the
            larger dimension.
    """

    rcond: Any = None

    def init(
        self, problem: Problem, x: Float[Array, "*x"], point: Point, free: Free
    ) -> tuple[tuple[Array, Array, Array], Evaluations]:
        """See `AbstractNormalSolver`."""
        jac, work = dense_jacobian(problem, x)
        if free is not None:
            jac = jnp.where(free.ravel()[None, :], jac, 0.0)
        u, s, vt = thin_svd(jac)
        return (u.T @ problem.misfit(x, point.prediction), s, vt), work

    def solve(
        self,
        problem: Problem,
        x: Float[Array, "*x"],
        point: Point,
        free: Free,
        memo: tuple[Array, Array, Array],
        damping: Any,
    ) -> tuple[Float[Array, "*x"], Evaluations]:
        """See `AbstractNormalSolver`."""
        coefficients, s, vt = memo
        rcond = jnp.finfo(s.dtype).eps * max(x.size, point.residual.size) if self.rcond is None else self.rcond
        kept = s > rcond * jnp.max(s)
        gain = jnp.where(kept, s / jnp.where(kept, s**2 + damping * point.residual.size, 1.0), 0.0)
        return -(vt.T @ (gain * coefficients)).reshape(x.shape), Evaluations()

    def curvature(
        self, problem: Problem, x: Float[Array, "*x"], memo: tuple[Array, Array, Array], v: Float[Array, "*x"]
    ) -> tuple[Scalar, Evaluations]:
        """See `AbstractNormalSolver`."""
        _, s, vt = memo
        return jnp.sum((s * (vt @ v.ravel())) ** 2) / jnp.size(problem.data), Evaluations()


class ConjugateGradients(AbstractNormalSolver[None]):
    """Truncated conjugate gradients on the damped normal equations; matrix-free, and its cap is a normal ending.

    One JVP and one VJP per iteration, from one linearisation. A lane of a batch whose gradient is zero does no
    iterations.

    Args:
        rtol: stop once the residual of the linear system is at most this times the gradient.
        max_steps: the largest number of iterations; truncation regularises.

    References:
        T. Steihaug, The conjugate gradient method and trust regions in large scale optimization, 1983,
        doi:10.1137/0720042.
    """

    rtol: Any = 1e-2
    max_steps: int = eqx.field(default=50, static=True)

    def init(self, problem: Problem, x: Float[Array, "*x"], point: Point, free: Free) -> tuple[None, Evaluations]:
        """See `AbstractNormalSolver`."""
        return None, Evaluations()

    def solve(
        self, problem: Problem, x: Float[Array, "*x"], point: Point, free: Free, memo: None, damping: Any
    ) -> tuple[Float[Array, "*x"], Evaluations]:
        """See `AbstractNormalSolver`."""
        _, jvp = problem.misfit_and_tangents(x)
        transpose = jax.linear_transpose(jvp, x)
        size = point.residual.size

        def normal(v: Float[Array, "*x"]) -> Float[Array, "*x"]:
            return _masked(transpose(jvp(_masked(v, free)))[0], free) / size + damping * v

        def iterate(matvec: Any, b: Float[Array, "*x"]) -> tuple[Float[Array, "*x"], Int[Array, ""]]:
            goal = self.rtol**2 * jnp.sum(b**2)

            def cond(carry: Any) -> Any:
                _, r, _, squared, num = carry
                return (squared > goal) & (num < self.max_steps)

            def body(carry: Any) -> Any:
                p, r, d, squared, num = carry
                ad = matvec(d)
                curvature = jnp.sum(d * ad)
                step = jnp.where(curvature > 0, squared / jnp.where(curvature > 0, curvature, 1.0), 0.0)
                r = r - step * ad
                # No curvature left: what remains of the system is rounding.
                after = jnp.where(curvature > 0, jnp.sum(r**2), 0.0)
                return p + step * d, r, r + after / squared * d, after, num + 1

            start = (jnp.zeros_like(b), b, b, jnp.sum(b**2), jnp.zeros((), jnp.int32))
            p, *_, num = jax.lax.while_loop(cond, body, start)
            return p, num

        def project_and_iterate(matvec: Any, b: Float[Array, "*x"]) -> tuple[Float[Array, "*x"], Int[Array, ""]]:
            # A cotangent, unlike a gradient, may lie outside the range of a singular `J'J`: iterations would blow up.
            projected, num = iterate(matvec, matvec(b))
            direction, more = iterate(matvec, projected)
            return direction, num + more

        # custom_linear_solve differentiates the solution, not the iterations.
        direction, num = jax.lax.custom_linear_solve(
            normal, -_masked(point.gradient, free), iterate, project_and_iterate, symmetric=True, has_aux=True
        )
        return direction, Evaluations(f=1, jvp=num, vjp=num)

    def curvature(
        self, problem: Problem, x: Float[Array, "*x"], memo: None, v: Float[Array, "*x"]
    ) -> tuple[Scalar, Evaluations]:
        """See `AbstractNormalSolver`."""
        _, tangent = jax.jvp(lambda x: problem.misfit(x, problem.forward(x)), (x,), (v,))
        return jnp.sum(tangent**2) / jnp.size(problem.data), Evaluations(f=1, jvp=1)
