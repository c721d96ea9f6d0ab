"""What runs through the contracts of its room: readable names and constructors, each taking a dtype."""

import functools
from pathlib import Path
from typing import Any, NamedTuple

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import pytest
from flax import linen as nn

from pinv_jax import Problem, maps, pde, solvers


def key(seed=0):
    return jax.random.key(seed)


def matrix(rows, columns, dtype, *, seed=0, rank=None):
    """A well-conditioned random matrix: singular values between 1 and 2, or zero beyond `rank`."""
    rng = np.random.default_rng(seed)
    size = min(rows, columns)
    u = np.linalg.qr(rng.normal(size=(rows, size)))[0]
    v = np.linalg.qr(rng.normal(size=(columns, size)))[0]
    values = np.linspace(2.0, 1.0, size)
    values[rank:] = values[rank:] if rank is None else 0.0
    return jnp.asarray((u * values) @ v.T, dtype)


def _random_mlp(dtype):
    """With biases, so that no test depends on their starting at zero."""
    net = maps.MLP((5, 7, 4), activation="tanh", dtype=dtype, key=key())
    return eqx.tree_at(lambda n: n.layers[0].bias, net, jnp.linspace(-1, 1, 7, dtype=dtype))


def _linear_skip(dtype):
    net = maps.LinearSkipMLP((5, 7, 4), activation="silu", dtype=dtype, key=key(1))
    return eqx.tree_at(lambda n: n.network.layers[-1].weight, net, matrix(4, 7, dtype, seed=3))


def _flax_module(dtype):
    net = nn.Sequential([nn.Dense(6, param_dtype=dtype), jnp.tanh, nn.Dense(4, param_dtype=dtype)])
    return maps.from_flax(net, jax.ShapeDtypeStruct((5,), dtype), key=key())


def _vector(size, dtype, low=-1.0, high=1.0):
    return jnp.linspace(low, high, size, dtype=dtype)


def randomised(model, key, scale=0.3):
    """`model` with normal noise on every float array: zero-initialised networks and mixers become generic."""
    rng = np.random.default_rng(np.asarray(jax.random.key_data(key)))  # numpy: nothing to compile for each shape

    def noisy(leaf):
        if not eqx.is_inexact_array(leaf):
            return leaf
        return leaf + jnp.asarray(scale * rng.normal(size=leaf.shape), leaf.dtype)

    return jax.tree.map(noisy, model)


def orthogonal(size, dtype, *, seed=0):
    """A random orthogonal matrix."""
    return jnp.asarray(np.linalg.qr(np.random.default_rng(seed).normal(size=(size, size)))[0], dtype)


def _two_layers(weights, x):
    w0, b0, w1, b1 = weights

    def layer(w, b, x):
        if x.ndim == 1:
            return w @ x + b
        x = jax.lax.conv_general_dilated(x[None], w, (1,) * (x.ndim - 1), "SAME")[0]
        return x + jnp.expand_dims(b, range(1, x.ndim))

    return layer(w1, b1, jnp.tanh(layer(w0, b0, x)))


def inner_net(num_in, num_out, dtype, *, num_dimensions=2, seed=0):
    """A small smooth network `(num_in, *space) -> (num_out, *space)`, with biases; a perceptron for no dimensions."""
    rng = np.random.default_rng(seed)
    shapes = [(6, num_in, *(3,) * num_dimensions), (6,), (num_out, 6, *(3,) * num_dimensions), (num_out,)]
    weights = [jnp.asarray(0.5 * rng.normal(size=s) / max(1, np.prod(s[1:])) ** 0.5, dtype) for s in shapes]
    return jax.tree_util.Partial(_two_layers, weights)


