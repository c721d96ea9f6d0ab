"""The U-Net of DDPM, its published weights, and the training of a prior."""

from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import key

from pinv_jax import diffusion, io, learn

DATA = Path(__file__).parent / "data" / "ddpm_unet_tiny.npz"


def tiny(dtype="float32"):
    """Of the sizes of the golden arrays."""
    return diffusion.DenoisingUNet((3, 16, 16), widths=(32, 64), attention=(8,), num_groups=32, dtype=dtype, key=key())


@pytest.fixture(scope="module")
def golden():
    return np.load(DATA)


@pytest.fixture(scope="module")
def structure():
    return eqx.filter_eval_shape(tiny)


@pytest.mark.slow
def test_published_weights_compute_what_they_computed_in_pytorch(golden, structure):
    net = io.load_ddpm(DATA, structure, prefix="state/")
    with jax.default_matmul_precision("highest"):
        eps = jax.jit(jax.vmap(net))(golden["x"], jnp.asarray(golden["t"], jnp.float32))
    np.testing.assert_allclose(eps, golden["eps"], rtol=0, atol=1e-5)
    prior = diffusion.Prior(net, diffusion.LinearSchedule(), shape=(3, 16, 16))
    assert prior.dtype == jnp.float32


def state(golden):
    return {name.removeprefix("state/"): golden[name] for name in golden if name.startswith("state/")}


def test_files_with_other_names_are_refused(golden, structure):
    arrays = state(golden)
    wanted = arrays.pop("mid.attn_1.q.weight")
    with pytest.raises(ValueError, match=r"1 missing: mid\.attn_1\.q\.weight"):
        io.load_ddpm(arrays, structure)
    with pytest.raises(ValueError, match=r"1 of another shape: mid\.attn_1\.q\.weight"):
        io.load_ddpm(arrays | {"mid.attn_1.q.weight": wanted[:2]}, structure)
    with pytest.raises(ValueError, match="unknown: x"):
        io.load_ddpm(DATA, structure)


def test_the_published_sizes_have_the_published_number_of_parameters():
    def published(key):
        widths = (128, 128, 256, 256, 512, 512)
        return diffusion.DenoisingUNet(
            (3, 256, 256), widths=widths, num_blocks=2, attention=(16,), num_groups=32, key=key
        )

    leaves = jax.tree.leaves(jax.eval_shape(published, key()))
    assert sum(leaf.size for leaf in leaves) == 113_673_219


@pytest.mark.slow
def test_sides_may_be_any():
    net = diffusion.DenoisingUNet(
        (2, 5, 9), widths=(8, 8, 16), num_groups=4, middle_attention=False, time_scale=1000, key=key()
    )
    x = jax.random.normal(key(1), (2, 5, 9))
    value_and_slope = jax.jit(lambda net, t: jax.jvp(lambda t: net(x, t), (t,), (jnp.ones_like(t),)))
    np.testing.assert_array_equal(value_and_slope(net, jnp.asarray(0.5))[0], jnp.zeros_like(x))  # before training
    value, slope = value_and_slope(jax.tree.map(lambda leaf: leaf + 0.1, net), jnp.asarray(0.5))
    assert value.shape == x.shape
    assert jnp.all(jnp.abs(value) > 0)
    assert jnp.any(slope != 0)


class Affine(eqx.Module):
    """The smallest network that can learn the noise of a normal image."""

    weight: jax.Array

    def __call__(self, x_t, t):
        return self.weight * x_t


@pytest.fixture(scope="module")
def normals():
    return jax.random.normal(key(5), (512, 3))


def fitted(images, **options):
    options = {"num_steps": 60, "batch_size": 128, "learning_rate": 0.05, "ema": 0.9, "key": key()} | options
    return diffusion.fit_prior(Affine(jnp.zeros(3)), images, diffusion.CosineSchedule(100), **options)


def weights(prior):
    return prior.network.fn.weight


@pytest.mark.slow
def test_training_finds_the_best_affine_denoiser(normals):
    """Of white noise images the best one is `E[noise | x_t] = sqrt(1 - alpha_bar) x_t`, with one weight its mean."""
    found = weights(fitted(normals, num_steps=1500))
    spreads = jnp.sqrt(1 - diffusion.CosineSchedule(100).alpha_bars())
    np.testing.assert_allclose(found, jnp.mean(spreads), atol=0.03)
    x0 = fitted(lambda k: jax.random.normal(k, (3,)), prediction="x0", num_steps=1500)
    np.testing.assert_allclose(weights(x0), jnp.mean(jnp.sqrt(diffusion.CosineSchedule(100).alpha_bars())), atol=0.03)


@pytest.mark.slow
def test_a_training_that_was_interrupted_goes_on(normals, tmp_path):
    whole = fitted(normals, steps_per_round=20)
    seen = []

    def stop(stage, done, total, loss):
        seen.append((stage, done, total))
        if done == 40:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fitted(normals, steps_per_round=20, checkpoint=tmp_path, progress=stop)
    resumed = fitted(normals, steps_per_round=20, checkpoint=tmp_path)
    assert seen == [("prior", 20, 60), ("prior", 40, 60)]
    np.testing.assert_array_equal(weights(whole), weights(resumed))


@pytest.mark.slow
def test_the_average_is_the_moving_one(normals):
    decay = 0.9
    stage = learn.Stage(
        {"a": learn.Term(lambda model, x, y, key: jnp.sum((model - x) ** 2))}, lambda m: m, 3, 512, _descent(0.1)
    )
    start = jnp.zeros(3)
    pair, _ = learn.fit(
        learn.Averaged(start, start), {"a": learn.AveragedStage(stage, decay)}, (normals, normals[:, 0]), key=key()
    )
    model = average = np.zeros(3)
    mean = np.mean(normals, axis=0)
    for step in range(3):
        model = model - 0.2 * (model - mean)
        d = min(decay, (1 + step) / (10 + step))
        average = d * average + (1 - d) * model
    np.testing.assert_allclose(pair.model, model, atol=1e-12)
    np.testing.assert_allclose(pair.average, average, atol=1e-12)


def _descent(rate):
    import optax

    return optax.sgd(rate)


@pytest.mark.slow
def test_a_tiled_prior_is_the_prior_where_pixels_are_independent():
    """And an average of what the squares say elsewhere."""
    schedule = diffusion.LinearSchedule()
    flat = diffusion.gaussian_prior(jnp.full((1, 4, 4), 0.3), jnp.full((1, 4, 4), 0.2), schedule)
    large = diffusion.gaussian_prior(jnp.full((1, 7, 10), 0.3), jnp.full((1, 7, 10), 0.2), schedule)
    x, t = jax.random.normal(key(), (1, 7, 10)), jnp.asarray(300.0)
    np.testing.assert_allclose(diffusion.tiled(flat, (1, 7, 10)).denoise(x, t), large.denoise(x, t), rtol=0, atol=1e-12)
    same = diffusion.tiled(flat, (1, 4, 4))
    np.testing.assert_allclose(same.denoise(x[:, :4, :4], t), flat.denoise(x[:, :4, :4], t), atol=1e-12)
    for shape, overlap in (((1, 3, 4), 0.5), ((2, 8, 8), 0.5), ((1, 8, 8), 1.0)):
        with pytest.raises(ValueError, match="tiled"):
            diffusion.tiled(flat, shape, overlap=overlap)
