"""Lanes on eight host devices, and on two processes, against one; in subprocesses, whose devices can be set."""

import json
import os
import socket
import subprocess
import sys
import time

import numpy as np
import pytest

from pinv_jax import solvers

COMMON = """
import json, os, sys, time
import jax, jax.numpy as jnp, numpy as np
jax.config.update("jax_enable_x64", True)
import optax
import pinv_jax as pj
from pinv_jax import learn, maps, solvers

rng = np.random.default_rng(0)
A = rng.normal(size=(4, 3))
forward = lambda x: jnp.tanh(A @ x) + 0.1 * A @ x
x_true = np.where(np.arange(96) % 8 == 0, 3.0, 0.3)[:, None] * rng.normal(size=(96, 3))  # uneven
data = np.asarray(jax.vmap(forward)(x_true))
problem = pj.Problem(forward, data)
solver = solvers.GradientDescent(atol=1e-6)
settings = {"max_steps": 300}
MODES = {
    "masked": {"mode": "masked"},
    "compacting": {"mode": "compacting", "narrowest": 3},
    "streaming": {"mode": "streaming", "lanes": 32, "narrowest": 2},
}
net = maps.MLP((4, 6, 3), activation="tanh", dtype=jnp.float64, key=jax.random.key(0))

def fit(mesh, **options):
    pair = learn.InversePair(forward, net)
    stage = learn.Stage({"inverse": learn.Term(learn.reconstruction)}, lambda p: p.inverse, 24, 16, optax.adam(1e-2))
    pair, history = learn.fit(pair, {"g": stage}, (x_true, data), key=jax.random.key(1), mesh=mesh, **options)
    return [np.asarray(a).tolist() for a in jax.tree.leaves(pair.inverse)], history["g"].loss.tolist()
"""

DEVICES = """
def described(sol):
    return {"value": sol.value.tolist(), "steps": sol.stats.num_steps.tolist(), "codes": sol.result._value.tolist(),
            "useful": float(sol.stats.useful)}

found = {}
x0 = jnp.zeros((96, 3))
mesh = jax.make_mesh((8,), ("lanes",))
for name, options in MODES.items():
    found[name] = described(pj.solve_batch(problem, solver, x0, mesh=mesh, **options, **settings))
found["fit 8"], found["fit 1"] = fit(mesh), fit(None)
found["alone"] = described(pj.solve_batch(problem, solver, x0, mode="masked", **settings))
mesh = jax.make_mesh((2, 4), ("a", "b"))
found["two axes"] = described(pj.solve_batch(problem, solver, x0, mesh=mesh, **MODES["streaming"], **settings))
jitted = jax.jit(lambda y: pj.solve_batch(pj.Problem(forward, y), solver, x0, mesh=mesh, **settings))
found["jit"] = described(jitted(jnp.asarray(data)))
text = jitted.lower(jnp.asarray(data)).compile().as_text()
collectives = ("all-reduce", "all-gather", "collective-permute", "all-to-all")
found["collectives"] = [word for word in collectives if word in text]
errors = {}
for name, call in {
    "observations": lambda: pj.solve_batch(pj.Problem(forward, data[:90]), solver, x0[:90], mesh=mesh),
    "lanes": lambda: pj.solve_batch(problem, solver, x0, mesh=mesh, mode="streaming", lanes=12),
    "batch_size": lambda: learn.fit(net, {"g": learn.Stage({"a": learn.Term(lambda m, x, y, k: jnp.sum(m(y) ** 2))},
        lambda m: m, 2, 12, optax.sgd(0.1))}, (x_true, data), key=jax.random.key(0), mesh=mesh),
}.items():
    try:
        call()
    except ValueError as error:
        errors[name] = str(error)
found["errors"] = errors
json.dump(found, open(sys.argv[1], "w"))
"""


def started(script, *arguments, num_devices):
    flags = {"XLA_FLAGS": f"--xla_force_host_platform_device_count={num_devices}", "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-c", script, *map(str, arguments)]
    return subprocess.Popen(command, env=os.environ | flags, stderr=subprocess.PIPE, text=True)


def finished(*processes):
    messages = [process.communicate()[1] for process in processes]
    for process, message in zip(processes, messages, strict=True):
        assert process.returncode == 0, message[-3000:]


@pytest.fixture(scope="module")
def eight(tmp_path_factory):
    path = tmp_path_factory.mktemp("mesh") / "found.json"
    finished(started(COMMON + DEVICES, path, num_devices=8))
    return json.loads(path.read_text())


@pytest.mark.slow
@pytest.mark.parametrize("name", ["masked", "compacting", "streaming", "two axes", "jit"])
def test_eight_devices_find_what_one_finds(eight, name):
    found, expected = eight[name], eight["alone"]
    np.testing.assert_allclose(found["value"], expected["value"], atol=1e-10, rtol=0)
    assert found["steps"] == expected["steps"]
    assert found["codes"] == expected["codes"]


