"""`LearnedISTA`: iterated soft-thresholding of a sparse code, `z <- soft(z - E up(f(x) - y), b_t)`, trained."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from ..maps import AbstractMap
from ._deceptron_net import check_camera, repeat_pixels


class LearnedISTA(AbstractMap):
    """A learned estimate `y -> x = clip(up(y) + D z, 0, 1)` with a sparse code `z` of several channels.

        z_0 = 0,    z_{t+1} = soft(z_t - E up(f(x_t) - y), b_t),    soft(z, b) = sign(z) max(|z| - b, 0),

    where convolutions `D` (the dictionary) and `E` are shared by all steps and the thresholds `b_t = exp(c_t) > 0`
    belong to one step and channel each. Iterated soft-thresholding has `E = step_size D' f'(x)'`; here it is free.
    `D`, `E` and the thresholds are trained, with `unrolled_stages`.

    Args:
        forward: `f`, from images `(c, H, W)` to images `(c, h, w)` whose sides divide them; never trained.
        num_atoms: channels of the code.
        window: side of the convolutions, odd.
        num_steps: how many steps.
        key: random key.

    Raises:
        ValueError: no step, an even window, or a camera whose images do not fit.

    References:
        K. Gregor, Y. LeCun, "Learning Fast Approximations of Sparse Coding", 2010, ICML.
        H. Sreter, R. Giryes, "Learned Convolutional Sparse Coding", 2018, arXiv:1711.00328. Here for a nonlinear
        camera, and around `up(y)` instead of zero.
    """

    forward: AbstractMap
    analysis: Float[Array, "c window window atoms"]
    dictionary: Float[Array, "c window window atoms"]
    log_thresholds: Float[Array, "steps atoms"]

    def __init__(
        self,
        forward: Any,
        *,
        num_atoms: int = 32,
        window: int = 5,
        num_steps: int = 6,
        key: Key[Array, ""],
    ):
        check_camera("LearnedISTA", forward, num_steps)
        if window < 1 or window % 2 == 0 or num_atoms < 1:
            raise ValueError(
                f"LearnedISTA expected an odd window and at least one atom, got window={window} and "
                f"num_atoms={num_atoms}."
            )
        x = forward.in_structure()
        self.forward = forward
        # D D' is about the identity, and E = D': soft-thresholding, for a camera that changes nothing.
        scale = 1 / (window * num_atoms**0.5)
        self.dictionary = scale * jax.random.normal(key, (x.shape[0], window, window, num_atoms), x.dtype)
        self.analysis = self.dictionary
        self.log_thresholds = jnp.full((num_steps, num_atoms), jnp.log(1e-3), x.dtype)

    def __call__(self, x: Float[Array, "c h w"]) -> Float[Array, "c H W"]:
        """The estimate for an observation."""
        y, first = x, repeat_pixels(x, self.forward.in_structure().shape)
        # D is the transpose of what E is written as.
        synthesis = jax.linear_transpose(functools.partial(_codes, self.dictionary), first)
        x, z = first, jnp.zeros((*first.shape[1:], self.dictionary.shape[-1]), first.dtype)
        for log_threshold in self.log_thresholds:
            z = z - _codes(self.analysis, repeat_pixels(self.forward(x) - y, first.shape))
            threshold = jnp.broadcast_to(jnp.exp(log_threshold), z.shape)
            z = jnp.sign(z) * jax.nn.relu(jnp.abs(z) - threshold)
            x = jnp.clip(first + synthesis(z)[0], 0, 1)
        return x

    def in_structure(self) -> jax.ShapeDtypeStruct:
        """Shape and dtype of the observation."""
        return self.forward.out_structure()

    def learned(self) -> Any:
        """What training changes."""
        return self.analysis, self.dictionary, self.log_thresholds


def _codes(weight: Float[Array, "c k k atoms"], x: Float[Array, "c h w"]) -> Float[Array, "h w atoms"]:
    """The inner products of every window of `x` with the atoms, zeros beyond the borders.

    A product with the unfolded image: XLA's convolutions of few channels are many times slower on CPUs.
    """
    _, window, _, num_atoms = weight.shape
    _, height, width = x.shape
    margin = window // 2
    padded = jnp.pad(x, ((0, 0), (margin, margin), (margin, margin)))
    taps = [padded[:, i : i + height, j : j + width] for i in range(window) for j in range(window)]
    windows = jnp.stack(taps, axis=1).reshape(-1, height * width)
    return (windows.T @ weight.reshape(-1, num_atoms)).reshape(height, width, num_atoms)
