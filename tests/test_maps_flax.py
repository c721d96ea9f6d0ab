"""Flax modules as maps: values and gradients are flax's own, training, solving, files, refusals."""

import subprocess
import sys

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from cases import key, matrix
from flax import linen as nn
from flax import nnx

import pinv_jax as pj
from pinv_jax import io, learn, maps, solvers


def structure(*shape, dtype=jnp.float64):
    return jax.ShapeDtypeStruct(shape, dtype)


class Perceptron(nn.Module):
    sizes: tuple[int, ...] = (8, 3)

    @nn.compact
    def __call__(self, x):
        for size in self.sizes[:-1]:
            x = nn.tanh(nn.Dense(size, param_dtype=x.dtype)(x))
        return nn.Dense(self.sizes[-1], param_dtype=x.dtype)(x)


class Scaled(nn.Module):
    """With running averages, a dropout that is off, and a second method."""

    average: bool = True
    drop: bool = False

    def setup(self):
        self.dense = nn.Dense(4, param_dtype=jnp.float64)
        self.norm = nn.BatchNorm(use_running_average=self.average, param_dtype=jnp.float64)
        self.dropout = nn.Dropout(0.5, deterministic=not self.drop)

    def __call__(self, x):
        return self.dropout(self.norm(self.dense(x)))

    def pair(self, x):
        return self.dense(x), x

    def twice(self, x):
        return 2 * self.dense(x)


class Nnx(nnx.Module):
    """With all of that in nnx."""

    def __init__(self, num_in, num_out, *, rngs):
        options = {"param_dtype": jnp.float64, "rngs": rngs}
        self.layers = nnx.List([nnx.Linear(num_in, 8, **options), nnx.Linear(8, num_out, **options)])
        self.norm = nnx.BatchNorm(8, **options)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)
        self.activation = jnp.tanh

    def __call__(self, x):
        return self.layers[1](self.dropout(self.activation(self.norm(self.layers[0](x)))))

    def hidden(self, x):
        return self.layers[0](x)


class Counter(nnx.Module):
    def __init__(self):
        self.calls = nnx.Variable(jnp.zeros(()))

    def __call__(self, x):
        self.calls[...] += 1.0
        return x * self.calls[...]


def linen_map(seed=0):
    return maps.from_flax(Perceptron(), structure(3), key=key(seed))


def nnx_map(seed=0):
    return maps.from_flax(Nnx(3, 3, rngs=nnx.Rngs(seed)), structure(3))


BOTH = pytest.mark.parametrize("build", [linen_map, nnx_map], ids=["linen", "nnx"])
X = jnp.array([0.3, -1.2, 0.7])


def loss(net, x):
    return jnp.sum(net(x) ** 2)


def test_linen_value_and_gradient_are_those_of_flax():
    module = Perceptron()
    variables = module.init(key(), X)
    for net in (linen_map(), maps.from_flax(module, X, variables=variables)):
        np.testing.assert_allclose(net(X), module.apply(variables, X), rtol=1e-15)
        expected = jax.grad(lambda v: loss(lambda x: module.apply(v, x), X))(variables)["params"]
        gradient = jax.grad(loss)(net, X).params
        assert all(bool(jnp.any(leaf != 0)) for leaf in jax.tree.leaves(gradient))
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-13), gradient, expected)


def test_nnx_value_and_gradient_are_those_of_flax():
    module = Nnx(3, 2, rngs=nnx.Rngs(0))
    net = maps.from_flax(module, structure(3))
    assert not module.dropout.deterministic  # the module of the user is as it was
    module.eval()
    np.testing.assert_allclose(net(X), module(X), rtol=1e-15)
    expected = nnx.to_pure_dict(nnx.grad(loss)(module, X))
    gradient = jax.grad(loss)(net, X)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-13), gradient.params, expected)
    module.layers[0].kernel[...] = jnp.zeros((3, 8))
    assert bool(jnp.any(net.params["layers"][0]["kernel"] != 0))  # a copy, not a view


