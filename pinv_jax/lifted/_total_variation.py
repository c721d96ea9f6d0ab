"""The prox of total variation, `argmin_u weight TV(u) + |u - v|^2 / 2`, by accelerated gradients on its dual."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Scalar

from ..solvers._check import concrete
from ._functionals import AbstractRegulariser, Box, Sum, TotalVariation


class Denoised(eqx.Module):
    """What `total_variation_prox` returns.

    Attributes:
        value: `u`.
        error_bound: no less than the root mean square of `u - exact`, by the duality gap.
        num_steps: dual steps taken.
    """

    value: Float[Array, "*u"]
    error_bound: Scalar
    num_steps: Int[Array, ""]


def total_variation_prox(
    v: Float[Array, "*u"],
    weight: Any,
    regulariser: AbstractRegulariser | None = None,
    *,
    atol: float | Scalar = 1e-4,
    max_steps: int = 2000,
) -> Denoised:
    """`argmin_u weight TV(u) + |u - v|^2 / 2`, optionally in a box, to a tolerance that is guaranteed where it is met.

    With `|z_i| <= 1` at every pixel the dual is `min_z |P(v - weight A^T z) - v|^2 / 2` up to terms of the box, and
    `u = P(v - weight A^T z)`, `P` the projection onto the box. The duality gap bounds `|u - exact|^2 / 2`. The momentum
    restarts whenever it points uphill.

    Args:
        v: an image, shape `*u`.
        weight: of the total variation, positive.
        regulariser: `TotalVariation()` by default; `TotalVariation(ndim=2)` for channels in front, `+ Box(0, 1)` for a
            box.
        atol: stop once the error bound, a root mean square in the units of `v`, is at most this. In float32 the gap
            cannot be told from zero below an error of about 1e-4 of the range of `v`.
        max_steps: of the dual iteration; where they do not suffice, `error_bound` says by how much.

    Returns:
        A `Denoised`. NaN in `v` give NaN.

    Raises:
        ValueError: `weight` or `atol` is not positive, or the regulariser is no total variation.

    References:
        A. Beck, M. Teboulle, Fast gradient-based algorithms for constrained total variation image denoising and
        deblurring problems, 2009, doi:10.1109/TIP.2009.2028250. B. O'Donoghue, E. Candes, Adaptive restart for
        accelerated gradient schemes, 2015, doi:10.1007/s10208-013-9150-3.
    """
    for name, given in (("weight", weight), ("atol", atol)):
        if concrete(given) and not np.all(np.asarray(given) > 0):
            raise ValueError(f"{name}={given}; expected a positive number.")
    total = TotalVariation() if regulariser is None else regulariser
    variation, box = _parts(total)
    total.check(v)
    weight = jnp.asarray(weight, v.dtype)
    step = 1 / (weight * variation.norm_bound(v) ** 2)

    def primal(z: Array) -> Array:
        return box.simple_prox(v - weight * variation.adjoint(z, v), 1.0)

    def bound(u: Array, z: Array) -> Array:
        # Of the dual value at z and the primal value at its u all but these two terms cancels, box included.
        gradient = variation.gradient(u)
        gap = weight * (variation.norm(gradient) - jnp.sum(gradient * z))
        return jnp.sqrt(2 * jnp.maximum(gap, 0) / v.size)

    def going(carry: Any) -> Any:
        _, _, _, error, num_steps = carry
        return (error > atol) & (num_steps < max_steps)  # a NaN is not above the tolerance, and ends the loop

    def turn(carry: Any) -> Any:
        z, ahead, momentum, _, num_steps = carry
        new = variation.dual_project(ahead + step * variation.gradient(primal(ahead)))
        uphill = jnp.sum((ahead - new) * (new - z)) > 0
        momentum = jnp.where(uphill, 1, momentum)
        after = (1 + jnp.sqrt(1 + 4 * momentum**2)) / 2
        ahead = new + ((momentum - 1) / after) * (new - z)
        return new, ahead, after, bound(primal(new), new), num_steps + 1

    z = jnp.zeros_like(variation.gradient(v))
    one = jnp.ones((), v.dtype)
    start = (z, z, one, bound(primal(z), z), jnp.zeros((), jnp.int32))
    z, _, _, error, num_steps = jax.lax.while_loop(going, turn, start)
    return Denoised(primal(z), error, num_steps)


def _parts(regulariser: AbstractRegulariser) -> tuple[TotalVariation, Box]:
    """The total variation and the box of a sum of at most these two."""
    terms = list(regulariser.terms) if isinstance(regulariser, Sum) else [regulariser]
    variations = [term for term in terms if isinstance(term, TotalVariation)]
    boxes = [term for term in terms if isinstance(term, Box)]
    if len(variations) == 1 and len(variations) + len(boxes) == len(terms):
        return variations[0], boxes[0] if boxes else Box(-jnp.inf, jnp.inf)
    names = " + ".join(type(term).__name__ for term in terms)
    raise ValueError(
        f"total_variation_prox got {names}; expected TotalVariation(), or TotalVariation() + Box(lower, upper). A "
        "regulariser without total variation has an explicit `prox`."
    )
