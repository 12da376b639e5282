import io
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest
from drawn_folder import NAMES, draw_folder, fault, open_dataset, prepared
from drawn_voc import draw_voc

from deeplab_jax.types import UserError


@pytest.fixture
def devkit(tmp_path):
    """Where a folder `VOCdevkit` is that an archive can be made of."""
    (tmp_path / "owner" / "VOCdevkit").mkdir(parents=True)
    draw_folder(tmp_path / "owner" / "VOCdevkit" / "VOC2012")
    (tmp_path / "mine").mkdir()
    return tmp_path


def pack(devkit: Path, kind: str) -> Path:
    """An archive of the devkit in the folder `mine`."""
    return Path(shutil.make_archive(str(devkit / "mine" / "VOC"), kind, devkit / "owner"))


@pytest.mark.parametrize("kind", ["tar", "gztar", "zip"])
def test_an_archive_is_read_as_the_folder_it_holds(devkit, kind):
    expected = open_dataset(devkit / "owner").splits["train"]
    pack(devkit, kind)
    dataset = open_dataset(devkit / "mine")
    assert dataset.class_names == NAMES
    source = dataset.splits["train"]
    for i in range(len(expected)):
        np.testing.assert_array_equal(source[i]["image"], expected[i]["image"])
        np.testing.assert_array_equal(source[i]["labels"], expected[i]["labels"])


def test_archives_and_what_lies_unpacked_beside_them_are_one_data_set(devkit):
    """The lists of `val` in an archive, everything else as a folder; the folder stays as it is."""
    root = devkit / "mine"
    lists = devkit / "owner/VOCdevkit/VOC2012/ImageSets/Segmentation"
    shutil.copytree(devkit / "owner/VOCdevkit", root / "VOCdevkit")
    (root / "VOCdevkit/VOC2012/ImageSets/Segmentation/val.txt").unlink()
    with tarfile.open(root / "lists.tar", "w") as file:
        file.add(lists / "val.txt", "VOCdevkit/VOC2012/ImageSets/Segmentation/val.txt")
    before = sorted(root.rglob("*"))
    assert open_dataset(root, ["val"]).splits["val"][0]["name"] == "d"
    assert open_dataset(root, ["train", "val"]).splits["train"][0]["name"] == "c"
    assert sorted(root.rglob("*")) == before


def test_nothing_is_unpacked_where_the_folder_has_all_that_is_asked_for(devkit):
    shutil.copytree(devkit / "owner/VOCdevkit", devkit / "mine/VOCdevkit")
    pack(devkit, "tar")
    open_dataset(devkit / "mine")
    assert not list((devkit / "prepared").glob("mine-*/unpacked-*"))


def test_sbd_may_be_an_archive_beside_the_unpacked_devkit(tmp_path):
    root = draw_voc(tmp_path / "mine")
    with tarfile.open(root / "benchmark.tgz", "w:gz") as file:
        file.add(root / "benchmark_RELEASE", "benchmark_RELEASE")
    shutil.rmtree(root / "benchmark_RELEASE")
    source = open_dataset(root, ["train_aug"]).splits["train_aug"]
    assert [source[i]["name"] for i in range(len(source))] == ["a", "c"]
    assert (source[1]["labels"] == 15).any()


def test_an_archive_is_unpacked_once_and_again_when_it_changes(devkit):
    archive = pack(devkit, "tar")
    open_dataset(devkit / "mine")
    before = prepared(devkit / "mine")
    open_dataset(devkit / "mine")
    assert prepared(devkit / "mine") == before
    archive.unlink()
    (devkit / "owner/VOCdevkit/VOC2012/labels.txt").write_text("ground\nwolf\nbear\n")
    pack(devkit, "tar")
    assert open_dataset(devkit / "mine").class_names == ("ground", "wolf", "bear")
    assert len(list((devkit / "prepared").glob("mine-*/unpacked-*"))) == 1


@pytest.mark.parametrize("kind", ["tar", "gztar", "zip"])
def test_a_truncated_archive_is_named(devkit, kind):
    archive = pack(devkit, kind)
    archive.write_bytes(archive.read_bytes()[: archive.stat().st_size // 3])
    message = fault(devkit / "mine")
    assert f"{archive} is damaged" in message


def test_an_archive_cannot_write_elsewhere(devkit):
    with tarfile.open(devkit / "mine" / "evil.tar", "w") as file:
        member = tarfile.TarInfo("../outside.txt")
        member.size = 4
        file.addfile(member, io.BytesIO(b"evil"))
    with pytest.raises(UserError, match=r"evil\.tar is damaged"):
        open_dataset(devkit / "mine")
    assert not list(devkit.rglob("outside.txt"))
