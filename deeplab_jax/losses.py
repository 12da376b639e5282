"""Cross entropy at stride 8 against subsampled labels, with the normaliser written as a weight.

Every photograph has a weight for each score map, computed from the labels of the whole update
before any gradient. The loss is then a plain sum over pixels, photographs, accumulation steps
and devices, which is why it does not depend on how photographs are spread.
"""

from collections.abc import Callable, Sequence
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int, Int64, Integer

from deeplab_jax.crf.loss import dense_crf_loss
from deeplab_jax.ops import resize
from deeplab_jax.types import IGNORE_LABEL, Array, Inputs, Logits

PixelLoss = Callable[[Logits, Integer[jax.Array, "b h w"]], Float[jax.Array, "b h w"]]
"""(logits, labels) -> the loss of each pixel. Labels are classes; ignored pixels come as class 0,
and what is returned for them is not used."""

BatchLoss = Callable[[Logits, Integer[jax.Array, "b h w"], Inputs], Float[jax.Array, ""]]
"""(logits, labels, inputs) -> one loss of the photographs that a device works on at once, such as
Dice's. Labels are classes, or IGNORE_LABEL; inputs are what the network saw, `[b, h, w, channels]`
at full size, exactly 0 in the padding of a crop."""


def balanced_weights(
    counts: Int64[np.ndarray, " c"], *, exponent: float
) -> Float[np.ndarray, " c"]:
    """Weight of each class by its pixels in the train split: share ** -exponent (ours).

    Scaled so that the mean over pixels is 1, as it is without weights. A class without pixels
    has weight 1.

    >>> balanced_weights(np.array([90, 10]), exponent=1.0).tolist()
    [0.5555555555555556, 5.0]
    """
    shares = np.where(counts > 0, counts, 1) / counts.sum()
    weights = np.where(counts > 0, shares**-exponent, 0.0)
    weights /= (weights * counts).sum() / counts.sum()
    return np.where(counts > 0, weights, 1.0)


def cross_entropy(
    logits: Float[jax.Array, "b h w c"],
    labels: Integer[jax.Array, "b h w"],
    class_weights: Float[Array, " c"] | None = None,
) -> Float[jax.Array, "b h w"]:
    """Cross entropy of each pixel (Section 4); of no meaning where it is IGNORE_LABEL.

    `class_weights` multiply the loss of each pixel by the weight of its label.
    """
    # A comparison instead of an index: its gradient needs no scatter (atomic additions on GPUs).
    of_label = labels[..., None] == jnp.arange(logits.shape[-1])
    chosen = jnp.where(of_label, jax.nn.log_softmax(logits), 0)
    if class_weights is not None:
        chosen *= jnp.asarray(class_weights, chosen.dtype)
    return -chosen.sum(-1)


def focal(
    logits: Float[jax.Array, "b h w c"],
    labels: Integer[jax.Array, "b h w"],
    class_weights: Float[Array, " c"] | None = None,
    *,
    gamma: float = 2.0,
) -> Float[jax.Array, "b h w"]:
    """(1 - p) ** gamma times the cross entropy, p being the probability of the label
    (Lin et al., arXiv 1708.02002, Equations 4 and 5). A pixel loss; of no meaning at IGNORE_LABEL.

    `class_weights` are those of `cross_entropy`; they do not change p.
    """
    surprise = cross_entropy(logits, labels)
    weighted = cross_entropy(logits, labels, class_weights)
    return (-jnp.expm1(-surprise)) ** gamma * weighted


def dice(
    logits: Float[jax.Array, "b h w c"], labels: Integer[jax.Array, "b h w"], inputs: Any = None
) -> Float[jax.Array, ""]:
    """1 - 2 |p y| / (|p| + |y|), the mean over the classes that occur in the labels
    (Milletari et al., arXiv 1606.04797, without squares). A batch loss."""
    valid = (labels != IGNORE_LABEL)[..., None]
    probs = jnp.where(valid, jax.nn.softmax(logits), 0)
    truth = jnp.where(valid, labels[..., None] == jnp.arange(logits.shape[-1]), False)
    overlap = (probs * truth).sum((0, 1, 2))
    total = probs.sum((0, 1, 2)) + truth.sum((0, 1, 2))
    return _mean_of_present(1 - 2 * overlap / jnp.maximum(total, 1e-6), truth)


