import functools
import itertools

import chex
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from pinv_jax import learn, maps
from pinv_jax.learn import Stage, Term, _fit

D, M, N = 3, 4, 70
KEY = jax.random.key(0)
forward, inverse = (lambda m: m.forward), (lambda m: m.inverse)


def pair():
    k1, k2 = jax.random.split(jax.random.key(1))
    return learn.InversePair(maps.MLP((D, M), key=k1), maps.MLP((M, 5, D), key=k2))


def dataset(num=N, seed=2):
    xs = jax.random.normal(jax.random.key(seed), (num, D))
    return xs, xs @ jax.random.normal(jax.random.key(99), (D, M))


ramp = optax.linear_schedule(0.0, 1.0, 17)
adam = functools.cache(optax.adam)  # the same object for the same rate: what is compiled is compiled once


def stage(terms=None, trainable=inverse, num_steps=17, batch_size=16, rate=1e-2, select=None):
    terms = {"reconstruction": Term(learn.reconstruction)} if terms is None else terms
    return Stage(terms, trainable, num_steps, batch_size, adam(rate), select)


def same(a, b):
    leaves = [jax.tree.leaves(eqx.filter(tree, eqx.is_array)) for tree in (a, b)]
    return all(bool(jnp.array_equal(x, y)) for x, y in zip(*leaves, strict=True))


def two_stages(rate=1e-2):
    return {
        "surrogate": stage({"fit": Term(learn.forward_fit)}, forward, rate=rate, select=learn.task_score),
        "inverse": stage(
            {"rec": Term(learn.reconstruction), "jcp": Term(learn.jcp, ramp, 4)},
            rate=rate,
            select=learn.rjcp_score,
        ),
    }


def test_fit_reaches_the_least_squares_solution():
    xs, ys = dataset()
    optimiser = optax.adam(optax.cosine_decay_schedule(0.1, 600))
    one = Stage({"fit": Term(learn.forward_fit)}, forward, 600, 35, optimiser)
    model, history = learn.fit(pair(), {"only": one}, (xs, ys), key=KEY)
    np.testing.assert_allclose(jax.vmap(model.forward)(xs), ys, atol=1e-3)
    loss = history["only"].loss
    assert loss.shape == (600,)
    assert loss[-1] < 1e-5 * loss[0]


def test_frozen_leaves_are_bit_equal():
    start = pair()
    model, _ = learn.fit(start, {"only": stage()}, dataset(), key=KEY)
    assert same(model.forward, start.forward)
    assert not same(model.inverse, start.inverse)
    bias_only = stage(trainable=lambda m: [m.inverse.fn.layers[0].bias])
    model, _ = learn.fit(start, {"only": bias_only}, dataset(), key=KEY)
    changed = [not same(a, b) for a, b in zip(jax.tree.leaves(model), jax.tree.leaves(start), strict=True)]
    assert sum(changed) == 1
    assert not same(model.inverse.fn.layers[0].bias, start.inverse.fn.layers[0].bias)


def test_physics_may_be_the_forward_map():
    matrix = dataset()[1][:D]
    physics = learn.InversePair(lambda x: x @ matrix, pair().inverse)
    model, history = learn.fit(physics, {"only": stage(num_steps=100)}, dataset(), key=KEY)
    assert history["only"].loss[-10:].mean() < 0.5 * history["only"].loss[0]


@pytest.mark.parametrize("stop_after", [1, 4, 6, 9])
def test_a_run_that_was_killed_and_resumed_equals_one_that_was_not(tmp_path, stop_after, monkeypatch):
    monkeypatch.setattr(learn._checkpoint.Checkpoint, "seconds_between_saves", 0.0)
    run = functools.partial(
        learn.fit, pair(), two_stages(), dataset(), key=KEY, validation=dataset(20, 3), steps_per_round=4
    )
    whole, whole_history = run()
    calls = itertools.count(1)

    def killer(*_):
        if next(calls) == stop_after:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(checkpoint=tmp_path, progress=killer)
    rounds = []
    resumed, history = run(checkpoint=tmp_path, progress=lambda *args: rounds.append(args))
    assert len(rounds) == 10 - stop_after  # nothing is done twice
    assert same(resumed, whole)
    assert jax.tree.all(jax.tree.map(lambda a, b: np.array_equal(a, b, equal_nan=True), history, whole_history))
    again, _ = run(checkpoint=tmp_path, progress=killer)  # finished stages are read back
    assert same(again, whole)


