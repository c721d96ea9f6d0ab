"""Darcy flow: manufactured and series solutions, balance, derivatives, batches, steps of the solver, its basis."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg
import scipy.sparse
import scipy.sparse.linalg
from cases import draw

from pinv_jax import pde
from pinv_jax.pde._darcy import _apply, _conductances, _scaled_laplacian
from pinv_jax.pde._implicit import conjugate_gradients
from pinv_jax.pde._karhunen_loeve import matern_basis

pressure = jax.jit(pde.darcy_pressure)
apply = jax.jit(lambda f, x: f(x))


@jax.jit
def pulled(f, x, w):
    """The value, and the products of `w` with the derivatives by the map's parameters and by `x`."""
    y, pull = jax.vjp(lambda f, x: f(x), f, x)
    return y, *pull(w)


@jax.jit
def count(log_permeability):
    """Steps of the linear solve."""
    conductances = _conductances(jnp.exp(log_permeability))
    precondition = _scaled_laplacian(conductances, 0.0)
    b = jnp.ones_like(log_permeability)
    return conjugate_gradients(lambda p: _apply(conductances, p, 0.0), b, precondition)[1]


def grid(n):
    return np.meshgrid(np.arange(1, n + 1) / (n + 1), np.arange(1, n + 1) / (n + 1), indexing="ij")


def assembled(permeability):
    """The matrix of the finite volumes times `h^2`, face by face."""
    n = permeability.shape[0]
    matrix = scipy.sparse.lil_matrix((n * n, n * n))
    for i, j, (di, dj) in itertools.product(range(n), range(n), [(1, 0), (-1, 0), (0, 1), (0, -1)]):
        here, k = i * n + j, float(permeability[i, j])
        inside = 0 <= i + di < n and 0 <= j + dj < n
        other = float(permeability[i + di, j + dj]) if inside else k
        conductance = 2 * k * other / (k + other)
        matrix[here, here] += conductance
        if inside:
            matrix[here, (i + di) * n + j + dj] -= conductance
    return matrix.tocsc()


@pytest.fixture(scope="module")
def example():
    f = pde.Darcy2D(16, 12)
    return f, draw(f.in_structure())


def test_second_order_for_a_manufactured_solution():
    k = lambda s, t: jnp.exp(0.7 * s + jnp.sin(3 * t) * s)
    p = lambda s, t: jnp.sin(jnp.pi * s) * jnp.sin(2 * jnp.pi * t) * jnp.exp(s)
    flux_s = lambda s, t: k(s, t) * jax.grad(p, 0)(s, t)
    flux_t = lambda s, t: k(s, t) * jax.grad(p, 1)(s, t)
    source = jax.jit(jnp.vectorize(lambda s, t: -jax.grad(flux_s, 0)(s, t) - jax.grad(flux_t, 1)(s, t)))
    errors = []
    for n in (15, 31, 63):
        s, t = grid(n)
        errors.append(float(jnp.sqrt(jnp.mean((pressure(k(s, t), source(s, t)) - p(s, t)) ** 2))))
    np.testing.assert_allclose(np.log2(np.array(errors[:-1]) / np.array(errors[1:])), 2.0, atol=0.12)


def test_constant_permeability_against_the_sine_series():
    """The series of the grid to rounding, that of the square to second order."""
    modes = np.arange(1, 400, 2)
    weight = 16 / (np.pi**4 * np.outer(modes, modes) * (modes[:, None] ** 2 + modes**2))
    errors = []
    for n in (15, 31):
        wave = np.sin(np.pi * np.outer(np.arange(1, n + 1) / (n + 1), modes))
        errors.append(np.max(np.abs(pressure(jnp.ones((n, n))) - wave @ weight @ wave.T)))
    assert errors[1] < 2e-4
    np.testing.assert_allclose(np.log2(errors[0] / errors[1]), 2.0, atol=0.1)

    sines = np.asarray(pde.sine_basis(n, n))
    along = 4 * (n + 1) ** 2 * np.sin(np.pi * np.arange(1, n + 1) / (2 * (n + 1))) ** 2
    exact = sines @ ((sines.T @ np.ones((n, n)) @ sines) / (along[:, None] + along)) @ sines.T
    np.testing.assert_allclose(pressure(3.0 * jnp.ones((n, n))), exact / 3.0, rtol=1e-12)


