"""`solve_batch`: many observations, in lanes that need not wait for each other."""

import contextlib
from collections.abc import Callable
from typing import Any, Literal, get_args

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optimistix as optx
from jax.core import Tracer
from jax.sharding import Mesh
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from .._mesh import auto_axes, check_divides, check_processes, everywhere, replicate, spread
from .._problem import Problem
from .._solution import Solution
from ..maps import prepare
from ._axes import shares_maps, split_lanes
from ._base import AbstractSolver
from ._check import as_floating, check_arguments, check_batch
from ._lanes import Queue, Task, Traced, descending, run_lanes
from ._loop import Adjoint, as_arrays, run_lane

Mode = Literal["auto", "masked", "compacting", "streaming"]
DEFAULT_LANES = 1024


def solve_batch(
    problem: Problem,
    solver: AbstractSolver | optx.AbstractLeastSquaresSolver | optx.AbstractMinimiser,
    x0: Float[Array, "batch *x"],
    *,
    lanes: int | None = None,
    mode: Mode = "auto",
    axes: Any = None,
    narrowest: int | None = None,
    mesh: Mesh | None = None,
    max_steps: int = 100,
    history: int | None = None,
    adjoint: Adjoint = "forward",
    precision: str = "highest",
    key: PRNGKeyArray | None = None,
    progress: Callable[..., Any] | None = None,
) -> Solution:
    """Solves one problem per observation; `data` and `x0` carry a leading axis.

    Lanes finish at different times. What becomes of the others in the meantime is the `mode`:

    - `"masked"`: nothing; finished lanes are carried along until the last has finished. One compiled call, which
      composes with `jit`, `vmap` and derivatives;
    - `"compacting"`: the live lanes are gathered into ever fewer slots, powers of two. One compiled step per width;
    - `"streaming"`: observations wait in a queue, `lanes` of them are worked on, and finished lanes are refilled inside
      the compiled loop; the last ones are compacted, below a sixteenth of the lanes by quarters.

    At a fixed width a lane's numbers are the same to the last bit whatever its neighbours and their order; another
    width rounds differently (matrix-vector and matrix-matrix kernels do). `stats.useful` is the share of lane-steps
    that were not in vain, `stats.num_idle` the vain ones of each lane.

    Args:
        problem: `data` has shape `(batch, *y)`. A `noise_std` of that same shape is one per observation; anything
            else is shared, unless `axes` says otherwise.
        solver: shared by all observations, unless `axes` says otherwise.
        x0: the starts, shape `(batch, *x)`.
        lanes: how many observations are worked on at once, with `mode="streaming"`; more than there are observations
            are not made.
        mode: see above; `"auto"` picks by a measured rule, see `pick_mode`. Inside `jit`, `vmap` or a derivative every
            mode is masked.
        axes: which leaves differ from lane to lane: a `Problem` of axes, as `jax.vmap` takes them, for example
            `Problem(None, 0, prior=GaussianPrior(None, 0))`, or a pair of that and one for the solver. In place of the
            forward map stands an axis for all its arrays, or a copy of it with an axis or `None` for each array.
        narrowest: lanes are not gathered into fewer slots than this, by default 1 if compacting, and a 256th of them
            if streaming or if `"auto"` chose. `narrowest=lanes` keeps the width fixed.
        mesh: spreads the observations over all devices of a `jax.sharding.Mesh`. Each has its own queue and retires
            its own lanes; inside loops no device waits for another. The number of observations, and `lanes`, must be
            multiples of the number of devices.
        max_steps: see `solve`.
        history: see `solve`.
        adjoint: see `solve`.
        precision: see `solve`.
        key: one for each observation is folded in from it.
        progress: called as `progress(done, live, total)` now and then, save with `mode="masked"`.

    Returns:
        A `Solution` whose arrays carry the leading axis. A bad observation never touches its neighbours.

    Raises:
        ValueError: as `solve`, and where leading axes differ, are empty, or do not fit `mesh`, `lanes` or `axes`.
    """
    check_arguments(problem, solver, max_steps=max_steps, history=history, adjoint=adjoint)
    x0, data = as_floating(x0, "x0"), as_floating(problem.data, "data")
    if axes is None:
        check_batch(data, x0)
    _check_lanes(solver, x0, lanes, mode, narrowest, mesh)
    mesh = auto_axes(mesh)
    num = x0.shape[0]
    problem = Problem(problem.forward, data, problem.project, problem.noise_std, problem.prior)
    solver, limit = as_arrays(solver, int(max_steps), adjoint, x0.dtype)
    keys = None if key is None else jax.vmap(lambda i: jax.random.fold_in(key, i))(jnp.arange(num))
    part, shared = split_lanes(problem, solver, axes, num)
    prepared = shares_maps(part)
    traced = any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves((part, shared, x0, keys)))
    widths = pick_widths(num, lanes, mode, narrowest, mesh)
    if traced or not isinstance(solver, AbstractSolver):
        mode = "masked"
    elif mode == "auto":
        mode = pick_mode(num, lanes)
    if mode != "masked" and prepared:  # once for all programs
        with jax.default_matmul_precision(precision):
            part, shared = split_lanes(prepare(problem), prepare(solver), axes, num)
    if mesh is not None and not traced:
        check_processes((part, shared, x0, keys, limit, lanes, mode, history, precision), "solve_batch")
        part, x0, keys = spread((part, x0, keys), mesh)
        shared, limit = replicate((shared, limit), mesh)
    with jax.default_matmul_precision(precision):
        if mode != "masked":
            task = Task(shared, limit, history, precision, prepared)
            queue = Queue(part, x0, keys, share_of(num, num, mesh))
            report = None if progress is None else lambda waiting, live: progress(num - waiting - live, live, num)
            with contextlib.suppress(Traced):
                return run_lanes(task, queue, mesh=mesh, report=report, **widths)
        options = {"history": history, "adjoint": adjoint, "precision": precision}
        masked = part, x0, keys
        return everywhere(_run_masked, mesh, (shared, limit), masked, (), tuple(options.items()))


