"""Data sets in COCO's JSON: MS-COCO 2017 itself, and what CVAT, Roboflow and others export.

A file has `images`, `categories` and `annotations`. pycocotools draws their outlines and run
lengths. Crowds count as void, and things of few pixels lie on those of many, whatever area is
stated; the paper says nothing of either. What no annotation covers is background. A file that
contradicts itself is refused, and what is not used is counted, see `describe_use`.

COCO's own 80 categories keep their ids, 1 to 90 with gaps, with 0 for background: the 91 outputs
of the networks pre-trained for the paper. Other categories become classes 1, 2, ... in the order of
their ids; one that is called background is class 0, and one of VOID_NAMES is void.
"""

import json
import mmap
import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, UInt8
from pycocotools import mask as coco_masks

from deeplab_jax.data import labels, listing
from deeplab_jax.data.folders import (
    Folder,
    Pair,
    index_photographs,
    name_of,
    normalise,
)
from deeplab_jax.data.images import SUFFIXES
from deeplab_jax.data.labels import VOID_NAMES
from deeplab_jax.data.listing import visible
from deeplab_jax.types import IGNORE_LABEL, MAX_CLASSES, UserError

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

Classes = tuple[tuple[int | str, int], ...]
"""Pairs of a category's id and its class id, 255 where it does not count."""

OWN_CLASSES: Classes = tuple((number, number) for number in OWN)

CATEGORIES = re.compile(rb'"categories"\s*:\s*(?=\[)')

FARTHEST = 1e6
"""Largest coordinate of an outline in pixels; pycocotools counts in 32-bit integers."""

MOST_FILES = 20
"""Folders with more JSON files hold one for each photograph, not COCO's."""


def find(root: Path, name: str | None = None) -> Folder | None:
    """The folder of COCO's annotations: those of the file `name`, or those of all files.

    All are `annotations/instances_<split>.json`, or Roboflow's `<split>/_annotations.coco.json`, or
    any JSON of COCO's form in the folder or in its folder `annotations`.

    Raises:
      UserError: no category, or more than there can be classes.
    """
    if name is not None:
        paths = [path for path in (root / name, root / "annotations" / name) if path.is_file()]
        return make_folder(root, {split_of(path): path for path in paths[:1]}) if paths else None
    instances = visible((root / "annotations").glob("instances_*.json"))
    if instances:
        names = [path.stem.removeprefix("instances_").removesuffix("2017") for path in instances]
        return make_folder(root, dict(zip(names, instances, strict=True)))
    if roboflow := visible(root.glob("*/_annotations.coco.json")):
        return make_folder(root, {path.parent.name: path for path in roboflow})
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
    notes = {split: partial(describe_use, root, path) for split, path in files.items()}
    if all(set(found.items()) == set(OWN.items()) for found in categories.values()):
        own = {split: partial(read_own_split, root, split, path) for split, path in files.items()}
        return Folder(root, CLASS_NAMES, None, own, notes=notes)
    names = join_names(categories, files)
    readers = {
        split: partial(read_split, root, split, path, match_classes(categories[split], names))
        for split, path in files.items()
    }
    return Folder(root, names, None, readers, notes=notes)


def split_of(path: Path) -> str:
    """The split in a file's name, its last word such as train or val; else train."""
    words = re.split(r"[^a-z]+", path.stem.lower())
    known = [word for word in words if word in ("train", "val", "valid", "validation", "test")]
    return known[-1] if known else "train"


