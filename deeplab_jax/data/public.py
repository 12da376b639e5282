"""Data sets as their owners distribute them, unpacked: SBD beside VOC, SegNet's CamVid, Cityscapes,
PASCAL-Context, PASCAL-Person-Part, COCO-Stuff, GTA5, SYNTHIA; coco.py has COCO itself.

Each finder looks for the files that only its data set has and returns None where they are not.
"""

import re
from collections.abc import Iterable, Set
from functools import partial
from pathlib import Path

import numpy as np

from deeplab_jax.data import coco, images, labels
from deeplab_jax.data.folders import DrawnMask, Folder, Pair, Splits
from deeplab_jax.data.labels import LabelMapping, Labels
from deeplab_jax.data.listing import first_folder, folders_in, visible
from deeplab_jax.data.masks import PERSON_PART_NAMES
from deeplab_jax.types import IGNORE_LABEL, UserError

CITYSCAPES_NAMES = tuple(
    "road, sidewalk, building, wall, fence, pole, traffic light, traffic sign, vegetation, "
    "terrain, sky, person, rider, car, truck, bus, train, motorcycle, bicycle".split(", ")
)
CITYSCAPES_IDS = (7, 8, 11, 12, 13, 17, *range(19, 29), 31, 32, 33)
CITYSCAPES = dict(zip(CITYSCAPES_IDS, CITYSCAPES_NAMES, strict=True))
"""Raw ids of the 19 classes that are trained and scored; all others are void."""

CITYSCAPES_CATEGORIES = {
    "flat": ("road", "sidewalk"),
    "construction": ("building", "wall", "fence"),
    "object": ("pole", "traffic light", "traffic sign"),
    "nature": ("vegetation", "terrain"),
    "sky": ("sky",),
    "human": ("person", "rider"),
    "vehicle": ("car", "truck", "bus", "train", "motorcycle", "bicycle"),
}
"""The groups whose IoU the benchmark reports beside that of the classes."""

SYNTHIA = (3, 4, 2, 21, 5, 7, 15, 9, 6, 16, 1, 10, 17, 8, 18, 19, 20, 12, 11)
"""Raw ids of the 19 classes of Cityscapes. Its 16 leave out terrain, truck and train, its 13 wall,
fence and pole too."""

CAMVID = (
    "Sky 808080, Building 800000, Pole C0C080, Road 804080, Pavement 3C28DE, Tree 808000, "
    "SignSymbol C08080, Fence 404080, Car 400080, Pedestrian 404000, Bicyclist 0080C0"
)
"""The 11 classes of SegNet's CamVid in the order of their ids, with its colours; 11 is void."""

CAMVID_SEQUENCES = re.compile("/(0001TP|0006R0|0016E5|Seq05VD)_")  # in paths of photographs

CONTEXT_SPELLINGS = {"diningtable": "table", "bedcloth": "bedclothes", "clothes": "cloth"}
"""Names in `59_labels.txt` that `labels.txt` has in another form."""


def of_ids(path: Path, ids: Iterable[int]) -> LabelMapping:
    """The mapping of masks in which the classes 0, 1, ... have these raw ids; others are void."""
    return LabelMapping(path, False, {raw: label for label, raw in enumerate(ids)}, IGNORE_LABEL)


def pairs_of(ids: Iterable[str], photographs: Path, masks: Path) -> tuple[Pair, ...]:
    """The photographs of these names as JPEG, each with its .mat."""
    return tuple(Pair(name, photographs / f"{name}.jpg", masks / f"{name}.mat") for name in ids)


def read_list(path: Path, photographs: Path, masks: Path) -> tuple[Pair, ...]:
    """The pairs of the names in a list."""
    return pairs_of(read_ids(path), photographs, masks)


def read_lines(path: Path) -> list[str]:
    """The lines of a file that belongs to the data set."""
    if not path.is_file():
        raise UserError(f"{path} is missing; it comes with the data set.")
    return labels.read_lines(path)


def read_ids(path: Path) -> list[str]:
    """The first word of each line, or the name of the file that it is a path of."""
    return [Path(line.split()[0]).stem for line in read_lines(path)]


def read_numbered(path: Path) -> dict[int, str]:
    """Lines of `number: name`."""
    lines = [line.partition(":") for line in read_lines(path)]
    if not all(number.strip().isdigit() and name.strip() for number, _, name in lines):
        raise UserError(f"{path} has a line that is not `number: name`.")
    return {int(number): name.strip() for number, _, name in lines}


def sbd_splits(voc: Path, sbd: Path) -> Splits:
    """`train_aug` = (VOC train + all of SBD) - VOC val and `trainval_aug`, which has VOC val as
    well, where SBD's folder exists. A photograph that has a mask of VOC's own keeps that one."""
    if not (sbd / "cls").is_dir():
        return {}
    names = {"train_aug": False, "trainval_aug": True}
    return {name: partial(read_augmented, voc, sbd, with_val) for name, with_val in names.items()}


