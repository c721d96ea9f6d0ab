"""How fast does the rod cool? Trains a parameter of f through the inversion, from a few known values of x.

Rods start at unknown temperatures x(s), cool for a moment, and are seen by a camera whose gain is unknown too:

    y = tanh(gain u(., T)) + noise,    u_t = diffusivity u_ss,  u(s, 0) = x(s),  u(0, t) = u(1, t) = 0.

Nobody has seen a whole x, so f cannot be fitted to pairs (x, y); but three thermocouples measured x at three points.
The two numbers are trained so that what the solver reconstructs from y agrees with the thermocouples. The gradient goes
through the solve, with `adjoint="implicit"`.

Run it as it is: `python examples/learn_the_physics.py`. It takes half a minute on a CPU.
"""

import jax
import jax.numpy as jnp
import optax

import pinv_jax as pj
from pinv_jax import pde, solvers

SIZE, NUM_MODES, NUM_RODS = 32, 8, 64
NOISE_STD = 0.01
FINAL_TIME = 0.02
TRUE = {"diffusivity": jnp.asarray(0.5), "gain": jnp.asarray(0.4)}
GUESS = {"diffusivity": jnp.asarray(0.3), "gain": jnp.asarray(0.7)}
THERMOCOUPLES = jnp.array([7, 15, 26])
NUM_STEPS = 150

sines = pde.sine_basis(SIZE, NUM_MODES)
rates = (jnp.pi * jnp.arange(1, NUM_MODES + 1)) ** 2
spread = ((SIZE + 1) / 2) ** 0.5 * jnp.arange(1, NUM_MODES + 1) ** -0.5


def forward(parameters, z):
    """The unknown is `x = sines (spread z)`; its prior is then white."""
    cooled = jnp.exp(-parameters["diffusivity"] * FINAL_TIME * rates) * spread * z
    return jnp.tanh(parameters["gain"] * (sines @ cooled))


@jax.jit
def reconstruct(parameters, y):
    prior = pj.GaussianPrior(jnp.zeros(NUM_MODES), jnp.eye(NUM_MODES))
    # The parameters are leaves of the Partial; a plain closure would do as well.
    problem = pj.Problem(jax.tree_util.Partial(forward, parameters), y, noise_std=NOISE_STD, prior=prior)
    solver = solvers.LevenbergMarquardt(solvers.Cholesky(), atol=1e-6)
    # A rod whose solve has not arrived at its minimiser counts as zero in the gradient, not as NaN.
    adjoint = solvers.Implicit("zero")
    sol = pj.solve_batch(problem, solver, jnp.zeros((len(y), NUM_MODES)), adjoint=adjoint)
    return (sol.value * spread[None]) @ sines.T


def loss(logarithms, y, measured):
    x = reconstruct(jax.tree.map(jnp.exp, logarithms), y)
    return jnp.mean((x[:, THERMOCOUPLES] - measured) ** 2)


def main():
    keys = jax.random.split(jax.random.key(0), 3)
    z = jax.random.normal(keys[0], (NUM_RODS, NUM_MODES))
    x = (z * spread[None]) @ sines.T
    y = jax.vmap(lambda z: forward(TRUE, z))(z) + NOISE_STD * jax.random.normal(keys[1], (NUM_RODS, SIZE))
    measured = x[:, THERMOCOUPLES] + 0.02 * jax.random.normal(keys[2], (NUM_RODS, 3))

    def error(parameters):
        return float(jnp.sqrt(jnp.mean((reconstruct(parameters, y) - x) ** 2)))

    logarithms, optimiser = jax.tree.map(jnp.log, GUESS), optax.adam(optax.cosine_decay_schedule(0.05, NUM_STEPS))
    state, value_and_grad = optimiser.init(logarithms), jax.jit(jax.value_and_grad(loss))
    for step in range(NUM_STEPS):
        value, slope = value_and_grad(logarithms, y, measured)
        updates, state = optimiser.update(slope, state)
        logarithms = optax.apply_updates(logarithms, updates)
        if step % 30 == 0:
            print(f"step {step:3}: disagreement with the thermocouples {value**0.5:.4f}")
    found = jax.tree.map(jnp.exp, logarithms)
    for name, value in found.items():
        print(f"{name}: guessed {GUESS[name]:.3f}, trained {value:.3f}, true {TRUE[name]:.3f}")
        assert abs(value / TRUE[name] - 1) < 0.05
    errors = {name: error(p) for name, p in (("guess", GUESS), ("trained", found), ("truth", TRUE))}
    print("error of the whole profile with f of the", ", ".join(f"{name}: {e:.4f}" for name, e in errors.items()))
    assert errors["trained"] < min(1.05 * errors["truth"], 0.6 * errors["guess"])


if __name__ == "__main__":
    main()
