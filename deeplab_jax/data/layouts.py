"""How photographs and masks may lie in a folder of one's own.

- VOC: `ImageSets/Segmentation/<split>.txt` lists ids, one a line, of `JPEGImages/<id>.jpg` and
  `SegmentationClass/<id>.png`; VOC2012 itself, with SBD beside it where that is.
- Tables: `<split>.csv` with a line `photograph,mask` of paths for each pair.
- Two folders: `images/<split>/<name>.jpg` and `masks/<split>/<name>.png`.

Ids and names may have folders: `<city>/<number>`. Photographs may be .jpg, .jpeg or .png. labels.py
tells of class names and mappings.
"""

import csv
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from deeplab_jax.data import benchmarks, coco, labels
from deeplab_jax.data.folders import PHOTOGRAPH_SUFFIXES, Folder, Pair, index_photographs
from deeplab_jax.data.listing import visible
from deeplab_jax.types import VOC_CLASS_NAMES, UserError


def open_folder(root: Path) -> Folder:
    """The data set at `root`: a known benchmark, or a folder in one of the layouts."""
    folder = find_folder(root)
    if folder is None:
        raise UserError(
            f"{root} has no ImageSets/Segmentation/<split>.txt, no <split>.csv and no "
            "images/<split> beside masks/<split>; lay the data out in one of these ways."
        )
    return folder


def find_folder(root: Path) -> Folder | None:
    """What the first layout that knows `root` makes of it, None where none does.

    Raises:
      UserError: `root` is no folder.
    """
    if not root.is_dir():
        raise UserError(f"{root} is not a folder; give the folder that holds the data set.")
    finders = (*benchmarks.FINDERS, coco.find_coco, find_voc, find_tables, find_two_folders)
    return next((folder for folder in (find(root) for find in finders) if folder), None)


def find_voc(root: Path) -> Folder | None:
    """The folder in VOC layout at `root`, `root/VOC2012` or `root/VOCdevkit/VOC2012`."""
    for path in (root, root / "VOC2012", root / "VOCdevkit" / "VOC2012"):
        lists = visible((path / "ImageSets" / "Segmentation").glob("*.txt"))
        if not lists:
            continue
        splits = {file.stem: partial(read_voc_list, path, file) for file in lists}
        if is_devkit(path):
            for place in dict.fromkeys((path, path.parent, root)):
                splits.update(benchmarks.sbd_splits(path, place / "benchmark_RELEASE" / "dataset"))
        names = None if (path / "labels.txt").is_file() or not is_devkit(path) else VOC_CLASS_NAMES
        return make_folder(path, splits, names)
    return None


def is_devkit(path: Path) -> bool:
    """Whether it is a year of VOC's development kit, not another data set in its layout."""
    return path.resolve().name.startswith("VOC20") and (path / "Annotations").is_dir()


def find_tables(root: Path) -> Folder | None:
    """The folder whose splits are tables of pairs, `<split>.csv`."""
    tables = visible(root.glob("*.csv"))
    splits = {file.stem: partial(read_table, root, file) for file in tables}
    return make_folder(root, splits) if splits else None


def find_two_folders(root: Path) -> Folder | None:
    """The folder whose splits are `images/<split>` and `masks/<split>`."""
    folders = visible(path for path in root.glob("images/*") if path.is_dir())
    splits = {path.name: partial(read_two_folders, root, path) for path in folders}
    return make_folder(root, splits) if splits else None


def make_folder(path: Path, splits: dict, names: tuple[str, ...] | None = None) -> Folder:
    """A folder with its labels.txt, unless `names` are given, and its mapping.txt."""
    class_names = names or labels.read_class_names(path / "labels.txt")
    mapping = path / "mapping.txt"
    if not mapping.is_file():
        return Folder(path, class_names, None, splits)
    rules = labels.read_mapping(mapping, num_classes=len(class_names))
    return Folder(path, class_names, rules, splits)


def read_voc_list(folder: Path, path: Path) -> tuple[Pair, ...]:
    """A line is an id, or a photograph and a mask as two paths below `folder`.

    An id may have blanks, folders, or the suffix of its photograph. The photographs of a list
    `test` have no truth where none of them has a mask.
    """
    photographs = index_photographs(folder / "JPEGImages")
    lines = [line.strip() for line in labels.read_text(path).splitlines() if line.strip()]
    pairs = name_apart([make_voc_pair(folder, line, photographs) for line in lines], folder)
    if path.stem == "test" and not any(pair.mask.is_file() for pair in pairs):
        return tuple(Pair(pair.name, pair.photograph, None) for pair in pairs)
    return pairs


def make_voc_pair(folder: Path, line: str, photographs: Mapping[str, Path]) -> Pair:
    """The pair of one line of a list, see `read_voc_list`; its files need not be there."""
    fields = line.split()
    if len(fields) == 2 and "/" in fields[0] and line not in photographs:
        photograph, mask = (folder / field.lstrip("/") for field in fields)
        return Pair(photograph.stem, photograph, mask)
    name = line if line in photographs else fields[0]
    if name not in photographs and Path(name).suffix.lower() in PHOTOGRAPH_SUFFIXES:
        name = str(Path(name).with_suffix(""))
    missing = folder / "JPEGImages" / f"{name}.jpg"
    mask = folder / "SegmentationClass" / f"{name}.png"
    return Pair(name, photographs.get(name, missing), mask)


def name_apart(pairs: Sequence[Pair], folder: Path) -> tuple[Pair, ...]:
    """Photographs of one file name in several folders have their paths as names."""
    places: dict[str, set[Path]] = {}
    for pair in pairs:
        places.setdefault(pair.name, set()).add(pair.photograph)
    return tuple(
        pair
        if len(places[pair.name]) == 1
        else replace(pair, name=os.path.relpath(pair.photograph.with_suffix(""), folder))
        for pair in pairs
    )


def read_table(folder: Path, path: Path) -> tuple[Pair, ...]:
    """Lines of `photograph,mask`, paths relative to `folder`; the first line may be a title."""
    rows = [row for row in csv.reader(labels.read_text(path).splitlines()) if row]
    pairs = []
    for number, row in enumerate(rows, 1):
        if len(row) != 2:
            raise UserError(
                f"{path} has {len(row)} columns in line {number}; write `photograph,mask`."
            )
        photograph, mask = (folder / field.strip() for field in row)
        if number > 1 or photograph.suffix:
            pairs.append(Pair(photograph.stem, photograph, mask))
    return name_apart(pairs, folder)


def read_two_folders(folder: Path, images: Path) -> tuple[Pair, ...]:
    """Photographs sorted by name; each needs a mask of its name."""
    masks = folder / "masks" / images.name
    return tuple(
        Pair(name, path, masks / f"{name}.png") for name, path in index_photographs(images).items()
    )
