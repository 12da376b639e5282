"""Heads: from the trunk's features to a score of each class (Section 3.2).

Each rate is a branch with weights of its own, and the branches are summed. Several rates with 3x3
kernels are ASPP: (6, 12, 18, 24) is ASPP-L, (2, 4, 8, 12) is ASPP-S. A single rate is LargeFOV.
"""

from functools import partial, reduce

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Float

from deeplab_jax.models.layers import EVALUATION, Conv, Mode, Norm
from deeplab_jax.ops.norm import dropout
from deeplab_jax.types import Logits, UserError

classifier_init = nn.initializers.normal(0.01)


class ASPP(nn.Module):
    """ResNet's head: a branch is one convolution to the classes.

    A 1x1 kernel is the plain network of Table 4.
    """

    num_classes: int
    rates: tuple[int, ...] = (6, 12, 18, 24)
    kernel_size: int = 3
    dtype: str = "float32"

    def __post_init__(self):
        check_padding(self.kernel_size, self.rates)
        super().__post_init__()

    @nn.compact
    def __call__(self, x: Float[jax.Array, "b h w i"], mode: Mode = EVALUATION) -> Logits:
        conv = partial(Conv, dtype=self.dtype, kernel_init=classifier_init)
        branches = [
            conv(self.num_classes, self.kernel_size, rate=rate, name=f"fc8_{i + 1}")(x)
            for i, rate in enumerate(self.rates)
        ]
        return reduce(jnp.add, branches)


class FullyConnectedASPP(nn.Module):
    """VGG's head (Figure 7): a branch is fc6 (atrous), then fc7 and fc8 (1x1).

    The sum of the branches is one 1x1 classifier over their concatenated fc7.

    After fc6 and fc7 the part `dropout` of the elements is dropped in training. The width of fc6
    and fc7 is 1024, or 4096 before thinning.
    """

    num_classes: int
    rates: tuple[int, ...] = (6, 12, 18, 24)
    kernel_size: int = 3
    width: int = 1024
    dropout: float = 0.5
    norm: Norm = "none"
    dtype: str = "float32"

    def __post_init__(self):
        check_padding(self.kernel_size, self.rates)
        super().__post_init__()

    @nn.compact
    def __call__(self, x: Float[jax.Array, "b h w i"], mode: Mode = EVALUATION) -> Logits:
        branches = [self._branch(x, mode, i, rate) for i, rate in enumerate(self.rates)]
        return reduce(jnp.add, branches)

    def _branch(self, x, mode, i, rate):
        conv = partial(Conv, self.width, norm=self.norm, dtype=self.dtype)
        fc6 = conv(self.kernel_size, rate=rate, name=f"fc6_{i + 1}")
        fc7 = conv(1, name=f"fc7_{i + 1}")
        fc8 = Conv(
            self.num_classes,
            1,
            kernel_init=classifier_init,
            dtype=self.dtype,
            name=f"fc8_{i + 1}",
        )
        x = self._drop(nn.relu(fc6(x, mode)), mode.fold_in(2 * i))
        x = self._drop(nn.relu(fc7(x, mode)), mode.fold_in(2 * i + 1))
        return fc8(x)

    def _drop(self, x, mode):
        if mode.dropout_keys is None:
            return x
        return dropout(x, mode.dropout_keys, rate=self.dropout)


def check_padding(kernel_size: int, rates: tuple[int, ...]) -> None:
    """Refuses a head whose convolutions cannot be padded the same on both sides.

    Raises:
      UserError
    """
    if not rates or min(rates) < 1:
        raise UserError(f"model.aspp_rates {rates} must be one or more numbers of at least 1")
    if kernel_size % 2 == 0 and any(rate % 2 for rate in rates):
        raise UserError(
            f"model.head_kernel_size {kernel_size} needs even model.aspp_rates, so that padding is "
            f"the same on both sides; got {rates}"
        )
