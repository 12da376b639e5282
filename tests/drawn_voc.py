"""A miniature of PASCAL VOC 2012, with SBD beside it and photographs of the test server."""

from pathlib import Path

import numpy as np
from PIL import Image
from scipy.io import savemat

SIZE = (30, 40)


def draw_voc(root: Path, *, sbd: bool = True) -> Path:
    """One photograph to train on, one in val, one of SBD's alone and one of the test server."""
    devkit = root / "VOCdevkit/VOC2012"
    for name in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation", "Annotations"):
        (devkit / name).mkdir(parents=True)
    rng = np.random.default_rng(0)
    labels = np.zeros(SIZE, np.uint8)
    labels[8:20, 10:30] = 15
    labels[7] = 255
    masks = root / "benchmark_RELEASE/dataset/cls"
    masks.mkdir(parents=True)
    for name, split in (("a", "train"), ("b", "val"), ("c", None), ("d", "test")):
        picture = Image.fromarray(rng.integers(0, 256, (*SIZE, 3), np.uint8))
        picture.save(devkit / "JPEGImages" / f"{name}.jpg")
        if split:
            (devkit / "ImageSets/Segmentation" / f"{split}.txt").write_text(f"{name}\n")
        if split in ("train", "val"):
            Image.fromarray(labels).save(devkit / "SegmentationClass" / f"{name}.png")
        if split != "test":
            of_sbd = {"Segmentation": labels % 255, "Boundaries": np.zeros((20, 1), object)}
            savemat(masks / f"{name}.mat", {"GTcls": of_sbd})  # which has no void
    if not sbd:
        (root / "benchmark_RELEASE").rename(root / "elsewhere")
    return root
