"""Batch norm, dropout and the end of a residual block."""

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Bool, Float, Key

from deeplab_jax.ops import plain
from deeplab_jax.ops.xla import by_platform, computed_once

EPSILON = 1e-5
"""Added to the variance, as in Caffe's BatchNorm layer."""


def batch_statistics(
    x: Float[jax.Array, "b h w c"],
    real: Bool[jax.Array, " b"] | None,
    axis_name: str | None,
) -> tuple[Float[jax.Array, " c"], Float[jax.Array, " c"]]:
    """Mean and variance of each channel over the photographs that are real, on all devices."""
    x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    weight = jnp.ones(x.shape[:1], x.dtype) if real is None else real.astype(x.dtype)
    everywhere = (lambda v: lax.psum(v, axis_name)) if axis_name else (lambda v: v)
    weight = weight[:, None, None, None]
    count = jnp.maximum(everywhere(weight.sum()) * x.shape[1] * x.shape[2], 1)
    mean = everywhere((x * weight).sum((0, 1, 2))) / count
    variance = everywhere((jnp.square(x - mean) * weight).sum((0, 1, 2))) / count
    return mean, variance


def norm_factors(
    mean: Float[jax.Array, " c"],
    variance: Float[jax.Array, " c"],
    scale: Float[jax.Array, " c"],
    bias: Float[jax.Array, " c"],
) -> tuple[Float[jax.Array, " c"], Float[jax.Array, " c"]]:
    """Batch norm with the statistics given, as the factor and the offset of each channel."""
    factor = scale * lax.rsqrt(variance + EPSILON)
    return factor, bias - mean * factor


def affine(
    x: Float[jax.Array, "b h w c"], factor: Float[jax.Array, " c"], offset: Float[jax.Array, " c"]
) -> Float[jax.Array, "b h w c"]:
    """x * factor + offset of each channel, in the type of `x`."""
    return x * factor.astype(x.dtype) + offset.astype(x.dtype)


@jax.custom_vjp
def add_relu(
    x: Float[jax.Array, "b h w c"], y: Float[jax.Array, "b h w c"]
) -> Float[jax.Array, "b h w c"]:
    """The end of a residual block.

    On CPUs its result is stored: XLA would recompute the sum of all earlier blocks in every block.
    """
    return by_platform(x, y, default=plain.add_relu, cpu=computed_once(plain.add_relu))


def _add_relu_forward(x, y):
    total = add_relu(x, y)
    return total, total


def _add_relu_backward(total, gradient):
    gradient = jnp.where(total > 0, gradient, 0)
    return gradient, gradient


add_relu.defvjp(_add_relu_forward, _add_relu_backward)


def dropout(
    x: Float[jax.Array, "b h w c"], keys: Key[jax.Array, " b"], *, rate: float
) -> Float[jax.Array, "b h w c"]:
    """Zeroes a part of the elements and scales the rest up; one key a photograph.

    So the mask of a photograph does not depend on its device.
    """
    keep = jax.vmap(lambda key: jax.random.bernoulli(key, 1 - rate, x.shape[1:]))(keys)
    return jnp.where(keep, x / (1 - rate), 0)
