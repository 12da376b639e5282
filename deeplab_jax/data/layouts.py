"""How photographs and masks may lie in a folder of one's own; README.md beside this file shows each
layout.

Looked for in this order: public data sets; COCO JSON (coco.py); VOC's lists of ids, with SBD beside
VOC 2012; tables `<split>.csv` or `<split>.txt` of photographs and masks; two folders for each
split, see IMAGES, MASKS and TAILS for their names; a folder for each split in which `x_mask.png`
lies beside `x.jpg`; the same without splits, where all are `train`. Where nothing is found and the
folder holds one other folder only, that one is taken.

Ids may have folders: `<city>/<number>`. Suffixes are those of images.py and
`folders.MASK_SUFFIXES`, in any case; a mask may have more in its name than its photograph, see
`folders.MASK_ENDINGS`. Where two folders or files may be the truth, the user is asked: `choice`,
the option --data.masks, is the name of a folder of masks or of a JSON file, or what the names of
masks end in.
"""

import contextlib
import csv
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from PIL import Image

from deeplab_jax.data import coco, folders, images, labels, listing, public
from deeplab_jax.data.folders import MASK_ENDINGS, MASK_SUFFIXES, THEN_CHOOSE, Folder, Pair, Splits
from deeplab_jax.data.images import ARRAYS, SUFFIXES
from deeplab_jax.data.listing import first_folder, folders_in, visible
from deeplab_jax.types import VOC_CLASS_NAMES, UserError

# Names of folders of photographs, and of masks.
IMAGES = ("images", "image", "imgs", "img")
MASKS = ("masks", "mask", "annotations", "labels", "label", "gt")
VOC_MASKS = ("SegmentationClass", "SegmentationClassPNG")  # the other is LabelMe's

TAILS = ("_labels", "_masks", "_mask", "_gt", "annot", "_annot")
"""What is added to the name of a split's folder in the name of the folder of its masks."""

TRUTH = re.compile("mask|label|annot|gt|truth|manual|seg|class", re.IGNORECASE)
"""Found in names of folders that may hold masks, such as `1st_manual`."""

PHOTOGRAPHS, TRUTHS = (*SUFFIXES, *ARRAYS), (*MASK_SUFFIXES, ".mat")
ENDS = (*TRUTHS, *ARRAYS)  # of a choice that is the end of files' names, not the name of a folder

ANY_PHOTO, ANY_MASK = ("|".join(map(re.escape, ends)) for ends in (PHOTOGRAPHS, TRUTHS))
TWO_PATHS = re.compile(rf"(.+(?:{ANY_PHOTO}))\s+(\S.*(?:{ANY_MASK}))", re.IGNORECASE)
"""A line of a photograph and its mask; both may have blanks."""

FOREIGN = {
    '"shapes"': "LabelMe's JSON: convert it by labelme2voc.py of LabelMe",
    "_via_": "a project of VIA: export its annotations in COCO format",
    "<annotations>": "CVAT's XML: export `Segmentation mask 1.1` or `COCO 1.0` there",
    "<annotation>": "VOC's XML, which has boxes and no masks",
}
"""Words near the beginning of other tools' JSON and XML: what these are, and what to do."""


def describe_unknown(root: Path, choice: str | None) -> str:
    """That a folder is no data set, what lies there, and what to do."""
    told = next(filter(None, map(describe_foreign, sorted(listing.walk(root)))), "")
    chosen = f" with masks named {choice}" if choice else ""
    return (
        f"{root} has no ImageSets/Segmentation/<split>.txt, no <split>.csv of photographs and "
        "masks, no images/<split> beside masks/<split>, no images beside masks and no COCO "
        f"JSON{chosen}; {told}lay the data out in one of these ways."
    )


def describe_foreign(path: Path) -> str:
    """What a file of another tool is, or that a table has other columns; "" of any other file."""
    if path.suffix.lower() == ".csv":
        return f"{path} has other columns than `photograph,mask`; "
    if path.suffix.lower() not in (".json", ".xml"):
        return ""
    with path.open("rb") as file:
        start = file.read(4096).decode(errors="replace")
    kind = next((kind for mark, kind in FOREIGN.items() if mark in start), None)
    return f"{path} is {kind}, or " if kind else ""


