"""The problem: its objective, its linearisation, and that it crosses the transformations of JAX."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import matrix

import pinv_jax as pj
from pinv_jax import maps, solvers

A = matrix(4, 3, jnp.float64, seed=2)
X, DATA = jnp.asarray([0.3, -0.2, 0.5]), jnp.asarray([1.0, 2.0, -1.0, 0.5])


def forward(x):
    return jnp.sin(A @ x)


def test_the_objective_is_what_it_says():
    residual = np.asarray(forward(X) - DATA)
    std = jnp.asarray([0.5, 1.0, 2.0, 0.1])
    prior = pj.GaussianPrior(jnp.ones(3), 2 * jnp.eye(3))
    mean = np.mean
    np.testing.assert_allclose(pj.Problem(forward, DATA).objective(X), 0.5 * mean(residual**2))
    scaled = residual / std
    np.testing.assert_allclose(pj.Problem(forward, DATA, noise_std=std).objective(X), 0.5 * mean(scaled**2))
    np.testing.assert_allclose(
        pj.Problem(forward, DATA, noise_std=std).discrepancy(jnp.asarray(residual)), mean(scaled**2) ** 0.5
    )
    np.testing.assert_allclose(
        pj.Problem(forward, DATA, noise_std=0.5, prior=prior).objective(X),
        0.5 * (np.sum((residual / 0.5) ** 2) + np.sum((2 * (X - 1)) ** 2)) / 4,
    )
    callable_prior = pj.GaussianPrior(jnp.ones(3), lambda offset: 2 * offset)
    np.testing.assert_allclose(
        pj.Problem(forward, DATA, prior=callable_prior).objective(X),
        pj.Problem(forward, DATA, prior=prior).objective(X),
    )


def test_the_linearisation_has_both_products():
    lin = pj.Problem(forward, DATA).linearise(X)
    jac = jax.jacfwd(forward)(X)
    v, w = jnp.asarray([1.0, -1.0, 2.0]), jnp.asarray([0.1, 0.2, -0.3, 1.0])
    np.testing.assert_allclose(lin.prediction, forward(X))
    np.testing.assert_allclose(lin.residual, forward(X) - DATA)
    np.testing.assert_allclose(lin.jac.mv(v), jac @ v, atol=1e-14)
    np.testing.assert_allclose(lin.jac.T.mv(w), jac.T @ w, atol=1e-14)
    np.testing.assert_allclose(lin.jac.as_matrix(), jac, atol=1e-14)


FORWARDS = {
    "function": lambda: forward,
    "equinox network": lambda: eqx.nn.MLP(3, 4, 5, 1, key=jax.random.key(0)),
    "our network": lambda: maps.MLP((3, 5, 4), key=jax.random.key(0)),
}


@pytest.mark.parametrize("name", FORWARDS)
def test_a_problem_is_a_plain_argument_of_jit_and_vmap(name):
    problem = pj.Problem(FORWARDS[name](), jnp.stack([DATA, 2 * DATA]), solvers.Box(-1.0, 1.0), noise_std=0.1)
    assert all(isinstance(leaf, jax.Array | float) for leaf in jax.tree.leaves(problem))
    values = jax.jit(jax.vmap(lambda p, x: p.objective(x), in_axes=(pj.Problem(None, 0), None)))(problem, X)
    for i, value in enumerate(values):
        one = pj.Problem(problem.forward, problem.data[i], noise_std=0.1)
        np.testing.assert_allclose(value, one.objective(X), rtol=1e-12)


def test_gradients_reach_the_parameters_of_the_forward_map():
    network = maps.MLP((3, 4), key=jax.random.key(0))
    grads = eqx.filter_grad(lambda net: pj.Problem(net, DATA).objective(X))(network)
    residual = network(X) - DATA
    np.testing.assert_allclose(grads.layers[0].bias, residual / 4, rtol=1e-12)
    np.testing.assert_allclose(grads.layers[0].weight, np.outer(residual, X) / 4, rtol=1e-12)
