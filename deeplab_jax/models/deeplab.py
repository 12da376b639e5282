"""DeepLab v2: a dense trunk, a head, multi-scale inputs.

The network maps `inputs` to logits at stride 8: logit (i, j) is centred on pixel (8i, 8j). How
inputs, scores and labels are resized is the `alignment`; see ops/resize.py.
"""

from functools import partial
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Num, UInt8

from deeplab_jax.choices import MEAN_BGR, Backbone
from deeplab_jax.models.heads import ASPP, FullyConnectedASPP
from deeplab_jax.models.layers import EVALUATION, Enlarge, Mode, Norm, Rescale, Resize, check_choice
from deeplab_jax.models.resnet import ResNet, StridePlacement
from deeplab_jax.models.vgg import VGG
from deeplab_jax.ops.resize import Alignment
from deeplab_jax.types import Logits, UserError

Dtype = Literal["float32", "bfloat16", "float64"]


OUTPUT_STRIDE = 8

MSC = (1.0, 0.75, 0.5)
"""Multi-scale inputs of Section 4.1.2."""


def make_inputs(
    image: UInt8[jax.Array | np.ndarray, "*b h w channels"],
    mean_bgr: tuple[float, ...] = MEAN_BGR,
) -> Float[jax.Array, "*b h w channels"]:
    """The network's input from photographs: 0..255 minus the mean pixel.

    Three channels are RGB and become BGR; any other number keeps its order.
    """
    # Cast first: IREE does not compile the reversal of uint8.
    values = jnp.asarray(image).astype(jnp.float32)
    return in_order(values) - jnp.array(mean_bgr, jnp.float32)


def in_order(values: Num[jax.Array, "*b channels"]) -> Num[jax.Array, "*b channels"]:
    """Channels of a photograph in the order of inputs, and back: three are reversed."""
    return values[..., ::-1] if values.shape[-1] == 3 else values


