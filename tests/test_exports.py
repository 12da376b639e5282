"""Data sets in the exact structure in which annotation tools and people leave them."""

import json
import re
import shutil
import unicodedata
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from drawn_folder import (
    SMALL,
    fault,
    open_dataset,
    opened,
    shade_of,
    write_mask,
    write_photograph,
    write_text,
)
from PIL import Image
from runs_with_faults import draw_data, run, run_script

from deeplab_jax.data import folders
from deeplab_jax.types import UserError

H, W = SMALL
NAMES = ("background", "cat", "dog")
COLOURS = np.array([[0, 0, 0], [250, 50, 83], [50, 183, 250], [9, 9, 9]], np.uint8)
"""Of background, cat, dog and void."""


def labels_of(name: str) -> np.ndarray:
    """Class ids of a photograph; all classes and void occur."""
    labels = np.random.default_rng(sum(map(ord, name))).integers(0, 4, (H, W)).astype(np.uint8)
    labels[0, :4] = range(4)
    return np.where(labels == 3, 255, labels).astype(np.uint8)


def write_ids(path: Path, name: str):
    write_mask(path, labels_of(name), palette=None)


def write_colours(path: Path, name: str):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(COLOURS[np.minimum(labels_of(name), 3)]).save(path)


TEXTS = {
    "default.txt": "a\nb c\n",
    "labels.txt": "background\ncat\ndog\n",
    "labelmap.txt": "# label:color_rgb:parts:actions\nbackground:0,0,0::\ncat:250,50,83::\n"
    "dog:50,183,250::\nignore:9,9,9::\n",
    "class_names.txt": "__ignore__\nbackground\ncat\ndog\n",
    "_classes.csv": "Pixel Value, Class\n0, background\n1, cat\n2, dog\n255, void\n",
    "class_dict.csv": "name,r,g,b\nbackground,0,0,0\ncat, 250, 50, 83\ndog,50,183,250\n"
    "Void,9,9,9\n",
    "label_colors.txt": "0 0 0\t\tbackground\n250 50 83\tcat\n50 183 250 \tdog\n9 9 9\t\tVoid",
    "train_masks.csv": "img,rle_mask\n00087a6bd4dc_01.jpg,879386 40 881253 141\n",
    "classes.csv": "id,name\n0,background\n1,cat\n",
    "metadata.csv": "image,age\na.jpg,45\n",
    "config_v1.2.json": '{"labels": [], "folder_structure": "{split}/images"}',
}
"""What the small files of exports hold, by their names."""

EXPORTS = """
cvat_segmentation_mask = default: a, b c
    photo:JPEGImages/NAME.jpg colours:SegmentationClass/NAME.png
    photo:SegmentationObject/NAME.png ImageSets/Segmentation/default.txt labelmap.txt
labelme_voc = train: a, b
    photo:JPEGImages/NAME.jpg ids:SegmentationClassPNG/NAME.png SegmentationClass/NAME.npy
    photo:SegmentationClassVisualization/NAME.jpg class_names.txt
roboflow_masks = train, valid: a_jpg.rf.0f1e, b_png.rf.2d3c
    photo:SPLIT/NAME.jpg ids:SPLIT/NAME_mask.png SPLIT/_classes.csv
camvid_class_dict = test, train, val: 0001TP_006690, Seq05VD_f00000
    photo:SPLIT/NAME.png colours:SPLIT_labels/NAME_L.png class_dict.csv
camvid_label_colours = train: 0001TP_006690, 0001TP_006720
    photo:images/NAME.png colours:labels/NAME_L.png label_colors.txt
ade_like = training, validation: ADE_00000001
    photo:images/SPLIT/NAME.jpg ids:annotations/SPLIT/NAME.png labels.txt
split_first = train, val: a
    photo:SPLIT/images/NAME.jpg ids:SPLIT/masks/NAME.png labels.txt
isic = train: ISIC_0000000
    photo:images/NAME.jpg ids:masks/NAME_segmentation.png labels.txt
carvana = train: 00087a6bd4dc_01
    photo:train/NAME.jpg ids:train_masks/NAME_mask.gif train_masks.csv labels.txt
ground_truth_names = train: a
    photo:images/train/NAME.tif ids:gt/train/NAME_gt.TIF labels.txt
side_by_side = train: a, b
    photo:NAME.jpg ids:NAME_mask.png labels.txt
mapillary_vistas = training, validation: a
    photo:SPLIT/images/NAME.jpg ids:SPLIT/v1.2/labels/NAME.png link:SPLIT/labels
    config_v1.2.json labels.txt
stray_tables = train, val: a
    photo:SPLIT/images/NAME.jpg ids:SPLIT/masks/NAME.png classes.csv metadata.csv labels.txt
capitals = train: A
    photo:images/train/NAME.JPG ids:masks/train/NAME.PNG labels.txt
"""
"""Name = splits: photographs; then the files of each photograph: masks of class ids or colours, and
files of TEXTS."""

