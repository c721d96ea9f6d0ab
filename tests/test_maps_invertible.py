"""Invertible networks: exact inverses, log-determinants, linear surjections of them; bounds of residual blocks."""

import functools
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import filled, invertible, matrix
from jax.flatten_util import ravel_pytree

from pinv_jax import maps

DTYPES = pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64], ids=["float32", "float64"])
slow_in_float32 = pytest.mark.parametrize(
    "dtype", [pytest.param(jnp.float32, marks=pytest.mark.slow), jnp.float64], ids=["float32", "float64"]
)


def normal(shape, seed=0, dtype=jnp.float64):
    return jax.random.normal(jax.random.key(seed), shape, dtype)


@jax.jit
def jacobian(f, x):
    return jax.jacfwd(f)(x).reshape(-1, x.size)


@jax.jit
def log_det(f, x):
    return maps.log_det(f, x)


def relative(a, b):
    return float(jnp.linalg.norm(jnp.ravel(a - b)) / jnp.linalg.norm(jnp.ravel(b)))


@functools.cache
def residual_block(shape, *, lipschitz=0.9, dtype=jnp.float64, activation="softplus", hidden=(8, 8)):
    """Saturated: the weights are well above what the bound allows, so that the normalisation is at work."""
    options = {"lipschitz": lipschitz, "activation": activation, "dtype": dtype}
    return filled(lambda: maps.ResidualBlock(shape, hidden, **options, key=jax.random.key(0)), scale=2.0)


# Log-determinants ----------------------------------------------------------------------------------------------------

BIJECTIONS = {
    "vectors, affine": lambda: invertible((5,), jnp.float64),
    "vectors, additive": lambda: invertible((4,), jnp.float64, kind="additive", mixing="cayley"),
    "images, affine": lambda: invertible((3, 2, 2), jnp.float64, mixing="cayley", centred=False),
    "without mixers": lambda: invertible((5,), jnp.float64, mixing=None),
    "residual": lambda: residual_block((5,)),
    "a chain with curves, reshapings and a square matrix": lambda: maps.SurjectiveChain(
        [
            maps.PixelUnshuffle((1, 2, 4), 2),
            invertible((4, 1, 2), jnp.float64),
            maps.Flatten((4, 1, 2)),
            maps.CubicSine((8,)),
            maps.Affine(jnp.linspace(-2.0, -0.5, 8), jnp.ones(8)),
            maps.LinearSurjection(matrix(8, 8, jnp.float64)),
        ]
    ),
}


@pytest.mark.parametrize("name", list(BIJECTIONS))
def test_log_det_is_that_of_the_dense_jacobian(name):
    f = BIJECTIONS[name]()
    x = normal(f.in_structure().shape)
    expected = np.linalg.slogdet(np.asarray(jacobian(f, x)))[1]
    np.testing.assert_allclose(log_det(f, x), expected, rtol=1e-11, atol=1e-11)
    if "additive" in name:
        assert float(log_det(f, x)) == 0.0
    else:
        assert abs(expected) > 0.02  # so that the comparison says something


def test_log_det_names_the_layer_that_loses_dimensions():
    f = maps.SurjectiveChain([invertible((5,), jnp.float64), maps.LinearSurjection(matrix(3, 5, jnp.float64))])
    with pytest.raises(ValueError, match=r"LinearSurjection from shape \(5,\) to shape \(3,\)"):
        maps.log_det(f, jnp.zeros(5))


def test_density_of_a_flow_integrates_to_one():
    f = invertible((2,), jnp.float64)
    axis = jnp.linspace(-9, 9, 241)
    x = jnp.stack(jnp.meshgrid(axis, axis), axis=-1).reshape(-1, 2)

    def log_density(x):
        return -0.5 * jnp.sum(f(x) ** 2) - jnp.log(2 * jnp.pi) + maps.log_det(f, x)

    total = jnp.sum(jnp.exp(jax.jit(jax.vmap(log_density))(x))) * (axis[1] - axis[0]) ** 2
    np.testing.assert_allclose(total, 1.0, atol=1e-3)  # the nets have kinks, hence the quadrature error


# Invertible networks and linear surjections of them ------------------------------------------------------------------

STEP_SIZES = jnp.asarray([0.0, 0.3, 1.0])


def projected(dtype, *, centred):
    """`x -> P psi(x)`, 12 numbers to 4, with random inner nets in `psi`."""
    psi = invertible((12,), dtype, hidden=16, num_layers=3, mixing="cayley", centred=centred)
    return maps.SurjectiveChain([psi, maps.LinearSurjection(matrix(4, 12, dtype))])


