"""Layers of a .caffemodel, read from its protobuf wire format without Caffe or protobuf.

Layers of the current and of the older (V1) definition are read alike. Arrays are views of the
mapped file; nothing is copied and nothing grows faster than the file.
"""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from deeplab_jax.types import UserError

MAX_LAYERS = 10_000
MAX_FIELDS = 1_000_000
"""In one message; what lies deeper is counted on its own."""
MAX_AXES = 8

VARINT, EIGHT_BYTES, BYTES, FOUR_BYTES = 0, 1, 2, 5

# Numbers of fields in caffe.proto.
NET = {100: "layer", 2: "v1_layer"}
LAYER = {1: "name", 2: "type", 7: "blob", 106: "convolution", 121: "pooling"}
V1_LAYER = {4: "name", 5: "type", 6: "blob", 10: "convolution", 19: "pooling"}
V1_TYPES = {4: "Convolution", 14: "InnerProduct"}
BLOB = {1: "num", 2: "channels", 3: "height", 4: "width", 5: "data", 7: "shape", 8: "double_data"}
DIMENSIONS = 1
DILATION = 18
POOL_KERNEL_SIZE = 2

BLOB_NAMES = {
    "Convolution": ("weights", "biases"),
    "InnerProduct": ("weights", "biases"),
    "BatchNorm": ("mean", "var", "factor"),
    "Scale": ("gamma", "beta"),
}


class Damaged(ValueError):
    """The bytes are not those of a network."""


class Layer(NamedTuple):
    """A layer with what it has learned; `dilation`, and `pool_kernel_size` of a pool, are None
    where the file does not say them."""

    name: str
    kind: str
    blobs: tuple[np.ndarray, ...]
    dilation: int | None
    pool_kernel_size: int | None = None


def read(path: Path) -> list[Layer]:
    """All layers in their order, those without blobs too.

    Raises:
      UserError: not a network that Caffe wrote, or not all of it.
    """
    try:
        layers = [
            _layer(value, V1_LAYER if NET[number] == "v1_layer" else LAYER)
            for number, value in fields(np.memmap(path, np.uint8, "r").data)
            if number in NET and isinstance(value, memoryview)
        ]
    except (Damaged, UnicodeDecodeError) as error:
        raise UserError(
            f"{path} is no whole .caffemodel ({error}); download it again, or give another file"
        ) from None
    if not any(layer.blobs for layer in layers):
        raise UserError(
            f"{path} holds no weights: a .caffemodel was expected, and none of its "
            f"{len(layers)} layers has any"
        )
    return layers


def named_arrays(path: Path, layers: list[Layer]) -> dict[str, np.ndarray]:
    """Arrays by `layer/role`, such as conv1/weights or bn_conv1/mean.

    The statistics of BatchNorm are divided by the factor they are stored with.

    Raises:
      UserError: a name occurs twice, or a layer has other arrays than its type says.
    """
    arrays = {}
    for layer in layers:
        for name, array in _roles(path, layer).items():
            if name in arrays:
                raise UserError(f"{path} holds {name} twice; each layer is expected once")
            arrays[name] = array
    return arrays


def _roles(path: Path, layer: Layer) -> dict[str, np.ndarray]:
    roles = BLOB_NAMES.get(layer.kind, tuple(f"blob{i}" for i in range(len(layer.blobs))))
    if len(layer.blobs) > len(roles) or layer.kind == "BatchNorm" and len(layer.blobs) == 1:
        raise UserError(
            f"{path}: layer {layer.name} of type {layer.kind} has {len(layer.blobs)} arrays, and "
            f"{len(roles)} were expected ({', '.join(roles)})"
        )
    axes = {"weights": 4 if layer.kind == "Convolution" else 2}
    arrays = {
        role: _squeeze(blob, axes.get(role, 1))
        for role, blob in zip(roles, layer.blobs, strict=False)
    }
    if layer.kind == "BatchNorm":
        arrays = _divide_by_factor(arrays)
    return {f"{layer.name}/{role}": array for role, array in arrays.items()}


