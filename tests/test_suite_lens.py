"""The study `lens`: its photographs, cameras and boxes, and what its quick run must show."""

import builtins
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pinv_jax import maps, plots, suite
from pinv_jax.suite import _lens as lens
from pinv_jax.suite import _lens_camera as cameras
from pinv_jax.suite import _lens_saturation as saturated


def rows_by(rows, **chosen):
    found = [row for row in rows if all(row[key] == value for key, value in chosen.items())]
    return {row["method"]: row for row in found}


@pytest.fixture(scope="module")
def fisheye():
    return cameras.distorted((1, 32, 32), 20, 0.2, jnp.float64)


def test_photographs_are_shipped_with_scikit_image():
    from pathlib import Path

    import skimage.data

    shipped = {path.stem for path in Path(skimage.data.__file__).parent.iterdir()}
    assert set(cameras.COLOUR + cameras.GREY) <= shipped, "nothing is downloaded"
    colour, grey = (cameras.photographs(names[:2], 32, jnp.float32) for names in (cameras.COLOUR, cameras.GREY))
    assert (colour.shape, grey.shape, grey.dtype) == ((2, 3, 32, 32), (2, 1, 32, 32), jnp.float32)
    assert 0 <= float(jnp.min(grey)) < 0.1
    assert 0.9 < float(jnp.max(colour)) <= 1
    whole = np.asarray(skimage.data.camera(), float) / 255
    np.testing.assert_allclose(grey[0, 0], whole.reshape(32, 16, 32, 16).mean(axis=(1, 3)), atol=1e-6)


