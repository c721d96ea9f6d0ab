"""`pinv-jax restore` on a picture file, with a prior that is hardly trained."""

import json

import numpy as np
import pytest

from pinv_jax import cli, io


@pytest.fixture(scope="module")
def picture(tmp_path_factory):
    from skimage.data import camera

    path = tmp_path_factory.mktemp("pictures") / "camera.png"
    io.write_image(path, camera()[None, ::4, ::4] / 255)
    return path


def test_a_picture_is_written_and_read(picture, tmp_path):
    image = io.read_image(picture, 128)
    assert image.shape == (1, 128, 128)
    io.write_image(tmp_path / "again.png", image)
    np.testing.assert_allclose(io.read_image(tmp_path / "again.png", 128), image, atol=1e-12)
    colours = np.stack([image[0], image[0].T, 1 - image[0]])
    io.write_image(tmp_path / "colours.png", colours)
    np.testing.assert_allclose(io.read_image(tmp_path / "colours.png", 128), colours, atol=1e-12)
    assert io.read_image(tmp_path / "colours.png", 32, grey=True).shape == (1, 32, 32)
    with pytest.raises(ValueError, match="expected"):
        io.write_image(tmp_path / "two.png", np.zeros((2, 3, 3)))
    with pytest.raises(ValueError, match="side=0"):
        io.read_image(picture, 0)
    (tmp_path / "text.png").write_text("no picture")
    with pytest.raises(ValueError, match="cannot be read as an image"):
        io.read_image(tmp_path / "text.png", 8)


def run(*arguments):
    return cli.main(["restore", *map(str, arguments)])


def test_what_is_missing_is_said(picture, tmp_path, capsys):
    out = ("--out", tmp_path / "out")
    for arguments, message in (
        ((picture, "--degradation", "clip", *out), "repeat the command with --train"),
        ((picture, "--degradation", "rain", *out), "blur, lens, jpeg, clip"),
        ((picture, "--degradation", "clip", "--prior", "cats", *out), "unknown prior 'cats'"),
        ((tmp_path / "none.png", "--degradation", "clip", *out), "is no file"),
        ((picture, "--degradation", "clip", "--num-samples", 0, *out), "--num-samples 0"),
    ):
        assert run(*arguments) == 2
        assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_picture_is_restored(picture, tmp_path, capsys):
    quick = ("--quick", "--train", "--num-steps", 3, "--num-samples", 2)
    out = tmp_path / "results" / "camera"
    assert run(picture, "--degradation", "jpeg", "--simulate", *quick, "--out", out) == 0
    assert "PSNR" in capsys.readouterr().out
    names = {path.name for path in out.iterdir()}
    assert names == {
        *("observed.png", "truth.png", "mean.png", "std.png", "report.json"),
        *("sample-0.png", "sample-1.png"),
    }
    report = json.loads((out / "report.json").read_text())
    assert max(report["outside the bounds, RMS"]) < 1e-5
    assert list((tmp_path / "results" / "priors").glob("photographs32-quick*.npz"))
    # the file as an observation, larger than the prior, which is there by now
    assert run(picture, "--degradation", "clip", "--size", 48, *quick[:1], *quick[2:], "--out", out) == 0
    assert io.read_image(out / "mean.png", 48).shape == (1, 48, 48)
    assert max(json.loads((out / "report.json").read_text())["outside the bounds, RMS"]) < 1e-5
