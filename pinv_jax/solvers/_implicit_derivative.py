"""Implicit differentiation of a solve: at a minimiser `grad phi(x, t) = 0`, hence `dx = -H^+ d(grad phi)`."""

from collections.abc import Callable
from typing import Any, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import optimistix as optx
from jaxtyping import Array, Bool, Float, Scalar

from .._problem import GaussianPrior, Problem
from .._solution import Solution
from ..maps import store, unstore
from ._base import AbstractSolver
from ._krylov import pseudo_solve
from ._projections import Box

Policy = Literal["nan", "zero", "unrolled"]
Hessian = Literal["full", "gauss-newton"]


class Implicit(eqx.Module):
    """How `solve(..., adjoint=Implicit(...))` differentiates; `adjoint="implicit"` is `Implicit()`.

    The derivative is that of the minimiser, not of the steps that led there: `dx = -H^+ d(grad phi)` with `phi` the
    objective, prior and noise weights included, and `H` its Hessian in `x`, which is only ever applied. Forward and
    reverse mode, of any order; a gradient costs about as many Hessian products as unknowns are determined. Variables
    that a `Box` holds follow their bound, and no other projection is known here. `value`, `stats.residual_rms` and
    `stats.objective` have derivatives, `history` has none.

    Only a certified lane gets this derivative. With `p` the Gauss-Newton step from `x`, which estimates the way to
    the stationary point, it is certified if `|p| <= tolerance (|x| + |x - x0|)`, and if no variable might reach or
    leave a bound on that way. What is then returned is the derivative for the nearby observation, `J p` away, for
    which `x` is stationary. A solve that stopped at the noise level, or that ran out of steps, is not stationary: its
    implicit derivative is wrong, in the tests by more than five times its size, and is not certified.

    Where `H` is singular, minimisers are not isolated, and the steps choose among them. The derivative is then the one
    of least norm: that of the nearest minimiser. It is the derivative of the steps too if `f` is linear and they stay
    in the row space of `J`, as those of Gauss-Newton, Levenberg-Marquardt and gradient descent do; otherwise use
    `"checkpointed"`. So do derivatives in `x0` and in the solver (a learned inverse), which say nothing at an isolated
    minimiser and everything elsewhere: here they are refused; write `jax.lax.stop_gradient(x0)`.

    Args:
        uncertified: what a lane gets that is not certified: NaN; zero, so that the others of a sum count; or the
            derivative of its steps, `"unrolled"`, in reverse mode only and at the price of `"checkpointed"` for all.
            Wherever the linear system is not solved, or rounding may be a tenth of the solution, there is NaN.
        hessian: `"gauss-newton"` leaves second derivatives of `f` out of `H`: exact where the residual vanishes, and
            wrong in proportion to it elsewhere.
        inverse: a learned inverse `y -> x` as preconditioner: with `G` its Jacobian at `f(x)`, `G G'`, weighted by the
            noise, is about the inverse of `H`. Worth it from some tens of unknowns on. Where `H` is singular the norm
            that is least becomes the one of this metric.
        tolerance: see above; the relative error of the derivative is of this size at most, times how strongly `f`
            bends.
        rcond: curvature below `rcond` times the largest counts as none: regularises. By default only what is lost in
            rounding counts as none, and nothing where there is a prior; small curvature that rounding makes doubtful
            gives NaN, so that in float32 condition numbers of `H` end at about 1e5.
        rtol: of the linear systems; by default the rounding unit to the power 2/3.
        max_steps: products with `H` at most, for one linear system; each keeps one vector shaped like `x`.

    References:
        M. Blondel, Q. Berthet, M. Cuturi, R. Frostig, S. Hoyer, F. Llinares-Lopez, F. Pedregosa, J.-P. Vert, Efficient
        and Modular Implicit Differentiation, 2022, arXiv:2105.15183.
        The certificate, and the Hessian at the nearby observation, are ours.
    """

    uncertified: Policy = eqx.field(static=True)
    hessian: Hessian = eqx.field(static=True)
    inverse: Any
    tolerance: Any
    rcond: Any
    rtol: Any
    max_steps: int = eqx.field(static=True)

    def __init__(
        self,
        uncertified: Policy = "nan",
        *,
        hessian: Hessian = "full",
        inverse: Any = None,
        tolerance: Any = 1e-3,
        rcond: Any = None,
        rtol: Any = None,
        max_steps: int = 100,
    ):
        if uncertified not in ("nan", "zero", "unrolled"):
            raise ValueError(f"uncertified={uncertified!r} is unknown; use 'nan', 'zero' or 'unrolled'.")
        if hessian not in ("full", "gauss-newton"):
            raise ValueError(f"hessian={hessian!r} is unknown; use 'full' or 'gauss-newton'.")
        if max_steps < 1:
            raise ValueError(f"max_steps={max_steps}; expected at least one product with the Hessian.")
        self.uncertified = uncertified
        self.hessian = hessian
        self.inverse = store(inverse)
        self.tolerance = tolerance
        self.rcond = rcond
        self.rtol = rtol
        self.max_steps = max_steps

    def check(self, problem: Problem, solver: Any) -> None:
        """Raises a `ValueError` where a minimiser of the objective is not what the solver returns."""
        known = isinstance(solver, optx.AbstractLeastSquaresSolver | optx.AbstractMinimiser)
        if not known and not (isinstance(solver, AbstractSolver) and solver.minimises_objective):
            raise ValueError(
                f"adjoint='implicit' differentiates minimisers of the objective; {type(solver).__name__} returns "
                "another point. Use adjoint='checkpointed'."
            )
        project = unstore(problem.project)
        if project is not None and not isinstance(project, Box):
            raise ValueError(
                f"adjoint='implicit' knows one projection, `solvers.Box(lower, upper)`, and got {project!r}. Use a "
                "Box, or adjoint='checkpointed'."
            )


