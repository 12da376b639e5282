"""The layers that trunks and heads are made of.

Every operation that mixes pixels is a module, so that `masking` can find it and a network runs
right on photographs of several sizes in one array. Write your own trunk or head from these, or
from flax's `nn.Conv`.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any, get_args

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Float

from deeplab_jax.choices import Norm
from deeplab_jax.ops import norm, plain, pooling, resize
from deeplab_jax.ops.convolution import atrous_conv
from deeplab_jax.ops.resize import Alignment
from deeplab_jax.types import UserError

he_normal = nn.initializers.he_normal()
STATISTICS_DECAY = 0.9
"""Weight of the past in the running statistics of a trained batch norm (ours)."""


@flax.struct.dataclass
class Mode:
    """How a network runs; without arguments, as it is evaluated."""

    train: bool = flax.struct.field(pytree_node=False, default=False)
    """Take batch statistics from the batch."""
    axis_name: str | None = flax.struct.field(pytree_node=False, default=None)
    """Name of the mapped axis of devices that share batch statistics."""
    real: Any = None
    """Which photographs count in batch statistics, bool `[b]`; None: all."""
    dropout_keys: Any = None
    """A key a photograph, `[b]`; None: nothing is dropped."""

    def fold_in(self, number: int) -> "Mode":
        """The mode with other dropout keys, a set of its own for each number."""
        if self.dropout_keys is None:
            return self
        fold = jax.vmap(lambda key: jax.random.fold_in(key, number))
        return replace(self, dropout_keys=fold(self.dropout_keys))


EVALUATION = Mode()


class Conv(nn.Module):
    """Atrous convolution, then a bias (`none`) or batch norm (`frozen`, `trained`).

    The kernel is `[k, k, in, features]`. A frozen norm keeps scale, bias, mean and variance in
    the collection `batch_stats`, so that no gradient exists for them; a trained one has scale
    and bias among the parameters and normalises by the statistics of the whole batch in training.
    """

    features: int
    kernel_size: int = 3
    stride: int = 1
    rate: int = 1
    norm: Norm = "none"
    kernel_init: Callable = he_normal
    scale_init: Callable = nn.initializers.ones
    dtype: str = "float32"

    @nn.compact
    def __call__(
        self, x: Float[jax.Array, "b h w i"], mode: Mode = EVALUATION
    ) -> Float[jax.Array, "b h2 w2 o"]:
        shape = (self.kernel_size, self.kernel_size, x.shape[-1], self.features)
        kernel = self.param("kernel", self.kernel_init, shape)
        if self.norm == "none":
            bias = self.param("bias", nn.initializers.zeros, (self.features,))
            return self._convolve(x, kernel) + bias.astype(self.dtype)
        return self._batch_norm(x, kernel, mode)

    def _convolve(self, x, kernel):
        x, kernel = x.astype(self.dtype), kernel.astype(self.dtype)
        return atrous_conv(x, kernel, rate=self.rate, stride=self.stride)

    def _batch_norm(self, x, kernel, mode):
        size = (self.features,)
        mean = self.variable("batch_stats", "mean", jnp.zeros, size)
        variance = self.variable("batch_stats", "var", jnp.ones, size)
        if self.norm == "frozen":
            scale = self.variable("batch_stats", "scale", jnp.ones, size).value
            bias = self.variable("batch_stats", "bias", jnp.zeros, size).value
        else:
            scale = self.param("scale", self.scale_init, size)
            bias = self.param("bias", nn.initializers.zeros, size)
        if self.norm == "frozen" or not mode.train:
            factor, offset = norm.norm_factors(mean.value, variance.value, scale, bias)
            if mode.train:  # no pass over the gradient to scale it
                return self._convolve(x, kernel * factor) + offset.astype(self.dtype)
            return norm.affine(self._convolve(x, kernel), factor, offset)
        x = self._convolve(x, kernel)
        batch_mean, batch_variance = norm.batch_statistics(x, mode.real, mode.axis_name)
        if not self.is_initializing():
            mean.value = _mix(mean.value, batch_mean)
            variance.value = _mix(variance.value, batch_variance)
        return norm.affine(x, *norm.norm_factors(batch_mean, batch_variance, scale, bias))


def _mix(past, present):
    return STATISTICS_DECAY * past + (1 - STATISTICS_DECAY) * present


class MaxPool(nn.Module):
    """Caffe's max pooling: sizes rounded up, padding is never the maximum."""

    stride: int
    kernel_size: int = 3
    padding: int = 1

    @nn.compact
    def __call__(self, x: Float[jax.Array, "b h w c"]) -> Float[jax.Array, "b h2 w2 c"]:
        return pooling.max_pool(
            x, kernel=self.kernel_size, stride=self.stride, padding=self.padding
        )


class AveragePool(nn.Module):
    """Mean of each 3x3 window at stride 1."""

    @nn.compact
    def __call__(self, x: Float[jax.Array, "b h w c"]) -> Float[jax.Array, "b h w c"]:
        return plain.average_pool(x)


class GlobalAveragePool(nn.Module):
    """Mean over all rows and columns of each photograph, `[b, 1, 1, c]`."""

    @nn.compact
    def __call__(self, x: Float[jax.Array, "b h w c"]) -> Float[jax.Array, "b 1 1 c"]:
        return x.mean((1, 2), keepdims=True)


# Where photographs of several sizes share an array, masking.py computes these three itself.


class Rescale(nn.Module):
    """Bilinear resizing of the input by a factor (MSC, Section 4.1.2)."""

    alignment: Alignment

    @nn.compact
    def __call__(
        self, x: Float[jax.Array, "b h w c"], factor: float
    ) -> Float[jax.Array, "b h2 w2 c"]:
        return resize.rescale(x, factor, alignment=self.alignment)


class Resize(nn.Module):
    """Bilinear resizing of a score map to the size of another map, `factor` times as dense."""

    alignment: Alignment

    @nn.compact
    def __call__(
        self, x: Float[jax.Array, "b h w c"], size: tuple[int, int], factor: float
    ) -> Float[jax.Array, "b h2 w2 c"]:
        return resize.resize_bilinear(x, size, alignment=self.alignment, factor=factor)


class Enlarge(nn.Module):
    """Bilinear resizing of the network's score map to the photograph."""

    alignment: Alignment

    @nn.compact
    def __call__(
        self, x: Float[jax.Array, "b h w c"], size: tuple[int, int], scale: float = 1.0
    ) -> Float[jax.Array, "b h2 w2 c"]:
        return resize.enlarge(x, size, alignment=self.alignment, scale=scale)


def check_choice(name: str, value: Any, choices: Any) -> None:
    """Refuses a value that is none of a Literal's.

    Raises:
      UserError
    """
    if value not in get_args(choices):
        known = ", ".join(map(str, get_args(choices)))
        raise UserError(f"{name} is {value!r}, and one of {known} was expected")
