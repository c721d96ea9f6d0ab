"""Regularisers `J(u) = G(A u) + J0(u)`: norms, boxes, total variation, a user's own prox, and their sums."""

import abc
from typing import Any, Literal

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Scalar

from ..maps import store
from ..solvers._check import concrete

Number = float | int | Array
Kind = Literal["none", "quadratic", "entrywise", "other"]


class AbstractRegulariser(eqx.Module):
    """A convex `J(u) = G(A u) + J0(u)`, `G` a norm of a linear `A u` and `J0` a function with an explicit prox.

    Methods meet `G` through the dual ball of the norm, `J0` through its prox. `+` adds regularisers.

    Implementing a regulariser:

    - `__call__(u)`, the value, `+inf` where `u` is not allowed;
    - `simple_prox(v, step)`, the prox of `step J0` alone (the identity by default), exactly;
    - with a `G`: `analysis(u) = A u`, `adjoint(z, u) = A^T z`, `norm_bound(u) >= |A|`, and `dual_project(z)`, the
      projection onto the dual ball. Without one `A u` is empty, which is the default;
    - `kind`, which says with which projections `simple_prox` may be composed: `"none"` (no `J0`), `"quadratic"` (with
      any), `"entrywise"` (with boxes), `"other"` (with none).
    """

    @property
    def kind(self) -> Kind:
        """What `J0` is."""
        return "none"

    @abc.abstractmethod
    def __call__(self, u: Float[Array, "*u"]) -> Scalar:
        """The value `J(u)`."""

    def simple_prox(self, v: Float[Array, "*u"], step: Number) -> Float[Array, "*u"]:
        """`argmin_u step J0(u) + |u - v|^2 / 2`."""
        del step
        return v

    def analysis(self, u: Float[Array, "*u"]) -> Float[Array, "*z"]:
        """`A u`; empty where there is no `G`."""
        return jnp.zeros((0, *u.shape), u.dtype)

    def adjoint(self, z: Float[Array, "*z"], u: Float[Array, "*u"]) -> Float[Array, "*u"]:
        """`A^T z`, shaped like `u`."""
        del z
        return jnp.zeros_like(u)

    def norm_bound(self, u: Float[Array, "*u"]) -> float:
        """An upper bound of `|A|` on arrays shaped like `u`; zero where there is no `G`."""
        del u
        return 0.0

    def dual_project(self, z: Float[Array, "*z"]) -> Float[Array, "*z"]:
        """The nearest point of the dual ball of `G`: the prox of its conjugate, for every step."""
        return z

    def prox(self, v: Float[Array, "*u"], step: Number) -> Float[Array, "*u"]:
        """`argmin_u step J(u) + |u - v|^2 / 2`, where it is explicit.

        Raises:
            ValueError: `J` has a part `G(A u)`, whose prox is not.
        """
        if self.norm_bound(v) > 0:
            raise ValueError(
                f"{type(self).__name__} has no explicit prox: write `total_variation_prox(v, step)`, which iterates to "
                "a tolerance, or use a primal-dual solver, which needs none."
            )
        return self.simple_prox(v, step)

    def check(self, u: Any) -> None:
        """Raises a `ValueError` where the regulariser cannot be applied to arrays shaped like `u`."""

    def __add__(self, other: Any) -> "Sum":
        return Sum(self, other)


class HalfSquaredNorm(AbstractRegulariser):
    """`weight |u|^2 / 2`.

    Args:
        weight: positive.
    """

    weight: Any

    def __init__(self, weight: Any = 1.0):
        self.weight = _positive("weight", weight)

    @property
    def kind(self) -> Kind:
        """See `AbstractRegulariser`."""
        return "quadratic"

    def __call__(self, u: Float[Array, "*u"]) -> Scalar:
        """See `AbstractRegulariser`."""
        return 0.5 * self.weight * jnp.sum(u**2)

    def simple_prox(self, v: Float[Array, "*u"], step: Number) -> Float[Array, "*u"]:
        """See `AbstractRegulariser`."""
        return v / (1 + step * self.weight)


