"""The study `style-reversal`: a digit whose style was swapped in the latent space of an invertible network, restored.

The style of a picture are the mean and deviation of every latent channel. Those of a digit are replaced by those of
another picture, and it is decoded: the stylised image. What it has kept of the digit are the normalised channels, a
surjection of the digit; what it has lost, the statistics of the content, comes from the prior.

The statistics of digits differ so little that their average is a better guess than a sample: `pinv` with the average
is ahead of every sampler in the table.

Parts: `coarse` and `fine` latent channels, 4 of them with 16 numbers each or 16 with 4, so that the style is an eighth
or a half of all numbers.
"""

import functools
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray, Scalar

from ..diffusion import DDPM, DPS, project_after, sample
from ..learn import Stage, Term, clipped_adam, fit
from ..maps import PixelUnshuffle, SurjectiveChain, invertible_network, log_det, prepare
from ._digits import Labelled, image_psnr, key_of
from ._guided import best_scale, draw, misses, of_unit, to_unit
from ._restore_logits import REFERENCE, digit_prior, figures, observed_digits
from ._statistics import Style
from ._study import Bench, Findings, Study


def negative_log_likelihood(model: Any, x: Float[Array, "*x"], y: Array, key: PRNGKeyArray) -> Scalar:
    """`|psi(x)|^2 / 2 - log |det psi'(x)|` per number, with `x` slightly noisy: greys are not continuous."""
    x = x + 0.05 * jax.random.normal(key, x.shape, x.dtype)
    return (0.5 * jnp.sum(model(x) ** 2) - log_det(model, x)) / x.size


def _everything(model: Any) -> Any:
    return model


def flow(bench: Bench, name: str, factor: int, train: Labelled) -> SurjectiveChain:
    """An invertible network of digits between 0 and 1, trained to make them normal."""
    unshuffle = PixelUnshuffle((1, 8, 8), factor, bench.dtype)
    psi = invertible_network(
        unshuffle.out_structure().shape,
        num_layers=2 if bench.quick else 4,
        hidden=32,
        scale_bound=1.0,
        centred=False,
        dtype=bench.dtype,
        key=key_of(bench, name),
    )
    num_steps = 50 if bench.quick else 1500
    optimiser = clipped_adam(1e-3, num_steps=num_steps, warmup_steps=20)
    stage = Stage({"likelihood": Term(negative_log_likelihood)}, _everything, num_steps, 64, optimiser)
    folder = bench.fits.parent / name
    model, _ = fit(
        SurjectiveChain([unshuffle, psi]), {"flow": stage}, train.pair, key=bench.key, checkpoint=folder,
        progress=bench.progress,
    )  # fmt: skip
    return model  # pyright: ignore[reportReturnType]


class Stylised(eqx.Module):
    """`x ->` the image with the content of `x` and another style."""

    f: Any
    style: Any

    def __call__(self, x: Float[Array, "*x"]) -> Float[Array, "*x"]:
        """The stylised image."""
        return restyled(self.f, self.f(x), self.style)


def restyled(f: SurjectiveChain, y: Float[Array, "*y"], style: Any) -> Float[Array, "*x"]:
    """The image with the normalised channels `y` and this style."""
    return SurjectiveChain(f.layers[:-1]).pinv(f.layers[-1].merge(y, style))


def _sampled(make: Any, num_steps: int, models: Any, item: Any, key: PRNGKeyArray) -> Array:
    return sample(models["prior"], DDPM(num_steps), key=key, guide=make(models, item))


def _dps(models: Any, item: Any) -> DPS:
    seen, style = item
    return DPS(Stylised(models["f"], style), seen, models["scale"])  # pyright: ignore[reportCallIssue]


@functools.cache
def methods(num_steps: int) -> dict[str, tuple[Any, int, bool]]:
    """By name: `(models, (stylised image, its style), key) -> x`, denoiser calls, whether its derivative is needed."""
    by = lambda make: functools.partial(_sampled, make, num_steps)
    return {
        "stylised image": (lambda models, item, key: item[0], 0, False),
        "prior alone": (by(lambda models, item: None), num_steps, False),
        "pinv, average style": (lambda models, item, key: models["f"].pinv(models["f"](item[0])), 0, False),
        "DPS": (by(_dps), num_steps, True),
        "NLBP": (by(lambda models, item: project_after(models["f"], models["f"](item[0]))), num_steps, False),
    }


