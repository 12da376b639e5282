"""Networks small enough for tests, of the layers that the paper's have."""

from functools import partial
from pathlib import Path

import jax

from deeplab_jax.models.deeplab import DeepLabV2, build
from deeplab_jax.models.heads import ASPP
from deeplab_jax.models.layers import Conv
from deeplab_jax.weights import files

tiny = partial(build, num_classes=3, width=4, aspp_rates=(1, 2), scales=(1.0,))
resnet = partial(tiny, stage_sizes=(1,) * 4)
vgg = partial(tiny, backbone="vgg", stage_sizes=(1,) * 5, head_width=8, norm="none")


FIELDS = {"stage_sizes": (1,) * 4, "aspp_rates": (1,), "width": 4, "scales": (1.0,)}
FIELDS |= {"norm": "trained"}
CLASS_NAMES = ("ground", "cat", "dog")


def write_weights(path: Path, draw_variables, class_names=CLASS_NAMES, *, scale=1.0) -> Path:
    """A weight file of a tiny network."""
    model = build(len(class_names), **FIELDS)
    variables = jax.tree.map(lambda leaf: scale * leaf, draw_variables(model))
    files.write(path, variables, {"model": FIELDS, "class_names": class_names, "source": {}})
    return path


def shallow(head=None, *, norm="none", scales=(1.0,), **fields) -> DeepLabV2:
    """One convolution and a head, which compile in no time."""
    trunk = Conv(4, stride=8, norm=norm)
    return DeepLabV2(trunk, head or ASPP(3, rates=(1,)), scales, **fields)
