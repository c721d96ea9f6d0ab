import io
import json
import os
import subprocess
import sys

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from pinv_jax import _store
from pinv_jax._progress import Meter, fit_progress, solve_progress
from pinv_jax.maps._base import store


class Scaled(eqx.Module):
    scale: jax.Array
    size: int = eqx.field(static=True)


def trees():
    mlp = eqx.nn.MLP(3, 2, 4, 1, activation=jnp.tanh, key=jax.random.key(1))
    return {
        "mlp with functions as leaves": mlp,
        "stored callable": store(mlp),
        "optimiser state": optax.adam(1e-3).init(eqx.filter(mlp, eqx.is_array)),
        "dtypes": {
            "f32": jnp.linspace(0, 1, 5, dtype=jnp.float32),
            "f64": jnp.asarray([np.pi, np.inf, np.nan]),
            "bf16": jnp.arange(6, dtype=jnp.bfloat16).reshape(2, 3) / 7,
            "fp8": jnp.ones((3,), jnp.float8_e4m3fn),
            "bool": jnp.asarray([True, False]),
            "complex": jnp.asarray(1 + 2j),
            "numpy": np.arange(4, dtype=np.int16),
            "numpy scalar": np.float32(0.1),
            "empty": jnp.zeros((0, 3)),
            "fortran": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        },
        "keys": (jax.random.key(7), jax.random.split(jax.random.key(8, impl="rbg"), (2, 3))),
        "python": [1, True, 0.1, float("inf"), -1e-300, 2 + 1j, "text", None, 10**30],
        "one array": jnp.ones(2),
        "nothing": {},
    }


def assert_same(actual, expected):
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        assert type(a) is type(b)
        if isinstance(b, jax.Array) and jnp.issubdtype(b.dtype, jax.dtypes.prng_key):
            assert jax.random.key_impl(a) == jax.random.key_impl(b)
            a, b = jax.random.key_data(a), jax.random.key_data(b)
        if hasattr(b, "dtype"):
            assert (a.shape, a.dtype) == (b.shape, b.dtype)
            assert np.asarray(a).tobytes() == np.asarray(b).tobytes()
        else:
            assert a == b


@pytest.mark.parametrize("name", trees())
def test_what_is_saved_comes_back_bit_for_bit(name, tmp_path):
    tree = trees()[name]
    blank = jax.tree.map(lambda a: jnp.zeros_like(a) if isinstance(a, jax.Array) and not _store._is_key(a) else a, tree)
    meta = {"note": "a", "loss": float("nan"), "list": np.arange(2), "nested": {"n": np.int64(3)}}
    _store.save(tmp_path / "new" / "a.npz", tree, kind="test", meta=meta)
    loaded, got = _store.load(tmp_path / "new" / "a.npz", blank, kind="test")
    assert_same(loaded, tree)
    assert np.isnan(got.pop("loss"))
    assert got == {"note": "a", "list": [0, 1], "nested": {"n": 3}}
    assert _store.read_meta(tmp_path / "new" / "a.npz", kind="test")["nested"] == {"n": 3}
    assert os.listdir(tmp_path / "new") == ["a.npz"]


def test_shapes_alone_suffice_to_load(tmp_path):
    tree = {"key": jax.random.key(3), "array": jnp.arange(3.0, dtype=jnp.bfloat16)}
    _store.save(tmp_path / "a", tree, kind="test")
    assert_same(_store.load(tmp_path / "a", jax.eval_shape(lambda: tree), kind="test")[0], tree)


def test_weak_types_survive(tmp_path):
    tree = jnp.asarray(0.5)
    assert tree.weak_type
    _store.save(tmp_path / "a", tree, kind="test")
    assert _store.load(tmp_path / "a", tree, kind="test")[0].weak_type
    assert not _store.load(tmp_path / "a", jnp.zeros(()), kind="test")[0].weak_type


