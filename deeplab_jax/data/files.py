"""One photograph or one mask as it is prepared, with every fault in a sentence that names the file.

Masks are PNG, TIFF, BMP, GIF or PPM, or MATLAB files. Without a mapping a mask holds class ids: as
palette indices, as grey values of 1 to 8 bits as they are stored, or as RGB whose three channels
are equal.
"""

import io
import struct
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Integer, UInt8
from PIL import Image

from deeplab_jax.data import bands, matlab, photographs
from deeplab_jax.data.folders import DrawnMask, Pair
from deeplab_jax.data.labels import LabelMapping, pack_colours
from deeplab_jax.data.photographs import (
    ARRAY_SIGNATURE,
    BITS_TAG,
    DEEP_MODES,
    PHOTOMETRIC_TAG,
    PNG_SIGNATURE,
    WHITE_IS_ZERO,
    is_turned,
    open_picture,
    read_bytes,
)
from deeplab_jax.ranges import ValueRange
from deeplab_jax.renamed import answering
from deeplab_jax.types import IGNORE_LABEL, Photograph, UserError

RGB_8_BIT = b"\x08\x02"  # bytes 24 and 25 of a PNG: bit depth and colour type

LOSSY = ("JPEG", "MPO", "WEBP", "HEIF")
COMPRESSION_TAG, JPEG_IN_TIFF = 259, (6, 7)


def read_photograph(
    path: Path, *, value_range: ValueRange | None = None, channels: int | None = None
) -> tuple[bytes, tuple[int, int]]:
    """A JPEG or PNG of 8-bit RGB that stands upright, and its (height, width).

    The file's own bytes where they are one already, otherwise a PNG of what photographs.py makes
    of it. With `channels` it is what `encode_bands` makes of what bands.py reads.
    """
    if channels is not None:
        image = bands.read(path, channels=channels, value_range=value_range)
        return encode_bands(image), (image.shape[0], image.shape[1])
    data = read_bytes(path)
    picture = open_picture(path, data)
    if is_plain_rgb(picture, data):
        return data, (picture.height, picture.width)
    upright = photographs.to_rgb(path, data, picture, value_range=value_range)
    return encode_png(upright), (upright.height, upright.width)


def is_plain_rgb(picture: Image.Image, data: bytes) -> bool:
    """Whether every decoder reads the same upright 8-bit RGB pixels from `data`."""
    if picture.mode != "RGB" or is_turned(picture):
        return False
    if picture.format == "PNG":
        return data[24:26] == RGB_8_BIT and "transparency" not in picture.info
    return picture.format == "JPEG"


def encode_png(picture: Image.Image) -> bytes:
    """The bytes of a PNG of the picture."""
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG", compress_level=1)
    return buffer.getvalue()


def encode_bands(image: Photograph) -> bytes:
    """A picture of any number of channels as a compressed `.npy`; `decode_bands` reads it."""
    buffer = io.BytesIO()
    np.save(buffer, np.ascontiguousarray(image))
    return zlib.compress(buffer.getvalue(), level=1)


def encode_labels(labels: UInt8[np.ndarray, "h w"]) -> bytes:
    """A grey PNG without filters, which is read twice as fast as one that Pillow writes."""
    header = struct.pack(">IIBBBBB", *labels.shape[::-1], 8, 0, 0, 0, 0)  # 8 bits, grey
    rows = np.pad(labels, ((0, 0), (1, 0))).tobytes()  # a row begins with its filter: 0, none
    parts = ((b"IHDR", header), (b"IDAT", zlib.compress(rows, level=1)), (b"IEND", b""))
    return PNG_SIGNATURE + b"".join(map(encode_chunk, *zip(*parts, strict=True)))


