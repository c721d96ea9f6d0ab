"""How much regularisation? Learned by differentiating through the solver, with implicit derivatives.

A blurred, saturated, noisy view y = tanh(B x) + noise of a smooth signal x is inverted with the prior

    1/2 |exp(a) D x|^2 + 1/2 |exp(b) x|^2,    D = differences of neighbours,

and the strengths a and b are trained so that the minimiser x*(y; a, b) is close to the truth on examples. The
derivative of x* is that of the minimiser, `adjoint="implicit"`: no step of the solver is kept, and a solve that has not
reached its minimiser would give NaN, not a wrong gradient.

Run it as it is: `python examples/learn_regularisation.py`. It takes half a minute on a CPU.
"""

import jax
import jax.numpy as jnp
import optax

import pinv_jax as pj
from pinv_jax import solvers

SIZE, NUM_TRAIN, NUM_TEST = 32, 48, 200
NOISE_STD = 0.02
NUM_STEPS = 60

grid = jnp.arange(SIZE)
blur = jnp.exp(-0.5 * ((grid[:, None] - grid[None]) / 2.0) ** 2)
blur = blur / jnp.sum(blur, axis=1, keepdims=True)
differences = jnp.eye(SIZE)[1:] - jnp.eye(SIZE)[:-1]


def forward(x):
    return jnp.tanh(blur @ x)


def signal(key):
    modes = jnp.arange(1, 7)
    sines = jnp.sin(jnp.pi * modes[:, None] * (grid[None] + 1) / (SIZE + 1))
    return (jax.random.normal(key, (6,)) / modes) @ sines


def examples(num, *, key):
    keys = jax.random.split(key)
    x = jax.vmap(signal)(jax.random.split(keys[0], num))
    return x, jax.vmap(forward)(x) + NOISE_STD * jax.random.normal(keys[1], x.shape)


@jax.jit
def error(strengths, x, y):
    """Root mean square error of the minimisers; `strengths` are a and b."""
    smooth, small = jnp.exp(strengths)
    prior = pj.GaussianPrior(jnp.zeros(SIZE), jnp.concatenate([smooth * differences, small * jnp.eye(SIZE)]))
    problem = pj.Problem(forward, y, noise_std=NOISE_STD, prior=prior)
    solver = solvers.LevenbergMarquardt(solvers.Cholesky(), atol=1e-6)
    sol = pj.solve_batch(problem, solver, jnp.zeros_like(x), adjoint="implicit")
    return jnp.sqrt(jnp.mean((sol.value - x) ** 2))


def main():
    train, test = (examples(num, key=jax.random.key(i)) for i, num in enumerate((NUM_TRAIN, NUM_TEST)))
    strengths, optimiser = jnp.zeros(2), optax.adam(0.15)
    state, value_and_grad = optimiser.init(strengths), jax.jit(jax.value_and_grad(error))

    # The derivative says what a small change does: checked before it is used.
    _, slope = value_and_grad(strengths, *train)
    step = 0.02
    moved = [
        (error(strengths + step * e, *train) - error(strengths - step * e, *train)) / (2 * step) for e in jnp.eye(2)
    ]
    print(f"derivative in (a, b): implicit {slope}, by differences {jnp.stack(moved)}")
    assert jnp.allclose(slope, jnp.stack(moved), rtol=0.03, atol=1e-4)

    before = error(strengths, *test)
    for _ in range(NUM_STEPS):
        _, slope = value_and_grad(strengths, *train)
        updates, state = optimiser.update(slope, state)
        strengths = optax.apply_updates(strengths, updates)
    after = error(strengths, *test)
    print(f"error on new signals: {before:.4f} before, {after:.4f} after training to a, b = {strengths}")

    scan = {float(a): float(error(jnp.array([a, strengths[1]]), *test)) for a in jnp.linspace(-1, 5, 13)}
    print("scan over a:", ", ".join(f"{a:.1f}: {e:.4f}" for a, e in scan.items()))
    assert after < 0.9 * before
    assert after < 1.03 * min(scan.values()), "training found no worse a strength than a scan over the test set"


if __name__ == "__main__":
    main()
