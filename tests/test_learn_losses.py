import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pinv_jax import diagnostics, learn, maps

D, M = 4, 6
KEY = jax.random.key(7)


def mlp_pair(seed=0, dtype=jnp.float64):
    k1, k2 = jax.random.split(jax.random.key(seed))
    forward = maps.MLP((D, 8, M), activation="tanh", dtype=dtype, key=k1)
    inverse = maps.MLP((M, 8, D), activation="tanh", dtype=dtype, key=k2)
    return learn.InversePair(forward, inverse)


def linear_pair(seed=0, rank=D):
    rng = np.random.default_rng(seed)
    u, s, vt = np.linalg.svd(rng.standard_normal((M, D)), full_matrices=False)
    jac = jnp.asarray((u[:, :rank] * s[:rank]) @ vt[:rank])
    inverse = eqx.nn.Linear(M, D, dtype=jnp.float64, key=jax.random.key(seed))
    return jac, learn.InversePair(lambda x: jac @ x, inverse)


def average(loss, model, num=4000, **options):
    x, y = jnp.linspace(-1.0, 1.0, D), jnp.linspace(0.5, -0.5, M)
    keys = jax.random.split(jax.random.key(3), num)
    return jnp.mean(jax.jit(jax.vmap(lambda k: loss(model, x, y, k, **options)))(keys)), x


@pytest.mark.parametrize(
    "options", [{"probe": "normal"}, {"mode": "vjp"}, {"normalisation": "sum"}, {"detach_forward": False}]
)
def test_jcp_is_the_dense_norm_in_expectation(options):
    model = mlp_pair()
    value, x = average(learn.jcp, model, **options)
    jac, inverse = jax.jacfwd(model.forward)(x), jax.jacfwd(model.inverse)(model.forward(x))
    dense = jnp.sum((inverse @ jac - jnp.eye(D)) ** 2) / (1 if options.get("normalisation") == "sum" else D)
    np.testing.assert_allclose(value, dense, rtol=0.03)


def test_jcp_is_the_composition_defect_that_is_reported():
    model, x, y = mlp_pair(), jnp.ones(D), jnp.ones(M)
    probes = diagnostics.rademacher(x, 3, key=KEY)
    defect = diagnostics.composition_defect(model.forward, model.inverse, x, probes)
    assert learn.jcp(model, x, y, KEY, num_probes=3) == defect.mean
    assert learn.jcp(model, x, y, KEY, num_probes=3, normalisation="sum") == defect.sum


def minimiser(loss, model, num_keys=3000):
    """The linear inverse that minimises the mean of a loss which is quadratic in it: one Newton step."""
    keys = jax.random.split(jax.random.key(5), num_keys)
    where = lambda m: m.inverse.arrays[0]
    x, y = jnp.zeros(D), jnp.zeros(M)

    def total(weight):
        return jnp.mean(jax.vmap(lambda k: loss(eqx.tree_at(where, model, weight), x, y, k))(keys))

    start = jnp.zeros((D, M))
    gradient, hessian = jax.jit(lambda w: (jax.grad(total)(w), jax.hessian(total)(w)))(start)
    return start - jnp.linalg.solve(hessian.reshape(D * M, -1), jnp.ravel(gradient)).reshape(D, M)


def test_data_target_teaches_the_tikhonov_operator():
    jac, model = linear_pair(rank=2)
    factor = jnp.asarray(np.random.default_rng(1).standard_normal((D, 3)))
    metric = diagnostics.DataMetric(factor, jnp.linspace(0.2, 0.5, M))
    loss = functools.partial(learn.jcp, target="data", metric=metric, num_probes=16, probe="normal")
    cov = factor @ factor.T
    tikhonov = cov @ jac.T @ jnp.linalg.inv(jac @ cov @ jac.T + jnp.diag(metric.noise_std**2))
    np.testing.assert_allclose(minimiser(loss, model), tikhonov, atol=0.05 * float(jnp.max(jnp.abs(tikhonov))))


def test_normal_equation_target_teaches_damped_gauss_newton():
    jac, model = linear_pair(rank=2)
    loss = functools.partial(learn.jcp, target="normal_equation", damping=0.3, num_probes=4)
    damped = jnp.linalg.solve(jac.T @ jac + 0.3 * jnp.eye(D), jac.T)
    np.testing.assert_allclose(minimiser(loss, model, 50), damped, atol=1e-9)  # exact: the loss vanishes there


@pytest.mark.slow
def test_gradient_stops_at_the_forward_map_where_it_should():
    model, x, y = mlp_pair(), jnp.ones(D), jnp.ones(M)

    def moved(loss):
        grads = jax.jit(jax.grad(lambda m: loss(m, x, y, KEY)))(model)
        size = lambda part: float(sum(jnp.sum(jnp.abs(leaf)) for leaf in jax.tree.leaves(part)))
        return size(grads.forward) > 0, size(grads.inverse) > 0

    metric = diagnostics.DataMetric(jnp.eye(D), 0.1)
    assert moved(learn.jcp) == (False, True)
    assert moved(functools.partial(learn.jcp, mode="vjp")) == (False, True)
    assert moved(functools.partial(learn.jcp, detach_forward=False)) == (True, True)
    assert moved(functools.partial(learn.jcp, target="data", metric=metric)) == (False, True)
    assert moved(functools.partial(learn.jcp, target="normal_equation")) == (False, True)
    assert moved(learn.reconstruction) == (False, True)
    assert moved(functools.partial(learn.reconstruction, source="prediction")) == (True, True)
    assert moved(functools.partial(learn.reconstruction, source="data")) == (False, True)
    assert moved(learn.forward_fit) == (True, False)
    assert moved(learn.cycle) == (True, True)


