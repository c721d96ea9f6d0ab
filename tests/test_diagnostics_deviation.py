import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pinv_jax import diagnostics as dg

D, M = 5, 8
deviation = eqx.filter_jit(dg.gauss_newton_deviation)


def pair(seed):
    k1, k2 = jax.random.split(jax.random.key(seed))
    f = eqx.nn.MLP(D, M, 8, 1, jnp.tanh, dtype=jnp.float64, key=k1)
    g = eqx.nn.MLP(M, D, 8, 1, jnp.tanh, dtype=jnp.float64, key=k2)
    return f, g


def near_inverse(f, x, seed, size=0.01):
    """A smooth, slightly nonlinear inverse whose Jacobian at `f(x)` is near the pseudo-inverse."""
    y = f(x)
    inverse = jnp.linalg.pinv(jax.jacfwd(f)(x)) + size * jax.random.normal(jax.random.key(seed), (D, M))
    return lambda data: x + inverse @ (data - y) + size * jnp.sin(3 * data[:D])


@pytest.mark.slow
@pytest.mark.parametrize(("proposal", "damping"), [("paper", 0.0), ("paper", 1e-2), ("defect", 1e-2), ("jvp", 0.0)])
def test_bound_holds_at_random_points(proposal, damping):
    @eqx.filter_jit
    def measure(pair, xs, data, step_sizes):
        f, g = pair

        def at(x, data, step_size, inverse):
            return dg.gauss_newton_deviation(
                f, inverse(x), x, data, step_size=step_size, damping=damping, proposal=proposal
            )

        inverses = (lambda x: g), (lambda x: near_inverse(f, x, 0))
        return [
            jax.vmap(lambda *args, inverse=inverse: at(*args, inverse))(xs, data, step_sizes) for inverse in inverses
        ]

    tightest = []
    for seed in range(3):
        f, g = pair(seed)
        k1, k2, k3 = jax.random.split(jax.random.key(seed), 3)
        xs, noise = jax.random.normal(k1, (20, D)), 0.5 * jax.random.normal(k2, (20, M))
        data = jax.vmap(f)(xs + 0.3) + noise
        sizes = jax.random.uniform(k3, (20,), minval=0.05, maxval=1.0)
        for out in measure((f, g), xs, data, sizes):
            assert bool(jnp.all(out.deviation <= out.bound * (1 + 1e-9)))
            total = out.reconstruction + out.composition + out.complement + out.curvature + out.damping
            np.testing.assert_allclose(total, out.bound)
            tightest.append(jnp.max(out.deviation / out.bound))
    assert max(tightest) > 0.05  # a bound that is never near is not a measurement


def test_reconstruction_and_curvature_terms_can_be_all_there_is():
    f = lambda x: x
    bend = 0.1
    g = lambda y: y + jnp.asarray([0.3, 0.0]) + 0.5 * bend * y**2
    x = jnp.zeros(2)
    out = deviation(f, g, x, jnp.asarray([1.0, 0.0]), lipschitz=bend)
    np.testing.assert_allclose(out.reconstruction, 0.3)
    np.testing.assert_allclose(out.curvature, 0.5 * bend)
    np.testing.assert_allclose([out.composition, out.complement, out.damping], 0.0, atol=1e-15)
    np.testing.assert_allclose(out.deviation, out.bound, rtol=1e-12)  # attained
    np.testing.assert_allclose(deviation(f, g, x, jnp.asarray([1.0, 0.0])).lipschitz, bend, rtol=1e-9)


def test_complement_term_is_where_a_left_inverse_lets_noise_in():
    jac = jnp.asarray([[1.0], [0.0]])
    left_inverse = jnp.asarray([[1.0, 5.0]])  # G J = I exactly, yet it is not the pseudo-inverse
    out = deviation(
        lambda x: jac @ x, lambda y: left_inverse @ y, jnp.zeros(1), jnp.asarray([0.5, 0.1]), proposal="jvp"
    )
    np.testing.assert_allclose(out.composition, 0.0, atol=1e-15)
    np.testing.assert_allclose(out.deviation, 0.5, rtol=1e-12)
    np.testing.assert_allclose(out.complement, 0.1 * 26**0.5, rtol=1e-12)


@pytest.mark.parametrize("damping", [0.0, 1e-2, 1.0])
@pytest.mark.parametrize("step_size", [1.0, 0.3])
def test_pseudo_inverse_gives_gauss_newton_and_its_damped_form_levenberg_marquardt(damping, step_size):
    f, _ = pair(4)
    for seed in range(5):
        x = jax.random.normal(jax.random.key(seed), (D,))
        data = f(x) + jax.random.normal(jax.random.key(seed + 50), (M,))
        jac = jax.jacfwd(f)(x)
        r = f(x) - data
        operator = jnp.linalg.pinv(jac) if damping == 0 else jnp.linalg.solve(jac.T @ jac + damping * jnp.eye(D), jac.T)
        out = deviation(
            f,
            jax.tree_util.Partial(jnp.matmul, operator),
            x,
            data,
            step_size=step_size,
            damping=damping,
            proposal="jvp",
        )
        np.testing.assert_allclose(out.step, -step_size * operator @ r, atol=1e-10)
        assert out.deviation < 1e-10


def test_rank_deficiency_is_reported_and_the_bound_still_holds():
    jac = jnp.diag(jnp.asarray([2.0, 1.0, 0.0]))
    inverse = 0.3 * jax.random.normal(jax.random.key(0), (3, 3))
    out = deviation(lambda x: jac @ x, lambda y: inverse @ y, jnp.zeros(3), jnp.asarray([1.0, -1.0, 0.4]))
    assert out.rank == 2
    np.testing.assert_allclose(out.sigma_min, 1.0)
    assert out.deviation <= out.bound
    np.testing.assert_allclose(out.gauss_newton_step, [0.5, -1.0, 0.0], atol=1e-12)


def test_zero_residual_and_float32():
    f, g = pair(0)
    f, g = jax.tree.map(lambda a: a.astype(jnp.float32) if eqx.is_array(a) else a, (f, g))
    x = jnp.ones(D, jnp.float32)
    out = deviation(f, g, x, f(x))
    assert out.bound.dtype == jnp.float32
    assert bool(jnp.isfinite(out.bound))
    np.testing.assert_allclose(out.deviation, out.reconstruction, rtol=1e-5)
    with pytest.raises(ValueError, match="'paper', 'defect' or 'jvp'"):
        deviation(f, g, x, f(x), proposal="newton")
