"""A small data set in VOC layout for the tests to spoil."""

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from deeplab_jax.data import builders
from deeplab_jax.data.folders import Folder, Place
from deeplab_jax.data.images import ORIENTATION_TAG
from deeplab_jax.types import UserError

NAMES = ("ground", "cat", "dog")
SIZE = (24, 30)
SMALL = (12, 16)


def png(width: int, height: int, bits: int, kind: int, rows: bytes) -> bytes:
    """A PNG of a bit depth and colour type; each row begins with its filter."""
    header = struct.pack(">IIBBBBB", width, height, bits, kind, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(part)) + name + part + struct.pack(">I", zlib.crc32(name + part))
        for name, part in chunks
    )


def turned(kind: int) -> Image.Exif:
    """What says how a picture has to be turned, 1 to 8."""
    exif = Image.Exif()
    exif[ORIENTATION_TAG] = kind
    return exif


def write_text(path: Path, text: str):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def shade_of(name: str) -> int:
    """The red of a photograph that `write_photograph` writes under a name."""
    return sum(map(ord, name)) % 200


def write_photograph(path: Path, **options):
    """A small photograph of one colour, which differs by the name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", SMALL[::-1], (shade_of(path.stem), 80, 30)).save(path, **options)


STRANGE = np.random.default_rng(0).integers(0, 256, (256, 3))
"""A palette."""


def write_mask(path: Path, labels, palette=STRANGE, **options):
    """A mask of class ids, grey where there is no palette."""
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = Image.fromarray(np.asarray(labels, np.uint8))
    if palette is not None:
        picture.putpalette(np.asarray(palette, np.uint8).tobytes())
    picture.save(path, **options)


def write_pair(root: Path, name: str, seed: int):
    rng = np.random.default_rng(seed)
    image = np.kron(rng.integers(0, 256, (6, 10, 3), np.uint8), np.ones((4, 3, 1), np.uint8))
    Image.fromarray(image).save(root / "JPEGImages" / f"{name}.jpg", quality=95)
    labels = rng.choice([0, 1, 2, 255], SIZE)
    write_mask(root / "SegmentationClass" / f"{name}.png", labels)
    return labels


def draw_folder(root: Path) -> Path:
    """Three photographs for training and one for validation."""
    for folder in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (root / folder).mkdir(parents=True)
    for seed, name in enumerate("abcd"):
        write_pair(root, name, seed)
    (root / "ImageSets/Segmentation/train.txt").write_text("c\na\nb\n")
    (root / "ImageSets/Segmentation/val.txt").write_text("d\n")
    (root / "labels.txt").write_text("0 ground\n1 cat\n2 dog\n255 void\n")
    return root


OF_DATASETS = {"class_names", "bad_data", "with_truth"}


def opened(root: Path, splits=(), **place) -> Folder:
    return builders.open_folder(Place(root, root.parent / "prepared", **place), splits)


def open_dataset(root: Path, splits=("train",), **options):
    """Options are those of a Place and of `builders.open_dataset`."""
    place = {name: options.pop(name) for name in {*options} - OF_DATASETS}
    return builders.open_dataset(opened(root, splits, **place), splits, **options)


def prepared(root: Path) -> list[str]:
    return sorted(p.name for p in (root.parent / "prepared").glob("*/*") if p.is_dir())


def fault(root: Path, splits=("train",)) -> str:
    """What the user reads; nothing half prepared stays on disk."""
    before = prepared(root)
    with pytest.raises(UserError) as raised:
        open_dataset(root, splits)
    assert prepared(root) == before
    return str(raised.value)
