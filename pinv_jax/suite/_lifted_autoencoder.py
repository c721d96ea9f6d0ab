"""The study `lifted-autoencoder`: what an encoder made of an image, undone without its decoder.

- `digits`: encoders of one layer, one trained by back-propagation and one lifted, by `lifted.FullSplitting`;
- `perceptron`: the same on patches of photographs;
- `two-layer`: an encoder of two layers, by `lifted.BlockInversion`;
- `convolutional`: one of six layers, by the same.

Images and codes have the published sizes, 28 x 28 and 300. The published digits have to be fetched: the ones here are
those of scikit-learn, enlarged from 8 x 8, hence of only 64 dimensions, from which any decoder profits and total
variation does not. `autoencoder_study` takes others.
"""

import dataclasses
import functools
import time
from collections.abc import Callable, Mapping
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Scalar

from .. import lifted, plots
from .._problem import Problem
from ..diagnostics import psnr
from ..learn import Stage, Term
from ..solvers import AbstractSolver, solve_batch
from ._digits import digits, each
from ._lifted_encoders import CHANNELS, convolutional_autoencoder, dense_autoencoder, halves
from ._lifted_methods import GRADIENT, Method, ridge, trained
from ._lifted_pnn import NoisyPatch, tiles
from ._psf_photographs import TEST, TRAIN, grey
from ._study import Bench, Findings, Study

ALPHAS = (0.03, 0.009, 0.003, 0.001)
PUBLISHED = {"pixels": 784, "hidden": 400, "code": 300}
BATCH = 50


class Images(eqx.Module):
    """Images between 0 and 1 to train with, to choose with, and to test on; the leading axis counts them."""

    train: Float[Array, "n h w"]
    val: Float[Array, "m h w"]
    test: Float[Array, "k h w"]


# Training -------------------------------------------------------------------------------------------------------------


def by_back_propagation(num_steps: int) -> Stage:
    """Adam on half the squared error of the image, with a rate that falls to nothing."""
    rate = optax.cosine_decay_schedule(2e-3, num_steps)
    return Stage({"loss": Term(lifted.network_loss)}, _whole, num_steps, BATCH, optax.adam(rate))


def _whole(network: Any) -> Any:
    return network


def _trained(bench: Bench, name: str, network: Any, stage: Any, images: Images) -> tuple[Any, float]:
    """The network after training on the images themselves, and the seconds without compilation."""
    method = Method(name, lambda num: stage, GRADIENT)
    found = trained(bench, name, method, network, (images.train, images.train), stage.num_steps)
    bench.keep(f"autoencoder-{name}", found.network)
    return found.network, found.seconds


# Inversion ------------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Plan:
    """Rows of a table: one method, with several weights of the regulariser.

    Attributes:
        name: of the method.
        make: `(alpha, regulariser) -> solver`.
        alphas: the weights.
        max_steps: at most.
        box: whether the range of the pixels is known as well.
        start: "mean image", or "linear", what the best linear decoder says.
    """

    name: str
    make: Callable[[float, Any], AbstractSolver[Any]]
    alphas: tuple[float, ...]
    max_steps: int
    box: bool = True
    start: str = "mean image"


def regulariser(*, box: bool) -> Any:
    """Total variation, alone or with the range of the pixels."""
    return lifted.TotalVariation() + lifted.Box(0.0, 1.0) if box else lifted.TotalVariation()


def inverted(
    encoder: Any, solver: AbstractSolver[Any], codes: Float[Array, "n m"], start: Float[Array, "n h w"], max_steps: int
) -> tuple[Any, float]:
    """The solution for every code, and the seconds without compilation."""
    problem = Problem(encoder, codes)
    jax.block_until_ready(solve_batch(problem, solver, start, max_steps=0).value)
    begun = time.perf_counter()
    solution = jax.block_until_ready(solve_batch(problem, solver, start, max_steps=max_steps))
    return solution, time.perf_counter() - begun


