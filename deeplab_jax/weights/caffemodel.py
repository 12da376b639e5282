"""Layers of a .caffemodel, read without Caffe: the fields of caffe.proto that matter here.

Layers of the current and of the older (V1) definition are read alike. Reading takes twice the
file's size in memory; of a file of nothing but empty layers, thirty times.
"""

import math
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.message import DecodeError

from deeplab_jax.weights.files import Refused

MAX_LAYERS = 10_000
MAX_AXES = 8

MESSAGES = {
    "Net": "2 v1_layers V1Layer, 100 layers Layer",
    "Layer": "1 name bytes, 2 type bytes, 7 blobs Blob, 106 convolution Convolution, "
    "121 pooling Pooling",
    "V1Layer": "4 name bytes, 5 type int32, 6 blobs Blob, 10 convolution Convolution, "
    "19 pooling Pooling",
    "Convolution": "18 dilation int32",
    "Pooling": "2 kernel_size int32",
    "Blob": "1 num int32, 2 channels int32, 3 height int32, 4 width int32, 5 data bytes, "
    "7 shape Shape, 8 double_data bytes",
    "Shape": "1 dim int64",
}
"""Numbers, names and types of fields in caffe.proto. Packed numbers are encoded as bytes are."""
REPEATED = ("layers", "v1_layers", "blobs", "dilation", "dim")

V1_TYPES = {4: "Convolution", 14: "InnerProduct"}

BLOB_NAMES = {
    "Convolution": ("weights", "biases"),
    "InnerProduct": ("weights", "biases"),
    "BatchNorm": ("mean", "var", "factor"),
    "Scale": ("gamma", "beta"),
}


def _class_of_networks() -> Any:
    file = descriptor_pb2.FileDescriptorProto(name="caffe_fields.proto", package="caffe_fields")
    for message, fields in MESSAGES.items():
        described = file.message_type.add(name=message)
        for number, name, kind in map(str.split, fields.split(", ")):
            field = described.field.add(name=name, number=int(number))
            field.label = field.LABEL_REPEATED if name in REPEATED else field.LABEL_OPTIONAL
            if kind in MESSAGES:
                field.type, field.type_name = field.TYPE_MESSAGE, f".{file.package}.{kind}"
            else:
                field.type = getattr(field, f"TYPE_{kind.upper()}")
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{file.package}.Net"))


Net = _class_of_networks()


class Layer(NamedTuple):
    """Fields of a layer, which are 0 where the file does not say them."""

    dilation: int
    pool_kernel_size: int


def read(path: Path) -> tuple[dict[str, np.ndarray], dict[str, Layer]]:
    """Arrays by `layer/role`, such as conv1/weights or bn_conv1/mean, and the layers by name.

    The statistics of BatchNorm are divided by the factor they are stored with. Refused where there
    are no weights, one is there twice, or a layer has others than its type says; a DecodeError for
    what is no network that Caffe wrote, or not all of it.
    """
    net = Net.FromString(path.read_bytes())
    if len(net.layers) + len(net.v1_layers) > MAX_LAYERS:
        raise Refused(f"it has more than {MAX_LAYERS} layers")
    arrays, layers = {}, {}
    for encoded in (*net.layers, *net.v1_layers):
        name, dilations = _text(encoded.name), encoded.convolution.dilation
        layers[name] = Layer(next(iter(dilations), 0), encoded.pooling.kernel_size)
        for role, array in _arrays(name, encoded).items():
            if f"{name}/{role}" in arrays:
                raise Refused(f"it holds {name}/{role} twice; each layer is expected once")
            arrays[f"{name}/{role}"] = array
    if not arrays:
        raise Refused(f"none of its {len(layers)} layers holds weights")
    return arrays, layers


def _arrays(name: str, layer: Any) -> dict[str, np.ndarray]:
    """What a layer has learned, by role."""
    kind = layer.type
    kind = V1_TYPES.get(kind, str(kind)) if isinstance(kind, int) else _text(kind)
    blobs = [_blob(blob) for blob in layer.blobs]
    roles = BLOB_NAMES.get(kind, tuple(f"blob{i}" for i in range(len(blobs))))
    if len(blobs) > len(roles) or kind == "BatchNorm" and len(blobs) == 1:
        raise Refused(f"layer {name} of type {kind} has {len(blobs)} arrays, not {roles}")
    axes = {"weights": 4 if kind == "Convolution" else 2}
    pairs = zip(roles, blobs, strict=False)
    return _divide_by_factor({role: _squeeze(blob, axes.get(role, 1)) for role, blob in pairs})


def _text(name: bytes) -> str:
    if len(name) > 1000:
        raise DecodeError("a layer's name is no text")
    return name.decode("utf-8", "replace")


def _blob(blob: Any) -> np.ndarray:
    named = (blob.num, blob.channels, blob.height, blob.width)
    shape = tuple(blob.shape.dim) if blob.HasField("shape") else named
    dtype = "<f8" if blob.HasField("double_data") else "<f4"
    data = blob.double_data if dtype == "<f8" else blob.data  # each use is a copy
    sizes = len(shape) <= MAX_AXES and min(shape, default=0) >= 0
    if not sizes or math.prod(shape) * int(dtype[2]) != len(data):
        raise DecodeError("an array has another size than its shape says")
    return np.frombuffer(data, dtype).reshape(shape)


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
