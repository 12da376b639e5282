"""The lattice of known points by NumPy: on CPUs nothing has to be compiled for it.

The tables are those of `lattice` to the bit, but for the order of the vertices: by key, those of
all classes with the same key together. Neighbors are near each other in memory then, and inference
on CPUs takes up to a fifth less time. Keys have one 63-bit word.
"""

import math
import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int32, Int64, Integer, Shaped

from deeplab_jax.crf import lattice as tables
from deeplab_jax.crf.filtering import factors
from deeplab_jax.crf.lattice import (
    NEAR,
    WIDTH,
    Features,
    Group,
    Lattice,
    Valid,
    Vertices,
    num_rows,
)

THREADS = min(4, os.cpu_count() or 1)


def run_threads(function: Callable, items: Iterable) -> list:
    """The function's results for all items, several of them at the same time."""
    with ThreadPoolExecutor(THREADS) as threads:
        return list(threads.map(function, items))


def shares(n: int) -> list[slice]:
    """n points in equal parts for the threads; smaller ones cost more time than caches save."""
    size = -(-n // THREADS)
    return [slice(first, first + size) for first in range(0, n, size)]


def enclosing_simplex(
    elevated: Float[np.ndarray, "k n"],
) -> tuple[Int32[np.ndarray, "k n"], Integer[np.ndarray, "k n"], Float[np.ndarray, "k n"]]:
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
    return cell.astype(np.int32), axis, weight


def cells(features: Features, valid: Valid) -> tuple[np.ndarray, ...] | None:
    """Results of `enclosing_simplex` with weights of 0 where not valid, then the least and the
    largest of the valid coordinates; None if these are too large for float32."""
    size, n = len(features) + 1, features.shape[1]
    cell, axis = np.empty((size, n), np.int32), np.empty((size, n), np.int8)
    weight = np.zeros((size, n), features.dtype)

    def enclose(part):
        elevated = np.asarray(tables.elevate(features[:, part]))
        if not np.abs(elevated).max() < 2**23:
            return None
        cell[:, part], axis[:, part], found = enclosing_simplex(elevated)
        np.copyto(weight[:, part], found, where=valid[part])
        there = cell[1:, part][:, valid[part]]
        return there.min(axis=1, initial=2**30), there.max(axis=1, initial=-(2**30))

    ranges = run_threads(enclose, shares(n))
    if any(found is None for found in ranges):
        return None
    lowest, highest = zip(*ranges, strict=True)
    return cell, axis, weight, np.min(lowest, axis=0), np.max(highest, axis=0)


def sorted_keys(
    cell: Int32[np.ndarray, "k n"],
    axis: Integer[np.ndarray, "k n"],
    valid: Valid,
    origin: Int64[np.ndarray, " n"],
    strides: Int64[np.ndarray, " k"],
    last: int,
) -> tuple[Int64[np.ndarray, "k n"], Int32[np.ndarray, "k n"], Bool[np.ndarray, "k n"]]:
    """Of each class the ascending keys, their pixels, and where a new key begins.

    The key of a pixel is that of its cell, counted from its `origin`; `last` where it is not valid.
    """
    size, n = cell.shape
    index_bits = max(1, (n - 1).bit_length())
    key, pixel = np.empty((size, n), np.int64), np.empty((size, n), np.int32)
    leads = np.ones((size, n), bool)

    def fill(part):
        row = origin[part].copy()
        for stride, coordinate in zip(strides[1:], cell[1:, part], strict=True):
            row += stride * coordinate
        for k in range(size):
            row -= strides[axis[-k, part]] if k else 0
            key[k, part] = np.where(valid[part], row, last)

    def sort(k):
        key[k] <<= index_bits
        key[k] |= np.arange(n)
        key[k].sort()
        pixel[k] = key[k] & (2**index_bits - 1)
        key[k] >>= index_bits
        np.not_equal(key[k, 1:], key[k, :-1], out=leads[k, 1:])

    run_threads(fill, shares(n))
    run_threads(sort, range(size))
    return key, pixel, leads


def sort_vertices(features: Features, valid: Valid, group: Group) -> Vertices | None:
    """`lattice.sort_vertices`, its tables without room to spare; None if a key needs two words."""
    d, n = features.shape
    found = cells(features, valid)
    if found is None:
        return None
    cell, axis, weight, lowest, highest = found
    lowest = lowest.astype(np.int64) - 2
    digits = np.maximum(highest - lowest + 2, 1).tolist()
    strides = [math.prod(digits[:i]) for i in range(d)]
    num_keys = (int(group.max()) + 1) * math.prod(digits) + 1
    if num_keys.bit_length() + max((n - 1).bit_length(), 4) >= 62:
        return None
    strides = np.array([0, *strides], np.int64)  # coordinate 0 is in no key
    origin = np.asarray(group, np.int64) * math.prod(digits) - lowest @ strides[1:]
    key, pixel, leads = sorted_keys(cell, axis, valid, origin, strides, num_keys - 1)
    begin = np.flatnonzero(leads).astype(np.int32)
    key_of = key.reshape(-1)[begin]
    order = np.argsort(key_of, kind="stable")
    count = np.diff(begin, append=np.int32(key.size))[order]
    count[key_of[order] == num_keys - 1] = 0
    count = np.append(np.int32(0), count)
    number = np.empty(len(order), np.int32)
    number[order] = np.arange(1, len(order) + 1)
    before = np.append(0, leads.sum(axis=1).cumsum())
    vertex = np.empty(key.shape, np.int32)

    def number_vertices(k):
        vertex[k, pixel[k]] = number[before[k] - 1 + leads[k].cumsum(dtype=np.int32)]
        key[k] += k * num_keys

    run_threads(number_vertices, range(d + 1))
    return Vertices(
        pixel=pixel.reshape(-1),
        key=key.reshape(1, -1),
        start=np.append(np.int32(key.size), begin[order]),
        count=count,
        vertex=vertex,
        weight=weight,
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
    nobody, kind = vertices.pixel[0], vertices.weight.dtype
    pixel = np.append(vertices.pixel, nobody)
    sorted_weight = np.take_along_axis(vertices.weight, vertices.pixel.reshape(size, n), axis=1)
    weight = np.append(sorted_weight, kind.type(0))
    rest = np.maximum(count - NEAR, 0)
    rows = num_rows(rest)
    first_row = 1 + np.cumsum(rows, dtype=np.int32) - rows
    owner = np.repeat(np.arange(present), rows)
    line = np.arange(1, len(owner) + 1, dtype=np.int32) - first_row[owner]
    used = slice(1, len(owner) + 1)

    def table(slots, length, columns, first, number):  # a run of `number` contributions a column
        pixels = blank_table((slots, length), nobody)
        weights = blank_table((slots, length), 0, kind)

        def fill(slot):
            position = np.where(slot < number, first + np.int32(slot), np.int32(size * n))
            np.take(pixel, position, out=pixels[slot, columns], mode="clip")
            np.take(weight, position, out=weights[slot, columns], mode="clip")

        run_threads(fill, range(slots))
        return pixels, weights

    near = table(NEAR, v, slice(present), begin, count)
    first = begin[owner] + NEAR + WIDTH * line
    far = table(WIDTH, row_bound + 1, used, first, rest[owner] - WIDTH * line)
    siblings, lines = np.zeros(row_bound + 1, np.int32), np.zeros(row_bound + 1, np.int32)
    siblings[used], lines[used] = rows[owner], line
    bounds = tables.level_bounds(upper_bound, n)[:num_levels]
    crowded = np.flatnonzero(rest)
    climb = tables.next_level, first_row[crowded], lines, siblings, bounds
    one_row, levels, several = tables.rows_of_rows(*climb)
    row, root = blank_table((v,), 0), blank_table((v,), 0)
    row[crowded], root[crowded] = one_row, several
    neighbors = find_neighbors(vertices, v)
    steps = neighbors, double_steps(neighbors)
    return tables.lattice_of(vertices, np.True_, *near, *far, row, levels, root, *steps)


def find_neighbors(vertices: Vertices, v: int) -> tuple[Int32[np.ndarray, "2 v"], ...]:
    """Numbers of the two neighbors of each vertex along each axis, 0 where there is none."""
    size = len(vertices.vertex)
    (key,), (strides,) = vertices.key, vertices.strides
    kind, cell = np.divmod(key[vertices.start[1:]], vertices.num_keys)
    numbers = [1 + np.flatnonzero(kind == k) for k in range(size)]
    cells = [cell[which - 1] for which in numbers]  # each ascending

    def along(axis):
        ahead, behind = result = blank_table((2, v), 0)
        up = strides[axis - 1] if axis > 0 else 0
        for k in range(size):  # a step leads to the class before, from 0 one cell down to the last
            table, wanted = cells[k - 1], cells[k] + (up if k else up - strides.sum())
            both = np.append(table, wanted)
            order = both.argsort(kind="stable")  # of two ascending lists: a merge
            both = both[order]
            equal = np.flatnonzero(both[1:] == both[:-1])
            here = numbers[k][order[equal + 1] - len(table)]
            there = numbers[k - 1][order[equal]]
            ahead[here], behind[there] = there, here
        return result

    return tuple(run_threads(along, range(size)))


def double_steps(
    neighbors: Sequence[Int32[np.ndarray, "2 v"]],
) -> tuple[Int32[np.ndarray, "4 v"], ...]:
    """`lattice.double_steps`."""
    pairs = zip(neighbors[:-1:2], neighbors[1::2], strict=True)
    return tuple(np.take(*pair, axis=1, mode="clip").reshape(4, -1) for pair in pairs)


def normalize(lattice: Lattice, normalization: str) -> Lattice:
    """`filtering.normalize`, which changes the weights of the lattice in place."""
    if normalization == "none":
        return lattice
    present = slice(int(lattice.num_vertices) + 1)
    below = lattice.row_weight.sum(axis=0)
    values, upper = lattice.near_weight[:, present].sum(axis=0) + below[lattice.row[present]], []
    for children in lattice.levels:
        below = below[children].sum(axis=0)
        upper.append(below)
    if upper:
        values += np.concatenate(upper)[lattice.root[present]]
    for pair in lattice.neighbors:
        ahead, behind = pair[:, present]
        values = values + np.float32(0.5) * (values[ahead] + values[behind])
    pairs = zip(lattice.vertex, lattice.slice_weight, strict=True)
    total = np.sum([values[index] * weight for index, weight in pairs], axis=0)
    total[total == 0] = 1  # of a pixel that is not valid
    before, after = factors(total, normalization)

    for table, factor in ((lattice.splat_weight, before), (lattice.slice_weight, after)):
        table *= factor

    def divide(row):
        weights, pixels = row
        weights *= before[pixels]

    run_threads(divide, zip(lattice.near_weight, lattice.near_pixel, strict=True))
    run_threads(divide, zip(lattice.row_weight, lattice.row_pixel, strict=True))
    return replace(lattice, ratio=after / before)
