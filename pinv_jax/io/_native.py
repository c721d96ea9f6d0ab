"""Files: `save_model`, `load_model`, `save_solution`, `load_solution`, and `read_array` for arrays of the user.

Every write is atomic, nothing is ever unpickled, and a file that is truncated, foreign or of another structure gives a
`ValueError` that says what differs and leaves it as it is.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Shaped

from .. import _store
from .._solution import RESULTS, History, Solution, Stats

Model = TypeVar("Model")


def save_model(path: str | Path, model: Any, *, meta: Mapping[str, Any] | None = None) -> None:
    """Writes the parameters of a model to one file.

    Args:
        path: the file, for example `"pair.npz"`.
        model: any pytree: a map, an `InversePair`, a solver that carries its learned parts.
        meta: what to note beside it: dicts, lists, numbers, strings. `read_model_meta` reads it back.

    Raises:
        ValueError: if a leaf is not numeric; nothing is written.
    """
    _store.save(path, model, kind="model", meta=meta)


def load_model(path: str | Path, like: Model) -> Model:
    """Reads a model that `save_model` wrote.

    Args:
        path: the file.
        like: a model of the same structure, freshly built, or its `equinox.filter_eval_shape`; activation functions
            and other static parts come from here.

    Raises:
        ValueError: if the file is not a model, is damaged, or differs from `like` in structure, shape or dtype.
    """
    return _store.load(path, like, kind="model")[0]


def read_model_meta(path: str | Path) -> dict[str, Any]:
    """The `meta` that `save_model` was given, without reading the parameters. Raises as `load_model` does."""
    return _store.read_meta(path, kind="model")


def save_solution(path: str | Path, solution: Solution) -> None:
    """Writes a solution, single or batched, with or without history, to one file.

    Args:
        path: the file, for example `"solution.npz"`.
        solution: what `solve` or `solve_batch` returned.
    """
    tree = {
        "value": solution.value,
        "result": solution.result._value,
        "stats": _fields(solution.stats),
        "history": None if solution.history is None else _fields(solution.history),
    }
    # Codes are numbered by the order of the enumeration, which may grow: the names travel with the file.
    names = {name: int(item._value) for name, item in RESULTS._name_to_item.items()}
    _store.save(path, tree, kind="solution", meta={"results": names})


def load_solution(path: str | Path) -> Solution:
    """Reads a solution that `save_solution` wrote.

    Raises:
        ValueError: if the file is not a solution, is damaged, holds result codes or statistics this version does not
            know, or holds 64-bit numbers while JAX's 64-bit mode is off.
    """
    leaves, meta = _store.load_leaves(path, kind="solution")
    wide = {a.dtype.name for a in leaves.values() if jax.dtypes.canonicalize_dtype(a.dtype) != a.dtype}
    if wide:
        raise ValueError(
            f"{path} holds {', '.join(sorted(wide))}, and JAX's 64-bit mode is off: "
            'call jax.config.update("jax_enable_x64", True) first.'
        )
    leaves = {where: jnp.asarray(array) for where, array in leaves.items()}
    has_history = any(where.startswith("['history']") for where in leaves)
    stats = _rebuild(path, Stats, "stats", leaves)
    history = _rebuild(path, History, "history", leaves) if has_history else None
    successful: Any = RESULTS.successful
    solution = Solution(leaves["['value']"], successful, stats, history)
    codes = _current_codes(path, np.asarray(leaves["['result']"]), meta["results"])
    return eqx.tree_at(lambda s: s.result._value, solution, codes)


def _fields(module: eqx.Module) -> dict[str, Any]:
    return {field.name: getattr(module, field.name) for field in dataclasses.fields(module)}


def _rebuild(path: str | Path, cls: type, name: str, leaves: Mapping[str, Any]) -> Any:
    """`cls` from its stored fields, which may carry batch axes its annotations do not have."""
    prefix = f"['{name}']['"
    stored = {where[len(prefix) : -2]: array for where, array in leaves.items() if where.startswith(prefix)}
    names = [field.name for field in dataclasses.fields(cls)]
    if set(stored) != set(names):
        raise ValueError(f"{path}: its {name} are {sorted(stored)}; expected {sorted(names)}.")
    shape = (lambda array: array.shape[-1:]) if cls is History else (lambda array: ())
    single = cls(**{field: jnp.zeros(shape(stored[field]), stored[field].dtype) for field in names})
    return jax.tree.unflatten(jax.tree.structure(single), [stored[field] for field in names])


def _current_codes(path: str | Path, codes: np.ndarray, stored: Mapping[str, int]) -> Array:
    """Result codes of the version that wrote the file, as codes of this one."""
    names = {code: name for name, code in stored.items()}
    used = {int(code): names.get(int(code), "") for code in np.unique(codes)}
    if unknown := [f"{code} {name!r}" for code, name in used.items() if name not in RESULTS._name_to_item]:
        raise ValueError(f"{path}: unknown result codes {', '.join(unknown)}; it was written by another version.")
    current = np.zeros_like(codes)
    for code, name in used.items():
        current = np.where(codes == code, int(RESULTS._name_to_item[name]._value), current)
    return jnp.asarray(current.astype(codes.dtype))


def read_array(
    path: str | Path, *, name: str | None = None, shape: tuple[int | None, ...] | None = None, dtype: Any = float
) -> Shaped[Array, "..."]:
    """Reads an array of the user from `.npy`, `.npz` or `.csv`, and checks it.

    Args:
        path: the file. A `.csv` holds numbers separated by commas, lines starting with `#` are comments; it has
            rows and columns, and a single row or column becomes one axis unless `shape` asks for two.
        name: which array of an `.npz`; needed only if it holds several.
        shape: the expected shape, `None` standing for any length: `(None, 64)` for any number of rows of 64.
        dtype: the floating type to return; `float` is JAX's default, float64 in 64-bit mode and float32 otherwise.

    Returns:
        The array. Real and integer numbers in the file are converted to `dtype`.

    Raises:
        ValueError: if the file is not what its name says, holds Python objects, text or complex numbers, has another
            shape, or if an entry is NaN or infinite (also after the conversion).
        FileNotFoundError: if there is no such file.
    """
    target = jnp.dtype(jax.dtypes.canonicalize_dtype(dtype))
    if not jnp.issubdtype(target, np.floating) or (dtype is not float and jnp.dtype(dtype) != target):
        raise ValueError(
            f"dtype={jnp.dtype(dtype).name}: expected a floating type, and for float64 JAX's 64-bit mode: "
            'call jax.config.update("jax_enable_x64", True) first.'
        )
    array = _read(Path(path), name, shape)
    if array.size == 0:
        raise ValueError(f"{path} holds no numbers (shape {array.shape}).")
    if np.iscomplexobj(array):
        raise ValueError(
            f"{path} holds complex numbers ({array.dtype}), expected real ones: store the real view "
            "numpy.stack([a.real, a.imag], axis=-1), and let the forward map put the two parts together."
        )
    if array.dtype.kind not in "biuf":
        raise ValueError(f"{path} holds {array.dtype}, expected numbers.")
    if shape is not None and (
        len(shape) != array.ndim or any(n is not None and n != m for n, m in zip(shape, array.shape, strict=True))
    ):
        wanted = "(" + ", ".join("any" if n is None else str(n) for n in shape) + ("," if len(shape) == 1 else "") + ")"
        raise ValueError(f"{path} has shape {array.shape}, expected {wanted}.")
    _check_finite(path, array, "")
    with np.errstate(over="ignore"):
        converted = array.astype(target)
    _check_finite(path, converted, f" after conversion to {target.name}, whose range is smaller than the file's")
    return jnp.asarray(converted)


def _read(path: Path, name: str | None, shape: tuple[int | None, ...] | None) -> np.ndarray:
    suffix = path.suffix.lower()
    if suffix not in (".npy", ".npz", ".csv"):
        raise ValueError(f"{path}: cannot read {suffix or 'a file without an ending'}; expected .npy, .npz or .csv.")
    with open(path, "rb") as handle:
        try:
            if suffix == ".csv":
                table = np.loadtxt(handle, delimiter=",", ndmin=2)
                return table if shape is not None and len(shape) == 2 or 1 not in table.shape else table.ravel()
            loaded = np.load(handle, allow_pickle=False)
            if isinstance(loaded, np.ndarray):
                return loaded
            names = list(loaded)
            if name is None and len(names) == 1:
                name = names[0]
            if name in names:
                return loaded[name]
        except Exception as error:  # damaged archives raise a dozen different things
            raise ValueError(f"{path} cannot be read as {suffix} ({type(error).__name__}: {error}).") from error
    raise ValueError(f"{path} holds the arrays {', '.join(names)}: say which with name=..., not {name!r}.")


def _check_finite(path: str | Path, array: np.ndarray, when: str) -> None:
    bad = ~np.isfinite(array)
    if bad.any():
        first = tuple(int(i) for i in np.argwhere(bad)[0])
        count = f"{int(bad.sum())} of {array.size}"
        raise ValueError(f"{path}: {count} entries are NaN or infinite{when}; the first is at index {first}.")
