"""Inversion of shallow, residual and deep networks, and what it is compared with: figures, oracles, contracts."""

import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from cases import key, matrix

import pinv_jax as pj
from pinv_jax import lifted, solvers
from pinv_jax.lifted import (
    L1,
    BlockInversion,
    Box,
    BregmanIteration,
    ExplicitPrimalDual,
    FullSplitting,
    HalfSquaredNorm,
    Layer,
    LiftedNetwork,
    Perceptron,
    Proximal,
    ResidualBlock,
    ResidualFlow,
    ResidualSplitting,
    ShallowDescent,
    ShallowNetwork,
    TotalVariation,
    VariationalDescent,
    proximal_network,
    shallow_interpolant,
    total_variation_prox,
    wrap,
)

RESULTS = pj.RESULTS


def rises(solution):
    """The largest rise of the objective between two steps."""
    values = solution.history.objective
    return float(jnp.max(jnp.diff(values[jnp.isfinite(values)])))


class Matrix(eqx.Module):
    values: jax.Array

    def __call__(self, u):
        return self.values @ u


# Shallow networks -----------------------------------------------------------------------------------------------------


@functools.cache
def relus(dtype=jnp.float64):
    """25 ReLUs that interpolate a monotone function with slopes between 0.1 and 4.9."""
    return shallow_interpolant(lambda u: u * (2 * u / 3) ** (3 * u), jnp.linspace(0, 1.5, 26, dtype=dtype))


def test_the_interpolant_is_the_published_one():
    network = relus()
    np.testing.assert_allclose(
        network.outer[:6], [0.560236, -0.314829, -0.096323, -0.034691, -0.008894, 0.004516], atol=1e-6
    )
    assert abs(float(network.outer[-1]) - 1.046277) < 1e-6
    assert int(jnp.sum(network.outer < 0)) == 4
    nodes = jnp.linspace(0, 1.5, 26)
    np.testing.assert_allclose(jax.vmap(network)(nodes), nodes * (2 * nodes / 3) ** (3 * nodes), atol=1e-14)
    shifted = shallow_interpolant(jnp.cos, nodes)  # which is not zero at the first node
    np.testing.assert_allclose(jax.vmap(shifted)(nodes), jnp.cos(nodes), atol=1e-14)


@pytest.mark.parametrize(
    ("alpha", "num_sweeps", "error"), [(1e-4, 30_000, 4.07e-3), (1e-6, 100_000, 4.12e-5), (0.0, 100_000, None)]
)
def test_25_relus_are_inverted_to_the_known_accuracy(alpha, num_sweeps, error):
    targets = 0.05 * jnp.arange(1, 31)
    problem = pj.Problem(relus(), jax.vmap(relus())(targets))
    solver = ShallowDescent(alpha, rtol=0.0)
    solution = pj.solve_batch(problem, solver, jnp.full(30, 0.75), max_steps=num_sweeps)
    found = float(jnp.max(jnp.abs(solution.value - targets)))
    if error is None:
        assert found < 1e-10
    else:
        assert abs(found - error) < 0.05 * error


def vector_network():
    rng = np.random.default_rng(0)
    return ShallowNetwork(rng.normal(size=(6, 2)), rng.normal(size=(6, 3)), rng.normal(size=6), lifted.Tanh())


def test_a_sweep_sets_hidden_values_to_minimisers_and_never_raises_the_energy():
    network, data = vector_network(), jnp.asarray([0.3, -0.8])
    solver = ShallowDescent(1e-2, rtol=0.0)
    problem = pj.Problem(network, data)
    solution = pj.solve(problem, solver, jnp.zeros(3), max_steps=200, history=201)
    assert rises(solution) < 1e-14
    _, state = jax.jit(lambda x: solver.step(problem, *solver.init(problem, x)))(jnp.ones(3))

    def energy(last):  # of the hidden value moved last, at the preactivations it was moved for
        hidden = state.hidden.at[-1].set(last)
        residual = network.readout(hidden) - data
        return 0.5 * jnp.sum(residual**2) + network.activation.gap(hidden, network.preactivation(jnp.ones(3)))

    assert abs(float(jax.jit(jax.grad(energy))(state.hidden[-1]))) < 1e-12
    shallow = pj.solve(
        pj.Problem(relus(), relus()(jnp.asarray(1.1))),
        ShallowDescent(1e-4),
        jnp.asarray(0.75),
        max_steps=300,
        history=301,
    )
    assert rises(shallow) < 1e-14


