"""From photographs to marginals: `marginals` inside `jit`, `refine` and `refine_batch` outside.

See `kernels` for the sizes of tables. The smoothness kernel depends on nothing but the size of the
photograph and is kept from call to call.
"""

import math
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, Literal, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Float32, UInt8

from deeplab_jax.choices import CRFNormalization as Normalization
from deeplab_jax.crf import kernels
from deeplab_jax.crf.arrays import any_framework, channels_last, in_layout, require_array
from deeplab_jax.crf.backends import exact_marginals, pydensecrf_marginals
from deeplab_jax.crf.checks import check_photographs, require
from deeplab_jax.crf.features import appearance_features, as_numbers, pixels_of, positions
from deeplab_jax.crf.forked import is_forked, refuse_forked
from deeplab_jax.crf.lattice import Lattice
from deeplab_jax.crf.mean_field import LANES, iterate
from deeplab_jax.crf.params import RESNET101, CRFParams
from deeplab_jax.crf.upsampling import at_smaller_scale, block_means, factor_for
from deeplab_jax.crf.xla import module_of
from deeplab_jax.ops.xla import forms_of
from deeplab_jax.types import Array

Backend = Literal["jax", "pydensecrf", "exact"]
Images: TypeAlias = UInt8[Array, "b h w channels"]
Probs: TypeAlias = Float[Array, "b h w c"]
Masks: TypeAlias = Bool[np.ndarray, "b h w"]

WORKERS = 4  # photographs of a batch that CPUs work on at the same time, at most


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
    false in padding; `bands` are as in `refine`. `vertex_bound` and `row_bound` limit the
    appearance lattice of the whole batch, and results are NaN where it is larger. 3 n and n of n
    pixels suit photographs of at least 100 pixels a side; small or noisy images have up to 6 n
    vertices, as without a bound. Gradients reach `unary` and all of `params`; those to standard
    deviations are the lattice's, which approximate: see `kernel`.
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
        kernels.bounded_lattice,
        valid=mask.reshape(-1),
        group=jnp.arange(b * h * w, dtype=jnp.int32) // (h * w),
        normalization=normalization,
    )
    appearance = jnp.asarray(appearance_features(image, params, jnp))
    smoothness = jnp.asarray(positions((b, h, w), params.sigma_smoothness, jnp))
    lattices = [
        lattice_of(appearance, vertex_bound=vertex_bound, row_bound=row_bound),
        lattice_of(smoothness),
    ]
    compat = [params.appearance_weight, params.smoothness_weight]
    rows = jnp.asarray(unary).reshape(b * h * w, -1)
    return iterate(rows, lattices, compat, int(num_iterations)).reshape(unary.shape)


