"""Pictures of a given number of channels: TIFF of many bands, `.npy`, grey and RGB photographs.

`read` gives what `photographs.read` gives of RGB: uint8 `[h, w, channels]`, upright, the channels
in the order of the file. Values of 8 bits are taken as they are; 16-bit, wider and floating-point
values need a range, by the rule of ranges.py. `measure` finds the range and the mean of each
channel in the photographs that a network is trained on.
"""

import io
import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Num, Shaped
from PIL import Image as PILImage
from PIL import ImageOps

from deeplab_jax.data import photographs
from deeplab_jax.data.photographs import (
    ARRAY_SIGNATURE,
    DAMAGE,
    MAX_PIXELS,
    ORIENTATION_TAG,
    TIFF_SIGNATURES,
)
from deeplab_jax.ranges import ValueRange, check_range, to_8_bits
from deeplab_jax.types import BadData, Photograph, UserError

try:
    import tifffile
except ImportError:  # the extra `tiff`
    tifffile = None
else:
    logging.getLogger("tifffile").setLevel(logging.CRITICAL)  # faults come as exceptions

MAX_VALUES = 3 * MAX_PIXELS
"""Pictures with more values are not decoded; the largest RGB photograph has as many."""

NODATA_TAG = 42113
"""The TIFF tag in which GDAL writes the value of pixels without a measurement."""

PERCENTILES = (0.1, 99.9)
"""Percentiles of a channel that become 0 and 255 where no range is given, so that a few broken or
saturated pixels do not stretch the range."""

MOST_PHOTOGRAPHS, MOST_PIXELS = 1000, 2**22
"""How many `measure` reads; a smaller split is measured as a whole."""


def read(
    path: Path | str, *, channels: int | None, value_range: ValueRange | None = None
) -> Photograph:
    """uint8 `[h, w, channels]`, as training reads it; RGB by photographs.py where that is None.

    Raises:
      UserError: no such file, damaged, of another number of channels, of more than MAX_VALUES, or
        of more than 8 bits without a `value_range`.
    """
    path = Path(path)
    if channels is None:
        return photographs.read(path, value_range=value_range)
    return scale(path, read_values(path, channels=channels), value_range)


def scale(
    path: Path, values: Num[np.ndarray, "h w channels"], value_range: ValueRange | None
) -> Photograph:
    """Values of 8 bits as they are, others by the range.

    Raises:
      UserError: values of more than 8 bits and no range.
    """
    if values.dtype == np.uint8:
        return values
    if value_range is None:
        raise UserError(photographs.describe_deep(path, values))
    return to_8_bits(values, value_range)


def read_values(path: Path, *, channels: int) -> Num[np.ndarray, "h w channels"]:
    """The values as the file holds them; NaN where a TIFF says that there is no measurement.

    Raises:
      UserError: as `read`.
    """
    data = photographs.read_bytes(path)
    if data.startswith(ARRAY_SIGNATURE):
        values = _read_array(path, data, channels)
    elif data.startswith(TIFF_SIGNATURES):
        values = _read_tiff(path, data)
    else:
        values = _read_photograph(path, data)
    if values.dtype.kind not in "uif":
        raise UserError(f"{path} holds values of type {values.dtype}; save it as numbers.")
    if 0 in values.shape:
        raise UserError(f"{path} has no pixels: its shape is {values.shape}; get the file again.")
    return _refuse_other_channels(path, values, channels)


def _refuse_other_channels(
    path: Path, values: Num[np.ndarray, "h w _"], channels: int
) -> Num[np.ndarray, "h w _"]:
    """The values, if they have `channels` channels; three equal channels serve as one."""
    found = values.shape[-1]
    if found == channels:
        return values
    if channels == 1 and found == 3 and (values == values[..., :1]).all():
        return values[..., :1]
    raise UserError(
        f"{path} has {found} channel{'s' if found > 1 else ''}, and --data.channels {channels} was "
        f"given; all photographs of a data set must have the number that is given."
    )