def coupling(shape, num_outputs, dtype, *, seed=0, **kwargs):
    """A coupling with three random nets."""
    lost, num_dimensions = shape[0] - num_outputs, len(shape) - 1
    net = functools.partial(inner_net, dtype=dtype, num_dimensions=num_dimensions)
    nets = {
        "scale": net(lost, num_outputs, seed=3 * seed),
        "shift": net(lost, num_outputs, seed=3 * seed + 1),
        "section": net(num_outputs, lost, seed=3 * seed + 2),
    }
    return maps.SurjectiveCoupling(shape, num_outputs, **nets | kwargs, dtype=dtype)


def funnel(dtype, gain, *, seed=0, section=True, widths=(12, 8, 4)):
    """A surjection of vectors, two mixed couplings; `gain` scales what is non-linear in it, from a linear selection."""
    rng = np.random.default_rng(seed)

    def net(num_in, num_out, gain):
        weights = [rng.normal(size=(16, num_in)) / num_in**0.5, rng.normal(size=16)]
        weights += [gain * rng.normal(size=(num_out, 16)) / 4, gain * rng.normal(size=num_out)]
        return jax.tree_util.Partial(_two_layers, [jnp.asarray(w, dtype) for w in weights])

    layers = []
    for index, (size, kept) in enumerate(zip(widths[:-1], widths[1:], strict=True)):
        lost = size - kept
        nets = {"scale": net(lost, kept, gain), "shift": net(lost, kept, gain), "section": net(kept, lost, 1.0)}
        nets["section"] = nets["section"] if section else None
        mixer = maps.FixedOrthogonal((size,), orthogonal(size, dtype, seed=10 * seed + index))
        layers += [mixer, maps.SurjectiveCoupling((size,), kept, **nets, dtype=dtype)]
    return maps.prepare(maps.SurjectiveChain(layers))


def surjective_network(dtype, **kwargs):
    """Three blocks, from 2 x 4 x 6 images to 4 numbers."""
    kwargs = {"scale_bound": 1.0} | kwargs
    return maps.SurjectiveChain(
        [
            maps.PixelUnshuffle((2, 4, 6), 2, dtype),
            maps.Cayley((8, 2, 3), dtype=dtype, key=key()),
            coupling((8, 2, 3), 5, dtype, seed=1, **kwargs),
            maps.Householder((5, 2, 3), 3, dtype=dtype, key=key(1)),
            coupling((5, 2, 3), 3, dtype, seed=2, **kwargs),
            maps.Flatten((3, 2, 3), dtype),
            maps.FixedOrthogonal((18,), orthogonal(18, dtype)),
            coupling((18,), 4, dtype, seed=3, **kwargs),
        ]
    )


def filled(build, seed=0, scale=0.5):
    """What `build()` returns, with weights of size `scale / sqrt(fan_in)` from numpy: nothing is compiled."""
    rng = np.random.default_rng(seed)

    def fill(leaf):
        size = scale / max(1, np.prod(leaf.shape[1:])) ** 0.5
        return jnp.asarray(size * rng.normal(size=leaf.shape), leaf.dtype)

    return jax.tree.map(fill, eqx.filter_eval_shape(build))


def spnn(shape, steps, dtype, *, seed=0, **kwargs):
    """A random surjective pseudo-invertible network; see `maps.spnn`."""
    return filled(lambda: maps.spnn(shape, steps, dtype=dtype, key=key(), **kwargs), seed)


def invertible(shape, dtype, *, seed=0, **kwargs):
    """A random invertible network of two couplings; see `maps.invertible_network`."""
    kwargs = {"num_layers": 2, "hidden": 6, "scale_bound": 1.0} | kwargs
    return filled(lambda: maps.invertible_network(shape, dtype=dtype, key=key(), **kwargs), seed, 1.0)


def neighbour_differences(image):
    """A linear function of a channel-first image, of full row rank."""
    return image[:, 1:] - 0.5 * image[:, :-1]


@functools.cache  # a fresh operator would compile anew
def matrix_free(dtype):
    structure = jax.ShapeDtypeStruct((2, 4), dtype)
    return maps.OperatorSurjection(lx.FunctionLinearOperator(neighbour_differences, structure))


