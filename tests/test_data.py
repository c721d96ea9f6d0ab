"""Random fields and data sets: shapes, laws, reproducibility, and the known numbers of Heat-1D."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pinv_jax import data, maps, pde


@pytest.fixture(scope="module")
def heat():
    return data.generate(data.minmax_sine_series(64), pde.observed_heat_1d(64), 4000, key=jax.random.key(7))


def test_heat_1d_output_spread(heat):
    _, std = data.statistics(heat.y)
    assert 0.018 < float(jnp.min(std)) < 0.020
    assert 0.175 < float(jnp.max(std)) < 0.186


def test_heat_1d_normalised_noise(heat):
    _, std = data.statistics(heat.y)
    assert 0.124 < float(jnp.sqrt(jnp.mean((0.01 / std) ** 2))) < 0.132


def test_heat_1d_jacobian_spectrum_at_the_mean(heat):
    physics = maps.Normalised(pde.observed_heat_1d(64), *data.statistics(heat.y))
    values = np.linalg.svd(jax.jit(jax.jacfwd(physics))(jnp.mean(heat.x, axis=0)), compute_uv=False)
    np.testing.assert_allclose(values[:7], [6.08, 4.62, 2.47, 0.94, 0.26, 0.055, 0.0086], rtol=0.06)


def test_heat_1d_data_dimensions_and_residual_of_the_start(heat):
    spread = np.linalg.svd(heat.x - jnp.mean(heat.x, axis=0)[None], compute_uv=False) / len(heat.x) ** 0.5
    np.testing.assert_allclose(spread[0], 1.29, atol=0.05)
    assert spread[9] > 0.15
    assert spread[11] < 1e-10
    physics = maps.Normalised(pde.observed_heat_1d(64), *data.statistics(heat.y))
    normalised = (heat.y - data.statistics(heat.y)[0][None]) / data.statistics(heat.y)[1][None]
    residual = physics(jnp.zeros(64))[None] - normalised
    assert 2.8 < float(jnp.mean(jnp.sqrt(jnp.mean(residual**2, axis=1)))) < 3.2


def test_minmax_fields_fill_the_unit_interval(heat):
    np.testing.assert_allclose(jnp.min(heat.x, axis=1), 0.0, atol=1e-12)
    np.testing.assert_allclose(jnp.max(heat.x, axis=1), 1.0, atol=1e-6)


def test_clipped_series_law():
    keys = jax.random.split(jax.random.key(0), 4000)
    clipped = jax.vmap(data.clipped_sine_series(64))(keys)
    free = jax.vmap(data.clipped_sine_series(64, bound=jnp.inf))(keys)
    np.testing.assert_array_equal(clipped, jnp.clip(free, -3.0, 3.0))
    assert bool(jnp.any(clipped == 3.0))
    np.testing.assert_array_equal(free[:, np.array([0, -1])], jnp.zeros((4000, 2)))
    modes = np.sin(np.pi * np.outer(np.linspace(0, 1, 64), np.arange(1, 13)))
    np.testing.assert_allclose((np.asarray(free) @ modes * 2 / 63).std(axis=0), 0.5, rtol=0.05)


@pytest.mark.parametrize("smoothness", [0.5, 1.5, 2.5])
def test_matern_covariance(smoothness):
    field = data.matern_field(12, 0.3, smoothness=smoothness, std=2.0)
    draws = jax.vmap(field)(jax.random.split(jax.random.key(0), 20_000))
    covariance = jnp.cov(draws.T)
    distance = np.sqrt(2 * smoothness) * np.abs(np.subtract.outer(np.arange(12), np.arange(12))) / 13 / 0.3
    factor = {0.5: 1.0, 1.5: 1 + distance, 2.5: 1 + distance + distance**2 / 3}[smoothness]
    np.testing.assert_allclose(covariance, 4 * np.exp(-distance) * factor, atol=0.2)
    exact = (field.basis * field.std[None] ** 2) @ field.basis.T
    np.testing.assert_allclose(exact, 4 * np.exp(-distance) * factor, atol=1e-12)


@pytest.mark.parametrize("build", [data.minmax_sine_series, data.clipped_sine_series, data.matern_field])
def test_samplers_have_the_dtype_asked_for(build):
    for dtype in (jnp.float32, jnp.float64):
        draw = jax.jit(lambda sampler, key: sampler(key))(build(dtype=dtype), jax.random.key(0))
        assert (draw.shape, draw.dtype) == ((64,), dtype)


def test_generate_is_reproducible_and_its_start_does_not_depend_on_the_count():
    make = lambda num, seed: data.generate(
        data.minmax_sine_series(16), pde.observed_heat_1d(16), num, key=jax.random.key(seed), noise_std=0.1
    )
    few, many, other = make(3, 0), make(8, 0), make(3, 1)
    np.testing.assert_allclose(few.x, many.x[:3], atol=1e-14)
    np.testing.assert_allclose(few.y, many.y[:3], atol=1e-14)
    assert not bool(jnp.any(jnp.all(few.x == other.x, axis=1)))
    assert many.num_examples == 8


def test_noise_has_its_standard_deviation():
    clean = jnp.zeros((50_000, 2))
    noisy = jax.vmap(lambda y, key: data.add_noise(y, jnp.array([0.5, 2.0]), key=key))(
        clean, jax.random.split(jax.random.key(0), 50_000)
    )
    np.testing.assert_allclose(jnp.std(noisy, axis=0), [0.5, 2.0], rtol=0.02)
    np.testing.assert_array_equal(data.add_noise(clean[0], 0.0, key=jax.random.key(0)), clean[0])


def test_split_take_and_statistics():
    pairs = data.PairedData(jnp.arange(10.0)[:, None], jnp.stack([jnp.arange(10.0), jnp.full(10, 0.1)], axis=1))
    train, test = data.split(pairs, (6, 3))
    np.testing.assert_array_equal(train.x[:, 0], jnp.arange(6.0))
    np.testing.assert_array_equal(test.y[:, 0], [6.0, 7.0, 8.0])
    np.testing.assert_array_equal(pairs.take(jnp.array([3, 1])).x[:, 0], [3.0, 1.0])
    mean, std = data.statistics(pairs.y)
    np.testing.assert_allclose(mean, [4.5, 0.1])
    np.testing.assert_allclose(std, [np.std(np.arange(10.0), ddof=1), 1.0])


def test_bad_sizes_are_refused():
    pairs = data.PairedData(jnp.ones((4, 1)), jnp.ones((4, 1)))
    for sizes in [(3, 2), (2, 0), ()]:
        with pytest.raises(ValueError, match="split expected positive sizes"):
            data.split(pairs, sizes)
    with pytest.raises(ValueError, match="two examples"):
        data.statistics(jnp.ones((1, 3)))
    with pytest.raises(ValueError, match="at least one example"):
        data.generate(data.matern_field(4), lambda x: x, 0, key=jax.random.key(0))
    with pytest.raises(ValueError, match=r"0\.5, 1\.5 or 2\.5"):
        data.matern_field(4, smoothness=1.0)


def test_a_prior_on_another_grid_is_refused():
    with pytest.raises(ValueError, match=r"shape \(16,\).*takes \(24,\).*num_points"):
        data.generate(data.minmax_sine_series(16), pde.Heat1D(24), 3, key=jax.random.key(0))