def test_permissions_follow_the_umask_and_links_stay_links(tmp_path):
    (tmp_path / "real.npz").touch()
    (tmp_path / "link.npz").symlink_to(tmp_path / "real.npz")
    _store.save(tmp_path / "link.npz", 1, kind="test")
    assert (tmp_path / "link.npz").is_symlink()
    assert _store.load(tmp_path / "real.npz", 0, kind="test")[0] == 1
    mask = os.umask(0)
    os.umask(mask)
    assert (tmp_path / "real.npz").stat().st_mode & 0o777 == 0o666 & ~mask


@pytest.mark.slow
def test_static_text_is_the_same_in_another_process(tmp_path):
    program = (
        "import equinox as eqx, jax, sys\n"
        "from pinv_jax import _store\n"
        "from pinv_jax.maps._base import store\n"
        "mlp = eqx.nn.MLP(2, 2, 3, 1, activation=jax.nn.silu, key=jax.random.key(int(sys.argv[2])))\n"
        "model = [mlp, store(mlp), store(lambda x: x)]\n"
        "_store.save(sys.argv[1], model, kind='test') if sys.argv[2] == '0' else "
        "print(_store.load(sys.argv[1], model, kind='test')[0][0].layers[0].weight.sum())\n"
    )
    for seed in "01":
        run = [sys.executable, "-c", program, str(tmp_path / "a.npz"), seed]
        out = subprocess.run(run, capture_output=True, text=True, env={**os.environ, "JAX_PLATFORMS": "cpu"})
        assert out.returncode == 0, out.stderr
    weight = eqx.nn.MLP(2, 2, 3, 1, dtype=jnp.float32, key=jax.random.key(0)).layers[0].weight
    assert float(out.stdout) == pytest.approx(float(weight.sum()), rel=1e-5)


def mlp(width=4, depth=1, activation=jnp.tanh, dtype=jnp.float32, *, use_bias=True):
    return eqx.nn.MLP(3, 2, width, depth, activation=activation, dtype=dtype, use_bias=use_bias, key=jax.random.key(0))


MISFITS = {
    "shape": (mlp(), mlp(width=5), r"\.layers\[0\]\.weight: file has float32\[4, 3\], expected float32\[5, 3\]"),
    "dtype": (mlp(), mlp(dtype=jnp.float64), r"\.layers\[1\]\.bias: file has float32\[2\], expected float64\[2\]"),
    "missing": (mlp(), mlp(depth=2), r"\.layers\[2\]\.weight: not in the file"),
    "surplus": (mlp(), mlp(use_bias=False), r"\.layers\[0\]\.bias: in the file, not expected"),
    "function leaf": (mlp(), mlp(activation=jax.nn.relu), r"\.activation: file has tanh, expected relu"),
    "function in stored": (store(jnp.tanh), store(jnp.exp), r"\.rest: file has \(\(tanh.*expected \(\(exp"),
    "stored structure": (store(mlp()), store(mlp(use_bias=False)), r"\.rest: file has"),
    "static field": (Scaled(jnp.ones(2), 3), Scaled(jnp.ones(2), 4), r"\.size: file has 3, expected 4"),
    "class": (Scaled(jnp.ones(2), 3), {"scale": jnp.ones(2)}, r"\.scale: in the file, not expected"),
    "python type": ([1], [1.0], r"\[0\]: file has int, expected float"),
    "scalar or array": ([1.0], [jnp.ones(())], r"\[0\]: file has float, expected float64\[\]"),
    "key or array": ([jax.random.key(0)], [jnp.ones(2)], r"\[0\]: file has key<fry>\[\], expected float64\[2\]"),
    "key type": (
        [jax.random.key(0)],
        [jax.random.key(0, impl="rbg")],
        r"\[0\]: file has key<fry>\[\], expected key<rbg>",
    ),
}


@pytest.mark.parametrize("name", MISFITS)
def test_another_structure_is_named_leaf_by_leaf(name, tmp_path):
    saved, like, message = MISFITS[name]
    _store.save(tmp_path / "a.npz", saved, kind="test")
    before = (tmp_path / "a.npz").read_bytes()
    with pytest.raises(ValueError, match=message):
        _store.load(tmp_path / "a.npz", like, kind="test")
    assert (tmp_path / "a.npz").read_bytes() == before


