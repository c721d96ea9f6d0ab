"""All activations by name, and `as_activation`: the one that a function stands for, or why there is none."""

import functools
import inspect
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp

from .. import maps
from ._abstract_activation import AbstractActivation as AbstractActivation
from ._abstract_activation import AbstractEntrywise as AbstractEntrywise
from ._check_proximal import describe
from ._piecewise_activations import Clip as Clip
from ._piecewise_activations import Identity as Identity
from ._piecewise_activations import LeakyReLU as LeakyReLU
from ._piecewise_activations import ReLU as ReLU
from ._piecewise_activations import SoftThreshold as SoftThreshold
from ._smooth_activations import ELU as ELU
from ._smooth_activations import Sigmoid as Sigmoid
from ._smooth_activations import Softplus as Softplus
from ._smooth_activations import Tanh as Tanh
from ._vector_activations import BallProjection as BallProjection
from ._vector_activations import BlockSoftThreshold as BlockSoftThreshold
from ._vector_activations import Product as Product
from ._vector_activations import Projection as Projection
from ._vector_activations import Softmax as Softmax

ACTIVATIONS: dict[str, AbstractActivation] = {
    "identity": Identity(),
    "relu": ReLU(),
    "leaky_relu": LeakyReLU(),  # slope 0.01, the default of jax.nn; that of `maps.ACTIVATIONS` is 0.1
    "hard_tanh": Clip(-1, 1),
    "relu6": Clip(0, 6),
    "tanh": Tanh(),
    "sigmoid": Sigmoid(),
    "elu": ELU(),
    "softmax": Softmax(),
    "softplus": Softplus(),
}
"""The activations known by name; those with a parameter that has no usual value are classes only."""

_PARAMETERS = {jax.nn.leaky_relu: ("negative_slope", LeakyReLU), jax.nn.elu: ("alpha", ELU)}

_INSTEAD = {
    "gelu": "it decreases for z < -0.75. Use `ELU()`, `Softplus()` or `ReLU()`",
    "silu": "it decreases for z < -1.28. Use `ELU()`, `Softplus()` or `ReLU()`",
    "mish": "it decreases for z < -1.19. Use `ELU()`, `Softplus()` or `ReLU()`",
    "hard_swish": "it decreases for z < -1.5. Use `ELU()` or `ReLU()`",
    "selu": "its slope exceeds 1. Use `ELU()` and put the factor into the next layer",
    "abs": "it decreases for z < 0. Use `ReLU()`, or two of them for both signs",
    "group_sort": "sorting is not monotone. Use `BallProjection` or `BlockSoftThreshold` for a 1-Lipschitz layer",
    "glu": "it is no map of an array to one of the same shape. Use `ReLU()`",
    "celu": "for alpha = 1 it is `ELU()`",
    "hard_sigmoid": "use `Clip(0, 1)` and put the factor 1/6 and the shift 1/2 into the layer before",
    "log_softmax": "use `Softmax()`, whose penalty is the cross-entropy",
}
_ALIASES = {"swish": "silu", "hard_silu": "hard_swish", "maxmin": "group_sort", "absolute": "abs"}


def as_activation(fn: Any) -> AbstractActivation:
    """The proximal activation for a function of jax, a name, or an activation itself.

    Args:
        fn: an `AbstractActivation`; a name in `ACTIVATIONS`; one of `jax.nn.relu`, `relu6`, `leaky_relu`, `elu`,
            `hard_tanh`, `sigmoid`, `softmax`, `softplus`, `identity`, `jnp.tanh`; `functools.partial` of `leaky_relu`
            or `elu` with another parameter; an `eqx.nn.Lambda`, `eqx.nn.Identity` or `eqx.nn.PReLU` of one slope;
            `None` for the identity.

    Returns:
        The activation.

    Raises:
        ValueError: it is not proximal, with its name and what to use instead; or it is not known.

    Example:
        `as_activation(functools.partial(jax.nn.leaky_relu, negative_slope=0.2))` is `LeakyReLU(0.2)`.
    """
    fn = maps.unstore(fn)
    if isinstance(fn, eqx.nn.Lambda):
        fn = fn.fn
    if isinstance(fn, AbstractActivation):
        return fn
    if fn is None or isinstance(fn, eqx.nn.Identity):
        return Identity()
    if isinstance(fn, eqx.nn.PReLU):
        if fn.negative_slope.size != 1:
            raise ValueError(
                f"PReLU with slopes of shape {fn.negative_slope.shape}; expected one slope. Write `LeakyReLU(slope)`."
            )
        return LeakyReLU(float(fn.negative_slope.item()))
    if isinstance(fn, str):
        if fn in ACTIVATIONS:
            return ACTIVATIONS[fn]
        raise ValueError(_refusal(fn))
    if isinstance(fn, functools.partial) and fn.func in _PARAMETERS:
        name, kind = _PARAMETERS[fn.func]
        if set(fn.keywords) <= {name} and not fn.args:
            return kind(*fn.keywords.values())
    for known, activation in _functions():
        if fn is known:
            return activation
    raise ValueError(_refusal(describe(fn)))


@functools.cache
def _functions() -> list[tuple[Any, AbstractActivation]]:
    """What is recognised by identity."""
    names = ["identity", "relu", "leaky_relu", "hard_tanh", "relu6", "tanh", "sigmoid", "elu", "softmax", "softplus"]
    known = [(getattr(jax.nn, name), ACTIVATIONS[name]) for name in names]
    known += [(maps.ACTIVATIONS[name], ACTIVATIONS[name]) for name in ("identity", "relu", "tanh", "sigmoid")]
    known += [(maps.ACTIVATIONS["softplus"], Softplus()), (maps.ACTIVATIONS["leaky_relu"], LeakyReLU(0.1))]
    known += [(jax.lax.tanh, Tanh()), (jax.lax.logistic, Sigmoid()), (jnp.tanh, Tanh())]
    # What an `eqx.nn.MLP` has after its last layer if nothing else was asked for: an unnamed identity.
    known += [(inspect.signature(eqx.nn.MLP.__init__).parameters["final_activation"].default, Identity())]
    return known


def _refusal(name: str) -> str:
    plain = name.lower().lstrip("_").replace("leakyrelu", "leaky_relu").replace("groupsort", "group_sort")
    plain = _ALIASES.get(plain, plain)
    if plain in _INSTEAD:
        return f"{name} is not an admissible activation: {_INSTEAD[plain]}."
    return (
        f"{name} is not a known proximal activation; expected one of {sorted(ACTIVATIONS)} or an instance such as "
        "`lifted.SoftThreshold(0.1)`. For a function of your own, verify it with `lifted.check_proximal` and derive "
        "from `lifted.AbstractActivation`."
    )
