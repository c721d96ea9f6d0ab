import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pinv_jax import Problem, learn, maps, solve, solvers

N, M, KEY = 10, 4, jax.random.key(0)
A, B = (jax.random.normal(key, (M, N)) / N**0.5 for key in jax.random.split(jax.random.key(7)))


def simulator(x):
    """Nearly linear, onto, and not invertible."""
    u = A @ x
    return u + 0.2 * jnp.sin(2 * u) + 0.2 * jnp.sin(B @ x)


def sampler(key):
    return 0.5 * jax.random.normal(key, (N,)) + 1.0


def examples(num, seed=3):
    xs = jax.vmap(sampler)(jax.random.split(jax.random.key(seed), num))
    return xs, jax.vmap(simulator)(xs)


def same(a, b):
    leaves = [jax.tree.leaves(eqx.filter(tree, eqx.is_array)) for tree in (a, b)]
    return all(bool(jnp.array_equal(x, y)) for x, y in zip(*leaves, strict=True))


small_network = functools.partial(learn.ridge_network, num_layers=2, hidden=16, key=KEY)


def run(**options):
    model = small_network(*examples(200))
    return learn.imitate(simulator, sampler, key=KEY, model=model, num_examples=2500, num_steps=1200, **options)


@pytest.fixture(scope="module")
def stand_in():
    return run()


def back_project(model, x, data):
    return jax.jit(jax.vmap(lambda x, y: solvers.nlbp(maps.Natural(model), x, y)))(x, data)


def std(ys):
    return float(np.sqrt(np.mean((ys - ys.mean(0, keepdims=True)) ** 2)))


@jax.jit
def each(f, xs):
    return jax.vmap(f)(xs)


@jax.jit
def again(f, ys):
    return jax.vmap(lambda y: f(f.pinv(y)))(ys)


def rms(values):
    return float(np.sqrt(np.mean(values**2)))


@pytest.mark.slow
def test_the_stand_in_beats_the_ridge_regression(stand_in):
    assert 0.05 < stand_in.ridge_errors.fit < 0.5
    assert stand_in.errors.fit < 0.7 * stand_in.ridge_errors.fit
    assert stand_in.errors.consistency < 0.7 * stand_in.ridge_errors.consistency
    assert stand_in.errors.before == stand_in.ridge_errors.before
    assert 1.2 < stand_in.errors.before < 1.6
    assert stand_in.history.loss.shape == (1200,)


@pytest.mark.slow
def test_errors_are_those_of_nlbp_on_fresh_examples(stand_in):
    xs, ys = examples(250, seed=11)  # as many as were held out, so that nothing compiles again
    errors = learn.imitation_errors(stand_in.model, simulator, xs)
    others = jnp.roll(ys, 1, axis=0)
    back = back_project(stand_in.model, xs, others)
    np.testing.assert_allclose(each(stand_in.model, back), others, atol=1e-11)
    np.testing.assert_allclose(errors.fit, rms(each(stand_in.model, xs) - ys) / std(ys), rtol=1e-8)
    np.testing.assert_allclose(errors.consistency, rms(jax.vmap(simulator)(back) - others) / std(ys), rtol=1e-8)
    np.testing.assert_allclose(errors.before, rms(ys - others) / std(ys), rtol=1e-8)
    np.testing.assert_allclose(errors.fit, stand_in.errors.fit, rtol=0.3)
    without = learn.imitation_errors(stand_in.model, None, xs, ys)
    np.testing.assert_allclose(without.fit, errors.fit, rtol=1e-12)
    assert without.consistency is None
    assert without.before is None


