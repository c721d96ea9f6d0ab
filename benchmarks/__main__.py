"""`python -m benchmarks NAME [options]`: runs one benchmark; without a name, lists them."""

import ast
import importlib
import os
import sys
from pathlib import Path

NAMES = (
    "throughput",
    "lanes",
    "streaming",
    "batch_cost",
    "devices",
    "gpu",
    "cost",
    "scale",
    "convolutions",
    "linesearch",
    "posterior",
    "pde_cost",
    "spnn",
    "lifted_speed",
    "guidance_bias",
    "restoration_cost",
    "restoration_settings",
    "import_time",
    "table",
)


def main() -> int:
    """Runs the named benchmark; its module has `main(argv)`."""
    # LAPACK's own threads wait for each other on many small matrices; the same setting for every contestant.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    if len(sys.argv) > 1 and sys.argv[1] in NAMES:
        importlib.import_module(f"benchmarks.{sys.argv[1]}").main(sys.argv[2:])
        return 0
    print("usage: python -m benchmarks NAME [options]; NAME --help says more\n")
    for name in NAMES:
        # read, not imported: some need what only their own extra installs
        source = (Path(__file__).parent / f"{name}.py").read_text(encoding="utf-8")
        summary = (ast.get_docstring(ast.parse(source)) or "").splitlines()[0]
        print(f"  {name:12} {summary}")
    return 0 if len(sys.argv) == 1 or sys.argv[1] in ("-h", "--help") else 2


if __name__ == "__main__":
    sys.exit(main())
