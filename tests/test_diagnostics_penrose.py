"""Penrose identities of surjections and linear maps, and the norm of the natural pseudo-inverse."""

import functools
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from cases import funnel, key, matrix

from pinv_jax import diagnostics, maps

NUM = 1000
EXACT = {jnp.float32: 5e-6, jnp.float64: 1e-11}
each_dtype = pytest.mark.parametrize("dtype", EXACT, ids=["float32", "float64"])


@functools.cache
def learned(dtype):
    """A chain whose sections were fitted to return what they lost."""
    f = funnel(dtype, 0.3)
    xs = jax.random.normal(key(8), (256, 12), dtype)
    optimiser = optax.adam(1e-2)

    def loss(nets, f):
        f = eqx.tree_at(maps.sections, f, nets)
        return jnp.mean((jax.vmap(lambda x: f.pinv(f(x)))(xs) - xs) ** 2)

    def turn(carry, _):
        nets, state = carry
        value, gradient = jax.value_and_grad(loss)(nets, f)
        updates, state = optimiser.update(gradient, state)
        return (optax.apply_updates(nets, updates), state), value

    nets = maps.sections(f)
    (nets, _), values = jax.jit(lambda n: jax.lax.scan(turn, (n, optimiser.init(n)), length=150))(nets)
    assert values[-1] < 0.5 * values[0]
    return eqx.tree_at(maps.sections, f, nets)


MODELS = {
    "random section": lambda dtype: funnel(dtype, 0.3),
    "learned section": learned,
    "natural": lambda dtype: maps.prepare(maps.Natural(funnel(dtype, 0.3))),
}


def draws(dtype):
    return jax.random.normal(key(1), (NUM, 12), dtype), jax.random.normal(key(2), (NUM, 4), dtype)


@jax.jit
def identities(f, xs, ys):
    return jax.vmap(lambda x, y: diagnostics.penrose_errors(f, x, y))(xs, ys)


@pytest.mark.parametrize(
    ("name", "dtype"),
    [(name, jnp.float64) for name in MODELS] + [("random section", jnp.float32), ("natural", jnp.float32)],
)
def test_the_identities_that_need_no_adjoint_hold_for_every_section(name, dtype):
    f, (xs, ys) = MODELS[name](dtype), draws(dtype)
    for where in (ys, jax.jit(jax.vmap(f))(xs)):
        errors = identities(f, xs, where)
        assert errors.first.shape == (NUM,)
        assert errors.first.dtype == dtype
        for error in (errors.first, errors.second, errors.right_inverse):
            assert jnp.max(error) <= EXACT[dtype]


def test_they_are_measured_where_they_fail():
    class Pair(NamedTuple):
        scale: float

        def __call__(self, x):
            return self.scale * x[:2]

        def pinv(self, y):
            return jnp.concatenate([y, y])

    errors = diagnostics.penrose_errors(Pair(3.0), jnp.arange(4.0), jnp.ones(2))
    np.testing.assert_allclose([errors.first, errors.second, errors.right_inverse], 2.0)


def test_zero_is_measured_absolutely():
    f = maps.LinearSurjection(matrix(2, 4, jnp.float64))
    errors = diagnostics.penrose_errors(f, jnp.zeros(4), jnp.zeros(2))
    assert [float(e) for e in (errors.first, errors.second, errors.right_inverse)] == [0.0, 0.0, 0.0]


# Third and fourth -----------------------------------------------------------------------------------------------------


@jax.jit
def all_four(f, x, y):
    difference = f.pinv(y) - jnp.linalg.pinv(jax.jacfwd(f)(x)) @ y
    return diagnostics.penrose_errors(f, x, y), diagnostics.penrose_symmetry(f, y), jnp.linalg.norm(difference)


@pytest.mark.parametrize("rank", [None, 2])
def test_linear_maps_meet_all_four(rank):
    f = maps.LinearMap(matrix(4, 6, jnp.float64, rank=rank)).prepare()
    errors, symmetry, distance = all_four(f, jnp.linspace(0.0, 1.0, 6), jnp.linspace(-1.0, 1.0, 4))
    assert max(symmetry.third, symmetry.fourth, distance) <= 1e-12
    assert max(errors.first, errors.second) <= 1e-12
    assert (errors.right_inverse > 0.1) == (rank is not None)  # full row rank is what makes it a right inverse


def scaled(log_scales):
    """A net that ignores its input: the scales are exp(2 tanh(.)) of these."""
    return jax.tree_util.Partial(lambda weights, z: weights, jnp.asarray(log_scales))


def linear_shift(rows, columns):
    return jax.tree_util.Partial(lambda weights, z: weights @ z, matrix(rows, columns, jnp.float64, seed=7))


