import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pinv_jax import diagnostics as dg

# compiled as one program each: op by op the tests would take minutes
excess_rjcp, taylor_test, adjoint_dot_test, composition_defect = (
    eqx.filter_jit(fn) for fn in (dg.excess_rjcp, dg.taylor_test, dg.adjoint_dot_test, dg.composition_defect)
)


def matrices(d=6, m=9, rank=None, seed=0, dtype=jnp.float64):
    rng = np.random.default_rng(seed)
    jac = rng.standard_normal((m, d))
    if rank is not None:
        u, s, vt = np.linalg.svd(jac, full_matrices=False)
        jac = (u[:, :rank] * s[:rank]) @ vt[:rank]
    return jnp.asarray(jac, dtype), jnp.asarray(rng.standard_normal((d, m)) / 4, dtype)


def smooth_pair(d=5, m=8, seed=0, dtype=jnp.float64):
    k1, k2 = jax.random.split(jax.random.key(seed))
    f = eqx.nn.MLP(d, m, 8, 1, jnp.tanh, dtype=dtype, key=k1)
    g = eqx.nn.MLP(m, d, 8, 1, jnp.tanh, dtype=dtype, key=k2)
    return f, g


@pytest.mark.parametrize("kind", ["rademacher", "normal"])
@pytest.mark.parametrize("mode", ["jvp", "vjp"])
def test_estimator_meets_the_dense_norm(kind, mode):
    jac, inverse = matrices()
    x = jnp.linspace(-1.0, 1.0, 6)
    probes = dg.probe_maker(kind)(x, 10_000, key=jax.random.key(1))
    defect = composition_defect(lambda v: jac @ v, lambda v: inverse @ v, x, probes, mode=mode)
    dense = jnp.sum((inverse @ jac - jnp.eye(6)) ** 2)
    assert defect.squared_norms.shape == (10_000,)
    assert jnp.abs(defect.sum / dense - 1) < (0.01 if kind == "rademacher" else 0.03)
    assert jnp.abs(defect.mean / (dense / 6) - 1) < (0.01 if kind == "rademacher" else 0.03)
    assert defect.reduce("mean") == defect.mean
    assert defect.reduce("sum") == defect.sum


@pytest.mark.parametrize("mode", ["jvp", "vjp"])
def test_complete_set_of_probes_is_exact_for_nonlinear_maps(mode):
    f, g = smooth_pair()
    x = jnp.linspace(-1.0, 1.0, 5)
    jac, inverse = jax.jacrev(f)(x), jax.jacrev(g)(f(x))
    defect = composition_defect(f, g, x, 5**0.5 * jnp.eye(5), mode=mode)
    np.testing.assert_allclose(defect.sum, jnp.sum((inverse @ jac - jnp.eye(5)) ** 2), rtol=1e-12)


def test_rademacher_has_less_variance_than_normal():
    jac, inverse = matrices()
    x = jnp.zeros(6)
    spread = {
        kind: jnp.std(
            composition_defect(
                lambda v: jac @ v, lambda v: inverse @ v, x, dg.probe_maker(kind)(x, 2000, key=jax.random.key(3))
            ).squared_norms
        )
        for kind in ("rademacher", "normal")
    }
    assert spread["rademacher"] < spread["normal"]


def test_constant_inverse_gives_exactly_one():
    jac, _ = matrices()
    xs = jax.random.normal(jax.random.key(0), (7, 6))
    value = dg.rjcp(lambda v: jac @ v, lambda y: jnp.full(6, 0.3) + 0 * y[:6], xs, key=jax.random.key(1))
    assert value == 1.0


def test_exact_inverse_gives_zero():
    jac, _ = matrices()
    pinv = jnp.linalg.pinv(jac)
    xs = jax.random.normal(jax.random.key(0), (7, 6))
    for normalisation in ("mean", "sum"):
        value = dg.rjcp(lambda v: jac @ v, lambda y: pinv @ y, xs, key=jax.random.key(1), normalisation=normalisation)
        assert value <= 1e-10


@pytest.mark.parametrize("rank", [1, 3, 6])
def test_rank_bounds_the_mean_from_below(rank):
    jac, _ = matrices(rank=rank)
    f = lambda v: jac @ v
    x = jnp.zeros(6)
    floor = dg.rjcp_floor(f, x)
    np.testing.assert_allclose(floor, 1 - rank / 6, atol=1e-15)
    complete = 6**0.5 * jnp.eye(6)
    best = composition_defect(f, lambda y: jnp.linalg.pinv(jac) @ y, x, complete).mean
    np.testing.assert_allclose(best, floor, atol=1e-12)
    for seed in range(5):
        _, inverse = matrices(seed=seed)
        assert composition_defect(f, lambda y, inverse=inverse: inverse @ y, x, complete).mean >= floor - 1e-12