BLOCKS = dict(re.findall(r"^(\w+) = (.*\n(?: .*\n)+)", EXPORTS, re.MULTILINE))


def splits_of(kind: str) -> dict[str, list[str]]:
    """Names of the photographs of each split of an export."""
    splits, names = BLOCKS[kind].splitlines()[0].split(": ")
    return {split: names.split(", ") for split in splits.split(", ")}


def lay_out(root: Path, kind: str):
    for split, names in splits_of(kind).items():
        for name in names:
            for file in BLOCKS[kind].split("\n", 1)[1].split():
                *how, path = file.replace("SPLIT", split).replace("NAME", name).split(":")
                write(how, root / path, name)


def write(how: list[str], path: Path, name: str):
    if how == ["photo"]:
        write_photograph(path)
    elif how == ["link"]:
        path.symlink_to("v1.2/labels")
    elif how:
        (write_ids if how == ["ids"] else write_colours)(path, name)
    else:
        write_text(path, TEXTS.get(path.name, ""))


def write_names(root: Path):
    write_text(root / "labels.txt", TEXTS["labels.txt"])


def read_all(root: Path, splits: dict[str, list[str]]) -> list[dict]:
    """The records of all splits, of classes NAMES and of the photographs that are expected."""
    folder = opened(root)
    assert folder.class_names == NAMES
    assert list(folder.splits) == list(splits)
    data = open_dataset(root, list(folder.splits))
    records = [[source[i] for i in range(len(source))] for source in data.splits.values()]
    found = [[record["name"] for record in of_split] for of_split in records]
    assert found == list(splits.values())
    return sum(records, [])


@pytest.mark.parametrize("kind", BLOCKS)
def test_an_export_is_read_as_it_is(tmp_path, kind):
    lay_out(tmp_path / "set", kind)
    for record in read_all(tmp_path / "set", splits_of(kind)):
        np.testing.assert_array_equal(record["labels"], labels_of(record["name"]))
        assert abs(record["image"][..., 0].mean() - shade_of(record["name"])) < 4


def test_masks_that_a_link_leads_to_are_used(tmp_path):
    lay_out(tmp_path / "set", "mapillary_vistas")
    told = folders.left_out(opened(tmp_path / "set"), ["training"])
    assert told == []


def test_a_top_folder_whose_images_have_splits_is_no_split(tmp_path):
    lay_out(tmp_path / "set/ADE", "ade_like")
    assert list(opened(tmp_path / "set").splits) == ["training", "validation"]


