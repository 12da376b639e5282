"""ResNet made dense by atrous convolution: output stride 8 (Section 3.1).

The strides of stages 4 and 5 become rates 2 and 4. With stride placement `caffe` the stride of a
stage sits in the first 1x1 convolution of its first block, as in the release the paper's weights
come from; with `torch` it sits in the 3x3, as in torchvision, and the first 3x3 of a stage keeps
the rate of the stage before, which it was trained at.
"""

from functools import partial

import flax.linen as nn
import jax
from jaxtyping import Float

from deeplab_jax.choices import StridePlacement
from deeplab_jax.models.layers import EVALUATION, Conv, MaxPool, Mode, Norm, check_choice
from deeplab_jax.ops.norm import add_relu
from deeplab_jax.types import UserError

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
    norm: Norm
    dtype: str

    @nn.compact
    def __call__(self, x: Float[jax.Array, "b h w i"], mode: Mode) -> Float[jax.Array, "b h2 w2 o"]:
        conv = partial(Conv, norm=self.norm, dtype=self.dtype)
        in_1x1 = self.stride if self.stride_placement == "caffe" else 1
        in_3x3 = self.stride // in_1x1
        out = EXPANSION * self.width
        shortcut = x
        if self.project:
            shortcut = conv(out, 1, self.stride, name="branch1")(x, mode)
        x = nn.relu(conv(self.width, 1, in_1x1, name="branch2a")(x, mode))
        x = nn.relu(conv(self.width, 3, in_3x3, self.rate, name="branch2b")(x, mode))
        x = conv(out, 1, name="branch2c", scale_init=nn.initializers.zeros)(x, mode)
        return add_relu(shortcut, x)


class ResNet(nn.Module):
    """Feature maps at stride 8; channels are 32 * width.

    `stage_sizes` counts the blocks of stages res2 to res5: (3, 4, 23, 3) is ResNet-101,
    (3, 4, 6, 3) is ResNet-50. `norm` is `frozen` for published weights, `trained` from scratch;
    the last batch norm of each block starts at scale 0, so that a network from scratch starts as
    the identity. With `remat` the gradient recomputes what lies inside of a block.
    """

    stage_sizes: tuple[int, ...] = (3, 4, 23, 3)
    width: int = 64
    norm: Norm = "frozen"
    stride_placement: StridePlacement = "caffe"
    dtype: str = "float32"
    remat: bool = False

    def __post_init__(self):
        if self.norm == "none":
            raise UserError("ResNet needs its batch norm; give --model.norm frozen or trained")
        check_choice("model.norm", self.norm, Norm)
        check_choice("model.stride_placement", self.stride_placement, StridePlacement)
        check_stages("resnet", self.stage_sizes, len(STRIDES))
        super().__post_init__()

    @nn.compact
    def __call__(
        self, x: Float[jax.Array, "b h w channels"], mode: Mode = EVALUATION
    ) -> Float[jax.Array, "b h8 w8 c"]:
        block = nn.remat(Bottleneck) if self.remat else Bottleneck
        conv1 = Conv(self.width, 7, 2, norm=self.norm, dtype=self.dtype, name="conv1")
        x = nn.relu(conv1(x, mode))
        x = MaxPool(stride=2, name="pool1")(x)
        rates = [1, *RATES]
        for i, blocks in enumerate(self.stage_sizes):
            for j in range(blocks):
                first = j == 0
                x = block(
                    width=self.width * 2**i,
                    stride=STRIDES[i] if first else 1,
                    rate=rates[i] if first and self.stride_placement == "torch" else rates[i + 1],
                    project=first,
                    stride_placement=self.stride_placement,
                    norm=self.norm,
                    dtype=self.dtype,
                    name=f"res{i + 2}_{j + 1}",
                )(x, mode)
        return x


def check_stages(trunk: str, stage_sizes: tuple[int, ...], stages: int) -> None:
    """Refuses sizes of too few or too many stages.

    Raises:
      UserError
    """
    if len(stage_sizes) != stages:
        raise UserError(
            f"a {trunk} trunk has {stages} stages, model.stage_sizes names {len(stage_sizes)}"
        )
