"""Bilinear resizing in the conventions of the field, and the labels that lie under a score map.

An `Alignment` says how the pixels of an array and of its resized copy correspond:

- `cells`, the default: cell i of the network's map looks at pixel 8i, so that labels are every 8th
  pixel; the map is enlarged exactly 8 times by `jax.image.resize` and moved by its offset of 3.5
  pixels. Sizes are free. Where `corners` are possible both are the same but on every 8th row and
  column, for which `cells` takes the mean of half a pixel before and behind.
- `half_pixel`: the areas of both cover each other, by `jax.image.resize`. Labels are taken at the
  centres of these areas, up to 3 pixels from where the cells look.
- `ports`: as half_pixel, and in training each scale takes its loss on a map of its own size, as in
  the PyTorch ports.
- `corners`: the centres of the corner pixels stay corners, as in Caffe's Interp layer. Sizes must
  be 8k + 1 (32k + 1 with the scales 0.75 and 0.5), and cell i is then pixel 8i.
- `corners_v1`: corners for the pools of the first release's 4x4 network, and sizes 8k + 2. Labels
  lose their first row and column before they are subsampled; the map is enlarged 8 times and its
  first 7 and last 8 rows and columns are cut.
"""

import math
from collections.abc import Sequence
from fractions import Fraction
from functools import partial, reduce

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.export import is_symbolic_dim
from jaxtyping import Float, Integer

from deeplab_jax.choices import Alignment
from deeplab_jax.ops import resize_gpu
from deeplab_jax.ops.xla import by_platform

AREAS = ("half_pixel", "ports")
"""Alignments in which the areas of two arrays cover each other."""

STRIDE = 8
"""Pixels from a cell of the network's map to the next."""


def resize_bilinear(
    x: Float[jax.Array, "b h w c"],
    size: tuple[int, int],
    *,
    alignment: Alignment,
    factor: float | None = None,
) -> Float[jax.Array, "b h2 w2 c"]:
    """Two-tap bilinear interpolation to `size` (rows, columns), without antialiasing.

    `half_pixel` and `ports` are `jax.image.resize`; `corners` is Caffe's Interp layer. With `cells`
    output i is sampled at i / factor, and the last row and column are repeated where that lies
    beyond them.
    """
    if x.shape[1:3] == size:
        return x
    if alignment in AREAS:
        shape = (x.shape[0], *size, x.shape[3])
        definition = partial(jax.image.resize, shape=shape, method="bilinear", antialias=False)
        if not _are_known(x, size):
            return definition(x)
        scale = size[0] / x.shape[1], size[1] / x.shape[2]
        # jax.image.resize samples at places in float32, which are exact for powers of 2 alone.
        if not all(math.log2(s).is_integer() for s in scale):
            return _scale_and_translate(x, size, scale, [0.0, 0.0])
        gpu = partial(resize_gpu.scale_and_translate, size=size, scale=scale)
        return by_platform(x, default=definition, gpu=gpu)
    if alignment == "corners":
        scale = [_corner_scale(*sizes) for sizes in zip(x.shape[1:3], size, strict=True)]
        return _scale_and_translate(x, size, scale, [0.5 - 0.5 * s for s in scale])
    if factor is None:
        raise ValueError(f"resizing with alignment {alignment} needs the factor")
    return _sample_by_steps(x, size, factor, offset=0)


def enlarge(
    scores: Float[jax.Array, "b h w c"],
    size: tuple[int, int],
    *,
    alignment: Alignment,
    scale: float = 1.0,
) -> Float[jax.Array, "b h2 w2 c"]:
    """The network's score map brought to the pixels of a photograph of `size` (rows, columns).

    `scale` is the factor that the photograph was resized by before the network saw it.
    """
    if alignment == "cells" and scale == 1:
        return _enlarge_cells(scores, size)
    if alignment in ("cells", "corners_v1"):
        offset = CUT_V1 if alignment == "corners_v1" else 0
        return _sample_by_steps(scores, size, STRIDE / scale, offset=offset / STRIDE)
    return resize_bilinear(scores, size, alignment=alignment)


