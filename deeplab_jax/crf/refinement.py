"""From photographs to marginals: `marginals` inside `jit`, `refine` and `refine_batch` outside.

Inside anybody's `jit`, `grad` or `pmap` tables have static bounds. A lattice that exceeds them
gives NaN; the default bounds cannot be exceeded.

Outside, sizes are rounded up to buckets, so that photographs of any size share a few compiled
programs: pixels to 2 buckets an octave, for lattices see `kernels.tight_bounds`. A lattice is
counted first, so its bucket is known before the tables are built. The smoothness kernel depends
on nothing but the size of the photograph and is kept from call to call.
"""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Float32, UInt8

from deeplab_jax.choices import CRFNormalization as Normalization
from deeplab_jax.crf.arrays import (
    any_framework,
    channels_last,
    in_layout,
    require_array,
)
from deeplab_jax.crf.backends import exact_marginals, pydensecrf_marginals
from deeplab_jax.crf.checks import check_photographs, require
from deeplab_jax.crf.features import appearance_features, as_numbers, pixel_positions
from deeplab_jax.crf.forked import is_forked, refuse_forked
from deeplab_jax.crf.kernels import (
    bounded_lattice,
    bucket,
    energies,
    host_lattice,
    on_cpu,
    run_iterations,
)
from deeplab_jax.crf.lattice import Lattice
from deeplab_jax.crf.mean_field import LANES, iterate
from deeplab_jax.crf.params import RESNET101, CRFParams
from deeplab_jax.crf.pruning import merge_rare, rare_labels, split_rare
from deeplab_jax.crf.upsampling import at_smaller_scale, block_means, factor_for
from deeplab_jax.crf.xla import module_of
from deeplab_jax.ops.xla import forms_of
from deeplab_jax.types import Array, UserError

Backend = Literal["jax", "pydensecrf", "exact"]

WORKERS = 4
"""Photographs of a batch that CPUs work on at the same time, at most."""
BYTES_PER_PIXEL, BYTES_PER_LABEL = 1600, 50
"""Peak memory for each pixel, and for each of its labels; see `memory_needed`."""


def marginals(
    image: Any,
    unary: Any,
    params: CRFParams = RESNET101,
    *,
    valid: Any = None,
    num_iterations: int = 10,
    normalization: Normalization = "symmetric",
    vertex_bound: int | None = None,
    row_bound: int | None = None,
    bands: Sequence[int] | None = None,
) -> Float[Array, "*b h w c"]:
    """Marginals of a batch of photographs, or of one, given their energies; made for `jit`.

    `image` is RGB uint8 `[b, h, w, 3]` or `[h, w, 3]`, `unary` floats `[b, h, w, c]` or
    `[h, w, c]`, -log of probabilities (`energies`); `valid`, bool `[b, h, w]` or `[h, w]`, is
    false in padding. `vertex_bound` and `row_bound` limit the appearance lattice of the whole
    batch, and results are NaN where it is larger. 3 n and n of n pixels suit photographs of at
    least 100 pixels a side; small or noisy images have up to 6 n vertices, as without a bound.
    With `bands` the image has any number of channels, of which these stand for its colours.
    Gradients reach `unary` and all of `params`; those to standard deviations are derivatives of
    the lattice's weights, which hold between the borders of its simplices.
    """
    refuse_forked("crf.marginals")
    image, unary = check_photographs(
        image, unary, params, num_iterations, normalization, bands, what="energies"
    )
    mask = jnp.ones(unary.shape[:-1], bool) if valid is None else jnp.asarray(valid, bool)
    require(
        unary.ndim < 5 and mask.shape == unary.shape[:-1],
        f"expected energies [b, h, w, c] or [h, w, c] and a `valid` without the last axis, "
        f"got {tuple(unary.shape)} and {mask.shape}",
    )
    image = jnp.asarray(image).reshape(-1, *image.shape[-3:])
    b, h, w, _ = image.shape
    lattice_of = partial(
        bounded_lattice,
        valid=mask.reshape(-1),
        group=jnp.arange(b * h * w, dtype=jnp.int32) // (h * w),
        normalization=normalization,
    )
    appearance = jnp.asarray(appearance_features(image, params, jnp))
    smoothness = jnp.asarray(pixel_positions((b, h, w), params.sigma_smoothness, jnp))
    lattices = [
        lattice_of(appearance, vertex_bound=vertex_bound, row_bound=row_bound),
        lattice_of(smoothness),
    ]
    compat = [params.appearance_weight, params.smoothness_weight]
    rows = jnp.asarray(unary).reshape(b * h * w, -1)
    return iterate(rows, lattices, compat, int(num_iterations)).reshape(unary.shape)


