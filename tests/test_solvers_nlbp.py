"""Back-projection: exactness and its laws, boxes, the solvers built on it, and the nearest point of a fibre."""

import functools
from collections import Counter
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize
from cases import funnel, key, matrix
from test_accelerators import callbacks, matmul_precisions
from test_diagnostics_penrose import learned

import pinv_jax as pj
from pinv_jax import diagnostics, maps, solvers

RESULTS = pj.RESULTS
NUM = 1000
GAIN = 0.3
MODELS = {
    "random section": lambda dtype: funnel(dtype, GAIN),
    "learned section": learned,
    "natural": lambda dtype: maps.prepare(maps.Natural(funnel(dtype, GAIN))),
}
EVERY = [(name, jnp.float64) for name in MODELS] + [("random section", jnp.float32), ("natural", jnp.float32)]
each_model = pytest.mark.parametrize(("name", "dtype"), EVERY)


@functools.cache
def draws(dtype):
    return jax.random.normal(key(1), (NUM, 12), dtype), jax.random.normal(key(2), (NUM, 4), dtype)


def norm(tree):
    return jnp.sqrt(sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(tree)))


def minus(a, b):
    return jax.tree.map(lambda a, b: a - b, a, b)


# The function ---------------------------------------------------------------------------------------------------------


class Step(NamedTuple):
    """What is measured of one back-projection; every entry but the last two is an error that should vanish."""

    residual: jax.Array
    law: jax.Array  # f(x') - ((1 - a) f(x) + a y), over four step sizes
    stays: jax.Array  # at step size zero
    again: jax.Array  # a second step
    reused: jax.Array  # with the section of the data handed in
    three: jax.Array  # against G^-1(G(x) + a (G(pinv(y)) - G(pinv(f(x)))))
    kept: jax.Array  # z - section(y)
    kept_z: jax.Array  # z itself, which only the natural form keeps
    naive: jax.Array  # residual of x + pinv(y - f(x)), which is right for linear maps alone


@jax.jit
def measure(f, xs, ys):
    def one(x, y):
        moved = solvers.nlbp(f, x, y)
        y0, z0 = f.split(x)
        y1, z1 = f.split(moved)
        steps = jnp.asarray([0.0, 0.25, 0.5, 1.0], x.dtype)
        path = jax.vmap(lambda a: solvers.nlbp(f, x, y, a))(steps)
        line = (1 - steps)[:, None] * y0[None] + steps[:, None] * y[None]
        ends = f.split(f.pinv(y)), f.split(f.pinv(y0))
        formula = f.merge(*jax.tree.map(lambda a, b, c: a + 0.5 * (b - c), (y0, z0), *ends))
        size = norm(y)
        return Step(
            residual=norm(y1 - y) / size,
            law=jnp.max(jnp.abs(jax.vmap(f)(path) - line)),
            stays=norm(path[0] - x) / norm(x),
            again=norm(solvers.nlbp(f, moved, y) - moved) / norm(moved),
            reused=norm(solvers.nlbp(f, x, y, section_of_data=f.section(y)) - moved) / norm(moved),
            three=norm(formula - path[2]) / norm(path[2]),
            kept=norm(minus(minus(z1, f.section(y1)), minus(z0, f.section(y0)))),
            kept_z=norm(minus(z1, z0)),
            naive=norm(f(x + f.pinv(y - y0)) - y) / size,
        )

    return jax.vmap(one)(xs, ys)


@each_model
def test_one_step_meets_the_data_and_keeps_what_it_should(name, dtype):
    f, (xs, ys) = MODELS[name](dtype), draws(dtype)
    got = measure(f, xs, ys)
    half = dtype == jnp.float32
    assert got.residual.dtype == dtype
    assert jnp.max(got.residual) <= (1e-5 if half else 1e-10)
    assert jnp.max(got.law) <= (3e-5 if half else 1e-9)
    for error in (got.stays, got.again, got.reused, got.three):
        assert jnp.max(error) <= (3e-5 if half else 1e-9)
    assert jnp.max(got.kept) <= (1e-4 if half else 1e-9)
    if name == "natural":
        assert jnp.max(got.kept_z) <= (1e-4 if half else 1e-10)
    else:
        assert jnp.median(got.kept_z) > 0.1
    assert jnp.median(got.naive) > 0.05  # the formula that is often quoted


