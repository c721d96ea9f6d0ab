"""Diffusion priors that train here, by name: a data set, a network and a budget each, cached beside the results."""

import dataclasses
import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float, PRNGKeyArray, Scalar

from .. import _store
from ..diffusion import AbstractSchedule, CosineSchedule, Prior, fit_prior
from ..maps import PixelUnshuffle, UNet
from ._digits import digits
from ._lens_camera import photographs
from ._psf_photographs import TEST, TRAIN, grey
from ._random_fields import AsImage, rocks, vortices

FORMAT = 1
"""Raised when weights of earlier versions can no longer be used."""
COLOUR_TRAIN, COLOUR_TEST = ("astronaut", "coffee", "rocket"), ("chelsea",)
"""The colour photographs of training, and the one that nothing is trained or chosen on."""


class NoiseLevelUNet(eqx.Module):
    """`(x_t, t) -> v`: a `maps.UNet` on squares of pixels, told how strong the noise is by two constant channels.

    The channels are `l` and `l^2 - 1` with `l = log(alpha_bar / (1 - alpha_bar)) / 8`. Small and fast on a CPU: there
    are no normalisations, and squares of `patch x patch` pixels become channels before the first convolution.

    Args:
        shape: `(c, height, width)`.
        schedule: of the noise.
        widths: of the U-net, from fine to coarse.
        patch: side of a square; 1 leaves the pixels alone.
        padding: of the convolutions, `"zeros"` or `"circular"`.
        dtype: of the parameters; the default float by default.
        key: random key.

    References:
        K. Zhang, W. Zuo, L. Zhang, "FFDNet: Toward a Fast and Flexible Solution for CNN based Image Denoising", 2018,
        arXiv:1710.04026, for the noise level as a channel and the squares of pixels.
    """

    unet: UNet
    squares: PixelUnshuffle
    schedule: AbstractSchedule

    def __init__(
        self,
        shape: tuple[int, int, int],
        schedule: AbstractSchedule,
        *,
        widths: tuple[int, ...],
        patch: int = 2,
        padding: str = "zeros",
        dtype: DTypeLike | None = None,
        key: PRNGKeyArray,
    ):
        self.squares, self.schedule = PixelUnshuffle(shape, patch, dtype), schedule
        channels, *sides = self.squares.out_structure().shape
        options = {"padding": padding, "activation": "silu", "dtype": dtype, "key": key}
        self.unet = UNet(tuple(sides), (channels + 2, channels), widths=widths, **options)

    def __call__(self, x_t: Float[Array, "c h w"], t: Scalar) -> Float[Array, "c h w"]:
        """What the network says of `x_t` at time `t`."""
        signal, spread = self.schedule.scales(t)
        level = jnp.clip(0.25 * (jnp.log(signal) - jnp.log(spread)), -1.25, 1.25).astype(x_t.dtype)
        squares = self.squares.apply(x_t)
        told = jnp.broadcast_to(jnp.stack([level, level**2 - 1]).reshape(2, 1, 1), (2, *squares.shape[1:]))
        return self.squares.invert(self.unet(jnp.concatenate([squares, told])))


class Images(eqx.Module):
    """The data of a prior, between -1 and 1.

    Attributes:
        draw: `key -> image`, for training.
        test: images that neither training nor any choice sees, shape `(n, c, h, w)`.
    """

    draw: Any
    test: Float[Array, "n c h w"]


@dataclasses.dataclass(frozen=True)
class PriorRecipe:
    """How a prior is made.

    Attributes:
        images: dtype to data.
        widths: of a `NoiseLevelUNet`.
        num_steps: of training.
        batch_size: images per step.
        patch: of the network.
        padding: likewise.
    """

    images: Callable[[DTypeLike], Images]
    widths: tuple[int, ...] = (48, 96)
    num_steps: int = 2000
    batch_size: int = 32
    patch: int = 2
    padding: str = "zeros"


@dataclasses.dataclass(frozen=True)
class TrainedPrior:
    """A prior, and the data it comes from.

    Attributes:
        prior: for `diffusion.sample` and `diffusion.restore`.
        images: the data.
        seconds: that its training took, on the machine where it was.
    """

    prior: Prior
    images: Images
    seconds: float


class Whole(eqx.Module):
    """Draws one of the images."""

    images: Float[Array, "n c h w"]

    def __call__(self, key: PRNGKeyArray) -> Float[Array, "c h w"]:
        """One image."""
        return self.images[jax.random.randint(key, (), 0, self.images.shape[0])]


