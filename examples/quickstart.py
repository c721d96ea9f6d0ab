"""Which temperature profile did the rod have before it cooled? A learned inverse, a solver, and what they are worth.

A rod with cold ends starts at the temperature x(s), cools for a moment, and is seen by a camera that saturates:

    y = tanh(0.4 u(., T)) + noise,    u_t = 0.18 u_ss,  u(s, 0) = x(s),  u(0, t) = u(1, t) = 0.

Run it as it is: `python examples/quickstart.py`. It takes less than a minute on a CPU, in float32, and finds a GPU or
TPU by itself.
"""

import functools
import tempfile
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import optax

import pinv_jax as pj
from pinv_jax import data, diagnostics, io, learn, maps, pde, solvers

SIZE, NUM_MODES = 32, 8
NOISE_STD = 0.005  # of the camera, whose range is -1 to 1
TOLERANCE = 1.1  # an observation is met once its RMS residual is at most 1.1 noise standard deviations
NUM_TRAIN_STEPS, NUM_TEST = 4000, 300


def saturate(u):
    return jnp.tanh(0.4 * u)


def make_problem():
    # Any callable on one example is a forward map; a Chain of maps also knows the shape it expects.
    forward = maps.Chain([pde.Heat1D(SIZE, diffusivity=0.18, final_time=0.02), saturate])
    # What profiles are like: sines with random coefficients, the k-th with variance 1 / k.
    sines = pde.sine_basis(SIZE, NUM_MODES) * ((SIZE + 1) / 2) ** 0.5
    prior = data.GaussianSeries(sines, jnp.arange(1.0, NUM_MODES + 1) ** -0.5)
    return forward, prior


def make_model(forward, *, key):
    inverse = maps.LinearSkipMLP((SIZE, 128, 128, SIZE), activation="silu", key=key)
    return learn.InversePair(forward, inverse)


def train(forward, prior, metric, *, key):
    """Trains the inverse only: reconstruction from noisy data, and the Jacobian composition penalty."""
    model_key, data_key, fit_key = jax.random.split(key, 3)

    def draw(key):
        x = prior(key)
        return x, forward(x)

    reconstruction = functools.partial(learn.reconstruction, source="data", noise_std=NOISE_STD)
    penalty = functools.partial(learn.jcp, target="data", metric=metric)
    stage = learn.Stage(
        # The penalty is dear and needs few examples: 16 of each batch of 128.
        terms={"reconstruction": learn.Term(reconstruction), "jcp": learn.Term(penalty, 1.0, num_examples=16)},
        trainable=lambda pair: pair.inverse,
        num_steps=NUM_TRAIN_STEPS,
        batch_size=128,
        optimiser=optax.chain(
            optax.clip_by_global_norm(1.0), optax.adam(optax.cosine_decay_schedule(2e-3, NUM_TRAIN_STEPS))
        ),
        select=functools.partial(learn.guarded_reconstruction_score, noise_std=NOISE_STD, metric=metric),
    )
    validation = data.generate(prior, forward, 256, key=data_key)
    # `draw` is a sampler: every step sees fresh examples, so there is no training set to overfit.
    pair, history = learn.fit(
        make_model(forward, key=model_key),
        {"inverse": stage},
        draw,
        key=fit_key,
        validation=(validation.x, validation.y),
    )
    return pair, history["inverse"]


def timed(solve):
    """The result of `solve()` and its milliseconds per observation, without the first call, which compiles."""
    jax.block_until_ready(solve())
    start = time.perf_counter()
    result = jax.block_until_ready(solve())
    return result, 1000 * (time.perf_counter() - start) / NUM_TEST


def reconstruct_all(forward, inverse, prior, test):
    """By name: the reconstructions, the `Solution` where there is one, and milliseconds per observation."""
    mean = jnp.zeros_like(test.x)
    inverse_of_batch = jax.jit(jax.vmap(inverse))
    one_shot, one_shot_time = timed(lambda: inverse_of_batch(test.y))
    rows = {"predict the mean": (mean, None, 0.0), "one-shot g(data)": (one_shot, None, one_shot_time)}

    problem = pj.Problem(forward, test.y, noise_std=NOISE_STD)
    for name, solver in {
        "D-IPG": solvers.DIPG(inverse, discrepancy=TOLERANCE),
        "Safeguarded": solvers.Safeguarded(inverse, discrepancy=TOLERANCE),
        "Levenberg-Marquardt": solvers.LevenbergMarquardt(discrepancy=TOLERANCE),
    }.items():
        solution, milliseconds = timed(lambda s=solver: pj.solve_batch(problem, s, mean))
        rows[name] = (solution.value, solution, milliseconds)

    # The strongest classical opponent is told the prior that the network had to learn: it solves for the eight
    # coefficients, which are standard normal, to the maximum a posteriori estimate (MAP).
    synthesis = prior.basis * prior.std[None, :]
    coefficients = jnp.zeros((NUM_TEST, NUM_MODES))
    told = pj.Problem(
        lambda c: forward(synthesis @ c),
        test.y,
        noise_std=NOISE_STD,
        prior=pj.GaussianPrior(coefficients[0], jnp.eye(NUM_MODES)),
    )
    solution, milliseconds = timed(lambda: pj.solve_batch(told, solvers.LevenbergMarquardt(), coefficients))
    rows["LM, told the prior"] = (solution.value @ synthesis.T, solution, milliseconds)
    return rows


