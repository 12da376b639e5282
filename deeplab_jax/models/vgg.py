"""VGG-16 with holes: output stride 8.

As in the Caffe release, pools are 3x3 (VGG's own are 2x2), the last two keep the size, and
the convolutions after the fourth have rate 2.
"""

from collections.abc import Callable
from functools import partial

import flax.linen as nn
import jax
from jaxtyping import Float

from deeplab_jax.models import layers
from deeplab_jax.models.conv import Conv

WIDTHS = (1, 2, 4, 8, 8)
RATES = (1, 1, 1, 1, 2)
POOL_STRIDES = (2, 2, 2, 1, 1)


class VGG(nn.Module):
    """Feature maps at stride 8 (pool5), and their sizes; channels are 8 * width.

    `stage_sizes` counts the convolutions before each pool. The paper's VGG has no
    normalisation; a `conv` with norm="trained" is ours, for training from scratch. With `remat`
    the gradient recomputes what lies between two pools.
    """

    stage_sizes: tuple[int, ...] = (2, 2, 3, 3, 3)
    width: int = 64
    conv: Callable = Conv
    max_pool: Callable = layers.max_pool
    remat: bool = False

    @nn.compact
    def __call__(
        self, x: Float[jax.Array, "b h w 3"], sizes: layers.Sizes | None = None, **mode
    ) -> tuple[Float[jax.Array, "b h8 w8 c"], layers.Sizes | None]:
        for i in range(len(self.stage_sizes)):
            stage = partial(VGG._stage, i=i, **mode)
            x = nn.remat(stage)(self, x, sizes) if self.remat else stage(self, x, sizes)
            sizes = jax.tree.map(partial(layers.pooled_size, stride=POOL_STRIDES[i]), sizes)
        return x, sizes

    def _stage(self, x, sizes, *, i, **mode):
        for j in range(self.stage_sizes[i]):
            name = f"conv{i + 1}_{j + 1}"
            conv = self.conv(self.width * WIDTHS[i], 3, rate=RATES[i], name=name)
            x = nn.relu(conv(x, sizes=sizes, **mode))
        x = layers.erase(x, sizes)  # zeros win as little as padding: nothing is below after a ReLU
        return self.max_pool(x, stride=POOL_STRIDES[i])
