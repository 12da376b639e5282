"""`refine`: photographs and probabilities in, marginals out, on the host.

Sizes are rounded up to buckets, so that photographs of any size share a few compiled programs:
pixels to 2 buckets an octave, for lattices see `tight_bounds`. A lattice is counted first, so its
bucket is known before the tables are built. The smoothness kernel depends on nothing but the
size of the photograph and is kept from call to call.
"""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache, partial
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Float32, UInt8

from deeplab_jax.crf import filtering, inference
from deeplab_jax.crf.exact import exact_marginals
from deeplab_jax.crf.inference import Normalization, Pixels
from deeplab_jax.crf.lattice import Lattice
from deeplab_jax.crf.lattice import connect as connect_vertices
from deeplab_jax.crf.mean_field import LANES, mean_field
from deeplab_jax.crf.params import RESNET101, CRFParams
from deeplab_jax.crf.pruning import frequent_labels, merge_rare, potts_without_last, split_rare
from deeplab_jax.crf.pydensecrf_backend import pydensecrf_marginals
from deeplab_jax.crf.vertices import WIDTH, Vertices
from deeplab_jax.types import Array

Backend = Literal["jax", "pydensecrf", "exact"]

SMALLEST_BUCKET = 64
AT_ONCE = 4
"""Photographs of a batch that CPUs work on at the same time, at most."""

smoothness_vertices = jax.jit(inference.smoothness_vertices, static_argnames="num_images")
appearance_vertices = jax.jit(inference.appearance_vertices, static_argnames="num_images")
connect = jax.jit(
    connect_vertices, static_argnames=("vertex_bound", "row_bound", "upper_bound", "num_levels")
)
normalize = jax.jit(filtering.normalize, static_argnames="normalization")


