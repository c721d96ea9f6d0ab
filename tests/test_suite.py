"""The runner and the command line, on a problem small enough to run many times."""

import functools
import json
import subprocess

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from cases import matrix

from pinv_jax import cli, io, learn, maps, solvers, suite
from pinv_jax.suite import _run as runner

SIZE = 5


def _physics(dtype):
    return maps.Chain([maps.LinearMap(matrix(SIZE, SIZE, dtype)), maps.CubicSine((SIZE,), dtype=dtype)])


def _dataset(*, seed, num_test, dtype, quick):
    del quick
    sample = functools.partial(jax.random.normal, shape=(SIZE,), dtype=dtype)
    return suite.make_dataset(_physics(dtype), sample, 0.01, (64, 32, num_test), key=jax.random.key(seed))


@functools.lru_cache(maxsize=1)
def _optimiser():
    return optax.adam(1e-2)


def _inverse(model):
    return model.inverse


def _train(dataset, *, key, folder, progress, quick):
    del quick
    pair = learn.InversePair(dataset.physics, maps.MLP((SIZE, 8, SIZE), dtype=dataset.train.x.dtype, key=key))
    terms = {"reconstruction": learn.Term(learn.reconstruction)}
    stages = {name: learn.Stage(terms, _inverse, 40, 16, _optimiser()) for name in ("first", "second")}
    data = (dataset.train.x, dataset.train.y)
    pair, _ = learn.fit(pair, stages, data, key=key, checkpoint=folder, progress=progress)
    return {"pair": pair}


def _rows(dataset, models):
    inverse = models["pair"].inverse
    row = functools.partial(suite.observed_row, dataset, "only", forward=dataset.physics, tolerance=0.1, max_steps=20)
    return [
        row("mean", "", suite.mean_estimate(dataset)),
        row("ridge", "", suite.ridge_estimate(dataset, key=jax.random.key(1))),
        row("lm", "", solvers.LevenbergMarquardt(atol=0.1)),
        row("dipg", "", solvers.DIPG(inverse, atol=0.1)),
        row("safeguarded", "", solvers.Safeguarded(inverse, atol=0.1)),
    ]


SMALL = suite.InverseProblem(
    name="small",
    summary="five numbers",
    reference="none",
    tolerance=0.1,
    num_test=12,
    dataset=_dataset,
    recipes={"only": suite.Recipe(_train, _rows, lambda dataset, models, *, key: {"answer": {"deep": 42.0}})},
    figure_recipe="only",
)
TIMES = {"seconds_per_solve", "compile_seconds", "seconds_per_step"}


def run(out, **options):
    resume = options.pop("resume", False)
    return suite.run(SMALL, suite.Options(dtype="float64", **options), out, resume=resume, stream=None)


def numbers(report):
    """The report without what a clock says."""
    rows = [{k: v for k, v in row.items() if k not in TIMES} for row in report["rows"]]
    return {k: v for k, v in report.items() if k not in ("rows", "training_seconds")} | {"rows": rows}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    out = tmp_path_factory.mktemp("whole") / "results"
    return out, run(out)


def test_the_report_has_what_it_promises(whole):
    out, report = whole
    assert report == json.loads((out / "report.json").read_text())
    once = {"seed", "device", "versions", "training_seconds", "measures", "tolerance", "noise_level", "problem"}
    assert once <= set(report)
    assert {"jax", "jaxlib", "equinox", "optimistix", "pinv_jax"} <= set(report["versions"])
    solved = [row for row in report["rows"] if row["solver"] in suite.SOLVER_NAMES]
    assert [row["solver"] for row in report["rows"]] == ["mean", "ridge", "lm", "dipg", "safeguarded"]
    every = {"recipe", "solver", "dtype", "n", "success_rate", "success_interval", "rmse_x", "seconds_per_solve"}
    every |= {"residual_rms_surrogate", "residual_rms_physics"}
    more = {"median_steps", "steps_quartiles", "accepted", "tried", "seconds_per_step", "evaluations_per_solve"}
    assert all(every <= set(row) for row in report["rows"])
    assert all((more | {"fallbacks"}) <= set(row) for row in solved)
    assert all(
        0 <= row["success_interval"][0] <= row["success_rate"] <= row["success_interval"][1] <= 1 for row in solved
    )
    lm = solved[0]
    assert lm["success_rate"] == 1.0
    with np.load(out / "solutions.npz") as archive:
        assert archive["only-lm"].shape == archive["truth"].shape == (12, SIZE)
        error = np.sqrt(np.mean((archive["only-lm"] - archive["truth"]) ** 2, axis=1)).mean()
    np.testing.assert_allclose(lm["rmse_x"], error)
    assert sorted(report["figures"]) == [
        f"figures/{n}.png" for n in ("reconstructions", "residuals", "spectrum", "success")
    ]
    assert all((out / name).stat().st_size > 5000 for name in report["figures"])


