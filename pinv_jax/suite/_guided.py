"""What the studies of guided sampling share: a small prior, batches of samples with their cost, and measures."""

import math
import time
from collections.abc import Callable, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Key, Scalar

from .. import diffusion
from ..maps import Linear
from ._digits import key_of
from ._study import Bench

_NUM_FEATURES = 64


class DenseDenoiser(eqx.Module):
    """`(x_t, t) -> x0`: residual perceptrons on the image as a vector, for images so small that convolutions cost more.

    It predicts the image: the noise would not fit through layers narrower than it. The last layer starts at zero.

    Args:
        shape: of `x`.
        width: of all layers.
        num_blocks: residual blocks.
        dtype: of the parameters.
        key: random key.
    """

    inlet: Linear
    outlet: Linear
    clock: Linear
    blocks: tuple[tuple[Linear, Linear, Linear], ...]
    shape: tuple[int, ...] = eqx.field(static=True)

    def __init__(
        self,
        shape: Sequence[int],
        *,
        width: int = 256,
        num_blocks: int = 3,
        dtype: DTypeLike | None = None,
        key: Key[Array, ""],
    ):
        size, keys = math.prod(shape), iter(jax.random.split(key, 3 + 3 * num_blocks))
        linear = lambda before, after: Linear(before, after, dtype=dtype, key=next(keys))
        self.shape = tuple(shape)
        self.inlet, self.clock = linear(size, width), linear(_NUM_FEATURES, _NUM_FEATURES)
        self.outlet = jax.tree.map(jnp.zeros_like, linear(width, size))
        self.blocks = tuple(
            (linear(width, width), linear(_NUM_FEATURES, width), linear(width, width)) for _ in range(num_blocks)
        )

    def __call__(self, x_t: Float[Array, "*x"], t: Scalar) -> Float[Array, "*x"]:
        """The image in `x_t` at the time `t` of a schedule of 1000 steps."""
        frequencies = jnp.asarray(np.geomspace(1e-3, 1.0, _NUM_FEATURES // 2), x_t.dtype)
        phases = t * frequencies
        features = jax.nn.silu(self.clock(jnp.concatenate([jnp.sin(phases), jnp.cos(phases)])))
        h = self.inlet(jnp.ravel(x_t))
        for first, timed, second in self.blocks:
            inner = (h - jnp.mean(h)) * jax.lax.rsqrt(jnp.var(h) + 1e-5)
            h = h + second(jax.nn.silu(first(inner) + timed(features)))
        return self.outlet(h).reshape(self.shape)
