"""The study `lifted-denoise`: networks on handwritten digits, trained lifted and by back-propagation.

- `autoencoder`: a sparse denoising autoencoder of five layers, its code soft-thresholded, at equal work and at equal
  time; beside it the mean image, the best linear denoiser and the noisy image.
- `classifier`: a network with a softmax head; mini-batches and full batches, one sweep and ten.
"""

from collections.abc import Mapping
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.typing import DTypeLike
from jaxtyping import Array, Float, PRNGKeyArray

from .. import lifted, plots
from ..diagnostics import psnr, ssim
from ..maps import Linear
from ._digits import NUM_CLASSES, digits
from ._lifted_methods import (
    GRADIENT,
    SWEEP,
    Method,
    compared,
    file_name,
    gradient_methods,
    lifted_methods,
    objective,
    ridge,
    trained,
)
from ._study import Bench, Findings, Study

NOISE = 0.2
"""Standard deviation of the noise on pixels between 0 and 1."""
THRESHOLD, ALPHA = 0.1, 0.02
"""Of the code: where it is soft-thresholded, and the weight of its 1-norm in training."""
CODE = 3
"""The number of the layer that is the code."""
BATCH = 50


def chain(sizes: tuple[int, ...], activations: tuple[Any, ...], dtype: DTypeLike, key: PRNGKeyArray) -> Any:
    """A `LiftedNetwork` of dense layers."""
    keys = jax.random.split(key, len(activations))
    layers = [
        lifted.Layer(Linear(a, b, dtype=dtype, key=k), activation)
        for a, b, activation, k in zip(sizes[:-1], sizes[1:], activations, keys, strict=True)
    ]
    return lifted.LiftedNetwork(layers, jax.ShapeDtypeStruct(sizes[:1], dtype))


def sparse_autoencoder(size: int, dtype: DTypeLike, key: PRNGKeyArray) -> Any:
    """Five layers of one width: ReLU, ReLU, soft-thresholding (the code), ReLU, and none."""
    relu = lifted.ReLU()
    return chain((size,) * 6, (relu, relu, lifted.SoftThreshold(THRESHOLD), relu, lifted.Identity()), dtype, key)


class Noisy(eqx.Module):
    """A sampler for `fit`: a random image with noise drawn anew, and without.

    Args:
        images: of training.
    """

    images: Float[Array, "n d"]

    def __call__(self, key: PRNGKeyArray) -> tuple[Float[Array, " d"], Float[Array, " d"]]:
        """One pair `(noisy, image)`."""
        which, noise = jax.random.split(key)
        image = self.images[jax.random.randint(which, (), 0, len(self.images))]
        return image + NOISE * jax.random.normal(noise, image.shape, image.dtype), image


@eqx.filter_jit
def _denoised(network: Any, y: Float[Array, "n d"]) -> Float[Array, "n d"]:
    return jax.vmap(network)(y)


@eqx.filter_jit
def _nonzero(network: Any, y: Float[Array, "n d"]) -> Array:
    return jnp.mean(jax.vmap(lambda y: network.states(y)[CODE - 1])(y) != 0)


def quality(truth: Float[Array, "n d"], estimate: Float[Array, "n d"]) -> dict[str, float]:
    """PSNR and SSIM of square images between 0 and 1, to which the estimates are clipped."""
    side = round(truth.shape[1] ** 0.5)
    shown = jnp.clip(estimate, 0, 1).reshape(-1, side, side)
    truth = truth.reshape(-1, side, side)
    ratios = jax.vmap(lambda a, b: psnr(a, b, data_range=1.0))(truth, shown)
    alike = jax.vmap(lambda a, b: ssim(a, b, data_range=1.0))(truth, shown)
    return {"PSNR dB": float(jnp.mean(ratios)), "least PSNR": float(jnp.min(ratios)), "SSIM": float(jnp.mean(alike))}


