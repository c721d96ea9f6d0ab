"""What a proximal activation is: `sigma = prox_Psi = grad phi*` with `phi = |.|^2/2 + Psi`, and its Bregman penalty."""

import abc
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero
from jaxtyping import Array, Bool, Float, PyTree, Scalar

Step = float | int | Float[Array, "..."]


class AbstractActivation(eqx.Module):
    """An activation that is a proximal map, with the convex function it belongs to.

    With `Psi` proper, convex and lower semicontinuous, and `phi(u) = |u|^2/2 + Psi(u)`,

        sigma(z) = argmin_u |u - z|^2/2 + Psi(u) = grad phi*(z),
        B(y, z) = phi(y) + phi*(z) - <y, z>  >=  |y - sigma(z)|^2/2.

    `B`, here `gap`, vanishes exactly where `y = sigma(z)`, is convex in either argument, and `grad_z B = sigma(z) - y`:
    a network of such activations is trained and inverted without the derivative of any of them.

    Arrays have any shape. An entrywise activation acts on every entry; the others (softmax, block soft-threshold,
    ball, projection) on the array as a whole. Values are sums over the array.

    Implementing an activation:

    - `__call__`, `potential`, `prox`, `project` and `preimage`;
    - `gap_value` and `conjugate` where the defaults, which cancel, lose digits;
    - `interior` where the slope of `phi` is unbounded at the end of its domain;
    - `curvature` if it is below one. `gap` and the three proximal maps derived from `prox` are final.

    Call `check_proximal` on a function of your own first.

    References:
        X. Wang, M. Benning, "Lifted Bregman Training of Neural Networks", JMLR 24(232), 2023, arXiv:2208.08772.
        X. Wang, M. Benning, "A Lifted Bregman Formulation for the Inversion of Deep Neural Networks", 2023,
        arXiv:2303.01965.
    """

    @abc.abstractmethod
    def __call__(self, z: Float[Array, "*y"]) -> Float[Array, "*y"]:
        """The activation `sigma(z)`."""

    @abc.abstractmethod
    def potential(self, u: Float[Array, "*y"]) -> Scalar:
        """`phi(u)`, `+inf` off the domain."""

    @abc.abstractmethod
    def prox(self, v: Float[Array, "*y"], step: Step) -> Float[Array, "*y"]:
        """`argmin_u step * Psi(u) + |u - v|^2/2`.

        Args:
            v: the point.
            step: positive; a scalar, or for an entrywise activation an array that broadcasts to `v`.
        """

    @abc.abstractmethod
    def project(self, y: Float[Array, "*y"]) -> Float[Array, "*y"]:
        """The nearest point of the domain of `phi`."""

    @abc.abstractmethod
    def preimage(self, u: Float[Array, "*y"]) -> Float[Array, "*y"]:
        """A `z` with `sigma(z) = u`, for `u` in the range: a subgradient of `phi` at `u`."""

    @property
    def curvature(self) -> float:
        """A Lipschitz constant of `sigma`, the gradient of `phi*`."""
        return 1.0

    def conjugate(self, z: Float[Array, "*y"]) -> Scalar:
        """`phi*(z)`; here `<z, p> - phi(p)` at `p = sigma(z)`."""
        p = self(z)
        return jnp.sum(z * p) - self.potential(p)

    def gap_value(self, y: Float[Array, "*y"], z: Float[Array, "*y"]) -> Scalar:
        """`B(y, z)` for `gap`, which adds its derivative; here `phi(y) - phi(p) - <z, y - p>` at `p = sigma(z)`."""
        p = self(z)
        return self.potential(y) - self.potential(p) - jnp.sum(z * (y - p))

    def contains(self, y: Float[Array, "*y"]) -> Bool[Array, ""]:
        """Whether `y` lies in the domain of `phi`; here up to rounding."""
        return jnp.all(jnp.abs(y - self.project(y)) <= rounding(y) * (1 + jnp.abs(y)))

    def interior(self, y: Float[Array, "*y"], margin: float | int = 1e-6) -> Float[Array, "*y"]:
        """The nearest admissible data: inside the domain by `margin` where the slope of `phi` is unbounded at its end.

        At such an end `B(y, .)` has no minimiser; off the domain its part in `z`, `phi*(z) - <y, z>`, is unbounded
        below. Elsewhere this is `project`.
        """
        del margin
        return self.project(y)

    def gap(self, y: PyTree[Array], z: PyTree[Array]) -> Scalar:
        """The Bregman penalty `B(y, z) = phi(y) + phi*(z) - <y, z>`, without cancellation; `+inf` off the domain.

        Its derivative in `z` is `sigma(z) - y`; that in `y` is the subgradient `preimage(y) - z`, taken at the
        `interior` point. To minimise over `y` use the proximal maps instead: `B` is not smooth in `y`. Parameters of
        the activation are constants here.

        Raises:
            ValueError: `y` and `z` differ in shape.
        """
        shapes = jax.tree.map(jnp.shape, y), jax.tree.map(jnp.shape, z)
        if shapes[0] != shapes[1]:
            raise ValueError(
                f"y has shape {shapes[0]} and z has {shapes[1]}; expected equal shapes. For a batch write "
                "`jax.vmap(activation.gap)(ys, zs)`."
            )
        return _gap(jax.lax.stop_gradient(self), y, z)

    def prox_potential(self, v: Float[Array, "*y"], step: Step) -> Float[Array, "*y"]:
        """`prox_{step phi}(v) = prox_{step/(1 + step) Psi}(v / (1 + step))`."""
        return self.prox(v / (1 + step), step / (1 + step))

    def prox_gap(self, t: Float[Array, "*y"], y: Float[Array, "*y"], step: Step) -> Float[Array, "*y"]:
        """`argmin_z step * B(y, z) + |z - t|^2/2`.

        It is `v - step * prox_{Psi/(1 + step)}(v / (1 + step))` with `v = t + step y`.
        """
        v = t + step * y
        return v - step * self.prox(v / (1 + step), 1 / (1 + step))

    def prox_gap_conjugate(self, t: Float[Array, "*y"], y: Float[Array, "*y"], step: Step) -> Float[Array, "*y"]:
        """The proximal map of `step G*` at `t`, with `G = B(y, .)`: `prox_{step phi}(t + y) - y`."""
        return self.prox_potential(t + y, step) - y


