"""Navier-Stokes: Taylor-Green decay, an independent stepper, conservation, reversibility, orders, derivatives."""

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pinv_jax import pde


@jax.jit
def run(f, x):
    return f(x)


def smooth(num_points, seed=0, size=2.0, num_modes=4):
    """A band-limited vorticity, the same function on every grid, with a mean."""
    rng = np.random.default_rng(seed)
    s = np.arange(num_points) / num_points
    wave = lambda k, phase: np.cos(2 * np.pi * k * s + phase)
    modes = [
        rng.normal() / (1 + i + j) * np.outer(wave(i, rng.uniform(0, 7)), wave(j, rng.uniform(0, 7)))
        for i in range(num_modes)
        for j in range(num_modes)
    ]
    return jnp.asarray(size * np.sum(modes, axis=0))


def spectrum(w):
    """Full wavenumbers and Fourier coefficients."""
    k = 2 * np.pi * np.fft.fftfreq(w.shape[0], 1 / w.shape[0])
    first, second = np.meshgrid(k, k, indexing="ij")
    return first, second, np.fft.fft2(w)


def energy(w):
    first, second, modes = spectrum(w)
    squared = first**2 + second**2
    return np.sum(np.abs(modes) ** 2 / np.where(squared > 0, squared, np.inf)) / w.size**2 / 2


def enstrophy(w):
    return float(np.mean(np.asarray(w) ** 2)) / 2


def by_hand(w, viscosity, final_time, num_steps):
    """The advective form with complex transforms and the classical Runge-Kutta method."""
    first, second, modes = spectrum(w)
    squared = first**2 + second**2
    kept = 1.0 * (np.maximum(abs(first), abs(second)) < 2 * np.pi * w.shape[0] / 3)
    back = lambda c: np.real(np.fft.ifft2(c))

    def slope(c):
        stream = c / np.where(squared > 0, squared, np.inf)
        advection = back(1j * second * stream) * back(1j * first * c) - back(1j * first * stream) * back(
            1j * second * c
        )
        return -kept * np.fft.fft2(advection) - viscosity * squared * c

    c, h = kept * modes, final_time / num_steps
    for _ in range(num_steps):
        a = slope(c)
        b = slope(c + h / 2 * a)
        d = slope(c + h / 2 * b)
        c = c + h / 6 * (a + 2 * b + 2 * d + slope(c + h * d))
    return back(c)


@pytest.mark.parametrize("modes", [(1, 1), (1, 2), (3, 2)])
@pytest.mark.parametrize(("dtype", "atol"), [(jnp.float32, 2e-6), (jnp.float64, 1e-12)])
def test_taylor_green_vortices_decay(modes, dtype, atol):
    """Cells of one length scale do not interact: `exp(-viscosity |2 pi k|^2 time)`."""
    s = np.arange(16) / 16
    w = jnp.asarray(np.outer(np.sin(2 * np.pi * modes[0] * s), np.cos(2 * np.pi * modes[1] * s)), dtype)
    f = pde.NavierStokes2D(16, 5e-3, 0.5, 60, solver=diffrax.Dopri5(), dtype=dtype)
    decay = np.exp(-5e-3 * 4 * np.pi**2 * (modes[0] ** 2 + modes[1] ** 2) * 0.5)
    y = run(f, w)
    assert y.dtype == dtype
    np.testing.assert_allclose(y, decay * w, atol=atol)


@pytest.mark.parametrize("num_points", [16, 15])
def test_agrees_with_the_advective_form(num_points):
    w = smooth(num_points)
    y = run(pde.NavierStokes2D(num_points, 2e-3, 0.5, 60, solver=diffrax.Dopri5()), w)
    np.testing.assert_allclose(y, by_hand(w, 2e-3, 0.5, 200), atol=1e-7)
    # The flow matters: diffusion alone is far off.
    first, second, modes = spectrum(w)
    diffused = np.real(np.fft.ifft2(np.exp(-1e-3 * (first**2 + second**2)) * modes))
    assert np.max(np.abs(y - diffused)) > 0.3


def test_inviscid_flow_keeps_mean_energy_and_enstrophy():
    """Whatever is on the grid: noise, truncated to the modes that are kept. The drift is that of the time steps."""
    noise = jax.random.normal(jax.random.key(0), (16, 16))
    w = run(pde.NavierStokes2D(16, 0.0, 1e-9, 1), noise)  # truncates
    drifts = []
    for num_steps in (20, 40):
        y = run(pde.NavierStokes2D(16, 0.0, 0.5, num_steps), w)
        np.testing.assert_allclose(jnp.mean(y), jnp.mean(w), atol=1e-15)
        drifts.append([abs(energy(y) / energy(w) - 1), abs(enstrophy(y) / enstrophy(w) - 1)])
    assert np.max(drifts[1]) < 1e-4
    assert np.all(np.log2(np.array(drifts[0]) / np.array(drifts[1])) > 2.7)
    assert float(jnp.max(jnp.abs(y - w))) > 0.3


def test_viscous_flow_loses_energy_at_the_rate_of_its_enstrophy():
    """`dE/dt = -2 viscosity Z` for a vorticity without a mean, and the enstrophy falls."""
    w = smooth(16, 1)
    w = w - jnp.mean(w)
    times = [0.1, 0.2, 0.3, 0.4, 0.5]
    states = [w] + [run(pde.NavierStokes2D(16, 5e-3, t, 40), w) for t in times]
    energies, enstrophies = [energy(u) for u in states], [enstrophy(u) for u in states]
    assert np.all(np.diff(energies) < 0)
    assert np.all(np.diff(enstrophies) < 0)
    lost = 2 * 5e-3 * np.trapezoid(enstrophies, [0.0, *times])
    np.testing.assert_allclose(energies[0] - energies[-1], lost, rtol=5e-3)


