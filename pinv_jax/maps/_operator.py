"""Linear surjections without a matrix: `A^+ y = A^T (A A^T)^-1 y` by conjugate gradients, to rounding."""

import abc
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
from jax.core import Tracer
from jax.scipy.sparse.linalg import cg
from jaxtyping import Array, Float

from ._base import AbstractSurjection


class AbstractOperatorSurjection(AbstractSurjection[Float[Array, "*x"]]):
    """`y = A x` for a linear map of full row rank that is only ever applied, never formed.

    `split(x) = (A x, x - A^+ A x)` and `merge(y, z) = z + A^+ (y - A z)`, so that `z` lives in the coordinates of `x`:
    `n` numbers that satisfy `A z = 0`. `merge` accepts any `z` of that shape and uses its projection, hence
    `f(merge(y, z)) == y` for every `z`, while `split(merge(y, z))` returns the projected one. `section` is zero, so
    `pinv` is the Moore-Penrose pseudo-inverse.

    With a condition number of `c`, a digit of `A^+ y` costs at most about `1.2 c` products with `A` and with `A^T`; a
    second, short solve for what rounding left of `y - A x` brings consistency to the machine precision. Derivatives are
    implicit: they reach `x`, `y` and the parameters of `A` in both modes, by one more solve each.

    Implementing a matrix-free surjection:

    - `mv(x)`, a linear function of one array of any shape; its transpose comes from `jax.linear_transpose`;
    - `in_structure`, as for any map, and the static field `max_steps`, the most steps of a solve;
    - `__init__` ends with `self.check_rank()`.
    """

    max_steps: eqx.AbstractVar[int]

    @abc.abstractmethod
    def mv(self, x: Float[Array, "*x"]) -> Float[Array, "*y"]:
        """`A x`."""

    def split(self, x: Float[Array, "*x"]) -> tuple[Float[Array, "*y"], Float[Array, "*x"]]:
        """`(A x, x - A^+ A x)`."""
        with jax.default_matmul_precision("highest"):
            y = self.mv(x)
            return y, x - self._least_norm(y)

    def merge(self, y: Float[Array, "*y"], z: Float[Array, "*x"]) -> Float[Array, "*x"]:
        """`z + A^+ (y - A z)`."""
        with jax.default_matmul_precision("highest"):
            return z + self._least_norm(y - self.mv(z))

    def section(self, y: Float[Array, "*y"]) -> Float[Array, "*x"]:
        """Zeros: the null-space component of least norm."""
        return jnp.zeros(self.in_structure().shape, y.dtype)

    def transpose(self, w: Float[Array, "*y"]) -> Float[Array, "*x"]:
        """`A^T w`."""
        with jax.default_matmul_precision("highest"):
            return jax.linear_transpose(self.mv, self.in_structure())(w)[0]

    def smallest_singular_value(self, num_iterations: int = 8) -> Float[Array, ""]:
        """The smallest singular value of `A` by inverse iteration: from above, mostly to a few per cent."""
        structure = jax.eval_shape(self.mv, self.in_structure())
        w = jax.random.normal(jax.random.key(0), structure.shape, structure.dtype)
        with jax.default_matmul_precision("highest"):
            tol = float(jnp.finfo(w.dtype).eps) ** 0.5
            w = jax.lax.fori_loop(0, num_iterations, lambda _, w: self._solve(w / jnp.linalg.norm(w), tol), w)
            return jnp.linalg.norm(self.transpose(w)) / jnp.linalg.norm(w)

    def check_rank(self) -> None:
        """Outside of tracing, checks the shapes and that the least-norm `x` for a random `y` gives back that `y`.

        Raises:
            ValueError: there are more outputs than inputs, or the solve does not meet `y` to half the digits.
        """
        x, y = self.in_structure(), jax.eval_shape(self.mv, self.in_structure())
        if y.size > x.size:
            raise ValueError(
                f"{type(self).__name__} expected at most as many outputs as inputs, got a map from shape {x.shape} to "
                f"{y.shape}. Use LinearMap(operator, method='lsmr') for a least-squares pseudo-inverse."
            )
        missed = _missed(self)
        if not isinstance(missed, Tracer) and not missed <= jnp.finfo(x.dtype).eps ** 0.5:
            raise ValueError(
                f"{type(self).__name__} expected a map of full row rank from shape {x.shape} to {y.shape}, but for a "
                f"random y the residual is {missed:.1e} |y| after max_steps={self.max_steps}; the smallest singular "
                f"value is at most {_smallest(self):.1e}. If outputs are linearly dependent, drop them, or use "
                "LinearMap(operator, method='lsmr'), whose pinv is rank-aware; if the map is only badly conditioned, "
                "raise max_steps or use float64."
            )

    def _least_norm(self, y: Float[Array, "*y"]) -> Float[Array, "*x"]:
        eps = float(jnp.finfo(y.dtype).eps)
        x = self.transpose(self._solve(y, tol=10 * eps))
        return x + self.transpose(self._solve(y - self.mv(x), tol=eps**0.5))

    def _solve(self, b: Float[Array, "*y"], tol: float) -> Float[Array, "*y"]:
        """`(A A^T)^-1 b`; jax differentiates the solution of this symmetric system, not the iterations."""
        # Squared residuals would underflow in float32 for a small b, such as the residual of the first solve.
        scale = jax.lax.stop_gradient(jnp.max(jnp.abs(b)))
        scale = jnp.where(scale == 0, 1, scale)
        return scale * cg(lambda w: self.mv(self.transpose(w)), b / scale, tol=tol, maxiter=self.max_steps)[0]


