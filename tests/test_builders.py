import io
import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from deeplab_jax.data import builders, layouts
from deeplab_jax.types import UserError

NAMES = ("ground", "cat", "dog")
SIZE = (24, 30)


def write_mask(path: Path, labels, palette=True):
    picture = Image.fromarray(np.asarray(labels, np.uint8))
    if palette:
        picture.putpalette(np.random.default_rng(0).integers(0, 256, 768, np.uint8).tobytes())
    picture.save(path)


def write_pair(root: Path, name: str, seed: int):
    rng = np.random.default_rng(seed)
    image = np.kron(rng.integers(0, 256, (6, 10, 3), np.uint8), np.ones((4, 3, 1), np.uint8))
    Image.fromarray(image).save(root / "JPEGImages" / f"{name}.jpg", quality=95)
    labels = rng.choice([0, 1, 2, 255], SIZE)
    write_mask(root / "SegmentationClass" / f"{name}.png", labels)
    return labels


@pytest.fixture
def root(tmp_path):
    """Three photographs for training and one for validation."""
    root = tmp_path / "pets"
    for folder in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (root / folder).mkdir(parents=True)
    for seed, name in enumerate("abcd"):
        write_pair(root, name, seed)
    (root / "ImageSets/Segmentation/train.txt").write_text("c\na\nb\n")
    (root / "ImageSets/Segmentation/val.txt").write_text("d\n")
    (root / "labels.txt").write_text("0 ground\n1 cat\n2 dog\n255 void\n")
    return root


def open_dataset(root: Path, splits=("train",)):
    return builders.open_dataset(root, prepared_dir=root.parent / "prepared", splits=splits)


def prepared(root: Path) -> list[str]:
    return sorted(p.name for p in (root.parent / "prepared").glob("*/*") if p.is_dir())


def fault(root: Path, splits=("train",)) -> str:
    """What the user reads; nothing half prepared stays on disk."""
    before = prepared(root)
    with pytest.raises(UserError) as raised:
        open_dataset(root, splits)
    assert prepared(root) == before
    return str(raised.value)


def test_photographs_and_masks_come_back_in_the_order_of_the_list(root):
    dataset = open_dataset(root, ("train", "val"))
    source = dataset.splits["train"]
    assert dataset.class_names == NAMES
    assert dataset.name == "pets"
    assert [source[i]["name"] for i in range(len(source))] == ["c", "a", "b"]
    for i, name in enumerate("cab"):
        record = source[i]
        truth = np.asarray(Image.open(root / "SegmentationClass" / f"{name}.png"))
        photograph = np.asarray(Image.open(root / "JPEGImages" / f"{name}.jpg")).astype(int)
        np.testing.assert_array_equal(record["labels"], truth)
        assert record["image"].dtype == record["labels"].dtype == np.uint8
        # Two JPEG decoders may differ by 2 grey levels.
        assert np.abs(record["image"] - photograph).max() <= 2


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
    assert second.fingerprint != first.fingerprint
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


def test_changing_the_list_or_the_class_names_changes_the_fingerprint(root):
    fingerprints = {open_dataset(root).fingerprint}
    (root / "ImageSets/Segmentation/train.txt").write_text("a\nc\nb\n")
    fingerprints.add(open_dataset(root).fingerprint)
    (root / "labels.txt").write_text("ground\ncat\nwolf\n")
    fingerprints.add(open_dataset(root).fingerprint)
    assert len(fingerprints) == 3


def test_a_fault_leaves_the_earlier_state_prepared(root):
    open_dataset(root)
    before = prepared(root)
    (root / "JPEGImages" / "a.jpg").write_bytes(b"no picture")
    fault(root)
    assert prepared(root) == before


def test_place_and_size_are_printed(root, capsys):
    path = open_dataset(root).splits["train"].path
    captured = capsys.readouterr()
    assert f"train: {path} (" in captured.err
    assert captured.err.endswith(" MB)\n")
    assert captured.out == ""


