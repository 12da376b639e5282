"""Gaussian kernels between any points, the filter with them, and mean field.

    kernel = crf.kernel(crf.image_features(volume, sigma_position=20.0, sigma_value=0.1))
    smoothed = crf.filter(kernel, values)
    marginals = crf.mean_field(crf.energies(probs), [kernel], [4.0])

Outside `jit` a lattice's vertices are counted first, and its tables have the smallest size from a
short list (`bucket`, `tight_bounds`), so that many inputs share a few compiled programs. Inside
`jit` bounds are those that no lattice exceeds, or given; one that exceeds those gives NaN.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from deeplab_jax.crf import checks, filtering, forked, lattice_numpy
from deeplab_jax.crf import lattice as tables
from deeplab_jax.crf import mean_field as flat
from deeplab_jax.crf.arrays import any_framework, is_foreign, require_array
from deeplab_jax.crf.forked import is_forked, refuse_forked
from deeplab_jax.crf.lattice import Features, Group, Lattice, Rows, Valid, Vertices
from deeplab_jax.crf.xla import module_of
from deeplab_jax.ops.xla import forms_of
from deeplab_jax.types import Array, UserError

compiled_vertices = jax.jit(tables.sort_vertices, static_argnames="words")
BOUNDS = ("vertex_bound", "row_bound", "upper_bound", "num_levels")
compiled_connect = jax.jit(tables.connect, static_argnames=BOUNDS)
compiled_normalize = jax.jit(filtering.normalize, static_argnames="normalization")
smooth = jax.jit(filtering.smooth)
iterate_for_gradients = jax.jit(flat.iterate, static_argnames="num_iterations")
pad_labels = jax.jit(flat.pad_labels)
free_energy = jax.jit(flat.free_energy)

OLDER_LOOPS = {"xla_cpu_use_fusion_emitters": False} if jax.__version_info__ < (0, 11) else {}
"""Options of XLA for CPUs: its older emitters, which later versions lack, compile `infer` in two
thirds of the time, to a program that takes as long and gives the same bits."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Kernel:
    """A normalized Gaussian kernel between points; a pytree, made by `kernel`."""

    lattice: Lattice  # of the points in one row, with padding at its end
    shape: tuple[int, ...] = field(metadata={"static": True})  # axes of the points


