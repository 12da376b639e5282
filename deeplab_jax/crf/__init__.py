"""The fully connected CRF that sharpens DeepLab's score maps (Section 2.3 of the paper).

`refine` takes a photograph and probabilities; `kernel`, `filter` and `mean_field` any points with
features; `deeplab_jax.crf.densecrf` has pydensecrf's names. README.md beside this file explains.
"""

from deeplab_jax.crf.exact import exact_smooth
from deeplab_jax.crf.features import grid_features, image_features
from deeplab_jax.crf.filtering import smooth
from deeplab_jax.crf.inference import Normalization, energies, marginals
from deeplab_jax.crf.kernels import Kernel, filter, kernel, kl_divergence, mean_field
from deeplab_jax.crf.labels import LABEL_PARAMS, SCRIBBLE_PARAMS, refine_labels, unary_from_labels
from deeplab_jax.crf.lattice import Lattice
from deeplab_jax.crf.params import (
    PUBLISHED,
    RESNET101,
    RESNET101_TEST_PROTOTXT,
    V1,
    V1_COCO,
    V1_COCO_LARGEFOV,
    V1_LARGEFOV,
    V1_MSC,
    V1_MSC_COCO_LARGEFOV,
    V1_MSC_LARGEFOV,
    V2_RUN_SCRIPT,
    VGG16_ASPP,
    CRFParams,
    choose_params,
    published_for,
    read_params,
    write_params,
)
from deeplab_jax.crf.refinement import refine, refine_batch, refine_on_host

__all__ = [
    "LABEL_PARAMS",
    "SCRIBBLE_PARAMS",
    "RESNET101",
    "RESNET101_TEST_PROTOTXT",
    "V1",
    "V1_COCO",
    "V1_COCO_LARGEFOV",
    "V1_LARGEFOV",
    "V1_MSC",
    "V1_MSC_COCO_LARGEFOV",
    "V1_MSC_LARGEFOV",
    "V2_RUN_SCRIPT",
    "VGG16_ASPP",
    "PUBLISHED",
    "CRFParams",
    "Kernel",
    "Lattice",
    "Normalization",
    "choose_params",
    "published_for",
    "energies",
    "exact_smooth",
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
    "refine_on_host",
    "smooth",
    "unary_from_labels",
    "write_params",
]