def read_augmented(voc: Path, sbd: Path, with_val: bool) -> tuple[Pair, ...]:
    """VOC train and SBD, without VOC val or with it."""
    lists = voc / "ImageSets" / "Segmentation"
    train, val = (set(read_ids(lists / f"{split}.txt")) for split in ("train", "val"))
    masks = {path.stem: path for path in visible((sbd / "cls").glob("*.mat"))}
    ids = augmented_ids(train, val, masks.keys()) | (val if with_val else set())
    masks |= {name: voc / "SegmentationClass" / f"{name}.png" for name in train | val}
    photographs = voc / "JPEGImages"
    return tuple(Pair(name, photographs / f"{name}.jpg", masks[name]) for name in sorted(ids))


def augmented_ids(train: set[str], val: set[str], extra: Set[str]) -> set[str]:
    """The ids of train_aug.

    >>> sorted(augmented_ids({"a"}, {"b"}, {"a", "b", "c"}))
    ['a', 'c']
    """
    return (train | extra) - val


def find_segnet_camvid(root: Path) -> Folder | None:
    """CamVid as SegNet's repository lays it out, in `root` or its folder CamVid: `<split>.txt` with
    the paths of photographs and masks, below `/SegNet/CamVid`, of `<split>` and `<split>annot`."""
    for path in (root, root / "CamVid"):
        lists = [p for p in visible(path.glob("*.txt")) if (path / f"{p.stem}annot").is_dir()]
        is_camvid = any(CAMVID_SEQUENCES.search(labels.read_text(file)) for file in lists)
        if is_camvid and not labels.has_class_file(path):
            ids = {i: i for i in range(11)} | {11: IGNORE_LABEL, 255: IGNORE_LABEL}
            splits: Splits = {file.stem: partial(read_segnet_list, path, file) for file in lists}
            names, colours = zip(*map(str.split, CAMVID.split(", ")), strict=True)
            colours = tuple(labels.unpack(int(colour, 16)) for colour in colours)
            return Folder(path, names, LabelMapping(path, False, ids, None), splits, colours)
    return None


def read_segnet_list(folder: Path, path: Path) -> tuple[Pair, ...]:
    """Lines of two paths, of which the last two parts lie below `folder`."""
    lines = [line.split() for line in labels.read_lines(path)]
    if not all(len(line) == 2 for line in lines):
        raise UserError(f"{path} must have the paths of a photograph and its mask in each line.")
    both = ([folder.joinpath(*Path(name).parts[-2:]) for name in line] for line in lines)
    return tuple(Pair(photograph.stem, photograph, mask) for photograph, mask in both)


def find_cityscapes(root: Path) -> Folder | None:
    """`leftImg8bit/<split>/<city>/*_leftImg8bit.png` and `gtFine/<split>/<city>/*_labelIds.png`;
    coarse masks of train_extra in `gtCoarse`. train_with_coarse has train and train_extra."""
    there = folders_in(root / "leftImg8bit")
    if not there or not (root / "gtFine").is_dir():
        return None
    splits: Splits = {path.name: partial(read_cityscapes, root, path) for path in there}
    if {"train", "train_extra"} <= splits.keys():
        both = root / "leftImg8bit/train", root / "leftImg8bit/train_extra"
        splits["train_with_coarse"] = partial(read_cityscapes, root, *both)
    return Folder(root, CITYSCAPES_NAMES, of_ids(root, CITYSCAPES), splits)


def read_cityscapes(root: Path, *folders: Path) -> tuple[Pair, ...]:
    """Photographs sorted by city and name; those of `test` have no truth."""
    pairs = []
    for split in folders:
        kind = "gtCoarse" if split.name == "train_extra" else "gtFine"
        for path in visible(split.glob("*/*_leftImg8bit.png")):
            name = path.name.removesuffix("_leftImg8bit.png")
            mask = root / kind / split.name / path.parent.name / f"{name}_{kind}_labelIds.png"
            pairs.append(Pair(name, path, None if split.name == "test" else mask))
    return tuple(pairs)


def find_voc2010(root: Path) -> Path | None:
    """The VOC 2010 devkit, whose photographs Context and Person-Part label."""
    places = (root, root / "VOC2010", root / "VOCdevkit" / "VOC2010")
    return next((p for p in places if (p / "ImageSets" / "Main" / "train.txt").is_file()), None)


def find_context(root: Path) -> Folder | None:
    """`trainval/<id>.mat`, `labels.txt` (raw classes) and `59_labels.txt` beside VOC 2010, whose
    lists of all photographs are the splits."""
    devkit, masks, names = find_voc2010(root), root / "trainval", root / "59_labels.txt"
    if devkit is None or not visible(masks.glob("*.mat")):
        return None
    wanted = tuple(read_numbered(names).values())
    raw = {name: number for number, name in read_numbered(root / "labels.txt").items()}
    known = {name: raw.get(name) or raw.get(CONTEXT_SPELLINGS.get(name, "")) for name in wanted}
    if unknown := [name for name, number in known.items() if number is None]:
        raise UserError(f"{root / 'labels.txt'} lacks {unknown[0]!r}, which {names} has.")
    classes = {number: i for i, number in enumerate(known.values(), 1) if number is not None}
    lists, photographs = devkit / "ImageSets" / "Main", devkit / "JPEGImages"
    splits: Splits = {
        s: partial(read_list, lists / f"{s}.txt", photographs, masks) for s in ("train", "val")
    }
    return Folder(root, ("background", *wanted), LabelMapping(names, False, classes, 0), splits)


