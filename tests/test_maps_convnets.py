"""Inner nets: against reference convolutions, their shapes, their names in PyTorch, and what does not fit."""

import math

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import filled, key

from pinv_jax import maps
from pinv_jax.maps._convnets import ConvLayer, UpsamplingLayer


def structure_of(build, *args, **kwargs):
    """What `build` returns, with nothing allocated."""
    return eqx.filter_eval_shape(lambda: build(*args, key=key(), **kwargs))


def reference(weight, x, stride, margin):
    num_dims = x.ndim - 1
    return jax.lax.conv_general_dilated(x[None], weight, (stride,) * num_dims, ((margin, margin),) * num_dims)[0]


@pytest.mark.parametrize(("space", "stride"), [((), 1), ((6,), 2), ((6, 4), 1), ((2, 4, 2), 2), ((18, 16), 1)])
@pytest.mark.parametrize("window", [1, 3])
def test_a_convolution_is_that_of_xla(space, stride, window):
    """Also where it is computed another way, which depends on the number of positions."""
    shapes = filled(lambda: ConvLayer(3, 4, num_dims=len(space), window=window, stride=stride, key=key()))
    x = jnp.asarray(np.random.default_rng(0).normal(size=(3, *space)))
    expected = shapes.weight @ x if not space else reference(shapes.weight, x, stride, window // 2)
    expected += shapes.bias.reshape(-1, *(1,) * len(space))
    np.testing.assert_allclose(jax.jit(lambda layer, x: layer(x))(shapes, x), expected, atol=1e-13)


@pytest.mark.parametrize("space", [(3,), (2, 3), (2, 1, 3)])
def test_upsampling_is_the_transpose_of_a_convolution_with_stride_two(space):
    layer = filled(lambda: UpsamplingLayer(3, 2, num_dims=len(space), key=key()))
    x = jnp.asarray(np.random.default_rng(0).normal(size=(3, *space)))
    larger = jnp.zeros((2, *(2 * side for side in space)))

    @jax.jit
    def both(layer, x):
        pull = jax.vjp(lambda v: reference(layer.weight, v, 2, 1), larger)[1]
        return layer(x), pull(x)[0]

    got, expected = both(layer, x)
    np.testing.assert_allclose(got, expected + layer.bias.reshape(-1, *(1,) * len(space)), atol=1e-13)


def test_a_net_is_its_layers_with_relu_between_and_starts_at_zero():
    net = jax.jit(lambda: maps.ConvNet((8, 2, 3), 5, hidden=(4, 3), strides=(1, 2, 1), shuffle=2, key=key()))()
    x = jnp.asarray(np.random.default_rng(0).normal(size=(8, 2, 3)))
    assert float(jnp.max(jnp.abs(net.layers[1].weight))) > 0.1
    np.testing.assert_array_equal(net.layers[2].weight, np.zeros((5, 3, 3, 3)))
    assert all(not np.any(layer.bias) for layer in net.layers)
    assert [layer.weight.shape for layer in net.layers] == [(4, 2, 3, 3), (3, 4, 3, 3), (5, 3, 3, 3)]
    net = filled(lambda: net)
    u = maps.PixelUnshuffle((2, 4, 6), 2).merge(x, ())

    @jax.jit
    def both(net, x, u):
        first, second, third = net.layers
        return net(x), third(jnp.maximum(second(jnp.maximum(first(u), 0)), 0))

    np.testing.assert_allclose(*both(net, x, u), atol=1e-14)


def test_weights_keep_the_size_of_what_passes():
    x = jnp.asarray(np.random.default_rng(0).normal(size=(64, 8, 8)))

    @jax.jit
    def mean_squares(x):
        net = maps.ConvNet((64, 8, 8), 64, hidden=(64,) * 4, strides=(1, 2, 1, 0.5, 1), key=key())
        sizes = []
        for layer in net.layers[:-1]:
            x = jnp.maximum(layer(x), 0)
            sizes.append(jnp.mean(x**2))
        return sizes

    for size in mean_squares(x):
        assert 0.4 < size < 1.6  # a little is lost at the border


@pytest.mark.parametrize("shape", [(5,), (5, 1, 1), (5, 4), (5, 4, 6), (5, 3, 4), (2, 2, 4, 2)])
def test_the_adaptive_design_fits_every_shape(shape):
    net = structure_of(maps.AdaptiveDesign(7), shape, 3)
    assert net.in_structure() == jax.ShapeDtypeStruct(shape, jnp.float64)
    out = eqx.filter_eval_shape(lambda net, x: net(x), net, net.in_structure())
    assert out.shape == (3, *shape[1:])
    window = net.layers[0].weight.shape[2:]
    assert window == ((1,) if math.prod(shape[1:]) == 1 else (3,)) * (len(shape) - 1)
    assert {7, 14} == {layer.bias.size for layer in net.layers[:-1]}


@pytest.mark.parametrize(
    ("shape", "options", "match"),
    [
        ((4, 6, 5), {"hidden": (3, 3), "strides": (1, 2, 0.5)}, r"Layer 1 of .* halves sides \(6, 5\), which are not"),
        ((4, 6, 6), {"hidden": (3,), "strides": (2, 1)}, r"given, \(6, 6\), but its strides .* lead to \(3, 3\)"),
        ((4, 6, 6), {"hidden": (3,), "shuffle": 2}, r"shuffle=2 lead to \(12, 12\)"),
        ((5, 6, 6), {"hidden": (3,), "shuffle": 2}, r"channels a multiple of 4, got \(5, 6, 6\)"),
        ((4, 6), {"hidden": (3,), "shuffle": 2}, r"expected x of shape \(channels, height, width\)"),
        ((4, 6, 6), {"hidden": (3,), "strides": (1,)}, r"one stride per layer, .* got window=3 and strides=\(1,\)"),
        ((4, 6, 6), {"hidden": (3,), "strides": (3, 1)}, "each 0.5, 1 or 2"),
        ((4, 6, 6), {"hidden": (3,), "window": 2}, "an odd window"),
    ],
)
def test_nets_that_do_not_fit(shape, options, match):
    with pytest.raises(ValueError, match=match):
        maps.ConvNet(shape, 2, **options, key=key())


def test_names_of_parameters_in_a_torch_sequence():
    plain = maps.ConvNet((2, 4, 4), 3, hidden=(4,), key=key())
    names = ["0.weight", "0.bias", "2.weight", "2.bias"]
    assert [name for _, name in maps.torch_names(plain)] == names
    assert maps.torch_names(maps.store(plain)) == maps.torch_names(plain)
    shuffled = structure_of(maps.published_spnn, 32).layers[2].scale_net.fn
    assert [name for _, name in maps.torch_names(shuffled)][:4] == ["1.weight", "1.bias", "3.weight", "3.bias"]
    (layer, attribute), _ = maps.torch_names(shuffled)[2]
    assert getattr(shuffled.layers[layer], attribute).shape == (128, 32, 3, 3)
