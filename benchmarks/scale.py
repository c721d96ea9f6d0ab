"""`python -m benchmarks scale`: what one step of a solver costs as the grid is refined, and the exponent it grows with.

One accepted step of the solvers themselves, on one observation, under a search that accepts every trial:

- D-IPG: a forward map, its VJP, and two evaluations of g. Two networks whose size does not depend on the grid: a
  residual convolutional one, and one with a filter in Fourier space between pointwise layers. Their weights are random:
  a step costs the same whatever they are.
- LM, CG: as many iterations as `--iterations` says, a JVP and a VJP each.
- LM, dense: the Jacobian, column by column, and a Cholesky factorisation; only up to `--dense` unknowns.

`d` is the number of unknowns. Refining a grid costs more than its points: the explicit steps of the heat equation
number `O(n^2)` (stability), those of the Navier-Stokes equations `O(n)` (CFL). So operations of the forward map go like
`d^2` for Heat-2D, `d^(5/3)` for Heat-3D and `d^(3/2) log d` for Navier-Stokes, and like `d` (`log d`) per step in time;
both exponents are given. Dense LM takes `d` JVPs: one power more, or `d^3` of the factorisation if that is larger.
Small grids are dominated by what an operation costs however few its numbers: measured exponents are lower there, which
is why that of the two largest grids stands beside the one fitted to all.

Last known output, a busy 4-core CPU, float32: milliseconds, in brackets the ratio to the forward map.

    grid                        d  forward  D-IPG, Fourier     D-IPG, CNN        LM, CG       LM, dense
    heat2d, n = 16            256     0.08      0.38 (4.8)     0.60 (7.5)    0.44 (5.5)       1.3 (17)
    heat2d, n = 32           1024     0.30      0.54 (1.8)      1.1 (3.6)     1.2 (3.8)       54 (178)
    heat2d, n = 128         16384      5.8        17 (2.9)       30 (5.1)      164 (28)              -
    heat3d, n = 8             512     0.22      0.44 (2.0)      1.3 (6.0)    0.66 (2.9)       6.1 (27)
    heat3d, n = 24          13824     0.31       5.6 (18)       77 (246)      5.8 (19)               -
    navier-stokes, n = 16     256     0.71       1.4 (2.0)      1.7 (2.3)       11 (16)        41 (58)
    navier-stokes, n = 32    1024      1.7       3.5 (2.0)      4.1 (2.3)       32 (19)      825 (473)
    navier-stokes, n = 128  16384       42       132 (3.1)      150 (3.6)     1079 (26)              -

Exponents of that ratio in `d` on Heat-2D and Navier-Stokes: D-IPG 0.00 and 0.11 with the Fourier network, 0.03 and 0.11
with the convolutional one, dense LM 1.66 and 1.51. The forward map of Heat-3D is one to six time steps, well below what
either network costs; its times scatter too much for an exponent.
"""

import argparse
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

import pinv_jax as pj
from pinv_jax import _store, maps, pde, solvers

from ._timing import environment, race

FAMILIES: Mapping[str, tuple[Callable[[int], Any], tuple[int, ...], str]] = {
    "heat2d": (lambda n: pde.Heat2D(n, dtype=jnp.float32), (16, 24, 32, 64, 128), "zeros"),
    "heat3d": (lambda n: pde.Heat3D(n, dtype=jnp.float32), (8, 10, 12, 16, 24), "zeros"),
    "navier-stokes": (lambda n: pde.NavierStokes2D(n, dtype=jnp.float32), (16, 24, 32, 64, 128), "circular"),
}
COLUMNS = (
    "forward",
    "CNN g",
    "Fourier g",
    "D-IPG step, CNN",
    "D-IPG step, Fourier",
    "LM step, CG",
    "LM step, dense",
)
NOT_IN_TIME = ("CNN g", "Fourier g")


