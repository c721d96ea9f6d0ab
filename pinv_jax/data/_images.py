"""Random smooth images: white noise under a Gaussian blur of random width, scaled to fill [0, 1]."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Key

from ..maps import GaussianBlur
from ._series import _to_unit_interval


class SmoothImages(eqx.Module):
    """A sampler of images of shape `(1, n, n)`: see `smooth_images`.

    Args:
        num_points: `n`.
        dtype: of the samples.
    """

    num_points: int = eqx.field(static=True)
    dtype: np.dtype = eqx.field(static=True)

    def __call__(self, key: Key[Array, ""]) -> Float[Array, "1 n n"]:
        """One random image."""
        noise_key, width_key = jax.random.split(key)
        shape = (1, self.num_points, self.num_points)
        roughness = jax.random.uniform(width_key, (), self.dtype, 0.3, 0.8)
        blur = GaussianBlur(shape, 1 + 2 * (1 - roughness), dtype=self.dtype)
        image = blur(jax.random.normal(noise_key, shape, self.dtype))
        return _to_unit_interval(image.ravel()).reshape(shape)


def smooth_images(num_points: int = 64, *, dtype: DTypeLike | None = None) -> SmoothImages:
    """Gaussian white noise, blurred with `sigma = 1 + 2 (1 - u)` pixels, `u ~ U[0.3, 0.8]`, then scaled to fill [0, 1].

    The published prior of the imaging problem. The blur has the window of the camera, 11 pixels, and zeros beyond the
    borders.

    Args:
        num_points: pixels along either side, at least 5.
        dtype: of the samples; the default float by default.

    Raises:
        ValueError: the window is larger than the image and its mirror images.

    References:
        A. L. Kachhadiya, "Deceptron: Learned Local Inverses", 2025, arXiv:2511.21076.
    """
    if num_points < 5:
        raise ValueError(f"smooth_images expected at least 5 pixels along either side, got num_points={num_points}.")
    return SmoothImages(num_points, jnp.result_type(float if dtype is None else dtype))
