"""One perceptron inverted: known figures, an outside oracle, the laws of solvers, data off the domain."""

import functools
from collections import Counter
from types import SimpleNamespace

import cvxpy as cp
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_accelerators import callbacks, matmul_precisions

import pinv_jax as pj
from pinv_jax import lifted, solvers
from pinv_jax.lifted import (
    L1,
    Box,
    ExplicitPrimalDual,
    FullSplitting,
    HalfSquaredNorm,
    Perceptron,
    Proximal,
    TotalVariation,
)

RESULTS = pj.RESULTS
METHODS = {"full splitting": FullSplitting, "explicit": ExplicitPrimalDual}
each_method = pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
each_main_method = pytest.mark.parametrize(
    "method", [FullSplitting, pytest.param(ExplicitPrimalDual, marks=pytest.mark.slow)], ids=METHODS
)


def disk(size, radius):
    y, x = np.mgrid[:size, :size] - (size - 1) / 2
    return jnp.asarray((y**2 + x**2 <= radius**2).astype(float))


def relative(u, truth):
    return float(jnp.linalg.norm(u - truth) / jnp.linalg.norm(truth))


def psnr(u, truth):
    return float(-10 * jnp.log10(jnp.mean((u - truth) ** 2)))


# The random perceptron 64^2 -> 512 with total variation --------------------------------------------------------------


@functools.cache
def published():
    """Standard normal weights, the disk of radius 16, alpha 0.015; `scaled` has everything divided by sqrt(512)."""
    rng = np.random.default_rng(0)
    matrix, bias = rng.normal(size=(512, 4096)), rng.normal(size=512)
    truth, root = disk(64, 16), np.sqrt(512)
    forward = Perceptron(matrix, bias, lifted.ReLU(), shape=(64, 64))
    scaled = Perceptron(matrix / root, bias / root, lifted.ReLU(), shape=(64, 64))
    return SimpleNamespace(
        forward=pj.maps.prepare(forward),
        scaled=pj.maps.prepare(scaled),
        truth=truth,
        data=forward(truth),
        scaled_data=scaled(truth),
        x0=jnp.zeros((64, 64)),
    )


@pytest.mark.slow
def test_the_norm_of_the_published_perceptron():
    case = published()
    assert case.forward.norm() == pytest.approx(86.252, abs=1e-2)
    assert int(jnp.sum(case.data > 0)) == 258
    np.testing.assert_allclose(jnp.max(case.data), 81.7, atol=0.05)


@pytest.mark.slow
def test_full_splitting_finds_the_disk():
    case = published()
    problem, solver = pj.Problem(case.forward, case.data), FullSplitting(0.015, rtol=1e-6)
    half = pj.solve(problem, solver, case.x0, max_steps=500)
    full = pj.solve(problem, solver, case.x0, max_steps=1000)
    assert relative(half.value, case.truth) < 0.01
    assert relative(full.value, case.truth) < 0.001
    np.testing.assert_allclose(TotalVariation()(full.value), 116.87, rtol=0.005)
    assert bool(full.result == RESULTS.nonlinear_max_steps_reached)
    np.testing.assert_allclose(full.stats.objective, solver.energy(problem, full.value), rtol=1e-9)


@pytest.mark.slow
def test_the_default_tolerance_is_met_in_float32():
    case = published()
    forward, data = jax.tree.map(lambda a: a.astype(jnp.float32), (case.forward, case.data))
    forward = Perceptron(forward.linear, forward.bias, lifted.ReLU(), shape=(64, 64))
    sol = pj.solve(pj.Problem(forward, data), FullSplitting(0.015), case.x0.astype(jnp.float32), max_steps=1500)
    assert bool(sol.success)
    assert sol.value.dtype == jnp.float32
    assert relative(sol.value, case.truth) < 0.002


@pytest.mark.slow
def test_the_explicit_method_on_scaled_weights():
    case = published()
    problem = pj.Problem(case.scaled, case.scaled_data)
    sol = pj.solve(problem, ExplicitPrimalDual(0.015, theta=0.01, rtol=1e-8), case.x0, max_steps=2000)
    assert psnr(sol.value, case.truth) > 40


