"""Mean-field inference in the fully connected CRF (Section 3.3 and Krähenbühl and Koltun 2011).

Points are one flat axis, so that the photographs of a batch and their padding are one problem:
their lattices keep them apart. The sum over all pixels j of a pixel's message includes j = i, as
in the authors' code.
"""

from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from deeplab_jax.crf.filtering import blur, smooth, smooth_transpose, splat, weighted_rows
from deeplab_jax.crf.lattice import Lattice
from deeplab_jax.crf.xla import stage

LANES = 8
"""Labels are padded to a multiple of this many, which one vector instruction takes."""
IMPOSSIBLE = 1e30
"""Energy of the labels that are added as padding."""


def iterate(
    unary: Float[Array, "n c"],
    lattices: Sequence[Lattice],
    compat: Sequence,
    num_iterations: int,
    start: Float[Array, "n c"] | None = None,
) -> Float[Array, "n c"]:
    """Marginals of n points after `num_iterations` parallel updates.

    `unary` are energies: -log of the probabilities, up to a constant for each point. Updates start
    from `start`, or from the softmax of -`unary`. Each lattice is a kernel K, and has a
    compatibility m in `compat`: K raises the energy of label l by the sum over labels k of
    m[l, k] (K Q)[k]. A vector is the diagonal of such a matrix. A number w stands for the Potts
    model, w times (1 - identity); -w times the identity is computed, which differs from it by a
    constant for each point.
    """
    c = unary.shape[1]
    shifted = unary - unary.min(axis=1, keepdims=True)
    padding = ((0, 0), (0, -c % LANES))
    energy = jnp.pad(shifted, padding, constant_values=IMPOSSIBLE)
    if all(jnp.ndim(penalty) < 2 for penalty in compat):
        gains = jnp.stack([label_gains(penalty, c, unary.dtype) for penalty in compat])
        update = partial(diagonal_update, tuple(lattices), gains, energy)
    else:
        update = partial(general_update, lattices, compat, energy)
    first = jax.nn.softmax(-energy) if start is None else jnp.pad(start, padding)
    marginals = lax.fori_loop(0, num_iterations, lambda _, q: update(q), first)
    return marginals[:, :c]


def label_gains(penalty: Array | np.ndarray | float, c: int, dtype) -> Float[Array, " lanes"]:
    """What a label's energy falls by for each unit of its own message; 0 for padding."""
    penalty = jnp.asarray(penalty, dtype)
    gains = jnp.broadcast_to(penalty if penalty.ndim == 0 else -penalty, (c,))
    return jnp.pad(gains, (0, -c % LANES))


def general_update(
    lattices: Sequence[Lattice],
    compat: Sequence,
    energy: Float[Array, "n c"],
    marginals: Float[Array, "n c"],
) -> Float[Array, "n c"]:
    """One update with any compatibilities."""
    rises = [
        energy_rise(smooth(lattice, marginals), penalty)
        for lattice, penalty in zip(lattices, compat, strict=True)
    ]
    return jax.nn.softmax(-energy - sum(rises))


def energy_rise(
    smoothed: Float[Array, "n c"], compat: Array | np.ndarray | float
) -> Float[Array, "n c"]:
    """What each label's energy rises by where `smoothed` is the kernel times the marginals."""
    c = smoothed.shape[1]
    compat = jnp.asarray(compat, smoothed.dtype)
    if compat.ndim == 0:
        return -compat * smoothed
    if compat.ndim == 1:
        return jnp.pad(compat, (0, c - len(compat))) * smoothed
    extra = c - len(compat)
    matrix = jnp.pad(compat, ((0, extra), (0, extra)))
    return jnp.matmul(smoothed, matrix.T, precision="highest")


@jax.custom_vjp
def diagonal_update(
    lattices: tuple[Lattice, ...],
    gains: Float[Array, "k c"],
    energy: Float[Array, "n c"],
    marginals: Float[Array, "n c"],
) -> Float[Array, "n c"]:
    """softmax(sum of gains * kernels @ marginals - energy).

    Each kernel's messages are added in a pass of their own. One pass for all reads from more places
    than CPUs can follow, and takes longer.
    """

    def add_messages(logits, gain, blurred, index, weight):
        return logits + gain * weighted_rows(blurred, index, weight)

    logits = -energy
    for gain, lattice in zip(gains, lattices, strict=True):
        blurred = blur(lattice, splat(lattice, marginals))
        parts = gain, blurred, lattice.vertex, lattice.slice_weight
        logits = stage(lattice.fits, add_messages, logits, *parts)
    return jax.nn.softmax(logits)


def diagonal_forward(lattices, gains, energy, marginals):
    """The update, and what its derivative needs."""
    result = diagonal_update(lattices, gains, energy, marginals)
    return result, (lattices, gains, marginals, result)


def diagonal_backward(kept, cotangent):
    """Softmax's derivative, then each kernel's transpose; messages are computed anew."""
    lattices, gains, marginals, result = kept
    mean = (cotangent * result).sum(axis=1, keepdims=True)
    to_logits = result * (cotangent - mean)
    to_gains = jnp.stack([(to_logits * smooth(one, marginals)).sum(axis=0) for one in lattices])
    to_lattices, to_marginals = zip(
        *[
            smooth_transpose(lattice, marginals, gain * to_logits)
            for gain, lattice in zip(gains, lattices, strict=True)
        ],
        strict=True,
    )
    return to_lattices, to_gains, -to_logits, sum(to_marginals)


diagonal_update.defvjp(diagonal_forward, diagonal_backward)


def free_energy(
    unary: Float[Array, "n c"],
    lattices: Sequence[Lattice],
    compat: Sequence,
    marginals: Float[Array, "n c"],
    valid: Float[Array, " n"],
) -> Float[Array, ""]:
    """What pydensecrf calls klDivergence: sums of Q log Q, of Q times energies and of Q times the
    rise of the energies by every kernel, over the points whose `valid` is 1.

    It is the Kullback-Leibler divergence from the CRF's distribution but for a constant, with the
    pairwise terms counted twice, as pydensecrf counts them.
    """
    entropy = marginals * jnp.log(jnp.maximum(marginals, 1e-20))
    rises = sum(
        energy_rise(smooth(lattice, marginals), penalty)
        for lattice, penalty in zip(lattices, compat, strict=True)
    )
    each = (entropy + marginals * (unary + rises)).sum(axis=1)
    return (each * valid).sum()
