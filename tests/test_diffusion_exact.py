"""Schedules, samplers and guides against closed forms: with normal priors everything about a chain is known."""

import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import key

from benchmarks import guidance_bias
from pinv_jax import diffusion, maps, solvers
from pinv_jax.diffusion import DDIM, DDNM, DDPM

SCHEDULES = {
    "linear": diffusion.LinearSchedule(),
    "cosine": diffusion.CosineSchedule(),
    "continuous linear": diffusion.ContinuousLinearSchedule(),
    "continuous cosine": diffusion.ContinuousCosineSchedule(),
}
SAMPLERS = {
    "DDIM": DDIM(20),
    "eta": DDIM(20, 0.5),
    "DDPM": DDPM(20),
    "DDNM": DDNM(20),
    "travel": DDNM(10, 2, 2),
}
CASE = guidance_bias.problem()


@pytest.fixture(scope="module")
def prior():
    return diffusion.gaussian_prior(jnp.asarray(CASE["mean"]), jnp.asarray(CASE["covariance"]), SCHEDULES["linear"])


@pytest.fixture(scope="module")
def f():
    return maps.LinearSurjection(jnp.asarray(CASE["matrix"]))


@pytest.fixture(scope="module")
def curved():
    """A non-linear surjection of the same shapes."""
    matrix = jnp.asarray(CASE["matrix"])
    return maps.SurjectiveChain([maps.LinearSurjection(matrix), maps.CubicSine((2,), 0.5, 0.3)])


DATA = jnp.asarray(CASE["data"])


# Schedules ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["cosine", *(pytest.param(name, marks=pytest.mark.slow) for name in SCHEDULES if name != "cosine")]
)
def test_schedules_lead_from_noise_to_data(name):
    schedule = SCHEDULES[name]
    times = schedule.times(50)
    bars = jax.vmap(schedule.alpha_bar)(jnp.asarray(times))
    assert len(times) == 51
    assert times[-1] == schedule.clean
    assert bars[-1] == 1
    assert jnp.all(jnp.diff(bars) > 0)
    assert bars[0] < 0.01
    signals, spreads = jax.vmap(schedule.scales)(jnp.asarray(times))
    np.testing.assert_allclose(signals**2 + spreads**2, 1, rtol=1e-12)
    # accurate close to the data in float32 too, where 1 - alpha_bar cancels
    t = times[-2]
    small = schedule.scales(jnp.float32(t))[1]
    np.testing.assert_allclose(small, schedule.scales(jnp.float64(t))[1], rtol=1e-5)


def test_a_time_may_be_an_integer():
    schedule = SCHEDULES["linear"]
    np.testing.assert_allclose(schedule.scales(jnp.asarray(200)), schedule.scales(200.0), rtol=1e-12)


def test_the_linear_schedule_has_the_published_numbers():
    schedule = SCHEDULES["linear"]
    at, to = jnp.asarray(600.0), jnp.asarray(590.0)
    kept, fresh = DDNM().scales(schedule, at, to)
    np.testing.assert_allclose(schedule.alpha_bar(at), 0.02557, atol=5e-6)
    np.testing.assert_allclose([fresh, kept], [0.3367, 0.9262], atol=5e-5)
    step = diffusion.step_at()
    used = [float(step(jnp.asarray(t))) for t in schedule.times(100)[:-1]]
    assert used == [0.5] * 40 + [1.0] * 60


@pytest.mark.parametrize(
    ("travel", "expected"),
    [
        ((1, 1), (100, 100, 0)),
        ((2, 1), (100, 100, 0)),
        ((1, 2), (298, 199, 99)),
        ((2, 2), (296, 198, 98)),
        ((10, 3), (460, 280, 180)),
    ],
)
def test_time_travel_makes_the_published_numbers_of_steps(travel, expected):
    sampler = DDNM(100, *travel)
    steps = np.diff(sampler.visits(sampler.times(SCHEDULES["linear"])))
    assert (len(steps), np.sum(steps < 0), np.sum(steps > 0)) == expected


