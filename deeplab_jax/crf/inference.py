"""From photographs to marginals inside `jit`, with static bounds on the size of the lattices.

`marginals` may be called in anybody's `jit`, `grad` or `pmap`. A lattice that exceeds its
bounds gives NaN; the default bounds cannot be exceeded. On the host, `refine` finds tight ones.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import flax.struct
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, UInt8

from deeplab_jax.choices import CRFNormalization as Normalization
from deeplab_jax.crf.checks import (
    check_bands,
    check_image,
    check_iterations,
    check_normalization,
    check_params,
    require_array,
    require_finite,
)
from deeplab_jax.crf.kernels import bounded_lattice
from deeplab_jax.crf.mean_field import mean_field
from deeplab_jax.crf.params import RESNET101, CRFParams
from deeplab_jax.crf.xla import quotient
from deeplab_jax.types import Array, UserError


@flax.struct.dataclass
class Pixels:
    """Pixels of a batch of photographs along one axis, with room for padding."""

    position: Any
    """Column and row, int32 `[2, n]`."""
    color: Any
    """Red, green, blue, or the bands of another image, uint8 `[channels, n]`."""
    image: Any
    """Which photograph of the batch, int32 `[n]`."""
    valid: Any
    """False for padding, which takes no part, bool `[n]`."""


def flatten(image: UInt8[Array, "b h w channels"], valid: Bool[Array, "b h w"]) -> Pixels:
    """All pixels of a batch, row by row."""
    b, h, w, channels = image.shape
    index = jnp.arange(b * h * w, dtype=jnp.int32)
    return Pixels(
        position=jnp.stack([index % w, index // w % h]),
        color=image.reshape(-1, channels).T,
        image=index // (h * w),
        valid=valid.reshape(-1),
    )


def per_axis(sigma: Any) -> Any:
    """Standard deviations as a column, to divide rows of features by."""
    xp = np if isinstance(sigma, int | float | tuple | list | np.ndarray) else jnp
    return xp.reshape(xp.asarray(sigma, np.float32), (-1, 1))


def smoothness_features(pixels: Pixels, params: CRFParams) -> Float[Array, "2 n"]:
    """Positions over their standard deviation."""
    return quotient(pixels.position, per_axis(params.sigma_smoothness))


def appearance_features(pixels: Pixels, params: CRFParams) -> Float[Array, "d n"]:
    """Positions and colours over their standard deviations, in pydensecrf's order."""
    position = quotient(pixels.position, per_axis(params.sigma_xy))
    color = quotient(pixels.color, per_axis(params.sigma_rgb))
    xp = np if isinstance(position, np.ndarray) and isinstance(color, np.ndarray) else jnp
    return xp.concatenate([position, color])


def energies(probs: Any) -> Float[Array, "*points c"]:
    """-log of probabilities; 0 counts as the smallest normal float32.

    NumPy where the probabilities are.
    """
    probs = require_array("probs", probs)
    xp = np if isinstance(probs, np.ndarray) else jnp
    dtype = np.float64 if probs.dtype == np.float64 else np.float32
    return -xp.log(xp.maximum(probs.astype(dtype), np.finfo(np.float32).tiny))


def marginals(
    image: Any,
    unary: Any,
    params: CRFParams = RESNET101,
    *,
    valid: Any = None,
    num_iterations: int = 10,
    normalization: Normalization = "symmetric",
    vertex_bound: int | None = None,
    row_bound: int | None = None,
    bands: Sequence[int] | None = None,
) -> Float[Array, "*b h w c"]:
    """Marginals of a batch of photographs, or of one, given their energies; made for `jit`.

    `image` is RGB uint8 `[b, h, w, 3]` or `[h, w, 3]`, `unary` floats `[b, h, w, c]` or
    `[h, w, c]`, -log of probabilities (`energies`); `valid`, bool `[b, h, w]` or `[h, w]`, is
    false in padding. `vertex_bound` and `row_bound` limit the appearance lattice of the whole
    batch, and results are NaN where it is larger. 3 n and n of n pixels suit photographs of at
    least 100 pixels a side; small or noisy images have up to 6 n vertices, as without a bound.
    With `bands` the image has any number of channels, of which these stand for its colours.
    Gradients reach `unary` and all of `params`.
    """
    image, unary = require_array("image", image), require_array("unary", unary)
    if unary.ndim not in (3, 4) or unary.shape[-1] < 2:
        raise UserError(
            f"expected energies [b, h, w, c] or [h, w, c] of at least 2 classes, "
            f"got {tuple(unary.shape)}"
        )
    if not jnp.issubdtype(unary.dtype, jnp.floating):
        raise UserError(f"expected energies of floats, got {unary.dtype}")
    channels = 3
    if bands is not None:
        check_bands(image, bands)
        image, channels = image[..., np.array(bands)], len(bands)
    check_image(image, unary.shape[:-1], "energies", channels=channels)
    require_finite("energies", unary)
    if valid is not None and np.shape(valid) != unary.shape[:-1]:
        raise UserError(f"expected valid {unary.shape[:-1]}, got {np.shape(valid)}")
    check_params(params, channels=channels)
    check_iterations(num_iterations)
    check_normalization(normalization)
    h, w, c = unary.shape[-3:]
    image = jnp.asarray(image).reshape(-1, h, w, channels)
    valid = jnp.ones(image.shape[:3], bool) if valid is None else jnp.asarray(valid, bool)
    pixels = flatten(image, valid.reshape(image.shape[:3]))
    lattice_of = partial(
        bounded_lattice, valid=pixels.valid, group=pixels.image, normalization=normalization
    )
    appearance = jnp.asarray(appearance_features(pixels, params))
    smoothness = jnp.asarray(smoothness_features(pixels, params))
    lattices = [
        lattice_of(appearance, vertex_bound=vertex_bound, row_bound=row_bound),
        lattice_of(smoothness),
    ]
    compat = [params.appearance_weight, params.smoothness_weight]
    result = mean_field(jnp.asarray(unary).reshape(-1, c), lattices, compat, int(num_iterations))
    return result.reshape(unary.shape)
