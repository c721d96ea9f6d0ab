"""Lifted training: steps that never raise the energy, the limits that tie it to back-propagation, stages of `fit`."""

import ast
import os
import subprocess
import sys

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from pinv_jax import learn, lifted
from pinv_jax.lifted import _sweeps
from pinv_jax.lifted._network import power_iteration, random_direction

KEY = jax.random.key(0)


def mlp(activation=jax.nn.relu, final=None, sizes=(6, 8, 3), depth=2):
    options = {} if final is None else {"final_activation": final}
    return eqx.nn.MLP(sizes[0], sizes[2], sizes[1], depth, activation=activation, key=KEY, **options)


@pytest.fixture(scope="module")
def pairs():
    x = jax.random.normal(jax.random.key(1), (40, 6))
    y = jnp.stack([jnp.sin(x[:, 0]), x[:, 1] * x[:, 2], jnp.abs(x[:, 3])], axis=1)
    return x, y


@pytest.fixture(scope="module")
def classifier():
    """A network with a softmax head, inputs and one-hot targets."""
    layers = lifted.wrap(mlp()).layers
    network = lifted.LiftedNetwork([*layers[:-1], lifted.Layer(layers[-1].affine, lifted.Softmax())], jnp.zeros(6))
    x = jax.random.normal(jax.random.key(1), (20, 6))
    return network, x, jax.nn.one_hot(jax.random.randint(jax.random.key(2), (20,), 0, 3), 3)


def model_of(**options):
    return _sweeps.Model(options.get("penalty", lifted.Bregman()), options.get("sparsity", {}), None)


def test_at_the_forward_pass_the_energy_is_the_loss_and_hidden_weights_do_not_move(classifier):
    network, x, y = classifier
    hidden = _sweeps.forward_states(network, x)
    energy, _ = model_of().energies(network, x, hidden, y)
    logits = jax.vmap(network.layers[-1].preactivation)(hidden[-1], x)
    cross_entropy = jnp.mean(optax.softmax_cross_entropy(logits, y))
    np.testing.assert_allclose(energy, cross_entropy, rtol=0, atol=1e-10)
    np.testing.assert_allclose(jnp.mean(jax.vmap(lifted.network_loss, (None, 0, 0))(network, x, y)), energy, atol=1e-12)

    lift = eqx.filter_grad(lambda n: model_of().energies(n, x, hidden, y)[0])(network)
    back = eqx.filter_grad(lambda n: jnp.mean(jax.vmap(lifted.network_loss, (None, 0, 0))(n, x, y)))(network)
    assert all(float(jnp.max(jnp.abs(leaf))) == 0 for leaf in jax.tree.leaves(lift.layers[:-1]))
    for a, b in zip(jax.tree.leaves(lift.layers[-1]), jax.tree.leaves(back.layers[-1]), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-14)
    assert float(jnp.max(jnp.abs(back.layers[0].affine.weight))) > 1e-3


@pytest.mark.parametrize("penalty", [lifted.Bregman(), pytest.param(lifted.ClassicalLifted(), marks=pytest.mark.slow)])
def test_no_block_step_raises_the_energy(classifier, penalty):
    network, x, y = classifier
    model = model_of(penalty=penalty)
    params, frozen = eqx.partition(network, eqx.is_inexact_array)
    hidden = _sweeps.forward_states(network, x)
    energy = jax.jit(lambda p, h: model.energies(eqx.combine(p, frozen), x, h, y)[0])

    @eqx.filter_jit
    def state_block(params, hidden, index):
        network = eqx.combine(params, frozen)
        first = jax.tree.map(lambda a: a[0], hidden[index])
        bound, _ = _sweeps.state_bound(network.layers[index + 1], first, x[0], random_direction(first), 20)
        moved = _sweeps.state_step(model, network, index, x, hidden, y, 1 / bound)
        return (*hidden[:index], moved, *hidden[index + 1 :])

    @eqx.filter_jit
    def weight_block(params, hidden, index):
        states, weights = (x, *hidden, y), params.layers[index]
        zero = jnp.zeros(())
        problem = _sweeps.WeightProblem(frozen.layers[index], states[index], states[index + 1], x, weights, zero)
        bound, _ = problem.bound(weights, random_direction(weights), 20)
        moved = _sweeps.weight_step(problem, model.of(index, 3), weights, bound)
        return eqx.tree_at(lambda p: p.layers[index], params, moved)

    values = [float(energy(params, hidden))]
    for _ in range(20):
        for index in (1, 0):
            hidden = state_block(params, hidden, index)
            values.append(float(energy(params, hidden)))
        for index in range(3):
            params = weight_block(params, hidden, index)
            values.append(float(energy(params, hidden)))
    assert np.max(np.diff(values)) <= 1e-13
    assert values[-1] < 0.9 * values[0]