def test_wrong_kind_version_and_absent_files(tmp_path):
    path = tmp_path / "a.npz"
    _store.save(path, [1.0], kind="model")
    with pytest.raises(ValueError, match="holds a 'model'; expected a 'checkpoint'"):
        _store.load(path, [1.0], kind="checkpoint")
    with pytest.raises(ValueError, match="holds a 'model'; expected a 'checkpoint'"):
        _store.read_meta(path, kind="checkpoint")
    header = json.loads(np.load(path)["header"].tobytes())
    header["version"] = 99
    np.savez(path, header=np.frombuffer(json.dumps(header).encode(), np.uint8))
    with pytest.raises(ValueError, match="version 99; expected 'pinv_jax' version 1"):
        _store.load(path, [1.0], kind="model")
    with pytest.raises(FileNotFoundError):
        _store.load(tmp_path / "absent", [1.0], kind="model")


def test_foreign_files(tmp_path):
    path = tmp_path / "a.npz"
    np.save(tmp_path / "array.npy", np.ones(3))
    np.savez(tmp_path / "other.npz", weights=np.ones(3))
    np.savez(tmp_path / "objects.npz", header=np.array([{"format": "pinv_jax"}], dtype=object))
    np.savez(tmp_path / "list.npz", header=np.frombuffer(b"[1, 2]", np.uint8))
    (tmp_path / "empty").touch()
    (tmp_path / "text").write_text("hello")
    (tmp_path / "pickle").write_bytes(b"\x80\x04K\x01.")
    for file in sorted(tmp_path.iterdir()):
        before = file.read_bytes()
        with pytest.raises(ValueError, match=f"{file.name} is not a file that pinv_jax wrote"):
            _store.load(file, [1.0], kind="test")
        assert file.read_bytes() == before
    assert not path.exists()


def test_every_truncation_and_every_flipped_byte_is_an_error_or_harmless(tmp_path):
    tree = {"a": jnp.arange(20.0), "b": (jax.random.key(0), 3)}
    path, broken = tmp_path / "a.npz", tmp_path / "b.npz"
    _store.save(path, tree, kind="test")
    whole = path.read_bytes()
    for end in range(0, len(whole), 23):
        broken.write_bytes(whole[:end])
        with pytest.raises(ValueError, match="b.npz"):
            _store.load(broken, tree, kind="test")
    detected = 0
    positions = range(0, len(whole), 3)
    for at in positions:
        broken.write_bytes(whole[:at] + bytes([whole[at] ^ 0xA5]) + whole[at + 1 :])
        try:
            loaded, _ = _store.load(broken, tree, kind="test")
        except ValueError:
            detected += 1
        else:  # dates and attributes in the archive's directory are nobody's data
            assert_same(loaded, tree)
    assert detected > 0.7 * len(positions)


class Interrupted(BaseException):
    pass


@pytest.mark.parametrize("error", [OSError("disk full"), Interrupted()], ids=["disk full", "interrupt"])
def test_a_failed_write_leaves_the_old_file_and_no_other(error, tmp_path, monkeypatch):
    path = tmp_path / "a.npz"
    _store.save(path, [1.0], kind="test")

    def fail(*args, **kwargs):
        raise error

    for target, name in [(os, "replace"), (os, "fsync"), (np.lib.format, "write_array")]:
        with monkeypatch.context() as patch:
            patch.setattr(target, name, fail)
            with pytest.raises(type(error)):
                _store.save(path, [2.0], kind="test")
        assert os.listdir(tmp_path) == ["a.npz"]
        assert _store.load(path, [0.0], kind="test")[0] == [1.0]


def test_a_writer_that_is_killed_leaves_the_old_file(tmp_path):
    path = tmp_path / "a.npz"
    _store.save(path, [1.0], kind="test")
    program = (
        "import os, signal, sys, numpy as np\n"
        "from pinv_jax import _store\n"
        "os.replace = lambda *a: os.kill(os.getpid(), signal.SIGKILL)\n"
        "_store.save(sys.argv[1], [2.0], kind='test')\n"
    )
    run = subprocess.run([sys.executable, "-c", program, str(path)], env={**os.environ, "JAX_PLATFORMS": "cpu"})
    assert run.returncode == -9
    assert _store.load(path, [0.0], kind="test")[0] == [1.0]