def test_running_averages_are_data():
    variables = Scaled().init(key(), X)
    variables["batch_stats"] = {"norm": {"mean": jnp.arange(4.0), "var": jnp.full(4, 4.0)}}
    net = maps.from_flax(Scaled(), structure(3), variables=variables)
    np.testing.assert_allclose(
        net(X), (net.params["dense"]["bias"] + X @ net.params["dense"]["kernel"] - jnp.arange(4.0)) / (4 + 1e-5) ** 0.5
    )
    gradient = jax.grad(loss)(net, X)
    assert all(not bool(jnp.any(leaf)) for leaf in jax.tree.leaves(gradient.state))
    assert all(bool(jnp.any(leaf)) for leaf in jax.tree.leaves(gradient.params))
    other = maps.from_flax(Scaled(), structure(3), variables=variables, method="twice")
    np.testing.assert_allclose(other(X), 2 * (net.params["dense"]["bias"] + X @ net.params["dense"]["kernel"]))


def test_methods_of_nnx_modules_and_batched_modules():
    net = maps.from_flax(Nnx(3, 2, rngs=nnx.Rngs(0)), structure(3), method="hidden")
    assert net.out_structure().shape == (8,)
    single = nn.Conv(2, (3, 3), param_dtype=jnp.float64)
    net = maps.from_flax(single, structure(4, 5, 1), key=key(), batched=True)
    xs = jnp.asarray(np.random.default_rng(0).normal(size=(3, 4, 5, 1)))
    assert net.out_structure().shape == (4, 5, 2)
    np.testing.assert_allclose(jax.vmap(net)(xs), single.apply({"params": net.params}, xs), atol=1e-14)


@BOTH
def test_derivatives_and_transformations(build):
    net, v, w = build(), jnp.array([1.0, 0.5, -2.0]), jnp.array([0.2, -0.4, 1.0])
    traces = []

    @jax.jit
    def everything(net, x):
        traces.append(x)
        y, forward = jax.jvp(net, (x,), (v,))
        return y, forward, jax.vjp(net, x)[1](w)[0], jax.vmap(net)(jnp.stack([x, 2 * x]))

    y, forward, backward, both = everything(net, X)
    np.testing.assert_allclose(w @ forward, backward @ v, rtol=1e-12)
    np.testing.assert_allclose(both, jnp.stack([y, net(2 * X)]), rtol=1e-12)
    everything(jax.tree.map(lambda leaf: leaf + 0, build(1)), X + 1)  # equal modules built apart
    assert len(traces) == 1
    assert all(eqx.is_inexact_array(leaf) for leaf in jax.tree.leaves(net))


def test_a_module_with_a_list_inside_is_not_hashable_for_flax_and_works():
    net = maps.from_flax(nn.Sequential([Perceptron((4,)), nn.tanh]), structure(3), key=key())
    np.testing.assert_allclose(jax.jit(lambda net, x: net(x))(net, X), net(X), rtol=1e-12)


@pytest.mark.slow
@BOTH
def test_training_a_learned_inverse_and_solving_with_it(build):
    a = matrix(3, 3, jnp.float64)

    def forward(x):
        return jnp.tanh(0.3 * (a @ x))

    def draw(key):
        x = 0.5 * jax.random.normal(key, (3,))
        return x, forward(x)

    pair = learn.InversePair(forward, build())
    stage = learn.Stage(
        terms={"reconstruction": learn.Term(learn.reconstruction)},
        trainable=lambda pair: maps.unstore(pair.inverse).params,
        num_steps=400,
        batch_size=32,
        optimiser=optax.adam(1e-2),
    )
    trained, history = learn.fit(pair, {"inverse": stage}, draw, key=key())
    losses = history["inverse"].loss
    assert np.mean(losses[-20:]) < 0.05 * np.mean(losses[:5])
    before, after = (maps.unstore(each.inverse) for each in (pair, trained))
    jax.tree.map(np.testing.assert_array_equal, before.state, after.state)

    x_true = jnp.array([0.4, -0.3, 0.2])
    problem = pj.Problem(forward, forward(x_true))
    solution = pj.solve(problem, solvers.DIPG(trained.inverse, atol=1e-9), jnp.zeros(3))
    assert bool(solution.result == pj.RESULTS.successful)
    np.testing.assert_allclose(solution.value, x_true, atol=1e-7)


