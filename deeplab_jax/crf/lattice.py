"""The permutohedral lattice, built under `jit` (Adams, Baek and Davis 2010).

A lattice of dimension d stores functions of d features on sparse vertices: every pixel lies in
a simplex of d + 1 vertices, and two vertices are neighbors where they differ by one step of the
lattice. `sort_vertices` finds the distinct vertices and counts them; `connect` turns them into
the index tables with which `filtering` works by gathers alone. Both have static shapes, so the
second takes bounds: a lattice that exceeds them has `fits` false and filters to NaN.

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
from jaxtyping import Array, Bool, Float, Float32, Int32, Integer, Shaped

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
    steps: Any
    """Change of the key by one step along each axis of each class, int64 `[d + 1, d + 1]`."""
    num_vertices: Any
    """int32."""
    num_rows: Any
    """The `row_bound` that the contributions beyond the first NEAR need, int32."""
    packs: Any
    """Whether the keys fit 63 bits, bool."""


@flax.struct.dataclass
class Lattice:
    """Index tables of the filter on v - 1 vertices; row 0 of a table is no vertex."""

    vertex: Any
    """Vertices of each pixel, int32 `[d + 1, n]`."""
    slice_weight: Any
    """Weights for reading them, float32 `[d + 1, n]`."""
    near_pixel: Any
    """First pixels that contribute to each vertex, int32 `[NEAR, v]`."""
    near_weight: Any
    """Their weights, float32 `[NEAR, v]`; 0 where there are fewer."""
    row_pixel: Any
    """The other contributing pixels in rows, of which row 0 is empty, int32 `[WIDTH, r]`."""
    row_weight: Any
    """Their weights, float32 `[WIDTH, r]`."""
    levels: Any
    """Rows of rows: at each level rows of the level before, 0 for none, int32 `[WIDTH, r_k]`."""
    root: Any
    """Row, counted through all levels, with the rest of each vertex, 0 for none, int32 `[v]`."""
    neighbors: Any
    """Neighbors of each vertex, for each of d + 1 axes int32 `[2, v]`."""
    hops: Any
    """Vertices reached by a step along either of two axes, and then both: int32 `[8, v]`."""
    ratio: Any
    """Normalization after the filter over normalization before it, float32 `[n]`."""
    num_vertices: Any
    """int32."""
    num_rows: Any
    """int32."""
    fits: Any
    """Whether bounds and key size sufficed, bool."""


def rounded_product(
    a: Float32[Array, "*a"], b: Float32[Array, "*b"] | np.ndarray | np.float32
) -> Float32[Array, "..."]:
    """a * b rounded to float32 before it is added to anything (no fused multiply-add)."""
    product = a * b
    return jnp.where(product == product, product, 0)


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
    cell: Int32[Array, "d n"], valid: Bool[Array, "n"], num_groups: int
) -> tuple[Int32[Array, "d"], Integer[Array, "_"], Float[Array, ""]]:
    """Lowest digits, strides of the mixed-radix key (last: number of keys), and its bits.

    Digits leave room for the -1 of other classes and for one step to either side.
    """
    lowest = jnp.min(cell, axis=1, initial=2**30, where=valid) - 2
    digits = (jnp.max(cell, axis=1, initial=-(2**30), where=valid) - lowest + 2).astype(jnp.int64)
    digits = jnp.maximum(digits, 1)
    strides = jnp.append(jnp.cumprod(digits[::-1])[::-1], 1)
    bits = jnp.log2(digits.astype(jnp.float32)).sum() + math.log2(num_groups)
    return lowest, jnp.append(strides[1:], num_groups * strides[0]), bits


def sort_vertices(
    features: Float32[Array, "d n"],
    valid: Bool[Array, "n"],
    group: Int32[Array, "n"],
    num_groups: int,
) -> Vertices:
    """Distinct lattice vertices of the valid pixels; those of two groups are never the same.

    Groups are numbered from 0 and are the images of a batch.
    """
    d, n = features.shape
    index_bits = max(1, (n - 1).bit_length())
    cell, rank, weight = enclosing_simplex(elevate(features))
    with jax.enable_x64(True):
        lowest, strides, bits = key_strides(cell[:d], valid, num_groups)
        num_keys = strides[-1] + 1
        image_key = group.astype(jnp.int64) * (strides[-1] // num_groups)
        packed = []
        for k in range(d + 1):
            digits = cell[:d] - lowest[:, None] - (rank[:d] > d - k)
            key = image_key + sum(digits[i].astype(jnp.int64) * strides[i] for i in range(d))
            key = jnp.where(valid, key, num_keys - 1)
            packed.append(lax.sort((key << index_bits) | jnp.arange(n), is_stable=False))
        packed = jnp.stack(packed)
        pixel = (packed & (2**index_bits - 1)).astype(jnp.int32)
        key = (packed >> index_bits) + num_keys * jnp.arange(d + 1)[:, None]
        nobody = (packed >> index_bits) == num_keys - 1
        steps = class_steps(strides[:d], num_keys)
        first = jnp.append(True, key.reshape(-1)[1:] != key.reshape(-1)[:-1])
    return number_vertices(
        pixel, key, first, nobody, jnp.where(valid, weight, 0), steps, bits + index_bits < 62
    )


def class_steps(
    strides: Integer[Array, "d"], num_keys: Integer[Array, ""]
) -> Integer[Array, "d+1 d+1"]:
    """Change of the key by a step along axis j (column) from a vertex of class k (row).

    A step subtracts 1 from every coordinate and adds d + 1 to the j-th; it leads to class k - 1.
    """
    d = len(strides)
    along = jnp.append(strides, 0)
    down = jnp.append(d * num_keys - strides.sum(), jnp.full(d, -num_keys))
    return down[:, None] + along


def number_vertices(
    pixel: Int32[Array, "k n"],
    key: Integer[Array, "k n"],
    first: Bool[Array, "items"],
    nobody: Bool[Array, "k n"],
    weight: Float32[Array, "k n"],
    steps: Integer[Array, "k k"],
    packs: Bool[Array, ""],
) -> Vertices:
    """Vertices from sorted contributions; `first` marks where the next vertex begins."""
    size, n = pixel.shape
    items = size * n
    position = jnp.arange(items, dtype=jnp.int32)
    number = jnp.cumsum(first, dtype=jnp.int32)
    start = jnp.full(items + 2, items, jnp.int32)
    start = start.at[jnp.where(first, number, items + 2)].set(position, mode="drop")
    count = jnp.diff(start).at[0].set(0)
    empty = jnp.append(nobody.reshape(-1), True)[start[:-1]]
    count = jnp.where(empty, 0, count)
    slot = (pixel + n * jnp.arange(size, dtype=jnp.int32)[:, None]).reshape(-1)
    vertex = jnp.zeros(items, jnp.int32).at[slot].set(
        number, unique_indices=True, mode="promise_in_bounds"
    )
    return Vertices(
        pixel=pixel.reshape(-1),
        key=key.reshape(-1),
        start=start,
        count=count,
        vertex=vertex.reshape(size, n),
        weight=weight,
        steps=steps,
        num_vertices=number[-1],
        num_rows=needed_rows(count),
        packs=packs,
    )


def num_rows(count: Int32[Array, "v"]) -> Int32[Array, "v"]:
    """Rows that hold `count` things, none for a count below 1."""
    return (jnp.maximum(count, 0) + WIDTH - 1) // WIDTH


def needed_rows(count: Int32[Array, "v"]) -> Int32[Array, ""]:
    """Smallest `row_bound` for vertices with this many contributions: see `row_bounds`."""
    first = num_rows(count - NEAR)
    second = num_rows(jnp.where(first > 1, first, 0))
    return jnp.maximum(first.sum(), 4 * second.sum())


def row_bounds(row_bound: int, num_pixels: int) -> list[int]:
    """Rows of each level: of contributions, of rows, of rows of rows, until one is left.

    The second level has a quarter of the first by agreement. A vertex with m rows in it, two at
    least, has at most m / 2 in the third; nine at least, at most m / 9 in the fourth; and so on.
    """
    bounds = [row_bound]
    longest = -(-num_pixels // WIDTH)  # rows of one vertex, which has each pixel once
    fewest = 1
    while longest > 1:
        bounds.append(row_bound // 4 // fewest + 1)
        longest = -(-longest // WIDTH)
        fewest = 2 if fewest == 1 else (fewest - 1) * WIDTH + 1
    return bounds


def row_positions(
    begin: Int32[Array, "v"], count: Int32[Array, "v"], num: int
) -> tuple[Int32[Array, "_ rows"], Bool[Array, "_ rows"], Int32[Array, "v"]]:
    """Lays the runs begin, begin + 1, ... of `count` positions into rows 1 to `num` of WIDTH.

    Returns positions, which of them belong to a run, and the first row of each run.
    """
    rows = num_rows(count)
    first_row = 1 + jnp.cumsum(rows, dtype=jnp.int32) - rows
    owner = jnp.zeros(num + 1, jnp.int32)
    owner = owner.at[jnp.where(rows > 0, first_row, num + 1)].set(
        jnp.arange(len(begin), dtype=jnp.int32), mode="drop"
    )
    owner = lax.cummax(owner)
    offset = (jnp.arange(num + 1, dtype=jnp.int32) - first_row[owner]) * WIDTH
    offset = offset + jnp.arange(WIDTH, dtype=jnp.int32)[:, None]
    return begin[owner] + offset, (offset >= 0) & (offset < count[owner]), first_row


def rows_of_rows(
    first_row: Int32[Array, "v"], rows: Int32[Array, "v"], bounds: list[int]
) -> tuple[tuple[Int32[Array, "_ _"], ...], Int32[Array, "v"]]:
    """Levels that sum the rows of each vertex down to one, and that one's number.

    `bounds` are the rows of each level, the first of which is given by its first rows.
    """
    root = jnp.where(rows == 1, first_row, 0)
    levels = []
    before = bounds[0] + 1
    for bound in bounds[1:]:
        several = jnp.where(rows > 1, rows, 0)
        position, inside, first_row = row_positions(first_row, several, bound)
        levels.append(jnp.where(inside, position, 0))
        rows = num_rows(several)
        root = jnp.where(rows == 1, before + first_row, root)
        before += bound + 1
    return tuple(levels), root


def find_neighbors(
    key: Integer[Array, "v"], steps: Integer[Array, "k k"], num_keys: Integer[Array, ""]
) -> Int32[Array, "k 2 v"]:
    """Numbers of the two neighbors along each axis, 0 where there is none.

    `key` ascends from index 1; index 0 and those beyond the last vertex hold the largest integer.
    """
    size, v = len(steps), len(key)
    nobody = jnp.iinfo(jnp.int64).max
    kind = jnp.clip(key // num_keys, 0, size - 1)
    wanted = jnp.where(key == nobody, -1, key + steps[kind].T)
    table = key.at[0].set(-2)

    def halve(i, low):
        middle = low + (1 << (v.bit_length() - 1 - i)).astype(jnp.int32)
        reached = table[jnp.minimum(middle, v - 1)] <= wanted
        return jnp.where(reached & (middle < v), middle, low)

    low = lax.fori_loop(0, v.bit_length(), halve, jnp.zeros((size, v), jnp.int32))
    ahead = jnp.where(table[low] == wanted, low, 0)
    numbers = jnp.broadcast_to(jnp.arange(v, dtype=jnp.int32), (size, v))
    axis = jnp.arange(size, dtype=jnp.int32)[:, None]
    behind = jnp.zeros((size, v), jnp.int32).at[axis, ahead].set(numbers).at[:, 0].set(0)
    return jnp.stack([ahead, behind], axis=1)


def pair_hops(first: Int32[Array, "2 v"], second: Int32[Array, "2 v"]) -> Int32[Array, "8 v"]:
    """Where a blur along `first` and then `second` reads: by 4 single steps, by 4 double ones."""
    both = first[:, second].reshape(4, -1)
    return jnp.concatenate([first, second, both])


def connect(vertices: Vertices, *, vertex_bound: int, row_bound: int) -> Lattice:
    """Index tables of the filter, not normalized, for up to `vertex_bound` vertices."""
    size, n = vertices.vertex.shape
    v = min(vertex_bound, size * n) + 1
    begin, count = vertices.start[:v], vertices.count[:v]
    last = size * n - 1

    def contribution(position, inside):
        position = jnp.where(inside, position, 0)
        pixel = vertices.pixel[position]
        weight = vertices.weight.reshape(-1)[position // n * n + pixel]
        return pixel, jnp.where(inside, weight, 0)

    place = jnp.arange(NEAR, dtype=jnp.int32)[:, None]
    near_pixel, near_weight = contribution(begin + place, place < count)
    position, inside, first_row = row_positions(begin + NEAR, count - NEAR, row_bound)
    row_pixel, row_weight = contribution(position, inside)
    levels, root = rows_of_rows(first_row, num_rows(count - NEAR), row_bounds(row_bound, n))
    with jax.enable_x64(True):
        exists = (jnp.arange(v) > 0) & (jnp.arange(v) <= vertices.num_vertices)
        key = jnp.where(exists, vertices.key[jnp.minimum(begin, last)], jnp.iinfo(jnp.int64).max)
        num_keys = vertices.steps[1, size - 1] * -1
        neighbors = find_neighbors(key, vertices.steps, num_keys)
    fits = vertices.packs & (vertices.num_vertices < v) & (vertices.num_rows <= row_bound)
    return Lattice(
        vertex=vertices.vertex,
        slice_weight=vertices.weight / np.float32(1 + 2.0 ** (1 - size)),
        near_pixel=near_pixel,
        near_weight=near_weight,
        row_pixel=row_pixel,
        row_weight=row_weight,
        levels=levels,
        root=root,
        neighbors=tuple(neighbors),
        hops=tuple(pair_hops(*neighbors[i : i + 2]) for i in range(0, size - 1, 2)),
        ratio=jnp.ones(n, jnp.float32),
        num_vertices=vertices.num_vertices,
        num_rows=vertices.num_rows,
        fits=fits,
    )
