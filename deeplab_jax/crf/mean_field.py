"""Mean-field inference in the fully connected CRF (Section 3.3 and Krähenbühl and Koltun 2011).

Points are one flat axis, so that the photographs of a batch and their padding are one problem:
their lattices keep them apart. The sum over all pixels j of a pixel's message includes j = i, as
in the authors' code.
"""

from collections.abc import Sequence
from functools import partial
from typing import cast

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Int32

from deeplab_jax import types
from deeplab_jax.crf import forked
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
    num_iterations: int | Int32[Array, ""],
    start: Float[Array, "n c"] | None = None,
) -> Float[Array, "n c"]:
    """Marginals of n points after `num_iterations` parallel updates.

    `unary` are energies: -log of the probabilities, up to a constant for each point; inf for a
    label that is impossible there. Updates start from `start`, or from the softmax of -`unary`.
    Each lattice is a kernel K, and has a compatibility m in `compat`: K raises the energy of label
    l by the sum over labels k of m[l, k] (K Q)[k]. A vector is the diagonal of such a matrix. A
    number w stands for the Potts model, w times (1 - identity); -w times the identity is computed,
    which differs from it by a constant for each point.
    """
    c = unary.shape[1]
    energy = pad_labels(unary)
    first = jax.nn.softmax(-energy) if start is None else jnp.pad(start, ((0, 0), (0, -c % LANES)))
    step = partial(update, energy, lattices, compat, c)
    return lax.fori_loop(0, num_iterations, lambda _, q: step(q), first)[:, :c]


def pad_labels(unary: Float[Array, "n c"]) -> Float[Array, "n lanes"]:
    """Energies of which the least is 0, and labels up to a multiple of LANES that none takes."""
    shifted = unary - unary.min(axis=1, keepdims=True)
    return jnp.pad(shifted, ((0, 0), (0, -unary.shape[1] % LANES)), constant_values=IMPOSSIBLE)


def update(
    energy: Float[Array, "n lanes"],
    lattices: Sequence[Lattice],
    compat: Sequence,
    num_labels: int,
    marginals: Float[Array, "n lanes"],
) -> Float[Array, "n lanes"]:
    """One parallel update of the padded marginals; energies are those of `pad_labels`."""
    if any(jnp.ndim(penalty) == 2 for penalty in compat):
        return general_update(lattices, compat, energy, marginals)
    gains = jnp.stack([label_gains(penalty, num_labels, energy.dtype) for penalty in compat])
    return diagonal_update(tuple(lattices), gains, energy, marginals)


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
    return jax.nn.softmax(-energy - energy_rises(lattices, compat, marginals))


def energy_rises(
    lattices: Sequence[Lattice],
    compat: Sequence,
    marginals: Float[types.Array, "n c"],
) -> Float[types.Array, "n c"]:
    """What each label's energy rises by through all kernels."""
    xp, c, filtered, product = (
        jnp,
        marginals.shape[1],
        smooth,
        partial(jnp.matmul, precision="highest"),
    )
    if forked.is_forked():
        xp, filtered, product = np, forked.smooth, np.matmul

    def rise(lattice, penalty):
        smoothed = filtered(lattice, marginals)
        penalty = xp.asarray(penalty, smoothed.dtype)
        if penalty.ndim == 0:
            return -penalty * smoothed
        penalty = xp.pad(penalty, [(0, c - len(penalty))] * penalty.ndim)
        return penalty * smoothed if penalty.ndim == 1 else product(smoothed, penalty.T)

    return cast(types.Array, sum(map(rise, lattices, compat)))


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
    unary: Float[types.Array, "n c"],
    lattices: Sequence[Lattice],
    compat: Sequence,
    marginals: Float[types.Array, "n c"],
    valid: Bool[types.Array, " n"],
) -> Float[types.Array, ""]:
    """What pydensecrf calls klDivergence: sums of Q log Q, of Q times energies and of Q times the
    rise of the energies by every kernel, over the `valid` points.

    It is the Kullback-Leibler divergence from the CRF's distribution but for a constant, with the
    pairwise terms counted twice, as pydensecrf counts them.
    """
    xp = np if forked.is_forked() else jnp
    entropy = marginals * xp.log(xp.maximum(marginals, 1e-20))
    energy = xp.where(marginals > 0, unary, 0)  # not the infinite one of an impossible label
    each = entropy + marginals * (energy + energy_rises(lattices, compat, marginals))
    return xp.asarray((each.sum(axis=1) * valid).sum())
