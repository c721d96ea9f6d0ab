"""`restore` with every kind of degradation, starts and priors; and what it refuses."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from cases import key

from pinv_jax import RESULTS, diffusion, learn, maps, solvers

SCHEDULE = diffusion.LinearSchedule()
MEAN, COVARIANCE = jnp.arange(6.0) / 6, 0.3 * jnp.eye(6) + 0.1
MATRIX = jnp.asarray(np.random.default_rng(0).normal(size=(2, 6)))
DATA = jnp.asarray([0.5, -0.2])
SAMPLER = diffusion.DDIM(10)


@pytest.fixture(scope="module")
def prior():
    return diffusion.gaussian_prior(MEAN, COVARIANCE, SCHEDULE)


@pytest.fixture(scope="module")
def curved():
    return maps.SurjectiveChain([maps.LinearSurjection(MATRIX), maps.CubicSine((2,), 0.5, 0.3)])


def test_a_surjection_is_met(prior, curved):
    found = diffusion.restore(prior, curved, DATA, key=key(), num_samples=3, sampler=SAMPLER)
    assert found.samples.shape == (3, 6)
    assert jnp.all(found.success)
    np.testing.assert_allclose(jax.vmap(curved)(found.samples), jnp.broadcast_to(DATA, (3, 2)), atol=1e-10)
    np.testing.assert_allclose(found.mean, jnp.mean(found.samples, axis=0))
    np.testing.assert_allclose(found.std, jnp.std(found.samples, axis=0))
    assert jnp.all(found.std > 0) or jnp.linalg.norm(found.std) > 0.1
    assert jnp.max(found.consistency) < 1e-10


@pytest.mark.slow
def test_starts_and_guides(prior, curved):
    def restore(**options):
        return diffusion.restore(prior, curved, DATA, key=key(), sampler=diffusion.DDIM(100), **options)

    near = restore(start=0)
    np.testing.assert_allclose(near.samples[0], curved.pinv(DATA), atol=0.1)
    assert jnp.linalg.norm(restore(start=500).samples[0] - curved.pinv(DATA)) > 0.1
    guided = restore(guide=diffusion.DPS(curved, DATA, 0.02))
    assert guided.consistency[0] > 1e-4
    assert (guided.result == RESULTS.stationary)[0]
    fixed = diffusion.restore(prior, curved, DATA, key=key(), sampler=diffusion.FixedPoint(300), start=300)
    assert fixed.success[0]


@pytest.mark.slow
def test_a_callable_is_imitated_and_finished_on(prior, curved):
    def h(x):
        return jnp.tanh(0.5 * MATRIX @ x) + 0.1 * MATRIX @ x

    def restore(**options):
        return diffusion.restore(prior, h, h(MEAN), key=key(), num_samples=2, sampler=SAMPLER, num_steps=60, **options)

    x = MEAN[None] + jax.random.normal(key(1), (200, 6)) @ jnp.linalg.cholesky(COVARIANCE).T
    found = restore(examples=x)
    assert jnp.all(found.consistency < 1e-5)
    assert isinstance(found.stand_in, maps.AbstractSurjection)
    rough = restore(stand_in=found.stand_in, final=False)
    assert jnp.all(rough.consistency > 10 * found.consistency)
    # the guide needs no stand-in
    assert restore(guide=diffusion.PiGDM(h, h(MEAN))).stand_in is None


@pytest.mark.slow
def test_the_stand_in_is_trained_from_what_is_given(prior, curved, monkeypatch):
    given = []

    def imitate(h, data, *, key, **options):
        given.append((h, data, options))
        return types.SimpleNamespace(model=curved)

    monkeypatch.setattr(diffusion._restore, "imitate", imitate)
    pairs = (jnp.ones((3, 6)), jnp.ones((3, 2)))
    found = diffusion.restore(prior, pairs, DATA, key=key(), sampler=SAMPLER, num_steps=7)
    assert found.success[0]
    np.testing.assert_allclose(curved(found.samples[0]), DATA, atol=1e-10)
    h = lambda x: MATRIX @ x
    assert diffusion.restore(prior, h, DATA, key=key(), sampler=SAMPLER).success[0]
    assert given[0] == (None, pairs, {"num_steps": 7})
    assert given[1][0] is h
    # by default from what the prior draws
    np.testing.assert_allclose(jnp.mean(given[1][1], axis=0), MEAN, atol=0.15)


@pytest.mark.slow
def test_several_constraints_are_met_at_once_and_contradictions_reported(prior, curved):
    total = maps.LinearSurjection(jnp.ones((1, 6)))
    both = diffusion.restore(prior, [curved, total], [DATA, jnp.asarray([3.0])], key=key(), sampler=SAMPLER)
    assert both.success[0]
    np.testing.assert_allclose(jnp.sum(both.samples[0]), 3, atol=1e-4)
    # many observations
    many = jax.vmap(lambda y, k: diffusion.restore(prior, curved, y, key=k, sampler=SAMPLER).samples[0])
    data = jnp.stack([DATA, DATA + 0.1])
    np.testing.assert_allclose(jax.vmap(curved)(many(data, jax.random.split(key(), 2))), data, atol=1e-10)
    torn = diffusion.restore(
        prior, [total, total], [jnp.asarray([3.0]), jnp.asarray([5.0])], key=key(), sampler=SAMPLER
    )
    assert (torn.result == RESULTS.stationary)[0]
    np.testing.assert_allclose(torn.consistency, 1, atol=1e-6)  # the best compromise is 4


@pytest.mark.slow
def test_an_observation_that_the_map_cannot_return_is_reported(prior):
    """Of a callable: the residual that remains is the distance to its range."""

    def h(x):
        return jnp.tanh(MATRIX @ x)

    stand_in = maps.LinearSurjection(MATRIX)
    data = jnp.asarray([1.5, 0.0])
    found = diffusion.restore(prior, h, data, key=key(), sampler=SAMPLER, stand_in=stand_in)
    assert (found.result == RESULTS.stationary)[0]
    assert jnp.isfinite(found.consistency[0])
    assert found.consistency[0] >= 0.5 / 2**0.5 - 1e-6


@pytest.mark.slow
def test_a_generator_in_place_of_the_diffusion(curved):
    root = jnp.linalg.cholesky(COVARIANCE)[:, :4]
    prior = diffusion.GeneratorPrior(lambda z: MEAN + root @ z, (4,), misfit=0.01)
    found = diffusion.restore(prior, curved, DATA, key=key(), num_samples=3)
    assert jnp.all(found.success)
    assert jnp.linalg.norm(found.std) > 0.1
    raw = diffusion.restore(prior, curved, DATA, key=key(), num_samples=3, final=False)
    assert jnp.all(raw.consistency < 0.05)


@pytest.mark.slow
def test_a_flax_network_is_a_denoiser(curved):
    from flax import linen, nnx

    class Linen(linen.Module):
        @linen.compact
        def __call__(self, x, t):
            return linen.Dense(6, param_dtype=jnp.float64)(jnp.concatenate([x, t[:, None]], axis=-1))

    class Nnx(nnx.Module):
        def __init__(self, rngs):
            self.layer = nnx.Linear(7, 6, param_dtype=jnp.float64, rngs=rngs)

        def __call__(self, x, t):
            return self.layer(jnp.concatenate([x, t[None]]))

    module = Linen()
    variables = module.init(key(), jnp.zeros((1, 6)), jnp.zeros(1))
    nets = [
        diffusion.flax_denoiser(module, variables, batched=True),
        diffusion.flax_denoiser(Nnx(nnx.Rngs(0))),
    ]
    x, t = jnp.linspace(0, 1, 6), jnp.asarray(3.0)
    expected = module.apply(variables, x[None], t[None])[0]
    np.testing.assert_allclose(nets[0](x, t), expected, atol=1e-12)
    for net in nets:
        trained = diffusion.fit_prior(net, jnp.zeros((8, 6)), SCHEDULE, key=key(), num_steps=2, batch_size=4)
        assert any(
            jnp.any(a != b) for a, b in zip(jax.tree.leaves(net), jax.tree.leaves(trained.network.fn), strict=True)
        )


# What is refused ------------------------------------------------------------------------------------------------------


def network(x_t, t):
    return x_t


REFUSED = {
    "linear start": (lambda: diffusion.LinearSchedule(1000, 0.5, 0.6), "does not end at the data"),
    "linear end": (lambda: diffusion.LinearSchedule(10), "does not begin at noise"),
    "linear order": (lambda: diffusion.LinearSchedule(10, 0.02, 0.01), "0 < start <= end < 1"),
    "cosine": (lambda: diffusion.CosineSchedule(1), "does not"),
    "continuous": (lambda: diffusion.ContinuousLinearSchedule(0.1, 1.0), "does not begin at noise"),
    "too many steps": (lambda: SCHEDULE.times(2000), "between 1 and the 1000"),
    "prediction": (lambda: diffusion.Prior(network, SCHEDULE, shape=(3,), prediction="noise"), "epsilon, v, x0"),
    "no schedule": (lambda: diffusion.Prior(network, "linear", shape=(3,)), "LinearSchedule"),
    "one argument": (lambda: diffusion.Prior(lambda x: x, SCHEDULE, shape=(3,)), r"\(x_t, t\).*TypeError"),
    "another shape": (lambda: diffusion.Prior(lambda x, t: x[:2], SCHEDULE, shape=(3,)), r"returns float64\[2\]"),
    "a tuple": (lambda: diffusion.Prior(lambda x, t: (x, t), SCHEDULE, shape=(3,)), "returns"),
    "eta": (lambda: diffusion.DDIM(10, 2.0), "between 0 and 1"),
    "no steps": (lambda: diffusion.DDPM(0), "positive"),
    "travel": (lambda: diffusion.DDNM(10, 0, 1), "positive"),
    "times": (lambda: diffusion.DDIM(times=[900, 500, 0]).times(SCHEDULE), "do not end at the data"),
    "times that rise": (lambda: diffusion.DDIM(times=[5, 900, -1]).times(SCHEDULE), "do not end at the data"),
    "flow": (lambda: diffusion.ProbabilityFlow(0), "positive"),
    "tolerance": (lambda: diffusion.FixedPoint(3, atol=0.0), "positive"),
    "time of a fixed point": (lambda: diffusion.FixedPoint(2000).times(SCHEDULE), "at most 999"),
    "no surjection": (lambda: diffusion.project_after(jnp.tanh, DATA), "AbstractSurjection"),
    "shape of data": (
        lambda: diffusion.project_after(maps.LinearSurjection(MATRIX), jnp.ones(3)),
        r"data has shape \(3,\)",
    ),
    "no constraint": (lambda: diffusion.project_after([], []), "at least one"),
    "one observation for two": (
        lambda: diffusion.project_after([maps.LinearSurjection(MATRIX)] * 2, [DATA]),
        "2 constraints and 1",
    ),
    "noise": (lambda: diffusion.PiGDM(jnp.sin, DATA, noise_std=-1), "noise_std=-1"),
    "mixture": (
        lambda: diffusion.mixture_prior(jnp.ones(2), jnp.ones((3, 2)), jnp.ones((3, 2)), SCHEDULE),
        "equal numbers",
    ),
    "covariance": (lambda: diffusion.gaussian_prior(jnp.ones(2), -jnp.ones(2), SCHEDULE), "expected positive"),
    "covariance shape": (lambda: diffusion.gaussian_prior(jnp.ones(2), jnp.ones((2, 3)), SCHEDULE), r"\(2, 3\)"),
    "decoder": (lambda: diffusion.GeneratorPrior(lambda z: z @ jnp.ones((9, 2)), (4,)), "raised"),
    "bytes": (
        lambda: diffusion.fit_prior(network, jnp.zeros((3, 2), jnp.uint8), SCHEDULE, key=key()),
        r"images / 127\.5",
    ),
    "decay": (
        lambda: learn.AveragedStage(learn.Stage({}, network, 1, 1, optax.sgd(0.1)), 1.5),
        "below 1",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_bad_input_says_what_was_expected(case):
    call, message = REFUSED[case]
    with pytest.raises(ValueError, match=message):
        call()


def test_restore_refuses(prior):
    f = maps.LinearSurjection(MATRIX)
    for options, message in (
        ({"data": jnp.ones(3)}, r"data has shape \(3,\), and the degradation returns \(2,\)"),
        ({"data": jnp.asarray([1.0, jnp.nan])}, "NaN"),
        ({"num_samples": 0}, "num_samples=0"),
        ({"degradation": []}, "non-empty"),
        ({"degradation": maps.LinearSurjection(jnp.ones((1, 5))), "data": jnp.ones(1)}, "cannot be applied"),
        ({"start": diffusion.Start(jnp.ones(5), 10)}, r"start\.image has shape \(5,\)"),
        ({"start": 5000}, "leaves no step"),
        ({"start": -1}, "leaves no step"),
        ({"degradation": lambda x: x[:2], "guide": diffusion.DPS(f, DATA), "start": 10}, "needs pinv"),
    ):
        call = {"degradation": f, "data": DATA, "key": key()} | options
        with pytest.raises(ValueError, match=message):
            diffusion.restore(prior, call.pop("degradation"), call.pop("data"), **call)
    with pytest.raises(ValueError, match="makes none"):
        diffusion.restore(prior, f, DATA, key=key(), sampler=diffusion.ProbabilityFlow(5), guide=diffusion.DPS(f, DATA))
    with pytest.raises(ValueError, match="lower exceeds upper"):
        solvers.nlbp_interval(f, MEAN, DATA + 1, DATA)
    with pytest.raises(ValueError, match="lower exceeds upper"):
        diffusion.project_after_interval(f, DATA + 1, DATA)
