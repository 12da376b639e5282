"""Masks that take the place of the training split's own (--data.train-masks)."""

from dataclasses import replace

import numpy as np
import pytest
from drawn_folder import SIZE, draw_folder, open_dataset, opened, write_mask

from deeplab_jax.data import builders, checks, folders
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
    return builders.open_dataset(with_masks(root, masks), splits)


def with_masks(root, masks):
    return replace(opened(root), given_masks=folders.GivenMasks("train", masks))


def test_the_masks_of_train_are_replaced_and_those_of_val_are_not(root, masks):
    plain = open_dataset(root, ("train", "val"))
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
    with pytest.raises(UserError, match=r"predicted/b.png is missing; beside it: b_overlay.jpg"):
        open_with(root, masks)
    with pytest.raises(UserError, match="nowhere, which is not a folder"):
        open_with(root, masks.parent / "nowhere")


def test_masks_that_are_all_background_are_a_fault_that_names_their_folder(root, masks):
    for name in "abc":
        write_mask(masks / f"{name}.png", np.zeros(SIZE))
    found = checks.check_dataset(with_masks(root, masks), ("train", "val"), sample=2)
    (fault,) = [finding.sentence for finding in found.findings if finding.is_fault]
    assert "class 0 (ground)" in fault and f"the masks come from {masks}" in fault
