"""One reader of masks: class ids uint8 `[h, w]`, upright by EXIF orientation, 255 where void.

A mask is a picture, an array `.npy`, a MATLAB file, or drawn from outlines. With a mapping its
colours or raw ids become class ids. Without one it holds class ids: as grey values as they are
stored, as RGB whose channels are equal, or as a palette. Programs that optimise pictures number the
colours of a palette anew, so colours decide where they are known: those of the classes, and grey
values that are class ids. Otherwise indices count, and masks that contradict each other are
refused.
"""

import io
import struct
import zlib
from collections.abc import Container, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import scipy.io
from jaxtyping import Integer
from PIL import Image
from scipy.io.matlab import MatReadError

from deeplab_jax.data import images
from deeplab_jax.data.folders import MASK_SUFFIXES, DrawnMask, Folder, GivenMask, Pair
from deeplab_jax.data.labels import LabelMapping, Labels, known_colours, pack_colours, words_of
from deeplab_jax.types import IGNORE_LABEL, UserError

LOSSY = ("JPEG", "MPO", "WEBP", "HEIF", "AVIF", "JPEG2000")
COMPRESSION_TAG, JPEG_IN_TIFF = 259, (6, 7)


@dataclass
class Rules:
    """What the masks of a data set mean; masks that are read by the same rules are compared."""

    num_classes: int
    mapping: LabelMapping | None = None
    """What they hold, where that is not class ids."""
    colours: Mapping[int, int] = field(default_factory=dict)
    """Class ids of the colours that are known, packed as LabelMapping has them."""
    cure: str = (
        "write mapping.txt with the class id of each colour, or, if the numbers are class ids "
        "whatever their colours, lines such as `0 0` and `1 1`."
    )
    """What to do about a contradiction."""
    seen: dict[str, tuple[str, Path]] = field(default_factory=dict)
    """What class ids and colours were shown as, and the first mask of each."""

    @cached_property
    def of_given(self) -> "Rules":
        """The rules of masks that replace the data set's own: class ids, whatever those hold."""
        cure = "write them anew, all with one palette."
        return replace(self, mapping=None, cure=cure, seen={})

    def know(self, code: int) -> bool:
        """Whether a value is a class id, 255, or listed in the mapping."""
        listed = range(self.num_classes) if self.mapping is None else self.mapping.classes
        return code == IGNORE_LABEL or code in listed

    def compare(self, path: Path, what: str, value: str, others: Container[str] = ()) -> None:
        """Refuses a mask that shows a class id or colour otherwise than an earlier mask did, unless
        it shows it so among `others`, too."""
        was, other = self.seen.setdefault(what, (value, path))
        if value != was and was not in others:
            raise UserError(f"{path} shows {what} as {value}, and {other} as {was}; {self.cure}")


def rules_of(folder: Folder) -> Rules:
    """The rules of a data set."""
    colours = known_colours(folder.class_names, folder.class_colors)
    return Rules(len(folder.class_names), folder.mapping, colours)


def read(mask: Path | DrawnMask | GivenMask, rules: Rules) -> Labels:
    """Class ids, and 255 where nothing counts. A UserError where the file is missing or damaged,
    holds other values, or contradicts an earlier mask."""
    if isinstance(mask, DrawnMask):
        return mask.draw(mask.path)
    if isinstance(mask, GivenMask):
        return read(mask.path, rules.of_given)
    data = images.read_bytes(mask)
    is_matlab = mask.suffix.lower() == ".mat"
    if is_matlab or data.startswith(images.ARRAY_SIGNATURE):
        return decode(mask, (read_matlab if is_matlab else read_array)(mask, data), rules)
    picture = images.open_picture(mask, data)
    refuse_other_pictures(mask, picture, data)
    labels = read_picture(mask, picture, data, rules)
    return np.ascontiguousarray(images.orient(labels, images.orientation(picture)))


def palette_of(path: Path, labels: Labels) -> list[int] | None:
    """The palette of a mask whose indices are its class ids `labels`; None of another mask."""
    if path.suffix.lower() not in MASK_SUFFIXES:
        return None
    picture = images.open_picture(path, images.read_bytes(path))
    same = picture.mode == "P" and np.array_equal(np.asarray(picture), labels)
    return picture.getpalette() if same else None


def refuse_other_pictures(path: Path, picture: Image.Image, data: bytes) -> None:
    """Raises a UserError for pictures that lose class ids, or of which a part would be read."""
    in_tiff = images.tiff_tags(picture).get(COMPRESSION_TAG) in JPEG_IN_TIFF
    if picture.format in LOSSY or in_tiff:
        kind = "TIFF with JPEG compression" if in_tiff else f"{picture.format} picture"
        raise UserError(f"{path} is a {kind}, which loses class ids; save masks as PNG.")
    images.refuse_other_bands(path, data, picture, "save class ids as one band.")
    if (frames := images.count_frames(picture)) > 1:
        raise UserError(f"{path} is an animation of {frames} frames; save the mask as one picture.")
    if picture.mode not in images.DEEP_MODES and images.is_deep(picture, data):
        raise UserError(  # Pillow shows the upper 8 bits only
            f"{path} is a colour picture of more than 8 bits a channel; save masks with 8 bits."
        )


