"""What the maps of `pde` cost: value and both derivative products against hand-written steppers of the same order.

    python -m benchmarks.pde_cost [--case heat2d ...] [--batch 1 64]

Every quantity is timed in turn, round after round, in one run; compilation apart. Medians of the rounds, and ratios to
the hand-written stepper. Last known output, two threads of a busy 4-core CPU, float32, Heun steps
(136 on 64 points, 15 on 32^2, 3 on 16^3, 57 on 32^2) and 63 steps of Tsit5:

    case                batch product  hand-written          pinv_jax       diffrax step
    heat1d                  1 forward      0.074 ms    0.051 ms 0.68x    0.196 ms  2.64x
    heat1d                  1     jvp      0.047 ms    0.048 ms 1.00x    0.198 ms  4.18x
    heat1d                  1     vjp      0.050 ms    0.055 ms 1.11x    0.098 ms  1.96x
    heat1d                 64 forward      0.399 ms    0.383 ms 0.96x    1.744 ms  4.37x
    heat1d                 64     jvp      0.389 ms    0.386 ms 0.99x    1.716 ms  4.41x
    heat1d                 64     vjp      0.494 ms    0.492 ms 0.99x    2.588 ms  5.23x
    heat2d                  1 forward      0.073 ms    0.062 ms 0.85x    0.114 ms  1.56x
    heat2d                  1     jvp      0.063 ms    0.062 ms 0.99x    0.115 ms  1.82x
    heat2d                  1     vjp      0.086 ms    0.090 ms 1.05x    0.193 ms  2.24x
    heat2d                 64 forward      2.105 ms    2.145 ms 1.02x    6.850 ms  3.25x
    heat2d                 64     jvp      1.990 ms    1.929 ms 0.97x    7.054 ms  3.55x
    heat2d                 64     vjp      4.580 ms    4.347 ms 0.95x   10.012 ms  2.19x
    heat3d                  1 forward      0.057 ms    0.055 ms 0.96x    0.087 ms  1.52x
    heat3d                  1     jvp      0.050 ms    0.052 ms 1.05x    0.100 ms  2.01x
    heat3d                  1     vjp      0.113 ms    0.111 ms 0.99x    0.277 ms  2.46x
    heat3d                 64 forward      1.901 ms    1.611 ms 0.85x    4.957 ms  2.61x
    heat3d                 64     jvp      1.693 ms    1.197 ms 0.71x    4.430 ms  2.62x
    heat3d                 64     vjp      6.718 ms    6.746 ms 1.00x    7.432 ms  1.11x
    advection-diffusion     1 forward      0.676 ms    0.149 ms 0.22x    0.317 ms  0.47x
    advection-diffusion     1     jvp      0.658 ms    0.128 ms 0.19x    0.338 ms  0.51x
    advection-diffusion     1     vjp      1.515 ms    0.326 ms 0.22x    2.091 ms  1.38x
    advection-diffusion    64 forward     32.224 ms    8.763 ms 0.27x   22.874 ms  0.71x
    advection-diffusion    64     jvp     33.362 ms    8.952 ms 0.27x   22.491 ms  0.67x
    advection-diffusion    64     vjp     85.207 ms   23.040 ms 0.27x   34.282 ms  0.40x
    oscillator              1 forward      0.014 ms    0.012 ms 0.88x    0.036 ms  2.58x
    oscillator              1     jvp      0.050 ms    0.014 ms 0.28x    0.150 ms  3.01x
    oscillator              1     vjp      0.051 ms    0.061 ms 1.18x    0.170 ms  3.32x
    oscillator             64 forward      0.140 ms    0.120 ms 0.86x    0.491 ms  3.51x
    oscillator             64     jvp      0.193 ms    0.161 ms 0.83x    0.760 ms  3.94x
    oscillator             64     vjp      0.347 ms    0.356 ms 1.03x    2.168 ms  6.24x

By hand, the fluxes of advection and diffusion are rolled, as one writes them; the map pads once, behind a barrier.

`integrate` unrolls the stages of explicit solvers: the `step` of diffrax's Runge-Kutta solvers loops over them through
a buffer, which is what the last column shows: the same map, with that `step`.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple
from unittest import mock

import diffrax
import jax
import jax.numpy as jnp

from pinv_jax import pde


class Case(NamedTuple):
    """A map and its rival: `hand_written(build())` is the function one would write by hand for the same scheme."""

    build: Callable[[], Any]
    hand_written: Callable[[Any], Callable[[jax.Array], jax.Array]]


def heun(slope, f):
    """Heun's method with the steps of the map `f`."""
    step_size = f.final_time / f.num_steps

    def step(u, _):
        first = slope(u)
        return u + 0.5 * step_size * (first + slope(u + step_size * first)), None

    return lambda x: jax.lax.scan(step, x, None, length=f.num_steps)[0]


