"""Combinators: a network in the null space, auxiliary coordinates, several heads."""

import flax.linen
import flax.nnx
import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import pytest
from cases import inner_net, matrix, matrix_free

from pinv_jax import Problem, maps, solve, solvers

F64 = jnp.float64


def draw(shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape))


@jax.jit
def there(f, x):
    return f(x), f.split(x), f.merge(*f.split(x))


@jax.jit
def back(f, y):
    return f.pinv(y), f(f.pinv(y))


# NullSpace -----------------------------------------------------------------------------------------------------------


class Linen(flax.linen.Module):
    @flax.linen.compact
    def __call__(self, z):
        return flax.linen.Dense(3)(jnp.tanh(flax.linen.Dense(6)(z)))


def linen_net():
    net = Linen()
    return jax.tree_util.Partial(net.apply, net.init(jax.random.key(0), jnp.zeros(4)))


def nnx_net():
    net = flax.nnx.Sequential(
        flax.nnx.Linear(4, 6, rngs=flax.nnx.Rngs(0)), jnp.tanh, flax.nnx.Linear(6, 3, rngs=flax.nnx.Rngs(1))
    )
    graph, state = flax.nnx.split(net)
    return jax.tree_util.Partial(lambda state, z: flax.nnx.merge(graph, state)(z), state)


@pytest.mark.parametrize("net", [linen_net, nnx_net])
def test_flax_networks_are_inverted_exactly_and_trained(net):
    h = net()
    cast = jax.tree.map(lambda leaf: leaf.astype(F64), h)
    f = maps.NullSpace(maps.LinearSurjection(matrix(3, 7, F64)), cast)
    x = draw((7,))
    y, (_, z), again = there(f, x)
    np.testing.assert_allclose(y, f.linear.matrix @ x + cast(f.linear.null_space.T @ x), atol=1e-13)
    np.testing.assert_allclose(z, f.linear.null_space.T @ x, atol=1e-14)
    np.testing.assert_allclose(again, x, atol=1e-13)
    np.testing.assert_allclose(back(f, y)[1], y, atol=1e-12)
    gradient = jax.jit(jax.grad(lambda f: jnp.sum(f(x) ** 2)))(f)
    assert len(jax.tree.leaves(gradient.h)) == 4
    assert all(bool(jnp.any(leaf != 0)) for leaf in jax.tree.leaves(gradient.h))


def test_any_z_serves_a_matrix_free_null_space():
    """h must see the projected z, or the output would be wrong by h(z) - h(N z)."""
    f = maps.NullSpace(matrix_free(F64), lambda z: jnp.cos(3 * z[:, 1:]))
    y, z = draw((2, 3)), draw((2, 4), 1)
    np.testing.assert_allclose(jax.jit(lambda f: f(f.merge(y, z)))(f), y, atol=1e-13)


def test_without_a_section_the_null_space_part_is_zero():
    f = maps.NullSpace(maps.LinearSurjection(matrix(3, 7, F64)), inner_net(4, 3, F64, num_dimensions=0))
    y = draw((3,))
    h_of_zero = inner_net(4, 3, F64, num_dimensions=0)(jnp.zeros(4))
    np.testing.assert_allclose(back(f, y)[0], np.linalg.pinv(f.linear.matrix) @ (y - h_of_zero), atol=1e-13)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda a: maps.NullSpace(maps.LinearMap(a), jnp.sin), "expected an AbstractSurjection"),
        (lambda a: maps.NullSpace(maps.LinearSurjection(a), jnp.sin), r"expected h to return \(\(3,\), 'float64'\)"),
        (
            lambda a: maps.NullSpace(maps.LinearSurjection(a), lambda z: z[:3], lambda y: y.astype(jnp.float32)),
            "expected section",
        ),
    ],
)
def test_misfits_of_the_null_space_are_refused(build, message):
    with pytest.raises(ValueError, match=message):
        build(matrix(3, 7, F64))


# Expand --------------------------------------------------------------------------------------------------------------


def bent_curve():
    """A curve in three dimensions: one parameter, two dimensions missing."""
    return maps.Ravelled(lambda t: jnp.concatenate([t, t**2, jnp.sin(t)]), jax.ShapeDtypeStruct((1,), F64))


def test_auxiliary_coordinates_meet_every_output():
    f = maps.Expand(bent_curve())
    assert f.in_structure().shape == (4,)
    x, y = draw((1,)), draw((3,), 1)
    np.testing.assert_array_equal(f(f.embed(x)), f.forward(x))
    np.testing.assert_array_equal(f.pinv(y), jnp.concatenate([jnp.zeros(1), y]))
    np.testing.assert_allclose(f(f.pinv(y)), y, atol=1e-15)
    np.testing.assert_allclose(f.distance(y), jnp.linalg.norm(y))


def test_a_solver_as_inverse_gives_the_distance_to_the_range():
    curve = bent_curve()

    def least_squares(y):
        return solve(Problem(curve, y), solvers.LevenbergMarquardt(atol=1e-12), y[:1], max_steps=60).value

    f = maps.Expand(curve, least_squares)
    measure = jax.jit(lambda f, y: (f.distance(y), f.pinv(y)))
    on_range = curve(jnp.array([0.7]))
    normal = jnp.linalg.svd(jax.jacfwd(curve)(jnp.array([0.7])))[0][:, 1]
    for y, expected in [(on_range, 0.0), (on_range + 0.1 * normal, 0.1)]:
        got, x = measure(f, y)
        np.testing.assert_allclose(got, expected, atol=1e-8)
        np.testing.assert_allclose(f(x), y, atol=1e-14)
        grid = jax.vmap(curve)(jnp.linspace(-2, 2, 4001)[:, None])  # brute force
        np.testing.assert_allclose(got, jnp.min(jnp.linalg.norm(grid - y[None], axis=1)), atol=1e-3)


