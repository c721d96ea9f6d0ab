"""The studies `lifted-autoencoder`, `lifted-denoise` and `lifted-pnn`: their parts, and what training must reach."""

import time

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pinv_jax import lifted, suite
from pinv_jax.suite import _lifted_autoencoder as inversion
from pinv_jax.suite import _lifted_denoise as denoise
from pinv_jax.suite import _lifted_encoders as encoders
from pinv_jax.suite import _lifted_methods as methods
from pinv_jax.suite import _lifted_pnn as pnn
from pinv_jax.suite._digits import digits

KEY = jax.random.key(0)


@pytest.fixture
def bench(tmp_path):
    return suite.Bench(
        seed=0,
        key=KEY,
        dtype=jnp.dtype("float64"),
        quick=True,
        fits=tmp_path / "fits",
        models=tmp_path / "models",
        progress=lambda *args: None,
    )


def test_ridge_finds_an_affine_map_and_damps_what_is_noise():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(80, 2, 3))
    weight, offset = rng.normal(size=(6, 8)), rng.normal(size=8)
    y = x.reshape(80, 6) @ weight + offset
    estimate = methods.ridge(jnp.asarray(y[:60]), jnp.asarray(x[:60]), (jnp.asarray(y[60:]), jnp.asarray(x[60:])))
    np.testing.assert_allclose(estimate(jnp.asarray(y[60:])), x[60:], atol=1e-3)
    noise = jnp.asarray(rng.normal(size=(80, 40)))
    blind = methods.ridge(noise[:60], jnp.asarray(x[:60]), (noise[60:], jnp.asarray(x[60:])))(noise)
    assert float(jnp.std(blind)) < 0.5 * np.std(x)


def test_patches_and_tiles_are_parts_of_the_photographs():
    images = jnp.arange(2 * 7 * 8.0).reshape(2, 1, 7, 8)
    found = np.asarray(pnn.tiles(images, 3))
    assert found.shape == (8, 3, 3)
    np.testing.assert_array_equal(found[1], images[0, 0, :3, 3:6])
    np.testing.assert_array_equal(found[7], images[1, 0, 3:6, 3:6])
    noisy, patches = jax.jit(jax.vmap(pnn.NoisyPatch(images, 3, 0.0)))(jax.random.split(KEY, 30))
    np.testing.assert_array_equal(noisy, patches)
    steps = np.asarray(patches[:, 0, 1] - patches[:, 0, 0])
    assert set(steps) == {1.0, -1.0}, "some are mirrored"
    np.testing.assert_array_equal(patches[:, 1, 0] - patches[:, 0, 0], 8.0)


def test_the_clock_leaves_the_first_round_out(tmp_path):
    clock = methods.Clock(tmp_path / "pace.json", lambda *args: None)
    for pause, done in ((0.05, 10), (0.002, 20), (0.002, 30), (0.002, 40)):
        time.sleep(pause)
        clock("train", done, 40, 0.0)
    pace = methods._store.read_json(tmp_path / "pace.json")["seconds per step"]
    assert 2e-4 <= pace < 4e-3


@eqx.filter_jit
def both_ways(encoder, decoder, network, x):
    return encoder(x), decoder(encoder(x)), network(x)


@pytest.mark.slow
def test_autoencoders_are_their_two_halves():
    cases = {
        2: encoders.dense_autoencoder((4, 5), (8, 6), jnp.float64, KEY),
        6: encoders.convolutional_autoencoder((8, 12), 9, jnp.float64, KEY),
    }
    for num_layers, network in cases.items():
        x = jax.random.uniform(KEY, network.in_structure().shape)
        encoder, decoder = encoders.halves(network, num_layers)
        assert len(encoder.layers) == num_layers
        code, there_and_back, whole = both_ways(encoder, decoder, network, x)
        np.testing.assert_allclose(there_and_back, whole, atol=1e-14)
        assert whole.shape == x.shape
        assert float(jnp.min(code)) >= 0
    with pytest.raises(ValueError, match="multiples of four"):
        encoders.convolutional_autoencoder((8, 10), 9, jnp.float64, KEY)


def test_a_study_of_images_of_ones_own(bench):
    images = np.random.default_rng(0).uniform(size=(300, 8, 8))
    study = suite.autoencoder_study(images, num_test=20)
    assert study.name == "lifted-autoencoder-300x8x8"
    assert list(study.recipes) == ["perceptron", "two-layer", "convolutional"]
    found = study.recipes["perceptron"].keywords["source"](bench)
    assert [len(part) for part in (found.train, found.val, found.test)] == [250, 30, 20]
    together = np.concatenate([found.test, found.val, found.train])
    np.testing.assert_array_equal(np.sort(together.ravel()), np.sort(images.ravel()))
    for wrong, message in ((images[0], "expected .num"), (255 * images, "0 to 1"), (images[:60], "expected 50 or")):
        with pytest.raises(ValueError, match=message):
            suite.autoencoder_study(wrong)
    with pytest.raises(ValueError, match="divide bytes by 255"):
        suite.autoencoder_study(np.zeros((100, 8, 8), np.uint8))


