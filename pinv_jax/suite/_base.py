"""What a named inverse problem is: `InverseProblem`, its `Dataset`, its `Recipe`s and the `Row`s of its table."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from ..data import PairedData, generate, statistics
from ..maps import Normalised


@dataclasses.dataclass(frozen=True)
class Dataset:
    """Generated data of one problem; outputs are z-scored with the statistics of the clean training outputs.

    Attributes:
        physics: the true physics, `x -> z-scored y`.
        sample: draws one unknown from a key; for training on fresh draws.
        train, val: unknowns and clean outputs.
        test: unknowns and noisy observations.
        noise_std: of the observations, per coordinate, in z-scored units.
        test_noise_rms: root mean square of the noise of each test observation; known because data are generated.
        y_std: what one z-scored unit is, per coordinate.
    """

    physics: Any
    sample: Any
    train: PairedData
    val: PairedData
    test: PairedData
    noise_std: Float[Array, "*y"]
    test_noise_rms: Float[Array, " num"]
    y_std: Float[Array, "*y"]


def make_dataset(
    physics: Any,
    sample: Any,
    noise_std: float,
    sizes: tuple[int, int, int],
    *,
    key: PRNGKeyArray,
    train_noise: bool = False,
    one_scale: bool = False,
) -> Dataset:
    """Draws training, validation and test sets and z-scores their outputs.

    Args:
        physics: `x -> y` in physical units.
        sample: `key -> x`.
        noise_std: of the observations, in physical units.
        sizes: numbers of training, validation and test pairs.
        key: random key; a part of a set does not depend on how long it, or another set, is.
        train_noise: whether training and validation outputs carry noise as well.
        one_scale: z-score with one mean and one standard deviation for all coordinates instead of one for each.
    """
    keys = jax.random.split(key, 3)
    clean = [generate(sample, physics, n, key=k) for n, k in zip(sizes, keys, strict=True)]
    noisy = [generate(sample, physics, n, key=k, noise_std=noise_std) for n, k in zip(sizes, keys, strict=True)]
    return assemble(physics, sample, noise_std, clean, noisy, train_noise=train_noise, one_scale=one_scale)


def assemble(
    physics: Any,
    sample: Any,
    noise_std: float,
    clean: Sequence[PairedData],
    noisy: Sequence[PairedData],
    *,
    train_noise: bool = False,
    one_scale: bool = False,
) -> Dataset:
    """A `Dataset` from training, validation and test pairs in physical units, without and with noise."""
    used = [noisy[0], noisy[1], noisy[2]] if train_noise else [clean[0], clean[1], noisy[2]]
    mean, std = statistics(used[0].y)
    if one_scale:
        mean, std = (jnp.full_like(mean, value) for value in (jnp.mean(used[0].y), jnp.std(used[0].y)))
    scaled = [PairedData(part.x, (part.y - mean[None]) / std[None]) for part in used]
    noise = (noisy[2].y - clean[2].y) / std[None]
    axes = tuple(range(1, noise.ndim))
    return Dataset(
        physics=Normalised(physics, mean, std),
        sample=sample,
        train=scaled[0],
        val=scaled[1],
        test=scaled[2],
        noise_std=noise_std / std,
        test_noise_rms=jnp.sqrt(jnp.mean(noise**2, axis=axes)),
        y_std=std,
    )


def _same(x: Any) -> Any:
    return x


@dataclasses.dataclass(frozen=True)
class Row:
    """One line of the table: a solver, or an estimate without iterations, on one set of observations.

    Attributes:
        recipe: where it belongs.
        solver: the name that `--solver` selects.
        note: what tells it from other rows of the same solver: the stopping rule, the model.
        forward: the map that the solver inverts, `unknown -> z-scored y`.
        method: a solver, or a callable `data -> unknown` on one observation.
        data: observations, leading axis.
        truth: the true `x`, leading axis.
        x0: the start, one for all.
        tolerance: on the root mean square of the residual; judges estimates, and solvers that do not stop by it.
        physics: the true physics `x -> z-scored y`, on which `decode(unknown)` is judged too.
        decode: `unknown -> x`.
        project: see `Problem`.
        noise_std: see `Problem`; with one per observation, shaped like `data`.
        max_steps: accepted steps at most.
        surrogate: whether `forward` is a surrogate of the physics.
        rmse_tolerance: where success is judged on the unknown: the root mean square error of `x` allowed.
    """

    recipe: str
    solver: str
    note: str
    forward: Any
    method: Any
    data: Array
    truth: Array
    x0: Array
    tolerance: float
    physics: Any
    decode: Callable[..., Any] = _same
    project: Any = None
    noise_std: Any = None
    max_steps: int = 100
    surrogate: bool = False
    rmse_tolerance: float | None = None

    @property
    def name(self) -> str:
        """The name of its file: letters, digits, dots and hyphens."""
        text = f"{self.recipe}-{self.solver}-{self.note}".lower()
        return "".join(c if c.isalnum() or c in ".-" else "-" for c in text).strip("-")


def observed_row(
    dataset: Dataset,
    recipe: str,
    solver: str,
    note: str,
    method: Any,
    *,
    forward: Any,
    tolerance: float,
    **options: Any,
) -> Row:
    """A row that solves for the test observations of a dataset from zero."""
    return Row(
        recipe,
        solver,
        note,
        forward=forward,
        method=method,
        data=dataset.test.y,
        truth=dataset.test.x,
        x0=jnp.zeros_like(dataset.test.x[0]),
        tolerance=tolerance,
        physics=dataset.physics,
        **options,
    )


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How models are trained, and what is then solved with them.

    Attributes:
        train: `(dataset, *, key, folder, progress, quick) -> models`, a dict of pytrees by name; whatever it does is
            resumed from `folder`.
        rows: `(dataset, models) -> rows`.
        measure: `(dataset, models, *, key) -> numbers`, such as RJCP values; a nested dict.
        in_quick: whether a quick run includes it without being told.
    """

    train: Callable[..., dict[str, PyTree]]
    rows: Callable[..., Sequence[Row]]
    measure: Callable[..., dict[str, Any]]
    in_quick: bool = True


