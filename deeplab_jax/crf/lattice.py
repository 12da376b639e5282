"""The lattice as index tables, from which `filtering` needs gathers only.

Tables have static shapes, so `connect` takes bounds: a lattice that exceeds them has `fits`
false, and whatever is filtered with it becomes NaN.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Int32, Integer

from deeplab_jax.crf.vertices import NEAR, WIDTH, Vertices, num_rows
from deeplab_jax.crf.xla import cumulative, gather, stage


@flax.struct.dataclass
class Lattice:
    """Index tables of the filter on v - 1 vertices; row 0 of a table is no vertex."""

    vertex: Any
    """Vertices of each pixel, int32 `[d + 1, n]`."""
    splat_weight: Any
    """Weights with which a pixel contributes to them, float `[d + 1, n]`; gradients reach it."""
    slice_weight: Any
    """Weights with which they make up a pixel's result, float `[d + 1, n]`; gradients reach it."""
    near_pixel: Any
    """First pixels that contribute to each vertex, int32 `[NEAR, v]`."""
    near_weight: Any
    """Their entries of `splat_weight`, `[NEAR, v]`; 0 where there are fewer."""
    row_pixel: Any
    """The other contributing pixels in rows, of which row 0 is empty, int32 `[WIDTH, r]`."""
    row_weight: Any
    """Their entries of `splat_weight`, `[WIDTH, r]`."""
    row: Any
    """Row of each vertex that needs only one, 0 for the others, int32 `[v]`."""
    levels: Any
    """Rows of rows: at each level rows of the level before, 0 for none, int32 `[WIDTH, r_k]`."""
    root: Any
    """Row, counted through `levels`, that sums a vertex's rows, 0 for none, int32 `[v]`."""
    neighbors: Any
    """Neighbors of each vertex, for each of d + 1 axes int32 `[2, v]`."""
    hops: Any
    """Vertices reached by a step along either of two axes, and then both: int32 `[8, v]`."""
    ratio: Any
    """Normalization after the filter over normalization before it, `[n]`."""
    num_vertices: Any
    """int32."""
    fits: Any
    """Whether bounds and key size sufficed, bool."""


