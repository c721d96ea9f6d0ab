"""Run-time diagnostics of a solve, without the truth, and alarms on them: `Watch`, `calibrate`, `Alarms`."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Scalar

from ..diagnostics import DataMetric, rjcp_floor
from ..solvers import Trust
from ._base import Dataset
from ._inverse import default_metric, default_trust

LEVEL = 0.95
DIAGNOSTICS = ("excess RJCP", "residual", "reconstruction", "novelty", "spread")


@dataclasses.dataclass(frozen=True)
class Alarms:
    """Thresholds on run-time diagnostics, larger being worse.

    Attributes:
        alone: by diagnostic, the threshold that a given share of the usual solves stays below.
        together: the same, of a larger share, so that the given share of them stays below all of these at once.
    """

    alone: dict[str, float]
    together: dict[str, float]

    def flags(self, values: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Which solves are flagged, by each diagnostic, and by "any" of them against `together`; NaN is flagged.

        Args:
            values: by diagnostic, one number per solve.
        """
        found = {name: ~(values[name] <= limit) for name, limit in self.alone.items()}
        jointly = [~(values[name] <= limit) for name, limit in self.together.items()]
        return found | {"any": np.logical_or.reduce(jointly)}


def calibrate(values: Mapping[str, np.ndarray], level: float = LEVEL) -> Alarms:
    """Thresholds from the diagnostics of solves that are known to be as usual.

    Args:
        values: by diagnostic, one finite number per solve.
        level: the share of these solves that is not flagged.
    """
    # The share of solves that are no worse in that diagnostic; the worst of them decides for a solve.
    ranks = {name: np.searchsorted(np.sort(v), v, side="right") / len(v) for name, v in values.items()}
    share = float(np.quantile(np.max(list(ranks.values()), axis=0), level, method="inverted_cdf"))
    alone, together = (
        {name: float(np.quantile(v, at, method="inverted_cdf")) for name, v in values.items()} for at in (level, share)
    )
    return Alarms(alone, together)


class Watch(eqx.Module):
    """What can be known of a solution `x` for the observation `y` without the truth; larger is worse.

    - "excess RJCP": of the inverse at `x` in the metric of the data, with fixed probes, over its floor there;
    - "residual": root mean square of `f(x) - y` in standard deviations of the noise;
    - "reconstruction": root mean square of `g(f(x)) - x`;
    - "novelty": Mahalanobis distance of `y` from the observations trained on, per square root of their number;
    - "spread": the floor of the RJCP at `x`, the share of the prior variance that the data leave undetermined there.

    Args:
        dataset: of the problem; its training unknowns are the usual ones.
    """

    physics: Any
    trust: Trust
    metric: DataMetric
    noise_std: Float[Array, "*y"]
    mean: Float[Array, "*y"]
    whiten: Float[Array, "m m"]

    def __init__(self, dataset: Dataset):
        self.physics, self.noise_std = dataset.physics, dataset.noise_std
        self.trust, self.metric = default_trust(dataset), default_metric(dataset)
        usual = np.asarray(jax.jit(jax.vmap(dataset.physics))(dataset.train.x), np.float64)
        flat = usual.reshape(len(usual), -1)
        variance = np.asarray(dataset.noise_std, np.float64).ravel() ** 2
        values, vectors = np.linalg.eigh(np.cov(flat.T) + np.diag(variance))
        self.mean = jnp.asarray(usual.mean(axis=0), dataset.train.y.dtype)
        self.whiten = jnp.asarray((vectors / np.sqrt(values)).T, dataset.train.y.dtype)

    def __call__(self, inverse: Any, x: Float[Array, "*x"], y: Float[Array, "*y"]) -> dict[str, Scalar]:
        """The diagnostics by name."""
        with jax.default_matmul_precision("highest"):
            prediction = self.physics(x)
            value, _ = self.trust(self.physics, inverse, x)
            spread = rjcp_floor(self.physics, x, metric=self.metric)
            return {
                "excess RJCP": value - spread,
                "residual": rms((prediction - y) / self.noise_std),
                "reconstruction": rms(inverse(prediction) - x),
                "novelty": rms(self.whiten @ jnp.ravel(y - self.mean)),
                "spread": spread,
            }


def rms(values: Array) -> Scalar:
    """The root mean square."""
    return jnp.sqrt(jnp.mean(values**2))
