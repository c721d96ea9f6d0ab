"""Linear maps `y = A x` with their Moore-Penrose pseudo-inverse."""

import math
from typing import Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
from jax.core import Tracer
from jaxtyping import Array, Float, Int

from ._base import AbstractMap, AbstractSurjection
from ._lsmr import lsmr_pinv
from ._operator import partition_operator

Factors = tuple[Float[Array, "m k"], Float[Array, " k"], Float[Array, "k n"]]


class LinearMap(AbstractMap):
    """`y = A x` for any linear operator, whatever its rank.

    `pinv` is the Moore-Penrose pseudo-inverse: the `x` of least norm among those that minimise `|A x - y|`. By default
    it takes the singular value decomposition of `A`, which `prepare` computes once; unprepared, every call computes
    it. With `method="lsmr"` no matrix is ever formed: `pinv` runs LSMR to rounding, its derivatives in `y` are the same
    iteration (with `A^T` backwards), and no gradient reaches the operator through it.

    Where `A` has full row rank, `LinearSurjection` and `OperatorSurjection` also offer the null-space coordinates.

    Args:
        operator: a matrix of shape `(m, n)`, or a `lineax` operator from one array to one array (of any shapes).
        rtol: singular values up to `rtol` times the largest count as zero. By default `max(m, n)` times the machine
            epsilon, as in `numpy.linalg.matrix_rank`. LSMR knows no such cut-off.
        method: `"svd"`, dense, or `"lsmr"`, for operators given as functions that are too large to be formed.
        max_steps: the most LSMR steps, by default ten times the smaller of `m` and `n`. What is reached by then is
            returned: check `A x - y`.

    Raises:
        ValueError: `operator` is not a matrix, or acts on pytrees; wrap such a map in `Ravelled`.
    """

    arrays: lx.AbstractLinearOperator
    rest: lx.AbstractLinearOperator = eqx.field(static=True)
    rtol: float | None = eqx.field(static=True)
    method: Literal["svd", "lsmr"] = eqx.field(static=True)
    max_steps: int | None = eqx.field(static=True)
    prepared: Factors | None

    def __init__(
        self,
        operator: lx.AbstractLinearOperator | Float[Array, "..."],
        rtol: float | None = None,
        *,
        method: Literal["svd", "lsmr"] = "svd",
        max_steps: int | None = None,
    ):
        if not isinstance(operator, lx.AbstractLinearOperator):
            if operator.ndim != 2:
                raise ValueError(
                    f"LinearMap expected a matrix of shape (m, n) or a lineax operator, got an array of shape "
                    f"{operator.shape}. Reshape it, or stack maps with jax.vmap."
                )
            operator = lx.MatrixLinearOperator(operator)
        self.arrays, self.rest = partition_operator(operator, "LinearMap")
        self.rtol, self.method, self.max_steps = rtol, method, max_steps
        self.prepared = None

    @property
    def operator(self) -> lx.AbstractLinearOperator:
        """`A` as a `lineax` operator."""
        return eqx.combine(self.arrays, self.rest)

    def __call__(self, x: Float[Array, "*x"]) -> Float[Array, "*y"]:
        """`A x`."""
        with jax.default_matmul_precision("highest"):
            return self.operator.mv(x)

    def in_structure(self) -> jax.ShapeDtypeStruct:
        """Shape and dtype of `x`."""
        return self.operator.in_structure()

    def prepare(self) -> "LinearMap":
        """The same map with its singular value decomposition computed, where `pinv` needs it."""
        if self.prepared is not None or self.method == "lsmr":
            return self
        return eqx.tree_at(lambda m: m.prepared, self, self._svd(), is_leaf=lambda leaf: leaf is None)

    def pinv(self, y: Float[Array, "*y"]) -> Float[Array, "*x"]:
        """The Moore-Penrose pseudo-inverse of `A`, applied to `y`."""
        if self.method == "lsmr":
            return self._lsmr(y)
        u, s, vt = self._svd()
        kept = s > self._cutoff(s)
        inverse = jnp.where(kept, 1.0 / jnp.where(kept, s, 1.0), 0.0)
        with jax.default_matmul_precision("highest"):
            x = vt.T @ (inverse * (u.T @ jnp.ravel(y)))
        return x.reshape(self.in_structure().shape)

    def rank(self) -> Int[Array, ""]:
        """Number of singular values above the cut-off; forms the matrix, whatever the method."""
        s = self._svd()[1]
        return jnp.sum(s > self._cutoff(s))

    def _lsmr(self, y: Float[Array, "*y"]) -> Float[Array, "*x"]:
        operator = eqx.combine(jax.lax.stop_gradient(self.arrays), self.rest)
        size = min(self.in_structure().size, self.out_structure().size)
        with jax.default_matmul_precision("highest"):
            return lsmr_pinv(operator.mv, self.in_structure(), y, self.max_steps or 10 * size)

    def _svd(self) -> Factors:
        if self.prepared is not None:
            return self.prepared
        with jax.default_matmul_precision("highest"):
            u, s, vt = jnp.linalg.svd(self.operator.as_matrix(), full_matrices=False)
        return u, s, vt

    def _cutoff(self, s: Float[Array, " k"]) -> Float[Array, ""]:
        size = max(self.in_structure().size, self.out_structure().size)
        rtol = size * jnp.finfo(s.dtype).eps if self.rtol is None else self.rtol
        return rtol * s[0]


