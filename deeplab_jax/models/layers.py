"""Operations of the network as plain functions over NHWC arrays, aligned as in the Caffe release.

Nothing here pads "SAME": padding is explicit, because the two differ on even sizes and
shift every feature after them.

Photographs of different sizes can lie at the top left of arrays of one size. `sizes` says which
rows and columns are theirs: `erase` puts the zeros beyond them that a convolution at their own size
would see, `extend` the last row and column, which a resizing would. Where it is None all of the
array counts.
"""

from fractions import Fraction
from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Bool, Float, Int, Integer, Key

Alignment = Literal["half_pixel", "corners"]
Norm = Literal["none", "frozen", "trained"]
Sizes = Int[jax.Array, "b 2"]

EPSILON = 1e-5
"""Added to the variance, as in Caffe's BatchNorm layer."""


def atrous_conv(
    x: Float[jax.Array, "b h w i"],
    kernel: Float[jax.Array, "k k i o"],
    *,
    rate: int = 1,
    stride: int = 1,
) -> Float[jax.Array, "b h2 w2 o"]:
    """y[i] = sum over k of x[i + rate * k] w[k] (Section 3.1), zero padded to keep the size.

    At stride s the output has ceil(h / s) rows. An even kernel needs an even rate, to be padded
    alike on both sides.
    """
    padding = rate * (kernel.shape[0] - 1) // 2
    return lax.conv_general_dilated(
        x,
        kernel,
        window_strides=(stride, stride),
        padding=[(padding, padding)] * 2,
        rhs_dilation=(rate, rate),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )


def strided_size(size: int | Sizes, stride: int) -> int | Sizes:
    """Rows that atrous_conv gives."""
    return -(-size // stride)


def pooled_size(
    size: int | Sizes, *, kernel: int = 3, stride: int, padding: int = 1
) -> int | Sizes:
    """Rows that Caffe's pooling gives: rounded up, less a window that starts in the padding.

    >>> pooled_size(512, kernel=3, stride=2, padding=1)
    257
    """
    out = -(-(size + 2 * padding - kernel) // stride) + 1
    return out - ((out - 1) * stride >= size + padding) if padding else out


def erase(x: Float[jax.Array, "b h w c"], sizes: Sizes | None) -> Float[jax.Array, "b h w c"]:
    """Zero beyond the sizes."""
    if sizes is None:
        return x
    rows = jnp.arange(x.shape[1]) < sizes[:, :1]
    columns = jnp.arange(x.shape[2]) < sizes[:, 1:]
    return jnp.where((rows[:, :, None] & columns[:, None, :])[..., None], x, 0)


def extend(x: Float[jax.Array, "b h w c"], sizes: Sizes | None) -> Float[jax.Array, "b h w c"]:
    """The last row and column again and again beyond the sizes."""
    if sizes is None:
        return x

    def repeat_last(x, size):
        rows, columns = (jnp.minimum(jnp.arange(n), size[i] - 1) for i, n in enumerate(x.shape[:2]))
        return x[rows][:, columns]

    return jax.vmap(repeat_last)(x, sizes)


def mirror(x: Float[jax.Array, "b h w c"], sizes: Sizes | None) -> Float[jax.Array, "b h w c"]:
    """Left and right exchanged within the sizes; beyond them stands anything."""
    if sizes is None:
        return x[:, :, ::-1]
    columns = jnp.maximum(sizes[:, 1:] - 1 - jnp.arange(x.shape[2]), 0)
    return jnp.take_along_axis(x, columns[:, None, :, None], axis=2)


def max_pool(
    x: Float[jax.Array, "b h w c"], *, kernel: int = 3, stride: int
) -> Float[jax.Array, "b h2 w2 c"]:
    """Maximum over kernel x kernel windows, sizes rounded up as in Caffe; padding never wins."""
    padding = (kernel - 1) // 2

    def around(size: int) -> tuple[int, int]:
        out = pooled_size(size, kernel=kernel, stride=stride, padding=padding)
        return padding, max((out - 1) * stride + kernel - size - padding, 0)

    return lax.reduce_window(
        x,
        np.array(-np.inf, x.dtype),
        lax.max,
        (1, kernel, kernel, 1),
        (1, stride, stride, 1),
        [(0, 0), around(x.shape[1]), around(x.shape[2]), (0, 0)],
    )


def average_pool(x: Float[jax.Array, "b h w c"]) -> Float[jax.Array, "b h w c"]:
    """Mean of each 3x3 window at stride 1; the divisor is 9 at the border too, as in Caffe."""
    total = lax.reduce_window(
        x,
        np.array(0, x.dtype),
        lax.add,
        (1, 3, 3, 1),
        (1, 1, 1, 1),
        [(0, 0), (1, 1), (1, 1), (0, 0)],
    )
    return total / 9


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
    """Batch norm with the statistics given, as what multiplies and what is added."""
    factor = scale * lax.rsqrt(variance + EPSILON)
    return factor, bias - mean * factor


def affine(
    x: Float[jax.Array, "b h w c"], factor: Float[jax.Array, " c"], offset: Float[jax.Array, " c"]
) -> Float[jax.Array, "b h w c"]:
    return x * factor.astype(x.dtype) + offset.astype(x.dtype)


def add_relu(
    x: Float[jax.Array, "b h w c"], y: Float[jax.Array, "b h w c"]
) -> Float[jax.Array, "b h w c"]:
    """The end of a residual block."""
    return jax.nn.relu(x + y)


def dropout(
    x: Float[jax.Array, "b h w c"], keys: Key[jax.Array, " b"], *, rate: float
) -> Float[jax.Array, "b h w c"]:
    """Zeroes a part of the elements and scales the rest up; one key a photograph.

    So a photograph's mask does not depend on which device it lies on.
    """
    keep = jax.vmap(lambda key: jax.random.bernoulli(key, 1 - rate, x.shape[1:]))(keys)
    return jnp.where(keep, x / (1 - rate), 0)


def resize_bilinear(
    x: Float[jax.Array, "b h w c"],
    size: tuple[int, int],
    *,
    alignment: Alignment,
    sizes: Sizes | None = None,
    new_sizes: Sizes | None = None,
) -> Float[jax.Array, "b h2 w2 c"]:
    """Two-tap bilinear interpolation to `size` (rows, columns), without antialiasing.

    `half_pixel` is `jax.image.resize`; `corners` is Caffe's Interp layer: the centres of the
    corner pixels stay corners. With `sizes` each photograph is resized by itself, to its row of
    `new_sizes`; beyond these stands anything.
    """
    shape = (x.shape[0], *size, x.shape[3])
    if x.shape == shape and sizes is new_sizes:
        return x
    if sizes is not None:
        return _resize_each(x, size, sizes, new_sizes, alignment)
    if alignment == "half_pixel":
        return jax.image.resize(x, shape, "bilinear", antialias=False)
    scale = [_corner_scale(*sizes) for sizes in zip(x.shape[1:3], size, strict=True)]
    return _scale_and_translate(x, size, scale, [0.5 - 0.5 * s for s in scale])


def _resize_each(x, size, sizes, new_sizes, alignment):
    dtype = jnp.promote_types(x.dtype, jnp.float32)
    old, new = sizes.astype(dtype), new_sizes.astype(dtype)
    scale, translation = new / old, jnp.zeros_like(old)
    if alignment == "corners":
        # Of a single row or column every sample is nearer to pixel 0 than to the next.
        scale = jnp.maximum(new - 1, 0.25) / jnp.maximum(old - 1, 0.25)
        translation = 0.5 - 0.5 * scale
    resize = jax.vmap(lambda x, s, t: _scale_and_translate(x[None], size, s, t)[0])
    return resize(extend(x, sizes), scale, translation)


def scaled_size(size: int | Sizes, factor: float, *, alignment: Alignment) -> int | Sizes:
    """Rows that `rescale` gives.

    >>> scaled_size(321, 0.75, alignment="corners"), scaled_size(321, 0.75, alignment="half_pixel")
    (241, 240)
    """
    ratio = Fraction(factor).limit_denominator(64)
    if alignment == "half_pixel":
        return size * ratio.numerator // ratio.denominator
    return (size - 1) // ratio.denominator * ratio.numerator + 1


def rescale(
    x: Float[jax.Array, "b h w c"],
    factor: float,
    *,
    alignment: Alignment,
    sizes: Sizes | None = None,
) -> Float[jax.Array, "b h2 w2 c"]:
    """Bilinear resizing by a factor; `scaled_size` of the sizes are those after it.

    With `half_pixel` the step between samples is exactly 1 / factor, as in PyTorch's
    `interpolate(scale_factor=...)`, whatever the rounding of the size.
    """
    if factor == 1:
        return x
    after = partial(scaled_size, factor=factor, alignment=alignment)
    size, new_sizes = jax.tree.map(after, (x.shape[1:3], sizes))
    if alignment == "corners":
        return resize_bilinear(x, size, alignment=alignment, sizes=sizes, new_sizes=new_sizes)
    return _scale_and_translate(extend(x, sizes), size, [factor, factor], [0.0, 0.0])


def subsample_labels(
    labels: Integer[jax.Array, "b h w"], size: tuple[int, int], *, alignment: Alignment
) -> Integer[jax.Array, "b h2 w2"]:
    """The labels under a score map of `size`: nearest pixel, classes are never mixed.

    With `corners` and sizes 8k + 1 this is `labels[:, ::8, ::8]`.
    """
    rows, columns = (
        _nearest(n, out, alignment) for n, out in zip(labels.shape[1:], size, strict=True)
    )
    return labels[:, rows][:, :, columns]


def _nearest(size: int, out: int, alignment: Alignment) -> np.ndarray:
    if alignment == "half_pixel":
        return (2 * np.arange(out) + 1) * size // (2 * out)
    return np.rint(np.arange(out) * ((size - 1) / max(out - 1, 1))).astype(int)


def _corner_scale(size: int, out: int) -> float:
    if out == 1:
        return 1.0  # samples pixel 0
    return (out - 1) / (size - 1) if size > 1 else 2.0 * out  # every row samples pixel 0


def _scale_and_translate(x, size, scale, translation):
    dtype = jnp.promote_types(x.dtype, jnp.float32)
    return jax.image.scale_and_translate(
        x,
        (x.shape[0], *size, x.shape[3]),
        (1, 2),
        jnp.stack([jnp.asarray(s, dtype) for s in scale]),
        jnp.stack([jnp.asarray(t, dtype) for t in translation]),
        "linear",
        antialias=False,
    ).astype(x.dtype)