def weight_name(path: tuple) -> str:
    """Name of a leaf of the network's variables by its path, as in "trunk/conv1/kernel"."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def is_classifier(name: str) -> bool:
    """Whether a weight belongs to the last layer, the one as wide as there are classes."""
    return "/fc8_" in name


class DeepLabV2(nn.Module):
    """Trunk and head at every scale of the input, fused by the maximum (MSC, Section 4.1.2).

    The scores are fused at stride 8, as in the release; the paper's text says at the resolution of
    the image.

    `trunk(inputs, mode)` gives feature maps at stride 8, `head(features, mode)` the scores of
    `head.num_classes` classes; see layers.Mode. `scales` are the factors at which the network reads
    the input; 1.0 alone is a single scale. `alignment` is the convention of every resizing: inputs,
    scores, labels of the loss, and the final upsampling. `mean_bgr` is what make_inputs
    subtracts for these weights, one value for each channel of a photograph.
    """

    trunk: nn.Module
    head: nn.Module
    scales: tuple[float, ...] = MSC
    alignment: Alignment = "cells"
    mean_bgr: tuple[float, ...] = MEAN_BGR

    def __post_init__(self):
        if 1.0 not in self.scales:
            raise UserError(
                f"model.scales {self.scales} must hold 1.0, the size scores are fused at"
            )
        check_choice("model.alignment", self.alignment, Alignment)
        if self.alignment == "corners_v1" and len(self.scales) > 1:
            raise UserError(
                f"model.alignment corners_v1 is that of one scale; got model.scales {self.scales}"
            )
        super().__post_init__()

    def setup(self):
        self.rescale = Rescale(self.alignment)
        self.to_common_size = Resize(self.alignment)
        self.to_full_size = Enlarge(self.alignment)

    @property
    def num_classes(self) -> int:
        return self.head.num_classes

    @property
    def num_channels(self) -> int:
        """Channels of a photograph."""
        return len(self.mean_bgr)

    def __call__(self, inputs: Float[jax.Array, "b h w channels"]) -> Logits:
        """Logits `[b, ceil(h / 8), ceil(w / 8), num_classes]`, float32, fused over the scales."""
        return self.score_maps(inputs)[0]

    def full_size(
        self, inputs: Float[jax.Array, "b h w channels"], size: tuple[int, int], scale: float = 1.0
    ) -> Float[jax.Array, "b h2 w2 c"]:
        """The logits enlarged to `size` (rows, columns), that of a photograph of which the inputs
        are a copy resized by `scale`."""
        return self.to_full_size(self(inputs), size, scale)

    def score_maps(
        self, inputs: Float[jax.Array, "b h w channels"], mode: Mode = EVALUATION
    ) -> tuple[Logits, ...]:
        """The maps that take a loss in training; the first is the fused one.

        With several scales the others are the map of each scale, as in the release: whole
        fractions of the input (1, 0.5) at their own size, others (0.75) enlarged to the map of
        scale 1, since labels can only be subsampled by whole steps. With the alignment `ports` all
        are at their own size.
        """
        maps = []
        scales = (1.0,) if self.is_initializing() else self.scales  # all scales share the weights
        for i, scale in enumerate(scales):
            own_mode = mode.fold_in(1000 + i)
            features = self.trunk(self.rescale(inputs, scale), own_mode)
            x = self.head(features, own_mode)
            maps.append(x.astype(jnp.promote_types(x.dtype, jnp.float32)))
        if len(maps) == 1:
            return tuple(maps)
        size = maps[self.scales.index(1.0)].shape[1:3]
        enlarged = [
            self.to_common_size(scores, size, 1 / scale)
            for scores, scale in zip(maps, self.scales, strict=True)
        ]
        fused = jnp.stack(enlarged).max(0)
        own = [
            scores if self.alignment == "ports" or (1 / scale).is_integer() else large
            for scores, large, scale in zip(maps, enlarged, self.scales, strict=True)
        ]
        return fused, *own


def build(
    num_classes: int = 21,
    *,
    backbone: Backbone = "resnet",
    stage_sizes: tuple[int, ...] = (3, 4, 23, 3),
    width: int = 64,
    norm: Norm = "frozen",
    stride_placement: StridePlacement = "caffe",
    aspp_rates: tuple[int, ...] = (6, 12, 18, 24),
    head_kernel_size: int = 3,
    head_width: int = 1024,
    pool5a: bool = False,
    dropout: float = 0.5,
    scales: tuple[float, ...] = MSC,
    alignment: Alignment = "cells",
    mean_bgr: tuple[float, ...] = MEAN_BGR,
    dtype: Dtype = "float32",
    remat: bool = False,
) -> DeepLabV2:
    """The network that the options of config.ModelConfig describe.

    `head_width`, `dropout` and `pool5a` are VGG's, `stride_placement` is ResNet's. The alignment
    corners_v1 has VGG's pools of size 2.

    Raises:
      UserError: the options contradict each other.
    """
    check_choice("model.backbone", backbone, Backbone)
    check_choice("model.dtype", dtype, Dtype)
    if alignment == "corners_v1" and backbone != "vgg":
        raise UserError(
            f"model.alignment corners_v1 is for VGG's 2x2 pools, and model.backbone is {backbone}"
        )
    shared: dict[str, Any] = {"dtype": dtype, "norm": norm}
    of_trunk: dict[str, Any] = {"stage_sizes": stage_sizes, "width": width, "remat": remat}
    of_head: dict[str, Any] = {
        "num_classes": num_classes,
        "rates": aspp_rates,
        "kernel_size": head_kernel_size,
    }
    if backbone == "resnet":
        trunk = ResNet(**of_trunk, **shared, stride_placement=stride_placement)
        head = ASPP(**of_head, dtype=dtype)
    else:
        pool = 2 if alignment == "corners_v1" else 3
        trunk = VGG(**of_trunk, **shared, pool5a=pool5a, pool_kernel_size=pool)
        head = FullyConnectedASPP(**of_head, **shared, width=head_width, dropout=dropout)
    return DeepLabV2(trunk, head, scales, alignment, mean_bgr)


VGG16: dict[str, Any] = {
    "backbone": "vgg",
    "stage_sizes": (2, 2, 3, 3, 3),
    "norm": "none",
    "scales": (1.0,),
}

resnet101_aspp_msc = build
"""ResNet-101, ASPP-L, multi-scale inputs (Table 4); options are those of `build`."""
resnet101_aspp = partial(build, scales=(1.0,))
"""ResNet-101, ASPP-L (Table 4)."""
resnet101_large_fov = partial(build, scales=(1.0,), aspp_rates=(12,))
"""ResNet-101, LargeFOV (Table 4)."""
resnet50_aspp = partial(build, scales=(1.0,), stage_sizes=(3, 4, 6, 3))
"""ResNet-50, ASPP-L (ours)."""
vgg16_aspp_l = partial(build, **VGG16)
"""VGG-16, ASPP-L: rates 6, 12, 18, 24 (Table 3)."""
vgg16_aspp_s = partial(build, **VGG16, aspp_rates=(2, 4, 8, 12))
"""VGG-16, ASPP-S: rates 2, 4, 8, 12 (Table 3)."""
vgg16_large_fov = partial(build, **VGG16, aspp_rates=(12,), pool5a=True)
"""VGG-16, LargeFOV: 3x3 kernels at rate 12 (Tables 1 to 3)."""
