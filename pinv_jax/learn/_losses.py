r"""The loss terms of a learned inverse, each `loss(model, x, y, key) -> scalar` on one example.

A model has callables `forward` (f) and `inverse` (g). Options are bound by `functools.partial`, which keeps equal
losses equal, so that a second `fit` does not compile again:
`Term(functools.partial(cycle, noise_std=0.02), weight=0.25)`.

Every term is a mean over coordinates, or with `normalisation="sum"` a sum. A weight `w` for the sum over `d`
coordinates is `w * d` for the mean, and a damping `lam` of `J'J / m + lam I` (mean objective over `m` outputs) is
`lam * m` in `J'J + lam I`.

References:
    P1: A. L. Kachhadiya, Deceptron: Learned Local Inverses for Fast and Stable Physics Inversion, 2025,
    arXiv:2511.21076. P2: A. L. Kachhadiya, Local Inverse Geometry Can Be Amortized, 2026, arXiv:2605.13068.
"""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray, PyTree, Scalar

from ..diagnostics import CompositionDefect, DataMetric, composition_defect, normal_equation_defect, probe_maker


def detach(tree: PyTree) -> PyTree:
    """`tree` with `jax.lax.stop_gradient` on every float array."""
    return jax.tree.map(lambda leaf: jax.lax.stop_gradient(leaf) if eqx.is_inexact_array(leaf) else leaf, tree)


def _noisy(y: Float[Array, "*y"], noise_std: Any, key: PRNGKeyArray) -> Float[Array, "*y"]:
    std = jnp.broadcast_to(jnp.asarray(noise_std, y.dtype), y.shape)
    return y + std * jax.random.normal(key, y.shape, y.dtype)


def _reduce(squares: Float[Array, "..."], normalisation: str) -> Scalar:
    if normalisation not in ("mean", "sum"):
        raise ValueError(f"normalisation={normalisation!r} is not known; write 'mean' or 'sum'.")
    return jnp.mean(squares) if normalisation == "mean" else jnp.sum(squares)


def forward_fit(
    model: Any, x: Float[Array, "*x"], y: Float[Array, "*y"], key: PRNGKeyArray, *, normalisation: str = "mean"
) -> Scalar:
    """The task, `mean((f(x) - y)^2)`."""
    return _reduce((model.forward(x) - y) ** 2, normalisation)


def reconstruction(
    model: Any,
    x: Float[Array, "*x"],
    y: Float[Array, "*y"],
    key: PRNGKeyArray,
    *,
    source: str = "detached",
    noise_std: Any = 0.0,
    normalisation: str = "mean",
) -> Scalar:
    """`mean((g(s) - x)^2)` with a choice of what the inverse is given.

    Args:
        model: see the top of this file.
        x: the unknown of one example.
        y: its prediction or observation.
        key: random key of the noise.
        source: `s`: "detached", `f(x)` without gradient into f (P2); "prediction", `f(x)` with it (P1); "data", the
            target `y` (P2 for its convolutional problems).
        noise_std: standard deviation of noise added to `s`, a scalar or shaped like `y`. With "data" and the noise
            of the observations the minimiser is the conditional mean of `x`.
        normalisation: "mean" or "sum" over the entries of `x`.

    Raises:
        ValueError: if `source` is none of the three.
    """
    sources = {
        "detached": lambda: detach(model.forward)(x),
        "prediction": lambda: model.forward(x),
        "data": lambda: y,
    }
    if source not in sources:
        raise ValueError(f"reconstruction: source={source!r} is not known; write one of {sorted(sources)}.")
    return _reduce((model.inverse(_noisy(sources[source](), noise_std, key)) - x) ** 2, normalisation)


def cycle(
    model: Any,
    x: Float[Array, "*x"],
    y: Float[Array, "*y"],
    key: PRNGKeyArray,
    *,
    noise_std: Any = 0.0,
    normalisation: str = "mean",
) -> Scalar:
    """`mean((f(g(s)) - s)^2)` at `s = y + noise_std * n`, `n` standard normal (P1: no noise)."""
    s = _noisy(y, noise_std, key)
    return _reduce((model.forward(model.inverse(s)) - s) ** 2, normalisation)


def spectral(
    model: Any, x: Float[Array, "*x"], y: Float[Array, "*y"], key: PRNGKeyArray, *, normalisation: str = "mean"
) -> Scalar:
    """`mean((W'W - I)^2)` over the entries, with `W` the first weight of f (P1)."""
    (weight, _), _ = model.first_affine()
    return _reduce((weight.T @ weight - jnp.eye(weight.shape[1], dtype=weight.dtype)) ** 2, normalisation)


def bias_tie(
    model: Any, x: Float[Array, "*x"], y: Float[Array, "*y"], key: PRNGKeyArray, *, normalisation: str = "mean"
) -> Scalar:
    """`mean((b + c)^2)` of the first biases, or `mean(b^2) + mean(c^2)` where their lengths differ (P1)."""
    (_, b), (_, c) = model.first_affine()
    if b.shape == c.shape:
        return _reduce((b + c) ** 2, normalisation)
    return _reduce(b**2, normalisation) + _reduce(c**2, normalisation)


