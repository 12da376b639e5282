"""What labels mean, as two small text files beside the photographs say.

`labels.txt` has the class names, `id name` (or `id: name`) a line or one name a line; lines that
begin with # are left out. `mapping.txt`, where there is one, leads from what the masks hold,
colours or raw ids, to class ids:

    # colour, or raw id         class id, 255 where nothing counts
    128 64 128                  0
    7                           0
    *                           255

A line `*` tells what becomes of everything that is not listed; without it that is a fault. A
mapping lists either colours (red, green, blue, 0 to 255) or raw ids (0 to 65535).
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Integer, UInt8
from PIL import Image

from deeplab_jax.types import IGNORE_LABEL, MAX_CLASSES, UserError

NUMBERED = re.compile(r"(\d+)(?:\s*:\s*|\s+|$)(.*)")
"""A line of an id and a name, which may be empty."""


def read_class_names(path: Path) -> tuple[str, ...]:
    """Names of classes 0, 1, ... from a labels.txt.

    Lines of `id name` or `id: name` in any order, or of names alone in the order of their ids. A
    line for id 255 may be there and names no class.
    """
    if not path.is_file():
        raise UserError(
            f"{path} is missing; write the class names there, one a line in the order of their "
            "ids, or as `id name` lines such as `0 background`."
        )
    lines = [line.strip() for line in read_text(path).splitlines()]
    lines = [line for line in lines if line and not line.startswith("#")]
    numbered = [match.groups() for line in lines if (match := NUMBERED.fullmatch(line))]
    if not numbered:
        names = lines
    elif len(numbered) < len(lines) or not all(name for _, name in numbered):
        raise UserError(f"{path} mixes `id name` lines with others; write every line one way.")
    else:
        names = order_by_id(path, [(int(number), name) for number, name in numbered])
    if not 1 <= len(names) <= MAX_CLASSES:
        raise UserError(f"{path} names {len(names)} classes; 1 to {MAX_CLASSES} can be had.")
    return tuple(names)


def order_by_id(path: Path, numbered: Sequence[tuple[int, str]]) -> list[str]:
    """The names in the order of their ids, which must be 0, 1, 2, ... without a gap."""
    numbered = sorted(entry for entry in numbered if entry[0] != IGNORE_LABEL)
    ids = [number for number, _ in numbered]
    if ids != list(range(len(ids))):
        told = (
            f"{path} has the ids {', '.join(map(str, ids))}; they must be 0, 1, 2, ... each once."
        )
        if len(set(ids)) == len(ids):
            lines = ", ".join(f"`{old} {new}`" for new, old in enumerate(ids))
            told += (
                f" Number them so, and write beside it a mapping.txt from the values in the masks "
                f"to these ids: {lines} and `* {IGNORE_LABEL}`."
            )
        raise UserError(told)
    return [name for _, name in numbered]


@dataclass(frozen=True)
class LabelMapping:
    """Class ids by colour, packed as red * 65536 + green * 256 + blue, or by raw id."""

    path: Path
    of_colours: bool
    classes: Mapping[int, int]
    others: int | None
    """The class id of everything else; None where that is a fault."""

    def decode(self, path: Path, codes: Integer[np.ndarray, "h w"]) -> UInt8[np.ndarray, "h w"]:
        """The class ids of the mask that was read from `path`."""
        present, place = np.unique(codes, return_inverse=True)
        classes = [self.classes.get(int(code), self.others) for code in present]
        if None in classes:
            raise UserError(
                f"{path} holds {self.describe(int(present[classes.index(None)]))}, which "
                f"{self.path} does not list; add it there, or `* {IGNORE_LABEL}` for all others."
            )
        return np.array(classes, np.uint8)[place.reshape(codes.shape)]

    def describe(self, code: int) -> str:
        if self.of_colours:
            return f"the colour {code >> 16} {code >> 8 & 255} {code & 255}"
        return f"the raw id {code}"


def pack_colours(picture: Image.Image) -> Integer[np.ndarray, "h w"]:
    """One number a pixel; palettes are looked up."""
    return np.asarray(picture.convert("RGB")).astype(np.int32) @ np.array([65536, 256, 1], np.int32)


def read_mapping(path: Path, *, num_classes: int) -> LabelMapping:
    """The mapping a text file describes; see the top of this module."""
    rows = [line.split("#")[0].split() for line in read_text(path).splitlines()]
    rows = [(number, row) for number, row in enumerate(rows, 1) if row]
    others, classes, widths = None, {}, set()
    for number, (*source, label) in rows:
        label = parse_label(path, number, label, num_classes=num_classes)
        if source == ["*"]:
            others = label
        else:
            widths.add(len(source))
            if classes.setdefault(pack_source(path, number, source), label) != label:
                raise UserError(f"{path}, line {number}: {' '.join(source)!r} has two class ids.")
    if widths not in ({1}, {3}):
        raise UserError(
            f"{path} must list either colours (red green blue) or raw ids, not both, and not none."
        )
    return LabelMapping(path, widths == {3}, classes, others)


def pack_source(path: Path, number: int, source: list[str]) -> int:
    """A colour as 0xRRGGBB, or the raw id itself, from the words of line `number`."""
    limit = 255 if len(source) == 3 else 65535
    if len(source) not in (1, 3) or not all(s.isdigit() and int(s) <= limit for s in source):
        raise UserError(
            f"{path}, line {number}: {' '.join(source)!r} is neither a colour (red green blue, "
            "0 to 255) nor a raw id (0 to 65535)."
        )
    return sum(int(s) << 8 * i for i, s in enumerate(reversed(source)))


def parse_label(path: Path, number: int, label: str, *, num_classes: int) -> int:
    """The class id, or 255 for ignore, that stands as text in line `number` of a file.

    Raises:
      UserError: it is neither.
    """
    if not label.isdigit() or num_classes <= int(label) != IGNORE_LABEL:
        raise UserError(
            f"{path}, line {number}: {label!r} is no class id; ids are 0 to {num_classes - 1}, "
            f"and {IGNORE_LABEL} where nothing counts."
        )
    return int(label)


def read_text(path: Path) -> str:
    """Text of a small file, with or without a byte order mark."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise UserError(f"{path} is not text in UTF-8; save it as such.") from None
