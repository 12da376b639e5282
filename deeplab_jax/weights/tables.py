"""Names of published weights: for each convention a table from its names to ours.

Conventions differ in names, in the order of axes, and in what the fields of Convention say. Those
known are the Caffe release (res4b22_branch2a), kazuto1011/deeplab-pytorch (layer4.block23.reduce),
and torchvision and the ports built on it (layer3.22.conv1).
"""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

Shapes = Mapping[str, tuple[int, ...]]


class Place(NamedTuple):
    """Where an array goes, and its axes: o features, i channels, h rows, w columns."""

    name: str
    order: str = "c"


Table = dict[str, Place]


VGG_STAGES = (2, 2, 3, 3, 3)
VGG_CONVS = [(i + 1, j + 1) for i, size in enumerate(VGG_STAGES) for j in range(size)]

CAFFE_RESNET = {"backbone": "resnet", "norm": "frozen", "stride_placement": "caffe"}
TORCH_RESNET = CAFFE_RESNET | {"stride_placement": "torch"}
VGG = {"backbone": "vgg", "norm": "none"}

MSC = {"scales": (1.0, 0.75, 0.5), "alignment": "corners"}
SINGLE_SCALE = {"scales": (1.0,), "alignment": "corners"}

COUNTER = {
    r".*num_batches_tracked$": "torch's count of batches seen, which frozen statistics do not need"
}
COPIES = {r".*_res(05|075)": "the same layer at a smaller scale, with the same weights"}
AUXILIARY = {r"layer5\.conv2d_list\.": "the auxiliary head on res4, which only training uses"}

MEAN_BGR = (104.008, 116.669, 122.675)
PORTS_MEAN_BGR = (104.00698793, 116.66876762, 122.67891434)
VGG_MEAN_BGR = (103.939, 116.779, 123.68)
TORCHVISION_MEAN_BGR = (103.53, 116.28, 123.675)
TORCHVISION_STD_RGB = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Convention:
    """How one family of files names its weights, and what its network expects."""

    title: str
    table: Callable[[Shapes], Table]
    model: Mapping[str, Any]
    """Fields of DeepLabV2 that the convention settles."""
    trained: Mapping[str, Any] = field(default_factory=dict)
    """Further fields where the file has a head for segmentation; None where it does not say."""
    mean_bgr: tuple[float, float, float] = MEAN_BGR
    std_rgb: tuple[float, float, float] | None = None
    """Where the network expects RGB / 255, divided by this after the mean."""
    prefix: str = ""
    """What stands before every name."""
    skipped: Mapping[str, str] = field(default_factory=lambda: COUNTER)
    """Patterns of names that are not used, with the reason."""
    refused: Callable[[Shapes], str | None] = lambda shapes: None
    """Why a file with these names, skipped ones among them, is no known form after all."""


TORCH_NORM = {"weight": "scale", "bias": "bias", "running_mean": "mean", "running_var": "var"}
TORCH_CONV = {"weight": ("kernel", "oihw"), "bias": ("bias", "c")}
CAFFE_CONV = {"weights": ("kernel", "oihw"), "biases": ("bias", "c")}


def _with_bias(theirs: str, ours: str, roles: Mapping[str, tuple[str, str]]) -> Table:
    return {
        f"{theirs}{role}": Place(f"{ours}/{name}", order) for role, (name, order) in roles.items()
    }


def _norm(theirs: str, ours: str, roles: Mapping[str, str]) -> Table:
    return {f"{theirs}{role}": Place(f"{ours}/{name}") for role, name in roles.items()}


def _distinct(names: Shapes, pattern: str) -> list[str]:
    """What the group of `pattern` matches at the start of the names, each once, in their order."""
    found = (re.match(pattern, name) for name in names)
    return list(dict.fromkeys(match[1] for match in found if match))


def _blocks(names: Shapes, pattern: str) -> Iterator[tuple[int, int, str]]:
    """(stage, block, branch) of the bottlenecks whose names start with `pattern` at each stage."""
    for stage in range(2, 6):
        for block in range(1, len(_distinct(names, pattern.format(stage, stage - 1))) + 1):
            if block == 1:
                yield stage, block, "branch1"
            for branch in ("branch2a", "branch2b", "branch2c"):
                yield stage, block, branch


