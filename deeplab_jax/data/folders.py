"""A data set as its owner keeps it: classes, splits, pairs of files; and its fingerprint."""

import difflib
import hashlib
import os
import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import numpy as np
from jaxtyping import UInt8

from deeplab_jax.data import listing
from deeplab_jax.data.labels import LabelMapping
from deeplab_jax.data.photographs import ARRAYS, SUFFIXES
from deeplab_jax.ranges import ValueRange
from deeplab_jax.renamed import answering
from deeplab_jax.types import UserError

MASK_SUFFIXES = (".png", ".tif", ".tiff", ".bmp", ".gif", ".pgm", ".ppm")
"""Of files that are taken for masks, in lower case, the preferred ones first."""

MASK_ENDINGS = ("", "_mask", "_L", "_segmentation", "_gt", "_GT", "_label", "_labels", "_seg")
"""What may follow a photograph's name in the name of its mask."""


@runtime_checkable
class DrawnMask(Protocol):
    """A mask that is drawn from what a file says, such as outlines."""

    @property
    def path(self) -> Path: ...

    def draw(self) -> UInt8[np.ndarray, "h w"]:
        """Class ids, 255 where nothing counts."""
        ...


@dataclass(frozen=True)
class Pair:
    """A photograph and its mask, which is None where a photograph has no truth.

    The files need not exist.
    """

    name: str
    photograph: Path
    mask: Path | DrawnMask | None

    @property
    def mask_path(self) -> Path | None:
        """The file that the mask is read or drawn from."""
        return self.mask if self.mask is None or isinstance(self.mask, Path) else self.mask.path


@dataclass(frozen=True)
class Folder:
    """A data set on disk."""

    path: Path
    class_names: tuple[str, ...]
    mapping: LabelMapping | None
    """What the masks hold, where that is not class ids."""
    splits: Mapping[str, Callable[[], tuple[Pair, ...]]]
    """How each split is read, in the order of its list."""
    value_range: ValueRange | None = None
    """The values that become black and white in photographs of more than 8 bits."""
    channels: int | None = None
    """Channels that photographs are read with, see bands.py; None: as RGB."""
    given_masks: tuple[str, Path] | None = None
    """A split, and the folder whose masks replace its own; see pseudo.py."""
    class_colors: tuple[tuple[int, int, int], ...] | None = None
    """RGB colours of the classes in pictures, where the data set names them."""


@dataclass(frozen=True)
class Reading:
    """How a data set is read where its files leave it open."""

    range: ValueRange | None = None
    """The values that become black and white in photographs of more than 8 bits a channel; with
    `channels` a pair for all of them, or one for each."""
    val_fraction: float | None = None
    """Part of the photographs of the only split that is kept for `val`, see holdout.py."""
    val_groups: str | None = None
    """Regular expression: photographs in whose names it matches the same text stay together."""
    given_masks: tuple[str, Path] | None = None
    """A split, and the folder whose masks replace its own; see pseudo.py."""
    channels: int | None = None
    """Channels that photographs are read with, see bands.py; None: as RGB."""


def read_split(folder: Folder, split: str) -> tuple[Pair, ...]:
    """The photographs and masks of a split, in the order of its list."""
    if split not in folder.splits:
        close = difflib.get_close_matches(split, folder.splits, n=1)
        suggestion = f"; did you mean {close[0]!r}?" if close else "."
        if not close and split in ("train", "val"):
            suggestion = f"; make one, or name another with --data.{split}-split."
            if len(folder.splits) == 1 and split == "val":
                suggestion = f"{suggestion[:-1]}, or give --data.val-fraction 0.1 to take a part."
        raise UserError(
            f"{folder.path} has no split {split!r}, it has {', '.join(folder.splits)}{suggestion}"
        )
    if split == "all" or not re.fullmatch(r"[\w-]+", split):  # TFDS reads it as an expression
        raise UserError(
            f"{folder.path} has a split {split!r}; rename it without blanks and dots, say with _, "
            "and not as all, which stands for all splits."
        )
    pairs = tuple(pair for pair in folder.splits[split]() if not is_hidden_pair(pair))
    if not pairs:
        raise UserError(f"{folder.path} has an empty split {split!r}; list photographs there.")
    return pairs


def is_hidden_pair(pair: Pair) -> bool:
    """Whether a list names a hidden file, as one that a program wrote may."""
    return listing.is_hidden(pair.name) or listing.is_hidden(pair.photograph.name)


def check_names_differ(pairs: Sequence[Pair], split: str) -> None:
    """Refuses a split in which two photographs have one name."""
    seen: dict[str, Path] = {}
    for pair in pairs:
        if pair.name in seen:
            raise UserError(
                f"{pair.photograph} stands twice in the split {split}, or has the name of "
                f"{seen[pair.name]}; take one of the two out."
            )
        seen[pair.name] = pair.photograph


