"""Implicit differentiation of a solve, against central differences and against the derivative of the steps."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import key, matrix

import pinv_jax as pj
from pinv_jax import maps, solvers
from pinv_jax.solvers import Implicit
from pinv_jax.solvers._krylov import lanczos, pseudo_solve

TIMES = jnp.linspace(0.0, 2.0, 9)
TIGHT = {"atol": 1e-13, "rtol": 1e-15}


def curve(w, x):
    return x[0] * jnp.exp(-x[1] * TIMES.astype(x.dtype) * w) + x[2] + 0.1 * x[0] ** 2


def wide(w, x):
    return jnp.tanh(w * (matrix(3, 6, jnp.float64, seed=5) @ x))


def deficient(w, x):
    y = matrix(6, 5, jnp.float64, rank=3, seed=6) @ x
    return y + w * y**3


# Map, its parameter, data and start; the data of the first and last cannot be met.
PROBLEMS = {
    "over-determined": (
        curve,
        1.0,
        jnp.exp(-0.8 * TIMES) + 0.3 + 0.15 * jnp.sin(7 * TIMES),
        jnp.array([0.7, 1.1, 0.1]),
    ),
    "under-determined": (wide, 0.5, jnp.array([0.3, -0.2, 0.4]), jnp.linspace(0.0, 0.3, 6)),
    "rank deficient": (
        deficient,
        0.1,
        matrix(6, 5, jnp.float64, rank=3, seed=6) @ jnp.linspace(-0.5, 0.5, 5) + 0.3 * jnp.cos(jnp.arange(6.0)),
        jnp.linspace(0.0, 0.3, 5),
    ),
}


@functools.partial(jax.jit, static_argnames=("name", "adjoint", "policy", "hessian"))
def solution(data, w, name, adjoint="forward", policy=None, hessian="full"):
    f, _, _, x0 = PROBLEMS[name]
    adjoint = adjoint if policy is None else Implicit(policy, hessian=hessian)
    # w is closed over: a derivative must not get lost in a closure.
    problem = pj.Problem(lambda x: f(w, x), data)
    # Steps of least norm, so that the steps have the derivative of least norm where the problem is singular.
    solver = solvers.LevenbergMarquardt(solvers.SVD(), **TIGHT)
    return pj.solve(problem, solver, x0, max_steps=300, adjoint=adjoint).value


def jacobian(name, mode=jax.jacrev, **options):
    _, w, data, _ = PROBLEMS[name]
    return jax.jit(mode(functools.partial(solution, name=name, **options), argnums=(0, 1)))(data, w)


@functools.cache
def differences(name, step=1e-5):
    _, w, data, _ = PROBLEMS[name]
    moves = step * jnp.eye(data.size + 1)

    @jax.jit
    @jax.vmap
    def end(move):
        """A solve stops where its objective no longer changes; Newton's method brings the minimiser to rounding."""
        d, v = data + move[:-1], w + move[-1]
        x = solution(d, v, name)
        objective = pj.Problem(lambda x: PROBLEMS[name][0](v, x), d).objective
        for _ in range(3):
            x = x - jnp.linalg.pinv(jax.hessian(objective)(x), rtol=1e-9) @ jax.grad(objective)(x)
        return x

    found = (end(moves) - end(-moves)).T / (2 * step)
    return found[:, :-1], found[:, -1]


def assert_close(found, expected, rtol):
    for a, b in zip(found, expected, strict=True):
        assert jnp.linalg.norm(a - b) <= rtol * jnp.linalg.norm(b)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["over-determined", "under-determined"])
def test_reverse_mode_against_differences(name):
    assert_close(jacobian(name, adjoint="implicit"), differences(name), 1e-6)


@pytest.mark.slow
def test_in_single_precision_against_differences_in_double():
    f, w, data, x0 = PROBLEMS["over-determined"]
    solver = solvers.LevenbergMarquardt(solvers.SVD(), atol=1e-7)

    def solve(data, w):
        problem = pj.Problem(lambda x: f(w, x), data)
        return pj.solve(problem, solver, x0.astype(jnp.float32), max_steps=300, adjoint="implicit").value

    found = jax.jit(jax.jacrev(solve, argnums=(0, 1)))(data.astype(jnp.float32), jnp.float32(w))
    assert all(a.dtype == jnp.float32 for a in found)
    assert_close(found, differences("over-determined"), 1e-3)


@pytest.mark.slow
def test_forward_mode_and_the_derivative_of_the_steps():
    found = jacobian("rank deficient", jax.jacfwd, adjoint="implicit")
    assert_close(found, differences("rank deficient"), 1e-6)
    assert_close(found, jacobian("rank deficient", adjoint="checkpointed"), 1e-6)


