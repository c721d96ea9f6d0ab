"""Back-projection of held-out digits onto edited logits, and the ablation of what the pseudo-inverse is made of."""

import time
from collections.abc import Callable, Mapping
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PRNGKeyArray, Scalar

from .._problem import Problem
from ..diagnostics import completion_distance, dense_jacobian, penrose_errors, penrose_symmetry, rmse
from ..learn import but_sections, cross_entropy, regression, surjective_stages
from ..maps import (
    MLP,
    AbstractSurjection,
    Flatten,
    LinearSurjection,
    Natural,
    SurjectiveChain,
    invertible_network,
    prepare,
    sections,
)
from ..solvers import GradientDescent, LevenbergMarquardt, MinimumNorm, nlbp, solve_batch
from ._digits import (
    NUM_CLASSES,
    Labelled,
    accuracy_cells,
    constants,
    digits,
    digits_cnn,
    digits_spnn,
    each,
    image_psnr,
    key_of,
    num_right,
    size,
    task_alone,
    there_and_back,
    train,
)
from ._study import Bench, Findings

REQUIRED = {"float32": 1e-5, "float64": 1e-10}
"""What a back-projection may leave of `|f(x') - y| / |y|`."""


class Readout(AbstractSurjection[Float[Array, " n"]]):
    """`y = P x + b` with `P` trained, completed by the projection of `x` onto the null space of `P`.

    `maps.LinearSurjection` holds its matrix fixed; here `P^+ = P^T (P P^T)^-1` follows the parameters.

    Args:
        num_inputs: length of `x`.
        num_outputs: length of `y`, smaller.
        dtype: of the parameters.
        key: random key.
    """

    weight: Float[Array, "m n"]
    bias: Float[Array, " m"]

    def __init__(self, num_inputs: int, num_outputs: int, *, dtype: Any, key: PRNGKeyArray):
        self.weight = jax.random.normal(key, (num_outputs, num_inputs), dtype) / num_inputs**0.5
        self.bias = jnp.zeros(num_outputs, dtype)

    def split(self, x: Float[Array, " n"]) -> tuple[Float[Array, " m"], Float[Array, " n"]]:
        """`(P x + b, x - P^+ P x)`."""
        with jax.default_matmul_precision("highest"):
            y = self.weight @ x
            return y + self.bias, x - self._right_inverse() @ y

    def merge(self, y: Float[Array, " m"], z: Float[Array, " n"]) -> Float[Array, " n"]:
        """`P^+ (y - b) + z`."""
        with jax.default_matmul_precision("highest"):
            return self._right_inverse() @ (y - self.bias) + z

    def section(self, y: Float[Array, " m"]) -> Float[Array, " n"]:
        """Zeros."""
        return jnp.zeros(self.weight.shape[1:], y.dtype)

    def in_structure(self) -> jax.ShapeDtypeStruct:
        """Shape and dtype of `x`."""
        return jax.ShapeDtypeStruct(self.weight.shape[1:], self.weight.dtype)

    def _right_inverse(self) -> Float[Array, "n m"]:
        return jnp.linalg.solve(self.weight @ self.weight.T, self.weight).T


def random_sections(model: SurjectiveChain, *, key: PRNGKeyArray) -> SurjectiveChain:
    """The same surjection with untrained section nets: weights uniform within `fan_in^(-1/2)`, biases zero."""
    leaves, treedef = jax.tree.flatten(sections(model))
    drawn = [
        jnp.zeros_like(leaf)
        if leaf.ndim == 1
        else jax.random.uniform(k, leaf.shape, leaf.dtype, -1.0, 1.0) * (leaf.shape[0] / leaf.size) ** 0.5
        for leaf, k in zip(leaves, jax.random.split(key, len(leaves)), strict=True)
    ]
    return eqx.tree_at(sections, model, jax.tree.unflatten(treedef, drawn))


def typical_logits(model: Callable[..., Any], train: Labelled) -> Float[Array, "classes logits"]:
    """The mean logits of each class over the training images."""
    logits = each(model, train.x)
    return jnp.stack([jnp.mean(logits[train.y == label], axis=0) for label in range(NUM_CLASSES)])


