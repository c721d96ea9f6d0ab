"""What derivatives say of a map and its inverse: `||G (J v + e) - v||^2`, spectra, adjoint and Taylor tests."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PRNGKeyArray, Scalar

from ._probes import DataMetric, probe_maker, rademacher

Map = Callable[..., Any]


class CompositionDefect(eqx.Module):
    """Squared norms of a defect, one per probe, with both ways to reduce them.

    Attributes:
        squared_norms: shape `(k,)`.
        scale: the expected squared norm of a probe: the size of `x` for probes of identity covariance, `tr C` for
            data probes.
    """

    squared_norms: Float[Array, " k"]
    scale: Scalar

    @property
    def sum(self) -> Scalar:
        """Averaged over probes, summed over coordinates: estimates `||G J - I||_F^2`."""
        return jnp.mean(self.squared_norms)

    @property
    def mean(self) -> Scalar:
        """Relative to the probes: estimates `||G J - I||_F^2 / d`; exactly one for a constant inverse and signs."""
        return self.sum / self.scale

    def reduce(self, normalisation: str) -> Scalar:
        """`mean` or `sum`, by name.

        Raises:
            ValueError: if `normalisation` is neither.
        """
        if normalisation not in ("mean", "sum"):
            raise ValueError(f"normalisation={normalisation!r} is not known; write 'mean' or 'sum'.")
        return self.mean if normalisation == "mean" else self.sum


def _squared_norms(rows: Float[Array, "k *x"]) -> Float[Array, " k"]:
    return jnp.sum(jnp.reshape(rows, (rows.shape[0], -1)) ** 2, axis=1)


def composition_defect(
    f: Map,
    g: Map,
    x: Float[Array, "*x"],
    probes: Float[Array, "k *x"],
    *,
    noise: Float[Array, "k *y"] | None = None,
    scale: Scalar | float | int | None = None,
    mode: str = "jvp",
) -> CompositionDefect:
    """The defect `||G (J v + e) - v||^2` of `g` as an inverse of `f` at one point, for explicit probes.

    `J` is the Jacobian of `f` at `x`, `G` that of `g` at `f(x)`. With probes of identity covariance the mean over
    probes is `||G J - I||_F^2` (Hutchinson): the Jacobian composition penalty (JCP) when trained on, RJCP when
    reported. One primal pass of `f` and of `g` serves all probes. Runs at the highest matmul precision, in training
    too: the defect of a good inverse is a small difference of large numbers.

    Args:
        f: the map `x -> y`.
        g: the inverse `y -> x`.
        x: one point.
        probes: `v`, shape `(k, *x)`.
        noise: `e`, shape `(k, *y)`; none by default.
        scale: expected squared norm of a probe; the size of `x` by default.
        mode: "vjp" computes `||(G J)' v - v||^2` instead, which has the same mean for probes of identity covariance
            and needs no JVP of either map. It has no place for noise.

    Returns:
        A `CompositionDefect`: squared norms per probe, `mean` and `sum`.

    Raises:
        ValueError: if `mode` is unknown, or "vjp" together with `noise`.

    References:
        A. L. Kachhadiya, Deceptron: Learned Local Inverses for Fast and Stable Physics Inversion, 2025,
        arXiv:2511.21076. A. L. Kachhadiya, Local Inverse Geometry Can Be Amortized, 2026, arXiv:2605.13068 (mean
        normalisation, Rademacher probes).
    """
    scale = jnp.asarray(x.size if scale is None else scale, x.dtype)
    with jax.default_matmul_precision("highest"):
        if mode == "jvp":
            y, jf = jax.linearize(f, x)
            _, jg = jax.linearize(g, y)
            if noise is None:
                defect = jax.vmap(lambda v: jg(jf(v)) - v)(probes)
            else:
                defect = jax.vmap(lambda v, e: jg(jf(v) + e) - v)(probes, noise)
        elif mode == "vjp":
            if noise is not None:
                raise ValueError("composition_defect: mode='vjp' has no place for noise; write mode='jvp'.")
            y, jf_transpose = jax.vjp(f, x)
            _, jg_transpose = jax.vjp(g, y)
            defect = jax.vmap(lambda v: jf_transpose(*jg_transpose(v))[0] - v)(probes)
        else:
            raise ValueError(f"composition_defect: mode={mode!r} is not known; write 'jvp' or 'vjp'.")
    return CompositionDefect(_squared_norms(defect), scale)


def normal_equation_defect(
    f: Map, g: Map, x: Float[Array, "*x"], probes: Float[Array, "k *y"], *, damping: Scalar | float | int
) -> CompositionDefect:
    """The defect `||(J'J + damping I) G w - J' w||^2` of `g` as a damped Gauss-Newton operator, for probes `w`.

    It vanishes exactly at `G = (J'J + damping I)^-1 J'`, whatever the rank of `J`, and needs no prior.

    Args:
        f: the map `x -> y`; needs both a JVP and a VJP.
        g: the inverse `y -> x`.
        x: one point.
        probes: `w`, shape `(k, *y)`, identity covariance.
        damping: positive, in the sum scaling of `J'J` (a damping of the mean objective times the size of `y`).

    Returns:
        A `CompositionDefect` with scale the size of `x`.
    """
    with jax.default_matmul_precision("highest"):
        y, jf = jax.linearize(f, x)
        _, jg = jax.linearize(g, y)
        jf_transpose = jax.linear_transpose(jf, x)

        def defect(w: Float[Array, "*y"]) -> Float[Array, "*x"]:
            step = jg(w)
            return jf_transpose(jf(step) - w)[0] + damping * step

        rows = jax.vmap(defect)(probes)
    return CompositionDefect(_squared_norms(rows), jnp.asarray(x.size, x.dtype))


def rjcp(
    f: Map,
    g: Map,
    xs: Float[Array, "n *x"],
    *,
    key: PRNGKeyArray,
    num_probes: int = 4,
    metric: DataMetric | None = None,
    probe: str = "rademacher",
    normalisation: str = "mean",
    mode: str = "jvp",
) -> Scalar:
    """The composition defect averaged over the points `xs`, shape `(n, *x)`, with fresh probes at each.

    Args:
        f: the map `x -> y` on one example.
        g: the inverse `y -> x` on one example.
        xs: the points.
        key: random key of the probes.
        num_probes: probes per point.
        metric: `None` for the identity (the papers' RJCP); a `DataMetric` draws probes and noise from it.
        probe: "rademacher" or "normal".
        normalisation: "mean" (relative to the probes; arXiv:2605.13068) or "sum" (arXiv:2511.21076). With the
            identity, sum is mean times the size of `x`.
        mode: see `composition_defect`.

    Returns:
        A scalar. On its own it does not rank inverses; read it beside `rjcp_floor`.
    """

    def at(x: Float[Array, "*x"], key: PRNGKeyArray) -> Scalar:
        if metric is None:
            probes, noise, scale = probe_maker(probe)(x, num_probes, key=key), None, None
        else:
            probe_key, noise_key = jax.random.split(key)
            probes = metric.probes(x, num_probes, probe, key=probe_key)
            y = jax.eval_shape(f, x)
            noise = metric.noise(jnp.zeros(y.shape, y.dtype), num_probes, probe, key=noise_key)
            scale = metric.trace
        return composition_defect(f, g, x, probes, noise=noise, scale=scale, mode=mode).reduce(normalisation)

    return jnp.mean(jax.vmap(at)(xs, jax.random.split(key, xs.shape[0])))


def rjcp_floor(f: Map, x: Float[Array, "*x"], *, metric: DataMetric | None = None, rtol: float | None = None) -> Scalar:
    """The smallest `rjcp` (mean normalisation) that any inverse can reach at `x`, from the dense Jacobian.

    With the identity it is `1 - rank(J) / d`. With a `DataMetric` it is `tr(posterior covariance) / tr C`, where the
    posterior is that of the linear model `J z + e`.

    Args:
        f: the map `x -> y`.
        x: one point; use `jax.vmap` for more.
        metric: as for `rjcp`.
        rtol: singular values at most `rtol` times the largest count as zero (identity only); the machine epsilon
            times the larger side of `J` by default.

    Returns:
        A scalar between zero and one.
    """
    jac = dense_jacobian(f, x)
    if metric is None:
        values = jnp.linalg.svd(jac, compute_uv=False)
        return 1 - jnp.sum(significant(values, jac.shape, rtol)) / jnp.asarray(x.size, x.dtype)
    with jax.default_matmul_precision("highest"):
        y = jax.eval_shape(f, x)
        std = jnp.ravel(jnp.broadcast_to(metric.noise_std.astype(x.dtype), y.shape))
        # with B = Sigma^-1/2 J S the posterior covariance is S (I + B'B)^-1 S'; the SVD avoids squaring B
        whitened = (jac @ metric.covariance_sqrt) / std[:, None]
        _, values, directions = jnp.linalg.svd(whitened, full_matrices=True)
        values = jnp.zeros(directions.shape[0], values.dtype).at[: values.size].set(values)
        half = (metric.covariance_sqrt @ directions.T) / jnp.sqrt(1 + values**2)[None, :]
        return jnp.sum(half**2) / metric.trace


def excess_rjcp(
    f: Map,
    g: Map,
    xs: Float[Array, "n *x"],
    *,
    key: PRNGKeyArray,
    num_probes: int = 4,
    metric: DataMetric | None = None,
    probe: str = "rademacher",
) -> Scalar:
    """`rjcp` minus the mean of `rjcp_floor` over the same points: zero for the best possible inverse."""
    value = rjcp(f, g, xs, key=key, num_probes=num_probes, metric=metric, probe=probe)
    return value - jnp.mean(jax.vmap(lambda x: rjcp_floor(f, x, metric=metric))(xs))


def dense_jacobian(f: Map, x: Float[Array, "*x"]) -> Float[Array, "m d"]:
    """The Jacobian of `f` at `x` as a matrix, shape `(size of y, size of x)`, by JVPs from one primal pass."""
    with jax.default_matmul_precision("highest"):
        _, jf = jax.linearize(f, x)
        columns = jax.vmap(jf)(jnp.reshape(jnp.eye(x.size, dtype=x.dtype), (x.size, *x.shape)))
    return jnp.reshape(columns, (x.size, -1)).T


def significant(values: Float[Array, " k"], shape: tuple[int, ...], rtol: float | None) -> Bool[Array, " k"]:
    """Which singular values of a matrix of that shape count: those above `rtol` times the largest."""
    default = float(jnp.finfo(values.dtype).eps) * max(shape)
    return values > (default if rtol is None else rtol) * values[0]


def jacobian_spectrum(f: Map, x: Float[Array, "*x"]) -> Float[Array, " k"]:
    """Singular values of the Jacobian of `f` at `x`, largest first."""
    return jnp.linalg.svd(dense_jacobian(f, x), compute_uv=False)


def adjoint_dot_test(f: Map, x: Float[Array, "*x"], *, key: PRNGKeyArray) -> Scalar:
    """Mismatch `|<w, J v> - <J' w, v>| / (||w|| ||J v||)` of JVP and VJP at `x`; about the machine epsilon if right.

    Args:
        f: the map `x -> y`.
        x: one point.
        key: random key of the signs `v` and `w`.
    """
    v_key, w_key = jax.random.split(key)
    with jax.default_matmul_precision("highest"):
        v = rademacher(x, 1, key=v_key)[0]
        y, jv = jax.jvp(f, (x,), (v,))
        w = rademacher(y, 1, key=w_key)[0]
        (jtw,) = jax.vjp(f, x)[1](w)
        mismatch = jnp.abs(jnp.sum(w * jv) - jnp.sum(jtw * v))
        size = jnp.sqrt(jnp.sum(w**2) * jnp.sum(jv**2))
    return mismatch / jnp.maximum(size, jnp.finfo(x.dtype).tiny)


def taylor_test(
    f: Map, x: Float[Array, "*x"], v: Float[Array, "*x"], *, step_sizes: Float[Array, " k"] | None = None
) -> Scalar:
    """Observed order of `||f(x + h v) - f(x) - h J v||` in `h`: 2 if the JVP is right, 1 if it is wrong.

    Args:
        f: the map `x -> y`, twice differentiable near `x`.
        x: one point.
        v: a direction.
        step_sizes: the `h`; by default six from 0.1 down to the fourth root of the machine epsilon, below which
            the remainder drowns in rounding.

    Returns:
        The least-squares slope of the logarithms; infinity where the remainder is rounding (a linear map).
    """
    h = jnp.geomspace(0.1, jnp.finfo(x.dtype).eps ** 0.25, 6, dtype=x.dtype) if step_sizes is None else step_sizes
    with jax.default_matmul_precision("highest"):
        y, jv = jax.jvp(f, (x,), (v,))
        rows = jax.vmap(lambda h: f(x + h * v) - y - h * jv)(h)
    remainders = jnp.sqrt(_squared_norms(rows))
    logs, errors = jnp.log(h) - jnp.mean(jnp.log(h)), jnp.log(jnp.maximum(remainders, jnp.finfo(x.dtype).tiny))
    slope = jnp.sum(logs * errors) / jnp.sum(logs**2)
    rounding = 100 * jnp.finfo(x.dtype).eps * (1 + jnp.sqrt(jnp.sum(y**2)))
    return jnp.where(jnp.max(remainders) <= rounding, jnp.inf, slope)
