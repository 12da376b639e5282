"""VGG-16 made dense by atrous convolution: output stride 8 (Section 3.1).

As in the Caffe release, pools are 3x3 (VGG's own are 2x2), the last two keep the size, and
the convolutions after the fourth have rate 2. The first release's 4x4 network has 2x2 pools.
"""

import flax.linen as nn
import jax
from jaxtyping import Float

from deeplab_jax.models.layers import (
    EVALUATION,
    AveragePool,
    Conv,
    MaxPool,
    Mode,
    Norm,
    check_choice,
)
from deeplab_jax.models.resnet import check_stages
from deeplab_jax.types import UserError

WIDTHS = (1, 2, 4, 8, 8)
RATES = (1, 1, 1, 1, 2)
POOL_STRIDES = (2, 2, 2, 1, 1)


class VGG(nn.Module):
    """Feature maps at stride 8 (pool5); channels are 8 * width.

    `stage_sizes` counts the convolutions before each pool. The paper's VGG has no normalisation;
    `norm="trained"` is ours, for training from scratch. `pool5a` is the 3x3 average after pool5
    that the first LargeFOV release has. `pool_kernel_size` 2 gives the pools of the first release's
    4x4 network: the first four are 2x2 with padding 1, the fourth without padding in training;
    `alignment` corners_v1 belongs to them. With `remat` the gradient recomputes what lies between
    two pools.
    """

    stage_sizes: tuple[int, ...] = (2, 2, 3, 3, 3)
    width: int = 64
    norm: Norm = "none"
    pool5a: bool = False
    pool_kernel_size: int = 3
    dtype: str = "float32"
    remat: bool = False

    def __post_init__(self):
        if self.norm == "frozen":
            raise UserError("VGG has no batch norm to freeze; give --model.norm none (or trained)")
        check_choice("model.norm", self.norm, Norm)
        check_stages("vgg", self.stage_sizes, len(POOL_STRIDES))
        if self.pool_kernel_size not in (2, 3):
            raise UserError(f"model.pool_kernel_size {self.pool_kernel_size} must be 2 or 3")
        super().__post_init__()

    @nn.compact
    def __call__(
        self, x: Float[jax.Array, "b h w channels"], mode: Mode = EVALUATION
    ) -> Float[jax.Array, "b h8 w8 c"]:
        stage = nn.remat(VGG._stage, static_argnums=(3,)) if self.remat else VGG._stage
        for i in range(len(self.stage_sizes)):
            x = stage(self, x, mode, i)
        return AveragePool(name="pool5a")(x) if self.pool5a else x

    def _stage(self, x, mode, i):
        for j in range(self.stage_sizes[i]):
            conv = Conv(
                self.width * WIDTHS[i],
                rate=RATES[i],
                norm=self.norm,
                dtype=self.dtype,
                name=f"conv{i + 1}_{j + 1}",
            )
            x = nn.relu(conv(x, mode))
        return self._pool(i, mode)(x)

    def _pool(self, i, mode):
        """The pool behind stage i."""
        kernel, padding = self.pool_kernel_size if i < 4 else 3, 1
        if kernel == 2 and i == 3 and mode.train:
            padding = 0  # as in the release's train.prototxt; its test.prototxt pads
        return MaxPool(POOL_STRIDES[i], kernel, padding, name=f"pool{i + 1}")
