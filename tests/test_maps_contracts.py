"""The contracts of every map: derivatives, transformations, structures."""

import functools
import re
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from cases import DTYPES, MAPS, PDE_MAPS, draw, names
from jax import export

from pinv_jax import maps

EVERY = MAPS | PDE_MAPS
TRACES = []


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
    gradient, backward = jax.vjp(lambda f, x: f(x), f, x)[1](w)
    step = 1e-5
    ends = jnp.stack([x - step * v, x + step * v])
    loop = jnp.stack([f(ends[0]), f(ends[1])])
    return Measured(y, forward, backward, (loop[1] - loop[0]) / (2 * step), gradient, jax.vmap(f)(ends), loop)


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
    np.testing.assert_allclose(jax.jit(lambda f, x: f(x))(prepared, x), got.y, rtol=1e-12, atol=1e-13)
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
