"""Arrays of a .pth file of PyTorch, zip or legacy (before 1.6); nothing in it is called.

Only what BUILDERS names is built. A value of any other class, such as the argparse.Namespace that
a training script saves beside its weights, becomes an `Opaque`.

The unpickler is the one that Python has in Python: the one in C makes room for whatever number a
file gives its memo, and hashes every key, which takes 2**n steps for a tuple nested n deep.
"""

import io
import math
import pickle
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes  # for NumPy to know bfloat16
import numpy as np

from deeplab_jax.weights.files import Refused

MAGIC, VERSION = 0x1950A86A20F9469CFC6C, 1001
MAX_PICKLE = 4 * 2**20
"""Bytes; a ResNet-101 takes 300 kB. An operation of one byte takes a hundred bytes of memory."""

WRAPPERS = ("state_dict", "model", "model_state_dict", "model_state", "net", "network")
"""Keys under which training scripts keep the weights beside other things."""
MAX_WRAPPERS = 8

DTYPES = {"Float": "<f4", "Double": "<f8", "Half": "<f2", "BFloat16": ml_dtypes.bfloat16}
DTYPES |= {"Long": "<i8", "Int": "<i4", "Short": "<i2", "Char": "i1", "Byte": "u1", "Bool": "?"}
"""Of PyTorch's storages, without `Storage` at their end."""


class Storage(NamedTuple):
    """A run of `size` numbers elsewhere in the file."""

    dtype: np.dtype
    key: str
    size: int


