"""U-nets: against a reference of SciPy's cross-correlations, published channels, how far they see, refusals."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import filled, key
from scipy import ndimage

from pinv_jax import maps


def convolve(layers, h, mode):
    """Channels first, with a ReLU after each."""
    for layer in layers:
        weight, bias = np.asarray(layer.weight), np.asarray(layer.bias)
        each = [sum(ndimage.correlate(h[i], w[i], mode=mode) for i in range(len(h))) for w in weight]
        h = np.maximum(np.stack(each) + bias.reshape(-1, *(1,) * (h.ndim - 1)), 0)
    return h


def halve(h):
    for axis in range(1, h.ndim):
        even, odd = (np.take(h, range(first, h.shape[axis], 2), axis) for first in (0, 1))
        h = (even + odd) / 2
    return h


def double(h):
    for axis in range(1, h.ndim):
        h = np.repeat(h, 2, axis)
    return h


@pytest.mark.parametrize(
    ("shape", "padding", "mode"),
    [((8,), "zeros", "constant"), ((4, 12), "circular", "wrap"), ((4, 4, 8), "zeros", "constant")],
)
def test_against_scipy(shape, padding, mode):
    build = lambda: maps.UNet(
        shape, (2, 3), widths=(3, 4, 5), num_convs=2, padding=padding, output_activation="relu", key=key()
    )
    net = filled(build, scale=1.0)
    x = np.random.default_rng(1).normal(size=(2, *shape))
    fine = convolve(net.down[0], x, mode)
    middle = convolve(net.down[1], halve(fine), mode)
    coarse = convolve(net.down[2], halve(middle), mode)
    back = convolve(net.up[0], np.concatenate([double(coarse), middle]), mode)
    back = convolve(net.up[1], np.concatenate([double(back), fine]), mode)
    got = jax.jit(lambda net, x: net(x))(net, jnp.asarray(x))
    np.testing.assert_allclose(got, convolve([net.last], back, mode), atol=1e-13)
    assert float(jnp.max(got)) > 0.01


def test_the_published_channels():
    net = eqx.filter_eval_shape(lambda: maps.UNet((64, 64), (3, 1), widths=(32, 64), num_convs=1, key=key()))
    sizes = [layer.weight.shape[:2] for layer in (net.down[0][0], net.down[1][0], net.up[0][0], net.last)]
    assert sizes == [(32, 3), (64, 32), (32, 96), (1, 32)]
    assert net.in_structure().shape == (3, 64, 64)


def test_one_level_is_a_plain_convolutional_network():
    net = filled(lambda: maps.UNet((5,), (1, 1), widths=(3,), num_convs=2, activation="tanh", key=key()))
    x = jnp.linspace(-1, 1, 5)[None]
    h = x.T
    for layer in net.down[0]:
        h = jnp.tanh(layer(h))
    np.testing.assert_allclose(net(x), net.last(h).T, atol=1e-15)


def test_layers_start_differently_and_every_one_matters():
    net = jax.jit(lambda: maps.UNet((4, 4), (1, 1), widths=(3, 3), num_convs=2, activation="tanh", key=key()))()
    assert not bool(jnp.any(net.down[1][0].weight == net.down[1][1].weight))
    x = jnp.asarray(np.random.default_rng(1).normal(size=(1, 4, 4)))
    gradient = jax.jit(jax.grad(lambda net: jnp.sum(net(x) ** 2)))(net)
    assert all(bool(jnp.any(leaf != 0)) for leaf in jax.tree.leaves(gradient))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"shape": (6, 4), "widths": (2, 2, 2)}, "cannot be halved 2 times .* divisible by 4"),
        ({"shape": (5,)}, "cannot be halved 1 times .* divisible by 2"),
        ({"shape": (2, 2, 2, 2)}, "1, 2 or 3 positive sides"),
        ({"widths": ()}, "at least one level"),
        ({"num_convs": 0}, "at least one convolution"),
        ({"widths": (2, 0)}, "at least one in each"),
        ({"channels": (0, 1)}, "at least one in each"),
        ({"padding": "reflect"}, "'zeros' or 'circular'"),
        ({"activation": "swishy"}, "Known are identity"),
    ],
)
def test_bad_input_is_refused(options, message):
    options = {"shape": (4, 4), "channels": (1, 1), "widths": (2, 2)} | options
    with pytest.raises(ValueError, match=message):
        maps.UNet(options.pop("shape"), options.pop("channels"), **options, key=key())
