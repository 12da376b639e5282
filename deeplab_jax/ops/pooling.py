"""Max pooling whose gradient is comparisons where XLA's own is slow or differs from run to run.

On CPUs XLA stores an index for every pixel; on GPUs it uses atomic additions, whose order varies.
On TPUs it has an operation for this gradient. The definition is plain.max_pool.
"""

from functools import partial
from itertools import product

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from deeplab_jax.ops import plain
from deeplab_jax.ops.xla import by_platform


def max_pool(
    x: Float[jax.Array, "b h w c"], *, kernel: int = 3, stride: int, padding: int = 1
) -> Float[jax.Array, "b h2 w2 c"]:
    """Maximum over kernel x kernel windows without the padding, sizes rounded up as in Caffe.

    The gradient of a window goes to the first of its largest pixels, counted row by row.
    """
    return _max_pool(x, kernel, stride, padding)


@partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3))
def _max_pool(x, kernel, stride, padding):
    return plain.max_pool(x, kernel=kernel, stride=stride, padding=padding)


def _max_pool_forward(x, kernel, stride, padding):
    return _max_pool(x, kernel, stride, padding), x


def _max_pool_backward(kernel, stride, padding, x, gradient):
    window = {"kernel": kernel, "stride": stride, "padding": padding}
    by_comparison = partial(_gradient_by_comparison, **window)
    by_definition = partial(_gradient_by_definition, **window)
    return by_platform(x, gradient, default=by_comparison, tpu=by_definition)


def _gradient_by_definition(x, gradient, *, kernel, stride, padding):
    pool = partial(plain.max_pool, kernel=kernel, stride=stride, padding=padding)
    return jax.vjp(pool, x)[1](gradient)


def _gradient_by_comparison(x, gradient, *, kernel, stride, padding):
    batch, rows, columns, channels = gradient.shape
    reach = (kernel - 1) // stride  # windows besides its own that have a pixel
    around = (0, 0), (reach, reach), (reach, reach), (0, 0)
    first = _first_largest(x, kernel, stride, padding, rows, columns)
    first = jnp.pad(first, around, constant_values=-1)
    gradient = jnp.pad(gradient, around)

    def of_pixels(row, column):
        """Sums over the windows of those pixels that are (row, column) in one of them."""
        total = jnp.zeros((batch, rows + reach, columns + reach, channels), gradient.dtype)
        for i, j in product(range(row, kernel, stride), range(column, kernel, stride)):
            down, along = reach - i // stride, reach - j // stride
            windows = np.s_[:, down : down + rows + reach, along : along + columns + reach]
            total += jnp.where(first[windows] == i * kernel + j, gradient[windows], 0)
        return total

    sums = [[of_pixels(i, j) for j in range(stride)] for i in range(stride)]
    sums = jnp.stack([jnp.stack(row, 3) for row in sums], 2)
    sums = sums.reshape(batch, stride * (rows + reach), -1, channels)
    sums = sums[:, padding : padding + x.shape[1], padding : padding + x.shape[2]]
    beyond = [(0, n - m) for n, m in zip(x.shape[1:3], sums.shape[1:3], strict=True)]
    return (jnp.pad(sums, ((0, 0), *beyond, (0, 0))),)


def _first_largest(x, kernel, stride, padding, rows, columns):
    """Which pixel of each window is the first of the largest, counted row by row."""
    lengths = [stride * (n - 1) + 1 for n in (rows, columns)]
    after = [
        max(n + kernel - 1 - padding - m, 0) for n, m in zip(lengths, x.shape[1:3], strict=True)
    ]
    around = (0, 0), (padding, after[0]), (padding, after[1]), (0, 0)
    x = jnp.pad(x, around, constant_values=-jnp.inf)
    shape = (x.shape[0], rows, columns, x.shape[3])
    largest, first = jnp.full(shape, -jnp.inf, x.dtype), jnp.zeros(shape, jnp.int8)
    for number, (i, j) in enumerate(product(range(kernel), repeat=2)):
        seen = x[:, i : i + lengths[0] : stride, j : j + lengths[1] : stride]
        first = jnp.where(seen > largest, jnp.int8(number), first)
        largest = jnp.maximum(largest, seen)
    return first


_max_pool.defvjp(_max_pool_forward, _max_pool_backward)
