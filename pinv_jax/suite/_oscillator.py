"""Damped oscillator of the workshop paper: five parameters from the noisy motion (arXiv:2511.21076).

`theta = (m, c, k, x0, v0)` uniform in a box; `y` the position at 64 times in [0, 5]; noise 0.01 on all data; outputs
z-scored with the noisy training outputs. Mass, damping and stiffness enter as `c / m` and `k / m` only: no estimate
finds their common factor, so that the error of the parameters has a floor (a measure of the report), and rows marked
"c/m, k/m, x0, v0" are scored in what the motion does determine. The unknown `x` of the tables is `theta` in standard
deviations of the prior, about its mean, so that errors are too. Recipes:

- `published`: the linear pair on raw `theta`, trained by all seven terms at once. No linear map of `theta` is an
  oscillation: the forward map misses two thirds of the variance, and the penalty, which waits for it to fit, never
  acts. The published loop has no stop: it idles for 20 iterations where a search fails, and counts them; ours ends.
- `default`: the physics as the forward map, a trained network as the inverse.
"""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Key, PRNGKeyArray

from ..diagnostics import rjcp
from ..learn import Deceptron, InversePair, deceptron_stage, fit, ridge_prefit
from ..maps import MLP, AbstractMap, Affine, Chain, kaiming_uniform
from ..pde import DampedOscillator, identifiable
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
from ._base import Dataset, InverseProblem, Recipe, Row, make_dataset, mean_estimate, ridge_estimate
from ._inverse import Schedule, default_measures, default_trust, train_inverse

LOW = (0.5, 0.0, 0.5, -2.0, -2.0)
HIGH = (2.0, 1.0, 5.0, 2.0, 2.0)
NOISE = 0.01
PUBLISHED_TOLERANCE = 0.30
TOLERANCE = 0.03
"""About twice the noise of the z-scored observations."""
UNIT = math.sqrt(3.0)
"""Half the side of the box in standard deviations of the uniform distribution on it."""
SCHEDULE = Schedule(num_steps=20_000, learning_rate=1e-3, jcp_weight=3e-3, jcp_examples=32)


def to_theta(dtype: DTypeLike) -> Affine:
    """From standard deviations of the prior to `theta`."""
    low, high = jnp.asarray(LOW, dtype), jnp.asarray(HIGH, dtype)
    return Affine((high - low) / math.sqrt(12.0), (high + low) / 2)  # pyright: ignore[reportCallIssue]


def from_theta(theta: Float[Array, "5"]) -> Float[Array, "5"]:
    """From `theta` to standard deviations of the prior."""
    low, high = jnp.asarray(LOW, theta.dtype), jnp.asarray(HIGH, theta.dtype)
    return (theta - (high + low) / 2) * math.sqrt(12.0) / (high - low)


def dataset(*, seed: int, num_test: int, dtype: DTypeLike, quick: bool) -> Dataset:
    """5000 training and 500 validation pairs and the test observations, all noisy; drawn anew for every seed."""
    sizes = (512, 128, num_test) if quick else (5000, 500, num_test)

    def sample(key: Key[Array, ""]) -> Float[Array, "5"]:
        return jax.random.uniform(key, (5,), dtype, -UNIT, UNIT)

    physics = Chain([to_theta(dtype), DampedOscillator(dtype=dtype)])
    return make_dataset(physics, sample, NOISE, sizes, key=jax.random.key(seed), train_noise=True)


# The published recipe -------------------------------------------------------------------------------------------------


def train_published(dataset: Dataset, *, key: PRNGKeyArray, folder: Any, progress: Any, quick: bool) -> dict[str, Any]:
    """The model "pair", and the largest weight that the penalty ever had."""
    model_key, fit_key = jax.random.split(key)
    train, val = dataset.train, dataset.val
    scale = jax.vmap(to_theta(train.x.dtype))
    theta = scale(train.x)
    model = Deceptron(theta.shape[1], train.y.shape[1], dtype=theta.dtype, key=model_key)
    model, history = fit(
        ridge_prefit(model, theta, train.y),
        deceptron_stage(train.num_examples, epochs=15 if quick else 60),
        (theta, train.y),
        key=fit_key,
        validation=(scale(val.x), val.y),
        checkpoint=folder,
        progress=progress,
    )
    return {"pair": model, "jcp_weight": jnp.max(jnp.asarray(history["joint"].weights["jcp"]))}


