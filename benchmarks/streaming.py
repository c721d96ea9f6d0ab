"""Heat-1D observations streamed from disk to disk: rate against memory, memory and cost against N, compile time.

Every observation is a fresh draw of the prior through the physics with the noise of the problem; D-IPG with the trained
inverse solves it on the physics. Memory is the anonymous part of the resident set (RssAnon), sampled every 50 ms: the
pages of mapped files, which the kernel takes back when it likes, are not in it.
"""

import argparse
import shutil
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import pinv_jax as pj
from pinv_jax import _store, solvers, suite
from pinv_jax.suite import _inverse

from ._timing import environment

BOX = solvers.Box(0.0, 1.0)


class PeakMemory:
    """The largest RssAnon while it is entered, in MiB."""

    def __enter__(self) -> "PeakMemory":
        self.peak, self._going = self._now(), True
        self._thread = threading.Thread(target=self._sample)
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._going = False
        self._thread.join()

    def _sample(self) -> None:
        while self._going:
            self.peak = max(self.peak, self._now())
            time.sleep(0.05)

    @staticmethod
    def _now() -> float:
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
        return next(float(line.split()[1]) / 1024 for line in lines if line.startswith("RssAnon"))


def write_observations(dataset: suite.Dataset, num: int, path: Path, seed: int) -> None:
    """`num` observations as one `.npy`, made and written 65536 at a time."""

    @jax.jit
    def draw(key: Any) -> Any:
        x_key, noise_key = jax.random.split(key)
        y = dataset.physics(dataset.sample(x_key))
        return y + dataset.noise_std * jax.random.normal(noise_key, y.shape, y.dtype)

    many = jax.jit(lambda i: jax.vmap(draw)(jax.random.split(jax.random.fold_in(jax.random.key(seed), i), 65536)))
    out = np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=(num, *dataset.test.y.shape[1:]))
    for i, begin in enumerate(range(0, num, 65536)):
        out[begin : begin + 65536] = np.asarray(many(i))[: num - begin]
    out.flush()


def main(argv: Sequence[str]) -> None:
    """Trains the inverse, writes the observations, streams them, prints and writes the numbers."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks streaming", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--num", type=int, nargs="+", default=[10**k for k in range(3, 8)], help="observations")
    parser.add_argument("--lanes", type=int, default=4096)
    parser.add_argument("--chunk-size", type=int, default=65536)
    parser.add_argument("--in-memory", type=int, default=262_144, help="observations of the comparison with memory")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--folder", type=Path, help="for the data, 520 bytes an observation; a temporary one by default"
    )
    parser.add_argument("--out", type=Path, help="write the numbers to this JSON file")
    options = parser.parse_args(argv)
    folder = Path(tempfile.mkdtemp(dir=options.folder))
    try:
        report = measure(options, folder)
    finally:
        shutil.rmtree(folder)
    if options.out:
        _store.write_json(options.out, report)


def measure(options: Any, folder: Path) -> dict[str, Any]:
    """All numbers of the report."""
    dataset = suite.HEAT1D.dataset(seed=0, num_test=300, dtype=jnp.float32, quick=False)
    key = jax.random.key(options.seed)
    inverse = _inverse.train_inverse(dataset, key=key, folder=None, progress=None, quick=False).inverse
    solver = solvers.DIPG(inverse, discrepancy=1.1)
    start = jnp.zeros_like(dataset.test.x[0])
    write_observations(dataset, max(*options.num, options.in_memory), folder / "data.npy", options.seed)
    data = np.load(folder / "data.npy", mmap_mode="r")
    sizes: dict[str, Any] = {"lanes": options.lanes}

    def problem(observations: Any) -> pj.Problem:
        return pj.Problem(dataset.physics, observations, BOX, dataset.noise_std)

    def stream(num: int) -> dict[str, Any]:
        begun, cpu = time.perf_counter(), time.process_time()
        with PeakMemory() as memory:
            found = solvers.solve_stream(
                problem(data[:num]), solver, start, folder / "out", chunk_size=options.chunk_size, **sizes
            )
            success = float(np.mean(found.success))
        row = {"n": num, "seconds": time.perf_counter() - begun, "cpu_seconds": time.process_time() - cpu}
        del found
        shutil.rmtree(folder / "out")
        return row | {"success": success, "peak_MiB": memory.peak}

    report: dict[str, Any] = environment() | {
        "seed": options.seed,
        "dtype": "float32",
        "lanes": options.lanes,
        "chunk_size": options.chunk_size,
        "solver": "D-IPG, discrepancy 1.1, physics",
    }
    held = jnp.asarray(data[: options.in_memory])
    starts = jnp.broadcast_to(start, (options.in_memory, *start.shape))

    def batch() -> float:
        begun = time.perf_counter()
        found = pj.solve_batch(problem(held), solver, starts, mode="streaming", **sizes)
        np.asarray(found.value)
        return time.perf_counter() - begun

    batch(), stream(options.in_memory)  # compiled
    pairs = [(batch(), stream(options.in_memory)["seconds"]) for _ in range(options.rounds)]
    ratio = float(np.median([b / a for a, b in pairs]))
    report["in_memory"] = {
        "n": options.in_memory,
        "batch_us_per_solve": 1e6 * float(np.median([a for a, _ in pairs])) / options.in_memory,
        "stream_us_per_solve": 1e6 * float(np.median([b for _, b in pairs])) / options.in_memory,
        "stream_over_batch": ratio,
    }
    print(f"streamed over in memory, {options.in_memory} observations: {ratio:.3f}", flush=True)
    del held, starts
    rows = []
    for num in sorted(options.num):
        first = stream(num) if num <= options.chunk_size else None  # larger ones run the programs of a full chunk
        repeats = [stream(num) for _ in range(options.rounds if num <= 10**5 else 1)]
        row = sorted(repeats, key=lambda r: r["seconds"])[len(repeats) // 2]
        row["compile_seconds"] = None if first is None else first["seconds"] - row["seconds"]
        rows.append(row)
        print(
            f"n {num:9}  {row['seconds']:9.2f} s  {1e6 * row['seconds'] / num:8.2f} us/solve"
            f"  peak {row['peak_MiB']:.0f} MiB  success {row['success']:.4f}"
            f"  compile {row['compile_seconds'] or float('nan'):.1f} s",
            flush=True,
        )
    report["rows"] = rows
    if len(rows) > 2:
        report |= growth(*np.array([[row["n"], row["seconds"]] for row in rows], float).T)
    return report


def growth(n: np.ndarray, seconds: np.ndarray) -> dict[str, Any]:
    """How time grows with the number of observations: slopes in log-log, and the model `fixed + each * n`.

    A call costs something before its first solve, and every chunk ends with the turns of its slowest lane, which few
    others share; both are most of what a thousand solves take. The model is fitted to relative deviations.
    """
    each, fixed = np.polyfit(n, seconds, 1, w=1 / seconds)
    slopes = {}
    for first in range(len(n) - 1):
        slopes[f"from {int(n[first])}"] = float(np.polyfit(np.log(n[first:]), np.log(seconds[first:]), 1)[0])
    model = {
        "fixed_seconds": float(fixed),
        "seconds_per_solve": float(each),
        "fixed_share": [float(fixed / (fixed + each * num)) for num in n],
        "seconds_over_model": (seconds / (fixed + each * n)).tolist(),
    }
    print(f"slopes of seconds against n: {slopes}; {fixed:.3f} s + {1e6 * each:.2f} us n: {model}", flush=True)
    return {"slopes": slopes, "model": model}
