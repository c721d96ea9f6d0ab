"""The study `restore-logits`: from the logits of a classifier back to digits that are plausible and meet the logits.

The classifier is the surjective network of `digits-spnn`; its logits of held-out digits are the observations. Samples
of a diffusion prior are back-projected onto them at every step. Whether a sample shows the class that was asked for is
judged by a support vector machine, trained on digits that neither the classifier, nor the prior, nor the observations
have seen.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from .. import plots
from ..diffusion import DDNM, DDPM, DPS, project_after, published_guide, sample
from ..maps import Natural, prepare
from ._digits import Labelled, digits, digits_spnn
from ._guided import (
    all_samples,
    best_scale,
    dense_prior,
    draw,
    misses,
    nearest,
    of_unit,
    over_seeds,
    spread,
    spread_within,
    to_unit,
)
from ._study import Bench, Findings, Study

NUM_ITEMS = 100
Judge = Callable[[Array], np.ndarray]


def vector_machine(data: Labelled) -> Judge:
    """A support vector machine with Gaussian kernels: `images between 0 and 1 -> labels`."""
    from sklearn.svm import SVC

    flat = lambda x: np.asarray(x, np.float64).reshape(len(x), -1)
    machine = SVC(C=10.0, gamma="scale").fit(flat(data.x), np.asarray(data.y))
    return lambda x: machine.predict(flat(x))


def observed_digits(bench: Bench) -> tuple[dict[str, Labelled], Labelled, Judge]:
    """The parts of the data, the held-out digits to restore, and the judge, which is trained on the rest of them."""
    data = digits(bench.dtype, quick=bench.quick)
    num = 8 if bench.quick else NUM_ITEMS
    test = data["test"]
    asked, rest = Labelled(test.x[:num], test.y[:num]), Labelled(test.x[num:], test.y[num:])  # pyright: ignore[reportCallIssue]
    return data, asked, vector_machine(rest)


def guided(make: Callable[..., Any], num_steps: int, models: Any, y: Float[Array, "*y"], key: PRNGKeyArray) -> Array:
    """Ancestral sampling with the guide `make(models, y)`."""
    return sample(models["prior"], DDPM(num_steps), key=key, guide=make(models, y))


def _published(num_steps: int, models: Any, y: Array, key: PRNGKeyArray) -> Array:
    return sample(models["prior"], DDNM(num_steps), key=key, guide=published_guide(models["f"], y))


def dps(models: Any, y: Array) -> DPS:
    """DPS through the network `models["f"]`."""
    return DPS(models["f"], y, models["scale"])


@functools.cache
def methods(num_steps: int) -> dict[str, tuple[Any, int, bool]]:
    """By name: `(models, y, key) -> x`, evaluations of the denoiser, and whether its derivative is needed as well."""
    by = lambda make: functools.partial(guided, make, num_steps)
    return {
        "prior alone": (by(lambda models, y: None), num_steps, False),
        "pinv, natural": (lambda models, y, key: models["natural"].pinv(y), 0, False),
        "pinv, learned section": (lambda models, y, key: models["f"].pinv(y), 0, False),
        "DPS": (by(dps), num_steps, True),
        "NLBP, published constants": (functools.partial(_published, num_steps), num_steps, False),
        "NLBP, natural": (by(lambda models, y: project_after(models["natural"], y)), num_steps, False),
        "NLBP, learned section": (by(lambda models, y: project_after(models["f"], y)), num_steps, False),
    }


def judged_scale(
    models: dict[str, Any], items: Array, asked: np.ndarray, judge: Judge, num_steps: int, key: PRNGKeyArray
) -> Array:
    """The scale of DPS whose samples the judge agrees with most often."""
    score = lambda x: np.mean(judge(to_unit(x[0])) == asked)
    return best_scale(functools.partial(guided, dps, num_steps), models, items, score, key=key)


def compare(
    bench: Bench,
    methods: Mapping[str, tuple[Any, int, bool]],
    models: Any,
    truth: Any,
    asked: Labelled,
    train: Labelled,
    judge: Judge,
) -> Findings:
    """The table of methods that restore digits from what a network says of them.

    Args:
        bench: of the study.
        methods: by name, as `methods` returns them; the last one is drawn in several samples.
        models: what they share.
        truth: the network itself, on images between -1 and 1; by it the samples are consistent or not.
        asked: the held-out digits, between 0 and 1.
        train: the digits of training.
        judge: of the samples.
    """
    x, real = 2 * asked.x - 1, 2 * train.x - 1
    y = jax.jit(jax.vmap(truth))(x)
    wanted = np.asarray(models["classes"](x))
    num_seeds = 2 if bench.quick else 3
    ruler = nearest(x, real), spread_within(real, np.asarray(train.y))

    def row(name: str, found: Array, seconds: float | None, cost: int, *, derivative: bool) -> dict[str, Any]:
        missed = np.asarray(misses(truth, found, y))
        right = judge(to_unit(all_samples(found))).reshape(found.shape[:2]) == wanted[None]
        return {
            "method": name,
            **over_seeds(right),
            "consistency": float(np.median(missed)),
            "worst": float(np.max(missed)),
            "nearest": nearest(all_samples(found), real) / ruler[0],
            "diversity": spread(found) / ruler[1],
            "evaluations": cost,
            "derivatives": cost if derivative else 0,
            "CPU ms": None if seconds is None else 1e3 * seconds,
        }

    rows = [row("held-out digits themselves", x[None], None, 0, derivative=False)]
    arrays = {"digit": to_unit(x[:10, 0])}
    found = None
    shared = {name: model for name, model in models.items() if name != "classes"}
    for name, (method, cost, derivative) in methods.items():
        found = draw(method, shared, y, key=bench.key, num_seeds=num_seeds if cost else 1)
        rows.append(row(name, found.x, found.seconds, cost, derivative=derivative))
        arrays[name] = to_unit(found.x[0, :10, 0])
    if found is not None:
        for seed in range(1, len(found.x)):
            arrays[f"{name}, sample {seed + 1}"] = to_unit(found.x[seed, :10, 0])
        arrays["deviation of the samples"] = jnp.std(to_unit(found.x[:, :10, 0]), axis=0)
    measures = {
        "digits": len(x),
        "seeds": num_seeds,
        "accuracy of the judge": float(np.mean(judge(asked.x) == np.asarray(asked.y))),
        "nearest training digit, held-out digits": ruler[0],
        "distance within a class, training digits": ruler[1],
    }
    return Findings(rows, measures, {name: np.asarray(array) for name, array in arrays.items()})


def digit_prior(bench: Bench, train: Labelled) -> Any:
    """A prior for digits between -1 and 1."""
    return dense_prior(bench, "prior", 2 * train.x - 1, (1, 8, 8), width=256, num_steps=8000, batch_size=128)


def logits(bench: Bench) -> Findings:
    """Every method on the logits of held-out digits."""
    data, asked, judge = observed_digits(bench)
    g, _ = digits_spnn(bench, data)
    f = prepare(of_unit(g))
    models = {"prior": digit_prior(bench, data["train"]), "f": f, "natural": prepare(Natural(f))}
    num_steps, models["scale"] = 8 if bench.quick else 50, jnp.asarray(0.1, bench.dtype)
    if not bench.quick:
        choice = jax.jit(jax.vmap(f))(2 * data["val"].x[:16] - 1)
        models["scale"] = judged_scale(models, choice, np.argmax(choice, axis=1), judge, num_steps, bench.key)
    models["classes"] = lambda x: jnp.argmax(jax.vmap(f)(x), axis=1)
    found = compare(bench, methods(num_steps), models, f, asked, data["train"], judge)
    found.measures["scale of DPS"] = float(models["scale"])
    return found


def figures(found: Mapping[str, Findings]) -> dict[str, Any]:
    """The digits that were asked for, and what every method returned."""
    return {
        name: plots.image_grid(
            {title.replace(", ", ",\n"): array for title, array in part.arrays.items()}, limits=(0.0, 1.0)
        )
        for name, part in found.items()
    }


REFERENCE = "Y. Ehrlich, A. Berman, A. Shocher, Pseudo-Invertible Neural Networks, 2026, arXiv:2602.06042"

RESTORE_LOGITS = Study(
    name="restore-logits",
    summary="from the logits of a surjective classifier back to plausible digits, judged by another classifier",
    reference=REFERENCE,
    recipes={"logits": logits},
    figures=figures,
)
