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
from jaxtyping import Array, Bool, Float, Integer

from deeplab_jax import types
from deeplab_jax.crf import forked
from deeplab_jax.crf.filtering import blur, smooth, smooth_transpose, splat, weighted_rows
from deeplab_jax.crf.lattice import Lattice, Rows
from deeplab_jax.crf.xla import stage

LANES = 8  # labels are padded to a multiple of this many, which one vector instruction takes
IMPOSSIBLE = 1e30  # energy of the labels that are added as padding


def iterate(
    unary: Rows,
    lattices: Sequence[Lattice],
    compat: Sequence,
    num_iterations: int | Integer[Array, ""],
    start: Rows | None = None,
) -> Rows:
    """Marginals of n points after `num_iterations` parallel updates.

    `unary` are energies: -log of the probabilities, up to a constant for each point; inf for a
    label that is impossible there. Updates start from `start`, or from the softmax of -`unary`.
    Each lattice is a kernel K, with a compatibility m of labels in `compat`: the energy of label l
    rises by the sum over labels k of m[l, k] (K Q)[k]. A vector is the diagonal of such a matrix.
    A number w is the Potts model, w (1 - identity): -w identity, and a constant for each point.
    """
    c = unary.shape[1]
    energy = pad_labels(unary)
    first = jax.nn.softmax(-energy) if start is None else jnp.pad(start, ((0, 0), (0, -c % LANES)))
    step = partial(update, energy, lattices, compat, c)
    return lax.fori_loop(0, num_iterations, lambda _, q: step(q), first)[:, :c]


def pad_labels(unary: Rows) -> Float[Array, "n lanes"]:
    """Energies of which the least is 0, and labels up to a multiple of LANES that none takes."""
    shifted = unary - unary.min(axis=1, keepdims=True)
    return jnp.pad(shifted, ((0, 0), (0, -unary.shape[1] % LANES)), constant_values=IMPOSSIBLE)


def update(
    energy: Rows, lattices: Sequence[Lattice], compat: Sequence, num_labels: int, marginals: Rows
) -> Rows:
    """One parallel update of the padded marginals; energies are those of `pad_labels`."""
    if any(jnp.ndim(penalty) == 2 for penalty in compat):
        return jax.nn.softmax(-energy - energy_rises(lattices, compat, marginals))

    def gain(penalty):  # what a label's energy falls by for a unit of its own message
        penalty = jnp.asarray(penalty, energy.dtype)
        gains = jnp.broadcast_to(penalty if penalty.ndim == 0 else -penalty, (num_labels,))
        return jnp.pad(gains, (0, -num_labels % LANES))

    gains = jnp.stack([gain(penalty) for penalty in compat])
    return diagonal_update(tuple(lattices), gains, energy, marginals)


def energy_rises(lattices: Sequence[Lattice], compat: Sequence, marginals: Rows) -> Rows:
    """What each label's energy rises by through all kernels."""
    xp, filtered, product = jnp, smooth, partial(jnp.matmul, precision="highest")
    if forked.is_forked():
        xp, filtered, product = np, forked.smooth, np.matmul

    def rise(lattice, penalty):
        smoothed = filtered(lattice, marginals)
        penalty = xp.asarray(penalty, smoothed.dtype)
        if penalty.ndim == 0:
            return -penalty * smoothed
        padding = marginals.shape[1] - len(penalty)
        penalty = xp.pad(penalty, [(0, padding)] * penalty.ndim)
        return penalty * smoothed if penalty.ndim == 1 else product(smoothed, penalty.T)

    return cast(types.Array, sum(map(rise, lattices, compat)))


@jax.custom_vjp
def diagonal_update(
    lattices: tuple[Lattice, ...], gains: Float[Array, "k c"], energy: Rows, marginals: Rows
) -> Rows:
    """softmax(sum of gains * kernels @ marginals - energy).

    Each kernel's messages are added in a pass of their own: one pass for all takes longer on CPUs.
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
    pairs = [
        smooth_transpose(lattice, marginals, gain * to_logits)
        for gain, lattice in zip(gains, lattices, strict=True)
    ]
    to_lattices, to_marginals = zip(*pairs, strict=True)
    return to_lattices, to_gains, -to_logits, sum(to_marginals)


diagonal_update.defvjp(diagonal_forward, diagonal_backward)


def free_energy(
    unary: Rows,
    lattices: Sequence[Lattice],
    compat: Sequence,
    marginals: Rows,
    valid: Bool[types.Array, " n"],
) -> Float[types.Array, ""]:
    """What pydensecrf calls klDivergence: sums of Q log Q, of Q times energies and of Q times the
    rise of the energies by every kernel, over the `valid` points. Pairwise terms count twice in it.
    """
    xp = np if forked.is_forked() else jnp
    entropy = marginals * xp.log(xp.maximum(marginals, 1e-20))
    energy = xp.where(marginals > 0, unary, 0)  # not the infinite one of an impossible label
    each = entropy + marginals * (energy + energy_rises(lattices, compat, marginals))
    return xp.asarray((each.sum(axis=1) * valid).sum())
