"""From labels instead of probabilities: annotations, scribbles and pseudo-masks."""

from functools import partial
from typing import Any

import numpy as np
from jaxtyping import Bool, Float32, Integer

from deeplab_jax.crf.arrays import any_framework, channels_last, require_array
from deeplab_jax.crf.checks import require
from deeplab_jax.crf.params import CRFParams
from deeplab_jax.crf.refinement import check_max_pixels, refine
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


def check_certainty(gt_prob: Any, num_labels: int | None = None) -> float:
    """`gt_prob` if it is a probability strictly between 0 and 1 that favours one of the labels."""
    if gt_prob is None:
        return 0.7 if num_labels == 2 else 0.5
    require(
        0 < gt_prob < 1,
        f"gt_prob is a probability between 0 and 1, both excluded, got {gt_prob!r}",
    )
    require(
        num_labels is None or gt_prob > 1 / num_labels,
        f"with {num_labels} labels gt_prob must be above 1/{num_labels}, for the CRF to know the "
        f"labels, got {gt_prob!r}",
    )
    return gt_prob


def probs_from_labels(
    labels: Integer[np.ndarray, "*shape"],
    num_classes: int,
    gt_prob: float | int,
    unsure: np.ndarray,
) -> Float32[np.ndarray, "*shape c"]:
    """`gt_prob` for a point's own label, the rest shared equally; uniform where unsure."""
    rest = (1 - gt_prob) / max(num_classes - 1, 1)
    probs = np.where(labels[..., None] == np.arange(num_classes), gt_prob, rest)
    probs[unsure] = 1 / num_classes
    return probs.astype(np.float32)


