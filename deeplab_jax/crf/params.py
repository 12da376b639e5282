"""Parameters of the CRF's energy, and the values that were published."""

import flax.struct

from deeplab_jax.types import Array


@flax.struct.dataclass
class CRFParams:
    """Pairwise terms of the fully connected CRF (Equation 3), Potts compatibility.

    Distances are in pixels of the full-size image, colours in steps of 0..255. The values may
    be traced: changing them does not recompile. The defaults belong to ResNet-101.
    """

    appearance_weight: float | int | Array = 4.0
    """Weight of the appearance kernel (w1)."""
    sigma_xy: float | int | Array = 67.0
    """Reach of the appearance kernel in pixels (sigma alpha)."""
    sigma_rgb: float | int | Array = 3.0
    """Reach of the appearance kernel in colour (sigma beta)."""
    smoothness_weight: float | int | Array = 3.0
    """Weight of the smoothness kernel (w2)."""
    sigma_smoothness: float | int | Array = 1.0
    """Reach of the smoothness kernel in pixels (sigma gamma)."""


# The authors' model pages and released scripts.
RESNET101 = CRFParams(4.0, 67.0, 3.0, 3.0, 1.0)
VGG16_ASPP = CRFParams(4.0, 65.0, 3.0, 2.0, 2.0)
RESNET101_TEST_PROTOTXT = CRFParams(5.0, 21.0, 3.0, 4.0, 1.0)
V2_RUN_SCRIPT = CRFParams(4.0, 49.0, 5.0, 3.0, 3.0)
V1_LARGEFOV = CRFParams(4.0, 121.0, 5.0, 3.0, 3.0)
V1 = CRFParams(5.0, 50.0, 10.0, 3.0, 3.0)
V1_MSC = CRFParams(3.0, 95.0, 3.0, 3.0, 3.0)
V1_COCO = CRFParams(5.0, 67.0, 3.0, 3.0, 3.0)
V1_MSC_LARGEFOV = CRFParams(4.0, 83.0, 5.0, 3.0, 3.0)
V1_COCO_LARGEFOV = CRFParams(5.0, 69.0, 5.0, 3.0, 3.0)
V1_MSC_COCO_LARGEFOV = CRFParams(4.0, 59.0, 5.0, 3.0, 3.0)
