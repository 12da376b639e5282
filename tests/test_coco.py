"""Masks of COCO's annotations against COCO's own tool, of sound files and of faulty ones."""

import copy
import json

import numpy as np
import pytest
from drawn_folder import opened
from PIL import Image
from pycocotools import mask as coco_masks

from deeplab_jax.data import builders, coco, folders, masks
from deeplab_jax.types import UserError

pytestmark = pytest.mark.filterwarnings("ignore:__array__:DeprecationWarning")


def draw_outline(rng: np.random.Generator, height: int, width: int) -> object:
    """A segmentation in one of the forms that files have."""
    form = rng.integers(4)
    if form < 2:
        polygons = []
        for _ in range(rng.integers(1, 4)):
            points = rng.uniform(-5, 95, (rng.integers(3, 12), 2)) % (width + 5)
            points = points.round(rng.integers(0, 3)) if rng.random() < 0.8 else points
            polygons.append(points.ravel().tolist())
        return polygons
    inside = np.asfortranarray(rng.random((height, width)) < rng.random(), np.uint8)
    if form == 2:
        text = coco_masks.encode(inside)["counts"].decode()
        return {"size": [height, width], "counts": text}
    down = np.concatenate([[0], inside.T.ravel()])
    edges = np.flatnonzero(np.diff(down))
    counts = np.diff([0, *edges, inside.size]).tolist()
    return {"size": [height, width], "counts": counts}


def with_cocos_tool(segmentation, height: int, width: int) -> np.ndarray:
    """As `COCO.annToMask` of pycocotools does it."""
    if isinstance(segmentation, list):
        runs = coco_masks.merge(coco_masks.frPyObjects(segmentation, height, width))
    elif isinstance(segmentation["counts"], list):
        runs = coco_masks.frPyObjects(segmentation, height, width)
    else:
        runs = segmentation
    return coco_masks.decode(runs).astype(bool)


H, W = 20, 26


