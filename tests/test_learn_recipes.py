import dataclasses
import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from pinv_jax import diagnostics, learn, maps

KEY = jax.random.key(0)
SMALL = learn.ThreeStageConstants(
    (12, 12, 8),
    (2e-2, 2e-2, 1e-2),
    cycle_weight=0.25,
    jcp_weight=1.0,
    noise_std=0.02,
    batch_size=32,
    perceptron=True,
    jcp_examples=16,
    num_probes=2,
)


def pair(d=4, m=5):
    k1, k2 = jax.random.split(jax.random.key(1))
    return learn.InversePair(maps.MLP((d, m), key=k1), maps.MLP((m, 2 * d, d), activation="tanh", key=k2))


def dataset(num, seed, d=4, m=5):
    xs = jax.random.normal(jax.random.key(seed), (num, d))
    matrix = jnp.asarray(np.linalg.qr(np.random.default_rng(0).standard_normal((m, d)))[0])
    return xs, xs @ matrix.T


def test_the_table_has_all_seven_problems_with_the_published_constants():
    assert len(learn.THREE_STAGE) == 7
    heat = learn.THREE_STAGE["heat1d"]
    assert heat.epochs == (140, 100, 120)
    assert (heat.cycle_weight, heat.jcp_weight, heat.noise_std, heat.batch_size) == (0.25, 1.0, 0.02, 128)
    assert learn.THREE_STAGE["navier_stokes2d"].epochs[2] == 15
    stages = learn.three_stage("heat1d", 4000)
    assert list(stages) == ["surrogate", "inverse", "jcp"]
    assert [stage.num_steps for stage in stages.values()] == [140 * 31, 100 * 31, 120 * 31]
    assert sorted(stages["jcp"].terms) == ["bias_tie", "composition", "cycle", "jcp", "reconstruction"]
    assert stages["jcp"].terms["jcp"].num_examples == 16
    assert sorted(learn.three_stage("allen_cahn2d", 2000)["jcp"].terms) == ["cycle", "jcp", "reconstruction"]
    for name in learn.THREE_STAGE:
        assert len(learn.three_stage(name, 4000, selection="published")) == 3


