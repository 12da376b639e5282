"""A data set as its owner keeps it: where it is, classes, splits, pairs of files, what is left out
of them; and its fingerprint."""

import contextlib
import difflib
import hashlib
import os
import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import UInt8

from deeplab_jax.data import images, listing
from deeplab_jax.data.images import ARRAYS, SUFFIXES, ValueRange
from deeplab_jax.data.labels import CLASS_FILES, LabelMapping
from deeplab_jax.types import UserError

MASK_SUFFIXES = (
    *(".png", ".tif", ".tiff", ".bmp", ".gif", ".pgm", ".ppm", ".pbm", ".pnm", ".tga", ".apng"),
)
"""Of files that are taken for masks, in lower case."""

MASK_ENDINGS = ("", "_mask", "_L", "_segmentation", "_gt", "_GT", "_label", "_labels", "_seg")
"""What may follow a photograph's name in the name of its mask."""

ARCHIVES = (".zip", ".tar", ".tgz", ".gz", ".bz2", ".xz", ".rar", ".7z")

NOT_COUNTED = (*CLASS_FILES, "mapping.txt", "README.txt", "README.md")
"""Files beside photographs that `left_out` does not count."""

THEN_CHOOSE = (
    "say which it is: --data.masks with the name of a folder of masks or of a JSON file, or with "
    "the end of the masks' names, such as _gt.png."
)


@runtime_checkable
class DrawnMask(Protocol):
    """A mask that is drawn from what a file says, such as outlines."""

    @property
    def path(self) -> Path: ...

    def draw(self) -> UInt8[np.ndarray, "h w"]:
        """Class ids, 255 where nothing counts."""
        ...


@dataclass(frozen=True)
class GivenMask:
    """A mask that takes the place of the data set's own: class ids, whatever the others hold."""

    path: Path


@dataclass(frozen=True)
class GivenMasks:
    """Masks that take the place of those of a split: pictures of class ids with 255 where nothing
    counts, as weak supervision makes them and predict.py writes them, under the names of the
    photographs."""

    split: str
    folder: Path


@dataclass(frozen=True)
class Pair:
    """A photograph and its mask, None where there is no truth. The files need not exist."""

    name: str
    photograph: Path
    mask: Path | DrawnMask | GivenMask | None

    @property
    def mask_path(self) -> Path | None:
        """The file that the mask is read or drawn from."""
        return self.mask if self.mask is None or isinstance(self.mask, Path) else self.mask.path


Splits = dict[str, Callable[[], tuple[Pair, ...]]]
"""How each split is read, in the order of its list."""


@dataclass(frozen=True)
class Place:
    """Where a data set lies, and how it is read where its files leave that open."""

    root: Path | None
    """Its folder, or that of its archives; None: scenes are drawn, see scenes.py."""
    prepared_dir: Path = Path("prepared")
    """Where archives are unpacked, scenes drawn and splits prepared."""
    range: ValueRange | None = None
    """The values that become black and white in photographs of more than 8 bits a channel; with
    `channels` a pair for all of them, or one for each."""
    channels: int | None = None
    """Channels that photographs are read with, see images.py; None: as RGB."""
    masks: str | None = None
    """Which files are the masks where several may be: the name of a folder of masks or of a JSON
    file, or the end of their names."""
    val_fraction: float | None = None
    """Part of the photographs of the only split that is kept for `val`, see holdout.py."""
    val_groups: str | None = None
    """Regular expression: photographs in whose names it matches the same text stay together."""
    may_have_splits: bool = False
    """Whether data of several splits keep them though there is a `val_fraction`."""
    num_scenes: int = 0
    """Scenes that are drawn to train on."""


@dataclass(frozen=True)
class Folder:
    """A data set on disk."""

    path: Path
    class_names: tuple[str, ...]
    mapping: LabelMapping | None
    """What the masks hold, where that is not class ids."""
    splits: Splits
    class_colors: tuple[tuple[int, int, int], ...] | None = None
    """RGB colours of the classes in pictures, where the data set names them."""
    notes: Mapping[str, Callable[[], tuple[str, ...]]] = field(default_factory=dict)
    """Sentences about what the files of a split hold and what of it is not used."""
    place: Place = Place(None)
    """What was opened."""
    given_masks: GivenMasks | None = None


