"""Data sets as their owners distribute them, unpacked: SBD beside VOC, SegNet's CamVid, Cityscapes,
PASCAL-Context, PASCAL-Person-Part, COCO-Stuff, GTA5, SYNTHIA; coco.py has COCO itself.

Each finder looks for the files that only its data set has and returns None where they are not.
"""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from deeplab_jax.data import images, labels
from deeplab_jax.data.coco import find_photographs
from deeplab_jax.data.folders import Folder, Pair
from deeplab_jax.data.labels import LabelMapping
from deeplab_jax.data.listing import visible
from deeplab_jax.data.masks import PERSON_PART_NAMES
from deeplab_jax.types import IGNORE_LABEL, UserError

Splits = dict[str, Callable[[], tuple[Pair, ...]]]

CITYSCAPES = dict(
    zip(
        (*(7, 8, 11, 12, 13, 17), *range(19, 29), *(31, 32, 33)),
        "road, sidewalk, building, wall, fence, pole, traffic light, traffic sign, vegetation, "
        "terrain, sky, person, rider, car, truck, bus, train, motorcycle, bicycle".split(", "),
        strict=True,
    )
)
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


def sbd_splits(voc: Path, sbd: Path) -> Splits:
    """`train_aug` and `trainval_aug` of the VOC devkit `voc`, where SBD's folder `sbd` exists.

    train_aug = (VOC train + all of SBD) - VOC val; trainval_aug has VOC val as well. A photograph
    that has a mask of VOC's own keeps that one.
    """
    if not (sbd / "cls").is_dir():
        return {}
    return {
        "train_aug": partial(read_augmented, voc, sbd, with_val=False),
        "trainval_aug": partial(read_augmented, voc, sbd, with_val=True),
    }


def read_augmented(voc: Path, sbd: Path, *, with_val: bool) -> tuple[Pair, ...]:
    """VOC train and SBD, without VOC val or with it; VOC's own mask is used where both have one."""
    train, val = (
        set(read_ids(voc / "ImageSets" / "Segmentation" / f"{split}.txt"))
        for split in ("train", "val")
    )
    extra = {path.stem for path in visible((sbd / "cls").glob("*.mat"))}
    ids = augmented_ids(train, val, extra)
    own = train | val
    return tuple(
        Pair(
            name,
            voc / "JPEGImages" / f"{name}.jpg",
            voc / "SegmentationClass" / f"{name}.png"
            if name in own
            else sbd / "cls" / f"{name}.mat",
        )
        for name in sorted(ids | val if with_val else ids)
    )


def augmented_ids(train: set[str], val: set[str], extra: set[str]) -> set[str]:
    """The ids of train_aug.

    >>> sorted(augmented_ids({"a"}, {"b"}, {"a", "b", "c"}))
    ['a', 'c']
    """
    return (train | extra) - val


def read_ids(path: Path) -> list[str]:
    """The first word of each line, or the name of the file that it is a path of."""
    if not path.is_file():
        raise UserError(f"{path} is missing; the list of this split belongs there.")
    lines = labels.read_text(path).splitlines()
    return [Path(line.split()[0]).stem for line in lines if line.strip()]


CAMVID = (
    *("Sky", "Building", "Pole", "Road", "Pavement", "Tree"),
    *("SignSymbol", "Fence", "Car", "Pedestrian", "Bicyclist"),
)
"""The 11 classes of SegNet's CamVid in the order of their ids; 11 is void."""


CAMVID_SEQUENCES = re.compile("/(0001TP|0006R0|0016E5|Seq05VD)_")
"""What the names of its photographs begin with."""


