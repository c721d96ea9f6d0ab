"""The imaging camera and its smooth images: agreement with SciPy, widths per image, the sensor, what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.ndimage

from pinv_jax import data, maps


def image(shape=(2, 9, 12), seed=0):
    return jnp.asarray(np.random.default_rng(seed).uniform(size=shape))


@pytest.mark.parametrize(("padding", "mode"), [("zeros", "constant"), ("reflect", "reflect")])
def test_the_blur_is_that_of_scipy(padding, mode):
    x, sigma, window = image(), 1.3, 7
    blur = maps.GaussianBlur(x.shape, sigma, window, padding=padding)
    found = jax.jit(lambda x: blur(x))(x)
    options = {"radius": window // 2, "mode": mode}
    expected = [scipy.ndimage.gaussian_filter(np.asarray(plane), sigma, **options) for plane in x]
    np.testing.assert_allclose(found, expected, atol=1e-14)


def test_a_window_may_reach_across_the_image():
    x = image((1, 5, 5))
    found = maps.GaussianBlur(x.shape, 2.0, 11, padding="reflect")(x)
    expected = scipy.ndimage.gaussian_filter(np.asarray(x[0]), 2.0, radius=5, mode="reflect")
    np.testing.assert_allclose(found[0], expected, atol=1e-14)


def test_every_image_of_a_batch_may_have_its_own_width():
    x, sigmas = image((3, 1, 8, 8)), jnp.asarray([0.5, 1.0, 2.0])
    found = jax.jit(jax.vmap(lambda sigma, x: maps.GaussianBlur(x.shape, sigma, 5)(x)))(sigmas, x)
    for sigma, one, blurred in zip(sigmas, x, found, strict=True):
        np.testing.assert_allclose(blurred, maps.GaussianBlur(one.shape, float(sigma), 5)(one), atol=1e-14)


def test_the_sensor_is_undone_where_it_does_not_clip():
    sensor = maps.SigmoidSensor((3,), 1.2, 0.5)
    x = jnp.asarray([0.0, 0.3, 1.0])
    np.testing.assert_allclose(sensor(x), 1 / (1 + np.exp(-1.2 * (np.asarray(x) - 0.5))), atol=1e-15)
    np.testing.assert_allclose(sensor.undo(sensor(x)), x, atol=1e-14)
    np.testing.assert_allclose(sensor.undo(jnp.asarray([0.0, 0.5, 1.0])), [0.0, 0.5, 1.0], atol=1e-14)
    np.testing.assert_array_equal(sensor(jnp.asarray([-2.0, 0.3, 7.0])), sensor(x))


def test_the_camera_is_blur_sensor_and_means():
    x = image((1, 8, 8))
    found = maps.blurring_camera(x.shape, 1.1, window=5)(x)
    blurred = scipy.ndimage.gaussian_filter(np.asarray(x[0]), 1.1, radius=2, mode="constant")
    expected = 1 / (1 + np.exp(-1.2 * (blurred - 0.5)))
    np.testing.assert_allclose(found[0], expected.reshape(4, 2, 4, 2).mean(axis=(1, 3)), atol=1e-14)
    linear = maps.linear_camera(x.shape, 1.1, window=5)(x)
    np.testing.assert_allclose(linear[0], blurred.reshape(4, 2, 4, 2).mean(axis=(1, 3)), atol=1e-14)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: maps.GaussianBlur((1, 8, 8), 0.0), "positive standard deviation"),
        (lambda: maps.GaussianBlur((1, 8, 8), jnp.ones(3)), "jax.vmap"),
        (lambda: maps.GaussianBlur((1, 8, 8), 1.0, 4), "odd window"),
        (lambda: maps.GaussianBlur((1, 8, 8), 1.0, 19), "at most 17 pixels"),
        (lambda: maps.GaussianBlur((1, 8, 8), 1.0, padding="wrap"), "padding"),
        (lambda: maps.SigmoidSensor((3,), -1.0), "positive gain"),
        (lambda: maps.blurring_camera((1, 9, 8), 1.0), "factor"),
        (lambda: data.smooth_images(4), "at least 5 pixels"),
    ],
)
def test_bad_input_is_explained(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_smooth_images_fill_the_interval_and_are_smooth():
    images = np.asarray(jax.jit(jax.vmap(data.smooth_images(32)))(jax.random.split(jax.random.key(0), 50)))
    assert (images.shape, images.dtype) == ((50, 1, 32, 32), np.float64)
    np.testing.assert_allclose(images.min(axis=(1, 2, 3)), 0.0, atol=1e-12)
    np.testing.assert_allclose(images.max(axis=(1, 2, 3)), 1.0, atol=1e-6)
    x = images - images.mean(axis=(2, 3), keepdims=True)
    correlation = (x[..., 1:] * x[..., :-1]).mean(axis=(1, 2, 3)) / (x**2).mean(axis=(1, 2, 3))
    # white noise after a Gaussian blur has the correlation exp(-1 / (4 sigma^2)) at one pixel, sigma in [1.4, 2.4]
    assert np.exp(-1 / (4 * 1.2**2)) < np.median(correlation) < np.exp(-1 / (4 * 2.6**2))
    assert np.std(correlation) > 0.01, "the width differs from image to image"
    assert data.smooth_images(8, dtype=jnp.float32)(jax.random.key(0)).dtype == jnp.float32