def read_split(folder: Folder, split: str) -> tuple[Pair, ...]:
    """The photographs and masks of a split, in the order of its list."""
    if split not in folder.splits:
        raise UserError(describe_absent(folder, split))
    if split == "all" or not re.fullmatch(r"[\w-]+", split):  # TFDS reads it as an expression
        raise UserError(
            f"{folder.path} has a split {split!r}; rename it without blanks and dots, say with _, "
            "and not as all, which stands for all splits."
        )
    pairs = tuple(p for p in folder.splits[split]() if not listing.is_stray(p.photograph))
    if not pairs:
        raise UserError(f"{folder.path} has an empty split {split!r}; list photographs there.")
    given = folder.given_masks
    return pairs if given is None or given.split != split else with_masks(pairs, given.folder)


def describe_absent(folder: Folder, split: str) -> str:
    """That there is no such split, and what to do."""
    told = f"{folder.path} has no split {split!r}, it has {', '.join(folder.splits)}"
    if close := difflib.get_close_matches(split, folder.splits, n=1):
        return f"{told}; did you mean {close[0]!r}?"
    if split not in ("train", "val"):
        return f"{told}."
    told += f"; make one, or name another with --data.{split}-split"
    if len(folder.splits) > 1:
        return f"{told}."
    return f"{told}, or divide the only split into train and val with --data.val-fraction 0.1."


def refuse_without_truth(folder: Folder, split: str, pairs: Sequence[Pair]) -> None:
    """Raises a UserError where no photograph of a split has a mask, as in the tests of servers."""
    if all(pair.mask is None for pair in pairs):
        raise UserError(
            f"{folder.path} has no masks for the split {split}, so that nothing can be learnt from "
            "it or scored on it; name another split."
        )


def describe_repeated(pairs: Sequence[Pair], split: str) -> list[str]:
    """A sentence for each photograph that has the name of an earlier one of the split."""
    first: dict[str, Pair] = {}
    return [
        f"{pair.photograph} stands twice in the split {split}, or has the name of "
        f"{first[pair.name].photograph}; take one of the two out."
        for pair in pairs
        if first.setdefault(pair.name, pair) is not pair
    ]


def with_masks(pairs: Sequence[Pair], masks: Path) -> tuple[Pair, ...]:
    """The pairs with the masks of a folder in place of their own."""
    if not masks.is_dir():
        raise UserError(f"the masks to train on should lie in {masks}, which is not a folder")
    index = index_masks(masks)

    def mask_of(pair: Pair) -> Path:
        found = find_mask(pair.name, index) or find_mask(pair.photograph.stem, index)
        return found or masks / f"{pair.name}.png"

    return tuple(replace(pair, mask=GivenMask(mask_of(pair))) for pair in pairs)


def left_out(folder: Folder, splits: Sequence[str]) -> list[str]:
    """Sentences that count and name what is listed in some splits, or lies there, and is not used.

    These are hidden files in lists; annotations without an outline, and the like; files of other
    kinds beside photographs and masks; and pictures anywhere in the folder that are in no split.
    """
    sentences = [sentence for split in splits for sentence in folder.notes.get(split, tuple)()]
    named = [name for name in CLASS_FILES if (folder.path / name).is_file()]
    if len(named) > 1:
        sentences.append(f"{folder.path}: class names are those of {named[0]}, not {named[1]}")
    used: set[Path] = set()
    for split, read in folder.splits.items():
        pairs: Sequence[Pair] = ()
        with contextlib.suppress(UserError):  # told where the split is read
            pairs = read()
        stray = [p.photograph for p in pairs if listing.is_stray(p.photograph)]
        if stray and split in splits:
            sentences.append(f"{split} lists {len(stray)} hidden files, such as {stray[0]}")
        used |= {p for pair in pairs for p in (pair.photograph, pair.mask_path) if p}
    known = {path.parent for path in used}
    others = sorted(set(listing.walk(folder.path)) - used)
    linked = {os.path.realpath(path) for path in used if others}  # used by another path
    unused: dict[Path, list[Path]] = {}
    for path in others:
        counts = path.suffix.lower() in (*SUFFIXES, *ARRAYS, *ARCHIVES, ".mat")
        counts = counts or path.parent in known and path.name not in NOT_COUNTED
        if counts and os.path.realpath(path) not in linked:
            unused.setdefault(path.parent, []).append(path)
    if given := folder.given_masks:
        taken = {pair.mask_path for pair in read_split(folder, given.split)}
        if rest := sorted({*index_masks(given.folder).values()} - taken):
            unused[given.folder] = rest
    return sentences + [listing.describe_unused(*item) for item in unused.items()]


