"""Allen-Cahn: closed forms for constants and small modes, energy decay, order in time, symmetry, derivatives."""

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pinv_jax import pde
from pinv_jax.pde._allen_cahn import SpectralImplicitExplicitEuler


@jax.jit
def run(f, x):
    return f(x)


def smooth(num_points, seed=0, size=0.9, num_modes=3):
    """A band-limited field in [-size, size], the same function on every grid."""
    rng = np.random.default_rng(seed)
    s = np.arange(num_points) / num_points
    angle = lambda k, phase: np.cos(2 * np.pi * k * s + phase)
    modes = [
        rng.normal() * np.outer(angle(i, rng.uniform(0, 7)), angle(j, rng.uniform(0, 7)))
        for i in range(num_modes)
        for j in range(num_modes)
    ]
    field = np.sum(modes, axis=0)
    return jnp.asarray(size * field / 6)


def energy(u, epsilon):
    """The Ginzburg-Landau energy, gradients taken in Fourier space."""
    first, second = pde.wavenumbers_2d(u.shape[0])
    modes = np.fft.rfft2(u)
    gradients = [np.fft.irfft2(1j * k * modes, u.shape) for k in (first, second)]
    return np.mean(0.5 * epsilon**2 * sum(g**2 for g in gradients) + 0.25 * (1 - np.asarray(u) ** 2) ** 2)


@pytest.mark.parametrize("value", [0.0, 0.3, -0.8, 1.0])
def test_constants_follow_the_scalar_scheme_and_its_equation(value):
    y = run(pde.AllenCahn2D(16, 1.2, 60), jnp.full((16, 16), value))
    u = value
    for _ in range(60):
        u = u + 0.02 * (u - u**3)
    np.testing.assert_allclose(y, u, atol=1e-13)
    exact = value * np.exp(1.2) / np.sqrt(1 + value**2 * (np.exp(2.4) - 1))
    np.testing.assert_allclose(y, exact, atol=0.01)


@pytest.mark.parametrize("mode", [(1, 0), (2, 3), (0, 5)])
def test_small_modes_follow_the_linearised_scheme(mode):
    s = np.arange(16) / 16
    u = 1e-6 * np.cos(2 * np.pi * (mode[0] * s[:, None] + mode[1] * s[None, :]) + 0.4)
    rate = 0.04**2 * (2 * np.pi) ** 2 * (mode[0] ** 2 + mode[1] ** 2)
    factor = ((1 + 0.002) / (1 + 0.002 * rate)) ** 60
    np.testing.assert_allclose(run(pde.AllenCahn2D(16), jnp.asarray(u)), factor * u, atol=1e-17)
    np.testing.assert_allclose(factor, np.exp((1 - rate) * 0.12), rtol=0.05)


@pytest.mark.parametrize("step_size", [0.05, 0.5])
def test_energy_never_grows_up_to_the_longest_step(step_size):
    f = pde.AllenCahn2D(16, step_size, 1)
    u = jnp.clip(jax.random.normal(jax.random.key(0), (16, 16)), -1.0, 1.0)
    energies = [energy(u, 0.04)]
    for _ in range(40):
        u = run(f, u)
        energies.append(energy(u, 0.04))
    assert np.all(np.diff(energies) <= 1e-14)
    assert energies[-1] < 0.5 * energies[0]
    assert float(jnp.max(jnp.abs(u))) < 1.01


def test_first_order_in_time():
    x = smooth(16)
    reference = run(pde.AllenCahn2D(16, 1.0, 20_000), x)
    errors = [float(jnp.max(jnp.abs(run(pde.AllenCahn2D(16, 1.0, n), x) - reference))) for n in (20, 40, 80)]
    np.testing.assert_allclose(np.log2(np.array(errors[:-1]) / np.array(errors[1:])), 1.0, atol=0.1)


