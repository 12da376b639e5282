"""Archives of data sets, downloaded from a folder; servers that fail: test_weight_names.py."""

import hashlib
from dataclasses import replace

import numpy as np
import pytest

from deeplab_jax.data import downloads
from deeplab_jax.data.downloads import Archive
from deeplab_jax.types import UserError

CONTENT = np.random.default_rng(0).bytes(100_000)
CHECKSUM = "sha256:" + hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def archive(tmp_path):
    """One that its owner gives out."""
    path = tmp_path / "owner" / "archive.tar"
    path.parent.mkdir()
    path.write_bytes(CONTENT)
    return Archive((path.as_uri(),), CHECKSUM, len(CONTENT))


@pytest.fixture
def mine(tmp_path):
    (tmp_path / "mine").mkdir()
    return tmp_path / "mine"


def test_an_archive_is_fetched_and_verified_once(archive, mine, tmp_path):
    path = downloads.fetch(archive, mine)
    assert path == mine / "archive.tar"
    assert path.read_bytes() == CONTENT
    (tmp_path / "owner/archive.tar").unlink()
    assert downloads.fetch(archive, mine) == path
    assert list(mine.iterdir()) == [path]


@pytest.mark.parametrize("kind", ["sha256", "md5"])
def test_another_file_than_the_owners_is_refused_and_removed(archive, mine, kind):
    other = replace(archive, checksum=f"{kind}:{hashlib.new(kind, b'other').hexdigest()}")
    with pytest.raises(UserError, match=rf"archive\.tar in .* has the {kind} \w+ and must have"):
        downloads.fetch(other, mine)
    assert not list(mine.iterdir())


def test_a_damaged_file_of_the_users_is_refused_and_kept(archive, mine):
    (mine / "archive.tar").write_bytes(CONTENT[:-1])
    with pytest.raises(UserError, match="delete it, and get it again"):
        downloads.fetch(archive, mine)
    assert (mine / "archive.tar").exists()


def test_the_next_address_is_asked_and_where_all_are_dead_that_is_told(archive, mine):
    gone = "file:///gone/archive.tar"
    silent = "http://127.0.0.1:9/archive.tar"  # nobody listens at the discard port
    with pytest.raises(UserError) as raised:
        downloads.fetch(replace(archive, addresses=(gone, silent)), mine)
    message = str(raised.value)
    assert f"{gone}: " in message and f"{silent}: " in message
    assert f"put the file into {mine} by hand" in message
    assert "\n" not in message
    found = downloads.fetch(replace(archive, addresses=(gone, *archive.addresses)), mine)
    assert found.read_bytes() == CONTENT


def test_every_archive_has_a_checksum_of_its_kind():
    for archive in {archive for found in downloads.DATA_SETS.values() for archive in found}:
        kind, digest = archive.checksum.split(":")
        assert len(bytes.fromhex(digest)) == hashlib.new(kind).digest_size
        assert {address.rsplit("/", 1)[1] for address in archive.addresses} == {archive.name}


def test_data_sets_that_ask_for_registration_are_explained(tmp_path):
    with pytest.raises(UserError, match=r"by hand: .* gives to those who register"):
        downloads.fetch_data_set("cityscapes", tmp_path)
    with pytest.raises(
        UserError, match="there is no data set 'voc2013' to download; known are voc,"
    ):
        downloads.fetch_data_set("voc2013", tmp_path)