def unrolls(adjoint: Any) -> bool:
    """Whether a solve with this `adjoint` may be differentiated through its steps, in reverse mode."""
    return adjoint == "checkpointed" or (isinstance(adjoint, Implicit) and adjoint.uncertified == "unrolled")


class Certificate(eqx.Module):
    """What is known of a lane before it is differentiated.

    Attributes:
        certified: whether its implicit derivative may be used.
        shift: `J p`, which makes the point stationary when it is added to the misfit.
        at_lower, at_upper: the variables that a bound holds.
    """

    certified: Bool[Array, ""]
    shift: Float[Array, " k"]
    at_lower: Bool[Array, "*x"]
    at_upper: Bool[Array, "*x"]

    def free(self, v: Float[Array, "*x"]) -> Float[Array, "*x"]:
        """`v`, zero where a variable is held."""
        return jnp.where(self.at_lower | self.at_upper, 0.0, v)


def differentiate(
    run: Callable[[Problem, Any, Array], Solution],
    problem: Problem,
    solver: Any,
    x0: Float[Array, "*x"],
    options: Implicit,
    precision: str,
) -> Solution:
    """`run(problem, solver, x0)` with the implicit derivative.

    Args:
        run: the solve, given the problem, the solver and the start.
        problem: see `solve`.
        solver: see `solve`.
        x0: see `solve`.
        options: how.
        precision: see `solve`.
    """
    options.check(problem, solver)
    problem = _explicit(problem, x0)
    x0, solver = _constant((x0, solver))
    unrolled = options.uncertified == "unrolled"
    solution = run(problem if unrolled else _detached(problem), solver, x0)
    if not unrolled:
        solution = _constant(solution)  # for what the solver closes over
    stats = solution.stats
    found = (solution.value, stats.residual_rms, stats.objective)
    value, rms, objective = _attach(problem, found, x0, options, precision)
    return eqx.tree_at(lambda s: (s.value, s.stats.residual_rms, s.stats.objective), solution, (value, rms, objective))


def _explicit(problem: Problem, x: Float[Array, "*x"]) -> Problem:
    """The problem with everything that its functions close over as leaves: no derivative may be lost in a closure."""
    forward = eqx.filter_closure_convert(unstore(problem.forward), x)
    prior = problem.prior
    if prior is not None and callable(prior.inverse_sqrt):
        whiten = eqx.filter_closure_convert(unstore(prior.inverse_sqrt), x - prior.mean)
        prior = GaussianPrior(prior.mean, whiten)
    return Problem(forward, problem.data, problem.project, problem.noise_std, prior)


def _constant(tree: Any) -> Any:
    """`tree`, which refuses to be differentiated."""
    arrays, rest = eqx.partition(tree, eqx.is_array)
    return eqx.combine(_refuse(arrays), rest)


@jax.custom_jvp
def _refuse(arrays: Any) -> Any:
    return arrays


@_refuse.defjvp
def _refuse_jvp(primals: Any, tangents: Any) -> Any:
    raise ValueError(
        "adjoint='implicit' has no derivative in x0 or in the solver (such as a learned inverse): an isolated "
        "minimiser does not depend on them, another one does in a way that only the steps know. Use "
        "adjoint='checkpointed', or `jax.lax.stop_gradient`."
    )


def _detached(tree: Any) -> Any:
    return jax.tree.map(lambda leaf: jax.lax.stop_gradient(leaf) if eqx.is_inexact_array(leaf) else leaf, tree)


