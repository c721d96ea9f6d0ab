"""Restoration through networks that were trained to be surjective: the studies `restore-pairs` and `restore-codec`."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float, PRNGKeyArray

from ..learn import Stage, Term, clipped_adam, fit, imitate, ridge_network, surjective_reconstruction
from ..maps import (
    AbstractSurjection,
    Block,
    ConvDesign,
    DenseSurjection,
    Flatten,
    Natural,
    SurjectiveChain,
    Unshuffle,
    prepare,
    spnn,
)
from ..solvers import quantisation_box
from ._lens_camera import saturating
from ._priors import TrainedPrior
from ._restoration import Degradation, Observation, Task, centred, restoration_study
from ._study import Bench

STEP = 0.5
"""To multiples of which the codec rounds its latent numbers."""


def shaken(side: int, turn: float = 0.12, shift: float = 3.0, num: int = 9) -> np.ndarray:
    """The matrix of a motion blur that is another one everywhere: the camera turns and moves while it looks.

    Means over `2 x 2` pixels follow, so that the matrix has a quarter as many rows as columns.

    Args:
        side: of the square picture.
        turn: by how much in all, radians, around the lower left corner.
        shift: to the right, pixels.
        num: moments in between.
    """
    rows, columns = np.meshgrid(np.arange(side), np.arange(side), indexing="ij")
    total = np.zeros((side * side, side * side))
    for moment in np.linspace(-0.5, 0.5, num):
        angle = turn * moment
        u, v = rows - (side - 1), columns + 0.0
        i = np.clip(u * np.cos(angle) - v * np.sin(angle) + side - 1, 0, side - 1)
        j = np.clip(u * np.sin(angle) + v * np.cos(angle) + shift * moment, 0, side - 1)
        top, left = (np.minimum(np.floor(a), side - 2).astype(int) for a in (i, j))
        for di in (0, 1):
            for dj in (0, 1):
                weight = np.abs(1 - di - (i - top)) * np.abs(1 - dj - (j - left))
                np.add.at(total, (np.arange(side * side), np.ravel((top + di) * side + left + dj)), np.ravel(weight))
    cells = (total / num).reshape(side // 2, 2, side // 2, 2, -1)
    return cells.mean(axis=(1, 3)).reshape(side * side // 4, -1)


def _examples(bench: Bench, trained: TrainedPrior, num: int) -> Array:
    keys = jax.random.split(jax.random.fold_in(bench.key, 1), num)
    return jax.jit(jax.vmap(trained.images.draw))(keys)


class AsPicture(eqx.Module):
    """A vector of observations as a picture of twice its sides."""

    side: int = eqx.field(static=True)

    def __call__(self, y: Float[Array, " m"]) -> Float[Array, "1 h w"]:
        """The values repeated, from between 0 and 1 to between -1 and 1."""
        small = 2 * y.reshape(1, self.side // 2, self.side // 2) - 1
        return jnp.repeat(jnp.repeat(small, 2, axis=1), 2, axis=2)


def _shaken(bench: Bench, trained: TrainedPrior) -> Degradation:
    shape: Any = trained.prior.shape
    half = (1, shape[1] // 2, shape[2] // 2)
    blur = DenseSurjection(jnp.asarray(shaken(shape[1]), bench.dtype), shape, half)
    curve = saturating(half, bench.dtype)
    f = centred(SurjectiveChain([blur, curve, Flatten(half, bench.dtype)]))
    x = _examples(bench, trained, 256 if bench.quick else 4096)
    y = jax.jit(lambda x: jax.lax.map(f, x, batch_size=64))(x)
    found = imitate(
        None,
        (x, y),
        key=bench.key,
        num_steps=20 if bench.quick else 600,
        checkpoint=bench.fits / "stand-in",
        progress=bench.progress,
    )
    bench.keep("restore-pairs stand-in", found.model)
    linear = ridge_network(x, y, num_layers=0, key=bench.key)
    return Degradation(f, linear, enlarge=AsPicture(shape[1]), stand_in=prepare(Natural(found.model)))


RESTORE_PAIRS = restoration_study(
    "restore-pairs",
    "restoration with a diffusion prior: a motion blur known by pairs alone, imitated, and finished on the map itself",
    {"pairs": Task("photographs32", _shaken)},
)


def _rounded(y: Float[Array, "*y"], key: PRNGKeyArray) -> Observation:
    del key
    seen = STEP * jnp.round(y / STEP)
    return Observation(seen, *quantisation_box(seen, STEP))


class Drawn(eqx.Module):
    """A sampler of `learn.fit` for losses without a target."""

    draw: Any

    def __call__(self, key: PRNGKeyArray) -> tuple[Array, Array]:
        """An image, and nothing."""
        x = self.draw(key)
        return x, jnp.zeros((), x.dtype)


def _everything(model: Any) -> Any:
    return model


def encoder(shape: tuple[int, int, int], dtype: DTypeLike, key: PRNGKeyArray) -> AbstractSurjection[Any]:
    """An SPNN from pictures to four channels on a grid a quarter as fine: a quarter as many numbers."""
    return spnn(shape, (Unshuffle(4), Block(4, ConvDesign((32, 32)))), scale_bound=1.0, dtype=dtype, key=key)


def _codec(bench: Bench, trained: TrainedPrior) -> Degradation:
    shape: Any = trained.prior.shape
    num_steps = 20 if bench.quick else 800
    stage = Stage(
        {"reconstruction": Term(surjective_reconstruction)},
        _everything,
        num_steps,
        16,
        clipped_adam(2e-3, num_steps=num_steps, warmup_steps=10),
    )
    f, _ = fit(
        encoder(shape, bench.dtype, bench.key),
        {"codec": stage},
        Drawn(trained.images.draw),  # pyright: ignore[reportCallIssue]
        key=bench.key,
        checkpoint=bench.fits / "codec",
        progress=bench.progress,
    )
    bench.keep("restore-codec", f)
    f = prepare(f)
    x = _examples(bench, trained, 256 if bench.quick else 4096)
    y = jax.jit(lambda f, x: jax.lax.map(f, x, batch_size=64))(f, x)
    linear = ridge_network(x, y, num_layers=0, key=bench.key)
    return Degradation(f, linear, sense=_rounded, enlarge=jax.tree_util.Partial(type(f).pinv, f))


RESTORE_CODEC = restoration_study(
    "restore-codec",
    "restoration with a diffusion prior: the rounded latent numbers of a learned codec, each known up to its cell",
    {"codec": Task("photographs32", _codec)},
)