def test_optimiser_is_adam_with_coupled_decay_clipping_and_an_epoch_cosine():
    params, grads = jnp.asarray([3.0, -2.0]), jnp.asarray([30.0, 40.0])
    optimiser = learn.published_optimiser(1e-2, epochs=4, steps_per_epoch=2)
    state = optimiser.init(params)
    m = v = 0
    for step in range(6):
        updates, state = optimiser.update(grads, state, params)
        # torch.optim.Adam(weight_decay=1e-6) after clip_grad_norm_(5.0), CosineAnnealingLR stepped per epoch
        g = np.asarray(grads) / 10 + 1e-6 * np.asarray(params)
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
        rate = 1e-2 * 0.5 * (1 + np.cos(np.pi * (step // 2) / 4))
        step_taken = -rate * (m / (1 - 0.9 ** (step + 1))) / (np.sqrt(v / (1 - 0.999 ** (step + 1))) + 1e-8)
        np.testing.assert_allclose(updates, step_taken, rtol=1e-6)
        params = optax.apply_updates(params, updates)
    assert learn.published_optimiser(1e-2) is learn.published_optimiser(1e-2)


@pytest.mark.parametrize(
    ("selection", "from_data"), [("guarded", False), pytest.param("published", True, marks=pytest.mark.slow)]
)
def test_three_stages_train_surrogate_and_inverse(selection, from_data):
    constants = dataclasses.replace(SMALL, from_data=from_data, perceptron=not from_data)
    train, validation = dataset(256, 2), dataset(64, 3)
    stages = learn.three_stage(constants, 256, selection=selection)
    start = pair()
    model, history = learn.fit(start, stages, train, key=KEY, validation=validation)
    scores = jax.jit(lambda m: [s(m, m, validation, KEY) for s in (learn.task_score, learn.reconstruction_score)])
    (task, error), (task_before, error_before) = scores(model), scores(start)
    assert task < 0.1 * task_before
    assert error < 0.5 * error_before
    assert all(np.isfinite(h.score).all() for h in history.values())
    assert history["jcp"].score.shape == (8,)


@pytest.mark.slow
def test_penalty_lowers_the_composition_defect_against_its_ablation():
    train, validation = dataset(256, 2), dataset(64, 3)
    stages = learn.three_stage(SMALL, 256)
    ablation = stages | {"jcp": stages["jcp"].without("jcp")}
    run = lambda s: learn.fit(pair(), s, train, key=KEY, validation=validation)[0]
    defects = [
        diagnostics.rjcp(m.forward, m.inverse, validation[0], key=jax.random.key(4))
        for m in (run(stages), run(ablation))
    ]
    assert defects[0] < defects[1]


@pytest.mark.slow
def test_the_penalty_can_be_that_of_the_data_metric():
    train, validation = dataset(256, 2), dataset(64, 3)
    metric = diagnostics.DataMetric.from_samples(train[0], 0.1)
    stages = learn.three_stage(SMALL, 256, penalty=functools.partial(learn.jcp, target="data", metric=metric))
    stages = {"jcp": stages["jcp"].without("composition", "bias_tie")}
    _, history = learn.fit(pair(), stages, train, key=KEY, validation=validation)
    assert history["jcp"].terms["jcp"][-8:].mean() < history["jcp"].terms["jcp"][:8].mean()


def test_scores_of_the_selections():
    x, noise = jnp.zeros((40, 2)), 0.5
    validation = (x, x)
    good = learn.InversePair(lambda x: x, lambda y: y)
    small = learn.InversePair(lambda x: x, lambda y: 0.5 * y)
    args = (validation, KEY)
    assert learn.rjcp_score(small, good, *args) == 0.25
    np.testing.assert_allclose(learn.reconstruction_score(good, good, *args, noise_std=noise), 0.25, rtol=0.5)
    ratio = learn.reconstruction_score(small, small, *args, noise_std=noise) / learn.reconstruction_score(
        good, good, *args, noise_std=noise
    )
    np.testing.assert_allclose(ratio, 0.25)  # the same noise for both
    with_rjcp = learn.reconstruction_score(small, small, *args, rjcp_weight=0.05)
    np.testing.assert_allclose(with_rjcp, 0.05 * 0.25)
    # the guard: a better reconstruction does not count if its composition defect is larger than at the start
    half = learn.InversePair(lambda x: x, lambda y: 0.6 * y)
    allowed = learn.guarded_reconstruction_score(half, small, *args, noise_std=noise)
    np.testing.assert_allclose(allowed, learn.reconstruction_score(half, half, *args, noise_std=noise))
    assert learn.guarded_reconstruction_score(small, half, *args, noise_std=noise) > 100 * allowed
    shifted = (jnp.ones((40, 2)), jnp.ones((40, 2)))
    assert learn.guarded_rjcp_score(half, small, shifted, KEY) < 0.2
    assert learn.guarded_rjcp_score(small, half, shifted, KEY) > 100


def test_three_stage_names_what_is_wrong():
    with pytest.raises(ValueError, match="heat1d"):
        learn.three_stage("heat4d", 100)
    with pytest.raises(ValueError, match="'guarded' or 'published'"):
        learn.three_stage("heat1d", 4000, selection="best")
    with pytest.raises(ValueError, match="less than one batch"):
        learn.three_stage("heat1d", 100)


@pytest.mark.parametrize("slope", [1.0, 0.1])
def test_the_mirror_comes_first_so_that_a_left_inverse_exists(slope):
    model = learn.Deceptron(3, 5, slope=slope, key=KEY)
    inverse_weight = jnp.linalg.pinv(model.weight)
    bias = jnp.linspace(-1.0, 1.0, 5)
    model = eqx.tree_at(
        lambda m: [m.bias, m.inverse_weight, m.inverse_bias], model, [bias, inverse_weight, -inverse_weight @ bias]
    )
    xs = jax.random.normal(jax.random.key(1), (20, 3))
    np.testing.assert_allclose(jax.vmap(lambda x: model.inverse(model.forward(x)))(xs), xs, atol=1e-12)
    if slope != 1.0:
        assert bool(jnp.any(jax.vmap(model.forward)(xs) != xs @ model.weight.T + bias[None, :]))


def test_tied_inverse_is_the_transpose_and_has_no_parameter_of_its_own():
    model = learn.Deceptron(3, 5, tied=True, key=KEY)
    assert model.inverse_weight is None
    y = jnp.arange(5.0)
    np.testing.assert_array_equal(model.inverse(y), model.weight.T @ y)
    with pytest.raises(ValueError, match="slope"):
        learn.Deceptron(3, 5, slope=0.0, key=KEY)


def test_ridge_prefit_is_the_ridge_solution_and_its_damped_inverse():
    xs, ys = dataset(50, 2)
    model = learn.ridge_prefit(learn.Deceptron(4, 5, key=KEY), xs, ys)
    w = np.asarray(ys.T @ xs @ np.linalg.inv(xs.T @ xs + 1e-4 * np.eye(4)))
    np.testing.assert_allclose(model.weight, w, rtol=1e-9)
    np.testing.assert_allclose(model.inverse_weight, np.linalg.inv(w.T @ w + 1e-4 * np.eye(4)) @ w.T, rtol=1e-9)
    tied = learn.ridge_prefit(learn.Deceptron(4, 5, tied=True, key=KEY), xs, ys)
    np.testing.assert_allclose(tied.weight, w, rtol=1e-9)


def test_ramp_matches_the_printed_schedule_and_waits_for_the_fit():
    ramp = learn.jcp_ramp()
    printed = {19: 3.56e-4, 29: 5.78e-4, 39: 8.0e-4, 48: 1e-3, 59: 1e-3}
    for epoch, weight in printed.items():
        np.testing.assert_allclose(ramp.weight(jnp.asarray(epoch)), weight, rtol=2e-3)
    xs, ys = dataset(50, 2)
    fitted = learn.ridge_prefit(learn.Deceptron(4, 5, key=KEY), xs, ys)
    for model, epoch, expected in (
        (fitted, 12, True),
        (fitted, 11, False),
        (learn.Deceptron(4, 5, key=KEY), 40, False),
    ):
        assert bool(ramp.opens(model, (xs, ys), jnp.asarray(epoch))) is expected


@pytest.mark.slow
def test_joint_recipe_trains_both_maps_and_its_weights_follow_the_ramp():
    train, validation = dataset(256, 2), dataset(64, 3)
    noisy = (train[0], train[1] + 0.1 * jax.random.normal(KEY, train[1].shape))
    start = learn.ridge_prefit(learn.Deceptron(4, 5, slope=0.9, key=KEY), *noisy)
    stages = learn.deceptron_stage(256, epochs=20, batch_size=64)
    assert len(stages["joint"].terms) == 7
    model, history = learn.fit(start, stages, noisy, key=KEY, validation=validation)
    weights = history["joint"].weights["jcp"].reshape(20, 4)
    assert np.all(weights[:12] == 0)
    np.testing.assert_allclose(weights[12:, 0], 1e-3 * (0.2 + 0.8 * np.arange(8) / 36), rtol=1e-6)
    assert history["joint"].loss[-1] < history["joint"].loss[0]
    # where the forward map does not fit, the penalty never acts
    never = learn.deceptron_stage(256, epochs=20, batch_size=64, trigger=1e-9)
    _, history = learn.fit(start, never, noisy, key=KEY, validation=validation)
    assert np.all(history["joint"].weights["jcp"] == 0)
    with pytest.raises(ValueError, match="less than one batch"):
        learn.deceptron_stage(100)
