"""pydensecrf's names: a script that was written for it runs after its import lines are changed.

    from deeplab_jax.crf import densecrf as dcrf           # was: import pydensecrf.densecrf as dcrf
    from deeplab_jax.crf.densecrf import unary_from_labels  # was: from pydensecrf.utils import ...

Arrays have its orders: energies and marginals `[labels, n]`, features `[d, n]`, the pixels of a
DenseCRF2D row by row. README.md says what differs, and how the package calls each function.
"""

import enum
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jaxtyping import Float32

from deeplab_jax.crf import checks, kernels
from deeplab_jax.crf import features as grids
from deeplab_jax.crf import labels as from_labels
from deeplab_jax.crf.arrays import require_array
from deeplab_jax.crf.forked import is_forked
from deeplab_jax.crf.kernels import Kernel
from deeplab_jax.crf.lattice import Lattice
from deeplab_jax.crf.params import CRFParams
from deeplab_jax.crf.refinement import smoothness_kernel

KernelType = enum.IntEnum("KernelType", "CONST_KERNEL DIAG_KERNEL FULL_KERNEL", start=0)
"""What pydensecrf can learn of a kernel; inference is the same with each of them."""
CONST_KERNEL, DIAG_KERNEL, FULL_KERNEL = KernelType

NormalizationType = enum.IntEnum(
    "NormalizationType",
    "NO_NORMALIZATION NORMALIZE_BEFORE NORMALIZE_AFTER NORMALIZE_SYMMETRIC",
    start=0,
)
NO_NORMALIZATION, NORMALIZE_BEFORE, NORMALIZE_AFTER, NORMALIZE_SYMMETRIC = NormalizationType
SYMMETRIC = NORMALIZE_SYMMETRIC


def name_of(kernel: Any, normalization: Any) -> str:
    """The package's name of the normalization, where both are among the constants."""
    kinds = tuple(NormalizationType)
    checks.require(
        kernel in tuple(KernelType) and normalization in kinds,
        "kernel is CONST_KERNEL, DIAG_KERNEL or FULL_KERNEL and normalization one of "
        f"{', '.join(kind.name for kind in kinds)}; got {kernel!r} and {normalization!r}",
    )
    return ("none", "before", "after", "symmetric")[normalization]


@dataclass
class Marginals:
    """What `startInference` returns; `np.array(Q)` is it as an array, float32 `[nlabels, nvar]`.

    As in pydensecrf it is no array itself: between the steps it stays on the device. In a forked
    process it is an array.
    """

    rows: Any  # [padded points, padded labels]
    shape: tuple[int, int]
    dtype = np.dtype(np.float32)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        labels, points = self.shape
        return np.array(np.asarray(self.rows)[:points, :labels].T, dtype or np.float32, order="C")

    def __getitem__(self, index: Any) -> Any:
        return np.asarray(self)[index]