def _read_array(path: Path, data: bytes, channels: int) -> Shaped[np.ndarray, "h w _"]:
    """`.npy`: `[h, w, channels]`, or `[h, w]` for one channel."""
    try:
        values = np.load(io.BytesIO(data), allow_pickle=False)
    except (*DAMAGE, TypeError, MemoryError) as error:
        raise UserError(
            f"{path} is no array of numbers ({error}); save it by numpy.save."
        ) from None
    if values.ndim == 2:
        values = values[..., None]
    if values.ndim != 3:
        raise UserError(
            f"{path} has the shape {values.shape}, and [rows, columns, channels] was expected; "
            "save one picture a file."
        )
    if values.shape[0] == channels != values.shape[-1]:
        raise UserError(
            f"{path} has the shape {values.shape}, with the channels first; save "
            "numpy.moveaxis(x, 0, -1)."
        )
    _refuse_too_large(path, values.shape)
    return values


def _read_tiff(path: Path, data: bytes) -> Num[np.ndarray, "h w _"]:
    """The bands of a TIFF, which may lie pixel by pixel, one behind the other, or on pages."""
    if tifffile is None:
        raise UserError(f"{path} is a TIFF; pip install 'deeplab_jax[tiff]' to read its bands.")
    try:
        with tifffile.TiffFile(io.BytesIO(data)) as file:
            series, tags = file.series[0], file.pages.first.tags
            axes = series.axes
            if not {"Y", "X"} <= set(axes) or len(axes) > 3:
                raise UserError(
                    f"{path} is a TIFF of the shape {series.shape} ({axes}), and rows, columns and "
                    "bands were expected; save one picture a file."
                )
            _refuse_too_large(path, series.shape)
            values = series.asarray()
            turn = tags[ORIENTATION_TAG].value if ORIENTATION_TAG in tags else 1
            nodata = tags[NODATA_TAG].value if NODATA_TAG in tags else None
    except UserError:
        raise
    except (*DAMAGE, LookupError, TypeError, tifffile.TiffFileError) as error:
        if "imagecodecs" in str(error):
            raise UserError(
                f"{path} is compressed in a way that needs the package imagecodecs; "
                "pip install 'deeplab_jax[tiff]'."
            ) from None
        raise UserError(f"{path} is damaged ({error}); get the file again.") from None
    others = tuple(i for i, axis in enumerate(axes) if axis not in "YX")
    values = values.transpose(axes.index("Y"), axes.index("X"), *others)
    values = _without_nodata(values.reshape(*values.shape[:2], -1), nodata)
    return photographs.orient(values, int(turn))


def _without_nodata(
    values: Num[np.ndarray, "h w c"], nodata: str | None
) -> Num[np.ndarray, "h w c"]:
    """NaN in place of the value that GDAL writes where nothing was measured; not in 8 bits."""
    try:
        value = float(str(nodata).strip(" \0"))
    except ValueError:
        return values
    missing = values == value
    if values.dtype == np.uint8 or not missing.any():
        return values
    exact = np.float32 if values.dtype.itemsize <= 2 or values.dtype == np.float32 else np.float64
    return np.where(missing, exact(np.nan), values.astype(exact))


def _read_photograph(path: Path, data: bytes) -> Num[np.ndarray, "h w _"]:
    """A photograph by the channels it has: 1 of grey, 3 of RGB, 4 with transparency."""
    picture = photographs.open_picture(path, data)
    if photographs.is_deep(picture, data):
        values = photographs.decode_deep(path, data, picture)
        values = photographs.orient(values, photographs.orientation(picture))
    else:
        upright = ImageOps.exif_transpose(picture)
        values = np.asarray(upright.convert(_mode_of(upright)))
    return values.reshape(*values.shape[:2], -1)


def _mode_of(picture: PILImage.Image) -> str:
    if picture.mode in ("L", "LA", "RGB", "RGBA"):
        return picture.mode
    return "L" if picture.mode == "1" else "RGB"


def _refuse_too_large(path: Path, shape: Sequence[int]) -> None:
    if np.prod(shape, dtype=np.int64) > MAX_VALUES:
        raise UserError(
            f"{path} has the shape {tuple(shape)}, more than {MAX_VALUES} values; cut it into "
            "smaller pictures."
        )


@dataclass(frozen=True)
class Measured:
    """What `measure` found."""

    value_range: tuple[float, ...] | None
    """For each channel the values that become 0 and 255; None where photographs have 8 bits."""
    mean: tuple[float, ...]
    """Of each channel, 0..255, after the range."""