def find_folder(
    root: Path, outer: tuple[Path, ...] = (), *, choice: str | None = None
) -> Folder | None:
    """What the first layout that knows `root` makes of it, None where none does; class names may
    lie in `outer`, too. A UserError where `root` is no folder, or two files may be the truth."""
    if not root.is_dir():
        raise UserError(f"{root} is not a folder; give the folder that holds the data set.")
    for find in () if choice else public.FINDERS:
        if folder := find(root):
            return folder
    finders = (find_voc, find_tables, find_two_folders, find_beside, find_flat)
    by_masks = next(filter(None, (find(root, choice) for find in finders)), None)
    by_json = coco.find(root, choice) if choice is None or choice.endswith(".json") else None
    if by_json and by_masks and by_json.class_names != coco.CLASS_NAMES:
        mask, file = map(first_mask_of, (by_masks[1], by_json.splits))
        if mask:
            raise UserError(f"{root} has masks, as {mask}, and outlines in {file}; {THEN_CHOOSE}")
    if by_json:
        return by_json
    if by_masks:
        return make_folder(*by_masks, outer)
    inside = folders_in(root)
    return find_folder(inside[0], (*outer, root), choice=choice) if len(inside) == 1 else None


def first_mask_of(splits: Splits) -> Path | None:
    """The first file of a mask that is there."""
    paths = (pair.mask_path for read in splits.values() for pair in read())
    return next((path for path in paths if path and path.is_file()), None)


def make_folder(path: Path, splits: Splits, outer: tuple[Path, ...]) -> Folder:
    """A folder with its class names and mapping, see labels.py, whose files lie in the folder, in
    that of a split, or in one of the `outer` folders."""
    if is_devkit(path) and not (path / "labels.txt").is_file():
        return Folder(path, VOC_CLASS_NAMES, None, splits)
    candidates = [path, *(below for below in folders_in(path) if below.name in splits), *outer]
    names, mapping, colors = labels.read_classes(candidates)
    return Folder(path, names, mapping, splits, colors)


def find_voc(root: Path, choice: str | None) -> tuple[Path, Splits] | None:
    """The folder in VOC layout at `root`, `root/VOC2012` or `root/VOCdevkit/VOC2012`."""
    for path in (root, root / "VOC2012", root / "VOCdevkit" / "VOC2012"):
        lists = visible((path / "ImageSets" / "Segmentation").glob("*.txt"))
        splits: Splits = {file.stem: partial(read_voc_list, path, file, choice) for file in lists}
        for parent in (path, path.parent, root) if is_devkit(path) else ():
            splits |= public.sbd_splits(path, parent / "benchmark_RELEASE" / "dataset")
        if lists:
            return path, splits
    return None


def is_devkit(path: Path) -> bool:
    """Whether it is a year of VOC's development kit, not another data set in its layout."""
    return path.resolve().name.startswith("VOC20") and (path / "Annotations").is_dir()


def is_voc2012(folder: Folder) -> bool:
    """Whether it is PASCAL VOC 2012 itself, the data set of the paper's Tables 1 to 5."""
    of_2012 = folder.path.resolve().name == "VOC2012" and is_devkit(folder.path)
    return of_2012 and folder.class_names == VOC_CLASS_NAMES


