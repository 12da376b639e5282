"""The values that options may have, and the error for what a user can put right."""

from typing import Literal


class UserError(ValueError):
    """What the user can put right: one sentence with what was expected, what came, what to do.

    Scripts print it without a traceback and exit with status 2.
    """


Backbone = Literal["resnet", "vgg"]
Norm = Literal["none", "frozen", "trained"]
StridePlacement = Literal["caffe", "torch"]
Alignment = Literal["half_pixel", "ports", "corners", "corners_v1", "cells"]
"""Convention of every resizing; see ops/resize.py."""

MEAN_BGR = (104.008, 116.669, 122.675)
"""Mean pixel of the paper's networks, 0..255."""

PixelLossName = Literal["cross_entropy", "focal"]
BatchLossName = Literal["dice", "lovasz", "dense_crf"]

CRFNormalization = Literal["symmetric", "per_pixel", "after", "before", "none"]
"""How the CRF's messages are normalised; see crf/kernels.py."""

Policy = Literal["poly", "step"]
MomentumOrder = Literal["caffe", "pytorch"]
Precision = Literal["default", "high", "highest"]

BadData = Literal["raise", "skip"]
"""What to do with photographs and masks that cannot be used."""

Boundary = Literal["void", "classes"]
"""What a trimap's bands lie around: void pixels, or pixels of another class."""

What = Literal["probs", "labels"]
"""What a network gives of each pixel."""

WeightNames = Literal["kazuto", "torchvision"]
"""Names of a ResNet's weights for PyTorch."""

MAX_PIXELS = 2**20
"""Larger photographs are predicted in tiles. ResNet-101 with MSC takes 3 GiB at this size."""

OVERLAP = 0.25
"""Part of its side that a tile shares with the next; the paper gives no number (Section 4.4)."""

Server = Literal["voc", "cityscapes"]
