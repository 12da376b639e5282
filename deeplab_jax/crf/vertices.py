"""Vertices of the permutohedral lattice around given features (Adams, Baek and Davis 2010).

In d dimensions every pixel lies in a simplex of d + 1 vertices, whose weights are its
barycentric coordinates. A vertex has d + 1 integer coordinates that sum to 0, all with the same
remainder modulo d + 1, its class; the last d identify it and are packed into one key. One sort
of all keys brings the pixels of a vertex together and numbers the vertices. "Pixel" stands for
any point that has features.

Rounding follows pydensecrf to the bit, because the last bit decides in which simplex a pixel on
a border lies and so which vertices exist: products are kept from fusing with additions, and
halves round to even. The keys need 64-bit integers, which are enabled around this code alone.
The weights are differentiable in the features; which simplex a pixel lies in is not.
"""

import math
from typing import Any, cast

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Int32, Int64

from deeplab_jax.crf.xla import cumulative, gather, rounded_product, stage

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
    """Words of its vertex's key, most significant first, int64 `[(d + 1) * n]` each, ascending."""
    start: Any
    """Position of the first contribution of each vertex, int32 `[(d + 1) * n + 2]`."""
    count: Any
    """Contributions of each vertex, int32 `[(d + 1) * n + 1]`; 0 beyond the last vertex."""
    vertex: Any
    """Vertices of each pixel, int32 `[d + 1, n]`."""
    weight: Any
    """Barycentric weights of each pixel, float `[d + 1, n]`; 0 where the pixel is not valid."""
    strides: Any
    """Change of each word with its coordinates; the first of d + 1 coordinates is in none."""
    num_keys: Any
    """First words of one class; a class begins at a multiple of it, int64."""
    num_vertices: Any
    """int32."""
    num_rows: Any
    """Rows that the contributions beyond the first NEAR need, int32."""
    num_upper: Any
    """Rows that the rows of vertices with several need, int32."""
    most_rows: Any
    """Rows of the vertex that needs most, int32."""
    packs: Any
    """Whether features keep a fraction in float32 and keys fit their words, bool."""


def elevate(features: Float[Array, "d n"]) -> Float[Array, "d+1 n"]:
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
    elevated: Float[Array, "k n"],
) -> tuple[Int32[Array, "k n"], Int32[Array, "k n"], Float[Array, "k n"]]:
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
    rank = rank + cast(Array, sum(cell)).astype(jnp.int32)
    wrap = (rank < 0).astype(jnp.int32) - (rank >= size).astype(jnp.int32)
    rank = rank + wrap * size
    cell = cell + wrap
    residual = rounded_product(elevated - cell * size, np.float32(1 / size))
    by_rank = [sum(jnp.where(rank == k, residual, 0)) for k in range(size)]
    weight = [by_rank[-1] + (1 - by_rank[0])]
    weight += [by_rank[-1 - k] - by_rank[-k] for k in range(1, size)]
    return cell.astype(jnp.int32), rank, jnp.stack(weight)


def split_axes(dimension: int, words: int) -> list[slice]:
    """Which digits of the mixed-radix key stand in each word, most significant word first."""
    if words == 1:
        return [slice(0, dimension)]
    half = (dimension + 1) // 2
    return [slice(half, dimension), slice(0, half)]


def key_strides(
    digits: Int64[Array, " d"],
) -> tuple[Int64[Array, " d"], Int64[Array, ""], Float[Array, ""]]:
    """Strides of a mixed-radix key with these many values a digit, number of keys, its bits.

    The last digit counts most: in two dimensions it is the row, so that vertices are ordered as
    pixels are.
    """
    products = jnp.cumprod(digits)
    strides = jnp.append(1, products[:-1])
    number = products[-1] if digits.size else jnp.int64(1)
    return strides[: digits.size], number, jnp.log2(digits.astype(jnp.float32)).sum()


