"""Faults of the user's: every message names the file and says what to do."""

import io
import os

import numpy as np
import pytest
from drawn_folder import draw_folder, fault
from PIL import Image

from deeplab_jax.data import masks


@pytest.fixture
def root(tmp_path):
    return draw_folder(tmp_path / "pets")


def test_a_folder_of_another_layout_is_explained(tmp_path):
    assert "has no ImageSets/Segmentation" in fault(tmp_path)
    assert "is not a folder" in fault(tmp_path / "nowhere")


def test_missing_class_names_are_explained(root):
    (root / "labels.txt").unlink()
    message = fault(root)
    assert str(root / "labels.txt") in message
    assert "`0 background`" in message


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("0 ground\n2 cat\n", "the ids 0, 2"),
        ("0 ground\n0 cat\n", "the ids 0, 0"),
        ("0 ground\ncat\n", "mixes"),
        ("0\n1\n", "mixes"),
        ("\n", "names 0 classes"),
        ("\n".join(f"c{i}" for i in range(256)), "names 256 classes"),
    ],
)
def test_odd_class_names_are_refused(root, text, part):
    (root / "labels.txt").write_text(text)
    assert part in fault(root)


def test_a_missing_split_is_answered_with_those_there_are(root):
    message = fault(root, ("trian",))
    assert "train, val" in message
    assert "did you mean 'train'?" in message


def test_empty_and_repeating_lists_are_refused(root):
    path = root / "ImageSets/Segmentation/train.txt"
    path.write_text("\n")
    assert "an empty split 'train'" in fault(root)
    path.write_text("a\nb\na\n")
    assert f"{root / 'JPEGImages' / 'a.jpg'} stands twice in the split train" in fault(root)


@pytest.mark.parametrize("shape", [(1, 1), (24, 30), (3, 500)])
def test_encoded_labels_are_read_back_by_pillow(shape):
    labels = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    picture = Image.open(io.BytesIO(masks.encode(labels)))
    assert (picture.format, picture.mode) == ("PNG", "L")
    np.testing.assert_array_equal(np.asarray(picture), labels)


def test_the_first_fault_is_told_and_the_others_counted(root):
    for name in "abc":
        (root / "SegmentationClass" / f"{name}.png").unlink()
    message = fault(root)
    assert "c.png" in message
    assert "faults found: 3" in message


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every file")
def test_a_file_that_may_not_be_read_is_named(root):
    path = root / "JPEGImages" / "a.jpg"
    path.chmod(0)
    assert f"{path} cannot be read" in fault(root)


def test_labels_that_are_not_text_are_refused(root):
    (root / "labels.txt").write_bytes((root / "SegmentationClass/a.png").read_bytes())
    assert "is not text" in fault(root)
