"""The maps of the study `imitate`: a denoiser and a super-resolver trained here, and heat seen by sensors."""

import dataclasses
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray, Scalar

from ..data import PairedData, generate, minmax_sine_series, split
from ..learn import Stage, Term, clipped_adam, fit, regression
from ..maps import ConvNet, PixelUnshuffle
from ..pde import observed_heat_1d
from ._lens_camera import GREY, photographs
from ._study import Bench

NOISE = 0.1
"""Standard deviation of the noise on photographs between 0 and 1."""


class Denoiser(eqx.Module):
    """`x + net(x)`, the identity before it is trained; SiLUs replace the ReLUs of the net, so that it is smooth."""

    net: ConvNet

    def __call__(self, x: Float[Array, "1 h w"]) -> Float[Array, "1 h w"]:
        """The clean image."""
        y = x
        for layer in self.net.layers[:-1]:
            y = jax.nn.silu(layer(y))
        return x + self.net.layers[-1](y)


class SuperResolver(eqx.Module):
    """An image with every side doubled: bilinear interpolation before it is trained, plus `net(x)`."""

    net: ConvNet

    def __call__(self, x: Float[Array, "1 h w"]) -> Float[Array, "1 H W"]:
        """The larger image."""
        return enlarged(x) + _pixels(x.shape).invert(self.net(x))


class Sparse(eqx.Module):
    """Every so many entries of `full(x)` along each axis, as a vector.

    Args:
        full: the map.
        strides: one per axis of its output.
    """

    full: Any
    strides: tuple[int, ...] = eqx.field(static=True)

    def __call__(self, x: Float[Array, "*x"]) -> Float[Array, " m"]:
        """What is observed."""
        return jnp.ravel(self.full(x)[tuple(slice(None, None, stride) for stride in self.strides)])


def _pixels(shape: tuple[int, ...]) -> PixelUnshuffle:
    return PixelUnshuffle((1, 2 * shape[1], 2 * shape[2]), 2)


def enlarged(x: Float[Array, "1 h w"]) -> Float[Array, "1 H W"]:
    """`x` with every side doubled, by bilinear interpolation."""
    return jax.image.resize(x, (1, 2 * x.shape[1], 2 * x.shape[2]), "linear")


def _piece(images: Float[Array, "num 1 h w"], side: int, key: PRNGKeyArray) -> Float[Array, "1 side side"]:
    num, _, height, width = images.shape
    ends = (num, height - side + 1, width - side + 1)
    keys = jax.random.split(key, 3)
    which, top, left = (jax.random.randint(k, (), 0, end) for k, end in zip(keys, ends, strict=True))
    return jax.lax.dynamic_slice(images, (which, 0, top, left), (1, 1, side, side))[0]


class NoisyCrop(eqx.Module):
    """A sampler: an 8 x 8 piece of a photograph with noise, and that piece."""

    images: Float[Array, "num 1 h w"]

    def __call__(self, key: PRNGKeyArray) -> tuple[Float[Array, "1 8 8"], Float[Array, "1 8 8"]]:
        """One pair."""
        where, noise = jax.random.split(key)
        piece = _piece(self.images, 8, where)
        return piece + NOISE * jax.random.normal(noise, piece.shape, piece.dtype), piece


class SmallCrop(eqx.Module):
    """A sampler: a 12 x 12 piece of a photograph averaged down to 6 x 6, and that piece."""

    images: Float[Array, "num 1 h w"]

    def __call__(self, key: PRNGKeyArray) -> tuple[Float[Array, "1 6 6"], Float[Array, "1 12 12"]]:
        """One pair."""
        piece = _piece(self.images, 12, key)
        return jnp.mean(piece.reshape(1, 6, 2, 6, 2), axis=(2, 4)), piece


class FirstOf(eqx.Module):
    """The x of a sampler of pairs."""

    sampler: Any

    def __call__(self, key: PRNGKeyArray) -> Array:
        """One x."""
        return self.sampler(key)[0]


@dataclasses.dataclass(frozen=True)
class Case:
    """A map h to imitate.

    Attributes:
        name: of h.
        h: the map.
        train: examples for the stand-in.
        test: further ones, from another part of the photographs.
    """

    name: str
    h: Any
    train: PairedData
    test: PairedData


