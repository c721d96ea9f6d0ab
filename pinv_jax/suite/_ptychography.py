"""Ptychography: optics, moduli, the modulus as a network of ReLUs, a scene, alternating projections, and scores."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Complex, Float, Int, PRNGKeyArray, Scalar

from ..diagnostics import psnr
from ..lifted import Identity, Layer, LiftedNetwork, ReLU
from ._lens_camera import photographs

SEEN = 0.1
"""Pixels are judged that are lit at least this much, relative to the brightest."""
TINY = 1e-12


class Optics(eqx.Module):
    """Object to exit waves in the far field, `F(probe * patch)` at every position, a linear map.

    Args:
        size: `n`, pixels of the object each way.
        window: `w`, of the probe.
        step: between positions, in pixels.
        dtype: of the object.
    """

    probe: Float[Array, "2 w w"]
    rows: Int[Array, "p w 1"]
    columns: Int[Array, "p 1 w"]
    size: int = eqx.field(static=True)

    def __init__(self, size: int, window: int, step: int, *, dtype: DTypeLike):
        offsets = (np.arange(window) - (window - 1) / 2) / (window / 2)
        radius = offsets[:, None] ** 2 + offsets[None, :] ** 2
        probe = np.exp((6j - 2) * radius)  # a Gaussian out of focus
        self.probe = jnp.asarray(np.stack([np.real(probe), np.imag(probe)]), dtype)
        starts = np.arange(0, size - window + 1, step)
        corners = np.stack(np.meshgrid(starts, starts, indexing="ij"), axis=-1).reshape(-1, 2)
        pixels = corners[:, :, None] + np.arange(window)
        self.rows, self.columns = jnp.asarray(pixels[:, 0, :, None]), jnp.asarray(pixels[:, 1, None, :])
        self.size = size

    def __call__(self, x: Float[Array, "2 n n"]) -> Float[Array, "2 p w w"]:
        """Real and imaginary parts."""
        exits = self.light()[None] * as_complex(x)[self.rows, self.columns]
        return as_pair(jnp.fft.fft2(exits, norm="ortho"))

    def light(self) -> Complex[Array, "w w"]:
        """The probe."""
        return as_complex(self.probe)

    def gathered(self, patches: Complex[Array, "p w w"]) -> Complex[Array, "n n"]:
        """Patches added up where they are from."""
        return jnp.zeros((self.size, self.size), patches.dtype).at[self.rows, self.columns].add(patches)

    def illumination(self) -> Float[Array, "n n"]:
        """How much light a pixel gets from all positions."""
        light = self.light()
        return jnp.real(self.gathered(jnp.broadcast_to(light * jnp.conj(light), (len(self.rows), *light.shape))))


def as_complex(x: Float[Array, "2 *n"]) -> Complex[Array, "*n"]:
    """Real and imaginary part as a complex array."""
    return jax.lax.complex(x[0], x[1])


def as_pair(z: Complex[Array, "*n"]) -> Float[Array, "2 *n"]:
    """A complex array as real and imaginary part."""
    return jnp.stack([jnp.real(z), jnp.imag(z)])


class Moduli(eqx.Module):
    """The true forward map, `|F(probe * patch)|`."""

    optics: Optics

    def __call__(self, x: Float[Array, "2 n n"]) -> Float[Array, "p w w"]:
        """The moduli; smooth at zero, for derivatives."""
        return jnp.sqrt(jnp.sum(self.optics(x) ** 2, axis=0) + TINY)


class Fan(eqx.Module):
    """`(re, im) -> sum_k c_k relu(<d_k, (re, im)>)`, of degree one like the modulus.

    Without bias its relative error is that on the unit circle, whatever the range of the data, which span decades.

    Attributes:
        directions: `d`.
        outer: `c`.
    """

    directions: Float[Array, "k 2"]
    outer: Float[Array, " k"]

    def __call__(self, z: Float[Array, "2"]) -> Scalar:
        """The value."""
        return jnp.sum(self.outer * jax.nn.relu(self.directions @ z))


class Spread(eqx.Module):
    """The first layer: optics, then directions."""

    optics: Optics
    directions: Float[Array, "k 2"]

    def __call__(self, x: Float[Array, "2 n n"]) -> Float[Array, "k p w w"]:
        """Preactivations of the hidden units of every datum."""
        return jnp.tensordot(self.directions, self.optics(x), 1)


class Gather(eqx.Module):
    """The second layer: the weighted sum over the units."""

    outer: Float[Array, " k"]

    def __call__(self, hidden: Float[Array, "k p w w"]) -> Float[Array, "p w w"]:
        """The moduli."""
        return jnp.tensordot(self.outer, hidden, 1)


def network(optics: Optics, fan: Fan) -> LiftedNetwork:
    """Optics and modulus as one network.

    Without bias a direction may be made longer and its outer weight smaller. All get the length `sqrt(2 / k)`: for `k`
    directions all around, the first layer has then the norm of the optics.
    """
    factor = (2 / len(fan.outer)) ** 0.5 / jnp.linalg.norm(fan.directions, axis=1)
    first = Spread(optics, factor[:, None] * fan.directions)
    structure = jax.ShapeDtypeStruct((2, optics.size, optics.size), optics.probe.dtype)
    return LiftedNetwork([Layer(first, ReLU()), Layer(Gather(fan.outer / factor), Identity())], structure)


class Scene(eqx.Module):
    """What is measured, and the truth.

    Attributes:
        optics: the optics.
        x: the object.
        data: its moduli, with noise or without.
        seen: the pixels that are judged.
        noise_std: of the data.
    """

    optics: Optics
    x: Float[Array, "2 n n"]
    data: Float[Array, "p w w"]
    seen: Bool[Array, "n n"]
    noise_std: Scalar


def scene(size: int, step: int, noise: float, dtype: DTypeLike, *, key: PRNGKeyArray) -> Scene:
    """Two photographs as amplitude, 0.2 to 1, and phase, 0 to a right angle."""
    first, second = ((a - jnp.min(a)) / (jnp.max(a) - jnp.min(a)) for a in _pair_of_photographs(size, dtype))
    amplitude, phase = 0.2 + 0.8 * first, jnp.pi / 2 * second
    x = jnp.stack([amplitude * jnp.cos(phase), amplitude * jnp.sin(phase)])
    optics = Optics(size, size // 2, step, dtype=dtype)
    clean = Moduli(optics)(x)
    std = noise * jnp.sqrt(jnp.mean(clean**2))
    data = jnp.maximum(clean + std * jax.random.normal(key, clean.shape, dtype), 0)
    light = optics.illumination()
    return Scene(optics, x, data, light >= SEEN * jnp.max(light), std)


def _pair_of_photographs(size: int, dtype: DTypeLike) -> Float[Array, "2 n n"]:
    return photographs(("camera", "coins"), size, dtype)[:, 0]


def flat(optics: Optics, data: Float[Array, "p w w"]) -> Float[Array, "2 n n"]:
    """The constant object, of phase zero, that sends as much light as was measured: the start of all methods."""
    level = jnp.sqrt(jnp.sum(data**2) / jnp.sum(optics.illumination()))
    return as_pair(jnp.full((optics.size, optics.size), level + 0j))


@jax.jit
def error_reduction(
    optics: Optics, data: Float[Array, "p w w"], x: Float[Array, "2 n n"], num_steps: Int[Array, ""]
) -> Float[Array, "2 n n"]:
    """Alternating projections: moduli replaced by the data, then the object that fits all exit waves best.

    References:
        J. R. Fienup, Phase retrieval algorithms: a comparison, 1982, doi:10.1364/AO.21.002758. J. M. Rodenburg,
        H. M. L. Faulkner, A phase retrieval algorithm for shifting illumination, 2004, doi:10.1063/1.1823034.
    """
    light = optics.light()[None]
    total = jnp.maximum(optics.illumination(), TINY)

    def turn(_: Any, x: Array) -> Array:
        waves = as_complex(optics(x))
        waves = waves * data / jnp.maximum(jnp.abs(waves), TINY)
        return as_pair(optics.gathered(jnp.conj(light) * jnp.fft.ifft2(waves, norm="ortho")) / total)

    return jax.lax.fori_loop(0, num_steps, turn, x)


@jax.jit
def aligned(scene: Scene, x: Float[Array, "2 n n"]) -> Float[Array, "2 n n"]:
    """The object turned by the global phase, which no modulus shows, that brings it nearest to the truth."""
    z, truth = as_complex(x), as_complex(scene.x)
    overlap = jnp.sum(jnp.where(scene.seen, jnp.conj(z) * truth, 0))
    return as_pair(z * overlap / jnp.maximum(jnp.abs(overlap), TINY))


@jax.jit
def scores(scene: Scene, x: Float[Array, "2 n n"]) -> tuple[Scalar, Scalar, Scalar]:
    """Relative error of the object and misfit of the true moduli in per cent; between them, PSNR of the amplitude."""
    found = aligned(scene, x)
    mask = jnp.broadcast_to(scene.seen, found.shape)
    error = jnp.linalg.norm(jnp.where(mask, found - scene.x, 0)) / jnp.linalg.norm(jnp.where(mask, scene.x, 0))
    amplitudes = (jnp.where(scene.seen, jnp.abs(as_complex(z)), 0) for z in (scene.x, found))
    level = psnr(*amplitudes, data_range=1.0) + 10 * jnp.log10(jnp.mean(scene.seen.astype(x.dtype)))
    misfit = jnp.linalg.norm(Moduli(scene.optics)(x) - scene.data) / jnp.linalg.norm(scene.data)
    return 100 * error, level, 100 * misfit
