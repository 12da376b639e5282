"""Downloads from a server of the test's own, on this machine."""

import hashlib
import http.server
import threading
from dataclasses import replace

import numpy as np
import pytest

from deeplab_jax.data import downloads
from deeplab_jax.data.downloads import Archive
from deeplab_jax.types import UserError

CONTENT = np.random.default_rng(0).bytes(3_000_000)
CHECKSUM = "sha256:" + hashlib.sha256(CONTENT).hexdigest()


class Handler(http.server.BaseHTTPRequestHandler):
    """Gives CONTENT, or what a Range asks for, and breaks off where the test says."""

    def do_GET(self):
        self.server.ranges.append(self.headers.get("Range"))
        if self.path != "/archive.tar":
            self.send_error(404)
            return
        start = int((self.headers.get("Range") or "bytes=0-")[6:-1])
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(CONTENT) - start))
        if start:
            end = len(CONTENT) - 1
            self.send_header("Content-Range", f"bytes {start}-{end}/{len(CONTENT)}")
        self.end_headers()
        self.wfile.write(CONTENT[start : self.server.breaks_after])

    def log_message(self, *_):
        pass


@pytest.fixture
def server():
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.ranges, server.breaks_after = [], None
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


@pytest.fixture
def archive(server):
    address = f"http://127.0.0.1:{server.server_port}/archive.tar"
    return Archive((address,), CHECKSUM, len(CONTENT))


def test_an_archive_is_fetched_and_verified_once(archive, server, tmp_path):
    path = downloads.fetch(archive, tmp_path)
    assert path == tmp_path / "archive.tar"
    assert path.read_bytes() == CONTENT
    assert downloads.fetch(archive, tmp_path) == path
    assert len(server.ranges) == 1
    assert [p.name for p in tmp_path.iterdir()] == ["archive.tar"]


def test_a_file_address_will_do(tmp_path):
    (tmp_path / "owner").mkdir()
    (tmp_path / "owner/archive.tar").write_bytes(CONTENT)
    archive = Archive(((tmp_path / "owner/archive.tar").as_uri(),), CHECKSUM)
    (tmp_path / "mine").mkdir()
    assert downloads.fetch(archive, tmp_path / "mine").read_bytes() == CONTENT


def test_a_download_that_broke_off_goes_on_where_it_was(archive, server, tmp_path):
    server.breaks_after = 1_200_000
    with pytest.raises(UserError, match="could not be downloaded"):
        downloads.fetch(archive, tmp_path)
    assert not (tmp_path / "archive.tar").exists()
    server.breaks_after = None
    assert downloads.fetch(archive, tmp_path).read_bytes() == CONTENT
    assert server.ranges == [None, "bytes=1200000-", "bytes=1200000-"]


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


def test_a_dead_address_is_told_with_what_to_do(server, tmp_path):
    gone = f"http://127.0.0.1:{server.server_port}/gone.tar"
    silent = "http://127.0.0.1:9/gone.tar"  # nobody listens at the discard port
    with pytest.raises(UserError) as raised:
        downloads.fetch(Archive((gone, silent), CHECKSUM), tmp_path)
    message = str(raised.value)
    assert f"{gone}: HTTP Error 404" in message
    assert f"{silent}: " in message
    assert f"put the file into {tmp_path} by hand" in message
    assert "\n" not in message


def test_the_next_address_is_asked_where_the_first_is_dead(archive, server, tmp_path):
    gone = f"http://127.0.0.1:{server.server_port}/archive.tar/gone/archive.tar"
    found = downloads.fetch(replace(archive, addresses=(gone, *archive.addresses)), tmp_path)
    assert found.read_bytes() == CONTENT


@pytest.mark.parametrize("name", downloads.DATA_SETS)
def test_every_archive_has_a_checksum_of_its_kind(name):
    for archive in downloads.DATA_SETS[name]:
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
