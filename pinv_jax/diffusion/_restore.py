"""From an observation to images that explain it: `restore`, with a diffusion prior or a generator."""

from collections.abc import Callable, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Key, PRNGKeyArray

from .._problem import GaussianPrior, Problem
from .._solution import RESULTS, result_where
from ..learn import imitate
from ..maps import AbstractSurjection, Joint, Natural, Stored, prepare, store, unstore
from ..solvers import SVD, ConjugateGradients, CyclicProjection, GaussNewton, LevenbergMarquardt, nlbp, solve
from ..solvers._check import concrete
from ._guides import project_after
from ._prior import Prior
from ._sample import Start, sample
from ._samplers import DDIM, AbstractSampler

_DENSE = 2**22  # entries of the Jacobian up to which the last steps on the true map are dense


class GeneratorPrior(eqx.Module):
    """A prior that makes images from normal noise, `x = decoder(z)`: a GAN, or the decoder of a VAE.

    Args:
        decoder: `z -> x` on one example, differentiable.
        latent_shape: of `z`.
        misfit: by how much, as a root mean square in the units of the data, what the generator cannot express may miss
            the data; the last projection makes up for it.
        dtype: of `z`; the default float by default.

    Raises:
        ValueError: the decoder cannot be applied to such a `z`, or does not return one array.
    """

    decoder: Stored
    misfit: Any
    latent_shape: tuple[int, ...] = eqx.field(static=True)
    shape: tuple[int, ...] = eqx.field(static=True)
    dtype: np.dtype = eqx.field(static=True)

    def __init__(
        self,
        decoder: Callable[..., Any],
        latent_shape: tuple[int, ...],
        *,
        misfit: Any = 0.05,
        dtype: DTypeLike | None = None,
    ):
        self.dtype, self.latent_shape = jnp.result_type(float if dtype is None else dtype), tuple(latent_shape)
        wanted = f"GeneratorPrior expected a decoder from z of shape {latent_shape} to one array"
        try:
            x = jax.eval_shape(decoder, jax.ShapeDtypeStruct(self.latent_shape, self.dtype))
        except Exception as error:  # a decoder may raise whatever it likes
            raise ValueError(f"{wanted}; it raised {type(error).__name__}: {error}") from error
        if not isinstance(x, jax.ShapeDtypeStruct):
            raise ValueError(f"{wanted}; it returns {jax.tree.map(lambda leaf: leaf.shape, x)}.")
        self.decoder, self.misfit, self.shape = store(decoder), misfit, x.shape

    def find(self, forward: Any, data: Float[Array, "*y"], key: PRNGKeyArray) -> Float[Array, "*x"]:
        """`decoder(z)` of the `z` with `|forward(decoder(z)) - data|^2 / misfit^2 + |z - z0|^2` least.

        With `z0` drawn from the prior, `z` is a sample of the posterior where all is linear ("randomise, then
        optimise").
        """
        z0 = jax.random.normal(key, self.latent_shape, self.dtype)
        problem = Problem(
            lambda z: forward(self.decoder(z)), data, noise_std=self.misfit, prior=GaussianPrior(z0, lambda z: z)
        )
        solver = LevenbergMarquardt(ConjugateGradients(max_steps=50), rtol=1e-3)
        return self.decoder(solve(problem, solver, z0, max_steps=30).value)


class Restoration(eqx.Module):
    """What `restore` returns.

    Attributes:
        samples: images, with a leading axis.
        mean: of the samples.
        std: their standard deviation, pixel by pixel.
        consistency: the root mean square of `f(x) - data` for each sample, on the true map where it is known.
        result: a code for each sample: `successful` where the consistency is within the tolerance, `stationary` where
            this residual remains.
        stand_in: the surjection that was trained in place of the map; None if the map is one.
    """

    samples: Float[Array, "num *x"]
    mean: Float[Array, "*x"]
    std: Float[Array, "*x"]
    consistency: Float[Array, " num"]
    result: RESULTS
    stand_in: AbstractSurjection[Any] | None

    @property
    def success(self) -> Any:
        """Whether each sample meets the data to the tolerance."""
        return self.result == RESULTS.successful


