"""One reader of photographs for training, checking and prediction.

A photograph is JPEG, PNG, TIFF, BMP, WebP, GIF or PPM, and HEIC with the extra `heic`. Whatever it
holds becomes RGB uint8 that stands upright: EXIF orientation is applied, grey, palette and CMYK are
converted, transparency is dropped, and of several frames the first is taken. Photographs of more
than 8 bits a channel need a range of values, see `to_rgb`.
"""

import io
import math
import struct
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Num
from PIL import Image as PILImage
from PIL import ImageOps, TiffImagePlugin, UnidentifiedImageError

from deeplab_jax.data import listing
from deeplab_jax.data.listing import is_hidden, visible
from deeplab_jax.ranges import ValueRange, to_8_bits
from deeplab_jax.types import Image, UserError

try:
    import cv2
except ImportError:  # the extra `fast`
    cv2 = None

try:
    import pillow_heif
except ImportError:  # the extra `heic`
    pillow_heif = None
else:
    pillow_heif.register_heif_opener()

HEIC_SUFFIXES = (".heic", ".heif")

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", *HEIC_SUFFIXES)
"""Of files that are taken for photographs, in lower case; capitals do not matter."""

ARRAYS = (".npy",)
"""Of files that are taken for photographs where a folder holds none of SUFFIXES, see bands.py."""

ARRAY_SIGNATURE = b"\x93NUMPY"

FORMATS = (
    *("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF", "PPM"),
    *(() if pillow_heif is None else ("HEIF",)),
)
"""Pillow's decoders that may be used, whatever a file is called. For other formats, such as EPS,
Pillow runs other programs."""

MAX_PIXELS = 2**27
"""Pictures that promise more are not decoded: 400 MB as RGB."""

DEEP_MODES = ("I", "I;16", "I;16L", "I;16B", "I;16N", "F")
"""Pillow's modes of more than 8 bits."""

ORIENTATION_TAG = 0x0112
BITS_TAG, PHOTOMETRIC_TAG, SAMPLES_TAG, EXTRA_TAG = 258, 262, 277, 338
WHITE_IS_ZERO, BLACK_IS_ZERO, RGB_TIFF = 0, 1, 2  # values of PHOTOMETRIC_TAG
NO_ALPHA = 0  # a value of EXTRA_TAG

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
TIFF_SIGNATURES = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")

# What Pillow raises on damaged files.
DAMAGE = (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error)


def read(path: Path | str, *, value_range: ValueRange | None = None) -> Image:
    """RGB uint8 `[h, w, 3]`, upright, as training reads it.

    Raises:
      UserError: no such file, no photograph, damaged, of more than MAX_PIXELS, or of more than
        8 bits a channel without a `value_range`.
    """
    path = Path(path)
    data = read_bytes(path)
    return np.asarray(to_rgb(path, data, open_picture(path, data), value_range=value_range))


def read_bytes(path: Path) -> bytes:
    """What a file holds; a UserError where it is missing or may not be read."""
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise listing.missing(path) from None
    except OSError as error:
        raise UserError(
            f"{path} cannot be read ({error.strerror}); check its permissions."
        ) from None


def open_picture(path: Path, data: bytes) -> PILImage.Image:
    """The decoded picture; truncated and damaged files are refused."""
    try:
        picture = PILImage.open(io.BytesIO(data), formats=FORMATS)
        refuse_bomb(picture)
        picture.load()
    except UnidentifiedImageError:
        raise UserError(describe_unknown(path, data)) from None
    except PILImage.DecompressionBombError:
        raise UserError(f"{path} has more than {MAX_PIXELS} pixels; make it smaller.") from None
    except DAMAGE as error:
        raise UserError(f"{path} is damaged ({error}); get the file again.") from None
    return picture


def refuse_bomb(picture: PILImage.Image) -> None:
    """Raises Pillow's error for too many pixels before decoding; Pillow allows twice as many."""
    if picture.width * picture.height > MAX_PIXELS:
        raise PILImage.DecompressionBombError