@pytest.mark.parametrize("prediction", ["epsilon", "v", "x0"])
def test_all_predictions_say_the_same(prediction):
    schedule, x, noise, t = SCHEDULES["cosine"], jnp.arange(3.0), jnp.asarray([1.0, -1.0, 0.5]), jnp.asarray(300.0)

    blank = diffusion.Prior(lambda x_t, t: x_t, schedule, shape=(3,), prediction=prediction)
    knowing = diffusion.Prior(lambda x_t, t: blank.target(x, noise, t), schedule, shape=(3,), prediction=prediction)
    signal, spread = schedule.scales(t)
    np.testing.assert_allclose(knowing.denoise(signal * x + spread * noise, t), x, atol=1e-12)


# Chains ---------------------------------------------------------------------------------------------------------------


def noises(sampler, sample_key, size):
    """What `sample` draws: the start, then one for each step."""
    count = len(sampler.visits(sampler.times(SCHEDULES["linear"]))) - 1
    start, rest = jax.random.split(sample_key)
    each = [jax.random.split(k)[0] for k in jax.random.split(rest, count)]
    return [np.asarray(jax.random.normal(k, (size,))) for k in [start, *each]]


@pytest.mark.parametrize(
    ("name", "guided"),
    [
        ("travel", True),
        *(pytest.param(name, False, marks=pytest.mark.slow) for name in ("DDIM", "travel")),
        *(pytest.param(name, True, marks=pytest.mark.slow) for name in ("DDIM", "eta", "DDPM", "DDNM")),
    ],
)
def test_a_chain_equals_its_own_affine_recursion(name, guided, prior, f):
    sampler = SAMPLERS[name]
    guide = diffusion.project_after(f, DATA) if guided else None
    x = diffusion.sample(prior, sampler, key=key(3), guide=guide)
    start, *drawn = noises(sampler, key(3), len(CASE["mean"]))
    state = np.concatenate([start, np.zeros_like(start)])
    for noise, (matrix, shift, fresh) in zip(drawn, guidance_bias.steps(CASE, sampler, guided=guided), strict=True):
        state = matrix @ state + shift + np.concatenate([fresh * noise, np.zeros_like(noise)])
    np.testing.assert_allclose(x, state[len(start) :], rtol=0, atol=1e-10)


def test_without_guidance_mean_and_covariance_are_those_of_the_prior():
    for sampler, tolerance in ((DDIM(1000), 0.01), (DDPM(1000), 0.01), (DDNM(1000), 0.01)):
        mean, covariance = guidance_bias.recursion(CASE, sampler, guided=False)
        np.testing.assert_allclose(mean, CASE["mean"], atol=0.03)
        error = np.linalg.norm(covariance - CASE["covariance"]) / np.linalg.norm(CASE["covariance"])
        assert error < tolerance
    # few steps are far off
    covariance = guidance_bias.recursion(CASE, DDIM(10), guided=False)[1]
    assert np.linalg.norm(covariance - CASE["covariance"]) > 0.2 * np.linalg.norm(CASE["covariance"])


@pytest.mark.parametrize("make", [DDIM, DDPM, DDNM])
def test_the_bias_against_the_posterior_falls_with_the_number_of_steps(make):
    mean, covariance = guidance_bias.posterior(CASE)
    errors = []
    for num_steps in (10, 100, 1000):
        found, spread = guidance_bias.recursion(CASE, make(num_steps), guided=True)
        errors.append((np.linalg.norm(found - mean), np.linalg.norm(spread - covariance)))
    (first, second), (third, fourth), (last, least) = errors
    assert first > 2 * third > 4 * last
    assert second > 3 * fourth > 9 * least


@pytest.mark.slow
def test_the_flow_and_ddim_go_to_the_same_image(prior):
    """Both follow the same ordinary differential equation, whose solution is known: white noise stays white."""
    flow = diffusion.sample(prior, diffusion.ProbabilityFlow(200), key=key(1))
    noise = np.asarray(jax.random.normal(jax.random.split(key(1))[0], flow.shape))
    bar = SCHEDULES["linear"].alpha_bars()[-1]
    values, axes = np.linalg.eigh(CASE["covariance"])
    # along a principal axis the deviation from the mean keeps its size in standard deviations
    offset = axes.T @ (noise - bar**0.5 * CASE["mean"]) / np.sqrt(bar * values + 1 - bar)
    exact = CASE["mean"] + axes @ (np.sqrt(values) * offset)
    np.testing.assert_allclose(flow, exact, atol=2e-3)