class Tensor(NamedTuple):
    """A view of a storage; offset and strides count numbers."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class Opaque:
    """A class that is not read, or a value of it: what is called on it, or put into it, is lost."""

    __slots__ = ("name",)

    def __init__(self, name: str):
        self.name = name

    def __call__(self, *_) -> "Opaque":
        return self

    def __setitem__(self, *_) -> None: ...

    append = extend = __call__


class Named(dict):
    """A dictionary of what is named by text or numbers; entries of other keys are left out."""

    def __init__(self, pairs: Any = ()):
        for key, value in pairs:
            self[key] = value

    def __setitem__(self, key: Any, value: Any) -> None:
        if type(key) in (str, int):
            super().__setitem__(key, value)


def _require(condition: bool) -> None:
    if not condition:
        raise ValueError


def _is_size(number: Any) -> bool:
    return type(number) is int and 0 <= number < 2**48


def _tensor(storage: Any, offset: Any, shape: Any, strides: Any, *_) -> Tensor | Opaque:
    if type(storage) is Opaque:
        return storage
    _require(type(storage) is Storage and len(shape) == len(strides) <= 8)
    _require(all(map(_is_size, (offset, *shape, *strides))))
    return Tensor(storage, offset, tuple(shape), tuple(strides))


BUILDERS: dict[str, Any] = {
    "collections.OrderedDict": Named,
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_parameter": lambda tensor, *_: tensor,
    **{f"torch.{name}Storage": np.dtype(kind) for name, kind in DTYPES.items()},
}


class _Unpickler(pickle._Unpickler):
    stack: list[Any]
    pop_mark: Callable[[], list[Any]]

    def __init__(self, file: io.BytesIO):
        super().__init__(file)
        self.storages: dict[str, Storage] = {}

    def find_class(self, module: str, name: str) -> Any:
        return BUILDERS.get(f"{module}.{name}") or Opaque(f"{module}.{name}"[:80])

    def persistent_load(self, pid: Any) -> Storage | Opaque:
        kind, dtype, *rest = pid
        if type(dtype) is Opaque:  # of a network that was saved whole, or numbers of other kinds
            return dtype
        key, _, size, *view = rest
        _require(kind == "storage" and isinstance(dtype, np.dtype) and type(key) is str)
        _require(_is_size(size) and view in ([], [None]))
        storage = Storage(dtype, key, size)
        _require(self.storages.setdefault(key, storage) == storage)
        return storage

    def push_named(self) -> None:
        items = self.pop_mark()
        self.stack.append(Named(zip(items[::2], items[1::2], strict=True)))

    def drop(self, number: int = 1) -> None:
        del self.stack[-number:]

    usual = pickle._Unpickler.dispatch
    dispatch = usual | {
        pickle.EMPTY_DICT[0]: lambda self: self.stack.append(Named()),
        pickle.DICT[0]: push_named,
        pickle.EMPTY_SET[0]: usual[pickle.EMPTY_LIST[0]],  # a list hashes nothing
        pickle.ADDITEMS[0]: usual[pickle.APPENDS[0]],
        pickle.FROZENSET[0]: usual[pickle.LIST[0]],
        pickle.NEWOBJ[0]: drop,  # the arguments; the class stays and stands for its object
        pickle.NEWOBJ_EX[0]: lambda self: self.drop(2),
        pickle.BUILD[0]: drop,  # attributes, which could change a builder
    }
    for code in (pickle.EXT1, pickle.EXT2, pickle.EXT4, pickle.BYTEARRAY8):
        del dispatch[code[0]]  # the process's own classes, and as much memory as a number says


def read(path: Path) -> dict[str, np.ndarray]:
    """Arrays by name. Refused where torch.save did not write the file, part of it is missing, or it
    holds more than tensors; an exception of formats.BROKEN where it is damaged."""
    with open(path, "rb") as file:
        is_zip = file.read(2) == b"PK"
    checkpoint, bytes_of = (_open_zip if is_zip else _open_legacy)(path)
    tensors = _tensors(checkpoint)
    parts = {tensor.storage: bytes_of(tensor.storage) for tensor in tensors.values()}
    arrays = {name: _view(name, t, parts[t.storage]) for name, t in tensors.items()}
    if sum(array.nbytes for array in arrays.values()) > 2 * path.stat().st_size:
        raise Refused("its tensors are larger than the file")
    return arrays


def _tensors(checkpoint: Any) -> dict[str, Tensor]:
    """The weights of a checkpoint, which may keep them beside an epoch or an optimiser."""
    for _ in range(MAX_WRAPPERS):
        found = [checkpoint.get(k) for k in WRAPPERS] if isinstance(checkpoint, Named) else []
        checkpoint = next((inner for inner in found if isinstance(inner, Named)), checkpoint)
    advice = "save the state_dict of the network alone"
    if isinstance(checkpoint, Opaque):
        raise Refused(f"an object of {checkpoint.name} in it would ask to run code; {advice}")
    if not isinstance(checkpoint, Named) or not checkpoint:
        raise Refused(f"it holds no dictionary of tensors; {advice}")
    for name, value in checkpoint.items():
        if not isinstance(value, Tensor):
            kind = f" but asks to run {value.name}" if isinstance(value, Opaque) else ""
            raise Refused(f"{str(name)[:80]} is no tensor{kind}; {advice}")
    return {str(name): tensor for name, tensor in checkpoint.items()}


def _view(name: str, tensor: Tensor, part: bytes | memoryview) -> np.ndarray:
    storage, offset, shape, strides = tensor
    size, itemsize = math.prod(shape), storage.dtype.itemsize
    if len(part) != storage.size * itemsize:
        raise Refused(f"storage {storage.key[:80]} of {storage.size} numbers has {len(part)} bytes")
    last = sum((n - 1) * stride for n, stride in zip(shape, strides, strict=True))
    # As many numbers as the view spans is what a contiguous or transposed tensor has at most;
    # more would be an expanded one, tiny in the file and huge when copied.
    if size and (offset + last >= storage.size or size > last + 1):
        raise Refused(f"{name[:80]} lies outside of its storage")
    if not size:
        return np.zeros(shape, storage.dtype)
    steps = [stride * itemsize for stride in strides]
    return np.ndarray(shape, storage.dtype, part, offset * itemsize, steps)


def _open_zip(path: Path) -> tuple[Any, Callable[[Storage], bytes | memoryview]]:
    """The checkpoint, and what gives the bytes of a storage."""
    archive = zipfile.ZipFile(path)
    entries = {entry.filename: entry for entry in archive.infolist()}
    pickles = [name for name in entries if name.split("/")[-1] == "data.pkl"]
    if len(pickles) != 1:
        raise Refused("it is a zip file with no data.pkl in it, so torch.save did not write it")
    if entries[pickles[0]].file_size > MAX_PICKLE:
        raise Refused(f"its pickle has more than {MAX_PICKLE} bytes")

    def bytes_of(name: str) -> bytes:
        if name not in entries:
            raise Refused(f"it lacks {name[:80]}; is the file whole?")
        if entries[name].compress_type != zipfile.ZIP_STORED:
            raise Refused(f"{name[:80]} is compressed, which torch.save never does")
        return archive.read(name)  # which compares checksums

    folder = pickles[0].removesuffix("data.pkl")
    checkpoint = _Unpickler(io.BytesIO(bytes_of(pickles[0]))).load()
    return checkpoint, lambda storage: bytes_of(f"{folder}data/{storage.key}")


def _open_legacy(path: Path) -> tuple[Any, Callable[[Storage], bytes | memoryview]]:
    """Five pickles (magic, version, machine, object, keys), then each storage behind its size."""
    data = memoryview(path.read_bytes())
    file = io.BytesIO(data[:MAX_PICKLE])
    if _Unpickler(file).load() != MAGIC or _Unpickler(file).load() != VERSION:
        raise Refused("it does not start with the magic number of torch.save")
    if _Unpickler(file).load().get("little_endian") is not True:
        raise Refused("its numbers are big-endian")
    unpickler = _Unpickler(file)
    checkpoint, keys, parts = unpickler.load(), _Unpickler(file).load(), {}
    position = file.tell()
    for key in keys:
        (size,) = struct.unpack_from("<q", data, position)
        start = position + 8
        position = start + size * unpickler.storages[key].dtype.itemsize
        if not start <= position <= len(data):
            raise Refused("it ends within its numbers; download it again")
        parts[key] = data[start:position]
    return checkpoint, lambda storage: parts[storage.key]
