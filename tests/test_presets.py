"""The presets of the paper's tables, and the split that they train on."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as PILImage
from scipy.io import savemat

from deeplab_jax import paper, start
from deeplab_jax.presets import PRESETS, ROWS
from deeplab_jax.start import Request
from deeplab_jax.types import UserError


def test_every_row_of_the_paper_has_a_preset_and_every_such_preset_a_row():
    assert {row.preset for row in paper.ROWS} == ROWS
    assert [len(paper.rows(table)) for table in ("1", "2", "3", "4")] == [4, 5, 3, 6]


@pytest.mark.parametrize("name", sorted(ROWS))
def test_rows_are_aligned_as_the_release(name):
    model = PRESETS[name].model
    first = name in ("table1_7x7", "table1_4x4", "table1_4x4_r8")
    assert model.alignment == ("corners_v1" if first else "corners")
    assert model.mean_bgr == (104.008, 116.669, 122.675)


def test_table_4_adds_one_thing_a_row():
    rows = [PRESETS[row.preset] for row in paper.rows("4")]
    assert [row.model.scales for row in rows] == [(1.0,)] + [(1.0, 0.75, 0.5)] * 5
    assert [len(row.data.augmentation_scales) for row in rows] == [1, 1, 1, 5, 5, 5]
    assert [row.model.aspp_rates for row in rows] == [(1,)] * 4 + [(12,), (6, 12, 18, 24)]
    assert [row.fresh_head for row in rows] == [False, False, True, True, True, True]


def test_the_second_stage_for_the_test_server_is_the_first_on_other_data():
    first, second = PRESETS["table3_aspp_l"], PRESETS["test_vgg16"]
    data = replace(first.data, train_split="trainval_aug")
    assert second == replace(first, data=data, weights=Path("runs/table3_aspp_l"))


def draw_voc(root, *, sbd):
    """A miniature of VOC 2012: one photograph to train on, one in val, one of SBD's alone."""
    devkit = root / "VOCdevkit/VOC2012"
    for name in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation", "Annotations"):
        (devkit / name).mkdir(parents=True)
    for name, split in (("a", "train"), ("b", "val"), ("c", None)):
        PILImage.new("RGB", (40, 30)).save(devkit / "JPEGImages" / f"{name}.jpg")
        if split:
            (devkit / "ImageSets/Segmentation" / f"{split}.txt").write_text(f"{name}\n")
            mask = PILImage.fromarray(np.zeros((30, 40), np.uint8))
            mask.save(devkit / "SegmentationClass" / f"{name}.png")
    if sbd:
        masks = root / "benchmark_RELEASE/dataset/cls"
        masks.mkdir(parents=True)
        for name in "abc":
            segmentation = {"Segmentation": np.zeros((30, 40), np.uint8)}
            savemat(masks / f"{name}.mat", {"GTcls": segmentation})
    return root


def config_of(root, **data):
    config = PRESETS["table3_aspp_l"]
    return replace(config, data=replace(config.data, root=root, **data))


def test_voc_2012_with_sbd_is_trained_on_train_aug(tmp_path):
    chosen = start.with_train_split(config_of(draw_voc(tmp_path, sbd=True)))
    assert chosen.data.train_split == "train_aug"


@pytest.mark.parametrize(
    ("split", "own"), [(None, "train "), ("train_aug", "train "), ("trainval_aug", "trainval ")]
)
def test_voc_2012_without_sbd_asks_for_it_in_a_sentence(tmp_path, split, own):
    root = draw_voc(tmp_path, sbd=False)
    with pytest.raises(UserError, match=f"download_data.py voc_aug .* --data.train-split {own}"):
        start.with_train_split(config_of(root, train_split=split))
    chosen = start.with_train_split(config_of(root, train_split="train"))
    assert chosen.data.train_split == "train"


def test_other_folders_are_trained_on_train(tmp_path):
    root = draw_voc(tmp_path, sbd=False)
    shutil.move(root / "VOCdevkit/VOC2012", tmp_path / "mine")
    (tmp_path / "mine/labels.txt").write_text("ground\nwolf\n")
    chosen = start.with_train_split(config_of(tmp_path / "mine"))
    assert chosen.data.train_split == "train"


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_the_plan_of_a_preset_tells_split_photographs_updates_start_and_alignment(
    tmp_path, monkeypatch, name
):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "experiments"))
    import train_voc

    config = PRESETS[name]
    if not config.data.num_scenes:
        root = draw_voc(tmp_path, sbd=True)
        config = replace(config, data=replace(config.data, root=root, val_split="val"))
    text = "\n".join(train_voc.plan(Request(config, name)))
    config = start.with_train_split(config)
    for word in ("trained on", "updates", "start", "alignment", config.data.train_split):
        assert word in text
    if config.data.train_split == "train_aug":
        assert "train_aug: 2 photographs" in text
