"""DeepLab v2: a dense trunk, a head of parallel atrous convolutions, multi-scale inputs.

The network maps `inputs` to logits at stride 8. It is aligned at the corners: logit (i, j)
looks at pixel (8i, 8j).
"""

from collections.abc import Callable
from functools import partial
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Key, UInt8

from deeplab_jax.models import layers
from deeplab_jax.models.conv import Conv, Formulation, operations
from deeplab_jax.models.resnet import ResNet, StridePlacement
from deeplab_jax.models.vgg import VGG
from deeplab_jax.types import Logits

Backbone = Literal["resnet", "vgg"]

MEAN_BGR = (104.008, 116.669, 122.675)
"""Mean pixel of ImageNet in the order of the Caffe release, 0..255."""

OUTPUT_STRIDE = 8

classifier_init = nn.initializers.normal(0.01)


def make_inputs(
    image: UInt8[jax.Array | np.ndarray, "*b h w 3"],
    mean_bgr: tuple[float, float, float] = MEAN_BGR,
) -> Float[jax.Array, "*b h w 3"]:
    """What the network sees of RGB photographs: BGR, 0..255, less the mean pixel."""
    return jnp.asarray(image)[..., ::-1].astype(jnp.float32) - jnp.array(mean_bgr, jnp.float32)


