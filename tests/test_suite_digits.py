"""The study `digits-spnn`: its data, its measures, and, slowly, what the quick run must show."""

import builtins

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pinv_jax import maps, plots, suite
from pinv_jax.suite import _digits as shared
from pinv_jax.suite import _digits_edits as edits
from pinv_jax.suite import _faces as faces


def randomised(model, key):
    """Every parameter moved, so that nothing is the identity or zero."""
    leaves, treedef = jax.tree.flatten(model)
    keys = jax.random.split(key, len(leaves))
    moved = [leaf + 0.2 * jax.random.normal(k, leaf.shape, leaf.dtype) for leaf, k in zip(leaves, keys, strict=True)]
    return jax.tree.unflatten(treedef, moved)


@pytest.fixture(scope="module")
def network():
    designs = maps.ConvDesign((4,), window=1), maps.ConvDesign((6,), window=1)
    steps = (maps.Unshuffle(2), maps.Block(2, designs[0]), maps.Unshuffle(2), maps.Block(3, designs[1]))

    @eqx.filter_jit  # one compilation instead of one per operation
    def build(key):
        return randomised(maps.spnn((1, 4, 4), steps, dtype=jnp.float64, key=key), key)

    return build(jax.random.key(0))


@pytest.fixture(scope="module")
def data():
    return shared.digits(jnp.float64, quick=False)


def test_the_splits_are_fixed_and_apart(data):
    assert {name: part.x.shape for name, part in data.items()} == {
        "train": (1047, 1, 8, 8), "val": (250, 1, 8, 8), "test": (500, 1, 8, 8),
    }  # fmt: skip
    images = np.concatenate([np.asarray(part.x).reshape(-1, 64) for part in data.values()])
    assert images.min() == 0.0
    assert images.max() == 1.0
    assert len(np.unique(images, axis=0)) == 1797
    again = shared.digits(jnp.float64, quick=False)
    np.testing.assert_array_equal(again["test"].y, data["test"].y)


@pytest.mark.slow
def test_the_augmented_attributes_are_those_of_the_moved_image():
    parts, threshold = faces.faces(jnp.float64)
    assert {name: len(part.x) for name, part in parts.items()} == {"train": 110, "val": 20, "test": 70}
    assert 0.48 < np.mean(parts["train"].y[:, 1]) <= 0.5
    sample = faces.Augmented(parts["train"].x, parts["train"].y[:, 0], threshold)
    images, labels = jax.vmap(sample)(jax.random.split(jax.random.key(0), 200))
    np.testing.assert_array_equal(np.std(np.asarray(images), axis=(1, 2, 3)) > float(threshold), labels[:, 1])
    # Whatever the mirror, the move and the contrast, the middle of the image is found in an original, with its label.
    middles = np.asarray(images)[:, 0, 2:-2, 2:-2]
    textured = np.std(middles, axis=(1, 2)) > 1e-3
    assert np.sum(textured) > 150
    originals, faces_of = [], []
    for image, label in zip(np.asarray(parts["train"].x)[:, 0], np.asarray(parts["train"].y), strict=True):
        for mirrored in (image, image[:, ::-1]):
            originals += [mirrored[i : i + 21, j : j + 21] for i in range(5) for j in range(5)]
        faces_of += 50 * [label[0]]
    alike = unit(middles[textured]) @ unit(np.stack(originals)).T
    assert np.min(np.max(alike, axis=1)) > 1 - 1e-9
    assert [faces_of[i] for i in np.argmax(alike, axis=1)] == labels[textured, 0].tolist()
    factor = np.std(np.asarray(images), axis=(1, 2, 3)) / np.mean(np.std(parts["train"].x, axis=(1, 2, 3)))
    assert np.min(factor) < 0.6 < 1.6 < np.max(factor)


def unit(images):
    """Images as rows, without mean and contrast."""
    rows = images.reshape(len(images), -1)
    rows = rows - rows.mean(axis=1, keepdims=True)
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)


def test_a_missing_package_is_named_with_its_cure(monkeypatch):
    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name.startswith(("sklearn", "skimage")):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    for load in (lambda: shared.digits(jnp.float64, quick=True), lambda: faces.faces(jnp.float64)):
        with pytest.raises(ValueError, match=r'pip install "pinv_jax\[data\]"'):
            load()


def test_the_readout_is_a_surjection_with_the_moore_penrose_inverse():
    readout = edits.Readout(7, 3, dtype=jnp.float64, key=jax.random.key(0))
    readout = eqx.tree_at(lambda r: r.bias, readout, jnp.arange(3.0))
    x, y = jnp.linspace(-1, 1, 7), jnp.array([1.0, -2.0, 0.5])
    np.testing.assert_allclose(readout.merge(*readout.split(x)), x, atol=1e-13)
    np.testing.assert_allclose(readout(readout.pinv(y)), y, atol=1e-13)
    np.testing.assert_allclose(
        readout.pinv(y), np.linalg.pinv(np.asarray(readout.weight)) @ (y - readout.bias), atol=1e-13
    )


