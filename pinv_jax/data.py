"""Data: random fields, paired data sets made with a forward map, noise, splits, statistics for normalisation."""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int, Key

from .maps import Stored, store
from .pde import sine_basis


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
        ValueError: `num` is not positive.
    """
    if num < 1:
        raise ValueError(f"generate expected at least one example, got num={num}.")

    return _generate(store(sample), store(forward), num, key, jnp.asarray(noise_std))


@functools.partial(jax.jit, static_argnames="num")
def _generate(sample: Stored, forward: Stored, num: int, key: Array, noise_std: Array) -> PairedData:
    def one(index):
        x_key, noise_key = jax.random.split(jax.random.fold_in(key, index))
        x = sample(x_key)
        return x, add_noise(forward(x), noise_std, key=noise_key)

    return PairedData(*jax.vmap(one)(jnp.arange(num)))


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


class GaussianSeries(eqx.Module):
    """The random function `transform(sum_k c_k phi_k)`, `c_k ~ N(0, std_k^2)`, sampled on a grid.

    Args:
        basis: the functions `phi_k` as columns, shape `(n, k)`.
        std: standard deviations of the coefficients.
        transform: applied to the series, `(n,) -> (n,)`; by default nothing.
    """

    basis: Float[Array, "n k"]
    std: Float[Array, " k"]
    transform: Stored | None

    def __init__(
        self,
        basis: Float[Array, "n k"],
        std: Float[Array, " k"],
        transform: Callable[..., Any] | None = None,
    ):
        self.basis, self.std, self.transform = basis, std, store(transform)

    def __call__(self, key: Key[Array, ""]) -> Float[Array, " n"]:
        """One random function."""
        coefficients = self.std * jax.random.normal(key, self.std.shape, self.std.dtype)
        with jax.default_matmul_precision("highest"):
            field = self.basis @ coefficients
        return field if self.transform is None else self.transform(field)


def minmax_sine_series(num_points: int = 64, num_modes: int = 10, *, dtype: DTypeLike | None = None) -> GaussianSeries:
    """Sine series with coefficients `N(0, 1) / k`, each function then scaled to fill [0, 1].

    The first coefficient gets an extra `N(0, 0.25^2)`. The scaling adds a constant to the sines: the data span
    `num_modes + 1` dimensions. The sines are of unit Euclidean norm on the interior grid.

    Args:
        num_points: points of `pde.interior_grid`.
        num_modes: number of sines.
        dtype: of the samples; the default float by default.

    References:
        A. L. Kachhadiya, "Local Inverse Geometry Can Be Amortized", 2026, arXiv:2605.13068 (Heat-1D).
    """
    basis = sine_basis(num_points, num_modes, dtype)
    std = 1.0 / jnp.arange(1, num_modes + 1, dtype=basis.dtype)
    return GaussianSeries(basis, std.at[0].set(math.hypot(1.0, 0.25)), _to_unit_interval)


def clipped_sine_series(
    num_points: int = 64,
    num_modes: int = 12,
    *,
    std: float = 0.5,
    bound: float = 3.0,
    dtype: DTypeLike | None = None,
) -> GaussianSeries:
    """`sum_k c_k sin(pi k s)` on a grid with both end points, `c_k ~ N(0, std^2)`, clipped to `[-bound, bound]`.

    The ends are zero.

    Args:
        num_points: grid points on [0, 1], both ends included.
        num_modes: number of sines.
        std: standard deviation of every coefficient.
        bound: where the functions are clipped.
        dtype: of the samples; the default float by default.

    References:
        A. L. Kachhadiya, "Deceptron: Learned Local Inverses", 2025, arXiv:2511.21076 (Heat-1D).
    """
    inner = sine_basis(num_points - 2, num_modes, dtype) * math.sqrt((num_points - 1) / 2)
    return GaussianSeries(
        jnp.pad(inner, ((1, 1), (0, 0))),
        jnp.full(num_modes, std, inner.dtype),
        functools.partial(jnp.clip, min=-bound, max=bound),
    )


def matern_field(
    num_points: int = 64,
    length_scale: float = 0.1,
    *,
    smoothness: float = 1.5,
    std: float = 1.0,
    dtype: DTypeLike | None = None,
) -> GaussianSeries:
    """A Gaussian random field on (0, 1) with the Matern covariance of half-integer smoothness.

    With `d = sqrt(2 smoothness) |s - s'| / length_scale` the covariance is `std^2 exp(-d) p(d)`, where `p` is `1`,
    `1 + d` or `1 + d + d^2 / 3`. Exact on the grid, by the Karhunen-Loeve expansion of the covariance matrix: the
    basis is its eigenvectors rather than sines.

    Args:
        num_points: points of `pde.interior_grid`.
        length_scale: correlation length.
        smoothness: 0.5, 1.5 or 2.5.
        std: standard deviation at every point.
        dtype: of the samples; the default float by default.

    Raises:
        ValueError: another smoothness.

    References:
        C. E. Rasmussen, C. K. I. Williams, "Gaussian Processes for Machine Learning", 2006, MIT Press, eq. 4.17.
    """
    polynomials = {0.5: [1.0], 1.5: [1.0, 1.0], 2.5: [1 / 3, 1.0, 1.0]}
    if smoothness not in polynomials:
        raise ValueError(f"matern_field expected a smoothness of 0.5, 1.5 or 2.5, got {smoothness}.")
    points = np.arange(1, num_points + 1) / (num_points + 1)
    distance = math.sqrt(2 * smoothness) * np.abs(points[:, None] - points[None, :]) / length_scale
    values, vectors = np.linalg.eigh(std**2 * np.exp(-distance) * np.polyval(polynomials[smoothness], distance))
    dtype = jnp.result_type(float if dtype is None else dtype)
    return GaussianSeries(jnp.asarray(vectors, dtype), jnp.asarray(np.sqrt(np.maximum(values, 0.0)), dtype))


def _to_unit_interval(field: Float[Array, " n"]) -> Float[Array, " n"]:
    low, high = jnp.min(field), jnp.max(field)
    return (field - low) / (high - low + 1e-8)  # the small number is the paper's guard for a constant function
