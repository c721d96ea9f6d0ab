"""`lifted-ptychography`: a complex object from the moduli of diffraction patterns, with a proximal network as modulus.

A probe is placed at a few overlapping positions; data are the moduli of the Fourier transforms of probe times object. A
network of ReLUs, one hidden layer and no bias, is fitted to `(re, im) -> sqrt(re^2 + im^2)` and put behind the linear
optics. Lifted inversion of that network stands beside alternating projections and least squares on the true modulus.

- `network`: how well the modulus is fitted, and what that does to the object;
- `retrieval`: many and few positions, with and without noise.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, PRNGKeyArray, Scalar

from .. import plots
from .._problem import Problem
from ..learn import Stage, Term, fit
from ..lifted import BlockInversion, BregmanIteration, HalfSquaredNorm, TotalVariation, VariationalDescent
from ..solvers import AbstractSolver, ConjugateGradients, GaussNewton, LevenbergMarquardt
from ._ptychography import Fan, Moduli, Scene, aligned, error_reduction, flat, network, scene, scores
from ._study import Bench, Findings, Study
from ._timed import timed, timed_solve

NOISE = 0.05
"""Standard deviation of the noise over the root mean square of the data."""
INNER = 100
"""Steps of the inner solver in a Bregman iteration."""
BREGMAN = 0.1
"""The alpha of the Bregman iteration."""
QUICK = ("lifted, TV", "quadratic fidelity, TV", "Levenberg-Marquardt, CG")
"""The methods of a quick run."""
VARIATION = TotalVariation(ndim=2)


def relative_error(model: Fan, x: Float[Array, "2"], y: Float[Array, ""], key: PRNGKeyArray | None) -> Scalar:
    """The loss of one example, the squared error over the squared modulus."""
    del key
    return ((model(x) - y) / y) ** 2


def fitted(bench: Bench, units: int, top: float) -> tuple[Fan, float]:
    """A network for the modulus up to `top`, and its largest relative error."""
    init_key, fit_key = jax.random.split(bench.key)
    angles = jnp.linspace(0, 2 * jnp.pi, 4096, endpoint=False, dtype=bench.dtype)
    circle = top * jnp.stack([jnp.cos(angles), jnp.sin(angles)], axis=1)
    starts = jax.random.normal(init_key, (units, 2), bench.dtype)
    model = Fan(starts, jnp.full((units,), 1 / units, bench.dtype))
    num_steps = 1000 if bench.quick else 6000
    optimiser = optax.adam(optax.cosine_decay_schedule(2e-2, num_steps))
    stage = Stage({"modulus": Term(relative_error)}, lambda model: model, num_steps, 512, optimiser)
    checkpoint = bench.fits / f"modulus-{units}"
    modulus = jnp.full((len(circle),), top, bench.dtype)
    options: dict[str, Any] = {"key": fit_key, "checkpoint": checkpoint, "progress": bench.progress}
    model, _ = fit(model, {"fit": stage}, (circle, modulus), **options)
    bench.keep(f"modulus-{units}", model)
    return model, float(jnp.max(jnp.abs(jax.vmap(model)(circle) / top - 1)))


def _row(
    view: Scene, name: str, alpha: float | None, x: Float[Array, "2 n n"], steps: int, seconds: float
) -> dict[str, Any]:
    error, level, misfit = map(float, scores(view, x))
    row = {"method": name, "alpha": alpha, "steps": steps, "error %": error, "amplitude PSNR dB": level}
    return row | {"misfit %": misfit, "seconds": seconds}


@dataclasses.dataclass(frozen=True)
class Method:
    """A solver of the table.

    Attributes:
        name: in the table.
        solver: what runs.
        alpha: of it, if any.
        network: whether it sees the network, not the true modulus.
    """

    name: str
    solver: AbstractSolver[Any]
    alpha: float | None = None
    network: bool = False


def modulus_network(bench: Bench) -> Findings:
    """Lifted inversion of ever better networks, on data of the true modulus without noise, beside their own fit."""
    size = 24 if bench.quick else 32
    view = scene(size, size // 8, 0.0, bench.dtype, key=bench.key)
    x0 = flat(view.optics, view.data)
    rows: list[dict[str, Any]] = []
    budgets = (300,) if bench.quick else (1000, 3000, 10_000)
    for units in (8,) if bench.quick else (8, 16, 32):
        fan, error = fitted(bench, units, float(jnp.max(view.data)))
        model = network(view.optics, fan)
        wrong = float(jnp.linalg.norm(model(view.x) - view.data) / jnp.linalg.norm(view.data))
        problem = Problem(model, view.data)
        runs: list[tuple[Method, int]] = [
            (Method("lifted, TV", BlockInversion(1e-4, VARIATION, rtol=0.0), 1e-4), budget) for budget in budgets
        ]
        damped = LevenbergMarquardt(ConjugateGradients(), rtol=1e-6)
        runs.append((Method("Levenberg-Marquardt, CG, on the network", damped), 100))
        for method, budget in runs:
            solution, seconds = timed_solve(problem, method.solver, x0, max_steps=budget)
            steps = int(solution.stats.num_steps)
            found = _row(view, method.name, method.alpha, solution.value, steps, seconds)
            rows.append({"units": units, "max error, %": 100 * error, "error on data, %": 100 * wrong} | found)
    return Findings(rows)


def methods(alphas: tuple[float, ...], discrepancy: float | None) -> list[Method]:
    """All of them; those that can, stop at the level of the noise, if there is any."""
    quadratic = "quadratic fidelity, TV"
    found = [Method("lifted, TV", BlockInversion(a, VARIATION, rtol=0.0), a, network=True) for a in alphas]
    first, norm = alphas[0], HalfSquaredNorm()
    found.append(Method("lifted, half squared norm", BlockInversion(first, norm, rtol=0.0), first, network=True))
    found += [Method(quadratic, VariationalDescent(a, VARIATION, rtol=0.0), a) for a in alphas]
    found.append(Method(f"{quadratic}, network", VariationalDescent(first, VARIATION, rtol=0.0), first, network=True))
    if discrepancy is not None:
        inner = BlockInversion(BREGMAN, VARIATION)
        iteration = BregmanIteration(inner, num_inner=INNER, discrepancy=discrepancy)
        found.append(Method("Bregman iteration, lifted", iteration, BREGMAN, network=True))
    cg = ConjugateGradients()
    found.append(Method("Gauss-Newton, CG", GaussNewton(cg, rtol=1e-6, discrepancy=discrepancy)))
    return [*found, Method("Levenberg-Marquardt, CG", LevenbergMarquardt(cg, rtol=1e-6, discrepancy=discrepancy))]


def _solved(
    view: Scene, forward: Any, method: Method, x0: Float[Array, "2 n n"], many: int
) -> tuple[Float[Array, "2 n n"], int, float]:
    """The object, steps and seconds."""
    solver = method.solver
    per_step = INNER if isinstance(solver, BregmanIteration) else 1
    budget = 100 if method.alpha is None else many // per_step
    noise_std = view.noise_std if view.noise_std > 0 else None
    solution, seconds = timed_solve(Problem(forward, view.data, noise_std=noise_std), solver, x0, max_steps=budget)
    return solution.value, int(solution.stats.num_steps) * per_step, seconds


def retrieval(bench: Bench) -> Findings:
    """25 positions, then 9, without noise and with five per cent; all methods start from a flat object.

    Pixels count where there is light, at least a tenth of the brightest; the object is compared up to a global phase.
    """
    size, units = (24, 8) if bench.quick else (32, 32)
    many = 300 if bench.quick else 3000
    rows, pictures = [], {}
    fan = None
    for step in (size // 8, size // 4):
        for noise in (0.0, NOISE):
            if bench.quick and (step > size // 8 or not noise):
                continue
            view = scene(size, step, noise, bench.dtype, key=bench.key)
            if fan is None:
                fan, _ = fitted(bench, units, float(jnp.max(view.data)))
            models = {True: network(view.optics, fan), False: Moduli(view.optics)}
            x0 = flat(view.optics, view.data)
            estimates: dict[str, tuple[Array, float | None, int, float]] = {
                "flat object, the start": (x0, None, 0, 0.0)
            }
            for budget in (many // 30, many):
                found, seconds = timed(error_reduction, view.optics, view.data, x0, jnp.asarray(budget))
                estimates[f"error reduction, {budget}"] = (found, None, budget, seconds)
            for method in methods((3e-4, 1e-3, 3e-3) if noise else (1e-4,), 1.0 if noise else None):
                if bench.quick and method.name not in QUICK:
                    continue
                name = method.name if method.alpha is None else f"{method.name}, alpha {method.alpha:g}"
                found, steps, seconds = _solved(view, models[method.network], method, x0, many)
                estimates[name] = (found, method.alpha, steps, seconds)
            case = {"positions": len(view.optics.rows), "noise %": 100 * noise}
            rows += [case | _row(view, name, alpha, x, n, s) for name, (x, alpha, n, s) in estimates.items()]
            shown = {"truth": view.x} | {name: x for name, (x, *_) in estimates.items()}
            label = f"{case['positions']} positions, noise {case['noise %']:g} %"
            pictures |= {f"{label}: {name}": np.asarray(_shown(view, x)) for name, x in shown.items()}
    return Findings(rows, {}, pictures)


def _shown(view: Scene, x: Float[Array, "2 n n"]) -> Float[Array, "2 n n"]:
    """Amplitude, and phase over a right angle, where there is light."""
    real, imaginary = aligned(view, x)
    phase = jnp.arctan2(imaginary, real) / (jnp.pi / 2)
    return jnp.where(view.seen, jnp.stack([jnp.hypot(real, imaginary), phase]), 0)


def figures(found: Mapping[str, Findings]) -> dict[str, Any]:
    """Amplitude and phase; of several alphas or budgets, the last."""
    if "retrieval" not in found:
        return {}
    settings: dict[str, dict[str, np.ndarray]] = {}
    for name, images in found["retrieval"].arrays.items():
        setting, method = name.split(": ", 1)
        kept = method.split(", alpha")[0] if "error reduction" not in method else "error reduction"
        settings.setdefault(setting, {})[kept.replace(", ", ",\n")] = images
    files = {setting.replace(",", "").replace(" %", "").replace(" ", "-"): rows for setting, rows in settings.items()}
    return {
        name: plots.image_grid(rows, limits=(0.0, 1.0), titles=("amplitude", "phase")) for name, rows in files.items()
    }


LIFTED_PTYCHOGRAPHY = Study(
    name="lifted-ptychography",
    summary="a complex object from diffraction moduli: lifted inversion, alternating projections, least squares",
    reference="X. Wang, M. Benning, A lifted Bregman formulation for the inversion of deep neural networks, 2023, "
    "arXiv:2303.01965",
    recipes={"network": modulus_network, "retrieval": retrieval},
    figures=figures,
)