def test_a_step_past_the_bound_is_refused_and_with_reason():
    with pytest.raises(ValueError, match=r"at most 2 / \(1 \+ theta\) = 1.98"):
        ExplicitPrimalDual(0.015, step_size=4.5)
    with pytest.raises(ValueError, match="1.333"):
        ExplicitPrimalDual(0.015, step_size=1.4, theta=0.5)
    with pytest.raises(ValueError, match="largest second one is 0.4"):
        FullSplitting(0.015, shares=(0.6, 0.6))
    case = published()
    problem, legal = pj.Problem(case.scaled, case.scaled_data), ExplicitPrimalDual(0.015, theta=0.01)
    illegal = eqx.tree_at(lambda s: s.step_size, legal, 4.5)
    sol = pj.solve(problem, illegal, case.x0, max_steps=300)
    assert bool(sol.result == RESULTS.nonlinear_divergence)
    assert int(sol.stats.num_steps) == 0

    @jax.jit
    def energy_after(solver):
        carry = solver.init(problem, case.x0)
        carry = jax.lax.fori_loop(0, 300, lambda _, carry: solver.step(problem, *carry), carry)
        return carry[1].record.objective

    assert energy_after(illegal) > 100
    assert energy_after(eqx.tree_at(lambda s: s.step_size, legal, 1.9)) < 10


def test_relu_data_are_thresholded_at_the_noise():
    case, std = published(), 0.05
    data = jnp.maximum(case.data + std * np.random.default_rng(5).normal(size=512), 0)
    solver = FullSplitting(0.015, rtol=1e-6)
    known = pj.solve(pj.Problem(case.forward, data, noise_std=std), solver, case.x0, max_steps=800)
    clipped = pj.solve(pj.Problem(case.forward, data), solver, case.x0, max_steps=800)
    assert psnr(known.value, case.truth) >= 35
    assert psnr(clipped.value, case.truth) < 15


# A small instance, for everything else -------------------------------------------------------------------------------


@functools.cache
def small(dtype=jnp.float64, activation=None, num=40):
    rng = np.random.default_rng(1)
    truth = disk(8, 2.5).astype(dtype)
    matrix, bias = rng.normal(size=(num, 64)) / 8, rng.normal(size=num) / 8
    forward = Perceptron(matrix.astype(dtype), bias.astype(dtype), activation or lifted.ReLU(), shape=(8, 8))
    return SimpleNamespace(forward=forward, truth=truth, data=forward(truth), x0=jnp.zeros((8, 8), dtype))


def oracle(case, data, alpha, regulariser, potential, box, tol):
    """The same energy, by CVXPY."""
    matrix, bias = np.asarray(case.forward.linear), np.asarray(case.forward.bias)
    u = cp.Variable((8, 8))
    z = matrix @ cp.vec(u, order="C") + bias
    constraints = [u >= 0, u <= 1] if box else []
    energy = potential(z) - np.asarray(data) @ z + alpha * regulariser(u)
    problem = cp.Problem(cp.Minimize(energy), constraints)
    problem.solve(solver=cp.CLARABEL, tol_gap_abs=tol, tol_gap_rel=tol, tol_feas=tol)
    return u.value, problem.value + float(case.forward.activation.potential(data))


ORACLES = {
    "relu, total variation": (lifted.ReLU(), TotalVariation(), cp.tv, lambda z: 0.5 * cp.sum_squares(cp.pos(z)), False),
    "relu, total variation, box": (
        lifted.ReLU(),
        TotalVariation() + Box(0.0, 1.0),
        cp.tv,
        lambda z: 0.5 * cp.sum_squares(cp.pos(z)),
        True,
    ),
    "sigmoid, l1": (lifted.Sigmoid(), L1(), lambda u: cp.sum(cp.abs(u)), lambda z: cp.sum(cp.logistic(z)), False),
}


