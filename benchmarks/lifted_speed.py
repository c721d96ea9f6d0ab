"""`python -m benchmarks lifted_speed`: iterations per second of full splitting against pyproximal's primal-dual method.

A random ReLU perceptron with 512 outputs, total variation and a box, float32, the same matrix and the same energy for
both: `solve` alone, `solve_batch` over many observations, and pyproximal with pylops (NumPy) alone, which knows no
batch, all in turn. The energies after equally many iterations are printed beside: pyproximal has one step size for both
duals, full splitting one for each. Needs the extra `bench`.

Last known output, two of four busy cores, one thread for NumPy; in a batch of 64, iterations of all observations
together:

      64^2  pyproximal                      2081.0    1.0x       4.361
      64^2  full splitting                  3372.9    1.6x       1.089
      64^2  full splitting, batch           7733.5    3.7x       3.151
     256^2  pyproximal                        65.2    1.0x        28.6
     256^2  full splitting                   102.2    1.6x       58.37
     256^2  full splitting, batch            353.4    5.4x       76.75
"""

import argparse
from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
import pylops
import pyproximal
from pyproximal.optimization.primaldual import PrimalDual

import pinv_jax as pj
from pinv_jax import lifted, maps

from ._timing import environment, race

NUM_OUTPUTS, ALPHA, STEP = 512, 0.015, 0.01
ITERATIONS = {64: (300, 100), 256: (20, 10)}
"""By image size: iterations alone, and in a batch."""


class LiftedFidelity(pyproximal.ProxOperator):
    """`w -> B(data, w + bias)` of a ReLU, for pyproximal."""

    def __init__(self, data: np.ndarray, bias: np.ndarray):
        super().__init__(None, False)
        self.data, self.bias = data, bias

    def __call__(self, w: np.ndarray) -> float:
        z = w + self.bias
        return float(np.sum(0.5 * (self.data - np.maximum(z, 0)) ** 2 + self.data * np.maximum(-z, 0)))

    def prox(self, w: np.ndarray, tau: float) -> np.ndarray:
        v = w + self.bias + tau * self.data
        return v - tau * np.maximum(v / (1 + tau), 0) - self.bias

    def proxdual(self, w: np.ndarray, tau: float) -> np.ndarray:
        return np.maximum((w + tau * self.bias + self.data) / (1 + tau), 0) - self.data


def contestants(size: int, batch: int) -> tuple[dict[str, Callable[[], Any]], Callable[[Any], float]]:
    """Programs by name, and the energy of the first observation."""
    rng = np.random.default_rng(0)
    matrix = rng.standard_normal((NUM_OUTPUTS, size * size), np.float32) * np.float32(64 / size)
    bias = rng.standard_normal(NUM_OUTPUTS, np.float32)
    y, x = np.mgrid[:size, :size] - (size - 1) / 2
    radii = size * np.linspace(0.15, 0.4, batch)
    truths = np.stack([y**2 + x**2 <= r**2 for r in radii]).astype(np.float32)
    data = np.maximum(truths.reshape(batch, -1) @ matrix.T + bias, 0)

    forward = maps.prepare(lifted.Perceptron(matrix, bias, lifted.ReLU(), shape=(size, size)))
    solver = lifted.FullSplitting(ALPHA, lifted.TotalVariation() + lifted.Box(0.0, 1.0), step_size=STEP, rtol=0.0)
    x0 = jnp.zeros((batch, size, size), jnp.float32)
    alone, together = ITERATIONS[size]
    one, many = pj.Problem(forward, jnp.asarray(data[0])), pj.Problem(forward, jnp.asarray(data))

    gradient = pylops.Gradient((size, size), kind="forward", edge=False, dtype=np.float32)
    operator = pylops.VStack([pylops.MatrixMult(matrix, dtype=np.float32), gradient], dtype=np.float32)
    fidelity = LiftedFidelity(data[0], bias)
    dual = pyproximal.VStack([fidelity, pyproximal.L21(ndim=2, sigma=ALPHA)], nn=[NUM_OUTPUTS, 2 * size * size])
    tau = STEP / ALPHA
    mu = 0.98 / (tau * (float(forward.norm()) ** 2 + 8))
    start = np.zeros(size * size, np.float32)

    def theirs() -> np.ndarray:
        return PrimalDual(
            pyproximal.Box(0.0, 1.0), dual, operator, start, np.float32(tau), np.float32(mu), niter=alone
        ).reshape(size, size)

    return {
        "pyproximal": theirs,
        "full splitting": lambda: pj.solve(one, solver, x0[0], max_steps=alone).value,
        "full splitting, batch": lambda: pj.solve_batch(many, solver, x0, max_steps=together).value,
    }, lambda u: float(solver.energy(one, jnp.asarray(u, jnp.float32)))


def measure(size: int, batch: int, rounds: int) -> dict[str, tuple[float, float]]:
    """Iterations per second, times the batch, and the energy of the first observation, by name."""
    programs, energy = contestants(size, batch)
    alone, together = ITERATIONS[size]
    counts = {"full splitting, batch": together * batch}
    found = race(programs, rounds)
    return {
        name: (
            counts.get(name, alone) / row["seconds"],
            energy(row["value"][0] if name in counts else row["value"]),
        )
        for name, row in found.items()
    }


def main(argv: Sequence[str]) -> None:
    """Prints iterations per second and their ratios."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks lifted_speed", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--sizes", type=int, nargs="+", default=sorted(ITERATIONS), choices=sorted(ITERATIONS))
    options = parser.parse_args(argv)
    where = environment()
    print(f"float32, {where['device']}, jax {where['versions']['jax']}, pyproximal {pyproximal.__version__}")
    print(f"{'size':>6}  {'':24}{'iterations/s':>14}{'ratio':>8}{'energy':>12}")
    for size in options.sizes:
        rows = measure(size, options.batch, options.rounds)
        theirs = rows["pyproximal"][0]
        for name, (rate, energy) in rows.items():
            print(f"{size:4}^2  {name:24}{rate:14.1f}{rate / theirs:7.1f}x{energy:12.4g}")


if __name__ == "__main__":
    import sys

    main(sys.argv[1:])
