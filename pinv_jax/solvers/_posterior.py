"""What the data leave open: the posterior `exp(-1/2 |u(x)|^2)`, with `u` the misfit of noise and prior, as samples."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray, Scalar

from .._problem import Problem
from .._solution import Solution
from ..maps import store
from ._base import AbstractSolver
from ._batch import solve_batch
from ._implicit_derivative import Hessian
from ._krylov import lanczos
from ._normal import dense_jacobian


class LaplacePosterior(eqx.Module):
    """The Gaussian `N(mean, S (I - V D V') S')` with `S S'` the covariance of the prior.

    Attributes:
        mean: the minimiser, shape `*x`.
        sqrt: `v -> S v`, from white noise to something shaped like `x`.
        directions: orthonormal rows `V`, in coordinates of the white noise, shape `(k, *x)`.
        information: how many times more the data know of each direction than the prior, eigenvalues of the Hessian of
            the data term in these coordinates; `D` is `information / (1 + information)`.
        left_out: coupling of these directions to all others, in the units of `information`; zero, to rounding, where
            the directions are all that the data inform.
    """

    mean: Float[Array, "*x"]
    sqrt: Any
    directions: Float[Array, "k *x"]
    information: Float[Array, " k"]
    left_out: Scalar

    def sample(self, num: int, *, key: PRNGKeyArray) -> Float[Array, "num *x"]:
        """Independent samples."""
        white = jax.random.normal(key, (num, *self.mean.shape), self.mean.dtype)
        with jax.default_matmul_precision("highest"):
            flat, rows = white.reshape(num, -1), self.directions.reshape(len(self.directions), -1)
            shrink = 1 - 1 / jnp.sqrt(1 + self.information)
            flat = flat - ((flat @ rows.T) * shrink[None]) @ rows
            return self.mean[None] + jax.vmap(self.sqrt)(flat.reshape(white.shape))

    def variance(self) -> Float[Array, "*x"]:
        """Variance of every entry of `x`; applies `S` once for each of them."""
        with jax.default_matmul_precision("highest"):
            eye = jnp.eye(self.mean.size, dtype=self.mean.dtype).reshape(-1, *self.mean.shape)
            prior = jnp.sum(jax.vmap(self.sqrt)(eye) ** 2, axis=0)
            known = self.information / (1 + self.information)
            return prior - jnp.tensordot(known, jax.vmap(self.sqrt)(self.directions) ** 2, axes=1)


def laplace(
    problem: Problem,
    x_map: Float[Array, "*x"],
    *,
    key: PRNGKeyArray,
    max_rank: int = 100,
    sqrt: Any = None,
    hessian: Hessian = "full",
) -> LaplacePosterior:
    """The Gaussian with the mode and the curvature of the posterior: exact for a linear map.

    The Hessian of the data term is only applied, in coordinates in which the prior is white; Lanczos finds the
    directions that the data inform, and to the others the prior is left. The Gaussian is found once `max_rank` exceeds
    their number; see `left_out`.

    Args:
        problem: with `noise_std` and `prior`.
        x_map: its minimiser, `solve(problem, ...).value`; elsewhere the result means little.
        key: for the start of Lanczos.
        max_rank: products with the Hessian, at most; each keeps one vector.
        sqrt: `S`, from white noise shaped like `x` to a deviation of the prior; by default from a dense factorisation
            of `prior.inverse_sqrt`.
        hessian: `"gauss-newton"` leaves out second derivatives of `f`.

    Returns:
        A `LaplacePosterior`; its samples are NaN where `x_map` is no minimiser, so that no Gaussian fits.

    Raises:
        ValueError: without noise or prior, or with a projection.

    References:
        T. Bui-Thanh, O. Ghattas, J. Martin, G. Stadler, A Computational Framework for Infinite-Dimensional Bayesian
        Inverse Problems, Part I, 2013, arXiv:1308.1313.
    """
    prior = _check(problem)
    with jax.default_matmul_precision("highest"):
        if sqrt is None:
            factor = jnp.linalg.qr(_prior_matrix(problem, x_map), mode="r")
            sqrt = jax.tree_util.Partial(_solve_triangular, factor)
        data_term = Problem(problem.forward, problem.data, None, problem.noise_std)
        size = jnp.size(problem.data)
        if hessian == "full":
            _, curvature = jax.linearize(jax.grad(lambda x: size * data_term.objective(x)), x_map)
        else:
            _, jvp = data_term.misfit_and_tangents(x_map)
            transpose = jax.linear_transpose(jvp, x_map)
            curvature = lambda v: transpose(jvp(v))[0]
        back = jax.linear_transpose(sqrt, x_map)

        def white_hessian(v: Float[Array, " n"]) -> Float[Array, " n"]:
            return back(curvature(sqrt(v.reshape(x_map.shape))))[0].ravel()

        start = jax.random.normal(key, (x_map.size,), x_map.dtype)
        space = lanczos(white_hessian, start, min(x_map.size, max_rank))
        information, vectors = space.eigh()
        directions = (vectors.T @ space.basis).reshape(-1, *prior.mean.shape)
    information = jnp.where(information > -1, information, jnp.nan)
    return LaplacePosterior(x_map, store(sqrt), directions, information, space.last_coupling())


def _solve_triangular(factor: Float[Array, "n n"], v: Float[Array, "*x"]) -> Float[Array, "*x"]:
    return jax.scipy.linalg.solve_triangular(factor, v.ravel()).reshape(v.shape)


def _prior_matrix(problem: Problem, x: Float[Array, "*x"]) -> Float[Array, "p n"]:
    prior: Any = problem.prior
    return jax.jacfwd(lambda flat: prior.whiten(flat.reshape(x.shape)))(x.ravel())


def _check(problem: Problem) -> Any:
    if problem.noise_std is None or problem.prior is None:
        missing = "noise_std" if problem.noise_std is None else "prior"
        raise ValueError(
            f"a posterior needs a noise level and a prior, and the problem has no {missing}: write "
            "`Problem(forward, data, noise_std=..., prior=GaussianPrior(mean, inverse_sqrt))`."
        )
    if problem.project is not None:
        raise ValueError("a posterior on a bounded set is not known here: drop `project`, or move the map to a free x.")
    return problem.prior


class WeightedSamples(eqx.Module):
    """Samples with importance weights.

    Attributes:
        values: shape `(num, *x)`.
        log_weights: up to a constant; minus infinity for a sample that was not found.
        solution: of the batch that found them.
    """

    values: Float[Array, "num *x"]
    log_weights: Float[Array, " num"]
    solution: Solution

    @property
    def weights(self) -> Float[Array, " num"]:
        """Weights that sum to one."""
        return jax.nn.softmax(self.log_weights)

    @property
    def effective_size(self) -> Scalar:
        """How many equally weighted samples these are worth."""
        return 1 / jnp.sum(self.weights**2)

    def map(self, fn: Any) -> "WeightedSamples":
        """The samples of `fn(x)`."""
        return WeightedSamples(jax.vmap(fn)(self.values), self.log_weights, self.solution)

    def mean(self) -> Float[Array, "*x"]:
        """The weighted mean."""
        return jnp.tensordot(self.weights, self._found(), axes=1)

    def quantile(self, probability: Any) -> Float[Array, "*x"]:
        """The weighted quantile of every entry of `x`."""
        values = self._found().reshape(len(self.values), -1)
        order = jnp.argsort(values, axis=0)
        ordered = jnp.take_along_axis(values, order, axis=0)
        weights = self.weights[order]
        at = jnp.cumsum(weights, axis=0) - 0.5 * weights  # the middle of each sample's share
        picked = jax.vmap(lambda a, v: jnp.interp(probability, a, v), in_axes=1)(at, ordered)
        return picked.reshape(self.values.shape[1:])

    def metropolis(self, *, key: PRNGKeyArray) -> Float[Array, "num *x"]:
        """The Markov chain that proposes one sample after the other: equally weighted, with repetitions.

        Exact in the long run, where weights are exact only in the limit of many samples.
        """
        coin = jnp.log(jax.random.uniform(key, self.log_weights.shape, self.log_weights.dtype))
        first = jnp.argmax(jnp.isfinite(self.log_weights))

        def step(at: Array, proposal: Any) -> Any:
            index, threshold = proposal
            moves = threshold <= self.log_weights[index] - self.log_weights[at]
            at = jnp.where(moves, index, at)
            return at, at

        indices = jnp.arange(len(self.values))
        _, chain = jax.lax.scan(step, first.astype(indices.dtype), (indices, coin))
        return self.values[chain]

    def _found(self) -> Float[Array, "num *x"]:
        found = jnp.isfinite(self.log_weights).reshape(-1, *(1,) * (self.values.ndim - 1))
        return jnp.where(found, self.values, 0.0)


def randomise_then_optimise(
    problem: Problem,
    solver: AbstractSolver,
    x_map: Float[Array, "*x"],
    *,
    key: PRNGKeyArray,
    num_samples: int,
    inverse: Any = None,
    max_steps: int = 100,
) -> WeightedSamples:
    """Samples of the posterior by optimisation: each solves `Q' u(x) = Q' e` with white noise `e`, as one lane.

    `Q` is an orthonormal basis of the range of the Jacobian of `u` at `x_map`. The solutions have the density
    `|det Q' J(x)| exp(-1/2 |Q' u(x)|^2)` if there is one for each `e`, which a weight turns into that of the posterior:
    `w = exp(1/2 |Q' u|^2 - 1/2 |u|^2) / |det Q' J|`. For a linear map the weights are equal and the samples exact and
    independent; for another they are as unequal as it bends over the width of the posterior, which `effective_size`
    says. Of several modes it may miss all but one.

    `x_map` need not be the minimiser for the weights to be right. The Jacobian is formed, at `x_map` and at every
    sample: for unknowns that are not many. Everything composes with `jax.vmap`, over observations.

    Args:
        problem: with `noise_std` and `prior`; the observations of noise and prior must be as many as unknowns, at
            least.
        solver: of the square systems; `LevenbergMarquardt(atol=1e-3)` will do, in units of the noise.
        x_map: the minimiser, `solve(problem, ...).value`.
        key: random key.
        num_samples: lanes of the batch.
        inverse: optional learned inverse: a lane then starts from its value at the randomised data, not from `x_map`.
        max_steps: see `solve`.

    Raises:
        ValueError: without noise or prior, with a projection, or with fewer observations than unknowns.

    References:
        J. M. Bardsley, A. Solonen, H. Haario, M. Laine, Randomize-Then-Optimize: A Method for Sampling from Posterior
        Distributions in Nonlinear Inverse Problems, SIAM J. Sci. Comput. 36(4), 2014, doi:10.1137/140964023.
        The start from a learned inverse is ours.
    """
    _check(problem)
    with jax.default_matmul_precision("highest"):
        jac, _ = dense_jacobian(problem, x_map)
        if jac.shape[0] < jac.shape[1]:
            raise ValueError(
                f"data and prior make {jac.shape[0]} equations for {jac.shape[1]} unknowns: the posterior has no "
                "density. Give the prior an inverse_sqrt of full rank."
            )
        q, _ = jnp.linalg.qr(jac)
        noise = jax.random.normal(key, (num_samples, len(jac)), x_map.dtype)
        targets = noise @ q
    starts = jnp.broadcast_to(x_map, (num_samples, *x_map.shape))
    if inverse is not None:
        size = jnp.size(problem.data)
        std = jnp.broadcast_to(jnp.asarray(problem.noise_std, x_map.dtype), problem.data.shape)
        moved = noise[:, :size].reshape(num_samples, *problem.data.shape) * std[None]
        starts = jax.vmap(inverse)(problem.data[None] + moved)
    square = jax.tree_util.Partial(_projected_misfit, problem, q)
    sol = solve_batch(Problem(square, targets), solver, starts, max_steps=max_steps)

    @jax.vmap
    def log_weight(x: Float[Array, "*x"]) -> Scalar:
        jac, _ = dense_jacobian(problem, x)
        misfit = problem.misfit(x, problem.forward(x))
        _, log_det = jnp.linalg.slogdet(q.T @ jac)
        return 0.5 * jnp.sum((q.T @ misfit) ** 2) - 0.5 * jnp.sum(misfit**2) - log_det

    with jax.default_matmul_precision("highest"):
        log_weights = log_weight(sol.value)
    found = sol.success & jnp.isfinite(log_weights)
    return WeightedSamples(sol.value, jnp.where(found, log_weights, -jnp.inf), sol)


def _projected_misfit(problem: Problem, q: Float[Array, "k n"], x: Float[Array, "*x"]) -> Float[Array, " n"]:
    return q.T @ problem.misfit(x, problem.forward(x))