def test_the_natural_form_is_the_shortest_way_in_the_completed_space():
    f, (xs, ys) = MODELS["natural"](jnp.float64), draws(jnp.float64)

    @jax.jit
    @jax.vmap
    def lengths(x, y):
        y0, z0 = f.split(x)
        moved = solvers.nlbp(f, x, y)
        length = diagnostics.completion_distance(f, moved, x)
        return length, norm(y - y0), norm(moved - f.merge(y, z0)), norm(moved - x)

    length, residual, difference, _ = lengths(xs, ys)
    np.testing.assert_allclose(length**2, residual**2, rtol=1e-10)
    assert jnp.max(difference) <= 1e-9


def test_a_linear_map_needs_no_nlbp():
    f = maps.LinearSurjection(matrix(3, 7, jnp.float64))
    x, y = jnp.linspace(-1, 1, 7), jnp.asarray([1.0, -2.0, 0.5])
    np.testing.assert_allclose(solvers.nlbp(f, x, y), x + f.pinv(y - f(x)), atol=1e-13)


CALLS = Counter()


class Counted(maps.AbstractSurjection[Any]):
    """Counts what is called, while tracing."""

    f: maps.AbstractSurjection[Any]

    def split(self, x):
        CALLS["split"] += 1
        return self.f.split(x)

    def merge(self, y, z):
        CALLS["merge"] += 1
        return self.f.merge(y, z)

    def section(self, y):
        CALLS["section"] += 1
        return self.f.section(y)

    def in_structure(self):
        return self.f.in_structure()


def calls(fn):
    CALLS.clear()
    fn()
    return dict(CALLS)


def test_the_natural_form_costs_one_forward_and_one_inverse():
    f = Counted(funnel(jnp.float32, GAIN))
    x, y = jax.eval_shape(f.pinv, f.out_structure()), f.out_structure()
    trace = lambda *args, **kwargs: calls(lambda: jax.eval_shape(solvers.nlbp, *args, **kwargs))
    assert trace(maps.Natural(f), x, y) == {"split": 1, "merge": 1}
    assert trace(f, x, y) == {"split": 1, "merge": 1, "section": 2}
    known = jax.eval_shape(f.f.section, y)
    assert trace(f, x, y, section_of_data=known) == {"split": 1, "merge": 1, "section": 1}


def test_a_chain_without_section_nets_costs_no_more_than_the_natural_form():
    def operations(f):
        # Sections that do not depend on y leave nothing behind once dead code is gone.
        x, y = f.in_structure(), f.out_structure()
        return jax.jit(solvers.nlbp).lower(f, x, y).compile().cost_analysis()["flops"]

    f = funnel(jnp.float32, GAIN, section=False)
    assert operations(f) <= 1.05 * operations(maps.prepare(maps.Natural(f)))


def test_gradients_flow_to_the_point_the_data_and_the_parameters():
    f = funnel(jnp.float64, GAIN, widths=(5, 3))
    xs, ys = jnp.linspace(-1, 1, 10).reshape(2, 5), jnp.linspace(1, -2, 6).reshape(2, 3)

    @jax.jit
    def products(f, x, y, dx, dy):
        fixed = lambda node: isinstance(node, maps.FixedOrthogonal)  # data, which no gradient reaches
        change = lambda node: jax.tree.map(jnp.zeros_like, node) if fixed(node) else 0.1 * jnp.cos(node)
        df = jax.tree.map(change, f, is_leaf=fixed)
        step = lambda f, x, y: solvers.nlbp(f, x, y, 0.7)
        _, tangent = jax.jvp(step, (f, x, y), (df, dx, dy))
        w = jnp.sin(jnp.arange(5.0))
        back = jax.vjp(step, f, x, y)[1](w)
        eps = 1e-6
        ends = [step(jax.tree.map(lambda a, b, h=h: a + h * b, f, df), x + h * dx, y + h * dy) for h in (eps, -eps)]
        pairs = zip(jax.tree.leaves(back), jax.tree.leaves((df, dx, dy)), strict=True)
        return tangent, (ends[0] - ends[1]) / (2 * eps), w @ tangent, sum(jnp.vdot(a, b) for a, b in pairs)

    tangent, differences, forward, backward = products(f, xs[0], ys[0], xs[1], ys[1])
    np.testing.assert_allclose(tangent, differences, rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(forward, backward, rtol=1e-11)


def test_bfloat16_runs_and_is_exact_to_its_eight_bits():
    f = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), funnel(jnp.float32, 0.1))
    x, y = (draw[0].astype(jnp.bfloat16) for draw in draws(jnp.float32))
    moved, again = jax.jit(lambda f, x, y: (moved := solvers.nlbp(f, x, y), f(moved)))(f, x, y)
    assert moved.dtype == jnp.bfloat16
    assert norm(again - y) <= 0.03 * norm(y)


