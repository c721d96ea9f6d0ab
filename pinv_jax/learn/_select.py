"""Which round of a stage to keep: scores `(model, start_model, validation, key) -> scalar`, lowest is best.

`validation` is a pair `(x, y)` with a leading axis. Options are bound by `functools.partial`.

References:
    P2: A. L. Kachhadiya, Local Inverse Geometry Can Be Amortized, 2026, arXiv:2605.13068.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import PRNGKeyArray, PyTree, Scalar

from ..diagnostics import DataMetric, rjcp
from ._losses import forward_fit, reconstruction


def _mean(loss: Any, model: Any, validation: PyTree, key: PRNGKeyArray) -> Scalar:
    xs, ys = validation
    keys = jax.random.split(key, xs.shape[0])
    return jnp.mean(jax.vmap(lambda x, y, k: loss(model, x, y, k))(xs, ys, keys))


def _rjcp(
    model: Any, validation: PyTree, key: PRNGKeyArray, num_probes: int, num_examples: int, metric: DataMetric | None
) -> Scalar:
    xs = validation[0][:num_examples]
    return rjcp(model.forward, model.inverse, xs, key=key, num_probes=num_probes, metric=metric)


def task_score(model: Any, start_model: Any, validation: PyTree, key: PRNGKeyArray) -> Scalar:
    """`mean((f(x) - y)^2)`; P2 for its surrogates."""
    return _mean(forward_fit, model, validation, key)


def rjcp_score(
    model: Any,
    start_model: Any,
    validation: PyTree,
    key: PRNGKeyArray,
    *,
    num_probes: int = 4,
    num_examples: int = 64,
    task_weight: float | int = 1e-3,
) -> Scalar:
    """`RJCP + task_weight * mean((f(x) - y)^2)` with fresh probes in every round; P2 for its inverses.

    With f frozen the second term is a constant. The score prefers nearly constant inverses, whose RJCP is one, to good
    ones with gain on directions that data never take, and its minimum over rounds is partly luck of the probes.
    """
    defect = _rjcp(model, validation, key, num_probes, num_examples, None)
    return defect + task_weight * task_score(model, start_model, validation, key)


def reconstruction_score(
    model: Any,
    start_model: Any,
    validation: PyTree,
    key: PRNGKeyArray,
    *,
    noise_std: Any = 0.0,
    rjcp_weight: float | int = 0.0,
    num_probes: int = 4,
    num_examples: int = 64,
) -> Scalar:
    """`mean((g(y + noise) - x)^2) + rjcp_weight * RJCP`, the same noise in every round.

    P2 uses it for Allen-Cahn, without noise and with `rjcp_weight=0.05` (and fresh probes).
    """

    def loss(*args: Any) -> Scalar:
        return reconstruction(*args, source="data", noise_std=noise_std)

    score = _mean(loss, model, validation, jax.random.key(0))
    if rjcp_weight == 0:
        return score
    return score + rjcp_weight * _rjcp(model, validation, key, num_probes, num_examples, None)


def guarded_rjcp_score(
    model: Any,
    start_model: Any,
    validation: PyTree,
    key: PRNGKeyArray,
    *,
    tolerance: float = 1.005,
    num_probes: int = 2,
    num_examples: int = 24,
    task_weight: float | int = 1e-3,
) -> Scalar:
    """RJCP while reconstruction stays as good as at the start of the stage; P2 for Allen-Cahn.

    With `q` the reconstruction error over that of `start_model`, it is `RJCP + task_weight * mean((f(x) - y)^2)` where
    `q <= tolerance`, and `RJCP + 1000 (q - tolerance)` elsewhere.
    """
    ratio = reconstruction_score(model, model, validation, key) / reconstruction_score(
        start_model, start_model, validation, key
    )
    defect = _rjcp(model, validation, key, num_probes, num_examples, None)
    task = task_weight * task_score(model, start_model, validation, key)
    return defect + jnp.where(ratio <= tolerance, task, 1000 * (ratio - tolerance))


def guarded_reconstruction_score(
    model: Any,
    start_model: Any,
    validation: PyTree,
    key: PRNGKeyArray,
    *,
    noise_std: Any,
    metric: DataMetric | None = None,
    tolerance: float = 1.005,
    num_probes: int = 4,
    num_examples: int = 64,
) -> Scalar:
    """`mean((g(y + noise) - x)^2)` while RJCP stays as good as at the start of the stage: the default.

    With `q` the RJCP over that of `start_model`, an error where `q > tolerance` is multiplied by
    `1 + 1000 (q - tolerance)`. Noise and probes are the same in every round, so that scores differ by their models
    alone.

    Args:
        model: what is scored.
        start_model: the model at the start of the stage.
        validation: a pair `(x, y)`.
        key: not used.
        noise_std: of the noise added to `y`, that of the observations; 0.0 if `y` carries it already.
        metric: for the RJCP of the guard; the identity by default.
        tolerance: of the guard.
        num_probes: per example, of the guard.
        num_examples: validation examples in the guard.
    """
    fixed = jax.random.key(1)
    defects = [_rjcp(m, validation, fixed, num_probes, num_examples, metric) for m in (model, start_model)]
    excess = jnp.maximum(defects[0] / defects[1] - tolerance, 0)
    return reconstruction_score(model, start_model, validation, key, noise_std=noise_std) * (1 + 1000 * excess)
