"""Nothing is left out, chosen or renumbered without a word."""

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from drawn_folder import (
    SMALL,
    open_dataset,
    opened,
    shade_of,
    turned,
    write_mask,
    write_photograph,
    write_text,
)
from PIL import Image

from deeplab_jax.data import builders, checks, folders, images, masks
from deeplab_jax.types import VOC_CLASS_NAMES, UserError

H, W = SMALL
LABELS = np.kron([[0, 1, 2], [2, 0, 1]], np.ones((6, 6), int))[:, :W].astype(np.uint8)


def mask(path: Path, labels=LABELS, palette=None, **options):
    write_mask(path, labels, palette, **options)


def names(root: Path, text="background\nred\nblue\n"):
    write_text(root / "labels.txt", text)
    return root


def voc_list(root: Path, split: str, line: str):
    write_text(root / f"ImageSets/Segmentation/{split}.txt", f"{line}\n")


def pair_of(root: Path, name="a"):
    """A photograph and its mask in folders of a split `train`."""
    write_photograph(root / f"images/train/{name}.jpg")
    mask(root / f"masks/train/{name}.png")
    return root


def left_out(root: Path, splits=("train",), **reading) -> list[str]:
    found = folders.left_out(opened(root, **reading), splits)
    return [sentence.replace(f"{root}/", "") for sentence in found]


# Left out without a count.


@pytest.mark.parametrize("suffix", [".jfif", ".JPE", ".gif", ".ppm", ".jp2", ".avif", ".tga"])
def test_a_photograph_of_any_suffix_is_read_in_training_and_prediction(tmp_path, suffix):
    root = names(tmp_path / "set")
    write_photograph(root / f"images/train/a{suffix}")
    mask(root / "masks/train/a.png")
    record = open_dataset(root).splits["train"][0]
    (path,) = images.find([root / "images/train"])[0]
    np.testing.assert_array_equal(record["image"], images.read(path))
    assert abs(record["image"][..., 0].mean() - shade_of("a")) < 4
    assert left_out(root) == []


def test_whatever_lies_beside_photographs_and_masks_is_counted_and_named(tmp_path):
    root = names(tmp_path / "set")
    for name in "ab":
        pair_of(root, name)
    mask(root / "masks/train/c.png")  # without a photograph
    write_photograph(root / "images/d.jpg")  # beside the folders of the splits
    (root / "images/train/e.cr2").write_bytes(b"")
    (root / "images/train/f.CR2").write_bytes(b"")
    (root / "images/train/Thumbs.db").write_bytes(b"")
    (root / "images/train/._a.jpg").write_bytes(b"")
    (root / "report.pdf").write_bytes(b"")
    assert left_out(root) == [
        "images: 1 file is not used (1 .jpg), such as d.jpg",
        "images/train: 3 files are not used (2 .cr2, 1 .db), such as Thumbs.db",
        "masks/train: 1 file is not used (1 .png), such as c.png",
    ]
    report = checks.check_dataset(opened(root), sample=1)
    notes = [f.sentence for f in report.findings if "not used" in f.sentence]
    assert len(notes) == 3 and not any(f.is_fault for f in report.findings)


def test_photographs_to_predict_are_counted_with_what_lies_below(tmp_path):
    write_photograph(tmp_path / "p/a.jpg")
    write_photograph(tmp_path / "p/more/b.jpg")
    (tmp_path / "p/c.nef").write_bytes(b"")
    found, told = images.find([tmp_path / "p", tmp_path / "._d.jpg"])
    assert found == [tmp_path / "p/a.jpg"]
    assert told == [
        f"{tmp_path}/p: 2 files are not used (1 .nef, 1 .jpg), such as c.nef",
        f"{tmp_path}/._d.jpg is a hidden file and not used",
    ]


def test_a_hidden_folder_that_a_list_names_is_read_and_hidden_files_are_counted(tmp_path):
    root = names(tmp_path / "set")
    for city in ("york", "leeds"):
        write_photograph(root / f".cache/{city}/a.jpg")
        mask(root / f".cache/{city}/a.png")
    rows = [f".cache/{city}/a.jpg,.cache/{city}/a.png" for city in ("york", "leeds")]
    strays = ["x/._b.jpg,x/b.png", "x/.ipynb_checkpoints/c.jpg,x/c.png"]
    (root / "train.csv").write_text("\n".join([*rows, *strays]))
    pairs = folders.read_split(opened(root), "train")
    assert [pair.name for pair in pairs] == [".cache/york/a", ".cache/leeds/a"]
    assert "train lists 2 hidden files, such as x/._b.jpg" in left_out(root)