CUT_V1 = 7
"""Rows that the release's 4x4 network cuts off the beginning of its enlarged scores."""


def _enlarge_cells(scores, size):
    """Pixel x is the mean of pixels x + 3 and x + 4 of the map enlarged 8 times, in both axes.

    The middle of cell i's eight enlarged pixels lies 3.5 pixels behind pixel 8i, where it looks.
    """
    rows, columns = (STRIDE * n for n in scores.shape[1:3])
    large = resize_bilinear(scores, (rows, columns), alignment="half_pixel")
    large = _repeat_border(large, 4)
    for axis, length in enumerate(size, start=1):
        first, second = (
            lax.slice_in_dim(large, before, before + length, axis=axis) for before in (3, 4)
        )
        large = (first + second) / 2
    return large


def _repeat_border(x, number):
    """`x` with its last row and its last column repeated `number` times.

    jnp.pad's mode "edge" does the same, but jax2onnx misreads it.
    """
    for axis in (1, 2):
        last = lax.slice_in_dim(x, x.shape[axis] - 1, x.shape[axis], axis=axis)
        shape = (*x.shape[:axis], number, *x.shape[axis + 1 :])
        x = jnp.concatenate([x, jnp.broadcast_to(last, shape)], axis)
    return x


def _sample_by_steps(x, size, factor, *, offset):
    """Output i is sampled at i / factor + offset, whatever the sizes; the border is repeated."""
    x = _repeat_border(x, 1)
    translation = 0.5 - (0.5 + offset) * factor
    return _scale_and_translate(x, size, [factor, factor], [translation, translation])


def rescale(
    x: Float[jax.Array, "b h w c"], factor: float, *, alignment: Alignment
) -> Float[jax.Array, "b h2 w2 c"]:
    """Bilinear resizing by a factor, to `scaled_size`.

    But for `corners` the step between samples is exactly 1 / factor, whatever the rounding of the
    size, as in PyTorch's `interpolate(scale_factor=...)`.
    """
    if factor == 1:
        return x
    rows, columns = (scaled_size(n, factor, alignment=alignment) for n in x.shape[1:3])
    size = rows, columns
    if alignment == "corners":
        return resize_bilinear(x, size, alignment=alignment)
    if alignment in AREAS:
        return _scale_and_translate(x, size, [factor, factor], [0.0, 0.0])
    return _sample_by_steps(x, size, factor, offset=0)


def _scale_and_translate(x, size, scale, translation):
    """`scale_and_translate` by numbers that are known when the program is made.

    Where samples lie is computed in float64: float32 is off by 1e-4 of a step at row 300. A program
    for any size has to compute it itself.
    """
    fixed = {"size": size, "scale": tuple(scale), "translation": tuple(translation)}
    if not _are_known(x, size):
        return scale_and_translate(x, **fixed)
    gpu = partial(resize_gpu.scale_and_translate, **fixed)
    return by_platform(x, default=partial(_by_matrices, **fixed), gpu=gpu)


def _are_known(x, size):
    return not any(map(is_symbolic_dim, (*x.shape, *size)))


def _by_matrices(x, *, size, scale, translation):
    dtype = jnp.promote_types(x.dtype, jnp.float32)
    axes = zip(x.shape[1:3], size, scale, translation, strict=True)
    rows, columns = (_matrix(*axis, dtype) for axis in axes)
    highest = lax.Precision.HIGHEST
    resized = jnp.einsum("bhwc,yh,xw->byxc", x, rows, columns, precision=highest)
    return resized.astype(x.dtype)