def test_agrees_with_a_sparse_factorisation(example):
    f, x = example
    source = f.source + draw(f.source)
    k = jnp.exp(2 * f.log_permeability(x))
    exact = scipy.sparse.linalg.spsolve(assembled(k), np.ravel(source) / 17**2).reshape(16, 16)
    np.testing.assert_allclose(pressure(k, source), exact, rtol=1e-10, atol=1e-10 * np.max(np.abs(exact)))
    exact = scipy.sparse.linalg.spsolve(assembled(jnp.exp(f.log_permeability(x))), np.full(256, 1 / 17**2))
    np.testing.assert_allclose(apply(f, x).ravel(), exact, rtol=1e-10)


def test_what_leaves_is_what_the_source_gives(example):
    f, x = example
    k = jnp.exp(f.log_permeability(x))
    source = jnp.abs(draw(f.source))
    flow = k * pressure(k, source)  # to the boundary at distance h, through a face of length h
    leaving = jnp.sum(flow[0]) + jnp.sum(flow[-1]) + jnp.sum(flow[:, 0]) + jnp.sum(flow[:, -1])
    np.testing.assert_allclose(leaving, jnp.sum(source) / 17**2, rtol=1e-12)


def test_symmetries_of_the_problem(example):
    f, x = example
    k = jnp.exp(f.log_permeability(x))
    source = draw(f.source)
    p = pressure(k, source)
    np.testing.assert_allclose(pressure(k.T, source.T), p.T, atol=1e-13)
    np.testing.assert_allclose(pressure(k[::-1], source[::-1]), p[::-1], atol=1e-13)
    np.testing.assert_allclose(pressure(5 * k, 2 * source), 0.4 * p, atol=1e-13)
    at = lambda i, j: pressure(k, jnp.zeros((16, 16)).at[i, j].set(1.0))
    np.testing.assert_allclose(at(2, 3)[10, 7], at(10, 7)[2, 3], rtol=1e-11)
    assert float(jnp.min(at(2, 3))) > 0  # maximum principle


def test_derivatives(example):
    """Taylor test of order 2, adjoint, and the gradient against central differences in every coordinate."""
    f, x = example
    v, w = draw(f.in_structure(), 1), draw(f.out_structure(), 2)
    f = jax.jit(f.__call__)
    y, forward = jax.jvp(f, (x,), (v,))
    backward = jax.vjp(f, x)[1](w)[0]
    np.testing.assert_allclose(jnp.vdot(w, forward), jnp.vdot(backward, v), rtol=1e-11)
    remainder = [float(jnp.linalg.norm(f(x + t * v) - y - t * forward)) for t in (1e-2, 5e-3, 2.5e-3)]
    np.testing.assert_allclose(np.log2(np.array(remainder[:-1]) / np.array(remainder[1:])), 2.0, atol=0.05)
    objective = lambda x: jnp.vdot(w, f(x))
    differences = [(objective(x + e) - objective(x - e)) / 2e-5 for e in 1e-5 * jnp.eye(12)]
    np.testing.assert_allclose(backward, differences, rtol=1e-6, atol=1e-8)


@pytest.mark.slow
def test_derivatives_with_respect_to_permeability_and_source():
    k, source = jnp.exp(0.5 * draw(jnp.zeros((5, 5)))), draw(jnp.zeros((5, 5)), 1)
    w = draw(jnp.zeros((5, 5)), 2)
    of_k, of_source = jax.vjp(pressure, k, source)[1](w)
    np.testing.assert_allclose(of_source, pressure(k, w), rtol=1e-10, atol=1e-14)  # self-adjoint, in h^2 sums
    objective = lambda k: jnp.vdot(w, pressure(k, source))
    step = 1e-6 * draw(k, 3)
    np.testing.assert_allclose(jnp.vdot(of_k, step), (objective(k + step) - objective(k - step)) / 2, rtol=1e-7)


@pytest.mark.parametrize("make", [pde.Darcy2D, pytest.param(pde.TransientDarcy2D, marks=pytest.mark.slow)])
def test_float32_is_the_same_map(make):
    single, double = make(12, 6, dtype=jnp.float32), make(12, 6)
    x, w = draw(double.in_structure()), draw(double.out_structure(), 1)
    y, _, gradient = pulled(single, x.astype(jnp.float32), w.astype(jnp.float32))
    exact, _, gradient_exact = pulled(double, x, w)
    assert y.dtype == gradient.dtype == jnp.float32
    np.testing.assert_allclose(y, exact, rtol=2e-5)
    np.testing.assert_allclose(gradient, gradient_exact, atol=5e-5 * float(jnp.max(jnp.abs(gradient_exact))))


