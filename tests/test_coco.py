"""Masks of COCO's annotations against COCO's own tool."""

import numpy as np
from pycocotools import mask as coco_masks

from deeplab_jax.data import coco


def draw_annotation(rng: np.random.Generator) -> tuple[object, int, int]:
    """A segmentation in one of the forms that files have, and the size of its photograph."""
    height, width = (int(n) for n in rng.integers(1, 90, 2))
    form = rng.integers(4)
    if form < 2:
        polygons = []
        for _ in range(rng.integers(1, 4)):
            points = rng.uniform(-5, 95, (rng.integers(3, 12), 2))
            points = points.round(rng.integers(0, 3)) if rng.random() < 0.8 else points
            polygons.append(points.ravel().tolist())
        return polygons, height, width
    inside = np.asfortranarray(rng.random((height, width)) < rng.random(), np.uint8)
    if form == 2:
        text = coco_masks.encode(inside)["counts"].decode()
        return {"size": [height, width], "counts": text}, height, width
    down = np.concatenate([[0], inside.T.ravel()])
    edges = np.flatnonzero(np.diff(down))
    counts = np.diff([0, *edges, inside.size]).tolist()
    return {"size": [height, width], "counts": counts}, height, width


def with_cocos_tool(segmentation, height: int, width: int) -> np.ndarray:
    """As `COCO.annToMask` of pycocotools does it."""
    if isinstance(segmentation, list):
        runs = coco_masks.merge(coco_masks.frPyObjects(segmentation, height, width))
    elif isinstance(segmentation["counts"], list):
        runs = coco_masks.frPyObjects(segmentation, height, width)
    else:
        runs = segmentation
    return coco_masks.decode(runs).astype(bool)


def test_500_annotations_are_drawn_as_cocos_own_tool_draws_them():
    rng = np.random.default_rng(0)
    for _ in range(500):
        segmentation, height, width = draw_annotation(rng)
        expected = with_cocos_tool(segmentation, height, width)
        np.testing.assert_array_equal(coco.draw_inside(segmentation, height, width), expected)


def test_a_rectangle_covers_the_pixels_whose_centres_lie_inside():
    inside = coco.draw_inside([[2, 1, 6, 1, 6, 4, 2, 4]], 6, 9)
    expected = np.zeros((6, 9), bool)
    expected[1:4, 2:6] = True
    np.testing.assert_array_equal(inside, expected)
