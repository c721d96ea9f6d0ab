"""Lanes that retire and are refilled: the same answers as masked lanes, whatever the neighbours; bad input; axes."""

import dataclasses
import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
from cases import PROBLEMS, SOLVERS

import pinv_jax as pj
from pinv_jax import maps, solvers

NUM, LANES = 24, 8
MODES = {
    "compacting": {"mode": "compacting", "narrowest": 4},
    "streaming": {"mode": "streaming", "lanes": LANES, "narrowest": 4},
}
COUNTS = ("num_steps", "num_rejected", "num_fallbacks", "num_f", "num_g", "num_jvp", "num_vjp")


@functools.cache
def case():
    return PROBLEMS["curve fit"](jnp.float64)


@functools.cache
def observations():
    """Uneven: some starts are far, one observation is not finite, and one is met at once."""
    noise = 0.3 * np.random.default_rng(0).normal(size=(NUM, *case().x_true.shape))
    x_true = case().x_true[None] + jnp.asarray(noise)
    data = jax.vmap(case().forward)(x_true).at[5].set(jnp.nan).at[6].set(case().forward(case().x0))
    return data, jnp.broadcast_to(case().x0, (NUM, *case().x0.shape))


def run(solver_name="d-ipg, defect", order=None, **options):
    data, x0 = observations()
    if order is not None:
        data, x0 = data[order], x0[order]
    solver = SOLVERS[solver_name](case().inverse, atol=1e-5)
    return pj.solve_batch(case().problem(data), solver, x0, max_steps=40, history=3, **options)


def assert_agree(found, expected, atol=1e-10):
    np.testing.assert_allclose(found.value, expected.value, rtol=0, atol=atol)
    np.testing.assert_array_equal(found.result._value, expected.result._value)
    for name in COUNTS:
        np.testing.assert_array_equal(getattr(found.stats, name), getattr(expected.stats, name), name)
    np.testing.assert_allclose(found.history.objective, expected.history.objective, rtol=1e-6, atol=1e-12)


masked = functools.cache(lambda solver_name="d-ipg, defect": run(solver_name, mode="masked"))


@pytest.mark.parametrize("mode", ["streaming", pytest.param("compacting", marks=pytest.mark.slow)])
def test_modes_agree_and_waste_less(mode):
    found, expected = run(**MODES[mode]), masked()
    assert_agree(found, expected)
    turns = expected.stats.num_steps + expected.stats.num_rejected
    np.testing.assert_array_equal(expected.stats.num_idle, jnp.max(turns) - turns)
    assert int(turns[5]) == int(turns[6]) == 0
    assert bool(expected.success[6])
    assert bool((expected.result == pj.RESULTS.nonfinite_input)[5])
    assert float(expected.stats.useful) < 0.4
    assert float(found.stats.useful) > float(expected.stats.useful) + 0.3


@pytest.mark.slow
@pytest.mark.parametrize(
    ("solver_name", "mode"),
    [("lbfgs", "streaming"), ("levenberg-marquardt", "compacting"), ("safeguarded", "streaming")],
)
def test_every_kind_of_solver_agrees(mode, solver_name):
    assert_agree(run(solver_name, **MODES[mode]), masked(solver_name))


def test_at_a_fixed_width_lanes_are_bit_identical_whatever_their_order_and_neighbours():
    fixed = {"mode": "streaming", "lanes": LANES, "narrowest": LANES}
    found = run(**fixed)
    order = np.random.default_rng(1).permutation(NUM)
    for other in (order, np.where(order == 3, 5, order)):  # the second has a neighbour that is not finite in its place
        shuffled = run(order=other, **fixed)
        np.testing.assert_array_equal(shuffled.value, found.value[other])
        for name in COUNTS:
            np.testing.assert_array_equal(getattr(shuffled.stats, name), getattr(found.stats, name)[other], name)


def quadratic(x):
    """Bent projections; products with a matrix are what rounds differently at another width."""
    projected = jnp.asarray(np.random.default_rng(0).normal(size=(24, 8)), x.dtype) @ x
    return projected**2 / 4 + projected


