"""Generated images with four independent attributes: shape, hue, size and slant of one coloured thing."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Key, Scalar

from ..diffusion import Prior
from ..learn import SurjectiveConstants, attributes, surjective_stages
from ..maps import Block, ConvDesign, Ravel, SurjectiveChain, Unshuffle, spnn
from ._digits import Labelled, PlainCNN, key_of, similar_cnn, task_alone, train
from ._guided import dense_prior
from ._study import Bench

SIZE = 12
ATTRIBUTES = ("cross", "cold", "large", "leans right")


class Shapes(eqx.Module):
    """Draws a cross or a disc, warm or cold, small or large, leaning left or right: `key -> (image, attributes)`.

    Attributes are independent and equally likely. What they leave open is drawn as well: the place, the exact hue,
    radius and slant, the brightness and the grey of the background.

    Args:
        points: coordinates of the pixels along an axis, from -1 to 1.
    """

    points: Float[Array, " n"]

    def __call__(self, key: Key[Array, ""]) -> tuple[Float[Array, "3 n n"], Bool[Array, "4"]]:
        """An image between 0 and 1, and which of `ATTRIBUTES` hold."""
        label_key, draw_key = jax.random.split(key)
        labels = jax.random.bernoulli(label_key, 0.5, (len(ATTRIBUTES),))
        return self.draw(labels, key=draw_key), labels

    def draw(self, labels: Bool[Array, "4"], *, key: Key[Array, ""]) -> Float[Array, "3 n n"]:
        """An image with the given attributes."""
        dtype = self.points.dtype
        draws = jax.random.uniform(key, (7,), dtype)
        cross, cold, large, right = labels
        row, column = jnp.meshgrid(self.points, self.points, indexing="ij")
        row, column = row - 0.3 * (draws[0] - 0.5), column - 0.3 * (draws[1] - 0.5)
        slant = (0.3 + 0.3 * draws[2]) * jnp.where(right, 1.0, -1.0).astype(dtype)
        radius = jnp.where(large, 0.7 + 0.15 * draws[3], 0.4 + 0.15 * draws[3])
        across, along = jnp.abs(column + slant * row) / radius, jnp.abs(row) / radius
        disc = jnp.sqrt(across**2 + along**2)
        bars = jnp.minimum(jnp.maximum(across, 3 * along), jnp.maximum(3 * across, along))
        spacing = self.points[1] - self.points[0]
        inside = jax.nn.sigmoid((1 - jnp.where(cross, bars, disc)) * radius / (0.25 * spacing))
        hue = jnp.where(cold, 0.5 + 0.18 * draws[4], -0.06 + 0.18 * draws[4])
        colour = (0.75 + 0.25 * draws[5]) * _saturated(hue)
        ground = 0.05 + 0.2 * draws[6]
        return ground + inside[None] * (colour[:, None, None] - ground)


def _saturated(hue: Scalar) -> Float[Array, "3"]:
    """Red, green and blue of a hue between -1 and 1 at full saturation."""
    offsets = jnp.asarray([0.0, 2 / 3, 1 / 3], hue.dtype)
    return jnp.clip(jnp.abs(6 * ((hue + offsets) % 1.0) - 3) - 1, 0.0, 1.0)


def shapes(size: int = 16, *, dtype: DTypeLike | None = None) -> Shapes:
    """The generator of images of `size x size` pixels."""
    return Shapes(
        jnp.asarray((np.arange(size) + 0.5) * 2 / size - 1, jnp.result_type(float if dtype is None else dtype))
    )


def shape_data(num: int, dtype: DTypeLike, *, key: Key[Array, ""]) -> Labelled:
    """So many images and their attributes."""
    x, y = jax.jit(jax.vmap(shapes(SIZE, dtype=dtype)))(jax.random.split(key, num))
    return Labelled(x, y)  # pyright: ignore[reportCallIssue]


class Signed(eqx.Module):
    """Images between -1 and 1, without their attributes: what a prior is trained with."""

    draw: Shapes

    def __call__(self, key: Key[Array, ""]) -> Float[Array, "3 n n"]:
        """One image."""
        return 2 * self.draw(key)[0] - 1


def _constants(bench: Bench) -> SurjectiveConstants:
    return SurjectiveConstants(
        epochs=(8, 4) if bench.quick else (20, 20),
        batch_size=64,
        learning_rates=(3e-3, 1e-3),
        reconstruction_weights=(10.0, 40.0),
        warmup_steps=20,
    )


def _splits(bench: Bench, name: str) -> tuple[Labelled, Labelled]:
    """Images for training and for selection, drawn for this model alone."""
    keys = jax.random.split(key_of(bench, f"{name} data"))
    num = 512 if bench.quick else 2048
    return shape_data(num, bench.dtype, key=keys[0]), shape_data(256, bench.dtype, key=keys[1])


def attribute_network(bench: Bench) -> SurjectiveChain:
    """A surjective network from images between 0 and 1 to the logits of `ATTRIBUTES`; trained, or read back."""
    steps = (Unshuffle(4), Block(16, ConvDesign((64,), window=1)), Ravel(), Block(4, ConvDesign((96,), window=1)))
    model = spnn((3, SIZE, SIZE), steps, scale_bound=1.0, dtype=bench.dtype, key=key_of(bench, "attributes"))
    data, validation = _splits(bench, "attributes")
    stages = surjective_stages(attributes, len(data.x), constants=_constants(bench))
    return train(bench, "attributes", model, stages, data.pair, validation.pair)[0]


def attribute_judge(bench: Bench) -> PlainCNN:
    """A convolutional network that says the same, trained on images of its own."""
    model = similar_cnn((3, SIZE, SIZE), len(ATTRIBUTES), 20_000, bench.dtype, key=key_of(bench, "judge"))
    data, validation = _splits(bench, "judge")
    stages = task_alone(len(data.x), _constants(bench), attributes)
    return train(bench, "judge", model, stages, data.pair, validation.pair)[0]


def shape_prior(bench: Bench) -> Prior:
    """A prior for the images, between -1 and 1, trained without their attributes."""
    images: Any = Signed(shapes(SIZE, dtype=bench.dtype))  # pyright: ignore[reportCallIssue]
    return dense_prior(bench, "prior", images, (3, SIZE, SIZE), width=384, num_steps=6000)
