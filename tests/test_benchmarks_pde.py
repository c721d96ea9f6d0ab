"""The benchmarks of cost and scale: residuals, break-even numbers, exponents and the clock of a resumed training."""

import json
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import cost, scale
from pinv_jax import solvers, suite


@pytest.fixture(scope="module")
def subject() -> cost.Subject:
    """A smooth map of three unknowns, with an inverse of its linear part."""
    matrix = jnp.asarray([[2.0, 0.3, 0.0], [0.0, 1.0, 0.2], [0.1, 0.0, 1.5]])
    back = jnp.linalg.inv(matrix)

    def physics(x):
        return matrix @ x + 0.1 * jnp.sin(x)

    truth = jax.random.uniform(jax.random.key(0), (4, 3))
    data = jax.vmap(physics)(truth)
    zero = jnp.zeros(3)
    return cost.Subject("toy", physics, data, zero, solvers.Box(0.0, 1.0), 1e-3, lambda y: back @ y, 2.0)


@pytest.fixture(scope="module")
def rows(subject):
    every = cost.methods(subject)
    return cost.contest(
        subject, {name: every[name] for name in ("D-IPG", "LM, dense", "optimistix LM")}, few=2, rounds=2
    )


@pytest.mark.slow
def test_contest_reaches_the_residual_and_counts(rows, subject):
    assert [(row["solver"], row["batch"]) for row in rows] == [
        (name, batch) for batch in (4, 1) for name in ("D-IPG", "LM, dense", "optimistix LM")
    ]
    for row in rows:
        assert row["met"] == 1.0
        assert row["residual"] <= row["worst_residual"] <= 1.001 * subject.tolerance
        assert row["ms"] > 0
        assert row["steps"] >= 1
    learned, dense, outside = rows[:3]
    assert outside["evaluations"] is None
    assert learned["evaluations"][1] > 0
    assert learned["evaluations"][2] == 0  # D-IPG needs no JVP
    assert dense["evaluations"][1] == 0
    assert dense["evaluations"][2] >= 3  # a column of the Jacobian each


def test_break_even_is_the_training_over_what_a_solve_saves(rows, subject):
    for batch in (4, 1):
        reference, *others = (row for row in rows if row["batch"] == batch)
        assert reference["ratio"] == 1.0
        assert reference["break_even"] is None
        for row in others:
            assert row["ratio"] == pytest.approx(row["ms"] / reference["ms"])
            if row["ratio"] > 1:
                assert row["break_even"] * 1e-3 * (row["ms"] - reference["ms"]) == pytest.approx(
                    subject.training_seconds
                )
            else:
                assert row["break_even"] is None


def test_optimistix_stops_at_the_residual_that_is_asked_for(subject):
    def found(tolerance):
        solver = cost.stopped_at(cost.optx.LevenbergMarquardt, tolerance)
        x = cost.optx.least_squares(
            lambda x, _: subject.physics(x) - subject.data[0], solver, subject.x0, throw=False
        ).value
        return float(jnp.sqrt(jnp.mean((subject.physics(x) - subject.data[0]) ** 2)))

    loose, tight = found(0.5), found(1e-4)
    assert 1e-3 < loose <= 0.5
    assert tight <= 1e-4


def test_verdict_leaves_out_who_did_not_arrive():
    def row(solver, ratio, met=1.0):
        return {"problem": "toy", "batch": 8, "solver": solver, "ratio": ratio, "met": met}

    rows = [row("D-IPG", 1.0), row(cost.FIXED, 50.0), row("LM, dense", 9.0), row("optimistix LM", 2.0, 0.9)]
    (line,) = cost.verdict([*rows, row("L-BFGS", 3.0)])
    assert line == {
        "problem": "toy",
        "batch": 8,
        "damping fixed": 50.0,
        "best dense": 9.0,
        "best": 3.0,
        "best is": "L-BFGS",
    }


def test_training_seconds_add_up_over_interrupted_runs(tmp_path, monkeypatch):
    now = iter([10.0, 13.0, 100.0, 102.0, 200.0, 300.0, 400.0])
    monkeypatch.setattr(cost.time, "perf_counter", lambda: next(now))

    def killed(*, folder, progress):
        progress("inverse", 1, 2, 0.0)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cost.timed_training(killed, tmp_path / "fit")
    assert cost.timed_training(lambda *, folder, progress: "g", tmp_path / "fit") == ("g", 5.0)
    assert cost.timed_training(lambda *, folder, progress: "g", tmp_path / "fit") == ("g", 5.0)  # read back


def test_table_has_a_line_per_row(rows):
    lines = cost.table(rows).splitlines()
    assert len(lines) == 2 + len(rows)
    assert len({line.count("|") for line in lines}) == 1


def test_unknown_problem_is_refused(capsys):
    with pytest.raises(SystemExit):
        cost.main(["--problem", "heat9d"])
    assert "heat9d" in capsys.readouterr().err


def test_recipe_without_a_schedule_cannot_be_shortened(tmp_path):
    def no_dataset(**options) -> Any:
        return None

    recipe = suite.Recipe(lambda *args, **options: {}, lambda *args: [], lambda *args, **options: {})
    problem = suite.InverseProblem("toy", "", "", 0.1, 1, no_dataset, {"default": recipe}, "default")
    with pytest.raises(ValueError, match="training-steps"):
        cost.make_subject(problem, seed=0, num=1, folder=tmp_path, quick=True, training_steps=5)


def test_exponents_of_powers():
    d = np.asarray([64.0, 256.0, 1024.0])
    rows = [
        {
            "d": size,
            "num_steps": size,
            "ms": {"forward": size**2, "LM step, dense": size**3},
            "ratio to forward": {"forward": 1.0, "LM step, dense": size},
        }
        for size in d
    ]
    found = scale.exponents(rows)
    assert found["forward"]["all"] == pytest.approx(2)
    assert found["forward"]["per time step"] == pytest.approx(1)
    assert found["LM step, dense"]["two largest"] == pytest.approx(3)
    assert found["LM step, dense"]["over forward"] == pytest.approx(1)
    assert found["D-IPG step, CNN"]["all"] is None
    assert scale.exponent([3.0], [1.0]) is None


@pytest.mark.slow
def test_scale_writes_whole_steps(tmp_path, capsys):
    scale.main(
        ["--family", "heat2d", "--sizes", "4", "--iterations", "2", "--width", "2"]
        + ["--rounds", "2", "--out", str(tmp_path)]
    )
    report = json.loads((tmp_path / "scale-heat2d.json").read_text())
    (row,) = report["rows"]
    assert row["d"] == 16
    assert set(row["ms"]) == set(scale.COLUMNS)
    assert all(ms > 0 for ms in row["ms"].values())
    assert report["exponents"]["LM step, dense"]["all"] is None  # one grid has no slope
    assert "heat2d, n = 4" in capsys.readouterr().out
