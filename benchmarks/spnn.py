"""`python -m benchmarks spnn`: forward, pinv and back-projection of a published network, CPU time and memory."""

import argparse
import functools
import json
import resource
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from benchmarks._timing import environment, wait
from pinv_jax import maps, solvers


class Counting(maps.AbstractSurjection[Any]):
    """A surjection that notes its calls while it is traced."""

    f: Any
    log: list[str] = eqx.field(static=True)

    def split(self, x: Any) -> Any:
        self.log.append("forward")
        return self.f.split(x)

    def merge(self, y: Any, z: Any) -> Any:
        self.log.append("inverse")
        return self.f.merge(y, z)

    def section(self, y: Any) -> Any:
        self.log.append("section")
        return self.f.section(y)

    def in_structure(self) -> jax.ShapeDtypeStruct:
        return self.f.in_structure()


def counts(f: Any) -> dict[str, dict[str, int]]:
    """Evaluations of one back-projection: natural, and with a learned section computed once for the data."""
    x, y = f.in_structure(), f.out_structure()
    found = {}
    for name, wrap in (("natural", maps.Natural), ("learned", lambda g: g)):
        log: list[str] = []
        g = wrap(Counting(f, log))
        given = None if name == "natural" else jax.eval_shape(f.section, y)
        log.clear()
        jax.eval_shape(lambda x, y, s, g=g: solvers.nlbp(g, x, y, section_of_data=s), x, y, given)
        found[name] = {kind: log.count(kind) for kind in ("forward", "inverse", "section")}
    return found


def timed(call: Callable[[], Any], rounds: int) -> tuple[float, float]:
    """Medians of CPU and wall time, seconds."""
    wait(call())
    times = []
    for _ in range(rounds):
        cpu, wall = time.process_time(), time.perf_counter()
        wait(call())
        times.append((time.process_time() - cpu, time.perf_counter() - wall))
    cpu, wall = np.median(times, axis=0)
    return float(cpu), float(wall)


def fill(rng: np.random.Generator, leaf: Any) -> jax.Array:
    """Random numbers of a size that keeps activations of order one."""
    scale = (2 / max(int(np.prod(leaf.shape[1:])), 1)) ** 0.5
    return jnp.asarray(scale * rng.standard_normal(leaf.shape, np.float32))


def main(argv: Sequence[str]) -> None:
    """Prints the table and writes the report."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks spnn", description=__doc__)
    parser.add_argument("--size", type=int, default=32, choices=(16, 32, 64, 256), help="pixels of the published plan")
    parser.add_argument("--batch", type=int, nargs="*", default=[1, 16])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--out", type=Path, help="a JSON file")
    options = parser.parse_args(argv)

    rows = []
    peak = {}
    for mixing in ("cayley", "householder"):
        # random numbers in every parameter: at the published start most of the network is zero
        like = eqx.filter_eval_shape(
            lambda m=mixing: maps.published_spnn(options.size, mixing=m, key=jax.random.key(0))
        )
        rng = np.random.default_rng(0)
        f = jax.tree.map(functools.partial(fill, rng), like)
        start = time.perf_counter()
        prepared = wait(maps.prepare(f))
        preparing = time.perf_counter() - start
        natural = wait(maps.prepare(maps.Natural(f)))
        for batch in options.batch:
            x = jnp.asarray(rng.standard_normal((batch, *f.in_structure().shape), np.float32))
            y = jnp.asarray(rng.standard_normal((batch, *f.out_structure().shape), np.float32))
            section = jax.jit(jax.vmap(lambda f, y: f.section(y), (None, 0)))(prepared, y)
            calls: dict[str, tuple[Any, tuple[Any, ...]]] = {
                "forward, not prepared": (jax.vmap(lambda f, x: f(x), (None, 0)), (f, x)),
                "forward": (jax.vmap(lambda f, x: f(x), (None, 0)), (prepared, x)),
                "pinv": (jax.vmap(lambda f, y: f.pinv(y), (None, 0)), (prepared, y)),
                "NLBP, natural": (jax.vmap(solvers.nlbp, (None, 0, 0)), (natural, x, y)),
                "NLBP, learned, section of the data given": (
                    jax.vmap(lambda f, x, y, s: solvers.nlbp(f, x, y, section_of_data=s), (None, 0, 0, 0)),
                    (prepared, x, y, section),
                ),
            }
            times = {}
            for name, (function, arguments) in calls.items():
                if name == "forward, not prepared" and (batch > 1 or options.size == 256):
                    continue
                begun = time.perf_counter()
                compiled = jax.jit(function).lower(*arguments).compile()
                compiling = time.perf_counter() - begun
                rounds = 3 if name == "forward, not prepared" else options.rounds
                times[name] = timed(lambda c=compiled, a=arguments: c(*a), rounds)
                memory = compiled.memory_analysis()
                rows.append(
                    {
                        "plan": f"{options.size} pixels, {mixing}",
                        "batch": batch,
                        "what": name,
                        "CPU ms": 1e3 * times[name][0],
                        "wall ms": 1e3 * times[name][1],
                        "CPU / forward": times[name][0] / times["forward"][0] if "forward" in times else None,
                        "compile s": compiling,
                        "working memory MB": memory.temp_size_in_bytes / 1e6,
                    }
                )
        parameters = sum(leaf.size for leaf in jax.tree.leaves(f))
        peak[mixing] = {"parameters": parameters, "preparing s": preparing, "evaluations of NLBP": counts(f)}
    report = environment() | {
        "seed": 0,
        "dtype": "float32",
        "rows": rows,
        "plans": peak,
        "peak RSS MB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3,
    }
    titles = list(rows[0])
    print("| " + " | ".join(titles) + " |\n|" + "---|" * len(titles))
    for row in rows:
        cells = (
            "" if cell is None else f"{cell:.3g}" if isinstance(cell, float) else str(cell) for cell in row.values()
        )
        print("| " + " | ".join(cells) + " |")
    where = f"{report['device']}, float32, seed 0, jax {report['versions']['jax']}"
    print(f"\n{where}; peak RSS {report['peak RSS MB']:.0f} MB")
    for mixing, facts in peak.items():
        print(mixing, facts)
    if options.out is not None:
        options.out.write_text(json.dumps(report, indent=1) + "\n")
