"""What a data set's folder says of itself: classes, mapping, splits; and its fingerprint.

`labels.txt` has the class names, `id name` a line or one name a line; `mapping.txt`, where there is
one, says what the colours or raw ids of the masks mean.
"""

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from deeplab_jax.data import layouts
from deeplab_jax.data.mapping import LabelMapping, read_mapping
from deeplab_jax.types import IGNORE_LABEL, MAX_CLASSES, UserError

VOC_CLASS_NAMES = (
    *("background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat"),
    *("chair", "cow", "diningtable", "dog", "horse", "motorbike", "person", "pottedplant"),
    *("sheep", "sofa", "train", "tvmonitor"),
)


@dataclass(frozen=True)
class Folder:
    """A data set on disk as its owner keeps it."""

    path: Path
    layout: layouts.Layout
    class_names: tuple[str, ...]
    mapping: LabelMapping | None


def open_folder(root: Path) -> Folder:
    """The data set at `root`, in any of the layouts, or in a VOCdevkit below it."""
    path, layout = layouts.find_folder(root)
    class_names = read_class_names(path)
    mapping = path / "mapping.txt"
    rules = read_mapping(mapping, num_classes=len(class_names)) if mapping.is_file() else None
    return Folder(path, layout, class_names, rules)


def read_class_names(folder: Path) -> tuple[str, ...]:
    """Names of classes 0, 1, ... from labels.txt, or VOC's own where `folder` is the devkit's."""
    path = folder / "labels.txt"
    if path.is_file():
        return parse_class_names(path)
    if folder.resolve().name.startswith("VOC20") and (folder / "Annotations").is_dir():
        return VOC_CLASS_NAMES
    raise UserError(
        f"{path} is missing; write the class names there, one a line in the order of their ids, "
        "or as `id name` lines such as `0 background`."
    )


def parse_class_names(path: Path) -> tuple[str, ...]:
    """Lines of `id name` in any order, or of names alone in the order of their ids.

    A line for id 255 may be there and names no class.
    """
    lines = [line.strip() for line in layouts.read_text(path).splitlines() if line.strip()]
    numbered = [line.split(maxsplit=1) for line in lines if line.split()[0].isdigit()]
    if not numbered:
        names = lines
    elif len(numbered) < len(lines) or any(len(fields) < 2 for fields in numbered):
        raise UserError(f"{path} mixes `id name` lines with others; write every line one way.")
    else:
        names = order_by_id(path, [(int(number), name) for number, name in numbered])
    if not 1 <= len(names) <= MAX_CLASSES:
        raise UserError(f"{path} names {len(names)} classes; 1 to {MAX_CLASSES} can be had.")
    return tuple(names)


def order_by_id(path: Path, numbered: Sequence[tuple[int, str]]) -> list[str]:
    """The names in the order of their ids, which must be 0, 1, 2, ... without a gap."""
    numbered = sorted(entry for entry in numbered if entry[0] != IGNORE_LABEL)
    ids = [number for number, _ in numbered]
    if ids != list(range(len(ids))):
        raise UserError(
            f"{path} has the ids {', '.join(map(str, ids))}; they must be 0, 1, 2, ... each once."
        )
    return [name for _, name in numbered]


def fingerprint(folder: Folder, pairs: Sequence[layouts.Pair]) -> str:
    """A short hash of class names, mapping, list, paths, and files' sizes and times."""
    rules = folder.mapping
    meaning = rules and (rules.of_colours, sorted(rules.classes.items()), rules.others)
    digest = hashlib.sha256(repr((folder.class_names, meaning)).encode())
    for pair in pairs:
        stamps = (stamp(folder.path, pair.photograph), stamp(folder.path, pair.mask))
        digest.update(repr((pair.name, stamps)).encode())
    return digest.hexdigest()[:16]


def stamp(folder: Path, path: Path) -> tuple[str, int, int]:
    """Path as seen from `folder`, size in bytes (-1 where the file is missing) and time in ns."""
    place = os.path.relpath(path, folder)
    try:
        stat = path.stat()
    except OSError:
        return place, -1, 0
    return place, stat.st_size, stat.st_mtime_ns


def join_fingerprints(fingerprints: dict[str, str]) -> str:
    """One fingerprint of several splits."""
    return hashlib.sha256(repr(sorted(fingerprints.items())).encode()).hexdigest()[:16]
