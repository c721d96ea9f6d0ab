"""Proximal activations: the identities of the Bregman penalty, proximal maps against search, domains, recognition."""

import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import key

from pinv_jax import lifted, maps

ENTRYWISE = {
    "identity": lifted.Identity(),
    "relu": lifted.ReLU(),
    "leaky relu": lifted.LeakyReLU(0.1),
    "soft threshold": lifted.SoftThreshold(0.5),
    "hard tanh": lifted.Clip(),
    "relu6": lifted.Clip(0, 6),
    "tanh": lifted.Tanh(),
    "sigmoid": lifted.Sigmoid(),
    "elu": lifted.ELU(),
    "elu, small": lifted.ELU(0.3),
}
VECTOR = {
    "softmax": lifted.Softmax(),
    "block soft threshold": lifted.BlockSoftThreshold(0.7),
    "ball": lifted.BallProjection(1.5),
    "half space": lifted.Projection(lambda z: z - jnp.maximum(jnp.mean(z), 0)),
}
VALUED = ENTRYWISE | VECTOR
ALL = VALUED | {"softplus": lifted.Softplus()}
NUM, SIZE = 100, 5


VARIANTS = set(ALL) - {"relu", "tanh"}
"""What compiles much runs for these entries with the slow tests."""


def names(cases, variants=frozenset()):
    each = [pytest.param(name, marks=pytest.mark.slow) if name in variants else name for name in cases]
    return pytest.mark.parametrize("name", each)


@functools.cache
def draws(name, dtype=jnp.float64):
    """Targets `y` in the domain, preactivations `z`, and points `v`."""
    keys = jax.random.split(key(3), 3)
    y = jax.vmap(ALL[name])(2 * jax.random.normal(keys[0], (NUM, SIZE), dtype))
    z, v = (3 * jax.random.normal(k, (NUM, SIZE), dtype) for k in keys[1:])
    return y, z, v


def psi(activation, u):
    return activation.potential(u) - 0.5 * jnp.sum(u**2)


@jax.jit
def identities(activation, y, z):
    def one(y, z):
        p = activation(z)
        gap, slope = jax.value_and_grad(activation.gap, 1)(y, z)
        envelope = lambda u: 0.5 * jnp.sum((u - z) ** 2) + psi(activation, u)
        bregman = psi(activation, y) - psi(activation, p) - jnp.sum((z - p) * (y - p))
        h = 1e-5
        moved = jax.vmap(lambda e: activation.gap(y, z + h * e) - activation.gap(y, z - h * e))(jnp.eye(SIZE))
        return {
            "definition": gap - (activation.potential(y) + activation.conjugate(z) - jnp.sum(y * z)),
            "property 1": gap - (0.5 * jnp.sum((y - p) ** 2) + bregman),
            "property 3": gap - (envelope(y) - envelope(p)),
            "slope": slope - (p - y),
            "differences": slope - moved / (2 * h),
            "below": jnp.minimum(gap - 0.5 * jnp.sum((y - p) ** 2), 0),
            "at the activation": activation.gap(p, z),
            "gradient of the conjugate": jax.grad(activation.conjugate)(z) - p,
            "preimage": activation(activation.preimage(y)) - y,
        }

    return jax.tree.map(lambda e: jnp.max(jnp.abs(e)), jax.vmap(one)(y, z))


@names(VALUED, {"elu, small", "relu6", "ball", "half space"})
def test_the_identities_of_the_bregman_penalty(name):
    y, z, _ = draws(name)
    for what, error in identities(VALUED[name], y, z).items():
        assert error <= (1e-7 if what == "differences" else 1e-12), what