# Two candidates for the truth.


# A photograph, a mask that is not the truth, one that is; what both are called; the choice.
CANDIDATES = {
    "DRIVE": (
        "training/images/21_training.tif training/mask/21_training_mask.gif "
        "training/1st_manual/21_manual1.gif training/images/22_training.tif "
        "training/mask/22_training_mask.gif training/1st_manual/22_manual1.gif",
        *("mask and .*1st_manual", "1st_manual"),
    ),
    "HRF": (
        "images/01_dr.JPG mask/01_dr_mask.tif manual1/01_dr.tif",
        *("mask and .*manual1", "manual1"),
    ),
    "two known folders": (
        "images/train/a.jpg masks/train/a.png labels/train/a.png",
        *("masks and .*labels hold", "labels"),
    ),
    "two tails": (
        "train/a.jpg train_masks/a.png train_labels/a.png",
        *("train_labels and .*train_masks", "_labels"),
    ),
    "two endings": (
        "images/train/a.jpg masks/train/a_mask.png masks/train/a_gt.png",
        *("a_mask.png and .*a_gt.png", "_gt.png"),
    ),
    "two beside": (
        "train/a.jpg train/a_mask.png train/a_gt.png",
        *("a_mask.png and .*a_gt.png", "_gt.png"),
    ),
    "two suffixes": (
        "images/train/a.jpg masks/train/a.png masks/train/a.tif",
        *("a.png and .*a.tif have one name", ".tif"),
    ),
    "two of VOC": (
        "JPEGImages/a.jpg SegmentationClass/a.png SegmentationClassPNG/a.png",
        *("SegmentationClass and SegmentationClassPNG", "SegmentationClassPNG"),
    ),
}


def read_pairs(root: Path, **reading):
    folder = opened(root, **reading)
    return folder, folders.read_split(folder, next(iter(folder.splits)))


@pytest.mark.parametrize("kind", CANDIDATES)
def test_two_candidates_for_the_truth_are_a_question(tmp_path, kind):
    files, both, choice = CANDIDATES[kind]
    root = names(tmp_path / "set")
    for photograph, wrong, right in zip(*[iter(files.split())] * 3, strict=True):
        write_photograph(root / photograph)
        mask(root / wrong, LABELS * 0)
        mask(root / right)
    if kind == "two of VOC":
        voc_list(root, "train", "a")
    with pytest.raises(UserError, match=rf"{both}.*--data\.masks"):
        read_pairs(root)
    folder, pairs = read_pairs(root, masks=choice)
    for pair in pairs:
        np.testing.assert_array_equal(masks.read(pair.mask, masks.rules_of(folder)), LABELS)


def test_pictures_of_another_kind_beside_the_masks_are_no_candidates(tmp_path):
    root = names(tmp_path / "set")
    pair_of(root)
    write_photograph(root / "labels_rgb/train/a.png")  # colours
    mask(root / "depth/train/a.png")  # not named as masks are
    (root / "annotations").mkdir()
    (root / "annotations/a.xml").write_text("<annotation>")
    np.testing.assert_array_equal(open_dataset(root).splits["train"][0]["labels"], LABELS)
    assert left_out(root) == [
        "depth/train: 1 file is not used (1 .png), such as a.png",
        "labels_rgb/train: 1 file is not used (1 .png), such as a.png",
    ]


# Numbers in place of colours.


def optimised(path: Path, labels, colours):
    """What a lossless optimiser leaves: the colours in use alone, in a palette."""
    used = np.unique(labels)
    mask(path, np.searchsorted(used, labels), palette=np.asarray(colours)[used])


VOC = np.array([[128 * (i & 1), 64 * (i & 2), 32 * (i & 4)] for i in range(8)] * 32)
VOC[8:16] += [64, 0, 0]  # bit 3
VOC[255] = (224, 224, 192)
GREY = np.repeat(np.arange(256)[:, None], 3, 1)
OTHER = np.random.default_rng(0).permutation(256 * 256)[:256, None] // [256, 1, 1] % [256, 256, 1]


