"""Cross entropy at stride 8 against subsampled labels, with the normaliser written as a weight.

Every photograph has a weight for each score map, computed from the labels of the whole update
before any gradient. The loss is then a plain sum over pixels, photographs, accumulation steps
and devices, which is why it does not depend on how photographs are spread.
"""

from collections.abc import Sequence
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int, Int64, Integer

from deeplab_jax.models import layers
from deeplab_jax.types import IGNORE_LABEL, Array, Logits

Normalization = Literal["micro_batch", "update"]


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


def summed_cross_entropy(
    logits: Float[jax.Array, "b h w c"],
    labels: Integer[jax.Array, "b h w"],
    class_weights: Float[Array, " c"] | None = None,
) -> Float[jax.Array, " b"]:
    """Cross entropy of each photograph, summed over its pixels that are not IGNORE_LABEL.

    A pixel counts as often as `class_weights` says of its label; once where there are none.
    """
    valid = labels != IGNORE_LABEL
    log_probs = jax.nn.log_softmax(logits)
    targets = jnp.where(valid, labels, 0).astype(int)
    chosen = jnp.take_along_axis(log_probs, targets[..., None], -1)[..., 0]
    if class_weights is not None:
        chosen *= jnp.asarray(class_weights, chosen.dtype)[targets]
    return -jnp.where(valid, chosen, 0).sum((1, 2))


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
    """One over the valid pixels of a photograph's group, and over the number of groups.

    A group is `group_size` photographs that follow each other in the update: Caffe's
    micro-batch (VALID normalisation, at least 1 pixel; iter_size averages over micro-batches),
    or the whole update. `sample` -1 marks a crop that belongs to none.
    """
    num_groups = batch_size // group_size
    group = jnp.where(sample < 0, num_groups, sample // group_size)
    totals = jnp.zeros(num_groups + 1, jnp.int32).at[group].add(counts)
    if axis_name is not None:
        totals = jax.lax.psum(totals, axis_name)
    return (group < num_groups) / (jnp.maximum(totals, 1)[group] * float(num_groups))


def label_maps(
    labels: Integer[jax.Array, "b h w"],
    sizes: Sequence[tuple[int, int]],
    *,
    alignment: layers.Alignment,
) -> tuple[Integer[jax.Array, "b _ _"], ...]:
    """The labels under each score map."""
    return tuple(layers.subsample_labels(labels, size, alignment=alignment) for size in sizes)


def weighted_loss(
    score_maps: Sequence[Logits],
    labels: Sequence[Integer[jax.Array, "b _ _"]],
    weights: Sequence[Float[jax.Array, " b"]],
    class_weights: Float[Array, " c"] | None = None,
) -> Float[jax.Array, ""]:
    """Sum over score maps of the cross entropies times the weights (MSC: four losses)."""
    return sum(
        (summed_cross_entropy(logits, target, class_weights) * weight).sum()
        for logits, target, weight in zip(score_maps, labels, weights, strict=True)
    )
