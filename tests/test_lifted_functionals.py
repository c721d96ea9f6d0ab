"""Regularisers: values, prox against brute force, the difference operator, and the prox of total variation."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.sparse.linalg
from skimage.restoration import denoise_tv_chambolle

from pinv_jax import lifted
from pinv_jax.lifted import L1, Box, HalfSquaredNorm, Proximal, TotalVariation

EXPLICIT = {
    "l1": L1(0.7),
    "half squared norm": HalfSquaredNorm(0.7),
    "box": Box(-0.4, 0.9),
    "l1 and box": L1(0.7) + Box(-0.4, 0.9),
    "box, square and l1": Box(-0.4, 0.9) + HalfSquaredNorm(0.5) + L1(0.7),
    "one of your own": Proximal(
        lambda v, step: jnp.maximum(v - step, 0), lambda u: jnp.sum(jnp.where(u < 0, jnp.inf, u))
    ),
}


def random(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape))


def disk(size, radius, centre):
    y, x = np.mgrid[:size, :size]
    return jnp.asarray(((y - centre) ** 2 + (x - centre) ** 2 <= radius**2).astype(float))


@pytest.mark.parametrize("name", EXPLICIT)
def test_prox_is_the_minimiser_and_agrees_with_brute_force(name):
    regulariser, step = EXPLICIT[name], 0.6
    v = jnp.linspace(-2.0, 2.0, 9)
    got = regulariser.prox(v, step)
    energy = jax.jit(lambda u, v: step * regulariser(u[None]) + 0.5 * (u - v) ** 2)
    for u, point in zip(got, v, strict=True):
        grid = np.linspace(-2, 2, 4001)
        values = jax.vmap(energy, in_axes=(0, None))(jnp.asarray(grid), point)
        np.testing.assert_allclose(u, grid[np.argmin(values)], atol=1.01e-3)
        assert energy(u, point) <= jnp.min(values) + 1e-12


@pytest.mark.parametrize("shape", [(9, 7), *(pytest.param(s, marks=pytest.mark.slow) for s in ((17,), (4, 3, 5)))])
def test_the_divergence_is_minus_the_transpose_of_the_gradient(shape):
    tv = TotalVariation()
    u, z = random(*shape), random(len(shape), *shape, seed=1)
    left, right = jnp.sum(tv.gradient(u) * z), -jnp.sum(u * tv.divergence(z))
    assert abs(left - right) <= 1e-10
    (pullback,) = jax.linear_transpose(tv.gradient, u)(z)
    np.testing.assert_allclose(tv.adjoint(z, u), pullback, atol=1e-13)
    assert jnp.all(jnp.take(tv.gradient(u)[0], -1, axis=0) == 0)


@pytest.mark.parametrize(("shape", "low"), [((64, 64), 7.95), ((200,), 3.99), ((12, 12, 12), 11.7)])
def test_the_norm_of_the_gradient_is_just_below_its_bound(shape, low):
    tv, num = TotalVariation(), int(np.prod(shape))
    normal = jax.jit(lambda u: jnp.ravel(tv.adjoint(tv.gradient(u.reshape(shape)), u.reshape(shape))))
    operator = scipy.sparse.linalg.LinearOperator((num, num), matvec=lambda u: np.asarray(normal(u)), dtype=float)
    largest = scipy.sparse.linalg.eigsh(operator, 1, which="LA", return_eigenvectors=False, tol=1e-6)[0]
    bound = tv.norm_bound(jnp.zeros(shape)) ** 2
    assert bound == pytest.approx(4 * len(shape))
    assert low < largest <= bound


def test_values_of_total_variation():
    np.testing.assert_allclose(TotalVariation()(disk(64, 16, 31.5)), 116.870, atol=5e-4)
    u = random(3, 8, 8)
    each = [float(TotalVariation()(channel)) for channel in u]
    np.testing.assert_allclose(TotalVariation(ndim=2)(u), sum(each), rtol=1e-12)
    np.testing.assert_allclose(TotalVariation()(u[0, 0]), np.sum(np.abs(np.diff(u[0, 0]))), rtol=1e-12)
    assert TotalVariation(ndim=2).gradient(u).shape == (2, 3, 8, 8)


@pytest.mark.slow
def test_the_derivative_of_total_variation_is_finite_everywhere():
    tv = TotalVariation()
    np.testing.assert_array_equal(jax.grad(tv)(jnp.ones((4, 4))), jnp.zeros((4, 4)))
    u, direction = random(5, 5), random(5, 5, seed=1)
    slope = (tv(u + 1e-6 * direction) - tv(u - 1e-6 * direction)) / 2e-6
    np.testing.assert_allclose(jnp.sum(jax.grad(tv)(u) * direction), slope, rtol=1e-6)


def test_the_dual_ball_is_that_of_the_norm():
    tv, z = TotalVariation(), 2 * random(2, 6, 6)
    inside = tv.dual_project(z)
    assert jnp.max(jnp.sum(inside**2, axis=0)) <= 1 + 1e-12
    np.testing.assert_allclose(tv.dual_project(inside), inside, atol=1e-15)
    # TV(u) = max <A u, z> over the ball, attained at the normalised gradient.
    u = random(6, 6, seed=2)
    best = tv.dual_project(1e9 * tv.gradient(u))
    np.testing.assert_allclose(jnp.sum(tv.gradient(u) * best), tv(u), rtol=1e-12)


# The prox of total variation -----------------------------------------------------------------------------------------


@functools.cache
def noisy(dtype=np.float64):
    image = np.zeros((32, 40))
    image[8:20, 10:30] = 1
    return jnp.asarray((image + 0.2 * np.random.default_rng(0).normal(size=image.shape)).astype(dtype))


denoise = jax.jit(lifted.total_variation_prox, static_argnames="max_steps")


def test_the_prox_of_total_variation_agrees_with_scikit_image():
    for weight in (0.05, 0.1):
        got = denoise(noisy(), weight, atol=1e-4)
        reference = denoise_tv_chambolle(np.asarray(noisy()), weight=weight, eps=1e-12, max_num_iter=20_000)
        assert float(got.error_bound) <= 1e-4
        difference = np.sqrt(np.mean((got.value - reference) ** 2))
        assert difference <= 1.3e-4

        def energy(u, w=weight):
            return w * TotalVariation()(u) + 0.5 * jnp.sum((u - noisy()) ** 2)

        assert energy(got.value) <= energy(jnp.asarray(reference)) * (1 + 1e-6)


@pytest.mark.slow
def test_the_error_bound_of_the_prox_is_true_and_it_is_exact_on_a_line():
    exact = denoise(noisy(), 0.2, atol=5e-5, max_steps=5000)
    for steps in (100,):
        rough = denoise(noisy(), 0.2, atol=1e-9, max_steps=steps)
        assert int(rough.num_steps) == steps
        assert np.sqrt(np.mean((rough.value - exact.value) ** 2)) <= float(rough.error_bound + exact.error_bound)
    step = jnp.where(jnp.arange(20) < 10, 0.0, 1.0)  # each half moves by weight / 10 towards the other
    got = lifted.total_variation_prox(step, 0.5, atol=1e-7)
    np.testing.assert_allclose(got.value, jnp.where(jnp.arange(20) < 10, 0.05, 0.95), atol=1e-6)


@pytest.mark.slow
def test_the_prox_of_total_variation_in_a_box_and_per_channel():
    box = TotalVariation() + Box(0.0, 0.6)
    got = lifted.total_variation_prox(noisy(), 0.2, box, atol=1e-4, max_steps=5000)
    assert float(got.error_bound) <= 1e-4
    assert jnp.min(got.value) >= 0
    assert jnp.max(got.value) <= 0.6

    def energy(u):
        return 0.2 * box(u) + 0.5 * jnp.sum((u - noisy()) ** 2)

    clipped = jnp.clip(denoise(noisy(), 0.2, atol=1e-4).value, 0, 0.6)
    assert energy(got.value) <= energy(clipped) + 1e-9
    both = jnp.stack([noisy(), noisy()[::-1]])
    channels = lifted.total_variation_prox(both, 0.2, TotalVariation(ndim=2), atol=1e-4)
    np.testing.assert_allclose(channels.value[0], denoise(noisy(), 0.2, atol=1e-4).value, atol=1e-3)


@pytest.mark.slow
def test_the_prox_of_total_variation_under_vmap_in_float32_and_with_nan():
    images = jnp.stack([noisy(np.float32), noisy(np.float32)[::-1], noisy(np.float32).at[3, 3].set(jnp.nan)])
    got = jax.vmap(lambda v: lifted.total_variation_prox(v, 0.2, atol=1e-3))(images)
    assert got.value.dtype == jnp.float32
    assert bool(jnp.all(jnp.isfinite(got.value[:2])))
    assert bool(jnp.any(jnp.isnan(got.value[2])))
    np.testing.assert_allclose(got.value[0], denoise(noisy(), 0.2, atol=1e-4).value, atol=5e-3)


# Bad input -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: L1(0.0), "positive"),
        (lambda: HalfSquaredNorm(-1.0), "positive"),
        (lambda: Box(1.0, 0.0), "swapped"),
        (lambda: TotalVariation(ndim=0), "spatial axes"),
        (lambda: Proximal(None, lambda u: 0.0), "Without a prox"),
        (lambda: L1() + L1(), "no joint prox"),
        (lambda: Proximal(lambda v, s: v, lambda u: 0.0) + L1(), "not known"),
        (lambda: L1() + jnp.abs, "Proximal"),
        (lambda: TotalVariation().prox(jnp.zeros((3, 3)), 1.0), "total_variation_prox"),
        (lambda: (TotalVariation() + Box()).prox(jnp.zeros((3, 3)), 1.0), "total_variation_prox"),
        (lambda: lifted.total_variation_prox(jnp.zeros(3), -1.0), "positive"),
        (lambda: lifted.total_variation_prox(jnp.zeros(3), 1.0, L1()), "explicit"),
        (lambda: lifted.total_variation_prox(jnp.zeros(3), 1.0, TotalVariation(ndim=2)), "axes"),
    ],
)
def test_bad_input_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
