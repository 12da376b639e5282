"""Data sets in COCO's JSON: MS-COCO 2017 itself, and what CVAT, Roboflow and others export.

A file has `images`, `categories` and `annotations`. Masks are drawn from the run lengths of the
annotations, or from their outlines with pycocotools (extra `coco`). Crowds count as void, and small
things lie on large ones; the paper says nothing of either. What no annotation covers is background.

COCO's own 80 categories keep their ids, 1 to 90 with gaps, with 0 for background: the 91 outputs
of the networks pre-trained for the paper. Other categories become classes 1, 2, ... in the order of
their ids, and one that is called background is class 0.
"""

import json
import mmap
import os
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Bool, UInt8

from deeplab_jax.data import listing
from deeplab_jax.data.folders import (
    Folder,
    Pair,
    index_photographs,
    name_of,
    normalise,
)
from deeplab_jax.data.listing import visible
from deeplab_jax.data.photographs import SUFFIXES
from deeplab_jax.renamed import answering
from deeplab_jax.types import IGNORE_LABEL, MAX_CLASSES, UserError

try:
    from pycocotools import mask as coco_masks
except ImportError:  # the extra `coco`
    coco_masks = None

KINDS = (
    "background, person, bicycle, car, motorcycle, airplane, bus, train, truck, boat, "
    "traffic light, fire hydrant, -, stop sign, parking meter, bench, bird, cat, dog, horse, "
    "sheep, cow, elephant, bear, zebra, giraffe, -, backpack, umbrella, -, -, handbag, tie, "
    "suitcase, frisbee, skis, snowboard, sports ball, kite, baseball bat, baseball glove, "
    "skateboard, surfboard, tennis racket, bottle, -, wine glass, cup, fork, knife, spoon, "
    "bowl, banana, apple, sandwich, orange, broccoli, carrot, hot dog, pizza, donut, cake, "
    "chair, couch, potted plant, bed, -, dining table, -, -, toilet, -, tv, laptop, mouse, "
    "remote, keyboard, cell phone, microwave, oven, toaster, sink, refrigerator, -, book, "
    "clock, vase, scissors, teddy bear, hair drier, toothbrush"
)
"""Names in the order of the ids; - for an id that no category has."""

CLASS_NAMES = tuple(
    f"unused {i}" if name == "-" else name for i, name in enumerate(KINDS.split(", "))
)


OWN = {i: name for i, name in enumerate(KINDS.split(", ")) if i and name != "-"}
"""COCO's own categories."""

Classes = tuple[tuple[int, int], ...]
"""Pairs of a category's id and its class id."""

OWN_CLASSES: Classes = tuple((number, number) for number in OWN)

CATEGORIES = re.compile(rb'"categories"\s*:\s*(?=\[)')

FARTHEST = 1e6
"""Largest coordinate of an outline in pixels; pycocotools counts in 32-bit integers."""

MOST_FILES = 20
"""Folders with more JSON files hold one for each photograph, not COCO's."""


def find_coco(root: Path) -> Folder | None:
    """A folder with `annotations/instances_<split>.json`, or with Roboflow's
    `<split>/_annotations.coco.json`.

    Raises:
      UserError: no category, or more than there can be classes.
    """
    instances = visible((root / "annotations").glob("instances_*.json"))
    if instances:
        names = [path.stem.removeprefix("instances_").removesuffix("2017") for path in instances]
        return make_folder(root, dict(zip(names, instances, strict=True)))
    roboflow = visible(root.glob("*/_annotations.coco.json"))
    return make_folder(root, {path.parent.name: path for path in roboflow}) if roboflow else None


def find_any_json(root: Path) -> Folder | None:
    """A folder with any JSON of COCO's form in it, or in its folder `annotations`."""
    files: dict[str, Path] = {}
    for folder in (root, root / "annotations"):
        inside = visible(folder.glob("*.json"))
        for path in inside if len(inside) <= MOST_FILES else ():
            if read_categories(path):
                split = split_of(path)
                files[re.sub(r"[^\w-]", "_", path.stem) if split in files else split] = path
    return make_folder(root, files) if files else None


