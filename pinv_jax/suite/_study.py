"""`Study`: a named experiment with tables of its own, in parts that are resumed one by one."""

import dataclasses
import time
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PRNGKeyArray

from .. import _store
from .._progress import Meter, fit_progress
from ..io import save_model
from ._folder import FORMAT, Options, check_dtype, claim, environment
from ._report import write_figures


@dataclasses.dataclass(frozen=True)
class Findings:
    """What one part of a study found.

    Attributes:
        rows: of its table, one dict per line, column to number or text; every line has the same columns.
        measures: further numbers; a nested dict.
        arrays: what the figures show, and whatever else should be kept.
    """

    rows: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    measures: dict[str, Any] = dataclasses.field(default_factory=dict)
    arrays: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Bench:
    """What a part of a study works with.

    Attributes:
        seed: of everything random in the study.
        key: random key, another one for every part.
        dtype: of all arrays.
        quick: small and short, to see that everything runs.
        fits: a folder for the checkpoints of `learn.fit`.
        models: a folder for trained models.
        progress: for `learn.fit`.
    """

    seed: int
    key: PRNGKeyArray
    dtype: np.dtype
    quick: bool
    fits: Path
    models: Path
    progress: Callable[..., None]

    def keep(self, name: str, model: Any) -> None:
        """Writes a trained model to `models/NAME.npz`."""
        save_model(self.models / f"{name}.npz", model)


@dataclasses.dataclass(frozen=True)
class Study:
    """A named experiment that is not a table of solvers on one set of observations.

    Attributes:
        name: what the command line calls it.
        summary: one line.
        reference: where it is from.
        recipes: its parts by name, in order, each `bench -> findings`; the command line selects them by `--recipe`.
            A part trains what it needs with `learn.fit(checkpoint=bench.fits / ...)`, so that it can be resumed.
        figures: `{part: findings} -> {name: figure}` of the parts that were run; called where matplotlib is installed.
    """

    name: str
    summary: str
    reference: str
    recipes: Mapping[str, Callable[[Bench], Findings]]
    figures: Callable[[Mapping[str, Findings]], Mapping[str, Any]]


def run_study(
    study: Study, options: Options, out: Path, *, resume: bool = False, stream: Any = "stderr"
) -> dict[str, Any]:
    """Runs a study; see `suite.run`, which calls this."""
    check_dtype(options)
    for name, value in (("--solver", options.solvers), ("--num-test", options.num_test)):
        if value is not None:
            raise ValueError(f"{name}: {study.name} has no such option; select parts of it with --recipe.")
    identity = {
        "format": FORMAT,
        "problem": study.name,
        "seed": options.seed,
        "dtype": options.dtype,
        "quick": options.quick,
    }
    claim(out, identity, resume=resume)
    names = tuple(study.recipes) if options.recipes is None else options.recipes
    found: dict[str, Findings] = {}
    seconds: dict[str, float] = {}
    with Meter(study.name, len(names), stream) as meter:
        for index, name in enumerate(names):
            found[name], seconds[name] = _part(study, name, options, out, stream)
            meter.update(index + 1)
    report = identity | environment()
    report |= {
        "seconds": seconds,
        "tables": {name: part.rows for name, part in found.items()},
        "measures": {name: part.measures for name, part in found.items()},
        "figures": write_figures(out, lambda: study.figures(found)),
    }
    _store.write_json(out / "report.json", report)
    return report


def _part(study: Study, name: str, options: Options, out: Path, stream: Any) -> tuple[Findings, float]:
    """One part, or what it found when it was run before."""
    path = out / "parts" / f"{name}.npz"
    if path.exists():
        leaves, meta = _store.load_leaves(path, kind="part")
        arrays = {where.strip("[]'\""): np.asarray(leaf) for where, leaf in leaves.items()}
        return Findings(meta["rows"], meta["measures"], arrays), meta["seconds"]
    bench = Bench(
        seed=options.seed,
        key=jax.random.fold_in(jax.random.key(options.seed), np.uint32(zlib.crc32(name.encode()))),
        dtype=jnp.dtype(options.dtype),
        quick=options.quick,
        fits=out / "fits" / name,
        models=out / "models",
        progress=fit_progress(stream),
    )
    start = time.perf_counter()
    findings = study.recipes[name](bench)
    columns = {tuple(row) for row in findings.rows}
    if len(columns) > 1:
        raise ValueError(f"{study.name}, {name}: the rows of one table have different columns: {sorted(columns)}.")
    seconds = time.perf_counter() - start
    arrays = {key: np.asarray(array) for key, array in findings.arrays.items()}
    meta = {"rows": findings.rows, "measures": findings.measures, "seconds": seconds}
    _store.save(path, arrays, kind="part", meta=meta)
    return Findings(findings.rows, findings.measures, arrays), seconds
