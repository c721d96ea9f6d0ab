"""What runs through the contracts of its room: readable names and constructors, each taking a dtype."""

from pathlib import Path
from typing import Any, NamedTuple

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np

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


def _vector(size, dtype, low=-1.0, high=1.0):
    return jnp.linspace(low, high, size, dtype=dtype)


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
}

LINEAR_MAPS = {
    "linear, wide": lambda dtype: maps.LinearMap(matrix(3, 7, dtype)),
    "linear, tall": lambda dtype: maps.LinearMap(matrix(7, 3, dtype)),
    "linear, rank deficient": lambda dtype: maps.LinearMap(matrix(6, 5, dtype, rank=3)),
    "linear, prepared": lambda dtype: maps.LinearMap(matrix(6, 5, dtype, rank=2)).prepare(),
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
}


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
