"""A pool of lanes: a queue of observations goes through `width` slots, each refilled when its lane has finished.

`while queue: exchange finished lanes for waiting observations; turn until enough lanes have finished`, inside one
compiled loop; then the last lanes are gathered into ever narrower pools. Every function here works on what one device
holds, and no device waits for another inside a loop.
"""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Int, PyTree

from .._mesh import everywhere, largest_and_sum
from .._solution import Solution
from ..maps import prepare
from ._check import check_problem
from ._descent import select
from ._loop import Lane, begin, finish, finite_input, going, turn

TURNS_PER_REPORT = 64


class Traced(Exception):  # noqa: N818 (not an error)
    """A function inside `jit`, `vmap` or a derivative closes over what is being traced."""


class Task(eqx.Module):
    """What all lanes share.

    Attributes:
        shared: the pair of problem and solver, without the leaves that differ from lane to lane.
        max_steps: accepted steps at most.
        history: slots of the history, or `None`.
        precision: of matrix products.
        prepared: whether `prepare` was applied to `shared`; otherwise maps are prepared in every lane by themselves.
    """

    shared: PyTree
    max_steps: Any
    history: int | None = eqx.field(static=True)
    precision: str = eqx.field(static=True)
    prepared: bool = eqx.field(static=True)

    def join(self, part: PyTree) -> tuple[Any, Any]:
        """Problem and solver of one lane."""
        whole = eqx.combine(part, self.shared)
        return whole if self.prepared else prepare(whole)


class Queue(eqx.Module):
    """Observations that wait, with a leading axis.

    Attributes:
        part: the leaves of problem and solver that differ from lane to lane.
        x0: the starts.
        keys: one per observation, or `None`.
        num: how many there are, shape `(1,)`; what comes after them is padding.
    """

    part: PyTree
    x0: Array
    keys: Any
    num: Int[Array, " one"]


class Pool(eqx.Module):
    """Slots, with a leading axis.

    Attributes:
        lane: `x`, state and history of each.
        part: the leaves of problem and solver of each.
        index: the place of its observation in the queue, beyond the end where the slot is empty.
        live: whether it makes another turn.
        finite: whether its input was finite.
        num_idle: turns it has made in vain since it finished.
    """

    lane: Lane
    part: PyTree
    index: Int[Array, " width"]
    live: Bool[Array, " width"]
    finite: Bool[Array, " width"]
    num_idle: Int[Array, " width"]


class Stretch(eqx.Module):
    """Between two looks of the host.

    Attributes:
        pool: the slots.
        out: what was found, at the place of each observation.
        num_begun: observations taken from the queue, shape `(1,)`.
    """

    pool: Pool
    out: Solution
    num_begun: Int[Array, " one"]


def _begin(task: Task, part: PyTree, x0: Array, key: Any) -> tuple[Lane, Bool[Array, ""], Bool[Array, ""]]:
    problem, solver = task.join(part)
    check_problem(problem, solver, x0)  # once per trace
    finite = finite_input(problem, x0)
    lane = begin(problem, solver, x0, key, task.history)
    return lane, finite & going(problem, solver, lane, task.max_steps), finite


def _finish(task: Task, part: PyTree, lane: Lane, finite: Bool[Array, ""], num_idle: Int[Array, ""]) -> Solution:
    return finish(*task.join(part), lane, finite, num_idle)


def _blank(struct: Any, num: int) -> Array:
    """`num` times nothing."""
    if not jnp.issubdtype(struct.dtype, jax.dtypes.prng_key):
        return jnp.zeros((num, *struct.shape), struct.dtype)
    data = jax.eval_shape(jax.random.key_data, struct)
    return jax.random.wrap_key_data(jnp.zeros((num, *data.shape), data.dtype), impl=jax.random.key_impl(struct))


def _rows(tree: PyTree, rows: Int[Array, " k"]) -> PyTree:
    return jax.tree.map(lambda a: a.at[rows].get(mode="clip"), tree)


def _put(tree: PyTree, rows: Int[Array, " k"], new: PyTree) -> PyTree:
    return jax.tree.map(lambda a, b: a.at[rows].set(b.astype(a.dtype), mode="drop"), tree, new)


def _collect(task: Task, pool: Pool, out: Solution, slots: Int[Array, " k"]) -> Solution:
    """Writes what the lanes in these slots have found; slots beyond the width, and empty ones, are passed over."""
    found = _rows((pool.part, pool.lane, pool.finite, pool.num_idle), slots)
    solutions = jax.vmap(lambda *args: _finish(task, *args))(*found)
    end = out.stats.num_steps.shape[0]
    index = jnp.where(slots < pool.live.size, pool.index.at[slots].get(mode="clip"), end)
    return _put(out, index, solutions)


