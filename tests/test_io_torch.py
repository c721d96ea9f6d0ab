import io
import pickle
import zipfile
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from pinv_jax.io import load_torch

DATA = Path(__file__).parent / "data"
# Written by PyTorch 2.13: {"epoch": 3, "note": "text", "none": None, "betas": (0.9, 0.999), "state": tensors of every
# dtype and layout, "model": nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3)).state_dict(), "optimizer": Adam's
# state_dict(), "list": [torch.ones(2), {"x": torch.zeros(1)}]}.
STATE = DATA / "torch_state.pt"


# Pickles by hand: fragments of opcodes ------------------------------------------------------------------------------


def value(obj):
    return pickle.dumps(obj, 2)[2:-1]  # without the header and the stop


def ask(module, name):
    return b"c" + f"{module}\n{name}\n".encode()


def tuple_of(*parts):
    return b"(" + b"".join(parts) + b"t"


ORDERED_DICT = ask("collections", "OrderedDict") + b")R"
REBUILD = ask("torch._utils", "_rebuild_tensor_v2")


def storage(name="0", kind="Float", size=6):
    return tuple_of(value("storage"), ask("torch", f"{kind}Storage"), value(name), value("cpu"), value(size)) + b"Q"


def tensor(stored=None, offset=0, shape=(2, 3), strides=(3, 1), **options):
    parts = [storage(**options) if stored is None else stored, value(offset), value(shape), value(strides)]
    return REBUILD + tuple_of(*parts, value(False), ORDERED_DICT) + b"R"  # noqa: FBT003 - the value that is pickled


def program(**items):
    return b"\x80\x02}" + b"".join(value(name) + part + b"s" for name, part in items.items()) + b"."


def write(path, pickled, storages=None, *, folder="archive", compression=zipfile.ZIP_STORED, **extra):
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr(f"{folder}/data.pkl", pickled)
        for name, raw in {"0": np.arange(6, dtype="<f4").tobytes(), **(storages or {})}.items():
            archive.writestr(f"{folder}/data/{name}", raw)
        for name, raw in extra.items():
            archive.writestr(f"{folder}/{name}", raw)
    return path


def refused(path, match):
    with pytest.raises(ValueError, match=match) as caught:
        load_torch(path)
    assert str(path) in str(caught.value)


# What is read -------------------------------------------------------------------------------------------------------


def test_every_dtype_and_layout():
    got = load_torch(STATE)
    small = [[0.5, -1.25], [3.0, 1e-3]]
    base = np.arange(24.0, dtype=np.float32).reshape(4, 6)
    expected = {
        "float64": np.asarray([1.5, -2.25]),
        "float32": np.asarray(small, np.float32),
        "float16": np.asarray(small, np.float16),
        "bfloat16": np.asarray(small, jnp.bfloat16),
        **{name: np.asarray([-3, 0, 100], name) for name in ("int64", "int32", "int16", "int8")},
        "uint8": np.asarray([0, 7, 255], np.uint8),
        "bool": np.asarray([True, False, True]),
        "transposed": base.T,
        "slice": base[1:4:2, 2:5],
        "base": base,
        "expanded": np.full((2, 3), 2, np.float32),
        "scalar": np.asarray(7.5, np.float32),
        "empty": np.zeros((0, 3), np.float32),
        "parameter": np.asarray([1, 2], np.float32),
        "frozen": np.asarray([3], np.float32),
    }
    for name, array in expected.items():
        found = got[f"state.{name}"]
        assert type(found) is np.ndarray
        assert (found.dtype, found.shape) == (array.dtype, array.shape), name
        assert np.array_equal(found, array), name
    assert np.array_equal(got["model.0.weight"], np.arange(6.0).reshape(3, 2))
    assert got["model.1.num_batches_tracked"] == 1
    assert got["optimizer.state.0.exp_avg"].shape == (3, 2)
    assert np.array_equal(got["list.0"], np.ones(2))
    assert np.array_equal(got["list.1.x"], np.zeros(1))
    assert not [name for name in got if name.split(".")[0] in ("epoch", "note", "none", "betas")]
    assert np.shares_memory(got["state.base"], got["state.transposed"])
    with pytest.raises(ValueError, match="read-only"):
        got["state.base"][0, 0] = 1