def test_a_lane_that_fails_leaves_its_neighbours_bit_identical():
    f = pde.Darcy2D(8, 6, dtype=jnp.float32)
    xs = jnp.stack([draw(f.in_structure(), seed) for seed in range(6)])
    broken = xs.at[1].set(jnp.nan).at[2].multiply(1e4).at[4, 0].set(jnp.inf)
    w = draw(f.out_structure())
    both = jax.jit(jax.vmap(lambda x: (f(x), jax.vjp(f, x)[1](w)[0])))
    for good, bad in zip(both(xs), both(broken), strict=True):
        np.testing.assert_array_equal(bad[jnp.array([0, 3, 5])], good[jnp.array([0, 3, 5])])
        assert bool(jnp.all(jnp.isnan(bad[jnp.array([1, 2, 4])])))


@pytest.mark.parametrize(("std", "most"), [pytest.param(1.0, 26, marks=pytest.mark.slow), (2.0, 38)])
def test_steps_of_the_solver_do_not_grow_with_the_grid(std, most):
    xs = np.random.default_rng(0).normal(size=(12, 32))
    medians = []
    for n in (8, 16, 32):
        f = pde.Darcy2D(n, std=std)
        steps = [int(count(f.log_permeability(jnp.asarray(x)))) for x in xs]
        assert max(steps) <= most
        medians.append(np.median(steps))
    assert medians[2] <= 1.2 * medians[1] <= 1.2 * 1.3 * medians[0]


def test_bad_input_is_refused():
    f = pde.Darcy2D(6, 4)
    with pytest.raises(ValueError, match=r"6 x 6 points expected one x of shape \(4,\).*got shape \(5,\)"):
        f(jnp.zeros(5))
    with pytest.raises(ValueError, match=r"vmap for a batch"):
        pde.TransientDarcy2D(6, 4)(jnp.zeros((2, 4)))
    k = jnp.ones((4, 4))
    with pytest.raises(ValueError, match=r"2 of 16 values that are not, the first -1.0 at index \(1, 2\)"):
        pde.darcy_pressure(k.at[1, 2].set(-1.0).at[3, 3].set(jnp.inf))
    with pytest.raises(ValueError, match="positive, finite permeability"):
        pde.darcy_pressure(k.at[0, 0].set(0.0))
    assert bool(jnp.all(jnp.isnan(pressure(k.at[0, 0].set(-1.0)))))  # traced: no check is possible
    with pytest.raises(ValueError, match=r"permeability of shape \(n, n\), got shape \(4, 3\)"):
        pde.darcy_pressure(k[:, :3])
    with pytest.raises(ValueError, match=r"source to be a number or of shape \(4, 4\), got shape \(3, 3\)"):
        pde.darcy_pressure(k, jnp.ones((3, 3)))
    with pytest.raises(ValueError, match=r"mean to be a number or of shape \(6, 6\)"):
        pde.Darcy2D(6, 4, mean=jnp.ones((4, 4)))
    for options in ({"storage": 0.0}, {"num_steps": 0}):
        with pytest.raises(ValueError, match="positive storage and at least one step"):
            pde.TransientDarcy2D(6, 4, **options)
    for options in ({"smoothness": 2.0}, {"length_scale": 0.0}):
        with pytest.raises(ValueError, match=r"smoothness of 0\.5, 1\.5, 2\.5 and a positive length scale"):
            pde.Darcy2D(6, 4, **options)
    for num_modes in (0, 257):
        with pytest.raises(ValueError, match=f"between 1 and 256 modes.*num_modes={num_modes}"):
            pde.Darcy2D(6, num_modes)
    with pytest.raises(ValueError, match=r"variance above rounding, got num_modes=200 for length_scale=300: only \d+"):
        pde.Darcy2D(6, 200, length_scale=300.0)


# The transient problem ------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_limit_of_long_times_is_the_pressure_at_rest():
    """In value and both derivative products; within twenty steps far longer than the grid's fast time scales."""
    steady, transient = pde.Darcy2D(8, 6), pde.TransientDarcy2D(8, 6, 20.0, 20)
    x, v = draw(steady.in_structure()), draw(steady.in_structure(), 1)
    w = draw(steady.out_structure(), 2)

    @jax.jit
    def all_of(f):
        return *jax.jvp(f, (x,), (v,)), jax.vjp(f, x)[1](w)[0]

    for exact, limit in zip(all_of(steady), all_of(transient), strict=True):
        np.testing.assert_allclose(limit, exact, rtol=1e-11, atol=1e-13)