def two_blocks(first, second):
    layers = []
    for index, (size, kept, nets) in enumerate([(10, 7, first), (7, 4, second)]):
        layers.append(maps.Cayley((size,), key=key(index), dtype=jnp.float64))
        layers.append(maps.SurjectiveCoupling((size,), kept, **nets, dtype=jnp.float64))
    return maps.prepare(maps.SurjectiveChain(layers))


@pytest.mark.parametrize(
    ("first", "second", "is_moore_penrose"),
    [
        ({}, {}, True),
        ({"scale": scaled([0.4] * 7)}, {"scale": scaled([0.5, -0.3, 0.1, 0.0])}, True),
        ({"scale": scaled([0.9, -0.8, 0.5, 0.0, 0.2, -0.4, 0.7])}, {}, False),
        ({"shift": linear_shift(7, 3)}, {}, False),
        ({}, {"shift": linear_shift(4, 3)}, False),
    ],
    ids=["selection", "scales, uniform but last", "scales not uniform", "linear shift first", "linear shift last"],
)
def test_linear_chains_are_moore_penrose_exactly_where_the_completion_is_orthogonal(first, second, is_moore_penrose):
    f = maps.Natural(two_blocks(first, second))
    errors, symmetry, distance = all_four(f, jnp.linspace(0.0, 1.0, 10), jnp.linspace(-1.0, 2.0, 4))
    assert max(errors.first, errors.second, errors.right_inverse, symmetry.third) <= 1e-12
    if is_moore_penrose:
        assert max(symmetry.fourth, distance) <= 1e-12
    else:
        assert min(symmetry.fourth, distance) > 0.1


# The norm -------------------------------------------------------------------------------------------------------------


class Natural(NamedTuple):
    defect: jax.Array  # |z(pinv(y)) - z(0)|
    loss: jax.Array  # the sum of its squares
    origin: jax.Array  # |pinv(f(0))|
    distance: jax.Array  # of the natural pinv in G
    learned: jax.Array  # of the pinv with the section of f
    others: jax.Array  # of random pre-images, (100,)


@jax.jit
def measure(f, ys):
    natural = maps.Natural(f)

    def one(y, key):
        def preimage(key):
            leaves, treedef = jax.tree.flatten(f.section(y))
            keys = jax.random.split(key, len(leaves))
            z = [jax.random.normal(k, leaf.shape, leaf.dtype) for k, leaf in zip(keys, leaves, strict=True)]
            return f.merge(y, jax.tree.unflatten(treedef, z))

        far = functools.partial(diagnostics.completion_distance, f)
        defect = diagnostics.natural_defect(natural, y)
        others = jax.vmap(lambda key: far(preimage(key)))(jax.random.split(key, 100))
        origin = jnp.linalg.norm(natural.pinv(f(jnp.zeros(12, y.dtype))))
        return Natural(defect, defect**2, origin, far(natural.pinv(y)), far(f.pinv(y)), others)

    return jax.vmap(one)(ys, jax.random.split(key(5), ys.shape[0]))


@pytest.mark.slow
@each_dtype
def test_the_natural_pinv_is_nearest_to_zero_in_the_completed_space(dtype):
    got = measure(funnel(dtype, 0.3), draws(dtype)[1])
    tolerance = {jnp.float32: 2e-5, jnp.float64: 1e-10}[dtype]
    assert jnp.max(got.defect) <= tolerance
    assert jnp.max(got.loss) <= {jnp.float32: 1e-8, jnp.float64: 1e-20}[dtype]
    assert jnp.max(got.origin) <= tolerance
    assert bool(jnp.all(got.distance <= got.learned + tolerance))
    assert bool(jnp.all(got.distance[:, None] <= got.others + tolerance))
    assert jnp.median(got.learned - got.distance) > 0.1  # not all the same


def test_the_defect_says_how_far_a_section_is_from_natural():
    f, y = funnel(jnp.float64, 0.3), jnp.ones(4)
    x = f.pinv(y)
    z, origin = f.split(x)[1], f.split(jnp.zeros(12))[1]
    expected = np.linalg.norm(np.concatenate([a - b for a, b in zip(*map(jax.tree.leaves, (z, origin)), strict=True)]))
    np.testing.assert_allclose(diagnostics.natural_defect(f, y), expected)
    assert diagnostics.natural_defect(maps.LeakyReLU((3,)), jnp.ones(3)) == 0  # nothing is lost


def test_the_distance_between_two_points_is_symmetric_and_that_of_y_and_z():
    f = maps.LinearSurjection(matrix(3, 7, jnp.float64))
    a, b = jnp.linspace(0, 1, 7), jnp.linspace(1, -2, 7)
    jac = np.concatenate([f.matrix, f.null_space.T])
    np.testing.assert_allclose(diagnostics.completion_distance(f, a, b), np.linalg.norm(jac @ (a - b)), rtol=1e-12)
    np.testing.assert_allclose(
        diagnostics.completion_distance(f, a, b), diagnostics.completion_distance(f, b, a), rtol=1e-12
    )
