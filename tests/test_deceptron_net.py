"""Unrolled networks: one step is the formula, training changes what it should and can be resumed, the solver agrees."""

import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pinv_jax import Problem, data, learn, maps, solvers

SHAPE = (1, 8, 8)


def network(num_steps=3, **kwargs):
    corrector = maps.UNet((8, 8), (3, 1), widths=(8, 8), num_convs=1, key=jax.random.key(1))
    return learn.DeceptronNet(maps.linear_camera(SHAPE, 1.0, window=5), corrector, num_steps=num_steps, **kwargs)


@functools.cache
def pairs(num=96):
    """Observations and images."""
    camera = maps.blurring_camera(SHAPE, 1.0, window=5)
    found = data.generate(data.smooth_images(8), camera, num, key=jax.random.key(0), noise_std=0.01)
    return found.y, found.x


@functools.cache
def trained():
    stages = learn.unrolled_stages(96, epochs=15, batch_size=16, learning_rate=1e-2)
    return learn.fit(network(), stages, pairs(), key=jax.random.key(2))


def rmse(model, ys, xs):
    return float(jnp.sqrt(jnp.mean((jax.jit(jax.vmap(lambda y: model(y)))(ys) - xs) ** 2)))


def test_the_published_network():
    net = learn.DeceptronNet(maps.linear_camera(), key=jax.random.key(0))
    assert (net.num_steps, net.in_structure().shape, net.out_structure().shape) == (6, (1, 32, 32), (1, 64, 64))
    np.testing.assert_allclose(net.gains, 0.7)
    shapes = [tuple(conv.weight.shape[:2]) for (conv,) in (*net.corrector.down, *net.corrector.up)]
    assert shapes == [(32, 3), (64, 32), (32, 96)]
    assert net.corrector.last.weight.shape[:2] == (1, 32)


@pytest.mark.slow
def test_one_step_is_the_formula():
    net = eqx.tree_at(lambda net: net.gains, network(2), jnp.asarray([0.3, -0.4]))
    x, y = pairs()[1][0], pairs()[0][0]
    up = lambda image: np.kron(np.asarray(image), np.ones((1, 2, 2)))
    np.testing.assert_array_equal(net.start(y), up(y))
    step = jax.jit(lambda x, y, index: net.step(x, y, index))
    seen = np.concatenate([up(y), up(jax.jit(lambda x: net.nominal(x))(x) - y), x])
    correction = np.asarray(jax.jit(lambda images: net.corrector(images))(jnp.asarray(seen)))
    for index, gain in enumerate((0.3, -0.4)):
        moved = np.asarray(x) - correction / (1 + np.exp(-gain))
        np.testing.assert_allclose(step(x, y, index), np.clip(moved, 0, 1), atol=1e-14)
    composed = step(step(net.start(y), y, 0), y, 1)
    np.testing.assert_allclose(jax.jit(lambda y: net(y))(y), composed, atol=1e-14)


@pytest.mark.slow
def test_training_moves_the_gains_and_the_corrector_and_nothing_else():
    before = network()
    after, history = trained()
    assert np.all(np.abs(after.gains - 0.7) > 1e-3)
    assert not np.allclose(after.corrector.last.weight, before.corrector.last.weight)
    for kept, was in zip(jax.tree.leaves(after.nominal), jax.tree.leaves(before.nominal), strict=True):
        np.testing.assert_array_equal(kept, was)
    loss = history["unrolled"].loss
    assert np.mean(loss[-6:]) < 0.3 * np.mean(loss[:2])


@pytest.mark.slow
def test_the_trained_network_beats_its_initial_guess_and_the_mean():
    camera = maps.blurring_camera(SHAPE, 1.0, window=5)
    test = data.generate(data.smooth_images(8), camera, 64, key=jax.random.key(9), noise_std=0.01)
    net = trained()[0]
    found = rmse(net, test.y, test.x)
    assert found < 0.75 * rmse(net.start, test.y, test.x)
    assert found < 0.75 * float(jnp.std(test.x))


