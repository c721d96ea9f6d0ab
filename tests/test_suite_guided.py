"""The studies of guided sampling: their data, statistics and measures, and, slowly, what quick runs must show."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pinv_jax import maps, pde, suite
from pinv_jax.solvers import nlbp
from pinv_jax.suite import _attributes as attributes
from pinv_jax.suite import _guided as guided
from pinv_jax.suite import _science as science
from pinv_jax.suite import _shapes as shapes
from pinv_jax.suite import _statistics as statistics

SHAPE = (2, 6, 6)


@pytest.fixture(scope="module")
def images():
    return jax.random.normal(jax.random.key(0), (2, *SHAPE))


@pytest.mark.parametrize(
    "build",
    [
        lambda: maps.Natural(statistics.Quantiles(SHAPE, 5, jnp.float64)),
        lambda: statistics.BandEnergies(SHAPE, 3, jnp.float64),
        lambda: statistics.Style(SHAPE, jnp.array([0.1, -0.2]), jnp.array([0.3, -1.0])),
    ],
    ids=["quantiles", "energies", "style"],
)
def test_statistics_are_exact_surjections(build, images):
    f, (x, other) = build(), images

    @jax.jit
    def everything(f, x, other):
        y = f(other)
        return f.merge(*f.split(x)), f(f.pinv(y)), y, nlbp(f, x, y), f(nlbp(f, x, y))

    again, back, y, moved, met = everything(f, x, other)
    np.testing.assert_allclose(again, x, atol=1e-13)
    np.testing.assert_allclose(back, y, atol=1e-12)
    np.testing.assert_allclose(met, y, atol=1e-12)
    assert np.linalg.norm(moved - x) > 0.1


def test_quantiles_are_those_of_the_pixels_and_matching_keeps_their_order(images):
    f = maps.Natural(statistics.Quantiles(SHAPE, 4, jnp.float64))
    x, other = images
    flat = np.sort(np.asarray(other).reshape(2, -1), axis=1)
    np.testing.assert_array_equal(f(other), flat[:, [4, 13, 22, 31]])
    moved = nlbp(f, x, f(other))
    for before, after in zip(np.asarray(x), np.asarray(moved), strict=True):
        np.testing.assert_array_equal(np.argsort(before.ravel()), np.argsort(after.ravel()))
    flat_image = jnp.ones(SHAPE)  # all values equal, and so all quantiles
    np.testing.assert_array_equal(f.merge(*f.split(flat_image)), flat_image)
    plain = jnp.where(other > 0, 0.5, other)  # a background of one value has several quantiles that are equal
    np.testing.assert_allclose(f(nlbp(f, x, f(plain))), f(plain), atol=1e-12)
    with pytest.raises(ValueError, match="no more quantiles than the 36 pixels"):
        statistics.Quantiles(SHAPE, 37)


def test_energies_are_those_of_cosine_waves():
    n = 6
    wave = np.cos(np.pi * 2 * (np.arange(n) + 0.5) / n)
    x = jnp.asarray(np.broadcast_to(3 * wave, (2, n, n))) + 0.01 * jnp.asarray(
        np.random.default_rng(0).normal(size=(2, n, n))
    )
    y = statistics.BandEnergies(SHAPE, 3)(x)
    assert abs(float(y[1]) - np.log(np.sum(np.asarray(x) ** 2))) < 1e-2, "all of it is in the second band"
    assert np.all(np.asarray(y)[[0, 2]] < y[1] - 5)
    with pytest.raises(ValueError, match="fewer bands than rows"):
        statistics.BandEnergies((1, 4, 5), 3)


def test_a_style_is_swapped_and_taken_off_again(images):
    x, other = images
    f = statistics.Style(SHAPE, jnp.zeros(2), jnp.zeros(2))
    style = f.split(other)[1]
    stylised = f.merge(f(x), style)
    np.testing.assert_allclose(f(stylised), f(x), atol=1e-12)
    np.testing.assert_allclose(jnp.std(stylised, axis=(1, 2)), jnp.std(other, axis=(1, 2)), rtol=1e-12)
    np.testing.assert_allclose(f.pinv(f(x)).mean(axis=(1, 2)), 0, atol=1e-12)


def test_the_attributes_can_be_measured_in_the_images():
    data = shapes.shape_data(512, jnp.float64, key=jax.random.key(1))
    x, y = np.asarray(data.x), np.asarray(data.y)
    assert x.min() >= 0
    assert x.max() <= 1
    np.testing.assert_allclose(np.corrcoef(y.T), np.eye(4), atol=0.15)
    np.testing.assert_allclose(y.mean(axis=0), 0.5, atol=0.08)
    chroma = x.max(axis=1) - x.min(axis=1)
    blue = np.sum(chroma * (x[:, 2] - x[:, 0]), axis=(1, 2)) > 0
    np.testing.assert_array_equal(blue, y[:, 1])
    share = chroma / chroma.sum(axis=(1, 2), keepdims=True)
    points = np.arange(shapes.SIZE) - shapes.SIZE / 2
    row, column = np.meshgrid(points, points, indexing="ij")
    mean = [np.sum(share * axis, axis=(1, 2))[:, None, None] for axis in (row, column)]
    slant = np.sum(share * (row - mean[0]) * (column - mean[1]), axis=(1, 2))
    assert np.mean((slant < 0) == y[:, 3]) > 0.98
    extent = np.sum(share * ((row - mean[0]) ** 2 + (column - mean[1]) ** 2), axis=(1, 2))
    for cross in (False, True):
        of_kind = y[:, 0] == cross
        assert extent[of_kind & ~y[:, 2]].max() < np.median(extent[of_kind & y[:, 2]])


def test_every_choice_of_attributes_has_its_turn():
    change = attributes.which(20, (2, 3))
    assert set(change.sum(axis=1)) == {2, 3}
    assert len(np.unique(change, axis=0)) == 10
    np.testing.assert_array_equal(attributes.which(4, (1,)).sum(axis=0), 1)


def test_distances_are_those_of_pairs():
    x = np.random.default_rng(0).normal(size=(3, 4, 1, 2, 2))
    rms = lambda a, b: np.sqrt(np.mean((a - b) ** 2))
    pairs = [(0, 1), (0, 2), (1, 2)]
    expected = np.mean([[rms(x[i, k], x[j, k]) for k in range(4)] for i, j in pairs])
    x = jnp.asarray(x)
    np.testing.assert_allclose(guided.spread(x), expected)
    assert guided.spread(x[:1]) == 0
    labels = np.array([0, 0, 1, 1])
    within = np.mean([rms(x[0, 0], x[0, 1]), rms(x[0, 2], x[0, 3])])
    np.testing.assert_allclose(guided.spread_within(x[0], labels), within)
    reference = x[1]
    expected = np.median([min(rms(a, b) for b in reference) for a in x[0]])
    np.testing.assert_allclose(guided.nearest(x[0], reference), expected)
    assert guided.over_seeds(np.array([[True, True], [True, False]])) == {"agreement %": 75.0, "seeds": "50-100"}


def test_the_denoiser_starts_at_zero_and_knows_the_time():
    net = guided.DenseDenoiser((1, 3, 2), width=8, num_blocks=1, dtype=jnp.float32, key=jax.random.key(0))
    x = jnp.ones((1, 3, 2), jnp.float32)
    run = eqx.filter_jit(lambda net, x, t: net(x, t))
    out = run(net, x, jnp.float32(10.0))
    assert out.shape == x.shape
    assert out.dtype == jnp.float32
    np.testing.assert_array_equal(out, 0)
    awake = eqx.tree_at(lambda net: net.outlet.weight, net, jnp.ones((6, 8), jnp.float32))
    assert np.max(np.abs(run(awake, x, jnp.float32(10.0)) - run(awake, x, jnp.float32(900.0)))) > 1e-3


@pytest.mark.slow
def test_a_poor_stand_in_never_takes_an_estimate_further_from_the_data():
    f = maps.LinearSurjection(jnp.array([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]], jnp.float32))
    x0, data = jnp.array([0.5, -0.5, 2.0], jnp.float32), jnp.array([1.0, 1.0], jnp.float32)

    def estimate(h, noise_std=0.0):
        guide = guided.Corrected(f, h, data, noise_std)
        return guide(lambda x, t: x, x0, jnp.float32(1.0), jax.random.key(0))

    np.testing.assert_allclose(estimate(f), [1.0, 1.0, 2.0], atol=1e-6)
    np.testing.assert_array_equal(estimate(lambda x: -x[:2]), x0)  # every step leads away
    np.testing.assert_array_equal(estimate(lambda x: jnp.where(x[:2] == x0[:2], 0.0, jnp.nan)), x0)
    np.testing.assert_array_equal(estimate(f, noise_std=5.0), x0)
    steep = lambda x: 5 * x[:2]  # a full step goes four times too far
    before, after = (float(jnp.mean((steep(x) - data) ** 2)) for x in (x0, estimate(steep)))
    assert after < 0.2 * before


@pytest.mark.slow
def test_the_fields_are_rocks_and_vortices_and_the_map_is_the_equation():
    dtype = jnp.float64

    @jax.jit
    def drawn(key):
        draws = [
            jax.vmap(problem.fields(dtype))(jax.random.split(key, 50)) for problem in (science.DARCY, science.VORTICITY)
        ]
        rocks, vortices = draws
        pressure = pde.darcy_pressure(jnp.exp(2 * rocks[0].reshape(16, 16)))
        return rocks, vortices, pressure, science.DARCY.forward(dtype)(rocks[0])

    rocks, vortices, pressure, data = drawn(jax.random.key(0))
    assert rocks.shape == vortices.shape == (50, 256)
    assert np.mean(np.abs(rocks) > 0.9) > 0.5, "two kinds of rock, and little in between"
    np.testing.assert_allclose(jnp.mean(vortices, axis=1), 0, atol=1e-12)
    np.testing.assert_allclose(data, pressure[2::3, 2::3].ravel(), rtol=1e-12)
    assert science.VORTICITY.forward(dtype).out_structure().shape == (36,)


def test_the_normal_prior_has_the_moments_of_the_fields():
    fields = jax.random.normal(jax.random.key(0), (500, 3)) @ jnp.array([[2.0, 0, 0], [1, 1, 0], [0, 0, 0.5]])
    prior = science.normal_prior(fields)
    whitened = np.asarray(jax.vmap(prior.whiten)(fields))
    np.testing.assert_allclose(np.cov(whitened.T), np.eye(3), atol=1e-6)
    np.testing.assert_allclose(whitened.mean(axis=0), 0, atol=1e-6)


def test_the_studies_are_registered():
    for name in (
        "restore-logits", "restore-features", "attributes", "mixed-constraints", "style-reversal", "science-darcy",
        "science-vorticity",
    ):  # fmt: skip
        assert suite.PROBLEMS[name].name == name


def quick(study, folder, *parts):
    options = suite.Options(dtype="float32", quick=True, recipes=parts or None)
    return suite.run(study, options, folder, stream=None)


def cells(table, column):
    return {row["method"]: row[column] for row in table}


@pytest.mark.slow
def test_quick_logits_are_met_and_the_judge_agrees(tmp_path):
    table = quick(suite.RESTORE_LOGITS, tmp_path)["tables"]["logits"]
    worst, agreement = cells(table, "worst"), cells(table, "agreement %")
    for section in ("natural", "learned section"):
        assert worst[f"NLBP, {section}"] < 1e-5
        assert agreement[f"NLBP, {section}"] >= 75 > agreement["prior alone"]
    assert worst["DPS"] > 1e-2
    assert (tmp_path / "figures/logits.png").exists()


@pytest.mark.slow
def test_quick_darcy_is_met_within_the_noise(tmp_path):
    table = quick(suite.SCIENCE_DARCY, tmp_path, "fields")["tables"]["fields"]
    misfit, error = cells(table, "misfit / noise"), cells(table, "error")
    assert misfit["LM from NLBP on the network"] <= 1.01 < misfit["prior alone"]
    assert error["LM with a normal prior"] < error["prior alone"]