class Measured(NamedTuple):
    """What one compilation measures: for every x and y, back-projections for every step size too."""

    there: Any  # psi(x)
    again: Any  # psi^-1(psi(x))
    met: Any  # f(f.pinv(y))
    kept: Any  # back-projection by keeping z
    written_out: Any  # psi^-1(psi(x) + a P^+ (y - f(x)))
    reached: Any  # f of it
    expected: Any  # (1 - a) f(x) + a y
    naive: Any  # f(x + pinv(y - f(x)))
    pinv: Any
    natural: Any  # argmin |G(x) - G(0)| on f(x) = y
    from_origin: Any  # f.pinv(f(0)), and the natural inverse there


@jax.jit
def measure(f, x, y):
    psi, linear = f.layers
    origin = jnp.zeros_like(x)
    f0, z0 = f.split(origin)
    fx, z = f.split(x)

    def back_project(step_size):
        kept = f.merge(fx + step_size * (y - fx), z)
        written_out = psi.pinv(psi(x) + step_size * linear.pinv(y - fx))
        return kept, written_out, f(kept), (1 - step_size) * fx + step_size * y

    return Measured(
        psi(x),
        psi.pinv(psi(x)),
        f(f.pinv(y)),
        *jax.vmap(back_project)(STEP_SIZES.astype(x.dtype)),
        f(x + f.pinv(y - fx)),
        f.pinv(y),
        f.merge(y, z0),
        (f.pinv(f0), f.merge(f0, z0)),
    )


@functools.cache
def measured(dtype, *, centred=True):
    x, y = normal((200, 12), dtype=dtype), normal((200, 4), 1, dtype)
    f = maps.prepare(projected(dtype, centred=centred))
    return x, y, jax.jit(jax.vmap(measure, in_axes=(None, 0, 0)))(f, x, y)


@pytest.mark.slow
@slow_in_float32
def test_networks_are_bijections(dtype):
    x, _, got = measured(dtype)
    assert relative(x @ np.linalg.lstsq(x, got.there)[0], got.there) > 0.1  # psi is not nearly linear
    assert relative(got.again, x) <= (1e-12 if dtype == jnp.float64 else 5e-6)


@pytest.mark.slow
@slow_in_float32
def test_linear_surjections_of_networks_have_exact_right_inverses(dtype):
    _, y, got = measured(dtype)
    assert relative(got.met, y) <= (1e-11 if dtype == jnp.float64 else 5e-6)


def test_back_projection_in_the_space_of_the_network_keeps_z():
    x, _, got = measured(jnp.float64)
    assert relative(got.kept, got.written_out) <= 1e-10
    assert relative(got.reached, got.expected) <= 1e-10
    assert relative(got.kept[:, 0], x) <= 1e-12


def test_the_formula_for_linear_maps_does_not_meet_the_data():
    _, y, got = measured(jnp.float64)
    assert float(jnp.median(jnp.linalg.norm(got.naive - y, axis=1) / jnp.linalg.norm(y, axis=1))) > 0.05


@pytest.mark.slow
def test_the_natural_inverse_of_a_centred_network_is_that_of_the_linear_map():
    """Without centring it is another one, by tens of per cent; `psi^-1 P^+` then takes f(0) away from 0."""
    *_, got = measured(jnp.float64)
    assert relative(got.natural, got.pinv) <= 1e-12
    np.testing.assert_allclose(got.from_origin[0], 0, atol=1e-12)
    *_, uncentred = measured(jnp.float64, centred=False)
    assert 0.1 < relative(uncentred.natural, uncentred.pinv) < 1.0
    assert float(jnp.linalg.norm(uncentred.from_origin[0][0])) > 0.1
    np.testing.assert_allclose(uncentred.from_origin[1], 0, atol=1e-12)


@jax.jit
def at_origin(f, y):
    return f(jnp.zeros(12)), f(f.pinv(y))


@pytest.mark.slow
def test_centring_works_on_surjections_and_follows_the_parameters():
    psi, linear = projected(jnp.float64, centred=False).layers
    f, moved = (
        maps.Centred(maps.SurjectiveChain([each, linear])) for each in (psi, jax.tree.map(lambda w: 1.1 * w, psi))
    )
    for g in (f, moved):
        origin, y = at_origin(g, jnp.ones(4))
        np.testing.assert_allclose(origin, jnp.zeros(4), atol=1e-14)
        np.testing.assert_allclose(y, jnp.ones(4), atol=1e-12)
    assert float(jnp.linalg.norm(at_origin(f.f, jnp.ones(4))[0])) > 0.1


@pytest.mark.parametrize("centred", [True, False])
def test_new_networks_are_orthogonal_maps(centred):
    psi = maps.invertible_network((6,), num_layers=3, hidden=5, centred=centred, key=jax.random.key(0))
    jac = jacobian(psi, normal((6,)))
    np.testing.assert_allclose(jac @ jac.T, np.eye(6), atol=1e-12)


