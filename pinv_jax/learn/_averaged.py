"""Training with averaged weights: `AveragedStage` keeps an exponential moving average beside the trained model."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import PRNGKeyArray, PyTree

from ..maps import store
from ._stage import AbstractStage, Batch, Row, Stage


class Averaged(eqx.Module):
    """What an `AveragedStage` trains; begin with `Averaged(model, model)`.

    Attributes:
        model: as the optimiser left it.
        average: with the moving average of its parameters.
    """

    model: Any
    average: Any


class _Both(eqx.Module):
    trainable: Any

    def __call__(self, pair: Averaged) -> tuple[Any, Any]:
        return self.trainable(pair.model), self.trainable(pair.average)


class AveragedStage(AbstractStage):
    """A `Stage` of the `model` of an `Averaged`, with `average = d average + (1 - d) model` after every step.

    At first `d` grows as `(1 + step) / (10 + step)`, so that the start is soon forgotten.

    Args:
        stage: without selection and without `Gated` weights.
        decay: the largest `d`, below one.

    Raises:
        ValueError: a decay that is not between 0 and 1, or a stage that selects or waits.
    """

    stage: Stage
    decay: float = eqx.field(static=True)
    trainable: Any
    num_steps: int
    batch_size: int
    select: Any

    def __init__(self, stage: Stage, decay: float | int = 0.999):
        if not 0 <= decay < 1:
            raise ValueError(f"AveragedStage: decay={decay}, expected at least 0 and below 1.")
        if stage.select is not None or stage.gated:
            raise ValueError("AveragedStage expected a stage without selection and Gated weights.")
        self.stage, self.decay = stage, float(decay)
        self.trainable = store(_Both(stage.trainable))
        self.num_steps, self.batch_size, self.select = stage.num_steps, stage.batch_size, None

    @property
    def names(self) -> tuple[str, ...]:
        """See `AbstractStage`."""
        return self.stage.names

    def bare(self) -> "AveragedStage":
        """See `AbstractStage`."""
        return AveragedStage(self.stage.bare(), self.decay)

    def check(self, name: str) -> None:
        """See `AbstractStage`."""
        self.stage.check(name)

    def start(self, params: PyTree, frozen: PyTree, data: Any) -> PyTree:
        """See `AbstractStage`."""
        return self.stage.start(params.model, frozen.model, data)

    def advance(
        self, params: PyTree, frozen: PyTree, state: PyTree, batch: Batch, key: PRNGKeyArray
    ) -> tuple[PyTree, PyTree, Row]:
        """See `AbstractStage`."""
        model, state, row = self.stage.advance(params.model, frozen.model, state, batch, key)
        decay = jnp.minimum(self.decay, (1 + batch.step) / (10 + batch.step))
        average = jax.tree.map(lambda a, b: a + (1 - decay).astype(a.dtype) * (b - a), params.average, model)
        return Averaged(model, average), state, row