def test_transient_pressure_against_the_matrix_exponential():
    n, storage, final_time = 5, 2.0, 0.08
    f = pde.TransientDarcy2D(n, 4, final_time, storage=storage)
    x = draw(f.in_structure())
    matrix = assembled(jnp.exp(f.log_permeability(x))).toarray() * (n + 1) ** 2
    at_rest = np.linalg.solve(matrix, np.ones(n * n))
    exact = at_rest - scipy.linalg.expm(-final_time / storage * matrix) @ at_rest
    errors = []
    for num_steps in (8, 16, 32):
        f = pde.TransientDarcy2D(n, 4, final_time, num_steps, storage=storage)
        errors.append(np.max(np.abs(apply(f, x).ravel() - exact)))
    assert errors[-1] < 2e-3 * np.max(exact)
    np.testing.assert_allclose(np.log2(np.array(errors[:-1]) / np.array(errors[1:])), 2.0, atol=0.25)


@pytest.mark.slow
def test_storage_has_a_derivative():
    f = pde.TransientDarcy2D(5, 4, 0.1, 4, storage=2.0)
    x, w = draw(f.in_structure()), draw(f.out_structure(), 1)
    at = lambda value: jnp.vdot(w, apply(pde.TransientDarcy2D(5, 4, 0.1, 4, storage=value), x))
    gradient = pulled(f, x, w)[1].storage
    np.testing.assert_allclose(gradient, (at(2.0 + 1e-5) - at(2.0 - 1e-5)) / 2e-5, rtol=1e-6)


# The basis ------------------------------------------------------------------------------------------------------------


def test_basis_is_orthonormal_and_solves_the_eigenvalue_problem():
    """By a quadrature that is not the one it was made with."""
    nodes, weights = np.polynomial.legendre.leggauss(45)
    nodes, weights = 0.5 * (nodes + 1), 0.5 * weights
    values, functions = matern_basis(nodes, 12, length_scale=0.2, smoothness=1.5)
    area = np.outer(weights, weights).ravel()
    flat = functions.reshape(-1, 12)
    np.testing.assert_allclose(flat.T @ (area[:, None] * flat), np.eye(12), atol=3e-4)
    for s in ((7, 30), (22, 1)):
        r = np.sqrt(3) / 0.2 * np.hypot(nodes[s[0]] - nodes[:, None], nodes[s[1]] - nodes).ravel()
        np.testing.assert_allclose(
            ((1 + r) * np.exp(-r) * area) @ flat, values * functions[s], atol=2e-4 * np.sqrt(values[0])
        )


@pytest.mark.parametrize(("smoothness", "share"), [(0.5, 0.743), (1.5, 0.920), (2.5, 0.958)])
def test_share_of_variance(smoothness, share):
    values, functions = matern_basis(np.linspace(0, 1, 9), 32, length_scale=0.2, smoothness=smoothness)
    assert np.all(np.diff(values) <= 0)
    np.testing.assert_allclose(values.sum(), share, atol=5e-4)
    variances = np.sum(values * functions**2, axis=2)
    assert np.all(variances <= 1 + 2e-3)  # the pointwise variance of the whole field is one
    everything = matern_basis(np.linspace(0, 1, 9), 256, length_scale=0.2, smoothness=smoothness)[0].sum()
    assert share < everything <= 1 + 1e-12


def test_covariance_of_the_field():
    """All 256 modes: the kernel itself, away from the resolution limit."""
    points = np.array([0.1, 0.4, 0.5, 0.75])
    values, functions = matern_basis(points, 256, length_scale=0.3, smoothness=2.5)
    flat = functions.reshape(16, -1)
    s = np.stack(np.meshgrid(points, points, indexing="ij"), axis=-1).reshape(16, 2)
    r = np.sqrt(5) / 0.3 * np.linalg.norm(s[:, None] - s, axis=-1)
    np.testing.assert_allclose((flat * values) @ flat.T, (1 + r + r**2 / 3) * np.exp(-r), atol=2e-3)


def test_modes_of_equal_variance_are_transposes_and_grids_agree():
    coarse, fine = pde.Darcy2D(7, 5, std=1.5), pde.Darcy2D(15, 5, std=1.5)
    np.testing.assert_allclose(coarse.basis[:, :, 1], coarse.basis[:, :, 2].T, atol=1e-15)
    x = draw(coarse.in_structure())
    np.testing.assert_allclose(coarse.log_permeability(x), fine.log_permeability(x)[1::2, 1::2], atol=1e-13)
    shifted = pde.Darcy2D(7, 5, std=3.0, mean=0.25)
    np.testing.assert_allclose(shifted.log_permeability(x), 0.25 + 2 * coarse.log_permeability(x), atol=1e-13)
