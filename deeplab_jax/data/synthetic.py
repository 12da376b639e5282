"""GTA5 and SYNTHIA: drawn streets with the 19 classes of Cityscapes, to train for Cityscapes.

The ids of their masks become those classes by the files in `mappings`. Each has one split,
`train`.
"""

import re
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from deeplab_jax.data import files, labels
from deeplab_jax.data.benchmarks import CITYSCAPES
from deeplab_jax.data.folders import Folder, Pair
from deeplab_jax.data.labels import LabelMapping
from deeplab_jax.data.listing import visible
from deeplab_jax.types import UserError

try:
    import cv2
except ImportError:  # the extra `fast`
    cv2 = None

MAPPINGS = Path(__file__).parent / "mappings"
CLASS_NAMES = tuple(CITYSCAPES.values())


def find_gta5(root: Path) -> Folder | None:
    """`images/<five digits>.png` and `labels/<the same>.png`, without class names of one's own."""
    images = root / "images"
    if (root / "labels.txt").is_file() or not (root / "labels").is_dir() or not images.is_dir():
        return None
    names = [path.name for path in visible(images.iterdir())]
    if not names or not all(re.fullmatch(r"\d{5}\.png", name) for name in names):
        return None
    splits = {"train": partial(read_gta5, root)}
    return Folder(root, CLASS_NAMES, read_mapping("gta5"), splits)


def read_gta5(root: Path) -> tuple[Pair, ...]:
    """All photographs by number."""
    return tuple(
        Pair(path.stem, path, root / "labels" / path.name)
        for path in visible((root / "images").iterdir())
    )


def find_synthia(root: Path) -> Folder | None:
    """`RGB/*.png` and `GT/LABELS/*.png`, in `root` or its folder RAND_CITYSCAPES."""
    for path in (root, root / "RAND_CITYSCAPES"):
        if (path / "RGB").is_dir() and (path / "GT" / "LABELS").is_dir():
            mapping = read_mapping("synthia")
            return Folder(path, CLASS_NAMES, None, {"train": partial(read_synthia, path, mapping)})
    return None


def read_synthia(root: Path, mapping: LabelMapping) -> tuple[Pair, ...]:
    """All photographs by number."""
    masks = root / "GT" / "LABELS"
    return tuple(
        Pair(path.stem, path, SynthiaMask(masks / path.name, mapping))
        for path in visible((root / "RGB").glob("*.png"))
    )


def read_mapping(name: str) -> LabelMapping:
    """One of the mappings that ship with the package."""
    return labels.read_mapping(MAPPINGS / f"{name}.txt", num_classes=len(CLASS_NAMES))


@dataclass(frozen=True)
class SynthiaMask:
    """A PNG of 16 bits whose red channel holds the class, and whose green the instance."""

    path: Path
    mapping: LabelMapping

    def draw(self) -> UInt8[np.ndarray, "h w"]:
        if cv2 is None:
            raise UserError(
                f"{self.path} has colours of 16 bits, which only OpenCV reads: "
                "pip install 'deeplab_jax[fast]'"
            )
        data = np.frombuffer(files.read_bytes(self.path), np.uint8)
        picture = cv2.imdecode(data, cv2.IMREAD_UNCHANGED) if data.size else None
        if picture is None or picture.ndim != 3:
            raise UserError(f"{self.path} is no mask of SYNTHIA, a PNG of three channels.")
        return self.mapping.decode(self.path, picture[..., 2].astype(np.int32))


FINDERS = (find_gta5, find_synthia)