@eqx.filter_custom_jvp
def _attach(problem: Problem, found: Any, x0: Any, options: Implicit, precision: str) -> Any:
    """`found = (x, residual_rms, objective)`, with the implicit derivative in `problem`."""
    del problem, x0, options, precision
    return found


@_attach.def_jvp
def _attach_jvp(primals: Any, tangents: Any) -> Any:
    problem, _, x0, options, precision = primals
    t_problem, t_found = tangents[:2]
    here = _attach(*primals)  # once more, for derivatives of higher order
    x, rms, _ = here
    with jax.default_matmul_precision(precision):
        certificate = certify(_detached(problem), _detached(x), _detached(x0), options)
        t_x = _tangent(problem, t_problem, x, x0, certificate, options)
        if options.uncertified == "unrolled":
            steps = jnp.zeros_like(x) if t_found[0] is None else t_found[0]
            t_x = jnp.where(certificate.certified, t_x, steps)

        def measures(x: Array, problem: Problem) -> Any:
            prediction = problem.forward(x)
            return jnp.mean((prediction - problem.data) ** 2), problem.merit(x, prediction)

        t_square, t_objective = _push(measures, (x, problem), (t_x, t_problem))
    return here, (t_x, 0.5 * t_square / jnp.where(rms > 0, rms, 1.0), t_objective)


def certify(problem: Problem, x: Float[Array, "*x"], x0: Float[Array, "*x"], options: Implicit) -> Certificate:
    """Whether `x` is a stationary point of the problem, to the tolerance of `options`; see `Implicit`."""
    misfit, jvp = problem.misfit_and_tangents(x)
    transpose = jax.linear_transpose(jvp, x)
    size = jnp.size(problem.data)
    gradient = transpose(misfit)[0] / size
    lower, upper = _bounds(problem, x)
    on_lower, on_upper = x <= lower, x >= upper
    fixed = on_lower & on_upper
    held = (on_lower & (gradient > 0)) | (on_upper & (gradient < 0))
    certificate = Certificate(jnp.asarray(True), misfit, (held & on_lower) | fixed, held & on_upper & ~fixed)

    def normal(v: Float[Array, "*x"]) -> Float[Array, "*x"]:
        return transpose(jvp(v))[0] / size

    step, _, solved = _solve(normal, -gradient, problem, x, certificate, options)
    scale = jnp.linalg.norm(x.ravel()) + jnp.linalg.norm((x - x0).ravel())
    certified = solved & (jnp.linalg.norm(step.ravel()) <= options.tolerance * scale)
    if problem.project is not None:
        rounding = 10 * jnp.finfo(x.dtype).eps
        # A held variable must stay held on the way to the stationary point, whatever rounding does to its multiplier.
        change = 2 * jnp.abs(normal(step)) + rounding * jnp.max(jnp.abs(normal(jnp.abs(x) + jnp.abs(x - x0))))
        loose = held & (jnp.abs(gradient) <= change)
        ahead = x + step
        crosses = ~held & ((ahead < lower) | (ahead > upper))
        kink = ~held & (on_lower | on_upper) & (jnp.abs(step) <= rounding * scale)
        certified = certified & ~jnp.any((loose | crosses | kink) & ~fixed)
    shift = jnp.where(certified, jvp(step), 0.0)
    return Certificate(certified, shift, certificate.at_lower, certificate.at_upper)


def _push(fn: Callable[..., Any], primals: Any, tangents: Any) -> Any:
    """The tangent of `fn(*primals)`, where `None` stands for no tangent."""
    out, tangent = eqx.filter_jvp(fn, primals, tangents)
    return jax.tree.map(lambda t, o: jnp.zeros_like(o) if t is None else t, tangent, out, is_leaf=lambda t: t is None)


def _bounds(problem: Problem, x: Float[Array, "*x"]) -> tuple[Float[Array, "*x"], Float[Array, "*x"]]:
    box: Any = Box(-jnp.inf, jnp.inf) if problem.project is None else unstore(problem.project)
    lower, upper = (jnp.broadcast_to(jnp.asarray(bound, x.dtype), x.shape) for bound in (box.lower, box.upper))
    return lower, upper