def test_saves_that_are_far_apart_cost_time_and_not_bits(tmp_path):
    run = functools.partial(learn.fit, pair(), {"only": stage()}, dataset(), key=KEY, steps_per_round=2)

    def killer(name, done, total, loss):
        if done == 10:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(checkpoint=tmp_path, progress=killer)
    assert same(run(checkpoint=tmp_path)[0], run()[0])


def test_a_checkpoint_of_another_configuration_is_refused_and_kept(tmp_path):
    run = lambda **changes: learn.fit(
        **({"model": pair(), "stages": {"only": stage()}, "data": dataset(), "key": KEY} | changes),
        checkpoint=tmp_path,
    )
    run()
    before = (tmp_path / "only.npz").read_bytes()
    others = [
        {"key": jax.random.key(5)},
        {"data": dataset(seed=8)},
        {"stages": {"only": stage(rate=2e-2)}},
        {"stages": {"only": stage(num_steps=18)}},
        {"stages": {"only": stage({"reconstruction": Term(learn.reconstruction, 0.5)})}},
        {"stages": {"only": stage({"reconstruction": Term(learn.cycle)})}},
        {"model": jax.tree.map(lambda a: 2 * a, pair())},
        {"model": learn.InversePair(pair().forward, maps.MLP((M, 6, D), key=KEY))},
    ]
    for other in others:
        with pytest.raises(ValueError, match="only.npz is (not a|a) checkpoint"):
            run(**other)
    assert (tmp_path / "only.npz").read_bytes() == before
    (tmp_path / "only.npz").write_bytes(before[:200])
    with pytest.raises(ValueError, match=r"(?s)not a checkpoint of this fit.*delete"):
        run()


def test_selection_keeps_the_best_round_and_sees_where_it_began():
    calls = []

    def score(model, start_model, validation, key):
        calls.append(1)  # counts traces
        return jnp.abs(jnp.max(jnp.abs(model.inverse.arrays[-1] - start_model.inverse.arrays[-1])) - validation)

    run = lambda num_steps, select, validation: learn.fit(
        pair(),
        {"only": stage(num_steps=num_steps, select=select)},
        dataset(),
        key=KEY,
        validation=validation,
        steps_per_round=1,
    )
    model, history = run(12, score, jnp.asarray(0.035))
    scores = history["only"].score
    best = int(np.argmin(scores))
    assert 0 < best < 11
    assert history["only"].best_round == best
    assert len(calls) == 1
    shorter, _ = run(best + 1, None, None)
    assert same(model, shorter)  # what is kept is what a run that ended there returns


def test_a_score_that_is_never_finite_is_an_error():
    select = lambda *_: jnp.asarray(jnp.nan)
    with pytest.raises(FloatingPointError, match="finite selection score"):
        learn.fit(pair(), {"only": stage(select=select)}, dataset(), key=KEY, validation=0)


def test_one_nan_stops_the_run_and_names_the_step():
    xs, ys = dataset()
    poison = lambda step: jnp.where(step == 6, jnp.nan, 1.0)
    terms = {"rec": Term(learn.reconstruction, poison)}
    with pytest.raises(FloatingPointError, match=r"stage 'only' is not finite at step 6 \(rec = "):
        learn.fit(pair(), {"only": stage(terms)}, (xs, ys), key=KEY, steps_per_round=4)
    with pytest.raises(FloatingPointError, match="at step [0-3] "):
        learn.fit(pair(), {"only": stage()}, (xs.at[33, 0].set(jnp.nan), ys), key=KEY, steps_per_round=4)


