"""From labels instead of probabilities: annotations, scribbles and pseudo-masks."""

from functools import partial
from typing import Any

import numpy as np
from jaxtyping import Bool, Float32, Integer

from deeplab_jax.crf.arrays import any_framework, channels_last, require_array
from deeplab_jax.crf.checks import require
from deeplab_jax.crf.params import CRFParams
from deeplab_jax.crf.refinement import refine
from deeplab_jax.crf.upsampling import at_smaller_scale, block_means, factor_for
from deeplab_jax.types import IGNORE_LABEL

LABEL_PARAMS = CRFParams(4.0, 10.0, 5.0, 1.0, 1.0)
"""For annotations and pseudo-masks that are mostly right: thin objects stay (ours, by CamVid)."""

SCRIBBLE_PARAMS = CRFParams(10.0, 80.0, 13.0, 3.0, 3.0)
"""For scribbles and rough outlines, the values of pydensecrf's example: they fill large regions and
remove thin objects."""


def check_labels(labels: Any) -> np.ndarray:
    """Labels as a NumPy array of integers."""
    labels = np.asarray(require_array("labels", labels))
    whole = np.issubdtype(labels.dtype, np.integer) or labels.dtype == bool
    require(whole, f"expected labels as integers, got {labels.dtype}")
    return labels.astype(np.int64)


def check_certainty(gt_prob: float | int, num_labels: int | None = None) -> None:
    """Refuses what is no probability strictly between 0 and 1 that favours one of the labels."""
    least = f"1/{num_labels} for {num_labels} labels" if num_labels else "0"
    right = (1 / num_labels if num_labels else 0) < gt_prob < 1
    require(right, f"gt_prob is a probability above {least} and below 1, got {gt_prob!r}")


def probs_by_label(num_classes: int, gt_prob: float | int) -> Float32[np.ndarray, "_ c"]:
    """Probabilities for each label: `gt_prob` its own, the rest equally; the last are uniform."""
    rest = (1 - gt_prob) / max(num_classes - 1, 1)
    probs = np.where(np.eye(num_classes + 1, num_classes), gt_prob, rest)
    probs[-1] = 1 / num_classes
    return probs.astype(np.float32)


@any_framework
def unary_from_labels(
    labels: Any, num_classes: int, gt_prob: float | int = 0.7, zero_unsure: bool = False
) -> Float32[np.ndarray, "*shape c"]:
    """Energies of a labelling that is right with probability `gt_prob`.

    Args:
      labels: integers `[*shape]`, classes from 0 to `num_classes` - 1; 255 means unknown, unless
        there are more than 255 classes. Another label is a UserError.
      num_classes: at least 2; with `zero_unsure`, 0 is not counted.
      gt_prob: probability of a point's own label; the other classes share the rest equally.
      zero_unsure: 0 means unknown and class k is label k + 1, as in pydensecrf.

    Returns:
      -log of probabilities, float32 `[*shape, num_classes]`, equal for all classes where the
      label is unknown; `densecrf.unary_from_labels` has pydensecrf's order.

    >>> unary_from_labels(np.array([1, 255]), 2, gt_prob=0.5).astype(float).round(2).tolist()
    [[0.69, 0.69], [0.69, 0.69]]
    """
    labels = check_labels(labels)
    check_certainty(gt_prob)
    require(num_classes > 1, f"expected at least 2 classes, got num_classes={num_classes!r}")
    unsure = (labels == IGNORE_LABEL) & (num_classes <= IGNORE_LABEL)
    index = np.where(unsure, -1, labels)
    if zero_unsure:
        index = np.where(unsure | (labels == 0), -1, labels - 1)
    foreign = np.unique(labels[(index >= num_classes) | (labels < 0)])
    shown = ", ".join(map(str, foreign[:5]))
    require(
        not shown,
        f"labels hold {shown}; expected classes from {int(zero_unsure)} to "
        f"{num_classes - 1 + zero_unsure} for num_classes={num_classes}",
    )
    return -np.log(probs_by_label(num_classes, gt_prob))[index]


