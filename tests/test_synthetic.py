"""GTA5 and SYNTHIA in the form they are distributed in, and two data sets in one run."""

from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from deeplab_jax import config as configs
from deeplab_jax import metrics, setup, start
from deeplab_jax.config import Config, DataConfig
from deeplab_jax.data import builders, layouts, public
from deeplab_jax.types import IGNORE_LABEL, UserError

SIZE = (12, 40)


def put(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)


def lay_out_gta5(root: Path) -> np.ndarray:
    """One photograph and its mask, a palette PNG of raw ids."""
    raw = np.arange(35).astype(np.uint8).repeat(2)
    raw = np.resize(raw, SIZE)
    put(root / "images/00001.png", np.zeros((*SIZE, 3), np.uint8))
    mask = Image.fromarray(raw)
    mask.putpalette(bytes(range(256)) * 3)
    (root / "labels").mkdir()
    mask.save(root / "labels/00001.png")
    return raw


def labels_of(root: Path) -> np.ndarray:
    dataset = builders.open_dataset(root, prepared_dir=root.parent / "prepared", splits=["train"])
    assert len(dataset.class_names) == 19
    return dataset.splits["train"][0]["labels"]


def test_gta5_has_the_raw_ids_of_cityscapes(tmp_path):
    raw = lay_out_gta5(tmp_path / "gta5")
    labels = labels_of(tmp_path / "gta5")
    trained = [7, 8, 11, 12, 13, 17, *range(19, 29), 31, 32, 33]
    for code in range(35):
        expected = trained.index(code) if code in trained else IGNORE_LABEL
        assert set(labels[raw == code]) == {expected}


# Class ids of SYNTHIA and of Cityscapes' training, as the adaptation literature pairs them.
SYNTHIA = "3:0 4:1 2:2 21:3 5:4 7:5 15:6 9:7 6:8 16:9 1:10 10:11 17:12 8:13 18:14 19:15 20:16"
SYNTHIA += " 12:17 11:18"


def test_synthia_keeps_its_classes_in_the_red_channel_of_16_bits(tmp_path):
    root = tmp_path / "synthia"
    put(root / "RGB/0000000.png", np.zeros((*SIZE, 3), np.uint8))
    raw = np.resize(np.arange(23), SIZE).astype(np.uint16)
    instances = np.full(SIZE, 777, np.uint16)
    (root / "GT/LABELS").mkdir(parents=True)
    blue_green_red = np.stack([instances * 0, instances, raw], -1)
    cv2.imwrite(str(root / "GT/LABELS/0000000.png"), blue_green_red)
    labels = labels_of(root)
    pairs = dict(map(int, pair.split(":")) for pair in SYNTHIA.split())
    for code in range(23):
        assert set(labels[raw == code]) == {pairs.get(code, IGNORE_LABEL)}


def test_a_folder_with_class_names_of_its_own_is_no_gta5(tmp_path):
    lay_out_gta5(tmp_path / "mine")
    names = "".join(f"{i} thing {i}\n" for i in range(35))
    (tmp_path / "mine/labels.txt").write_text(names)
    assert public.find_gta5(tmp_path / "mine") is None
    assert len(layouts.open_folder(tmp_path / "mine").class_names) == 35


def lay_out_cityscapes(root: Path) -> None:
    name = "a/a_000000_000001"
    put(root / f"leftImg8bit/val/{name}_leftImg8bit.png", np.zeros((*SIZE, 3), np.uint8))
    raw = np.resize(np.arange(34), SIZE).astype(np.uint8)
    put(root / f"gtFine/val/{name}_gtFine_labelIds.png", raw)


def test_a_run_may_train_on_one_data_set_and_be_scored_on_another(tmp_path):
    lay_out_gta5(tmp_path / "gta5")
    lay_out_cityscapes(tmp_path / "cityscapes")
    data = DataConfig(root=tmp_path / "gta5", val_root=tmp_path / "cityscapes")
    config = start.with_train_split(Config(data=data, prepared_dir=tmp_path / "prepared"))
    dataset = setup.open_data(config)
    assert [source[0]["name"] for source in dataset.splits.values()] == [
        "00001",
        "a_000000_000001",
    ]
    assert start.find_root(config, None, tmp_path) == tmp_path / "cityscapes"


def test_two_data_sets_need_two_names_of_splits(tmp_path):
    data = DataConfig(root=tmp_path, val_root=tmp_path, train_split="val")
    with pytest.raises(UserError, match="need two names"):
        configs.check(Config(data=data))


def test_a_mean_without_some_classes_still_counts_their_pixels():
    confusion = np.array([[4, 0, 4], [0, 2, 0], [0, 0, 6]])
    # IoU 1/2, 1 and 6/10
    found = metrics.mean_iou_without(confusion, ["road", "sky", "truck"], ["truck"])
    assert found == pytest.approx((1 / 2 + 1) / 2)
    with pytest.raises(UserError, match="no class 'lorry'; the classes are road"):
        metrics.check_class_names(["lorry"], ["road", "sky"])