@any_framework
def unary_from_labels(
    labels: Any, num_classes: int, gt_prob: float | int = 0.7, zero_unsure: bool = False
) -> Float32[np.ndarray, "*shape c"]:
    """Energies of a labelling that is right with probability `gt_prob`.

    Args:
      labels: integers `[*shape]`, classes from 0 to `num_classes` - 1; 255 means unknown, unless
        there are more than 255 classes.
      num_classes: at least 2; with `zero_unsure`, 0 is not counted.
      gt_prob: probability of a point's own label; the other classes share the rest equally.
      zero_unsure: 0 means unknown and class k is label k + 1, as in pydensecrf.

    Returns:
      -log of probabilities, float32 `[*shape, num_classes]`, equal for all classes where the
      label is unknown; `densecrf.unary_from_labels` has pydensecrf's order.

    Raises:
      UserError: a label that is no class.

    >>> unary_from_labels(np.array([1, 255]), 2, gt_prob=0.5).astype(float).round(2).tolist()
    [[0.69, 0.69], [0.69, 0.69]]
    """
    labels = check_labels(labels)
    check_certainty(gt_prob)
    require(num_classes > 1, f"expected at least 2 classes, got num_classes={num_classes!r}")
    unsure = np.zeros(labels.shape, bool)
    if num_classes <= IGNORE_LABEL:
        unsure |= labels == IGNORE_LABEL
    if zero_unsure:
        unsure |= labels == 0
        labels = labels - 1
    foreign = np.unique(labels[~unsure & ((labels < 0) | (labels >= num_classes))])
    shown = ", ".join(str(x + zero_unsure) for x in foreign[:5])
    require(
        not shown,
        f"labels hold {shown}; expected classes from {int(zero_unsure)} to "
        f"{num_classes - 1 + zero_unsure} for num_classes={num_classes}",
    )
    return -np.log(probs_from_labels(labels, num_classes, gt_prob, unsure))


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
      image: RGB uint8 `[h, w, 3]`.
      labels: integers `[h, w]`: an annotation, scribbles or a network's labels; 255 is unknown.
      params: weights and standard deviations; scribbles want SCRIBBLE_PARAMS.
      gt_prob: how sure the labels are, more than 1 over their number; scribbles deserve 0.9 and
        more. None: 0.5, or 0.7 where there are two.
      zero_unsure: 0 means unknown as well.
      fill_unsure: give unknown pixels a label; if not, they stay as they are.
      num_iterations: mean-field updates.
      max_pixels: as in `refine`; it saves memory here too.
      layout: "chw" for an image `[3, h, w]`.
      **options: what else `refine` takes.

    Returns:
      Labels of the type of `labels`. Only labels that occur in them are given.

    Raises:
      UserError: arguments of a wrong type, shape or range.
    """
    (image,) = channels_last(layout, image=image)
    given = np.asarray(require_array("labels", labels))
    labels = check_labels(given)
    require(
        labels.shape == np.shape(image)[:-1] and labels.ndim == 2,
        f"expected an image [h, w, 3] and labels [h, w] of the same height and width, "
        f"got {np.shape(image)} and {labels.shape}",
    )
    unsure = labels == IGNORE_LABEL
    if zero_unsure:
        unsure |= labels == 0
    known = np.unique(labels[~unsure])
    if not known.size:
        return given.copy()
    result = np.full(labels.shape, known[0])
    if known.size > 1:
        gt_prob = check_certainty(gt_prob, known.size)
        index = np.searchsorted(known, labels).reshape(labels.shape)
        options["num_iterations"] = num_iterations
        if max_pixels is not None and labels.size > check_max_pixels(max_pixels):
            index[unsure] = -1
            height, width = labels.shape
            factor = factor_for(height, width, max_pixels)
            probs = mean_probs(index, len(known), gt_prob, factor)
            run = partial(refine, **options)
            best = at_smaller_scale(run, image, probs, params, factor, labels=True)
        else:
            probs = probs_from_labels(index, len(known), gt_prob, unsure)
            best = np.asarray(refine(image, probs, params, **options)).argmax(axis=-1)
        result = known[best]
    if not fill_unsure:
        result = np.where(unsure, labels, result)
    return result.astype(given.dtype)


def mean_probs(
    index: Integer[np.ndarray, "h w"], num_classes: int, gt_prob: float | int, factor: int
) -> Float32[np.ndarray, "_ _ c"]:
    """Block means of `probs_from_labels`, whose values at full size are never held.

    `index` is -1 where the label is unknown.
    """
    shares = [block_means((index == c)[..., None], factor) for c in range(-1, num_classes)]
    rest = (1 - gt_prob) / (num_classes - 1)
    probs = rest + (gt_prob - rest) * np.concatenate(shares[1:], axis=-1)
    return (probs + (1 / num_classes - rest) * shares[0]).astype(np.float32)


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
      image: RGB uint8 `[h, w, 3]`.
      masks: `[k, h, w]`: bool, integers that are 0 outside of the object, or floats, the
        probabilities of its pixels.
      params: weights and standard deviations.
      gt_prob: how sure masks are that are no probabilities.
      num_iterations: mean-field updates.
      apart: give a pixel that several objects claim to the one of the largest marginal.
      layout: "chw" for an image `[3, h, w]`.
      **options: what else `refine` takes.

    Raises:
      UserError: arguments of a wrong type, shape or range.
    """
    (image,) = channels_last(layout, image=image)
    image, masks = np.asarray(image), np.asarray(require_array("masks", masks))
    require(
        masks.ndim == 3 and masks.shape[1:] == image.shape[:2],
        f"expected an image [h, w, 3] and masks [k, h, w], got {image.shape} and {masks.shape}",
    )
    if not np.issubdtype(masks.dtype, np.floating):
        gt_prob = check_certainty(gt_prob, 2)
    margin = int(np.ceil(2 * np.max(params.sigma_xy)))
    result = np.zeros(masks.shape, bool)
    best, owner = np.zeros(image.shape[:2], np.float32), np.zeros(image.shape[:2], int)
    for number, mask in enumerate(masks):
        around = surroundings(mask > (0.5 if mask.dtype.kind == "f" else 0), margin)
        if around is None:
            continue
        part = mask[around].astype(np.float32)
        if mask.dtype.kind != "f":
            part = np.where(part > 0, np.float32(gt_prob), np.float32(1 - gt_prob))
        probs = np.stack([1 - part, part], axis=-1)
        found = refine(image[around], probs, params, num_iterations=num_iterations, **options)
        marginal = np.asarray(found)[..., 1]
        result[number][around] = marginal > 0.5
        ahead = marginal > best[around]
        best[around][ahead], owner[around][ahead] = marginal[ahead], number
    return result & (owner == np.arange(len(masks))[:, None, None]) if apart else result


def surroundings(mask: Bool[np.ndarray, "h w"], margin: int) -> tuple[slice, slice] | None:
    """The box of a mask, wider by `margin` pixels; None if it has no pixel."""
    where = [np.flatnonzero(mask.any(axis)) for axis in (1, 0)]
    if not where[0].size:
        return None
    rows, columns = (slice(max(0, i[0] - margin), i[-1] + 1 + margin) for i in where)
    return rows, columns