def test_the_cnn_is_as_large_as_asked():
    for shape, count in (((1, 8, 8), 30_000), ((3, 25, 25), 17_000)):
        build = lambda key, shape=shape, count=count: shared.similar_cnn(shape, 10, count, jnp.float64, key=key)
        cnn = eqx.filter_eval_shape(build, jax.random.key(0))
        assert abs(shared.size(cnn) - count) < 0.05 * count
        assert cnn.head.weight.shape[0] == 10


@pytest.mark.slow
def test_the_judge_tells_sections_apart(network):
    x = jax.random.normal(jax.random.key(2), (6, 1, 4, 4))
    drawn = edits.random_sections(network, key=jax.random.key(3))
    other, natural = edits.judge(drawn, x, 2), edits.judge(maps.Natural(network), x, 2)
    for found in (other, natural):
        assert np.max(found.penrose.first) < 1e-11
        assert np.max(found.penrose.second) < 1e-11
        assert np.all(found.gain > 0)
    assert np.all(natural.g_distance < other.g_distance), "the natural pseudo-inverse is the nearest to G(0)"
    np.testing.assert_allclose(other.rmse, np.sqrt(np.mean((other.reconstruction - x) ** 2, axis=(1, 2, 3))))
    # the gain is the largest singular value: no direction is stretched by more
    y = network(x[0])
    step = 1e-6 * jax.random.normal(jax.random.key(4), y.shape)
    stretch = jnp.linalg.norm(jnp.ravel(drawn.pinv(y + step) - drawn.pinv(y))) / jnp.linalg.norm(step)
    assert stretch <= other.gain[0] * 1.01
    np.testing.assert_array_equal(drawn(x[0]), y)


def test_image_grid_draws_every_row_on_one_scale(tmp_path):
    rows = {"x": np.linspace(0, 1, 48).reshape(3, 4, 4), "twice": np.linspace(0, 2, 48).reshape(3, 4, 4)}
    figure = plots.image_grid(rows, limits=(0.0, 1.0), titles=["a", "b", "c"])
    assert len(figure.axes) == 6
    shown = [axes.get_images()[0].get_array() for axes in figure.axes]
    np.testing.assert_allclose(shown[4], np.minimum(rows["twice"][1], 1.0))
    assert [axes.get_title() for axes in figure.axes[:3]] == ["a", "b", "c"]
    figure.savefig(tmp_path / "a.png")
    colours = plots.image_grid({"x": np.ones((2, 4, 5, 3)) * np.array([0.0, 0.5, 1.0])})
    assert colours.axes[0].get_images()[0].get_array().shape == (4, 5, 3)
    with pytest.raises(ValueError, match=r"row 'b' has shape \(2, 4, 4\)"):
        plots.image_grid({"a": np.ones((3, 4, 4)), "b": np.ones((2, 4, 4))})


@pytest.mark.slow
def test_the_quick_study_shows_what_it_must(tmp_path):
    options = suite.Options(dtype="float64", quick=True)
    report = suite.run(suite.DIGITS_SPNN, options, tmp_path / "r", stream=None)
    tables = report["tables"]

    def row(part, **cells):
        (found,) = [r for r in tables[part] if cells.items() <= r.items()]
        return found

    majority = row("classifier", model="majority")["accuracy %"]
    for model in ("plain CNN", "SPNN, task + reconstruction", "softmax regression"):
        assert row("classifier", model=model)["accuracy %"] > majority + 10
    sizes = [row("classifier", model=model)["parameters"] for model in ("plain CNN", "SPNN, task alone")]
    assert abs(sizes[0] / sizes[1] - 1) < 0.1

    for section in ("natural", "learned section", "random section"):
        edited = row("backprojection", method=f"NLBP, {section}")
        assert edited["residual max"] <= 1e-10
        assert edited["met %"] == edited["target by g %"] == 100
        assert edited["steps"] == 1
    assert row("backprojection", method="inverse network, one shot")["median"] > 1e-3

    assert (
        row("sections", map="psi = identity, P trained")["Penrose IV"]
        <= 1e-12
        < row("sections", map="SPNN", section="natural")["Penrose IV"]
    ), "linear: Moore and Penrose's"
    for found in tables["sections"][1:]:
        assert found["Penrose I"] <= 1e-11
        assert found["Penrose II"] <= 1e-11
    spnn = {section: row("sections", map="SPNN", section=section) for section in ("natural", "learned", "random")}
    assert spnn["learned"]["RMSE g†g(x)"] < min(spnn[name]["RMSE g†g(x)"] for name in ("natural", "random"))
    assert spnn["natural"]["|G(g†g x)-G(0)|"] < min(spnn[n]["|G(g†g x)-G(0)|"] for n in ("learned", "random"))

    for found in tables["edits"]:
        assert found["residual max"] <= 1e-10
        assert found["edited %"] == found["other kept %"] == 100
    assert {"figures/sections.png", "figures/backprojection.png", "figures/edits.png"} <= set(report["figures"])
    assert (tmp_path / "r" / "models" / "spnn.npz").exists()