def test_nan_logits_give_nan_and_other_lanes_do_not_know():
    f, (xs, ys) = MODELS["natural"](jnp.float64), draws(jnp.float64)
    bad = ys[:3].at[1, 2].set(jnp.nan)
    moved = jax.jit(jax.vmap(functools.partial(solvers.nlbp, f)))(xs[:3], bad)
    assert [bool(jnp.any(jnp.isnan(row))) for row in moved] == [False, True, False]


def test_what_cannot_be_back_projected_is_refused():
    f = funnel(jnp.float64, GAIN)
    with pytest.raises(ValueError, match="nlbp back-projects onto an AbstractSurjection.*got function"):
        solvers.nlbp(lambda x: x[:2], jnp.ones(4), jnp.ones(2))
    with pytest.raises(ValueError, match=r"data has shape \(5, 4\); f returns \(4,\).*jax.vmap"):
        solvers.nlbp(f, jnp.ones(12), jnp.ones((5, 4)))
    with pytest.raises(ValueError, match="lower exceeds upper in 4 of 4 entries"):
        solvers.nlbp_interval(f, jnp.ones(12), jnp.ones(4), -jnp.ones(4))


# Boxes ----------------------------------------------------------------------------------------------------------------


def test_intervals_are_met_and_left_alone_where_they_hold():
    f, (xs, ys) = MODELS["random section"](jnp.float64), draws(jnp.float64)
    step = 0.5
    data = step * jnp.round(ys / step)

    @jax.jit
    @jax.vmap
    def project(x, data):
        bounds = solvers.quantisation_box(data, step)
        moved = solvers.nlbp_interval(f, x, *bounds)
        inside = solvers.nlbp_interval(f, moved, bounds[0] - 1e-6, bounds[1] + 1e-6)
        half = solvers.nlbp_interval(f, x, *bounds, 0.5)
        return moved, inside, f(moved), f(half)

    moved, inside, predicted, halfway = project(xs, data)
    assert jnp.max(jnp.abs(predicted - data)) <= 0.5 * step + 1e-11
    np.testing.assert_allclose(inside, moved, atol=1e-10)
    start = jax.jit(jax.vmap(f))(xs)
    target = jnp.clip(start, data - 0.5 * step, data + 0.5 * step)
    np.testing.assert_allclose(halfway, 0.5 * (start + target), atol=1e-10)
    np.testing.assert_allclose(predicted, target, atol=1e-10)


def test_clipped_data_bound_one_side_only():
    data = jnp.asarray([0.0, 0.3, 1.0])
    lower, upper = solvers.clipping_box(data, 0.0, 1.0)
    np.testing.assert_array_equal(lower, [-jnp.inf, 0.3, 1.0])
    np.testing.assert_array_equal(upper, [0.0, 0.3, jnp.inf])
    f = maps.LeakyTanh((3,), 0.2)
    moved = solvers.nlbp_interval(f, jnp.asarray([-2.0, 0.0, 0.1]), lower, upper)
    np.testing.assert_allclose(f(moved), [f(jnp.asarray([-2.0] * 3))[0], 0.3, 1.0], atol=1e-12)
    # A sensor that quantises and clips: the hull of both.
    coarse = solvers.quantisation_box(data, 0.1)
    np.testing.assert_allclose(jnp.minimum(lower, coarse[0]), [-jnp.inf, 0.25, 0.95])


def test_impossible_boxes_are_refused_or_nan():
    with pytest.raises(ValueError, match="outside the range"):
        solvers.clipping_box(jnp.asarray([0.5, 255.0]), 0.0, 1.0)
    with pytest.raises(ValueError, match="step=0"):
        solvers.quantisation_box(jnp.ones(2), 0.0)
    f, x = maps.LeakyTanh((2,), 0.2), jnp.zeros(2)
    lower, upper = jax.jit(solvers.clipping_box)(jnp.asarray([0.5, 255.0]), 0.0, 1.0)
    moved = jax.jit(solvers.nlbp_interval)(f, x, lower, upper)
    assert [bool(b) for b in jnp.isnan(moved)] == [False, True]


