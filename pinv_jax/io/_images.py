"""Images of the user: `read_idx` for files like those of MNIST; PNG and JPEG by `read_image`, `read_image_folder`."""

import gzip
import math
import struct
import zlib
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float

IDX_TYPES = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
"""Of the entries of an IDX file, by the third byte of it."""
GZIP_MAGIC = b"\x1f\x8b"
ENDINGS = (".png", ".jpg", ".jpeg")


def read_idx(path: str | Path) -> np.ndarray:
    """Reads an IDX file, the format of MNIST and Fashion-MNIST, gzipped or not: images as well as labels.

    Two zero bytes, a byte for the type of the entries, a byte for the number of axes, their lengths as big-endian
    32-bit integers, then the entries. Nothing is scaled: images of bytes go from 0 to 255.

    Args:
        path: the file, for example `train-images-idx3-ubyte.gz`.

    Returns:
        The array, of the type in the file and the byte order of this machine: `(num, height, width)` for images, and
        `(num,)` for labels.

    Raises:
        ValueError: no IDX file, a type of entries that the format does not have, more or fewer entries than announced,
            a damaged gzip stream.
        FileNotFoundError: if there is no such file.

    References:
        Y. LeCun, L. Bottou, Y. Bengio, P. Haffner, Gradient-based learning applied to document recognition, 1998,
        doi:10.1109/5.726791 (MNIST).
    """
    path = Path(path)
    content = path.read_bytes()
    if content[:2] == GZIP_MAGIC:
        try:
            content = gzip.decompress(content)
        except (EOFError, OSError, zlib.error) as error:
            raise ValueError(f"{path} is a damaged gzip file: {error}.") from error
    if len(content) < 4 or content[:2] != b"\0\0" or content[2] not in IDX_TYPES or content[3] == 0:
        raise ValueError(
            f"{path} is no IDX file: it begins with {content[:4].hex(' ') or 'nothing'}; expected 00 00, a type of "
            f"entries ({', '.join(f'{code:02x}' for code in IDX_TYPES)}) and a number of axes, 00 00 08 03 for images."
        )
    dtype, ndim = np.dtype(IDX_TYPES[content[2]]), content[3]
    start = 4 + 4 * ndim
    if len(content) < start:
        raise ValueError(f"{path} ends within its header: expected the lengths of {ndim} axes.")
    shape = struct.unpack(f">{ndim}I", content[4:start])
    expected = math.prod(shape) * dtype.itemsize
    if len(content) - start != expected:
        raise ValueError(
            f"{path} holds {len(content) - start} bytes after its header; expected {expected} for entries of "
            f"{dtype.itemsize} bytes and shape {shape}: it is truncated, or something was appended."
        )
    return np.frombuffer(content, dtype, offset=start).reshape(shape).astype(dtype.newbyteorder("="))


def read_image_folder(
    path: str | Path, side: int, *, num: int | None = None, dtype: DTypeLike | None = None
) -> Float[Array, "n side side"]:
    """Reads the PNG and JPEG files of a folder as grey squares between 0 and 1, in the order of their names.

    Of every image the middle square is taken, in grey by the luminance of its colours (over white where it is
    transparent), and resized to `side` x `side` pixels with a blur against aliasing.

    Args:
        path: the folder; folders in it are not looked at.
        side: pixels along either side.
        num: reads the first so many; all by default.
        dtype: of the result; the default float by default.

    Raises:
        ValueError: no folder, no images in it (or fewer than `num`), a file that is no image, `side` not positive, or
            scikit-image is not installed.
    """
    _skimage()
    path = Path(path)
    if side < 1:
        raise ValueError(f"side={side}; expected a positive number of pixels.")
    if not path.is_dir():
        raise ValueError(f"{path} is no folder; expected one with {', '.join(ENDINGS)} files.")
    files = sorted(file for file in path.iterdir() if file.suffix.lower() in ENDINGS)
    if len(files) < max(1, num or 1):
        raise ValueError(f"{path} holds {len(files)} files with {', '.join(ENDINGS)}; expected {num or 'at least 1'}.")
    images = [_square(_grey(_pixels(file)), side) for file in files[:num]]
    return jnp.asarray(np.stack(images), jnp.result_type(float if dtype is None else dtype))