def test_inviscid_flow_is_reversible():
    f = pde.NavierStokes2D(16, 0.0, 0.5, 60, solver=diffrax.Dopri5())
    w = smooth(16, 2)
    np.testing.assert_allclose(run(f, -run(f, w)), -w, atol=1e-7)


@pytest.mark.parametrize(("solver", "order"), [(diffrax.Bosh3(), 3), (diffrax.Dopri5(), 5)])
def test_order_in_time(solver, order):
    w = smooth(12)
    f = lambda num_steps: run(pde.NavierStokes2D(12, 1e-3, 0.5, num_steps, solver=solver), w)
    reference = f(400)
    errors = [float(jnp.max(jnp.abs(f(num_steps) - reference))) for num_steps in (16, 32)]
    np.testing.assert_allclose(np.log2(errors[0] / errors[1]), order, atol=0.5)


def test_error_in_space_decays_faster_than_any_power():
    reference = run(pde.NavierStokes2D(72, 5e-3, 0.25), smooth(72, 3))
    errors = []
    for num_points in (12, 24, 36):
        y = run(pde.NavierStokes2D(num_points, 5e-3, 0.25, 40), smooth(num_points, 3))
        errors.append(float(jnp.max(jnp.abs(y - reference[:: 72 // num_points, :: 72 // num_points]))))
    assert errors[1] < errors[0] / 30
    assert errors[2] < errors[1] / 30


def test_translation_and_transposition_pass_through():
    """Mirrored at the diagonal, a flow turns the other way round."""
    f, w = pde.NavierStokes2D(16), smooth(16, 4)
    np.testing.assert_allclose(run(f, jnp.roll(w, (3, -5), (0, 1))), jnp.roll(run(f, w), (3, -5), (0, 1)), atol=1e-13)
    np.testing.assert_allclose(run(f, -w.T), -run(f, w).T, atol=1e-13)


def test_modes_beyond_a_third_of_the_grid_are_not_seen():
    f, w = pde.NavierStokes2D(16), smooth(16, 5)
    s = np.arange(16) / 16
    high = jnp.asarray(np.outer(np.cos(2 * np.pi * 6 * s), np.ones(16)))
    np.testing.assert_allclose(run(f, w + high), run(f, w), atol=1e-13)


def test_derivatives():
    """Adjoint and Taylor tests, the state being complex between; the derivative with respect to the viscosity."""
    f, x = pde.NavierStokes2D(12, 2e-3, 0.5), smooth(12, 6)
    v, w = smooth(12, 7), smooth(12, 8)

    @jax.jit
    def products(f, x):
        y, forward = jax.jvp(f, (x,), (v,))
        at = lambda viscosity: jax.tree.unflatten(jax.tree.structure(f), [viscosity])(x)
        return y, forward, jax.vjp(f, x)[1](w)[0], jax.jvp(at, (f.viscosity,), (1.0,))[1]

    y, forward, backward, viscosity = products(f, x)
    np.testing.assert_allclose(jnp.vdot(w, forward), jnp.vdot(backward, v), rtol=1e-11)
    remainders = [float(jnp.linalg.norm(run(f, x + h * v) - y - h * forward)) for h in (1e-2, 5e-3, 2.5e-3)]
    np.testing.assert_allclose(np.log2(np.array(remainders[:-1]) / np.array(remainders[1:])), 2.0, atol=0.1)
    ends = [run(pde.NavierStokes2D(12, 2e-3 + h, 0.5, f.num_steps), x) for h in (-1e-7, 1e-7)]
    np.testing.assert_allclose(viscosity, (ends[1] - ends[0]) / 2e-7, rtol=1e-5, atol=1e-4)


def test_stability_limit_is_where_waves_start_to_grow():
    """Bosh3 is stable up to sqrt(3) on the imaginary axis; 10 modes along either axis of 32 points."""
    limit = np.sqrt(3) / (2 * np.pi * np.sqrt(2) * 10)
    needed = int(np.ceil(0.5 / limit))
    pde.NavierStokes2D(32, 0.0, 0.5, needed + 1)
    with pytest.raises(ValueError, match=r"largest stable step \(CFL\) is 0\.019\d\. Use num_steps >= "):
        pde.NavierStokes2D(32, 0.0, 0.5, needed - 1)
    # Diffusion alone: the limit 2.5127 of the negative real axis.
    slow = pde.NavierStokes2D(32, 1.0, 0.5, max_speed=1e-6).num_steps
    assert slow == pytest.approx(0.5 * 2 * (20 * np.pi) ** 2 / (0.9 * 2.5127), rel=0.01)
    assert pde.NavierStokes2D(32, max_speed=4.0).num_steps > 3 * pde.NavierStokes2D(32).num_steps
    implicit = diffrax.ImplicitEuler(root_finder=diffrax.VeryChord(rtol=1e-6, atol=1e-6))
    assert pde.NavierStokes2D(8, solver=implicit).num_steps == 100


def test_bad_arguments_are_refused():
    with pytest.raises(ValueError, match="num_points >= 4"):
        pde.NavierStokes2D(3)
    for arguments in ({"viscosity": -1e-3}, {"max_speed": 0.0}, {"final_time": 0.0}):
        with pytest.raises(ValueError, match=r"viscosity >= 0, max_speed > 0 and final_time > 0"):
            pde.NavierStokes2D(8, **arguments)
    with pytest.raises(ValueError, match="num_steps=0"):
        pde.NavierStokes2D(8, num_steps=0)
    with pytest.raises(ValueError, match="largest stable step"):  # Euler's method lets waves grow at any step
        pde.NavierStokes2D(32, 0.0, solver=diffrax.Euler(), num_steps=1000)