@pytest.mark.slow
def test_in_single_precision_exceptions_are_tests_at_their_threshold():
    num, atol, eps = 4096, 3e-3, float(jnp.finfo(jnp.float32).eps)
    x_true, offset = np.random.default_rng(1).normal(size=(2, num, 8))
    data = jax.vmap(quadratic)(jnp.asarray(x_true, jnp.float32))
    x0 = jnp.asarray(x_true + 0.3 * offset, jnp.float32)
    modes = {"mode": "masked"}, {"mode": "streaming", "lanes": 64, "narrowest": 64}

    @functools.cache
    def solved(max_steps):
        problem, solver = pj.Problem(quadratic, data), solvers.LBFGS(atol=atol)
        found = [pj.solve_batch(problem, solver, x0, max_steps=max_steps, history=101, **mode) for mode in modes]
        return jax.tree.map(np.asarray, found)

    runs = solved(100)
    np.testing.assert_array_equal(*(run.result._value for run in runs))
    assert np.all(runs[0].success)
    num_steps = np.stack([run.stats.num_steps for run in runs])
    different = np.flatnonzero(num_steps[0] != num_steps[1])
    assert different.size <= 0.05 * num
    margins = []
    for lane in different:
        last = int(num_steps[:, lane].min())
        sizes = np.stack([run.history.step_size[lane, : last + 1] for run in runs])
        forks = np.flatnonzero(sizes[0, 1:] != sizes[1, 1:])
        rounding = eps * np.sqrt(np.mean(data[lane] ** 2))  # of a residual
        if forks.size == 0:  # the same steps, and then one run met the tolerance
            tested = [float(run.history.residual_rms[lane, last]) - atol for run in runs]
        else:  # one run accepted the larger step, of which the other made a rejected trial
            step = int(forks[0]) + 1
            larger = int(np.argmax(sizes[:, step]))
            tested = []
            for run in (larger, 1 - larger):
                before, after = (solved(i)[run].value[lane].astype(np.float64) for i in (step - 1, step))
                moved = (after - before) * float(sizes[larger, step] / sizes[run, step])
                objective = lambda x, y=data[lane]: 0.5 * jnp.mean((quadratic(x) - y) ** 2)
                value, slope = jax.jvp(objective, (before,), (moved,))
                trial = objective(before + moved)
                # in units of a residual, as the tolerance
                tested.append(float((trial - value - 1e-4 * slope) / (jnp.sqrt(2 * trial) + jnp.sqrt(2 * value))))
        margins.append(min(np.abs(tested)) / rounding)
    # What a run tests carries the rounding of all steps before, which the iteration amplifies in a lane or two.
    assert np.max(margins, initial=0) <= 1000
    assert np.median([0, *margins]) <= 50


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["streaming", "compacting"])
def test_in_single_precision_dampings_take_the_same_steps(mode):
    here = PROBLEMS["curve fit"](jnp.float32)
    noise = 0.1 * np.random.default_rng(2).normal(size=(200, *here.x_true.shape))
    data = jax.vmap(here.forward)(here.x_true[None] + jnp.asarray(noise, jnp.float32))
    x0 = jnp.broadcast_to(here.x0, (200, *here.x0.shape))
    solver = SOLVERS["levenberg-marquardt"](here.inverse, atol=1e-4)
    found, expected = (
        pj.solve_batch(here.problem(data), solver, x0, max_steps=60, **options)
        for options in (MODES[mode] | ({"narrowest": 50} if mode == "compacting" else {}), {"mode": "masked"})
    )
    np.testing.assert_array_equal(found.result._value, expected.result._value)
    same = np.asarray(found.stats.num_steps == expected.stats.num_steps)
    assert same.mean() >= 0.95
    assert np.all(np.asarray(found.stats.residual_rms)[~same] <= 1e-4)
    assert np.all(np.asarray(expected.stats.residual_rms)[~same] <= 1e-4)


def scaled(scale, data, **options):
    """A solve that closes over `scale`."""
    problem = pj.Problem(lambda x: scale * jnp.tanh(x), data)
    options = {"mode": "streaming", "lanes": 2, "narrowest": 2} | options
    return pj.solve_batch(problem, solvers.GradientDescent(atol=1e-3), 0.1 * data, max_steps=3, **options)


def test_within_jit_every_mode_is_masked():
    data = jnp.linspace(0.1, 1.0, 8).reshape(4, 2)
    expected = scaled(2.0, data, mode="masked", lanes=None)
    found = jax.jit(lambda scale: scaled(scale, data))(
        2.0
    )  # no argument of the solve is traced: its map closes over one
    np.testing.assert_allclose(found.value, expected.value, rtol=1e-12)
    np.testing.assert_array_equal(found.stats.num_idle, expected.stats.num_idle)


