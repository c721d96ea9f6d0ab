"""Linear solves inside maps: values, implicit derivatives, lanes that fail alone; the implicit time stepper."""

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import draw

from pinv_jax import pde
from pinv_jax.pde._implicit import AffineSDIRK2, conjugate_gradients, solve_spd

SIZE = 7
RNG = np.random.default_rng(0)
FACTOR = RNG.normal(size=(SIZE, SIZE))
MATRIX = jnp.asarray(FACTOR @ FACTOR.T + np.eye(SIZE))
DIRECTION = jnp.asarray(FACTOR + FACTOR.T)
B, C = jnp.asarray(RNG.normal(size=SIZE)), jnp.asarray(RNG.normal(size=SIZE))


@jax.jit
def solve(matrix, b):
    return solve_spd(lambda u: matrix @ u, b, lambda: lambda r: r / jnp.diagonal(matrix), max_steps=50)


def test_value_and_both_derivatives_are_those_of_the_inverse():
    u, forward = jax.jvp(solve, (MATRIX, B), (DIRECTION, C))
    inverse = np.linalg.inv(MATRIX)
    np.testing.assert_allclose(u, inverse @ B, rtol=1e-11)
    np.testing.assert_allclose(forward, inverse @ (C - DIRECTION @ u), rtol=1e-10)
    of_matrix, of_b = jax.vjp(solve, MATRIX, B)[1](C)
    np.testing.assert_allclose(of_b, inverse @ C, rtol=1e-10)
    np.testing.assert_allclose(of_matrix, -np.outer(inverse @ C, u), rtol=1e-9, atol=1e-12)


def test_second_derivatives_exist():
    hessian = jax.jit(jax.hessian(lambda t: C @ solve(MATRIX + t * DIRECTION, B)))(0.0)
    inverse = np.linalg.inv(MATRIX)
    np.testing.assert_allclose(hessian, 2 * C @ inverse @ DIRECTION @ inverse @ DIRECTION @ inverse @ B, rtol=1e-9)


def test_a_lane_that_fails_is_nan_and_leaves_the_others_bit_identical():
    healthy = jnp.stack([MATRIX] * 5)
    broken = healthy.at[1].set(jnp.nan).at[2, 0, 0].set(jnp.inf).at[3].multiply(0.0)
    both = jax.jit(jax.vmap(lambda matrix: (solve(matrix, B), jax.grad(lambda m: C @ solve(m, B))(matrix))))
    for good, bad in zip(both(healthy), both(broken), strict=True):
        np.testing.assert_array_equal(bad[0], good[0])
        np.testing.assert_array_equal(bad[4], good[4])
        assert bool(jnp.all(jnp.any(jnp.isnan(bad[1:4].reshape(3, -1)), axis=1)))


def test_a_zero_right_hand_side_has_a_zero_solution_and_finite_derivatives():
    of_matrix, of_b = jax.vjp(solve, MATRIX, jnp.zeros(SIZE))[1](C)
    np.testing.assert_array_equal(solve(MATRIX, jnp.zeros(SIZE)), jnp.zeros(SIZE))
    np.testing.assert_array_equal(of_matrix, jnp.zeros((SIZE, SIZE)))
    np.testing.assert_allclose(of_b, np.linalg.solve(MATRIX, C), rtol=1e-10)


@pytest.mark.parametrize("size", [1e-30, 1e30])
def test_float32_solves_at_any_scale(size):
    matrix, b = MATRIX.astype(jnp.float32), (size * B).astype(jnp.float32)
    u = solve(matrix, b)
    assert u.dtype == jnp.float32
    np.testing.assert_allclose(u, size * np.linalg.solve(MATRIX, B), rtol=2e-4)


def test_steps_are_as_many_as_there_are_eigenvalues_and_limited():
    values = jnp.repeat(jnp.asarray([1.0, 5.0, 9.0]), 4)
    b = jnp.asarray(RNG.normal(size=12))
    u, steps = conjugate_gradients(lambda u: values * u, b, lambda r: r)
    assert steps == 3
    np.testing.assert_allclose(u, b / values, rtol=1e-13)
    assert conjugate_gradients(lambda u: values * u, b, lambda r: r / values)[1] == 1
    u, steps = conjugate_gradients(lambda u: values * u, b, lambda r: r, max_steps=2)
    assert steps == 2
    assert bool(jnp.all(jnp.isnan(u)))


def stepped(num_steps, final_time=2.0, rates=(0.5, 3.0)):
    """`u' = cos(t) - rates * u` from one."""
    rates = jnp.asarray(rates)
    solver = AffineSDIRK2(lambda tau, b, args: b / (1 + tau * rates))
    field = lambda t, u, args: jnp.cos(t) - rates * u
    u = pde.integrate(field, jnp.ones(2), solver=solver, final_time=final_time, num_steps=num_steps)
    particular = lambda t: (rates * np.cos(t) + np.sin(t)) / (rates**2 + 1)
    return u, particular(final_time) + jnp.exp(-rates * final_time) * (1 - particular(0.0))


def test_second_order_in_time():
    errors = [float(jnp.max(jnp.abs(np.subtract(*stepped(num_steps))))) for num_steps in (10, 20, 40)]
    np.testing.assert_allclose(np.log2(np.array(errors[:-1]) / np.array(errors[1:])), 2.0, atol=0.1)


def test_long_steps_damp_fast_modes():
    solver = AffineSDIRK2(lambda tau, b, args: b / (1 + tau * 1e8))
    u = pde.integrate(lambda t, u, args: -1e8 * u, draw(jax.ShapeDtypeStruct((3,), jnp.float64)), solver=solver,
                      final_time=1.0, num_steps=1)  # fmt: skip
    assert float(jnp.max(jnp.abs(u))) < 1e-6


def test_it_is_a_solver_for_diffrax_itself():
    solver = AffineSDIRK2(lambda tau, b, args: b / (1 + tau * args))
    term = diffrax.ODETerm(lambda t, u, args: -args * u)
    solution = diffrax.diffeqsolve(term, solver, 0.0, 1.0, 0.02, jnp.ones(2), args=jnp.asarray([1.0, 2.0]))
    np.testing.assert_allclose(solution.ys[0], np.exp([-1.0, -2.0]), rtol=1e-3)
