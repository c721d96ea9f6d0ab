import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
import skimage.data
import skimage.metrics

from pinv_jax import diagnostics as dg


def images():
    truth = skimage.data.camera()[100:164, 200:280].astype(np.float64) / 255
    return truth, truth + 0.1 * np.random.default_rng(0).standard_normal(truth.shape)


@pytest.mark.parametrize("window_size", [7, 11])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_psnr_and_ssim_agree_with_skimage(window_size, dtype):
    for truth, estimate in (images(), tuple(a[3] for a in images())):
        a, b = jnp.asarray(truth, dtype), jnp.asarray(estimate, dtype)
        value = dg.ssim(a, b, data_range=1.0, window_size=window_size)
        expected = skimage.metrics.structural_similarity(truth, estimate, data_range=1.0, win_size=window_size)
        assert value.dtype == dtype
        np.testing.assert_allclose(value, expected, atol=1e-6)
        expected = skimage.metrics.peak_signal_noise_ratio(truth, estimate, data_range=1.0)
        np.testing.assert_allclose(dg.psnr(a, b, data_range=1.0), expected, rtol=1e-6)
        np.testing.assert_allclose(dg.rmse(a, b), np.sqrt(np.mean((truth - estimate) ** 2)), rtol=1e-6)


def test_ssim_passes_jit_vmap_grad_and_is_one_for_equal_inputs():
    truth, estimate = (jnp.asarray(a) for a in images())
    np.testing.assert_allclose(dg.ssim(truth, truth, data_range=1.0), 1.0, rtol=1e-12)
    score = lambda b: dg.ssim(truth, b, data_range=1.0)
    batch = jnp.stack([estimate, truth])
    np.testing.assert_allclose(jax.jit(jax.vmap(score))(batch), [score(estimate), 1.0], rtol=1e-12)
    slope = jax.grad(score)(estimate)
    assert score(estimate + 0.01 * slope / jnp.linalg.norm(slope)) > score(estimate)


def test_ssim_refuses_a_window_that_does_not_fit():
    with pytest.raises(ValueError, match="odd"):
        dg.ssim(jnp.zeros((5, 9)), jnp.zeros((5, 9)), data_range=1.0)
    with pytest.raises(ValueError, match="odd"):
        dg.ssim(jnp.zeros((9, 9)), jnp.zeros((9, 9)), data_range=1.0, window_size=4)


@pytest.mark.parametrize("level", [0.9, 0.95])
@pytest.mark.parametrize(("k", "n"), [(0, 300), (73, 300), (55, 80), (300, 300), (1, 1)])
def test_wilson_interval_agrees_with_scipy(k, n, level):
    expected = scipy.stats.binomtest(k, n).proportion_ci(level, method="wilson")
    np.testing.assert_allclose(dg.wilson_interval(k, n, level), (expected.low, expected.high), atol=1e-12)


def test_wilson_interval_takes_counts_from_arrays_and_refuses_nonsense():
    assert dg.wilson_interval(np.int64(3), jnp.asarray(7)) == dg.wilson_interval(3, 7)
    for k, n in ((4, 3), (-1, 3), (0, 0)):
        with pytest.raises(ValueError, match="successes"):
            dg.wilson_interval(k, n)
    with pytest.raises(ValueError, match="level"):
        dg.wilson_interval(1, 3, level=95)
