"""`ablation`: what each part of the learned local inverse is worth, on both Heat-1D problems.

- `physics`: inverses of the true physics of `heat1d`, trained with every target of the penalty, without terms, and
  selected by either rule; the same solver runs on all of them.
- `solver`: the form of the proposal and the relaxation, on a good and on a poor inverse of those.
- `joint`: the single-layer pair of `heat1d-workshop`, both maps trained together, with terms left out, and tied.
"""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from .. import plots
from ..diagnostics import rjcp
from ..learn import Deceptron, InversePair, deceptron_stage, fit, jcp, ridge_prefit, three_stage
from ..maps import MLP
from ..solvers import DIPG, Armijo, PublishedArmijo
from . import _heat1d, _heat1d_workshop
from ._base import Dataset, Row, observed_row
from ._heat1d import published_constants
from ._inverse import default_measures, default_metric
from ._run import row_entry, solve_row
from ._study import Bench, Findings, Study

RELAXATIONS = (0.4, 0.7, 1.0)
PROPOSALS = ("paper", "defect", "jvp")


def _inverses(bench: Bench, dataset: Dataset, names: Sequence[str] | None = None) -> dict[str, InversePair]:
    """The variants by name, all by default; those with the same selection share their second stage."""
    model_key, fit_key = jax.random.split(jax.random.key(bench.seed + 1))
    train, val = dataset.train, dataset.val
    size = train.x.shape[1]
    constants = published_constants(quick=bench.quick)
    start = InversePair(dataset.physics, MLP((size, 2 * size, size), dtype=train.x.dtype, key=model_key))
    common = {"key": fit_key, "validation": (val.x, val.y), "progress": bench.progress}
    data = functools.partial(jcp, target="data", metric=default_metric(dataset))
    normal = functools.partial(jcp, target="normal_equation")
    # name: selection, penalty, terms left out
    variants: dict[str, tuple[str, Any, tuple[str, ...]]] = {
        "identity, by RJCP": ("published", jcp, ()),
        "none, by RJCP": ("published", jcp, ("jcp",)),
        "identity": ("guarded", jcp, ()),
        "none": ("guarded", jcp, ("jcp",)),
        "data": ("guarded", data, ()),
        "normal equation": ("guarded", normal, ()),
        "data, no reconstruction": ("guarded", data, ("reconstruction",)),
        "data, no cycle": ("guarded", data, ("cycle",)),
    }
    models, second = {}, {}
    for name in variants if names is None else names:
        selection, penalty, without = variants[name]
        stages = three_stage(
            constants, train.num_examples, selection=selection, noise_std=dataset.noise_std, penalty=penalty
        )
        kept = tuple(term for term in without if term != "jcp")
        first = (selection, kept)
        if first not in second:
            stage = {"inverse": stages["inverse"].without(*kept)}
            folder = bench.fits / "-".join(("inverse", selection, *kept))
            second[first], _ = fit(start, stage, (train.x, train.y), checkpoint=folder, **common)
        # The physics has no layer to compare with.
        stage = {"jcp": stages["jcp"].without("composition", "bias_tie", *without)}
        folder = bench.fits / name.replace(", ", "-").replace(" ", "-")
        models[name], _ = fit(second[first], stage, (train.x, train.y), checkpoint=folder, **common)
    return models


def _line(row: Row, dataset: Dataset) -> dict[str, Any]:
    """The columns that all parts share."""
    entry = row_entry(row, solve_row(row), dataset)
    low, high = entry["success_interval"]
    return {
        "success %": 100 * entry["success_rate"],
        "95 %": f"{100 * low:.1f}-{100 * high:.1f}",
        "steps": entry["median_steps"],
        "quartiles": f"{entry['steps_quartiles'][0]:g}-{entry['steps_quartiles'][1]:g}",
        "accepted/tried": entry["accepted_share"],
        "RMSE x": entry["rmse_x"],
        "residual": entry["residual_rms_physics"],
        "failed searches": entry["failed_line_searches"],
    }


def _dataset(bench: Bench, problem: Any) -> Dataset:
    num_test = 40 if bench.quick else problem.num_test
    return problem.dataset(seed=bench.seed, num_test=num_test, dtype=bench.dtype, quick=bench.quick)


def _solved(dataset: Dataset, method: Any) -> dict[str, Any]:
    row = observed_row(
        dataset,
        "ablation",
        "dipg",
        "",
        method,
        forward=dataset.physics,
        tolerance=_heat1d.TOLERANCE,
        project=_heat1d.BOX,
    )
    return _line(row, dataset)