def variation(u):
    """Isotropic, with zero differences at the end; `cp.tv` leaves out the last row and column."""
    down, right = cp.vstack([u[1:] - u[:-1], np.zeros((1, 8))]), cp.hstack([u[:, 1:] - u[:, :-1], np.zeros((8, 1))])
    both = cp.vstack([cp.vec(down, order="C"), cp.vec(right, order="C")])
    return cp.sum(cp.norm(both, 2, axis=0))


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=pytest.mark.slow) if name != "relu, total variation, box" else name for name in ORACLES],
)
def test_agrees_with_cvxpy(name):
    activation, regulariser, norm, potential, box = ORACLES[name]
    case, alpha = small(activation=activation, num=60), 0.05
    noise = 0.02 * np.random.default_rng(2).normal(size=60)
    data = lifted.admissible_data(activation, case.data + noise)
    tol = 1e-11 if name.startswith("sigmoid") else 1e-9  # what Clarabel reaches
    value, energy = oracle(case, data, alpha, variation if norm is cp.tv else norm, potential, box, tol)
    solver = FullSplitting(alpha, regulariser, step_size=0.1, rtol=1e-9)
    sol = pj.solve(pj.Problem(case.forward, data), solver, case.x0, max_steps=40_000)
    assert bool(sol.success)
    np.testing.assert_allclose(sol.stats.objective, energy, rtol=1e-7)
    np.testing.assert_allclose(sol.value, value, atol=1e-5)
    explicit = ExplicitPrimalDual(alpha, regulariser, rtol=1e-8)
    other = pj.solve(pj.Problem(case.forward, data), explicit, case.x0, max_steps=40_000)
    np.testing.assert_allclose(other.value, value, atol=1e-5)


ACTIVATIONS = {
    "identity": lifted.Identity(),
    "leaky": lifted.LeakyReLU(0.2),
    "soft threshold": lifted.SoftThreshold(0.1),
    "clip": lifted.Clip(-0.2, 0.4),
    "tanh": lifted.Tanh(),
    "softmax": lifted.Softmax(),
    "ball": lifted.BallProjection(2.0),
}


@pytest.mark.parametrize(
    "name",
    [name if name == "clip" else pytest.param(name, marks=pytest.mark.slow) for name in ACTIVATIONS],
)
def test_both_methods_find_the_same_minimiser_and_the_dual_is_a_source_element(name):
    activation, alpha = ACTIVATIONS[name], 0.1
    case = small(activation=activation)
    noise = 0.05 * np.random.default_rng(3).normal(size=40)
    data = lifted.admissible_data(activation, case.data + noise)
    problem = pj.Problem(case.forward, data)
    sols = [
        pj.solve(problem, method(alpha, HalfSquaredNorm(), rtol=1e-9, **kw), case.x0, max_steps=5000)
        for method, kw in ((FullSplitting, {"step_size": 0.3}), (ExplicitPrimalDual, {}))
    ]
    assert all(bool(sol.success) for sol in sols)
    np.testing.assert_allclose(sols[0].value, sols[1].value, atol=1e-7)
    # J = |u|^2 / 2: its subgradient at u is u, which must be W^T v with the source element v = -p / alpha.
    source = -lifted.dual_variable(problem, sols[0].value) / alpha
    np.testing.assert_allclose(case.forward.adjoint(source), sols[0].value, atol=1e-7)
    energy = FullSplitting(alpha, HalfSquaredNorm()).energy
    around = sols[0].value + 1e-3 * jax.random.normal(jax.random.key(0), (8, 8))
    assert energy(problem, sols[0].value) < energy(problem, around)


@pytest.mark.slow
def test_a_box_may_be_the_regulariser_or_the_projection_of_the_problem():
    case = small()
    data = case.data + 0.1
    one = pj.solve(
        pj.Problem(case.forward, data),
        FullSplitting(0.02, TotalVariation() + Box(0.0, 1.0)),
        case.x0 + 2,
        max_steps=300,
    )
    two = pj.solve(
        pj.Problem(case.forward, data, solvers.Box(0.0, 1.0)), FullSplitting(0.02), case.x0 + 2, max_steps=300
    )
    np.testing.assert_allclose(one.value, two.value, atol=1e-14)
    assert jnp.min(one.value) >= 0
    assert jnp.max(one.value) <= 1
    assert bool(jnp.isfinite(one.stats.objective))


