"""What does the code of an image still know? A trained encoder is inverted without its decoder.

An autoencoder is trained on 150 small photographs: one ReLU layer down to 200 numbers, one linear layer back. Then the
decoder is forgotten: each held-out image is recovered from its code alone, as the minimiser of

    B(code, W u + b) + alpha TV(u),  0 <= u <= 1,

where B is the Bregman penalty of the ReLU, which is convex in u and is minimised without differentiating the ReLU. The
decoder had to learn from few images what a code means; the encoder itself says it exactly.

Run it as it is: `python examples/lifted_inversion.py`. It takes about a minute on a CPU and needs scikit-image
(`pip install "pinv_jax[data]"`).
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from skimage.data import lfw_subset

import pinv_jax as pj
from pinv_jax import diagnostics, learn, lifted

CODE, NUM_TEST = 200, 50
ALPHAS, NOISY_ALPHAS, NOISE = (0.01, 0.001), (0.3, 0.1, 0.03), 0.1


def autoencoder(images, *, key):
    """Encoder and decoder, trained by back-propagation; `lifted.wrap` shares their parameters."""
    first, last, fit_key = jax.random.split(key, 3)
    model = eqx.nn.Sequential(
        [
            eqx.nn.Linear(625, CODE, key=first),
            eqx.nn.Lambda(jax.nn.relu),
            eqx.nn.Linear(CODE, 625, key=last),
        ]
    )
    stage = learn.Stage({"loss": learn.Term(lifted.network_loss)}, lambda network: network, 1500, 50, optax.adam(1e-3))
    network, _ = learn.fit(lifted.wrap(model), {"train": stage}, (images, images), key=fit_key)
    model = lifted.unwrap(network, model)
    return model[0], model[2]


def invert(encoder, codes, alpha, regulariser, noise_std=None):
    """Images from codes: one convex problem each, all at once."""
    perceptron = lifted.Perceptron(encoder.weight, encoder.bias, shape=(25, 25))
    problem = pj.Problem(perceptron, codes, noise_std=noise_std)
    start = jnp.zeros((len(codes), 25, 25))
    return pj.solve_batch(problem, lifted.FullSplitting(alpha, regulariser, rtol=1e-4), start, max_steps=1000)


def main():
    images = jnp.asarray(lfw_subset()[np.random.default_rng(0).permutation(200)].reshape(200, -1), jnp.float32)
    train, test = images[:-NUM_TEST], images[-NUM_TEST:].reshape(-1, 25, 25)
    encoder, decoder = autoencoder(train, key=jax.random.key(0))
    codes = jax.nn.relu(jax.vmap(encoder)(test.reshape(-1, 625)))
    print(f"codes of {CODE} numbers, {float(jnp.mean(codes > 0)):.0%} of them positive")

    psnr = jax.jit(jax.vmap(lambda x, truth: diagnostics.psnr(truth, x, data_range=1.0)))
    shown = lambda x: f"{float(jnp.mean(psnr(jnp.clip(x, 0, 1), test))):5.1f} dB"
    decode = lambda codes: jax.vmap(decoder)(codes).reshape(-1, 25, 25)
    mean = jnp.broadcast_to(jnp.mean(train, axis=0).reshape(25, 25), test.shape)
    print(f"mean image                       {shown(mean)}")
    print(f"the trained decoder              {shown(decode(codes))}")
    smooth = lifted.TotalVariation()
    both = smooth + lifted.Box(0.0, 1.0)
    for alpha in ALPHAS:
        for name, regulariser in (("TV", smooth), ("TV and box", both)):
            found = invert(encoder, codes, alpha, regulariser)
            steps = int(jnp.median(found.stats.num_steps))
            print(f"inverted, {name:10} alpha {alpha:5}  {shown(found.value)}   {steps} steps")

    noisy = codes + NOISE * jax.random.normal(jax.random.key(1), codes.shape)
    print(f"\ncodes with noise of {NOISE}")
    print(f"the trained decoder              {shown(decode(noisy))}")
    for alpha in NOISY_ALPHAS:
        found = invert(encoder, noisy, alpha, both, NOISE)
        print(f"inverted, TV and box alpha {alpha:5}  {shown(found.value)}")


if __name__ == "__main__":
    main()