def bucket(size: int, per_octave: int) -> int:
    """Smallest 2^k * (1 + j / per_octave) that is at least `size` and 64.

    >>> [bucket(n, 4) for n in (100, 129, 161, 187_500)]
    [112, 160, 192, 196608]
    """
    size = max(size, 64)
    step = max(1, 2 ** ((size - 1).bit_length() - 1) // per_octave)
    return -(-size // step) * step


def on_cpu(device: Any = None) -> bool:
    """Whether the device is a CPU: the default one of this thread where none is given."""
    device = device or jax.config.jax_default_device  # pyright: ignore[reportAttributeAccessIssue]
    platform = jax.default_backend() if device is None else getattr(device, "platform", device)
    return platform == "cpu"


def count_vertices(features: Features, valid: Valid, group: Group) -> Vertices:
    """Vertices of known points, with keys of as many words as they need; NumPy's on CPUs."""
    if on_cpu() or is_forked():
        vertices = lattice_numpy.sort_vertices(*map(np.asarray, (features, valid, group)))
        if vertices is not None:
            return vertices
    refuse_forked("a kernel of features that spread this far")
    for words in (1, 2):
        vertices = compiled_vertices(features, valid, group, words=words)
        if vertices.packs:
            return vertices
    raise UserError(
        "the features spread too far for lattice keys of two 63-bit words: standard deviations "
        "must be above 0 and not so small against the values they divide"
    )


def tight_bounds(vertices: Vertices) -> dict[str, int]:
    """Buckets that hold these vertices and their rows, few of them: each is compiled for.

    Kernels of more than two dimensions have from 0.05 to d + 1 vertices a pixel, textured
    photographs most. Their buckets are half octaves: room for half as many again costs a tenth of
    the time of inference. They seldom have more rows than 3/4 of the pixels, and a quarter as many
    rows of rows. A narrow kernel of positions has about a vertex a pixel and seldom any row.
    """
    size, n = vertices.vertex.shape
    needed = int(vertices.num_vertices)
    rows = max(int(vertices.num_rows), 4 * int(vertices.num_upper))
    if size > 3:
        vertex_bound = bucket(max(needed, n // 2), 2)
        row_bound = 3 * n // 4 if rows <= 3 * n // 4 else bucket(rows, 2)
    else:
        narrow = needed > n // 4
        vertex_bound = bucket(max(needed, 7 * n // 6 if narrow else 0), 4)
        row_bound = bucket(rows, 2)
    most = int(vertices.most_rows)
    return {
        "vertex_bound": vertex_bound,
        "row_bound": row_bound,
        "upper_bound": row_bound // 4,
        "num_levels": next(k for k in (0, 3, 20) if most <= tables.WIDTH**k and (k or size <= 3)),
    }


def bounds_within(
    dimension: int, num_pixels: int, vertex_bound: int | None = None, row_bound: int | None = None
) -> dict[str, int]:
    """The given bounds; in place of None those that no lattice exceeds.

    There are at most as many vertices as contributions; a vertex with a row has more than NEAR
    contributions, one with a row of rows more than NEAR + WIDTH.
    """
    contributions = (dimension + 1) * num_pixels
    upper = row_bound // 4 if row_bound else contributions // (tables.NEAR + tables.WIDTH + 1)
    return {
        "vertex_bound": vertex_bound or contributions,
        "row_bound": row_bound or contributions // (tables.NEAR + 1) + 1,
        "upper_bound": upper + 1,
    }


def bounded_lattice(
    features: Features, valid: Valid, group: Group, *, normalization: str, **given: int | None
) -> Lattice:
    """The normalized lattice inside `jit`; see `marginals` for the bounds that are `given`."""
    d, n = features.shape
    vertices, bounds = tables.sort_vertices(features, valid, group), bounds_within(d, n, **given)
    return filtering.normalize(tables.connect(vertices, **bounds), normalization)


traced_lattice = jax.jit(
    bounded_lattice, static_argnames=("normalization", "vertex_bound", "row_bound")
)


def kernel(
    features: Any,
    *,
    valid: Any = None,
    group: Any = None,
    normalization: str = "symmetric",
    vertex_bound: int | None = None,
    row_bound: int | None = None,
) -> Kernel:
    """The Gaussian kernel exp(-|f_i - f_j|^2 / 2) between all points, for `filter`, `mean_field`.

    Args:
      features: floats `[*points, d]`, d from 1 to 8, each value over its standard deviation. All
        axes but the last hold points of one problem: `[n, d]` for a set of points, `[h, w, d]`
        for the pixels of an image; see `grid_features` and `image_features`. Gradients reach
        them: those of the lattice's weights, which hold between the borders of its simplices.
      valid: bool `[*points]`; points where it is false influence nothing, and what comes back
        there has no meaning.
      group: integers `[*points]` from 0; points of different groups, such as the photographs of
        a batch, do not influence each other.
      normalization: with D the diagonal of K 1: "symmetric" is D^-1/2 K D^-1/2, "after" (or
        "per_pixel") D^-1 K, "before" K D^-1, "none" K: pydensecrf's four.
      vertex_bound: size of a table inside `jit`, as for `marginals`.
      row_bound: likewise.
    """
    features = checks.check_features(features, valid=valid, group=group)
    checks.check_normalization(normalization)
    points = features.shape[:-1]
    dtype = np.float64 if features.dtype == np.float64 else np.float32
    rows = features.reshape(-1, features.shape[-1]).T.astype(jax.dtypes.canonicalize_dtype(dtype))
    n = rows.shape[1]
    valid = np.ones(n, bool) if valid is None else require_array("valid", valid).reshape(n)
    group = np.zeros(n, np.int32) if group is None else require_array("group", group).reshape(n)
    group = group.astype(np.int32)
    if checks.is_traced(features, valid, group):
        refuse_forked("crf.kernel of traced arrays")
        options = {"normalization": normalization, "vertex_bound": vertex_bound}
        options["row_bound"] = row_bound
        return Kernel(traced_lattice(rows, valid, group, **options), points)
    with jax.ensure_compile_time_eval():  # inside a caller's `jit` too: the features are known
        return Kernel(host_lattice(rows, valid, group, normalization), points)


def host_lattice(
    features: Features, valid: Valid, group: Group, normalization: str, *, silent: int = 0
) -> Lattice:
    """The normalized lattice of known points, padded to a bucket, with the smallest tables.

    The last `silent` points have vertices, which the blur passes through, but no weight.
    """
    n = features.shape[1]
    if is_forked():
        features = np.asarray(features)
    xp = module_of(features)
    padding = (0, -n % 4 if is_forked() else bucket(n, 2) - n)  # nothing is compiled there
    valid = np.pad(np.asarray(valid), padding)
    vertices = count_vertices(
        xp.pad(features, ((0, 0), padding)), valid, np.pad(np.asarray(group), padding)
    )
    if silent:
        heard = valid & (np.arange(len(valid)) < n - silent)
        vertices = replace(vertices, weight=vertices.weight * heard)
    bounds = tight_bounds(vertices)
    if isinstance(vertices.pixel, np.ndarray):
        lattice = lattice_numpy.normalize(lattice_numpy.connect(vertices, **bounds), normalization)
        return lattice if is_forked() else jax.device_put(lattice)
    return compiled_normalize(compiled_connect(vertices, **bounds), normalization=normalization)


def infer(values: Rows, lattices: Sequence[Lattice], *terms: Any, probs: bool = False) -> Rows:
    """`mean_field.iterate` given energies or, with `probs`, float32 probabilities."""
    unary = energies(values) if probs else values
    return flat.iterate(jnp.asarray(unary), lattices, *terms)


def programs(function: Callable, **options) -> Callable:
    """`function` compiled for CPUs alone, which takes half the time to trace, or for any device."""
    on_cpus = jax.jit(forms_of("cpu")(function), compiler_options=OLDER_LOOPS, **options)
    elsewhere = jax.jit(function, **options)
    return lambda *args, **named: (on_cpus if on_cpu() else elsewhere)(*args, **named)


compiled_infer = programs(infer, static_argnames="probs")
compiled_update = programs(flat.update, static_argnames="num_labels", donate_argnames="marginals")


def run_iterations(values: Rows, *terms: Any, probs: bool = False) -> Rows:
    """`infer` of known arguments; one program for all numbers of iterations."""
    if not is_forked():
        return compiled_infer(values, *terms, probs=probs)
    lattices, compat, num_iterations, *start = terms
    rises = partial(flat.energy_rises, lattices, compat)
    return forked.iterate(energies(values) if probs else values, rises, num_iterations, *start)


@any_framework
def energies(probs: Any) -> Float[Array, "*points c"]:
    """-log of probabilities, of which 0 counts as the smallest normal float32."""
    probs = require_array("probs", probs)
    xp = module_of(probs)
    dtype = np.float64 if probs.dtype == np.float64 else np.float32
    return -xp.log(xp.maximum(probs.astype(dtype), np.finfo(np.float32).tiny))


def flatten(name: str, values: Any, kernel: Any) -> Rows:
    """Values `[*points, c]` in one row a point, padded to the size of the kernel's tables."""
    made = isinstance(kernel, Kernel)
    checks.require(made, f"expected a kernel that crf.kernel made, got {type(kernel).__qualname__}")
    values = require_array(name, values)
    if values.ndim < 1 or tuple(values.shape[:-1]) != kernel.shape or values.shape[-1] == 0:
        shape = ", ".join(str(size) for size in kernel.shape)
        raise UserError(f"expected {name} [{shape}, c] for this kernel, got {tuple(values.shape)}")
    floats = jnp.issubdtype(values.dtype, jnp.floating)
    checks.require(floats, f"expected {name} of floats, got {values.dtype}")
    checks.check_values(name, values)
    rows = values.reshape(-1, values.shape[-1])
    padding = kernel.lattice.num_points - len(rows)
    return module_of(rows).pad(rows, ((0, padding), (0, 0)))


def unflatten(rows: Rows, kernel: Kernel) -> Float[Array, "*points c"]:
    """Rows in the axes of the kernel's points, without padding."""
    return rows[: math.prod(kernel.shape)].reshape(*kernel.shape, rows.shape[1])


@any_framework
def filter(kernel: Any, values: Any) -> Float[Array, "*points c"]:
    """The kernel matrix times `values`, finite floats `[*points, c]`.

    Gradients reach the values and the kernel's features.
    """
    rows = flatten("values", values, kernel)
    return unflatten((forked.smooth if is_forked() else smooth)(kernel.lattice, rows), kernel)


@any_framework
def mean_field(
    energies: Any,
    kernels: Any,
    compatibilities: Any,
    num_iterations: int = 10,
    *,
    start: Any = None,
) -> Float[Array, "*points c"]:
    """Marginals of a fully connected CRF after `num_iterations` mean-field updates.

    Args:
      energies: floats `[*points, c]`, -log of probabilities up to a constant of the point (see
        `energies`); inf for a label that is impossible there.
      kernels: what `kernel` made, all of the same points.
      compatibilities: one for each kernel. A number w: labels that differ cost w (Potts). c
        numbers: the energy of label l next to label l (negative ones favour agreement). A matrix
        `[c, c]`: entry [l, k] is the energy of label l next to label k.
      start: marginals to go on from, `[*points, c]`; None: the softmax of -energies.

    Gradients reach the energies, compatibilities, `start` and the kernels' features.
    """
    rows, lattices, compat = check_terms(energies, kernels, compatibilities)
    checks.check_iterations(num_iterations)
    if start is not None:
        start = flatten("start", start, kernels[0])
    traced = checks.is_traced(rows, lattices, compat, start)
    iterate = iterate_for_gradients if traced else run_iterations
    return unflatten(iterate(rows, lattices, compat, int(num_iterations), start), kernels[0])


@any_framework
def kl_divergence(
    marginals: Any, energies: Any, kernels: Any, compatibilities: Any
) -> Float[Array, ""]:
    """What mean field lowers, up to a constant, as pydensecrf's klDivergence computes it."""
    rows, lattices, compat = check_terms(energies, kernels, compatibilities)
    marginals = flatten("marginals", marginals, kernels[0])
    valid = np.arange(len(rows)) < math.prod(kernels[0].shape)
    compute = flat.free_energy if is_forked() else free_energy
    return compute(rows, lattices, compat, marginals, valid)


def check_terms(energies: Any, kernels: Any, compatibilities: Any) -> tuple[Array, list, list]:
    """Rows of energies, the kernels' lattices and the compatibilities, if they fit each other."""
    lists = isinstance(kernels, list | tuple) and isinstance(compatibilities, list | tuple)
    kinds = f"got {type(kernels).__qualname__} and {type(compatibilities).__qualname__}"
    checks.require(lists, f"expected a list of kernels and a list of compatibilities, {kinds}")
    checks.require(
        kernels and len(kernels) == len(compatibilities),
        "expected one compatibility for each kernel and at least one, "
        f"got {len(kernels)} kernels and {len(compatibilities)} compatibilities",
    )
    rows = flatten("energies", energies, kernels[0])
    for kernel in kernels:
        same = isinstance(kernel, Kernel) and kernel.shape == kernels[0].shape
        checks.require(same, "all kernels must be those that crf.kernel made of the same points")
    compat = [require_array("compatibilities", x) if is_foreign(x) else x for x in compatibilities]
    for penalty in compat:
        checks.check_compatibility(penalty, rows.shape[1])
    return rows, [kernel.lattice for kernel in kernels], compat