def weight_name(path: tuple) -> str:
    """Name of a leaf of the network's variables by its path, as in "trunk/conv1/kernel"."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def is_classifier(name: str) -> bool:
    """Whether a weight belongs to the last layer, the one as wide as there are classes."""
    return "/fc8_" in name


class ClassifierHead(nn.Module):
    """ResNet's head: one convolution to the classes for each rate, summed (Section 3.2).

    Rates (6, 12, 18, 24) with 3x3 kernels are ASPP, a single 12 is LargeFOV, a 1x1 kernel is
    the plain network of Table 4.
    """

    num_classes: int
    rates: tuple[int, ...]
    kernel_size: int
    conv: Callable = Conv

    @nn.compact
    def __call__(self, x: Float[jax.Array, "b h w i"], sizes: layers.Sizes | None = None) -> Logits:
        return sum(
            self.conv(
                self.num_classes,
                self.kernel_size,
                rate=rate,
                kernel_init=classifier_init,
                name=f"fc8_{i + 1}",
            )(x, sizes=sizes)
            for i, rate in enumerate(self.rates)
        )


class FullyConnectedHead(nn.Module):
    """VGG's head: for each rate fc6 (atrous), fc7 and fc8 (1x1) with weights of its own, summed.

    After fc6 and fc7 half of the elements are dropped in training, masks being one a branch.
    """

    num_classes: int
    rates: tuple[int, ...]
    kernel_size: int
    width: int
    dropout: float = 0.5
    conv: Callable = Conv
    classifier: Callable = Conv

    @nn.compact
    def __call__(
        self,
        x: Float[jax.Array, "b h w i"],
        sizes: layers.Sizes | None,
        dropout_keys: Key[jax.Array, " b"] | None,
        **mode,
    ) -> Logits:
        branches = []
        for i, rate in enumerate(self.rates):
            y = x
            for j, (kernel_size, rate_) in enumerate([(self.kernel_size, rate), (1, 1)]):
                name = f"fc{6 + j}_{i + 1}"
                conv = self.conv(self.width, kernel_size, rate=rate_, name=name)
                y = nn.relu(conv(y, sizes=sizes, **mode))
                if dropout_keys is not None:
                    keys = _fold(dropout_keys, 2 * i + j)
                    y = layers.dropout(y, keys, rate=self.dropout)
            name = f"fc8_{i + 1}"
            classifier = self.classifier(
                self.num_classes, 1, kernel_init=classifier_init, name=name
            )
            branches.append(classifier(y))
        return sum(branches)


class DeepLabV2(nn.Module):
    """The network of the paper; the defaults are ResNet-101 with ASPP-L and multi-scale inputs.

    `norm` is `frozen` for published ResNet weights, `none` for VGG, `trained` from scratch.
    `scales` are the factors at which the same network reads the input (MSC, Section 4.1.2);
    their scores are fused by the maximum at stride 8. `alignment` is the convention of every
    resizing: inputs, scores, labels of the loss, and the final upsampling. `mean_bgr` is what
    make_inputs takes off a photograph for these weights. `head_width` is the
    width of fc6 and fc7 and only VGG has them; `pool5a` is the 3x3 average before fc6 that the
    first LargeFOV release has. `formulation` chooses the operations of a convolution by their
    speed, "dots" being for CPUs, and changes no value; nor does `remat`, which lets the gradient
    compute the inside of each block again instead of keeping it. `axis_name` names the devices
    that share batch statistics.
    """

    num_classes: int = 21
    backbone: Backbone = "resnet"
    stage_sizes: tuple[int, ...] = (3, 4, 23, 3)
    width: int = 64
    norm: layers.Norm = "frozen"
    stride_placement: StridePlacement = "caffe"
    aspp_rates: tuple[int, ...] = (6, 12, 18, 24)
    head_kernel_size: int = 3
    head_width: int = 1024
    pool5a: bool = False
    dropout: float = 0.5
    scales: tuple[float, ...] = (1.0, 0.75, 0.5)
    alignment: layers.Alignment = "half_pixel"
    mean_bgr: tuple[float, float, float] = MEAN_BGR
    dtype: str = "float32"
    formulation: Formulation = "lax"
    remat: bool = False
    axis_name: str | None = None

    def setup(self):
        plain = partial(Conv, dtype=jnp.dtype(self.dtype), formulation=self.formulation)
        conv = partial(plain, norm=self.norm, axis_name=self.axis_name)
        trunk = {
            "stage_sizes": self.stage_sizes,
            "width": self.width,
            "conv": conv,
            "max_pool": operations(self.formulation).max_pool,
            "remat": self.remat,
        }
        head = (self.num_classes, self.aspp_rates, self.head_kernel_size)
        if self.backbone == "resnet":
            self.trunk = ResNet(
                **trunk,
                stride_placement=self.stride_placement,
                add_relu=operations(self.formulation).add_relu,
            )
            self.head = ClassifierHead(*head, conv=plain)
        else:
            self.trunk = VGG(**trunk)
            self.head = FullyConnectedHead(
                *head, self.head_width, self.dropout, conv=conv, classifier=plain
            )

    def __call__(self, inputs: Float[jax.Array, "b h w 3"]) -> Logits:
        """Logits `[b, ceil(h / 8), ceil(w / 8), num_classes]`, float32, fused over the scales."""
        return self.score_maps(inputs)[0]

    def full_size(
        self,
        inputs: Float[jax.Array, "b h w 3"],
        size: tuple[int, int],
        *,
        sizes: layers.Sizes | None = None,
        new_sizes: layers.Sizes | None = None,
    ) -> Float[jax.Array, "b h2 w2 c"]:
        """The logits enlarged to `size` (rows, columns).

        With `sizes` each photograph is the top left part of its inputs, and the same part of the
        logits, of `new_sizes`, is what the photograph alone would have.
        """
        (logits, *_), map_sizes = self._maps(inputs, sizes)
        return layers.resize_bilinear(
            logits, size, alignment=self.alignment, sizes=map_sizes, new_sizes=new_sizes
        )

    def score_maps(
        self,
        inputs: Float[jax.Array, "b h w 3"],
        *,
        train: bool = False,
        dropout_keys: Key[jax.Array, " b"] | None = None,
        real: Bool[jax.Array, " b"] | None = None,
    ) -> tuple[Logits, ...]:
        """The maps that take a loss in training; the first is the fused one.

        With several scales the others are the map of each scale, as in the release: whole
        fractions of the input (1, 0.5) at their own size, others (0.75) enlarged to the map of
        scale 1, since labels can only be subsampled by whole steps. `real` marks photographs
        that count in batch statistics; `dropout_keys` holds a key a photograph.
        """
        return self._maps(inputs, None, dropout_keys, train=train, real=real)[0]

    def _maps(self, inputs, sizes, dropout_keys=None, **mode):
        """The score maps, and the sizes of the first."""
        maps, map_sizes = [], []
        for i, scale in enumerate(self.scales):
            x = layers.rescale(inputs, scale, alignment=self.alignment, sizes=sizes)
            part = jax.tree.map(
                partial(layers.scaled_size, factor=scale, alignment=self.alignment), sizes
            )
            keys = None if dropout_keys is None else _fold(dropout_keys, 1000 + i)
            x, part = self._single_scale(x, part, keys, **mode)
            maps.append(x)
            map_sizes.append(part)
        if len(maps) == 1:
            return tuple(maps), part
        whole = self.scales.index(1.0)
        size, part = maps[whole].shape[1:3], map_sizes[whole]
        resize = partial(layers.resize_bilinear, size=size, alignment=self.alignment)
        enlarged = [
            resize(m, sizes=s, new_sizes=part) for m, s in zip(maps, map_sizes, strict=True)
        ]
        fused = jnp.stack(enlarged).max(0)
        own = [
            m if (1 / scale).is_integer() else large
            for m, large, scale in zip(maps, enlarged, self.scales, strict=True)
        ]
        return (fused, *own), part

    def _single_scale(self, x, sizes, dropout_keys, **mode):
        x, sizes = self.trunk(x, sizes, **mode)
        if self.pool5a:
            x = layers.average_pool(layers.erase(x, sizes))
        if self.backbone == "resnet":
            x = self.head(x, sizes)
        else:
            x = self.head(x, sizes, dropout_keys, **mode)
        return x.astype(jnp.promote_types(x.dtype, jnp.float32)), sizes


def _fold(keys: Key[jax.Array, " b"], number: int) -> Key[jax.Array, " b"]:
    return jax.vmap(lambda key: jax.random.fold_in(key, number))(keys)
