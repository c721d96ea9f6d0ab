"""Bad input of `solve` and `solve_batch`: every message says what was passed, what was expected, what to write."""

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import optimistix as optx
import pytest
from cases import matrix

import pinv_jax as pj
from pinv_jax import maps, solvers

A = matrix(4, 3, jnp.float64)
X0 = jnp.zeros(3)
DATA = jnp.ones(4)
LM = solvers.LevenbergMarquardt()


def forward(x):
    return jnp.tanh(A @ x)


def inverse(y):
    return A.T @ y


@pytest.fixture(autouse=True)
def _as_a_user():
    """Without the shape checks of the test session, which would speak first."""
    before = jaxtyping.config.jaxtyping_disable
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", before)


def problem(data=DATA, fn=forward, **kwargs):
    return pj.Problem(fn, data, **kwargs)


def refuses(*fragments, call):
    with pytest.raises(ValueError) as caught:  # noqa: PT011 (every fragment is looked for below)
        call()
    for fragment in fragments:
        assert fragment in str(caught.value), f"{fragment!r} is not in: {caught.value}"


def tree_forward(x):
    return {"y": A @ x}


def prior(mean, matrix):
    return pj.GaussianPrior(mean, matrix)


SHAPES = {
    "x0 a pytree": (lambda: pj.solve(problem(), LM, {"x": X0}), ["x0 is a dict", "maps.Ravelled"]),
    "no data": (lambda: pj.solve(problem(None), LM, X0), ["data is a NoneType"]),
    "nothing to find": (
        lambda: pj.solve(problem(jnp.zeros(0), lambda x: x), LM, jnp.zeros(0)),
        ["x0 has shape (0,)", "at least one"],
    ),
    "prior of another length": (
        lambda: pj.solve(problem(prior=prior(jnp.zeros(2), jnp.eye(3))), LM, X0),
        ["prior mean has shape (2,)", "expected (3,)"],
    ),
    "prior with a matrix of another width": (
        lambda: pj.solve(problem(prior=prior(X0, jnp.eye(2))), LM, X0),
        ["inverse_sqrt of the prior has shape (2, 2)", "expected (k, 3)"],
    ),
    "prior of another dtype": (
        lambda: pj.solve(
            problem(jnp.ones(4, jnp.float32), lambda x: (A @ x).astype(jnp.float32), prior=prior(X0, jnp.eye(3))),
            LM,
            X0.astype(jnp.float32),
        ),
        ["mixed dtypes", "the prior makes float64", "float32"],
    ),
    "complex noise_std": (lambda: pj.solve(problem(noise_std=1j), LM, X0), ["noise_std is complex"]),
    "data with a batch axis": (
        lambda: pj.solve(problem(jnp.ones((7, 4))), LM, X0),
        ["data has shape (7, 4)", "returns (4,)", "vmap", "solve_batch"],
    ),
    "data of another length": (
        lambda: pj.solve(problem(jnp.ones(5)), LM, X0),
        ["data has shape (5,)", "returns (4,)", "x0 of shape (3,)"],
    ),
    "x0 with a batch axis, map that knows its shape": (
        lambda: pj.solve(problem(fn=maps.LinearMap(A)), LM, jnp.zeros((7, 3))),
        ["x0 has shape (7, 3)", "expects (3,)", "vmap", "solve_batch"],
    ),
    "x0 with a batch axis, function": (
        lambda: pj.solve(problem(), LM, jnp.zeros((7, 3))),
        ["x0 of shape (7, 3)", "vmap", "solve_batch"],
    ),
    "x0 of another length, map that knows its shape": (
        lambda: pj.solve(problem(fn=maps.LinearMap(A)), LM, jnp.zeros(2)),
        ["x0 has shape (2,)", "expects (3,)"],
    ),
    "x0 of another length, function": (
        lambda: pj.solve(problem(), LM, jnp.zeros(2)),
        ["forward cannot be applied to x0 of shape (2,)"],
    ),
    "scalar x0": (lambda: pj.solve(problem(), LM, jnp.zeros(())), ["forward cannot be applied to x0 of shape ()"]),
    "forward returns another shape": (
        lambda: pj.solve(problem(fn=lambda x: forward(x)[None]), LM, X0),
        ["data has shape (4,)", "the forward map returns (1, 4)", "Ravelled"],
    ),
    "forward returns a pytree": (
        lambda: pj.solve(problem(fn=tree_forward), LM, X0),
        ["forward returns PyTreeDef({'y': *})", "expected one array", "maps.Ravelled"],
    ),
    "inverse returns another shape": (
        lambda: pj.solve(problem(), solvers.DIPG(lambda y: y), X0),
        ["the inverse returns float64[4]", "data of float64[4]", "expected float64[3]"],
    ),
    "inverse of the fallback solver returns another shape": (
        lambda: pj.solve(problem(), solvers.Safeguarded(lambda y: y[:2]), X0),
        ["the inverse returns float64[2]", "expected float64[3]"],
    ),
    "inverse that cannot take the data": (
        lambda: pj.solve(problem(), solvers.DIPG(lambda y: A @ y), X0),
        ["the inverse cannot be applied to data of shape (4,)"],
    ),
    "inverse returns a pytree": (
        lambda: pj.solve(problem(), solvers.DIPG(lambda y: (y, y)), X0),
        ["the inverse returns PyTreeDef((*, *))", "expected one array"],
    ),
    "projection returns another shape": (
        lambda: pj.solve(problem(project=lambda x: x[:2]), LM, X0),
        ["project returns float64[2] for float64[3]", "same shape"],
    ),
    "noise level of another shape": (
        lambda: pj.solve(problem(noise_std=jnp.ones(3)), LM, X0),
        ["noise_std has shape (3,)", "expected a scalar or (4,)"],
    ),
    "prior of another shape": (
        lambda: pj.solve(problem(prior=pj.GaussianPrior(jnp.zeros(4), jnp.eye(4))), LM, X0),
        ["prior mean has shape (4,)", "expected (3,)"],
    ),
    "empty batch": (
        lambda: pj.solve_batch(problem(jnp.ones((0, 4))), LM, jnp.zeros((0, 3))),
        ["empty batch", "at least one observation"],
    ),
    "leading axes that differ": (
        lambda: pj.solve_batch(problem(jnp.ones((7, 4))), LM, jnp.zeros((5, 3))),
        ["data has shape (7, 4)", "x0 (5, 3)", "one leading axis"],
    ),
    "batch of data with one x0": (
        lambda: pj.solve_batch(problem(jnp.ones((7, 4))), LM, X0),
        ["x0 (3,)", "jnp.broadcast_to(x0, (batch, *x0.shape))"],
    ),
    "no batch axis at all": (
        lambda: pj.solve_batch(problem(jnp.asarray(1.0)), LM, jnp.asarray(1.0)),
        ["data has shape ()", "use `solve`"],
    ),
    "wrong shape behind the batch axis": (
        lambda: pj.solve_batch(problem(jnp.ones((7, 5))), LM, jnp.zeros((7, 3))),
        ["data has shape (5,)", "returns (4,)"],
    ),
    "one noise level per observation, without the axes of y": (
        lambda: pj.solve_batch(problem(jnp.ones((7, 4)), noise_std=jnp.ones(7)), LM, jnp.zeros((7, 3))),
        ["noise_std has shape (7,)", "expected a scalar or (4,)"],
    ),
    "wrong shape under vmap": (
        lambda: jax.vmap(lambda y, x: pj.solve(problem(y), LM, x))(jnp.ones((7, 5)), jnp.zeros((7, 3))),
        ["data has shape (5,)", "returns (4,)"],
    ),
    "wrong shape under jit": (
        lambda: jax.jit(lambda y: pj.solve(problem(y), LM, X0))(jnp.ones((7, 4))),
        ["data has shape (7, 4)", "vmap"],
    ),
}

