"""From what a mask holds, colours or raw ids, to class ids, as a small text file says.

    # colour, or raw id         class id, 255 where nothing counts
    128 64 128                  0
    7                           0
    *                           255

A line `*` tells what becomes of everything that is not listed; without it that is a fault. A file
lists either colours (red, green, blue, 0 to 255) or raw ids (0 to 65535).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Integer, UInt8
from PIL import Image

from deeplab_jax.data import layouts
from deeplab_jax.types import IGNORE_LABEL, UserError


@dataclass(frozen=True)
class LabelMapping:
    """Class ids by colour, packed as red * 65536 + green * 256 + blue, or by raw id."""

    path: Path
    of_colours: bool
    classes: Mapping[int, int]
    others: int | None

    def decode(self, path: Path, picture: Image.Image) -> UInt8[np.ndarray, "h w"]:
        """The class ids of the mask `picture`, which was read from `path`."""
        codes = pack_colours(picture) if self.of_colours else raw_ids(path, picture)
        present, place = np.unique(codes, return_inverse=True)
        classes = [self.classes.get(int(code), self.others) for code in present]
        if None in classes:
            code = int(present[classes.index(None)])
            what = (
                f"colour {code >> 16} {code >> 8 & 255} {code & 255}" if self.of_colours else code
            )
            raise UserError(
                f"{path} holds {what}, which {self.path} does not list; "
                f"add it there, or a line `* {IGNORE_LABEL}` for all others."
            )
        return np.array(classes, np.uint8)[place.reshape(codes.shape)]


def pack_colours(picture: Image.Image) -> Integer[np.ndarray, "h w"]:
    """One number a pixel; palettes are looked up."""
    return np.asarray(picture.convert("RGB")).astype(np.int32) @ np.array([65536, 256, 1], np.int32)


def raw_ids(path: Path, picture: Image.Image) -> Integer[np.ndarray, "h w"]:
    if picture.mode not in ("P", "L", "1", "I", "I;16"):
        raise UserError(f"{path} is a {picture.mode} picture; raw ids need a grey or palette PNG.")
    return np.asarray(picture).astype(np.int32)


def read_mapping(path: Path, *, num_classes: int) -> LabelMapping:
    """The mapping a text file describes; see the top of this module."""
    rows = [line.split("#")[0].split() for line in layouts.read_text(path).splitlines()]
    rows = [(number, row) for number, row in enumerate(rows, 1) if row]
    others, classes, widths = None, {}, set()
    for number, (*source, label) in rows:
        label = parse_label(path, number, label, num_classes=num_classes)
        if source == ["*"]:
            others = label
        else:
            widths.add(len(source))
            classes[pack_source(path, number, source)] = label
    if widths not in ({1}, {3}):
        raise UserError(f"{path} must list either colours (red green blue) or raw ids, not both.")
    return LabelMapping(path, widths == {3}, classes, others)


def pack_source(path: Path, number: int, source: list[str]) -> int:
    limit = 255 if len(source) == 3 else 65535
    if len(source) not in (1, 3) or not all(s.isdigit() and int(s) <= limit for s in source):
        raise UserError(
            f"{path}, line {number}: {' '.join(source)!r} is neither a colour (red green blue, "
            "0 to 255) nor a raw id (0 to 65535)."
        )
    return sum(int(s) << 8 * i for i, s in enumerate(reversed(source)))


def parse_label(path: Path, number: int, label: str, *, num_classes: int) -> int:
    if not label.isdigit() or num_classes <= int(label) != IGNORE_LABEL:
        raise UserError(
            f"{path}, line {number}: {label!r} is no class id; ids are 0 to {num_classes - 1}, "
            f"and {IGNORE_LABEL} where nothing counts."
        )
    return int(label)