def print_table(forward, test, rows):
    print(f"\n{NUM_TEST} test observations; a residual of 1 is the noise; met: residual <= {TOLERANCE}")
    print(f"{'':24}{'RMSE of x':>10}{'residual':>10}{'met':>8}{'steps':>7}{'fallbacks':>11}{'ms each':>9}")
    for name, (x, solution, milliseconds) in rows.items():
        # Judged from x alone and in the same way for every row, not by what a solver says of itself.
        error = jnp.mean(jax.vmap(diagnostics.rmse)(test.x, x))
        residual = jax.vmap(diagnostics.rmse)(test.y, jax.vmap(forward)(x)) / NOISE_STD
        met = 100 * jnp.mean(residual <= TOLERANCE)
        row = f"{name:24}{error:10.3f}{jnp.median(residual):10.2f}{met:7.1f}%"
        if solution is not None:
            stats = solution.stats
            row += f"{jnp.median(stats.num_steps):7.0f}{jnp.sum(stats.num_fallbacks):11d}{milliseconds:9.3f}"
        print(row)


def print_diagnostics(pair, metric, xs, *, key):
    f, g = pair.forward, pair.inverse
    # Profiles live in 8 of 32 dimensions. In the others the inverse has learned nothing, and nobody asks: the identity
    # metric counts them, the metric of the data does not. Only the excess over the floor ranks inverses.
    for name, metric_or_none in {"identity metric": None, "data metric": metric}.items():
        value = diagnostics.rjcp(f, g, xs, key=key, metric=metric_or_none)
        excess = diagnostics.excess_rjcp(f, g, xs, key=key, metric=metric_or_none)
        print(f"{name}: RJCP {value:.4f} = floor {value - excess:.4f} + excess {excess:.4f}")
    spectra = jax.vmap(lambda x: diagnostics.jacobian_spectrum(f, x))(xs)
    above = jnp.sum(jnp.median(spectra, axis=0) > NOISE_STD)
    print(f"Jacobian: {above} of {SIZE} singular values stand above the noise, the largest is {jnp.max(spectra):.2f}")
    print(f"adjoint test {diagnostics.adjoint_dot_test(f, xs[0], key=key):.1e}")


def main():
    print("devices:", jax.devices())
    train_key, test_key, probe_key = jax.random.split(jax.random.key(0), 3)
    forward, prior = make_problem()
    metric = diagnostics.DataMetric(prior.basis * prior.std[None, :], NOISE_STD)

    start = time.perf_counter()
    pair, history = train(forward, prior, metric, key=train_key)
    print(f"trained {NUM_TRAIN_STEPS} steps in {time.perf_counter() - start:.1f} s, kept round {history.best_round}")

    print("\n-- Is the inverse any good? --")
    test = data.generate(prior, forward, NUM_TEST, key=test_key, noise_std=NOISE_STD)
    print_diagnostics(pair, metric, test.x[:50], key=probe_key)

    rows = reconstruct_all(forward, pair.inverse, prior, test)
    print_table(forward, test, rows)

    # `solve` takes one observation; whatever else is wanted comes from JAX's own transformations.
    solver = solvers.DIPG(pair.inverse, discrepancy=TOLERANCE)
    many = jax.vmap(lambda y, x0: pj.solve(pj.Problem(forward, y, noise_std=NOISE_STD), solver, x0))
    mapped = many(test.y, jnp.zeros_like(test.x))
    difference = jnp.max(jnp.abs(mapped.value - rows["D-IPG"][0]))
    print(f"\nvmap(solve) against solve_batch: largest difference {difference:.1e}")
    for code in ("successful", "stationary", "line_search_failed"):
        print(f"{jnp.sum(mapped.result == getattr(pj.RESULTS, code))} solves ended {code}")

    # Never a pickle: the file holds arrays, `like` says what they belong to.
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "pair.npz"
        io.save_model(path, pair, meta={"noise_std": NOISE_STD})
        again = io.load_model(path, like=make_model(forward, key=jax.random.key(1)))
        same = bool(jnp.all(again.inverse(test.y[0]) == pair.inverse(test.y[0])))
        print(f"saved {path.stat().st_size // 1024} KiB and loaded; the same prediction: {same}")


if __name__ == "__main__":
    main()
