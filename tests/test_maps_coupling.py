"""Couplings and stacks of them: formulas, exactness, the natural pseudo-inverse, the linear case, errors."""

import functools
import itertools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from cases import coupling, inner_net, key, matrix, orthogonal, surjective_network
from test_accelerators import lower, matmul_precisions

from pinv_jax import learn, maps

each_dtype = pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64], ids=["float32", "float64"])


def draws(structure, num, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=(num, *structure.shape)), structure.dtype)


def relative(a, b):
    return float(jnp.linalg.norm(jnp.ravel(a - b)) / jnp.linalg.norm(jnp.ravel(b)))


def flat(tree):
    """The leaves of one example as one vector."""
    return jnp.concatenate([jnp.ravel(leaf) for leaf in jax.tree.leaves(tree)])


# The block and the stack ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bounded", ["none", "tanh"])
def test_the_block_is_its_formula(bounded):
    f = coupling((5, 3, 2), 2, jnp.float64, bounded=bounded, scale_bound=1.5)
    x, y = draws(f.in_structure(), 1)[0], 3 * draws(f.out_structure(), 1, 1)[0]
    act = np.tanh if bounded == "tanh" else lambda a: a
    scale = np.exp(1.5 * np.tanh(f.scale_net(x[2:])))
    got_y, got_z = f.split(x)
    np.testing.assert_allclose(got_y, x[:2] * scale + act(f.shift_net(x[2:])), atol=1e-14)
    np.testing.assert_array_equal(got_z, x[2:])
    np.testing.assert_allclose(f.section(y), act(f.section_net(y)), atol=1e-14)
    np.testing.assert_allclose(f.merge(y, x[2:])[:2], (y - act(f.shift_net(x[2:]))) / scale, atol=1e-13)


@jax.jit
def round_trips(f, x, y, z):
    again = jax.vmap(lambda x: f.merge(*f.split(x)))(x)
    completed = jax.vmap(lambda y, z: f.split(f.merge(y, z)))(y, z)
    return again, completed


@pytest.mark.parametrize(("dtype", "bounded"), [(jnp.float32, "none"), (jnp.float64, "none"), (jnp.float64, "tanh")])
def test_the_stack_is_a_bijection_and_keeps_every_dimension(dtype, bounded):
    f = maps.prepare(surjective_network(dtype, scale_bound=2.0, bounded=bounded))
    x, y = draws(f.in_structure(), 50), 2 * draws(f.out_structure(), 50, 1)
    structure = jax.eval_shape(f.split, f.in_structure())
    assert sum(leaf.size for leaf in jax.tree.leaves(structure)) == f.in_structure().size
    z = jax.tree.map(lambda leaf: draws(leaf, 50, 2), structure[1])
    again, completed = round_trips(f, x, y, z)
    allowed = 1e-12 if dtype == jnp.float64 else 5e-6
    assert relative(again, x) <= allowed
    # A latent drawn apart from y is met after divisions by scales down to exp(-2), so rounding counts a few times more.
    assert relative(jax.vmap(flat)(completed), jax.vmap(flat)((y, z))) <= 5 * allowed


def test_blocks_without_section_fill_in_zeros():
    f = coupling((5, 2), 3, jnp.float32, section=None)
    np.testing.assert_array_equal(f.section(jnp.ones((3, 2), jnp.float32)), np.zeros((2, 2)))
    assert f.section(jnp.ones((3, 2), jnp.float32)).dtype == jnp.float32


