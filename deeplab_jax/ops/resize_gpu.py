"""Bilinear resizing, written for XLA on GPUs.

`jax.image.scale_and_translate` multiplies by a matrix of weights for each axis. Each row of these
matrices holds at most two numbers other than zero, and XLA does not compile some of the products
for GPUs. Here every output pixel gathers its two rows and two columns. Where scale and translation
are numbers, positions and weights are constants of the program, and the gradient gathers too: every
input pixel adds up the output pixels that it contributed to.
"""

from functools import partial
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float


def scale_and_translate(
    x: Float[jax.Array, "b h w c"],
    size: tuple[int, int],
    *,
    scale: tuple[float, float],
    translation: tuple[float, float] = (0.0, 0.0),
) -> Float[jax.Array, "b h2 w2 c"]:
    """Values of `jax.image.scale_and_translate` with method linear and without antialiasing.

    The axes are rows and columns, to which `size`, `scale` and `translation` apply in this order.
    Types of less than 32 bits are computed in float32. Only reverse differentiation is defined.
    """
    lengths = zip(x.shape[1:3], size, scale, translation, strict=True)
    return _interpolate(x, tuple((n, out, float(s), float(t)) for n, out, s, t in lengths))


def scale_and_translate_by(
    x: Float[jax.Array, "b h w c"],
    scale: Float[jax.Array, "2"],
    translation: Float[jax.Array, "2"],
    *,
    size: tuple[int, int],
) -> Float[jax.Array, "b h2 w2 c"]:
    """`scale_and_translate` by numbers that the program computes; its gradient scatters."""
    dtype = jnp.promote_types(x.dtype, jnp.float32)
    y = x.astype(dtype)
    for axis, (length, out) in enumerate(zip(x.shape[1:3], size, strict=True), start=1):
        factor, shift = scale[axis - 1].astype(dtype), translation[axis - 1].astype(dtype)
        y = _sum_of_taps(y, axis, *taps(length, out, factor, shift, jnp, dtype))
    return y.astype(x.dtype)


@partial(jax.custom_vjp, nondiff_argnums=(1,))
def _interpolate(x, axes):
    return _weighted_sum(x, [taps(*axis) for axis in axes])


def _interpolate_forward(x, axes):
    return _interpolate(x, axes), None


def _interpolate_backward(axes, _, gradient):
    return (_weighted_sum(gradient, [_transposed_taps(*axis) for axis in axes]),)


_interpolate.defvjp(_interpolate_forward, _interpolate_backward)


def _weighted_sum(x, taps):
    """For both axes in turn, sums of `x` at the positions and with the weights of `taps`."""
    dtype = x.dtype
    x = x.astype(jnp.promote_types(dtype, jnp.float32))
    for axis, (positions, weights) in enumerate(taps, start=1):
        x = _sum_of_taps(x, axis, positions, weights)
    return x.astype(dtype)


def _sum_of_taps(x, axis, positions, weights):
    along = [1] * x.ndim
    along[axis] = -1
    terms = (
        jnp.take(x, position, axis, mode="clip") * weight.reshape(along).astype(x.dtype)
        for position, weight in zip(positions, weights, strict=True)
    )
    return cast(jax.Array, sum(terms))


def taps(length, out, scale, translation, numpy: Any = np, dtype: Any = np.float64):
    """Positions `[2, out]` in the input and their weights, by NumPy or JAX.

    At a border the tap outside has weight 0 and the one inside 1. Samples that lie more than half a
    pixel outside are 0, as `jax.image.scale_and_translate` defines them.
    """
    sample = (numpy.arange(out, dtype=dtype) + 0.5 - translation) / scale - 0.5
    seen = (sample >= -0.5) & (sample <= length - 0.5)
    inside = numpy.clip(sample, 0, length - 1)
    first = numpy.minimum(numpy.floor(inside).astype(np.int32), max(length - 2, 0))
    second = numpy.minimum(first + 1, length - 1)
    weight = inside - first
    return numpy.stack([first, second]), numpy.stack([(1 - weight) * seen, weight * seen])


def _transposed_taps(length, out, scale, translation):
    """For each input position those of the outputs that it contributes to, and the weights.

    Both are `[m, length]`; positions with fewer than m outputs have weights of 0.
    """
    matrix = np.zeros((out, length))
    for position, weight in zip(*taps(length, out, scale, translation), strict=True):
        np.add.at(matrix, (np.arange(out), position), weight)
    count = max(int((matrix != 0).sum(0).max(initial=0)), 1)
    positions = np.argsort(matrix == 0, axis=0, kind="stable")[:count]
    return positions, np.take_along_axis(matrix, positions, 0)
