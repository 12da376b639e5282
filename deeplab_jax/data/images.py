"""One reader of photographs, for training, checking, prediction and refining.

`read` gives uint8 `[h, w, channels]`, upright by EXIF orientation. It is RGB, whatever the file
holds: grey, palette and CMYK are converted, transparency is dropped, and of several frames the
first is taken. Where a number of channels is given, it is those of a TIFF of many bands, an array
`.npy`, or a photograph, in the order of the file. Values of more than 8 bits need a range.
"""

import contextlib
import importlib
import io
import logging
import math
import re
import struct
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from jaxtyping import Num, Shaped, UInt8
from PIL import Image, ImageOps, ImageSequence, TiffImagePlugin, UnidentifiedImageError

from deeplab_jax.data import listing
from deeplab_jax.types import BadData, Photograph, UserError


def optional(name: str) -> Any:
    """A package of an extra, None where it is not installed."""
    try:
        return importlib.import_module(name)
    except ImportError:
        return None


cv2, pillow_heif, tifffile = optional("cv2"), optional("pillow_heif"), optional("tifffile")
logging.getLogger("tifffile").setLevel(logging.CRITICAL)  # faults come as exceptions
Image.init()
if pillow_heif:
    pillow_heif.register_heif_opener()

NAMES = "JPEG PNG WEBP BMP DIB TIFF GIF PPM JPEG2000 AVIF HEIF QOI SGI PCX TGA"
FORMATS = tuple(name for name in NAMES.split() if name in Image.OPEN)
"""Pillow's decoders that may be used. For others, such as EPS, Pillow runs other programs."""

KNOWN = (suffix for suffix, name in Image.EXTENSION.items() if name in FORMATS)
SUFFIXES = tuple(sorted({*KNOWN, ".heic", ".heif", ".hif", ".avif"}))
"""Of files that are taken for photographs, in lower case; capitals do not matter."""

ARRAYS = (".npy",)
"""Of files that are taken for photographs where a folder holds none of SUFFIXES."""

MAX_PIXELS = 2**27
"""Pictures that promise more are not decoded: 400 MB as RGB."""

PERCENTILES = (0.1, 99.9)
"""Of a channel: they become 0 and 255 where no range is given, whatever broken pixels say."""

MOST_PHOTOGRAPHS, MOST_PIXELS = 1000, 2**22
"""How many `measure` reads; a smaller split is measured as a whole."""

DEEP_MODES = ("I", "I;16", "I;16L", "I;16B", "I;16N", "F")
"""Pillow's modes of more than 8 bits."""

ORIENTATION_TAG = 0x0112
BITS_TAG, PHOTOMETRIC_TAG, SAMPLES_TAG, EXTRA_TAG = 258, 262, 277, 338
WHITE_IS_ZERO, BLACK_IS_ZERO, RGB_TIFF = 0, 1, 2  # values of PHOTOMETRIC_TAG
NO_ALPHA = 0  # a value of EXTRA_TAG

NODATA_TAG = 42113
"""The TIFF tag in which GDAL writes the value of pixels without a measurement."""

GEO_TAGS = (33550, 33922, 34264, 34735, 34736, 34737)
"""The TIFF tags of a GeoTIFF: pixel scale, tie points, transformation, coordinate system."""

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
JPEG_SIGNATURE = b"\xff\xd8"
TIFF_SIGNATURES = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
ARRAY_SIGNATURE = b"\x93NUMPY"

DAMAGE = (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error)  # raised by Pillow

ValueRange: TypeAlias = Sequence[float | int]
"""The values that become 0 and 255; or such a pair for each channel, one after the other."""


def read(
    path: Path | str, *, channels: int | None = None, value_range: ValueRange | None = None
) -> Photograph:
    """uint8 `[h, w, channels]`, upright, as training reads it; RGB where `channels` is None. Values
    of more than 8 bits are scaled by `value_range`, see `to_8_bits`; without it they are refused:
    what is black and white in them depends on the camera. A UserError for no photograph, a damaged
    or too large one, or one of other channels."""
    path = Path(path)
    if channels is not None:
        values = read_values(path, channels=channels)
        return values if values.dtype == np.uint8 else scale(path, values, value_range)
    data = read_bytes(path)
    return np.asarray(to_rgb(path, data, open_picture(path, data), value_range))


