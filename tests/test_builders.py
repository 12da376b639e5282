import pickle
import subprocess
import sys

import numpy as np
import pytest
import tensorflow_datasets as tfds
from drawn_folder import NAMES, SIZE, fault, open_dataset, opened, prepared, write_mask
from drawn_voc import draw_voc
from PIL import Image

from deeplab_jax.data import builders, folders
from deeplab_jax.data.folders import Place
from deeplab_jax.types import UserError


def test_photographs_and_masks_come_back_in_the_order_of_the_list(root):
    dataset = open_dataset(root, ("train", "val"))
    source = dataset.splits["train"]
    assert dataset.class_names == NAMES
    assert [source[i]["name"] for i in range(len(source))] == ["c", "a", "b"]
    for i, name in enumerate("cab"):
        record = source[i]
        truth = np.asarray(Image.open(root / "SegmentationClass" / f"{name}.png"))
        photograph = np.asarray(Image.open(root / "JPEGImages" / f"{name}.jpg"))
        np.testing.assert_array_equal(record["labels"], truth)
        assert record["image"].dtype == record["labels"].dtype == np.uint8
        np.testing.assert_array_equal(record["image"], photograph)


def test_a_source_can_be_sent_to_another_process(root):
    source = open_dataset(root).splits["train"]
    copy = pickle.loads(pickle.dumps(source))
    np.testing.assert_array_equal(copy[1]["image"], source[1]["image"])


def test_a_prepared_split_can_be_read_by_tfds_alone(root):
    path = open_dataset(root).splits["train"].path
    record = tfds.builder_from_directory(path).as_data_source(split="train")[0]
    assert (record["height"], record["width"]) == SIZE


def test_a_second_opening_builds_nothing(root):
    path = open_dataset(root).splits["train"].path
    files = {p.name: p.stat().st_mtime_ns for p in path.iterdir()}
    again = open_dataset(root)
    assert {p.name: p.stat().st_mtime_ns for p in again.splits["train"].path.iterdir()} == files


def test_a_corrected_mask_is_seen_at_the_next_opening(root):
    first = open_dataset(root, ("train", "val"))
    corrected = np.ones(SIZE, np.uint8)
    write_mask(root / "SegmentationClass" / "a.png", corrected)
    second = open_dataset(root, ("train", "val"))
    np.testing.assert_array_equal(second.splits["train"][1]["labels"], corrected)
    assert second.splits["train"] != first.splits["train"]
    assert second.splits["val"] == first.splits["val"]


def test_older_states_are_removed_unless_they_are_read(root):
    first = open_dataset(root)
    write_mask(root / "SegmentationClass" / "a.png", np.zeros(SIZE))
    second = open_dataset(root)
    assert first.splits["train"][1]["labels"].any()
    assert len(prepared(root)) == 2
    del first, second
    write_mask(root / "SegmentationClass" / "a.png", np.ones(SIZE))
    third = open_dataset(root)
    assert prepared(root) == [third.splits["train"].path.name]


def test_changing_the_list_or_the_class_names_changes_what_is_prepared(root):
    paths = {open_dataset(root).splits["train"].path}
    (root / "ImageSets/Segmentation/train.txt").write_text("a\nc\nb\n")
    paths.add(open_dataset(root).splits["train"].path)
    (root / "labels.txt").write_text("ground\ncat\nwolf\n")
    paths.add(open_dataset(root).splits["train"].path)
    assert len(paths) == 3


def test_place_and_size_are_printed(root, capsys):
    path = open_dataset(root).splits["train"].path
    captured = capsys.readouterr()
    assert f"train: {path} (" in captured.err
    assert captured.err.endswith(" MB)\n")
    assert captured.out == ""


@pytest.mark.parametrize(
    "text", ["# ours\n0: ground\n2: dog\n1: cat\n", "# ours\nground\ncat\ndog\n"]
)
def test_class_names_may_have_colons_and_remarks(root, text):
    (root / "labels.txt").write_text(text)
    assert open_dataset(root).class_names == ("ground", "cat", "dog")


def test_the_voc_devkit_needs_no_names(tmp_path):
    root = draw_voc(tmp_path / "voc")
    for place in (root, root / "VOCdevkit", root / "VOCdevkit/VOC2012"):
        names = open_dataset(place).class_names
        assert len(names) == 21
        assert names[20] == "tvmonitor"


def test_a_mask_on_its_side_is_told_beside_a_photograph_that_is_turned(root):
    mask = root / "SegmentationClass" / "a.png"
    Image.fromarray(np.rot90(np.asarray(Image.open(mask)))).save(mask)
    assert "if EXIF turns it, turn the mask, too" in fault(root)


def test_two_processes_that_start_together_build_once(root):
    code = (
        "import sys; from pathlib import Path; from deeplab_jax.data import builders, folders\n"
        "builders.tqdm = lambda pairs, **_: (print('builds', file=sys.stderr), pairs)[1]\n"
        "root = Path(sys.argv[1]); sys.stdin.readline()\n"
        "d = builders.open_dataset(folders.Place(root, root.parent / 'prepared'), ['train'])\n"
        "print(len(d.splits['train']))"
    )
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    arguments = [sys.executable, "-c", code, str(root)]
    processes = [subprocess.Popen(arguments, text=True, **pipes) for _ in range(2)]
    for process in processes:
        process.stdin.write("go\n")
        process.stdin.flush()
    outputs = [process.communicate(timeout=300) for process in processes]
    assert [out for out, _ in outputs] == ["3\n", "3\n"]
    assert sum("builds" in err for _, err in outputs) == 1
    assert len(prepared(root)) == 1


def test_what_a_killed_process_left_is_cleared_away(root):
    path = open_dataset(root).splits["train"].path
    path.rename(path.with_name(f"{path.name}.unfinished"))
    assert len(open_dataset(root).splits["train"]) == 3
    assert prepared(root) == [path.name]


@pytest.mark.data
@pytest.mark.parametrize(
    ("name", "classes", "train", "val"),
    [("camvid", 11, 367, 101), ("voc2012_animals", 21, 441, 150)],
)
def test_real_photographs_are_read_to_the_pixel(tmp_path, data_folder, name, classes, train, val):
    root = data_folder / name
    dataset = builders.open_dataset(Place(root, tmp_path), ("train", "val"))
    assert len(dataset.class_names) == classes
    assert (len(dataset.splits["train"]), len(dataset.splits["val"])) == (train, val)
    pairs = folders.read_split(opened(root), "val")
    for i, pair in enumerate(pairs):
        record = dataset.splits["val"][i]
        np.testing.assert_array_equal(record["labels"], np.asarray(Image.open(pair.mask)))
        photograph = np.asarray(Image.open(pair.photograph))
        np.testing.assert_array_equal(record["image"], photograph)


@pytest.mark.parametrize("folder", ["file", "file/below"])
def test_a_path_that_cannot_be_written_is_named(root, folder):
    (root / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        builders.open_dataset(Place(root, root / folder), ("train",))