def draw_content(rng: np.random.Generator) -> dict:
    """A sound file of three photographs with two things each."""
    numbers = rng.choice(6, 3, replace=False).tolist()
    images = [{"id": i, "file_name": f"{i}.png", "height": H, "width": W} for i in numbers]
    kinds = [{"id": i, "name": name} for i, name in ((2, "cat"), (5, "dog"), (9, "cow"))]
    things = [
        {
            "id": k + 1,
            "image_id": numbers[k // 2],
            "category_id": int(rng.choice([2, 5, 9])) if k else 2,
            "segmentation": draw_outline(rng, H, W),
            "area": float(rng.integers(1, 500)),
            "iscrowd": 0,
        }
        for k in range(6)
    ]
    return {"images": images, "categories": kinds, "annotations": things}


def labels_by_hand(content: dict) -> dict[str, np.ndarray]:
    """Masks of a sound file: things of few pixels on those of many, later on earlier ones."""
    found = {}
    for image in content["images"]:
        labels = np.zeros((H, W), np.uint8)
        things = [t for t in content["annotations"] if t["image_id"] == image["id"]]
        drawn = [(with_cocos_tool(t["segmentation"], H, W), t) for t in things]
        for inside, thing in sorted(drawn, key=lambda pair: -int(pair[0].sum())):
            label = [2, 5, 9].index(thing["category_id"]) + 1
            labels[inside] = 255 if thing["iscrowd"] else label
        found[str(image["id"])] = labels
    return found


def change(key, value):
    return lambda content, thing: thing.update({key: value})


def outline(value):
    return change("segmentation", value)


def drop(key):
    return lambda content, thing: thing.pop(key)


def share_an_id(content, thing):
    content["images"][0]["id"] = content["images"][1]["id"]


def as_text(*keys):
    def change(content, thing):
        thing.update({key: str(thing[key]) for key in keys})

    return change


def group_of_others(content, thing):
    """Category 0 has the name of the group of the others, and is used."""
    for kind in content["categories"]:
        kind["supercategory"] = "cat"
    content["categories"][0]["id"] = 0
    for other in content["annotations"]:
        other["category_id"] = other["category_id"] % 2 and other["category_id"]


FAULTS = {
    "two photographs of one id": share_an_id,
    "no such photograph": change("image_id", 77),
    "no such category": change("category_id", 3),
    "an id that is a list": change("image_id", [1]),
    "a category that is true": change("category_id", True),
    "no photograph": drop("image_id"),
    "no category": drop("category_id"),
    "two categories of one id": lambda c, t: c["categories"][0].update(id=5),
    "two categories of one name": lambda c, t: c["categories"][0].update(name="dog"),
    "a height of 0": lambda c, t: c["images"][1].update(height=0),
    "no width": lambda c, t: c["images"][1].pop("width"),
    "iscrowd in words": change("iscrowd", "yes"),
    "half a point": outline([[1, 1, 9, 1, 9, 9, 1]]),
    "a point that is nowhere": outline([[1, 1, float("nan"), 1, 9, 9]]),
    "a point far away": outline([[1, 1, 1e9, 1, 9, 9]]),
    "points in words": outline([["1", "1", "9", "1", "9", "9"]]),
    "runs of another size": outline({"size": [W, H], "counts": [H * W]}),
    "runs that end early": outline({"size": [H, W], "counts": [3, 4]}),
    "runs below 0": outline({"size": [H, W], "counts": [-3, H * W + 3]}),
    "a text that ends early": outline({"size": [H, W], "counts": "12P"}),
    "a text of strange signs": outline({"size": [H, W], "counts": "1~2"}),
    "an outline in words": outline("cat"),
    "a photograph listed twice": lambda c, t: c["images"][0].update(c["images"][1] | {"id": 51}),
}
"""What is a fault: kind -> what is done to the content and to one of its annotations."""

HARMLESS = {
    "the id of the photograph as text": as_text("image_id"),
    "the id of the category as text": as_text("category_id"),
    "ids as floating point": lambda c, t: t.update(image_id=float(t["image_id"])),
    "an area of 0": change("area", 0),
    "the area of the box": change("area", 1e6),
    "no area": drop("area"),
    "no iscrowd": drop("iscrowd"),
    "a category 0 named as its group": group_of_others,
}
"""What changes nothing."""

TOLD = {
    "a crowd": (change("iscrowd", 1), "1 a crowd (iscrowd 1), which counts as void"),
    "no outline": (outline([]), "1 without an outline, which is left out"),
    "a box alone": (drop("segmentation"), "1 without an outline, which is left out"),
    "two points": (outline([[1, 1, 9, 9]]), "1 of fewer than three points"),
    "an id twice": (
        lambda c, t: t.update(id=1 + t["id"] % 6),
        "1 of an id that another has; all of them are used",
    ),
}
"""What is left out, or may not be meant, and the words that tell it."""

KINDS = [*FAULTS, *HARMLESS, *TOLD]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Photographs of all the numbers that may be drawn."""
    root = tmp_path_factory.mktemp("set")
    (root / "images").mkdir()
    for number in range(6):
        Image.new("RGB", (W, H)).save(root / "images" / f"{number}.png")
    return root


def test_500_faulty_files_are_faults_or_give_the_masks_of_cocos_tool_and_none_is_silent(folder):
    rng = np.random.default_rng(1)
    for number in range(500):
        kind = KINDS[number % len(KINDS)]
        content = draw_content(rng)
        sound = copy.deepcopy(content)
        position = int(rng.integers(6))
        do = TOLD[kind][0] if kind in TOLD else {**FAULTS, **HARMLESS}[kind]
        do(content, content["annotations"][position])
        if kind == "a crowd":
            sound["annotations"][position]["iscrowd"] = 1
        elif kind in TOLD and kind != "an id twice":
            sound["annotations"].pop(position)
        (folder / "train.json").unlink(missing_ok=True)
        (folder / "train.json").write_text(json.dumps(content))
        if kind in FAULTS:
            with pytest.raises(UserError, match=r"train\.json|stands twice"):
                read(folder)
            continue
        labels, notes = read(folder)
        for name, expected in labels_by_hand(sound).items():
            np.testing.assert_array_equal(labels[name], expected, err_msg=kind)
        words = TOLD[kind][1] if kind in TOLD else "3 photographs and 6 annotations."
        assert words in f"{notes[0]}.", kind


def read(root) -> tuple[dict[str, np.ndarray], list[str]]:
    """Masks by the names of photographs, and what is told of the file."""
    coco.parse.cache_clear()
    found = opened(root)
    pairs = folders.read_split(found, "train")
    builders.refuse(folders.describe_repeated(pairs, "train"))
    labels = {pair.name: masks.read(pair.mask, masks.rules_of(found)) for pair in pairs}
    return labels, folders.left_out(found, ["train"])
