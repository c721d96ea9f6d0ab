"""Paired data sets made with a forward map: noise, splits, statistics for normalisation."""

from collections.abc import Callable, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from ..maps import Stored, store

# Examples at a time: data sets of several sizes then compile the map once. Small is as fast on CPUs, large elsewhere.
_WIDTHS = {"cpu": 8, "other": 1024}


class PairedData(eqx.Module):
    """Unknowns and what was observed of them; the leading axis counts examples.

    Args:
        x: shape `(num, *x)`.
        y: shape `(num, *y)`.
    """

    x: Float[Array, "num *x"]
    y: Float[Array, "num *y"]

    @property
    def num_examples(self) -> int:
        """Number of pairs."""
        return self.x.shape[0]

    def take(self, indices: Int[Array, " k"]) -> "PairedData":
        """The pairs at `indices`, for example a batch."""
        return PairedData(self.x[indices], self.y[indices])


def generate(
    sample: Callable[..., Any],
    forward: Callable[..., Any],
    num: int,
    *,
    key: Key[Array, ""],
    noise_std: float | Float[Array, "..."] = 0.0,
) -> PairedData:
    """Draws `num` unknowns and observes each: `y = forward(x) + noise_std * N(0, 1)`.

    Example `i` depends on the key and `i` alone: more examples from one key start with the same ones.

    Args:
        sample: takes a key, returns one `x`; for example a `GaussianSeries`.
        forward: the map `x -> y` on one example.
        num: number of pairs.
        key: random key.
        noise_std: in the units of `y`, a scalar or shaped like one `y`.

    Returns:
        The pairs.

    Raises:
        ValueError: `num` is not positive, or the map takes an `x` of another shape than the prior draws.
    """
    if num < 1:
        raise ValueError(f"generate expected at least one example, got num={num}.")
    _check_shapes(sample, forward, key)
    width = min(num, _WIDTHS.get(jax.default_backend(), _WIDTHS["other"]))
    indices = np.arange(-(-num // width) * width).reshape(-1, width)
    y = jax.eval_shape(lambda key: forward(sample(key)), key)
    noise_std = jnp.broadcast_to(jnp.asarray(noise_std, y.dtype), y.shape)
    parts = [_generate(store(sample), store(forward), part, key, noise_std) for part in indices]
    return jax.tree.map(lambda *part: jnp.concatenate(part)[:num], *parts)


def _check_shapes(sample: Callable[..., Any], forward: Callable[..., Any], key: Array) -> None:
    """Of a map that says what it takes; some accept another shape without an error, by broadcasting."""
    try:
        expected = forward.in_structure().shape  # pyright: ignore[reportFunctionMemberAccess]
    except (AttributeError, ValueError):
        return
    drawn = jax.eval_shape(sample, key).shape
    if drawn != expected:
        raise ValueError(
            f"the prior draws x of shape {drawn}, and the forward map takes {expected}: build both on the same grid, "
            "with the same num_points (or num_modes)."
        )


@jax.jit
def _generate(sample: Stored, forward: Stored, indices: Array, key: Array, noise_std: Array) -> PairedData:
    def one(index):
        x_key, noise_key = jax.random.split(jax.random.fold_in(key, index))
        x = sample(x_key)
        return x, add_noise(forward(x), noise_std, key=noise_key)

    return PairedData(*jax.vmap(one)(indices))


def add_noise(
    y: Float[Array, "*y"], noise_std: float | Float[Array, "..."], *, key: Key[Array, ""]
) -> Float[Array, "*y"]:
    """`y + noise_std * N(0, 1)`, with `noise_std` a scalar or shaped like `y`."""
    std = jnp.broadcast_to(jnp.asarray(noise_std, y.dtype), y.shape)
    return y + std * jax.random.normal(key, y.shape, y.dtype)


def split(data: PairedData, sizes: Sequence[int]) -> tuple[PairedData, ...]:
    """Consecutive parts of the given sizes, for example training, validation and test.

    Args:
        data: the pairs.
        sizes: how many examples each part gets; what is left over is dropped.

    Raises:
        ValueError: a size is not positive, or there are not enough examples.
    """
    if min(sizes, default=0) < 1 or sum(sizes) > data.num_examples:
        raise ValueError(
            f"split expected positive sizes with a sum of at most {data.num_examples}, the number of examples, got "
            f"{tuple(sizes)}."
        )
    ends = np.cumsum(sizes)
    return tuple(PairedData(data.x[e - s : e], data.y[e - s : e]) for s, e in zip(sizes, ends, strict=True))


def statistics(values: Float[Array, "num *y"]) -> tuple[Float[Array, "*y"], Float[Array, "*y"]]:
    """Mean and standard deviation over the leading axis, for `maps.Normalised`.

    The standard deviation is the unbiased one, as in the papers; coordinates that do not vary get one, so that
    dividing by it is harmless.

    Raises:
        ValueError: fewer than two examples.
    """
    if values.shape[0] < 2:
        raise ValueError(f"statistics expected at least two examples on the leading axis, got shape {values.shape}.")
    mean, std = jnp.mean(values, axis=0), jnp.std(values, axis=0, ddof=1)
    # A constant coordinate may come out as rounding instead of zero.
    constant = std <= 4 * jnp.finfo(values.dtype).eps * jnp.abs(mean)
    return mean, jnp.where(constant, 1.0, std)