def metric_and_map(rank=3, seed=0):
    rng = np.random.default_rng(seed)
    jac, _ = matrices(rank=4)
    metric = dg.DataMetric(jnp.asarray(rng.standard_normal((6, rank))), jnp.asarray(rng.uniform(0.1, 0.5, 9)))
    return jac, metric


def exact_probes(metric, d, m):
    """Probes and noise whose second moments are exactly those of the metric, uncorrelated with each other."""
    r = metric.covariance_sqrt.shape[1]
    n = r + m
    probes = n**0.5 * jnp.concatenate([metric.covariance_sqrt.T, jnp.zeros((m, d))])
    noise = n**0.5 * jnp.concatenate([jnp.zeros((r, m)), jnp.diag(metric.noise_std)])
    return probes, noise


@pytest.mark.parametrize("rank", [3, *(pytest.param(rank, marks=pytest.mark.slow) for rank in (1, 8))])
def test_data_target_is_minimised_by_tikhonov_and_its_minimum_is_the_floor(rank):
    jac, metric = metric_and_map(rank)
    x = jnp.zeros(6)
    probes, noise = exact_probes(metric, 6, 9)

    def loss(inverse):
        return composition_defect(
            lambda v: jac @ v, lambda y: inverse @ y, x, probes, noise=noise, scale=metric.trace
        ).mean

    # the loss is quadratic in the inverse: one Newton step from anywhere is the least-squares solution
    start = jax.random.normal(jax.random.key(0), (6, 9))
    gradient, hessian = jnp.ravel(jax.grad(loss)(start)), jax.hessian(loss)(start).reshape(54, 54)
    minimiser = start - jnp.linalg.solve(hessian, gradient).reshape(6, 9)
    cov = metric.covariance_sqrt @ metric.covariance_sqrt.T
    tikhonov = cov @ jac.T @ jnp.linalg.inv(jac @ cov @ jac.T + jnp.diag(metric.noise_std**2))
    np.testing.assert_allclose(minimiser, tikhonov, atol=1e-9)
    floor = dg.rjcp_floor(lambda v: jac @ v, x, metric=metric)
    np.testing.assert_allclose(loss(tikhonov), floor, rtol=1e-10)
    posterior = cov - tikhonov @ jac @ cov
    np.testing.assert_allclose(floor, jnp.trace(posterior) / jnp.trace(cov), rtol=1e-10)


@pytest.mark.slow
def test_excess_of_the_best_inverse_is_about_zero_and_of_others_positive():
    jac, metric = metric_and_map()
    xs = jnp.zeros((64, 6))
    cov = metric.covariance_sqrt @ metric.covariance_sqrt.T
    tikhonov = cov @ jac.T @ jnp.linalg.inv(jac @ cov @ jac.T + jnp.diag(metric.noise_std**2))
    f = lambda v: jac @ v
    options = {"key": jax.random.key(0), "num_probes": 64, "metric": metric}
    assert jnp.abs(excess_rjcp(f, lambda y: tikhonov @ y, xs, **options)) < 0.01
    assert excess_rjcp(f, lambda y: jnp.linalg.pinv(jac) @ y, xs, **options) > 0.05


def test_metric_from_samples_has_their_covariance():
    xs = jax.random.normal(jax.random.key(0), (50, 2, 3)) * jnp.arange(1.0, 4.0)[None, None, :]
    metric = dg.DataMetric.from_samples(xs, 0.1)
    cov = np.cov(np.asarray(xs.reshape(50, 6)).T)
    np.testing.assert_allclose(metric.covariance_sqrt @ metric.covariance_sqrt.T, cov, atol=1e-12)
    np.testing.assert_allclose(metric.trace, np.trace(cov))
    assert dg.DataMetric.from_samples(xs, 0.1, rank=2).covariance_sqrt.shape == (6, 2)
    probes = metric.probes(xs[0], 20_000, key=jax.random.key(1))
    assert probes.shape == (20_000, 2, 3)
    np.testing.assert_allclose(np.cov(np.asarray(probes.reshape(-1, 6)).T), cov, atol=0.3)


def test_normal_equation_defect_vanishes_only_at_damped_gauss_newton():
    jac, inverse = matrices(rank=4)
    f, x, lam = (lambda v: jac @ v), jnp.zeros(6), 0.3
    complete = 9**0.5 * jnp.eye(9)
    damped = jnp.linalg.solve(jac.T @ jac + lam * jnp.eye(6), jac.T)
    assert dg.normal_equation_defect(f, lambda y: damped @ y, x, complete, damping=lam).sum < 1e-24
    other = dg.normal_equation_defect(f, lambda y: inverse @ y, x, complete, damping=lam).sum
    dense = (jac.T @ jac + lam * jnp.eye(6)) @ inverse - jac.T
    np.testing.assert_allclose(other, jnp.sum(dense**2), rtol=1e-12)