def test_an_archive_of_one_top_folder_is_read_with_class_names_inside_or_beside_it(tmp_path):
    for inside in (True, False):
        made, root = tmp_path / f"made{inside}", tmp_path / f"set{inside}"
        lay_out(made / "photographs", "split_first")
        root.mkdir()
        shutil.make_archive(root / "photographs", "zip", made)
        if not inside:
            (made / "photographs/labels.txt").rename(root / "labels.txt")
            shutil.make_archive(root / "photographs", "zip", made)
        record = open_dataset(root).splits["train"][0]
        np.testing.assert_array_equal(record["labels"], labels_of("a"))


def test_a_csv_without_pairs_is_no_list_and_is_not_printed(tmp_path):
    root = tmp_path / "set"
    write_text(root / "train_masks.csv", "img,rle_mask\np0.jpg," + "1 40 " * 300)
    write_names(root)
    told = fault(root)
    assert "no <split>.csv of photographs and masks" in told
    assert "40 1 40" not in told


def flat(root: Path, number: int = 60) -> Path:
    for i in range(number):
        write_photograph(root / f"images/seq{i // 10}_{i:03d}.png")
        write_ids(root / f"masks/seq{i // 10}_{i:03d}.png", f"seq{i // 10}_{i:03d}")
    write_names(root)
    return root


def split_names(root: Path, **reading) -> dict[str, set[str]]:
    folder = opened(root, **reading)
    pairs = {split: folders.read_split(folder, split) for split in folder.splits}
    return {split: {pair.name for pair in found} for split, found in pairs.items()}


def test_a_part_of_a_flat_folder_is_held_out_by_name_and_never_moves(tmp_path):
    root = flat(tmp_path / "set")
    before = split_names(root, val_fraction=0.2)
    assert set(before) == {"train", "val"}
    assert not before["train"] & before["val"]
    assert len(before["train"] | before["val"]) == 60
    assert 4 <= len(before["val"]) <= 22  # 12 expected, a standard deviation is 3.1
    for i in range(0, 60, 3):
        (root / f"images/seq{i // 10}_{i:03d}.png").unlink()
    write_photograph(root / "images/another.png")
    after = split_names(root, val_fraction=0.2)
    for split, other in (("train", "val"), ("val", "train")):
        assert not after[split] & before[other]
    larger = split_names(root, val_fraction=0.4)
    assert after["val"] < larger["val"]


def test_groups_stay_on_one_side(tmp_path):
    sides = split_names(flat(tmp_path / "set"), val_fraction=0.3, val_groups=r"(seq\d+)_")
    groups = {split: {name[:4] for name in names} for split, names in sides.items()}
    assert not groups["train"] & groups["val"]
    assert groups["train"] | groups["val"] == {f"seq{i}" for i in range(6)}


@pytest.mark.parametrize(
    ("reading", "part"),
    [
        ({"val_fraction": 1.5}, "val_fraction 1.5 must be between 0 and 1"),
        ({"val_fraction": 0.2, "val_groups": "("}, "is no regular expression"),
        ({"val_fraction": 0.2, "val_groups": "clip"}, "matches nothing in the name 'seq0_000'"),
        ({"val_fraction": 0.0001}, "falls into val with val_fraction 0.0001; try 0."),
    ],
)
def test_an_impossible_part_is_refused(tmp_path, reading, part):
    with pytest.raises(UserError, match=part.replace("(", r"\(")):
        split_names(flat(tmp_path / "set"), **reading)


def test_val_fraction_is_for_a_single_split_and_suggested_there(tmp_path):
    lay_out(tmp_path / "set", "split_first")
    with pytest.raises(UserError, match="has the splits train, val; leave out val_fraction 0.1"):
        split_names(tmp_path / "set", val_fraction=0.1)
    assert "--data.val-fraction 0.1" in fault(flat(tmp_path / "flat", 3), ["val"])


def listed(root: Path, lines: list[str], names: list[str]) -> list[str]:
    """Names that a list in VOC layout leads to; every file is found."""
    for name in names:
        write_photograph(root / f"JPEGImages/{name}.jpg")
        write_ids(root / f"SegmentationClass/{name}.png", "a")
    write_text(root / "ImageSets/Segmentation/train.txt", "\n".join(lines))
    write_names(root)
    pairs = folders.read_split(opened(root), "train")
    assert all(pair.photograph.is_file() and pair.mask.is_file() for pair in pairs)
    return [pair.name for pair in pairs]