class Crops(eqx.Module):
    """Draws a random square of one of the images, mirrored or not; several stacks are one photograph at several scales.

    Attributes:
        stacks: images.
        side: of the square.
    """

    stacks: tuple[Float[Array, "n c _ _"], ...]
    side: int = eqx.field(static=True)

    def __call__(self, key: PRNGKeyArray) -> Float[Array, "c h w"]:
        """One square."""
        keys = jax.random.split(key, 3 + len(self.stacks))
        drawn = []
        for images, own in zip(self.stacks, keys[3:], strict=True):
            ends = (images.shape[0], *(length - self.side + 1 for length in images.shape[2:]))
            which, top, left = (
                jax.random.randint(k, (), 0, end) for k, end in zip(jax.random.split(own, 3), ends, strict=True)
            )
            corner = (which, 0, top, left)
            drawn.append(jax.lax.dynamic_slice(images, corner, (1, images.shape[1], self.side, self.side))[0])
        x = jnp.stack(drawn)[jax.random.randint(keys[0], (), 0, len(drawn))]
        return jnp.where(jax.random.bernoulli(keys[1]), x[:, :, ::-1], x)


class Phantoms(eqx.Module):
    """Draws a cross section: an ellipse of tissue with a shell of bone around it, and six to nine ellipses inside.

    Densities lie between 0 (air, -1 in the image) and 1 (bone, 1); borders are half a pixel soft.

    Args:
        side: of the square image.
        dtype: of the image.
    """

    side: int = eqx.field(static=True)
    dtype: np.dtype = eqx.field(static=True)

    def __call__(self, key: PRNGKeyArray) -> Float[Array, "1 n n"]:
        """One image."""
        head, places, axes, turns, values = jax.random.split(key, 5)
        uniform = lambda key, shape, low, high: jax.random.uniform(key, shape, self.dtype, low, high)
        grid = (jnp.arange(self.side, dtype=self.dtype) + 0.5) * (2 / self.side) - 1
        u, v = jnp.meshgrid(grid, grid, indexing="ij")

        def inside(centre: Array, axes: Array, turn: Array) -> Array:
            a, b = u - centre[0], v - centre[1]
            a, b = a * jnp.cos(turn) + b * jnp.sin(turn), b * jnp.cos(turn) - a * jnp.sin(turn)
            radius = jnp.sqrt((a / axes[0]) ** 2 + (b / axes[1]) ** 2 + 1e-6)
            return jax.nn.sigmoid((1 - radius) * jnp.min(axes) * 2 * self.side)

        size, turn = uniform(head, (3,), 0.55, 0.78), uniform(turns, (10,), 0.0, np.pi)
        shell = inside(jnp.zeros(2, self.dtype), size[:2], turn[9])
        tissue = inside(jnp.zeros(2, self.dtype), size[:2] - 0.08, turn[9])
        x = shell - 0.65 * tissue
        centres, sizes = uniform(places, (9, 2), -0.38, 0.38), uniform(axes, (9, 2), 0.05, 0.24)
        contrast = uniform(values, (9,), -0.25, 0.3)
        for index in range(9):
            x = x + contrast[index] * tissue * inside(centres[index], sizes[index], turn[index])
        return (2 * jnp.clip(x, 0, 1) - 1)[None]


def _digits(dtype: DTypeLike) -> Images:
    parts = digits(dtype, quick=False)
    train = jnp.concatenate([parts["train"].x, parts["val"].x])
    return Images(Whole(2 * train - 1), 2 * parts["test"].x - 1)  # pyright: ignore[reportCallIssue]


def _faces(dtype: DTypeLike) -> Images:
    try:
        from skimage.data import lfw_subset
    except ImportError as error:
        raise ValueError('The faces come with scikit-image: pip install "pinv_jax[data]"') from error
    faces = np.asarray(lfw_subset(), np.float64)[:100, None]  # the other hundred are no faces
    faces = jnp.asarray(2 * faces[np.random.default_rng(0).permutation(100)] - 1, dtype)
    return Images(Crops((faces[:64],), 24), faces[64:, :, :24, :24])  # pyright: ignore[reportCallIssue]


