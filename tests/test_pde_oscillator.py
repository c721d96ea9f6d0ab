"""The damped oscillator against its closed forms; what the motion determines of the parameters."""

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import DTYPES

from pinv_jax import pde

REGIMES = {
    "undamped": (0.5, 0.0, 5.0, -2.0, 2.0),  # the fastest motion of the published prior
    "under-damped": (1.2, 0.7, 3.0, 1.5, -0.5),
    "critically damped": (1.0, 4.0, 4.0, 1.0, 0.5),
    "over-damped": (0.8, 4.0, 1.5, -1.0, 2.0),
}


def closed_form(theta, times):
    """`x0 C(t) + v0 S(t)` by the two roots of `m r^2 + c r + k`, complex or not, or by the double one."""
    m, c, k, position, velocity = theta
    root = np.sqrt(complex(c * c - 4 * m * k)) / (2 * m)
    middle = -c / (2 * m)
    if root == 0:
        return (position + (velocity - middle * position) * times) * np.exp(middle * times)
    first = (velocity - (middle - root) * position) / (2 * root)
    return np.real(first * np.exp((middle + root) * times) + (position - first) * np.exp((middle - root) * times))


@pytest.fixture(scope="module")
def observe():
    f = pde.DampedOscillator()
    return jax.jit(lambda theta: f(theta))


@pytest.mark.parametrize("name", list(REGIMES))
def test_motion_is_the_closed_form(observe, name):
    theta = REGIMES[name]
    expected = closed_form(theta, np.linspace(0, 5, 64))
    y = observe(jnp.asarray(theta))
    np.testing.assert_allclose(y, expected, atol=2e-6)
    assert y[0] == theta[3]


@pytest.mark.parametrize(("solver", "order"), [(diffrax.Heun(), 2), (diffrax.Tsit5(), 5)], ids=["heun", "tsit5"])
def test_order_of_convergence(solver, order):
    theta, errors = REGIMES["under-damped"], []
    for num_steps in (2, 4, 8):
        y = pde.DampedOscillator(6, num_steps=num_steps, solver=solver)(jnp.asarray(theta))
        errors.append(np.max(np.abs(y - closed_form(theta, np.linspace(0, 5, 6)))))
    observed = np.log2(np.array(errors[:-1]) / np.array(errors[1:]))
    assert np.all(observed > order - 0.5), observed
    assert observed[-1] < order + 1.1, observed


@DTYPES
def test_dtype_and_accuracy(dtype):
    theta = jnp.asarray(REGIMES["under-damped"], dtype)
    y = pde.DampedOscillator(num_steps=2, dtype=dtype)(theta)
    assert (y.dtype, y.shape) == (dtype, (64,))
    expected = closed_form(np.asarray(theta, np.float64), np.linspace(0, 5, 64))
    np.testing.assert_allclose(y, expected, atol=3e-6 if dtype == jnp.float32 else 2e-9)


def test_jacobian_is_that_of_the_closed_form_and_has_rank_four(observe):
    theta = jnp.asarray(REGIMES["under-damped"])
    jac = np.asarray(jax.jit(jax.jacfwd(observe))(theta))
    times, step = np.linspace(0, 5, 64), 1e-6
    for index in range(5):
        shift = step * np.eye(5)[index]
        known = (closed_form(np.asarray(theta) + shift, times) - closed_form(np.asarray(theta) - shift, times)) / (
            2 * step
        )
        np.testing.assert_allclose(jac[:, index], known, atol=5e-6)
    np.testing.assert_allclose(jac @ np.append(np.asarray(theta)[:3], [0, 0]), 0.0, atol=1e-12)
    values = np.linalg.svd(jac, compute_uv=False)
    assert values[3] > 0.1
    assert values[4] < 1e-12


def test_identifiable_determines_the_motion(observe):
    theta = jnp.asarray(REGIMES["under-damped"])
    np.testing.assert_allclose(pde.identifiable(theta), [0.7 / 1.2, 2.5, 1.5, -0.5], rtol=1e-14)
    twice = theta * jnp.asarray([2.0, 2.0, 2.0, 1.0, 1.0])
    np.testing.assert_allclose(pde.identifiable(twice), pde.identifiable(theta), rtol=1e-14)
    np.testing.assert_allclose(observe(twice), observe(theta), atol=1e-13)


def test_masses_that_are_not_positive_come_out_as_documented(observe):
    """Inside a batch, whose other members they leave alone."""
    good = jnp.asarray(REGIMES["under-damped"])
    negative = (-1.0, 0.5, 2.0, 1.0, 0.0)
    batch = jnp.stack([good, jnp.asarray(negative), good.at[0].set(0.0)])
    y = jax.jit(jax.vmap(observe))(batch)
    np.testing.assert_allclose(y[0], observe(good), atol=1e-13)
    exact = closed_form((1.0, -0.5, -2.0, 1.0, 0.0), np.linspace(0, 5, 64))
    np.testing.assert_allclose(y[1], exact, rtol=1e-6)
    assert float(y[1, -1]) > 1e3
    assert not np.any(np.isfinite(y[2, 1:]))


def test_bad_sizes_are_refused():
    with pytest.raises(ValueError, match="num_times >= 2 and final_time > 0, got num_times=1"):
        pde.DampedOscillator(1)
    with pytest.raises(ValueError, match="at least one step"):
        pde.DampedOscillator(4, num_steps=0)(jnp.ones(5))