def test_zero_initialised_networks_leave_a_selection_of_coordinates():
    zero = functools.partial(jax.tree.map, jnp.zeros_like)
    net = lambda num_in, num_out, n: zero(inner_net(num_in, num_out, jnp.float64, num_dimensions=n))
    blocks = [
        maps.SurjectiveCoupling(shape, m, scale=net(k, m, n), shift=net(k, m, n), section=net(m, k, n))
        for shape, m, k, n in [((8, 2, 2), 3, 5, 2), ((12,), 4, 8, 0)]
    ]
    f = maps.SurjectiveChain(
        [
            maps.PixelUnshuffle((2, 4, 4), 2),
            maps.Cayley((8, 2, 2)),
            blocks[0],
            maps.Flatten((3, 2, 2)),
            maps.MatrixExponential((12,)),
            blocks[1],
        ]
    )
    f = maps.prepare(f)
    x, y = draws(f.in_structure(), 1)[0], draws(f.out_structure(), 1, 1)[0]
    got, back, jac = (np.asarray(a) for a in jax.jit(lambda f: (f(x), f.pinv(y), jax.jacfwd(f)(x)))(f))
    np.testing.assert_array_equal(got, maps.PixelUnshuffle((2, 4, 4), 2)(x).ravel()[:4])
    jac = jac.reshape(4, 32)
    np.testing.assert_allclose(jac @ jac.T, np.eye(4), atol=1e-12)
    np.testing.assert_allclose(back.ravel(), jac.T @ np.asarray(y), atol=1e-12)


def test_gradients_reach_every_network_through_split_merge_and_pinv():
    f = coupling((5, 2), 3, jnp.float64)
    x, y = draws(f.in_structure(), 1)[0], draws(f.out_structure(), 1, 1)[0]

    @jax.jit
    def gradients(f):
        total = lambda tree: jnp.sum(flat(tree) ** 3)
        return [
            jax.grad(lambda f: total(f.split(x)))(f),
            jax.grad(lambda f: total(f.merge(y, x[3:])))(f),
            jax.grad(lambda f: total(f.pinv(y)))(f),
        ]

    for gradient, nets in zip(gradients(f), [(0, 1), (0, 1), (0, 1, 2)], strict=True):
        sizes = [
            float(jnp.max(jnp.abs(flat(net)))) for net in (gradient.scale_net, gradient.shift_net, gradient.section_net)
        ]
        assert [index for index, size in enumerate(sizes) if size > 1e-3] == list(nets)
        assert np.all(np.isfinite(sizes))


def test_full_precision_in_both_modes():
    f = surjective_network(jnp.float32)
    x, y = draws(f.in_structure(), 1)[0], draws(f.out_structure(), 1, 1)[0]
    total = lambda f, x, y: jnp.sum(flat(f.split(x)) ** 2) + jnp.sum(f.pinv(y) ** 2)
    forward = lambda *primals: jax.jvp(total, primals, primals)
    for program in (total, forward, jax.grad(total, argnums=(0, 1, 2))):
        assert matmul_precisions(lower(program, f, x, y)) == {"HIGHEST"}


def test_one_compilation_for_all_parameters_and_values():
    traces = []

    @jax.jit
    def run(f, y):
        traces.append(f)
        return jax.vmap(f.pinv)(y)

    f = coupling((5,), 3, jnp.float32)
    y = draws(f.out_structure(), 4)
    run(f, y)
    run(jax.tree.map(lambda leaf: 0.9 * leaf, f), y + 1)
    assert len(traces) == 1


@pytest.mark.slow
def test_bfloat16_runs_and_loses_what_the_docstring_says():
    f = coupling((16, 8, 8), 6, jnp.bfloat16)
    y = draws(f.out_structure(), 20)
    again = jax.jit(jax.vmap(lambda y: f(f.pinv(y))))(y)
    assert again.dtype == jnp.bfloat16
    error = relative(again.astype(jnp.float32), y.astype(jnp.float32))
    assert 5e-4 < error < 1e-2
    network = maps.prepare(surjective_network(jnp.bfloat16))
    y = draws(network.out_structure(), 20)
    again = jax.jit(jax.vmap(lambda y: network(network.pinv(y))))(y)
    assert 5e-3 < relative(again.astype(jnp.float32), y.astype(jnp.float32)) < 8e-2


# Sections -------------------------------------------------------------------------------------------------------------


