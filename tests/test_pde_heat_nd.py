"""Heat on the square and the cube: closed-form sine solutions, orders of convergence, the sensors written out."""

import functools

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import DTYPES

from pinv_jax import diagnostics, pde

HEAT = {2: pde.Heat2D, 3: pde.Heat3D}
SPECTRAL = {2: pde.SpectralHeat2D, 3: pde.SpectralHeat3D}
OBSERVED = {2: pde.observed_heat_2d, 3: pde.observed_heat_3d}
TIME = {2: 0.03, 3: 0.012}
BOTH = pytest.mark.parametrize("num_dimensions", [2, 3])


def sines(num_points, modes):
    """`sin(pi k_1 s_1) sin(pi k_2 s_2) ...` on the interior grid."""
    s = np.arange(1, num_points + 1) / (num_points + 1)
    return jnp.asarray(functools.reduce(np.multiply.outer, [np.sin(np.pi * k * s) for k in modes]))


def noise(num_points, num_dimensions, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=(num_points,) * num_dimensions))


def decay(modes):
    return np.exp(-0.1 * TIME[len(modes)] * np.pi**2 * sum(k * k for k in modes))


@pytest.mark.parametrize("modes", [(1, 1), (3, 2), (1, 1, 1), (2, 1, 4)])
def test_spectral_map_is_the_closed_form(modes):
    u = sines(8, modes)
    np.testing.assert_allclose(SPECTRAL[len(modes)](8)(u), decay(modes) * u, atol=1e-14)


@BOTH
def test_spectral_map_acts_along_every_axis_by_itself(num_dimensions):
    """Different vectors along the axes: a transposed or repeated axis would show."""
    vectors = [np.asarray(noise(7, 1, seed)) for seed in range(num_dimensions)]
    one = pde.SpectralHeat1D(7, 0.1, TIME[num_dimensions])
    expected = functools.reduce(np.multiply.outer, [np.asarray(one(jnp.asarray(v))) for v in vectors])
    x = jnp.asarray(functools.reduce(np.multiply.outer, vectors))
    np.testing.assert_allclose(SPECTRAL[num_dimensions](7)(x), expected, atol=1e-13)


@pytest.mark.slow
@pytest.mark.parametrize(("modes", "grids"), [((1, 2), (7, 15, 31)), ((1, 2, 1), (7, 15, 31))])
def test_second_order_in_space(modes, grids):
    errors = []
    for num_points in grids:
        u = sines(num_points, modes)
        errors.append(float(jnp.max(jnp.abs(HEAT[len(modes)](num_points)(u) - decay(modes) * u))))
    np.testing.assert_allclose(np.log2(np.array(errors[:-1]) / np.array(errors[1:])), 2.0, atol=0.15)


@BOTH
@pytest.mark.parametrize(("solver", "order"), [(diffrax.Euler(), 1), (diffrax.Heun(), 2)], ids=["euler", "heun"])
def test_order_in_time(num_dimensions, solver, order):
    """Against the exact solution of the system on the grid, so that the grid's own error stays out."""
    num_points, modes = 5, (1, 2, 3)[:num_dimensions]
    u, time = sines(num_points, modes), 0.05
    rate = sum(4 * 0.1 * (num_points + 1) ** 2 * np.sin(k * np.pi / (2 * (num_points + 1))) ** 2 for k in modes)
    errors = []
    for num_steps in (10, 20, 40):
        y = HEAT[num_dimensions](num_points, final_time=time, num_steps=num_steps, solver=solver)(u)
        errors.append(float(jnp.max(jnp.abs(y - np.exp(-rate * time) * u))))
    observed = np.log2(np.array(errors[:-1]) / np.array(errors[1:]))
    np.testing.assert_allclose(observed, order, atol=0.2)


@BOTH
def test_semigroup_and_linearity(num_dimensions):
    n, time = 6, TIME[num_dimensions]
    u, v = noise(n, num_dimensions), noise(n, num_dimensions, 1)
    for build, steps in ((SPECTRAL[num_dimensions], {}), (HEAT[num_dimensions], {"num_steps": 20})):
        half, whole = build(n, final_time=time / 2, **steps), build(n, final_time=time, **{k: 40 for k in steps})
        np.testing.assert_allclose(half(half(u)), whole(u), atol=1e-13)
        np.testing.assert_allclose(half(2 * u - 3 * v), 2 * half(u) - 3 * half(v), atol=1e-13)


@BOTH
def test_diffusivity_has_a_derivative(num_dimensions):
    """`d/d kappa` of `exp(-kappa a t) u`, with the grid's own `a`."""
    modes = (2, 1, 1)[:num_dimensions]
    f, u = HEAT[num_dimensions](6, solver=diffrax.Tsit5(), num_steps=100), sines(6, modes)
    exponent = f.final_time * sum(4 * 49 * np.sin(k * np.pi / 14) ** 2 for k in modes)
    derivative = jax.jvp(
        lambda kappa: jax.tree.unflatten(jax.tree.structure(f), [kappa])(u), (f.diffusivity,), (jnp.asarray(1.0),)
    )[1]
    np.testing.assert_allclose(derivative, -exponent * np.exp(-0.1 * exponent) * u, atol=1e-10)


