"""How does one restore images with a prior that has never heard of the camera? A diffusion prior and back-projection.

The prior proposes an image from noise, step by step; after every step the proposal is put exactly onto the observation.
Another camera needs no other prior. Here the prior is the kernel density estimate of handwritten digits, a mixture of
1400 normal distributions whose denoiser is known in closed form: nothing is trained. `diffusion.fit_prior` trains a
U-Net instead, for images that are larger.

The camera averages 2 x 2 pixels and its sensor saturates: `y = curve(A x)`. Run it as it is: `python
examples/zero_shot.py`. It takes about a minute on a CPU, in float32, and needs scikit-learn.
"""

import time

import jax
import jax.numpy as jnp
from sklearn.datasets import load_digits

from pinv_jax import diagnostics, diffusion, maps, solvers

SHAPE, SMALL = (1, 8, 8), (1, 4, 4)
NUM_TEST = 32
SAMPLER = diffusion.DDNM(100)


def load():
    """Digits between 0 and 1: those of the prior, and others to restore."""
    images = jnp.asarray(load_digits().images / 16, jnp.float32)[:, None]
    images = jax.random.permutation(jax.random.key(0), images)
    return images[:1400], images[1400 : 1400 + NUM_TEST]


def make_prior(images, std=0.12):
    variances = jnp.full(images.shape, std**2, images.dtype)
    weights = jnp.ones(len(images), images.dtype)
    return diffusion.mixture_prior(weights, images, variances, diffusion.LinearSchedule())


def make_camera():
    """What the camera does, and what one would take it for without its curve."""
    optics = maps.Downsample(SHAPE, 2)
    scale = maps.Affine(jnp.full(SMALL, 3.0), jnp.zeros(SMALL))
    return maps.SurjectiveChain([optics, scale, maps.LeakyTanh(SMALL, 0.1)]), maps.SurjectiveChain([optics, scale])


def guides(f, linear):
    return {
        "nothing: the prior alone": lambda y: None,
        "linear back-projection, curve ignored": lambda y: diffusion.LinearBackProjection(linear, y),
        "DPS, curve known": lambda y: diffusion.DPS(f, y, 0.5),
        "NLBP": lambda y: diffusion.project_after(f, y),
    }


def restore_all(prior, make_guide, data, *, key):
    """One image for every observation, all in one compiled call."""

    def one(y, key):
        return diffusion.sample(prior, SAMPLER, key=key, guide=make_guide(y))

    return jax.jit(jax.vmap(one))(data, jax.random.split(key, len(data)))


def report(name, f, x, data, truth):
    level = jnp.median(jax.vmap(lambda a, b: diagnostics.psnr(a, b, data_range=1.0))(x, truth))
    missed = jnp.sqrt(jnp.mean((jax.vmap(f)(x) - data) ** 2))
    print(f"{name:40}{level:10.1f} dB{missed:14.1e}")


def print_one(f, prior, y, truth):
    """`restore` draws several images that one observation leaves possible, and says how well they meet it."""
    found = diffusion.restore(prior, f, y, key=jax.random.key(2), num_samples=16, sampler=SAMPLER)
    print(f"\n-- 16 samples for one observation; all meet it: {bool(jnp.all(found.success))} --")
    shades = " .:-=+*#%@"
    pictures = {"truth": truth, "observed": jnp.repeat(jnp.repeat(y, 2, 1), 2, 2), "mean": found.mean}
    pictures |= {"sample": found.samples[0], "sample ": found.samples[1], "std": 3 * found.std}
    print("   ".join(f"{name:16}" for name in pictures))
    for row in range(8):
        lines = []
        for image in pictures.values():
            levels = jnp.clip(10 * image[0, row] / jnp.maximum(jnp.max(image), 1), 0, 9).astype(int)
            lines.append("".join(2 * shades[level] for level in levels.tolist()))
        print("   ".join(lines))


def main():
    print("devices:", jax.devices())
    start = time.perf_counter()
    train, truth = load()
    prior = make_prior(train)
    f, linear = make_camera()
    data = jax.vmap(f)(truth)

    print(f"\n-- {NUM_TEST} digits, {SAMPLER.num_steps} steps --\n{'':40}{'PSNR':>10}{'|f(x) - y|':>17}")
    for name, make_guide in guides(f, linear).items():
        report(name, f, restore_all(prior, make_guide, data, key=jax.random.key(1)), data, truth)

    # A sensor with four levels shows a box, and not a point: any y within it is as good.
    step = 0.25
    rounded = step * jnp.round(data / step)
    print(f"\n-- The same, rounded to multiples of {step} --")
    kinds = {
        "NLBP onto the rounded values": lambda y: diffusion.project_after(f, y),
        "NLBP onto the box": lambda y: diffusion.project_after_interval(f, *solvers.quantisation_box(y, step)),
    }
    for name, make_guide in kinds.items():
        report(name, f, restore_all(prior, make_guide, rounded, key=jax.random.key(1)), rounded, truth)

    print_one(f, prior, data[0], truth[0])
    print(f"\n{time.perf_counter() - start:.1f} s")


if __name__ == "__main__":
    main()
