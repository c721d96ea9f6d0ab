"""Darcy-2D: the log-permeability of a porous square from the pressure of a fluid that is pumped into it.

`x` are 32 Karhunen-Loeve coordinates of a Matern field of the log-permeability, standard normal; `y` the pressure on
32 x 32 points, zero at the boundary, unit source; noise 0.0007, about 2 % of the deviation of the pressure. The paper
names the problem and does not specify it: all constants are ours.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float, PRNGKeyArray

from ..maps import LinearSkipMLP, kaiming_uniform
from ..pde import Darcy2D
from ._fields import FieldProblem
from ._inverse import Schedule, SkipInverse, ridge_skip_inverse

NUM_MODES = 32


def standard_normal(dtype: DTypeLike) -> functools.partial:
    """Draws the coordinates."""
    return functools.partial(jax.random.normal, shape=(NUM_MODES,), dtype=dtype)


def component_inverse(
    x: Float[Array, "n d"],
    y: Float[Array, "n *m"],
    *,
    key: PRNGKeyArray,
    physics: Any = None,
    num_components: int = 64,
    width: int = 256,
) -> SkipInverse:
    """Ridge regression plus a network that sees the leading principal components of the noisy observations.

    The regression keeps what is linear in `y`; the pressure is not linear in the log-permeability, and its components
    hold more than the regression uses.
    """
    inverse = ridge_skip_inverse(x, y, key=key)
    flat = np.asarray(y, np.float64).reshape(len(y), -1)
    values, vectors = np.linalg.eigh(np.cov(flat.T))
    encoder = (vectors[:, ::-1][:, :num_components] / np.sqrt(values[::-1][:num_components])).T
    sizes = (num_components, width, width, width, x.shape[1])
    network = LinearSkipMLP(sizes, init=kaiming_uniform(5**0.5), activation="gelu", dtype=x.dtype, key=key).network
    return SkipInverse(inverse.skip, jnp.asarray(encoder, x.dtype), network, inverse.shape)


DARCY2D = FieldProblem(
    name="darcy2d",
    summary="32 coordinates of the log-permeability of a porous square from a noisy pressure on 32 x 32 points",
    physics=lambda dtype: Darcy2D(32, NUM_MODES, dtype=dtype),
    sample=standard_normal,
    noise_std=0.0007,
    tolerance=0.045,
    inverse=component_inverse,
    schedule=Schedule(65536, 20_000, 60, 128, 1e-3, 0.1, 32, fresh=False),
    one_scale=True,
).problem()
