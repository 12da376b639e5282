"""Tensors of a .pth file of PyTorch, zip or legacy (before 1.6), as views of the mapped file."""

import io
import math
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from deeplab_jax.types import UserError
from deeplab_jax.weights import pickles
from deeplab_jax.weights.pickles import Opaque, Refused, Storage, Tensor

MAGIC = 0x1950A86A20F9469CFC6C
VERSION = 1001
MAX_DIRECTORY = 4 * 2**20
"""Bytes of a zip's directory; that of a ResNet-101 has 60,000."""

WRAPPERS = ("state_dict", "model", "model_state_dict", "model_state", "net", "network")
"""Keys under which training scripts keep the weights beside other things."""

Bytes = np.ndarray


def read(path: Path) -> dict[str, np.ndarray]:
    """Arrays by name.

    Raises:
      UserError: not a file that torch.save wrote, not all of it, or one with more than tensors.
    """
    data = np.memmap(path, np.uint8, "r")
    try:
        is_zip = bytes(data[:4]) == b"PK\x03\x04"
        checkpoint, storage_of = _open_zip(path, data) if is_zip else _open_legacy(data)
        tensors = _tensors(checkpoint)
        if sum(_bytes(tensor) for tensor in tensors.values()) > 2 * len(data):
            raise Refused("its tensors are larger than the file")
        storages = {
            storage: storage_of(storage) for storage in {t.storage for t in tensors.values()}
        }
        return {name: _view(name, t, storages[t.storage]) for name, t in tensors.items()}
    except (Refused, zipfile.BadZipFile, NotImplementedError, struct.error) as error:
        raise UserError(f"{path} cannot be read as a PyTorch checkpoint: {error}") from None


def _tensors(checkpoint: Any) -> dict[str, Tensor]:
    """The weights of a checkpoint, which may keep them beside an epoch or an optimiser."""
    for key in WRAPPERS:
        if isinstance(checkpoint, dict) and isinstance(checkpoint.get(key), dict):
            return _tensors(checkpoint[key])
    if isinstance(checkpoint, Opaque):
        raise Refused(
            f"it holds an object of {checkpoint}, which would ask to run code; save the state_dict "
            "of the network instead"
        )
    if not isinstance(checkpoint, dict) or not checkpoint:
        raise Refused("it holds no dictionary of tensors; save the state_dict of the network")
    for name, value in checkpoint.items():
        if not isinstance(value, Tensor):
            kind = f" but asks to run {value}" if isinstance(value, Opaque) else ""
            raise Refused(
                f"{str(name)[:80]} is no tensor{kind}; save the state_dict of the network alone"
            )
    return {str(name): tensor for name, tensor in checkpoint.items()}


def _dtype(storage: Storage) -> np.dtype:
    if storage.dtype == "bfloat16":
        return np.dtype(ml_dtypes.bfloat16)
    return np.dtype(storage.dtype).newbyteorder("<")


def _bytes(tensor: Tensor) -> int:
    return math.prod(tensor.shape) * _dtype(tensor.storage).itemsize


def _view(name: str, tensor: Tensor, values: np.ndarray) -> np.ndarray:
    size = math.prod(tensor.shape)
    last = sum((n - 1) * stride for n, stride in zip(tensor.shape, tensor.strides, strict=True))
    # As many elements as the view spans is what a contiguous or transposed tensor has at most;
    # more would be an expanded one, tiny in the file and huge when copied.
    if size and (tensor.offset + last >= values.size or size > last + 1):
        raise Refused(f"{name[:80]} lies outside of its storage")
    if not size:
        return np.zeros(tensor.shape, values.dtype)
    strides = [stride * values.itemsize for stride in tensor.strides]
    return np.lib.stride_tricks.as_strided(
        values[tensor.offset :], tensor.shape, strides, writeable=False
    )


def _as_array(storage: Storage, part: Bytes) -> np.ndarray:
    if len(part) != storage.size * _dtype(storage).itemsize:
        raise Refused(
            f"storage {storage.key[:20]} should have {storage.size} numbers and has {len(part)} "
            "bytes; is the file whole?"
        )
    return np.frombuffer(part, _dtype(storage))


