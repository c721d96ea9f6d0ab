"""`u -> sigma(W u + b)`: `Perceptron`, its admissible data, and the dual variable at a solution."""

import math
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Scalar

from .._problem import Problem
from ..maps import AbstractMap, store, unstore
from ..solvers._check import concrete
from ._activations import AbstractActivation, Clip, ReLU
from ._network import LiftedNetwork, operator_norm
from ._wrap import layers_of

NUM_POWER_STEPS = 40
MAX_GRAM = 1024
"""The largest matrix of which eigenvalues are as cheap as a power iteration."""
ROUNDING = 1e-5
"""Of the largest eigenvalue in float32, relative, generously."""
LEAST_THRESHOLD = 3.0
"""Standard deviations of the noise within which a datum always counts as one at the end of the domain."""
IMPOSSIBLE = 6.0
"""Standard deviations of the noise beyond the domain that no noise explains."""


class Perceptron(AbstractMap):
    """One layer: an affine map and a proximal activation, `u -> sigma(W u + b)`.

    Args:
        linear: a matrix of shape `(m, size of u)`, which acts on `u` flattened; or any callable that is affine in `u`,
            a convolution for example. Its transpose is taken from it.
        bias: `b`, shaped like the output; none by default.
        activation: an `AbstractActivation`.
        shape: of `u`; by default `(n,)` for a matrix of `n` columns, and required for a callable.
        dtype: of `u`; by default that of the first array in `linear` or `bias`.

    Raises:
        ValueError: a matrix that does not fit `shape`, a bias that does not fit the matrix, no shape.
    """

    linear: Any
    bias: Any
    activation: AbstractActivation
    structure: jax.ShapeDtypeStruct = eqx.field(static=True)
    prepared: Any = None

    def __init__(
        self,
        linear: Any,
        bias: Any = None,
        activation: AbstractActivation | None = None,
        *,
        shape: tuple[int, ...] | None = None,
        dtype: Any = None,
    ):
        if callable(linear):
            if shape is None:
                raise ValueError("a linear callable does not say the shape of u: write `Perceptron(..., shape=(n,))`.")
            linear = store(linear)
        else:
            linear = jnp.asarray(linear)
            shape = (linear.shape[-1],) if shape is None else tuple(shape)
            if linear.ndim != 2 or linear.shape[1] != int(np.prod(shape)):
                raise ValueError(
                    f"the matrix has shape {linear.shape} and u {shape}; expected (m, {int(np.prod(shape))})."
                )
        bias = None if bias is None else jnp.asarray(bias)
        arrays = [leaf for leaf in jax.tree.leaves((linear, bias)) if eqx.is_inexact_array(leaf)]
        if dtype is None:
            dtype = arrays[0].dtype if arrays else jnp.zeros(()).dtype
        self.linear = linear
        self.bias = bias
        self.activation = ReLU() if activation is None else activation
        self.structure = jax.ShapeDtypeStruct(shape, jnp.dtype(dtype))
        self.prepared = None
        if bias is not None:
            expected = jax.eval_shape(self._product, self.structure).shape
            if bias.shape != expected:
                raise ValueError(f"bias has shape {bias.shape}; expected {expected}, like W u.")

    def __call__(self, x: Float[Array, "*u"]) -> Float[Array, "*y"]:
        """`sigma(W u + b)`."""
        return self.activation(self.affine(x))

    def in_structure(self) -> jax.ShapeDtypeStruct:
        """Shape and dtype of `u`."""
        return self.structure

    def prepare(self) -> "Perceptron":
        """The same map with the norm of `W` computed."""
        if self.prepared is not None:
            return self
        return eqx.tree_at(lambda m: m.prepared, self, self.norm(), is_leaf=lambda leaf: leaf is None)

    def _product(self, u: Array) -> Array:
        return jnp.asarray(self.linear(u)) if callable(self.linear) else self.linear @ jnp.ravel(u)

    def affine(self, u: Float[Array, "*u"]) -> Float[Array, "*y"]:
        """`W u + b`."""
        z = self._product(u)
        return z if self.bias is None else z + self.bias

    def adjoint(self, p: Float[Array, "*y"]) -> Float[Array, "*u"]:
        """`W^T p`."""
        if not callable(self.linear):
            return jnp.reshape(p @ self.linear, self.structure.shape)
        # The callable is affine: nothing of its value is left in the pullback.
        _, pullback = jax.vjp(self._product, jnp.zeros(self.structure.shape, self.structure.dtype))
        return pullback(p)[0]

    def norm(self) -> Scalar:
        """An upper bound of `|W|`.

        Exact up to rounding for a matrix with no more than `MAX_GRAM` rows or columns; else the estimate of a power
        iteration, which comes from below, enlarged by a few percent.
        """
        if self.prepared is not None:
            return self.prepared
        with jax.default_matmul_precision("highest"):
            if not callable(self.linear) and min(self.linear.shape) <= MAX_GRAM:
                matrix = jax.lax.stop_gradient(self.linear)
                gram = matrix @ matrix.T if matrix.shape[0] <= matrix.shape[1] else matrix.T @ matrix
                return jnp.sqrt((1 + ROUNDING) * jnp.max(jnp.linalg.eigvalsh(gram)))
            point = jnp.zeros(self.structure.shape, self.structure.dtype)
            return operator_norm(self.affine, point, num_steps=NUM_POWER_STEPS)


