import numpy as np
import pytest
from drawn_folder import open_dataset
from PIL import Image
from scipy.spatial import cKDTree

from deeplab_jax import metrics
from deeplab_jax.data import scenes
from deeplab_jax.types import IGNORE_LABEL, UserError

NUM_CLASSES = len(scenes.CLASS_NAMES)
DRAW = {"num_train": 3, "num_val": 2, "size": 64, "seed": 0}


def draw(seed, size=128):
    return scenes.draw_scene(np.random.default_rng(seed), size=size)


def sample_pixels(seeds, *, pixels=100):
    """Colour and place of some labelled pixels of each scene, in -1..1, and their labels."""
    features, labels = [], []
    for seed in seeds:
        image, truth = draw(seed)
        rows, columns = np.indices(truth.shape)
        everything = np.dstack([image / 127.5 - 1, rows / 63.5 - 1, columns / 63.5 - 1])
        valid = np.argwhere(truth != IGNORE_LABEL)
        chosen = tuple(np.random.default_rng(seed).permutation(valid)[:pixels].T)
        features.append(everything[chosen])
        labels.append(truth[chosen])
    return np.concatenate(features), np.concatenate(labels).astype(int)


def test_colour_and_position_do_not_tell_the_classes():
    """The 25 pixels of other scenes that are nearest in colour and position vote."""
    known, labels = sample_pixels(range(150))
    pixels, truth = sample_pixels(range(1000, 1060))
    near = labels[cKDTree(known).query(pixels, k=25)[1]]
    votes = np.eye(NUM_CLASSES)[near].sum(1)
    for weights in (1, 1 / np.bincount(labels, minlength=NUM_CLASSES)):
        guess = np.argmax(votes * weights, -1)
        matrix = metrics.confusion_matrix(truth, guess, num_classes=NUM_CLASSES)
        assert metrics.mean_iou(matrix) <= 0.2


def test_every_class_covers_a_good_part_of_the_pictures():
    labels = np.concatenate([draw(seed)[1].ravel() for seed in range(150)])
    shares = np.bincount(labels[labels != IGNORE_LABEL], minlength=NUM_CLASSES) / len(labels)
    assert len(shares) == NUM_CLASSES == 6
    assert shares[1:].min() > 0.05
    assert 0.3 < shares[0] < 0.6


def test_a_band_that_does_not_count_runs_between_any_two_classes():
    for seed in range(20):
        labels = draw(seed)[1]
        for a, b in ((labels[1:], labels[:-1]), (labels[:, 1:], labels[:, :-1])):
            assert ((a == b) | (a == IGNORE_LABEL) | (b == IGNORE_LABEL)).all()
        assert 0.02 < (labels == IGNORE_LABEL).mean() < 0.25


def test_drawing_is_a_function_of_the_seed():
    np.testing.assert_array_equal(draw(3)[0], draw(3)[0])
    assert (draw(3)[0] != draw(4)[0]).mean() > 0.9
    image, labels = draw(0, size=97)
    assert image.shape == (97, 97, 3) and labels.shape == (97, 97)


def test_a_drawn_folder_goes_through_the_builder(tmp_path):
    scenes.write_scenes(tmp_path / "scenes", **DRAW)
    dataset = open_dataset(tmp_path / "scenes", ("train", "val"))
    assert dataset.class_names == scenes.CLASS_NAMES
    assert [len(dataset.splits[split]) for split in ("train", "val")] == [3, 2]
    image, labels = scenes.draw_scene(np.random.default_rng((0, 1, 1)), size=64)
    record = dataset.splits["val"][1]
    np.testing.assert_array_equal(record["labels"], labels)
    assert np.abs(record["image"] - image.astype(float)).mean() < 6  # JPEG


def test_the_same_set_is_not_drawn_again_and_another_replaces_it(tmp_path):
    root = tmp_path / "scenes"
    scenes.write_scenes(root, **DRAW)
    before = {p: p.stat().st_mtime_ns for p in root.rglob("*")}
    scenes.write_scenes(root, **DRAW)
    assert {p: p.stat().st_mtime_ns for p in root.rglob("*")} == before
    scenes.write_scenes(root, **{**DRAW, "num_train": 1})
    assert len(list((root / "JPEGImages").iterdir())) == 3
    assert sorted(p.name for p in tmp_path.iterdir()) == ["scenes", "scenes.lock"]


def test_a_folder_of_other_files_is_not_touched(tmp_path):
    photograph = tmp_path / "mine.jpg"
    Image.new("RGB", (4, 4)).save(photograph)
    with pytest.raises(UserError, match="holds other things"):
        scenes.write_scenes(tmp_path, **DRAW)
    assert photograph.is_file()
