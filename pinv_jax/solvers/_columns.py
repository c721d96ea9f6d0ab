"""The files of a stream: one growing `.npy` per result and a count of what is finished; `read_stream` maps them."""

import dataclasses
import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from jax.experimental import multihost_utils

from .._solution import RESULTS
from .._store import read_json, write_json

_FORM = "pinv_jax stream 1"


@dataclasses.dataclass(frozen=True)
class Streamed:
    """What a stream has found, mapped from files: nothing is in memory until it is looked at.

    Attributes:
        num: how many observations are finished.
        value: the solutions, shape `(num, *x)`.
        result: the codes, as integers; `success` compares them.
        stats: the fields of `Stats`, by name, shape `(num,)`.
    """

    num: int
    value: np.ndarray
    result: np.ndarray
    stats: dict[str, np.ndarray]

    @property
    def success(self) -> np.ndarray:
        """Whether each observation was met to tolerance."""
        successful: Any = RESULTS.successful
        return self.result == int(successful._value)


def _header(dtype: np.dtype, shape: tuple[int, ...]) -> bytes:
    """Always of the same length: the count of rows changes as the file grows."""
    text = f"{{'descr': {np.lib.format.dtype_to_descr(dtype)!r}, 'fortran_order': False, 'shape': {shape!r}, }}"
    length = 192 - 10
    return b"\x93NUMPY\x01\x00" + length.to_bytes(2, "little") + text.ljust(length - 1).encode() + b"\n"


class Columns:
    """The files of one stream, open for appending.

    Args:
        folder: made if it is not there.
        fingerprint: of the stream; a folder of another one is refused.
        writes: whether this process writes; the others follow its count.

    Attributes:
        num_done: observations that are finished and on disk.
    """

    def __init__(self, folder: Path, fingerprint: str, *, writes: bool):
        self.folder, self.fingerprint, self.writes = folder, fingerprint, writes
        self.num_done = _agreed(self._found() if writes else 0)
        if self.num_done < 0:
            raise ValueError(
                f"{folder} holds another stream (other data, map, solver, options or version of jax); pass another "
                "folder, or delete this one to start again."
            )

    def _found(self) -> int:
        if not (self.folder / "stream.json").exists():
            return 0
        meta = read_json(self.folder / "stream.json")
        return meta["done"] if meta.get("form") == _FORM and meta.get("fingerprint") == self.fingerprint else -1

    def append(self, rows: Mapping[str, np.ndarray], count: int) -> None:
        """Adds the first `count` rows of each column; all of them are on disk before the count says so.

        Raises:
            OSError: they could not be written, and none of them counts.
        """
        error = None
        if self.writes:
            try:
                self._write(rows, count)
            except OSError as found:
                error = found
        if _agreed(0 if error is None else 1):
            raise OSError(
                getattr(error, "errno", None),
                f"a chunk could not be written to {self.folder}: {error or 'the first process failed'}. The "
                f"{self.num_done} observations before it are safe: make room, and call again to go on.",
            ) from error
        self.num_done += count

    def _write(self, rows: Mapping[str, np.ndarray], count: int) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        total = self.num_done + count

        def write(name: str) -> None:
            array = rows[name][:count]
            header = _header(array.dtype, (total, *array.shape[1:]))
            path = self.folder / f"{name}.npy"
            # Written, not mapped: a full disk is then an error here, and not a signal that ends the process.
            with open(path, "r+b" if path.exists() else "xb") as handle:
                handle.seek(len(header) + self.num_done * array[:1].nbytes)
                handle.write(np.ascontiguousarray(array).data)
                handle.truncate()
                handle.seek(0)
                handle.write(header)
                handle.flush()
                os.fsync(handle.fileno())

        # At once: file systems commit what waits for the disk together, a dozen files in the time of one.
        with ThreadPoolExecutor(len(rows)) as pool:
            list(pool.map(write, rows))
        meta = {"form": _FORM, "done": total, "fingerprint": self.fingerprint, "columns": list(rows)}
        write_json(self.folder / "stream.json", meta)


def _agreed(number: int) -> int:
    """What the first process says."""
    return int(multihost_utils.broadcast_one_to_all(np.int32(number)))


def read_stream(folder: str | Path) -> Streamed:
    """What `solve_stream` has written so far; it may still be running.

    Raises:
        ValueError: if the folder holds no stream.
    """
    folder = Path(folder)
    if not (folder / "stream.json").exists():
        raise ValueError(f"{folder} holds no stream; expected a folder that solve_stream has written to.")
    meta = read_json(folder / "stream.json")
    if meta.get("form") != _FORM:
        raise ValueError(f"{folder} has the form {meta.get('form')!r}; expected {_FORM!r}.")
    found = {name: np.load(folder / f"{name}.npy", mmap_mode="r")[: meta["done"]] for name in meta["columns"]}
    return Streamed(meta["done"], found.pop("value"), found.pop("result"), found)
