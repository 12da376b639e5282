"""Data sets in the exact structure in which annotation tools and people leave them."""

import json
import shutil
import subprocess
import sys
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from drawn_folder import fault, open_dataset, opened
from PIL import Image
from runs_with_faults import draw_data, run

from deeplab_jax.data import folders
from deeplab_jax.types import UserError

H, W = 12, 16
NAMES = ("background", "cat", "dog")
COLOURS = np.array([[0, 0, 0], [250, 50, 83], [50, 183, 250], [9, 9, 9]], np.uint8)
"""Of background, cat, dog and void."""


def labels_of(name: str) -> np.ndarray:
    """Class ids of a photograph; all classes and void occur."""
    labels = np.random.default_rng(sum(map(ord, name))).integers(0, 4, (H, W)).astype(np.uint8)
    labels[0, :4] = range(4)
    return np.where(labels == 3, 255, labels).astype(np.uint8)


def write_photograph(path: Path):
    """All photographs differ."""
    path.parent.mkdir(parents=True, exist_ok=True)
    grey = sum(map(ord, path.stem)) % 200
    kind = "JPEG" if path.suffix.lower() in (".jpg", ".jpeg") else None
    Image.new("RGB", (W, H), (grey, 80, 30)).save(path, format=kind)


def write_ids(path: Path, name: str, dtype=np.uint8):
    """A mask of class ids."""
    path.parent.mkdir(parents=True, exist_ok=True)
    kind = "PNG" if path.suffix.lower() == ".png" else None
    Image.fromarray(labels_of(name).astype(dtype)).save(path, format=kind)


def write_colours(path: Path, name: str):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(COLOURS[np.minimum(labels_of(name), 3)]).save(path)


def write_text(path: Path, text: str):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def cvat_segmentation_mask(root: Path):
    for name in ("a", "b c"):
        write_photograph(root / f"JPEGImages/{name}.jpg")
        write_colours(root / f"SegmentationClass/{name}.png", name)
        write_colours(root / f"SegmentationObject/{name}.png", "other")
    write_text(root / "ImageSets/Segmentation/default.txt", "a\nb c\n")
    write_text(
        root / "labelmap.txt",
        "# label:color_rgb:parts:actions\nbackground:0,0,0::\ncat:250,50,83::\ndog:50,183,250::\n"
        "ignore:9,9,9::\n",
    )


def labelme_voc(root: Path):
    """labelme2voc.py: no lists; masks as PNG beside those as arrays and drawings."""
    for name in ("a", "b"):
        write_photograph(root / f"JPEGImages/{name}.jpg")
        write_ids(root / f"SegmentationClassPNG/{name}.png", name)
        (root / "SegmentationClass").mkdir(exist_ok=True)
        np.save(root / f"SegmentationClass/{name}.npy", labels_of(name))
        write_photograph(root / f"SegmentationClassVisualization/{name}.jpg")
    write_text(root / "class_names.txt", "__ignore__\nbackground\ncat\ndog\n")


def roboflow_masks(root: Path):
    for split in ("train", "valid"):
        for name in ("a_jpg.rf.0f1e", "b_png.rf.2d3c"):
            write_photograph(root / split / f"{name}.jpg")
            write_ids(root / split / f"{name}_mask.png", name)
        write_text(
            root / split / "_classes.csv",
            "Pixel Value, Class\n0, background\n1, cat\n2, dog\n255, void\n",
        )


def camvid_class_dict(root: Path):
    """The copy of CamVid with class_dict.csv."""
    for split in ("train", "val", "test"):
        for name in ("0001TP_006690", "Seq05VD_f00000"):
            write_photograph(root / split / f"{name}.png")
            write_colours(root / f"{split}_labels/{name}_L.png", name)
    rows = "background,0,0,0\ncat, 250, 50, 83\ndog,50,183,250\nVoid,9,9,9\n"
    write_text(root / "class_dict.csv", f"name,r,g,b\n{rows}")


def camvid_label_colours(root: Path):
    """CamVid itself: two flat folders and label_colors.txt."""
    for name in ("0001TP_006690", "0001TP_006720"):
        write_photograph(root / f"images/{name}.png")
        write_colours(root / f"labels/{name}_L.png", name)
    rows = ("0 0 0\t\tbackground", "250 50 83\tcat", "50 183 250 \tdog", "9 9 9\t\tVoid")
    write_text(root / "label_colors.txt", "\n".join(rows))


def ade_like(root: Path):
    """`images` beside `annotations`, as ADE20K and mmsegmentation have them."""
    for split in ("training", "validation"):
        write_photograph(root / f"images/{split}/ADE_00000001.jpg")
        write_ids(root / f"annotations/{split}/ADE_00000001.png", "ADE_00000001")
    write_names(root)


def split_first(root: Path):
    for split in ("train", "val"):
        write_photograph(root / split / "images/a.jpg")
        write_ids(root / split / "masks/a.png", "a")
    write_names(root)


