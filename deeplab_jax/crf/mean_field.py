"""Mean-field inference in the fully connected CRF (Section 2.3 and Krähenbühl and Koltun).

Pixels are one flat axis, so images of a batch and their padding are one problem: lattices keep
them apart. Every pixel's own contribution to its message stays in, as in the authors' code.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from deeplab_jax.crf.filtering import smooth
from deeplab_jax.crf.lattice import Lattice

LANES = 8
"""Labels are filtered in groups of this many: a group of a lattice stays in the cache."""


def in_groups(values: Float[Array, "n c"], fill: float) -> Float[Array, "g n LANES"]:
    """Columns in groups of LANES, the last filled up."""
    n, c = values.shape
    padded = jnp.pad(values, ((0, 0), (0, -c % LANES)), constant_values=fill)
    return padded.reshape(n, -1, LANES).swapaxes(0, 1)


def from_groups(groups: Float[Array, "g n LANES"], num_labels: int) -> Float[Array, "n c"]:
    """The inverse of `in_groups`."""
    return groups.swapaxes(0, 1).reshape(groups.shape[1], -1)[:, :num_labels]


def softmax(scores: Float[Array, "g n LANES"]) -> Float[Array, "g n LANES"]:
    """Probabilities over the labels of each pixel."""
    exponentials = jnp.exp(scores - scores.max(axis=(0, 2), keepdims=True))
    return exponentials / exponentials.sum(axis=(0, 2), keepdims=True)


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
    energy = in_groups(unary - unary.min(axis=1, keepdims=True), fill=1e30)

    def update(_, marginals):
        return softmax(message(lattices, compat, marginals, unary.shape[1]) - energy)

    marginals = lax.fori_loop(0, num_iterations, update, softmax(-energy))
    return from_groups(marginals, unary.shape[1])


def message(
    lattices: Sequence[Lattice],
    compat: Sequence,
    marginals: Float[Array, "g n LANES"],
    num_labels: int,
) -> Float[Array, "g n LANES"]:
    """What the energies of each label fall by, up to a constant of the pixel."""
    matrices = [(lat, mu) for lat, mu in zip(lattices, compat, strict=True) if jnp.ndim(mu) > 0]
    weights = [(lat, w) for lat, w in zip(lattices, compat, strict=True) if jnp.ndim(w) == 0]

    def potts(group):
        return sum((w * smooth(lattice, group) for lattice, w in weights), jnp.zeros_like(group))

    total = lax.map(potts, marginals)
    for lattice, matrix in matrices:
        smoothed = from_groups(lax.map(lambda group: smooth(lattice, group), marginals), num_labels)
        total = total - in_groups(smoothed @ jnp.asarray(matrix, smoothed.dtype).T, fill=0)
    return total
