"""The dense CRF loss of Tang et al. 2018, "On Regularized Losses for Weakly-supervised CNN
Segmentation": what soft labels cost by the pairwise energy of a fully connected CRF.

It asks for no truth: pixels alike in colour and near each other are to have the same labels. The
kernel is that of appearance, not normalized, as in the authors' code.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Bool, Float

from deeplab_jax.crf.arrays import require_array
from deeplab_jax.crf.backends import exact_smooth
from deeplab_jax.crf.checks import check_sigma, is_traced, require
from deeplab_jax.crf.features import appearance_features, pixels_of
from deeplab_jax.crf.filtering import smooth
from deeplab_jax.crf.forked import refuse_forked
from deeplab_jax.crf.kernels import bounds_within, host_lattice
from deeplab_jax.crf.lattice import Features, Group, Lattice, Rows, Valid, connect, sort_vertices
from deeplab_jax.crf.mean_field import LANES
from deeplab_jax.crf.params import CRFParams


def dense_crf_loss(
    image: Any,
    probs: Any,
    *,
    sigma_xy: Any = 100.0,
    sigma_rgb: Any = 15.0,
    valid: Any = None,
    exact: bool = False,
) -> Float[jax.Array, ""]:
    """Sum over labels k of S_k' K (1 - S_k), the mean over the photographs of a batch.

    S_k are the probabilities of label k and K = exp(-|f_i - f_j|^2 / 2) between pixels of one
    photograph, f their positions and colours over the standard deviations. The lattice's K is about
    half as large and 6 to 12 % off apart from that, as in the authors' code, for which they give
    the weight 2e-9, with photographs and probabilities at half their size and `sigma_xy` 50 there.

    Args:
      image: numbers `[b, h, w, channels]`, 1 to 6 channels. Where they are known, tables have the
        size that they need; inside `jit` one vertex a pixel, or the largest size if that is few.
      probs: floats `[b, h, w, c]` that sum to 1. Gradients reach them, and nothing else.
      sigma_xy, sigma_rgb: standard deviations in pixels and in steps of the image, one number or
        one for each axis (x, y) and channel.
      valid: bool `[b, h, w]`; other pixels, and photographs of such alone, count nothing.
      exact: compute K pair by pair, in a time that grows with the square of the pixels.
    """
    refuse_forked("the dense CRF loss")
    image, probs = require_array("image", image), require_array("probs", probs)
    require(
        image.ndim == probs.ndim == 4 and image.shape[:3] == probs.shape[:3] and image.shape[3] < 7,
        "expected images [b, h, w, channels] of 1 to 6 channels and probabilities [b, h, w, c], "
        f"got {tuple(image.shape)} and {tuple(probs.shape)}",
    )
    check_sigma("sigma_xy", sigma_xy, 2)
    check_sigma("sigma_rgb", sigma_rgb, image.shape[3])
    b, h, w, _ = probs.shape
    known = not is_traced(image, valid, sigma_xy, sigma_rgb)
    params = CRFParams(sigma_xy=sigma_xy, sigma_rgb=sigma_rgb)
    features = appearance_features(image, params, np if known else jnp)
    mask = np.ones((b, h, w), bool) if valid is None else require_array("valid", valid)

    def dense(values):
        apart = jnp.asarray(features).reshape(-1, b, h * w).swapaxes(0, 1)
        rows = values.reshape(b, h * w, -1)
        return jax.vmap(exact_smooth)(apart, rows).reshape(values.shape)

    filtered, points = dense, (features, *pixels_of(mask))
    if not exact:
        filtered = partial(padded_smooth, known_lattice(*points)) if known else bounded(*points)
    return cut(filtered, jnp.asarray(probs), jnp.asarray(mask))


def cut(
    filtered: Callable[[Rows], Rows],
    probs: Float[jax.Array, "b h w c"],
    valid: Bool[jax.Array, "b h w"],
) -> Float[jax.Array, ""]:
    """Mean over photographs of the sum over labels k of S_k' K (1 - S_k); K is `filtered`."""
    shares = jnp.where(valid[..., None], probs, 0).reshape(-1, probs.shape[-1])
    alike = filtered(shares)  # whose sum over the labels is K times 1
    apart = shares.sum(1) * alike.sum(1) - (shares * alike).sum(1)
    return apart.sum() / jnp.maximum(valid.any((1, 2)).sum(), 1)


def padded_smooth(lattice: Lattice, values: Rows) -> Rows:
    """The lattice's kernel times `values`, rows without its padding."""
    n, c = values.shape
    return smooth(lattice, jnp.pad(values, ((0, lattice.num_points - n), (0, -c % LANES))))[:n, :c]


def known_lattice(features: Features, valid: Valid, group: Group) -> Lattice:
    """The lattice of known points, made outside of any `jit`."""
    with jax.ensure_compile_time_eval():
        return host_lattice(features, valid, group, "none")


def bounded(features: Features, valid: Valid, group: Group) -> Callable[[Rows], Rows]:
    """A function that smooths by tables made on the device: small ones where they suffice."""
    d, n = features.shape
    vertices = sort_vertices(features, jnp.asarray(valid), jnp.asarray(group))

    def within(bound, values):
        return padded_smooth(connect(vertices, **bounds_within(d, n, bound, None)), values)

    few = vertices.num_vertices <= n
    return lambda values: lax.cond(few, partial(within, n), partial(within, None), values)
