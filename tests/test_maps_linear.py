"""Linear maps beyond the contracts: rank, preparation, refusals."""

import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import pytest
from cases import matrix

from pinv_jax import maps


def test_pinv_gives_the_least_norm_least_squares_solution():
    a = matrix(6, 5, jnp.float64, rank=3)
    y = jax.random.normal(jax.random.key(0), (6,))
    np.testing.assert_allclose(maps.LinearMap(a).pinv(y), np.linalg.lstsq(a, y, rcond=1e-12)[0], atol=1e-12)


def test_rtol_decides_what_counts_as_zero():
    f = maps.LinearMap(jnp.diag(jnp.array([1.0, 1e-3, 1e-9])), rtol=1e-6)
    assert f.rank() == 2
    np.testing.assert_allclose(f.pinv(jnp.ones(3)), [1.0, 1e3, 0.0])
    assert maps.LinearMap(jnp.diag(jnp.array([1.0, 1e-3, 1e-9]))).rank() == 3


def test_zero_map_has_a_pinv():
    f = maps.LinearMap(jnp.zeros((3, 2)))
    assert f.rank() == 0
    np.testing.assert_array_equal(f.pinv(jnp.ones(3)), jnp.zeros(2))


def test_prepared_does_not_decompose_again():
    y = jnp.ones(4)
    f = maps.LinearMap(matrix(4, 6, jnp.float64))
    text = lambda f: jax.jit(lambda f, y: f.pinv(y)).lower(f, y).as_text()
    assert "svd" in text(f)
    assert "svd" not in text(f.prepare())
    np.testing.assert_allclose(f.prepare().pinv(y), f.pinv(y), rtol=1e-13)
    chain = maps.prepare(maps.Chain([f, jnp.tanh, maps.LinearMap(matrix(2, 4, jnp.float64))]))
    assert all(isinstance(layer.factors, tuple) for layer in (chain.layers[0], chain.layers[2]))


def test_section_is_the_natural_one():
    f = maps.LinearSurjection(matrix(3, 7, jnp.float64))
    y = jnp.array([1.0, -2.0, 0.5])
    np.testing.assert_array_equal(f.section(y), jnp.zeros(4))
    np.testing.assert_allclose(f.pinv(y), np.linalg.pinv(f.matrix) @ y, atol=1e-13)
    np.testing.assert_allclose(f.null_space.T @ f.null_space, jnp.eye(4), atol=1e-14)


def test_no_gradient_reaches_the_matrix_of_a_surjection():
    f = maps.LinearSurjection(matrix(3, 7, jnp.float64))
    gradient = jax.grad(lambda f: jnp.sum(f(jnp.ones(7))) + jnp.sum(f.pinv(jnp.ones(3))))(f)
    assert all(bool(jnp.all(leaf == 0)) for leaf in jax.tree.leaves(gradient))


def test_batches_of_matrices_by_vmap():
    stack = jnp.stack([matrix(3, 5, jnp.float64, seed=seed) for seed in range(2)])
    y = jnp.ones(3)
    for build in (maps.LinearMap, maps.LinearSurjection):
        together = jax.vmap(lambda a, build=build: build(a).pinv(y))(stack)
        np.testing.assert_allclose(together, jnp.stack([build(a).pinv(y) for a in stack]), atol=1e-13)


@pytest.mark.parametrize("product", ["call", "pinv", "split", "merge"])
def test_products_run_at_highest_precision(product):
    f = maps.LinearSurjection(matrix(3, 7, jnp.float32))
    x, y = jnp.ones(7, jnp.float32), jnp.ones(3, jnp.float32)
    fn = {"call": lambda: f(x), "pinv": lambda: f.pinv(y), "split": lambda: f.split(x), "merge": lambda: f.pinv(y)}
    text = jax.jit(fn[product]).lower().as_text()
    assert "dot_general" in text
    assert text.count("dot_general") == text.count("precision = [HIGHEST, HIGHEST]")


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: maps.LinearMap(jnp.ones(3)), r"shape \(m, n\)"),
        (
            lambda: maps.LinearMap(
                lx.FunctionLinearOperator(
                    lambda t: t[0], (jax.ShapeDtypeStruct((2,), jnp.float64), jax.ShapeDtypeStruct((3,), jnp.float64))
                )
            ),
            "Ravelled",
        ),
        (lambda: maps.LinearSurjection(jnp.ones((2, 4))), "linearly independent"),
        (lambda: maps.LinearSurjection(jnp.eye(4)[:, :2]), "Use LinearMap"),
    ],
)
def test_bad_operators_are_refused(build, message):
    with pytest.raises(ValueError, match=message):
        build()