COMPOSED, APART = (unicodedata.normalize(form, "Königin Zoë") for form in ("NFC", "NFD"))

LISTS = {
    "blanks": (["my photo 1", "my photo 2.jpg"], ["my photo 1", "my photo 2"]),
    "backslashes": (["york\\a", "york\\b.jpg"], ["york/a", "york/b"]),
    "a number sign": (["#1", "photo #2", "# a comment", "#"], ["#1", "photo #2"]),
    "paths": (["JPEGImages/a.jpg", "./JPEGImages/b.jpg", "/JPEGImages/c"], ["a", "b", "c"]),
    "Windows paths": (["JPEGImages\\a.jpg"], ["a"]),
    "two paths": (["/JPEGImages/a.jpg /SegmentationClass/a.png"], ["a"]),
    "two paths with blanks": (["JPEGImages/a b.jpg SegmentationClass/a b.png"], ["a b"]),
    "flags": (["a  1", "b -1"], ["a", "b"]),
    "another suffix": (["a.png"], ["a"]),
    "dots": (["a.b.c", "2024.05.01.jpg"], ["a.b.c", "2024.05.01"]),
    "accents apart in the list": ([APART], [COMPOSED]),
    "accents apart in file names": ([COMPOSED], [APART]),
    "folders, blanks and Windows' ends": (["a/c d.jpg\r", "\r", "e/a\r"], ["a/c d", "e/a"]),
}


@pytest.mark.parametrize("kind", LISTS)
def test_a_list_may_name_photographs_by(tmp_path, kind):
    lines, names = LISTS[kind]
    found = listed(tmp_path / "set", lines, names)
    assert found == [unicodedata.normalize("NFC", name) for name in names]


@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_a_table_may_have_backslashes_and_accents_in_either_form(tmp_path, form):
    root = tmp_path / "set"
    other = {"NFC": "NFD", "NFD": "NFC"}[form]
    write_photograph(root / "JPEGImages" / f"{unicodedata.normalize(form, 'Zoë')}.jpg")
    write_ids(root / "Masks" / f"{unicodedata.normalize(form, 'Zoë')}.png", "a")
    write_text(
        root / "train.csv",
        unicodedata.normalize(other, "photograph,mask\nJPEGImages\\Zoë.jpg,Masks\\Zoë.png\n"),
    )
    write_names(root)
    record = open_dataset(root).splits["train"][0]
    np.testing.assert_array_equal(record["labels"], labels_of("a"))


def test_a_missing_photograph_with_blanks_is_named_whole(tmp_path):
    with pytest.raises(UserError, match=r"JPEGImages/my photo 9\.jpg is missing"):
        write_text(tmp_path / "set/ImageSets/Segmentation/train.txt", "my photo 9\n")
        write_photograph(tmp_path / "set/JPEGImages/a.jpg")
        write_names(tmp_path / "set")
        open_dataset(tmp_path / "set")


@pytest.mark.parametrize(
    ("name", "text", "part"),
    [
        ("labelmap.txt", "cat:1,2::\n", "labelmap.txt has the line 'cat:1,2::'"),
        ("labelmap.txt", "# nothing\n", "names 0 classes"),
        ("class_dict.csv", "name,r,g,b\ncat,0,0,999\n", "class_dict.csv has the line"),
        ("label_colors.txt", "0 0 0 cat\n0 0 0 dog\n", "the colour or value of 'dog'"),
        ("_classes.csv", "Pixel Value, Class\ncat, 1\n", "a name and an id were expected"),
    ],
)
def test_an_odd_file_of_classes_is_refused(tmp_path, name, text, part):
    lay_out(tmp_path / "set", "split_first")
    (tmp_path / "set/labels.txt").unlink()
    write_text(tmp_path / "set" / name, text)
    assert part in fault(tmp_path / "set")


