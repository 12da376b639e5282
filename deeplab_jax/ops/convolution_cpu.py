"""Atrous convolution written for XLA on CPUs: the values of plain.atrous_conv, other operations.

XLA's CPU compiler turns the weight gradient of a convolution into a convolution with a window
as large as the image, and runs that many times slower than the machine allows. Here

- a 1x1 convolution is a matrix product;
- a convolution to few channels, such as the classifier's, is one product with the weights of all
  taps, whose narrow results are shifted and added;
- a long convolution of many channels is Winograd's, which multiplies 16 times where 3x3 taps on 2x2
  pixels do 36 times; or, at a rate so large that many taps fall outside, a product for each tap
  and only where it sees the map;
- any other is lax's, with a weight gradient that is one product for every few rows.
"""

from collections.abc import Callable
from math import prod
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Float

from deeplab_jax.ops import plain
from deeplab_jax.ops.xla import computed_once

POSITIONS = (((0, 1, 2), (0, 1, 2)), ((), ()))
"""Dot dimensions: sum over photographs, rows and columns."""

WIDE = 128 * 256
"""Channels times features from which Winograd, or a product for each tap, is worth its overhead."""

LONG = 2e8
"""Channels times features times pixels from which those forms are used in training. For smaller
convolutions, such as 22 of ResNet-101 at 321 pixels, compiling the larger program (half a minute at
three scales) takes longer than is saved. Programs without gradients are small."""

TO_TILE, TO_ADD = 1.25, 1.1
"""Time of Winograd's form, its transforms included, over that of its products alone; and the same
for the products tap by tap."""

AT_ONCE = 80
"""Least number of positions that one product of the weight gradient sums over; also at least twice
the number of features. So the sum over products costs little."""


class Form(NamedTuple):
    """One way to compute a convolution.

    `value(x, kernel, rate, stride)`, and `gradients(x, kernel, gradient, rate, stride)` with
    respect to `x` and `kernel`. All but `POINTWISE` and `BY_ROWS` have stride 1.
    """

    value: Callable
    gradients: Callable


def inference(
    x: Float[jax.Array, "b h w i"], kernel: Float[jax.Array, "k k i o"], *, rate: int, stride: int
) -> Float[jax.Array, "b h2 w2 o"]:
    """plain.atrous_conv where no gradient is taken."""
    return choose(x, kernel, rate, stride, trained=False).value(x, kernel, rate, stride)


def training(
    x: Float[jax.Array, "b h w i"], kernel: Float[jax.Array, "k k i o"], *, rate: int, stride: int
) -> Float[jax.Array, "b h2 w2 o"]:
    """plain.atrous_conv where gradients are taken: a program that compiles sooner."""
    return choose(x, kernel, rate, stride, trained=True).value(x, kernel, rate, stride)


def gradients(
    x: Float[jax.Array, "b h w i"],
    kernel: Float[jax.Array, "k k i o"],
    gradient: Float[jax.Array, "b h2 w2 o"],
    *,
    rate: int,
    stride: int,
) -> tuple[Float[jax.Array, "b h w i"], Float[jax.Array, "k k i o"]]:
    """Gradients with respect to `x` and `kernel`, of the `gradient` with respect to the output."""
    form = choose(x, kernel, rate, stride, trained=True)
    return form.gradients(x, kernel, gradient, rate, stride)


def choose(
    x: Float[jax.Array, "b h w i"],
    kernel: Float[jax.Array, "k k i o"],
    rate: int,
    stride: int,
    *,
    trained: bool,
) -> Form:
    """The fastest form for these shapes."""
    size, _, channels, features = kernel.shape
    if size == 1:
        return POINTWISE
    if stride == 1 and 2 * features <= channels:
        return NARROW
    if stride > 1 or channels * features < WIDE:
        return BY_ROWS
    if trained and channels * features * prod(x.shape[:3]) < LONG:
        return BY_ROWS
    return with_fewest_products(x, kernel, rate)


def with_fewest_products(
    x: Float[jax.Array, "b h w i"], kernel: Float[jax.Array, "k k i o"], rate: int
) -> Form:
    """Of the forms for many channels at stride 1 the one that multiplies least."""
    size, lengths = kernel.shape[0], x.shape[1:3]
    seen = (sum(stop - start for start, stop, _ in _seen(n, size, rate)) for n in lengths)
    cost = {BY_ROWS: size**2 * prod(lengths), BY_TAPS: TO_ADD * prod(seen)}
    if size == 3 and x.dtype.itemsize >= 4:  # Winograd's sums lose too much in half precision
        cost[WINOGRAD] = TO_TILE * 16 * prod(rate * _tiles(n, rate) for n in lengths)
    return min(cost, key=cost.__getitem__)


def _pointwise(x, kernel, rate, stride):
    return x[:, ::stride, ::stride] @ kernel[0, 0]


def _pointwise_gradients(x, kernel, gradient, rate, stride):
    kernel_gradient = _weight_gradient(x[:, ::stride, ::stride], gradient)
    x_gradient = gradient @ kernel[0, 0].T
    if stride > 1:
        spread = [(0, n - stride * (m - 1) - 1, stride - 1) for n, m in _lengths(x, gradient)]
        zero = jnp.zeros((), x_gradient.dtype)
        x_gradient = lax.pad(x_gradient, zero, [(0, 0, 0), *spread, (0, 0, 0)])
    return x_gradient, kernel_gradient[None, None]


def _lengths(x, y):
    """Rows, then columns, of both."""
    return list(zip(x.shape[1:3], y.shape[1:3], strict=True))