@pytest.mark.slow
def test_gauss_newton_is_exact_only_without_a_residual():
    assert_close(
        jacobian("under-determined", policy="nan", hessian="gauss-newton"), differences("under-determined"), 1e-6
    )
    approximate, _ = jacobian("over-determined", policy="nan", hessian="gauss-newton")
    in_data, _ = differences("over-determined")
    assert jnp.linalg.norm(approximate - in_data) > 0.1 * jnp.linalg.norm(in_data)


@pytest.mark.slow
def test_a_derivative_of_second_order():
    _, w, data, _ = PROBLEMS["over-determined"]
    slope = jax.jit(jax.grad(lambda w: jnp.sum(solution(data, w, "over-determined", adjoint="implicit") ** 2)))
    np.testing.assert_allclose(jax.grad(slope)(w), (slope(w + 1e-3) - slope(w - 1e-3)) / 2e-3, rtol=1e-4)


# Everything that a problem can have -----------------------------------------------------------------------------------


def bounded(values, adjoint):
    """Noise weights, a prior of matrix or of function, and bounds that hold two of the variables."""
    data, noise_std, mean, scale, w, upper = values
    box = solvers.Box(jnp.array([-9.0, 0.5, -9.0]), upper)
    prior = pj.GaussianPrior(mean, lambda v: scale * v)
    problem = pj.Problem(lambda x: curve(w, x), data, box, noise_std, prior)
    solver = solvers.LevenbergMarquardt(**TIGHT)
    return pj.solve(problem, solver, jnp.array([0.5, 1.1, 0.1]), max_steps=300, adjoint=adjoint)


def everything():
    _, w, data, _ = PROBLEMS["over-determined"]
    upper = jnp.array([0.6, 9.0, 9.0])
    return data, jnp.linspace(0.8, 1.2, 9), jnp.array([0.6, 0.2, 0.4]), jnp.array([2.0, 1.0, 3.0]), w, upper


@pytest.mark.slow
def test_every_part_of_a_problem_and_variables_at_bounds():
    values = everything()
    direction = jax.tree.map(lambda v: jnp.cos(jnp.arange(1.0, jnp.size(v) + 1)).reshape(jnp.shape(v)), values)
    weight = jnp.array([0.3, -0.7, 1.1])

    @functools.partial(jax.jit, static_argnames="adjoint")
    def outcome(values, adjoint):
        sol = bounded(values, adjoint)
        return weight @ sol.value + sol.stats.objective + 2 * sol.stats.residual_rms

    sol = bounded(values, "forward")
    np.testing.assert_array_equal(sol.value[:2], [0.6, 0.5])  # both held
    step = 1e-5
    moved = lambda h: outcome(jax.tree.map(lambda v, d: v + h * d, values, direction), "forward")
    _, tangent = jax.jvp(lambda v: outcome(v, "implicit"), (values,), (direction,))
    np.testing.assert_allclose(tangent, (moved(step) - moved(-step)) / (2 * step), rtol=1e-6)
    pulled = jax.grad(lambda v: outcome(v, "implicit"))(values)
    dot = sum(jnp.sum(a * b) for a, b in zip(pulled, direction, strict=True))
    np.testing.assert_allclose(dot, tangent, rtol=1e-9)
    in_data = jax.jacfwd(lambda d: bounded((d, *values[1:]), "implicit").value)(values[0])
    np.testing.assert_array_equal(in_data[:2], 0.0)
    assert jnp.all(in_data[2] != 0)


@pytest.mark.slow
def test_a_solution_in_the_kink_of_a_bound_is_not_certified():
    """The unbounded minimiser lies on the bound: to one side the bound holds it, to the other it does not."""
    problem = lambda d: pj.Problem(lambda x: jnp.stack([x[0], 2 * x[1]]), d, solvers.Box(0.0, 1.0))
    solver = solvers.GaussNewton(**TIGHT)

    @jax.vmap
    def slopes(data):
        return jax.jacrev(lambda d: pj.solve(problem(d), solver, jnp.full(2, 0.5), adjoint="implicit").value)(data)

    kink, held, free = slopes(jnp.array([[1.0, 1.0], [1.2, 1.0], [0.9, 1.0]]))
    assert jnp.all(jnp.isnan(kink))
    np.testing.assert_allclose(held, jnp.diag(jnp.array([0.0, 0.5])), atol=1e-12)
    np.testing.assert_allclose(free, jnp.diag(jnp.array([1.0, 0.5])), atol=1e-12)


# Lanes that are not at a minimiser ------------------------------------------------------------------------------------


