"""Advection and diffusion `u_t + div(v u) = diffusivity * Laplacian(u)` on the periodic unit square."""

import math

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from ..maps import AbstractMap
from ._grid import neighbour
from ._timestep import integrate, stable_num_steps


class AdvectionDiffusion2D(AbstractMap):
    """Finite volumes with central fluxes, a diffrax solver with equal steps in time.

    The flux from a cell to the next, `u` to `w`, `h = 1 / n` apart, is `v (u + w) / 2 - diffusivity (w - u) / h`. What
    leaves one cell enters the next, so the mean of `u` stays, to rounding; and what the velocities carry through the
    four faces of a cell sums to zero, so a constant stays too. The error is `O(h^2) + O(step_size^p)`.

    By default the velocity is a uniform wind with four vortices,
    `v = (1/2 + sin(2 pi s_0) cos(2 pi s_1) / 2, 1/4 - cos(2 pi s_0) sin(2 pi s_1) / 2)`: free of divergence, and its
    largest component is 1. The diffusivity is `U L / peclet` with the largest component `U` and the side `L = 1`.

    For explicit solvers the steps obey the diffusive bound `step_size <= limit h^2 / (8 diffusivity)`. On a grid with
    `U h / diffusivity <= 2`, which is required, the advective (CFL) bound follows from it: the eigenvalues then lie in
    a disc that touches the imaginary axis, and that disc is inside the stability region.

    Args:
        num_points: points `n` along either axis; `x[i, j]` is the state at `(i / n, j / n)`.
        peclet: strength of advection over diffusion, positive.
        final_time: time at which the state is observed; with `U = 1` in the time it takes to cross the square.
        num_steps: number of time steps. By default the fewest that stay within 90 % of the diffusive bound; 100 for
            solvers that are not explicit.
        velocity: components `(v_0, v_1)` of a uniform velocity, or `None` for the field above.
        solver: a diffrax solver; `diffrax.Heun()` by default.
        dtype: of the state; the default float by default.

    Raises:
        ValueError: the grid does not resolve the Peclet number, the steps of an explicit solver are too long to be
            stable, or nothing moves.
    """

    diffusivity: Float[Array, ""]
    velocity_0: Float[Array, "n n"]
    velocity_1: Float[Array, "n n"]
    final_time: float = eqx.field(static=True)
    num_steps: int = eqx.field(static=True)
    solver: diffrax.AbstractSolver = eqx.field(static=True)

    def __init__(
        self,
        num_points: int = 32,
        peclet: float = 20.0,
        final_time: float = 0.25,
        num_steps: int | None = None,
        *,
        velocity: tuple[float, float] | None = None,
        solver: diffrax.AbstractSolver | None = None,
        dtype: DTypeLike | None = None,
    ):
        wind, vortex = ((0.5, 0.25), 0.5) if velocity is None else (velocity, 0.0)
        largest = max(abs(component) for component in wind) + vortex
        if peclet <= 0 or final_time <= 0 or largest == 0:
            raise ValueError(
                f"AdvectionDiffusion2D expected peclet > 0, final_time > 0 and a velocity that is not zero, got "
                f"peclet={peclet:g}, final_time={final_time:g}, velocity={velocity}. Without a velocity it is the heat "
                "equation."
            )
        if peclet > 2 * num_points:
            raise ValueError(
                f"AdvectionDiffusion2D got peclet={peclet:g} on {num_points} points along an axis, which do not "
                f"resolve it: the Peclet number of one cell, peclet / num_points = {peclet / num_points:.3g}, is above "
                f"2, where central differences oscillate. Use num_points >= {math.ceil(peclet / 2)}, or "
                f"peclet <= {2 * num_points}."
            )
        dtype = jnp.result_type(float if dtype is None else dtype)
        diffusivity = largest / peclet
        self.solver = diffrax.Heun() if solver is None else solver
        self.num_steps = stable_num_steps(
            f"AdvectionDiffusion2D on {num_points} points along an axis with peclet {peclet:g}",
            self.solver,
            8 * diffusivity * num_points**2,
            final_time,
            num_steps,
        )
        self.final_time = final_time
        # Differences of the stream function between the corners of a cell: exact means over its faces.
        sine = np.sin(2 * np.pi * (np.arange(num_points) + 0.5) / num_points)
        stream = vortex / (2 * np.pi) * np.outer(sine, sine)
        self.diffusivity = jnp.asarray(diffusivity, dtype)
        self.velocity_0 = jnp.asarray(wind[0] + num_points * (stream - np.roll(stream, 1, 1)), dtype)
        self.velocity_1 = jnp.asarray(wind[1] - num_points * (stream - np.roll(stream, 1, 0)), dtype)

    def __call__(self, x: Float[Array, "n n"]) -> Float[Array, "n n"]:
        """The state at `final_time` for the initial state `x`."""
        num_points = self.velocity_0.shape[0]
        diffusion = (self.diffusivity * num_points**2).astype(x.dtype)
        advection = [(0.5 * num_points * v).astype(x.dtype) for v in (self.velocity_0, self.velocity_1)]
        # What the two cells beside a face contribute to the flux through it: for the faces before and after each cell.
        args = []
        for axis, v in enumerate(advection):
            own, other = v + diffusion, v - diffusion
            args.append((jnp.roll(own, 1, axis), jnp.roll(other, 1, axis), own, other))
        return integrate(
            _inflow, x, solver=self.solver, final_time=self.final_time, num_steps=self.num_steps, args=args
        )

    def in_structure(self) -> jax.ShapeDtypeStruct:
        """Shape and dtype of `x`."""
        return jax.ShapeDtypeStruct(self.velocity_0.shape, self.velocity_0.dtype)


def _inflow(t: Array, u: Float[Array, "n n"], args: list[tuple[Array, ...]]) -> Float[Array, "n n"]:
    """What flows into every cell: along either axis, the flux through the face before less that through the next.

    Either flux is computed twice from the same numbers; rolling the fluxes costs more.
    """
    # Without the barrier, XLA computes `u` anew for each of its neighbours: twice the time on a CPU.
    padded = jax.lax.optimization_barrier(jnp.pad(u, 1, mode="wrap"))
    total = jnp.zeros_like(u)
    for axis, (before, at_before, at_after, after) in enumerate(args):
        inward = before * neighbour(padded, axis, -1) + at_before * u
        outward = at_after * u + after * neighbour(padded, axis, 1)
        total = total + (inward - outward)
    return total
