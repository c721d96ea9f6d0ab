"""What the studies of lifted training share: methods at equal work and at equal time, and linear estimates.

Work is counted in products of a batch with the weights of all layers, their transposes, or states against slopes. A
gradient by back-propagation is `GRADIENT` of them: forward, back through the states, and for the weights. A sweep of
lifted training is `SWEEP`: two for the slopes of the states, one for what they are pulled towards, two for the gradient
of the weights, three for the length of the step in the weights, and one more where that is checked; halvings of it are
not counted.
"""

import dataclasses
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float

from .. import _store, lifted
from ..learn import AbstractStage, Stage, Term, fit
from ._study import Bench

GRADIENT, SWEEP = 3, 8
ROUNDS = 50
"""Of every training, whatever its length: what happens between them costs the same."""
RIDGES = tuple(np.logspace(-6, 1, 15))


@dataclasses.dataclass(frozen=True)
class Method:
    """A way to train.

    Attributes:
        name: of the row.
        stage: number of steps to the stage.
        products: of a step, see above.
    """

    name: str
    stage: Callable[[int], AbstractStage]
    products: float | int


@dataclasses.dataclass(frozen=True)
class Trained:
    """What a training gave.

    Attributes:
        network: the network; none where the loss became infinite.
        steps: how many.
        seconds: of them all, without compilation.
    """

    network: Any
    steps: int
    seconds: float


class Clock:
    """A `progress` for `learn.fit` that notes in a file how long a step takes, compilation apart.

    The file outlives an interruption, so that a resumed run goes on with the same numbers.

    Args:
        path: of the file.
        progress: called as well.
    """

    def __init__(self, path: Path, progress: Callable[..., Any]):
        self.path, self.progress = path, progress
        self.last = time.perf_counter(), 0
        self.paces: list[float] = []

    def __call__(self, stage: str, done: int, total: int, loss: float) -> None:
        """After every round; the first one compiles, and counts only where it is the only one."""
        now = time.perf_counter()
        self.paces.append((now - self.last[0]) / max(done - self.last[1], 1))
        pace = statistics.median(self.paces[1:] or self.paces)
        _store.write_json(self.path, {"seconds per step": pace})
        self.progress(stage, done, total, loss)
        self.last = time.perf_counter(), done