# The Caffe release


def caffe_resnet(names: Shapes) -> Table:
    """The arrays of a Caffe ResNet, with or without DeepLab's head."""
    table = _caffe_unit("conv1", "bn_conv1", "scale_conv1", "trunk/conv1")
    if "conv1/biases" in names:  # MSRA's ResNet-50
        table["conv1/biases"] = Place("trunk/conv1/conv_bias")
    letters = {s: _distinct(names, rf"res{s}([a-z]\d*)_branch") for s in range(2, 6)}
    for stage, block, branch in _blocks(names, r"res{0}([a-z]\d*)_branch"):
        numbered = any(letter[1:] for letter in letters[stage])
        letter = "a" if block == 1 else f"b{block - 1}" if numbered else chr(96 + block)
        unit = f"{stage}{letter}_{branch}"
        ours = f"trunk/res{stage}_{block}/{branch}"
        table |= _caffe_unit(f"res{unit}", f"bn{unit}", f"scale{unit}", ours)
    experiment = _distinct(names, r"fc1_(\w+?)_c\d/") or [""]
    branches = _distinct(names, rf"fc1_{experiment[0]}_c(\d)/")
    for i in range(len(branches)):
        table |= _with_bias(f"fc1_{experiment[0]}_c{i}/", f"head/fc8_{i + 1}", CAFFE_CONV)
    for single in _distinct(names, r"fc1_(\w+)/") if not branches else []:
        table |= _with_bias(f"fc1_{single}/", "head/fc8_1", CAFFE_CONV)
    return table


def _caffe_unit(conv: str, norm: str, scale: str, ours: str) -> Table:
    return {
        f"{conv}/weights": Place(f"{ours}/kernel", "oihw"),
        f"{norm}/mean": Place(f"{ours}/mean"),
        f"{norm}/var": Place(f"{ours}/var"),
        f"{scale}/gamma": Place(f"{ours}/scale"),
        f"{scale}/beta": Place(f"{ours}/bias"),
    }


def caffe_vgg(names: Shapes) -> Table:
    """The arrays of a Caffe VGG-16 with DeepLab's head."""
    table = _caffe_vgg_trunk()
    branches = len(_distinct(names, r"fc6_(\d)/"))
    experiment = _distinct(names, r"fc8_([a-zA-Z]\w*?)(?:_\d)?/")
    for i in range(1, branches + 1) if branches else [1]:
        end = f"_{i}" if branches else ""
        table |= _with_bias(f"fc6{end}/", f"head/fc6_{i}", CAFFE_CONV)
        table |= _with_bias(f"fc7{end}/", f"head/fc7_{i}", CAFFE_CONV)
        for name in experiment[:1]:
            table |= _with_bias(f"fc8_{name}{end}/", f"head/fc8_{i}", CAFFE_CONV)
    return {} if _is_classifier(names) else table


def caffe_vgg_classifier(names: Shapes) -> Table:
    """The arrays of Caffe's VGG-16 of ImageNet; none where `names` are not a classifier's."""
    table = _caffe_vgg_trunk()
    for layer, order in (("fc6", "o(ihw)"), ("fc7", "oi")):
        roles = {"weights": ("kernel", order), "biases": ("bias", "c")}
        table |= _with_bias(f"{layer}/", f"head/{layer}_1", roles)
    return table if _is_classifier(names) else {}


def _caffe_vgg_trunk() -> Table:
    table = {}
    for i, j in VGG_CONVS:
        table |= _with_bias(f"conv{i}_{j}/", f"trunk/conv{i}_{j}", CAFFE_CONV)
    return table


def _is_classifier(names: Shapes) -> bool:
    """Whether fc6 is the matrix of VGG's own file, no convolution."""
    return len(names.get("fc6/weights", ())) == 2


# kazuto1011/deeplab-pytorch