def _exchange(task: Task, queue: Queue, stretch: Stretch, num: int) -> Stretch:
    """Takes what up to `num` finished lanes have found, and puts waiting observations in their place."""
    pool, width = stretch.pool, stretch.pool.live.size
    slots = jnp.nonzero(~pool.live, size=num, fill_value=width)[0].astype(jnp.int32)
    out = _collect(task, pool, stretch.out, slots)
    index = stretch.num_begun + jnp.arange(num, dtype=jnp.int32)
    taken = (slots < width) & (index < queue.num)
    part, x0, keys = _rows((queue.part, queue.x0, queue.keys), index)
    lane, live, finite = jax.vmap(lambda *args: _begin(task, *args))(part, x0, keys)
    new = Pool(lane, part, index, live, finite, jnp.zeros_like(index))
    pool = _put(pool, jnp.where(taken, slots, width), new)
    return Stretch(pool, out, stretch.num_begun + jnp.sum(taken, dtype=jnp.int32))


def _advance(task: Task, pool: Pool, enough: Any, num_turns: Any, limit: Any) -> tuple[Pool, Any]:
    """Turns until `enough` lanes have finished, or all, or `num_turns` has reached `limit`."""

    def one(part: PyTree, lane: Lane, live: Any, num_idle: Any) -> tuple[Lane, Any, Any]:
        problem, solver = task.join(part)
        new = turn(problem, solver, lane, task.precision)
        goes_on = live & going(problem, solver, new, task.max_steps)
        return select(live, new, lane), goes_on, num_idle + ~live

    def cond(carry: Any) -> Any:
        pool, num_turns = carry
        num_live = jnp.sum(pool.live)
        return (num_live > 0) & (pool.live.size - num_live < enough) & (num_turns < limit)

    def body(carry: Any) -> Any:
        pool, num_turns = carry
        lane, live, num_idle = jax.vmap(one)(pool.part, pool.lane, pool.live, pool.num_idle)
        return Pool(lane, pool.part, pool.index, live, pool.finite, num_idle), num_turns + 1

    return jax.lax.while_loop(cond, body, (pool, num_turns))


def _blank_solution(task: Task, queue: Queue, lane: Any, part: Any) -> Solution:
    """What will be found; `lane` and `part` are the structures of one."""
    flag, zero = jax.ShapeDtypeStruct((), jnp.bool_), jax.ShapeDtypeStruct((), jnp.int32)
    solution = jax.eval_shape(lambda *args: _finish(task, *args), part, lane, flag, zero)
    return jax.tree.map(lambda s: _blank(s, queue.x0.shape[0]), solution)


def _one(tree: PyTree) -> PyTree:
    return jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape[1:], a.dtype), tree)


def _start(task: Task, queue: Queue, *, width: int) -> Stretch:
    """An empty pool."""
    one = _one((queue.part, queue.x0, queue.keys))
    lane, live, finite = jax.eval_shape(lambda *args: _begin(task, *args), *one)
    zero = jax.ShapeDtypeStruct((), jnp.int32)
    pool = Pool(*jax.tree.map(lambda s: _blank(s, width), (lane, one[0], zero, live, finite, zero)))
    pool = eqx.tree_at(lambda p: p.index, pool, jnp.full(width, queue.x0.shape[0], jnp.int32))
    return Stretch(pool, _blank_solution(task, queue, lane, one[0]), jnp.zeros(1, jnp.int32))


def _load(task: Task, queue: Queue) -> Stretch:
    """A pool of all observations."""
    lane, live, finite = jax.vmap(lambda *args: _begin(task, *args))(queue.part, queue.x0, queue.keys)
    index = jnp.arange(queue.x0.shape[0], dtype=jnp.int32)
    there = index < queue.num
    index = jnp.where(there, index, index.size)
    pool = Pool(lane, queue.part, index, live & there, finite, jnp.zeros_like(index))
    return Stretch(pool, _blank_solution(task, queue, _one(lane), _one(queue.part)), queue.num)


def _settle(task: Task, queue: Queue, stretch: Stretch, enough: Any, limit: Any) -> tuple[Stretch, Array]:
    """Turns until `enough` lanes have finished, and takes what they have found."""
    pool, _ = _advance(task, stretch.pool, enough, jnp.zeros((), jnp.int32), limit)
    slots = jnp.arange(pool.live.size, dtype=jnp.int32)
    out = _collect(task, pool, stretch.out, jnp.where(pool.live, pool.live.size, slots))
    return _looked_at(queue, Stretch(pool, out, stretch.num_begun))


def _load_and_settle(task: Task, queue: Queue, enough: Any, limit: Any) -> tuple[Stretch, Array]:
    """From all observations at once."""
    return _settle(task, queue, _load(task, queue), enough, limit)


