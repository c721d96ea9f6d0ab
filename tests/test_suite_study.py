"""Studies: parts are written one by one, resumed, and selected; the command prints their tables."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pinv_jax import cli, io, plots, suite


def make_study(log, fail=None):
    def part(name):
        def run(bench):
            log.append(name)
            if name == fail:
                raise KeyboardInterrupt
            x = jax.random.normal(bench.key, (5,), bench.dtype)
            bench.keep(name, {"x": x})
            rows = [{"what": name, "mean": float(jnp.mean(x)), "n": 5}, {"what": "none", "mean": None, "n": 0}]
            return suite.Findings(rows, {"largest": {"of x": float(jnp.max(x))}}, {"x": np.asarray(x)})

        return run

    def figures(found):
        return {name: plots.jacobian_spectrum(np.abs(part.arrays["x"]), 0.1) for name, part in found.items()}

    return suite.Study("small", "five numbers", "none", {"one": part("one"), "two": part("two")}, figures)


def run(study, out, *, resume=False, **options):
    return suite.run(study, suite.Options(dtype="float64", **options), out, resume=resume, stream=None)


def numbers(report):
    return {name: value for name, value in report.items() if name != "seconds"}


def test_the_report_has_tables_measures_figures_and_versions(tmp_path):
    report = run(make_study([]), tmp_path / "r")
    assert report == json.loads((tmp_path / "r" / "report.json").read_text())
    assert {"seed", "dtype", "device", "versions", "seconds"} <= set(report)
    assert list(report["tables"]) == ["one", "two"]
    assert report["tables"]["one"][0]["mean"] <= report["measures"]["one"]["largest"]["of x"]
    assert report["tables"]["one"] != report["tables"]["two"], "every part has a key of its own"
    assert report["figures"] == ["figures/one.png", "figures/two.png"]
    model = io.load_model(tmp_path / "r" / "models" / "one.npz", {"x": jnp.zeros(5)})
    assert float(jnp.mean(model["x"])) == report["tables"]["one"][0]["mean"]


def test_a_killed_study_resumes_at_the_part_it_was_in(tmp_path):
    whole = run(make_study([]), tmp_path / "whole")
    log = []
    with pytest.raises(KeyboardInterrupt):
        run(make_study(log, fail="two"), tmp_path / "r")
    resumed = run(make_study(log), tmp_path / "r", resume=True)
    assert log == ["one", "two", "two"]
    assert numbers(resumed) == numbers(whole)
    again = run(make_study(log), tmp_path / "r", resume=True)
    assert again == resumed
    assert len(log) == 3


def test_without_resume_the_parts_are_run_anew(tmp_path):
    log = []
    for _ in range(2):
        run(make_study(log), tmp_path / "r", recipes=("two",))
    assert log == ["two", "two"]
    with pytest.raises(ValueError, match="seed was 0, now 1"):
        run(make_study(log), tmp_path / "r", resume=True, seed=1)


def test_rows_of_one_table_share_their_columns(tmp_path):
    rows = [{"a": 1}, {"b": 2}]
    study = suite.Study("odd", "", "", {"part": lambda bench: suite.Findings(rows)}, lambda found: {})
    with pytest.raises(ValueError, match="different columns"):
        run(study, tmp_path / "r")


def test_the_command_runs_selects_and_prints(tmp_path, monkeypatch, capsys):
    study = make_study([])
    monkeypatch.setattr(suite, "PROBLEMS", {"small": study})
    arguments = ["run", "small", "--dtype", "float64", "--out", str(tmp_path / "r")]
    assert cli.main([*arguments, "--recipe", "two"]) == 0
    out = capsys.readouterr().out
    assert "largest of x" in out
    assert "what  mean" in out
    assert "parts/" in out
    for extra, message in ((["--solver", "lm"], "small has no such option"), (["--num-test", "5"], "--num-test")):
        assert cli.main([*arguments, *extra]) == 2
        assert message in capsys.readouterr().err