@jax.custom_jvp
def _gap(activation: Any, y: Any, z: Any) -> Any:
    return activation.gap_value(y, z)


def _gap_jvp(primals: Any, tangents: Any) -> Any:
    activation, y, z = primals
    value = _gap(activation, y, z)
    tangent = jnp.zeros_like(value)
    # Tangents that are known to vanish are skipped: the slope in y is steep at the end of a domain.
    slopes = (
        (
            lambda: activation.preimage(activation.interior(y)),
            lambda: z,
        ),
        (lambda: activation(z), lambda: y),
    )
    for (left, right), direction in zip(slopes, tangents[1:], strict=True):
        moved = jax.tree.leaves(direction)
        if all(isinstance(leaf, SymbolicZero) for leaf in moved):
            continue
        for a, b, d in zip(jax.tree.leaves(left()), jax.tree.leaves(right()), moved, strict=True):
            if not isinstance(d, SymbolicZero):
                tangent = tangent + jnp.sum((a - b) * d)
    return value, tangent


_gap.defjvp(_gap_jvp, symbolic_zeros=True)


def rounding(y: Array) -> float:
    """How far a computed point may lie outside of a domain that it belongs to, relative to its size."""
    return 64 * float(jnp.finfo(y.dtype).eps)


class AbstractEntrywise(AbstractActivation):
    """A non-decreasing scalar activation of slope at most one, applied to every entry.

    Implementing an entrywise activation: `__call__`, `prox`, `preimage`, and, entry by entry,

    - `bounds()`: the ends of the domain of `phi`;
    - `potential_entries(u)` for `u` in the domain, `conjugate_entries(z)`;
    - `gap_entries(y, z)` for `y` in the domain: a sum of terms that are not negative, so that nothing cancels.
    """

    def bounds(self) -> tuple[float, float]:
        """The ends of the domain of `phi`."""
        return -jnp.inf, jnp.inf

    @abc.abstractmethod
    def potential_entries(self, u: Float[Array, "*y"]) -> Float[Array, "*y"]:
        """`phi(u)` for each entry."""

    @abc.abstractmethod
    def conjugate_entries(self, z: Float[Array, "*y"]) -> Float[Array, "*y"]:
        """`phi*(z)` for each entry."""

    @abc.abstractmethod
    def gap_entries(self, y: Float[Array, "*y"], z: Float[Array, "*y"]) -> Float[Array, "*y"]:
        """`B(y, z)` for each entry."""

    def potential(self, u: Float[Array, "*y"]) -> Scalar:
        """See `AbstractActivation`."""
        return jnp.where(self.contains(u), jnp.sum(self.potential_entries(self.project(u))), jnp.inf)

    def conjugate(self, z: Float[Array, "*y"]) -> Scalar:
        """See `AbstractActivation`."""
        return jnp.sum(self.conjugate_entries(z))

    def gap_value(self, y: Float[Array, "*y"], z: Float[Array, "*y"]) -> Scalar:
        """See `AbstractActivation`."""
        return jnp.where(self.contains(y), jnp.sum(self.gap_entries(self.project(y), z)), jnp.inf)

    def project(self, y: Float[Array, "*y"]) -> Float[Array, "*y"]:
        """See `AbstractActivation`."""
        return jnp.clip(y, *self.bounds())

    def contains(self, y: Float[Array, "*y"]) -> Bool[Array, ""]:
        """See `AbstractActivation`."""
        lower, upper = self.bounds()
        return jnp.all((y >= lower) & (y <= upper))
