"""Fixed-step time integration `u' = F(t, u)` with diffrax solvers: one `lax.scan`, both derivative modes."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Inexact, Scalar

_Tableau = tuple[list[list[float]], list[float], list[float]]


def integrate(
    vector_field: Callable[..., Any] | diffrax.AbstractTerm,
    u: Inexact[Array, "*u"],
    *,
    solver: diffrax.AbstractSolver,
    final_time: float | Scalar,
    num_steps: int,
    initial_time: float | Scalar = 0.0,
    args: Any = None,
) -> Inexact[Array, "*u"]:
    """The state at `final_time`, after `num_steps` equal steps of a diffrax solver.

    `diffrax.diffeqsolve` supports forward or reverse mode, chosen in advance; a scan over steps supports both, at the
    cost of a hand-written stepper. Explicit Runge-Kutta solvers are stepped from their tableau, stages unrolled:
    their own `step` loops over the stages through a buffer, which costs 4 to 5 times as much (Heun, Tsit5). Other
    solvers are stepped by their own `step`. Reverse mode keeps what every step of a nonlinear vector field needs: for
    long runs, integrate in pieces under `jax.checkpoint`.

    Args:
        vector_field: `F(t, u, args)`, or a diffrax term.
        u: the state at `initial_time`, any shape, real or complex.
        solver: for example `diffrax.Heun()`. The root finder of an implicit solver needs its tolerances; its linear
            solves then are part of the map, and their failure is an error of the whole batch.
        final_time: in the units of `t`.
        num_steps: number of steps.
        initial_time: in the units of `t`.
        args: handed to `vector_field`.

    Returns:
        The state at `final_time`, of the dtype of `u`.

    Raises:
        ValueError: `num_steps` is not positive.

    References:
        P. Kidger, "On Neural Differential Equations", 2021, arXiv:2202.02435.
    """
    if num_steps < 1:
        raise ValueError(f"integrate expected at least one step, got num_steps={num_steps}.")
    term = vector_field if isinstance(vector_field, diffrax.AbstractTerm) else diffrax.ODETerm(vector_field)
    step_size = (final_time - initial_time) / num_steps
    indices = jnp.arange(num_steps)

    def time(index):
        return initial_time + step_size * index.astype(jnp.finfo(u.dtype).dtype)

    tableau = _tableau(solver)
    if tableau is not None and isinstance(term, diffrax.ODETerm):

        def explicit(u, index):
            return _explicit_step(term, tableau, time(index), step_size, u, args), None

        return jax.lax.scan(explicit, u, indices)[0]

    if hasattr(solver, "scan_kind"):  # the one kind of loop over stages that has both derivative modes
        solver = dataclasses.replace(solver, scan_kind="bounded")  # pyright: ignore[reportArgumentType]

    def step(carry, index):
        u, state = carry
        u, _, _, state, _ = solver.step(term, time(index), time(index + 1), u, args, state, False)
        return (u, state), None

    state = solver.init(term, time(indices[0]), time(indices[0] + 1), u, args)
    return jax.lax.scan(step, (u, state), indices)[0][0]


def real_stability_limit(solver: diffrax.AbstractSolver) -> float | None:
    """The largest `step_size * rate` at which an explicit solver does not blow up on `u' = -rate * u`.

    Args:
        solver: a diffrax solver.

    Returns:
        The end of the interval of the negative real axis where `|R(z)| <= 1`, with the stability function
        `R(z) = 1 + z b (1 - z A)^{-1} 1`; `None` for solvers that are not explicit Runge-Kutta methods.
    """
    tableau = _tableau(solver)
    if tableau is None:
        return None
    lower_rows, weights, _ = tableau
    size = len(weights)
    matrix = np.zeros((size, size))
    for index, row in enumerate(lower_rows):
        matrix[index, : len(row)] = row
    coefficients, vector = [1.0], np.ones(size)
    for _ in range(size):
        coefficients.append(float(np.asarray(weights) @ vector))
        vector = matrix @ vector
    z = np.linspace(0.0, 60.0, 600_001)
    outside = np.abs(np.polyval(coefficients[::-1], -z)) > 1.0 + 1e-9
    return float(z[max(int(np.argmax(outside)) - 1, 0)])


def stable_num_steps(
    where: str, solver: diffrax.AbstractSolver, fastest: float, final_time: float, num_steps: int | None
) -> int:
    """`num_steps` if stable; by default the fewest within 90 % of the stability limit, 100 for implicit solvers.

    Args:
        where: which map on which grid, for the message.
        solver: a diffrax solver.
        fastest: a bound on the decay rates of the grid's modes, that of diffusion.
        final_time: how long to integrate.
        num_steps: what the user asked for.

    Raises:
        ValueError: the steps of an explicit solver are too long to be stable; the message names the longest.
    """
    limit = real_stability_limit(solver)
    if limit is None:
        return 100 if num_steps is None else num_steps
    if num_steps is None:
        return math.ceil(fastest * final_time / (0.9 * limit))
    if fastest * final_time > limit * num_steps:
        step = f"{final_time / num_steps:.3g}" if num_steps > 0 else "infinite length"
        raise ValueError(
            f"{where} and {type(solver).__name__} got steps of {step}, which break the diffusive bound and blow up: "
            f"the largest stable step is {limit / fastest:.3g}. Use "
            f"num_steps >= {math.ceil(fastest * final_time / limit)}, or leave num_steps out."
        )
    return num_steps


def _tableau(solver: diffrax.AbstractSolver) -> _Tableau | None:
    """Rows of the matrix A, weights b and nodes c of an explicit Runge-Kutta solver, as Python numbers."""
    if isinstance(solver, diffrax.Euler):
        return [[]], [1.0], [0.0]
    tableau = getattr(solver, "tableau", None)
    if not isinstance(solver, diffrax.AbstractERK) or not isinstance(tableau, diffrax.ButcherTableau):
        return None
    rows = [[], *([float(a) for a in row] for row in tableau.a_lower)]
    return rows, [float(b) for b in tableau.b_sol], [0.0, *(float(c) for c in tableau.c)]


def _explicit_step(
    term: diffrax.ODETerm, tableau: _Tableau, time: Any, step_size: Any, u: Array, args: Any
) -> Inexact[Array, "*u"]:
    """`u + h sum_i b_i k_i` with `k_i = F(t + c_i h, u + h sum_j a_ij k_j)`."""
    rows, weights, nodes = tableau
    slopes = []
    for row, node in zip(rows, nodes, strict=True):
        slopes.append(term.vf(time + node * step_size, u + step_size * _combine(row, slopes), args))
    return (u + step_size * _combine(weights, slopes)).astype(u.dtype)


def _combine(weights: list[float], slopes: list[Array]) -> Any:
    """The weighted sum, without the terms that a tableau lists as zero."""
    return sum(weight * slope for weight, slope in zip(weights, slopes, strict=False) if weight != 0)
