"""Solvers against other implementations, closed forms and their own theory, in float64 unless said otherwise."""

import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optimistix as optx
import pytest
import scipy.optimize
from cases import PROBLEMS, local_inverse, matrix

import pinv_jax as pj
from pinv_jax import maps, solvers
from pinv_jax.solvers._normal import dense_jacobian

RESULTS = pj.RESULTS
NEWTONS = {
    "levenberg-marquardt": solvers.LevenbergMarquardt(),
    "levenberg-marquardt, svd": solvers.LevenbergMarquardt(solvers.SVD()),
    "levenberg-marquardt, cg": solvers.LevenbergMarquardt(solvers.ConjugateGradients()),
    "gauss-newton": solvers.GaussNewton(),
    "lbfgs": solvers.LBFGS(),
}
OPTIMISTIX = {
    "levenberg-marquardt": optx.LevenbergMarquardt(1e-10, 1e-10),
    "gauss-newton": optx.GaussNewton(1e-10, 1e-10),
    "dogleg": optx.Dogleg(1e-10, 1e-10),
    "bfgs": optx.BFGS(1e-10, 1e-10),
}
BOUNDS = {
    "no bound active": ([-5.0, -5.0, -5.0], [5.0, 5.0, 5.0]),
    "a lower bound active": ([-5.0, 1.1, -5.0], [5.0, 5.0, 5.0]),
    "two bounds active": ([-5.0, 1.1, -5.0], [0.9, 5.0, 5.0]),
    "one point left": ([0.9, 0.9, 0.1], [0.9, 0.9, 0.1]),
}


@functools.cache
def known(name, dtype=jnp.float64):
    """A problem of `cases`; cached, so that tests share their compiled programs."""
    return PROBLEMS[name](dtype)


@functools.cache
def noisy(name, dtype=jnp.float64, scale=0.05):
    """A problem of `cases` whose data carry noise, so that its minimum is above zero."""
    case = known(name, dtype)
    clean = case.forward(case.x_true)
    noise = scale * np.random.default_rng(1).normal(size=clean.shape)
    return case, case.problem(clean + jnp.asarray(noise, dtype))


def scipy_least_squares(case, problem):
    """SciPy's Levenberg-Marquardt (MINPACK): the minimiser and our objective there."""

    def misfit(x):
        return np.asarray(problem.misfit(jnp.asarray(x), case.forward(jnp.asarray(x))))

    jac = jax.jit(jax.jacfwd(lambda x: problem.misfit(x, case.forward(x))))
    found = scipy.optimize.least_squares(misfit, case.x0, jac, method="lm", xtol=1e-14, ftol=1e-14, gtol=1e-14)
    assert found.success
    return found.x, found.cost / problem.data.size


def point_at(problem, x):
    """What a descent knows at `x`."""
    objective, gradient = jax.value_and_grad(problem.objective)(x)
    prediction = problem.forward(x)
    return solvers.Point(prediction, prediction - problem.data, objective, gradient)


# Least squares -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "problem_name"),
    [(name, "curve fit") for name in NEWTONS]
    + [
        pytest.param(name, "rank deficient", marks=pytest.mark.slow)
        for name in ("levenberg-marquardt", "gauss-newton", "lbfgs")
    ],
)
def test_noisy_data_end_stationary_where_scipy_ends(name, problem_name):
    case, problem = noisy(problem_name)
    value, objective = scipy_least_squares(case, problem)
    sol = pj.solve(problem, NEWTONS[name], case.x0, max_steps=500)
    assert bool(sol.result == RESULTS.stationary), RESULTS[sol.result]
    assert not bool(sol.success)
    np.testing.assert_allclose(sol.stats.objective, objective, rtol=1e-10)
    if problem_name == "curve fit":  # the other has a whole plane of minimisers
        np.testing.assert_allclose(sol.value, value, atol=3e-6)


@pytest.mark.parametrize("name", ["levenberg-marquardt", "gauss-newton", "lbfgs"])
def test_the_stationary_code_is_reachable_in_float32(name):
    case, problem = noisy("curve fit", jnp.float32)
    sol = pj.solve(problem, NEWTONS[name], case.x0, max_steps=500)
    assert bool(sol.result == RESULTS.stationary), RESULTS[sol.result]
    _, objective = scipy_least_squares(*noisy("curve fit"))
    np.testing.assert_allclose(sol.stats.objective, objective, rtol=1e-3)