@functools.cache
def fisheye(dtype):
    return maps.fisheye((1, 6, 7), (4, 4), 0.2, dtype=dtype)


SURJECTIONS = {
    "linear surjection, wide": lambda dtype: maps.LinearSurjection(matrix(3, 7, dtype)),
    "linear surjection, square": lambda dtype: maps.LinearSurjection(matrix(5, 5, dtype)),
    "leaky relu": lambda dtype: maps.LeakyReLU((6,), 0.1, dtype),
    "mirror leaky relu": lambda dtype: maps.MirrorLeakyReLU((2, 3), 0.2, dtype),
    "leaky tanh": lambda dtype: maps.LeakyTanh((6,), 0.1, dtype),
    "cubic sine": lambda dtype: maps.CubicSine((6,), dtype=dtype),
    "cubic sine, no cube, steep ripple": lambda dtype: maps.CubicSine((6,), 0.0, 0.32, 3.0, dtype),
    "affine": lambda dtype: maps.Affine(_vector(4, dtype, 0.5, 2.0), _vector(4, dtype)),
    "surjective chain": lambda dtype: maps.SurjectiveChain(
        [
            maps.LinearSurjection(matrix(5, 8, dtype)),
            maps.CubicSine((5,), dtype=dtype),
            maps.LinearSurjection(matrix(2, 5, dtype, seed=1)),
            maps.LeakyReLU((2,), 0.3, dtype),
        ]
    ),
    "surjective chain in a chain": lambda dtype: maps.SurjectiveChain(
        [
            maps.SurjectiveChain([maps.LinearSurjection(matrix(4, 6, dtype)), maps.LeakyTanh((4,), 0.3, dtype)]),
            maps.Affine(_vector(4, dtype, 1.0, 3.0), _vector(4, dtype)),
        ]
    ),
    "cayley": lambda dtype: randomised(maps.Cayley((4, 3, 2), dtype=dtype), key()),
    "cayley, patches, prepared": lambda dtype: maps.Cayley((2, 4, 6), patch=2, dtype=dtype, key=key()).prepare(),
    "matrix exponential": lambda dtype: maps.MatrixExponential((5,), dtype=dtype, key=key()),
    "householder": lambda dtype: maps.Householder((5, 3), 3, dtype=dtype, key=key()),
    "householder, patches": lambda dtype: maps.Householder((1, 4, 6), 2, patch=2, dtype=dtype, key=key()),
    "fixed orthogonal": lambda dtype: maps.FixedOrthogonal((4, 2), orthogonal(4, dtype)),
    "pixel unshuffle": lambda dtype: maps.PixelUnshuffle((2, 4, 6), 2, dtype),
    "flatten": lambda dtype: maps.Flatten((2, 1, 3), dtype),
    "coupling": lambda dtype: coupling((5, 4, 3), 2, dtype, scale_bound=1.0),
    "coupling, bounded": lambda dtype: coupling((5,), 3, dtype, bounded="tanh"),
    "coupling without nets": lambda dtype: maps.SurjectiveCoupling((5, 2), 3, dtype=dtype),
    "surjective network": surjective_network,
    "spnn": lambda dtype: spnn(
        (2, 4, 4),
        (
            maps.Unshuffle(2),
            maps.Block(3, maps.ConvDesign((4,))),
            maps.Unshuffle(2),
            maps.Block(4, maps.AdaptiveDesign(4)),
        ),
        dtype,
        mixing="cayley",
    ),
    "spnn by plan, image not square": lambda dtype: spnn(
        (1, 8, 4), maps.plan((1, 8, 4), (2, 4, 2), hidden=4), dtype, mixing="householder"
    ),
    "natural": lambda dtype: maps.Natural(
        maps.SurjectiveChain([coupling((7,), 5, dtype, seed=1), maps.Cayley((5,), dtype=dtype, key=key())])
    ),
    "invertible network": lambda dtype: invertible((5,), dtype),
    "invertible network of images, additive": lambda dtype: invertible(
        (3, 4, 2), dtype, kind="additive", centred=False
    ),
    "linear surjection of a centred network, prepared": lambda dtype: maps.prepare(
        maps.SurjectiveChain([invertible((6,), dtype, mixing="cayley"), maps.LinearSurjection(matrix(3, 6, dtype))])
    ),
    "residual block": lambda dtype: filled(lambda: maps.ResidualBlock((5,), (8,), dtype=dtype, key=key())),
    "residual block of images, prepared": lambda dtype: maps.ResidualBlock(
        (2, 4, 3), (5, 5), activation="tanh", dtype=dtype, key=key()
    ).prepare(),
    "gamma": lambda dtype: maps.Gamma((2, 3), dtype=dtype),
    "operator surjection": matrix_free,
    "null space": lambda dtype: maps.NullSpace(
        maps.LinearSurjection(matrix(4, 9, dtype)), _random_mlp(dtype), inner_net(4, 5, dtype, num_dimensions=0)
    ),
    "null space, matrix-free": lambda dtype: maps.NullSpace(matrix_free(dtype), lambda z: jnp.sin(z[:, 1:])),
    "expand": lambda dtype: maps.Expand(_random_mlp(dtype)),
    "expand, with an inverse": lambda dtype: maps.Expand(
        maps.LinearMap(matrix(6, 3, dtype)), inner_net(6, 3, dtype, num_dimensions=0)
    ),
    "stack on a trunk": lambda dtype: maps.Stack(
        [maps.LinearSurjection(matrix(2, 6, dtype)), matrix(3, 6, dtype, seed=1)], maps.LeakyTanh((2, 3), 0.3, dtype)
    ),
    "parallel on a trunk": lambda dtype: maps.Parallel(
        [coupling((4,), 2, dtype), maps.CubicSine((1, 3), dtype=dtype), maps.LinearSurjection(matrix(1, 3, dtype))],
        maps.Cayley((10,), dtype=dtype, key=key()),
    ),
    "downsample": lambda dtype: maps.Downsample((2, 4, 6), 2, dtype),
    "varying blur": lambda dtype: maps.VaryingBlur((2, 5, 6), 0.3, 0.7, dtype=dtype),
    "varying blur, coarser": lambda dtype: maps.VaryingBlur((2, 4, 6), 0.4, 1.0, factor=2, dtype=dtype),
    "fish-eye": fisheye,
    "block transform": lambda dtype: maps.BlockDCT((2, 4, 6), 2, dtype),
    "parallel beam": lambda dtype: maps.ParallelBeam((1, 5, 5), 3, 3, dtype=dtype),
    "beer-lambert": lambda dtype: maps.BeerLambert((6,), -0.5, 1.0, dtype=dtype),
}

