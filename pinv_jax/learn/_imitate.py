"""Imitation: a surjection f trained to `f(x) = h(x)`, which gives an existing network or simulator h a `pinv`."""

import functools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from ..maps import (
    AbstractReshape,
    AbstractSurjection,
    Affine,
    Flatten,
    LinearSurjection,
    PixelUnshuffle,
    SurjectiveChain,
    invertible_network,
    prepare,
    store,
)
from ._fit import fit
from ._stage import Stage, StageHistory, Term
from ._surjective import clipped_adam, regression, surjective_score

_LARGEST = 2048  # entries of x up to which the regression and its null space are computed densely
_BATCH = 64  # examples at a time where h or f is applied to many


class ImitationErrors(eqx.Module):
    """How well f stands in for h: root mean squares, relative to the standard deviation of y (a constant scores 1).

    Attributes:
        fit: of `f(x) - y`.
        consistency: of `h(x') - y'`, where `x'` is `x` back-projected by f onto `f(x') = y'`, the y of another
            example, keeping the z of `x`. The stand-in meets `y'` to rounding; this is what h says. None without h.
        before: of `h(x) - y'`, for comparison: about 1.41. None without h.
    """

    fit: float
    consistency: float | None
    before: float | None


class Imitation(eqx.Module):
    """What `imitate` returns.

    Attributes:
        model: the stand-in f.
        errors: on examples that took no part in training or selection.
        ridge_errors: on the same examples those of the linear surjection `ridge_network(..., num_layers=0)`; None
            where x is too large for it.
        history: of the training.
    """

    model: AbstractSurjection[Any]
    errors: ImitationErrors
    ridge_errors: ImitationErrors | None
    history: StageHistory


class _Units(Affine):
    """`scale * x + shift`: a z-score or its inverse, data and no parameters, so that no gradient reaches them."""

    def apply(self, x: Float[Array, "*x"]) -> Float[Array, "*x"]:
        return jax.lax.stop_gradient(self.scale) * x + jax.lax.stop_gradient(self.shift)

    def invert(self, y: Float[Array, "*x"]) -> Float[Array, "*x"]:
        return (y - jax.lax.stop_gradient(self.shift)) / jax.lax.stop_gradient(self.scale)


class _Reshape(AbstractReshape):
    """A vector in the shape of y."""

    shape: tuple[int, ...] = eqx.field(static=True)
    out_shape: tuple[int, ...] = eqx.field(static=True)
    dtype: np.dtype = eqx.field(static=True)

    def apply(self, x: Float[Array, " n"]) -> Float[Array, "*y"]:
        return x.reshape(self.out_shape)

    def invert(self, y: Float[Array, "*y"]) -> Float[Array, " n"]:
        return y.reshape(self.shape)


def _ridge(xs: np.ndarray, ys: np.ndarray) -> tuple[np.ndarray, float]:
    """The ridge regression of centred data with the least generalised cross-validation, and that mean square."""
    u, s, vt = np.linalg.svd(xs, full_matrices=False)
    explained = u.T @ ys
    best, filtered = math.inf, s
    for strength in s[0] ** 2 * np.logspace(-14, 2, 65):
        left = strength / (s**2 + strength)
        residual = max(np.sum(ys**2) - np.sum((1 - left**2)[:, None] * explained**2), 0.0)
        freedom = len(xs) - 1 - np.sum(1 - left)  # one is for the mean
        score = residual / ys.shape[1] * len(xs) / freedom**2 if freedom > 0 else math.inf
        if score < best:
            best, filtered = score, s / (s**2 + strength)
    return (vt.T @ (filtered[:, None] * explained)).T, best


def _full_rank(matrix: np.ndarray, xs: np.ndarray, allowed: float, eps: float) -> np.ndarray:
    """The matrix with its small singular values lifted as far as the allowed mean square of the change permits."""
    u, s, vt = np.linalg.svd(matrix, full_matrices=False)
    energy = np.mean((xs @ vt.T) ** 2, axis=0)
    floors = s[0] * np.logspace(0.5 * math.log10(eps), -0.5, 60)
    cost = np.sum(np.maximum(floors[:, None] - s, 0) ** 2 * energy, axis=1) / len(s)
    return (u * np.maximum(s, floors[max(np.count_nonzero(cost <= allowed) - 1, 0)])) @ vt


