"""From photographs to marginals inside `jit`, with static bounds on the size of the lattices.

`marginals` may be called in anybody's `jit`, `grad` or `pmap`. A lattice that exceeds its
bounds gives NaN; the default bounds cannot be exceeded. On the host, `refine` finds tight ones.
"""

from typing import Any, Literal

import flax.struct
import jax.numpy as jnp
from jaxtyping import Bool, Float, Float32, UInt8

from deeplab_jax.crf.filtering import normalize
from deeplab_jax.crf.lattice import Lattice, connect
from deeplab_jax.crf.mean_field import mean_field
from deeplab_jax.crf.params import RESNET101, CRFParams
from deeplab_jax.crf.vertices import NEAR, WIDTH, Vertices, sort_vertices
from deeplab_jax.crf.xla import quotient
from deeplab_jax.types import Array

Normalization = Literal["symmetric", "per_pixel"]


@flax.struct.dataclass
class Pixels:
    """Pixels of a batch of photographs along one axis, with room for padding."""

    position: Any
    """Column and row, int32 `[2, n]`."""
    color: Any
    """Red, green, blue, uint8 `[3, n]`."""
    image: Any
    """Which photograph of the batch, int32 `[n]`."""
    valid: Any
    """False for padding, which takes no part, bool `[n]`."""


def flatten(image: UInt8[Array, "b h w 3"], valid: Bool[Array, "b h w"]) -> Pixels:
    """All pixels of a batch, row by row."""
    b, h, w, _ = image.shape
    index = jnp.arange(b * h * w, dtype=jnp.int32)
    return Pixels(
        position=jnp.stack([index % w, index // w % h]),
        color=image.reshape(-1, 3).T,
        image=index // (h * w),
        valid=valid.reshape(-1),
    )


def smoothness_features(pixels: Pixels, params: CRFParams) -> Float32[Array, "2 n"]:
    """Positions over their standard deviation."""
    return quotient(pixels.position, params.sigma_smoothness)


def appearance_features(pixels: Pixels, params: CRFParams) -> Float32[Array, "5 n"]:
    """Positions and colours over their standard deviations, in pydensecrf's order."""
    position = quotient(pixels.position, params.sigma_xy)
    return jnp.concatenate([position, quotient(pixels.color, params.sigma_rgb)])


def smoothness_vertices(pixels: Pixels, params: CRFParams, num_images: int) -> Vertices:
    """Lattice vertices of the smoothness kernel."""
    features = smoothness_features(pixels, params)
    return sort_vertices(features, pixels.valid, pixels.image, num_images)


def appearance_vertices(pixels: Pixels, params: CRFParams, num_images: int) -> Vertices:
    """Lattice vertices of the appearance kernel."""
    features = appearance_features(pixels, params)
    return sort_vertices(features, pixels.valid, pixels.image, num_images)


def kernel(vertices: Vertices, bounds: dict[str, int], normalization: Normalization) -> Lattice:
    """The normalized kernel on these vertices; `bounds` as in `connect`."""
    return normalize(connect(vertices, **bounds), normalization)


def largest_bounds(dimension: int, num_pixels: int) -> dict[str, int]:
    """Bounds no lattice exceeds: all vertices distinct, all just too many for none or one row."""
    contributions = (dimension + 1) * num_pixels
    return {
        "vertex_bound": contributions,
        "row_bound": contributions // (NEAR + 1) + 1,
        "upper_bound": contributions // (NEAR + WIDTH + 1) + 1,
    }


def energies(probs: Float[Array, "... c"]) -> Float[Array, "... c"]:
    """-log of probabilities; 0 counts as the smallest normal float32."""
    return -jnp.log(jnp.maximum(probs, jnp.finfo(jnp.float32).tiny))


def marginals(
    image: UInt8[Array, "b h w 3"],
    unary: Float[Array, "b h w c"],
    params: CRFParams = RESNET101,
    *,
    valid: Bool[Array, "b h w"] | None = None,
    num_iterations: int = 10,
    normalization: Normalization = "symmetric",
    vertex_bound: int | None = None,
    row_bound: int | None = None,
) -> Float[Array, "b h w c"]:
    """Marginals of a batch of photographs given their energies, -log of probabilities.

    `vertex_bound` and `row_bound` limit the appearance lattice of the whole batch; three times
    the number of pixels and once do for most photographs. Gradients reach `unary` and the
    two weights in `params`, not the sigmas.
    """
    b, h, w, c = unary.shape
    pixels = flatten(image, jnp.ones((b, h, w), bool) if valid is None else valid)
    bounds = largest_bounds(5, b * h * w)
    bounds["vertex_bound"] = vertex_bound or bounds["vertex_bound"]
    if row_bound:
        bounds |= {"row_bound": row_bound, "upper_bound": row_bound // 4 + 1}
    lattices = [
        kernel(appearance_vertices(pixels, params, b), bounds, normalization),
        kernel(smoothness_vertices(pixels, params, b), largest_bounds(2, b * h * w), normalization),
    ]
    compat = [params.appearance_weight, params.smoothness_weight]
    return mean_field(unary.reshape(-1, c), lattices, compat, num_iterations).reshape(b, h, w, c)
