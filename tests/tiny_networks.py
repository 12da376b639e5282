"""Networks small enough for tests, of the layers that the paper's have."""

from functools import partial

from deeplab_jax.models.deeplab import DeepLabV2, build
from deeplab_jax.models.heads import ASPP
from deeplab_jax.models.layers import Conv

tiny = partial(build, num_classes=3, width=4, aspp_rates=(1, 2), scales=(1.0,))
resnet = partial(tiny, stage_sizes=(1,) * 4)
vgg = partial(tiny, backbone="vgg", stage_sizes=(1,) * 5, head_width=8, norm="none")


def shallow(head=None, *, norm="none", scales=(1.0,), **fields) -> DeepLabV2:
    """One convolution and a head, which compile in no time."""
    trunk = Conv(4, stride=8, norm=norm)
    return DeepLabV2(trunk, head or ASPP(3, rates=(1,)), scales, **fields)
