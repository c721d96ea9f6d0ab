"""One program on every device of a `jax.sharding.Mesh`, each with its share of the lanes."""

import zlib
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, PyTree


@eqx.filter_jit
def everywhere(fn: Callable[..., Any], mesh: Mesh | None, shared: PyTree, args: Any, numbers: Any, options: Any) -> Any:
    """`fn(shared, *args, *numbers, **options)` on what each device holds.

    Args:
        fn: a function of arrays that one device holds.
        mesh: the devices, or `None`.
        shared: what is the same on all devices; it may have static leaves.
        args: trees of arrays with a leading axis that is spread over the devices.
        numbers: arrays that are the same on all devices.
        options: pairs of name and static value.

    Returns:
        Arrays with a leading axis, spread likewise.
    """
    if mesh is None:
        return fn(shared, *args, *numbers, **dict(options))
    arrays, rest = eqx.partition(shared, eqx.is_array)

    def local(arrays: Any, args: Any, numbers: Any) -> Any:
        return fn(eqx.combine(arrays, rest), *args, *numbers, **dict(options))

    split, same = PartitionSpec(mesh.axis_names), PartitionSpec()
    run = jax.shard_map(local, mesh=mesh, in_specs=(same, split, same), out_specs=split, check_vma=False)
    return run(arrays, args, numbers)


def largest_and_sum(counts: Array, mesh: Mesh | None) -> tuple[np.ndarray, np.ndarray]:
    """Over devices, known to every process: the only thing that they tell each other."""
    if mesh is not None and not counts.is_fully_addressable:
        counts = jax.jit(lambda a: a, out_shardings=NamedSharding(mesh, PartitionSpec()))(counts)
    host = np.asarray(counts)
    return host.max(axis=0), host.sum(axis=0)


def auto_axes(mesh: Mesh | None) -> Mesh | None:
    """The same devices with axes of type Auto, so that what comes back is an array like any other."""
    return None if mesh is None else Mesh(mesh.devices, mesh.axis_names)


def spread(tree: PyTree, mesh: Mesh) -> PyTree:
    """Puts arrays on the devices, their leading axis divided among them."""
    return _put(tree, NamedSharding(mesh, PartitionSpec(mesh.axis_names)))


def replicate(tree: PyTree, mesh: Mesh) -> PyTree:
    """Puts arrays on every device; other leaves pass."""
    return _put(tree, NamedSharding(mesh, PartitionSpec()))


def _put(tree: PyTree, sharding: NamedSharding) -> PyTree:
    def put(leaf: Any) -> Any:
        if not isinstance(leaf, jax.Array | np.ndarray | np.generic):
            return leaf
        # device_put does not take keys to other processes
        if isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            data = jax.device_put(jax.random.key_data(leaf), sharding)
            return jax.random.wrap_key_data(data, impl=jax.random.key_impl(leaf))
        return jax.device_put(leaf, sharding)

    return jax.tree.map(put, tree)


def check_divides(num: int, mesh: Mesh, what: str) -> None:
    """Raises a `ValueError` unless every device gets as many."""
    if num % mesh.size:
        raise ValueError(
            f"{what} is {num}, and the mesh {dict(mesh.shape)} has {mesh.size} devices; expected a multiple of "
            f"{mesh.size}: {num - num % mesh.size} or {num + mesh.size - num % mesh.size}."
        )


def check_processes(tree: PyTree, what: str) -> None:
    """Raises a `ValueError` unless all processes of a job have passed the same; does nothing where there is one."""
    if jax.process_count() == 1:
        return
    digest = 0
    for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
        text = f"{jax.tree_util.keystr(path)} {getattr(leaf, 'dtype', '')} {jnp.shape(leaf)}"
        # device_put does not take keys to other processes
        if isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            leaf = jax.random.key_data(leaf)
        if isinstance(leaf, np.ndarray | np.generic) or isinstance(leaf, jax.Array) and leaf.is_fully_addressable:
            text += str(zlib.crc32(np.asarray(leaf).tobytes()))
        elif isinstance(leaf, bool | int | float | str):
            text += repr(leaf)
        digest = zlib.crc32(text.encode(), digest)
    found = np.ravel(multihost_utils.process_allgather(np.asarray([digest], np.uint32)))
    if np.any(found != found[0]):
        different = np.flatnonzero(found != found[0]).tolist()
        raise ValueError(
            f"{what}: processes {different} passed other arrays or options than process 0. Every process of a job must "
            "call with the same arguments, or with arrays that are already spread over the mesh."
        )