@pytest.mark.slow
def test_full_splitting_undoes_a_code_through_the_table(bench):
    network = encoders.dense_autoencoder((4, 4), (40,), jnp.float64, KEY)
    images = inversion.Images(*(jax.random.uniform(jax.random.key(i), (n, 4, 4)) for i, n in enumerate((60, 20, 5))))
    plan = inversion.Plan("full splitting", lifted.FullSplitting, (1e-4,), 3000)
    rows, kept = inversion.table("random", network, 1, inversion._as_perceptron, images, [plan])
    by_method = {row["method"]: row for row in rows}
    assert by_method["full splitting, TV and box"]["PSNR dB"] > 40, "more active outputs than pixels"
    assert by_method["full splitting, TV and box"]["PSNR dB"] > by_method["best linear decoder"]["PSNR dB"] + 5
    assert by_method["mean image"]["PSNR dB"] < 15
    assert kept["random, image"].shape == (5, 4, 4)


@pytest.mark.slow
def test_classifiers_by_lifted_training_match_back_propagation(bench):
    """Relative to gradient descent in the same run."""
    parts = digits(bench.dtype, quick=False)
    x = {name: part.x.reshape(len(part.x), -1) for name, part in parts.items()}
    data = x["train"], jax.nn.one_hot(parts["train"].y, 10, dtype=bench.dtype)
    network = denoise.classifier_network(bench.dtype, KEY)
    found = {}
    for method, steps in denoise.classifier_methods(network, len(x["train"]), quick=False):
        if "Adam" not in method.name:
            net = methods.trained(bench, methods.file_name(method.name), method, network, data, steps).network
            found[method.name] = (methods.objective(net, *data), float(denoise.right(net, x["test"], parts["test"].y)))
    sgd = found["SGD, rate 0.1"]
    for tau in ("1", "10"):
        loss, accuracy = found[f"lifted, tau {tau}, 10 sweeps"]
        assert accuracy >= 85
        assert accuracy >= sgd[1] - 3
        assert loss < 1.2 * sgd[0]
    assert found["lifted, tau 1, 1 sweeps"][0] > 2 * found["lifted, tau 1, 10 sweeps"][0], "one sweep is too few"
    assert found["lifted descent, Nesterov"][0] < 0.15
    assert found["lifted descent, plain"][0] < 0.5
    assert found["lifted descent, heavy ball"][0] < found["lifted descent, plain"][0]


@pytest.mark.slow
@pytest.mark.parametrize("tau", [0.1, 1.0, 10.0])
def test_the_sparse_autoencoder_learns_with_any_tau(bench, tau):
    images = digits(bench.dtype, quick=True)["train"].x.reshape(-1, 64)
    centred = images - jnp.mean(images, axis=0, keepdims=True)
    network = denoise.sparse_autoencoder(64, bench.dtype, KEY)
    sparsity = {denoise.CODE: denoise.ALPHA}
    (method,) = methods.lifted_methods(network, 50, (tau,), 15, sparsity=sparsity)
    found = methods.trained(bench, "train", method, network, denoise.Noisy(centred), 60).network
    before, after = (methods.objective(net, centred, centred, sparsity) for net in (network, found))
    assert np.isfinite(after)
    assert after < 0.8 * before


@pytest.mark.slow
def test_the_quick_denoisers_beat_what_they_start_from(tmp_path):
    options = suite.Options(dtype="float64", quick=True)
    report = suite.run(suite.PROBLEMS["lifted-pnn"], options, tmp_path / "pnn", stream=None)
    rows = report["tables"]["denoiser"]
    by_method = {row["method"]: row for row in rows if row["equal"] in ("", "products")}
    start = by_method["network before training"]["PSNR dB"]
    for name, row in by_method.items():
        if row["steps"]:
            assert row["PSNR dB"] > start, name
    assert report["figures"] == ["figures/patches.png"]
    work = [row["products"] for row in rows if row["equal"] == "products"]
    assert max(work) <= 1.01 * min(work)

    report = suite.run(suite.PROBLEMS["lifted-denoise"], options, tmp_path / "denoise", stream=None)
    assert report["figures"] == ["figures/digits.png"]
    for row in report["tables"]["autoencoder"]:
        if row["steps"] and row["equal"] != "batches":
            assert row["PSNR dB"] > 11.0, "the mean image has 11.5"
    assert report["tables"]["classifier"][1]["right in test %"] > 30


@pytest.mark.slow
def test_the_quick_inversions_are_better_than_the_mean(tmp_path):
    options = suite.Options(dtype="float64", quick=True)
    report = suite.run(suite.PROBLEMS["lifted-autoencoder"], options, tmp_path / "r", stream=None)
    assert report["figures"] == [
        f"figures/{name}.png" for name in ("convolutional", "digits", "perceptron", "two-layer")
    ]
    for encoder in ("back-propagation", "lifted"):
        rows = {row["method"]: row for row in report["tables"]["perceptron"] if row["encoder"] == encoder}
        inverted = rows["full splitting, TV and box"]
        assert inverted["solved %"] == 100
        assert inverted["PSNR dB"] > rows["mean image"]["PSNR dB"] + 5
        assert inverted["PSNR dB"] > rows["trained decoder"]["PSNR dB"]
        assert inverted["|N(u) - f| / |f|"] < 0.03
    for part in ("two-layer", "convolutional"):
        rows = {row["method"]: row for row in report["tables"][part]}
        for method in ("block inversion, TV and box", "variational, TV and box"):
            assert rows[method]["|N(u) - f| / |f|"] < rows["mean image"]["|N(u) - f| / |f|"]