def read_masks(*pictures, class_names=VOC_CLASS_NAMES, colors=None):
    """Class ids of masks that are read one after another."""
    folder = folders.Folder(Path(), class_names, None, {}, class_colors=colors)
    rules = masks.rules_of(folder)
    return [masks.read(path, rules) for path in pictures]


@pytest.mark.parametrize("colours", [VOC, GREY], ids=["VOC's", "grey"])
def test_colours_decide_over_renumbered_palettes(tmp_path, colours):
    truth = np.array([0, 15, 255], np.uint8)[LABELS]
    optimised(tmp_path / "a.png", truth, colours)
    mask(tmp_path / "b.png", truth, palette=colours)
    assert np.unique(Image.open(tmp_path / "a.png")).tolist() == [0, 1, 2]
    for found in read_masks(tmp_path / "a.png", tmp_path / "b.png"):
        np.testing.assert_array_equal(found, truth)


def test_colours_that_labels_txt_names_decide_also_in_pictures_without_a_palette(tmp_path):
    root = names(tmp_path / "set", "0 sky #4682B4\n1 road #804080\n2 car #00008E\n")
    colours = np.array([(70, 130, 180), (128, 64, 128), (0, 0, 142)], np.uint8)
    for name, order in (("a", [0, 1, 2]), ("b", [2, 0, 1])):
        write_photograph(root / f"images/train/{name}.jpg")
        mask(root / f"masks/train/{name}.png", np.argsort(order)[LABELS], palette=colours[order])
    write_photograph(root / "images/train/c.jpg")
    Image.fromarray(colours[LABELS]).save(root / "masks/train/c.png")
    source = open_dataset(root).splits["train"]
    for i in range(3):
        np.testing.assert_array_equal(source[i]["labels"], LABELS)


def test_a_palette_of_known_and_unknown_colours_in_another_order_is_a_fault(tmp_path):
    optimised(tmp_path / "a.png", LABELS, [(0, 0, 0), (192, 128, 128), (1, 2, 3)])
    with pytest.raises(UserError, match="colour of class 15 as index 1 .* 1 2 3, which is of no"):
        read_masks(tmp_path / "a.png")


def test_grey_palettes_whose_values_are_no_class_ids_are_read_by_index(tmp_path):
    mask(tmp_path / "a.png", palette=GREY[::100])  # 0, 100 and 200 for 0, 1 and 2
    (found,) = read_masks(tmp_path / "a.png", class_names=("a", "b", "c"))
    np.testing.assert_array_equal(found, LABELS)


def test_a_colour_of_two_numbers_is_a_fault(tmp_path):
    mask(tmp_path / "a.png", LABELS % 2, palette=[(0, 0, 9), (9, 0, 0)])
    mask(tmp_path / "b.png", LABELS % 2 * 2, palette=[(0, 0, 9), (1, 1, 2), (9, 0, 0)])
    with pytest.raises(UserError, match="shows the colour 9 0 0 as 2, and .*a.png as 1"):
        read_masks(tmp_path / "a.png", tmp_path / "b.png", class_names=("a", "b", "c"))


def test_white_that_means_1_here_and_void_there_is_a_fault(tmp_path):
    """An optimiser makes one bit of a mask of 0 and 255."""
    mask(tmp_path / "a.png", np.array([0, 7, 255])[LABELS])
    Image.fromarray(LABELS % 2 > 0).save(tmp_path / "b.png")
    with pytest.raises(UserError, match="b.png shows white as 1, and .*a.png as 255; write map"):
        read_masks(tmp_path / "a.png", tmp_path / "b.png")
    assert len(read_masks(tmp_path / "b.png", tmp_path / "b.png")) == 2


def test_given_masks_are_read_by_the_same_rules(tmp_path):
    root = names(tmp_path / "set", "\n".join(VOC_CLASS_NAMES))
    for name in "ab":
        pair_of(root, name)
        optimised(tmp_path / f"given/{name}.png", np.array([0, 15, 255])[LABELS], VOC)
    given = folders.GivenMasks("train", tmp_path / "given")
    folder = replace(opened(root), given_masks=given)
    source = builders.open_dataset(folder, ["train"]).splits["train"]
    np.testing.assert_array_equal(source[0]["labels"], np.array([0, 15, 255])[LABELS])
    for i, name in enumerate("ab"):
        mask(tmp_path / f"given/{name}.png", LABELS % 2, palette=[(0, 0, 9), (9, i, 0)])
    with pytest.raises(UserError, match="index 1 of its palette .*; write them anew"):
        builders.open_dataset(folder, ["train"])