def read_bytes(path: Path) -> bytes:
    """What a file holds; a UserError where it is missing or may not be read."""
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise listing.missing(path) from None
    except OSError as error:
        raise listing.unreadable(path, error) from None


def open_picture(path: Path, data: bytes) -> Image.Image:
    """The decoded picture; truncated and damaged files are refused."""
    try:
        picture = Image.open(io.BytesIO(data), formats=FORMATS)
        if picture.width * picture.height > MAX_PIXELS:  # Pillow allows twice as many
            raise Image.DecompressionBombError
        picture.load()
    except UnidentifiedImageError:
        raise UserError(describe_unknown(path, data)) from None
    except Image.DecompressionBombError:
        raise UserError(f"{path} has more than {MAX_PIXELS} pixels; make it smaller.") from None
    except DAMAGE as error:
        raise UserError(f"{path} is damaged ({error}); get the file again.") from None
    return picture


def describe_unknown(path: Path, data: bytes) -> str:
    """Why Pillow knows no decoder for a file, and what to do."""
    start = data[:64].lstrip().lower()
    if not data:
        return f"{path} is empty; is the download or copy complete?"
    if data[4:12] in (b"ftypavif", b"ftypavis"):
        return f"{path} is an AVIF photograph, and Pillow was built without AVIF; save it as PNG."
    if data[4:8] == b"ftyp" and pillow_heif is None:
        return f"{path} is a HEIC photograph; pip install 'deeplab_jax[heic]' to read it."
    if data.startswith(ARRAY_SIGNATURE):
        return f"{path} is an array of NumPy; give the number of its channels as --data.channels."
    if data.startswith(TIFF_SIGNATURES):
        return describe_bands(path, data)
    if start.startswith(b"version https://git-lfs"):
        return f"{path} is a pointer of Git LFS, not the file; fetch the files by `git lfs pull`."
    if start.startswith((b"<!doctype html", b"<html")):
        return f"{path} is a web page, not a picture; check the address it came from."
    return f"{path} is no picture that Pillow knows; get the file again."


FEWER_BANDS = (
    "give the number of bands as --data.channels to use them all, or save three of them as an RGB "
    "file of 8 or 16 bits."
)


def describe_bands(path: Path, data: bytes, cure: str = FEWER_BANDS) -> str:
    """That a TIFF is not RGB, with its bands and bits, and what to do."""
    kind = "an unknown kind"
    with contextlib.suppress(*DAMAGE):
        tags = TiffImagePlugin.ImageFileDirectory_v2(data[:8])
        stream = io.BytesIO(data)
        stream.seek(tags.next)
        tags.load(stream)
        bands = tags.get(SAMPLES_TAG, 1)
        bits = ", ".join(map(str, sorted(set(tags.get(BITS_TAG, (1,))))))
        kind = f"{bands} band{'s' if bands > 1 else ''} and {bits} bits"
    return f"{path} is a TIFF of {kind}, which cannot be read as RGB; {cure}"


def refuse_other_bands(
    path: Path, data: bytes, picture: Image.Image, cure: str = FEWER_BANDS
) -> None:
    """Raises a UserError where Pillow would drop bands or pages of a TIFF silently, except alpha
    and a second page that is smaller: a preview."""
    tags = tiff_tags(picture)
    bands, extra = tags.get(SAMPLES_TAG, 1), tags.get(EXTRA_TAG, ())
    kind = tags.get(PHOTOMETRIC_TAG)
    has_others = len(extra) > 1 or kind == RGB_TIFF and bands > 4
    if kind in (WHITE_IS_ZERO, BLACK_IS_ZERO):
        has_others = bands > 2 or bands == 2 and NO_ALPHA in extra
    if has_others:
        raise UserError(describe_bands(path, data, cure))
    if tags and (number := getattr(picture, "n_frames", 1)) > 1:
        pages = ImageSequence.Iterator(Image.open(io.BytesIO(data), formats=("TIFF",)))
        if pages[0].size == pages[1].size:
            raise UserError(f"{path} is a TIFF of {number} pages of one size; {cure}")