KAZUTO_BRANCHES = {
    "branch1": "shortcut",
    "branch2a": "reduce",
    "branch2b": "conv3x3",
    "branch2c": "increase",
}


def kazuto(names: Shapes) -> Table:
    """The arrays of kazuto1011's DeepLab v2."""
    table = _kazuto_unit("layer1.conv1", "trunk/conv1")
    for stage, block, branch in _blocks(names, r"layer{0}\.block(\d+)\."):
        theirs = f"layer{stage}.block{block}.{KAZUTO_BRANCHES[branch]}"
        table |= _kazuto_unit(theirs, f"trunk/res{stage}_{block}/{branch}")
    for i in range(len(_distinct(names, r"aspp\.c(\d)\."))):
        table |= _with_bias(f"aspp.c{i}.", f"head/fc8_{i + 1}", TORCH_CONV)
    return table


def kazuto_v1(names: Shapes) -> Table:
    """The arrays of kazuto1011's DeepLab v1, its start from COCO: one 1x1 classifier."""
    if "fc.weight" not in names:
        return {}
    return kazuto(names) | _with_bias("fc.", "head/fc8_1", TORCH_CONV)


def _kazuto_unit(theirs: str, ours: str) -> Table:
    return {f"{theirs}.conv.weight": Place(f"{ours}/kernel", "oihw")} | _norm(
        f"{theirs}.bn.", ours, TORCH_NORM
    )


# torchvision, and ports that keep its names

TORCH_BRANCHES = {
    "branch1": ("downsample.0", "downsample.1"),
    "branch2a": ("conv1", "bn1"),
    "branch2b": ("conv2", "bn2"),
    "branch2c": ("conv3", "bn3"),
}


def torch_resnet(names: Shapes) -> Table:
    """The arrays of torchvision's ResNets, and of ports with their names; no head."""
    table = _torch_unit("conv1", "bn1", "trunk/conv1")
    for stage, block, branch in _blocks(names, r"layer{1}\.(\d+)\."):
        conv, norm = TORCH_BRANCHES[branch]
        theirs = f"layer{stage - 1}.{block - 1}."
        table |= _torch_unit(theirs + conv, theirs + norm, f"trunk/res{stage}_{block}/{branch}")
    return table


def _torch_unit(conv: str, norm: str, ours: str) -> Table:
    kernel = {f"{conv}.weight": Place(f"{ours}/kernel", "oihw")}
    return kernel | _norm(f"{norm}.", ours, TORCH_NORM)


def torch_deeplab(names: Shapes) -> Table:
    """The head is layer5: isht7, speedinghzl, AdvSemiSeg, AdaptSegNet with a single level."""
    return torch_resnet(names) | _torch_aspp(names, "layer5")


def torch_adapted(names: Shapes) -> Table:
    """The head is layer6: ADVENT, and AdaptSegNet with several levels."""
    return torch_resnet(names) | _torch_aspp(names, "layer6")


def _torch_aspp(names: Shapes, module: str) -> Table:
    table = {}
    for i in range(len(_distinct(names, rf"{module}\.conv2d_list\.(\d)\."))):
        table |= _with_bias(f"{module}.conv2d_list.{i}.", f"head/fc8_{i + 1}", TORCH_CONV)
    return table


def refuse_two_heads(names: Shapes) -> str | None:
    """ADVENT's and AdaptSegNet's auxiliary layer5 reads res4, which has half of res5's channels.

    Other networks with both names sum the two heads or give each a loss of its own.
    """
    channels = {
        module: names[name][1]
        for module in ("layer5", "layer6")
        if len(names.get(name := f"{module}.conv2d_list.0.weight", ())) == 4
    }
    if "layer5" not in channels or 2 * channels["layer5"] == channels.get("layer6"):
        return None
    return (
        f"has heads layer5 and layer6 on {channels['layer5']} and {channels.get('layer6', 'no')} "
        "channels; in ADVENT and AdaptSegNet layer5 is an auxiliary head on half of the channels "
        "of layer6, and what other networks make of the two is not known"
    )