def encode_chunk(kind: bytes, data: bytes) -> bytes:
    """A part of a PNG: length, four letters of kind, data, checksum."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


@dataclass
class Palettes:
    """The colours that the palettes of masks give to class ids, over the masks read so far."""

    colours: dict[int, tuple[tuple[int, ...], Path]] = field(default_factory=dict)
    """For each index that occurred: its colour, and the first mask that showed it."""
    agreeing: dict[bytes, set[int]] = field(default_factory=dict)
    """For each palette that occurred: the indices whose colours have been compared already."""

    def check(self, path: Path, picture: Image.Image, codes: UInt8[np.ndarray, "h w"]) -> None:
        """Refuses a mask in which a class id has another colour than in an earlier mask.

        Programs that reduce or optimise palettes number colours anew in each file; indices mean
        nothing then.
        """
        palette = np.zeros((256, 3), np.uint8)
        given = np.array(picture.getpalette("RGB"), np.uint8).reshape(-1, 3)
        palette[: len(given)] = given
        indices, codes = np.asarray(picture).ravel(), codes.ravel()
        agreeing = self.agreeing.setdefault(palette.tobytes(), set())
        for code in set(np.flatnonzero(np.bincount(codes)).tolist()) - agreeing:
            colour = tuple(palette[indices[np.argmax(codes == code)]].tolist())
            earlier, other = self.colours.setdefault(code, (colour, path))
            if colour != earlier:
                raise UserError(
                    f"{path} shows index {code} of its palette as the colour "
                    f"{' '.join(map(str, colour))}, and {other} as {' '.join(map(str, earlier))}; "
                    "write mapping.txt with the class id of each colour, or, if the indices are "
                    "class ids whatever their colours, lines such as `0 0` and `1 1`."
                )
            agreeing.add(code)


def read_mask(
    path: Path | DrawnMask,
    *,
    num_classes: int,
    mapping: LabelMapping | None = None,
    palettes: Palettes | None = None,
) -> UInt8[np.ndarray, "h w"]:
    """Class ids, 0 to num_classes - 1, and 255 where nothing counts.

    With `palettes`, a mask without mapping whose palette contradicts those read before is refused.
    """
    if not isinstance(path, Path):
        return path.draw()
    if path.suffix.lower() == ".mat":
        codes = matlab.read_labels(path, read_bytes(path))
        return decode(path, codes, num_classes=num_classes, mapping=mapping)
    data = read_bytes(path)
    if data.startswith(ARRAY_SIGNATURE):
        codes = read_array_codes(path, data)
        return decode(path, codes, num_classes=num_classes, mapping=mapping)
    picture = open_picture(path, data)
    refuse_lossy(path, picture)
    photographs.refuse_other_bands(path, data, picture, "save class ids as one band.")
    if picture.mode not in DEEP_MODES and photographs.is_deep(picture, data):
        raise UserError(  # Pillow shows the upper 8 bits only
            f"{path} is a colour picture of more than 8 bits a channel; save masks with 8 bits."
        )
    if mapping is not None and mapping.of_colours:
        return mapping.decode(path, pack_colours(picture))
    codes = read_codes(path, picture, data, deep=mapping is not None)
    if picture.mode == "P" and mapping is None and palettes is not None:
        palettes.check(path, picture, codes)
    return decode(path, codes, num_classes=num_classes, mapping=mapping)


def read_array_codes(path: Path, data: bytes) -> Integer[np.ndarray, "h w"]:
    """The values of a mask that is an array of NumPy, `[h, w]` or `[h, w, 1]`, whole numbers."""
    try:
        codes = np.load(io.BytesIO(data), allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise UserError(
            f"{path} is no array of numbers ({error}); save it by numpy.save."
        ) from None
    codes = codes[..., 0] if codes.ndim == 3 and codes.shape[-1] == 1 else codes
    if codes.ndim != 2 or codes.dtype.kind not in "uib":
        raise UserError(
            f"{path} is an array {codes.shape} of {codes.dtype}, and whole numbers [rows, columns] "
            "were expected; save class ids as uint8."
        )
    return codes.astype(np.uint8 if codes.dtype == bool else codes.dtype)


def decode(
    path: Path, codes: Integer[np.ndarray, "h w"], *, num_classes: int, mapping: LabelMapping | None
) -> UInt8[np.ndarray, "h w"]:
    """Class ids of the values that a mask holds."""
    if mapping is not None:
        return mapping.decode(path, codes)
    check_labels(path, codes, num_classes=num_classes)
    return codes.astype(np.uint8, copy=False)


def refuse_lossy(path: Path, picture: Image.Image) -> None:
    """Lossy compression mixes neighbouring class ids."""
    in_tiff = photographs.tiff_tags(picture).get(COMPRESSION_TAG) in JPEG_IN_TIFF
    if picture.format in LOSSY or in_tiff:
        kind = "TIFF with JPEG compression" if in_tiff else f"{picture.format} picture"
        raise UserError(f"{path} is a {kind}, which loses class ids; save masks as PNG.")


def read_codes(
    path: Path, picture: Image.Image, data: bytes, *, deep: bool
) -> Integer[np.ndarray, "h w"]:
    """Palette indices or grey values as they are stored; 16-bit values where `deep` is true."""
    if picture.mode in ("L", "LA"):
        grey = np.asarray(picture.getchannel(0))
        return (255 - grey if is_inverted(picture) else grey) // grey_step(picture, data)
    if picture.mode == "P" and picture.format == "GIF":
        return read_gif(picture)
    if picture.mode in ("P", "1"):
        return np.asarray(picture).astype(np.uint8)
    if picture.mode in ("RGB", "RGBA"):
        red, green, blue = (np.asarray(picture.getchannel(i)) for i in range(3))
        if np.array_equal(red, green) and np.array_equal(red, blue):
            return red
    if deep and picture.mode in DEEP_MODES and picture.mode != "F":
        return np.asarray(picture).astype(np.int32)
    raise UserError(
        f"{path} is {describe_mode(picture.mode)}; save class ids as a palette or grey PNG of "
        "8 bits, or say in mapping.txt what the values mean."
    )


def read_gif(picture: Image.Image) -> UInt8[np.ndarray, "h w"]:
    """Palette indices, or grey values where the palette is grey: GIF has no other grey pictures.

    Black and white alone are 0 and 1, as in a picture of one bit.
    """
    palette = np.array(picture.getpalette("RGB"), np.uint8).reshape(-1, 3)
    indices = np.asarray(picture)
    used = palette[np.flatnonzero(np.bincount(indices.ravel()))]
    if (used != used[:, :1]).any():
        return indices
    grey = palette[:, 0]
    return (grey // 255 if np.isin(used, (0, 255)).all() else grey)[indices]


def is_inverted(picture: Image.Image) -> bool:
    """Whether Pillow has inverted the values, as it does for TIFFs in which 0 is white."""
    return photographs.tiff_tags(picture).get(PHOTOMETRIC_TAG) == WHITE_IS_ZERO


def grey_step(picture: Image.Image, data: bytes) -> int:
    """Step between grey values as Pillow decodes them: it spreads 2 and 4 bits over 0..255."""
    if picture.format == "PNG":
        bits = data[24]
    elif picture.format == "TIFF":
        bits = max(photographs.tiff_tags(picture).get(BITS_TAG, (1,)))
    else:
        return 1
    return {2: 85, 4: 17}.get(bits, 1)


def describe_mode(mode: str) -> str:
    """A Pillow mode in words that follow "is"."""
    if mode in ("RGB", "RGBA"):
        return f"a colour picture ({mode}) without a palette"
    if mode == "F":
        return "a picture of floating-point values"
    return "a picture of 16 bits a pixel" if mode in DEEP_MODES else f"a picture of mode {mode}"


def check_labels(path: Path, codes: Integer[np.ndarray, "h w"], *, num_classes: int) -> None:
    """Refuses class ids that no class has; IGNORE_LABEL is allowed."""
    if codes.dtype == np.uint8:  # counting is faster than sorting
        present = np.flatnonzero(np.bincount(codes.ravel())).tolist()
    else:
        present = np.unique(codes).tolist()
    strange = [code for code in present if not 0 <= code < num_classes and code != IGNORE_LABEL]
    if strange:
        first = ", ".join(map(str, strange[:5])) + (", ..." if len(strange) > 5 else "")
        raise UserError(
            f"{path} holds the label {first}; with {num_classes} classes labels are 0 to "
            f"{num_classes - 1}, and {IGNORE_LABEL} where nothing counts."
        )


def check_sizes_agree(pair: Pair, size: tuple[int, int], labels: UInt8[np.ndarray, "h w"]) -> None:
    """Refuses a mask of another size than its photograph's, `size` (rows, columns)."""
    if labels.shape != size:
        turned = labels.shape == size[::-1] and photographs.is_turned_file(pair.photograph)
        why = " when its EXIF orientation is followed: turn the mask, too" if turned else ""
        raise UserError(
            f"{pair.mask_path} is {labels.shape[1]}x{labels.shape[0]} pixels and its photograph "
            f"{pair.photograph} is {size[1]}x{size[0]}{why}; both must be of one size."
        )


if not TYPE_CHECKING:  # an editor is to mark the old names
    __getattr__ = answering(
        __name__,
        {
            "DAMAGE": "data.photographs.DAMAGE",
            "ORIENTATION_TAG": "data.photographs.ORIENTATION_TAG",
        },
    )
