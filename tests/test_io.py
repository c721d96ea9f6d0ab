import os

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pinv_jax import _store, io
from pinv_jax._solution import RESULTS, History, Solution, Stats


def one_solution(index, history):
    """A made-up solution; `index` may be traced."""
    count, number = jnp.asarray(index, jnp.int32), jnp.asarray(index, jnp.float32)
    stats = Stats(*(count + i for i in range(8)), *(number + i for i in range(2)))
    record = History(*(jnp.full((6,), number + i) for i in range(4))) if history else None
    result = RESULTS.where(count % 2 == 0, RESULTS.successful, RESULTS.line_search_failed)
    return Solution(jnp.arange(5.0, dtype=jnp.float32) * number, result, stats, record)


@pytest.mark.parametrize("history", [False, True], ids=["plain", "history"])
@pytest.mark.parametrize("batch", [None, 4, 0], ids=["single", "batched", "empty"])
def test_a_solution_comes_back(batch, history, tmp_path):
    if batch is None:
        solution = one_solution(3, history)
    else:
        solution = jax.vmap(lambda i: one_solution(i, history))(jnp.arange(batch))
    io.save_solution(tmp_path / "s.npz", solution)
    loaded = io.load_solution(tmp_path / "s.npz")
    assert jax.tree.structure(loaded) == jax.tree.structure(solution)
    for a, b in zip(jax.tree.leaves(loaded), jax.tree.leaves(solution), strict=True):
        assert a.dtype == b.dtype
        assert np.array_equal(a, b)
    assert np.array_equal(loaded.success, solution.success)
    if batch is None:
        assert RESULTS[loaded.result] == RESULTS[RESULTS.line_search_failed]


def test_result_codes_follow_their_names(tmp_path):
    path = tmp_path / "s.npz"
    io.save_solution(path, jax.vmap(lambda i: one_solution(i, history=False))(jnp.arange(4)))
    leaves, meta = _store.load_leaves(path, kind="solution")

    def write(names):
        tree = {"value": leaves["['value']"], "result": np.asarray([0, 2, 2, 0], np.int32), "history": None}
        tree["stats"] = {key[len("['stats']['") : -2]: a for key, a in leaves.items() if "stats" in key}
        _store.save(path, tree, kind="solution", meta={"results": names})

    write({"stationary": 0, "other": 1, "successful": 2})  # another version, which numbered them differently
    loaded = io.load_solution(path)
    assert np.array_equal(loaded.result == RESULTS.stationary, [True, False, False, True])
    assert np.array_equal(loaded.success, [False, True, True, False])
    write({"stationary": 0, "from_the_future": 2})
    with pytest.raises(ValueError, match="unknown result codes 2 'from_the_future'"):
        io.load_solution(path)


def test_statistics_of_another_version_are_named(tmp_path):
    tree = {"value": jnp.ones(2), "result": np.int32(0), "stats": {"num_steps": 1.0 * jnp.ones(())}, "history": None}
    _store.save(tmp_path / "s.npz", tree, kind="solution", meta={"results": {"successful": 0}})
    with pytest.raises(ValueError, match=r"its stats are \['num_steps'\]; expected \['num_f'"):
        io.load_solution(tmp_path / "s.npz")


def test_double_precision_solutions_ask_for_64_bit_mode(tmp_path):
    solution = one_solution(1, history=False)
    io.save_solution(tmp_path / "s.npz", eqx.tree_at(lambda s: s.value, solution, jnp.ones(3)))
    with jax.enable_x64(False), pytest.raises(ValueError, match="float64, and JAX's 64-bit mode is off"):
        io.load_solution(tmp_path / "s.npz")


def test_models_compute_the_same_after_loading(tmp_path):
    def build(seed):
        return eqx.nn.MLP(3, 2, 8, 2, key=jax.random.key(seed))

    x = jnp.asarray([0.1, -0.2, 0.3])
    io.save_model(tmp_path / "m.npz", build(0), meta={"seed": 0})
    loaded = io.load_model(tmp_path / "m.npz", build(1))
    assert np.array_equal(loaded(x), build(0)(x))
    assert np.array_equal(io.load_model(tmp_path / "m.npz", eqx.filter_eval_shape(build, 1))(x), build(0)(x))
    assert io.read_model_meta(tmp_path / "m.npz") == {"seed": 0}
    with pytest.raises(ValueError, match="holds a 'model'; expected a 'solution'"):
        io.load_solution(tmp_path / "m.npz")
    with pytest.raises(ValueError, match="does not fit the model"):
        io.load_model(tmp_path / "m.npz", eqx.nn.MLP(3, 2, 9, 2, key=jax.random.key(0)))