def heat_by_hand(heat):
    """The stencil in one, two or three dimensions, written out."""
    rate = heat.diffusivity * (heat.num_points + 1) ** 2
    inner = slice(1, -1)
    shifted = {
        1: ((slice(2, None),), (slice(-2),)),
        2: ((slice(2, None), inner), (slice(-2), inner), (inner, slice(2, None)), (inner, slice(-2))),
        3: (
            (slice(2, None), inner, inner),
            (slice(-2), inner, inner),
            (inner, slice(2, None), inner),
            (inner, slice(-2), inner),
            (inner, inner, slice(2, None)),
            (inner, inner, slice(-2)),
        ),
    }[heat.num_dimensions]

    def slope(u):
        padded = jnp.pad(u, 1)
        return rate * (sum(padded[where] for where in shifted) - len(shifted) * u)

    return heun(slope, heat)


def advection_diffusion_by_hand(f):
    """Central fluxes through the faces, written out."""
    n, v, w = f.velocity_0.shape[0], f.velocity_0, f.velocity_1

    def slope(u):
        right, up = jnp.roll(u, -1, 0), jnp.roll(u, -1, 1)
        flux_0 = 0.5 * v * (u + right) - f.diffusivity * n * (right - u)
        flux_1 = 0.5 * w * (u + up) - f.diffusivity * n * (up - u)
        return -n * (flux_0 - jnp.roll(flux_0, 1, 0) + flux_1 - jnp.roll(flux_1, 1, 1))

    return heun(slope, f)


def oscillator_by_hand(f):
    """Tsitouras' fifth-order method on position and velocity, one step from each time to the next."""
    tableau = diffrax.Tsit5.tableau
    rows, weights = [[], *(list(map(float, row)) for row in tableau.a_lower[:-1])], list(map(float, tableau.b_sol[:-1]))
    step_size = f.final_time / (f.num_times - 1)

    def apply(theta):
        m, c, k, position, velocity = theta

        def step(state, _):
            position, velocity = state
            slopes = []
            for row in rows:
                p = position + step_size * sum(a * s[0] for a, s in zip(row, slopes, strict=True))
                v = velocity + step_size * sum(a * s[1] for a, s in zip(row, slopes, strict=True))
                slopes.append((v, -(c * v + k * p) / m))
            position = position + step_size * sum(b * s[0] for b, s in zip(weights, slopes, strict=True))
            velocity = velocity + step_size * sum(b * s[1] for b, s in zip(weights, slopes, strict=True))
            return (position, velocity), position

        later = jax.lax.scan(step, (position, velocity), length=f.num_times - 1)[1]
        return jnp.concatenate([position[None], later])

    return apply


def allen_cahn_by_hand(f):
    """The semi-implicit scheme, its factor computed once."""
    step_size = f.final_time / f.num_steps
    first, second = pde.wavenumbers_2d(f.num_points)
    factor = 1 / (1 + step_size * f.epsilon**2 * jnp.asarray(first**2 + second**2, jnp.float32))

    def step(u, _):
        return jnp.fft.irfft2(factor * jnp.fft.rfft2(u + step_size * (u - u**3)), u.shape), None

    return lambda x: jax.lax.scan(step, x, None, length=f.num_steps)[0]