# Residual networks ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def cubic():
    """20 blocks of 4 ReLUs fitted to `u^3 + u`."""
    blocks, units = 20, 4
    keys = jax.random.split(key(), 2)
    w = 0.3 * jax.random.normal(keys[0], (blocks, units, 1), jnp.float64)
    # Kinks on the outer side of the origin, where the slope is one.
    b = -jnp.abs(w[..., 0]) * jax.random.uniform(keys[1], (blocks, units), jnp.float64, 0.0, 1.5)
    xs = jnp.linspace(-1, 1, 201)[:, None]
    ys = xs**3 + xs
    optimiser = optax.adam(optax.cosine_decay_schedule(1e-2, 4000))

    def update(carry, _):
        flow, state = carry
        loss, slope = jax.value_and_grad(lambda f: jnp.mean((jax.vmap(f)(xs) - ys) ** 2))(flow)
        change, state = optimiser.update(slope, state)
        return (eqx.apply_updates(flow, change), state), loss

    start = ResidualFlow(w, b)
    run = jax.jit(lambda flow: jax.lax.scan(update, (flow, optimiser.init(flow)), length=4000))
    (flow, _), losses = run(start)
    assert losses[-1] < 1e-3 * losses[0]
    assert losses[-1] < 2e-4
    return flow


@pytest.mark.slow
def test_the_20_blocks_are_inverted_exactly(cubic):
    targets = jnp.linspace(-0.95, 0.95, 39)[:, None]
    problem = pj.Problem(cubic, jax.vmap(cubic)(targets))
    solution = pj.solve_batch(problem, ResidualSplitting(rtol=0.0), jnp.zeros_like(targets), max_steps=10_000)
    assert float(jnp.max(jnp.abs(solution.value - targets))) < 1e-8
    stopped = pj.solve_batch(problem, ResidualSplitting(rtol=1e-9), jnp.zeros_like(targets), max_steps=10_000)
    assert bool(jnp.all(stopped.success))
    assert int(jnp.max(stopped.stats.num_steps)) < 3000
    assert float(jnp.max(jnp.abs(stopped.value - targets))) < 1e-6


def test_certificates_of_flows(cubic):
    certificate = cubic.certificate(1.0)
    assert certificate.holds
    assert abs(certificate.smallest_eigenvalue - 5.3354e-3) < 1e-7
    assert abs(certificate.smallest_rho - 187.43) < 0.01
    assert cubic.certificate(20 / 21).holds
    assert abs(cubic.certificate(20 / 21).smallest_eigenvalue) < 1e-12
    assert not cubic.certificate(0.9).holds
    minus = ResidualFlow(cubic.weights, cubic.biases, sign=-1).certificate(1.0)
    assert not minus.holds
    assert "no certificate" in minus.reason
    general = ResidualFlow(cubic.weights, cubic.biases, returns=2 * jnp.swapaxes(cubic.weights, 1, 2))
    assert "no certificate" in general.certificate(1.0).reason


def small_flow(kind="plus", dtype=jnp.float64):
    rng = np.random.default_rng(3)
    w, b = (jnp.asarray(0.4 * rng.normal(size=shape), dtype) for shape in ((5, 3, 2), (5, 3)))
    if kind == "minus":
        return ResidualFlow(0.4 * w, b, lifted.Tanh(), sign=-1)
    returns = jnp.asarray(0.2 * rng.normal(size=(5, 2, 3)), dtype) if kind == "general" else None
    return ResidualFlow(w, b, lifted.Tanh(), returns=returns)


def test_the_convex_problem_has_one_solution_whatever_the_start_or_the_steps():
    flow = small_flow()
    problem = pj.Problem(flow, jnp.asarray([0.4, -1.0]))
    run = lambda start, **options: pj.solve(
        problem, ResidualSplitting(2.0, 0.05, rtol=1e-10, **options), jnp.asarray(start), max_steps=20_000
    )
    first, second, third = run([0.0, 0.0]), run([5.0, -7.0]), run([0.0, 0.0], dual_step=2.0)
    assert bool(first.success & second.success & third.success)
    np.testing.assert_allclose(second.value, first.value, atol=1e-7)
    np.testing.assert_allclose(third.value, first.value, atol=1e-7)
    # A regulariser costs data fit, here a little.
    assert 1e-4 < float(first.stats.residual_rms) < 0.2


