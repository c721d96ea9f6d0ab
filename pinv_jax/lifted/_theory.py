"""Error bounds for the inversion of a perceptron, and when the lifted energy of a residual network is convex.

Inversion means `u_alpha`, a minimiser of `B(f, W u + b) + alpha J(u)` for data `f`, with the Bregman penalty `B` of an
activation. The data are noisy: `B(f, W u* + b) <= delta^2` at the true `u*`. A source element is a `v` such that
`W^T v` is a subgradient of `J` at `u*`.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Scalar

from ..solvers._check import concrete
from ._abstract_activation import AbstractActivation


def bregman_noise_level(
    activation: AbstractActivation, noisy: Float[Array, "*y"], preactivation: Float[Array, "*y"]
) -> Scalar:
    """`delta = B(noisy, W u* + b)**0.5`, the noise level in which the error bound is stated.

    It is not the norm of the noise: with the ReLU, noise `n` on an inactive output costs `n |z|`, not `n^2/2`.

    Args:
        activation: of the perceptron.
        noisy: the data `f`, in the domain.
        preactivation: `W u* + b` at the true `u*`.
    """
    return jnp.sqrt(activation.gap(noisy, preactivation))


def burbea_rao(activation: AbstractActivation, data: Float[Array, "*y"], shift: Float[Array, "*y"]) -> Scalar:
    """`Psi(f + s) + Psi(f - s) - 2 Psi(f)`, at least zero; `+inf` where `f + s` or `f - s` leaves the domain.

    Twice the Burbea-Rao distance of `f + s` and `f - s`. For the ReLU it is zero or infinite, zero if
    `|s_j| <= f_j` for all `j`.

    Args:
        activation: whose `Psi`.
        data: `f`.
        shift: `s`.
    """
    # The second difference of phi is that of B(., q) for every q, and near f = sigma(q) nothing cancels.
    q = activation.preimage(activation.interior(data))
    ends = activation.gap(data + shift, q) + activation.gap(data - shift, q)
    middle = jnp.where(activation.contains(data), activation.gap(activation.project(data), q), 0)
    return jnp.where(activation.contains(data), jnp.maximum(ends - 2 * middle - jnp.sum(shift**2), 0), jnp.inf)


def error_bound(
    activation: AbstractActivation,
    data: Float[Array, "*y"],
    source: Float[Array, "*y"],
    alpha: Any,
    delta: Any,
) -> Scalar:
    """The bound `2 delta^2/alpha + alpha |v|^2 + (Psi(f + alpha v) + Psi(f - alpha v) - 2 Psi(f))/alpha`.

    It holds for `bregman_distance(J, u_alpha, u*, W^T v)`, for every minimiser `u_alpha`.

    Args:
        activation: of the perceptron.
        data: the noisy data `f`.
        source: a source element `v`.
        alpha: weight of the regulariser, positive.
        delta: noise level, see `bregman_noise_level`.

    Returns:
        The bound; `+inf` where `f + alpha v` or `f - alpha v` is not in the domain: for the ReLU a source element
        must vanish on outputs that are zero.

    Raises:
        ValueError: alpha is not positive.

    References:
        X. Wang, M. Benning, "A Lifted Bregman Formulation for the Inversion of Deep Neural Networks", 2023,
        arXiv:2303.01965.
    """
    _positive(alpha=alpha)
    term = burbea_rao(activation, data, alpha * source)
    return 2 * delta**2 / alpha + alpha * jnp.sum(source**2) + term / alpha


def alpha_from_noise(
    activation: AbstractActivation, data: Float[Array, "*y"], source: Float[Array, "*y"], delta: Any
) -> Scalar:
    """`alpha = sqrt(2) delta / nu` with `nu^2 = <v, phi''(f) v>`, which makes the error bound `2 sqrt(2) nu delta`.

    Where `Psi` is quadratic or an indicator, `phi'' = 1` and `nu = |v|`: the bound is exact for every alpha with a
    finite `burbea_rao`, and this alpha minimises it. For a smooth `Psi` (tanh: `nu^2 = sum v^2/(1 - f^2)`) both hold up
    to terms of higher order in delta. At a kink of `Psi` where `v` does not vanish there is no such rate; nor
    where `error_bound` is infinite at this alpha: the noise is then too large for this source element.

    Args:
        activation: of the perceptron.
        data: the noisy data `f`.
        source: a source element `v`; for `v = 0` alpha is infinite.
        delta: noise level, see `bregman_noise_level`.
    """
    slope = jax.jvp(activation.preimage, (data,), (source,))[1]
    nu_square = jnp.sum(jnp.where(source == 0, 0, source * slope))
    return 2**0.5 * delta / jnp.sqrt(nu_square)


def source_element(dual: Float[Array, "*y"], alpha: Any) -> Float[Array, "*y"]:
    """`-p/alpha`, a source element of the minimiser `u_alpha` itself, from the dual variable `p = sigma(W u + b) - f`.

    Raises:
        ValueError: alpha is not positive.
    """
    _positive(alpha=alpha)
    return -dual / alpha


def bregman_distance(
    regulariser: Callable[..., Any], u: Float[Array, "*x"], reference: Float[Array, "*x"], slope: Float[Array, "*x"]
) -> Scalar:
    """`J(u) - J(u*) - <q, u - u*>`, at least zero if `q` is a subgradient of `J` at `u*`.

    Args:
        regulariser: `J`, array to scalar.
        u: the reconstruction.
        reference: `u*`.
        slope: `q`, in the bound `W^T v`.
    """
    return regulariser(u) - regulariser(reference) - jnp.sum(slope * (u - reference))


class Certificate(NamedTuple):
    """Whether the lifted energy of a network is known to be jointly convex.

    Attributes:
        holds: whether the certificate matrix is positive semidefinite. If not, nothing is known: the condition is
            sufficient, not necessary.
        smallest_eigenvalue: of the certificate matrix; NaN where there is no such matrix.
        smallest_rho: the least penalty weight for which it holds, `None` if there is none.
        reason: in words.
    """

    holds: bool
    smallest_eigenvalue: float
    smallest_rho: float | None
    reason: str


def residual_operators(num_blocks: int) -> tuple[np.ndarray, np.ndarray]:
    """`K` and `M` of a residual network `u_k = u_{k-1} + V_k sigma(W_k u_{k-1} + b_k)`, one number for each state.

    With all states stacked, `K` picks the last and `M u = (u_1 - u_0, ..., u_l - u_{l-1}, 0)`. For states of any
    other size every number stands for a multiple of the identity, which leaves all eigenvalues as they are.

    Args:
        num_blocks: `l`, at least one.

    Raises:
        ValueError: no block.
    """
    if num_blocks < 1:
        raise ValueError(f"num_blocks={num_blocks}; expected at least one residual block.")
    last = np.zeros((1, num_blocks + 1))
    last[0, -1] = 1
    shift = np.diag(np.ones(num_blocks), 1) - np.eye(num_blocks + 1)
    shift[-1] = 0
    return last, shift


def certificate_matrix(num_blocks: int, fidelity_weight: float | int, rho: float | int = np.inf) -> np.ndarray:
    """`Q` of a residual network with `V_k = W_k^T`: tridiagonal, `(-1; 2, ..., 2, lambda; -1)` less `1/rho`.

    Args:
        num_blocks: `l`; `Q` has size `l + 1`.
        fidelity_weight: `lambda`.
        rho: penalty weight of the constraint; infinite where it is enforced.

    Returns:
        `Q`, in double precision: what matters is the sign of its smallest eigenvalue. It is positive semidefinite for
        infinite `rho` exactly if `lambda >= l / (l + 1)`.
    """
    return general_certificate_matrix(*residual_operators(num_blocks), fidelity_weight, rho)


def general_certificate_matrix(
    output: ArrayLike, shift: ArrayLike, fidelity_weight: float | int, rho: float | int = np.inf
) -> np.ndarray:
    """`Q = lambda K^T K - M - M^T - 1/rho`.

    For a network `N(u) = K u`, `M u = W^T prox_Psi(W u + b)`, all states stacked into `u`, the energy

        lambda/2 |K u - f|^2 + B(z, W u + b) + rho/2 |M u - W^T z|^2,   with or without  M u = W^T z,

    is jointly convex in `(u, z)` if `Q` is positive semidefinite.

    Args:
        output: `K`, a matrix.
        shift: `M`, a square matrix.
        fidelity_weight: `lambda`, not negative.
        rho: penalty weight of the constraint, positive; infinite where it is enforced.

    Raises:
        ValueError: shapes that do not fit, `fidelity_weight` negative, `rho` not positive.
    """
    output, shift = np.asarray(output, np.float64), np.asarray(shift, np.float64)
    size = shift.shape[-1]
    if shift.shape != (size, size) or output.ndim != 2 or output.shape[1] != size:
        raise ValueError(f"K has shape {output.shape} and M {shift.shape}; expected (m, n) and (n, n).")
    if not fidelity_weight >= 0:
        raise ValueError(f"fidelity_weight={fidelity_weight}; expected at least zero.")
    _positive(rho=rho)
    return fidelity_weight * output.T @ output - shift - shift.T - np.eye(size) / rho


def smallest_eigenvalue(matrix: ArrayLike) -> float:
    """The smallest eigenvalue of a symmetric matrix."""
    return float(np.linalg.eigvalsh(np.asarray(matrix, np.float64))[0])


def smallest_rho(num_blocks: int, fidelity_weight: float | int) -> float | None:
    """The least penalty weight with which a residual network with `V_k = W_k^T` has the certificate, or `None`.

    One over the smallest eigenvalue of `certificate_matrix(num_blocks, fidelity_weight)`, where that is positive.
    """
    return convexity_certificate(*residual_operators(num_blocks), fidelity_weight).smallest_rho


def convexity_certificate(
    output: ArrayLike,
    shift: ArrayLike,
    fidelity_weight: float | int,
    rho: float | int = np.inf,
    *,
    weights: ArrayLike | None = None,
    returns: ArrayLike | None = None,
) -> Certificate:
    """Looks for the certificate of `N(u) = K u`, `M u = V prox_Psi(W u + b)`.

    It needs `V = W^T`. For `V = -W^T` the equation is multiplied by minus one first, so that `-M` stands for `M`; in
    a residual network `Q` is then indefinite. For any other `V` there is none.

    Args:
        output: `K`, as for `general_certificate_matrix`.
        shift: `M`.
        fidelity_weight: `lambda`.
        rho: penalty weight of the constraint; infinite where it is enforced.
        weights: `W`, shape `(m, n)`; `V = W^T` is assumed where it is not given.
        returns: `V`, shape `(n, m)`.

    Raises:
        ValueError: only one of `weights` and `returns` is given, or shapes that do not fit.
    """
    if (weights is None) != (returns is None):
        raise ValueError("weights and returns, that is W and V, belong together; pass both or none.")
    shift, minus = np.asarray(shift, np.float64), ""
    if weights is not None:
        w, v = np.asarray(weights, np.float64), np.asarray(returns, np.float64)
        if v.shape != w.T.shape:
            raise ValueError(f"W has shape {w.shape} and V {v.shape}; expected V of shape {w.T.shape}.")
        close = lambda sign: np.allclose(v, sign * w.T, rtol=1e-6, atol=1e-6 * np.abs(w).max())
        if not close(1):
            if not close(-1):
                return Certificate(False, np.nan, None, "no certificate: V is neither W^T nor -W^T.")
            shift, minus = -shift, " after multiplication of M u = -W^T z by -1"
    lowest = smallest_eigenvalue(general_certificate_matrix(output, shift, fidelity_weight))
    tolerance = 1e-12 * max(1.0, float(np.abs(shift).max()), fidelity_weight)
    least = 1 / lowest if lowest > tolerance else None
    lowest = lowest - 1 / rho
    holds = lowest >= -tolerance
    reason = f"Q is positive semidefinite{minus}." if holds else f"no certificate: Q has a negative eigenvalue{minus}."
    return Certificate(holds, lowest, least, reason)


def _positive(**values: Any) -> None:
    for name, value in values.items():
        if concrete(value) and not np.all(np.asarray(value) > 0):
            raise ValueError(f"{name}={value}; expected {name} > 0.")