def find_segnet_camvid(root: Path) -> Folder | None:
    """CamVid as SegNet's repository lays it out, in `root` or its folder CamVid: `<split>.txt` with
    the paths of photographs and masks, below `/SegNet/CamVid`, of `<split>` and `<split>annot`."""
    for path in (root, root / "CamVid"):
        lists = [p for p in visible(path.glob("*.txt")) if (path / f"{p.stem}annot").is_dir()]
        is_camvid = any(CAMVID_SEQUENCES.search(labels.read_text(file)) for file in lists)
        if is_camvid and not labels.has_class_file(path):
            classes = {i: i for i in range(len(CAMVID))}
            classes |= {len(CAMVID): IGNORE_LABEL, IGNORE_LABEL: IGNORE_LABEL}
            mapping = LabelMapping(path, of_colours=False, classes=classes, others=None)
            splits = {file.stem: partial(read_segnet_list, path, file) for file in lists}
            return Folder(path, CAMVID, mapping, splits)
    return None


def read_segnet_list(folder: Path, path: Path) -> tuple[Pair, ...]:
    """Lines of two paths, of which the last two parts lie below `folder`."""
    lines = [line.split() for line in labels.read_text(path).splitlines() if line.strip()]
    if not all(len(line) == 2 for line in lines):
        raise UserError(f"{path} must have the paths of a photograph and its mask in each line.")
    found = ([folder.joinpath(*Path(name).parts[-2:]) for name in line] for line in lines)
    return tuple(Pair(photograph.stem, photograph, mask) for photograph, mask in found)


def find_cityscapes(root: Path) -> Folder | None:
    """`leftImg8bit/<split>/<city>/*_leftImg8bit.png` and `gtFine/<split>/<city>/*_labelIds.png`.

    The photographs of train_extra have coarse masks in `gtCoarse`; train_with_coarse has train and
    those.
    """
    found = {p.name: p for p in visible(p for p in root.glob("leftImg8bit/*") if p.is_dir())}
    if not found or not (root / "gtFine").is_dir():
        return None
    classes = {raw: i for i, raw in enumerate(CITYSCAPES)}
    mapping = LabelMapping(root, of_colours=False, classes=classes, others=IGNORE_LABEL)
    splits: dict[str, tuple[Path, ...]] = {name: (path,) for name, path in found.items()}
    if {"train", "train_extra"} <= found.keys():
        splits["train_with_coarse"] = found["train"], found["train_extra"]
    readers = {name: partial(read_cityscapes, root, *paths) for name, paths in splits.items()}
    return Folder(root, tuple(CITYSCAPES.values()), mapping, readers)


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
    for path in (root, root / "VOC2010", root / "VOCdevkit" / "VOC2010"):
        if (path / "ImageSets" / "Main" / "train.txt").is_file():
            return path
    return None


CONTEXT_SPELLINGS = {"diningtable": "table", "bedcloth": "bedclothes", "clothes": "cloth"}
"""Names in `59_labels.txt` that `labels.txt` has in another form."""


def find_context(root: Path) -> Folder | None:
    """`trainval/<id>.mat`, `labels.txt` (raw classes) and `59_labels.txt` beside VOC 2010.

    Splits are VOC 2010's lists of all photographs, 4,998 and 5,105.
    """
    devkit, masks = find_voc2010(root), root / "trainval"
    if devkit is None or not visible(masks.glob("*.mat")):
        return None
    names = root / "59_labels.txt"
    wanted = [name for _, name in read_numbered(names)]
    raw = {name: number for number, name in read_numbered(root / "labels.txt")}
    numbers = [raw.get(name) or raw.get(CONTEXT_SPELLINGS.get(name, "")) for name in wanted]
    if None in numbers:
        unknown = wanted[numbers.index(None)]
        raise UserError(f"{root / 'labels.txt'} lacks {unknown!r}, which {names} has.")
    classes = {number: i for i, number in enumerate(numbers, 1) if number is not None}
    mapping = LabelMapping(names, of_colours=False, classes=classes, others=0)
    return Folder(root, ("background", *wanted), mapping, voc2010_splits(devkit, masks))