@eqx.filter_jit
def _ratios(truth: Float[Array, "n h w"], estimate: Float[Array, "n h w"]) -> Float[Array, " n"]:
    def one(truth: Array, estimate: Array) -> Scalar:
        return psnr(truth, estimate, data_range=1.0)

    return jax.vmap(one)(truth, estimate)


@eqx.filter_jit
def _code_error(encoder: Any, codes: Array, estimate: Array) -> Array:
    return jnp.linalg.norm(jax.vmap(encoder)(estimate) - codes) / jnp.linalg.norm(codes)


def _row(
    encoder: Any,
    codes: Array,
    truth: Array,
    estimate: Array,
    labels: Mapping[str, Any],
    solution: Any = None,
    seconds: float | None = None,
) -> dict[str, Any]:
    ratios = _ratios(truth, estimate)
    return dict(labels) | {
        "steps": None if solution is None else float(jnp.median(solution.stats.num_steps)),
        "solved %": None if solution is None else 100 * float(jnp.mean(solution.success)),
        "|N(u) - f| / |f|": float(_code_error(encoder, codes, estimate)),
        "PSNR dB": float(jnp.mean(ratios)),
        "least PSNR": float(jnp.min(ratios)),
        "ms per image": None if seconds is None else 1e3 * seconds / len(truth),
    }


def table(
    name: str, network: Any, num_layers: int, forward: Callable[[Any], Any], images: Images, plans: list[Plan]
) -> tuple[list[dict[str, Any]], dict[str, np.ndarray]]:
    """The rows of one autoencoder, and the images of the best weight of each method.

    Args:
        name: of the encoder.
        network: the autoencoder.
        num_layers: of its encoder.
        forward: the encoder as the solvers take it.
        images: of the study; inverted are those of test.
        plans: the methods.
    """
    encoder, decode = halves(network, num_layers)
    encoder = forward(encoder)
    encode = functools.partial(each, encoder)
    codes, truth = encode(images.test), images.test
    mean = jnp.broadcast_to(jnp.mean(images.train, axis=0)[None], truth.shape)
    linear = ridge(encode(images.train), images.train, (encode(images.val), images.val))(codes)
    estimates = {"mean image": mean, "trained decoder": each(decode, codes), "best linear decoder": linear}
    rows, shown = [], {"image": truth} | estimates
    for method, estimate in estimates.items():
        labels = {"encoder": name, "method": method, "start": "", "alpha": None}
        rows.append(_row(encoder, codes, truth, estimate, labels))
    # not from black: of a deep encoder most units are off there, and no method gets away from it
    starts = {"mean image": mean, "linear": jnp.clip(linear, 0, 1)}
    for plan in plans:
        title = f"{plan.name}, TV and box" if plan.box else f"{plan.name}, TV"
        found = []
        for alpha in plan.alphas:
            solver = plan.make(alpha, regulariser(box=plan.box))
            solution, seconds = inverted(encoder, solver, codes, starts[plan.start], plan.max_steps)
            labels = {"encoder": name, "method": title, "start": plan.start, "alpha": alpha}
            rows.append(_row(encoder, codes, truth, solution.value, labels, solution, seconds))
            found.append((rows[-1]["PSNR dB"], solution.value))
        shown[f"{title}, from {plan.start}"] = max(found, key=lambda pair: pair[0])[1]
    return rows, {f"{name}, {what}": np.clip(np.asarray(stack)[:8], 0, 1) for what, stack in shown.items()}


def _as_perceptron(encoder: Any) -> Any:
    layer = encoder.layers[0]
    linear = layer.affine.linear
    return lifted.Perceptron(linear.weight, linear.bias, layer.activation, shape=encoder.structure.shape)


def _same(encoder: Any) -> Any:
    return encoder