DTYPES = {
    "complex x0": (
        lambda: pj.solve(problem(), LM, X0 + 0j),
        ["x0 is complex (complex128, shape (3,))", "jnp.stack([x0.real, x0.imag])"],
    ),
    "complex data": (
        lambda: pj.solve(problem(DATA + 0j), LM, X0),
        ["data is complex (complex128, shape (4,))", "jnp.stack([data.real, data.imag])"],
    ),
    "complex data in a batch": (
        lambda: pj.solve_batch(problem(jnp.ones((7, 4), complex)), LM, jnp.zeros((7, 3))),
        ["data is complex", "jnp.stack([data.real, data.imag])"],
    ),
    "forward map that returns complex numbers": (
        lambda: pj.solve(problem(fn=lambda x: forward(x) + 0j), LM, X0),
        ["forward returns complex128", "jnp.stack([y.real, y.imag])"],
    ),
    "integer data": (
        lambda: pj.solve(problem(jnp.ones(4, int)), LM, X0),
        ["data has dtype int64", "expected floating point", "data.astype(float)"],
    ),
    "integer x0": (
        lambda: pj.solve(problem(), LM, jnp.zeros(3, int)),
        ["x0 has dtype int64", "x0.astype(float)"],
    ),
    "boolean data": (lambda: pj.solve(problem(DATA > 0), LM, X0), ["data has dtype bool"]),
    "data and x0 of two dtypes": (
        lambda: pj.solve(problem(DATA.astype("float32")), LM, X0),
        ["mixed dtypes", "data is float32", "x0 is float64", "x0.astype(data.dtype)"],
    ),
    "forward map of another dtype": (
        lambda: pj.solve(problem(DATA.astype("float32")), LM, X0.astype("float32")),
        ["mixed dtypes", "the forward map returns float64", "data is float32"],
    ),
    "inverse of another dtype": (
        lambda: pj.solve(problem(), solvers.DIPG(lambda y: inverse(y).astype("float32")), X0),
        ["the inverse returns float32[3]", "expected float64[3]"],
    ),
}

