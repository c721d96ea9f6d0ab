"""A picture file of the user, restored with a diffusion prior: what `pinv-jax restore` does."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .. import _store
from ..diagnostics import psnr
from ..diffusion import DDNM, DenoisingUNet, LinearSchedule, Prior, project_after_interval, sample, tiled
from ..io import load_ddpm, read_image, write_image
from ..maps import AbstractSurjection, Affine, BlockDCT, Downsample, frequency_steps
from ..solvers import clipping_box, quantisation_box
from ._folder import environment
from ._lens_camera import blurred, distorted, exposed, saturating
from ._priors import PRIORS, prior_file, trained_prior
from ._restoration import centred, to_unit

CHECKPOINTS = (".pt", ".pth", ".ckpt")
_STEP = 1 / 255  # a file has eight bits

Image = tuple[int, int, int]


@dataclasses.dataclass(frozen=True)
class Kind:
    """A way in which a picture is spoilt.

    Attributes:
        summary: one line.
        build: `(shape of the picture that is sought, strength) -> surjection` of pictures between 0 and 1.
        box: `(what the file shows, strength) -> bounds` of what the surjection returned.
        side: of the file, by that of the picture and the strength.
        strength: by default.
        meaning: of the strength.
    """

    summary: str
    build: Callable[[Image, float], AbstractSurjection[Any]]
    box: Callable[[Array, float], tuple[Array, Array]]
    side: Callable[[int, float], int]
    strength: float
    meaning: str


def _eight_bits(seen: Array, strength: float) -> tuple[Array, Array]:
    del strength
    return quantisation_box(seen, _STEP)


def _clipped(seen: Array, strength: float) -> tuple[Array, Array]:
    low, high = clipping_box(seen, 0.0, 1.0)
    coarse = _eight_bits(seen, strength)
    return jnp.minimum(coarse[0], low), jnp.maximum(coarse[1], high)


def _cells(seen: Array, strength: float) -> tuple[Array, Array]:
    steps = frequency_steps(seen.shape, strength, dtype=seen.dtype)
    coefficients = BlockDCT(seen.shape, dtype=seen.dtype)(seen)
    return quantisation_box(steps * jnp.round(coefficients / steps), steps)


def _levels(seen: Array, strength: float) -> tuple[Array, Array]:
    step = 1 / (2**strength - 1)
    return quantisation_box(step * jnp.round(seen / step), step)


def _curve(shape: Image) -> AbstractSurjection[Any]:
    return saturating(shape, jnp.float32)


def _same(side: int, strength: float) -> int:
    del strength
    return side


def _identity(shape: Image) -> AbstractSurjection[Any]:
    return Affine(jnp.ones(shape, jnp.float32), jnp.zeros(shape, jnp.float32))  # pyright: ignore[reportCallIssue]


DEGRADATIONS: Mapping[str, Kind] = {
    "blur": Kind(
        "a blur that grows towards the borders, half as many pixels each way, a sensor that saturates",
        lambda shape, strength: blurred(shape, strength, 2, _curve, jnp.float32).f,
        _eight_bits,
        lambda side, strength: side // 2,
        1.2,
        "width of the blur at the border, pixels",
    ),
    "lens": Kind(
        "a fish-eye, coarser by a half, and the tone curve of photographs",
        lambda shape, strength: distorted(shape, round(shape[1] / 1.5), strength, jnp.float32).f,
        _eight_bits,
        lambda side, strength: round(side / 1.5),
        0.2,
        "of the distortion",
    ),
    "jpeg": Kind(
        "cosine coefficients of squares of 8 x 8 pixels, rounded by the tables of this library",
        lambda shape, strength: BlockDCT(shape, dtype=jnp.float32),
        _cells,
        _same,
        1.0,
        "quality; each unit halves the steps",
    ),
    "clip": Kind(
        "too much light: whatever is brighter than the sensor can show is white",
        lambda shape, strength: exposed(shape, jnp.float32, strength),
        _clipped,
        _same,
        2.0,
        "how much light there is, as a multiple of what fits",
    ),
    "bits": Kind(
        "few levels of grey", lambda shape, strength: _identity(shape), _levels, _same, 3.0, "bits of a pixel"
    ),
    "small": Kind(
        "fewer pixels each way",
        lambda shape, strength: Downsample(shape, int(strength), jnp.float32),
        _eight_bits,
        lambda side, strength: side // int(strength),
        2.0,
        "how many times fewer",
    ),
}
"""What the command line knows, by name."""


def picture_prior(name: str | None, folder: Path, *, channels: int, train: bool, quick: bool, progress: Any) -> Prior:
    """The prior for a picture: trained here, cached, or read from a file.

    Args:
        name: of a prior in `PRIORS`; a file of published weights in the layout of DDPM; or None for the one that suits
            the channels.
        folder: of trained priors.
        channels: of the picture.
        train: whether it is trained where the folder has none.
        quick: see `trained_prior`.
        progress: see `learn.fit`.

    Raises:
        ValueError: an unknown name, a file that does not fit, or no prior where it may not be trained.
    """
    if name is not None and Path(name).suffix in CHECKPOINTS:
        widths, key = (128, 128, 256, 256, 512, 512), jax.random.key(0)
        options = {"widths": widths, "num_blocks": 2, "attention": (16,), "num_groups": 32, "dtype": jnp.float32}
        like = jax.eval_shape(functools.partial(DenoisingUNet, (3, 256, 256), **options), key=key)
        return Prior(load_ddpm(name, like), LinearSchedule(), shape=(3, 256, 256))
    name = ("colours32" if channels == 3 else "photographs32") if name is None else name
    if name not in PRIORS:
        raise ValueError(
            f"unknown prior {name!r}; known are {', '.join(PRIORS)}, and files of PyTorch weights in the layout of "
            f"DDPM for 256 x 256 pixels ({', '.join(CHECKPOINTS)})"
        )
    path = prior_file(name, folder, quick=quick, seed=0, dtype=jnp.float32)
    if not path.exists() and not train:
        raise ValueError(
            f"there is no trained prior {path}: repeat the command with --train, which trains it once (minutes on a "
            "CPU, the README says how many) and keeps it there"
        )
    return trained_prior(name, folder, quick=quick, progress=progress).prior


def restore_picture(
    path: str | Path,
    degradation: str,
    out: Path,
    *,
    prior: str | None = None,
    strength: float | None = None,
    size: int | None = None,
    simulate: bool = False,
    num_samples: int = 4,
    num_steps: int = 100,
    seed: int = 0,
    train: bool = False,
    quick: bool = False,
    progress: Any = None,
) -> dict[str, Any]:
    """Restores the middle square of a picture file, and writes what was found as files.

    Args:
        path: the picture, taken as what the degradation left.
        degradation: a name in `DEGRADATIONS`.
        out: the folder to write to: `observed.png`, `sample-0.png` and so on, `mean.png`, `std.png`, `report.json`.
        prior: see `picture_prior`; trained ones are in `priors` beside the folder.
        strength: of the degradation.
        size: the side of the result; that of the prior by default. Larger ones are made of squares, see `tiled`.
        simulate: takes the picture for the truth and degrades it first, so that the report has distances from it.
        num_samples: images that are drawn.
        num_steps: of the sampler.
        seed: of what is drawn.
        train: see `picture_prior`.
        quick: with a prior that is hardly trained, to see that everything runs.
        progress: see `learn.fit`.

    Returns:
        The report.

    Raises:
        ValueError: an unknown degradation or prior, or a size that does not fit.
    """
    if degradation not in DEGRADATIONS:
        raise ValueError(f"unknown degradation {degradation!r}; known are {', '.join(DEGRADATIONS)}")
    kind = DEGRADATIONS[degradation]
    strength = kind.strength if strength is None else strength
    channels = read_image(path, 2, dtype=jnp.float32).shape[0]
    known = picture_prior(prior, out.parent / "priors", channels=channels, train=train, quick=quick, progress=progress)
    size = known.shape[1] if size is None else size
    if size % 16:
        raise ValueError(f"--size {size}; expected a multiple of 16")
    shape = (known.shape[0], size, size)
    known = known if shape == known.shape else tiled(known, shape)
    f = kind.build(shape, strength)
    read = functools.partial(read_image, path, grey=shape[0] == 1, dtype=jnp.float32)
    as_many = lambda image: jnp.broadcast_to(image, (shape[0], *image.shape[1:]))
    truth = as_many(read(size)) if simulate else None
    seen = as_many(read(kind.side(size, strength))) if truth is None else shown(f, kind, truth, strength)
    lower, upper = kind.box(seen, strength)
    whole = centred(f)
    guide = project_after_interval(whole, lower, upper, final=True)
    draw = jax.jit(jax.vmap(lambda key: sample(known, DDNM(num_steps), key=key, guide=guide)))
    samples = to_unit(draw(jax.random.split(jax.random.key(seed), num_samples)))
    report = _report(samples, f, lower, upper, truth)
    report |= {"picture": str(path), "degradation": degradation, "strength": strength, "prior": prior, "seed": seed}
    report |= {"samples": num_samples, "steps": num_steps, "shape": shape, "dtype": "float32", **environment()}
    pictures = {"observed": seen, "mean": jnp.mean(samples, axis=0), "std": 2 * jnp.std(samples, axis=0)}
    pictures |= {f"sample-{index}": x for index, x in enumerate(samples)}
    out.mkdir(parents=True, exist_ok=True)
    for name, picture in (pictures | ({} if truth is None else {"truth": truth})).items():
        write_image(out / f"{name}.png", picture)
    _store.write_json(out / "report.json", report)
    return report


def shown(
    f: AbstractSurjection[Any], kind: Kind, truth: Float[Array, "c h w"], strength: float
) -> Float[Array, "c h w"]:
    """What a file would show of the picture: eight bits between 0 and 1, as an image."""
    y = f(truth)
    if isinstance(f, BlockDCT):
        steps = frequency_steps(truth.shape, strength, dtype=truth.dtype)
        y = f.pinv(steps * jnp.round(y / steps))
        return y  # rounding once more would leave the cells
    if kind.box is _levels:
        step = 1 / (2**strength - 1)
        y = step * jnp.round(y / step)
    return jnp.round(255 * jnp.clip(y, 0, 1)) / 255


def _report(
    samples: Float[Array, "n c h w"], f: AbstractSurjection[Any], lower: Array, upper: Array, truth: Array | None
) -> dict[str, Any]:
    """How far the samples are from the bounds, and from the truth where it is known."""
    y = jax.vmap(f)(samples)
    outside = y - jnp.clip(y, lower[None], upper[None])
    report: dict[str, Any] = {"outside the bounds, RMS": jnp.sqrt(jnp.mean(outside**2, axis=(1, 2, 3)))}
    if truth is not None:
        level = lambda x: psnr(truth, jnp.clip(x, 0, 1), data_range=1.0)
        report |= {"PSNR, dB": jax.vmap(level)(samples), "PSNR of the mean, dB": level(jnp.mean(samples, axis=0))}
    return report
