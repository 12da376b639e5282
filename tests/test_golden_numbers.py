"""The numbers of the paper, its predecessor and the released files, written from those.

Sources: the text (arXiv 1606.00915), that of the first version (arXiv 1412.7062), and the prototxt
and solver files of both releases. What none of them says is not here.
"""

from dataclasses import asdict, replace
from functools import cache

import jax
import pytest

from deeplab_jax import crf, receptive_field, train
from deeplab_jax.choices import MEAN_BGR
from deeplab_jax.config import completed
from deeplab_jax.models.deeplab import build
from deeplab_jax.presets import PRESETS

ASPP_L, ASPP_S = (6, 12, 18, 24), (2, 4, 8, 12)
MSC = (1.0, 0.75, 0.5)
AUGMENTED = (0.5, 0.75, 1.0, 1.25, 1.5)

POLY = {"optim.policy": "poly", "optim.power": 0.9}
STEP = {"optim.policy": "step", "optim.gamma": 0.1, "optim.step_every": 2000, "num_steps": 6000}
EVERY = {
    "model.width": 64,
    "model.alignment": "corners",
    "model.mean_bgr": (104.008, 116.669, 122.675),
    "data.crop_size": 321,
    "data.flip": True,
    "optim.momentum": 0.9,
    "optim.weight_decay": 5e-4,
    "optim.classifier_multiplier": 10,
    "num_steps": 20_000,
    "batch_size": 10,
    "pixel_loss": "cross_entropy",
    "batch_loss": None,
    "class_balance": 0,
    "ema_decay": 0,
    "crf_iterations": 0,
    "eval.pad_to": 513,
    "eval.scales": (1.0,),
    "eval.tile": None,
}
VGG = {
    **EVERY,
    **POLY,
    "model.backbone": "vgg",
    "model.stage_sizes": (2, 2, 3, 3, 3),
    "model.norm": "none",
    "model.head_kernel_size": 3,
    "model.head_width": 1024,
    "model.dropout": 0.5,
    "model.scales": (1.0,),
    "data.augmentation_scales": (1.0,),
    "optim.learning_rate": 1e-3,
    "loss_group_size": None,  # 10 x 1: Caffe divides by the pixels of all ten
}
RESNET = {
    **EVERY,
    **POLY,
    "model.backbone": "resnet",
    "model.stage_sizes": (3, 4, 23, 3),
    "model.norm": "frozen",
    "model.stride_placement": "caffe",
    "model.head_kernel_size": 1,
    "model.aspp_rates": (1,),
    "model.scales": MSC,
    "data.augmentation_scales": (1.0,),
    "optim.learning_rate": 2.5e-4,
    "loss_group_size": 1,  # 1 x 10: by those of each photograph
    "fresh_head": False,
}
LARGE_FOV = {**VGG, "model.aspp_rates": (12,), "model.pool5a": True}
FIRST_LARGE_FOV = {**LARGE_FOV, **STEP, "batch_size": 30}
FIRST_RELEASE = {
    **VGG,
    **STEP,
    "model.pool5a": False,
    "model.head_width": 4096,
    "model.alignment": "corners_v1",
    "data.crop_size": 306,
    "eval.pad_to": 514,
    "batch_size": 20,
}
COCO = {**RESNET, "fresh_head": True}  # the released weights of MS-COCO have 91 classes
AUG = {**COCO, "data.augmentation_scales": AUGMENTED}
WIDE = {"model.head_kernel_size": 3, "model.aspp_rates": (12,)}
ASPP = {"model.head_kernel_size": 3, "model.aspp_rates": ASPP_L}
BEST = {**AUG, **ASPP}
SECOND_STAGE = {"data.train_split": "trainval_aug", "fresh_head": False}
# Cityscapes is cut in tiles; a tile of 1025 pixels shrunk to a half covers as much as one of 513.
CITYSCAPES = {"data.crop_size": 513, "eval.tile": 513}
CITY_VGG = {**LARGE_FOV, **CITYSCAPES}
HALF = {"data.augmentation_scales": (0.5,), "eval.scales": (0.5,), "eval.tile": 1025}
CITY_RESNET = {**RESNET, **CITYSCAPES, "model.scales": (1.0,)}  # no MSC, for want of memory

