"""The printed table and the figures of a run."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from .. import plots
from .._solution import History
from ..solvers import AbstractSolver
from ._base import Dataset, Row

COLUMNS = (
    ("recipe", "recipe"),
    ("solver", "solver"),
    ("note", "note"),
    ("success %", "success"),
    ("95 % interval", "interval"),
    ("steps", "steps"),
    ("acc/tried", "tried"),
    ("RMSE x", "rmse"),
    ("res f", "surrogate"),
    ("res physics", "physics"),
    ("fallbacks", "fallbacks"),
    ("f/g/JVP/VJP", "evaluations"),
    ("ms/solve", "milliseconds"),
    ("us/step", "step"),
)


def _cells(row: dict[str, Any]) -> dict[str, str]:
    low, high = row["success_interval"]
    solved = "median_steps" in row
    surrogate = row["residual_rms_surrogate"]
    cells = {
        "recipe": row["recipe"],
        "solver": row["solver"],
        "note": row["note"],
        "success": f"{100 * row['success_rate']:.1f}",
        "interval": f"{100 * low:.1f}-{100 * high:.1f}",
        "rmse": f"{row['rmse_x']:.4f}",
        "surrogate": "" if surrogate is None else f"{surrogate:.3g}",
        "physics": f"{row['residual_rms_physics']:.3g}",
        "milliseconds": f"{1e3 * row['seconds_per_solve']:.3g}",
    }
    if solved:
        first, last = row["steps_quartiles"]
        each = row["evaluations_per_solve"]
        cells |= {
            "steps": f"{row['median_steps']:g} [{first:g}, {last:g}]",
            "tried": f"{row['accepted']}/{row['tried']}",
            "fallbacks": str(row["fallbacks"]),
            "evaluations": "/".join(f"{each[name]:.3g}" for name in ("f", "g", "jvp", "vjp")),
            "step": "" if row["seconds_per_step"] is None else f"{1e6 * row['seconds_per_step']:.3g}",
        }
    return cells


def format_table(report: dict[str, Any], *, markdown: bool = False) -> str:
    """The tables of a report as text, aligned for a terminal or as Markdown."""
    versions = ", ".join(f"{name} {version}" for name, version in report["versions"].items())
    measures = "\n".join(f"{name}: {_flat(values)}" for name, values in report["measures"].items() if values)
    where = f"seed {report['seed']}, {report['dtype']}, {report['device']}; {versions}"
    if "tables" in report:
        seconds = ", ".join(f"{name} {value:.1f} s" for name, value in report["seconds"].items())
        parts = [f"{report['problem']}: {where}\n{seconds}"] + ([measures] if measures else [])
        for name, rows in report["tables"].items():
            if rows:
                lines = [list(rows[0]), *([_number(cell) for cell in row.values()] for row in rows)]
                parts.append(f"{name}\n{_aligned(lines, markdown=markdown)}")
        return "\n\n".join(parts)
    rows = [_cells(row) for row in report["rows"]]
    lines = [[title for title, _ in COLUMNS], *([row.get(key, "") for _, key in COLUMNS] for row in rows)]
    seconds = ", ".join(f"{name} {value:.1f} s" for name, value in report["training_seconds"].items())
    head = (
        f"{report['problem']}: n = {report['num_test']}, {where}\n"
        f"tolerance {report['tolerance']:g} on the RMS of the z-scored residual; noise level "
        f"{report['noise_level']:.3f}; training {seconds}"
    )
    text = _aligned(lines, markdown=markdown)
    return f"{head}\n{measures}\n\n{text}" if measures else f"{head}\n\n{text}"


def _number(cell: Any) -> str:
    if cell is None:
        return ""
    return f"{cell:.4g}" if isinstance(cell, float) else str(cell)


def _aligned(lines: Sequence[Sequence[str]], *, markdown: bool) -> str:
    """Lines of cells, the first one the titles, as columns."""
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    padded = [[cell.ljust(width) for cell, width in zip(line, widths, strict=True)] for line in lines]
    rule = ["-" * width for width in widths]
    if markdown:
        return "\n".join("| " + " | ".join(line) + " |" for line in [padded[0], rule, *padded[1:]])
    return "\n".join("  ".join(line).rstrip() for line in [padded[0], rule, *padded[1:]])


def _flat(values: dict[str, Any], prefix: str = "") -> str:
    parts = []
    for name, value in values.items():
        inner = isinstance(value, dict)
        parts.append(_flat(value, f"{prefix}{name} ") if inner else f"{prefix}{name} {value:.4g}")
    return ", ".join(parts)


def write_figures(out: Path, make: Callable[[], Mapping[str, Any]]) -> list[str]:
    """Writes the figures that `make` returns; returns their names, none where matplotlib is not installed."""
    try:
        import matplotlib  # noqa: F401 - is it there?
    except ImportError:
        return []
    folder = out / "figures"
    folder.mkdir(parents=True, exist_ok=True)
    figures = make()
    for name, figure in figures.items():
        figure.savefig(folder / f"{name}.png", dpi=150)
    return sorted(f"figures/{name}.png" for name in figures)


def draw(out: Path, dataset: Dataset, results: Sequence[tuple[Row, Any]], report: dict[str, Any]) -> list[str]:
    """Writes the figures of a problem; see `write_figures`."""
    return write_figures(out, lambda: _figures(dataset, results, report))


def _plane(values: Any) -> np.ndarray:
    """Curves and images as they are, of fields in space the middle plane."""
    array = np.asarray(values)
    return array[:, array.shape[1] // 2] if array.ndim == 4 else array


def _figures(dataset: Dataset, results: Sequence[tuple[Row, Any]], report: dict[str, Any]) -> dict[str, Any]:
    same = [(row, outcome) for row, outcome in results if row.data is dataset.test.y]
    same = [(row, outcome) for row, outcome in same if row.noise_std is None]  # one stopping rule in one figure
    solved = [(row, outcome) for row, outcome in same if isinstance(row.method, AbstractSolver)]
    label = {row.name: f"{row.solver}, {row.note}" if row.note else row.solver for row, _ in results}
    shown = [(row, outcome) for row, outcome in same if row.solver in ("ridge", "one-shot", "dipg", "lm")]
    first: dict[str, np.ndarray] = {}
    for row, outcome in shown:
        first.setdefault(row.solver, _plane(outcome["x"]))
    figures = {
        "reconstructions": plots.reconstructions(_plane(dataset.test.x), first, _plane(dataset.test.y)),
        "spectrum": plots.jacobian_spectrum(np.asarray(report["spectrum"]), report["noise_level"]),
        "success": plots.success_against_tolerance(
            {label[row.name]: outcome["physics_residual_rms"] for row, outcome in same}, report["tolerance"]
        ),
    }
    if solved:
        histories = {
            label[row.name]: History(
                **{name: jnp.asarray(outcome[f"history.{name}"]) for name in History.__dataclass_fields__}
            )
            for row, outcome in solved
        }
        figures["residuals"] = plots.residual_against_step(histories, tolerance=report["tolerance"])
    return figures