class FourierInverse(eqx.Module):
    """`g(y) = h + w . gelu(a y + b h)` at every point, `h` a periodic low pass of `y`; `O(d log d)`.

    Args:
        width: channels.
        key: random key.
    """

    into: Any
    out: Any

    def __init__(self, width: int, *, key: Any):
        into_key, out_key = jax.random.split(key)
        self.into = jax.random.normal(into_key, (2, width), jnp.float32)
        self.out = jax.random.normal(out_key, (width,), jnp.float32) / width

    def __call__(self, y: Any) -> Any:
        """The estimate for the field `y`."""
        squared = jnp.zeros((1,) * y.ndim, y.dtype)
        for axis, n in enumerate(y.shape):
            modes = np.fft.rfftfreq(n, 1 / n) if axis == y.ndim - 1 else np.fft.fftfreq(n, 1 / n)
            shape = [1] * y.ndim
            shape[axis] = -1
            squared = squared + jnp.asarray(modes.reshape(shape) ** 2, y.dtype)
        low = jnp.fft.irfftn(jnp.fft.rfftn(y) / (1 + 0.01 * squared), y.shape)
        return low + jax.nn.gelu(jnp.stack([y, low], axis=-1) @ self.into) @ self.out


class Accepting(solvers.AbstractSearch):
    """Accepts every trial, so that every step that is timed is a whole one."""

    first_step_size: Any = 1.0
    max_trials: int = eqx.field(default=1, static=True)

    def judge(self, trial: Any) -> tuple[Any, Any]:
        """See `AbstractSearch`."""
        return jnp.asarray(True), trial.step_size


def smooth(shape: tuple[int, ...]) -> Any:
    """A product of sines, the same function on every grid."""
    axes = jnp.meshgrid(*(jnp.linspace(0.0, 1.0, n, endpoint=False) for n in shape), indexing="ij")
    field = jnp.ones(shape, jnp.float32)
    for axis in axes:
        field = field * jnp.sin(2 * jnp.pi * axis)
    return field.astype(jnp.float32)


def one_step(solver: Any, problem: pj.Problem, x: Any) -> Callable[[], Any]:
    """A step of the solver from `x`, compiled; what comes before the first step is done beforehand."""

    # The solver and the problem are arguments: as constants, XLA would spend its time folding them.
    @jax.jit
    def start(solver: Any, problem: Any, x: Any) -> Any:
        with jax.default_matmul_precision("highest"):
            return solver.init(problem, x)

    @jax.jit
    def step(solver: Any, problem: Any, x: Any, state: Any) -> Any:
        with jax.default_matmul_precision("highest"):
            # The whole state is returned: XLA would leave out the gradient and what is prepared for the next step.
            return solver.step(problem, x, state)

    solver = jax.tree.map(lambda leaf: jnp.asarray(leaf, x.dtype) if isinstance(leaf, float) else leaf, solver)
    begun: list[Any] = []

    def call() -> Any:
        if not begun:
            begun.append(start(solver, problem, x))
        return step(solver, problem, *begun[0])

    return call


def measure(
    family: str, num_points: int, *, dense: int, iterations: int, width: int, rounds: int, seed: int
) -> dict[str, Any]:
    """The row of one grid."""
    build, _, padding = FAMILIES[family]
    forward = build(num_points)
    structure = forward.in_structure()
    data = jax.random.normal(jax.random.key(seed), structure.shape, structure.dtype)
    x = smooth(structure.shape)
    cnn = maps.ResidualCNN(
        structure.shape,
        width=width,
        num_blocks=1,
        padding=padding,
        dtype=structure.dtype,
        key=jax.random.key(seed + 1),
    )
    fourier = FourierInverse(width, key=jax.random.key(seed + 2))
    problem = pj.Problem(forward, data)
    rules: dict[str, Any] = {"atol": 0.0, "rtol": 0.0, "search": Accepting()}
    cg = solvers.ConjugateGradients(rtol=0.0, max_steps=iterations)
    methods = {
        "D-IPG step, CNN": solvers.DIPG(cnn, jump_first=False, **rules),
        "D-IPG step, Fourier": solvers.DIPG(fourier, jump_first=False, **rules),
        "LM step, CG": solvers.LevenbergMarquardt(cg, **rules),
    }
    if data.size <= dense:
        methods["LM step, dense"] = solvers.LevenbergMarquardt(**rules)
    evaluate = jax.jit(lambda f, x: f(x))
    calls: dict[str, Callable[[], Any]] = {
        "forward": lambda: evaluate(forward, x),
        "CNN g": lambda: evaluate(cnn, data),
        "Fourier g": lambda: evaluate(fourier, data),
    } | {name: one_step(method, problem, x) for name, method in methods.items()}
    found = race(calls, rounds)
    for name in methods:
        _, state = found[name]["value"]
        if int(state.record.num_steps) != 1:
            raise RuntimeError(f"{family} on {num_points} points: {name} was not accepted; its time would be a part.")
    reference = found["forward"]["seconds"]
    return {
        "family": family,
        "num_points": num_points,
        "d": data.size,
        "num_steps": forward.num_steps,
        "ms": {name: 1e3 * float(found[name]["seconds"]) for name in calls},
        "quartiles_ms": {name: [1e3 * float(found[name][end]) for end in ("low", "high")] for name in calls},
        "ratio to forward": {name: float(found[name]["seconds"] / reference) for name in calls},
        "compile_seconds": {name: float(found[name]["first"] - found[name]["seconds"]) for name in calls},
    }


