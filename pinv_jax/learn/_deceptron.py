"""The recipe of the workshop paper: ridge prefit, then all seven terms together, the penalty on a ramp.

References:
    A. L. Kachhadiya, Deceptron: Learned Local Inverses for Fast and Stable Physics Inversion, 2025, arXiv:2511.21076.
"""

import functools
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int, PyTree, Scalar

from ._losses import bias_tie, composition, cycle, forward_fit, jcp, reconstruction, spectral
from ._pair import Deceptron
from ._stage import Gated, Stage, Term


def ridge_prefit(
    model: Deceptron, xs: Float[Array, "n d"], ys: Float[Array, "n m"], *, ridge: float = 1e-4
) -> Deceptron:
    """`W = Y'X (X'X + ridge I)^-1` and `V = (W'W + ridge I)^-1 W'`, without intercept.

    So the inverse starts as a damped pseudo-inverse of the forward map. A tied inverse stays the transpose.

    Args:
        model: its biases are kept.
        xs: training inputs with a leading axis.
        ys: training outputs with a leading axis.
        ridge: in the sum scaling, not per example.
    """
    eye = jnp.eye(xs.shape[1], dtype=xs.dtype)
    with jax.default_matmul_precision("highest"):
        weight = jnp.linalg.solve(xs.T @ xs + ridge * eye, xs.T @ ys).T
        inverse_weight = jnp.linalg.solve(weight.T @ weight + ridge * eye, weight.T)
    model = eqx.tree_at(lambda m: m.weight, model, weight)
    if model.inverse_weight is None:
        return model
    return eqx.tree_at(lambda m: m.inverse_weight, model, inverse_weight)


def _ramp(epoch: Int[Array, ""], *, peak: float | int, first: int, last: int) -> Scalar:
    return peak * (0.2 + 0.8 * jnp.clip((epoch - first) / (last - first), 0, 1))


def _fits(
    model: Any, validation: PyTree, epoch: Int[Array, ""], *, trigger: float | int, first: int
) -> Bool[Array, ""]:
    xs, ys = validation
    error = jnp.mean((jax.vmap(model.forward)(xs) - ys) ** 2)
    return (error < trigger) & (epoch >= first)


def jcp_ramp(*, peak: float | int = 1e-3, trigger: float | int = 0.07, first: int = 12, last: int = 48) -> Gated:
    """The weight `peak (0.2 + 0.8 t)`, `t = clip((epoch - first) / (last - first), 0, 1)`, zero until the model fits.

    It opens at the first epoch `>= first` that begins with `mean((f(x) - y)^2) < trigger` on the validation data.
    Epochs count from zero. Where the forward map never fits, the penalty never acts: that is so for the published
    oscillator.

    Args:
        peak: the final weight, for the sum normalisation.
        trigger: 0.07 for the linear pair, 0.6 for the leaky one.
        first: epoch at which the ramp begins.
        last: epoch at which it ends.
    """
    weight = functools.partial(_ramp, peak=peak, first=first, last=last)
    return Gated(weight, functools.partial(_fits, trigger=trigger, first=first))


@functools.lru_cache(maxsize=8)
def _optimiser() -> optax.GradientTransformation:
    return optax.chain(optax.clip_by_global_norm(0.5), optax.adam(5e-4))


def _everything(model: Any) -> Any:
    return model


def deceptron_stage(
    num_examples: int, *, epochs: int = 60, batch_size: int = 128, trigger: float | int = 0.07
) -> dict[str, Stage]:
    """The one stage "joint": both maps, all seven terms, no selection (the last epoch is kept).

    The ablations are `stages["joint"].without("jcp")` and so on. The penalty has normal probes, sum normalisation, and
    a gradient that reaches the forward map too.

    Args:
        num_examples: in the training set; an epoch is `num_examples // batch_size` steps.
        epochs: of the training.
        batch_size: examples per step.
        trigger: see `jcp_ramp`.

    Raises:
        ValueError: fewer examples than a batch.
    """
    if num_examples < batch_size:
        raise ValueError(
            f"deceptron_stage: {num_examples} examples are less than one batch of {batch_size}; pass a smaller one."
        )
    penalty = functools.partial(jcp, probe="normal", normalisation="sum", num_probes=2, detach_forward=False)
    terms = {
        "forward_fit": Term(forward_fit),
        "reconstruction": Term(functools.partial(reconstruction, source="prediction"), 0.1),
        "cycle": Term(cycle, 0.05),
        "spectral": Term(spectral, 1e-6),
        "bias_tie": Term(bias_tie, 1e-4),
        "composition": Term(composition, 1e-3),
        "jcp": Term(penalty, jcp_ramp(trigger=trigger)),
    }
    num_steps = epochs * (num_examples // batch_size)
    return {"joint": Stage(terms, _everything, num_steps, batch_size, _optimiser())}
