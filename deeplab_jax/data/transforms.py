"""The paper's augmentation on plain arrays: scale, pad, crop, mirror.

Images are RGB uint8, `h w 3`; label maps are uint8, `h w`, with 255 where ignored. Both stay uint8:
the mean is subtracted on the device. The order and the roundings are those of the authors' loader.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import UInt8
from PIL import Image as PILImage

from deeplab_jax.types import IGNORE_LABEL

try:
    import cv2
except ImportError:  # the extra `fast`
    cv2 = None

MEAN_COLOUR = (123, 117, 104)
"""RGB; (122.675, 116.669, 104.008) rounded, so that padding is nearly zero to the network."""

Photograph = UInt8[np.ndarray, "h w 3"]
Mask = UInt8[np.ndarray, "h w"]
OtherPhotograph = UInt8[np.ndarray, "other_h other_w 3"]
OtherMask = UInt8[np.ndarray, "other_h other_w"]


def augment(
    image: Photograph,
    labels: Mask,
    *,
    crop_size: int,
    scales: Sequence[float],
    mirror: bool,
    rng: np.random.Generator,
) -> tuple[UInt8[np.ndarray, "size size 3"], UInt8[np.ndarray, "size size"]]:
    """A random square crop of a randomly scaled photograph, mirrored half of the time.

    The same number of values is drawn from `rng` whatever the sizes and options.
    """
    factor = scales[rng.integers(len(scales))]
    place = rng.random(2)
    flip = rng.random() < 0.5
    image, labels = scale(image, labels, factor)
    image, labels = pad(image, labels, crop_size, crop_size)
    # Uniform over all offsets: random() < 1, so the last one is reached and never passed.
    top, left = (int(u * (n - crop_size + 1)) for u, n in zip(place, labels.shape, strict=True))
    image, labels = crop(image, labels, top, left, crop_size, crop_size)
    return flip_horizontally(image, labels) if mirror and flip else (image, labels)


def scale(image: Photograph, labels: Mask, factor: float) -> tuple[OtherPhotograph, OtherMask]:
    """Both resized to their size times `factor`, rounded down and at least one pixel."""
    height, width = (max(1, int(n * factor)) for n in labels.shape)
    if (height, width) == labels.shape:
        return image, labels
    return resize_bilinear(image, height, width), resize_nearest(labels, height, width)


def pad(
    image: Photograph, labels: Mask, height: int, width: int
) -> tuple[OtherPhotograph, OtherMask]:
    """Grown at the bottom and the right to at least `height` and `width`.

    The image is filled with the mean colour, the labels with 255.
    """
    h, w = labels.shape
    if h >= height and w >= width:
        return image, labels
    size = max(h, height), max(w, width)
    padded_image, padded_labels = blank(*size)
    padded_image[:h, :w] = image
    padded_labels[:h, :w] = labels
    return padded_image, padded_labels


def crop(
    image: Photograph, labels: Mask, top: int, left: int, height: int, width: int
) -> tuple[OtherPhotograph, OtherMask]:
    """Views of the rectangle whose upper left pixel is (`top`, `left`)."""
    rows, columns = slice(top, top + height), slice(left, left + width)
    return image[rows, columns], labels[rows, columns]


def mirror(image: Photograph, labels: Mask) -> tuple[Photograph, Mask]:
    """Views with left and right exchanged."""
    return image[:, ::-1], labels[:, ::-1]


flip_horizontally = mirror  # `augment` has an argument named `mirror`


def blank(height: int, width: int) -> tuple[Photograph, Mask]:
    """A photograph of the mean colour in which no pixel counts."""
    image = np.empty((height, width, 3), np.uint8)
    image[:] = MEAN_COLOUR
    return image, np.full((height, width), IGNORE_LABEL, np.uint8)


def resize_bilinear(image: Photograph, height: int, width: int) -> OtherPhotograph:
    """Two taps an axis around half-pixel centres, no smoothing when it shrinks.

    Pillow computes it where OpenCV is missing; the two differ by at most one grey level.
    """
    if cv2 is not None:
        return cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR)
    h, w = image.shape[:2]
    # Image.resize would smooth; an affine map from output to input does not.
    to_input = (w / width, 0, 0, 0, h / height, 0)
    resized = PILImage.fromarray(image).transform(
        (width, height), PILImage.Transform.AFFINE, to_input, PILImage.Resampling.BILINEAR
    )
    return np.asarray(resized)


def resize_nearest(labels: Mask, height: int, width: int) -> OtherMask:
    """Output row i shows input row floor(i * h / height), and columns likewise."""
    h, w = labels.shape
    rows = np.arange(height) * h // height
    columns = np.arange(width) * w // width
    return labels.take(columns, axis=1).take(rows, axis=0)
