"""What training is made of: weighted `Term`s, `Stage`s, and the record `StageHistory` that `fit` returns."""

import abc
import functools
import zlib
from collections.abc import Callable, Mapping
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Int, PRNGKeyArray, PyTree, Scalar

from ..maps import prepare, store


def _bound(fn: Any) -> Any:
    """`store(fn)`, with a `functools.partial` opened up, so that equal options compare equal and arrays are leaves."""
    if isinstance(fn, functools.partial):
        fn = jax.tree_util.Partial(fn.func, *fn.args, **fn.keywords)
    return store(fn)


def name_key(key: PRNGKeyArray, name: str) -> PRNGKeyArray:
    """A key of its own for what has this name."""
    return jax.random.fold_in(key, np.uint32(zlib.crc32(name.encode())))


class Gated(eqx.Module):
    """A weight that is zero until a condition is first met at the start of a round, and follows a schedule from then.

    Args:
        weight: `round -> weight`; rounds count from zero.
        opens: `(model, validation, round) -> bool`, evaluated at the start of each round; once true it stays open.
    """

    weight: Any
    opens: Any

    def __init__(self, weight: Callable[..., Any], opens: Callable[..., Any]):
        self.weight = _bound(weight)
        self.opens = _bound(opens)


class Term(eqx.Module):
    """One term of a training loss.

    Args:
        loss: `(model, x, y, key) -> scalar` on one example; options are best bound by `functools.partial`.
        weight: a number, an optax schedule `step -> weight` (steps count within the stage), or a `Gated`. A term whose
            weight is the number zero is not evaluated.
        num_examples: the term sees only the first so many examples of each batch; all by default.
    """

    loss: Any
    weight: Any
    num_examples: int | None = None

    def __init__(self, loss: Callable[..., Any], weight: Any = 1.0, num_examples: int | None = None):
        self.loss = _bound(loss)
        self.weight = weight if isinstance(weight, Gated) else _bound(weight)
        self.num_examples = num_examples


class Batch(eqx.Module):
    """What one step of training sees.

    Attributes:
        x, y: examples, with a leading axis.
        rows: which of the training set they are; `None` where they are drawn by a sampler.
        step: counted from the start of the stage.
        round: likewise.
        gates: which `Gated` weights are open, by name.
    """

    x: PyTree
    y: PyTree
    rows: Int[Array, " batch"] | None
    step: Int[Array, ""]
    round: Int[Array, ""]
    gates: dict[str, Array]


Row = tuple[Scalar, dict[str, Scalar], dict[str, Scalar]]
"""Loss, terms and weights of one step, as in `StageHistory`."""


class AbstractStage(eqx.Module):
    """A stretch of training, of which `fit` makes the loop: batches, rounds, selection, checkpoints, progress.

    Implementing a stage:

    - `trainable`, `num_steps`, `batch_size` and `select` as in `Stage`;
    - `names`: of the columns of the history;
    - `start(params, frozen, data)` makes the state, any pytree of arrays; `data` is the training pair, or a sampler;
    - `advance(params, frozen, state, batch, key)` makes one step and says what it cost;
    - `bare()` is the stage with whatever `advance` does not depend on left out, so that it does not compile again.
    """

    trainable: eqx.AbstractVar[Any]
    num_steps: eqx.AbstractVar[int]
    batch_size: eqx.AbstractVar[int]
    select: eqx.AbstractVar[Any]

    @property
    @abc.abstractmethod
    def names(self) -> tuple[str, ...]:
        """Of the columns of the history."""

    @property
    def gated(self) -> dict[str, Gated]:
        """The weights that wait for a condition, by name."""
        return {}

    @abc.abstractmethod
    def bare(self) -> "AbstractStage":
        """The stage with whatever a step does not depend on left out."""

    @abc.abstractmethod
    def start(self, params: PyTree, frozen: PyTree, data: Any) -> PyTree:
        """The state before the first step."""

    @abc.abstractmethod
    def advance(
        self, params: PyTree, frozen: PyTree, state: PyTree, batch: Batch, key: PRNGKeyArray
    ) -> tuple[PyTree, PyTree, Row]:
        """One step: parameters, state and record after it."""

    def check(self, name: str) -> None:
        """Raises a `ValueError` for options that do not fit together."""


