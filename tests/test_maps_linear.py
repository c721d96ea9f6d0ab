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
    assert all(isinstance(layer.prepared, tuple) for layer in (chain.layers[0], chain.layers[2]))


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


# Matrix-free ---------------------------------------------------------------------------------------------------------


def spectrum(rows, columns, condition, rank, dtype=jnp.float64):
    """Singular values from 1 down to 1 / condition, then zeros."""
    rng = np.random.default_rng(rows)
    u = np.linalg.qr(rng.normal(size=(rows, rows)))[0][:, :rank]
    v = np.linalg.qr(rng.normal(size=(columns, columns)))[0][:, :rank]
    return jnp.asarray((u * np.geomspace(1, 1 / condition, rank)) @ v.T, dtype)


def draw(shape, dtype=jnp.float64, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), dtype)


lsmr_pinv = jax.jit(lambda f, y: f.pinv(y))


@pytest.mark.parametrize("condition", [10, 1000])
@pytest.mark.parametrize(("rows", "columns", "rank"), [(20, 30, 20), (30, 20, 20), (30, 20, 13)])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64], ids=["float32", "float64"])
def test_lsmr_gives_the_least_norm_least_squares_solution(condition, rows, columns, rank, dtype):
    a = spectrum(rows, columns, condition, rank, dtype)
    y = draw((rows,), dtype)
    expected = np.linalg.pinv(np.asarray(a, np.float64), rcond=1e-2 / condition) @ y
    x = lsmr_pinv(maps.LinearMap(a, method="lsmr", max_steps=2000), y)
    assert x.dtype == dtype
    # Rounding of a consistent system grows with the condition number, that of least squares with its square.
    growth = condition if rank == rows else condition**2
    assert jnp.linalg.norm(x - expected) <= 10 * growth * jnp.finfo(dtype).eps * np.linalg.norm(expected)


def test_lsmr_does_not_amplify_what_no_x_reaches():
    a = spectrum(30, 20, 10, 20)
    y = jnp.linalg.qr(a, mode="complete")[0][:, 25]
    np.testing.assert_allclose(lsmr_pinv(maps.LinearMap(a, method="lsmr"), y), jnp.zeros(20), atol=1e-14)


def test_lsmr_on_nothing_and_on_nan():
    f = maps.LinearMap(matrix(3, 5, jnp.float64), method="lsmr")
    np.testing.assert_array_equal(lsmr_pinv(f, jnp.zeros(3)), jnp.zeros(5))
    assert bool(jnp.all(jnp.isnan(lsmr_pinv(f, jnp.array([1.0, jnp.nan, 0.0])))))
    nothing = maps.LinearMap(jnp.zeros((3, 5)), method="lsmr")
    np.testing.assert_array_equal(lsmr_pinv(nothing, jnp.ones(3)), jnp.zeros(5))


@pytest.mark.slow
def test_lsmr_differentiates_in_both_modes_and_batches():
    a = spectrum(6, 9, 5, 4)
    f, expected = maps.LinearMap(a, method="lsmr"), np.linalg.pinv(a, rcond=1e-10)
    for jacobian in (jax.jacfwd, jax.jacrev):
        np.testing.assert_allclose(jax.jit(jacobian(lambda y: f.pinv(y)))(jnp.ones(6)), expected, atol=1e-13)
    ys = draw((4, 6)) * jnp.array([[1.0], [1e-8], [1e8], [0.0]])
    together = jax.jit(jax.vmap(lambda y: f.pinv(y)))(ys)
    np.testing.assert_allclose(together, jnp.stack([lsmr_pinv(f, y) for y in ys]), rtol=1e-11)
    gradient = jax.jit(jax.grad(lambda f: jnp.sum(f.pinv(jnp.ones(6)))))(f)
    assert all(bool(jnp.all(leaf == 0)) for leaf in jax.tree.leaves(gradient))


def test_lsmr_is_never_prepared_and_never_forms_the_matrix():
    f = maps.LinearMap(matrix(4, 6, jnp.float64), method="lsmr")
    assert f.prepare() is f
    assert "svd" not in jax.jit(lambda f, y: f.pinv(y)).lower(f, jnp.ones(4)).as_text()
    assert f.rank() == 4


