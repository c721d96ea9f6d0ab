"""`lifted-perceptron`: images from the outputs of a random layer of ReLUs, by total variation.

- `phantoms`: three images without noise, the lifted methods beside classical ones and trivial estimates;
- `noise`: what noise does to the outputs that are off, how the weight of the regulariser is chosen, the error bound.
"""

from collections.abc import Mapping
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Scalar

from .. import plots
from .._problem import Problem
from ..diagnostics import psnr
from ..lifted import (
    AlphaChoice,
    BregmanIteration,
    ExplicitPrimalDual,
    FullSplitting,
    Perceptron,
    TotalVariation,
    VariationalDescent,
    admissible_data,
    alpha_by_discrepancy,
    alpha_from_noise,
    bregman_distance,
    bregman_noise_level,
    error_bound,
    expected_noise_level,
    source_element,
)
from ..maps import prepare
from ._digits import key_of
from ._study import Bench, Findings, Study
from ._timed import timed_solve

ALPHA = 0.015
"""The published weight of total variation, for weights and bias of standard deviation one."""
LARGE = 15.0
"""The weight from which Bregman iterations start."""
BUDGETS = (150, 300, 450, 1000)
BLOCKS = ((0.15, 0.4, 0.15, 0.45, 1.0), (0.55, 0.85, 0.2, 0.45, 0.6), (0.3, 0.65, 0.6, 0.85, 0.8))
"""Top, bottom, left and right of each rectangle, as parts of the image, and its value."""


class Truth(eqx.Module):
    """An image of which a source element is known.

    Attributes:
        u: the image.
        source: `v`, with `W^T v` a subgradient of total variation at `u`.
    """

    u: Float[Array, "n n"]
    source: Float[Array, " m"]


def perceptron(bench: Bench) -> Perceptron:
    """64 x 64 pixels to 512 ReLUs, weights and bias of standard deviation one; the same in every part."""
    size, num = (32, 256) if bench.quick else (64, 512)
    weights, bias = jax.random.split(key_of(bench, "perceptron"))
    matrix = jax.random.normal(weights, (num, size**2), bench.dtype)
    return prepare(Perceptron(matrix, jax.random.normal(bias, (num,), bench.dtype), shape=(size, size)))


def phantoms(size: int, dtype: DTypeLike) -> dict[str, Float[Array, "n n"]]:
    """A disk a quarter of the image in radius, three blocks, and the phantom of Shepp and Logan; values in [0, 1].

    Raises:
        ValueError: scikit-image is not installed.
    """
    try:
        from skimage.data import shepp_logan_phantom
        from skimage.transform import resize_local_mean
    except ImportError as error:
        raise ValueError('The phantom comes with scikit-image: pip install "pinv_jax[data]"') from error
    offsets = np.arange(size) - (size - 1) / 2
    disk = offsets[:, None] ** 2 + offsets[None, :] ** 2 <= (size / 4) ** 2
    blocks = np.zeros((size, size))
    for *corners, value in BLOCKS:
        top, bottom, left, right = (round(size * corner) for corner in corners)
        blocks[top:bottom, left:right] = value
    head = resize_local_mean(shepp_logan_phantom(), (size, size))
    return {name: jnp.asarray(a, dtype) for name, a in {"disk": disk, "blocks": blocks, "Shepp-Logan": head}.items()}


def minimum_norm(forward: Perceptron, data: Float[Array, " m"]) -> Float[Array, "n n"]:
    """The smallest `u` with `W u + b = data` on the active outputs: what the linear layer alone would give."""
    active = np.flatnonzero(np.asarray(data) > 0)
    rows = jnp.asarray(forward.linear)[active]
    with jax.default_matmul_precision("highest"):
        flat = rows.T @ jnp.linalg.solve(rows @ rows.T, (data - forward.bias)[active])
    return jnp.reshape(flat, forward.in_structure().shape)


@jax.jit
def scores(
    forward: Perceptron, data: Float[Array, " m"], truth: Float[Array, "n n"], u: Float[Array, "n n"]
) -> tuple[Scalar, Scalar, Scalar, Scalar]:
    """Relative error in per cent, PSNR, total variation, and the energy `B(data, W u + b) + 0.015 TV(u)`."""
    error = 100 * jnp.linalg.norm(u - truth) / jnp.linalg.norm(truth)
    variation = TotalVariation()(u)
    with jax.default_matmul_precision("highest"):
        energy = forward.activation.gap(data, forward.affine(u)) + ALPHA * variation
    return error, psnr(truth, u, data_range=1.0), variation, energy