def _squeeze(blob: np.ndarray, axes: int) -> np.ndarray:
    """Without the leading axes of size 1 that older files have for vectors and matrices."""
    leading = blob.shape[:-axes]
    return blob.reshape(blob.shape[-axes:]) if math.prod(leading) == 1 else blob


def _divide_by_factor(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Mean and variance, float64 where the factor is not 1; a factor of 0 gives 0 (Caffe's way)."""
    factor = np.asarray(arrays.pop("factor", [1.0]), np.float64).reshape(-1)[:1]
    if factor == 1:
        return arrays
    inverse = np.divide(1.0, factor, out=np.zeros(1), where=factor != 0)
    return {role: array.astype(np.float64) * inverse for role, array in arrays.items()}


def fields(message: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """Number and value of each field: an int, or the bytes of what has a length.

    Raises:
      Damaged: the message ends within a field, or has a kind of field that nobody writes.
    """
    position = 0
    for _ in range(MAX_FIELDS):
        if position == len(message):
            return
        key, position = _varint(message, position)
        number, wire_type = key >> 3, key & 7
        if wire_type == VARINT:
            value, position = _varint(message, position)
            yield number, value
            continue
        if wire_type == BYTES:
            length, position = _varint(message, position)
        elif wire_type in (FOUR_BYTES, EIGHT_BYTES):
            length = 4 if wire_type == FOUR_BYTES else 8
        else:
            raise Damaged(f"byte {position} starts no field")
        if number == 0 or length > len(message) - position:
            raise Damaged(f"a field of {length} bytes ends after the file or the layer it is in")
        if wire_type == BYTES:
            yield number, message[position : position + length]
        position += length
    raise Damaged(f"it has more than {MAX_FIELDS} fields")


def _varint(message: memoryview, position: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if position >= len(message):
            raise Damaged("it ends within a number")
        byte = message[position]
        position += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, position
    raise Damaged("a number has more than 10 bytes")


def _layer(message: memoryview, numbers: dict[int, str]) -> Layer:
    name, kind, dilation, pool_kernel_size, blobs = "", "", None, None, []
    for number, value in fields(message):
        field = numbers.get(number)
        if field == "name":
            name = _text(value)
        elif field == "type":
            kind = V1_TYPES.get(value, str(value)) if isinstance(value, int) else _text(value)
        elif field == "blob" and isinstance(value, memoryview):
            blobs.append(_blob(value))
        elif field == "convolution" and isinstance(value, memoryview):
            dilation = next(_numbers(value, DILATION), dilation)
        elif field == "pooling" and isinstance(value, memoryview):
            pool_kernel_size = next(_numbers(value, POOL_KERNEL_SIZE), pool_kernel_size)
    return Layer(name, kind, tuple(blobs), dilation, pool_kernel_size)


def _text(value: int | memoryview) -> str:
    if isinstance(value, int) or len(value) > 1000:
        raise Damaged("a layer's name is no text")
    return str(bytes(value), "utf-8")


def _numbers(message: memoryview, wanted: int) -> Iterator[int]:
    """The integers of a repeated field, one by one or packed."""
    for number, value in fields(message):
        if number != wanted:
            continue
        if isinstance(value, int):
            yield value
        else:
            position = 0
            while position < len(value):
                item, position = _varint(value, position)
                yield item


def _blob(message: memoryview) -> np.ndarray:
    values = {BLOB[number]: value for number, value in fields(message) if number in BLOB}
    if "shape" in values:
        if isinstance(values["shape"], int):
            raise Damaged("an array's shape is no list")
        shape = tuple(_numbers(values["shape"], DIMENSIONS))
    else:
        shape = tuple(values.get(axis, 0) for axis in ("num", "channels", "height", "width"))
    role, dtype = ("data", "<f4") if "data" in values else ("double_data", "<f8")
    data = values.get(role, memoryview(b""))
    axes = tuple(n for n in shape if isinstance(n, int))
    sizes = len(axes) == len(shape) <= MAX_AXES
    if not sizes or isinstance(data, int) or math.prod(axes) * int(dtype[2]) != len(data):
        raise Damaged("an array has another size than its shape says")
    return np.frombuffer(data, dtype).reshape(axes)