class LinearSurjection(AbstractSurjection[Float[Array, " k"]]):
    """`y = A x` for a fixed matrix of full row rank, completed by coordinates in its null space.

    `split(x) = (A x, N^T x)` and `merge(y, z) = A^+ y + N z`, with `N` an orthonormal basis of the null space of `A`;
    `section` is zero, so that `pinv` is the Moore-Penrose pseudo-inverse. The three matrices belong together, so `A`
    is data and not a parameter: no gradient reaches it.

    Args:
        matrix: shape `(m, n)` with `m <= n` and rank `m`.

    Raises:
        ValueError: the rows are linearly dependent; use `LinearMap`, whose `pinv` is rank-aware.
    """

    matrix: Float[Array, "m n"]
    right_inverse: Float[Array, "n m"]
    null_space: Float[Array, "n k"]

    def __init__(self, matrix: Float[Array, "m n"]):
        num_rows, num_columns = matrix.shape
        with jax.default_matmul_precision("highest"):
            u, s, vt = jnp.linalg.svd(matrix, full_matrices=True)
            known = not isinstance(s, Tracer)
            if num_rows > num_columns or (known and s[-1] <= num_columns * jnp.finfo(s.dtype).eps * s[0]):
                raise ValueError(
                    f"LinearSurjection expected a matrix whose rows are linearly independent, got shape "
                    f"{matrix.shape} with singular values {s if known else 'unknown'}. Use LinearMap, whose pinv is "
                    "rank-aware."
                )
            self.matrix = matrix
            self.right_inverse = (vt[:num_rows].T / s[None, :]) @ u.T
            self.null_space = vt[num_rows:].T

    def split(self, x: Float[Array, " n"]) -> tuple[Float[Array, " m"], Float[Array, " k"]]:
        """`(A x, N^T x)`."""
        with jax.default_matmul_precision("highest"):
            return jax.lax.stop_gradient(self.matrix) @ x, jax.lax.stop_gradient(self.null_space).T @ x

    def merge(self, y: Float[Array, " m"], z: Float[Array, " k"]) -> Float[Array, " n"]:
        """`A^+ y + N z`."""
        with jax.default_matmul_precision("highest"):
            return jax.lax.stop_gradient(self.right_inverse) @ y + jax.lax.stop_gradient(self.null_space) @ z

    def section(self, y: Float[Array, " m"]) -> Float[Array, " k"]:
        """Zeros: the null-space component of least norm."""
        return jnp.zeros(self.null_space.shape[1:], y.dtype)

    def in_structure(self) -> jax.ShapeDtypeStruct:
        """Shape and dtype of `x`."""
        return jax.ShapeDtypeStruct(self.matrix.shape[1:], self.matrix.dtype)


class DenseSurjection(AbstractSurjection[Float[Array, " k"]]):
    """`LinearSurjection` between arrays of any shapes, such as images: `ravel(y) = A ravel(x)`.

    Args:
        matrix: shape `(m, n)`, of rank `m`.
        shape: of `x`, with `n` entries.
        out_shape: of `y`, with `m` entries.

    Raises:
        ValueError: the shapes do not fit the matrix, or its rows are linearly dependent.
    """

    flat: LinearSurjection
    shape: tuple[int, ...] = eqx.field(static=True)
    out_shape: tuple[int, ...] = eqx.field(static=True)

    def __init__(self, matrix: Float[Array, "m n"], shape: tuple[int, ...], out_shape: tuple[int, ...]):
        if matrix.shape != (math.prod(out_shape), math.prod(shape)):
            raise ValueError(
                f"DenseSurjection expected a matrix of shape ({math.prod(out_shape)}, {math.prod(shape)}) for arrays "
                f"of shapes {out_shape} and {shape}, got {matrix.shape}."
            )
        self.flat, self.shape, self.out_shape = LinearSurjection(matrix), tuple(shape), tuple(out_shape)

    def split(self, x: Float[Array, "*x"]) -> tuple[Float[Array, "*y"], Float[Array, " k"]]:
        """`A x`, and the coordinates of `x` in the null space."""
        y, z = self.flat.split(jnp.ravel(x))
        return y.reshape(self.out_shape), z

    def merge(self, y: Float[Array, "*y"], z: Float[Array, " k"]) -> Float[Array, "*x"]:
        """`A^+ y`, and what `z` adds."""
        return self.flat.merge(jnp.ravel(y), z).reshape(self.shape)

    def section(self, y: Float[Array, "*y"]) -> Float[Array, " k"]:
        """Zeros: the null-space component of least norm."""
        return self.flat.section(jnp.ravel(y))

    def in_structure(self) -> jax.ShapeDtypeStruct:
        """Shape and dtype of `x`."""
        return jax.ShapeDtypeStruct(self.shape, self.flat.matrix.dtype)