INNER = 250
"""Steps of the inner solver in a Bregman iteration."""
LAST = BUDGETS[-1]
METHODS = {
    "full splitting": (FullSplitting(ALPHA, rtol=0.0), BUDGETS),
    "explicit primal-dual": (ExplicitPrimalDual(ALPHA, theta=0.01, rtol=0.0), (LAST,)),
    "quadratic fidelity": (VariationalDescent(ALPHA, rtol=0.0), (LAST,)),
    f"quadratic fidelity, alpha {LARGE:g}": (VariationalDescent(LARGE, rtol=0.0), (LAST,)),
    "Bregman iteration, lifted": (BregmanIteration(FullSplitting(LARGE), num_inner=INNER, rtol=0.0), (LAST,)),
    "Bregman iteration, quadratic fidelity": (
        BregmanIteration(VariationalDescent(LARGE), num_inner=INNER, rtol=0.0),
        (LAST,),
    ),
}
"""Solvers, and their budgets in steps."""
SCALED = {
    "full splitting, all / sqrt(m)": (FullSplitting(ALPHA, rtol=0.0), (LAST,)),
    "explicit primal-dual, all / sqrt(m)": (ExplicitPrimalDual(ALPHA, theta=0.01, rtol=0.0), (LAST, 2 * LAST)),
}
"""The same for weights, bias and data over the root of the number `m` of outputs."""


def cost(solver: Any) -> int:
    """Products with the weights in a step, as multiples of one."""
    return solver.num_inner if isinstance(solver, BregmanIteration) else 1


def _row(
    forward: Perceptron,
    phantom: str,
    truth: Float[Array, "n n"],
    method: str,
    u: Float[Array, "n n"],
    steps: int = 0,
    seconds: float = 0.0,
) -> dict[str, Any]:
    error, level, variation, energy = map(float, scores(forward, forward(truth), truth, u))
    cells = {"phantom": phantom, "method": method, "steps": steps, "error %": error, "PSNR dB": level}
    return cells | {"TV": variation, "energy": energy, "seconds": seconds}


