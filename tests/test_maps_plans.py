"""Published plans by their numbers, networks of plans, and plans for any shape."""

import itertools
import math

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import filled, key, spnn

from pinv_jax import maps


def structure_of(build, *args, **kwargs):
    """What `build` returns, with nothing allocated."""
    return eqx.filter_eval_shape(lambda: build(*args, key=key(), **kwargs))


def num_numbers(tree):
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))


def completed(f):
    """The structures of `y` and `z`."""
    return eqx.filter_eval_shape(lambda f, x: f.split(x), f, f.in_structure())


# Published plans ------------------------------------------------------------------------------------------------------

COUNTS = {
    (16, 7, "cayley"): 1_666_323,
    (32, 40, "cayley"): 71_047_608,
    (64, 40, "cayley"): 72_358_599,
    (256, 40, "cayley"): 150_078_484,
    (32, 40, "householder"): 65_827_384,
    (64, 40, "householder"): 67_138_339,
    (256, 40, "householder"): 139_004_564,
}
LATENTS = {
    (16, 7): [576, 185],
    (32, 40): [1024, 1024, 984],
    (64, 40): [6144, 3072, 1024, 1024, 984],
    (256, 40): [147456, 36864, 9216, 2048, 984],
}


@pytest.mark.parametrize("case", COUNTS, ids=str)
def test_published_networks_have_the_published_number_of_parameters(case):
    size, num_outputs, mixing = case
    assert num_numbers(structure_of(maps.published_spnn, size, num_outputs, mixing=mixing)) == COUNTS[case]


@pytest.mark.parametrize("case", LATENTS, ids=str)
def test_published_networks_lose_no_dimension(case):
    y, z = completed(structure_of(maps.published_spnn, *case))
    assert y.shape == case[1:]
    assert [leaf.size for leaf in jax.tree.leaves(z)] == LATENTS[case]
    assert y.size + num_numbers(z) == 3 * case[0] ** 2


@pytest.mark.parametrize("num_outputs", [1, 24, 511, 513, 1000])
@pytest.mark.parametrize("size", [32, 256])
def test_published_plans_take_any_number_of_outputs(size, num_outputs):
    y, z = completed(structure_of(maps.published_spnn, size, num_outputs))
    assert y.shape == (num_outputs,)
    assert num_outputs + num_numbers(z) == 3 * size**2


def test_published_options():
    couplings = [f for f in structure_of(maps.published_spnn, 16, eps=1e-6).layers if hasattr(f, "bounded")]
    mixers = [f for f in structure_of(maps.published_spnn, 16, eps=1e-6).layers if hasattr(f, "skew")]
    assert {(f.bounded, f.scale_bound) for f in couplings} == {("tanh", 2.0)}
    assert {f.eps for f in mixers} == {1e-6}
    with pytest.raises(ValueError, match=r"of size 16, 32, 64 and 256, got 48. Write plan\(\(3, 48, 48\), \(5,\)\)"):
        maps.published_steps(48, 5)


@jax.jit
def split(f, x):
    return jax.vmap(f.split)(x)


@jax.jit
def merge(f, y, z):
    return jax.vmap(f.merge)(y, z)


@jax.jit
def section(f, y):
    return jax.vmap(f.section)(y)


