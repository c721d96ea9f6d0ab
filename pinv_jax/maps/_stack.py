"""Several outputs of one unknown with an exact joint pseudo-inverse: `Stack` (linear heads), `Parallel` (slices)."""

import abc
import itertools
import math
from collections.abc import Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float

from ._base import AbstractMap, AbstractSurjection
from ._linear import LinearMap, LinearSurjection


class AbstractHeads(AbstractSurjection[Any]):
    """Heads on an optional invertible trunk; their outputs are one flat vector.

    Implementing heads:

    - `split_flat(v) -> (y, z)` and its inverse `merge_flat(y, z)`, `v` being the flat output of the trunk;
    - the fields `trunk` (or `None`), `shape` and `output_shapes`: of `x`, where there is no trunk, and of each head;
    - `section`, as for any surjection.
    """

    trunk: eqx.AbstractVar[AbstractSurjection[Any] | None]
    shape: eqx.AbstractVar[tuple[int, ...]]
    output_shapes: eqx.AbstractVar[tuple[tuple[int, ...], ...]]

    @abc.abstractmethod
    def split_flat(self, v: Float[Array, " n"]) -> tuple[Float[Array, " m"], Any]:
        """`v -> (y, z)`, a bijection."""

    @abc.abstractmethod
    def merge_flat(self, y: Float[Array, " m"], z: Any) -> Float[Array, " n"]:
        """The inverse of `split_flat`."""

    def split(self, x: Float[Array, "*x"]) -> tuple[Float[Array, " m"], Any]:
        """The outputs of all heads, flat and one after the other, and what completes them."""
        return self.split_flat(jnp.ravel(x if self.trunk is None else self.trunk(x)))

    def merge(self, y: Float[Array, " m"], z: Any) -> Float[Array, "*x"]:
        """The inverse of `split`."""
        v = self.merge_flat(y, z)
        if self.trunk is None:
            return v.reshape(self.shape)
        inner, nothing = _completion(self.trunk)
        return self.trunk.merge(v.reshape(inner.shape), jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), nothing))

    def separate(self, y: Float[Array, " m"]) -> tuple[Float[Array, "..."], ...]:
        """The output of each head, in its own shape."""
        ends = list(itertools.accumulate(map(math.prod, self.output_shapes)))
        parts = jnp.split(y, ends[:-1])
        return tuple(part.reshape(shape) for part, shape in zip(parts, self.output_shapes, strict=True))

    def join(self, *ys: Float[Array, "..."]) -> Float[Array, " m"]:
        """The `y` whose heads are `ys`: the inverse of `separate`."""
        shapes = tuple(y.shape for y in ys)
        if shapes != self.output_shapes:
            raise ValueError(f"join expected one array per head, of shapes {self.output_shapes}, got {shapes}.")
        return jnp.concatenate([jnp.ravel(y) for y in ys])


