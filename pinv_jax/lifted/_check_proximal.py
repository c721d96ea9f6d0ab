"""`check_proximal`: a numerical search for a point where a function is no proximal map."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PRNGKeyArray


def check_proximal(
    fn: Callable[..., Any],
    *,
    shape: tuple[int, ...] = (),
    num_pairs: int = 4096,
    scale: float | int = 2.0,
    key: PRNGKeyArray | None = None,
) -> None:
    """Searches for a witness that `fn` is not the proximal map of a convex function; silent if it finds none.

    A map is proximal exactly if it is the gradient of a convex function and non-expansive. Tested are

        |fn(x) - fn(y)|^2 <= <fn(x) - fn(y), x - y>

    at random pairs, and at the same points the derivative `J`: `|J v|^2 <= <J v, v>` and, for arrays,
    `<J v, w> = <v, J w>`. Half of the pairs lie on a grid of step `scale/4`, so that a witness may be checked by hand.

    This is a search, not a proof: a function may pass it and fail elsewhere.

    Args:
        fn: an activation, array to array of the same shape; an entrywise one may be checked as a scalar function.
        shape: shape of its argument.
        num_pairs: how many pairs are tried.
        scale: standard deviation of the points.
        key: random key; the same pairs every time by default.

    Raises:
        ValueError: a witness was found, or `fn` returns another shape or values that are not finite.

    References:
        J. J. Moreau, "Proximité et dualité dans un espace hilbertien", Bulletin de la SMF 93, 1965.
    """
    name = describe(fn)
    struct = jax.eval_shape(fn, jax.ShapeDtypeStruct(shape, jnp.result_type(float)))
    if getattr(struct, "shape", None) != shape:
        raise ValueError(
            f"{name} turns an array of shape {shape} into {getattr(struct, 'shape', struct)}; a proximal map returns "
            "the shape it is given. Pooling and reshaping belong into the linear part of a layer."
        )
    points = scale * jax.random.normal(jax.random.key(0) if key is None else key, (4, num_pairs, *shape))
    coarse = jnp.round(points * 4 / scale) * scale / 4 + 0.0  # no negative zeros
    on_grid = jnp.arange(num_pairs) % 2 == 0
    points = jnp.where(on_grid.reshape(num_pairs, *[1] * len(shape)), coarse, points)

    @jax.jit
    @jax.vmap
    def measure(x: Any, y: Any, v: Any, w: Any) -> Any:
        f_x, f_y = fn(x), fn(y)
        tangent, other = (jax.jvp(fn, (x,), (d,))[1] for d in (v, w))
        return (f_x, f_y), *_excess(f_x - f_y, x - y), *_excess(tangent, v), *_asymmetry(tangent, other, v, w)

    (f_x, f_y), pair, inner, slope, slope_inner, skew, size = jax.tree.map(np.asarray, measure(*points))
    x, y, v, w = np.asarray(points)
    finite = np.isfinite(np.stack([f_x, f_y])).reshape(2, num_pairs, -1).all(axis=(0, 2))
    if not finite.all():
        i = int(np.argmin(finite))
        raise ValueError(f"{name} returns a value that is not finite at x = {_show(x[i])} or y = {_show(y[i])}.")

    tolerance = 1e3 * float(jnp.finfo(points.dtype).eps)
    advice = "`lifted.ACTIVATIONS` names the activations that are proximal."
    # Shown is the worst pair: one where fn decreases, if there is any, and one on the grid, if there is any.
    worst = int(np.lexsort((pair, (pair > tolerance) & np.asarray(on_grid), inner < -tolerance))[-1])
    if pair[worst] > tolerance:
        difference, offset = f_x[worst] - f_y[worst], x[worst] - y[worst]
        raise ValueError(
            f"{name} is not proximal: at x = {_show(x[worst])}, y = {_show(y[worst])} the inner product "
            f"<f(x) - f(y), x - y> is {np.sum(difference * offset):.6g} and |f(x) - f(y)|^2 is "
            f"{np.sum(difference**2):.6g}; a proximal map has 0 <= the second <= the first. {advice}"
        )
    worst = int(np.argmax(slope))
    if slope[worst] > tolerance:
        raise ValueError(
            f"{name} is not proximal: at x = {_show(x[worst])} its derivative along v = {_show(v[worst])} has "
            f"<J v, v> = {slope_inner[worst]:.6g} |v|^2 and |J v|^2 = {slope[worst] + slope_inner[worst]:.6g} |v|^2; a "
            f"proximal map has 0 <= the second <= the first. {advice}"
        )
    worst = int(np.argmax(np.abs(skew)))
    if np.abs(skew[worst]) > tolerance:
        raise ValueError(
            f"{name} is not the gradient of any function: at x = {_show(x[worst])} its Jacobian J is not symmetric, "
            f"<J v, w> - <v, J w> = {skew[worst] * size[worst]:.6g} at v = {_show(v[worst])}, w = {_show(w[worst])}. "
            f"{advice}"
        )


def describe(fn: Any) -> str:
    """The name of a function, or of the function and the options of a partial one."""
    if isinstance(fn, functools.partial):
        given = [repr(value) for value in fn.args] + [f"{key}={value}" for key, value in fn.keywords.items()]
        return f"{describe(fn.func)}({', '.join(given)})"
    return getattr(fn, "__name__", None) or type(fn).__name__


def _excess(moved: Array, offset: Array) -> tuple[Array, Array]:
    """`(|moved|^2 - <moved, offset>)` and `<moved, offset>`, both relative to `|offset|^2`."""
    square = jnp.sum(offset**2)
    square = jnp.where(square > 0, square, 1)
    inner = jnp.sum(moved * offset) / square
    return jnp.sum(moved**2) / square - inner, inner


def _asymmetry(tangent: Array, other: Array, v: Array, w: Array) -> tuple[Array, Array]:
    """`<J v, w> - <v, J w>` relative to `|v| |w|`, and that."""
    size = jnp.sqrt(jnp.sum(v**2) * jnp.sum(w**2))
    size = jnp.where(size > 0, size, 1)
    return (jnp.sum(tangent * w) - jnp.sum(v * other)) / size, size


def _show(value: Any) -> str:
    return np.array2string(np.asarray(value), precision=6, separator=", ", threshold=12)
