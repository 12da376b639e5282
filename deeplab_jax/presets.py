"""The presets: the paper's published networks and data sets, and ours, as values of Config."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from deeplab_jax.choices import MEAN_BGR
from deeplab_jax.config import Config, DataConfig, EvalConfig, ModelConfig, OptimConfig

_VGG = ModelConfig(backbone="vgg", stage_sizes=(2, 2, 3, 3, 3), norm="none", scales=(1.0,))
_LARGE_FOV = replace(_VGG, aspp_rates=(12,), pool5a=True)
_VGG_RECIPE = Config(
    model=_VGG,
    data=DataConfig(augmentation_scales=(1.0,)),
    optim=OptimConfig(learning_rate=1e-3),
    loss_group_size=None,
)


def _single_scale(**model: Any) -> Config:
    return Config(model=ModelConfig(scales=(1.0,), **model))


_STEP = {
    "optim": OptimConfig(learning_rate=1e-3, policy="step"),
    "num_steps": 6000,
    "batch_size": 30,
}

# The rows of the paper's tables, aligned as in the Caffe release; paper.py has their numbers and
# says what of a row is a guess.

_CORNERS: dict[str, Any] = {"alignment": "corners", "mean_bgr": MEAN_BGR}


def _vgg_row(*, rates: tuple[int, ...] = (12,), **fields: Any) -> Config:
    model = _LARGE_FOV if rates == (12,) else replace(_VGG, aspp_rates=rates)
    return replace(_VGG_RECIPE, model=replace(model, **_CORNERS), **fields)


def _first_release(kernel_size: int, rate: int) -> Config:
    """Networks with 2x2 pools, fc6 and fc7 of 4096 channels, and crops of 8k + 2 pixels."""
    model = replace(
        _VGG,
        aspp_rates=(rate,),
        head_kernel_size=kernel_size,
        head_width=4096,
        alignment="corners_v1",
        mean_bgr=MEAN_BGR,
    )
    data = replace(_VGG_RECIPE.data, crop_size=306)
    fields = {"data": data, "eval": EvalConfig(pad_to=514), **_STEP, "batch_size": 20}
    return replace(_VGG_RECIPE, model=model, **fields)


def _resnet_row(*, aug: bool = False, coco: bool = False, **model: Any) -> Config:
    data = DataConfig() if aug else DataConfig(augmentation_scales=(1.0,))
    # The released COCO weights have a last layer of 91 classes.
    return Config(model=ModelConfig(**_CORNERS, **model), data=data, fresh_head=coco)


def _cityscapes(row: Config, *, aug: bool = False, half: bool = False) -> Config:
    """Crops and tiles of 513 pixels; at half resolution photographs are shrunk to a half, in
    training and when they are scored."""
    scales = DataConfig().augmentation_scales if aug else (0.5,) if half else (1.0,)
    tiles = EvalConfig(tile=1025, scales=(0.5,)) if half else EvalConfig(tile=513)
    return replace(row, data=DataConfig(crop_size=513, augmentation_scales=scales), eval=tiles)


def _trained_on(split: str, row: Config, **fields: Any) -> Config:
    return replace(row, data=replace(row.data, train_split=split), **fields)


def _tested(name: str, **fields: Any) -> Config:
    """The second stage for VOC's test server: the solver of a row again, val with it."""
    start = {"weights": Path("runs") / name, "fresh_head": False}
    return _trained_on("trainval_aug", _TABLES[name], **start, **fields)


_PLAIN_HEAD: dict[str, Any] = {"aspp_rates": (1,), "head_kernel_size": 1}
_TABLES = {
    "table1_7x7": _first_release(7, 4),
    "table1_4x4": _first_release(4, 4),
    "table1_4x4_r8": _first_release(4, 8),
    "table1_large_fov": _vgg_row(**_STEP),
    "table2_step_30_6k": _vgg_row(**_STEP),
    "table2_poly_30_6k": _vgg_row(batch_size=30, num_steps=6000),
    "table2_poly_30_10k": _vgg_row(batch_size=30, num_steps=10_000),
    "table2_poly_10_10k": _vgg_row(batch_size=10, num_steps=10_000),
    "table2_poly_10_20k": _vgg_row(batch_size=10, num_steps=20_000),
    "table3_large_fov": _vgg_row(batch_size=10, num_steps=20_000),
    "table3_aspp_s": _vgg_row(rates=(2, 4, 8, 12)),
    "table3_aspp_l": _vgg_row(rates=(6, 12, 18, 24)),
    "table4_plain": _resnet_row(**_PLAIN_HEAD, scales=(1.0,)),
    "table4_msc": _resnet_row(**_PLAIN_HEAD),
    "table4_msc_coco": _resnet_row(**_PLAIN_HEAD, coco=True),
    "table4_msc_coco_aug": _resnet_row(**_PLAIN_HEAD, coco=True, aug=True),
    "table4_msc_coco_aug_large_fov": _resnet_row(aspp_rates=(12,), coco=True, aug=True),
    "table4_msc_coco_aug_aspp": _resnet_row(coco=True, aug=True),
    # Tables 6 and 7 have rows of Table 4 on other photographs, too.
    "table7_msc_coco_large_fov": _resnet_row(aspp_rates=(12,), coco=True),
    "table7_msc_coco_aspp": _resnet_row(coco=True),
    # No multi-scale inputs, for want of memory.
    "table9_vgg16_half": _cityscapes(_vgg_row(), half=True),
    "table9_vgg16": _cityscapes(_vgg_row()),
    "table9_plain": _cityscapes(_resnet_row(**_PLAIN_HEAD, scales=(1.0,))),
    "table9_large_fov": _cityscapes(_resnet_row(aspp_rates=(12,), scales=(1.0,))),
    "table9_aspp": _cityscapes(_resnet_row(scales=(1.0,))),
    "table9_aspp_aug": _cityscapes(_resnet_row(scales=(1.0,)), aug=True),
}
_TEST = {
    "test_large_fov_step": _tested("table1_large_fov", num_steps=8000),  # as the first release
    "test_large_fov_poly": _tested("table2_poly_10_20k"),
    "test_vgg16": _tested("table3_aspp_l"),
    "test_resnet101": _tested("table4_msc_coco_aug_aspp"),
    "test_city_coarse": _trained_on("train_with_coarse", _TABLES["table9_vgg16_half"]),
}

