"""Advection-diffusion: travelling modes in closed form, orders of convergence, conservation, the adjoint."""

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import DTYPES

from pinv_jax import pde

SOLVERS = {"euler": diffrax.Euler(), "heun": diffrax.Heun(), "bosh3": diffrax.Bosh3(), "tsit5": diffrax.Tsit5()}


def points(n):
    return np.meshgrid(np.arange(n) / n, np.arange(n) / n, indexing="ij")


def noise(n, dtype=jnp.float64, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=(n, n)), dtype)


def generator(f):
    """The matrix `A` of `u' = A u`, from one Euler step of a copy of the map."""
    n = f.velocity_0.shape[0]
    step = 1.0 / 1024
    short = pde.AdvectionDiffusion2D(n, 10.0, step, 1, solver=diffrax.Euler())
    short = jax.tree.unflatten(jax.tree.structure(short), jax.tree.leaves(f))
    jac = np.asarray(jax.jacfwd(short)(jnp.zeros((n, n)))).reshape(n * n, n * n)
    return (jac - np.eye(n * n)) / step


def test_uniform_wind_carries_and_damps_a_mode_as_the_grid_does():
    """`exp(2 pi i (k_0 s_0 + k_1 s_1))` is an eigenvector of the scheme, with an eigenvalue in closed form."""
    n, velocity, peclet, modes, time = 12, (1.0, -0.5), 15.0, (1, 2), 0.3
    angles = 2 * np.pi * np.array(modes) / n
    rate = -2 / peclet * n**2 * np.sum(1 - np.cos(angles)) - 1j * n * np.sum(np.array(velocity) * np.sin(angles))
    s, t = points(n)
    phase = 2 * np.pi * (modes[0] * s + modes[1] * t)
    f = pde.AdvectionDiffusion2D(n, peclet, time, 200, velocity=velocity, solver=diffrax.Tsit5())
    expected = np.real(np.exp(1j * phase + rate * time))
    np.testing.assert_allclose(f(jnp.asarray(np.cos(phase))), expected, atol=1e-9)


def test_second_order_in_space_towards_the_travelling_mode():
    velocity, peclet, modes, time, errors = (1.0, -0.5), 15.0, (1, 1), 0.2, []
    for n in (16, 32, 64):
        s, t = points(n)
        phase = lambda time, s=s, t=t: 2 * np.pi * ((s - velocity[0] * time) + (t - velocity[1] * time))
        exact = np.exp(-4 * np.pi**2 / peclet * sum(k * k for k in modes) * time) * np.cos(phase(time))
        y = pde.AdvectionDiffusion2D(n, peclet, time, velocity=velocity)(jnp.asarray(np.cos(phase(0.0))))
        errors.append(float(np.max(np.abs(y - exact))))
    np.testing.assert_allclose(np.log2(np.array(errors[:-1]) / np.array(errors[1:])), 2.0, atol=0.15)


def test_vortices_are_discretised_to_second_order():
    """`-v . grad(u) + D Laplacian(u)` of a smooth `u`, written out, against one short Euler step."""
    errors, step = [], 2.0**-16
    for n in (16, 32, 64):
        s, t = (2 * np.pi * axis for axis in points(n))
        u = np.sin(s + 2 * t) + np.cos(t)
        slopes = 2 * np.pi * np.cos(s + 2 * t), 2 * np.pi * (2 * np.cos(s + 2 * t) - np.sin(t))
        laplacian = -4 * np.pi**2 * (5 * np.sin(s + 2 * t) + np.cos(t))
        wind = 0.5 + 0.5 * np.sin(s) * np.cos(t), 0.25 - 0.5 * np.cos(s) * np.sin(t)
        exact = -wind[0] * slopes[0] - wind[1] * slopes[1] + laplacian / 20
        y = pde.AdvectionDiffusion2D(n, 20.0, step, 1, solver=diffrax.Euler())(jnp.asarray(u))
        errors.append(float(np.max(np.abs((y - u) / step - exact))))
    np.testing.assert_allclose(np.log2(np.array(errors[:-1]) / np.array(errors[1:])), 2.0, atol=0.1)


