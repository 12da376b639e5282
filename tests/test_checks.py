import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from drawn_folder import opened, turned
from PIL import Image
from save_faults import truncate

from deeplab_jax.data import checks, scenes


@pytest.fixture
def root(tmp_path):
    """A drawn data set without faults."""
    scenes.write_scenes(tmp_path / "scenes", num_train=30, num_val=20, size=96, seed=0)
    return tmp_path / "scenes"


def photographs(root: Path) -> list[Path]:
    listed = (root / "ImageSets/Segmentation/train.txt").read_text().split()
    return [root / "JPEGImages" / f"{name}.jpg" for name in listed]


def mask_of(photograph: Path) -> Path:
    return photograph.parents[1] / "SegmentationClass" / f"{photograph.stem}.png"


def resave(path: Path, change: Callable = lambda picture: picture, **options):
    picture = Image.open(path)
    changed = change(picture)
    changed.save(path, **{"format": picture.format, **options})


def convert(mode: str) -> Callable:
    return lambda path: resave(path, lambda picture: picture.convert(mode))


def change_labels(path: Path, change: Callable):
    Image.fromarray(change(np.array(Image.open(path)))).save(path)


def put_label(path: Path, label: int):
    def change(labels):
        labels[5:9, 5:9] = label
        return labels

    change_labels(path, change)


def list_again(photograph: Path, split: str):
    with open(photograph.parents[1] / f"ImageSets/Segmentation/{split}.txt", "a") as file:
        file.write(f"{photograph.stem}\n")


def copy_next(photograph: Path):
    """The next photograph of the list becomes a copy of this one."""
    listed = photographs(photograph.parents[1])
    shutil.copy(photograph, listed[listed.index(photograph) + 1])


def deep(path: Path):
    Image.fromarray(np.zeros((96, 96), np.uint16)).save(path, format="PNG")


# Each is done to a photograph, or its mask, of its own: what it does, and words of the finding.
FAULTS = {
    "missing photograph": (Path.unlink, None, "is missing"),
    "missing mask": (None, Path.unlink, "is missing"),
    "truncated photograph": (truncate, None, "is damaged"),
    "truncated mask": (None, truncate, "is damaged"),
    "empty photograph": (lambda p: p.write_bytes(b""), None, "is empty"),
    "text for a mask": (None, lambda p: p.write_text("mask"), "is no picture"),
    "smaller mask": (None, lambda p: change_labels(p, lambda x: x[:-8]), "of one size"),
    "larger photograph": (lambda p: resave(p, lambda x: x.resize((99, 90))), None, "of one size"),
    "colour mask": (None, convert("RGB"), "colour picture (RGB)"),
    "transparent mask": (None, convert("RGBA"), "colour picture (RGBA)"),
    "16-bit mask": (None, deep, "16 bits"),
    "lossy mask": (None, lambda p: Image.open(p).convert("L").save(p, "JPEG"), "is a JPEG picture"),
    "label 99": (None, lambda p: put_label(p, 99), "holds the label 99"),
    "label 254": (None, lambda p: put_label(p, 254), "holds the label 254"),
    "void mask": (None, lambda p: change_labels(p, lambda x: x * 0 + 255), "is void everywhere"),
    "grey photograph": (convert("L"), None, "is grey"),
    "CMYK photograph": (convert("CMYK"), None, "is in CMYK"),
    "turned photograph": (lambda p: resave(p, exif=turned(3)), None, "EXIF"),
    "16-bit photograph": (deep, None, "more than 8 bits"),
    "listed twice": (lambda p: list_again(p, "train"), None, "stands twice"),
    "in two splits": (lambda p: list_again(p, "val"), None, "is the same photograph as"),
}


def plant(root: Path) -> dict[str, tuple[Path, str]]:
    """Put every fault into a file of its own; which, and the words that should tell it."""
    expected, listed = {}, photographs(root)
    for i, (fault, (to_photograph, to_mask, words)) in enumerate(FAULTS.items()):
        path = listed[i] if to_photograph else mask_of(listed[i])
        (to_photograph or to_mask)(path)
        named = mask_of(path) if fault == "larger photograph" else path
        expected[fault] = (named, words)
    copy_next(listed[len(FAULTS)])
    expected["copy"] = (listed[len(FAULTS) + 1], "is the same photograph as")
    names = (root / "labels.txt").read_text().splitlines()
    number = sum(not line.startswith("255") for line in names)
    (root / "labels.txt").write_text("\n".join([*names, f"{number} unicorn"]))
    expected["absent class"] = (root, "shows unicorn")
    return expected


def check(root: Path, **options) -> checks.Report:
    return checks.check_dataset(opened(root), **options)


def test_a_sound_data_set_has_no_findings(root):
    report = check(root)
    assert report.findings == ()
    assert [(split.name, split.listed) for split in report.splits] == [("train", 30), ("val", 20)]
    assert checks.describe(report).endswith("0 faults, 0 notes")


