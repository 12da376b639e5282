"""The lattice of known points by NumPy: on CPUs nothing has to be compiled for it.

The tables are those of `lattice` to the bit, but for the order of the vertices: by key, those of
all classes with the same key together. Neighbors are near each other in memory then, and inference
on CPUs takes up to a fifth less time. Keys have one 63-bit word.
"""

import math
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int32, Int64, Integer, Shaped

from deeplab_jax.crf import lattice as tables
from deeplab_jax.crf.filtering import divided
from deeplab_jax.crf.lattice import (
    NEAR,
    WIDTH,
    Features,
    Group,
    Lattice,
    Valid,
    Vertices,
    contributions,
    num_rows,
)

THREADS = min(4, os.cpu_count() or 1)  # classes of vertices, or axes, at the same time


def enclosing_simplex(
    elevated: Float[np.ndarray, "k n"],
) -> tuple[Int64[np.ndarray, "k n"], Integer[np.ndarray, "k n"], Float[np.ndarray, "k n"]]:
    """Class-0 vertex divided by d + 1, the axis of each rank, barycentric weights by class."""
    size = len(elevated)
    cell = np.rint(elevated * np.float32(1 / size))
    residual = elevated - cell * size
    rank = cell.sum(axis=0).astype(np.int8) + np.zeros((size, 1), np.int8)
    for i in range(size):
        for j in range(i + 1, size):
            behind = residual[i] < residual[j]
            rank[i] += behind
            rank[j] += ~behind
    wrap = (rank < 0).astype(np.int8) - (rank >= size)
    rank += wrap * np.int8(size)
    cell += wrap
    residual = (elevated - cell * size) * np.float32(1 / size)
    point = np.arange(elevated.shape[1])
    axis = np.empty(rank.shape, np.int8)
    by_rank = np.empty_like(residual)
    for i in range(size):
        axis[rank[i], point] = i
        by_rank[rank[i], point] = residual[i]
    weight = np.empty_like(by_rank)
    weight[0] = by_rank[-1] + (1 - by_rank[0])
    weight[1:] = by_rank[-2::-1] - by_rank[:0:-1]
    return cell.astype(np.int64), axis, weight


def sort_keys(
    key: Int64[np.ndarray, " n"], *, index_bits: int
) -> tuple[Int32[np.ndarray, " n"], Int64[np.ndarray, " n"], Bool[np.ndarray, " n"]]:
    """Pixels in the order of their keys, the keys sorted in place, and where a new key begins."""
    key <<= index_bits
    key |= np.arange(len(key))
    key.sort()
    pixel = (key & (2**index_bits - 1)).astype(np.int32)
    key >>= index_bits
    return pixel, key, np.append(True, key[1:] != key[:-1])


def sort_vertices(features: Features, valid: Valid, group: Group) -> Vertices | None:
    """`lattice.sort_vertices`, its tables without room to spare; None if a key needs two words."""
    d, n = features.shape
    index_bits = max(1, (n - 1).bit_length())
    elevated = np.asarray(tables.elevate(features))
    if not np.abs(elevated).max() < 2**23:
        return None
    cell, axis, weight = enclosing_simplex(elevated)
    there = cell[1:, valid] if not valid.all() else cell[1:]
    lowest = there.min(axis=1, initial=2**30) - 2
    digits = np.maximum(there.max(axis=1, initial=-(2**30)) - lowest + 2, 1).tolist()
    strides = np.array([math.prod(digits[:i]) for i in range(d)], object)
    num_keys = (int(group.max()) + 1) * math.prod(digits) + 1
    if num_keys.bit_length() + max(index_bits, 4) >= 62:
        return None
    strides = np.append(0, strides).astype(np.int64)  # coordinate 0 is in no key
    keys = [group.astype(np.int64) * math.prod(digits) - lowest @ strides[1:]]
    for stride, row in zip(strides[1:], cell[1:], strict=True):
        keys[0] += stride * row
    for k in range(1, d + 1):
        keys.append(keys[-1] - strides[axis[d + 1 - k]])
    for key in keys:
        key[~valid] = num_keys - 1
    sort = partial(sort_keys, index_bits=index_bits)
    with ThreadPoolExecutor(THREADS) as threads:
        pixel, key, leads = (np.stack(x) for x in zip(*threads.map(sort, keys), strict=True))
    items = (d + 1) * n
    begin = np.flatnonzero(leads).astype(np.int32)
    key_of = key.reshape(-1)[begin]
    order = np.argsort(key_of, kind="stable")
    count = np.diff(begin, append=np.int32(items))[order]
    count[key_of[order] == num_keys - 1] = 0
    count = np.append(np.int32(0), count)
    number = np.empty(len(order), np.int32)
    number[order] = np.arange(1, len(order) + 1)
    by_pixel = number[np.cumsum(leads) - 1].reshape(d + 1, n)
    vertex = np.empty((d + 1, n), np.int32)
    for row, where, numbers in zip(vertex, pixel, by_pixel, strict=True):
        row[where] = numbers
    return Vertices(
        pixel=pixel.reshape(-1),
        key=(key + num_keys * np.arange(d + 1)[:, None]).reshape(-1)[None],
        start=np.append(np.int32(items), begin[order]),
        count=count,
        vertex=vertex,
        weight=np.where(valid, weight, np.zeros((), weight.dtype)),
        strides=(strides[1:],),
        num_keys=num_keys,
        num_vertices=np.int32(len(order)),
        packs=np.True_,
        **tables.numbers_of_rows(count),
    )


