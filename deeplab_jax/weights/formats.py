"""What a weight file is, told from its first bytes, and its arrays by the names that it gives them.

A file may lie in a zip, as in the authors' prototxt_and_model.zip: given as ZIP, or as ZIP/NAME,
it is unpacked into a temporary folder while it is read. Files and folders that people take for
weights are told what they are.
"""

import contextlib
import hashlib
import pickle
import re
import struct
import tempfile
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np
from google.protobuf.message import DecodeError
from safetensors import SafetensorError, safe_open

from deeplab_jax.types import UserError
from deeplab_jax.weights import caffemodel, pth
from deeplab_jax.weights.files import Flat, Refused

START = 512
"""Bytes of a file that tell what it is."""
MAX_DIRECTORY = 4 * 2**20
"""Bytes of a zip's directory, which takes 13 times as much memory; a ResNet-101 takes 60 kB."""
MAX_EXPANSION = 8
"""How many times as large as the file its content may be; weights hardly compress."""
SUFFIXES = (".caffemodel", ".pth", ".pt", ".safetensors")
"""Of the files that count in a zip."""

NOT_READ = "not read; networks of ImageNet are read from torchvision's .pth and Caffe's .caffemodel"
CONTENT = {
    rb"$": "is empty; download it again",
    rb"version https://git-lfs": "is a pointer of Git LFS; run git lfs pull in its repository, or "
    "download the file itself",
    rb"\s*<(!doctype|html|head|\?xml|error)": "is a web page and not the file; open its address in "
    "a browser to see what it asks for, and download again",
    rb"\x12\x01\0{6}": f"holds parameters of MXNet, which are {NOT_READ}",
    rb"\x89HDF": f"is an HDF5 file, such as Keras writes, which is {NOT_READ}",
    rb"MATLAB 5": f"is a file of MATLAB, which is {NOT_READ}",
    rb"(all_)?model_checkpoint_path:": f"is TensorFlow's list of checkpoints, which are {NOT_READ}",
    rb"\x93NUMPY": "is one array without a name; save all of them by their names as .npz",
    rb".{4}TFL3|\x08[\x01-\x7f]\x12.{0,40}(pytorch|onnx|tf2|jax)": "is a program of LiteRT or "
    "ONNX, whose weights are not read; give those it was made of",
    rb"\x1f\x8b|BZh|\xfd7zXZ|7z\xbc\xaf|Rar!|.{257}ustar": "is an archive; unpack it, and give the "
    "weight file in it",
    rb"[\t\n\r -~]{0,99}(layers?|name|input\w*) *[:{]": "is text, such as a network's prototxt; "
    "the weights are in a .caffemodel",
}
NAME = {
    r"\.(index|meta|data-\d+-of-\d+)$": f"is part of TensorFlow's checkpoint, which is {NOT_READ}",
    r"\.pb$": f"is a graph of TensorFlow, which is {NOT_READ}",
    r"\.(pdparams|pdopt)$": f"holds parameters of Paddle, which are {NOT_READ}",
    r"\.pkl$": f"is a pickle, such as Detectron's networks, which is {NOT_READ}",
}
ORBAX = "is a checkpoint of Orbax, or a part of one; give the work folder of its run"
FOLDER = {
    "saved_model.pb": f"is a SavedModel of TensorFlow, which is {NOT_READ}",
    "*.index": f"holds TensorFlow's checkpoint, which is {NOT_READ}",
    "*_METADATA": ORBAX,
    "*/_METADATA": ORBAX,
}

BROKEN = (ValueError, LookupError, TypeError, OverflowError, AttributeError, EOFError, OSError)
BROKEN += (AssertionError, RuntimeError, struct.error, pickle.UnpicklingError, DecodeError)
BROKEN += (SafetensorError, zipfile.BadZipFile)
"""What readers raise for a damaged file."""


class Content(NamedTuple):
    """What a weight file holds."""

    arrays: Flat
    metadata: Mapping[str, str] = {}
    """Of a safetensors file."""
    layers: Mapping[str, caffemodel.Layer] = {}
    """Of a .caffemodel."""


