"""Vertices of the permutohedral lattice around given features (Adams, Baek and Davis 2010).

In d dimensions every pixel lies in a simplex of d + 1 vertices, whose weights are its
barycentric coordinates. A vertex has d + 1 integer coordinates that sum to 0, all with the same
remainder modulo d + 1, its class; the last d identify it and are packed into one key. One sort
of all keys brings the pixels of a vertex together and numbers the vertices.

Rounding follows pydensecrf to the bit, because a pixel on the border of two simplices puts
vertices into existence: products are kept from fusing with additions, and halves round to even.
The keys need 64-bit integers, which are enabled around this code alone.
"""

import math
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Float32, Int32, Integer

from deeplab_jax.crf.xla import look_up, rounded_product, running, stage

NEAR = 4
"""Contributions of a vertex that are gathered directly; the others are summed by rows first."""
WIDTH = 8
"""Contributions, or rows, that one row sums."""


@flax.struct.dataclass
class Vertices:
    """Distinct vertices around n pixels: d + 1 contributions of each pixel, sorted by vertex.

    Vertices are numbered from 1, colour class by colour class (the remainder of their
    coordinates), inside a class by key; 0 is no vertex.
    """

    pixel: Any
    """Pixel of each sorted contribution, int32 `[(d + 1) * n]`; position // n is its class."""
    key: Any
    """Key of its vertex, int64 `[(d + 1) * n]`, ascending."""
    start: Any
    """Position of the first contribution of each vertex, int32 `[(d + 1) * n + 2]`."""
    count: Any
    """Contributions of each vertex, int32 `[(d + 1) * n + 1]`; 0 beyond the last vertex."""
    vertex: Any
    """Vertices of each pixel, int32 `[d + 1, n]`."""
    weight: Any
    """Barycentric weights of each pixel, float32 `[d + 1, n]`; 0 where the pixel is not valid."""
    strides: Any
    """Change of the key with each coordinate, int64 `[d]`, but the first, which is not in it."""
    num_keys: Any
    """Keys of one class; a class begins at a multiple of it, int64."""
    num_vertices: Any
    """int32."""
    num_rows: Any
    """Rows that the contributions beyond the first NEAR need, int32."""
    num_upper: Any
    """Rows that the rows of vertices with several need, int32."""
    most_rows: Any
    """Rows of the vertex that needs most, int32."""
    packs: Any
    """Whether features keep a fraction in float32 and keys fit 63 bits, bool."""


def elevate(features: Float32[Array, "d n"]) -> Float32[Array, "d+1 n"]:
    """Features on the plane of the lattice, scaled so that a blur has standard deviation 1."""
    d = len(features)
    deviation = float(np.float32(math.sqrt(2 / 3) * (d + 1)))
    scale = [np.float32(deviation / math.sqrt((i + 1) * (i + 2))) for i in range(d)]
    total = jnp.zeros_like(features[0])
    rows = []
    for i in range(d, 0, -1):
        scaled = rounded_product(features[i - 1], scale[i - 1])
        rows.append(total - rounded_product(scaled, np.float32(i)))
        total = total + scaled
    return jnp.stack([total, *rows[::-1]])


def enclosing_simplex(
    elevated: Float32[Array, "k n"],
) -> tuple[Int32[Array, "k n"], Int32[Array, "k n"], Float32[Array, "k n"]]:
    """Class-0 vertex divided by d + 1, ranks of the residuals, barycentric weights by class."""
    size = len(elevated)
    cell = jnp.round(elevated * np.float32(1 / size))
    residual = elevated - cell * size
    rank = jnp.stack(
        [
            sum((residual[j] >= residual[i]).astype(jnp.int32) for j in range(i))
            + sum((residual[j] > residual[i]).astype(jnp.int32) for j in range(i + 1, size))
            for i in range(size)
        ]
    )
    rank = rank + sum(cell).astype(jnp.int32)
    wrap = (rank < 0).astype(jnp.int32) - (rank >= size).astype(jnp.int32)
    rank = rank + wrap * size
    cell = cell + wrap
    residual = rounded_product(elevated - cell * size, np.float32(1 / size))
    by_rank = [sum(jnp.where(rank == k, residual, 0)) for k in range(size)]
    weight = [by_rank[-1] + (1 - by_rank[0])]
    weight += [by_rank[-1 - k] - by_rank[-k] for k in range(1, size)]
    return cell.astype(jnp.int32), rank, jnp.stack(weight)