# The solvers, in common -----------------------------------------------------------------------------------------------


def joint(gain=GAIN, seeds=(3, 4), dtype=jnp.float64, wrap=maps.Natural):
    return maps.prepare(maps.Joint([wrap(funnel(dtype, gain, seed=seed)) for seed in seeds]))


@functools.cache
def case(name):
    """A solver, its forward map, and the data of eight true points."""
    solver, f = {
        "nlbp": lambda: (solvers.NLBP(0.5, atol=1e-6), Counted(funnel(jnp.float64, GAIN))),
        "cyclic": lambda: (solvers.CyclicProjection(atol=1e-6), maps.Joint([Counted(g) for g in joint().maps])),
        "minimum norm": lambda: (solvers.MinimumNorm(None, atol=1e-6), Counted(funnel(jnp.float64, GAIN))),
    }[name]()
    xs, true = draws(jnp.float64)[0][:8], draws(jnp.float64)[0][8:16]
    return solver, f, xs, jax.jit(jax.vmap(f))(true)


# The steps of its inner solver are counted, and the last of them hangs on rounding.
minimum_norm = pytest.param("minimum norm", marks=pytest.mark.optimised)
each_solver = pytest.mark.parametrize("name", ["nlbp", "cyclic", minimum_norm])


def solve_batch(name, data=None, **kwargs):
    solver, f, xs, ys = case(name)
    return pj.solve_batch(pj.Problem(f, ys if data is None else data), solver, xs, **kwargs)


@each_solver
def test_a_batch_is_its_single_solves_traced_once(name):
    solver, f, xs, ys = case(name)
    batch = solve_batch(name)
    assert bool(jnp.all(batch.success))
    rms = jnp.sqrt(jnp.mean((jax.jit(jax.vmap(f))(batch.value) - ys) ** 2, axis=1))
    np.testing.assert_allclose(rms, batch.stats.residual_rms, rtol=1e-6, atol=1e-13)
    assert jnp.max(rms) <= 1e-6
    one = pj.solve(pj.Problem(f, ys[2]), solver, xs[2])
    CALLS.clear()
    two = pj.solve(pj.Problem(f, ys[5]), solver, xs[5])
    solve_batch(name, ys + 0.0)
    assert not CALLS, "the second call traced again"
    for index, single in ((2, one), (5, two)):
        np.testing.assert_allclose(batch.value[index], single.value, atol=1e-10)
        for count, number in vars(single.stats).items():
            if count.startswith("num") and count != "num_idle":
                assert int(getattr(batch.stats, count)[index]) == int(number), count


@each_solver
def test_lanes_do_not_know_their_neighbours(name):
    *_, xs, ys = case(name)
    batch = solve_batch(name)
    spoiled = solve_batch(name, ys.at[3].set(jnp.nan).at[5].set(1e3))
    others = np.setdiff1d(np.arange(8), [3, 5])
    np.testing.assert_array_equal(batch.value[others], spoiled.value[others])
    np.testing.assert_array_equal(batch.stats.num_steps[others], spoiled.stats.num_steps[others])
    assert bool((spoiled.result == RESULTS.nonfinite_input)[3])
    np.testing.assert_array_equal(spoiled.value[3], xs[3])


@each_solver
def test_a_budget_of_zero_steps_returns_the_start(name):
    sol = solve_batch(name, max_steps=0)
    np.testing.assert_array_equal(sol.value, case(name)[2])
    assert bool(jnp.all(sol.result == RESULTS.nonlinear_max_steps_reached))


@each_solver
def test_full_precision_and_nothing_of_the_host(name):
    solver, f, xs, ys = case(name)
    f, x, y = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), (f, xs[0], ys[0]))
    text = jax.jit(lambda f, x, y: pj.solve(pj.Problem(f, y), solver, x)).lower(f, x, y).as_text()
    assert matmul_precisions(text) == {"HIGHEST"}
    assert not [call for call in callbacks(text) if "lapack" not in call]


@pytest.mark.slow
@each_solver
def test_reverse_and_forward_mode_agree_through_a_solve(name):
    solver, f, xs, ys = case(name)

    def end(y, adjoint):
        return jnp.sin(pj.solve(pj.Problem(f, y), solver, xs[0], max_steps=20, adjoint=adjoint).value)

    dy, w = jnp.cos(jnp.arange(ys[0].size)), jnp.arange(12.0)
    forward = w @ jax.jvp(functools.partial(end, adjoint="forward"), (ys[0],), (dy,))[1]
    backward = jax.grad(lambda y: w @ end(y, "checkpointed"))(ys[0]) @ dy
    np.testing.assert_allclose(forward, backward, rtol=1e-9)