@any_framework
def refine_labels(
    image: Any,
    labels: Any,
    params: CRFParams = LABEL_PARAMS,
    *,
    gt_prob: float | int | None = None,
    zero_unsure: bool = False,
    fill_unsure: bool = True,
    num_iterations: int = 5,
    max_pixels: int | None = None,
    layout: str = "hwc",
    **options: Any,
) -> Integer[np.ndarray, "h w"]:
    """Labels of a photograph after the CRF: borders move to edges, specks go, gaps are filled.

    Args:
      labels: integers `[h, w]`: an annotation, scribbles or a network's labels; 255 is unknown.
        The result is of their type, and has only labels that occur in them.
      params: weights and standard deviations; scribbles want SCRIBBLE_PARAMS.
      gt_prob: how sure the labels are, more than 1 over their number; scribbles deserve 0.9 and
        more. None: 0.5, or 0.7 where there are two.
      zero_unsure: 0 means unknown as well.
      fill_unsure: give unknown pixels a label; if not, they stay as they are.
      **options: these and all others as in `refine`.
    """
    (image,) = channels_last(layout, image=image)
    given = np.asarray(require_array("labels", labels))
    labels, shape = check_labels(given), tuple(image.shape)
    require(
        labels.shape == shape[:-1] and labels.ndim == 2,
        "expected an image [h, w, 3] and labels [h, w] of the same height and width, "
        f"got {shape} and {labels.shape}",
    )
    unsure = labels == IGNORE_LABEL
    if zero_unsure:
        unsure |= labels == 0
    known = np.unique(labels[~unsure])
    if not known.size:
        return given.copy()
    best = np.zeros(labels.shape, int)
    if known.size > 1:
        gt_prob = (0.7 if known.size == 2 else 0.5) if gt_prob is None else gt_prob
        check_certainty(gt_prob, known.size)
        by_label = probs_by_label(known.size, gt_prob)
        index = np.where(unsure, -1, np.searchsorted(known, labels))
        run = partial(refine, num_iterations=num_iterations, **options)
        if (factor := factor_for(labels.shape, max_pixels)) > 1:  # none has the full size
            each = (*range(known.size), -1)
            shares = [block_means((index == c)[..., None], factor) for c in each]
            probs = np.concatenate(shares, axis=-1) @ by_label
            best = at_smaller_scale(run, image, probs, params, factor, labels=True)
        else:
            best = np.asarray(run(image, by_label[index], params)).argmax(axis=-1)
    result = known[best]
    if not fill_unsure:
        result = np.where(unsure, labels, result)
    return result.astype(given.dtype)


@any_framework
def refine_objects(
    image: Any,
    masks: Any,
    params: CRFParams = LABEL_PARAMS,
    *,
    gt_prob: float | int = 0.7,
    num_iterations: int = 5,
    apart: bool = False,
    layout: str = "hwc",
    **options: Any,
) -> Bool[np.ndarray, "k h w"]:
    """Masks of objects after the CRF, each refined alone within its surroundings.

    They may overlap, as the masks of a large model do. Time grows with the size of the objects.

    Args:
      masks: `[k, h, w]`: bool, integers that are 0 outside of the object, or floats, the
        probabilities of its pixels.
      gt_prob: how sure masks are that are no probabilities.
      apart: give a pixel that several objects claim to the one of the largest marginal.
      **options: these and all others as in `refine_labels`.
    """
    (image,) = channels_last(layout, image=image)
    image, masks = np.asarray(image), np.asarray(require_array("masks", masks))
    require(
        masks.ndim == 3 and masks.shape[1:] == image.shape[:2],
        f"expected an image [h, w, 3] and masks [k, h, w], got {image.shape} and {masks.shape}",
    )
    if not np.issubdtype(masks.dtype, np.floating):
        check_certainty(gt_prob, 2)
    margin = int(np.ceil(2 * np.max(params.sigma_xy)))
    result = np.zeros(masks.shape, bool)
    best, owner = np.zeros(image.shape[:2], np.float32), np.zeros(image.shape[:2], int)
    for number, mask in enumerate(masks):
        if mask.dtype.kind != "f":
            mask = np.where(mask > 0, np.float32(gt_prob), np.float32(1 - gt_prob))
        where = [np.flatnonzero((mask > 0.5).any(axis)) for axis in (1, 0)]
        if not where[0].size:
            continue
        around = tuple(slice(max(0, i[0] - margin), i[-1] + 1 + margin) for i in where)
        part = mask[around].astype(np.float32)
        probs = np.stack([1 - part, part], axis=-1)
        found = refine(image[around], probs, params, num_iterations=num_iterations, **options)
        marginal = np.asarray(found)[..., 1]
        result[number][around] = marginal > 0.5
        ahead = marginal > best[around]
        best[around][ahead], owner[around][ahead] = marginal[ahead], number
    return result & (owner == np.arange(len(masks))[:, None, None]) if apart else result