class L1(AbstractRegulariser):
    """`weight sum |u|`.

    Args:
        weight: positive.
    """

    weight: Any

    def __init__(self, weight: Any = 1.0):
        self.weight = _positive("weight", weight)

    @property
    def kind(self) -> Kind:
        """See `AbstractRegulariser`."""
        return "entrywise"

    def __call__(self, u: Float[Array, "*u"]) -> Scalar:
        """See `AbstractRegulariser`."""
        return self.weight * jnp.sum(jnp.abs(u))

    def simple_prox(self, v: Float[Array, "*u"], step: Number) -> Float[Array, "*u"]:
        """See `AbstractRegulariser`."""
        return jnp.sign(v) * jnp.maximum(jnp.abs(v) - step * self.weight, 0)


class Box(AbstractRegulariser):
    """Zero where `lower <= u <= upper` entry by entry, `+inf` elsewhere.

    Args:
        lower, upper: scalars, or arrays shaped like `u`; `-inf` and `inf` where there is no bound.

    Raises:
        ValueError: `lower` exceeds `upper`.
    """

    lower: Any
    upper: Any

    def __init__(self, lower: Any = 0.0, upper: Any = 1.0):
        if concrete(lower) and concrete(upper) and np.any(np.asarray(lower) > np.asarray(upper)):
            raise ValueError(f"lower={lower} exceeds upper={upper}; expected lower <= upper. Were they swapped?")
        self.lower = lower
        self.upper = upper

    @property
    def kind(self) -> Kind:
        """See `AbstractRegulariser`."""
        return "entrywise"

    def __call__(self, u: Float[Array, "*u"]) -> Scalar:
        """See `AbstractRegulariser`."""
        outside = jnp.ravel(u - self.simple_prox(u, 1.0))
        # The dot product is, on a CPU, much faster than `jnp.all`.
        return jnp.where(jnp.dot(jnp.abs(outside), jnp.ones_like(outside)) == 0, 0.0, jnp.inf).astype(u.dtype)

    def simple_prox(self, v: Float[Array, "*u"], step: Number) -> Float[Array, "*u"]:
        """See `AbstractRegulariser`."""
        del step
        lower, upper = (jnp.broadcast_to(jnp.asarray(bound, v.dtype), v.shape) for bound in (self.lower, self.upper))
        return jnp.clip(v, lower, upper)