def test_missing_scikit_image_is_explained(monkeypatch):
    real = builtins.__import__

    def refuse(name, *args, **kwargs):
        if name.startswith("skimage"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(ValueError, match=r'pip install "pinv_jax\[data\]"'):
        cameras.photographs(cameras.GREY, 32, jnp.float64)


def test_a_camera_is_the_curve_of_the_optics():
    x = cameras.photographs(cameras.COLOUR[:1], 32, jnp.float64)[0]
    camera = cameras.blurred(x.shape, 1.2, 2, functools.partial(cameras.saturating, dtype=jnp.float64), jnp.float64)
    plain = maps.VaryingBlur(x.shape, 0.3, 1.2, factor=2, dtype=jnp.float64)

    @jax.jit
    def both(x):
        return camera.f(x), camera.curve(plain(x))

    np.testing.assert_allclose(*both(x), atol=1e-14)
    ends = cameras.saturating((1, 1, 2), jnp.float64)(jnp.array([[[0.0, 1.0]]]))
    np.testing.assert_allclose(ends, [[[0.0, 1.0]]], atol=1e-15)
    # what the pseudo-inverse cannot know is grey: grey itself comes back
    grey = jnp.full(x.shape, 0.5)
    np.testing.assert_allclose(jax.jit(lambda x: camera.f.pinv(camera.f(x)))(grey), grey, atol=1e-13)


def test_the_lookup_undoes_the_fisheye(fisheye):
    # a ramp passes both interpolations unchanged, wherever the fish-eye sees it
    x = jnp.broadcast_to(jnp.linspace(0, 1, 32)[None, :, None], (1, 32, 32))
    seen = (fisheye.lookup >= 0) & (fisheye.lookup <= 19)
    seen = np.asarray(seen[0] & seen[1])
    assert 0.7 < seen.mean() < 1
    back = jax.jit(lambda x: fisheye.guess(fisheye.f(x)))(x)
    np.testing.assert_allclose(np.asarray(back)[0][seen], np.asarray(x)[0][seen], atol=5e-3)


def test_spectral_norm_is_the_largest_singular_value():
    matrix = jax.random.normal(jax.random.key(1), (6, 9)) + jnp.eye(6, 9) * 3
    found = cameras.spectral_norm(lambda x: jnp.tanh(matrix @ x), jnp.zeros(9), 100)
    np.testing.assert_allclose(found, jnp.linalg.norm(matrix, 2), rtol=1e-6)


@pytest.mark.parametrize(("bits", "clipped"), [(4, False), (None, True), (3, True)])
def test_the_box_holds_what_the_sensor_saw(bits, clipped):
    y = jax.random.uniform(jax.random.key(2), (3, 8, 8), jnp.float64, -0.3, 1.5)
    seen, lower, upper = lens.sensed(y, bits, clipped=clipped)
    assert bool(jnp.all((lower <= y) & (y <= upper)))
    assert bool(jnp.all((lower <= seen) & (seen <= upper)))
    if clipped:
        assert float(jnp.min(seen)) == 0
        assert float(jnp.max(seen)) == 1
        assert bool(jnp.all(jnp.isinf(upper) == (seen == 1)))
    if bits is not None:
        assert len(np.unique(np.round(np.asarray(jnp.clip(seen, 0, 1)) * (2**bits - 1), 9))) <= 2**bits
        assert float(jnp.max(jnp.abs(seen - y)[(y > 0) & (y < 1)])) <= 0.5 / (2**bits - 1) + 1e-12


def test_saturation_costs_digits_in_proportion_to_the_lipschitz_constant():
    x = cameras.photographs(cameras.GREY[:1], 16, jnp.float64)
    found = {}
    for slope in (1.0, 1e-6):
        f = saturated.saturated_camera((1, 16, 16), slope, jnp.float64)
        found[slope] = {name: float(value[0]) for name, value in saturated.round_trip(f, x)[0].items()}
        assert found[slope]["merge(split(x))"] < 1e-15 + found[slope]["Lipschitz of pinv"] * 1e-15
    assert found[1e-6]["Lipschitz of pinv"] > 1e4 * found[1.0]["Lipschitz of pinv"]
    assert found[1e-6]["merge(split(x))"] > 100 * found[1.0]["merge(split(x))"]


def test_captions_stand_above_the_images_of_their_row():
    rows = {"x": np.zeros((2, 4, 4)), "guess": np.ones((2, 4, 4))}
    figure = plots.image_grid(rows, limits=(0.0, 1.0), titles=["a", "b"], captions={"guess": ["1 dB", "2 dB"]})
    assert [axes.get_title() for axes in figure.axes] == ["a", "b", "1 dB", "2 dB"]


@pytest.fixture(scope="module")
def quick(tmp_path_factory):
    def run(*recipes):
        options = suite.Options(dtype="float64", quick=True, recipes=recipes or None)
        out = tmp_path_factory.mktemp("lens") / "r"
        return suite.run(suite.PROBLEMS["lens"], options, out, stream=None), out

    return run


def check_consistency(rows):
    by = rows_by(rows)
    exact = ("pinv", "NLBP of the linear result", "NLBP of the smooth guess")
    for name in exact:
        assert by[name]["consistency, max"] < 1e-12
    for name in ("naive x + pinv(y - f(x))", "linear pinv, curve ignored", "linear pinv, curve undone last"):
        assert by[name]["consistency, max"] > 1e-3
    for quality in ("PSNR dB", "SSIM"):
        assert by["pinv"][quality] > by["linear pinv, curve ignored"][quality]
        linear = by["linear back-projection, curve ignored"][quality]
        assert by["NLBP of the linear result"][quality] > linear
        best = max(row[quality] for row in rows)
        assert by["NLBP of the smooth guess"][quality] == best


def check_boxes(rows):
    for observation in {row["observation"] for row in rows}:
        by = rows_by(rows, observation=observation)
        assert by["NLBP onto the box"]["outside the box, max"] < 1e-13
        assert by["y, curve undone"]["outside the box, max"] > 1e-3
        assert by["NLBP onto the box"]["PSNR dB"] > by["NLBP onto y"]["PSNR dB"] + 2


@pytest.mark.slow
def test_the_quick_run_of_the_blurs(quick):
    report, out = quick("blur", "quantisation")
    check_consistency(report["tables"]["blur"])
    check_boxes(report["tables"]["quantisation"])
    assert report["measures"]["blur"]["pinv over linear pinv, dB"] > 3
    assert report["figures"] == ["figures/blur.png", "figures/quantisation.png"]
    assert all((out / name).stat().st_size > 10_000 for name in report["figures"])
    assert "NLBP onto the box" in suite.format_table(report)


@pytest.mark.slow
def test_the_quick_run(quick):
    report, _ = quick()
    tables = report["tables"]
    assert list(tables) == ["blur", "fisheye", "quantisation", "noise", "saturation"]
    for part in ("blur", "fisheye"):
        check_consistency(tables[part])
    check_boxes(tables["quantisation"])
    # noise grows by less than the condition number, and by much only where that is large
    mild, bad = (next(row for row in tables["noise"] if row["optics"] == name) for name in
                 ("blur to 1.2 px, half size", "blur to 1.2 px"))  # fmt: skip
    assert bad["PSNR dB, pinv without noise"] > 200
    assert bad["PSNR dB, pinv"] < bad["PSNR dB, smooth guess"] - 10
    assert bad["PSNR dB, NLBP onto y ± 2 %"] > bad["PSNR dB, pinv"] + 5
    assert 10 * mild["noise × "] < bad["noise × "] < bad["condition number"]
    # half the digits of float32 go where float64 still has them
    flat = {row["dtype"]: row for row in tables["saturation"] if row["map"] == "blur, sensor with slope 1e-06"}
    assert flat["float32"]["merge(split(x))"] > 1e-4
    assert flat["float64"]["merge(split(x))"] < 1e-9
    for row in tables["saturation"]:
        assert row["merge(split(x))"] < 100 * row["eps × Lipschitz"] + 1e-5 * (row["dtype"] == "float32")