LINEAR_MAPS = {
    "linear, wide": lambda dtype: maps.LinearMap(matrix(3, 7, dtype)),
    "linear, tall": lambda dtype: maps.LinearMap(matrix(7, 3, dtype)),
    "linear, rank deficient": lambda dtype: maps.LinearMap(matrix(6, 5, dtype, rank=3)),
    "linear, prepared": lambda dtype: maps.LinearMap(matrix(6, 5, dtype, rank=2)).prepare(),
    "linear, lsmr, wide": lambda dtype: maps.LinearMap(matrix(3, 7, dtype), method="lsmr"),
    "linear, lsmr, rank deficient": lambda dtype: maps.LinearMap(matrix(6, 5, dtype, rank=3), method="lsmr"),
    "linear, lsmr, from a function": lambda dtype: maps.LinearMap(
        lx.FunctionLinearOperator(lambda image: jnp.diff(image), jax.ShapeDtypeStruct((2, 3), dtype)), method="lsmr"
    ),
    "linear, tridiagonal": lambda dtype: maps.LinearMap(
        lx.TridiagonalLinearOperator(_vector(5, dtype, 2, 3), _vector(4, dtype), _vector(4, dtype, -0.5, 0.2))
    ),
    "linear, from a function": lambda dtype: maps.LinearMap(
        lx.FunctionLinearOperator(lambda image: jnp.sum(image, axis=0), jax.ShapeDtypeStruct((2, 3), dtype))
    ),
}