def test_arrays_of_every_format(tmp_path):
    table = np.arange(6.0).reshape(2, 3) / 7
    np.save(tmp_path / "a.npy", table)
    np.savez(tmp_path / "one.npz", data=table)
    np.savez(tmp_path / "two.npz", x=table + 1, data=table)
    np.savetxt(tmp_path / "a.csv", table, delimiter=",", header="three columns", fmt="%.17g")
    np.savetxt(tmp_path / "column.csv", table[0], fmt="%.17g")
    np.save(tmp_path / "int.npy", np.arange(3, dtype=np.uint8))
    for file, name in [("a.npy", None), ("one.npz", None), ("two.npz", "data"), ("a.csv", None)]:
        got = io.read_array(tmp_path / file, name=name, shape=(None, 3))
        assert isinstance(got, jax.Array)
        assert got.dtype == jnp.float64
        assert np.array_equal(got, table)
    assert io.read_array(tmp_path / "a.npy", dtype=jnp.float32).dtype == jnp.float32
    assert io.read_array(tmp_path / "int.npy").dtype == jnp.float64
    assert io.read_array(tmp_path / "column.csv").shape == (3,)
    assert io.read_array(tmp_path / "column.csv", shape=(None, 1)).shape == (3, 1)
    assert io.read_array(tmp_path / "column.csv", shape=(3,)).shape == (3,)
    with jax.enable_x64(False):
        assert io.read_array(tmp_path / "a.npy").dtype == jnp.float32
        with pytest.raises(ValueError, match="dtype=float64: expected a floating type, and for float64"):
            io.read_array(tmp_path / "a.npy", dtype=jnp.float64)


class Unpickled:
    """Leaves a trace in the file system should anybody unpickle it."""

    def __init__(self, trace):
        self.trace = trace

    def __reduce__(self):
        return (open, (str(self.trace), "w"))


def test_objects_are_never_unpickled(tmp_path):
    trace = tmp_path / "trace"
    array = np.empty(1, object)
    array[0] = Unpickled(trace)
    np.save(tmp_path / "a.npy", array, allow_pickle=True)
    np.savez(tmp_path / "a.npz", a=array)
    np.savez(tmp_path / "header.npz", header=array)
    for file in ("a.npy", "a.npz"):
        with pytest.raises(ValueError, match="Object arrays cannot be loaded"):
            io.read_array(tmp_path / file)
    with pytest.raises(ValueError, match="not a file that pinv_jax wrote"):
        io.load_solution(tmp_path / "header.npz")
    assert not trace.exists()


BAD = {
    "nan": (np.array([[1.0, 2.0], [np.nan, np.inf]]), {}, r"2 of 4 entries are NaN or infinite; .* index \(1, 0\)"),
    "overflow": (np.array([1.0, 1e300]), {"dtype": jnp.float32}, r"1 of 2 .* conversion to float32.* index \(1,\)"),
    "rows": (np.ones((2, 3)), {"shape": (None, 4)}, r"has shape \(2, 3\), expected \(any, 4\)"),
    "axes": (np.ones((2, 3)), {"shape": (6,)}, r"has shape \(2, 3\), expected \(6,\)"),
    "complex": (np.ones(2) * 1j, {}, r"complex128.*numpy\.stack\(\[a\.real, a\.imag\], axis=-1\)"),
    "text": (np.array(["a"]), {}, "holds <U1, expected numbers"),
    "empty": (np.ones((0, 3)), {}, "holds no numbers"),
    "integer dtype": (np.ones(2), {"dtype": jnp.int32}, "dtype=int32: expected a floating type"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_arrays_say_what_is_wrong(name, tmp_path):
    array, options, message = BAD[name]
    np.save(tmp_path / "a.npy", array)
    with pytest.raises(ValueError, match=message):
        io.read_array(tmp_path / "a.npy", **options)


def test_bad_files_say_what_is_wrong(tmp_path):
    np.savez(tmp_path / "two.npz", x=np.ones(2), y=np.ones(2))
    with pytest.raises(ValueError, match=r"holds the arrays x, y: say which with name=\.\.\., not None"):
        io.read_array(tmp_path / "two.npz")
    with pytest.raises(ValueError, match="not 'z'"):
        io.read_array(tmp_path / "two.npz", name="z")
    whole = (tmp_path / "two.npz").read_bytes()
    np.save(tmp_path / "a.npy", np.ones(100))
    for file, content in [("t.npz", whole[:-30]), ("t.npy", (tmp_path / "a.npy").read_bytes()[:-8]), ("e.npy", b"")]:
        (tmp_path / file).write_bytes(content)
        with pytest.raises(ValueError, match=f"{file} cannot be read as"):
            io.read_array(tmp_path / file, name="x")
        assert (tmp_path / file).read_bytes() == content
    for text in ["1,2\n3\n", "1,a\n", "1+2j\n", ""]:
        (tmp_path / "a.csv").write_text(text)
        with pytest.raises(ValueError, match=r"a\.csv"):
            io.read_array(tmp_path / "a.csv")
    with pytest.raises(ValueError, match=r"cannot read \.mat; expected \.npy, \.npz or \.csv"):
        io.read_array(tmp_path / "a.mat")
    with pytest.raises(FileNotFoundError):
        io.read_array(tmp_path / "absent.npy")
    assert "absent.npy" not in os.listdir(tmp_path)
