"""What `pde.Heat1D` costs: value and both derivative products against a hand-written stepper of the same order.

    python -m benchmarks.pde_cost

Every quantity is timed in turn, round after round, in one run; compilation apart. Medians of the rounds, and ratios to
the hand-written stepper. Last known output, two threads of a busy 4-core CPU, float32, 136 Heun steps on 64 points:

    batch  product    hand-written              Heat1D        diffrax step
      300  forward        1.751 ms     1.688 ms  0.96x     7.100 ms  4.05x
      300      jvp        1.673 ms     1.669 ms  1.00x     7.362 ms  4.40x
      300      vjp        2.269 ms     2.208 ms  0.97x    11.882 ms  5.24x

Hence `integrate` unrolls the stages of explicit solvers: the `step` of diffrax's Runge-Kutta solvers loops over them
through a buffer, which is what the last column shows.
"""

import argparse
import dataclasses
import statistics
import time

import diffrax
import jax
import jax.numpy as jnp

from pinv_jax import pde


def hand_written(heat):
    """Heun's method for the heat equation, as one writes it by hand."""
    rate = heat.diffusivity * (heat.num_points + 1) ** 2
    step_size = heat.final_time / heat.num_steps

    def slope(u):
        padded = jnp.pad(u, 1)
        return rate * (padded[2:] - 2 * u + padded[:-2])

    def step(u, _):
        first = slope(u)
        return u + 0.5 * step_size * (first + slope(u + step_size * first)), None

    return lambda x: jax.lax.scan(step, x, None, length=heat.num_steps)[0]


def own_step(heat):
    """The same method through the `step` of diffrax's Heun."""
    solver = dataclasses.replace(diffrax.Heun(), scan_kind="bounded")
    rate = heat.diffusivity * (heat.num_points + 1) ** 2
    term = diffrax.ODETerm(lambda t, u, args: rate * pde.second_difference(u))
    step_size = heat.final_time / heat.num_steps

    def step(carry, index):
        u, state = carry
        u, _, _, state, _ = solver.step(term, index * step_size, (index + 1) * step_size, u, None, state, False)
        return (u, state), None

    def apply(x):
        return jax.lax.scan(step, (x, solver.init(term, 0.0, step_size, x, None)), jnp.arange(heat.num_steps))[0][0]

    return apply


def products(f):
    """The three things an inversion asks of a map."""
    return {
        "forward": f,
        "jvp": lambda x: jax.jvp(f, (x,), (x,))[1],
        "vjp": lambda x: jax.vjp(f, x)[1](x)[0],
    }


def measure(batch, rounds, num_points):
    """Median seconds by (stepper, product), every pair timed once per round."""
    heat = pde.Heat1D(num_points, dtype=jnp.float32)
    steppers = {"hand-written": hand_written(heat), "Heat1D": heat, "diffrax step": own_step(heat)}
    x = jax.random.normal(jax.random.key(0), (batch, num_points), jnp.float32)
    compiled = {
        (name, product): jax.jit(jax.vmap(fn)).lower(x).compile()
        for name, f in steppers.items()
        for product, fn in products(f).items()
    }
    seconds = {pair: [] for pair in compiled}
    for index in range(rounds + 1):
        for pair, fn in compiled.items():
            start = time.perf_counter()
            jax.block_until_ready(fn(x))
            if index > 0:  # the first round warms up
                seconds[pair].append(time.perf_counter() - start)
    return {pair: statistics.median(values) for pair, values in seconds.items()}


def main(argv=None):
    """Prints medians in milliseconds and ratios."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.pde_cost", description=main.__doc__)
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 300])
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--num-points", type=int, default=64)
    options = parser.parse_args(argv)
    print(f"{'batch':>5} {'product':>8} {'hand-written':>15} {'Heat1D':>19} {'diffrax step':>19}")
    for batch in options.batch:
        medians = measure(batch, options.rounds, options.num_points)
        for product in ("forward", "jvp", "vjp"):
            base = medians["hand-written", product]
            ours, theirs = medians["Heat1D", product], medians["diffrax step", product]
            print(
                f"{batch:>5} {product:>8} {1e3 * base:>12.3f} ms {1e3 * ours:>9.3f} ms {ours / base:>5.2f}x "
                f"{1e3 * theirs:>9.3f} ms {theirs / base:>5.2f}x"
            )


if __name__ == "__main__":
    main()
