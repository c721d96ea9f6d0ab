"""PyTorch state files read without PyTorch, and without running what they contain: `load_torch`.

Such a file is a zip archive: a pickle of the names, shapes and strides, and one entry of raw numbers per storage. A
pickle is a program that may call anything. Here no unpickler runs it: the few instructions that build dicts and name
tensors are read one by one, and the first that asks for anything else ends in a `ValueError`.
"""

import dataclasses
import pickletools
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

_STORAGES = {
    "torch.DoubleStorage": np.dtype(np.float64),
    "torch.FloatStorage": np.dtype(np.float32),
    "torch.HalfStorage": np.dtype(np.float16),
    "torch.BFloat16Storage": np.dtype(jnp.bfloat16),
    "torch.LongStorage": np.dtype(np.int64),
    "torch.IntStorage": np.dtype(np.int32),
    "torch.ShortStorage": np.dtype(np.int16),
    "torch.CharStorage": np.dtype(np.int8),
    "torch.ByteStorage": np.dtype(np.uint8),
    "torch.BoolStorage": np.dtype(np.bool_),
}
_ORDERED_DICT = "collections.OrderedDict"
_TENSOR = "torch._utils._rebuild_tensor_v2"
_PARAMETER = "torch._utils._rebuild_parameter"
_ADMITTED = {*_STORAGES, _ORDERED_DICT, _TENSOR, _PARAMETER}

_LEGACY_MAGIC = (0x1950A86A20F9469CFC6C).to_bytes(10, "little")
_RESAVE = "With PyTorch 1.6 or later: torch.save(torch.load(path), new_path)."
_TENSORS_ONLY = "Save tensors alone: torch.save(model.state_dict(), path)."

# A file cannot make us allocate much more than its own size: torch.save does not compress, and zip bombs expand 1000x.
_MAX_EXPANSION = 20
_MAX_ITEMS, _MAX_DEPTH, _MAX_NAME = 1_000_000, 64, 1000


def load_torch(path: str | Path) -> dict[str, np.ndarray]:
    """Reads the tensors of a PyTorch state file, `.pth`, `.pt` or whatever its name, as NumPy arrays.

    PyTorch is not needed, and nothing in the file is executed.

    Args:
        path: a file that `torch.save` of PyTorch 1.6 or later wrote: a `state_dict`, or dicts and lists of any depth
            that hold tensors.

    Returns:
        Arrays by name, read-only, in the order of the file. Names of nested dicts and positions in lists are joined by
        dots: `{"model": {"a.weight": ...}, "epoch": 3}` gives `"model.a.weight"`. Numbers, strings and `None` are
        skipped. Tensors that share memory in the file share it here. bfloat16 is `jax.numpy.bfloat16`.

    Raises:
        ValueError: the file asks for anything but tensors of real numbers, which the message names; it is in the format
            of PyTorch before 1.6, a TorchScript archive or no PyTorch file; it is truncated or damaged; or a tensor
            reaches beyond its storage.
        FileNotFoundError: there is no such file.
    """
    with open(path, "rb") as handle:
        try:
            _check_format(handle.read(512))
            with zipfile.ZipFile(handle) as archive:
                return dict(_tensors(_read_archive(archive, handle.seek(0, 2))))
        except Exception as error:  # damaged archives raise a dozen different things
            text = str(error) if isinstance(error, ValueError) else f"damaged ({type(error).__name__}: {error})."
            raise ValueError(f"{path} cannot be read as a PyTorch state file: {text}") from error


def _check_format(head: bytes) -> None:
    if _LEGACY_MAGIC in head[:32]:
        raise ValueError(f"it is in the format of PyTorch before 1.6, a bare pickle. {_RESAVE}")
    if head[257:262] == b"ustar":
        raise ValueError(f"it is a tar archive, the format of PyTorch before 0.2. {_RESAVE}")
    if head[:2] != b"PK":
        raise ValueError("it is not a zip archive.")


