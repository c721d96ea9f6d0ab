"""Degradations of images: Moore-Penrose against dense matrices, consistency in both precisions, sensor curves."""

import functools
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import pytest

from pinv_jax import maps

DTYPES = pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64], ids=["float32", "float64"])


def draw(structure, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=structure.shape), structure.dtype)


class Measured(NamedTuple):
    """All that one compilation measures."""

    matrix: jax.Array  # of the map, by its columns
    pinv_matrix: jax.Array
    x: jax.Array
    y: jax.Array
    hidden: jax.Array  # merge(0, z) for (f(x), z) = split(x)
    seen: jax.Array  # f(hidden)
    pinv: jax.Array  # pinv(f(x))


@jax.jit
def measure(f):
    def matrix_of(fn, structure):
        basis = jnp.eye(structure.size, dtype=structure.dtype).reshape(structure.size, *structure.shape)
        return jax.vmap(fn)(basis).reshape(structure.size, -1).T

    x = draw(f.in_structure())
    y, z = f.split(x)
    hidden = f.merge(jnp.zeros_like(y), z)
    matrices = matrix_of(f, f.in_structure()), matrix_of(f.pinv, f.out_structure())
    return Measured(*matrices, x, y, hidden, f(hidden), f.pinv(y))


@jax.jit
def back(f, y):
    x = f.pinv(y)
    return x, f(x)


def radial_blur(shape, dtype):
    """A Gaussian blur whose width grows with the distance from the middle: not separable."""
    c, h, w = shape
    i, j = np.meshgrid(np.arange(h), np.arange(w), indexing="ij")
    radius = np.hypot(i - (h - 1) / 2, j - (w - 1) / 2)
    width = 0.3 + 0.4 * (radius / radius.max()) ** 2
    apart = (i.reshape(-1, 1) - i.reshape(1, -1)) ** 2 + (j.reshape(-1, 1) - j.reshape(1, -1)) ** 2
    weights = np.exp(-0.5 * apart / width.reshape(-1, 1) ** 2)
    weights = jnp.asarray(weights / weights.sum(axis=1, keepdims=True), dtype)

    def blur(x):
        return (x.reshape(c, h * w) @ weights.T).reshape(shape)

    return maps.OperatorSurjection(lx.FunctionLinearOperator(blur, jax.ShapeDtypeStruct(shape, dtype)))


@functools.cache
def build(name, dtype):
    return {
        "downsample": lambda: maps.Downsample((2, 4, 6), 2, dtype),
        "downsample by three": lambda: maps.Downsample((1, 3, 6), 3, dtype),
        "separable": lambda: maps.Separable(
            (2, 4, 5), jnp.asarray(np.vander(np.linspace(-1, 1, 4))[:3], dtype), jnp.eye(5, dtype=dtype)[:2]
        ),
        "varying blur": lambda: maps.VaryingBlur((3, 6, 5), 0.3, 0.9, dtype=dtype),
        "varying blur, coarser": lambda: maps.VaryingBlur((3, 6, 4), 0.3, 1.0, factor=2, dtype=dtype),
        "radial blur": lambda: radial_blur((2, 5, 6), dtype),
        "fish-eye": lambda: maps.fisheye((3, 8, 7), (5, 4), 0.2, dtype=dtype),
    }[name]()


NAMES = pytest.mark.parametrize(
    "name",
    [
        "downsample",
        pytest.param("downsample by three", marks=pytest.mark.slow),
        "separable",
        "varying blur",
        pytest.param("varying blur, coarser", marks=pytest.mark.slow),
        pytest.param("radial blur", marks=pytest.mark.slow),
        "fish-eye",
    ],
)


@functools.cache
def measured(name):
    return measure(build(name, jnp.float64))


@NAMES
def test_pinv_is_moore_penrose(name):
    a, p = np.asarray(measured(name).matrix), np.asarray(measured(name).pinv_matrix)
    for left, right in [(a @ p @ a, a), (p @ a @ p, p), ((a @ p).T, a @ p), ((p @ a).T, p @ a)]:
        np.testing.assert_allclose(left, right, atol=1e-12)
    np.testing.assert_allclose(p, np.linalg.pinv(a), atol=1e-11)