# The other data sets, in our alignment. Networks and classes are the paper's (Sections 4.2 to 4.4);
# it names poly alone for them, so that VOC's solver is used; crops and tiles of 513 are ours.
_COCO = Config(eval=EvalConfig(pad_to=641))  # photographs have up to 640 pixels
_DATA_SETS = {
    "context": Config(),
    # Table 7: neither ASPP nor LargeFOV helps here; that photographs are not scaled is a guess.
    "person_part": Config(
        model=ModelConfig(**_PLAIN_HEAD), data=DataConfig(augmentation_scales=(1.0,))
    ),
    "cityscapes": _cityscapes(_single_scale(), aug=True),
    # Source only, for domain adaptation: trained on GTA5 (--data.root), scored on Cityscapes
    # (--data.val-root). SYNTHIA takes it too.
    "gta5": _cityscapes(_single_scale(), aug=True),
    # The head of the released init.caffemodel; the number of updates is ours.
    "coco": replace(_COCO, model=ModelConfig(scales=(1.0,), **_PLAIN_HEAD), num_steps=100_000),
    # Solvers of COCO-Stuff's authors: base rate, policy, updates, 10 photographs at a time. Not
    # theirs: the mean pixel is ImageNet's or that of the weights, theirs that of COCO-Stuff; the
    # network has its 182 classes, theirs a 183rd for what nobody has labelled, which is void here.
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
    loss_group_size=None,
    class_balance=0.5,
)
# CamVid from scratch by the literature's protocol: 367 photographs for 800 epochs, scored on test.
# Choices are made on val (--data.val-split val); rates, weights of classes and losses are ours.
_CAMVID = replace(
    _single_scale(norm="trained"),
    data=DataConfig(val_split="test"),
    optim=OptimConfig(learning_rate=0.01, classifier_multiplier=0.1),
    eval=EvalConfig(pad_to=None),
    num_steps=29_360,
    batch_loss="lovasz",
    class_balance=0.5,
)
_CAMVID_SMALL = replace(
    _SMALL,
    optim=replace(_SMALL.optim, learning_rate=0.06),
    num_steps=12_000,
    batch_loss="lovasz",
    class_balance=0.3,
)

DEFAULT_PRESET = "resnet101_aspp_msc"

PRESETS: dict[str, Config] = {
    "resnet101_aspp_msc": Config(),
    "resnet101_aspp": _single_scale(),
    "resnet101_large_fov": _single_scale(aspp_rates=(12,)),
    "resnet101": _single_scale(**_PLAIN_HEAD),
    "resnet50_aspp": _single_scale(stage_sizes=(3, 4, 6, 3)),
    "vgg16_aspp_l": _VGG_RECIPE,
    "vgg16_aspp_s": replace(_VGG_RECIPE, model=replace(_VGG, aspp_rates=(2, 4, 8, 12))),
    "vgg16_large_fov": replace(_VGG_RECIPE, model=_LARGE_FOV),
    **_TABLES,
    **_TEST,
    **_DATA_SETS,
    "camvid": _CAMVID,
    # 100 epochs more on whole photographs of 360 x 480.
    "camvid_whole": replace(
        _CAMVID,
        data=replace(_CAMVID.data, crop_size=481, augmentation_scales=(1.0,)),
        optim=replace(_CAMVID.optim, learning_rate=0.001),
        num_steps=3670,
        weights=Path("runs/camvid"),
    ),
    # What the network that comes with the package was trained by: small crops, then large ones.
    "camvid_small": _CAMVID_SMALL,
    "camvid_small_481": replace(
        _CAMVID_SMALL,
        data=replace(_CAMVID_SMALL.data, crop_size=481),
        optim=replace(_CAMVID_SMALL.optim, learning_rate=0.006),
        num_steps=1000,
        batch_size=4,
        weights=Path("runs/camvid_small"),
    ),
    "small": _SMALL,
    "quickstart": Config(
        model=_SMALL_MODEL,
        data=DataConfig(num_scenes=1000, crop_size=129, augmentation_scales=(1.0,)),
        optim=OptimConfig(learning_rate=0.02, classifier_multiplier=1.0),
        eval=EvalConfig(pad_to=None),
        num_steps=220,
        batch_size=16,
        loss_group_size=None,
    ),
}
