"""Every solver on every problem: it reduces the objective, and lanes of a batch do not know of each other."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import PROBLEMS, SOLVERS, names

import pinv_jax as pj

RESULTS = pj.RESULTS
# Slow by nature on these problems: they are asked for a decrease, not for a solution.
ONLY_DECREASE = {
    ("gradient descent", "rosenbrock"),
    ("gradient descent", "curve fit"),
    ("d-ipg, paper", "curve fit"),
    ("d-ipg, paper", "wide"),
    ("d-ipg, paper", "rank deficient"),
    ("d-ipg, paper", "rosenbrock"),
    ("levenberg-marquardt, fixed", "curve fit"),
}
each_solver = names(SOLVERS, "solver_name")
MAIN = ("lbfgs", "levenberg-marquardt", "d-ipg, defect", "safeguarded")
each_main_solver = pytest.mark.parametrize(
    "solver_name", [name if name in MAIN else pytest.param(name, marks=pytest.mark.slow) for name in SOLVERS]
)


@functools.cache
def make(solver_name, problem_name, dtype=jnp.float64, atol=1e-5):
    """Cached, so that the tests of one solver share their compiled programs."""
    case = PROBLEMS[problem_name](dtype)
    return case, SOLVERS[solver_name](case.inverse, atol=atol)


def lanes(case, num, *, seed=0, scale=0.05):
    noise = scale * np.random.default_rng(seed).normal(size=(num, *case.x_true.shape))
    x_true = case.x_true[None] + jnp.asarray(noise, case.x_true.dtype)
    return jax.vmap(case.forward)(x_true), jnp.broadcast_to(case.x0, (num, *case.x0.shape))


@each_solver
@pytest.mark.parametrize(
    ("problem_name", "dtype"),
    [("curve fit", jnp.float64), ("rank deficient", jnp.float32), ("rosenbrock", jnp.float64)]
    + [pytest.param(name, jnp.float64, marks=pytest.mark.slow) for name in ("linear", "wide", "rank deficient")]
    + [pytest.param("curve fit", jnp.float32, marks=pytest.mark.slow)],
)
def test_reduces_the_objective_and_solves(solver_name, problem_name, dtype):
    case, solver = make(solver_name, problem_name, dtype)
    problem = case.problem()
    sol = pj.solve(problem, solver, case.x0, max_steps=300, history=301)
    start = problem.objective(case.x0)
    assert sol.value.dtype == dtype
    assert sol.stats.objective < start
    objectives = np.asarray(sol.history.objective[: int(sol.stats.num_steps) + 1])
    assert np.all(np.diff(objectives) <= 0), "an accepted step raised the objective"
    np.testing.assert_allclose(
        sol.stats.objective, problem.objective(sol.value), rtol=1e-5, atol=jnp.finfo(dtype).eps ** 2 * 1000
    )
    if (solver_name, problem_name) not in ONLY_DECREASE:
        assert bool(sol.success), RESULTS[sol.result]
        residual = case.forward(sol.value) - problem.data
        assert np.sqrt(np.mean(np.square(residual))) <= 1.01e-5


@each_main_solver
def test_a_batch_equals_single_solves(solver_name):
    case, solver = make(solver_name, "curve fit")
    data, x0 = lanes(case, 8)
    batch = pj.solve_batch(case.problem(data), solver, x0, max_steps=20)
    for i in range(8):
        one = pj.solve(case.problem(data[i]), solver, x0[i], max_steps=20)
        np.testing.assert_allclose(batch.value[i], one.value, atol=1e-10, rtol=0)
        assert int(batch.stats.num_steps[i]) == int(one.stats.num_steps)
        assert bool((batch.result == one.result)[i])
        for count in ("num_f", "num_g", "num_jvp", "num_vjp", "num_rejected", "num_fallbacks"):
            assert int(getattr(batch.stats, count)[i]) == int(getattr(one.stats, count)), count


@each_solver
def test_lanes_are_bit_identical_under_permutation_and_whatever_their_neighbours(solver_name):
    case, solver = make(solver_name, "curve fit")
    data, x0 = lanes(case, 8)
    batch = pj.solve_batch(case.problem(data), solver, x0, max_steps=20)
    order = np.random.default_rng(1).permutation(8)
    shuffled = pj.solve_batch(case.problem(data[order]), solver, x0, max_steps=20)
    np.testing.assert_array_equal(batch.value[order], shuffled.value)
    spoiled = data.at[3].set(jnp.nan).at[5].set(1e3)
    others = np.setdiff1d(np.arange(8), [3, 5])
    mixed = pj.solve_batch(case.problem(spoiled), solver, x0, max_steps=20)
    np.testing.assert_array_equal(batch.value[others], mixed.value[others])
    np.testing.assert_array_equal(batch.stats.num_steps[others], mixed.stats.num_steps[others])
    assert bool((mixed.result == RESULTS.nonfinite_input)[3])
    assert not bool(mixed.success[3])
    assert int(mixed.stats.num_steps[3]) == 0


@each_main_solver
def test_plain_jit_and_vmap_return_a_solution(solver_name):
    case, solver = make(solver_name, "curve fit")
    data, x0 = lanes(case, 8)
    many = jax.vmap(lambda y, x: pj.solve(pj.Problem(case.forward, y), solver, x, max_steps=20))(data, x0)
    assert isinstance(many, pj.Solution)
    assert many.value.shape == x0.shape
    np.testing.assert_allclose(
        many.value, pj.solve_batch(case.problem(data), solver, x0, max_steps=20).value, atol=1e-12
    )
    # Problem and solver themselves are valid arguments, and `Problem(None, 0)` a valid `in_axes`.
    problem = pj.Problem(case.forward, data)
    axes = (pj.Problem(None, 0), None, 0)
    mapped = jax.jit(jax.vmap(lambda p, s, x: pj.solve(p, s, x, max_steps=20), in_axes=axes))(problem, solver, x0)
    np.testing.assert_allclose(mapped.value, many.value, atol=1e-12)


@each_main_solver
def test_the_second_call_does_not_trace(solver_name):
    case, solver = make(solver_name, "curve fit")
    data, x0 = lanes(case, 8)
    traced = []

    def forward(x):
        traced.append(1)
        return case.forward(x)

    pj.solve(pj.Problem(forward, data[0]), solver, x0[0], max_steps=20)
    pj.solve_batch(pj.Problem(forward, data), solver, x0, max_steps=20)
    num = len(traced)
    assert num > 0
    pj.solve(pj.Problem(forward, data[1]), solver, x0[1] + 0.1, max_steps=20)
    pj.solve_batch(pj.Problem(forward, data[::-1]), solver, x0 + 0.1, max_steps=20)
    assert len(traced) == num


@each_solver
def test_a_budget_of_zero_steps_is_legal(solver_name):
    case, solver = make(solver_name, "curve fit")
    sol = pj.solve(case.problem(), solver, case.x0, max_steps=0)
    assert int(sol.stats.num_steps) == 0
    assert bool(sol.success) or bool(sol.result == RESULTS.nonlinear_max_steps_reached)
    assert np.all(np.isfinite(sol.value))


@each_solver
@pytest.mark.parametrize("bad", [jnp.nan, jnp.inf])
def test_a_start_that_is_not_finite_is_a_code(solver_name, bad):
    case, solver = make(solver_name, "curve fit")
    sol = pj.solve(case.problem(), solver, case.x0.at[0].set(bad), max_steps=20)
    assert bool(sol.result == RESULTS.nonfinite_input)
    assert not bool(sol.success)


@each_solver
def test_a_forward_map_that_returns_nan_is_never_a_success(solver_name):
    case, solver = make(solver_name, "curve fit")

    def undefined(x):
        return jnp.full(9, jnp.nan) * x[0]

    sol = pj.solve(pj.Problem(undefined, case.forward(case.x_true)), solver, case.x0, max_steps=20)
    assert not bool(sol.success)
    assert bool(sol.result == RESULTS.nonfinite_input)


@pytest.mark.slow
@each_main_solver
def test_float32_batches_agree_with_single_solves_to_rounding(solver_name):
    case, solver = make(solver_name, "curve fit", jnp.float32, atol=1e-3)
    data, x0 = lanes(case, 20)
    batch = pj.solve_batch(case.problem(data), solver, x0, max_steps=20)
    single = [pj.solve(case.problem(y), solver, x, max_steps=20) for y, x in zip(data, x0, strict=True)]
    equal = np.asarray([int(a) == int(b.stats.num_steps) for a, b in zip(batch.stats.num_steps, single, strict=True)])
    assert np.mean(equal) >= 0.95


@each_solver
def test_evaluations_are_counted_where_they_happen(solver_name):
    case, solver = make(solver_name, "linear")
    sol = pj.solve(case.problem(), solver, case.x0, max_steps=4)
    stats = sol.stats
    trials = int(stats.num_steps + stats.num_rejected)
    assert int(stats.num_f) >= trials + 1
    assert int(stats.num_g) >= (0 if "ipg" not in solver_name else 1)
    if solver_name in ("gradient descent", "lbfgs"):
        # One VJP at the start and one per accepted step, save the last if it met the tolerance.
        assert int(stats.num_vjp) == 1 + int(stats.num_steps) - int(bool(sol.success))
        assert int(stats.num_f) == trials + 1
        assert int(stats.num_jvp) == 0