@NAMES
@DTYPES
def test_pinv_meets_the_image(name, dtype):
    f = build(name, dtype)
    y = draw(f.out_structure())
    assert jnp.linalg.norm(back(f, y)[1] - y) <= (1e-12 if dtype == jnp.float64 else 1e-5) * jnp.linalg.norm(y)


@NAMES
def test_the_null_space_part_is_invisible(name):
    got = measured(name)
    np.testing.assert_allclose(got.seen, 0 * got.y, atol=1e-13)
    np.testing.assert_allclose(jnp.vdot(got.hidden, got.pinv), 0, atol=1e-11)
    np.testing.assert_allclose(got.hidden + got.pinv, got.x, atol=1e-12)


@pytest.mark.parametrize(
    ("name", "sensor"),
    [("downsample", maps.LeakyTanh), ("varying blur", maps.Gamma), ("fish-eye", maps.CubicSine)],
)
def test_a_sensor_curve_keeps_it_exact(name, sensor):
    linear = build(name, jnp.float64)
    f = maps.SurjectiveChain([linear, sensor(linear.out_structure().shape)])
    y = draw(f.out_structure())
    np.testing.assert_allclose(back(f, y)[1], y, rtol=1e-12, atol=1e-12)
    ignoring_the_curve = f.layers[1](y)  # f(linear.pinv(y))
    assert jnp.linalg.norm(ignoring_the_curve - y) > 0.1 * jnp.linalg.norm(y)


def test_downsample_takes_means_and_repeats_pixels():
    f = maps.Downsample((1, 4, 4), 2)
    x = jnp.arange(16.0).reshape(1, 4, 4)
    np.testing.assert_allclose(f(x), [[[2.5, 4.5], [10.5, 12.5]]])
    np.testing.assert_allclose(f.pinv(f(x))[0, :2, :2], jnp.full((2, 2), 2.5))


def test_varying_blur_is_wider_at_the_border():
    f = maps.VaryingBlur((1, 33, 33), 0.3, 1.0)
    apart = np.arange(33)[None] - np.arange(33)[:, None]
    widths = np.sqrt(np.sum(np.asarray(f.rows.matrix) * apart**2, axis=1))
    np.testing.assert_allclose(widths[16], 0.09, atol=0.01)  # a sampled Gaussian narrower than a pixel
    np.testing.assert_allclose(widths[4], 0.3 + 0.7 * 0.75**2, rtol=0.02)
    np.testing.assert_allclose(jnp.sum(f.rows.matrix, axis=1), jnp.ones(33), rtol=1e-13)
    flat = jnp.full((1, 33, 33), 2.0)
    np.testing.assert_allclose(f(flat), flat, rtol=1e-13)


@pytest.mark.parametrize(("border", "factor", "expected"), [(0.5, 1, 2), (0.8, 1, 31), (1.0, 1, 270), (1.0, 2, 3)])
def test_condition_number_as_documented(border, factor, expected):
    f = maps.VaryingBlur((1, 64, 64), 0.3, border, factor=factor)
    np.testing.assert_allclose(f.condition_number(), expected, rtol=0.2)
    one_axis = np.linalg.cond(np.asarray(f.rows.matrix))
    np.testing.assert_allclose(f.condition_number(), one_axis**2, rtol=1e-8)


def test_resample_interpolates():
    rows, columns = np.meshgrid([0.0, 1.5, 3.0, 4.75, 7.0], [0.25, 2.0, 3.5, 6.0], indexing="ij")
    f = maps.Resample((3, 8, 7), jnp.asarray(np.stack([rows, columns])))
    tilts = np.array([-1.0, 0.5, 2.0]).reshape(3, 1, 1)
    planes = tilts * np.arange(8).reshape(1, 8, 1) - np.arange(7).reshape(1, 1, 7)
    np.testing.assert_allclose(f.mv(jnp.asarray(planes)), tilts * rows[None] - columns[None])  # borders included