def perceptron(bench: Bench, source: Callable[[Bench], Images]) -> Findings:
    """One layer: the problem is convex, and `FullSplitting` finds its minimiser."""
    images = source(bench)
    shape = images.train.shape[1:]
    (code,) = _published(shape, "code")
    network = dense_autoencoder(shape, (code,), bench.dtype, bench.key)
    num_steps, alphas = (200, (0.003,)) if bench.quick else (3000, ALPHAS)
    stages = {
        "back-propagation": by_back_propagation(num_steps),
        "lifted": lifted.ImplicitGradient(network, num_steps // 10, BATCH, tau=10.0, num_sweeps=10),
    }
    rows, arrays, seconds = [], {}, {}
    for name, stage in stages.items():
        found, seconds[name] = _trained(bench, name, network, stage, images)
        plans = [
            Plan("full splitting", lifted.FullSplitting, alphas, 3000, box=False),
            Plan("full splitting", lifted.FullSplitting, alphas, 3000),
            Plan("variational", lifted.VariationalDescent, alphas, 200 if bench.quick else 2000),
        ]
        some, kept = table(name, found, 1, _as_perceptron, images, plans[1:] if bench.quick else plans)
        rows += some
        arrays |= kept
    return Findings(rows, _sizes(images, (code,)) | {"seconds of training": seconds}, arrays)


def _published(shape: tuple[int, ...], *parts: str) -> tuple[int, ...]:
    """The published widths, relative to the number of pixels."""
    return tuple(round(int(np.prod(shape)) * PUBLISHED[part] / PUBLISHED["pixels"]) for part in parts)


def two_layer(bench: Bench, source: Callable[[Bench], Images]) -> Findings:
    """Two layers: no longer convex, and slow."""
    images = source(bench)
    shape = images.train.shape[1:]
    widths = _published(shape, "hidden", "code")
    network = dense_autoencoder(shape, widths, bench.dtype, bench.key)
    found, seconds = _trained(bench, "two-layer", network, by_back_propagation(200 if bench.quick else 3000), images)
    few = _few(images, 12)
    rows, arrays = table("two layers", found, 2, _same, few, deep_plans(bench, 10_000))
    return Findings(rows, _sizes(few, widths) | {"seconds of training": seconds}, arrays)


def convolutional(bench: Bench, source: Callable[[Bench], Images]) -> Findings:
    """Six layers, five of them convolutions."""
    images = source(bench)
    shape = images.train.shape[1:]
    (code,) = _published(shape, "code")
    network = convolutional_autoencoder(shape, code, bench.dtype, bench.key)
    stage = by_back_propagation(40 if bench.quick else 3000)
    found, seconds = _trained(bench, "convolutional", network, stage, images)
    few = _few(images, 12)
    rows, arrays = table("six layers", found, 6, _same, few, deep_plans(bench, 5000))
    return Findings(rows, _sizes(few, (*CHANNELS, code)) | {"seconds of training": seconds}, arrays)


def _few(images: Images, num: int) -> Images:
    """With fewer images of test, from all over them."""
    picked = np.linspace(0, len(images.test) - 1, min(num, len(images.test))).astype(int)
    return Images(images.train, images.val, images.test[picked])


def deep_plans(bench: Bench, max_steps: int) -> list[Plan]:
    """Block inversion with so many steps, and descent through back-propagation, which needs fewer."""
    alphas = ALPHAS[-1:] if bench.quick else ALPHAS[1::2]
    blocks, steps = (100, 50) if bench.quick else (max_steps, 1000)
    plans = [
        Plan("block inversion", lifted.BlockInversion, alphas, blocks, box=False),
        Plan("block inversion", lifted.BlockInversion, alphas, blocks),
        Plan("block inversion", lifted.BlockInversion, alphas, blocks, start="linear"),
        Plan("variational", lifted.VariationalDescent, alphas, steps),
        Plan("variational", lifted.VariationalDescent, alphas, steps, start="linear"),
    ]
    return plans[1::2] if bench.quick else plans


def _sizes(images: Images, widths: tuple[int, ...]) -> dict[str, Any]:
    return {
        "images": {"training": len(images.train), "test": len(images.test), "pixels": images.train[0].size},
        "widths": {f"layer {i + 1}": width for i, width in enumerate(widths)},
    }


# Where the images are from --------------------------------------------------------------------------------------------


def digit_images(bench: Bench) -> Images:
    """The digits of scikit-learn, enlarged from 8 x 8 to 28 x 28 pixels."""
    side = 12 if bench.quick else 28
    parts = digits(bench.dtype, quick=bench.quick)
    x = {name: jax.image.resize(part.x[:, 0], (len(part.x), side, side), "linear") for name, part in parts.items()}
    return Images(x["train"], x["val"], x["test"][: 6 if bench.quick else 20])


def patch_images(bench: Bench) -> Images:
    """Patches of photographs of scikit-image; those of test are of other photographs."""
    side = 12 if bench.quick else 28
    train, test = grey(TRAIN, 6 * side, bench.dtype), grey(TEST, 6 * side, bench.dtype)
    num = 200 if bench.quick else 3000
    sampler = NoisyPatch(train, side, 0.0)
    patches, _ = jax.jit(jax.vmap(sampler))(jax.random.split(jax.random.key(0), num + num // 10))
    return _few(Images(patches[:num], patches[num:], tiles(test, side)), 6 if bench.quick else 20)


def autoencoder_study(images: ArrayLike, *, num_test: int = 20) -> Study:
    """The study with images of one's own in all its parts; digits of 28 x 28 pixels give the published sizes.

    ```python
    from pathlib import Path
    from pinv_jax import io, suite

    images = io.read_idx("train-images-idx3-ubyte.gz") / 255
    report = suite.run(suite.autoencoder_study(images), suite.Options(), Path("results/autoencoder-mnist"))
    print(suite.format_table(report))
    ```

    Images in a folder are read by `io.read_image_folder`.

    Args:
        images: shape `(num, height, width)`, between 0 (dark) and 1; both sides multiples of four for the part
            `convolutional`. One fixed permutation cuts them: a tenth, at most 1000, to choose the best linear decoder
            with, `num_test` to invert, the rest to train.
        num_test: see above.

    Raises:
        ValueError: another shape or range, or too few images.
    """
    array = np.asarray(images)
    if array.ndim != 3 or not np.issubdtype(array.dtype, np.floating):
        raise ValueError(
            f"images have shape {array.shape} and type {array.dtype}; expected (num, height, width) and floating "
            "numbers: divide bytes by 255."
        )
    if not (np.all(array >= 0) and np.all(array <= 1)):
        raise ValueError(f"images lie between {array.min():.3g} and {array.max():.3g}; expected 0 to 1.")
    num_val = min(1000, len(array) // 10)
    if num_test < 1 or len(array) - num_val - num_test < BATCH or num_val < 1:
        raise ValueError(f"{len(array)} images with num_test={num_test}; expected {BATCH} or more left to train.")
    order = np.random.default_rng(0).permutation(len(array))

    def source(bench: Bench) -> Images:
        shuffled = jnp.asarray(array[order], bench.dtype)
        return Images(shuffled[num_test + num_val :], shuffled[num_test : num_test + num_val], shuffled[:num_test])

    return _study("lifted-autoencoder-" + "x".join(map(str, array.shape)), {}, source)


def figures(found: Mapping[str, Findings]) -> dict[str, Any]:
    """Images, and what every method made of their codes."""
    drawn = {}
    for part, findings in found.items():
        rows = {name.replace(", ", ",\n"): stack for name, stack in findings.arrays.items()}
        drawn[part] = plots.image_grid(rows, limits=(0.0, 1.0))
    return drawn


def _study(name: str, more: Mapping[str, Callable[[Bench], Findings]], source: Callable[[Bench], Images]) -> Study:
    parts = {"perceptron": perceptron, "two-layer": two_layer, "convolutional": convolutional}
    return Study(
        name=name,
        summary="codes of trained encoders turned back into images without their decoders",
        reference="X. Wang, M. Benning, A lifted Bregman formulation for the inversion of deep neural networks, 2023, "
        "arXiv:2303.01965",
        recipes=dict(more) | {part: functools.partial(run, source=source) for part, run in parts.items()},
        figures=figures,
    )


LIFTED_AUTOENCODER = _study(
    "lifted-autoencoder", {"digits": functools.partial(perceptron, source=digit_images)}, patch_images
)