def test_the_trained_model_can_be_loaded(whole):
    out, _ = whole
    dataset = _dataset(seed=0, num_test=2, dtype=jnp.float64, quick=False)
    like = learn.InversePair(dataset.physics, maps.MLP((SIZE, 8, SIZE), dtype=jnp.float64, key=jax.random.key(0)))
    pair = io.load_model(out / "models" / "only-pair.npz", like)
    assert pair.inverse(dataset.test.y[0]).shape == (SIZE,)


@pytest.mark.parametrize(
    "killed_in",
    ["row 3", *(pytest.param(where, marks=pytest.mark.slow) for where in ["first", "second", "row 0", "report"])],
)
def test_a_killed_run_resumes_to_the_same_numbers(whole, tmp_path, monkeypatch, killed_in):
    class Killed(BaseException):
        pass

    solved = []
    with monkeypatch.context() as patch:
        if killed_in.startswith("row"):
            original = runner.solve_row

            def solve_row(row):
                if len(solved) == int(killed_in[-1]):
                    raise Killed
                solved.append(row.name)
                return original(row)

            patch.setattr(runner, "solve_row", solve_row)
        elif killed_in == "report":
            patch.setattr(runner, "draw", lambda *args: (_ for _ in ()).throw(Killed))
        else:

            def progress(stage, done, total, loss):
                if stage == killed_in and done >= total / 2:
                    raise Killed

            patch.setattr(runner, "fit_progress", lambda stream: progress)
        with pytest.raises(Killed):
            run(tmp_path / "r")

    assert not (tmp_path / "r" / "report.json").exists()
    again = []
    original_row = runner.solve_row
    monkeypatch.setattr(runner, "solve_row", lambda row: again.append(row.name) or original_row(row))
    report = run(tmp_path / "r", resume=True)
    assert set(solved).isdisjoint(again), "a finished row was solved twice"
    assert numbers(report) == numbers(whole[1])
    with np.load(whole[0] / "solutions.npz") as a, np.load(tmp_path / "r" / "solutions.npz") as b:
        assert set(a.files) == set(b.files)
        for name in a.files:
            np.testing.assert_array_equal(a[name], b[name])


@pytest.mark.slow
def test_solvers_can_be_selected_and_baselines_stay(tmp_path):
    report = run(tmp_path / "r", solvers=("lm",), num_test=4)
    assert [row["solver"] for row in report["rows"]] == ["mean", "ridge", "lm"]
    assert {row["n"] for row in report["rows"]} == {4}


def test_the_seed_changes_the_numbers(whole, tmp_path):
    report = run(tmp_path / "r", seed=1, solvers=("dipg",))
    mine = [row["rmse_x"] for row in report["rows"] if row["solver"] == "dipg"]
    theirs = [row["rmse_x"] for row in whole[1]["rows"] if row["solver"] == "dipg"]
    assert mine != theirs


@pytest.fixture
def command(monkeypatch, capsys):
    monkeypatch.setattr(suite, "PROBLEMS", {"small": SMALL})

    def call(*arguments):
        status = cli.main(arguments)
        return status, *capsys.readouterr()

    return call


