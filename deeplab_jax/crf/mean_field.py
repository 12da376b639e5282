"""Mean-field inference in the fully connected CRF (Section 2.3 and Krähenbühl and Koltun).

Pixels are one flat axis, so images of a batch and their padding are one problem: lattices keep
them apart. Every pixel's own contribution to its message stays in, as in the authors' code.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from deeplab_jax.crf.filtering import smooth
from deeplab_jax.crf.lattice import Lattice

LANES = 8
"""Labels are padded to a multiple of this many, which one vector instruction takes."""


def mean_field(
    unary: Float[Array, "n c"],
    lattices: Sequence[Lattice],
    compat: Sequence,
    num_iterations: int,
) -> Float[Array, "n c"]:
    """Marginals of n pixels after `num_iterations` parallel updates.

    `unary` are energies, -log of the probabilities up to a constant of the pixel. Each lattice
    is a normalized kernel with its own `compat`: entry [l, m] of a matrix is the penalty of label
    l next to label m; a number w stands for w * (1 - identity).
    """
    c = unary.shape[1]
    shifted = unary - unary.min(axis=1, keepdims=True)
    energy = jnp.pad(shifted, ((0, 0), (0, -c % LANES)), constant_values=1e30)

    def update(_, marginals):
        gains = [
            gain(smooth(lattice, marginals), penalty)
            for lattice, penalty in zip(lattices, compat, strict=True)
        ]
        return jax.nn.softmax(sum(gains) - energy)

    marginals = lax.fori_loop(0, num_iterations, update, jax.nn.softmax(-energy))
    return marginals[:, :c]


def gain(smoothed: Float[Array, "n c"], compat: Array | np.ndarray | float) -> Float[Array, "n c"]:
    """What the energies of each pixel fall by, up to a constant of the pixel."""
    if jnp.ndim(compat) == 0:
        return compat * smoothed
    matrix = jnp.asarray(compat, smoothed.dtype)
    extra = smoothed.shape[1] - len(matrix)
    return -smoothed @ jnp.pad(matrix, ((0, extra), (0, extra))).T