@pytest.mark.parametrize("order", ["little", "big"])
def test_both_byte_orders(order, tmp_path):
    mark = ">" if order == "big" else "<"
    numbers = np.asarray([1.5, -2, 3, 4, 5, 1e-3])
    bits = np.asarray(numbers, jnp.bfloat16).view(np.uint16)
    storages = {"0": numbers.astype(f"{mark}f4").tobytes(), "b": bits.astype(f"{mark}u2").tobytes()}
    pickled = program(a=tensor(), b=tensor(name="b", kind="BFloat16"))
    got = load_torch(write(tmp_path / "m.pth", pickled, storages, byteorder=order))
    assert np.array_equal(got["a"], numbers.astype(np.float32).reshape(2, 3))
    assert got["a"].dtype.isnative
    assert np.array_equal(got["b"], numbers.astype(jnp.bfloat16).reshape(2, 3))


def test_newer_pickles_and_compressed_entries(tmp_path):
    """Protocol 4 names globals in another way; archives that were packed again may be compressed."""

    def named(text):
        return b"\x8c" + bytes([len(text)]) + text.encode()

    newer = tensor().replace(REBUILD, named("torch._utils") + named("_rebuild_tensor_v2") + b"\x93")
    pickled = program(a=newer).replace(b"\x80\x02", b"\x80\x04")
    noise = np.random.default_rng(0).normal(size=6).astype("<f4")
    path = write(tmp_path / "m.pth", pickled, {"0": noise.tobytes()}, compression=zipfile.ZIP_DEFLATED)
    assert np.array_equal(load_torch(path)["a"].ravel(), noise)


def test_a_parameter_and_the_attributes_of_a_state_dict(tmp_path):
    parameter = ask("torch._utils", "_rebuild_parameter") + tuple_of(tensor(), value(1), ORDERED_DICT) + b"R"
    pickled = b"\x80\x02" + ORDERED_DICT + value("a") + parameter + b"s" + value({"_metadata": {"": 1}}) + b"b."
    assert np.array_equal(load_torch(write(tmp_path / "m.pth", pickled))["a"], np.arange(6.0).reshape(2, 3))


# What is refused ----------------------------------------------------------------------------------------------------


class Unpickled:
    """Leaves a trace in the file system should anybody unpickle it."""

    def __init__(self, trace):
        self.trace = trace

    def __reduce__(self):
        return (open, (str(self.trace), "w"))


@pytest.mark.parametrize("protocol", range(6))
def test_nothing_is_executed(protocol, tmp_path):
    for pickled in (
        pickle.dumps({"a": Unpickled(tmp_path / "trace")}, protocol),
        pickle.dumps({"a": 1.5}, protocol)[:-1]
        + b"cposix\nsystem\n(V touch "
        + str(tmp_path).encode()
        + b"/trace\ntR.",
    ):
        refused(write(tmp_path / "m.pth", pickled), "asks for")
        assert not (tmp_path / "trace").exists()