def trained(
    bench: Bench, folder: str, method: Method, network: Any, data: Any, num_steps: int, round_of: int | None = None
) -> Trained:
    """The network after so many steps of a method, or what is on disk of it.

    Args:
        bench: of the study.
        folder: of the training, within those of the part.
        method: how.
        network: the start.
        data: pairs, or a sampler.
        num_steps: how many.
        round_of: the steps of another training by this method, whose compiled round is used again.
    """
    path = bench.fits / folder
    clock = Clock(path / "pace.json", bench.progress)
    try:
        found, _ = fit(
            network,
            {"train": method.stage(num_steps)},
            data,
            key=bench.key,
            steps_per_round=max(1, (round_of or num_steps) // ROUNDS),
            checkpoint=path,
            progress=clock,
        )
    except FloatingPointError:
        found = None
    pace = _store.read_json(path / "pace.json")["seconds per step"] if (path / "pace.json").exists() else 0.0
    return Trained(found, num_steps, num_steps * pace)


def lifted_methods(
    network: Any, batch_size: int, taus: Sequence[float], num_sweeps: int, **options: Any
) -> list[Method]:
    """`lifted.ImplicitGradient` with several `tau`."""

    def stage(tau: float) -> Callable[[int], AbstractStage]:
        return lambda num: lifted.ImplicitGradient(network, num, batch_size, tau=tau, num_sweeps=num_sweeps, **options)

    work = (SWEEP + ("num_backtracks" in options)) * num_sweeps + 1
    return [Method(f"lifted, tau {tau:g}, {num_sweeps} sweeps", stage(tau), work) for tau in taus]


def gradient_methods(
    batch_size: int,
    *,
    sgd: Sequence[float],
    adam: Sequence[float],
    implicit: Sequence[tuple[float, float]] = (),
    num_inner: int = 10,
    sparsity: Mapping[int, float] | None = None,
) -> list[Method]:
    """SGD and Adam by learning rate; implicit steps with back-propagation by `tau` and the rate of what is within."""
    loss = jax.tree_util.Partial(lifted.network_loss, sparsity=sparsity)

    def stage(optimiser: optax.GradientTransformation) -> Callable[[int], AbstractStage]:
        return lambda num: Stage({"loss": Term(loss)}, _whole, num, batch_size, optimiser)

    def inner(tau: float, rate: float) -> Callable[[int], AbstractStage]:
        return lambda num: lifted.ImplicitBackprop(
            num, batch_size, tau=tau, learning_rate=rate, num_inner=num_inner, sparsity=sparsity
        )

    found = [Method(f"SGD, rate {rate:g}", stage(optax.sgd(rate)), GRADIENT) for rate in sgd]
    found += [
        Method(f"implicit SGD, tau {tau:g}, {num_inner} steps of {rate:g}", inner(tau, rate), GRADIENT * num_inner + 1)
        for tau, rate in implicit
    ]
    return found + [Method(f"Adam, rate {rate:g}", stage(optax.adam(rate)), GRADIENT) for rate in adam]


def _whole(network: Any) -> Any:
    return network


def compared(
    bench: Bench, network: Any, data: Any, lifted_ones: Sequence[Method], others: Sequence[Method], num_steps: int
) -> list[tuple[str, Method, Trained]]:
    """Every method from the same start: the lifted ones `num_steps`, the others as many, and as cost the same.

    Returns:
        `(what is equal, method, training)`: all with equally many batches, then with equally many products, then in
        equal seconds. Of the lifted ones it is the same training in all three; the first of them sets the others' work.
    """
    references = [
        (method, trained(bench, f"lifted-{i}", method, network, data, num_steps))
        for i, method in enumerate(lifted_ones)
    ]
    reference, first = references[0]
    groups = {equal: [(equal, *pair) for pair in references] for equal in ("batches", "products", "seconds")}
    for i, method in enumerate(others):
        steps = max(1, round(num_steps * reference.products / method.products))
        same_work = trained(bench, f"products-{i}", method, network, data, steps)
        pace = same_work.seconds / steps
        many = {"batches": num_steps, "seconds": round(first.seconds / pace) if pace > 0 else steps}  # 0: diverged
        groups["products"].append(("products", method, same_work))
        for equal, num in many.items():
            again = trained(bench, f"{equal}-{i}", method, network, data, max(1, num), round_of=steps)
            groups[equal].append((equal, method, again))
    return [line for group in groups.values() for line in group]


def file_name(name: str) -> str:
    """The name of a method as that of a file."""
    return "-".join("".join(c if c.isalnum() or c == "." else " " for c in name).split())


def objective(
    network: Any, x: Float[Array, "n *x"], y: Float[Array, "n *y"], sparsity: Mapping[int, float] | None = None
) -> float:
    """The mean of `lifted.network_loss`."""

    @eqx.filter_jit
    def mean(network: Any, x: Array, y: Array) -> Array:
        return jnp.mean(jax.vmap(lambda x, y: lifted.network_loss(network, x, y, sparsity=sparsity))(x, y))

    return float(mean(network, x, y))


def ridge(
    seen: Float[Array, "n *y"], wanted: Float[Array, "n *x"], held_out: tuple[Array, Array]
) -> Callable[[Array], Array]:
    """The best affine estimate of `x` from `y`; the weight of `|W|^2` is the one best on the held-out pairs."""

    def flat(values: Any) -> np.ndarray:
        return np.asarray(values, np.float64).reshape(len(values), -1)

    y, x = flat(seen), flat(wanted)
    y_mean, x_mean = y.mean(0), x.mean(0)
    values, vectors = np.linalg.eigh((y - y_mean).T @ (y - y_mean) / len(y))
    cross = vectors.T @ ((y - y_mean).T @ (x - x_mean) / len(y))
    other_y, other_x = (flat(part) for part in held_out)
    turned = (other_y - y_mean) @ vectors
    size = values[-1]
    errors = [np.mean((turned / (np.maximum(values, 0) + r * size) @ cross + x_mean - other_x) ** 2) for r in RIDGES]
    best = RIDGES[int(np.argmin(errors))] * size
    weight = jnp.asarray(vectors / (np.maximum(values, 0) + best) @ cross, wanted.dtype)
    offset = jnp.asarray(x_mean - y_mean @ np.asarray(weight, np.float64), wanted.dtype)
    shape = wanted.shape[1:]

    def estimate(y: Array) -> Array:
        with jax.default_matmul_precision("highest"):
            found = y.reshape(len(y), -1) @ weight
        return (found + offset[None]).reshape(-1, *shape)

    return estimate
