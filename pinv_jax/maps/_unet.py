"""U-nets of fields in one, two or three dimensions, `UNet`: down to coarser grids and up again, with skips."""

from collections.abc import Callable, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Key

from ._base import AbstractMap, Stored
from ._networks import _activation
from ._residual_cnn import FieldConv, check_field


class UNet(AbstractMap):
    """`(c_in, *shape) -> (c_out, *shape)` through grids of sides `shape`, `shape / 2`, `shape / 4`, and so on.

    On the way down, level `l` turns the field into `widths[l]` channels by `num_convs` convolutions, keeps the result
    as its skip, and averages over cells of side 2. The last level has no skip. On the way up, the field is repeated to
    the finer grid, the skip of that level is appended to its channels, and `num_convs` convolutions turn both into
    `widths[l]` channels again. A last convolution leads to `c_out` channels. All windows are 3, and the activation
    follows every convolution but the last.

    `UNet((64, 64), (3, 1), widths=(32, 64), num_convs=1, key=key)` has the channels 3, 32, 64, 32, 1 of the published
    corrector. An `UNet` with `widths=(w,)` is a plain convolutional network.

    Args:
        shape: of the field: one, two or three sides, each divisible by `2^(len(widths) - 1)`.
        channels: `(c_in, c_out)`.
        widths: channels at each level, from fine to coarse.
        num_convs: convolutions per level and direction.
        padding: what lies outside the field: `"zeros"`, or `"circular"` for its periodic continuation.
        activation: a name in `ACTIVATIONS` or a callable.
        output_activation: after the last convolution, likewise.
        dtype: of the parameters; the default float by default.
        key: random key. Parameters are uniform within `1 / sqrt(fan_in)`, the default of PyTorch.

    Raises:
        ValueError: a shape that is not of one to three positive sides or that cannot be halved often enough, no widths,
            a number of channels or convolutions below one, an unknown padding or activation.

    References:
        O. Ronneberger, P. Fischer, T. Brox, "U-Net: Convolutional Networks for Biomedical Image Segmentation", 2015,
        arXiv:1505.04597. Here with padding, averages in place of maxima, and repetition in place of transposed
        convolutions.
        A. L. Kachhadiya, "Deceptron: Learned Local Inverses", 2025, arXiv:2511.21076.
    """

    down: tuple[tuple[FieldConv, ...], ...]
    up: tuple[tuple[FieldConv, ...], ...]
    last: FieldConv
    activation: Stored
    output_activation: Stored
    shape: tuple[int, ...] = eqx.field(static=True)

    def __init__(
        self,
        shape: tuple[int, ...],
        channels: tuple[int, int],
        *,
        widths: Sequence[int] = (32, 64),
        num_convs: int = 2,
        padding: str = "zeros",
        activation: str | Callable[..., Any] = "relu",
        output_activation: str | Callable[..., Any] = "identity",
        dtype: DTypeLike | None = None,
        key: Key[Array, ""],
    ):
        if not widths or num_convs < 1:
            raise ValueError(
                f"UNet: widths={tuple(widths)} and num_convs={num_convs}, expected the channels of at least one level "
                "and at least one convolution in each."
            )
        check_field("UNet", shape, (*channels, *widths), padding)
        factor = 2 ** (len(widths) - 1)
        if any(side % factor for side in shape):
            raise ValueError(
                f"UNet: sides {tuple(shape)} cannot be halved {len(widths) - 1} times for {len(widths)} levels. Use "
                f"sides divisible by {factor}, or fewer widths."
            )
        num_inputs, num_outputs = channels
        keys = iter(jax.random.split(key, (2 * len(widths) - 1) * num_convs + 1))

        def conv(before: int, after: int) -> FieldConv:
            return FieldConv(before, after, num_dims=len(shape), padding=padding, dtype=dtype, key=next(keys))

        def level(before: int, width: int) -> tuple[FieldConv, ...]:
            return tuple(conv(width if i else before, width) for i in range(num_convs))

        self.down = tuple(level(*pair) for pair in zip((num_inputs, *widths[:-1]), widths, strict=True))
        # From coarse to fine, as they are applied.
        self.up = tuple(level(below + width, width) for below, width in zip(widths[:0:-1], widths[-2::-1], strict=True))
        self.last = conv(widths[0], num_outputs)
        self.activation = _activation(activation)
        self.output_activation = _activation(output_activation)
        self.shape = tuple(shape)

    def __call__(self, x: Float[Array, "in *space"]) -> Float[Array, "out *space"]:
        """The output of the network."""
        h = self._convolve(self.down[0], jnp.moveaxis(x, 0, -1))
        skips = []
        for convs in self.down[1:]:
            skips.append(h)
            h = self._convolve(convs, _halve(h))
        for convs in self.up:
            h = self._convolve(convs, jnp.concatenate([_double(h), skips.pop()], axis=-1))
        return jnp.moveaxis(self.output_activation(self.last(h)), -1, 0)

    def _convolve(self, convs: tuple[FieldConv, ...], h: Float[Array, "*space in"]) -> Float[Array, "*space out"]:
        for conv in convs:
            h = self.activation(conv(h))
        return h

    def in_structure(self) -> jax.ShapeDtypeStruct:
        """Shape and dtype of `x`."""
        weight = self.down[0][0].weight
        return jax.ShapeDtypeStruct((weight.shape[1], *self.shape), weight.dtype)


def _halve(h: Float[Array, "*space c"]) -> Float[Array, "*half c"]:
    """Means over cells of side 2."""
    cells = [length for side in h.shape[:-1] for length in (side // 2, 2)]
    return jnp.mean(h.reshape(*cells, h.shape[-1]), axis=tuple(range(1, len(cells), 2)))


def _double(h: Float[Array, "*space c"]) -> Float[Array, "*double c"]:
    """Every entry repeated in a cell of side 2."""
    *space, channels = h.shape
    ones = [length for side in space for length in (side, 1)]
    cells = [length for side in space for length in (side, 2)]
    repeated = jnp.broadcast_to(h.reshape(*ones, channels), (*cells, channels))
    return repeated.reshape(*(2 * side for side in space), channels)