def _open_zip(path: Path, data: Bytes) -> tuple[Any, Callable[[Storage], np.ndarray]]:
    _refuse_large_directory(data)
    with zipfile.ZipFile(path) as archive:
        entries = {entry.filename: entry for entry in archive.infolist()}
    pickled = [name for name in entries if name.endswith("/data.pkl") or name == "data.pkl"]
    if len(pickled) != 1:
        raise Refused("it is a zip file with no data.pkl in it, so torch.save did not write it")
    folder = pickled[0].removesuffix("data.pkl")
    part = _entry(data, entries[pickled[0]])
    if len(part) > pickles.MAX_BYTES:
        raise Refused(f"its pickle has more than {pickles.MAX_BYTES} bytes")

    def storage_of(storage: Storage) -> np.ndarray:
        name = f"{folder}data/{storage.key}"
        if name not in entries:
            raise Refused(f"it lacks {name[:80]}; is the file whole?")
        return _as_array(storage, _entry(data, entries[name]))

    return pickles.load(io.BytesIO(part.tobytes())), storage_of


def _refuse_large_directory(data: Bytes) -> None:
    """zipfile makes an object of each entry, many times as large as the entry."""
    tail = bytes(data[-(2**16 + 2**10) :])
    for signature, form, offset in [(b"PK\x05\x06", "<L", 12), (b"PK\x06\x06", "<Q", 40)]:
        found = tail.rfind(signature)
        if found < 0:
            continue
        (size,) = struct.unpack_from(form, tail, found + offset)
        if MAX_DIRECTORY < size != 2**32 - 1:
            raise Refused("its directory is too large")


def _entry(data: Bytes, entry: zipfile.ZipInfo) -> Bytes:
    """Bytes of a file in the zip; torch.save does not compress."""
    if entry.compress_type != zipfile.ZIP_STORED:
        raise Refused(f"{entry.filename[:80]} is compressed, which torch.save never does")
    header = bytes(data[entry.header_offset : entry.header_offset + 30])
    if len(header) < 30 or header[:4] != b"PK\x03\x04":
        raise Refused("its directory points outside its files; is the file whole?")
    start = entry.header_offset + 30 + sum(struct.unpack("<HH", header[26:]))
    part = data[start : start + entry.file_size]
    if len(part) != entry.file_size or zlib.crc32(part.data) != entry.CRC:
        raise Refused(f"{entry.filename[:80]} is damaged (wrong checksum); download it again")
    return part


def _open_legacy(data: Bytes) -> tuple[Any, Callable[[Storage], np.ndarray]]:
    """Five pickles (magic, version, machine, object, keys), then each storage behind its size."""
    file = io.BytesIO(data[: pickles.MAX_BYTES].tobytes())
    if pickles.load(file) != MAGIC or pickles.load(file) != VERSION:
        raise Refused("it does not start with the magic number of torch.save")
    machine = pickles.load(file)
    if not isinstance(machine, dict) or machine.get("little_endian") is not True:
        raise Refused("its numbers are big-endian")
    storages: dict[str, Storage] = {}
    checkpoint, keys = pickles.load(file, storages), pickles.load(file)
    if not isinstance(keys, list) or not all(type(key) is str for key in keys):
        raise Refused("its list of storages is damaged")
    parts = _parts(data, file.tell(), keys, storages)

    def storage_of(storage: Storage) -> np.ndarray:
        if storage.key not in parts:
            raise Refused(f"it lacks storage {storage.key[:20]}; is the file whole?")
        return _as_array(storage, parts[storage.key])

    return checkpoint, storage_of


def _parts(
    data: Bytes, position: int, keys: list[str], storages: dict[str, Storage]
) -> dict[str, Bytes]:
    parts = {}
    for key in keys:
        if key not in storages:
            raise Refused(f"storage {key[:20]} belongs to no tensor")
        (size,) = struct.unpack("<q", bytes(data[position : position + 8]))
        length = size * _dtype(storages[key]).itemsize
        if not 0 <= length <= len(data) - position - 8:
            raise Refused("it ends within its numbers; download it again")
        parts[key] = data[position + 8 : position + 8 + length]
        position += 8 + length
    return parts
