"""One observation of one map: `Problem`, its prior, and its value and derivatives at a point."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
from jaxtyping import Array, Float, Scalar

from .maps._base import Stored, store


class GaussianPrior(eqx.Module):
    """A Gaussian prior `x ~ N(mean, C)`.

    Args:
        mean: shape `*x`.
        inverse_sqrt: `C**(-1/2)`, any matrix `L` with `L.T @ L == inv(C)`, shape `(k, size of x)`; or a callable
            `x -> L x` returning an array of any shape.
    """

    mean: Float[Array, "*x"]
    inverse_sqrt: Any

    def __init__(self, mean: Any, inverse_sqrt: Any):
        self.mean = mean
        self.inverse_sqrt = store(inverse_sqrt)

    def whiten(self, x: Float[Array, "*x"]) -> Float[Array, " k"]:
        """`L (x - mean)`, flat."""
        offset = x - self.mean
        if callable(self.inverse_sqrt):
            return jnp.ravel(jnp.asarray(self.inverse_sqrt(offset)))
        return self.inverse_sqrt @ jnp.ravel(offset)


class Linearisation(eqx.Module):
    """The problem at one point.

    Attributes:
        x: the point.
        prediction: `f(x)`.
        residual: `f(x) - data`.
        jac: the Jacobian of `f` at `x` as a `lineax` operator: `mv` is a JVP, `jac.T.mv` a VJP, `as_matrix` dense.
    """

    x: Float[Array, "*x"]
    prediction: Float[Array, "*y"]
    residual: Float[Array, "*y"]
    jac: lx.AbstractLinearOperator


class Problem(eqx.Module):
    """Find `x` with `forward(x) = data`, by least squares.

    The objective is `0.5 * mean(((forward(x) - data) / noise_std)**2)`, `noise_std` being one where it is not given.
    With a `prior`, `0.5 * sum((L (x - mean))**2) / size(data)` is added: the minimiser is the maximum a posteriori one.

    Nothing is checked here, so that `Problem(None, 0)` can be an `in_axes`, or the `axes` of `solve_batch`.

    Args:
        forward: the map `x -> y` on one example: any callable; an `AbstractMap` also says the shape it expects.
        data: the observation, shape `*y`. With `solve_batch` it carries a leading axis.
        project: optional projection of `x` onto its feasible set, for example
            `lambda x: optax.projections.projection_box(x, 0.0, 1.0)`.
        noise_std: standard deviation of the noise in the units of `data`, a scalar or shaped like `data`. The
            discrepancy is `sqrt(mean((residual / noise_std)**2))`. It weighs the objective too: a trained inverse is a
            descent direction for the weighted objective, and not always for the plain one.
        prior: optional `GaussianPrior`.
    """

    forward: Any
    data: Any
    project: Any = None
    noise_std: Any = None
    prior: GaussianPrior | None = None

    def __init__(
        self,
        forward: Callable[..., Any] | Stored | int | None,
        data: Any,
        project: Callable[..., Any] | Stored | int | None = None,
        noise_std: Any = None,
        prior: GaussianPrior | None = None,
    ):
        self.forward = store(forward)
        self.data = data
        self.project = store(project)
        self.noise_std = noise_std
        self.prior = prior

    def feasible(self, x: Float[Array, "*x"]) -> Float[Array, "*x"]:
        """`project(x)`, or `x` where there is no projection."""
        return x if self.project is None else self.project(x)

    def misfit(self, x: Float[Array, "*x"], prediction: Float[Array, "*y"]) -> Float[Array, " k"]:
        """The flat vector whose mean square (over the size of `data`) is twice the objective."""
        scaled = self._scaled(prediction - self.data)
        if self.prior is None:
            return scaled
        return jnp.concatenate([scaled, self.prior.whiten(x)])

    def _scaled(self, residual: Float[Array, "*y"]) -> Float[Array, " m"]:
        if self.noise_std is None:
            return jnp.ravel(residual)
        return jnp.ravel(residual / jnp.broadcast_to(jnp.asarray(self.noise_std, residual.dtype), residual.shape))

    def merit(self, x: Float[Array, "*x"], prediction: Float[Array, "*y"]) -> Scalar:
        """The objective at `x`, given `prediction = forward(x)`."""
        misfit = self.misfit(x, prediction)
        return 0.5 * jnp.sum(misfit**2) / prediction.size

    def objective(self, x: Float[Array, "*x"]) -> Scalar:
        """The objective at `x`."""
        return self.merit(x, self.forward(x))

    def residual_rms(self, residual: Float[Array, "*y"]) -> Scalar:
        """Root mean square of the residual, in the units of `data`."""
        return jnp.sqrt(jnp.mean(residual**2))

    def discrepancy(self, residual: Float[Array, "*y"]) -> Scalar:
        """Root mean square of the residual in units of the noise; about one at the true `x`."""
        return jnp.sqrt(jnp.mean(self._scaled(residual) ** 2))

    def linearise(self, x: Float[Array, "*x"]) -> Linearisation:
        """Prediction, residual and Jacobian operator at `x`; both derivative products share one primal pass."""
        prediction = self.forward(x)
        jac = lx.linearise(lx.JacobianLinearOperator(lambda v, _: self.forward(v), x))
        return Linearisation(x, prediction, prediction - self.data, jac)

    def misfit_and_tangents(self, x: Float[Array, "*x"]) -> tuple[Float[Array, " k"], Callable[..., Any]]:
        """`misfit` at `x` and its linear tangent map `v -> J v`, from one primal pass."""
        return jax.linearize(lambda v: self.misfit(v, self.forward(v)), x)
