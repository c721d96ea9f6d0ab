"""Whole models under transformations: gradients, one trace for any batch, bfloat16, NaN, and what a call costs."""

import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import filled, invertible, matrix, spnn
from jax import export

from pinv_jax import maps, solvers


def network(dtype):
    """An SPNN in the style of the paper, from 2 x 4 x 4 images to 4 numbers."""
    design = maps.ConvDesign((6,), window=1)
    steps = (maps.Unshuffle(2), maps.Block(5, design), maps.Unshuffle(2), maps.Block(4, design))
    return spnn((2, 4, 4), steps, dtype, seed=1, scale_bound=1.0)


def projected(dtype):
    """A linear map of couplings and of a residual block, whose inverse is a fixed point, from 6 numbers to 3."""
    psi = invertible((6,), dtype, seed=3, num_layers=1, mixing="cayley")
    block = filled(lambda: maps.ResidualBlock((6,), (8,), dtype=dtype, key=jax.random.key(0)), seed=2)
    linear = maps.LinearSurjection(matrix(3, 6, jnp.promote_types(dtype, jnp.float32), seed=1))
    return maps.SurjectiveChain([psi, block, jax.tree.map(lambda a: a.astype(dtype), linear)])


MODELS = pytest.mark.parametrize("model", [network, pytest.param(projected, marks=pytest.mark.slow)])


def draw(structure, seed, num=None):
    shape = structure.shape if num is None else (num, *structure.shape)
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), structure.dtype)


def everything(f, x, y, z):
    """What a user may differentiate."""
    return {"split": f.split(x), "merge": f.merge(y, z), "pinv": f.pinv(y), "nlbp": solvers.nlbp(f, x, y, 0.7)}


def arguments(f, num=None):
    """`x`, `y` and `z`, at random."""
    structures = f.in_structure(), *jax.eval_shape(f.split, f.in_structure())
    return jax.tree.map(lambda s: draw(s, s.size, num), structures)


def relative(a, b):
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    return np.linalg.norm(a - b) / np.linalg.norm(b)


# Gradients ------------------------------------------------------------------------------------------------------------


@jax.jit
def derivatives(rest, primals, tangents, weights):
    """Forward mode, reverse mode of every output by itself, and differences: by parameters and arguments at once."""

    def run(parameters, *args):
        return everything(eqx.combine(parameters, rest), *args)

    forward = jax.jvp(run, primals, tangents)[1]
    one_by_one = {
        name: jax.tree.map(lambda w, i=i: jnp.zeros((len(weights), *w.shape)).at[i].set(w), weights[name])
        for i, name in enumerate(weights)
    }
    backward = jax.vmap(jax.vjp(run, *primals)[1])(one_by_one)
    ends = jax.vmap(lambda h: run(*jax.tree.map(lambda a, t: a + h * t, primals, tangents)))(jnp.asarray([-1e-6, 1e-6]))
    return forward, backward, jax.tree.map(lambda a: (a[1] - a[0]) / 2e-6, ends)


@pytest.mark.slow
@MODELS
def test_gradients_flow_through_split_merge_pinv_and_back_projection(model):
    f = model(jnp.float64)
    # The matrices of a linear surjection belong together: they are data, and no direction may move them.
    is_data = lambda node: isinstance(node, maps.LinearSurjection)
    trained = jax.tree.map(lambda node: jax.tree.map(lambda _: not is_data(node), node), f, is_leaf=is_data)
    parameters, rest = eqx.partition(f, trained)
    primals = (parameters, *arguments(f))
    tangents, weights = (
        jax.tree.map(lambda leaf, seed=seed: draw(leaf, leaf.size + seed), tree)
        for seed, tree in [(3, primals), (4, jax.eval_shape(everything, f, *primals[1:]))]
    )
    forward, backward, differences = derivatives(rest, primals, tangents, weights)

    def inner(a, b):
        return sum(float(jnp.vdot(s, t)) for s, t in zip(*map(jax.tree.leaves, (a, b)), strict=True))

    reached = {"split": "fx", "merge": "fyz", "pinv": "fy", "nlbp": "fxy"}
    for index, name in enumerate(weights):
        for got, expected in zip(*map(jax.tree.leaves, (forward[name], differences[name])), strict=True):
            scale = 1 + np.max(np.abs(expected), initial=0.0)
            np.testing.assert_allclose(got, expected, rtol=1e-6, atol=1e-6 * scale, err_msg=name)
        gradient = jax.tree.map(lambda leaf, index=index: leaf[index], backward)
        np.testing.assert_allclose(inner(gradient, tangents), inner(weights[name], forward[name]), rtol=1e-9)
        sizes = [max(float(jnp.max(jnp.abs(leaf))) for leaf in jax.tree.leaves(part)) for part in gradient]
        assert "".join(which for which, size in zip("fxyz", sizes, strict=True) if size > 1e-3) == reached[name], name


