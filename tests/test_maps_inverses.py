"""The contracts of every surjection: its exact inverse; of every linear map: its Moore-Penrose inverse."""

import jax
import jax.numpy as jnp
import numpy as np
from cases import DTYPES, LINEAR_MAPS, SURJECTIONS, draw, names


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
