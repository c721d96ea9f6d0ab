import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from pinv_jax import learn, maps
from pinv_jax.learn import Stage, Term, _surjective

KEY = jax.random.key(0)
N, MIDDLE, M = 10, 7, 3


@functools.cache
def random_model(seed=1, *, section=True):
    """Two blocks with random rotations and random (not zero) inner networks."""

    def block(size, num_outputs, key):
        keys = jax.random.split(key, 4)
        lost = size - num_outputs
        net = lambda key, a, b: maps.MLP((a, 8, b), activation="tanh", key=key)
        return [
            maps.Cayley((size,), key=keys[0]),
            maps.SurjectiveCoupling(
                (size,),
                num_outputs,
                scale=net(keys[1], lost, num_outputs),
                shift=net(keys[2], lost, num_outputs),
                section=net(keys[3], num_outputs, lost) if section else None,
            ),
        ]

    first, second = jax.random.split(jax.random.key(seed))
    return maps.SurjectiveChain([*block(N, MIDDLE, first), *block(MIDDLE, M, second)])


def inputs(num, seed):
    """Points near a curved surface of dimension M, so that what is lost can be guessed."""
    u = jax.random.normal(jax.random.key(seed), (num, M))
    lift = jax.random.normal(jax.random.key(99), (M, N)) / M**0.5
    return jnp.tanh(u @ lift) + 0.5 * (u @ lift)


def labelled(num=256, seed=5):
    xs = inputs(num, seed)
    return xs, jnp.argmax(xs[:, :M], axis=1)


def leaves(tree):
    return jax.tree.leaves(eqx.filter(tree, eqx.is_array))


def same(a, b):
    return all(bool(jnp.array_equal(x, y)) for x, y in zip(leaves(a), leaves(b), strict=True))


@functools.partial(jax.jit, static_argnums=0)
def values(loss, model, xs, ys):
    return jax.vmap(lambda x, y: loss(model, x, y, KEY))(xs, ys)


@jax.jit
def predict(model, xs):
    return jax.vmap(model)(xs)


@jax.jit
def picked(model, xs):
    return jnp.concatenate(jax.vmap(lambda x: jax.tree.leaves(model.section(model(x))))(xs), axis=1)


SMALL = learn.SurjectiveConstants(
    epochs=(50, 5), batch_size=64, learning_rates=(1e-2, 1e-2), warmup_steps=3, reconstruction_weights=(1.0, 40.0)
)
CROSS, REC = learn.cross_entropy, learn.surjective_reconstruction


@pytest.fixture(scope="module")
def published():
    start = random_model()
    stages = learn.surjective_stages(CROSS, 256, constants=SMALL)
    one, _ = learn.fit(start, {"task": stages["task"]}, labelled(), key=KEY, validation=labelled(64, 6))
    two, history = learn.fit(one, {"sections": stages["sections"]}, labelled(), key=KEY)
    return start, one, two, history["sections"]


def stage_of_sections(terms, num_steps, rate=3e-2):
    schedule = optax.cosine_decay_schedule(rate, num_steps)
    return {"sections": Stage(terms, maps.sections, num_steps, 128, optax.adam(schedule))}


@pytest.fixture(scope="module")
def natural_only():
    return learn.fit(
        random_model(),
        stage_of_sections({"natural": Term(learn.naturalness)}, 1500),
        labelled(),
        key=KEY,
        steps_per_round=500,
    )


def test_task_losses_are_those_of_the_textbook():
    model, x = random_model(), inputs(1, 3)[0]
    held, target = jnp.asarray([True, False, True]), jnp.asarray([1.0, -2.0, 0.5])

    @jax.jit
    def everything(model):
        entropies = [CROSS(model, x, y, KEY) for y in (jnp.asarray(2), jnp.eye(M)[2])]
        binary = [learn.attributes(model, x, y, KEY) for y in (held, held.astype(int), held.astype(float))]
        return model(x), entropies, binary, learn.regression(model, x, target, KEY)

    logits, entropies, binary, regression = everything(model)
    logits = np.asarray(logits)
    p = 1 / (1 + np.exp(-logits))
    np.testing.assert_allclose(entropies, 2 * [-(logits - np.log(np.exp(logits).sum()))[2]], rtol=1e-12)
    np.testing.assert_allclose(binary, 3 * [-np.log(np.where(held, p, 1 - p)).sum()], rtol=1e-12)
    np.testing.assert_allclose(regression, np.mean((logits - target) ** 2), rtol=1e-12)


