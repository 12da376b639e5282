"""A data set as its owner keeps it: where it is, classes, splits, pairs of files, what is left out
of them; and its fingerprint."""

import contextlib
import difflib
import hashlib
import math
import os
import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from deeplab_jax.data import images, listing
from deeplab_jax.data.labels import CLASS_FILES, LabelMapping, Labels
from deeplab_jax.types import UserError

MASK_SUFFIXES = tuple(".png .tif .tiff .bmp .gif .pgm .ppm .pbm .pnm .tga .apng".split())
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


@dataclass(frozen=True)
class DrawnMask:
    """A mask that is drawn from what the file `path` says, such as outlines, by `draw(path)`."""

    path: Path
    draw: Callable[[Path], Labels]


@dataclass(frozen=True)
class GivenMask:
    """A mask that takes the place of the data set's own: class ids, whatever the others hold."""

    path: Path


@dataclass(frozen=True)
class GivenMasks:
    """Masks that take the place of those of a split, under the names of the photographs: class ids
    with 255 where nothing counts, as weak supervision makes them and predict.py writes them."""

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
    range: images.ValueRange | None = None
    """The values that become black and white in photographs of more than 8 bits a channel; with
    `channels` a pair for all of them, or one for each."""
    channels: int | None = None
    """Channels that photographs are read with, see images.py; None: as RGB."""
    masks: str | None = None
    """Which files are the masks where several may be, see layouts.py."""
    val_fraction: float | None = None
    """Part of the photographs of the only split that is kept for `val`, see `hold_out`."""
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
            f"{folder.path} has a split {split!r}; rename it without blanks and dots, not as all."
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
    if split in ("train", "val"):
        told += f"; make one, or name another with --data.{split}-split"
        if len(folder.splits) == 1:
            told += ", or divide the only split into train and val with --data.val-fraction 0.1"
    return f"{told}."


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
    index, replaced = index_masks(masks), []
    for pair in pairs:
        mask = find_mask(pair.name, index) or find_mask(pair.photograph.stem, index)
        replaced.append(replace(pair, mask=GivenMask(mask or masks / f"{pair.name}.png")))
    return tuple(replaced)


def left_out(folder: Folder, splits: Sequence[str]) -> list[str]:
    """Sentences that count and name what is not used: hidden files in lists, annotations without an
    outline and the like, files of other kinds beside photographs and masks, and pictures anywhere
    in the folder that are in no split."""
    sentences = [sentence for split in splits for sentence in folder.notes.get(split, tuple)()]
    named = [name for name in CLASS_FILES if (folder.path / name).is_file()]
    if len(named) > 1:
        sentences.append(f"{folder.path}: class names are those of {named[0]}, not {named[1]}")
    used: set[Path] = set()
    for split, read in folder.splits.items():
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
        counts = path.suffix.lower() in (*images.SUFFIXES, *images.ARRAYS, *ARCHIVES, ".mat")
        counts = counts or path.parent in known and path.name not in NOT_COUNTED
        if counts and os.path.realpath(path) not in linked:
            unused.setdefault(path.parent, []).append(path)
    if given := folder.given_masks:
        taken = {pair.mask_path for pair in read_split(folder, given.split)}
        if rest := sorted({*index_masks(given.folder).values()} - taken):
            unused[given.folder] = rest
    return sentences + [listing.describe_unused(*item) for item in unused.items()]


def name_of(path: Path, folder: Path) -> str:
    """A file's path below `folder` without suffix, in Unicode's composed form."""
    return normalise(os.path.splitext(path.relative_to(folder).as_posix())[0])


def normalise(name: str) -> str:
    """A name in Unicode's composed form (NFC); a Mac writes accents apart, lists have either."""
    return unicodedata.normalize("NFC", name)


def index_photographs(folder: Path) -> dict[str, Path]:
    """Photographs below a folder by `name_of`, sorted; see `images.among`. A UserError for no such
    folder, a link to nothing, or two of one name, of which one may be a mask."""
    if not folder.is_dir():
        raise UserError(f"{folder} is missing; the photographs belong there.")
    index: dict[str, Path] = {}
    for path in images.among(sorted(listing.walk(folder))):
        if (other := index.setdefault(name_of(path, folder), path)) != path:
            raise UserError(f"{path} has the name of {other.name} beside it; take one away.")
    return index


