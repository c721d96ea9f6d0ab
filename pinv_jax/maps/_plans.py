"""Surjective pseudo-invertible networks from a plan: unshuffle, then mix, split and couple, `(c, h, w) -> (m,)`."""

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
from jax.typing import DTypeLike
from jaxtyping import Array, Key

from ._base import AbstractSurjection
from ._chain import SurjectiveChain
from ._convnets import AdaptiveDesign, ConvDesign
from ._coupling import SurjectiveCoupling
from ._orthogonal import AbstractOrthogonal, Cayley, Householder, MatrixExponential
from ._reshape import Flatten, PixelUnshuffle

Design = Callable[..., Any]

_WIDEST = 4096  # channels that a plan mixes at most, if it can help it: a mixer costs their square


@dataclasses.dataclass(frozen=True)
class Unshuffle:
    """A step of a plan: `PixelUnshuffle(factor)`, space into channels."""

    factor: int


@dataclasses.dataclass(frozen=True)
class Ravel:
    """A step of a plan: `Flatten`, where no factor divides what is left of height and width."""


@dataclasses.dataclass(frozen=True)
class Block:
    """A step of a plan: an orthogonal mixing of the channels, then a `SurjectiveCoupling` that keeps some of them.

    Args:
        num_outputs: channels kept.
        design: of the scale and shift nets: any callable `design(shape, num_outputs, dtype=..., key=...)` that returns
            a net from `shape` to `num_outputs` channels at the same positions.
        section_design: of the section net; `design` where it is None.
    """

    num_outputs: int
    design: Design = AdaptiveDesign()  # noqa: RUF009 (frozen, so one default for all is safe)
    section_design: Design | None = None


Steps = Sequence[Unshuffle | Ravel | Block]


def spnn(
    shape: tuple[int, ...],
    steps: Steps,
    *,
    mixing: str | None = "cayley",
    start: str = "random",
    scale_bound: float = 2.0,
    bounded: str = "none",
    section: bool = True,
    eps: float = 0.0,
    dtype: DTypeLike | None = None,
    key: Key[Array, ""],
) -> SurjectiveChain:
    """A surjective pseudo-invertible network: the steps as a chain, with a `Flatten` last where one position is left.

    The last convolution of every net starts at zero, so the network starts as an orthogonal projection, and its `pinv`
    as the transpose.

    Args:
        shape: of `x`: `(channels, *space)`, or `(n,)`.
        steps: from `plan`, `published_steps`, or written by hand.
        mixing: "cayley", "expm", "householder" or None, the orthogonal mixing in front of every coupling.
        start: "random" rotations, or "identity" as published (not for reflections). An identity keeps the first
            channels: after unshuffling by 4 those are red sub-pixels alone.
        scale_bound: log of the largest scale of a coupling.
        bounded: "none", or "tanh" as published, which bounds shifts and sections to (-1, 1).
        section: whether the couplings have section nets; without them `pinv` sets what was lost to zero.
        eps: of the Cayley and Householder mixers; 1e-6 and 1e-8 as published, zero for exact orthogonality.
        dtype: of the parameters; the default float by default.
        key: random key.

    Returns:
        A chain with layers `PixelUnshuffle`, `Flatten` and, for every block, a mixer and a `SurjectiveCoupling`.

    Raises:
        ValueError: a step does not fit the shape in front of it; the message names the step and the shape. An unknown
            option.

    References:
        Y. Ehrlich, A. Berman, A. Shocher, "Pseudo-Invertible Neural Networks", 2026, arXiv:2602.06042.
    """
    _check_options(mixing, start, eps)
    layers: list[AbstractSurjection[Any]] = []
    now = tuple(shape)
    for index, (step, step_key) in enumerate(zip(steps, jax.random.split(key, max(len(steps), 1)), strict=False)):
        try:
            match step:
                case Unshuffle():
                    layers.append(PixelUnshuffle(now, step.factor, dtype))
                case Ravel():
                    layers.append(Flatten(now, dtype))
                case Block():
                    mix_key, net_key = jax.random.split(step_key)
                    nets = _nets(now, step, section=section, dtype=dtype, key=net_key)
                    if mixing is not None:
                        layers.append(_mixer(mixing, now, start, eps, dtype, mix_key))
                    options: dict[str, Any] = {"scale_bound": scale_bound, "bounded": bounded, "dtype": dtype}
                    layers.append(SurjectiveCoupling(now, step.num_outputs, **nets, **options))
        except ValueError as error:
            raise ValueError(f"Step {index} of the plan, {step}, does not fit shape {now}: {error}") from error
        now = layers[-1].out_structure().shape
    if not layers:
        raise ValueError("A network expected at least one step, got none. Write plan(shape, out_shape) for a plan.")
    if len(now) > 1 and math.prod(now[1:]) == 1:
        layers.append(Flatten(now, dtype))
    return SurjectiveChain(layers)