def _matrix(length, out, scale, translation, dtype):
    """[out, length]: what each sample takes of each input."""
    pairs = zip(*resize_gpu.taps(length, out, scale, translation), strict=True)
    one_hot = (
        jnp.where(jnp.arange(length) == at[:, None], jnp.asarray(weight, dtype)[:, None], 0)
        for at, weight in pairs
    )
    return reduce(jnp.add, one_hot)


def scaled_size(size, factor: float, *, alignment: Alignment):
    """Rows that `rescale` gives: of an integer, or of an integer array of them.

    >>> scaled_size(321, 0.75, alignment="corners"), scaled_size(321, 0.75, alignment="half_pixel")
    (241, 240)
    """
    ratio = Fraction(factor).limit_denominator(64)
    if alignment in AREAS:
        return size * ratio.numerator // ratio.denominator
    if alignment == "corners":
        return (size - 1) // ratio.denominator * ratio.numerator + 1
    return (size - 1) * ratio.numerator // ratio.denominator + 1


def closing_size(size: int, *, alignment: Alignment, num_scales: int) -> int:
    """The smallest size of at least `size` that a network of this alignment runs at.

    >>> closing_size(500, alignment="corners", num_scales=3)
    513
    """
    if alignment in (*AREAS, "cells"):
        return size
    step = 4 * STRIDE if num_scales > 1 else STRIDE
    rest = 2 if alignment == "corners_v1" else 1
    return -(-(size - rest) // step) * step + rest


def scale_and_translate(
    x: Float[jax.Array, "b h w c"],
    size: tuple[int, int],
    scale: Sequence[float] | jax.Array,
    translation: Sequence[float] | jax.Array,
) -> Float[jax.Array, "b h2 w2 c"]:
    """Output pixel i is sampled at (i + 0.5 - translation) / scale - 0.5, in rows and columns.

    Scale and translation may be computed by the program.
    """
    dtype = jnp.promote_types(x.dtype, jnp.float32)
    by = (jnp.stack([jnp.asarray(v, dtype) for v in values]) for values in (scale, translation))
    gpu = partial(resize_gpu.scale_and_translate_by, size=size)
    return by_platform(x, *by, default=partial(_by_definition, size=size), gpu=gpu)


def _by_definition(x, scale, translation, *, size):
    shape = (x.shape[0], *size, x.shape[3])
    resized = jax.image.scale_and_translate(
        x, shape, (1, 2), scale, translation, "linear", antialias=False
    )
    return resized.astype(x.dtype)


def subsample_labels(
    labels: Integer[jax.Array, "b h w"], size: tuple[int, int], *, alignment: Alignment
) -> Integer[jax.Array, "b h2 w2"]:
    """The labels under a score map of `size`: nearest pixel, classes are never mixed.

    With `cells`, and with `corners` and sizes 8k + 1, this is `labels[:, ::8, ::8]`; a map of half
    of the size has every 16th. With `corners_v1` it is `labels[:, 1::8, 1::8]`.
    """
    rows, columns = (
        _nearest(n, out, alignment) for n, out in zip(labels.shape[1:], size, strict=True)
    )
    return labels[:, rows][:, :, columns]


def _nearest(size: int, out: int, alignment: Alignment) -> np.ndarray:
    if out == size:
        return np.arange(size)
    if alignment in AREAS:
        return (2 * np.arange(out) + 1) * size // (2 * out)
    if alignment == "corners_v1":
        return np.minimum(STRIDE * np.arange(out) + 1, size - 1)
    if alignment == "cells":  # maps of the network have strides of 8, 16, ...
        step = max(round((size - 1) / max(out - 1, 1) / STRIDE), 1) * STRIDE
        return np.minimum(step * np.arange(out), size - 1)
    return np.rint(np.arange(out) * ((size - 1) / max(out - 1, 1))).astype(int)


def _corner_scale(size: int, out: int) -> float:
    if out == 1:
        return 1.0  # samples pixel 0
    return (out - 1) / (size - 1) if size > 1 else 2.0 * out  # every row samples pixel 0
