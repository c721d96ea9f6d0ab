"""The Allen-Cahn equation `u_t = epsilon^2 (u_xx + u_yy) + u - u^3`, periodic: from the initial to the final state."""

import math
from collections.abc import Callable
from typing import Any, ClassVar

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from ..maps import AbstractMap, Chain
from ._fourier import wavenumbers_2d
from ._timestep import integrate

_LARGEST_STEP = 0.5  # beyond, u + step_size * (u - u^3) is no longer monotone on [-1, 1]


class SpectralImplicitExplicitEuler(diffrax.AbstractSolver):
    """Steps of `u' = F(t, u) - L u` on the torus: explicit in `F`, implicit in `L`, which is diagonal in Fourier modes.

    `u_next = irfft2(rfft2(u + h F(t, u)) / (1 + h rates))` with the step size `h`: first order, and stable for every
    `L >= 0` if the explicit part is. The term is that of `F` alone.

    Args:
        rates: the eigenvalues of `L`, in the layout of `jnp.fft.rfft2`.
    """

    rates: Float[Array, "n half"]

    term_structure: ClassVar = diffrax.AbstractTerm
    interpolation_cls: ClassVar[Callable[..., Any]] = diffrax.LocalLinearInterpolation

    def order(self, terms: Any) -> int:
        """One."""
        return 1

    def init(self, terms: Any, t0: Any, t1: Any, y0: Any, args: Any) -> None:
        """Nothing is carried from step to step."""

    def step(
        self, terms: Any, t0: Any, t1: Any, y0: Any, args: Any, solver_state: Any, made_jump: Any
    ) -> tuple[Any, None, dict[str, Any], None, diffrax.RESULTS]:
        """One step from `t0` to `t1`."""
        moved = y0 + terms.vf_prod(t0, y0, args, terms.contr(t0, t1))
        factor = 1 / (1 + (t1 - t0) * self.rates)
        y1 = jnp.fft.irfft2(factor * jnp.fft.rfft2(moved), y0.shape)
        return y1, None, {"y0": y0, "y1": y1}, None, diffrax.RESULTS.successful

    def func(self, terms: Any, t0: Any, y0: Any, args: Any) -> Any:
        """The whole right-hand side `F - L u`."""
        return terms.vf(t0, y0, args) - jnp.fft.irfft2(self.rates * jnp.fft.rfft2(y0), y0.shape)


class Clip(AbstractMap):
    """`y = min(max(x, low), high)`: what lies outside has derivative zero.

    Args:
        shape: of `x`.
        low: lower bound.
        high: upper bound.
        dtype: of `x`; the default float by default.
    """

    shape: tuple[int, ...] = eqx.field(static=True)
    low: float = eqx.field(static=True)
    high: float = eqx.field(static=True)
    dtype: np.dtype = eqx.field(static=True)

    def __init__(self, shape: tuple[int, ...], low: float, high: float, dtype: DTypeLike | None = None):
        self.shape, self.low, self.high = shape, low, high
        self.dtype = jnp.result_type(float if dtype is None else dtype)

    def __call__(self, x: Float[Array, "*x"]) -> Float[Array, "*x"]:
        """The clipped state."""
        return jnp.clip(x, self.low, self.high)

    def in_structure(self) -> jax.ShapeDtypeStruct:
        """Shape and dtype of `x`."""
        return jax.ShapeDtypeStruct(self.shape, self.dtype)


