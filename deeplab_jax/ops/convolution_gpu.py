"""The weight gradient of an atrous convolution, written for XLA on GPUs.

XLA recognises a weight gradient, and hands it to cuDNN as such, only where the rate is 1. At a
larger rate it compiles a convolution whose window is the whole feature map. The functions here
compute the same sums in forms that it compiles to a weight gradient of cuDNN or to matrix products.

Arrays are NHWC. `x` is the input before padding and `gradient` the gradient of the output; the
padding is `rate * (kernel_size - 1) // 2` on each side.
"""

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Float

DIMENSIONS = ("NHWC", "HWIO", "NHWC")

POSITIONS = (((0, 1, 2), (0, 1, 2)), ((), ()))
"""Dimensions of a product of two feature maps that sums over photographs, rows and columns."""


def weight_gradient(
    x: Float[jax.Array, "b h w i"],
    gradient: Float[jax.Array, "b h2 w2 o"],
    *,
    kernel_size: int,
    rate: int = 1,
    stride: int = 1,
) -> Float[jax.Array, "k k i o"]:
    """Gradient of `atrous_conv` with respect to its kernel, `[k, k, i, o]`.

    `h2` is ceil(h / stride), and so are the columns. Sums run in the precision that XLA gives to
    a convolution or a product of the dtype of `x`, which is that of the result.

    Of the forms below this chooses the one that the H100's compiled program favours, in float32 and
    bfloat16 alike. A convolution to few channels, such as the classifier's, is one product: it
    reads `x` once, in 4 kernels. Any other is a weight gradient of cuDNN after space to batch, in 4
    kernels, as long as the smaller feature maps have more rows than the kernel; on smaller maps XLA
    would use the gradient as the window of a convolution, and padding multiplies the bytes of `x`
    by up to 5. There products for each tap, in some 20 kernels, do a third of the operations.
    """
    if rate == 1 or kernel_size == 1:
        return of_plain_convolution(x, gradient, kernel_size=kernel_size, stride=stride)
    if stride > 1:
        return by_taps(x, gradient, kernel_size=kernel_size, rate=rate, stride=stride)
    if 2 * gradient.shape[-1] <= x.shape[-1]:
        return by_shifted_gradient(x, gradient, kernel_size=kernel_size, rate=rate)
    if min(x.shape[1:3]) > rate * kernel_size:
        return by_space_to_batch(x, gradient, kernel_size=kernel_size, rate=rate)
    return by_taps(x, gradient, kernel_size=kernel_size, rate=rate)


def of_plain_convolution(x, gradient, *, kernel_size: int, stride: int = 1):
    """The weight gradient at rate 1, in the form that XLA recognises."""
    padding = (kernel_size - 1) // 2
    return _transposed(x, gradient, kernel_size, stride, [(padding, padding)] * 2)


def _transposed(x, gradient, kernel_size, stride, padding):
    def convolve(kernel):
        return lax.conv_general_dilated(
            x, kernel, (stride, stride), padding, dimension_numbers=DIMENSIONS
        )

    shape = (kernel_size, kernel_size, x.shape[-1], gradient.shape[-1])
    (result,) = jax.linear_transpose(convolve, jax.ShapeDtypeStruct(shape, x.dtype))(gradient)
    return result


def by_space_to_batch(x, gradient, *, kernel_size: int, rate: int):
    """As the weight gradient at rate 1 of a batch that is rate * rate times larger.

    Every rate-th row and column form a smaller feature map, on which the convolution has rate 1.
    """
    span = rate * (kernel_size - 1)
    lengths = [-(-n // rate) for n in gradient.shape[1:3]]
    x = _space_to_batch(x, rate, span // 2, [n + kernel_size - 1 for n in lengths])
    gradient = _space_to_batch(gradient, rate, 0, lengths)
    return _transposed(x, gradient, kernel_size, 1, "VALID")


def _space_to_batch(x, rate, before, lengths):
    """`[b * rate * rate, *lengths, c]`; `before` rows and columns of zeros are put in front."""
    batch, rows, columns, channels = x.shape
    after = [rate * n - m - before for n, m in zip(lengths, (rows, columns), strict=True)]
    x = jnp.pad(x, ((0, 0), (before, after[0]), (before, after[1]), (0, 0)))
    x = x.reshape(batch, lengths[0], rate, lengths[1], rate, channels)
    return x.transpose(0, 2, 4, 1, 3, 5).reshape(-1, *lengths, channels)


def by_shifted_gradient(x, gradient, *, kernel_size: int, rate: int):
    """As one product of `x` with the gradient shifted by each tap, for few output channels."""
    rows, columns = x.shape[1:3]
    span = rate * (kernel_size - 1)
    after = span - span // 2
    padded = jnp.pad(gradient, ((0, 0), (after, span // 2), (after, span // 2), (0, 0)))
    offsets = range(0, span + 1, rate)
    shifted = jnp.concatenate(
        [
            padded[:, span - i : span - i + rows, span - j : span - j + columns]
            for i in offsets
            for j in offsets
        ],
        axis=-1,
    )
    product = lax.dot_general(x, shifted, POSITIONS)
    product = product.reshape(x.shape[-1], kernel_size, kernel_size, gradient.shape[-1])
    return product.transpose(1, 2, 0, 3)


def by_taps(x, gradient, *, kernel_size: int, rate: int, stride: int = 1):
    """As one product for each tap, over the positions where the tap lies inside the map."""
    rows, columns = (
        [_inside(n, m, rate * tap - rate * (kernel_size - 1) // 2, stride) for tap in taps]
        for n, m, taps in zip(
            x.shape[1:3], gradient.shape[1:3], [range(kernel_size)] * 2, strict=True
        )
    )
    return jnp.stack(
        [
            jnp.stack(
                [
                    lax.dot_general(x[:, of_x, of_x2], gradient[:, of_g, of_g2], POSITIONS)
                    for of_x2, of_g2 in columns
                ]
            )
            for of_x, of_g in rows
        ]
    )


def _inside(length, out, offset, stride):
    """Slices of input and output positions at which a tap, `offset` away, lies inside the map."""
    first = max(0, -(offset // stride))
    last = min(out - 1, (length - 1 - offset) // stride)
    if last < first:
        return slice(0, 0), slice(0, 0)
    start = stride * first + offset
    stop = stride * last + offset + 1
    return slice(start, stop, stride), slice(first, last + 1)
