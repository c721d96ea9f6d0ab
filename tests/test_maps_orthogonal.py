"""Orthogonal mixers and reshapings: orthogonality, their formulas, preparation, patches, errors."""

import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg
from cases import key, orthogonal, randomised

from pinv_jax import maps

MIXERS = {
    "cayley": maps.Cayley,
    "matrix exponential": maps.MatrixExponential,
    "householder": functools.partial(maps.Householder, key=key(1)),
}
each_mixer = pytest.mark.parametrize("name", MIXERS)
each_dtype = pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64], ids=["float32", "float64"])
matrix_of = jax.jit(lambda mixer: mixer.matrix())


def distance_from_orthogonal(w):
    w = np.asarray(w, np.float64)
    return np.max(np.abs(w @ w.T - np.eye(len(w))))


@each_mixer
@each_dtype
@pytest.mark.parametrize("size", [48, 192, 768, pytest.param(3072, marks=pytest.mark.slow)])
def test_matrices_are_orthogonal_to_rounding(name, dtype, size):
    mixer = randomised(MIXERS[name]((size,), dtype=dtype), key(), 0.1)
    w = matrix_of(mixer)
    assert w.dtype == dtype
    assert np.linalg.norm(w - np.eye(size)) > 1
    allowed = 1e-13 if dtype == jnp.float64 else max(1e-5, 2e-6 * (size / 192) ** 0.5)
    assert distance_from_orthogonal(w) <= allowed