@pytest.mark.slow
def test_small_nudges_give_the_gradients_of_back_propagation():
    """With the loss weighted by a small number and states that minimise, lifted gradients tend to its."""
    network = lifted.wrap(mlp(activation=jnp.tanh))
    x, y = jax.random.normal(KEY, (6,)), jnp.asarray([0.3, -0.2, 0.5])
    nudge, tanh = 1e-3, lifted.Tanh()

    def smooth(network, hidden):
        """The energy without what the proximal maps take care of: the potentials of the states."""
        terms = zip(network.layers, (*hidden, y), network.preactivations(x, hidden), strict=True)
        first, second, last = [layer.activation.gap(jax.lax.stop_gradient(u), z) for layer, u, z in terms]
        return first + second + nudge * last

    @jax.jit
    def minimised(hidden):
        def sweep(_, hidden):
            for i in (1, 0):
                z = network.preactivations(x, hidden)[i]
                slope = jax.grad(lambda u, i=i, hidden=hidden: smooth(network, (*hidden[:i], u, *hidden[i + 1 :])))(
                    hidden[i]
                )
                moved = tanh.prox_potential(hidden[i] - 0.3 * slope + 0.3 * z, 0.3)
                hidden = (*hidden[:i], moved, *hidden[i + 1 :])
            return hidden

        return jax.lax.fori_loop(0, 3000, sweep, hidden)

    hidden = minimised(network.states(x)[:-1])
    lift = eqx.filter_grad(smooth)(network, hidden)
    back = eqx.filter_grad(lifted.network_loss)(network, x, y)
    for index in range(2):
        a, b = lift.layers[index].affine.weight / nudge, back.layers[index].affine.weight
        assert float(jnp.linalg.norm(a - b) / jnp.linalg.norm(b)) < 0.01


def test_states_under_a_one_norm_are_the_minimiser_of_the_block():
    """With a huge bound of the layer behind, the step's model is exact: compare with a search over each entry."""
    network = lifted.LiftedNetwork(
        [
            lifted.Layer(eqx.nn.Linear(4, 5, key=KEY), lifted.SoftThreshold(0.1)),
            lifted.Layer(eqx.nn.Linear(5, 2, key=KEY), lifted.Identity()),
        ],
        jnp.zeros(4),
    )
    x, y = jax.random.normal(KEY, (1, 4)), jnp.ones((1, 2))
    model = model_of(sparsity={1: 0.2})
    hidden = _sweeps.forward_states(network, x)
    moved = _sweeps.state_step(model, network, 0, x, hidden, y, 0.5)[0]

    z = network.layers[0].preactivation(x[0], x[0])
    slope = jax.grad(lambda u: network.layers[1].activation.gap(y[0], network.layers[1].preactivation(u, x[0])))(
        hidden[0][0]
    )
    grid = jnp.linspace(-3, 3, 600_001)
    for u, v, own, g in zip(moved, hidden[0][0], z, slope, strict=True):
        merit = 0.5 * grid**2 + 0.1 * jnp.abs(grid) - grid * own + 0.2 * jnp.abs(grid) + (grid - v) ** 2 + g * grid
        np.testing.assert_allclose(u, grid[jnp.argmin(merit)], atol=2e-5)


# Stages of fit --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def plain(pairs):
    network = lifted.wrap(mlp())
    stage = lifted.BlockDescent(network, 30, 40)
    return network, *learn.fit(network, {"lifted": stage}, pairs, key=KEY)


def test_block_descent_never_raises_the_energy_and_records_it(plain, pairs):
    network, trained, history = plain
    record = history["lifted"]
    assert np.max(np.diff(record.loss)) < 0
    assert set(record.terms) == {"penalty 1", "penalty 2", "penalty 3", "feasibility 1", "feasibility 2"}
    total = sum(record.terms[f"penalty {i}"] for i in (1, 2, 3))
    np.testing.assert_allclose(total, record.loss, rtol=1e-12)
    x, y = pairs
    loss = lambda n: float(jnp.mean(jax.vmap(lifted.network_loss, (None, 0, 0))(n, x, y)))
    assert loss(trained) < 0.8 * loss(network)


@pytest.mark.slow
@pytest.mark.parametrize("rule", ["nesterov", "heavy-ball"])
def test_momentum_is_faster_and_restarts_keep_it_from_rising(plain, pairs, rule):
    network, _, history = plain
    stage = lifted.BlockDescent(network, 30, 40, rule=rule)
    _, found = learn.fit(network, {"lifted": stage}, pairs, key=KEY)
    assert found["lifted"].loss[-1] < history["lifted"].loss[-1]
    assert np.max(np.diff(found["lifted"].loss)) <= 1e-12