@pytest.mark.slow
def test_each_device_retires_its_own_lanes_and_tells_the_others_nothing(eight):
    assert eight["masked"]["useful"] > eight["alone"]["useful"] + 0.05  # no device waits for the slowest of another
    assert eight["streaming"]["useful"] > eight["alone"]["useful"] + 0.1
    assert eight["collectives"] == []


@pytest.mark.slow
def test_training_on_eight_devices_gives_the_same_numbers(eight):
    for found, expected in zip(eight["fit 8"], eight["fit 1"], strict=True):
        for a, b in zip(found, expected, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12)


@pytest.mark.slow
def test_what_does_not_divide_is_said(eight):
    for name, words in {
        "observations": ["observations is 90", "8 devices", "88 or 96"],
        "lanes": ["lanes is 12", "8 or 16"],
        "batch_size": ["batch_size", "12", "8 devices"],
    }.items():
        for word in words:
            assert word in eight["errors"][name]


JOIN = """
import sys
import jax
address, rank, folder, job = sys.argv[1], int(sys.argv[2]), sys.argv[3], sys.argv[4]
if address != "alone":
    jax.distributed.initialize(address, 2, rank, initialization_timeout=100)
"""

PROCESSES = """
mesh = jax.make_mesh((jax.device_count(),), ("lanes",))
from jax.experimental import multihost_utils

def whole(array):
    return np.asarray(multihost_utils.process_allgather(array, tiled=True)).tolist()

if job == "solve":
    found = {}
    for name in ("masked", "streaming"):
        sol = pj.solve_batch(problem, solver, jnp.zeros((96, 3)), mesh=mesh, **MODES[name], **settings)
        found[name] = {"value": whole(sol.value), "steps": whole(sol.stats.num_steps)}
    found["fit"] = fit(mesh, checkpoint=folder + "/fit")
    if rank == 0:
        json.dump(found, open(f"{folder}/{address == 'alone'}.json", "w"))
elif job == "mismatch":
    try:
        pj.solve_batch(pj.Problem(forward, data + rank), solver, jnp.zeros((96, 3)), mesh=mesh)
    except ValueError as error:
        open(f"{folder}/{rank}.txt", "w").write(str(error))
else:
    pause = (lambda *args: time.sleep(0.5)) if job == "slow" else None
    solvers.solve_stream(problem, solver, jnp.zeros(3), folder + "/out", chunk_size=16, lanes=8, narrowest=8, mesh=mesh,
                         progress=pause, **settings)
"""


def two_processes(folder, job):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    return [started(JOIN + COMMON + PROCESSES, address, rank, folder, job, num_devices=2) for rank in range(2)]


@pytest.mark.slow
def test_two_processes_agree_with_one(tmp_path):
    finished(*two_processes(tmp_path, "solve"))
    finished(started(JOIN + COMMON + PROCESSES, "alone", 0, tmp_path, "solve", num_devices=4))
    found, expected = (json.loads((tmp_path / f"{alone}.json").read_text()) for alone in (False, True))
    for mode in ("masked", "streaming"):
        np.testing.assert_allclose(found[mode]["value"], expected[mode]["value"], atol=1e-12, rtol=0)
        assert found[mode]["steps"] == expected[mode]["steps"]
    np.testing.assert_allclose(found["fit"][1], expected["fit"][1], rtol=1e-10)


@pytest.mark.slow
def test_processes_that_differ_are_told(tmp_path):
    finished(*two_processes(tmp_path, "mismatch"))
    for rank in range(2):
        assert "processes [1] passed other arrays" in (tmp_path / f"{rank}.txt").read_text()


@pytest.mark.slow
def test_a_job_whose_worker_was_killed_starts_again_where_it_was(tmp_path):
    first, second = two_processes(tmp_path, "slow")
    deadline = time.monotonic() + 240
    while not (tmp_path / "out" / "stream.json").exists():
        assert first.poll() is None, first.communicate()[1][-3000:]
        assert time.monotonic() < deadline
        time.sleep(0.02)
    second.kill()
    first.kill()  # what a scheduler does with the rest of a job
    for process in (first, second):
        process.communicate()
    assert 0 < solvers.read_stream(tmp_path / "out").num < 96
    finished(*two_processes(tmp_path, "stream"))
    found = solvers.read_stream(tmp_path / "out")
    (tmp_path / "alone").mkdir()
    finished(started(JOIN + COMMON + PROCESSES, "alone", 0, tmp_path / "alone", "stream", num_devices=4))
    expected = solvers.read_stream(tmp_path / "alone" / "out")
    assert found.num == expected.num == 96
    np.testing.assert_array_equal(found.value, expected.value)
    np.testing.assert_array_equal(found.result, expected.result)