def tiff_tags(picture: Image.Image) -> Mapping[int, Any]:
    """The tags of a TIFF by their numbers; none of another format."""
    return picture.tag_v2 if isinstance(picture, TiffImagePlugin.TiffImageFile) else {}


def read_geo_tags(path: Path) -> dict[int, Any]:
    """Coordinate system and transform of a GeoTIFF, the values of GEO_TAGS that it has, which
    Pillow writes with `save(..., tiffinfo=tags)`; empty for other files."""
    try:
        tags = tiff_tags(Image.open(path, formats=("TIFF",)))
    except DAMAGE:
        return {}
    return {tag: tags[tag] for tag in GEO_TAGS if tag in tags}


def to_rgb(
    path: Path, data: bytes, picture: Image.Image, value_range: ValueRange | None
) -> Image.Image:
    """A decoded picture as 8-bit RGB, upright; one of 8 bits is not scaled."""
    refuse_other_bands(path, data, picture)
    if is_deep(picture, data):
        values = decode_deep(path, data, picture)
        if values.ndim == 3:  # without transparency
            values = values[..., :3] if values.shape[2] > 2 else values[..., 0]
        picture = Image.fromarray(scale(path, values, value_range))
    try:
        return ImageOps.exif_transpose(picture).convert("RGB")
    except DAMAGE as error:
        raise UserError(f"{path} cannot be read as RGB ({error}); save it as RGB.") from None


def is_deep(picture: Image.Image, data: bytes) -> bool:
    """Whether the file has more than 8 bits a channel; Pillow itself may show the upper 8 only."""
    return picture.mode in DEEP_MODES or white_of(picture, data) > 255


def white_of(picture: Image.Image, data: bytes) -> int:
    """The value that the file has for white; Pillow may show another, such as 255."""
    if picture.format == "PPM":
        match = re.match(rb"P[2356]\s+(?:#.*\n\s*)*\d+\s+\d+\s+(\d+)", data)
        return int(match[1]) if match else 1 if picture.mode == "1" else 255
    bits: dict[str | None, Callable[[], int]] = {
        "PNG": lambda: data[24],
        "TIFF": lambda: max(tiff_tags(picture).get(BITS_TAG, (1,))),
        "SGI": lambda: 8 * data[3],
        "JPEG2000": lambda: 1 + (data[data.find(b"\xff\x4f\xff\x51") + 42] & 127),  # marker SIZ
    }
    return 1 if picture.mode == "1" else 2 ** bits.get(picture.format, lambda: 8)() - 1


def decode_deep(path: Path, data: bytes, picture: Image.Image) -> Num[np.ndarray, "h w *channels"]:
    """All values of a file of more than 8 bits, upright; Pillow knows grey ones, OpenCV colours."""
    if picture.mode in DEEP_MODES:
        return orient(np.asarray(picture), orientation(picture))
    if cv2 is None:
        raise UserError(
            f"{path} has more than 8 bits a channel in colour; pip install 'deeplab_jax[deep]' to "
            "read it, or save it with 8 bits."
        )
    values = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    if values is None:
        raise UserError(f"{path} cannot be decoded; save it with 8 bits a channel.")
    if values.ndim == 3 and values.shape[2] > 2:  # OpenCV's is blue, green, red, alpha
        values = values[..., [2, 1, 0, *range(3, values.shape[2])]]
    return orient(values, orientation(picture))


def orientation(picture: Image.Image) -> int:
    """How the photograph has to be turned or mirrored to stand upright, 1 to 8; 1: not at all."""
    return picture.getexif().get(ORIENTATION_TAG, 1)


def orient(values: np.ndarray, turn: int) -> np.ndarray:
    """Values `[h, w]` or `[h, w, channels]` as they stand upright by an `orientation`."""
    if turn in (5, 6, 7, 8):
        values = values.swapaxes(0, 1)
    if turn in (3, 4, 7, 8):
        values = values[::-1]
    return values[:, ::-1] if turn in (2, 3, 6, 7) else values


