"""Invertible networks: couplings `y_a = x_a * exp(s(x_b)) + t(x_b)`, `y_b = x_b`, and the log-determinants of flows."""

import abc
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Key, Scalar

from ._base import AbstractSurjection, Stored, store
from ._bijection import AbstractBijection, dense_log_det
from ._chain import SurjectiveChain
from ._convnets import ConvNet
from ._orthogonal import AbstractOrthogonal, Cayley, Householder, MatrixExponential
from ._reshape import AbstractReshape

Net = Callable[..., Any]


class _Coupling(AbstractBijection):
    """Changes one part of the channels by what nets say of the other: subclasses say how."""

    swap: eqx.AbstractVar[bool]

    @abc.abstractmethod
    def _change(self, a: Float[Array, "*a"], b: Float[Array, "*b"]) -> Float[Array, "*a"]:
        """`y_a` from `x_a` and `x_b`."""

    @abc.abstractmethod
    def _undo(self, a: Float[Array, "*a"], b: Float[Array, "*b"]) -> Float[Array, "*a"]:
        """`x_a` from `y_a` and `y_b`."""

    def apply(self, x: Float[Array, "*x"]) -> Float[Array, "*x"]:
        """`(y_a, x_b)`."""
        a, b = self._cut(x)
        with jax.default_matmul_precision("highest"):
            return self._join(self._change(a, b), b)

    def invert(self, y: Float[Array, "*x"]) -> Float[Array, "*x"]:
        """`(x_a, y_b)`."""
        a, b = self._cut(y)
        with jax.default_matmul_precision("highest"):
            return self._join(self._undo(a, b), b)

    def _cut(self, x: Float[Array, "*x"]) -> tuple[Float[Array, "*a"], Float[Array, "*b"]]:
        first, second = x[: x.shape[0] // 2], x[x.shape[0] // 2 :]
        return (second, first) if self.swap else (first, second)

    def _join(self, a: Float[Array, "*a"], b: Float[Array, "*b"]) -> Float[Array, "*x"]:
        return jnp.concatenate([b, a] if self.swap else [a, b])

    def _kept(self, name: str, net: Net) -> Stored:
        """`net` stored, once its output has been found to fit."""
        num_outputs, before = _parts(self.shape, swap=self.swap)
        after = (num_outputs, *self.shape[1:])
        got = jax.eval_shape(net, jax.ShapeDtypeStruct(before, self.dtype))
        if not isinstance(got, jax.ShapeDtypeStruct) or (got.shape, got.dtype) != (after, self.dtype):
            raise ValueError(
                f"{type(self).__name__} expected the {name} net to map shape {before} to shape {after} in "
                f"{self.dtype}, but it returned {got}. Build it with {before[0]} input and {num_outputs} output "
                "channels, or pass dtype."
            )
        return store(net)


class AdditiveCoupling(_Coupling):
    """`y_a = x_a + shift(x_b)`, `y_b = x_b`: a bijection that preserves volume, whatever `shift` is.

    The leading axis of `x` is cut in two: `x_a` are the first `channels // 2` entries and `x_b` the others, or the
    other way round with `swap`.

    Args:
        shape: of `x`, `(channels, *space)` or `(n,)`, at least two channels.
        shift: callable from the shape of `x_b` to that of `x_a`.
        swap: the second part changes, and the first is what `shift` sees.
        dtype: of `x`; the default float by default.

    Raises:
        ValueError: a single channel, or a net that returns another shape or dtype.

    References:
        L. Dinh, D. Krueger, Y. Bengio, "NICE: Non-linear Independent Components Estimation", 2014, arXiv:1410.8516.
    """

    shift_net: Stored
    shape: tuple[int, ...] = eqx.field(static=True)
    swap: bool = eqx.field(static=True)
    dtype: np.dtype = eqx.field(static=True)

    def __init__(self, shape: tuple[int, ...], *, shift: Net, swap: bool = False, dtype: DTypeLike | None = None):
        self.shape, self.swap = shape, swap
        self.dtype = jnp.result_type(float if dtype is None else dtype)
        self.shift_net = self._kept("shift", shift)

    def _change(self, a: Float[Array, "*a"], b: Float[Array, "*b"]) -> Float[Array, "*a"]:
        return a + self.shift_net(b)

    def _undo(self, a: Float[Array, "*a"], b: Float[Array, "*b"]) -> Float[Array, "*a"]:
        return a - self.shift_net(b)

    def log_det(self, x: Float[Array, "*x"]) -> Scalar:
        """Zero."""
        return jnp.zeros((), x.dtype)


class AffineCoupling(_Coupling):
    """`y_a = x_a * exp(b tanh(scale(x_b))) + shift(x_b)`, `y_b = x_b`: a bijection, whatever the two nets are.

    The scale lies between `exp(-b)` and `exp(b)`, and its inverse needs no division. The parts of `x` are those of
    `AdditiveCoupling`.

    Args:
        shape: of `x`, `(channels, *space)` or `(n,)`, at least two channels.
        scale, shift: callables from the shape of `x_b` to that of `x_a`.
        swap: the second part changes, and the first is what the nets see.
        scale_bound: `b`, positive.
        dtype: of `x`; the default float by default.

    Raises:
        ValueError: a single channel, a net that returns another shape or dtype, or `scale_bound` not positive.

    References:
        L. Dinh, J. Sohl-Dickstein, S. Bengio, "Density estimation using Real NVP", 2016, arXiv:1605.08803.
    """

    scale_net: Stored
    shift_net: Stored
    shape: tuple[int, ...] = eqx.field(static=True)
    swap: bool = eqx.field(static=True)
    scale_bound: float = eqx.field(static=True)
    dtype: np.dtype = eqx.field(static=True)

    def __init__(
        self,
        shape: tuple[int, ...],
        *,
        scale: Net,
        shift: Net,
        swap: bool = False,
        scale_bound: float = 2.0,
        dtype: DTypeLike | None = None,
    ):
        if not scale_bound > 0:
            raise ValueError(
                f"AffineCoupling expected scale_bound > 0, got {scale_bound}. For a scale of one use AdditiveCoupling."
            )
        self.shape, self.swap, self.scale_bound = shape, swap, scale_bound
        self.dtype = jnp.result_type(float if dtype is None else dtype)
        self.scale_net, self.shift_net = self._kept("scale", scale), self._kept("shift", shift)

    def _change(self, a: Float[Array, "*a"], b: Float[Array, "*b"]) -> Float[Array, "*a"]:
        return a * jnp.exp(self._log_scale(b)) + self.shift_net(b)

    def _undo(self, a: Float[Array, "*a"], b: Float[Array, "*b"]) -> Float[Array, "*a"]:
        return (a - self.shift_net(b)) * jnp.exp(-self._log_scale(b))

    def log_det(self, x: Float[Array, "*x"]) -> Scalar:
        """The sum of `b tanh(scale(x_b))`."""
        with jax.default_matmul_precision("highest"):
            return jnp.sum(self._log_scale(self._cut(x)[1]))

    def _log_scale(self, b: Float[Array, "*b"]) -> Float[Array, "*a"]:
        return self.scale_bound * jnp.tanh(self.scale_net(b))


class Centred(AbstractSurjection[Any]):
    """`y = f(x) - f(0)`, so that the origin goes to the origin.

    With a centred bijection `psi` the map `x -> A psi(x)` has `psi^-1(A^+ y)` as its natural pseudo-inverse; without
    centring the natural one is another right inverse. `f(0)` follows the parameters of `f` while they are trained;
    `prepare` computes it once.

    Args:
        f: any surjection.
    """

    f: AbstractSurjection[Any]
    prepared: Float[Array, "*y"] | None

    def __init__(self, f: AbstractSurjection[Any]):
        self.f = f
        self.prepared = None

    def split(self, x: Float[Array, "*x"]) -> tuple[Float[Array, "*y"], Any]:
        """`(y - f(0), z)` with `(y, z) = f.split(x)`."""
        y, z = self.f.split(x)
        return y - self._origin(), z

    def merge(self, y: Float[Array, "*y"], z: Any) -> Float[Array, "*x"]:
        """`f.merge(y + f(0), z)`."""
        return self.f.merge(y + self._origin(), z)

    def section(self, y: Float[Array, "*y"]) -> Any:
        """`f.section(y + f(0))`."""
        return self.f.section(y + self._origin())

    def in_structure(self) -> jax.ShapeDtypeStruct:
        """Shape and dtype of `x`."""
        return self.f.in_structure()

    def prepare(self) -> "Centred":
        """The same map with `f(0)` computed."""
        if self.prepared is not None:
            return self
        return eqx.tree_at(lambda m: m.prepared, self, self._origin(), is_leaf=lambda leaf: leaf is None)

    def _origin(self) -> Float[Array, "*y"]:
        if self.prepared is not None:
            return self.prepared
        structure = self.f.in_structure()
        return self.f(jnp.zeros(structure.shape, structure.dtype))


def log_det(f: AbstractSurjection[Any], x: Float[Array, "*x"]) -> Scalar:
    """The log-determinant `log |det df/dx|` at `x`; a flow has `log p(x) = log p(f(x)) + log |det df/dx|`.

    A chain sums over its layers. Reshapings and orthogonal mixers count as zero, elementwise maps sum the logarithms
    of their slopes, and bijections have a rule of their own. Any other surjection that loses no dimension is measured
    by its dense Jacobian, which costs `O(n^3)`.

    Args:
        f: a surjection with as many outputs as inputs.
        x: one example.

    Raises:
        ValueError: `f`, or a layer of it, loses dimensions.
    """
    if isinstance(f, SurjectiveChain):
        total = jnp.zeros((), x.dtype)
        for layer in f.layers:
            total = total + log_det(layer, x)
            x = layer(x)
        return total
    if isinstance(f, Centred):
        return log_det(f.f, x)
    if isinstance(f, AbstractBijection):
        return f.log_det(x)
    if isinstance(f, AbstractOrthogonal | AbstractReshape):
        return jnp.zeros((), x.dtype)
    out = f.out_structure()
    if out.size != x.size:
        raise ValueError(
            f"log_det expected maps that keep the dimension, got {type(f).__name__} from shape {x.shape} to shape "
            f"{out.shape}, whose Jacobian has no determinant. Take the log_det of the invertible layers before it."
        )
    return dense_log_det(f, x)


def invertible_network(
    shape: tuple[int, ...],
    *,
    num_layers: int = 4,
    hidden: int = 64,
    kind: str = "affine",
    mixing: str | None = "householder",
    scale_bound: float = 2.0,
    centred: bool = True,
    dtype: DTypeLike | None = None,
    key: Key[Array, ""],
) -> AbstractSurjection[Any]:
    """An invertible network `psi` of alternating couplings with orthogonal mixers in front of them.

    The inner nets have two hidden layers with ReLUs: perceptrons for vectors, convolutions for `(channels, *space)`.
    Their last layer starts at zero, so that `psi` starts as an orthogonal map, and `SurjectiveChain([psi, P])` with a
    `LinearSurjection` `P` as a linear map with its Moore-Penrose inverse.

    Args:
        shape: of `x`, `(channels, *space)` or `(n,)`, at least two channels; `PixelUnshuffle` makes channels of a grey
            image.
        num_layers: couplings.
        hidden: width, or channels, of the hidden layers of the inner nets.
        kind: "affine", or "additive" for a network that preserves volume.
        mixing: "householder", "cayley", "expm", or `None` for no mixers.
        scale_bound: of `AffineCoupling`.
        centred: `psi(x) - psi(0)`.
        dtype: of `x` and the parameters; the default float by default.
        key: random key.

    Returns:
        A bijection, `Centred` or a chain: `psi.pinv` is its inverse, and `log_det(psi, x)` its log-determinant.

    Raises:
        ValueError: a single channel, no layers, or an unknown `kind` or `mixing`.

    References:
        D. P. Kingma, P. Dhariwal, "Glow: Generative Flow with Invertible 1x1 Convolutions", 2018, arXiv:1807.03039.
    """
    if num_layers < 1:
        raise ValueError(f"invertible_network expected at least one layer, got num_layers={num_layers}.")
    if kind not in ("affine", "additive"):
        raise ValueError(f'invertible_network expected kind="affine" or kind="additive", got {kind!r}.')
    mixers = {"householder": Householder, "cayley": Cayley, "expm": MatrixExponential, None: None}
    if mixing not in mixers:
        raise ValueError(f"invertible_network expected mixing to be one of {list(mixers)}, got {mixing!r}.")
    mixer = mixers[mixing]
    layers: list[AbstractSurjection[Any]] = []
    for index, layer_key in enumerate(jax.random.split(key, num_layers)):
        mix_key, *net_keys = jax.random.split(layer_key, 3)
        if mixer is not None:
            layers.append(mixer(shape, dtype=dtype, key=mix_key))
        swap = index % 2 == 1
        num_outputs, before = _parts(shape, swap=swap)
        scale, shift = (ConvNet(before, num_outputs, hidden=(hidden, hidden), dtype=dtype, key=k) for k in net_keys)
        options: dict[str, Any] = {"swap": swap, "dtype": dtype}
        if kind == "additive":
            layers.append(AdditiveCoupling(shape, shift=shift, **options))
        else:
            layers.append(AffineCoupling(shape, scale=scale, shift=shift, scale_bound=scale_bound, **options))
    psi = SurjectiveChain(layers)
    return Centred(psi) if centred else psi


def _parts(shape: tuple[int, ...], *, swap: bool) -> tuple[int, tuple[int, ...]]:
    """Channels of `x_a`, and the shape of `x_b`."""
    if not shape or shape[0] < 2:
        raise ValueError(
            f"A coupling cuts the channels of x in two and expected at least two, got shape {shape}. Put a "
            "PixelUnshuffle in front, which makes channels of the pixels."
        )
    first = shape[0] // 2
    changed, seen = (shape[0] - first, first) if swap else (first, shape[0] - first)
    return changed, (seen, *shape[1:])