class TotalVariation(AbstractRegulariser):
    """Isotropic total variation `sum_i |grad u_i|_2`, by forward differences; the last one along each axis is zero.

    The sum runs over pixels, and over everything in front of the last `ndim` axes: channels are added, not coupled. As
    an operator the differences have a norm of at most `2 sqrt(ndim)`: 2 on a line, `sqrt(8)` on a square.

    Args:
        ndim: how many of the last axes are space; `None` for all of them.

    References:
        L. I. Rudin, S. Osher, E. Fatemi, Nonlinear total variation based noise removal algorithms, 1992,
        doi:10.1016/0167-2789(92)90242-F. A. Chambolle, An algorithm for total variation minimization and applications,
        2004, doi:10.1023/B:JMIV.0000011325.36760.1e.
    """

    ndim: int | None = eqx.field(static=True)

    def __init__(self, ndim: int | None = None):
        if ndim is not None and (not isinstance(ndim, int) or ndim < 1):
            raise ValueError(f"ndim={ndim!r}; expected the number of spatial axes, at least 1, or None for all.")
        self.ndim = ndim

    def __call__(self, u: Float[Array, "*u"]) -> Scalar:
        """See `AbstractRegulariser`."""
        return self.norm(self.gradient(u))

    def gradient(self, u: Float[Array, "*u"]) -> Float[Array, "d *u"]:
        """Forward differences along each spatial axis, stacked in front."""
        return jnp.stack([_forward_difference(u, axis) for axis in self._axes(u)])

    def divergence(self, z: Float[Array, "d *u"]) -> Float[Array, "*u"]:
        """Minus the transpose of `gradient`."""
        parts = [_backward_difference(z[i], axis) for i, axis in enumerate(self._axes(z[0]))]
        return sum(parts[1:], parts[0])

    def norm(self, z: Float[Array, "d *u"]) -> Scalar:
        """The norm `G`: the sum of the lengths of the vectors in `z`; its derivative is zero where a length is."""
        squares = _squares(z)
        still = squares == 0
        lengths = jnp.ravel(jnp.where(still, 0, jnp.sqrt(jnp.where(still, 1, squares))))
        return jnp.dot(lengths, jnp.ones_like(lengths))  # on a CPU ten times faster than the fused sum

    def analysis(self, u: Float[Array, "*u"]) -> Float[Array, "d *u"]:
        """See `AbstractRegulariser`."""
        return self.gradient(u)

    def adjoint(self, z: Float[Array, "d *u"], u: Float[Array, "*u"]) -> Float[Array, "*u"]:
        """See `AbstractRegulariser`."""
        del u
        return -self.divergence(z)

    def norm_bound(self, u: Float[Array, "*u"]) -> float:
        """See `AbstractRegulariser`."""
        return 2.0 * len(self._axes(u)) ** 0.5

    def dual_project(self, z: Float[Array, "d *u"]) -> Float[Array, "d *u"]:
        """See `AbstractRegulariser`: every vector shortened to length one."""
        return z / jnp.sqrt(jnp.maximum(_squares(z), 1))[None]

    def check(self, u: Any) -> None:
        """See `AbstractRegulariser`."""
        if jnp.ndim(u) < (self.ndim or 1):
            raise ValueError(
                f"TotalVariation of {self.ndim or 'all'} axes got u of shape {jnp.shape(u)}; expected at least "
                f"{self.ndim or 1} axes. Give u as an image: `Perceptron(matrix, shape=(height, width))`."
            )

    def _axes(self, u: Any) -> range:
        ndim = jnp.ndim(u)
        return range(0 if self.ndim is None else ndim - self.ndim, ndim)


class Proximal(AbstractRegulariser):
    """A regulariser of your own, by its prox.

    Args:
        prox: `(v, step) -> argmin_u step J(u) + |u - v|^2 / 2`, shaped like `v`.
        value: `u -> J(u)`, a scalar; it enters the reported objective only.
    """

    fn: Any
    value: Any

    def __init__(self, prox: Any, value: Any):
        for name, given in (("prox", prox), ("value", value)):
            if not callable(given):
                raise ValueError(
                    f"{name} is a {type(given).__name__}; expected a callable: write "
                    "`Proximal(lambda v, step: ..., lambda u: ...)`. Without a prox there is no splitting method: use "
                    "a solver of `pinv_jax.solvers` on the sum of squares instead."
                )
        self.fn = store(prox)
        self.value = store(value)

    @property
    def kind(self) -> Kind:
        """See `AbstractRegulariser`."""
        return "other"

    def __call__(self, u: Float[Array, "*u"]) -> Scalar:
        """See `AbstractRegulariser`."""
        return jnp.asarray(self.value(u))

    def simple_prox(self, v: Float[Array, "*u"], step: Number) -> Float[Array, "*u"]:
        """See `AbstractRegulariser`."""
        return self.fn(v, step)


