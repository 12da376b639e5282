"""The one parametrised layer that trunks and heads are made of."""

from collections.abc import Callable
from types import ModuleType
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float

from deeplab_jax.models import dots, layers

Formulation = Literal["lax", "dots"]

he_normal = nn.initializers.he_normal()
STATISTICS_DECAY = 0.9
"""Weight of the past in the running statistics of a trained batch norm (ours)."""


class Conv(nn.Module):
    """Atrous convolution, then a bias (`none`) or batch norm (`frozen`, `trained`).

    The kernel is `[k, k, in, features]`. A frozen norm keeps scale, bias, mean and variance in
    the collection `batch_stats`, so that no gradient exists for them; a trained one has scale
    and bias among the parameters and normalises by the statistics of the whole batch in
    training, of all devices where `axis_name` names them. `formulation` says which operations
    compute the convolution: lax.conv_general_dilated, or the dots of models.dots.
    """

    features: int
    kernel_size: int = 3
    stride: int = 1
    rate: int = 1
    norm: layers.Norm = "none"
    axis_name: str | None = None
    kernel_init: Callable = he_normal
    scale_init: Callable = nn.initializers.ones
    dtype: jnp.dtype = jnp.float32
    formulation: Formulation = "lax"

    @nn.compact
    def __call__(
        self,
        x: Float[jax.Array, "b h w i"],
        *,
        train: bool = False,
        real: Bool[jax.Array, " b"] | None = None,
        sizes: layers.Sizes | None = None,
    ) -> Float[jax.Array, "b h2 w2 o"]:
        if self.kernel_size > 1:
            x = layers.erase(x, sizes)
        shape = (self.kernel_size, self.kernel_size, x.shape[-1], self.features)
        kernel = self.param("kernel", self.kernel_init, shape)
        if self.norm == "none":
            bias = self.param("bias", nn.initializers.zeros, (self.features,))
            return self._convolve(x, kernel) + bias.astype(self.dtype)
        return self._batch_norm(x, kernel, train, real)

    def _convolve(self, x, kernel):
        atrous_conv = operations(self.formulation).atrous_conv
        x, kernel = x.astype(self.dtype), kernel.astype(self.dtype)
        return atrous_conv(x, kernel, rate=self.rate, stride=self.stride)

    def _batch_norm(self, x, kernel, train, real):
        size = (self.features,)
        mean = self.variable("batch_stats", "mean", jnp.zeros, size)
        variance = self.variable("batch_stats", "var", jnp.ones, size)
        if self.norm == "frozen":
            scale = self.variable("batch_stats", "scale", jnp.ones, size).value
            bias = self.variable("batch_stats", "bias", jnp.zeros, size).value
        else:
            scale = self.param("scale", self.scale_init, size)
            bias = self.param("bias", nn.initializers.zeros, size)
        if self.norm == "frozen" or not train:
            factor, offset = layers.norm_factors(mean.value, variance.value, scale, bias)
            if train and self.formulation == "dots":  # no pass over the gradient to scale it
                return self._convolve(x, kernel * factor) + offset.astype(self.dtype)
            return layers.affine(self._convolve(x, kernel), factor, offset)
        x = self._convolve(x, kernel)
        batch_mean, batch_variance = layers.batch_statistics(x, real, self.axis_name)
        if not self.is_initializing():
            mean.value = _mix(mean.value, batch_mean)
            variance.value = _mix(variance.value, batch_variance)
        return layers.affine(x, *layers.norm_factors(batch_mean, batch_variance, scale, bias))


def operations(formulation: Formulation) -> ModuleType:
    """The module whose atrous_conv, add_relu and max_pool compute the network."""
    return dots if formulation == "dots" else layers


def formulation_for(backend: str) -> Formulation:
    """The faster one on a JAX backend ("cpu", "gpu", "tpu")."""
    return "dots" if backend == "cpu" else "lax"


def remat_options(backend: str) -> dict[str, str]:
    """Options under which XLA on a JAX backend keeps what rematerialisation computes again."""
    return dots.KEEP_REMAT if backend == "cpu" else {}


def _mix(past, present):
    return STATISTICS_DECAY * past + (1 - STATISTICS_DECAY) * present