def test_photographs_without_truth_lack_no_class(root):
    names = (root / "ImageSets/Segmentation/val.txt").read_text().split()
    (root / "ImageSets/Segmentation/val.txt").rename(root / "ImageSets/Segmentation/test.txt")
    for name in names:
        (root / "SegmentationClass" / f"{name}.png").unlink()
    assert check(root, splits=("train", "test")).findings == ()


def test_every_planted_fault_is_found_and_its_file_named(root):
    expected = plant(root)
    assert len(expected) >= 20
    report = check(root)
    for fault, (path, words) in expected.items():
        told = [finding.sentence for finding in report.findings if words in finding.sentence]
        assert any(str(path) in sentence for sentence in told), fault
    # Splits share what they never show; the photograph in two splits may be told at either.
    assert len(report.findings) == len(expected) + 1


def test_shares_are_of_all_pixels(root):
    text = checks.describe(check(root))
    shares = [line.split() for line in text.splitlines() if line.endswith("%")]
    for column in (1, 2):
        assert sum(float(row[column].rstrip("%")) for row in shares) == pytest.approx(100, abs=0.05)


def test_a_sample_reads_so_many_of_each_split(root):
    report = check(root, sample=4)
    assert [len(split.pairs) for split in report.splits] == [4, 4]
    other = check(root, sample=4, seed=1)
    assert report.splits[0].pairs[0].pair != other.splits[0].pairs[0].pair
    assert "train: 30 photographs, 4 of them read" in checks.describe(report)


def only(root: Path, labels: dict[int, int]):
    """Every mask with two labels: `labels[0]` where 0 was, `labels[1]` elsewhere."""
    for mask in (root / "SegmentationClass").iterdir():
        change_labels(mask, lambda old: np.where(old == 0, labels[0], labels[1]).astype(np.uint8))


@pytest.mark.parametrize("sample", [None, 0, 3])
def test_masks_of_0_and_255_are_a_fault_with_the_two_lines_that_mend_it(root, sample):
    only(root, {0: 0, 1: 255})
    faults = [f.sentence for f in check(root, sample=sample).findings if f.is_fault]
    assert len(faults) == 2  # train and val
    assert all("`0 0` and `255 1`" in sentence for sentence in faults)
    assert not any(f.is_fault for f in check(root, sample=sample, allow_one_class=True).findings)
    (root / "mapping.txt").write_text("0 0\n255 1\n")
    report = check(root, sample=sample)
    assert not any(f.is_fault for f in report.findings)
    assert sample is not None or report.splits[0].pixels[1] > 0


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        ({0: 255, 1: 255}, "is void everywhere"),
        ({0: 2, 1: 2}, "have the class 2"),
        ({0: 1, 1: 255}, "`1 0` and `255 1`"),
    ],
)
def test_masks_without_a_second_class_are_a_fault(root, labels, words):
    only(root, labels)
    assert any(words in f.sentence for f in check(root, sample=2).findings if f.is_fault)


def test_a_second_class_outside_the_sample_is_enough(root):
    only(root, {0: 0, 1: 0})
    for split in ("train", "val"):
        name = (root / f"ImageSets/Segmentation/{split}.txt").read_text().split()[-1]
        put_label(root / "SegmentationClass" / f"{name}.png", 1)
    for seed in range(3):
        assert not any(f.is_fault for f in check(root, sample=1, seed=seed).findings)


def test_a_split_that_training_takes_and_is_not_there_is_a_note(root):
    (root / "ImageSets/Segmentation/val.txt").unlink()
    absent, *unused = check(root).findings
    assert "has no split 'val'" in absent.sentence and "--data.val-split" in absent.sentence
    assert [f.sentence.rpartition(":")[2].split(" (")[0] for f in unused] == [
        *(" 20 files are not used", " 20 files are not used"),
    ]
    assert not any(finding.is_fault for finding in (absent, *unused))


def test_the_script_tells_faults_by_its_exit_status(root, tmp_path, script, capsys):
    assert script("check_data", root) == 0
    (left,) = (tmp_path / "prepared").iterdir()
    assert "0 faults" in (left / "report.txt").read_text()
    assert not (tmp_path / "contact_sheet.png").exists()
    sheet = np.asarray(Image.open(left / "contact_sheet.png"))
    assert sheet.shape[1] > 3 * 300  # photograph, mask over it, mask
    assert sheet.std() > 10
    missing = photographs(root)[3]
    missing.unlink()
    assert script("check_data", root) == 1
    assert f"fault  {missing} is missing" in capsys.readouterr().out


def test_a_report_that_cannot_be_written_is_a_note_and_no_fault(root, tmp_path, script, capsys):
    (tmp_path / "file").write_text("")
    assert script("check_data", root, "--prepared-dir", tmp_path / "file") == 0
    assert "report.txt is not written" in capsys.readouterr().err
