"""Files that are written whole or not at all, and that say what is in them: `save`, `load`, `write_json`, `write_npz`.

One file holds one pytree: a zip archive (readable by `numpy.load`) of `header.npy`, JSON as bytes, and one array per
leaf. The header names the format and its version, the kind of content, every leaf with path, type, shape and dtype,
the static parts of the tree, and what the writer wished to add. Nothing is ever pickled.
"""

import contextlib
import dataclasses
import hashlib
import json
import os
import re
import uuid
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import jax
import jax.numpy as jnp
import numpy as np

_FORMAT = "pinv_jax"
_VERSION = 1
_SCALARS = {"bool": lambda text: text == "True", "int": int, "float": float, "complex": complex, "str": str}


@contextlib.contextmanager
def _replacing(path: str | Path) -> Iterator[IO[bytes]]:
    """A binary file that takes the place of `path` once it is complete and on disk; on failure nothing changes."""
    target = Path(os.path.realpath(path))  # a link stays a link
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex}.tmp")
    try:
        with open(temporary, "xb") as handle:
            yield handle
            handle.flush()
            os.fsync(handle.fileno())
        os.replace(temporary, target)
    except BaseException:  # an interrupt from the keyboard leaves nothing behind either
        temporary.unlink(missing_ok=True)
        raise
    if os.name == "posix":  # the new name is on disk only when the folder is
        folder = os.open(target.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def _write_arrays(handle: IO[bytes], arrays: Mapping[str, np.ndarray]) -> None:
    with zipfile.ZipFile(handle, "w", zipfile.ZIP_STORED) as archive:
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, np.asanyarray(array), allow_pickle=False)


def write_npz(path: str | Path, /, **arrays: Any) -> None:
    """Writes arrays to an `.npz` file, atomically.

    Args:
        path: the file. Folders that are missing are made.
        **arrays: numbers, NumPy or JAX arrays by name.

    Raises:
        ValueError: if an array holds Python objects.
    """
    host = {name: np.asarray(array) for name, array in arrays.items()}
    if bad := [name for name, array in host.items() if array.dtype.hasobject]:
        raise ValueError(f"{path}: {', '.join(bad)} hold Python objects; expected numbers. Nothing was written.")
    with _replacing(path) as handle:
        _write_arrays(handle, host)


def _plain(obj: Any) -> Any:
    """`obj` in terms of what JSON knows: arrays become lists, NumPy scalars numbers, paths strings."""
    if obj is None or isinstance(obj, str | bool):
        return obj
    if isinstance(obj, np.generic | np.ndarray | jax.Array):
        return np.asarray(obj).tolist()
    if isinstance(obj, int | float):
        return obj
    if isinstance(obj, Path):
        return str(obj)
    if isinstance(obj, Mapping):
        return {str(key): _plain(value) for key, value in obj.items()}
    if isinstance(obj, list | tuple):
        return [_plain(value) for value in obj]
    raise TypeError(f"{type(obj).__name__} cannot be written as JSON; pass numbers, strings, arrays, lists and dicts.")


def _null_nonfinite(obj: Any) -> Any:
    if isinstance(obj, dict):
        return {key: _null_nonfinite(value) for key, value in obj.items()}
    if isinstance(obj, list):
        return [_null_nonfinite(value) for value in obj]
    return None if isinstance(obj, float) and not np.isfinite(obj) else obj


def write_json(path: str | Path, obj: Any) -> None:
    """Writes `obj` as JSON, atomically. NaN and infinities, which JSON does not have, become `null`.

    Args:
        path: the file. Folders that are missing are made.
        obj: dicts, lists, tuples, strings, numbers, NumPy or JAX arrays, paths.

    Raises:
        TypeError: if something else is inside; nothing is written.
    """
    text = json.dumps(_null_nonfinite(_plain(obj)), indent=2, allow_nan=False)
    with _replacing(path) as handle:
        handle.write(text.encode() + b"\n")


def read_json(path: str | Path) -> Any:
    """Reads what `write_json` wrote.

    Raises:
        ValueError: if the file is not JSON.
    """
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is damaged, or not written by pinv_jax: {error}") from error


def _text(value: Any) -> str:
    """A static value as text that is the same in every process: no addresses, and a tree by its own statics."""
    if isinstance(value, tuple | list):
        return "(" + ", ".join(_text(item) for item in value) + ")"
    if isinstance(value, jax.tree_util.PyTreeDef):
        # The text of a tree definition changes between library versions; what stands in it does not.
        tree = jax.tree.unflatten(value, [0] * value.num_leaves)
        return f"{value.num_leaves} leaves " + str(dict(_statics(tree)))
    name = getattr(value, "__qualname__", None)
    return name if isinstance(name, str) else re.sub(r" at 0x[0-9a-fA-F]+", "", repr(value))