def test_a_data_weight_without_certificate_is_refused():
    solution = _solve(small_flow(), ResidualSplitting(0.8), 2)
    assert solution.result == RESULTS.nonlinear_divergence
    assert int(solution.stats.num_steps) == 0


@pytest.mark.parametrize("kind", ["minus", "general"])
def test_flows_without_certificate_are_inverted_all_the_same(kind):
    flow, target = small_flow(kind), jnp.asarray([0.7, -0.3])
    problem = pj.Problem(flow, flow(target))
    solution = pj.solve(problem, ResidualSplitting(rtol=1e-12), jnp.zeros(2), max_steps=20_000)
    np.testing.assert_allclose(solution.value, target, atol=1e-8)


# Deep networks --------------------------------------------------------------------------------------------------------


def linear_network(dtype=jnp.float64):
    """Two layers without activation: the lifted energy is quadratic, and its minimiser a linear solve."""
    first, second = 2 * matrix(7, 5, dtype), matrix(6, 7, dtype, seed=1)
    layers = [Layer(Matrix(w), lifted.Identity()) for w in (first, second)]
    return LiftedNetwork(layers, jax.ShapeDtypeStruct((5,), dtype)), first, second


@pytest.mark.slow
def test_two_linear_layers_against_a_linear_solve():
    network, a, b = linear_network()
    data, alpha = jnp.linspace(-1, 1, 6), 0.3
    # |h - A u|^2/2 + |data - B h|^2/2 + alpha |u|^2/2
    system = jnp.block([[a.T @ a + alpha * jnp.eye(5), -a.T], [-a, jnp.eye(7) + b.T @ b]])
    expected = jnp.linalg.solve(system, jnp.concatenate([jnp.zeros(5), b.T @ data]))[:5]
    solver = BlockInversion(alpha, HalfSquaredNorm(), rtol=1e-12)
    solution = pj.solve(pj.Problem(network, data), solver, jnp.ones(5), max_steps=3000, history=3001)
    assert bool(solution.success)
    np.testing.assert_allclose(solution.value, expected, atol=1e-9)
    assert rises(solution) < 1e-14


def random_perceptron(dtype=jnp.float64, shape=(6, 6), num=50):
    rng = np.random.default_rng(5)
    w = rng.normal(size=(num, int(np.prod(shape)))) / num**0.5
    return Perceptron(jnp.asarray(w, dtype), jnp.asarray(0.1 * rng.normal(size=num), dtype), shape=shape)


def phantom(dtype=jnp.float64):
    return jnp.zeros((6, 6), dtype).at[1:4, 2:5].set(1.0)


@pytest.mark.slow
def test_one_layer_agrees_with_the_solvers_for_perceptrons():
    forward = random_perceptron()
    problem = pj.Problem(forward, forward(phantom()) + 0.05, project=solvers.Box(0.0, 1.0))
    options = {"max_steps": 20_000}
    block = pj.solve(problem, BlockInversion(0.02, rtol=1e-7, theta=0.1), jnp.zeros((6, 6)), **options)
    split = pj.solve(problem, FullSplitting(0.02, rtol=1e-8), jnp.zeros((6, 6)), **options)
    assert bool(block.success & split.success)
    np.testing.assert_allclose(block.value, split.value, atol=1e-4)
    np.testing.assert_allclose(block.stats.objective, split.stats.objective, rtol=1e-6)


def _conv(inputs, outputs, seed):
    return eqx.nn.Conv2d(inputs, outputs, 3, padding=1, key=key(seed), dtype=jnp.float64)


@functools.cache
def conv_encoder():
    layers = [eqx.nn.Lambda(lambda x: x[None]), _conv(1, 3, 2), eqx.nn.Lambda(jax.nn.relu), _conv(3, 2, 3)]
    return wrap(eqx.nn.Sequential([*layers, eqx.nn.Lambda(jnp.tanh)]), jnp.zeros((6, 6)))


@functools.cache
def residual_encoder():
    layers = [eqx.nn.Lambda(lambda x: x[None]), _conv(1, 3, 2), eqx.nn.Lambda(jax.nn.relu)]
    layers += [ResidualBlock(_conv(3, 3, 3), _conv(3, 3, 4)), eqx.nn.Lambda(jnp.tanh)]
    return wrap(eqx.nn.Sequential(layers), jnp.zeros((6, 6)))