@pytest.mark.slow
def test_gauss_newton_finishes_on_the_simulator_itself(stand_in):
    xs, ys = examples(8, seed=12)
    data = jnp.roll(ys, 1, axis=0)
    start = back_project(stand_in.model, xs, data)
    solver = solvers.GaussNewton(atol=1e-9)
    finish = jax.jit(jax.vmap(lambda x, y: solve(Problem(simulator, y), solver, x, max_steps=6)))
    solution = finish(start, data)
    before = np.linalg.norm(jax.vmap(simulator)(start) - data, axis=1) / np.linalg.norm(data, axis=1)
    after = np.linalg.norm(jax.vmap(simulator)(solution.value) - data, axis=1) / np.linalg.norm(data, axis=1)
    assert before.max() < 0.2
    assert before.min() > 1e-6
    assert after.max() < 1e-6
    moved = np.linalg.norm(solution.value - start, axis=1)
    assert np.all(moved < 0.2 * np.linalg.norm(start - xs, axis=1))


@pytest.mark.slow
def test_a_run_that_was_killed_and_resumed_equals_one_that_was_not(stand_in, tmp_path, monkeypatch):
    monkeypatch.setattr(learn._checkpoint.Checkpoint, "seconds_between_saves", 0.0)

    def killer(name, done, total, loss):
        if done > total / 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(checkpoint=tmp_path, progress=killer)
    seen = []
    resumed = run(checkpoint=tmp_path, progress=lambda *args: seen.append(args))
    assert same(resumed.model, stand_in.model)
    assert resumed.errors == stand_in.errors
    assert seen[0][1] > 600


@pytest.mark.slow
def test_the_ridge_network_starts_as_the_best_ridge_regression():
    xs, ys = examples(300)
    fresh_xs, fresh_ys = examples(500, seed=4)
    model = learn.ridge_network(xs, ys, num_layers=0, key=KEY)
    centred_x, centred_y = (np.asarray(a - a.mean(0, keepdims=True)) for a in (xs, ys))

    def held_out(strength):
        gram = centred_x.T @ centred_x + strength * np.eye(N)
        weights = np.linalg.solve(gram, centred_x.T @ centred_y)
        return rms((fresh_xs - xs.mean(0, keepdims=True)) @ weights + ys.mean(0, keepdims=True) - fresh_ys)

    best = min(map(held_out, np.logspace(-4, 3, 30)))
    assert rms(each(model, fresh_xs) - fresh_ys) < 1.01 * best
    deep = small_network(xs, ys)
    np.testing.assert_allclose(each(deep, xs), each(model, xs), atol=1e-12)
    assert len(jax.tree.leaves(deep)) > len(jax.tree.leaves(model))


def test_few_examples_are_regularised():
    xs, ys = examples(8)
    model = learn.ridge_network(xs, ys + 0.5 * jax.random.normal(KEY, ys.shape), num_layers=0, key=KEY)
    fresh_xs, fresh_ys = examples(500, seed=4)
    assert rms(each(model, fresh_xs) - fresh_ys) < 2 * std(fresh_ys)


@pytest.mark.slow
def test_directions_that_are_ignored_get_small_gains():
    xs, _ = examples(400)
    low_rank = A.at[2:].set(0.0) + A[:2].sum(0)[None, :] * jnp.ones((M, 1))
    noise = 0.1 * jax.random.normal(KEY, (400, M))
    model = learn.ridge_network(xs, xs @ low_rank.T + noise, num_layers=0, key=KEY)
    gains = np.linalg.svd(jax.jacobian(model)(xs[0]), compute_uv=False)
    assert gains[-1] > 1e-3 * gains[0]
    exact = np.linalg.svd(low_rank, compute_uv=False)
    np.testing.assert_allclose(gains[:2], exact[:2], rtol=0.05)
    error = rms(each(model, xs) - xs @ low_rank.T - noise)
    assert error < 1.02 * rms(noise)
    np.testing.assert_allclose(again(model, xs[:, :M]), xs[:, :M], atol=1e-10)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("shape", "dtype"),
    [((1, 4, 4), jnp.float32), pytest.param((2, 4, 4), jnp.float64, marks=pytest.mark.slow), ((1, 3, 5), jnp.float64)],
    ids=["unshuffled", "channels", "flattened"],
)
def test_images_keep_their_shape(shape, dtype):
    xs = jax.random.normal(KEY, (60, *shape), dtype)
    ys = jnp.tanh(xs[:, :, :2, :2])
    model = learn.ridge_network(xs, ys, num_layers=1, hidden=4, key=KEY)
    assert (model.in_structure().shape, model.in_structure().dtype) == (shape, dtype)
    assert (model.out_structure().shape, model.out_structure().dtype) == (ys.shape[1:], dtype)
    linear = learn.ridge_network(xs, ys, num_layers=0, key=KEY)
    tolerance = {"atol": 2e-5 if dtype == jnp.float32 else 1e-12}
    np.testing.assert_allclose(each(model, xs), each(linear, xs), **tolerance)
    back = again(model, ys)
    np.testing.assert_allclose(back, ys, **tolerance)


