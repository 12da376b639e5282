"""The presets of the paper's tables, their old names, and the split that they train on."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as PILImage
from scipy.io import savemat

from deeplab_jax import config as configs
from deeplab_jax import paper, runs
from deeplab_jax.presets import FIXED, PRESETS, RENAMED, ROWS
from deeplab_jax.types import UserError

VERSION_1 = json.loads((Path(__file__).parent / "data/presets_version_1.json").read_text())


def test_every_row_of_the_paper_has_a_preset_and_every_such_preset_a_row():
    assert {row.preset for row in paper.ROWS} == ROWS
    assert [len(paper.rows(table)) for table in ("1", "2", "3", "4")] == [4, 5, 3, 6]


@pytest.mark.parametrize("name", VERSION_1)
def test_presets_of_version_1_answer_and_old_runs_keep_what_has_changed(name):
    """What differs from the preset of version 1 must be in CHANGED, or a run could not go on."""
    values = configs.translate(VERSION_1[name], 1)
    before = dict(configs.result_fields(configs.from_dict(configs.Config, values)))
    now = dict(configs.result_fields(PRESETS[RENAMED.get(name, name)]))
    assert {field for field, value in now.items() if value != before[field]} <= configs.CHANGED


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


@pytest.fixture
def splits(monkeypatch):
    experiments = Path(__file__).parent.parent / "experiments"
    monkeypatch.syspath_prepend(str(experiments))
    import splits

    return splits


def config_of(root, **data):
    config = PRESETS["table3_aspp_l"]
    return replace(config, data=replace(config.data, root=root, **data))


def test_voc_2012_with_sbd_is_trained_on_train_aug(splits, tmp_path):
    chosen = splits.with_train_split(config_of(draw_voc(tmp_path, sbd=True)))
    assert chosen.data.train_split == "train_aug"


@pytest.mark.parametrize(
    ("split", "own"), [(None, "train "), ("train_aug", "train "), ("trainval_aug", "trainval ")]
)
def test_voc_2012_without_sbd_asks_for_it_in_a_sentence(splits, tmp_path, split, own):
    root = draw_voc(tmp_path, sbd=False)
    with pytest.raises(UserError, match=f"download_data.py voc_aug .* --data.train-split {own}"):
        splits.with_train_split(config_of(root, train_split=split))
    chosen = splits.with_train_split(config_of(root, train_split="train"))
    assert chosen.data.train_split == "train"


def test_other_folders_are_trained_on_train(splits, tmp_path):
    root = draw_voc(tmp_path, sbd=False)
    shutil.move(root / "VOCdevkit/VOC2012", tmp_path / "mine")
    (tmp_path / "mine/labels.txt").write_text("ground\nwolf\n")
    chosen = splits.with_train_split(config_of(tmp_path / "mine"))
    assert chosen.data.train_split == "train"


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_the_plan_of_a_preset_tells_split_photographs_updates_start_and_alignment(
    splits, tmp_path, name
):
    import train_voc

    config = PRESETS[name]
    if not config.data.num_scenes:
        root = draw_voc(tmp_path, sbd=True)
        config = replace(config, data=replace(config.data, root=root, val_split="val"))
    config = splits.with_train_split(config)
    request = configs.Request(config, name, fixed=frozenset())
    text = "\n".join(train_voc.plan(request, config))
    for word in ("trained on", "updates", "start", "alignment", config.data.train_split):
        assert word in text
    if config.data.train_split == "train_aug":
        assert "train_aug: 2 photographs" in text


CAFFES_VGG = {"mean_bgr": [103.939, 116.779, 123.68]}
PORTS = {"alignment": "ports", "stride_placement": "torch", "mean_bgr": [1.0, 2.0, 3.0]}


def conventions(preset, theirs, capsys, *, typed=(), **model):
    """The model that a run of a preset gets from weights with these fields, and what is printed."""
    config = replace(PRESETS[preset], weights=Path("w.pth"))
    config = replace(config, model=replace(config.model, **model))
    fixed = FIXED if preset in ROWS else frozenset()
    request = configs.Request(config, preset, frozenset(typed), fixed)
    return runs._with_conventions(request, config, theirs), capsys.readouterr().out


def test_weights_bring_their_conventions_where_nobody_has_said_otherwise(capsys):
    model, printed = conventions("resnet101_aspp_msc", PORTS, capsys)
    assert (model.alignment, model.stride_placement) == ("ports", "torch")
    assert model.mean_bgr == (1.0, 2.0, 3.0)
    assert "model.alignment is ports, as w.pth was trained with" in printed


def test_what_a_row_of_the_paper_fixes_wins_and_is_told(capsys):
    model, printed = conventions("table4_plain", PORTS, capsys)
    assert (model.alignment, model.mean_bgr) == ("corners", (104.008, 116.669, 122.675))
    assert model.stride_placement == "torch"  # another placement would be another network
    assert "model.alignment is corners, as the preset table4_plain has it; w.pth was" in printed
    _, printed = conventions("table3_aspp_l", CAFFES_VGG, capsys)
    assert "w.pth was trained with (103.939, 116.779, 123.68)" in printed


def test_what_is_typed_wins_and_is_told(capsys):
    typed = ["model.alignment"]
    model, printed = conventions("small", PORTS, capsys, typed=typed, alignment="cells")
    assert model.alignment == "cells"
    assert "model.alignment is cells, as given; w.pth was trained with ports" in printed


def test_a_renamed_preset_answers_to_its_old_name(splits, monkeypatch, capsys):
    import cli

    monkeypatch.setattr("sys.argv", ["train_voc.py", "vgg16_4x4", "--seed", "5"])
    request = cli.parse_preset(PRESETS, "small", "")
    assert request.preset == "table1_4x4" and "vgg16_4x4" in request.formerly
    assert request.config.workdir == Path("runs/vgg16_4x4")  # a run there goes on
    assert request.fixed == FIXED and request.config.seed == 5
    assert "the preset vgg16_4x4 is called table1_4x4" in capsys.readouterr().err
