"""What a score can depend on, in pixels of the network's input at scale 1."""

from collections.abc import Iterator

from deeplab_jax.models import resnet, vgg
from deeplab_jax.models.deeplab import OUTPUT_STRIDE, DeepLabV2
from deeplab_jax.types import UserError

VGG_CELL = 32
"""Pixels that a cell of VGG-16's last map stands for; Table 1 counts one with the outer taps."""


def as_in_table_1(model: DeepLabV2) -> int:
    """The field of view of a head as the paper counts it: its span in pixels of the photograph."""
    return OUTPUT_STRIDE * (model.head.kernel_size - 1) * max(model.head.rates) + VGG_CELL


def theoretical(model: DeepLabV2) -> int:
    """Side of the square, around the pixel of a score, outside of which no pixel can change it.

    >>> from deeplab_jax.models.deeplab import VGG16, build
    >>> theoretical(build(**VGG16, aspp_rates=(12,)))
    419
    """
    side, step = 1, 1
    for kernel, stride, rate in layers_of(model):
        side += (kernel - 1) * rate * step
        step *= stride
    return side


def layers_of(model: DeepLabV2) -> Iterator[tuple[int, int, int]]:
    """Kernel, stride and rate of the layers of the longest way through the network; of the branches
    that of the largest rate."""
    trunk, head = model.trunk, model.head
    if isinstance(trunk, resnet.ResNet):
        yield from _resnet_layers(trunk)
    elif isinstance(trunk, vgg.VGG):
        yield from _vgg_layers(trunk)
    else:
        raise UserError(
            f"the layers of a trunk {type(trunk).__name__} are not known, those of ResNet and VGG "
            "are"
        )
    yield head.kernel_size, 1, max(head.rates)


def _resnet_layers(trunk: resnet.ResNet) -> Iterator[tuple[int, int, int]]:
    yield 7, 2, 1
    yield 3, 2, 1
    rates = [1, *resnet.RATES]
    for i, blocks in enumerate(trunk.stage_sizes):
        for block in range(blocks):
            stride = resnet.STRIDES[i] if block == 0 else 1
            if trunk.stride_placement == "caffe":
                yield 1, stride, 1
                yield 3, 1, rates[i + 1]
            else:
                yield 3, stride, rates[i] if block == 0 else rates[i + 1]


def _vgg_layers(trunk: vgg.VGG) -> Iterator[tuple[int, int, int]]:
    pools = (*[trunk.pool_kernel_size] * 4, 3)
    for convolutions, rate, kernel, stride in zip(
        trunk.stage_sizes, vgg.RATES, pools, vgg.POOL_STRIDES, strict=True
    ):
        yield from [(3, 1, rate)] * convolutions
        yield kernel, stride, 1
    if trunk.pool5a:
        yield 3, 1, 1
