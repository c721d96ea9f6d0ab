"""What the parts of the study `digits-spnn` share: images, networks, training, and the measures of a classifier."""

import functools
import time
from collections.abc import Callable, Mapping
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int, PRNGKeyArray, PyTree, Scalar

from .. import _store
from ..diagnostics import psnr, wilson_interval
from ..learn import Stage, SurjectiveConstants, cross_entropy, fit, surjective_stages
from ..maps import AbstractMap, AbstractSurjection, Block, ConvDesign, Linear, SurjectiveChain, Unshuffle, spnn
from ._study import Bench

SIZES = {"train": 1047, "val": 250, "test": 500}
NUM_CLASSES = 10


class Labelled(eqx.Module):
    """Images and their labels; the leading axis counts examples."""

    x: Float[Array, "num channels height width"]
    y: Array

    @property
    def pair(self) -> tuple[Array, Array]:
        """What `learn.fit` takes."""
        return self.x, self.y


def digits(dtype: DTypeLike, *, quick: bool) -> dict[str, Labelled]:
    """The 1797 handwritten digits of scikit-learn, 8 x 8, between 0 (paper) and 1 (ink): "train", "val", "test".

    One fixed permutation cuts them; the same writers are in all three parts.

    Raises:
        ValueError: scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ValueError('The digits come with scikit-learn: pip install "pinv_jax[data]"') from error
    images, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(labels))
    x, y = images[order].reshape(-1, 1, 8, 8) / 16, labels[order]
    sizes = {name: size // 4 for name, size in SIZES.items()} if quick else SIZES
    return _cut(x, y, sizes, dtype)


def _cut(x: np.ndarray, y: np.ndarray, sizes: Mapping[str, int], dtype: DTypeLike) -> dict[str, Labelled]:
    parts, start = {}, 0
    for name, size in sizes.items():
        rows = slice(start, start + size)
        parts[name] = Labelled(jnp.asarray(x[rows], dtype), jnp.asarray(y[rows]))
        start += size
    return parts


def digits_network(dtype: DTypeLike, *, key: PRNGKeyArray) -> SurjectiveChain:
    """An SPNN from 1 x 8 x 8 to 10 logits: two blocks on the pixels as a vector, 64 -> 32 -> 10."""
    steps = (
        Unshuffle(8),
        Block(32, ConvDesign((256,), window=1)),
        Block(NUM_CLASSES, ConvDesign((96,), window=1)),
    )
    return spnn((1, 8, 8), steps, dtype=dtype, key=key)


class PlainCNN(AbstractMap):
    """The baseline of a classifier: three 3 x 3 convolutions with ReLUs, two of stride 2, and a linear head.

    Args:
        shape: of an image, `(channels, height, width)`.
        num_outputs: logits.
        width: channels of the first convolution; the others have twice as many.
        dtype: of the parameters.
        key: random key.
    """

    convolutions: tuple[Linear, ...]
    head: Linear
    shape: tuple[int, ...] = eqx.field(static=True)

    def __init__(
        self, shape: tuple[int, ...], num_outputs: int, width: int, *, dtype: DTypeLike | None = None, key: PRNGKeyArray
    ):
        keys = jax.random.split(key, 4)
        positions = -(-shape[1] // 4) * -(-shape[2] // 4)
        sizes = (
            (9 * shape[0], width),
            (9 * width, 2 * width),
            (18 * width, 2 * width),
            (2 * width * positions, num_outputs),
        )
        *convolutions, self.head = (Linear(*pair, dtype=dtype, key=k) for pair, k in zip(sizes, keys, strict=True))
        self.convolutions = tuple(convolutions)
        self.shape = shape

    def __call__(self, x: Float[Array, "*x"]) -> Float[Array, " logits"]:
        """The logits."""
        for layer, stride in zip(self.convolutions, (1, 2, 2), strict=True):
            _, height, width = x.shape
            # A product with unfolded patches, several times faster on a CPU than a convolution of images so small.
            padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1)))
            taps = [padded[:, i : i + height : stride, j : j + width : stride] for i in range(3) for j in range(3)]
            patches = jnp.concatenate(taps)
            y = layer.weight @ patches.reshape(len(patches), -1) + layer.bias[:, None]
            x = jax.nn.relu(y.reshape(-1, *patches.shape[1:]))
        return self.head(jnp.ravel(x))

    def in_structure(self) -> jax.ShapeDtypeStruct:
        """Shape and dtype of an image."""
        return jax.ShapeDtypeStruct(self.shape, self.head.weight.dtype)


class LinearClassifier(AbstractMap):
    """Logits `W x + b` of the pixels.

    Args:
        shape: of an image.
        num_outputs: logits.
        dtype: of the parameters.
        key: random key.
    """

    layer: Linear
    shape: tuple[int, ...] = eqx.field(static=True)

    def __init__(self, shape: tuple[int, ...], num_outputs: int, *, dtype: DTypeLike | None = None, key: PRNGKeyArray):
        self.layer = Linear(int(np.prod(shape)), num_outputs, dtype=dtype, key=key)
        self.shape = shape

    def __call__(self, x: Float[Array, "*x"]) -> Float[Array, " logits"]:
        """The logits."""
        return self.layer(jnp.ravel(x))

    def in_structure(self) -> jax.ShapeDtypeStruct:
        """Shape and dtype of an image."""
        return jax.ShapeDtypeStruct(self.shape, self.layer.weight.dtype)


def similar_cnn(
    shape: tuple[int, ...], num_outputs: int, num_parameters: int, dtype: DTypeLike, *, key: PRNGKeyArray
) -> PlainCNN:
    """The `PlainCNN` whose number of parameters is closest to the given one."""
    positions = -(-shape[1] // 4) * -(-shape[2] // 4)

    def excess(width: int) -> int:
        linear = 9 * shape[0] + 5 + 2 * positions * num_outputs
        return abs(54 * width**2 + linear * width + num_outputs - num_parameters)

    return PlainCNN(shape, num_outputs, min(range(2, 65), key=excess), dtype=dtype, key=key)


def size(model: Any) -> int:
    """The number of parameters of a model, or of parts of it."""
    leaves = jax.tree.leaves(model)
    return sum(leaf.size for leaf in leaves if hasattr(leaf, "size") and jnp.issubdtype(leaf.dtype, jnp.inexact))


def train(
    bench: Bench,
    name: str,
    model: Any,
    stages: Mapping[str, Stage],
    data: Any,
    validation: tuple[Array, Array],
) -> tuple[Any, float]:
    """Trains a model, or reads it back where it is trained already; returns it with the seconds of the training."""
    start = time.perf_counter()
    # not the folder of one part: several parts use the same models, and whichever is first trains them
    folder = bench.fits.parent / name
    model, _ = fit(
        model,
        stages,
        data,
        key=key_of(bench, name),
        validation=validation,
        checkpoint=folder,
        progress=bench.progress,
    )
    if not (folder / "seconds.json").exists():
        _store.write_json(folder / "seconds.json", {"seconds": time.perf_counter() - start})
        bench.keep(name, model)
    return model, _store.read_json(folder / "seconds.json")["seconds"]


def key_of(bench: Bench, name: str) -> PRNGKeyArray:
    """A random key for a model that does not depend on the part that trains it."""
    return jax.random.fold_in(jax.random.key(bench.seed), np.uint32(sum(map(ord, name))))


def constants(bench: Bench) -> SurjectiveConstants:
    """Of the recipe, for small images: higher rates, smaller batches, less reconstruction in the first stage."""
    return SurjectiveConstants(
        epochs=(20, 20) if bench.quick else (60, 60),
        batch_size=64,
        learning_rates=(3e-3, 1e-3),
        reconstruction_weights=(10.0, 40.0),
        warmup_steps=20,
    )


def task_score(
    model: Any, start_model: Any, validation: PyTree, key: PRNGKeyArray, *, task: Callable[..., Any]
) -> Scalar:
    """The task on validation data, of any model."""
    xs, ys = validation
    return jnp.mean(jax.vmap(functools.partial(task, model))(xs, ys, jax.random.split(key, xs.shape[0])))


def task_alone(num_examples: int, chosen: SurjectiveConstants, task: Callable[..., Any]) -> dict[str, Stage]:
    """The first stage of the recipe without reconstruction, which any model can be trained by."""
    stage = surjective_stages(task, num_examples, constants=chosen)["task"].without("reconstruction", "right_inverse")
    select = functools.partial(task_score, task=task)
    return {"task": Stage(stage.terms, stage.trainable, stage.num_steps, stage.batch_size, stage.optimiser, select)}


def digits_spnn(bench: Bench, data: Mapping[str, Labelled]) -> tuple[SurjectiveChain, float]:
    """The SPNN of the study, by the recipe in two stages; the same one in every part."""
    model = digits_network(bench.dtype, key=key_of(bench, "spnn"))
    stages = surjective_stages(cross_entropy, data["train"].x.shape[0], constants=constants(bench))
    return train(bench, "spnn", model, stages, data["train"].pair, data["val"].pair)


def digits_cnn(bench: Bench, data: Mapping[str, Labelled], num_parameters: int) -> tuple[PlainCNN, float]:
    """The plain network, with the steps, batches and optimiser of the first stage of the SPNN."""
    model = similar_cnn((1, 8, 8), NUM_CLASSES, num_parameters, bench.dtype, key=key_of(bench, "cnn"))
    return train(
        bench,
        "cnn",
        model,
        task_alone(data["train"].x.shape[0], constants(bench), cross_entropy),
        data["train"].pair,
        data["val"].pair,
    )


@eqx.filter_jit
def each(f: Callable[..., Any], *batches: Any) -> Any:
    """`f` on every example, compiled."""
    return jax.vmap(f)(*batches)


def accuracy_cells(num_right: int, num: int) -> dict[str, Any]:
    """Two columns of a table: the share of right answers and its interval, in per cent."""
    low, high = wilson_interval(num_right, num)
    return {"accuracy %": 100 * num_right / num, "95 % interval": f"{100 * low:.1f}-{100 * high:.1f}"}


def num_right(model: Callable[..., Any], x: Array, labels: Int[Array, " num"]) -> int:
    """How many examples have their largest logit at their label."""
    return int(jnp.sum(jnp.argmax(each(model, x), axis=-1) == labels))


def image_psnr(truth: Float[Array, "*x"], guess: Float[Array, "*x"]) -> Scalar:
    """The peak signal-to-noise ratio of an image between 0 and 1."""
    return psnr(truth, guess, data_range=1.0)


def there_and_back(g: AbstractSurjection[Any], x: Float[Array, "*x"]) -> Float[Array, "*x"]:
    """`g†(g(x))`."""
    return g.pinv(g(x))
