"""What `solve` checks before it traces anything: every message says what was passed, expected, and what to write."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optimistix as optx
from jax.core import Tracer
from jaxtyping import Array

from .._problem import GaussianPrior, Problem
from ..maps import AbstractMap, unstore
from ._base import AbstractSolver
from ._implicit_derivative import Implicit

BATCH_HINT = (
    "One call solves one observation: for a batch use `jax.vmap(lambda y, x0: solve(Problem(f, y), solver, x0))`, "
    "or `solve_batch`."
)


def as_floating(value: Any, name: str) -> Array:
    """The value as a floating-point array; complex and integer values are refused, not converted."""
    if not isinstance(value, jax.Array | np.ndarray | np.generic | float | int | list | tuple):
        raise ValueError(
            f"{name} is a {type(value).__name__}; expected one array. `maps.Ravelled` adapts maps of pytrees."
        )
    array = jnp.asarray(value)
    if jnp.issubdtype(array.dtype, jnp.complexfloating):
        raise ValueError(
            f"{name} is complex ({array.dtype}, shape {array.shape}); solvers work on real arrays. Pass the real view "
            f"`jnp.stack([{name}.real, {name}.imag])` and let the forward map rebuild the complex array from it."
        )
    if not jnp.issubdtype(array.dtype, jnp.floating):
        raise ValueError(f"{name} has dtype {array.dtype}; expected floating point: write `{name}.astype(float)`.")
    return array


def concrete(value: Any) -> bool:
    """Whether a number can be looked at now."""
    return value is not None and not isinstance(value, Tracer)


def check_arguments(problem: Problem, solver: Any, *, max_steps: Any, history: Any, adjoint: Any) -> None:
    """Checks the options that do not depend on shapes."""
    if not isinstance(problem, Problem):
        raise ValueError(f"expected a Problem, got {type(problem).__name__}: write `Problem(forward, data)`.")
    if problem.forward is None or not callable(problem.forward):
        raise ValueError("the problem has no forward map: write `Problem(forward, data)` with a callable `forward`.")
    if not isinstance(max_steps, int | np.integer) or max_steps < 0:
        raise ValueError(f"max_steps={max_steps!r}; expected an integer of at least 0.")
    if history is not None and (not isinstance(history, int) or history < 1):
        raise ValueError(f"history={history!r}; expected None or the number of slots to keep, at least 1.")
    if not isinstance(adjoint, Implicit) and adjoint not in ("forward", "checkpointed", "implicit"):
        raise ValueError(f"adjoint={adjoint!r}; expected 'forward', 'checkpointed', 'implicit' or `Implicit(...)`.")
    if concrete(problem.noise_std) and np.iscomplexobj(problem.noise_std):
        raise ValueError("noise_std is complex; expected real standard deviations above zero.")
    if concrete(problem.noise_std) and not np.all(np.asarray(problem.noise_std) > 0):
        raise ValueError("noise_std has entries that are not positive; expected standard deviations above zero.")
    if isinstance(solver, AbstractSolver):
        stop = solver.stop
        for name in ("atol", "discrepancy"):
            value = getattr(stop, name)
            if concrete(value) and not np.all(np.asarray(value) > 0):
                raise ValueError(f"{name}={value}; expected a positive number.")
        if concrete(stop.rtol) and not np.all(np.asarray(stop.rtol) >= 0):
            raise ValueError(f"rtol={stop.rtol}; expected a number of at least zero.")
        if stop.discrepancy is not None and problem.noise_std is None:
            raise ValueError(
                "discrepancy stops at the noise level, but the problem has none: write `Problem(..., noise_std=...)`, "
                "or stop at a residual with `atol`."
            )
        return
    if not isinstance(solver, optx.AbstractLeastSquaresSolver | optx.AbstractMinimiser):
        raise ValueError(
            f"{type(solver).__name__} is not a solver; expected one of `pinv_jax.solvers` or an optimistix "
            "least-squares solver or minimiser, as an instance."
        )
    if problem.project is not None:
        raise ValueError(
            "optimistix solvers know no projection; use a solver of `pinv_jax.solvers`, or build the constraint into "
            "the forward map by a change of variables, and drop `project`."
        )
    if history is not None:
        raise ValueError("optimistix solvers keep no history; drop `history`, or use a solver of `pinv_jax.solvers`.")


def check_problem(problem: Problem, solver: Any, x0: Array) -> None:
    """Checks shapes and dtypes of one example against each other, without running anything."""
    forward, data = unstore(problem.forward), problem.data
    if isinstance(forward, AbstractMap):
        expected = forward.in_structure().shape
        if x0.shape != expected:
            raise ValueError(
                f"x0 has shape {x0.shape}; the forward map expects {expected}. {_hint(x0.shape, expected)}"
            )
    if data.dtype != x0.dtype:
        raise ValueError(
            f"mixed dtypes: data is {data.dtype}, x0 is {x0.dtype}; write `x0.astype(data.dtype)`, or the reverse."
        )
    prediction = _shape(forward, x0, "forward", "x0")
    if prediction.shape != data.shape:
        raise ValueError(
            f"data has shape {data.shape}; the forward map returns {prediction.shape} for x0 of shape {x0.shape}. "
            f"{_hint(data.shape, prediction.shape)}"
        )
    if prediction.dtype != data.dtype:
        raise ValueError(
            f"mixed dtypes: the forward map returns {prediction.dtype} for x0 of {x0.dtype}, data is {data.dtype}; "
            "convert the parameters of the map, or x0 and data."
        )
    if problem.project is not None:
        projected = _shape(unstore(problem.project), x0, "project", "x0")
        if projected.shape != x0.shape or projected.dtype != x0.dtype:
            raise ValueError(
                f"project returns {projected.dtype}{list(projected.shape)} for {x0.dtype}{list(x0.shape)}; expected "
                "the same shape and dtype."
            )
    if problem.noise_std is not None and jnp.shape(problem.noise_std) not in ((), data.shape):
        shape = jnp.shape(problem.noise_std)
        raise ValueError(f"noise_std has shape {shape}; expected a scalar or {data.shape}, like data.")
    if x0.size == 0 or data.size == 0:
        raise ValueError(f"x0 has shape {x0.shape} and data {data.shape}; expected at least one number in each.")
    if problem.prior is not None:
        check_prior(problem.prior, x0)
    if isinstance(solver, AbstractSolver):
        solver.check(problem, x0)


def check_prior(prior: GaussianPrior, x0: Array) -> None:
    """Checks that a prior is one of something like `x0`."""
    if jnp.shape(prior.mean) != x0.shape:
        raise ValueError(f"the prior mean has shape {jnp.shape(prior.mean)}; expected {x0.shape}, like x0.")
    matrix = prior.inverse_sqrt
    if not callable(matrix) and (jnp.ndim(matrix) != 2 or jnp.shape(matrix)[1] != x0.size):
        raise ValueError(
            f"the inverse_sqrt of the prior has shape {jnp.shape(matrix)}; expected (k, {x0.size}), or a callable."
        )
    dtype = jax.eval_shape(prior.whiten, x0).dtype
    if dtype != x0.dtype:
        raise ValueError(f"mixed dtypes: the prior makes {dtype} of x0, which is {x0.dtype}; convert its arrays.")


def check_inverse(inverse: Any, data: Array, x0: Array) -> None:
    """Checks that a learned inverse takes data to something like `x0`."""
    proposed = _shape(unstore(inverse), data, "the inverse", "data")
    if proposed.shape != x0.shape or proposed.dtype != x0.dtype:
        raise ValueError(
            f"the inverse returns {proposed.dtype}{list(proposed.shape)} for data of {data.dtype}{list(data.shape)}; "
            f"expected {x0.dtype}{list(x0.shape)}, like x0."
        )


def check_batch(data: Array, x0: Array) -> None:
    """Checks the leading axes."""
    if data.ndim == 0 or x0.ndim == 0 or data.shape[0] != x0.shape[0]:
        raise ValueError(
            f"solve_batch needs one leading axis on both: data has shape {data.shape}, x0 {x0.shape}. For one "
            "observation use `solve`; to start all from one point write `jnp.broadcast_to(x0, (batch, *x0.shape))`."
        )
    if data.shape[0] == 0:
        raise ValueError("solve_batch got an empty batch; expected at least one observation.")


def _shape(fn: Any, value: Array, name: str, what: str) -> jax.ShapeDtypeStruct:
    try:
        out = jax.eval_shape(fn, value)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name} cannot be applied to {what} of shape {value.shape}: {error} {BATCH_HINT}") from error
    if not isinstance(out, jax.ShapeDtypeStruct):
        raise ValueError(
            f"{name} returns {jax.tree.structure(out)}; expected one array. `maps.Ravelled` adapts maps of pytrees."
        )
    if jnp.issubdtype(out.dtype, jnp.complexfloating):
        raise ValueError(f"{name} returns {out.dtype}; return its real view, `jnp.stack([y.real, y.imag])`.")
    return out


def _hint(got: tuple[int, ...], expected: tuple[int, ...]) -> str:
    return BATCH_HINT if got[1:] == tuple(expected) else "Reshape it, or adapt the map with `maps.Ravelled`."