def _network(shape: tuple[int, ...], num_layers: int, **options: Any) -> list[AbstractSurjection[Any]]:
    """Couplings that start as the identity; none for a single number, which they cannot cut in two."""
    if num_layers == 0 or shape[0] < 2:
        return []
    return [invertible_network(shape, num_layers=num_layers, mixing=None, centred=False, **options)]


def _channels(shape: tuple[int, ...], dtype: Any) -> list[AbstractSurjection[Any]]:
    """What gives a grey image channels, or else makes a vector of what has only one."""
    if len(shape) == 3 and shape[0] == 1 and shape[1] % 2 == shape[2] % 2 == 0:
        return [PixelUnshuffle(shape, 2, dtype)]
    return [Flatten(shape, dtype)] if len(shape) != 1 and shape[:1] in ((), (1,)) else []


def _check_sizes(name: str, shape: tuple[int, ...], out_shape: tuple[int, ...]) -> None:
    if math.prod(out_shape) > math.prod(shape):
        raise ValueError(
            f"{name}: h maps shape {shape} to shape {out_shape}, more numbers than it is given, so that it cannot be "
            "onto. Write maps.Expand(h), which needs no training, or imitate a part of the output: "
            "lambda x: downsample(h(x))."
        )


def ridge_network(
    x: Float[Array, "num *x"], y: Float[Array, "num *y"], *, num_layers: int = 4, hidden: int = 32, key: PRNGKeyArray
) -> SurjectiveChain:
    """`f(x) = phi(P psi(x))` in z-scored units: invertible networks around a fixed matrix; starts as ridge regression.

    `psi` works in the shape of x, with convolutions if that has channels. It preserves volume: a network that is free
    to squeeze the directions that h hardly sees makes `pinv` stretch them. `phi` bends the outputs where y is a
    vector. P is of full rank: its singular values that are small, or zero where h is not onto, are lifted as far as
    this costs a tenth of the error (root mean square) that the regression has anyway.

    Args:
        x: examples; their entries count at most 2048.
        y: what they are mapped to, no larger than x.
        num_layers: couplings in either network; with none the result is the ridge regression itself.
        hidden: width, or channels, of their inner nets.
        key: random key.

    Returns:
        A chain. Its strength of regularisation has the least generalised cross-validation error.

    Raises:
        ValueError: y is larger than x, x too large for dense matrices, or all examples are equal.
    """
    shape, out_shape, dtype = x.shape[1:], y.shape[1:], x.dtype
    n, m = math.prod(shape), math.prod(out_shape)
    _check_sizes("ridge_network", shape, out_shape)
    if n > _LARGEST:
        raise ValueError(
            f"ridge_network: x has {n} entries, and the dense regression takes at most {_LARGEST}. Pass a model of "
            "your own: imitate(..., model=maps.spnn(shape, maps.plan(shape, out_shape), key=key))."
        )
    xs, ys = np.asarray(x, np.float64).reshape(-1, n), np.asarray(y, np.float64).reshape(-1, m)
    x_mean, y_mean = xs.mean(axis=0), ys.mean(axis=0)
    x_std, y_std = float(np.std(xs - x_mean)), float(np.std(ys - y_mean))
    if min(x_std, y_std) == 0:
        raise ValueError(f"ridge_network: the {len(xs)} examples are all equal in x or in y; expected ones that vary.")
    xs = (xs - x_mean) / x_std
    matrix, error = _ridge(xs, (ys - y_mean) / y_std)
    matrix = jnp.asarray(_full_rank(matrix, xs, 0.01 * error, float(jnp.finfo(dtype).eps)), dtype)

    # The networks start as the identity, so that the columns of the matrix only follow the entries of x.
    psi_key, phi_key = jax.random.split(key)
    channels = _channels(shape, dtype)
    inner = channels[0].out_structure().shape if channels else shape
    vector = [Flatten(inner, dtype)] if len(inner) > 1 else []
    matrix = functools.reduce(
        lambda rows, layer: jax.vmap(layer)(rows), [*channels, *vector], matrix.reshape(m, *shape)
    )
    psi = _network(inner, num_layers, hidden=hidden, kind="additive", dtype=dtype, key=psi_key)
    bends = num_layers if len(out_shape) == 1 else 0
    phi = _network((m,), bends, hidden=hidden, scale_bound=1.0, dtype=dtype, key=phi_key)
    full = lambda shape, value: jnp.full(shape, value, dtype)
    ending = [_Reshape(shape=(m,), out_shape=out_shape, dtype=dtype)] if len(out_shape) != 1 else []
    return SurjectiveChain(
        [
            _Units(  # pyright: ignore[reportCallIssue]
                scale=full(shape, 1 / x_std), shift=jnp.asarray(-x_mean / x_std, dtype).reshape(shape)
            ),
            *channels,
            *psi,
            *vector,
            LinearSurjection(matrix),
            *phi,
            _Units(  # pyright: ignore[reportCallIssue]
                scale=full((m,), y_std), shift=jnp.asarray(y_mean, dtype)
            ),
            *ending,
        ]
    )