def name_of(path: Path, folder: Path) -> str:
    """A file's path below `folder` without suffix, in Unicode's composed form (NFC).

    Names that a Mac has written have accents apart (NFD), and lists may have either.
    """
    return normalise(path.relative_to(folder).with_suffix("").as_posix())


def normalise(name: str) -> str:
    """A name in Unicode's composed form."""
    return unicodedata.normalize("NFC", name)


def index_photographs(folder: Path) -> dict[str, Path]:
    """Photographs in a folder by their names, sorted, see `name_of`.

    Those of SUFFIXES, or of ARRAYS where there are none. Hidden files are left out and links to
    folders followed, see listing.py.

    Raises:
      UserError: no such folder, a link to nothing, or two photographs of one name; one of them may
        be a mask.
    """
    if not folder.is_dir():
        raise UserError(f"{folder} is missing; the photographs belong there.")
    found: dict[str, Path] = {}
    paths = sorted(listing.walk(folder))
    chosen = [path for path in paths if path.suffix.lower() in SUFFIXES]
    for path in chosen or (path for path in paths if path.suffix.lower() in ARRAYS):
        other = found.setdefault(name_of(path, folder), path)
        if other != path:
            raise UserError(
                f"{path} has the name of {other.name} beside it; take one of the two away."
            )
    return found


def index_masks(folder: Path, *, suffixes: Sequence[str] = MASK_SUFFIXES) -> dict[str, Path]:
    """Masks in a folder by their names, see `name_of`; none where the folder is missing.

    Those of `suffixes`, of which the first ones are preferred.
    """
    if not folder.is_dir():
        return {}
    found = [path for path in listing.walk(folder) if path.suffix.lower() in suffixes]
    found.sort(key=lambda path: (suffixes.index(path.suffix.lower()), path))
    index: dict[str, Path] = {}
    for path in found:
        index.setdefault(name_of(path, folder), path)
    return index


def find_mask(name: str, masks: Mapping[str, Path]) -> Path | None:
    """The mask of a photograph, by its name with one of MASK_ENDINGS."""
    keys = (name + ending for ending in MASK_ENDINGS)
    return next((masks[key] for key in keys if key in masks), None)


def make_pairs(photographs: Mapping[str, Path], masks: Path) -> tuple[Pair, ...]:
    """Each photograph with its mask in the folder `masks`.

    A photograph without a mask gets the path `<name>.png`; reading that mask fails.
    """
    index = index_masks(masks) or index_masks(masks, suffixes=ARRAYS)
    return tuple(
        Pair(name, path, find_mask(name, index) or masks / f"{name}.png")
        for name, path in photographs.items()
    )


def fingerprint(folder: Folder, pairs: Sequence[Pair]) -> str:
    """A short hash of class names, mapping, list, paths, and files' sizes and times."""
    return _digest(folder, pairs, slice(None))


def identity(folder: Folder, pairs: Sequence[Pair]) -> str:
    """`fingerprint` without paths and times: a copy of the data set elsewhere has the same."""
    return _digest(folder, pairs, slice(1, 2))


def _digest(folder: Folder, pairs: Sequence[Pair], of_stamp: slice) -> str:
    rules = folder.mapping
    meaning = rules and (rules.of_colours, sorted(rules.classes.items()), rules.others)
    digest = hashlib.sha256(repr((folder.class_names, meaning)).encode())
    if folder.value_range is not None:
        digest.update(repr(folder.value_range).encode())
    if folder.channels is not None:
        digest.update(f"{folder.channels} channels".encode())
    for pair in pairs:
        stamps = (stamp(folder.path, pair.photograph), stamp(folder.path, pair.mask_path))
        parts = tuple(whole and whole[of_stamp] for whole in stamps)
        digest.update(repr((pair.name, parts)).encode())
    return digest.hexdigest()[:16]


def stamp(folder: Path, path: Path | None) -> tuple[str, int, int] | None:
    """Path as seen from `folder`, size in bytes (-1 where the file is missing) and time in ns."""
    if path is None:
        return None
    relative = os.path.relpath(path, folder)
    try:
        stat = path.stat()
    except OSError:
        return relative, -1, 0
    return relative, stat.st_size, stat.st_mtime_ns


def join_fingerprints(fingerprints: Mapping[str, str]) -> str:
    """One fingerprint of several splits."""
    return hashlib.sha256(repr(sorted(fingerprints.items())).encode()).hexdigest()[:16]


if not TYPE_CHECKING:  # an editor is to mark the old names
    __getattr__ = answering(
        __name__,
        {"PHOTOGRAPH_SUFFIXES": "data.photographs.SUFFIXES"},
        {"is_photograph": "data.photographs.find(paths)"},
    )
