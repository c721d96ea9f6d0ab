"""The damped oscillator `m x'' + c x' + k x = 0`: from its five parameters to its motion."""

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from ..maps import AbstractMap
from ._timestep import integrate


class DampedOscillator(AbstractMap):
    """`theta = (m, c, k, x0, v0)` -> the position at equispaced times from 0 to `final_time`, both included.

    Mass `m`, damping `c` and stiffness `k` enter as `c / m` and `k / m` only, so the Jacobian has rank four at most:
    see `identifiable`.

    With the defaults the positions are right to 1e-6 for the parameters of the paper: `m` in [0.5, 2], `c` in [0, 1],
    `k` in [0.5, 5], `x0` and `v0` in [-2, 2].

    Nothing is checked when the map is called. A negative `m` is the motion with the signs of `c` and `k` reversed,
    which grows exponentially where they are positive; `m = 0` divides by zero and comes out as NaN or infinity from
    the second time on; and a motion faster than the steps (`sqrt(k / m)` or `c / m` above about
    `2 num_steps (num_times - 1) / final_time`) is neither accurate nor, a little above, stable.

    Args:
        num_times: number of observed times, two at least.
        final_time: the last of them.
        num_steps: time steps between two neighbouring times.
        solver: a diffrax solver; `diffrax.Tsit5()` by default.
        dtype: of the parameters and the motion; the default float by default.

    Raises:
        ValueError: fewer than two times, or a `final_time` that is not positive.

    References:
        A. L. Kachhadiya, "Deceptron: Learned Local Inverses", 2025, arXiv:2511.21076; it has the same times, and takes
        one step of the classical fourth-order Runge-Kutta method between them.
    """

    num_times: int = eqx.field(static=True)
    final_time: float = eqx.field(static=True)
    num_steps: int = eqx.field(static=True)
    solver: diffrax.AbstractSolver = eqx.field(static=True)
    dtype: np.dtype = eqx.field(static=True)

    def __init__(
        self,
        num_times: int = 64,
        final_time: float = 5.0,
        num_steps: int = 1,
        *,
        solver: diffrax.AbstractSolver | None = None,
        dtype: DTypeLike | None = None,
    ):
        if num_times < 2 or final_time <= 0:
            raise ValueError(
                f"DampedOscillator expected num_times >= 2 and final_time > 0, got num_times={num_times} and "
                f"final_time={final_time:g}."
            )
        self.num_times, self.final_time, self.num_steps = num_times, final_time, num_steps
        self.solver = diffrax.Tsit5() if solver is None else solver
        self.dtype = jnp.result_type(float if dtype is None else dtype)

    def __call__(self, x: Float[Array, "5"]) -> Float[Array, " t"]:
        """The positions for the parameters `x = (m, c, k, x0, v0)`."""
        damping, stiffness, position, velocity = identifiable(x)

        def acceleration(t, u, args):
            return jnp.stack([u[1], -damping * u[1] - stiffness * u[0]])

        def interval(u, _):
            u = integrate(
                acceleration,
                u,
                solver=self.solver,
                final_time=self.final_time / (self.num_times - 1),
                num_steps=self.num_steps,
            )
            return u, u[0]

        start = jnp.stack([position, velocity])
        later = jax.lax.scan(interval, start, length=self.num_times - 1)[1]
        return jnp.concatenate([position[None], later])

    def in_structure(self) -> jax.ShapeDtypeStruct:
        """Shape and dtype of `x`."""
        return jax.ShapeDtypeStruct((5,), self.dtype)


def identifiable(theta: Float[Array, "5"]) -> Float[Array, "4"]:
    """`(m, c, k, x0, v0)` -> `(c / m, k / m, x0, v0)`: what the motion determines of the parameters.

    Args:
        theta: mass, damping, stiffness, initial position and velocity.

    Returns:
        Damping rate, squared frequency of the undamped motion, initial position and velocity.
    """
    m, c, k, position, velocity = theta
    return jnp.stack([c / m, k / m, position, velocity])
