"""A data set as its owner keeps it: classes, splits, pairs of files; and its fingerprint."""

import difflib
import hashlib
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import UInt8

from deeplab_jax.data import listing
from deeplab_jax.data.labels import LabelMapping
from deeplab_jax.types import UserError

PHOTOGRAPH_SUFFIXES = (".jpg", ".jpeg", ".png")


@runtime_checkable
class DrawnMask(Protocol):
    """A mask that is drawn from what a file says, such as outlines."""

    path: Path

    def draw(self) -> UInt8[np.ndarray, "h w"]:
        """Class ids, 255 where nothing counts."""


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


def read_split(folder: Folder, split: str) -> tuple[Pair, ...]:
    """The photographs and masks of a split, in the order of its list."""
    if split not in folder.splits:
        close = difflib.get_close_matches(split, folder.splits, n=1)
        suggestion = f"; did you mean {close[0]!r}?" if close else "."
        if not close and split in ("train", "val"):
            suggestion = f"; make one, or name another with --data.{split}-split."
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


def index_photographs(folder: Path) -> dict[str, Path]:
    """Photographs in a folder by their paths below it without suffix, sorted.

    Hidden files are left out and links to folders followed, see listing.py.

    Raises:
      UserError: no such folder, a link to nothing, or two photographs of one name; one of them may
        be a mask.
    """
    if not folder.is_dir():
        raise UserError(f"{folder} is missing; the photographs belong there.")
    found: dict[str, Path] = {}
    for path in sorted(path for path in listing.walk(folder) if is_photograph(path)):
        other = found.setdefault(path.relative_to(folder).with_suffix("").as_posix(), path)
        if other != path:
            raise UserError(
                f"{path} has the name of {other.name} beside it; take one of the two away."
            )
    return found


def is_photograph(path: Path) -> bool:
    """By its suffix."""
    return path.suffix.lower() in PHOTOGRAPH_SUFFIXES


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
    for pair in pairs:
        stamps = (stamp(folder.path, pair.photograph), stamp(folder.path, pair.mask_path))
        parts = tuple(whole and whole[of_stamp] for whole in stamps)
        digest.update(repr((pair.name, parts)).encode())
    return digest.hexdigest()[:16]


def stamp(folder: Path, path: Path | None) -> tuple[str, int, int] | None:
    """Path as seen from `folder`, size in bytes (-1 where the file is missing) and time in ns."""
    if path is None:
        return None
    place = os.path.relpath(path, folder)
    try:
        stat = path.stat()
    except OSError:
        return place, -1, 0
    return place, stat.st_size, stat.st_mtime_ns


def join_fingerprints(fingerprints: Mapping[str, str]) -> str:
    """One fingerprint of several splits."""
    return hashlib.sha256(repr(sorted(fingerprints.items())).encode()).hexdigest()[:16]
