"""`solve_stream`: more observations than memory holds, chunk after chunk from an array on disk or an iterator."""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh
from jaxtyping import Array, PRNGKeyArray

from .._mesh import auto_axes, check_divides, check_processes, replicate, spread
from .._problem import Problem
from .._solution import Solution
from .._store import digest
from ..maps import AbstractMap, prepare, unstore
from ._axes import split_lanes
from ._base import AbstractSolver
from ._batch import pick_widths, share_of
from ._check import as_floating, check_arguments
from ._columns import Columns, Streamed, read_stream
from ._lanes import Queue, Task, run_lanes
from ._loop import as_arrays, run_lane


def solve_stream(
    problem: Problem,
    solver: AbstractSolver,
    x0: Any,
    folder: str | Path,
    *,
    num: int | None = None,
    chunk_size: int = 65536,
    lanes: int | None = None,
    narrowest: int | None = None,
    mesh: Mesh | None = None,
    max_steps: int = 100,
    precision: str = "highest",
    key: PRNGKeyArray | None = None,
    progress: Callable[..., Any] | None = None,
) -> Streamed:
    """Solves a stream of observations into a folder, in memory that does not depend on how many there are.

    A function of its own beside `solve_batch`, because what goes in and what comes out are files. Chunks go through
    `lanes` as with `solve_batch(mode="streaming")`, each until its last lane has finished. After every chunk what was
    found is appended to `.npy` files, while the next chunk is solved, and the count of finished observations is
    written, atomically: when a run was killed, the disk was full or the iterator broke off, the same call goes on after
    the last chunk on disk, and the files are in the end the same to the last bit.

    Args:
        problem: `data` is an array with a leading axis of observations, in memory or `np.load(..., mmap_mode="r")`, or
            an iterable of such arrays of any lengths. Everything else is shared by all.
        solver: shared by all observations.
        x0: one start for all, shape `*x`, or an array (or memory map) of one per observation.
        folder: where the results go; `read_stream` reads it, finished or not.
        num: how many observations an iterable will give; unknown by default.
        chunk_size: observations that are on the device at once. A small multiple of `lanes` wastes turns at the end
            of each chunk; memory grows with it.
        lanes: see `solve_batch`.
        narrowest: see `solve_batch`.
        mesh: see `solve_batch`; every device takes its share of each chunk. Of several processes all read the stream,
            and the first writes.
        max_steps: see `solve`.
        precision: see `solve`.
        key: see `solve_batch`.
        progress: called as `progress(done, live, total)` now and then; `total` is `None` where it is not known.

    Returns:
        What `read_stream` returns: arrays that are mapped from the files.

    Raises:
        ValueError: bad arguments; a chunk of another shape or dtype than the first; an iterable that ends before
            `num`; a folder of another stream. What was finished before stays.
        OSError: the disk is full; likewise.
    """
    check_arguments(problem, solver, max_steps=max_steps, history=None, adjoint="forward")
    if not isinstance(solver, AbstractSolver):
        raise ValueError(f"solve_stream: {type(solver).__name__} has a loop of its own; use one of pinv_jax.solvers.")
    chunks, num = _observations(problem.data, num)
    first = next(chunks)
    mesh = auto_axes(mesh)
    devices = 1 if mesh is None else mesh.size
    if num is not None:
        chunk_size = min(chunk_size, -(-num // devices) * devices)
    for size, what in ((chunk_size, "chunk_size"), (chunk_size if lanes is None else lanes, "lanes")):
        if size < 1:
            raise ValueError(f"{what}={size}; expected a positive integer.")
        if mesh is not None:
            check_divides(size, mesh, what)
    row = as_floating(first[0], "data")
    starts = _starts(problem, row, x0)
    solver, limit = as_arrays(solver, int(max_steps), "forward", row.dtype)
    chunk = Problem(problem.forward, row[None], problem.project, problem.noise_std, problem.prior)
    with jax.default_matmul_precision(precision):
        part, shared = split_lanes(prepare(chunk), prepare(solver), Problem(None, 0), 1)
    key_data = None if key is None else jax.random.key_data(key)
    check_processes((shared, row, limit, key_data, num, chunk_size, lanes, max_steps, precision), "solve_stream")
    first_start = jnp.asarray(starts(0, 1)[0], row.dtype)
    one = (Problem(problem.forward, row, problem.project, problem.noise_std, problem.prior), solver, first_start)
    folder, mark = Path(folder), _fingerprint(one, limit, precision, key, (num, chunk_size, lanes, narrowest))
    columns = Columns(folder, mark, writes=jax.process_index() == 0)

    written: Future[None] | None = None
    with jax.default_matmul_precision(precision), ThreadPoolExecutor(1) as writer:
        shared, limit = (shared, limit) if mesh is None else replicate((shared, limit), mesh)
        task = Task(shared, limit, None, precision, prepared=True)
        widths = pick_widths(chunk_size, lanes, "streaming", narrowest, mesh)
        for begin, rows in _cut(first, chunks, row, chunk_size, skip=columns.num_done):
            count = rows.shape[0]

            def report(waiting: int, live: int, begin: int = begin, count: int = count) -> None:
                assert progress is not None
                progress(begin + count - waiting - live, live, num)

            keys = None if key is None else _keys(key, begin, chunk_size)
            data, x0s = (jnp.asarray(_padded(a, chunk_size), row.dtype) for a in (rows, starts(begin, count)))
            waiting = eqx.tree_at(lambda tree: tree[0].data, part, data)
            if mesh is not None:
                waiting, x0s, keys = spread((waiting, x0s, keys), mesh)
            queue = Queue(waiting, x0s, keys, share_of(count, chunk_size, mesh))
            found = run_lanes(task, queue, mesh=mesh, report=None if progress is None else report, **widths)
            if written is not None:
                written.result()
            written = writer.submit(columns.append, _on_host(found), count)  # while the next chunk is solved
            if jax.process_count() > 1:  # what one process tells the others must not cross what its lanes tell
                written.result()
        if written is not None:
            written.result()
    if num is not None and columns.num_done < num:
        raise ValueError(
            f"solve_stream: the iterable ended after {columns.num_done} of num={num} observations. They are solved and "
            f"kept in {folder}; pass an iterable that gives them all to go on."
        )
    return read_stream(folder)


def _observations(data: Any, num: int | None) -> tuple[Iterator[Any], int | None]:
    """Chunks of observations, and how many there will be."""
    if isinstance(data, np.ndarray | jax.Array):
        if data.ndim == 0 or data.shape[0] == 0:
            raise ValueError(f"solve_stream: data has shape {data.shape}; expected at least one observation in front.")
        if num is not None and num != data.shape[0]:
            raise ValueError(f"solve_stream: num={num}, but data holds {data.shape[0]} observations; drop num.")
        return iter([data]), data.shape[0]
    if not isinstance(data, Iterable):
        raise ValueError(f"solve_stream: data is a {type(data).__name__}; expected an array or an iterable of arrays.")
    chunks = (chunk for chunk in data if len(chunk))
    first = next(chunks, None)
    if first is None or num == 0:
        raise ValueError("solve_stream: the iterable gave no observations; expected at least one.")

    def again() -> Iterator[Any]:
        yield first
        yield from chunks

    return again(), num


def _starts(problem: Problem, row: Array, x0: Any) -> Callable[[int, int], np.ndarray]:
    """`(begin, count) -> starts`."""
    forward = unstore(problem.forward)
    if isinstance(forward, AbstractMap):  # it says so without a trace
        shared = np.shape(x0) == forward.in_structure().shape
    else:
        try:
            shared = jax.eval_shape(forward, jax.ShapeDtypeStruct(np.shape(x0), row.dtype)).shape == row.shape
        except (TypeError, ValueError):
            shared = False
    if shared:
        start = np.asarray(as_floating(x0, "x0"))
        return lambda begin, count: np.broadcast_to(start, (count, *start.shape))
    if np.ndim(x0) == 0:
        raise ValueError(f"solve_stream: x0 has shape {np.shape(x0)}; expected one start, or one per observation.")

    def part(begin: int, count: int) -> np.ndarray:
        if x0.shape[0] < begin + count:
            raise ValueError(f"solve_stream: x0 has {x0.shape[0]} rows; expected one per observation, or one start.")
        return np.asarray(x0[begin : begin + count])

    return part


def _cut(first: Any, chunks: Iterator[Any], row: Array, size: int, *, skip: int) -> Iterator[tuple[int, np.ndarray]]:
    """The observations after the first `skip`, `size` at a time, with the place of the first of each."""

    def checked(chunk: Any, begin: int) -> Any:
        shape, dtype = np.shape(chunk)[1:], np.asarray(chunk[:1]).dtype
        if shape != row.shape or jax.dtypes.canonicalize_dtype(dtype) != row.dtype:
            raise ValueError(
                f"solve_stream: from observation {begin} on, data is {dtype}{list(shape)}; the first was "
                f"{row.dtype}{list(row.shape)}. Whole chunks before are solved and kept."
            )
        return chunk

    seen, held = 0, []  # rows that wait for a full chunk
    chunk: Any = first
    while chunk is not None:
        chunk = checked(chunk, seen)
        at, end = max(0, skip - seen), len(chunk)
        while at < end:
            taken = min(end - at, size - sum(map(len, held)))
            held.append(np.asarray(chunk[at : at + taken]))
            at += taken
            if sum(map(len, held)) == size:
                yield seen + at - size, held[0] if len(held) == 1 else np.concatenate(held)
                held = []
        seen += end
        chunk = next(chunks, None)
    if held:
        rest = np.concatenate(held)
        yield seen - len(rest), rest


def _padded(rows: np.ndarray, size: int) -> np.ndarray:
    if len(rows) == size:
        return rows
    return np.concatenate([rows, np.broadcast_to(rows[-1:], (size - len(rows), *rows.shape[1:]))])


@eqx.filter_jit
def _keys(key: PRNGKeyArray, begin: Any, size: int) -> PRNGKeyArray:
    return jax.vmap(lambda i: jax.random.fold_in(key, i))(begin + jnp.arange(size))


def _on_host(found: Solution) -> Any:
    tree = {"value": found.value, "result": found.result._value} | vars(found.stats)
    if found.value.is_fully_addressable:
        return jax.tree.map(np.asarray, tree)
    return multihost_utils.process_allgather(tree, tiled=True)


@eqx.filter_jit
def _one(one: Any, limit: Any, precision: str, key: Any) -> Solution:
    problem, solver, x0 = one
    return run_lane(problem, solver, x0, key, limit, None, "forward", precision)


def _fingerprint(one: Any, limit: Any, precision: str, key: Any, sizes: Any) -> str:
    """Of what the results depend on: the program of one observation, all arrays, the first observation, the sizes."""
    program = _one.lower(one, limit, precision, key).as_text()  # pyright: ignore[reportFunctionMemberAccess]
    return digest(program, one, limit, key, sizes)