def _statics(node: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Path and text of everything in a tree that is not data: classes of modules and their static fields."""

    def inner(child: Any) -> bool:
        return child is not node and dataclasses.is_dataclass(child)

    if dataclasses.is_dataclass(node):
        yield prefix or "(root)", type(node).__qualname__
        for field in dataclasses.fields(node):
            if field.metadata.get("static", False):
                yield f"{prefix}.{field.name}", _text(getattr(node, field.name, None))
    for path, child in jax.tree_util.tree_flatten_with_path(node, is_leaf=inner)[0]:
        if inner(child):
            yield from _statics(child, prefix + jax.tree_util.keystr(path))


def _is_key(leaf: Any) -> bool:
    return hasattr(leaf, "dtype") and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _describe(leaf: Any) -> dict[str, Any]:
    """What must agree between a file and the tree it is read into."""
    if _is_key(leaf):
        return {"type": "key", "shape": list(leaf.shape), "dtype": str(leaf.dtype)}
    if isinstance(leaf, jax.Array | np.ndarray | np.generic | jax.ShapeDtypeStruct):
        return {"type": "array", "shape": list(leaf.shape), "dtype": np.dtype(leaf.dtype).name}
    if type(leaf).__name__ in _SCALARS and type(leaf).__module__ == "builtins":
        return {"type": type(leaf).__name__}
    return {"type": "static", "text": _text(leaf)}  # a function: not stored, taken from the tree it is read into


def _paths_and_leaves(tree: Any) -> tuple[list[str], list[Any], Any]:
    pairs, treedef = jax.tree_util.tree_flatten_with_path(tree)
    return [jax.tree_util.keystr(path) or "(root)" for path, _ in pairs], [leaf for _, leaf in pairs], treedef


def digest(*trees: Any) -> str:
    """A hash of every array, and of the text of everything else that has one."""
    sha = hashlib.sha256()
    for leaf in jax.tree.leaves(trees):
        if _is_key(leaf):
            leaf = jax.random.key_data(leaf)
        if isinstance(leaf, jax.Array | np.ndarray | np.generic):
            sha.update(f"{leaf.dtype}{leaf.shape}".encode() + np.asarray(leaf).tobytes())
        elif isinstance(leaf, bool | int | float | str):
            sha.update(repr(leaf).encode())
    return sha.hexdigest()


def _is_plain_dtype(dtype: np.dtype) -> bool:
    return dtype.isbuiltin == 1 and dtype.kind in "biufc"


def save(path: str | Path, tree: Any, *, kind: str, meta: Mapping[str, Any] | None = None) -> None:
    """Writes a pytree to one file, atomically: a reader finds the old file or the new one, never a part.

    Args:
        path: the file. Folders that are missing are made.
        tree: any pytree. Leaves are arrays (bfloat16 and keys of `jax.random.key` included), Python numbers, strings;
            functions are noted by name and not stored.
        kind: what the file is, for example `"model"`; `load` must ask for the same.
        meta: anything JSON can hold, given back by `load` and `read_meta`.

    Raises:
        ValueError: if a leaf is an array that is not numeric; nothing is written.
        TypeError: if `meta` cannot be written as JSON; nothing is written.
    """
    paths, leaves, _ = _paths_and_leaves(tree)
    arrays, entries = {}, []
    for where, leaf in zip(paths, leaves, strict=True):
        entry: dict[str, Any] = {"path": where, **_describe(leaf)}
        if entry["type"] == "key":
            entry["impl"] = str(jax.random.key_impl(leaf))
            arrays[f"leaf{len(entries)}"] = np.asarray(jax.random.key_data(leaf))
        elif entry["type"] == "array":
            array = np.asarray(leaf)
            if not (jnp.issubdtype(array.dtype, np.number) or array.dtype == np.bool_):
                raise ValueError(
                    f"{path}: leaf {where} has dtype {array.dtype}; expected numbers. Nothing was written."
                )
            if not _is_plain_dtype(array.dtype):  # bfloat16 and friends: NumPy's format does not know them
                array = np.frombuffer(array.tobytes(), np.uint8)
            arrays[f"leaf{len(entries)}"] = array
        elif entry["type"] != "static":
            entry["value"] = leaf if isinstance(leaf, str) else repr(leaf)
        entries.append(entry)
    header = {
        "format": _FORMAT,
        "version": _VERSION,
        "kind": kind,
        "leaves": entries,
        "static": dict(_statics(tree)),
        "meta": _plain(dict(meta or {})),
    }
    encoded = np.frombuffer(json.dumps(header).encode(), np.uint8)
    with _replacing(path) as handle:
        _write_arrays(handle, {"header": encoded, **arrays})


@contextlib.contextmanager
def _opened(path: str | Path, kind: str) -> Iterator[tuple[dict[str, Any], Any]]:
    """The header of a file and its archive; whatever is wrong with the file is a `ValueError`."""
    with open(path, "rb") as handle:
        try:
            archive = np.load(handle, allow_pickle=False)
            header = json.loads(archive["header"].tobytes())
            form, version, found = header["format"], header["version"], header["kind"]
        except Exception as error:  # a damaged archive raises a dozen different things
            raise ValueError(
                f"{path} is not a file that pinv_jax wrote, or it is truncated or damaged "
                f"({type(error).__name__}: {error}). It was left as it is."
            ) from error
        if form != _FORMAT or version != _VERSION:
            raise ValueError(
                f"{path} has format {form!r} version {version!r}; expected {_FORMAT!r} version {_VERSION}: "
                "read it with the version of pinv_jax that wrote it."
            )
        if found != kind:
            raise ValueError(f"{path} holds a {found!r}; expected a {kind!r}.")
        try:
            yield header, archive
        finally:
            archive.close()


def _decode(entry: dict[str, Any], name: str, archive: Any) -> Any:
    """One leaf as it was saved; arrays come back as NumPy arrays."""
    if entry["type"] == "static":
        return None
    if entry["type"] in _SCALARS:
        return _SCALARS[entry["type"]](entry["value"])
    array = archive[name]
    if entry["type"] == "key":
        return jax.random.wrap_key_data(array, impl=entry["impl"])
    dtype, shape = jnp.dtype(entry["dtype"]), tuple(entry["shape"])
    if not _is_plain_dtype(dtype):
        array = np.frombuffer(array.tobytes(), dtype).reshape(shape).copy()
    if array.shape != shape or array.dtype != dtype:
        raise ValueError(f"{entry['path']} is {array.dtype}{list(array.shape)}, its header says {dtype}{list(shape)}")
    return array


def _decode_all(path: str | Path, header: dict[str, Any], archive: Any) -> list[Any]:
    try:
        return [_decode(entry, f"leaf{index}", archive) for index, entry in enumerate(header["leaves"])]
    except Exception as error:
        raise ValueError(f"{path} is damaged ({type(error).__name__}: {error}). It was left as it is.") from error


def read_meta(path: str | Path, *, kind: str) -> dict[str, Any]:
    """The `meta` a file was saved with, without reading its arrays. Raises as `load` does."""
    with _opened(path, kind) as (header, _):
        return header["meta"]


def load_leaves(path: str | Path, *, kind: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """The leaves of a file by path, arrays as NumPy arrays, and its `meta`. Raises as `load` does."""
    with _opened(path, kind) as (header, archive):
        leaves = _decode_all(path, header, archive)
        return {entry["path"]: leaf for entry, leaf in zip(header["leaves"], leaves, strict=True)}, header["meta"]


def _differences(header: dict[str, Any], paths: list[str], leaves: list[Any], statics: dict[str, str]) -> list[str]:
    def show(entry: dict[str, Any]) -> str:
        return f"{entry['dtype']}{entry['shape']}" if "dtype" in entry else entry.get("text", entry["type"])

    compared = ("type", "shape", "dtype", "text")
    found = {entry["path"]: {k: entry[k] for k in compared if k in entry} for entry in header["leaves"]}
    wanted = {where: _describe(leaf) for where, leaf in zip(paths, leaves, strict=True)}
    differing = [w for w in wanted if found.get(w, wanted[w]) != wanted[w]]
    lines = [f"{w}: file has {show(found[w])}, expected {show(wanted[w])}" for w in differing]
    lines += [f"{w}: not in the file" for w in wanted if w not in found]
    lines += [f"{w}: in the file, not expected" for w in found if w not in wanted]
    old = header["static"]
    for where in [*statics, *(w for w in old if w not in statics)]:
        if old.get(where) != statics.get(where):
            lines.append(f"{where}: file has {old.get(where, 'nothing')}, expected {statics.get(where, 'nothing')}")
    if not lines and list(found) != list(wanted):
        lines.append("the same leaves in another order")
    return lines


def _match(value: Any, like: Any) -> Any:
    """`value` as the kind of array that `like` is."""
    if isinstance(like, jax.Array | jax.ShapeDtypeStruct) and not _is_key(like):
        # A 0-d array made from a Python number promotes weakly; a resumed run must promote as the first one did.
        return jnp.asarray(value.item() if getattr(like, "weak_type", False) and not like.shape else value)
    return value[()] if isinstance(like, np.generic) else value


def load(path: str | Path, like: Any, *, kind: str) -> tuple[Any, dict[str, Any]]:
    """Reads what `save` wrote.

    Args:
        path: the file.
        like: a pytree of the structure, shapes and dtypes that are expected: a freshly built model, or its
            `jax.eval_shape`. Functions and other static parts of the result come from here.
        kind: the `kind` it was saved with.

    Returns:
        The tree and the `meta`. Leaves are JAX or NumPy arrays as in `like`.

    Raises:
        ValueError: if the file is foreign, truncated, of another kind or version, or differs from `like`; the message
            lists the leaves that differ. The file is never touched.
        FileNotFoundError: if there is no such file.
    """
    paths, leaves, treedef = _paths_and_leaves(like)
    with _opened(path, kind) as (header, archive):
        if lines := _differences(header, paths, leaves, dict(_statics(like))):
            more = f"\n  ... and {len(lines) - 12} more" if len(lines) > 12 else ""
            raise ValueError(f"{path} does not fit the {kind} it is read into:\n  " + "\n  ".join(lines[:12]) + more)
        values = _decode_all(path, header, archive)
    values = [
        leaf if entry["type"] == "static" else _match(value, leaf)
        for entry, value, leaf in zip(header["leaves"], values, leaves, strict=True)
    ]
    return jax.tree.unflatten(treedef, values), header["meta"]
