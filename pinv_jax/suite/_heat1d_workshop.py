"""Heat-1D of the workshop paper: the initial temperature from a long diffusion by explicit Euler (arXiv:2511.21076).

`x` on 64 points of [0, 1], both ends included and zero: twelve sines with coefficients `N(0, 0.5^2)`, clipped to
`[-3, 3]`; `y` after 200 Euler steps; noise 0.02 on all data; outputs z-scored with the noisy training outputs, so that
the two end points are pure noise of unit variance. Recipes:

- `published`: the single-layer pair without activation, trained by all seven terms at once; solvers on its forward map.
  The published loop has no stop and reads the iterations to the tolerance from its record; ours stops there.
- `default`: the physics as the forward map, the default inverse on fresh draws.
"""

import functools
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, PRNGKeyArray

from ..data import clipped_sine_series
from ..diagnostics import rjcp
from ..learn import Deceptron, deceptron_stage, fit, ridge_prefit
from ..pde import EulerHeat1D
from ..solvers import (
    DIPG,
    ConjugateGradients,
    GradientDescent,
    LevenbergMarquardt,
    PublishedArmijo,
    Safeguarded,
)
from ._base import Dataset, InverseProblem, Recipe, Row, make_dataset, mean_estimate, observed_row, ridge_estimate
from ._inverse import default_measures, default_trust, train_inverse

TOLERANCE = 0.30
SIZE = 64
NUM_STEPS = 200


class PinnedBox(eqx.Module):
    """Clips to `[-bound, bound]` and holds both end points at zero."""

    bound: float = 3.0

    def __call__(self, x: Float[Array, " n"]) -> Float[Array, " n"]:
        """Projects `x`."""
        return jnp.clip(x, -self.bound, self.bound).at[jnp.array([0, -1])].set(0.0)


def dataset(*, seed: int, num_test: int, dtype: DTypeLike, quick: bool) -> Dataset:
    """5000 training and 500 validation pairs and the test observations, all noisy; the same whatever the seed."""
    del seed
    sizes = (512, 128, num_test) if quick else (5000, 500, num_test)
    physics, sample = EulerHeat1D(SIZE, NUM_STEPS, dtype=dtype), clipped_sine_series(SIZE, dtype=dtype)
    return make_dataset(physics, sample, 0.02, sizes, key=jax.random.key(0), train_noise=True)


def train_published(
    dataset: Dataset, *, key: PRNGKeyArray, folder: Any, progress: Any, quick: bool
) -> dict[str, Deceptron]:
    """The joint recipe with and without the penalty: models "plus" and "minus"."""
    model_key, fit_key = jax.random.split(key)
    train, val = dataset.train, dataset.val
    model = Deceptron(SIZE, SIZE, dtype=train.x.dtype, key=model_key)
    model = ridge_prefit(model, train.x, train.y)
    stage = deceptron_stage(train.num_examples, epochs=15 if quick else 60)["joint"]
    models = {}
    for name, variant in (("plus", stage), ("minus", stage.without("jcp"))):
        models[name], _ = fit(
            model,
            {f"joint-{name}": variant},
            (train.x, train.y),
            key=fit_key,
            validation=(val.x, val.y),
            checkpoint=folder / name,
            progress=progress,
        )
    return models


def published_rows(dataset: Dataset, models: dict[str, Deceptron]) -> list[Row]:
    """The three solvers of the paper on the learned forward map, and the trivial baselines."""
    rules: dict[str, Any] = {"atol": TOLERANCE, "rtol": 0.0, "search": PublishedArmijo(max_trials=8)}
    plus, minus = models["plus"], models["minus"]
    # (J'J + 1e-3 I) in the sum scaling of the paper, eight iterations of conjugate gradients.
    damped = LevenbergMarquardt(
        ConjugateGradients(rtol=1e-12, max_steps=8), damping=1e-3 / SIZE, relaxation=0.4, active_set=False, **rules
    )
    row = functools.partial(_row, dataset, "published", max_steps=200, surrogate=True)
    return [
        row("mean", "", mean_estimate(dataset), forward=plus.forward),
        row("ridge", "", ridge_estimate(dataset, key=jax.random.key(1)), forward=plus.forward),
        row("one-shot", "with JCP", plus.inverse, forward=plus.forward),
        row("dipg", "with JCP", _paper(plus, rules), forward=plus.forward),
        row("dipg", "without JCP", _paper(minus, rules), forward=minus.forward),
        row("gd", "", GradientDescent(0.4, **rules), forward=plus.forward),
        row("lm", "8 CG steps", damped, forward=plus.forward),
    ]


def _paper(model: Deceptron, rules: dict[str, Any]) -> DIPG:
    return DIPG(model.inverse, proposal="paper", relaxation=0.4, **rules)


def published_measures(dataset: Dataset, models: dict[str, Deceptron], *, key: PRNGKeyArray) -> dict[str, Any]:
    """RJCP as the paper reports it, summed over coordinates with normal probes, and the misfit of the forward map."""
    found: dict[str, Any] = {}
    for name, model in models.items():
        value = rjcp(model.forward, model.inverse, dataset.val.x, key=key, probe="normal", normalisation="sum")
        found[f"RJCP sum {name}"] = float(value)
    misfit = jax.vmap(models["plus"].forward)(dataset.val.x) - dataset.val.y
    return found | {"validation MSE": float(jnp.mean(misfit**2))}


def train_default(dataset: Dataset, *, key: PRNGKeyArray, folder: Any, progress: Any, quick: bool) -> dict[str, Any]:
    """The model "good"."""
    return {"good": train_inverse(dataset, key=key, folder=folder / "good", progress=progress, quick=quick)}


def default_rows(dataset: Dataset, models: dict[str, Any]) -> list[Row]:
    """Solvers on the true physics."""
    good, trust = models["good"].inverse, default_trust(dataset)
    row = functools.partial(_row, dataset, "default", forward=dataset.physics)
    rules: dict[str, Any] = {"atol": TOLERANCE}
    return [
        row("mean", "", mean_estimate(dataset)),
        row("ridge", "", ridge_estimate(dataset, key=jax.random.key(1))),
        row("one-shot", "g(data)", good),
        row("dipg", "", DIPG(good, **rules)),
        row("safeguarded", "", Safeguarded(good, trust=trust, **rules)),
        row("lm", "", LevenbergMarquardt(**rules)),
        row("gd", "", GradientDescent(**rules), max_steps=300),
    ]


def _row(dataset: Dataset, recipe: str, solver: str, note: str, method: Any, **options: Any) -> Row:
    return observed_row(dataset, recipe, solver, note, method, tolerance=TOLERANCE, project=PinnedBox(), **options)


HEAT1D_WORKSHOP = InverseProblem(
    name="heat1d-workshop",
    summary="initial temperature on 64 points from a long diffusion; the linear pair of the workshop paper",
    reference="A. L. Kachhadiya, Deceptron: Learned Local Inverses, 2025, arXiv:2511.21076",
    tolerance=TOLERANCE,
    num_test=500,
    dataset=dataset,
    recipes={
        "published": Recipe(train_published, published_rows, published_measures),
        "default": Recipe(train_default, default_rows, default_measures),
    },
    figure_recipe="default",
)
