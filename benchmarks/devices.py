"""One device against a mesh of several on this machine: lane-turns, processor and wall time, what they communicate.

Host devices share the cores of the machine, so that nothing is won here; what is shown is that the work stays the same
and what the devices tell each other: nothing inside the loops, and two numbers of each at every look of the host.
"""

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import pinv_jax as pj
from pinv_jax import _store

from ._timing import environment, wait
from .lanes import SUBJECTS

COLLECTIVES = ("all-reduce", "all-gather", "all-to-all", "collective-permute", "reduce-scatter")


def main(argv: Sequence[str]) -> None:
    """Measures, in a process of its own that has so many host devices, prints and writes."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks devices", description=__doc__)
    parser.add_argument("--devices", type=int, default=8)
    parser.add_argument("--num", type=int, default=4096, help="observations")
    parser.add_argument("--lanes", type=int, default=512, help="of streaming, over all devices")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", choices=SUBJECTS, nargs="+", default=list(SUBJECTS))
    parser.add_argument("--out", type=Path, help="write the numbers to this JSON file")
    options = parser.parse_args(argv)
    if jax.device_count() < options.devices:
        if jax.default_backend() != "cpu" or os.environ.get("PINV_JAX_DEVICES"):
            raise SystemExit(f"--devices {options.devices}: there are {jax.device_count()}.")
        flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={options.devices}"
        inside = os.environ | {"XLA_FLAGS": flags, "PINV_JAX_DEVICES": "1"}
        raise SystemExit(subprocess.run([sys.executable, "-m", "benchmarks", "devices", *argv], env=inside).returncode)
    jax.config.update("jax_enable_x64", True)  # noqa: FBT003 - has no keyword
    report: dict[str, Any] = environment() | {"seed": options.seed, "dtype": "float64", "devices": options.devices}
    report["rows"] = [row for name in options.only for row in contest(name, options)]
    if options.out:
        _store.write_json(options.out, report)


def contest(name: str, options: Any) -> list[dict[str, Any]]:
    """Every mode on one device and on the mesh, in turn."""
    subject = SUBJECTS[name](options.num, options.seed)
    mesh = jax.make_mesh((options.devices,), ("lanes",), devices=jax.devices()[: options.devices])

    def solve(data: Any, mesh: Any, **settings: Any) -> Any:
        problem = pj.Problem(subject.forward, data)
        return pj.solve_batch(problem, subject.solver, subject.x0, max_steps=subject.max_steps, mesh=mesh, **settings)

    program = jax.jit(lambda data: solve(data, mesh)).lower(subject.data).compile().as_text() or ""
    found = [word for word in COLLECTIVES if word in program]
    # `narrowest` counts the slots of each device: as many in all.
    modes: dict[str, dict[str, Callable[[], Any]]] = {
        "masked": {
            "one": lambda: solve(subject.data, None, mode="masked"),
            "mesh": lambda: solve(subject.data, mesh, mode="masked"),
        },
        "compacting": {
            "one": lambda: solve(subject.data, None, mode="compacting", narrowest=options.devices),
            "mesh": lambda: solve(subject.data, mesh, mode="compacting", narrowest=1),
        },
        "streaming": {
            "one": lambda: solve(subject.data, None, mode="streaming", lanes=options.lanes),
            "mesh": lambda: solve(subject.data, mesh, mode="streaming", lanes=options.lanes),
        },
    }
    rows = []
    for mode, calls in modes.items():
        times: dict[str, list[tuple[float, float]]] = {key: [] for key in calls}
        values = {key: wait(call()) for key, call in calls.items()}  # compiled
        for _ in range(options.rounds):
            for key, call in calls.items():
                wall, cpu = time.perf_counter(), time.process_time()
                wait(call())
                times[key].append((time.perf_counter() - wall, time.process_time() - cpu))
        median = {key: np.median(np.array(each), axis=0) for key, each in times.items()}
        turns = {}
        for key, value in values.items():
            stats = value.stats
            turns[key] = int(jnp.sum(stats.num_steps + stats.num_rejected + stats.num_idle))
        difference = jnp.max(jnp.abs(values["one"].value - np.asarray(values["mesh"].value)))
        rows.append(
            {
                "subject": name,
                "n": options.num,
                "mode": mode,
                "lane_turns_ratio": turns["mesh"] / turns["one"],
                "cpu_ratio": float(median["mesh"][1] / median["one"][1]),
                "wall_ratio": float(median["mesh"][0] / median["one"][0]),
                "one_seconds": float(median["one"][0]),
                "collectives": found,
                "largest_difference": float(difference),
            }
        )
        row = rows[-1]
        print(
            f"{name:16} {mode:11} lane-turns {row['lane_turns_ratio']:.2f}x  processor {row['cpu_ratio']:.2f}x"
            f"  wall {row['wall_ratio']:.2f}x of {row['one_seconds']:.3f} s  collectives {found or 'none'}"
            f"  difference {row['largest_difference']:.1e}",
            flush=True,
        )
    return rows