def read_voc_list(folder: Path, path: Path, choice: str | None = None) -> tuple[Pair, ...]:
    """A line is an id, or a photograph and a mask as two paths, see `find_path`.

    An id may have blanks, folders, or the suffix of its photograph, or be the photograph's path;
    whether it shows a class may follow, as in VOC's lists of classes. Lines that begin with # are
    left out unless they are ids. The photographs of a list `test` without masks have no truth.
    """
    photographs = folders.index_photographs(folder / "JPEGImages")
    names = (choice,) if choice else VOC_MASKS
    holding = {name: index for name in names if (index := folders.index_masks(folder / name))}
    if len(holding) > 1:
        raise UserError(f"{folder} has masks in {' and '.join(holding)}; {THEN_CHOOSE}")
    place, masks = next(iter(holding.items()), (names[0], {}))
    pairs = []
    for line in map(folders.normalise, labels.read_lines(path)):
        name = find_id(line, photographs)
        if name is None and line[0] == "#":
            continue
        if name is None and (flagged := re.fullmatch(r"(.+?)\s+-?\d", line)):
            name = find_id(flagged[1], photographs)
        if name is None and (two := TWO_PATHS.fullmatch(line)):
            photograph, mask = (find_path(folder, field) for field in two.groups())
            pairs.append(Pair(photograph.stem, photograph, mask))
            continue
        name = name or plain_ids(line)[0]
        photograph = photographs.get(name, folder / "JPEGImages" / f"{name}.jpg")
        mask = folders.find_mask(name, masks) or folder / place / f"{name}.png"
        pairs.append(Pair(name, photograph, mask))
    paths = (pair.mask_path for pair in pairs)
    if path.stem == "test" and not any(mask and mask.is_file() for mask in paths):
        pairs = [replace(pair, mask=None) for pair in pairs]
    return name_apart(pairs, folder)


def find_id(line: str, photographs: Mapping[str, Path]) -> str | None:
    """The photograph that a line names, as an id or as a path, with or without suffix."""
    return next((name for name in (line, *plain_ids(line)) if name in photographs), None)


def plain_ids(line: str) -> tuple[str, str]:
    """What a line may mean, the likeliest first: without suffix, then without `JPEGImages/`."""
    path = line.replace("\\", "/").removeprefix("./").lstrip("/")
    if has_suffix(path, PHOTOGRAPHS):
        path = path[: path.rindex(".")]
    return path.rpartition("JPEGImages/")[2], path


def name_apart(pairs: Sequence[Pair], folder: Path) -> tuple[Pair, ...]:
    """Photographs of one file name in several folders have their paths as names."""
    counts = Counter(name for name, _ in {(pair.name, pair.photograph) for pair in pairs})
    return tuple(
        pair
        if counts[pair.name] == 1
        else replace(pair, name=os.path.relpath(pair.photograph.with_suffix(""), folder))
        for pair in pairs
    )


def find_tables(root: Path, choice: str | None) -> tuple[Path, Splits] | None:
    """The folder whose splits are lists of pairs, `<split>.csv` or `<split>.txt`."""
    splits: Splits = {}
    for path in (*visible(root.glob("*.csv")), *visible(root.glob("*.txt"))):
        with path.open(encoding="utf-8-sig", errors="replace") as file:
            if read_rows(path, [file.readline(10_000) for _ in range(2)]):
                splits[path.stem] = partial(read_table, root, path)
    return (root, splits) if splits and not choice else None


def read_rows(path: Path, lines: Sequence[str]) -> list[list[str]]:
    """The rows of a table without their title; none of a file where neither of the first two has
    the paths of a photograph and a mask, or of a photograph alone, whose mask was forgotten. A
    number before them, as pandas writes it, is left out."""
    lines = [folders.normalise(line.strip()) for line in lines if line.strip()]
    try:
        matches = map(TWO_PATHS.fullmatch, lines)
        rows = [list(match.groups()) if match else [] for match in matches]
        rows = list(csv.reader(lines)) if path.suffix == ".csv" else rows
    except csv.Error:
        return []
    if any(len(row) == 3 and row[0].strip().isdigit() for row in rows[:2]):
        rows = [row[1:] for row in rows]
    pairs = [row for row in rows[:2] if row and has_suffix(row[0], PHOTOGRAPHS)]
    truths = (*TRUTHS, *PHOTOGRAPHS)
    if not any(len(row) == 1 or len(row) == 2 and has_suffix(row[1], truths) for row in pairs):
        return []
    return rows if rows[0] in pairs else rows[1:]