@pytest.mark.parametrize(
    ("part", "match"),
    {
        "os.system": (ask("os", "system") + tuple_of(value("true")) + b"R", "asks for 'os.system', expected dense"),
        "eval": (ask("builtins", "eval") + tuple_of(value("1")) + b"R", "asks for 'builtins.eval'"),
        "a class alone": (ask("torch.nn", "Linear"), "asks for 'torch.nn.Linear'.*Save tensors alone"),
        "an attribute": (value("torch") + value("_utils._rebuild_tensor_v2.__globals__") + b"\x93", "__globals__'"),
        "complex numbers": (tensor(kind="ComplexFloat"), "torch.ComplexFloatStorage"),
        "dict from pairs": (
            ask("collections", "OrderedDict") + tuple_of(value([("a", 1)])) + b"R",
            "calls collections",
        ),
        "new dict": (ask("collections", "OrderedDict") + b")\x81", "asks for NEWOBJ"),
        "old instance": (b"(ios\nsystem\n", "asks for INST"),
        "old object": (b"(" + ask("collections", "OrderedDict") + b"o", "asks for OBJ"),
        "extension": (b"\x82\x01", "asks for EXT1"),
        "text as persistent id": (b"P0\n", "asks for PERSID"),
        "state of a function": (REBUILD + value({"__code__": 1}) + b"b", "a _Global stands where a dict"),
        "a storage called": (ask("torch", "FloatStorage") + b")R", "calls torch.FloatStorage"),
        "a number called": (value(1) + b")R", "calls int"),
        "a storage alone": (storage(), "'a' is a storage"),
        "a function alone": (REBUILD, "'a' is a global"),
        "foreign persistent id": (value(("module", 1, 2, 3, 4)) + b"Q", "not a storage"),
        "function as storage": (storage().replace(b"ctorch\nFloatStorage\n", REBUILD), "_v2 is not a storage"),
        "key that is a tuple": (b"}" + value((1, 2)) + value(1) + b"s", "a tuple stands where a str or int"),
        "takes what is not there": (b"(\x85", "malformed|damaged"),
        "unknown memo": (b"h\x07", "damaged"),
        "negative bit": (tensor()[:-2] + value({"neg": True}) + b"tR", "metadata"),
    }.values(),
)
def test_pickles_that_are_refused(part, match, tmp_path):
    refused(write(tmp_path / "m.pth", program(a=part)), match)


@pytest.mark.parametrize(
    ("options", "match"),
    {
        "too long": ({"shape": (3, 3)}, r"shape \(3, 3\), strides \(3, 1\) and offset 0 does not fit .* 6 numbers"),
        "offset": ({"offset": 1}, "does not fit"),
        "stride": ({"strides": (4, 1)}, "does not fit"),
        "expanded": ({"shape": (100, 100), "strides": (0, 0)}, r"save tensor\.contiguous"),
        "huge": ({"shape": (2**40, 2**40), "strides": (0, 0)}, "does not fit"),
        "wraps around": ({"shape": (2, 3), "strides": (2**62, 1)}, "does not fit"),
        "beyond integers": ({"shape": (2**64,), "strides": (1,)}, "impossibly large"),
        "negative stride": ({"strides": (-3, 1), "offset": 3}, "negative"),
        "negative offset": ({"offset": -1}, "negative"),
        "negative shape": ({"shape": (-1, 3)}, "negative"),
        "axes": ({"strides": (1,)}, "2 axes and 1 strides"),
        "many axes": ({"shape": (1,) * 70, "strides": (1,) * 70}, "70 axes"),
        "text": ({"shape": ("2", 3)}, "a str stands where a int"),
        "no tuple": ({"shape": 6}, "a int stands where a tuple"),
        "missing storage": ({"name": "1"}, "storage '1' is missing"),
        "outside": ({"name": "../../archive/data/0"}, "is missing"),
        "storage too long": ({"size": 7}, "storage '0' has 24 bytes, but 7 numbers of float32 were announced"),
        "storage too short": ({"size": 5}, "has 24 bytes, but 5"),
        "storage of another type": ({"kind": "Double"}, "6 numbers of float64"),
        "truth": ({"kind": "Bool", "name": "flags", "size": 6}, "truth values other than 0 and 1"),
    }.values(),
)
def test_tensors_that_are_refused(options, match, tmp_path):
    refused(write(tmp_path / "m.pth", program(a=tensor(**options)), {"flags": b"\x00\x01\x02\x00\x01\x01"}), match)


