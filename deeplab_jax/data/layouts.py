"""How photographs and masks may lie in a folder of one's own, in the order they are looked for.

- COCO JSON of the names that CVAT, Roboflow and COCO itself use, see coco.py.
- VOC: `ImageSets/Segmentation/<split>.txt` lists ids, one a line, of `JPEGImages/<id>.jpg` and
  `SegmentationClass/<id>.png`; VOC2012 itself, with SBD beside it where that is; CVAT's
  `Segmentation mask 1.1`.
- Tables: `<split>.csv` with a line `photograph,mask` of paths for each pair. A csv that lists
  anything else is left alone.
- COCO JSON of any name, where there is no file of class names.
- Two folders for each split: `images/<split>` and `masks/<split>`, `<split>/images` and
  `<split>/masks`, or `<split>` and `<split>_labels`; see IMAGES, MASKS and TAILS for other names.
- One folder for each split, in which `x_mask.png` lies beside `x.jpg`, as Roboflow exports.
- Flat: `images` and `masks`, or `x_mask.png` beside `x.jpg`, without splits: one split `train`,
  from which `val_fraction` takes a part for `val`.

Ids and names may have folders: `<city>/<number>`. Photographs have the suffixes of photographs.py,
masks those of `folders.MASK_SUFFIXES`, in any case. A mask may have more in its name than its
photograph, see `folders.MASK_ENDINGS`. labels.py tells of class names and mappings. Where nothing
is found and the folder holds one other folder only, that one is taken.
"""

import csv
import os
import re
import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from deeplab_jax.data import benchmarks, coco, holdout, labels, listing, synthetic
from deeplab_jax.data.folders import (
    MASK_ENDINGS,
    MASK_SUFFIXES,
    Folder,
    Pair,
    Reading,
    find_mask,
    index_masks,
    index_photographs,
    make_pairs,
    normalise,
)
from deeplab_jax.data.listing import visible
from deeplab_jax.data.photographs import ARRAYS, SUFFIXES
from deeplab_jax.types import VOC_CLASS_NAMES, UserError

IMAGES = ("images", "image", "imgs", "img")
"""Names of folders of photographs."""

MASKS = ("masks", "mask", "annotations", "labels", "label", "gt")
"""Names of folders of masks."""

VOC_MASKS = ("SegmentationClassPNG", "SegmentationClass")
"""Names of the folders of masks in LabelMe's export to VOC, which has no lists."""

TAILS = ("_labels", "_masks", "_mask", "_gt", "annot", "_annot")
"""What is added to the name of a split's folder in the name of the folder of its masks."""

Splits = dict[str, Callable[[], tuple[Pair, ...]]]


def open_folder(root: Path, reading: Reading | None = None) -> Folder:
    """The data set at `root`: a known benchmark, or a folder in one of the layouts."""
    folder = find_folder(root)
    if folder is None:
        raise UserError(
            f"{root} has no ImageSets/Segmentation/<split>.txt, no <split>.csv of photographs and "
            "masks, no images/<split> beside masks/<split>, no images beside masks and no COCO "
            "JSON; lay the data out in one of these ways."
        )
    return folder if reading is None else apply(folder, reading)


def apply(folder: Folder, reading: Reading) -> Folder:
    """The folder with the options of `reading`."""
    if reading.val_fraction is not None:
        folder = holdout.hold_out(folder, reading.val_fraction, groups=reading.val_groups)
    return replace(folder, value_range=reading.range, channels=reading.channels)


def find_folder(root: Path, outer: tuple[Path, ...] = ()) -> Folder | None:
    """What the first layout that knows `root` makes of it, None where none does.

    Class names may lie in one of the `outer` folders, too.

    Raises:
      UserError: `root` is no folder.
    """
    if not root.is_dir():
        raise UserError(f"{root} is not a folder; give the folder that holds the data set.")
    for find_known in (*benchmarks.FINDERS, *synthetic.FINDERS, coco.find_coco):
        if folder := find_known(root):
            return folder
    for find in (find_voc, find_tables):
        if folder := find(root, outer):
            return folder
    if not labels.has_class_file(root) and (folder := coco.find_any_json(root)):
        return folder
    for find in (find_two_folders, find_beside, find_flat):
        if folder := find(root, outer):
            return folder
    inside = [path for path in visible(root.iterdir()) if path.is_dir()]
    return find_folder(inside[0], (*outer, root)) if len(inside) == 1 else None


