"""Round trips against saturation: how flat may a map become before floating-point numbers lose `x`?"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from ..maps import (
    AbstractSurjection,
    Affine,
    FixedOrthogonal,
    LeakyTanh,
    SurjectiveChain,
    SurjectiveCoupling,
    VaryingBlur,
)
from ._lens_camera import GREY, image_shape, photographs, relative, shown, spectral_norm
from ._study import Bench, Findings

GAIN = 20.0


def saturated_camera(shape: tuple[int, int, int], slope: float, dtype: DTypeLike) -> SurjectiveChain:
    """A blurred image, half as large, that drives a `LeakyTanh` from -10 to 10."""
    optics = VaryingBlur(shape, 0.3, 1.2, factor=2, dtype=dtype)
    out = optics.out_structure().shape
    scale = Affine(jnp.full(out, GAIN, dtype), jnp.full(out, -GAIN / 2, dtype))  # pyright: ignore[reportCallIssue]
    return SurjectiveChain([optics, scale, LeakyTanh(out, slope, dtype)])


def couplings(size: int, depth: int, scale_bound: float, dtype: DTypeLike, seed: int) -> SurjectiveChain:
    """`depth` times a random rotation and a coupling that drops two numbers, with random nets."""
    random = np.random.default_rng(seed)
    layers: list[AbstractSurjection[Any]] = []
    for _ in range(depth):
        kept = size - 2
        rotation = np.linalg.qr(random.standard_normal((size, size)))[0]
        weights = [[random.standard_normal(shape) / 2 for shape in ((16, 2), (16,), (kept, 16))] for _ in range(2)]
        scale, shift = (Partial(_net, *(jnp.asarray(weight, dtype) for weight in pair)) for pair in weights)
        layers.append(FixedOrthogonal((size,), jnp.asarray(rotation, dtype)))
        layers.append(SurjectiveCoupling((size,), kept, scale=scale, shift=shift, scale_bound=scale_bound, dtype=dtype))
        size = kept
    return SurjectiveChain(layers)


def _net(first: Array, bias: Array, second: Array, z: Array) -> Array:
    return second @ jnp.tanh(first @ z + bias)


@jax.jit
def round_trip(f: AbstractSurjection[Any], xs: Float[Array, "n *x"]) -> tuple[dict[str, Array], Array, Array]:
    """The errors of the way there and back, the Lipschitz constant of `pinv`, what was seen and what came back."""

    def one(x):
        y, z = f.split(x)
        back = f.merge(y, z)
        errors = {
            "f(pinv(y))": relative(f(f.pinv(y)) - y, y),
            "merge(split(x))": relative(back - x, x),
            "pinv(y) / x": jnp.linalg.norm(f.pinv(y)) / jnp.linalg.norm(x),
            "Lipschitz of pinv": spectral_norm(f.pinv, y),
        }
        return errors, y, back

    return jax.vmap(one)(xs)


def saturation(bench: Bench) -> Findings:
    """Errors of both round trips against the slope of a sensor, and against the bound and the number of couplings.

    The Lipschitz constant of `pinv` bounds what rounding of `y` costs. It does not bound `f(pinv(y)) - y`: random
    couplings put `pinv(y)` far away from all data, and there the rounding of `x` itself moves what they compute.
    """
    wide = bench.dtype == jnp.float64
    slopes = (1.0, 1e-6) if bench.quick else (1.0, 1e-1, 1e-2, 1e-4, 1e-6)
    stacks = ((2, 2.0),) if bench.quick else tuple((depth, bound) for bound in (0.5, 2.0) for depth in (2, 4, 8))
    names, size = (GREY[:1], 32) if bench.quick else (GREY, 64)
    rows: list[dict[str, Any]] = []
    kept: dict[str, list[Any]] = {"observation": [], "there and back": [], "100 x error": [], "errors": []}

    def measure(name: str, f: AbstractSurjection[Any], xs: Array) -> tuple[dict[str, float], Array, Array]:
        each, ys, back = round_trip(f, xs)
        worst = {what: float(jnp.max(value)) for what, value in each.items()}
        predicted = worst["Lipschitz of pinv"] * float(jnp.finfo(xs.dtype).eps)
        typical = {"f(pinv(y)), median": float(jnp.median(each["f(pinv(y))"]))}
        rows.append({"map": name, "dtype": str(xs.dtype)} | worst | typical | {"eps × Lipschitz": predicted})
        return worst, ys, back

    for dtype in (jnp.dtype("float32"), jnp.dtype("float64"))[: 1 + wide]:
        images = photographs(names, size, dtype)
        for slope in slopes:
            f = saturated_camera(image_shape(images), slope, dtype)
            worst, ys, back = measure(f"blur, sensor with slope {slope:g}", f, images)
            if dtype == jnp.float32:
                kept["observation"].append(shown(ys / 2 + 0.5)[0])
                kept["there and back"].append(shown(back)[0])
                kept["100 x error"].append(shown(100 * (back - images) + 0.5)[0])
                kept["errors"].append(worst["merge(split(x))"])
        # blocks of 8 x 8 pixels, one every 16, as vectors with zero mean and unit deviation
        blocks = np.asarray(images)[:, 0, :, :].reshape(len(images), size // 8, 8, size // 8, 8)[:, ::2, :, ::2]
        vectors = blocks.transpose(0, 1, 3, 2, 4).reshape(-1, 64)
        vectors = jnp.asarray((vectors - vectors.mean()) / vectors.std(), dtype)
        for depth, bound in stacks:
            f = couplings(64, depth, bound, dtype, bench.seed)
            measure(f"{depth} couplings, scale within e^±{bound:g}", f, vectors)
    arrays = {name: np.asarray(values) for name, values in kept.items()} | {"slopes": np.asarray(slopes)}
    return Findings(rows, {}, arrays)
