"""The Gaussian filter on a lattice: a linear operator with its own transpose.

Splat adds each pixel's values to the vertices of its simplex, blur spreads them along the d + 1
axes, slice interpolates them at the pixels. All three are sums of gathered rows in a fixed order,
so results are the same in every run.
"""

from dataclasses import replace
from typing import cast

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int32

from deeplab_jax import types
from deeplab_jax.crf.lattice import Lattice, Rows, slice_factor
from deeplab_jax.crf.xla import gather, stage, take_rows


def weighted_rows(
    values: Float[Array, "m c"], index: Int32[Array, "k n"], weight: Float[Array, "k n"]
) -> Rows:
    """Sum of k weighted rows of `values` for each of n results."""
    rows = (w[:, None] * take_rows(values, i) for i, w in zip(index, weight, strict=True))
    return cast(Array, sum(rows))


def splat(lattice: Lattice, values: Rows) -> Float[Array, "v c"]:
    """Sum of the pixels around each vertex, by barycentric weight."""

    def sum_rows(values):
        return weighted_rows(values, lattice.row_pixel, lattice.row_weight)

    def sum_level(rows, children):
        return sum(take_rows(rows, index) for index in children)

    def sum_vertices(values, rows, *upper):
        near = weighted_rows(values, lattice.near_pixel, lattice.near_weight)
        near = near + take_rows(rows, lattice.row)
        return sum((take_rows(joined, lattice.root) for joined in upper), near)

    rows = below = stage(lattice.fits, sum_rows, values)
    upper = []
    for children in lattice.levels:
        below = stage(lattice.fits, sum_level, below, children)
        upper.append(below)
    joined = [stage(lattice.fits, lambda *levels: jnp.concatenate(levels), *upper)] if upper else []
    return stage(lattice.fits, sum_vertices, values, rows, *joined)


def blur(
    lattice: Lattice, values: Float[Array, "v c"], *, transpose: bool = False
) -> Float[Array, "v c"]:
    """Weights 1/2, 1, 1/2 along each axis in turn, in reverse order for the transpose.

    Forward two axes are taken at once, which halves the passes over the vertices.
    """

    def along_one(values, neighbors):
        return values + 0.5 * sum(take_rows(values, index) for index in neighbors)

    def along_two(values, first, second, double):
        single = sum(take_rows(values, index) for index in (*first, *second))
        return values + 0.5 * single + 0.25 * sum(take_rows(values, index) for index in double)

    if transpose:
        for neighbors in reversed(lattice.neighbors):
            values = stage(lattice.fits, along_one, values, neighbors)
        return values
    axes = lattice.neighbors
    for steps in zip(axes[:-1:2], axes[1::2], lattice.double_steps, strict=True):
        values = stage(lattice.fits, along_two, values, *steps)
    if len(axes) % 2:
        values = stage(lattice.fits, along_one, values, axes[-1])
    return values


def slice_(lattice: Lattice, values: Float[Array, "v c"]) -> Rows:
    """Value at each pixel, from the vertices of its simplex."""
    return stage(lattice.fits, weighted_rows, values, lattice.vertex, lattice.slice_weight)


@jax.custom_vjp
def smooth(lattice: Lattice, values: Rows) -> Rows:
    """The kernel matrix of the lattice times `values`.

    Gradients reach `values` and, by the lattice's weights, the features it was made of.
    """
    return slice_(lattice, blur(lattice, splat(lattice, values)))


def smooth_transpose(lattice: Lattice, values: Rows, cotangent: Rows) -> tuple[Lattice, Rows]:
    """Cotangents of `smooth`'s arguments given that of its result.

    The transpose of the filter has the same splat and slice, with the blur in reverse order and
    the normalizations before and after exchanged. The filter is linear in the weights of splat and
    in those of slice, so the cotangent of a weight is a product of the two numbers beside it.
    """
    ratio = lattice.ratio[:, None]
    back = blur(lattice, splat(lattice, cotangent * ratio), transpose=True)
    to_values = slice_(lattice, back) / ratio
    ahead = blur(lattice, splat(lattice, values))
    alpha = slice_factor(len(lattice.vertex))

    def products(rows, other):
        dots = [(take_rows(rows, index) * other).sum(axis=1) for index in lattice.vertex]
        return jnp.stack(dots).astype(lattice.splat_weight.dtype)

    nothing = jax.tree.map(lambda _: None, lattice)
    return replace(
        nothing,
        splat_weight=stage(lattice.fits, products, alpha * back, values),
        slice_weight=stage(lattice.fits, products, ahead, cotangent),
    ), to_values


smooth.defvjp(
    lambda lattice, values: (smooth(lattice, values), (lattice, values)),
    lambda kept, cotangent: smooth_transpose(kept[0], kept[1], cotangent),
)


def factors(total: types.Array, normalization: str) -> tuple[types.Array, types.Array]:
    """Factors before and after the kernel whose row sums are `total`; see `normalize`."""
    if normalization == "symmetric":
        return total**-0.5, total**-0.5
    inverse, one = 1 / total, total / total
    if normalization == "none":
        return one, one
    return (inverse, one) if normalization == "before" else (one, inverse)


def normalize(lattice: Lattice, normalization: str) -> Lattice:
    """The lattice of the normalized kernel, with D = diag(K 1).

    "symmetric": D^-1/2 K D^-1/2; "after" or "per_pixel": D^-1 K; "before": K D^-1; "none": K.
    """
    if normalization == "none":
        return lattice
    total = smooth(lattice, jnp.ones_like(lattice.ratio)[:, None])[:, 0]
    total = jnp.where(total == 0, 1, total)  # of a pixel that is not valid
    before, after = factors(total, normalization)
    table = lax.stop_gradient(before)
    return replace(
        lattice,
        splat_weight=lattice.splat_weight * before,
        slice_weight=lattice.slice_weight * after,
        near_weight=lattice.near_weight * gather(table, lattice.near_pixel),
        row_weight=lattice.row_weight * gather(table, lattice.row_pixel),
        ratio=lax.stop_gradient(after / before),
    )
