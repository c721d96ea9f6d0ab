"""Agreement with the published code: its weights, its 60 observations, its answers, in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import GOLDEN, published_pair

import pinv_jax as pj
from pinv_jax import solvers, suite

TOLERANCES = {"dipg": 1e-9, "gd": 1e-9, "lm": 1e-9, "gn": 1e-8}


@pytest.fixture(scope="module")
def golden():
    return np.load(GOLDEN)


def published_solver(name, g):
    rules = {"atol": 0.3, "rtol": 0.0, "search": solvers.PublishedArmijo()}
    return {
        "dipg": lambda: solvers.DIPG(g, proposal="paper", relaxation=0.4, **rules),
        "gd": lambda: solvers.GradientDescent(0.4, **rules),
        "gn": lambda: solvers.GaussNewton(relaxation=0.4, active_set=False, **rules),
        "lm": lambda: solvers.LevenbergMarquardt(damping=1e-2, relaxation=0.4, active_set=False, **rules),
    }[name]()


@pytest.mark.parametrize("name", TOLERANCES)
def test_agrees_with_the_published_code(name, golden):
    f, g = published_pair(golden, "plus")
    problem = pj.Problem(f, jnp.asarray(golden["y_test_norm"], jnp.float64), solvers.Box(0.0, 1.0))
    x0 = jnp.asarray(golden["x0"], jnp.float64)
    sol = pj.solve_batch(problem, published_solver(name, g), x0, max_steps=120)

    np.testing.assert_allclose(sol.value, golden[f"float64/{name}/x_hat"], atol=TOLERANCES[name], rtol=0)
    np.testing.assert_array_equal(sol.success, golden[f"float64/{name}/success"] > 0.5)
    np.testing.assert_allclose(sol.stats.residual_rms, golden[f"float64/{name}/final_residual"], atol=1e-8)
    # Its counter is the index of the terminating check plus one: n accepted steps and an ending check make n + 1,
    # the full budget of 120 makes 120.
    steps = np.asarray(sol.stats.num_steps)
    np.testing.assert_array_equal(np.minimum(steps + 1, 120), golden[f"float64/{name}/iters"])


@pytest.mark.parametrize(("instance", "tolerance"), [(1, 1e-9), (103, 1e-5)])
def test_trace_agrees_step_by_step(golden, instance, tolerance):
    f, g = published_pair(golden, "plus")
    solver = published_solver("dipg", g)
    trace = {key: golden[f"trace_dipg/{instance}/{key}"] for key in ("x", "phi", "alpha", "n_trials")}
    num = len(trace["alpha"])
    if instance < 60:
        data = golden["y_test_norm"][instance]
    else:  # not among the stored observations: made again from the published random numbers, to single precision
        data = suite.HEAT1D.dataset(seed=0, num_test=300, dtype=jnp.float32, quick=False).test.y[instance]
    problem = pj.Problem(f, jnp.asarray(data, jnp.float64), solvers.Box(0.0, 1.0))
    for k in range(num + 1):
        sol = pj.solve(problem, solver, jnp.zeros(64), max_steps=k, history=10)
        np.testing.assert_allclose(sol.value, trace["x"][k], atol=tolerance)
        assert int(sol.stats.num_steps) == k
        assert int(sol.stats.num_steps + sol.stats.num_rejected) == sum(trace["n_trials"][:k])
    np.testing.assert_allclose(sol.history.objective[: num + 1], trace["phi"], atol=tolerance)
    np.testing.assert_array_equal(sol.history.step_size[1 : num + 1], trace["alpha"])
    assert np.all(np.isnan(sol.history.objective[num + 1 :]))


def test_the_paper_proposal_does_not_depend_on_the_iterate(golden):
    f, g = published_pair(golden, "plus")
    data = jnp.asarray(golden["y_test_norm"][0], jnp.float64)
    descent = solvers.DIPG(g, proposal="paper").descent
    for key in jax.random.split(jax.random.key(0), 5):
        x = jax.random.uniform(key, (64,))
        point = solvers.Point(f(x), f(x) - data, jnp.asarray(0.0), jnp.zeros(64))
        displacement, _ = descent.displacement(pj.Problem(f, data), x, point, None, jnp.asarray(1.0))
        np.testing.assert_allclose(x + displacement, g(data), atol=1e-6 * float(jnp.linalg.norm(g(data))))


def test_relaxed_steps_of_an_exact_inverse_follow_the_formula():
    a = jnp.eye(6) + 0.1 * jax.random.normal(jax.random.key(0), (6, 6))
    inverse = jnp.linalg.inv(a)
    x_true = jax.random.normal(jax.random.key(1), (20, 6))
    data = x_true @ a.T
    solver = solvers.DIPG(lambda y: inverse @ y, proposal="paper", relaxation=0.4, atol=1e-3)
    sol = pj.solve_batch(pj.Problem(lambda x: a @ x, data), solver, jnp.zeros((20, 6)))
    start = np.sqrt(np.mean(np.asarray(data) ** 2, axis=1))
    np.testing.assert_array_equal(sol.stats.num_steps, np.ceil(np.log(1e-3 / start) / np.log(0.6)))
    assert np.all(sol.success)
