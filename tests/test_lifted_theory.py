"""The error bound on small problems that are solved to rounding, its constants, and the convexity certificate."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pinv_jax import lifted

OUTPUTS, INPUTS = 10, 16
RELU, TANH = lifted.ReLU(), lifted.Tanh()
HALF_SQUARE = lambda u: 0.5 * jnp.sum(u**2)
ONE_NORM = lambda u: jnp.sum(jnp.abs(u))


@functools.partial(jax.jit, static_argnums=(0, 4))
def minimiser(activation, w, b, data, prox, alpha):
    """`argmin_u B(data, W u + b) + alpha J(u)` by accelerated proximal gradients with restarts; and its last step."""
    step = 1 / (activation.curvature * jnp.linalg.norm(w, ord=2) ** 2)

    def body(carry):
        u, old, momentum, _, count = carry
        ahead = u + momentum / (momentum + 3) * (u - old)
        new = prox(ahead - step * w.T @ (activation(w @ ahead + b) - data), step * alpha)
        restart = jnp.sum((ahead - new) * (new - u)) > 0
        return new, u, jnp.where(restart, 0.0, momentum + 1), jnp.max(jnp.abs(new - ahead)), count + 1

    start = jnp.zeros(w.shape[1])
    first = (start, start, jnp.zeros(()), jnp.asarray(1.0), 0)
    u, *_, last, count = jax.lax.while_loop(lambda c: (c[3] > 1e-15) & (c[4] < 40_000), body, first)
    return u, last, count


def shrink(v, step):
    return v / (1 + step)


def soft(v, step):
    return jnp.sign(v) * jnp.maximum(jnp.abs(v) - step, 0)


def instance(case):
    """`activation, W, b, J, prox of J, u*, v` with `W^T v` in the subdifferential of `J` at `u*`."""
    rng = np.random.default_rng(5)
    w = rng.normal(size=(OUTPUTS, INPUTS)) / np.sqrt(INPUTS)
    b = rng.normal(size=OUTPUTS) * 0.3
    if case == "l1":
        support = np.argsort(np.linalg.norm(w, axis=0))[-2:]
        sign = np.asarray([1.0, -1.0])
        sub = w[:, support]
        v = sub @ np.linalg.solve(sub.T @ sub, sign)
        u = np.zeros(INPUTS)
        u[support] = 1.5 * sign
        b = np.abs(b) + np.maximum(0.5 - w @ u, 0)  # all outputs active, so that the bound is finite
        assert np.max(np.abs(np.delete(w.T @ v, support))) < 1
        return RELU, w, b, ONE_NORM, soft, u, v
    v = 0.4 * rng.normal(size=OUTPUTS)
    activation = RELU if case == "relu" else TANH
    if case == "relu":
        b += 0.5
        for _ in range(10):  # a source element lives on active outputs
            v = np.where(w @ (w.T @ v) + b > 0.3, v, 0)
        assert 3 <= np.sum(v != 0) < OUTPUTS
    return activation, w, b, HALF_SQUARE, shrink, w.T @ v, v


@functools.cache
def sweep(case):
    """Distance, bound, delta and alpha for noise that is halved again and again."""
    activation, w, b, regulariser, prox, truth, v = instance(case)
    w, b, truth, v = (jnp.asarray(a) for a in (w, b, truth, v))
    z = w @ truth + b
    noise = jnp.asarray(np.random.default_rng(6).normal(size=OUTPUTS))
    rows = []
    for k in (0, 2, 4, 6, 8, 10, 12):
        # Noise on active outputs alone: elsewhere it costs |z| per unit, and may be negative.
        data = activation(z) + 0.05 * 2.0**-k * jnp.where(activation(z) == 0, 0, noise)
        data = activation.interior(data)
        delta = lifted.bregman_noise_level(activation, data, z)
        alpha = lifted.alpha_from_noise(activation, data, v, delta)
        u, last, _ = minimiser(activation, w, b, data, prox, alpha)
        assert last <= 1e-13
        distance = lifted.bregman_distance(regulariser, u, truth, w.T @ v)
        bound = lifted.error_bound(activation, data, v, alpha, delta)
        rows.append([float(e) for e in (distance, bound, delta, alpha, lifted.burbea_rao(activation, data, alpha * v))])
    return np.asarray(rows), activation, v, u


@pytest.mark.parametrize("case", ["relu", "tanh", "l1"])
def test_the_theorem(case):
    rows, activation, v, u = sweep(case)
    distance, bound, delta, _, bracket = rows.T
    assert np.all(distance >= -1e-12)
    assert np.all(distance <= bound)
    assert np.isfinite(bound[-4:]).all()
    if activation is RELU:
        finite = np.isfinite(bound)
        size = np.linalg.norm(v)
        assert np.all(bracket[finite] <= 1e-12)
        np.testing.assert_allclose(bound[finite], 2 * np.sqrt(2) * size * delta[finite], rtol=1e-9)
    else:
        assert np.ptp((bound / delta)[-3:]) <= 0.02 * (bound / delta)[-1]  # first order in delta
        assert np.all(bracket > 0)
    assert distance[-1] <= 1e-2 * distance[0]
    if case == "l1":  # whose distance is zero once the support is found
        np.testing.assert_array_equal(np.abs(u) > 1e-9, np.abs(instance(case)[5]) > 0)
    else:
        assert distance[0] >= 1e-3 * bound[2]  # it is no rounding error


def test_the_best_alpha_is_the_best():
    data, v, delta = jnp.asarray([2.0, 3.0]), jnp.asarray([0.3, -0.4]), 0.01
    alpha = lifted.alpha_from_noise(RELU, data, v, delta)
    np.testing.assert_allclose(alpha, np.sqrt(2) * delta / 0.5, rtol=1e-14)
    best = lifted.error_bound(RELU, data, v, alpha, delta)
    np.testing.assert_allclose(best, 2 * np.sqrt(2) * 0.5 * delta, rtol=1e-13)
    assert best < min(lifted.error_bound(RELU, data, v, alpha * factor, delta) for factor in (0.9, 1.1))


def test_alpha_of_smooth_activations():
    f, v, delta = jnp.asarray([0.5, -0.2]), jnp.asarray([0.3, -0.4]), 1e-3
    nu = np.sqrt(np.sum(np.asarray(v) ** 2 / (1 - np.asarray(f) ** 2)))
    alpha = lifted.alpha_from_noise(TANH, f, v, delta)
    np.testing.assert_allclose(alpha, np.sqrt(2) * delta / nu, rtol=1e-14)
    np.testing.assert_allclose(lifted.error_bound(TANH, f, v, alpha, delta), 2 * np.sqrt(2) * nu * delta, rtol=1e-4)
    np.testing.assert_allclose(lifted.alpha_from_noise(lifted.LeakyReLU(0.25), f, v, delta),
                               np.sqrt(2) * delta / np.sqrt(0.09 + 4 * 0.16), rtol=1e-14)  # fmt: skip
    assert lifted.alpha_from_noise(TANH, jnp.asarray([1.0, 0.0]), jnp.asarray([0.0, 0.5]), delta) > 0
    assert lifted.alpha_from_noise(TANH, jnp.asarray([1.0, 0.0]), v, delta) == 0


def test_the_burbea_rao_term():
    f, s = jnp.asarray([2.0, 0.0]), jnp.asarray([1.0, 0.0])
    assert lifted.burbea_rao(RELU, f, s) == 0
    assert lifted.burbea_rao(RELU, f, jnp.asarray([3.0, 0.0])) == jnp.inf
    assert lifted.burbea_rao(RELU, f, jnp.asarray([0.0, 1e-6])) == jnp.inf  # a source on an inactive output
    assert lifted.error_bound(RELU, f, jnp.asarray([0.0, 1e-6]), 0.1, 0.1) == jnp.inf
    assert lifted.burbea_rao(RELU, -f, s) == jnp.inf
    np.testing.assert_allclose(lifted.burbea_rao(lifted.SoftThreshold(0.5), f * 0, s), 2 * 0.5, rtol=1e-14)
    f, s = jnp.asarray([0.3, 1.0]), jnp.asarray([0.2, 0.0])  # one output at the end of the domain
    psi = lambda u: TANH.potential(u) - 0.5 * jnp.sum(u**2)
    np.testing.assert_allclose(lifted.burbea_rao(TANH, f, s), psi(f + s) + psi(f - s) - 2 * psi(f), rtol=1e-9)
    assert lifted.burbea_rao(TANH, f, s[::-1]) == jnp.inf
    large = jnp.asarray([2000.0], jnp.float32)
    assert lifted.burbea_rao(lifted.LeakyReLU(0.1), large, large * 1e-3) <= 1e-3  # nothing cancels


def test_under_jit_and_vmap_in_single_precision():
    f, v = jnp.asarray([2.0, 3.0], jnp.float32), jnp.asarray([0.3, -0.4], jnp.float32)
    bound = jax.jit(jax.vmap(lambda a: lifted.error_bound(RELU, f, v, a, 0.01)))(jnp.asarray([0.1, 0.2], jnp.float32))
    assert bound.dtype == jnp.float32
    np.testing.assert_allclose(bound, [0.002 + 0.025, 0.001 + 0.05], rtol=1e-5)
    assert lifted.alpha_from_noise(RELU, f, v, 0.01).dtype == jnp.float32
    slope = jax.grad(lambda a: lifted.error_bound(TANH, v, v, a, 0.01))(0.1)
    np.testing.assert_allclose(slope, -2e-4 / 0.01 + 0.25 + 0.0382, rtol=0.1)


def test_source_element_of_a_minimiser():
    activation, w, b, regulariser, prox, *_ = instance("relu")
    data, alpha = jnp.asarray(np.abs(b) + 0.5), 0.05
    u, last, _ = minimiser(activation, jnp.asarray(w), jnp.asarray(b), data, prox, alpha)
    assert last <= 1e-13
    v = lifted.source_element(activation(w @ u + b) - data, alpha)
    np.testing.assert_allclose(w.T @ v, u, atol=1e-11)  # the gradient of |u|^2/2
    assert lifted.bregman_distance(regulariser, u + 0.1, u, w.T @ v) > 0
    for call in (lambda: lifted.source_element(data, 0.0), lambda: lifted.error_bound(RELU, data, v, -1.0, 0.1)):
        with pytest.raises(ValueError, match="expected alpha > 0"):
            call()


# Convexity ------------------------------------------------------------------------------------------------------------


def test_the_certificate_of_a_residual_network():
    q = lifted.certificate_matrix(20, 1.0)
    expected = np.diag([2.0] * 20 + [1.0]) - np.diag(np.ones(20), 1) - np.diag(np.ones(20), -1)
    np.testing.assert_array_equal(q, expected)
    lowest = lifted.smallest_eigenvalue(q)
    np.testing.assert_allclose(lowest, 5.3354e-3, atol=1e-7)
    np.testing.assert_allclose(lowest, 2 - 2 * np.cos(np.pi / 43), rtol=1e-10)
    np.testing.assert_allclose(lifted.smallest_rho(20, 1.0), 187.43, atol=0.01)
    np.testing.assert_allclose(lifted.smallest_rho(20, 10.0), 45.24, atol=0.01)
    np.testing.assert_allclose(lifted.smallest_rho(20, 1e9), 44.77, atol=0.01)
    assert abs(lifted.smallest_eigenvalue(lifted.certificate_matrix(20, 20 / 21))) <= 1e-12
    assert lifted.smallest_eigenvalue(lifted.certificate_matrix(20, 0.9)) < -1e-4
    assert lifted.smallest_rho(20, 0.9) is None
    assert lifted.smallest_rho(20, 20 / 21) is None
    at_least = lifted.certificate_matrix(20, 1.0, lifted.smallest_rho(20, 1.0))
    assert abs(lifted.smallest_eigenvalue(at_least)) <= 1e-12


def test_the_certificate_of_given_operators():
    operators = lifted.residual_operators(20)
    w = np.random.default_rng(0).normal(size=(5, 21))
    plus = lifted.convexity_certificate(*operators, 1.0, 187.5, weights=w, returns=w.T)
    assert plus.holds
    assert plus == lifted.convexity_certificate(*operators, 1.0, 187.5)
    assert not lifted.convexity_certificate(*operators, 1.0, 187.0).holds
    minus = lifted.convexity_certificate(*operators, 1.0, weights=w, returns=-w.T)
    assert not minus.holds
    assert minus.smallest_rho is None
    np.testing.assert_allclose(minus.smallest_eigenvalue, -3.978, atol=1e-3)
    assert "no certificate" in minus.reason
    general = lifted.convexity_certificate(*operators, 1.0, weights=w, returns=2 * w.T)
    assert not general.holds
    assert np.isnan(general.smallest_eigenvalue)
    assert "no certificate" in general.reason
    wide = [np.kron(a, np.eye(3)) for a in operators]
    np.testing.assert_allclose(lifted.convexity_certificate(*wide, 1.0).smallest_eigenvalue, 5.3354e-3, atol=1e-7)


@pytest.mark.slow
def test_with_the_certificate_the_energy_is_convex():
    rng = np.random.default_rng(1)
    (output, shift), rho = lifted.residual_operators(3), 1.05 * lifted.smallest_rho(3, 2.0)
    w, b, f = rng.normal(size=(4, 4)), rng.normal(size=4), 0.7

    def energy(u, z):
        constraint = shift @ u - w.T @ z
        fit = jnp.sum((output @ u - f) ** 2)  # lambda = 2
        return fit + TANH.gap(z, w @ u + b) + 0.5 * rho * jnp.sum(constraint**2)

    a, c = ((rng.normal(size=(300, 4)), rng.uniform(-1, 1, size=(300, 4))) for _ in range(2))
    middle = tuple((p + q) / 2 for p, q in zip(a, c, strict=True))
    e_a, e_c, e_middle = (jax.vmap(energy)(*(jnp.asarray(p) for p in pair)) for pair in (a, c, middle))
    assert jnp.all(e_a + e_c - 2 * e_middle >= -1e-10)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: lifted.certificate_matrix(0, 1.0), "at least one residual block"),
        (lambda: lifted.certificate_matrix(3, -1.0), "at least zero"),
        (lambda: lifted.certificate_matrix(3, 1.0, 0.0), "expected rho > 0"),
        (lambda: lifted.general_certificate_matrix(np.eye(3), np.eye(2), 1.0), r"expected \(m, n\) and \(n, n\)"),
        (lambda: lifted.convexity_certificate(np.eye(2), np.eye(2), 1.0, weights=np.eye(2)), "pass both or none"),
        (
            lambda: lifted.convexity_certificate(np.eye(2), np.eye(2), 1.0, weights=np.eye(2), returns=np.eye(3)),
            "expected V of shape",
        ),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()
