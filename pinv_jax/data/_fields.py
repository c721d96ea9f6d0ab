"""Random fields on squares, cubes and the torus: products of sines, and Gaussian fields by Fourier transform."""

import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Key

from ..pde import interior_grid, sine_basis, wavenumbers_2d
from ._series import _to_unit_interval


class SineField(eqx.Module):
    """Sums of products of sines with coefficients `N(0, 1) / (i j ...)`, each then scaled to fill [0, 1].

    Before the scaling, one Gaussian bump `a exp(-sum_d (s_d - c_d)^2 / (2 w_d^2))` is added if there are `amplitudes`:
    uniform centre in `[0.3, 0.7]^d`, width of each axis uniform in `[0.10, 0.14]`, amplitude uniform in `amplitudes`.

    Args:
        basis: sines of one axis as columns.
        points: the grid of one axis.
        num_dimensions: how many axes.
        amplitudes: least and greatest amplitude of the bump; `None` for no bump.
    """

    basis: Float[Array, "n k"]
    points: Float[Array, " n"]
    num_dimensions: int = eqx.field(static=True)
    amplitudes: tuple[float, float] | None = eqx.field(static=True)

    def __call__(self, key: Key[Array, ""]) -> Float[Array, "..."]:
        """One random field."""
        series_key, bump_key = jax.random.split(key)
        num_modes, dtype = self.basis.shape[1], self.basis.dtype
        factors = [1 / np.arange(1, num_modes + 1)] * self.num_dimensions
        std = jnp.asarray(functools.reduce(np.multiply.outer, factors), dtype)
        field = std * jax.random.normal(series_key, std.shape, dtype)
        with jax.default_matmul_precision("highest"):
            for _ in range(self.num_dimensions):  # contracts the first axis, appends its grid axis at the end
                field = jnp.tensordot(field, self.basis, (0, 1))
        if self.amplitudes is not None:
            field = field + _bump(self.points, self.num_dimensions, *self.amplitudes, key=bump_key)
        return _to_unit_interval(field.ravel()).reshape(field.shape)


def sine_series_2d(num_points: int = 16, num_modes: int = 4, *, dtype: DTypeLike | None = None) -> SineField:
    """`sum_{i,j} c_ij phi_i(s) phi_j(t)`, `c_ij ~ N(0, 1) / (i j)`, each function then scaled to fill [0, 1].

    The two-dimensional form, ours, of `minmax_sine_series`. The data span `num_modes^2 + 1` dimensions.

    Args:
        num_points: points of `pde.interior_grid` along either axis.
        num_modes: number of sines along either axis.
        dtype: of the samples; the default float by default.
    """
    return SineField(sine_basis(num_points, num_modes, dtype), interior_grid(num_points, dtype), 2, None)


def minmax_sine_bump_3d(num_points: int = 8, *, dtype: DTypeLike | None = None) -> SineField:
    """`sum_{i,j,k<=3} c_ijk phi_i phi_j phi_k` plus a weak bump, each function then scaled to fill [0, 1].

    `c_ijk ~ N(0, 1) / (i j k)`, and sines of unit Euclidean norm on the grid. One Gaussian bump of uniform centre in
    `[0.3, 0.7]^3`, widths in `[0.10, 0.14]` (taken as standard deviations) and amplitude in `[0.02, 0.10]`.

    Args:
        num_points: points of `pde.interior_grid` along every axis.
        dtype: of the samples; the default float by default.

    References:
        A. L. Kachhadiya, "Local Inverse Geometry Can Be Amortized", 2026, arXiv:2605.13068 (Heat-3D).
    """
    return SineField(sine_basis(num_points, 3, dtype), interior_grid(num_points, dtype), 3, (0.02, 0.10))


class PeriodicField2D(eqx.Module):
    """A stationary Gaussian field on the unit torus: white noise, filtered mode by mode.

    Args:
        gain: factor of every Fourier mode of white noise, in the layout of `jnp.fft.rfft2`.
        num_points: grid points along either axis.
    """

    gain: Float[Array, "n half"]
    num_points: int = eqx.field(static=True)

    def __call__(self, key: Key[Array, ""]) -> Float[Array, "n n"]:
        """One random field."""
        shape = (self.num_points, self.num_points)
        noise = jax.random.normal(key, shape, self.gain.dtype)
        return jnp.fft.irfft2(self.gain * jnp.fft.rfft2(noise), shape)


def periodic_field_2d(
    num_points: int = 32,
    length_scale: float = 0.2,
    *,
    smoothness: float = 2.5,
    std: float = 1.0,
    dtype: DTypeLike | None = None,
) -> PeriodicField2D:
    """A Gaussian random field on the unit torus, of mean zero over every sample, with a Matern spectrum.

    Mode `k` has variance proportional to `(2 smoothness / length_scale^2 + |2 pi k|^2)^-(smoothness + 1)`; the constant
    mode has none. The variance at every point is `std^2`, on the grid exactly.

    Args:
        num_points: points `i / num_points` along either axis.
        length_scale: correlation length, in units of the period.
        smoothness: the field has fewer than this many derivatives.
        std: standard deviation at every point.
        dtype: of the samples; the default float by default.

    Raises:
        ValueError: the length scale or the smoothness is not positive.

    References:
        C. E. Rasmussen, C. K. I. Williams, "Gaussian Processes for Machine Learning", 2006, MIT Press, eq. 4.15.
    """
    if length_scale <= 0 or smoothness <= 0:
        raise ValueError(
            "periodic_field_2d expected a positive length_scale and smoothness, got "
            f"length_scale={length_scale}, smoothness={smoothness}."
        )
    first, second = wavenumbers_2d(num_points)
    squared = first**2 + second**2
    variance = (2 * smoothness / length_scale**2 + squared) ** -(smoothness + 1)
    variance[0, 0] = 0.0
    # Columns that stand for a pair of conjugate modes count twice.
    count = np.full(second.shape, 2.0)
    count[:, 0] = 1.0
    if num_points % 2 == 0:
        count[:, -1] = 1.0
    gain = std * num_points * np.sqrt(variance / np.sum(count * variance))
    return PeriodicField2D(jnp.asarray(gain, jnp.result_type(float if dtype is None else dtype)), num_points)


def _bump(
    points: Float[Array, " n"], num_dimensions: int, low: float, high: float, *, key: Array
) -> Float[Array, "..."]:
    """A product of Gaussians, one factor for each axis, times an amplitude between `low` and `high`."""
    centre_key, width_key, amplitude_key = jax.random.split(key, 3)
    shape, dtype = (num_dimensions, 1), points.dtype
    centre = jax.random.uniform(centre_key, shape, dtype, 0.3, 0.7)
    width = jax.random.uniform(width_key, shape, dtype, 0.10, 0.14)
    factors = jnp.exp(-((points[None, :] - centre) ** 2) / (2 * width**2))
    amplitude = jax.random.uniform(amplitude_key, (), dtype, low, high)
    return amplitude * functools.reduce(lambda left, right: jnp.tensordot(left, right, 0), factors)