@dataclasses.dataclass(frozen=True)
class InverseProblem:
    """A named inverse problem.

    Attributes:
        name: what the command line calls it.
        summary: one line.
        reference: where it is from.
        tolerance: on the root mean square of the z-scored residual.
        num_test: test observations.
        dataset: `(*, seed, num_test, dtype, quick) -> Dataset`.
        recipes: by name, in order.
        grid: coordinates of the unknown, for figures.
        figure_recipe: the recipe whose rows the figures show.
    """

    name: str
    summary: str
    reference: str
    tolerance: float
    num_test: int
    dataset: Callable[..., Dataset]
    recipes: Mapping[str, Recipe]
    figure_recipe: str


SOLVER_NAMES = ("gd", "gn", "lm", "lbfgs", "dipg", "safeguarded")
"""The names that `--solver` takes."""


def mean_estimate(dataset: Dataset) -> Callable[..., Any]:
    """Predicts the mean of the training unknowns, whatever was observed."""
    mean = jnp.mean(dataset.train.x, axis=0)
    return lambda y: mean


def ridge_estimate(dataset: Dataset, *, key: PRNGKeyArray) -> Callable[..., Any]:
    """Linear regression of `x` on the noisy observation, with the ridge chosen on the validation set.

    Trained on the training pairs with noise added as in the test; the regularisation is the best of a logarithmic
    grid.
    """

    def flat(values: Array) -> np.ndarray:
        return np.asarray(values, np.float64).reshape(len(values), -1)

    def noisy(part: PairedData, key: PRNGKeyArray) -> tuple[np.ndarray, np.ndarray]:
        y = part.y + dataset.noise_std[None] * jax.random.normal(key, part.y.shape, part.y.dtype)
        return flat(part.x), flat(y)

    keys = jax.random.split(key)
    (x, y), (x_val, y_val) = noisy(dataset.train, keys[0]), noisy(dataset.val, keys[1])
    x_mean, y_mean = x.mean(0), y.mean(0)
    gram, cross = (y - y_mean).T @ (y - y_mean) / len(y), (y - y_mean).T @ (x - x_mean) / len(y)
    best, error = None, np.inf
    for ridge in np.logspace(-6, 1, 29):
        weight = np.linalg.solve(gram + ridge * np.eye(len(gram)), cross)
        found = np.sqrt(np.mean((x_mean + (y_val - y_mean) @ weight - x_val) ** 2, axis=1)).mean()
        if found < error:
            best, error = weight, found
    weight = jnp.asarray(best, dataset.train.x.dtype)
    x_mean, y_mean = jnp.asarray(x_mean, weight.dtype), jnp.asarray(y_mean, weight.dtype)
    shape = dataset.train.x.shape[1:]
    return lambda data: jnp.reshape(x_mean + (jnp.ravel(data) - y_mean) @ weight, shape)
