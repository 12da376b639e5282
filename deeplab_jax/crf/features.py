"""Features of grids: what the kernel's distance is measured in.

Two points i and j influence each other by exp(-|f_i - f_j|^2 / 2), so a feature is a coordinate
divided by its standard deviation. Positions come last axis first (x, y, z), then channels: the
lattice's approximation depends on the order, and this is pydensecrf's for photographs.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Num

from deeplab_jax.crf.arrays import any_framework, require_array
from deeplab_jax.crf.checks import check_sigma, is_traced, require_finite
from deeplab_jax.crf.params import CRFParams
from deeplab_jax.crf.xla import quotient
from deeplab_jax.types import Array, UserError


def grid_features(shape: Sequence[int], sigma: Any) -> Float[Array, "*shape d"]:
    """Positions of a grid over their standard deviations, float32 `[*shape, len(shape)]`.

    `shape` has one to eight axes, such as (h, w) or (depth, h, w). `sigma` is in grid steps: one
    number, or one for each axis in the order of `shape`. Gradients reach it.

    >>> grid_features((1, 3), sigma=(1.0, 2.0))[0].tolist()
    [[0.0, 0.0], [0.5, 0.0], [1.0, 0.0]]
    """
    shape = tuple(int(size) for size in shape)
    if not shape or min(shape) < 1:
        raise UserError(f"a grid has at least one axis and no axis of length 0, got {shape}")
    check_sigma("sigma", sigma, len(shape))
    position = np.stack(list(np.indices(shape, dtype=np.int32))[::-1], axis=-1)
    if is_traced(sigma) or isinstance(sigma, jax.Array):
        return quotient(jnp.asarray(position), jnp.atleast_1d(jnp.asarray(sigma))[::-1])
    return quotient(position, np.atleast_1d(sigma)[::-1])


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
    if image.ndim < 2:
        raise UserError(
            f"expected an image [*shape, channels], got {tuple(image.shape)}; "
            "for one channel pass image[..., None]"
        )
    require_finite("the image's values", image)
    check_sigma("sigma_value", sigma_value, image.shape[-1])
    position = grid_features(image.shape[:-1], sigma_position)
    traced = is_traced(sigma_value) or isinstance(sigma_value, jax.Array)
    if traced and isinstance(image, np.ndarray):
        image = jnp.asarray(image)
    value = quotient(image, jnp.asarray(sigma_value) if traced else np.asarray(sigma_value))
    xp = np if all(isinstance(x, np.ndarray) for x in (position, value)) else jnp
    return xp.concatenate([position.astype(value.dtype), value], axis=-1)


def pixel_positions(shape: tuple[int, ...], sigma: Any, xp: Any = np) -> Float[Array, "2 n"]:
    """Column and row of all pixels of photographs `[b, h, w]`, over one deviation or (x, y)."""
    b, h, w = shape
    index = xp.arange(b * h * w, dtype=np.int32)
    return quotient(xp.stack([index % w, index // w % h]), as_column(sigma))


def appearance_features(
    image: Num[Array, "b h w channels"], params: CRFParams, xp: Any = np
) -> Float[Array, "d n"]:
    """Positions and colours of all pixels over their deviations, in pydensecrf's order."""
    position = pixel_positions(image.shape[:3], params.sigma_xy, xp)
    color = quotient(image.reshape(-1, image.shape[-1]).T, as_column(params.sigma_rgb))
    found = all(isinstance(x, np.ndarray) for x in (position, color))
    return (np if found else jnp).concatenate([position, color])


def as_column(sigma: Any) -> Any:
    """Standard deviations as a column, to divide rows of features by."""
    xp = jnp if is_traced(sigma) or isinstance(sigma, jax.Array) else np
    return xp.reshape(xp.asarray(sigma, np.float32), (-1, 1))


def as_numbers(sigma: Any) -> float | tuple[float, ...]:
    """A standard deviation as a Python number, several as a tuple."""
    values = np.asarray(sigma, np.float64)
    return float(values) if values.ndim == 0 else tuple(values.tolist())
