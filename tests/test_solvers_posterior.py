"""Posterior samples: against the closed form where everything is linear and Gaussian, else against quadrature."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import key, matrix

import pinv_jax as pj
from pinv_jax import solvers

NOISE = jnp.array([0.3, 0.5, 0.2, 0.4])
PRIOR = pj.GaussianPrior(jnp.array([0.5, -0.5, 1.0]), matrix(5, 3, jnp.float64, seed=2))
A = matrix(4, 3, jnp.float64, seed=1, rank=2)
DATA = jnp.array([1.0, -0.4, 0.7, 0.2])
LM = solvers.LevenbergMarquardt(atol=1e-11)


def linear():
    """The problem, and mean and covariance of its posterior."""
    problem = pj.Problem(lambda x: A @ x, DATA, noise_std=NOISE, prior=PRIOR)
    weighted = A / NOISE[:, None]
    covariance = jnp.linalg.inv(weighted.T @ weighted + PRIOR.inverse_sqrt.T @ PRIOR.inverse_sqrt)
    return problem, PRIOR.mean + covariance @ weighted.T @ ((DATA - A @ PRIOR.mean) / NOISE), covariance


def assert_normal(samples, mean, covariance):
    """Mean and covariance of independent samples are within five standard errors."""
    white = np.linalg.solve(np.linalg.cholesky(covariance), np.asarray(samples - mean[None]).T)
    num = white.shape[1]
    assert np.abs(white.mean(axis=1)).max() < 5 / num**0.5
    assert np.abs(white @ white.T / num - np.eye(len(white))).max() < 5 * (2 / num) ** 0.5


def test_the_laplace_approximation_of_a_linear_problem_is_its_posterior():
    problem, mean, covariance = linear()
    posterior = solvers.laplace(problem, mean, key=key())
    np.testing.assert_allclose(posterior.variance(), jnp.diag(covariance), rtol=1e-10)
    assert_normal(posterior.sample(4000, key=key(1)), mean, covariance)
    assert int(jnp.sum(posterior.information > 1e-9)) == 2  # the rank of A


def test_randomised_samples_of_a_linear_problem_are_exact():
    problem, mean, covariance = linear()
    found = solvers.randomise_then_optimise(problem, LM, mean + 1.0, key=key(), num_samples=2000)
    assert jnp.all(found.solution.success)
    assert_normal(found.values, mean, covariance)
    np.testing.assert_allclose(found.log_weights, found.log_weights[0], atol=1e-8)
    np.testing.assert_allclose(found.effective_size, 2000, rtol=1e-9)
    np.testing.assert_allclose(found.quantile(0.05), np.quantile(found.values, 0.05, axis=0), atol=0.01)
    np.testing.assert_array_equal(found.metropolis(key=key(2)), found.values)  # every proposal is accepted


@pytest.mark.slow
def test_few_directions_of_many_unknowns():
    """A prior that is only ever applied, and as many products as the data have directions."""
    size, scale = 40, jnp.linspace(0.5, 2.0, 40).reshape(5, 8)
    a = matrix(3, size, jnp.float64, seed=7)
    prior = pj.GaussianPrior(jnp.zeros((5, 8)), lambda v: v / scale)
    problem = pj.Problem(lambda x: a @ x.ravel(), jnp.ones(3), noise_std=0.3, prior=prior)
    precision = a.T @ a / 0.3**2 + jnp.diag(scale.ravel() ** -2)
    exact = jnp.diag(jnp.linalg.inv(precision)).reshape(5, 8)
    few = solvers.laplace(problem, jnp.zeros((5, 8)), key=key(), max_rank=4, sqrt=lambda v: scale * v)
    np.testing.assert_allclose(few.variance(), exact, rtol=1e-9)
    assert few.directions.shape == (4, 5, 8)
    np.testing.assert_allclose(solvers.laplace(problem, jnp.zeros((5, 8)), key=key()).variance(), exact, rtol=1e-9)
    less = solvers.laplace(problem, jnp.zeros((5, 8)), key=key(), max_rank=2, sqrt=lambda v: scale * v)
    assert jnp.max(jnp.abs(less.variance() - exact)) > 0.01
    assert few.left_out < 1e-9 * jnp.max(few.information) < less.left_out  # and it says so


def bent():
    """A posterior that bends over its width, and its mean and quantiles by quadrature."""
    f = lambda x: jnp.stack([x[0] + 0.3 * x[0] ** 3 + 0.3 * x[1], jnp.exp(0.6 * x[1]) - 0.2 * x[0]])
    prior = pj.GaussianPrior(jnp.zeros(2), jnp.eye(2))
    problem = pj.Problem(f, jnp.array([0.9, 1.4]), noise_std=0.7, prior=prior)
    axis = jnp.linspace(-5, 5, 801)
    points = jnp.stack(jnp.meshgrid(axis, axis, indexing="ij"), axis=-1)
    mass = jnp.exp(-2 * jax.vmap(jax.vmap(problem.objective))(points))
    mass = mass / jnp.sum(mass)
    marginal = jnp.stack([jnp.sum(mass, axis=1), jnp.sum(mass, axis=0)])
    return problem, marginal @ axis, jnp.stack([jnp.interp(0.05, jnp.cumsum(m), axis) for m in marginal])


@pytest.mark.slow
def test_weights_correct_for_the_bend():
    problem, mean, quantile = bent()
    x_map = pj.solve(problem, solvers.LevenbergMarquardt(atol=1e-9), jnp.zeros(2)).value
    num = 20_000
    found = solvers.randomise_then_optimise(problem, LM, x_map, key=key(), num_samples=num)
    assert jnp.mean(found.solution.success) > 0.99
    assert 0.3 * num < found.effective_size < 0.99 * num
    np.testing.assert_allclose(found.mean(), mean, atol=0.03)
    np.testing.assert_allclose(found.quantile(0.05), quantile, atol=0.06)
    np.testing.assert_allclose(jnp.mean(found.metropolis(key=key(1)), axis=0), mean, atol=0.04)
    raw = jnp.mean(found.values[found.solution.success], axis=0)
    assert jnp.linalg.norm(raw - mean) > 2 * jnp.linalg.norm(found.mean() - mean)
    # From another point, hence another Q, and from starts of a learned inverse: the same posterior.
    inverse = lambda y: jnp.stack([0.6 * y[0], y[1] - 1.0])
    again = solvers.randomise_then_optimise(problem, LM, x_map + 0.2, key=key(3), num_samples=num, inverse=inverse)
    np.testing.assert_allclose(again.mean(), mean, atol=0.03)


@pytest.mark.slow
def test_a_saddle_has_no_laplace_approximation_and_a_lost_lane_no_weight():
    prior = pj.GaussianPrior(jnp.zeros(1), 0.1 * jnp.eye(1))
    problem = pj.Problem(lambda x: x**2, jnp.ones(1), noise_std=0.2, prior=prior)
    assert jnp.all(jnp.isnan(solvers.laplace(problem, jnp.zeros(1), key=key()).sample(3, key=key())))
    assert not jnp.any(jnp.isnan(solvers.laplace(problem, jnp.ones(1), key=key()).sample(3, key=key())))
    found = solvers.randomise_then_optimise(problem, LM, jnp.ones(1), key=key(), num_samples=50, max_steps=4)
    lost = ~found.solution.success
    assert 0 < jnp.sum(lost) < 50
    np.testing.assert_array_equal(found.weights[lost], 0.0)
    assert found.effective_size <= 50 - jnp.sum(lost)


def test_what_is_refused():
    f = lambda x: x
    prior = pj.GaussianPrior(jnp.zeros(3), jnp.eye(3)[:2])
    sample = lambda **kwargs: solvers.laplace(pj.Problem(f, jnp.ones(3), **kwargs), jnp.zeros(3), key=key())
    with pytest.raises(ValueError, match="the problem has no noise_std"):
        sample(prior=prior)
    with pytest.raises(ValueError, match="the problem has no prior"):
        sample(noise_std=0.1)
    with pytest.raises(ValueError, match="drop `project`"):
        sample(noise_std=0.1, prior=prior, project=solvers.Box(0.0, 1.0))
    short = pj.Problem(
        lambda x: x[:1], jnp.ones(1), noise_std=0.1, prior=pj.GaussianPrior(jnp.zeros(4), jnp.eye(4)[:2])
    )
    with pytest.raises(ValueError, match="3 equations for 4 unknowns"):
        solvers.randomise_then_optimise(short, LM, jnp.zeros(4), key=key(), num_samples=3)
