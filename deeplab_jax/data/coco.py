"""MS-COCO 2017: things of 80 kinds from `annotations/instances_<split>2017.json`.

Class ids are COCO's own category ids, 1 to 90 with gaps, and 0 for background: the 91 outputs of
the networks pre-trained for the paper. Crowds count as void, and small things lie on large ones;
the paper says nothing of either.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, UInt8
from PIL import Image, ImageDraw

from deeplab_jax.data.folders import Folder, Pair, index_photographs
from deeplab_jax.data.listing import visible
from deeplab_jax.types import IGNORE_LABEL, UserError

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
"""Names in the order of the ids; - where no category has an id."""

CLASS_NAMES = tuple(
    f"unused {i}" if name == "-" else name for i, name in enumerate(KINDS.split(", "))
)


def find_coco(root: Path) -> Folder | None:
    """`annotations/instances_<split>2017.json` beside `<split>2017/*.jpg`."""
    files = visible((root / "annotations").glob("instances_*2017.json"))
    if not files:
        return None
    splits = {path.stem.removeprefix("instances_").removesuffix("2017"): path for path in files}
    readers = {split: partial(read_split, root, split, path) for split, path in splits.items()}
    return Folder(root, CLASS_NAMES, None, readers)


def read_split(root: Path, split: str, path: Path) -> tuple[Pair, ...]:
    """All photographs sorted by number; where nothing is marked, all is background."""
    photographs = find_photographs(root, split)
    return tuple(
        Pair(name, photo, Outlines(path, int(name))) for name, photo in photographs.items()
    )


def find_photographs(root: Path, split: str) -> dict[str, Path]:
    """Photographs of 2017 by name, in `<split>2017` of `root` or of its folder `images`."""
    below = root / "images" / f"{split}2017"
    return index_photographs(below if below.is_dir() else root / f"{split}2017")


@dataclass(frozen=True)
class Outlines:
    """The mask of one photograph, drawn from the outlines in a file of annotations."""

    path: Path
    photograph: int

    def draw(self) -> UInt8[np.ndarray, "h w"]:
        """Class ids; pixels at an edge may differ by one from COCO's own tool."""
        annotations = load(self.path)
        if self.photograph not in annotations.sizes:
            raise UserError(f"{self.path} does not know a photograph {self.photograph}.")
        height, width = annotations.sizes[self.photograph]
        labels = np.zeros((height, width), np.uint8)
        things = annotations.things.get(self.photograph, [])
        for thing in sorted(things, key=lambda thing: -thing["area"]):
            inside = draw_inside(thing["segmentation"], height, width)
            labels[inside] = IGNORE_LABEL if thing["iscrowd"] else thing["category_id"]
        return labels


@dataclass(frozen=True)
class Annotations:
    """What a file of annotations says of each photograph, by its number."""

    sizes: Mapping[int, tuple[int, int]]
    """Height and width in pixels."""
    things: Mapping[int, Sequence[Mapping[str, Any]]]


@lru_cache(maxsize=1)
def load(path: Path) -> Annotations:
    """The whole file; the largest has 450 MB and is kept while its split is prepared."""
    try:
        content = json.loads(path.read_bytes())
        sizes = {image["id"]: (image["height"], image["width"]) for image in content["images"]}
        things: dict[int, list] = {}
        for thing in content["annotations"]:
            things.setdefault(thing["image_id"], []).append(thing)
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is no file of COCO instances ({error!r}).") from None
    return Annotations(sizes, things)


def draw_inside(segmentation: Any, height: int, width: int) -> Bool[np.ndarray, "h w"]:
    """Pixels of a thing, given by polygons or by the run lengths of its columns."""
    if isinstance(segmentation, dict):
        return decode_runs(segmentation["counts"], height, width)
    picture = Image.new("1", (width, height))
    for polygon in segmentation:
        ImageDraw.Draw(picture).polygon(polygon, fill=1)
    return np.asarray(picture)


def decode_runs(counts: Sequence[int], height: int, width: int) -> Bool[np.ndarray, "h w"]:
    """Run lengths of outside and inside by turns, down the columns from left to right."""
    inside = np.arange(len(counts)) % 2 == 1
    return np.repeat(inside, counts).reshape(width, height).T
