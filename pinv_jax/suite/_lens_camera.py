"""Cameras whose pseudo-inverse is known exactly, `y = curve(A x)`, and the photographs they are pointed at."""

import functools
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.ndimage import map_coordinates
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from ..diagnostics import psnr, ssim
from ..maps import AbstractSurjection, Affine, CubicSine, Gamma, LeakyTanh, SurjectiveChain, VaryingBlur, fisheye

COLOUR = ("astronaut", "chelsea", "coffee", "rocket")
GREY = ("camera", "coins", "moon", "gravel")

Image = tuple[int, int, int]
Method = Callable[..., Any]


def photographs(names: Sequence[str], size: int, dtype: DTypeLike) -> Float[Array, "n c h w"]:
    """Photographs of scikit-image between 0 and 1: the middle square, averaged down to `size` x `size` pixels.

    All colour or all grey, and all of them in the package itself: nothing is downloaded.

    Raises:
        ValueError: scikit-image is not installed.
    """
    try:
        import skimage.data
        from skimage.transform import resize_local_mean
    except ImportError as error:
        raise ValueError('The photographs come with scikit-image: pip install "pinv_jax[data]"') from error
    images = []
    for name in names:
        image = np.atleast_3d(np.asarray(getattr(skimage.data, name)(), np.float64) / 255)
        side = min(image.shape[:2])
        top, left = (image.shape[0] - side) // 2, (image.shape[1] - side) // 2
        square = image[top : top + side, left : left + side]
        images.append(resize_local_mean(square, (size, size), channel_axis=-1).transpose(2, 0, 1))
    return jnp.asarray(np.stack(images), dtype)


class Camera(eqx.Module):
    """`f(x) = curve(optics(x))` for images between 0 and 1.

    `optics(x) = A (x - 1/2) + 1/2` is `A x`, because the rows of `A` sum to one, yet its pseudo-inverse fills what it
    cannot know with a medium grey instead of black.

    Args:
        optics: an image-to-image linear surjection whose rows sum to one.
        curve: shape to the sensor curve for that shape, a bijection.
        lookup: shape `(2, h, w)`: where in `y` each pixel of `x` is seen, for a smooth guess; by default on a grid of
            the same extent.
    """

    linear: AbstractSurjection[Any]
    optics: SurjectiveChain
    curve: AbstractSurjection[Any]
    curve_of_x: AbstractSurjection[Any]
    f: SurjectiveChain
    lookup: Float[Array, "2 h w"] | None

    def __init__(
        self,
        optics: AbstractSurjection[Any],
        curve: Callable[[Image], AbstractSurjection[Any]],
        lookup: Float[Array, "2 h w"] | None = None,
    ):
        x, y = optics.in_structure(), optics.out_structure()
        self.linear, self.lookup = optics, lookup
        self.optics = SurjectiveChain(
            [_affine(x.shape, 1.0, -0.5, x.dtype), optics, _affine(y.shape, 1.0, 0.5, y.dtype)]
        )
        self.curve, self.curve_of_x = curve(y.shape), curve(x.shape)
        self.f = SurjectiveChain([self.optics, self.curve])

    def enlarge(self, y: Float[Array, "c h w"]) -> Float[Array, "c H W"]:
        """`y` on the grid of `x`: interpolated, and rectified where the optics distort."""
        if self.lookup is None:
            return jax.image.resize(y, self.optics.in_structure().shape, "cubic")
        rows, columns = self.lookup
        return jax.vmap(lambda plane: map_coordinates(plane, [rows, columns], order=1, mode="nearest"))(y)

    def guess(self, y: Float[Array, "c h w"]) -> Float[Array, "c H W"]:
        """The curve undone, then `enlarge`: smooth, near the truth, and without regard for the blur."""
        return self.enlarge(self.curve.pinv(y))


def blurred(shape: Image, border: float, factor: int, curve: Callable[[Image], Any], dtype: DTypeLike) -> Camera:
    """A blur that grows from 0.3 to `border` pixels, down-sampled by `factor`."""
    return Camera(VaryingBlur(shape, 0.3, border, factor=factor, dtype=dtype), curve)


def distorted(shape: Image, out_size: int, strength: float, dtype: DTypeLike) -> Camera:
    """A fish-eye and the tone curve of photographs."""
    # r (1 + s r^2) = (1 + 2 s) rho is where a pixel at the radius rho of x is seen: an increasing cubic.
    u, v = np.meshgrid(*(np.linspace(-1, 1, size) for size in shape[1:]), indexing="ij")
    rho = np.hypot(u, v)
    radius = CubicSine(rho.shape, strength, 0.0, dtype=dtype).pinv(jnp.asarray((1 + 2 * strength) * rho, dtype))
    shrunk = np.where(rho > 0, np.asarray(radius) / np.where(rho > 0, rho, 1), 0)
    lookup = jnp.asarray((np.stack([u * shrunk, v * shrunk]) + 1) * (out_size - 1) / 2, dtype)
    optics = fisheye(shape, (out_size, out_size), strength, dtype=dtype)
    return Camera(optics, functools.partial(Gamma, dtype=dtype), lookup)


def saturating(shape: Image, dtype: DTypeLike, gain: float = 2.5, slope: float = 0.1) -> SurjectiveChain:
    """A sensor that saturates, from 0 to 0 and from 1 to 1: `LeakyTanh` of `gain * x`, scaled."""
    top = slope * gain + (1 - slope) * float(np.tanh(gain))
    curve = LeakyTanh(shape, slope, dtype)
    return SurjectiveChain([_affine(shape, gain, 0.0, dtype), curve, _affine(shape, 1 / top, 0.0, dtype)])


