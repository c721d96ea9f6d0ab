"""The four Penrose identities of a nonlinear map and its pseudo-inverse; the norm that the natural one minimises."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree, Scalar

from ._jacobian import dense_jacobian


class PenroseErrors(eqx.Module):
    """How far the identities that need no adjoint are from holding; relative Euclidean norms.

    Attributes:
        first: `|f(pinv(f(x))) - f(x)| / |f(x)|`.
        second: `|pinv(f(pinv(y))) - pinv(y)| / |pinv(y)|`.
        right_inverse: `|f(pinv(y)) - y| / |y|`; zero for every `y` only where `f` is onto.
    """

    first: Scalar
    second: Scalar
    right_inverse: Scalar


class PenroseSymmetry(eqx.Module):
    """How far the two identities that need an adjoint are from holding, to first order; relative Frobenius norms.

    Attributes:
        third: `|S - S'| / |S|` of `S = J K`.
        fourth: the same of `S = K J`.
    """

    third: Scalar
    fourth: Scalar


def _norm(tree: PyTree[Array]) -> Scalar:
    leaves = [jnp.sum(leaf**2) for leaf in jax.tree.leaves(tree)]
    return jnp.sqrt(jnp.sum(jnp.stack(leaves)))


def _difference(a: PyTree[Array], b: PyTree[Array]) -> PyTree[Array]:
    return jax.tree.map(lambda a, b: a - b, a, b)


def _relative(error: Scalar, size: Scalar) -> Scalar:
    return error / jnp.where(size > 0, size, 1.0)


def penrose_errors(f: Any, x: Float[Array, "*x"], y: Float[Array, "*y"]) -> PenroseErrors:
    """The first two Penrose identities and the right inverse, at one `x` and one `y`.

    Both hold by construction for a surjection, whatever its section; for a trained pair they measure it. `y` should
    be drawn from the range of `f` and also elsewhere.

    Args:
        f: anything with `f(x)` and `f.pinv(y)`.
        x: one point.
        y: one observation.

    Returns:
        A `PenroseErrors`; absolute where the norm to compare with is zero.

    References:
        R. Penrose, "A generalized inverse for matrices", 1955, doi:10.1017/S0305004100030401; Y. Ehrlich, A. Berman, A.
        Shocher, "Pseudo-Invertible Neural Networks", 2026, arXiv:2602.06042.
    """
    with jax.default_matmul_precision("highest"):
        prediction, inverse = f(x), f.pinv(y)
        again = f(inverse)
        first = _relative(_norm(f(f.pinv(prediction)) - prediction), _norm(prediction))
        second = _relative(_norm(f.pinv(again) - inverse), _norm(inverse))
        right_inverse = _relative(_norm(again - y), _norm(y))
    return PenroseErrors(first, second, right_inverse)


def penrose_symmetry(f: Any, y: Float[Array, "*y"]) -> PenroseSymmetry:
    """The third and fourth Penrose identities through Jacobians: are `J K` and `K J` symmetric?

    `J` is the Jacobian of `f` at `pinv(y)`, `K` that of `pinv` at `y`, both as matrices: for small problems. For linear
    maps these are the classical identities; of a nonlinear one neither is to be expected. `J K` is the identity for
    a surjection. `K J` projects along the fibre onto the image of `pinv`, and is symmetric where the two are
    perpendicular.

    Args:
        f: anything with `f(x)` and `f.pinv(y)`.
        y: one observation.
    """
    with jax.default_matmul_precision("highest"):
        jac, jac_pinv = dense_jacobian(f, f.pinv(y)), dense_jacobian(f.pinv, y)

        def asymmetry(s: Float[Array, "k k"]) -> Scalar:
            return _relative(_norm(s - s.T), _norm(s))

        return PenroseSymmetry(asymmetry(jac @ jac_pinv), asymmetry(jac_pinv @ jac))


def completion_distance(f: Any, x: Float[Array, "*x"], origin: Float[Array, "*x"] | None = None) -> Scalar:
    """`|G(x) - G(origin)|` with `G(x) = f.split(x)`, the distance in the coordinates `(y, z)`.

    Measured from zero it is what the natural pseudo-inverse minimises among all `x` of one fibre; between `x` and its
    back-projection it is the length of the shortest way to the fibre.

    Args:
        f: a surjection.
        x: one point.
        origin: zero by default.
    """
    with jax.default_matmul_precision("highest"):
        return _norm(_difference(f.split(x), f.split(jnp.zeros_like(x) if origin is None else origin)))


def natural_defect(f: Any, y: Float[Array, "*y"]) -> Scalar:
    """`|z(pinv(y)) - z(0)|`: zero exactly where `pinv` is the natural pseudo-inverse at `y`.

    Args:
        f: a surjection.
        y: one observation.
    """
    with jax.default_matmul_precision("highest"):
        x = f.pinv(y)
        z, z_origin = f.split(x)[1], f.split(jnp.zeros_like(x))[1]
        return _norm(_difference(z, z_origin)) if jax.tree.leaves(z) else jnp.zeros((), x.dtype)