def test_misfits_of_expand_are_refused():
    with pytest.raises(ValueError, match="Ravelled"):
        maps.Expand(jnp.sin)
    with pytest.raises(ValueError, match=r"x of shape \(1,\)"):
        maps.Expand(bent_curve(), lambda y: y)


# Stack and Parallel --------------------------------------------------------------------------------------------------


def test_stack_is_the_moore_penrose_inverse_of_the_stacked_matrix():
    a, b = matrix(2, 9, F64), matrix(3, 9, F64, seed=1)
    image_head = maps.LinearMap(
        lx.FunctionLinearOperator(lambda image: image[:1] - image[1:2], jax.ShapeDtypeStruct((3, 3), F64))
    )
    f = maps.Stack([image_head, a, maps.LinearSurjection(b)])
    joint = np.concatenate([image_head.operator.as_matrix(), a, b])
    y = draw((8,))
    x, again = back(f, y)
    assert x.shape == (3, 3)
    np.testing.assert_allclose(jnp.ravel(x), np.linalg.pinv(joint) @ y, atol=1e-12)
    np.testing.assert_allclose(again, y, atol=1e-12)
    parts = f.separate(f(x))
    assert [part.shape for part in parts] == [(1, 3), (2,), (3,)]
    np.testing.assert_allclose(parts[0], image_head(x), atol=1e-13)
    np.testing.assert_array_equal(f.join(*f.separate(y)), y)
    with pytest.raises(ValueError, match=r"one array per head, of shapes \(\(1, 3\)"):
        f.join(y)


def test_heads_on_an_invertible_network_are_met_together():
    mix = maps.FixedOrthogonal((6,), matrix_q(6))
    psi = maps.SurjectiveChain([maps.CubicSine((6,)), mix, maps.LeakyTanh((6,), 0.2)])
    a, b = matrix(2, 6, F64), matrix(3, 6, F64, seed=1)
    f = maps.Stack([a, b], psi)
    x = draw((6,))
    v = there(psi, x)[0]
    y, _, again = there(f, x)
    np.testing.assert_allclose(y, jnp.concatenate([a @ v, b @ v]), atol=1e-12)
    np.testing.assert_allclose(again, x, atol=1e-12)
    y = f.join(draw((2,), 1), draw((3,), 2))
    x, again = back(f, y)
    np.testing.assert_allclose(again, y, atol=1e-12)
    np.testing.assert_allclose(x, back(psi, np.linalg.pinv(np.concatenate([a, b])) @ y)[0], atol=1e-11)


@pytest.mark.slow
def test_parallel_heads_are_met_together_whatever_their_bends():
    heads = [
        maps.SurjectiveChain([maps.LinearSurjection(matrix(2, 4, F64)), maps.CubicSine((2,))]),
        maps.Downsample((1, 2, 2), 2),
        maps.NullSpace(maps.LinearSurjection(matrix(1, 3, F64)), lambda z: jnp.sin(z[:1])),
    ]
    for f in (maps.Parallel(heads), maps.Parallel(heads, maps.FixedOrthogonal((11,), matrix_q(11)))):
        x, y = draw((11,)), draw((4,), 1)
        v = x if f.trunk is None else f.trunk(x)
        image = v[4:8].reshape(1, 2, 2)
        expected = [heads[0](v[:4]), jnp.ravel(heads[1](image)), heads[2](v[8:])]
        got, _, again = there(f, x)
        np.testing.assert_allclose(got, jnp.concatenate(expected), atol=1e-13)
        np.testing.assert_allclose(again, x, atol=1e-12)
        np.testing.assert_allclose(back(f, y)[1], y, atol=1e-12)
        assert [part.shape for part in f.separate(y)] == [(2,), (1, 1, 1), (1,)]


def matrix_q(size):
    return jnp.linalg.qr(matrix(size, size, F64))[0]


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda a: maps.Stack([]), "at least one"),
        (lambda a: maps.Stack([a, a[:2]]), "joint rank of 3: head 0 adds 3 of its 3 rows, head 1 adds 0 of its 2 rows"),
        (lambda a: maps.Stack([a, matrix(2, 5, F64)]), r"of \[6, 5\] inputs"),
        (lambda a: maps.Stack([a, maps.CubicSine((6,))]), "CyclicProjection"),
        (lambda a: maps.Stack([a], maps.LinearMap(a)), "no exact inverse"),
        (lambda a: maps.Stack([a], maps.LinearSurjection(matrix(6, 8, F64))), "drops 2 numbers"),
        (lambda a: maps.Parallel([]), "at least one"),
        (lambda a: maps.Parallel([maps.LinearMap(a)]), "as head 0"),
        (lambda a: maps.Parallel([maps.LinearSurjection(a)], maps.CubicSine((7,))), r"the 7 outputs .* got \[6\]"),
    ],
)
def test_heads_that_do_not_fit_are_refused(build, message):
    with pytest.raises(ValueError, match=message):
        build(matrix(3, 6, F64))


def test_stacks_are_built_under_vmap():
    a = jnp.stack([matrix(2, 6, F64, seed=seed) for seed in range(3)])
    b, y = matrix(1, 6, F64, seed=7), draw((3,))
    together = jax.vmap(lambda a: maps.Stack([a, b]).pinv(y))(a)
    np.testing.assert_allclose(together, jnp.stack([maps.Stack([m, b]).pinv(y) for m in a]), atol=1e-12)
