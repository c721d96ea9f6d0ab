"""What training is made of: weighted `Term`s, `Stage`s, and the record `StageHistory` that `fit` returns."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import equinox as eqx
import jax
import numpy as np
import optax

from ..maps import store


def _bound(fn: Any) -> Any:
    """`store(fn)`, with a `functools.partial` opened up, so that equal options compare equal and arrays are leaves."""
    if isinstance(fn, functools.partial):
        fn = jax.tree_util.Partial(fn.func, *fn.args, **fn.keywords)
    return store(fn)


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


class Stage(eqx.Module):
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
