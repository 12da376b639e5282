"""Masks for the test servers; test_predict.py has their archives."""

from pathlib import Path

import numpy as np
import pytest

from deeplab_jax import predictions
from deeplab_jax.data import public
from deeplab_jax.data.labels import LabelMapping
from deeplab_jax.types import IGNORE_LABEL, UserError


def test_competition_5_of_voc_has_a_folder_of_its_own(tmp_path):
    (paths,) = predictions.submission("voc", tmp_path, ["a"], split="test", competition=5)
    assert paths.labels.parent.name == "comp5_test_cls"


def test_train_ids_of_cityscapes_are_written_as_its_label_ids():
    """7 is road, 33 bicycle: the numbers of the official labels."""
    classes = {raw: i for i, raw in enumerate(public.CITYSCAPES)}
    mapping = LabelMapping(Path("x"), of_colours=False, classes=classes, others=IGNORE_LABEL)
    found = mapping.encode(np.array([[0, 18, 5]]), 19)
    assert found.dtype == np.uint8 and found.tolist() == [[7, 33, 17]]


def test_classes_of_colours_are_written_as_these_colours():
    classes = {0x800000: 0, 0x00FF10: 1}
    mapping = LabelMapping(Path("x"), of_colours=True, classes=classes, others=None)
    assert mapping.encode(np.array([[1, 0]]), 2).tolist() == [[[0, 255, 16], [128, 0, 0]]]


def test_what_is_decoded_again_is_what_was_encoded():
    mapping = LabelMapping(Path("x"), of_colours=False, classes={3: 1, 9: 2, 4: 1}, others=0)
    labels = np.array([[0, 1, 2]])
    raw = mapping.encode(labels, 3)
    np.testing.assert_array_equal(mapping.decode(Path("x"), raw), labels)


def test_a_class_without_a_raw_id_is_named():
    mapping = LabelMapping(Path("mapping.txt"), of_colours=False, classes={3: 1}, others=None)
    with pytest.raises(UserError, match="mapping.txt lists nothing that leads to class 0"):
        mapping.encode(np.zeros((1, 1), int), 2)
