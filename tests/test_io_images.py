"""IDX files and folders of images: what is read back, and every way in which a file can be wrong."""

import gzip
import struct

import numpy as np
import pytest
from skimage.io import imsave

from pinv_jax import io


def idx(array, code):
    header = struct.pack(f">HBB{array.ndim}I", 0, code, array.ndim, *array.shape)
    return header + array.astype(array.dtype.newbyteorder(">")).tobytes()


@pytest.mark.parametrize(("kind", "code"), [("u1", 8), ("i1", 9), ("i2", 11), ("i4", 12), ("f4", 13), ("f8", 14)])
def test_idx_files_of_every_type_are_read(tmp_path, kind, code):
    array = np.random.default_rng(0).uniform(0, 100, size=(3, 4, 5)).astype(kind)
    (tmp_path / "plain").write_bytes(idx(array, code))
    (tmp_path / "packed.gz").write_bytes(gzip.compress(idx(array, code)))
    for name in ("plain", "packed.gz"):
        found = io.read_idx(tmp_path / name)
        assert found.dtype == array.dtype
        np.testing.assert_array_equal(found, array)


def test_idx_labels_and_writable_arrays(tmp_path):
    labels = np.arange(7, dtype=np.uint8)
    (tmp_path / "labels").write_bytes(idx(labels, 8))
    found = io.read_idx(tmp_path / "labels")
    found[0] = 3
    np.testing.assert_array_equal(found[1:], labels[1:])


def test_wrong_idx_files_are_refused(tmp_path):
    good = idx(np.zeros((2, 3, 3), np.uint8), 8)
    wrong = {
        "is no IDX file: it begins with 00 00 07 03": b"\0\0\x07" + good[3:],
        "is no IDX file: it begins with 50 4b": b"PK\3\4" + good,
        "begins with nothing": b"",
        "ends within its header": good[:9],
        "holds 17 bytes after its header; expected 18": good[:-1],
        "holds 19 bytes": good + b"\0",
        "damaged gzip": gzip.compress(good)[:-12],
    }
    path = tmp_path / "images"
    for message, content in wrong.items():
        path.write_bytes(content)
        with pytest.raises(ValueError, match=message):
            io.read_idx(path)
    with pytest.raises(FileNotFoundError):
        io.read_idx(tmp_path / "none")


def test_a_folder_of_images_becomes_grey_squares_in_order(tmp_path):
    ramp = np.tile(np.linspace(0, 255, 12).astype(np.uint8), (8, 1))  # its middle square: columns 2 to 9
    colour = np.zeros((6, 6, 3), np.uint8)
    colour[..., 1] = 255
    clear = np.zeros((6, 6, 4), np.uint8)  # black, and entirely transparent
    imsave(tmp_path / "b.png", ramp, check_contrast=False)
    imsave(tmp_path / "a.png", colour, check_contrast=False)
    imsave(tmp_path / "c.JPG", np.full((20, 20), 128, np.uint8), check_contrast=False)
    imsave(tmp_path / "d.png", clear, check_contrast=False)
    (tmp_path / "notes.txt").write_text("no image")
    found = np.asarray(io.read_image_folder(tmp_path, 8))
    assert found.shape == (4, 8, 8)
    np.testing.assert_allclose(found[0], 0.7154, atol=1e-4)  # the luminance of pure green
    np.testing.assert_allclose(found[1], ramp[:, 2:10] / 255, atol=1e-12)
    np.testing.assert_allclose(found[2], 128 / 255, atol=1e-2)
    np.testing.assert_allclose(found[3], 1, atol=1e-12)
    few = io.read_image_folder(tmp_path, 4, num=2, dtype="float32")
    assert (few.shape, few.dtype) == ((2, 4, 4), np.float32)


def test_wrong_folders_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"0 files with \.png, \.jpg, \.jpeg; expected at least 1"):
        io.read_image_folder(tmp_path, 8)
    with pytest.raises(ValueError, match="side=0"):
        io.read_image_folder(tmp_path, 0)
    with pytest.raises(ValueError, match="is no folder"):
        io.read_image_folder(tmp_path / "none", 8)
    (tmp_path / "a.png").write_bytes(b"not a picture")
    with pytest.raises(ValueError, match=r"a\.png cannot be read as an image"):
        io.read_image_folder(tmp_path, 8)
    with pytest.raises(ValueError, match="holds 1 files .* expected 2"):
        io.read_image_folder(tmp_path, 8, num=2)