def torch_vgg(names: Shapes) -> Table:
    """The arrays of torchvision's VGG-16 of ImageNet, with fc6 and fc7 where it has them."""
    table = torch_vgg_trunk(names)
    if not any(name.startswith("classifier.") for name in names):
        return table
    table |= {"classifier.0.weight": Place("head/fc6_1/kernel", "o(ihw)")}
    table |= {"classifier.3.weight": Place("head/fc7_1/kernel", "oi")}
    return table | {f"classifier.{3 * i}.bias": Place(f"head/fc{6 + i}_1/bias") for i in (0, 1)}


def torch_vgg_trunk(_: Shapes) -> Table:
    """The convolutions of torchvision's VGG-16."""
    table = {}
    for number, (i, j) in enumerate(VGG_CONVS):
        position = 2 * number + i - 1  # a ReLU behind each, a pool behind each stage
        table |= _with_bias(f"features.{position}.", f"trunk/conv{i}_{j}", TORCH_CONV)
    return table


def torch_vgg_deeplab(names: Shapes) -> Table:
    """Ours: torchvision's trunk with fc6_1 to fc8_4, as export writes it."""
    table = torch_vgg_trunk(names)
    for i in range(1, len(_distinct(names, r"fc8_(\d)\.")) + 1):
        for layer in ("fc6", "fc7", "fc8"):
            table |= _with_bias(f"{layer}_{i}.", f"head/{layer}_{i}", TORCH_CONV)
    return table


def _classifier(pattern: str) -> dict[str, str]:
    return COUNTER | {pattern: "the classifier of ImageNet"}


TORCHVISION: dict[str, Any] = {"mean_bgr": TORCHVISION_MEAN_BGR, "std_rgb": TORCHVISION_STD_RGB}
TORCHVISION_RESNET = Convention(
    "torchvision ResNet", torch_resnet, TORCH_RESNET, **TORCHVISION, skipped=_classifier(r"fc\.")
)
TORCHVISION_VGG = Convention(
    "torchvision VGG-16", torch_vgg, VGG, **TORCHVISION, skipped=_classifier(r"classifier\.6\.")
)
KAZUTO = "kazuto1011/deeplab-pytorch"
PORTS = {"scales": (1.0,), "alignment": "ports"}

CONVENTIONS = (
    Convention(
        "Caffe ResNet", caffe_resnet, CAFFE_RESNET, MSC, skipped=COPIES | _classifier("fc1000/")
    ),
    Convention("Caffe VGG-16", caffe_vgg, VGG, SINGLE_SCALE),
    Convention(
        "Caffe VGG-16 of ImageNet",
        caffe_vgg_classifier,
        VGG,
        mean_bgr=VGG_MEAN_BGR,
        skipped=_classifier("fc8/"),
    ),
    # `base.` is that of its module for multi-scale inputs
    Convention(KAZUTO, kazuto, CAFFE_RESNET, MSC | {"alignment": "ports"}, prefix="base."),
    Convention(f"{KAZUTO} without `base.`", kazuto, CAFFE_RESNET, PORTS | {"scales": None}),
    Convention(f"{KAZUTO} (v1)", kazuto_v1, CAFFE_RESNET, PORTS),
    TORCHVISION_RESNET,
    Convention("isht7/pytorch-deeplab-resnet", torch_deeplab, CAFFE_RESNET, MSC, prefix="Scale."),
    Convention(
        "speedinghzl/Pytorch-Deeplab, AdvSemiSeg or AdaptSegNet (single level)",
        torch_deeplab,
        CAFFE_RESNET,
        SINGLE_SCALE,
        PORTS_MEAN_BGR,
    ),
    Convention(
        "ADVENT or AdaptSegNet (multi level)",
        torch_adapted,
        CAFFE_RESNET,
        SINGLE_SCALE,
        PORTS_MEAN_BGR,
        skipped=COUNTER | AUXILIARY,
        refused=refuse_two_heads,
    ),
    TORCHVISION_VGG,
    Convention("deeplab_jax VGG-16 for PyTorch", torch_vgg_deeplab, VGG),
)