@pytest.mark.slow
def test_weights_by_an_optimiser(plain, pairs):
    network, _, _ = plain
    stage = lifted.BlockDescent(network, 60, 40, rule=optax.adam(1e-2))
    _, found = learn.fit(network, {"lifted": stage}, pairs, key=KEY)
    assert found["lifted"].loss[-1] < 0.3 * found["lifted"].loss[0]


@pytest.mark.slow
def test_implicit_gradient_trains_resumes_and_hands_the_network_back(pairs, tmp_path):
    model = mlp()
    network = lifted.wrap(model)
    stages = {"lifted": lifted.ImplicitGradient(network, 20, 20, num_sweeps=5)}
    whole, history = learn.fit(network, stages, pairs, key=KEY, steps_per_round=10, checkpoint=tmp_path)

    class Stopped(Exception):
        pass

    def stop(name, done, total, loss):
        raise Stopped

    again = tmp_path / "again"
    with pytest.raises(Stopped):
        learn.fit(network, stages, pairs, key=KEY, steps_per_round=10, checkpoint=again, progress=stop)
    resumed, _ = learn.fit(network, stages, pairs, key=KEY, steps_per_round=10, checkpoint=again)
    for a, b in zip(jax.tree.leaves(whole), jax.tree.leaves(resumed), strict=True):
        np.testing.assert_array_equal(a, b)

    x, y = pairs
    back = lifted.unwrap(whole, model)
    assert isinstance(back, eqx.nn.MLP)
    before, after = (float(jnp.mean((jax.vmap(f)(x) - y) ** 2)) for f in (model, back))
    assert after < 0.6 * before
    assert history["lifted"].loss.shape == (20,)


@pytest.mark.slow
def test_identity_layers_in_closed_form_are_a_regression(pairs):
    x, y = pairs
    network = lifted.wrap(eqx.nn.Linear(6, 3, key=KEY))
    stage = lifted.BlockDescent(network, 1, 40, closed_form=True)
    found, _ = learn.fit(network, {"lifted": stage}, pairs, key=KEY)
    best = np.linalg.lstsq(np.concatenate([x, np.ones((40, 1))], axis=1), y, rcond=None)[0].T
    np.testing.assert_allclose(found.layers[0].affine.weight, best[:, :-1], atol=1e-8)
    np.testing.assert_allclose(found.layers[0].affine.bias, best[:, -1], atol=1e-8)


@pytest.mark.slow
def test_weights_under_a_proximal_map_become_sparse(pairs):
    x, y = pairs
    network = lifted.wrap(mlp())
    shrink = lambda w, step: jax.tree.map(lambda a: jnp.sign(a) * jnp.maximum(jnp.abs(a) - 0.02 * step, 0), w)
    stage = lifted.BlockDescent(network, 200, 40, weight_prox=shrink)
    found, _ = learn.fit(network, {"lifted": stage}, pairs, key=KEY)
    assert float(jnp.mean(found.layers[0].affine.weight == 0)) > 0.1


@pytest.mark.slow
def test_layers_that_are_alike_are_stacked_and_give_the_same_numbers(pairs):
    network = lifted.wrap(mlp(sizes=(6, 6, 6), depth=3))
    x, y = pairs[0], jnp.tile(pairs[1], (1, 2))
    params, frozen = eqx.partition(network, eqx.is_inexact_array)
    stage = lifted.BlockDescent(network, 1, 40)
    hidden = jax.tree.map(lambda a: a + 0.1, _sweeps.forward_states(network, x))
    bounds = stage.power_directions(params, frozen, x)
    together, _ = stage.weight_sweep(params, frozen, x, hidden, y, params, 0.0, bounds, 1)
    items = [
        (*problem, weights, direction)
        for problem, weights, direction in zip(
            stage.weight_problems(frozen, x, hidden, y, params, 0.0), params.layers, bounds.weights, strict=True
        )
    ]
    assert _sweeps.stacked_alike(items) == [[0, 1, 2], [3]]
    for index, (problem, penalty, weights, direction) in enumerate(items):
        bound, _ = problem.bound(weights, direction, 1)
        alone = _sweeps.weight_step(problem, penalty, weights, bound)
        for a, b in zip(jax.tree.leaves(alone), jax.tree.leaves(together.layers[index]), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-13)