@jax.jit
def _apply(h: Any, xs: Float[Array, "num *x"]) -> Float[Array, "num *y"]:
    return jax.lax.map(h, xs, batch_size=_BATCH)


@jax.jit
def _measure(model: Any, h: Any, xs: Float[Array, "num *x"], ys: Float[Array, "num *y"]) -> tuple[Array, ...]:
    others = jnp.roll(ys, 1, axis=0)

    def one(example: Any) -> tuple[Array, ...]:
        x, y, other = example
        prediction, z = model.split(x)
        misses = [prediction - y]
        if h is not None:
            misses += [h(model.merge(other, z)) - other, h(x) - other]
        return tuple(jnp.mean(miss**2) for miss in misses)

    variance = jnp.mean((ys - jnp.mean(ys, axis=0, keepdims=True)) ** 2)
    squares = jax.lax.map(one, (xs, ys, others), batch_size=_BATCH)
    return tuple(jnp.sqrt(jnp.mean(square) / variance) for square in squares)


def imitation_errors(
    model: AbstractSurjection[Any],
    h: Callable[..., Any] | None,
    x: Float[Array, "num *x"],
    y: Float[Array, "num *y"] | None = None,
) -> ImitationErrors:
    """Measures a stand-in: its fit, and what h says of points that it back-projected.

    Args:
        model: the stand-in f.
        h: what it stands in for; without it the consistency is not measured.
        x: examples, at least two; the data of each is the y of the one before it.
        y: `h(x)`, computed if it is not given.

    Raises:
        ValueError: neither `h` nor `y`, or fewer than two examples.
    """
    if h is None and y is None:
        raise ValueError("imitation_errors: expected h, or y=h(x) computed elsewhere, or both.")
    if len(x) < 2:
        raise ValueError(f"imitation_errors: expected two examples or more, got {len(x)}.")
    h = prepare(store(h))
    with jax.default_matmul_precision("highest"):
        fit_error, *others = _measure(prepare(model), h, x, _apply(h, x) if y is None else y)
    consistency, before = map(float, others) if others else (None, None)
    return ImitationErrors(float(fit_error), consistency, before)


def _pairs(h: Any, data: Any, num_examples: int, key: PRNGKeyArray) -> tuple[Array, Array]:
    """Shuffled pairs `(x, h(x))`."""
    draw_key, shuffle_key = jax.random.split(key)
    xs, ys = data if isinstance(data, tuple | list) else (data, None)
    if callable(xs):
        xs = jax.jit(jax.vmap(xs))(jax.random.split(draw_key, num_examples))
    xs = jnp.asarray(xs)
    if ys is None and h is None:
        raise ValueError("imitate: without h expected pairs as data, imitate(None, (x, y), key=key); got no y.")
    ys = _apply(h, xs) if ys is None else jnp.asarray(ys)
    if xs.shape[:1] != ys.shape[:1] or xs.dtype != ys.dtype or not jnp.issubdtype(xs.dtype, jnp.floating):
        raise ValueError(
            f"imitate: x has shape {xs.shape} and dtype {xs.dtype}, y {ys.shape} and {ys.dtype}; expected the same "
            "number of examples in front and one float dtype."
        )
    if not bool(jnp.all(jnp.isfinite(xs)) & jnp.all(jnp.isfinite(ys))):
        raise ValueError("imitate: x or h(x) has entries that are NaN or infinite; leave these examples out.")
    order = jax.random.permutation(shuffle_key, len(xs))
    return xs[order], ys[order]


def _everything(model: Any) -> Any:
    return model


