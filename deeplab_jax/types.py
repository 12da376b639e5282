"""Array types with axis names, and the label that means "do not count".

One name, one meaning everywhere: `image` is RGB uint8 0..255 as decoded; `inputs` is BGR
float with the mean subtracted, what the network sees; `labels` are class ids with 255 for
ignored pixels; `logits` stand before the softmax, at the network's stride; `probs` after it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import jax
import numpy as np
from jaxtyping import Float, Integer, UInt8

from deeplab_jax.choices import BadData as BadData
from deeplab_jax.choices import UserError as UserError

IGNORE_LABEL = 255
MAX_CLASSES = 255

VOC_CLASS_NAMES = (
    *("background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat"),
    *("chair", "cow", "diningtable", "dog", "horse", "motorbike", "person", "pottedplant"),
    *("sheep", "sofa", "train", "tvmonitor"),
)
"""PASCAL VOC's classes in the order of their ids."""

Array: TypeAlias = jax.Array | np.ndarray

Image: TypeAlias = UInt8[Array, "h w 3"]
Photograph: TypeAlias = UInt8[Array, "h w channels"]
"""An Image, or a picture of another number of channels, as the network takes it (images.py)."""
LabelMap: TypeAlias = Integer[Array, "h w"]
Inputs: TypeAlias = Float[Array, "b h w channels"]
Logits: TypeAlias = Float[jax.Array, "b _ _ c"]
Probs: TypeAlias = Float[Array, "h w c"]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Batch:
    """Photographs of one update, or of one part of it; every field has the same leading axes.

    Annotations are not array types: unflattening a tree calls this constructor with whatever
    leaves a transformation puts there.
    """

    image: Any
    """Crops, uint8 `[..., h, w, channels]`; RGB where there are three."""
    labels: Any
    """Class ids, uint8 `[..., h, w]`, 255 where ignored."""
    sample: Any
    """Position of each photograph in the update, int32 `[...]`; -1 for an empty crop."""


MEAN_COLOUR = (123, 117, 104)
"""ImageNet's mean pixel, RGB, rounded: crops are padded with it. In
training, void pixels of this colour become exactly the network's mean."""


def padding_pixel(mean: Sequence[float]) -> tuple[int, ...]:
    """What crops are padded with: MEAN_COLOUR for RGB, else the mean of each channel, rounded.

    >>> padding_pixel((104.0, 116.7, 122.7)), padding_pixel((99.6,))
    ((123, 117, 104), (100,))
    """
    return MEAN_COLOUR if len(mean) == 3 else tuple(round(value) for value in mean)
