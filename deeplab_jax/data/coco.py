"""Data sets in COCO's JSON: MS-COCO 2017 itself, and what CVAT, Roboflow and others export.

pycocotools draws outlines and run lengths. Crowds count as void, and things of few pixels lie on
those of many, whatever area is stated; the paper says nothing of either. What no annotation covers
is background. A file that contradicts itself is refused, and what is not used is counted.

COCO's own 80 categories keep their ids, 1 to 90 with gaps, and 0 is background: the 91 outputs of
the networks pre-trained for the paper. Others become classes 1, 2, ... in the order of their ids;
one that is called background is class 0, and one of VOID_NAMES is void.
"""

import itertools
import json
import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool
from pycocotools import mask as pycocotools

from deeplab_jax.data import images, labels, listing
from deeplab_jax.data.folders import DrawnMask, Folder, Pair, index_photographs, name_of, normalise
from deeplab_jax.data.labels import VOID_NAMES, Labels
from deeplab_jax.types import IGNORE_LABEL, UserError

coco_masks: Any = pycocotools  # its types know no polygons

CLASS_NAMES = tuple(
    "background, person, bicycle, car, motorcycle, airplane, bus, train, truck, boat, "
    "traffic light, fire hydrant, unused 12, stop sign, parking meter, bench, bird, cat, dog, "
    "horse, sheep, cow, elephant, bear, zebra, giraffe, unused 26, backpack, umbrella, unused 29, "
    "unused 30, handbag, tie, suitcase, frisbee, skis, snowboard, sports ball, kite, baseball bat, "
    "baseball glove, skateboard, surfboard, tennis racket, bottle, unused 45, wine glass, cup, "
    "fork, knife, spoon, bowl, banana, apple, sandwich, orange, broccoli, carrot, hot dog, pizza, "
    "donut, cake, chair, couch, potted plant, bed, unused 66, dining table, unused 68, unused 69, "
    "toilet, unused 71, tv, laptop, mouse, remote, keyboard, cell phone, microwave, oven, toaster, "
    "sink, refrigerator, unused 83, book, clock, vase, scissors, "
    "teddy bear, hair drier, toothbrush".split(", ")
)
"""Names in the order of the ids, of which ten have no category."""

OWN = {i: name for i, name in enumerate(CLASS_NAMES) if i and not name.startswith("unused")}
"""COCO's own categories."""

BAD_JSON = (ValueError, KeyError, TypeError, AttributeError)
"""What is raised where a JSON has another form."""

Id = int | str

Thing = Mapping[str, Any]
"""An annotation."""

SPECIAL = {"background": 0, **dict.fromkeys(VOID_NAMES, IGNORE_LABEL)}
"""Class ids of categories that have no class of their own, by their names in lower case."""

FARTHEST = 1e6
"""Largest coordinate of an outline in pixels; pycocotools counts in 32-bit integers."""

MOST_FILES = 20
"""Folders with more JSON files hold one for each photograph, not COCO's."""


def find(root: Path, name: str | None = None) -> Folder | None:
    """The folder of COCO's annotations: of the file `name`; or of `annotations/instances_*.json`,
    or Roboflow's `<split>/_annotations.coco.json`, or any JSON of COCO's form in the folder or its
    `annotations`. A UserError for an impossible number of categories."""
    files: dict[str, Path] = {}
    folders = (root, root / "annotations")
    if name is not None:
        paths = [folder / name for folder in folders if (folder / name).is_file()]
        files = {split_of(path): path for path in paths[:1]}
    elif instances := listing.visible(folders[1].glob("instances_*.json")):
        files = {p.stem.removeprefix("instances_").removesuffix("2017"): p for p in instances}
    elif roboflow := listing.visible(root.glob("*/_annotations.coco.json")):
        files = {path.parent.name: path for path in roboflow}
    else:
        inside = (listing.visible(folder.glob("*.json")) for folder in folders)
        few = (paths for paths in inside if len(paths) <= MOST_FILES)
        for path in filter(read_categories, itertools.chain(*few)):
            split = split_of(path)
            files[re.sub(r"[^\w-]", "_", path.stem) if split in files else split] = path
    return make_folder(root, files) if files else None