MAPS = (
    SURJECTIONS
    | LINEAR_MAPS
    | {
        "linear layer": lambda dtype: maps.Linear(4, 3, dtype=dtype, key=key()),
        "mlp": _random_mlp,
        "single layer with output activation": lambda dtype: maps.MLP(
            (5, 5), output_activation="leaky_relu", dtype=dtype, key=key(2)
        ),
        "linear skip mlp": _linear_skip,
        "residual cnn": lambda dtype: maps.ResidualCNN(
            (4, 3), width=3, num_blocks=1, padding="circular", activation="silu", dtype=dtype, key=key()
        ),
        "residual cnn, channels": lambda dtype: maps.ResidualCNN(
            (5,), channels=(2, 3), width=3, num_blocks=1, activation="tanh", dtype=dtype, key=key()
        ),
        "u-net": lambda dtype: maps.UNet(
            (4, 2), (2, 1), widths=(2, 3), num_convs=1, activation="tanh", dtype=dtype, key=key()
        ),
        "flax module": _flax_module,
        "chain of a network, a function and a sensor": lambda dtype: maps.Chain(
            [_random_mlp(dtype), jnp.sinh, maps.CubicSine((4,), dtype=dtype)]
        ),
        "normalised output": lambda dtype: maps.Normalised(
            _random_mlp(dtype), _vector(4, dtype), _vector(4, dtype, 0.5, 2.0)
        ),
        "normalised input and output": lambda dtype: maps.Normalised(
            _random_mlp(dtype),
            _vector(4, dtype),
            _vector(4, dtype, 0.5, 2.0),
            _vector(5, dtype),
            _vector(5, dtype, 1.0, 3.0),
        ),
        "gaussian blur": lambda dtype: maps.GaussianBlur((2, 5, 6), 0.9, 5, dtype=dtype),
        "gaussian blur, reflected": lambda dtype: maps.GaussianBlur((1, 6, 6), 1.5, padding="reflect", dtype=dtype),
        "blurring camera": lambda dtype: maps.blurring_camera((1, 6, 8), 0.8, window=5, dtype=dtype),
        "linear camera": lambda dtype: maps.linear_camera((1, 4, 4), 0.8, window=3, dtype=dtype),
        "joint": lambda dtype: maps.Joint([_random_mlp(dtype), maps.LinearSurjection(matrix(2, 5, dtype))]),
        "ravelled": lambda dtype: maps.Ravelled(
            lambda tree: {"sum": tree["a"] @ tree["b"], "square": tree["b"] ** 2},
            {"a": jax.ShapeDtypeStruct((2, 3), dtype), "b": jax.ShapeDtypeStruct((3,), dtype)},
        ),
    }
)