def test_class_names_may_stand_one_a_line(root):
    (root / "labels.txt").write_text("ground\nblack cat\ndog\n")
    assert open_dataset(root).class_names == ("ground", "black cat", "dog")


def test_the_voc_devkit_needs_no_names(root, tmp_path):
    devkit = tmp_path / "VOCdevkit" / "VOC2012"
    devkit.parent.mkdir()
    root.rename(devkit)
    (devkit / "labels.txt").unlink()
    (devkit / "Annotations").mkdir()
    for place in (tmp_path, devkit.parent, devkit):
        names = open_dataset(place).class_names
        assert len(names) == 21
        assert names[20] == "tvmonitor"


def test_a_list_may_name_photographs_and_masks(root):
    lines = "/JPEGImages/b.jpg /SegmentationClass/b.png\n"
    (root / "ImageSets/Segmentation/train.txt").write_text(lines)
    assert open_dataset(root).splits["train"][0]["name"] == "b"


@pytest.mark.parametrize("mode", ["L", "RGBA", "CMYK", "P"])
def test_photographs_of_other_kinds_become_rgb(root, mode):
    path = root / "JPEGImages" / "a.jpg"
    picture = Image.open(path).convert(mode)
    picture.save(path, format="JPEG" if mode in ("L", "CMYK") else "PNG")
    expected = np.asarray(Image.open(path).convert("RGB"))
    np.testing.assert_array_equal(open_dataset(root).splits["train"][1]["image"], expected)


def test_a_photograph_that_lies_on_its_side_is_turned(root):
    path = root / "JPEGImages" / "a.jpg"
    upright = np.asarray(Image.open(path))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise by whoever shows it
    Image.fromarray(np.rot90(upright)).save(path, quality=100, subsampling=0, exif=exif)
    image = open_dataset(root).splits["train"][1]["image"]
    assert np.abs(image.astype(int) - upright).mean() < 2


@pytest.mark.parametrize("palette", [True, False])
def test_opencv_and_pillow_decode_the_same_pixels(root, monkeypatch, palette):
    image_feature = pytest.importorskip("tensorflow_datasets.core.features.image_feature")
    pytest.importorskip("cv2")
    labels = np.random.default_rng(0).choice([0, 1, 2, 255], SIZE)
    write_mask(root / "SegmentationClass" / "a.png", labels, palette=palette)
    photograph = np.random.default_rng(0).integers(0, 256, (*SIZE, 3), np.uint8)
    (root / "JPEGImages" / "a.jpg").unlink()
    Image.fromarray(photograph).save(root / "JPEGImages" / "a.png")
    source = open_dataset(root).splits["train"]
    with_opencv = source[1]
    monkeypatch.setattr(image_feature, "cv2", None)
    for record in (with_opencv, source[1]):
        np.testing.assert_array_equal(record["labels"], labels)
        np.testing.assert_array_equal(record["image"], photograph)


def test_two_processes_that_start_together_build_once(root):
    code = (
        "import sys; from pathlib import Path; from deeplab_jax.data import builders\n"
        "root = Path(sys.argv[1]); sys.stdin.readline()\n"
        "d = builders.open_dataset(root, prepared_dir=root.parent / 'prepared', splits=['train'])\n"
        "print(len(d.splits['train']))"
    )
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    arguments = [sys.executable, "-c", code, str(root)]
    processes = [subprocess.Popen(arguments, text=True, **pipes) for _ in range(2)]
    for process in processes:
        process.stdin.write("go\n")
        process.stdin.flush()
    outputs = [process.communicate(timeout=60) for process in processes]
    assert [out for out, _ in outputs] == ["3\n", "3\n"]
    assert sum("100%" in err for _, err in outputs) == 1
    assert len(prepared(root)) == 1


def test_what_a_killed_process_left_is_cleared_away(root):
    path = open_dataset(root).splits["train"].path
    path.rename(path.with_name(f"{path.name}.unfinished"))
    assert len(open_dataset(root).splits["train"]) == 3
    assert prepared(root) == [path.name]


