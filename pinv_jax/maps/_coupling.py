"""The surjective coupling: `y = x0 * s(x1) + t(x1)`, `z = x1`, for `x = (x0, x1)`."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float, PyTree

from ._base import AbstractSurjection, Stored, store

Net = Callable[..., Any]


class SurjectiveCoupling(AbstractSurjection[Float[Array, "*z"]]):
    """`y = x0 * exp(b tanh(scale(x1))) + act(shift(x1))` and `z = x1`, where `x0` are the first channels of `x`.

    The rest of the channels, `x1`, is lost to `y`, and `section` guesses it: `act(section_net(y))`, or zeros. For any
    three nets, trained or not, `x -> (y, z)` is a bijection and `pinv` an exact right inverse. The scale lies between
    `exp(-b)` and `exp(b)`; its inverse is `exp(-b tanh(scale(x1)))`, with no division.

    In float32 and float64 the inverse is exact to rounding. In bfloat16, which has 8 bits, everything runs, but one
    block returns `f(pinv(y))` to 0.5 per cent of `y` only, and three with mixers between them to 4 per cent.

    Args:
        shape: of `x`, `(channels, *space)`; `(n,)` for vectors.
        num_outputs: channels of `y`, fewer than those of `x`.
        scale, shift: callables from `(channels - num_outputs, *space)` to `(num_outputs, *space)`; without them the
            scale is 1 and the shift 0.
        section: callable from `(num_outputs, *space)` to `(channels - num_outputs, *space)`; zeros without it.
        scale_bound: `b`, positive.
        bounded: "tanh" bounds `shift` and `section` to (-1, 1) as the published networks do; with "none" `act` is the
            identity. A bounded section cannot return what lies outside (-1, 1), and mixed channels do.
        dtype: of `x`; the default float by default.

    Raises:
        ValueError: `num_outputs` is not below the number of channels, a net returns another shape or dtype, `bounded`
            is unknown, or `scale_bound` is not positive.

    References:
        Y. Ehrlich, A. Berman, A. Shocher, "Pseudo-Invertible Neural Networks", 2026, arXiv:2602.06042.
    """

    scale_net: Stored | None
    shift_net: Stored | None
    section_net: Stored | None
    shape: tuple[int, ...] = eqx.field(static=True)
    num_outputs: int = eqx.field(static=True)
    scale_bound: float = eqx.field(static=True)
    bounded: str = eqx.field(static=True)
    dtype: np.dtype = eqx.field(static=True)

    def __init__(
        self,
        shape: tuple[int, ...],
        num_outputs: int,
        *,
        scale: Net | None = None,
        shift: Net | None = None,
        section: Net | None = None,
        scale_bound: float = 2.0,
        bounded: str = "none",
        dtype: DTypeLike | None = None,
    ):
        if not shape or not 0 < num_outputs < shape[0]:
            raise ValueError(
                f"SurjectiveCoupling expected 0 < num_outputs < channels, got num_outputs={num_outputs} for x of shape "
                f"{shape}: a block needs channels to give up. Where the number of channels stays, use an invertible "
                "coupling or an orthogonal mixer."
            )
        if bounded not in ("none", "tanh"):
            raise ValueError(f'SurjectiveCoupling expected bounded="none" or bounded="tanh", got {bounded!r}.')
        if not scale_bound > 0:
            raise ValueError(
                f"SurjectiveCoupling expected scale_bound > 0, got {scale_bound}. For a scale of one leave out scale."
            )
        self.shape, self.num_outputs = shape, num_outputs
        self.scale_bound, self.bounded = scale_bound, bounded
        self.dtype = jnp.result_type(float if dtype is None else dtype)
        self.scale_net, self.shift_net, self.section_net = store(scale), store(shift), store(section)
        kept, lost = ((count, *shape[1:]) for count in (num_outputs, shape[0] - num_outputs))
        for name, net, before, after in [
            ("scale", self.scale_net, lost, kept),
            ("shift", self.shift_net, lost, kept),
            ("section", self.section_net, kept, lost),
        ]:
            if net is not None:
                _check(name, net, before, after, self.dtype)

    def split(self, x: Float[Array, "*x"]) -> tuple[Float[Array, "*y"], Float[Array, "*z"]]:
        """`(x0 * s(x1) + t(x1), x1)`."""
        y, z = x[: self.num_outputs], x[self.num_outputs :]
        with jax.default_matmul_precision("highest"):
            if self.scale_net is not None:
                y = y * jnp.exp(self._log_scale(z))
            if self.shift_net is not None:
                y = y + self._bound(self.shift_net(z))
        return y, z

    def merge(self, y: Float[Array, "*y"], z: Float[Array, "*z"]) -> Float[Array, "*x"]:
        """`((y - t(z)) / s(z), z)`."""
        with jax.default_matmul_precision("highest"):
            if self.shift_net is not None:
                y = y - self._bound(self.shift_net(z))
            if self.scale_net is not None:
                y = y * jnp.exp(-self._log_scale(z))
        return jnp.concatenate([y, z])

    def section(self, y: Float[Array, "*y"]) -> Float[Array, "*z"]:
        """The channels that `pinv` guesses for `y`."""
        if self.section_net is None:
            return jnp.zeros((self.shape[0] - self.num_outputs, *self.shape[1:]), y.dtype)
        with jax.default_matmul_precision("highest"):
            return self._bound(self.section_net(y))

    def in_structure(self) -> jax.ShapeDtypeStruct:
        """Shape and dtype of `x`."""
        return jax.ShapeDtypeStruct(self.shape, self.dtype)

    def _log_scale(self, z: Float[Array, "*z"]) -> Float[Array, "*y"]:
        return self.scale_bound * jnp.tanh(self.scale_net(z))  # pyright: ignore[reportOptionalCall]

    def _bound(self, value: Float[Array, "*v"]) -> Float[Array, "*v"]:
        return jnp.tanh(value) if self.bounded == "tanh" else value


def sections(model: PyTree) -> list[Any]:
    """The section nets of every `SurjectiveCoupling` in `model`, in order: what the second stage of training moves.

    Args:
        model: any pytree; a chain, say, or a pair of maps.

    Returns:
        The nets, without those that are `None`. `Stage(..., trainable=sections)` trains them alone.
    """

    def inner(node: Any) -> bool:
        return isinstance(node, SurjectiveCoupling | Stored)

    found = []
    for node in jax.tree.leaves(model, is_leaf=inner):
        if isinstance(node, SurjectiveCoupling):
            found += [] if node.section_net is None else [node.section_net]
        elif isinstance(node, Stored):
            found += sections(node.fn)
    return found


def _check(name: str, net: Net, before: tuple[int, ...], after: tuple[int, ...], dtype: np.dtype) -> None:
    try:
        got = jax.eval_shape(net, jax.ShapeDtypeStruct(before, dtype))
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"SurjectiveCoupling expected the {name} net to map shape {before} to shape {after}, but it failed at that "
            f"shape. Build it with {before[0]} input and {after[0]} output channels."
        ) from error
    if not isinstance(got, jax.ShapeDtypeStruct) or (got.shape, got.dtype) != (after, dtype):
        raise ValueError(
            f"SurjectiveCoupling expected the {name} net to map shape {before} to shape {after} in {dtype}, but it "
            f"returned {got}. Build it with {before[0]} input and {after[0]} output channels, or pass dtype."
        )