def _read_archive(archive: zipfile.ZipFile, file_size: int) -> Any:
    """What the pickle of an archive describes, with its tensors as arrays."""
    entries = {info.filename: info for info in archive.infolist()}
    expanded = sum(info.file_size for info in entries.values())
    if expanded > _MAX_EXPANSION * file_size:
        raise ValueError(f"its {file_size} bytes claim to expand to {expanded}, and torch.save does not compress.")
    roots = [name.removesuffix("data.pkl") for name in entries if name.count("/") == 1 and name.endswith("/data.pkl")]
    if len(roots) != 1:
        raise ValueError(f"it holds {len(roots)} entries named <folder>/data.pkl, expected one.")
    root = roots[0]
    if f"{root}constants.pkl" in entries:
        raise ValueError("it is a TorchScript archive: torch.save(torch.jit.load(path).state_dict(), new_path).")
    order = archive.read(f"{root}byteorder") if f"{root}byteorder" in entries else b"little"
    if order not in (b"little", b"big"):
        raise ValueError(f"its byte order is {order[:20]!r}, expected 'little' or 'big'.")
    storages: dict[str, _Storage] = {}

    def storage(request: Any) -> _Storage:
        if len(_expect(request, tuple)) != 5 or _expect(request[0], str) != "storage":
            raise ValueError("its pickle is malformed: it asks for an object that is not a storage.")
        marker, name, size = _expect(request[1], _Global).name, _expect(request[2], str), _expect(request[4], int)
        if marker not in _STORAGES:
            raise ValueError(f"its pickle is malformed: {marker} is not a storage.")
        dtype = _STORAGES[marker]
        if name not in storages:
            info = entries.get(f"{root}data/{name}")
            if info is None:
                raise ValueError(f"storage {name!r} is missing from the archive.")
            if info.file_size != size * dtype.itemsize:
                raise ValueError(
                    f"storage {name!r} has {info.file_size} bytes, but {size} numbers of {dtype.name} were announced."
                )
            stored = np.dtype(f"u{dtype.itemsize}").newbyteorder(">" if order == b"big" else "<")
            raw = np.frombuffer(archive.read(info), stored).astype(stored.newbyteorder("="), copy=False)
            if dtype == np.bool_ and raw.size and raw.max() > 1:
                raise ValueError(f"storage {name!r} holds truth values other than 0 and 1.")
            raw.flags.writeable = False
            storages[name] = _Storage(raw, dtype)
        if storages[name].dtype != dtype:
            raise ValueError(f"storage {name!r} is read as {storages[name].dtype.name} and as {dtype.name}.")
        return storages[name]

    return _interpret(archive.read(f"{root}data.pkl"), storage)


@dataclasses.dataclass(frozen=True)
class _Global:
    """The name of a class or function that a pickle asks for; never the thing itself."""

    name: str


@dataclasses.dataclass(frozen=True)
class _Storage:
    """The numbers of one storage, as unsigned integers in native byte order, and what they mean."""

    raw: np.ndarray
    dtype: np.dtype


_CONSTANTS = {
    *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
    *("STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"),
    *("BINBYTES", "SHORT_BINBYTES", "BINBYTES8"),
}


def _interpret(program: bytes, storage: Callable[[Any], _Storage]) -> Any:
    """The value of a pickle made of dicts, lists, tuples, constants and tensors; anything else is a `ValueError`."""
    stack: list[Any] = []
    marks: list[int] = []
    memo: dict[int, Any] = {}

    def pop(count: int) -> list[Any]:
        if count > len(stack) - (marks[-1] if marks else 0):
            raise ValueError("its pickle is malformed: it takes what is not there.")
        taken = stack[len(stack) - count :]
        del stack[len(stack) - count :]
        return taken

    def pop_mark() -> list[Any]:
        taken = stack[marks[-1] :]
        del stack[marks.pop() :]
        return taken

    for opcode, argument, _ in pickletools.genops(program):
        arg: Any = argument
        match opcode.name:
            case "PROTO" | "FRAME":
                pass
            case "STOP":
                (value,) = pop(1)
                return value
            case name if name in _CONSTANTS:
                stack.append(arg)
            case "NONE":
                stack.append(None)
            case "NEWTRUE" | "NEWFALSE" as name:
                stack.append(name == "NEWTRUE")
            case "EMPTY_DICT":
                stack.append({})
            case "EMPTY_LIST":
                stack.append([])
            case "EMPTY_TUPLE":
                stack.append(())
            case "MARK":
                marks.append(len(stack))
            case "TUPLE":
                stack.append(tuple(pop_mark()))
            case "TUPLE1" | "TUPLE2" | "TUPLE3" as name:
                stack.append(tuple(pop(int(name[-1]))))
            case "APPEND" | "APPENDS" as name:
                values = pop(1) if name == "APPEND" else pop_mark()
                _expect(stack[-1], list).extend(values)
            case "SETITEM" | "SETITEMS" as name:
                pairs = pop(2) if name == "SETITEM" else pop_mark()
                # Keys are names or numbers: the hash of nested tuples can be made to take forever.
                keys = [_expect(key, str, int) for key in pairs[::2]]
                _expect(stack[-1], dict).update(zip(keys, pairs[1::2], strict=True))
            case "PUT" | "BINPUT" | "LONG_BINPUT":
                memo[arg] = stack[-1]
            case "MEMOIZE":
                memo[len(memo)] = stack[-1]
            case "GET" | "BINGET" | "LONG_BINGET":
                stack.append(memo[arg])
            case "GLOBAL":
                stack.append(_admitted(arg.replace(" ", ".", 1)))
            case "STACK_GLOBAL":
                stack.append(_admitted(".".join(_expect(part, str) for part in pop(2))))
            case "BINPERSID":
                stack.append(storage(*pop(1)))
            case "REDUCE":
                stack.append(_rebuild(*pop(2)))
            case "BUILD":  # the attributes of an OrderedDict, the `_metadata` of a state_dict: not needed
                pop(1)
                _expect(stack[-1], dict)
            case name:
                raise ValueError(f"its pickle asks for {name}, and tensors need no such instruction. {_TENSORS_ONLY}")
    raise ValueError("its pickle does not end.")


