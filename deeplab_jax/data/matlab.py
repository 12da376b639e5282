"""Label maps from the MATLAB files of three data sets.

- SBD (`GTcls`): ids of the VOC classes.
- PASCAL-Context (`LabelMap`): ids of some 459 raw classes.
- PASCAL-Part (`anno`): outlines of things and of their parts, merged here to those of people.
- COCO-Stuff 10k (`S`): raw ids, 0 where nothing is labelled.
"""

import io
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import scipy.io
from jaxtyping import Integer
from scipy.io.matlab import MatReadError

from deeplab_jax.types import UserError

PERSON_PARTS = {
    "head": 1,
    **dict.fromkeys(("hair", "leye", "reye", "lear", "rear", "lebrow", "rebrow"), 1),
    **dict.fromkeys(("nose", "mouth"), 1),
    **dict.fromkeys(("torso", "neck"), 2),
    **dict.fromkeys(("luarm", "ruarm"), 3),
    **dict.fromkeys(("llarm", "rlarm", "lhand", "rhand"), 4),
    **dict.fromkeys(("luleg", "ruleg"), 5),
    **dict.fromkeys(("llleg", "rlleg", "lfoot", "rfoot"), 6),
}
"""Class of each part of a person; the paper's six, in the order of PERSON_PART_NAMES."""

PERSON_PART_NAMES = (
    *("background", "head", "torso", "upper arm", "lower arm", "upper leg", "lower leg"),
)


# What SciPy raises on damaged files.
DAMAGE = (MatReadError, ValueError, TypeError, OSError, EOFError, NotImplementedError, zlib.error)


def read_labels(path: Path, data: bytes) -> Integer[np.ndarray, "h w"]:
    """The label map in the file's own ids; that of PASCAL-Part in PERSON_PART_NAMES."""
    content = load(path, data)
    if "GTcls" in content:
        return content["GTcls"].Segmentation.astype(np.int32)
    if "LabelMap" in content:
        return content["LabelMap"].astype(np.int32)
    if "anno" in content:
        return merge_person_parts(path, content["anno"])
    if "S" in content:
        return content["S"].astype(np.int32)
    raise UserError(f"{path} has no GTcls, LabelMap, anno or S; is it of one of these data sets?")


def load(path: Path, data: bytes) -> Mapping[str, Any]:
    """The variables of a MATLAB file; structs have their fields as attributes.

    Raises:
      UserError: SciPy cannot read it.
    """
    try:
        return scipy.io.loadmat(io.BytesIO(data), squeeze_me=True, struct_as_record=False)
    except DAMAGE as error:
        raise UserError(f"{path} is no MATLAB file that SciPy reads ({error}).") from None


def merge_person_parts(path: Path, anno: Any) -> Integer[np.ndarray, "h w"]:
    """Parts of all persons as six classes; later persons and parts lie over earlier ones."""
    objects = list(np.atleast_1d(anno.objects))
    labels = np.zeros(objects[0].mask.shape, np.int32)
    for part in person_parts(objects):
        if part.part_name not in PERSON_PARTS:
            raise UserError(f"{path} has a part {part.part_name!r} that no class is known for.")
        labels[part.mask > 0] = PERSON_PARTS[part.part_name]
    return labels


def person_parts(objects: list[Any]) -> Iterator[Any]:
    """The parts of the persons among annotated objects, in their order."""
    for thing in objects:
        # An empty list of parts is an empty array.
        if getattr(thing, "class") == "person":
            yield from np.atleast_1d(thing.parts)
