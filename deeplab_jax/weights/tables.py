"""Names of published weights: for each convention a table from its names to ours.

Those known are the Caffe release (res4b22_branch2a), kazuto1011/deeplab-pytorch
(layer4.block23.reduce), and torchvision and the ports built on it (layer3.22.conv1).

A line of the rows below is a layer of ours, the convolution there, and its batch norm, which Caffe
keeps in two layers; their names end where those of arrays go on. {s} and {b} count stages and
blocks, {t} and {a} the same from one less, {l} is Caffe's letter of a block and {n} the place of a
convolution among torchvision's layers; {j} counts branches of the head, {i} from 0, and {x} is
what an experiment was called.
"""

import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

Table = dict[str, str]
"""Their name -> ours."""

CAFFE_RESNET = """
trunk/conv1                conv1/               bn_conv1/           scale_conv1/
trunk/res{s}_{b}/branch1   res{s}{l}_branch1/   bn{s}{l}_branch1/   scale{s}{l}_branch1/
trunk/res{s}_{b}/branch2a  res{s}{l}_branch2a/  bn{s}{l}_branch2a/  scale{s}{l}_branch2a/
trunk/res{s}_{b}/branch2b  res{s}{l}_branch2b/  bn{s}{l}_branch2b/  scale{s}{l}_branch2b/
trunk/res{s}_{b}/branch2c  res{s}{l}_branch2c/  bn{s}{l}_branch2c/  scale{s}{l}_branch2c/
"""
KAZUTO = """
trunk/conv1                layer1.conv1.conv.                layer1.conv1.bn.
trunk/res{s}_{b}/branch1   layer{s}.block{b}.shortcut.conv.  layer{s}.block{b}.shortcut.bn.
trunk/res{s}_{b}/branch2a  layer{s}.block{b}.reduce.conv.    layer{s}.block{b}.reduce.bn.
trunk/res{s}_{b}/branch2b  layer{s}.block{b}.conv3x3.conv.   layer{s}.block{b}.conv3x3.bn.
trunk/res{s}_{b}/branch2c  layer{s}.block{b}.increase.conv.  layer{s}.block{b}.increase.bn.
"""
KAZUTO_ASPP = KAZUTO + "head/fc8_{j} aspp.c{i}."
KAZUTO_MSC = re.sub(" +", " base.", KAZUTO_ASPP)
"""In the port's module for multi-scale inputs."""
TORCH_RESNET = """
trunk/conv1                conv1.                      bn1.
trunk/res{s}_{b}/branch1   layer{t}.{a}.downsample.0.  layer{t}.{a}.downsample.1.
trunk/res{s}_{b}/branch2a  layer{t}.{a}.conv1.         layer{t}.{a}.bn1.
trunk/res{s}_{b}/branch2b  layer{t}.{a}.conv2.         layer{t}.{a}.bn2.
trunk/res{s}_{b}/branch2c  layer{t}.{a}.conv3.         layer{t}.{a}.bn3.
"""
TORCH_DEEPLAB = TORCH_RESNET + "head/fc8_{j} layer5.conv2d_list.{i}."
CAFFE_VGG = "trunk/conv{s}_{b} conv{s}_{b}/\n"
CAFFE_VGG_FC = CAFFE_VGG + "head/fc6_1 fc6/\nhead/fc7_1 fc7/\n"
CAFFE_VGG_ASPP = CAFFE_VGG + (
    "head/fc6_{j} fc6_{j}/\nhead/fc7_{j} fc7_{j}/\nhead/fc8_{j} fc8_{x}_{j}/"
)
TORCH_VGG = "trunk/conv{s}_{b} features.{n}.\n"
TORCH_VGG_FC = TORCH_VGG + "head/fc6_1 classifier.0.\nhead/fc7_1 classifier.3."
TORCH_VGG_ASPP = TORCH_VGG + ("head/fc6_{j} fc6_{j}.\nhead/fc7_{j} fc7_{j}.\nhead/fc8_{j} fc8_{j}.")
"""Ours, as export writes it."""