def test_hexadecimal_colours_stand_in_mappings_and_comments_stay_comments(tmp_path):
    root = tmp_path / "set"
    lay_out(root, "camvid_label_colours")
    (root / "label_colors.txt").unlink()
    write_names(root)
    write_text(
        root / "mapping.txt",
        "# colours of the tool\n#000000 0 # ground\n#FA3253\t1\n0x32b7fa 2\n#090909 255\n",
    )
    record = open_dataset(root).splits["train"][0]
    np.testing.assert_array_equal(record["labels"], labels_of(record["name"]))


# COCO JSON as other programs than COCO's authors write it.


def coco_content(file_names: Sequence[str], *, categories=None, **annotation) -> dict:
    """A file of a rectangle of cat in each photograph, rows 2 to 7 and columns 3 to 11."""
    rectangle = [[3, 2, 11, 2, 11, 7, 3, 7]]
    default = {"category_id": 1, "segmentation": rectangle, "iscrowd": 0}
    numbers = range(1, len(file_names) + 1)
    return {
        "images": [
            {"id": i, "file_name": name, "height": H, "width": W}
            for i, name in zip(numbers, file_names, strict=True)
        ],
        "categories": categories or [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}],
        "annotations": [{"id": i, "image_id": i, **default, **annotation} for i in numbers],
    }


RECTANGLE = np.zeros((H, W), np.uint8)
RECTANGLE[2:7, 3:11] = 1


def write_json(path: Path, content: dict):
    write_text(path, json.dumps(content))


def write_coco(path: Path, photographs: Path, *file_names: str, **content):
    """A file and the photographs that it names."""
    for name in file_names:
        write_photograph(photographs / name)
    write_json(path, coco_content(file_names, **content))


def cvat_coco(root: Path):
    names = ("clip 1/frame_000.PNG", "b.jpg")
    content = {"attributes": {"occluded": False}, "area": 40.0}
    path = root / "annotations/instances_default.json"
    write_coco(path, root / "images/default", *names, **content)


def roboflow_coco(root: Path):
    """Category 0 only names the group of the others."""
    kinds = [
        {"id": 0, "name": "pets-a1b2", "supercategory": "none"},
        {"id": 1, "name": "cat", "supercategory": "pets-a1b2"},
        {"id": 2, "name": "dog", "supercategory": "pets-a1b2"},
    ]
    for split in ("train", "valid"):
        path = root / split / "_annotations.coco.json"
        write_coco(path, root / split, "a_jpg.rf.00ff.jpg", categories=kinds, area=40)


def own_classes_under_cocos_name(root: Path):
    for split in ("train", "val"):
        path = root / f"annotations/instances_{split}2017.json"
        write_coco(path, root / f"{split}2017", "000000000001.jpg", area=40)


def label_studio_coco(root: Path):
    """One file of any name; ids from 0; photographs by paths of another machine."""
    write_photograph(root / "images/a.jpg")
    kinds = [{"id": 0, "name": "cat"}, {"id": 1, "name": "dog"}]
    content = coco_content(["C:\\exports\\images\\a.jpg"], categories=kinds, category_id=0)
    write_json(root / "result.json", content)


def supervisely_coco(root: Path):
    """A data set in its own folder; bitmaps are run lengths, and addresses the word None."""
    write_photograph(root / "images/a.jpg")
    content = coco_content(["a.jpg"], area=40, iscrowd=0)
    content["images"][0] |= {"license": "None", "url": "None", "date_captured": "2024-05-01"}
    write_json(root / "annotations/instances.json", content)


def background_is_a_category(root: Path):
    kinds = [{"id": 7, "name": "Background"}, {"id": 9, "name": "cat"}, {"id": 12, "name": "dog"}]
    path = root / "annotations/train.json"
    write_coco(path, root / "images", "a.jpg", categories=kinds, category_id=9)


