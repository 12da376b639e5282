"""The fully connected CRF that sharpens DeepLab's score maps (Section 3.3 of the paper).

`refine` takes a photograph and probabilities; `kernel`, `filter` and `mean_field` any points with
features; `deeplab_jax.crf.densecrf` has pydensecrf's names. README.md beside this file explains.
"""

from deeplab_jax.crf.features import grid_features, image_features
from deeplab_jax.crf.kernels import Kernel, energies, filter, kernel, kl_divergence, mean_field
from deeplab_jax.crf.labels import (
    LABEL_PARAMS,
    SCRIBBLE_PARAMS,
    refine_labels,
    refine_objects,
    unary_from_labels,
)
from deeplab_jax.crf.params import (
    PUBLISHED,
    RESNET101,
    CRFParams,
    choose_params,
    read_params,
    write_params,
)
from deeplab_jax.crf.refinement import best_labels, marginals, refine, refine_batch

__all__ = [
    "CRFParams",
    "Kernel",
    "LABEL_PARAMS",
    "PUBLISHED",
    "RESNET101",
    "SCRIBBLE_PARAMS",
    "best_labels",
    "choose_params",
    "energies",
    "filter",
    "grid_features",
    "image_features",
    "kernel",
    "kl_divergence",
    "marginals",
    "mean_field",
    "read_params",
    "refine",
    "refine_batch",
    "refine_labels",
    "refine_objects",
    "unary_from_labels",
    "write_params",
]