PUBLISHED = {
    "table1_7x7": {**FIRST_RELEASE, "model.head_kernel_size": 7, "model.aspp_rates": (4,)},
    "table1_4x4": {**FIRST_RELEASE, "model.head_kernel_size": 4, "model.aspp_rates": (4,)},
    "table1_4x4_r8": {**FIRST_RELEASE, "model.head_kernel_size": 4, "model.aspp_rates": (8,)},
    "table1_large_fov": FIRST_LARGE_FOV,
    "table2_step_30_6k": FIRST_LARGE_FOV,
    "table2_poly_30_6k": {**LARGE_FOV, "batch_size": 30, "num_steps": 6000},
    "table2_poly_30_10k": {**LARGE_FOV, "batch_size": 30, "num_steps": 10_000},
    "table2_poly_10_10k": {**LARGE_FOV, "num_steps": 10_000},
    "table2_poly_10_20k": LARGE_FOV,
    "table3_large_fov": LARGE_FOV,
    "table3_aspp_s": {**VGG, "model.aspp_rates": ASPP_S, "model.pool5a": False},
    "table3_aspp_l": {**VGG, "model.aspp_rates": ASPP_L, "model.pool5a": False},
    "table4_plain": {**RESNET, "model.scales": (1.0,)},
    "table4_msc": RESNET,
    "table4_msc_coco": COCO,
    "table4_msc_coco_aug": AUG,
    "table4_msc_coco_aug_large_fov": {**AUG, **WIDE},
    "table4_msc_coco_aug_aspp": BEST,
    "table7_msc_coco_large_fov": {**COCO, **WIDE},
    "table7_msc_coco_aspp": {**COCO, **ASPP},
    "table9_vgg16_half": {**CITY_VGG, **HALF},
    "table9_vgg16": CITY_VGG,
    "table9_plain": CITY_RESNET,
    "table9_large_fov": {**CITY_RESNET, **WIDE},
    "table9_aspp": {**CITY_RESNET, **ASPP},
    "table9_aspp_aug": {**CITY_RESNET, **ASPP, "data.augmentation_scales": AUGMENTED},
    "test_large_fov_step": {**FIRST_LARGE_FOV, **SECOND_STAGE, "num_steps": 8000},
    "test_large_fov_poly": {**LARGE_FOV, **SECOND_STAGE},
    "test_city_coarse": {**CITY_VGG, **HALF, "data.train_split": "train_with_coarse"},
    "test_vgg16": {**VGG, "model.aspp_rates": ASPP_L, "model.pool5a": False, **SECOND_STAGE},
    "test_resnet101": {**BEST, **SECOND_STAGE},
}

OURS = {"model.alignment": "cells", "fresh_head": False}
"""Where presets for everyday use differ from the paper's rows."""

PUBLISHED |= {
    "vgg16_large_fov": {**LARGE_FOV, **OURS},
    "vgg16_aspp_s": {**PUBLISHED["table3_aspp_s"], **OURS},
    "vgg16_aspp_l": {**PUBLISHED["table3_aspp_l"], **OURS},
    "resnet101_aspp_msc": {**BEST, **OURS},
    "resnet101_aspp": {**BEST, **OURS, "model.scales": (1.0,)},
    "resnet101_large_fov": {**AUG, **WIDE, **OURS, "model.scales": (1.0,)},
    "resnet101": {**AUG, **OURS, "model.scales": (1.0,)},
    "context": {**BEST, **OURS},
    "person_part": {**COCO, **OURS},
    "cityscapes": {**PUBLISHED["table9_aspp_aug"], **OURS},
    "coco_stuff": {**BEST, **OURS, "num_steps": 100_000, "eval.pad_to": 641},
    "coco_stuff_10k": {**BEST, **OURS, "eval.pad_to": 641, "data.val_split": "test"},
}
"""For its other data sets the paper names networks and the tiles of Cityscapes; for COCO-Stuff its
authors' solvers do."""