def test_an_l1_of_your_own_is_the_built_in_one():
    def prox(v, step):
        return jnp.sign(v) * jnp.maximum(jnp.abs(v) - step, 0)

    case = small()
    mine = Proximal(prox, lambda u: jnp.sum(jnp.abs(u)))
    values = [
        pj.solve(pj.Problem(case.forward, case.data), FullSplitting(0.05, J), case.x0, max_steps=200)
        for J in (mine, L1())
    ]
    np.testing.assert_allclose(values[0].value, values[1].value, atol=1e-14)
    np.testing.assert_allclose(values[0].stats.objective, values[1].stats.objective, rtol=1e-12)


# A convolution, and networks of one layer ----------------------------------------------------------------------------


def convolution(kernel, u):
    return jax.scipy.signal.convolve2d(u, kernel, mode="valid")


@pytest.mark.slow
def test_a_linear_callable_has_its_transpose_and_norm():
    kernel = jax.random.normal(jax.random.key(0), (3, 3))
    forward = Perceptron(jax.tree_util.Partial(convolution, kernel), 0.1 * jnp.ones((6, 6)), shape=(8, 8))
    u, p = jax.random.normal(jax.random.key(1), (8, 8)), jax.random.normal(jax.random.key(2), (6, 6))
    tangent = forward.affine(u) - forward.affine(jnp.zeros((8, 8)))
    np.testing.assert_allclose(jnp.sum(tangent * p), jnp.sum(u * forward.adjoint(p)), atol=1e-10)
    dense = jax.jacfwd(lambda u: forward.affine(u).ravel())(u).reshape(36, 64)
    exact = np.linalg.norm(dense, 2)
    assert exact <= forward.norm() <= 1.06 * exact
    same = Perceptron(dense, 0.1 * jnp.ones(36), shape=(8, 8))
    assert same.norm() == pytest.approx(exact, rel=1e-4)
    problem = pj.Problem(forward, forward(u))
    sol = pj.solve(problem, FullSplitting(0.1, rtol=1e-5, step_size=0.1), jnp.zeros((8, 8)), max_steps=4000)
    assert bool(sol.success)
    energy = FullSplitting(0.1).energy
    assert energy(problem, sol.value) < energy(problem, u)


@pytest.mark.slow
def test_a_network_of_one_layer_is_a_perceptron():
    linear = eqx.nn.Linear(5, 7, key=jax.random.key(0))
    structure = jax.ShapeDtypeStruct((5,), linear.weight.dtype)
    network = lifted.LiftedNetwork([lifted.Layer(linear, lifted.Tanh())], structure)
    plain = Perceptron(linear.weight, linear.bias, lifted.Tanh())
    data, x0 = plain(jnp.linspace(-1, 1, 5)), jnp.zeros(5)
    values = [
        pj.solve(pj.Problem(f, data), FullSplitting(0.01, L1(), rtol=1e-9), x0, max_steps=3000).value
        for f in (network, plain)
    ]
    np.testing.assert_allclose(values[0], values[1], atol=1e-6)
    deep = lifted.LiftedNetwork([lifted.Layer(jnp.negative, lifted.ReLU())] * 2, structure)
    with pytest.raises(ValueError, match="has 2"):
        pj.solve(pj.Problem(deep, jnp.zeros(5)), FullSplitting(0.1, L1()), x0)


# Laws of solvers -----------------------------------------------------------------------------------------------------


def batch(dtype=jnp.float64):
    case = small(dtype)
    noise = 0.05 * np.random.default_rng(4).normal(size=(5, 40))
    data = jnp.maximum(case.data[None] + jnp.asarray(noise, dtype), 0)
    return case, data, jnp.zeros((5, 8, 8), dtype)


