"""`DeceptronNet`: an unrolled corrector, `x <- clip(x - s(gain_t) U(up(y), up(A x - y), x))`, trained end to end."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from ..maps import AbstractMap, UNet
from ._stage import Stage, Term
from ._surjective import clipped_adam, regression


def repeat_pixels(image: Float[Array, "c h w"], shape: tuple[int, ...]) -> Float[Array, "c H W"]:
    """`up`: every pixel repeated until the image has the sides of `shape`, which are multiples of its own."""
    factors = (shape[1] // image.shape[1], shape[2] // image.shape[2])
    return jnp.repeat(jnp.repeat(image, factors[0], axis=1), factors[1], axis=2)


class DeceptronNet(AbstractMap):
    """A learned estimate `y -> x`: `num_steps` corrections of `x`, one network for all of them, one gain for each.

        x_0 = up(y),    x_{t+1} = clip(x_t - s(gain_t) U(up(y), up(A x_t - y), x_t), 0, 1),

    with the logistic function `s`, `up` repeating pixels, a network `U` that sees three images, and a nominal model
    `A` of the camera, which need not be the camera: the network learns what it leaves out. As published, `A` is linear
    and has no sensor curve.

    It is a map, so that it can stand for an estimate without iterations; `solvers.Unrolled` runs the same steps as a
    solver that reports the residual of the true camera. Train it with `unrolled_stages`.

    Args:
        nominal: `A`, from images `(c, H, W)` to images `(c, h, w)` whose sides divide them; never trained.
        corrector: `U`, from `(3 c, H, W)` to `(c, H, W)`; by default the `UNet` with channels 3 c, 32, 64, 32, c.
        num_steps: how many corrections.
        gain: every gain before training, before the logistic function.
        key: random key of the corrector, not needed if one is given.

    Raises:
        ValueError: no step, a nominal model whose images do not fit, a corrector of other shapes, or no key.

    References:
        A. L. Kachhadiya, "Deceptron: Learned Local Inverses", 2025, arXiv:2511.21076 (DeceptronNet v0).
    """

    nominal: AbstractMap
    corrector: Any
    gains: Float[Array, " steps"]

    def __init__(
        self,
        nominal: Any,
        corrector: Any = None,
        *,
        num_steps: int = 6,
        gain: float = 0.7,
        key: Key[Array, ""] | None = None,
    ):
        check_camera("DeceptronNet", nominal, num_steps)
        x = nominal.in_structure()
        if corrector is None:
            if key is None:
                raise ValueError("DeceptronNet: expected a corrector, or key=jax.random.key(...) to make one.")
            corrector = UNet(x.shape[1:], (3 * x.shape[0], x.shape[0]), num_convs=1, dtype=x.dtype, key=key)
        seen = jax.ShapeDtypeStruct((3 * x.shape[0], *x.shape[1:]), x.dtype)
        found = jax.eval_shape(corrector, seen)
        if found.shape != x.shape:
            raise ValueError(
                f"DeceptronNet: the corrector turns {seen.shape} into {found.shape}; expected {x.shape}, like x."
            )
        self.nominal, self.corrector = nominal, corrector
        self.gains = jnp.full(num_steps, gain, x.dtype)

    @property
    def num_steps(self) -> int:
        """How many corrections."""
        return self.gains.shape[0]

    def start(self, y: Float[Array, "c h w"]) -> Float[Array, "c H W"]:
        """`x_0`."""
        return repeat_pixels(y, self.nominal.in_structure().shape)

    def step(
        self, x: Float[Array, "c H W"], y: Float[Array, "c h w"], index: int | Int[Array, ""]
    ) -> Float[Array, "c H W"]:
        """Correction number `index`."""
        residual = repeat_pixels(self.nominal(x) - y, x.shape)
        correction = self.corrector(jnp.concatenate([self.start(y), residual, x]))
        return jnp.clip(x - jax.nn.sigmoid(self.gains[index]) * correction, 0, 1)

    def refine(self, x: Float[Array, "c H W"], y: Float[Array, "c h w"]) -> Float[Array, "c H W"]:
        """All corrections, from any `x`."""
        for index in range(self.num_steps):
            x = self.step(x, y, index)
        return x

    def __call__(self, x: Float[Array, "c h w"]) -> Float[Array, "c H W"]:
        """The estimate for an observation."""
        return self.refine(self.start(x), x)

    def in_structure(self) -> jax.ShapeDtypeStruct:
        """Shape and dtype of the observation."""
        return self.nominal.out_structure()

    def learned(self) -> Any:
        """What training changes."""
        return self.corrector, self.gains


class CoarseToFine(AbstractMap):
    """`DeceptronNet`s on finer and finer grids for one observation: each starts where the one before it ended.

    The first begins with the observation itself. With a coarse grid as large as the observation, its steps cost a
    quarter of those on a grid twice as fine, and its network sees twice as far.

    Args:
        nets: from coarse to fine, all for observations of one shape.

    Raises:
        ValueError: no nets, observations of different shapes, or a grid that does not divide the next.
    """

    nets: tuple[DeceptronNet, ...]

    def __init__(self, nets: Sequence[DeceptronNet]):
        if not nets or any(net.in_structure() != nets[0].in_structure() for net in nets):
            raise ValueError(
                "CoarseToFine expected nets for one observation, got nets for observations of shape "
                f"{[net.in_structure().shape for net in nets]}."
            )
        grids = [net.nominal.in_structure().shape for net in nets]
        for coarse, fine in zip(grids[:-1], grids[1:], strict=True):
            if any(b % a for a, b in zip(coarse, fine, strict=True)):
                raise ValueError(f"CoarseToFine expected images whose sides divide those of the next, got {grids}.")
        self.nets = tuple(nets)

    def __call__(self, x: Float[Array, "c h w"]) -> Float[Array, "c H W"]:
        """The estimate of the last net."""
        y, x = x, self.nets[0].start(x)
        for net in self.nets:
            x = net.refine(repeat_pixels(x, net.nominal.in_structure().shape), y)
        return x

    def in_structure(self) -> jax.ShapeDtypeStruct:
        """Shape and dtype of the observation."""
        return self.nets[0].in_structure()

    def learned(self) -> Any:
        """What training changes."""
        return [net.learned() for net in self.nets]


def unrolled_stages(
    num_examples: int, *, epochs: int = 12, batch_size: int = 64, learning_rate: float = 2e-3
) -> Mapping[str, Stage]:
    """The published training of `DeceptronNet`, for every net with a method `learned`.

    The loss is `mean((net(y) - x)^2)`: with `fit`, data are pairs `(y, x)`, observation first, or a sampler of them.
    The published loss adds the misfit of the true camera, under a switch that stops all gradients: that term has no
    effect and is left out here. Adam with a constant rate, gradients clipped to norm one; the last net is kept.

    Args:
        num_examples: of the training set, or what counts as an epoch of a sampler.
        epochs: how often each is seen.
        batch_size: examples per step.
        learning_rate: of Adam.

    Returns:
        One stage, `"unrolled"`, for `fit`.
    """
    num_steps = epochs * (num_examples // batch_size)
    terms = {"reconstruction": Term(regression)}
    return {"unrolled": Stage(terms, _learned, num_steps, batch_size, clipped_adam(learning_rate))}


def _learned(model: Any) -> Any:
    return model.learned()


def check_camera(name: str, camera: Callable[..., Any], num_steps: int) -> None:
    """Raises a `ValueError` if the images of a camera do not fit together, or there is no step."""
    if not isinstance(camera, AbstractMap):
        raise ValueError(f"{name} expected an AbstractMap, which says the shape of x, got {type(camera).__name__}.")
    x, y = camera.in_structure().shape, camera.out_structure().shape
    if len(x) != 3 or len(y) != 3 or x[0] != y[0] or x[1] % y[1] or x[2] % y[2]:
        raise ValueError(
            f"{name} expected a camera from (c, H, W) to (c, h, w) with h and w dividing H and W, got {x} to {y}."
        )
    if num_steps < 1:
        raise ValueError(f"{name} expected at least one step, got num_steps={num_steps}.")
