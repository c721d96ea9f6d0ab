from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import GOLDEN, key, published_pair

from pinv_jax import io, learn, maps

DATA = Path(__file__).parent / "data"
CAYLEY = DATA / "spnn_8x8_cayley.pth"
STEPS = (
    maps.Unshuffle(2),
    maps.Block(4, maps.AdaptiveDesign(16)),
    maps.Unshuffle(4),
    maps.Block(5, maps.AdaptiveDesign(16)),
)


def network(mixing="cayley", dtype=jnp.float64, **options):
    """The plan of the golden arrays: unshuffle, 12 -> 4 channels at 4 x 4, unshuffle, 64 -> 5 at a single position."""
    options = {"eps": 1e-6 if mixing == "cayley" else 1e-8, "bounded": "tanh"} | options
    return maps.spnn((3, 8, 8), STEPS, mixing=mixing, dtype=dtype, key=key(), **options)


@pytest.fixture(scope="module")
def golden():
    return {name: np.load(DATA / f"spnn_8x8_{name}.npz") for name in ("cayley", "householder")}


@pytest.fixture(scope="module")
def structure():
    return eqx.filter_eval_shape(network)


@jax.jit
def run(model, x, y):
    return jax.vmap(model.split)(x), jax.vmap(model.pinv)(y)


def same(a, b):
    leaves = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return jax.tree.structure(a) == jax.tree.structure(b) and all(np.array_equal(x, y) for x, y in leaves)


def state(arrays):
    return {name.removeprefix("state/"): arrays[name] for name in arrays if name.startswith("state/")}


# SPNN ---------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("mixing", ["cayley", "householder"])
def test_spnn_computes_what_it_computed_in_pytorch(mixing, golden):
    arrays = golden[mixing]
    model = io.load_spnn(DATA / f"spnn_8x8_{mixing}.npz", eqx.filter_eval_shape(network, mixing), prefix="state/")
    (y, z), back = run(model, arrays["x"], arrays["y_target"])
    assert np.allclose(y, arrays["y"], rtol=0, atol=1e-9)
    latents = [part for part in z if not isinstance(part, tuple)]
    for found, expected in zip(latents, (arrays["latent_1"], arrays["latent_3"]), strict=True):
        assert np.allclose(found, expected, rtol=0, atol=1e-9)
    assert np.allclose(back, arrays["pinv_y_target"], rtol=0, atol=1e-9)


def test_spnn_from_a_pytorch_file(golden):
    arrays, weights = golden["cayley"], io.load_torch(CAYLEY)
    expected = state(arrays)
    assert set(weights) == set(expected)
    assert all(np.array_equal(weights[name], expected[name].astype(np.float32)) for name in expected)
    for dtype in (jnp.float32, jnp.float64, jnp.bfloat16):
        model = io.load_spnn(CAYLEY, eqx.filter_eval_shape(network, dtype=dtype))
        assert {leaf.dtype for leaf in jax.tree.leaves(model)} == {np.dtype(dtype)}
    model = io.load_spnn(CAYLEY, eqx.filter_eval_shape(network, dtype=jnp.float32))
    (y, _), back = run(model, arrays["x"].astype(np.float32), arrays["y_target"].astype(np.float32))
    assert np.allclose(y, arrays["y"], rtol=1e-5, atol=1e-5)
    assert np.allclose(back, arrays["pinv_y_target"], rtol=1e-5, atol=1e-5)


def test_a_built_network_is_filled_and_left_as_it_was(structure):
    fresh = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), structure)
    before = jax.tree.map(np.asarray, fresh)
    assert same(io.load_spnn(CAYLEY, fresh), io.load_spnn(CAYLEY, structure))
    assert same(jax.tree.map(np.asarray, fresh), before)


def test_names_with_prefixes(structure):
    plain = io.load_spnn(CAYLEY, structure)
    weights = io.load_torch(CAYLEY)
    for prefix, before in [("", "module."), ("state_dict.", "state_dict."), ("net.", "net.module.")]:
        renamed = {before + name: jnp.asarray(array) for name, array in weights.items()}
        extra = {"optimizer.step": np.ones(())} if prefix else {}
        assert same(io.load_spnn(renamed | extra, structure, prefix=prefix), plain)
    with pytest.raises(ValueError, match=r'62 missing: (?s:.)*62 unknown: (?s:.)*Pass prefix="state_dict\."'):
        io.load_spnn({f"state_dict.{name}": array for name, array in weights.items()}, structure)