# NLBP -----------------------------------------------------------------------------------------------------------------


def test_nlbp_is_one_step_and_a_second_forward_to_verify_it():
    f, (xs, ys) = MODELS["natural"](jnp.float64), draws(jnp.float64)
    sol = pj.solve(pj.Problem(f, ys[0]), solvers.NLBP(atol=1e-10), xs[0])
    stats = sol.stats
    assert bool(sol.success)
    assert [int(n) for n in (stats.num_steps, stats.num_rejected, stats.num_f, stats.num_g)] == [1, 0, 2, 1]
    np.testing.assert_allclose(sol.value, solvers.nlbp(f, xs[0], ys[0]), atol=1e-13)


def test_smaller_steps_shrink_the_residual_geometrically():
    solver, f, xs, ys = case("nlbp")
    sol = pj.solve_batch(pj.Problem(f, ys), solver, xs, history=5)
    rows = np.asarray(sol.history.residual_rms)
    np.testing.assert_allclose(rows[:, 1:], 0.5 * rows[:, :-1], rtol=1e-9)


def test_a_tolerance_below_rounding_ends_as_stationary():
    _, f, xs, ys = case("nlbp")
    sol = pj.solve_batch(pj.Problem(f, ys), solvers.NLBP(atol=1e-30), xs)
    assert bool(jnp.all((sol.result == RESULTS.stationary) | sol.success))
    assert jnp.max(sol.stats.num_steps) <= 5
    assert jnp.max(sol.stats.residual_rms) <= 1e-12


@pytest.mark.slow
def test_nlbp_of_boxes_derives_them_from_each_observation():
    f, (xs, ys) = MODELS["random section"](jnp.float64), draws(jnp.float64)
    data = jnp.clip(jnp.round(ys[:50], 1), -0.5, 0.5)

    def box(data):
        coarse, clipped = solvers.quantisation_box(data, 0.1), solvers.clipping_box(data, -0.5, 0.5)
        return jnp.minimum(coarse[0], clipped[0]), jnp.maximum(coarse[1], clipped[1])

    bad = data.at[7, 0].set(3.0)  # no such sensor returns this
    sol = pj.solve_batch(pj.Problem(f, bad), solvers.NLBP(box=box, atol=1e-9), xs[:50])
    good = np.arange(50) != 7
    assert bool(jnp.all(sol.success[good]))
    assert bool((sol.result == RESULTS.nonfinite_input)[7])
    shown = jnp.clip(jax.jit(jax.vmap(f))(sol.value), -0.5, 0.5)[good]
    assert jnp.max(jnp.abs(shown - data[good])) <= 0.05 + 1e-8
    assert jnp.max(sol.stats.num_steps) == 1


def test_nlbp_alternates_with_a_projection():
    f = maps.SurjectiveChain([maps.LinearSurjection(matrix(3, 8, jnp.float64)), maps.LeakyTanh((3,), 0.3)])
    y = f(jnp.linspace(0.1, 1.0, 8))
    problem = pj.Problem(f, y, project=solvers.Box(0.0, jnp.inf))
    sol = pj.solve(problem, solvers.NLBP(atol=1e-8), -jnp.ones(8), max_steps=500)
    assert bool(sol.success)
    assert jnp.min(sol.value) >= 0
    assert int(sol.stats.num_steps) > 1


def test_nlbp_refuses_what_it_cannot_use():
    problem = pj.Problem(lambda x: x[:2], jnp.ones(2))
    with pytest.raises(ValueError, match=r"NLBP back-projects onto an AbstractSurjection.*SurjectiveChain"):
        pj.solve(problem, solvers.NLBP(), jnp.ones(4))
    with pytest.raises(ValueError, match="step_size=2.5; expected between 0 and 2"):
        solvers.NLBP(2.5)
    f = maps.LeakyReLU((2,))
    prior = pj.GaussianPrior(jnp.zeros(2), jnp.eye(2))
    with pytest.raises(ValueError, match="NLBP knows no prior"):
        pj.solve(pj.Problem(f, jnp.ones(2), prior=prior), solvers.NLBP(), jnp.ones(2))
    with pytest.raises(ValueError, match=r"box returns a bound of shape \(3,\)"):
        pj.solve(pj.Problem(f, jnp.ones(2)), solvers.NLBP(box=lambda data: (jnp.zeros(3), 1.0)), jnp.ones(2))


