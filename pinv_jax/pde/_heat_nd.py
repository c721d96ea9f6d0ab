"""The heat equation on the unit square and cube, zero on the boundary, as `_heat` has it on the interval."""

import diffrax
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from ..maps import Chain, CubicSine
from ._grid import second_difference
from ._heat import AbstractHeat, AbstractSpectralHeat


class Heat2D(AbstractHeat):
    """Second-order finite differences on the square (five points), a diffrax solver with equal steps in time.

    `u_ij' = diffusivity * (sum of the four neighbours - 4 u_ij) / h^2` on the interior points `(i h, j h)`,
    `h = 1 / (n + 1)`.

    Args:
        num_points: interior points `n` along either axis; `x` and `y` have shape `(n, n)`.
        diffusivity: in units of length squared per time; kept as an array, so that it can be differentiated.
        final_time: time at which the state is observed.
        num_steps: number of time steps. By default the fewest that stay within 90 % of the stability limit of an
            explicit solver, `step_size <= limit h^2 / (8 diffusivity)`; 100 for other solvers.
        solver: a diffrax solver; `diffrax.Heun()` by default.
        dtype: of the state; the default float by default.

    Raises:
        ValueError: the steps of an explicit solver are too long to be stable; the message names the longest.
    """

    num_dimensions = 2

    def __init__(
        self,
        num_points: int = 16,
        diffusivity: float = 0.1,
        final_time: float = 0.03,
        num_steps: int | None = None,
        *,
        solver: diffrax.AbstractSolver | None = None,
        dtype: DTypeLike | None = None,
    ):
        super().__init__(num_points, diffusivity, final_time, num_steps, solver=solver, dtype=dtype)


class Heat3D(AbstractHeat):
    """Second-order finite differences on the cube (seven points), a diffrax solver with equal steps in time.

    `u_ijk' = diffusivity * (sum of the six neighbours - 6 u_ijk) / h^2` on the interior points, `h = 1 / (n + 1)`.

    Args:
        num_points: interior points `n` along each axis; `x` and `y` have shape `(n, n, n)`.
        diffusivity: in units of length squared per time; kept as an array, so that it can be differentiated.
        final_time: time at which the state is observed.
        num_steps: number of time steps. By default the fewest that stay within 90 % of the stability limit of an
            explicit solver, `step_size <= limit h^2 / (12 diffusivity)`; 100 for other solvers.
        solver: a diffrax solver; `diffrax.Heun()` by default.
        dtype: of the state; the default float by default.

    Raises:
        ValueError: the steps of an explicit solver are too long to be stable; the message names the longest.
    """

    num_dimensions = 3

    def __init__(
        self,
        num_points: int = 8,
        diffusivity: float = 0.1,
        final_time: float = 0.012,
        num_steps: int | None = None,
        *,
        solver: diffrax.AbstractSolver | None = None,
        dtype: DTypeLike | None = None,
    ):
        super().__init__(num_points, diffusivity, final_time, num_steps, solver=solver, dtype=dtype)


class SpectralHeat2D(AbstractSpectralHeat):
    """The exact solution for initial states in the span of the grid's sines on the square.

    `y = P x P^T`, where `P = S diag(exp(-diffusivity (pi k)^2 final_time)) S^T` is the propagator of one axis.

    Args:
        num_points: interior points along either axis; `x` and `y` have shape `(n, n)`.
        diffusivity: in units of length squared per time.
        final_time: time at which the state is observed.
        dtype: of the state; the default float by default.
    """

    num_dimensions = 2

    def __init__(
        self,
        num_points: int = 16,
        diffusivity: float = 0.1,
        final_time: float = 0.03,
        *,
        dtype: DTypeLike | None = None,
    ):
        super().__init__(num_points, diffusivity, final_time, dtype=dtype)


class SpectralHeat3D(AbstractSpectralHeat):
    """The exact solution for initial states in the span of the grid's sines on the cube.

    The propagator `P` of one axis, `S diag(exp(-diffusivity (pi k)^2 final_time)) S^T`, is applied along each.

    Args:
        num_points: interior points along each axis; `x` and `y` have shape `(n, n, n)`.
        diffusivity: in units of length squared per time.
        final_time: time at which the state is observed.
        dtype: of the state; the default float by default.

    References:
        A. L. Kachhadiya, "Local Inverse Geometry Can Be Amortized", 2026, arXiv:2605.13068; the defaults are its
        Heat-3D.
    """

    num_dimensions = 3

    def __init__(
        self,
        num_points: int = 8,
        diffusivity: float = 0.1,
        final_time: float = 0.012,
        *,
        dtype: DTypeLike | None = None,
    ):
        super().__init__(num_points, diffusivity, final_time, dtype=dtype)


def observed_heat_2d(num_points: int = 16, *, dtype: DTypeLike | None = None) -> Chain:
    """Heat on the square seen through a blurring, nonlinear sensor: our counterpart of `observed_heat_3d`.

    The published Heat-2D is not specified. Here diffusivity 0.1 and time 0.03 make the modes up to four along either
    axis decay by factors between 0.94 and 0.39; blur and sensor are those of Heat-3D, with four neighbours.

    Args:
        num_points: interior points along either axis; `x` and `y` have shape `(n, n)`.
        dtype: of the state; the default float by default.

    Returns:
        `Chain([SpectralHeat2D, blur, CubicSine])`.
    """
    return _observed(SpectralHeat2D(num_points, dtype=dtype))


def observed_heat_3d(num_points: int = 8, *, dtype: DTypeLike | None = None) -> Chain:
    """The published Heat-3D physics: diffusion, blur by neighbours, nonlinear sensor.

    `y = z + 0.02 z^3 + 0.008 sin(2 z)` with `z = 0.975 u + 0.025 blur(u)`, where `u` is the heat at time 0.012 and
    `blur` weighs the point by 8 and its six neighbours by 1 each, divided by 14, with zeros beyond the boundary.

    Args:
        num_points: interior points along each axis; `x` and `y` have shape `(n, n, n)`.
        dtype: of the state; the default float by default.

    Returns:
        `Chain([SpectralHeat3D, blur, CubicSine])`.

    References:
        A. L. Kachhadiya, "Local Inverse Geometry Can Be Amortized", 2026, arXiv:2605.13068.
    """
    return _observed(SpectralHeat3D(num_points, dtype=dtype))


def _observed(heat: AbstractSpectralHeat) -> Chain:
    structure = heat.in_structure()
    return Chain([heat, _mix, CubicSine(structure.shape, cubic=0.02, sine=0.008, frequency=2.0, dtype=structure.dtype)])


def _mix(u: Float[Array, "*n"]) -> Float[Array, "*n"]:
    """`0.975 u + 0.025 blur(u)`: as the weights of `blur` sum to one, it is `u` plus a multiple of the differences."""
    return u + 0.025 / (8 + 2 * u.ndim) * second_difference(u)