def as_perceptron(forward: Any, name: str) -> Perceptron:
    """The forward map of a problem as a `Perceptron`, for the solver called `name`.

    Raises:
        ValueError: `forward` has more than one layer, or is not understood.
    """
    forward = unstore(forward)
    if isinstance(forward, Perceptron):
        return forward
    try:
        network = forward if isinstance(forward, LiftedNetwork) else None
        layers = layers_of(forward) if network is None else network.layers
    except ValueError as error:
        raise ValueError(
            f"{name} inverts one affine map and one proximal activation; got {type(forward).__name__}. Write "
            f"`Perceptron(matrix, bias, activation)`. ({error})"
        ) from error
    if len(layers) != 1:
        raise ValueError(
            f"{name} inverts a single layer; {type(forward).__name__} has {len(layers)}. Use a solver for deep "
            "networks, which gives the hidden states unknowns of their own."
        )
    if network is None and not isinstance(forward, AbstractMap):
        raise ValueError(
            f"{type(forward).__name__} does not say the shape of u: write `lifted.wrap(model, structure)`."
        )
    structure = forward.in_structure()
    affine = jax.tree_util.Partial(_preactivation, layers[0])
    return Perceptron(affine, activation=layers[0].activation, shape=structure.shape, dtype=structure.dtype)


def _preactivation(layer: Any, u: Array) -> Array:
    return layer.preactivation(u, u)


def admissible_data(
    activation: AbstractActivation, data: Float[Array, "*y"], noise_std: Any = None
) -> Float[Array, "*y"]:
    """The observation that a lifted inversion fits: moved into the domain of the activation.

    Noise takes data out of the range of an activation. There `B(data, .)` is unbounded below but for a constant
    `+inf`, so that

    - data are projected onto the domain; for tanh and sigmoid to a point strictly inside, as at its ends there is no
      minimiser;
    - with a `noise_std`, data of a `ReLU` or a `Clip` within `max(3, sqrt(2 log m))` of them of an end are set to that
      end, `m` the number of data. Clipping alone leaves the positive half of the noise on outputs that are off, and `B`
      charges it in full: an output off by far, `z << 0`, with a datum `e > 0` costs `e |z|`, not `e^2/2`. One such
      datum can spoil a reconstruction, hence the logarithm: the largest of `m` draws of noise stays below it.

    The solvers for perceptrons call this on `problem.data` with `problem.noise_std`. There no datum is refused: a
    solve sees no concrete numbers. To have impossible data refused, call it yourself before.

    Args:
        activation: of the perceptron.
        data: one observation.
        noise_std: scalar or shaped like `data`; for no thresholding, `None`.

    Returns:
        The admissible data. NaN stay NaN.

    Raises:
        ValueError: outside of `jax.jit`, data further than six `noise_std` off the domain: no noise explains them, the
            activation or the scaling of the data must be wrong.

    References:
        D. L. Donoho, I. M. Johnstone, Ideal spatial adaptation by wavelet shrinkage, 1994, doi:10.1093/biomet/81.3.425
        (the threshold).
    """
    if noise_std is not None and concrete(data) and concrete(noise_std):
        excess = np.abs(np.asarray(data - activation.project(data))) / np.asarray(noise_std)
        if np.any(excess > IMPOSSIBLE):
            raise ValueError(
                f"{np.sum(excess > IMPOSSIBLE)} of {data.size} data lie outside the range of "
                f"{type(activation).__name__} by more than {IMPOSSIBLE:g} noise_std, up to {np.max(excess):.3g}; "
                "expected data of the form activation(W u + b) + noise. Is it another activation, are the data "
                "standardised, or is noise_std too small? To accept them, project first: `activation.project(data)`."
            )
    return admit(activation, data, noise_std)


def admit(activation: AbstractActivation, data: Float[Array, "*y"], noise_std: Any) -> Float[Array, "*y"]:
    """`admissible_data`, refusing nothing."""
    projected = activation.project(data)
    if noise_std is not None and isinstance(activation, ReLU | Clip):
        low, high = activation.bounds()
        margin = max(LEAST_THRESHOLD, math.sqrt(2 * math.log(max(data.size, 1)))) * jnp.asarray(noise_std, data.dtype)
        margin = jnp.broadcast_to(margin, data.shape)
        at_low, at_high = projected < low + margin, projected > high - margin
        projected = jnp.where(at_low & ~at_high, low, jnp.where(at_high & ~at_low, high, projected))
    return activation.interior(projected)


def dual_variable(problem: Problem, u: Float[Array, "*u"]) -> Float[Array, "*y"]:
    """`p = sigma(W u + b) - data`, the dual variable of the data term at a solution `u`, with admissible data.

    At a minimiser of `B(data, W u + b) + alpha J(u)` it satisfies `-W^T p in alpha dJ(u)`: `-p / alpha` is a source
    element of `u`, what error bounds ask for.

    Args:
        problem: of a perceptron.
        u: the solution.
    """
    forward = as_perceptron(problem.forward, "dual_variable")
    data = admit(forward.activation, jnp.asarray(problem.data), problem.noise_std)
    return forward(u) - data
