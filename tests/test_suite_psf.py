"""The study `psf`: its photographs, data and methods, and what its quick run must show."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.ndimage

from pinv_jax import data, maps, suite
from pinv_jax.suite import _psf as study
from pinv_jax.suite import _psf_methods as methods
from pinv_jax.suite import _psf_photographs as pictures


def images(num=6, side=16, seed=0):
    rng = np.random.default_rng(seed)
    x = scipy.ndimage.gaussian_filter(rng.normal(size=(num, 1, side, side)), (0, 0, 2, 2))
    low, high = x.min(axis=(2, 3), keepdims=True), x.max(axis=(2, 3), keepdims=True)
    return jnp.asarray((x - low) / (high - low))


def rmse(a, b):
    return float(jnp.sqrt(jnp.mean((a - b) ** 2)))


def test_no_photograph_is_in_training_and_test():
    from pathlib import Path

    import skimage.data

    train, test = ({name for group in part for name in group} for part in (pictures.TRAIN, pictures.TEST))
    assert not train & test
    shipped = {path.stem for path in Path(skimage.data.__file__).parent.iterdir()}
    assert train | test <= shipped, "nothing is downloaded"
    grey = pictures.grey(pictures.TEST, 16, jnp.float32)
    assert (grey.shape, grey.dtype) == ((3, 1, 16, 16), jnp.float32)
    assert 0 <= float(jnp.min(grey)) < float(jnp.max(grey)) <= 1


def test_the_images_are_as_hard_as_published():
    seen = study.observations(data.smooth_images(64, dtype=jnp.float32), jax.random.key(0), 100)
    assert (seen.x.shape, seen.y.shape) == ((100, 1, 64, 64), (100, 1, 32, 32))
    assert float(jnp.min(seen.sigma)) < 0.8
    assert float(jnp.max(seen.sigma)) > 1.9
    assert float(jnp.std(seen.x)) == pytest.approx(0.161, abs=0.004)
    repeated = jnp.repeat(jnp.repeat(seen.y, 2, axis=2), 2, axis=3)
    assert rmse(repeated, seen.x) == pytest.approx(0.128, abs=0.004)
    sensor = maps.SigmoidSensor((1, 64, 64), dtype=jnp.float32)
    assert rmse(methods.smooth_guess(sensor, seen.y, (64, 64), "linear"), seen.x) == pytest.approx(0.084, abs=0.004)


def test_a_crop_is_part_of_a_photograph_and_its_observation():
    camera = pictures.camera(8, 1.0, jnp.float64)
    sampler = pictures.Crop(images(2, 16), camera)
    y, x = jax.jit(jax.vmap(sampler))(jax.random.split(jax.random.key(0), 30))
    clean = jax.vmap(camera)(x)
    noise = (y - clean) / jnp.sqrt(clean)
    assert float(jnp.std(noise)) == pytest.approx(pictures.NOISE, rel=0.15)
    whole = np.asarray(sampler.images)
    windows = np.lib.stride_tricks.sliding_window_view(whole[:, 0], (8, 8), axis=(1, 2)).reshape(-1, 8, 8)
    for piece in np.asarray(x[:, 0]):
        both = (piece, piece[:, ::-1])
        assert any(np.all(windows == each, axis=(1, 2)).any() for each in both)


def test_deconvolution_undoes_a_blur_without_noise():
    x = images()
    blurred = jax.vmap(maps.GaussianBlur((1, 16, 16), 1.0, padding="reflect"))(x)
    pooled = blurred.reshape(6, 1, 8, 2, 8, 2).mean(axis=(3, 5))
    enlarged = jax.image.resize(pooled, x.shape, "cubic")
    assert rmse(methods.wiener(enlarged, 1.0, 1e-2), x) < 0.7 * rmse(enlarged, x)


def test_linear_patches_find_a_linear_map():
    # where y is the sensor at the means of cells that are constant, the pixel itself is the answer
    sensor, coarse = maps.SigmoidSensor((1, 16, 16)), images(8, 8)
    x = jnp.repeat(jnp.repeat(coarse, 2, axis=2), 2, axis=3)
    estimate = methods.linear_patches(sensor, x, sensor(coarse), window=3)
    assert rmse(estimate(sensor(coarse)), x) < 1e-3


@pytest.mark.slow
def test_plug_and_play_without_a_denoiser_is_gradient_descent():
    x, camera = images(2, 8), pictures.camera(8, 1.0, jnp.float64)
    y, start = jax.vmap(camera)(x), jnp.full(x.shape, 0.5)
    found = methods.plug_and_play(camera, lambda image: image, y, start, step_size=20.0, num_steps=2)
    expected = start
    for _ in range(2):
        expected = expected - 20.0 * jax.vmap(jax.grad(lambda x, y: 0.5 * jnp.sum((camera(x) - y) ** 2)))(expected, y)
    np.testing.assert_allclose(found, jnp.clip(expected, 0, 1), atol=1e-12)


def test_the_prior_has_the_differences_of_the_images():
    x = images()
    prior = methods.smoothness(x)
    white = jax.vmap(prior.whiten)(x)
    assert white.shape == (6, 2 * 15 * 16)
    assert float(jnp.mean(white**2)) == pytest.approx(1.0)
    np.testing.assert_allclose(prior.whiten(jnp.full((1, 16, 16), 0.7)), 0.0, atol=1e-12)


@pytest.mark.slow
def test_the_quick_study_shows_what_it_must(tmp_path):
    report = suite.run(suite.PROBLEMS["psf"], suite.Options(quick=True), tmp_path / "r", stream=None)
    assert report["figures"] == ["figures/photographs.png", "figures/published.png"]
    assert "DeceptronNet" in suite.format_table(report)
    rows = {row["method"]: row for row in report["tables"]["published"]}
    assert rows["L-BFGS, true point spread"]["RMSE x"] < rows["sensor undone, bilinear"]["RMSE x"]
    assert rows["L-BFGS, true point spread"]["discrepancy"] <= 1
    assert rows["DeceptronNet"]["steps"] == 2
    rows = {row["method"]: row for row in report["tables"]["photographs"]}
    assert len(rows) == 11, "the network on two scales is left out of a quick run"
    for name in (
        "L-BFGS",
        "LM with CG, smoothness prior",
        "plug-and-play, total variation",
        "sensor undone, bilinear, Wiener",
    ):
        assert rows[name]["PSNR dB"] > rows["sensor undone, bilinear"]["PSNR dB"]
        assert rows[name]["PSNR dB"] > rows[name][f"PSNR dB, sigma {pictures.WRONG}"]
    assert rows["LISTA"]["PSNR dB"] > rows["y repeated, sensor ignored"]["PSNR dB"]