@pytest.mark.slow
def test_the_flow_on_continuous_schedules_and_with_step_size_control(prior):
    import diffrax

    mean, covariance = jnp.asarray(CASE["mean"]), jnp.asarray(CASE["covariance"])
    continuous = diffusion.gaussian_prior(mean, covariance, SCHEDULES["continuous cosine"])
    draw = jax.jit(jax.vmap(lambda k: diffusion.sample(continuous, diffusion.ProbabilityFlow(100), key=k)))
    x = draw(jax.random.split(key(), 4000))
    np.testing.assert_allclose(jnp.mean(x, axis=0), mean, atol=0.1)
    np.testing.assert_allclose(jnp.cov(x.T), covariance, atol=0.2)
    controlled = diffusion.ProbabilityFlow(20, controller=diffrax.PIDController(rtol=1e-5, atol=1e-5))
    x = diffusion.sample(prior, controlled, key=key(1))
    np.testing.assert_allclose(x, diffusion.sample(prior, diffusion.ProbabilityFlow(400), key=key(1)), atol=2e-3)


@pytest.mark.slow
def test_a_fixed_point_is_the_one_that_is_known(prior, f):
    """Of `x -> P(D(x))` with an affine denoiser D and an affine projection P."""
    t, data = 300, DATA
    sampler = diffusion.FixedPoint(t, atol=1e-12, max_steps=5000)
    start = diffusion.Start(f.pinv(data), t)
    x = diffusion.sample(prior, sampler, key=key(), guide=diffusion.project_after(f, data), start=start)
    bar = SCHEDULES["linear"].alpha_bars()[t]
    size, matrix = len(CASE["mean"]), CASE["matrix"]
    gain = bar * CASE["covariance"] @ np.linalg.inv(bar * CASE["covariance"] + (1 - bar) * np.eye(size))
    keep = np.eye(size) - np.linalg.pinv(matrix) @ matrix
    shift = keep @ (CASE["mean"] - gain @ CASE["mean"]) + np.linalg.pinv(matrix) @ CASE["data"]
    np.testing.assert_allclose(x, np.linalg.solve(np.eye(size) - keep @ gain, shift), atol=1e-9)


@pytest.mark.slow
def test_a_mixture_is_sampled_with_its_weights():
    means, weights = jnp.asarray([[-2.0, 0.0], [2.0, 1.0]]), jnp.asarray([0.3, 0.7])
    prior = diffusion.mixture_prior(weights, means, 0.1 * jnp.ones((2, 2)), SCHEDULES["linear"])
    x = jax.jit(jax.vmap(lambda k: diffusion.sample(prior, DDIM(250), key=k)))(jax.random.split(key(), 2000))
    upper = x[:, 0] > 0
    assert abs(float(jnp.mean(upper)) - 0.7) < 4 * (0.21 / 2000) ** 0.5
    np.testing.assert_allclose(jnp.mean(x[upper], axis=0), means[1], atol=0.05)
    np.testing.assert_allclose(jnp.std(x[upper], axis=0), 0.1**0.5, atol=0.03)


# Guides ---------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("name", ["DDIM", "travel"])
def test_for_linear_maps_nlbp_is_the_guidance_of_ddnm(name, prior, f):
    sampler = SAMPLERS[name]
    ours = diffusion.sample(prior, sampler, key=key(), guide=diffusion.project_after(f, DATA))
    theirs = diffusion.sample(prior, sampler, key=key(), guide=diffusion.LinearBackProjection(f, DATA))
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [("float32", 1e-5), pytest.param("float64", 1e-10, marks=pytest.mark.slow)]
)
def test_the_image_meets_the_observation(dtype, tolerance, prior, curved):
    prior, f = cast(prior, dtype), cast(curved, dtype)
    prior = diffusion.Prior(prior.network, prior.schedule, shape=prior.shape, prediction="x0")
    data = f(jnp.ones(6, dtype))
    x = diffusion.sample(prior, DDNM(20), key=key(), guide=diffusion.project_after(f, data))
    assert x.dtype == dtype
    assert jnp.max(jnp.abs(f(x) - data)) <= tolerance * jnp.max(jnp.abs(data))


@pytest.mark.slow
def test_the_linear_formula_does_not_meet_the_data_of_a_curved_map(prior, curved):
    data = curved(jnp.ones(6))
    guide = diffusion.LinearBackProjection(curved, data)
    assert jnp.max(jnp.abs(curved(diffusion.sample(prior, DDNM(20), key=key(), guide=guide)) - data)) > 0.01