@pytest.mark.slow
def test_within_derivatives_and_vmap_every_mode_is_masked():
    data = jnp.linspace(0.1, 1.0, 8).reshape(4, 2)

    def total(scale, data, **options):
        return jnp.sum(scaled(scale, data, adjoint="checkpointed", **options).value)

    # nothing that is passed is traced: the map closes over what is differentiated
    found = jax.grad(total)(2.0, data)
    assert float(found) != 0
    np.testing.assert_allclose(found, jax.grad(lambda s: total(s, data, mode="masked", lanes=None))(2.0), rtol=1e-10)
    many = jax.vmap(lambda data: scaled(2.0, data).value)(data[None])
    np.testing.assert_allclose(many[0], scaled(2.0, data, mode="masked", lanes=None).value, rtol=1e-10)


class Decay(eqx.Module):
    """`amplitude * exp(-rate * x)`, one map of two parameters."""

    amplitude: jax.Array
    rate: jax.Array
    offset: jax.Array | None = None

    def __call__(self, x):
        return self.amplitude * jnp.exp(-self.rate * x)


@pytest.mark.parametrize("mode", ["streaming", pytest.param("masked", marks=pytest.mark.slow)])
def test_parameters_of_the_map_and_the_prior_may_differ_from_lane_to_lane(mode):
    rates = jnp.linspace(0.5, 1.5, 6)
    shared = Decay(jnp.asarray(2.0), jnp.asarray(1.0))
    lanes = eqx.tree_at(lambda d: d.rate, shared, rates)
    per_lane = eqx.tree_at(lambda d: d.rate, jax.tree.map(lambda _: None, shared), 0, is_leaf=lambda a: a is None)
    weights = jnp.linspace(0.1, 1.0, 6)[:, None, None] * jnp.eye(3)[None]
    x_true = jnp.linspace(0.1, 1.0, 18).reshape(6, 3)
    data = jax.vmap(lambda r, x: 2.0 * jnp.exp(-r * x))(rates, x_true)
    solver = solvers.LBFGS(atol=1e-14, rtol=1e-14)
    problem = pj.Problem(lanes, data, prior=pj.GaussianPrior(jnp.zeros(3), weights))
    axes = pj.Problem(per_lane, 0, prior=pj.GaussianPrior(None, 0))
    settings = {"mode": mode, "lanes": 3 if mode == "streaming" else None, "narrowest": 3}
    found = pj.solve_batch(problem, solver, jnp.zeros((6, 3)), axes=axes, **settings)
    for i in (0, 5):
        here = Decay(jnp.asarray(2.0), rates[i])
        alone = pj.Problem(here, data[i], prior=pj.GaussianPrior(jnp.zeros(3), weights[i]))
        one = pj.solve(alone, solver, jnp.zeros(3))
        np.testing.assert_allclose(found.value[i], one.value, atol=1e-6, rtol=0)
    # the minimisers differ by what differs: a shared rate would give other ones
    assert float(jnp.min(jnp.max(jnp.abs(found.value - x_true), axis=1))) > 1e-3


@pytest.mark.slow
def test_a_parameter_of_the_solver_may_differ_from_lane_to_lane():
    data, x0 = observations()
    solver = SOLVERS["lbfgs"](None, atol=jnp.asarray([1e-1, 1e-6]))
    axes = (pj.Problem(None, None), eqx.tree_at(lambda s: s.stop.atol, jax.tree.map(lambda _: None, solver), 0,
                                               is_leaf=lambda a: a is None))  # fmt: skip
    found = pj.solve_batch(case().problem(data[0]), solver, x0[:2], axes=axes, mode="masked")
    assert bool(jnp.all(found.success))
    assert int(found.stats.num_steps[0]) < int(found.stats.num_steps[1])
    assert float(found.stats.residual_rms[1]) <= 1e-6 < float(found.stats.residual_rms[0])


