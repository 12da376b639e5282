"""The presets: the paper's published networks and data sets, and ours, as values of Config."""

from dataclasses import replace
from typing import Any

from deeplab_jax.config import Config, DataConfig, EvalConfig, ModelConfig, OptimConfig

_VGG = ModelConfig(
    backbone="vgg",
    stage_sizes=(2, 2, 3, 3, 3),
    norm="none",
    scales=(1.0,),
    aspp_rates=(6, 12, 18, 24),
)
_LARGE_FOV = replace(_VGG, aspp_rates=(12,), pool5a=True)
_VGG_RECIPE = Config(
    model=_VGG,
    data=DataConfig(augmentation_scales=(1.0,)),
    optim=OptimConfig(learning_rate=1e-3),
    normalization="update",
)
_RESNET_RECIPE = Config()


def _single_scale(**model: Any) -> Config:
    return replace(_RESNET_RECIPE, model=ModelConfig(scales=(1.0,), **model))


def _vgg(model: ModelConfig, **fields: Any) -> Config:
    return replace(_VGG_RECIPE, model=model, **fields)


def _caffe(config: Config) -> Config:
    return replace(config, model=replace(config.model, alignment="corners"))


_STEP = {
    "optim": OptimConfig(learning_rate=1e-3, policy="step"),
    "num_steps": 6000,
    "batch_size": 30,
}

# The other data sets. Networks, augmentation and classes are the paper's (Sections 4.1 to 4.4). It
# names no solver for them, so that VOC's is used; sizes of crops and tiles of 513 are ours.
_PLAIN_HEAD = {"aspp_rates": (1,), "head_kernel_size": 1}
_COCO = replace(_RESNET_RECIPE, eval=EvalConfig(pad_to=641))  # photographs have up to 640 pixels
_DATA_SETS = {
    "voc_aug": replace(_RESNET_RECIPE, data=DataConfig(train_split="train_aug")),
    "voc_trainval_aug": replace(_RESNET_RECIPE, data=DataConfig(train_split="trainval_aug")),
    "context": _RESNET_RECIPE,
    # Table 7: neither ASPP nor LargeFOV helps here.
    "person_part": replace(_RESNET_RECIPE, model=ModelConfig(**_PLAIN_HEAD)),
    # Table 9: no multi-scale inputs, for want of memory.
    "cityscapes": replace(
        _single_scale(), data=DataConfig(crop_size=513), eval=EvalConfig(tile=513)
    ),
    # Source only, for domain adaptation: trained on GTA5 (--data.root), scored on Cityscapes
    # (--data.val-root). SYNTHIA takes it too.
    "gta5": replace(_single_scale(), data=DataConfig(crop_size=513), eval=EvalConfig(tile=513)),
    # The head of the released init.caffemodel; the number of updates is ours.
    "coco": replace(_COCO, model=ModelConfig(scales=(1.0,), **_PLAIN_HEAD), num_steps=100_000),
    # Solvers of COCO-Stuff's authors: base rate, policy, updates, 10 photographs at a time.
    "coco_stuff": replace(_COCO, num_steps=100_000),
    "coco_stuff_10k": replace(_COCO, data=DataConfig(val_split="test")),
}

_SMALL_MODEL = ModelConfig(
    stage_sizes=(1, 2, 2, 1), width=16, norm="trained", aspp_rates=(2, 4, 8, 12), scales=(1.0,)
)
_SMALL = Config(
    model=_SMALL_MODEL,
    data=DataConfig(crop_size=161, augmentation_scales=(0.75, 1.0, 1.25, 1.5)),
    optim=OptimConfig(learning_rate=0.03, classifier_multiplier=0.1),
    eval=EvalConfig(pad_to=None),
    num_steps=3200,
    batch_size=8,
    normalization="update",
    class_balance=0.5,
)
_QUICKSTART = Config(
    model=_SMALL_MODEL,
    data=DataConfig(num_scenes=1000, crop_size=129, augmentation_scales=(1.0,)),
    optim=OptimConfig(learning_rate=0.02, classifier_multiplier=1.0),
    eval=EvalConfig(pad_to=None),
    num_steps=220,
    batch_size=16,
    normalization="update",
    score_untrained=True,
)

DEFAULT_PRESET = "resnet101_aspp_msc"

PRESETS: dict[str, Config] = {
    "resnet101_aspp_msc": _RESNET_RECIPE,
    "resnet101_aspp_msc_caffe": _caffe(_RESNET_RECIPE),
    "resnet101_aspp": _single_scale(),
    "resnet101_large_fov": _single_scale(aspp_rates=(12,)),
    "resnet101": _single_scale(aspp_rates=(1,), head_kernel_size=1),
    "resnet50_aspp": _single_scale(stage_sizes=(3, 4, 6, 3)),
    "vgg16_aspp_l": _VGG_RECIPE,
    "vgg16_aspp_l_caffe": _caffe(_VGG_RECIPE),
    "vgg16_aspp_s": _vgg(replace(_VGG, aspp_rates=(2, 4, 8, 12))),
    "vgg16_large_fov": _vgg(_LARGE_FOV),
    "vgg16_large_fov_step": _vgg(_LARGE_FOV, **_STEP),
    "vgg16_7x7": _vgg(
        replace(_LARGE_FOV, aspp_rates=(4,), head_kernel_size=7, head_width=4096), **_STEP
    ),
    "vgg16_4x4": _vgg(
        replace(_LARGE_FOV, aspp_rates=(4,), head_kernel_size=4, head_width=4096), **_STEP
    ),
    "vgg16_4x4_r8": _vgg(
        replace(_LARGE_FOV, aspp_rates=(8,), head_kernel_size=4, head_width=4096), **_STEP
    ),
    **_DATA_SETS,
    "small": _SMALL,
    "quickstart": _QUICKSTART,
}
