"""Heat equation: closed-form sine solutions, orders of convergence, agreement of the maps with each other."""

import pathlib

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pinv_jax import data, maps, pde

GOLDEN = pathlib.Path(__file__).parent / "data" / "deceptron_heat1d.npz"


def sine(num_points, mode):
    return jnp.sin(mode * jnp.pi * pde.interior_grid(num_points))


def decay(mode, exponent=0.18 * 0.08):
    return np.exp(-exponent * (mode * np.pi) ** 2)


@pytest.mark.parametrize("mode", [1, 2, 5])
def test_spectral_map_is_the_closed_form(mode):
    u = sine(64, mode)
    np.testing.assert_allclose(pde.SpectralHeat1D(64)(u), decay(mode) * u, atol=1e-14)


@pytest.mark.parametrize("mode", [1, 3])
def test_second_order_in_space(mode):
    errors = []
    for num_points in (15, 31, 63):
        u = sine(num_points, mode)
        errors.append(float(jnp.max(jnp.abs(pde.Heat1D(num_points)(u) - decay(mode) * u))))
    np.testing.assert_allclose(np.log2(np.array(errors[:-1]) / np.array(errors[1:])), 2.0, atol=0.15)


@pytest.mark.parametrize(("solver", "order"), [(diffrax.Euler(), 1), (diffrax.Heun(), 2), (diffrax.Bosh3(), 3)])
def test_order_in_time(solver, order):
    """Against the exact solution of the system on the grid, so that the grid's own error stays out."""
    num_points, mode = 7, 3
    u = sine(num_points, mode)
    rate = 4 * 0.18 * (num_points + 1) ** 2 * np.sin(mode * np.pi / (2 * (num_points + 1))) ** 2
    errors = []
    for num_steps in (10, 20, 40):
        y = pde.Heat1D(num_points, num_steps=num_steps, solver=solver)(u)
        errors.append(float(jnp.max(jnp.abs(y - np.exp(-rate * 0.08) * u))))
    observed = np.log2(np.array(errors[:-1]) / np.array(errors[1:]))
    np.testing.assert_allclose(observed, order, atol=0.25)


def test_finite_differences_agree_with_the_propagator_to_their_discretisation_error():
    """Leading error of mode k: decay * exponent * (k pi h)^2 / 12; summed over the prior it is below 1e-3."""
    prior = data.minmax_sine_series(64)
    xs = jax.vmap(prior)(jax.random.split(jax.random.key(0), 50))
    exact, approximate = jax.vmap(pde.SpectralHeat1D(64))(xs), jax.jit(jax.vmap(pde.Heat1D(64)))(xs)
    relative = jnp.linalg.norm(approximate - exact, axis=1) / jnp.linalg.norm(exact, axis=1)
    assert float(jnp.max(relative)) < 1.2e-3
    for mode in (1, 2, 4):
        exponent = 0.0144 * (mode * np.pi) ** 2
        predicted = decay(mode) * exponent * (mode * np.pi / 65) ** 2 / 12
        measured = pde.Heat1D(64)(sine(64, mode)) - decay(mode) * sine(64, mode)
        np.testing.assert_allclose(measured, predicted * sine(64, mode), atol=0.06 * predicted)


@pytest.mark.parametrize("num_steps", [100, 150, 200])
def test_euler_map_multiplies_every_mode_by_its_factor(num_steps):
    for mode in (1, 2, 5):
        u = jnp.sin(mode * jnp.pi * jnp.linspace(0, 1, 64))
        factor = (1 - 1.8 * np.sin(mode * np.pi / 126) ** 2) ** num_steps
        np.testing.assert_allclose(pde.EulerHeat1D(64, num_steps)(u), factor * u, atol=1e-13)
    np.testing.assert_allclose((1 - 1.8 * np.sin(np.pi / 126) ** 2) ** 200, 0.80, atol=0.005)


def test_euler_map_ignores_and_zeroes_the_ends():
    f = pde.EulerHeat1D(16, 10)
    x = jax.random.normal(jax.random.key(0), (16,))
    y = f(x)
    assert y[0] == y[-1] == 0
    np.testing.assert_array_equal(f(x.at[0].set(7.0).at[-1].set(-7.0)), y)