@functools.cache
def scipy_in_a_box(bounds):
    case, problem = noisy("curve fit")
    objective = jax.jit(jax.value_and_grad(problem.objective))
    lower, upper = map(np.asarray, BOUNDS[bounds])
    # A run that cannot improve any more calls itself unsuccessful at these tolerances; its answer stands.
    found = scipy.optimize.minimize(
        lambda x: tuple(map(np.asarray, objective(jnp.asarray(x)))),
        np.clip(case.x0, lower, upper),
        jac=True,
        method="L-BFGS-B",
        bounds=list(zip(lower, upper, strict=True)),
        options={"ftol": 1e-16, "gtol": 1e-12, "maxiter": 5000},
    )
    return found.x, found.fun


@pytest.mark.parametrize("bounds", BOUNDS)
@pytest.mark.parametrize("name", ["gradient descent", "lbfgs", "levenberg-marquardt"])
def test_solves_in_a_box_agree_with_scipy(name, bounds):
    case, problem = noisy("curve fit")
    value, objective = scipy_in_a_box(bounds)
    lower, upper = map(jnp.asarray, BOUNDS[bounds])
    boxed = case.problem(problem.data, project=solvers.Box(lower, upper))
    solver = solvers.GradientDescent(rtol=1e-13) if name == "gradient descent" else NEWTONS[name]
    sol = pj.solve(boxed, solver, case.x0, max_steps=20000)
    assert bool(sol.result == RESULTS.stationary), RESULTS[sol.result]
    np.testing.assert_allclose(sol.stats.objective, objective, rtol=1e-6)
    np.testing.assert_allclose(sol.value, value, atol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("name", OPTIMISTIX)
def test_optimistix_solvers_go_through_unchanged(name):
    case = known("curve fit")
    sol = pj.solve(case.problem(), OPTIMISTIX[name], case.x0, max_steps=200)
    assert bool(sol.success), RESULTS[sol.result]
    np.testing.assert_allclose(sol.value, case.x_true, atol=1e-6)
    problem = case.problem()
    direct = optx.least_squares(
        lambda x, _: problem.misfit(x, case.forward(x)), OPTIMISTIX[name], case.x0, max_steps=200
    )
    np.testing.assert_allclose(sol.value, direct.value, atol=1e-10)
    assert int(sol.stats.num_steps) == int(direct.stats["num_steps"])


@pytest.mark.parametrize("name", ["levenberg-marquardt", "bfgs"])
def test_optimistix_solvers_find_the_minimum_of_noisy_data_in_a_batch(name):
    case, problem = noisy("curve fit")
    value, objective = scipy_least_squares(case, problem)
    data = jnp.stack([problem.data, case.forward(case.x_true)])
    sol = pj.solve_batch(case.problem(data), OPTIMISTIX[name], jnp.stack([case.x0, case.x0]), max_steps=200)
    np.testing.assert_allclose(sol.value[0], value, atol=1e-5)
    np.testing.assert_allclose(sol.stats.objective[0], objective, rtol=1e-9)
    np.testing.assert_allclose(sol.value[1], case.x_true, atol=1e-6)


# Directions ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("damping", [0.0, 1e-3, 1.0])
def test_conjugate_gradients_agree_with_a_dense_solve(damping):
    case, problem = noisy("curve fit")
    x = case.x_true + 0.1
    point = point_at(problem, x)
    jac = jax.jacfwd(case.forward)(x)
    normal = jac.T @ jac / problem.data.size + damping * jnp.eye(x.size)
    direction, work = solvers.ConjugateGradients(rtol=1e-13).solve(problem, x, point, None, None, damping)
    np.testing.assert_allclose(direction, -jnp.linalg.solve(normal, point.gradient), rtol=1e-8)
    assert 1 <= int(work.jvp) == int(work.vjp) <= 10
    # A truncated run is what k steps of the method give: the best point of the Krylov space.
    once, work = solvers.ConjugateGradients(rtol=1e-13, max_steps=1).solve(problem, x, point, None, None, damping)
    g = point.gradient
    np.testing.assert_allclose(once, -(g @ g) / (g @ normal @ g) * g, rtol=1e-10)
    assert int(work.jvp) == 1


@pytest.mark.parametrize("rank", [None, 3, 1])
@pytest.mark.parametrize("shape", [(6, 5), (5, 6)])
def test_svd_direction_agrees_with_numpy_for_any_rank(shape, rank):
    a = matrix(*shape, jnp.float64, rank=rank, seed=7)
    x = jnp.linspace(-1, 1, shape[1])
    problem = pj.Problem(lambda v: a @ v, jnp.linspace(0, 1, shape[0]))
    point = point_at(problem, x)
    svd = solvers.SVD()
    memo, _ = svd.init(problem, x, point, None)
    direction, _ = svd.solve(problem, x, point, None, memo, 0.0)
    np.testing.assert_allclose(direction, np.linalg.lstsq(a, -point.residual, rcond=1e-10)[0], atol=1e-12)
    damped, _ = svd.solve(problem, x, point, None, memo, 0.1)
    normal = a.T @ a / shape[0] + 0.1 * jnp.eye(shape[1])
    np.testing.assert_allclose(damped, -jnp.linalg.solve(normal, point.gradient), atol=1e-12)


@pytest.mark.parametrize("problem_name", ["curve fit", "rank deficient"])
def test_the_jvp_step_of_the_pseudo_inverse_is_the_gauss_newton_step(problem_name):
    case, problem = noisy(problem_name, scale=0.01)
    x0 = case.x_true + 0.01
    inverse = local_inverse(case.forward, x0)
    learned = solvers.DIPG(inverse, proposal="jvp", jump_first=False)
    sol = pj.solve(problem, learned, x0, max_steps=1)
    newton = pj.solve(problem, solvers.GaussNewton(), x0, max_steps=1)
    assert int(sol.stats.num_steps) == int(newton.stats.num_steps) == 1
    assert int(sol.stats.num_rejected) == int(newton.stats.num_rejected) == 0
    assert np.max(np.abs(newton.value - x0)) > 1e-3
    np.testing.assert_allclose(sol.value, newton.value, atol=1e-10)


@pytest.mark.parametrize("problem_name", ["curve fit", "rank deficient"])
def test_the_jvp_step_of_the_damped_pseudo_inverse_is_the_levenberg_marquardt_step(problem_name):
    case, problem = noisy(problem_name, scale=0.01)
    x0, y0, size = case.x_true + 0.01, case.forward(case.x_true + 0.01), problem.data.size
    jac = jax.jacfwd(case.forward)(x0)
    damped = jnp.linalg.solve(jac.T @ jac + 0.2 * jnp.eye(x0.size), jac.T)
    learned = solvers.DIPG(lambda y: x0 + damped @ (y - y0), proposal="jvp", jump_first=False)
    sol = pj.solve(problem, learned, x0, max_steps=1)
    # 0.2 in the sum scaling of J'J is 0.2 / size in the mean scaling of the objective.
    marquardt = pj.solve(problem, solvers.LevenbergMarquardt(damping=0.2 / size), x0, max_steps=1)
    assert int(sol.stats.num_steps) == int(marquardt.stats.num_steps) == 1
    assert np.max(np.abs(marquardt.value - x0)) > 1e-3
    np.testing.assert_allclose(sol.value, marquardt.value, atol=1e-10)


# Projections ---------------------------------------------------------------------------------------------------------


def nearest_by_search(candidates, x):
    return candidates[np.argmin(np.sum((candidates - x) ** 2, axis=1))]


@pytest.mark.parametrize("seed", range(3))
def test_projections_agree_with_brute_force(seed):
    rng = np.random.default_rng(seed)
    x = jnp.asarray(rng.normal(size=3) * 2)
    cube = np.stack(np.meshgrid(*[np.linspace(-3, 3, 61)] * 3, indexing="ij"), axis=-1).reshape(-1, 3)
    spacing = 0.1
    sets = {
        "box": (solvers.Box(-0.5, jnp.asarray([0.2, 1.0, 0.4])), np.clip(cube, -0.5, [0.2, 1.0, 0.4])),
        "ball": (solvers.Ball(1.5), cube[np.sum(cube**2, axis=1) <= 1.5**2]),
        "simplex": (solvers.Simplex(2.0), cube[(cube >= -1e-9).all(1) & (np.abs(cube.sum(1) - 2) < 1e-9)]),
    }
    for name, (project, candidates) in sets.items():
        nearest = project(x)
        best = nearest_by_search(candidates, np.asarray(x))
        # Feasible, no farther than the best of the grid, hence the nearest point up to the grid's spacing.
        assert np.sum((nearest - x) ** 2) <= np.sum((best - x) ** 2) + 1e-12, name
        assert np.linalg.norm(nearest - best) <= 4 * spacing, name
        np.testing.assert_allclose(project(nearest), nearest, atol=1e-12, err_msg=name)


def test_projections_have_their_known_values():
    x = jnp.asarray([3.0, -4.0])
    np.testing.assert_allclose(solvers.Ball(1.0)(x), [0.6, -0.8], atol=1e-12)
    np.testing.assert_allclose(solvers.Ball(10.0)(x), x)
    np.testing.assert_allclose(solvers.Box(-1.0, 2.0)(x), [2.0, -1.0])
    np.testing.assert_allclose(solvers.Simplex()(jnp.asarray([0.5, 0.3, 0.2])), [0.5, 0.3, 0.2], atol=1e-12)
    np.testing.assert_allclose(solvers.Simplex()(jnp.asarray([5.0, 0.0, 4.5])), [0.75, 0.0, 0.25], atol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("project", "feasible"),
    [
        (solvers.Box(-0.5, 0.5), lambda x: np.max(np.abs(x)) <= 0.5),
        (solvers.Ball(0.7), lambda x: np.linalg.norm(x) <= 0.7 + 1e-12),
        (solvers.Simplex(0.5), lambda x: np.min(x) >= 0 and abs(np.sum(x) - 0.5) < 1e-12),
    ],
    ids=["box", "ball", "simplex"],
)
def test_gradient_descent_finds_the_minimum_over_a_convex_set(project, feasible):
    case, problem = noisy("linear")
    sol = pj.solve(
        case.problem(problem.data, project=project), solvers.GradientDescent(rtol=1e-14), case.x0, max_steps=2000
    )
    assert feasible(np.asarray(sol.value))
    # The minimum over a convex set is the fixed point of projected gradient steps, whatever their length.
    gradient = jax.grad(problem.objective)(sol.value)
    assert np.linalg.norm(gradient) > 1e-2, "the constraint is meant to be active"
    np.testing.assert_allclose(project(sol.value - gradient), sol.value, atol=1e-6)


# Priors and noise ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "matrix_free"),
    [(name, False) for name in [*NEWTONS, "optimistix"]] + [("levenberg-marquardt", True)],
)
def test_the_maximum_a_posteriori_of_a_linear_problem_is_its_posterior_mean(name, matrix_free):
    a = matrix(4, 5, jnp.float64, seed=8)  # fewer data than unknowns: without the prior there is no answer
    data, noise_std = jnp.linspace(-1, 1, 4), jnp.linspace(0.1, 0.4, 4)
    mean, inverse_sqrt = jnp.linspace(0, 1, 5), matrix(5, 5, jnp.float64, seed=9)
    prior = pj.GaussianPrior(mean, (lambda v: inverse_sqrt @ v) if matrix_free else inverse_sqrt)
    problem = pj.Problem(lambda x: a @ x, data, noise_std=noise_std, prior=prior)
    precision = (a.T / noise_std[None, :] ** 2) @ a + inverse_sqrt.T @ inverse_sqrt
    expected = jnp.linalg.solve(
        precision, (a.T / noise_std[None, :] ** 2) @ data + inverse_sqrt.T @ inverse_sqrt @ mean
    )
    solver = optx.LevenbergMarquardt(1e-11, 1e-11) if name == "optimistix" else NEWTONS[name]
    sol = pj.solve(problem, solver, jnp.zeros(5), max_steps=300)
    np.testing.assert_allclose(sol.value, expected, atol=1e-6)
    np.testing.assert_allclose(sol.stats.residual_rms, np.sqrt(np.mean((a @ expected - data) ** 2)), rtol=1e-5)
    np.testing.assert_allclose(sol.stats.objective, problem.objective(expected), rtol=1e-10)