def blank_table(
    shape: tuple[int, ...], fill: Any, dtype: Any = np.int32
) -> Shaped[np.ndarray, "..."]:
    """An array of one value, at an address that JAX takes over without a copy."""
    dtype = np.dtype(dtype)
    size = math.prod(shape) * dtype.itemsize
    memory = np.empty(size + 64, np.uint8)
    offset = -memory.ctypes.data % 64
    table = memory[offset : offset + size].view(dtype).reshape(shape)
    table[...] = fill
    return table


def connect(
    vertices: Vertices, *, vertex_bound: int, row_bound: int, upper_bound: int, num_levels: int
) -> Lattice:
    """`lattice.connect`: tables for up to `vertex_bound` vertices, which must suffice."""
    size, n = vertices.vertex.shape
    v = min(vertex_bound, size * n) + 1
    present = len(vertices.count)
    begin, count = vertices.start[:present], vertices.count
    contribution = partial(contributions, vertices)
    nobody, kind = vertices.pixel[0], vertices.weight.dtype
    near_pixel, near_weight = blank_table((NEAR, v), nobody), blank_table((NEAR, v), 0, kind)

    def fill_near(slot):
        found = contribution(begin + slot, slot < count)
        near_pixel[slot, :present], near_weight[slot, :present] = found

    rest = np.maximum(count - NEAR, 0)
    rows = num_rows(rest)
    first_row = 1 + np.cumsum(rows, dtype=np.int32) - rows
    owner = np.repeat(np.arange(present), rows)
    line = np.arange(1, len(owner) + 1, dtype=np.int32) - first_row[owner]
    row_pixel = blank_table((WIDTH, row_bound + 1), nobody)
    row_weight = blank_table((WIDTH, row_bound + 1), 0, kind)
    used = slice(1, len(owner) + 1)
    first, most = begin[owner] + NEAR, rest[owner]

    def fill_row(i):
        slot = line * WIDTH + i
        row_pixel[i, used], row_weight[i, used] = contribution(first + slot, slot < most)

    with ThreadPoolExecutor(THREADS) as threads:
        list(threads.map(fill_near, range(NEAR)))
        list(threads.map(fill_row, range(WIDTH)))
    pointer = np.zeros(v, np.int32)
    pointer[:present] = np.where(rest > 0, first_row, 0)
    siblings = np.zeros(row_bound + 1, np.int32)
    siblings[used] = rows[owner]
    lines = np.zeros(row_bound + 1, np.int32)
    lines[used] = line
    bounds = tables.level_bounds(upper_bound, n)[:num_levels]
    rows_of = tables.rows_of_rows(tables.next_level, pointer, lines, siblings, bounds)
    neighbors = find_neighbors(vertices, v)
    parts = near_pixel, near_weight, row_pixel, row_weight, *rows_of, neighbors
    return tables.lattice_of(vertices, np.True_, *parts, pair_hops(neighbors))


def find_neighbors(vertices: Vertices, v: int) -> tuple[Int32[np.ndarray, "2 v"], ...]:
    """Numbers of the two neighbors of each vertex along each axis, 0 where there is none."""
    size = len(vertices.vertex)
    (key,), (strides,) = vertices.key, vertices.strides
    kind, cell = np.divmod(key[vertices.start[1:]], vertices.num_keys)
    numbers = [np.flatnonzero(kind == k) for k in range(size)]
    cells = [cell[which] for which in numbers]  # each ascending

    def along(axis):
        ahead, behind = result = blank_table((2, v), 0)
        up = strides[axis - 1] if axis > 0 else 0
        for k in range(size):  # a step leads to the class before, from 0 one cell down to the last
            table, wanted = cells[k - 1], cells[k] + (up if k else up - strides.sum())
            found = np.searchsorted(table, wanted)
            found[found == len(table)] = 0
            equal = np.flatnonzero(table[found] == wanted)
            here, there = 1 + numbers[k][equal], 1 + numbers[k - 1][found[equal]]
            ahead[here], behind[there] = there, here
        return result

    with ThreadPoolExecutor(THREADS) as threads:
        return tuple(threads.map(along, range(size)))


def pair_hops(
    neighbors: Sequence[Int32[np.ndarray, "2 v"]],
) -> tuple[Int32[np.ndarray, "8 v"], ...]:
    """Where a blur along two axes in turn reads: by 4 single steps, then by 4 double ones."""

    def join(first, second):
        v = first.shape[1]
        result = blank_table((8, v), 0)
        result[:2], result[2:4] = first, second
        np.take(first, second, axis=1, out=result[4:].reshape(2, 2, v), mode="clip")
        return result

    with ThreadPoolExecutor(THREADS) as threads:
        return tuple(threads.map(join, neighbors[:-1:2], neighbors[1::2]))


def normalize(lattice: Lattice, normalization: str) -> Lattice:
    """`filtering.normalize`."""
    if normalization == "none":
        return lattice
    below = lattice.row_weight.sum(axis=0)
    values, upper = lattice.near_weight.sum(axis=0) + below[lattice.row], []
    for children in lattice.levels:
        below = below[children].sum(axis=0)
        upper.append(below)
    if upper:
        values += np.concatenate(upper)[lattice.root]
    for ahead, behind in lattice.neighbors:
        values = values + np.float32(0.5) * (values[ahead] + values[behind])
    pairs = zip(lattice.vertex, lattice.slice_weight, strict=True)
    total = np.sum([values[index] * weight for index, weight in pairs], axis=0)
    return divided(lattice, total, normalization)