OPTIONS = {
    "projection with an optimistix solver": (
        lambda: pj.solve(problem(project=solvers.Box(0.0, 1.0)), optx.LevenbergMarquardt(1e-6, 1e-6), X0),
        ["optimistix solvers know no projection", "pinv_jax.solvers"],
    ),
    "history of an optimistix solver": (
        lambda: pj.solve(problem(), optx.GaussNewton(1e-6, 1e-6), X0, history=5),
        ["optimistix solvers keep no history"],
    ),
    "tolerance of zero": (
        lambda: pj.solve(problem(), solvers.LevenbergMarquardt(atol=0.0), X0),
        ["atol=0.0", "expected a positive number"],
    ),
    "negative tolerance": (lambda: pj.solve(problem(), solvers.LBFGS(atol=-1e-3), X0), ["atol=-0.001", "positive"]),
    "tolerance that is not a number": (
        lambda: pj.solve(problem(), solvers.DIPG(inverse, atol=jnp.nan), X0),
        ["atol=nan", "positive"],
    ),
    "discrepancy of zero": (
        lambda: pj.solve(problem(noise_std=0.1), solvers.LevenbergMarquardt(discrepancy=0.0), X0),
        ["discrepancy=0.0", "positive"],
    ),
    "negative relative tolerance": (
        lambda: pj.solve(problem(), solvers.GradientDescent(rtol=-1.0), X0),
        ["rtol=-1.0", "at least zero"],
    ),
    "discrepancy without a noise level": (
        lambda: pj.solve(problem(), solvers.LevenbergMarquardt(discrepancy=1.1), X0),
        ["stops at the noise level", "Problem(..., noise_std=...)"],
    ),
    "noise level of zero": (
        lambda: pj.solve(problem(noise_std=0.0), LM, X0),
        ["noise_std", "not positive", "above zero"],
    ),
    "negative budget": (lambda: pj.solve(problem(), LM, X0, max_steps=-1), ["max_steps=-1", "at least 0"]),
    "negative budget of a batch": (
        lambda: pj.solve_batch(problem(DATA[None]), LM, X0[None], max_steps=-1),
        ["max_steps=-1", "at least 0"],
    ),
    "budget that is not a whole number": (
        lambda: pj.solve(problem(), LM, X0, max_steps=2.5),
        ["max_steps=2.5", "expected an integer"],
    ),
    "history without slots": (lambda: pj.solve(problem(), LM, X0, history=0), ["history=0", "at least 1"]),
    "unknown adjoint": (
        lambda: pj.solve(problem(), LM, X0, adjoint="reverse"),
        ["adjoint='reverse'", "'forward', 'checkpointed', 'implicit' or `Implicit(...)`"],
    ),
    "unknown policy": (lambda: solvers.Implicit("none"), ["uncertified='none'", "'nan', 'zero' or 'unrolled'"]),
    "unknown hessian": (lambda: solvers.Implicit(hessian="half"), ["hessian='half'", "'full' or 'gauss-newton'"]),
    "unknown proposal": (
        lambda: solvers.DIPG(inverse, proposal="newton"),
        ["proposal='newton'", "'defect', 'jvp' or 'paper'"],
    ),
    "proposal that cannot be safeguarded": (
        lambda: solvers.Safeguarded(inverse, proposal="paper"),
        ["proposal='paper'", "'defect' or 'jvp'", "DIPG"],
    ),
    "no problem": (lambda: pj.solve(forward, LM, X0), ["expected a Problem, got function", "Problem(forward, data)"]),
    "no forward map": (lambda: pj.solve(pj.Problem(None, DATA), LM, X0), ["no forward map"]),
    "forward that is not callable": (lambda: pj.solve(pj.Problem(A, DATA), LM, X0), ["no forward map", "callable"]),
    "solver class instead of an instance": (
        lambda: pj.solve(problem(), solvers.LevenbergMarquardt, X0),
        ["is not a solver", "as an instance"],
    ),
    "foreign solver": (lambda: pj.solve(problem(), "lm", X0), ["str is not a solver", "pinv_jax.solvers"]),
}