class Prepared(maps.AbstractMap):
    """A map with something to prepare."""

    weight: jax.Array
    prepared: jax.Array | None = None

    def __call__(self, x):
        return jnp.tanh((jnp.linalg.inv(self.weight) if self.prepared is None else self.prepared) @ x)

    def in_structure(self):
        return jax.ShapeDtypeStruct((2,), self.weight.dtype)

    def prepare(self):
        return Prepared(self.weight, jnp.linalg.inv(self.weight))


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["streaming", "masked"])
def test_maps_that_are_prepared_once(mode):
    weight = jnp.array([[2.0, 1.0], [0.0, 2.0]])
    x_true = jnp.linspace(-0.5, 0.5, 12).reshape(6, 2)
    problem = pj.Problem(Prepared(weight), jax.vmap(Prepared(weight))(x_true))
    found = pj.solve_batch(
        problem, solvers.GradientDescent(atol=1e-8), jnp.zeros((6, 2)), mode=mode,
        lanes=3 if mode == "streaming" else None, narrowest=3,
    )  # fmt: skip
    np.testing.assert_allclose(found.value, x_true, atol=1e-6)


@pytest.mark.slow
def test_several_starts_keep_the_best():
    forward = lambda x: jnp.stack([x[0] ** 2 - 1.0, 0.1 * (x[0] - 1.0)])  # the start decides between -1 and 1
    starts = jnp.array([[-1.0], [1.1], [jnp.nan]])
    problem, solver = pj.Problem(forward, jnp.zeros((2, 2))), solvers.GradientDescent(atol=1e-9)
    best, everything = solvers.solve_multistart(problem, solver, starts)
    assert best.value.shape == (2, 1)
    assert everything.value.shape == (2, 3, 1)
    np.testing.assert_allclose(best.value, 1.0, atol=1e-8)
    np.testing.assert_allclose(everything.value[:, 0], -0.99, atol=0.01)
    np.testing.assert_array_equal(best.stats.objective, everything.stats.objective[:, 1])
    per_observation = jnp.stack([starts[:2], -starts[:2]])
    best, _ = solvers.solve_multistart(
        pj.Problem(forward, jnp.zeros((2, 2))), solvers.LevenbergMarquardt(), per_observation
    )
    np.testing.assert_allclose(best.value, 1.0, atol=1e-5)


GOOD = {
    "problem": pj.Problem(lambda x: x, jnp.ones((6, 3))),
    "solver": solvers.GradientDescent(),
    "x0": jnp.zeros((6, 3)),
}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"mode": "fast"}, ["'fast'", "'masked'", "'streaming'"]),
        ({"lanes": 0}, ["lanes=0", "positive"]),
        ({"lanes": 2.5}, ["lanes=2.5", "positive integer"]),
        ({"narrowest": 0}, ["narrowest=0", "positive"]),
        ({"lanes": 2, "mode": "masked"}, ["lanes=2", "mode='streaming'"]),
        ({"mesh": "cpu"}, ["mesh", "str", "jax.sharding.Mesh"]),
        ({"x0": jnp.zeros((0, 3)), "problem": pj.Problem(lambda x: x, jnp.ones((0, 3)))}, ["empty batch"]),
        ({"axes": 0}, ["axes is 0", "Problem(None, 0"]),
        ({"axes": pj.Problem(0, 0, prior=pj.GaussianPrior(0, None))}, ["axes for prior", "does not fit"]),
        ({"axes": pj.Problem(None, 1)}, ["(6, 3)", "no axis 1 of 6 lanes"]),
    ],
)  # fmt: skip
def test_bad_input_of_lanes(change, words, monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # its checks would speak first
    with pytest.raises(ValueError) as error:  # noqa: PT011 - words are checked below
        pj.solve_batch(**(GOOD | change))
    for word in words:
        assert word in str(error.value)


def test_more_lanes_than_observations_are_not_made_and_optimistix_has_its_own_loop():
    found = pj.solve_batch(**GOOD, lanes=100, mode="streaming")
    assert bool(jnp.all(found.success))
    import optimistix as optx

    with pytest.raises(ValueError, match="loop of their own"):
        pj.solve_batch(**(GOOD | {"solver": optx.LevenbergMarquardt(1e-3, 1e-3)}), mode="compacting")


def test_progress_counts_every_observation_once():
    seen = []
    run(mode="streaming", lanes=LANES, narrowest=4, progress=lambda done, live, total: seen.append((done, live, total)))
    assert seen[-1] == (NUM, 0, NUM)
    assert all(0 <= live <= LANES and done + live <= NUM for done, live, _ in seen)
    assert [done for done, *_ in seen] == sorted(done for done, *_ in seen)


def test_the_fields_of_stats_carry_the_lane_axis():
    for field in dataclasses.fields(masked().stats):
        assert getattr(masked().stats, field.name).shape == (NUM,)
