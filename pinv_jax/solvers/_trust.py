"""Whether to trust a learned inverse at a point: the data-metric composition defect, with probes held fixed."""

from typing import Any

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float, Scalar

from ..diagnostics import composition_defect
from ._base import Evaluations


class Trust(eqx.Module):
    """The data-metric RJCP of `g` at `x`, `E ||G (J z + e) - z||**2 / E ||z||**2`, and how much of it is too much.

    The probes `z` and the noise `e` are fixed arrays held here, so that the value is a deterministic function of `x`.
    No inverse gets below `floor`, the share of the prior variance that the data leave undetermined; the *excess*
    over it says how far `g` is from the best local inverse. Neither number alone ranks inverses, and nor does the
    identity-metric RJCP, whose floor is `1 - rank / n`.

    Args:
        probes: deviations `z` of the unknown from its mean, shape `(k, *x)`: a few samples of the prior, centred.
        noise: samples `e` of the noise, shape `(k, *y)`.
        floor: `tr(posterior covariance) / tr(prior covariance)`, see `diagnostics.rjcp_floor`.
        threshold: the learned step is trusted while the excess is at most this.
    """

    probes: Float[Array, "k *x"]
    noise: Float[Array, "k *y"]
    floor: Any = 0.0
    threshold: Any = 0.5

    def __call__(self, forward: Any, inverse: Any, x: Float[Array, "*x"]) -> tuple[Scalar, Evaluations]:
        """The RJCP at `x`."""
        defect = composition_defect(forward, inverse, x, self.probes, noise=self.noise)
        num = self.probes.shape[0]
        size = jnp.sum(self.probes**2) / num
        return defect.sum / size, Evaluations(f=1, g=1, jvp=2 * num)

    def holds(self, rjcp: Scalar) -> Any:
        """Whether the excess over the floor is within the threshold; never for a NaN."""
        return rjcp - self.floor <= self.threshold