@names(VALUED, VARIANTS)
def test_single_precision_loses_no_digits(name):
    activation = VALUED[name]
    y, z, _ = draws(name, jnp.float32)
    gap = jax.jit(jax.vmap(activation.gap))
    # What is in the domain in single precision is outside by that much in double.
    y_full = jax.vmap(activation.project)(jnp.asarray(y, jnp.float64))
    half, full = gap(y, z), gap(y_full, jnp.asarray(z, jnp.float64))
    assert half.dtype == jnp.float32
    assert jnp.all(half >= -1e-6)
    np.testing.assert_allclose(half, full, rtol=1e-5, atol=2e-6)
    at_zero = gap(jax.vmap(activation)(10 * z), 10 * z)
    assert jnp.all((at_zero >= -1e-6) & (at_zero < 1e-4))  # up to the size of z in rounding errors


def test_values_where_the_plain_formula_cancels():
    y, z = jnp.float32(1000.01), jnp.float32(1000)
    assert 0.5 * y**2 + 0.5 * z**2 - y * z == 0  # the plain formula
    for name in ("identity", "relu", "leaky relu", "elu"):
        np.testing.assert_allclose(ENTRYWISE[name].gap(y, z), 5.0e-5, rtol=0.02)
    np.testing.assert_allclose(lifted.SoftThreshold(0.5).gap(y, z), 0.5 * (0.01 + 0.5) ** 2, rtol=0.02)
    one = jnp.float32(1)
    assert abs(lifted.Tanh().gap(one, jnp.float32(100))) < 1e-6
    assert abs(lifted.Sigmoid().gap(one, jnp.float32(100))) < 1e-6
    np.testing.assert_allclose(lifted.Tanh().gap(-one, jnp.float32(100)), 200, rtol=1e-6)
    half = jnp.float32(0.5)
    np.testing.assert_allclose(lifted.ELU().gap(-half, jnp.float32(-90)), 90 / 2 - 0.5 * np.log(2) - 0.5, rtol=1e-6)


def searched(activation, v, step):
    """`argmin_u step Psi(u) + (u - v)^2/2` for a scalar `v`, by golden-section search."""
    lower, upper = (np.clip(end, -100, 100) for end in activation.bounds())

    def value(u):
        return step * (activation.potential_entries(u) - 0.5 * u**2) + 0.5 * (u - v) ** 2

    def shrink(_, ends):
        low, high = ends
        ratio = (5**0.5 - 1) / 2
        left, right = high - ratio * (high - low), low + ratio * (high - low)
        keep = value(left) < value(right)
        return jnp.where(keep, low, left), jnp.where(keep, right, high)

    return sum(jax.lax.fori_loop(0, 60, shrink, (jnp.full_like(v, lower), jnp.full_like(v, upper)))) / 2


@names(ENTRYWISE, VARIANTS)
def test_proximal_maps_against_search(name):
    activation, v = ENTRYWISE[name], draws(name)[2]
    steps = jnp.asarray([0.05, 0.5, 1.0, 3.0])
    got, expected = jax.jit(lambda v: jax.vmap(lambda s: (activation.prox(v, s), searched(activation, v, s)))(steps))(v)
    np.testing.assert_allclose(got, expected, atol=2e-7)


@jax.jit
def optimality(activation, y, z, v):
    """How far `f(u) >= f(p) + |u - p|^2/2` fails at points `u` of the domain, near and far: it characterises `p`."""

    def one(y, z, v, step):
        cases = {
            "prox": (lambda u: psi(activation, u), activation.prox(v, step)),
            "prox of the potential": (activation.potential, activation.prox_potential(v, step)),
            "prox of the gap": (lambda w: activation.gap(y, w), activation.prox_gap(v, y, step)),
        }
        failure = {}
        for case, (f, p) in cases.items():
            value = lambda u, f=f: step * f(u) + 0.5 * jnp.sum((u - v) ** 2)
            others = [y, z, p + 0.1 * (y - p), p + 1e-3 * (y - p), p + 1e-3 * (z - p)]
            if case != "prox of the gap":
                others = [activation.project(u) for u in others]
            bounds = [value(u) - value(p) - 0.5 * jnp.sum((u - p) ** 2) for u in others]
            failure[case] = jnp.minimum(jnp.min(jnp.stack(bounds)), 0)
        dual = activation.prox_gap_conjugate(v / step, y, 1 / step)
        failure["moreau"] = activation.prox_gap(v, y, step) + step * dual - v
        w = activation.prox_gap(v, y, step)
        failure["stationarity of the gap"] = w - v + step * (activation(w) - y)
        return failure

    steps = jnp.asarray([0.05, 0.6, 1.0, 4.0])
    each = jax.vmap(lambda s: jax.vmap(one, in_axes=(0, 0, 0, None))(y, z, v, s))(steps)
    return jax.tree.map(lambda e: jnp.max(jnp.abs(e)), each)