def tiles(images: Float[Array, "n c H W"], side: int, num: int) -> Float[Array, "m c s s"]:
    """`num` squares side by side, in a fixed random order."""
    n, c, height, width = images.shape
    tiles = images.reshape(n, c, height // side, side, width // side, side).transpose(0, 2, 4, 1, 3, 5)
    tiles = tiles.reshape(-1, c, side, side)
    return tiles[np.random.default_rng(0).permutation(len(tiles))[:num]]


def _patches(side: int, sizes: tuple[int, ...]) -> Callable[[DTypeLike], Images]:
    def images(dtype: DTypeLike) -> Images:
        stacks = tuple(2 * grey(TRAIN, size, dtype) - 1 for size in sizes)
        test = tiles(2 * grey(TEST, 4 * side, dtype) - 1, side, 36)
        return Images(Crops(stacks, side), test)  # pyright: ignore[reportCallIssue]

    return images


def _colours(dtype: DTypeLike) -> Images:
    stacks = tuple(2 * photographs(COLOUR_TRAIN, size, dtype) - 1 for size in (96, 128, 192))
    test = tiles(2 * photographs(COLOUR_TEST, 192, dtype) - 1, 32, 36)
    return Images(Crops(stacks, 32), test)  # pyright: ignore[reportCallIssue]


def _generated(make: Callable[[DTypeLike], Any]) -> Callable[[DTypeLike], Images]:
    def images(dtype: DTypeLike) -> Images:
        draw = make(dtype)
        test = jax.jit(jax.vmap(draw))(jax.random.split(jax.random.key(2**31 - 1), 36))
        return Images(draw, test)  # pyright: ignore[reportCallIssue]

    return images


PRIORS: Mapping[str, PriorRecipe] = {
    "digits": PriorRecipe(_digits, widths=(32, 64), num_steps=3000, batch_size=64, patch=1),
    "faces": PriorRecipe(_faces, num_steps=1500),
    "photographs32": PriorRecipe(_patches(32, (96, 128, 192))),
    "photographs64": PriorRecipe(_patches(64, (192, 256, 300)), num_steps=1200, batch_size=12),
    "colours32": PriorRecipe(_colours, widths=(64, 96), num_steps=1500),
    "phantoms32": PriorRecipe(
        _generated(lambda dtype: Phantoms(32, jnp.dtype(dtype))),  # pyright: ignore[reportCallIssue]
        num_steps=1500,
    ),
    "permeability16": PriorRecipe(
        _generated(lambda dtype: AsImage(rocks(dtype))),  # pyright: ignore[reportCallIssue]
        widths=(32, 64, 64),
        num_steps=2500,
        patch=1,
    ),
    "vorticity16": PriorRecipe(
        _generated(lambda dtype: AsImage(vortices(dtype))),  # pyright: ignore[reportCallIssue]
        widths=(32, 64, 64),
        num_steps=2500,
        patch=1,
        padding="circular",
    ),
}
"""What can be trained, by name."""


def prior_file(name: str, folder: str | Path, *, quick: bool, seed: int, dtype: DTypeLike) -> Path:
    """Where `trained_prior` keeps the weights."""
    return Path(folder) / f"{name}{'-quick' if quick else ''}-{jnp.dtype(dtype).name}-seed{seed}.npz"


def trained_prior(
    name: str,
    folder: str | Path,
    *,
    quick: bool = False,
    seed: int = 0,
    dtype: DTypeLike = jnp.float32,
    progress: Callable[..., Any] | None = None,
) -> TrainedPrior:
    """The prior of this name: read from the folder, or trained and written to it.

    A training that was killed goes on where it was when it is asked for again.

    Args:
        name: in `PRIORS`.
        folder: of the weights, one file per prior, seed and dtype.
        quick: hardly trained, to see that everything runs.
        seed: of the first weights, the batches and the noise.
        dtype: of weights and images.
        progress: see `learn.fit`.

    Raises:
        ValueError: an unknown name, or missing packages with the data.
    """
    if name not in PRIORS:
        raise ValueError(f"trained_prior: unknown prior {name!r}; known are {', '.join(PRIORS)}.")
    recipe, dtype = PRIORS[name], jnp.dtype(dtype)
    if quick:
        narrow = tuple(min(width, 16) for width in recipe.widths)
        recipe = dataclasses.replace(recipe, widths=narrow, num_steps=30, batch_size=8)
    images, schedule = recipe.images(dtype), CosineSchedule()
    key, fit_key = jax.random.split(jax.random.key(seed))
    shape: Any = images.test.shape[1:]
    options = {"widths": recipe.widths, "patch": recipe.patch, "padding": recipe.padding, "dtype": dtype}
    network = NoiseLevelUNet(shape, schedule, **options, key=key)
    made = {"format": FORMAT, "steps": recipe.num_steps, "batch": recipe.batch_size, "quick": quick, "seed": seed}
    path = prior_file(name, folder, quick=quick, seed=seed, dtype=dtype)
    if path.exists() and _store.read_meta(path, kind="prior")["made"] == made:
        network, meta = _store.load(path, network, kind="prior")
        prior = Prior(network, schedule, shape=shape, prediction="v", dtype=dtype)
        return TrainedPrior(prior, images, meta["seconds"])
    start, unfinished = time.perf_counter(), path.with_suffix("")
    prior = fit_prior(
        network,
        images.draw,
        schedule,
        prediction="v",
        key=fit_key,
        num_steps=recipe.num_steps,
        batch_size=recipe.batch_size,
        learning_rate=2e-3,
        ema=0.9 if quick else 0.995,
        checkpoint=unfinished,
        progress=progress,
    )
    seconds = time.perf_counter() - start
    _store.save(path, prior.network.fn, kind="prior", meta={"made": made, "seconds": seconds})
    shutil.rmtree(unfinished, ignore_errors=True)
    return TrainedPrior(prior, images, seconds)
