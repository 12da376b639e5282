"""How photographs and masks lie in a folder, and which of them make a split.

- VOC: `ImageSets/Segmentation/<split>.txt` lists ids, one a line, of `JPEGImages/<id>.jpg` and
  `SegmentationClass/<id>.png`.
- Tables: `<split>.csv` with a line `photograph,mask` of paths for each pair.
- Two folders: `images/<split>/<name>.jpg` and `masks/<split>/<name>.png`.

Photographs may be .jpg, .jpeg or .png.
"""

import csv
import difflib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from deeplab_jax.types import UserError

PHOTOGRAPH_SUFFIXES = (".jpg", ".jpeg", ".png")


@dataclass(frozen=True)
class Pair:
    """A photograph and its mask; the files need not exist."""

    name: str
    photograph: Path
    mask: Path


@dataclass(frozen=True)
class Layout:
    """Where splits are listed below a folder, and how one is read from there."""

    splits: str
    """Pattern of the lists, or of the folders, one a split."""
    read: Callable[[Path, Path], tuple[Pair, ...]]
    """Of the data set's folder and of what matched the pattern."""


def find_folder(root: Path) -> tuple[Path, Layout]:
    """The folder of a data set at `root`, `root/VOC2012` or `root/VOCdevkit/VOC2012`."""
    if not root.is_dir():
        raise UserError(f"{root} is not a folder; give the folder that holds the data set.")
    devkit = (root / "VOC2012", root / "VOCdevkit" / "VOC2012")
    choices = [(folder, VOC) for folder in (root, *devkit)] + [(root, TABLES), (root, TWO_FOLDERS)]
    for folder, layout in choices:
        if splits_of(folder, layout):
            return folder, layout
    raise UserError(
        f"{root} has no ImageSets/Segmentation/<split>.txt, no <split>.csv and no images/<split> "
        "beside masks/<split>; lay the data out in one of these ways."
    )


def splits_of(folder: Path, layout: Layout) -> dict[str, Path]:
    """The list, or the folder, of each split by its name, sorted."""
    paths = sorted(folder.glob(layout.splits))
    return {path.stem if path.is_file() else path.name: path for path in paths}


def read_split(folder: Path, layout: Layout, split: str) -> tuple[Pair, ...]:
    """The photographs and masks of a split, in the order of its list."""
    places = splits_of(folder, layout)
    if split not in places:
        path = folder / layout.splits.replace("*", split)
        close = difflib.get_close_matches(split, places, n=1)
        suggestion = f"; did you mean {close[0]!r}?" if close else "."
        raise UserError(f"{path} is missing, the splits are {', '.join(places)}{suggestion}")
    pairs = layout.read(folder, places[split])
    if not pairs:
        raise UserError(
            f"{places[split]} is empty; list photographs there or choose another split."
        )
    return pairs


def check_names_differ(pairs: Sequence[Pair], split: str) -> None:
    seen = {}
    for pair in pairs:
        if pair.name in seen:
            raise UserError(
                f"{pair.photograph} stands twice in the split {split}, or has the name of "
                f"{seen[pair.name]}; take one of the two out."
            )
        seen[pair.name] = pair.photograph


def read_voc_list(folder: Path, path: Path) -> tuple[Pair, ...]:
    """A line is an id, or a photograph and a mask as two paths below `folder`."""
    photographs = index_by_stem(folder / "JPEGImages")
    lines = [line.split() for line in read_text(path).splitlines() if line.strip()]
    return tuple(make_voc_pair(folder, fields, photographs) for fields in lines)


def make_voc_pair(folder: Path, fields: Sequence[str], photographs: dict[str, Path]) -> Pair:
    if len(fields) == 2 and "/" in fields[0]:
        photograph, mask = (folder / field.lstrip("/") for field in fields)
        return Pair(photograph.stem, photograph, mask)
    name = fields[0]
    missing = folder / "JPEGImages" / f"{name}.jpg"
    mask = folder / "SegmentationClass" / f"{name}.png"
    return Pair(name, photographs.get(name, missing), mask)


def read_table(folder: Path, path: Path) -> tuple[Pair, ...]:
    """Lines of `photograph,mask`, paths relative to `folder`; the first line may be a title."""
    rows = [row for row in csv.reader(read_text(path).splitlines()) if row]
    pairs = []
    for number, row in enumerate(rows, 1):
        if len(row) != 2:
            raise UserError(
                f"{path} has {len(row)} columns in line {number}; write `photograph,mask`."
            )
        photograph, mask = (folder / field.strip() for field in row)
        if number > 1 or photograph.suffix:
            pairs.append(Pair(photograph.stem, photograph, mask))
    return tuple(pairs)


def read_two_folders(folder: Path, images: Path) -> tuple[Pair, ...]:
    """Photographs sorted by name; each needs a mask of its name."""
    masks = folder / "masks" / images.name
    return tuple(
        Pair(name, path, masks / f"{name}.png") for name, path in index_by_stem(images).items()
    )


def index_by_stem(folder: Path) -> dict[str, Path]:
    """Photographs of a folder by file name without suffix, sorted."""
    if not folder.is_dir():
        raise UserError(f"{folder} is missing; the photographs belong there.")
    paths = sorted(p for p in folder.iterdir() if p.suffix.lower() in PHOTOGRAPH_SUFFIXES)
    return {path.stem: path for path in paths}


def read_text(path: Path) -> str:
    """Text of a small file, with or without a byte order mark."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise UserError(f"{path} is not text in UTF-8; save it as such.") from None


VOC = Layout("ImageSets/Segmentation/*.txt", read_voc_list)
TABLES = Layout("*.csv", read_table)
TWO_FOLDERS = Layout("images/*/", read_two_folders)