def best_labels(
    image: Any,
    probs: Any,
    params: CRFParams = RESNET101,
    **options: Any,
) -> UInt8[jax.Array, "*b h w"]:
    """Labels of the largest marginals, uint8, made for `jit` and `jax.export`.

    `probs` are probabilities `[b, h, w, c]` or `[h, w, c]` of at most 256 classes; `options` are
    those of `marginals`. The program keeps the form of each platform that it is exported for, also
    where the network around it is exported in its plain form.
    """
    with forms_of(None):
        found = marginals(image, energies(probs), params, **options)
    return found.argmax(-1).astype(jnp.uint8)


@any_framework
def refine(
    image: Any,
    probs: Any,
    params: CRFParams = RESNET101,
    *,
    num_iterations: int = 10,
    normalization: Normalization = "symmetric",
    backend: Backend = "jax",
    prune_below: float | None = None,
    max_pixels: int | None = None,
    bands: Sequence[int] | None = None,
    layout: str = "hwc",
) -> Float32[Array, "h w c"]:
    """Marginals float32 `[h, w, c]` of a fully connected CRF over one photograph.

    Args:
      image: RGB uint8 `[h, w, 3]`, or with `bands` of any number of channels; `kernel` and
        `mean_field` take other images.
      probs: floats `[h, w, c]` after the softmax at the size of the image, at least 2 classes;
        the result is an array of NumPy, JAX, torch or another framework, as they are.
      params: weights and standard deviations of the two kernels; the latter may be one number
        for each axis (x, y) or channel.
      num_iterations: mean-field updates.
      normalization: as in `kernel`: "symmetric" is pydensecrf's default, "per_pixel" the authors'.
      backend: "jax" on any device, "pydensecrf" (C++), or "exact" without the lattice's
        approximation, whose time grows with the square of the pixels.
      prune_below: merge the labels that are less probable than this at every pixel into one
        without pairwise terms, which saves their time ("jax" only; see `pruning`).
      max_pixels: a photograph with more is refined at the smaller scale that has at most so many,
        and its marginals are enlarged by joint bilateral upsampling; about 1,000,000 suits
        photographs of a phone.
      bands: which channels of the image stand for its colours, counted from 0, 1 to 6 of them.
      layout: "chw" where image, `probs` and result have their last axis first.

    Raises:
      UserError: arguments of a wrong type, shape or range, in one sentence; a photograph that
        needs more memory than is free.
    """
    image, probs = channels_last(layout, image=image, probs=probs)
    image, probs = check_photographs(image, probs, params, num_iterations, normalization, bands)
    check_pruning(prune_below, backend)
    require(image.ndim == 3, f"expected one image [h, w, 3], got {tuple(image.shape)}")
    options = {"num_iterations": int(num_iterations), "normalization": normalization}
    if backend == "jax":
        run = partial(one_photograph, prune_below=prune_below, **options)
    elif backend == "exact":
        run = partial(exact_marginals, **options)
    elif backend == "pydensecrf" and image.shape[-1] == 3:
        run = partial(pydensecrf_marginals, **options)
    else:
        raise UserError(
            "backend is 'jax', 'exact' or, for three bands, 'pydensecrf', "
            f"got {backend!r} for {image.shape[-1]} bands"
        )
    height, width, _ = image.shape
    if max_pixels is not None and height * width > check_max_pixels(max_pixels):
        factor = factor_for(height, width, max_pixels)
        result = at_smaller_scale(
            run, image, block_means(np.asarray(probs), factor), params, factor
        )
    else:
        result = run(image, probs, params)
    result = jnp.asarray(result) if isinstance(probs, jax.Array) else np.asarray(result)
    return in_layout(result, layout)