def batch_gradient(policy):
    """Gradients of one sum over five lanes: three converge, one has NaN data, one a NaN start."""
    _, w, data, x0 = PROBLEMS["over-determined"]
    data = jnp.stack([data, data + 0.05 * TIMES, data, data, 0.9 * data]).at[2, 4].set(jnp.nan)
    x0 = jnp.stack([x0] * 5).at[3, 1].set(jnp.nan)
    solver = solvers.LevenbergMarquardt(**TIGHT)

    def total(data, w):
        problem = pj.Problem(jax.tree_util.Partial(curve, w), data)
        sol = pj.solve_batch(problem, solver, x0, max_steps=300, adjoint=Implicit(policy))
        return jnp.sum(sol.value @ jnp.array([1.0, 2.0, 3.0]))

    return jax.jit(jax.grad(total, argnums=(0, 1)))(data, w)


def single_gradients():
    _, w, data, _ = PROBLEMS["over-determined"]

    def total(data, w):
        return solution(data, w, "over-determined", adjoint="implicit") @ jnp.array([1.0, 2.0, 3.0])

    each = jax.jit(jax.vmap(jax.grad(total, argnums=(0, 1)), in_axes=(0, None)))
    return each(jnp.stack([data, data + 0.05 * TIMES, 0.9 * data]), w)


GOOD = np.array([0, 1, 4])


@pytest.mark.slow
@pytest.mark.parametrize("policy", ["nan", "zero"])
def test_a_lane_that_is_not_certified_keeps_its_neighbours_whole(policy):
    in_data, in_w = batch_gradient(policy)
    expected, each = single_gradients()
    np.testing.assert_allclose(in_data[GOOD], expected, rtol=1e-6)
    if policy == "nan":
        assert jnp.all(jnp.isnan(in_data[2:4]))
        assert jnp.isnan(in_w)  # shared, and one part of the sum is unknown
    else:
        np.testing.assert_array_equal(in_data[2:4], 0.0)
        np.testing.assert_allclose(in_w, jnp.sum(each), rtol=1e-6)


def test_a_solve_that_ran_out_of_steps_has_no_gradient():
    """The exact gradient of `sum(x)` is 4: two steps know nothing of it, and say so."""

    def total(w, policy, max_steps):
        problem = pj.Problem(lambda x: w * (x + 0.2 * x**3), jnp.full(4, 1.2))
        solver = solvers.GradientDescent(0.1, atol=1e-12)
        return -jnp.sum(pj.solve(problem, solver, jnp.zeros(4), max_steps=max_steps, adjoint=Implicit(policy)).value)

    slope = lambda policy, steps: jax.grad(lambda w: total(w, policy, steps))(1.0)
    assert jnp.isnan(slope("nan", 2))
    exact = 4 * 1.2 / (1 + 0.6)
    np.testing.assert_allclose(slope("nan", 3000), exact, rtol=1e-3)


@pytest.mark.slow
def test_a_solve_that_stopped_at_the_noise_is_not_stationary():
    """Its implicit gradient would be far off; it is refused, and the policy "unrolled" returns that of the steps."""
    grid = jnp.arange(12.0)
    blur = jnp.exp(-0.2 * (grid[:, None] - grid[None]) ** 2) / 4
    weight, data = jnp.sin(grid), jnp.sinh(blur @ jnp.cos(grid / 3) + 0.05 * jnp.sin(5 * grid))

    def total(data, adjoint):
        problem = pj.Problem(lambda x: jnp.sinh(blur @ x), data, noise_std=0.05)
        solver = solvers.GaussNewton(solvers.ConjugateGradients(max_steps=4), discrepancy=1.0)
        return weight @ pj.solve(problem, solver, jnp.zeros(12), adjoint=adjoint).value

    gradient = lambda adjoint: jax.jit(jax.grad(lambda d: total(d, adjoint)))(data)
    steps = gradient("checkpointed")
    assert jnp.all(jnp.isnan(gradient("implicit")))
    np.testing.assert_allclose(gradient(Implicit("unrolled")), steps, rtol=1e-9)
    wrong = gradient(Implicit(tolerance=jnp.inf))  # as if every lane were certified
    assert jnp.linalg.norm(wrong - steps) > 5 * jnp.linalg.norm(steps)


# The linear systems, and what is refused ------------------------------------------------------------------------------