def test_what_cannot_be_stored_is_refused_before_writing(tmp_path):
    path = tmp_path / "a.npz"
    with pytest.raises(ValueError, match=r"leaf \['a'\] has dtype object"):
        _store.save(path, {"a": np.array([{}], dtype=object)}, kind="test")
    with pytest.raises(TypeError, match="object cannot be written as JSON"):
        _store.save(path, 1, kind="test", meta={"a": object()})
    with pytest.raises(TypeError, match="object cannot be written as JSON"):
        _store.write_json(path, object())
    with pytest.raises(ValueError, match="a hold Python objects"):
        _store.write_npz(path, a=np.array([None]))
    assert os.listdir(tmp_path) == []


def test_json_and_npz(tmp_path):
    _store.write_json(
        tmp_path / "a.json",
        {"nan": float("nan"), "list": (1, np.inf, jnp.asarray([1.0, jnp.nan])), "b": np.bool_(True), "path": tmp_path},
    )
    text = (tmp_path / "a.json").read_text()
    assert json.loads(text) == {"nan": None, "list": [1, None, [1.0, None]], "b": True, "path": str(tmp_path)}
    _store.write_npz(tmp_path / "a.npz", file=jnp.arange(3), path=np.float32(1), handle=2.0)
    with np.load(tmp_path / "a.npz") as archive:
        assert archive["file"].tolist() == [0, 1, 2]
        assert archive["path"].dtype == np.float32
        assert archive["handle"] == 2.0


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_meter_rewrites_one_line_on_a_terminal():
    stream = Terminal()
    with Meter("solve", 4, stream, interval=0) as meter:
        meter.update(0, residual=123456.789)
        meter.update(2, residual=np.float32(0.5))
    text = stream.getvalue()
    assert text.count("\n") == 1
    assert text.endswith("\n")
    last = text.strip("\n").split("\r")[-1]
    assert "[##########..........]  solve 2/4" in last
    assert "residual 0.5" in last
    assert "left" in last
    widths = [len(part) for part in text.strip("\n").split("\r")[1:]]
    assert widths == sorted(widths)  # nothing of a longer line shows behind a shorter one


def test_meter_writes_few_lines_elsewhere_and_none_when_silent():
    stream = io.StringIO()
    meter = Meter("fit", 1000, stream, interval=3600)
    for done in range(1001):
        meter.update(done, loss=1.0)
    meter.close()
    meter.close()
    lines = stream.getvalue().splitlines()
    assert len(lines) == 2
    assert lines[0].startswith("fit 0/1000")
    assert lines[1].startswith("fit 1000/1000")
    silent = Meter("fit", 10, None)
    silent.update(5)
    silent.close()


def test_fit_progress_shows_every_stage():
    stream = io.StringIO()
    progress = fit_progress(stream, interval=3600)
    for stage, total in [("surrogate", 2), ("inverse", 3)]:
        for done in range(1, total + 1):
            progress(stage, done, total, 1.0 / done)
    lines = stream.getvalue().splitlines()
    assert [line.split("  ")[0] for line in lines] == ["surrogate 1/2", "surrogate 2/2", "inverse 1/3", "inverse 3/3"]


def test_solve_progress_shows_lanes_and_follows_a_stream_without_an_end():
    stream = io.StringIO()
    progress = solve_progress("fits", stream, interval=0)
    progress(3, 4, 10)
    progress(10, 0, 10)
    assert "fits 3/10" in stream.getvalue()
    assert "live 4" in stream.getvalue()
    assert "fits 10/10" in stream.getvalue().splitlines()[-1]
    progress = solve_progress("stream", stream, interval=0)
    progress(1, 2, None)
    progress(5, 3, None)
    assert "stream 5/8" in stream.getvalue().splitlines()[-1]