def _one_of_each_first(part: Labelled) -> Labelled:
    """The same examples, beginning with the first one of every class."""
    first = one_of_each(part.y)
    order = np.concatenate([first, np.setdiff1d(np.arange(len(part.y)), first)])
    return Labelled(part.x[order], part.y[order])


def one_of_each(labels: Int[Array, " num"]) -> list[int]:
    """The first example of every class."""
    return [int(np.flatnonzero(np.asarray(labels) == label)[0]) for label in range(NUM_CLASSES)]


def _inverse_network(bench: Bench, model: SurjectiveChain, data: Mapping[str, Labelled]) -> MLP:
    """A network from logits to pixels, trained on the pairs of the training images."""
    logits = {name: each(model, data[name].x) for name in ("train", "val")}
    scale = jnp.std(logits["train"])  # it sees logits of unit size; the scale then becomes part of its first layer
    pairs = {name: (y / scale, data[name].x.reshape(len(y), -1)) for name, y in logits.items()}
    network = MLP((NUM_CLASSES, 128, 128, 64), dtype=bench.dtype, key=key_of(bench, "inverse"))
    stages = task_alone(data["train"].x.shape[0], constants(bench), regression)
    network, _ = train(bench, "inverse", network, stages, pairs["train"], pairs["val"])
    return eqx.tree_at(lambda net: net.layers[0].weight, network, network.layers[0].weight / scale)


def _timed(f: Callable[..., Any], *args: Any) -> tuple[Any, float]:
    """The result of a function that was compiled by a call before, and the seconds of that second call."""
    jax.block_until_ready(f(*args))
    start = time.perf_counter()
    return jax.block_until_ready(f(*args)), time.perf_counter() - start


def backprojection(bench: Bench) -> Findings:
    """Held-out digits, each moved onto the typical logits of another class drawn at random."""
    data = digits(bench.dtype, quick=bench.quick)
    model, _ = digits_spnn(bench, data)
    cnn, _ = digits_cnn(bench, data, size(but_sections(model)))
    inverse = _inverse_network(bench, model, data)
    model = eqx.filter_jit(prepare)(model)
    test, typical = _one_of_each_first(data["test"]), typical_logits(model, data["train"])
    shift = jax.random.randint(bench.key, test.y.shape, 1, NUM_CLASSES)
    targets = (test.y + shift) % NUM_CLASSES
    x, y = test.x, typical[targets]

    models = {
        "NLBP, natural": eqx.filter_jit(prepare)(Natural(model)),
        "NLBP, learned section": model,
        "NLBP, random section": random_sections(model, key=bench.key),
    }
    moved, steps, milliseconds = {}, {}, {}
    for name, g in models.items():
        moved[name], seconds = _timed(each, jax.tree_util.Partial(nlbp, g), x, y)
        steps[name], milliseconds[name] = 1.0, 1e3 * seconds / len(x)
    flat, seconds = _timed(each, inverse, y)
    name = "inverse network, one shot"
    moved[name], steps[name], milliseconds[name] = flat.reshape(x.shape), 0.0, 1e3 * seconds / len(x)
    # Iterations stop at half of what is required of back-projection, and see fewer digits for their price.
    atol = 0.5 * REQUIRED[bench.dtype.name] * float(jnp.sqrt(jnp.mean(y**2)))
    some = slice(0, 20 if bench.quick else 100)
    for name, solvers in {
        # The nets have kinks, where the nearest points like to lie and a second-order method cannot settle.
        "nearest in x, then LM": ((MinimumNorm(None, atol=atol), 20), (LevenbergMarquardt(atol=atol), 60)),
        "Levenberg-Marquardt": ((LevenbergMarquardt(atol=atol), 60),),
        "gradient descent": ((GradientDescent(atol=atol), 20 if bench.quick else 200),),
    }.items():
        (moved[name], count), seconds = _timed(_solved, model, solvers, x[some], y[some])
        steps[name], milliseconds[name] = float(np.median(count)), 1e3 * seconds / len(count)

    rows = []
    for name, guess in moved.items():
        n = len(guess)
        cells = _edit_cells(model, cnn, x[:n], y[:n], guess, targets[:n], REQUIRED[bench.dtype.name])
        rows.append({"method": name, **cells, "steps": steps[name], "ms/solve": milliseconds[name], "digits": n})
    ten = slice(0, NUM_CLASSES)
    arrays = {name: np.asarray(guess[ten, 0]) for name, guess in moved.items()}
    arrays |= {"digits": np.asarray(x[ten, 0]), "targets": np.asarray(targets[ten])}
    grid = jnp.repeat(x[ten], NUM_CLASSES, axis=0), jnp.tile(typical, (NUM_CLASSES, 1))
    for name, g in (("natural", models["NLBP, natural"]), ("learned", model)):
        pictures = each(jax.tree_util.Partial(nlbp, g), *grid)
        arrays[f"towards, {name}"] = np.asarray(pictures).reshape(NUM_CLASSES, NUM_CLASSES, 8, 8)
    return Findings(rows, {"required of back-projection": REQUIRED[bench.dtype.name]}, arrays)


