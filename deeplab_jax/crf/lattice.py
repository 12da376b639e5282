"""The permutohedral lattice around given features (Adams, Baek and Davis 2010), as index tables.

In d dimensions every pixel (any point that has features) lies in a simplex of d + 1 vertices, whose
weights are its barycentric coordinates. A vertex has d + 1 integer coordinates that sum to 0, all
with the same remainder modulo d + 1, its class; the last d identify it and are packed into one key.
One sort of all keys brings the pixels of a vertex together and numbers the vertices.

Tables have static shapes, so `connect` takes bounds: a lattice that exceeds them has `fits`
false, and whatever is filtered with it becomes NaN.

Rounding follows pydensecrf to the bit, because the last bit decides in which simplex a pixel on
a border lies: products are kept from fusing with additions, and halves round to even. Keys need
64-bit integers, which are enabled around this code alone. Weights have gradients to the features.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeAlias, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Bool, Float, Int32, Integer

from deeplab_jax.crf.xla import cumulative, gather, marked, module_of, rounded_product, stage
from deeplab_jax.types import Array

Features: TypeAlias = Float[Array, "d n"]
Valid: TypeAlias = Bool[Array, " n"]
Group: TypeAlias = Int32[Array, " n"]
Rows: TypeAlias = Float[Array, "n c"]
"""Of n points: features, which of them count, what keeps them apart, and values of c labels."""
Ints: TypeAlias = Int32[Array, "..."]

NEAR = 4  # contributions of a vertex that are gathered directly; rows sum the others first
WIDTH = 8  # contributions, or rows, that one row sums


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Vertices:
    """Distinct vertices around n pixels: d + 1 contributions of each pixel, sorted by vertex.

    Vertices are numbered from 1, class by class, inside a class by key; 0 is no vertex.
    """

    pixel: Any  # pixel of each sorted contribution, int32 [(d + 1) n]; position // n is its class
    key: Any  # words of its vertex's key, most significant first, int64 [(d + 1) n] each, ascending
    start: Any  # position of the first contribution of each vertex, int32 [(d + 1) n + 2]
    count: Any  # contributions of each vertex, int32 [(d + 1) n + 1]; 0 beyond the last vertex
    vertex: Any  # vertices of each pixel, int32 [d + 1, n]
    weight: Any  # barycentric weights of each pixel, float [d + 1, n]; 0 where it is not valid
    strides: Any  # how much each word grows with each of the last d coordinates
    num_keys: Any  # first words in one class; each class begins at a multiple of it, int64
    num_vertices: Any  # int32
    num_rows: Any  # rows that the contributions beyond the first NEAR need, int32
    num_upper: Any  # rows that the rows of vertices with several need, int32
    most_rows: Any  # rows of the vertex that needs most, int32
    packs: Any  # whether features keep a fraction in float32 and keys fit their words, bool


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class Lattice:
    """Index tables of the filter on v - 1 vertices; row 0 of a table is no vertex.

    Gradients reach `splat_weight` and `slice_weight`.
    """

    fits: Any  # whether bounds and key size sufficed, bool
    num_vertices: Any  # int32
    ratio: Any  # normalization after the filter over normalization before it, [n]
    vertex: Any  # vertices of each pixel, int32 [d + 1, n]
    splat_weight: Any  # weights with which a pixel contributes to them, float [d + 1, n]
    slice_weight: Any  # weights with which they make up a pixel's result, float [d + 1, n]
    near_pixel: Any  # first pixels that contribute to each vertex, int32 [NEAR, v]
    near_weight: Any  # their entries of `splat_weight`, [NEAR, v]; 0 where there are fewer
    row_pixel: Any  # the other pixels in rows, of which row 0 is empty, int32 [WIDTH, r]
    row_weight: Any  # their entries of `splat_weight`, [WIDTH, r]
    row: Any  # row of each vertex that needs only one, 0 for the others, int32 [v]
    levels: Any  # at each level rows of rows of the level before, 0 for none, int32 [WIDTH, r_k]
    root: Any  # row, counted through `levels`, that sums a vertex's rows, 0 for none, int32 [v]
    neighbors: Any  # neighbors of each vertex, for each of d + 1 axes int32 [2, v]
    double_steps: Any  # vertices a step along each axis of a pair away, for each pair int32 [4, v]

    @property
    def num_points(self) -> int:
        return self.vertex.shape[1]


def lattice_of(vertices: Vertices, fits: Any, *tables: Any) -> Lattice:
    """The lattice of these tables, from `near_pixel` to `double_steps`, not normalized."""
    weight = vertices.weight
    after = weight * slice_factor(len(weight))
    ratio = module_of(weight).ones(weight.shape[1], weight.dtype)
    return Lattice(fits, vertices.num_vertices, ratio, vertices.vertex, weight, after, *tables)


def elevate(features: Float[Array, "d n"]) -> Float[Array, "d+1 n"]:
    """Features on the plane of the lattice, scaled so that a blur has standard deviation 1."""
    xp, d = module_of(features), len(features)
    deviation = float(np.float32(math.sqrt(2 / 3) * (d + 1)))
    total, rows = xp.zeros_like(features[0]), []
    for i in range(d, 0, -1):
        scale = np.float32(deviation / math.sqrt(i * (i + 1)))
        scaled = rounded_product(features[i - 1], scale)
        rows.append(total - rounded_product(scaled, np.float32(i)))
        total = total + scaled
    return xp.stack([total, *rows[::-1]])


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
    rank = rank + cast(jax.Array, sum(cell)).astype(jnp.int32)
    wrap = (rank < 0).astype(jnp.int32) - (rank >= size).astype(jnp.int32)
    rank = rank + wrap * size
    cell = cell + wrap
    residual = rounded_product(elevated - cell * size, np.float32(1 / size))
    by_rank = [sum(jnp.where(rank == k, residual, 0)) for k in range(size)]
    weight = [by_rank[-1] + (1 - by_rank[0])]
    weight += [by_rank[-1 - k] - by_rank[-k] for k in range(1, size)]
    return cell.astype(jnp.int32), rank, jnp.stack(weight)


def vertices_at(
    first: Bool[jax.Array, " items"],
    nobody: Bool[jax.Array, "classes n"],
    pixel: Int32[jax.Array, "classes n"],
) -> dict[str, Any]:
    """Fields of `Vertices`, given pixels sorted by key: some are the `first` of a vertex, and
    some are `nobody`."""
    items, (size, n) = len(first), nobody.shape
    number, start = marked(first, items + 1)
    position = jnp.arange(items + 2)
    start = jnp.where((position > 0) & (position <= number[-1]), start, items)
    empty = gather(jnp.append(nobody.reshape(-1), True), start[:-1])
    slot = (pixel + n * jnp.arange(size, dtype=jnp.int32)[:, None]).reshape(-1)
    vertex = jnp.zeros(items, jnp.int32).at[slot]
    vertex = vertex.set(number, unique_indices=True, mode="promise_in_bounds").reshape(size, n)
    count = jnp.where(empty, 0, jnp.diff(start).at[0].set(0))
    fields = {"vertex": vertex, "num_vertices": number[-1], "start": start, "count": count}
    return fields | numbers_of_rows(count)


def sort_vertices(
    features: Features, valid: Valid, group: Group, *, words: int | None = None
) -> Vertices:
    """Distinct lattice vertices of the valid points.

    Points of different groups, numbered from 0, have different vertices: they are the photographs
    of a batch. Keys have one 63-bit word or two; None: as many as mostly suffice (`packs`).
    """
    d, n = features.shape
    words = words or (1 if d <= 5 else 2)
    index_bits = max(1, (n - 1).bit_length())
    anybody = jnp.any(valid)
    elevated = stage(anybody, elevate, features)
    cell, rank, weight = stage(anybody, enclosing_simplex, elevated)
    # Digits leave room for the -1 of other classes and for one step to either side.
    lowest = jnp.min(cell[1:], axis=1, initial=2**30, where=valid) - 2
    highest = jnp.max(cell[1:], axis=1, initial=-(2**30), where=valid)
    # The first word counts most, and in a word the last digit: in two dimensions
    # that is the row, so vertices are ordered as pixels are.
    half = (d + 1) // 2
    parts = [slice(0, d)] if words == 1 else [slice(half, d), slice(0, half)]
    with jax.enable_x64(True):
        digits = jnp.maximum((highest - lowest + 2).astype(jnp.int64), 1)
        products = [jnp.append(1, jnp.cumprod(digits[part])) for part in parts]
        strides, numbers = [x[:-1] for x in products], [x[-1] for x in products]
        bits = [jnp.log2(digits[part].astype(jnp.float32)).sum() for part in parts]
        num_groups = group.max().astype(jnp.int64) + 1
        num_keys = num_groups * numbers[0] + 1  # the last key stands for points that are not valid
        group_key = group.astype(jnp.int64) * numbers[0]
        index = jnp.arange(n, dtype=jnp.int64)
        classes = []
        for k in range(d + 1):
            digit = (cell[1:] - lowest[:, None] - (rank[1:] > d - k)).astype(jnp.int64)
            pairs = [(digit[part], by) for part, by in zip(parts, strides, strict=True)]
            keys = [sum(map(jnp.multiply, *pair), jnp.zeros_like(index)) for pair in pairs]
            keys[0] = jnp.where(valid, keys[0] + group_key, num_keys - 1)
            keys[1:] = [jnp.where(valid, key, 0) for key in keys[1:]]
            keys[-1] = (keys[-1] << index_bits) | index
            classes.append(lax.sort(keys, num_keys=words, is_stable=False))
        words_of = [jnp.stack(word) for word in zip(*classes, strict=True)]
        pixel = (words_of[-1] & (2**index_bits - 1)).astype(jnp.int32)
        words_of[-1] = words_of[-1] >> index_bits
        nobody = words_of[0] == num_keys - 1
        words_of[0] += num_keys * jnp.arange(d + 1)[:, None]
        bits[0] += jnp.log2(num_groups.astype(jnp.float32))
        key = tuple(word.reshape(-1) for word in words_of)
        first = jnp.append(True, sum(word[1:] != word[:-1] for word in key) > 0)
    packs = jnp.abs(elevated).max() < 2**23
    room = [4, index_bits] if words == 2 else [max(index_bits, 4)]
    for used, more in zip(bits, room, strict=True):
        packs &= used + more < 62
    return Vertices(
        pixel=pixel.reshape(-1),
        key=key,
        weight=jnp.where(valid, weight, 0),
        strides=tuple(strides),
        num_keys=num_keys,
        packs=packs,
        **vertices_at(first, nobody, pixel),
    )


def numbers_of_rows(count: Int32[Array, " v"]) -> dict[str, Any]:
    """How many rows vertices with these numbers of contributions need: fields of `Vertices`."""
    first = num_rows(count - NEAR)
    upper = num_rows(first * (first > 1)).sum(dtype=np.int32)
    total = first.sum(dtype=np.int32)
    return {"num_rows": total, "num_upper": upper, "most_rows": first.max()}


def num_rows(count: Int32[Array, " v"]) -> Int32[Array, " v"]:
    """Rows that hold `count` things, none for a count below 1."""
    return (count.clip(0) + (WIDTH - 1)) // WIDTH


def level_bounds(upper_bound: int, num_pixels: int) -> list[int]:
    """Rows of each level above the contributions' rows, until a vertex has one left.

    `upper_bound` is that of the first level. A vertex with at least two rows in a level takes part
    in the next: 2 rows of contributions or more are behind a row of the second level, 9 or more
    behind one of the third, and so on.
    """
    bounds, fewest = [], 1
    longest = -(-num_pixels // WIDTH)  # rows of one vertex, which has each pixel once
    while longest > 1:
        bounds.append(upper_bound // fewest + 1)
        longest = -(-longest // WIDTH)
        fewest = 2 if fewest == 1 else (fewest - 1) * WIDTH + 1
    return bounds


def contributions(
    vertices: Vertices, position: Integer[Array, "*m"], inside: Bool[Array, "*m"]
) -> tuple[Int32[Array, "*m"], Float[Array, "*m"]]:
    """Pixel and weight at positions of the sorted list; the weight is 0 where not `inside`."""
    n = vertices.weight.shape[1]
    position = jnp.where(inside, position, 0)
    pixel = gather(vertices.pixel, position)
    weight = gather(vertices.weight.reshape(-1), position // n * n + pixel)
    return pixel, jnp.where(inside, weight, 0)


def lay_rows(count: Ints, num: int) -> tuple[Ints, Ints, Ints]:
    """Assigns runs of `count` contributions to rows 1 to `num` of WIDTH, each run from a new row.

    Returns the first row of each run, the run of each row, and its number among the run's rows.
    """
    rows = num_rows(count)
    first_row = 1 + cumulative(jnp.add, rows) - rows
    run = jnp.zeros(num + 1, jnp.int32).at[jnp.where(rows > 0, first_row, num + 1)]
    run = run.set(jnp.arange(len(count), dtype=jnp.int32), mode="drop")
    run = cumulative(jnp.maximum, run)
    return first_row, run, jnp.arange(num + 1, dtype=jnp.int32) - gather(first_row, run)


def next_level(
    pointer: Ints, line: Ints, siblings: Ints, bound: int
) -> tuple[Ints, Ints, Ints, Ints]:
    """Rows that sum the rows of the vertices that have several; then pointer, line and siblings.

    `pointer` is the first row of each vertex, 0 for none; `line` numbers the rows of a vertex and
    `siblings` is how many it has.
    """
    xp = module_of(line)
    number, first = marked((line % WIDTH == 0) & (line < siblings) & (siblings > 1), bound)
    within = xp.arange(WIDTH, dtype=np.int32)[:, None]
    line, count = gather(line, first), gather(siblings, first)
    children = xp.where(line + within < count, first + within, 0)
    pointer = xp.where(gather(siblings, pointer) > 1, gather(number, pointer), 0)
    return children, pointer, line // WIDTH, num_rows(count)


def rows_of_rows(
    climb: Any, pointer: Ints, line: Ints, siblings: Ints, bounds: list[int]
) -> tuple[Ints, tuple[Ints, ...], Ints]:
    """Fields `row`, `levels` and `root` of a Lattice.

    `climb` is `next_level`, `bounds` are the rows of each level.
    """
    xp = module_of(line)
    row = xp.where(gather(siblings, pointer) == 1, pointer, 0)
    root, levels, before = xp.zeros_like(pointer), [], 0
    for bound in bounds:
        children, pointer, line, siblings = climb(pointer, line, siblings, bound)
        levels.append(children)
        root = xp.where(gather(siblings, pointer) == 1, before + pointer, root)
        before += bound + 1
    return row, tuple(levels), root


def stepped_keys(
    key: Sequence[Integer[Array, " v"]],
    strides: Sequence[Integer[Array, " _"]],
    num_keys: Integer[Array, ""],
) -> list[Integer[Array, "axes v"]]:
    """Keys, word by word, after one step along each axis.

    A step subtracts 1 from every coordinate and adds d + 1 to one of them: it leads from class
    k to class k - 1, and from class 0 one cell down in every coordinate to class d.
    """
    d = sum(map(len, strides))
    stepped, end = [], d + 1  # the first word has the last axes
    for number, (word, by) in enumerate(zip(key, strides, strict=True)):
        to_class_d, to_next = (d * num_keys, -num_keys) if number == 0 else (0, 0)
        down = jnp.where(key[0] < num_keys, to_class_d - by.sum(), to_next)
        up = jnp.zeros(d + 1, jnp.int64).at[end - len(by) : end].set(by)
        stepped.append(word + down + up[:, None])
        end -= len(by)
    return stepped


def find(
    table: Sequence[Integer[Array, " v"]], wanted: Sequence[Integer[Array, "k v"]]
) -> Int32[Array, "k v"]:
    """Positions of the wanted numbers in an ascending table, 0 where they are not in it.

    Numbers are given in one word or two, the most significant first.
    """
    v = len(table[0])

    def halve(i, low):
        middle = low + jnp.right_shift(1 << (v.bit_length() - 1), i)
        there = [gather(word, jnp.minimum(middle, v - 1)) for word in table]
        behind = (there[0] == wanted[0]) & (there[-1] <= wanted[-1])
        return jnp.where(((there[0] < wanted[0]) | behind) & (middle < v), middle, low)

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


def double_steps(neighbors: Int32[Array, "axes 2 v"]) -> Int32[Array, "pairs 4 v"]:
    """Where a blur along two axes in turn reads beside the neighbors along either.

    A double step goes along the second axis first: what it finds was blurred along the first.
    """
    size, _, v = neighbors.shape
    first, second = neighbors[0 : size - 1 : 2], neighbors[1::2]
    start = v * jnp.arange(2 * len(first), dtype=jnp.int32).reshape(-1, 2, 1, 1)
    return gather(first.reshape(-1), second[:, None] + start).reshape(-1, 4, v)


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
    within = partial(stage, vertices.packs)
    fixed = replace(vertices, weight=lax.stop_gradient(vertices.weight))
    contribution = partial(contributions, fixed)
    slot = jnp.arange(NEAR, dtype=jnp.int32)[:, None]
    near = within(contribution, begin + slot, slot < count)
    rest = (count - NEAR).clip(0)
    first_row, vertex, line = within(partial(lay_rows, num=row_bound), rest)
    slot = line * WIDTH + jnp.arange(WIDTH, dtype=jnp.int32)[:, None]
    inside = (slot >= 0) & (slot < gather(rest, vertex))
    position = gather(begin, vertex) + NEAR + slot
    rows = within(contribution, position, inside)
    pointer = jnp.where((rest > 0) & (first_row <= row_bound), first_row, 0)
    siblings = num_rows(gather(rest, vertex))
    bounds = level_bounds(upper_bound, n)[:num_levels]

    def climb(pointer, line, siblings, bound):
        return within(partial(next_level, bound=bound), pointer, line, siblings)

    row, levels, root = rows_of_rows(climb, pointer, line, siblings, bounds)
    neighbors = find_neighbors(vertices, v)
    fits = vertices.packs & (vertices.num_vertices < v)
    fits &= (vertices.num_rows <= row_bound) & (vertices.num_upper <= upper_bound)
    fits &= vertices.most_rows <= WIDTH ** len(bounds)
    steps = tuple(neighbors), tuple(double_steps(neighbors))
    return lattice_of(vertices, fits, *near, *rows, row, levels, root, *steps)


def slice_factor(size: int) -> np.float32:
    """What slicing multiplies by on a lattice of `size` axes, as pydensecrf does (its alpha)."""
    return np.float32(1 / (1 + 2.0 ** (1 - size)))