@BOTH
def test_files(build, tmp_path):
    path = tmp_path / "net.npz"
    net = build()
    io.save_model(path, net)
    for like in (build(1), eqx.filter_eval_shape(build, 1)):
        again = io.load_model(path, like=like)
        np.testing.assert_array_equal(again(X), net(X))
    other = maps.from_flax(Perceptron((7, 3)), structure(3), key=key())
    with pytest.raises(ValueError, match="does not fit"):
        io.load_model(path, like=other)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: maps.from_flax(jnp.tanh, structure(3)), "expected an instance of flax.linen.Module or flax.nnx"),
        (lambda: maps.from_flax(Perceptron, structure(3)), "expected an instance"),
        (lambda: maps.from_flax(Perceptron(), (3,)), "in_structure=.*ShapeDtypeStruct"),
        (lambda: maps.from_flax(Perceptron(), structure(3, dtype=jnp.int32), key=key()), "float dtype of one example"),
        (lambda: maps.from_flax(Perceptron(), structure(3)), "either key, to initialise it, or variables"),
        (lambda: maps.from_flax(Nnx(3, 3, rngs=nnx.Rngs(0)), structure(3), key=key()), "leave out key"),
        (
            lambda: maps.from_flax(Perceptron(), structure(4), variables=Perceptron().init(key(), jnp.ones(3))),
            r"x of shape \(4,\) and dtype float64, a single example; batched=True .*\(3, 8\)",
        ),
        (lambda: maps.from_flax(Nnx(3, 3, rngs=nnx.Rngs(0)), structure(5)), r"x of shape \(5,\) .*\(3,\)"),
        (
            lambda: maps.from_flax(nn.Conv(2, (3, 3), param_dtype=jnp.float64), structure(4), key=key(), batched=True),
            r"x of shape \(1, 4\) .* a batch of one",
        ),
        (
            lambda: maps.from_flax(Perceptron().bind(Perceptron().init(key(), X)), structure(3), key=key()),
            r"module.unbind\(\)",
        ),
        (lambda: maps.from_flax(Scaled(drop=True), structure(3), key=key()), 'PRNG for "dropout".* deterministic=True'),
        (lambda: maps.from_flax(Scaled(average=False), structure(3), key=key()), "use_running_average=True"),
        (lambda: maps.from_flax(Scaled(), structure(3), key=key(), method="pair"), r"\(4,\), \(3,\).* one array"),
        (lambda: maps.from_flax(Scaled(), structure(3), key=key(), method="thrice"), "thrice"),
        (lambda: maps.from_flax(Counter(), structure(3)), "changes its variables or draws random numbers"),
        (
            lambda: maps.from_flax(nn.Dense(2), structure(3), key=key()),
            "dtype float32, and x is float64. Make them equal: param_dtype",
        ),
        (lambda: maps.from_flax(Perceptron(), structure(3, dtype=jnp.float16), variables={}), "x of shape"),
    ],
)
def test_bad_input_is_refused(build, message):
    with pytest.raises(ValueError, match=message):
        build()


def test_float32_stays_float32():
    net = maps.from_flax(Perceptron(), structure(3, dtype=jnp.float32), key=key())
    assert net.out_structure().dtype == jnp.float32
    assert net(X.astype(jnp.float32)).dtype == jnp.float32


def test_importing_the_library_does_not_import_flax():
    code = "import sys, pinv_jax; from pinv_jax import maps; maps.from_flax; sys.exit('flax' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
