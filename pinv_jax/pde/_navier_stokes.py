"""Two-dimensional Navier-Stokes, `w_t + (v . grad) w = viscosity * Laplacian(w)`: vorticity on the unit torus."""

import math

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Complex, Float

from ..maps import AbstractMap
from ._fourier import wavenumbers_2d
from ._timestep import _tableau, integrate


class NavierStokes2D(AbstractMap):
    """Pseudo-spectral in space with the 2/3 rule, a diffrax solver with equal steps in time.

    The velocity is `v = (psi_y, -psi_x)` with `Laplacian(psi) = -w`, and without a mean. In the form of Basdevant,
    which takes four real Fourier transforms,

    `w_t = (d_yy - d_xx)(v_0 v_1) + d_xy (v_0^2 - v_1^2) + viscosity Laplacian(w)`.

    Modes with a wavenumber of a third of the grid or more along either axis are set to zero, in the initial state too:
    the map does not see them. Then products have no aliasing errors, and the equations on the grid keep the mean of
    `w`, and, without viscosity, energy and enstrophy; steps in time add an error of the order of the solver. Errors in
    space decay faster than any power of the spacing.

    Args:
        num_points: grid points `n` along either axis; `x[i, j]` is the vorticity at `(i / n, j / n)`.
        viscosity: in units of length squared per time, the side of the square being 1; kept as an array, so that it can
            be differentiated. Zero is the Euler equation: reversible, and all the enstrophy stays on the grid, so
            that it is trustworthy only as long as the finest modes are not reached.
        final_time: time at which the vorticity is observed.
        num_steps: number of time steps. By default the fewest that stay within 90 % of the stability limit of an
            explicit solver; 100 for other solvers.
        max_speed: the largest speed that is expected: the time steps depend on it, and flows well above may blow up. A
            vorticity `a sin(2 pi k s)` has speed `a / (2 pi k)`.
        solver: a diffrax solver; `diffrax.Bosh3()` by default: of third order with three evaluations, and stable for
            waves, which Euler's and Heun's methods are not.
        dtype: of the vorticity; the default float by default.

    Raises:
        ValueError: the steps of an explicit solver are too long to be stable at `max_speed` (the message names the
            longest); a negative viscosity; fewer than four points, which keep no mode.

    References:
        C. Basdevant, "Technical improvements for direct numerical simulation of homogeneous three-dimensional
        turbulence", 1983, J. Comput. Phys. 50, 209-214.
        S. A. Orszag, "On the elimination of aliasing in finite-difference schemes by filtering high-wavenumber
        components", 1971, J. Atmos. Sci. 28, 1074.
    """

    viscosity: Float[Array, ""]
    num_points: int = eqx.field(static=True)
    final_time: float = eqx.field(static=True)
    num_steps: int = eqx.field(static=True)
    solver: diffrax.AbstractSolver = eqx.field(static=True)

    def __init__(
        self,
        num_points: int = 32,
        viscosity: float = 1e-3,
        final_time: float = 0.5,
        num_steps: int | None = None,
        *,
        max_speed: float = 1.0,
        solver: diffrax.AbstractSolver | None = None,
        dtype: DTypeLike | None = None,
    ):
        if num_points < 4:
            raise ValueError(
                f"NavierStokes2D got {num_points} points along an axis: wavenumbers below a third of that are "
                "kept, and there are none but the mean. Use num_points >= 4."
            )
        if viscosity < 0 or max_speed <= 0 or final_time <= 0:
            raise ValueError(
                "NavierStokes2D expected viscosity >= 0, max_speed > 0 and final_time > 0, got "
                f"viscosity={viscosity:g}, max_speed={max_speed:g}, final_time={final_time:g}. A negative viscosity is "
                "ill-posed: every mode grows, the finest ones fastest."
            )
        self.solver = diffrax.Bosh3() if solver is None else solver
        limit = _largest_stable_step(self.solver, num_points, viscosity, max_speed)
        if num_steps is None:
            num_steps = 100 if limit is None else math.ceil(final_time / (0.9 * limit))
        elif num_steps < 1 or (limit is not None and final_time > limit * num_steps):
            needed = 1 if limit is None else math.ceil(final_time / limit)
            raise ValueError(
                f"NavierStokes2D with {type(self.solver).__name__} got num_steps={num_steps} for final_time="
                f"{final_time:g}: on {num_points} points at speeds up to max_speed={max_speed:g} with viscosity "
                f"{viscosity:g}, the largest stable step (CFL) is {final_time if limit is None else limit:.3g}. Use "
                f"num_steps >= {needed}, or leave num_steps out."
            )
        self.viscosity = jnp.asarray(viscosity, jnp.result_type(float if dtype is None else dtype))
        self.num_points, self.final_time, self.num_steps = num_points, final_time, num_steps

    def __call__(self, x: Float[Array, "n n"]) -> Float[Array, "n n"]:
        """The vorticity at `final_time` for the initial vorticity `x`."""
        first, second = wavenumbers_2d(self.num_points)
        squared = first**2 + second**2
        safe = np.where(squared > 0, squared, 1.0)  # the mean vorticity comes with no velocity
        kept = np.maximum(np.abs(first), np.abs(second)) < 2 * np.pi * self.num_points / 3
        symbols = second / safe, -first / safe, kept * (first**2 - second**2), kept * first * second, squared
        to_velocity_0, to_velocity_1, of_product, of_squares, laplacian = (jnp.asarray(s, x.dtype) for s in symbols)
        rates = self.viscosity.astype(x.dtype) * laplacian

        def slope(t: Array, w: Complex[Array, "n half"], args: None) -> Complex[Array, "n half"]:
            first, second = (jnp.fft.irfft2(1j * symbol * w, x.shape) for symbol in (to_velocity_0, to_velocity_1))
            product, squares = jnp.fft.rfft2(first * second), jnp.fft.rfft2(second**2 - first**2)
            return of_product * product + of_squares * squares - rates * w

        w = integrate(
            slope,
            jnp.asarray(kept, x.dtype) * jnp.fft.rfft2(x),
            solver=self.solver,
            final_time=self.final_time,
            num_steps=self.num_steps,
        )
        return jnp.fft.irfft2(w, x.shape)

    def in_structure(self) -> jax.ShapeDtypeStruct:
        """Shape and dtype of `x`."""
        return jax.ShapeDtypeStruct((self.num_points, self.num_points), self.viscosity.dtype)


def _largest_stable_step(
    solver: diffrax.AbstractSolver, num_points: int, viscosity: float, max_speed: float
) -> float | None:
    """The largest step at which no mode of a uniform flow grows; `None` for a solver that is not explicit.

    Mode `k` follows `u' = (i max_speed |k| - viscosity |k|^2) u`, which one step multiplies by the stability function.
    """
    tableau = _tableau(solver)
    if tableau is None:
        return None
    rows, weights, _ = tableau
    largest = 2 * np.pi * math.sqrt(2) * ((num_points - 1) // 3)
    modes = np.linspace(0, largest, 50)[None, 1:]
    steps = np.geomspace(1e-4, 20, 2000)[:, None] / (max_speed * largest + viscosity * largest**2)
    z = steps * (1j * max_speed * modes - viscosity * modes**2)
    slopes = []
    for row in rows:
        slopes.append(z + z * sum(a * slope for a, slope in zip(row, slopes, strict=True)))
    factor = 1 + sum(b * slope for b, slope in zip(weights, slopes, strict=True))
    unstable = np.any(np.abs(factor) > 1 + 1e-9, axis=1)
    return float(steps[max(int(np.argmax(unstable)) - 1, 0), 0])
