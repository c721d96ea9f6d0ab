"""LSMR: `x = A^+ b`, the least-squares solution of least norm, from products with `A` and `A^T` alone."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def lsmr_pinv(
    mv: Callable[..., Array], in_structure: jax.ShapeDtypeStruct, y: Float[Array, "*y"], max_steps: int
) -> Float[Array, "*x"]:
    """`A^+ y` for the linear function `mv`, differentiable in `y` in both modes; not in what `mv` closes over."""

    def transposed(w):
        return jax.linear_transpose(mv, in_structure)(w)[0]

    def solve(_, pair):
        x = _twice(mv, transposed, pair[n:].reshape(y.shape), max_steps)
        return jnp.concatenate([jnp.ravel(x), jnp.zeros_like(pair[n:])])

    def transpose_solve(_, pair):
        w = _twice(transposed, mv, pair[:n].reshape(in_structure.shape), max_steps)
        return jnp.concatenate([jnp.zeros_like(pair[:n]), jnp.ravel(w)])

    # A^+ is linear in y, so jax gets it as the solution of a linear system of the pair (x, y): the rules of that
    # primitive need no more than the solve and its transpose, which is A^T's own pseudo-inverse.
    n = in_structure.size
    pair = jnp.concatenate([jnp.zeros(n, y.dtype), jnp.ravel(y)])
    pair = jax.lax.custom_linear_solve(lambda pair: pair, pair, solve=solve, transpose_solve=transpose_solve)
    return pair[:n].reshape(in_structure.shape)


def _twice(
    mv: Callable[..., Array], transposed: Callable[..., Array], b: Float[Array, "*b"], max_steps: int
) -> Float[Array, "*x"]:
    """A second, short run makes up for the rounding of the first."""
    x = _lsmr(mv, transposed, b, max_steps)
    return x + _lsmr(mv, transposed, b - mv(x), max_steps)


def _lsmr(
    mv: Callable[..., Array], transposed: Callable[..., Array], b: Float[Array, "*b"], max_steps: int
) -> Float[Array, "*x"]:
    """Letters as in the paper, with `damp = 0`.

    Stops where `|A^T r|` is at the rounding of `|A| |r|`, or the residual `|r|` at that of `|A| |x| + |b|`. To go on
    would make noise grow along what `A` maps to zero. Instead of the paper's estimate of `|r|` the residual of LSQR
    serves, a lower bound that costs one number. Written here because `lineax.LSMR` mixes dtypes where float32 is used
    while x64 is on.

    References:
        D. C.-L. Fong, M. Saunders, "LSMR: An iterative algorithm for sparse least-squares problems", SIAM J. Sci.
        Comput. 33(5), 2011, doi:10.1137/10079687X.
    """

    def normalised(v):
        norm = jnp.linalg.norm(jnp.ravel(v))
        return v / jnp.where(norm == 0, 1, norm), norm

    u, beta = normalised(b)
    v, alpha = normalised(transposed(u))
    one = jnp.ones_like(beta)
    eps = jnp.finfo(b.dtype).eps
    norm_b = beta
    state = {
        "u": u,
        "v": v,
        "h": v,
        "hbar": jnp.zeros_like(v),
        "x": 0 * beta * v,  # not finite where b is not
        "alpha": alpha,
        "alphabar": alpha,
        "zetabar": alpha * beta,
        "residual": beta,
        "norm_a": alpha,
        "rho": one,
        "rhobar": one,
        "cbar": one,
        "sbar": 0 * one,
        "step": 0,
    }

    def body(s):
        u, beta = normalised(mv(s["v"]) - s["alpha"] * s["u"])
        v, alpha = normalised(transposed(u) - beta * s["v"])
        rho = jnp.hypot(s["alphabar"], beta)
        theta = beta / rho * alpha
        rhobar = jnp.hypot(s["cbar"] * rho, theta)
        cbar, sbar = s["cbar"] * rho / rhobar, theta / rhobar
        hbar = s["h"] - s["sbar"] * rho * rho / (s["rho"] * s["rhobar"]) * s["hbar"]
        return {
            "u": u,
            "v": v,
            "h": v - theta / rho * s["h"],
            "hbar": hbar,
            "x": s["x"] + cbar * s["zetabar"] / (rho * rhobar) * hbar,
            "alpha": alpha,
            "alphabar": s["alphabar"] / rho * alpha,
            "zetabar": -sbar * s["zetabar"],
            "residual": beta / rho * s["residual"],
            "norm_a": jnp.hypot(s["norm_a"], jnp.hypot(alpha, beta)),
            "rho": rho,
            "rhobar": rhobar,
            "cbar": cbar,
            "sbar": sbar,
            "step": s["step"] + 1,
        }

    def unfinished(s):
        rough = jnp.abs(s["zetabar"]) > 3 * eps * s["norm_a"] * s["residual"]  # |A^T r| = |zetabar|
        norm_x = jnp.linalg.norm(jnp.ravel(s["x"]))
        missed = s["residual"] > eps * (s["norm_a"] * norm_x + norm_b)
        return rough & missed & (s["step"] < max_steps)

    return jax.lax.while_loop(unfinished, body, state)["x"]