# Minimum norm ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rank", [None, 3])
def test_of_a_linear_map_it_is_moore_penrose_in_one_step(rank):
    a = matrix(5, 7, jnp.float64, rank=rank)
    y = a @ jnp.linspace(1, 2, 7)
    problem = pj.Problem(jax.tree_util.Partial(jnp.matmul, a), y)
    sol = pj.solve(problem, solvers.MinimumNorm(atol=1e-12, normal_rtol=1e-10), jnp.arange(7.0))
    np.testing.assert_allclose(sol.value, np.linalg.pinv(a, rcond=1e-10) @ y, atol=1e-12)
    assert int(sol.stats.num_steps) == 1


@pytest.mark.slow
@pytest.mark.parametrize("max_cg_steps", [20, 0], ids=["newton", "gauss-newton"])
def test_it_agrees_with_scipy(max_cg_steps):
    _, f, xs, ys = case("minimum norm")
    solver = solvers.MinimumNorm(None, atol=1e-10, normal_rtol=1e-7, max_cg_steps=max_cg_steps)
    sol = pj.solve_batch(pj.Problem(f, ys), solver, xs, max_steps=400)
    assert bool(jnp.all(sol.success))
    value, jac = jax.jit(lambda v: f(v)), jax.jit(lambda v: jax.jacrev(f)(v))
    for y, start, x in zip(ys, np.asarray(xs), sol.value, strict=True):
        constraint = {"fun": lambda v, y=y: np.asarray(value(v) - y), "jac": lambda v: np.asarray(jac(v))}
        other = scipy.optimize.minimize(
            lambda v, start=start: 0.5 * np.sum((v - start) ** 2),
            start,
            jac=lambda v, start=start: v - start,
            method="SLSQP",
            constraints={"type": "eq", **constraint},
            options={"ftol": 1e-14, "maxiter": 500},
        )
        np.testing.assert_allclose(x, other.x, atol=1e-5)
        np.testing.assert_allclose(norm(x - start), norm(other.x - start), rtol=1e-9)
    if max_cg_steps > 0:
        assert jnp.max(sol.stats.num_steps) <= 25


@pytest.mark.slow
def test_from_the_start_as_reference_it_is_nearer_than_back_projection():
    _, f, xs, ys = case("minimum norm")
    sol = solve_batch("minimum norm")
    near = jnp.linalg.norm(sol.value - xs, axis=1)
    for g in (f.f, maps.Natural(f.f)):
        moved = jax.jit(jax.vmap(functools.partial(solvers.nlbp, g)))(xs, ys)
        far = jnp.linalg.norm(moved - xs, axis=1)
        assert bool(jnp.all(near < far))
        assert jnp.median(near) < 0.9 * jnp.median(far)


def test_minimum_norm_with_data_out_of_range_is_no_success():
    a = matrix(2, 4, jnp.float64)
    sol = pj.solve(pj.Problem(lambda x: jnp.tanh(a @ x), jnp.asarray([0.2, 1.5])), solvers.MinimumNorm(), jnp.ones(4))
    assert not bool(sol.success)
    assert bool(jnp.all(jnp.isfinite(sol.value)))


def test_minimum_norm_refuses_what_it_cannot_use():
    f = lambda x: x[:2]
    with pytest.raises(ValueError, match=r"reference has shape \(3,\); expected a scalar, \(4,\)"):
        pj.solve(pj.Problem(f, jnp.ones(2)), solvers.MinimumNorm(jnp.ones(3)), jnp.ones(4))
    with pytest.raises(ValueError, match="no prior and no projection"):
        pj.solve(pj.Problem(f, jnp.ones(2), project=solvers.Box(0, 1)), solvers.MinimumNorm(), jnp.ones(4))


# Several surjections --------------------------------------------------------------------------------------------------


