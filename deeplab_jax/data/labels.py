"""What labels mean, as small text files beside the photographs say.

`labels.txt` has the class names, `id name` (or `id: name`) a line or one name a line, and may end
each in a colour: `0 sky #4682B4`. Else names, and colours or raw ids, come from the file that an
annotation tool has left, see CLASS_FILES. Classes named as one of VOID_NAMES become 255.

`mapping.txt` leads from what the masks hold, colours (`128 64 128` or `#8040FF`) or raw ids (0 to
65535), to class ids, a line each. A line `* 255` tells what becomes of all that is not listed;
without it that is a fault. Lines that begin with # are left out.
"""

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Integer, UInt8
from PIL import Image

from deeplab_jax.types import IGNORE_LABEL, MAX_CLASSES, VOC_CLASS_NAMES, UserError

LABEL = re.compile(r"(?:(\d+)(?:\s*:\s*|\s+|$))?(.*?)\s*(?:(?<=\s)#([0-9a-fA-F]{6}))?")
"""A line of labels.txt: an id, a name and a colour, each of which may be missing."""

COMMENT = re.compile(r"(?<!^)#.*|^\s*#(?![0-9a-fA-F]{6}\s).*")
"""What follows #, which also begins a hexadecimal colour at the beginning of a line."""

VOID_NAMES = ("__ignore__", "ignore", "void", "unlabeled", "unlabelled")

Colours = tuple[tuple[int, int, int], ...] | None

Labels = UInt8[np.ndarray, "h w"]
"""Class ids, 255 where nothing counts."""

Classes = tuple[tuple[str, ...], "LabelMapping | None"]
"""Names in the order of class ids, and what the masks hold where that is not class ids."""


@dataclass(frozen=True)
class LabelMapping:
    """Class ids by colour, packed as red * 65536 + green * 256 + blue, or by raw id."""

    path: Path
    of_colours: bool
    classes: Mapping[int, int]
    others: int | None
    """The class id of everything else; None where that is a fault."""

    def decode(self, path: Path, codes: Integer[np.ndarray, "h w"]) -> Labels:
        """The class ids of the mask that was read from `path`."""
        present, index = np.unique(codes, return_inverse=True)
        classes = [self.classes.get(int(code), self.others) for code in present]
        if None in classes:
            code = int(present[classes.index(None)])
            kind = f"the colour {words_of(code)}" if self.of_colours else f"the raw id {code}"
            raise UserError(
                f"{path} holds {kind}, which {self.path} does not list; add it there, or "
                f"`* {IGNORE_LABEL}` for all others."
            )
        return np.array(classes, np.uint8)[index.reshape(codes.shape)]

    def encode(
        self, labels: Integer[np.ndarray, "h w"], num_classes: int
    ) -> Labels | UInt8[np.ndarray, "h w 3"]:
        """What the data set's own masks hold for these class ids: raw ids, or RGB colours; of
        several for a class the one listed first. A UserError for none, or one above 255."""
        codes = self.codes
        if 0 not in self.classes and self.others not in (None, IGNORE_LABEL):
            codes.setdefault(self.others, 0)  # the class of all that is not listed
        if missing := sorted(set(range(num_classes)) - codes.keys()):
            raise UserError(
                f"{self.path} lists nothing that leads to class {missing[0]}; add a line for it"
            )
        table = np.array([codes[label] for label in range(num_classes)])
        if self.of_colours:
            table = np.stack(unpack(table), -1)
        if table.max() > 255:
            raise UserError(f"{self.path} has raw ids above 255, which no 8-bit mask can hold")
        return table.astype(np.uint8)[labels]

    @property
    def codes(self) -> dict[int, int]:
        """The first colour or raw id of each class id."""
        return {label: code for code, label in reversed(list(self.classes.items()))}


def unpack(code):
    """Red, green and blue of 0xRRGGBB, a number or an array."""
    return code >> 16, code >> 8 & 255, code & 255


