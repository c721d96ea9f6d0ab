"""Random functions of one variable: `transform(sum_k c_k phi_k)` with independent normal coefficients."""

import functools
import math
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Key

from ..maps import Stored, store
from ..pde import sine_basis


class GaussianSeries(eqx.Module):
    """The random function `transform(sum_k c_k phi_k)`, `c_k ~ N(0, std_k^2)`, sampled on a grid.

    Args:
        basis: the functions `phi_k` as columns, shape `(n, k)`.
        std: standard deviations of the coefficients.
        transform: applied to the series, `(n,) -> (n,)`; by default nothing.
    """

    basis: Float[Array, "n k"]
    std: Float[Array, " k"]
    transform: Stored | None

    def __init__(
        self,
        basis: Float[Array, "n k"],
        std: Float[Array, " k"],
        transform: Callable[..., Any] | None = None,
    ):
        self.basis, self.std, self.transform = basis, std, store(transform)

    def __call__(self, key: Key[Array, ""]) -> Float[Array, " n"]:
        """One random function."""
        coefficients = self.std * jax.random.normal(key, self.std.shape, self.std.dtype)
        with jax.default_matmul_precision("highest"):
            field = self.basis @ coefficients
        return field if self.transform is None else self.transform(field)


def minmax_sine_series(num_points: int = 64, num_modes: int = 10, *, dtype: DTypeLike | None = None) -> GaussianSeries:
    """Sine series with coefficients `N(0, 1) / k`, each function then scaled to fill [0, 1].

    The first coefficient gets an extra `N(0, 0.25^2)`. The scaling adds a constant to the sines: the data span
    `num_modes + 1` dimensions. The sines are of unit Euclidean norm on the interior grid.

    Args:
        num_points: points of `pde.interior_grid`.
        num_modes: number of sines.
        dtype: of the samples; the default float by default.

    References:
        A. L. Kachhadiya, "Local Inverse Geometry Can Be Amortized", 2026, arXiv:2605.13068 (Heat-1D).
    """
    basis = sine_basis(num_points, num_modes, dtype)
    std = 1.0 / jnp.arange(1, num_modes + 1, dtype=basis.dtype)
    return GaussianSeries(basis, std.at[0].set(math.hypot(1.0, 0.25)), _to_unit_interval)


def clipped_sine_series(
    num_points: int = 64,
    num_modes: int = 12,
    *,
    std: float = 0.5,
    bound: float = 3.0,
    dtype: DTypeLike | None = None,
) -> GaussianSeries:
    """`sum_k c_k sin(pi k s)` on a grid with both end points, `c_k ~ N(0, std^2)`, clipped to `[-bound, bound]`.

    The ends are zero.

    Args:
        num_points: grid points on [0, 1], both ends included.
        num_modes: number of sines.
        std: standard deviation of every coefficient.
        bound: where the functions are clipped.
        dtype: of the samples; the default float by default.

    References:
        A. L. Kachhadiya, "Deceptron: Learned Local Inverses", 2025, arXiv:2511.21076 (Heat-1D).
    """
    inner = sine_basis(num_points - 2, num_modes, dtype) * math.sqrt((num_points - 1) / 2)
    return GaussianSeries(
        jnp.pad(inner, ((1, 1), (0, 0))),
        jnp.full(num_modes, std, inner.dtype),
        functools.partial(jnp.clip, min=-bound, max=bound),
    )


def matern_field(
    num_points: int = 64,
    length_scale: float = 0.1,
    *,
    smoothness: float = 1.5,
    std: float = 1.0,
    dtype: DTypeLike | None = None,
) -> GaussianSeries:
    """A Gaussian random field on (0, 1) with the Matern covariance of half-integer smoothness.

    With `d = sqrt(2 smoothness) |s - s'| / length_scale` the covariance is `std^2 exp(-d) p(d)`, where `p` is `1`,
    `1 + d` or `1 + d + d^2 / 3`. Exact on the grid, by the Karhunen-Loeve expansion of the covariance matrix: the
    basis is its eigenvectors rather than sines.

    Args:
        num_points: points of `pde.interior_grid`.
        length_scale: correlation length.
        smoothness: 0.5, 1.5 or 2.5.
        std: standard deviation at every point.
        dtype: of the samples; the default float by default.

    Raises:
        ValueError: another smoothness.

    References:
        C. E. Rasmussen, C. K. I. Williams, "Gaussian Processes for Machine Learning", 2006, MIT Press, eq. 4.17.
    """
    polynomials = {0.5: [1.0], 1.5: [1.0, 1.0], 2.5: [1 / 3, 1.0, 1.0]}
    if smoothness not in polynomials:
        raise ValueError(f"matern_field expected a smoothness of 0.5, 1.5 or 2.5, got {smoothness}.")
    points = np.arange(1, num_points + 1) / (num_points + 1)
    distance = math.sqrt(2 * smoothness) * np.abs(points[:, None] - points[None, :]) / length_scale
    values, vectors = np.linalg.eigh(std**2 * np.exp(-distance) * np.polyval(polynomials[smoothness], distance))
    dtype = jnp.result_type(float if dtype is None else dtype)
    return GaussianSeries(jnp.asarray(vectors, dtype), jnp.asarray(np.sqrt(np.maximum(values, 0.0)), dtype))


def _to_unit_interval(field: Float[Array, " n"]) -> Float[Array, " n"]:
    low, high = jnp.min(field), jnp.max(field)
    return (field - low) / (high - low + 1e-8)  # the small number is the paper's guard for a constant function
