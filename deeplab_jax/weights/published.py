"""Weight files that others have published: what they were trained on and how they score."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Published:
    """A file under the name it is downloaded by.

    Scores are mean IoU in percent without CRF on the val split of the data set named in
    `trained_on`, multi-scale inputs where the network has them; None where none was published.
    """

    file: str
    backbone: str
    trained_on: str
    val_mean_iou: float | None = None
    sha256: str | None = None
    """The first digits, where the publisher puts them into the file's name; others are known by
    their name alone."""
    saw_val: bool = False
    """Whether the photographs of that val split are among those it was trained on."""


KNOWN = (
    Published("init.caffemodel", "resnet", "ImageNet and MS-COCO (91 classes)"),
    Published("train_iter_20000.caffemodel", "resnet", "VOC 2012 trainaug, from COCO", 76.35),
    Published(
        "train2_iter_20000.caffemodel",
        "resnet",
        "VOC 2012 trainval-aug, from COCO",
        90.9,
        saw_val=True,
    ),
    Published("init.caffemodel", "vgg", "ImageNet"),
    Published("train_iter_20000.caffemodel", "vgg", "VOC 2012 trainaug", 68.96),
    Published("train2_iter_20000.caffemodel", "vgg", "VOC 2012 trainval-aug", saw_val=True),
    Published("vgg16_20M.caffemodel", "vgg", "ImageNet, fc6 and fc7 thinned"),
    Published("VGG_ILSVRC_16_layers.caffemodel", "vgg", "ImageNet"),
    Published(  # train2_iter_20000.caffemodel, as that port's README converts it
        "deeplabv2_resnet101_msc-vocaug.pth",
        "resnet",
        "VOC 2012 trainval-aug, from COCO",
        90.9,
        saw_val=True,
    ),
    Published(
        "deeplabv2_resnet101_msc-vocaug-20000.pth", "resnet", "VOC 2012 trainaug, from COCO", 76.65
    ),
    Published(
        "deeplabv2_resnet101_msc-cocostuff10k-20000.pth",
        "resnet",
        "COCO-Stuff 10k, from COCO",
        34.8,
    ),
    Published(
        "deeplabv2_resnet101_msc-cocostuff164k-100000.pth", "resnet", "COCO-Stuff 164k", 39.1
    ),
    Published("resnet101-63fe2227.pth", "resnet", "ImageNet", sha256="63fe2227"),
    Published("resnet101-5d3b4d8f.pth", "resnet", "ImageNet", sha256="5d3b4d8f"),
    Published("resnet50-0676ba61.pth", "resnet", "ImageNet", sha256="0676ba61"),
    Published("vgg16-397923af.pth", "vgg", "ImageNet", sha256="397923af"),
)


def find(file: str, sha256: str, backbone: str) -> Published | None:
    """The known file with this SHA-256, else with this name and trunk.

    A file whose SHA-256 is known and differs is not the published one.
    """
    for known in KNOWN:
        if known.sha256 is not None and sha256.startswith(known.sha256):
            return known
    return next(
        (k for k in KNOWN if k.sha256 is None and (k.file, k.backbone) == (file, backbone)), None
    )


def remark(header: Mapping[str, Any], split: str) -> str | None:
    """What to know about a score of these weights on `split`, in a sentence; None: nothing.

    `header` is that of sources.read, of a work folder, or of a file that was converted.
    """
    source = header.get("source")
    if not isinstance(source, Mapping) or split != "val":
        return None
    trained_on = source.get("trained_on") or ""
    known = find(Path(source["file"]).name, source["sha256"], header["model"]["backbone"])
    if known is None and trained_on.startswith(("trainval", "val")):
        return (
            f"{source['file']} was trained on {trained_on}: it has seen the photographs of val, "
            "so this score says nothing about new ones"
        )
    if known is None or not (known.saw_val or known.val_mean_iou):
        return None
    name = known.file if known.sha256 else f"{known.file} (recognised by its name)"
    usual = f"about {known.val_mean_iou} % without CRF is known" if known.val_mean_iou else ""
    if known.saw_val:
        return (
            f"{name} was trained on {known.trained_on}: it has seen the photographs of VOC 2012's "
            "val, so a score on them says nothing about new ones" + (usual and f" ({usual})")
        )
    return f"{name} was trained on {known.trained_on}: on that data set's val {usual}"
