"""What accelerators need, read off lowered programs: full matmul precision, no host callbacks, every target lowers."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import PROBLEMS, SOLVERS, SURJECTIONS, local_inverse, matrix

import pinv_jax as pj
from pinv_jax import maps, solvers

each_solver = pytest.mark.parametrize("solver_name", SOLVERS)
NUM, MAX_STEPS = 3, 5


class Model(maps.AbstractMap):
    """A forward map and an inverse whose parameters are leaves, so that a solve can be differentiated by them."""

    forward: maps.MLP
    inverse: maps.MLP

    def __call__(self, x):
        return self.forward(x)

    def in_structure(self):
        return self.forward.in_structure()


def model():
    keys = jax.random.split(jax.random.key(0))
    nets = [maps.MLP((4, 5, 4), activation="tanh", dtype=jnp.float32, key=key) for key in keys]
    return Model(*nets)


def solve(parameters, data, x0, *, solver_name, adjoint="forward", precision="highest"):
    """One or many solves, by the rank of the data."""
    run = pj.solve if data.ndim == 1 else pj.solve_batch
    solver = SOLVERS[solver_name](parameters.inverse, atol=1e-3)
    problem = pj.Problem(parameters.forward, data)
    return run(problem, solver, x0, max_steps=MAX_STEPS, adjoint=adjoint, precision=precision)


def arguments(*, batch):
    shape = (NUM, 4) if batch else (4,)
    return model(), jnp.ones(shape, jnp.float32), jnp.zeros(shape, jnp.float32)


def programs(solver_name, *, batch, **options):
    """The solve and its derivatives, as functions of (parameters of f and g, data, x0)."""
    run = functools.partial(solve, solver_name=solver_name, **options)

    def total(*args):
        return jnp.sum(run(*args, adjoint="checkpointed").value)

    return {
        "solve": run,
        "jvp": lambda *args: jax.jvp(lambda *a: run(*a, adjoint="forward").value, args, args),
        "grad": jax.grad(total, argnums=(0, 1, 2)),
    }


def matmul_precisions(text):
    """The precision of every matrix product and convolution of a StableHLO text, `None` where it has none."""
    operations = re.findall(r"stablehlo\.(?:dot_general|dot|convolution)\b.*", text)
    assert operations, "nothing to check: the program multiplies no matrices"
    found = []
    for line in operations:
        short = re.search(r"precision = \[(\w+), (\w+)\]", line)
        long = re.findall(r"#stablehlo<precision (\w+)>", line)
        found.append(set(short.groups()) if short else set(long) if long else {None})
    return set.union(*found)


def callbacks(text):
    return re.findall(r"@\w*callback\w*", text)


def lower(fn, *args):
    return jax.jit(fn).lower(*args).as_text()


@each_solver
@pytest.mark.parametrize("batch", [False, True], ids=["solve", "solve_batch"])
def test_full_precision_and_no_callbacks_in_solves_and_their_gradients(solver_name, batch):
    args = arguments(batch=batch)
    for name, program in programs(solver_name, batch=batch).items():
        text = lower(program, *args)
        assert matmul_precisions(text) == {"HIGHEST"}, name
        assert not callbacks(text), name


@each_solver
@pytest.mark.parametrize("batch", [False, True], ids=["solve", "solve_batch"])
def test_lowers_for_tpu_and_gpu(solver_name, batch):
    args = arguments(batch=batch)
    kinds = programs(solver_name, batch=batch)
    for name in ("solve", "jvp") if batch else kinds:
        exported = jax.export.export(jax.jit(kinds[name]), platforms=["tpu", "cuda"])(*args)
        assert exported.platforms == ("tpu", "cuda")
        text = exported.mlir_module()
        assert matmul_precisions(text) == {"HIGHEST"}, name
        assert not callbacks(text), name


def test_the_precision_check_sees_a_lower_precision():
    args = arguments(batch=False)
    for program in programs("gauss-newton, cg", batch=False, precision="default").values():
        assert "DEFAULT" in matmul_precisions(lower(program, *args))
    image = jnp.ones((1, 1, 8), jnp.float32)
    convolve = lambda x: jax.lax.conv(x, x, (1,), "VALID")
    assert matmul_precisions(lower(convolve, image)) == {"DEFAULT"}


def test_the_callback_check_sees_a_callback():
    case = PROBLEMS["wide"](jnp.float32)
    solver = solvers.GaussNewton()
    text = lower(lambda y: pj.solve(pj.Problem(case.forward, y), solver, case.x0, throw=True), case.problem().data)
    assert callbacks(text)


def test_export_refuses_what_has_no_lowering():
    only_cpu = lambda a: jax.lax.linalg.svd(a, algorithm=jax.lax.linalg.SvdAlgorithm.JACOBI)
    with pytest.raises((ValueError, NotImplementedError)):
        jax.export.export(jax.jit(only_cpu), platforms=["tpu"])(jnp.eye(3))


@pytest.mark.parametrize("solver_name", ["gradient descent", "gauss-newton", "d-ipg, defect"])
def test_surjections_with_solvers_in_their_inverse(solver_name):
    chain = SURJECTIONS["surjective chain"](jnp.float32)
    x0 = jnp.linspace(-1, 1, 8, dtype=jnp.float32)

    def run(chain, data, adjoint):
        solver = SOLVERS[solver_name](chain.pinv, atol=1e-3)
        return jnp.sum(pj.solve(pj.Problem(chain, data), solver, x0, max_steps=MAX_STEPS, adjoint=adjoint).value)

    forward = lambda c, y: jax.jvp(lambda c, y: run(c, y, "forward"), (c, y), (c, y))
    reverse = jax.grad(lambda c, y: run(c, y, "checkpointed"), argnums=(0, 1))
    for program in (forward, reverse):
        text = lower(program, chain, chain(x0))
        assert matmul_precisions(text) == {"HIGHEST"}
        assert not callbacks(text)


def test_derivative_rules_of_the_users_map_run_at_full_precision():
    weight = matrix(4, 4, jnp.float32)

    @jax.custom_jvp
    def forward(x):
        return jnp.tanh(weight @ x)

    @forward.defjvp
    def _(primals, tangents):
        y = forward(*primals)
        return y, (1 - y**2) * (weight @ tangents[0])

    def run(data, adjoint):
        solver = solvers.DIPG(lambda y: weight.T @ y)
        return jnp.sum(pj.solve(pj.Problem(forward, data), solver, data, max_steps=MAX_STEPS, adjoint=adjoint).value)

    data = jnp.ones(4, jnp.float32)
    assert matmul_precisions(lower(jax.grad(lambda y: run(y, "checkpointed")), data)) == {"HIGHEST"}
    assert matmul_precisions(lower(lambda y: jax.jvp(lambda y: run(y, "forward"), (y,), (y,)), data)) == {"HIGHEST"}


# Values of the derivatives --------------------------------------------------------------------------------------------


def solution(case, solver, data, adjoint="forward"):
    return pj.solve(pj.Problem(case.forward, data), solver, case.x0, max_steps=40, adjoint=adjoint).value


GRADIENT_CASES = {
    "gauss-newton": (lambda g: solvers.GaussNewton(atol=1e-10, rtol=1e-14), 1e-9),
    "gauss-newton, cg": (lambda g: solvers.GaussNewton(solvers.ConjugateGradients(), atol=1e-10, rtol=1e-14), 1e-7),
    "lbfgs": (lambda g: solvers.LBFGS(atol=1e-10, rtol=1e-14), 1e-7),
    "levenberg-marquardt": (lambda g: solvers.LevenbergMarquardt(atol=1e-10, rtol=1e-14), 1e-7),
    "d-ipg": (lambda g: solvers.DIPG(g, atol=1e-10, rtol=1e-14), 1e-7),
}


@pytest.mark.parametrize("name", GRADIENT_CASES)
@pytest.mark.parametrize("problem_name", ["linear", "wide"])
def test_reverse_equals_forward_equals_the_pseudo_inverse(name, problem_name):
    """At a solution of a square or wide problem `d x / d data` is a right inverse of the Jacobian."""
    case = PROBLEMS[problem_name](jnp.float64)
    make, tolerance = GRADIENT_CASES[name]
    # Inexact on purpose: an exact inverse would leave nothing to iterate.
    inverse = local_inverse(case.forward, case.x_true + 0.1)
    solver = make(lambda y: 0.9 * inverse(y))
    data = case.problem().data
    reverse = jax.jit(jax.jacrev(lambda y: solution(case, solver, y, "checkpointed")))(data)
    forward = jax.jit(jax.jacfwd(lambda y: solution(case, solver, y)))(data)
    np.testing.assert_allclose(reverse, forward, atol=tolerance)
    jac = jax.jacfwd(case.forward)(solution(case, solver, data))
    np.testing.assert_allclose(jac @ reverse, np.eye(data.size), atol=tolerance)
    if problem_name == "linear":
        np.testing.assert_allclose(reverse, np.linalg.pinv(jac), atol=tolerance)


@pytest.mark.parametrize("name", ["gauss-newton", "d-ipg"])
def test_gradient_equals_finite_differences(name):
    case = PROBLEMS["wide"](jnp.float64)
    make, _ = GRADIENT_CASES[name]
    solver = make(case.inverse)
    weight = jnp.cos(jnp.arange(6.0))
    loss = lambda y, adjoint: jnp.dot(weight, solution(case, solver, y, adjoint))
    data = case.problem().data
    direction = jnp.sin(jnp.arange(1.0, 4.0))
    step = 1e-5
    differences = (loss(data + step * direction, "forward") - loss(data - step * direction, "forward")) / (2 * step)
    gradient = jax.jit(jax.grad(lambda y: loss(y, "checkpointed")))(data)
    np.testing.assert_allclose(jnp.dot(gradient, direction), differences, rtol=1e-6)
    _, tangent = jax.jvp(lambda y: loss(y, "forward"), (data,), (direction,))
    np.testing.assert_allclose(tangent, jnp.dot(gradient, direction), rtol=1e-9)


def test_reverse_through_a_batch_with_finished_lanes_is_finite():
    case = PROBLEMS["wide"](jnp.float64)
    data = jnp.stack([case.forward(case.x0), case.problem().data])  # the first lane starts at its solution
    x0 = jnp.stack([case.x0, case.x0])
    for name, (make, _) in GRADIENT_CASES.items():
        run = lambda y: pj.solve_batch(pj.Problem(case.forward, y), make(case.inverse), x0, adjoint="checkpointed")
        gradient = jax.jit(jax.grad(lambda y: jnp.sum(run(y).value ** 2)))(data)
        assert np.all(np.isfinite(gradient)), name
