"""Bilinear resizing in the conventions of the field, and the labels that lie under a score map."""

from collections.abc import Sequence
from fractions import Fraction
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Integer

from deeplab_jax.choices import Alignment
from deeplab_jax.ops import resize_gpu
from deeplab_jax.ops.xla import by_platform


def resize_bilinear(
    x: Float[jax.Array, "b h w c"], size: tuple[int, int], *, alignment: Alignment
) -> Float[jax.Array, "b h2 w2 c"]:
    """Two-tap bilinear interpolation to `size` (rows, columns), without antialiasing.

    `half_pixel` is `jax.image.resize`; `corners` is Caffe's Interp layer: the centres of the
    corner pixels stay corners.
    """
    shape = (x.shape[0], *size, x.shape[3])
    if x.shape == shape:
        return x
    if alignment == "half_pixel":
        definition = partial(jax.image.resize, shape=shape, method="bilinear", antialias=False)
        return by_platform(x, default=definition, gpu=partial(resize_gpu.resize, size=size))
    scale = [_corner_scale(*sizes) for sizes in zip(x.shape[1:3], size, strict=True)]
    return _scale_and_translate(x, size, scale, [0.5 - 0.5 * s for s in scale])


def rescale(
    x: Float[jax.Array, "b h w c"], factor: float, *, alignment: Alignment
) -> Float[jax.Array, "b h2 w2 c"]:
    """Bilinear resizing by a factor, to `scaled_size`.

    With `half_pixel` the step between samples is exactly 1 / factor, as in PyTorch's
    `interpolate(scale_factor=...)`, whatever the rounding of the size.
    """
    if factor == 1:
        return x
    size = tuple(scaled_size(n, factor, alignment=alignment) for n in x.shape[1:3])
    if alignment == "corners":
        return resize_bilinear(x, size, alignment=alignment)
    return _scale_and_translate(x, size, [factor, factor], [0.0, 0.0])


def _scale_and_translate(x, size, scale, translation):
    """`scale_and_translate` by numbers that are known when the program is made."""
    fixed = {"size": size, "scale": tuple(scale), "translation": tuple(translation)}
    definition = partial(scale_and_translate, **fixed)
    return by_platform(x, default=definition, gpu=partial(resize_gpu.scale_and_translate, **fixed))


def scaled_size(size, factor: float, *, alignment: Alignment):
    """Rows that `rescale` gives: of an integer, or of an integer array of them.

    >>> scaled_size(321, 0.75, alignment="corners"), scaled_size(321, 0.75, alignment="half_pixel")
    (241, 240)
    """
    ratio = Fraction(factor).limit_denominator(64)
    if alignment == "half_pixel":
        return size * ratio.numerator // ratio.denominator
    return (size - 1) // ratio.denominator * ratio.numerator + 1


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

    With `corners` and sizes 8k + 1 this is `labels[:, ::8, ::8]`.
    """
    rows, columns = (
        _nearest(n, out, alignment) for n, out in zip(labels.shape[1:], size, strict=True)
    )
    return labels[:, rows][:, :, columns]


def _nearest(size: int, out: int, alignment: Alignment) -> np.ndarray:
    if alignment == "half_pixel":
        return (2 * np.arange(out) + 1) * size // (2 * out)
    return np.rint(np.arange(out) * ((size - 1) / max(out - 1, 1))).astype(int)


def _corner_scale(size: int, out: int) -> float:
    if out == 1:
        return 1.0  # samples pixel 0
    return (out - 1) / (size - 1) if size > 1 else 2.0 * out  # every row samples pixel 0
