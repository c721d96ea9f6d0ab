"""The study of shifts: its alarms on numbers, its drifting physics, and, slowly, both parts."""

import equinox as eqx
import jax.numpy as jnp
import numpy as np
import pytest

from pinv_jax import suite
from pinv_jax.pde import SpectralHeat1D
from pinv_jax.suite import _drift, _heat1d, _watch

USUAL = {"a": np.random.default_rng(0).normal(size=2000), "b": np.random.default_rng(1).exponential(size=2000)}


def test_each_threshold_and_all_together_leave_the_level_of_the_usual_solves():
    alarms = _watch.calibrate(USUAL, level=0.95)
    flags = alarms.flags(USUAL)
    for name in USUAL:
        assert flags[name].mean() == pytest.approx(0.05, abs=1e-3)
        assert alarms.together[name] > alarms.alone[name]
    assert flags["any"].mean() == pytest.approx(0.05, abs=2e-3)
    np.testing.assert_allclose(alarms.alone["a"], 1.645, atol=0.15)
    np.testing.assert_allclose(alarms.alone["b"], np.log(20), atol=0.3)


def test_a_solve_is_flagged_by_what_exceeds_its_threshold():
    alarms = _watch.calibrate(USUAL)
    flags = alarms.flags({"a": np.array([0.0, 9.0, 0.0, np.nan]), "b": np.array([0.1, 0.1, 99.0, 0.1])})
    np.testing.assert_array_equal(flags["a"], [False, True, False, True])
    np.testing.assert_array_equal(flags["b"], [False, False, True, False])
    np.testing.assert_array_equal(flags["any"], [False, True, True, True])


def test_thresholds_do_not_depend_on_the_scale_of_a_diagnostic():
    scaled = {"a": USUAL["a"], "b": 1e6 * USUAL["b"]}
    one, other = _watch.calibrate(USUAL), _watch.calibrate(scaled)
    np.testing.assert_array_equal(one.flags(USUAL)["any"], other.flags(scaled)["any"])


def test_identical_diagnostics_together_are_as_one():
    twice = {"a": USUAL["a"], "again": USUAL["a"]}
    alarms = _watch.calibrate(twice)
    assert alarms.together == alarms.alone


def test_means_of_batches_scatter_like_means():
    means = _drift.batch_means(USUAL["a"], seed=0)
    np.testing.assert_allclose(np.std(means), np.std(USUAL["a"]) / np.sqrt(_drift.BATCH), rtol=0.06)
    np.testing.assert_allclose(means.mean(), USUAL["a"].mean(), atol=0.01)


def test_the_fewest_steps_that_match_training_anew():
    rows = [
        {"inverse": kind, "trained": steps, "g(data) RMSE x": error}
        for kind, steps, error in [
            ("refitted", 100, 0.13),
            ("refitted", 300, 0.1205),
            ("anew", 300, 0.2),
            ("anew", 1000, 0.13),
            ("anew", 9000, 0.12),
        ]
    ]
    assert _drift.steps_to_match(rows) == {"steps refitted": 300, "steps anew": 9000}
    assert np.isnan(_drift.steps_to_match(rows, slack=1.001)["steps refitted"])


@pytest.fixture(scope="module")
def dataset():
    return suite.HEAT1D.dataset(seed=0, num_test=20, dtype=jnp.float64, quick=True)


def test_the_drift_changes_the_diffusivity_and_nothing_else(dataset):
    x = dataset.test.x[0]
    same, other = (_drift.diffusing(dataset, value).physics for value in (0.18, 0.3))
    np.testing.assert_allclose(same(x), dataset.physics(x), rtol=1e-12)
    before, after = (physics.forward.layers[0](x) for physics in (dataset.physics, other))
    np.testing.assert_allclose(after, SpectralHeat1D(_heat1d.SIZE, 0.12)(before), rtol=1e-10)
    np.testing.assert_array_equal(other.y_mean, dataset.physics.y_mean)


@pytest.mark.slow
def test_the_watch_sees_a_misfit_and_a_constant_inverse(dataset):
    watch = eqx.filter_jit(_watch.Watch(dataset))
    x = dataset.test.x[0]
    y, mean = dataset.physics(x), jnp.mean(dataset.train.x, axis=0)

    def constant(y):
        return mean

    found, off = watch(constant, x, y), watch(constant, x, y + 3 * dataset.noise_std)
    assert float(found["residual"]) <= 1e-6
    np.testing.assert_allclose(off["residual"], 3.0, rtol=1e-6)
    np.testing.assert_allclose(found["reconstruction"], jnp.sqrt(jnp.mean((x - mean) ** 2)), rtol=1e-6)
    np.testing.assert_allclose(found["excess RJCP"] + found["spread"], 1.0, rtol=1e-6)  # g of no use: all is left
    assert float(found["novelty"]) < float(watch(constant, x, 3 * y)["novelty"])
    np.testing.assert_array_equal(found["excess RJCP"], off["excess RJCP"])


@pytest.mark.slow
def test_the_quick_study_runs_and_no_step_raises_the_objective(tmp_path):
    report = suite.run(suite.SHIFT, suite.Options(quick=True), tmp_path / "r", stream=None)
    trust, drift = report["tables"]["trust"], report["tables"]["drift"]
    steps = report["measures"]["trust"]["every accepted step"]
    assert steps["number"] > 100
    assert steps["raised the objective"] == 0
    assert {row["problem"] for row in trust} == {"heat1d", "oscillator"}
    # Tripled noise leaves a residual that no solve of the usual observations leaves, where the inverse is any good.
    tripled = [row for row in trust if (row["problem"], row["shift"]) == ("heat1d", "noise x 3")]
    assert len(tripled) == 2
    assert all(row["residual %"] == 100 for row in tripled)
    assert [row["inverse"] for row in drift] == ["kept", "kept", "refitted", "anew"]
    assert drift[0]["noticed by excess RJCP %"] <= 10
    assert {"figures/drift.png", "figures/trust-heat1d-residual.png"} <= set(report["figures"])
