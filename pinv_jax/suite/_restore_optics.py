"""Restoration behind optics and a sensor curve: the studies `restore-blur`, `restore-fisheye` and `restore-clip`."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from ..maps import AbstractSurjection, DenseSurjection, Gamma, Resample, VaryingBlur, fisheye
from ._lens import sensed
from ._lens_camera import Camera, blurred, distorted, exposed, saturating
from ._priors import TrainedPrior
from ._restoration import Degradation, Observation, Task, centred, restoration_study
from ._study import Bench

CROP = 2
"""Pixels of a distorted picture that are cut off at each side."""
EXPOSURE = 2.0
"""Times the light that fills the range of the sensor, for `restore-clip`."""


def dense(f: AbstractSurjection[Any]) -> DenseSurjection:
    """A linear surjection as a matrix: at the size of a small picture much faster than solving for its inverse."""
    x, y = f.in_structure(), f.out_structure()
    columns = jax.vmap(f)(jnp.eye(x.size, dtype=x.dtype).reshape(-1, *x.shape))
    return DenseSurjection(columns.reshape(x.size, -1).T, x.shape, y.shape)


def enlarged(camera: Camera, y: Float[Array, "c h w"]) -> Float[Array, "c H W"]:
    """An observation on the grid of the picture, between -1 and 1."""
    return 2 * camera.enlarge(y) - 1


def _behind(camera: Camera, **options: Any) -> Degradation:
    """A camera; the baseline knows its optics and ignores its curve."""
    enlarge = jax.tree_util.Partial(enlarged, camera)
    return Degradation(centred(camera.f), centred(camera.optics), enlarge=enlarge, **options)


def _blur(bench: Bench, trained: TrainedPrior) -> Degradation:
    curve = functools.partial(saturating, dtype=bench.dtype)
    return _behind(blurred(trained.prior.shape, 1.2, 2, curve, bench.dtype))  # pyright: ignore[reportArgumentType]


def _fish_eye(bench: Bench, trained: TrainedPrior) -> Degradation:
    shape: Any = trained.prior.shape
    side = round(shape[1] / 1.5)
    whole = distorted(shape, side, 0.2, bench.dtype)
    coordinates = fisheye(shape, (side, side), 0.2, dtype=bench.dtype).coordinates[:, CROP:-CROP, CROP:-CROP]
    assert whole.lookup is not None
    optics = dense(Resample(shape, coordinates))
    return _behind(Camera(optics, functools.partial(Gamma, dtype=bench.dtype), whole.lookup - CROP))


def _sense(y: Float[Array, "*y"], key: PRNGKeyArray, *, bits: int, clipped: bool) -> Observation:
    del key
    return Observation(*sensed(y, bits, clipped=clipped))


def _sensor(bits: int, *, clipped: bool) -> Any:
    def build(bench: Bench, trained: TrainedPrior) -> Degradation:
        curve = functools.partial(exposed, dtype=bench.dtype, exposure=EXPOSURE if clipped else 1.0)
        optics = VaryingBlur(trained.prior.shape, 0.3, 0.8, dtype=bench.dtype)  # pyright: ignore[reportArgumentType]
        return _behind(Camera(optics, curve), sense=functools.partial(_sense, bits=bits, clipped=clipped))

    return build


RESTORE_BLUR = restoration_study(
    "restore-blur",
    "restoration with a diffusion prior: a blur that varies over the picture, half the pixels, a sensor that saturates",
    {"blur": Task("photographs32", _blur, more_steps=(50,))},
)
RESTORE_FISHEYE = restoration_study(
    "restore-fisheye",
    "restoration with a diffusion prior: a fish-eye, cropped and coarser, and the tone curve of photographs",
    {"fisheye": Task("photographs32", _fish_eye)},
)
RESTORE_CLIP = restoration_study(
    "restore-clip",
    "restoration with a diffusion prior: pictures that are over-exposed and clipped, or rounded to few bits",
    {
        "8 bits, clipped": Task("photographs32", _sensor(8, clipped=True)),
        "3 bits": Task("photographs32", _sensor(3, clipped=False)),
        "3 bits, clipped": Task("photographs32", _sensor(3, clipped=True)),
    },
)
