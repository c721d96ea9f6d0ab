"""Karhunen-Loeve basis of a Matern field on the unit square: `int C(s, t) phi(t) dt = lambda phi(s)`."""

import numpy as np

_NUM_NODES = 32  # of the quadrature, along one side; even
_MATERN = {
    0.5: lambda r: np.exp(-r),
    1.5: lambda r: (1 + r) * np.exp(-r),
    2.5: lambda r: (1 + r + r**2 / 3) * np.exp(-r),
}


def matern_basis(
    points: np.ndarray, num_modes: int, *, length_scale: float, smoothness: float
) -> tuple[np.ndarray, np.ndarray]:
    """The leading eigenpairs of the Matern covariance of variance one, in float64 on the host.

    `C(s, t) = m(sqrt(2 nu) |s - t| / length_scale)` with `m(r) = exp(-r)`, `(1 + r) exp(-r)`,
    `(1 + r + r^2 / 3) exp(-r)` for the smoothness `nu = 1/2, 3/2, 5/2`. Nystrom's method: the integral becomes a sum
    over 32 Gauss-Legendre nodes along either side, and `phi` is continued to any point by the equation itself. So the
    same coordinates are the same field on every grid. The reflections of the square split the problem into functions
    even and odd in either coordinate: it is smaller, and of two modes of equal variance each is defined up to sign,
    which is fixed by a positive value at the node next to the corner (0, 0).

    Args:
        points: `n` coordinates in [0, 1]; the functions are evaluated on their square.
        num_modes: number of eigenpairs `k`, at most 256.
        length_scale: in units of the side of the square.
        smoothness: `nu`: 0.5, 1.5 or 2.5.

    Returns:
        Eigenvalues `(k,)`, descending, whose sum over all modes is 1, and functions `(n, n, k)`, orthonormal in
        `L2((0, 1)^2)`.

    Raises:
        ValueError: an unknown smoothness, a length scale that is not positive, more modes than a quarter of the nodes
            or than have a variance above rounding.

    References:
        C. E. Rasmussen, C. K. I. Williams, "Gaussian Processes for Machine Learning", 2006, sections 4.2.1 and 4.3.2.
    """
    if smoothness not in _MATERN or not length_scale > 0:
        raise ValueError(
            f"matern_basis expected a smoothness of {', '.join(map(str, _MATERN))} and a positive length scale, got "
            f"smoothness={smoothness}, length_scale={length_scale}."
        )
    if not 1 <= num_modes <= _NUM_NODES**2 // 4:
        raise ValueError(
            f"matern_basis expected between 1 and {_NUM_NODES**2 // 4} modes, which {_NUM_NODES} nodes along a side "
            f"resolve, got num_modes={num_modes}."
        )
    half = _NUM_NODES // 2
    nodes, weights = np.polynomial.legendre.leggauss(_NUM_NODES)
    nodes, weights = 0.5 * (nodes[:half] + 1), 0.5 * weights[:half]
    root = np.sqrt(np.outer(weights, weights).ravel())
    scale = np.sqrt(2 * smoothness) / length_scale

    def covariance(s, parities):
        """Between the square of `s` and a quarter of the nodes, summed over its reflections with their signs."""
        total = 0.0
        for first, sign in ((nodes, 1), (1 - nodes, parities[0])):
            for second, other in ((nodes, 1), (1 - nodes, parities[1])):
                across = (s[:, None] - first) ** 2
                along = (s[:, None] - second) ** 2
                distance = np.sqrt(across[:, None, :, None] + along[None, :, None, :])
                total = total + sign * other * _MATERN[smoothness](scale * distance)
        return total.reshape(s.size**2, half**2)

    def eigenpairs(parities):
        values, vectors = np.linalg.eigh(root[:, None] * covariance(nodes, parities) * root)
        values, vectors = values[: -num_modes - 1 : -1], vectors[:, : -num_modes - 1 : -1]
        vectors = vectors * np.where(vectors[0] < 0, -1.0, 1.0)
        # Half, since a unit vector of the quarter has norm 2 on the whole square.
        functions = 0.5 * covariance(points, parities) @ (root[:, None] * vectors) / values
        return values, functions.reshape(points.size, points.size, -1)

    mixed_values, mixed = eigenpairs((1, -1))
    pairs = [eigenpairs((1, 1)), (mixed_values, mixed), (mixed_values, mixed.swapaxes(0, 1)), eigenpairs((-1, -1))]
    values = np.concatenate([pair[0] for pair in pairs])
    order = np.argsort(-values, kind="stable")[:num_modes]
    if values[order[-1]] < 1e-12 * values[order[0]]:
        raise ValueError(
            f"matern_basis expected modes with a variance above rounding, got num_modes={num_modes} for "
            f"length_scale={length_scale:g}: only {np.sum(values[order] >= 1e-12 * values[order[0]])} have. Use fewer "
            "modes, or a shorter length scale."
        )
    return values[order], np.concatenate([pair[1] for pair in pairs], axis=2)[:, :, order]
