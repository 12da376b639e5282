"""Features of pixels and other points, which the kernels compare.

A kernel between points i and j is exp(-|f_i - f_j|^2 / 2), so a feature is a coordinate
divided by its standard deviation. Positions come last axis first (x, y, z), then channels: the
lattice's approximation depends on the order, and this is pydensecrf's for photographs.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Int32, Num

from deeplab_jax.crf.arrays import any_framework, require_array
from deeplab_jax.crf.checks import check_sigma, check_values, require
from deeplab_jax.crf.params import CRFParams
from deeplab_jax.crf.xla import quotient
from deeplab_jax.types import Array


def grid_features(shape: Sequence[int], sigma: Any) -> Float[Array, "*shape d"]:
    """Positions of a grid over their standard deviations, float32 `[*shape, len(shape)]`.

    `shape` has one to eight axes, such as (h, w) or (depth, h, w). `sigma` is in grid steps: one
    number, or one for each axis in the order of `shape`. Gradients reach it.

    >>> grid_features((1, 3), sigma=(1.0, 2.0))[0].tolist()
    [[0.0, 0.0], [0.5, 0.0], [1.0, 0.0]]
    """
    shape = tuple(int(size) for size in shape)
    some = shape and min(shape) > 0
    require(some, f"a grid has at least one axis and no axis of length 0, got {shape}")
    check_sigma("sigma", sigma, len(shape))
    rows = positions((1, *shape), deviations(sigma).reshape(-1)[::-1])
    return rows.T.reshape(*shape, len(shape))


@any_framework
def image_features(image: Any, sigma_position: Any, sigma_value: Any) -> Float[Array, "*shape d"]:
    """Positions and channels of an image over their standard deviations.

    `image` is `[*shape, channels]` with any number of axes and channels, integers or floats; a
    grey one is `image[..., None]`. `sigma_position` is as in `grid_features`; `sigma_value` is
    one number in the image's own unit, or one for each channel. The result is float32
    `[*shape, axes + channels]`, NumPy where the arguments are. Gradients reach all of them.

    >>> image_features(np.array([[10.0], [20.0]]), 1.0, 5.0).tolist()
    [[0.0, 2.0], [1.0, 4.0]]
    """
    image = require_array("image", image)
    require(
        image.ndim > 1,
        f"expected an image [*shape, channels], got {tuple(image.shape)}; "
        "for one channel pass image[..., None]",
    )
    check_values("the image's values", image)
    check_sigma("sigma_value", sigma_value, image.shape[-1])
    position = grid_features(image.shape[:-1], sigma_position)
    value = quotient(image, deviations(sigma_value))
    return joined(position.astype(value.dtype), value, axis=-1)


def positions(shape: tuple[int, ...], sigma: Any, xp: Any = np) -> Float[Array, "axes n"]:
    """Positions of all pixels `[b, *axes]` over one deviation or one an axis, last axis first."""
    index = xp.indices(shape, dtype=np.int32)[:0:-1]
    return quotient(index.reshape(len(shape) - 1, -1), deviations(sigma).reshape(-1, 1))


def appearance_features(
    image: Num[Array, "b h w channels"], params: CRFParams, xp: Any = np
) -> Float[Array, "d n"]:
    """Positions and colours of all pixels over their deviations, in pydensecrf's order."""
    colors = image.reshape(-1, image.shape[-1]).T
    color = quotient(colors, deviations(params.sigma_rgb).reshape(-1, 1))
    return joined(positions(image.shape[:3], params.sigma_xy, xp), color, axis=0)


def deviations(sigma: Any) -> Array:
    """Standard deviations as an array, NumPy's where they are known to it."""
    leaves = jax.tree.leaves(sigma)
    return (jnp if any(isinstance(x, jax.Array) for x in leaves) else np).asarray(sigma)


def joined(*parts: Array, axis: int) -> Array:
    """The concatenated parts, NumPy's where all of them are."""
    found = all(isinstance(x, np.ndarray) for x in parts)
    return (np if found else jnp).concatenate(parts, axis=axis)


def as_numbers(sigma: Any) -> float | tuple[float, ...]:
    """A standard deviation as a Python number, several as a tuple."""
    values = np.asarray(sigma, np.float64)
    return float(values) if values.ndim == 0 else tuple(values.tolist())


def pixels_of(valid: Bool[Array, "b h w"]) -> tuple[Bool[Array, " n"], Int32[np.ndarray, " n"]]:
    """Which pixels of photographs count, and the photograph of each, in one row."""
    return valid.reshape(-1), np.repeat(np.arange(len(valid), dtype=np.int32), valid[0].size)
