"""Random fields in two and three dimensions: their laws, and the known numbers of the published problems."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pinv_jax import data, pde

PRIORS = {
    "sines": (data.sine_series_2d, (16, 16)),
    "sines and a bump": (data.minmax_sine_bump_3d, (8, 8, 8)),
    "torus": (data.periodic_field_2d, (32, 32)),
    "interfaces": (data.interfaces_2d, (32, 32)),
}


@functools.cache
def draws(name, count=800):
    return np.asarray(jax.jit(jax.vmap(PRIORS[name][0]()))(jax.random.split(jax.random.key(0), count)))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
@pytest.mark.parametrize("name", PRIORS)
def test_shape_and_dtype_as_an_argument_of_jit(name, dtype):
    build, shape = PRIORS[name]
    draw = jax.eval_shape(jax.jit(lambda prior, key: prior(key)), build(dtype=dtype), jax.random.key(0))
    assert (draw.shape, draw.dtype) == (shape, dtype)


@pytest.mark.slow
@pytest.mark.parametrize("name", PRIORS)
def test_every_key_has_its_own_draw(name):
    assert len({field.tobytes() for field in draws(name)}) == 800


@pytest.mark.parametrize("name", ["sines", "sines and a bump"])
def test_sine_fields_fill_the_unit_interval(name):
    fields = draws(name).reshape(800, -1)
    np.testing.assert_allclose(fields.min(axis=1), 0.0, atol=1e-12)
    np.testing.assert_allclose(fields.max(axis=1), 1.0, atol=1e-6)


def test_sine_coefficients_up_to_the_scaling():
    """Every field is `(u - low) / (high - low)`; ratios of coefficients that no constant reaches are scale-free."""
    sines = np.asarray(pde.sine_basis(16, 16))
    coefficients = np.einsum("ai,bj,nab->nij", sines, sines, draws("sines"))
    # The constant of the scaling only has odd-odd modes; even sines keep their law relative to each other.
    squared = (coefficients[:, 1::2, 1::2] ** 2).mean(axis=0)
    np.testing.assert_allclose(squared[2:], 0.0, atol=1e-20)
    np.testing.assert_allclose(squared[:, 2:], 0.0, atol=1e-20)
    np.testing.assert_allclose(squared[:2, :2] / squared[0, 0], [[1, 1 / 4], [1 / 4, 1 / 16]], rtol=0.35)


def test_published_heat_3d_numbers():
    """Outputs with standard deviations from 0.136 to 0.226; errors 0.054 of `y` itself and 0.211 of the mean."""
    x = draws("sines and a bump", 4000)
    clean = np.asarray(jax.jit(jax.vmap(pde.observed_heat_3d()))(x))
    spread = clean.std(axis=0)
    np.testing.assert_allclose([spread.min(), spread.max()], [0.136, 0.226], atol=0.005)
    y = clean + 0.0015 * np.random.default_rng(0).normal(size=clean.shape)
    rmse = lambda estimate: np.sqrt(((estimate - x) ** 2).mean(axis=(1, 2, 3))).mean()
    np.testing.assert_allclose(rmse(np.clip(y, 0, 1)), 0.054, atol=0.003)
    np.testing.assert_allclose(rmse(x.mean(axis=0)), 0.211, atol=0.005)


def test_bump_adds_to_the_modes_of_the_sines():
    sines = np.asarray(pde.sine_basis(8, 8))
    coefficients = np.einsum("ai,bj,ck,nabc->nijk", sines, sines, sines, draws("sines and a bump"))
    outside = np.abs(coefficients[:, 3, 3, 3])  # even in every axis: the constant of the scaling has no part in it
    assert 1e-4 < np.median(outside) < 0.1


@pytest.mark.parametrize(("num_points", "length_scale", "std"), [(12, 0.3, 2.0), (9, 0.2, 1.0)])
def test_periodic_field_law(num_points, length_scale, std):
    """Covariance by the sum over modes, written out in full; zero mean of every sample."""
    prior = data.periodic_field_2d(num_points, length_scale, smoothness=1.5, std=std)
    fields = np.asarray(jax.jit(jax.vmap(prior))(jax.random.split(jax.random.key(1), 20_000)))
    np.testing.assert_allclose(fields.mean(axis=(1, 2)), 0.0, atol=1e-14)
    k = 2 * np.pi * np.fft.fftfreq(num_points, 1 / num_points)
    variance = (3 / length_scale**2 + k[:, None] ** 2 + k[None] ** 2) ** -2.5
    variance[0, 0] = 0.0
    covariance = std**2 * np.real(np.fft.ifft2(variance)) / np.mean(variance)
    shifted = np.stack([(fields * np.roll(fields, s, axis=(1, 2))).mean() for s in [(0, 0), (0, 1), (2, 0), (2, 3)]])
    np.testing.assert_allclose(
        shifted, [covariance[0, 0], covariance[0, 1], covariance[2, 0], covariance[2, 3]], atol=0.03 * std**2
    )
    # Stationary: the same variance at every point.
    np.testing.assert_allclose(fields.std(axis=0), std, rtol=0.03)


def test_periodic_field_spectrum_is_exact():
    """The filter applied to one unit impulse has the energy that the variance promises."""
    prior = data.periodic_field_2d(10, 0.25, std=1.5)
    impulse = np.zeros((10, 10))
    impulse[0, 0] = 1.0
    response = np.fft.irfft2(np.asarray(prior.gain) * np.fft.rfft2(impulse), (10, 10))
    np.testing.assert_allclose(np.sum(response**2), 1.5**2, rtol=1e-12)


def test_interfaces_are_two_phases_in_four_families():
    fields = draws("interfaces")
    assert np.abs(fields).max() == 1.0
    clear = np.abs(np.abs(fields) - 1) < 0.3
    assert 0.97 < clear.mean() < 1.0
    share = (fields > 0).mean(axis=(1, 2))
    assert 0.25 < share.mean() < 0.38
    # Half of them (front, mixed) have a line through the middle and fill a good part of the square.
    assert 0.42 < (share > 0.28).mean() < 0.56
    # The clipped noise of the background, where no front is.
    plain = fields[share < 0.1]
    noise = plain[plain < -0.7] + 1
    np.testing.assert_allclose(np.sqrt((noise**2).mean()), 0.05 / 2**0.5, rtol=0.02)


def test_published_allen_cahn_numbers():
    """Mean -0.362 and standard deviation 0.854 of the outputs; errors 0.081, 0.080, 0.159 of one-line estimates."""
    x = draws("interfaces")
    clean = np.asarray(jax.jit(jax.vmap(pde.observed_allen_cahn_2d()))(x))
    np.testing.assert_allclose(clean.mean(), -0.362, atol=0.04)
    np.testing.assert_allclose(clean.std(), 0.854, atol=0.02)
    y = clean + 0.002 * np.random.default_rng(0).normal(size=clean.shape)
    errors = [np.sqrt(((e - x) ** 2).mean(axis=(1, 2))).mean() for e in (np.clip(2 * y, -1, 1), np.sign(y), y)]
    np.testing.assert_allclose(errors, [0.081, 0.080, 0.159], atol=0.008)

    # Deconvolution of the diffusion alone, regularised by 1e-3: 0.021.
    k = 2 * np.pi * np.fft.fftfreq(32, 1 / 32)
    decay = (1 + 0.002 * 0.04**2 * (k[:, None] ** 2 + k[None] ** 2)) ** -60.0
    sharp = np.real(np.fft.ifft2(np.fft.fft2(np.clip(y, -1, 1)) * decay / (decay**2 + 1e-3)))
    np.testing.assert_allclose(np.sqrt(((np.clip(sharp, -1, 1) - x) ** 2).mean(axis=(1, 2))).mean(), 0.021, atol=0.002)


def test_bad_spectrum_is_refused():
    with pytest.raises(ValueError, match="positive length_scale and smoothness"):
        data.periodic_field_2d(8, 0.0)
    with pytest.raises(ValueError, match="positive length_scale and smoothness"):
        data.periodic_field_2d(8, smoothness=-1.0)