def published_steps(size: int, num_outputs: int = 40) -> Steps:
    """The plan of the published networks for square RGB images.

    Args:
        size: height and width: 32, 64, 256, or 16 (the example of their documentation, with 7 outputs).
        num_outputs: of the last block; the attribute networks have 40.

    Raises:
        ValueError: another size.

    References:
        Y. Ehrlich, A. Berman, A. Shocher, "Pseudo-Invertible Neural Networks", 2026, arXiv:2602.06042.
    """
    head = Block(num_outputs, ConvDesign((512, 256, 128), window=1), ConvDesign((128, 256, 512), window=1))
    if size == 16:
        return (Unshuffle(4), Block(12), Unshuffle(4), Block(num_outputs))
    if size in (32, 64):
        full = ConvDesign((64, 128, 128, 64), strides=(1, 2, 1, 0.5, 1))
        half = ConvDesign((64, 64, 64))
        first = (Unshuffle(4),) if size == 32 else (Unshuffle(2), Block(6, full), Block(3, half), Unshuffle(4))
        pixels = ConvDesign((32, 128, 256, 512, 512), strides=(1, 1, 2, 1, 2, 1), shuffle=4)
        funnel = ConvDesign((128, 256, 512, 512, 1024), strides=(1, 1, 2, 1, 2, 2), shuffle=8)
        return (*first, Block(32, pixels, ConvDesign((512, 256, 128, 64))), Unshuffle(8), Block(1024, funnel), head)
    if size == 256:
        steps: list[Unshuffle | Block] = []
        for channels, h in ((12, 128), (48, 256), (192, 512)):
            steps += [
                Unshuffle(4),
                Block(channels, ConvDesign((h, h, 2 * h, 2 * h, h), strides=(1, 1, 2, 1, 0.5, 1))),
            ]
        wide = Block(1024, ConvDesign((2048, 1536), window=1), ConvDesign((1536, 2048), window=1))
        return (*steps, Unshuffle(4), wide, head)
    raise ValueError(
        f"Published plans exist for images of size 16, 32, 64 and 256, got {size}. Write plan((3, {size}, {size}), "
        f"({num_outputs},)) for a plan of any size."
    )


def published_spnn(
    size: int,
    num_outputs: int = 40,
    *,
    mixing: str = "cayley",
    eps: float = 0.0,
    dtype: DTypeLike | None = None,
    key: Key[Array, ""],
) -> SurjectiveChain:
    """A published network for square RGB images: its plan, tanh-bounded shifts and sections, Cayley from the identity.

    Args:
        size: height and width, as in `published_steps`.
        num_outputs: of the last block.
        mixing: as in `spnn`.
        eps: as in `spnn`; published weights need 1e-6 with "cayley" and 1e-8 with "householder".
        dtype: of the parameters; the default float by default.
        key: random key.
    """
    start = "random" if mixing == "householder" else "identity"
    steps = published_steps(size, num_outputs)
    return spnn((3, size, size), steps, mixing=mixing, start=start, bounded="tanh", eps=eps, dtype=dtype, key=key)