ARRAYS = {
    ("/", 1): ("weights kernel, biases bias",),
    ("/", 3): ("weights kernel", "mean mean, var var", "gamma scale, beta bias"),
    (".", 1): ("weight kernel, bias bias",),
    (".", 2): ("weight kernel", "weight scale, bias bias, running_mean mean, running_var var"),
}
"""What arrays are called in Caffe (/) and PyTorch (.), and here: of a convolution alone, and of one
with batch norm."""

VGG_STAGES = (2, 2, 3, 3, 3)


def expand(
    rows: str, stages: Sequence[int], branches: int, *, numbered: Collection[int] = ()
) -> Table:
    """The table of a network with so many blocks in each stage, and branches of the head.

    In stages that are `numbered` Caffe's letters of blocks are a, b1, b2, else a, b, c.
    """
    first = 1 if len(stages) == len(VGG_STAGES) else 2
    blocks = [(s, b) for s, size in enumerate(stages, first) for b in range(1, size + 1)]
    in_trunk = [
        {"s": s, "t": s - 1, "b": b, "a": b - 1, "n": 2 * i + s - 1}
        | {"l": "a" if b == 1 else f"b{b - 1}" if s in numbered else chr(96 + b)}
        for i, (s, b) in enumerate(blocks)
    ]
    in_head = [{"j": i + 1, "i": i} for i in range(branches)]
    table = {}
    for ours, *layers in map(str.split, rows.strip().splitlines()):
        cases = in_trunk if "{s}" in ours else in_head if "{j}" in ours else [{}]
        if ours.endswith("branch1"):
            cases = [case for case in cases if case["b"] == 1]
        for layer, arrays in zip(layers, ARRAYS[layers[0][-1], len(layers)], strict=True):
            for end, role in map(str.split, arrays.split(", ")):
                theirs, place = f"{layer}{end}", f"{ours}/{role}"
                table |= {theirs.format(**case): place.format(**case) for case in cases}
    return table


def table_of(rows: str, names: Collection[str]) -> Table:
    """The table for a file with these names: as many blocks and branches as they tell of."""
    lines = rows.strip().splitlines()
    found = {ours: _fields(layer, names) for ours, layer, *_ in map(str.split, lines)}
    blocks = found.get("trunk/res{s}_{b}/branch2a", [])
    sizes = Counter(int(f.get("s", 0)) or int(f["t"]) + 1 for f in blocks)
    x = next((f["x"] for fields in found.values() for f in fields if "x" in f), "")
    table = expand(
        "\n".join(line.replace("{x}", x) for line in lines if x or "{x}" not in line),
        [sizes[s] for s in range(2, 6)] if "branch2a" in rows else VGG_STAGES,
        branches=max((len(fields) for ours, fields in found.items() if "{j}" in ours), default=0),
        numbered={int(f["s"]) for f in blocks if len(f.get("l", "")) > 1},
    )
    if "conv1/biases" in names:  # MSRA's ResNet-50
        table["conv1/biases"] = "trunk/conv1/conv_bias"
    has_head = any(ours.startswith("head/") for name, ours in table.items() if name in names)
    return {n: ours for n, ours in table.items() if has_head or not ours.startswith("head/")}


def _fields(layer: str, names: Collection[str]) -> list[dict[str, str]]:
    """What the fields of a layer's name stand for in `names`, each combination once."""
    start = re.escape(layer[: layer.rfind("}") + 2])
    kinds = {"l": r"\w+?", "x": r"\w+?"}
    pattern = re.sub(r"\\{(\w)\\}", lambda f: f"(?P<{f[1]}>{kinds.get(f[1], '[0-9]+')})", start)
    matches = filter(None, (re.match(pattern, name) for name in names))
    return [dict(fields) for fields in {tuple(m.groupdict().items()): None for m in matches}]


MSC = {"scales": (1.0, 0.75, 0.5), "alignment": "corners"}
SINGLE_SCALE = {"scales": (1.0,), "alignment": "corners"}
PORTS = {"scales": (1.0,), "alignment": "ports"}

MEAN_BGR = (104.008, 116.669, 122.675)
PORTS_MEAN_BGR = (104.00698793, 116.66876762, 122.67891434)
VGG_MEAN_BGR = (103.939, 116.779, 123.68)
TORCHVISION_MEAN_BGR = (103.53, 116.28, 123.675)
TORCHVISION_STD_RGB = (0.229, 0.224, 0.225)