@pytest.mark.parametrize("noise_std", [0.05, jnp.linspace(0.02, 0.09, 9)], ids=["scalar", "per entry"])
def test_the_discrepancy_principle_stops_at_the_noise(noise_std):
    case, problem = noisy("curve fit")
    problem = case.problem(problem.data, noise_std=noise_std)

    def discrepancy(x):
        return np.sqrt(np.mean(np.asarray((case.forward(x) - problem.data) / noise_std) ** 2))

    solver = solvers.LevenbergMarquardt(discrepancy=1.3)
    sol = pj.solve(problem, solver, case.x0)
    assert bool(sol.success)
    assert int(sol.stats.num_steps) >= 1
    assert discrepancy(sol.value) <= 1.3
    before = pj.solve(problem, solver, case.x0, max_steps=int(sol.stats.num_steps) - 1)
    assert discrepancy(before.value) > 1.3, "it could have stopped one step earlier"
    # A bound below what any x reaches ends as stationary, not as a success.
    strict = pj.solve(problem, solvers.LevenbergMarquardt(discrepancy=0.01), case.x0)
    assert bool(strict.result == RESULTS.stationary)
    assert int(strict.stats.num_steps) > int(sol.stats.num_steps)


def test_throw_raises_outside_and_inside_jit():
    case, problem = noisy("curve fit")
    solver = NEWTONS["levenberg-marquardt"]

    def one(data):
        return pj.solve(case.problem(data), solver, case.x0, throw=True).value

    with pytest.raises(eqx.EquinoxRuntimeError, match="maximum number of steps"):
        pj.solve(problem, solver, case.x0, max_steps=1, throw=True)
    with pytest.raises(Exception, match="stationary point"):
        jax.jit(one)(problem.data).block_until_ready()
    np.testing.assert_allclose(one(case.forward(case.x_true)), case.x_true, atol=1e-4)


