"""VGG-16 with holes: output stride 8.

As in the Caffe release, pools are 3x3 (VGG's own are 2x2), the last two keep the size, and
the convolutions after the fourth have rate 2.
"""

from collections.abc import Callable

import flax.linen as nn
import jax
from jaxtyping import Float

from deeplab_jax.models import layers
from deeplab_jax.models.conv import Conv

WIDTHS = (1, 2, 4, 8, 8)
RATES = (1, 1, 1, 1, 2)
POOL_STRIDES = (2, 2, 2, 1, 1)


class VGG(nn.Module):
    """Feature maps at stride 8 (pool5); channels are 8 * width.

    `stage_sizes` counts the convolutions before each pool. The paper's VGG has no
    normalisation; a `conv` with norm="trained" is ours, for training from scratch.
    """

    stage_sizes: tuple[int, ...] = (2, 2, 3, 3, 3)
    width: int = 64
    conv: Callable = Conv

    @nn.compact
    def __call__(self, x: Float[jax.Array, "b h w 3"], **mode) -> Float[jax.Array, "b h8 w8 c"]:
        for i, (size, rate, stride) in enumerate(
            zip(self.stage_sizes, RATES, POOL_STRIDES, strict=True)
        ):
            for j in range(size):
                name = f"conv{i + 1}_{j + 1}"
                x = nn.relu(self.conv(self.width * WIDTHS[i], 3, rate=rate, name=name)(x, **mode))
            x = layers.max_pool(x, stride=stride)
        return x
