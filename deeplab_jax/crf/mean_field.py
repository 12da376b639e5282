"""Mean-field inference in the fully connected CRF (Section 2.3 and Krähenbühl and Koltun).

Pixels are one flat axis, so images of a batch and their padding are one problem: lattices keep
them apart. Every pixel's own contribution to its message stays in, as in the authors' code.
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
SAFE_WEIGHT = 20.0
"""With weights up to this sum no exponential overflows, whatever the messages are."""


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
    if all(jnp.ndim(penalty) == 0 for penalty in compat):
        weights = jnp.stack([jnp.asarray(weight, unary.dtype) for weight in compat])
        update = partial(potts_update, tuple(lattices), weights, energy)
    else:
        update = partial(general_update, lattices, compat, energy)
    marginals = lax.fori_loop(0, num_iterations, lambda _, q: update(q), jax.nn.softmax(-energy))
    return marginals[:, :c]


def general_update(
    lattices: Sequence[Lattice],
    compat: Sequence,
    energy: Float[Array, "n c"],
    marginals: Float[Array, "n c"],
) -> Float[Array, "n c"]:
    """One update with any penalties."""
    gains = [
        gain(smooth(lattice, marginals), penalty)
        for lattice, penalty in zip(lattices, compat, strict=True)
    ]
    return jax.nn.softmax(sum(gains) - energy)


def gain(smoothed: Float[Array, "n c"], compat: Array | np.ndarray | float) -> Float[Array, "n c"]:
    """What the energies of each pixel fall by, up to a constant of the pixel."""
    if jnp.ndim(compat) == 0:
        return compat * smoothed
    matrix = jnp.asarray(compat, smoothed.dtype)
    extra = smoothed.shape[1] - len(matrix)
    return -smoothed @ jnp.pad(matrix, ((0, extra), (0, extra))).T


@jax.custom_vjp
def potts_update(
    lattices: tuple[Lattice, ...],
    weights: Float[Array, " k"],
    energy: Float[Array, "n c"],
    marginals: Float[Array, "n c"],
) -> Float[Array, "n c"]:
    """softmax(sum of weights * kernels @ marginals - energy); energies are at least 0.

    Messages go from the lattices into the exponential in one pass, which halves the traffic to
    memory. No gradient reaches the lattices.
    """
    blurred = [blur(lattice, splat(lattice, marginals)) for lattice in lattices]

    def logits(weights, energy, blurred):
        return -energy + sum(
            weight * weighted_rows(values, lattice.vertex, lattice.slice_weight)
            for weight, values, lattice in zip(weights, blurred, lattices, strict=True)
        )

    def exponential(*args):
        return jnp.exp(logits(*args))

    def shifted_exponential(*args):
        x = logits(*args)
        return jnp.exp(x - x.max(axis=1, keepdims=True))

    def unnormalized(*args):
        safe = (weights >= 0).all() & (weights.sum() <= SAFE_WEIGHT)
        return lax.cond(safe, exponential, shifted_exponential, *args)

    fits = jnp.stack([lattice.fits for lattice in lattices]).all()
    result = stage(fits, unnormalized, weights, energy, blurred)
    return result / result.sum(axis=1, keepdims=True)


def potts_forward(lattices, weights, energy, marginals):
    """The update, and what its transpose needs."""
    result = potts_update(lattices, weights, energy, marginals)
    return result, (lattices, weights, marginals, result)


def potts_backward(kept, cotangent):
    """Softmax's derivative, then each kernel's transpose; messages are computed anew."""
    lattices, weights, marginals, result = kept
    mean = (cotangent * result).sum(axis=1, keepdims=True)
    to_logits = result * (cotangent - mean)
    to_weights = jnp.stack([(to_logits * smooth(one, marginals)).sum() for one in lattices])
    to_marginals = sum(
        weight * smooth_transpose(lattice, to_logits)
        for weight, lattice in zip(weights, lattices, strict=True)
    )
    return None, to_weights, -to_logits, to_marginals


potts_update.defvjp(potts_forward, potts_backward)
