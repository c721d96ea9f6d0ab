"""Networks written in flax, linen or nnx, as maps: `from_flax`."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from ._base import AbstractMap


class _Definition:
    """What is static of a flax module, hashable whatever is inside: linen modules with lists in them are not."""

    def __init__(self, module: Any):
        self.module = module

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and self.module == other.module  # pyright: ignore[reportAttributeAccessIssue]

    def __hash__(self) -> int:
        return hash(type(self))

    def __repr__(self) -> str:
        return repr(self.module)


class _Linen(_Definition):
    def apply(self, params: PyTree, state: PyTree, arguments: tuple[Array, ...], method: str) -> Any:
        variables = {"params": params, **state} if params else state
        return self.module.apply(variables, *arguments, method=method)


class _Nnx(_Definition):
    """The graph definition, and the state of random number generators: never used, but without it nothing merges."""

    def __init__(self, module: Any, rng_state: Any):
        super().__init__(module)
        self.rng_state = rng_state

    def apply(self, params: PyTree, state: PyTree, arguments: tuple[Array, ...], method: str) -> Any:
        from flax import nnx

        module = nnx.merge(self.module, params, self.rng_state, state)
        before = jax.tree.leaves(nnx.state(module))
        y = getattr(module, method)(*arguments)
        after = jax.tree.leaves(nnx.state(module))
        if len(before) != len(after) or any(a is not b for a, b in zip(before, after, strict=True)):
            raise ValueError(
                "it changes its variables or draws random numbers, and it must be a function of its arguments alone"
            )
        return y


class FlaxMap(AbstractMap):
    """A flax module as a map; `from_flax` builds it.

    Attributes:
        params: the trainable parameters, in flax's nested dict.
        state: all other variables, such as running averages: data, never trained.
    """

    params: PyTree
    state: PyTree
    definition: _Definition = eqx.field(static=True)
    structure: tuple[tuple[int, ...], str] = eqx.field(static=True)
    method: str = eqx.field(static=True)
    batched: bool = eqx.field(static=True)

    def __call__(self, x: Float[Array, "*x"]) -> Float[Array, "*y"]:
        """The output of the module."""
        return self.apply(x)

    def apply(self, x: Any) -> Any:
        """The output of the module, whatever it is."""
        state = jax.lax.stop_gradient(self.state)
        y = self.definition.apply(self.params, state, (x[None] if self.batched else x,), self.method)  # pyright: ignore
        return jax.tree.map(lambda leaf: leaf[0], y) if self.batched else y

    def in_structure(self) -> jax.ShapeDtypeStruct:
        """Shape and dtype of `x`."""
        shape, dtype = self.structure
        return jax.ShapeDtypeStruct(shape, jnp.dtype(dtype))


def from_flax(
    module: Any,
    in_structure: Any,
    *,
    key: PRNGKeyArray | None = None,
    variables: Any = None,
    method: str = "__call__",
    batched: bool = False,
) -> FlaxMap:
    """A flax module as a map `x -> y` on single examples, with parameters that `learn.fit` trains.

    ```python
    from_flax(nn.Dense(3), jax.ShapeDtypeStruct((5,), "float32"), key=key)  # linen, initialised here
    from_flax(net, structure, variables=variables)  # linen, trained already
    from_flax(nnx.Linear(5, 3, rngs=nnx.Rngs(0)), structure)  # nnx modules hold their variables
    ```

    The map has a copy of the variables. Parameters (the collection `params` of linen, `nnx.Param`) are leaves of
    `params`; all others (running averages) are leaves of `state`, through which no gradient goes. Weight decay would
    change them all the same: with it, write `trainable=lambda pair: unstore(pair.inverse).params`.

    The copy of an nnx module is in evaluation mode, as `module.eval()` sets it: no dropout, running averages. A linen
    module is told so when it is made: `nn.Dropout(0.1, deterministic=True)`, `nn.BatchNorm(use_running_average=True)`.

    `io.save_model` stores `params` and `state`; for `io.load_model(path, like=...)` build the same module once more.

    Args:
        module: an unbound `flax.linen.Module`, or a `flax.nnx.Module`.
        in_structure: shape and dtype of one example `x`: a `jax.ShapeDtypeStruct`, or an array. The dtype is also that
            of the parameters and of `y`; flax makes it float32 unless told `param_dtype`.
        key: initialises a linen module.
        variables: of a linen module that is initialised already, in place of `key`: `{"params": ..., ...}`.
        method: the name of the method to call. A linen module is also initialised through it.
        batched: whether the module wants a leading axis of examples, as flax's convolutions often do. The map puts one
            of length one before `x` and takes it off `y`. Under `jax.vmap` a module that normalises by the statistics
            of its batch would therefore see single examples.

    Returns:
        The map. Its `params` and `state` are nested dicts.

    Raises:
        ValueError: if the module is of another kind or bound, cannot be applied to such an `x` (also because it needs
            random numbers or changes its variables), does not return one array, or has other dtypes than `x`; if not
            exactly one of `key` and `variables` is given for linen, or any for nnx.
    """
    from flax import linen, nnx

    shape, dtype = getattr(in_structure, "shape", None), getattr(in_structure, "dtype", None)
    if shape is None or dtype is None or not jnp.issubdtype(dtype, jnp.floating):
        raise ValueError(
            f"from_flax: in_structure={in_structure}, expected the shape and float dtype of one example, such as "
            "jax.ShapeDtypeStruct((64,), 'float32')."
        )
    where = f"from_flax: {type(module).__name__}"
    if isinstance(module, nnx.Module):
        if key is not None or variables is not None:
            raise ValueError(f"{where} is an nnx module and holds its variables: leave out key and variables.")
        module = nnx.clone(module)
        module.eval()
        graph, params, rng_state, state = nnx.split(module, nnx.Param, nnx.RngState, ...)
        params, state = nnx.to_pure_dict(params), nnx.to_pure_dict(state)
        definition = _Nnx(graph, rng_state)
    elif isinstance(module, linen.Module):
        if module.scope is not None:
            raise ValueError(f"{where} is bound to its variables: call module.unbind(), and pass both that it returns.")
        if (key is None) == (variables is None):
            raise ValueError(f"{where} is a linen module: pass either key, to initialise it, or variables.")
        if variables is None:
            example = jnp.zeros((1, *shape) if batched else shape, dtype)
            try:
                variables = module.init(key, example, method=method)  # pyright: ignore[reportArgumentType]
            except Exception as error:  # flax raises whatever its modules do
                raise ValueError(_refusal(where, shape, dtype, error, batched=batched)) from error
        collections = dict(linen.unbox(variables))
        params, state = collections.pop("params", {}), collections
        definition = _Linen(module)
    else:
        raise ValueError(
            f"{where}: expected an instance of flax.linen.Module or flax.nnx.Module. Any other callable is a map as it "
            "is."
        )
    params, state = jax.tree.map(jnp.array, (params, state))
    net = FlaxMap(params, state, definition, (tuple(shape), jnp.dtype(dtype).name), method, batched)
    try:
        y = jax.eval_shape(net.apply, net.in_structure())
    except Exception as error:
        raise ValueError(_refusal(where, shape, dtype, error, batched=batched)) from error
    if not isinstance(y, jax.ShapeDtypeStruct):
        raise ValueError(
            f"{where} returns {jax.tree.map(lambda leaf: leaf.shape, y)}, expected one array. Name a method that "
            "returns one with method=..., or write a module that does."
        )
    others = {leaf.dtype.name for leaf in [y, *jax.tree.leaves(params)]} - {jnp.dtype(dtype).name}
    if others:
        raise ValueError(
            f"{where} has parameters or an output of dtype {', '.join(sorted(others))}, and x is "
            f"{jnp.dtype(dtype).name}. Make them equal: param_dtype=x.dtype in the layers of the module, or another "
            "in_structure."
        )
    return net


def _refusal(where: str, shape: tuple[int, ...], dtype: Any, error: Exception, *, batched: bool) -> str:
    seen = (1, *shape) if batched else tuple(shape)
    kind = "a batch of one" if batched else "a single example; batched=True adds an axis in front"
    return (
        f"{where} cannot be applied to x of shape {seen} and dtype {jnp.dtype(dtype).name}, {kind}: {error}. A map has "
        "one argument, returns the same each time, and is given no random numbers: see deterministic=True of dropout "
        "and use_running_average=True of normalisation in linen."
    )