def test_targets_of_another_shape_are_refused():
    model, x = maps.LinearSurjection(jnp.eye(M, N)), jnp.ones(N)
    with pytest.raises(ValueError, match=r"cross_entropy: the model returns shape \(3,\).*expected to have shape \(\)"):
        learn.cross_entropy(model, x, jnp.asarray([1]), KEY)
    for loss in (learn.cross_entropy, learn.attributes, learn.regression):
        with pytest.raises(ValueError, match=r"shape \(3,\); got \(1,\)"):
            loss(model, x, jnp.asarray([1.0]), KEY)


def test_natural_loss_is_what_encoding_again_would_give_and_zero_for_the_natural_section():
    model, xs = random_model(), inputs(3, 4)

    @jax.jit
    @jax.vmap
    def both(x):
        back = model.pinv(model(x))
        again, origin = (jnp.concatenate(model.split(point)[1][1::2]) for point in (back, jnp.zeros(N)))
        losses = [loss(model, x, x, KEY) for loss in (learn.naturalness, learn.surjective_reconstruction)]
        zeros = learn.naturalness(maps.Natural(model), x, x, KEY), learn.right_inverse(model, x, x, KEY)
        return losses, [jnp.mean((again - origin) ** 2), jnp.mean((back - x) ** 2)], zeros

    losses, expected, zeros = both(xs)
    assert np.min(losses) > 1e-2
    np.testing.assert_allclose(losses, expected, rtol=1e-10)
    assert np.max(zeros) <= 1e-20


def test_natural_loss_says_when_nothing_is_lost():
    with pytest.raises(ValueError, match="loses no coordinate"):
        learn.naturalness(maps.Cayley((4,)), jnp.ones(4), jnp.ones(4), KEY)


def test_the_right_inverse_term_is_a_no_op():
    x = inputs(1, 3)[0]
    gradient = jax.jit(jax.grad(lambda m: learn.right_inverse(m, x, x, KEY)))(random_model())
    assert max(float(jnp.max(jnp.abs(leaf))) for leaf in leaves(gradient)) <= 1e-13


def test_two_selectors_cover_the_model_once():
    model = random_model()
    nets, rest = leaves(maps.sections(model)), leaves(learn.but_sections(model))
    assert len(nets) == 8
    assert len(nets) + len(rest) == len(leaves(model))
    assert not {id(leaf) for leaf in nets} & {id(leaf) for leaf in rest}
    assert len(leaves(learn.but_sections(random_model(section=False)))) == len(rest)


def test_the_first_stage_trains_everything_and_learns_the_task(published):
    start, one, _, _ = published
    assert not same(maps.sections(one), maps.sections(start))
    xs, ys = labelled(200, 7)
    accuracy = [float(jnp.mean(jnp.argmax(predict(model, xs), axis=1) == ys)) for model in (start, one)]
    assert accuracy[1] > 0.75
    assert accuracy[1] > accuracy[0] + 0.2


def test_the_second_stage_leaves_the_map_bit_identical(published):
    _, one, two, history = published
    assert same(learn.but_sections(two), learn.but_sections(one))
    assert not same(maps.sections(two), maps.sections(one))
    xs = inputs(50, 8)
    np.testing.assert_array_equal(predict(two, xs), predict(one, xs))
    for before, after in zip(jax.tree.leaves(one), jax.tree.leaves(two), strict=True):
        assert before.dtype == after.dtype
    assert sorted(history.terms) == ["natural", "reconstruction"]


def test_the_papers_first_stage_leaves_the_sections_bit_identical():
    start = random_model()
    stages = learn.natural_stages(CROSS, 256, constants=SMALL)
    assert list(stages) == ["task", "sections"]
    assert [list(stage.terms) for stage in stages.values()] == [["task"], ["natural"]]
    one, _ = learn.fit(start, {"task": stages["task"]}, labelled(), key=KEY, validation=labelled(64, 6))
    assert same(maps.sections(one), maps.sections(start))
    assert not same(learn.but_sections(one), learn.but_sections(start))


def test_the_natural_loss_alone_ends_at_the_constant_section(natural_only):
    model, history = natural_only
    xs = inputs(100, 9)
    spread = lambda m: float(jnp.mean(jnp.var(picked(m, xs), axis=0)))
    assert spread(random_model()) > 1e-2
    assert spread(model) < 1e-4 * spread(random_model())
    assert history["sections"].loss[-1] < 1e-4 * history["sections"].loss[0]