def read_categories(path: Path) -> dict[int | str, str]:
    """Names of a file's categories by their ids; none where it is no COCO JSON.

    The list is found without parsing the whole file, which may have 450 MB. A category 0 that only
    names the group of all others, as Roboflow's does, is left out unless an annotation has it.

    Raises:
      UserError: two categories have one id, or one name.
    """
    if path.stat().st_size == 0:
        return {}
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        for match in CATEGORIES.finditer(content):
            text = content[match.end() : match.end() + 2**22].decode(errors="ignore")
            try:
                found, _ = json.JSONDecoder().raw_decode(text)
                named = [(as_id(kind["id"]), str(kind["name"])) for kind in found]
                groups = {kind.get("supercategory") for kind in found if kind["id"] != 0}
            except (ValueError, KeyError, TypeError, AttributeError):
                continue
            for what, values in (("id", [i for i, _ in named]), ("name", [n for _, n in named])):
                if twice := [value for value, number in Counter(values).items() if number > 1]:
                    raise UserError(f"{path} has two categories of the {what} {twice[0]!r}.")
            categories = dict(named)
            is_group = 0 in categories and groups == {categories[0]}
            if is_group and 0 not in load(path).kinds:
                del categories[0]
            return categories
    return {}


def as_id(value: Any) -> int | str:
    """An id that may be written as a number or as its digits; a TypeError for others.

    >>> as_id(7), as_id("7"), as_id(7.0), as_id("a7")
    (7, 7, 7, 'a7')
    """
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise TypeError(f"the id {value!r}")
    if isinstance(value, str):
        return int(value) if value.isdecimal() else value
    if value != int(value):
        raise TypeError(f"the id {value!r}")
    return int(value)


def join_names(
    categories: Mapping[str, Mapping[int | str, str]], files: Mapping[str, Path]
) -> tuple[str, ...]:
    """Background and the categories of all files, those of `train` first, by name."""
    order = sorted(categories, key=lambda split: split != "train")
    names = {"background": None}
    for split in order:
        for _, name in sorted(
            categories[split].items(), key=lambda kind: (str(type(kind[0])), kind)
        ):
            if name.lower() not in ("background", *VOID_NAMES):
                names[name] = None
    if not 2 <= len(names) <= MAX_CLASSES:
        raise UserError(
            f"{files[order[0]]} has {len(names) - 1} categories besides background; 1 to "
            f"{MAX_CLASSES - 1} are possible."
        )
    return tuple(names)


