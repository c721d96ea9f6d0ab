"""Penalties of a lifted layer: gradients, proximal maps, zero sets, and which of them are the same."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import key

from pinv_jax import lifted

PENALTIES = {"bregman": lifted.Bregman(), "mac-qp": lifted.MACQP(1.7), "classical": lifted.ClassicalLifted()}
ACTIVATIONS = {
    "relu": lifted.ReLU(),
    "tanh": lifted.Tanh(),
    "soft threshold": lifted.SoftThreshold(0.4),
    "softmax": lifted.Softmax(),
}
each = pytest.mark.parametrize("penalty", PENALTIES)
slow = pytest.mark.slow
on = pytest.mark.parametrize(
    "name", ["relu", "tanh", pytest.param("soft threshold", marks=slow), pytest.param("softmax", marks=slow)]
)
NUM, SIZE = 60, 4


@functools.cache
def draws(name):
    keys = jax.random.split(key(8), 3)
    y = jax.vmap(ACTIVATIONS[name])(2 * jax.random.normal(keys[0], (NUM, SIZE)))
    return y, *(2 * jax.random.normal(k, (NUM, SIZE)) for k in keys[1:])


@jax.jit
def measure(penalty, activation, y, z, v):
    def one(y, z, v):
        step = 0.7
        value = functools.partial(penalty.value, activation)
        objective = lambda u: step * value(u, z) + 0.5 * jnp.sum((u - v) ** 2)
        best = penalty.prox(activation, v, z, step)
        p = activation(z)
        moved = jax.vmap(lambda e: value(y, z + 1e-5 * e) - value(y, z - 1e-5 * e))(jnp.eye(SIZE)) / 2e-5
        slope = penalty.slope(activation, y, z)
        # Every penalty is convex in the state, so that the objective grows at least like a square from its minimiser.
        others = jnp.stack([activation.project(u) for u in (y, p, best + 0.1 * (y - best), best + 1e-3 * (p - best))])
        growth = jax.vmap(lambda u: objective(u) - objective(best) - 0.5 * jnp.sum((u - best) ** 2))(others)
        return {
            "value": value(y, z),
            "at the activation": value(p, z),
            "away": value(activation.project(p + 0.3 * jnp.eye(SIZE)[0]), z),
            "slope": jnp.max(jnp.abs(slope - moved)),
            "derivative": jnp.max(jnp.abs(slope - jax.grad(value, 1)(y, z))),
            "growth": jnp.min(growth),
            "lifted": jnp.max(jnp.abs(slope - (p - y))),
        }

    return jax.vmap(one)(y, z, v)


@each
@on
def test_gradient_and_proximal_map(penalty, name):
    got = measure(PENALTIES[penalty], ACTIVATIONS[name], *draws(name))
    assert jnp.quantile(got["slope"], 0.9) <= 1e-8  # a kink may lie between two points
    assert jnp.max(got["derivative"]) <= 1e-12
    assert jnp.min(got["growth"]) >= -1e-12
    if penalty != "classical":  # which is not zero there, and for the softmax negative
        assert jnp.all(got["value"] >= 0)
        assert jnp.max(got["at the activation"]) <= 1e-12
    if penalty == "bregman":
        assert jnp.max(got["lifted"]) <= 1e-15
        assert jnp.mean(got["away"] > 1e-4) > 0.4


def test_the_penalty_of_lpom_is_the_bregman_one():
    for name in ("relu", "tanh", "soft threshold"):
        activation, (y, z, _) = ACTIVATIONS[name], draws(name)

        def lpom(y, z, activation=activation):
            psi = activation.potential(y) - 0.5 * jnp.sum(y**2)
            return psi + (activation.conjugate(z) - 0.5 * jnp.sum(z**2)) + 0.5 * jnp.sum((y - z) ** 2)

        value = functools.partial(lifted.Bregman().value, activation)
        np.testing.assert_allclose(jax.vmap(value)(y, z), jax.vmap(lpom)(y, z), atol=1e-12)


def test_the_classical_penalty_is_biased():
    relu, (y, z, _) = lifted.ReLU(), draws("relu")
    classical, bregman = (
        jax.vmap(functools.partial(p.value, relu)) for p in (PENALTIES["classical"], lifted.Bregman())
    )
    extra = 0.5 * jnp.sum(jnp.minimum(z, 0) ** 2, axis=1)
    np.testing.assert_allclose(classical(y, z) - bregman(y, z), extra, atol=1e-12)
    np.testing.assert_allclose(classical(jax.nn.relu(z), z), extra, atol=1e-12)
    direct = 0.5 * jnp.sum((y - z) ** 2, axis=1)
    np.testing.assert_allclose(classical(y, z), direct, atol=1e-12)


def test_the_quadratic_penalty_is_dead_where_the_activation_is():
    y, z = jnp.asarray([1.0, 0.5]), jnp.asarray([-1.0, -2.0])
    assert jnp.all(PENALTIES["mac-qp"].slope(lifted.ReLU(), y, z) == 0)
    assert jnp.all(PENALTIES["bregman"].slope(lifted.ReLU(), y, z) == -y)


def test_off_the_domain_the_lifted_penalties_are_infinite():
    y, z = jnp.asarray([-1.0]), jnp.asarray([0.5])
    assert lifted.Bregman().value(lifted.ReLU(), y, z) == jnp.inf
    assert lifted.ClassicalLifted().value(lifted.ReLU(), y, z) == jnp.inf
    assert lifted.MACQP().value(lifted.ReLU(), y, z) == 1.125


@each
def test_products_and_single_precision(penalty):
    activation = lifted.Product((lifted.ReLU(), lifted.Tanh()))
    half = lambda *values: jnp.asarray(values, jnp.float32)
    y, z, v = (half(1.0, 0.0), half(0.2)), (half(0.5, -1.0), half(0.3)), (half(-1.0, 2.0), half(4.0))
    penalty = PENALTIES[penalty]
    value = jax.jit(functools.partial(penalty.value, activation))(y, z)
    parts = [penalty.value(a, *each) for a, *each in zip(activation.activations, y, z, strict=True)]
    assert value.dtype == jnp.float32
    np.testing.assert_allclose(value, sum(parts), rtol=1e-6)
    for method in (penalty.slope(activation, y, z), penalty.prox(activation, v, z, 0.5)):
        assert [(part.shape, part.dtype) for part in method] == [((2,), jnp.float32), ((1,), jnp.float32)]
    np.testing.assert_allclose(
        penalty.prox(activation, v, z, 0.5)[1], penalty.prox(lifted.Tanh(), v[1], z[1], 0.5), rtol=1e-6
    )


def test_a_weight_that_is_not_positive():
    with pytest.raises(ValueError, match="expected weight > 0"):
        lifted.MACQP(0.0)


def test_the_weight_may_change_without_another_trace():
    traces = []

    @jax.jit
    def value(penalty, y, z):
        traces.append(None)
        return penalty.value(lifted.ReLU(), y, z)

    y, z = jnp.ones(2), jnp.zeros(2)
    assert [float(value(lifted.MACQP(w), y, z)) for w in (1.0, 10.0)] == [1.0, 10.0]
    assert len(traces) == 1