def unfolded():
    """Layers that look at the input of the network, not only at the state before."""
    return proximal_network(jnp.zeros(6), 8, 3, threshold=0.1, key=key(4))


DEEP = {
    "dense": (lambda: _dense(jnp.float64), lambda: _start(6, jnp.float64)),
    "convolutional": (conv_encoder, phantom),
    "residual": (residual_encoder, phantom),
    "unfolded": (unfolded, lambda: jnp.linspace(-1, 1, 6)),
}


@pytest.mark.parametrize(
    "name", [name if name == "dense" else pytest.param(name, marks=pytest.mark.slow) for name in DEEP]
)
def test_every_kind_of_network_descends_to_a_point_that_is_stationary(name):
    network, target = (make() for make in DEEP[name])
    regulariser = Box(-1, 1) + HalfSquaredNorm() if name == "unfolded" else L1()
    solver = BlockInversion(1e-2, regulariser, rtol=1e-5)
    problem = pj.Problem(network, network(target))
    solution = pj.solve(problem, solver, jnp.zeros_like(target), max_steps=4000, history=4001)
    assert rises(solution) < 1e-13
    assert bool(solution.success)
    start = float(solution.history.residual_rms[0])
    assert float(solution.stats.residual_rms) < 0.3 * start


@pytest.mark.slow
def test_the_variational_solver_settles_where_total_variation_outweighs_a_concave_fidelity():
    forward = random_perceptron(num=60)
    problem = pj.Problem(forward, forward(phantom()))
    solution = pj.solve(problem, VariationalDescent(1.0), jnp.zeros((6, 6)), max_steps=300)
    assert bool(solution.success)
    assert float(jnp.ptp(solution.value)) < 1e-3  # a constant: nothing else is worth its variation


@pytest.mark.slow
def test_layers_of_every_kind_have_a_bound_that_holds():
    network = residual_encoder()
    init = jax.jit(lambda x: BlockInversion(1.0).init(pj.Problem(network, network(x)), x)[1].bounds)
    jac = jax.jacfwd(lambda u: network.layers[0].affine(u))(phantom()).reshape(-1, 36)
    exact = float(jnp.linalg.norm(jac, ord=2)) ** 2
    assert exact <= float(init(phantom())[0]) < 1.2 * exact


# Back-propagation through the quadratic fidelity ----------------------------------------------------------------------


def linear_problem(dtype=jnp.float64, noise_std=None):
    w = matrix(8, 5, dtype)
    data = w @ jnp.linspace(-1, 1, 5, dtype=dtype) + 0.1 * jnp.cos(jnp.arange(8, dtype=dtype))
    return pj.Problem(Perceptron(w, activation=lifted.Identity()), data, noise_std=noise_std), w, data


def test_the_variational_solver_against_closed_forms():
    problem, w, data = linear_problem()
    solver = VariationalDescent(0.2, HalfSquaredNorm(), rtol=1e-11)
    solution = pj.solve(problem, solver, jnp.ones(5), max_steps=2000, history=2001)
    assert bool(solution.success)
    np.testing.assert_allclose(solution.value, jnp.linalg.solve(w.T @ w + 0.2 * jnp.eye(5), w.T @ data), atol=1e-9)
    assert rises(solution) < 1e-14


@pytest.mark.slow
def test_the_variational_solver_denoises_as_the_prox_of_total_variation_does():
    image = phantom() + 0.2 * jnp.sin(jnp.arange(36.0)).reshape(6, 6)
    denoised = pj.solve(pj.Problem(lambda u: u, image), VariationalDescent(0.1, rtol=1e-8), 0 * image, max_steps=5000)
    exact = total_variation_prox(image, 0.1, atol=1e-7, max_steps=20_000)
    np.testing.assert_allclose(denoised.value, exact.value, atol=1e-6)


@pytest.mark.slow
def test_the_variational_solver_never_raises_the_energy_of_a_deep_network():
    network, target = _dense(jnp.float64), _start(6, jnp.float64)
    problem = pj.Problem(network, network(target), project=solvers.Box(0.0, 1.0))
    solution = pj.solve(problem, VariationalDescent(1e-3, L1()), 0.5 + 0 * target, max_steps=500, history=501)
    assert rises(solution) < 1e-13
    assert int(solution.stats.num_rejected) > 0
    assert float(solution.stats.residual_rms) < 0.3 * float(solution.history.residual_rms[0])


