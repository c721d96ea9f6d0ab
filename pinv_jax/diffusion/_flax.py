"""Networks written in flax as denoisers: `flax_denoiser`."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree, Scalar

from ..maps._flax import _Definition, _Linen, _Nnx


class FlaxDenoiser(eqx.Module):
    """A flax module as a network `(x_t, t) -> n`; `flax_denoiser` builds it.

    Attributes:
        params: the trainable parameters, in flax's nested dict.
        state: all other variables: data, never trained.
    """

    params: PyTree
    state: PyTree
    definition: _Definition = eqx.field(static=True)
    method: str = eqx.field(static=True)
    batched: bool = eqx.field(static=True)
    channels_last: bool = eqx.field(static=True)

    def __call__(self, x_t: Float[Array, "*x"], t: Scalar) -> Float[Array, "*x"]:
        """What the network says of `x_t` at time `t`."""
        state = jax.lax.stop_gradient(self.state)
        x = jnp.moveaxis(x_t, 0, -1) if self.channels_last else x_t
        arguments = (x[None], t[None]) if self.batched else (x, t)
        y = self.definition.apply(self.params, state, arguments, self.method)  # pyright: ignore
        y = y[0] if self.batched else y
        return jnp.moveaxis(y, -1, 0) if self.channels_last else y


def flax_denoiser(
    module: Any,
    variables: Any = None,
    *,
    method: str = "__call__",
    batched: bool = False,
    channels_last: bool = False,
) -> FlaxDenoiser:
    """A flax module `(x_t, t) -> n` as the network of a `Prior`, with parameters that `fit_prior` trains.

    Args:
        module: an unbound `flax.linen.Module`, or a `flax.nnx.Module`, which is copied in evaluation mode.
        variables: of a linen module, `{"params": ..., ...}`, as its `init` returned them; an nnx module holds its own.
        method: the name of the method to call.
        batched: whether the module wants a leading axis of examples of both arguments.
        channels_last: whether it wants images `(height, width, channels)`; those of this library have the channels in
            front.

    Raises:
        ValueError: a module of another kind; variables that are missing, or superfluous for nnx. `Prior` checks the
            rest.
    """
    from flax import linen, nnx

    where = f"flax_denoiser: {type(module).__name__}"
    if isinstance(module, nnx.Module):
        if variables is not None:
            raise ValueError(f"{where} is an nnx module and holds its variables: leave them out.")
        module = nnx.clone(module)
        module.eval()
        graph, params, rng_state, state = nnx.split(module, nnx.Param, nnx.RngState, ...)
        definition = _Nnx(graph, rng_state)
        params, state = nnx.to_pure_dict(params), nnx.to_pure_dict(state)
    elif isinstance(module, linen.Module):
        if variables is None:
            raise ValueError(f"{where} is a linen module: pass the variables that module.init(key, x_t, t) returns.")
        collections = dict(linen.unbox(variables))
        definition, params, state = _Linen(module), collections.pop("params", {}), collections
    else:
        raise ValueError(
            f"{where}: expected an instance of flax.linen.Module or flax.nnx.Module. Any other callable is a network "
            "as it is."
        )
    params, state = jax.tree.map(jnp.array, (params, state))
    return FlaxDenoiser(params, state, definition, method, batched, channels_last)