def exposed(shape: Image, dtype: DTypeLike, exposure: float) -> SurjectiveChain:
    """The tone curve of photographs after `exposure` times the light: above one, bright parts leave [0, 1]."""
    return SurjectiveChain([_affine(shape, exposure, 0.0, dtype), Gamma(shape, dtype=dtype)])


def spectral_norm(fn: Callable[..., Any], x: Float[Array, "*x"], num_iterations: int = 20) -> Float[Array, ""]:
    """The largest singular value of the Jacobian of `fn` at `x`, its local Lipschitz constant: from below."""
    _, jvp = jax.linearize(fn, x)
    transpose = jax.linear_transpose(jvp, x)

    def body(_, v):
        v = transpose(jvp(v))[0]
        return v / jnp.linalg.norm(v)

    start = jax.random.normal(jax.random.key(0), x.shape, x.dtype)
    v = jax.lax.fori_loop(0, num_iterations, body, start / jnp.linalg.norm(start))
    return jnp.linalg.norm(jvp(v))


def relative(error: Float[Array, "*y"], y: Float[Array, "*y"]) -> Float[Array, ""]:
    """`|error| / |y|`."""
    return jnp.linalg.norm(error) / jnp.linalg.norm(y)


@functools.partial(jax.jit, static_argnames="method")
def apply(method: Method, camera: Camera, *data: Array) -> Array:
    """`method(camera, *data)` for a batch."""
    return jax.vmap(lambda *each: method(camera, *each))(*data)


@jax.jit
def quality(x: Float[Array, "n c h w"], estimate: Float[Array, "n c h w"]) -> dict[str, Float[Array, " n"]]:
    """PSNR, that after the best gain and offset, and SSIM, of each image; the range is [0, 1]."""

    def one(x, estimate):
        centred = estimate - jnp.mean(estimate)
        fitted = jnp.mean(x) + centred * jnp.sum(centred * x) / jnp.sum(centred**2)
        similar = jax.vmap(functools.partial(ssim, data_range=1.0))(x, estimate)
        return {
            "psnr": psnr(x, estimate, data_range=1.0),
            "fitted": psnr(x, fitted, data_range=1.0),
            "ssim": jnp.mean(similar),
        }

    return jax.vmap(one)(x, estimate)


def timed(method: Method, camera: Camera, *data: Array, repeats: int = 3) -> tuple[Array, float]:
    """What `apply` returns, and the seconds it takes once compiled: the median of a few runs."""
    jax.block_until_ready(apply(method, camera, *data))
    seconds, result = [], None
    for _ in range(repeats):
        start = time.perf_counter()
        result = jax.block_until_ready(apply(method, camera, *data))
        seconds.append(time.perf_counter() - start)
    return result, statistics.median(seconds)  # pyright: ignore[reportReturnType]


def compare(
    methods: Mapping[str, tuple[Method, str | None]],
    groups: Sequence[tuple[Camera, Float[Array, "n c h w"], tuple[Array, ...]]],
    misfit: Method,
) -> tuple[list[dict[str, Any]], dict[str, list[Array]], dict[str, np.ndarray]]:
    """Runs every method on every photograph.

    Args:
        methods: by name, `(camera, *data) -> x` and None, or `(camera, start, *data) -> x` and the name of an earlier
            method whose estimate is the start; its time is not counted again.
        groups: a camera, photographs and what is observed of them; one group per number of channels.
        misfit: `(camera, x, *data) ->` how far an estimate is from the data, relative to them.

    Returns:
        The rows of a table, means over the photographs and the worst of them; the estimates of each group by name;
        and the PSNR of all photographs by name.
    """
    rows: list[dict[str, Any]] = []
    estimates: dict[str, list[Array]] = {}
    levels: dict[str, np.ndarray] = {}
    for name, (method, start) in methods.items():
        scores: list[dict[str, Array]] = []
        seconds, estimates[name] = 0.0, []
        for index, (camera, x, data) in enumerate(groups):
            begun = () if start is None else (estimates[start][index],)
            estimate, spent = timed(method, camera, *begun, *data)
            seconds += spent
            estimates[name].append(estimate)
            scores.append(quality(x, estimate) | {"misfit": apply(misfit, camera, estimate, *data)})
        joined = {key: np.concatenate([np.asarray(score[key]) for score in scores]) for key in scores[0]}
        levels[name] = joined["psnr"]
        rows.append(
            {
                "method": name,
                "consistency, max": float(joined["misfit"].max()),
                "PSNR dB": float(joined["psnr"].mean()),
                "least": float(joined["psnr"].min()),
                "fitted PSNR": float(joined["fitted"].mean()),
                "SSIM": float(joined["ssim"].mean()),
                "least SSIM": float(joined["ssim"].min()),
                "ms/image": 1e3 * seconds / len(joined["psnr"]),
            }
        )
    return rows, estimates, levels


def image_shape(images: Float[Array, "n c h w"]) -> Image:
    """`(c, h, w)`."""
    _, c, h, w = images.shape
    return c, h, w


def shown(images: Float[Array, "n c h w"]) -> np.ndarray:
    """Images as the figures want them: `(n, h, w, 3)`, grey ones in three equal channels."""
    last = np.moveaxis(np.asarray(images, np.float32), 1, -1)
    return np.broadcast_to(last, (*last.shape[:-1], 3)).copy()


def _affine(shape: tuple[int, ...], scale: float, shift: float, dtype: DTypeLike) -> Affine:
    return Affine(jnp.full(shape, scale, dtype), jnp.full(shape, shift, dtype))  # pyright: ignore[reportCallIssue]