@pytest.mark.parametrize("name", SHAPES)
def test_shapes(name):
    call, fragments = SHAPES[name]
    refuses(*fragments, call=call)


@pytest.mark.parametrize("name", DTYPES)
def test_dtypes(name):
    call, fragments = DTYPES[name]
    refuses(*fragments, call=call)


@pytest.mark.parametrize("name", OPTIONS)
def test_options(name):
    call, fragments = OPTIONS[name]
    refuses(*fragments, call=call)


def test_a_refused_call_leaves_no_trace():
    refuses("vmap", call=lambda: pj.solve(problem(jnp.ones((7, 4))), LM, X0))
    x_true = jnp.asarray([0.1, -0.2, 0.3])
    np.testing.assert_allclose(pj.solve(problem(forward(x_true)), LM, X0).value, x_true, atol=1e-5)


@pytest.mark.parametrize("bad", [jnp.nan, jnp.inf, -jnp.inf])
@pytest.mark.parametrize(
    "solver",
    [LM, solvers.Safeguarded(inverse), optx.LevenbergMarquardt(1e-8, 1e-8)],
    ids=["levenberg-marquardt", "safeguarded", "optimistix"],
)
def test_data_that_are_not_finite_are_a_code_of_their_lane(solver, bad):
    data = jax.vmap(forward)(jnp.linspace(-0.3, 0.3, 12).reshape(4, 3))
    x0 = jnp.zeros((4, 3))
    good = pj.solve_batch(problem(data), solver, x0)
    mixed = pj.solve_batch(problem(data.at[2, 1].set(bad)), solver, x0)
    np.testing.assert_array_equal(mixed.result == pj.RESULTS.nonfinite_input, [False, False, True, False])
    np.testing.assert_array_equal(mixed.success, [True, True, False, True])
    others = np.asarray([0, 1, 3])
    np.testing.assert_array_equal(mixed.value[others], good.value[others])