def navier_stokes_by_hand(f):
    """The method of Bogacki and Shampine, three stages, on the Fourier modes of the vorticity."""
    step_size, shape = f.final_time / f.num_steps, (f.num_points, f.num_points)
    first, second = (jnp.asarray(k, jnp.float32) for k in pde.wavenumbers_2d(f.num_points))
    squared = first**2 + second**2
    inverse = jnp.where(squared > 0, 1 / squared, 0.0)
    kept = jnp.maximum(jnp.abs(first), jnp.abs(second)) < 2 * jnp.pi * f.num_points / 3

    def slope(w):
        u = jnp.fft.irfft2(1j * second * inverse * w, shape)
        v = jnp.fft.irfft2(-1j * first * inverse * w, shape)
        product, squares = jnp.fft.rfft2(u * v), jnp.fft.rfft2(v**2 - u**2)
        advection = (first**2 - second**2) * product + first * second * squares
        return jnp.where(kept, advection, 0.0) - f.viscosity * squared * w

    def step(w, _):
        a = slope(w)
        b = slope(w + step_size / 2 * a)
        c = slope(w + step_size * 3 / 4 * b)
        return w + step_size * (2 / 9 * a + 1 / 3 * b + 4 / 9 * c), None

    def apply(x):
        start = jnp.where(kept, jnp.fft.rfft2(x), 0.0)
        return jnp.fft.irfft2(jax.lax.scan(step, start, None, length=f.num_steps)[0], shape)

    return apply


def outflow_by_hand(faces, shift, p):
    """The five-point stencil with conductances `faces`, written out."""
    (right, up), q, inner = faces, jnp.pad(p, 1), slice(1, -1)
    along_0 = right[1:] * (p - q[2:, inner]) + right[:-1] * (p - q[:-2, inner])
    along_1 = up[:, 1:] * (p - q[inner, 2:]) + up[:, :-1] * (p - q[inner, :-2])
    return along_0 + along_1 + shift * p


def solve_by_hand(faces, shift, b):
    """Conjugate gradients for that stencil, preconditioned by the scaled Laplacian."""
    right, up = faces
    n = b.shape[0]
    angle = jnp.pi * jnp.arange(1, n + 1, dtype=b.dtype) / (n + 1)
    sines = jnp.sqrt(2 / (n + 1)) * jnp.sin(angle[:, None] * jnp.arange(1, n + 1, dtype=b.dtype))
    along = 2 - 2 * jnp.cos(angle)

    matvec = lambda p: outflow_by_hand(faces, shift, p)

    def solve(_, b):
        scale = 2 * jax.lax.rsqrt(right[1:] + right[:-1] + up[:, 1:] + up[:, :-1] + shift)
        mode = scale * jnp.outer(sines[:, 0], sines[:, 0])
        inverse = 1 / (along[:, None] + along + jnp.vdot(mode, matvec(mode)) - 2 * along[0])

        def precondition(r):
            return scale * (sines @ (inverse * (sines @ (scale * r) @ sines)) @ sines)

        def step(state):
            x, r, d, rho = state
            image = matvec(d)
            alpha = rho / jnp.vdot(d, image)
            r = r - alpha * image
            z = precondition(r)
            after = jnp.vdot(r, z)
            return x + alpha * d, r, z + after / rho * d, after

        z = precondition(b)
        start = jnp.vdot(b, z)
        last = (10 * jnp.finfo(b.dtype).eps) ** 2 * start
        return jax.lax.while_loop(lambda state: state[3] > last, step, (jnp.zeros_like(b), b, z, start))[0]

    return jax.lax.custom_linear_solve(matvec, b, solve, symmetric=True)


def faces_by_hand(f, x):
    """Harmonic means of the permeability across either axis."""
    r = jnp.exp(-(f.mean + jnp.tensordot(f.basis, x, 1)))
    wide, high = jnp.pad(r, ((1, 1), (0, 0)), mode="edge"), jnp.pad(r, ((0, 0), (1, 1)), mode="edge")
    return 2 / (wide[1:] + wide[:-1]), 2 / (high[:, 1:] + high[:, :-1])


def darcy_by_hand(f):
    """One solve by conjugate gradients."""
    return lambda x: solve_by_hand(faces_by_hand(f, x), 0.0, f.source / (f.source.shape[0] + 1) ** 2)


def transient_darcy_by_hand(f):
    """Alexander's method of order two: two solves a step."""
    n = f.steady.source.shape[0]
    h, g = f.final_time / f.num_steps, 1 - 0.5**0.5
    shift = f.storage / (g * h * (n + 1) ** 2)

    def apply(x):
        faces = faces_by_hand(f.steady, x)
        solve = lambda b: solve_by_hand(faces, shift, shift * b)
        rate = lambda p: (f.steady.source - outflow_by_hand(faces, 0.0, p) * (n + 1) ** 2) / f.storage

        def step(p, _):
            first = solve(rate(p))
            second = solve(rate(p + (1 - g) * h * first))
            return p + h * ((1 - g) * first + g * second), None

        return jax.lax.scan(step, jnp.zeros((n, n), x.dtype), None, length=f.num_steps)[0]

    return apply