def published_rows(dataset: Dataset, models: dict[str, Any]) -> list[Row]:
    """The three solvers of the paper on the learned forward map of raw `theta`, and the trivial baselines."""
    pair = models["pair"]
    dtype = dataset.train.x.dtype
    rules: dict[str, Any] = {"atol": PUBLISHED_TOLERANCE, "rtol": 0.0, "search": PublishedArmijo(max_trials=8)}
    # (J'J + 1e-3 I) in the sum scaling of the paper, eight iterations of conjugate gradients.
    damped = LevenbergMarquardt(
        ConjugateGradients(rtol=1e-12, max_steps=8),
        damping=1e-3 / dataset.train.y.shape[1],
        relaxation=0.4,
        active_set=False,
        **rules,
    )
    mean, ridge = mean_estimate(dataset), ridge_estimate(dataset, key=jax.random.key(1))
    theta = to_theta(dtype)
    row = functools.partial(
        _row,
        dataset,
        "published",
        forward=pair.forward,
        tolerance=PUBLISHED_TOLERANCE,
        x0=theta(jnp.zeros(len(LOW), dtype)),
        project=Box(jnp.asarray(LOW, dtype), jnp.asarray(HIGH, dtype)),
        decode=from_theta,
        max_steps=200,
        surrogate=True,
    )
    return [
        row("mean", "", lambda y: theta(mean(y))),
        row("ridge", "", lambda y: theta(ridge(y))),
        row("one-shot", "g(data)", pair.inverse),
        row("dipg", "", DIPG(pair.inverse, proposal="paper", relaxation=0.4, **rules)),
        row("gd", "", GradientDescent(0.4, **rules)),
        row("lm", "8 CG steps", damped),
    ]


def published_measures(dataset: Dataset, models: dict[str, Any], *, key: PRNGKeyArray) -> dict[str, Any]:
    """RJCP as the paper reports it, the misfit of the forward map, and the largest weight of the penalty."""
    pair, theta = models["pair"], jax.vmap(to_theta(dataset.val.x.dtype))(dataset.val.x)
    misfit = jax.vmap(pair.forward)(theta) - dataset.val.y
    value = rjcp(pair.forward, pair.inverse, theta, key=key, probe="normal", normalisation="sum")
    return {
        "RJCP sum": float(value),
        "validation MSE": float(jnp.mean(misfit**2)),
        "largest JCP weight": float(models["jcp_weight"]),
    }


# The default recipe ---------------------------------------------------------------------------------------------------


def oscillator_inverse(
    x: Float[Array, "n 5"], y: Float[Array, "n m"], *, key: PRNGKeyArray, physics: Any = None
) -> MLP:
    """An untrained network from the motion to the parameters."""
    sizes = (y.shape[1], 256, 256, 256, x.shape[1])
    return MLP(sizes, activation="gelu", init=kaiming_uniform(5**0.5), dtype=x.dtype, key=key)


def train_default(
    dataset: Dataset, *, key: PRNGKeyArray, folder: Any, progress: Any, quick: bool
) -> dict[str, InversePair]:
    """The model "good"."""
    options: dict[str, Any] = {"build": oscillator_inverse, "schedule": SCHEDULE}
    return {"good": train_inverse(dataset, key=key, folder=folder / "good", progress=progress, quick=quick, **options)}


def default_rows(dataset: Dataset, models: dict[str, InversePair]) -> list[Row]:
    """Baselines and solvers on the true physics; some of them once more, scored in the identifiable coordinates."""
    good, trust = models["good"].inverse, default_trust(dataset)
    zero = jnp.zeros_like(dataset.train.x[0])
    row = functools.partial(
        _row,
        dataset,
        "default",
        forward=dataset.physics,
        tolerance=TOLERANCE,
        x0=zero,
        project=Box(-UNIT, UNIT),
    )
    rms: dict[str, Any] = {"atol": TOLERANCE}
    stop = f"res <= {TOLERANCE:g}"
    shared = [
        ("mean", "", mean_estimate(dataset)),
        ("ridge", "", ridge_estimate(dataset, key=jax.random.key(1))),
        ("one-shot", "g(data)", good),
        ("dipg", stop, DIPG(good, **rms)),
        ("safeguarded", stop, Safeguarded(good, trust=trust, **rms)),
        ("lm", stop, LevenbergMarquardt(**rms)),
    ]
    identified = identified_scores(dataset)
    return [
        *(row(*line) for line in shared),
        row("dipg", f"{stop}, from the mean", DIPG(good, **rms, jump_first=False)),
        row("gn", stop, GaussNewton(**rms)),
        row("lbfgs", stop, LBFGS(**rms)),
        row("gd", stop, GradientDescent(**rms), max_steps=300),
        *(
            row(name, "; ".join(filter(None, (note, "c/m, k/m, x0, v0"))), method, **identified)
            for name, note, method in shared
        ),
    ]