def make_folder(root: Path, files: Mapping[str, Path]) -> Folder:
    """The data set whose splits have these files."""
    categories = {split: read_categories(path) for split, path in files.items()}
    if empty := [path for split, path in files.items() if not categories[split]]:
        raise UserError(f"{empty[0]} is no file of COCO instances: it lists no categories.")
    notes = {split: partial(describe_use, root, path) for split, path in files.items()}
    if all(kinds == OWN for kinds in categories.values()):
        own = {split: partial(read_own_split, root, split, path) for split, path in files.items()}
        return Folder(root, CLASS_NAMES, None, own, notes=notes)
    names = join_names(categories, files)
    ids = {name: label for label, name in enumerate(names)}
    readers = {}
    for split, path in files.items():
        kinds = categories[split].items()
        classes = {number: SPECIAL.get(name.lower(), ids.get(name, 0)) for number, name in kinds}
        readers[split] = partial(read_split, root, split, path, classes)
    return Folder(root, names, None, readers, notes=notes)


def split_of(path: Path) -> str:
    """The split in a file's name, its last word such as train or val; else train."""
    word = r"(?<![a-z])(?:train|val|valid|validation|test)(?![a-z])"
    return ["train", *re.findall(word, path.stem.lower())][-1]


def read_categories(path: Path) -> dict[Id, str]:
    """Names of a file's categories by their ids; none where it is no COCO JSON. A UserError where
    two have one id or name.

    The list is found without parsing the whole file, which may have 450 MB. A category 0 that only
    names the group of all others, as Roboflow's does, is left out unless an annotation has it.
    """
    content = path.read_bytes()
    for match in re.finditer(rb'"categories"\s*:\s*(?=\[)', content):
        try:
            text = content[match.end() : match.end() + 2**22].decode(errors="ignore")
            kinds, _ = json.JSONDecoder().raw_decode(text)
            named = [(as_id(kind["id"]), str(kind["name"])) for kind in kinds]
            groups = {kind.get("supercategory") for kind in kinds if kind["id"] != 0}
        except BAD_JSON:
            continue
        for what, values in zip(("id", "name"), zip(*named, strict=True), strict=False):
            if len(set(values)) < len(values):
                twice = Counter(values).most_common(1)[0][0]
                raise UserError(f"{path} has two categories of the {what} {twice!r}.")
        categories = dict(named)
        if 0 in categories and groups == {categories[0]}:
            things = itertools.chain(*load(path).things.values())
            if 0 not in {as_id(thing["category_id"]) for thing in things}:
                del categories[0]
        return categories
    return {}


def as_id(value: Any) -> Id:
    """An id that may be written as a number or as its digits; a TypeError for others.

    >>> as_id(7), as_id("7"), as_id(7.0), as_id("a7")
    (7, 7, 7, 'a7')
    """
    if isinstance(value, str):
        return int(value) if value.isdecimal() else value
    if isinstance(value, bool) or not isinstance(value, int | float) or value != int(value):
        raise TypeError(f"the id {value!r}")
    return int(value)


def join_names(
    categories: Mapping[str, Mapping[Id, str]], files: Mapping[str, Path]
) -> tuple[str, ...]:
    """Background and the categories of all files, those of `train` first, by name."""
    order = sorted(categories, key=lambda split: split != "train")
    names = {"background": None}
    for split in order:
        kinds = sorted(categories[split].items(), key=lambda kind: (str(type(kind[0])), kind))
        names |= {name: None for _, name in kinds if name.lower() not in SPECIAL}
    labels.check_number(files[order[0]], len(names), least=2)
    return tuple(names)


def read_own_split(root: Path, split: str, path: Path) -> tuple[Pair, ...]:
    """COCO's own photographs sorted by number; their names are their ids."""
    classes: dict[Id, int] = {number: number for number in OWN}
    return tuple(
        Pair(name, photo, DrawnMask(path, partial(draw_labels, classes, int(name))))
        for name, photo in find_photographs(root, split).items()
    )


def find_photographs(root: Path, split: str) -> dict[str, Path]:
    """Photographs of 2017 by name, in `<split>2017` of `root` or of its folder `images`."""
    below = root / "images" / f"{split}2017"
    return index_photographs(below if below.is_dir() else root / f"{split}2017")


def read_split(root: Path, split: str, path: Path, classes: Mapping[Id, int]) -> tuple[Pair, ...]:
    """The photographs that a file names, in its order; one without annotations is background."""
    stem = path.stem.removeprefix("instances_")
    below = [root / "images" / stem, root / "images" / split, root / stem, root / split]
    likely = dict.fromkeys((path.parent, *below, root / "images", root))
    known = {parent: photographs_below(parent) for parent in likely if parent.is_dir()}
    of_one = partial(draw_labels, classes)
    return tuple(
        Pair(*find_photograph(image.file_name, known), DrawnMask(path, partial(of_one, number)))
        for number, image in load(path).images.items()
    )


def photographs_below(folder: Path) -> dict[str, Path]:
    """Photographs by their paths below a folder."""
    return {name_of(p, folder) + p.suffix: p for p in images.among(list(listing.walk(folder)))}