def isic(root: Path):
    write_photograph(root / "images/ISIC_0000000.jpg")
    write_ids(root / "masks/ISIC_0000000_segmentation.png", "ISIC_0000000")
    write_names(root)


def carvana(root: Path):
    """`train` and `train_masks` with _mask.gif, and a csv of run lengths that is no list."""
    write_photograph(root / "train/00087a6bd4dc_01.jpg")
    write_ids(root / "train_masks/00087a6bd4dc_01_mask.gif", "00087a6bd4dc_01")
    write_text(root / "train_masks.csv", "img,rle_mask\n00087a6bd4dc_01.jpg,879386 40 881253 141\n")
    write_names(root)


def ground_truth_names(root: Path):
    write_photograph(root / "images/train/a.tif")
    write_ids(root / "gt/train/a_gt.TIF", "a")
    write_names(root)


def side_by_side(root: Path):
    write_photograph(root / "a.jpg")
    write_ids(root / "a_mask.png", "a")
    write_photograph(root / "b.png")
    write_ids(root / "b_mask.png", "b")
    write_names(root)


def stray_tables(root: Path):
    split_first(root)
    write_text(root / "classes.csv", "id,name\n0,background\n1,cat\n")
    write_text(root / "metadata.csv", "image,age\na.jpg,45\n")


def mapillary_vistas(root: Path):
    """Masks lie a folder deeper, to which a link leads; their JSON is no COCO JSON."""
    for split in ("training", "validation"):
        write_photograph(root / split / "images/a.jpg")
        write_ids(root / split / "v1.2/labels/a.png", "a")
        (root / split / "labels").symlink_to("v1.2/labels")
    write_text(root / "config_v1.2.json", '{"labels": [], "folder_structure": "{split}/images"}')
    write_names(root)


def capitals(root: Path):
    write_photograph(root / "images/train/A.JPG")
    write_ids(root / "masks/train/A.PNG", "A")
    write_names(root)


def write_names(root: Path):
    write_text(root / "labels.txt", "background\ncat\ndog\n")


EXPORTS = {
    cvat_segmentation_mask: {"default": ["a", "b c"]},
    labelme_voc: {"train": ["a", "b"]},
    roboflow_masks: dict.fromkeys(("train", "valid"), ["a_jpg.rf.0f1e", "b_png.rf.2d3c"]),
    camvid_class_dict: dict.fromkeys(("test", "train", "val"), ["0001TP_006690", "Seq05VD_f00000"]),
    camvid_label_colours: {"train": ["0001TP_006690", "0001TP_006720"]},
    ade_like: dict.fromkeys(("training", "validation"), ["ADE_00000001"]),
    split_first: dict.fromkeys(("train", "val"), ["a"]),
    isic: {"train": ["ISIC_0000000"]},
    carvana: {"train": ["00087a6bd4dc_01"]},
    ground_truth_names: {"train": ["a"]},
    side_by_side: {"train": ["a", "b"]},
    mapillary_vistas: dict.fromkeys(("training", "validation"), ["a"]),
    stray_tables: dict.fromkeys(("train", "val"), ["a"]),
    capitals: {"train": ["A"]},
}


@pytest.mark.parametrize("draw", EXPORTS, ids=lambda draw: draw.__name__)
def test_an_export_is_read_as_it_is(tmp_path, draw):
    draw(tmp_path / "set")
    folder = opened(tmp_path / "set")
    assert folder.class_names == NAMES
    assert list(folder.splits) == list(EXPORTS[draw])
    data = open_dataset(tmp_path / "set", list(folder.splits))
    for split, names in EXPORTS[draw].items():
        records = [data.splits[split][i] for i in range(len(data.splits[split]))]
        assert [record["name"] for record in records] == names
        for record in records:
            np.testing.assert_array_equal(record["labels"], labels_of(record["name"]))
            shade = sum(map(ord, record["name"])) % 200
            assert abs(int(record["image"][..., 0].mean()) - shade) < 4


def test_masks_that_a_link_leads_to_are_used(tmp_path):
    mapillary_vistas(tmp_path / "set")
    told = folders.left_out(opened(tmp_path / "set"), ["training"])
    assert told == []


def test_a_top_folder_whose_images_have_splits_is_no_split(tmp_path):
    ade_like(tmp_path / "set/ADE")
    assert list(opened(tmp_path / "set").splits) == ["training", "validation"]


def test_an_archive_of_one_top_folder_is_read_with_class_names_inside_or_beside_it(tmp_path):
    for inside in (True, False):
        made, root = tmp_path / f"made{inside}", tmp_path / f"set{inside}"
        split_first(made / "photographs")
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


def test_a_part_of_a_data_set_with_splits_is_refused(tmp_path):
    split_first(tmp_path / "set")
    with pytest.raises(UserError, match="has the splits train, val; leave out val_fraction 0.1"):
        split_names(tmp_path / "set", val_fraction=0.1)


