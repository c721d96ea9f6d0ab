"""Ways to an image that are no chains: `ProbabilityFlow`, an ordinary differential equation, and `FixedPoint`."""

from typing import Any

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray, Scalar

from ._prior import Denoise, Prior
from ._samplers import AbstractSampler, Guide
from ._schedules import AbstractSchedule

_NUM_KNOTS = 2000


class ProbabilityFlow(AbstractSampler):
    """`dz/dr = z - x0(t(r))` with `z = x_t / sqrt(alpha_bar)` and `r = log(sqrt(1 - alpha_bar) / sqrt(alpha_bar))`.

    The ordinary differential equation whose solutions are distributed as the noisy images at every time, solved by
    diffrax from noise down to `schedule.first`; the image is the guided estimate there. `DDIM(eta=0)` is its Euler
    method.

    Args:
        num_steps: steps, equidistant in `r`; the first step where a controller decides.
        solver: of diffrax; `Heun()` by default, with two evaluations of the denoiser per step.
        controller: a step size controller of diffrax, such as `PIDController(rtol=1e-3, atol=1e-3)`.

    Raises:
        ValueError: a number of steps that is not positive.

    References:
        Y. Song et al., "Score-Based Generative Modeling through Stochastic Differential Equations", 2021,
        arXiv:2011.13456.
    """

    num_steps: int = eqx.field(static=True)
    solver: Any
    controller: Any

    def __init__(self, num_steps: int = 50, *, solver: Any = None, controller: Any = None):
        if num_steps < 1:
            raise ValueError(f"ProbabilityFlow: num_steps={num_steps}, expected a positive number.")
        self.num_steps = num_steps
        self.solver = diffrax.Heun() if solver is None else solver
        self.controller = diffrax.ConstantStepSize() if controller is None else controller

    def times(self, schedule: AbstractSchedule) -> np.ndarray:
        """See `AbstractSampler`; a `Start` may be at any of these, and the steps are those of the ODE."""
        return np.append(np.linspace(schedule.last, schedule.first, _NUM_KNOTS), schedule.clean)

    def run(
        self, prior: Prior, guide: Guide, x_t: Float[Array, "*x"], times: np.ndarray, key: PRNGKeyArray
    ) -> Float[Array, "*x"]:
        """See `AbstractSampler`."""
        schedule = prior.schedule
        knots = np.linspace(schedule.first, times[0], _NUM_KNOTS)
        with jax.ensure_compile_time_eval():
            signals, spreads = jax.vmap(schedule.scales)(jnp.asarray(knots, prior.dtype))
            rates = np.log(np.asarray(spreads, float)) - np.log(np.asarray(signals, float))
        rates_of_knots, knots = jnp.asarray(rates, prior.dtype), jnp.asarray(knots, prior.dtype)

        def estimate(r: Scalar, z: Array) -> Array:
            t = jnp.interp(r, rates_of_knots, knots)
            x_t = schedule.scales(t)[0] * z
            return guide(Denoise(prior, x_t, t), x_t, t, key)

        # diffrax goes forward in -r
        begin, end = -rates[-1], -rates[0]
        solution = diffrax.diffeqsolve(
            diffrax.ODETerm(lambda s, z, _: estimate(jnp.asarray(-s), z) - z),
            self.solver,
            begin,
            end,
            (end - begin) / self.num_steps,
            x_t / schedule.scales(jnp.asarray(times[0], prior.dtype))[0],
            stepsize_controller=self.controller,
            max_steps=max(4096, self.num_steps + 1),
            throw=False,
        )
        z = jnp.where(solution.result == diffrax.RESULTS.successful, solution.ys[-1], jnp.nan)  # pyright: ignore
        return estimate(jnp.asarray(-end, prior.dtype), z)


class FixedPoint(AbstractSampler):
    """`x <- guide(denoise(sqrt(alpha_bar(t)) x, t))` at one time, until `x` changes by less than `atol`.

    The prior as a denoiser of strength `t`, and the observation, in turns: one estimate, not a sample. Start it from a
    `Start` at `t`. Where the denoiser expands, the iteration does not end by itself, but after `max_steps`.

    Args:
        t: the time, in the units of the schedule; the more noise, the smoother.
        atol: root mean square of the last change.
        max_steps: evaluations of the denoiser at most.

    Raises:
        ValueError: a tolerance or a number of steps that is not positive.

    References:
        S. Venkatakrishnan, C. Bouman, B. Wohlberg, "Plug-and-Play Priors for Model Based Reconstruction", 2013,
        doi:10.1109/GlobalSIP.2013.6737048.
    """

    t: float = eqx.field(static=True)
    atol: float = eqx.field(static=True)
    max_steps: int = eqx.field(static=True)

    def __init__(self, t: float | int, *, atol: float = 1e-4, max_steps: int = 500):
        if not atol > 0 or max_steps < 1:
            raise ValueError(f"FixedPoint: atol={atol}, max_steps={max_steps}; expected positive numbers.")
        self.t, self.atol, self.max_steps = float(t), float(atol), max_steps

    def times(self, schedule: AbstractSchedule) -> np.ndarray:
        """See `AbstractSampler`."""
        if not schedule.clean < self.t <= schedule.last:
            raise ValueError(
                f"FixedPoint: t={self.t:g} is no time of the schedule; expected above {schedule.clean:g}, at most "
                f"{schedule.last:g}."
            )
        return np.asarray([self.t, schedule.clean])

    def run(
        self, prior: Prior, guide: Guide, x_t: Float[Array, "*x"], times: np.ndarray, key: PRNGKeyArray
    ) -> Float[Array, "*x"]:
        """See `AbstractSampler`."""
        t = jnp.asarray(times[0], prior.dtype)
        signal = prior.schedule.scales(t)[0]

        def step(x: Array) -> Array:
            x_t = signal * x
            return guide(Denoise(prior, x_t, t, jnp.ones_like(t)), x_t, t, key)

        def body(carry: Any) -> Any:
            x, _, count = carry
            x_next = step(x)
            return x_next, jnp.sqrt(jnp.mean((x_next - x) ** 2)), count + 1

        def goes_on(carry: Any) -> Array:
            _, change, count = carry
            return (change > self.atol) & (count < self.max_steps)

        start = (x_t / signal, jnp.asarray(jnp.inf, prior.dtype), jnp.zeros((), jnp.int32))
        return jax.lax.while_loop(goes_on, body, start)[0]
