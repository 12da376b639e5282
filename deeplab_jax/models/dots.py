"""Atrous convolution written for XLA on CPUs: same values as layers.atrous_conv, other operations.

XLA's CPU compiler turns the weight gradient of a convolution into a convolution with a window
as large as the image, and runs that many times slower than the machine allows. Here

- a 1x1 convolution is a matrix product;
- a convolution to few channels, such as the classifier's, is one product to all its taps, whose
  results are shifted and added: what moves is narrow;
- any other is lax's, with a weight gradient that is one product a tap.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Float

from deeplab_jax.models import layers

POSITIONS = (((0, 1, 2), (0, 1, 2)), ((), ()))
"""Dot dimensions: sum over photographs, rows and columns."""

IMAGE_CHANNELS = 3


def atrous_conv(
    x: Float[jax.Array, "b h w i"],
    kernel: Float[jax.Array, "k k i o"],
    *,
    rate: int = 1,
    stride: int = 1,
) -> Float[jax.Array, "b h2 w2 o"]:
    """layers.atrous_conv, as dots where that is faster on a CPU."""
    size, _, channels, features = kernel.shape
    if size == 1:
        return x[:, ::stride, ::stride] @ kernel[0, 0]
    if channels <= IMAGE_CHANNELS:
        return layers.atrous_conv(x, kernel, rate=rate, stride=stride)
    if stride == 1 and 2 * features <= channels:
        return _narrow(x, kernel, rate)
    return _tapped(x, kernel, rate, stride)


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def _narrow(x, kernel, rate):
    size, _, channels, features = kernel.shape
    padding = rate * (size - 1) // 2
    products = x @ kernel.transpose(2, 0, 1, 3).reshape(channels, -1)
    products = jnp.pad(products, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    rows, columns = x.shape[1:3]
    total = 0
    for tap, (i, j) in enumerate(_offsets(size, rate)):
        part = slice(tap * features, (tap + 1) * features)
        total += products[:, i : i + rows, j : j + columns, part]
    return total


def _narrow_forward(x, kernel, rate):
    return _narrow(x, kernel, rate), (x, kernel)


def _narrow_backward(rate, saved, gradient):
    x, kernel = saved
    size, _, channels, features = kernel.shape
    span = rate * (size - 1)
    rows, columns = x.shape[1:3]
    padding = span // 2
    gradient = jnp.pad(gradient, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    shifted = jnp.concatenate(
        [
            gradient[:, span - i : span - i + rows, span - j : span - j + columns]
            for i, j in _offsets(size, rate)
        ],
        axis=-1,
    )
    kernel_gradient = lax.dot_general(shifted, x, POSITIONS)
    kernel_gradient = kernel_gradient.reshape(size, size, features, channels)
    taps = kernel.transpose(0, 1, 3, 2).reshape(-1, channels)
    return shifted @ taps, kernel_gradient.transpose(0, 1, 3, 2)


_narrow.defvjp(_narrow_forward, _narrow_backward)


@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _tapped(x, kernel, rate, stride):
    return layers.atrous_conv(x, kernel, rate=rate, stride=stride)


def _tapped_forward(x, kernel, rate, stride):
    return _tapped(x, kernel, rate, stride), (x, kernel)


def _tapped_backward(rate, stride, saved, gradient):
    x, kernel = saved
    _, transpose = jax.vjp(lambda x: layers.atrous_conv(x, kernel, rate=rate, stride=stride), x)
    padding = rate * (kernel.shape[0] - 1) // 2
    padded = jnp.pad(x, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    rows, columns = (stride * (n - 1) + 1 for n in gradient.shape[1:3])
    taps = [
        lax.dot_general(
            padded[:, i : i + rows : stride, j : j + columns : stride], gradient, POSITIONS
        )
        for i, j in _offsets(kernel.shape[0], rate)
    ]
    return (*transpose(gradient), jnp.stack(taps).reshape(kernel.shape))


_tapped.defvjp(_tapped_forward, _tapped_backward)


def _offsets(size: int, rate: int) -> list[tuple[int, int]]:
    """Where each tap of a kernel reads, from the top left of its window."""
    steps = range(0, size * rate, rate)
    return [(i, j) for i in steps for j in steps]