PDE_MAPS = {
    "heat, heun": lambda dtype: pde.Heat1D(16, dtype=dtype),
    "heat, euler": lambda dtype: pde.Heat1D(16, solver=diffrax.Euler(), dtype=dtype),
    "heat, tsit5": lambda dtype: pde.Heat1D(16, solver=diffrax.Tsit5(), dtype=dtype),
    "heat, euler with end points": lambda dtype: pde.EulerHeat1D(16, 30, dtype=dtype),
    "heat, spectral": lambda dtype: pde.SpectralHeat1D(16, dtype=dtype),
    "heat, observed": lambda dtype: pde.observed_heat_1d(16, dtype=dtype),
    "heat on a square": lambda dtype: pde.Heat2D(5, dtype=dtype),
    "heat in a cube": lambda dtype: pde.Heat3D(4, dtype=dtype),
    "heat on a square, observed": lambda dtype: pde.observed_heat_2d(5, dtype=dtype),
    "heat in a cube, observed": lambda dtype: pde.observed_heat_3d(3, dtype=dtype),
    "advection-diffusion": lambda dtype: pde.AdvectionDiffusion2D(6, peclet=10.0, dtype=dtype),
    "advection-diffusion, uniform wind": lambda dtype: pde.AdvectionDiffusion2D(
        5, peclet=5.0, final_time=0.1, velocity=(1.0, -0.5), solver=diffrax.Bosh3(), dtype=dtype
    ),
    "allen-cahn": lambda dtype: pde.AllenCahn2D(8, 0.5, 4, epsilon=0.1, dtype=dtype),
    "allen-cahn, odd grid": lambda dtype: pde.AllenCahn2D(7, 0.5, 4, epsilon=0.1, dtype=dtype),
    "allen-cahn, observed": lambda dtype: pde.observed_allen_cahn_2d(13, dtype=dtype),
    "navier-stokes": lambda dtype: pde.NavierStokes2D(8, 5e-3, dtype=dtype),
    "navier-stokes, odd grid, no viscosity": lambda dtype: pde.NavierStokes2D(7, 0.0, dtype=dtype),
    "oscillator": lambda dtype: pde.DampedOscillator(6, final_time=0.5, dtype=dtype),
    "darcy": lambda dtype: pde.Darcy2D(6, 4, dtype=dtype),
    "darcy, transient": lambda dtype: pde.TransientDarcy2D(6, 4, 0.05, 3, dtype=dtype),
}


VARIANTS = {
    "darcy, transient",
    "u-net",
    "allen-cahn, observed",
    "heat in a cube",
    "linear surjection, square",
    "surjective chain in a chain",
    "cayley, patches, prepared",
    "householder, patches",
    "coupling, bounded",
    "surjective network",
    "spnn by plan, image not square",
    "invertible network of images, additive",
    "linear surjection of a centred network, prepared",
    "residual block of images, prepared",
    "null space, matrix-free",
    "expand, with an inverse",
    "parallel on a trunk",
    "varying blur, coarser",
    "fish-eye",
    "parallel beam",
    "gaussian blur, reflected",
    "linear camera",
    "heat, tsit5",
    "heat, observed",
    "heat on a square",
    "heat in a cube, observed",
    "advection-diffusion, uniform wind",
    "allen-cahn, odd grid",
    "navier-stokes, odd grid, no viscosity",
    "gauss-newton, cg",
    "levenberg-marquardt, svd",
    "levenberg-marquardt, fixed",
    "d-ipg, jvp",
}
"""Entries that vary another one: their contracts run with the slow tests."""


def names(cases, argument="name"):
    """Runs a test for every entry, by name."""
    each = [pytest.param(name, marks=pytest.mark.slow) if name in VARIANTS else name for name in cases]
    return pytest.mark.parametrize(argument, each)


DTYPES = pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64], ids=["float32", "float64"])


def draw(structure, seed=0):
    """Normal numbers; from numpy: nothing to compile for each shape."""
    return jnp.asarray(np.random.default_rng(seed).normal(size=structure.shape), structure.dtype)


# Solvers and problems ------------------------------------------------------------------------------------------------

GOLDEN = Path(__file__).parent / "data" / "deceptron_heat1d.npz"


def published_pair(golden, which, dtype=jnp.float64):
    """The published forward surrogate and reverse network, `which` in {"plus", "minus"} (with and without JCP)."""

    def load(name):
        return jnp.asarray(golden[f"{which}/{name}"], dtype)

    def leaky(z):
        return jnp.where(z >= 0, z, 0.1 * z)

    w, b = load("forward_map.linear.weight"), load("forward_map.linear.bias")
    v0, c0 = load("reverse_map.network.0.weight"), load("reverse_map.network.0.bias")
    v1, c1 = load("reverse_map.network.2.weight"), load("reverse_map.network.2.bias")
    return lambda x: leaky(w @ x + b), lambda y: v1 @ leaky(v0 @ y + c0) + c1


