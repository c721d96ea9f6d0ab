"""Guides that put the estimate of the prior onto the observation: `project_after` and its relatives."""

import abc
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PRNGKeyArray, Scalar

from ..maps import AbstractSurjection, Joint, Natural, prepare, store
from ..solvers import cyclic_nlbp, nlbp, nlbp_interval
from ..solvers._check import concrete
from ..solvers._nlbp import as_surjection
from ._prior import Denoise
from ._schedules import noised


class AbstractGuide(eqx.Module):
    """What an observation makes of the estimate of the prior; a plain function of the same arguments is a guide too.

    Implementing a guide:

    - `guide(denoise, x_t, t, key) -> x0_hat`, where `denoise(x_t, t)` is the estimate of the prior, which may be
      differentiated, and `denoise.schedule` the schedule;
    - `ready()`, if something can be computed before the loop;
    - `finish(x)`, if the image shall be changed after it;
    - `is_score = True`, if the estimate is the mean of the image given `x_t` and the observation: then the noise in
      `x_t` is another one too. Where an estimate is only projected it is not, and a sampler that took it for such would
      be biased for good, see `benchmarks/guidance_bias.py`.
    """

    is_score: ClassVar[bool] = False

    @abc.abstractmethod
    def __call__(self, denoise: Denoise, x_t: Float[Array, "*x"], t: Scalar, key: PRNGKeyArray) -> Float[Array, "*x"]:
        """The guided estimate of the image."""

    def ready(self) -> "AbstractGuide":
        """An equal guide, with what does not change from step to step computed once."""
        return prepare(self)

    def finish(self, x: Float[Array, "*x"]) -> Float[Array, "*x"]:
        """The image, after the last step."""
        return x


def _at(step_size: Any, t: Scalar) -> Any:
    return step_size(t) if callable(step_size) else step_size


class ProjectAfter(AbstractGuide):
    """`project_after` builds it.

    Attributes:
        f: the surjection.
        data: the observation.
        step_size: a number, or `t -> number`.
        stop: `(y, data) -> bool` or None.
        final: whether the image itself is projected once more.
        section_of_data: constant where it matters; computed by `ready`.
    """

    f: AbstractSurjection[Any]
    data: Float[Array, "*y"]
    step_size: Any
    stop: Any
    final: bool = eqx.field(static=True)
    section_of_data: Any = None

    def ready(self) -> "ProjectAfter":
        """See `AbstractGuide`."""
        f = prepare(self.f)
        section = None if isinstance(f, Natural) else f.section(self.data)
        return ProjectAfter(f, self.data, self.step_size, self.stop, self.final, section)

    def __call__(self, denoise: Denoise, x_t: Float[Array, "*x"], t: Scalar, key: PRNGKeyArray) -> Float[Array, "*x"]:
        """See `AbstractGuide`."""
        del key
        x0 = denoise(x_t, t)
        projected = nlbp(self.f, x0, self.data, _at(self.step_size, t), section_of_data=self.section_of_data)
        if self.stop is None:
            return projected
        return jnp.where(self.stop(self.f(x0), self.data), x0, projected)

    def finish(self, x: Float[Array, "*x"]) -> Float[Array, "*x"]:
        """See `AbstractGuide`."""
        return nlbp(self.f, x, self.data, section_of_data=self.section_of_data) if self.final else x


def project_after(
    f: Any,
    data: Any,
    *,
    step_size: Any = 1.0,
    stop: Callable[..., Any] | None = None,
    final: bool = False,
    num_cycles: int = 1,
) -> AbstractGuide:
    """Non-linear back-projection of every estimate onto `f(x) = data`; see `solvers.nlbp`.

    For a linear `f` this is the guidance of DDNM. With step size one, and without `stop`, the image meets the data
    to rounding.

    Args:
        f: a surjection. Several constraints are a sequence of surjections, projected onto in turn, the last of which is
            met exactly; linear ones that can be met together belong into one `maps.Stack`.
        data: the observation; or a sequence of them, one for each surjection.
        step_size: a number or `t -> number`; see `step_at`.
        stop: `(f(x0), data) -> bool`: estimates for which it is true are left alone; see `sigmoid_within`.
        final: whether the image is projected once more, with step size one, after the last step; it then meets the
            data whatever `step_size` and `stop` are.
        num_cycles: for several surjections, how often it is each one's turn.

    Raises:
        ValueError: `f` is no surjection, data of another shape than `f(x)`, or no constraint at all.

    References:
        Y. Ehrlich, A. Berman, A. Shocher, "Pseudo-Invertible Neural Networks", 2026, arXiv:2602.06042.
        Y. Wang, J. Yu, J. Zhang, "Zero-Shot Image Restoration Using Denoising Diffusion Null-Space Model", 2023,
        arXiv:2212.00490.
    """
    step_size = store(step_size)
    if isinstance(f, Sequence):
        return _in_turn(f, data, step_size, stop, num_cycles, final=final)
    f = as_surjection(f, "project_after")
    data = checked_data(f, data)
    return ProjectAfter(f, data, step_size, store(stop), final)