# Other layouts, and masks of colours or raw ids.


def test_two_folders_are_read_by_name(root, tmp_path):
    for name in "ba":
        move_pair(root, name, tmp_path / "two" / "images/train", tmp_path / "two" / "masks/train")
    (tmp_path / "two" / "labels.txt").write_text("ground\ncat\ndog\n")
    source = open_dataset(tmp_path / "two").splits["train"]
    assert [source[i]["name"] for i in range(len(source))] == ["a", "b"]
    (tmp_path / "two/masks/train/b.png").unlink()
    assert "masks/train/b.png is missing" in fault(tmp_path / "two")


@pytest.mark.parametrize("title", ["", "photograph,mask\n"])
def test_a_table_of_pairs_is_read_in_its_order(root, title):
    (root / "ImageSets/Segmentation/train.txt").rename(root / "ids")
    (root / "ImageSets/Segmentation/val.txt").unlink()
    rows = [f"JPEGImages/{name}.jpg, SegmentationClass/{name}.png\n" for name in "cb"]
    (root / "mine.csv").write_text(title + "".join(rows))
    source = open_dataset(root, ["mine"]).splits["mine"]
    assert [source[i]["name"] for i in range(len(source))] == ["c", "b"]
    (root / "mine.csv").write_text("JPEGImages/a.jpg\n")
    assert "has 1 columns in line 1" in fault(root, ["mine"])


def move_pair(root: Path, name: str, images: Path, masks: Path):
    for folder in (images, masks):
        folder.mkdir(parents=True, exist_ok=True)
    (root / "JPEGImages" / f"{name}.jpg").rename(images / f"{name}.jpg")
    (root / "SegmentationClass" / f"{name}.png").rename(masks / f"{name}.png")


COLOURS = "# the ground\n0 0 0  0\n200 10 3  1\n* 255\n"


def test_masks_of_colours_become_class_ids_as_the_mapping_says(root):
    truth = np.random.default_rng(0).choice([0, 1, 255], SIZE)
    colours = np.zeros((*SIZE, 3), np.uint8)
    colours[truth == 1] = (200, 10, 3)
    colours[truth == 255] = (9, 9, 9)
    Image.fromarray(colours).save(root / "SegmentationClass" / "a.png")
    (root / "ImageSets/Segmentation/train.txt").write_text("a\n")
    (root / "mapping.txt").write_text(COLOURS)
    np.testing.assert_array_equal(open_dataset(root).splits["train"][0]["labels"], truth)
    (root / "mapping.txt").write_text(COLOURS.replace("* 255", ""))
    assert "a.png holds colour 9 9 9" in fault(root)


def test_raw_ids_of_16_bits_become_class_ids_as_the_mapping_says(root):
    raw = np.random.default_rng(0).choice([7, 459], SIZE).astype(np.uint16)
    Image.fromarray(raw).save(root / "SegmentationClass" / "a.png")
    (root / "ImageSets/Segmentation/train.txt").write_text("a\n")
    (root / "mapping.txt").write_text("7 2\n459 0\n")
    np.testing.assert_array_equal(
        open_dataset(root).splits["train"][0]["labels"], np.where(raw == 7, 2, 0)
    )
    (root / "mapping.txt").write_text("7 1\n459 0\n")  # another meaning, another prepared set
    assert open_dataset(root).splits["train"][0]["labels"].max() == 1


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("0 0 0 3\n", "line 1: '3' is no class id"),
        ("0 0 256 1\n", "line 1: '0 0 256' is neither a colour"),
        ("0 0 1\n", "line 1: '0 0' is neither"),
        ("0 0 0 0\n7 1\n", "either colours (red green blue) or raw ids"),
        ("", "either colours (red green blue) or raw ids"),
    ],
)
def test_an_odd_mapping_is_refused(root, text, part):
    (root / "mapping.txt").write_text(text)
    message = fault(root)
    assert str(root / "mapping.txt") in message
    assert part in message


