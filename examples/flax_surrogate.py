"""Networks written in flax as surrogate and as learned inverse: a linen and an nnx module, trained and solved with.

A rod with cold ends cools for a moment and is seen by a camera that saturates:

    y = tanh(0.4 u(., T)) + noise,    u_t = 0.18 u_ss,  u(s, 0) = x(s),  u(0, t) = u(1, t) = 0.

The solver never sees this equation: a network learns it from examples first, another one learns to invert that network.
`maps.from_flax` makes maps of both. Run it as it is: `python examples/flax_surrogate.py`, about a minute on a CPU.
"""

import functools
import time

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from flax import nnx

import pinv_jax as pj
from pinv_jax import data, diagnostics, learn, maps, pde, solvers

SIZE, NUM_MODES = 24, 6
NOISE_STD = 0.005
ROUGHNESS = 0.03  # of the profiles that the surrogate learns from, beside the six modes of the others
TOLERANCE = 1.1  # times the noise, where the solver stops
NUM_TRAIN, NUM_STEPS, NUM_TEST = 16_000, 6000, 300


class Surrogate(nn.Module):
    """linen: an affine map plus a perceptron."""

    hidden: int = 128

    @nn.compact
    def __call__(self, x):
        h = nn.silu(nn.Dense(self.hidden)(x))
        h = nn.silu(nn.Dense(self.hidden)(h))
        return nn.Dense(x.shape[-1], use_bias=False)(x) + nn.Dense(x.shape[-1])(h)


class Inverse(nnx.Module):
    """nnx: the same with residual layers."""

    def __init__(self, size, hidden, num_layers, *, rngs):
        self.skip = nnx.Linear(size, size, use_bias=False, rngs=rngs)
        self.first = nnx.Linear(size, hidden, rngs=rngs)
        self.layers = nnx.List([nnx.Linear(hidden, hidden, rngs=rngs) for _ in range(num_layers)])
        self.last = nnx.Linear(hidden, size, rngs=rngs)

    def __call__(self, y):
        h = nnx.silu(self.first(y))
        for layer in self.layers:
            h = h + nnx.silu(layer(h))
        return self.skip(y) + self.last(h)


def make_problem():
    physics = maps.Chain([pde.Heat1D(SIZE, diffusivity=0.18, final_time=0.02), lambda u: jnp.tanh(0.4 * u)])
    sines = pde.sine_basis(SIZE, NUM_MODES) * ((SIZE + 1) / 2) ** 0.5
    prior = data.GaussianSeries(sines, jnp.arange(1.0, NUM_MODES + 1) ** -0.5)
    return physics, prior


def make_pair(*, key):
    field = jax.ShapeDtypeStruct((SIZE,), jnp.float32)
    surrogate = maps.from_flax(Surrogate(), field, key=key)
    inverse = maps.from_flax(Inverse(SIZE, 128, 2, rngs=nnx.Rngs(0)), field)
    return learn.InversePair(surrogate, inverse)


def fit(pair, loss, trainable, examples, *, key):
    stage = learn.Stage(
        {"loss": learn.Term(loss)},
        trainable,
        num_steps=NUM_STEPS,
        batch_size=128,
        optimiser=optax.adam(optax.cosine_decay_schedule(3e-3, NUM_STEPS)),
    )
    return learn.fit(pair, {"stage": stage}, (examples.x, examples.y), key=key)[0]


def train(pair, rough_set, train_set, *, key):
    """First the surrogate from pairs of x and y, then the inverse from noisy predictions of the surrogate."""
    surrogate_key, inverse_key = jax.random.split(key)
    pair = fit(pair, learn.forward_fit, lambda pair: pair.forward, rough_set, key=surrogate_key)
    reconstruction = functools.partial(learn.reconstruction, source="detached", noise_std=NOISE_STD)
    return fit(pair, reconstruction, lambda pair: pair.inverse, train_set, key=inverse_key)


def ridge(train_set, ys, *, key):
    """The linear regression of x on noisy y, with the intercept, applied to `ys`."""
    noisy = train_set.y + NOISE_STD * jax.random.normal(key, train_set.y.shape)
    x_mean, y_mean = jnp.mean(train_set.x, 0, keepdims=True), jnp.mean(noisy, 0, keepdims=True)
    centred = noisy - y_mean
    # Noise in the regressors already acts as the penalty; without noise the matrix would be singular.
    weight = jnp.linalg.solve(centred.T @ centred, centred.T @ (train_set.x - x_mean))
    return x_mean + (ys - y_mean) @ weight


def main():
    rough_key, train_key, validation_key, test_key, model_key, fit_key, ridge_key = jax.random.split(
        jax.random.key(0), 7
    )
    physics, prior = make_problem()

    def rough(key):
        prior_key, noise_key = jax.random.split(key)
        return prior(prior_key) + ROUGHNESS * jax.random.normal(noise_key, (SIZE,))

    # A surrogate is good only where it has seen x. Profiles have six coordinates, the steps of a solver have all: so it
    # learns from profiles with a little of everything on top.
    rough_set = data.generate(rough, physics, NUM_TRAIN, key=rough_key)
    train_set = data.generate(prior, physics, NUM_TRAIN, key=train_key)
    test = data.generate(prior, physics, NUM_TEST, key=test_key, noise_std=NOISE_STD)

    start = time.perf_counter()
    pair = train(make_pair(key=model_key), rough_set, train_set, key=fit_key)
    print(f"trained both networks in {time.perf_counter() - start:.1f} s")
    validation = data.generate(rough, physics, 500, key=validation_key)
    model_error = diagnostics.rmse(validation.y, jax.vmap(pair.forward)(validation.x))
    print(f"surrogate: RMSE {model_error:.4f}, noise {NOISE_STD}, observations {jnp.std(validation.y):.3f}\n")

    def solve(forward, noise_std):
        problem = pj.Problem(forward, test.y, noise_std=noise_std)
        return pj.solve_batch(problem, solvers.DIPG(pair.inverse, discrepancy=TOLERANCE), jnp.zeros_like(test.x))

    # The error of a surrogate is noise to its solver: asked for a residual below both, it would fit what is not there.
    on_surrogate = solve(pair.forward, (NOISE_STD**2 + model_error**2) ** 0.5)
    on_physics = solve(physics, NOISE_STD)
    rows = {
        "predict the mean": jnp.zeros_like(test.x),
        "ridge regression": ridge(train_set, test.y, key=ridge_key),
        "one-shot g(data)": jax.vmap(pair.inverse)(test.y),
        "D-IPG on the surrogate": on_surrogate.value,
        "D-IPG on the physics": on_physics.value,
    }
    print(f"{NUM_TEST} test observations; residuals are those of the physics, a residual of 1 is the noise")
    print(f"{'':24}{'RMSE of x':>10}{'residual':>10}{'met':>8}")
    for name, x in rows.items():
        error = jnp.mean(jax.vmap(diagnostics.rmse)(test.x, x))
        residual = jax.vmap(diagnostics.rmse)(test.y, jax.vmap(physics)(x)) / NOISE_STD
        print(f"{name:24}{error:10.4f}{jnp.median(residual):10.2f}{100 * jnp.mean(residual <= TOLERANCE):7.1f}%")
    for name, solution in {"surrogate": on_surrogate, "physics": on_physics}.items():
        done = 100 * jnp.mean(solution.result == pj.RESULTS.successful)
        steps = solution.stats.num_steps
        print(f"D-IPG on the {name}: {done:.1f}% successful; {jnp.sum(steps > 0)} took steps, {jnp.max(steps)} at most")


if __name__ == "__main__":
    main()