def test_everything_that_does_not_fit_is_in_one_error(structure):
    weights = io.load_torch(CAYLEY)
    first, second, third, fourth, *_ = weights
    del weights[first]
    weights |= {"extra": np.ones(3), second: np.ones((2, 3)), fourth: np.zeros(weights[fourth].shape, int)}
    weights[third] = np.full(weights[third].shape, np.nan)
    before = dict(weights)
    with pytest.raises(ValueError, match="does not fit the model, and nothing was loaded") as caught:
        io.load_spnn(weights, structure)
    for line in [
        f"1 missing: {first}",
        "1 unknown: extra",
        f"1 of another shape: {second}: (2, 3), expected (16,)",
        f"1 no floating-point numbers: {fourth}: int64",
        f"1 NaN or infinite: {third}",
    ]:
        assert line in str(caught.value)
    assert weights == before
    overflow = io.load_torch(CAYLEY) | {second: np.full(16, 1e300)}
    with pytest.raises(ValueError, match=f"1 NaN or infinite: {second}"):
        io.load_spnn(overflow, eqx.filter_eval_shape(network, dtype=jnp.float32))


@pytest.mark.parametrize(
    ("like", "match"),
    [
        (lambda: maps.prepare(network()), "the model is prepared"),
        (lambda: network("expm", eps=0.0), "has a MatrixExponential, for which no weights were published"),
        (lambda: network("householder"), r"2 missing: pinn\.blocks\.1\.mix\.V, pinn.*\n.*2 unknown: .*A_unconstrained"),
        (lambda: network(section=False), r"20 unknown: pinn\.blocks\.1\.r\.net\.0\.weight"),
        (lambda: maps.SurjectiveChain([maps.SurjectiveCoupling((3,), 1, shift=lambda z: z[:1])]), "has a function"),
    ],
    ids=["prepared", "other mixer", "householder", "no sections", "other nets"],
)
def test_models_that_do_not_fit(like, match):
    with pytest.raises(ValueError, match=match):
        io.load_spnn(CAYLEY, eqx.filter_eval_shape(like))


@pytest.mark.parametrize("size", [16, 32, 64, 256])
def test_every_parameter_of_the_published_networks_has_a_name(size):
    like = eqx.filter_eval_shape(maps.published_spnn, size, key=key())
    with pytest.raises(
        ValueError, match=rf"\n  {len(jax.tree.leaves(like))} missing: pinn\.blocks\.1\.mix\.A_unconstrained, "
    ):
        io.load_spnn({}, like)


# Deceptron ----------------------------------------------------------------------------------------------------------


def pair(dtype=jnp.float64, sizes=(64, 128, 64)):
    surrogate = maps.MLP((sizes[-1], sizes[0]), output_activation="leaky_relu", dtype=dtype, key=key(1))
    return learn.InversePair(surrogate, maps.MLP(sizes, dtype=dtype, key=key(2)))


@pytest.mark.parametrize("which", ["plus", "minus"])
def test_deceptron_computes_what_was_published(which):
    arrays = np.load(GOLDEN)
    forward, inverse = published_pair(arrays, which)
    loaded = io.load_deceptron(GOLDEN, pair(), prefix=f"{which}/")
    x, y = jnp.asarray(arrays["x_test"], jnp.float64), jnp.asarray(arrays["y_test_norm"], jnp.float64)
    assert np.allclose(jax.vmap(loaded.forward)(x), jax.vmap(forward)(x), rtol=0, atol=1e-12)
    assert np.allclose(jax.vmap(loaded.inverse)(y), jax.vmap(inverse)(y), rtol=0, atol=1e-12)
    single = io.load_deceptron(GOLDEN, eqx.filter_eval_shape(pair, jnp.float32), prefix=f"{which}/")
    assert np.array_equal(single.forward.fn.layers[0].weight, arrays[f"{which}/forward_map.linear.weight"])


def test_deceptrons_that_do_not_fit():
    with pytest.raises(ValueError, match=r'6 missing: .*\n.*unknown: y_mean, .*\n.*Pass prefix="plus/"'):
        io.load_deceptron(GOLDEN, pair())
    with pytest.raises(ValueError, match=r"5 of another shape: forward_map\.linear\.weight: \(64, 64\), expected \(8,"):
        io.load_deceptron(GOLDEN, pair(sizes=(8, 128, 8)), prefix="plus/")
    with pytest.raises(ValueError, match="expected an InversePair of two maps.MLP, the first of a single layer; got "):
        io.load_deceptron(GOLDEN, learn.InversePair(jnp.tanh, jnp.arctanh), prefix="plus/")


def test_damaged_files(tmp_path):
    path = tmp_path / "weights.npz"
    path.write_bytes(GOLDEN.read_bytes()[:1000])
    with pytest.raises(ValueError, match=r"weights.npz cannot be read as \.npz"):
        io.load_deceptron(path, pair())
    with pytest.raises(ValueError, match="cannot be read as a PyTorch state file"):
        io.load_deceptron(path.rename(tmp_path / "weights.pth"), pair())
    with pytest.raises(FileNotFoundError):
        io.load_deceptron(path, pair())