def exactness(f, num):
    """Errors of the bijection, both Penrose identities, the right inverse and back-projection, relative, at most."""
    rng = np.random.default_rng(0)
    draw = lambda structure: jnp.asarray(rng.normal(size=(num, *structure.shape)), structure.dtype)
    add = lambda a, b, c: jax.tree.map(lambda a, b, c: a + (b - c), a, b, c)
    x, data = draw(f.in_structure()), draw(f.out_structure())
    y, z = split(f, x)
    pinv = lambda y: merge(f, y, section(f, y))
    x_of_y, x_of_data = pinv(y), pinv(data)
    again_y, again_data = split(f, x_of_y)[0], split(f, x_of_data)[0]
    projected = merge(f, data, add(z, section(f, data), section(f, y)))
    pairs = [(merge(f, y, z), x), (again_y, y), (pinv(again_y), x_of_y), (again_data, data)]
    pairs += [(split(f, projected)[0], data)]
    flat = lambda a: np.asarray(a).reshape(num, -1)
    return max(np.max(np.linalg.norm(flat(a - b), axis=1) / np.linalg.norm(flat(b), axis=1)) for a, b in pairs)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("mixing", "dtype"), [("cayley", jnp.float64), pytest.param("householder", jnp.float32, marks=pytest.mark.slow)]
)
def test_the_published_plan_for_16_pixels_is_exact(mixing, dtype):
    f = filled(lambda: maps.published_spnn(16, 7, mixing=mixing, dtype=dtype, key=key()))
    assert exactness(maps.prepare(f), 8) <= (1e-12 if dtype == jnp.float64 else 5e-6)


@pytest.mark.slow
@pytest.mark.parametrize("mixing", ["cayley", "householder"])
def test_the_published_plan_for_32_pixels_is_exact_in_float32(mixing):
    # Every block divides by scales down to exp(-2): with larger weights they saturate, and rounding grows with them.
    f = filled(lambda: maps.published_spnn(32, mixing=mixing, dtype=jnp.float32, key=key()), scale=0.25)
    assert exactness(maps.prepare(f), 4) <= 5e-6


# Networks of plans ----------------------------------------------------------------------------------------------------

POINT = maps.ConvDesign((3,), window=1)
SMALL = (maps.Unshuffle(2), maps.Block(3, maps.ConvDesign((4,))), maps.Unshuffle(2), maps.Block(2, POINT))


@pytest.mark.parametrize(
    ("mixing", "start"),
    [("cayley", "random"), pytest.param("householder", "random", marks=pytest.mark.slow), ("cayley", "identity")],
)
def test_a_new_network_is_an_orthogonal_projection(mixing, start):
    @jax.jit
    def run(y):
        f = maps.prepare(maps.spnn((1, 4, 4), SMALL, mixing=mixing, start=start, key=key()))
        points = jnp.concatenate([jnp.eye(16), jnp.zeros((1, 16)), jnp.full((1, 16), 3.0)])
        return jax.vmap(f)(points.reshape(-1, 1, 4, 4)).T, jnp.ravel(f.pinv(y))

    y = np.asarray([0.3, -2.0])
    values, back = map(np.asarray, run(y))
    jac, of_zero, of_threes = values[:, :16], values[:, 16], values[:, 17]
    np.testing.assert_allclose(jac @ jac.T, np.eye(2), atol=1e-12)
    np.testing.assert_allclose(back, jac.T @ y, atol=1e-12)
    np.testing.assert_array_equal(of_zero, 0)
    np.testing.assert_allclose(of_threes, 3 * jac.sum(axis=1), atol=1e-12)
    is_selection = np.allclose(np.max(np.abs(jac), axis=1), 1, atol=1e-12)
    assert is_selection == (start == "identity")


def test_layers_and_options_of_a_network():
    f = structure_of(maps.spnn, (1, 4, 4), SMALL, mixing="householder", bounded="tanh", scale_bound=0.5, eps=1e-8)
    names = [type(layer).__name__ for layer in f.layers]
    block = ["Householder", "SurjectiveCoupling"]
    assert names == ["PixelUnshuffle", *block, "PixelUnshuffle", *block, "Flatten"]
    assert (f.layers[2].bounded, f.layers[2].scale_bound, f.layers[1].eps) == ("tanh", 0.5, 1e-8)
    bare = structure_of(maps.spnn, (1, 4, 4), SMALL, mixing=None, section=False)
    assert [type(layer).__name__ for layer in bare.layers].count("SurjectiveCoupling") == len(bare.layers) - 3 == 2
    assert maps.sections(bare) == []
    assert len(maps.sections(f)) == 2


