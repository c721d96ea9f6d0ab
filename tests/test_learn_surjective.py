import dataclasses
import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pinv_jax import learn, maps
from pinv_jax.learn import _surjective

KEY = jax.random.key(0)
N, MIDDLE, M = 10, 7, 3


@functools.cache
def random_model(*, section=True):
    """Two blocks with a random rotation in front and random (not zero) inner networks."""
    keys = jax.random.split(jax.random.key(1), 6)
    net = lambda key, a, b: maps.MLP((a, 8, b), activation="tanh", key=key)
    middle, lost = N - MIDDLE, MIDDLE - M
    sections = [net(keys[4], MIDDLE, middle), net(keys[5], M, lost)] if section else [None, None]
    first = {"scale": net(keys[1], middle, MIDDLE), "shift": net(keys[2], middle, MIDDLE), "section": sections[0]}
    second = {"shift": net(keys[3], lost, M), "section": sections[1]}
    blocks = [maps.SurjectiveCoupling((N,), MIDDLE, **first), maps.SurjectiveCoupling((MIDDLE,), M, **second)]
    return maps.SurjectiveChain([maps.Cayley((N,), key=keys[0]), *blocks])


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
def mean_of(loss, model, xs):
    return jnp.mean(jax.vmap(lambda x: loss(model, x, x, KEY))(xs))


@jax.jit
def predict(model, xs):
    return jax.vmap(model)(xs)


@jax.jit
def picked(model, xs):
    return jnp.concatenate(jax.vmap(lambda x: jax.tree.leaves(model.section(model(x))))(xs), axis=1)


SMALL = learn.SurjectiveConstants(
    epochs=(50, 100), batch_size=64, learning_rates=(1e-2, 3e-3), warmup_steps=3, reconstruction_weights=(1.0, 40.0)
)
CROSS, REC = learn.cross_entropy, learn.surjective_reconstruction


def two_fits(recipe, constants):
    """The models before, between and after the two stages, and the history of the second."""
    start, stages = random_model(), recipe(CROSS, 256, constants=constants)
    assert list(stages) == ["task", "sections"]
    run = functools.partial(learn.fit, data=labelled(), key=KEY, steps_per_round=100)
    one, _ = run(start, {"task": stages["task"]}, validation=labelled(64, 6))
    two, history = run(one, {"sections": stages["sections"]})
    return start, one, two, history["sections"]


@pytest.fixture(scope="module")
def published():
    return two_fits(learn.surjective_stages, SMALL)


@pytest.fixture(scope="module")
def natural():
    return two_fits(learn.natural_stages, dataclasses.replace(SMALL, epochs=(5, 600)))


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
        again, origin = (jnp.concatenate(model.split(point)[1][1:]) for point in (back, jnp.zeros(N)))
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


@pytest.mark.slow
def test_the_papers_first_stage_leaves_the_sections_bit_identical(natural):
    start, one, two, history = natural
    assert same(maps.sections(one), maps.sections(start))
    assert not same(learn.but_sections(one), learn.but_sections(start))
    assert same(learn.but_sections(two), learn.but_sections(one))
    assert list(history.terms) == ["natural"]


@pytest.mark.slow
def test_the_natural_loss_alone_ends_at_the_constant_section(natural):
    _, one, two, history = natural
    xs = inputs(100, 9)
    spread = [float(jnp.mean(jnp.var(picked(model, xs), axis=0))) for model in (one, two)]
    assert spread[0] > 1e-2
    assert spread[1] < 1e-4 * spread[0]
    assert history.loss[-1] < 1e-4 * history.loss[0]
    np.testing.assert_allclose(mean_of(REC, two, xs), mean_of(REC, maps.Natural(one), xs), rtol=0.05)


def test_reconstruction_gives_a_closer_pinv_than_the_natural_section(published):
    _, _, two, _ = published
    xs = inputs(100, 9)
    assert mean_of(REC, two, xs) < 0.5 * mean_of(REC, maps.Natural(two), xs)


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