# Faults of the user's. Every message names the file and says what to do.


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
    assert f"{path} is empty" in fault(root)
    path.write_text("a\nb\na\n")
    assert f"{root / 'JPEGImages' / 'a.jpg'} stands twice in the split train" in fault(root)


def save(path: Path, array, **options):
    Image.fromarray(array).save(path, **options)


def truncate(path: Path):
    path.write_bytes(path.read_bytes()[:-40])


RGB = np.zeros((*SIZE, 3), np.uint8)
DARK = np.zeros(SIZE, np.uint8)
DEEP = np.zeros(SIZE, np.uint16)

FAULTS = {
    "no photograph": ("a.jpg", Path.unlink, "is missing"),
    "truncated photograph": ("a.jpg", truncate, "is damaged"),
    "empty photograph": ("a.jpg", lambda path: path.write_bytes(b""), "is damaged or no picture"),
    "16-bit photograph": ("a.jpg", lambda path: save(path, DEEP, format="PNG"), "more than 8 bits"),
    "no mask": ("a.png", Path.unlink, "is missing"),
    "truncated mask": ("a.png", truncate, "is damaged"),
    "colour mask": ("a.png", lambda path: save(path, RGB), "a colour picture (RGB)"),
    "16-bit mask": ("a.png", lambda path: save(path, DEEP), "a picture of 16 bits"),
    "JPEG mask": ("a.png", lambda path: save(path, DARK, format="JPEG"), "is a JPEG picture"),
    "mask of another size": ("a.png", lambda path: save(path, DARK[:20]), "is 30x20 pixels"),
    "strange labels": ("a.png", lambda path: save(path, DARK + np.uint8(7)), "the label 7"),
}


@pytest.mark.parametrize("case", FAULTS)
def test_a_faulty_file_is_named(root, case):
    name, spoil, part = FAULTS[case]
    path = next(root.glob(f"*/{name}"))
    spoil(path)
    message = fault(root)
    assert str(path) in message
    assert part in message
    assert message.count("\n") == 0
    assert message.endswith((".", "?", ")."))


def test_the_first_fault_is_told_and_the_others_counted(root):
    for name in "abc":
        (root / "SegmentationClass" / f"{name}.png").unlink()
    message = fault(root)
    assert "c.png" in message
    assert "faults in all: 3" in message


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every file")
def test_a_file_that_may_not_be_read_is_named(root):
    path = root / "JPEGImages" / "a.jpg"
    path.chmod(0)
    assert f"{path} cannot be read" in fault(root)


def test_labels_that_are_not_text_are_refused(root):
    picture = io.BytesIO()
    Image.fromarray(RGB).save(picture, format="PNG")
    (root / "labels.txt").write_bytes(picture.getvalue())
    assert "is not text" in fault(root)


@pytest.mark.data
@pytest.mark.parametrize(
    ("name", "classes", "train", "val"),
    [("camvid", 11, 367, 101), ("voc2012_animals", 21, 441, 150)],
)
def test_real_photographs_are_read_to_the_pixel(tmp_path, name, classes, train, val):
    if "DEEPLAB_JAX_DATA" not in os.environ:
        pytest.skip("DEEPLAB_JAX_DATA names no folder of real photographs")
    root = Path(os.environ["DEEPLAB_JAX_DATA"]) / name
    dataset = builders.open_dataset(root, prepared_dir=tmp_path, splits=("train", "val"))
    assert len(dataset.class_names) == classes
    assert (len(dataset.splits["train"]), len(dataset.splits["val"])) == (train, val)
    pairs = layouts.read_split(root, layouts.VOC, "val")
    for i, pair in enumerate(pairs):
        record = dataset.splits["val"][i]
        np.testing.assert_array_equal(record["labels"], np.asarray(Image.open(pair.mask)))
        photograph = np.asarray(Image.open(pair.photograph)).astype(int)
        difference = np.abs(record["image"] - photograph)
        assert difference.max() <= 2  # two JPEG decoders
        assert difference.mean() < 0.1
