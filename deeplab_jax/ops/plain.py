"""The network's operations by their definitions, over NHWC arrays, aligned as in the Caffe release.

The modules beside this one compute the same values by faster operations for each platform. Nothing
here pads "SAME": padding is explicit, because the two differ on even sizes and shift every feature
after them.
"""

import jax
import numpy as np
from jax import lax
from jaxtyping import Float


def atrous_conv(
    x: Float[jax.Array, "b h w i"],
    kernel: Float[jax.Array, "k k i o"],
    *,
    rate: int = 1,
    stride: int = 1,
) -> Float[jax.Array, "b h2 w2 o"]:
    """y[i] = sum over k of x[i + rate * k] w[k] (Section 3.1), zero padded to keep the size.

    At stride s the output has ceil(h / s) rows. An even kernel needs an even rate, so that the
    padding is the same on both sides.
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


def strided_size(size, stride: int):
    """Rows that atrous_conv gives: of an integer, or of an integer array of them."""
    return -(-size // stride)


def max_pool(
    x: Float[jax.Array, "b h w c"], *, kernel: int = 3, stride: int, padding: int = 1
) -> Float[jax.Array, "b h2 w2 c"]:
    """Maximum over kernel x kernel windows without the padding, sizes rounded up as in Caffe."""

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


def pooled_size(size, *, kernel: int = 3, stride: int, padding: int = 1):
    """Rows that Caffe's pooling gives: rounded up, less a window that starts in the padding.

    Of an integer, or of an integer array of them.

    >>> pooled_size(512, kernel=3, stride=2, padding=1)
    257
    """
    out = -(-(size + 2 * padding - kernel) // stride) + 1
    return out - ((out - 1) * stride >= size + padding) if padding else out


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


def add_relu(
    x: Float[jax.Array, "b h w c"], y: Float[jax.Array, "b h w c"]
) -> Float[jax.Array, "b h w c"]:
    """The end of a residual block."""
    return jax.nn.relu(x + y)