def _narrow_and_settle(
    task: Task, queue: Queue, stretch: Stretch, enough: Any, limit: Any, *, width: int
) -> tuple[Stretch, Array]:
    """With the live lanes, of which there are at most `width`, gathered into fewer slots."""
    order = jnp.argsort(~stretch.pool.live, stable=True)[:width]
    stretch = Stretch(_rows(stretch.pool, order), stretch.out, stretch.num_begun)
    return _settle(task, queue, stretch, enough, limit)


def _stream(
    task: Task, queue: Queue, stretch: Stretch, enough: Any, limit: Any, *, num_exchanged: int
) -> tuple[Stretch, Array]:
    """Until the queue is empty and `enough` lanes have finished, or for `limit` turns."""
    width = stretch.pool.live.size

    def cond(carry: Any) -> Any:
        stretch, num_turns = carry
        unfinished = jnp.sum(stretch.pool.live) > jnp.maximum(width - enough, 0)
        return (jnp.any(stretch.num_begun < queue.num) | unfinished) & (num_turns < limit)

    def body(carry: Any) -> Any:
        stretch, num_turns = carry
        stretch = _exchange(task, queue, stretch, num_exchanged)
        left = jnp.sum(queue.num - stretch.num_begun)
        until = jnp.where(left > 0, jnp.minimum(num_exchanged, left), enough)
        pool, num_turns = _advance(task, stretch.pool, until, num_turns, limit)
        return Stretch(pool, stretch.out, stretch.num_begun), num_turns

    stretch, _ = jax.lax.while_loop(cond, body, (stretch, jnp.zeros((), jnp.int32)))
    return _settle(task, queue, stretch, jnp.zeros((), jnp.int32), limit)


def _looked_at(queue: Queue, stretch: Stretch) -> tuple[Stretch, Array]:
    """With what the host looks at: live lanes and waiting observations of this device, shape `(1, 2)`."""
    numbers = [jnp.sum(stretch.pool.live, dtype=jnp.int32), jnp.sum(queue.num - stretch.num_begun)]
    return stretch, jnp.stack(numbers)[None]


def descending(width: int, narrowest: int, *, halved: int = 1) -> tuple[int, ...]:
    """Widths worth gathering into, `width` first: powers of two, by halves down to `halved` and then by quarters.

    The first is at most three quarters of `width`, and the last is `narrowest`.
    """
    found = [width]
    while found[-1] > narrowest:
        part = 3 * found[-1] // (4 if found[-1] > halved else 8)
        found.append(max(narrowest, 1 << max(0, part.bit_length() - 1)))
    return tuple(found)


def run_lanes(
    task: Task,
    queue: Queue,
    *,
    widths: tuple[int, ...],
    num_exchanged: int,
    mesh: Mesh | None,
    report: Callable[..., Any] | None,
) -> Solution:
    """Solves the queue.

    Args:
        task: what the lanes share.
        queue: the observations, on every device as many; padding included.
        widths: slots per device, and the ever fewer ones into which the last live lanes are gathered.
        num_exchanged: finished lanes that are exchanged at once.
        mesh: the devices.
        report: called as `report(waiting, live)` every few turns.

    Returns:
        What was found, at the place of each observation.

    Raises:
        Traced: something inside is being traced, so that the loop cannot be driven from the host.
    """
    num, num_devices = queue.x0.shape[0], 1 if mesh is None else mesh.size
    limit = np.int32(TURNS_PER_REPORT if report is not None else np.iinfo(np.int32).max)
    (width, *lower), live = widths, num

    def settled(fn: Callable[..., Any], *args: Any, **options: int) -> tuple[Stretch, int, int]:
        """`fn` on every device until the next look; the most live lanes and waiting observations of any device."""
        enough = np.int32(width - lower[0] if lower else width + 1)
        numbers = (jnp.asarray(enough), jnp.asarray(limit))
        stretch, counts = everywhere(fn, mesh, task, (queue, *args), numbers, tuple(options.items()))
        if any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(stretch)):
            raise Traced  # in a derivative the counts alone would not tell
        most, total = largest_and_sum(counts, mesh)
        if report is not None:
            report(int(total[1]), int(total[0]))
        return stretch, int(most[0]), int(most[1])

    if width * num_devices >= num:
        stretch, live, _ = settled(_load_and_settle)
    else:
        stretch = everywhere(_start, mesh, task, (queue,), (), (("width", width),))
        waiting = num
        while waiting or live > (lower[0] if lower else 0):
            stretch, live, waiting = settled(_stream, stretch, num_exchanged=num_exchanged)
    while live > 0:
        # Width by width, even if one is passed at once: the programs are then the same for every batch.
        if lower and live <= lower[0]:
            width = lower.pop(0)
        stretch, live, _ = settled(_narrow_and_settle, stretch, width=width)
    return stretch.out
