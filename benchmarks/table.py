"""`python -m benchmarks table REPORT...`: the results tables of the README, from reports of several seeds."""

import argparse
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

COLUMNS = (
    "recipe",
    "solver",
    "what",
    "success %",
    "95 %",
    "steps",
    "RMSE x",
    "residual",
    "fallbacks",
    "ms/solve",
    "n",
    "seeds",
    "dtype, device, jax",
)


def _range(values: Sequence[float], digits: int, kind: str = "f") -> str:
    low, high = (f"{value:.{digits}{kind}}" for value in (min(values), max(values)))
    return low if low == high else f"{low}-{high}"


def _cells(rows: Sequence[dict[str, Any]], reports: Sequence[dict[str, Any]]) -> list[str]:
    row = rows[0]
    steps = [r["median_steps"] for r in rows if "median_steps" in r]
    seeds = ", ".join(str(report["seed"]) for report in reports)
    report = reports[0]
    interval = [100 * min(r["success_interval"][0] for r in rows), 100 * max(r["success_interval"][1] for r in rows)]
    return [
        row["recipe"],
        row["solver"],
        row["note"],
        _range([100 * r["success_rate"] for r in rows], 1),
        f"{interval[0]:.1f}-{interval[1]:.1f}",
        _range(steps, 3, "g") if steps else "",
        _range([r["rmse_x"] for r in rows], 3, "g"),
        _range([r["residual_rms_physics"] for r in rows], 2, "g"),
        _range([r["fallbacks_per_solve"] for r in rows], 2) if steps else "",
        f"{1e3 * sorted(r['seconds_per_solve'] for r in rows)[len(rows) // 2]:.2g}",
        str(row["n"]),
        seeds,
        f"{row['dtype']}, {report['device'].split()[0]}, {report['versions']['jax']}",
    ]


def table(reports: Sequence[dict[str, Any]]) -> str:
    """One Markdown row per solver: the range over the reports, the median of the times."""
    by_name: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
    for report in reports:
        for row in report["rows"]:
            by_name.setdefault((row["recipe"], row["solver"], row["note"]), []).append(row)
    lines = [COLUMNS, ["---"] * len(COLUMNS), *(_cells(rows, reports) for rows in by_name.values())]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def study_table(reports: Sequence[dict[str, Any]], part: str) -> str:
    """One part of a study as Markdown: the range of every number over the reports."""
    rows = [report["tables"][part] for report in reports]
    report = reports[0]
    seeds = ", ".join(str(r["seed"]) for r in reports)
    run = f"seed {seeds}, {report['dtype']}, {report['device'].split()[0]}, jax {report['versions']['jax']}"

    def cell(values: Sequence[Any]) -> str:
        if any(isinstance(value, float) for value in values):
            numbers = [value for value in values if value is not None]
            text = _range(numbers, 3, "g")
            return text if min(numbers) >= 0 else text.replace("--", " to -")
        intervals = [re.fullmatch(r"([\d.]+)-([\d.]+)", str(value)) for value in values]
        if all(intervals):  # of a success rate: their hull, as in `table`
            ends = [[float(end) for end in interval.groups()] for interval in intervals if interval]
            return f"{min(low for low, _ in ends):.1f}-{max(high for _, high in ends):.1f}"
        return "" if values[0] is None else str(values[0])

    lines = [[*rows[0][0], "run"], ["---"] * (len(rows[0][0]) + 1)]
    lines += [[*(cell([row[name] for row in same]) for name in same[0]), run] for same in zip(*rows, strict=True)]
    return "\n".join("| " + " | ".join(text.replace("|", "\\|") for text in line) + " |" for line in lines)


def summary(reports: Sequence[dict[str, Any]]) -> str:
    """One Markdown row per problem: the default recipe on the true physics, the range over the seeds.

    The first row of each solver in a report counts, the one that stops at the tolerance of the problem.
    """
    problems: dict[str, list[dict[str, Any]]] = {}
    for report in reports:
        problems.setdefault(report["problem"], []).append(report)

    def first(report: dict[str, Any], *solvers: str) -> list[dict[str, Any]]:
        rows = [row for row in report["rows"] if row["recipe"] == "default"]
        return [next(row for row in rows if row["solver"] == solver) for solver in solvers]

    titles = ["problem", "RMSE x: mean", "ridge", "g(data)"]
    titles += [f"{s}: success %, RMSE x" for s in ("D-IPG", "safeguarded", "LM")]
    titles += ["fallbacks", "ms/solve: D-IPG", "safeguarded", "LM", "n", "run"]
    lines = [titles, ["---"] * len(titles)]
    rates = []
    for name, same in problems.items():
        baselines = [first(report, "mean", "ridge", "one-shot") for report in same]
        solved = [first(report, "dipg", "safeguarded", "lm") for report in same]
        line = [name, *(_range([rows[i]["rmse_x"] for rows in baselines], 3, "g") for i in range(3))]
        for i in range(3):
            success = _range([100 * rows[i]["success_rate"] for rows in solved], 1)
            line.append(f"{success}, {_range([rows[i]['rmse_x'] for rows in solved], 3, 'g')}")
        line.append(_range([rows[1]["fallbacks_per_solve"] for rows in solved], 2))
        for i in range(3):
            line.append(_range([1e3 * rows[i]["seconds_per_solve"] for rows in solved], 2, "g"))
        report = same[0]
        seeds = ", ".join(str(r["seed"]) for r in same)
        run = f"seed {seeds}, {report['dtype']}, {report['device'].split()[0]}, jax {report['versions']['jax']}"
        lines.append([*line, str(solved[0][0]["n"]), run])
        rates.append([sum(rows[i]["success_rate"] for rows in solved) / len(solved) for i in range(3)])
    mean = [f"{100 * sum(column) / len(rates):.1f}" for column in zip(*rates, strict=True)]
    lines.append(["mean", "", "", "", *mean, *[""] * (len(titles) - 7)])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def main(argv: Sequence[str]) -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks table", description=__doc__)
    parser.add_argument("reports", nargs="+", type=Path, help="report.json files of one problem, one per seed")
    parser.add_argument("--summary", action="store_true", help="one row per problem instead, of its default recipe")
    options = parser.parse_args(argv)
    reports = [json.loads(path.read_text()) for path in options.reports]
    if options.summary:
        print(summary(reports))
        return
    if "tables" not in reports[0]:
        print(table(reports))
        return
    for part, rows in reports[0]["tables"].items():
        if rows:
            print(f"{part}\n\n{study_table(reports, part)}\n")