def _run_masked(
    everything: Any, part: PyTree, x0: Array, keys: Any, *, history: int | None, adjoint: Adjoint, precision: str
) -> Solution:
    shared, max_steps = everything

    def one(part: PyTree, x0: Array, key: Any) -> Solution:
        problem, solver = prepare(eqx.combine(part, shared))  # what all lanes share, once for all of them
        return run_lane(problem, solver, x0, key, max_steps, history, adjoint, precision)

    return jax.vmap(one)(part, x0, keys)


def pick_mode(num: int, lanes: int | None) -> Mode:
    """The rule of `mode="auto"`, measured by `python -m benchmarks lanes`.

    With `lanes`, streaming. Otherwise compacting from 4096 observations on: on an even batch it costs at most a tenth
    more than masked lanes (which the benchmark asserts), on uneven ones it is ten to thirty times as fast. Smaller
    batches are masked: the further programs, about a second of compilation for each width, take longer than they save,
    unless the same batch is solved again and again; then write `mode="compacting"`.
    """
    if lanes is not None:
        return "streaming" if lanes < num else "masked"
    return "compacting" if num >= 4096 else "masked"


def pick_widths(num: int, lanes: int | None, mode: Mode, narrowest: int | None, mesh: Mesh | None) -> dict[str, Any]:
    """Slots of each device, into how few they are gathered, and how many are exchanged at once.

    Every width is a program to compile. Explicitly compacting halves down to one lane; otherwise the widths below a
    sixteenth are quarters, seven programs for any number of lanes: a turn of so few lanes costs little besides its
    overhead, but a wider pool would make hundreds of dear turns for its last, slowest lane.
    """
    devices = 1 if mesh is None else mesh.size
    each = -(-num // devices)
    streams = mode == "streaming" or lanes is not None
    width = min(each, (DEFAULT_LANES if lanes is None else lanes) // devices) if streams else each
    thorough = mode == "compacting"
    if narrowest is None:
        narrowest = 1 if thorough else -(-width // 256)
    widths = descending(width, narrowest, halved=1 if thorough else -(-width // 16))
    return {"widths": widths, "num_exchanged": -(-width // 8)}


def share_of(count: int, num: int, mesh: Mesh | None) -> Array:
    """Of `num` places spread evenly, the first `count` of which are taken, how many of each device's are."""
    if mesh is None:
        return jnp.full(1, count, jnp.int32)
    each = num // mesh.size
    return spread(np.clip(count - each * np.arange(mesh.size), 0, each).astype(np.int32), mesh)


def _check_lanes(solver: Any, x0: Array, lanes: Any, mode: Any, narrowest: Any, mesh: Any) -> None:
    if mode not in get_args(Mode):
        raise ValueError(f"mode={mode!r}; expected one of {', '.join(map(repr, get_args(Mode)))}.")
    for name, value in (("lanes", lanes), ("narrowest", narrowest)):
        if value is not None and (not isinstance(value, int | np.integer) or value < 1):
            raise ValueError(f"{name}={value!r}; expected a positive integer.")
    if mode in ("masked", "compacting") and lanes is not None:
        raise ValueError(f"lanes={lanes} belongs to mode='streaming'; mode={mode!r} works on all at once. Drop one.")
    if mode in ("compacting", "streaming") and not isinstance(solver, AbstractSolver):
        raise ValueError(f"mode={mode!r}: optimistix solvers have a loop of their own; write mode='masked'.")
    if x0.ndim == 0 or x0.shape[0] == 0:
        raise ValueError(f"x0 has shape {x0.shape}; expected one start for each of at least one observation.")
    if mesh is not None:
        if not isinstance(mesh, Mesh):
            raise ValueError(f"mesh is a {type(mesh).__name__}; expected a jax.sharding.Mesh, see jax.make_mesh.")
        check_divides(x0.shape[0], mesh, "the number of observations")
        if lanes is not None:
            check_divides(lanes, mesh, "lanes")