def _trained(bench: Bench, name: str, model: Any, sampler: Any, key: PRNGKeyArray) -> Any:
    num_steps = 300 if bench.quick else 3000
    optimiser = clipped_adam(2e-3, num_steps=num_steps, warmup_steps=20)
    stage = Stage({"fit": Term(regression)}, lambda model: model, num_steps, 64, optimiser)
    model, _ = fit(model, {name: stage}, sampler, key=key, checkpoint=bench.fits / name, progress=bench.progress)
    bench.keep(name, model)
    return model


@jax.jit
def _rms_errors(model: Any, plain: Any, pairs: tuple[Array, Array]) -> tuple[Scalar, Scalar]:
    """Those of a network, and of doing without it."""
    errors = [jax.vmap(f)(pairs[0]) - pairs[1] for f in (model, plain)]
    first, second = (jnp.sqrt(jnp.mean(error**2)) for error in errors)
    return first, second


def _draw(sampler: Any, h: Any, num: int, key: PRNGKeyArray) -> PairedData:
    return generate(FirstOf(sampler), h, num, key=key)


def _identity(x: Array) -> Array:
    return x


def denoiser(bench: Bench, key: PRNGKeyArray) -> tuple[Case, dict[str, float]]:
    """A small network that removes noise from 8 x 8 pixels, observed in every second row of them: 64 to 32."""
    net_key, fit_key, train_key, test_key = jax.random.split(key, 4)
    images = photographs(GREY, 160, bench.dtype)
    train, test = NoisyCrop(images[..., :120]), NoisyCrop(images[..., 120:])
    model = Denoiser(ConvNet((1, 8, 8), 1, hidden=(16, 16), dtype=bench.dtype, key=net_key))
    model = _trained(bench, "denoiser", model, train, fit_key)
    with_it, without = _rms_errors(model, _partial(_identity), jax.vmap(test)(jax.random.split(test_key, 256)))
    h = Sparse(model, (1, 2, 1))
    num_train, num_test = _sizes(bench)
    pairs = _draw(train, h, num_train, train_key), _draw(test, h, num_test, test_key)
    case = Case("denoiser", h, *pairs)
    return case, {"noise": float(without), "left by the denoiser": float(with_it)}


def super_resolver(bench: Bench, key: PRNGKeyArray) -> tuple[Case, dict[str, float]]:
    """A small network that doubles the resolution of 6 x 6 pixels of photographs.

    Its 144 outputs cannot all be prescribed: it is imitated in every second row and fourth column of them, 36 to 18.
    """
    net_key, fit_key, train_key, test_key = jax.random.split(key, 4)
    images = photographs(GREY, 160, bench.dtype)
    train, test = SmallCrop(images[..., :120]), SmallCrop(images[..., 120:])
    model = SuperResolver(ConvNet((1, 6, 6), 4, hidden=(16, 16), dtype=bench.dtype, key=net_key))
    model = _trained(bench, "super-resolver", model, train, fit_key)
    with_it, without = _rms_errors(model, _partial(enlarged), jax.vmap(test)(jax.random.split(test_key, 256)))
    h = Sparse(model, (1, 2, 4))
    num_train, num_test = _sizes(bench)
    pairs = _draw(train, h, num_train, train_key), _draw(test, h, num_test, test_key)
    case = Case("super-resolver", h, *pairs)
    return case, {"error of bilinear interpolation": float(without), "of the super-resolver": float(with_it)}


def heat(bench: Bench, key: PRNGKeyArray, num: int | None = None) -> tuple[Case, dict[str, float]]:
    """Diffusion, blur and a nonlinear sensor at every fourth of 32 points, 32 to 8: singular values fall fast."""
    h = Sparse(observed_heat_1d(32, dtype=bench.dtype), (4,))
    num_train, num_test = _sizes(bench)
    num_train = num_train if num is None else num
    drawn = generate(minmax_sine_series(32, dtype=bench.dtype), h, num_test + num_train, key=key)
    test, train = split(drawn, (num_test, num_train))
    return Case("heat, sensors", h, train, test), {}


def _partial(f: Any) -> Any:
    return jax.tree_util.Partial(f)


def _sizes(bench: Bench) -> tuple[int, int]:
    """Examples for training, and for testing as many as `imitate` holds out itself: nothing is compiled twice."""
    return (512, 51) if bench.quick else (4096, 410)