@jax.jit
def consistency(f, y, z):
    x = f.pinv(y)
    return x, f(x), f(f.merge(y, 5 * z))


@pytest.mark.parametrize("condition", [10, 100])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64], ids=["float32", "float64"])
def test_operator_surjection_is_consistent_to_rounding(condition, dtype):
    a = spectrum(20, 30, condition, 20, dtype)
    f = maps.OperatorSurjection(lx.MatrixLinearOperator(a))
    y, z = draw((20,), dtype), draw((30,), dtype, seed=1)
    x, again, met = consistency(f, y, z)
    tolerance = 1e-12 if dtype == jnp.float64 else 1e-5
    assert jnp.linalg.norm(again - y) <= tolerance * jnp.linalg.norm(y)
    assert jnp.linalg.norm(met - y) <= tolerance * jnp.linalg.norm(z) * 5
    expected = np.linalg.pinv(np.asarray(a, np.float64)) @ y
    assert jnp.linalg.norm(x - expected) <= condition * tolerance * np.linalg.norm(expected)


def test_operator_surjection_is_the_linear_one_in_other_coordinates():
    a = matrix(20, 30, jnp.float64)  # the shape of the tests above: nothing new to compile
    dense, free = maps.LinearSurjection(a), maps.OperatorSurjection(lx.MatrixLinearOperator(a))
    x = draw((30,))
    (y, z), (dense_y, dense_z) = jax.jit(lambda x: free.split(x))(x), dense.split(x)
    np.testing.assert_allclose(y, dense_y, atol=1e-13)
    np.testing.assert_allclose(z, dense.null_space @ dense_z, atol=1e-13)
    np.testing.assert_allclose(free.transpose(y), a.T @ y, atol=1e-13)
    for jacobian in (jax.jacfwd, jax.jacrev):
        np.testing.assert_allclose(jax.jit(jacobian(lambda y: free.pinv(y)))(y), np.linalg.pinv(a), atol=1e-13)


def test_gradients_reach_the_operator_of_a_surjection():
    a = matrix(3, 7, jnp.float64)
    y, w, da = (draw(shape, seed=i) for i, shape in enumerate([(3,), (7,), (3, 7)]))

    def loss(a, pinv):
        return jnp.vdot(w, pinv(a, y))

    free = lambda a, y: maps.OperatorSurjection(lx.MatrixLinearOperator(a)).pinv(y)
    dense = lambda a, y: jnp.linalg.pinv(a) @ y
    got, expected = (jax.jit(jax.grad(lambda a, p=p: loss(a, p)))(a) for p in (free, dense))
    np.testing.assert_allclose(got, expected, atol=1e-12)
    tangents = [jax.jit(lambda a, p=p: jax.jvp(lambda a: loss(a, p), (a,), (da,))[1])(a) for p in (free, dense)]
    np.testing.assert_allclose(*tangents, rtol=1e-12)


def test_operator_surjections_keep_tiny_and_batched_data_apart():
    f = maps.OperatorSurjection(lx.MatrixLinearOperator(matrix(20, 30, jnp.float32)))
    ys = jnp.ones((4, 20), jnp.float32) * jnp.array([[1.0], [1e-30], [0.0], [jnp.nan]], jnp.float32)
    xs = jax.jit(jax.vmap(lambda y: f.pinv(y)))(ys)
    np.testing.assert_allclose(xs[1], 1e-30 * xs[0], rtol=1e-5)
    np.testing.assert_array_equal(xs[2], jnp.zeros(30))
    assert bool(jnp.all(jnp.isnan(xs[3])))


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: maps.OperatorSurjection(lx.MatrixLinearOperator(spectrum(20, 30, 2, 19))), "smallest singular value"),
        (lambda: maps.OperatorSurjection(lx.MatrixLinearOperator(jnp.ones((4, 3)))), "as many outputs as inputs"),
        (
            lambda: maps.OperatorSurjection(lx.MatrixLinearOperator(spectrum(20, 30, 1e3, 20)), max_steps=10),
            "raise max_steps",
        ),
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
