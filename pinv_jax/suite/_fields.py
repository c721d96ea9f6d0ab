"""Inverse problems whose unknown is a field: their data, and the two recipes they share.

- `published`: a residual network as surrogate and one as inverse, trained in three stages; every solver of the paper
  on the surrogate, with its line search, relaxation, start and stop.
- `default`: the physics itself as the forward map, an inverse that corrects the ridge regression by a network.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, PRNGKeyArray

from ..diagnostics import rjcp
from ..learn import InversePair, ThreeStageConstants, detach, fit, three_stage
from ..maps import AbstractMap, ResidualCNN
from ..solvers import (
    DIPG,
    LBFGS,
    Box,
    ConjugateGradients,
    GaussNewton,
    GradientDescent,
    LevenbergMarquardt,
    PublishedArmijo,
    Safeguarded,
)
from ._base import (
    Dataset,
    InverseProblem,
    Recipe,
    Row,
    make_dataset,
    mean_estimate,
    observed_row,
    ridge_estimate,
)
from ._inverse import Schedule, default_measures, default_trust, ridge_regression, train_inverse

REFERENCE = "A. L. Kachhadiya, Local Inverse Geometry Can Be Amortized, 2026, arXiv:2605.13068"
DISCREPANCY = 1.1


@dataclasses.dataclass(frozen=True)
class Networks:
    """The residual networks of the published recipe.

    Attributes:
        width: channels.
        num_blocks: residual blocks.
        padding: "zeros" or "circular".
        output_activation: of the inverse; the surrogate has none.
        constants: of the three stages.
        tolerance: on the root mean square of the z-scored residual, of the published solvers.
        max_steps: of the published solvers.
        rmse_tolerance: see `Row`; for the published rows.
        linear_solver: of Gauss-Newton and Levenberg-Marquardt; none for their dense defaults.
    """

    width: int
    num_blocks: int
    padding: str
    output_activation: str
    constants: ThreeStageConstants
    tolerance: float
    max_steps: int = 80
    rmse_tolerance: float | None = None
    linear_solver: Any = None


@dataclasses.dataclass(frozen=True)
class FieldProblem:
    """What makes a problem of this kind; `problem()` is the `InverseProblem`.

    Attributes:
        name, summary: see `InverseProblem`.
        physics: `dtype -> map`.
        sample: `dtype -> (key -> x)`.
        noise_std: of the observations, in physical units.
        sizes: numbers of training and validation pairs.
        num_test: test observations.
        tolerance: on the root mean square of the z-scored residual; about twice the noise level.
        one_scale: see `make_dataset`.
        project: of the unknown onto what it can be.
        networks: of the published recipe; none where no such recipe makes sense.
        reduced: of the recipe `reduced`, the published one smaller or shorter, if it has one.
        inverse: `(x, y, *, physics, key) -> g`, the untrained inverse of the default recipe.
        schedule: of its training.
        baselines: further estimates without iterations, `dataset -> (y -> x)` by name.
    """

    name: str
    summary: str
    physics: Callable[[DTypeLike], AbstractMap]
    sample: Callable[[DTypeLike], Any]
    noise_std: float
    tolerance: float
    inverse: Callable[..., Any]
    schedule: Schedule
    sizes: tuple[int, int] = (4000, 400)
    num_test: int = 80
    one_scale: bool = False
    project: Any = None
    networks: Networks | None = None
    reduced: Networks | None = None
    baselines: Mapping[str, Callable[[Dataset], Callable[..., Any]]] = dataclasses.field(default_factory=dict)

    def problem(self) -> InverseProblem:
        """The named inverse problem."""
        default = Recipe(
            functools.partial(train_default, self.inverse, self.schedule),
            functools.partial(default_rows, self),
            functools.partial(default_measures, num_points=4),
        )
        recipes = {"published": self._like_published("published", self.networks), "default": default}
        # at the sizes of a quick run it is what `published` is
        recipes["reduced"] = self._like_published("reduced", self.reduced, in_quick=False)
        return InverseProblem(
            name=self.name,
            summary=self.summary,
            reference=REFERENCE,
            tolerance=self.tolerance,
            num_test=self.num_test,
            dataset=functools.partial(dataset, self),
            recipes={name: recipe for name, recipe in recipes.items() if recipe is not None},
            figure_recipe="default",
        )

    def _like_published(self, name: str, networks: Networks | None, *, in_quick: bool = True) -> Recipe | None:
        if networks is None:
            return None
        rows = functools.partial(published_rows, name, networks, self.project)
        return Recipe(functools.partial(train_published, networks), rows, published_measures, in_quick)


def dataset(problem: FieldProblem, *, seed: int, num_test: int, dtype: DTypeLike, quick: bool) -> Dataset:
    """Training and validation pairs without noise, test observations with it; drawn anew for every seed."""
    num_train, num_val = (64, 32) if quick else problem.sizes
    return make_dataset(
        problem.physics(dtype),
        problem.sample(dtype),
        problem.noise_std,
        (num_train, num_val, num_test),
        key=jax.random.key(seed),
        one_scale=problem.one_scale,
    )


# The published recipe -------------------------------------------------------------------------------------------------


def train_published(
    networks: Networks, dataset: Dataset, *, key: PRNGKeyArray, folder: Any, progress: Any, quick: bool
) -> dict[str, InversePair]:
    """Surrogate, inverse, and the third stage with and without the penalty: models "plus" and "minus"."""
    train, val = dataset.train, dataset.val
    forward_key, inverse_key, fit_key = jax.random.split(key, 3)
    shape, dtype = train.x.shape[1:], train.x.dtype
    constants = networks.constants
    if quick:
        constants = dataclasses.replace(constants, epochs=(1, 1, 1))
        networks = dataclasses.replace(networks, width=4, num_blocks=1)
    options: dict[str, Any] = {"width": networks.width, "num_blocks": networks.num_blocks, "padding": networks.padding}
    surrogate = ResidualCNN(shape, **options, dtype=dtype, key=forward_key)
    inverse = ResidualCNN(shape, **options, output_activation=networks.output_activation, dtype=dtype, key=inverse_key)
    stages = three_stage(constants, train.num_examples, selection="published")
    third = stages.pop("jcp")
    common = {"key": fit_key, "validation": (val.x, val.y), "progress": progress}
    data = (train.x, train.y)
    pair, _ = fit(InversePair(surrogate, inverse), stages, data, checkpoint=folder / "common", **common)
    models = {}
    for name, stage in (("plus", third), ("minus", third.without("jcp"))):
        models[name], _ = fit(pair, {f"jcp-{name}": stage}, data, checkpoint=folder / name, **common)
    return models


def published_rows(
    recipe: str, networks: Networks, project: Any, dataset: Dataset, models: dict[str, InversePair]
) -> list[Row]:
    """Every solver of the paper on the same surrogate, with its line search, relaxation, start and stop."""
    rules: dict[str, Any] = {"atol": networks.tolerance, "rtol": 0.0, "search": PublishedArmijo()}
    second_order: dict[str, Any] = {"relaxation": 0.4, "active_set": False, **rules}
    plus, minus = models["plus"], models["minus"]
    methods = {
        ("dipg", "with JCP"): (plus, DIPG(plus.inverse, proposal="paper", relaxation=0.4, **rules)),
        ("dipg", "without JCP"): (minus, DIPG(minus.inverse, proposal="paper", relaxation=0.4, **rules)),
        ("one-shot", "g(data), with JCP"): (plus, plus.inverse),
        ("gd", ""): (plus, GradientDescent(0.4, **rules)),
        ("gn", ""): (plus, GaussNewton(networks.linear_solver, **second_order)),
        ("lm", "damping 0.01"): (plus, LevenbergMarquardt(networks.linear_solver, damping=1e-2, **second_order)),
        ("lbfgs", ""): (plus, LBFGS(atol=networks.tolerance)),
    }
    return [
        observed_row(
            dataset,
            recipe,
            name,
            note,
            method,
            forward=pair.forward,
            tolerance=networks.tolerance,
            project=project,
            max_steps=networks.max_steps,
            surrogate=True,
            rmse_tolerance=networks.rmse_tolerance,
        )
        for (name, note), (pair, method) in methods.items()
    ]


def published_measures(dataset: Dataset, models: dict[str, InversePair], *, key: PRNGKeyArray) -> dict[str, Any]:
    """RJCP with identity probes, and how far the surrogate is from the physics."""
    xs, ys = dataset.val.x, dataset.val.y
    found = {f"RJCP {name}": float(rjcp(pair.forward, pair.inverse, xs[:24], key=key)) for name, pair in models.items()}
    misfit = jax.lax.map(models["plus"].forward, xs, batch_size=32) - ys
    return found | {"surrogate validation MSE": float(jnp.mean(misfit**2))}


# The default recipe ---------------------------------------------------------------------------------------------------


class Ridge(AbstractMap):
    """`W y + b`, a linear regression."""

    weight: Float[Array, "d m"]
    bias: Float[Array, "*x"]

    def __call__(self, x: Float[Array, "*y"]) -> Float[Array, "*x"]:
        """The estimate for the observation `x`."""
        with jax.default_matmul_precision("highest"):
            return jnp.reshape(self.weight @ jnp.ravel(x), self.bias.shape) + self.bias

    def in_structure(self) -> jax.ShapeDtypeStruct:
        """Shape and dtype of the observation, a field like the unknown."""
        return jax.ShapeDtypeStruct(self.bias.shape, self.bias.dtype)


class Corrected(AbstractMap):
    """`g(y) = h(y) + scale N(y, h(y) / scale)`: a guess, corrected by a residual network that sees it and the data.

    Args:
        guess: `h`; fixed.
        network: from two fields to one; zero at first.
        scale: of the unknown.
    """

    guess: AbstractMap
    network: ResidualCNN
    scale: float = eqx.field(static=True, default=1.0)

    def __call__(self, x: Float[Array, "*x"]) -> Float[Array, "*x"]:
        """The estimate for the observation `x`."""
        guess = detach(self.guess)(x)
        return guess + self.scale * self.network(jnp.stack([x, guess / self.scale]))[0]

    def in_structure(self) -> jax.ShapeDtypeStruct:
        """Shape and dtype of the observation."""
        return self.guess.in_structure()


def corrected(
    guess: AbstractMap, *, width: int, num_blocks: int, padding: str, scale: float = 1.0, key: PRNGKeyArray
) -> Corrected:
    """A `Corrected` that is the guess itself."""
    x = guess.in_structure()
    network = ResidualCNN(
        x.shape, channels=(2, 1), width=width, num_blocks=num_blocks, padding=padding, dtype=x.dtype, key=key
    )
    last = lambda net: (net.last.weight, net.last.bias)
    return Corrected(guess, eqx.tree_at(last, network, [jnp.zeros_like(leaf) for leaf in last(network)]), scale)


def field_inverse(
    x: Float[Array, "n *x"], y: Float[Array, "n *x"], *, key: PRNGKeyArray, physics: Any = None, **network: Any
) -> Corrected:
    """A corrected ridge regression of `x` on the noisy observations `y`, without penalty."""
    weight, bias = ridge_regression(x, y, penalty=1e-9)
    guess = Ridge(jnp.asarray(weight, x.dtype), jnp.asarray(bias.reshape(x.shape[1:]), x.dtype))
    return corrected(guess, **network, key=key)


def train_default(
    build: Callable[..., Any],
    schedule: Schedule,
    dataset: Dataset,
    *,
    key: PRNGKeyArray,
    folder: Any,
    progress: Any,
    quick: bool,
) -> dict[str, InversePair]:
    """The model "good"."""
    pair = train_inverse(
        dataset, key=key, folder=folder / "good", progress=progress, quick=quick, build=build, schedule=schedule
    )
    return {"good": pair}


def default_rows(problem: FieldProblem, dataset: Dataset, models: dict[str, InversePair]) -> list[Row]:
    """Baselines, and every solver on the true physics: to the tolerance, and to the noise of each observation."""
    good, trust = models["good"].inverse, default_trust(dataset, num_probes=4)
    row = functools.partial(
        observed_row,
        dataset,
        "default",
        forward=dataset.physics,
        tolerance=problem.tolerance,
        project=problem.project,
    )
    rms: dict[str, Any] = {"atol": problem.tolerance}
    noise: dict[str, Any] = {"discrepancy": DISCREPANCY, "rtol": 2 / dataset.test.y[0].size}
    own = jnp.broadcast_to(dataset.test_noise_rms.reshape(-1, *[1] * (dataset.test.y.ndim - 1)), dataset.test.y.shape)
    cg = ConjugateGradients()
    stop, morozov = f"res <= {problem.tolerance:g}", "res <= 1.1 |noise|"
    return [
        row("mean", "", mean_estimate(dataset)),
        row("ridge", "", ridge_estimate(dataset, key=jax.random.key(1))),
        *(row(name, "", make(dataset)) for name, make in problem.baselines.items()),
        row("one-shot", "g(data)", good),
        row("dipg", stop, DIPG(good, **rms)),
        row("dipg", f"{stop}, from 0", DIPG(good, **rms, jump_first=False)),
        row("safeguarded", stop, Safeguarded(good, trust=trust, **rms)),
        row("lm", f"{stop}, CG", LevenbergMarquardt(cg, **rms)),
        row("gn", f"{stop}, CG", GaussNewton(cg, **rms)),
        row("lbfgs", stop, LBFGS(**rms)),
        row("gd", stop, GradientDescent(**rms), max_steps=300),
        row("dipg", morozov, DIPG(good, **noise), noise_std=own),
        row("safeguarded", morozov, Safeguarded(good, trust=trust, **noise), noise_std=own),
        row("lm", f"{morozov}, CG", LevenbergMarquardt(cg, discrepancy=DISCREPANCY), noise_std=own),
    ]


UNIT_BOX = Box(0.0, 1.0)
PUBLISHED_CG = ConjugateGradients(max_steps=30, rtol=1e-6)
"""The linear solver of the published Gauss-Newton and Levenberg-Marquardt for Allen-Cahn."""