def name_of(path: Path, folder: Path) -> str:
    """A file's path below `folder` without suffix, in Unicode's composed form (NFC).

    Names that a Mac has written have accents apart (NFD), and lists may have either.
    """
    return normalise(os.path.splitext(path.relative_to(folder).as_posix())[0])


def normalise(name: str) -> str:
    """A name in Unicode's composed form."""
    return unicodedata.normalize("NFC", name)


def index_photographs(folder: Path) -> dict[str, Path]:
    """Photographs below a folder by their names, sorted; see `name_of` and `images.among`.

    Raises:
      UserError: no such folder, a link to nothing, or two photographs of one name; one of them may
        be a mask.
    """
    if not folder.is_dir():
        raise UserError(f"{folder} is missing; the photographs belong there.")
    found: dict[str, Path] = {}
    for path in images.among(sorted(listing.walk(folder))):
        if (other := found.setdefault(name_of(path, folder), path)) != path:
            raise UserError(
                f"{path} has the name of {other.name} beside it; take one of the two away."
            )
    return found


def index_masks(
    folder: Path, *, suffixes: Sequence[str] = MASK_SUFFIXES, end: str = ""
) -> dict[str, Path]:
    """Masks below a folder by their names, see `name_of`; none where the folder is missing.

    Those of `suffixes`; or those whose file names end in `end`, by what stands before it.

    Raises:
      UserError: two have one name.
    """
    index: dict[str, Path] = {}
    for path in sorted(listing.walk(folder)) if folder.is_dir() else ():
        if path.name.endswith(end) if end else path.suffix.lower() in suffixes:
            whole = normalise(path.relative_to(folder).as_posix())
            name = whole.removesuffix(normalise(end)) if end else name_of(path, folder)
            if (other := index.setdefault(name, path)) != path:
                raise UserError(f"{other} and {path} have one name; {THEN_CHOOSE}")
    return index


def find_mask(name: str, masks: Mapping[str, Path]) -> Path | None:
    """The mask of a photograph, by its name with one of MASK_ENDINGS.

    Raises:
      UserError: there are several.
    """
    found = [masks[key] for ending in MASK_ENDINGS if (key := name + ending) in masks]
    if len(found) > 1:
        raise UserError(f"{found[0]} and {found[1]} may be the mask of {name}; {THEN_CHOOSE}")
    return found[0] if found else None


def fingerprint(folder: Folder, pairs: Sequence[Pair]) -> str:
    """A short hash of class names, mapping, list, paths, and files' sizes and times."""
    rules, place = folder.mapping, folder.place
    meaning = rules and (rules.of_colours, sorted(rules.classes.items()), rules.others)
    read = (folder.class_names, meaning, place.range, place.channels, folder.class_colors)
    digest = hashlib.sha256(repr(read).encode())
    for pair in pairs:
        stamps = (stamp(path) for path in (pair.photograph, pair.mask_path) if path is not None)
        digest.update(repr((pair.name, *stamps)).encode())
    return digest.hexdigest()[:16]


def stamp(path: Path) -> tuple[str | int, ...]:
    """Path, size in bytes and time in ns of a file; its path alone where it is missing."""
    with contextlib.suppress(OSError):
        stat = path.stat()
        return str(path), stat.st_size, stat.st_mtime_ns
    return (str(path),)
