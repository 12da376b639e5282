"""The receptive field of a score: theoretical, from the layers, and effective, from gradients.

Fields are squares around the pixel a score stands for, sides in pixels of the network's input
at scale 1.
"""

from collections.abc import Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, UInt8

from deeplab_jax.models import resnet, vgg
from deeplab_jax.models.deeplab import OUTPUT_STRIDE, DeepLabV2, in_order, make_inputs
from deeplab_jax.types import Photograph, UserError

Layer = tuple[int, int, int]
"""Kernel, stride, rate."""


def theoretical(model: DeepLabV2) -> int:
    """Side of the square outside of which no pixel can change a score.

    >>> from deeplab_jax.models.deeplab import VGG16, build
    >>> theoretical(build(**VGG16, aspp_rates=(12,)))
    419
    """
    side, step = 1, 1
    for kernel, stride, rate in layers_of(model):
        side += (kernel - 1) * rate * step
        step *= stride
    return side


VGG_CELL = 32
"""Pixels that a cell of VGG-16's last map stands for; Table 1 counts one with the outer taps."""


def as_in_table_1(model: DeepLabV2) -> int:
    """The field of view of a head as the paper counts it: its span in pixels of the photograph."""
    return OUTPUT_STRIDE * (model.head.kernel_size - 1) * max(model.head.rates) + VGG_CELL


def layers_of(model: DeepLabV2) -> Iterator[Layer]:
    """The layers of the longest way through the network; of the branches, that of largest rate."""
    trunk, head = model.trunk, model.head
    if isinstance(trunk, resnet.ResNet):
        yield from _resnet_layers(trunk)
    elif isinstance(trunk, vgg.VGG):
        yield from _vgg_layers(trunk)
    else:
        raise UserError(
            f"the layers of a trunk {type(trunk).__name__} are not known, those of ResNet and VGG "
            "are; the effective field needs no list of layers"
        )
    yield head.kernel_size, 1, max(head.rates)


def _resnet_layers(trunk: resnet.ResNet) -> Iterator[Layer]:
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


def _vgg_layers(trunk: vgg.VGG) -> Iterator[Layer]:
    pools = (*[trunk.pool_kernel_size] * 4, 3)
    for convolutions, rate, kernel, stride in zip(
        trunk.stage_sizes, vgg.RATES, pools, vgg.POOL_STRIDES, strict=True
    ):
        yield from [(3, 1, rate)] * convolutions
        yield kernel, stride, 1
    if trunk.pool5a:
        yield 3, 1, 1


@partial(jax.jit, static_argnames="model")
def gradient(
    model: DeepLabV2, variables: Any, image: UInt8[jax.Array | np.ndarray, "side side channels"]
) -> Float[jax.Array, "side side"]:
    """Sum over colours of |d score / d pixel|, for the winning class in the middle."""

    def score(inputs):
        logits = model.apply(variables, inputs[None])[0]
        return logits[logits.shape[0] // 2, logits.shape[1] // 2].max()

    return jnp.abs(jax.grad(score)(make_inputs(image, model.mean_bgr))).sum(-1)


def effective(
    model: DeepLabV2, variables: Any, images: list[Photograph], *, side: int
) -> Float[np.ndarray, "side side"]:
    """Mean over photographs of `gradient` at their middle (Luo et al., arXiv 1701.04128).

    `side` is 16k + 1, so that a score stands on the pixel in the middle. Photographs are cut to
    it, and smaller ones lie on the mean pixel.
    """
    if side % (2 * OUTPUT_STRIDE) != 1:
        raise ValueError(f"side must be a multiple of {2 * OUTPUT_STRIDE} plus 1, got {side}")
    mean = np.rint(in_order(jnp.asarray(model.mean_bgr))).astype(np.uint8)
    return np.mean([gradient(model, variables, centre(i, side, mean)) for i in images], axis=0)


def centre(
    image: Photograph, side: int, color: UInt8[np.ndarray, " channels"]
) -> UInt8[np.ndarray, "side side channels"]:
    """The middle of a photograph, filled up with `color` where it is smaller."""
    canvas = np.broadcast_to(color, (side, side, len(color))).copy()
    spans = [(max(n - side, 0) // 2, max(side - n, 0) // 2, min(n, side)) for n in image.shape[:2]]
    taken = tuple(slice(start, start + size) for start, _, size in spans)
    placed = tuple(slice(start, start + size) for _, start, size in spans)
    canvas[placed] = image[taken]
    return canvas


def side_holding(share: float, field: Float[np.ndarray, "side side"]) -> int:
    """Side of the smallest centred square that holds this share of the field's sum.

    >>> side_holding(0.9, np.pad(np.ones((3, 3)), 4))
    3
    """
    middle = len(field) // 2
    reach = np.maximum(*np.abs(np.indices(field.shape) - middle)).ravel()
    held = np.cumsum(np.bincount(reach, weights=field.ravel()))
    return int(2 * np.searchsorted(held, share * held[-1] * (1 - 1e-12)) + 1)