def count_frames(picture: Image.Image) -> int:
    """Frames of an animation, or photographs in one file; a TIFF's pages do not count."""
    return 1 if picture.format == "TIFF" else getattr(picture, "n_frames", 1)


def scale(
    path: Path, values: Num[np.ndarray, "..."], value_range: ValueRange | None
) -> UInt8[np.ndarray, "..."]:
    """`to_8_bits`; without a range a UserError with one that suits the photograph's own values."""
    if value_range is not None:
        return to_8_bits(values, value_range)
    finite = values[np.isfinite(values)]
    least, most = (finite.min().item(), finite.max().item()) if finite.size else (0, 1)
    kind, high = "floating-point values", max(1, math.ceil(most))
    if values.dtype.kind != "f":
        kind, high = "more than 8 bits a channel", 2 ** high.bit_length() - 1
    raise UserError(
        f"{path} has {kind}, from {least:g} to {most:g}; give the values of black and white as "
        f"--data.range LOW HIGH (or --range), such as {min(0, math.floor(least))} {high}, or save "
        "it with 8 bits."
    )


def to_8_bits(values: Num[np.ndarray, "..."], value_range: ValueRange) -> UInt8[np.ndarray, "..."]:
    """0 and 255 at the ends of the range, proportional between them, clipped beyond; NaN gives 0.

    A range of two numbers holds for all values; one with a pair for each channel needs values
    `[h, w, channels]`. A UserError where it is of another length or order.

    >>> to_8_bits(np.array([0, 100, 600, 1100, 4000]), (100, 1100)).tolist()
    [0, 0, 128, 255, 255]
    >>> to_8_bits(np.array([[[60, 60]]]), (0, 100, 50, 150)).tolist()
    [[[153, 26]]]
    """
    check_range(value_range, values.shape[-1] if values.ndim > 2 else 1)
    low, high = np.reshape(np.asarray(value_range, np.float64), (-1, 2)).T
    scaled = (values.astype(np.float64) - low) * (255 / (high - low))
    return np.rint(np.clip(np.nan_to_num(scaled, nan=0.0), 0, 255)).astype(np.uint8)


def check_range(value_range: ValueRange, channels: int) -> None:
    """Raises a UserError for what is neither a pair of numbers nor a pair for each channel."""
    if len(value_range) not in (2, 2 * channels):
        raise UserError(
            f"the range has {len(value_range)} numbers; give LOW HIGH, or such a pair for each of "
            f"the {channels} channels."
        )
    for low, high in zip(value_range[::2], value_range[1::2], strict=True):
        if not low < high:
            raise UserError(f"the range {low:g} {high:g} must be two numbers, the lower one first.")


def read_values(path: Path, *, channels: int) -> Num[np.ndarray, "h w channels"]:
    """The values as the file holds them; NaN where a TIFF says that there is no measurement. Three
    equal channels serve as one. Raises as `read`."""
    data = read_bytes(path)
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
    number = values.shape[-1]
    if channels == 1 and number == 3 and (values == values[..., :1]).all():
        return values[..., :1]
    if number != channels:
        raise UserError(
            f"{path} has {number} channel{'s' * (number > 1)}, and --data.channels {channels} was "
            "given; all photographs of a data set must have the number that is given."
        )
    return values


def _read_array(path: Path, data: bytes, channels: int) -> Shaped[np.ndarray, "h w _"]:
    """`.npy`: `[h, w, channels]`, or `[h, w]` for one channel."""
    values = load_array(path, data)
    values = values[..., None] if values.ndim == 2 else values
    if values.ndim != 3 or values.shape[0] == channels != values.shape[-1]:
        raise UserError(
            f"{path} has the shape {values.shape}, and [rows, columns, channels] was expected; "
            "save one picture a file, by numpy.moveaxis(x, 0, -1) if its channels come first."
        )
    return values


def load_array(path: Path, data: bytes) -> np.ndarray:
    """The array of a `.npy`; a UserError where it is none, or one of Python objects."""
    try:
        return np.load(io.BytesIO(data), allow_pickle=False)
    except (*DAMAGE, TypeError, MemoryError) as error:
        raise UserError(f"{path} is no array of numbers ({error}); use numpy.save.") from None


