"""Faults of the user's: every message names the file and says what to do; bad photographs and masks
are left out where that is asked for."""

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from drawn_folder import SIZE, fault, open_dataset, png, write_mask
from PIL import Image
from runs_with_faults import run

from deeplab_jax import workdir
from deeplab_jax.data import builders, images, loader
from deeplab_jax.types import UserError

PHOTOGRAPH, MASK = "JPEGImages/a.jpg", "SegmentationClass/a.png"
FAULTS = {
    "cut off": (PHOTOGRAPH, lambda path: path.write_bytes(path.read_bytes()[:200])),
    "no mask": (MASK, Path.unlink),
    "another size": (MASK, lambda path: write_mask(path, np.zeros((5, 5)))),
    "label 77": (MASK, lambda path: write_mask(path, np.full(SIZE, 77))),
    "colours": (MASK, lambda path: Image.new("RGB", SIZE[::-1], (200, 0, 0)).save(path)),
    "a bomb": (PHOTOGRAPH, lambda path: path.write_bytes(png(40_000, 40_000, 8, 2, bytes(1000)))),
}
"""File, and what is done to it; a bomb promises 40,000 x 40,000 pixels in a few bytes."""


def spoil(root, kind):
    name, damage = FAULTS[kind]
    damage(root / name)
    return root / name


@pytest.mark.parametrize("kind", FAULTS)
def test_a_bad_file_is_named_counted_and_left_out_where_asked_for(kind, root, capsys):
    path = spoil(root, kind)
    told = fault(root)
    assert str(path) in told and "\n" not in told and told.endswith((".", "?", ")."))
    for words in (f"skipped: {path}", ""):  # that is told where the split is prepared
        source = open_dataset(root, bad_data="skip").splits["train"]
        assert [source[i]["name"] for i in range(len(source))] == ["c", "b"]
        told = capsys.readouterr().err
        assert words in told and "train: 1 of 3 skipped as bad" in told
    assert str(path) in fault(root)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["cut off", "no mask"])
def test_a_run_ends_at_a_bad_file_or_goes_on_without_it_as_told(kind, root):
    folder, name = root.parent, str(spoil(root, kind).relative_to(root.parent))
    options = ("run", "--num-steps", 2)
    ended = run(folder, *options, status=2)
    assert name in ended
    assert "Traceback" not in ended
    told = run(folder, *options, "--data.bad-data", "skip")
    assert f"skipped: {name}" in told
    assert "train: 1 of 3 skipped as bad" in told
    assert [r["step"] for r in workdir.read_metrics(folder / "run") if "loss" in r] == [1, 2]


@pytest.mark.parametrize("bad_data", ["raise", "skip"])
def test_of_bad_files_alone_the_first_is_told_and_the_others_counted(root, bad_data):
    for name in "abc":
        (root / "SegmentationClass" / f"{name}.png").unlink()
    with pytest.raises(UserError, match=r"c\.png.*faults found: 3"):
        open_dataset(root, bad_data=bad_data)


def test_a_photograph_to_predict_is_refused_by_its_size(root):
    with pytest.raises(UserError, match=rf"a.jpg has more than {images.MAX_PIXELS} pixels"):
        images.read(spoil(root, "a bomb"))


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_a_damaged_prepared_split_is_named_by_its_path(root, tmp_path, workers):
    prepared = open_dataset(root).splits["train"].path
    rotten = shutil.copytree(prepared, tmp_path / "rotten")
    (records,) = rotten.glob("*.array_record*")
    data = bytearray(records.read_bytes())
    data[65_600:] = b"\0" * len(data[65_600:])
    records.write_bytes(data)
    options = {"seed": 0, "start": 0, "stop": 2, "batch_size": 2, "crop_size": 9}
    with pytest.raises(UserError, match="rotten is damaged .* prepares it again"):
        list(loader.batches(builders.Source(rotten, "train"), **options, workers=workers))


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
        ("0 ground\n2 cat\n7 dog\n", "`0 0`, `2 1`, `7 2` and `* 255`"),
        ("0 ground\n0 cat\n", "the ids 0, 0"),
        ("0 ground\ncat\n", "mixes"),
        ("0\n1\n", "mixes"),
        ("\n", "names 0 classes"),
        ("sky\nroad\nsky\n", "labels.txt names two classes 'sky'"),
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


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every file")
def test_a_file_that_may_not_be_read_is_named(root):
    path = root / "JPEGImages" / "a.jpg"
    path.chmod(0)
    assert f"{path} cannot be read" in fault(root)


def test_labels_that_are_not_text_are_refused(root):
    (root / "labels.txt").write_bytes((root / "SegmentationClass/a.png").read_bytes())
    assert "is not text" in fault(root)
