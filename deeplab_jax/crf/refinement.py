"""`refine`: photographs and probabilities in, marginals out, on the host.

Sizes are rounded up to buckets, so that photographs of any size share a few compiled programs:
pixels to 2 buckets an octave, for lattices see `kernels.tight_bounds`. A lattice is counted
first, so its bucket is known before the tables are built. The smoothness kernel depends on
nothing but the size of the photograph and is kept from call to call.
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

from deeplab_jax.crf import inference
from deeplab_jax.crf.checks import (
    check_bands,
    check_iterations,
    check_normalization,
    check_params,
    check_probs,
    require_array,
)
from deeplab_jax.crf.exact import exact_mean_field
from deeplab_jax.crf.inference import Normalization, Pixels
from deeplab_jax.crf.kernels import bucket, count_vertices, on_cpu, tight_kernel
from deeplab_jax.crf.lattice import Lattice
from deeplab_jax.crf.mean_field import LANES, mean_field
from deeplab_jax.crf.params import RESNET101, CRFParams
from deeplab_jax.crf.pruning import frequent_labels, merge_rare, potts_without_last, split_rare
from deeplab_jax.crf.pydensecrf_backend import pydensecrf_marginals
from deeplab_jax.crf.upsampling import block_means, factor_for, smaller_params, upsample
from deeplab_jax.crf.xla import for_cpus
from deeplab_jax.types import Array, UserError

Backend = Literal["jax", "pydensecrf", "exact"]

AT_ONCE = 4
"""Photographs of a batch that CPUs work on at the same time, at most."""
OLDER_LOOPS = {"xla_cpu_use_fusion_emitters": False} if jax.__version_info__ < (0, 11) else {}
"""Options of XLA for CPUs: its older emitters compile `infer` in two thirds of the time, to a
program that takes as long and gives the same bits. Later versions have no older ones."""
BYTES_PER_PIXEL, BYTES_PER_LABEL = 1600, 50
"""Peak memory for each pixel, and for each of its labels; see `memory_needed`."""


def host_pixels(image: UInt8[Array, "b h w channels"], valid: Bool[np.ndarray, "b h w"]) -> Pixels:
    """All pixels of a batch, padded to a bucket with pixels that are not valid."""
    b, h, w, channels = image.shape
    padding = bucket(b * h * w, 2) - b * h * w
    index = np.arange(b * h * w + padding, dtype=np.int32)
    xp = jnp if isinstance(image, jax.Array) else np
    return Pixels(
        position=np.stack([index % w, index // w % h]),
        color=xp.pad(image.reshape(-1, channels).T, ((0, 0), (0, padding))),
        image=np.minimum(index // (h * w), b - 1),
        valid=np.pad(valid.reshape(-1), (0, padding)),
    )


@lru_cache(maxsize=4)
def smoothness_kernel(
    shape: tuple[int, ...],
    valid: bytes,
    sigma: float | tuple[float, ...],
    normalization: Normalization,
    device: Any = None,
) -> Lattice:
    """The smoothness kernel of photographs of this shape; `valid` are the bytes of their mask.

    It lies on `device`, the default one where that is None.
    """
    mask = np.frombuffer(valid, bool).reshape(shape)
    pixels = host_pixels(np.zeros((*shape, 3), np.uint8), mask)
    features = inference.smoothness_features(pixels, CRFParams(sigma_smoothness=sigma))
    with jax.default_device(device):
        return tight_kernel(count_vertices(features, pixels.valid, pixels.image), normalization)


def device_of(probs: Array) -> Any:
    """The device that a photograph is refined on, where it is not the process's first one.

    It is that of the probabilities, and for NumPy arrays the default device of the thread.
    """
    # JAX adds its options when it is imported.
    default = jax.config.jax_default_device  # pyright: ignore[reportAttributeAccessIssue]
    if isinstance(probs, jax.Array) and len(probs.devices()) == 1:
        (device,) = probs.devices()
        return default if device == jax.local_devices()[0] else device
    return default


def hashable(sigma: Any) -> float | tuple[float, ...]:
    """A standard deviation as a number, one for each axis as a tuple."""
    values = np.asarray(sigma, np.float64)
    return float(values) if values.ndim == 0 else tuple(values.tolist())


def _infer(probs, lattices, compat, *, num_iterations):
    unary = inference.energies(probs.astype(jnp.float32))
    return mean_field(jnp.asarray(unary), lattices, compat, num_iterations)


_infer_on_cpu = jax.jit(
    for_cpus(_infer), static_argnames="num_iterations", compiler_options=OLDER_LOOPS
)
_infer_elsewhere = jax.jit(_infer, static_argnames="num_iterations")


def infer(
    probs: Float[Array, "n c"],
    lattices: Sequence[Lattice],
    compat: Sequence,
    *,
    num_iterations: int,
) -> Float32[Array, "n c"]:
    """Marginals of flat pixels given their probabilities; `compat` as in `mean_field`."""
    run = _infer_on_cpu if on_cpu() else _infer_elsewhere
    return run(probs, lattices, compat, num_iterations=num_iterations)


def jax_marginals(
    image: UInt8[Array, "b h w channels"],
    probs: Float[Array, "b h w c"],
    valid: Bool[np.ndarray, "b h w"],
    params: CRFParams,
    *,
    num_iterations: int,
    normalization: Normalization,
    compat: Sequence | None = None,
) -> Float32[Array, "b h w c"]:
    """Marginals of a batch by the lattice; NumPy where `probs` is, else on its device.

    `compat` stands for the weights in `params`.
    """
    device = device_of(probs)
    b, h, w, c = probs.shape
    pixels = host_pixels(image, valid)
    compat = compat or [params.appearance_weight, params.smoothness_weight]
    xp = jnp if isinstance(probs, jax.Array) else np
    flat = probs.reshape(-1, c).astype(np.float32)
    flat = xp.pad(flat, ((0, len(pixels.valid) - len(flat)), (0, 0)), constant_values=1)
    sigma = hashable(params.sigma_smoothness)
    with jax.default_device(device):
        with ThreadPoolExecutor(1) as thread:  # either kernel leaves a core free
            of_positions = valid.shape, valid.tobytes(), sigma, normalization, device
            smoothness = thread.submit(smoothness_kernel, *of_positions)
            features = inference.appearance_features(pixels, params)
            vertices = count_vertices(features, pixels.valid, pixels.image)
            appearance = tight_kernel(vertices, normalization)
        kernels = [appearance, smoothness.result()]
        result = infer(flat, kernels, compat, num_iterations=num_iterations)
    return xp.asarray(result)[: b * h * w].reshape(b, h, w, c)


def pruned_marginals(
    image: UInt8[Array, "b h w channels"],
    probs: Float[Array, "b h w c"],
    valid: Bool[np.ndarray, "b h w"],
    params: CRFParams,
    *,
    threshold: float,
    **options,
) -> Float32[Array, "b h w c"]:
    """`jax_marginals` with the rare labels merged into one that gets no message."""
    host = np.asarray(probs)
    kept = frequent_labels(host, threshold)
    if len(kept) + 1 >= probs.shape[-1]:
        return jax_marginals(image, probs, valid, params, **options)
    padding = -(len(kept) + 1) % LANES  # one compiled program for every few numbers of labels
    merged = merge_rare(host, kept, padding=padding)
    weights = (params.appearance_weight, params.smoothness_weight)
    compat = [potts_without_last(weight, merged.shape[-1]) for weight in weights]
    marginals = jax_marginals(image, merged, valid, params, compat=compat, **options)
    result = split_rare(np.asarray(marginals), host, kept)
    return jnp.asarray(result) if isinstance(probs, jax.Array) else result


def check_arguments(
    image, probs, params, num_iterations, normalization, prune_below, bands
) -> tuple:
    """The arrays, of the image the `bands` where they are given, if everything that `refine` and
    `refine_batch` share is as it should be."""
    image, probs = require_array("image", image), require_array("probs", probs)
    channels = 3
    if bands is not None:
        check_bands(image, bands)
        image, channels = image[..., np.array(bands)], len(bands)
    check_probs(image, probs, channels=channels)
    check_params(params, channels=channels)
    check_iterations(num_iterations)
    check_normalization(normalization)
    if prune_below is not None and not 0 <= prune_below <= 1:
        raise UserError(f"prune_below is a probability from 0 to 1, got {prune_below!r}")
    return image, probs


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
) -> Float32[Array, "b h w c"]:
    """Marginals float32 `[b, h, w, c]` of RGB photographs uint8 `[b, h, w, 3]`.

    Photographs of different size are padded to one size by the caller, with `valid`, bool
    `[b, h, w]`, false in the padding. Invalid pixels influence nothing; what comes back there
    has no meaning. `probs` are floats `[b, h, w, c]`; the result is NumPy where they are. For
    `prune_below` and `bands` see `refine`. On accelerators the batch is one problem; see
    `marginals` for that inside a `jit`.

    Raises:
      UserError: as `refine`.
    """
    shapes = np.shape(images), np.shape(probs)
    images, probs = check_arguments(
        images, probs, params, num_iterations, normalization, prune_below, bands
    )
    if images.ndim != 4:
        raise UserError(
            f"expected images [b, h, w, 3] and probabilities [b, h, w, classes], "
            f"got {shapes[0]} and {shapes[1]}"
        )
    mask = np.ones(images.shape[:3], bool) if valid is None else np.asarray(valid, bool)
    if mask.shape != images.shape[:3]:
        raise UserError(
            f"expected valid [b, h, w] for images {tuple(images.shape)}, got {mask.shape}"
        )
    options = {"num_iterations": int(num_iterations), "normalization": normalization}
    run = jax_marginals
    if prune_below is not None:
        run = partial(pruned_marginals, threshold=prune_below)
    if not on_cpu():
        return run(images, probs, mask, params, **options)
    # One lattice for all of them does not fit a CPU's caches. Some stages of a photograph keep one
    # core busy, so several are under way; the first goes ahead, and compiles for the others.
    xp = jnp if isinstance(probs, jax.Array) else np
    parts = [(images[i : i + 1], probs[i : i + 1], mask[i : i + 1]) for i in range(len(images))]
    one = partial(_refine_part, run, params, options, device_of(probs))
    with ThreadPoolExecutor(min(AT_ONCE, os.cpu_count() or 1)) as pool:
        return xp.concatenate([one(parts[0]), *pool.map(one, parts[1:])])


def _refine_part(run, params, options, device, part) -> Array:
    with jax.default_device(device):  # which each thread has of its own
        return jax.block_until_ready(run(*part, params, **options))


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
) -> Float32[Array, "h w c"]:
    """Marginals float32 `[h, w, c]` of a fully connected CRF over one photograph.

    Args:
      image: RGB uint8 `[h, w, 3]`, or with `bands` of any number of channels; `kernel` and
        `mean_field` take other images.
      probs: floats `[h, w, c]` after the softmax at the size of the image, at least 2 classes;
        the result is NumPy where they are.
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

    Raises:
      UserError: arguments of a wrong type, shape or range, in one sentence; a photograph that
        needs more memory than is free.
    """
    image, probs = check_arguments(
        image, probs, params, num_iterations, normalization, prune_below, bands
    )
    bands = None if bands is None else range(len(bands))  # of the image as it is now
    if image.ndim != 3:
        raise UserError(
            f"expected an image [h, w, 3] and probabilities [h, w, classes], "
            f"got {tuple(image.shape)} and {tuple(probs.shape)}"
        )
    options = {"num_iterations": int(num_iterations), "normalization": normalization}
    if max_pixels is not None and image.shape[0] * image.shape[1] > check_max_pixels(max_pixels):
        smaller = {"backend": backend, "prune_below": prune_below, "bands": bands, **options}
        result = refine_smaller(image, probs, params, max_pixels, smaller)
        return jnp.asarray(result) if isinstance(probs, jax.Array) else result
    if backend == "jax":
        check_memory(image.shape[0] * image.shape[1], probs.shape[-1])
        options |= {"prune_below": prune_below, "bands": bands}
        return refine_batch(image[None], probs[None], None, params, **options)[0]
    if prune_below is not None:
        raise UserError(f"prune_below needs backend='jax', got {backend!r}")
    if backend == "exact":
        result = exact_refine(image, probs, params, **options)
    elif backend == "pydensecrf":
        if image.shape[-1] != 3:
            raise UserError(f"pydensecrf takes 3 bands, got {image.shape[-1]}; use backend='jax'")
        unary = np.asarray(inference.energies(jnp.asarray(probs, jnp.float32)))
        result = pydensecrf_marginals(np.asarray(image), unary, params, **options)
    else:
        raise UserError(f"backend is 'jax', 'pydensecrf' or 'exact', got {backend!r}")
    return jnp.asarray(result) if isinstance(probs, jax.Array) else np.asarray(result)


def host_of_tpu() -> jax.Device | None:
    """The host's CPU where the devices are TPUs, expected to take longer for the CRF (README.md).

    None elsewhere, and where JAX was told to use no CPU (JAX_PLATFORMS).
    """
    if jax.default_backend() != "tpu":
        return None
    try:
        return jax.local_devices(backend="cpu")[0]
    except RuntimeError:
        return None


def refine_on_host(
    image: Any, probs: Any, params: CRFParams = RESNET101, **options: Any
) -> Float32[np.ndarray, "h w c"]:
    """`refine` on the host's CPU whatever the devices are, with its options; NumPy arrays in and
    out.

    Raises:
      UserError: as `refine`.
      RuntimeError: JAX was told to use no CPU (JAX_PLATFORMS).
    """
    with jax.default_device(jax.local_devices(backend="cpu")[0]):
        return np.asarray(refine(np.asarray(image), np.asarray(probs), params, **options))


def refine_smaller(
    image: UInt8[Array, "h w channels"],
    probs: Float[Array, "h w c"],
    params: CRFParams,
    max_pixels: int,
    options: dict[str, Any],
) -> Float32[np.ndarray, "h w c"]:
    """`refine` at a smaller scale, and its marginals enlarged along the photograph's edges."""
    image, probs = np.asarray(image), np.asarray(probs)
    height, width = image.shape[:2]
    factor = factor_for(height, width, max_pixels)
    small = block_means(image, factor)
    refined = refine(
        np.rint(small).astype(np.uint8),
        block_means(probs, factor),
        smaller_params(params, factor),
        **options,
    )
    return upsample(image, small, np.asarray(refined), factor, alike_colors(params))