def lovasz_softmax(
    logits: Float[jax.Array, "b h w c"], labels: Integer[jax.Array, "b h w"], inputs: Any = None
) -> Float[jax.Array, ""]:
    """The convex surrogate of 1 - IoU (Berman et al., arXiv 1705.08790, Equation 11), the mean
    over the classes that occur in the labels. A batch loss."""
    valid = (labels != IGNORE_LABEL).ravel()
    classes = jnp.arange(logits.shape[-1])
    probs = jax.nn.softmax(logits).reshape(-1, logits.shape[-1])
    truth = (labels.reshape(-1, 1) == classes) & valid[:, None]
    errors = jnp.where(valid[:, None], jnp.abs(truth - probs), 0)

    def of_class(errors, truth):
        order = jnp.argsort(-errors)
        hits = truth[order].astype(errors.dtype)
        union = hits.sum() + jnp.cumsum((1 - hits) * valid[order])
        jaccard = 1 - (hits.sum() - jnp.cumsum(hits)) / jnp.maximum(union, 1)
        steps = jax.lax.stop_gradient(jnp.diff(jaccard, prepend=0.0))
        # Steps are gathered by ranks, so that the gradient scatters no floats.
        ranks = jnp.zeros_like(order).at[order].set(jnp.arange(len(order)), unique_indices=True)
        return (errors * steps[ranks]).sum()

    per_class = jax.vmap(of_class, in_axes=1)(errors, truth)
    return _mean_of_present(per_class, truth[:, None, None])


def dense_crf(
    logits: Logits,
    labels: Any,
    inputs: Inputs,
    *,
    weight: float = 2e-9,
    sigma_xy: float = 100.0,
    sigma_rgb: float = 15.0,
    scale: float = 0.5,
    alignment: resize.Alignment = "corners",
) -> Float[jax.Array, ""]:
    """What the probabilities cost as soft labels of a dense CRF, for labels that are scribbles
    (Tang et al. 2018; crf.loss.dense_crf_loss). A batch loss, which reads no labels.

    Photographs and probabilities are compared at `scale`, 1 over a whole number, where
    `sigma_xy` is so much smaller. The defaults are the authors' values for crops of 513. The loss
    grows with the square of the pixels of a crop, at `scale`, that are alike.
    """
    step = round(1 / scale)
    image = jax.lax.stop_gradient(inputs[:, ::step, ::step])
    rows, columns = image.shape[1:3]
    options = {"alignment": alignment, "factor": resize.STRIDE / step}
    probs = jax.nn.softmax(resize.resize_bilinear(logits, (rows, columns), **options))
    there = (image != 0).any(-1)
    reach = sigma_xy / step
    return weight * dense_crf_loss(image, probs, valid=there, sigma_xy=reach, sigma_rgb=sigma_rgb)


def _mean_of_present(per_class, truth):
    present = truth.any((0, 1, 2))
    return jnp.where(present, per_class, 0).sum() / jnp.maximum(present.sum(), 1)


def count_valid(labels: Integer[jax.Array, "*b h w"]) -> Int[jax.Array, "*b"]:
    """Pixels of each photograph that are not IGNORE_LABEL."""
    return (labels != IGNORE_LABEL).sum((-2, -1))


def photograph_weights(
    counts: Int[jax.Array, "*b"],
    sample: Int[jax.Array, "*b"],
    *,
    group_size: int,
    batch_size: int,
    axis_name: str | None,
) -> Float[jax.Array, "*b"]:
    """Weight of each photograph: 1 / (valid pixels of its group * number of groups).

    A group is `group_size` photographs that follow each other in the update: Caffe's
    micro-batch (VALID normalisation, at least 1 pixel; iter_size averages over micro-batches),
    or the whole update. `sample` -1 marks a crop that belongs to none.
    """
    num_groups = batch_size // group_size
    group = jnp.where(sample < 0, num_groups, sample // group_size)
    totals = jnp.zeros(num_groups + 1, counts.dtype).at[group].add(counts)
    if axis_name is not None:
        totals = jax.lax.psum(totals, axis_name)
    return (group < num_groups) / (jnp.maximum(totals, 1)[group] * float(num_groups))


def label_maps(
    labels: Integer[jax.Array, "b h w"],
    sizes: Sequence[tuple[int, int]],
    *,
    alignment: resize.Alignment,
) -> tuple[Integer[jax.Array, "b _ _"], ...]:
    """The labels under each score map."""
    return tuple(resize.subsample_labels(labels, size, alignment=alignment) for size in sizes)


def weighted_loss(
    score_maps: Sequence[Logits],
    labels: Sequence[Integer[jax.Array, "b _ _"]],
    weights: Sequence[Float[jax.Array, " b"]],
    pixel_loss: PixelLoss = cross_entropy,
) -> Float[jax.Array, ""]:
    """Sum over score maps (MSC: four), photographs and pixels of the loss times the weights.

    Pixels of IGNORE_LABEL take none, whatever `pixel_loss` says of them.
    """

    def of_map(logits, target, weight):
        valid = target != IGNORE_LABEL
        losses = pixel_loss(logits, jnp.where(valid, target, 0))
        return (jnp.where(valid, losses, 0).sum((1, 2)) * weight).sum()

    terms = (of_map(*one) for one in zip(score_maps, labels, weights, strict=True))
    return cast(jax.Array, sum(terms))
