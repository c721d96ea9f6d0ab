"""The named Heat-1D problems: their data, and, slowly, what they must show."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import GOLDEN

import pinv_jax as pj
from pinv_jax import solvers, suite


@pytest.fixture(scope="module")
def dataset():
    return suite.HEAT1D.dataset(seed=0, num_test=300, dtype=jnp.float32, quick=False)


def test_the_data_are_the_published_ones_number_for_number(dataset):
    golden = np.load(GOLDEN)
    np.testing.assert_allclose(dataset.test.x[:60], golden["x_test"], atol=2e-6)
    np.testing.assert_allclose(dataset.test.y[:60], golden["y_test_norm"], atol=2e-5)
    np.testing.assert_allclose(dataset.y_std, golden["y_std"][0], rtol=1e-5)
    np.testing.assert_allclose(dataset.noise_std, 0.01 / golden["y_std"][0], rtol=1e-5)
    assert dataset.train.x.shape == (4000, 64)
    assert dataset.val.x.shape == (500, 64)
    np.testing.assert_allclose(jnp.mean(dataset.train.y**2), 1.0, rtol=1e-3)


def test_more_observations_than_were_published_are_refused():
    with pytest.raises(ValueError, match="at most 300"):
        suite.HEAT1D.dataset(seed=0, num_test=301, dtype=jnp.float32, quick=False)


def test_the_noise_of_each_observation_is_known(dataset):
    residual = np.stack(
        [np.asarray(dataset.physics(x) - y) for x, y in zip(dataset.test.x[:5], dataset.test.y[:5], strict=True)]
    )
    np.testing.assert_allclose(np.sqrt(np.mean(residual**2, axis=1)), dataset.test_noise_rms[:5], rtol=1e-4)


def rows(report, recipe, solver, note=None):
    found = [r for r in report["rows"] if r["recipe"] == recipe and r["solver"] == solver and note in (None, r["note"])]
    assert found, (recipe, solver, note)
    return found[0]


@pytest.mark.optimised
def test_heat1d_shows_what_it_must(tmp_path):
    report = suite.run(suite.HEAT1D, suite.Options(), tmp_path / "r", stream=None)

    def published(solver, note=None):
        return rows(report, "published", solver, note)

    def default(solver, note=None):
        return rows(report, "default", solver, note)

    # The published recipe, retrained: the binomial range of the published 24.3 %, 35 %, 0.7 %, 12.7 % of 300.
    assert 0.16 <= published("dipg", "with JCP")["success_rate"] <= 0.33
    assert 0.29 <= published("lm")["success_rate"] <= 0.40
    assert published("gn")["success_rate"] <= 0.02
    assert 0.11 <= published("gd")["success_rate"] <= 0.15
    assert 0.255 <= published("dipg", "with JCP")["rmse_x"] <= 0.295
    assert 0.335 <= report["measures"]["published"]["surrogate validation MSE"] <= 0.345
    assert 0.55 <= report["measures"]["published"]["RJCP plus"] <= 0.63
    assert report["measures"]["published"]["RJCP minus"] >= 3.2 * report["measures"]["published"]["RJCP plus"]

    # The default recipe: every observation met at 0.30 and at 1.1 times its noise, better than ridge.
    ridge, one_shot = default("ridge")["rmse_x"], default("one-shot", "g(data)")["rmse_x"]
    assert one_shot <= 0.118 < ridge < default("mean")["rmse_x"]
    for note in ("res <= 0.30", "res <= 1.1 |noise|"):
        for solver in ("dipg", "safeguarded"):
            row = default(solver, note)
            assert row["success_rate"] == 1.0
            assert row["rmse_x"] <= 0.120
            assert row["failed_line_searches"] == 0
            assert row["fallbacks"] == 0
    assert default("dipg", "res <= 1.1 sigma")["failed_line_searches"] == 0

    # Tight solves: the defect form reaches 1e-4 in at most four steps, the paper's form does not.
    tight = default("dipg", "5 latents to 1e-4, defect")
    assert tight["success_rate"] == 1.0
    assert tight["max_steps_taken"] <= 4
    assert default("dipg", "5 latents to 1e-4, paper")["success_rate"] <= 0.02

    # A poor inverse is survivable.
    assert default("dipg", "poor g")["success_rate"] < 0.9
    poor = default("safeguarded", "poor g")
    assert poor["success_rate"] >= 0.95
    assert poor["fallbacks_per_solve"] <= 1.5


@pytest.mark.optimised
def test_heat1d_workshop_shows_what_it_must(tmp_path):
    report = suite.run(suite.HEAT1D_WORKSHOP, suite.Options(), tmp_path / "r", stream=None)
    measures = report["measures"]["published"]
    assert 0.053 <= measures["validation MSE"] <= 0.060
    assert measures["RJCP sum plus"] <= 0.06
    # The paper reports 458, its code 461; the value without the penalty depends strongly on the draw of the data.
    assert measures["RJCP sum minus"] >= 100
    dipg = rows(report, "published", "dipg", "with JCP")
    assert dipg["success_rate"] >= 0.95
    assert 2 <= dipg["median_steps"] <= 3
    assert 38 <= rows(report, "published", "gd")["median_steps"] <= 55
    assert rows(report, "published", "lm")["median_steps"] == 3
    best, mean = rows(report, "default", "dipg"), rows(report, "default", "mean")
    assert best["rmse_x"] <= 1.00 < mean["rmse_x"] < dipg["rmse_x"]


@pytest.mark.parametrize("name", ["dipg", pytest.param("lm", marks=pytest.mark.slow)])
def test_300_observations_in_one_call_equal_300_single_calls(name):
    dataset = suite.HEAT1D.dataset(seed=0, num_test=300, dtype=jnp.float64, quick=False)
    inverse = suite.ridge_estimate(dataset, key=jax.random.key(0))
    # Of the noise that stopped most of them at the start, so that steps are taken.
    solver = {"dipg": solvers.DIPG(inverse, atol=0.11), "lm": solvers.LevenbergMarquardt(atol=0.11)}[name]
    problem = pj.Problem(dataset.physics, dataset.test.y, solvers.Box(0.0, 1.0))
    x0 = jnp.zeros_like(dataset.test.x)
    batch = pj.solve_batch(problem, solver, x0, max_steps=6)
    assert np.sum(batch.stats.num_steps) > 100
    for i in range(300):
        one = pj.solve(pj.Problem(dataset.physics, dataset.test.y[i], problem.project), solver, x0[i], max_steps=6)
        np.testing.assert_allclose(batch.value[i], one.value, atol=1e-10, rtol=0)
        assert int(batch.stats.num_steps[i]) == int(one.stats.num_steps)
        assert int(batch.result._value[i]) == int(one.result._value)
