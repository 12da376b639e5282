"""Weight files that others have published: what they are, how they score, and where they are.

Addresses and class counts are those of the publishers' own pages: the hubconf.py and README of
kazuto1011/deeplab-pytorch, and torchvision's models, which put the first digits of a file's SHA-256
into its name.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deeplab_jax.types import VOC_CLASS_NAMES

COCO_STUFF_CLASS_NAMES = tuple(
    """
    person, bicycle, car, motorcycle, airplane, bus, train, truck, boat, traffic light, fire
    hydrant, street sign, stop sign, parking meter, bench, bird, cat, dog, horse, sheep, cow,
    elephant, bear, zebra, giraffe, hat, backpack, umbrella, shoe, eye glasses, handbag, tie,
    suitcase, frisbee, skis, snowboard, sports ball, kite, baseball bat, baseball glove, skateboard,
    surfboard, tennis racket, bottle, plate, wine glass, cup, fork, knife, spoon, bowl, banana,
    apple, sandwich, orange, broccoli, carrot, hot dog, pizza, donut, cake, chair, couch, potted
    plant, bed, mirror, dining table, window, desk, toilet, door, tv, laptop, mouse, remote,
    keyboard, cell phone, microwave, oven, toaster, sink, refrigerator, blender, book, clock, vase,
    scissors, teddy bear, hair drier, toothbrush, hair brush, banner, blanket, branch, bridge,
    building-other, bush, cabinet, cage, cardboard, carpet, ceiling-other, ceiling-tile, cloth,
    clothes, clouds, counter, cupboard, curtain, desk-stuff, dirt, door-stuff, fence, floor-marble,
    floor-other, floor-stone, floor-tile, floor-wood, flower, fog, food-other, fruit,
    furniture-other, grass, gravel, ground-other, hill, house, leaves, light, mat, metal,
    mirror-stuff, moss, mountain, mud, napkin, net, paper, pavement, pillow, plant-other, plastic,
    platform, playingfield, railing, railroad, river, road, rock, roof, rug, salad, sand, sea,
    shelf, sky-other, skyscraper, snow, solid-other, stairs, stone, straw, structural-other, table,
    tent, textile-other, towel, tree, vegetable, wall-brick, wall-concrete, wall-other, wall-panel,
    wall-stone, wall-tile, wall-wood, water-other, waterdrops, window-blind, window-other, wood
    """.replace("\n    ", " ")
    .strip()
    .split(", ")
)
"""The 182 things and stuff of COCO-Stuff: id i here is i + 1 in its list of labels, whose 0 is
unlabeled. Eleven things that COCO never annotated keep their ids."""


@dataclass(frozen=True)
class Published:
    """A file by the name that its publisher gave it.

    The score is mean IoU in percent without CRF on the val split of the data set named in
    `trained_on`, multi-scale inputs where the network has them; None where none was published.
    """

    file: str
    backbone: str
    trained_on: str
    val_mean_iou: float | None = None
    sha256: str | None = None
    """The first digits, where the publisher puts them into the file's name; others are known by
    their name alone."""
    folder: str = ""
    """Address of the folder that the file is in, for those that are downloaded by name."""
    stage_sizes: tuple[int, ...] = ()
    class_names: tuple[str, ...] = ()
    """Empty for weights to start from."""
    megabytes: int = 0
    """From the number of weights."""
    size: int | None = None
    """Bytes, where they are known."""

    @property
    def address(self) -> str:
        return self.folder + self.file


PORT = "https://github.com/kazuto1011/deeplab-pytorch/releases/download/v1.0/"
TORCHVISION = "https://download.pytorch.org/models/"
LICENCES = {
    PORT: "not stated (the port's code: MIT)",
    TORCHVISION: "not stated (torchvision's code: BSD-3-Clause)",
}
"""Of the weights, as their publisher states it."""

RESNET101, RESNET50, VGG16 = (3, 4, 23, 3), (3, 4, 6, 3), (2, 2, 3, 3, 3)


def _port(
    end: str, trained_on: str, score: float, class_names: tuple[str, ...], megabytes: int
) -> Published:
    file = f"deeplabv2_resnet101_msc-{end}.pth"
    told: dict[str, Any] = {"folder": PORT, "stage_sizes": RESNET101, "megabytes": megabytes}
    return Published(file, "resnet", trained_on, score, class_names=class_names, **told)


def _torchvision(
    network: str, sha256: str, stage_sizes: tuple[int, ...], megabytes: int, size: int | None = None
) -> Published:
    told: dict[str, Any] = {"folder": TORCHVISION, "megabytes": megabytes, "size": size}
    backbone = "vgg" if network.startswith("vgg") else "resnet"
    file = f"{network}-{sha256}.pth"
    return Published(file, backbone, "ImageNet", sha256=sha256, stage_sizes=stage_sizes, **told)


_VOC = "VOC 2012 {}, from COCO"
_STUFF = COCO_STUFF_CLASS_NAMES

NAMES = {
    "voc12": _port("vocaug-20000", _VOC.format("trainaug"), 76.65, VOC_CLASS_NAMES, 177),
    "cocostuff10k": _port("cocostuff10k-20000", "COCO-Stuff 10k, from COCO", 34.8, _STUFF, 224),
    "cocostuff164k": _port("cocostuff164k-100000", "COCO-Stuff 164k", 39.1, _STUFF, 224),
    "imagenet-resnet101": _torchvision("resnet101", "63fe2227", RESNET101, 179),
    "imagenet-resnet50": _torchvision("resnet50", "0676ba61", RESNET50, 103, 102_530_333),
    "imagenet-vgg16": _torchvision("vgg16", "397923af", VGG16, 553, 553_433_881),
}
"""Files that are downloaded by name."""

BY_HAND = {
    "coco-resnet101": "is init.caffemodel in http://liangchiehchen.com/projects/released/"
    "deeplab_aspp_resnet101/prototxt_and_model.zip; download that, and give "
    "prototxt_and_model.zip/init.caffemodel",
    "msra-resnet101": "is ResNet-101-model.caffemodel, to which github.com/KaimingHe/"
    "deep-residual-networks has a link; give the file's path",
    "vgg16-20m": "is vgg16_20M.caffemodel of http://liangchiehchen.com/projects/"
    "Init%20Models.html; give the file's path",
}
"""Start weights of the paper without an address of their own, and how to get them."""

KNOWN = (
    *NAMES.values(),
    Published("init.caffemodel", "resnet", "ImageNet and MS-COCO (91 classes)"),
    Published("train_iter_20000.caffemodel", "resnet", _VOC.format("trainaug"), 76.35),
    Published("train2_iter_20000.caffemodel", "resnet", _VOC.format("trainval-aug"), 90.9),
    Published("init.caffemodel", "vgg", "ImageNet"),
    Published("train_iter_20000.caffemodel", "vgg", "VOC 2012 trainaug", 68.96),
    Published("train2_iter_20000.caffemodel", "vgg", "VOC 2012 trainval-aug"),
    Published("ResNet-101-model.caffemodel", "resnet", "ImageNet"),
    Published("ResNet-50-model.caffemodel", "resnet", "ImageNet"),
    Published("VGG_ILSVRC_16_layers.caffemodel", "vgg", "ImageNet"),
    Published("vgg16_20M.caffemodel", "vgg", "ImageNet, fc6 and fc7 thinned"),
    Published(  # train2_iter_20000.caffemodel, as that port's README converts it
        "deeplabv2_resnet101_msc-vocaug.pth", "resnet", _VOC.format("trainval-aug"), 90.9
    ),
    Published("resnet101-5d3b4d8f.pth", "resnet", "ImageNet", sha256="5d3b4d8f"),
)


def find(file: str, sha256: str, backbone: str) -> Published | None:
    """The known file with this SHA-256, else with this name and trunk.

    A file whose SHA-256 is known and differs is not the published one.
    """
    by_digest = [k for k in KNOWN if k.sha256 is not None and sha256.startswith(k.sha256)]
    by_name = [k for k in KNOWN if k.sha256 is None and (k.file, k.backbone) == (file, backbone)]
    return next(iter(by_digest + by_name), None)


def remark(header: Mapping[str, Any], split: str) -> str | None:
    """What to know about a score of these weights on `split`, in a sentence; None: nothing.

    `header` is that of sources.read, of a work folder, or of a file that was converted.
    """
    source = header.get("source")
    if not isinstance(source, Mapping) or split != "val":
        return None
    known = find(Path(source["file"]).name, source["sha256"], header["model"]["backbone"])
    name, trained_on, usual = source["file"], source.get("trained_on") or "", ""
    if known:
        name, trained_on = known.file, known.trained_on
        name += "" if known.sha256 else " (recognised by its name)"
        if known.val_mean_iou:
            usual = f"about {known.val_mean_iou} % without CRF is known"
    if re.search(r"\b(trainval|val)", trained_on):
        return (
            f"{name} was trained on {trained_on}: it has seen the photographs of val, so this "
            "score says nothing about new ones" + (usual and f" ({usual})")
        )
    return f"{name} was trained on {trained_on}: on that data set's val {usual}" if usual else None