def test_schedules_constants_and_gates_weigh_the_terms():
    opens = lambda model, validation, round: round >= validation
    terms = {
        "a": Term(learn.reconstruction, optax.linear_schedule(0.0, 1.0, 10)),
        "b": Term(learn.cycle, 0.25),
        "c": Term(learn.jcp, learn.Gated(lambda round: 10.0 + round, opens)),
    }
    _, history = learn.fit(
        pair(), {"only": stage(terms, num_steps=12)}, dataset(), key=KEY, validation=jnp.asarray(2), steps_per_round=3
    )
    weights, values = history["only"].weights, history["only"].terms
    np.testing.assert_allclose(weights["a"], np.minimum(np.arange(12) / 10, 1), rtol=1e-6)
    np.testing.assert_array_equal(weights["b"], 0.25)
    np.testing.assert_array_equal(weights["c"], [0] * 6 + [12] * 3 + [13] * 3)
    np.testing.assert_allclose(history["only"].loss, sum(weights[n] * values[n] for n in terms), rtol=1e-12)


def test_a_gate_stays_open():
    opens = lambda model, validation, round: round == 1
    terms = {"c": Term(learn.jcp, learn.Gated(lambda round: 1.0, opens))}
    _, history = learn.fit(
        pair(), {"only": stage(terms, num_steps=4)}, dataset(), key=KEY, validation=0, steps_per_round=1
    )
    np.testing.assert_array_equal(history["only"].weights["c"], [0, 1, 1, 1])


@pytest.mark.slow
def test_an_ablation_sees_the_same_examples_and_probes():
    terms = {"rec": Term(learn.reconstruction), "jcp": Term(learn.jcp, 0.5), "cyc": Term(learn.cycle, 0.0)}
    full = stage(terms)
    run = lambda one: learn.fit(pair(), {"only": one}, dataset(), key=KEY)
    (_, with_idle), (_, without) = run(full), run(full.without("cyc"))
    assert sorted(with_idle["only"].terms) == ["jcp", "rec"]
    np.testing.assert_array_equal(with_idle["only"].loss, without["only"].loss)
    _, alone = run(full.without("jcp", "cyc"))
    assert alone["only"].terms["rec"][0] == without["only"].terms["rec"][0]
    with pytest.raises(ValueError, match="no term"):
        full.without("jpc")


def test_an_epoch_sees_every_example_once_and_epochs_differ():
    xs = jnp.broadcast_to(jnp.arange(64.0)[:, None], (64, D))
    ys = jnp.zeros((64, M))
    first = lambda model, x, y, key: x[0] + 0 * jnp.sum(model.inverse(y))
    terms = {"mean": Term(first), "head": Term(first, 1.0, num_examples=1)}
    _, history = learn.fit(pair(), {"only": stage(terms, num_steps=8)}, (xs, ys), key=KEY)
    means, heads = history["only"].terms["mean"], history["only"].terms["head"]
    assert means[:4].sum() * 16 == means[4:].sum() * 16 == 63 * 32
    assert not np.array_equal(means[:4], means[4:])
    assert len(np.unique(heads[:4])) == 4
    assert set(heads) <= set(range(64))


def test_a_sampler_draws_afresh():
    def sampler(key):
        x = jax.random.normal(key, (D,))
        return x, jnp.concatenate([x, x[:1]])

    first = lambda model, x, y, key: x[0] + 0 * jnp.sum(model.inverse(y))
    terms = {"head": Term(first, 1.0, num_examples=1), "rec": Term(learn.reconstruction)}
    _, history = learn.fit(pair(), {"only": stage(terms, num_steps=100)}, sampler, key=KEY)
    assert len(np.unique(history["only"].terms["head"])) == 100