class Sum(AbstractRegulariser):
    """A sum of regularisers whose simple parts have a joint prox: `TotalVariation() + Box(0, 1)`.

    At most one part is a `TotalVariation`. Of the others `L1`, `HalfSquaredNorm` and `Box` may be added, each once: in
    one variable the prox of the sum is that of `L1`, then that of the square, then the box. A `Proximal` goes with a
    `TotalVariation` alone.

    Raises:
        ValueError: for parts that do not go together.
    """

    terms: tuple[AbstractRegulariser, ...]

    def __init__(self, *terms: Any):
        for term in terms:
            if not isinstance(term, AbstractRegulariser):
                raise ValueError(f"expected a regulariser, got {type(term).__name__}: write `Proximal(prox, value)`.")
        flat = [part for term in terms for part in (term.terms if isinstance(term, Sum) else (term,))]
        order = [TotalVariation, L1, HalfSquaredNorm, Box, Proximal]
        kinds = [type(part) for part in flat]
        names = " + ".join(kind.__name__ for kind in kinds)
        if any(kind not in order for kind in kinds) or len(set(kinds)) < len(kinds):
            raise ValueError(
                f"{names}: no joint prox is known. Each of TotalVariation, L1, HalfSquaredNorm and Box may occur once "
                "(put weights into one of them, intersect boxes yourself); for others write the prox of their sum as "
                "a `Proximal`."
            )
        if Proximal in kinds and set(kinds) - {Proximal, TotalVariation}:
            raise ValueError(f"{names}: the prox of a Proximal plus another part is not known; put both into its prox.")
        self.terms = tuple(sorted(flat, key=lambda part: order.index(type(part))))

    @property
    def kind(self) -> Kind:
        """See `AbstractRegulariser`."""
        kinds: list[Kind] = ["none", "quadratic", "entrywise", "other"]
        return kinds[max(kinds.index(term.kind) for term in self.terms)]

    def __call__(self, u: Float[Array, "*u"]) -> Scalar:
        """See `AbstractRegulariser`."""
        return jnp.sum(jnp.stack([term(u) for term in self.terms]))

    def simple_prox(self, v: Float[Array, "*u"], step: Number) -> Float[Array, "*u"]:
        """See `AbstractRegulariser`."""
        for term in self.terms:
            v = term.simple_prox(v, step)
        return v

    def _variation(self) -> AbstractRegulariser:
        return self.terms[0]  # they are sorted; any other than a total variation has an empty `A u`

    def analysis(self, u: Float[Array, "*u"]) -> Float[Array, "*z"]:
        """See `AbstractRegulariser`."""
        return self._variation().analysis(u)

    def adjoint(self, z: Float[Array, "*z"], u: Float[Array, "*u"]) -> Float[Array, "*u"]:
        """See `AbstractRegulariser`."""
        return self._variation().adjoint(z, u)

    def norm_bound(self, u: Float[Array, "*u"]) -> float:
        """See `AbstractRegulariser`."""
        return self._variation().norm_bound(u)

    def dual_project(self, z: Float[Array, "*z"]) -> Float[Array, "*z"]:
        """See `AbstractRegulariser`."""
        return self._variation().dual_project(z)

    def check(self, u: Any) -> None:
        """See `AbstractRegulariser`."""
        for term in self.terms:
            term.check(u)


def _positive(name: str, value: Any) -> Any:
    if concrete(value) and not np.all(np.asarray(value) > 0):
        raise ValueError(f"{name}={value}; expected a positive number.")
    return value


def _squares(z: Array) -> Array:
    """`sum(z**2, axis=0)`, as sums of arrays: under `vmap` a reduction over this axis is slow on a CPU."""
    total = z[0] ** 2
    for part in z[1:]:
        total = total + part**2
    return total


def _forward_difference(u: Array, axis: int) -> Array:
    """`u[i + 1] - u[i]`, zero at the last `i`."""
    widths = [(0, int(k == axis)) for k in range(u.ndim)]
    return jnp.pad(jnp.diff(u, axis=axis), widths)


def _backward_difference(z: Array, axis: int) -> Array:
    """Minus the transpose of `_forward_difference`: `z[i] - z[i - 1]`, with `z[-1] = 0` and the last `z` left out."""
    index = jnp.arange(z.shape[axis]).reshape([-1 if k == axis else 1 for k in range(z.ndim)])
    inner = jnp.where(jnp.broadcast_to(index < z.shape[axis] - 1, z.shape), z, 0)
    before = jnp.where(jnp.broadcast_to(index > 0, z.shape), jnp.roll(z, 1, axis), 0)
    return inner - before