def level_bounds(upper_bound: int, num_pixels: int) -> list[int]:
    """Rows of each level above the contributions' rows, until a vertex has one left.

    `upper_bound` is that of the first. A vertex with m rows in it, two at least, has at most m / 2
    in the second; nine at least, at most m / 9 in the third; and so on.
    """
    bounds = []
    longest = -(-num_pixels // WIDTH)  # rows of one vertex, which has each pixel once
    fewest = 1
    while longest > 1:
        bounds.append(upper_bound // fewest + 1)
        longest = -(-longest // WIDTH)
        fewest = 2 if fewest == 1 else (fewest - 1) * WIDTH + 1
    return bounds


def lay_rows(
    count: Int32[Array, " v"], num: int
) -> tuple[Int32[Array, " v"], Int32[Array, " rows"], Int32[Array, " rows"]]:
    """Assigns runs of `count` contributions to rows 1 to `num` of WIDTH, each run from a new row.

    Returns the first row of each run, the run of each row, and its number among the run's rows.
    """
    rows = num_rows(count)
    first_row = 1 + cumulative(jnp.add, rows) - rows
    run = jnp.zeros(num + 1, jnp.int32)
    run = run.at[jnp.where(rows > 0, first_row, num + 1)].set(
        jnp.arange(len(count), dtype=jnp.int32), mode="drop"
    )
    run = cumulative(jnp.maximum, run)
    return first_row, run, jnp.arange(num + 1, dtype=jnp.int32) - gather(first_row, run)


def next_level(
    pointer: Int32[Array, " v"],
    line: Int32[Array, " rows"],
    siblings: Int32[Array, " rows"],
    bound: int,
) -> tuple[Int32[Array, "_ _"], Int32[Array, " v"], Int32[Array, " _"], Int32[Array, " _"]]:
    """Rows that sum the rows of the vertices that have several; then pointer, line and siblings.

    `pointer` is the first row of each vertex, 0 for none; `line` numbers the rows of a vertex and
    `siblings` is how many it has.
    """
    head = (line % WIDTH == 0) & (line < siblings) & (siblings > 1)
    number = cumulative(jnp.add, head.astype(jnp.int32))
    first = jnp.zeros(bound + 1, jnp.int32)
    first = first.at[jnp.where(head, number, bound + 1)].set(
        jnp.arange(len(head), dtype=jnp.int32), mode="drop"
    )
    within = jnp.arange(WIDTH, dtype=jnp.int32)[:, None]
    line, count = gather(line, first), gather(siblings, first)
    children = jnp.where(line + within < count, first + within, 0)
    pointer = jnp.where(gather(siblings, pointer) > 1, gather(number, pointer), 0)
    return children, pointer, line // WIDTH, num_rows(count).at[0].set(0)


def rows_of_rows(
    proceed: Bool[Array, ""],
    pointer: Int32[Array, " v"],
    line: Int32[Array, " rows"],
    siblings: Int32[Array, " rows"],
    bounds: list[int],
) -> tuple[tuple[Int32[Array, "_ _"], ...], Int32[Array, " v"]]:
    """Levels that sum the rows of each vertex that has several, and the number of the last.

    `bounds` are the rows of each level; for the others see `next_level`.
    """
    root = jnp.zeros_like(pointer)
    levels = []
    before = 0
    for bound in bounds:
        climb = partial(next_level, bound=bound)
        children, pointer, line, siblings = stage(proceed, climb, pointer, line, siblings)
        levels.append(children)
        root = jnp.where(gather(siblings, pointer) == 1, before + pointer, root)
        before += bound + 1
    return tuple(levels), root


def stepped_keys(
    key: Sequence[Integer[Array, " v"]],
    strides: Sequence[Integer[Array, " _"]],
    num_keys: Integer[Array, ""],
) -> list[Integer[Array, "axes v"]]:
    """Keys, word by word, after one step along each axis.

    A step subtracts 1 from every coordinate and adds d + 1 to one of them: it leads from class
    k to class k - 1, and from class 0 one cell down in every coordinate to class d.
    """
    d = sum(len(word) for word in strides)
    from_class_0 = key[0] < num_keys
    stepped = []
    axis = 1 + (len(strides[1]) if len(strides) > 1 else 0)  # of the first word's first digit
    for number, (word, by) in enumerate(zip(key, strides, strict=True)):
        to_class_d, to_next = (d * num_keys, -num_keys) if number == 0 else (0, 0)
        down = jnp.where(from_class_0, to_class_d - by.sum(), to_next)
        up = jnp.zeros(d + 1, jnp.int64).at[axis : axis + len(by)].set(by)
        stepped.append(word + down + up[:, None])
        axis = 1
    return stepped


def find(
    table: Sequence[Integer[Array, " v"]], wanted: Sequence[Integer[Array, "k v"]]
) -> Int32[Array, "k v"]:
    """Positions of the wanted numbers in an ascending table, 0 where they are not in it.

    Numbers are given word by word, the most significant first.
    """
    v = len(table[0])

    def at_most(words, others):
        (word, *rest), (other, *other_rest) = words, others
        if not rest:
            return word <= other
        return (word < other) | ((word == other) & at_most(rest, other_rest))

    def halve(i, low):
        middle = low + jnp.right_shift(1 << (v.bit_length() - 1), i)
        there = [gather(word, jnp.minimum(middle, v - 1)) for word in table]
        return jnp.where(at_most(there, wanted) & (middle < v), middle, low)

    shape = wanted[0].shape
    low = lax.fori_loop(jnp.int32(0), v.bit_length(), halve, jnp.zeros(shape, jnp.int32))
    equal = sum(gather(word, low) != w for word, w in zip(table, wanted, strict=True)) == 0
    return jnp.where(equal, low, 0)


def find_neighbors(vertices: Vertices, v: int) -> Int32[Array, "axes 2 v"]:
    """Numbers of the two neighbors of each vertex along each axis, 0 where there is none."""
    number = jnp.arange(v, dtype=jnp.int32)
    exists = (number > 0) & (number <= vertices.num_vertices)
    with jax.enable_x64(True):
        first = jnp.minimum(vertices.start[:v], len(vertices.key[0]) - 1)
        beyond = jnp.iinfo(jnp.int64).max
        key = [
            jnp.where(number > vertices.num_vertices, beyond, gather(word, first)).at[0].set(-1)
            for word in vertices.key
        ]
        wanted = stepped_keys(key, vertices.strides, vertices.num_keys)
        wanted = [jnp.where(exists, word, -2) for word in wanted]
        ahead = stage(vertices.packs, find, key, wanted)
    axis = jnp.arange(len(ahead), dtype=jnp.int32)[:, None]
    behind = jnp.zeros(ahead.size, jnp.int32)
    behind = behind.at[ahead + v * axis].set(number, mode="promise_in_bounds")
    return jnp.stack([ahead, behind.reshape(ahead.shape).at[:, 0].set(0)], axis=1)


def pair_hops(neighbors: Int32[Array, "axes 2 v"]) -> Int32[Array, "pairs 8 v"]:
    """Where a blur along two axes in turn reads: by 4 single steps, then by 4 double ones.

    A double step goes along the second axis first: what it finds was blurred along the first.
    """
    size, _, v = neighbors.shape
    first, second = neighbors[0 : size - 1 : 2], neighbors[1::2]
    start = v * jnp.arange(2 * len(first), dtype=jnp.int32).reshape(-1, 2, 1, 1)
    double = gather(first.reshape(-1), second[:, None] + start)
    return jnp.concatenate([first, second, double.reshape(-1, 4, v)], axis=1)


def connect(
    vertices: Vertices,
    *,
    vertex_bound: int,
    row_bound: int,
    upper_bound: int,
    num_levels: int | None = None,
) -> Lattice:
    """Index tables of the filter, not normalized, for up to `vertex_bound` vertices.

    The other bounds are for rows of contributions, for rows of such rows, and for how often rows
    are summed to rows; None: as often as any lattice needs.
    """
    size, n = vertices.vertex.shape
    v = min(vertex_bound, size * n) + 1
    begin, count = vertices.start[:v], vertices.count[:v]
    flat_weight = lax.stop_gradient(vertices.weight).reshape(-1)

    def contribution(position, inside):
        position = jnp.where(inside, position, 0)
        pixel = gather(vertices.pixel, position)
        weight = gather(flat_weight, position // n * n + pixel)
        return pixel, jnp.where(inside, weight, 0)

    slot = jnp.arange(NEAR, dtype=jnp.int32)[:, None]
    near = stage(vertices.packs, contribution, begin + slot, slot < count)
    rest = jnp.maximum(count - NEAR, 0)
    lay = partial(lay_rows, num=row_bound)
    first_row, vertex, line = stage(vertices.packs, lay, rest)
    slot = line * WIDTH + jnp.arange(WIDTH, dtype=jnp.int32)[:, None]
    inside = (slot >= 0) & (slot < gather(rest, vertex))
    position = gather(begin, vertex) + NEAR + slot
    rows = stage(vertices.packs, contribution, position, inside)
    pointer = jnp.where((rest > 0) & (first_row <= row_bound), first_row, 0)
    siblings = num_rows(gather(rest, vertex))
    row = jnp.where(gather(siblings, pointer) == 1, pointer, 0)
    bounds = level_bounds(upper_bound, n)[:num_levels]
    levels, root = rows_of_rows(vertices.packs, pointer, line, siblings, bounds)
    neighbors = find_neighbors(vertices, v)
    fits = vertices.packs & (vertices.num_vertices < v)
    fits &= (vertices.num_rows <= row_bound) & (vertices.num_upper <= upper_bound)
    fits &= vertices.most_rows <= WIDTH ** len(bounds)
    return Lattice(
        vertex=vertices.vertex,
        splat_weight=vertices.weight,
        slice_weight=vertices.weight * np.float32(1 / (1 + 2.0 ** (1 - size))),
        near_pixel=near[0],
        near_weight=near[1],
        row_pixel=rows[0],
        row_weight=rows[1],
        row=row,
        levels=levels,
        root=root,
        neighbors=tuple(neighbors),
        hops=tuple(pair_hops(neighbors)),
        ratio=jnp.ones(n, vertices.weight.dtype),
        num_vertices=vertices.num_vertices,
        fits=fits,
    )