def test_values_of_the_pointwise_terms():
    model, x, y = mlp_pair(), jnp.linspace(0.0, 1.0, D), jnp.linspace(-1.0, 1.0, M)
    f, g = model.forward, model.inverse
    np.testing.assert_allclose(learn.forward_fit(model, x, y, KEY), np.mean((f(x) - y) ** 2))
    np.testing.assert_allclose(learn.reconstruction(model, x, y, KEY), np.mean((g(f(x)) - x) ** 2))
    np.testing.assert_allclose(learn.reconstruction(model, x, y, KEY, source="data"), np.mean((g(y) - x) ** 2))
    np.testing.assert_allclose(learn.cycle(model, x, y, KEY), np.mean((f(g(y)) - y) ** 2))
    noisy, _ = average(learn.cycle, learn.InversePair(lambda x: x, lambda y: y / 2), noise_std=0.3)
    np.testing.assert_allclose(noisy, np.mean(np.linspace(0.5, -0.5, M) ** 2 + 0.09) / 4, rtol=0.05)


def test_values_of_the_weight_terms():
    model, x, y = mlp_pair(), jnp.zeros(D), jnp.zeros(M)
    layers = lambda m: [m.forward.arrays[1], m.inverse.arrays[1]]
    model = eqx.tree_at(layers, model, [jnp.linspace(0.0, 1.0, 8), jnp.linspace(-2.0, 1.0, 8)])
    (w, b), (v, c) = model.first_affine()
    assert w is model.forward.fn.layers[0].weight
    assert b is model.forward.fn.layers[0].bias
    np.testing.assert_allclose(learn.spectral(model, x, y, KEY), np.mean((w.T @ w - np.eye(D)) ** 2))
    np.testing.assert_allclose(learn.bias_tie(model, x, y, KEY), np.mean((b + c) ** 2))
    np.testing.assert_allclose(learn.bias_mean_tie(model, x, y, KEY), (np.mean(b) + np.mean(c)) ** 2)
    with pytest.raises(ValueError, match="does not follow"):
        learn.composition(model, x, y, KEY)
    single = learn.InversePair(maps.MLP((D, M), key=KEY), maps.MLP((M, 2 * D, D), key=KEY))
    (w, b), (v, c) = single.first_affine()
    np.testing.assert_allclose(learn.composition(single, x, y, KEY), np.mean((v[:D] @ w - np.eye(D)) ** 2))
    np.testing.assert_allclose(learn.bias_tie(single, x, y, KEY), np.mean(b**2) + np.mean(c**2))
    with pytest.raises(ValueError, match="no affine layer"):
        learn.InversePair(lambda x: x, lambda y: y).first_affine()


def test_anchor_at_the_inverse():
    model, x, y = mlp_pair(), jnp.ones(D), jnp.linspace(-1.0, 1.0, M)
    there = learn.jcp(model, model.inverse(y), y, KEY)
    assert learn.jcp(model, x, y, KEY, anchor="inverse") == there
    assert learn.jcp(model, x, y, KEY) != there


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"target": "pinv"}, "'identity', 'data' or 'normal_equation'"),
        ({"target": "data"}, "needs metric"),
        ({"anchor": "zero"}, "'data' or 'inverse'"),
        ({"probe": "uniform"}, "rademacher"),
        ({"mode": "vjp", "target": "normal_equation"}, "mode='jvp'"),
        ({"normalisation": "max"}, "'mean' or 'sum'"),
    ],
)
def test_bad_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        learn.jcp(mlp_pair(), jnp.ones(D), jnp.ones(M), KEY, **options)
    with pytest.raises(ValueError, match="source"):
        learn.reconstruction(mlp_pair(), jnp.ones(D), jnp.ones(M), KEY, source="noise")


def test_float32_stays_float32_and_a_pair_crosses_plain_jit():
    model = mlp_pair(dtype=jnp.float32)
    x, y = jnp.ones(D, jnp.float32), jnp.ones(M, jnp.float32)
    metric = diagnostics.DataMetric(jnp.eye(D, dtype=jnp.float32), 0.1)

    @jax.jit
    def losses(model):
        terms = [learn.forward_fit, learn.reconstruction, learn.cycle, learn.spectral, learn.bias_tie, learn.jcp]
        terms += [functools.partial(learn.jcp, target="data", metric=metric)]
        terms += [functools.partial(learn.jcp, target="normal_equation")]
        return [term(model, x, y, KEY) for term in terms]

    assert all(value.dtype == jnp.float32 and bool(jnp.isfinite(value)) for value in losses(model))


def test_every_term_is_a_mean_or_a_sum():
    model, x, y = mlp_pair(), jnp.linspace(-1, 1, D), jnp.linspace(0, 1, M)
    single = learn.Deceptron(D, M, dtype=jnp.float64, key=KEY)
    sizes = {
        learn.forward_fit: (model, M),
        learn.reconstruction: (model, D),
        learn.cycle: (model, M),
        learn.spectral: (single, D * D),
        learn.composition: (single, D * D),
    }
    for loss, (pair, size) in sizes.items():
        total = loss(pair, x, y, KEY, normalisation="sum")
        np.testing.assert_allclose(total, size * loss(pair, x, y, KEY), rtol=1e-12, err_msg=loss.__name__)
        with pytest.raises(ValueError, match="normalisation='median' is not known; write 'mean' or 'sum'"):
            loss(pair, x, y, KEY, normalisation="median")
    biased = eqx.tree_at(lambda m: m.bias, single, jnp.ones(M))
    assert learn.bias_tie(biased, x, y, KEY) == 1
    assert learn.bias_tie(biased, x, y, KEY, normalisation="sum") == M
