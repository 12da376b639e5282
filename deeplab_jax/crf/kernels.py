"""Gaussian kernels between any points, the filter with them, and mean field.

    kernel = crf.kernel(crf.image_features(volume, sigma_position=20.0, sigma_value=0.1))
    smoothed = crf.filter(kernel, values)
    marginals = crf.mean_field(crf.energies(probs), [kernel], [4.0])

Outside `jit` a lattice's vertices are counted before its tables are built, and the tables have
the smallest size from a short list that holds them (`tight_bounds`), so that many inputs share
a few compiled programs. Inside `jit` sizes must be known beforehand: bounds that no lattice
exceeds, unless tighter ones are given; a lattice that exceeds those gives NaN.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Int32

from deeplab_jax.crf import filtering, forked, lattice_numpy
from deeplab_jax.crf import mean_field as flat
from deeplab_jax.crf.arrays import any_framework, is_foreign, require_array
from deeplab_jax.crf.checks import (
    check_compatibility,
    check_features,
    check_iterations,
    check_normalization,
    is_traced,
    require,
    require_energies,
    require_finite,
)
from deeplab_jax.crf.forked import is_forked, refuse_forked
from deeplab_jax.crf.lattice import NEAR, WIDTH, Lattice, Vertices, sort_vertices
from deeplab_jax.crf.lattice import connect as connect_vertices
from deeplab_jax.crf.xla import module_of
from deeplab_jax.ops.xla import forms_of
from deeplab_jax.types import Array, UserError

SMALLEST_BUCKET = 64

compiled_vertices = jax.jit(sort_vertices, static_argnames="words")
compiled_connect = jax.jit(
    connect_vertices, static_argnames=("vertex_bound", "row_bound", "upper_bound", "num_levels")
)
compiled_normalize = jax.jit(filtering.normalize, static_argnames="normalization")
smooth = jax.jit(filtering.smooth)
iterate_for_gradients = jax.jit(flat.iterate, static_argnames="num_iterations")
free_energy = jax.jit(flat.free_energy)

OLDER_LOOPS = {"xla_cpu_use_fusion_emitters": False} if jax.__version_info__ < (0, 11) else {}
"""Options of XLA for CPUs: its older emitters compile `infer` in two thirds of the time, to a
program that takes as long and gives the same bits. Later versions have no older ones."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Kernel:
    """A normalized Gaussian kernel between points; a pytree, made by `kernel`."""

    lattice: Lattice
    """Tables for the points in one row, with padding at its end."""
    shape: tuple[int, ...] = field(metadata={"static": True})
    """Axes of the points."""


