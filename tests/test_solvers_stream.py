"""Streams: files that grow, the same numbers as a batch, and everything finished kept whatever breaks."""

import errno
import os
import signal
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import pinv_jax as pj
from pinv_jax import solvers
from pinv_jax.solvers._columns import Columns

NUM, CHUNK = 220, 64
A = np.random.default_rng(0).normal(size=(3, 2))
SOLVER = solvers.GradientDescent(atol=1e-5)
START = jnp.zeros(2)


def forward(x):
    return jnp.tanh(A @ x)


@pytest.fixture(scope="module")
def data():
    return np.asarray(jax.vmap(forward)(0.7 * np.random.default_rng(1).normal(size=(NUM, 2))))


def stream(source, folder, **options):
    options = {"chunk_size": CHUNK, "lanes": 16, "narrowest": 16} | options
    return solvers.solve_stream(pj.Problem(forward, source), SOLVER, START, folder, **options)


def rows(count):
    return {"value": np.arange(2.0 * count).reshape(count, 2), "num_steps": np.arange(count, dtype=np.int32)}


def test_columns_grow_and_are_npy_files_at_any_time(tmp_path):
    columns = Columns(tmp_path, "mark", writes=True)
    columns.append(rows(5), 3)
    np.testing.assert_array_equal(np.load(tmp_path / "value.npy"), rows(5)["value"][:3])
    columns.append(rows(4), 4)
    np.testing.assert_array_equal(np.load(tmp_path / "num_steps.npy"), [0, 1, 2, 0, 1, 2, 3])
    assert Columns(tmp_path, "mark", writes=True).num_done == 7
    with pytest.raises(ValueError, match="holds another stream"):
        Columns(tmp_path, "another", writes=True)


def test_a_chunk_that_was_cut_off_does_not_count(tmp_path):
    columns = Columns(tmp_path, "mark", writes=True)
    columns.append(rows(3), 3)
    before = (tmp_path / "stream.json").read_bytes()
    columns.append(rows(4), 4)
    (tmp_path / "stream.json").write_bytes(before)  # as if killed between the rows and their count
    again = Columns(tmp_path, "mark", writes=True)
    assert again.num_done == 3
    again.append(rows(2), 2)
    np.testing.assert_array_equal(np.load(tmp_path / "num_steps.npy"), [0, 1, 2, 0, 1])


def test_a_full_disk_is_an_error_that_keeps_what_was_finished(tmp_path, monkeypatch):
    columns = Columns(tmp_path, "mark", writes=True)
    columns.append(rows(3), 3)

    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="The 3 observations before it are safe") as error:
            columns.append(rows(4), 4)
    assert error.value.errno == errno.ENOSPC
    again = Columns(tmp_path, "mark", writes=True)
    assert again.num_done == 3
    again.append(rows(4), 4)
    np.testing.assert_array_equal(np.load(tmp_path / "num_steps.npy"), [0, 1, 2, 0, 1, 2, 3])


@pytest.mark.parametrize(
    ("source", "options", "words"),
    [
        (np.zeros((0, 3)), {}, ["(0, 3)", "at least one"]),
        (iter([]), {}, ["gave no observations"]),
        (np.zeros((4, 3)), {"num": 5}, ["num=5", "4 observations"]),
        (3, {}, ["int", "iterable"]),
        (np.zeros((4, 3)), {"chunk_size": 0}, ["chunk_size=0", "positive"]),
        (np.zeros((4, 3)), {"lanes": 0}, ["lanes=0", "positive"]),
    ],
)
def test_bad_input_of_streams(source, options, words, tmp_path):
    with pytest.raises(ValueError) as error:  # noqa: PT011 - words are checked below
        stream(source, tmp_path, **options)
    for word in words:
        assert word in str(error.value)