class Stage(AbstractStage):
    """A stretch of training: what is minimised, over what, and what is kept.

    An ablation is `del stages[name]`, a stage without a term, or a weight of zero. The random numbers of a term depend
    on its name, so that the other terms of an ablation see the same examples and probes.

    Args:
        terms: by name; the loss is their weighted sum, each averaged over its examples.
        trainable: `model -> part of the model` (or a list of parts) that the stage may change.
        num_steps: optimiser steps.
        batch_size: examples per step.
        optimiser: an optax gradient transformation.
        select: `(model, start_model, validation, key) -> score`, evaluated after each round: the model with the lowest
            score is kept. `start_model` is the model the stage began with. `None` keeps the last one.
    """

    terms: dict[str, Term]
    trainable: Any
    num_steps: int
    batch_size: int
    optimiser: optax.GradientTransformation
    select: Any

    def __init__(
        self,
        terms: Mapping[str, Term],
        trainable: Callable[..., Any],
        num_steps: int,
        batch_size: int,
        optimiser: optax.GradientTransformation,
        select: Callable[..., Any] | None = None,
    ):
        self.terms = dict(terms)
        self.trainable = store(trainable)
        self.num_steps = num_steps
        self.batch_size = batch_size
        self.optimiser = optimiser
        self.select = _bound(select)

    def without(self, *names: str) -> "Stage":
        """The same stage without these terms.

        Raises:
            ValueError: if there is no such term.
        """
        if missing := [name for name in names if name not in self.terms]:
            raise ValueError(f"The stage has no term {missing}; it has {sorted(self.terms)}.")
        terms = {name: term for name, term in self.terms.items() if name not in names}
        return Stage(terms, self.trainable, self.num_steps, self.batch_size, self.optimiser, self.select)

    @property
    def names(self) -> tuple[str, ...]:
        """See `AbstractStage`."""
        return tuple(self.terms)

    @property
    def gated(self) -> dict[str, Gated]:
        """See `AbstractStage`."""
        return {name: term.weight for name, term in self.terms.items() if isinstance(term.weight, Gated)}

    def check(self, name: str) -> None:
        """See `AbstractStage`."""
        if not self.terms:
            raise ValueError(
                f"Stage {name!r} has no term with a weight; to leave a stage out, write del stages[{name!r}]."
            )

    def bare(self) -> "Stage":
        """See `AbstractStage`."""
        return Stage(self.terms, _whole, 0, self.batch_size, self.optimiser, self.select)

    def start(self, params: PyTree, frozen: PyTree, data: Any) -> PyTree:
        """See `AbstractStage`."""
        del frozen, data
        return self.optimiser.init(params)

    def advance(
        self, params: PyTree, frozen: PyTree, state: PyTree, batch: Batch, key: PRNGKeyArray
    ) -> tuple[PyTree, PyTree, Row]:
        """See `AbstractStage`."""
        weights = {name: self._weight(name, batch) for name in self.terms}
        (loss, (values, used)), grads = eqx.filter_value_and_grad(self._total, has_aux=True)(
            params, frozen, batch, weights, key
        )
        updates, state = self.optimiser.update(grads, state, params)
        return eqx.apply_updates(params, updates), state, (loss, values, used)

    def _weight(self, name: str, batch: Batch) -> Any:
        weight = self.terms[name].weight
        if isinstance(weight, Gated):
            return jnp.where(batch.gates[name], weight.weight(batch.round), 0.0)
        return weight(batch.step) if callable(weight) else weight

    def _total(
        self, params: PyTree, frozen: PyTree, batch: Batch, weights: dict[str, Any], key: PRNGKeyArray
    ) -> tuple[Scalar, tuple[dict[str, Scalar], dict[str, Scalar]]]:
        model = prepare(eqx.combine(params, frozen))
        values = {}
        for name, term in self.terms.items():
            count = self.batch_size if term.num_examples is None else min(term.num_examples, self.batch_size)
            keys = jax.random.split(name_key(key, name), count)
            first = jax.tree.map(lambda a, n=count: a[:n], (batch.x, batch.y))
            each = jax.vmap(functools.partial(term.loss, model))(*first, keys)
            if each.shape != (count,):
                raise ValueError(
                    f"The loss of term {name!r} has shape {each.shape[1:]} per example; expected a scalar."
                )
            values[name] = jnp.mean(each)
        used = {name: jnp.asarray(weights[name], values[name].dtype) for name in values}
        dtype = jax.tree.leaves(batch.x)[0].dtype
        total = sum((used[name] * values[name] for name in values), start=jnp.zeros((), dtype))
        return total, (values, used)


def _whole(model: Any) -> Any:
    return model


class StageHistory(eqx.Module):
    """What happened in a stage, as NumPy arrays.

    Attributes:
        loss: the weighted loss of each step.
        terms: each term, unweighted, at each step.
        weights: the weight of each term at each step.
        score: the selection score after each round; NaN without selection.
        best_round: the round whose model was kept.
    """

    loss: np.ndarray
    terms: dict[str, np.ndarray]
    weights: dict[str, np.ndarray]
    score: np.ndarray
    best_round: int