def find_voc(root: Path, outer: tuple[Path, ...] = ()) -> Folder | None:
    """The folder in VOC layout at `root`, `root/VOC2012` or `root/VOCdevkit/VOC2012`."""
    for path in (root, root / "VOC2012", root / "VOCdevkit" / "VOC2012"):
        lists = visible((path / "ImageSets" / "Segmentation").glob("*.txt"))
        if not lists:
            continue
        splits: Splits = {file.stem: partial(read_voc_list, path, file) for file in lists}
        if is_devkit(path):
            for parent in dict.fromkeys((path, path.parent, root)):
                splits.update(benchmarks.sbd_splits(path, parent / "benchmark_RELEASE" / "dataset"))
        if is_devkit(path) and not (path / "labels.txt").is_file():
            return Folder(path, VOC_CLASS_NAMES, None, splits)
        return make_folder(path, splits, outer)
    return None


def is_devkit(path: Path) -> bool:
    """Whether it is a year of VOC's development kit, not another data set in its layout."""
    return path.resolve().name.startswith("VOC20") and (path / "Annotations").is_dir()


def is_voc2012(folder: Folder) -> bool:
    """Whether it is PASCAL VOC 2012 itself, the data set of the paper's Tables 1 to 5."""
    of_2012 = folder.path.resolve().name == "VOC2012" and is_devkit(folder.path)
    return of_2012 and folder.class_names == VOC_CLASS_NAMES


def find_tables(root: Path, outer: tuple[Path, ...] = ()) -> Folder | None:
    """The folder whose splits are tables of pairs, `<split>.csv`."""
    tables = [path for path in visible(root.glob("*.csv")) if is_table(path)]
    splits = {file.stem: partial(read_table, root, file) for file in tables}
    return make_folder(root, splits, outer) if splits else None