class DenseCRF:
    """A fully connected CRF over `nvar` points with `nlabels` labels each."""

    def __init__(self, nvar: Any, nlabels: Any):
        got = f"got {nvar!r} and {nlabels!r}"
        checks.require(nvar > 0 and nlabels > 0, f"expected a point and a label or more, {got}")
        self.num_points, self.num_labels = int(nvar), int(nlabels)
        self.energies = np.zeros((self.num_points, self.num_labels), np.float32)
        self.kernels: list[Kernel] = []
        self.compatibilities: list[float | np.ndarray] = []
        self.ready: tuple | None = None

    def setUnaryEnergy(self, u: Any) -> None:
        """Energies, -log of probabilities, floats `[nlabels, nvar]`; inf rules a label out."""
        self.energies = self.by_point("unary energy", u)
        checks.check_values("unary energies", self.energies)
        self.ready = None

    def addPairwiseEnergy(
        self, features: Any, compat: Any, kernel: Any = DIAG_KERNEL, normalization: Any = SYMMETRIC
    ) -> None:
        """Adds a Gaussian kernel of features, floats `[d, nvar]`, d from 1 to 8.

        `compat` is a number (Potts), `[nlabels]` (diagonal) or `[nlabels, nlabels]` (a matrix, of
        which the symmetric part counts, as in pydensecrf).
        """
        found = np.asarray(require_array("features", features))
        checks.require(
            found.ndim == 2 and found.shape[1] == self.num_points,
            f"Bad shape for pairwise energy (Need (ndims, {self.num_points}), got {found.shape})",
        )
        self.add(found, compat, name_of(kernel, normalization))

    def inference(self, niter: Any) -> Float32[np.ndarray, "labels n"]:
        """Marginals after `niter` updates."""
        return self.updated(None, niter)

    def updated(self, start: np.ndarray | None, niter: Any) -> Float32[np.ndarray, "labels n"]:
        """Marginals after `niter` updates from `start`, the softmax of the energies where None."""
        result = kernels.mean_field(self.energies, *self.terms(), niter, start=start)
        return np.array(np.asarray(result).T, np.float32, order="C")

    def startInference(self) -> tuple[Marginals | np.ndarray, None, None]:
        """Marginals before the first update, and two things that `stepInference` takes."""
        if is_forked():
            return self.updated(None, 0), None, None
        rows = jax.nn.softmax(-self.prepared()[0])
        return Marginals(rows, (self.num_labels, self.num_points)), None, None

    def stepInference(self, Q: Any, tmp1: Any = None, tmp2: Any = None) -> None:
        """One update, in place; the last two arguments are not used."""
        if isinstance(Q, Marginals):
            Q.rows = kernels.compiled_update(*self.prepared(), marginals=Q.rows)
        else:
            Q[...] = self.updated(self.by_point("marginals", Q), 1)

    def prepared(self) -> tuple:
        """What each update of `Marginals` takes."""
        if self.ready is None:
            rows, *terms = kernels.check_terms(self.energies, *self.terms())
            self.ready = kernels.pad_labels(rows), *terms, self.num_labels
        return self.ready

    def klDivergence(self, Q: Any) -> float:
        """What mean field lowers: a divergence up to a constant, in which pairs count twice."""
        marginals = self.by_point("marginals", np.asarray(Q))
        return float(kernels.kl_divergence(marginals, self.energies, *self.terms()))

    def terms(self) -> tuple[list[Kernel], list[float | np.ndarray]]:
        """Kernels and their compatibilities; a kernel that changes nothing if there is none."""
        nothing = np.zeros((self.num_points, 1), np.float32)
        found = self.kernels, self.compatibilities
        return found if self.kernels else ([kernels.kernel(nothing)], [0.0])

    def by_point(self, name: str, values: Any) -> Float32[np.ndarray, "n labels"]:
        """Values `[nlabels, nvar]` as `[nvar, nlabels]`."""
        values = np.asarray(require_array(name, values))
        expected = (self.num_labels, self.num_points)
        wrong = f"Bad shape for {name} (Need {expected}, got {values.shape})"
        checks.require(values.shape == expected, wrong)
        return np.ascontiguousarray(values.T, np.float32)

    def add(self, found: np.ndarray, compat: Any, normalization: str) -> None:
        """A kernel of features `[d, nvar]`.

        pydensecrf fills the points up to a multiple of four with features of 0, whose vertices
        the blur passes through: so do we, for its numbers.
        """
        silent = -self.num_points % 4
        checks.check_features(found.T)
        rows = np.pad(found.astype(np.float32, order="C"), ((0, 0), (0, silent)))
        points = grids.pixels_of(np.ones((1, 1, rows.shape[1]), bool))
        lattice = kernels.host_lattice(rows, *points, normalization, silent=silent)
        self.add_lattice(lattice, compat)

    def add_lattice(self, lattice: Lattice, compat: Any) -> None:
        """A kernel's lattice and its compatibility; of a matrix the symmetric part."""
        checks.check_compatibility(compat, self.num_labels)
        compat = float(compat) if np.ndim(compat) == 0 else np.asarray(compat, np.float32)
        self.compatibilities.append((compat + compat.T) / 2 if np.ndim(compat) == 2 else compat)
        self.kernels.append(Kernel(lattice, (self.num_points,)))
        self.ready = None