def test_designs_of_sections_may_differ_and_any_callable_is_a_design():
    def linear(shape, num_outputs, *, dtype, key):
        return maps.Linear(shape[0], num_outputs, dtype=dtype, key=key)

    wide = maps.ConvDesign((9, 8), window=1)
    f = spnn((6,), (maps.Block(4, linear, wide), maps.Block(1, wide)), jnp.float32)
    first, second = f.layers[1], f.layers[3]
    assert isinstance(first.shift_net.fn, maps.Linear)
    assert [layer.bias.size for layer in first.section_net.fn.layers] == [9, 8, 2]
    assert [layer.bias.size for layer in second.section_net.fn.layers] == [9, 8, 3]
    assert f.out_structure() == jax.ShapeDtypeStruct((1,), jnp.float32)


def test_keys_make_networks_differ_and_repeat():
    a, b, c = (maps.spnn((6,), [maps.Block(2, POINT)], key=key(k)) for k in (0, 0, 1))
    assert eqx.tree_equal(a, b)
    assert not np.any(np.asarray(a.layers[0].skew) == np.asarray(c.layers[0].skew))
    scale, shift = (getattr(a.layers[1], name).fn.layers[0].weight for name in ("scale_net", "shift_net"))
    assert not np.any(np.asarray(scale) == np.asarray(shift))


@pytest.mark.parametrize(
    ("shape", "steps", "options", "match"),
    [
        (
            (3, 8, 8),
            (maps.Unshuffle(2), maps.Unshuffle(3)),
            {},
            r"Step 1 of the plan, Unshuffle\(factor=3\), does not fit shape \(12, 4, 4\): .* sizes \[1, 2, 4\]",
        ),
        ((3, 8, 8), (maps.Block(3),), {}, r"Step 0 of the plan, Block.* shape \(3, 8, 8\): .* got 3 of 3"),
        ((3, 8, 8), (maps.Block(2), maps.Block(5)), {}, r"Step 1 of the plan, .* \(2, 8, 8\): .* got 5 of 2"),
        ((3, 8, 8), (maps.Block(0),), {}, r"Step 0 of the plan, .* got 0 of 3"),
        ((8,), (maps.Unshuffle(2),), {}, r"Step 0 of the plan, .* \(8,\): .* expected an image"),
        (
            (3, 5, 5),
            (maps.Block(2, maps.ConvDesign((4, 4), strides=(2, 0.5, 1))),),
            {},
            r"Step 0 of the plan, .* Layer 0 of a ConvNet .* halves sides \(5, 5\)",
        ),
        ((3, 8, 8), (), {}, "at least one step"),
        ((4,), (maps.Block(2),), {"mixing": "dense"}, "mixing='dense'"),
        ((4,), (maps.Block(2),), {"start": "zero"}, "start='zero'"),
        ((4,), (maps.Block(2),), {"mixing": "householder", "start": "identity"}, 'write start="random"'),
        ((4,), (maps.Block(2),), {"mixing": "expm", "eps": 1e-6}, "with mixing='expm' leave it out"),
        ((4,), (maps.Block(2),), {"bounded": "relu"}, r"Step 0 of the plan, .*bounded='relu'|got 'relu'"),
    ],
)
def test_networks_that_do_not_fit(shape, steps, options, match):
    with pytest.raises(ValueError, match=match):
        structure_of(maps.spnn, shape, steps, **options)


# Plans for any shape --------------------------------------------------------------------------------------------------

IMAGES = [
    (c, h, w) for c, (h, w) in itertools.product((1, 3), [(1, 1), (1, 8), (2, 2), (5, 7), (6, 4), (9, 15), (16, 16)])
]
OTHERS = [(2,), (17,), (784,), (2, 50), (1, 4, 2, 6), (3, 97, 97), (3, 218, 178), (3, 64, 48)]


def check(shape, out_shape):
    steps = maps.plan(shape, out_shape, hidden=4)
    y, z = completed(structure_of(maps.spnn, shape, steps, mixing=None, section=False))
    assert y.shape == out_shape
    assert y.size + num_numbers(z) == math.prod(shape)
    return steps