CASES = {
    "heat1d": Case(lambda: pde.Heat1D(dtype=jnp.float32), heat_by_hand),
    "heat2d": Case(lambda: pde.Heat2D(32, dtype=jnp.float32), heat_by_hand),
    "heat3d": Case(lambda: pde.Heat3D(16, dtype=jnp.float32), heat_by_hand),
    "advection-diffusion": Case(lambda: pde.AdvectionDiffusion2D(dtype=jnp.float32), advection_diffusion_by_hand),
    "allen-cahn": Case(lambda: pde.AllenCahn2D(dtype=jnp.float32), allen_cahn_by_hand),
    "navier-stokes": Case(lambda: pde.NavierStokes2D(dtype=jnp.float32), navier_stokes_by_hand),
    "oscillator": Case(lambda: pde.DampedOscillator(dtype=jnp.float32), oscillator_by_hand),
    "darcy": Case(lambda: pde.Darcy2D(dtype=jnp.float32), darcy_by_hand),
    "transient darcy": Case(lambda: pde.TransientDarcy2D(dtype=jnp.float32), transient_darcy_by_hand),
}


def with_own_step(f):
    """The same map through the `step` of its diffrax solver; `None` if its time stepping has no stages to unroll."""
    if not isinstance(getattr(f, "solver", None), diffrax.AbstractERK):
        return None

    def apply(x):
        with mock.patch("pinv_jax.pde._timestep._tableau", return_value=None):
            return f(x)

    return apply


def products(f):
    """The three things an inversion asks of a map, as functions of `x` and a cotangent `w`."""
    return {
        "forward": lambda x, w: f(x),
        "jvp": lambda x, w: jax.jvp(f, (x,), (x,))[1],
        "vjp": lambda x, w: jax.vjp(f, x)[1](w)[0],
    }


def measure(case, batch, rounds):
    """Median seconds by (stepper, product), every pair timed once per round."""
    f = case.build()
    steppers = {"hand-written": case.hand_written(f), "pinv_jax": lambda x: f(x), "diffrax step": with_own_step(f)}
    structure, out = f.in_structure(), f.out_structure()
    # Between one and two: the parameters of the oscillator are positive.
    x = jax.random.uniform(jax.random.key(0), (batch, *structure.shape), structure.dtype, 1.0, 2.0)
    w = jax.random.normal(jax.random.key(1), (batch, *out.shape), out.dtype)
    compiled = {
        (name, product): jax.jit(jax.vmap(fn)).lower(x, w).compile()
        for name, stepper in steppers.items()
        if stepper is not None
        for product, fn in products(stepper).items()
    }
    seconds = {pair: [] for pair in compiled}
    values = {}
    for index in range(rounds + 1):
        for pair, fn in compiled.items():
            start = time.perf_counter()
            values[pair] = jax.block_until_ready(fn(x, w))
            if index > 0:  # the first round warms up
                seconds[pair].append(time.perf_counter() - start)
    for (name, product), value in values.items():
        error = float(jnp.linalg.norm(value - values["hand-written", product]) / jnp.linalg.norm(value))
        assert error < 1e-4, f"{name} computes another {product} than the hand-written stepper: they differ by {error}"
    return {pair: statistics.median(times) for pair, times in seconds.items()}


def main(argv=None):
    """Prints medians in milliseconds and ratios."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.pde_cost", description=main.__doc__)
    parser.add_argument("--case", choices=CASES, nargs="+", default=list(CASES))
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 64])
    parser.add_argument("--rounds", type=int, default=30)
    options = parser.parse_args(argv)
    print(f"{'case':19} {'batch':>5} {'product':>7} {'hand-written':>13} {'pinv_jax':>17} {'diffrax step':>18}")
    for name in options.case:
        for batch in options.batch:
            medians = measure(CASES[name], batch, options.rounds)
            for product in ("forward", "jvp", "vjp"):
                base, ours = medians["hand-written", product], medians["pinv_jax", product]
                line = f"{name:19} {batch:>5} {product:>7} {1e3 * base:>10.3f} ms"
                line += f" {1e3 * ours:>8.3f} ms {ours / base:>4.2f}x"
                theirs = medians.get(("diffrax step", product))
                print(line if theirs is None else f"{line} {1e3 * theirs:>8.3f} ms {theirs / base:>5.2f}x", flush=True)


if __name__ == "__main__":
    main()
