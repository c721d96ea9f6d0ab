"""The weight `alpha` of the regulariser by the discrepancy principle: `B(data, W u_alpha + b) = (safety * delta)^2`."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Scalar

from .._problem import Problem
from ..maps import prepare
from ..solvers._check import as_floating, check_arguments, check_problem, concrete
from ._activations import AbstractActivation, AbstractEntrywise
from ._perceptron import admit, as_perceptron
from ._primal_dual import AbstractPrimalDual
from ._theory import alpha_from_noise, source_element

FACTORS = 1.5, 10.0
"""By at least and at most which `alpha` changes until the principle is bracketed."""


class AlphaChoice(eqx.Module):
    """What `alpha_by_discrepancy` returns.

    Attributes:
        alpha: the weight.
        value: the minimiser `u_alpha`.
        misfit: `B(data, W u_alpha + b)`.
        target: what it should be, `(safety * noise_level)^2`.
        success: whether they agree to `rtol`; not with data that are not finite.
        num_solves, num_steps: minimisations, and steps of all of them.
    """

    alpha: Scalar
    value: Float[Array, "*u"]
    misfit: Scalar
    target: Scalar
    success: Bool[Array, ""]
    num_solves: Int[Array, ""]
    num_steps: Int[Array, ""]


def expected_noise_level(activation: AbstractActivation, data: Float[Array, "*y"], noise_std: Any) -> Scalar:
    """`delta` with `B(data, z)` about `delta^2` at a true `z` that is not known: an estimate of `bregman_noise_level`.

    To second order `B(data, z) = phi''(data) (data - sigma(z))^2 / 2` for each output, so that `delta^2` is half the
    sum of `phi''(data) noise_std^2`: over the outputs inside of the range of the activation, as those at its end
    (the inactive ones of a ReLU), once thresholded, carry no noise.

    Args:
        activation: an entrywise one.
        data: the observation; it is made admissible first.
        noise_std: scalar or shaped like `data`.

    Raises:
        ValueError: the activation acts on vectors.
    """
    if not isinstance(activation, AbstractEntrywise):
        raise ValueError(
            f"no noise level is known for {type(activation).__name__}, which acts on vectors: pass `noise_level`, an "
            "estimate of `sqrt(B(data, z))` at the true z, for example from simulated data."
        )
    data = admit(activation, data, noise_std)
    lower, upper = activation.bounds()
    inside = (data > lower) & (data < upper)
    _, curvature = jax.jvp(activation.preimage, (data,), (jnp.ones_like(data),))
    std = jnp.broadcast_to(jnp.asarray(noise_std, data.dtype), data.shape)
    return jnp.sqrt(0.5 * jnp.sum(jnp.where(inside, curvature * std**2, 0)))


def alpha_by_discrepancy(
    problem: Problem,
    solver: Any,
    x0: Float[Array, "*u"],
    *,
    noise_level: float | Scalar | None = None,
    safety: float | Scalar = 1.0,
    rtol: float | Scalar = 0.05,
    max_solves: int = 20,
    max_steps: int = 1000,
) -> AlphaChoice:
    """Finds `alpha` with `B(data, W u_alpha + b) = (safety * noise_level)^2`, and the minimiser `u_alpha`.

    The left side grows with `alpha`. Starting at `solver.alpha`, the next one is what `alpha_from_noise` says for the
    source element `-p / alpha` of the minimiser, until the solution is bracketed; then it is found by secants of the
    logarithms, kept away from the ends of the bracket. (Where the penalty is a sum of squares, a fixed point of that
    rule satisfies the principle.) Every minimisation starts where the one before ended, dual variables included.
    Composes with `jax.jit` and `jax.vmap`.

    Args:
        problem: of a perceptron.
        solver: `FullSplitting` or `ExplicitPrimalDual`; its `alpha` is the first one tried, its `rtol` the tolerance of
            every minimisation.
        x0: the start.
        noise_level: `delta`; by default `expected_noise_level` of the problem's `noise_std`.
        safety: at least one.
        rtol: of the misfit.
        max_solves: minimisations at most.
        max_steps: steps of each at most.

    Returns:
        An `AlphaChoice`. `success` is false where `max_solves` did not suffice: with a noise level that no `alpha`
        gives, above the misfit of the smoothest `u` or below that of the best fit.

    Raises:
        ValueError: no noise level, or parameters out of range; as for `solve`.

    References:
        V. A. Morozov, Methods for solving incorrectly posed problems, 1984, doi:10.1007/978-1-4612-5280-1. X. Wang,
        M. Benning, A lifted Bregman formulation for the inversion of deep neural networks, 2023, arXiv:2303.01965.
    """
    if not isinstance(solver, AbstractPrimalDual):
        raise ValueError(f"solver is a {type(solver).__name__}; expected `FullSplitting` or `ExplicitPrimalDual`.")
    check_arguments(problem, solver, max_steps=max_steps, history=None, adjoint="forward")
    if solver.stop.discrepancy is not None:
        raise ValueError(
            "the solver stops at a discrepancy by itself; expected one that minimises: drop `discrepancy`."
        )
    if noise_level is None and problem.noise_std is None:
        raise ValueError("the noise is not known: write `Problem(..., noise_std=...)`, or pass `noise_level`.")
    if not isinstance(max_solves, int | np.integer) or max_solves < 1:
        raise ValueError(f"max_solves={max_solves!r}; expected an integer of at least 1.")
    for name, value, least in (("noise_level", noise_level, 0), ("rtol", rtol, 0), ("safety", safety, 1)):
        if concrete(value) and not (np.all(np.asarray(value) > 0) and np.all(np.asarray(value) >= least)):
            raise ValueError(f"{name}={value}; expected {'at least 1' if least else 'a positive number'}.")
    x0, data = as_floating(x0, "x0"), as_floating(problem.data, "data")
    problem = Problem(problem.forward, data, problem.project, problem.noise_std, problem.prior)
    numbers = (solver, noise_level, safety, rtol)
    solver, noise_level, safety, rtol = jax.tree.map(
        lambda leaf: jnp.asarray(leaf, x0.dtype) if isinstance(leaf, float) else leaf, numbers
    )
    with jax.default_matmul_precision("highest"):
        return _search(problem, solver, x0, noise_level, safety, rtol, jnp.asarray(max_solves), jnp.asarray(max_steps))


class _Search(eqx.Module):
    """Where the search is; `low` and `high` bracket `log alpha`, at infinity until they are known."""

    trial: Scalar
    solved: Scalar
    low: Scalar
    high: Scalar
    excess_low: Scalar
    excess_high: Scalar
    excess: Scalar
    u: Array
    duals: tuple[Array, Array]
    num_solves: Array
    num_steps: Array


@eqx.filter_jit
def _search(
    problem: Problem,
    solver: AbstractPrimalDual,
    x0: Array,
    noise_level: Any,
    safety: Any,
    rtol: Any,
    max_solves: Any,
    max_steps: Any,
) -> AlphaChoice:
    check_problem(problem, solver, x0)
    problem, solver = prepare(problem), prepare(solver)
    forward = as_perceptron(problem.forward, "alpha_by_discrepancy")
    data = admit(forward.activation, problem.data, problem.noise_std)
    level = expected_noise_level(forward.activation, data, problem.noise_std) if noise_level is None else noise_level
    target = jnp.asarray((safety * level) ** 2, x0.dtype)
    tiny = jnp.finfo(x0.dtype).tiny

    def minimise(alpha: Array, u: Array, duals: tuple[Array, Array]) -> tuple[Any, Any]:
        at = eqx.tree_at(lambda s: (s.alpha, s.duals), solver, (alpha, duals), is_leaf=lambda leaf: leaf is None)

        def going(carry: Any) -> Any:
            done, _ = at.terminate(problem, *carry)
            return ~done & (carry[1].record.num_steps < max_steps)

        return jax.lax.while_loop(going, lambda carry: at.step(problem, *carry), at.init(problem, u, key=None))

    def going(search: _Search) -> Any:
        return ~(jnp.abs(search.excess) <= rtol) & ~jnp.isnan(search.excess) & (search.num_solves < max_solves)

    def turn(search: _Search) -> _Search:
        u, state = minimise(jnp.exp(search.trial), search.u, search.duals)
        misfit = forward.activation.gap(data, state.affine)
        excess = jnp.log(jnp.maximum(misfit, tiny) / jnp.maximum(target, tiny))
        above = excess > 0
        low, excess_low = jnp.where(above, search.low, search.trial), jnp.where(above, search.excess_low, excess)
        high, excess_high = jnp.where(above, search.trial, search.high), jnp.where(above, excess, search.excess_high)
        share = jnp.clip(-excess_low / (excess_high - excess_low), 0.1, 0.9)
        inside = low + share * (high - low)
        source = source_element(forward.activation(state.affine) - data, jnp.exp(search.trial))
        ruled = jnp.log(alpha_from_noise(forward.activation, data, source, jnp.sqrt(target)))
        least, most = (jnp.log(jnp.asarray(factor, x0.dtype)) for factor in FACTORS)
        change = jnp.clip(jnp.where(above, -1, 1) * (ruled - search.trial), least, most)
        outside = search.trial + jnp.where(above, -1, 1) * jnp.where(jnp.isnan(change), most, change)
        return _Search(
            trial=jnp.where(jnp.isfinite(low) & jnp.isfinite(high), inside, outside),
            solved=search.trial,
            low=low,
            high=high,
            excess_low=excess_low,
            excess_high=excess_high,
            excess=excess,
            u=u,
            duals=(state.dual, state.regulariser_dual),
            num_solves=search.num_solves + 1,
            num_steps=search.num_steps + state.record.num_steps,
        )

    first = jnp.log(jnp.asarray(solver.alpha, x0.dtype))
    inf, zero = jnp.asarray(jnp.inf, x0.dtype), jnp.zeros((), jnp.int32)
    duals = jnp.zeros_like(data), jnp.zeros_like(solver.regulariser.analysis(x0))
    if solver.duals is not None:
        duals = jnp.asarray(solver.duals[0], x0.dtype), jnp.asarray(solver.duals[1], x0.dtype)
    start = _Search(first, first, -inf, inf, -inf, inf, inf, problem.feasible(x0), duals, zero, zero)
    found = jax.lax.while_loop(going, turn, start)
    return AlphaChoice(
        alpha=jnp.exp(found.solved),
        value=found.u,
        misfit=target * jnp.exp(found.excess),
        target=target,
        success=jnp.abs(found.excess) <= rtol,
        num_solves=found.num_solves,
        num_steps=found.num_steps,
    )
