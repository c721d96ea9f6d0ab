"""Motions of a camera, and which of them made a blurred picture: `y = k * x + noise` with `x` integrated out.

`evidence` is `log p(y | k)` for pictures of which only the spectrum is known, a power of the frequency. Kernel and
image estimated together prefer no blur at all; the kernel alone does not.

References:
    A. Levin, Y. Weiss, F. Durand, W. Freeman, "Understanding and evaluating blind deconvolution algorithms", 2009,
    DOI 10.1109/CVPR.2009.5206815.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray, Scalar

SIDE = 7
"""Of the kernel, pixels."""
NOISE = 0.01
"""Standard deviation of the noise, of pictures between 0 and 1."""


def convolve(kernel: Float[Array, "k k"], x: Float[Array, "1 H W"]) -> Float[Array, "1 h w"]:
    """`y[p, q] = sum_ij kernel[i, j] x[p + i, q + j]`, where all of the kernel lies on the picture."""
    return jnp.tensordot(kernel, windows(x), 2)


def windows(x: Float[Array, "1 H W"]) -> Float[Array, "k k 1 h w"]:
    """The picture moved by every entry of the kernel."""
    height, width = (side - SIDE + 1 for side in x.shape[1:])
    return jnp.stack([jnp.stack([x[:, i : i + height, j : j + width] for j in range(SIDE)]) for i in range(SIDE)])


def blob(sigma: float, dtype: Any) -> Float[Array, "k k"]:
    """A Gaussian, what is assumed of a kernel before anything is known."""
    offset = jnp.arange(SIDE, dtype=dtype) - SIDE // 2
    line = jnp.exp(-0.5 * (offset / sigma) ** 2)
    kernel = line[:, None] * line[None]
    return kernel / jnp.sum(kernel)


def motion(key: PRNGKeyArray, dtype: Any) -> Float[Array, "k k"]:
    """A random path of the camera: a smooth curve through the window, each moment spread over four pixels."""
    start, turn, bend = jax.random.split(key, 3)
    moments = jnp.linspace(-1, 1, 41, dtype=dtype)
    angle = jax.random.uniform(turn, (), dtype, 0, 2 * np.pi)
    bends, length = jax.random.normal(bend, (2,), dtype), jax.random.uniform(start, (), dtype, 1.6, 2.8)
    along, across = length * moments, 0.8 * bends[0] * (moments**2 - 0.4) + 0.4 * bends[1] * moments**3
    path = jnp.stack(
        [along * jnp.cos(angle) - across * jnp.sin(angle), along * jnp.sin(angle) + across * jnp.cos(angle)]
    )
    path = jnp.clip(path + SIDE // 2, 0, SIDE - 1)
    grid = jnp.arange(SIDE, dtype=dtype)
    rows, columns = (jnp.maximum(1 - jnp.abs(grid[:, None] - line[None]), 0) for line in path)
    kernel = rows @ columns.T
    return middle(kernel / jnp.sum(kernel))


def middle(kernel: Float[Array, "k k"]) -> Float[Array, "k k"]:
    """The kernel moved by whole pixels so that its centre of mass is in the middle."""
    grid = jnp.arange(SIDE, dtype=kernel.dtype)
    shift = [SIDE // 2 - jnp.round(jnp.sum(grid * jnp.sum(kernel, axis=axis))).astype(int) for axis in (1, 0)]
    padded = jnp.pad(kernel, SIDE)
    kernel = jax.lax.dynamic_slice(padded, (SIDE - shift[0], SIDE - shift[1]), kernel.shape)
    return kernel / jnp.sum(kernel)


def gradients(x: Float[Array, "1 h w"]) -> Float[Array, "2 h_1 w_1"]:
    """Differences of neighbours, along rows and along columns."""
    return jnp.concatenate([x[:, :-1, 1:] - x[:, :-1, :-1], x[:, 1:, :-1] - x[:, :-1, :-1]])


def evidence(y: Float[Array, "1 h w"], kernels: Float[Array, "n k k"]) -> Float[Array, " n"]:
    """`log p(y | kernel)` for normal, stationary pictures whose spectrum is a power of the frequency.

    The Whittle likelihood of the gradients, the mean of both directions, with amplitude and exponent of the spectrum
    the best of a grid. A window keeps the borders out, and the lowest frequencies do not count.
    """
    seen = gradients(y)
    height, width = seen.shape[1:]
    taper = np.hanning(height + 2)[1:-1, None] * np.hanning(width + 2)[None, 1:-1]
    taper = jnp.asarray(taper / np.sqrt(np.mean(taper**2)), y.dtype)[None]
    power = jnp.abs(jnp.fft.rfft2(seen * taper)) ** 2 / (height * width)
    rows = 4 * np.sin(np.pi * np.fft.fftfreq(height))[:, None] ** 2
    columns = 4 * np.sin(np.pi * np.fft.rfftfreq(width))[None] ** 2
    squared = rows + columns  # of the frequency, pixels^-2
    kept = jnp.asarray(squared > 0.02)[None]
    slopes = jnp.asarray(np.stack([columns + 0 * rows, rows + 0 * columns]), y.dtype)
    padded = jnp.pad(kernels, ((0, 0), (0, height - SIDE), (0, width - SIDE)))
    passed = jnp.abs(jnp.fft.rfft2(padded)) ** 2

    def likely(setting: tuple[Array, Array]) -> Array:
        amplitude, exponent = setting
        spectrum = amplitude * jnp.asarray(squared + 1e-3, y.dtype) ** -exponent

        def one(passed: Array) -> Array:
            variance = (passed * spectrum + (2 * NOISE) ** 2)[None] * slopes + 1e-7
            return -0.5 * jnp.sum(jnp.where(kept, power / variance + jnp.log(variance), 0.0))

        return jax.lax.map(one, passed, batch_size=256)

    grid = np.meshgrid(np.geomspace(1e-4, 0.3, 18), np.linspace(0.6, 1.4, 5))
    amplitudes, exponents = (jnp.asarray(np.ravel(values), y.dtype) for values in grid)
    return jnp.max(jax.lax.map(likely, (amplitudes, exponents)), axis=0)


def motions(num: int, dtype: Any) -> Float[Array, "n k k"]:
    """Random kernels to look among, always the same; no observation of the study is made with them."""
    return jax.vmap(lambda key: motion(key, dtype))(jax.random.split(jax.random.key(2**31 - 1), num))


@functools.partial(jax.jit, static_argnames="num")
def most_probable(y: Float[Array, "n 1 h w"], num: int) -> Float[Array, "n k k"]:
    """The motion with the largest evidence for every observation; it might as well be turned by 180 degrees."""
    kernels = motions(num, y.dtype)
    return kernels[jax.lax.map(lambda y: jnp.argmax(evidence(y, kernels)), y)]


def similarity(kernel: Float[Array, "k k"], truth: Float[Array, "k k"]) -> Scalar:
    """The largest correlation `<kernel, truth> / (|kernel| |truth|)` over all shifts."""
    products = jax.scipy.signal.correlate(kernel, truth, mode="full")
    return jnp.max(products) / (jnp.linalg.norm(kernel) * jnp.linalg.norm(truth))
