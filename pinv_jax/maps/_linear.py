"""Linear maps `y = A x` with their Moore-Penrose pseudo-inverse."""

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
from jax.core import Tracer
from jaxtyping import Array, Float, Int

from ._base import AbstractMap, AbstractSurjection

Factors = tuple[Float[Array, "m k"], Float[Array, " k"], Float[Array, "k n"]]


class LinearMap(AbstractMap):
    """`y = A x` for any linear operator, whatever its rank.

    `pinv` is the Moore-Penrose pseudo-inverse: the `x` of least norm among those that minimise `|A x - y|`. It needs
    the singular value decomposition of `A`, which `prepare` computes once; unprepared, every call computes it.
    Where `A` is a matrix of full row rank, `LinearSurjection` also offers the null-space coordinates.

    Args:
        operator: a matrix of shape `(m, n)`, or a `lineax` operator from one array to one array (of any shapes).
        rtol: singular values up to `rtol` times the largest count as zero. By default `max(m, n)` times the machine
            epsilon, as in `numpy.linalg.matrix_rank`.

    Raises:
        ValueError: `operator` is not a matrix, or acts on pytrees; wrap such a map in `Ravelled`.
    """

    arrays: lx.AbstractLinearOperator
    rest: lx.AbstractLinearOperator = eqx.field(static=True)
    rtol: float | None = eqx.field(static=True)
    factors: Factors | None

    def __init__(self, operator: lx.AbstractLinearOperator | Float[Array, "..."], rtol: float | None = None):
        if not isinstance(operator, lx.AbstractLinearOperator):
            if operator.ndim != 2:
                raise ValueError(
                    f"LinearMap expected a matrix of shape (m, n) or a lineax operator, got an array of shape "
                    f"{operator.shape}. Reshape it, or stack maps with jax.vmap."
                )
            operator = lx.MatrixLinearOperator(operator)
        for structure in (operator.in_structure(), operator.out_structure()):
            if not isinstance(structure, jax.ShapeDtypeStruct):
                raise ValueError(
                    f"LinearMap expected an operator from one array to one array, got the structure {structure}. "
                    "Write Ravelled(operator.mv, example) to see pytrees as flat arrays."
                )
        # Operators made from functions have the function as a leaf, which jax.jit does not accept as an argument.
        self.arrays, self.rest = eqx.partition(operator, eqx.is_array)
        self.rtol = rtol
        self.factors = None

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
        """The same map with its singular value decomposition computed."""
        if self.factors is not None:
            return self
        return eqx.tree_at(lambda m: m.factors, self, self._svd(), is_leaf=lambda leaf: leaf is None)

    def pinv(self, y: Float[Array, "*y"]) -> Float[Array, "*x"]:
        """The Moore-Penrose pseudo-inverse of `A`, applied to `y`."""
        u, s, vt = self._svd()
        kept = s > self._cutoff(s)
        inverse = jnp.where(kept, 1.0 / jnp.where(kept, s, 1.0), 0.0)
        with jax.default_matmul_precision("highest"):
            x = vt.T @ (inverse * (u.T @ jnp.ravel(y)))
        return x.reshape(self.in_structure().shape)

    def rank(self) -> Int[Array, ""]:
        """Number of singular values above the cut-off."""
        s = self._svd()[1]
        return jnp.sum(s > self._cutoff(s))

    def _svd(self) -> Factors:
        if self.factors is not None:
            return self.factors
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