@names(VALUED, VARIANTS)
def test_proximal_maps_are_optimal(name):
    for what, failure in optimality(VALUED[name], *draws(name)).items():
        assert failure <= 2e-12, what


def test_proximal_maps_of_softplus():
    activation, (_, _, v) = ALL["softplus"], draws("softplus")
    prox, prox_gap = jax.jit(activation.prox), jax.jit(activation.prox_gap)
    for step in (1e-3, 0.3, 1.0, 5.0):
        u = prox(v, step)
        s = activation.preimage(u)
        np.testing.assert_allclose(jnp.where(u > 1e-300, (1 - step) * u + step * s, v), v, atol=1e-11)
        assert jnp.mean(u > 1e-300) > 0.4
        w = prox_gap(v, jnp.abs(v), step)
        np.testing.assert_allclose(w + step * (activation(w) - jnp.abs(v)), v, atol=1e-12)
    for method in (activation.potential, activation.conjugate, lambda v: activation.gap(v, v)):
        with pytest.raises(ValueError, match="Softplus has no potential, conjugate or gap"):
            method(v)


@pytest.mark.parametrize("step", [1e-3, 1e-2, 0.1, 1.0, 10.0, 100.0])
def test_newton_for_tanh_converges_to_rounding(step):
    v = jnp.linspace(0, 50, 20001)
    for activation in (lifted.Tanh(), lifted.Sigmoid()):
        # In terms of s, u = sigma(s): artanh of a u near one has no digits left.
        u = jax.jit(activation.prox_potential)(v, step)
        s = (v - u) / step  # the residual of sigma(s) + step s = v vanishes by construction
        np.testing.assert_allclose(activation(s), u, rtol=0, atol=1e-12 * max(1, 0.01 / step))


def test_the_first_newton_steps_reach_the_promised_residual(monkeypatch):
    from pinv_jax.lifted import _smooth_activations

    monkeypatch.setattr(_smooth_activations, "NUM_NEWTON", 10)
    v = jnp.linspace(0, 50, 20001)
    for mu in (1e-3, 1e-2, 0.1, 1.0, 10.0, 100.0):
        s = _smooth_activations._concave_root(jnp.tanh, lambda s: 1 - jnp.tanh(s) ** 2, 1.0, mu, v)
        assert jnp.max(jnp.abs(jnp.tanh(s) + mu * s - v) / (1 + v)) < 1e-12


@names(ALL, VARIANTS)
def test_derivatives_of_the_proximal_map(name):
    activation, v = ALL[name], draws(name)[2][:8]
    direction = jax.random.normal(key(7), (SIZE,))

    @jax.jit
    @jax.vmap
    def compare(v):
        f = lambda t: activation.prox(v + t * direction, 0.4 + t)
        exact, pulled = jax.jvp(f, (0.0,), (1.0,))[1], jax.grad(lambda t: jnp.sum(f(t)))(0.0)
        return exact - (f(1e-6) - f(-1e-6)) / 2e-6, pulled - jnp.sum(exact)

    differences, pulled = compare(v)
    assert jnp.median(jnp.abs(differences)) <= 1e-8
    assert jnp.mean(jnp.abs(differences) <= 1e-7) >= 0.9  # a kink may lie between two points
    assert jnp.max(jnp.abs(pulled)) <= 1e-12