SKIPPED = (
    (r".*num_batches_tracked$", "torch's count of batches, which frozen statistics do not need"),
    (r".*_res(05|075)", "the same layer at a smaller scale, with the same weights"),
    (r"fc1000/|fc8/|classifier\.6\.", "the classifier of ImageNet"),
)
AUXILIARY = (r"layer5\.conv2d_list\.", "the auxiliary head on res4, which only training uses")


@dataclass(frozen=True)
class Convention:
    """How one family of files names its weights, and what its network expects."""

    title: str
    rows: str
    trained: Mapping[str, Any] = field(default_factory=dict)
    """Fields of DeepLabV2 where the file has a head for segmentation; None: it does not say."""
    mean_bgr: tuple[float, float, float] = MEAN_BGR
    std_rgb: tuple[float, float, float] | None = None
    """Where the network expects RGB / 255, divided by this after the mean."""
    skipped: tuple[tuple[str, str], ...] = SKIPPED
    """Patterns of names that are not used, each with the reason."""
    axes_of_fc6: int = 0
    """What tells VGG's own fc6, a matrix, from DeepLab's; 0: nothing."""

    @property
    def model(self) -> dict[str, Any]:
        """Fields of DeepLabV2 that the convention settles."""
        if "branch1" not in self.rows:
            return {"backbone": "vgg", "norm": "none"}
        placement = "torch" if self.std_rgb else "caffe"
        return {"backbone": "resnet", "norm": "frozen", "stride_placement": placement}


TORCHVISION_RESNET = Convention(
    "torchvision ResNet",
    TORCH_RESNET,
    mean_bgr=TORCHVISION_MEAN_BGR,
    std_rgb=TORCHVISION_STD_RGB,
    skipped=(*SKIPPED, (r"fc\.", SKIPPED[2][1])),
)
TORCHVISION_VGG = replace(
    TORCHVISION_RESNET, title="torchvision VGG-16", rows=TORCH_VGG_FC, skipped=SKIPPED
)
_PORT = "kazuto1011/deeplab-pytorch"
CONVENTIONS = (
    Convention("Caffe ResNet", CAFFE_RESNET + "head/fc8_{j} fc1_{x}_c{i}/", MSC),
    Convention("Caffe ResNet", CAFFE_RESNET + "head/fc8_1 fc1_{x}/", MSC),
    Convention("Caffe VGG-16", CAFFE_VGG_ASPP, SINGLE_SCALE),
    Convention("Caffe VGG-16", CAFFE_VGG_FC + "head/fc8_1 fc8_{x}/", SINGLE_SCALE, axes_of_fc6=4),
    Convention("Caffe VGG-16 of ImageNet", CAFFE_VGG_FC, mean_bgr=VGG_MEAN_BGR, axes_of_fc6=2),
    Convention(_PORT, KAZUTO_MSC, MSC | {"alignment": "ports"}),
    Convention(f"{_PORT} without `base.`", KAZUTO_ASPP, PORTS | {"scales": None}),
    Convention(f"{_PORT} (v1)", KAZUTO + "head/fc8_1 fc.", PORTS),
    TORCHVISION_RESNET,
    Convention("isht7/pytorch-deeplab-resnet", re.sub(" +", " Scale.", TORCH_DEEPLAB), MSC),
    Convention(
        "speedinghzl/Pytorch-Deeplab, AdvSemiSeg or AdaptSegNet (single level)",
        TORCH_DEEPLAB,
        SINGLE_SCALE,
        PORTS_MEAN_BGR,
    ),
    Convention(
        "ADVENT or AdaptSegNet (multi level)",
        TORCH_RESNET + "head/fc8_{j} layer6.conv2d_list.{i}.",
        SINGLE_SCALE,
        PORTS_MEAN_BGR,
        skipped=(*SKIPPED, AUXILIARY),
    ),
    TORCHVISION_VGG,
    Convention("deeplab_jax VGG-16 for PyTorch", TORCH_VGG_ASPP),
)