def find_photograph(file_name: str, known: Mapping[Path, Mapping[str, Path]]) -> tuple[str, Path]:
    """Name and path of a photograph by its path below a folder, or else by the path's last part."""
    name = normalise(file_name.replace("\\", "/"))
    for spelling in (name, name.rpartition("/")[2]):
        for index in known.values():
            if spelling in index:
                return os.path.splitext(spelling)[0], index[spelling]
    return os.path.splitext(name)[0], next(iter(known)) / name


def draw_labels(classes: Mapping[Id, int], number: Id, path: Path) -> Labels:
    """The mask of a photograph by its id and the class ids of categories; small things lie on large
    ones, of equal ones the later. A UserError where an annotation contradicts itself."""
    content = load(path)
    if number not in content.images:
        raise UserError(f"{path} does not know a photograph {number}.")
    image = content.images[number]
    result = np.zeros((image.height, image.width), np.uint8)
    shapes = []
    for thing in content.things.get(number, []):
        inside = draw(f"{path}, {image.file_name}", thing, *result.shape)
        label = IGNORE_LABEL if is_crowd(thing) else classes[as_id(thing["category_id"])]
        shapes.append((label, inside))
    for label, inside in sorted(shapes, key=lambda shape: -shape[1].sum()):
        result[inside] = label
    return result


class AnnotatedImage(NamedTuple):
    file_name: str
    height: int
    width: int


class Annotations(NamedTuple):
    """What a file of annotations says of each photograph, by its id."""

    images: Mapping[Id, AnnotatedImage]
    things: Mapping[Id, Sequence[Thing]]


def load(path: Path) -> Annotations:
    """The whole file, kept while its split is prepared. A UserError for no file of COCO instances,
    two photographs of one id, or an annotation of a photograph or category that is not listed."""
    return parse(path, path.stat().st_mtime_ns)


@lru_cache(maxsize=2)
def parse(path: Path, mtime_ns: int) -> Annotations:
    """As `load`; a file that has changed is parsed again."""
    photographs: dict[Id, AnnotatedImage] = {}
    things: dict[Id, list] = {}
    try:
        content = json.loads(path.read_bytes())
        for image in content["images"]:
            number, name = as_id(image["id"]), str(image.get("file_name", image["id"]))
            size = int(image["height"]), int(image["width"])
            if min(size) < 1:
                raise UserError(f"{path} gives {name} the height and width {size}.")
            image = AnnotatedImage(name, *size)
            if (other := photographs.setdefault(number, image)) is not image:
                raise UserError(
                    f"{path} gives the id {number} to {other.file_name} and {name}; change one."
                )
        kinds = {as_id(kind["id"]) for kind in content["categories"]}
        for thing in content["annotations"]:
            of, kind, _ = as_id(thing["image_id"]), as_id(thing["category_id"]), is_crowd(thing)
            for what, key, known in (("photograph", of, photographs), ("category", kind, kinds)):
                if key not in known:
                    raise UserError(
                        f"{path} has the annotation {thing.get('id', '?')} of a {what} {key!r}, "
                        f"which it does not list; add the {what} or take the annotation out."
                    )
            things.setdefault(of, []).append(thing)
    except UserError:
        raise
    except BAD_JSON as error:
        raise UserError(f"{path} is no file of COCO instances ({error!r}).") from None
    return Annotations(photographs, things)


def is_crowd(thing: Thing) -> bool:
    """Whether an annotation is of a crowd; a ValueError where it does not say 0 or 1."""
    value = str(thing.get("iscrowd", 0))
    if value not in ("0", "1", "False", "True", "None"):
        raise ValueError(f"iscrowd {value!r} of the annotation {thing.get('id', '?')}")
    return value in ("1", "True")


NOT_USED = {
    "a crowd (iscrowd 1), which counts as void": is_crowd,
    "without an outline, which is left out": lambda thing: not thing.get("segmentation"),
    "of fewer than three points, which are left out": lambda thing: any(
        isinstance(polygon, list) and len(polygon) < 6
        for polygon in polygons_of(thing.get("segmentation"))
    ),
}
"""Why an annotation, or a part of it, is not used as its class."""