def index_masks(
    folder: Path, *, suffixes: Sequence[str] = MASK_SUFFIXES, end: str = ""
) -> dict[str, Path]:
    """Masks below a folder by `name_of`, none where it is missing: files of `suffixes`, or those
    whose names end in `end`, by what stands before it. A UserError for two of one name."""
    index: dict[str, Path] = {}
    for path in sorted(listing.walk(folder)) if folder.is_dir() else ():
        if path.name.endswith(end) if end else path.suffix.lower() in suffixes:
            whole = normalise(path.relative_to(folder).as_posix())
            name = whole.removesuffix(normalise(end)) if end else name_of(path, folder)
            if (other := index.setdefault(name, path)) != path:
                raise UserError(f"{other} and {path} have one name; {THEN_CHOOSE}")
    return index


def find_mask(name: str, masks: Mapping[str, Path]) -> Path | None:
    """The mask of a photograph, by its name with one of MASK_ENDINGS; a UserError for several."""
    fit = [masks[key] for ending in MASK_ENDINGS if (key := name + ending) in masks]
    if len(fit) > 1:
        raise UserError(f"{fit[0]} and {fit[1]} may be the mask of {name}; {THEN_CHOOSE}")
    return fit[0] if fit else None


def hold_out(folder: Folder, fraction: float, groups: str | None = None) -> Folder:
    """The folder with its only split divided into `train` and `val`. A UserError where it has
    several, the fraction is not between 0 and 1, or `groups` is no regular expression.

    The side of a photograph depends on its name alone, or on what `groups` matches in it (its first
    group, where it has one), so that it stays when others are added.
    """
    if len(folder.splits) != 1:
        raise UserError(
            f"{folder.path} has the splits {', '.join(folder.splits)}; leave out val_fraction "
            f"{fraction}, which divides a single split."
        )
    if not 0 < fraction < 1:
        raise UserError(f"val_fraction {fraction} must be between 0 and 1, such as 0.1.")
    try:
        pattern = re.compile(groups or "(?s).*")
    except re.error as error:
        raise UserError(f"val_groups {groups!r} is no regular expression ({error}).") from None
    (split,) = folder.splits
    read = partial(read_side, folder, split, fraction, pattern)
    return replace(
        folder,
        splits={"train": partial(read, val=False), "val": partial(read, val=True)},
        notes={"train": folder.notes[split]} if split in folder.notes else {},
    )


def read_side(
    folder: Folder, split: str, fraction: float, pattern: re.Pattern, *, val: bool
) -> tuple[Pair, ...]:
    """The photographs of a split that are trained on, or those held out, in the split's order."""
    pairs = read_split(folder, split)
    positions = [position_of(pair.name, pattern) for pair in pairs]
    least, most = min(positions), max(positions)
    if not least < fraction <= most:
        side, limit = ("train", most * 100) if most < fraction else ("val", least * 100 + 1)
        raise UserError(
            f"none of the {len(pairs)} photographs of {folder.path} falls into {side} with "
            f"val_fraction {fraction}; try {math.floor(limit) / 100}."
        )
    together = zip(pairs, positions, strict=True)
    return tuple(pair for pair, position in together if (position < fraction) == val)


def position_of(name: str, pattern: re.Pattern) -> float:
    """A number in [0, 1), spread evenly over what the pattern matches in names.

    >>> round(position_of("IMG_0001", re.compile(".*")), 4)
    0.9087
    """
    match = pattern.search(name)
    group = match and match[min(pattern.groups, 1)]
    if group is None:
        raise UserError(f"val_groups {pattern.pattern!r} matches nothing in the name {name!r}.")
    return int.from_bytes(hashlib.sha256(group.encode()).digest()[:6]) / 2**48


def fingerprint(folder: Folder, pairs: Sequence[Pair]) -> str:
    """A short hash of class names, mapping, list, paths, and files' sizes and times."""
    rules, place = folder.mapping, folder.place
    meaning = rules and (rules.of_colours, sorted(rules.classes.items()), rules.others)
    read = (folder.class_names, meaning, place.range, place.channels, folder.class_colors)
    digest = hashlib.sha256(repr(read).encode())
    for pair in pairs:
        stamps = map(stamp, filter(None, (pair.photograph, pair.mask_path)))
        digest.update(repr((pair.name, *stamps)).encode())
    return digest.hexdigest()[:16]


def stamp(path: Path) -> tuple[str | int, ...]:
    """Path, size in bytes and time in ns of a file; its path alone where it is missing."""
    with contextlib.suppress(OSError):
        stat = path.stat()
        return str(path), stat.st_size, stat.st_mtime_ns
    return (str(path),)