def test_vjp_mode_serves_a_map_without_jvp():
    jac, inverse = matrices()

    @jax.custom_vjp
    def f(x):
        return jac @ x

    f.defvjp(lambda x: (jac @ x, None), lambda _, w: (jac.T @ w,))
    x = jnp.zeros(6)
    complete = 6**0.5 * jnp.eye(6)
    defect = composition_defect(f, lambda y: inverse @ y, x, complete, mode="vjp")
    np.testing.assert_allclose(defect.sum, jnp.sum((inverse @ jac - jnp.eye(6)) ** 2), rtol=1e-12)


def test_bad_options_are_named():
    jac, inverse = matrices()
    f, g, x, probes = (lambda v: jac @ v), (lambda v: inverse @ v), jnp.zeros(6), jnp.ones((2, 6))
    with pytest.raises(ValueError, match="no place for noise"):
        composition_defect(f, g, x, probes, noise=jnp.zeros((2, 9)), mode="vjp")
    with pytest.raises(ValueError, match="'mean' or 'sum'"):
        composition_defect(f, g, x, probes).reduce("max")
    with pytest.raises(ValueError, match="rademacher"):
        dg.probe_maker("uniform")


@pytest.mark.slow
@pytest.mark.parametrize(("dtype", "with_metric"), [(jnp.float32, True), (jnp.float64, False)])
def test_dtype_jit_vmap_and_grad(dtype, with_metric):
    f, g = smooth_pair(dtype=dtype)
    xs = jax.random.normal(jax.random.key(0), (4, 5), dtype)
    metric = dg.DataMetric(jnp.eye(5, dtype=dtype), 0.1) if with_metric else None

    @eqx.filter_jit
    @eqx.filter_value_and_grad
    def value(g):
        return dg.rjcp(f, g, xs, key=jax.random.key(1), metric=metric)

    out, grads = value(g)
    assert out.dtype == dtype
    leaves = jax.tree.leaves(eqx.filter(grads, eqx.is_array))
    assert leaves
    assert all(bool(jnp.all(jnp.isfinite(leaf))) for leaf in leaves)
    floors = jax.jit(jax.vmap(lambda x: dg.rjcp_floor(f, x, metric=metric)))(xs)
    assert floors.shape == (4,)
    assert floors.dtype == dtype
    assert bool(jnp.all((floors >= 0) & (floors < 1)))


def test_matmuls_run_at_highest_precision():
    f, g = smooth_pair(dtype=jnp.float32)
    x = jnp.zeros(5, jnp.float32)

    def loss(g):
        return dg.composition_defect(f, g, x, jnp.ones((2, 5), jnp.float32)).mean

    params, rest = eqx.partition(g, eqx.is_array)
    text = jax.jit(jax.grad(lambda p: loss(eqx.combine(p, rest)))).lower(params).as_text()
    products = [line for line in text.splitlines() if "dot_general" in line]
    assert products
    assert all("HIGHEST" in line for line in products)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_adjoint_and_taylor_tests_tell_right_from_wrong(dtype):
    f, _ = smooth_pair(dtype=dtype)
    x, v = jnp.linspace(-1.0, 1.0, 5, dtype=dtype), jnp.ones(5, dtype)
    assert adjoint_dot_test(f, x, key=jax.random.key(0)) < 100 * jnp.finfo(dtype).eps
    assert 1.9 < taylor_test(f, x, v) < 2.1

    @jax.custom_jvp
    def wrong(x):
        return f(x)

    wrong.defjvp(lambda p, t: (f(p[0]), 1.5 * jax.jvp(f, p, t)[1]))
    assert taylor_test(wrong, x, v) < 1.5

    @jax.custom_jvp
    def lopsided(x):
        return x

    # the transpose disagrees with the tangent
    lopsided.defjvp(
        lambda p, t: (
            p[0],
            jax.lax.custom_linear_solve(
                lambda u: u, t[0], lambda _, b: b, transpose_solve=lambda _, b: 1.5 * b, symmetric=False
            ),
        )
    )
    assert adjoint_dot_test(lopsided, x, key=jax.random.key(0)) > 0.05


def test_taylor_test_of_a_linear_map_is_infinite():
    jac, _ = matrices()
    assert taylor_test(lambda v: jac @ v, jnp.ones(6), jnp.ones(6)) == jnp.inf


def test_spectrum_of_a_shaped_map():
    jac, _ = matrices(d=6, m=6)
    f = lambda v: jnp.reshape(jac @ jnp.ravel(v), (3, 2))
    x = jnp.zeros((2, 3))
    np.testing.assert_allclose(dg.dense_jacobian(f, x), jac, rtol=1e-14)
    np.testing.assert_allclose(dg.jacobian_spectrum(f, x), np.linalg.svd(jac, compute_uv=False), rtol=1e-12)