def restore(
    prior: Prior | GeneratorPrior,
    degradation: Any,
    data: Any,
    *,
    key: PRNGKeyArray,
    num_samples: int = 1,
    sampler: AbstractSampler | None = None,
    guide: Any = None,
    start: Start | float | int | None = None,
    final: bool = True,
    atol: float = 1e-4,
    stand_in: AbstractSurjection[Any] | None = None,
    examples: Any = None,
    **training: Any,
) -> Restoration:
    """Images that look like those of the prior and that the degradation turns into `data`.

    The prior is not trained for the degradation: at every step its estimate is back-projected onto the data.

    Args:
        prior: what images look like.
        degradation: a surjection, which is back-projected onto as it is; a sequence of them, with as many observations
            in `data`; any other callable `x -> y`, of which `learn.imitate` trains a stand-in first; or a pair of
            arrays `(x, y)` with examples of it, from which the stand-in is trained.
        data: the observation.
        key: random key.
        num_samples: how many images.
        sampler: `DDIM(100)` by default.
        guide: in place of back-projection; see `project_after_interval`, `DPS`. A callable needs no stand-in then.
        start: where sampling begins: from noise alone; from a `Start`; or, given a time of the schedule, from
            `pinv(data)` noised to it.
        final: whether the samples are put on the data at the end: by one more back-projection, and for a callable by
            Gauss-Newton steps on the map itself. A `guide` of your own decides for itself, see `AbstractGuide.finish`.
        atol: what a consistency is judged by.
        stand_in: that of an earlier call.
        examples: images to train the stand-in with; by default 512 images drawn from the prior, by `DDIM(50)`.
        **training: further options of `learn.imitate`.

    Returns:
        The samples, and how well they meet the data. Observations that contradict each other, or that the map cannot
        return, end as `stationary`, with the residual that remains.

    Raises:
        ValueError: data of another shape than the degradation returns, or that are not finite; no constraint; options
            that do not fit together.
    """
    if num_samples < 1:
        raise ValueError(f"restore: num_samples={num_samples}, expected a positive number.")
    sampler = DDIM(100) if sampler is None else sampler
    draw_key, train_key, key = jax.random.split(key, 3)
    data = _finite(data)
    forward, parts = unstore(degradation), data
    if _is_several(forward):
        forward = Joint([unstore(f) for f in forward])
        onto, data = forward, forward.join(data)
    elif isinstance(forward, AbstractSurjection):
        onto = forward
    elif guide is not None and callable(forward):
        onto = None
    else:
        if stand_in is None:
            if examples is None and callable(forward):
                examples = _drawn(prior, draw_key)
            stand_in = _trained(forward, examples, train_key, training)
        onto = Natural(stand_in)
        forward = forward if callable(forward) else onto
    if data.shape != (shape := _out_shape(forward, prior)):
        raise ValueError(f"restore: data has shape {data.shape}, and the degradation returns {shape}.")
    if isinstance(start, float | int):
        if not isinstance(onto, AbstractSurjection):
            raise ValueError("restore: start at a time needs pinv(data), of a surjection; pass a Start(image, t).")
        start = Start(onto.pinv(data), start)
    final = final and guide is None
    if guide is None:
        guide = project_after(list(onto.maps), parts) if isinstance(onto, Joint) else project_after(onto, data)
    keys = jax.random.split(key, num_samples)
    samples, seen = _run(prior, sampler, guide, start, store(forward), store(onto), data, keys, final=final)
    consistency = jnp.sqrt(jnp.mean((seen - data[None]) ** 2, axis=tuple(range(1, seen.ndim))))
    result = jax.vmap(lambda met: result_where(met, RESULTS.successful, RESULTS.stationary))(consistency <= atol)
    mean, std = jnp.mean(samples, axis=0), jnp.std(samples, axis=0)
    return Restoration(samples, mean, std, consistency, result, stand_in)


