"""Block cosine transform, shadows and Beer-Lambert's law, against what is known of them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.fft import dctn

from pinv_jax import maps


def test_block_transform_is_that_of_scipy():
    x = np.random.default_rng(0).normal(size=(2, 8, 12))
    y = np.asarray(maps.BlockDCT(x.shape, 4)(jnp.asarray(x)))
    for i, j in ((0, 0), (4, 8)):
        block = (1, slice(i, i + 4), slice(j, j + 4))
        np.testing.assert_allclose(y[block], dctn(x[block], norm="ortho"), atol=1e-12)


def test_steps_grow_with_the_frequency_and_halve_with_the_quality():
    coarse, fine = (maps.frequency_steps((1, 16, 8), quality, dtype=jnp.float64) for quality in (1, 2))
    np.testing.assert_allclose(coarse, 2 * fine)
    np.testing.assert_allclose(coarse[0, 8:, :], coarse[0, :8, :])
    np.testing.assert_allclose([coarse[0, 0, 0], coarse[0, 7, 7]], [0.25, 2.0])
    assert np.all(np.diff(coarse[0, :8], axis=0) > 0)
    with pytest.raises(ValueError, match="patches that tile the image"):
        maps.frequency_steps((1, 12, 8), 1)


def test_shadows_keep_the_mass_and_know_the_chords_of_a_disk():
    size = 20
    matrix = maps._tomography._strips(size, 6, 40, 1.0)  # wide enough for the corners
    x = np.random.default_rng(0).uniform(size=size * size)
    np.testing.assert_allclose((matrix @ x).reshape(6, 40).sum(axis=1), x.sum() / size, rtol=1e-9)
    grid = (np.arange(400) + 0.5) / 400 - 0.5
    fine = (grid[:, None] ** 2 + grid[None] ** 2 < 0.35**2).astype(float)
    disk = fine.reshape(size, 20, size, 20).mean(axis=(1, 3))
    shadow = (matrix @ disk.ravel()).reshape(6, 40)
    offset = (np.arange(40) + 0.5 - 20) / size
    chord = 2 * np.sqrt(np.maximum(0.35**2 - offset**2, 0))
    np.testing.assert_allclose(shadow, np.broadcast_to(chord, shadow.shape), atol=0.05)


def test_strips_that_see_the_same_mass_twice_are_refused():
    with pytest.raises(ValueError, match="linearly independent"):
        maps.ParallelBeam((1, 6, 6), 3, 10)
    with pytest.raises(ValueError, match="grey, square image"):
        maps.ParallelBeam((1, 6, 5), 3, 3)
    with pytest.raises(ValueError, match=r"matrix of shape \(4, 36\)"):
        maps.DenseSurjection(jnp.ones((3, 36)), (1, 6, 6), (2, 2))


def test_light_falls_exponentially_and_goes_on_as_its_tangent():
    light = maps.BeerLambert((5,), -1.0, 2.0)
    x = jnp.asarray([-3.0, -0.5, 0.0, 1.5, 50.0])
    y = light(x)
    expected = [np.exp(1.0) * 3, np.exp(0.5), 1, np.exp(-1.5), np.exp(-2.0) * (1 - 48)]
    np.testing.assert_allclose(y, expected, rtol=1e-12)
    np.testing.assert_allclose(light.pinv(y), x, atol=1e-12)
    slopes = jax.vmap(jax.grad(lambda a: light.apply(a[None])[0]))(jnp.asarray([-1.0 - 1e-9, -1.0 + 1e-9]))
    np.testing.assert_allclose(slopes[0], slopes[1], rtol=1e-6)
    with pytest.raises(ValueError, match="low < high"):
        maps.BeerLambert((5,), 1.0, 1.0)