def test_sections_finds_every_section_net_wherever_it_is():
    f = surjective_network(jnp.float32)
    expected = [layer.section_net for layer in f.layers if isinstance(layer, maps.SurjectiveCoupling)]
    assert len(expected) == 3
    for model in (f, maps.Natural(f), {"a": 1, "b": (f, jnp.zeros(3))}, learn.InversePair(f, f.pinv), maps.store(f)):
        found = maps.sections(model)
        count = 2 if isinstance(model, learn.InversePair) else 1
        assert len(found) == 3 * count
        for net, other in zip(found, expected * count, strict=True):
            for left, right in zip(jax.tree.leaves(net), jax.tree.leaves(other), strict=True):
                assert left is right
    assert maps.sections(maps.SurjectiveCoupling((4,), 2)) == []


def test_a_stage_with_sections_moves_nothing_else():
    f = coupling((5,), 3, jnp.float64)
    reconstruct = lambda model, x, y, key: jnp.mean((model.pinv(model(x)) - x) ** 2)
    stage = learn.Stage({"rec": learn.Term(reconstruct)}, maps.sections, 3, 4, optax.sgd(0.1))
    x = draws(f.in_structure(), 8)
    g, _ = learn.fit(f, {"section": stage}, (x, x), key=key())
    for name in ("scale_net", "shift_net", "section_net"):
        before, after = (jax.tree.leaves(getattr(m, name)) for m in (f, g))
        moved = [bool(np.any(np.asarray(a) != np.asarray(b))) for a, b in zip(before, after, strict=True)]
        assert moved == [name == "section_net"] * 4


# The natural pseudo-inverse -------------------------------------------------------------------------------------------


def three_blocks(dtype):
    """Vectors of 12 numbers to 4, with shifts in every block."""
    sizes = [12, 9, 6, 4]
    blocks = [
        [maps.FixedOrthogonal((n,), orthogonal(n, dtype, seed=n)), coupling((n,), m, dtype, seed=n, scale_bound=1.0)]
        for n, m in itertools.pairwise(sizes)
    ]
    return maps.SurjectiveChain(sum(blocks, []))


@pytest.mark.slow
@each_dtype
def test_the_natural_pseudo_inverse_keeps_the_latents_of_zero(dtype):
    f = three_blocks(dtype)
    y = jnp.concatenate([2 * draws(f.out_structure(), 20), jax.jit(jax.vmap(f))(draws(f.in_structure(), 20, 1))])

    @jax.jit
    def measure(f, y):
        natural = maps.Natural(f)
        zero = jnp.zeros(f.in_structure().shape, y.dtype)
        y0, z0 = f.split(zero)
        again, z = jax.vmap(lambda y: f.split(natural.pinv(y)))(y)
        prepared = jax.vmap(maps.prepare(natural).pinv)(y)
        return (
            again,
            jax.vmap(flat)(z) - flat(z0)[None],
            natural.pinv(y0),
            flat(z0),
            jax.vmap(natural.pinv)(y),
            prepared,
        )

    again, difference, of_zero, z0, x, prepared = measure(f, y)
    allowed = 1e-10 if dtype == jnp.float64 else 2e-5
    assert float(jnp.linalg.norm(z0)) > 0.1  # shifts move z(0) away from zero in every block but the first
    np.testing.assert_allclose(again, y, atol=allowed)
    np.testing.assert_allclose(difference, 0, atol=allowed)
    np.testing.assert_allclose(of_zero, 0, atol=allowed)
    np.testing.assert_allclose(prepared, x, atol=allowed)
    natural_loss = float(jnp.mean(jnp.sum(difference**2, axis=1)))
    assert natural_loss <= (1e-20 if dtype == jnp.float64 else 1e-8)


def test_the_natural_pseudo_inverse_is_the_pre_image_nearest_to_zero_in_the_completion():
    f = three_blocks(jnp.float64)
    y = 2 * draws(f.out_structure(), 10)
    z = jax.tree.map(lambda leaf: draws(leaf, 100, 3), jax.eval_shape(f.split, f.in_structure())[1])

    @jax.jit
    def distances(f, y, z):
        origin = flat(f.split(jnp.zeros(f.in_structure().shape)))
        distance = lambda x: jnp.linalg.norm(flat(f.split(x)) - origin)
        others = jax.vmap(lambda y: jax.vmap(lambda z: (distance(f.merge(y, z)), f(f.merge(y, z)) - y))(z))(y)
        return (
            jax.vmap(lambda y: distance(maps.Natural(f).pinv(y)))(y),
            jax.vmap(lambda y: distance(f.pinv(y)))(y),
            others,
        )

    natural, learned, (others, misses) = distances(f, y, z)
    np.testing.assert_allclose(misses, 0, atol=1e-10)  # they are pre-images
    assert jnp.all(natural < learned)
    assert jnp.all(natural < jnp.min(others, axis=1))


