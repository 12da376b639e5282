"""Large photographs in overlapping tiles (Section 4.4)."""

import itertools
from collections.abc import Iterable, Sequence

import numpy as np

from deeplab_jax.types import Probs, UserError

Window = tuple[slice, slice]


def cut(
    size: Sequence[int], tile: int | None, max_pixels: int | None, overlap: float
) -> tuple[int, list[Window]]:
    """Side and windows of a photograph's tiles; one window where it need not be cut."""
    side = tile or max(size)
    if tile is None and max_pixels is not None and size[0] * size[1] > max_pixels:
        side = int(max_pixels**0.5)
    return side, tiles(size, side=side, overlap=overlap)


def merge_tiles(parts: Iterable[tuple[Window, np.ndarray]], size: Sequence[int]) -> Probs:
    """Probabilities of a photograph of `size` from those of tiles that cover it.

    Where tiles overlap, their weighted mean: a pixel's weight is its distance in rows times its
    distance in columns to the ends of its tile inside the photograph. Plain means would show seams.
    """
    total, weights = None, np.zeros((*size, 1), np.float32)
    for window, probs in parts:
        if total is None:
            total = np.zeros((*size, probs.shape[-1]), np.float32)
        down, across = map(_distances_to_ends, window, size)
        weight = np.multiply.outer(down, across)[..., None].astype(np.float32)
        total[window] += weight * probs
        weights[window] += weight
    assert total is not None  # at least one tile covers a photograph
    return total / weights


def _distances_to_ends(part: slice, length: int) -> np.ndarray:
    """Distances along one side of a tile, from 1; edges of the photograph are not ends."""
    n = part.stop - part.start
    before = np.arange(1, n + 1) if part.start > 0 else np.full(n, n)
    after = np.arange(n, 0, -1) if part.stop < length else np.full(n, n)
    return np.minimum(before, after)


def tiles(size: Sequence[int], *, side: int, overlap: float) -> list[Window]:
    """Windows of at most `side` x `side` that cover `size`, evenly spread.

    >>> [(r.start, c.start) for r, c in tiles((10, 25), side=10, overlap=0.2)]
    [(0, 0), (0, 8), (0, 15)]
    """
    if side < 1 or not 0 <= overlap < 1:
        raise UserError(f"tiles of {side} pixels that share {overlap} of their side cover nothing")
    spans = []
    for n in size:
        number = 1 if n <= side else -(-(n - side) // max(int(side * (1 - overlap)), 1)) + 1
        starts = np.rint(np.linspace(0, max(n - side, 0), number)).astype(int).tolist()
        spans.append([slice(start, min(start + side, n)) for start in starts])
    return list(itertools.product(spans[0], spans[1]))