def find_person_part(root: Path) -> Folder | None:
    """`Annotations_Part/<id>.mat` beside VOC 2010, its photographs with people: by the authors'
    `pascal_person_part_trainval_list` where it is there, else by VOC 2010's lists of persons."""
    devkit = find_voc2010(root)
    masks = first_folder(root, "Annotations_Part", "trainval/Annotations_Part")
    if devkit is None or masks is None:
        return None
    splits: Splits = {s: partial(read_people, root, devkit, masks, s) for s in ("train", "val")}
    return Folder(root, PERSON_PART_NAMES, None, splits)


def read_people(root: Path, devkit: Path, masks: Path, split: str) -> tuple[Pair, ...]:
    """The photographs of a split, as `find_person_part` says."""
    name = "pascal_person_part_trainval_list"
    own = first_folder(root, name, f"pascal_person_part/{name}")
    if own is not None:
        return read_list(own / f"{split}.txt", devkit / "JPEGImages", masks)
    lines = map(str.split, read_lines(devkit / "ImageSets" / "Main" / f"person_{split}.txt"))
    ids = [name for name, shows in lines if shows != "-1"]  # 1: shown, 0: hard to see
    there = [name for name in ids if (masks / f"{name}.mat").is_file()]
    return pairs_of(there, devkit / "JPEGImages", masks)


def find_coco_stuff(root: Path) -> Folder | None:
    """The 164k photographs of 2017 with maps in `stuffthingmaps_trainval2017` or `annotations`, or
    the 10k of 2014; `labels.txt` or `cocostuff-labels.txt` has `id: name`, 0 for no label."""
    maps = first_folder(root, "stuffthingmaps_trainval2017", "annotations")
    if maps is None:
        return None
    of_2017 = [split for split in ("train", "val") if (maps / f"{split}2017").is_dir()]
    lists = visible((root / "imageLists").glob("*.txt"))
    if not of_2017 and not lists:
        return None
    path = root / "cocostuff-labels.txt"
    numbered = read_numbered(path if path.is_file() else root / "labels.txt")
    names = tuple(name for number, name in sorted(numbered.items()) if number > 0)
    if of_2017:
        splits: Splits = {split: partial(read_stuff_maps, root, maps, split) for split in of_2017}
        return Folder(root, names, None, splits)
    splits = {list_.stem: partial(read_list, list_, root / "images", maps) for list_ in lists}
    classes = {0: IGNORE_LABEL, **{i + 1: i for i in range(len(names))}}
    return Folder(root, names, LabelMapping(path, False, classes, None), splits)


def read_stuff_maps(root: Path, maps: Path, split: str) -> tuple[Pair, ...]:
    """The photographs of a split of COCO with COCO-Stuff's maps of the same names."""
    index, masks = coco.find_photographs(root, split), maps / f"{split}2017"
    return tuple(Pair(name, path, masks / f"{name}.png") for name, path in index.items())


def find_gta5(root: Path) -> Folder | None:
    """`images/<5 digits>.png` and `labels/<the same>.png` without class names; Cityscapes' ids."""
    photographs, masks = root / "images", root / "labels"
    names = [path.name for path in visible(photographs.glob("*"))]
    are_numbers = names and all(re.fullmatch(r"\d{5}\.png", name) for name in names)
    if labels.has_class_file(root) or not masks.is_dir() or not are_numbers:
        return None
    pairs = tuple(Pair(name[:-4], photographs / name, masks / name) for name in names)
    mapping = of_ids(masks, CITYSCAPES)
    return Folder(root, CITYSCAPES_NAMES, mapping, {"train": lambda: pairs})


def find_synthia(root: Path) -> Folder | None:
    """`RGB/*.png` and `GT/LABELS/*.png`, in `root` or its folder RAND_CITYSCAPES."""
    for path in (root, root / "RAND_CITYSCAPES"):
        photographs, masks = visible((path / "RGB").glob("*.png")), path / "GT" / "LABELS"
        if photographs and masks.is_dir():
            pairs = [Pair(p.stem, p, DrawnMask(masks / p.name, read_synthia)) for p in photographs]
            return Folder(path, CITYSCAPES_NAMES, None, {"train": partial(tuple, pairs)})
    return None


def read_synthia(path: Path) -> Labels:
    """Class ids of Cityscapes; red of the 16-bit PNG holds SYNTHIA's, green the instance."""
    values = images.read_values(path, channels=3)[..., 0]
    return of_ids(path, SYNTHIA).decode(path, values.astype(np.int32))


FINDERS = (
    *(find_cityscapes, find_context, find_person_part, find_coco_stuff),
    *(find_gta5, find_synthia, find_segnet_camvid),
)