def test_reconstruction_gives_a_closer_pinv_than_the_natural_loss(natural_only):
    terms = {"natural": Term(learn.naturalness, 0.1), "reconstruction": Term(learn.surjective_reconstruction, 40.0)}
    model, _ = learn.fit(random_model(), stage_of_sections(terms, 300), labelled(), key=KEY, steps_per_round=300)
    xs = inputs(100, 9)
    error = lambda m: float(jnp.mean(values(REC, m, xs, xs)))
    natural = error(maps.Natural(random_model()))
    np.testing.assert_allclose(error(natural_only[0]), natural, rtol=0.05)
    assert error(model) < 0.5 * natural


def test_recipes_have_the_published_constants():
    stages = learn.surjective_stages(learn.attributes, 24_000, constants=learn.PUBLISHED_SURJECTIVE)
    assert [stage.num_steps for stage in stages.values()] == [930, 4650]
    weights = {n: {t: term.weight for t, term in stage.terms.items()} for n, stage in stages.items()}
    assert weights == {
        "task": {"task": 1.0, "right_inverse": 40.0, "reconstruction": 40.0},
        "sections": {"natural": 0.1, "right_inverse": 1.0, "reconstruction": 40.0},
    }
    assert stages["task"].select is not None
    assert stages["sections"].select is None
    default = learn.surjective_stages(learn.attributes, 24_000)
    assert default["task"].terms["right_inverse"].weight == 0
    assert default["task"].optimiser is stages["task"].optimiser
    with pytest.raises(ValueError, match=r"100 examples are less than one batch of 256.*SurjectiveConstants"):
        learn.surjective_stages(learn.attributes, 100)


def test_the_rate_warms_up_stays_and_falls():
    rate = [float(_surjective._rate(2e-4, 1000, 200, 600, step)) for step in (0, 99, 199, 300, 400, 700, 1000)]
    np.testing.assert_allclose(rate, [1e-6, 1e-4, 2e-4, 2e-4, 2e-4, 1e-4, 0], rtol=1e-6)
    short = [float(_surjective._rate(1.0, 100, 200, 60, step)) for step in range(100)]
    assert max(short) <= 0.5
    assert short[-1] < 0.02


def test_clipped_adam_is_clipping_then_adam():
    gradient = jnp.asarray([30.0, -40.0])
    optimiser = learn.clipped_adam(1e-2, num_steps=10, warmup_steps=2)
    state = optimiser.init(gradient)
    sizes = []
    for _ in range(4):
        updates, state = optimiser.update(gradient, state)
        sizes.append(np.abs(updates))
    # Adam's step for an unchanging gradient is the rate itself; eps against the clipped entries 0.6 and 0.8
    np.testing.assert_allclose(sizes, 1e-2 * np.outer([0.5, 1, 1, 1], [1, 1]), rtol=1e-6)


def test_selection_scores_the_loss_of_the_first_stage():
    model, (xs, ys) = random_model(), labelled(20, 6)

    @jax.jit
    def scores(model):
        score = functools.partial(learn.surjective_score, model, None, (xs, ys), KEY, task=CROSS)
        losses = [jax.vmap(lambda x, y, f=f: f(model, x, y, KEY))(xs, ys) for f in (CROSS, REC)]
        return score(), score(reconstruction_weight=40, right_inverse_weight=40), losses

    task, both, (entropy, rec) = scores(model)
    np.testing.assert_allclose(task, np.mean(entropy), rtol=1e-10)
    np.testing.assert_allclose(both, np.mean(entropy) + 40 * np.mean(rec), rtol=1e-10)


def test_float32_stays_float32():
    cast = lambda leaf: leaf.astype(jnp.float32) if eqx.is_inexact_array(leaf) else leaf
    model, x = jax.tree.map(cast, random_model()), inputs(1, 3)[0].astype(jnp.float32)
    targets = {CROSS: jnp.asarray(1), learn.attributes: jnp.ones(M, bool), learn.regression: x[:M], REC: x}
    for loss, y in targets.items():
        assert jax.eval_shape(loss, model, x, y, KEY).dtype == jnp.float32
    assert jax.jit(learn.right_inverse)(model, x, x, KEY) <= 1e-10