def test_each_stage_compiles_once_and_a_second_fit_not_at_all():
    traces = []

    def counted(model, x, y, key, *, scale):
        traces.append(1)
        return scale * jnp.mean((model.inverse(y) - x) ** 2)

    optimiser = optax.adam(1e-2)

    def run(seed):
        one = Stage({"a": Term(functools.partial(counted, scale=2.0))}, lambda m: m.inverse, 17, 16, optimiser)
        learn.fit(pair(), {"only": one}, dataset(seed=seed), key=jax.random.key(seed), steps_per_round=5)

    run(0)
    assert len(traces) == 1
    run(1)
    assert len(traces) == 1


def test_progress_comes_from_the_host_and_the_round_has_no_callbacks():
    seen = []
    learn.fit(pair(), {"only": stage()}, dataset(), key=KEY, steps_per_round=5, progress=lambda *a: seen.append(a))
    assert [call[:3] for call in seen] == [("only", 5, 17), ("only", 10, 17), ("only", 15, 17), ("only", 17, 17)]
    assert all(isinstance(call[3], float) and np.isfinite(call[3]) for call in seen)
    texts = []
    round_ = _fit._run_round

    class Spy:
        def __call__(self, *args):
            texts.append(round_.lower(*args).as_text())
            return round_(*args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_fit, "_run_round", Spy())
        learn.fit(pair(), {"only": stage()}, dataset(), key=KEY)
    assert texts
    assert not any("callback" in text for text in texts)


@pytest.mark.slow
def test_float32_training_stays_float32():
    model = jax.tree.map(lambda a: a.astype(jnp.float32), pair())
    xs, ys = (a.astype(jnp.float32) for a in dataset())
    out, history = learn.fit(model, two_stages(), (xs, ys), key=KEY, validation=(xs, ys))
    assert {leaf.dtype for leaf in jax.tree.leaves(out)} == {jnp.dtype("float32")}
    assert history["inverse"].loss.dtype == np.float32


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data": 3}, "sampler"),
        ({"data": (jnp.zeros((5, D)), jnp.zeros((6, M)))}, "same number of examples"),
        ({"data": dataset(8)}, "batch_size=16, more than the 8 examples"),
        ({"stages": {"only": stage(num_steps=0)}}, "num_steps=0"),
        ({"stages": {"only": stage({"a": Term(learn.cycle, 0.0)})}}, "del stages"),
        ({"stages": {"only": stage(trainable=lambda m: [])}}, "no float array"),
        ({"stages": {"only": stage(select=learn.task_score)}}, "validation"),
        ({"stages": {"only": stage({"a": Term(lambda m, x, y, k: m.inverse(y))})}}, "expected a scalar"),
        ({"steps_per_round": 0}, "steps_per_round=0"),
    ],
)
def test_bad_input_is_named(changes, message):
    arguments = {"stages": {"only": stage()}, "data": dataset(), "key": KEY} | changes
    with pytest.raises(ValueError, match=message):
        learn.fit(pair(), **arguments)


def test_a_prepared_model_is_trained_like_the_bare_one():
    """What `prepare` computed is no parameter: trained as one, a mixer would stop being orthogonal."""
    f = maps.SurjectiveChain(
        [maps.Cayley((6,), key=jax.random.key(0)), maps.SurjectiveCoupling((6,), 2), maps.LeakyReLU((2,))]
    )
    data = (jnp.linspace(-1, 1, 96).reshape(16, 6), jnp.linspace(1, -1, 32).reshape(16, 2))
    stages = {"a": learn.Stage({"fit": learn.Term(learn.regression)}, _everything, 5, 8, optax.sgd(0.1))}
    bare, prepared = (learn.fit(g, stages, data, key=jax.random.key(1))[0] for g in (f, maps.prepare(f)))
    chex.assert_trees_all_equal(bare, prepared)
    w = maps.prepare(prepared).layers[0].matrix()
    np.testing.assert_allclose(w @ w.T, np.eye(6), atol=1e-14)
    assert not np.allclose(w, f.layers[0].matrix(), atol=1e-3)


def _everything(model):
    return model