def test_a_front_at_rest():
    """`tanh(s / (sqrt(2) epsilon))` solves the equation in one dimension; two of them, far apart, stay."""
    epsilon, num_points = 0.03, 64
    s = np.arange(num_points) / num_points
    profile = np.tanh((0.25 - np.abs(s - 0.5)) / (np.sqrt(2) * epsilon))
    for u in (profile[:, None] + np.zeros((1, num_points)), profile[None, :] + np.zeros((num_points, 1))):
        np.testing.assert_allclose(run(pde.AllenCahn2D(num_points, 0.5, 60, epsilon), jnp.asarray(u)), u, atol=2e-5)


def test_translation_and_sign_pass_through():
    f, x = pde.AllenCahn2D(16), smooth(16, 1)
    moved = lambda u: -jnp.roll(u, (3, -5), (0, 1)).T
    np.testing.assert_allclose(run(f, moved(x)), moved(run(f, x)), atol=1e-14)


def test_float32_agrees_with_float64():
    x = smooth(16, 2)
    y = run(pde.AllenCahn2D(16, dtype=jnp.float32), x.astype(jnp.float32))
    assert y.dtype == jnp.float32
    np.testing.assert_allclose(y, run(pde.AllenCahn2D(16), x), atol=5e-6)


def test_solver_is_one_of_diffrax():
    """The same steps through `diffeqsolve`; its right-hand side is that of the equation."""
    x = smooth(16, 3)
    first, second = pde.wavenumbers_2d(16)
    solver = SpectralImplicitExplicitEuler(jnp.asarray(0.04**2 * (first**2 + second**2)))
    term = diffrax.ODETerm(lambda t, u, args: u - u**3)
    solution = diffrax.diffeqsolve(term, solver, 0.0, 0.12, 0.002, x)
    assert solution.ys is not None
    np.testing.assert_allclose(solution.ys[-1], run(pde.AllenCahn2D(16), x), atol=1e-12)
    step = 1e-6
    moved = solver.step(term, 0.0, step, x, None, None, made_jump=False)[0]
    np.testing.assert_allclose((moved - x) / step, solver.func(term, 0.0, x, None), atol=1e-4)


def test_derivatives():
    """Adjoint and Taylor tests; the derivative with respect to the width of the interfaces."""
    f, x = pde.AllenCahn2D(16, 1.0, 10), smooth(16, 4)
    v, w = smooth(16, 5), smooth(16, 6)

    @jax.jit
    def products(f, x):
        y, forward = jax.jvp(f, (x,), (v,))
        width = jax.jvp(lambda epsilon: jax.tree.unflatten(jax.tree.structure(f), [epsilon])(x), (f.epsilon,), (1.0,))
        return y, forward, jax.vjp(f, x)[1](w)[0], width[1]

    y, forward, backward, width = products(f, x)
    np.testing.assert_allclose(jnp.vdot(w, forward), jnp.vdot(backward, v), rtol=1e-11)
    remainders = [float(jnp.linalg.norm(run(f, x + h * v) - y - h * forward)) for h in (1e-2, 5e-3, 2.5e-3)]
    np.testing.assert_allclose(np.log2(np.array(remainders[:-1]) / np.array(remainders[1:])), 2.0, atol=0.1)
    ends = [run(pde.AllenCahn2D(16, 1.0, 10, 0.04 + h), x) for h in (-1e-6, 1e-6)]
    np.testing.assert_allclose(width, (ends[1] - ends[0]) / 2e-6, atol=1e-7)


def test_observation_clips():
    x = jnp.sign(smooth(32, 7) + 0.01)
    y = run(pde.AllenCahn2D(), x)
    assert float(jnp.max(jnp.abs(y))) > 1  # overshoot at the jumps
    np.testing.assert_array_equal(run(pde.observed_allen_cahn_2d(), x), jnp.clip(y, -1.0, 1.0))


def test_bad_steps_and_grids_are_refused():
    with pytest.raises(ValueError, match=r"num_steps=10 for final_time=6: .* at most 0\.5\. Use num_steps >= 12"):
        pde.AllenCahn2D(16, 6.0, 10)
    with pytest.raises(ValueError, match="num_steps >= 1"):
        pde.AllenCahn2D(num_steps=0)
    with pytest.raises(ValueError, match=r"Use num_points >= 13 or epsilon >= 0\.0625"):
        pde.AllenCahn2D(8)
    pde.AllenCahn2D(13)