def test_fisheye_magnifies_the_middle_and_keeps_the_corners():
    rows, columns = np.asarray(build("fish-eye", jnp.float64).coordinates)
    np.testing.assert_allclose([rows[0, 0], rows[-1, -1]], [0, 7], atol=1e-12)
    np.testing.assert_allclose([columns[0, 0], columns[-1, -1]], [0, 6], atol=1e-12)
    np.testing.assert_allclose(rows[2], 3.5)
    assert rows[3, 1] - rows[2, 1] < rows[4, 1] - rows[3, 1]


def test_smallest_singular_value():
    f = build("fish-eye", jnp.float64)
    expected = np.linalg.svd(np.asarray(measured("fish-eye").matrix))[1][-1]
    np.testing.assert_allclose(eqx.filter_jit(lambda f: f.smallest_singular_value())(f), expected, rtol=0.05)


def test_a_lens_is_calibrated_through_its_pseudo_inverse():
    """Gradients reach the coordinates through pinv."""
    f = build("fish-eye", jnp.float64)
    y, w = draw(f.out_structure()), draw(f.in_structure(), 1)
    bump = 1e-6 * draw(jax.ShapeDtypeStruct(f.coordinates.shape, jnp.float64), 2)

    @jax.jit
    def loss(coordinates):
        return jnp.vdot(w, eqx.tree_at(lambda f: f.coordinates, f, coordinates).pinv(y))

    slope = (loss(f.coordinates + bump) - loss(f.coordinates - bump)) / 2
    np.testing.assert_allclose(jnp.vdot(jax.jit(jax.grad(loss))(f.coordinates), bump), slope, rtol=1e-6)


def test_batches_by_vmap():
    f = build("fish-eye", jnp.float64)
    ys = jnp.stack([draw(f.out_structure(), seed) for seed in range(3)]) * jnp.array([1.0, 1e-6, 1e6]).reshape(
        3, 1, 1, 1
    )
    together = jax.jit(jax.vmap(lambda y: f.pinv(y)))(ys)
    for got, y in zip(together, ys, strict=True):
        np.testing.assert_allclose(got, back(f, y)[0], atol=1e-12 * jnp.max(jnp.abs(y)))


def test_gamma_is_the_curve_of_srgb():
    f = maps.Gamma((5,))
    x = jnp.array([-0.5, 0.0, 0.002, 0.2, 1.0])
    np.testing.assert_allclose(f(x), [-0.735357, 0.0, 0.025846, 0.484529, 1.0], atol=1e-5)
    np.testing.assert_allclose(f.pinv(f(x)), x, rtol=1e-14)
    end = 0.055 / 1.4
    slopes = jax.vmap(jax.grad(lambda y: f.invert(y)))(jnp.array([end * (1 - 1e-9), end * (1 + 1e-9)]))
    np.testing.assert_allclose(slopes[0], slopes[1], rtol=1e-7)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: maps.Downsample((1, 5, 4), 2), "divides"),
        (lambda: maps.VaryingBlur((1, 5, 4), factor=2), "divides"),
        (lambda: maps.VaryingBlur((1, 4, 4), 0.0), "positive widths"),
        (lambda: maps.VaryingBlur((1, 64, 64), 3.0, 6.0), "narrower blur"),
        (lambda: maps.Separable((1, 4, 4), jnp.eye(3), jnp.eye(4)), r"\(h', 4\)"),
        (lambda: maps.Separable((1, 2, 2), jnp.ones((3, 2)), jnp.eye(2)), "the rows"),
        (lambda: maps.Resample((1, 4, 4), jnp.full((2, 1, 1), 3.5)), r"rows in \[0, 3\]"),
        (lambda: maps.Resample((1, 4, 4), jnp.full((2, 1, 1), jnp.nan)), r"rows in \[0, 3\]"),
        (lambda: maps.Resample((1, 1, 4), jnp.zeros((2, 1, 1))), "2 x 2"),
        (lambda: maps.Resample((3, 8, 7), jnp.full((2, 5, 4), 1.3)), "smallest singular value"),
        (lambda: maps.fisheye((3, 8, 7), (5, 4), 5.0), "smallest singular value"),
        (lambda: maps.fisheye((1, 6, 6), (3, 3), -0.1), "strength"),
        (lambda: maps.Gamma((2,), 1.0), "exponent > 1"),
    ],
)
def test_bad_inputs_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