def is_table(path: Path) -> bool:
    """Whether one of the first two lines has paths of a photograph and a mask, or of a photograph
    alone, whose mask was forgotten."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            lines = [file.readline(10_000) for _ in range(2)]
        rows = [row for row in csv.reader(lines) if row]
    except (UnicodeDecodeError, csv.Error):
        return False
    return any(
        has_suffix(row[0], (*SUFFIXES, *ARRAYS))
        and (
            len(row) == 1
            or len(row) == 2
            and has_suffix(row[1], (*MASK_SUFFIXES, ".mat", *SUFFIXES, *ARRAYS))
        )
        for row in rows
    )


def has_suffix(field: str, suffixes: Sequence[str]) -> bool:
    """Whether a text ends like the name of a file of certain kinds."""
    return field.strip().lower().endswith(tuple(suffixes))


def find_two_folders(root: Path, outer: tuple[Path, ...] = ()) -> Folder | None:
    """The folder whose splits have a folder of photographs and one of masks each."""
    splits = {split: partial(read_two_folders, *pair) for split, pair in two_folders(root).items()}
    return make_folder(root, splits, outer) if splits else None


def two_folders(root: Path) -> dict[str, tuple[Path, Path]]:
    """Folders of photographs and of masks by split, in the first arrangement that is there."""
    inner = [path for path in visible(root.iterdir()) if path.is_dir()]
    for name in IMAGES:
        below = [path for path in visible((root / name).glob("*")) if path.is_dir()]
        if below:
            masks = masks_folder(root, MASKS) or root / "masks"
            return {path.name: (path, masks / path.name) for path in below}
    within = {
        path.name: (images, masks)
        for path in inner
        if (images := first_folder(path, IMAGES))
        and (masks := masks_folder(path, MASKS))
        and not share_folders(images, masks)
    }
    if within:
        return within
    return {
        path.name: (path, masks)
        for path in inner
        if (masks := masks_folder(root, [path.name + tail for tail in TAILS]))
    }


def share_folders(images: Path, masks: Path) -> bool:
    """Whether two folders have subfolders of equal names, which are then the splits."""
    inner = ({path.name for path in visible(p.iterdir()) if path.is_dir()} for p in (images, masks))
    return bool(set.intersection(*inner))


def first_folder(parent: Path, names: Sequence[str]) -> Path | None:
    """The first of some folders in `parent` that exists."""
    return next((parent / name for name in names if (parent / name).is_dir()), None)


def masks_folder(parent: Path, names: Sequence[str]) -> Path | None:
    """The first of some folders in `parent` that holds masks, or else the first that exists."""
    there = [parent / name for name in names if (parent / name).is_dir()]
    return next((path for path in there if holds_masks(path)), there[0] if there else None)


def holds_masks(folder: Path) -> bool:
    """Whether a file in the folder, or below it, has the suffix of a mask."""
    return any(path.suffix.lower() in MASK_SUFFIXES for path in listing.walk(folder))


def find_beside(root: Path, outer: tuple[Path, ...] = ()) -> Folder | None:
    """The folder whose splits are folders in which masks lie beside photographs."""
    inner = [path for path in visible(root.iterdir()) if path.is_dir()]
    splits: Splits = {path.name: partial(read_beside, path) for path in inner if has_beside(path)}
    return make_folder(root, splits, outer) if splits else None


def find_flat(root: Path, outer: tuple[Path, ...] = ()) -> Folder | None:
    """The folder of photographs and masks without splits; all are in a split `train`."""
    images = first_folder(root, (*IMAGES, "JPEGImages"))
    masks = masks_folder(root, (*MASKS, *VOC_MASKS))
    if images and masks and not (root / "ImageSets").is_dir():
        splits: Splits = {"train": partial(read_two_folders, images, masks)}
    elif has_beside(root):
        splits = {"train": partial(read_beside, root)}
    else:
        return None
    return make_folder(root, splits, outer)


def has_beside(folder: Path) -> bool:
    """Whether a photograph has a mask beside it, of its name with one of MASK_ENDINGS."""
    files = [path for path in visible(folder.iterdir()) if path.suffix]
    photographs = {path.stem for path in files if path.suffix.lower() in SUFFIXES}
    masks = {path.stem for path in files if path.suffix.lower() in MASK_SUFFIXES}
    endings = MASK_ENDINGS[1:]  # without the empty one
    return any(name + ending in masks for name in photographs for ending in endings)


def make_folder(path: Path, splits: Splits, outer: tuple[Path, ...]) -> Folder:
    """A folder with its class names and its mapping, see labels.py.

    Their files lie in the folder, in that of a split, or in one of the `outer` folders.
    """
    inner = [below for below in visible(path.iterdir()) if below.is_dir() and below.name in splits]
    candidates = [path, *inner, *outer]
    names, mapping = labels.read_classes(candidates)
    colors = labels.read_class_colors(candidates, names, mapping)
    return Folder(path, names, mapping, splits, class_colors=colors)


def read_voc_list(folder: Path, path: Path) -> tuple[Pair, ...]:
    """A line is an id, or a photograph and a mask as two paths below `folder`.

    An id may have blanks, folders, or the suffix of its photograph, or be the photograph's path;
    \\ stands for / where no photograph has it in its name. Lines that begin with # are left out
    unless they are ids. The photographs of a list `test` have no truth where none of them has a
    mask.
    """
    photographs = index_photographs(folder / "JPEGImages")
    masks = next(
        (found for name in reversed(VOC_MASKS) if (found := index_masks(folder / name))),
        {},
    )
    lines = [normalise(line.strip()) for line in labels.read_text(path).splitlines()]
    lines = [line for line in lines if line and (line[0] != "#" or find_id(line, photographs))]
    pairs = name_apart([make_voc_pair(folder, line, photographs, masks) for line in lines], folder)
    paths = (pair.mask_path for pair in pairs)
    if path.stem == "test" and not any(mask and mask.is_file() for mask in paths):
        return tuple(Pair(pair.name, pair.photograph, None) for pair in pairs)
    return pairs


TWO_PATHS = re.compile(
    "(.+(?:{}))\\s+(\\S.*(?:{}))".format(
        *(
            "|".join(map(re.escape, suffixes))
            for suffixes in ((*SUFFIXES, *ARRAYS), (*MASK_SUFFIXES, ".mat"))
        )
    ),
    re.IGNORECASE,
)
"""A line of a photograph and its mask; both may have blanks."""

FLAGGED = re.compile(r"(.+?)\s+-?\d")
"""A line of an id and whether it shows a class, as VOC's lists of classes have."""


