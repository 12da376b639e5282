"""Atrous convolution written for XLA on CPUs: same values as layers.atrous_conv, other operations.

XLA's CPU compiler turns the weight gradient of a convolution into a convolution with a window
as large as the image, and runs that many times slower than the machine allows. Here

- a 1x1 convolution is a matrix product;
- a convolution to few channels, such as the classifier's, is one product to all its taps, whose
  results are shifted and added: what moves is narrow;
- a long convolution of many channels is Winograd's, which multiplies 16 times where 3x3 taps on 2x2
  pixels do 36 times; or, at a rate so large that many taps fall outside, a product for each tap
  and only where it sees the map;
- any other is lax's, with a weight gradient that is one product for every few rows.
"""

from collections.abc import Callable
from functools import partial
from math import prod

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental.xla_metadata import set_xla_metadata
from jaxtyping import Float

from deeplab_jax.models import layers, pooling

POSITIONS = (((0, 1, 2), (0, 1, 2)), ((), ()))
"""Dot dimensions: sum over photographs, rows and columns."""

KEEP_REMAT = {"xla_disable_hlo_passes": "cse_barrier_expander"}
"""Compiler options without which XLA's CPU compiler merges what is computed a second time to save
memory with the first time, and saves nothing."""

WIDE = 128 * 256
"""Channels times features of a kernel from which moving pixels costs less than products saved."""

LONG = 2e8
"""These times the pixels, from which an update gains more than its larger program takes to compile:
with the 22 shorter ones of a ResNet-101 on one photograph of 321 pixels, at three scales, the start
would take half a minute more. Without gradients the program stays small."""

TO_TILE, TO_ADD = 1.25, 1.1
"""Time of Winograd's products and of what surrounds them over that of the products; the same for
products tap by tap."""

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
    if stride == 1 and channels * features >= WIDE:
        short = channels * features * prod(x.shape[:3]) < LONG
        return (_short if short else _with_fewest_products)(x, kernel, rate)
    return _by_rows(x, kernel, rate, stride)


def _with_fewest_products(x, kernel, rate):
    size, lengths = kernel.shape[0], x.shape[1:3]
    seen = (sum(stop - start for start, stop, _ in _seen(n, size, rate)) for n in lengths)
    cost = {_by_rows: size**2 * prod(lengths), _by_taps: TO_ADD * prod(seen)}
    if size == 3 and x.dtype.itemsize >= 4:  # half precision would suffer from the sums
        cost[_winograd] = TO_TILE * 16 * prod(rate * _tiles(n, rate) for n in lengths)
    return min(cost, key=cost.get)(x, kernel, rate)


@jax.custom_vjp
def _pointwise(x, kernel):
    return x @ kernel


def _pointwise_forward(x, kernel):
    return x @ kernel, (x, kernel)


def _pointwise_backward(saved, gradient):
    x, kernel = saved
    return gradient @ kernel.T, _weight_gradient(x, gradient)


def _weight_gradient(x, gradient):
    """[i, o] of [..., i] and [..., o]. The narrow one comes first, which XLA transposes."""
    x, gradient = _as_rows(x), _as_rows(gradient)
    if x.shape[1] <= gradient.shape[1]:
        return x.T @ gradient
    # without the barrier XLA would exchange the factors again
    return lax.optimization_barrier(gradient.T @ x).T


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
def _by_rows(x, kernel, rate, stride=1):
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
        pair = jnp.concatenate(windows, -1), part
        return total + lax.dot_general(*(reversed(pair) if turned else pair), POSITIONS)

    wide = size * size * shape[2]
    turned = features < wide  # XLA transposes the first factor: it gets the narrow one
    zero = jnp.zeros((features, wide) if turned else (wide, features), gradient.dtype)
    total = lax.fori_loop(0, steps, add, zero)
    return (total.T if turned else total).reshape(shape)


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def _short(x, kernel, rate):
    """With fewest products, but by rows where gradients are taken."""
    return _with_fewest_products(x, kernel, rate)


def _short_forward(x, kernel, rate):
    return _by_rows_forward(x, kernel, rate, 1)


def _short_backward(rate, saved, gradient):
    return _by_rows_backward(rate, 1, saved, gradient)


_short.defvjp(_short_forward, _short_backward)


def _by_taps(x, kernel, rate):
    size, (rows, columns) = kernel.shape[0], x.shape[1:3]
    total = 0
    for i, (top, bottom, down) in enumerate(_seen(rows, size, rate)):
        for j, (left, right, along) in enumerate(_seen(columns, size, rate)):
            part = x[:, top + down : bottom + down, left + along : right + along]
            around = (0, 0), (top, rows - bottom), (left, columns - right), (0, 0)
            total += jnp.pad(_pointwise(part, kernel[i, j]), around)
    return total