def checked_data(f: AbstractSurjection[Any], data: Any) -> Float[Array, "*y"]:
    """The observation as an array; a `ValueError` if f does not return such."""
    expected = f.out_structure()
    data = jnp.asarray(data)
    if data.shape != expected.shape or not jnp.issubdtype(data.dtype, jnp.floating):
        raise ValueError(
            f"data has shape {data.shape} and dtype {data.dtype}; {type(f).__name__} returns {expected.shape} in "
            f"{expected.dtype}. For many observations put jax.vmap around sample."
        )
    return data


class ProjectInTurn(AbstractGuide):
    """`project_after` builds it for several surjections; attributes as there."""

    f: Joint
    data: Float[Array, " m"]
    step_size: Any
    stop: Any
    num_cycles: int = eqx.field(static=True)
    final: bool = eqx.field(static=True)

    def __call__(self, denoise: Denoise, x_t: Float[Array, "*x"], t: Scalar, key: PRNGKeyArray) -> Float[Array, "*x"]:
        """See `AbstractGuide`."""
        del key
        x0 = denoise(x_t, t)
        projected = cyclic_nlbp(self.f, x0, self.data, self.num_cycles, _at(self.step_size, t))
        if self.stop is None:
            return projected
        return jnp.where(self.stop(self.f(x0), self.data), x0, projected)

    def finish(self, x: Float[Array, "*x"]) -> Float[Array, "*x"]:
        """See `AbstractGuide`."""
        return cyclic_nlbp(self.f, x, self.data, 50) if self.final else x


def _in_turn(fs: Sequence[Any], data: Any, step_size: Any, stop: Any, num_cycles: int, *, final: bool) -> ProjectInTurn:
    if not fs or not isinstance(data, Sequence) or len(fs) != len(data):
        count = len(data) if isinstance(data, Sequence) else f"a {type(data).__name__}, not a sequence, of"
        raise ValueError(
            f"project_after: {len(fs)} constraints and {count} observations; expected equal numbers, at least one. "
            "Without a constraint leave out the guide."
        )
    surjections = [as_surjection(f, "project_after") for f in fs]
    parts = [checked_data(f, part) for f, part in zip(surjections, data, strict=True)]
    joint = Joint(surjections)
    return ProjectInTurn(joint, joint.join(parts), step_size, store(stop), num_cycles, final)


class ProjectAfterInterval(AbstractGuide):
    """`project_after_interval` builds it; attributes as there."""

    f: AbstractSurjection[Any]
    lower: Any
    upper: Any
    step_size: Any
    final: bool = eqx.field(static=True)

    def __call__(self, denoise: Denoise, x_t: Float[Array, "*x"], t: Scalar, key: PRNGKeyArray) -> Float[Array, "*x"]:
        """See `AbstractGuide`."""
        del key
        return nlbp_interval(self.f, denoise(x_t, t), self.lower, self.upper, _at(self.step_size, t))

    def finish(self, x: Float[Array, "*x"]) -> Float[Array, "*x"]:
        """See `AbstractGuide`."""
        return nlbp_interval(self.f, x, self.lower, self.upper) if self.final else x


def project_after_interval(
    f: Any, lower: Any, upper: Any, *, step_size: Any = 1.0, final: bool = False
) -> ProjectAfterInterval:
    """Back-projection of every estimate onto the box `lower <= f(x) <= upper`; see `solvers.nlbp_interval`.

    For data that are quantised, clipped or compressed; `solvers.quantisation_box` and `clipping_box` make the bounds.

    Args:
        f: a surjection.
        lower: bounds, shaped like `f(x)` or scalar.
        upper: likewise.
        step_size: see `project_after`.
        final: see `project_after`.

    Raises:
        ValueError: `f` is no surjection, or a lower bound exceeds its upper one.
    """
    f = as_surjection(f, "project_after_interval")
    lower, upper = (jnp.asarray(bound, f.out_structure().dtype) for bound in (lower, upper))
    if concrete(lower) and concrete(upper) and (num := int(jnp.sum(lower > upper))):
        raise ValueError(
            f"project_after_interval: lower exceeds upper in {num} entries; expected lower <= upper everywhere. Were "
            "they swapped?"
        )
    return ProjectAfterInterval(f, lower, upper, store(step_size), final)


