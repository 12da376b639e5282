"""Photographs and masks that cannot be used: named, and left out where that is asked for."""

import shutil

import numpy as np
import pytest
from drawn_folder import draw_folder, fault, open_dataset, png, write_mask
from PIL import Image
from runs_with_faults import run

from deeplab_jax import workdir
from deeplab_jax.data import builders, images, loader
from deeplab_jax.types import UserError


@pytest.fixture
def root(tmp_path):
    return draw_folder(tmp_path / "data")


def photograph(root):
    return root / "JPEGImages" / "a.jpg"


def mask(root):
    return root / "SegmentationClass" / "a.png"


def corrupt(root):
    path = photograph(root)
    path.write_bytes(path.read_bytes()[:200])
    return path


def lose_mask(root):
    mask(root).unlink()
    return mask(root)


def shrink_mask(root):
    write_mask(mask(root), np.zeros((5, 5)))
    return mask(root)


def label_77(root):
    write_mask(mask(root), np.full((24, 30), 77))
    return mask(root)


def rgb_mask(root):
    Image.new("RGB", (30, 24), (200, 0, 0)).save(mask(root))
    return mask(root)


def bomb(root):
    """A PNG of a few bytes that promises 40,000 x 40,000 pixels."""
    photograph(root).write_bytes(png(40_000, 40_000, 8, 2, b"\0" * 1000))
    return photograph(root)


FAULTS = [corrupt, lose_mask, shrink_mask, label_77, rgb_mask, bomb]


@pytest.mark.parametrize("spoil", FAULTS)
def test_a_bad_file_is_named_counted_and_left_out_where_asked_for(spoil, root, capsys):
    path = spoil(root)
    told = fault(root)
    assert str(path) in told and "\n" not in told and told.endswith((".", "?", ")."))
    source = open_dataset(root, bad_data="skip").splits["train"]
    assert [source[i]["name"] for i in range(len(source))] == ["c", "b"]
    told = capsys.readouterr().err
    assert f"skipped: {path}" in told
    assert "train: 1 of 3 skipped as bad" in told


@pytest.mark.slow
@pytest.mark.parametrize("spoil", [corrupt, lose_mask])
def test_a_run_ends_at_a_bad_file_or_goes_on_without_it_as_told(spoil, root):
    folder, name = root.parent, str(spoil(root).relative_to(root.parent))
    options = ("run", "--num-steps", 2)
    ended = run(folder, *options, status=2)
    assert name in ended
    assert "Traceback" not in ended
    told = run(folder, *options, "--data.bad-data", "skip")
    assert f"skipped: {name}" in told
    assert "train: 1 of 3 skipped as bad" in told
    assert [r["step"] for r in workdir.read_metrics(folder / "run") if "loss" in r] == [1, 2]


def test_what_was_left_out_is_counted_at_each_opening_and_used_only_where_asked_for(root, capsys):
    path = corrupt(root)
    for _ in range(2):
        open_dataset(root, bad_data="skip")
        assert "train: 1 of 3 skipped as bad" in capsys.readouterr().err
    assert str(path) in fault(root)


def test_a_split_of_bad_files_alone_is_refused(root):
    for path in (root / "JPEGImages").iterdir():
        path.write_bytes(b"no picture")
    with pytest.raises(UserError, match="faults found: 3"):
        open_dataset(root, bad_data="skip")


def test_a_photograph_to_predict_is_refused_by_its_size(root):
    with pytest.raises(UserError, match=rf"a.jpg has more than {images.MAX_PIXELS} pixels"):
        images.read(bomb(root))


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
