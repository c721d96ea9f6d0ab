"""Penalties `P(y, z)` that tie the state `y` of a layer to its preactivation `z`: Bregman, quadratic, classical."""

import abc
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree, Scalar

from ..solvers._check import concrete
from ._abstract_activation import AbstractActivation

Step = float | int | Float[Array, "..."]
State = PyTree[Float[Array, "..."]]


class AbstractPenalty(eqx.Module):
    """How much it costs that `y` is not `sigma(z)`, in a network whose layers are lifted to unknowns of their own.

    `y` and `z` are arrays of the same shape, or tuples of arrays for `Product`.

    Implementing a penalty: the three methods; `slope` must be the gradient of `value` in `z`.
    """

    @abc.abstractmethod
    def value(self, activation: AbstractActivation, y: State, z: State) -> Scalar:
        """`P(y, z)`."""

    @abc.abstractmethod
    def slope(self, activation: AbstractActivation, y: State, z: State) -> State:
        """The gradient of `P(y, z)` in `z`."""

    @abc.abstractmethod
    def prox(self, activation: AbstractActivation, v: State, z: State, step: Step) -> State:
        """`argmin_y step * P(y, z) + |y - v|^2/2`."""


class Bregman(AbstractPenalty):
    """`P(y, z) = B(y, z) = phi(y) + phi*(z) - <y, z>`, with gradient `sigma(z) - y` in `z`.

    Zero exactly where `y = sigma(z)`, convex in either argument, and no derivative of `sigma` anywhere. For
    entrywise activations the penalties of LPOM and of Fenchel lifted networks, and for one layer that of lifted
    contrastive learning, are this one under other names.

    References:
        X. Wang, M. Benning, "Lifted Bregman Training of Neural Networks", JMLR 24(232), 2023, arXiv:2208.08772.
        J. Li, C. Fang, Z. Lin, "Lifted Proximal Operator Machines", AAAI 2019, arXiv:1811.01501.
        F. Gu, A. Askari, L. El Ghaoui, "Fenchel Lifted Networks", AISTATS 2020, arXiv:1811.08039.
        C. Zach, V. Estellers, "Contrastive Learning for Lifted Networks", BMVC 2019, arXiv:1905.02507.
    """

    def value(self, activation: AbstractActivation, y: State, z: State) -> Scalar:
        """`B(y, z)`, `+inf` where `y` is not in the domain."""
        return activation.gap(y, z)

    def slope(self, activation: AbstractActivation, y: State, z: State) -> State:
        """`sigma(z) - y`."""
        return jax.tree.map(jnp.subtract, activation(z), y)

    def prox(self, activation: AbstractActivation, v: State, z: State, step: Step) -> State:
        """`prox_{step phi}(v + step z)`."""
        return activation.prox_potential(jax.tree.map(lambda v, z: v + step * z, v, z), step)


class MACQP(AbstractPenalty):
    """`P(y, z) = weight/2 |y - sigma(z)|^2`: the method of auxiliary coordinates with a quadratic penalty.

    Its gradient `weight sigma'(z)^T (sigma(z) - y)` needs the derivative of the activation, and vanishes with it.

    Args:
        weight: positive; raised towards infinity to enforce the constraint.

    Raises:
        ValueError: a weight that is not positive.

    References:
        M. Carreira-Perpinan, W. Wang, "Distributed Optimization of Deeply Nested Systems", AISTATS 2014,
        arXiv:1212.5921.
    """

    weight: Any

    def __init__(self, weight: Any = 1.0):
        if concrete(weight) and not weight > 0:
            raise ValueError(f"MACQP(weight={weight}); expected weight > 0.")
        self.weight = weight

    def value(self, activation: AbstractActivation, y: State, z: State) -> Scalar:
        """`weight/2 |y - sigma(z)|^2`."""
        squares = jax.tree.map(lambda y, p: jnp.sum((y - p) ** 2), y, activation(z))
        return 0.5 * self.weight * jax.tree.reduce(jnp.add, squares)

    def slope(self, activation: AbstractActivation, y: State, z: State) -> State:
        """`weight sigma'(z)^T (sigma(z) - y)`."""
        p, pull = jax.vjp(activation, z)
        return pull(jax.tree.map(lambda y, p: self.weight * (p - y), y, p))[0]

    def prox(self, activation: AbstractActivation, v: State, z: State, step: Step) -> State:
        """`(v + step weight sigma(z)) / (1 + step weight)`."""
        scale = step * self.weight
        return jax.tree.map(lambda v, p: (v + scale * p) / (1 + scale), v, activation(z))


class ClassicalLifted(AbstractPenalty):
    """`P(y, z) = |y - z|^2/2 + Psi(y)`, with gradient `z - y` in `z`: the Bregman penalty plus the envelope of `Psi`.

    The envelope depends on `z` alone, so that the state moves as with `Bregman`; the weights do not: for the ReLU it
    adds `min(z, 0)^2/2`, and the penalty is not zero where `y = sigma(z)`. Kept for comparison.

    References:
        A. Askari, G. Negiar, R. Sambharya, L. El Ghaoui, "Lifted Neural Networks", 2018, arXiv:1805.01532.
    """

    def value(self, activation: AbstractActivation, y: State, z: State) -> Scalar:
        """`|y - z|^2/2 + Psi(y)`, as `B(y, z) + |z|^2/2 - phi*(z)`."""
        squares = jax.tree.map(lambda z: jnp.sum(z**2), z)
        return activation.gap(y, z) + (0.5 * jax.tree.reduce(jnp.add, squares) - activation.conjugate(z))

    def slope(self, activation: AbstractActivation, y: State, z: State) -> State:
        """`z - y`."""
        del activation
        return jax.tree.map(jnp.subtract, z, y)

    def prox(self, activation: AbstractActivation, v: State, z: State, step: Step) -> State:
        """`prox_{step phi}(v + step z)`, as for `Bregman`."""
        return Bregman().prox(activation, v, z, step)