def make_folder(root: Path, files: Mapping[str, Path]) -> Folder:
    """The data set whose splits have these files."""
    categories = {split: read_categories(path) for split, path in files.items()}
    for split, path in files.items():
        if not categories[split]:
            raise UserError(f"{path} is no file of COCO instances: it lists no categories.")
    if all(set(found.items()) == set(OWN.items()) for found in categories.values()):
        readers = {
            split: partial(read_own_split, root, split, path) for split, path in files.items()
        }
        return Folder(root, CLASS_NAMES, None, readers)
    names = join_names(categories, files)
    readers = {
        split: partial(read_split, root, split, path, match_classes(categories[split], names))
        for split, path in files.items()
    }
    return Folder(root, names, None, readers)


def split_of(path: Path) -> str:
    """The split in a file's name, its last word such as train or val; else train."""
    words = re.split(r"[^a-z]+", path.stem.lower())
    known = [word for word in words if word in ("train", "val", "valid", "validation", "test")]
    return known[-1] if known else "train"


def read_categories(path: Path) -> dict[int, str]:
    """Names of a file's categories by their ids; none where it is no COCO JSON.

    The list is found without parsing the whole file, which may have 450 MB. Roboflow's category 0,
    which only names the group of all others, is left out.
    """
    if path.stat().st_size == 0:
        return {}
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        for match in CATEGORIES.finditer(content):
            text = content[match.end() : match.end() + 2**22].decode(errors="ignore")
            try:
                found, _ = json.JSONDecoder().raw_decode(text)
                categories = {int(kind["id"]): str(kind["name"]) for kind in found}
            except (ValueError, KeyError, TypeError):
                continue
            groups = {kind.get("supercategory") for kind in found if kind["id"] != 0}
            if len(groups) == 1 and 0 in categories and categories[0] in groups:
                del categories[0]
            return categories
    return {}


def join_names(
    categories: Mapping[str, Mapping[int, str]], files: Mapping[str, Path]
) -> tuple[str, ...]:
    """Background and the categories of all files, those of `train` first, by name."""
    order = sorted(categories, key=lambda split: split != "train")
    names = {"background": None}
    for split in order:
        for _, name in sorted(categories[split].items()):
            if name.lower() != "background":
                names[name] = None
    if not 2 <= len(names) <= MAX_CLASSES:
        raise UserError(
            f"{files[order[0]]} has {len(names) - 1} categories besides background; 1 to "
            f"{MAX_CLASSES - 1} are possible."
        )
    return tuple(names)


def match_classes(categories: Mapping[int, str], names: Sequence[str]) -> Classes:
    """The class ids of a file's categories, by their names."""
    return tuple(
        (number, 0 if name.lower() == "background" else names.index(name))
        for number, name in categories.items()
    )


def read_own_split(root: Path, split: str, path: Path) -> tuple[Pair, ...]:
    """COCO's own photographs sorted by number; their names are their ids."""
    return tuple(
        Pair(name, photo, Outlines(path, int(name), OWN_CLASSES))
        for name, photo in find_photographs(root, split).items()
    )


def find_photographs(root: Path, split: str) -> dict[str, Path]:
    """Photographs of 2017 by name, in `<split>2017` of `root` or of its folder `images`."""
    below = root / "images" / f"{split}2017"
    return index_photographs(below if below.is_dir() else root / f"{split}2017")


def read_split(root: Path, split: str, path: Path, classes: Classes) -> tuple[Pair, ...]:
    """The photographs that a file names, in its order; one without annotations is background."""
    parents = photograph_folders(root, split, path)
    known = {parent: index_by_file_name(parent) for parent in parents}
    pairs = []
    for number, image in load(path).images.items():
        name, photograph = find_photograph(image.file_name, parents, known)
        pairs.append(Pair(name, photograph, Outlines(path, number, classes)))
    return tuple(pairs)