class DenseCRF2D(DenseCRF):
    """A fully connected CRF over the pixels of a photograph, row by row."""

    def __init__(self, w: Any, h: Any, nlabels: Any):
        super().__init__(w * h, nlabels)
        self.width, self.height = int(w), int(h)

    def addPairwiseGaussian(
        self, sxy: Any, compat: Any, kernel: Any = DIAG_KERNEL, normalization: Any = SYMMETRIC
    ) -> None:
        """Adds a kernel of positions; `sxy` is a number or (x, y), in pixels."""
        checks.check_sigma("sxy", sxy, 2)
        name = name_of(kernel, normalization)
        pixels = (1, self.height, self.width), bytes([1]) * self.num_points
        sigma = grids.as_numbers(sxy)
        self.add_lattice(smoothness_kernel(*pixels, sigma, name, None, is_forked()), compat)

    def addPairwiseBilateral(
        self,
        sxy: Any,
        srgb: Any,
        rgbim: Any,
        compat: Any,
        kernel: Any = DIAG_KERNEL,
        normalization: Any = SYMMETRIC,
    ) -> None:
        """Adds a kernel of positions and colours, those of `rgbim`, uint8 `[h, w, 3]`.

        `sxy` is a number or (x, y), `srgb` a number or one for each channel.
        """
        checks.check_sigma("sxy", sxy, 2)
        checks.check_sigma("srgb", srgb, 3)
        image, shape = np.asarray(require_array("rgbim", rgbim)), (self.height, self.width, 3)
        checks.require(
            image.shape == shape and image.dtype == np.uint8,
            f"Bad shape for pairwise bilateral (Need {shape} of uint8, got {image.shape} of "
            f"{image.dtype})",
        )
        name = name_of(kernel, normalization)
        params = CRFParams(sigma_xy=grids.as_numbers(sxy), sigma_rgb=grids.as_numbers(srgb))
        self.add(np.asarray(grids.appearance_features(image[None], params)), compat, name)


def unary_from_labels(
    labels: Any, n_labels: int, gt_prob: float | int, zero_unsure: bool = True
) -> Float32[np.ndarray, "labels n"]:
    """Energies `[n_labels, n]` of labels that are right with probability `gt_prob`.

    With `zero_unsure`, 0 means unknown and is not counted in `n_labels`.
    """
    found = np.asarray(require_array("labels", labels)).reshape(-1)
    energies = from_labels.unary_from_labels(found, n_labels, gt_prob, zero_unsure)
    return np.ascontiguousarray(energies.T)


def compute_unary(
    labels: Any, M: int, GT_PROB: float | int = 0.5
) -> Float32[np.ndarray, "labels n"]:
    """The old name of `unary_from_labels`."""
    warnings.warn("compute_unary is unary_from_labels", DeprecationWarning, stacklevel=2)
    return unary_from_labels(labels, M, GT_PROB)


def unary_from_softmax(
    sm: Any, scale: float | int | None = None, clip: float | int | None = 1e-5
) -> Float32[np.ndarray, "labels n"]:
    """Energies `[labels, n]` of probabilities `[labels, ...]`.

    `scale` mixes the probabilities with uniform ones, of which it takes 1 - `scale`; those below
    `clip` count as `clip`.
    """
    probs = np.asarray(require_array("sm", sm))
    num_labels = probs.shape[0]
    if scale is not None:
        one = 0 < scale <= 1
        checks.require(one, f"scale is a number above 0 and at most 1, got {scale!r}")
        probs = scale * probs + (1 - scale) / num_labels
    if clip is not None:
        probs = np.clip(probs, clip, 1.0)
    with np.errstate(divide="ignore"):
        return -np.log(probs).reshape(num_labels, -1).astype(np.float32)


def softmax_to_unary(sm: Any, GT_PROB: float | int = 1) -> Float32[np.ndarray, "labels n"]:
    """The old name of `unary_from_softmax`."""
    warnings.warn("softmax_to_unary is unary_from_softmax", DeprecationWarning, stacklevel=2)
    return unary_from_softmax(sm, None if GT_PROB == 1 else GT_PROB)


def create_pairwise_gaussian(
    sdims: Sequence[float], shape: Sequence[int]
) -> Float32[np.ndarray, "d n"]:
    """Positions over their standard deviations `[len(shape), n]`, first axis first."""
    made = np.asarray(grids.grid_features(tuple(shape), tuple(sdims)))
    return np.ascontiguousarray(made.reshape(-1, len(shape)).T[::-1])


def create_pairwise_bilateral(
    sdims: Sequence[float], schan: Any, img: Any, chdim: int = -1
) -> Float32[np.ndarray, "d n"]:
    """Positions and channels over their standard deviations `[axes + channels, n]`.

    `chdim` is the axis of the channels in `img`; -1 means that it has none.
    """
    image = np.asarray(require_array("img", img))
    image = image[..., None] if chdim == -1 else np.moveaxis(image, chdim, -1)
    made = np.asarray(grids.image_features(image, tuple(sdims), schan), np.float32)
    axes = image.ndim - 1
    rows = made.reshape(-1, made.shape[-1]).T
    return np.concatenate([rows[:axes][::-1], rows[axes:]])