def spectrum(values, dtype, seed=0):
    q = np.linalg.qr(np.random.default_rng(seed).normal(size=(len(values), len(values))))[0]
    return jnp.asarray((q * np.asarray(values)) @ q.T, dtype)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_pseudo_solve_is_the_pseudo_inverse(dtype):
    """Of a singular matrix, for a right-hand side outside its range."""
    eps = float(jnp.finfo(dtype).eps)
    h = spectrum([*np.geomspace(1, 1e-2, 8), 0, 0, 0, 0], dtype)
    b = jnp.asarray(np.random.default_rng(1).normal(size=12), dtype)
    options = {"max_steps": 20, "rtol": eps ** (2 / 3), "rcond": 100 * eps}
    x, doubt, solved = jax.jit(lambda b: pseudo_solve(lambda v: h @ v, b, **options))(b)
    assert solved
    assert eps < doubt < 1e3 * eps
    np.testing.assert_allclose(x, np.linalg.pinv(np.asarray(h), rcond=1e-4) @ np.asarray(b), rtol=0, atol=1e5 * eps)
    *_, doubt, _ = pseudo_solve(lambda v: h @ v + 3 * eps * v, b, **options | {"rcond": 0.0})
    assert doubt > 0.3  # curvature that may be rounding
    assert not pseudo_solve(lambda v: h @ v, b, **options | {"max_steps": 3})[-1]
    assert not pseudo_solve(lambda v: h @ v - v / 2, b, **options)[-1]  # no minimum


@pytest.mark.slow
def test_a_preconditioner_saves_steps():
    h = spectrum(np.geomspace(1, 1e-4, 30), jnp.float64)
    b = jnp.ones(30)
    inverse = jnp.linalg.inv(h) + 0.3 * jnp.diag(jnp.cos(jnp.arange(30.0)) ** 2)
    count = lambda m: lanczos(lambda v: h @ v, b, 30, rtol=1e-6, precondition=m).num
    assert count(lambda v: inverse @ v) < 0.7 * count(None)


@pytest.mark.slow
def test_a_learned_inverse_as_preconditioner_leaves_the_derivative():
    f, w, data, x0 = PROBLEMS["over-determined"]
    g = lambda y: x0 + jnp.linalg.pinv(jax.jacfwd(lambda x: f(w, x))(x0)) @ (y - f(w, x0))

    def end(data, adjoint):
        problem = pj.Problem(lambda x: f(w, x), data, noise_std=0.1)
        return pj.solve(problem, solvers.LevenbergMarquardt(**TIGHT), x0, max_steps=300, adjoint=adjoint).value

    with_g = jax.jacrev(lambda d: end(d, Implicit(inverse=g)))(data)
    np.testing.assert_allclose(with_g, differences("over-determined")[0], rtol=1e-5, atol=1e-6)


def refused(solver=None, project=None, wrt="data", **options):
    f, w, data, x0 = PROBLEMS["over-determined"]

    def total(data, x0, scale):
        made = solvers.DIPG(lambda y: scale * y[:3]) if wrt == "solver" else solver or solvers.GaussNewton()
        problem = pj.Problem(lambda x: f(w, x), data, project)
        return jnp.sum(pj.solve(problem, made, x0, adjoint=Implicit(**options)).value)

    return jax.grad(total, argnums={"data": 0, "x0": 1, "solver": 2}[wrt])(data, x0, 1.0)


ERRORS = {
    "projection": (
        {"project": solvers.Ball(1.0)},
        r"knows one projection, `solvers.Box\(lower, upper\)`, and got Ball",
    ),
    "solver": ({"solver": solvers.MinimumNorm()}, "MinimumNorm returns another point. Use adjoint='checkpointed'"),
    "budget": ({"max_steps": 0}, "max_steps=0; expected at least one"),
    "start": ({"wrt": "x0"}, "no derivative in x0 or in the solver"),
    "start, unrolled": ({"wrt": "x0", "uncertified": "unrolled"}, "no derivative in x0 or in the solver"),
    "learned inverse": ({"wrt": "solver"}, "no derivative in x0 or in the solver"),
}


@pytest.mark.parametrize("name", ERRORS)
def test_what_is_refused(name):
    arguments, message = ERRORS[name]
    with pytest.raises(ValueError, match=message):
        refused(**arguments)


@pytest.mark.slow
def test_gradients_have_no_callbacks_and_full_precision():
    from test_accelerators import callbacks, lower, matmul_precisions

    f = maps.MLP((4, 5, 6), activation="tanh", key=key())

    def total(f, data):
        sol = pj.solve(pj.Problem(f, data), solvers.GaussNewton(), jnp.zeros(4), max_steps=5, adjoint="implicit")
        return jnp.sum(sol.value**2)

    text = lower(jax.grad(total, argnums=(0, 1)), f, jnp.ones(6))
    assert matmul_precisions(text) == {"HIGHEST"}
    assert not callbacks(text)
