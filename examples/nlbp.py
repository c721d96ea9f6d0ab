"""How does one move a point onto the fibre f(x) = data of a nonlinear map? Back-projection, right and wrong.

For a linear map `x + pinv(data - f(x))` meets the data. The formula is often quoted for nonlinear maps too, where it
does not; non-linear back-projection does, exactly and in one step, by moving in the completed coordinates `(y, z)`.

Run it as it is: `python examples/nlbp.py`. It takes less than a minute on a CPU, in float32, and trains nothing: what
is shown holds for any weights.
"""

import time

import jax
import jax.numpy as jnp

import pinv_jax as pj
from pinv_jax import diagnostics, maps, solvers

SIZE, NUM_POINTS = 12, 2000
GAINS = (0.0, 0.1, 0.3, 1.0)


def make_net(num_in, num_out, gain, *, key):
    """A random perceptron whose output is zero at gain zero."""
    first_key, last_key = jax.random.split(key)
    first = jax.random.normal(first_key, (16, num_in)) / num_in**0.5
    last = gain * jax.random.normal(last_key, (num_out, 16)) / 4
    return jax.tree_util.Partial(lambda weights, z: weights[1] @ jnp.tanh(weights[0] @ z), (first, last))


def make_surjection(gain, *, key):
    """Twelve numbers to four: twice an orthogonal mixer and a coupling that gives up four of its entries.

    The gain scales whatever is nonlinear. The sections, which say what `pinv` puts where something was lost, are
    random: exactness does not depend on them.
    """
    layers = []
    for num_in, num_out in ((12, 8), (8, 4)):
        key, mixer_key, *net_keys = jax.random.split(key, 5)
        lost = num_in - num_out
        layers += [
            maps.Cayley((num_in,), key=mixer_key),
            maps.SurjectiveCoupling(
                (num_in,),
                num_out,
                scale=make_net(lost, num_out, gain, key=net_keys[0]),
                shift=make_net(lost, num_out, gain, key=net_keys[1]),
                section=make_net(num_out, lost, 1.0, key=net_keys[2]),
            ),
        ]
    # The mixers are built here, once, and not at every call.
    return maps.prepare(maps.SurjectiveChain(layers))


def by_the_linear_formula(f, x, data):
    """What is right for a linear map only. Do not use it."""
    return x + f.pinv(data - f(x))


MOVES = {
    "stay where you are": lambda f, x, data: x,
    "x + pinv(data - f(x))": by_the_linear_formula,
    "nlbp, random section": solvers.nlbp,
    "nlbp, natural": lambda f, x, data: solvers.nlbp(maps.Natural(f), x, data),
}


@jax.jit
def residuals(f, xs, data):
    """For every move, the median and the largest residual, relative to the data."""
    rows = []
    for move in MOVES.values():
        predicted = jax.vmap(lambda x, y, move=move: f(move(f, x, y)))(xs, data)
        relative = jnp.linalg.norm(predicted - data, axis=1) / jnp.linalg.norm(data, axis=1)
        rows.append((jnp.median(relative), jnp.max(relative)))
    return rows


def print_residuals(xs, data, *, key):
    columns = [residuals(make_surjection(gain, key=key), xs, data) for gain in GAINS]
    print(f"-- |f(x') - data| / |data|: median and largest of {NUM_POINTS} points, by the gain of the nonlinearity --")
    print(f"{'':24}" + "".join(f"{gain:>20}" for gain in GAINS))
    for name, *row in zip(MOVES, *columns, strict=True):
        print(f"{name:24}" + "".join(f"{median:11.1e}{largest:9.1e}" for median, largest in row))


def print_half_steps(f, xs, data):
    half = jax.jit(jax.vmap(lambda x, y: f(solvers.nlbp(f, x, y, 0.5)) - 0.5 * (f(x) + y)))
    print(f"\nhalf a step goes half the way, to {jnp.max(jnp.abs(half(xs, data))):.1e}")


def print_intervals(f, xs, truth):
    """A sensor that rounds to multiples of 0.25 and clips at 1 shows a box, and not a point."""
    step, limit = 0.25, 1.0

    def sensor(y):
        return jnp.clip(step * jnp.round(y / step), -limit, limit)

    def box(shown):
        coarse, clipped = solvers.quantisation_box(shown, step), solvers.clipping_box(shown, -limit, limit)
        return jnp.minimum(coarse[0], clipped[0]), jnp.maximum(coarse[1], clipped[1])

    shown = sensor(jax.vmap(f)(truth))
    rows = {"a point": solvers.NLBP(atol=1e-4), "a box": solvers.NLBP(box=box, atol=1e-4)}
    print(f"\n-- A sensor with steps of {step} and a range of {limit}; its data taken as --")
    print(f"{'':12}{'met':>8}{'way from x':>14}{'sensor shows the same again':>30}")
    for name, solver in rows.items():
        # `solve` adds to `nlbp` what a loop needs: tolerances, codes, counts, and lanes that do not disturb each other.
        solution = pj.solve_batch(pj.Problem(f, shown), solver, xs)
        predicted = jax.vmap(f)(solution.value)
        lower, upper = box(shown)
        same = jnp.mean((predicted >= lower - 1e-4) & (predicted <= upper + 1e-4))
        way = jnp.median(jnp.linalg.norm(solution.value - xs, axis=1))
        print(f"{name:12}{100 * jnp.mean(solution.success):7.1f}%{way:14.3f}{100 * same:29.1f}%")


def print_distances(f, xs, data):
    """Back-projection is the shortest way in the coordinates (y, z), which is not the shortest one in x."""
    natural = maps.Natural(f)
    moved = jax.jit(jax.vmap(lambda x, y: solvers.nlbp(natural, x, y)))(xs, data)
    solution = pj.solve_batch(pj.Problem(f, data), solvers.MinimumNorm(None, atol=1e-4), xs)
    distance = jax.jit(jax.vmap(lambda a, b: diagnostics.completion_distance(f, a, b)))
    print(f"\n-- How far from x? {len(xs)} points, medians --\n{'':28}{'in x':>10}{'in (y, z)':>12}")
    for name, points in {"nlbp, natural": moved, "solvers.MinimumNorm(None)": solution.value}.items():
        way = jnp.median(jnp.linalg.norm(points - xs, axis=1))
        print(f"{name:28}{way:10.3f}{jnp.median(distance(points, xs)):12.3f}")
    print(f"{100 * jnp.mean(solution.success):.1f}% of the nearest points were found to tolerance")


def main():
    print("devices:", jax.devices())
    start = time.perf_counter()
    model_key, x_key, data_key = jax.random.split(jax.random.key(0), 3)
    xs = jax.random.normal(x_key, (NUM_POINTS, SIZE))
    data = jax.random.normal(data_key, (NUM_POINTS, 4))
    with jax.default_matmul_precision("highest"):
        print_residuals(xs, data, key=model_key)
        f = make_surjection(0.3, key=model_key)
        print_half_steps(f, xs, data)
        print_intervals(f, xs[:1000], xs[1000:])
        print_distances(f, xs[:300], data[:300])
    print(f"\n{time.perf_counter() - start:.1f} s")


if __name__ == "__main__":
    main()
