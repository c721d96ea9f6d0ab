"""The heat equation `u_t = diffusivity * Laplacian(u)`, zero on the boundary: from the initial to the final state."""

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from ..maps import AbstractMap, Chain, CubicSine, LinearMap
from ._grid import second_difference, sines_on_host
from ._timestep import integrate, stable_num_steps


class AbstractHeat(AbstractMap):
    """Second-order finite differences on the interior grid of the unit cube, a diffrax solver with equal steps in time.

    Implementing a heat equation: the class variable `num_dimensions`, and the defaults of `__init__`.
    """

    num_dimensions: eqx.AbstractClassVar[int]

    diffusivity: Float[Array, ""]
    num_points: int = eqx.field(static=True)
    final_time: float = eqx.field(static=True)
    num_steps: int = eqx.field(static=True)
    solver: diffrax.AbstractSolver = eqx.field(static=True)

    def __init__(
        self,
        num_points: int,
        diffusivity: float,
        final_time: float,
        num_steps: int | None = None,
        *,
        solver: diffrax.AbstractSolver | None = None,
        dtype: DTypeLike | None = None,
    ):
        if diffusivity <= 0 or final_time <= 0:
            raise ValueError(
                f"{type(self).__name__} expected diffusivity > 0 and final_time > 0, got {diffusivity:g} and "
                f"{final_time:g}: heat cannot be followed backwards, invert the map instead."
            )
        solver = diffrax.Heun() if solver is None else solver
        self.num_steps = stable_num_steps(
            f"{type(self).__name__} on {num_points} points along an axis with diffusivity {diffusivity:g}",
            solver,
            4 * self.num_dimensions * diffusivity * (num_points + 1) ** 2,  # bounds the decay rates of the grid's modes
            final_time,
            num_steps,
        )
        self.diffusivity = jnp.asarray(diffusivity, jnp.result_type(float if dtype is None else dtype))
        self.num_points, self.final_time = num_points, final_time
        self.solver = solver

    def __call__(self, x: Float[Array, "*n"]) -> Float[Array, "*n"]:
        """The state at `final_time` for the initial state `x`."""
        rate = self.diffusivity.astype(x.dtype) * (self.num_points + 1) ** 2
        return integrate(
            lambda t, u, rate: rate * second_difference(u),
            x,
            solver=self.solver,
            final_time=self.final_time,
            num_steps=self.num_steps,
            args=rate,
        )

    def in_structure(self) -> jax.ShapeDtypeStruct:
        """Shape and dtype of `x`."""
        return jax.ShapeDtypeStruct((self.num_points,) * self.num_dimensions, self.diffusivity.dtype)


class Heat1D(AbstractHeat):
    """Second-order finite differences in space, a diffrax solver with equal steps in time.

    `u_j' = diffusivity * (u_{j+1} - 2 u_j + u_{j-1}) / h^2` on the interior points `s_j = j h`, `h = 1 / (n + 1)`. The
    error of mode `sin(k pi s)` is `O(h^2) + O(step_size^p)`: its decay exponent `lambda = diffusivity (k pi)^2
    final_time` comes out as `lambda (1 - (k pi h)^2 / 12 + ...)`.

    Args:
        num_points: interior points `n`.
        diffusivity: in units of length squared per time; kept as an array, so that it can be differentiated.
        final_time: time at which the state is observed.
        num_steps: number of time steps. By default the fewest that stay within 90 % of the stability limit of an
            explicit solver, so that the grid's highest modes decay; 100 for other solvers.
        solver: a diffrax solver; `diffrax.Heun()` by default: of the explicit ones it needs the fewest evaluations
            for a time error well below that of the grid.
        dtype: of the state; the default float by default.

    Raises:
        ValueError: the steps of an explicit solver are too long to be stable; the message names the longest.
    """

    num_dimensions = 1

    def __init__(
        self,
        num_points: int = 64,
        diffusivity: float = 0.18,
        final_time: float = 0.08,
        num_steps: int | None = None,
        *,
        solver: diffrax.AbstractSolver | None = None,
        dtype: DTypeLike | None = None,
    ):
        super().__init__(num_points, diffusivity, final_time, num_steps, solver=solver, dtype=dtype)


