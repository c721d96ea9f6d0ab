"""The studies of lifted inversion: their small parts by default, and slowly a quick run of each."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pinv_jax import lifted, suite
from pinv_jax.suite import _lifted_perceptron as perceptron
from pinv_jax.suite import _lifted_resnet as resnet
from pinv_jax.suite import _lifted_shallow as shallow
from pinv_jax.suite import _ptychography as optics


def quick(name, tmp_path, dtype="float32"):
    options = suite.Options(dtype=dtype, quick=True)
    return suite.run(suite.PROBLEMS[name], options, tmp_path / "r", stream=None)


def test_phantoms_are_images_and_the_disk_is_the_published_one():
    images = perceptron.phantoms(64, jnp.float64)
    for image in images.values():
        assert image.shape == (64, 64)
        assert float(jnp.min(image)) >= 0
        assert 0.9 < float(jnp.max(image)) <= 1 + 1e-9
    assert float(lifted.TotalVariation()(images["disk"])) == pytest.approx(116.87, abs=0.01)


def test_the_minimum_norm_estimate_fits_the_active_outputs():
    rng = np.random.default_rng(0)
    forward = lifted.Perceptron(rng.normal(size=(12, 16)), rng.normal(size=12), shape=(4, 4))
    truth = jnp.asarray(rng.normal(size=(4, 4)))
    data = forward(truth)
    found = perceptron.minimum_norm(forward, data)
    active = data > 0
    np.testing.assert_allclose(forward.affine(found)[active], data[active], atol=1e-10)
    assert float(jnp.linalg.norm(found)) <= float(jnp.linalg.norm(truth))


def test_the_source_element_of_a_minimiser_is_one():
    rng = np.random.default_rng(1)
    forward = lifted.Perceptron(rng.normal(size=(40, 36)), rng.normal(size=40), shape=(6, 6))
    truth = perceptron.truth_with_source(forward, jnp.zeros((6, 6)).at[2:4, 1:5].set(1.0), max_steps=4000)
    slope, variation = forward.adjoint(truth.source), lifted.TotalVariation()
    assert float(jnp.sum(slope * truth.u)) == pytest.approx(float(variation(truth.u)), rel=1e-3)
    other = jnp.asarray(rng.normal(size=(6, 6)))
    assert float(jnp.sum(slope * other)) <= float(variation(other))


def test_bisection_finds_the_root_or_the_nearest_end():
    found = shallow.bisection(lambda u: u**3 + u, jnp.asarray([2.0, -30.0, 30.0]), -2.0, 2.0)
    np.testing.assert_allclose(found, [1.0, -2.0, 2.0], atol=1e-12)


def test_the_targets_of_the_residual_networks_are_inverse_to_each_other():
    x, y = resnet.examples(resnet.KINDS["V = -W', inverse"], 41, jnp.float64)
    np.testing.assert_allclose(resnet.cubic(np.asarray(y)[:, 0]), x[:, 0], atol=1e-6)
    for name, kind in resnet.KINDS.items():
        holds = resnet.flow_at_start(kind, jnp.float64, key=jax.random.key(0)).certificate(1.0).holds
        assert holds == (name == "V = W'")


@pytest.fixture(scope="module")
def view():
    return optics.scene(16, 2, 0.0, jnp.float64, key=jax.random.key(0))


def polygon(units):
    """The best network of its size, up to a factor."""
    angles = 2 * jnp.pi * jnp.arange(units) / units
    directions = jnp.stack([jnp.cos(angles), jnp.sin(angles)], axis=1)
    return optics.Fan(directions, jnp.full(units, jnp.pi / units))


def test_the_optics_are_linear_and_keep_the_light(view):
    waves = view.optics(view.x)
    np.testing.assert_allclose(view.optics(2 * view.x), 2 * waves, atol=1e-12)
    lit = jnp.sum(view.optics.illumination() * jnp.sum(view.x**2, axis=0))
    assert float(jnp.sum(waves**2)) == pytest.approx(float(lit), rel=1e-10)
    assert float(jnp.sum(optics.Moduli(view.optics)(optics.flat(view.optics, view.data)) ** 2)) == pytest.approx(
        float(jnp.sum(view.data**2)), rel=1e-6
    )


def test_the_lifted_network_is_the_fan_behind_the_optics(view):
    fan = polygon(12)
    fan = optics.Fan(fan.directions * jnp.linspace(0.5, 2, 12)[:, None], fan.outer / jnp.linspace(0.5, 2, 12))
    model, waves = optics.network(view.optics, fan), view.optics(view.x)
    expected = jax.vmap(fan)(waves.reshape(2, -1).T).reshape(waves.shape[1:])
    np.testing.assert_allclose(model(view.x), expected, atol=1e-12)
    np.testing.assert_allclose(model(view.x), view.data, rtol=0.03)


def test_a_global_phase_costs_nothing(view):
    turned = optics.as_pair(optics.as_complex(view.x) * jnp.exp(0.7j))
    error, _, misfit = optics.scores(view, turned)
    assert float(error) < 1e-10
    assert float(misfit) < 1e-8
    assert float(optics.scores(view, optics.flat(view.optics, view.data))[0]) > 20


def test_error_reduction_lowers_the_misfit_and_stays_at_the_truth(view):
    x0 = optics.flat(view.optics, view.data)
    misfits = [
        float(optics.scores(view, optics.error_reduction(view.optics, view.data, x0, jnp.asarray(steps)))[2])
        for steps in (0, 5, 50)
    ]
    assert misfits[0] > 3 * misfits[1] > 6 * misfits[2]
    kept = optics.error_reduction(view.optics, view.data, view.x, jnp.asarray(3))
    assert float(optics.scores(view, kept)[0]) < 1e-8


@pytest.mark.slow
def test_the_perceptron_is_inverted_and_noise_is_met(tmp_path):
    report = quick("lifted-perceptron", tmp_path)
    assert report["figures"] == ["figures/noise.png", "figures/phantoms.png"]
    rows = {(row["phantom"], row["method"], row["steps"]): row for row in report["tables"]["phantoms"]}
    full = rows["disk", "full splitting", 1000]
    assert full["error %"] < 1
    assert full["error %"] < 0.02 * rows["disk", "explicit primal-dual", 1000]["error %"]
    for phantom in ("disk", "blocks", "Shepp-Logan"):
        best = rows[phantom, "full splitting", 1000]["PSNR dB"]
        for trivial in ("zero", "constant, the mean of the truth", "minimum norm, active outputs"):
            assert best > rows[phantom, trivial, 0]["PSNR dB"]
        assert rows[phantom, "full splitting", 1000]["energy"] < rows[phantom, "full splitting", 300]["energy"]
    truth = report["measures"]["noise"]["truth"]
    assert truth["<W^T v, u> / TV"] == pytest.approx(1, abs=2e-3)
    found = {(row["std"], row["data"], row["alpha by"]): row for row in report["tables"]["noise"]}
    for row in found.values():
        if row["bound of D"] is not None:
            assert -0.02 < row["D"] <= row["bound of D"]
    assert found[0.05, "clipped", "0.015"]["PSNR dB"] < 15
    assert found[0.05, "thresholded", "0.015"]["PSNR dB"] > 35
    for rule in ("discrepancy", "theorem"):
        assert found[0.05, "thresholded", rule]["PSNR dB"] > 35


@pytest.mark.slow
def test_25_relus_are_inverted_slowly(tmp_path):
    report = quick("lifted-shallow", tmp_path, "float64")
    assert report["figures"] == ["figures/weights.png"]
    measures = report["measures"]["weights"]
    assert measures["max |N - K|"] == pytest.approx(8.90e-3, rel=2e-3)
    assert (measures["units"], measures["negative c"]) == (25, 4)
    rows = {(row["alpha"], row["start"], row["sweeps"]): row for row in report["tables"]["weights"]}
    for sweeps, error in ((10, 0.687), (100, 0.604), (1000, 0.323), (3000, 0.133)):
        assert rows[1e-4, 0.75, sweeps]["max error"] == pytest.approx(error, abs=2e-3)
    rows = {(row["data"], row["method"]): row for row in report["tables"]["data"]}
    assert rows["N(u)", "bisection"]["max error"] < 1e-12
    lifted_row = rows["N(u), noise 0.01", "lifted descent, alpha 0.0001"]
    assert lifted_row["mean error"] < 0.2 * rows["N(u)", "the start"]["mean error"]


@pytest.mark.slow
def test_residual_networks_are_inverted_with_and_without_certificate(tmp_path):
    report = quick("lifted-resnet", tmp_path, "float64")
    assert report["figures"] == ["figures/networks.png"]
    for row in report["tables"]["certificate"]:
        possible = row["network"] == "V = W'" and row["lambda"] > 0.95
        assert row["certificate"] == ("yes" if possible and row["rho"] >= (row["smallest rho"] or np.inf) else "no")
    exact = {(row["network"], row["lambda"], row["rho"]): row for row in report["tables"]["certificate"]}
    assert exact["V = W'", 1.0, 200.0]["smallest rho"] == pytest.approx(187.43, abs=0.01)
    rows = {
        (row["network"], row["noise"], row["method"], row["lambda"], row["alpha"], row["steps"]): row
        for row in report["tables"]["inversion"]
    }
    assert rows["V = W'", 0.0, "lifted splitting", 1.0, 0.0, 1000]["max error"] < 1e-4
    assert rows["V = W'", 0.0, "lifted splitting", 0.9, 0.0, 0]["certificate"] == "no"
    for network in ("V = W'", "V = -W', inverse"):
        start = rows[network, 0.0, "the start", None, 0.0, 0]["RMS error"]
        assert rows[network, 0.0, "lifted splitting", 1.0, 0.0, 1000]["RMS error"] < 0.2 * start
        assert rows[network, 0.0, "bisection", None, 0.0, 60]["max error"] < 1e-10


@pytest.mark.slow
def test_the_object_is_retrieved_from_moduli(tmp_path):
    report = quick("lifted-ptychography", tmp_path)
    assert report["figures"] == ["figures/25-positions-noise-5.png"]
    fitted = [row for row in report["tables"]["network"] if row["method"] == "lifted, TV"]
    assert len(fitted) == 1
    assert fitted[0]["max error, %"] < 6
    rows = report["tables"]["retrieval"]
    by_name = {row["method"]: row for row in rows}
    start = by_name["flat object, the start"]["error %"]
    for name in ("error reduction, 300", "lifted, TV, alpha 0.001", "Levenberg-Marquardt, CG"):
        assert by_name[name]["error %"] < 0.4 * start
