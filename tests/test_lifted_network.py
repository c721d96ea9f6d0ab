"""Lifted networks: the same numbers as the networks they wrap, penalties that vanish on their states, and refusals."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pinv_jax import lifted, maps

KEY = jax.random.key(0)


def conv_net():
    keys = jax.random.split(KEY, 3)
    return eqx.nn.Sequential(
        [
            eqx.nn.Conv2d(1, 3, 3, padding=1, key=keys[0]),
            eqx.nn.Lambda(jax.nn.relu),
            eqx.nn.AvgPool2d(2, 2),
            eqx.nn.Conv2d(3, 2, 3, padding=1, key=keys[1]),
            eqx.nn.Lambda(jnp.tanh),
            eqx.nn.Lambda(jnp.ravel),
            eqx.nn.Linear(8, 3, key=keys[2]),
        ]
    )


def residual_net():
    keys = jax.random.split(KEY, 4)
    blocks = [
        lifted.ResidualBlock(eqx.nn.Linear(5, 7, key=keys[i]), eqx.nn.Linear(7, 5, key=keys[i + 1]), "tanh")
        for i in (0, 2)
    ]
    return eqx.nn.Sequential([*blocks, eqx.nn.Linear(5, 2, key=keys[0])])


NETWORKS = {
    "eqx MLP": lambda: (eqx.nn.MLP(5, 3, 6, 2, activation=jax.nn.relu, key=KEY), (5,)),
    "eqx MLP, sigmoid at the end": lambda: (
        eqx.nn.MLP(5, 3, 6, 1, activation=jnp.tanh, final_activation=jax.nn.sigmoid, key=KEY),
        (5,),
    ),
    "convolutional": lambda: (conv_net(), (1, 4, 4)),
    "residual": lambda: (residual_net(), (5,)),
    "maps.MLP": lambda: (maps.MLP((5, 6, 3), activation="leaky_relu", output_activation="tanh", key=KEY), (5,)),
    "maps.ResidualCNN": lambda: (
        maps.ResidualCNN((3, 4), width=2, num_blocks=2, output_activation="tanh", key=KEY),
        (3, 4),
    ),
    "maps.ResidualCNN, channels": lambda: (
        maps.ResidualCNN((5,), channels=(2, 3), width=2, num_blocks=1, key=KEY),
        (2, 5),
    ),
}


@pytest.mark.parametrize(
    "name",
    [name if name == "eqx MLP" else pytest.param(name, marks=pytest.mark.slow) for name in NETWORKS],
)
def test_wrapped_networks_are_the_networks_and_come_back(name):
    model, shape = NETWORKS[name]()
    x = jax.random.normal(jax.random.key(1), shape)
    network = lifted.wrap(model, x)
    np.testing.assert_allclose(network(x), model(x), rtol=1e-12, atol=1e-14)
    hidden = network.states(x)[:-1]
    assert float(jnp.max(lifted.penalties(network, x, hidden, network(x)))) < 1e-12
    assert float(jnp.max(lifted.feasibility(network, x, hidden), initial=0)) < 1e-14

    doubled = jax.tree.map(lambda a: 2 * a if eqx.is_inexact_array(a) else a, network)
    back = lifted.unwrap(doubled, model)
    assert jax.tree.structure(back) == jax.tree.structure(model)
    np.testing.assert_allclose(back(x), doubled(x), rtol=1e-12)
    assert not np.allclose(back(x), model(x))


def test_penalties_see_states_that_are_not_those_of_the_network():
    model, shape = NETWORKS["eqx MLP"]()
    network, x = lifted.wrap(model), jax.random.normal(jax.random.key(1), shape)
    hidden = network.states(x)[:-1]
    wrong = (hidden[0] + 0.1, hidden[1])
    each = lifted.penalties(network, x, wrong, network(x))
    assert float(each[0]) > 1e-4
    np.testing.assert_allclose(lifted.feasibility(network, x, wrong)[0], 0.1 * 6**0.5, rtol=1e-12)


@pytest.mark.parametrize(
    ("layers", "match"),
    [
        ([eqx.nn.Linear(4, 4, key=KEY), eqx.nn.Lambda(jax.nn.gelu)], "not affine"),
        ([eqx.nn.LayerNorm(4), eqx.nn.Lambda(jax.nn.relu)], "not affine"),
        ([eqx.nn.Linear(4, 4, key=KEY), eqx.nn.Dropout(0.5)], "Dropout"),
        ([eqx.nn.BatchNorm(4, axis_name="batch", mode="batch")], "carries a state"),
    ],
)
def test_layers_that_cannot_be_lifted_are_refused(layers, match):
    with pytest.raises(ValueError, match=match):
        lifted.wrap(eqx.nn.Sequential(layers), jnp.zeros(4))


def test_models_that_are_not_understood_are_refused():
    with pytest.raises(ValueError, match="not understood"):
        lifted.wrap(lambda x: x, jnp.zeros(3))
    with pytest.raises(ValueError, match="pass structure=x"):
        lifted.wrap(conv_net())
    with pytest.raises(ValueError, match="gelu"):
        lifted.wrap(eqx.nn.MLP(2, 2, 2, 1, activation=jax.nn.gelu, key=KEY))
    with pytest.raises(ValueError, match="scan"):
        lifted.wrap(eqx.nn.MLP(2, 2, 2, 3, activation=jax.nn.relu, scan=True, key=KEY))
    with pytest.raises(ValueError, match="at least one layer"):
        lifted.LiftedNetwork([], jnp.zeros(3))
    with pytest.raises(ValueError, match="unwrap"):
        lifted.unwrap(lifted.wrap(eqx.nn.Linear(2, 3, key=KEY)), eqx.nn.Linear(3, 2, key=KEY))
    with pytest.raises(ValueError, match="layer 1 does not take"):
        lifted.LiftedNetwork(
            [
                lifted.Layer(eqx.nn.Linear(2, 3, key=KEY), lifted.ReLU()),
                lifted.Layer(eqx.nn.Linear(2, 3, key=KEY), lifted.ReLU()),
            ],
            jnp.zeros(2),
        )


# The unfolded denoiser ------------------------------------------------------------------------------------------------


def test_one_operator_in_all_layers_converges_to_the_denoised_signal():
    x = jax.random.normal(jax.random.key(2), (6,))
    layers: Any = lifted.proximal_network(x, 8, 2, threshold=0.1, key=KEY).layers
    first, step, point = layers
    u = jax.jit(lambda u: jax.lax.fori_loop(0, 2000, lambda _, u: step.activation(step.preactivation(u, x)), u))(
        first.activation(first.preactivation(x, x))
    )
    inner = point.operator @ point.preactivation(u, x)
    # the optimality conditions of min |y - x|^2 / 2 + 0.1 |L y|_1: y = x - L' u with u in 0.1 sign(L y)
    np.testing.assert_allclose(jnp.sum(u * inner), 0.1 * jnp.sum(jnp.abs(inner)), rtol=1e-6)
    assert float(jnp.max(jnp.abs(u))) <= 0.1


def test_derivative_in_the_operator_is_that_of_the_formula():
    keys = jax.random.split(KEY, 4)
    operator, x = jax.random.normal(keys[0], (7, 5)), jax.random.normal(keys[1], (5,))
    u, target = jax.random.normal(keys[2], (7,)), 0.1 * jax.random.uniform(keys[3], (7,), minval=-1)
    network = lifted.proximal_network(x, 7, 2, threshold=0.1, key=KEY)
    layer = eqx.tree_at(lambda a: a.operator, network.layers[1], operator).refreshed()
    tau = layer.step_size
    found = eqx.filter_grad(lambda layer: layer.activation.gap(target, layer.preactivation(u, x)))(layer)
    r = layer.activation(layer.preactivation(u, x)) - target
    by_hand = -tau * (jnp.outer(r, operator.T @ u - x) + jnp.outer(u, operator.T @ r))
    np.testing.assert_allclose(found.operator, by_hand, rtol=0, atol=1e-10)
    assert float(found.step_size) == 0
    norm = float(jnp.linalg.norm(operator, 2))
    assert 0.8 / norm**2 <= float(tau) <= 1.01 / norm**2


def test_operator_norms():
    matrix = jax.random.normal(KEY, (20, 30))
    norm = lifted.operator_norm(lambda v: matrix @ v + 1, jnp.zeros(30), num_steps=60)
    assert 1 <= float(norm / jnp.linalg.norm(matrix, 2)) <= 1.06
