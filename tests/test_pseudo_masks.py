"""Masks that take the place of the training split's own (--data.train-masks)."""

import json

import numpy as np
import pytest
from drawn_folder import NAMES, SIZE, draw_folder, write_mask

from deeplab_jax import config as configs
from deeplab_jax import metrics, report
from deeplab_jax.config import Config, DataConfig
from deeplab_jax.data import builders, checks, folders, layouts
from deeplab_jax.types import IGNORE_LABEL, UserError


@pytest.fixture
def root(tmp_path):
    """Photographs c, a and b to train on, d for validation."""
    return draw_folder(tmp_path / "data")


@pytest.fixture
def masks(tmp_path):
    """A mask of its own for each photograph, and what predict.py leaves beside them."""
    folder = tmp_path / "predicted"
    folder.mkdir()
    for i, name in enumerate("abcd"):
        write_mask(folder / f"{name}.png", given(i))
        (folder / f"{name}_overlay.jpg").write_bytes(b"no mask")
    (folder / "predictions.json").write_text("{}")
    return folder


def given(seed):
    return np.random.default_rng(100 + seed).choice([0, 1, IGNORE_LABEL], SIZE).astype(np.uint8)


def open_with(root, masks, splits=("train", "val")):
    return builders.open_dataset(
        root,
        prepared_dir=root.parent / "prepared",
        splits=splits,
        reading=folders.Reading(given_masks=("train", masks)),
    )


def test_the_masks_of_train_are_replaced_and_those_of_val_are_not(root, masks):
    plain = builders.open_dataset(root, prepared_dir=root.parent / "p", splits=("train", "val"))
    dataset = open_with(root, masks)
    labels = {item["name"]: item["labels"] for item in (dataset.splits["train"][i] for i in (0, 1))}
    np.testing.assert_array_equal(labels["a"], given(0))
    np.testing.assert_array_equal(labels["c"], given(2))
    true, kept = (source.splits["val"][0]["labels"] for source in (plain, dataset))
    np.testing.assert_array_equal(kept, true)
    assert dataset.identity != plain.identity


def test_a_mapping_of_the_data_set_does_not_apply_to_given_masks(root, masks):
    (root / "mapping.txt").write_text("0 2\n1 0\n2 1\n* 255\n")
    item = open_with(root, masks).splits["train"][1]
    assert item["name"] == "a"
    np.testing.assert_array_equal(item["labels"], given(0))


def test_photographs_without_truth_are_trained_on_given_masks(root, masks):
    for name in "abc":
        (root / "SegmentationClass" / f"{name}.png").unlink()
    np.testing.assert_array_equal(open_with(root, masks).splits["train"][2]["labels"], given(1))


def test_a_missing_mask_or_folder_is_named(root, masks):
    (masks / "b.png").unlink()
    with pytest.raises(UserError, match=r"predicted/b.png is missing; b_overlay.jpg is there"):
        open_with(root, masks)
    with pytest.raises(UserError, match="nowhere, which is not a folder"):
        open_with(root, masks.parent / "nowhere")


def test_masks_that_are_all_background_are_a_fault_that_names_their_folder(root, masks):
    for name in "abc":
        write_mask(masks / f"{name}.png", np.zeros(SIZE))
    found = checks.check_dataset(
        root,
        prepared_dir=root.parent / "prepared",
        splits=("train", "val"),
        reading=folders.Reading(given_masks=("train", masks)),
        sample=2,
    )
    (fault,) = [finding.sentence for finding in found.findings if finding.is_fault]
    assert "class 0 (ground)" in fault and f"the masks come from {masks}" in fault


def test_a_run_is_scored_on_true_masks(masks):
    data = DataConfig(root=masks, train_masks=masks, train_split="val")
    with pytest.raises(UserError, match="score on another split"):
        configs.check(Config(data=data))


def test_the_quality_of_masks_is_that_by_hand():
    truth = np.array([[0, 0, 1, 1, IGNORE_LABEL]], np.uint8)
    mask = np.array([[0, 1, 1, IGNORE_LABEL, 0]], np.uint8)
    found = metrics.mask_quality([(truth, mask), (None, mask)], NAMES)
    # Counted: 0 as 0, 0 as 1, 1 as 1.
    assert found["iou"] == {"ground": 1 / 2, "cat": 1 / 2, "dog": None}
    assert found["mean_iou"] == 1 / 2
    assert (found["masks"], found["with_truth"]) == (2, 1)
    assert found["void"] == pytest.approx(2 / 10)
    assert found["absent"] == ["dog"]
    told = metrics.describe_masks(found)
    assert "mean IoU 0.5000 where 1 have a truth, 20.0% void; no mask shows dog" in told


def test_quality_compares_each_mask_with_the_true_one(root, masks):
    folder = layouts.open_folder(root)
    (root / "SegmentationClass" / "b.png").unlink()
    pairs = list(builders.truth_and_given(folder, "train", masks))
    assert [truth is None for truth, _ in pairs] == [False, False, True]  # c, a, b
    np.testing.assert_array_equal(pairs[1][1], given(0))
    for name in "abc":
        (masks / f"{name}.png").write_bytes((root / "SegmentationClass/a.png").read_bytes())
    found = metrics.mask_quality(builders.truth_and_given(folder, "train", masks), NAMES)
    assert found["with_truth"] == 2 and 1 / 3 < found["mean_iou"] < 1  # a is right, c by chance


def test_the_report_shows_the_quality_of_the_masks(tmp_path):
    quality = {"masks": 3, "with_truth": 2, "mean_iou": 0.4321, "void": 0.1, "absent": ["<dog>"]}
    (tmp_path / report.MASKS).write_text(json.dumps({**quality, "iou": {"cat": 0.25, "dog": None}}))
    page = report.write(tmp_path).read_text()
    assert "Masks of the training split" in page
    assert "0.4321" in page and "&lt;dog&gt;" in page and "IoU of cat" in page


def test_the_report_shows_masks_network_and_network_with_crf_together(tmp_path):
    quality = {"masks": 3, "with_truth": 2, "mean_iou": 0.69, "void": 0.1, "absent": [], "iou": {}}
    (tmp_path / report.MASKS).write_text(json.dumps(quality))
    (tmp_path / "score.json").write_text(json.dumps({"mean_iou": 0.41}))
    after = {"network": {"mean_iou": 0.41}, "network + CRF": {"mean_iou": 0.43}}
    (tmp_path / report.EVALUATED).write_text(json.dumps(after))

    def shown():
        page = report.write(tmp_path).read_text()
        return [f"{value:.4f}" in page for value in (0.69, 0.41, 0.43, 0.44)]

    assert shown() == [True, True, True, False]
    after["network"]["mean_iou"] = 0.5  # of another split
    (tmp_path / report.EVALUATED).write_text(json.dumps(after))
    assert shown() == [True, True, False, False]
    (tmp_path / report.REFINED).write_text(json.dumps({"mean_iou": 0.44}))
    assert shown() == [True, True, False, True]