def _read_tiff(path: Path, data: bytes) -> Num[np.ndarray, "h w _"]:
    """The bands of a TIFF in any order of axes; NaN where GDAL has no value, except in 8 bits."""
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
            if math.prod(series.shape) > 3 * MAX_PIXELS:  # as many as the largest RGB photograph
                raise UserError(f"{path} has the shape {series.shape}; cut it into smaller ones.")
            values = series.asarray()
            turn, nodata = tags.valueof(ORIENTATION_TAG, 1), tags.valueof(NODATA_TAG)
    except UserError:
        raise
    except (*DAMAGE, LookupError, TypeError, tifffile.TiffFileError) as error:
        is_packed = "imagecodecs" in str(error)
        cure = "pip install 'deeplab_jax[tiff]'" if is_packed else "get the file again"
        raise UserError(f"{path} cannot be decoded ({error}); {cure}.") from None
    others = tuple(i for i, axis in enumerate(axes) if axis not in "YX")
    values = values.transpose(axes.index("Y"), axes.index("X"), *others)
    values = orient(values.reshape(*values.shape[:2], -1), int(turn))
    try:
        is_missing = values == float(str(nodata).strip(" \0"))
    except ValueError:
        return values
    if values.dtype == np.uint8 or not is_missing.any():
        return values
    exact = np.float32 if values.dtype.itemsize <= 2 or values.dtype == np.float32 else np.float64
    return np.where(is_missing, exact(np.nan), values.astype(exact))


def _read_photograph(path: Path, data: bytes) -> Num[np.ndarray, "h w _"]:
    """A photograph by the channels it has: 1 of grey, 3 of RGB, 4 with transparency."""
    picture = open_picture(path, data)
    if is_deep(picture, data):
        values = decode_deep(path, data, picture)
    else:
        upright = ImageOps.exif_transpose(picture)
        modes = {"1": "L", "L": "L", "LA": "LA", "RGBA": "RGBA"}
        values = np.asarray(upright.convert(modes.get(upright.mode, "RGB")))
    return values.reshape(*values.shape[:2], -1)


class Measured(NamedTuple):
    """What `measure` found."""

    value_range: tuple[float, ...] | None
    """For each channel the values that become 0 and 255; None where photographs have 8 bits."""
    mean: tuple[float, ...]
    """Of each channel, 0..255, after the range."""

    def describe(self) -> str:
        """A line for each channel, with its range and mean."""
        ends = np.reshape(self.value_range or (0, 255), (-1, 2))
        ends = np.broadcast_to(ends, (len(self.mean), 2)).tolist()
        return "\n".join(
            f"channel {i}: {low:g} to {high:g} become 0 to 255, mean {mean:g}"
            for i, ((low, high), mean) in enumerate(zip(ends, self.mean, strict=True))
        )


def measure(
    paths: Sequence[Path],
    *,
    channels: int,
    value_range: ValueRange | None = None,
    bad_data: BadData = "raise",
    progress: Callable[[Iterable], Iterable] = iter,
) -> Measured:
    """Range and mean of each channel, over pixels that hold a number: a given `value_range`, or
    that of PERCENTILES. At most MOST_PHOTOGRAPHS are read, evenly spread, and MOST_PIXELS of them;
    the same files give the same numbers. A UserError where some have 8 bits and others more."""
    spread = np.linspace(0, len(paths) - 1, min(len(paths), MOST_PHOTOGRAPHS)).astype(int)
    kinds: dict[bool, Path] = {}
    samples = []
    for number, path in enumerate(progress([paths[i] for i in spread])):
        try:
            values = read_values(path, channels=channels)
        except UserError:
            if bad_data == "skip":
                continue
            raise
        kinds.setdefault(values.dtype == np.uint8, path)
        pixels, most = values.reshape(-1, channels), MOST_PIXELS // len(spread)
        rng = np.random.default_rng(number)
        samples.append(rng.choice(pixels, most, replace=False) if len(pixels) > most else pixels)
    if not samples:
        raise UserError(f"none of the {len(paths)} photographs can be read, such as {paths[0]}.")
    if len(kinds) > 1:
        raise UserError(f"{kinds[True]} has 8 bits a channel, {kinds[False]} more; save all alike.")
    pixels = np.concatenate(samples)
    known = np.isfinite(pixels)
    if not known.any(0).all():
        raise UserError(f"channel {int(known.any(0).argmin())} holds no number in any photograph.")
    ends = None
    if False in kinds:
        ends = tuple(map(float, find_range(pixels) if value_range is None else value_range))
        pixels = to_8_bits(pixels[None], ends)[0]
    mean = np.where(known, pixels, 0).sum(0, dtype=np.float64) / known.sum(0)
    return Measured(ends, tuple(round(float(value), 3) for value in mean))