@each_main_method
def test_a_batch_equals_a_loop_and_one_nan_spoils_only_itself(method):
    case, data, x0 = batch()
    solver = method(0.02)
    many = pj.solve_batch(pj.Problem(case.forward, data), solver, x0, max_steps=150)
    for i in range(5):
        one = pj.solve(pj.Problem(case.forward, data[i]), solver, x0[i], max_steps=150)
        np.testing.assert_allclose(many.value[i], one.value, atol=1e-10)
        assert int(many.stats.num_steps[i]) == int(one.stats.num_steps)
        assert int(one.stats.num_f) == int(one.stats.num_steps) + 1
        assert int(one.stats.num_vjp) == int(one.stats.num_steps) + (method is ExplicitPrimalDual)
    spoiled = pj.solve_batch(pj.Problem(case.forward, data.at[2].set(jnp.nan)), solver, x0, max_steps=150)
    others = np.asarray([0, 1, 3, 4])
    np.testing.assert_array_equal(spoiled.value[others], many.value[others])
    assert bool((spoiled.result == RESULTS.nonfinite_input)[2])
    assert not bool(spoiled.success[2])


@pytest.mark.slow
@each_main_method
def test_plain_vmap_over_data_and_alpha_float32_and_no_second_trace(method):
    case, data, x0 = batch(jnp.float32)
    calls = Counter()

    def linear(u):
        calls["linear"] += 1
        return case.forward.affine(u)

    forward = Perceptron(linear, shape=(8, 8), dtype=jnp.float32)

    def run(y, alpha):
        return pj.solve(pj.Problem(forward, y), method(alpha), x0[0], max_steps=60)

    alphas = jnp.linspace(0.01, 0.1, 5, dtype=jnp.float32)
    many = jax.jit(jax.vmap(run))(data, alphas)
    assert many.value.dtype == jnp.float32
    np.testing.assert_allclose(many.value[3], run(data[3], alphas[3]).value, atol=1e-4)
    pj.solve(pj.Problem(forward, data[0]), method(0.1), x0[0], max_steps=60)
    before = calls["linear"]
    pj.solve(pj.Problem(forward, data[1]), method(0.3), x0[1] + 1, max_steps=70)
    assert calls["linear"] == before > 0


@each_method
def test_zero_steps_are_legal_and_the_start_is_returned(method):
    case = small()
    sol = pj.solve(pj.Problem(case.forward, case.data), method(0.02), case.truth, max_steps=0)
    np.testing.assert_array_equal(sol.value, case.truth)
    assert bool(sol.result == RESULTS.nonlinear_max_steps_reached)
    assert bool(jnp.isfinite(sol.stats.objective))
    traced = jax.jit(lambda a: pj.solve(pj.Problem(case.forward, case.data), method(a), case.x0, max_steps=9))(-1.0)
    assert bool(traced.result == RESULTS.nonlinear_divergence)


@pytest.mark.slow
@each_method
def test_a_warm_start_is_shorter(method):
    case = small()
    problem, solver = pj.Problem(case.forward, case.data), method(0.02, rtol=1e-5)
    cold = pj.solve(problem, solver, case.x0, max_steps=20_000)
    warm = pj.solve(problem, solver, cold.value, max_steps=20_000)
    x, state = jax.jit(lambda x: solver.init(problem, x))(case.x0)
    step = jax.jit(lambda x, state: solver.step(problem, x, state))
    for _ in range(int(cold.stats.num_steps)):
        x, state = step(x, state)
    np.testing.assert_allclose(state.dual, lifted.dual_variable(problem, cold.value), atol=1e-3)
    hot = method(0.02, rtol=1e-5, duals=(state.dual, state.regulariser_dual))
    both = pj.solve(problem, hot, cold.value, max_steps=20_000)
    assert bool(cold.success & warm.success & both.success)
    assert int(both.stats.num_steps) < 0.1 * int(cold.stats.num_steps)
    assert int(warm.stats.num_steps) < int(cold.stats.num_steps)


@each_main_method
def test_lowers_without_callbacks_at_full_precision(method):
    case = small(jnp.float32)

    def run(y, x):
        return pj.solve(pj.Problem(case.forward, y), method(0.02), x, max_steps=9)

    text = jax.jit(run).lower(case.data, case.x0).as_text()
    assert not callbacks(text)
    assert matmul_precisions(text) == {"HIGHEST"}