class Stack(AbstractHeads):
    """`y = (A_1 v, ..., A_k v)` with `v = trunk(x)`: linear heads whose rows are linearly independent together.

    The joint map is one linear surjection of `v`, so `pinv` meets all heads at once, exactly; without a trunk it is
    the Moore-Penrose pseudo-inverse of the stacked matrix. `z` are coordinates in the common null space. The heads are
    held as one dense matrix, which is data: no gradient reaches it. For large ones write one `OperatorSurjection` of
    the function that returns all outputs.

    Nonlinear surjections of one and the same `v` have no joint closed form. Those of disjoint parts of `v` have:
    `Parallel`; for all others there is the solver `pinv_jax.solvers.CyclicProjection`.

    Args:
        heads: matrices of shape `(m_i, n)`, `lineax` operators, `LinearMap` or `LinearSurjection`.
        trunk: an invertible map (a surjection that loses nothing) with `n` outputs of any shape; by default none,
            and `x` is shaped as the first head says.

    Raises:
        ValueError: a head is not linear or has another number of inputs, the trunk is not invertible, or the rows
            of all heads together are linearly dependent.
    """

    trunk: AbstractSurjection[Any] | None
    joint: LinearSurjection
    shape: tuple[int, ...] = eqx.field(static=True)
    output_shapes: tuple[tuple[int, ...], ...] = eqx.field(static=True)

    def __init__(self, heads: Sequence[Any], trunk: AbstractMap | None = None):
        parts = [_linear_head(index, head) for index, head in enumerate(heads)]
        if not parts:
            raise ValueError("Stack expected at least one linear head, got none.")
        matrices, in_shapes, self.output_shapes = (tuple(column) for column in zip(*parts, strict=True))
        self.trunk, inner = _checked_trunk("Stack", trunk)
        self.shape = in_shapes[0] if inner is None else inner.shape
        sizes = [matrix.shape[1] for matrix in matrices]
        if set(sizes) != {math.prod(self.shape)}:
            raise ValueError(
                f"Stack expected every head to take the {math.prod(self.shape)} numbers of shape {self.shape}, got "
                f"heads of {sizes} inputs."
            )
        joint = jnp.concatenate(matrices)
        if not isinstance(joint, Tracer):
            _check_rank(matrices, joint)
        self.joint = LinearSurjection(joint)

    def split_flat(self, v: Float[Array, " n"]) -> tuple[Float[Array, " m"], Float[Array, " k"]]:
        """`(A v, N^T v)` for the stacked matrix `A`."""
        return self.joint.split(v)

    def merge_flat(self, y: Float[Array, " m"], z: Float[Array, " k"]) -> Float[Array, " n"]:
        """`A^+ y + N z`."""
        return self.joint.merge(y, z)

    def section(self, y: Float[Array, " m"]) -> Float[Array, " k"]:
        """Zeros: the common null-space component of least norm."""
        return self.joint.section(y)

    def in_structure(self) -> jax.ShapeDtypeStruct:
        """Shape and dtype of `x`."""
        return jax.ShapeDtypeStruct(self.shape, self.joint.matrix.dtype) if self.trunk is None else _input(self.trunk)


class Parallel(AbstractHeads):
    """`y = (f_1(v_1), ..., f_k(v_k))`, where `v_1, ..., v_k` are consecutive slices of `v = trunk(x)`, flat.

    The heads may be as nonlinear as they like: they share no coordinate, so the joint completion is theirs side by
    side, and so is `pinv`. `z` is the tuple of their `z`. A trunk that mixes its coordinates makes every head depend on
    all of `x`. Surjections of overlapping coordinates have no joint closed form: see `Stack` for linear ones, and the
    solver `pinv_jax.solvers.CyclicProjection`.

    Args:
        heads: surjections; head `i` takes the next `n_i` numbers, reshaped to what it expects.
        trunk: an invertible map with `n_1 + ... + n_k` outputs of any shape; by default none, and `x` is flat.

    Raises:
        ValueError: a head is not a surjection, the trunk is not invertible, or sizes or dtypes do not fit.
    """

    trunk: AbstractSurjection[Any] | None
    heads: tuple[AbstractSurjection[Any], ...]
    shape: tuple[int, ...] = eqx.field(static=True)
    output_shapes: tuple[tuple[int, ...], ...] = eqx.field(static=True)

    def __init__(self, heads: Sequence[AbstractMap], trunk: AbstractMap | None = None):
        kept = []
        for index, head in enumerate(heads):
            if not isinstance(head, AbstractSurjection):
                raise ValueError(
                    f"Parallel expected an AbstractSurjection as head {index}, got {type(head).__name__}, which has no "
                    "exact inverse."
                )
            kept.append(head)
        if not kept:
            raise ValueError("Parallel expected at least one head, got none.")
        self.heads = tuple(kept)
        structures = [head.in_structure() for head in self.heads]
        self.trunk, inner = _checked_trunk("Parallel", trunk)
        total = sum(structure.size for structure in structures)
        self.shape = (total,) if inner is None else inner.shape
        dtypes = {structure.dtype for structure in structures} | ({inner.dtype} if inner else set())
        if math.prod(self.shape) != total or len(dtypes) > 1:
            raise ValueError(
                f"Parallel expected heads of one dtype that take the {math.prod(self.shape)} outputs of the trunk "
                f"together, got {[structure.size for structure in structures]} of {sorted(map(str, dtypes))}."
            )
        self.output_shapes = tuple(head.out_structure().shape for head in self.heads)

    def split_flat(self, v: Float[Array, " n"]) -> tuple[Float[Array, " m"], tuple[Any, ...]]:
        """Every head splits its own slice."""
        structures = [head.in_structure() for head in self.heads]
        ends = list(itertools.accumulate(structure.size for structure in structures))
        slices = [part.reshape(s.shape) for part, s in zip(jnp.split(v, ends[:-1]), structures, strict=True)]
        ys, zs = zip(*(head.split(part) for head, part in zip(self.heads, slices, strict=True)), strict=True)
        return self.join(*ys), zs

    def merge_flat(self, y: Float[Array, " m"], z: tuple[Any, ...]) -> Float[Array, " n"]:
        """Every head merges its own part."""
        parts = zip(self.heads, self.separate(y), z, strict=True)
        return jnp.concatenate([jnp.ravel(head.merge(part, rest)) for head, part, rest in parts])

    def section(self, y: Float[Array, " m"]) -> tuple[Any, ...]:
        """What every head picks."""
        return tuple(head.section(part) for head, part in zip(self.heads, self.separate(y), strict=True))

    def in_structure(self) -> jax.ShapeDtypeStruct:
        """Shape and dtype of `x`."""
        return (
            jax.ShapeDtypeStruct(self.shape, self.heads[0].in_structure().dtype)
            if self.trunk is None
            else _input(self.trunk)
        )