@names(ALL, VARIANTS)
def test_at_zero_all_derivatives_are_finite(name):
    activation, zero = ALL[name], jnp.zeros(SIZE)

    @jax.jit
    def derivatives(zero):
        out = [jax.jacrev(activation)(zero), jax.jacrev(lambda z: activation.prox(z, 0.5))(zero)]
        if name in VALUED:
            y = activation(zero)
            out += [*jax.grad(activation.gap, (0, 1))(y, zero), jax.grad(activation.conjugate)(zero)]
        return out

    assert all(np.all(np.isfinite(each)) for each in derivatives(zero))


@pytest.mark.slow
@names(ALL, VARIANTS)
def test_single_precision_stays_and_a_batch_equals_a_loop(name):
    activation, (y, z, v) = ALL[name], draws(name, jnp.float32)

    def every(y, z, v):
        out = [activation(z), activation.prox(v, 0.3), activation.prox_potential(v, 2), activation.prox_gap(v, y, 1)]
        out += [activation.prox_gap_conjugate(v, y, 0.5), activation.project(v), activation.interior(v)]
        return out + ([] if name == "softplus" else [activation.gap(y, z), jax.grad(activation.gap, 1)(y, z)])

    batched, alone = jax.jit(jax.vmap(every))(y, z, v), jax.jit(every)(y[3], z[3], v[3])
    for many, one in zip(batched, alone, strict=True):
        assert many.dtype == one.dtype == jnp.float32
        np.testing.assert_allclose(many[3], one, rtol=2e-5, atol=2e-6)


@pytest.mark.slow
@names(ALL, VARIANTS)
def test_proximal_map_in_single_precision(name):
    activation, v = ALL[name], draws(name, jnp.float32)[2]
    prox = jax.jit(jax.vmap(lambda v: jnp.stack([activation.prox(v, s) for s in (1e-3, 0.5, 1.0, 2.0)])))
    np.testing.assert_allclose(prox(v), prox(jnp.asarray(v, jnp.float64)), rtol=1e-5, atol=3e-6)


@names(ALL, VARIANTS)
def test_the_curvature_bounds_the_slope(name):
    activation, z = ALL[name], draws(name)[1]
    slopes = jnp.linalg.norm(jax.jit(jax.vmap(jax.jacfwd(activation)))(z / 3), ord=2, axis=(1, 2))
    assert jnp.max(slopes) <= activation.curvature + 1e-12
    assert jnp.max(slopes) >= 0.6 * activation.curvature


def test_the_derivative_in_the_first_argument_and_the_second_derivative():
    y, z = jnp.asarray([0.3, -0.4]), jnp.asarray([1.0, 0.2])
    tanh = lifted.Tanh()
    slope, second, mixed = jax.jit(
        lambda y, z: (
            jax.grad(tanh.gap)(y, z),
            jax.hessian(tanh.gap, 1)(y, z),
            jax.jacfwd(jax.grad(tanh.gap, 1), 0)(y, z),
        )
    )(y, z)
    np.testing.assert_allclose(slope, np.arctanh(y) - z, atol=1e-12)
    np.testing.assert_allclose(second, np.diag(1 - np.tanh(z) ** 2), atol=1e-12)
    np.testing.assert_allclose(mixed, -np.eye(2), atol=1e-12)
    both = jax.jit(lambda t: tanh.gap(t * y, t * z))
    np.testing.assert_allclose(jax.grad(both)(1.0), (both(1 + 1e-6) - both(1 - 1e-6)) / 2e-6, atol=1e-8)


