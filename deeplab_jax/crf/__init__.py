"""The fully connected CRF that sharpens DeepLab's score maps (Section 2.3 of the paper)."""

from deeplab_jax.crf.exact import exact_smooth
from deeplab_jax.crf.filtering import smooth
from deeplab_jax.crf.inference import Normalization, marginals
from deeplab_jax.crf.lattice import Lattice
from deeplab_jax.crf.mean_field import mean_field
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
from deeplab_jax.crf.refinement import refine, refine_batch

__all__ = [
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
    "Lattice",
    "Normalization",
    "choose_params",
    "published_for",
    "exact_smooth",
    "marginals",
    "mean_field",
    "read_params",
    "refine",
    "refine_batch",
    "smooth",
    "write_params",
]