def read_picture(path: Path, picture: Image.Image, data: bytes, rules: Rules) -> Labels:
    """Class ids of a picture as it is stored."""
    mapping, mode = rules.mapping, picture.mode
    if mapping is not None and mapping.of_colours:
        return mapping.decode(path, pack_colours(picture))
    if mode == "P":
        return decode(path, read_palette(path, picture, rules), rules)
    if mode in ("L", "LA", "1"):
        return decode(path, read_grey(path, picture, data, rules), rules)
    kind = f"a picture of mode {mode}"
    if mode in ("RGB", "RGBA"):
        packed = pack_colours(picture)
        blue = packed & 255
        if (packed == blue * 0x010101).all():  # grey
            return decode(path, blue.astype(np.uint8), rules)
        if mapping is None and set(np.unique(packed).tolist()) <= rules.colours.keys():
            return LabelMapping(path, True, rules.colours, None).decode(path, packed)
        kind = f"a colour picture ({mode}) without a palette"
    elif mode in images.DEEP_MODES and mode != "F":
        if mapping is not None:
            return mapping.decode(path, np.asarray(picture).astype(np.int32))
        kind = "a picture of 16 bits a pixel"
    raise UserError(
        f"{path} is {kind}; save class ids as a palette or grey PNG of 8 bits, or say in "
        "mapping.txt what the values mean."
    )