class Case(NamedTuple):
    """A problem with a known solution: `data = forward(x_true)`, and a local inverse of the kind D-IPG learns."""

    forward: Any
    x_true: Any
    x0: Any
    inverse: Any

    def problem(self, data=None, **kwargs):
        return Problem(self.forward, self.forward(self.x_true) if data is None else data, **kwargs)


def local_inverse(forward, x_ref):
    """The linear inverse at `x_ref`: what training with JCP aims at."""
    y_ref = forward(x_ref)
    jac_pinv = jnp.linalg.pinv(jax.jacfwd(forward)(x_ref))
    return lambda y: x_ref + jac_pinv @ (y - y_ref)


def _case(forward, x_true, x0, dtype):
    x_true, x0 = jnp.asarray(x_true, dtype), jnp.asarray(x0, dtype)
    return Case(forward, x_true, x0, local_inverse(forward, x_true + 0.05))


def _linear_problem(dtype):
    a = matrix(6, 6, dtype, seed=4)
    return _case(lambda x: a @ x, np.linspace(-1, 1, 6), np.zeros(6), dtype)


def _curve_fit(dtype):
    t = _vector(9, dtype, 0.0, 2.0)
    return _case(lambda p: p[0] * jnp.exp(-p[1] * t) + p[2], [1.0, 0.8, 0.3], [0.7, 1.1, 0.1], dtype)


def _wide(dtype):
    a = matrix(3, 6, dtype, seed=5)
    return _case(lambda x: jnp.tanh(0.5 * (a @ x)), np.linspace(-0.5, 0.5, 6), np.zeros(6), dtype)


def _rank_deficient(dtype):
    a = matrix(6, 5, dtype, rank=3, seed=6)
    return _case(lambda x: a @ x + 0.1 * (a @ x) ** 3, np.linspace(-0.5, 0.5, 5), np.zeros(5), dtype)


def _rosenbrock(dtype):
    return _case(lambda x: jnp.stack([10 * (x[1] - x[0] ** 2), 1 - x[0]]), [1.0, 1.0], [0.6, 0.5], dtype)


PROBLEMS = {
    "linear": _linear_problem,
    "curve fit": _curve_fit,
    "wide": _wide,
    "rank deficient": _rank_deficient,
    "rosenbrock": _rosenbrock,
}

SOLVERS = {
    "gradient descent": lambda g, **kw: solvers.GradientDescent(**kw),
    "lbfgs": lambda g, **kw: solvers.LBFGS(**kw),
    "gauss-newton": lambda g, **kw: solvers.GaussNewton(**kw),
    "gauss-newton, cg": lambda g, **kw: solvers.GaussNewton(solvers.ConjugateGradients(), **kw),
    "levenberg-marquardt": lambda g, **kw: solvers.LevenbergMarquardt(**kw),
    "levenberg-marquardt, cg": lambda g, **kw: solvers.LevenbergMarquardt(solvers.ConjugateGradients(), **kw),
    "levenberg-marquardt, svd": lambda g, **kw: solvers.LevenbergMarquardt(solvers.SVD(), **kw),
    "levenberg-marquardt, fixed": lambda g, **kw: solvers.LevenbergMarquardt(damping=1e-3, **kw),
    "d-ipg, defect": lambda g, **kw: solvers.DIPG(g, **kw),
    "d-ipg, jvp": lambda g, **kw: solvers.DIPG(g, proposal="jvp", **kw),
    "d-ipg, paper": lambda g, **kw: solvers.DIPG(g, proposal="paper", relaxation=0.4, **kw),
    "safeguarded": lambda g, **kw: solvers.Safeguarded(g, **kw),
}