class OperatorSurjection(AbstractOperatorSurjection):
    """`y = A x` for a `lineax` operator of full row rank, matrix-free; see `AbstractOperatorSurjection`.

    For a small dense matrix `LinearSurjection` is faster, and its `z` has no redundant coordinates.

    Args:
        operator: from one array to one array, of any shapes, for instance
            `lx.FunctionLinearOperator(fn, jax.ShapeDtypeStruct(shape, dtype))` for a linear function `fn`.
        max_steps: the most conjugate-gradient steps of a solve.

    Raises:
        ValueError: the operator acts on pytrees, has more outputs than inputs, or its rows are linearly dependent.
    """

    arrays: lx.AbstractLinearOperator
    rest: lx.AbstractLinearOperator = eqx.field(static=True)
    max_steps: int = eqx.field(static=True)

    def __init__(self, operator: lx.AbstractLinearOperator, max_steps: int = 2000):
        self.arrays, self.rest = partition_operator(operator, "OperatorSurjection")
        self.max_steps = max_steps
        self.check_rank()

    @property
    def operator(self) -> lx.AbstractLinearOperator:
        """`A` as a `lineax` operator."""
        return eqx.combine(self.arrays, self.rest)

    def mv(self, x: Float[Array, "*x"]) -> Float[Array, "*y"]:
        """`A x`."""
        return self.operator.mv(x)

    def in_structure(self) -> jax.ShapeDtypeStruct:
        """Shape and dtype of `x`."""
        return self.operator.in_structure()


def partition_operator(operator: lx.AbstractLinearOperator, name: str) -> tuple[Any, Any]:
    """The operator as arrays and a static rest; refuses pytrees on behalf of the class `name`."""
    for structure in (operator.in_structure(), operator.out_structure()):
        if not isinstance(structure, jax.ShapeDtypeStruct):
            raise ValueError(
                f"{name} expected an operator from one array to one array, got the structure {structure}. "
                "Write Ravelled(operator.mv, example) to see pytrees as flat arrays."
            )
    # Operators made from functions have the function as a leaf, which jax.jit does not accept as an argument.
    return eqx.partition(operator, eqx.is_array)


@jax.jit
def _missed(f: AbstractOperatorSurjection) -> Float[Array, ""]:
    structure = jax.eval_shape(f.mv, f.in_structure())
    y = jax.random.normal(jax.random.key(1), structure.shape, structure.dtype)
    return jnp.linalg.norm(f.mv(f.pinv(y)) - y) / jnp.linalg.norm(y)


@jax.jit
def _smallest(f: AbstractOperatorSurjection) -> Float[Array, ""]:
    return f.smallest_singular_value()