def _solved(model: SurjectiveChain, solvers: Any, x: Array, y: Array) -> tuple[Array, Array]:
    """Solvers one after the other, each with its budget: the last iterates, and the steps of all."""
    count = jnp.zeros(len(x), int)
    for solver, max_steps in solvers:
        solution = solve_batch(Problem(model, y), solver, x, max_steps=max_steps)
        x, count = solution.value, count + solution.stats.num_steps
    return x, count


@eqx.filter_jit
def _edits(
    model: Callable[..., Any], cnn: Callable[..., Any], x: Array, y: Array, guess: Array
) -> tuple[Array, Array, Array, Array]:
    with jax.default_matmul_precision("highest"):
        after = jax.vmap(model)(guess)
    relative = jnp.linalg.norm(after - y, axis=-1) / jnp.linalg.norm(y, axis=-1)
    labels = [jnp.argmax(logits, axis=-1) for logits in (after, jax.vmap(cnn)(guess))]
    return relative, labels[0], labels[1], jax.vmap(image_psnr)(x, guess)


def _edit_cells(
    model: Callable[..., Any],
    cnn: Callable[..., Any],
    x: Array,
    y: Array,
    guess: Array,
    targets: Int[Array, " num"],
    required: float,
) -> dict[str, Any]:
    relative, label, cnn_label, ratio = map(np.asarray, _edits(model, cnn, x, y, guess))
    wanted = np.asarray(targets)
    return {
        "residual max": float(np.max(relative)),
        "median": float(np.median(relative)),
        "met %": 100 * float(np.mean(relative <= required)),
        "target by g %": 100 * float(np.mean(label == wanted)),
        "by the CNN %": 100 * float(np.mean(cnn_label == wanted)),
        "RMS x'-x": float(np.sqrt(np.mean(np.asarray(guess - x) ** 2))),
        "PSNR dB": float(np.mean(ratio)),
    }


class Judged(eqx.Module):
    """What the ablation says of images; see `judge`."""

    reconstruction: Any
    rmse: Any
    psnr: Any
    g_distance: Any
    penrose: Any
    gain: Any
    fourth: Any


@eqx.filter_jit
def judge(g: AbstractSurjection[Any], x: Float[Array, "num *x"], num_jacobians: int) -> Judged:
    """How good a pseudo-inverse is, image by image.

    Args:
        g: the surjection.
        x: images, with a leading axis.
        num_jacobians: how many of them Jacobians are formed at.

    Returns:
        The reconstructions `g†(g(x))` with their errors; the distance of `G(g†(g(x)))` from `G(0)`, which the natural
        pseudo-inverse minimises; the first two Penrose identities; of some images the largest singular value of the
        Jacobian of `g†`, and the fourth Penrose identity.
    """
    g = prepare(g)

    def one(x: Array) -> tuple[Any, ...]:
        guess = there_and_back(g, x)
        return guess, rmse(x, guess), image_psnr(x, guess), completion_distance(g, guess), penrose_errors(g, x, g(x))

    def jacobians(x: Array) -> tuple[Scalar, Scalar]:
        y = g(x)
        return jnp.linalg.norm(dense_jacobian(g.pinv, y), ord=2), penrose_symmetry(g, y).fourth

    return Judged(*jax.vmap(one)(x), *jax.lax.map(jacobians, x[:num_jacobians]))


