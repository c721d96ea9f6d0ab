"""The true physics or a surrogate of it: where should a learned inverse take its steps?

Water is pumped into a porous square. From its pressure, noisy, find the permeability of the rock:

    -div(exp(m) grad y) = 1,  y = 0 on the boundary,  m(s) = sum_k x_k sqrt(lambda_k) phi_k(s),  x ~ N(0, I).

Two networks are trained on the same examples: a surrogate f of the physics, and an inverse g. D-IPG then steps with g,
once with f as the forward map, as published, and once with the physics itself, which costs a linear solve per step.
Run it as it is: `python examples/true_physics.py`, about a minute on a CPU.
"""

import functools
import time

import jax
import jax.numpy as jnp
import optax

import pinv_jax as pj
from pinv_jax import data, diagnostics, learn, maps, pde, solvers

SIZE, NUM_MODES = 12, 8
NUM_TRAIN, NUM_TEST, NUM_STEPS = 8000, 200, 6000
NOISE = 0.01  # relative to the standard deviation of the pressure
TOLERANCE = 1.1  # times the noise, where the solver stops


def make_problem():
    """The physics on z-scored, flat pressures, and the prior of the unknown."""
    darcy = pde.Darcy2D(SIZE, NUM_MODES)
    prior = functools.partial(jax.random.normal, shape=(NUM_MODES,))
    y = jax.vmap(lambda key: jnp.ravel(darcy(prior(key))))(jax.random.split(jax.random.key(99), 500))
    return maps.Normalised(maps.Chain([darcy, jnp.ravel]), jnp.mean(y, 0), jnp.full(y.shape[1], jnp.std(y))), prior


def fit(pair, loss, trainable, examples, *, key):
    optimiser = optax.adam(optax.cosine_decay_schedule(2e-3, NUM_STEPS))
    stage = learn.Stage({"loss": learn.Term(loss)}, trainable, NUM_STEPS, 128, optimiser)
    return learn.fit(pair, {"stage": stage}, (examples.x, examples.y), key=key)[0]


def train(examples, *, key):
    """A surrogate from clean pairs, and an inverse from noisy ones; neither sees the other."""
    keys = jax.random.split(key, 4)
    num_outputs = examples.y.shape[1]
    surrogate = maps.LinearSkipMLP((NUM_MODES, 128, 128, num_outputs), activation="gelu", key=keys[0])
    inverse = maps.LinearSkipMLP((num_outputs, 128, 128, NUM_MODES), activation="gelu", key=keys[1])
    pair = learn.InversePair(surrogate, inverse)
    pair = fit(pair, learn.forward_fit, lambda pair: pair.forward, examples, key=keys[2])
    reconstruction = functools.partial(learn.reconstruction, source="data", noise_std=NOISE)
    return fit(pair, reconstruction, lambda pair: pair.inverse, examples, key=keys[3])


def ridge(examples, ys, *, key):
    """The linear regression of x on noisy y."""
    y = examples.y + NOISE * jax.random.normal(key, examples.y.shape)
    weight = jnp.linalg.solve(y.T @ y + 1e-3 * jnp.eye(y.shape[1]), y.T @ examples.x)
    return ys @ weight


def main():
    train_key, test_key, fit_key, ridge_key = jax.random.split(jax.random.key(0), 4)
    physics, prior = make_problem()
    examples = data.generate(prior, physics, NUM_TRAIN, key=train_key)
    test = data.generate(prior, physics, NUM_TEST, key=test_key, noise_std=NOISE)

    start = time.perf_counter()
    pair = train(examples, key=fit_key)
    print(f"trained both networks in {time.perf_counter() - start:.1f} s")
    misfit = jax.vmap(pair.forward)(test.x) - jax.vmap(physics)(test.x)
    print(f"surrogate: error {jnp.sqrt(jnp.mean(misfit**2)):.4f}, noise {NOISE}\n")

    def solve(forward, solver):
        return pj.solve_batch(pj.Problem(forward, test.y, noise_std=NOISE), solver, jnp.zeros_like(test.x))

    learned = solvers.DIPG(pair.inverse, discrepancy=TOLERANCE)
    safe = solvers.Safeguarded(pair.inverse, discrepancy=TOLERANCE)
    solutions = {
        "D-IPG on the surrogate": solve(pair.forward, learned),
        "D-IPG on the physics": solve(physics, learned),
        "safeguarded, physics": solve(physics, safe),
        "Levenberg-Marquardt": solve(physics, solvers.LevenbergMarquardt(discrepancy=TOLERANCE)),
    }
    rows = {
        "predict the mean": jnp.zeros_like(test.x),
        "ridge regression": ridge(examples, test.y, key=ridge_key),
        "one-shot g(data)": jax.vmap(pair.inverse)(test.y),
    } | {name: solution.value for name, solution in solutions.items()}
    print(f"{NUM_TEST} observations; residuals are those of the physics, a residual of 1 is the noise")
    print(f"{'':24}{'RMSE of x':>10}{'residual':>10}{'met':>8}{'steps':>7}{'solves of the PDE':>19}")
    for name, x in rows.items():
        error = jnp.mean(jax.vmap(diagnostics.rmse)(test.x, x))
        residual = jax.vmap(diagnostics.rmse)(test.y, jax.vmap(physics)(x)) / NOISE
        line = f"{name:24}{error:10.4f}{jnp.median(residual):10.2f}{100 * jnp.mean(residual <= TOLERANCE):7.1f}%"
        if name in solutions:
            stats = solutions[name].stats
            work = stats.num_f + stats.num_jvp + stats.num_vjp  # every one of them is a linear solve
            line += f"{jnp.median(stats.num_steps):7.0f}{0 if 'surrogate' in name else jnp.mean(work):19.1f}"
        print(line)


if __name__ == "__main__":
    main()
