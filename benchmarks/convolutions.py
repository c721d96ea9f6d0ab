"""`python -m benchmarks convolutions`: XLA's convolution against the product with the unfolded field, also in loops.

What `maps.ResidualCNN` and `maps.UNet` consist of: one layer of window 3, vmapped over a batch, its value and its
gradient in the weights, as a program of its own and as the body of a `lax.scan`, where solvers and trainings run it.
The last column is the time of the convolution over that of the product. Last known output, two busy cores, float32:

    16^2, 16 channels   value                      1.72 ms       1.74 ms    1.0x
    16^2, 16 channels   gradient                   4.07 ms       3.99 ms    1.0x
    16^2, 16 channels   value, in a loop           2.66 ms      27.54 ms   10.4x
    16^2, 16 channels   gradient, in a loop        5.91 ms     133.41 ms   22.6x
    32^2, 48 channels   value                      8.77 ms       8.00 ms    0.9x
    32^2, 48 channels   gradient                  24.14 ms      26.22 ms    1.1x
    32^2, 48 channels   value, in a loop           8.59 ms     318.81 ms   37.1x
    32^2, 48 channels   gradient, in a loop       23.58 ms     949.27 ms   40.3x
"""

import argparse
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from pinv_jax.maps import _residual_cnn as networks

from ._timing import environment, race

LAYERS = {"16^2, 16 channels": ((16, 16), 16, 64), "32^2, 48 channels": ((32, 32), 48, 16)}
LENGTH = 3


def measure(shape: tuple[int, ...], width: int, batch: int, rounds: int) -> list[tuple[str, float, float]]:
    """Seconds per layer of the product and of the convolution, by what is computed and where."""
    keys = jax.random.split(jax.random.key(0))
    weight = 0.1 * jax.random.normal(keys[0], (width, width, *(3,) * len(shape)), jnp.float32)
    x = jax.random.normal(keys[1], (batch, *shape, width), jnp.float32)

    def programs(form: Callable[..., Any]) -> dict[str, Callable[[], Any]]:
        def loss(weight: Any) -> Any:
            return jnp.mean(jax.vmap(lambda x: form(weight, x, padding="zeros"))(x) ** 2)

        def value(weight: Any) -> Any:
            return weight + 0 * loss(weight)  # of the shape of a gradient, so that both may be the body of one loop

        def looped(body: Callable[[Any], Any]) -> Callable[[Any], Any]:
            return lambda weight: jax.lax.scan(lambda w, _: (w - 1e-3 * body(w), None), weight, None, length=LENGTH)[0]

        bodies = {"value": value, "gradient": jax.grad(loss)}
        alone = {name: jax.jit(body) for name, body in bodies.items()}
        inside = {f"{name}, in a loop": jax.jit(looped(body)) for name, body in bodies.items()}
        return {name: lambda fn=fn: fn(weight) for name, fn in (alone | inside).items()}

    forms = {"product": programs(networks._unfolded), "convolution": programs(networks._convolved)}
    found = race({f"{form}/{what}": fn for form, each in forms.items() for what, fn in each.items()}, rounds)

    def seconds(form: str, what: str) -> float:
        return found[f"{form}/{what}"]["seconds"] / (LENGTH if "loop" in what else 1)

    return [(what, seconds("product", what), seconds("convolution", what)) for what in forms["product"]]


def main(argv: Sequence[str]) -> None:
    """Prints milliseconds and ratios."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks convolutions", description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args(argv)
    where = environment()
    print(f"float32, {where['device']}, jax {where['versions']['jax']}")
    print(f"{'layer':20}{'':22}{'product':>12}{'convolution':>14}{'ratio':>8}")
    for name, (shape, width, batch) in LAYERS.items():
        for what, product, convolution in measure(shape, width, batch, options.rounds):
            times = f"{1e3 * product:9.2f} ms{1e3 * convolution:11.2f} ms{convolution / product:7.1f}x"
            print(f"{name:20}{what:22}{times}")


if __name__ == "__main__":
    import sys

    main(sys.argv[1:])