def _input(trunk: AbstractMap) -> jax.ShapeDtypeStruct:
    return trunk.in_structure()


def _completion(trunk: AbstractSurjection[Any]) -> tuple[jax.ShapeDtypeStruct, Any]:
    return jax.eval_shape(trunk.split, trunk.in_structure())


def _checked_trunk(
    name: str, trunk: AbstractMap | None
) -> tuple[AbstractSurjection[Any] | None, jax.ShapeDtypeStruct | None]:
    """The trunk and the structure of its output."""
    if trunk is None:
        return None, None
    if not isinstance(trunk, AbstractSurjection):
        raise ValueError(
            f"{name} expected an invertible trunk, got {type(trunk).__name__}, which has no exact inverse."
        )
    inner, z = _completion(trunk)
    lost = sum(leaf.size for leaf in jax.tree.leaves(z))
    if lost:
        raise ValueError(
            f"{name} expected an invertible trunk, with as many outputs as inputs; {type(trunk).__name__} drops {lost} "
            "numbers into z. Put such layers into the heads, as SurjectiveChain([...])."
        )
    return trunk, inner


def _linear_head(index: int, head: Any) -> tuple[Array, tuple[int, ...], tuple[int, ...]]:
    """Matrix, shape of the input, shape of the output."""
    if isinstance(head, LinearSurjection):
        head = head.matrix
    if isinstance(head, jax.Array | np.ndarray) and head.ndim == 2:
        return jnp.asarray(head), head.shape[1:], head.shape[:1]
    if isinstance(head, lx.AbstractLinearOperator):
        head = LinearMap(head)
    if isinstance(head, LinearMap):
        return head.operator.as_matrix(), head.in_structure().shape, head.out_structure().shape
    raise ValueError(
        f"Stack expected a matrix, a lineax operator, a LinearMap or a LinearSurjection as head {index}, got "
        f"{type(head).__name__}. Nonlinear heads on disjoint slices are a Parallel; for nonlinear maps of the same x "
        "use the solver pinv_jax.solvers.CyclicProjection."
    )


def _check_rank(matrices: Sequence[Array], joint: Array) -> None:
    rows, rank = joint.shape[0], int(np.linalg.matrix_rank(np.asarray(joint)))
    if rank < rows:
        ranks = [
            int(np.linalg.matrix_rank(np.asarray(jnp.concatenate(matrices[: k + 1])))) for k in range(len(matrices))
        ]
        gains = [
            f"head {k} adds {b - a} of its {len(matrices[k])} rows"
            for k, (a, b) in enumerate(itertools.pairwise([0, *ranks]))
        ]
        raise ValueError(
            f"Stack expected heads whose {rows} rows are linearly independent together, got a joint rank of {rank}: "
            f"{', '.join(gains)}. Drop the rows that repeat others."
        )