@BOTH
def test_the_stability_limit_is_that_of_the_dimension(num_dimensions):
    """Noise is damped with the fewest steps that are allowed and blows up with a tenth fewer."""
    n = 10
    build, fastest = HEAT[num_dimensions], 4 * num_dimensions * 0.1 * 11**2
    x = noise(n, num_dimensions)
    time = 4000 / fastest
    assert float(jnp.max(jnp.abs(build(n, final_time=time, num_steps=2000)(x)))) < float(jnp.max(jnp.abs(x)))
    message = (
        rf"Heat{num_dimensions}D on 10 points .* Heun got steps of .* diffusive bound .* "
        rf"largest stable step is {2 / fastest:.3g}\. Use num_steps >= 2000,"
    )
    with pytest.raises(ValueError, match=message):
        build(n, final_time=time, num_steps=1999)
    rate = 0.1 * 11**2
    grown = pde.integrate(
        lambda t, u, args: rate * pde.second_difference(u), x, solver=diffrax.Heun(), final_time=time, num_steps=1800
    )
    assert not float(jnp.max(jnp.abs(grown))) < 1e6


def test_what_is_no_heat_equation_is_refused():
    with pytest.raises(ValueError, match="diffusivity > 0 and final_time > 0, got -0.1 and 0.03"):
        pde.Heat2D(8, -0.1)


@BOTH
def test_float32_agrees_with_float64(num_dimensions):
    x = noise(8, num_dimensions)
    for build in (HEAT, SPECTRAL, OBSERVED):
        y = build[num_dimensions](8, dtype=jnp.float32)(x.astype(jnp.float32))
        assert y.dtype == jnp.float32
        np.testing.assert_allclose(y, build[num_dimensions](8)(x), atol=3e-6)


@pytest.mark.parametrize(("modes", "num_points"), [((1, 2), 16), ((1, 1, 2), 8)])
def test_finite_differences_agree_with_the_propagator(modes, num_points):
    """Leading error of a mode: decay * exponent_k * (k pi h)^2 / 12, summed over the axes."""
    x = sines(num_points, modes)
    num_dimensions = len(modes)
    difference = HEAT[num_dimensions](num_points)(x) - SPECTRAL[num_dimensions](num_points)(x)
    exponents = [0.1 * TIME[num_dimensions] * (k * np.pi) ** 2 for k in modes]
    relative = sum(e * (k * np.pi / (num_points + 1)) ** 2 / 12 for e, k in zip(exponents, modes, strict=True))
    np.testing.assert_allclose(difference, decay(modes) * relative * x, atol=0.15 * decay(modes) * relative)


@BOTH
def test_observed_heat_is_written_out(num_dimensions):
    """Decay mode by mode, blur by its kernel, sensor: in numpy, from the formulas alone."""
    n = 6
    x = np.asarray(noise(n, num_dimensions))
    k = np.arange(1, n + 1)
    basis = np.sqrt(2 / (n + 1)) * np.sin(np.pi * np.outer(k, k) / (n + 1))
    u = x
    for axis in range(num_dimensions):
        factors = basis @ np.diag(np.exp(-0.1 * (np.pi * k) ** 2 * TIME[num_dimensions])) @ basis
        u = np.moveaxis(np.tensordot(factors, u, (1, axis)), 0, axis)
    padded, blurred = np.pad(u, 1), 8 * u
    for axis in range(num_dimensions):
        for shift in (-1, 1):
            blurred = blurred + np.roll(padded, shift, axis)[(slice(1, -1),) * num_dimensions]
    z = 0.975 * u + 0.025 * blurred / (8 + 2 * num_dimensions)
    expected = z + 0.02 * z**3 + 0.008 * np.sin(2 * z)
    np.testing.assert_allclose(OBSERVED[num_dimensions](n)(jnp.asarray(x)), expected, atol=1e-13)


@BOTH
@DTYPES
def test_observed_heat_passes_the_taylor_test(num_dimensions, dtype):
    f = OBSERVED[num_dimensions](5, dtype=dtype)
    x, v = (noise(5, num_dimensions, seed).astype(dtype) for seed in (0, 1))
    x = x + 2  # at zero the curve has no curvature
    step_sizes = jnp.geomspace(0.3, 0.03, 6, dtype=dtype)  # in float32 the small curvature drowns below
    order = jax.jit(lambda x, v: diagnostics.taylor_test(f, x, v, step_sizes=step_sizes))(x, v)
    np.testing.assert_allclose(order, 2.0, atol=0.1)


@pytest.mark.parametrize(
    ("num_points", "modes", "value"),
    [(16, (1, 1), 0.957), (16, (4, 4), 0.393), (8, (1, 1, 1), 0.980), (8, (8, 8, 8), 0.1024)],
)
def test_spectrum_of_the_jacobian_at_zero_is_graded_by_the_decay(num_points, modes, value):
    """There the sensor's slope is 1.016 everywhere, so that the sines are eigenvectors, in closed form."""
    f, v = OBSERVED[len(modes)](num_points), sines(num_points, modes)
    differences = sum(4 * np.sin(k * np.pi / (2 * (num_points + 1))) ** 2 for k in modes)
    factor = 1.016 * decay(modes) * (1 - 0.025 / (8 + 2 * len(modes)) * differences)
    np.testing.assert_allclose(jax.jvp(f, (jnp.zeros_like(v),), (v,))[1], factor * v, atol=1e-13)
    np.testing.assert_allclose(factor, value, rtol=2e-3)