def bucket(size: int, per_octave: int) -> int:
    """Smallest 2^k * (1 + j / per_octave) that is at least `size`.

    >>> [bucket(n, 4) for n in (100, 129, 161, 187_500)]
    [112, 160, 192, 196608]
    """
    size = max(size, SMALLEST_BUCKET)
    step = max(1, 2 ** ((size - 1).bit_length() - 1) // per_octave)
    return -(-size // step) * step


def check(image: Array, probs: Array, normalization: str) -> None:
    """Refuses what is not a uint8 photograph with finite probabilities of the same size."""
    if image.shape[-1] != 3 or probs.shape[:-1] != image.shape[:-1] or probs.shape[-1] == 0:
        raise ValueError(
            "expected an image [..., h, w, 3] and probabilities [..., h, w, classes] of the same "
            f"height and width, got {tuple(image.shape)} and {tuple(probs.shape)}"
        )
    if image.dtype != np.uint8:
        raise ValueError(f"expected an RGB image of uint8, 0 to 255, got {image.dtype}")
    if normalization not in ("symmetric", "per_pixel"):
        raise ValueError(f"normalization is 'symmetric' or 'per_pixel', got {normalization!r}")
    xp = jnp if isinstance(probs, jax.Array) else np
    if not xp.isfinite(probs).all():
        raise ValueError("probabilities hold NaN or infinite values; the CRF needs finite ones")


def host_pixels(image: UInt8[Array, "b h w 3"], valid: Bool[np.ndarray, "b h w"]) -> Pixels:
    """All pixels of a batch, padded to a bucket with pixels that are not valid."""
    b, h, w, _ = image.shape
    padding = bucket(b * h * w, 2) - b * h * w
    index = np.arange(b * h * w + padding, dtype=np.int32)
    xp = jnp if isinstance(image, jax.Array) else np
    return Pixels(
        position=np.stack([index % w, index // w % h]),
        color=xp.pad(image.reshape(-1, 3).T, ((0, 0), (0, padding))),
        image=np.minimum(index // (h * w), b - 1),
        valid=np.pad(valid.reshape(-1), (0, padding)),
    )


def tight_kernel(vertices: Vertices, normalization: Normalization) -> Lattice:
    """The kernel with the smallest bounds that its vertices fit."""
    return normalize(connect(vertices, **tight_bounds(vertices)), normalization=normalization)


def tight_bounds(vertices: Vertices) -> dict[str, int]:
    """Buckets that hold these vertices and their rows, few of them: each is compiled for.

    An appearance kernel has up to 6 vertices a pixel, textured photographs most, and rows for up
    to 3/4 of the pixels, smooth ones most; at most a quarter as many above. A narrow smoothness
    kernel has a little more than a vertex a pixel and seldom any row.
    """
    if not vertices.packs:
        raise ValueError(
            "lattice coordinates do not fit 63 bits: the CRF's standard deviations must be above 0 "
            "and not so small; backend='exact' takes any for a small photograph"
        )
    size, n = vertices.vertex.shape
    needed = int(vertices.num_vertices)
    rows = max(int(vertices.num_rows), 4 * int(vertices.num_upper))
    if size > 3:
        vertex_bound = bucket(max(needed, n // 4), 2)
        row_bound = 3 * n // 4 if rows <= 3 * n // 4 else bucket(rows, 2)
    else:
        narrow = needed > n // 4
        vertex_bound, row_bound = (
            bucket(max(needed, 5 * n // 4 if narrow else 0), 4),
            bucket(rows, 2),
        )
    most = int(vertices.most_rows)
    return {
        "vertex_bound": vertex_bound,
        "row_bound": row_bound,
        "upper_bound": row_bound // 4,
        "num_levels": next(k for k in (0, 3, 20) if most <= WIDTH**k),
    }


@lru_cache(maxsize=4)
def smoothness_kernel(
    shape: tuple[int, ...], valid: bytes, sigma: float, normalization: Normalization
) -> Lattice:
    """The smoothness kernel of photographs of this shape; `valid` are the bytes of their mask."""
    mask = np.frombuffer(valid, bool).reshape(shape)
    pixels = host_pixels(np.zeros((*shape, 3), np.uint8), mask)
    params = CRFParams(sigma_smoothness=sigma)
    return tight_kernel(smoothness_vertices(pixels, params, num_images=shape[0]), normalization)


@partial(jax.jit, static_argnames="num_iterations")
def infer(
    probs: Float[Array, "n c"],
    lattices: Sequence[Lattice],
    compat: Sequence,
    *,
    num_iterations: int,
) -> Float32[Array, "n c"]:
    """Marginals of flat pixels given their probabilities; `compat` as in `mean_field`."""
    unary = inference.energies(probs.astype(jnp.float32))
    return mean_field(unary, lattices, compat, num_iterations)


def compile_infer(shapes: tuple, num_iterations: int) -> None:
    """Compiles `infer` for arguments of these shapes, unless that is done."""
    infer.lower(*shapes, num_iterations=num_iterations).compile()


def jax_marginals(
    image: UInt8[Array, "b h w 3"],
    probs: Float[Array, "b h w c"],
    valid: Bool[np.ndarray, "b h w"],
    params: CRFParams,
    *,
    num_iterations: int,
    normalization: Normalization,
    compat: Sequence | None = None,
) -> Float32[Array, "b h w c"]:
    """Marginals of a batch by the lattice; NumPy where `probs` is.

    `compat` stands for the weights in `params`.
    """
    b, h, w, c = probs.shape
    pixels = host_pixels(image, valid)
    compat = compat or [params.appearance_weight, params.smoothness_weight]
    xp = jnp if isinstance(probs, jax.Array) else np
    flat = probs.reshape(-1, c).astype(np.float32)
    flat = xp.pad(flat, ((0, len(pixels.valid) - len(flat)), (0, 0)), constant_values=1)
    with ThreadPoolExecutor(1) as beside:  # what is new is compiled there for seconds
        sigma = float(params.sigma_smoothness)
        of_shape = (valid.shape, valid.tobytes(), sigma, normalization)
        smoothness = beside.submit(smoothness_kernel, *of_shape)
        vertices = appearance_vertices(pixels, params, num_images=b)
        appearance = connect.eval_shape(vertices, **tight_bounds(vertices))
        shapes = (flat, [appearance, smoothness.result()], compat)
        compiled = beside.submit(compile_infer, shapes, num_iterations)
        kernels = [tight_kernel(vertices, normalization), smoothness.result()]
        compiled.result()
    result = infer(flat, kernels, compat, num_iterations=num_iterations)
    return xp.asarray(result)[: b * h * w].reshape(b, h, w, c)


def pruned_marginals(
    image: UInt8[Array, "b h w 3"],
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
    result = split_rare(marginals, host, kept)
    return jnp.asarray(result) if isinstance(probs, jax.Array) else result


def refine_batch(
    images: Array,
    probs: Array,
    valid: Array | None = None,
    params: CRFParams = RESNET101,
    *,
    num_iterations: int = 10,
    normalization: Normalization = "symmetric",
    prune_below: float | None = None,
) -> Array:
    """Marginals float32 `[b, h, w, c]` of RGB photographs uint8 `[b, h, w, 3]`.

    Photographs of different size are padded to one size by the caller, with `valid`, bool
    `[b, h, w]`, false in the padding. Invalid pixels influence nothing; what comes back there
    has no meaning. `probs` are `[b, h, w, c]`; the result is NumPy where they are. For
    `prune_below` see `refine`. On accelerators the batch is one problem; see `marginals` for that
    inside a `jit`.
    """
    if images.ndim != 4:
        raise ValueError(
            f"expected images [b, h, w, 3] and probabilities [b, h, w, classes], "
            f"got {tuple(images.shape)} and {tuple(probs.shape)}"
        )
    check(images, probs, normalization)
    mask = np.ones(images.shape[:3], bool) if valid is None else np.asarray(valid, bool)
    if mask.shape != images.shape[:3]:
        raise ValueError(
            f"expected valid [b, h, w] for images {tuple(images.shape)}, got {mask.shape}"
        )
    options = {"num_iterations": num_iterations, "normalization": normalization}
    run = jax_marginals
    if prune_below is not None:
        run = partial(pruned_marginals, threshold=prune_below)
    if jax.default_backend() != "cpu":
        return run(images, probs, mask, params, **options)
    # One lattice for all of them does not fit a CPU's caches. Some stages of a photograph keep one
    # core busy, so several are under way; the first goes ahead, and compiles for the others.
    xp = jnp if isinstance(probs, jax.Array) else np
    parts = [(images[i : i + 1], probs[i : i + 1], mask[i : i + 1]) for i in range(len(images))]
    one = partial(_refine_part, run, params, options)
    with ThreadPoolExecutor(min(AT_ONCE, os.cpu_count() or 1)) as pool:
        return xp.concatenate([one(parts[0]), *pool.map(one, parts[1:])])


def _refine_part(run, params, options, part) -> Array:
    return jax.block_until_ready(run(*part, params, **options))


def refine(
    image: Array,
    probs: Array,
    params: CRFParams = RESNET101,
    *,
    num_iterations: int = 10,
    normalization: Normalization = "symmetric",
    backend: Backend = "jax",
    prune_below: float | None = None,
) -> Array:
    """Marginals float32 `[h, w, c]` of a fully connected CRF over one photograph.

    `image` is RGB uint8 `[h, w, 3]`, `probs` are `[h, w, c]` after the softmax at the size of
    the image; the result is NumPy where `probs` is. Normalization is pydensecrf's "symmetric"
    or the authors' "per_pixel". Back ends: "jax" on any device, "pydensecrf" (C++), and "exact"
    without the lattice's approximation, whose time grows with the square of the pixels.
    `prune_below` merges the labels that are less probable than this at every pixel ("jax" only).
    """
    if image.ndim != 3:
        raise ValueError(
            f"expected an image [h, w, 3] and probabilities [h, w, classes], "
            f"got {tuple(image.shape)} and {tuple(probs.shape)}"
        )
    check(image, probs, normalization)
    options = {"num_iterations": num_iterations, "normalization": normalization}
    if backend == "jax":
        options["prune_below"] = prune_below
        return refine_batch(image[None], probs[None], None, params, **options)[0]
    if prune_below is not None:
        raise ValueError(f"prune_below needs backend='jax', got {backend!r}")
    if backend == "exact":
        result = exact_refine(image, probs, params, **options)
    elif backend == "pydensecrf":
        unary = np.asarray(inference.energies(jnp.asarray(probs, jnp.float32)))
        result = pydensecrf_marginals(np.asarray(image), unary, params, **options)
    else:
        raise ValueError(f"backend is 'jax', 'pydensecrf' or 'exact', got {backend!r}")
    return jnp.asarray(result) if isinstance(probs, jax.Array) else np.asarray(result)


def exact_refine(
    image: UInt8[Array, "h w 3"],
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
    result = exact_marginals(
        pixels, unary, params, num_iterations=num_iterations, normalization=normalization
    )
    return result.reshape(probs.shape)
