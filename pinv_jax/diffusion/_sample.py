"""One image from a prior, guided or not: `sample`."""

from typing import Any

import equinox as eqx
import jax
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from ..maps import prepare, unstore
from ._guides import AbstractGuide
from ._prior import Prior
from ._samplers import AbstractSampler, unguided
from ._schedules import AbstractSchedule, noised


class Start(eqx.Module):
    """A start between noise and data: `image`, noised to the time `t`, in place of noise alone.

    Args:
        image: shape `*x`, for example `f.pinv(data)`.
        t: a time of the schedule; sampling begins at the noisiest time of the sampler that is not noisier.

    References:
        C. Meng et al., "SDEdit: Guided Image Synthesis and Editing with Stochastic Differential Equations", 2022,
        arXiv:2108.01073.
    """

    image: Float[Array, "*x"]
    t: float = eqx.field(static=True)

    def __init__(self, image: Float[Array, "*x"], t: float | int):
        self.image, self.t = image, float(t)


def sample(
    prior: Prior,
    sampler: AbstractSampler,
    *,
    key: PRNGKeyArray,
    guide: Any = None,
    start: Start | None = None,
) -> Float[Array, "*x"]:
    """Draws one image. A pure function of its arguments, the same for the same key.

    Several at once, for several observations::

        jax.vmap(lambda data, key: sample(prior, DDIM(100), key=key, guide=project_after(f, data)))(observations, keys)

    Args:
        prior: what images look like.
        sampler: how to get there.
        key: random key.
        guide: `guide(denoise, x_t, t, key) -> x0_hat`, what the observation makes of the estimate of the prior; see
            `project_after`. An `AbstractGuide` may also have a last word on the image.
        start: a noisy image to begin with; by default noise alone.

    Returns:
        The image, of `prior.shape`.

    Raises:
        ValueError: a start of another shape or at a time without noise, or times that do not end at the data.
    """
    times = sampler.times(prior.schedule)
    if start is not None:
        if start.image.shape != prior.shape:
            raise ValueError(f"sample: start.image has shape {start.image.shape}, expected {prior.shape}.")
        times = times_from(prior.schedule, times, start.t)
    guide = unguided if guide is None else unstore(guide)
    image = None if start is None else start.image
    with jax.default_matmul_precision("highest"):
        return _sample(prior, sampler, guide, image, key, tuple(float(t) for t in times))


def times_from(schedule: AbstractSchedule, times: np.ndarray, t: float) -> np.ndarray:
    """The `times` of a sampler that are not noisier than `t`."""
    kept = times[times <= t]
    if len(kept) < 2 or t > schedule.last:
        raise ValueError(
            f"sample: start.t={t:g} leaves no step of noise; expected between {times[-2]:g} and {schedule.last:g}, in "
            "the units of the schedule."
        )
    return kept


@eqx.filter_jit
def _sample(
    prior: Prior, sampler: AbstractSampler, guide: Any, image: Array | None, key: PRNGKeyArray, times: tuple[float, ...]
) -> Float[Array, "*x"]:
    prior = prepare(prior)
    guide = guide.ready() if isinstance(guide, AbstractGuide) else guide
    start_key, key = jax.random.split(key)
    noise = jax.random.normal(start_key, prior.shape, prior.dtype)
    x_t = noise if image is None else noised(prior.schedule, image.astype(prior.dtype), times[0], noise)
    x = sampler.run(prior, guide, x_t, np.asarray(times), key)
    return guide.finish(x) if isinstance(guide, AbstractGuide) else x