def imitate(
    h: Callable[..., Any] | None,
    data: Any,
    *,
    key: PRNGKeyArray,
    model: AbstractSurjection[Any] | None = None,
    num_examples: int = 4096,
    held_out: float = 0.2,
    num_steps: int = 2000,
    batch_size: int = 64,
    learning_rate: float = 2e-3,
    checkpoint: str | Path | None = None,
    progress: Callable[..., Any] | None = None,
) -> Imitation:
    """Trains a surjection f to stand in for h, so that h can be back-projected in one step.

    Back-projection by f meets `f(x) = data` to rounding and `h(x) = data` to `errors.consistency`. A few
    Gauss-Newton steps finish on h itself; `rcond` keeps them from moving x far where h hardly sees it::

        stand_in = imitate(h, sampler, key=key)
        x0 = solvers.nlbp(maps.Natural(stand_in.model), x, data)
        solution = solve(Problem(h, data), solvers.GaussNewton(solvers.SVD(rcond=1e-5)), x0)

    Args:
        h: the network or simulator, one example `x -> y` that jax can trace; None where only pairs are at hand.
        data: a sampler `key -> x`, an array of examples x, or a pair `(x, y)` of arrays with `y = h(x)` computed
            elsewhere.
        key: random key.
        model: the surjection to train, such as `ridge_network(x, y, num_layers=8, key=key)` or
            `maps.spnn(shape, maps.plan(shape, out_shape), key=key)`; by default `ridge_network` of the training pairs.
        num_examples: drawn from a sampler.
        held_out: the share of the examples that does not train: one half selects, on the other the errors are
            measured.
        num_steps: optimiser steps; the model that selects best, of one after every epoch, is kept.
        batch_size: examples per step.
        learning_rate: of Adam; see `clipped_adam`.
        checkpoint: a folder, from which a run that was killed goes on; see `fit`.
        progress: see `fit`.

    Returns:
        The stand-in, its errors, and those of the ridge regression.

    Raises:
        ValueError: y is larger than x, the model has other shapes, examples are too few or not finite.
    """
    h = prepare(store(h))
    data_key, model_key, fit_key = jax.random.split(key, 3)
    xs, ys = _pairs(h, data, num_examples, data_key)
    shape, out_shape = xs.shape[1:], ys.shape[1:]
    _check_sizes("imitate", shape, out_shape)
    each = round(0.5 * held_out * len(xs))
    num_train = len(xs) - 2 * each
    if each < 2 or num_train < 2:
        raise ValueError(
            f"imitate: of {len(xs)} examples held_out={held_out} leaves {num_train} to train, {each} to select and "
            f"{each} to measure; expected at least two of each."
        )
    train, select, test = ((xs[i:j], ys[i:j]) for i, j in ((0, num_train), (num_train, -each), (-each, len(xs))))
    ridge = None
    if math.prod(shape) <= _LARGEST:
        ridge = ridge_network(*train, num_layers=0, key=model_key)
    if model is None:
        model = ridge_network(*train, key=model_key)
    _check_model(model, xs, ys)
    variance = float(jnp.mean((train[1] - jnp.mean(train[1], axis=0, keepdims=True)) ** 2))
    stage = Stage(
        {"fit": Term(regression, 1 / variance)},
        _everything,
        num_steps,
        min(batch_size, num_train),
        clipped_adam(learning_rate, num_steps=num_steps, warmup_steps=min(100, num_steps // 10)),
        functools.partial(surjective_score, task=regression),
    )
    trained, history = fit(
        model, {"imitate": stage}, train, key=fit_key, validation=select, checkpoint=checkpoint, progress=progress
    )
    ridge_errors = None if ridge is None else imitation_errors(ridge, h, *test)
    stand_in: Any = trained
    return Imitation(stand_in, imitation_errors(stand_in, h, *test), ridge_errors, history["imitate"])


def _check_model(model: AbstractSurjection[Any], xs: Array, ys: Array) -> None:
    got = model.in_structure(), model.out_structure()
    expected = (xs.shape[1:], xs.dtype), (ys.shape[1:], ys.dtype)
    if [(s.shape, s.dtype) for s in got] != list(expected):
        described = " to ".join(f"shape {s.shape} in {s.dtype}" for s in got)
        raise ValueError(
            f"imitate: model maps {described}; expected shape {xs.shape[1:]} to shape {ys.shape[1:]} in {xs.dtype}, "
            "those of the data."
        )