# Compilations ---------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@MODELS
def test_one_trace_for_other_parameters_and_for_any_batch(model):
    traces = []

    def run(f, *args):
        traces.append(f)
        return jax.vmap(everything, in_axes=(None, 0, 0, 0))(f, *args)

    f = model(jnp.float32)
    (batch,) = export.symbolic_shape("batch")
    any_batch = jax.tree.map(lambda a: jax.ShapeDtypeStruct((batch, *a.shape), a.dtype), arguments(f))
    exported = export.export(jax.jit(run))(f, *any_batch)
    other = jax.tree.map(lambda leaf: 0.9 * leaf, f) if model is network else f  # 0.9 A has another pseudo-inverse
    singly = jax.jit(everything)
    for parameters, num in [(f, 1), (other, 3)]:
        args = arguments(f, num)
        got = exported.call(parameters, *args)
        for index in range(num):
            expected = singly(parameters, *jax.tree.map(lambda a, index=index: a[index], args))
            for left, right in zip(*map(jax.tree.leaves, (got, expected)), strict=True):
                np.testing.assert_allclose(left[index], right, rtol=1e-4, atol=1e-4)
    assert len(traces) == 1


# Precision ------------------------------------------------------------------------------------------------------------


@functools.partial(jax.jit, static_argnames="dtype")
def misses(f, x, y, dtype):
    """`f(pinv(y))` and `f(nlbp(x, y))`, with x and y given in float64."""
    x, y = x.astype(dtype), y.astype(dtype)
    return jax.vmap(lambda x, y: (f(f.pinv(y)), f(solvers.nlbp(f, x, y)), f.merge(*f.split(x))))(x, y)


@pytest.mark.slow
@MODELS
@pytest.mark.parametrize(
    ("dtype", "bounds"), [(jnp.bfloat16, (2e-3, 5e-2)), (jnp.float32, (1e-8, 5e-6)), (jnp.float64, (0, 1e-13))], ids=str
)
def test_what_exactness_costs_in_every_precision(model, dtype, bounds):
    """In bfloat16, which has 8 bits, everything runs, and is exact to a few per cent only: exactness needs float32."""
    f = maps.prepare(model(dtype))
    x, y, _ = arguments(model(jnp.float64), 50)
    by_pinv, by_nlbp, again = misses(f, x, y, dtype)
    assert by_pinv.dtype == by_nlbp.dtype == again.dtype == dtype
    for got, expected in [(by_pinv, y), (by_nlbp, y), (again, x)]:
        assert bounds[0] <= relative(got, expected.astype(dtype)) <= bounds[1]


# Bad values -----------------------------------------------------------------------------------------------------------


@MODELS
def test_nan_gives_nan_ends_and_stays_in_its_lane(model):
    f = model(jnp.float32)
    x, y, z = arguments(f, 3)
    run = jax.jit(jax.vmap(functools.partial(everything, f)))
    clean = run(x, y, z)
    spoiled = {"x": run(x.at[1].set(x[1].at[(0,) * (x.ndim - 1)].set(jnp.nan)), y, z)}
    spoiled["y"] = run(x, y.at[1, 0].set(jnp.nan), z)
    for which, touched in [("x", ("split", "nlbp")), ("y", ("merge", "pinv", "nlbp"))]:
        for name, tree in spoiled[which].items():
            hit = any(np.any(np.isnan(leaf[1])) for leaf in jax.tree.leaves(tree))
            assert hit == (name in touched), (which, name)
            for got, expected in zip(*map(jax.tree.leaves, (tree, clean[name])), strict=True):
                np.testing.assert_array_equal(got[::2], expected[::2])


# Cost -----------------------------------------------------------------------------------------------------------------


def test_what_calls_cost_once_mixers_are_prepared():
    """Of the published network for 32 pixels, from the operations of the lowered programs; no weight is ever made."""
    build = lambda: maps.published_spnn(32, dtype=jnp.float32, key=jax.random.key(0))
    raw = eqx.filter_eval_shape(build)
    prepared = eqx.filter_eval_shape(lambda: maps.prepare(build()))
    natural = eqx.filter_eval_shape(lambda: maps.prepare(maps.Natural(build())))

    def lowered(run, *structures):
        return jax.jit(run).lower(*structures)

    def flops(run, *structures):
        return lowered(run, *structures).cost_analysis()["flops"]

    split = lambda f, x: f.split(x)
    x = jax.ShapeDtypeStruct((3, 32, 32), jnp.float32)
    y, z = jax.eval_shape(split, prepared, x)
    forward, inverse = flops(split, prepared, x), flops(lambda f, y, z: f.merge(y, z), prepared, y, z)
    assert flops(lambda f, y: f.pinv(y), prepared, y) <= 2 * forward
    assert 0.999 <= flops(solvers.nlbp, natural, x, y) / (forward + inverse) <= 1.001
    assert "getrf" in lowered(split, raw, x).as_text()  # the factorisations of the Cayley mixers
    assert "getrf" not in lowered(split, prepared, x).as_text()