# Domains --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "outside", "nearest"),
    [
        ("relu", [-0.5, 2.0], [0.0, 2.0]),
        ("hard tanh", [-3.0, 0.2], [-1.0, 0.2]),
        ("relu6", [7.0, -1.0], [6.0, 0.0]),
        ("tanh", [1.1, 0.0], [1.0, 0.0]),
        ("sigmoid", [-0.1, 0.3], [0.0, 0.3]),
        ("elu", [-1.5, 3.0], [-1.0, 3.0]),
        ("softmax", [0.9, 0.5], [0.7, 0.3]),
        ("softmax", [2.0, 0.5], [1.0, 0.0]),
        ("ball", [3.0, 4.0], [0.9, 1.2]),
        ("half space", [1.0, 3.0], [-1.0, 1.0]),
    ],
)
def test_off_the_domain(name, outside, nearest):
    activation, outside, z = VALUED[name], jnp.asarray(outside), jnp.asarray([0.3, -0.2])
    assert not activation.contains(outside)
    assert activation.gap(outside, z) == jnp.inf
    assert activation.potential(outside) == jnp.inf
    inside = activation.project(outside)
    np.testing.assert_allclose(inside, nearest, atol=1e-12)
    for point in (inside, activation.interior(outside)):
        assert activation.contains(point)
        assert jnp.isfinite(activation.gap(point, z))
        np.testing.assert_allclose(point, nearest, atol=3e-6)
    assert jnp.all(jnp.isfinite(activation.preimage(activation.interior(outside))))
    single = jnp.asarray(outside, jnp.float32)
    assert activation.contains(activation.project(single))
    assert jnp.all(jnp.isfinite(activation.preimage(activation.interior(single))))


def test_the_ends_of_the_domain_belong_to_it():
    np.testing.assert_allclose(lifted.Tanh().potential(jnp.asarray([1.0, -1.0])), 2 * np.log(2), rtol=1e-15)
    assert lifted.Sigmoid().potential(jnp.asarray([0.0, 1.0])) == 0
    assert lifted.ELU(0.5).potential(jnp.asarray(-0.5)) == 0.5
    assert jnp.isfinite(lifted.Softmax().gap(jnp.asarray([0.0, 1.0]), jnp.asarray([5.0, -5.0])))


def test_softmax_gap_is_the_cross_entropy():
    logits = 5 * jax.random.normal(key(), (10,), jnp.float32)
    one_hot = jax.nn.one_hot(3, 10, dtype=jnp.float32)
    np.testing.assert_allclose(lifted.Softmax().gap(one_hot, logits), -jax.nn.log_softmax(logits)[3], rtol=1e-6)
    soft = jax.nn.softmax(jnp.flip(logits))
    entropy = -jnp.sum(soft * jnp.log(soft))
    expected = -jnp.sum(soft * jax.nn.log_softmax(logits)) - entropy
    np.testing.assert_allclose(lifted.Softmax().gap(soft, logits), expected, rtol=1e-5)


def test_the_proximal_map_of_softmax_for_many_classes():
    v = 3 * jax.random.normal(key(), (1000,))
    prox = jax.jit(lifted.Softmax().prox)
    for step in (1e-4, 0.01, 0.7, 3.0):
        u = prox(v, step)
        np.testing.assert_allclose(jnp.sum(u), 1, rtol=1e-12)
        kept = u > 1e-300
        equation = ((1 - step) * u + step * jnp.log(u) - v)[kept]  # constant
        assert equation.size > 1
        assert jnp.ptp(equation) <= 1e-11


# Products, names, refusals --------------------------------------------------------------------------------------------