class Identified(AbstractMap):
    """`(c / m, k / m, x0, v0)`, each in standard deviations over the training set, of the standardised `theta`."""

    theta: Affine
    std: Float[Array, "4"]

    def __init__(self, dataset: Dataset):
        self.theta = to_theta(dataset.train.x.dtype)
        self.std = jnp.std(jax.vmap(identifiable)(jax.vmap(self.theta)(dataset.train.x)), axis=0)

    def __call__(self, x: Float[Array, "5"]) -> Float[Array, "4"]:
        """The coordinates of `x`."""
        return identifiable(self.theta(x)) / self.std

    def in_structure(self) -> jax.ShapeDtypeStruct:
        """Shape and dtype of `x`."""
        return self.theta.in_structure()


def identified_scores(dataset: Dataset) -> dict[str, Any]:
    """What makes a `Row` judge its unknown in the identifiable coordinates."""
    decode, unit = Identified(dataset), jnp.ones(1, dataset.train.x.dtype)

    def physics(coordinates: Float[Array, "4"]) -> Float[Array, " m"]:
        # One oscillator of those with these coordinates: the one of unit mass.
        return dataset.physics(from_theta(jnp.concatenate([unit, coordinates * decode.std])))

    return {
        "decode": decode,
        "truth": jax.vmap(decode)(dataset.test.x),
        "physics": physics,
        "data": jnp.array(dataset.test.y),  # a copy, which keeps the row out of the figures: its solves are there
    }


def scale_floor(theta: Float[Array, "5"]) -> Float[Array, ""]:
    """Error of the best guess of `theta` by who knows `c / m`, `k / m`, `x0` and `v0` exactly, in prior deviations.

    Given the ratios, the density of `m` is proportional to `m^2` where `m`, `c` and `k` are in their ranges; the guess
    is its mean.
    """
    (m_low, _, k_low, *_), (m_high, c_high, k_high, *_) = LOW, HIGH
    m, c, k, *_ = theta
    low = jnp.maximum(m_low, k_low * m / k)
    high = jnp.minimum(m_high, jnp.minimum(c_high * m / c, k_high * m / k))
    guess = 0.75 * (high**4 - low**4) / (high**3 - low**3)
    factor = jnp.where(high > low, guess / m, 1.0)
    guessed = theta * jnp.stack([factor, factor, factor, jnp.ones_like(m), jnp.ones_like(m)])
    return jnp.sqrt(jnp.mean((from_theta(guessed) - from_theta(theta)) ** 2))


def measures(dataset: Dataset, models: dict[str, InversePair], *, key: PRNGKeyArray) -> dict[str, Any]:
    """What `default_measures` says, and what the unknown common factor of `m`, `c` and `k` costs at least."""
    floor = jax.vmap(scale_floor)(jax.vmap(to_theta(dataset.test.x.dtype))(dataset.test.x))
    found = default_measures(dataset, models, key=key)
    return found | {"RMSE x, c/m, k/m, x0 and v0 known": float(jnp.mean(floor))}


def _row(dataset: Dataset, recipe: str, solver: str, note: str, method: Any, **options: Any) -> Row:
    shared = {"data": dataset.test.y, "truth": dataset.test.x, "physics": dataset.physics}
    return Row(recipe, solver, note, method=method, **(shared | options))


OSCILLATOR = InverseProblem(
    name="oscillator",
    summary="mass, damping, stiffness and start of an oscillator from its noisy motion at 64 times",
    reference="A. L. Kachhadiya, Deceptron: Learned Local Inverses, 2025, arXiv:2511.21076",
    tolerance=TOLERANCE,
    num_test=500,
    dataset=dataset,
    recipes={
        "published": Recipe(train_published, published_rows, published_measures),
        "default": Recipe(train_default, default_rows, measures),
    },
    figure_recipe="default",
)
