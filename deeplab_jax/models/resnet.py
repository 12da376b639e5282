"""ResNet with holes: output stride 8.

The strides of stages 4 and 5 become rates 2 and 4 (Section 3.1). With stride placement
`caffe` the stride of a stage sits in the first 1x1 convolution of its first block, as in the
release the paper's weights come from; with `torch` it sits in the 3x3, as in torchvision, and
the first 3x3 of a stage keeps the rate of the stage before, which it was trained at.
"""

from collections.abc import Callable
from functools import partial
from typing import Literal

import flax.linen as nn
import jax
from jaxtyping import Float

from deeplab_jax.models import layers
from deeplab_jax.models.conv import Conv

StridePlacement = Literal["caffe", "torch"]

STRIDES = (1, 2, 1, 1)
RATES = (1, 1, 2, 4)
EXPANSION = 4


class Bottleneck(nn.Module):
    """1x1, 3x3, 1x1 convolutions beside a shortcut, which is a projection in a first block."""

    width: int
    stride: int
    rate: int
    project: bool
    stride_placement: StridePlacement
    conv: Callable
    add_relu: Callable

    @nn.compact
    def __call__(
        self, x: Float[jax.Array, "b h w i"], sizes: layers.Sizes | None = None, **mode
    ) -> Float[jax.Array, "b h2 w2 o"]:
        in_1x1 = self.stride if self.stride_placement == "caffe" else 1
        in_3x3 = self.stride // in_1x1
        out = EXPANSION * self.width
        shortcut = x
        if self.project:
            shortcut = self.conv(out, 1, self.stride, name="branch1")(x, **mode)
        x = nn.relu(self.conv(self.width, 1, in_1x1, name="branch2a")(x, **mode))
        sizes = jax.tree.map(partial(layers.strided_size, stride=in_1x1), sizes)
        conv = self.conv(self.width, 3, in_3x3, self.rate, name="branch2b")
        x = nn.relu(conv(x, sizes=sizes, **mode))
        x = self.conv(out, 1, name="branch2c", scale_init=nn.initializers.zeros)(x, **mode)
        return self.add_relu(shortcut, x)


class ResNet(nn.Module):
    """Feature maps at stride 8, and their sizes; channels are 32 * width.

    `stage_sizes` counts the blocks of stages res2 to res5: (3, 4, 23, 3) is ResNet-101,
    (3, 4, 6, 3) is ResNet-50. The last batch norm of each block starts at scale 0, so that a
    network from scratch starts as the identity. `add_relu` ends a block. With `remat` the
    gradient recomputes what lies inside of a block.
    """

    stage_sizes: tuple[int, ...] = (3, 4, 23, 3)
    width: int = 64
    stride_placement: StridePlacement = "caffe"
    conv: Callable = partial(Conv, norm="frozen")
    add_relu: Callable = layers.add_relu
    max_pool: Callable = layers.max_pool
    remat: bool = False

    @nn.compact
    def __call__(
        self, x: Float[jax.Array, "b h w 3"], sizes: layers.Sizes | None = None, **mode
    ) -> tuple[Float[jax.Array, "b h8 w8 c"], layers.Sizes | None]:
        def run(block, x, sizes):
            return block(x, sizes, **mode)

        run = nn.remat(run) if self.remat else run
        x = nn.relu(self.conv(self.width, 7, 2, name="conv1")(x, sizes=sizes, **mode))
        sizes = jax.tree.map(partial(layers.strided_size, stride=2), sizes)
        x = self.max_pool(layers.erase(x, sizes), stride=2)
        sizes = jax.tree.map(partial(layers.pooled_size, stride=2), sizes)
        rates = [1, *RATES]
        for i, blocks in enumerate(self.stage_sizes):
            for block in range(blocks):
                first = block == 0
                bottleneck = Bottleneck(
                    width=self.width * 2**i,
                    stride=STRIDES[i] if first else 1,
                    rate=rates[i] if first and self.stride_placement == "torch" else rates[i + 1],
                    project=first,
                    stride_placement=self.stride_placement,
                    conv=self.conv,
                    add_relu=self.add_relu,
                    name=f"res{i + 2}_{block + 1}",
                )
                x = run(bottleneck, x, sizes)
                sizes = jax.tree.map(partial(layers.strided_size, stride=bottleneck.stride), sizes)
        return x, sizes