def alike_colors(params: CRFParams) -> float:
    """Standard deviation of the colours that upsampling takes for alike: noise is."""
    return max(float(np.mean(params.sigma_rgb)), 8.0)


def memory_needed(num_pixels: int, num_labels: int) -> int:
    """Bytes that `refine` takes at its peak, beside its arguments and the compiler: an estimate.

    For a textured photograph of 800 x 1000 with 21 labels it is 2.7 GiB, and the process grew by
    2.4 GiB, compiling included.
    """
    lanes = -(-num_labels // LANES) * LANES
    return bucket(num_pixels, 2) * (BYTES_PER_PIXEL + BYTES_PER_LABEL * lanes)


def check_memory(num_pixels: int, num_labels: int) -> None:
    """Refuses a photograph that does not fit the free memory of a CPU's machine."""
    needed = memory_needed(num_pixels, num_labels)
    free = free_memory()
    if on_cpu() and free is not None and needed > free:
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


def check_max_pixels(max_pixels: Any) -> int:
    """`max_pixels` if it is a number of pixels."""
    if isinstance(max_pixels, bool) or not isinstance(max_pixels, int) or max_pixels < 1:
        raise UserError(f"max_pixels is a whole number of at least 1, got {max_pixels!r}")
    return max_pixels


def exact_refine(
    image: UInt8[Array, "h w channels"],
    probs: Float[Array, "h w c"],
    params: CRFParams,
    *,
    num_iterations: int,
    normalization: Normalization,
) -> Float32[jax.Array, "h w c"]:
    """Marginals with the dense kernel."""
    image = jnp.asarray(image)[None]
    pixels = inference.flatten(image, jnp.ones(image.shape[:3], bool))
    unary = inference.energies(jnp.asarray(probs, jnp.float32)).reshape(-1, probs.shape[-1])
    features = [
        inference.appearance_features(pixels, params),
        inference.smoothness_features(pixels, params),
    ]
    weights = [params.appearance_weight, params.smoothness_weight]
    result = exact_mean_field(
        unary, features, weights, num_iterations=num_iterations, normalization=normalization
    )
    return result.reshape(probs.shape)