def test_the_command_prints_one_table_and_writes(command, tmp_path):
    status, out, _ = command("run", "small", "--dtype", "float64", "--num-test", "5", "--out", str(tmp_path / "r"))
    assert status == 0
    lines = out.splitlines()
    header = next(i for i, line in enumerate(lines) if line.startswith("recipe"))
    assert [line.split()[1] for line in lines[header + 2 : header + 7]] == [
        "mean",
        "ridge",
        "lm",
        "dipg",
        "safeguarded",
    ]
    assert (tmp_path / "r" / "report.json").exists()


@pytest.mark.parametrize("broken", [None, "two"])
def test_all_problems_run_in_processes_of_their_own(monkeypatch, capsys, tmp_path, broken):
    commands = {}

    def start(command, *, stdout, **_):
        name = command[command.index("run") + 1]
        commands[name] = command
        stdout.write(f"output of {name}")
        return subprocess.CompletedProcess(command, 3 if name == broken else 0)

    monkeypatch.setattr(suite, "PROBLEMS", {"one": SMALL, "two": SMALL, "three": SMALL})
    monkeypatch.setattr(cli.subprocess, "run", start)
    status = cli.main(["run", "all", "--seed", "4", "--resume", "--out", str(tmp_path)])
    assert status == (0 if broken is None else 1)
    out = capsys.readouterr().out
    for name in ("one", "two", "three"):
        ends = ["--seed", "4", "--dtype", "float32", "--resume", "--out", str(tmp_path / name)]
        assert commands[name][1:] == ["-m", "pinv_jax.cli", "run", name, *ends]
        assert (tmp_path / f"{name}.log").read_text() == f"output of {name}"
        assert f"{name}: {'failed with exit status 3' if name == broken else 'done'} in" in out


def test_a_quick_run_solves_with_each_solver_once():
    ones, first = jnp.ones(1), solvers.GradientDescent()
    methods = [
        ("ridge", "", abs),
        ("gd", "a", first),
        ("gd", "scored otherwise", first),
        ("gd", "b", solvers.GradientDescent(0.4)),
        ("ridge", "again", abs),
    ]
    rows = [suite.Row("r", name, note, abs, method, ones, ones, ones, 0.1, abs) for name, note, method in methods]
    assert [row.note for row in runner._first_of_each_solver(rows)] == ["", "a", "scored otherwise", "again"]


def test_the_command_lists_problems_and_solvers(capsys):
    assert cli.main(["list"]) == 0
    out = capsys.readouterr().out
    assert "heat1d:" in out
    assert "heat1d-workshop:" in out
    assert all(name in out for name in suite.SOLVER_NAMES)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nonsense"], "unknown problem 'nonsense'; known are small"),
        (["small", "--solver", "newton"], "unknown solver 'newton'; known are gd, gn, lm"),
        (["small", "--recipe", "secret"], "unknown recipe 'secret'; known are only"),
        (["small", "--num-test", "0"], "--num-test 0; expected at least 2"),
    ],
)
def test_the_command_refuses_what_it_does_not_know(command, tmp_path, arguments, message):
    status, out, err = command("run", *arguments, "--out", str(tmp_path / "r"))
    assert status == 2
    assert message in err
    assert not out
    assert not (tmp_path / "r").exists()


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_folder_of_another_problem_is_left_alone(command, tmp_path):
    for name, text in (("run.json", '{"problem": "other"}'), ("notes.txt", "mine")):
        folder = tmp_path / name.replace(".", "-")
        folder.mkdir()
        (folder / name).write_text(text)
        before = contents(folder)
        status, _, err = command("run", "small", "--out", str(folder), "--dtype", "float64")
        assert status == 2
        assert "choose another --out" in err
        assert contents(folder) == before


def test_resuming_with_other_options_is_refused(whole, command):
    before = contents(whole[0])
    for arguments, what in ((["--seed", "3"], "seed was 0, now 3"), (["--num-test", "5"], "num_test was 12, now 5")):
        status, _, err = command("run", "small", "--dtype", "float64", "--resume", "--out", str(whole[0]), *arguments)
        assert status == 2
        assert what in err
    assert contents(whole[0]) == before