@eqx.filter_jit
def _run(
    prior: Any,
    sampler: AbstractSampler,
    guide: Any,
    start: Start | None,
    forward: Any,
    onto: Any,
    data: Array,
    keys: Key[Array, " num"],
    *,
    final: bool,
) -> tuple[Array, Array]:
    """Samples, and what the map makes of them."""
    forward, onto = prepare(forward), prepare(onto)

    def one(key: PRNGKeyArray) -> tuple[Array, Array]:
        if isinstance(prior, GeneratorPrior):
            x = prior.find(forward, data, key)
        else:
            x = sample(prior, sampler, key=key, guide=guide, start=start)
        if final:
            x = _finished(unstore(forward), unstore(onto), x, data)
        return x, forward(x)

    with jax.default_matmul_precision("highest"):
        return jax.vmap(one)(keys)


def _finished(forward: Any, onto: Any, x: Array, data: Array) -> Array:
    """`x` on the data: back-projected, and where the map is not the one projected onto, by steps on it."""
    if isinstance(forward, Joint):
        return solve(Problem(forward, data), CyclicProjection(), x).value
    x = nlbp(onto, x, data)
    if isinstance(forward, AbstractSurjection):
        return x
    dense = x.size * data.size <= _DENSE
    solver = GaussNewton(SVD(rcond=1e-5)) if dense else LevenbergMarquardt(ConjugateGradients(max_steps=50))
    return solve(Problem(forward, data), solver, x, max_steps=20).value


def _is_several(degradation: Any) -> bool:
    return isinstance(degradation, Sequence) and bool(degradation) and all(callable(unstore(f)) for f in degradation)


def _finite(data: Any) -> Any:
    parts = data if isinstance(data, Sequence) else [data]
    for part in parts:
        if concrete(part) and not np.all(np.isfinite(part)):
            raise ValueError("restore: data has entries that are NaN or infinite.")
    return [jnp.asarray(part) for part in data] if isinstance(data, Sequence) else jnp.asarray(data)


def _out_shape(forward: Any, prior: Prior | GeneratorPrior) -> tuple[int, ...]:
    x = jax.ShapeDtypeStruct(prior.shape, prior.dtype)
    try:
        return jax.eval_shape(forward, x).shape
    except Exception as error:  # a map may raise whatever it likes
        raise ValueError(
            f"restore: the degradation cannot be applied to an image of the prior, of shape {prior.shape} and dtype "
            f"{prior.dtype.name}: {error}"
        ) from error


def _drawn(prior: Prior | GeneratorPrior, key: PRNGKeyArray) -> Array:
    """Images of the prior, to train a stand-in with."""
    keys = jax.random.split(key, 512)
    if isinstance(prior, GeneratorPrior):
        return jax.vmap(lambda k: prior.decoder(jax.random.normal(k, prior.latent_shape, prior.dtype)))(keys)
    return _batches(prior, keys)


@eqx.filter_jit
def _batches(prior: Prior, keys: Key[Array, " num"]) -> Array:
    return jax.lax.map(lambda k: sample(prior, DDIM(50), key=k), keys, batch_size=64)


def _trained(degradation: Any, examples: Any, key: PRNGKeyArray, training: dict[str, Any]) -> AbstractSurjection[Any]:
    if callable(degradation):
        return imitate(degradation, examples, key=key, **training).model
    if not (isinstance(degradation, tuple | list) and len(degradation) == 2):
        raise ValueError(
            f"restore: degradation is a {type(degradation).__name__}; expected a surjection, a non-empty sequence of "
            "surjections, a callable x -> y, or a pair (x, y) of arrays with examples of it."
        )
    return imitate(None, tuple(degradation), key=key, **training).model