def measure(
    paths: Sequence[Path],
    *,
    channels: int,
    value_range: ValueRange | None = None,
    bad_data: BadData = "raise",
    progress: Callable[[Iterable], Iterable] = iter,
) -> Measured:
    """Range and mean of each channel, over pixels that hold a number.

    A given `value_range` is kept. Otherwise it is that of PERCENTILES. Reads
    MOST_PHOTOGRAPHS, evenly spread, and at MOST_PIXELS of them, drawn evenly; the same files always
    give the same numbers. With bad_data "skip" photographs that cannot be read are left out.

    Raises:
      UserError: a photograph cannot be read, some have 8 bits and others more, or a channel holds
        no number.
    """
    chosen = [paths[i] for i in _evenly(len(paths), MOST_PHOTOGRAPHS)]
    kinds: dict[bool, Path] = {}
    samples = []
    for number, path in enumerate(progress(chosen)):
        try:
            values = read_values(path, channels=channels)
        except UserError:
            if bad_data == "skip":
                continue
            raise
        kinds.setdefault(values.dtype == np.uint8, path)
        samples.append(_some_pixels(values, MOST_PIXELS // len(chosen), seed=number))
    if not samples:
        raise UserError(f"none of the {len(paths)} photographs can be read, such as {paths[0]}.")
    if len(kinds) > 1:
        raise UserError(
            f"{kinds[True]} has 8 bits a channel and {kinds[False]} more; save all photographs in "
            "one way."
        )
    pixels = np.concatenate(samples)
    known = np.isfinite(pixels)
    if not known.any(0).all():
        raise UserError(f"channel {int(known.any(0).argmin())} holds no number in any photograph.")
    if True in kinds:
        return Measured(None, _mean(pixels, known))
    if value_range is None:
        value_range = find_range(pixels)
    check_range(value_range, channels)
    value_range = tuple(float(value) for value in value_range)
    return Measured(value_range, _mean(to_8_bits(pixels[None], value_range)[0], known))


def describe(found: Measured) -> list[str]:
    """Lines to print: range and mean of each channel."""
    ends = found.value_range or (0, 255) * len(found.mean)
    if len(ends) == 2:
        ends *= len(found.mean)
    return [
        f"channel {i}: {low:g} to {high:g} become 0 to 255, mean {mean:g}"
        for i, (low, high, mean) in enumerate(zip(ends[::2], ends[1::2], found.mean, strict=True))
    ]


def find_range(pixels: Num[np.ndarray, "n channels"]) -> tuple[float, ...]:
    """A pair for each channel, one after the other: PERCENTILES of its numbers.

    Where these are equal, the least and the largest value; of a constant channel it and 1 more.

    >>> find_range(np.array([[0.0, 7.0], [1000.0, 7.0]]))
    (1.0, 999.0, 7.0, 8.0)
    """
    ends = []
    for channel in pixels.T:
        numbers = channel[np.isfinite(channel)].astype(np.float64)
        low, high = np.percentile(numbers, PERCENTILES)
        if not low < high:
            low, high = numbers.min(), numbers.max()
        ends += [low, high if low < high else low + 1]
    return tuple(float(f"{value:.9g}") for value in ends)


def _mean(
    scaled: Num[np.ndarray, "n channels"], known: Shaped[np.ndarray, "n channels"]
) -> tuple[float, ...]:
    """Mean of the pixels that hold a number, to three decimals."""
    total = np.where(known, scaled, 0).sum(0, dtype=np.float64)
    return tuple(round(float(value), 3) for value in total / known.sum(0))


def _evenly(number: int, most: int) -> list[int]:
    """At most so many indices below `number`, evenly spread.

    >>> _evenly(3, 5), _evenly(10, 4)
    ([0, 1, 2], [0, 3, 6, 9])
    """
    return np.linspace(0, number - 1, min(number, most)).astype(int).tolist()


def _some_pixels(
    values: Num[np.ndarray, "h w channels"], most: int, *, seed: int
) -> Num[np.ndarray, "n channels"]:
    """At most so many pixels, drawn without repetition; all in their order where they are fewer."""
    pixels = values.reshape(-1, values.shape[-1])
    if len(pixels) <= most:
        return pixels
    return pixels[np.random.default_rng(seed).choice(len(pixels), most, replace=False)]