def key_strides(
    cell: Int32[Array, "d n"], valid: Bool[Array, " n"], num_groups: int
) -> tuple[Int32[Array, " d"], Integer[Array, " d"], Integer[Array, ""], Float[Array, ""]]:
    """Lowest digits, strides of the mixed-radix key, number of keys, and their bits.

    Digits leave room for the -1 of other classes and for one step to either side. The last digit
    counts most: in two dimensions it is the row, so that vertices lie as pixels do.
    """
    lowest = jnp.min(cell, axis=1, initial=2**30, where=valid) - 2
    digits = (jnp.max(cell, axis=1, initial=-(2**30), where=valid) - lowest + 2).astype(jnp.int64)
    digits = jnp.maximum(digits, 1)
    products = jnp.cumprod(digits)
    strides = jnp.append(1, products[:-1])
    bits = jnp.log2(digits.astype(jnp.float32)).sum() + math.log2(num_groups)
    return lowest, strides, num_groups * products[-1], bits


def sort_vertices(
    features: Float32[Array, "d n"],
    valid: Bool[Array, " n"],
    group: Int32[Array, " n"],
    num_groups: int,
) -> Vertices:
    """Distinct lattice vertices of the valid pixels; those of two groups are never the same.

    Groups are numbered from 0 and are the images of a batch.
    """
    d, n = features.shape
    index_bits = max(1, (n - 1).bit_length())
    elevated = stage(valid.any(), elevate, features)
    cell, rank, weight = stage(valid.any(), enclosing_simplex, elevated)
    with jax.enable_x64(True):
        lowest, strides, num_keys, bits = key_strides(cell[1:], valid, num_groups)
        image_key = group.astype(jnp.int64) * (num_keys // num_groups)
        num_keys = num_keys + 1  # the last is nobody's
        packed = []
        for k in range(d + 1):
            digits = cell[1:] - lowest[:, None] - (rank[1:] > d - k)
            key = image_key + sum(digits[i].astype(jnp.int64) * strides[i] for i in range(d))
            key = jnp.where(valid, key, num_keys - 1)
            packed.append(lax.sort((key << index_bits) | jnp.arange(n), is_stable=False))
        packed = jnp.stack(packed)
        pixel = (packed & (2**index_bits - 1)).astype(jnp.int32)
        key = (packed >> index_bits) + num_keys * jnp.arange(d + 1)[:, None]
        nobody = (packed >> index_bits) == num_keys - 1
        first = jnp.append(True, key.reshape(-1)[1:] != key.reshape(-1)[:-1])
    return number_vertices(
        pixel,
        key,
        first,
        nobody,
        jnp.where(valid, weight, 0),
        strides=strides,
        num_keys=num_keys,
        packs=(jnp.abs(elevated).max() < 2**23) & (bits + max(index_bits, 4) < 62),
    )


def number_vertices(
    pixel: Int32[Array, "k n"],
    key: Integer[Array, "k n"],
    leads: Bool[Array, " items"],
    nobody: Bool[Array, "k n"],
    weight: Float32[Array, "k n"],
    **fields,
) -> Vertices:
    """Vertices from sorted contributions; `leads` marks where the next vertex begins."""
    size, n = pixel.shape
    items = size * n
    position = jnp.arange(items, dtype=jnp.int32)
    number = running(jnp.add, leads.astype(jnp.int32))
    start = jnp.full(items + 2, items, jnp.int32)
    start = start.at[jnp.where(leads, number, items + 2)].set(position, mode="drop")
    count = jnp.diff(start).at[0].set(0)
    empty = look_up(jnp.append(nobody.reshape(-1), True), start[:-1])
    count = jnp.where(empty, 0, count)
    slot = (pixel + n * jnp.arange(size, dtype=jnp.int32)[:, None]).reshape(-1)
    vertex = (
        jnp.zeros(items, jnp.int32)
        .at[slot]
        .set(number, unique_indices=True, mode="promise_in_bounds")
    )
    first = num_rows(count - NEAR)
    return Vertices(
        pixel=pixel.reshape(-1),
        key=key.reshape(-1),
        start=start,
        count=count,
        vertex=vertex.reshape(size, n),
        weight=weight,
        num_vertices=number[-1],
        num_rows=first.sum(dtype=jnp.int32),
        num_upper=num_rows(jnp.where(first > 1, first, 0)).sum(dtype=jnp.int32),
        most_rows=first.max(),
        **fields,
    )


def num_rows(count: Int32[Array, " v"]) -> Int32[Array, " v"]:
    """Rows that hold `count` things, none for a count below 1."""
    return (jnp.maximum(count, 0) + WIDTH - 1) // WIDTH