def test_the_joint_map_joins_and_separates():
    f = maps.Joint([maps.LeakyReLU((2, 3)), maps.CubicSine((2, 3))])
    x = jnp.linspace(-1, 1, 6).reshape(2, 3)
    parts = f.separate(f(x))
    for part, single in zip(parts, f.maps, strict=True):
        np.testing.assert_array_equal(part, single(x))
    np.testing.assert_array_equal(f.join(parts), f(x))
    with pytest.raises(ValueError, match="Map 1 of Joint"):
        maps.Joint([maps.LeakyReLU((2,)), maps.LeakyReLU((3,))])
    with pytest.raises(ValueError, match="got none"):
        maps.Joint([])
    with pytest.raises(ValueError, match="an AbstractMap as map 0, got function"):
        maps.Joint([lambda x: x])
    with pytest.raises(ValueError, match=r"join got parts of shapes \[\(6,\)\]"):
        f.join([x.ravel()])


def test_sweeps_meet_the_last_constraint_and_agree_for_orthogonal_ones():
    f = joint()
    xs, ys = draws(jnp.float64)[0][:20], jax.jit(jax.vmap(f))(draws(jnp.float64)[0][20:40])
    swept = jax.jit(jax.vmap(lambda x, y: solvers.cyclic_nlbp(f, x, y, 3)))(xs, ys)
    last = jax.jit(jax.vmap(f.maps[1]))(swept) - ys[:, 4:]
    assert jnp.max(jnp.abs(last)) <= 1e-10
    q = matrix(6, 6, jnp.float64)
    q = jnp.linalg.qr(q)[0]
    f = maps.Joint([maps.LinearSurjection(q[:2]), maps.LinearSurjection(q[2:5])])
    y = jnp.linspace(-1, 1, 5)
    np.testing.assert_allclose(f(solvers.cyclic_nlbp(f, jnp.ones(6), y)), y, atol=1e-12)


def test_contradictory_data_end_as_stationary_with_the_residual_that_remains():
    first = maps.SurjectiveChain([maps.LinearSurjection(matrix(2, 5, jnp.float64)), maps.LeakyTanh((2,), 0.3)])
    f = maps.Joint([first, first])
    y = jnp.asarray([0.5, 0.2, -0.5, 0.2])
    sol = pj.solve(pj.Problem(f, y), solvers.CyclicProjection(), jnp.ones(5))
    assert bool(sol.result == RESULTS.stationary)
    np.testing.assert_allclose(sol.stats.residual_rms, jnp.sqrt(jnp.mean((f(sol.value) - y) ** 2)))
    np.testing.assert_allclose(sol.stats.residual_rms, 0.5 / 2**0.5, rtol=1e-4)  # half-way between the two


def test_cyclic_projection_refuses_what_it_cannot_use():
    f = maps.LeakyReLU((2,))
    with pytest.raises(ValueError, match="CyclicProjection expected a maps.Joint of surjections, got LeakyReLU"):
        pj.solve(pj.Problem(f, jnp.ones(2)), solvers.CyclicProjection(), jnp.ones(2))
    mixed = maps.Joint([f, maps.MLP((2, 2), key=key())])
    with pytest.raises(ValueError, match="CyclicProjection back-projects onto an AbstractSurjection.*got MLP"):
        pj.solve(pj.Problem(mixed, jnp.ones(4)), solvers.CyclicProjection(), jnp.ones(2))
    with pytest.raises(ValueError, match="progress=1.5"):
        solvers.CyclicProjection(progress=1.5)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("gain", "least", "plain_least", "plain_most"), [(0.1, 1.0, 0.9, 1.0), (0.3, 0.99, 0.6, 0.9), (1.0, 0.97, 0.0, 0.1)]
)
def test_the_share_of_cases_that_converge_as_the_nonlinearity_grows(gain, least, plain_least, plain_most):
    f = joint(gain)
    xs, true = (jax.random.normal(key(seed), (300, 12)) for seed in (1, 2))
    ys = jax.vmap(f)(true)
    plain = jax.jit(jax.vmap(lambda x, y: f(solvers.cyclic_nlbp(f, x, y, 200)) - y))(xs, ys)
    share = jnp.mean(jnp.sqrt(jnp.mean(plain**2, axis=1)) <= 1e-8)
    assert plain_least <= share <= plain_most
    sol = pj.solve_batch(pj.Problem(f, ys), solvers.CyclicProjection(atol=1e-8), xs, max_steps=300)
    assert jnp.mean(sol.success) >= least
    left = jnp.sqrt(jnp.mean((jax.vmap(f)(sol.value) - ys) ** 2, axis=1))
    np.testing.assert_allclose(left, sol.stats.residual_rms, rtol=1e-6, atol=1e-12)