def test_additive_networks_preserve_volume():
    jac = jacobian(invertible((6,), jnp.float64, kind="additive"), 3 * normal((6,)))
    np.testing.assert_allclose(abs(np.linalg.det(jac)), 1.0, rtol=1e-12)
    assert np.max(np.abs(jac @ jac.T - np.eye(6))) > 0.1  # though it is no rotation


# Residual blocks -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(5, 5), (9, 4), (3, 7), (6, 1), (4, 4, 3), (2, 6, 3, 3), (7, 2, 3, 3)])
def test_norm_bound_is_above_the_norm_and_near_it(shape):
    rng = np.random.default_rng(0)
    for seed in range(5):
        weight = jnp.asarray(rng.normal(size=shape) + seed)
        size = {2: (), 3: (11,), 4: (7, 6)}[len(shape)]
        layer = maps._convnets.ConvLayer(shape[1], shape[0], num_dims=len(size), dtype=jnp.float64)
        layer = eqx.tree_at(lambda layer: layer.weight, layer, weight)
        norm = float(jnp.linalg.norm(jacobian(layer, jnp.zeros((shape[1], *size))), 2))
        bound = float(maps._residual.norm_bound(weight))
        assert norm * (1 - 1e-12) <= bound <= norm * (1.04 if not size else 3.0)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("shape", "activation"),
    [((5,), name) for name in maps._residual.CONTRACTIVE] + [((2, 3, 2), "identity"), ((2, 3, 2), "softplus")],
)
def test_the_bound_holds_at_random_points(shape, activation):
    block = residual_block(shape, activation=activation)
    assert float(block.lipschitz_bound()) == pytest.approx(0.9, rel=1e-12)
    jac = jax.jit(jax.vmap(lambda x: jax.jacfwd(block.residual)(x).reshape(x.size, x.size)))
    norms = np.linalg.norm(jac(3 * normal((20, *shape))), 2, axis=(1, 2))
    assert 0 < np.max(norms) <= 0.9


def test_small_weights_are_left_alone():
    """The factor only ever shrinks, and zero weights have finite gradients."""
    block = maps.ResidualBlock((3,), (), activation="identity", key=jax.random.key(0))
    weight = 0.5 * np.eye(3) + 0.1 * np.eye(3, k=1)
    block = eqx.tree_at(lambda b: b.layers[0].weight, block, jnp.asarray(weight))

    @jax.jit
    def measure(block, x):
        gradient = jax.grad(lambda block: jnp.sum(block(x) ** 2) + block.lipschitz_bound())(block)
        return block(x), block.pinv(x), block.lipschitz_bound(), gradient

    y, _, bound, _ = measure(block, jnp.ones(3))
    np.testing.assert_allclose(y, 1 + weight @ np.ones(3), rtol=1e-15)
    assert np.linalg.norm(weight, 2) <= bound <= 1.02 * np.linalg.norm(weight, 2)
    y, x, _, gradient = measure(jax.tree.map(jnp.zeros_like, block), jnp.ones(3))
    np.testing.assert_array_equal([x, y], np.ones((2, 3)))
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(gradient))


@functools.partial(jax.jit, static_argnames="with_jacobian")
def inverse_errors(block, x, *, with_jacobian):
    again = block.pinv(block(x))
    norm = jnp.linalg.norm(jax.jacfwd(block.invert)(x).reshape(x.size, x.size), 2) if with_jacobian else None
    scale = jnp.maximum(jnp.max(jnp.abs(x)), jnp.max(jnp.abs(block(x))))  # near zero the biases make y the larger one
    return jnp.max(jnp.abs(again - x)) / scale, norm


@pytest.mark.slow
@pytest.mark.parametrize("lipschitz", [0.9, 0.99])
@DTYPES
def test_fixed_point_inverse_is_exact_near_and_far(lipschitz, dtype):
    bound = 1e-13 if dtype == jnp.float64 else 2e-6
    for shape in [(6,), (2, 3, 2)]:
        block = residual_block(shape, lipschitz=lipschitz, dtype=dtype)
        for size in (1e-3, 1.0, 100.0, 1e4):
            error, _ = inverse_errors(block, size * normal(shape, dtype=dtype), with_jacobian=False)
            assert float(error) <= bound, (shape, size)