def autoencoder(bench: Bench) -> Findings:
    """The denoising autoencoder; images and noise of training come in the same random order to every method."""
    parts = digits(bench.dtype, quick=bench.quick)
    clean = {name: part.x.reshape(len(part.x), -1) for name, part in parts.items()}
    noise_key, net_key = jax.random.split(bench.key)
    mean = jnp.mean(clean["train"], axis=0, keepdims=True)
    centred = {name: x - mean for name, x in clean.items()}
    seen = {
        name: x + NOISE * jax.random.normal(jax.random.fold_in(noise_key, i), x.shape, x.dtype)
        for i, (name, x) in enumerate(centred.items())
    }
    network = sparse_autoencoder(mean.shape[1], bench.dtype, net_key)
    sparsity = {CODE: ALPHA}
    num_steps = 20 if bench.quick else 1500
    taus, rates = ((10.0,), (0.03,)) if bench.quick else ((1.0, 10.0, 100.0), (0.01, 0.03, 0.1))
    implicit = () if bench.quick else ((1.0, 0.03), (10.0, 0.03))
    lifted_ones = lifted_methods(network, BATCH, taus, 15, sparsity=sparsity)
    others = gradient_methods(BATCH, sgd=rates, adam=(1e-3,), implicit=implicit, sparsity=sparsity)
    data = seen["train"], centred["train"]
    best_linear = ridge(*data, (seen["val"], centred["val"]))
    plain = {
        "noisy image": seen["test"],
        "mean image": jnp.zeros_like(seen["test"]),
        "best linear denoiser": best_linear(seen["test"]),
    }
    rows = [_row("", name, quality(clean["test"], estimate + mean)) for name, estimate in plain.items()]
    images = {"digit": clean["test"]} | {name: estimate + mean for name, estimate in plain.items()}
    for equal, method, training in compared(bench, network, Noisy(centred["train"]), lifted_ones, others, num_steps):
        if training.network is None:
            rows.append(_row(equal, method.name, {}, training=training, method=method))
            continue
        estimate = _denoised(training.network, seen["test"]) + mean
        cells = {
            "objective": objective(training.network, *data, sparsity),
            "code nonzero %": 100 * float(_nonzero(training.network, seen["test"])),
        }
        rows.append(
            _row(equal, method.name, quality(clean["test"], estimate) | cells, training=training, method=method)
        )
        if equal == "products":
            images[method.name] = estimate
            bench.keep(f"denoise-{file_name(method.name)}", training.network)
    side = round(mean.shape[1] ** 0.5)
    shown = {name: np.clip(np.asarray(stack)[:8].reshape(-1, side, side), 0, 1) for name, stack in images.items()}
    measures = {"images": {name: len(x) for name, x in clean.items()}, "noise": NOISE, "code weight": ALPHA}
    return Findings(rows, measures, shown)


def _row(equal: str, name: str, cells: Mapping[str, float], training: Any = None, method: Any = None) -> dict[str, Any]:
    """A line of the table; what a method does not have is empty, and all of it where the loss became infinite."""
    columns = ("objective", "code nonzero %", "PSNR dB", "least PSNR", "SSIM")
    return {
        "equal": equal,
        "method": name,
        "steps": None if training is None else training.steps,
        "products": None if training is None else round(training.steps * method.products),
        "seconds": None if training is None else training.seconds,
    } | {column: cells.get(column) for column in columns}


def classifier_network(dtype: DTypeLike, key: PRNGKeyArray) -> Any:
    """64, 64, 64 pixels and units to 10 classes: two layers with ReLUs, and a softmax."""
    return chain((64, 64, 64, NUM_CLASSES), (lifted.ReLU(), lifted.ReLU(), lifted.Softmax()), dtype, key)


