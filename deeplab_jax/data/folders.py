"""What lies in a folder in VOC layout, before any photograph is opened:

- `JPEGImages/<id>.jpg` (or .jpeg, .png): photographs
- `SegmentationClass/<id>.png`: masks of class ids, 255 where nothing counts
- `ImageSets/Segmentation/<split>.txt`: one id a line
- `labels.txt`: class names, `id name` a line or one name a line
"""

import difflib
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from deeplab_jax.types import IGNORE_LABEL, MAX_CLASSES, UserError

PHOTOGRAPH_SUFFIXES = (".jpg", ".jpeg", ".png")

VOC_CLASS_NAMES = (
    *("background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat"),
    *("chair", "cow", "diningtable", "dog", "horse", "motorbike", "person", "pottedplant"),
    *("sheep", "sofa", "train", "tvmonitor"),
)


@dataclass(frozen=True)
class Pair:
    """A photograph and its mask; the files need not exist."""

    name: str
    photograph: Path
    mask: Path


def find_voc_folder(root: Path) -> Path:
    """The folder in VOC layout at `root`, `root/VOC2012` or `root/VOCdevkit/VOC2012`."""
    if not root.is_dir():
        raise UserError(f"{root} is not a folder; give the folder that holds ImageSets.")
    for folder in (root, root / "VOC2012", root / "VOCdevkit" / "VOC2012"):
        if (folder / "ImageSets" / "Segmentation").is_dir():
            return folder
    raise UserError(
        f"{root} has no ImageSets/Segmentation, nor have VOC2012 and VOCdevkit/VOC2012 in it; "
        "lay the data out as JPEGImages/<id>.jpg, SegmentationClass/<id>.png and "
        "ImageSets/Segmentation/<split>.txt with one id a line."
    )


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
    lines = [line.strip() for line in read_text(path).splitlines() if line.strip()]
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


def list_splits(folder: Path) -> list[str]:
    """Names of the lists in ImageSets/Segmentation, sorted."""
    return sorted(path.stem for path in (folder / "ImageSets" / "Segmentation").glob("*.txt"))


def read_split(folder: Path, split: str) -> tuple[Pair, ...]:
    """The photographs and masks a list names, in its order.

    A line is an id, or a photograph and a mask as two paths under `folder`.
    """
    path = folder / "ImageSets" / "Segmentation" / f"{split}.txt"
    if not path.is_file():
        raise UserError(f"{path} is missing; {describe_splits(split, list_splits(folder))}.")
    lines = [line.split() for line in read_text(path).splitlines() if line.strip()]
    if not lines:
        raise UserError(f"{path} is empty; write one id a line, or choose another split.")
    photographs = index_by_stem(folder / "JPEGImages")
    pairs = tuple(make_pair(folder, fields, photographs) for fields in lines)
    check_names_differ(path, [pair.name for pair in pairs])
    return pairs


def describe_splits(wanted: str, splits: Sequence[str]) -> str:
    if not splits:
        return "no split is there at all"
    close = difflib.get_close_matches(wanted, splits, n=1)
    suggestion = f", did you mean {close[0]!r}?" if close else ""
    return f"the splits there are {', '.join(splits)}{suggestion}".rstrip("?")


def index_by_stem(folder: Path) -> dict[str, Path]:
    """Photographs of a folder by file name without suffix."""
    if not folder.is_dir():
        raise UserError(f"{folder} is missing; the photographs belong there.")
    paths = sorted(p for p in folder.iterdir() if p.suffix.lower() in PHOTOGRAPH_SUFFIXES)
    return {path.stem: path for path in paths}


def make_pair(folder: Path, fields: Sequence[str], photographs: dict[str, Path]) -> Pair:
    """The pair one line of a list names."""
    if len(fields) == 2 and "/" in fields[0]:
        photograph, mask = (folder / field.lstrip("/") for field in fields)
        return Pair(photograph.stem, photograph, mask)
    name = fields[0]
    missing = folder / "JPEGImages" / f"{name}.jpg"
    mask = folder / "SegmentationClass" / f"{name}.png"
    return Pair(name, photographs.get(name, missing), mask)


def check_names_differ(path: Path, names: Sequence[str]) -> None:
    seen = set()
    for name in names:
        if name in seen:
            raise UserError(f"{path} lists {name!r} twice; take one of the lines out.")
        seen.add(name)


def fingerprint(folder: Path, pairs: Sequence[Pair], class_names: Sequence[str]) -> str:
    """A short hash of class names, list, paths under `folder`, and files' sizes and times."""
    digest = hashlib.sha256(repr(tuple(class_names)).encode())
    for pair in pairs:
        stamps = (stamp(folder, pair.photograph), stamp(folder, pair.mask))
        digest.update(repr((pair.name, stamps)).encode())
    return digest.hexdigest()[:16]


def stamp(folder: Path, path: Path) -> tuple[str, int, int]:
    """Path under `folder`, size in bytes (-1 where the file is missing) and time in ns."""
    try:
        stat = path.stat()
    except OSError:
        return path.relative_to(folder).as_posix(), -1, 0
    return path.relative_to(folder).as_posix(), stat.st_size, stat.st_mtime_ns


def read_text(path: Path) -> str:
    """Text of a small file, with or without a byte order mark."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise UserError(f"{path} is not text in UTF-8; save it as such.") from None


def join_fingerprints(fingerprints: dict[str, str]) -> str:
    """One fingerprint of several splits."""
    return hashlib.sha256(repr(sorted(fingerprints.items())).encode()).hexdigest()[:16]