def test_history_holds_what_happened():
    case, problem = noisy("curve fit")
    solver = NEWTONS["levenberg-marquardt"]
    sol = pj.solve(problem, solver, case.x0, history=40)
    num = int(sol.stats.num_steps)
    assert 2 <= num < 39
    prefixes = [pj.solve(problem, solver, case.x0, max_steps=k) for k in range(num + 1)]
    history = sol.history
    np.testing.assert_allclose(history.objective[: num + 1], [p.stats.objective for p in prefixes], rtol=1e-12)
    np.testing.assert_allclose(history.residual_rms[: num + 1], [p.stats.residual_rms for p in prefixes], rtol=1e-12)
    np.testing.assert_allclose(history.objective[0], problem.objective(case.x0), rtol=1e-12)
    np.testing.assert_allclose(history.objective[num], sol.stats.objective, rtol=1e-12)
    assert np.isnan(history.step_size[0])
    assert np.all(history.step_size[1 : num + 1] > 0)
    for row in (history.objective, history.residual_rms, history.step_size):
        assert np.all(np.isnan(row[num + 1 :]))
    assert np.all(np.isnan(history.rjcp)), "this solver has no inverse"
    short = pj.solve(problem, solver, case.x0, history=2)
    np.testing.assert_array_equal(short.history.objective, history.objective[:2])
    assert int(short.stats.num_steps) == num
    assert sol.history is not None
    assert pj.solve(problem, solver, case.x0).history is None


