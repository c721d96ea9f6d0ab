"""Orthogonal mixing of channels: `y = W u` at every position, with `W^T W = I`."""

import abc
import math

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Key

from ._base import AbstractSurjection
from ._reshape import check_patches, shuffle, unshuffle


class AbstractOrthogonal(AbstractSurjection[tuple[()]]):
    """An orthogonal matrix `W` that mixes the leading axis of `x`, the same at every position.

    `x` has shape `(channels, *space)` or `(n,)`. With `patch = p` an image `(channels, height, width)` is cut into
    `p x p` patches and `W` mixes the `channels * p * p` entries of each, in the order of `PixelUnshuffle`. Nothing is
    lost, so `z` is the empty tuple, and the inverse is `W^T`.

    Implementing an orthogonal mixer:

    - `matrix` returns `W`, of shape `(d, d)` with `d = channels * patch**2`;
    - `prepare` keeps whatever `matrix` computes from the parameters;
    - `mix` and `unmix` are overridden where `W u` is cheaper without `W`;
    - the fields `shape` and `patch`, both static, and the property `dtype`.
    """

    shape: eqx.AbstractVar[tuple[int, ...]]
    patch: eqx.AbstractVar[int]

    @property
    @abc.abstractmethod
    def dtype(self) -> np.dtype:
        """Dtype of `x`, that of the parameters."""

    @abc.abstractmethod
    def matrix(self) -> Float[Array, "d d"]:
        """`W`."""

    def mix(self, u: Float[Array, "d p"]) -> Float[Array, "d p"]:
        """`W u`, the columns of `u` being the positions."""
        return self.matrix() @ u

    def unmix(self, u: Float[Array, "d p"]) -> Float[Array, "d p"]:
        """`W^T u`."""
        return (u.T @ self.matrix()).T  # on a CPU many times faster than the transpose of a large matrix

    def split(self, x: Float[Array, "*x"]) -> tuple[Float[Array, "*x"], tuple[()]]:
        """`(W u, ())` at every position."""
        with jax.default_matmul_precision("highest"):
            return self._from_columns(self.mix(self._columns(x))), ()

    def merge(self, y: Float[Array, "*x"], z: tuple[()]) -> Float[Array, "*x"]:
        """`W^T y` at every position."""
        with jax.default_matmul_precision("highest"):
            return self._from_columns(self.unmix(self._columns(y)))

    def section(self, y: Float[Array, "*x"]) -> tuple[()]:
        """The empty tuple."""
        return ()

    def in_structure(self) -> jax.ShapeDtypeStruct:
        """Shape and dtype of `x`."""
        return jax.ShapeDtypeStruct(self.shape, self.dtype)

    def _columns(self, x: Float[Array, "*x"]) -> Float[Array, "d p"]:
        x = x if self.patch == 1 else unshuffle(x, self.patch)
        return x.reshape(x.shape[0], -1)

    def _from_columns(self, u: Float[Array, "d p"]) -> Float[Array, "*x"]:
        if self.patch == 1:
            return u.reshape(self.shape)
        _, height, width = self.shape
        return shuffle(u.reshape(u.shape[0], height // self.patch, width // self.patch), self.patch)


class _FromSkew(AbstractOrthogonal):
    """`W` from the skew-symmetric `A = B - B^T`; subclasses say how."""

    skew: eqx.AbstractVar[Float[Array, "d d"]]
    prepared: eqx.AbstractVar[Float[Array, "d d"] | None]

    @abc.abstractmethod
    def _orthogonal(self, a: Float[Array, "d d"]) -> Float[Array, "d d"]:
        """`W` for the skew-symmetric `a`."""

    @property
    def dtype(self) -> np.dtype:
        """Dtype of `x`, that of the parameters."""
        return self.skew.dtype

    def matrix(self) -> Float[Array, "d d"]:
        """`W`, built now unless it was prepared."""
        if self.prepared is not None:
            return self.prepared
        # Half precision has no linear solves, and would lose the orthogonality to more than its rounding.
        b = self.skew.astype(jnp.promote_types(self.dtype, jnp.float32))
        with jax.default_matmul_precision("highest"):
            return self._orthogonal(b - b.T).astype(self.dtype)

    def prepare(self) -> "_FromSkew":
        """The same mixer with `W` built."""
        if self.prepared is not None:
            return self
        return eqx.tree_at(lambda m: m.prepared, self, self.matrix(), is_leaf=lambda leaf: leaf is None)


class Cayley(_FromSkew):
    """`W = (I + A)^-1 (I - A)` with `A = B - B^T`: the rotations without the eigenvalue -1.

    `I + A` is invertible for every skew-symmetric `A`, so no regularisation is needed. The solve costs `O(d^3)` and
    runs at every call unless `prepare` has built `W`.

    Args:
        shape: of `x`, `(channels, *space)` or `(n,)`.
        patch: side of the square patches whose entries are mixed; 1 mixes the channels alone.
        eps: the solve is with `(1 + eps) I + A`. The published weights were trained with 1e-6, which leaves `W`
            orthogonal to 2e-6 only, in any precision; zero is exact.
        dtype: of the parameters; the default float by default.
        key: random key of a random rotation; without one `W` starts at the identity.

    Raises:
        ValueError: patches that do not tile the image.

    References:
        Y. Ehrlich, A. Berman, A. Shocher, "Pseudo-Invertible Neural Networks", 2026, arXiv:2602.06042.
    """

    skew: Float[Array, "d d"]
    prepared: Float[Array, "d d"] | None
    shape: tuple[int, ...] = eqx.field(static=True)
    patch: int = eqx.field(static=True)
    eps: float = eqx.field(static=True)

    def __init__(
        self,
        shape: tuple[int, ...],
        *,
        patch: int = 1,
        eps: float = 0.0,
        dtype: DTypeLike | None = None,
        key: Key[Array, ""] | None = None,
    ):
        self.skew = _start(_size("Cayley", shape, patch), dtype, key)
        self.shape, self.patch, self.eps = shape, patch, eps
        self.prepared = None

    def _orthogonal(self, a: Float[Array, "d d"]) -> Float[Array, "d d"]:
        # XLA's CPU compiler folds jnp.eye here entry by entry, a minute of compiling at d = 1024. The barrier stops it.
        identity = jnp.diag(jax.lax.optimization_barrier(jnp.ones(a.shape[0], a.dtype)))
        return jnp.linalg.solve((1 + self.eps) * identity + a, identity - a)


class MatrixExponential(_FromSkew):
    """`W = expm(A)` with `A = B - B^T`: every rotation.

    Building `W` costs two to three times what `Cayley` costs.

    Args:
        shape: of `x`, `(channels, *space)` or `(n,)`.
        patch: side of the square patches whose entries are mixed; 1 mixes the channels alone.
        dtype: of the parameters; the default float by default.
        key: random key of a random rotation; without one `W` starts at the identity.

    Raises:
        ValueError: patches that do not tile the image.
    """

    skew: Float[Array, "d d"]
    prepared: Float[Array, "d d"] | None
    shape: tuple[int, ...] = eqx.field(static=True)
    patch: int = eqx.field(static=True)

    def __init__(
        self,
        shape: tuple[int, ...],
        *,
        patch: int = 1,
        dtype: DTypeLike | None = None,
        key: Key[Array, ""] | None = None,
    ):
        self.skew = _start(_size("MatrixExponential", shape, patch), dtype, key)
        self.shape, self.patch = shape, patch
        self.prepared = None

    def _orthogonal(self, a: Float[Array, "d d"]) -> Float[Array, "d d"]:
        w = jax.scipy.linalg.expm(a)
        # Its squarings leave 2e-5 in float32 at d = 3072; one Newton-Schulz step makes that 4e-7.
        return 1.5 * w - 0.5 * w @ (w.T @ w)


class Householder(AbstractOrthogonal):
    """`W = H_k ... H_2 H_1` with the reflections `H_i = I - 2 v_i v_i^T / |v_i|^2`, applied as rank-one updates.

    `W u` costs `O(k d)` at every position and `W` is never formed. `W - I` has rank at most `k`: with few reflections
    most directions of a wide layer stay unmixed.

    Args:
        shape: of `x`, `(channels, *space)` or `(n,)`.
        num_reflections: `k`.
        patch: side of the square patches whose entries are mixed; 1 mixes the channels alone.
        eps: added to the norms; the published weights were trained with 1e-8.
        dtype: of the parameters; the default float by default.
        key: random key of the vectors, which start as standard normals.

    Raises:
        ValueError: patches that do not tile the image, or no reflections.
    """

    vectors: Float[Array, "k d"]
    prepared: Float[Array, "k d"] | None
    shape: tuple[int, ...] = eqx.field(static=True)
    patch: int = eqx.field(static=True)
    eps: float = eqx.field(static=True)

    def __init__(
        self,
        shape: tuple[int, ...],
        num_reflections: int = 8,
        *,
        patch: int = 1,
        eps: float = 0.0,
        dtype: DTypeLike | None = None,
        key: Key[Array, ""],
    ):
        if num_reflections < 1:
            raise ValueError(f"Householder expected at least one reflection, got num_reflections={num_reflections}.")
        d = _size("Householder", shape, patch)
        self.vectors = jax.random.normal(key, (num_reflections, d), jnp.result_type(float if dtype is None else dtype))
        self.shape, self.patch, self.eps = shape, patch, eps
        self.prepared = None

    @property
    def dtype(self) -> np.dtype:
        """Dtype of `x`, that of the parameters."""
        return self.vectors.dtype

    def matrix(self) -> Float[Array, "d d"]:
        """`W`."""
        with jax.default_matmul_precision("highest"):
            return self.mix(jnp.eye(self.vectors.shape[1], dtype=self.dtype))

    def mix(self, u: Float[Array, "d p"]) -> Float[Array, "d p"]:
        """`H_k ... H_2 H_1 u`."""
        for v in self._normalised():
            u = _reflect(v, u)
        return u

    def unmix(self, u: Float[Array, "d p"]) -> Float[Array, "d p"]:
        """`H_1 H_2 ... H_k u`."""
        for v in self._normalised()[::-1]:
            u = _reflect(v, u)
        return u

    def prepare(self) -> "Householder":
        """The same mixer with its vectors normalised."""
        if self.prepared is not None:
            return self
        return eqx.tree_at(lambda m: m.prepared, self, self._normalised(), is_leaf=lambda leaf: leaf is None)

    def _normalised(self) -> Float[Array, "k d"]:
        if self.prepared is not None:
            return self.prepared
        v = self.vectors.astype(jnp.promote_types(self.dtype, jnp.float32))
        return (v / (jnp.linalg.norm(v, axis=1, keepdims=True) + self.eps)).astype(self.dtype)


class FixedOrthogonal(AbstractOrthogonal):
    """A given orthogonal matrix `W`: data and not a parameter, so no gradient reaches it.

    Args:
        shape: of `x`, `(channels, *space)` or `(n,)`.
        matrix: `W`, shape `(d, d)` with `d = channels * patch**2`.
        patch: side of the square patches whose entries are mixed; 1 mixes the channels alone.

    Raises:
        ValueError: a matrix of another shape, or not orthogonal to rounding; the message says how far from it.
    """

    given: Float[Array, "d d"]
    shape: tuple[int, ...] = eqx.field(static=True)
    patch: int = eqx.field(static=True)

    def __init__(self, shape: tuple[int, ...], matrix: Float[Array, "..."], *, patch: int = 1):
        d = _size("FixedOrthogonal", shape, patch)
        if matrix.shape != (d, d):
            raise ValueError(
                f"FixedOrthogonal expected a matrix of shape {(d, d)} for x of shape {shape} and patch={patch}, got "
                f"{matrix.shape}."
            )
        if not isinstance(matrix, Tracer):
            with jax.default_matmul_precision("highest"):
                error = float(jnp.max(jnp.abs(matrix @ matrix.T - jnp.eye(d, dtype=matrix.dtype))))
            allowed = 100 * float(jnp.finfo(matrix.dtype).eps) * d**0.5
            if not error <= allowed:  # also where it is NaN
                raise ValueError(
                    f"FixedOrthogonal expected W W^T = I to rounding, got a matrix for which |W W^T - I| reaches "
                    f"{error:.2g} (allowed in {matrix.dtype}: {allowed:.2g}). For the nearest orthogonal matrix write "
                    "u, _, vt = jnp.linalg.svd(matrix) and pass u @ vt."
                )
        self.given, self.shape, self.patch = matrix, shape, patch

    @property
    def dtype(self) -> np.dtype:
        """Dtype of `x`, that of the matrix."""
        return self.given.dtype

    def matrix(self) -> Float[Array, "d d"]:
        """`W`."""
        return jax.lax.stop_gradient(self.given)


def _reflect(v: Float[Array, " d"], u: Float[Array, "d p"]) -> Float[Array, "d p"]:
    return u - (2 * v)[:, None] * (v @ u)[None, :]


def _size(name: str, shape: tuple[int, ...], patch: int) -> int:
    if patch == 1:
        if not shape or math.prod(shape) == 0:
            raise ValueError(f"{name} expected x of shape (channels, *space), none of them zero, got {shape}.")
        return shape[0]
    check_patches(name, shape, patch)
    return shape[0] * patch * patch


def _start(d: int, dtype: DTypeLike | None, key: Key[Array, ""] | None) -> Float[Array, "d d"]:
    dtype = jnp.result_type(float if dtype is None else dtype)
    # With entries of variance 1/d the eigenvalues of A spread over +-2.8i, whatever d: far from I, W well conditioned.
    return jnp.zeros((d, d), dtype) if key is None else jax.random.normal(key, (d, d), dtype) / d**0.5