@pytest.mark.parametrize(("solver", "order"), [("euler", 1), ("heun", 2), ("bosh3", 3)])
def test_order_in_time(solver, order):
    """Against the matrix exponential of the system on the grid."""
    linalg = pytest.importorskip("scipy.linalg")
    n, errors, x = 6, [], noise(6)
    for num_steps in (24, 48, 96):
        f = pde.AdvectionDiffusion2D(n, 10.0, num_steps=num_steps, solver=SOLVERS[solver])
        exact = (linalg.expm(f.final_time * generator(f)) @ np.asarray(x).ravel()).reshape(n, n)
        errors.append(float(np.max(np.abs(f(x) - exact))))
    np.testing.assert_allclose(np.log2(np.array(errors[:-1]) / np.array(errors[1:])), order, atol=0.25)


@DTYPES
def test_mean_and_constants_are_kept_to_rounding(dtype):
    f = jax.jit(lambda x: pde.AdvectionDiffusion2D(16, dtype=dtype)(x))
    eps = float(jnp.finfo(dtype).eps)
    x = noise(16, dtype) + 1
    y = f(x)
    assert y.dtype == dtype
    assert abs(float(jnp.mean(y.astype(jnp.float64)) - jnp.mean(x.astype(jnp.float64)))) < 10 * eps
    np.testing.assert_allclose(f(jnp.full((16, 16), 3.0, dtype)), 3.0, rtol=100 * eps)
    assert float(jnp.std(y)) < 0.5 * float(jnp.std(x))


def test_values_stay_within_their_range():
    """At a cell Peclet number of 2 no weight of the scheme is negative: no oscillation, up to the largest step."""
    n, peclet = 8, 16.0
    num_steps = int(np.ceil(8 / peclet * n**2 * 0.05 / 2))
    f = pde.AdvectionDiffusion2D(n, peclet, 0.05, num_steps)
    x = (noise(n) > 0).astype(float)
    y = f(x)
    assert 0 <= float(jnp.min(y)) < float(jnp.max(y)) <= 1


@pytest.mark.parametrize("name", list(SOLVERS))
def test_the_diffusive_bound_implies_the_advective_one(name):
    """Cell Peclet number 2, wind along the diagonal, longest steps allowed: the hardest case; noise does not grow."""
    n, time = 6, 20.0
    limit = pde.real_stability_limit(SOLVERS[name])
    assert limit is not None
    num_steps = int(np.ceil(8 / (2 * n) * n**2 * time / limit))
    f = pde.AdvectionDiffusion2D(n, 2.0 * n, time, num_steps, velocity=(1.0, 1.0), solver=SOLVERS[name])
    x = noise(n)
    assert float(jnp.max(jnp.abs(f(x) - jnp.mean(x)))) < float(jnp.max(jnp.abs(x - jnp.mean(x))))


def test_the_adjoint_blows_the_other_way():
    """The scheme's advection is skew, so the transposed map is the one with the velocity reversed."""
    x = noise(8)
    forward = pde.AdvectionDiffusion2D(8, 10.0)
    leaves, structure = jax.tree.flatten(forward)
    reversed_wind = jax.tree.unflatten(structure, [leaves[0], -leaves[1], -leaves[2]])
    backward = jax.vjp(forward, x)[1](x)[0]
    np.testing.assert_allclose(backward, reversed_wind(x), atol=1e-13)
    assert float(jnp.max(jnp.abs(backward - forward(x)))) > 1e-2


def test_largest_component_and_diffusivity_are_as_documented():
    f = pde.AdvectionDiffusion2D(64, 25.0)
    np.testing.assert_allclose(max(float(jnp.max(jnp.abs(v))) for v in (f.velocity_0, f.velocity_1)), 1.0, atol=1e-3)
    np.testing.assert_allclose(f.diffusivity, 1 / 25, rtol=1e-14)
    np.testing.assert_allclose(pde.AdvectionDiffusion2D(16, velocity=(0.0, -3.0)).diffusivity, 3 / 20, rtol=1e-14)


def test_what_a_grid_cannot_do_is_refused():
    with pytest.raises(
        ValueError, match=r"Heun got steps of 0\.025.*diffusive bound.*step is 0\.00488.*num_steps >= 52"
    ):
        pde.AdvectionDiffusion2D(num_steps=10)
    pde.AdvectionDiffusion2D(num_steps=52)
    with pytest.raises(ValueError, match=r"= 3\.12, is above 2.*num_points >= 25, or peclet <= 32"):
        pde.AdvectionDiffusion2D(16, 50.0)
    pde.AdvectionDiffusion2D(25, 50.0)
    with pytest.raises(ValueError, match="velocity that is not zero"):
        pde.AdvectionDiffusion2D(velocity=(0.0, 0.0))
