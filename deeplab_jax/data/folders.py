"""A data set as its owner keeps it: classes, splits, pairs of files, what is left out of them; and
its fingerprint."""

import contextlib
import difflib
import hashlib
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import UInt8

from deeplab_jax.data import listing
from deeplab_jax.data.images import ARRAYS, SUFFIXES, ValueRange
from deeplab_jax.data.labels import CLASS_FILES, LabelMapping
from deeplab_jax.types import UserError

MASK_SUFFIXES = (
    *(".png", ".tif", ".tiff", ".bmp", ".gif", ".pgm", ".ppm", ".pbm", ".pnm", ".tga", ".apng"),
)
"""Of files that are taken for masks, in lower case."""

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
class GivenMask:
    """A mask that takes the place of the data set's own: class ids, whatever the others hold."""

    path: Path
    replaced: Path | None


@dataclass(frozen=True)
class Pair:
    """A photograph and its mask, which is None where a photograph has no truth.

    The files need not exist.
    """

    name: str
    photograph: Path
    mask: Path | DrawnMask | GivenMask | None

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
    """Channels that photographs are read with, see images.py; None: as RGB."""
    given_masks: tuple[str, Path] | None = None
    """A split, and the folder whose masks replace its own; see `with_given_masks`."""
    class_colors: tuple[tuple[int, int, int], ...] | None = None
    """RGB colours of the classes in pictures, where the data set names them."""
    notes: Mapping[str, Callable[[], tuple[str, ...]]] = field(default_factory=dict)
    """Sentences about what the files of a split hold and what of it is not used."""


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
    """A split, and the folder whose masks replace its own; see `with_given_masks`."""
    channels: int | None = None
    """Channels that photographs are read with, see images.py; None: as RGB."""
    masks: str | None = None
    """Which files are the masks where several may be: the name of a folder, or the end of names."""


def read_split(folder: Folder, split: str) -> tuple[Pair, ...]:
    """The photographs and masks of a split, in the order of its list."""
    if split not in folder.splits:
        close = difflib.get_close_matches(split, folder.splits, n=1)
        suggestion = f"; did you mean {close[0]!r}?" if close else "."
        if not close and split in ("train", "val"):
            suggestion = f"; make one, or name another with --data.{split}-split."
            if len(folder.splits) == 1:
                suggestion = (
                    f"{suggestion[:-1]}, or divide the only split into train and val with "
                    "--data.val-fraction 0.1."
                )
        raise UserError(
            f"{folder.path} has no split {split!r}, it has {', '.join(folder.splits)}{suggestion}"
        )
    if split == "all" or not re.fullmatch(r"[\w-]+", split):  # TFDS reads it as an expression
        raise UserError(
            f"{folder.path} has a split {split!r}; rename it without blanks and dots, say with _, "
            "and not as all, which stands for all splits."
        )
    pairs = tuple(p for p in folder.splits[split]() if not listing.is_stray(p.photograph))
    if not pairs:
        raise UserError(f"{folder.path} has an empty split {split!r}; list photographs there.")
    return pairs


def refuse_without_truth(folder: Folder, split: str, pairs: Sequence[Pair]) -> None:
    """Raises a UserError where no photograph of a split has a mask, as in the tests of servers."""
    if all(pair.mask is None for pair in pairs):
        raise UserError(
            f"{folder.path} has no masks for the split {split}, so that nothing can be learnt from "
            "it or scored on it; name another split."
        )


def with_given_masks(folder: Folder, split: str, masks: Path) -> Folder:
    """The folder with the masks of a split taken from the folder `masks`.

    They are pictures of class ids with 255 where nothing counts, as weak supervision makes them and
    predict.py writes them, under the names of the photographs.

    Raises:
      UserError: there is no such folder.
    """
    if not masks.is_dir():
        raise UserError(f"the masks to train on should lie in {masks}, which is not a folder")

    def read() -> tuple[Pair, ...]:
        index = index_masks(masks)
        pairs = []
        for pair in read_split(folder, split):
            found = (find_mask(name, index) for name in (pair.name, pair.photograph.stem))
            path = next(filter(None, found), masks / f"{pair.name}.png")
            pairs.append(replace(pair, mask=GivenMask(path, pair.mask_path)))
        return tuple(pairs)

    return replace(folder, splits={**folder.splits, split: read}, given_masks=(split, masks))


