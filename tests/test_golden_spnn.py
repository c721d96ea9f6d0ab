"""Against the published implementation, run in PyTorch on a network with 3 x 8 x 8 inputs and 5 outputs.

Its Cayley mixers are orthogonal only to `eps = 1e-6`; with the same `eps` ours make the same error.
"""

from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import key

from pinv_jax import io, maps, solvers

DATA = Path(__file__).parent / "data"
DESIGN = maps.AdaptiveDesign(16)
STEPS = (maps.Unshuffle(2), maps.Block(4, DESIGN), maps.Unshuffle(4), maps.Block(5, DESIGN))
EPS = {"cayley": 1e-6, "householder": 1e-8}


def network(mixing, dtype=jnp.float64, eps=None):
    eps = EPS[mixing] if eps is None else eps
    return maps.spnn((3, 8, 8), STEPS, mixing=mixing, bounded="tanh", eps=eps, dtype=dtype, key=key())


def loaded(source, mixing, **kwargs):
    prefix = "state/" if source.suffix == ".npz" else ""
    return maps.prepare(io.load_spnn(source, eqx.filter_eval_shape(lambda: network(mixing, **kwargs)), prefix=prefix))


@jax.jit
def split(f, x):
    return jax.vmap(f.split)(x)


@jax.jit
def merge(f, y, z):
    return jax.vmap(f.merge)(y, z)


@jax.jit
def section(f, y):
    return jax.vmap(f.section)(y)


def everything(f, x, target):
    """What the golden files hold. Back-projection as published: completions of pseudo-inverses, computed by `f`."""
    y, z = split(f, x)
    pinv = {name: merge(f, value, section(f, value)) for name, value in (("pinv_y", y), ("pinv_y_target", target))}
    here, there = split(f, pinv["pinv_y"]), split(f, pinv["pinv_y_target"])
    found = {"y": y, "latent_1": z[2], "latent_3": z[5]} | pinv
    for step_size in (0.5, 1.0):
        moved = jax.tree.map(lambda a, b, c, s=step_size: a + s * (b - c), (y, z), there, here)
        found[f"nlbp_{step_size}"] = merge(f, *moved)
    return found


def ours(f, x, target, step_size):
    """Our back-projection, which reads the completion of a pseudo-inverse off its section."""
    return jax.vmap(lambda x, target: solvers.nlbp(f, x, target, step_size))(x, target)


@pytest.mark.parametrize("mixing", ["cayley", pytest.param("householder", marks=pytest.mark.slow)])
def test_the_published_implementation_to_nine_digits(mixing):
    source = DATA / f"spnn_8x8_{mixing}.npz"
    golden = np.load(source)
    for name, value in everything(loaded(source, mixing), golden["x"], golden["y_target"]).items():
        np.testing.assert_allclose(value, golden[name], rtol=0, atol=1e-9, err_msg=name)


@pytest.mark.slow
def test_the_torch_file_is_the_same_network():
    golden = np.load(DATA / "spnn_8x8_cayley.npz")
    f = loaded(DATA / "spnn_8x8_cayley.pth", "cayley", dtype=jnp.float32)
    assert eqx.tree_equal(f, loaded(DATA / "spnn_8x8_cayley.npz", "cayley", dtype=jnp.float32))
    y, z = split(f, jnp.asarray(golden["x"], jnp.float32))
    for value, name in ((y, "y"), (z[2], "latent_1"), (z[5], "latent_3")):
        assert value.dtype == jnp.float32
        np.testing.assert_allclose(value, golden[name], rtol=0, atol=1e-5, err_msg=name)


@pytest.mark.slow
def test_our_back_projection_differs_by_the_eps_of_the_mixers_alone():
    source = DATA / "spnn_8x8_cayley.npz"
    golden = np.load(source)
    x, target = jnp.asarray(golden["x"]), jnp.asarray(golden["y_target"])
    published, exact = (loaded(source, "cayley", eps=eps) for eps in (1e-6, 0.0))
    # The exact mixers in the place of the published ones, so that nothing is compiled again.
    mixers = lambda f: [f.layers[1].prepared, f.layers[4].prepared]
    exact = eqx.tree_at(mixers, published, mixers(exact))
    run = jax.jit(ours)
    for step_size in (0.5, 1.0):
        back = run(published, x, target, step_size)
        assert 1e-8 < np.max(np.abs(back - golden[f"nlbp_{step_size}"])) < 1e-5
        back = run(exact, x, target, step_size)
        np.testing.assert_allclose(back, everything(exact, x, target)[f"nlbp_{step_size}"], rtol=0, atol=1e-11)
        met = step_size * target + (1 - step_size) * split(exact, x)[0]
        np.testing.assert_allclose(split(exact, back)[0], met, rtol=0, atol=1e-11)
    assert 1e-7 < np.max(np.abs(split(published, golden["nlbp_1.0"])[0] - target)) < 1e-4