def test_training_that_was_interrupted_goes_on(tmp_path):
    stages = learn.unrolled_stages(32, epochs=2, batch_size=16)
    ys, xs = (part[:32] for part in pairs())
    options = {"key": jax.random.key(3), "steps_per_round": 1}
    whole, _ = learn.fit(network(1), stages, (ys, xs), **options)

    class Stop(Exception):
        pass

    def stop(stage, done, total, loss):
        if done == 2:
            raise Stop

    with pytest.raises(Stop):
        learn.fit(network(1), stages, (ys, xs), checkpoint=tmp_path, progress=stop, **options)
    steps = []
    resumed, _ = learn.fit(
        network(1), stages, (ys, xs), checkpoint=tmp_path, progress=lambda *args: steps.append(args[1]), **options
    )
    assert steps[0] > 1, "it does not begin again"
    assert steps[-1] == 4
    for a, b in zip(jax.tree.leaves(whole), jax.tree.leaves(resumed), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.slow
def test_the_solver_takes_the_steps_of_the_network_and_reports_the_true_residual():
    net, camera = trained()[0], maps.blurring_camera(SHAPE, 1.0, window=5)
    ys = pairs()[0][:4]
    starts = jax.vmap(net.start)(ys)
    solution = solvers.solve_batch(Problem(camera, ys), solvers.Unrolled(net), starts, history=4)
    np.testing.assert_allclose(solution.value, jax.jit(jax.vmap(lambda y: net(y)))(ys), atol=1e-12)
    np.testing.assert_array_equal(solution.stats.num_steps, 3)
    np.testing.assert_array_equal(solution.stats.num_g, 3)
    np.testing.assert_array_equal(solution.stats.num_f, 4)
    residual = jax.vmap(camera)(solution.value) - ys
    expected = jnp.sqrt(jnp.mean(residual**2, axis=(1, 2, 3)))
    np.testing.assert_allclose(solution.history.residual_rms[:, -1], expected, rtol=1e-10)
    assert not np.any(solution.success), "there is no tolerance"


def test_the_solver_stops_within_tolerance():
    net, camera = trained()[0], maps.blurring_camera(SHAPE, 1.0, window=5)
    y = pairs()[0][0]
    solution = solvers.solve(Problem(camera, y), solvers.Unrolled(net, atol=10.0), net.start(y))
    assert solution.success
    assert int(solution.stats.num_steps) == 0


@pytest.mark.slow
def test_coarse_to_fine_is_one_net_after_the_other():
    fine = network(1)
    corrector = maps.UNet((4, 4), (3, 1), widths=(3,), num_convs=1, key=jax.random.key(4))
    nominal = maps.linear_camera((1, 4, 4), 0.5, window=3, factor=1)
    coarse = learn.DeceptronNet(nominal, corrector, num_steps=2)
    both = learn.CoarseToFine([coarse, fine])
    y = pairs()[0][0]
    middle = np.kron(np.asarray(coarse(y)), np.ones((1, 2, 2)))
    expected = fine.step(jnp.asarray(middle), y, 0)
    np.testing.assert_allclose(jax.jit(lambda y: both(y))(y), expected, atol=1e-14)
    assert both.out_structure().shape == SHAPE


@pytest.mark.slow
def test_learned_ista_learns():
    net = learn.LearnedISTA(maps.blurring_camera(SHAPE, 1.0, window=5), num_atoms=6, window=3, key=jax.random.key(5))
    ys, xs = pairs()
    stages = learn.unrolled_stages(96, epochs=10, batch_size=16, learning_rate=1e-2)
    after, _ = learn.fit(net, stages, (ys, xs), key=jax.random.key(2))
    assert rmse(after, ys, xs) < 0.8 * rmse(lambda y: jnp.repeat(jnp.repeat(y, 2, 1), 2, 2), ys, xs)
    assert not np.allclose(after.log_thresholds, net.log_thresholds)
    np.testing.assert_array_equal(jax.tree.leaves(after.forward)[0], jax.tree.leaves(net.forward)[0])


def test_large_thresholds_leave_the_initial_guess():
    net = learn.LearnedISTA(maps.blurring_camera(SHAPE, 1.0, window=5), num_steps=2, key=jax.random.key(5))
    net = eqx.tree_at(lambda net: net.log_thresholds, net, jnp.full((2, 32), 10.0))
    y = pairs()[0][0]
    np.testing.assert_array_equal(jax.jit(lambda y: net(y))(y), np.kron(np.asarray(y), np.ones((1, 2, 2))))


class Bare(eqx.Module):
    """A network without `step`."""

    num_steps: int = 2

    def __call__(self, y):
        return y


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: learn.DeceptronNet(maps.linear_camera(SHAPE)), "expected a corrector, or key"),
        (lambda: network(0), "at least one step"),
        (lambda: learn.LearnedISTA(lambda x: x, key=jax.random.key(0)), "expected an AbstractMap"),
        (lambda: learn.DeceptronNet(maps.MLP((4, 4), key=jax.random.key(0)), key=jax.random.key(0)), r"\(c, H, W\)"),
        (lambda: learn.DeceptronNet(maps.linear_camera(SHAPE), lambda images: images), "the corrector turns"),
        (lambda: learn.CoarseToFine([]), "nets for one observation"),
        (lambda: learn.LearnedISTA(maps.linear_camera(SHAPE), window=4, key=jax.random.key(0)), "odd window"),
        (
            lambda: solvers.solve(
                Problem(maps.linear_camera(SHAPE), pairs()[0][0]), solvers.Unrolled(Bare()), pairs()[1][0]
            ),
            "has no step",
        ),
        (
            lambda: solvers.solve(Problem(lambda x: x, pairs()[1][0]), solvers.Unrolled(network()), pairs()[1][0]),
            "was made for",
        ),
    ],
)
def test_bad_input_is_explained(make, message):
    with pytest.raises(ValueError, match=message):
        make()