def voc2010_splits(devkit: Path, masks: Path) -> Splits:
    """Train and val of VOC 2010 with one .mat of `masks` a photograph."""
    lists = devkit / "ImageSets" / "Main"
    return {s: partial(read_voc2010, devkit, lists / f"{s}.txt", masks) for s in ("train", "val")}


def read_voc2010(devkit: Path, path: Path, masks: Path) -> tuple[Pair, ...]:
    """The photographs that the list at `path` names, each with its .mat."""
    return tuple(
        Pair(name, devkit / "JPEGImages" / f"{name}.jpg", masks / f"{name}.mat")
        for name in read_ids(path)
    )


def read_numbered(path: Path) -> list[tuple[int, str]]:
    """Lines of `number: name`."""
    if not path.is_file():
        raise UserError(f"{path} is missing; it comes with the annotations or their repository.")
    lines = [line.partition(":") for line in labels.read_text(path).splitlines() if line.strip()]
    if not all(number.strip().isdigit() and name.strip() for number, _, name in lines):
        raise UserError(f"{path} has a line that is not `number: name`.")
    return [(int(number), name.strip()) for number, _, name in lines]


def find_person_part(root: Path) -> Folder | None:
    """`Annotations_Part/<id>.mat` beside VOC 2010: photographs with people.

    Splits are those of the lists in `pascal_person_part_trainval_list`, which the paper's authors
    give out, where they are there, otherwise VOC 2010's lists of photographs that show a person.
    """
    devkit = find_voc2010(root)
    masks = find_first(root / "Annotations_Part", root / "trainval" / "Annotations_Part")
    if devkit is None or masks is None:
        return None
    readers = {s: partial(read_people, root, devkit, masks, s) for s in ("train", "val")}
    return Folder(root, PERSON_PART_NAMES, None, readers)


def find_first(*folders: Path) -> Path | None:
    """The first folder that exists."""
    return next((folder for folder in folders if folder.is_dir()), None)


def read_people(root: Path, devkit: Path, masks: Path, split: str) -> tuple[Pair, ...]:
    """Photographs with people: the authors' list, else VOC's list of persons."""
    name = "pascal_person_part_trainval_list"
    own = find_first(root / name, root / "pascal_person_part" / name)
    if own is not None:
        return read_voc2010(devkit, own / f"{split}.txt", masks)
    path = devkit / "ImageSets" / "Main" / f"person_{split}.txt"
    if not path.is_file():
        raise UserError(f"{path} is missing; it comes with VOC 2010.")
    lines = [line.split() for line in labels.read_text(path).splitlines() if line.strip()]
    ids = [name for name, shows in lines if shows != "-1"]  # 1: shown, 0: hard to see
    photographs = devkit / "JPEGImages"
    return tuple(
        Pair(name, photographs / f"{name}.jpg", masks / f"{name}.mat")
        for name in ids
        if (masks / f"{name}.mat").is_file()
    )


def find_coco_stuff(root: Path) -> Folder | None:
    """The 164k photographs of 2017 with their `stuffthingmaps`, or the 10k of 2014.

    The maps lie in `stuffthingmaps_trainval2017` or in `annotations`. Class names are in
    `labels.txt`, `id: name` a line, with 0 for what nobody labelled.
    """
    maps = root / "stuffthingmaps_trainval2017"
    if not maps.is_dir():
        maps = root / "annotations"
    found = [split for split in ("train", "val") if (maps / f"{split}2017").is_dir()]
    if found:
        splits: Splits = {split: partial(read_stuff_maps, root, maps, split) for split in found}
        return Folder(root, read_stuff_names(root), None, splits)
    if (root / "imageLists").is_dir() and maps.is_dir():
        lists = {path.stem: path for path in visible((root / "imageLists").glob("*.txt"))}
        splits = {split: partial(read_stuff_10k, root, path) for split, path in lists.items()}
        names = read_stuff_names(root)
        classes = {0: IGNORE_LABEL, **{i + 1: i for i in range(len(names))}}
        mapping = LabelMapping(root / "labels.txt", False, classes, None)
        return Folder(root, names, mapping, splits)
    return None