def test_prepared_natural_splits_no_zero():
    calls = []

    class Counted(maps.Flatten):
        def split(self, x):
            calls.append(x)
            return super().split(x)

    f = maps.Natural(maps.SurjectiveChain([Counted((5,)), coupling((5,), 2, jnp.float64)]))
    prepared = maps.prepare(f)
    assert prepared.prepare() is prepared
    calls.clear()
    prepared.pinv(jnp.ones(2))
    assert not calls
    f.pinv(jnp.ones(2))
    assert len(calls) == 1


# The linear case against Moore and Penrose ----------------------------------------------------------------------------


def linear_block(size, num_outputs, *, scale=None, shift=None, seed=0):
    """An orthogonal mixer and a coupling whose scale and shift do not depend on `z`, or linearly."""
    inverse = lambda s: jnp.arctanh(jnp.log(s) / 2.0)  # exp(2 tanh(.)) makes it s again
    scale_net = None if scale is None else lambda z: inverse(jnp.broadcast_to(jnp.asarray(scale), (num_outputs,)))
    shift_net = None if shift is None else lambda z: jnp.asarray(shift) @ z
    w = orthogonal(size, jnp.float64, seed=seed)
    mixer = maps.FixedOrthogonal((size,), w)
    return [mixer, maps.SurjectiveCoupling((size,), num_outputs, scale=scale_net, shift=shift_net)]


def penrose(f):
    """The dense forms of `f` and of its pseudo-inverse, and by how much they miss the four identities."""
    rows, columns = jnp.eye(f.out_structure().size), jnp.eye(f.in_structure().size)
    a, p = (np.asarray(jax.jit(jax.vmap(g))(basis)).T for g, basis in ((f, columns), (f.pinv, rows)))
    pairs = [(a @ p @ a, a), (p @ a @ p, p), ((a @ p).T, a @ p), ((p @ a).T, p @ a)]
    return a, p, [np.max(np.abs(left - right)) for left, right in pairs]


DIAGONAL = {size: np.linspace(0.4, 2.5, size) for size in (4, 7)}
MOORE_PENROSE = {
    "one block": lambda: linear_block(10, 4),
    "one block, diagonal scale": lambda: linear_block(10, 4, scale=DIAGONAL[4]),
    "two blocks": lambda: linear_block(10, 7) + linear_block(7, 4, seed=1),
    "two blocks, one scale then diagonal scale": lambda: (
        linear_block(10, 7, scale=1.7) + linear_block(7, 4, scale=DIAGONAL[4], seed=1)
    ),
}
OBLIQUE = {
    "one block, linear shift": lambda: linear_block(10, 4, shift=matrix(4, 6, jnp.float64)),
    "two blocks, diagonal scale first": lambda: linear_block(10, 7, scale=DIAGONAL[7]) + linear_block(7, 4, seed=1),
    "two blocks, diagonal scales": lambda: (
        linear_block(10, 7, scale=DIAGONAL[7]) + linear_block(7, 4, scale=DIAGONAL[4], seed=1)
    ),
}


@pytest.mark.parametrize("name", MOORE_PENROSE)
def test_linear_stacks_that_reduce_to_moore_penrose(name):
    a, p, errors = penrose(maps.Natural(maps.SurjectiveChain(MOORE_PENROSE[name]())))
    np.testing.assert_allclose(p, np.linalg.pinv(a), atol=1e-12)
    assert max(errors) <= 1e-12