def test_stops_at_the_discrepancy_and_says_so_where_it_cannot():
    case, data, x0 = batch()
    problem = pj.Problem(case.forward, data[0], noise_std=0.05)
    early = pj.solve(problem, FullSplitting(1e-3, discrepancy=1.0), x0[0], max_steps=3000)
    assert bool(early.success)
    residual = case.forward(early.value) - data[0]
    assert jnp.sqrt(jnp.mean(residual**2)) <= 0.05 + 1e-9
    np.testing.assert_allclose(early.stats.residual_rms, jnp.sqrt(jnp.mean(residual**2)), rtol=1e-9)
    never = pj.solve(problem, FullSplitting(0.1, discrepancy=0.01, rtol=1e-2), x0[0], max_steps=3000)
    assert bool(never.result == RESULTS.stationary)
    with pytest.raises(ValueError, match="noise_std"):
        pj.solve(pj.Problem(case.forward, data[0]), FullSplitting(0.1, discrepancy=1.0), x0[0])


# Data off the domain -------------------------------------------------------------------------------------------------


def test_admissible_data():
    data = jnp.asarray([-0.3, -0.01, 0.02, 0.5, 2.0, jnp.nan])
    np.testing.assert_array_equal(lifted.admissible_data(lifted.ReLU(), data), [0, 0, 0.02, 0.5, 2, np.nan])
    known = lifted.admissible_data(lifted.ReLU(), data, 0.06)
    np.testing.assert_array_equal(known, [0, 0, 0, 0.5, 2, np.nan])
    hard = lifted.admissible_data(lifted.Clip(0.0, 1.0), jnp.asarray([0.1, 0.5, 0.95, 1.1]), 0.04)
    np.testing.assert_array_equal(hard, [0, 0.5, 1, 1])
    for activation, ends in ((lifted.Tanh(), (-1, 1)), (lifted.Sigmoid(), (0, 1))):
        for dtype in (jnp.float32, jnp.float64):
            inside = lifted.admissible_data(activation, jnp.asarray([-3.0, 0.25, 3.0], dtype))
            assert ends[0] < inside[0] < inside[1] < inside[2] < ends[1]
            assert bool(jnp.all(jnp.isfinite(activation.preimage(inside))))
    # The largest of many draws of noise stays below the threshold, which three standard deviations do not ensure.
    noise = 0.1 * jax.random.normal(jax.random.key(0), (10_000,))
    assert bool(jnp.max(noise) > 0.3)
    assert int(jnp.sum(lifted.admissible_data(lifted.ReLU(), noise, 0.1) > 0)) == 0
    with pytest.raises(ValueError, match="1 of 2 data lie outside the range of ReLU"):
        lifted.admissible_data(lifted.ReLU(), jnp.asarray([1.0, -0.7]), 0.1)


def test_a_solve_projects_data_off_the_domain():
    case = small()
    off = jnp.where(case.data > 0, case.data, -5.0)
    got = pj.solve(pj.Problem(case.forward, off), FullSplitting(0.02), case.x0, max_steps=100)
    want = pj.solve(pj.Problem(case.forward, case.data), FullSplitting(0.02), case.x0, max_steps=100)
    np.testing.assert_allclose(got.value, want.value, atol=1e-12)
    assert bool(jnp.isfinite(got.stats.objective))
    assert float(got.stats.residual_rms) > float(want.stats.residual_rms)  # in the units of what was passed


# The discrepancy principle -------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_alpha_meets_the_discrepancy_principle_from_everywhere():
    case, data, x0 = batch()
    problem = pj.Problem(case.forward, data[0], noise_std=0.05)
    found = [lifted.alpha_by_discrepancy(problem, FullSplitting(a), x0[0], rtol=0.02) for a in (1e-4, 1e-2, 3.0)]
    for choice in found:
        assert bool(choice.success)
        admissible = lifted.admissible_data(lifted.ReLU(), data[0], 0.05)
        misfit = case.forward.activation.gap(admissible, case.forward.affine(choice.value))
        np.testing.assert_allclose(choice.misfit, misfit, rtol=1e-6)
        np.testing.assert_allclose(misfit, choice.target, rtol=0.025)
        np.testing.assert_allclose(choice.alpha, found[0].alpha, rtol=0.1)
    num = int(jnp.sum(admissible > 0))
    np.testing.assert_allclose(found[0].target, 0.5 * num * 0.05**2, rtol=1e-9)
    more = lifted.alpha_by_discrepancy(problem, FullSplitting(1e-2), x0[0], safety=1.5, rtol=0.02)
    assert float(more.alpha) > float(found[0].alpha)

    def one(y):
        return lifted.alpha_by_discrepancy(
            pj.Problem(case.forward, y, noise_std=0.05), FullSplitting(1e-2), x0[0], rtol=0.02
        )

    many = jax.vmap(one)(data)
    assert bool(jnp.all(many.success))
    np.testing.assert_allclose(many.alpha[0], found[1].alpha, rtol=1e-6)
    never = lifted.alpha_by_discrepancy(problem, FullSplitting(1e-2), x0[0], noise_level=1e3, max_solves=3)
    assert not bool(never.success)


