"""Confusion matrices and what is read from them, in NumPy.

A confusion matrix is int64 `[classes, classes]`, rows the truth, columns the prediction; pixels
labelled IGNORE_LABEL are in none. Matrices of photographs are added, never averaged: the mean
IoU of a split is that of its one matrix (Section 4.1).
"""

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from jaxtyping import Float, Int64, Integer
from scipy import ndimage

from deeplab_jax.types import IGNORE_LABEL, Array, LabelMap

Confusion = Int64[np.ndarray, "c c"]
Boundary = Literal["void", "classes"]


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


def class_counts(source: Any, *, num_classes: int) -> Int64[np.ndarray, " c"]:
    """Pixels of each class over all `labels` of a source."""
    counts = np.zeros(256, np.int64)
    for number in range(len(source)):
        counts += np.bincount(source[number]["labels"].ravel(), minlength=256)
    return counts[:num_classes]


def boundary_distance(labels: LabelMap, boundary: Boundary) -> Int64[np.ndarray, "h w"]:
    """Steps of a chess king from each pixel to the nearest void one, or one of another label.

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
        # A pixel with another label beside it is one step from it, its like behind it one more.
        edge, first = ndimage.maximum_filter(labels, 3) != ndimage.minimum_filter(labels, 3), 1
    if not edge.any():
        return np.full(labels.shape, np.iinfo(np.int64).max)
    return ndimage.distance_transform_cdt(~edge, "chessboard").astype(np.int64) + first


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
    present = confusion.sum(1) > 0
    return float(iou(confusion)[present].mean()) if present.any() else float("nan")


def mean_iou_all_classes(confusion: Confusion) -> float:
    """Mean over all classes, 0 for one that occurs nowhere, as the authors' evaluator counts."""
    return float(np.nan_to_num(iou(confusion)).mean())


def scores(confusion: Confusion) -> dict[str, float]:
    """Mean IoU by both rules, pixel and mean class accuracy, and IoU weighted by frequency."""
    total, truth, hit = confusion.sum(), confusion.sum(1), np.diag(confusion)
    present = truth > 0
    accuracy = _divide(hit, truth)
    return {
        "mean_iou": mean_iou(confusion),
        "mean_iou_all_classes": mean_iou_all_classes(confusion),
        "pixel_accuracy": float(hit.sum() / total) if total else float("nan"),
        "mean_accuracy": float(accuracy[present].mean()) if present.any() else float("nan"),
        "frequency_weighted_iou": float((truth[present] * iou(confusion)[present]).sum() / total)
        if total
        else float("nan"),
    }


def report(confusion: Confusion, class_names: Sequence[str]) -> dict[str, Any]:
    """The scores and, under `iou`, the IoU by class name; None for a class that never occurs."""
    per_class = {
        name: None if np.isnan(value) else float(value)
        for name, value in zip(class_names, iou(confusion), strict=True)
    }
    return {**scores(confusion), "iou": per_class}


def table(confusion: Confusion, class_names: Sequence[str]) -> str:
    """IoU and truth's share of each class, then the scores, as lines to print."""
    share = confusion.sum(1) / max(confusion.sum(), 1)
    width = max(len(name) for name in [*class_names, "frequency weighted IoU"])
    lines = [f"{'class':<{width}}    IoU   share"]
    for name, value, part in zip(class_names, iou(confusion), share, strict=True):
        shown = "     -" if np.isnan(value) else f"{value:6.4f}"
        lines.append(f"{name:<{width}} {shown} {part:6.1%}")
    results = scores(confusion)
    if not np.isclose(results["mean_iou"], results["mean_iou_all_classes"]):
        lines.append("a class absent from the truth is left out of the mean IoU;")
        lines.append(f"counted as 0, as in the paper: {results['mean_iou_all_classes']:.4f}")
    del results["mean_iou_all_classes"]
    for name, value in results.items():
        lines.append(f"{name.replace('_', ' ').replace('iou', 'IoU'):<{width}} {value:6.4f}")
    return "\n".join(lines)


def _divide(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.divide(a, b, out=np.full(len(a), np.nan), where=b > 0)