def test_an_objective_that_is_never_finite_ends_the_search():
    forward = lambda u: jnp.where(u == 0, u, jnp.nan) + 1
    solution = pj.solve(
        pj.Problem(forward, jnp.zeros(2)), VariationalDescent(1.0, L1(1e-3)), jnp.zeros(2), max_steps=10
    )
    assert solution.result == RESULTS.line_search_failed
    assert int(solution.stats.num_steps) == 0


TIKHONOV = [
    FullSplitting(5.0, HalfSquaredNorm(), step_size=1.0),
    pytest.param(VariationalDescent(5.0, HalfSquaredNorm()), marks=pytest.mark.slow),
    pytest.param(BlockInversion(5.0, HalfSquaredNorm()), marks=pytest.mark.slow),
]


@pytest.mark.parametrize("inner", TIKHONOV, ids=["splitting", "variational", "block"])
def test_the_bregman_iteration_is_iterated_tikhonov_regularisation_where_that_is_known(inner):
    problem, w, data = linear_problem(noise_std=0.07)
    w, data = np.asarray(w), np.asarray(data)
    x, iterates = np.zeros(5), []
    for _ in range(8):  # argmin |w u - data|^2/2 + alpha |u - x|^2/2
        x = np.linalg.solve(w.T @ w + 5.0 * np.eye(5), w.T @ data + 5.0 * x)
        iterates.append(x)
    levels = [np.sqrt(np.mean((w @ x - data) ** 2)) / 0.07 for x in iterates]
    first = next(i for i, level in enumerate(levels) if level <= 1.5)
    assert 1 < first < 7
    solver = BregmanIteration(inner, num_inner=300, discrepancy=1.5)
    solution = pj.solve(problem, solver, jnp.zeros(5), max_steps=20, history=21)
    assert bool(solution.success)
    assert int(solution.stats.num_steps) == first + 1
    np.testing.assert_allclose(solution.value, iterates[first], atol=1e-6)
    assert rises(solution) < 0


INNER = [
    FullSplitting(0.3, step_size=0.03),
    pytest.param(ExplicitPrimalDual(0.3), marks=pytest.mark.slow),
    pytest.param(BlockInversion(0.3), marks=pytest.mark.slow),
]


@pytest.mark.slow
@pytest.mark.parametrize("inner", INNER, ids=["splitting", "explicit", "block"])
def test_lifted_bregman_iterations_regain_the_contrast_that_the_regulariser_took(inner):
    forward, target, noise_std = random_perceptron(num=60), phantom(), 0.01
    noise = noise_std * jax.random.normal(key(7), (60,), jnp.float64)
    problem = pj.Problem(forward, jnp.maximum(forward(target) + noise, 0), noise_std=noise_std)
    solver = BregmanIteration(inner, num_inner=300, discrepancy=1.2)
    solution = pj.solve(problem, solver, jnp.zeros_like(target), max_steps=60, history=61)
    assert bool(solution.success)
    assert float(solution.stats.residual_rms) <= 1.2 * noise_std
    first = pj.solve(problem, solver, jnp.zeros_like(target), max_steps=1, history=61)  # the regulariser's own solution
    error = lambda solution: float(jnp.linalg.norm(solution.value - target))
    assert error(solution) < 0.5 * error(first)


# Contracts ------------------------------------------------------------------------------------------------------------


def _dense(dtype):
    weights = [matrix(9, 6, dtype), matrix(8, 9, dtype, seed=2)]
    layers = [Layer(Matrix(w), lifted.ReLU()) for w in weights]
    return LiftedNetwork(layers, jax.ShapeDtypeStruct((6,), dtype))


def _start(size, dtype):
    return jnp.linspace(0.2, 0.8, size, dtype=dtype)


SOLVERS = {
    "shallow": (relus, ShallowDescent(1e-4), lambda dtype: jnp.asarray(0.75, dtype)),
    "residual": (lambda dtype: small_flow(dtype=dtype), ResidualSplitting(1.0, 1e-3), lambda dtype: _start(2, dtype)),
    "block": (_dense, BlockInversion(1e-3), lambda dtype: _start(6, dtype)),
    "variational": (_dense, VariationalDescent(1e-3), lambda dtype: _start(6, dtype)),
    "bregman": (_dense, BregmanIteration(BlockInversion(1e-1), num_inner=5), lambda dtype: _start(6, dtype)),
}


