"""The problems whose unknown is a field: what their files say of them, and, slowly, their quick runs."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pinv_jax import suite
from pinv_jax.suite import _allen_cahn2d, _darcy2d, _fields, _inverse
from pinv_jax.suite._run import row_entry, solve_row

NAMES = ["heat2d", "heat3d", "darcy2d", "advection-diffusion2d", "allen-cahn2d", "navier-stokes2d"]


@functools.cache
def dataset(name):
    return suite.PROBLEMS[name].dataset(seed=0, num_test=6, dtype=jnp.float32, quick=True)


QUICK = ("darcy2d",)


@pytest.mark.slow
@pytest.mark.parametrize("name", [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in NAMES])
def test_the_tolerance_is_about_twice_the_noise(name):
    found, problem = dataset(name), suite.PROBLEMS[name]
    assert bool(jnp.all(jnp.isfinite(found.train.y)))
    assert found.test.x.shape[0] == found.test.y.shape[0] == 6
    level = float(jnp.sqrt(jnp.mean(found.noise_std**2)))
    assert 1.6 <= problem.tolerance / level <= 2.4
    # z-scored: by one number, or each coordinate by its own
    np.testing.assert_allclose(jnp.mean(found.train.y), 0, atol=1e-3)
    np.testing.assert_allclose(jnp.std(found.train.y), 1, rtol=2e-2)
    misfit = jax.vmap(found.physics)(found.test.x) - found.test.y
    np.testing.assert_allclose(jnp.sqrt(jnp.mean(misfit**2)), level, rtol=0.05)


@pytest.mark.slow
def test_unknowns_stay_in_their_box():
    for name, low, high in [("heat2d", 0, 1), ("heat3d", 0, 1), ("allen-cahn2d", -1, 1)]:
        x = dataset(name).train.x
        assert float(jnp.min(x)) >= low
        assert float(jnp.max(x)) <= high


@pytest.mark.slow
def test_heat3d_is_as_published():
    """Noise, spread of the outputs and the error of predicting the mean, as measured from the published scripts."""
    found = dataset("heat3d")
    assert abs(float(jnp.sqrt(jnp.mean(found.noise_std**2))) - 0.0082) < 2e-4
    estimate = suite.mean_estimate(found)
    error = jnp.sqrt(jnp.mean((jax.vmap(estimate)(found.val.y) - found.val.x) ** 2))
    assert abs(float(error) - 0.211) < 0.01


@pytest.mark.slow
def test_deconvolution_of_allen_cahn_is_as_good_as_it_was_measured():
    found = suite.ALLEN_CAHN2D.dataset(seed=0, num_test=64, dtype=jnp.float32, quick=True)
    x = jax.vmap(_allen_cahn2d.linear_deconvolution(found))(found.test.y)
    error = jnp.mean(jnp.sqrt(jnp.mean((jnp.clip(x, -1, 1) - found.test.x) ** 2, axis=(1, 2))))
    assert 0.018 < float(error) < 0.024


@pytest.mark.slow
def test_an_inverse_of_a_field_starts_as_the_ridge_regression():
    found = dataset("heat2d")
    inverse = _fields.field_inverse(
        found.train.x, found.train.y, width=4, num_blocks=1, padding="zeros", key=jax.random.key(0)
    )
    weight, bias = _inverse.ridge_regression(found.train.x, found.train.y, penalty=1e-9)
    y = found.test.y[0]
    expected = (weight @ np.ravel(y) + bias).reshape(y.shape)
    assert inverse.in_structure().shape == y.shape
    np.testing.assert_allclose(inverse(y), expected, atol=2e-4)


@pytest.mark.slow
def test_an_inverse_by_components_starts_as_the_ridge_regression():
    found = dataset("darcy2d")
    inverse = _darcy2d.component_inverse(found.train.x, found.train.y, key=jax.random.key(0), num_components=5, width=8)
    weight, bias = _inverse.ridge_regression(found.train.x, found.train.y)
    y = found.test.y[0]
    assert inverse.in_structure().shape == y.shape
    np.testing.assert_allclose(inverse(y), weight @ np.ravel(y) + bias, atol=2e-4)
    # the network sees whitened components
    seen = np.asarray(inverse.encoder) @ np.asarray(found.train.y, np.float64).reshape(len(found.train.y), -1).T
    np.testing.assert_allclose(np.cov(seen), np.eye(5), atol=5e-3)


@pytest.mark.slow
def test_success_may_be_judged_on_the_unknown():
    found = dataset("heat2d")
    row = suite.observed_row(
        found,
        "only",
        "one-shot",
        "",
        lambda y: jnp.full(found.test.x.shape[1:], 0.5),
        forward=found.physics,
        tolerance=1e9,
    )
    assert row_entry(row, solve_row(row), found)["success_rate"] == 1.0
    judged = dataclasses.replace(row, rmse_tolerance=1e-3)
    assert row_entry(judged, solve_row(judged), found)["success_rate"] == 0.0


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_the_quick_run(name, tmp_path):
    # The rows of the other solvers are the same for every problem, and a minute of compilation for each.
    options = suite.Options(quick=True, num_test=8, recipes=("default",), solvers=("dipg", "safeguarded"))
    report = suite.run(suite.PROBLEMS[name], options, tmp_path / "out", stream=None)
    rows = {(row["solver"], row["note"].split(",")[0]): row for row in report["rows"]}
    stop = f"res <= {report['tolerance']:g}"
    assert rows["safeguarded", stop]["success_rate"] == 1.0
    assert rows["safeguarded", stop]["rmse_x"] < 0.5 * rows["mean", ""]["rmse_x"]
    for row in report["rows"]:
        assert np.isfinite(row["rmse_x"]), row["solver"]
    with np.load(tmp_path / "out" / "solutions.npz") as archive:
        assert archive["truth"].shape[0] == 8
