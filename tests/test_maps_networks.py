"""Networks, chains and wrappers beyond the contracts: initial weights, formulas, refusals."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import key, matrix

from pinv_jax import maps


@pytest.mark.parametrize("slope", [0.1, 5**0.5])
def test_kaiming_uniform_bound_and_zero_bias(slope):
    layer = maps.Linear(50, 80, init=maps.kaiming_uniform(slope), key=key())
    bound = (6 / ((1 + slope**2) * 50)) ** 0.5
    assert layer.weight.shape == (80, 50)
    largest = float(jnp.max(jnp.abs(layer.weight)))
    assert 0.99 * bound < largest <= bound
    np.testing.assert_allclose(jnp.std(layer.weight), bound / 3**0.5, rtol=0.05)
    np.testing.assert_array_equal(layer.bias, jnp.zeros(80))


def test_layers_start_differently():
    net = maps.MLP((4, 4, 4), key=key())
    assert not bool(jnp.any(net.layers[0].weight == net.layers[1].weight))


def test_mlp_formula_with_weights_put_in_by_hand():
    w1, w2 = matrix(6, 4, jnp.float64), matrix(3, 6, jnp.float64, seed=1)
    b1, b2 = jnp.linspace(-1, 1, 6), jnp.linspace(0, 1, 3)
    net = maps.MLP((4, 6, 3), output_activation="tanh", key=key())
    where = lambda n: (n.layers[0].weight, n.layers[0].bias, n.layers[1].weight, n.layers[1].bias)
    net = eqx.tree_at(where, net, (w1, b1, w2, b2))
    x = jnp.array([1.0, -2.0, 0.5, 3.0])
    hidden = np.asarray(w1 @ x + b1)
    hidden = np.where(hidden > 0, hidden, 0.1 * hidden)
    np.testing.assert_allclose(net(x), np.tanh(w2 @ hidden + b2), rtol=1e-14)


def test_linear_skip_starts_affine():
    net = maps.LinearSkipMLP((4, 6, 3), key=key())
    x = jax.random.normal(key(1), (4,))
    np.testing.assert_array_equal(net(x), net.skip(x))
    gradient = jax.grad(lambda n: jnp.sum(n(x) ** 2))(net)
    assert bool(jnp.any(gradient.network.layers[-1].weight != 0))  # zero weights, but not a dead start


def test_callable_activation_and_names():
    x = jnp.array([0.3, -0.4])
    named = maps.MLP((2, 3, 1), activation="tanh", key=key())
    passed = maps.MLP((2, 3, 1), activation=jnp.tanh, key=key())
    np.testing.assert_array_equal(named(x), passed(x))
    for name in maps.ACTIVATIONS:
        assert bool(jnp.isfinite(maps.MLP((2, 3, 1), activation=name, key=key())(x)).all())


def test_an_ensemble_by_vmap():
    keys = jax.random.split(key(), 3)
    nets = jax.vmap(lambda k: maps.MLP((2, 3, 1), key=k))(keys)
    ys = jax.vmap(lambda net: net(jnp.ones(2)))(nets)
    np.testing.assert_allclose(ys, jnp.stack([maps.MLP((2, 3, 1), key=k)(jnp.ones(2)) for k in keys]), rtol=1e-14)


def test_chain_applies_in_order():
    chain = maps.Chain([maps.LinearMap(2 * jnp.eye(2)), lambda x: x + 1, maps.LinearMap(jnp.array([[1.0, 1.0]]))])
    np.testing.assert_allclose(chain(jnp.array([1.0, 2.0])), [8.0])
    assert chain.out_structure().shape == (1,)


def test_surjective_chain_of_linear_maps_has_the_right_inverse_of_the_product():
    a, b = matrix(4, 6, jnp.float64), matrix(2, 4, jnp.float64, seed=1)
    chain = maps.SurjectiveChain([maps.LinearSurjection(a), maps.LinearSurjection(b)])
    y = jnp.array([1.0, -1.0])
    np.testing.assert_allclose(chain.pinv(y), np.linalg.pinv(a) @ np.linalg.pinv(b) @ y, atol=1e-13)
    first, second = chain.section(y)
    assert (first.shape, second.shape) == ((2,), (2,))


def test_normalised_formula():
    f = maps.LinearMap(jnp.array([[2.0, 0.0], [0.0, 4.0]]))
    mean, std = jnp.array([1.0, 2.0]), jnp.array([2.0, 0.5])
    x = jnp.array([0.5, -1.0])
    np.testing.assert_allclose(maps.Normalised(f, mean, std)(x), [0.0, -12.0])
    u = (x - 3.0) / 0.25
    both = maps.Normalised(f, mean, std, jnp.full(2, 3.0), jnp.full(2, 0.25))
    np.testing.assert_allclose(both(u), [0.0, -12.0], atol=1e-14)


def test_ravelled_round_trip():
    example = {"image": jnp.arange(6.0).reshape(2, 3), "scale": jnp.asarray(2.0)}
    f = maps.Ravelled(lambda tree: (tree["image"].T * tree["scale"], jnp.sum(tree["image"])), example)
    flat = f.ravel(example)
    assert flat.shape == f.in_structure().shape == (7,)
    back = f.unravel(flat)
    assert jax.tree.all(jax.tree.map(lambda a, b: bool(jnp.all(a == b)), back, example))
    image, total = f.unravel_output(f(flat))
    np.testing.assert_allclose(image, 2 * example["image"].T)
    assert total == 15.0


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: maps.MLP((3,), key=key()), "at least two numbers"),
        (lambda: maps.MLP((3, 2), activation="swishy", key=key()), "Known are identity, leaky_relu"),
        (lambda: maps.Chain([]), "no layers"),
        (lambda: maps.Chain([jnp.tanh]), "Ravelled"),
        (lambda: maps.Chain([maps.Linear(2, 3, key=key()), maps.Linear(2, 3, key=key())]), "Layer 1 of the chain"),
        (
            lambda: maps.Chain([maps.Linear(2, 3, key=key()), maps.LeakyReLU((3,), dtype=jnp.float32)]),
            "float32, but the layers before it return",
        ),
        (lambda: maps.SurjectiveChain([maps.LinearMap(jnp.eye(2))]), "Use Chain"),
        (lambda: maps.Normalised(maps.LinearMap(jnp.eye(2)), jnp.zeros((1, 2)), jnp.ones(2)), "y_mean of shape"),
        (lambda: maps.Normalised(maps.LinearMap(jnp.eye(2)), jnp.zeros(2), jnp.ones(2), jnp.ones(2)), "or neither"),
        (lambda: maps.Ravelled(lambda t: t, {"a": jnp.ones(2), "b": jnp.arange(3)}), "one real float dtype"),
        (lambda: maps.Ravelled(lambda t: t, jnp.ones(2, complex)), "real and imaginary"),
        (lambda: maps.Ravelled(lambda t: t > 0, jnp.ones(2)), "the output of fn"),
    ],
)
def test_bad_input_is_refused(build, message):
    with pytest.raises(ValueError, match=message):
        build()
