"""The study `lifted-pnn`: an unfolded proximal denoiser, trained on patches of photographs, tested on other ones.

`denoiser`: lifted training against back-propagation at equal work and at equal time; beside it the noisy patches, the
best linear denoiser, and total variation with the weight that is best on patches of training.
"""

from collections.abc import Mapping
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from .. import lifted, plots
from ._lens_camera import quality
from ._lifted_methods import compared, file_name, gradient_methods, lifted_methods, objective, ridge
from ._psf_photographs import TEST, TRAIN, grey
from ._study import Bench, Findings, Study

NOISE = 0.1
"""Standard deviation of the noise on pixels between 0 and 1."""
SIDE = 10
"""Of a patch, pixels."""
THRESHOLD = 0.1
"""Of the dual states of the network."""
BATCH = 50
WEIGHTS = (0.02, 0.04, 0.06, 0.08, 0.1, 0.15, 0.2)
"""Of total variation, to choose from."""


class NoisyPatch(eqx.Module):
    """A sampler for `fit`: a random patch of a photograph with noise, and without.

    Args:
        images: the photographs.
        side: of a patch.
        noise: standard deviation.
    """

    images: Float[Array, "n 1 H W"]
    side: int = eqx.field(static=True)
    noise: float = eqx.field(static=True)

    def __call__(self, key: Key[Array, ""]) -> tuple[Float[Array, "s s"], Float[Array, "s s"]]:
        """One pair `(noisy, patch)`, mirrored at random as well."""
        keys = jax.random.split(key, 5)
        num, _, height, width = self.images.shape
        ends = (num, height - self.side + 1, width - self.side + 1)
        which, top, left = (jax.random.randint(k, (), 0, end) for k, end in zip(keys[:3], ends, strict=True))
        patch = jax.lax.dynamic_slice(self.images, (which, 0, top, left), (1, 1, self.side, self.side))[0, 0]
        patch = jnp.where(jax.random.bernoulli(keys[3]), patch[:, ::-1], patch)
        return patch + self.noise * jax.random.normal(keys[4], patch.shape, patch.dtype), patch


def tiles(images: Float[Array, "n 1 H W"], side: int) -> Float[Array, "m s s"]:
    """All patches of the photographs side by side, which overlap nowhere."""
    num, _, height, width = images.shape
    cut = images[:, 0, : height // side * side, : width // side * side]
    split = cut.reshape(num, height // side, side, width // side, side)
    return split.transpose(0, 1, 3, 2, 4).reshape(-1, side, side)


def total_variation(patches: Float[Array, "n s s"], weight: float) -> Float[Array, "n s s"]:
    """Every patch by itself, by scikit-image."""
    from skimage.restoration import denoise_tv_chambolle

    found = [denoise_tv_chambolle(patch, weight=weight, eps=1e-5, max_num_iter=300) for patch in np.asarray(patches)]
    return jnp.asarray(np.stack(found), patches.dtype)


@eqx.filter_jit
def _denoised(network: Any, y: Float[Array, "n s s"]) -> Float[Array, "n s s"]:
    return jax.vmap(network)(y)


def denoiser(bench: Bench) -> Findings:
    """The denoiser by method of training, on all patches of the photographs of test."""
    side, dtype = SIDE, bench.dtype
    size = 60 if bench.quick else 180
    train_images, test_images = grey(TRAIN, size, dtype), grey(TEST, size, dtype)
    draw_key, noise_key, net_key = jax.random.split(bench.key, 3)
    sampler = NoisyPatch(train_images, side, NOISE)
    num = 200 if bench.quick else 4000
    seen, clean = jax.jit(jax.vmap(sampler))(jax.random.split(draw_key, 2 * num))
    truth = tiles(test_images, side)
    noisy = truth + NOISE * jax.random.normal(noise_key, truth.shape, dtype)

    few = 100
    errors = [float(jnp.mean((total_variation(seen[:few], weight) - clean[:few]) ** 2)) for weight in WEIGHTS]
    weight = WEIGHTS[int(np.argmin(errors))]
    linear = ridge(seen[:num], clean[:num], (seen[num:], clean[num:]))
    network = lifted.proximal_network(noisy[0], 40 if bench.quick else 200, 5, threshold=THRESHOLD, key=net_key)
    plain = {
        "noisy patch": noisy,
        "mean of the noisy patch": jnp.broadcast_to(jnp.mean(noisy, axis=(1, 2), keepdims=True), noisy.shape),
        "best linear denoiser": linear(noisy),
        f"total variation, weight {weight:g}": total_variation(noisy, weight),
        "network before training": _denoised(network, noisy),
    }
    rows = [_row("", name, truth, estimate) for name, estimate in plain.items()]
    pictures = {"photograph": truth} | plain
    num_steps = 20 if bench.quick else 600
    lifted_ones = lifted_methods(network, BATCH, (1.0,) if bench.quick else (1.0, 10.0), 10, num_backtracks=10)
    others = gradient_methods(
        BATCH, sgd=(1e-2,) if bench.quick else (1e-2, 3e-2, 1e-1), adam=(1e-3,) if bench.quick else (1e-3, 3e-3)
    )
    for equal, method, training in compared(bench, network, sampler, lifted_ones, others, num_steps):
        if training.network is None:
            rows.append(_row(equal, method.name, truth, None, training, method))
            continue
        estimate = _denoised(training.network, noisy)
        loss = objective(training.network, seen[:num], clean[:num])
        rows.append(_row(equal, method.name, truth, estimate, training, method, loss))
        if equal == "products":
            pictures[method.name] = estimate
            bench.keep(f"pnn-{file_name(method.name)}", training.network)
    measures = {
        "patches": {"test": len(truth), "pixels": side, "photographs of training": len(train_images)},
        "noise": NOISE,
        "threshold": THRESHOLD,
    }
    picked = np.linspace(0, len(truth) - 1, 10).astype(int)
    return Findings(rows, measures, {name: np.asarray(stack)[picked] for name, stack in pictures.items()})


def _row(
    equal: str,
    name: str,
    truth: Array,
    estimate: Array | None,
    training: Any = None,
    method: Any = None,
    loss: float | None = None,
) -> dict[str, Any]:
    """A line of the table; what a method does not have is empty. Estimates are clipped to the range of the pixels."""
    cells: dict[str, float | None] = {"PSNR dB": None, "least PSNR": None, "SSIM": None}
    if estimate is not None:
        found = quality(truth[:, None], jnp.clip(estimate, 0, 1)[:, None])
        cells = {
            "PSNR dB": float(jnp.mean(found["psnr"])),
            "least PSNR": float(jnp.min(found["psnr"])),
            "SSIM": float(jnp.mean(found["ssim"])),
        }
    return {
        "equal": equal,
        "method": name,
        "steps": None if training is None else training.steps,
        "products": None if training is None else round(training.steps * method.products),
        "seconds": None if training is None else training.seconds,
        "objective": loss,
    } | cells


def figures(found: Mapping[str, Findings]) -> dict[str, Any]:
    """Patches before and after denoising."""
    rows = {name.replace(", ", ",\n", 1): stack for name, stack in found["denoiser"].arrays.items()}
    return {"patches": plots.image_grid(rows, limits=(0.0, 1.0))}


LIFTED_PNN = Study(
    name="lifted-pnn",
    summary="an unfolded proximal denoiser of photographs, trained lifted and by back-propagation",
    reference="X. Wang, M. Benning, A. Repetti, A lifted Bregman strategy for training unfolded proximal neural "
    "network Gaussian denoisers, 2024, arXiv:2408.08742",
    recipes={"denoiser": denoiser},
    figures=figures,
)