def read_image(
    path: str | Path, side: int, *, grey: bool = False, dtype: DTypeLike | None = None
) -> Float[Array, "c side side"]:
    """Reads a PNG or JPEG file between 0 and 1: its middle square, averaged down (or interpolated) to `side` pixels.

    Args:
        path: the file. Where it is transparent it is white.
        side: pixels along either side.
        grey: whether colours are turned to grey; a file without colours is grey anyway.
        dtype: of the result; the default float by default.

    Returns:
        Three channels, or one for grey.

    Raises:
        ValueError: a file that is no image, `side` not positive, or scikit-image is not installed.
        FileNotFoundError: there is no such file.
    """
    if side < 1:
        raise ValueError(f"side={side}; expected a positive number of pixels.")
    image = _pixels(Path(path))
    image = _grey(image) if grey else image
    if image.ndim == 3 and np.all(image == image[..., :1]):
        image = image[..., 0]
    square = np.atleast_3d(_square(image, side)).transpose(2, 0, 1)
    return jnp.asarray(square, jnp.result_type(float if dtype is None else dtype))


def write_image(path: str | Path, image: Float[Array, "c h w"] | np.ndarray) -> None:
    """Writes an image with one or three channels as a file, a `.png` best; what is beyond 0 and 1 is clipped.

    Raises:
        ValueError: another number of channels, or scikit-image is not installed.
    """
    _skimage()
    import skimage.io

    if image.ndim != 3 or image.shape[0] not in (1, 3):
        raise ValueError(f"write_image: an image of shape {image.shape}, expected (1, h, w) or (3, h, w).")
    pixels = np.asarray(np.clip(np.asarray(image, float), 0, 1) * 255).round().astype(np.uint8).transpose(1, 2, 0)
    skimage.io.imsave(path, pixels[..., 0] if len(image) == 1 else pixels, check_contrast=False)


def _skimage() -> None:
    try:
        import skimage.io as _  # noqa: F401 - is it there?
    except ImportError as error:
        raise ValueError('Image files are read by scikit-image: pip install "pinv_jax[data]"') from error


def _pixels(file: Path) -> np.ndarray:
    """The pixels of a file between 0 and 1, grey or in three colours."""
    _skimage()
    import skimage.io
    from skimage.color import rgba2rgb
    from skimage.util import img_as_float64

    with file.open("rb") as handle:
        try:
            pixels = np.asarray(skimage.io.imread(handle))
        except Exception as error:  # what the decoders raise depends on which one is used
            raise ValueError(f"{file} cannot be read as an image: {error}") from error
    image: Any = img_as_float64(pixels)
    if image.ndim == 3 and image.shape[2] in (2, 4):
        colours = image[:, :, :-1] if image.shape[2] == 4 else np.repeat(image[:, :, :1], 3, axis=2)
        image = rgba2rgb(np.concatenate([colours, image[:, :, -1:]], axis=2))
    if image.ndim == 3 and image.shape[2] == 1:
        image = image[:, :, 0]
    if image.ndim != 2 and not (image.ndim == 3 and image.shape[2] == 3):
        raise ValueError(f"{file} has shape {pixels.shape}; expected (height, width) or with 2, 3 or 4 channels.")
    return image


def _grey(image: np.ndarray) -> np.ndarray:
    from skimage.color import rgb2gray

    return np.asarray(rgb2gray(image)) if image.ndim == 3 else image


def _square(image: np.ndarray, side: int) -> np.ndarray:
    from skimage.transform import resize

    least = min(image.shape[:2])
    top, left = (image.shape[0] - least) // 2, (image.shape[1] - least) // 2
    square: Any = image[top : top + least, left : left + least]
    resized: Any = resize(square, (side, side, *image.shape[2:]), anti_aliasing=True)
    return np.clip(np.asarray(resized), 0, 1)