def test_a_missing_val_of_a_flat_folder_suggests_val_fraction(tmp_path):
    assert "--data.val-fraction 0.1" in fault(flat(tmp_path / "set", 3), ["val"])


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
}


@pytest.mark.parametrize("kind", LISTS)
def test_a_list_may_name_photographs_by(tmp_path, kind):
    lines, names = LISTS[kind]
    assert listed(tmp_path / "set", lines, names) == names


def test_a_list_may_have_accents_composed_where_file_names_have_them_apart(tmp_path):
    assert listed(tmp_path / "set", [COMPOSED], [APART]) == [COMPOSED]


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


def test_labelme_ignore_is_no_class(tmp_path):
    split_first(tmp_path / "set")
    write_text(tmp_path / "set/labels.txt", "__ignore__\n_background_\ncat\ndog\n")
    names = opened(tmp_path / "set").class_names
    assert names == ("_background_", "cat", "dog")


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
    split_first(tmp_path / "set")
    (tmp_path / "set/labels.txt").unlink()
    write_text(tmp_path / "set" / name, text)
    assert part in fault(tmp_path / "set")


def test_hexadecimal_colours_stand_in_mappings_and_comments_stay_comments(tmp_path):
    root = tmp_path / "set"
    camvid_label_colours(root)
    (root / "label_colors.txt").unlink()
    write_names(root)
    write_text(
        root / "mapping.txt",
        "# colours of the tool\n#000000 0 # ground\n#FA3253\t1\n0x32b7fa 2\n#090909 255\n",
    )
    record = open_dataset(root).splits["train"][0]
    np.testing.assert_array_equal(record["labels"], labels_of(record["name"]))


# COCO JSON as other programs than COCO's authors write it.


def coco_content(file_names: list[str], *, categories=None, **annotation) -> dict:
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


def cvat_coco(root: Path):
    write_photograph(root / "images/default/clip 1/frame_000.PNG")
    write_photograph(root / "images/default/b.jpg")
    write_json(
        root / "annotations/instances_default.json",
        coco_content(["clip 1/frame_000.PNG", "b.jpg"], attributes={"occluded": False}, area=40.0),
    )


def roboflow_coco(root: Path):
    """Category 0 only names the group of the others."""
    kinds = [
        {"id": 0, "name": "pets-a1b2", "supercategory": "none"},
        {"id": 1, "name": "cat", "supercategory": "pets-a1b2"},
        {"id": 2, "name": "dog", "supercategory": "pets-a1b2"},
    ]
    for split in ("train", "valid"):
        write_photograph(root / split / "a_jpg.rf.00ff.jpg")
        content = coco_content(["a_jpg.rf.00ff.jpg"], categories=kinds, area=40)
        write_json(root / split / "_annotations.coco.json", content)


def own_classes_under_cocos_name(root: Path):
    for split in ("train", "val"):
        write_photograph(root / f"{split}2017/000000000001.jpg")
        content = coco_content(["000000000001.jpg"], area=40)
        write_json(root / f"annotations/instances_{split}2017.json", content)


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
    write_photograph(root / "images/a.jpg")
    kinds = [{"id": 7, "name": "Background"}, {"id": 9, "name": "cat"}, {"id": 12, "name": "dog"}]
    write_json(
        root / "annotations/train.json", coco_content(["a.jpg"], categories=kinds, category_id=9)
    )


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
    folder = opened(tmp_path / "set")
    assert folder.class_names == NAMES
    assert list(folder.splits) == list(COCO_EXPORTS[draw])
    data = open_dataset(tmp_path / "set", list(folder.splits))
    for split, names in COCO_EXPORTS[draw].items():
        records = [data.splits[split][i] for i in range(len(data.splits[split]))]
        assert [record["name"] for record in records] == names
        for record in records:
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
        write_photograph(root / f"images/{name}.jpg")
        write_json(root / f"annotations/{name}.json", coco_content([f"{name}.jpg"]))
    data = open_dataset(root, ["train", "second"])
    assert [data.splits[split][0]["name"] for split in data.splits] == ["first part", "second"]


def test_masks_and_outlines_of_the_same_photographs_are_a_question(tmp_path):
    root = tmp_path / "set"
    split_first(root)
    write_json(root / "everything.json", coco_content(["a.jpg"]))
    with pytest.raises(UserError, match="has masks, .*a.png, and outlines in .*everything.json"):
        opened(root)
    assert list(opened(root, masks="masks").splits) == ["train", "val"]
    assert list(opened(root, masks="everything.json").splits) == ["train"]


def test_json_of_something_else_is_no_data_set(tmp_path):
    root = tmp_path / "set"
    split_first(root)
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
    script = Path(__file__).parents[1] / "experiments/evaluate_voc.py"
    command = [sys.executable, str(script), "run"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "mean IoU" in done.stdout
