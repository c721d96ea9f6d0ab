"""`python -m benchmarks restoration_cost`: what guidance costs, batches against single calls, memory by steps.

- `guidance`: a chain of a U-Net of DDPM with back-projection after every estimate, against the same chain without; in
  turns, medians. Beside the ratio of times that of the floating-point operations, as XLA counts them.
- `batch`: 64 observations in one call, against 64 calls; and how often the batch is compiled.
- `memory`: temporary memory of the compiled chain, for 10 to 1000 steps.
"""

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from pinv_jax import _store, diffusion, maps

from ._timing import environment, race

REPORT = Path(__file__).parent / "reports"
SHAPE, NUM_STEPS, BATCH = (3, 32, 32), 8, 64


def network(*, quick: bool) -> diffusion.Prior:
    """The prior; its parameters do not matter here."""
    widths = (8, 8) if quick else (32, 64)
    net = diffusion.DenoisingUNet(
        SHAPE, widths=widths, num_blocks=1, attention=(16,), dtype="float32", key=jax.random.key(0)
    )
    net = jax.tree.map(lambda leaf: leaf + 0.01, net)  # without its zeros
    return diffusion.Prior(net, diffusion.LinearSchedule(), shape=SHAPE)


def surjections() -> dict[str, Any]:
    """What is back-projected onto: analytic ones, and an SPNN."""
    pooled = (SHAPE[0], SHAPE[1] // 2, SHAPE[2] // 2)
    blur = maps.VaryingBlur(SHAPE, 0.3, 1.2, factor=2, dtype="float32")
    spnn = maps.spnn(SHAPE, maps.plan(SHAPE, (10,)), dtype="float32", key=jax.random.key(1))
    return {
        "x2 down-sampling": maps.Downsample(SHAPE, 2, "float32"),
        "tone curve": maps.Gamma(SHAPE, dtype="float32"),
        "varying blur, tone curve": maps.SurjectiveChain([blur, maps.Gamma(pooled, dtype="float32")]),
        "fish-eye, tone curve": maps.SurjectiveChain(
            [maps.fisheye(SHAPE, (20, 20), 0.2, dtype="float32"), maps.Gamma((3, 20, 20), dtype="float32")]
        ),
        "SPNN, 10 logits": maps.Natural(spnn),
    }


def chain(num_steps: int) -> Callable[..., Any]:
    """The chain of one image as a compiled function of prior, guide and key."""
    sampler = diffusion.DDIM(num_steps)
    return jax.jit(lambda prior, guide, key: diffusion.sample(prior, sampler, key=key, guide=guide))


def guidance(prior: diffusion.Prior, rounds: int) -> list[dict[str, Any]]:
    """One row for each surjection."""
    run, key = chain(NUM_STEPS), jax.random.key(2)
    guides: dict[str, Any] = {"none": None}
    for name, f in surjections().items():
        x = jnp.full(SHAPE, 0.4, jnp.float32)
        guides[name] = diffusion.project_after(f, f(x))
    compiled = {name: run.lower(prior, guide, key).compile() for name, guide in guides.items()}
    found = race({name: lambda n=name: compiled[n](prior, guides[n], key) for name in guides}, rounds)
    flops = {name: c.cost_analysis()["flops"] for name, c in compiled.items()}
    # XLA counts the body of a loop once: a step, and what is before the loop
    return [
        {
            "guide": name,
            "ms per step": 1e3 * found[name]["seconds"] / NUM_STEPS,
            "times unguided": found[name]["seconds"] / found["none"]["seconds"],
            "operations, times unguided": flops[name] / flops["none"],
        }
        for name in guides
    ]


def batch(prior: diffusion.Prior, rounds: int) -> dict[str, Any]:
    """64 observations at once and one by one."""
    f = surjections()["x2 down-sampling"]
    keys = jax.random.split(jax.random.key(3), BATCH)
    data = jax.vmap(f)(jax.random.uniform(keys[0], (BATCH, *SHAPE), jnp.float32))
    sampler, traced = diffusion.DDIM(NUM_STEPS), []

    def one(data: Any, key: Any) -> Any:
        return diffusion.sample(prior, sampler, key=key, guide=diffusion.project_after(f, data))

    def many(data: Any, keys: Any) -> Any:
        traced.append(data)
        return jax.vmap(one)(data, keys)

    single, together = jax.jit(one), jax.jit(many)
    found = race(
        {
            "64 calls": lambda: [single(y, k) for y, k in zip(data, keys, strict=True)],
            "one batch": lambda: together(data, keys),
        },
        rounds,
    )
    times = {name: row["seconds"] for name, row in found.items()}
    return {
        "seconds": times,
        "first calls, seconds": {name: row["first"] for name, row in found.items()},
        "times faster": times["64 calls"] / times["one batch"],
        "traces of the batch": len(traced),
    }


def memory(prior: diffusion.Prior) -> list[dict[str, Any]]:
    """Bytes, by the number of steps."""
    f = surjections()["x2 down-sampling"]
    guide = diffusion.project_after(f, f(jnp.zeros(SHAPE, jnp.float32)))
    rows = []
    for num_steps in (10, 100, 1000):
        analysis = chain(num_steps).lower(prior, guide, jax.random.key(0)).compile().memory_analysis()
        rows.append({"steps": num_steps, "temporary bytes": analysis.temp_size_in_bytes})
    return rows


def main(argv: Sequence[str]) -> None:
    """Prints the tables and writes the report."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks restoration_cost", description=__doc__)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--quick", action="store_true", help="a small network, to see that it runs")
    parser.add_argument("--out", type=Path, help="default benchmarks/reports/restoration_cost-DEVICE.json")
    options = parser.parse_args(argv)
    prior = network(quick=options.quick)
    report: dict[str, Any] = {
        "command": f"python -m benchmarks restoration_cost --rounds {options.rounds}" + " --quick" * options.quick,
        "seed": 0,
        "dtype": "float32",
        **environment(),
        "steps": NUM_STEPS,
        "shape": SHAPE,
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(prior)),
        "guidance": guidance(prior, options.rounds),
        "batch": batch(prior, max(3, options.rounds // 3)),
        "memory": memory(prior),
    }
    for row in report["guidance"]:
        print(f"{row['guide']:28}{row['ms per step']:10.2f} ms", end="")
        print(f"{row['times unguided']:8.2f}x{row['operations, times unguided']:8.2f}x operations")
    print(f"a batch of {BATCH} is {report['batch']['times faster']:.2f} times as fast as {BATCH} calls")
    for row in report["memory"]:
        print(f"{row['steps']:6} steps {row['temporary bytes']:12,} bytes")
    out = REPORT / f"restoration_cost-{jax.default_backend()}.json" if options.out is None else options.out
    _store.write_json(out, report)


if __name__ == "__main__":
    import sys

    main(sys.argv[1:])