@pytest.mark.slow
def test_the_expected_noise_level_is_what_noise_gives():
    z, std = jnp.linspace(-2.0, 2.0, 400), 0.01
    for activation in (lifted.Identity(), lifted.Tanh(), lifted.Sigmoid(), lifted.ReLU()):
        clean = activation(z)
        noise = std * jax.random.normal(jax.random.key(0), (400,))
        noisy = lifted.admissible_data(activation, clean + noise, std)
        level = lifted.expected_noise_level(activation, clean + noise, std)
        np.testing.assert_allclose(level**2, activation.gap(noisy, z), rtol=0.25)
    with pytest.raises(ValueError, match="noise_level"):
        lifted.expected_noise_level(lifted.Softmax(), jnp.full(4, 0.25), std)


# Bad input -----------------------------------------------------------------------------------------------------------


@each_method
@pytest.mark.parametrize("alpha", [0.0, -1.0, None])
def test_alpha_must_be_positive(method, alpha):
    with pytest.raises(ValueError, match=f"alpha={alpha}; expected a positive"):
        method(alpha)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda c: FullSplitting(0.1, step_size=0.0), "step_size"),
        (lambda c: FullSplitting(0.1, jnp.abs), "Proximal"),
        (lambda c: ExplicitPrimalDual(0.1, theta=0.0), "theta"),
        (lambda c: Perceptron(jnp.ones((3, 4)), shape=(5,)), "expected"),
        (lambda c: Perceptron(jnp.ones((3, 4)), jnp.ones(4)), "bias has shape"),
        (lambda c: Perceptron(jnp.sum), "shape"),
        (lambda c: pj.solve(pj.Problem(jnp.tanh, jnp.ones((8, 8))), FullSplitting(0.1), c.x0), "Perceptron"),
        (
            lambda c: pj.solve(pj.Problem(c.forward, c.data, solvers.Ball()), FullSplitting(0.1, L1()), c.x0),
            "no joint prox",
        ),
        (
            lambda c: pj.solve(pj.Problem(c.forward, c.data), FullSplitting(0.1, TotalVariation(3)), c.x0),
            "axes",
        ),
        (
            lambda c: pj.solve(pj.Problem(c.forward, c.data), FullSplitting(0.1, duals=(c.data, c.data)), c.x0),
            "duals have shapes",
        ),
        (
            lambda c: pj.solve(
                pj.Problem(c.forward, c.data, prior=pj.GaussianPrior(c.x0, jnp.eye(64))), FullSplitting(0.1), c.x0
            ),
            "HalfSquaredNorm",
        ),
        (lambda c: lifted.alpha_by_discrepancy(pj.Problem(c.forward, c.data), FullSplitting(0.1), c.x0), "noise"),
        (
            lambda c: lifted.alpha_by_discrepancy(
                pj.Problem(c.forward, c.data, noise_std=0.1), FullSplitting(0.1), c.x0, safety=0.5
            ),
            "at least 1",
        ),
        (
            lambda c: lifted.alpha_by_discrepancy(
                pj.Problem(c.forward, c.data, noise_std=0.1), FullSplitting(0.1, discrepancy=1.0), c.x0
            ),
            "drop `discrepancy`",
        ),
        (
            lambda c: lifted.alpha_by_discrepancy(
                pj.Problem(c.forward, c.data, noise_std=0.1), solvers.GaussNewton(), c.x0
            ),
            "FullSplitting",
        ),
    ],
)
def test_bad_input_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make(small())