class EulerHeat1D(AbstractMap):
    """Explicit Euler steps `u_j += coefficient * (u_{j+1} - 2 u_j + u_{j-1})` on a grid with both end points.

    The end points are held at zero: the values of `x` there are ignored. Mode `k` is multiplied by
    `(1 - 4 coefficient sin^2(k pi / (2 (n - 1))))^num_steps`.

    Args:
        num_points: grid points `n` on [0, 1], both ends included.
        num_steps: number of steps; 200, 150 and 100 in the paper.
        coefficient: `diffusivity * step_size / spacing^2`, at most 1/2.
        dtype: of the state; the default float by default.

    Raises:
        ValueError: `coefficient` is above the stability limit 1/2.

    References:
        A. L. Kachhadiya, "Deceptron: Learned Local Inverses", 2025, arXiv:2511.21076.
    """

    num_points: int = eqx.field(static=True)
    num_steps: int = eqx.field(static=True)
    coefficient: float = eqx.field(static=True)
    dtype: np.dtype = eqx.field(static=True)

    def __init__(
        self,
        num_points: int = 64,
        num_steps: int = 200,
        coefficient: float = 0.45,
        *,
        dtype: DTypeLike | None = None,
    ):
        if not 0 < coefficient <= 0.5:
            raise ValueError(
                f"EulerHeat1D expected a coefficient in (0, 0.5], got {coefficient}: above, the scheme blows up. Use a "
                "smaller coefficient and more steps."
            )
        self.num_points, self.num_steps, self.coefficient = num_points, num_steps, coefficient
        self.dtype = jnp.result_type(float if dtype is None else dtype)

    def __call__(self, x: Float[Array, " n"]) -> Float[Array, " n"]:
        """The state after `num_steps` steps; zero at both ends."""
        inner = integrate(
            lambda t, u, args: second_difference(u),
            x[1:-1],
            solver=diffrax.Euler(),
            final_time=self.coefficient * self.num_steps,
            num_steps=self.num_steps,
        )
        return jnp.pad(inner, 1)

    def in_structure(self) -> jax.ShapeDtypeStruct:
        """Shape and dtype of `x`."""
        return jax.ShapeDtypeStruct((self.num_points,), self.dtype)


class AbstractSpectralHeat(AbstractMap):
    """The exact solution in the sine basis: along every axis, mode `k` decays by its own factor.

    Implementing a propagator: the class variable `num_dimensions`, and the defaults of `__init__`.
    """

    num_dimensions: eqx.AbstractClassVar[int]

    propagator: Float[Array, "n n"]

    def __init__(self, num_points: int, diffusivity: float, final_time: float, *, dtype: DTypeLike | None = None):
        dtype = jnp.result_type(float if dtype is None else dtype)
        basis = sines_on_host(num_points, num_points)
        decay = np.exp(-diffusivity * (np.pi * np.arange(1, num_points + 1)) ** 2 * final_time)
        self.propagator = jnp.asarray((basis * decay) @ basis.T, dtype)

    def __call__(self, x: Float[Array, "*n"]) -> Float[Array, "*n"]:
        """The state at `final_time` for the initial state `x`."""
        with jax.default_matmul_precision("highest"):
            for _ in range(self.num_dimensions):  # each turn contracts the last axis and puts the new one in front
                x = jnp.tensordot(self.propagator, x, (1, x.ndim - 1))
        return x

    def in_structure(self) -> jax.ShapeDtypeStruct:
        """Shape and dtype of `x`."""
        return jax.ShapeDtypeStruct(self.propagator.shape[1:] * self.num_dimensions, self.propagator.dtype)


class SpectralHeat1D(AbstractSpectralHeat):
    """The exact solution for initial states in the span of the grid's sines: mode `k` decays by its own factor.

    `y = S diag(exp(-diffusivity (pi k)^2 final_time)) S^T x` with the orthonormal sines `S` as columns, one matrix
    that is computed once.

    Args:
        num_points: interior points of (0, 1).
        diffusivity: in units of length squared per time.
        final_time: time at which the state is observed.
        dtype: of the state; the default float by default.

    References:
        A. L. Kachhadiya, "Local Inverse Geometry Can Be Amortized", 2026, arXiv:2605.13068; the defaults are its
        Heat-1D.
    """

    num_dimensions = 1

    def __init__(
        self,
        num_points: int = 64,
        diffusivity: float = 0.18,
        final_time: float = 0.08,
        *,
        dtype: DTypeLike | None = None,
    ):
        super().__init__(num_points, diffusivity, final_time, dtype=dtype)


def observed_heat_1d(num_points: int = 64, *, mixing: float = 0.1, dtype: DTypeLike | None = None) -> Chain:
    """The published Heat-1D physics: diffusion, blur by neighbours, nonlinear sensor.

    `y = z + 0.18 z^3 + 0.08 sin(3 z)` with `z = M u`, where `u` is the heat at time 0.08 and the tridiagonal matrix `M`
    has 1 on and `mixing` beside its diagonal, its rows divided by their sums.

    Args:
        num_points: interior points of (0, 1).
        mixing: weight of either neighbour, relative to the point itself.
        dtype: of the state; the default float by default.

    Returns:
        `Chain([SpectralHeat1D, LinearMap, CubicSine])`.

    References:
        A. L. Kachhadiya, "Local Inverse Geometry Can Be Amortized", 2026, arXiv:2605.13068.
    """
    dtype = jnp.result_type(float if dtype is None else dtype)
    row_sum = np.full(num_points, 1.0 + 2.0 * mixing)
    row_sum[[0, -1]] = 1.0 + mixing
    blur = lx.TridiagonalLinearOperator(
        jnp.asarray(1.0 / row_sum, dtype),
        jnp.asarray(mixing / row_sum[1:], dtype),
        jnp.asarray(mixing / row_sum[:-1], dtype),
    )
    sensor = CubicSine((num_points,), cubic=0.18, sine=0.08, frequency=3.0, dtype=dtype)
    return Chain([SpectralHeat1D(num_points, dtype=dtype), LinearMap(blur), sensor])