@any_framework
def refine_batch(
    images: Any,
    probs: Any,
    valid: Any = None,
    params: CRFParams = RESNET101,
    *,
    num_iterations: int = 10,
    normalization: Normalization = "symmetric",
    prune_below: float | None = None,
    bands: Sequence[int] | None = None,
    layout: str = "hwc",
) -> Float32[Array, "b h w c"]:
    """Marginals float32 `[b, h, w, c]` of RGB photographs uint8 `[b, h, w, 3]`.

    Photographs of different size are padded to one size by the caller, with `valid`, bool
    `[b, h, w]`, false in the padding. Invalid pixels influence nothing; what comes back there
    has no meaning. `probs` are floats `[b, h, w, c]`. The result is of their framework. For
    `prune_below`, `bands` and `layout` see `refine`. On accelerators the batch is one problem; see
    `marginals` for that inside a `jit`.

    Raises:
      UserError: as `refine`.
    """
    images, probs = channels_last(layout, images=images, probs=probs)
    images, probs = check_photographs(images, probs, params, num_iterations, normalization, bands)
    check_pruning(prune_below)
    require(images.ndim == 4, f"expected photographs [b, h, w, 3], got {tuple(images.shape)}")
    mask = np.ones(images.shape[:3], bool)
    if valid is not None:
        mask = np.asarray(require_array("valid", valid), bool)
    require(
        mask.shape == images.shape[:3],
        f"expected valid {images.shape[:3]} for images {tuple(images.shape)}, got {mask.shape}",
    )
    options = {"num_iterations": int(num_iterations), "normalization": normalization}
    device = device_of(probs)
    run = partial(batch_marginals, params=params, prune_below=prune_below, device=device, **options)
    if not on_cpu(device):
        return in_layout(run(images, probs, mask), layout)
    # One lattice for all of them does not fit a CPU's caches. Some stages of a photograph keep one
    # core busy, so several are under way; the first goes ahead, and compiles for the others.

    def one(i):
        return jax.block_until_ready(run(*(x[i : i + 1] for x in (images, probs, mask))))

    with ThreadPoolExecutor(min(WORKERS, os.cpu_count() or 1)) as pool:
        parts = [one(0), *pool.map(one, range(1, len(images)))]
    return in_layout(module_of(probs).concatenate(parts), layout)


def check_pruning(prune_below: float | None, backend: Backend = "jax") -> None:
    """Refuses a threshold that is no probability, or that a back end cannot follow."""
    if prune_below is not None:
        probability = 0 <= prune_below <= 1
        require(probability, f"prune_below is a probability from 0 to 1, got {prune_below!r}")
        require(backend == "jax", f"prune_below needs backend='jax', got {backend!r}")


def check_max_pixels(max_pixels: Any) -> int:
    """`max_pixels` if it is a number of pixels."""
    number = isinstance(max_pixels, int) and not isinstance(max_pixels, bool) and max_pixels > 0
    require(number, f"max_pixels is a whole number of at least 1, got {max_pixels!r}")
    return max_pixels


# By the lattice, on the device where the probabilities are


def device_of(probs: Array) -> Any:
    """The device that a photograph is refined on, None for the process's first one.

    It is that of the probabilities, and for NumPy arrays the default device of the thread. TPUs,
    which are expected to take longer for the CRF (README.md), leave NumPy arrays to their host.
    """
    # JAX adds its options when it is imported.
    default = jax.config.jax_default_device  # pyright: ignore[reportAttributeAccessIssue]
    if isinstance(probs, jax.Array) and len(probs.devices()) == 1:
        (device,) = probs.devices()
        return default if device == jax.local_devices()[0] else device
    return default or host_of_tpu()


def host_of_tpu() -> jax.Device | None:
    """The CPU where the devices are TPUs; None elsewhere, and where JAX_PLATFORMS has no CPU."""
    try:
        return jax.local_devices(backend="cpu")[0] if jax.default_backend() == "tpu" else None
    except RuntimeError:
        return None


def one_photograph(
    image: UInt8[Array, "h w channels"],
    probs: Float[Array, "h w c"],
    params: CRFParams,
    **options,
) -> Float32[Array, "h w c"]:
    """`batch_marginals` of one, if its device has the memory."""
    device = device_of(probs)
    if on_cpu(device):
        check_memory(image.shape[0] * image.shape[1], probs.shape[-1])
    valid = np.ones((1, *image.shape[:2]), bool)
    return batch_marginals(image[None], probs[None], valid, params, device=device, **options)[0]