@pytest.mark.slow
def test_convolutional_residual_and_proximal_networks_train():
    key = jax.random.key(3)
    fields = jax.random.normal(key, (24, 1, 4, 4))
    keys = jax.random.split(KEY, 3)
    conv = eqx.nn.Sequential(
        [
            eqx.nn.Conv2d(1, 4, 3, padding=1, key=keys[0]),
            eqx.nn.Lambda(jax.nn.relu),
            lifted.ResidualBlock(
                eqx.nn.Conv2d(4, 4, 3, padding=1, key=keys[1]), eqx.nn.Conv2d(4, 4, 3, padding=1, key=keys[2])
            ),
            eqx.nn.Lambda(jnp.ravel),
            eqx.nn.Linear(64, 1, key=keys[0]),
        ]
    )
    signals = jnp.cumsum(jax.random.normal(key, (24, 12)), axis=1)
    noisy = signals + 0.5 * jax.random.normal(keys[0], signals.shape)
    cases = [
        (lifted.wrap(conv, fields[0]), fields, jnp.mean(fields**2, axis=(1, 2, 3))[:, None], {}),
        (lifted.proximal_network(noisy[0], 16, 4, threshold=0.3, key=KEY), noisy, signals, {"num_backtracks": 10}),
    ]
    for network, x, y, options in cases:
        stage = lifted.ImplicitGradient(network, 30, 12, num_sweeps=5, **options)
        found, _ = learn.fit(network, {"lifted": stage}, (x, y), key=KEY)
        loss = lambda n, x=x, y=y: float(jnp.mean(jax.vmap(lifted.network_loss, (None, 0, 0))(n, x, y)))
        assert loss(found) < 0.9 * loss(network)
        if options:
            for layer in found.layers[:-1]:
                assert float(layer.step_size) * float(jnp.linalg.norm(layer.operator, 2)) ** 2 <= 1.01


def test_refusals(pairs):
    network = lifted.wrap(mlp())
    with pytest.raises(ValueError, match="tau=0"):
        lifted.ImplicitGradient(network, 1, 1, tau=0)
    with pytest.raises(ValueError, match="expected 'plain'"):
        lifted.BlockDescent(network, 1, 1, rule="newton")
    with pytest.raises(ValueError, match="hidden layers 1 to 2"):
        lifted.BlockDescent(network, 1, 1, sparsity={3: 0.1})
    with pytest.raises(ValueError, match="leaves zero"):
        lifted.BlockDescent(lifted.wrap(mlp(activation=jax.nn.sigmoid)), 1, 1, sparsity={1: 0.1})
    with pytest.raises(ValueError, match="MACQP"):
        lifted.BlockDescent(network, 1, 1, sparsity={1: 0.1}, penalty=lifted.MACQP(1.0))
    sampler = lambda key: (jax.random.normal(key, (6,)), jnp.zeros(3))
    with pytest.raises(ValueError, match="not a sampler"):
        learn.fit(network, {"a": lifted.BlockDescent(network, 1, 1)}, sampler, key=KEY)
    with pytest.raises(ValueError, match="learning_rate"):
        lifted.ImplicitBackprop(1, 1, learning_rate=-1.0)


@pytest.mark.slow
def test_implicit_steps_by_back_propagation(pairs):
    network = lifted.wrap(mlp())
    _, history = learn.fit(network, {"bp": lifted.ImplicitBackprop(30, 20)}, pairs, key=KEY)
    assert history["bp"].loss[-1] < 0.7 * history["bp"].loss[0]
    norm, _ = power_iteration(lambda v: 2 * v, jnp.ones(3), jnp.ones(3), 2)
    np.testing.assert_allclose(norm, 2.1, rtol=1e-12)


SHARDED = """
import equinox as eqx, jax, jax.numpy as jnp, numpy as np
jax.config.update("jax_enable_x64", True)
from pinv_jax import learn, lifted

network = lifted.wrap(eqx.nn.MLP(6, 6, 6, 8, activation=jax.nn.relu, key=jax.random.key(0)))
x = jax.random.normal(jax.random.key(1), (16, 6))
for count in (None, 1, 2, 4, 8):
    mesh = None if count is None else jax.sharding.Mesh(np.asarray(jax.devices()[:count]), ("layers",))
    stage = lifted.ImplicitGradient(network, 4, 8, num_sweeps=2, mesh=mesh)
    found, history = learn.fit(network, {"lifted": stage}, (x, jnp.sin(x)), key=jax.random.key(2))
    leaves = np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(eqx.filter(found, eqx.is_array))])
    print(count, repr(leaves.tolist()))
"""


@pytest.mark.slow
def test_layers_spread_over_devices_give_the_same_numbers():
    flags = {"XLA_FLAGS": "--xla_force_host_platform_device_count=8", "JAX_PLATFORMS": "cpu"}
    done = subprocess.run([sys.executable, "-c", SHARDED], env=os.environ | flags, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    rows = {line.split(" ", 1)[0]: ast.literal_eval(line.split(" ", 1)[1]) for line in done.stdout.splitlines()}
    assert set(rows) == {"None", "1", "2", "4", "8"}
    for count in ("1", "2", "4", "8"):
        np.testing.assert_allclose(rows[count], rows["None"], rtol=1e-10, atol=1e-12)