def value(config, name):
    """A field, as it is where no weights bring another convention."""
    config = replace(config, model=completed(config.model))
    for part in name.split("."):
        config = getattr(config, part)
    return config


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_preset_has_the_published_numbers(name):
    found = {field: value(PRESETS[name], field) for field in PUBLISHED[name]}
    assert found == PUBLISHED[name]


def test_every_row_of_a_table_has_its_numbers_here():
    assert {name for name in PRESETS if name.startswith(("table", "test_"))} <= set(PUBLISHED)


NORM = 4 * 52_672  # scale, shift, mean and variance of ResNet-101's batch norms
TRUNK, VGG_TRUNK = 42_394_816, 14_714_688
PARAMETERS = {
    # preset: (trained, frozen), 21 classes; in millions 134.35, 65.14, 65.14, 20.51, 37.88
    "table1_7x7": (134_346_581, 0),
    "table1_4x4": (65_140_565, 0),
    "table1_4x4_r8": (65_140_565, 0),
    "table1_large_fov": (20_505_429, 0),
    "table3_aspp_s": (37_877_652, 0),
    "table3_aspp_l": (37_877_652, 0),
    "table4_plain": (TRUNK + 2048 * 21 + 21, NORM),
    "table4_msc_coco_aug_large_fov": (TRUNK + 9 * 2048 * 21 + 21, NORM),
    "table4_msc_coco_aug_aspp": (TRUNK + 1_548_372, NORM),
}


def network(name):
    return build(21, **asdict(completed(PRESETS[name].model)))


@cache
def shapes(name):
    return train.variable_shapes(network(name))


@pytest.mark.parametrize("name", PARAMETERS)
def test_a_network_has_as_many_parameters_as_published(name):
    found = (
        sum(leaf.size for leaf in jax.tree.leaves(shapes(name).get(collection, {})))
        for collection in ("params", "batch_stats")
    )
    assert tuple(found) == PARAMETERS[name]


@pytest.mark.parametrize(
    ("name", "pixels"),
    [("table1_7x7", 224), ("table1_4x4", 128), ("table1_4x4_r8", 224), ("table1_large_fov", 224)],
)
def test_a_field_of_view_is_that_of_table_1(name, pixels):
    assert receptive_field.as_in_table_1(network(name)) == pixels


@pytest.mark.parametrize(("name", "size"), [("table3_aspp_l", VGG_TRUNK), ("table4_plain", TRUNK)])
def test_the_trunks_have_the_weights_of_their_prototxt(name, size):
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes(name)["params"]["trunk"])) == size


CRF = """
resnet101               4  67  3  3  1
vgg16_aspp              4  65  3  2  2
resnet101_test_prototxt 5  21  3  4  1
v2_run_script           4  49  5  3  3
v1                      5  50 10  3  3
v1_large_fov            4 121  5  3  3
v1_msc                  3  95  3  3  3
v1_coco                 5  67  3  3  3
v1_msc_large_fov        4  83  5  3  3
v1_coco_large_fov       5  69  5  3  3
v1_msc_coco_large_fov   4  59  5  3  3
"""
"""w1, sigma alpha, sigma beta, w2, sigma gamma: model pages, run script, prototxt."""


def test_the_published_parameters_of_the_crf():
    names = ("appearance_weight", "sigma_xy", "sigma_rgb", "smoothness_weight", "sigma_smoothness")
    found = {
        key: [getattr(params, name) for name in names]
        for key, params in crf.params.PUBLISHED.items()
    }
    rows = [line.split() for line in CRF.split("\n")[1:-1]]
    assert found == {key: list(map(float, numbers)) for key, *numbers in rows}
    assert crf.RESNET101 == crf.params.PUBLISHED["resnet101"] == crf.CRFParams()


def test_the_mean_pixel_is_the_releases():
    assert MEAN_BGR == (104.008, 116.669, 122.675)
