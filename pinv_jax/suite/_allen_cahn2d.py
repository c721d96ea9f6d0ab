"""Allen-Cahn-2D: the phases before they separated, from a noisy view after it (arXiv:2605.13068).

`x` on 32 x 32 points of a torus, blobs, fronts and rings with values in [-1, 1]; `y` after 60 semi-implicit steps to
time 0.12, clipped to [-1, 1]; noise 0.002 on the observation. Published success: an error of `x` of at most 0.10. A
linear deconvolution that ignores the reaction has an error of 0.02. The recipe `reduced` is the published one with 16
channels and two blocks in place of 48 and four: about an eighteenth of the products.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp

from ..data import interfaces_2d
from ..learn import THREE_STAGE
from ..pde import observed_allen_cahn_2d, wavenumbers_2d
from ..solvers import Box
from ._base import Dataset
from ._fields import PUBLISHED_CG, FieldProblem, Networks, field_inverse
from ._inverse import Schedule

SIZE = 32
NETWORKS = Networks(
    48,
    4,
    "circular",
    "tanh",
    THREE_STAGE["allen_cahn2d"],
    tolerance=0.12,
    rmse_tolerance=0.10,
    linear_solver=PUBLISHED_CG,
)


def linear_deconvolution(dataset: Dataset) -> Callable[..., Any]:
    """Wiener deconvolution of the diffusion alone, `exp(-(0.04 |k|)^2 0.12)`, with a penalty of 1e-3."""
    first, second = wavenumbers_2d(SIZE)
    decay = (1 + 0.002 * 0.04**2 * (first**2 + second**2)) ** -60.0
    gain = jnp.asarray(decay / (decay**2 + 1e-3) * (1 + 1e-3), dataset.train.x.dtype)
    mean, std = dataset.physics.y_mean, dataset.physics.y_std
    return lambda y: jnp.fft.irfft2(gain * jnp.fft.rfft2(mean + std * y), y.shape)


ALLEN_CAHN2D = FieldProblem(
    name="allen-cahn2d",
    summary="the initial phases on 32 x 32 points of a torus from a noisy view after their separation",
    physics=lambda dtype: observed_allen_cahn_2d(SIZE, dtype=dtype),
    sample=lambda dtype: interfaces_2d(SIZE, dtype=dtype),
    noise_std=0.002,
    tolerance=0.0047,
    inverse=functools.partial(field_inverse, width=16, num_blocks=2, padding="circular"),
    schedule=Schedule(16384, 4000, 5, 32, 2e-3, 1e-3, 4, fresh=False),
    sizes=(2000, 240),
    one_scale=True,
    project=Box(-1.0, 1.0),
    networks=NETWORKS,
    reduced=dataclasses.replace(NETWORKS, width=16, num_blocks=2),
    baselines={"deconvolution": linear_deconvolution},
).problem()