def ablated(bench: Bench, data: Mapping[str, Labelled]) -> dict[str, SurjectiveChain]:
    """`P psi(x)` with an invertible network psi or none, P trained or fixed, all by the first stage of the recipe."""
    psi_key, fixed_key, readout_key = jax.random.split(key_of(bench, "psi"), 3)
    num = data["train"].x[0].size
    flatten = Flatten((1, 8, 8), bench.dtype)
    readout = Readout(num, NUM_CLASSES, dtype=bench.dtype, key=readout_key)
    rows = jax.random.orthogonal(fixed_key, num, dtype=bench.dtype)[:NUM_CLASSES]
    options: dict[str, Any] = {"num_layers": 1 if bench.quick else 3, "hidden": 64, "mixing": "cayley"}
    psi = invertible_network((num,), **options, dtype=bench.dtype, key=psi_key)
    stages = surjective_stages(cross_entropy, data["train"].x.shape[0], constants=constants(bench))
    task = {"task": stages["task"]}
    starts = {
        "psi = identity, P trained": [flatten, readout],
        "psi trained, P fixed": [flatten, psi, LinearSurjection(rows)],
        "psi trained, P trained": [flatten, psi, readout],
    }
    return {
        name: train(bench, f"ablation-{i}", SurjectiveChain(layers), task, data["train"].pair, data["val"].pair)[0]
        for i, (name, layers) in enumerate(starts.items())
    }


def ablation(bench: Bench) -> Findings:
    """One table over the map (psi, P, or an SPNN) and the section (natural, learned, random)."""
    data = digits(bench.dtype, quick=bench.quick)
    model, _ = digits_spnn(bench, data)
    overhead = size(sections(model))
    num_parameters = size(but_sections(model))
    cases: list[tuple[str, str, AbstractSurjection[Any], int, int]] = []
    for name, g in ablated(bench, data).items():
        fixed = [layer for layer in g.layers if isinstance(layer, LinearSurjection)]
        cases.append((name, "natural", g, size(g) - size(fixed), 0))
    cases += [
        ("SPNN", "natural", Natural(model), num_parameters, 0),
        ("SPNN", "learned", model, num_parameters, overhead),
        ("SPNN", "random", random_sections(model, key=bench.key), num_parameters, overhead),
    ]
    test = data["test"]
    mean = jnp.broadcast_to(jnp.mean(data["train"].x, axis=0)[None], test.x.shape)
    rows = [_mean_row(test.x, mean)]
    shown = one_of_each(test.y)
    arrays = {"digits": np.asarray(test.x)[shown, 0]}
    for name, section, g, trained, of_section in cases:
        found = jax.tree.map(np.asarray, judge(g, test.x, 4 if bench.quick else 64))
        rows.append(
            {
                "map": name,
                "section": section,
                **accuracy_cells(num_right(g, test.x, test.y), len(test.y)),
                "RMSE g†g(x)": float(np.sqrt(np.mean(found.rmse**2))),
                "PSNR dB": float(np.mean(found.psnr)),
                "|G(g†g x)-G(0)|": float(np.median(found.g_distance)),
                "gain of g†": float(np.max(found.gain)),
                "Penrose I": float(np.max(found.penrose.first)),
                "Penrose II": float(np.max(found.penrose.second)),
                "Penrose IV": float(np.median(found.fourth)),
                "parameters of g": trained,
                "of the section": of_section,
            }
        )
        arrays[f"{name}, {section}"] = found.reconstruction[shown, 0]
    return Findings(rows, {"section, % of g": 100 * overhead / num_parameters}, arrays)


def _mean_row(x: Array, mean: Array) -> dict[str, Any]:
    columns = ["map", "section", "accuracy %", "95 % interval", "RMSE g†g(x)", "PSNR dB", "|G(g†g x)-G(0)|"]
    columns += ["gain of g†", "Penrose I", "Penrose II", "Penrose IV", "parameters of g", "of the section"]
    return dict.fromkeys(columns) | {
        "map": "mean image",
        "RMSE g†g(x)": float(jnp.sqrt(jnp.mean((mean - x) ** 2))),
        "PSNR dB": float(jnp.mean(each(image_psnr, x, mean))),
    }