COCO_EXPORTS = {
    cvat_coco: {"default": ["clip 1/frame_000", "b"]},
    roboflow_coco: dict.fromkeys(("train", "valid"), ["a_jpg.rf.00ff"]),
    own_classes_under_cocos_name: dict.fromkeys(("train", "val"), ["000000000001"]),
    label_studio_coco: {"train": ["a"]},
    supervisely_coco: {"train": ["a"]},
    background_is_a_category: {"train": ["a"]},
}


@pytest.mark.parametrize("draw", COCO_EXPORTS, ids=lambda draw: draw.__name__)
def test_coco_json_of_another_tool_keeps_its_own_classes(tmp_path, draw):
    draw(tmp_path / "set")
    for record in read_all(tmp_path / "set", COCO_EXPORTS[draw]):
        np.testing.assert_array_equal(record["labels"], RECTANGLE)


def test_categories_are_matched_by_name_where_files_number_them_otherwise(tmp_path):
    root = tmp_path / "set"
    own_classes_under_cocos_name(root)
    kinds = [{"id": 1, "name": "dog"}, {"id": 2, "name": "bird"}, {"id": 3, "name": "cat"}]
    content = coco_content(["000000000001.jpg"], categories=kinds, category_id=3)
    write_json(root / "annotations/instances_val2017.json", content)
    data = open_dataset(root, ["train", "val"])
    assert data.class_names == ("background", "cat", "dog", "bird")
    np.testing.assert_array_equal(data.splits["val"][0]["labels"], RECTANGLE)


def test_two_files_of_any_name_are_two_splits(tmp_path):
    root = tmp_path / "set"
    for name in ("first part", "second"):
        write_coco(root / f"annotations/{name}.json", root / "images", f"{name}.jpg")
    data = open_dataset(root, ["train", "second"])
    assert [data.splits[split][0]["name"] for split in data.splits] == ["first part", "second"]


def test_masks_and_outlines_of_the_same_photographs_are_a_question(tmp_path):
    root = tmp_path / "set"
    lay_out(root, "split_first")
    write_json(root / "everything.json", coco_content(["a.jpg"]))
    with pytest.raises(UserError, match="has masks, as .*a.png, and outlines in .*everything.json"):
        opened(root)
    assert list(opened(root, masks="masks").splits) == ["train", "val"]
    assert list(opened(root, masks="everything.json").splits) == ["train"]


def test_json_of_something_else_is_no_data_set(tmp_path):
    root = tmp_path / "set"
    lay_out(root, "split_first")
    write_json(root / "via_project.json", {"_via_settings": {}, "categories": "none"})
    write_json(root / "a.json", {"shapes": [], "imagePath": "a.jpg"})
    assert list(opened(root).splits) == ["train", "val"]


@pytest.mark.slow
def test_a_flat_folder_of_deep_photographs_is_trained_on_and_scored(tmp_path):
    """The evaluation reads the data as the run did."""
    data = draw_data(tmp_path / "data")
    shutil.rmtree(data / "ImageSets")
    (data / "JPEGImages").rename(data / "images")
    (data / "SegmentationClass").rename(data / "masks")
    for path in (data / "images").glob("*.jpg"):
        grey = np.asarray(Image.open(path).convert("L")).astype(np.uint16) * 16
        Image.fromarray(grey).save(path.with_suffix(".tif"))
        path.unlink()
    told = run(tmp_path, "refused", "--num-steps", 1, status=2)
    assert "--data.val-fraction 0.1" in told
    options = ("--num-steps", 2, "--data.val-fraction", 0.3, "--data.range", 0, 4080)
    run(tmp_path, "run", *options)
    assert "mean IoU" in run_script("evaluate_voc.py", "run", cwd=tmp_path)