class LinearBackProjection(AbstractGuide):
    """`x0 + A^+ (data - A x0)`, the guidance of DDNM, right for linear maps only.

    `project_after` is the same for these; this is the textbook's form of it, and, with a linear map in place of a
    non-linear one, the baseline that ignores the non-linearity.

    Args:
        f: a surjection, which need not be linear, but then the data are not met.
        data: the observation.

    References:
        Y. Wang, J. Yu, J. Zhang, "Zero-Shot Image Restoration Using Denoising Diffusion Null-Space Model", 2023,
        arXiv:2212.00490.
    """

    f: AbstractSurjection[Any]
    data: Float[Array, "*y"]

    def __init__(self, f: Any, data: Any):
        self.f = as_surjection(f, "LinearBackProjection")
        self.data = checked_data(self.f, data)

    def __call__(self, denoise: Denoise, x_t: Float[Array, "*x"], t: Scalar, key: PRNGKeyArray) -> Float[Array, "*x"]:
        """See `AbstractGuide`."""
        del key
        x0 = denoise(x_t, t)
        with jax.default_matmul_precision("highest"):
            return x0 + self.f.pinv(self.data - self.f(x0))


class ProjectNoisy(AbstractGuide):
    """Back-projection of the noisy image, `x_t' = nlbp(f, x_t, f(x_data))` with `x_data = pinv(data)`, noised to `t`.

    The observation is compared with the noisy image instead of with the estimate, as the first guided samplers did; the
    estimate is that of the network for `x_t'`, and meets the data only roughly. A baseline.

    Args:
        f: a surjection.
        data: the observation.

    Raises:
        ValueError: as `project_after`.

    References:
        J. Choi et al., "ILVR: Conditioning Method for Denoising Diffusion Probabilistic Models", 2021,
        arXiv:2108.02938.
    """

    f: AbstractSurjection[Any]
    data: Float[Array, "*y"]

    def __init__(self, f: Any, data: Any):
        self.f = as_surjection(f, "ProjectNoisy")
        self.data = checked_data(self.f, data)

    def __call__(self, denoise: Denoise, x_t: Float[Array, "*x"], t: Scalar, key: PRNGKeyArray) -> Float[Array, "*x"]:
        """See `AbstractGuide`."""
        noise = jax.random.normal(key, x_t.shape, x_t.dtype)
        seen = noised(denoise.schedule, self.f.pinv(self.data), t, noise)
        return denoise(nlbp(self.f, x_t, self.f(seen)), t)


class _StepAt(eqx.Module):
    t: float
    early: float
    late: float

    def __call__(self, t: Scalar) -> Scalar:
        return jnp.where(t < self.t, self.late, self.early).astype(t.dtype)


def step_at(t: float | int = 600, *, early: float | int = 0.5, late: float | int = 1.0) -> Callable[..., Any]:
    """A step size for `project_after`: `early` down to the time `t`, `late` below it. Defaults are the published ones.

    References:
        Y. Ehrlich, A. Berman, A. Shocher, "Pseudo-Invertible Neural Networks", 2026, arXiv:2602.06042.
    """
    return _StepAt(float(t), float(early), float(late))


class _SigmoidWithin(eqx.Module):
    threshold: float

    def __call__(self, y: Float[Array, "*y"], data: Float[Array, "*y"]) -> Bool[Array, ""]:
        return jnp.mean(jnp.abs(jax.nn.sigmoid(y) - jax.nn.sigmoid(data))) <= self.threshold


def sigmoid_within(threshold: float | int = 0.11) -> Callable[..., Any]:
    """A stop for `project_after` and logits: probabilities differ by at most `threshold`, in the mean.

    The default is the published one. Estimates that are that near are not projected, and the data are not met exactly.

    References:
        Y. Ehrlich, A. Berman, A. Shocher, "Pseudo-Invertible Neural Networks", 2026, arXiv:2602.06042.
    """
    return _SigmoidWithin(float(threshold))


def published_guide(f: Any, data: Any) -> AbstractGuide:
    """`project_after` with the published constants, for a schedule of 1000 steps and data that are logits.

    References:
        Y. Ehrlich, A. Berman, A. Shocher, "Pseudo-Invertible Neural Networks", 2026, arXiv:2602.06042.
    """
    return project_after(f, data, step_size=step_at(), stop=sigmoid_within())