def words_of(code: int) -> str:
    """Red, green and blue of a packed colour, as they stand in mapping.txt."""
    return " ".join(map(str, unpack(code)))


def pack_colours(picture: Image.Image) -> Integer[np.ndarray, "h w"]:
    """One number a pixel; palettes are looked up."""
    return np.asarray(picture.convert("RGB")).astype(np.int32) @ np.array([65536, 256, 1], np.int32)


def pack_text(text: str) -> int | None:
    """A colour as 0xRRGGBB; None where the text is none.

    >>> hex(pack_text("128 64 255")), hex(pack_text("128, 64, 255")), hex(pack_text("#8040FF"))
    ('0x8040ff', '0x8040ff', '0x8040ff')
    """
    if match := re.fullmatch(r"\s*(?:#|0x)([0-9a-fA-F]{6})\s*", text):
        return int(match[1], 16)
    colour = [int(word) if word.isdigit() else 256 for word in re.split(r"[\s,]+", text.strip())]
    return int.from_bytes(colour) if len(colour) == 3 and max(colour) < 256 else None


def known_colours(names: Sequence[str], colors: Colours) -> dict[int, int]:
    """Class ids, and 255, of the packed colours in which pictures show the classes: of `colors`, or
    PASCAL VOC's where the names are VOC's. Empty where two classes share one."""
    # PASCAL VOC distributes the bits of a class id over red, green and blue.
    of_voc = [sum((c >> i & 1) << 23 - 8 * (i % 3) - i // 3 for i in range(8)) for c in range(256)]
    known = {of_voc[IGNORE_LABEL]: IGNORE_LABEL}
    if colors is not None:
        known |= {int.from_bytes(colour): label for label, colour in enumerate(colors)}
    elif tuple(names) == VOC_CLASS_NAMES:
        known |= {code: label for label, code in enumerate(of_voc[: len(names)])}
    return known if len(known) > len(names) else {}


def read_classes(folders: Sequence[Path]) -> tuple[tuple[str, ...], LabelMapping | None, Colours]:
    """Names, mapping and RGB colours from the first of some folders that has a file of class names;
    a mapping.txt in any of them stands above the colours and ids of that. The colours are None
    where a class has none. A UserError for no such file."""
    files = (folder / name for folder in folders for name in CLASS_FILES)
    path = next(filter(Path.is_file, files), folders[0] / "labels.txt")
    names, mapping = CLASS_FILES[path.name](path)
    own = next(filter(Path.is_file, (folder / "mapping.txt" for folder in folders)), None)
    if own and mapping is not None and path.name in ("labels.txt", "class_names.txt"):
        raise UserError(
            f"{path} has a line of void beside {own}; take it out, number the classes without it, "
            f"and lead void to {IGNORE_LABEL} in mapping.txt."
        )
    mapping = read_mapping(own, num_classes=len(names)) if own else mapping
    rows = read_labels(path) if path.name == "labels.txt" else ()
    codes = {name: int(colour, 16) for _, name, colour in rows if colour}
    if not codes.keys() >= set(names) and mapping is not None and mapping.of_colours:
        codes = {names[label]: code for label, code in mapping.codes.items() if label < len(names)}
    has_all = codes.keys() >= set(names)
    return names, mapping, tuple(unpack(codes[name]) for name in names) if has_all else None


def has_class_file(folder: Path) -> bool:
    """Whether a folder has a file of class names."""
    return any((folder / name).is_file() for name in CLASS_FILES)


def read_labels(path: Path) -> list[tuple[Any, ...]]:
    """Id, name and hexadecimal colour in each line of a labels.txt, None for those missing."""
    lines = [line for line in read_lines(path) if line[0] != "#"]
    return [match.groups() for match in map(LABEL.fullmatch, lines) if match]


def read_class_names(path: Path) -> Classes:
    """Names of classes 0, 1, ... from a labels.txt: lines of `id name` or `id: name` in any order,
    or of names alone in the order of their ids.

    A line for id 255, and LabelMe's `__ignore__` among names alone, may be there and name no class.
    Lines of VOID_NAMES have an id and are no class, so that the ids in masks are raw ids.
    """
    if not path.is_file():
        raise UserError(
            f"{path} is missing; write the class names there, in lines such as `0 background`."
        )
    rows = read_labels(path)
    numbered = sorted((int(number), name) for number, name, _ in rows if number is not None)
    if not numbered:
        names = [name for _, name, _ in rows if name != "__ignore__"]
        is_ade20k = len(names) == 150 and re.match("wall\\b.*\nbuilding\\b", "\n".join(names))
        if is_ade20k and not (path.parent / "mapping.txt").is_file():
            raise UserError(
                f"{path} has the 150 names of ADE20K: write a line `void` above them if masks hold "
                "1 for the first, as its own do, or number the lines from `0 wall` if they hold 0."
            )
    elif len(numbered) < len(rows) or not all(name for _, name in numbered):
        raise UserError(f"{path} mixes `id name` lines with others; write every line one way.")
    else:
        refuse_gaps(path, [number for number, _ in numbered if number != IGNORE_LABEL])
        names = [name for number, name in numbered if number != IGNORE_LABEL]
    kept = check_names(path, [name for name in names if name.lower() not in VOID_NAMES])
    if len(kept) == len(names):
        return kept, None
    rows = [(name, raw) for raw, name in enumerate(names)]
    return join_sources(path, [*rows, ("void", IGNORE_LABEL)], False)


def check_number(path: Path, number: int, *, least: int = 1) -> None:
    """Raises a UserError for an impossible number of classes."""
    if not least <= number <= MAX_CLASSES:
        raise UserError(f"{path} names {number} classes; {least} to {MAX_CLASSES} are possible.")


def check_names(path: Path, names: Sequence[str]) -> tuple[str, ...]:
    """The names, of which there must be some, not too many, and no two alike."""
    check_number(path, len(names))
    if twice := [name for name, number in Counter(names).items() if number > 1]:
        raise UserError(f"{path} names two classes {twice[0]!r}; give each a name of its own.")
    return tuple(names)


def refuse_gaps(path: Path, ids: Sequence[int]) -> None:
    """Raises a UserError for sorted ids that are not 0, 1, 2, ... each once."""
    if ids != list(range(len(ids))):
        told = f"{path} has the ids {', '.join(map(str, ids))}, and not 0, 1, 2, ... each once."
        if len(set(ids)) == len(ids):
            lines = ", ".join(f"`{old} {new}`" for new, old in enumerate(ids))
            told += (
                f" Number them so, and write beside it a mapping.txt from the values in the masks "
                f"to these ids: {lines} and `* {IGNORE_LABEL}`."
            )
        raise UserError(told)


def read_rows(path: Path, pattern: str) -> Classes:
    """The classes of a tool's file, whose lines have a `name` and a `colour` or raw `id`.

    A .csv begins with a line of titles; lines that begin with # and no colour are comments.
    """
    rows, of_colours = [], "<colour>" in pattern
    for line in read_lines(path)[path.suffix == ".csv" :]:
        match = re.fullmatch(pattern, line)
        code = match and (pack_text(match["colour"]) if of_colours else int(match["id"]))
        if match and code is not None:
            rows.append((match["name"].strip(), code))
        elif line[0] != "#":
            what = "a colour (red green blue, 0 to 255)" if of_colours else "an id"
            raise UserError(f"{path} has the line {line!r}; a name and {what} were expected.")
    return join_sources(path, rows, of_colours)


def read_object_info(path: Path) -> Classes:
    """ADE20K's objectInfo150.txt: number, three columns and more, name; 0 in masks is void."""
    rows = [line.split("\t") for line in read_lines(path)]
    rows = [(row[-1].strip(), int(row[0])) for row in rows if row[0].strip().isdigit()]
    return join_sources(path, [("void", 0), *rows, ("void", IGNORE_LABEL)], False)


def join_sources(path: Path, rows: Sequence[tuple[str, int]], of_colours: bool) -> Classes:
    """Classes in the order of the rows, of a name and its colour or raw id; two rows of one name
    are one class, and those of VOID_NAMES none. A UserError for a colour or id of two classes."""
    counted = dict.fromkeys(name for name, _ in rows if name.lower() not in VOID_NAMES)
    names = check_names(path, tuple(counted))
    classes: dict[int, int] = {}
    for name, source in rows:
        label = names.index(name) if name in counted else IGNORE_LABEL
        if classes.setdefault(source, label) != label:
            raise UserError(f"{path} gives the colour or value of {name!r} to another class, too.")
    return names, LabelMapping(path, of_colours, classes, None)


CLASS_DICT = partial(
    read_rows, pattern=r'"?(?P<name>[^"]+?)"?\s*,(?P<colour>[\d\s]+,[\d\s]+,[\d\s]+)(,.*)?'
)

CLASS_FILES: Mapping[str, Callable[[Path], Classes]] = {
    "labels.txt": read_class_names,
    "labelmap.txt": partial(read_rows, pattern="(?P<name>[^:]+):(?P<colour>[^:]*).*"),
    "label_colors.txt": partial(
        read_rows, pattern=r"(?P<colour>#\w+|0x\w+|\S+\s+\S+\s+\S+)\s+(?P<name>.+)"
    ),
    "class_dict.csv": CLASS_DICT,
    "class_dict_seg.csv": CLASS_DICT,
    "_classes.csv": partial(read_rows, pattern=r'(?P<id>\d+)\s*,\s*"?(?P<name>[^"]+)"?'),
    "class_names.txt": read_class_names,
    "objectInfo150.txt": read_object_info,
}
"""Files of class names, the first of which counts. labels.txt and LabelMe's class_names.txt have
names only; CVAT's, CamVid's and class_dict.csv colours, too; Roboflow's and ADE20K's raw ids."""


def read_mapping(path: Path, *, num_classes: int) -> LabelMapping:
    """The mapping a text file describes; see the top of this module."""
    others, classes, kinds = None, {}, set()
    for number, line in enumerate(read_text(path).splitlines(), 1):
        words = re.sub(COMMENT, "", line).split()
        if not words:
            continue
        where, (*source, label) = f"{path}, line {number}", words
        if not label.isdigit() or num_classes <= int(label) != IGNORE_LABEL:
            raise UserError(
                f"{where}: {label!r} is no class id; these are 0 to {num_classes - 1}, or "
                f"{IGNORE_LABEL} for void."
            )
        if source == ["*"]:
            others = int(label)
            continue
        code = colour = pack_text(" ".join(source))
        if code is None and len(source) == 1 and source[0].isdigit() and int(source[0]) < 65536:
            code = int(source[0])
        if code is None:
            raise UserError(
                f"{where}: {' '.join(source)!r} is neither a colour (red green blue, 0 to 255, or "
                "#RRGGBB) nor a raw id (0 to 65535)."
            )
        kinds.add(colour is not None)
        if classes.setdefault(code, int(label)) != int(label):
            raise UserError(f"{where}: {' '.join(source)!r} has two class ids.")
    if len(kinds) != 1:
        raise UserError(f"{path} must list either colours (red green blue) or raw ids, one kind.")
    return LabelMapping(path, kinds == {True}, classes, others)


def read_lines(path: Path) -> list[str]:
    """The lines of a small file that are not blank, without blanks around them."""
    return [line for line in map(str.strip, read_text(path).splitlines()) if line]


def read_text(path: Path) -> str:
    """Text of a small file, with or without a byte order mark."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise UserError(f"{path} is not text in UTF-8; save it as such.") from None