def match_classes(categories: Mapping[int | str, str], names: Sequence[str]) -> Classes:
    """The class ids of a file's categories, by their names."""
    special = {"background": 0, **dict.fromkeys(VOID_NAMES, IGNORE_LABEL)}
    ids = {name: label for label, name in enumerate(names)}
    return tuple(
        (number, special[name.lower()] if name.lower() in special else ids[name])
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
    photograph: int | str
    classes: Classes

    def draw(self) -> UInt8[np.ndarray, "h w"]:
        """Class ids; small things lie on large ones, and of equal ones the later.

        Raises:
          UserError: an annotation contradicts itself.
        """
        content, classes = load(self.path), dict(self.classes)
        if self.photograph not in content.images:
            raise UserError(f"{self.path} does not know a photograph {self.photograph}.")
        image = content.images[self.photograph]
        result = np.zeros((image.height, image.width), np.uint8)
        shapes = []
        for thing in content.things.get(self.photograph, []):
            inside = draw(f"{self.path}, {image.file_name}", thing, image.height, image.width)
            label = IGNORE_LABEL if is_crowd(thing) else classes[as_id(thing["category_id"])]
            shapes.append((inside.sum(), label, inside))
        for _, label, inside in sorted(shapes, key=lambda shape: -shape[0]):
            result[inside] = label
        return result


def draw(
    where: object, thing: Mapping[str, Any], height: int, width: int
) -> Bool[np.ndarray, "h w"]:
    """Pixels of an annotation; a UserError that begins with `where` where it contradicts itself."""
    try:
        return draw_inside(thing.get("segmentation"), height, width)
    except BadOutline as fault:
        raise UserError(
            f"{where}: annotation {thing.get('id', '?')} has {fault}; mend it or take it out."
        ) from None


def with_mask(thing: Mapping[str, Any], inside: Bool[np.ndarray, "h w"]) -> dict[str, Any]:
    """An annotation with other pixels, as run lengths; `area` and `bbox` are theirs."""
    masks: Any = coco_masks
    runs = masks.encode(np.asfortranarray(inside, np.uint8))
    outline = {"size": list(inside.shape), "counts": runs["counts"].decode()}
    box, area = masks.toBbox(runs).tolist(), int(inside.sum())
    return {**thing, "segmentation": outline, "bbox": box, "area": area}


class BadOutline(ValueError):
    """An outline that contradicts itself; says why."""


class AnnotatedImage(NamedTuple):
    """What a file says of one photograph."""

    file_name: str
    height: int
    width: int


@dataclass(frozen=True)
class Annotations:
    """What a file of annotations says of each photograph, by its id."""

    images: Mapping[int | str, AnnotatedImage]
    things: Mapping[int | str, Sequence[Mapping[str, Any]]]
    kinds: frozenset[int | str]
    """Categories that annotations have."""


def load(path: Path) -> Annotations:
    """The whole file; the largest has 450 MB and is kept while its split is prepared.

    Raises:
      UserError: it is no file of COCO instances, or contradicts itself: two photographs of one id,
        or an annotation of a photograph or category that it does not list.
    """
    return parse(path, path.stat().st_mtime_ns)


@lru_cache(maxsize=2)
def parse(path: Path, mtime_ns: int) -> Annotations:
    """As `load`; a file that has changed is parsed again."""
    images: dict[int | str, AnnotatedImage] = {}
    things: dict[int | str, list] = {}
    try:
        content = json.loads(path.read_bytes())
        for image in content["images"]:
            number, name = as_id(image["id"]), str(image.get("file_name", image["id"]))
            size = int(image["height"]), int(image["width"])
            if min(size) < 1:
                raise UserError(f"{path} gives {name} the height and width {size}.")
            if number in images:
                raise UserError(
                    f"{path} gives the id {number} to {images[number].file_name} and to {name}, so "
                    "that nobody knows whose outlines are whose; give each photograph an id."
                )
            images[number] = AnnotatedImage(name, *size)
        kinds = {as_id(kind["id"]) for kind in content["categories"]}
        used = set()
        for thing in content["annotations"]:
            of, kind, _ = as_id(thing["image_id"]), as_id(thing["category_id"]), is_crowd(thing)
            for what, key, known in (("photograph", of, images), ("category", kind, kinds)):
                if key not in known:
                    raise UserError(
                        f"{path} has the annotation {thing.get('id', '?')} of a {what} {key!r}, "
                        f"which it does not list; add the {what} or take the annotation out."
                    )
            things.setdefault(of, []).append(thing)
            used.add(kind)
    except UserError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is no file of COCO instances ({error!r}).") from None
    return Annotations(images, things, frozenset(used))


def is_crowd(thing: Mapping[str, Any]) -> bool:
    """Whether an annotation is of a crowd; a ValueError where it does not say 0 or 1."""
    value = thing.get("iscrowd", 0)
    if str(value) not in ("0", "1", "False", "True", "None"):
        raise ValueError(f"iscrowd {value!r} of the annotation {thing.get('id', '?')}")
    return str(value) in ("1", "True")


def describe_use(root: Path, path: Path) -> tuple[str, ...]:
    """What a file lists, and what of it is not used as a class, by reason."""
    content = load(path)
    things = [thing for of_one in content.things.values() for thing in of_one]
    left: dict[str, list[Any]] = {}
    for thing in things:
        outline = thing.get("segmentation")
        if is_crowd(thing):
            left.setdefault("a crowd (iscrowd 1), which counts as void", []).append(thing)
        if not outline:
            left.setdefault("without an outline, which is left out", []).append(thing)
        elif isinstance(outline, list) and any(
            len(p) < 6 for p in polygons_of(outline) if isinstance(p, list)
        ):
            left.setdefault("of fewer than three points, which are left out", []).append(thing)
    ids = Counter(str(thing["id"]) for thing in things if "id" in thing)
    if twice := [name for name, number in ids.items() if number > 1]:
        left["of an id that another has; all of them are used"] = [{"id": name} for name in twice]
    told = [f"{path} lists {len(content.images)} photographs and {len(things)} annotations"]
    told += [
        f"{len(of)} {why}, such as annotation {of[0].get('id', '?')}" for why, of in left.items()
    ]
    notes = ["; ".join(told)]
    if labels.has_class_file(root):
        notes.append(f"{root} has a file of class names, which is not used: {path} has categories")
    return tuple(notes)


def draw_inside(segmentation: Any, height: int, width: int) -> Bool[np.ndarray, "h w"]:
    """Pixels of a thing as COCO's own tool draws them: from polygons, or from the run lengths of
    its columns, compressed or not. None where there is no outline.

    Raises:
      BadOutline: it is neither, or does not fit the photograph.
    """
    if not segmentation:
        return np.zeros((height, width), bool)
    masks: Any = coco_masks  # its types know no polygons
    if isinstance(segmentation, dict):
        check_runs(segmentation, height, width)
        runs = segmentation
        if isinstance(runs["counts"], list):
            runs = masks.frPyObjects({**runs, "size": [height, width]}, height, width)
    else:
        polygons = as_polygons(segmentation)
        if not polygons:
            return np.zeros((height, width), bool)
        runs = masks.merge(masks.frPyObjects(polygons, height, width))
    return masks.decode({**runs, "size": [height, width]}).astype(bool)


def polygons_of(outline: list) -> list:
    """The polygons of an outline, which may be one polygon itself."""
    return outline if isinstance(outline[0], list) else [outline]


def as_polygons(outline: Any) -> list[list[float]]:
    """The polygons of three points and more; others cover nothing."""
    if not isinstance(outline, list):
        raise BadOutline("an outline that is no list of polygons")
    polygons = polygons_of(outline)
    for polygon in polygons:
        if not isinstance(polygon, list) or not all(isinstance(x, int | float) for x in polygon):
            raise BadOutline("a polygon that is no list of numbers")
        if len(polygon) % 2:
            raise BadOutline(f"a polygon of {len(polygon)} numbers")
        if not all(abs(x) < FARTHEST for x in polygon):
            raise BadOutline("a polygon with points far outside the photograph")
    return [[float(x) for x in polygon] for polygon in polygons if len(polygon) >= 6]


def check_runs(segmentation: Mapping[str, Any], height: int, width: int) -> None:
    """Run lengths, of outside and inside by turns, must cover the photograph.

    pycocotools leaves what they do not cover unwritten.
    """
    counts, size = segmentation.get("counts"), segmentation.get("size", [height, width])
    if size != [height, width]:
        raise BadOutline(f"run lengths for a photograph of height and width {size}")
    if isinstance(counts, str):
        counts = expand_runs(counts)
    if not isinstance(counts, list) or not all(isinstance(length, int) for length in counts):
        raise BadOutline("run lengths that are neither numbers nor text")
    if sum(counts) != height * width or min(counts) < 0:
        raise BadOutline(f"run lengths of {sum(counts)} pixels")


def expand_runs(counts: str) -> list[int]:
    """The run lengths in a compressed text.

    Characters 48 to 111 hold 6 bits: the lowest 5 are the next bits of a number, the lower ones
    first, and the highest says that more follow; the last character's bit 4 is the sign. From the
    fourth on, numbers are differences to the run before the last.

    >>> expand_runs("52203")
    [5, 2, 2, 2, 5]
    """
    if not re.fullmatch("([P-o]*[0-O])*", counts):
        raise BadOutline("run lengths with invalid characters, or that end early")
    lengths: list[int] = []
    for text in re.findall("[P-o]*[0-O]", counts):
        bits = [ord(character) - 48 & 31 for character in text]
        number = sum(five << 5 * i for i, five in enumerate(bits))
        number -= (bits[-1] & 16) << 5 * len(bits) - 4
        lengths.append(number + (lengths[-2] if len(lengths) > 2 else 0))
    return lengths
