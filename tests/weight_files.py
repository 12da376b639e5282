"""Weight files as Caffe and PyTorch write them, made without either: bytes from arrays."""

import struct
import zipfile
from pathlib import Path

import numpy as np

MAGIC = 0x1950A86A20F9469CFC6C
STORAGE_NAMES = {"float32": "FloatStorage", "float64": "DoubleStorage", "int64": "LongStorage"}


# .caffemodel


def varint(number: int) -> bytes:
    out = b""
    while number > 127:
        out += bytes([number & 127 | 128])
        number >>= 7
    return out + bytes([number])


def field(number: int, value: int | bytes) -> bytes:
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    return varint(number << 3 | 2) + varint(len(value)) + value


def blob(array: np.ndarray, *, legacy: bool) -> bytes:
    data = field(5, array.astype("<f4").tobytes())
    if not legacy:
        return field(7, field(1, b"".join(varint(n) for n in array.shape))) + data
    shape = (1,) * (4 - array.ndim) + array.shape
    return b"".join(field(i + 1, n) for i, n in enumerate(shape)) + data


def layer(name: str, kind: str, blobs=(), *, dilation: int | None = None) -> bytes:
    body = field(1, name.encode()) + field(2, kind.encode())
    body += b"".join(field(7, blob(array, legacy=False)) for array in blobs)
    if dilation:
        body += field(106, field(18, dilation))
    return field(100, body)


def v1_layer(name: str, kind: int, blobs=()) -> bytes:
    body = field(4, name.encode()) + field(5, kind)
    return field(2, body + b"".join(field(6, blob(array, legacy=True)) for array in blobs))


def kind_of(name: str) -> str:
    starts = {"bn": "BatchNorm", "scale": "Scale"}
    return next((kind for start, kind in starts.items() if name.startswith(start)), "Convolution")


def caffe_head(head: list) -> dict[str, tuple]:
    return {f"fc1_voc12_c{i}": blobs for i, blobs in enumerate(head)}


def at_scale(name: str, scale: str) -> str:
    """The suffix of a smaller scale, which heads have in the middle."""
    return name.replace("voc12", f"voc12{scale}") if "voc12" in name else name + scale


def write_msc_caffemodel(path: Path, layers: dict[str, list], rates: tuple[int, ...]) -> Path:
    """Every layer three times, as the multi-scale training net is saved; `rates` of the head."""
    parts = [field(1, b"net"), layer("data", "ImageSegData")]
    for scale in ("", "_res075", "_res05"):
        for name, blobs in layers.items():
            rate = rates[int(name[-1])] if name.startswith("fc1_voc12_c") else 1
            dilation = rate if kind_of(name) == "Convolution" else None
            full = at_scale(name, scale)
            parts.append(layer(full, kind_of(name), blobs, dilation=dilation))
    path.write_bytes(b"".join(parts))
    return path


# .pth


def text(value: str) -> bytes:
    data = value.encode()
    return b"X" + struct.pack("<I", len(data)) + data


def number(value: int) -> bytes:
    return b"J" + struct.pack("<i", value)


def numbers(values) -> bytes:
    return b"(" + b"".join(number(value) for value in values) + b"t"


def tensor(key: str, array: np.ndarray, *, legacy: bool) -> bytes:
    """What pickling a tensor gives: a call of torch._utils._rebuild_tensor_v2."""
    storage = b"ctorch\n" + STORAGE_NAMES[array.dtype.name].encode() + b"\n"
    view = b"N" if legacy else b""
    kept = b"(" + text("storage") + storage + text(key) + text("cpu") + number(array.size) + view
    strides = [stride // array.itemsize for stride in array.strides]
    return (
        b"ctorch._utils\n_rebuild_tensor_v2\n("
        + (kept + b"tQ" + number(0) + numbers(array.shape) + numbers(strides))
        + b"\x89ccollections\nOrderedDict\n)RtR"
    )


def state_dict(arrays: dict[str, np.ndarray], *, legacy: bool) -> bytes:
    items = b"".join(
        text(name) + tensor(str(i), array, legacy=legacy)
        for i, (name, array) in enumerate(arrays.items())
    )
    metadata = b"}" + text("_metadata") + b"ccollections\nOrderedDict\n)Rsb"
    return b"\x80\x02ccollections\nOrderedDict\n)R(" + items + b"u" + metadata + b"."


def write_pth(path: Path, arrays: dict[str, np.ndarray], *, pickled: bytes | None = None) -> Path:
    """The zip that torch.save writes since 1.6."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", pickled or state_dict(arrays, legacy=False))
        for i, array in enumerate(arrays.values()):
            archive.writestr(f"archive/data/{i}", array.tobytes("A"))
        archive.writestr("archive/version", "3\n")
    return path


def write_legacy_pth(path: Path, arrays: dict[str, np.ndarray]) -> Path:
    """What torch.save wrote before 1.6."""
    magic = b"\x80\x02\x8a\x0a" + MAGIC.to_bytes(10, "little") + b"."
    version = b"\x80\x02M\xe9\x03."
    machine = b"\x80\x02}" + text("little_endian") + b"\x88s."
    keys = b"\x80\x02](" + b"".join(text(str(i)) for i in range(len(arrays))) + b"e."
    data = b"".join(struct.pack("<q", a.size) + a.tobytes("A") for a in arrays.values())
    path.write_bytes(magic + version + machine + state_dict(arrays, legacy=True) + keys + data)
    return path