# The safeguard -------------------------------------------------------------------------------------------------------


def trust(case, threshold):
    rng = np.random.default_rng(0)
    probes = jnp.asarray(0.1 * rng.normal(size=(4, *case.x_true.shape)))
    noise = jnp.asarray(0.001 * rng.normal(size=(4, *case.forward(case.x_true).shape)))
    return solvers.Trust(probes, noise, threshold=threshold)


@pytest.mark.slow
@pytest.mark.parametrize("problem_name", ["curve fit", "wide"])
def test_a_random_network_as_inverse_costs_time_but_not_the_answer(problem_name):
    case = known(problem_name)
    problem = case.problem()
    network = maps.MLP((problem.data.size, 16, case.x0.size), key=jax.random.key(5))
    sol = pj.solve(problem, solvers.Safeguarded(network), case.x0, max_steps=300, history=301)
    assert bool(sol.success), RESULTS[sol.result]
    assert 0 < int(sol.stats.num_fallbacks) <= int(sol.stats.num_steps)
    assert int(sol.stats.num_rejected) > 0
    assert np.all(np.diff(sol.history.objective[: int(sol.stats.num_steps) + 1]) <= 0)
    alone = pj.solve(problem, solvers.DIPG(network), case.x0, max_steps=300)
    assert not bool(alone.success), "this inverse is meant to be useless"