@pytest.mark.slow
@pytest.mark.parametrize("shape", [s for s in IMAGES if math.prod(s) > 1] + OTHERS, ids=str)
def test_any_shape_is_taken_to_any_number_of_outputs(shape):
    n = math.prod(shape)
    for num_outputs in sorted({1, 10, n - 1} & set(range(1, min(n, 2000)))):
        check(shape, (num_outputs,))


@pytest.mark.parametrize(
    ("shape", "out_shapes"),
    [
        ((3, 8, 8), [(2, 8, 8), (1, 4, 4), (11, 4, 4), (5, 2, 2)]),
        ((3, 12, 8), [(1, 12, 8), (4, 6, 4), (47, 3, 2), (3, 3, 2)]),
        ((1, 9, 15), [(8, 3, 5), (1, 3, 5)]),
        ((3, 64, 48), [(3, 16, 12), (1, 4, 3)]),
        ((4, 50), [(1, 50), (3, 50)]),
        ((3, 5, 7), [(2, 5, 7)]),
        ((1, 32, 1), []),
        ((2, 1, 8), [(1, 1, 8)]),
    ],
)
def test_any_shape_is_taken_to_images(shape, out_shapes):
    for out_shape in out_shapes:
        check(shape, out_shape)


def test_a_plan_keeps_about_a_quarter_at_every_level():
    steps = maps.plan((3, 256, 256), (40,))
    assert [getattr(step, "factor", None) or step.num_outputs for step in steps] == [
        4,
        12,
        4,
        48,
        4,
        192,
        4,
        768,
        192,
        40,
    ]
    steps = maps.plan((3, 12, 8), (10,))
    assert [type(step).__name__ for step in steps] == ["Unshuffle", "Block", "Ravel", "Block"]
    widest = max(
        layer.shape[0] for layer in structure_of(maps.spnn, (3, 64, 64), maps.plan((3, 64, 64), (1000,))).layers
    )
    assert widest <= 4096
    assert {step.design for step in maps.plan((3, 8, 8), (5,), hidden=9) if hasattr(step, "design")} == {
        maps.AdaptiveDesign(9)
    }


@pytest.mark.parametrize(
    ("shape", "out_shape", "step", "nearest"),
    [
        ((3, 8, 8), (192,), 2, (191,)),
        ((3, 8, 8), (500,), 2, (191,)),
        ((3, 8, 8), (12, 4, 4), 1, (11, 4, 4)),
        ((3, 8, 8), (3, 8, 8), 0, (2, 8, 8)),
        ((1, 6, 6), (1, 6, 6), 0, (1, 3, 3)),
        ((1, 5, 7), (1, 5, 7), 0, (34,)),
        ((3, 12, 8), (2, 6, 2), 1, (2, 6, 4)),
        ((3, 12, 8), (2, 5, 2), 0, (2, 3, 2)),
        ((3, 12, 8), (2, 24, 16), 0, (2, 12, 8)),
        ((2, 8), (1, 4), 0, (1, 8)),
        ((3, 12, 8), (1, 3, 2, 2), 0, (12,)),
        ((9,), (9,), 0, (8,)),
    ],
)
def test_shapes_out_of_reach_name_the_step_and_the_nearest_shape(shape, out_shape, step, nearest):
    with pytest.raises(ValueError, match=rf"^Step {step} of the plan from ") as caught:
        maps.plan(shape, out_shape)
    assert f"The nearest shape that works is {nearest}." in str(caught.value)
    check(shape, nearest)


@pytest.mark.parametrize(
    ("shape", "out_shape", "match"),
    [
        ((3, 8, 8), (5, 1, 1), r"for \(5, 1, 1\) write \(5,\)"),
        ((1,), (1,), "more than one number"),
        ((), (1,), "with sides above zero"),
        ((3, 0, 8), (1,), "with sides above zero"),
        ((3, 8), (0,), "with sides above zero"),
    ],
)
def test_shapes_that_are_none(shape, out_shape, match):
    with pytest.raises(ValueError, match=match):
        maps.plan(shape, out_shape)
