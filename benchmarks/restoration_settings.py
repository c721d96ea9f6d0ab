"""`python -m benchmarks restoration_settings`: steps, eta and start of the studies of restoration, on training images.

`suite` restores test images with one sampler for all tasks. Here that sampler is chosen: back-projection on squares
drawn from the photographs of training, which no report measures anything on. The noise level to begin at is that of
the row that starts from the noised pseudo-inverse. For `restore-blind` it is by how much the noise is overestimated.
Trained priors are looked up, or made, in `--priors`.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pinv_jax import _store, suite
from pinv_jax.diffusion import DDIM, Prior, Start, sample
from pinv_jax.suite import _restoration as restoration
from pinv_jax.suite import _restore_blind as deconvolution
from pinv_jax.suite._blind_kernel import most_probable, similarity
from pinv_jax.suite._lens_camera import quality
from pinv_jax.suite._priors import Crops, trained_prior
from pinv_jax.suite._psf_photographs import TRAIN, grey
from pinv_jax.suite._study import Bench

from ._timing import environment

REPORT = Path(__file__).parent / "reports" / "restoration_settings.json"
TASKS = {
    "blur": (suite.RESTORE_BLUR, "blur"),
    "3 bits, clipped": (suite.RESTORE_CLIP, "3 bits, clipped"),
    "quality 1": (suite.RESTORE_JPEG, "quality 1"),
    "compressed sensing": (suite.RESTORE_LINEAR, "compressed sensing"),
}
TRUST = (1.0, 2.0, 3.0, 5.0)
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
        mean = quality(restoration.to_unit(x), restoration.to_unit(jnp.mean(jnp.stack(estimates), axis=0)))
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


def blind_rows(trained: Any, bench: Bench, num: int) -> list[dict[str, Any]]:
    """Blind deconvolution: with the true kernel, with the one found, and how often that is not the wrong way round."""
    side, num_steps, num_kernels = (32, 2, 32) if bench.quick else (deconvolution.SIDE_OF_PICTURES, 20, 2048)
    draw = Crops(tuple(2 * grey(TRAIN, factor * side, bench.dtype) - 1 for factor in (2, 3)), side)
    draw_key, observe_key, sample_key = jax.random.split(bench.key, 3)
    x = jax.jit(jax.vmap(draw))(jax.random.split(draw_key, num))
    kernels, y = deconvolution.observed(x, observe_key)
    network = trained.prior.network.fn
    prior = Prior(network, trained.prior.schedule, shape=(1, side, side), prediction="v", dtype=bench.dtype)
    found, keys = most_probable(y, num_kernels), jax.random.split(sample_key, num)
    alike = np.stack([jax.vmap(similarity)(k, kernels) for k in (found, found[:, ::-1, ::-1])])
    differ = np.abs(alike[0] - alike[1]) > 0.03
    rows = []
    for trust in TRUST:
        ways = [deconvolution.deconvolved(prior, k, y, keys, num_steps, trust) for k in (found, found[:, ::-1, ::-1])]
        spreads = np.stack([jax.vmap(deconvolution.spread)(way) for way in ways])
        first = spreads[0] <= spreads[1]
        known = deconvolution.deconvolved(prior, kernels, y, keys, num_steps, trust)
        levels = [_level(x, estimate) for estimate in (known, *ways)]
        rows.append(
            {
                "task": "blind",
                "times the noise": trust,
                "PSNR, true kernel, dB": float(np.median(levels[0])),
                "PSNR, kernel found, dB": float(np.median(np.where(first, levels[1], levels[2]))),
                "right way round, share": float(np.mean((first == (alike[0] > alike[1]))[differ])),
                "of": int(differ.sum()),
            }
        )
        print("  ".join(f"{v:8.4g}" if isinstance(v, float) else f"{v!s:>8}" for v in rows[-1].values()), flush=True)
    return rows


def _level(x: Any, estimate: Any) -> np.ndarray:
    moved = restoration.to_unit(deconvolution.aligned(x, estimate))
    return np.asarray(quality(restoration.to_unit(x[:, :, 3:-3, 3:-3]), moved)["psnr"])


def main(argv: Sequence[str]) -> None:
    """Prints the table and writes the report."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks restoration_settings", description=__doc__)
    parser.add_argument("--priors", type=Path, default=Path("results/priors"))
    parser.add_argument("--num", type=int, default=16, help="training images per task")
    parser.add_argument("--num-blind", type=int, default=32, help="training images of the last table")
    parser.add_argument("--quick", action="store_true", help="an untrained prior, to see that it runs")
    parser.add_argument("--out", type=Path, default=REPORT)
    options = parser.parse_args(argv)
    trained = trained_prior("photographs32", options.priors, quick=options.quick)
    quiet = lambda *_, **__: None
    bench = Bench(0, jax.random.key(2**20), np.dtype("float32"), options.quick, options.priors, options.priors, quiet)
    report: dict[str, Any] = {
        "command": f"python -m benchmarks restoration_settings --num {options.num} --num-blind {options.num_blind}"
        + " --quick" * options.quick,
        "seed": 0,
        "dtype": "float32",
        **environment(),
        "rows": [row for name in TASKS for row in rows(name, trained, bench, options.num)],
        "blind": blind_rows(trained, bench, options.num_blind),
    }
    _store.write_json(options.out, report)


if __name__ == "__main__":
    import sys

    main(sys.argv[1:])