@pytest.mark.slow
def test_a_stream_equals_a_batch_and_leaves_memory_maps(data, tmp_path):
    np.save(tmp_path / "data.npy", data)
    seen = []
    found = stream(
        np.load(tmp_path / "data.npy", mmap_mode="r"), tmp_path / "out", progress=lambda *args: seen.append(args)
    )
    batch = pj.solve_batch(pj.Problem(forward, jnp.asarray(data)), SOLVER, jnp.zeros((NUM, 2)))
    np.testing.assert_allclose(found.value, batch.value, atol=1e-10, rtol=0)
    np.testing.assert_array_equal(found.success, batch.success)
    np.testing.assert_array_equal(found.stats["num_steps"], batch.stats.num_steps)
    assert isinstance(found.value.base, np.memmap) or isinstance(found.value, np.memmap)
    assert seen[-1] == (NUM, 0, NUM)
    assert max(live for _, live, _ in seen) <= 16
    # at once: it is finished
    again = stream(data, tmp_path / "out")
    np.testing.assert_array_equal(again.value, found.value)
    # chunks of any length, starts of their own, and another solver in the same folder
    pieces = np.split(data, [10, 11, 100])
    starts = np.zeros((NUM, 2))
    own = solvers.solve_stream(
        pj.Problem(forward, pieces), SOLVER, starts, tmp_path / "own", chunk_size=CHUNK, lanes=16, narrowest=16
    )
    np.testing.assert_array_equal(own.value, found.value)
    with pytest.raises(ValueError, match="another stream"):
        solvers.solve_stream(pj.Problem(forward, data), solvers.GradientDescent(atol=1e-4), START, tmp_path / "out")


@pytest.mark.slow
def test_what_breaks_an_iterator_costs_nothing_that_was_finished(data, tmp_path):
    whole = stream(data, tmp_path / "whole")

    def failing():
        yield data[:100]
        yield data[100:150]
        raise RuntimeError("the instrument went away")

    with pytest.raises(RuntimeError, match="instrument"):
        stream(failing(), tmp_path / "broken")
    assert solvers.read_stream(tmp_path / "broken").num == 128
    resumed = stream([data], tmp_path / "broken")
    np.testing.assert_array_equal(resumed.value, whole.value)

    with pytest.raises(ValueError, match="ended after 150 of num=220"):
        stream([data[:150]], tmp_path / "short", num=NUM)
    assert solvers.read_stream(tmp_path / "short").num == 150
    with pytest.raises(ValueError, match=r"from observation 100 on, data is float64\[2\]; the first was float64\[3\]"):
        stream([data[:100], data[:100, :2]], tmp_path / "shape")
    assert solvers.read_stream(tmp_path / "shape").num == 64


WORKER = """
import os, resource, sys, time
import jax, numpy as np
jax.config.update("jax_enable_x64", True)
sys.path.insert(0, "tests")
import test_solvers_stream as t
folder, limit, pause = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
data = np.load(folder + "/data.npy", mmap_mode="r")
if limit:
    import signal
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # writing beyond the limit is then an error, as on a full disk
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
t.stream(data, folder + "/out", progress=lambda *args: time.sleep(pause))
"""


def worker(folder, limit=0, pause=0.0):
    return subprocess.Popen([sys.executable, "-c", WORKER, str(folder), str(limit), str(pause)], stderr=subprocess.PIPE)


@pytest.mark.slow
def test_a_killed_run_and_one_out_of_space_go_on_where_they_were(data, tmp_path):
    np.save(tmp_path / "data.npy", data)
    killed = worker(tmp_path, pause=0.3)
    deadline = time.monotonic() + 240
    while not (tmp_path / "out" / "stream.json").exists():
        assert killed.poll() is None, killed.communicate()[1].decode()[-2000:]
        assert time.monotonic() < deadline
        time.sleep(0.01)
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    done = solvers.read_stream(tmp_path / "out").num
    assert 0 < done < NUM
    # 192 bytes of header and 16 per row: a file may hold one chunk more, and no second
    full = worker(tmp_path, limit=192 + 16 * (done + CHUNK + 10))
    message = full.communicate()[1].decode()
    assert full.returncode == 1
    assert f"The {done + CHUNK} observations before it are safe" in message
    assert solvers.read_stream(tmp_path / "out").num == done + CHUNK
    found = stream(data, tmp_path / "out")
    np.testing.assert_array_equal(found.value, stream(data, tmp_path / "whole").value)
    assert found.num == NUM
