"""Which files of a folder count: hidden ones, links, and what is said of missing ones."""

import os
from pathlib import Path

import pytest
from drawn_folder import draw_folder, opened

from deeplab_jax.data import folders, images, listing, prepare
from deeplab_jax.types import UserError


def put(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"")


def found(root: Path) -> list[str]:
    return sorted(path.relative_to(root).as_posix() for path in listing.walk(root))


HIDDEN = ("._a.jpg", ".DS_Store", ".ipynb_checkpoints/a-checkpoint.jpg", "__MACOSX/a.jpg")


def test_hidden_files_are_in_no_listing(tmp_path):
    put(tmp_path, "a.jpg", "b/c.jpg", *HIDDEN, *(f"b/{name}" for name in HIDDEN))
    assert found(tmp_path) == ["a.jpg", "b/c.jpg"]
    assert list(folders.index_photographs(tmp_path)) == ["a", "b/c"]
    assert images.find([tmp_path])[0] == [tmp_path / "a.jpg"]


def test_a_folder_below_a_hidden_one_may_be_named(tmp_path):
    root = tmp_path / ".cache" / "photos"
    put(root, "a.jpg")
    assert found(root) == ["a.jpg"]
    assert images.find([root / "a.jpg"])[0] == [root / "a.jpg"]


def test_hidden_lists_are_no_splits(tmp_path):
    root = draw_folder(tmp_path / "data")
    put(root / "ImageSets/Segmentation", "._train.txt")
    put(root, "._train.csv", "._photos.zip")
    assert set(opened(root).splits) == {"train", "val"}
    assert prepare.find_archives(root) == []


def test_photographs_in_linked_folders_are_found_and_a_link_back_ends(tmp_path):
    put(tmp_path, "images/a.jpg", "elsewhere/b.jpg", "elsewhere/deep/c.jpg")
    (tmp_path / "images/more").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    (tmp_path / "elsewhere/deep/up").symlink_to(tmp_path / "images", target_is_directory=True)
    (tmp_path / "images/self").symlink_to(".", target_is_directory=True)
    assert found(tmp_path / "images") == ["a.jpg", "more/b.jpg", "more/deep/c.jpg"]


def test_a_link_to_a_folder_that_is_gone_is_named(tmp_path):
    put(tmp_path, "a.jpg")
    (tmp_path / "more").symlink_to("/mnt/unplugged", target_is_directory=True)
    with pytest.raises(UserError, match="more is a link to /mnt/unplugged, which is not there"):
        found(tmp_path)


@pytest.mark.skipif(os.getuid() == 0, reason="root may read everything")
def test_a_folder_that_may_not_be_read_is_named(tmp_path):
    put(tmp_path, "closed/a.jpg")
    (tmp_path / "closed").chmod(0)
    with pytest.raises(UserError, match="closed cannot be read"):
        found(tmp_path)


@pytest.mark.parametrize(
    ("there", "said"),
    [
        (["x_mask.png", "y.png"], "x.png is missing; beside it: x_mask.png."),
        (["x.jpg", "x_a.png", "x1.png", ".x.png"], "x.png is missing; beside it: x.jpg, x_a.png"),
        (["X.PNG"], "x.png is missing; beside it: X.PNG"),
        (["x1.png"], "x.png is missing; put it there or take it out of the list."),
    ],
)
def test_a_missing_file_is_told_with_what_lies_in_its_place(tmp_path, there, said):
    put(tmp_path, *there)
    assert said in str(listing.missing(tmp_path / "x.png"))


def test_a_missing_folder_is_told_with_the_file(tmp_path):
    sentence = str(listing.missing(tmp_path / "masks" / "x.png"))
    assert sentence.endswith(f"and so is its folder {tmp_path / 'masks'}.")


def test_no_photograph_at_all_is_an_error(tmp_path):
    put(tmp_path, *HIDDEN)
    with pytest.raises(UserError, match="holds no photographs"):
        images.find([tmp_path])
    for paths in ([], [tmp_path / "._a.jpg"]):
        with pytest.raises(UserError, match="no photograph to predict"):
            images.find(paths)


def test_two_photographs_of_one_name_are_refused(tmp_path):
    put(tmp_path, "a.jpg", "a.png")
    with pytest.raises(UserError, match=r"a\.png has the name of a\.jpg beside it"):
        folders.index_photographs(tmp_path)
