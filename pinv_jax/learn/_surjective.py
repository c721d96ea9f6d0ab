"""Training of surjections: losses `(model, x, y, key) -> scalar`, and the recipes in two stages.

The model is an `AbstractSurjection` g, and `pinv` its exact right inverse g†. Losses of the task compare `g(x)` with a
target y; the others ask which right inverse `section` picks. Options are bound by `functools.partial`, as for the
losses of an `InversePair`.

References:
    Y. Ehrlich, A. Berman, A. Shocher, "Pseudo-Invertible Neural Networks", 2026, arXiv:2602.06042.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, PRNGKeyArray, PyTree, Scalar

from ..maps import AbstractSurjection, sections
from ._stage import Stage, Term

Loss = Callable[..., Any]


def _check(name: str, prediction: Array, y: Array, shapes: tuple[tuple[int, ...], ...]) -> None:
    if jnp.shape(y) not in shapes:
        expected = " or ".join(str(shape) for shape in shapes)
        raise ValueError(
            f"{name}: the model returns shape {prediction.shape} for one example, so the target is expected to have "
            f"shape {expected}; got {jnp.shape(y)}."
        )


def cross_entropy(model: Any, x: Float[Array, "*x"], y: Array, key: PRNGKeyArray) -> Scalar:
    """`-log softmax(g(x))[y]`, the task of a classifier.

    Args:
        model: returns logits, shape `(num_classes,)`.
        x: one example.
        y: an integer label, or the probabilities of the classes (one-hot, say).
        key: not used.

    Raises:
        ValueError: the target is neither.
    """
    logits = model(x)
    if jnp.issubdtype(jnp.result_type(y), jnp.integer):
        _check("cross_entropy", logits, y, ((),))
        return optax.losses.softmax_cross_entropy_with_integer_labels(logits, y)
    _check("cross_entropy", logits, y, (logits.shape,))
    return optax.losses.softmax_cross_entropy(logits, y.astype(logits.dtype))


def attributes(model: Any, x: Float[Array, "*x"], y: Array, key: PRNGKeyArray) -> Scalar:
    """The binary cross-entropy of the logits `g(x)`, summed over the attributes.

    Args:
        model: returns one logit per attribute.
        x: one example.
        y: which attributes hold: booleans, zeros and ones, or probabilities.
        key: not used.

    Raises:
        ValueError: the target has another shape than the logits.
    """
    logits = model(x)
    _check("attributes", logits, y, (logits.shape,))
    return jnp.sum(optax.losses.sigmoid_binary_cross_entropy(logits, y.astype(logits.dtype)))


def regression(model: Any, x: Float[Array, "*x"], y: Float[Array, "*y"], key: PRNGKeyArray) -> Scalar:
    """`mean((g(x) - y)^2)`: the task of imitating a known degradation `x -> y`."""
    prediction = model(x)
    _check("regression", prediction, y, (prediction.shape,))
    return jnp.mean((prediction - y) ** 2)


def right_inverse(model: Any, x: Float[Array, "*x"], y: Array, key: PRNGKeyArray) -> Scalar:
    """`mean((g(g†(s)) - s)^2)` at `s = g(x)`: zero by construction, up to rounding, and so are its gradients.

    A diagnostic. The published recipe gives it a weight all the same.
    """
    s = model(x)
    return jnp.mean((model(model.pinv(s)) - s) ** 2)


def surjective_reconstruction(model: Any, x: Float[Array, "*x"], y: Array, key: PRNGKeyArray) -> Scalar:
    """`mean((g†(g(x)) - x)^2)`: teaches `section` what was lost, and g to lose little."""
    return jnp.mean((model.pinv(model(x)) - x) ** 2)


def naturalness(model: Any, x: Float[Array, "*x"], y: Array, key: PRNGKeyArray) -> Scalar:
    """`mean((z(g†(g(x))) - z(0))^2)` over all lost coordinates: the natural loss of the paper.

    The z of `g†(s)` is `section(s)` itself: nothing is encoded a second time. The minimum is zero, at the constant
    section `z(0)`, which `maps.Natural` has without training; a section that depends on `g(x)` comes from
    `surjective_reconstruction`.

    Raises:
        ValueError: the model loses nothing.
    """
    structure = model.in_structure()
    origin = model.split(jnp.zeros(structure.shape, structure.dtype))[1]
    picked, natural = jax.tree.leaves(model.section(model(x))), jax.tree.leaves(origin)
    size = sum(part.size for part in natural)
    if size == 0:
        raise ValueError("naturalness: the model loses no coordinate, so that there is no section to train.")
    squares = [jnp.sum((a - b) ** 2) for a, b in zip(picked, natural, strict=True)]
    return jnp.sum(jnp.stack(squares)) / size


def but_sections(model: PyTree) -> list[Any]:
    """Every leaf of `model` that `maps.sections` leaves out: g without the section nets, for a `Stage`."""
    left_out = {id(leaf) for leaf in jax.tree.leaves(sections(model))}
    return [leaf for leaf in jax.tree.leaves(model) if id(leaf) not in left_out]


def surjective_score(
    model: AbstractSurjection[Any],
    start_model: Any,
    validation: PyTree,
    key: PRNGKeyArray,
    *,
    task: Loss,
    right_inverse_weight: float | int = 0.0,
    reconstruction_weight: float | int = 0.0,
) -> Scalar:
    """The loss of the first stage on validation data, for `Stage(select=...)`.

    Args:
        model: what is scored.
        start_model: not used.
        validation: a pair `(x, y)`.
        key: random key of the losses.
        task: a loss.
        right_inverse_weight: of `right_inverse`.
        reconstruction_weight: of `surjective_reconstruction`.
    """

    def one(x: Any, y: Any, key: Any) -> Scalar:
        loss = task(model, x, y, key)
        if right_inverse_weight != 0:
            loss = loss + right_inverse_weight * right_inverse(model, x, y, key)
        if reconstruction_weight != 0:
            loss = loss + reconstruction_weight * surjective_reconstruction(model, x, y, key)
        return loss

    xs, ys = validation
    return jnp.mean(jax.vmap(one)(xs, ys, jax.random.split(key, xs.shape[0])))


@dataclasses.dataclass(frozen=True)
class SurjectiveConstants:
    """The constants of the recipes; the defaults are the published ones, but for `right_inverse_weights`.

    Attributes:
        epochs: of the two stages.
        batch_size: examples per step.
        learning_rates: of Adam, in the two stages.
        right_inverse_weights: in the two stages; published 40 and 1. The term is zero, so that zero saves its cost.
        reconstruction_weights: in the two stages.
        natural_weight: in the second stage.
        warmup_steps: of the first stage, linear from zero.
        flat_share: of the first stage; after that share of its steps the rate falls linearly to zero. The rate of the
            second stage is constant.
        max_norm: to which the gradient is clipped.
    """

    epochs: tuple[int, int] = (10, 50)
    batch_size: int = 256
    learning_rates: tuple[float, float] = (2e-4, 1e-4)
    right_inverse_weights: tuple[float, float] = (0.0, 0.0)
    reconstruction_weights: tuple[float, float] = (40.0, 40.0)
    natural_weight: float = 0.1
    warmup_steps: int = 200
    flat_share: float = 0.4
    max_norm: float = 1.0


PUBLISHED_SURJECTIVE = SurjectiveConstants(right_inverse_weights=(40.0, 1.0))
"""The constants of the published code, with the right-inverse terms that change nothing."""


@functools.lru_cache(maxsize=64)  # equal arguments give the same object, so that a second fit does not compile again
def clipped_adam(
    learning_rate: float,
    *,
    num_steps: int | None = None,
    warmup_steps: int = 0,
    flat_share: float = 0.4,
    max_norm: float = 1.0,
) -> optax.GradientTransformation:
    """Clipping to a global norm, then Adam: constant rate, or a warm-up, a plateau and a linear decay to zero.

    Args:
        learning_rate: that of the plateau.
        num_steps: of the stage; the rate is constant without it.
        warmup_steps: the rate rises linearly over so many steps.
        flat_share: the rate falls after this share of `num_steps`.
        max_norm: of the gradient.
    """
    if num_steps is not None:
        rate = functools.partial(_rate, learning_rate, num_steps, max(warmup_steps, 1), num_steps * (1 - flat_share))
    else:
        rate = learning_rate
    return optax.chain(optax.clip_by_global_norm(max_norm), optax.adam(rate))


def _rate(peak: float, num_steps: int, warmup: int, fall: Any, step: Any) -> Any:
    return peak * jnp.clip(jnp.minimum((step + 1) / warmup, (num_steps - step) / fall), 0, 1)


def _everything(model: Any) -> Any:
    return model


def _two_stages(
    num_examples: int,
    c: SurjectiveConstants,
    terms: tuple[dict[str, Term], dict[str, Term]],
    trainable: Callable[..., Any],
    select: Callable[..., Any],
) -> dict[str, Stage]:
    steps_per_epoch = num_examples // c.batch_size
    if steps_per_epoch == 0:
        raise ValueError(
            f"{num_examples} examples are less than one batch of {c.batch_size}; pass constants with a smaller "
            "batch_size: SurjectiveConstants(batch_size=...)."
        )
    first, second = (epochs * steps_per_epoch for epochs in c.epochs)
    schedule = {"num_steps": first, "warmup_steps": c.warmup_steps, "flat_share": c.flat_share}
    optimisers = (
        clipped_adam(c.learning_rates[0], max_norm=c.max_norm, **schedule),
        clipped_adam(c.learning_rates[1], max_norm=c.max_norm),
    )
    return {
        "task": Stage(terms[0], trainable, first, c.batch_size, optimisers[0], select),
        "sections": Stage(terms[1], sections, second, c.batch_size, optimisers[1]),
    }


def surjective_stages(
    task: Loss, num_examples: int, *, constants: SurjectiveConstants = SurjectiveConstants()
) -> dict[str, Stage]:
    """The recipe of the published code: "task" trains everything, "sections" the section nets alone.

    | stage | loss | kept |
    |---|---|---|
    | "task" | `task + 40 reconstruction` | the best on validation data, by the same loss |
    | "sections" | `0.1 natural + 40 reconstruction` | the last |

    The second stage leaves g as it is, to the last bit. Ablations: `del stages["sections"]`,
    `stages["sections"].without("natural")` and so on. `stages["task"].without("reconstruction")` makes g lose what
    the task does not need.

    Args:
        task: a loss, such as `cross_entropy`, `attributes` or `regression`.
        num_examples: in the training set; an epoch is `num_examples // batch_size` steps.
        constants: see there.

    Returns:
        The stages by name, in order; `fit` them with `validation=(x, y)`.

    Raises:
        ValueError: fewer examples than a batch.
    """
    c = constants
    first = {
        "task": Term(task),
        "right_inverse": Term(right_inverse, c.right_inverse_weights[0]),
        "reconstruction": Term(surjective_reconstruction, c.reconstruction_weights[0]),
    }
    second = {
        "natural": Term(naturalness, c.natural_weight),
        "right_inverse": Term(right_inverse, c.right_inverse_weights[1]),
        "reconstruction": Term(surjective_reconstruction, c.reconstruction_weights[1]),
    }
    select = functools.partial(
        surjective_score,
        task=task,
        right_inverse_weight=c.right_inverse_weights[0],
        reconstruction_weight=c.reconstruction_weights[0],
    )
    return _two_stages(num_examples, c, (first, second), _everything, select)


def natural_stages(
    task: Loss, num_examples: int, *, constants: SurjectiveConstants = SurjectiveConstants()
) -> dict[str, Stage]:
    """The recipe of the paper: "task" trains g alone on the task, "sections" the section nets on the natural loss.

    The second stage ends near the constant section that `maps.Natural` has without training: it is here to compare.

    Args:
        task: a loss, such as `cross_entropy`, `attributes` or `regression`.
        num_examples: in the training set; an epoch is `num_examples // batch_size` steps.
        constants: the weights among them are not used.

    Returns:
        The stages by name, in order; `fit` them with `validation=(x, y)`.

    Raises:
        ValueError: fewer examples than a batch.
    """
    terms = {"task": Term(task)}, {"natural": Term(naturalness)}
    return _two_stages(num_examples, constants, terms, but_sections, functools.partial(surjective_score, task=task))