def make_voc_pair(
    folder: Path, line: str, photographs: Mapping[str, Path], masks: Mapping[str, Path]
) -> Pair:
    """The pair of one line of a list, see `read_voc_list`; its files need not be there."""
    name = find_id(line, photographs)
    if name is None and (two := TWO_PATHS.fullmatch(line)):
        photograph, mask = (folder / forward(field).lstrip("/") for field in two.groups())
        return Pair(photograph.stem, photograph, mask)
    if name is None and (flagged := FLAGGED.fullmatch(line)):
        name = find_id(flagged[1], photographs)
    if name is None:
        name = next(plain_ids(line))
    photograph = photographs.get(name, folder / "JPEGImages" / f"{name}.jpg")
    mask = find_mask(name, masks) or folder / "SegmentationClass" / f"{name}.png"
    return Pair(name, photograph, mask)


def find_id(line: str, photographs: Mapping[str, Path]) -> str | None:
    """The photograph that a line names, as an id or as a path, with or without suffix."""
    return next((name for name in (line, *plain_ids(line)) if name in photographs), None)


def plain_ids(line: str) -> Iterator[str]:
    """What a line may mean, the likeliest first: without suffix, then without `JPEGImages/`."""
    path = forward(line).removeprefix("./").lstrip("/")
    if has_suffix(path, (*SUFFIXES, *ARRAYS)):
        path = path[: path.rindex(".")]
    yield path.rpartition("JPEGImages/")[2]
    yield path


def forward(path: str) -> str:
    """A path with / where Windows writes \\."""
    return path.replace("\\", "/")


def name_apart(pairs: Sequence[Pair], folder: Path) -> tuple[Pair, ...]:
    """Photographs of one file name in several folders have their paths as names."""
    paths: dict[str, set[Path]] = {}
    for pair in pairs:
        paths.setdefault(pair.name, set()).add(pair.photograph)
    return tuple(
        pair
        if len(paths[pair.name]) == 1
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
        photograph, mask = (find_path(folder, field.strip()) for field in row)
        if number > 1 or has_suffix(row[0], (*SUFFIXES, *ARRAYS)):
            pairs.append(Pair(normalise(photograph.stem), photograph, mask))
    return name_apart(pairs, folder)


def find_path(folder: Path, field: str) -> Path:
    """The file that a table names, whose name may be written in another Unicode form or with \\."""
    spellings = [field, forward(field)]
    spellings += [unicodedata.normalize(form, forward(field)) for form in ("NFC", "NFD")]
    paths = [folder / spelling for spelling in spellings]
    return next((path for path in paths if path.exists()), paths[1])


def read_two_folders(images: Path, masks: Path) -> tuple[Pair, ...]:
    """Photographs sorted by name; each needs a mask of its name."""
    return make_pairs(index_photographs(images), masks)


def read_beside(folder: Path) -> tuple[Pair, ...]:
    """Photographs with masks beside them, sorted by name; each needs one."""
    found = index_photographs(folder)
    others = (name + ending for name in found for ending in MASK_ENDINGS[1:])
    names = {name for name in others if name in found}
    masks = {n: found[n] for n in names if found[n].suffix.lower() in MASK_SUFFIXES}
    for name, path in index_masks(folder).items():  # those of which no photograph has the suffix
        if path.suffix.lower() not in SUFFIXES:
            masks.setdefault(name, path)
    return tuple(
        Pair(name, path, find_mask(name, masks) or folder / f"{name}_mask.png")
        for name, path in found.items()
        if name not in masks
    )
