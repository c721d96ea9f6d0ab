"""Darcy flow on the unit square: `-div(k grad p) = f`, or `S p_t = div(k grad p) + f`, with `p = 0` on the boundary."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Scalar

from ..maps import AbstractMap
from ._grid import sines_on_host
from ._implicit import AffineSDIRK2, solve_spd
from ._karhunen_loeve import matern_basis
from ._timestep import integrate


class Darcy2D(AbstractMap):
    """From Karhunen-Loeve coordinates of the log-permeability to the pressure at rest.

    `log k = mean + sum_i x_i sqrt(lambda_i) phi_i` with the leading eigenpairs of a Matern covariance, so that `x` has
    independent standard normal coordinates. With the defaults, 32 modes have 92 % of the field's variance. The same
    `x` is the same field on every grid. Pressure as in `darcy_pressure`.

    Args:
        num_points: interior points `n` along a side.
        num_modes: number of coordinates `k`.
        length_scale: correlation length, in units of the side.
        smoothness: of the Matern covariance: 0.5, 1.5 or 2.5.
        std: standard deviation of `log k`, before the truncation to `num_modes`.
        mean: of `log k`, a number or a field `(n, n)`.
        source: `f`, volume per time and area, a number or a field `(n, n)`.
        dtype: of `x` and of the pressure; the default float by default.

    Raises:
        ValueError: an unknown smoothness, a length scale that is not positive, too many modes, a mean or source of
            another shape; on calling, an `x` of another shape.

    References:
        R. G. Ghanem, P. D. Spanos, "Stochastic Finite Elements: A Spectral Approach", 1991,
        doi:10.1007/978-1-4612-3094-6.
    """

    basis: Float[Array, "n n k"]
    mean: Float[Array, "n n"]
    source: Float[Array, "n n"]

    def __init__(
        self,
        num_points: int = 32,
        num_modes: int = 32,
        *,
        length_scale: float = 0.2,
        smoothness: float = 1.5,
        std: float = 1.0,
        mean: float | Float[Array, "..."] = 0.0,
        source: float | Float[Array, "..."] = 1.0,
        dtype: DTypeLike | None = None,
    ):
        dtype = jnp.result_type(float if dtype is None else dtype)
        points = np.arange(1, num_points + 1) / (num_points + 1)
        values, functions = matern_basis(points, num_modes, length_scale=length_scale, smoothness=smoothness)
        self.basis = jnp.asarray(std * np.sqrt(values) * functions, dtype)
        self.mean = _field("mean", mean, num_points, dtype)
        self.source = _field("source", source, num_points, dtype)

    def log_permeability(self, x: Float[Array, "..."]) -> Float[Array, "n n"]:
        """`log k` on the grid.

        Raises:
            ValueError: `x` is not one example of `num_modes` coordinates.
        """
        num_points, _, num_modes = self.basis.shape
        if x.shape != (num_modes,):
            raise ValueError(
                f"{type(self).__name__} on {num_points} x {num_points} points expected one x of shape ({num_modes},), "
                "its Karhunen-Loeve coordinates, "
                f"got shape {x.shape}. Use jax.vmap for a batch, or build the map with the num_modes of that x."
            )
        with jax.default_matmul_precision("highest"):
            return self.mean + self.basis @ x

    def __call__(self, x: Float[Array, "..."]) -> Float[Array, "n n"]:
        """The pressure; NaN where the contrast of `k` is beyond what can be solved."""
        return _at_rest(jnp.exp(self.log_permeability(x)), self.source)

    def in_structure(self) -> jax.ShapeDtypeStruct:
        """Shape and dtype of `x`."""
        return jax.ShapeDtypeStruct(self.basis.shape[2:], self.basis.dtype)


class TransientDarcy2D(AbstractMap):
    """From Karhunen-Loeve coordinates of the log-permeability to the pressure at `final_time`, zero at first.

    `S p_t = div(k grad p) + f` in space as `Darcy2D`, which is its limit for long times, in time by `AffineSDIRK2`:
    second order, two linear solves a step, stable for every step. Disturbances decay in about `S / (20 k)`.

    Args:
        num_points: interior points `n` along a side.
        num_modes: number of coordinates `k`.
        final_time: time at which the pressure is observed.
        num_steps: number of time steps.
        storage: `S`, positive; kept as an array, so that it can be differentiated.
        **options: as for `Darcy2D`.

    Raises:
        ValueError: as `Darcy2D`; a storage that is not positive; no time step.
    """

    steady: Darcy2D
    storage: Float[Array, ""]
    final_time: float = eqx.field(static=True)
    num_steps: int = eqx.field(static=True)

    def __init__(
        self,
        num_points: int = 32,
        num_modes: int = 32,
        final_time: float = 0.05,
        num_steps: int = 10,
        *,
        storage: float = 1.0,
        **options: Any,
    ):
        if not storage > 0 or num_steps < 1:
            raise ValueError(
                "TransientDarcy2D expected a positive storage and at least one step, got "
                f"storage={storage:g}, num_steps={num_steps}. Without storage the pressure is that of Darcy2D."
            )
        self.steady = Darcy2D(num_points, num_modes, **options)
        self.storage = jnp.asarray(storage, self.steady.basis.dtype)
        self.final_time, self.num_steps = final_time, num_steps

    def log_permeability(self, x: Float[Array, "..."]) -> Float[Array, "n n"]:
        """`log k` on the grid, as `Darcy2D.log_permeability`."""
        return self.steady.log_permeability(x)

    def __call__(self, x: Float[Array, "..."]) -> Float[Array, "n n"]:
        """The pressure at `final_time`."""
        conductances = _conductances(jnp.exp(self.log_permeability(x)))
        spacing = 1 / (self.steady.source.shape[0] + 1)

        def rate(t, p, conductances):
            return (self.steady.source - _apply(conductances, p, 0.0) / spacing**2) / self.storage

        def resolvent(tau, b, conductances):
            shift = self.storage * spacing**2 / tau
            return _solve(conductances, shift * b, shift)

        return integrate(
            rate,
            jnp.zeros_like(self.steady.source),
            solver=AffineSDIRK2(resolvent),
            final_time=self.final_time,
            num_steps=self.num_steps,
            args=conductances,
        )

    def in_structure(self) -> jax.ShapeDtypeStruct:
        """Shape and dtype of `x`."""
        return self.steady.in_structure()


def darcy_pressure(permeability: Float[Array, "..."], source: float | Float[Array, "..."] = 1.0) -> Float[Array, "n n"]:
    """The solution of `-div(k grad p) = f` on the unit square, `p = 0` on the boundary, by finite volumes.

    Five points, second order: the flux between neighbours at distance `h = 1 / (n + 1)` is the difference of their
    pressures times the harmonic mean of their permeabilities, that to the boundary uses the permeability of the point.
    What leaves through the boundary is what the source gives, `sum f h^2`. One linear solve, matrix-free: conjugate
    gradients, for a lognormal `k` of standard deviation 1 to 2 in 20 to 35 steps on grids of any size, since the
    preconditioner is the Laplacian between scalings (see the references), inverted by sine transforms.
    Both modes of differentiation reach both arguments.

    Args:
        permeability: `k` on the interior points, positive.
        source: `f`, a number or a field.

    Returns:
        The pressure; NaN where a traced permeability is not positive.

    Raises:
        ValueError: the permeability is not square, or has a value that is not positive or not finite (a traced one,
            as under `jax.jit`, cannot be checked).

    References:
        P. Concus, G. H. Golub, "Use of fast direct methods for the efficient numerical solution of nonseparable
        elliptic equations", SIAM J. Numer. Anal. 10(6), 1973, doi:10.1137/0710092.
    """
    if permeability.ndim != 2 or permeability.shape[0] != permeability.shape[1]:
        raise ValueError(f"darcy_pressure expected a permeability of shape (n, n), got shape {permeability.shape}.")
    if not isinstance(permeability, Tracer):
        bad = ~(np.isfinite(permeability) & (np.asarray(permeability) > 0))
        if bad.any():
            where = tuple(int(index) for index in np.argwhere(bad)[0])
            raise ValueError(
                f"darcy_pressure expected a positive, finite permeability, got {bad.sum()} of {bad.size} values that "
                f"are not, the first {permeability[where]} at index {where}. Write it as jnp.exp of a field, or "
                "clip it from below."
            )
    return _at_rest(permeability, _field("source", source, permeability.shape[0], permeability.dtype))


def _field(name: str, value: Any, num_points: int, dtype: Any) -> Float[Array, "n n"]:
    """`value`, a number or a field, as a field."""
    shape = (num_points, num_points)
    value = jnp.asarray(value, dtype)
    if value.shape not in ((), shape):
        raise ValueError(f"Darcy flow expected {name} to be a number or of shape {shape}, got shape {value.shape}.")
    return jnp.broadcast_to(value, shape)


def _at_rest(permeability: Float[Array, "n n"], source: Float[Array, "n n"]) -> Float[Array, "n n"]:
    """`darcy_pressure` without its checks."""
    return _solve(_conductances(permeability), source / (permeability.shape[0] + 1) ** 2, 0.0)


def _conductances(permeability: Float[Array, "n n"]) -> tuple[Float[Array, "m n"], Float[Array, "n m"]]:
    """Harmonic means on the faces across the first and the second axis, `m = n + 1` with those to the boundary."""
    resistance = 1 / jnp.where(permeability > 0, permeability, jnp.nan)

    def means(resistance):
        resistance = jnp.pad(resistance, ((1, 1), (0, 0)), mode="edge")
        return 2 / (resistance[1:] + resistance[:-1])

    return means(resistance), means(resistance.T).T


def _apply(conductances: tuple[Array, Array], p: Float[Array, "n n"], shift: float | Scalar) -> Float[Array, "n n"]:
    """`shift * p` plus the net flow out of every cell, `-h^2 div(k grad p)`."""
    (first, second), padded = conductances, jnp.pad(p, 1)
    across = first[1:] * (p - padded[2:, 1:-1]) + first[:-1] * (p - padded[:-2, 1:-1])
    along = second[:, 1:] * (p - padded[1:-1, 2:]) + second[:, :-1] * (p - padded[1:-1, :-2])
    return shift * p + across + along


def _solve(conductances: tuple[Array, Array], b: Float[Array, "n n"], shift: float | Scalar) -> Float[Array, "n n"]:
    """The `p` with `_apply(conductances, p, shift) == b`."""
    with jax.default_matmul_precision("highest"):
        return solve_spd(lambda p: _apply(conductances, p, shift), b, lambda: _scaled_laplacian(conductances, shift))


def _scaled_laplacian(conductances: tuple[Array, Array], shift: float | Scalar) -> Callable[[Array], Array]:
    """`r -> D (L + c)^-1 D r` with the discrete Laplacian `L`, for a preconditioner of `_apply`.

    The scaling `D` gives `D A D` the diagonal of `L`. For a smooth permeability the difference of `D A D` and `L` then
    is a potential, compact relative to `L`; the constant `c` is its value for the smoothest mode. `L + c` is positive
    whatever `c`, since its smallest eigenvalue is the Rayleigh quotient of `D A D` at that mode.
    """
    first, second = conductances
    num_points = second.shape[0]
    sines = sines_on_host(num_points, num_points)
    along = 4 * np.sin(0.5 * np.pi * np.arange(1, num_points + 1) / (num_points + 1)) ** 2
    smoothest = jnp.asarray(np.outer(sines[:, 0], sines[:, 0]), first.dtype)
    eigenvalues = jnp.asarray(along[:, None] + along, first.dtype)
    sines = jnp.asarray(sines, first.dtype)

    scaling = 2 / jnp.sqrt(first[1:] + first[:-1] + second[:, 1:] + second[:, :-1] + shift)
    scaled = scaling * smoothest
    potential = jnp.sum(scaled * _apply(conductances, scaled, shift)) - 2 * float(along[0])
    eigenvalues = eigenvalues + potential

    def precondition(r):
        return scaling * (sines @ ((sines @ (scaling * r) @ sines) / eigenvalues) @ sines)

    return precondition