def read(path: Path) -> Content:
    """The content of a file that is in no zip; Refused where it is of another kind, or damaged."""
    try:
        with open(path, "rb") as file:
            start = file.read(START)
    except OSError as error:
        raise Refused(f"cannot be read: {error.strerror}") from None
    kind = _kind(path, start)
    try:
        if kind == "a safetensors file":
            with safe_open(path, framework="numpy") as file:
                arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
                return Content(arrays, file.metadata() or {})
        if kind == "an .npz file":
            with np.load(path, allow_pickle=False) as arrays:
                return Content({name: arrays[name] for name in arrays.files})
        if kind == "a PyTorch checkpoint":
            return Content(pth.read(path))
        arrays, layers = caffemodel.read(path)
        return Content(arrays, layers=layers)
    except (*BROKEN, Refused) as error:
        told = isinstance(error, Refused | zipfile.BadZipFile)
        reason = error if told else "it is damaged; is the file whole?"
        raise Refused(f"cannot be read as {kind}: {reason}") from error


def _kind(path: Path, start: bytes) -> str:
    """What a file with these first bytes is; Refused where it is none of those that are read."""
    # Before the pickles: the length that a safetensors file begins with may begin with \x80 too.
    if start[5:9] == b"\0\0\0{":  # the length of the header, eight bytes, and the header
        return "a safetensors file"
    told = [why for pattern, why in CONTENT.items() if re.match(b"(?is)" + pattern, start)]
    told += [why for pattern, why in NAME.items() if re.search(pattern, path.name)]
    if told:
        raise Refused(told[0])
    if start[:4] == b"PK\x03\x04" and {Path(name).suffix for name in names_in(path)} == {".npy"}:
        return "an .npz file"
    if start[:4] == b"PK\x03\x04" or start[:1] == b"\x80":
        return "a PyTorch checkpoint"
    if start[:1] in (b"\x0a", b"\x12", b"\xa2"):  # name, layers or layer of a NetParameter
        return "a .caffemodel"
    raise Refused(
        "starts like none of the files that hold weights (.caffemodel, .pth, .safetensors, .npz); "
        "is the download complete?"
    )


def refuse_folder(path: Path) -> None:
    """A UserError that says what a folder is that holds no weights."""
    found = (told for pattern, told in FOLDER.items() if any(path.glob(pattern)))
    raise UserError(f"{path} {next(found, 'is not a work folder: it holds no config.json')}")


def member_of(path: Path) -> tuple[Path, str] | None:
    """The zip file and the name in it that `path` consists of; None where it is no such path."""
    archive = next(filter(zipfile.is_zipfile, path.parents), None)
    return archive and (archive, path.relative_to(archive).as_posix())


def names_in(path: Path) -> list[str]:
    """The names in a zip file; empty where `path` is none, or damaged. A UserError where their
    list, or what they name, would fill the memory."""
    if not zipfile.is_zipfile(path):
        return []
    with path.open("rb") as file:
        size = zipfile._EndRecData(file)[zipfile._ECD_SIZE]  # pyright: ignore
    if size > MAX_DIRECTORY:
        raise UserError(f"{path} has a directory of {size} bytes, too many")
    try:
        with zipfile.ZipFile(path) as archive:
            size = sum(entry.file_size for entry in archive.infolist())
            names = archive.namelist()
    except (zipfile.BadZipFile, NotImplementedError):
        return []
    if size > MAX_EXPANSION * path.stat().st_size:
        raise UserError(f"{path} would expand to {size} bytes, far more than weights compress by")
    return names


@contextlib.contextmanager
def unpacked(path: Path) -> Iterator[Path]:
    """The weight file that `path` names, unpacked where it is in a zip. A UserError where the zip
    has several weight files, not the one that is named, or is damaged."""
    archive, member = member_of(path) or (path, "")
    names = [name for name in names_in(archive) if PurePosixPath(name).suffix in SUFFIXES]
    if not member and not names:
        yield path
        return
    found = [name for name in names if member in ("", name, PurePosixPath(name).name)]
    if len(found) != 1:
        raise UserError(
            f"{archive} holds {', '.join(names[:8]) or 'no weight file'}"
            + (f", and not one {member}" if member else "")
            + f"; name one, as in {archive}/{PurePosixPath(names[0]).name if names else 'FILE'}"
        )
    with zipfile.ZipFile(archive) as opened, tempfile.TemporaryDirectory() as folder:
        try:
            file = Path(opened.extract(found[0], folder))
        except (zipfile.BadZipFile, zlib.error, OSError) as error:
            raise UserError(f"{found[0]} of {archive} cannot be unpacked: {error}") from None
        yield file


def sha256(path: Path) -> str:
    """The SHA-256 of a file, or of ZIP/NAME, as 64 hexadecimal digits."""
    with unpacked(path) as found, open(found, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
