"""`u_k = clip(u_{k-1} - tau_k L_k (L_k' u_{k-1} - x))`, `y = x - L_K' u_{K-1}`: an unfolded proximal denoiser."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Key, Scalar

from ._activations import Clip, Identity
from ._network import Layer, LiftedNetwork, operator_norm


class DualStep(Layer):
    """A step of dual forward-backward splitting: `z = u - tau L (L' u - x)`, where `x` is the input of the network.

    Affine in `u`, not in `L`.

    Args:
        operator: `L`, shape `(features, size of x)`.
        step_size: `tau`, below `2 / |L|^2`; no gradient reaches it, `refreshed` sets it to `1 / |L|^2`.
        threshold: the states lie in `[-threshold, threshold]`.
    """

    operator: Float[Array, "q d"]
    step_size: Scalar

    def __init__(self, operator: Float[Array, "q d"], threshold: float | int):
        self.operator = operator
        self.step_size = _step_size(operator)
        self.activation = Clip(-threshold, threshold)
        self.affine = None

    def preactivation(self, previous: Float[Array, "..."], x: Float[Array, "*x"]) -> Float[Array, " q"]:
        """`z`; the first layer of a network, whose state before is `x` itself, starts from `u = 0`."""
        tau = jax.lax.stop_gradient(self.step_size)
        return previous - tau * (self.operator @ (self.operator.T @ previous - jnp.ravel(x)))

    def refreshed(self) -> "DualStep":
        """The same layer with the step size that belongs to its operator."""
        return eqx.tree_at(lambda layer: layer.step_size, self, _step_size(self.operator))


class FirstDualStep(DualStep):
    """`DualStep` from `u = 0`: `z = tau L x`."""

    def preactivation(self, previous: Float[Array, "*x"], x: Float[Array, "*x"]) -> Float[Array, " q"]:
        """`z`."""
        del x
        return jax.lax.stop_gradient(self.step_size) * (self.operator @ jnp.ravel(previous))


class PrimalPoint(Layer):
    """`y = x - L' u`, the denoised signal."""

    operator: Float[Array, "q d"]

    def __init__(self, operator: Float[Array, "q d"]):
        self.operator = operator
        self.activation = Identity()
        self.affine = None

    def preactivation(self, previous: Float[Array, " q"], x: Float[Array, "*x"]) -> Float[Array, "*x"]:
        """`y`."""
        return x - jnp.reshape(self.operator.T @ previous, x.shape)


def proximal_network(
    structure: jax.ShapeDtypeStruct | Array,
    num_features: int,
    num_layers: int,
    *,
    threshold: float,
    dtype: DTypeLike | None = None,
    key: Key[Array, ""],
) -> LiftedNetwork:
    """An unfolded denoiser of `num_layers` dual forward-backward steps, each with an operator of its own.

    With one operator `L` in all layers it converges to `argmin_y |y - x|^2 / 2 + threshold |L y|_1`.

    Args:
        structure: of the noisy signal `x`.
        num_features: `q`, rows of the operators.
        num_layers: dual steps.
        threshold: of the dual states.
        dtype: of the parameters; that of `structure` by default.
        key: random key; the operators start at one and the same normal matrix with `|L|` about one.

    References:
        A. Chambolle, "An Algorithm for Total Variation Minimization and Applications", 2004,
        doi:10.1023/B:JMIV.0000011325.36760.1e. X. Wang, M. Benning, A. Repetti, "A lifted Bregman strategy for training
        unfolded proximal neural network Gaussian denoisers", 2024, arXiv:2408.08742.
    """
    if num_layers < 1 or num_features < 1 or not threshold > 0:
        raise ValueError(
            f"proximal_network: num_layers={num_layers}, num_features={num_features}, threshold={threshold}; expected "
            "positive ones."
        )
    size = 1
    for side in structure.shape:
        size *= side
    dtype = structure.dtype if dtype is None else dtype
    operator = jax.random.normal(key, (num_features, size), dtype) / (num_features**0.5 + size**0.5)
    steps: list[Any] = [FirstDualStep(operator, threshold)]  # pyright: ignore[reportCallIssue] (fields of the base)
    steps += [DualStep(operator, threshold) for _ in range(num_layers - 1)]
    return LiftedNetwork([*steps, PrimalPoint(operator)], structure)


def _step_size(operator: Float[Array, "q d"]) -> Scalar:
    norm = operator_norm(lambda v: operator @ v, jnp.zeros(operator.shape[1], operator.dtype))
    return 1 / norm**2