@pytest.mark.parametrize("problem_name", ["wide", "rosenbrock"])
def test_a_good_inverse_needs_no_fallback(problem_name):
    case = known(problem_name)
    sol = pj.solve(case.problem(), solvers.Safeguarded(case.inverse), case.x0)
    assert bool(sol.success)
    assert int(sol.stats.num_fallbacks) == int(sol.stats.num_rejected) == 0


def test_an_exact_inverse_needs_no_step():
    sensor = maps.CubicSine((4,), dtype=jnp.float64)
    x_true = jnp.linspace(-1, 1, 4)
    for solver in (solvers.Safeguarded(sensor.pinv), solvers.DIPG(sensor.pinv)):
        sol = pj.solve(pj.Problem(sensor, sensor(x_true)), solver, jnp.zeros(4))
        assert bool(sol.success)
        assert int(sol.stats.num_steps) == int(sol.stats.num_fallbacks) == int(sol.stats.num_vjp) == 0
        np.testing.assert_allclose(sol.value, x_true, atol=1e-6)


def test_a_threshold_of_zero_forces_the_fallback():
    case = known("curve fit")
    never = solvers.Safeguarded(case.inverse, trust=trust(case, 0.0))
    sol = pj.solve(case.problem(), never, case.x0, history=30)
    assert bool(sol.success)
    assert int(sol.stats.num_fallbacks) == int(sol.stats.num_steps) > 0
    assert np.all(sol.history.rjcp[: int(sol.stats.num_steps) + 1] > 0)
    always = pj.solve(case.problem(), solvers.Safeguarded(case.inverse, trust=trust(case, 1e6)), case.x0, history=30)
    assert int(always.stats.num_fallbacks) == 0
    assert int(always.stats.num_steps) > 0


def test_the_recorded_rjcp_is_that_of_the_iterate():
    case = known("curve fit")
    watch = trust(case, 1.0)
    for solver in (solvers.DIPG(case.inverse, trust=watch), solvers.Safeguarded(case.inverse, trust=watch)):
        sol = pj.solve(case.problem(), solver, case.x0, history=30)
        num = int(sol.stats.num_steps)
        assert num > 0
        jac, inverse_jac = jax.jacfwd(case.forward)(sol.value), jax.jacfwd(case.inverse)(case.forward(sol.value))
        defect = (watch.probes @ jac.T + watch.noise) @ inverse_jac.T - watch.probes
        np.testing.assert_allclose(sol.history.rjcp[num], jnp.sum(defect**2) / jnp.sum(watch.probes**2), rtol=1e-8)


# Tight solves --------------------------------------------------------------------------------------------------------


def errors_per_step(problem, solver, x0, x_true, num):
    """`||x_t - x_true||` for t = 0, 1, ..., num."""
    values = [pj.solve(problem, solver, x0, max_steps=k).value for k in range(num + 1)]
    return np.asarray([jnp.linalg.norm(v - x_true) for v in values])


@pytest.mark.parametrize("proposal", ["defect", "jvp"])
def test_the_defect_form_contracts_like_the_composition_defect(proposal):
    a = matrix(5, 5, jnp.float64, seed=10)
    rng = np.random.default_rng(3)
    defect = jnp.asarray(rng.normal(size=(5, 5)))
    defect = 0.2 * defect / jnp.linalg.norm(defect, ord=2)
    inverse = (jnp.eye(5) + defect) @ jnp.linalg.inv(a)  # G J - I = defect
    x_true = jnp.linspace(-1, 1, 5)
    solver = solvers.DIPG(lambda y: inverse @ y, proposal=proposal, jump_first=False, atol=1e-12)
    errors = errors_per_step(pj.Problem(lambda x: a @ x, a @ x_true), solver, jnp.zeros(5), x_true, 8)
    ratios = errors[1:] / errors[:-1]
    assert np.all(ratios <= 0.2 * (1 + 1e-9))
    # Of a linear map the errors are known exactly: x_t - x_true = (-defect)^t (x_0 - x_true).
    powers = [jnp.linalg.norm(jnp.linalg.matrix_power(-defect, t) @ x_true) for t in range(9)]
    np.testing.assert_allclose(errors, powers, rtol=1e-6, atol=1e-13)


