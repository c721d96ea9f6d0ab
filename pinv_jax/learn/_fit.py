"""The training loop: `fit` runs `Stage`s of weighted `Term`s, jitted between rounds, resumable, with selection."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, PRNGKeyArray, PyTree, Scalar

from .._mesh import auto_axes, check_divides, check_processes, replicate
from ..maps import Stored, prepare, store, unprepare
from ._checkpoint import Checkpoint
from ._stage import AbstractStage, Batch, Stage, StageHistory, name_key


class _State(eqx.Module):
    params: PyTree
    opt_state: PyTree
    best: PyTree
    best_score: Array
    best_round: Array
    step: Array
    round: Array
    gates: dict[str, Array]


def _mask(model: PyTree, trainable: Callable[..., Any]) -> PyTree:
    """True at the float arrays of the part that `trainable` picks, found by the identity of its leaves."""
    leaves, treedef = jax.tree.flatten(model)
    labels = [object() for _ in leaves]
    chosen = {id(label) for label in jax.tree.leaves(trainable(jax.tree.unflatten(treedef, labels)))}
    flags = [id(a) in chosen and eqx.is_inexact_array(b) for a, b in zip(labels, leaves, strict=True)]
    if not any(flags):
        raise ValueError("Stage: trainable(model) holds no float array; write for example lambda model: model.inverse.")
    return jax.tree.unflatten(treedef, flags)


@eqx.filter_jit
def _run_round(
    stage: AbstractStage,
    frozen: PyTree,
    start: PyTree,
    state: _State,
    data: Any,
    validation: PyTree,
    key: PRNGKeyArray,
    num_steps: Array,
    length: int,
    mesh: Mesh | None = None,
) -> tuple[_State, dict[str, Any], Scalar]:
    """Takes `num_steps <= length` steps, then scores the model; records are padded with NaN to `length`."""
    data_key, loss_key, select_key = (name_key(key, name) for name in ("data", "loss", "select"))
    sampled = isinstance(data, Stored)
    if not sampled:
        num_examples = data[0].shape[0]
        per_epoch = num_examples // stage.batch_size

    def shuffled(epoch: Array) -> Array:
        return jax.random.permutation(jax.random.fold_in(data_key, epoch), num_examples)

    def batch(order: Any, step: Array) -> Batch:
        rows = None
        if sampled:
            x, y = jax.vmap(data)(jax.random.split(jax.random.fold_in(data_key, step), stage.batch_size))
        else:
            begin = (step % per_epoch) * stage.batch_size
            rows = jax.lax.dynamic_slice_in_dim(order, begin, stage.batch_size)
            x, y = jax.tree.map(lambda a: a[rows], data)
        if mesh is not None:  # each device takes its share of the examples; sums over them are the only exchange
            share = NamedSharding(mesh, PartitionSpec(mesh.axis_names))
            x, y = jax.lax.with_sharding_constraint((x, y), share)
        return Batch(x, y, rows, step, state.round, gates)

    model = eqx.combine(state.params, frozen)
    gates = {
        name: open_ | stage.gated[name].opens(model, validation, state.round) for name, open_ in state.gates.items()
    }

    def body(i: Array, carry: Any) -> Any:
        params, opt_state, order, record = carry
        step = state.step + i
        if not sampled:
            order = jax.lax.cond(step % per_epoch == 0, lambda: shuffled(step // per_epoch), lambda: order)
        params, opt_state, (loss, values, used) = stage.advance(
            params, frozen, opt_state, batch(order, step), jax.random.fold_in(loss_key, step)
        )
        row = {"loss": loss, "terms": values, "weights": used}
        record = jax.tree.map(lambda a, b: a.at[i].set(b.astype(a.dtype)), record, row)
        return params, opt_state, order, record

    dtype = jax.tree.leaves(state.params)[0].dtype
    blank = {name: jnp.full(length, jnp.nan, dtype) for name in stage.names}
    record = {"loss": jnp.full(length, jnp.nan, dtype), "terms": blank, "weights": blank}
    order = None if sampled else shuffled(state.step // per_epoch)
    # the number of steps is a value, not a shape: the last, shorter round of a stage does not compile again
    carry = (state.params, state.opt_state, order, record)
    params, opt_state, _, record = jax.lax.fori_loop(0, num_steps, body, carry)

    score = jnp.asarray(jnp.nan, dtype)
    better = jnp.asarray(True)
    if stage.select is not None:
        scored, begun = (prepare(eqx.combine(p, frozen)) for p in (params, start))
        score = stage.select(scored, begun, validation, jax.random.fold_in(select_key, state.round)).astype(dtype)
        better = score < state.best_score  # never true of NaN
    new = _State(
        params=params,
        opt_state=opt_state,
        best=jax.tree.map(lambda a, b: jnp.where(better, a, b), params, state.best),
        best_score=jnp.where(better, score, state.best_score),
        best_round=jnp.where(better, state.round, state.best_round),
        step=state.step + num_steps,
        round=state.round + 1,
        gates=gates,
    )
    return new, record, score


def _check(name: str, stage: AbstractStage, data: Any, validation: Any) -> None:
    if stage.num_steps < 1 or stage.batch_size < 1:
        raise ValueError(
            f"Stage {name!r} has num_steps={stage.num_steps} and batch_size={stage.batch_size}; expected positive ones."
        )
    stage.check(name)
    if not isinstance(data, Stored) and stage.batch_size > data[0].shape[0]:
        raise ValueError(
            f"Stage {name!r} has batch_size={stage.batch_size}, more than the {data[0].shape[0]} examples of data; "
            "make it smaller, or pass a sampler key -> (x, y)."
        )
    if validation is None and (stage.select is not None or stage.gated):
        raise ValueError(f"Stage {name!r} selects (or gates a weight) by validation data; pass fit(validation=(x, y)).")


def _check_finite(name: str, step: int, record: dict[str, Any]) -> None:
    bad = np.flatnonzero(~np.isfinite(record["loss"]))
    if bad.size:
        terms = ", ".join(f"{term} = {values[bad[0]]:g}" for term, values in record["terms"].items())
        raise FloatingPointError(
            f"fit: the loss of stage {name!r} is not finite at step {step + bad[0]} ({terms}). Look for non-finite "
            "data, lower the learning rate, or put optax.clip_by_global_norm before the optimiser."
        )


def _fit_stage(
    name: str,
    stage: AbstractStage,
    model: PyTree,
    data: Any,
    key: PRNGKeyArray,
    validation: PyTree,
    length: int,
    folder: Path | None,
    progress: Callable[..., Any] | None,
    mesh: Mesh | None,
) -> tuple[PyTree, StageHistory]:
    params, frozen = eqx.partition(model, _mask(model, stage.trainable))
    dtype = jax.tree.leaves(params)[0].dtype
    zero = jnp.zeros((), jnp.int32)
    gates = {n: jnp.asarray(False) for n in stage.gated}
    opt_state = stage.start(params, frozen, data)
    state = _State(params, opt_state, params, jnp.asarray(jnp.inf, dtype), zero, zero, zero, gates)
    blank = lambda: np.full(stage.num_steps, np.nan, dtype)
    record = {"loss": blank(), "terms": {n: blank() for n in stage.names}, "weights": {n: blank() for n in stage.names}}
    scores = np.full(-(-stage.num_steps // length), np.nan, dtype)

    # of the stage, only what the compiled round depends on
    bare = stage.bare()

    def arguments(state: _State, num_steps: int) -> tuple[Any, ...]:
        traced = (frozen, params, state, data, validation, key, jnp.asarray(num_steps, jnp.int32))
        if mesh is None:
            return bare, *traced, length
        return bare, *replicate(traced, mesh), length, mesh

    checkpoint = None
    if folder is not None:
        checkpoint = Checkpoint(folder / f"{name}.npz", _run_round, arguments(state, length))
        state, record, scores = checkpoint.restore((state, record, scores))
    done = int(state.step)
    while done < stage.num_steps:
        count = min(length, stage.num_steps - done)
        state, rows, score = _run_round(*arguments(state, count))
        rows = jax.tree.map(lambda a, n=count: np.asarray(a)[:n], rows)
        _check_finite(name, done, rows)
        jax.tree.map(lambda a, b, i=done, n=count: a.__setitem__(slice(i, i + n), b), record, rows)
        scores[done // length] = score
        done += count
        if checkpoint is not None:
            checkpoint.save((state, record, scores), last=done == stage.num_steps)
        if progress is not None:
            progress(name, done, stage.num_steps, float(rows["loss"][-1]))
    if stage.select is not None and not np.isfinite(state.best_score):
        raise FloatingPointError(f"fit: no round of stage {name!r} has a finite selection score: {scores}.")
    history = StageHistory(record["loss"], record["terms"], record["weights"], scores, int(state.best_round))
    return eqx.combine(state.best, frozen), history


def fit(
    model: PyTree,
    stages: Mapping[str, AbstractStage],
    data: Any,
    *,
    key: PRNGKeyArray,
    validation: PyTree = None,
    steps_per_round: int | None = None,
    checkpoint: str | Path | None = None,
    progress: Callable[..., Any] | None = None,
    mesh: Mesh | None = None,
) -> tuple[PyTree, dict[str, StageHistory]]:
    """Trains a model through stages, one after the other, each beginning with what the one before it kept.

    A stage is a loop on the host over rounds; a round is one jitted call, compiled once per stage: optimiser steps,
    then the selection score. Between rounds the host checks the loss, saves and reports. The same arguments give
    bit-equal parameters, whether or not the run was interrupted.

    Args:
        model: any pytree of arrays and static parts, such as an `InversePair`. One that was prepared is unprepared.
        stages: by name, in order.
        data: a pair `(x, y)` of arrays with a leading axis of examples, or a sampler `key -> (x, y)` of one example
            (fresh draws at every step). A pair is shuffled anew for every epoch and cut into full batches; the
            remainder of the epoch is left out, where the published code takes a last, smaller batch.
        key: random key.
        validation: what `select` and `Gated` weights are given, usually a pair `(x, y)`.
        steps_per_round: by default one epoch of a pair; a fiftieth of the stage with a sampler.
        checkpoint: a folder with one file per stage. A run that was killed goes on when `fit` is called again with
            the same arguments; a finished stage is read back.
        progress: called from the host as `progress(stage, done, total, loss)` after every round.
        mesh: spreads the examples of each step over all devices of a `jax.sharding.Mesh`; parameters and data are
            on every device, and gradients are summed once per step. `batch_size` must be a multiple of the number of
            devices. Several processes call with the same arguments; the first writes the checkpoint.

    Returns:
        The model and a `StageHistory` per stage.

    Raises:
        ValueError: shapes, sizes or options that do not fit together, or a checkpoint of another configuration.
        FloatingPointError: the loss became NaN or infinite; the message says in which stage, at which step.
    """
    if callable(data):
        data = store(data)
    elif not (isinstance(data, tuple | list) and len(data) == 2):
        raise ValueError(f"fit: data is a {type(data).__name__}; expected a pair (x, y) or a sampler key -> (x, y).")
    elif data[0].shape[:1] != data[1].shape[:1] or not data[0].shape[:1]:
        raise ValueError(
            f"fit: x has shape {data[0].shape} and y {data[1].shape}; expected the same number of examples in front."
        )
    if steps_per_round is not None and steps_per_round < 1:
        raise ValueError(f"fit: steps_per_round={steps_per_round}; expected a positive number, or None.")
    # axes of type Auto, whatever those of the user's mesh are: shardings inside a round are left to the compiler
    mesh = auto_axes(mesh)
    if mesh is not None:
        check_processes((model, data, validation, key, steps_per_round), "fit")
    model, history = unprepare(model), {}  # what was prepared would be trained as if it were a parameter
    for name, stage in stages.items():
        if isinstance(stage, Stage):  # a number zero means "without", so that an ablation costs nothing
            idle = [n for n, term in stage.terms.items() if isinstance(term.weight, float | int) and term.weight == 0]
            stage = stage.without(*idle)
        _check(name, stage, data, validation)
        if mesh is not None:
            check_divides(stage.batch_size, mesh, f"batch_size of stage {name!r}")
        epoch = stage.num_steps // 50 if isinstance(data, Stored) else data[0].shape[0] // stage.batch_size
        length = max(1, min(stage.num_steps, epoch if steps_per_round is None else steps_per_round))
        folder = None if checkpoint is None else Path(checkpoint)
        stage_key = name_key(key, name)
        model, history[name] = _fit_stage(
            name, stage, model, data, stage_key, validation, length, folder, progress, mesh
        )
    return model, history