def photograph_folders(root: Path, split: str, path: Path) -> list[Path]:
    """Folders in which the photographs of a file may lie, the likeliest first."""
    stem = path.stem.removeprefix("instances_")
    below = [root / "images" / stem, root / "images" / split, root / stem, root / split]
    found = [path.parent, *below, root / "images", root]
    return [parent for parent in dict.fromkeys(found) if parent.is_dir()]


def index_by_file_name(folder: Path) -> dict[str, Path]:
    """Photographs below a folder by their paths with suffix."""
    found = (path for path in listing.walk(folder) if path.suffix.lower() in SUFFIXES)
    return {name_of(path, folder) + path.suffix: path for path in found}


def find_photograph(
    file_name: str, parents: Sequence[Path], known: Mapping[Path, Mapping[str, Path]]
) -> tuple[str, Path]:
    """Name and path of the photograph that a file names by its path below a folder, or else by the
    last part of its path."""
    name = normalise(file_name.replace("\\", "/"))
    for spelling in dict.fromkeys((name, name.rpartition("/")[2])):
        for parent in parents:
            if spelling in known[parent]:
                return os.path.splitext(spelling)[0], known[parent][spelling]
    return os.path.splitext(name)[0], parents[0] / name


@dataclass(frozen=True)
class Outlines:
    """The mask of one photograph, drawn from the outlines in a file of annotations."""

    path: Path
    photograph: int
    classes: Classes
    """Pairs of a category's id and its class id."""

    def draw(self) -> UInt8[np.ndarray, "h w"]:
        """Class ids; annotations that cannot be drawn are named on stderr and left out."""
        content = load(self.path)
        if self.photograph not in content.images:
            raise UserError(f"{self.path} does not know a photograph {self.photograph}.")
        image = content.images[self.photograph]
        classes = dict(self.classes)
        labels = np.zeros((image.height, image.width), np.uint8)
        shapes, faults = [], []
        for thing in content.things.get(self.photograph, []):
            try:
                label = label_of(thing, classes)
                inside = draw_inside(thing.get("segmentation"), image.height, image.width)
                shapes.append((area_of(thing, inside), label, inside))
            except BadOutline as fault:
                faults.append(f"annotation {thing.get('id', '?')} ({fault})")
        if faults:
            print(f"skipped: {self.path}, {image.file_name}: {', '.join(faults)}", file=sys.stderr)
        for _, label, inside in sorted(shapes, key=lambda shape: -shape[0]):
            labels[inside] = label
        return labels


def label_of(thing: Mapping[str, Any], classes: Mapping[int, int]) -> int:
    """The class id of an annotation, 255 for a crowd."""
    if thing.get("iscrowd"):
        return IGNORE_LABEL
    if thing.get("category_id") not in classes:
        raise BadOutline(f"no category {thing.get('category_id')}")
    return classes[thing["category_id"]]


def area_of(thing: Mapping[str, Any], inside: Bool[np.ndarray, "h w"]) -> float:
    """The area that the annotation states, or else the number of its pixels."""
    area = thing.get("area")
    return float(area) if isinstance(area, int | float) else float(inside.sum())


class BadOutline(ValueError):
    """An annotation that is no outline; says why."""


@dataclass(frozen=True)
class AnnotatedImage:
    """What a file says of one photograph."""

    file_name: str
    height: int
    width: int


@dataclass(frozen=True)
class Annotations:
    """What a file of annotations says of each photograph, by its number."""

    images: Mapping[int, AnnotatedImage]
    things: Mapping[int, Sequence[Mapping[str, Any]]]


def load(path: Path) -> Annotations:
    """The whole file; the largest has 450 MB and is kept while its split is prepared."""
    return parse(path, path.stat().st_mtime_ns)


