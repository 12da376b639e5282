"""The dense kernel computed pair by pair, for small images and for tests.

It is what the lattice approximates. Time grows with the square of the number of pixels.
"""

from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Float32

from deeplab_jax.crf.inference import Normalization

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


def exact_normalization(
    total: Float[Array, "n 1"], normalization: Normalization
) -> tuple[Float[Array, "n 1"], Float[Array, "n 1"]]:
    """Factors before and after the kernel whose row sums are `total`."""
    one = jnp.ones_like(total)
    if normalization == "symmetric":
        return 1 / jnp.sqrt(total), 1 / jnp.sqrt(total)
    if normalization == "before":
        return 1 / total, one
    if normalization == "none":
        return one, one
    return one, 1 / total


@partial(jax.jit, static_argnames=("num_iterations", "normalization"))
def exact_mean_field(
    unary: Float[Array, "n c"],
    features: Sequence[Float[Array, "_ n"]],
    weights: Sequence,
    *,
    num_iterations: int,
    normalization: Normalization,
) -> Float[Array, "n c"]:
    """Mean field with the dense kernels of these features and Potts weights."""
    ones = jnp.ones((len(unary), 1), unary.dtype)
    factors = [exact_normalization(exact_smooth(f, ones), normalization) for f in features]

    def update(_, marginals):
        messages = [
            weight * after * exact_smooth(f, before * marginals)
            for f, weight, (before, after) in zip(features, weights, factors, strict=True)
        ]
        return jax.nn.softmax(sum(messages) - unary)

    return lax.fori_loop(0, num_iterations, update, jax.nn.softmax(-unary))
