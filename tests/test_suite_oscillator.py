"""The named oscillator problem: its data, its two kinds of coordinates, and, slowly, what it must show."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pinv_jax import pde, suite
from pinv_jax.suite import _oscillator


@pytest.fixture(scope="module")
def dataset():
    return suite.OSCILLATOR.dataset(seed=0, num_test=50, dtype=jnp.float32, quick=False)


def theta(x):
    return np.asarray(x, np.float64) * (np.array(_oscillator.HIGH) - _oscillator.LOW) / 12**0.5 + np.mean(
        [_oscillator.LOW, _oscillator.HIGH], axis=0
    )


@pytest.mark.slow
def test_the_prior_fills_the_published_box_in_standard_deviations(dataset):
    x = theta(dataset.train.x)
    assert x.shape == (5000, 5)
    np.testing.assert_allclose(x.min(axis=0), _oscillator.LOW, atol=0.01)
    np.testing.assert_allclose(x.max(axis=0), _oscillator.HIGH, atol=0.01)
    np.testing.assert_allclose(np.std(dataset.train.x, axis=0), 1.0, atol=0.03)


def test_observations_are_motions_with_noise(dataset):
    # The closed form of an underdamped motion.
    i = next(i for i, (m, c, k, *_) in enumerate(theta(dataset.test.x)) if c**2 < 3 * m * k)
    m, c, k, x0, v0 = theta(dataset.test.x)[i]
    rate, frequency = c / (2 * m), np.sqrt(k / m - (c / (2 * m)) ** 2)
    t = np.linspace(0, 5, 64)
    motion = np.exp(-rate * t) * (x0 * np.cos(frequency * t) + (v0 + rate * x0) / frequency * np.sin(frequency * t))
    seen = np.asarray(dataset.test.y[i] * dataset.y_std + dataset.physics.y_mean)
    assert 0.007 <= np.std(seen - motion) <= 0.013
    np.testing.assert_allclose(jnp.std(dataset.train.y, axis=0), 1.0, rtol=1e-3)
    assert 0.005 <= float(jnp.sqrt(jnp.mean(dataset.noise_std**2))) <= _oscillator.TOLERANCE / 1.9


def test_identified_coordinates_fix_the_motion_and_ignore_the_common_factor(dataset):
    scores = _oscillator.identified_scores(dataset)
    x = dataset.test.x[0]
    scaled = _oscillator.from_theta(jnp.asarray(theta(x), jnp.float32) * jnp.array([1.3, 1.3, 1.3, 1.0, 1.0]))
    np.testing.assert_allclose(scores["decode"](scaled), scores["decode"](x), rtol=1e-4)
    np.testing.assert_allclose(scores["physics"](scores["decode"](x)), dataset.physics(x), atol=1e-4)
    expected = np.std(jax.vmap(pde.identifiable)(jnp.asarray(theta(dataset.train.x))), axis=0)
    np.testing.assert_allclose(scores["decode"].std, expected, rtol=1e-3)


def test_the_floor_is_the_error_of_the_conditional_mean_of_the_common_factor():
    # All draws whose ratios are near those of one theta, by rejection; m, c and k are the common factor times them.
    at = np.array([1.0, 0.4, 2.5, 0.0, 0.0])
    draws = np.random.default_rng(0).uniform(_oscillator.LOW, _oscillator.HIGH, (2_000_000, 5))
    near = (np.abs(draws[:, 1] / draws[:, 0] - 0.4) < 0.02) & (np.abs(draws[:, 2] / draws[:, 0] - 2.5) < 0.1)
    guess = at * np.array([*[draws[near, 0].mean()] * 3, 1.0, 1.0])
    unit = (np.array(_oscillator.HIGH) - _oscillator.LOW) / 12**0.5
    expected = np.sqrt(np.mean(((guess - at) / unit) ** 2))
    np.testing.assert_allclose(_oscillator.scale_floor(jnp.asarray(at)), expected, rtol=0.05)


def rows(report, recipe, solver, note=""):
    found = [r for r in report["rows"] if (r["recipe"], r["solver"], r["note"]) == (recipe, solver, note)]
    assert len(found) == 1, (recipe, solver, note)
    return found[0]


@pytest.mark.slow
def test_the_quick_run_beats_regression(tmp_path):
    report = suite.run(suite.OSCILLATOR, suite.Options(quick=True, num_test=8), tmp_path / "r", stream=None)
    stop = f"res <= {_oscillator.TOLERANCE:g}"
    solved = rows(report, "default", "safeguarded", stop)
    assert solved["success_rate"] >= 0.9
    assert solved["rmse_x"] < 0.7 * rows(report, "default", "ridge")["rmse_x"]
    determined = rows(report, "default", "safeguarded", f"{stop}; c/m, k/m, x0, v0")
    assert determined["success_rate"] == solved["success_rate"]
    assert determined["rmse_x"] < 0.3 * solved["rmse_x"]
    assert report["measures"]["published"]["largest JCP weight"] == 0
    assert {"figures/reconstructions.png", "figures/residuals.png"} <= set(report["figures"])


@pytest.mark.optimised
def test_the_oscillator_shows_what_it_must(tmp_path):
    report = suite.run(suite.OSCILLATOR, suite.Options(), tmp_path / "r", stream=None)
    published = report["measures"]["published"]
    assert 0.64 <= published["validation MSE"] <= 0.76
    assert published["largest JCP weight"] == 0
    stop = f"res <= {_oscillator.TOLERANCE:g}"
    floor = report["measures"]["default"]["RMSE x, c/m, k/m, x0 and v0 known"]
    for solver in ("dipg", "safeguarded"):
        row = rows(report, "default", solver, stop)
        assert row["success_rate"] >= 0.98
        assert floor <= row["rmse_x"] <= 1.05 * floor < 0.74
    assert rows(report, "default", "safeguarded", stop)["success_rate"] == 1.0
    assert rows(report, "default", "safeguarded", f"{stop}; c/m, k/m, x0, v0")["rmse_x"] <= 0.06