def test_units_and_matrix_are_data_and_no_parameters(stand_in):
    start = small_network(*examples(50))
    gradient = jax.jit(jax.grad(lambda m, x: jnp.sum(m(x) ** 2)))(start, examples(1)[0][0])
    for layer in gradient.layers:
        fixed = not isinstance(layer, maps.SurjectiveChain)
        assert all(not np.any(leaf) for leaf in jax.tree.leaves(layer)) == fixed


@pytest.mark.slow
def test_pairs_and_arrays_give_the_default_network(monkeypatch):
    xs, ys = examples(60)
    tiny = functools.partial(learn.ridge_network, num_layers=1, hidden=4)
    monkeypatch.setattr(learn._imitate, "ridge_network", lambda *a, num_layers=1, **k: tiny(*a, **k))
    short = functools.partial(learn.imitate, key=KEY, num_steps=5)
    from_pairs, from_array = short(None, (xs, ys)), short(simulator, np.asarray(xs))
    own = tiny(xs, ys, key=KEY)
    assert from_pairs.errors.consistency is None
    np.testing.assert_allclose(from_pairs.errors.fit, from_array.errors.fit, rtol=1e-6)
    assert jax.tree.structure(from_array.model) == jax.tree.structure(own)
    assert from_array.history.loss.shape == (5,)


def test_wrong_input_is_refused():
    xs, ys = examples(60)
    with pytest.raises(ValueError, match=r"imitate: h maps shape \(10,\) to shape \(20,\).*maps.Expand"):
        learn.imitate(lambda x: jnp.concatenate([x, x]), xs, key=KEY)
    with pytest.raises(ValueError, match="without h expected pairs"):
        learn.imitate(None, xs, key=KEY)
    with pytest.raises(ValueError, match="same number of examples"):
        learn.imitate(None, (xs, ys[:-1]), key=KEY)
    with pytest.raises(ValueError, match="NaN or infinite"):
        learn.imitate(None, (xs, ys.at[3].set(jnp.nan)), key=KEY)
    with pytest.raises(ValueError, match="of 10 examples held_out=0.2 leaves 8 to train, 1 to select"):
        learn.imitate(simulator, xs[:10], key=KEY)
    with pytest.raises(ValueError, match=r"model maps shape \(10,\) in float64 to shape \(3,\)"):
        learn.imitate(simulator, xs, model=maps.LinearSurjection(A[:3]), key=KEY)
    with pytest.raises(ValueError, match="x has 2049 entries.*maps.spnn"):
        learn.ridge_network(jnp.zeros((3, 2049)), ys[:3], key=KEY)
    with pytest.raises(ValueError, match="are all equal in x or in y"):
        learn.ridge_network(xs, jnp.ones_like(ys), key=KEY)
    with pytest.raises(ValueError, match="expected h, or y"):
        learn.imitation_errors(maps.LinearSurjection(A), None, xs)
    with pytest.raises(ValueError, match="two examples or more, got 1"):
        learn.imitation_errors(maps.LinearSurjection(A), simulator, xs[:1])