def also_slow(*slow, **marks):
    """The solvers by name, those named here only in the long run, or with another mark."""
    marks |= dict.fromkeys(slow, pytest.mark.slow)
    return [pytest.param(name, marks=marks.get(name, ())) for name in SOLVERS]


# A batch of "variational" and a solve alone drift apart by more than the tolerance where programs are not optimised.
@pytest.mark.parametrize("name", also_slow("bregman", "residual", variational=pytest.mark.optimised))
def test_contracts(name):
    make, solver, make_start = SOLVERS[name]
    forward, start = make(jnp.float64), make_start(jnp.float64)
    starts = jnp.stack([start, 1.3 * start, 0.7 * start])
    data = jax.vmap(forward)(1.1 * starts)
    spoiled = data.at[1].set(jnp.nan)
    batch = pj.solve_batch(pj.Problem(forward, spoiled), solver, starts, max_steps=40)
    assert (batch.result == RESULTS.nonfinite_input)[1]
    assert int(batch.stats.num_steps[1]) == 0
    run = jax.jit(lambda y, x, num: pj.solve(pj.Problem(forward, y), solver, x, max_steps=num), static_argnums=2)
    for i in (0, 2):
        one = run(data[i], starts[i], 40)
        np.testing.assert_allclose(batch.value[i], one.value, rtol=1e-9, atol=1e-12)
        assert int(batch.stats.num_steps[i]) == int(one.stats.num_steps) == 40
        np.testing.assert_allclose(one.stats.residual_rms, jnp.sqrt(jnp.mean((forward(one.value) - data[i]) ** 2)))
    whole = pj.solve_batch(pj.Problem(forward, data), solver, starts, max_steps=40)
    assert jax.tree.all(jax.tree.map(lambda a, b: bool(jnp.all(a[::2] == b[::2])), batch.value, whole.value))
    none = pj.solve_batch(pj.Problem(forward, data), solver, starts, max_steps=0)
    np.testing.assert_array_equal(none.value, starts)


@pytest.mark.slow
@pytest.mark.parametrize("name", also_slow("shallow", "residual"))
def test_float32_reaches_the_default_tolerances(name):
    make, solver, make_start = SOLVERS[name]
    forward, start = make(jnp.float32), make_start(jnp.float32)
    solution = pj.solve(pj.Problem(forward, forward(1.1 * start)), solver, start, max_steps=30_000)
    assert solution.value.dtype == solution.stats.objective.dtype == jnp.float32
    assert bool(solution.success | (solution.result == RESULTS.stationary))
    assert bool(solution.success) or name == "bregman"  # which is to stop at the noise, and here there is none


@pytest.mark.slow
def test_solves_compose_with_vmap_over_alpha_and_with_derivatives():
    network = relus()
    alphas = jnp.asarray([1e-4, -1.0])
    solve = lambda a, y: pj.solve(pj.Problem(network, y), ShallowDescent(a), jnp.asarray(0.75), max_steps=50)
    solutions = jax.vmap(solve, in_axes=(0, None))(alphas, jnp.asarray(0.4))
    assert bool(jnp.isfinite(solutions.value[0]))
    assert (solutions.result == RESULTS.nonlinear_divergence)[1]  # a traced alpha cannot be refused
    assert int(solutions.stats.num_steps[1]) == 0
    slope = jax.jvp(lambda y: solve(1e-4, y).value, (jnp.asarray(0.4),), (jnp.asarray(1.0),))[1]
    difference = (solve(1e-4, jnp.asarray(0.4 + 1e-6)).value - solve(1e-4, jnp.asarray(0.4)).value) / 1e-6
    np.testing.assert_allclose(slope, difference, rtol=1e-3)


