"""Networks whose weights people bring and that are not DeepLab v2, recognised by their names."""

import re
from collections.abc import Callable, Mapping

Shapes = Mapping[str, tuple[int, ...]]


def describe(shapes: Shapes) -> str | None:
    """What the network is, as in "it holds ..."; None where it is none of those listed here."""
    for is_it, title in KINDS:
        if is_it(shapes):
            return title
    return None


def _has(*parts: str) -> Callable[[Shapes], bool]:
    """Whether each of the parts stands in some name."""
    return lambda shapes: all(any(part in name for name in shapes) for part in parts)


def _shape(shapes: Shapes, end: str) -> tuple[int, ...]:
    """Of the convolution of this name, or else whose name ends so; zeros where there is none."""
    found = [shapes.get(end, ()), *(s for name, s in shapes.items() if name.endswith(end))]
    return next((shape for shape in found if len(shape) == 4), (0, 0, 0, 0))


def _has_basic_blocks(shapes: Shapes) -> bool:
    return _shape(shapes, "layer1.0.conv1.weight")[2] == 3


def _has_groups(shapes: Shapes) -> bool:
    features, channels, *_ = _shape(shapes, "layer1.0.conv2.weight")
    return channels < features


def _is_wide(shapes: Shapes) -> bool:
    """The first 1x1 of res2 has more features than the stem."""
    first = "layer1.0.conv1.weight"
    stems = [name.replace(first, "conv1.weight") for name in shapes if name.endswith(first)]
    return any(_shape(shapes, first)[0] > _shape(shapes, stem)[0] > 0 for stem in stems)


def _is_other_vgg(shapes: Shapes) -> bool:
    """VGG-16 has its third stage at features.10, 12 and 14, and its fourth begins at 17."""
    found = (re.search(r"features\.(\d+)\.weight$", name) for name in shapes)
    positions = {int(match[1]) for match in found if match}
    return bool(positions) and (not {2, 14, 17} <= positions or bool({1, 16} & positions))


KINDS: tuple[tuple[Callable[[Shapes], bool], str], ...] = (
    (_has("decode_head."), "a network of mmsegmentation, whose head (decode_head) is another"),
    (
        _has("backbone.", "classifier.0.convs."),
        "a DeepLab v3 of torchvision.models.segmentation",
    ),
    (_has("backbone.", "classifier.4."), "an FCN of torchvision.models.segmentation"),
    (_has("aspp.stages."), "a DeepLab v3 of kazuto1011/deeplab-pytorch"),
    (_has("layer1.", "stem.0."), "a ResNet with three 3x3 convolutions for a stem (V1c, V1d)"),
    (_has_basic_blocks, "a ResNet-18 or ResNet-34, whose blocks are two 3x3 convolutions"),
    (_has_groups, "a ResNeXt, whose 3x3 convolutions are grouped"),
    (_is_wide, "a wide ResNet"),
    (_has("_preact_bn"), "a ResNet V2 of Keras, with batch norm before its convolutions"),
    (_is_other_vgg, "a network with other features than VGG-16 without batch norm has"),
)