def describe_unknown(path: Path, data: bytes) -> str:
    """Why Pillow knows no decoder for a file, and what to do."""
    if path.suffix.lower() in HEIC_SUFFIXES and pillow_heif is None:
        return f"{path} is a HEIC photograph; pip install 'deeplab_jax[heic]' to read it."
    if data.startswith(ARRAY_SIGNATURE):
        return f"{path} is an array of NumPy; give the number of its channels as --data.channels."
    if data.startswith(TIFF_SIGNATURES):
        return describe_bands(path, data)
    return f"{path} is no picture that Pillow knows; get the file again."


FEWER_BANDS = (
    "give the number of bands as --data.channels to use them all, or save three of them as an RGB "
    "file of 8 or 16 bits."
)


def describe_bands(path: Path, data: bytes, cure: str = FEWER_BANDS) -> str:
    """That a TIFF is not RGB, with its bands and bits, and what to do."""
    try:
        tags = TiffImagePlugin.ImageFileDirectory_v2(data[:8])
        stream = io.BytesIO(data)
        stream.seek(tags.next)
        tags.load(stream)
        bands = tags.get(SAMPLES_TAG, 1)
        bits = ", ".join(map(str, sorted(set(tags.get(BITS_TAG, (1,))))))
        kind = f"{bands} band{'s' if bands > 1 else ''} and {bits} bits"
    except DAMAGE:
        kind = "an unknown kind"
    return f"{path} is a TIFF of {kind}, which cannot be read as RGB; {cure}"


def refuse_other_bands(
    path: Path, data: bytes, picture: PILImage.Image, cure: str = FEWER_BANDS
) -> None:
    """Raises a UserError where Pillow would drop bands or pages of a TIFF silently."""
    if has_other_bands(picture):
        raise UserError(describe_bands(path, data, cure))
    if pages := count_pages(picture, data):
        raise UserError(
            f"{path} is a TIFF of {pages} pages of one size, of which one would be read; {cure}"
        )


def tiff_tags(picture: PILImage.Image) -> Mapping[int, Any]:
    """The tags of a TIFF by their numbers; none of another format."""
    return picture.tag_v2 if isinstance(picture, TiffImagePlugin.TiffImageFile) else {}


def has_other_bands(picture: PILImage.Image) -> bool:
    """Whether a TIFF has more bands than grey or RGB and an alpha."""
    tags = tiff_tags(picture)
    bands, extra = tags.get(SAMPLES_TAG, 1), tags.get(EXTRA_TAG, ())
    if tags.get(PHOTOMETRIC_TAG) in (WHITE_IS_ZERO, BLACK_IS_ZERO):
        return bands > 2 or bands == 2 and NO_ALPHA in extra
    return len(extra) > 1 or tags.get(PHOTOMETRIC_TAG) == RGB_TIFF and bands > 4


def count_pages(picture: PILImage.Image, data: bytes) -> int:
    """Pages of a TIFF whose second page is as large as its first, as in a stack of bands; else 0.

    A smaller second page is a preview.
    """
    if not isinstance(picture, TiffImagePlugin.TiffImageFile) or picture.n_frames == 1:
        return 0
    pages = PILImage.open(io.BytesIO(data), formats=("TIFF",))
    size = pages.size
    pages.seek(1)
    return picture.n_frames if pages.size == size else 0


def to_rgb(
    path: Path, data: bytes, picture: PILImage.Image, *, value_range: ValueRange | None
) -> PILImage.Image:
    """A decoded picture as 8-bit RGB, upright.

    Where it has more than 8 bits a channel, the values of `value_range` become 0 and 255, those
    between them proportionally, and those beyond it are clipped; NaN becomes 0. Without a range
    such a photograph is refused: what is black and white in it depends on the camera. 8-bit
    photographs are left as they are.
    """
    refuse_other_bands(path, data, picture)
    try:
        if is_deep(picture, data):
            upright = orient(read_deep(path, data, picture), orientation(picture))
            if value_range is None:
                raise UserError(describe_deep(path, upright))
            return PILImage.fromarray(to_8_bits(upright, value_range)).convert("RGB")
        return ImageOps.exif_transpose(picture).convert("RGB")
    except UserError:
        raise
    except DAMAGE as error:
        raise UserError(f"{path} cannot be read as RGB ({error}); save it as RGB.") from None


def is_deep(picture: PILImage.Image, data: bytes) -> bool:
    """Whether the file has more than 8 bits a channel; Pillow itself may show the upper 8 only."""
    if picture.mode in DEEP_MODES:
        return True
    if picture.format == "PNG":
        return data[24] == 16
    return max(tiff_tags(picture).get(BITS_TAG, (1,))) > 8