@each_mixer
@pytest.mark.parametrize(("shape", "patch"), [((6,), 1), ((2, 2, 3, 2), 1), ((2, 4, 6), 2)])
def test_the_same_matrix_acts_at_every_position(name, shape, patch):
    mixer = randomised(MIXERS[name](shape, patch=patch), key(2))
    x = jnp.asarray(np.random.default_rng(0).normal(size=shape))
    got, back, w = (np.asarray(a) for a in jax.jit(lambda m, x: (m(x), m.pinv(m(x)), m.matrix()))(mixer, x))
    steps = (1, *(patch,) * (len(shape) - 1))
    expected = np.zeros(shape)
    for corner in np.ndindex(*(size // step for size, step in zip(shape[1:], steps[1:], strict=True))):
        window = (slice(None), *(slice(i * s, (i + 1) * s) for i, s in zip(corner, steps[1:], strict=True)))
        expected[window] = (w @ np.asarray(x)[window].ravel()).reshape(expected[window].shape)
    np.testing.assert_allclose(got, expected, atol=1e-13)
    np.testing.assert_allclose(back, x, atol=1e-13)
    assert mixer.section(x) == ()


def test_cayley_is_the_solve_and_its_eps_costs_orthogonality():
    b = randomised(maps.Cayley((30,)), key()).skew
    a, identity = np.asarray(b - b.T), np.eye(30)
    for eps in (0.0, 1e-6):
        w = matrix_of(eqx.tree_at(lambda m: m.skew, maps.Cayley((30,), eps=eps), b))
        np.testing.assert_allclose(w, np.linalg.solve((1 + eps) * identity + a, identity - a), atol=1e-13)
    assert 1e-7 < distance_from_orthogonal(w) < 4e-6  # that of the published eps, in float64
    np.testing.assert_allclose(np.linalg.det(w), 1.0, rtol=1e-4)


def test_matrix_exponential_is_scipys():
    mixer = randomised(maps.MatrixExponential((30,)), key())
    b = np.asarray(mixer.skew)
    np.testing.assert_allclose(matrix_of(mixer), scipy.linalg.expm(b - b.T), atol=1e-12)


def test_householder_is_the_product_of_its_reflections():
    mixer = maps.Householder((30,), 3, key=key())
    expected = np.eye(30)
    for v in np.asarray(mixer.vectors):  # the first reflection acts first
        expected = (np.eye(30) - 2 * np.outer(v, v) / (v @ v)) @ expected
    np.testing.assert_allclose(matrix_of(mixer), expected, atol=1e-14)
    assert np.linalg.matrix_rank(expected - np.eye(30)) == 3
    parity = eqx.tree_at(lambda m: m.vectors, maps.Householder((30,), 3, eps=1e-2, key=key()), mixer.vectors)
    assert 1e-4 < distance_from_orthogonal(matrix_of(parity)) < 0.1


@pytest.mark.parametrize("mixer", [maps.Cayley, maps.MatrixExponential])
def test_without_a_key_mixers_start_at_the_identity_and_with_one_far_from_it(mixer):
    np.testing.assert_array_equal(matrix_of(mixer((64, 2))), np.eye(64))
    assert np.linalg.norm(matrix_of(mixer((64, 2), key=key())) - np.eye(64)) > 0.5 * 64**0.5


@each_mixer
def test_prepared_mixers_build_nothing_and_are_equal(name):
    mixer = randomised(MIXERS[name]((6, 2)), key())
    prepared = maps.prepare(mixer)
    assert mixer.prepared is None
    assert prepared.prepare() is prepared
    x = jnp.asarray(np.random.default_rng(0).normal(size=(6, 2)))
    np.testing.assert_allclose(*(jax.jit(lambda m, x: m(x))(m, x) for m in (prepared, mixer)), atol=1e-14)
    text = jax.jit(lambda f, x: f.pinv(f(x))).lower(prepared, x).as_text()
    assert "getrf" not in text
    assert "while" not in text
    assert "sqrt" not in text  # of the norms
    inside = jax.jit(jax.grad(lambda m: jnp.sum(maps.prepare(m)(x) ** 3)))(mixer)  # as `fit` prepares: in the loss
    outside = jax.jit(jax.grad(lambda m: jnp.sum(m(x) ** 3)))(mixer)
    assert max(float(jnp.max(jnp.abs(leaf))) for leaf in jax.tree.leaves(outside)) > 0.1
    for left, right in zip(jax.tree.leaves(inside), jax.tree.leaves(outside), strict=True):
        np.testing.assert_allclose(left, right, atol=1e-13)


@each_mixer
def test_half_precision_builds_in_single_and_runs_in_half(name):
    mixer = randomised(MIXERS[name]((16, 3), dtype=jnp.bfloat16), key())
    x = jnp.asarray(np.random.default_rng(0).normal(size=(16, 3)), jnp.bfloat16)
    y, prepared, back, w = jax.jit(lambda m, x: (m(x), maps.prepare(m)(x), m.pinv(m(x)), m.matrix()))(mixer, x)
    assert y.dtype == prepared.dtype == back.dtype == jnp.bfloat16
    assert distance_from_orthogonal(w) < 0.03
    np.testing.assert_allclose(*(a.astype(jnp.float32) for a in (back, x)), atol=0.1)


@pytest.mark.parametrize("patch", [1, 2])
def test_a_fixed_matrix_is_data(patch):
    w = orthogonal(2 * patch**2, jnp.float64)
    mixer = maps.FixedOrthogonal((2, 4, 6), w, patch=patch)
    np.testing.assert_array_equal(mixer.matrix(), w)
    gradient = jax.grad(lambda m: jnp.sum(m(jnp.ones((2, 4, 6))) ** 3))(mixer)
    np.testing.assert_array_equal(gradient.given, 0.0)


def test_a_matrix_that_is_not_orthogonal_is_refused_with_its_distance():
    w = orthogonal(6, jnp.float64).at[0, 0].add(1e-3)
    with pytest.raises(ValueError, match=r"W W\^T - I\| reaches 0.00\d+ .*svd"):
        maps.FixedOrthogonal((6,), w)
    u, _, vt = jnp.linalg.svd(w)
    maps.FixedOrthogonal((6,), u @ vt)
    with pytest.raises(ValueError, match="reaches nan"):
        maps.FixedOrthogonal((6,), w.at[0, 0].set(jnp.nan))
    with pytest.raises(ValueError, match=r"shape \(24, 24\).*patch=2, got \(6, 6\)"):
        maps.FixedOrthogonal((6, 2, 2), w, patch=2)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: maps.Cayley((3, 4, 6), patch=4), r"4 x 4 patches and shape \(3, 4, 6\).*\[1, 2\]"),
        (lambda: maps.MatrixExponential((3, 4), patch=2), r"expected an image.*\(3, 4\)"),
        (lambda: maps.Cayley(()), r"channels"),
        (lambda: maps.Householder((4,), 0, key=key()), "at least one reflection"),
        (lambda: maps.PixelUnshuffle((3, 4, 6), 3), r"3 x 3 patches.*\[1, 2\]"),
        (lambda: maps.PixelUnshuffle((3, 4), 2), "expected an image"),
        (lambda: maps.PixelUnshuffle((3, 4, 6), 0), "0 x 0 patches"),
    ],
)
def test_impossible_shapes_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_pixel_unshuffle_is_its_formula():
    f, r = maps.PixelUnshuffle((2, 4, 6), 2), 2
    x = jnp.arange(48.0).reshape(2, 4, 6)
    y = f(x)
    assert y.shape == (8, 2, 3)
    for c, dy, dx, i, j in np.ndindex(2, r, r, 2, 3):
        assert y[c * r * r + dy * r + dx, i, j] == x[c, i * r + dy, j * r + dx]
    np.testing.assert_array_equal(f.pinv(y), x)
    flat = maps.Flatten((2, 4, 6))
    np.testing.assert_array_equal(flat(x), np.arange(48.0))
    np.testing.assert_array_equal(flat.pinv(flat(x)), x)
