"""Random probes `v` with `E[v v'] = I`, or with the covariance of the data and of the noise."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray, Scalar


def rademacher(x: Float[Array, "*x"], num_probes: int, *, key: PRNGKeyArray) -> Float[Array, "k *x"]:
    """`num_probes` probes of independent signs, shaped like `x`; lower variance than `normal`, same mean."""
    return jax.random.rademacher(key, (num_probes, *x.shape), x.dtype)


def normal(x: Float[Array, "*x"], num_probes: int, *, key: PRNGKeyArray) -> Float[Array, "k *x"]:
    """`num_probes` probes of independent standard normals, shaped like `x`."""
    return jax.random.normal(key, (num_probes, *x.shape), x.dtype)


def probe_maker(kind: str) -> Callable[..., Float[Array, "k *x"]]:
    """The probe maker of that name.

    Raises:
        ValueError: if `kind` is not "rademacher" or "normal".
    """
    makers = {"rademacher": rademacher, "normal": normal}
    if kind not in makers:
        raise ValueError(f"probe={kind!r} is not known; write one of {sorted(makers)}.")
    return makers[kind]


class DataMetric(eqx.Module):
    """The metric of the data: `x` varies with covariance `C = S S'`, and `y` is seen with independent noise.

    Probes `z = S eta` ask an inverse to undo what occurs in the data, and nothing else; noise `e` keeps it from
    amplifying what is not signal. The linear map `G` that minimises `E||G (J z + e) - z||^2` is
    `C J' (J C J' + Sigma)^-1`, the Tikhonov-Gauss-Newton operator.

    Args:
        covariance_sqrt: `S`, shape `(size of x, r)` with any `r`.
        noise_std: standard deviation of the noise, a positive scalar or shaped like `y`, in the units of `y`.
    """

    covariance_sqrt: Float[Array, "d r"]
    noise_std: Float[Array, "*y"]

    def __init__(self, covariance_sqrt: Float[Array, "d r"], noise_std: Any):
        self.covariance_sqrt = covariance_sqrt
        self.noise_std = jnp.asarray(noise_std, covariance_sqrt.dtype)

    @staticmethod
    def from_samples(xs: Float[Array, "n *x"], noise_std: Any, rank: int | None = None) -> "DataMetric":
        """The metric of the sample covariance of `xs`, shape `(n, *x)`, truncated to its `rank` largest directions."""
        flat = jnp.reshape(xs, (xs.shape[0], -1))
        centred = flat - jnp.mean(flat, axis=0, keepdims=True)
        with jax.default_matmul_precision("highest"):
            _, std, directions = jnp.linalg.svd(centred / (xs.shape[0] - 1) ** 0.5, full_matrices=False)
        return DataMetric((std[:, None] * directions)[:rank].T, noise_std)

    @property
    def trace(self) -> Scalar:
        """`tr C`, the mean square norm of a probe."""
        return jnp.sum(self.covariance_sqrt**2)

    def probes(
        self, x: Float[Array, "*x"], num_probes: int, kind: str = "normal", *, key: PRNGKeyArray
    ) -> Float[Array, "k *x"]:
        """`num_probes` probes `z = S eta`, shaped like `x`."""
        eta = probe_maker(kind)(self.covariance_sqrt[0], num_probes, key=key)
        return jnp.reshape(eta @ self.covariance_sqrt.T, (num_probes, *x.shape)).astype(x.dtype)

    def noise(
        self, y: Float[Array, "*y"], num_probes: int, kind: str = "normal", *, key: PRNGKeyArray
    ) -> Float[Array, "k *y"]:
        """`num_probes` draws of the noise, shaped like `y`."""
        draws = probe_maker(kind)(y, num_probes, key=key)
        return draws * jnp.broadcast_to(self.noise_std.astype(draws.dtype), draws.shape)
