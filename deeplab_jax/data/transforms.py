"""The paper's augmentation on plain arrays: scale, pad, crop, flip.

Images are uint8, `h w channels`; label maps are uint8, `h w`, with 255 where ignored. Both stay
uint8: the mean is subtracted on the device. The order and the roundings are those of the authors'
loader.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from deeplab_jax.types import IGNORE_LABEL, MEAN_COLOUR

ALL = slice(None)

Photograph = UInt8[np.ndarray, "h w channels"]
Mask = UInt8[np.ndarray, "h w"]
OtherPhotograph = UInt8[np.ndarray, "other_h other_w channels"]
OtherMask = UInt8[np.ndarray, "other_h other_w"]


def augment(
    image: Photograph,
    labels: Mask,
    rng: np.random.Generator,
    *,
    crop_size: int,
    scales: Sequence[float],
    flip: bool,
    padding: Sequence[int] = MEAN_COLOUR,
) -> tuple[UInt8[np.ndarray, "size size channels"], UInt8[np.ndarray, "size size"]]:
    """A random square crop of a randomly scaled photograph, with `flip` flipped half of the time.
    The same number of values is drawn from `rng` whatever the options. A photograph that is smaller
    is padded at the bottom and the right with the value `padding` of each channel."""
    factor = scales[int(rng.integers(len(scales)))]
    position = rng.random(2)
    chosen = rng.random() < 0.5
    size = scaled_size(labels.shape, factor)
    rows, columns = (cut(n, crop_size, u) for n, u in zip(size, position, strict=True))
    image = resize_bilinear(image, *size, rows, columns)
    labels = resize_nearest(labels, *size, rows, columns)
    image, labels = pad(image, labels, crop_size, crop_size, padding)
    return flipped(image, labels) if flip and chosen else (image, labels)


def scaled_size(size: tuple[int, int], factor: float) -> tuple[int, int]:
    """Rows and columns times `factor`, rounded down and at least one pixel."""
    height, width = (max(1, int(n * factor)) for n in size)
    return height, width


def cut(length: int, size: int, position: float) -> slice:
    """Where a crop of `size` lies along a side; all of a side that is shorter.

    `position` in [0, 1) chooses among all possible offsets, each equally often.

    >>> cut(5, 3, 0.0), cut(5, 3, 0.99), cut(2, 3, 0.5)
    (slice(0, 3, None), slice(2, 5, None), slice(0, 2, None))
    """
    start = int(position * max(length - size + 1, 1))
    return slice(start, min(start + size, length))


def pad(
    image: Photograph, labels: Mask, height: int, width: int, padding: Sequence[int] = MEAN_COLOUR
) -> tuple[OtherPhotograph, OtherMask]:
    """Grown at the bottom and the right to at least `height` and `width`, by `padding` and 255."""
    h, w = labels.shape
    if h >= height and w >= width:
        return image, labels
    size = max(h, height), max(w, width)
    padded_image, padded_labels = blank(*size, padding)
    padded_image[:h, :w] = image
    padded_labels[:h, :w] = labels
    return padded_image, padded_labels


def flipped(image: Photograph, labels: Mask) -> tuple[Photograph, Mask]:
    """Both flipped from left to right."""
    result = np.empty_like(image)
    for channel in range(image.shape[2]):  # five times as fast as image[:, ::-1]
        result[..., channel] = image[:, ::-1, channel]
    return result, labels[:, ::-1]


def blank(height: int, width: int, padding: Sequence[int] = MEAN_COLOUR) -> tuple[Photograph, Mask]:
    """A photograph of one colour in which no pixel counts."""
    image = np.empty((height, width, len(padding)), np.uint8)
    image.reshape(height, -1)[:] = np.tile(np.array(padding, np.uint8), width)
    return image, np.full((height, width), IGNORE_LABEL, np.uint8)


def resize_bilinear(
    image: Photograph, height: int, width: int, rows: slice = ALL, columns: slice = ALL
) -> OtherPhotograph:
    """`rows` and `columns` of the photograph resized to `height` and `width`: two taps an axis
    around half-pixel centres, no smoothing when it shrinks. Only what is needed is computed."""
    h, w, channels = image.shape
    if (height, width) == (h, w):
        return image[rows, columns]
    (top, bottom, _), (left, right, _) = rows.indices(height), columns.indices(width)
    size, bilinear = (right - left, bottom - top), Image.Resampling.BILINEAR
    across, down = w / width, h / height
    box = (left * across, top * down, right * across, bottom * down)
    to_input = (across, 0, left * across, 0, down, top * down)
    resized = []
    for planes in [image] if channels == 3 else np.moveaxis(image, 2, 0):
        picture = Image.fromarray(planes)
        if across <= 1 and down <= 1:
            picture = picture.resize(size, bilinear, box)
        else:  # Image.resize would smooth; an affine map from output to input does not
            picture = picture.transform(size, Image.Transform.AFFINE, to_input, bilinear)
        resized.append(np.asarray(picture))
    return resized[0] if channels == 3 else np.dstack(resized)


def resize_nearest(
    labels: Mask, height: int, width: int, rows: slice = ALL, columns: slice = ALL
) -> OtherMask:
    """`rows` and `columns` of the labels resized: row i shows input row floor(i * h / height), in
    whole numbers. The authors' loader asks OpenCV, which multiplies by h / height in floating
    point, and shows the row before where that comes out just below a whole number."""
    h, w = labels.shape
    if (height, width) == (h, w):
        return labels[rows, columns]
    return labels[np.arange(height)[rows] * h // height][:, np.arange(width)[columns] * w // width]