@lru_cache(maxsize=2)
def parse(path: Path, mtime_ns: int) -> Annotations:
    """As `load`; a file that has changed is parsed again."""
    try:
        content = json.loads(path.read_bytes())
        images = {
            image["id"]: AnnotatedImage(
                str(image.get("file_name", image["id"])), int(image["height"]), int(image["width"])
            )
            for image in content["images"]
        }
        things: dict[int, list] = {}
        for thing in content["annotations"]:
            things.setdefault(thing["image_id"], []).append(thing)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is no file of COCO instances ({error!r}).") from None
    return Annotations(images, things)


def draw_inside(segmentation: Any, height: int, width: int) -> Bool[np.ndarray, "h w"]:
    """Pixels of a thing as COCO's own tool draws them: from polygons, or from the run lengths of
    its columns, compressed or not.

    Raises:
      BadOutline: it is neither, or does not fit the photograph.
    """
    if isinstance(segmentation, dict):
        lengths = read_runs(segmentation, height, width)
    else:
        polygons = as_polygons(segmentation)
        if coco_masks is None:
            raise UserError("COCO's outlines need pycocotools: pip install 'deeplab_jax[coco]'.")
        masks: Any = coco_masks  # its types know no polygons
        runs = masks.merge(masks.frPyObjects(polygons, height, width))
        lengths = expand_runs(runs["counts"].decode())
    inside = np.arange(len(lengths)) % 2 == 1
    return np.repeat(inside, lengths).reshape(width, height).T


def as_polygons(segmentation: Any) -> list[list[float]]:
    """Polygons of at least three points; shorter ones cover nothing."""
    if not isinstance(segmentation, list) or not segmentation:
        raise BadOutline("no outline")
    polygons = segmentation if isinstance(segmentation[0], list) else [segmentation]
    for polygon in polygons:
        if not isinstance(polygon, list) or not all(isinstance(x, int | float) for x in polygon):
            raise BadOutline("a polygon that is no list of numbers")
        if len(polygon) < 6 or len(polygon) % 2:
            raise BadOutline(f"a polygon of {len(polygon)} numbers")
        if not all(abs(x) < FARTHEST for x in polygon):
            raise BadOutline("a polygon with points far outside the photograph")
    return [[float(x) for x in polygon] for polygon in polygons]


def read_runs(segmentation: Mapping[str, Any], height: int, width: int) -> list[int]:
    """Run lengths of outside and inside by turns, down the columns from left to right.

    They must cover the photograph.
    """
    counts, size = segmentation.get("counts"), segmentation.get("size", [height, width])
    if size != [height, width]:
        raise BadOutline(f"run lengths for a photograph of height and width {size}")
    if isinstance(counts, str):
        lengths = expand_runs(counts)
    elif isinstance(counts, list) and all(isinstance(length, int) for length in counts):
        lengths = counts
    else:
        raise BadOutline("run lengths that are neither numbers nor text")
    if sum(lengths) != height * width or min(lengths) < 0:
        raise BadOutline(f"run lengths of {sum(lengths)} pixels")
    return lengths


def expand_runs(counts: str) -> list[int]:
    """The run lengths in a compressed text.

    Characters 48 to 111 hold 6 bits: the lowest 5 are the next bits of a number, the lower ones
    first, and the highest says that more follow; the last character's bit 4 is the sign. From the
    fourth on, numbers are differences to the run before the last.

    >>> expand_runs("52203")
    [5, 2, 2, 2, 5]
    """
    lengths: list[int] = []
    number = shift = 0
    for character in counts:
        bits = ord(character) - 48
        if not 0 <= bits < 64:
            raise BadOutline("run lengths with invalid characters")
        number |= (bits & 31) << shift
        shift += 5
        if bits & 32:
            continue
        if bits & 16:
            number -= 1 << shift
        lengths.append(number + (lengths[-2] if len(lengths) > 2 else 0))
        number = shift = 0
    if shift:
        raise BadOutline("run lengths that end early")
    return lengths


if not TYPE_CHECKING:  # an editor is to mark the old names
    __getattr__ = answering(
        __name__, {}, {"decode_runs": "data.coco.draw_inside(segmentation, height, width)"}
    )