@pytest.mark.slow
def test_discrepancy_stops_at_the_noise():
    network, noise_std = _dense(jnp.float64), 0.01
    target = _start(6, jnp.float64)
    data = network(target) + noise_std * jax.random.normal(key(9), (8,), jnp.float64)
    problem = pj.Problem(network, data, noise_std=noise_std)
    for solver in (BlockInversion(1e-4, discrepancy=1.5), VariationalDescent(1e-4, discrepancy=1.5)):
        solution = pj.solve(problem, solver, 0.5 + 0 * target, max_steps=5000)
        assert bool(solution.success)
        assert float(solution.stats.residual_rms) <= 1.5 * noise_std
    # What cannot be met is no success: a large alpha keeps the residual above the noise.
    stuck = pj.solve(problem, VariationalDescent(10.0, HalfSquaredNorm(), discrepancy=1.5), -target, max_steps=5000)
    assert stuck.result == RESULTS.stationary


def test_data_off_the_domain_are_moved_into_it_and_the_energy_stays_bounded():
    network = _dense(jnp.float64)
    target = _start(6, jnp.float64)
    clean = jnp.maximum(network(target), 0).at[0].set(0.0)
    solver = BlockInversion(1e-2, rtol=1e-5)
    run = lambda data: pj.solve(pj.Problem(network, data), solver, target, max_steps=300)
    below, at = run(clean.at[0].set(-3.0)), run(clean)
    np.testing.assert_array_equal(below.value, at.value)
    assert float(below.stats.objective) >= 0


BAD = [
    ("alpha=-1", lambda: ShallowDescent(-1.0)),
    ("alpha=0", lambda: BlockInversion(0.0)),
    ("alpha=-2", lambda: VariationalDescent(-2.0)),
    ("num_inner=0", lambda: VariationalDescent(1.0, num_inner=0)),
    ("theta=2", lambda: BlockInversion(1.0, theta=2.0)),
    ("fidelity_weight=0", lambda: ResidualSplitting(0.0)),
    ("rho=-1", lambda: ResidualSplitting(rho=-1.0)),
    ("dual_step=0", lambda: ResidualSplitting(dual_step=0.0)),
    ("num_inner=0", lambda: BregmanIteration(BlockInversion(1.0), num_inner=0)),
    ("GaussNewton", lambda: BregmanIteration(solvers.GaussNewton())),
    ("regulariser is a str", lambda: BlockInversion(1.0, "tv")),
    ("increasing numbers", lambda: shallow_interpolant(jnp.sin, jnp.asarray([0.0, 1.0, 0.5]))),
    (r"expected \(m, \*y\)", lambda: ShallowNetwork(jnp.ones(3), jnp.ones(2), jnp.ones(3))),
    ("Softmax", lambda: ShallowNetwork(jnp.ones(3), jnp.ones(3), jnp.ones(3), lifted.Softmax())),
    ("offset has shape", lambda: ShallowNetwork(jnp.ones(3), jnp.ones(3), jnp.ones(3), offset=jnp.ones(2))),
    ("biases", lambda: ResidualFlow(jnp.ones((2, 3, 1)), jnp.ones((3, 2)))),
    ("sign=2", lambda: ResidualFlow(jnp.ones((2, 3, 1)), jnp.ones((2, 3)), sign=2)),
    ("returns have shape", lambda: ResidualFlow(jnp.ones((2, 3, 1)), jnp.ones((2, 3)), returns=jnp.ones((2, 3, 1)))),
    ("wrap", lambda: _solve(jnp.sin, BlockInversion(1.0), 3)),
    ("ShallowNetwork", lambda: _solve(jnp.sin, ShallowDescent(1.0), 3)),
    ("ResidualFlow", lambda: _solve(jnp.sin, ResidualSplitting(), 3)),
    ("no explicit prox", lambda: _solve(small_flow(), ResidualSplitting(1.0, 1.0, TotalVariation()), 2)),
    ("no joint prox", lambda: _solve(jnp.sin, VariationalDescent(1.0, L1()), 3, project=lambda x: x)),
    ("no joint prox", lambda: _solve(jnp.sin, VariationalDescent(1.0, _own()), 3, project=solvers.Box(0, 1))),
    ("noise level", lambda: _solve(jnp.sin, VariationalDescent(1.0, discrepancy=1.0), 3)),
]


def _own():
    return Proximal(lambda v, step: v, jnp.sum)


def _solve(forward, solver, size, **options):
    return pj.solve(pj.Problem(forward, jnp.ones(size), **options), solver, jnp.zeros(size), max_steps=1)


@pytest.mark.parametrize(("message", "call"), BAD, ids=[message for message, _ in BAD])
def test_bad_input(message, call):
    with pytest.raises(ValueError, match=message):
        call()
