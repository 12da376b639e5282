"""Atrous convolution written for XLA on CPUs: same values as layers.atrous_conv, other operations.

XLA's CPU compiler turns the weight gradient of a convolution into a convolution with a window
as large as the image, and runs that many times slower than the machine allows. Here

- a 1x1 convolution is a matrix product;
- a convolution to few channels, such as the classifier's, is one product to all its taps, whose
  results are shifted and added: what moves is narrow;
- any other is lax's, with a weight gradient that is one product for every few rows.
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental.xla_metadata import set_xla_metadata
from jaxtyping import Float

from deeplab_jax.models import layers

POSITIONS = (((0, 1, 2), (0, 1, 2)), ((), ()))
"""Dot dimensions: sum over photographs, rows and columns."""

KEEP_REMAT = {"xla_disable_hlo_passes": "cse_barrier_expander"}
"""Compiler options without which XLA's CPU compiler merges what is computed a second time to save
memory with the first time, and saves nothing."""

AT_ONCE = 80
"""Positions of a product in the weight gradient, at least, and twice as many as it has features:
then adding up the products costs little."""


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
        return _pointwise(x[:, ::stride, ::stride], kernel[0, 0])
    if stride == 1 and 2 * features <= channels:
        return _narrow(x, kernel, rate)
    return _by_rows(x, kernel, rate, stride)


@jax.custom_vjp
def _pointwise(x, kernel):
    return x @ kernel


def _pointwise_forward(x, kernel):
    return x @ kernel, (x, kernel)


def _pointwise_backward(saved, gradient):
    x, kernel = saved
    # jax's own would be the transposed product, which takes half as long again
    return gradient @ kernel.T, lax.dot_general(x, gradient, POSITIONS)


_pointwise.defvjp(_pointwise_forward, _pointwise_backward)


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
def _by_rows(x, kernel, rate, stride):
    return layers.atrous_conv(x, kernel, rate=rate, stride=stride)


def _by_rows_forward(x, kernel, rate, stride):
    return _by_rows(x, kernel, rate, stride), (x, kernel)


def _by_rows_backward(rate, stride, saved, gradient):
    x, kernel = saved
    _, transpose = jax.vjp(lambda x: layers.atrous_conv(x, kernel, rate=rate, stride=stride), x)
    return (*transpose(gradient), _kernel_gradient(x, gradient, kernel.shape, rate, stride))


_by_rows.defvjp(_by_rows_forward, _by_rows_backward)


def _kernel_gradient(x, gradient, shape, rate, stride):
    """The product of all windows with the gradient, a few rows at a time."""
    size, span = shape[0], rate * (shape[0] - 1)
    batch, rows, columns, features = gradient.shape
    at_once = min(-(-max(AT_ONCE, 2 * features) // (batch * columns)), rows)
    steps = -(-rows // at_once)
    below = stride * (steps * at_once - 1) + 1 + span - span // 2 - x.shape[1]
    x = jnp.pad(x, ((0, 0), (span // 2, max(below, 0)), (span // 2, span // 2), (0, 0)))
    gradient = jnp.pad(gradient, ((0, 0), (0, steps * at_once - rows), (0, 0), (0, 0)))
    height, width = (stride * (n - 1) + 1 for n in (at_once, columns))

    def add(step, total):
        first = step * at_once
        part = lax.dynamic_slice_in_dim(gradient, first, at_once, 1)
        seen = lax.dynamic_slice_in_dim(x, stride * first, height + span, 1)
        windows = [
            seen[:, i : i + height : stride, j : j + width : stride]
            for i, j in _offsets(size, rate)
        ]
        return total + lax.dot_general(jnp.concatenate(windows, -1), part, POSITIONS)

    zero = jnp.zeros((size * size * shape[2], features), gradient.dtype)
    return lax.fori_loop(0, steps, add, zero).reshape(shape)


@jax.custom_vjp
def add_relu(
    x: Float[jax.Array, "b h w c"], y: Float[jax.Array, "b h w c"]
) -> Float[jax.Array, "b h w c"]:
    """layers.add_relu, computed once: else every block would add up all blocks before it again."""
    return computed_once(layers.add_relu)(x, y)


def _add_relu_forward(x, y):
    total = add_relu(x, y)
    return total, total


def _add_relu_backward(total, gradient):
    gradient = jnp.where(total > 0, gradient, 0)
    return gradient, gradient


add_relu.defvjp(_add_relu_forward, _add_relu_backward)


def computed_once(function: Callable) -> Callable:
    """Keeps XLA on CPUs from computing something cheap again inside all that reads it."""

    def call(*arguments):
        with set_xla_metadata(inlineable="false"):
            return jax.jit(function)(*arguments)

    return call


def _offsets(size: int, rate: int) -> list[tuple[int, int]]:
    """Where each tap of a kernel reads, from the top left of its window."""
    steps = range(0, size * rate, rate)
    return [(i, j) for i in steps for j in steps]