def cast(tree, dtype):
    return jax.tree.map(lambda leaf: leaf.astype(dtype) if eqx.is_inexact_array(leaf) else leaf, tree)


@pytest.mark.slow
def test_steps_stops_and_the_last_projection(prior, curved):
    data = curved(jnp.ones(6))
    draw = functools.partial(diffusion.sample, prior, DDNM(20), key=key())
    free = draw()
    # a stop that is always met leaves the chain alone
    always = diffusion.project_after(curved, data, stop=lambda y, data: jnp.asarray(True))
    np.testing.assert_array_equal(draw(guide=always), free)
    np.testing.assert_allclose(draw(guide=diffusion.project_after(curved, data, step_size=0.0)), free, atol=1e-12)
    # half a step leaves half a residual of the last estimate
    half = draw(guide=diffusion.project_after(curved, data, step_size=0.5))
    assert jnp.max(jnp.abs(curved(half) - data)) > 1e-3
    # the published constants: the stop leaves the logits where they are near enough
    near = curved(free) + 0.1
    loose = draw(guide=diffusion.published_guide(curved, near))
    difference = jnp.mean(jnp.abs(jax.nn.sigmoid(curved(loose)) - jax.nn.sigmoid(near)))
    assert 1e-6 < difference <= 0.11
    final = draw(guide=diffusion.project_after(curved, data, step_size=0.5, final=True))
    np.testing.assert_allclose(curved(final), data, atol=1e-10)


@pytest.mark.slow
def test_boxes_are_entered(prior, f):
    lower, upper = solvers.quantisation_box(jnp.round(DATA), 1.0)
    x = diffusion.sample(prior, DDIM(20), key=key(), guide=diffusion.project_after_interval(f, lower, upper))
    assert jnp.all((f(x) >= lower - 1e-12) & (f(x) <= upper + 1e-12))
    # a box of no width is the observation itself
    point = diffusion.sample(prior, DDIM(20), key=key(), guide=diffusion.project_after_interval(f, DATA, DATA))
    exact = diffusion.sample(prior, DDIM(20), key=key(), guide=diffusion.project_after(f, DATA))
    np.testing.assert_allclose(point, exact, atol=1e-12)


@pytest.mark.slow
def test_several_constraints_are_met_in_turn(prior, f):
    rows = [maps.LinearSurjection(row[None]) for row in jnp.asarray(CASE["matrix"])]
    parts = [DATA[:1], DATA[1:]]
    guide = diffusion.project_after(rows, parts, num_cycles=60)
    x = diffusion.sample(prior, DDIM(20), key=key(), guide=guide)
    joint = diffusion.sample(prior, DDIM(20), key=key(), guide=diffusion.project_after(f, DATA))
    np.testing.assert_allclose(x, joint, atol=1e-6)
    once = diffusion.sample(prior, DDIM(20), key=key(), guide=diffusion.project_after(rows, parts))
    np.testing.assert_allclose(f(once)[1:], DATA[1:], atol=1e-10)


@pytest.mark.slow
def test_pigdm_is_the_posterior_where_it_is_exact(f):
    """A normal prior with the same variance in all directions, and a linear observation, with and without noise."""
    mean, std, noise_std = jnp.asarray(CASE["mean"]), 0.7, 0.3
    prior = diffusion.gaussian_prior(mean, jnp.full(6, std**2), SCHEDULES["linear"])
    guide = diffusion.PiGDM(f, DATA, noise_std=noise_std, data_std=std)
    x_t, t = jnp.linspace(-1, 1, 6), jnp.asarray(400.0)
    found = guide(diffusion.Denoise(prior, x_t, t), x_t, t, key())
    signal, spread = (float(s) for s in SCHEDULES["linear"].scales(t))
    matrix = CASE["matrix"]
    precision = np.eye(6) / std**2 + signal**2 / spread**2 * np.eye(6) + matrix.T @ matrix / noise_std**2
    expected = np.linalg.solve(
        precision, mean / std**2 + signal / spread**2 * x_t + matrix.T @ np.asarray(DATA) / noise_std**2
    )
    np.testing.assert_allclose(found, expected, atol=1e-8)


