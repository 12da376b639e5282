"""One photograph or one mask from disk, with every fault told in a sentence that names the file."""

import io
import struct
import zlib
from pathlib import Path

import numpy as np
from jaxtyping import Integer, UInt8
from PIL import Image, ImageOps, UnidentifiedImageError

from deeplab_jax.data import listing, matlab, photographs
from deeplab_jax.data.folders import DrawnMask, Pair
from deeplab_jax.data.labels import LabelMapping, pack_colours
from deeplab_jax.types import IGNORE_LABEL, UserError

ORIENTATION_TAG = 0x0112
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
RGB_8_BIT = b"\x08\x02"  # bytes 24 and 25 of a PNG: bit depth and colour type

DEEP_MODES = ("I", "I;16")

# What Pillow raises on damaged files, besides OSError.
DAMAGE = (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error)


def read_bytes(path: Path) -> bytes:
    """What a file holds; a UserError where it is missing or may not be read."""
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise listing.missing(path) from None
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); check its rights.") from None


def open_picture(path: Path, data: bytes) -> Image.Image:
    """The decoded picture; truncated and damaged files are refused."""
    try:
        picture = Image.open(io.BytesIO(data), formats=photographs.FORMATS)
        photographs.refuse_bomb(picture)
        picture.load()
    except UnidentifiedImageError:
        raise UserError(f"{path} is no picture that Pillow knows; get the file again.") from None
    except Image.DecompressionBombError:
        raise UserError(
            f"{path} has more than {photographs.MAX_PIXELS} pixels; make it smaller."
        ) from None
    except DAMAGE as error:
        raise UserError(f"{path} is damaged ({error}); get the file again.") from None
    return picture


def read_photograph(path: Path) -> tuple[bytes, tuple[int, int]]:
    """A JPEG or PNG of 8-bit RGB that stands upright, and its (height, width).

    The file's own bytes where they are one already; grey, palette, CMYK, transparent or turned
    photographs are converted and come as PNG.
    """
    data = read_bytes(path)
    picture = open_picture(path, data)
    if picture.mode.startswith(("I", "F")):
        raise UserError(
            f"{path} is a photograph of more than 8 bits; save it with 8 bits a colour."
        )
    if is_plain_rgb(picture, data):
        return data, picture.size[::-1]
    upright = ImageOps.exif_transpose(picture).convert("RGB")
    return encode_png(upright), upright.size[::-1]


def is_plain_rgb(picture: Image.Image, data: bytes) -> bool:
    """Whether every decoder reads the same upright 8-bit RGB pixels from `data`."""
    if picture.mode != "RGB" or is_turned(picture):
        return False
    if picture.format == "PNG":
        return data[24:26] == RGB_8_BIT and "transparency" not in picture.info
    return picture.format == "JPEG"


def is_turned(picture: Image.Image) -> bool:
    """Whether the photograph has to be turned or mirrored to stand upright."""
    return picture.getexif().get(ORIENTATION_TAG, 1) != 1


def encode_png(picture: Image.Image) -> bytes:
    """The bytes of a PNG of the picture."""
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG")
    return buffer.getvalue()


def encode_labels(labels: UInt8[np.ndarray, "h w"]) -> bytes:
    """A grey PNG without filters, which is read twice as fast as one that Pillow writes."""
    header = struct.pack(">IIBBBBB", *labels.shape[::-1], 8, 0, 0, 0, 0)  # 8 bits, grey
    rows = np.pad(labels, ((0, 0), (1, 0))).tobytes()  # a row begins with its filter: 0, none
    parts = ((b"IHDR", header), (b"IDAT", zlib.compress(rows, level=1)), (b"IEND", b""))
    return PNG_SIGNATURE + b"".join(map(encode_chunk, *zip(*parts, strict=True)))


def encode_chunk(kind: bytes, data: bytes) -> bytes:
    """A part of a PNG: length, four letters of kind, data, checksum."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def read_mask(
    path: Path | DrawnMask, *, num_classes: int, mapping: LabelMapping | None = None
) -> UInt8[np.ndarray, "h w"]:
    """Class ids of a PNG or a MATLAB file: 0..num_classes-1, and 255 where nothing counts.

    Without a mapping the file holds them itself, a PNG as palette indices or grey values.
    """
    if not isinstance(path, Path):
        return path.draw()
    if path.suffix == ".mat":
        codes = matlab.read_labels(path, read_bytes(path))
    else:
        codes = read_codes(path, mapping)
    if mapping is not None:
        return mapping.decode(path, codes)
    check_labels(path, codes, num_classes=num_classes)
    return codes.astype(np.uint8)


def read_codes(path: Path, mapping: LabelMapping | None) -> Integer[np.ndarray, "h w"]:
    """What a PNG holds: palette indices or grey values, or its colours as one number each."""
    picture = open_picture(path, read_bytes(path))
    if picture.format != "PNG":
        raise UserError(
            f"{path} is a {picture.format} picture, which loses class ids; save masks as PNG."
        )
    if mapping is not None and mapping.of_colours:
        return pack_colours(picture)
    if picture.mode not in ("P", "L", "1") and (mapping is None or picture.mode not in DEEP_MODES):
        raise UserError(
            f"{path} is {describe_mode(picture.mode)}; save class ids as a palette or grey PNG of "
            "8 bits, or say in mapping.txt what the values mean."
        )
    return np.asarray(picture).astype(np.int32)


def describe_mode(mode: str) -> str:
    """A Pillow mode in words that follow "is"."""
    if mode in ("RGB", "RGBA"):
        return f"a colour picture ({mode}) without a palette"
    return "a picture of 16 bits a pixel" if mode in DEEP_MODES else f"a picture of mode {mode}"


def check_labels(path: Path, codes: Integer[np.ndarray, "h w"], *, num_classes: int) -> None:
    """Refuses class ids beyond the classes; IGNORE_LABEL is none."""
    present = np.unique(codes).tolist()
    strange = [code for code in present if not 0 <= code < num_classes and code != IGNORE_LABEL]
    if strange:
        first = ", ".join(map(str, strange[:5])) + (", ..." if len(strange) > 5 else "")
        raise UserError(
            f"{path} holds the label {first}; with {num_classes} classes labels are 0 to "
            f"{num_classes - 1}, and {IGNORE_LABEL} where nothing counts."
        )


def check_sizes_agree(pair: Pair, size: tuple[int, int], labels: UInt8[np.ndarray, "h w"]) -> None:
    """Refuses a mask that has not the rows and columns, `size`, of its photograph."""
    if labels.shape != size:
        turned = labels.shape == size[::-1] and is_turned(Image.open(pair.photograph))
        why = " when its EXIF orientation is followed: turn the mask, too" if turned else ""
        raise UserError(
            f"{pair.mask_path} is {labels.shape[1]}x{labels.shape[0]} pixels and its photograph "
            f"{pair.photograph} is {size[1]}x{size[0]}{why}; both must be of one size."
        )