# One reader's rules.


@pytest.mark.parametrize("turn", range(1, 9))
@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_a_mask_is_turned_upright_as_its_photograph_is(tmp_path, turn, suffix):
    exif = turned(turn)
    Image.fromarray(np.repeat(LABELS[..., None], 3, -1)).save(tmp_path / "a.png", exif=exif)
    mask(tmp_path / f"m.{suffix}", exif=exif)
    (found,) = read_masks(tmp_path / f"m.{suffix}")
    np.testing.assert_array_equal(found, images.read(tmp_path / "a.png")[..., 0])


def test_an_animation_is_read_alike_from_file_and_record_and_is_no_mask(tmp_path):
    frames = [Image.new("RGB", (W, H), colour) for colour in ("red", "blue")]
    for name in ("a.png", "b.gif"):
        frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:])
        record = images.decode_record(images.to_record(tmp_path / name)[0])
        np.testing.assert_array_equal(record, images.read(tmp_path / name))
        np.testing.assert_array_equal(record[0, 0], (255, 0, 0))
        data = (tmp_path / name).read_bytes()
        told = checks.describe_unusual(tmp_path / name, data)
        assert "has 2 frames, of which the first is read" in told[-1]
        with pytest.raises(UserError, match="an animation of 2 frames; save the mask as one"):
            read_masks(tmp_path / name)


def test_masks_edited_in_place_change_what_a_run_compares_and_a_copy_does_not(tmp_path):
    """With as many bytes as before, and the time of before."""
    found = []
    for place, shift in (("one", 0), ("copy", 0), ("other", 1)):
        root = names(tmp_path / place / "set")
        write_photograph(root / "images/train/a.bmp")
        mask(root / "masks/train/a.bmp", (LABELS + shift) % 3)
        os.utime(root / "masks/train/a.bmp", (1, 1))
        found.append(open_dataset(root).identity)
    assert found[0] == found[1] != found[2]


# Names.


@pytest.mark.parametrize(
    "text", ["void\nroad\ncar\n", "0 unlabeled\n1 road\n2 car\n255 ignore\n", "VOID\nroad\ncar"]
)
def test_void_in_labels_txt_is_no_class_and_its_pixels_are_void(tmp_path, text):
    root = names(tmp_path / "set", text)
    write_photograph(root / "images/train/a.jpg")
    mask(root / "masks/train/a.png", np.array([0, 1, 2, 255])[np.minimum(LABELS, 3)])
    data = open_dataset(root)
    assert data.class_names == ("road", "car")
    np.testing.assert_array_equal(data.splits["train"][0]["labels"], np.array([255, 0, 1])[LABELS])
    (root / "mapping.txt").write_text("0 0\n1 1\n")
    with pytest.raises(UserError, match="has a line of void beside .*mapping.txt; take it out"):
        opened(root)


ADE = ["wall", "building;edifice", *(f"thing {i}" for i in range(2, 150))]


def test_the_names_of_ade20k_leave_open_where_its_masks_begin(tmp_path):
    root = names(tmp_path / "set", "\n".join(ADE))
    raw = np.array([0, 1, 150])[LABELS]
    write_photograph(root / "images/training/a.jpg")
    mask(root / "annotations/training/a.png", raw)
    with pytest.raises(UserError, match="150 names of ADE20K.* a line `void` above them"):
        opened(root)
    own = np.array([255, 0, 149])[LABELS]
    for text in ("\n".join(["void", *ADE]), None):
        names(root, text or "")
        if text is None:  # as ADE20K itself is laid out
            (root / "labels.txt").unlink()
            rows = [f"{i}\t0.1\t9\t9\t1\t{name}" for i, name in enumerate(ADE, 1)]
            (root / "objectInfo150.txt").write_text("\n".join(["Idx\tRatio\tTrain", *rows]))
        data = open_dataset(root, ["training"])
        assert data.class_names == tuple(ADE)
        np.testing.assert_array_equal(data.splits["training"][0]["labels"], own)


