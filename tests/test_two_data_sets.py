"""Two data sets in one run, and scores without some of the classes."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from deeplab_jax import config as configs
from deeplab_jax import metrics, start
from deeplab_jax.config import Config, DataConfig
from deeplab_jax.types import UserError


def put(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)


SIZE = (12, 40)


def lay_out_cityscapes(root: Path) -> None:
    name = "a/a_000000_000001"
    put(root / f"leftImg8bit/val/{name}_leftImg8bit.png", np.zeros((*SIZE, 3), np.uint8))
    raw = np.resize(np.arange(34), SIZE).astype(np.uint8)
    put(root / f"gtFine/val/{name}_gtFine_labelIds.png", raw)


def test_a_run_may_train_on_one_data_set_and_be_scored_on_another(tmp_path):
    for folder, array in (
        ("images", np.zeros((*SIZE, 3))),
        ("labels", np.arange(480).reshape(SIZE) % 34),
    ):
        put(tmp_path / "gta5" / folder / "00001.png", array.astype(np.uint8))
    lay_out_cityscapes(tmp_path / "cityscapes")
    data = DataConfig(root=tmp_path / "gta5", val_root=tmp_path / "cityscapes")
    config, _ = start.with_train_split(Config(data=data, prepared_dir=tmp_path / "prepared"))
    dataset = start.open_data(config)
    assert [source[0]["name"] for source in dataset.splits.values()] == [
        "00001",
        "a_000000_000001",
    ]
    scored = start.open_scored(config, ("val",), root=None, prepared_dir=tmp_path)
    assert scored.path == tmp_path / "cityscapes"


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
