"""The Gaussian filter on a lattice: a linear operator with its own transpose.

Splat adds each pixel to the vertices of its simplex, blur spreads them along the d + 1 axes,
slice reads the pixels back. All three are sums of gathered rows, so results do not depend on
the order in which a device happens to work.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int32

from deeplab_jax.crf.lattice import Lattice
from deeplab_jax.crf.xla import look_up, stage, take_rows


def weighted_rows(
    values: Float[Array, "m c"], index: Int32[Array, "k n"], weight: Float[Array, "k n"]
) -> Float[Array, "n c"]:
    """Sum of k weighted rows of `values` for each of n results."""
    return sum(w[:, None] * take_rows(values, i) for i, w in zip(index, weight, strict=True))


def splat(lattice: Lattice, values: Float[Array, "n c"]) -> Float[Array, "v c"]:
    """Sum of the pixels around each vertex, by barycentric weight."""

    def sum_rows(values):
        return weighted_rows(values, lattice.row_pixel, lattice.row_weight)

    def sum_level(rows, children):
        return sum(take_rows(rows, index) for index in children)

    def join(*levels):
        return jnp.concatenate(levels)

    def sum_vertices(values, rows, *upper):
        near = weighted_rows(values, lattice.near_pixel, lattice.near_weight)
        near = near + take_rows(rows, lattice.row)
        return sum((take_rows(joined, lattice.root) for joined in upper), near)

    rows = below = stage(lattice.fits, sum_rows, values)
    upper = []
    for children in lattice.levels:
        below = stage(lattice.fits, sum_level, below, children)
        upper.append(below)
    joined = [stage(lattice.fits, join, *upper)] if upper else []
    return stage(lattice.fits, sum_vertices, values, rows, *joined)


def blur(
    lattice: Lattice, values: Float[Array, "v c"], *, transpose: bool = False
) -> Float[Array, "v c"]:
    """Weights 1/2, 1, 1/2 along each axis in turn, in reverse order for the transpose.

    Forward two axes are taken at once, which halves the passes over the vertices.
    """

    def along_one(values, neighbors):
        return values + 0.5 * sum(take_rows(values, index) for index in neighbors)

    def along_two(values, hops):
        steps = [take_rows(values, index) for index in hops]
        return values + 0.5 * sum(steps[:4]) + 0.25 * sum(steps[4:])

    if transpose:
        for neighbors in reversed(lattice.neighbors):
            values = stage(lattice.fits, along_one, values, neighbors)
        return values
    for hops in lattice.hops:
        values = stage(lattice.fits, along_two, values, hops)
    if len(lattice.neighbors) % 2:
        values = stage(lattice.fits, along_one, values, lattice.neighbors[-1])
    return values


def read(lattice: Lattice, values: Float[Array, "v c"]) -> Float[Array, "n c"]:
    """Value at each pixel, from the vertices of its simplex (slice)."""
    return stage(lattice.fits, weighted_rows, values, lattice.vertex, lattice.slice_weight)


@jax.custom_vjp
def smooth(lattice: Lattice, values: Float[Array, "n c"]) -> Float[Array, "n c"]:
    """The kernel matrix of the lattice times `values`; no gradient reaches the lattice."""
    return read(lattice, blur(lattice, splat(lattice, values)))


def smooth_forward(lattice, values):
    """What the transpose rule keeps: the lattice alone, since smoothing is linear."""
    return smooth(lattice, values), lattice


def smooth_transpose(lattice: Lattice, values: Float[Array, "n c"]) -> Float[Array, "n c"]:
    """The transpose of `smooth`: the same splat and read, with the blur in reversed order."""
    ratio = lattice.ratio[:, None]
    vertices = blur(lattice, splat(lattice, values * ratio), transpose=True)
    return read(lattice, vertices) / ratio


def smooth_backward(lattice, cotangent):
    """Smoothing is linear."""
    return None, smooth_transpose(lattice, cotangent)


smooth.defvjp(smooth_forward, smooth_backward)


def normalize(lattice: Lattice, normalization: str) -> Lattice:
    """The lattice of D^-1/2 K D^-1/2 ("symmetric") or D^-1 K ("per_pixel"), D = diag(K 1)."""
    total = smooth(lattice, jnp.ones((lattice.vertex.shape[1], 1), jnp.float32))[:, 0]
    if normalization == "symmetric":
        before = after = 1 / jnp.sqrt(total + 1e-20)  # as pydensecrf
    else:
        before, after = jnp.ones_like(total), 1 / (total + 1e-20)
    return lattice.replace(
        slice_weight=lattice.slice_weight * after,
        near_weight=lattice.near_weight * look_up(before, lattice.near_pixel),
        row_weight=lattice.row_weight * look_up(before, lattice.row_pixel),
        ratio=after / before,
    )