def read_grey(path: Path, picture: Image.Image, data: bytes, rules: Rules) -> Labels:
    """Grey values as they are stored, where Pillow spreads them over 0..255 or inverts them."""
    grey = np.asarray(picture.convert("L") if picture.mode == "1" else picture.getchannel(0))
    white = images.white_of(picture, data)
    values = ((grey.astype(np.int32) * white + 127) // 255).astype(np.uint8)
    in_tiff = images.tiff_tags(picture).get(images.PHOTOMETRIC_TAG) == images.WHITE_IS_ZERO
    if in_tiff or data.startswith((b"P1", b"P4")):
        values = white - values
    if rules.mapping is None and (grey == 255).any():  # optimisers make one bit of 0 and 255
        rules.compare(path, "white", str(values[grey == 255][0]))
    return values


def read_palette(path: Path, picture: Image.Image, rules: Rules) -> Labels:
    """What the indices of a palette mean, see the top of this module."""
    indices = np.asarray(picture)
    used = np.flatnonzero(np.bincount(indices.ravel(), minlength=256))
    stored = picture.getpalette("RGB") or []
    palette = np.pad(stored, (0, 768 - len(stored))).reshape(256, 3)
    colours = palette @ (65536, 256, 1)
    table = np.arange(256, dtype=np.uint8)
    if rules.mapping is None and renumbers_known(path, used, colours, rules):
        table[used] = [rules.colours[colour] for colour in colours[used].tolist()]
        return table[indices]
    greys = palette[used, 0]
    is_grey = (palette[used] == greys[:, None]).all()
    black_and_white = np.isin(greys, (0, 255)).all()
    if is_grey and picture.format == "GIF":  # which has no other pictures of grey, or of one bit
        table[used] = greys // 255 if black_and_white else greys
    elif is_grey and not black_and_white and all(map(rules.know, greys.tolist())):
        table[used] = greys
    for index in used.tolist() if rules.mapping is None else ():
        code, colour = str(table[index]), f"the colour {words_of(int(colours[index]))}"
        codes = list(map(str, table[colours == colours[index]]))
        rules.compare(path, f"index {code} of its palette", colour)
        rules.compare(path, colour, code, codes)
        if is_grey and palette[index, 0] == 255:
            rules.compare(path, "white", code, codes)
    return table[indices]


def renumbers_known(path: Path, used: np.ndarray, colours: np.ndarray, rules: Rules) -> bool:
    """Whether a palette shows classes in their known colours, but by other indices; a UserError
    where it does, and has colours that are not known, too."""
    meant = {index: rules.colours.get(int(colours[index])) for index in used.tolist()}
    moved = [index for index, label in meant.items() if label not in (None, index)]
    unknown = [index for index, label in meant.items() if label is None]
    if moved and unknown:
        strange = words_of(int(colours[unknown[0]]))
        raise UserError(
            f"{path} has the colour of class {meant[moved[0]]} as index {moved[0]} of its palette, "
            f"and the colour {strange}, which is of no class; {rules.cure}"
        )
    return bool(moved)


def read_array(path: Path, data: bytes) -> Integer[np.ndarray, "h w"]:
    """The values of a mask that is an array of NumPy, `[h, w]` or `[h, w, 1]`, whole numbers."""
    codes = images.load_array(path, data)
    codes = codes[..., 0] if codes.ndim == 3 and codes.shape[-1] == 1 else codes
    if codes.ndim != 2 or codes.dtype.kind not in "uib":
        raise UserError(
            f"{path} is an array {codes.shape} of {codes.dtype}; save class ids [rows, columns] as "
            "uint8."
        )
    return codes.astype(np.uint8 if codes.dtype == bool else codes.dtype)


def decode(path: Path, codes: Integer[np.ndarray, "h w"], rules: Rules) -> Labels:
    """Class ids of the values that a mask holds; a UserError for a value that is none."""
    if rules.mapping is not None:
        return rules.mapping.decode(path, codes)
    is_small = codes.dtype == np.uint8  # counting is faster than sorting
    present = np.flatnonzero(np.bincount(codes.ravel())) if is_small else np.unique(codes)
    strange = [str(code) for code in present.tolist() if not rules.know(code)]
    if strange:
        first = ", ".join(strange[:5]) + (", ..." if len(strange) > 5 else "")
        raise UserError(
            f"{path} holds the label {first}; with {rules.num_classes} classes labels are 0 to "
            f"{rules.num_classes - 1}, and {IGNORE_LABEL} where nothing counts."
        )
    return codes.astype(np.uint8, copy=False)


def check_sizes_agree(pair: Pair, size: tuple[int, int], labels: Labels) -> None:
    """Refuses a mask of another size than its photograph's, `size` (rows, columns)."""
    if labels.shape != size:
        turned = ": if EXIF turns it, turn the mask, too" if labels.shape == size[::-1] else ""
        raise UserError(
            f"{pair.mask_path} is {labels.shape[1]}x{labels.shape[0]} pixels and its photograph "
            f"{pair.photograph} is {size[1]}x{size[0]}; both must be of one size{turned}."
        )


def encode(labels: Labels) -> bytes:
    """A grey PNG without filters, which is read twice as fast as one that Pillow writes."""
    header = struct.pack(">IIBBBBB", *labels.shape[::-1], 8, 0, 0, 0, 0)  # 8 bits, grey
    rows = np.pad(labels, ((0, 0), (1, 0))).tobytes()  # a row begins with its filter: 0, none
    parts = ((b"IHDR", header), (b"IDAT", zlib.compress(rows, level=1)), (b"IEND", b""))
    return images.PNG_SIGNATURE + b"".join(
        struct.pack(">I", len(part)) + kind + part + struct.pack(">I", zlib.crc32(kind + part))
        for kind, part in parts
    )


PARTS_OF = {
    "head": "head hair leye reye lear rear lebrow rebrow nose mouth",
    "torso": "torso neck",
    "upper arm": "luarm ruarm",
    "lower arm": "llarm rlarm lhand rhand",
    "upper leg": "luleg ruleg",
    "lower leg": "llleg rlleg lfoot rfoot",
}
"""The paper's six classes of a person, and the parts that each has."""

PERSON_PART_NAMES = ("background", *PARTS_OF)


def read_matlab(path: Path, data: bytes) -> Integer[np.ndarray, "h w"]:
    """The label map of SBD (`GTcls`), PASCAL-Context (`LabelMap`), PASCAL-Part (`anno`) or
    COCO-Stuff 10k (`S`), in the file's own ids; that of PASCAL-Part in PERSON_PART_NAMES."""
    try:
        content = scipy.io.loadmat(io.BytesIO(data), squeeze_me=True, struct_as_record=False)
    except (*images.DAMAGE, MatReadError, TypeError, NotImplementedError) as error:
        raise UserError(f"{path} is no MATLAB file that SciPy reads ({error}).") from None
    if "GTcls" in content:
        return content["GTcls"].Segmentation.astype(np.int32)
    if "anno" in content:
        return merge_person_parts(path, content["anno"])
    for name in ("LabelMap", "S"):
        if name in content:
            return content[name].astype(np.int32)
    raise UserError(f"{path} has no GTcls, LabelMap, anno or S; is it of one of these data sets?")


def merge_person_parts(path: Path, anno: Any) -> Integer[np.ndarray, "h w"]:
    """Parts of all persons as six classes; later persons and parts lie over earlier ones."""
    classes = {p: i for i, parts in enumerate(PARTS_OF.values(), 1) for p in parts.split()}
    objects = np.atleast_1d(anno.objects)
    labels = np.zeros(objects[0].mask.shape, np.int32)
    people = (thing for thing in objects if getattr(thing, "class") == "person")
    for part in (part for person in people for part in np.atleast_1d(person.parts)):
        if part.part_name not in classes:
            raise UserError(f"{path} has a part {part.part_name!r} that no class is known for.")
        labels[part.mask > 0] = classes[part.part_name]
    return labels
