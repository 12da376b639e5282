"""Atrous convolution written for XLA on CPUs: same values as layers.atrous_conv, other operations.

XLA's CPU compiler turns the weight gradient of a convolution into a convolution with a window
as large as the image, and runs that many times slower than the machine allows. Here a 1x1
convolution is a matrix product, and the weight gradient of any other is one product a tap.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Float

from deeplab_jax.models import layers


def atrous_conv(
    x: Float[jax.Array, "b h w i"],
    kernel: Float[jax.Array, "k k i o"],
    *,
    rate: int = 1,
    stride: int = 1,
) -> Float[jax.Array, "b h2 w2 o"]:
    """layers.atrous_conv, as dots where that is faster on a CPU."""
    if kernel.shape[0] == 1:
        return x[:, ::stride, ::stride] @ kernel[0, 0]
    return _conv(x, kernel, rate, stride)


@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _conv(x, kernel, rate, stride):
    return layers.atrous_conv(x, kernel, rate=rate, stride=stride)


def _forward(x, kernel, rate, stride):
    return _conv(x, kernel, rate, stride), (x, kernel)


def _backward(rate, stride, saved, gradient):
    x, kernel = saved
    _, transpose = jax.vjp(
        lambda x: layers.atrous_conv(x, kernel, rate=rate, stride=stride), x
    )
    return (*transpose(gradient), _kernel_gradient(x, gradient, kernel.shape, rate, stride))


_conv.defvjp(_forward, _backward)


def _kernel_gradient(x, gradient, shape, rate, stride):
    """For each tap the input it read times the gradient of the output, summed over positions."""
    padding = rate * (shape[0] - 1) // 2
    padded = jnp.pad(x, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    rows, columns = (stride * (n - 1) + 1 for n in gradient.shape[1:3])
    taps = []
    for i in range(0, shape[0] * rate, rate):
        for j in range(0, shape[1] * rate, rate):
            read = padded[:, i : i + rows : stride, j : j + columns : stride]
            taps.append(lax.dot_general(read, gradient, (((0, 1, 2), (0, 1, 2)), ((), ()))))
    return jnp.stack(taps).reshape(shape)