def read_deep(
    path: Path, data: bytes, picture: PILImage.Image
) -> Num[np.ndarray, "h w"] | Num[np.ndarray, "h w 3"]:
    """The values of a photograph of more than 8 bits, without transparency."""
    values = decode_deep(path, data, picture)
    if values.ndim == 2 or values.shape[2] < 3:
        return values.reshape(*values.shape[:2], -1)[..., 0]
    return values[..., :3]


def decode_deep(
    path: Path, data: bytes, picture: PILImage.Image
) -> Num[np.ndarray, "h w"] | Num[np.ndarray, "h w channels"]:
    """All values of a file of more than 8 bits; Pillow knows grey ones, OpenCV colours."""
    if picture.mode in DEEP_MODES:
        return np.asarray(picture)
    if cv2 is None:
        raise UserError(
            f"{path} has more than 8 bits a channel in colour; pip install 'deeplab_jax[fast]' to "
            "read it, or save it with 8 bits."
        )
    values = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    if values is None:
        raise UserError(f"{path} cannot be decoded; save it with 8 bits a channel.")
    if values.ndim == 2 or values.shape[2] < 3:
        return values
    return values[..., [2, 1, 0, *range(3, values.shape[2])]]  # OpenCV's is blue, green, red, alpha


def orientation(picture: PILImage.Image) -> int:
    """How the photograph has to be turned or mirrored to stand upright, 1 to 8; 1: not at all."""
    return picture.getexif().get(ORIENTATION_TAG, 1)


def orient(values: np.ndarray, turn: int) -> np.ndarray:
    """Values `[h, w]` or `[h, w, channels]` as they stand upright by an `orientation`."""
    if turn in (5, 6, 7, 8):
        values = values.swapaxes(0, 1)
    if turn in (3, 4, 7, 8):
        values = values[::-1]
    return values[:, ::-1] if turn in (2, 3, 6, 7) else values


def describe_deep(path: Path, values: np.ndarray) -> str:
    """That a photograph needs a range, with one that suits its own values."""
    finite = values[np.isfinite(values)]
    least, most = (finite.min().item(), finite.max().item()) if finite.size else (0, 1)
    if values.dtype.kind == "f":
        kind, low, high = (
            "floating-point values",
            min(0, math.floor(least)),
            max(1, math.ceil(most)),
        )
    else:
        kind, low, high = (
            "more than 8 bits a channel",
            min(0, least),
            2 ** max(1, most.bit_length()) - 1,
        )
    return (
        f"{path} has {kind}, from {least:g} to {most:g}; give the values of black and white as "
        f"--data.range LOW HIGH (or --range), such as {low} {high}, or save it with 8 bits."
    )


def is_turned(picture: PILImage.Image) -> bool:
    """Whether the photograph has to be turned or mirrored to stand upright."""
    return orientation(picture) != 1


def is_turned_file(path: Path) -> bool:
    """`is_turned` of a file; false of one that Pillow does not read, such as `.npy`."""
    try:
        return is_turned(PILImage.open(path, formats=FORMATS))
    except (UnidentifiedImageError, *DAMAGE):
        return False


def find(paths: Iterable[Path]) -> list[Path]:
    """The files named, and the photographs in the folders named, in order; no hidden ones.

    Photographs are files of SUFFIXES, and where a folder has none, of ARRAYS.

    Raises:
      UserError: no photographs, in all or in one of the folders, or two files whose results would
        share a name.
    """
    found: list[Path] = []
    for path in paths:
        if not path.is_dir():
            found += [path] if not is_hidden(path.name) else []
            continue
        files = visible(path.iterdir())
        inside = [p for p in files if p.suffix.lower() in SUFFIXES]
        inside = inside or [p for p in files if p.suffix.lower() in ARRAYS]
        if not inside:
            raise UserError(f"{path} holds no photographs ({', '.join(SUFFIXES)})")
        found += inside
    if not found:
        raise UserError("there is no photograph to predict: name photographs, or folders of them")
    stems: dict[str, Path] = {}
    for path in found:
        other = stems.setdefault(path.stem, path)
        if other != path:
            raise UserError(
                f"{other} and {path} would be written under one name; predict them one by one"
            )
    return found