@pytest.mark.parametrize("lipschitz", [0.9, 0.99])
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_fixed_point_inverse_where_the_bound_is_attained(lipschitz, sign):
    """`x -> (1 +- L) x`, the slowest case: still to rounding, which `1 - L` amplifies by `1 / (1 - L)`."""
    block = maps.ResidualBlock((4,), (), activation="identity", lipschitz=lipschitz, key=jax.random.key(0))
    block = eqx.tree_at(lambda b: b.layers[0].weight, block, sign * 2 * jnp.eye(4))
    x = normal((4,))
    slope = float(block(x)[0] / x[0])
    assert abs(slope - 1 - sign * lipschitz) <= 0.02 * lipschitz  # the norm bound is 1.1 per cent above this norm
    error, norm = inverse_errors(block, x, with_jacobian=True)
    assert float(error) <= 10 * jnp.finfo(x.dtype).eps / (1 - lipschitz)
    assert float(norm) == pytest.approx(1 / slope, rel=1e-12)


@pytest.mark.slow
def test_derivatives_of_the_inverse_are_implicit():
    """With respect to y and to every parameter, both modes and second order, against differences.

    That reverse mode runs at all says that it does not go through the loop: JAX refuses that.
    """
    block = residual_block((4,), hidden=(5,))
    flat, unravel = ravel_pytree((block, normal((4,))))
    w = normal((4,), 7)

    def inverse(flat):
        block, y = unravel(flat)
        return block.invert(y)

    direction = normal(flat.shape, 8)
    products = jax.jit(
        lambda flat: (
            jax.jvp(inverse, (flat,), (direction,))[1],
            jnp.vdot(jax.vjp(inverse, flat)[1](w)[0], direction),
            (inverse(flat + 1e-5 * direction) - inverse(flat - 1e-5 * direction)) / 2e-5,
        )
    )
    forward, backward, differences = products(flat)
    np.testing.assert_allclose(forward, differences, rtol=1e-8, atol=1e-9)
    np.testing.assert_allclose(jnp.vdot(forward, w), backward, rtol=1e-12)
    gradient = jax.jit(jax.grad(lambda y: jnp.vdot(w, block.invert(y))))
    y, v = normal((4,)), normal((4,), 2)
    second = jax.jit(lambda y: jax.jvp(gradient, (y,), (v,))[1])(y)
    np.testing.assert_allclose(second, (gradient(y + 1e-5 * v) - gradient(y - 1e-5 * v)) / 2e-5, rtol=1e-6, atol=1e-9)


@pytest.mark.slow
def test_inverses_of_a_batch_do_not_touch_each_other():
    """A slow lane, and one NaN, leave the others as they are alone; NaN in one entry is NaN, and ends."""
    block = residual_block((2, 3, 2), lipschitz=0.99)
    y = normal((4, 2, 3, 2)) * jnp.asarray([1.0, 100.0, 1.0, 1.0])[:, None, None, None]
    spoiled = y.at[1, 0, 0, 0].set(jnp.nan)
    invert = jax.jit(jax.vmap(block.invert))
    got = invert(spoiled)
    assert bool(jnp.all(jnp.isnan(got[1])))
    np.testing.assert_array_equal(jnp.delete(got, 1, axis=0), jnp.delete(invert(y), 1, axis=0))
    single = jax.jit(lambda y: block.invert(y))
    np.testing.assert_allclose(invert(y), jnp.stack([single(each) for each in y]), rtol=1e-13, atol=1e-13)
    assert bool(jnp.all(jnp.isnan(single(jnp.full((2, 3, 2), jnp.inf)))))


# Refusals ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda key: maps.invertible_network((1, 4, 4), key=key), "PixelUnshuffle"),
        (lambda key: maps.invertible_network((4,), num_layers=0, key=key), "num_layers=0"),
        (lambda key: maps.invertible_network((4,), kind="glow", key=key), 'kind="affine"'),
        (lambda key: maps.invertible_network((4,), mixing="qr", key=key), "'householder', 'cayley', 'expm', None"),
        (lambda key: maps.AdditiveCoupling((4,), shift=lambda b: b[:1]), r"map shape \(2,\) to shape \(2,\)"),
        (
            lambda key: maps.AffineCoupling((5,), scale=lambda b: b[:2], shift=lambda b: b, swap=False),
            r"the shift net to map shape \(3,\) to shape \(2,\)",
        ),
        (lambda key: maps.AffineCoupling((4,), scale=abs, shift=abs, scale_bound=0.0), "scale_bound > 0"),
        (lambda key: maps.AdditiveCoupling((4,), shift=lambda b: jnp.float32(1) * b.astype(jnp.float32)), "float32"),
        (lambda key: maps.ResidualBlock((4,), lipschitz=1.0, key=key), r"lipschitz in \(0, 1\), got 1.0"),
        (lambda key: maps.ResidualBlock((4,), activation="gelu", key=key), "got 'gelu'"),
        (lambda key: maps.ResidualBlock((2, 4), window=2, key=key), "odd window"),
    ],
)
def test_refusals(build, message):
    with pytest.raises(ValueError, match=message):
        build(jax.random.key(0))