@pytest.mark.parametrize("name", [b"caf\xe9", b"x" * 240, "Zoë 日本 [1] {2} 100% $HOME ~".encode()])
def test_any_file_name_is_read_and_told(tmp_path, name):
    root = names(tmp_path / "set")
    name = os.fsdecode(name)
    pair_of(root)
    os.rename(root / "images/train/a.jpg", root / f"images/train/{name}.jpg")
    os.rename(root / "masks/train/a.png", root / f"masks/train/{name}.png")
    source = open_dataset(root).splits["train"]
    assert len(source) == 1
    np.testing.assert_array_equal(source[0]["labels"], LABELS)
    report = checks.check_dataset(opened(root))
    assert "0 faults" in checks.describe(report).encode().decode()
    os.remove(root / f"masks/train/{name}.png")
    checks.describe(checks.check_dataset(opened(root))).encode()


# Truth, lists and sentences.


def test_a_split_without_truth_is_refused_before_it_is_scored_on(tmp_path):
    root = names(tmp_path / "set")
    for split in ("train", "test"):
        write_photograph(root / f"JPEGImages/{split}.jpg")
        voc_list(root, split, split)
    mask(root / "SegmentationClass/train.png")
    with pytest.raises(UserError, match="has no masks for the split test"):
        open_dataset(root, ["train", "test"])
    assert (open_dataset(root, ["test"], with_truth=False).splits["test"][0]["labels"] == 255).all()


@pytest.mark.parametrize(
    ("file", "line"),
    [
        ("train.txt", "{root}/p/a.jpg {root}/m/a.png"),
        ("ImageSets/Segmentation/train.txt", "{root}/p/a.jpg {root}/m/a.png"),
        ("train.txt", "/home/x/set/p/a.jpg\t/home/x/set/m/a.png"),
        ("train.csv", "{root}/p/a.jpg,{root}/m/a.png"),
        ("train.csv", "C:\\data\\p\\a.jpg,C:\\data\\m\\a.png"),
        ("train.csv", ",image,mask\n0,p/a.jpg,m/a.png"),
        ("train.csv", "image,mask\np/a.jpg,m/a.png"),
    ],
)
def test_lists_may_have_absolute_paths_and_the_index_of_pandas(tmp_path, file, line):
    root = names(tmp_path / "set")
    write_photograph(root / "p/a.jpg")
    mask(root / "m/a.png")
    write_photograph(root / "JPEGImages/b.jpg")
    (root / file).parent.mkdir(parents=True, exist_ok=True)
    (root / file).write_text(line.format(root=root) + "\n")
    (pair,) = folders.read_split(opened(root), "train")
    assert (pair.photograph, pair.mask) == (root / "p/a.jpg", root / "m/a.png")


@pytest.mark.parametrize(
    ("content", "part"),
    [
        (b"", "is empty; is the download"),
        (b"\0\0\0\x1cftypavif" + bytes(40), "is (an AVIF photograph|damaged)"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00", "a pointer of Git LFS"),
        (b"<!DOCTYPE html><html>", "is a web page, not a picture"),
        (b"words", "is no picture that Pillow knows"),
    ],
)
def test_a_file_that_is_no_photograph_is_told_for_what_it_is(tmp_path, content, part):
    (tmp_path / "a.jpg").write_bytes(content)
    with pytest.raises(UserError, match=part):
        images.read(tmp_path / "a.jpg")


@pytest.mark.parametrize(
    ("name", "content", "part"),
    [
        ("a.json", '{"version": "5.2", "shapes": [], "imagePath": "a.jpg"}', "LabelMe's JSON"),
        ("annotations.xml", "<?xml version='1.0'?>\n<annotations>", "CVAT's XML: export"),
        ("via_project.json", '{"_via_settings": {}}', "a project of VIA"),
        ("a.xml", "<annotation><object>", "VOC's XML, which has boxes"),
        ("train.csv", "name,age\na,3\n", "train.csv has other columns than `photograph,mask`"),
    ],
)
def test_files_of_other_tools_are_recognised_by_name(tmp_path, name, content, part):
    write_photograph(tmp_path / "photos/a.jpg")
    (tmp_path / "photos" / name).write_text(content)
    with pytest.raises(UserError, match=part):
        opened(tmp_path)
