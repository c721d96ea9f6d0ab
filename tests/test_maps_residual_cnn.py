"""Residual convolutional networks: published sizes, against SciPy's cross-correlations, initial weights, refusals."""

import math

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import filled, key
from scipy import ndimage

from pinv_jax import maps
from pinv_jax.maps import _residual_cnn


def leaky(h):
    return np.where(h > 0, h, 0.1 * h)


def correlate(layer, h, padding):
    """Of channels-first fields, as PyTorch defines a convolution."""
    mode = {"zeros": "constant", "circular": "wrap"}[padding]
    weight, bias = np.asarray(layer.weight), np.asarray(layer.bias)
    each = [sum(ndimage.correlate(h[i], w[i], mode=mode) for i in range(len(h))) for w in weight]
    return np.stack(each) + bias.reshape(-1, *(1,) * (h.ndim - 1))


def reference(net, h, padding):
    h = leaky(correlate(net.first, h, padding))
    for before, after in net.blocks:
        h = leaky(h + correlate(after, leaky(correlate(before, h, padding)), padding))
    return correlate(net.last, h, padding)


@pytest.mark.parametrize(
    ("shape", "width", "num_blocks", "count"), [((8, 8, 8), 12, 2, 16_261), ((32, 32), 48, 4, 167_185)]
)
def test_published_numbers_of_parameters(shape, width, num_blocks, count):
    net = eqx.filter_eval_shape(lambda: maps.ResidualCNN(shape, width=width, num_blocks=num_blocks, key=key()))
    assert sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(net)) == count
    assert net.in_structure().shape == shape


@pytest.mark.parametrize("padding", ["zeros", "circular"])
@pytest.mark.parametrize("shape", [(5,), (5, 4), (3, 4, 2)])
def test_a_scalar_field_against_scipy(shape, padding):
    net = filled(lambda: maps.ResidualCNN(shape, width=3, num_blocks=2, padding=padding, key=key()), scale=1.0)
    x = np.random.default_rng(1).normal(size=shape)
    expected = reference(net, x[None], padding)[0]
    np.testing.assert_allclose(jax.jit(lambda net, x: net(x))(net, jnp.asarray(x)), expected, atol=1e-13)


@pytest.mark.parametrize("padding", ["zeros", "circular"])
def test_channels_and_output_activation_against_scipy(padding):
    build = lambda: maps.ResidualCNN(
        (4, 3),
        channels=(2, 3),
        width=4,
        num_blocks=1,
        padding=padding,
        activation=lambda h: jnp.maximum(h, 0.1 * h),
        output_activation="tanh",
        key=key(),
    )
    net = filled(build)
    assert (net.in_structure().shape, net.out_structure().shape) == ((2, 4, 3), (3, 4, 3))
    x = np.random.default_rng(1).normal(size=(2, 4, 3))
    got = jax.jit(lambda net, x: net(x))(net, jnp.asarray(x))
    np.testing.assert_allclose(got, np.tanh(reference(net, x, padding)), atol=1e-13)


@pytest.mark.parametrize(("shape", "padding"), [((4,), "zeros"), ((3, 4), "circular"), ((2, 3, 2), "zeros")])
def test_both_ways_to_convolve_agree_in_value_and_gradient(shape, padding, monkeypatch):
    net = filled(lambda: maps.ResidualCNN(shape, width=3, num_blocks=1, padding=padding, key=key()), scale=1.0)
    x = jnp.asarray(np.random.default_rng(1).normal(size=shape))

    def value_and_gradients():  # a new function each time: nothing of the other way is in the cache
        return jax.jit(jax.value_and_grad(lambda net, x: jnp.sum(net(x) ** 2), argnums=(0, 1)))(net, x)

    unfolded = value_and_gradients()
    monkeypatch.setattr(_residual_cnn, "_unfolded", _residual_cnn._convolved)
    by_xla = value_and_gradients()
    for ours, theirs in zip(jax.tree.leaves(unfolded), jax.tree.leaves(by_xla), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-12)


def test_a_circular_network_commutes_with_shifts_and_one_with_zeros_does_not():
    x = jnp.asarray(np.random.default_rng(1).normal(size=(5, 4)))
    nets = {
        padding: filled(lambda p=padding: maps.ResidualCNN((5, 4), width=3, num_blocks=1, padding=p, key=key()))
        for padding in ("zeros", "circular")
    }

    def defect(net):
        shift = lambda field: jnp.roll(field, (1, 2), (0, 1))
        return float(jnp.max(jnp.abs(net(shift(x)) - shift(net(x)))))

    assert defect(nets["circular"]) < 1e-14
    assert defect(nets["zeros"]) > 1e-2


def test_initial_parameters_are_uniform_within_one_over_the_root_of_the_fan_in():
    net = jax.jit(lambda: maps.ResidualCNN((8, 8), width=40, num_blocks=1, key=key()))()
    for layer, fan_in in ((net.first, 9), (net.blocks[0][0], 360), (net.blocks[0][1], 360), (net.last, 360)):
        bound = fan_in**-0.5
        assert float(jnp.max(jnp.abs(layer.weight))) <= bound
        np.testing.assert_allclose(jnp.std(layer.weight), bound / 3**0.5, rtol=0.08)
        assert float(jnp.max(jnp.abs(layer.bias))) <= bound
        assert bool(jnp.all(layer.bias != 0))
    np.testing.assert_allclose(jnp.std(net.blocks[0][0].bias), 360**-0.5 / 3**0.5, rtol=0.35)
    assert not bool(jnp.any(net.blocks[0][0].weight == net.blocks[0][1].weight))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"shape": (2, 2, 2, 2)}, "1, 2 or 3 positive sides"),
        ({"shape": ()}, "1, 2 or 3 positive sides"),
        ({"shape": (4, 0)}, "1, 2 or 3 positive sides"),
        ({"width": 0}, "at least one"),
        ({"channels": (0, 2)}, "at least one"),
        ({"num_blocks": -1}, "num_blocks=-1, expected 0 or more"),
        ({"padding": "reflect"}, "'zeros' or 'circular'"),
        ({"activation": "swishy"}, "Known are identity"),
    ],
)
def test_bad_input_is_refused(options, message):
    options = {"shape": (4, 4), "width": 2, "num_blocks": 1} | options
    with pytest.raises(ValueError, match=message):
        maps.ResidualCNN(options.pop("shape"), **options, key=key())
