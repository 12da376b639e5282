"""Confusion matrices and what is read from them, in NumPy.

A confusion matrix is int64 `[classes, classes]`, rows the truth, columns the prediction; pixels
labelled IGNORE_LABEL are in none. Matrices of photographs are added, never averaged: the mean
IoU of a split is that of its one matrix (Section 4.1). `Tally` adds what other scores need.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int64, Integer
from scipy import ndimage

from deeplab_jax.choices import Boundary
from deeplab_jax.types import IGNORE_LABEL, Array, LabelMap, UserError

Confusion = Int64[np.ndarray, "c c"]


def confusion_matrix(
    labels: Integer[Array, "*pixels"], predicted: Integer[Array, "*pixels"], *, num_classes: int
) -> Confusion:
    """Counts pixels by (truth, prediction).

    >>> confusion_matrix(np.array([0, 1, 255]), np.array([0, 0, 1]), num_classes=2).tolist()
    [[1, 0], [1, 0]]
    """
    labels, predicted = np.asarray(labels), np.asarray(predicted)
    valid = labels != IGNORE_LABEL
    pairs = labels[valid].astype(np.int64) * num_classes + predicted[valid]
    return np.bincount(pairs, minlength=num_classes**2).reshape(num_classes, num_classes)


class Tally(NamedTuple):
    """Integers summed over the photographs of a split, in any order and over processes."""

    confusion: Confusion
    bands: Int64[np.ndarray, "c 2"]
    """Of each class: pixels in the intersection and in the union of the boundary bands."""
    photographs: Int64[np.ndarray, "2"]
    """Photographs that have labels, and the sum of their mean IoU in steps of 2**-40."""


PHOTOGRAPH_UNIT = 2**40


def empty_tally(num_classes: int) -> Tally:
    """The tally of no photograph."""
    return Tally(*(np.zeros(s, np.int64) for s in ((num_classes,) * 2, (num_classes, 2), (2,))))


def add(one: Tally, other: Tally) -> Tally:
    """The tally over the photographs of both."""
    return Tally(*(a + b for a, b in zip(one, other, strict=True)))


def tally(labels: LabelMap, predicted: LabelMap, *, num_classes: int) -> Tally:
    """The tally of one photograph."""
    confusion = confusion_matrix(labels, predicted, num_classes=num_classes)
    value = mean_iou(confusion)
    photographs = [0, 0] if np.isnan(value) else [1, round(value * PHOTOGRAPH_UNIT)]
    bands = boundary_bands(labels, predicted, num_classes=num_classes)
    return Tally(confusion, bands, np.array(photographs, np.int64))


def boundary_bands(
    labels: LabelMap, predicted: LabelMap, *, num_classes: int, ratio: float = 0.02
) -> Int64[np.ndarray, "c 2"]:
    """Intersection and union in pixels of each class's boundary bands, for Boundary IoU.

    A class's band holds its pixels within d of a pixel that is not of the class, or of the edge of
    the photograph: what d erosions by a 3x3 square take away. d is `ratio` of the photograph's
    diagonal, at least 1 (Cheng et al., "Boundary IoU", CVPR 2021). Void pixels are void in the
    prediction too, so that outlines may lie anywhere in a void band.
    """
    labels, predicted = np.asarray(labels), np.asarray(predicted)
    width = max(1, round(ratio * float(np.hypot(*labels.shape))))
    predicted = np.where(labels == IGNORE_LABEL, IGNORE_LABEL, predicted)
    near, near_found = _in_band(labels, width), _in_band(predicted, width)
    parts = (labels[near], predicted[near_found], labels[near & near_found & (labels == predicted)])
    truth, found, both = (np.bincount(p, minlength=256)[:num_classes] for p in parts)
    return np.stack([both, truth + found - both], 1)


def _in_band(labels: LabelMap, width: int) -> Bool[np.ndarray, "h w"]:
    """Pixels within `width` of one of another label, or of the outside."""
    rows, columns = labels.shape
    padded = np.pad(labels.astype(np.int16), 1, constant_values=-1)  # the outside is no label
    near = np.zeros(labels.shape, bool)
    for i, j in np.ndindex(3, 3):
        near |= padded[i : i + rows, j : j + columns] != labels
    for axis in (0, 1):
        near = ndimage.maximum_filter1d(near, 2 * width - 1, axis, mode="constant")
    return near


def boundary_distance(labels: LabelMap, boundary: Boundary) -> Int64[np.ndarray, "h w"]:
    """Chebyshev distance of each pixel to the nearest void pixel, or the nearest of another label.

    `void` is the band of 255 that PASCAL VOC draws around objects; `classes` serves data sets
    without one. The largest int64 where a photograph has no boundary.

    >>> boundary_distance(np.array([[1, 1, 255, 1]]), "void").tolist()
    [[2, 1, 0, 1]]
    >>> boundary_distance(np.array([[1, 1, 2, 2]]), "classes").tolist()
    [[2, 1, 1, 2]]
    """
    labels = np.asarray(labels)
    if boundary == "void":
        edge, first = labels == IGNORE_LABEL, 0
    else:
        # Pixels at the edge of a region are at distance 1 from the other label.
        edge, first = ndimage.maximum_filter(labels, 3) != ndimage.minimum_filter(labels, 3), 1
    if not edge.any():
        return np.full(labels.shape, np.iinfo(np.int64).max)
    steps = np.asarray(ndimage.distance_transform_cdt(~edge, "chessboard"))
    return steps.astype(np.int64) + first


def trimap_confusions(
    labels: LabelMap,
    predicted: LabelMap,
    *,
    num_classes: int,
    max_width: int = 40,
    boundary: Boundary = "void",
) -> Int64[np.ndarray, "widths c c"]:
    """Confusion matrices of the pixels within 1, 2, ... `max_width` pixels of a boundary.

    Band w of `void` is that of the authors' trimap figure: what a square of 2w + 1 pixels around
    each void pixel covers.
    """
    steps = boundary_distance(labels, boundary)
    rings = [
        confusion_matrix(labels[near], np.asarray(predicted)[near], num_classes=num_classes)
        for near in (steps == width for width in range(1, max_width + 1))
    ]
    return np.cumsum(rings, axis=0)


def iou(confusion: Confusion) -> Float[np.ndarray, " c"]:
    """Intersection over union of each class; NaN where a class is neither present nor predicted.

    >>> iou(np.array([[3, 1], [0, 0]])).tolist()
    [0.75, 0.0]
    """
    hit = np.diag(confusion)
    return _divide(hit, confusion.sum(0) + confusion.sum(1) - hit)


def mean_iou(confusion: Confusion) -> float:
    """Mean over the classes present in the truth.

    >>> mean_iou(np.array([[3, 1], [0, 0]]))
    0.75
    """
    return _mean(iou(confusion)[confusion.sum(1) > 0])


def mean_iou_without(
    confusion: Confusion, class_names: Sequence[str], without: Sequence[str]
) -> float:
    """Mean over the classes present in the truth and not named in `without`.

    All pixels count: one that is predicted as a class left out is an error of its own class.
    """
    kept = np.array([name not in without for name in class_names])
    return _mean(iou(confusion)[kept & (confusion.sum(1) > 0)])


def category_iou(
    confusion: Confusion, class_names: Sequence[str], categories: Mapping[str, Sequence[str]]
) -> dict[str, float]:
    """IoU of groups of classes, each group counted as one class; NaN where it occurs nowhere.

    >>> confusion = np.array([[1, 2, 0], [0, 3, 0], [1, 0, 3]])
    >>> category_iou(confusion, "abc", {"pair": "ab", "one": "c"})
    {'pair': 0.8571428571428571, 'one': 0.75}
    """
    member = np.array([[name in group for name in class_names] for group in categories.values()])
    merged = member.astype(np.int64) @ confusion @ member.T.astype(np.int64)
    return dict(zip(categories, iou(merged).tolist(), strict=True))


def check_class_names(wanted: Sequence[str], class_names: Sequence[str]) -> None:
    """Refuses a name that no class has."""
    for name in wanted:
        if name not in class_names:
            raise UserError(f"there is no class {name!r}; the classes are {', '.join(class_names)}")


def mean_iou_per_photograph(split: Tally) -> float:
    """Mean over photographs of the mean IoU of each, over the classes present in its truth."""
    number, total = split.photographs.tolist()
    return total / PHOTOGRAPH_UNIT / number if number else float("nan")


def boundary_iou(split: Tally) -> Float[np.ndarray, " c"]:
    """Boundary IoU of each class over a split; NaN where no band has a pixel."""
    return _divide(split.bands[:, 0], split.bands[:, 1])


def scores(split: Tally) -> dict[str, float]:
    """Mean IoU by three rules, pixel and mean class accuracy, IoU weighted by frequency, mean IoU
    by photograph, and mean Boundary IoU over the classes in the truth.

    The rules differ where a class is absent from the truth: left out, counted as 0 (as in the
    authors' evaluator), or counted as 0 only where it is predicted (as in torchmetrics and
    mmsegmentation).
    """
    confusion = split.confusion
    truth, hit, values = confusion.sum(1), np.diag(confusion), iou(confusion)
    present, total = truth > 0, confusion.sum() or float("nan")
    return {
        "mean_iou": mean_iou(confusion),
        "mean_iou_all_classes": float(np.nan_to_num(values).mean()),
        "mean_iou_present_or_predicted": _mean(values[~np.isnan(values)]),
        "pixel_accuracy": float(hit.sum() / total),
        "mean_accuracy": _mean(_divide(hit, truth)[present]),
        "frequency_weighted_iou": float((truth[present] * values[present]).sum() / total),
        "mean_iou_per_photograph": mean_iou_per_photograph(split),
        "boundary_iou": _mean(boundary_iou(split)[present]),
    }


def report(split: Tally, class_names: Sequence[str]) -> dict[str, Any]:
    """The scores and, under `iou` and `class_boundary_iou`, those by class name.

    None for a class that never occurs.
    """
    found: dict[str, Any] = scores(split)
    by_class = {"iou": iou(split.confusion), "class_boundary_iou": boundary_iou(split)}
    for kind, values in by_class.items():
        pairs = zip(class_names, values.tolist(), strict=True)
        found[kind] = {name: None if np.isnan(value) else value for name, value in pairs}
    return found


def table(split: Tally, class_names: Sequence[str]) -> str:
    """IoU, Boundary IoU and truth's share of each class, then the scores, as lines to print."""
    confusion = split.confusion
    share = confusion.sum(1) / max(confusion.sum(), 1)
    width = max(len(name) for name in [*class_names, "mean IoU per photograph"])
    lines = [f"{'class':<{width}}    IoU boundary   share"]
    columns = (iou(confusion), boundary_iou(split), share)
    for name, value, near, part in zip(class_names, *columns, strict=True):
        shown, band = ("     -" if np.isnan(v) else f"{v:6.4f}" for v in (value, near))
        lines.append(f"{name:<{width}} {shown}   {band} {part:6.1%}")
    results = scores(split)
    rules = [results.pop(f"mean_iou_{rule}") for rule in ("all_classes", "present_or_predicted")]
    if not np.allclose(rules, results["mean_iou"]):
        lines.append("a class absent from the truth is left out of the mean IoU;")
        lines.append(f"counted as 0, as in the paper: {rules[0]:.4f};")
        lines.append(f"counted as 0 where it is predicted, as elsewhere: {rules[1]:.4f}")
    for name, value in results.items():
        lines.append(f"{name.replace('_', ' ').replace('iou', 'IoU'):<{width}} {value:6.4f}")
    return "\n".join(lines)


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) if values.size else float("nan")


def _divide(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.divide(a, b, out=np.full(len(a), np.nan), where=b > 0)