def without_noise(bench: Bench) -> Findings:
    """Every method on every phantom, from a black image.

    "All / sqrt(m)" divides weights, bias and data by the root of the number of outputs and keeps alpha. This is another
    problem, with `m` times as much regularisation: what the explicit method, with its steps tied to the norm of
    the weights, can do. The energy is that of the problem as it was for all rows.
    """
    forward = perceptron(bench)
    size, num = forward.in_structure().shape[0], forward.bias.size
    scale = num**-0.5
    scaled = prepare(Perceptron(scale * forward.linear, scale * forward.bias, shape=(size, size)))
    zero = jnp.zeros((size, size), bench.dtype)
    images = phantoms(size, bench.dtype)
    rows, pictures = [], {}
    for phantom, truth in images.items():
        data = forward(truth)
        estimates = {
            "zero": zero,
            "constant, the mean of the truth": jnp.full_like(zero, jnp.mean(truth)),
            "minimum norm, active outputs": minimum_norm(forward, data),
        }
        rows += [_row(forward, phantom, truth, name, u) for name, u in estimates.items()]
        for methods, problem in ((METHODS, Problem(forward, data)), (SCALED, Problem(scaled, scale * data))):
            for name, (solver, budgets) in methods.items():
                for budget in budgets:
                    solution, seconds = timed_solve(problem, solver, zero, max_steps=budget // cost(solver))
                    steps = int(solution.stats.num_steps) * cost(solver)
                    rows.append(_row(forward, phantom, truth, name, solution.value, steps, seconds))
                estimates[name] = solution.value
        shown = {"truth": truth, "data / max": jnp.reshape(data / jnp.max(data), (16, -1))} | estimates
        for name, image in shown.items():
            pictures.setdefault(name, []).append(np.asarray(image))
    measures = {
        "pixels": size,
        "outputs": num,
        "active": {name: int(jnp.sum(forward(truth) > 0)) for name, truth in images.items()},
        "TV": {name: float(TotalVariation()(truth)) for name, truth in images.items()},
    }
    return Findings(rows, measures, {name: np.stack(stack) for name, stack in pictures.items()})


@eqx.filter_jit
def truth_with_source(forward: Perceptron, image: Float[Array, "n n"], *, max_steps: int) -> Truth:
    """The minimiser for the noise-free data of an image, close to it and with a source element.

    Of an image itself none need be known, or exist. Of a minimiser it is `-p / alpha`, with the dual variable of the
    solver: what `dual_variable` makes of `u` has, in single precision, the rounding of the data divided by alpha.
    """
    problem = Problem(forward, forward(image))
    solver = FullSplitting(ALPHA)
    with jax.default_matmul_precision("highest"):
        start = solver.init(problem, image)
        u, state = jax.lax.fori_loop(0, max_steps, lambda _, carry: solver.step(problem, *carry), start)
    return Truth(u, source_element(state.dual, ALPHA))


HANDLINGS = ("clipped", "thresholded", "noise on active outputs alone")
RULES = ("0.015", "1.5", "discrepancy", "theorem")


def noisy_problem(
    forward: Perceptron, clean: Float[Array, " m"], noise: Float[Array, " m"], std: float, handling: str
) -> Problem:
    """What the solver is told: with a `noise_std` it thresholds, without it clips alone."""
    if handling == "noise on active outputs alone":
        return Problem(forward, jnp.where(clean > 0, clean + noise, 0))
    return Problem(
        forward, clean + noise, noise_std=jnp.asarray(std, clean.dtype) if handling == "thresholded" else None
    )


@eqx.filter_jit
def by_discrepancy(problem: Problem, x0: Float[Array, "n n"], level: Scalar, *, max_steps: int) -> AlphaChoice:
    """Alpha by the discrepancy principle, from 1.5."""
    solver = FullSplitting(1.5, rtol=1e-4)
    return alpha_by_discrepancy(problem, solver, x0, noise_level=level, max_solves=12, max_steps=max_steps)


def _lifted_rows(
    truth: Truth, forward: Perceptron, problem: Problem, std: float, handling: str, max_steps: int
) -> tuple[list[dict[str, Any]], list[np.ndarray]]:
    """The four choices of alpha."""
    activation = forward.activation
    data = admissible_data(activation, problem.data, problem.noise_std)
    delta = bregman_noise_level(activation, data, forward.affine(truth.u))
    zero = jnp.zeros_like(truth.u)
    rows, images = [], []
    for rule in RULES:
        name = rule
        if rule == "discrepancy":
            level = expected_noise_level(activation, data, std)
            choice = by_discrepancy(Problem(forward, data), zero, level, max_steps=max_steps)
            alpha = float(choice.alpha)
            name = rule if bool(choice.success) else f"{rule}, not met"
        else:
            ruled = rule == "theorem"
            alpha = float(alpha_from_noise(activation, data, truth.source, delta)) if ruled else float(rule)
        solution, seconds = timed_solve(problem, FullSplitting(alpha, rtol=1e-4), zero, max_steps=max_steps)
        bound = error_bound(activation, data, truth.source, alpha, delta)
        cells = {"std": std, "data": handling, "method": "full splitting", "alpha by": name, "alpha": alpha}
        cells |= _noise_cells(truth, forward, solution.value)
        cells |= {"bound of D": float(bound), "delta^2": float(delta) ** 2}
        rows.append(cells | {"steps": int(solution.stats.num_steps), "seconds": seconds})
        images.append(np.asarray(solution.value))
    return rows, images


def _noise_cells(truth: Truth, forward: Perceptron, u: Float[Array, "n n"]) -> dict[str, float]:
    error = 100 * jnp.linalg.norm(u - truth.u) / jnp.linalg.norm(truth.u)
    with jax.default_matmul_precision("highest"):
        distance = bregman_distance(TotalVariation(), u, truth.u, forward.adjoint(truth.source))
    return {"error %": float(error), "PSNR dB": float(psnr(truth.u, u, data_range=1.0)), "D": float(distance)}


CLASSICAL = {
    "quadratic fidelity": VariationalDescent(LARGE, rtol=1e-6),
    "quadratic fidelity, stopped": VariationalDescent(LARGE, discrepancy=1.0),
    "Bregman iteration, quadratic fidelity": BregmanIteration(
        VariationalDescent(LARGE), num_inner=INNER, discrepancy=1.0
    ),
    "Bregman iteration, lifted": BregmanIteration(FullSplitting(LARGE), num_inner=INNER, discrepancy=1.0),
}
"""Methods that stop at the level of the noise, and one that does not."""


def _other_rows(
    truth: Truth, forward: Perceptron, noisy: Float[Array, " m"], std: float, budget: int
) -> list[dict[str, Any]]:
    """The quadratic fidelity, which takes data as they are, and Bregman iterations."""
    problem = Problem(forward, noisy, noise_std=jnp.asarray(std, noisy.dtype))
    rows = []
    for name, solver in CLASSICAL.items():
        solution, seconds = timed_solve(problem, solver, jnp.zeros_like(truth.u), max_steps=budget // cost(solver))
        handling = "thresholded" if name.endswith("lifted") else "as they are"
        cells = {"std": std, "data": handling, "method": name, "alpha by": "fixed", "alpha": LARGE}
        cells |= _noise_cells(truth, forward, solution.value) | {"bound of D": None, "delta^2": None}
        rows.append(cells | {"steps": int(solution.stats.num_steps) * cost(solver), "seconds": seconds})
    return rows


def noise(bench: Bench) -> Findings:
    """Gaussian noise on all outputs of the disk, then what is done about it.

    `delta^2` is the noise level in Bregman's sense, `B(data, W u + b)` at the truth, known in a simulation alone; the
    discrepancy rule gets an estimate from the standard deviation. `D` is the Bregman distance of total variation that
    `bound of D` bounds.
    """
    forward = perceptron(bench)
    budget = 1000 if bench.quick else 2000
    image = phantoms(forward.in_structure().shape[0], bench.dtype)["disk"]
    truth = truth_with_source(forward, image, max_steps=10 * budget)
    clean = forward(truth.u)
    standard = jax.random.normal(bench.key, clean.shape, bench.dtype)
    rows, pictures = [], {}
    for std in (0.05, 0.5):
        for handling in HANDLINGS:
            problem = noisy_problem(forward, clean, std * standard, std, handling)
            found, images = _lifted_rows(truth, forward, problem, std, handling, budget)
            rows += found
            pictures[f"std {std:g}\n{handling}"] = np.stack([np.asarray(truth.u), *images])
        rows += _other_rows(truth, forward, clean + std * standard, std, budget)
    with jax.default_matmul_precision("highest"):
        slope = forward.adjoint(truth.source)
    variation = TotalVariation()(truth.u)
    measures = {
        "truth": {
            "TV": float(variation),
            "<W^T v, u> / TV": float(jnp.sum(slope * truth.u) / variation),
            "|v|": float(jnp.linalg.norm(truth.source)),
            "of the disk, %": 100 * float(jnp.linalg.norm(truth.u - image) / jnp.linalg.norm(image)),
            "largest output": float(jnp.max(clean)),
            "active": int(jnp.sum(clean > 0)),
        }
    }
    return Findings(rows, measures, pictures)


def figures(found: Mapping[str, Findings]) -> dict[str, Any]:
    """Truth, data and reconstructions, with the PSNR above."""
    drawn = {}
    if "phantoms" in found:
        part = found["phantoms"]
        titles = list(dict.fromkeys(row["phantom"] for row in part.rows))
        last = {(row["method"], row["phantom"]): row["PSNR dB"] for row in part.rows}  # of several budgets the largest
        captions = {
            _label(name): [f"{last[name, phantom]:.1f} dB" for phantom in titles]
            for name in part.arrays
            if (name, titles[0]) in last
        }
        trivial = [name for name in part.arrays if name.startswith(("zero", "constant"))]
        rows = {_label(name): images for name, images in part.arrays.items() if name not in trivial}
        drawn["phantoms"] = plots.image_grid(rows, limits=(0.0, 1.0), titles=titles, captions=captions)
    if "noise" in found:
        part = found["noise"]
        levels = {}
        for row in part.rows:
            levels.setdefault(f"std {row['std']:g}\n{row['data']}", []).append(f"{row['PSNR dB']:.1f} dB")
        captions = {
            _label(name): ["truth", *(f"{rule}: {level}" for rule, level in zip(RULES, levels[name], strict=False))]
            for name in part.arrays
        }
        rows = {_label(name): images for name, images in part.arrays.items()}
        drawn["noise"] = plots.image_grid(rows, limits=(0.0, 1.0), captions=captions)
    return drawn


def _label(name: str) -> str:
    return name.replace(", ", ",\n").replace(": ", ":\n").replace("noise on active outputs alone", "noise on active")


LIFTED_PERCEPTRON = Study(
    name="lifted-perceptron",
    summary="images from the outputs of a random layer of ReLUs: lifted inversion with total variation, error bounds",
    reference="X. Wang, M. Benning, A lifted Bregman formulation for the inversion of deep neural networks, 2023, "
    "arXiv:2303.01965",
    recipes={"phantoms": without_noise, "noise": noise},
    figures=figures,
)