POINTWISE = Form(_pointwise, _pointwise_gradients)


def _weight_gradient(x, gradient):
    """[i, o] of [..., i] and [..., o]. The narrow one comes first, which XLA transposes."""
    x, gradient = _as_rows(x), _as_rows(gradient)
    if x.shape[1] <= gradient.shape[1]:
        return x.T @ gradient
    # without the barrier XLA would exchange the factors again
    return lax.optimization_barrier(gradient.T @ x).T


def _narrow(x, kernel, rate, stride):
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


def _narrow_gradients(x, kernel, gradient, rate, stride):
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


NARROW = Form(_narrow, _narrow_gradients)


def _by_rows(x, kernel, rate, stride):
    return plain.atrous_conv(x, kernel, rate=rate, stride=stride)


def _by_rows_gradients(x, kernel, gradient, rate, stride):
    _, transpose = jax.vjp(lambda x: _by_rows(x, kernel, rate, stride), x)
    return (*transpose(gradient), _kernel_gradient(x, gradient, kernel.shape, rate, stride))


BY_ROWS = Form(_by_rows, _by_rows_gradients)


def _kernel_gradient(x, gradient, shape, rate, stride):
    """The product of all windows with the gradient, a few rows at a time.

    The sum is float32 at least, whatever the type of the factors.
    """
    wide_type = jnp.promote_types(gradient.dtype, jnp.float32)
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
        inputs = jnp.concatenate(windows, -1)
        left, right = (part, inputs) if turned else (inputs, part)
        return total + lax.dot_general(left, right, POSITIONS, preferred_element_type=wide_type)

    wide = size * size * shape[2]
    turned = features < wide  # XLA transposes the first factor: it gets the narrow one
    zero = jnp.zeros((features, wide) if turned else (wide, features), wide_type)
    total = lax.fori_loop(0, steps, add, zero).astype(gradient.dtype)
    return (total.T if turned else total).reshape(shape)


def _by_taps(x, kernel, rate, stride):
    total = 0
    for i, j, at, seen, around in _parts(x, kernel, rate):
        total += jnp.pad(x[seen] @ kernel[i, j], around(at))
    return total


def _by_taps_gradients(x, kernel, gradient, rate, stride):
    size = kernel.shape[0]
    x_gradient = 0
    unseen = jnp.zeros(kernel.shape[2:], kernel.dtype)
    taps = [[unseen] * size for _ in range(size)]
    for i, j, at, seen, around in _parts(x, kernel, rate):
        x_gradient += jnp.pad(gradient[at] @ kernel[i, j].T, around(seen))
        taps[i][j] = _weight_gradient(x[seen], gradient[at])
    return x_gradient, jnp.stack([jnp.stack(row) for row in taps])


BY_TAPS = Form(_by_taps, _by_taps_gradients)


def _parts(x, kernel, rate):
    """(i, j, at, seen, around) of each tap that sees the map: at the pixels `at` it multiplies
    the pixels `seen`.

    `around(part)` is the padding that puts such a part back in its place.
    """
    size, (rows, columns) = kernel.shape[0], x.shape[1:3]

    def around(part):
        _, down, along = part
        return (
            *((0, 0), (down.start, rows - down.stop)),
            *((along.start, columns - along.stop), (0, 0)),
        )

    for i, (top, bottom, down) in enumerate(_seen(rows, size, rate)):
        for j, (left, right, along) in enumerate(_seen(columns, size, rate)):
            if bottom <= top or right <= left:
                continue
            at = slice(None), slice(top, bottom), slice(left, right)
            seen = (
                slice(None),
                slice(top + down, bottom + down),
                slice(left + along, right + along),
            )
            yield i, j, at, seen, around


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


REVERSED = (3, 1, 2, 0)
"""Where _kernel_tile puts what it makes of a kernel read backwards."""


def _winograd(x, kernel, rate, stride):
    """F(2x2, 3x3) of Lavin and Gray (arXiv 1509.09308), on every rate-th pixel."""
    return computed_once(_winograd_value, rate=rate)(x, kernel)


def _winograd_value(x, kernel, *, rate):
    return _convolve_tiles(x, _both_ways(_kernel_tile, kernel), rate)


def _winograd_gradients(x, kernel, gradient, rate, stride):
    return (
        computed_once(_winograd_input_gradient, rate=rate)(gradient, kernel),
        computed_once(_winograd_kernel_gradient, rate=rate)(x, gradient),
    )


def _winograd_input_gradient(gradient, kernel, *, rate):
    kernels = _both_ways(_kernel_tile, kernel)
    return _convolve_tiles(gradient, [[kernels[i][j].T for j in REVERSED] for i in REVERSED], rate)


def _winograd_kernel_gradient(x, gradient, *, rate):
    inputs = _both_ways(_input_tile, _tile(x, 4, rate))
    gradients = _both_ways(_output_gradient_tile, _tile(gradient, 2, rate))
    products = [
        [_weight_gradient(a, b) for a, b in zip(*pair, strict=True)]
        for pair in zip(inputs, gradients, strict=True)
    ]
    return jnp.stack([jnp.stack(row) for row in _both_ways(_kernel_gradient_tile, products)])


WINOGRAD = Form(_winograd, _winograd_gradients)


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


def _offsets(size: int, rate: int) -> list[tuple[int, int]]:
    """Where each tap of a kernel reads, from the top left of its window."""
    steps = range(0, size * rate, rate)
    return [(i, j) for i in steps for j in steps]
