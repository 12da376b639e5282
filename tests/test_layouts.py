from pathlib import Path

import numpy as np
import pytest
from drawn_folder import SIZE, SMALL, fault, open_dataset, write_mask, write_photograph, write_text
from PIL import Image


@pytest.mark.parametrize("title", ["", "photograph,mask\n"])
def test_a_table_of_pairs_is_read_in_its_order(root, title):
    (root / "ImageSets/Segmentation/train.txt").rename(root / "ids")
    (root / "ImageSets/Segmentation/val.txt").unlink()
    rows = [f"JPEGImages/{name}.jpg, SegmentationClass/{name}.png\n" for name in "cb"]
    (root / "mine.csv").write_text(title + "".join(rows))
    source = open_dataset(root, ["mine"]).splits["mine"]
    assert [source[i]["name"] for i in range(len(source))] == ["c", "b"]
    (root / "mine.csv").write_text("JPEGImages/a.jpg\n")
    assert "has 1 columns in row 1" in fault(root, ["mine"])


def names_of(root: Path, split: str = "train") -> list[str]:
    source = open_dataset(root, [split]).splits[split]
    return [source[i]["name"] for i in range(len(source))]


def test_photographs_of_one_file_name_are_told_apart_by_their_folders(tmp_path):
    two = tmp_path / "two"
    for city in ("york", "leeds"):
        write_photograph(two / f"images/train/{city}/one.jpg")
        write_mask(two / f"masks/train/{city}/one.png", np.zeros(SMALL))
    write_text(two / "labels.txt", "ground\ncat\ndog\n")
    assert names_of(two) == ["leeds/one", "york/one"]
    rows = "".join(f"images/train/{c}/one.jpg,masks/train/{c}/one.png\n" for c in ("york", "leeds"))
    (two / "images").rename(two / "photographs")
    (two / "both.csv").write_text(rows.replace("images", "photographs"))
    assert names_of(two, "both") == ["photographs/train/york/one", "photographs/train/leeds/one"]


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
    assert "a.png holds the colour 9 9 9" in fault(root)


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
        ("0 0 0 0\n1 1 1 1\n0 0 0 1\n", "line 3: '0 0 0' has two class ids"),
    ],
)
def test_an_odd_mapping_is_refused(root, text, part):
    (root / "mapping.txt").write_text(text)
    message = fault(root)
    assert str(root / "mapping.txt") in message
    assert part in message


def test_a_split_that_tfds_could_not_name_is_refused(root):
    lists = root / "ImageSets/Segmentation"
    for name in ("my train", "all"):
        (lists / f"{name}.txt").write_text("a\n")
        assert f"has a split {name!r}; rename it" in fault(root, [name])
