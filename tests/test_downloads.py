"""Downloads from a server on this machine."""

import hashlib
from dataclasses import replace

import numpy as np
import pytest
from file_server import serve

from deeplab_jax.data import downloads
from deeplab_jax.data.downloads import Archive
from deeplab_jax.types import UserError

CONTENT = np.random.default_rng(0).bytes(3_000_000)
CHECKSUM = "sha256:" + hashlib.sha256(CONTENT).hexdigest()

NOWHERE = "http://127.0.0.1:9/archive.tar"
"""Nobody listens at the discard port."""


@pytest.fixture
def serving():
    with serve(CONTENT) as serving:
        yield serving


@pytest.fixture
def archive(serving):
    return Archive((f"{serving.root}archive.tar",), CHECKSUM, len(CONTENT))


def test_an_archive_is_fetched_and_verified_once(archive, serving, tmp_path):
    path = downloads.fetch(archive, tmp_path)
    assert path == tmp_path / "archive.tar"
    assert path.read_bytes() == CONTENT
    assert downloads.fetch(archive, tmp_path) == path
    assert serving.asked == [None]
    assert [p.name for p in tmp_path.iterdir()] == ["archive.tar"]


def test_a_file_address_will_do(tmp_path):
    (tmp_path / "owner").mkdir()
    (tmp_path / "owner/archive.tar").write_bytes(CONTENT)
    archive = Archive(((tmp_path / "owner/archive.tar").as_uri(),), CHECKSUM)
    (tmp_path / "mine").mkdir()
    assert downloads.fetch(archive, tmp_path / "mine").read_bytes() == CONTENT


def test_a_download_that_broke_off_goes_on_where_it_was(archive, serving, tmp_path):
    serving.breaks_after = 400_000
    told = "could not be downloaded .*: the connection broke after 1200000 of 3000000 bytes"
    with pytest.raises(UserError, match=told):
        downloads.fetch(archive, tmp_path)
    assert not (tmp_path / "archive.tar").exists()
    serving.breaks_after = None
    assert downloads.fetch(archive, tmp_path).read_bytes() == CONTENT
    assert serving.asked == [None, *(f"bytes={n}00000-" for n in (4, 8, 12))]


@pytest.mark.parametrize("kind", ["sha256", "md5"])
def test_another_file_than_the_owners_is_refused_and_removed(archive, tmp_path, kind):
    other = replace(archive, checksum=f"{kind}:{hashlib.new(kind, b'other').hexdigest()}")
    with pytest.raises(UserError, match=rf"archive\.tar in .* has the {kind} \w+ and must have"):
        downloads.fetch(other, tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_damaged_file_of_the_users_is_refused_and_kept(archive, tmp_path):
    (tmp_path / "archive.tar").write_bytes(CONTENT[:-1])
    with pytest.raises(UserError, match="delete it, and get it again"):
        downloads.fetch(archive, tmp_path)
    assert (tmp_path / "archive.tar").exists()


def test_a_dead_address_is_told_with_what_to_do(archive, serving, tmp_path):
    serving.status = 404
    (gone,) = archive.addresses
    with pytest.raises(UserError) as raised:
        downloads.fetch(replace(archive, addresses=(gone, NOWHERE)), tmp_path)
    message = str(raised.value)
    assert f"{gone}: HTTP Error 404" in message
    assert f"{NOWHERE}: " in message
    assert f"put the file into {tmp_path} by hand" in message
    assert "\n" not in message


def test_the_next_address_is_asked_where_the_first_is_dead(archive, tmp_path):
    found = downloads.fetch(replace(archive, addresses=(NOWHERE, *archive.addresses)), tmp_path)
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