def has_suffix(field: str, suffixes: Sequence[str]) -> bool:
    """Whether a text ends like the name of a file of certain kinds."""
    return field.strip().lower().endswith(tuple(suffixes))


def read_table(folder: Path, path: Path) -> tuple[Pair, ...]:
    """Lines of `photograph,mask`, or both apart by a blank; the first line may be a title."""
    pairs = []
    for number, row in enumerate(read_rows(path, labels.read_text(path).splitlines()), 1):
        if len(row) != 2:
            raise UserError(f"{path} has {len(row)} columns in row {number}, not photograph,mask.")
        photograph, mask = (find_path(folder, field.strip()) for field in row)
        pairs.append(Pair(folders.normalise(photograph.stem), photograph, mask))
    return name_apart(pairs, folder)


def find_path(folder: Path, field: str) -> Path:
    """The file that a list names, below `folder` or absolute, in any Unicode form or with \\. A
    path of another machine is looked for below `folder` without the folders it begins with:
    `/home/u/set/images/a.jpg` as `images/a.jpg`."""
    plain = field.replace("\\", "/")
    forms = (unicodedata.normalize(form, plain) for form in ("NFC", "NFD"))
    for spelling in (field, plain, *forms):
        parts = spelling.strip("/").split("/")
        below = ("/".join(parts[first:]) for first in range(max(1, len(parts) - 1)))
        for name in (spelling, *below):
            if (path := folder / name).exists():  # absolute ones stay as they are
                return path
    return folder / plain.lstrip("/")


def find_two_folders(root: Path, choice: str | None) -> tuple[Path, Splits] | None:
    """The folder whose splits have a folder each of photographs and of masks."""
    both_of: dict[str, tuple[Path, Path]] = {}
    inner = folders_in(root)
    for photographs in (root / name for name in IMAGES):
        if (below := folders_in(photographs)) and not both_of:
            masks = masks_folder(root, MASKS, photographs, choice) or root / "masks"
            both_of = {path.name: (path, masks / path.name) for path in below}
    both_of = both_of or {
        path.name: (photographs, masks)
        for path in inner
        if (photographs := first_folder(path, *IMAGES))
        and (masks := masks_folder(path, MASKS, photographs, choice))
        # Folders of equal names within both would be the splits.
        and not {p.name for p in folders_in(photographs)} & {p.name for p in folders_in(masks)}
    }
    end = choice if choice and has_suffix(choice, ENDS) else None
    tails = TAILS if end or choice is None else (choice,)
    both_of = both_of or {
        path.name: (path, masks)
        for path in inner
        if (masks := masks_folder(root, [path.name + t for t in tails], path, end, ask=False))
    }
    splits: Splits = {s: partial(read_two_folders, *both, choice) for s, both in both_of.items()}
    return (root, splits) if splits else None


def masks_folder(
    parent: Path, names: Sequence[str], photographs: Path, choice: str | None, *, ask: bool = True
) -> Path | None:
    """The one of some folders in `parent` that holds the masks, or else the first that exists; a
    UserError where another does, or with `ask` another folder beside `photographs` seems to."""
    if choice and not has_suffix(choice, ENDS):
        return first_folder(parent, choice)
    there = [parent / name for name in names if (parent / name).is_dir()]
    holding = [path for path in there if first_mask(path, choice)]
    if choice is None and holding:
        others = set(folders_in(parent) if ask else ()) - {photographs, *there}
        holding += sorted(path for path in others if seems_to_hold_masks(path))
        if len(holding) > 1:
            raise UserError(f"{holding[0]} and {holding[1]} hold masks; {THEN_CHOOSE}")
    return next(iter((*holding, *there)), None)


def first_mask(folder: Path, end: str | None = None) -> Path | None:
    """A file in the folder, or below it, with the suffix of a mask, or the end that was chosen."""
    ends = [end] if end else MASK_SUFFIXES
    return next((path for path in listing.walk(folder) if has_suffix(path.name, ends)), None)