def test_one_storage_has_one_dtype(tmp_path):
    pickled = program(a=tensor(), b=tensor(kind="Int"))
    refused(write(tmp_path / "m.pth", pickled), "storage '0' is read as float32 and as int32")


def test_no_file_takes_forever_or_all_memory(tmp_path):
    laughs = ()
    for _ in range(60):
        laughs = (laughs,) * 9
    refused(write(tmp_path / "a.pth", program(a=value(laughs))), "more than 1000000 items")
    refused(write(tmp_path / "b.pth", program(a=b"}" + value(laughs) + b"Ns")), "a tuple stands where")
    refused(write(tmp_path / "c.pth", program(a=value(laughs) + b"Q")), "a tuple stands where|not a storage")
    refused(write(tmp_path / "d.pth", program(a=tensor(shape=laughs, strides=laughs))), "a tuple stands where")
    itself = {}
    itself["d"] = itself
    refused(write(tmp_path / "e.pth", pickle.dumps(itself, 2)), "nested more than 64 deep")
    refused(write(tmp_path / "f.pth", program(**{"n" * 2000: tensor()})), "longer than 1000 letters")
    bomb = {"0": bytes(2**22)}
    path = write(tmp_path / "g.pth", program(a=tensor(size=2**20)), bomb, compression=zipfile.ZIP_DEFLATED)
    refused(path, "claim to expand to 4194")


def test_names_that_would_collide(tmp_path):
    pickled = b"\x80\x02}" + value("a.b") + tensor() + b"s" + value("a") + b"}" + value("b") + tensor() + b"ss."
    refused(write(tmp_path / "m.pth", pickled), "two tensors are named 'a.b'")


def test_other_formats(tmp_path):
    path = tmp_path / "m.pth"
    magic = 0x1950A86A20F9469CFC6C
    for protocol in (2, 4):
        path.write_bytes(pickle.dumps(magic, protocol) + pickle.dumps(1001, protocol) + STATE.read_bytes())
        refused(path, r"before 1\.6, a bare pickle.*torch\.save\(torch\.load")
    path.write_bytes(bytes(257) + b"ustar\x0000" + bytes(300))
    refused(path, r"tar archive.*torch\.save\(torch\.load")
    path.write_bytes(b"")
    refused(path, "not a zip archive")
    path.write_bytes(b"\x80\x02}.")
    refused(path, "not a zip archive")
    refused(write(path, program(), **{"constants.pkl": b""}), r"TorchScript.*torch\.jit\.load")
    refused(write(path, program(), byteorder=b"middle"), "byte order is b'middle'")
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("word/document.xml", "")
    refused(path, "holds 0 entries named <folder>/data.pkl")
    refused(write(path, b"\x80\x02" + tensor() + b"."), "holds a ndarray, expected names of tensors")
    with pytest.raises(FileNotFoundError):
        load_torch(tmp_path / "nothing.pth")


def test_damage_is_an_error_and_never_another(tmp_path):
    """Truncated anywhere, or any byte of the pickle changed: arrays or a `ValueError` that names the file."""
    path, whole = tmp_path / "m.pth", STATE.read_bytes()
    for size in np.linspace(0, len(whole) - 1, 40).astype(int):
        path.write_bytes(whole[:size])
        refused(path, "cannot be read as a PyTorch state file")
    with zipfile.ZipFile(io.BytesIO(whole)) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    (pickle_name,) = [name for name in entries if name.endswith("data.pkl")]
    rng, messages = np.random.default_rng(0), []
    for _ in range(150):
        changed = bytearray(entries[pickle_name])
        changed[rng.integers(len(changed))] = rng.integers(256)
        with zipfile.ZipFile(path, "w") as archive:
            for name, raw in entries.items():
                archive.writestr(name, bytes(changed) if name == pickle_name else raw)
        try:
            load_torch(path)
        except ValueError as error:
            messages.append(str(error))
    assert 20 < len(messages) < 130  # a changed letter of a name is no damage
    assert all(str(path) in message for message in messages)