def bias_mean_tie(model: Any, x: Float[Array, "*x"], y: Float[Array, "*y"], key: PRNGKeyArray) -> Scalar:
    """`(mean(b) + mean(c))^2` of the first biases (P2)."""
    (_, b), (_, c) = model.first_affine()
    return (jnp.mean(b) + jnp.mean(c)) ** 2


def composition(
    model: Any, x: Float[Array, "*x"], y: Float[Array, "*y"], key: PRNGKeyArray, *, normalisation: str = "mean"
) -> Scalar:
    """`mean((V W - I)^2)` over the entries, with `W` and `V` the first weights of f and g (P1).

    Where g has more hidden units than `x` has entries, only the first `size(x)` rows of `V` are taken. That is the
    heuristic of P2 for its perceptrons: it ignores the other units, the activation and the second layer.

    Raises:
        ValueError: if f has more than one layer, so that the first of g does not follow the first of f.
    """
    (forward_weight, _), (inverse_weight, _) = model.first_affine()
    if inverse_weight.shape[1] != forward_weight.shape[0]:
        raise ValueError(
            f"composition: the first weight of the inverse, {inverse_weight.shape}, does not follow the first weight "
            f"of the forward map, {forward_weight.shape}; leave the term out: stage.without('composition')."
        )
    size = forward_weight.shape[1]
    defect = inverse_weight[:size] @ forward_weight - jnp.eye(size, dtype=forward_weight.dtype)
    return _reduce(defect**2, normalisation)


def jcp(
    model: Any,
    x: Float[Array, "*x"],
    y: Float[Array, "*y"],
    key: PRNGKeyArray,
    *,
    target: str = "identity",
    metric: DataMetric | None = None,
    damping: float | int | Scalar = 1e-2,
    num_probes: int = 2,
    probe: str = "rademacher",
    normalisation: str = "mean",
    mode: str = "jvp",
    anchor: str = "data",
    detach_forward: bool = True,
) -> Scalar:
    r"""The Jacobian composition penalty, `diagnostics.composition_defect` averaged over random probes.

    | target | loss | minimiser over G |
    |---|---|---|
    | "identity" | `\|\|G J v - v\|\|^2` | any left inverse of J; none if rank(J) < size(x) |
    | "data" | `\|\|G (J z + e) - z\|\|^2`, z and e from `metric` | `C J' (J C J' + Sigma)^-1`, Tikhonov-Gauss-Newton |
    | "normal_equation" | `\|\|(J'J + damping I) G w - J' w\|\|^2` | `(J'J + damping I)^-1 J'` |

    "identity" is the papers' penalty. It constrains G on the range of J only, and cannot be met where J loses rank;
    "data" can be met at any rank, ignores what never occurs, and also keeps G from amplifying noise.

    Args:
        model: see the top of this file.
        x: the unknown of one example.
        y: its prediction or observation.
        key: random key of the probes.
        target: see the table.
        metric: covariance of `x` and noise of `y`; for "data".
        damping: positive, in the sum scaling; for "normal_equation".
        num_probes: probes per example (P1: 2; P2: 2 for perceptrons, 1 for convolutional networks).
        probe: "rademacher" (P2) or "normal" (P1).
        normalisation: "mean", relative to the squared norm of a probe (P2), or "sum" (P1). With identity covariance,
            a weight `w` for "sum" equals `w * size(x)` for "mean".
        mode: "vjp" for maps without a JVP; for "identity". See `diagnostics.composition_defect`.
        anchor: where J is taken: "data", at `x`; "inverse", at `g(y)` without gradient (P2, Allen-Cahn).
        detach_forward: whether the gradient stops at f (P2) or also moves it (P1: False).

    Raises:
        ValueError: an option is unknown, or "data" has no metric.
    """
    f = detach(model.forward) if detach_forward else model.forward
    if anchor == "inverse":
        x = jax.lax.stop_gradient(model.inverse(y))
    elif anchor != "data":
        raise ValueError(f"jcp: anchor={anchor!r} is not known; write 'data' or 'inverse'.")
    make = probe_maker(probe)
    if mode != "jvp" and target != "identity":
        raise ValueError(f"jcp: mode={mode!r} is for target='identity'; write mode='jvp' with target={target!r}.")
    if target == "identity":
        defect = composition_defect(f, model.inverse, x, make(x, num_probes, key=key), mode=mode)
    elif target == "data":
        defect = _data_defect(f, model.inverse, x, y, key, metric, num_probes, probe)
    elif target == "normal_equation":
        defect = normal_equation_defect(f, model.inverse, x, make(y, num_probes, key=key), damping=damping)
    else:
        raise ValueError(f"jcp: target={target!r} is not known; write 'identity', 'data' or 'normal_equation'.")
    return defect.reduce(normalisation)


def _data_defect(
    f: Any,
    g: Any,
    x: Float[Array, "*x"],
    y: Float[Array, "*y"],
    key: PRNGKeyArray,
    metric: DataMetric | None,
    num_probes: int,
    probe: str,
) -> CompositionDefect:
    if metric is None:
        raise ValueError("jcp: target='data' needs metric=, for example DataMetric.from_samples(xs, noise_std).")
    probe_key, noise_key = jax.random.split(key)
    probes = metric.probes(x, num_probes, probe, key=probe_key)
    noise = metric.noise(y, num_probes, probe, key=noise_key)
    return composition_defect(f, g, x, probes, noise=noise, scale=metric.trace)