def seems_to_hold_masks(folder: Path) -> bool:
    """Whether the first picture of a folder named so may be a mask: of a palette, or grey."""
    is_named = TRUTH.search(folder.name) and not folder.name.startswith("SegmentationObject")
    if is_named and (path := first_mask(folder)):
        with contextlib.suppress(*images.DAMAGE):
            return Image.open(path).mode in ("P", "L", "1")
    return False


def read_two_folders(photographs: Path, masks: Path, choice: str | None) -> tuple[Pair, ...]:
    """Photographs sorted by name, each with the mask of its name, or a path where none is. In a
    folder that was chosen, masks' names may differ behind the first `_`, `-`, `.` or blank."""
    end = choice if choice and has_suffix(choice, ENDS) else ""
    index = folders.index_photographs(photographs)
    truth = folders.index_masks(masks, end=end) or folders.index_masks(masks, suffixes=ARRAYS)
    starts, others = (starts_of(paths) if choice and not end else {} for paths in (index, truth))
    own = {path: start for start, path in starts.items()}
    pairs = []
    for name, path in index.items():
        mask = folders.find_mask(name, truth) or others.get(own.get(path, ""))
        pairs.append(Pair(name, path, mask or masks / f"{name}{end or '.png'}"))
    return tuple(pairs)


def starts_of(paths: Mapping[str, Path]) -> dict[str, Path]:
    """Files by the starts of their names, up to the first sign between words, where no other has
    the start and it has a digit.

    >>> starts_of({"york/21_a-b": Path("x"), "c_1": Path("y")})
    {'york/21': PosixPath('x')}
    """
    named = [(re.sub(r"[_\-. ][^/]*$", "", name), path) for name, path in paths.items()]
    counts = Counter(start for start, _ in named)
    return {start: path for start, path in named if counts[start] == 1 and re.search(r"\d", start)}


def find_beside(root: Path, choice: str | None) -> tuple[Path, Splits] | None:
    """The folder whose splits are folders in which masks lie beside photographs."""
    inner = [path for path in folders_in(root) if has_beside(path, choice)]
    return (root, {p.name: partial(read_beside, p, choice) for p in inner}) if inner else None


def find_flat(root: Path, choice: str | None) -> tuple[Path, Splits] | None:
    """The folder of photographs and masks without splits; all are in a split `train`."""
    photographs, names = first_folder(root, *IMAGES, "JPEGImages"), (*MASKS, *VOC_MASKS)
    masks = photographs and masks_folder(root, names, photographs, choice)
    if photographs and masks and not (root / "ImageSets").is_dir():
        return root, {"train": partial(read_two_folders, photographs, masks, choice)}
    beside: Splits = {"train": partial(read_beside, root, choice)}
    return (root, beside) if has_beside(root, choice) else None


def has_beside(folder: Path, choice: str | None) -> bool:
    """Whether a photograph has a mask beside it: its name, and one of MASK_ENDINGS or `choice`."""
    files = [path for path in visible(folder.iterdir()) if path.suffix]
    photographs = {path.stem for path in files if path.suffix.lower() in SUFFIXES}
    if choice:
        return any(path.name.removesuffix(choice) in photographs for path in files)
    masks = {path.stem for path in files if path.suffix.lower() in MASK_SUFFIXES}
    return any(name + ending in masks for name in photographs for ending in MASK_ENDINGS[1:])


def read_beside(folder: Path, choice: str | None) -> tuple[Pair, ...]:
    """Photographs with masks beside them, sorted by name; each needs one."""
    photographs = folders.index_photographs(folder)
    others = {name + ending for name in photographs for ending in MASK_ENDINGS[1:]}
    masks = folders.index_masks(folder, end=choice or "")
    masks = masks if choice else {name: path for name, path in masks.items() if name in others}
    taken, end = {*masks.values()}, choice or "_mask.png"
    return tuple(
        Pair(name, path, folders.find_mask(name, masks) or folder / f"{name}{end}")
        for name, path in photographs.items()
        if path not in taken and (name not in others or path.suffix.lower() not in MASK_SUFFIXES)
    )
