"""Priors that train here, and the studies of restoration: degradations, and what a quick run must show."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pinv_jax import maps, suite
from pinv_jax.diffusion import CosineSchedule
from pinv_jax.solvers import nlbp
from pinv_jax.suite import _blind_kernel as blind
from pinv_jax.suite import _priors as priors
from pinv_jax.suite import _restoration as restoration
from pinv_jax.suite import _restore_coefficients as coefficients
from pinv_jax.suite import _restore_learned as learned
from pinv_jax.suite import _restore_physics as physics
from pinv_jax.suite._psf_photographs import TEST, TRAIN


def rows_by(report, part):
    return {row["method"]: row for row in report["tables"][part]}


def test_no_photograph_trains_and_tests():
    train, test = ({name for group in groups for name in group} for groups in (TRAIN, TEST))
    assert not train & test
    assert not set(priors.COLOUR_TRAIN) & set(priors.COLOUR_TEST)


@pytest.mark.slow
def test_images_of_training_and_of_test_have_the_same_shape():
    images = priors.PRIORS["photographs32"].images(jnp.float32)
    assert images.draw(jax.random.key(0)).shape == images.test.shape[1:]
    assert images.test.shape == (36, 1, 32, 32)
    assert -1 <= float(jnp.min(images.test)) < float(jnp.max(images.test)) <= 1


def test_unknown_prior_is_explained(tmp_path):
    with pytest.raises(ValueError, match="unknown prior 'cats'; known are digits"):
        priors.trained_prior("cats", tmp_path)


def test_a_cell_holds_what_was_rounded_into_it():
    y = jnp.asarray(np.random.default_rng(0).normal(size=(1, 8, 8)))
    steps = jnp.asarray(np.random.default_rng(1).uniform(0.1, 1, size=(1, 8, 8)))
    seen = coefficients.compressed(y, jax.random.key(0), steps=steps)
    assert bool(jnp.all((seen.lower <= y) & (y <= seen.upper)))
    np.testing.assert_allclose(seen.upper - seen.lower, steps)


def test_a_code_of_nothing_but_zeros_has_an_error_relative_to_its_cell():
    f = maps.Affine(jnp.ones(4), jnp.zeros(4))  # pyright: ignore[reportCallIssue]
    zeros = jnp.zeros((1, 4))
    cell = restoration.Observation(zeros, zeros - 0.25, zeros + 0.25)
    errors = [restoration.misses(restoration.Degradation(f, f), cell, zeros + x)[0] for x in (0.2, 0.5)]
    np.testing.assert_allclose(errors, [0, 0.5], rtol=1e-6)


def test_saturated_counts_are_bounded_below_alone():
    y = jnp.linspace(0.01, 0.9, 30).reshape(3, 10)
    seen = physics.counted(y, jax.random.key(0), photons=1e6, deviations=5.0)
    bright = y > physics.LIGHT + 0.01
    assert bool(jnp.all(jnp.isinf(seen.upper) == (seen.y >= physics.LIGHT)))
    assert bool(jnp.all(jnp.where(bright, jnp.isinf(seen.upper), True)))
    assert bool(jnp.all((seen.lower <= y) & (y <= seen.upper)))


@pytest.mark.slow
def test_noisy_counts_move_an_estimate_as_far_as_they_are_certain():
    schedule, t = CosineSchedule(), jnp.float64(300.0)
    f = maps.LinearSurjection(jnp.array([[1.0, 0.0, 0.0], [0.0, 0.1, 0.0]]))
    y, photons, x0 = jnp.array([0.4, 0.2]), 100.0, jnp.array([0.1, 0.1, -0.3])
    seen = restoration.Observation(y, y - 0.1, y + 0.1)
    guide = physics.Weighed(physics.Beyond(f, seen, photons), f, seen)

    def denoise(x, t):
        return x

    denoise.schedule = schedule
    found = jax.jit(lambda x: guide(denoise, x, t, jax.random.key(0)))(x0)
    signal, spread = schedule.scales(t)
    variance = 0.25 * spread**2 / (0.25 * signal**2 + spread**2)
    matrix, noise = f.matrix, jnp.diag(y / photons)
    gain = variance * matrix.T @ jnp.linalg.inv(variance * matrix @ matrix.T + noise)
    np.testing.assert_allclose(found, x0 + gain @ (y - matrix @ x0), atol=1e-8)
    ended = f(guide.finish(jnp.zeros(3)))
    assert np.all((ended >= seen.lower - 1e-12) & (ended <= seen.upper + 1e-12))


def test_a_shaken_camera_sees_means():
    matrix = learned.shaken(12)
    assert matrix.shape == (36, 144)
    np.testing.assert_allclose(matrix.sum(axis=1), 1, rtol=1e-12)
    assert np.linalg.matrix_rank(matrix) == 36
    still = learned.shaken(12, turn=0.0, shift=0.0)
    cells = np.random.default_rng(0).normal(size=(12, 12))
    np.testing.assert_allclose(still @ cells.ravel(), cells.reshape(6, 2, 6, 2).mean(axis=(1, 3)).ravel(), atol=1e-12)


def test_the_linear_baseline_is_exact_where_the_map_is_affine():
    f = restoration.centred(maps.Downsample((1, 4, 4), 2, jnp.float64))
    task = restoration.Degradation(f, f)
    x, other = (jnp.asarray(np.random.default_rng(seed).normal(size=(1, 4, 4))) for seed in (0, 1))
    seen = restoration.exactly(f(x), jax.random.key(0))
    estimate = restoration.ignoring(task, seen)(lambda x_t, t: x_t, other, jnp.zeros(()), jax.random.key(0))
    np.testing.assert_allclose(f(estimate), seen.y, atol=1e-12)
    np.testing.assert_allclose(estimate, nlbp(f, other, seen.y), atol=1e-12)


@pytest.mark.slow
def test_the_evidence_finds_the_kernel_of_a_picture_of_which_the_spectrum_is_known():
    squared = sum(np.meshgrid(*[4 * np.sin(np.pi * np.fft.fftfreq(70)) ** 2] * 2))
    noise = np.fft.fft2(np.random.default_rng(0).normal(size=(70, 70)))
    x = 0.1 * np.fft.ifft2(noise * (squared + 1e-3) ** -0.5).real[None]
    kernels = blind.motions(64, jnp.float64)
    y = blind.convolve(kernels[5], jnp.asarray(x))
    np.testing.assert_allclose(y[0, 2, 3], jnp.sum(kernels[5] * x[0, 2:9, 3:10]), rtol=1e-12)
    y = y + 2 * blind.NOISE * np.random.default_rng(1).normal(size=y.shape)
    found = blind.most_probable(y[None], 64)[0]
    turned = kernels[5, ::-1, ::-1]
    assert max(float(blind.similarity(found, other)) for other in (kernels[5], turned)) > 0.95
    np.testing.assert_allclose(blind.evidence(y, turned[None]), blind.evidence(y, kernels[5:6]))
    # a Gaussian and no blur at all are less probable, by far
    others = jnp.stack([blind.blob(1.2, x.dtype), jnp.zeros((7, 7)).at[3, 3].set(1)])
    assert bool(jnp.all(blind.evidence(y, kernels[5:6]) > blind.evidence(y, others) + 10))


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    return tmp_path_factory.mktemp("restoration")


def run(study, results, *parts):
    options = suite.Options(quick=True, recipes=parts or None)
    return suite.run(study, options, results / study.name, stream=None)


@pytest.mark.slow
def test_a_prior_is_trained_once_and_resumed(tmp_path, monkeypatch):
    make = functools.partial(priors.trained_prior, "digits", quick=True)
    whole = make(tmp_path / "whole")

    def interrupt(stage, done, total, loss):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make(tmp_path / "cut", progress=interrupt)
    assert not list((tmp_path / "cut").glob("*.npz"))
    resumed = make(tmp_path / "cut")
    monkeypatch.setattr(priors, "fit_prior", None)
    for again in (resumed, make(tmp_path / "whole")):
        for a, b in zip(jax.tree.leaves(whole.prior), jax.tree.leaves(again.prior), strict=True):
            np.testing.assert_array_equal(a, b)
    assert [path.name for path in (tmp_path / "cut").iterdir()] == ["digits-quick-float32-seed0.npz"]


@pytest.mark.slow
def test_quick_restoration_meets_the_observation_as_no_baseline_does(results):
    report = run(suite.RESTORE_BLUR, results)
    rows = rows_by(report, "blur")
    assert rows[restoration.OURS]["worst"] < 1e-5
    assert rows[restoration.WARM]["worst"] < 1e-5
    assert rows[restoration.LINEAR_NAME]["consistency"] > 1e-2
    assert rows[restoration.DPS_NAME]["consistency"] > 1e-3
    assert report["figures"] == ["figures/blur.png"]


@pytest.mark.slow
def test_for_a_linear_map_it_is_ddnm(results):
    part = "compressed sensing"
    report = run(suite.RESTORE_LINEAR, results, part)
    assert report["measures"][part]["largest difference to linear"] < 1e-4
    assert rows_by(report, part)[restoration.OURS]["worst"] < 1e-5


@pytest.mark.slow
def test_quick_blind_deconvolution_runs(results):
    report = run(suite.RESTORE_BLIND, results, "synthetic")
    rows = rows_by(report, "synthetic")
    assert (
        rows["true kernel"]["similarity of the kernel"] > 0.9999 > rows["kernel and image"]["similarity of the kernel"]
    )
    assert set(report["figures"]) == {"figures/synthetic.png", "figures/synthetic-kernels.png"}