def batch_marginals(
    image: UInt8[Array, "b h w channels"],
    probs: Float[Array, "b h w c"],
    valid: Bool[np.ndarray, "b h w"],
    params: CRFParams,
    *,
    prune_below: float | None,
    **options,
) -> Float32[Array, "b h w c"]:
    """Marginals as one problem, with the rare labels merged into one that gets no message."""
    weights = [params.appearance_weight, params.smoothness_weight]
    if prune_below is not None:
        given = np.asarray(probs)
        rare = rare_labels(given, prune_below)
        if rare.sum() > 1:
            padding = -(int((~rare).sum()) + 1) % LANES  # few programs for all numbers of labels
            merged = merge_rare(given, rare, padding=padding)
            heard = (np.arange(1, merged.shape[-1] + 1) < merged.shape[-1]).astype(np.float32)
            compat = [-weight * heard for weight in weights]  # Potts but for the merged label
            found = lattice_marginals(image, merged, valid, params, compat=compat, **options)
            result = split_rare(np.asarray(found), given, rare)
            return jnp.asarray(result) if isinstance(probs, jax.Array) else result
    return lattice_marginals(image, probs, valid, params, compat=weights, **options)


def lattice_marginals(
    image: UInt8[Array, "b h w channels"],
    probs: Float[Array, "b h w c"],
    valid: Bool[np.ndarray, "b h w"],
    params: CRFParams,
    *,
    device: Any,
    compat: Sequence,
    num_iterations: int,
    normalization: Normalization,
) -> Float32[Array, "b h w c"]:
    """Marginals of a batch, computed on `device`; NumPy where `probs` is."""
    b, h, w, c = probs.shape
    group = np.arange(b * h * w, dtype=np.int32) // (h * w)
    sigma = as_numbers(params.sigma_smoothness)
    of_positions = valid.shape, valid.tobytes(), sigma, normalization, device, is_forked()
    xp = module_of(probs)
    with jax.default_device(device):
        with ThreadPoolExecutor(1) as thread:  # either kernel leaves a core free
            smoothness = thread.submit(smoothness_kernel, *of_positions)
            features = appearance_features(image, params)
            kernels = [host_lattice(features, valid.reshape(-1), group, normalization)]
        kernels.append(smoothness.result())
        rows = probs.reshape(-1, c).astype(np.float32)
        padding = kernels[0].num_points - len(rows)
        rows = xp.pad(rows, ((0, padding), (0, 0)), constant_values=1)
        result = run_iterations(rows, kernels, compat, num_iterations, probs=True)
    return xp.asarray(result)[: b * h * w].reshape(b, h, w, c)


@lru_cache(maxsize=4)
def smoothness_kernel(
    shape: tuple[int, ...],
    valid: bytes,
    sigma: float | tuple[float, ...],
    normalization: Normalization,
    device: Any,
    forked: bool,
) -> Lattice:
    """The smoothness kernel of photographs of this shape; `valid` are the bytes of their mask.

    It lies on `device`, the default one where that is None. A process that `is_forked` cannot use
    what it kept before.
    """
    b, h, w = shape
    group = np.arange(b * h * w, dtype=np.int32) // (h * w)
    with jax.default_device(device):
        mask = np.frombuffer(valid, bool)
        return host_lattice(pixel_positions(shape, sigma), mask, group, normalization)


# Memory


def memory_needed(num_pixels: int, num_labels: int) -> int:
    """Bytes that `refine` takes at its peak, beside its arguments and the compiler: an estimate.

    For a textured photograph of 800 x 1000 with 21 labels it is 2.7 GiB, and the process grew by
    2.4 GiB, compiling included.
    """
    lanes = -(-num_labels // LANES) * LANES
    return bucket(num_pixels, 2) * (BYTES_PER_PIXEL + BYTES_PER_LABEL * lanes)


def check_memory(num_pixels: int, num_labels: int) -> None:
    """Refuses a photograph that does not fit the machine's free memory."""
    needed = memory_needed(num_pixels, num_labels)
    free = free_memory()
    if free is not None and needed > free:
        raise UserError(
            f"a photograph of {num_pixels / 1e6:.1f} megapixels with {num_labels} labels needs "
            f"about {needed / 2**30:.0f} GiB and {free / 2**30:.0f} GiB are free: pass "
            "max_pixels=1_000_000, which refines it at a smaller scale, or cut it into tiles"
        )


def free_memory() -> int | None:
    """Bytes of memory that are free, where the system says so."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    found = [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")]
    return found[0] if found else None
