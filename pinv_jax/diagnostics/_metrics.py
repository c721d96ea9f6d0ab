"""Errors of a reconstruction, and the uncertainty of a success rate: RMSE, PSNR, SSIM, Wilson intervals."""

import math
import statistics
from typing import SupportsInt

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Scalar


def rmse(truth: Float[Array, "*x"], estimate: Float[Array, "*x"]) -> Scalar:
    """Root mean square error `sqrt(mean((estimate - truth)**2))` of one example."""
    return jnp.sqrt(jnp.mean((estimate - truth) ** 2))


def psnr(truth: Float[Array, "*x"], estimate: Float[Array, "*x"], *, data_range: float | int | Scalar) -> Scalar:
    """Peak signal-to-noise ratio `20 log10(data_range / rmse)` in decibels; infinite for equal inputs.

    Args:
        truth: one example.
        estimate: of the same shape.
        data_range: largest minus smallest possible value, for example 1.0 for images in [0, 1].
    """
    return 20 * jnp.log10(data_range / rmse(truth, estimate))


def ssim(
    truth: Float[Array, "*x"], estimate: Float[Array, "*x"], *, data_range: float | int | Scalar, window_size: int = 7
) -> Scalar:
    """Mean structural similarity of one signal or image, uniform window, as `skimage.metrics` computes it.

    Local means, sample variances and the sample covariance over every full window, with `c1 = (0.01 data_range)^2` and
    `c2 = (0.03 data_range)^2`. For channels use `jax.vmap` and take the mean.

    Args:
        truth: one example with one or more axes, each at least `window_size` long.
        estimate: of the same shape.
        data_range: largest minus smallest possible value.
        window_size: side of the window, odd.

    Returns:
        A scalar, one for equal inputs.

    Raises:
        ValueError: if the window is even or larger than the example.

    References:
        Z. Wang, A. C. Bovik, H. R. Sheikh, E. P. Simoncelli, Image quality assessment: from error visibility to
        structural similarity, 2004, doi:10.1109/TIP.2003.819861.
    """
    if window_size % 2 == 0 or window_size > min(truth.shape, default=0):
        raise ValueError(
            f"ssim: window_size={window_size} for an example of shape {truth.shape}; the window must be odd and "
            "fit into every axis. Pass a smaller odd window_size."
        )
    count = window_size**truth.ndim
    window = (window_size,) * truth.ndim

    def local_mean(a: Float[Array, "*x"]) -> Array:
        return jax.lax.reduce_window(a, 0.0, jax.lax.add, window, (1,) * a.ndim, "valid") / count

    # second moments about a common offset: the same numbers, without float32 cancellation
    offset = jnp.mean(truth)
    a, b = truth - offset, estimate - offset
    mean_a, mean_b = local_mean(a), local_mean(b)
    sample = count / (count - 1)
    var_a = sample * (local_mean(a * a) - mean_a**2)
    var_b = sample * (local_mean(b * b) - mean_b**2)
    cov = sample * (local_mean(a * b) - mean_a * mean_b)
    mean_a, mean_b = mean_a + offset, mean_b + offset
    c1, c2 = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2
    top = (2 * mean_a * mean_b + c1) * (2 * cov + c2)
    return jnp.mean(top / ((mean_a**2 + mean_b**2 + c1) * (var_a + var_b + c2)))


def wilson_interval(successes: SupportsInt, n: SupportsInt, level: float | int = 0.95) -> tuple[float, float]:
    """Wilson's score interval for a success rate, from counts on the host.

    Args:
        successes: number of successes.
        n: number of trials, at least one.
        level: coverage, between zero and one.

    Returns:
        Lower and upper end, within [0, 1] and never degenerate.

    Raises:
        ValueError: if the counts or the level make no sense.

    References:
        E. B. Wilson, Probable inference, the law of succession, and statistical inference, 1927,
        doi:10.1080/01621459.1927.10502953.
    """
    k, n = int(successes), int(n)
    if not 0 <= k <= n or n == 0:
        raise ValueError(f"wilson_interval: {k} successes in {n} trials; expected 0 <= successes <= n and n >= 1.")
    if not 0 < level < 1:
        raise ValueError(f"wilson_interval: level={level}; expected a number between 0 and 1, such as 0.95.")
    z = statistics.NormalDist().inv_cdf(0.5 + level / 2)
    rate = k / n
    centre = (rate + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z * math.sqrt(rate * (1 - rate) / n + z**2 / (4 * n**2)) / (1 + z**2 / n)
    # at 0 and n the exact ends are 0 and 1; rounding must not say otherwise
    return (0.0 if k == 0 else centre - half), (1.0 if k == n else centre + half)
