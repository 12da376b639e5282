"""The dense kernel computed pair by pair, for small images and for tests.

It is what the lattice approximates. Time grows with the square of the number of pixels.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Float32

from deeplab_jax.crf.inference import (
    Normalization,
    Pixels,
    appearance_features,
    smoothness_features,
)
from deeplab_jax.crf.params import CRFParams

TILE = 1024
"""Pixels of a tile; a tile of the kernel has this many squared entries."""


def exact_smooth(
    features: Float32[Array, "d n"], values: Float[Array, "n c"]
) -> Float[Array, "n c"]:
    """sum_j exp(-|f_i - f_j|^2 / 2) values_j."""
    n, c = values.shape
    centred = features - features.mean(axis=1, keepdims=True)
    tile = min(TILE, n)
    padding = -n % tile
    rows = jnp.pad(centred.T, ((0, padding), (0, 0))).reshape(-1, tile, len(features))

    def one_tile(rows):
        difference = rows[:, None] - centred.T[None]
        kernel = jnp.exp(-0.5 * (difference**2).sum(-1))
        return jnp.matmul(kernel, values, precision="highest")

    return lax.map(one_tile, rows).reshape(-1, c)[:n]


@partial(jax.jit, static_argnames=("num_iterations", "normalization"))
def exact_marginals(
    pixels: Pixels,
    unary: Float[Array, "n c"],
    params: CRFParams,
    *,
    num_iterations: int,
    normalization: Normalization,
) -> Float[Array, "n c"]:
    """Mean field of one photograph with the dense kernel; every pixel must be valid."""
    kernels = [
        (appearance_features(pixels, params), params.appearance_weight),
        (smoothness_features(pixels, params), params.smoothness_weight),
    ]
    ones = jnp.ones((len(unary), 1), unary.dtype)
    total = [exact_smooth(features, ones) for features, _ in kernels]
    if normalization == "symmetric":
        before = after = [1 / jnp.sqrt(x) for x in total]
    else:
        before, after = [jnp.ones_like(x) for x in total], [1 / x for x in total]

    def update(_, marginals):
        messages = [
            weight * b * exact_smooth(features, a * marginals)
            for (features, weight), a, b in zip(kernels, before, after, strict=True)
        ]
        return jax.nn.softmax(sum(messages) - unary)

    return lax.fori_loop(0, num_iterations, update, jax.nn.softmax(-unary))