@pytest.mark.slow
def test_dps_takes_the_published_step(prior, f):
    """One step of the chain is the step without guidance, less the gradient of the norm."""
    scale, visits = 0.3, [400.0, 300.0]
    schedule = SCHEDULES["linear"]
    x_t = jnp.linspace(-1, 1, 6)
    t, t_next = map(jnp.asarray, visits)
    gradient = jax.grad(lambda x: jnp.linalg.norm(DATA - f(prior.denoise(x, t))))(x_t)
    signal, spread = schedule.scales(t)
    signal_next = schedule.scales(t_next)[0]
    for sampler in (DDIM(20, 0.5), DDNM(20)):
        kept, _ = sampler.scales(schedule, t, t_next)
        free = prior.denoise(x_t, t)
        left = (x_t - signal * free) / spread
        guided = diffusion.DPS(f, DATA, scale)(diffusion.Denoise(prior, x_t, t, signal_next), x_t, t, key())
        step = signal_next * guided + kept * left
        np.testing.assert_allclose(step, signal_next * free + kept * left - scale * gradient, atol=1e-10)


@pytest.mark.slow
def test_baselines_come_near_the_observation(prior, f):
    guides = [None, diffusion.DPS(f, DATA, 0.02), diffusion.PiGDM(f, DATA), diffusion.ProjectNoisy(f, DATA)]
    keys = jax.random.split(key(), 16)

    def missed(guide):
        draw = jax.jit(jax.vmap(lambda k: diffusion.sample(prior, DDIM(100), key=k, guide=guide)))
        return float(jnp.sqrt(jnp.mean((jax.vmap(f)(draw(keys)) - DATA[None]) ** 2)))

    free, *guided = map(missed, guides)
    assert max(guided) < 0.3 * free


# Samples --------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_samples_depend_on_the_key_alone_and_batches_on_nothing_else(prior, f):
    guide = diffusion.project_after(f, DATA)
    keys = jax.random.split(key(), 3)
    one = lambda k: diffusion.sample(prior, DDPM(20), key=k, guide=guide)
    single = jnp.stack([one(k) for k in keys])
    np.testing.assert_array_equal(single[0], one(keys[0]))
    assert jnp.all(jnp.abs(single[0] - single[1]) > 0)
    np.testing.assert_allclose(jax.vmap(one)(keys), single, atol=1e-12)
    # observations too
    data = jnp.stack([DATA, DATA + 1, DATA - 1])
    many = jax.vmap(lambda y, k: diffusion.sample(prior, DDPM(20), key=k, guide=diffusion.project_after(f, y)))
    np.testing.assert_allclose(jax.vmap(f)(many(data, keys)), data, atol=1e-10)


@pytest.mark.slow
def test_a_start_is_noised_to_its_time(prior):
    image = jnp.arange(6.0)
    near = diffusion.sample(prior, DDIM(1000), key=key(), start=diffusion.Start(image, 0))
    signal, spread = SCHEDULES["linear"].scales(jnp.asarray(0.0))
    noise = jax.random.normal(jax.random.split(key())[0], (6,))
    np.testing.assert_allclose(near, prior.denoise(signal * image + spread * noise, jnp.asarray(0.0)), atol=1e-12)
    far = diffusion.sample(prior, DDIM(100), key=key(), start=diffusion.Start(image, 500))
    assert jnp.linalg.norm(far - image) > 10 * jnp.linalg.norm(near - image)


@pytest.mark.slow
def test_sampling_is_differentiable_and_one_compiled_scan(prior, f):
    traced = []

    class Counting(eqx.Module):
        inner: eqx.Module

        def __call__(self, x_t, t):
            traced.append(t)
            return self.inner(x_t, t)

    counting = diffusion.Prior(Counting(prior.network.fn), prior.schedule, shape=prior.shape, prediction="x0")
    draw = jax.jit(lambda data: diffusion.sample(counting, DDIM(20), key=key(), guide=diffusion.project_after(f, data)))
    traced.clear()
    draw(DATA), draw(DATA + 1)
    assert len(traced) <= 2  # one trace of the body, and one of its shapes
    slope = jax.jit(jax.jacfwd(draw))(DATA)
    np.testing.assert_allclose(CASE["matrix"] @ slope, np.eye(2), atol=1e-10)
