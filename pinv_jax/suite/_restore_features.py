"""The study `restore-features`: digits from the logits, or the penultimate features, of an ordinary classifier.

The classifier is a flax network that knows nothing of inverses, trained by its own loop. A surjective network imitates
it; samples of the prior are back-projected by that one, and a few Gauss-Newton steps finish on the classifier itself.
Parts: `logits`, and `features`, the 24 numbers of its last hidden layer. The judge is that of `restore-logits`.
"""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, PRNGKeyArray

from .._problem import Problem
from ..diffusion import project_after
from ..learn import imitate, ridge_network
from ..maps import AbstractMap, Flatten, Natural, SurjectiveChain, from_flax, prepare
from ..solvers import SVD, GaussNewton, solve
from ._digits import Labelled, key_of
from ._guided import Corrected
from ._restore_logits import (
    REFERENCE,
    compare,
    digit_prior,
    dps,
    figures,
    guided,
    judged_scale,
    observed_digits,
)
from ._study import Bench, Findings, Study

NUM_FEATURES = 24


def ordinary_classifier(bench: Bench, train: Labelled) -> Mapping[str, AbstractMap]:
    """A perceptron in flax, trained on digits between -1 and 1: its `"logits"` and its `"features"` as maps."""
    try:
        from flax import linen
    except ImportError as error:
        raise ValueError('The ordinary classifier is written in flax: pip install "pinv_jax[flax]"') from error

    class Classifier(linen.Module):
        def setup(self) -> None:
            dense = functools.partial(linen.Dense, param_dtype=bench.dtype)
            self.first, self.second, self.last = dense(128), dense(NUM_FEATURES), dense(10)

        def features(self, x: Array) -> Array:
            return linen.gelu(self.second(linen.gelu(self.first(jnp.ravel(x)))))

        def __call__(self, x: Array) -> Array:
            return self.last(self.features(x))

    structure = jax.ShapeDtypeStruct((1, 8, 8), bench.dtype)
    module, key = Classifier(), key_of(bench, "ordinary")
    variables = module.init(key, jnp.zeros(structure.shape, structure.dtype))
    optimiser = optax.adamw(2e-3, weight_decay=1e-3)

    def loss(variables: Any, x: Array, y: Array) -> Array:
        logits: Any = jax.vmap(lambda x: module.apply(variables, x))(x)
        return jnp.mean(optax.losses.softmax_cross_entropy_with_integer_labels(logits, y))

    @jax.jit
    def fit(variables: Any, key: PRNGKeyArray) -> Any:
        def step(index: Array, carry: Any) -> Any:
            variables, state = carry
            rows = jax.random.randint(jax.random.fold_in(key, index), (64,), 0, len(train.x))
            gradient = jax.grad(loss)(variables, 2 * train.x[rows] - 1, train.y[rows])
            updates, state = optimiser.update(gradient, state, variables)
            return optax.apply_updates(variables, updates), state

        return jax.lax.fori_loop(0, 300 if bench.quick else 3000, step, (variables, optimiser.init(variables)))[0]

    variables = fit(variables, key)
    return {
        "logits": from_flax(module, structure, variables=variables),
        "features": from_flax(module, structure, variables=variables, method="features"),
    }


def stand_in(bench: Bench, name: str, h: AbstractMap, train: Labelled) -> Any:
    """A surjective network that imitates h on digits, clean and noisy; and its errors."""
    x = 2 * train.x - 1
    keys = jax.random.split(key_of(bench, name), 4)
    noisy = [x + std * jax.random.normal(key, x.shape, x.dtype) for std, key in zip((0.1, 0.3), keys, strict=False)]
    examples = jnp.concatenate([x, *noisy])
    y = jax.jit(jax.vmap(h))(examples)
    flatten = Flatten((1, 8, 8), bench.dtype)  # on vectors the couplings are perceptrons, which are faster
    ridge = ridge_network(jax.vmap(flatten)(examples), y, key=keys[2])
    model = SurjectiveChain([flatten, *ridge.layers])
    found = imitate(
        h,
        (examples, y),
        model=model,
        key=keys[3],
        num_steps=200 if bench.quick else 4000,
        checkpoint=bench.fits.parent / f"stand-in {name}",
        progress=bench.progress,
    )
    return prepare(Natural(found.model)), found.errors


def finish(h: Any, x: Array, y: Array) -> Array:
    """Gauss-Newton on the classifier itself."""
    return solve(Problem(h, y), GaussNewton(SVD(rcond=1e-3)), x, max_steps=20).value


def _finished(method: Any) -> Any:
    return lambda models, y, key: finish(models["f"], method(models, y, key), y)


@functools.cache
def methods(num_steps: int) -> dict[str, tuple[Any, int, bool]]:
    """As in `restore-logits`; `models["f"]` is the classifier and `models["stand-in"]` what imitates it."""
    by = lambda make: functools.partial(guided, make, num_steps)
    ours = by(lambda models, y: project_after(models["stand-in"], y))
    corrected = by(lambda models, y: Corrected(models["stand-in"], models["f"], y, 0.0))  # pyright: ignore[reportCallIssue]
    return {
        "prior alone": (by(lambda models, y: None), num_steps, False),
        "pinv of the stand-in": (lambda models, y, key: models["stand-in"].pinv(y), 0, False),
        "Gauss-Newton from the mean": (lambda models, y, key: finish(models["f"], models["mean"], y), 0, False),
        "DPS": (by(dps), num_steps, True),
        "NLBP on the stand-in": (ours, num_steps, False),
        "NLBP on the stand-in, then Gauss-Newton": (_finished(ours), num_steps, False),
        "NLBP, corrected by the classifier": (corrected, num_steps, False),
        "NLBP, corrected, then Gauss-Newton": (_finished(corrected), num_steps, False),
    }


def restored(bench: Bench, what: str) -> Findings:
    """Every method on what the classifier says of held-out digits."""
    data, asked, judge = observed_digits(bench)
    maps = ordinary_classifier(bench, data["train"])
    h, classifier = maps[what], maps["logits"]
    model, errors = stand_in(bench, what, h, data["train"])
    mean = jnp.mean(2 * data["train"].x - 1, axis=0)
    models = {"prior": digit_prior(bench, data["train"]), "f": h, "stand-in": model, "mean": mean}
    num_steps, models["scale"] = 8 if bench.quick else 50, jnp.asarray(0.1, bench.dtype)
    if not bench.quick:
        x = 2 * data["val"].x[:16] - 1
        items, classes = jax.jit(jax.vmap(h))(x), jnp.argmax(jax.jit(jax.vmap(classifier))(x), axis=1)
        models["scale"] = judged_scale(models, items, np.asarray(classes), judge, num_steps, bench.key)
    models["classes"] = lambda x: jnp.argmax(jax.vmap(classifier)(x), axis=1)
    found = compare(bench, methods(num_steps), models, h, asked, data["train"], judge)
    x = 2 * asked.x - 1
    found.measures.update(
        {
            "scale of DPS": float(models["scale"]),
            "fit of the stand-in": errors.fit,
            "consistency of the stand-in": errors.consistency,
            "accuracy of the classifier": float(np.mean(np.asarray(models["classes"](x)) == np.asarray(asked.y))),
        }
    )
    return found


RESTORE_FEATURES = Study(
    name="restore-features",
    summary="digits from the logits and from the features of an ordinary classifier in flax, imitated",
    reference=REFERENCE,
    recipes={
        "logits": functools.partial(restored, what="logits"),
        "features": functools.partial(restored, what="features"),
    },
    figures=figures,
)
