"""The study `imitate`: its networks and samplers, and what a stand-in and the correction on h itself must show."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pinv_jax import maps, suite
from pinv_jax.suite import _imitate as study
from pinv_jax.suite import _imitate_maps as made


@pytest.fixture
def bench(tmp_path):
    return suite.Bench(
        seed=0,
        key=jax.random.key(0),
        dtype=jnp.dtype("float64"),
        quick=True,
        fits=tmp_path / "fits",
        models=tmp_path / "models",
        progress=lambda *args: None,
    )


def test_networks_start_from_doing_nothing():
    x = jnp.asarray(np.random.default_rng(0).uniform(size=(1, 6, 6)))
    model = made.Denoiser(maps.ConvNet((1, 6, 6), 1, hidden=(4,), key=jax.random.key(0)))
    np.testing.assert_array_equal(model(x), x)
    larger = made.SuperResolver(maps.ConvNet((1, 6, 6), 4, hidden=(4,), key=jax.random.key(0)))
    np.testing.assert_array_equal(larger(x), made.enlarged(x))
    seen = made.Sparse(larger, (1, 2, 4))(x)
    np.testing.assert_array_equal(seen, np.asarray(larger(x))[0, ::2, ::4].ravel())


def test_a_crop_is_part_of_the_photograph_and_its_average():
    images = jnp.arange(2 * 14 * 15.0).reshape(2, 1, 14, 15)
    small, piece = jax.vmap(made.SmallCrop(images))(jax.random.split(jax.random.key(0), 40))
    assert (small.shape, piece.shape) == ((40, 1, 6, 6), (40, 1, 12, 12))
    np.testing.assert_allclose(small[3, 0, 2, 1], piece[3, 0, 4:6, 2:4].mean())
    corners = {int(corner) for corner in piece[:, 0, 0, 0]}
    assert corners <= {210 * i + 15 * j + k for i in range(2) for j in range(3) for k in range(4)}
    assert len(corners) > 12
    np.testing.assert_array_equal(piece[0, 0] - piece[0, 0, 0, 0], images[0, 0, :12, :12])


@pytest.mark.slow
def test_back_projection_of_the_heat_map_is_finished_on_the_map_itself(bench):
    case, _ = made.heat(bench, jax.random.key(1))
    rows, arrays = study.compare(bench, case, jax.random.key(2))
    none, ridge, spnn = rows
    assert [row["stand-in"] for row in rows] == [study.NONE, "ridge surjection", "SPNN"]
    assert 0.9 < none["fit"] < 1.2
    assert 1.2 < none["consistency"] < 1.7
    assert ridge["fit"] < 0.05 * none["fit"], "the map is close to linear"
    assert spnn["fit"] < 0.8 * ridge["fit"]
    assert spnn["consistency"] < 0.8 * ridge["consistency"]
    assert spnn["residual, median"] < 0.01
    for row in rows:
        assert row["below 1e-06, %"] >= 90
    assert spnn["steps, median"] < none["steps, median"]
    x, data = (jnp.asarray(arrays[f"heat, sensors, {what}"]) for what in ("end, SPNN", "data"))
    residual = np.asarray(jax.jit(jax.vmap(case.h))(x) - data)
    assert np.median(np.linalg.norm(residual, axis=1) / np.linalg.norm(data, axis=1)) < 1e-6


@pytest.mark.slow
def test_the_quick_study_shows_what_it_must(tmp_path):
    options = suite.Options(dtype="float64", quick=True)
    report = suite.run(suite.PROBLEMS["imitate"], options, tmp_path / "r", stream=None)
    assert report["figures"] == ["figures/denoiser.png", "figures/pairs.png"]
    quality = report["measures"]["networks"]["denoiser"]
    assert quality["left by the denoiser"] < 0.7 * quality["noise"]
    for none, ridge, spnn in np.asarray(report["tables"]["networks"]).reshape(-1, 3):
        for row in (ridge, spnn):
            assert row["fit"] < 0.4 * none["fit"]
            assert row["consistency"] < 0.4 * none["consistency"]
            assert row["below 1e-06, %"] >= 90
            assert row["steps, median"] <= none["steps, median"]
    few, more = report["tables"]["pairs"]
    assert (few["pairs"], more["pairs"]) == (16, 64)
    for column in study.CURVES:
        assert more[column] < few[column]