def reversal(bench: Bench, name: str, factor: int) -> Findings:
    """Every method, with this many pixels of a patch as channels."""
    data, asked, judge = observed_digits(bench)
    train = data["train"]
    trunk = flow(bench, f"flow {name}", factor, train)
    shape = trunk.out_structure().shape
    blank = Style(shape, jnp.zeros(shape[0], bench.dtype), jnp.zeros(shape[0], bench.dtype))
    noise = 0.05 * jax.random.normal(key_of(bench, "noise"), train.x.shape, bench.dtype)
    statistics = jax.jit(jax.vmap(lambda x: blank.split(trunk(x))[1]))
    means, log_stds = statistics(train.x + noise)
    average = Style(shape, means.mean(axis=0), log_stds.mean(axis=0))
    f = prepare(SurjectiveChain([*of_unit(trunk).layers, average]))
    models = {"prior": digit_prior(bench, train), "f": f}
    num = 4 if bench.quick else 48
    x = 2 * asked.x[:num] + 0.02 * jax.random.normal(bench.key, asked.x[:num].shape, bench.dtype) - 1
    # the style: that of another digit, white on black and turned by a quarter
    other = 1 - jnp.rot90(jnp.roll(train.x[:num], 1, axis=0), axes=(2, 3))
    styles = statistics(other + noise[:num])
    stylise = jax.jit(jax.vmap(lambda x, style: Stylised(f, style)(x)))  # pyright: ignore[reportCallIssue]
    seen = stylise(x, styles)
    num_steps, num_seeds = (8, 2) if bench.quick else (50, 3)

    def level(found: Array, truth: Array) -> float:
        each = jax.vmap(jax.vmap(image_psnr), (None, 0))(to_unit(truth), to_unit(found))
        return float(jnp.median(each))

    models["scale"] = jnp.asarray(0.1, bench.dtype)
    if not bench.quick:
        known, some = 2 * train.x[100:116] + 0.4 * noise[:16] - 1, jax.tree.map(lambda a: a[:16], styles)
        items, score = (stylise(known, some), some), lambda found: level(found, known)
        models["scale"] = best_scale(methods(num_steps)["DPS"][0], models, items, score, key=bench.key)
    labels, rows, arrays = np.asarray(asked.y[:num]), [], {"digit": to_unit(x[:10, 0]), "style": other[:10, 0]}
    y = jax.jit(jax.vmap(f))(x)
    for method_name, (method, cost, derivative) in methods(num_steps).items():
        found = draw(method, models, (seen, styles), key=bench.key, num_seeds=num_seeds if cost else 1)
        missed = np.asarray(misses(f, found.x, y))
        right = judge(to_unit(found.x.reshape(-1, 1, 8, 8))).reshape(found.x.shape[:2]) == labels
        rows.append(
            {
                "method": method_name,
                "PSNR dB": level(found.x, x),
                "of the mean dB": level(jnp.mean(found.x, axis=0, keepdims=True), x),
                "agreement %": 100 * float(np.mean(right)),
                "consistency": float(np.median(missed)),
                "worst": float(np.max(missed)),
                "evaluations": cost,
                "derivatives": cost if derivative else 0,
                "CPU ms": 1e3 * found.seconds,
            }
        )
        arrays[method_name] = to_unit(found.x[0, :10, 0])
    measures = {
        "digits": num,
        "seeds": num_seeds,
        "scale of DPS": float(models["scale"]),
        "numbers lost": 2 * shape[0],
        "inverse of the network": float(
            jnp.max(jnp.abs(jax.vmap(trunk.pinv)(jax.vmap(trunk)(asked.x[:num])) - asked.x[:num]))
        ),
    }
    return Findings(rows, measures, {title: np.asarray(array) for title, array in arrays.items()})


STYLE_REVERSAL = Study(
    name="style-reversal",
    summary="digits whose style was swapped in the latent space of an invertible network, restored without their style",
    reference=REFERENCE,
    recipes={
        "coarse": functools.partial(reversal, name="coarse", factor=2),
        "fine": functools.partial(reversal, name="fine", factor=4),
    },
    figures=figures,
)
