"""The contracts of every map: derivatives, transformations, structures; of every surjection: its exact inverse."""

import functools
import re
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import LINEAR_MAPS, MAPS, PDE_MAPS, SURJECTIONS
from jax import export

from pinv_jax import maps

EVERY = MAPS | PDE_MAPS
DTYPES = pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64], ids=["float32", "float64"])
TRACES = []


def draw(structure, seed=0):
    return jax.random.normal(jax.random.key(seed), structure.shape, structure.dtype)


def names(cases):
    return pytest.mark.parametrize("name", list(cases))


class Measured(NamedTuple):
    """What one compilation per map measures, the map itself being an argument of plain `jax.jit`."""

    y: jax.Array
    forward: jax.Array  # J v
    backward: jax.Array  # J^T w
    differences: jax.Array
    gradient: Any  # with respect to the map's parameters
    batch: jax.Array
    loop: jax.Array


@jax.jit
def measure(f, x, v, w):
    TRACES.append(f)
    y, forward = jax.jvp(f, (x,), (v,))
    step = 1e-5
    differences = (f(x + step * v) - f(x - step * v)) / (2 * step)
    backward = jax.vjp(f, x)[1](w)[0]
    gradient = jax.grad(lambda f: jnp.sum(f(x) ** 2))(f)
    return Measured(
        y, forward, backward, differences, gradient, jax.vmap(f)(jnp.stack([x, v])), jnp.stack([f(x), f(v)])
    )


@functools.cache
def measured(name):
    f = EVERY[name](jnp.float64)
    x, v, w = draw(f.in_structure()), draw(f.in_structure(), 1), draw(f.out_structure(), 2)
    return f, x, v, w, measure(f, x, v, w)


@names(EVERY)
@DTYPES
def test_structures_are_what_the_call_has(name, dtype):
    f = EVERY[name](dtype)
    assert f.in_structure().dtype == dtype
    y = jax.eval_shape(lambda f, x: f(x), f, f.in_structure())
    assert (y.shape, y.dtype, y.weak_type) == (f.out_structure().shape, dtype, False)
    assert f.out_structure().dtype == dtype


@names(EVERY)
def test_adjoint_dot_test(name):
    _, _, v, w, got = measured(name)
    scale = jnp.linalg.norm(w) * jnp.linalg.norm(v)
    np.testing.assert_allclose(jnp.vdot(w, got.forward), jnp.vdot(got.backward, v), rtol=1e-11, atol=1e-13 * scale)


@names(EVERY)
def test_jvp_against_differences(name):
    *_, got = measured(name)
    np.testing.assert_allclose(got.forward, got.differences, rtol=1e-7, atol=1e-7)


@names(EVERY)
def test_the_second_call_does_not_trace(name):
    f, x, v, w, _ = measured(name)
    before = len(TRACES)
    measure(jax.tree.map(lambda leaf: leaf + 0, f), x + 1, v, w)
    assert len(TRACES) == before


@names(EVERY)
def test_vmap_equals_loop(name):
    *_, got = measured(name)
    np.testing.assert_allclose(got.batch, got.loop, rtol=1e-12, atol=1e-13)


@names(EVERY)
def test_gradient_of_every_parameter_is_finite(name):
    f, *_, got = measured(name)
    assert all(eqx.is_inexact_array(leaf) for leaf in jax.tree.leaves(f))
    assert all(bool(jnp.all(jnp.isfinite(leaf))) for leaf in jax.tree.leaves(got.gradient))


@names(EVERY)
def test_prepared_is_the_same_map(name):
    f, x, *_, got = measured(name)
    prepared = maps.prepare(f)
    np.testing.assert_allclose(prepared(x), got.y, rtol=1e-12, atol=1e-13)
    assert maps.prepare(prepared).in_structure() == f.in_structure()


@names(EVERY)
def test_lowers_for_accelerators_alone(name):
    """No call back to the host: such a map would stall an accelerator, or not lower at all."""
    f = EVERY[name](jnp.float32)

    def value_and_both_products(x):
        y, tangent = jax.jvp(f, (x,), (x,))
        return y, tangent, jax.vjp(f, x)[1](y)[0]

    exported = export.export(jax.jit(value_and_both_products), platforms=["tpu", "cuda"])(f.in_structure())
    assert not [call for call in re.findall(r"custom_call @(\w+)", exported.mlir_module()) if "callback" in call]


@jax.jit
def there_and_back(f, x, y):
    z = jax.tree.map(lambda leaf: draw(leaf, 2), f.section(y))
    completed, expected = f.split(f.merge(y, z)), (y, z)
    if y.size + sum(leaf.size for leaf in jax.tree.leaves(z)) > x.size:
        # z in more coordinates than it has: any z serves merge, which uses its projection, and so does split give it.
        z = f.split(draw(x, 2))[1]
        completed, expected = (completed[0], f.split(f.merge(y, z))), (y, (y, z))
    return f.merge(*f.split(x)), completed, expected


@names(SURJECTIONS)
@DTYPES
def test_split_and_merge_are_inverse_to_each_other(name, dtype):
    f = SURJECTIONS[name](dtype)
    x, y = 3 * draw(f.in_structure()), 3 * draw(f.out_structure(), 1)
    again, completed, expected = there_and_back(f, x, y)
    tolerance = 200 * jnp.finfo(dtype).eps
    for left, right in zip(jax.tree.leaves((again, completed)), jax.tree.leaves((x, expected)), strict=True):
        np.testing.assert_allclose(left, right, rtol=tolerance, atol=tolerance)


@jax.jit
def pinv_products(f, y, v, w):
    x, dx = jax.jvp(f.pinv, (y,), (v,))
    y, dy = jax.jvp(f, (x,), (dx,))
    return x, dx, y, dy, f.pinv(y), jax.vjp(f.pinv, y)[1](w)[0]


@names(SURJECTIONS)
def test_pinv_meets_the_first_two_penrose_identities_and_has_both_derivatives(name):
    f = SURJECTIONS[name](jnp.float64)
    y, v, w = draw(f.out_structure()), draw(f.out_structure(), 1), draw(f.in_structure(), 2)
    x, dx, again_y, dy, again_x, backward = pinv_products(f, y, v, w)
    np.testing.assert_allclose(again_y, y, rtol=1e-11, atol=1e-11)
    np.testing.assert_allclose(again_x, x, rtol=1e-11, atol=1e-11)
    np.testing.assert_allclose(dy, v, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(jnp.vdot(w, dx), jnp.vdot(backward, v), rtol=1e-9)


@names(LINEAR_MAPS)
def test_linear_maps_meet_the_four_penrose_identities(name):
    f = LINEAR_MAPS[name](jnp.float64)
    flat_f = lambda x: jnp.ravel(f(x.reshape(f.in_structure().shape)))
    flat_pinv = lambda y: jnp.ravel(f.pinv(y.reshape(f.out_structure().shape)))
    a = np.asarray(jax.jit(jax.jacfwd(flat_f))(jnp.zeros(f.in_structure().size)))
    p = np.asarray(jax.jit(jax.jacfwd(flat_pinv))(jnp.zeros(f.out_structure().size)))
    for left, right in [(a @ p @ a, a), (p @ a @ p, p), ((a @ p).T, a @ p), ((p @ a).T, p @ a)]:
        np.testing.assert_allclose(left, right, atol=1e-11)
    np.testing.assert_allclose(p, np.linalg.pinv(a, rcond=1e-12), atol=1e-11)
    assert f.rank() == np.linalg.matrix_rank(a)