def sort_vertices(
    features: Float[Array, "d n"],
    valid: Bool[Array, " n"],
    group: Int32[Array, " n"],
    *,
    words: int = 1,
) -> Vertices:
    """Distinct lattice vertices of the valid points.

    Points of different groups, numbered from 0, have different vertices: they are the photographs
    of a batch. Keys have one 63-bit word, or two where one does not suffice (`Vertices.packs`).
    """
    d, n = features.shape
    index_bits = max(1, (n - 1).bit_length())
    elevated = stage(valid.any(), elevate, features)
    cell, rank, weight = stage(valid.any(), enclosing_simplex, elevated)
    # Digits leave room for the -1 of other classes and for one step to either side.
    lowest = jnp.min(cell[1:], axis=1, initial=2**30, where=valid) - 2
    highest = jnp.max(cell[1:], axis=1, initial=-(2**30), where=valid)
    with jax.enable_x64(True):
        digits = jnp.maximum((highest - lowest + 2).astype(jnp.int64), 1)
        parts = split_axes(d, words)
        strides, numbers, bits = zip(*[key_strides(digits[part]) for part in parts], strict=True)
        num_groups = group.max().astype(jnp.int64) + 1
        num_keys = num_groups * numbers[0] + 1  # the last key stands for points that are not valid
        group_key = group.astype(jnp.int64) * numbers[0]
        index = jnp.arange(n, dtype=jnp.int64)
        classes = []
        for k in range(d + 1):
            digit = (cell[1:] - lowest[:, None] - (rank[1:] > d - k)).astype(jnp.int64)
            keys = [
                sum((x * s for x, s in zip(digit[part], by, strict=True)), jnp.zeros_like(index))
                for part, by in zip(parts, strides, strict=True)
            ]
            keys[0] = jnp.where(valid, keys[0] + group_key, num_keys - 1)
            keys[1:] = [jnp.where(valid, key, 0) for key in keys[1:]]
            keys[-1] = (keys[-1] << index_bits) | index
            classes.append(lax.sort(keys, num_keys=words, is_stable=False))
        words_of = [jnp.stack(word) for word in zip(*classes, strict=True)]
        pixel = (words_of[-1] & (2**index_bits - 1)).astype(jnp.int32)
        words_of[-1] = words_of[-1] >> index_bits
        nobody = words_of[0] == num_keys - 1
        words_of[0] += num_keys * jnp.arange(d + 1)[:, None]
        group_bits = jnp.log2(num_groups.astype(jnp.float32))
        key = tuple(word.reshape(-1) for word in words_of)
        first = sum(word[1:] != word[:-1] for word in key) > 0
        first = jnp.append(True, first)
    room = [max(index_bits, 4) if words == 1 else 4, index_bits]
    bits = [bits[0] + group_bits, *bits[1:]]
    packs = jnp.abs(elevated).max() < 2**23
    for used, more in zip(bits, room, strict=False):
        packs &= used + more < 62
    return number_vertices(
        pixel,
        first,
        nobody,
        jnp.where(valid, weight, 0),
        key=key,
        strides=strides,
        num_keys=num_keys,
        packs=packs,
    )


def number_vertices(
    pixel: Int32[Array, "k n"],
    leads: Bool[Array, " items"],
    nobody: Bool[Array, "k n"],
    weight: Float[Array, "k n"],
    **fields,
) -> Vertices:
    """Vertices from sorted contributions; `leads` marks where the next vertex begins."""
    size, n = pixel.shape
    items = size * n
    position = jnp.arange(items, dtype=jnp.int32)
    number = cumulative(jnp.add, leads.astype(jnp.int32))
    start = jnp.full(items + 2, items, jnp.int32)
    start = start.at[jnp.where(leads, number, items + 2)].set(position, mode="drop")
    count = jnp.diff(start).at[0].set(0)
    empty = gather(jnp.append(nobody.reshape(-1), True), start[:-1])
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