@pytest.mark.parametrize("name", OBLIQUE)
def test_linear_stacks_that_miss_the_fourth_identity(name):
    """Their `z` is not orthogonal to the rows: a reflexive inverse, but an oblique projection."""
    a, p, errors = penrose(maps.Natural(maps.SurjectiveChain(OBLIQUE[name]())))
    assert max(errors[:3]) <= 1e-12
    assert errors[3] > 0.1
    assert np.max(np.abs(p - np.linalg.pinv(a))) > 0.1


@pytest.mark.parametrize("natural", [maps.Natural, lambda f: f], ids=["natural", "zeros"])
def test_a_null_space_completion_gives_moore_penrose(natural):
    a = matrix(4, 10, jnp.float64)
    identity = maps.FixedOrthogonal((10,), jnp.eye(10))
    for f in (maps.LinearSurjection(a), maps.SurjectiveChain([identity, maps.LinearSurjection(a)])):
        _, p, errors = penrose(natural(f))
        np.testing.assert_allclose(p, np.linalg.pinv(a), atol=1e-12)
        assert max(errors) <= 1e-12


def test_coordinates_are_consistent_if_they_keep_the_origin():
    """`g(x) = A phi(x)` has the natural pseudo-inverse `phi^-1(A^+ y)` only if `phi(0)` lies in the rows of `A`."""
    a = matrix(4, 10, jnp.float64)
    projector = np.eye(10) - np.linalg.pinv(a) @ np.asarray(a)
    y, offset = jnp.linspace(-1, 1, 4), jnp.sin(jnp.arange(10.0))
    linear = maps.LinearSurjection(a)

    @jax.jit
    def measure(shift):
        phi = maps.SurjectiveChain([maps.LeakyTanh((10,), 0.3), maps.Affine(jnp.full(10, 2.0), shift)])
        natural = maps.Natural(maps.SurjectiveChain([phi, linear]))
        textbook = phi.pinv(np.linalg.pinv(a) @ y)
        return natural.pinv(y), textbook, phi.pinv(np.linalg.pinv(a) @ y + projector @ phi(jnp.zeros(10)))

    natural, textbook, _ = measure(jnp.zeros(10))
    np.testing.assert_allclose(natural, textbook, atol=1e-12)
    natural, textbook, general = measure(offset)
    np.testing.assert_allclose(natural, general, atol=1e-12)
    assert relative(natural, textbook) > 0.1


# Bad input ------------------------------------------------------------------------------------------------------------


def wrong_net(z):
    return jnp.zeros((9, *z.shape[1:]), z.dtype)


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        (((4, 2, 2), 4), {}, r"num_outputs=4 for x of shape \(4, 2, 2\)"),
        (((4, 2, 2), 7), {}, "num_outputs=7"),
        (((4,), 0), {}, "num_outputs=0"),
        (((), 1), {}, "num_outputs"),
        (((4,), 2), {"bounded": "relu"}, "got 'relu'"),
        (((4,), 2), {"scale_bound": 0.0}, "scale_bound > 0, got 0.0"),
        (((4,), 2), {"scale_bound": float("nan")}, "scale_bound > 0"),
        (((5, 3), 2), {"scale": wrong_net}, r"scale net to map shape \(3, 3\) to shape \(2, 3\).*returned.*9, 3"),
        (((5, 3), 2), {"shift": wrong_net}, r"shift net to map shape \(3, 3\)"),
        (((5, 3), 2), {"section": wrong_net}, r"section net to map shape \(2, 3\) to shape \(3, 3\)"),
        (((4,), 2), {"shift": lambda z: z.astype(jnp.float16)}, "shift net.*float64.*float16"),
        (((4,), 2), {"shift": lambda z: (z, z)}, "shift net.*returned"),
    ],
)
def test_impossible_blocks_are_refused(arguments, options, message):
    with pytest.raises(ValueError, match=message):
        maps.SurjectiveCoupling(*arguments, **options)


def test_a_net_that_fails_says_which():
    net = eqx.nn.Linear(7, 2, key=key())
    with pytest.raises(ValueError, match=r"scale net to map shape \(2,\) to shape \(2,\), but it failed"):
        maps.SurjectiveCoupling((4,), 2, scale=net)
