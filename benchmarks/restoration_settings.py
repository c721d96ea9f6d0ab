"""`python -m benchmarks restoration_settings`: steps, eta and start of the studies of restoration, on training images.

`suite` restores test images with one sampler for all tasks. Here that sampler is chosen: back-projection on squares
drawn from the photographs of training, which no report measures anything on. The noise level to begin at is that of
the row that starts from the noised pseudo-inverse. Trained priors are looked up, or made, in `--priors`.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from pinv_jax import _store, suite
from pinv_jax.diffusion import DDIM, Start, sample
from pinv_jax.suite import _restoration as restoration
from pinv_jax.suite._lens_camera import quality
from pinv_jax.suite._priors import trained_prior
from pinv_jax.suite._study import Bench

from ._timing import environment

REPORT = Path(__file__).parent / "reports" / "restoration_settings.json"
TASKS = {
    "blur": (suite.RESTORE_BLUR, "blur"),
    "3 bits, clipped": (suite.RESTORE_CLIP, "3 bits, clipped"),
    "quality 1": (suite.RESTORE_JPEG, "quality 1"),
    "compressed sensing": (suite.RESTORE_LINEAR, "compressed sensing"),
}
STEPS, ETAS, FROM = (10, 20, 40), (0.0, 0.5, 1.0), (200, 400, 600)


def restored(num_steps: int, eta: float, begin: int | None) -> restoration.Method:
    """NLBP by this sampler, from noise or from the pseudo-inverse noised to the time `begin`."""

    def method(prior: Any, task: Any, seen: Any, key: Any) -> Any:
        start = None if begin is None else Start(task.known.pinv(seen.y), begin)
        guide = restoration.onto_bounds(task, seen)
        return sample(prior, DDIM(num_steps, eta), key=key, guide=guide, start=start)

    return method


def rows(name: str, trained: Any, bench: Bench, num: int) -> list[dict[str, Any]]:
    """All settings on one task: medians of PSNR and SSIM, one sample per image and that of the mean of three."""
    study, part = TASKS[name]
    degradation = study.recipes[part].keywords["task"].build(bench, trained)
    draw_key, sense_key, *sample_keys = jax.random.split(bench.key, 5)
    x = jax.jit(jax.vmap(trained.images.draw))(jax.random.split(draw_key, num))
    seen = restoration.observe(degradation, x, jax.random.split(sense_key, num))
    settings = [(steps, eta, None) for steps in STEPS for eta in ETAS]
    settings += [(restoration.NUM_STEPS, restoration.ETA, begin) for begin in FROM]
    found = []
    for steps, eta, begin in settings:
        estimates, _ = restoration.run_method(
            restored(steps, eta, begin), trained.prior, degradation, seen, list(sample_keys)
        )
        scores = [quality(restoration.to_unit(x), restoration.to_unit(estimate)) for estimate in estimates]
        mean = quality(restoration.to_unit(x), restoration.to_unit(sum(estimates) / len(estimates)))
        found.append(
            {
                "task": name,
                "from": "noise" if begin is None else begin,
                "steps": steps,
                "eta": eta,
                "PSNR dB": float(np.median([score["psnr"] for score in scores])),
                "SSIM": float(np.median([score["ssim"] for score in scores])),
                "PSNR of the mean of 3, dB": float(np.median(mean["psnr"])),
            }
        )
        print("  ".join(f"{v:8.4g}" if isinstance(v, float) else f"{v!s:>8}" for v in found[-1].values()), flush=True)
    return found


def main(argv: Sequence[str]) -> None:
    """Prints the table and writes the report."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks restoration_settings", description=__doc__)
    parser.add_argument("--priors", type=Path, default=Path("results/priors"))
    parser.add_argument("--num", type=int, default=16, help="training images per task")
    parser.add_argument("--quick", action="store_true", help="an untrained prior, to see that it runs")
    parser.add_argument("--out", type=Path, default=REPORT)
    options = parser.parse_args(argv)
    trained = trained_prior("photographs32", options.priors, quick=options.quick)
    quiet = lambda *_, **__: None
    bench = Bench(0, jax.random.key(2**20), np.dtype("float32"), options.quick, options.priors, options.priors, quiet)
    report: dict[str, Any] = {
        "command": f"python -m benchmarks restoration_settings --num {options.num}" + " --quick" * options.quick,
        "seed": 0,
        "dtype": "float32",
        **environment(),
        "rows": [row for name in TASKS for row in rows(name, trained, bench, options.num)],
    }
    _store.write_json(options.out, report)


if __name__ == "__main__":
    import sys

    main(sys.argv[1:])