def left_out(folder: Folder, splits: Sequence[str]) -> list[str]:
    """Sentences that count and name what is listed in some splits, or lies there, and is not used.

    These are hidden files in lists; annotations without an outline, and the like; files of other
    kinds beside photographs and masks; and pictures anywhere in the folder that are in no split.
    """
    sentences = [sentence for split in splits for sentence in folder.notes.get(split, tuple)()]
    named = [name for name in CLASS_FILES if (folder.path / name).is_file()]
    if len(named) > 1:
        sentences.append(f"{folder.path}: class names are those of {named[0]}, not {named[1]}")
    for split in splits:
        stray = [p.photograph for p in folder.splits[split]() if listing.is_stray(p.photograph)]
        if stray:
            sentences.append(f"{split} lists {len(stray)} hidden files, such as {stray[0]}")
    used: set[Path] = set()
    for read in folder.splits.values():
        with contextlib.suppress(UserError):  # told where the split is read
            for pair in read():
                given = pair.mask.replaced if isinstance(pair.mask, GivenMask) else None
                used |= {path for path in (pair.photograph, pair.mask_path, given) if path}
    known = {path.parent for path in used}
    others = sorted(set(listing.walk(folder.path)) - used)
    linked = {os.path.realpath(path) for path in used if others}  # used by another path
    unused: dict[Path, list[Path]] = {}
    for path in others:
        counts = path.suffix.lower() in (*SUFFIXES, *ARRAYS, *ARCHIVES, ".mat")
        counts = counts or path.parent in known and path.name not in NOT_COUNTED
        if counts and os.path.realpath(path) not in linked:
            unused.setdefault(path.parent, []).append(path)
    if folder.given_masks is not None:
        masks = set(index_masks(folder.given_masks[1]).values()) - used
        unused |= {folder.given_masks[1]: sorted(masks)} if masks else {}
    return sentences + [listing.describe_unused(*item) for item in unused.items()]


ARCHIVES = (".zip", ".tar", ".tgz", ".gz", ".bz2", ".xz", ".rar", ".7z")

NOT_COUNTED = (*CLASS_FILES, "mapping.txt", "README.txt", "README.md")
"""Files beside photographs that `left_out` does not count."""


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
    return normalise(os.path.splitext(path.relative_to(folder).as_posix())[0])


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


def index_masks(
    folder: Path, *, suffixes: Sequence[str] = MASK_SUFFIXES, end: str = ""
) -> dict[str, Path]:
    """Masks in a folder by their names, see `name_of`; none where the folder is missing.

    Those of `suffixes`; or those whose file names end in `end`, by what stands before it.

    Raises:
      UserError: two have one name.
    """
    if not folder.is_dir():
        return {}
    index: dict[str, Path] = {}
    for path in sorted(listing.walk(folder)):
        if path.name.endswith(end) if end else path.suffix.lower() in suffixes:
            whole = normalise(path.relative_to(folder).as_posix())
            name = whole.removesuffix(normalise(end)) if end else name_of(path, folder)
            other = index.setdefault(name, path)
            if other != path:
                raise UserError(f"{other} and {path} have one name; {THEN_CHOOSE}")
    return index


THEN_CHOOSE = (
    "say which it is: --data.masks with the name of a folder of masks or of a JSON file, or with "
    "the end of the masks' names, such as _gt.png."
)


def find_mask(name: str, masks: Mapping[str, Path]) -> Path | None:
    """The mask of a photograph, by its name with one of MASK_ENDINGS.

    Raises:
      UserError: there are several.
    """
    found = [masks[key] for ending in MASK_ENDINGS if (key := name + ending) in masks]
    if len(found) > 1:
        raise UserError(f"{found[0]} and {found[1]} may be the mask of {name}; {THEN_CHOOSE}")
    return found[0] if found else None


def make_pairs(
    photographs: Mapping[str, Path], masks: Path, *, end: str = "", by_start: bool = False
) -> tuple[Pair, ...]:
    """Each photograph with its mask in the folder `masks`, of those that end in `end`.

    With `by_start` names may differ behind the first `_`, `-`, `.` or blank where that is clear. A
    photograph without a mask gets the path `<name>.png`; reading that mask fails.
    """
    index = index_masks(masks, end=end) or index_masks(masks, suffixes=ARRAYS)
    starts = starts_of(index)
    own = starts_of(photographs) if by_start else {}
    pairs = []
    for name, path in photographs.items():
        mask = find_mask(name, index)
        if mask is None and own.get(start_of(name)) == path:
            mask = starts.get(start_of(name))
        pairs.append(Pair(name, path, mask or masks / f"{name}{end or '.png'}"))
    return tuple(pairs)


def start_of(name: str) -> str:
    """A name up to the first sign between its words.

    >>> start_of("21_training"), start_of("york/a-b")
    ('21', 'york/a')
    """
    folder, slash, last = name.rpartition("/")
    return folder + slash + re.split(r"[_\-. ]", last, maxsplit=1)[0]


def starts_of(paths: Mapping[str, Path]) -> dict[str, Path]:
    """The files by the starts of their names, of those whose start no other has; it has a digit."""
    starts = [start_of(name) for name in paths]
    own = {start for start, n in Counter(starts).items() if n == 1 and re.search(r"\d", start)}
    return {start: p for start, p in zip(starts, paths.values(), strict=True) if start in own}


def fingerprint(folder: Folder, pairs: Sequence[Pair]) -> str:
    """A short hash of class names, mapping, list, paths, and files' sizes and times."""
    rules = folder.mapping
    meaning = rules and (rules.of_colours, sorted(rules.classes.items()), rules.others)
    read = (folder.value_range, folder.channels, folder.class_colors)
    digest = hashlib.sha256(repr((folder.class_names, meaning, read)).encode())
    for pair in pairs:
        stamps = (stamp(folder.path, pair.photograph), stamp(folder.path, pair.mask_path))
        digest.update(repr((pair.name, stamps)).encode())
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