def plan(shape: tuple[int, ...], out_shape: tuple[int, ...], *, hidden: int = 64) -> Steps:
    """The steps of a network from any shape to any smaller one, each level keeping about a quarter of the channels.

    A level unshuffles by 4 where it can, else by a prime factor that height and width share, and keeps a quarter of
    the channels, never fewer than the output needs. For a vector of outputs, positions without a common factor left
    are ravelled.

    Args:
        shape: of `x`: `(channels, height, width)`, `(n,)`, or `(channels, *space)` in other dimensions.
        out_shape: of `y`: `(m,)`, or `(channels, *space)` where all sides of `shape` are the same multiple of those of
            `out_shape` (in other than two dimensions: the same sides).
        hidden: the least number of hidden channels of the nets.

    Returns:
        Steps for `spnn`.

    Raises:
        ValueError: the shape cannot be reached. The message names the step where it fails and the nearest shape that
            can.
    """
    shape, out_shape = tuple(shape), tuple(out_shape)
    if not shape or not out_shape or min(*shape, *out_shape) < 1 or math.prod(shape) == 1:
        raise ValueError(
            f"plan expected shapes (channels, *space) with sides above zero and more than one number in x, got {shape} "
            f"and {out_shape}."
        )
    channels, num_outputs = shape[0], out_shape[0]
    space, out_space = list(shape[1:]), list(out_shape[1:])
    if out_space and math.prod(out_space) == 1:
        raise ValueError(f"A network returns a single position as a vector: for {out_shape} write {out_shape[:1]}.")
    design = AdaptiveDesign(hidden)
    steps: list[Unshuffle | Ravel | Block] = []
    vector = not out_space

    def keep(wanted: int) -> None:
        """Adds a block, unless there are no more channels than the outputs need."""
        nonlocal channels
        wanted = max(wanted, math.ceil(num_outputs * math.prod(out_space) / math.prod(space)))
        if wanted < channels:
            steps.append(Block(wanted, design))
            channels = wanted

    def widen(step: Unshuffle | Ravel, gain: int, after: list[int]) -> None:
        """Adds a step that turns positions into channels, and a block in front of it."""
        nonlocal channels, space
        keep(min(-(-channels // 4) if steps else channels, max(_WIDEST // gain, 1)))
        steps.append(step)
        channels, space = channels * gain, after

    for factor in _factors(_common(space, [1] * len(space) if vector else out_space)):
        widen(Unshuffle(factor), factor * factor, [side // factor for side in space])
    if vector and math.prod(space) > 1:
        widen(Ravel(), math.prod(space), [])
    if not vector and space != out_space:
        raise ValueError(
            f"Step {len(steps)} of the plan from {shape} to {out_shape} would have to take positions {tuple(space)} to "
            f"{tuple(out_space)}, but only images change their positions, height and width by the same factor. The "
            f"nearest shape that works is {_nearest(shape, out_shape)}."
        )
    while -(-channels // 4) > 2 * num_outputs:
        keep(-(-channels // 4))
    keep(num_outputs)
    if channels != num_outputs or not any(isinstance(step, Block) for step in steps):
        raise ValueError(
            f"Step {len(steps)} of the plan from {shape} to {out_shape} would have to keep {num_outputs} of {channels} "
            f"channels, but a block gives up at least one. The nearest shape that works is "
            f"{_nearest(shape, out_shape)}."
        )
    return tuple(steps)


def _nets(
    shape: tuple[int, ...], block: Block, *, section: bool, dtype: DTypeLike | None, key: Key[Array, ""]
) -> dict[str, Any]:
    kept, lost = block.num_outputs, shape[0] - block.num_outputs
    if lost < 1 or kept < 1:
        raise ValueError(f"a block keeps fewer channels than it is given, got {kept} of {shape[0]}. Leave it out.")
    keys = jax.random.split(key, 3)
    nets = {
        name: block.design((lost, *shape[1:]), kept, dtype=dtype, key=net_key)
        for name, net_key in zip(("scale", "shift"), keys[:2], strict=True)
    }
    if section:
        nets["section"] = (block.section_design or block.design)((kept, *shape[1:]), lost, dtype=dtype, key=keys[2])
    return nets


def _mixer(
    mixing: str, shape: tuple[int, ...], start: str, eps: float, dtype: DTypeLike | None, key: Key[Array, ""]
) -> AbstractOrthogonal:
    if mixing == "householder":
        return Householder(shape, eps=eps, dtype=dtype, key=key)
    rotation = key if start == "random" else None
    if mixing == "expm":
        return MatrixExponential(shape, dtype=dtype, key=rotation)
    return Cayley(shape, eps=eps, dtype=dtype, key=rotation)


def _check_options(mixing: str | None, start: str, eps: float) -> None:
    if mixing not in ("cayley", "expm", "householder", None) or start not in ("random", "identity"):
        raise ValueError(
            'A network expected mixing "cayley", "expm", "householder" or None and start "random" or "identity", got '
            f"mixing={mixing!r} and start={start!r}."
        )
    if mixing == "householder" and start == "identity":
        raise ValueError('Reflections have no identity to start from: write start="random", or mixing="cayley".')
    if eps and mixing in ("expm", None):
        raise ValueError(
            f'eps={eps} belongs to mixing="cayley" and "householder"; with mixing={mixing!r} leave it out.'
        )


def _common(space: Sequence[int], target: Sequence[int]) -> int:
    """The largest factor by which an image can be unshuffled on the way to the target, 1 for what is not an image."""
    if len(space) != 2 or len(target) != 2 or any(a % b for a, b in zip(space, target, strict=True)):
        return 1
    return math.gcd(*(a // b for a, b in zip(space, target, strict=True)))


def _factors(number: int) -> Iterator[int]:
    """4, 4, ..., then the prime factors that are left, in order: their product is `number`."""
    for factor in (4, *range(2, number + 1)):
        while number % factor == 0:
            yield factor
            number //= factor


def _nearest(shape: tuple[int, ...], out_shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape closest to `out_shape` that a plan reaches: the closest sides, then as many of the channels as fit."""
    (channels, *space), (num_outputs, *out_space) = shape, out_shape
    if len(space) == len(out_space) > 0:
        common = math.gcd(*space) if len(space) == 2 else 1
        reached = {
            factor: tuple(side // factor for side in space) for factor in range(1, common + 1) if common % factor == 0
        }
        fitting = [r for r, sides in reached.items() if channels * r * r > 1 and math.prod(sides) > 1]
        if fitting and math.prod(out_space) > 1:
            misfit = {r: sum(abs(math.log(a / b)) for a, b in zip(reached[r], out_space, strict=True)) for r in fitting}
            best = min(misfit, key=misfit.__getitem__)
            return (min(num_outputs, channels * best * best - 1), *reached[best])
    return (min(math.prod(out_shape), math.prod(shape) - 1),)