def test_a_product_is_the_sum_of_its_parts():
    parts = lifted.ReLU(), lifted.Tanh()
    product = lifted.Product(parts)
    y = jnp.asarray([0.5, 0.0], jnp.float32), jnp.asarray([[0.1]], jnp.float32)
    z = jnp.asarray([1.0, -2.0], jnp.float32), jnp.asarray([[0.7]], jnp.float32)
    value, slope = jax.jit(jax.value_and_grad(product.gap, 1))(y, z)
    np.testing.assert_allclose(value, sum(a.gap(*each) for a, *each in zip(parts, y, z, strict=True)), rtol=1e-6)
    assert value.dtype == jnp.float32
    for got, a, u, w in zip(slope, parts, y, z, strict=True):
        np.testing.assert_allclose(got, a(w) - u, rtol=1e-6)
    each = [product.prox(z, 0.5), product.prox_potential(z, 0.5), product.prox_gap(z, y, 0.5), product.project(z)]
    each += [product.prox_gap_conjugate(z, y, 0.5), product.interior(z), product.preimage(y), product(z)]
    assert [tuple(part.shape for part in out) for out in each] == [((2,), (1, 1))] * len(each)
    np.testing.assert_allclose(each[2][1], parts[1].prox_gap(z[1], y[1], 0.5))
    assert product.contains(y)
    assert not product.contains((y[0] - 1, y[1]))
    np.testing.assert_allclose(
        product.potential(y) + product.conjugate(z) - value,
        sum(jnp.sum(a * b) for a, b in zip(y, z, strict=True)),
        rtol=1e-5,
    )
    assert product.curvature == 1


@pytest.mark.parametrize(
    ("fn", "expected"),
    [
        (jax.nn.relu, lifted.ReLU()),
        (jnp.tanh, lifted.Tanh()),
        (jax.nn.sigmoid, lifted.Sigmoid()),
        (jax.nn.leaky_relu, lifted.LeakyReLU(0.01)),
        (functools.partial(jax.nn.leaky_relu, negative_slope=0.3), lifted.LeakyReLU(0.3)),
        (functools.partial(jax.nn.elu, alpha=0.5), lifted.ELU(0.5)),
        (jax.nn.elu, lifted.ELU()),
        (jax.nn.relu6, lifted.Clip(0, 6)),
        (jax.nn.hard_tanh, lifted.Clip(-1, 1)),
        (jax.nn.softmax, lifted.Softmax()),
        (jax.nn.softplus, lifted.Softplus()),
        (None, lifted.Identity()),
        (eqx.nn.Identity(), lifted.Identity()),
        (eqx.nn.Lambda(jax.nn.relu), lifted.ReLU()),
        (eqx.nn.PReLU(0.25), lifted.LeakyReLU(0.25)),
        (eqx.nn.MLP(1, 1, 1, 1, key=key()).final_activation, lifted.Identity()),
        (maps.store(jax.nn.relu), lifted.ReLU()),
        ("tanh", lifted.Tanh()),
        (lifted.SoftThreshold(0.2), lifted.SoftThreshold(0.2)),
    ],
)
def test_recognised(fn, expected):
    got = lifted.as_activation(fn)
    assert type(got) is type(expected)
    assert got == expected


def test_what_is_recognised_computes_the_same():
    z = jnp.linspace(-8, 8, 41)
    functions = {name: getattr(jax.nn, name) for name in lifted.ACTIVATIONS}
    functions |= {"the slope of maps": maps.ACTIVATIONS["leaky_relu"]}
    for name, fn in functions.items():
        np.testing.assert_allclose(lifted.as_activation(fn)(z), fn(z), atol=1e-15, err_msg=name)