class AllenCahn2D(AbstractMap):
    """Fourier modes in space, Euler steps in time: implicit in the diffusion, explicit in the reaction.

    `u <- F^-1[ F(u + h (u - u^3)) / (1 + h epsilon^2 |2 pi k|^2) ]` on the unit torus with the step size `h =
    final_time / num_steps`. At the default `h` the steps are the published physics, whose error of first order in `h`
    is part of it.

    A state in [-1, 1] stays there, up to the overshoot of a truncated Fourier series at a jump;
    `observed_allen_cahn_2d` clips it, as published.

    Args:
        num_points: grid points `i / num_points` along either axis.
        final_time: time at which the state is observed.
        num_steps: number of time steps.
        epsilon: width of an interface, in units of the period; kept as an array, so that it can be differentiated.
        dtype: of the state; the default float by default.

    Raises:
        ValueError: steps beyond 1/2, where states may leave [-1, 1] and the energy may grow (for diffusion alone, any
            step is stable); or a grid with fewer than two points across an interface of width `4 epsilon`.

    References:
        A. L. Kachhadiya, "Local Inverse Geometry Can Be Amortized", 2026, arXiv:2605.13068; the defaults are its
        Allen-Cahn-2D.
        T. Tang, J. Yang, "Implicit-explicit scheme for the Allen-Cahn equation preserves the maximum principle", 2016,
        J. Comput. Math. 34, 451-461.
    """

    epsilon: Float[Array, ""]
    num_points: int = eqx.field(static=True)
    final_time: float = eqx.field(static=True)
    num_steps: int = eqx.field(static=True)

    def __init__(
        self,
        num_points: int = 32,
        final_time: float = 0.12,
        num_steps: int = 60,
        epsilon: float = 0.04,
        *,
        dtype: DTypeLike | None = None,
    ):
        if final_time <= 0 or final_time > _LARGEST_STEP * num_steps:
            raise ValueError(
                f"AllenCahn2D got num_steps={num_steps} for final_time={final_time:g}: the explicit reaction keeps "
                f"states in [-1, 1] for positive steps of at most {_LARGEST_STEP}. Use num_steps >= "
                f"{max(1, math.ceil(final_time / _LARGEST_STEP))}."
            )
        if 2 * epsilon * num_points < 1:
            raise ValueError(
                f"AllenCahn2D got {num_points} points per axis, a spacing of {1 / num_points:.3g}, for interfaces of "
                f"width epsilon={epsilon:g}: spacings up to 2 epsilon resolve them. Use num_points >= "
                f"{math.ceil(1 / (2 * epsilon))} or epsilon >= {1 / (2 * num_points):.3g}."
            )
        self.epsilon = jnp.asarray(epsilon, jnp.result_type(float if dtype is None else dtype))
        self.num_points, self.final_time, self.num_steps = num_points, final_time, num_steps

    def __call__(self, x: Float[Array, "n n"]) -> Float[Array, "n n"]:
        """The state at `final_time` for the initial state `x`."""
        first, second = wavenumbers_2d(self.num_points)
        rates = self.epsilon.astype(x.dtype) ** 2 * jnp.asarray(first**2 + second**2, x.dtype)
        return integrate(
            lambda t, u, args: u - u**3,
            x,
            solver=SpectralImplicitExplicitEuler(rates),
            final_time=self.final_time,
            num_steps=self.num_steps,
        )

    def in_structure(self) -> jax.ShapeDtypeStruct:
        """Shape and dtype of `x`."""
        return jax.ShapeDtypeStruct((self.num_points, self.num_points), self.epsilon.dtype)


def observed_allen_cahn_2d(num_points: int = 32, *, dtype: DTypeLike | None = None) -> Chain:
    """The published Allen-Cahn physics: the final state, clipped to [-1, 1].

    From `data.interfaces_2d`, one point in forty overshoots, by 0.024 at most. The clip takes the derivatives at
    these points away; for solvers that should keep them, `AllenCahn2D` is the same map without.

    Args:
        num_points: grid points along either axis.
        dtype: of the state; the default float by default.

    Returns:
        `Chain([AllenCahn2D, Clip])`.

    References:
        A. L. Kachhadiya, "Local Inverse Geometry Can Be Amortized", 2026, arXiv:2605.13068.
    """
    return Chain([AllenCahn2D(num_points, dtype=dtype), Clip((num_points, num_points), -1.0, 1.0, dtype)])