def describe_use(root: Path, path: Path) -> tuple[str, ...]:
    """What a file lists, and what of it is not used as a class, by reason."""
    content = load(path)
    things = list(itertools.chain(*content.things.values()))
    counts = Counter(str(thing["id"]) for thing in things if "id" in thing)
    left = {why: [t.get("id", "?") for t in things if holds(t)] for why, holds in NOT_USED.items()}
    twice = "of an id that another has; all of them are used"
    left[twice] = [name for name, number in counts.items() if number > 1]
    told = [f"{path} lists {len(content.images)} photographs and {len(things)} annotations"]
    told += [f"{len(ids)} {why}, such as annotation {ids[0]}" for why, ids in left.items() if ids]
    notes = ["; ".join(told)]
    if labels.has_class_file(root):
        notes.append(f"{root} has a file of class names, which is not used: {path} has categories")
    return tuple(notes)


def draw(where: object, thing: Thing, height: int, width: int) -> Bool[np.ndarray, "h w"]:
    """Pixels of an annotation as COCO's own tool draws them: from polygons, or from the run lengths
    of its columns, compressed or not; none where there is no outline. A UserError that begins with
    `where` for an outline that is neither or does not fit."""
    size, outline = [height, width], thing.get("segmentation")
    runs = outline if isinstance(outline, dict) else None
    if fault := fault_of_runs(runs, size) if runs else fault_of_polygons(outline):
        number = thing.get("id", "?")
        raise UserError(f"{where}: annotation {number} has {fault}; mend it or take it out.")
    if runs:
        packed = {**runs, "size": size}
        if isinstance(runs["counts"], list):
            packed = coco_masks.frPyObjects(packed, *size)
        return coco_masks.decode(packed).astype(bool)
    polygons = [list(map(float, p)) for p in polygons_of(outline) if len(p) >= 6]  # three points
    if not polygons:
        return np.zeros(size, bool)
    return coco_masks.decode(coco_masks.merge(coco_masks.frPyObjects(polygons, *size))).astype(bool)


def polygons_of(outline: Any) -> list:
    """The polygons of an outline, which may be one polygon itself; none of run lengths."""
    if not isinstance(outline, list) or not outline:
        return []
    return outline if isinstance(outline[0], list) else [outline]


def fault_of_polygons(outline: Any) -> str:
    """What is wrong with an outline of polygons: lists of pairs of numbers near the photograph."""
    if outline and not isinstance(outline, list):
        return "an outline that is no list of polygons"
    for polygon in polygons_of(outline):
        if not (isinstance(polygon, list) and all(isinstance(x, int | float) for x in polygon)):
            return "a polygon that is no list of numbers"
        if len(polygon) % 2:
            return f"a polygon of {len(polygon)} numbers"
        if not all(abs(x) < FARTHEST for x in polygon):
            return "a polygon with points far outside the photograph"
    return ""


def fault_of_runs(runs: Mapping[str, Any], size: Sequence[int]) -> str:
    """What is wrong with run lengths, of outside and inside by turns, which must cover the
    photograph: pycocotools leaves what they do not cover unwritten."""
    counts: Any = runs.get("counts")
    if runs.get("size", size) != size:
        return f"run lengths for a photograph of height and width {runs['size']}"
    if isinstance(counts, str):
        if not re.fullmatch("([P-o]*[0-O])*", counts):
            return "run lengths with invalid characters, or that end early"
        counts = expand_runs(counts)
    if not (isinstance(counts, list) and all(isinstance(count, int) for count in counts)):
        return "run lengths that are neither numbers nor text"
    fits = sum(counts) == size[0] * size[1] and min(counts) >= 0
    return "" if fits else f"run lengths of {sum(counts)} pixels"


def expand_runs(counts: str) -> list[int]:
    """The run lengths in a compressed text.

    Characters 48 to 111 hold 6 bits: the lowest 5 are the next of a number, which begins with its
    lowest, and the highest says that more follow; the last character's bit 4 is the sign. From the
    fourth on, numbers are differences to the run before the last.

    >>> expand_runs("52203")
    [5, 2, 2, 2, 5]
    """
    lengths: list[int] = []
    for text in re.findall("[P-o]*[0-O]", counts):
        bits = [ord(character) - 48 & 31 for character in text]
        number = sum(five << 5 * i for i, five in enumerate(bits))
        number -= (bits[-1] & 16) << 5 * len(bits) - 4
        lengths.append(number + (lengths[-2] if len(lengths) > 2 else 0))
    return lengths


def with_mask(thing: Thing, inside: Bool[np.ndarray, "h w"]) -> dict[str, Any]:
    """An annotation with other pixels, as run lengths; `area` and `bbox` are theirs."""
    runs = coco_masks.encode(np.asfortranarray(inside, np.uint8))
    outline = {"size": list(inside.shape), "counts": runs["counts"].decode()}
    box, area = coco_masks.toBbox(runs).tolist(), int(inside.sum())
    return {**thing, "segmentation": outline, "bbox": box, "area": area}