def exponent(sizes: Sequence[float], values: Sequence[float]) -> float | None:
    """The slope of `log values` against `log sizes`, least squares; none for fewer than two sizes."""
    if len(sizes) < 2:
        return None
    return float(np.polyfit(np.log(sizes), np.log(values), 1)[0])


def exponents(rows: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, float | None]]:
    """By quantity: fitted to all grids, to the two largest, and to all per step in time and per forward map."""
    found = {}
    for name in COLUMNS:
        kept = [row for row in rows if name in row["ms"]]
        d = [row["d"] for row in kept]
        ms = [row["ms"][name] for row in kept]
        found[name] = {
            "all": exponent(d, ms),
            "two largest": exponent(d[-2:], ms[-2:]),
            "per time step": None
            if name in NOT_IN_TIME
            else exponent(d, [row["ms"][name] / row["num_steps"] for row in kept]),
            "over forward": exponent(d, [row["ratio to forward"][name] for row in kept]),
        }
    return found


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Milliseconds, in brackets the ratio to the forward map, then the exponents, as Markdown."""

    def cell(row: Mapping[str, Any], name: str) -> str:
        return f"{row['ms'][name]:.3g} ({row['ratio to forward'][name]:.3g})" if name in row["ms"] else "-"

    lines = [["grid", "d", "time steps", *COLUMNS], ["---"] * (3 + len(COLUMNS))]
    for row in rows:
        grid = f"{row['family']}, n = {row['num_points']}"
        lines.append([grid, str(row["d"]), str(row["num_steps"]), *(cell(row, name) for name in COLUMNS)])
    slopes = exponents(rows)
    for kind in ("all", "two largest", "per time step", "over forward"):
        values = [slopes[name][kind] for name in COLUMNS]
        lines.append([f"exponent, {kind}", "", "", *("-" if value is None else f"{value:.2f}" for value in values)])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def main(argv: Sequence[str]) -> None:
    """Times every grid of every family, prints the tables and writes a report per family."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks scale", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--family", nargs="+", choices=tuple(FAMILIES), default=list(FAMILIES))
    parser.add_argument("--sizes", nargs="+", type=int, help="points along an axis; by default those of the family")
    parser.add_argument("--dense", type=int, default=1728, help="the most unknowns for which dense LM runs")
    parser.add_argument("--iterations", type=int, default=10, help="of conjugate gradients")
    parser.add_argument("--width", type=int, default=16, help="channels of g")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="write scale-FAMILY.json into this folder")
    options = parser.parse_args(argv)
    numbers = {name: getattr(options, name) for name in ("dense", "iterations", "width", "rounds", "seed")}
    device = environment()
    for family in options.family:
        begun = time.perf_counter()
        rows = [measure(family, n, **numbers) for n in sorted(options.sizes or FAMILIES[family][1])]
        report = device | numbers | {"family": family, "dtype": "float32", "rows": rows, "exponents": exponents(rows)}
        report["seconds"] = time.perf_counter() - begun
        print(
            f"{family}: ms of one step on one observation (ratio to the forward map); {options.iterations} iterations "
        )
        print(f"of CG; seed {options.seed}, float32, {device['device']}, jax {device['versions']['jax']}\n")
        print(table(rows), end="\n\n", flush=True)
        if options.out:
            _store.write_json(options.out / f"scale-{family}.json", report)
