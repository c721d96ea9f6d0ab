"""Which leaves of a problem and a solver differ from lane to lane, and which all lanes share."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from .._problem import Problem
from ..maps._base import Stored, unstore

_FIELDS = tuple(field.name for field in dataclasses.fields(Problem))


def _is_axis(spec: Any) -> bool:
    return spec is None or isinstance(spec, int)


def _is_array(leaf: Any) -> bool:
    return isinstance(leaf, jax.Array | np.ndarray | np.generic)


def _axes_of(spec: Any, node: Any) -> PyTree:
    """`node` with each array replaced by its axis, and whatever has none by `None`; `spec` is a prefix of it."""
    if isinstance(node, Stored) and not _is_axis(spec):
        leaves, treedef = jax.tree.flatten(node.fn)
        axes = treedef.flatten_up_to(_axes_of(unstore(spec), node.fn))
        arrays = [axis for axis, leaf in zip(axes, leaves, strict=True) if _is_array(leaf)]
        return jax.tree.unflatten(jax.tree.structure(node), arrays)

    def fill(axis: Any, part: Any) -> PyTree:
        return jax.tree.map(lambda leaf: axis if _is_array(leaf) else None, part)

    return jax.tree.map(fill, spec, node, is_leaf=lambda leaf: leaf is None)


def default_axes(problem: Problem) -> Problem:
    """One `data` per lane, and one `noise_std` where it is shaped like them; everything else shared."""
    per_lane = problem.noise_std is not None and jnp.shape(problem.noise_std) == jnp.shape(problem.data)
    return Problem(None, 0, None, 0 if per_lane else None)


def split_lanes(problem: Problem, solver: Any, axes: Any, num: int) -> tuple[PyTree, PyTree]:
    """Splits `(problem, solver)` into the leaves that differ from lane to lane, lanes in front, and the shared rest.

    Args:
        problem: see `solve_batch`.
        solver: see `solve_batch`.
        axes: see `solve_batch`.
        num: how many lanes there are.

    Raises:
        ValueError: if `axes` does not fit, or a leaf has another number of lanes.
    """
    axes = default_axes(problem) if axes is None else axes
    for_problem, for_solver = axes if isinstance(axes, tuple) else (axes, None)
    if not isinstance(for_problem, Problem):
        raise ValueError(
            f"axes is {axes!r}; expected a Problem of axes such as Problem(None, 0, prior=GaussianPrior(None, 0)), or "
            "a pair of one for the problem and one for the solver."
        )
    pairs = [(name, getattr(problem, name), getattr(for_problem, name)) for name in _FIELDS]
    pairs.append(("the solver", solver, for_solver))
    chosen = []
    for name, node, spec in pairs:
        chosen += jax.tree.structure(node).flatten_up_to(_fitted(spec, node, name))
    leaves, treedef = jax.tree.flatten((problem, solver))
    lanes = [None if axis is None else _in_front(leaf, axis, num) for leaf, axis in zip(leaves, chosen, strict=True)]
    shared = [leaf if axis is None else None for leaf, axis in zip(leaves, chosen, strict=True)]
    return jax.tree.unflatten(treedef, lanes), jax.tree.unflatten(treedef, shared)


def shares_maps(part: PyTree) -> bool:
    """Whether all maps are shared, so that `prepare` can be applied once for all."""
    problem, solver = part
    return not jax.tree.leaves((problem.forward, problem.project, problem.prior, solver))


def _fitted(spec: Any, node: Any, name: str) -> PyTree:
    try:
        return _axes_of(spec, node)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"axes for {name} does not fit it: {error}\nExpected None, an axis, or a copy of {name} with an axis or "
            "None in place of each array."
        ) from error


def _in_front(leaf: Any, axis: int, num: int) -> Any:
    shape = jnp.shape(leaf)
    if not -len(shape) <= axis < len(shape) or shape[axis] != num:
        raise ValueError(f"axes: an array of shape {shape} has no axis {axis} of {num} lanes; expected one per start.")
    return jnp.moveaxis(leaf, axis, 0)
