"""Large photographs at a smaller scale: block means down, joint bilateral upsampling up.

The CRF runs on a photograph that is k times smaller; its marginals are then interpolated at the
full size with weights that also compare colours (Kopf et al. 2007, "Joint bilateral upsampling"),
so that borders follow the edges of the large photograph.
"""

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Float32, Shaped, UInt8

from deeplab_jax.crf.checks import require
from deeplab_jax.crf.features import as_numbers
from deeplab_jax.crf.forked import is_forked
from deeplab_jax.crf.params import CRFParams
from deeplab_jax.types import Array

STRIP = 64  # rows that are upsampled at a time: what is needed beside the result
REACH = 1  # small pixels to either side of the nearest that a large one is interpolated from


def factor_for(shape: tuple[int, ...], max_pixels: Any) -> int:
    """Smallest whole factor by which both sides shrink for at most `max_pixels`; None: any number.

    >>> factor_for((3000, 4000), 1_000_000), factor_for((375, 500), 1_000_000)
    (4, 1)
    """
    if max_pixels is None:
        return 1
    number = isinstance(max_pixels, int) and not isinstance(max_pixels, bool) and max_pixels > 0
    require(number, f"max_pixels is a whole number of at least 1, got {max_pixels!r}")
    height, width = shape
    factor = max(1, math.isqrt(height * width // max_pixels))
    while -(-height // factor) * -(-width // factor) > max_pixels:
        factor += 1
    return factor


def block_means(values: Shaped[np.ndarray, "h w c"], factor: int) -> Float32[np.ndarray, "_ _ c"]:
    """Means of squares of `factor` pixels; the last row and column are repeated to fill them.

    >>> block_means(np.arange(6.0).reshape(2, 3, 1), 2)[..., 0].tolist()
    [[2.0, 3.5]]
    """
    h, w, c = values.shape
    padded = np.pad(values, ((0, -h % factor), (0, -w % factor), (0, 0)), mode="edge")
    blocks = padded.reshape(-(-h // factor), factor, -(-w // factor), factor, c)
    return blocks.mean(axis=(1, 3), dtype=np.float32)


def at_smaller_scale(
    refine: Callable[..., Array],
    image: Array,
    probs: Float[np.ndarray, "hs ws c"],
    params: CRFParams,
    factor: int,
    *,
    labels: bool = False,
) -> np.ndarray:
    """`refine(image, probs, params)` of the image's block means, as `upsample` enlarges it.

    `probs` have the smaller size already; the reach of `params` is in pixels of the full one.
    """
    image = np.asarray(image)
    small = block_means(image, factor)
    sigmas = params.sigma_xy, params.sigma_smoothness
    reach, smoothness = (as_numbers(np.asarray(sigma) / factor) for sigma in sigmas)
    smaller = replace(params, sigma_xy=reach, sigma_smoothness=smoothness)
    found = refine(np.rint(small).astype(np.uint8), probs, smaller)
    alike = max(float(np.mean(params.sigma_rgb)), 8.0)  # noise is alike
    return upsample(image, small, np.asarray(found), factor, alike, labels=labels)


def upsample_strip(
    strip: UInt8[Array, "r w channels"],
    first_row: Any,
    image: Float[Array, "hs ws channels"],
    values: Float[Array, "hs ws c"],
    sigma_color: Any,
    *,
    factor: int,
    xp: Any = jnp,
) -> Float[Array, "r w c"]:
    """Values at full size for some rows, from the small pixels around each large one."""
    rows, columns = image.shape[:2]
    y = (first_row + xp.arange(strip.shape[0]) + 0.5) / factor - 0.5
    x = (xp.arange(strip.shape[1]) + 0.5) / factor - 0.5
    color = strip.astype(np.float32)

    def tap(dy, dx):
        i, j = xp.round(y).astype(int) + dy, xp.round(x).astype(int) + dx
        inside = ((i >= 0) & (i < rows))[:, None] & ((j >= 0) & (j < columns))
        i, j = xp.clip(i, 0, rows - 1), xp.clip(j, 0, columns - 1)
        near = xp.exp(-((y - i)[:, None] ** 2 + (x - j) ** 2))
        alike = xp.exp(-(((color - image[i][:, j]) / sigma_color) ** 2).sum(-1) / 2)
        weight = xp.where(inside, near * (alike + 1e-6), 0)  # where no colour is alike: by place
        return weight[..., None], values[i][:, j]

    steps = range(-REACH, REACH + 1)
    taps = [tap(dy, dx) for dy in steps for dx in steps]
    return cast(Array, sum(w * v for w, v in taps) / sum(w for w, _ in taps))


compiled_strip = jax.jit(upsample_strip, static_argnames="factor")


def upsample(
    full: UInt8[np.ndarray, "h w channels"],
    image: Float32[np.ndarray, "hs ws channels"],
    values: Float32[np.ndarray, "hs ws c"],
    factor: int,
    sigma_color: float,
    *,
    labels: bool = False,
) -> np.ndarray:
    """Values, float32 `[h, w, c]`, or the largest's index, int32 `[h, w]`, at the size of `full`,
    the photograph whose block means are `image`; `sigma_color` is in steps of 0..255."""
    h, w, _ = full.shape
    result = np.empty((h, w) if labels else (h, w, values.shape[-1]), np.int32 if labels else "f4")
    small, coarse, run = image, values, partial(upsample_strip, xp=np)
    if not is_forked():
        small, coarse, run = jnp.asarray(image), jnp.asarray(values), compiled_strip
    for start in range(0, h, STRIP):
        strip = full[start : start + STRIP]
        lacking = 0 if is_forked() else STRIP - len(strip)  # one program for all strips
        strip = np.pad(strip, ((0, lacking), (0, 0), (0, 0)), mode="edge")
        found = run(strip, np.float32(start), small, coarse, np.float32(sigma_color), factor=factor)
        found = np.asarray(found.argmax(-1) if labels else found)
        result[start : start + STRIP] = found[: h - start]
    return result