def classifier_methods(network: Any, num_train: int, *, quick: bool) -> list[tuple[Method, int]]:
    """The methods and their steps: 20 epochs of batches of 100, or 400 full batches."""
    batch = min(100, num_train)
    epochs = 3 if quick else 20
    steps, sweeps = epochs * (num_train // batch), 30 if quick else 400
    taus = (1.0,) if quick else (0.1, 1.0, 10.0)
    one_sweep = [] if quick else lifted_methods(network, batch, (1.0,), 1)
    found = [(method, steps) for method in [*lifted_methods(network, batch, taus, 10), *one_sweep]]
    rules: dict[str, Any] = {"Nesterov": "nesterov"}
    if not quick:
        rules |= {"plain": "plain", "heavy ball": "heavy-ball", "Adam, rate 0.001": optax.adam(1e-3)}
    for name, rule in rules.items():
        stage = lambda num, rule=rule: lifted.BlockDescent(network, num, num_train, rule=rule)
        # Adam brings its own step sizes; momentum asks for the energy before and after
        work = {"plain": SWEEP, "Adam, rate 0.001": SWEEP - 3}.get(name, SWEEP + 2)
        found.append((Method(f"lifted descent, {name}", stage, work), sweeps))
    found += [(method, steps) for method in gradient_methods(batch, sgd=(0.1,), adam=(1e-3,))]
    full = gradient_methods(num_train, sgd=(0.1,), adam=() if quick else (1e-3,))
    renamed = [Method(f"{method.name}, full batches", method.stage, GRADIENT) for method in full]
    return found + [(method, sweeps) for method in renamed]


@eqx.filter_jit
def right(network: Any, x: Float[Array, "n d"], labels: Array) -> Array:
    """Per cent of labels with the largest output."""
    return 100 * jnp.mean(jnp.argmax(jax.vmap(network)(x), axis=1) == labels)


def classifier(bench: Bench) -> Findings:
    """Loss and accuracy by method, from one start; epochs of mini-batches are equal, and sweeps of full ones."""
    parts = digits(bench.dtype, quick=bench.quick)
    x = {name: part.x.reshape(len(part.x), -1) for name, part in parts.items()}
    targets = jax.nn.one_hot(parts["train"].y, NUM_CLASSES, dtype=bench.dtype)
    network = classifier_network(bench.dtype, bench.key)
    rows = []
    commonest = jnp.argmax(jnp.bincount(parts["train"].y, length=NUM_CLASSES))
    shares = [100 * float(jnp.mean(parts[name].y == commonest)) for name in ("train", "test")]
    rows.append(_classifier_row("commonest class", None, 0, shares))
    for i, (method, steps) in enumerate(classifier_methods(network, len(x["train"]), quick=bench.quick)):
        training = trained(bench, f"{i}", method, network, (x["train"], targets), steps)
        if training.network is None:
            rows.append(_classifier_row(method.name, training, method.products, [None, None]))
            continue
        shares = [float(right(training.network, x[name], parts[name].y)) for name in ("train", "test")]
        loss = objective(training.network, x["train"], targets)
        rows.append(_classifier_row(method.name, training, method.products, shares, loss))
    return Findings(rows, {"digits": {name: len(part) for name, part in x.items()}})


def _classifier_row(
    name: str, training: Any, products: float | int, shares: Any, loss: float | None = None
) -> dict[str, Any]:
    return {
        "method": name,
        "steps": None if training is None else training.steps,
        "products": None if training is None else round(training.steps * products),
        "seconds": None if training is None else training.seconds,
        "cross-entropy": loss,
        "right in training %": shares[0],
        "right in test %": shares[1],
    }


def figures(found: Mapping[str, Findings]) -> dict[str, Any]:
    """Digits before and after denoising."""
    if "autoencoder" not in found:
        return {}
    rows = {name.replace(", ", ",\n", 1): stack for name, stack in found["autoencoder"].arrays.items()}
    return {"digits": plots.image_grid(rows, limits=(0.0, 1.0))}


LIFTED_DENOISE = Study(
    name="lifted-denoise",
    summary="a sparse denoising autoencoder and a classifier, trained lifted and by back-propagation",
    reference="X. Wang, M. Benning, Lifted Bregman Training of Neural Networks, 2023, arXiv:2208.08772",
    recipes={"autoencoder": autoencoder, "classifier": classifier},
    figures=figures,
)