def _admitted(name: str) -> _Global:
    if name not in _ADMITTED:
        raise ValueError(
            f"it asks for {name[:200]!r}, expected dense tensors of real numbers; nothing was executed. {_TENSORS_ONLY}"
        )
    return _Global(name)


def _rebuild(function: Any, args: Any) -> Any:
    name = function.name if isinstance(function, _Global) else type(function).__name__
    given = len(_expect(args, tuple))
    if name == _ORDERED_DICT and given == 0:
        return {}
    if name == _PARAMETER and given == 3:
        return _expect(args[0], np.ndarray)
    if name == _TENSOR and given in (6, 7):
        return _tensor(*args)
    raise ValueError(f"it calls {name} in a way that torch.save does not write; nothing was executed.")


def _tensor(storage: Any, offset: Any, shape: Any, strides: Any, _grad: Any, _hooks: Any, metadata: Any = None) -> Any:
    """A view of a storage, once it is clear that all of it lies inside."""
    storage = _expect(storage, _Storage)
    offset, shape, strides = _expect(offset, int), _expect(shape, tuple), _expect(strides, tuple)
    if metadata is not None and _expect(metadata, dict):  # the negative and conjugate bits, which change the values
        raise ValueError("a tensor carries metadata, such as a negative bit: save tensor.resolve_neg() instead.")
    if len(shape) != len(strides) or len(shape) > _MAX_DEPTH:
        raise ValueError(f"a tensor has {len(shape)} axes and {len(strides)} strides.")
    if not all(0 <= _expect(number, int) < 2**63 for number in (offset, *shape, *strides)):
        raise ValueError("a tensor has a negative or impossibly large shape, stride or offset.")
    if 0 in shape:
        return np.empty(shape, storage.dtype)
    count, last = 1, offset
    for size, stride in zip(shape, strides, strict=True):
        count, last = count * size, last + (size - 1) * stride
    if last >= storage.raw.size or count > storage.raw.size:
        raise ValueError(
            f"a tensor of shape {shape}, strides {strides} and offset {offset} does not fit its storage of "
            f"{storage.raw.size} numbers. If it was expanded, save tensor.contiguous() instead."
        )
    width = storage.raw.itemsize
    steps = tuple(stride * width if size > 1 else 0 for size, stride in zip(shape, strides, strict=True))
    view = np.ndarray(shape, storage.raw.dtype, storage.raw, offset * width, steps)
    return view.view(storage.dtype)


def _tensors(value: Any) -> Iterator[tuple[str, np.ndarray]]:
    """Names and arrays of nested dicts, lists and tuples."""
    if not isinstance(value, dict):
        raise ValueError(f"it holds a {type(value).__name__}, expected names of tensors. {_TENSORS_ONLY}")
    seen: set[str] = set()
    count = 0
    stack = [("", iter(value.items()))]
    while stack:
        prefix, items = stack[-1]
        key, item = next(items, (None, None))
        if key is None:
            stack.pop()
            continue
        name, count = f"{prefix}{key}", count + 1
        # What refers to itself ends here too.
        if count > _MAX_ITEMS or len(stack) > _MAX_DEPTH or len(name) > _MAX_NAME:
            raise ValueError(
                f"it has more than {_MAX_ITEMS} items, is nested more than {_MAX_DEPTH} deep, or has a name longer "
                f"than {_MAX_NAME} letters."
            )
        if isinstance(item, dict | list | tuple):
            pairs = item.items() if isinstance(item, dict) else enumerate(item)
            stack.append((f"{name}.", iter(pairs)))
        elif isinstance(item, np.ndarray):
            if name in seen:
                raise ValueError(f"two tensors are named {name!r} once nested names are joined by dots.")
            seen.add(name)
            yield name, item
        elif isinstance(item, _Global | _Storage):
            raise ValueError(f"{name!r} is a {type(item).__name__[1:].lower()}, expected a tensor. {_TENSORS_ONLY}")


def _expect(value: Any, *kinds: type) -> Any:
    if not isinstance(value, kinds):
        wanted = " or ".join(kind.__name__.lstrip("_").lower() for kind in kinds)
        raise ValueError(f"its pickle is malformed: a {type(value).__name__} stands where a {wanted} is expected.")
    return value