def best_labels(
    image: Any, probs: Any, params: CRFParams = RESNET101, **options: Any
) -> UInt8[jax.Array, "*b h w"]:
    """Labels of the largest marginals, uint8, made for `jit` and `jax.export`.

    `probs` are probabilities of at most 256 classes; all else is as in `marginals`. The program
    keeps the form of each platform that it is exported for, also within a plain network.
    """
    with forms_of(None):
        found = marginals(image, kernels.energies(probs), params, **options)
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
        without pairwise terms, which saves their time ("jax" only; see `pruned_marginals`).
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
    able = prune_below is None or backend == "jax"
    require(able, f"prune_below needs backend='jax', got {backend!r}")
    require(image.ndim == 3, f"expected one image [h, w, 3], got {tuple(image.shape)}")
    channels = image.shape[-1]
    require(
        backend in ("jax", "exact") or (backend == "pydensecrf" and channels == 3),
        f"backend is 'jax', 'exact' or, for three bands, 'pydensecrf', got {backend!r} for "
        f"{channels} bands",
    )
    options = {"num_iterations": int(num_iterations), "normalization": normalization}
    ours = partial(one_photograph, prune_below=prune_below)
    backends = {"jax": ours, "exact": exact_marginals, "pydensecrf": pydensecrf_marginals}
    run = partial(backends[backend], **options)
    if (factor := factor_for(image.shape[:2], max_pixels)) > 1:
        means = block_means(np.asarray(probs), factor)
        result = at_smaller_scale(run, image, means, params, factor)
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
    has no meaning. All else is as in `refine`. On accelerators the batch is one problem; see
    `marginals` for that inside a `jit`.
    """
    images, probs = channels_last(layout, images=images, probs=probs)
    images, probs = check_photographs(images, probs, params, num_iterations, normalization, bands)
    require(images.ndim == 4, f"expected photographs [b, h, w, 3], got {tuple(images.shape)}")
    mask, shape = np.ones(images.shape[:3], bool), tuple(images.shape)
    if valid is not None:
        mask = np.asarray(require_array("valid", valid), bool)
    fits = f"expected valid {shape[:3]} for images {shape}, got {mask.shape}"
    require(mask.shape == shape[:3], fits)
    options: dict = {"num_iterations": int(num_iterations), "normalization": normalization}
    device = device_of(probs)
    options |= {"params": params, "prune_below": prune_below, "device": device}
    run = partial(pruned_marginals, **options)
    if not kernels.on_cpu(device):
        return in_layout(run(images, probs, mask), layout)
    # One lattice for all of them does not fit a CPU's caches. Some stages of a photograph keep one
    # core busy, so several are under way; the first goes ahead, and compiles for the others.

    def one(i):
        return jax.block_until_ready(run(*(x[i : i + 1] for x in (images, probs, mask))))

    with ThreadPoolExecutor(min(WORKERS, os.cpu_count() or 1)) as pool:
        parts = [one(0), *pool.map(one, range(1, len(images)))]
    return in_layout(module_of(probs).concatenate(parts), layout)


def device_of(probs: Array) -> Any:
    """The device that a photograph is refined on, None for the process's first one.

    It is that of the probabilities, and for NumPy arrays the default device of the thread. TPUs,
    which are expected to take longer for the CRF (README.md), leave NumPy arrays to their host.
    """
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
    image: UInt8[Array, "h w channels"], probs: Float[Array, "h w c"], params: CRFParams, **options
) -> Float32[Array, "h w c"]:
    """`pruned_marginals` of one, if its device has the memory."""
    device = device_of(probs)
    if kernels.on_cpu(device):
        check_memory(image.shape[0] * image.shape[1], probs.shape[-1])
    valid = np.ones((1, *image.shape[:2]), bool)
    return pruned_marginals(image[None], probs[None], valid, params, device=device, **options)[0]


def pruned_marginals(
    image: Images, probs: Probs, valid: Masks, params: CRFParams, *, prune_below: Any, **options
) -> Probs:
    """Marginals as one problem, where labels less probable than `prune_below` are merged.

    A label that is improbable at every pixel takes as much time as any other. Its message is at
    most the kernels' weights times its largest marginal. All such labels are added up to one
    without pairwise terms, whose marginal they share in proportion to their probabilities.
    """
    weights = [params.appearance_weight, params.smoothness_weight]
    run = partial(lattice_marginals, image, valid=valid, params=params, **options)
    if prune_below is None:
        return run(probs, compat=weights)
    require(0 <= prune_below <= 1, f"prune_below is a probability from 0 to 1, got {prune_below!r}")
    given = np.asarray(probs)
    rare = given.max(axis=(0, 1, 2)) < prune_below
    if rare.sum() < 2:
        return run(probs, compat=weights)
    rest = given[..., rare].sum(-1, keepdims=True)
    kept = int((~rare).sum())
    nobody = np.zeros((*given.shape[:-1], -(kept + 1) % LANES), given.dtype)
    merged = np.concatenate([given[..., ~rare], nobody, rest], axis=-1)  # few programs for all
    heard = (np.arange(1, merged.shape[-1] + 1) < merged.shape[-1]).astype(np.float32)
    compat = [-weight * heard for weight in weights]  # -w identity: Potts, but for the merged label
    found = np.asarray(run(merged, compat=compat))
    result = np.zeros(given.shape, found.dtype)
    result[..., ~rare] = found[..., :kept]
    total = np.maximum(rest, np.finfo(np.float32).tiny)
    result[..., rare] = found[..., -1:] * given[..., rare] / total
    return jnp.asarray(result) if isinstance(probs, jax.Array) else result


def lattice_marginals(
    image: Images,
    probs: Probs,
    *,
    valid: Masks,
    params: CRFParams,
    device: Any,
    compat: Sequence,
    num_iterations: int,
    normalization: Normalization,
) -> Probs:
    """Marginals of a batch, computed on `device`; NumPy where `probs` is."""
    b, h, w, c = probs.shape
    sigma = as_numbers(params.sigma_smoothness)
    of_positions = valid.shape, valid.tobytes(), sigma, normalization, device, is_forked()
    xp = module_of(probs)
    with jax.default_device(device):
        with ThreadPoolExecutor(1) as thread:  # either kernel leaves a core free
            smoothness = thread.submit(smoothness_kernel, *of_positions)
            features = appearance_features(image, params)
            made = [kernels.host_lattice(features, *pixels_of(valid), normalization)]
        made.append(smoothness.result())
        rows = probs.reshape(-1, c).astype(np.float32)
        padding = made[0].num_points - len(rows)
        rows = xp.pad(rows, ((0, padding), (0, 0)), constant_values=1)
        result = kernels.run_iterations(rows, made, compat, num_iterations, probs=True)
    return xp.asarray(result)[: b * h * w].reshape(b, h, w, c)


@lru_cache(maxsize=4)
def smoothness_kernel(
    shape: tuple[int, ...], valid: bytes, sigma: Any, normalization: str, device: Any, forked: bool
) -> Lattice:
    """The smoothness kernel of photographs of this shape; `valid` are the bytes of their mask.

    It lies on `device`, the default one where that is None. A process that `is_forked` cannot use
    what it kept before.
    """
    with jax.default_device(device):
        pixels = pixels_of(np.frombuffer(valid, bool).reshape(shape))
        return kernels.host_lattice(positions(shape, sigma), *pixels, normalization)


def check_memory(num_pixels: int, num_labels: int) -> None:
    """Refuses a photograph that does not fit the machine's free memory, by an estimate.

    For a textured one of 800 x 1000 with 21 labels that is 2.7 GiB, and 2.4 GiB were taken.
    """
    needed = kernels.bucket(num_pixels, 2) * (1600 + 50 * (num_labels + -num_labels % LANES))
    free = free_memory()
    require(
        needed <= free,
        f"a photograph of {num_pixels / 1e6:.1f} megapixels with {num_labels} labels needs about "
        f"{needed / 2**30:.0f} GiB and {free / 2**30:.0f} GiB are free: pass "
        "max_pixels=1_000_000, which refines it at a smaller scale, or cut it into tiles",
    )


def free_memory() -> float | int:
    """Bytes of memory that are free; infinity where the system does not say so."""
    path = Path("/proc/meminfo")
    lines = path.read_text().splitlines() if path.exists() else []
    free = (int(line.split()[1]) for line in lines if line.startswith("MemAvailable:"))
    return 1024 * next(free, math.inf)