def test_euler_map_is_the_loop_of_the_paper():
    x = np.array(data.clipped_sine_series(64)(jax.random.key(1)))
    u = x.copy()
    for _ in range(200):
        u[1:-1] = u[1:-1] + 0.45 * (u[2:] - 2 * u[1:-1] + u[:-2])
    np.testing.assert_allclose(pde.EulerHeat1D()(jnp.asarray(x)), u, atol=1e-13)


def test_observed_heat_is_the_published_physics():
    """Blur and sensor written out; then the published run itself, up to the noise that was added to it."""
    n = 64
    x = data.minmax_sine_series(n)(jax.random.key(0))
    mix = np.eye(n) + 0.1 * np.eye(n, k=1) + 0.1 * np.eye(n, k=-1)
    z = (mix / mix.sum(axis=1, keepdims=True)) @ np.asarray(pde.SpectralHeat1D(n)(x))
    np.testing.assert_allclose(pde.observed_heat_1d(n)(x), z + 0.18 * z**3 + 0.08 * np.sin(3 * z), rtol=1e-13)

    golden = np.load(GOLDEN)
    mean, std = (jnp.asarray(golden[name][0], jnp.float64) for name in ("y_mean", "y_std"))
    physics = maps.Normalised(pde.observed_heat_1d(n), mean, std)
    clean = jax.vmap(physics)(jnp.asarray(golden["x_test"], jnp.float64))
    noise = (golden["y_test_norm"] - clean) * std[None] / 0.01  # N(0, 1) if the physics is the published one
    count = noise.size
    assert abs(float(jnp.mean(noise))) < 4 / count**0.5
    assert abs(float(jnp.mean(noise**2)) - 1) < 4 * (2 / count) ** 0.5
    assert float(jnp.max(jnp.abs(noise))) < 5.0
    # Per coordinate and per instance too: an error of one mode or of the end points would show there.
    assert float(jnp.max(jnp.abs(jnp.mean(noise, axis=0)))) < 4 / 60**0.5
    assert float(jnp.max(jnp.abs(jnp.mean(noise, axis=1)))) < 4 / 64**0.5


def test_diffusivity_has_a_derivative():
    f = pde.Heat1D(16)
    u = sine(16, 2)
    at = lambda value: pde.Heat1D(16, float(value), num_steps=f.num_steps)(u)
    gradient = jax.jvp(
        lambda kappa: jax.tree.unflatten(jax.tree.structure(f), [kappa])(u), (f.diffusivity,), (jnp.asarray(1.0),)
    )[1]
    np.testing.assert_allclose(gradient, (at(0.18 + 1e-6) - at(0.18 - 1e-6)) / 2e-6, atol=1e-8)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_noise_in_the_highest_modes_is_damped(dtype):
    checkerboard = jnp.asarray((-1.0) ** np.arange(64), dtype)
    for solver in (diffrax.Euler(), diffrax.Heun(), diffrax.Tsit5()):
        y = pde.Heat1D(64, solver=solver, dtype=dtype)(checkerboard)
        # What is left is the part of the checkerboard that is not in the high modes.
        np.testing.assert_allclose(y, pde.SpectralHeat1D(64, dtype=dtype)(checkerboard), atol=2e-3)


def test_unstable_steps_are_refused_with_the_longest_stable_one():
    with pytest.raises(ValueError, match=r"largest stable step is 0\.000657.*num_steps >= 122"):
        pde.Heat1D(64, num_steps=60)
    pde.Heat1D(64, num_steps=122)
    with pytest.raises(ValueError, match="blows up"):
        pde.EulerHeat1D(coefficient=0.6)


def test_sine_basis_is_orthonormal_and_limited():
    basis = pde.sine_basis(20, 20)
    np.testing.assert_allclose(basis.T @ basis, jnp.eye(20), atol=1e-14)
    with pytest.raises(ValueError, match="at most as many modes"):
        pde.sine_basis(4, 5)