def read_stuff_names(root: Path) -> tuple[str, ...]:
    """Class names of COCO-Stuff in order, without its "unlabeled"."""
    path = root / "cocostuff-labels.txt"  # its name in the repository of the 10k
    numbered = read_numbered(path if path.is_file() else root / "labels.txt")
    return tuple(name for number, name in sorted(numbered) if number > 0)


def read_stuff_maps(root: Path, maps: Path, split: str) -> tuple[Pair, ...]:
    """Pairs of a 164k split: each photograph with its stuffthingmap."""
    photographs = find_photographs(root, split)
    return tuple(
        Pair(name, path, maps / f"{split}2017" / f"{name}.png")
        for name, path in photographs.items()
    )


def read_stuff_10k(root: Path, path: Path) -> tuple[Pair, ...]:
    """Pairs of a 10k split: each photograph with its .mat."""
    ids: Iterable[str] = read_ids(path)
    images, masks = root / "images", root / "annotations"
    return tuple(Pair(name, images / f"{name}.jpg", masks / f"{name}.mat") for name in ids)


MAPPINGS = Path(__file__).parent / "mappings"


def find_gta5(root: Path) -> Folder | None:
    """`images/<five digits>.png` and `labels/<the same>.png`, without class names of one's own.

    The raw ids of its masks are those of Cityscapes.
    """
    photographs = root / "images"
    if labels.has_class_file(root) or not (root / "labels").is_dir() or not photographs.is_dir():
        return None
    names = [path.name for path in visible(photographs.iterdir())]
    if not names or not all(re.fullmatch(r"\d{5}\.png", name) for name in names):
        return None
    pairs = tuple(Pair(n[:-4], photographs / n, root / "labels" / n) for n in names)
    return drawn_streets(root, pairs, read_streets("gta5"))


def find_synthia(root: Path) -> Folder | None:
    """`RGB/*.png` and `GT/LABELS/*.png`, in `root` or its folder RAND_CITYSCAPES."""
    for path in (root, root / "RAND_CITYSCAPES"):
        masks = path / "GT" / "LABELS"
        if (path / "RGB").is_dir() and masks.is_dir():
            mapping = read_streets("synthia")
            found = visible((path / "RGB").glob("*.png"))
            pairs = (Pair(p.stem, p, SynthiaMask(masks / p.name, mapping)) for p in found)
            return drawn_streets(path, tuple(pairs), None)
    return None


def drawn_streets(path: Path, pairs: tuple[Pair, ...], mapping: LabelMapping | None) -> Folder:
    """Streets drawn by a computer with the classes of Cityscapes, all in a split `train`."""
    return Folder(path, tuple(CITYSCAPES.values()), mapping, {"train": lambda: pairs})


def read_streets(name: str) -> LabelMapping:
    """One of the mappings that ship with the package."""
    return labels.read_mapping(MAPPINGS / f"{name}.txt", num_classes=len(CITYSCAPES))


@dataclass(frozen=True)
class SynthiaMask:
    """A PNG of 16 bits whose red channel holds the class, and whose green the instance."""

    path: Path
    mapping: LabelMapping

    def draw(self) -> UInt8[np.ndarray, "h w"]:
        """Class ids of Cityscapes."""
        data = images.read_bytes(self.path)
        values = images.decode_deep(self.path, data, images.open_picture(self.path, data))
        if values.ndim != 3:
            raise UserError(f"{self.path} is no mask of SYNTHIA, a PNG of three channels.")
        return self.mapping.decode(self.path, values[..., 0].astype(np.int32))


FINDERS = (
    *(find_cityscapes, find_context, find_person_part, find_coco_stuff),
    *(find_gta5, find_synthia, find_segnet_camvid),
)