def find_range(pixels: Num[np.ndarray, "n channels"]) -> tuple[float, ...]:
    """For each channel PERCENTILES of its numbers; where these are equal, the least and the largest
    value; of a constant channel it and 1 more.

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


def among(paths: Sequence[Path]) -> list[Path]:
    """The photographs among some files: those of SUFFIXES, or of ARRAYS where there are none."""
    pictures = [path for path in paths if path.suffix.lower() in SUFFIXES]
    return pictures or [path for path in paths if path.suffix.lower() in ARRAYS]


def find(paths: Iterable[Path]) -> tuple[list[Path], list[str]]:
    """The files named, and the photographs in the folders named, in order; and sentences about what
    else lies there. A UserError for no photographs, in all or in a folder, or two of one name."""
    photographs, left_out = [], []
    for path in paths:
        if path.is_dir():
            files = [p for p in listing.visible(path.iterdir()) if not p.is_dir()]
            if not (inside := among(files)):
                raise UserError(f"{path} holds no photographs (.jpg, .png, ...)")
            below = [p for p in listing.walk(path) if p.suffix.lower() in SUFFIXES]
            if unused := sorted({*files, *below} - {*inside}):
                left_out.append(listing.describe_unused(path, unused))
            photographs += inside
        elif listing.is_hidden(path.name):
            left_out.append(f"{path} is a hidden file and not used")
        else:
            photographs.append(path)
    if not photographs:
        raise UserError("there is no photograph to predict: name photographs, or folders of them")
    stems: dict[str, Path] = {}
    for path in photographs:
        if (other := stems.setdefault(path.stem, path)) != path:
            raise UserError(
                f"{other} and {path} would be written under one name; predict them one by one"
            )
    return photographs, left_out


def to_record(
    path: Path, *, channels: int | None = None, value_range: ValueRange | None = None
) -> tuple[bytes, tuple[int, int]]:
    """The bytes of a photograph as it is prepared, and its (height, width): RGB as JPEG or PNG, the
    file's own where these are upright and of 8 bits; other channels as a compressed `.npy`."""
    buffer = io.BytesIO()
    if channels is not None:
        image = read(path, channels=channels, value_range=value_range)
        np.save(buffer, np.ascontiguousarray(image))
        return zlib.compress(buffer.getvalue(), level=1), (image.shape[0], image.shape[1])
    data = read_bytes(path)
    picture = open_picture(path, data)
    is_rgb = picture.mode == "RGB" and orientation(picture) == 1 and count_frames(picture) == 1
    is_png = picture.format == "PNG" and data[24:26] == b"\x08\x02"  # 8 bits, RGB
    if is_rgb and (picture.format == "JPEG" or is_png and "transparency" not in picture.info):
        return data, (picture.height, picture.width)
    upright = to_rgb(path, data, picture, value_range)
    upright.save(buffer, format="PNG", compress_level=1)
    return buffer.getvalue(), (upright.height, upright.width)


def decode_record(data: bytes) -> UInt8[np.ndarray, "h w *channels"]:
    """The photograph whose bytes `to_record` gave, or the class ids that `masks.encode` did."""
    if data.startswith((PNG_SIGNATURE, JPEG_SIGNATURE)):
        return np.asarray(Image.open(io.BytesIO(data), formats=("JPEG", "PNG")))
    return np.load(io.BytesIO(zlib.decompress(data)), allow_pickle=False)