@pytest.mark.parametrize(
    ("fn", "message"),
    [
        (jax.nn.gelu, r"gelu is not an admissible activation.*ELU\(\)"),
        (jax.nn.silu, "silu is not an admissible activation"),
        (jax.nn.swish, "it decreases for z < -1.28"),
        ("mish", "mish is not an admissible activation"),
        (jnp.abs, r"abs.*Use `ReLU\(\)`"),
        ("MaxMin", "sorting is not monotone"),
        ("GroupSort", "sorting is not monotone"),
        (jax.nn.selu, "its slope exceeds 1"),
        (functools.partial(jax.nn.leaky_relu, negative_slope=2.0), r"LeakyReLU\(slope=2.0\) is not proximal"),
        (functools.partial(jax.nn.elu, alpha=1.5), r"ELU\(coefficient=1.5\) is not proximal"),
        (eqx.nn.PReLU(jnp.asarray([0.1, 0.2])), "expected one slope"),
        ("no such thing", "expected one of"),
        (lambda z: jnp.sin(z), "check_proximal"),
    ],
)
def test_refused(fn, message):
    with pytest.raises(ValueError, match=message):
        lifted.as_activation(fn)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: lifted.LeakyReLU(0.0), r"use `ReLU\(\)`"),
        (lambda: lifted.LeakyReLU(-0.1), "expected 0 < slope <= 1"),
        (lambda: lifted.SoftThreshold(-1), "threshold >= 0"),
        (lambda: lifted.BlockSoftThreshold(-1), "threshold >= 0"),
        (lambda: lifted.Clip(1, -1), "swapped"),
        (lambda: lifted.ELU(2), "0 < coefficient <= 1"),
        (lambda: lifted.BallProjection(0), "radius > 0"),
        (lambda: lifted.Product(()), "expected a tuple of activations"),
        (lambda: lifted.Product((jax.nn.relu,)), "as_activation"),
        (lambda: lifted.ReLU().gap(jnp.zeros(3), jnp.zeros(2)), "expected equal shapes"),
    ],
)
def test_bad_input(build, message):
    with pytest.raises(ValueError, match=message):
        build()


def group_sort(x):
    return jnp.sort(x)


@pytest.mark.parametrize(
    ("fn", "shape", "message"),
    [
        (group_sort, (2,), r"group_sort is not proximal.*inner product <f\(x\) - f\(y\), x - y> is -"),
        (jax.nn.gelu, (), "gelu is not proximal.*is -"),
        (jax.nn.silu, (), "silu is not proximal.*is -"),
        pytest.param(jax.nn.mish, (), "mish is not proximal.*is -", marks=pytest.mark.slow),
        (jnp.abs, (), "abs.* is not proximal.*is -"),
        (functools.partial(jax.nn.leaky_relu, negative_slope=2.0), (), r"leaky_relu\(negative_slope=2.0\) is not"),
        (functools.partial(jax.nn.leaky_relu, negative_slope=-0.1), (), "is not proximal.*is -"),
        (lambda x: jnp.asarray([[0.5, -0.4], [0.4, 0.5]]) @ x, (2,), "its Jacobian J is not symmetric"),
        (lambda x: x + 1e-3 * jnp.sin(1e4 * x), (), "is not proximal"),
        (jnp.max, (4,), "returns the shape it is given"),
        (jnp.log, (), "not finite"),
    ],
)
def test_the_search_finds_a_witness(fn, shape, message):
    with pytest.raises(ValueError, match=message):
        lifted.check_proximal(fn, shape=shape)


def test_the_witness_against_sorting():
    x, y = jnp.asarray([2.0, 0.0]), jnp.asarray([1.0, 0.5])
    assert jnp.sum((group_sort(x) - group_sort(y)) * (x - y)) == -1
    with pytest.raises(ValueError, match="inner product") as info:
        lifted.check_proximal(group_sort, shape=(2,))
    text = str(info.value)
    x, y = (jnp.asarray(eval(text.split(f"{which} = ")[1].split("]")[0] + "]")) for which in "xy")
    product = float(text.split("> is ")[1].split(" ")[0])
    np.testing.assert_allclose(jnp.sum((group_sort(x) - group_sort(y)) * (x - y)), product, rtol=1e-5)


@names(ALL, VARIANTS)
def test_the_search_passes_what_is_proximal(name):
    if name in ENTRYWISE:
        lifted.check_proximal(ALL[name])
    lifted.check_proximal(ALL[name], shape=(3,), key=key(5))