def physics(bench: Bench) -> Findings:
    """One solver, D-IPG with the defect form and no fallback, on every inverse; and what RJCP says of them."""
    dataset = _dataset(bench, _heat1d.HEAT1D)
    models = _inverses(bench, dataset)
    found = default_measures(dataset, models, key=jax.random.key(bench.seed))
    rows = []
    for name, pair in models.items():
        bench.keep(f"physics-{name}".replace(", ", "-").replace(" ", "-"), pair)
        values = found[f"RJCP {name}"]
        rjcps = {f"RJCP {kind}": values[kind] for kind in ("identity", "data", "excess")}
        shot = np.asarray(jax.vmap(_heat1d.BOX)(jax.vmap(pair.inverse)(dataset.test.y)) - dataset.test.x)
        one_shot = {"g(data) RMSE x": float(np.sqrt(np.mean(shot**2, axis=1)).mean())}
        rows.append({"JCP": name} | _solved(dataset, DIPG(pair.inverse, atol=_heat1d.TOLERANCE)) | one_shot | rjcps)
    return Findings(rows, {"rank correlation": _correlations(rows), "floor": {"data": found["RJCP floor data"]}})


def _correlations(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Spearman's, over the models: does a lower RJCP go with more success, fewer steps, a smaller error?"""
    from scipy.stats import spearmanr  # takes long to import

    found: dict[str, Any] = {}
    for kind in ("RJCP identity", "RJCP data", "RJCP excess", "g(data) RMSE x"):
        for outcome in ("success %", "steps", "RMSE x"):
            left, right = ([row[column] for row in rows] for column in (kind, outcome))
            constant = len(set(right)) == 1  # a rank needs values that differ
            found[f"{kind}, {outcome}"] = float("nan") if constant else np.asarray(spearmanr(left, right))[0].item()
    return found


def solver(bench: Bench) -> Findings:
    """Proposal and relaxation, from `g(data)` and from zero, on the inverses with the best and the poorest penalty."""
    dataset = _dataset(bench, _heat1d.HEAT1D)
    names = ("data", "identity, by RJCP")
    models = _inverses(bench, dataset, names)
    rows = []
    for name in names:
        for proposal in PROPOSALS:
            for relaxation in RELAXATIONS[-1:] if bench.quick else RELAXATIONS:
                search = PublishedArmijo() if proposal == "paper" else Armijo()
                method = DIPG(
                    models[name].inverse,
                    proposal=proposal,
                    relaxation=relaxation,
                    atol=_heat1d.TOLERANCE,
                    search=search,
                    jump_first=False,
                )
                rows.append({"JCP": name, "proposal": proposal, "relaxation": relaxation} | _solved(dataset, method))
    return Findings(rows)


def joint(bench: Bench) -> Findings:
    """The pair of the workshop paper, trained together, on its learned forward map as published."""
    dataset = _dataset(bench, _heat1d_workshop.HEAT1D_WORKSHOP)
    train = dataset.train
    model_key, fit_key = jax.random.split(bench.key)
    stage = deceptron_stage(train.num_examples, epochs=15 if bench.quick else 60)["joint"]
    variants: dict[str, tuple[str, ...]] = {
        "all terms": (),
        "no JCP": ("jcp",),
        "no reconstruction": ("reconstruction",),
        "no cycle": ("cycle",),
        "no composition": ("composition",),
        "tied, V = W'": ("jcp",),
    }
    rows = []
    for name, without in variants.items():
        size = train.x.shape[1]
        model = Deceptron(size, size, tied=name.startswith("tied"), dtype=train.x.dtype, key=model_key)
        model = ridge_prefit(model, train.x, train.y)
        letters = "".join(c if c.isalnum() else "-" for c in name)
        model, _ = fit(
            model,
            {f"joint-{letters}": stage.without(*without) if without else stage},
            (train.x, train.y),
            key=fit_key,
            validation=(dataset.val.x, dataset.val.y),
            checkpoint=bench.fits / letters,
            progress=bench.progress,
        )
        bench.keep(f"joint-{letters}", model)
        value = rjcp(
            model.forward,
            model.inverse,
            dataset.val.x,
            key=jax.random.key(bench.seed),
            probe="normal",
            normalisation="sum",
        )
        row = observed_row(
            dataset,
            "ablation",
            "dipg",
            "",
            DIPG(
                model.inverse,
                proposal="paper",
                relaxation=0.4,
                atol=_heat1d_workshop.TOLERANCE,
                rtol=0.0,
                search=PublishedArmijo(max_trials=8),
            ),
            forward=model.forward,
            tolerance=_heat1d_workshop.TOLERANCE,
            project=_heat1d_workshop.PinnedBox(),
            max_steps=200,
            surrogate=True,
        )
        rows.append({"terms": name} | _line(row, dataset) | {"RJCP sum": float(value)})
    return Findings(rows)


def figures(found: Mapping[str, Findings]) -> dict[str, Any]:
    """Error of the solver against RJCP, over the inverses of the physics."""
    if "physics" not in found:
        return {}
    rows = found["physics"].rows
    values = {
        kind: {row["JCP"]: (row[f"RJCP {kind}"], row["RMSE x"]) for row in rows}
        for kind in ("identity", "data", "excess")
    }
    return {"rjcp": plots.labelled_points(values, xlabel="RJCP, {}", ylabel="RMSE of x")}


ABLATION = Study(
    name="ablation",
    summary="what each part of the learned local inverse is worth: penalty, terms, selection, proposal, relaxation",
    reference=_heat1d.HEAT1D.reference,
    recipes={"physics": physics, "solver": solver, "joint": joint},
    figures=figures,
)
