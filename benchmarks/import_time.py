"""Import time of pinv_jax against that of what it is built on, in fresh processes, in turn."""

import argparse
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence

OURS = "import pinv_jax"
THEIRS = "import jax, equinox, diffrax, optimistix"


def measure(rounds: int) -> tuple[float, float]:
    """Median seconds of a process that imports us, and of one that imports what we are built on."""
    seconds: dict[str, list[float]] = {OURS: [], THEIRS: []}
    for turn in range(rounds + 1):
        for code, times in seconds.items():
            start = time.perf_counter()
            subprocess.run([sys.executable, "-c", code], check=True)
            if turn:  # the first turn warms the disk
                times.append(time.perf_counter() - start)
    return statistics.median(seconds[OURS]), statistics.median(seconds[THEIRS])


def main(argv: Sequence[str]) -> None:
    """Prints both medians and their ratio."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks import_time", description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    ours, theirs = measure(parser.parse_args(argv).rounds)
    print(
        f"{OURS}: {ours:.2f} s; {THEIRS}: {theirs:.2f} s; ratio {ours / theirs:.2f} (Python {sys.version.split()[0]})"
    )
