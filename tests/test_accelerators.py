"""What accelerators need, read off lowered programs: full matmul precision, no host callbacks, every target lowers."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import PROBLEMS, SOLVERS, SURJECTIONS, VARIANTS, matrix, names

import pinv_jax as pj
from pinv_jax import maps, solvers

each_solver = names(SOLVERS, "solver_name")
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


def programs(solver_name, **options):
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


@pytest.mark.parametrize(
    ("solver_name", "batch"),
    [pytest.param(name, False, marks=pytest.mark.slow if name in VARIANTS else []) for name in SOLVERS]
    # A batch is `vmap` of the same program: every solver in the slow run, one by default.
    + [pytest.param(name, True, marks=[] if name == "safeguarded" else pytest.mark.slow) for name in SOLVERS],
)
def test_full_precision_and_no_callbacks_in_solves_and_their_gradients(solver_name, batch):
    args = arguments(batch=batch)
    for name, program in programs(solver_name).items():
        text = lower(program, *args)
        assert matmul_precisions(text) == {"HIGHEST"}, name
        assert not callbacks(text), name


@each_solver
@pytest.mark.parametrize("batch", [False, True], ids=["solve", "solve_batch"])
def test_lowers_for_tpu_and_gpu(solver_name, batch):
    check_export(programs(solver_name)["solve"], *arguments(batch=batch))


@pytest.mark.parametrize("solver_name", [pytest.param(n, marks=pytest.mark.slow) for n in SOLVERS])
def test_gradients_lower_for_tpu_and_gpu(solver_name):
    for name in ("jvp", "grad"):
        check_export(programs(solver_name)[name], *arguments(batch=False))


def check_export(program, *args):
    exported = jax.export.export(jax.jit(program), platforms=["tpu", "cuda"])(*args)
    assert exported.platforms == ("tpu", "cuda")
    text = exported.mlir_module()
    assert matmul_precisions(text) == {"HIGHEST"}
    assert not callbacks(text)


def test_the_precision_check_sees_a_lower_precision():
    args = arguments(batch=False)
    for program in programs("gauss-newton, cg", precision="default").values():
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
    with pytest.raises((ValueError, NotImplementedError)):  # which of them is up to the version of jax
        jax.export.export(jax.jit(only_cpu), platforms=["tpu"])(jnp.eye(3))


@pytest.mark.parametrize("solver_name", ["gauss-newton", "d-ipg, defect"])
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


@pytest.mark.parametrize("solver_name", [pytest.param("gauss-newton", marks=pytest.mark.slow), "d-ipg, defect"])
def test_derivatives_of_a_linear_problem_are_the_pseudo_inverse(solver_name):
    case = PROBLEMS["linear"](jnp.float64)
    # Ten per cent short: an exact inverse would leave nothing to iterate.
    solver = SOLVERS[solver_name](lambda y: 0.9 * case.inverse(y), atol=1e-10)

    def solution(data, adjoint):
        return pj.solve(pj.Problem(case.forward, data), solver, case.x0, max_steps=40, adjoint=adjoint).value

    data = case.problem().data
    reverse = jax.jit(jax.jacrev(lambda y: solution(y, "checkpointed")))(data)
    np.testing.assert_allclose(reverse, jnp.linalg.pinv(jax.jacfwd(case.forward)(case.x0)), atol=1e-7)
    direction, step = jnp.sin(jnp.arange(1.0, 7.0)), 1e-5
    _, tangent = jax.jit(lambda y, v: jax.jvp(lambda y: solution(y, "forward"), (y,), (v,)))(data, direction)
    np.testing.assert_allclose(tangent, reverse @ direction, atol=1e-12)
    ahead, behind = (solution(data + sign * step * direction, "forward") for sign in (1, -1))
    np.testing.assert_allclose(tangent, (ahead - behind) / (2 * step), atol=1e-8)


@pytest.mark.slow
@pytest.mark.parametrize(
    "solver_name",
    ["lbfgs", *(pytest.param(name, marks=pytest.mark.slow) for name in ("levenberg-marquardt", "gauss-newton, cg"))],
)
def test_reverse_mode_of_a_wide_problem_beside_a_finished_lane(solver_name):
    """With fewer data than unknowns `J'J` is singular; at a solution `J (dx / d data) = I` all the same."""
    case = PROBLEMS["wide"](jnp.float64)
    data = jnp.stack([case.forward(case.x0), case.problem().data])  # the first lane starts at its solution
    x0 = jnp.stack([case.x0, case.x0])
    solver = SOLVERS[solver_name](case.inverse, atol=1e-10)

    def solution(data):
        return pj.solve_batch(pj.Problem(case.forward, data), solver, x0, max_steps=40, adjoint="checkpointed").value

    reverse = jax.jit(jax.jacrev(solution))(data)
    np.testing.assert_array_equal(reverse[0], 0.0)  # it returns x0, whatever the data
    jac = jax.jacfwd(case.forward)(pj.solve(case.problem(), solver, case.x0, max_steps=40).value)
    np.testing.assert_allclose(jac @ reverse[1, :, 1], np.eye(3), atol=1e-6)
