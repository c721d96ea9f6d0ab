"""Fixed-step integration: order of convergence, stability limits, derivatives, agreement with diffrax."""

import functools

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pinv_jax import pde

EXPLICIT = {
    "euler": (diffrax.Euler(), 1, 2.0),
    "heun": (diffrax.Heun(), 2, 2.0),
    "midpoint": (diffrax.Midpoint(), 2, 2.0),
    "ralston": (diffrax.Ralston(), 2, 2.0),
    "bosh3": (diffrax.Bosh3(), 3, 2.5127),
    "tsit5": (diffrax.Tsit5(), 5, None),
    "dopri5": (diffrax.Dopri5(), 5, 3.3066),
}


def logistic(t, u, rate):
    """`u' = rate cos(t) u (1 - u)`: nonlinear and dependent on time, with a closed form."""
    return rate * jnp.cos(t) * u * (1 - u)


def logistic_solution(u, rate, time):
    growth = jnp.exp(rate * jnp.sin(time))
    return u * growth / (1 + u * (growth - 1))


@functools.partial(jax.jit, static_argnames=("num_steps", "solver"))
def run(u, num_steps, solver, rate=2.0):
    return pde.integrate(logistic, u, solver=solver, initial_time=0.0, final_time=1.5, num_steps=num_steps, args=rate)


@pytest.mark.parametrize("name", list(EXPLICIT))
def test_observed_order_of_convergence(name):
    solver, order, _ = EXPLICIT[name]
    u = jnp.array([0.1, 0.4, 0.8])
    exact = logistic_solution(u, 2.0, 1.5)
    errors = [float(jnp.max(jnp.abs(run(u, n, solver) - exact))) for n in (16, 32, 64)]
    observed = np.log2(np.array(errors[:-1]) / np.array(errors[1:]))
    assert np.all(observed > order - 0.35), observed
    assert observed[-1] < order + 0.6, observed


@pytest.mark.parametrize("name", ["euler", "ralston", "tsit5"])
def test_equals_diffeqsolve(name):
    solver = EXPLICIT[name][0]
    u = jnp.array([0.1, 0.4, 0.8])
    solution = diffrax.diffeqsolve(
        diffrax.ODETerm(logistic), solver, 0.0, 1.5, 1.5 / 32, u, 2.0, stepsize_controller=diffrax.ConstantStepSize()
    )
    assert solution.ys is not None
    np.testing.assert_allclose(run(u, 32, solver), solution.ys[-1], rtol=1e-12)


@pytest.mark.parametrize("name", list(EXPLICIT))
def test_stability_limit_is_where_decay_turns_into_growth(name):
    solver, _, known = EXPLICIT[name]
    limit = pde.real_stability_limit(solver)
    assert limit is not None
    if known is not None:
        np.testing.assert_allclose(limit, known, rtol=1e-3)
    grown = lambda z: float(
        jnp.abs(pde.integrate(lambda t, u, args: -u, jnp.ones(1), solver=solver, final_time=z * 400, num_steps=400)[0])
    )
    assert grown(0.97 * limit) < 1
    assert grown(1.03 * limit) > 1


def test_implicit_solver_steps_with_both_derivatives():
    solver = diffrax.Kvaerno3(root_finder=diffrax.VeryChord(rtol=1e-10, atol=1e-10), root_find_max_steps=20)
    assert pde.real_stability_limit(solver) is None
    u, v, w = jnp.array([0.1, 0.4]), jnp.array([1.0, -0.5]), jnp.array([0.3, 2.0])

    @jax.jit
    def products(u):
        f = lambda u: run(u, 32, solver)
        step = 1e-5
        differences = (f(u + step * v) - f(u - step * v)) / (2 * step)
        return *jax.jvp(f, (u,), (v,)), differences, jax.vjp(f, u)[1](w)[0]

    y, forward, differences, backward = products(u)
    np.testing.assert_allclose(y, logistic_solution(u, 2.0, 1.5), atol=1e-5)
    np.testing.assert_allclose(forward, differences, rtol=1e-6)
    np.testing.assert_allclose(jnp.vdot(w, forward), jnp.vdot(backward, v), rtol=1e-9)


def test_derivatives_of_state_and_parameter_against_the_closed_form():
    u, rate = jnp.array([0.1, 0.4]), jnp.asarray(2.0)
    ours = lambda u, rate: run(u, 200, diffrax.Dopri5(), rate)
    for jacobian in (jax.jacfwd, jax.jacrev):
        got = jacobian(ours, (0, 1))(u, rate)
        known = jacobian(lambda u, rate: logistic_solution(u, rate, 1.5), (0, 1))(u, rate)
        for left, right in zip(got, known, strict=True):
            np.testing.assert_allclose(left, right, atol=1e-9)


def test_keeps_shape_and_dtype():
    for dtype in (jnp.float32, jnp.float64, jnp.complex64):
        u = jnp.full((2, 3), 0.2, dtype)
        out = run(u, 4, diffrax.Heun())
        assert (out.shape, out.dtype) == (u.shape, dtype)


def test_accepts_a_term():
    u = jnp.array([0.3])
    term = diffrax.ODETerm(logistic)
    out = pde.integrate(term, u, solver=diffrax.Heun(), final_time=1.5, num_steps=8, args=2.0)
    np.testing.assert_allclose(out, run(u, 8, diffrax.Heun()), rtol=1e-14)


def test_no_steps_is_refused():
    with pytest.raises(ValueError, match="at least one step"):
        run(jnp.ones(1), 0, diffrax.Euler())