def bucket(size: int, per_octave: int) -> int:
    """Smallest 2^k * (1 + j / per_octave) that is at least `size`.

    >>> [bucket(n, 4) for n in (100, 129, 161, 187_500)]
    [112, 160, 192, 196608]
    """
    size = max(size, SMALLEST_BUCKET)
    step = max(1, 2 ** ((size - 1).bit_length() - 1) // per_octave)
    return -(-size // step) * step


def on_cpu(device: Any = None) -> bool:
    """Whether the device is a CPU: the default one of this thread where none is given."""
    # JAX adds its options when it is imported.
    device = device or jax.config.jax_default_device  # pyright: ignore[reportAttributeAccessIssue]
    platform = jax.default_backend() if device is None else getattr(device, "platform", device)
    return platform == "cpu"


def count_vertices(
    features: Float[Array, "d n"], valid: Bool[Array, " n"], group: Int32[Array, " n"]
) -> Vertices:
    """Vertices of known points, with keys of as many words as they need; NumPy's on CPUs."""
    if on_cpu() or is_forked():
        vertices = lattice_numpy.sort_vertices(*map(np.asarray, (features, valid, group)))
        if vertices is not None:
            return vertices
    refuse_forked("a kernel of features that spread this far")
    vertices = compiled_vertices(features, valid, group)
    if not vertices.packs:
        vertices = compiled_vertices(features, valid, group, words=2)
    if not vertices.packs:
        raise UserError(
            "the features spread too far for lattice keys of two 63-bit words: standard "
            "deviations must be above 0 and not so small against the values they divide"
        )
    return vertices


def tight_bounds(vertices: Vertices) -> dict[str, int]:
    """Buckets that hold these vertices and their rows, few of them: each is compiled for.

    Kernels of more than two dimensions, such as an appearance kernel, have from 0.05 to d + 1
    vertices a pixel: textured photographs have most. Their buckets are octaves, because room for
    twice the vertices costs a seventh of the time of inference. They seldom have more rows than
    3/4 of the pixels, and a quarter as many rows of rows. A narrow kernel of positions has a little
    more than a vertex a pixel and seldom any row.
    """
    size, n = vertices.vertex.shape
    needed = int(vertices.num_vertices)
    rows = max(int(vertices.num_rows), 4 * int(vertices.num_upper))
    if size > 3:
        vertex_bound = bucket(max(needed, n // 2), 1)
        row_bound = 3 * n // 4 if rows <= 3 * n // 4 else bucket(rows, 2)
    else:
        narrow = needed > n // 4
        vertex_bound = bucket(max(needed, 5 * n // 4 if narrow else 0), 4)
        row_bound = bucket(rows, 2)
    most = int(vertices.most_rows)
    return {
        "vertex_bound": vertex_bound,
        "row_bound": row_bound,
        "upper_bound": row_bound // 4,
        "num_levels": next(k for k in (0, 3, 20) if most <= WIDTH**k and (k or size <= 3)),
    }


def tight_kernel(vertices: Vertices, normalization: str) -> Lattice:
    """The kernel with the smallest bounds that its vertices fit."""
    bounds = tight_bounds(vertices)
    if isinstance(vertices.pixel, np.ndarray):
        lattice = lattice_numpy.connect(vertices, **bounds)
        lattice = lattice_numpy.normalize(lattice, normalization)
        return lattice if is_forked() else jax.device_put(lattice)
    return compiled_normalize(compiled_connect(vertices, **bounds), normalization=normalization)


def largest_bounds(dimension: int, num_pixels: int) -> dict[str, int]:
    """Bounds that no lattice exceeds.

    There are at most as many vertices as contributions; a vertex with a row has more than NEAR
    contributions, one with a row of rows more than NEAR + WIDTH.
    """
    contributions = (dimension + 1) * num_pixels
    return {
        "vertex_bound": contributions,
        "row_bound": contributions // (NEAR + 1) + 1,
        "upper_bound": contributions // (NEAR + WIDTH + 1) + 1,
    }


def bounds_within(
    dimension: int, num_pixels: int, vertex_bound: int | None, row_bound: int | None
) -> dict[str, int]:
    """The largest bounds, but for those that are given."""
    bounds = largest_bounds(dimension, num_pixels)
    bounds["vertex_bound"] = vertex_bound or bounds["vertex_bound"]
    if row_bound:
        bounds |= {"row_bound": row_bound, "upper_bound": row_bound // 4 + 1}
    return bounds


def bounded_lattice(
    features: Float[jax.Array, "d n"],
    valid: Bool[jax.Array, " n"],
    group: Int32[jax.Array, " n"],
    *,
    normalization: str,
    vertex_bound: int | None = None,
    row_bound: int | None = None,
) -> Lattice:
    """The normalized lattice inside `jit`; see `marginals` for the bounds."""
    d, n = features.shape
    words = 1 if d <= 5 else 2
    vertices = sort_vertices(features, valid, group, words=words)
    bounds = bounds_within(d, n, vertex_bound, row_bound)
    return filtering.normalize(connect_vertices(vertices, **bounds), normalization)


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
    """The Gaussian kernel exp(-|f_i - f_j|^2 / 2) between all points, on the lattice.

    Args:
      features: floats `[*points, d]`, d from 1 to 8, each value over its standard deviation. All
        axes but the last hold points of one problem: `[n, d]` for a set of points, `[h, w, d]`
        for the pixels of an image. `grid_features` and `image_features` make them.
      valid: bool `[*points]`; points where it is false influence nothing, and what comes back
        there has no meaning.
      group: integers `[*points]` from 0; points of different groups, such as the photographs of
        a batch, do not influence each other.
      normalization: with D the diagonal of K 1: "symmetric" is D^-1/2 K D^-1/2, "after" (or
        "per_pixel") D^-1 K, "before" K D^-1, "none" K: pydensecrf's four.
      vertex_bound: size of a table inside `jit`, as for `marginals`.
      row_bound: the same of another table.

    Returns:
      A kernel for `filter` and `mean_field`. Gradients reach the features: they are those of the
      lattice's weights, and hold between the borders of its simplices.

    Raises:
      UserError: features of a wrong shape, type or range.
    """
    features = check_features(features, valid=valid, group=group)
    check_normalization(normalization)
    points = features.shape[:-1]
    n, d = int(np.prod(points)), features.shape[-1]
    flat_features = features.reshape(n, d).T
    # JAX adds its options when it is imported.
    x64 = jax.config.jax_enable_x64  # pyright: ignore[reportAttributeAccessIssue]
    if flat_features.dtype != np.float64 or not x64:
        flat_features = flat_features.astype(np.float32)
    valid = np.ones(n, bool) if valid is None else require_array("valid", valid).reshape(n)
    group = np.zeros(n, np.int32) if group is None else require_array("group", group).reshape(n)
    group = group.astype(np.int32)
    if is_traced(features, valid, group):
        refuse_forked("crf.kernel of traced arrays")
        bounds = {"vertex_bound": vertex_bound, "row_bound": row_bound}
        lattice = traced_lattice(flat_features, valid, group, normalization=normalization, **bounds)
        return Kernel(lattice, points)
    with jax.ensure_compile_time_eval():  # inside a caller's `jit` too: the features are known
        return Kernel(host_lattice(flat_features, valid, group, normalization), points)


def host_lattice(
    features: Float[Array, "d n"],
    valid: Bool[Array, " n"],
    group: Int32[Array, " n"],
    normalization: str,
    *,
    silent: int = 0,
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
    return tight_kernel(vertices, normalization)


def infer(
    values: Float[Array, "n c"],
    lattices: Sequence[Lattice],
    compat: Sequence,
    num_iterations: int | Int32[Array, ""],
    start: Float[Array, "n c"] | None = None,
    *,
    probs: bool = False,
) -> Float[Array, "n c"]:
    """`mean_field.iterate` given energies or, with `probs`, float32 probabilities."""
    unary = energies(values) if probs else values
    return flat.iterate(jnp.asarray(unary), lattices, compat, num_iterations, start)


def programs(function: Callable, **options) -> Callable:
    """`function` compiled for CPUs alone, which takes half the time to trace, or for any device."""
    on_cpus = jax.jit(forms_of("cpu")(function), compiler_options=OLDER_LOOPS, **options)
    elsewhere = jax.jit(function, **options)
    return lambda *args, **named: (on_cpus if on_cpu() else elsewhere)(*args, **named)


compiled_infer = programs(infer, static_argnames="probs")
compiled_update = programs(flat.update, static_argnames="num_labels", donate_argnames="marginals")


def run_iterations(
    values: Float[Array, "n c"],
    lattices: Sequence[Lattice],
    compat: Sequence,
    num_iterations: int,
    start: Float[Array, "n c"] | None = None,
    *,
    probs: bool = False,
) -> Float[Array, "n c"]:
    """`infer` of known arguments; one program for all numbers of iterations."""
    if is_forked():
        unary = energies(values) if probs else values
        rises = partial(flat.energy_rises, lattices, compat)
        return forked.iterate(unary, rises, num_iterations, start)
    return compiled_infer(values, lattices, compat, num_iterations, start, probs=probs)


@any_framework
def energies(probs: Any) -> Float[Array, "*points c"]:
    """-log of probabilities; 0 counts as the smallest normal float32.

    NumPy where the probabilities are.
    """
    probs = require_array("probs", probs)
    xp = module_of(probs)
    dtype = np.float64 if probs.dtype == np.float64 else np.float32
    return -xp.log(xp.maximum(probs.astype(dtype), np.finfo(np.float32).tiny))


def check_kernel(kernel: Any) -> Kernel:
    """`kernel` if it is one."""
    if not isinstance(kernel, Kernel):
        raise UserError(f"expected a kernel that crf.kernel made, got {type(kernel).__qualname__}")
    return kernel


def flatten(name: str, values: Any, kernel: Kernel) -> Float[Array, "n c"]:
    """Values `[*points, c]` in one row a point, padded to the size of the kernel's tables."""
    values = require_array(name, values)
    if values.ndim < 1 or tuple(values.shape[:-1]) != kernel.shape or values.shape[-1] == 0:
        shape = ", ".join(str(size) for size in kernel.shape)
        raise UserError(f"expected {name} [{shape}, c] for this kernel, got {tuple(values.shape)}")
    if not jnp.issubdtype(values.dtype, jnp.floating):
        raise UserError(f"expected {name} of floats, got {values.dtype}")
    (require_finite if name != "energies" else require_energies)(name, values)
    rows = values.reshape(-1, values.shape[-1])
    padding = kernel.lattice.num_points - len(rows)
    return module_of(rows).pad(rows, ((0, padding), (0, 0)))


@any_framework
def filter(kernel: Any, values: Any) -> Float[Array, "*points c"]:
    """The kernel matrix times `values`, floats `[*points, c]`.

    Gradients reach the values and the kernel's features.

    Raises:
      UserError: values of a wrong shape or not finite.
    """
    lattice, values = check_kernel(kernel).lattice, require_array("values", values)
    result = (forked.smooth if is_forked() else smooth)(lattice, flatten("values", values, kernel))
    return result[: int(np.prod(values.shape[:-1]))].reshape(values.shape)


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

    Raises:
      UserError: shapes that do not belong together, values that are not finite.
    """
    energies, lattices, compat = check_terms(energies, kernels, compatibilities)
    check_iterations(num_iterations)
    rows = flatten("energies", energies, kernels[0])
    if start is not None:
        start = flatten("start", start, kernels[0])
    known = not is_traced(rows, lattices, compat, start)
    iterate = run_iterations if known else iterate_for_gradients
    result = iterate(rows, lattices, compat, int(num_iterations), start=start)
    return result[: int(np.prod(energies.shape[:-1]))].reshape(energies.shape)


class Steps:
    """The updates of `mean_field` one at a time; the marginals stay on the device between them."""

    def __init__(self, energies: Any, kernels: Any, compatibilities: Any):
        energies, self.lattices, self.compat = check_terms(energies, kernels, compatibilities)
        self.num_labels = energies.shape[-1]
        rows = flatten("energies", energies, kernels[0])
        self.energy = rows if is_forked() else jax.jit(flat.pad_labels)(rows)

    def start(self) -> Float[Array, "n lanes"]:
        """Rows of marginals before the first update, with padding of points and labels."""
        return (
            forked.softmax(-np.asarray(self.energy))
            if is_forked()
            else jax.nn.softmax(-self.energy)
        )

    def __call__(self, marginals: Float[Array, "n lanes"]) -> Float[Array, "n lanes"]:
        """Rows after one update of `marginals`, which are used up."""
        if is_forked():
            return run_iterations(self.energy, self.lattices, self.compat, 1, marginals)
        terms = self.energy, self.lattices, self.compat, self.num_labels
        return compiled_update(*terms, marginals=marginals)


@any_framework
def kl_divergence(
    marginals: Any,
    energies: Any,
    kernels: Any,
    compatibilities: Any,
) -> Float[Array, ""]:
    """What mean field lowers, up to a constant, as pydensecrf's klDivergence computes it.

    Arguments as in `mean_field`; `marginals` are `[*points, c]`.
    """
    energies, lattices, compat = check_terms(energies, kernels, compatibilities)
    rows = flatten("energies", energies, kernels[0])
    marginals = flatten("marginals", marginals, kernels[0])
    valid = np.arange(len(rows)) < int(np.prod(energies.shape[:-1]))
    compute = flat.free_energy if is_forked() else free_energy
    return compute(rows, lattices, compat, marginals, valid)


def check_terms(energies: Any, kernels: Any, compatibilities: Any) -> tuple[Array, list, list]:
    """Energies, the kernels' lattices and the compatibilities, if they fit each other."""
    energies = require_array("energies", energies)
    lists = isinstance(kernels, list | tuple) and isinstance(compatibilities, list | tuple)
    require(
        lists,
        "expected a list of kernels and a list of compatibilities, "
        f"got {type(kernels).__qualname__} and {type(compatibilities).__qualname__}",
    )
    require(
        kernels and len(kernels) == len(compatibilities),
        "expected one compatibility for each kernel and at least one, "
        f"got {len(kernels)} kernels and {len(compatibilities)} compatibilities",
    )
    compat = [
        require_array("compatibilities", penalty) if is_foreign(penalty) else penalty
        for penalty in compatibilities
    ]
    for penalty in compat:
        check_compatibility(penalty, energies.shape[-1])
    found = [check_kernel(kernel) for kernel in kernels]
    shapes = ", ".join(str(kernel.shape) for kernel in found)
    same = len({kernel.shape for kernel in found}) == 1
    require(same, f"all kernels must be of the same points, got kernels of {shapes}")
    return energies, [kernel.lattice for kernel in found], compat
