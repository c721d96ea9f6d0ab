"""The denoiser of the DDPM paper, `DenoisingUNet`: residual blocks that know the time, attention on coarse grids."""

import functools
import itertools
from collections.abc import Sequence

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Key, Scalar

from ..maps import Linear
from ..maps._residual_cnn import FieldConv
from ._unet_layers import Attention, GroupNorm, ResBlock, doubled, halved, silent, time_features


class Level(eqx.Module):
    """The blocks on one grid, each followed by attention or by None; `conv` leads to the next grid."""

    block: tuple[ResBlock, ...]
    attn: tuple[Attention | None, ...]
    conv: FieldConv | None


class DenoisingUNet(eqx.Module):
    """`(x_t, t) -> n` of the shape of `x_t`, an image `(c, height, width)` with any sides.

    The layout of the published code of DDPM, whose weights `io.load_ddpm` reads. On each grid there are residual blocks
    with group normalisation, then a strided convolution to the next grid, half as fine; two blocks with attention
    between them on the coarsest; and on the way up one block more per grid, each of which takes one skip. Sides that
    cannot be halved often enough are continued by their border pixels, and cut off at the end.

    The last layers of all branches are zero at first, so that the network returns zero.

    `DenoisingUNet((3, 256, 256), widths=(128, 128, 256, 256, 512, 512), num_blocks=2, attention=(16,), num_groups=32,
    key=key)` is the published one for CelebA-HQ, of 113,673,219 parameters.

    Args:
        shape: `(c, height, width)`.
        widths: channels on each grid, from fine to coarse, divisible by `num_groups`.
        num_blocks: residual blocks per grid on the way down.
        attention: on grids with these heights there is attention after every block.
        middle_attention: whether there is attention between the two blocks in the middle.
        num_groups: of channels that are normalised together.
        time_scale: what times are multiplied by: 1000 for a continuous schedule, whose times end at 1.
        dtype: of the parameters; the default float by default.
        key: random key.

    Raises:
        ValueError: a shape of another form, or widths that are none or not divisible by `num_groups`.

    References:
        J. Ho, A. Jain, P. Abbeel, "Denoising Diffusion Probabilistic Models", 2020, arXiv:2006.11239.
        C. Meng et al., "SDEdit: Guided Image Synthesis and Editing with Stochastic Differential Equations", 2022,
        arXiv:2108.01073, whose published weights have this layout.
    """

    dense: tuple[Linear, Linear]
    conv_in: FieldConv
    down: tuple[Level, ...]
    mid: tuple[ResBlock, Attention | None, ResBlock]
    up: tuple[Level, ...]
    norm_out: GroupNorm
    conv_out: FieldConv
    shape: tuple[int, int, int] = eqx.field(static=True)
    time_scale: float = eqx.field(static=True)

    def __init__(
        self,
        shape: tuple[int, int, int],
        *,
        widths: Sequence[int] = (32, 64),
        num_blocks: int = 1,
        attention: Sequence[int] = (),
        middle_attention: bool = True,
        num_groups: int = 8,
        time_scale: float | int = 1.0,
        dtype: DTypeLike | None = None,
        key: Key[Array, ""],
    ):
        if len(shape) != 3 or min(shape) < 1 or num_blocks < 1:
            raise ValueError(
                f"DenoisingUNet: shape={tuple(shape)} and num_blocks={num_blocks}; expected (channels, height, width) "
                "of an image and at least one block per grid."
            )
        if not widths or any(width < 1 or width % num_groups for width in widths) or widths[0] < 4:
            raise ValueError(
                f"DenoisingUNet: widths={tuple(widths)}, expected channels of at least one grid, 4 or more, divisible "
                f"by num_groups={num_groups}."
            )
        num_time = 4 * widths[0]
        keys = map(functools.partial(jax.random.fold_in, key), itertools.count())

        def conv(before: int, after: int) -> FieldConv:
            return FieldConv(before, after, num_dims=2, dtype=dtype, key=next(keys))

        def block(before: int, after: int) -> ResBlock:
            return ResBlock(before, after, num_time, num_groups, dtype, next(keys))

        def attend(width: int, *, wanted: bool) -> Attention | None:
            return Attention(width, num_groups, dtype, next(keys)) if wanted else None

        def level(blocks: Sequence[ResBlock], width: int, index: int, *, ends: bool) -> Level:
            wanted = -(-height // coarsest) * coarsest // 2**index in attention
            around = [attend(width, wanted=wanted) for _ in blocks]
            return Level(tuple(blocks), tuple(around), None if ends else conv(width, width))

        coarsest = 2 ** (len(widths) - 1)
        channels, height, width = shape
        self.shape, self.time_scale = (channels, height, width), float(time_scale)
        self.dense = (
            Linear(widths[0], num_time, dtype=dtype, key=next(keys)),
            Linear(num_time, num_time, dtype=dtype, key=next(keys)),
        )
        self.conv_in = conv(channels, widths[0])
        skips, down, up = [widths[0]], [], []
        for index, width in enumerate(widths):
            blocks = [block(width if i else skips[-1], width) for i in range(num_blocks)]
            ends = index == len(widths) - 1
            down.append(level(blocks, width, index, ends=ends))
            skips += [width] * (num_blocks if ends else num_blocks + 1)
        self.down = tuple(down)
        width = widths[-1]
        self.mid = (block(width, width), attend(width, wanted=middle_attention), block(width, width))
        before = width
        for index, width in reversed(list(enumerate(widths))):
            blocks = [block((width if i else before) + skips.pop(), width) for i in range(num_blocks + 1)]
            up.append(level(blocks, width, index, ends=index == 0))
            before = width
        self.up = tuple(up)  # from coarse to fine, as they are applied
        self.norm_out = GroupNorm(widths[0], num_groups, dtype)
        self.conv_out = silent(conv(widths[0], channels))

    def __call__(self, x_t: Float[Array, "c h w"], t: Scalar) -> Float[Array, "c h w"]:
        """What the network says of `x_t` at time `t`."""
        first, second = self.dense
        time = second(jax.nn.silu(first(time_features(self.time_scale * t, first.weight.shape[1]))))
        _, height, width = self.shape
        factor = 2 ** (len(self.down) - 1)
        border = [(0, -height % factor), (0, -width % factor), (0, 0)]
        h = self.conv_in(jnp.pad(jnp.moveaxis(x_t, 0, -1), border, mode="edge"))
        skips = [h]
        for level in self.down:
            for block, attention in zip(level.block, level.attn, strict=True):
                h = block(h, time)
                h = h if attention is None else attention(h)
                skips.append(h)
            if level.conv is not None:
                h = halved(level.conv, h)
                skips.append(h)
        before, attention, after = self.mid
        h = before(h, time)
        h = after(h if attention is None else attention(h), time)
        for level in self.up:
            for block, attention in zip(level.block, level.attn, strict=True):
                h = block(jnp.concatenate([h, skips.pop()], axis=-1), time)
                h = h if attention is None else attention(h)
            h = h if level.conv is None else doubled(level.conv, h)
        y = self.conv_out(jax.nn.silu(self.norm_out(h)))
        return jnp.moveaxis(y[:height, :width], -1, 0)
