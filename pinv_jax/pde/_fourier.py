"""Fourier modes of real periodic fields on the unit square, in the half layout of `jnp.fft.rfft2`."""

import numpy as np


def wavenumbers_2d(num_points: int) -> tuple[np.ndarray, np.ndarray]:
    """`2 pi k` along both axes for the modes of `jnp.fft.rfft2` on the grid `(i / n, j / n)`; float64, on the host.

    Returns:
        Shapes `(n, 1)` and `(1, n // 2 + 1)`; the first holds positive, then negative wavenumbers.
    """
    first = 2 * np.pi * np.fft.fftfreq(num_points, 1 / num_points)
    second = 2 * np.pi * np.fft.rfftfreq(num_points, 1 / num_points)
    return first[:, None], second[None, :]