@pytest.mark.parametrize("problem_name", ["curve fit", "rosenbrock"])
def test_the_defect_form_converges_quadratically_where_the_inverse_is_exact_at_the_solution(problem_name):
    case = known(problem_name)
    solver = solvers.DIPG(local_inverse(case.forward, case.x_true), jump_first=False, atol=1e-14)
    errors = errors_per_step(case.problem(), solver, case.x_true + 0.02, case.x_true, 3)
    assert errors[0] > 1e-2
    for before, after in zip(errors[:-1], errors[1:], strict=True):
        if before > 1e-6:  # below, the square drowns in rounding
            assert after <= 30 * before**2
    assert errors[-1] < 1e-11


def test_only_the_defect_form_gets_below_the_error_of_the_inverse():
    case = known("curve fit")
    problem, inverse = case.problem(), case.inverse
    one_shot = float(problem.residual_rms(case.forward(inverse(problem.data)) - problem.data))
    assert one_shot > 1e-4
    tight = pj.solve(problem, solvers.DIPG(inverse, atol=1e-10), case.x0)
    assert bool(tight.success)
    assert int(tight.stats.num_steps) <= 12
    # At relaxation one the paper form is at g(data) after one step, and has nothing more to propose.
    paper = pj.solve(problem, solvers.DIPG(inverse, proposal="paper", atol=1e-10), case.x0)
    np.testing.assert_allclose(paper.value, inverse(problem.data), atol=1e-12)
    assert int(paper.stats.num_steps) == 1
    assert bool(paper.result == RESULTS.stationary)
    relaxed = pj.solve(problem, solvers.DIPG(inverse, proposal="paper", relaxation=0.4, atol=1e-10), case.x0)
    assert not bool(relaxed.success)
    assert float(relaxed.stats.residual_rms) > 0.1 * one_shot


@pytest.mark.parametrize(
    "solver",
    [
        solvers.GradientDescent(),
        solvers.LBFGS(),
        solvers.GaussNewton(),
        pytest.param(solvers.GaussNewton(solvers.ConjugateGradients()), marks=pytest.mark.slow),
        solvers.LevenbergMarquardt(),
        pytest.param(solvers.LevenbergMarquardt(solvers.SVD()), marks=pytest.mark.slow),
        pytest.param(solvers.LevenbergMarquardt(solvers.ConjugateGradients()), marks=pytest.mark.slow),
        pytest.param(solvers.LevenbergMarquardt(damping=1e-3), marks=pytest.mark.slow),
        solvers.Safeguarded(lambda y: 0.9 * jnp.linalg.solve(jnp.asarray([[1.0, 0.9], [0.0, 0.3]]), y)),
    ],
    ids=lambda solver: type(solver).__name__,
)
def test_an_active_bound_does_not_stall_a_solver(solver):
    # The step for both variables, clipped, does not descend at (1.155, 0); the minimum over the box is at (1, 0).
    a, data = jnp.asarray([[1.0, 0.9], [0.0, 0.3]]), jnp.asarray([1.0, -1.0])
    problem = pj.Problem(lambda x: a @ x, data, solvers.Box(0.0, 5.0))
    sol = pj.solve(problem, solver, jnp.asarray([0.5, 0.5]), max_steps=500)
    np.testing.assert_allclose(sol.value, [1.0, 0.0], atol=1e-6)
    assert bool(sol.result == RESULTS.stationary)


def test_a_jacobian_of_many_columns_is_computed_in_parts():
    problem = pj.Problem(lambda x: x + 0.1 * jnp.roll(x, 1) ** 2, jnp.zeros(300))
    xs = jnp.linspace(-1.0, 2.0, 600).reshape(2, 300)
    found = jax.jit(jax.vmap(lambda x: dense_jacobian(problem, x)[0]))(xs)
    shifted = np.roll(np.eye(300), 1, axis=0)
    for jac, x in zip(found, np.asarray(xs), strict=True):
        np.testing.assert_allclose(jac, np.eye(300) + 0.2 * np.roll(x, 1)[:, None] * shifted, atol=1e-14)
