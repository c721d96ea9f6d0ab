"""Elementwise maps: inverses to rounding over many magnitudes, derivatives, refusals."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pinv_jax import maps

CURVES = {
    "published sensor": lambda shape, dtype: maps.CubicSine(shape, dtype=dtype),
    "ripple alone, nearly flat places": lambda shape, dtype: maps.CubicSine(shape, 0.0, 0.333, 3.0, dtype),
    "fast ripple": lambda shape, dtype: maps.CubicSine(shape, 0.5, 0.0099, 100.0, dtype),
    "steep cube": lambda shape, dtype: maps.CubicSine(shape, 50.0, 0.1, 2.0, dtype),
    "leaky tanh": lambda shape, dtype: maps.LeakyTanh(shape, 0.1, dtype),
    "leaky tanh, very flat": lambda shape, dtype: maps.LeakyTanh(shape, 1e-3, dtype),
}


def value_and_slope(f, y):
    x = f.pinv(y)
    return x, *jax.jvp(f, (x,), (jnp.ones_like(x),))


@pytest.mark.parametrize("name", list(CURVES))
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64], ids=["float32", "float64"])
def test_inverse_is_exact_to_rounding(name, dtype):
    magnitudes = np.geomspace(1e-6, 1e4, 400)
    y = jnp.asarray(np.concatenate([-magnitudes, [0.0], magnitudes]), dtype)
    f = CURVES[name](y.shape, dtype)
    x, again, slope = jax.jit(value_and_slope)(f, y)
    # What rounding x itself costs in y, plus what rounding inside the curve costs.
    allowed = jnp.finfo(dtype).eps * (4 * slope * jnp.abs(x) + 4 * jnp.abs(y) + 2 * jnp.abs(x))
    assert bool(jnp.all(jnp.abs(again - y) <= allowed + jnp.finfo(dtype).tiny))


@pytest.mark.parametrize("name", list(CURVES))
def test_curves_increase(name):
    x = jnp.linspace(-5, 5, 2001)
    assert bool(jnp.all(jnp.diff(CURVES[name](x.shape, x.dtype)(x)) > 0))


@pytest.mark.parametrize("name", list(CURVES))
def test_inverse_has_implicit_derivatives_of_both_orders(name):
    f = CURVES[name]((), jnp.float64)
    y = jnp.asarray(0.7)
    x = f.pinv(y)
    first, second = jax.grad(f)(x), jax.grad(jax.grad(f))(x)
    np.testing.assert_allclose(jax.jit(jax.grad(f.pinv))(y), 1 / first, rtol=1e-10)
    np.testing.assert_allclose(jax.jit(jax.grad(jax.grad(f.pinv)))(y), -second / first**3, rtol=1e-8, atol=1e-8)


def test_a_lane_that_is_not_finite_stays_alone():
    f = maps.CubicSine((3,))
    x = f.pinv(jnp.array([0.5, jnp.nan, -2.0]))
    assert bool(jnp.isnan(x[1]))
    np.testing.assert_allclose(f(x)[jnp.array([0, 2])], [0.5, -2.0], rtol=1e-14)


def test_mirror_undoes_the_leaky_relu():
    x = jnp.array([-3.0, -0.1, 0.0, 0.2, 5.0])
    leaky, mirror = maps.LeakyReLU((5,), 0.1), maps.MirrorLeakyReLU((5,), 0.1)
    np.testing.assert_array_equal(leaky(x), [-3.0 * 0.1, -0.1 * 0.1, 0.0, 0.2, 5.0])
    np.testing.assert_allclose(mirror(leaky(x)), x, rtol=1e-15)
    np.testing.assert_allclose(mirror(x), leaky.pinv(x), rtol=0)


def test_known_values():
    np.testing.assert_allclose(
        maps.CubicSine((2,))(jnp.array([0.5, -1.0])),
        [0.5 + 0.18 * 0.125 + 0.08 * np.sin(1.5), -1.0 - 0.18 - 0.08 * np.sin(3.0)],
        rtol=1e-15,
    )
    np.testing.assert_allclose(maps.LeakyTanh((1,), 0.2)(jnp.array([0.3])), [0.06 + 0.8 * np.tanh(0.3)], rtol=1e-15)
    np.testing.assert_allclose(maps.Affine(jnp.array([2.0]), jnp.array([1.0]))(jnp.array([3.0])), [7.0])


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: maps.CubicSine((2,), cubic=-0.1), "increasing"),
        (lambda: maps.CubicSine((2,), sine=0.5, frequency=2.0), "smaller ripple"),
        (lambda: maps.LeakyReLU((2,), 0.0), "positive slope"),
        (lambda: maps.MirrorLeakyReLU((2,), -1.0), "positive slope"),
        (lambda: maps.LeakyTanh((2,), 0.0), r"\(0, 1\]"),
    ],
)
def test_refuses_what_has_no_inverse(build, message):
    with pytest.raises(ValueError, match=message):
        build()