def _solve(
    matvec: Callable[..., Any],
    right: Float[Array, "*x"],
    problem: Problem,
    x: Float[Array, "*x"],
    certificate: Certificate,
    options: Implicit,
) -> tuple[Float[Array, "*x"], Scalar, Bool[Array, ""]]:
    """The least-norm solution in the free variables; see `pseudo_solve`."""
    eps = float(jnp.finfo(x.dtype).eps)

    def flat(v: Float[Array, " n"]) -> Float[Array, " n"]:
        return certificate.free(matvec(certificate.free(v.reshape(x.shape)))).ravel()

    b = certificate.free(right).ravel()
    # With a prior every direction is meant to be determined, however little by the data.
    none = 0.0 if problem.prior is not None else 10 * eps * x.size**0.5
    solution, doubt, solved = pseudo_solve(
        flat,
        b,
        max_steps=options.max_steps,
        rtol=eps ** (2 / 3) if options.rtol is None else options.rtol,
        rcond=none if options.rcond is None else options.rcond,
        precondition=_preconditioner(flat, b, problem, x, certificate, options),
    )
    return solution.reshape(x.shape), doubt, solved


def _preconditioner(
    matvec: Callable[..., Any],
    b: Float[Array, " n"],
    problem: Problem,
    x: Float[Array, "*x"],
    certificate: Certificate,
    options: Implicit,
) -> Callable[..., Any] | None:
    """`v -> G S G' v + mu v` with `G` the Jacobian of the learned inverse and `S` the covariance of the noise."""
    if options.inverse is None:
        return None
    prediction = jax.lax.stop_gradient(problem.forward(x))
    _, push = jax.linearize(options.inverse, prediction)
    pull = jax.linear_transpose(push, prediction)
    std = jnp.ones((), x.dtype) if problem.noise_std is None else jnp.asarray(problem.noise_std, x.dtype)
    variance = jnp.broadcast_to(std**2, prediction.shape) * prediction.size
    # The directions that the inverse knows nothing of are scaled by the curvature along b.
    curvature = b @ matvec(b)
    rest = jnp.where(curvature > 0, b @ b / jnp.where(curvature > 0, curvature, 1.0), 1.0)

    def smooth(v: Float[Array, " n"]) -> Float[Array, " n"]:
        inner = push(variance * pull(certificate.free(v.reshape(x.shape)))[0])
        return certificate.free(inner).ravel() + rest * v

    return smooth


def _tangent(
    problem: Problem,
    t_problem: Any,
    x: Float[Array, "*x"],
    x0: Float[Array, "*x"],
    certificate: Certificate,
    options: Implicit,
) -> Float[Array, "*x"]:
    """`dx`; where the lane is not certified NaN or zero."""
    certified, size = certificate.certified, jnp.size(problem.data)
    # A lane that is not finite would spoil the derivative in parameters that it shares with others: 0 times NaN.
    start = jnp.where(jnp.isfinite(x0), x0, 0.0)
    x = jnp.where(certified, x, start)
    problem = eqx.tree_at(lambda p: p.data, problem, jnp.where(certified, problem.data, 0.0))
    if problem.noise_std is not None:
        std = jnp.asarray(problem.noise_std, x.dtype)
        problem = eqx.tree_at(lambda p: p.noise_std, problem, jnp.where(certified, std, 1.0))
    factor = jnp.where(certified, 1.0, jnp.nan if options.uncertified == "nan" else 0.0).astype(x.dtype)

    def energy(x: Float[Array, "*x"], problem: Problem) -> Scalar:
        return 0.5 * jnp.sum((problem.misfit(x, problem.forward(x)) + certificate.shift) ** 2) / size

    slope = jax.grad(energy)

    def held(problem: Problem) -> Float[Array, "*x"]:
        lower, upper = _bounds(problem, x)
        return jnp.where(certificate.at_lower, lower, jnp.where(certificate.at_upper, upper, 0.0))

    follows = _push(held, (problem,), (t_problem,))
    right = _push(slope, (x, problem), (follows, t_problem))
    if options.hessian == "full":
        _, hvp = jax.linearize(lambda v: slope(v, problem), x)
    else:
        _, jvp = problem.misfit_and_tangents(x)
        transpose = jax.linear_transpose(jvp, x)
        hvp = lambda v: transpose(jvp(v))[0] / size

    def matvec(v: Float[Array, "*x"]) -> Float[Array, "*x"]:
        return certificate.free(hvp(certificate.free(v)))

    def solve(matvec: Callable[..., Any], b: Float[Array, "*x"]) -> Float[Array, "*x"]:
        solution, doubt, solved = _solve(matvec, b, problem, x, certificate, options)
        return jnp.where(solved & (doubt <= 0.1), solution, jnp.nan)

    # The factor stands on both sides of the solve: a NaN must reach the end in forward and in reverse mode alike.
    solution = jax.lax.custom_linear_solve(matvec, -factor * certificate.free(right), solve, symmetric=True)
    return factor * jnp.where(certified, solution + follows, 0.0)