def _seen(length, size, rate):
    """For each tap: the pixels, from and up to, that it has one of the map for, and how far off."""
    offsets = [rate * tap - rate * (size - 1) // 2 for tap in range(size)]
    return [(min(max(0, -o), length), max(min(length, length - o), 0), o) for o in offsets]


def _input_tile(a, b, c, d):
    return a - c, b + c, c - b, b - d


def _kernel_tile(a, b, c):
    return a, (a + b + c) / 2, (a - b + c) / 2, c


def _output_tile(a, b, c, d):
    return a + b + c, b - c - d


def _output_gradient_tile(a, b):
    return a, a + b, a - b, -b


def _kernel_gradient_tile(a, b, c, d):
    return a + (b + c) / 2, (b - c) / 2, (b + c) / 2 + d


MIRRORED = (3, 1, 2, 0)
"""Where _kernel_tile puts what it makes of a kernel read backwards."""


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def _winograd(x, kernel, rate):
    """F(2x2, 3x3) of Lavin and Gray (arXiv 1509.09308), on every rate-th pixel."""
    return computed_once(_winograd_value, rate=rate)(x, kernel)


def _winograd_value(x, kernel, *, rate):
    return _convolve_tiles(x, _both_ways(_kernel_tile, kernel), rate)


def _winograd_forward(x, kernel, rate):
    return _winograd(x, kernel, rate), (x, kernel)


def _winograd_backward(rate, saved, gradient):
    x, kernel = saved
    return (
        computed_once(_winograd_input_gradient, rate=rate)(gradient, kernel),
        computed_once(_winograd_kernel_gradient, rate=rate)(x, gradient),
    )


def _winograd_input_gradient(gradient, kernel, *, rate):
    kernels = _both_ways(_kernel_tile, kernel)
    return _convolve_tiles(gradient, [[kernels[i][j].T for j in MIRRORED] for i in MIRRORED], rate)


def _winograd_kernel_gradient(x, gradient, *, rate):
    inputs = _both_ways(_input_tile, _tile(x, 4, rate))
    gradients = _both_ways(_output_gradient_tile, _tile(gradient, 2, rate))
    products = [
        [_weight_gradient(a, b) for a, b in zip(*pair, strict=True)]
        for pair in zip(inputs, gradients, strict=True)
    ]
    return jnp.stack([jnp.stack(row) for row in _both_ways(_kernel_gradient_tile, products)])


_winograd.defvjp(_winograd_forward, _winograd_backward)


def _convolve_tiles(x, kernels, rate):
    inputs = _both_ways(_input_tile, _tile(x, 4, rate))
    products = [
        [(_as_rows(a) @ k).reshape(*a.shape[:-1], -1) for a, k in zip(*pair, strict=True)]
        for pair in zip(inputs, kernels, strict=True)
    ]
    outputs = _both_ways(_output_tile, products)
    outputs = jnp.stack([jnp.stack(row, 4) for row in outputs], 2)
    batch, tiles_down, _, _, tiles_along, _, _, features = outputs.shape
    outputs = outputs.reshape(batch, 2 * rate * tiles_down, 2 * rate * tiles_along, features)
    return outputs[:, : x.shape[1], : x.shape[2]]


def _tile(x, size, rate):
    """Pixel [i][j] of all tiles of size x size, as [b, tiles down, rate, tiles along, rate, c].

    Tiles start at every second of the pixels that a rate holds together; those of 4x4 start one
    such pixel further out than those of 2x2.
    """
    before = rate * (size - 2) // 2
    down, along = (_tiles(n, rate) for n in x.shape[1:3])
    lengths = [2 * n + size - 2 for n in (down, along)]
    after = [rate * n - m - before for n, m in zip(lengths, x.shape[1:3], strict=True)]
    x = jnp.pad(x, ((0, 0), (before, after[0]), (before, after[1]), (0, 0)))
    x = x.reshape(x.shape[0], lengths[0], rate, lengths[1], rate, x.shape[3])
    return [
        [x[:, i : i + 2 * down : 2, :, j : j + 2 * along : 2] for j in range(size)]
        for i in range(size)
    ]


def _tiles(length, rate):
    return -(-length // (2 * rate))


def _as_rows(x):
    return x.reshape(-1, x.shape[-1])


def _both_ways(transform, grid):
    """The transform of the rows of a grid of arrays, then of its columns."""
    rows = [transform(*row) for row in grid]
    return list(zip(*(transform(*column) for column in zip(*rows, strict=True)), strict=True))


max_pool = pooling.max_pool


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


def computed_once(function: Callable, **static) -> Callable:
    """Keeps XLA on CPUs from computing something cheap again inside all that reads it.

    Keywords are static. Calls of one function with equal shapes are traced and lowered once.
    """
    compiled = jax.jit(function, static_argnames=tuple(static))

    def call(*arguments):
        with set_xla_metadata(inlineable="false"):
            return compiled(*arguments, **static)

    return call


def _offsets(size: int, rate: int) -> list[tuple[int, int]]:
    """Where each tap of a kernel reads, from the top left of its window."""
    steps = range(0, size * rate, rate)
    return [(i, j) for i in steps for j in steps]
