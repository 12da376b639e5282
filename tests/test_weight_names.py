"""Weights by name, downloaded from a server on this machine.

The files have the names and shapes of the published ones, but for the number of channels.
"""

import hashlib
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import source_networks as theirs
import weight_files
from file_server import serve

from deeplab_jax import segmenter, start
from deeplab_jax.config import Config, DataConfig
from deeplab_jax.data import downloads
from deeplab_jax.types import VOC_CLASS_NAMES, UserError
from deeplab_jax.weights import names, published, sources


def port_file(folder, *, classes=21):
    """What the port's release holds: 632 entries, one channel instead of 64."""
    weights = theirs.kazuto(np.random.default_rng(0), published.RESNET101, 1, classes=classes)
    return weight_files.write_pth(folder / "w.pth", weights).read_bytes()


@pytest.fixture(scope="module")
def content(tmp_path_factory):
    return port_file(tmp_path_factory.mktemp("release"))


@pytest.fixture
def serving(content, monkeypatch, tmp_path):
    """The server behind every name; the cache is empty."""
    monkeypatch.setenv(names.CACHE_VARIABLE, str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    with serve(content) as serving:
        for name, named in names.NAMES.items():
            monkeypatch.setitem(names.NAMES, name, replace(named, folder=serving.root))
        yield serving


def cached(name="voc12"):
    return names.cache_folder() / names.NAMES[name].file


def partial():
    return cached().with_name(f"{cached().name}.partial")


def refusal(name="voc12") -> str:
    """The sentence that a name ends with; no file counts as there then."""
    with pytest.raises(UserError) as error:
        names.resolve(name)
    assert not cached(name).exists()
    assert "\n" not in str(error.value)
    return str(error.value)


def test_a_name_is_downloaded_once_and_the_folder_is_printed(serving, content, capsys):
    for _ in range(2):
        path = names.resolve("voc12")
        assert path == cached() and path.read_bytes() == content
        assert str(path) in capsys.readouterr().out
    assert serving.asked == [None]
    assert not partial().exists()


def test_load_takes_a_name_and_gives_the_class_names(serving, tmp_path):
    model, _, meta = segmenter.load("voc12")
    assert model.trunk.stage_sizes == (3, 4, 23, 3)
    assert meta["class_names"] == VOC_CLASS_NAMES
    assert "VOC 2012 trainaug" in meta["source"]["trained_on"]
    serving.content = port_file(tmp_path, classes=182)
    class_names = segmenter.read_weights(Path("cocostuff164k"))[1]["class_names"]
    assert [class_names[i] for i in (0, 156, 181)] == ["person", "sky-other", "wood"]
    assert len(set(class_names)) == 182


WAYS = {
    # what the server does, what is there of an earlier download, and what is asked for
    "a connection that breaks": ({"breaks_after": 0.6}, 0, [None, 0.6]),
    "a server without ranges": ({"ranges": False}, 0.1, [0.1]),
    "a server that sends another range": ({"wrong_range": True}, 0.1, [0.1, None]),
    "all of it is there": ({}, 1, [1]),
    "a part of another file": ({}, -0.1, [0.1, None]),
    "more than there is": ({}, -1.1, [1.1, None]),
}


@pytest.mark.parametrize("way", WAYS)
def test_the_file_is_whole_whatever_happened_on_the_way(serving, content, way):
    faults, there, asked = WAYS[way]

    def length(share):
        return int(abs(share) * len(content))

    for name, value in faults.items():
        setattr(serving, name, length(value) if name == "breaks_after" else value)
    if there:
        names.cache_folder().mkdir()
        partial().write_bytes(content[: length(there)] if there > 0 else bytes(length(there)))
    assert names.resolve("voc12").read_bytes() == content
    assert serving.asked == [part and f"bytes={length(part)}-" for part in asked]


def test_a_server_that_does_not_answer_is_told_with_the_folder_for_the_file(serving, monkeypatch):
    monkeypatch.setattr(downloads, "TIMEOUT", 0.2)
    serving.silent = 1
    assert "timed out" in refusal()
    serving.status = 404
    message = refusal()
    assert "HTTP Error 404" in message
    assert names.NAMES["voc12"].address in message
    assert f"put the file into {names.cache_folder()} by hand" in message


def test_another_file_than_the_names_is_refused_and_removed(serving, content, tmp_path):
    for given, part in (
        (b"<html>log in to this network first</html>", "is a web page and not the file"),
        (port_file(tmp_path, classes=20), r"('resnet', (3, 4, 23, 3), 20)"),
        (content[:-5000], "cannot be read as"),
    ):
        serving.content = given
        assert part in refusal()
        assert not partial().exists()


def imagenet(folder, monkeypatch):
    """A file of torchvision's names under imagenet-resnet50, its SHA-256 the publisher's."""
    units = theirs.draw_units(np.random.default_rng(1), published.RESNET50, 1, inputs=1)
    weights = theirs.as_torch(units)
    weights |= {"fc.weight": np.ones((1000, 32), np.float32), "fc.bias": np.ones(1000, np.float32)}
    content = weight_files.write_pth(folder / "w.pth", weights).read_bytes()
    digest = hashlib.sha256(content).hexdigest()[:8]
    named = replace(names.NAMES["imagenet-resnet50"], size=len(content), sha256=digest)
    monkeypatch.setitem(names.NAMES, "imagenet-resnet50", named)
    monkeypatch.setattr(published, "KNOWN", (named, *published.KNOWN))
    return content


def test_size_and_sha_are_checked_where_they_are_known(serving, tmp_path, monkeypatch):
    serving.content = content = imagenet(tmp_path, monkeypatch)
    assert names.resolve("imagenet-resnet50").read_bytes() == content
    _, meta = segmenter.read_weights(Path("imagenet-resnet50"))
    assert meta["source"]["trained_on"] == "ImageNet"
    cached("imagenet-resnet50").unlink()
    serving.content = content[:-1] + b"\1"
    assert "must have" in refusal("imagenet-resnet50")
    serving.content = content + b"\0"
    assert f"has {len(content) + 1} bytes" in refusal("imagenet-resnet50")


def test_a_file_put_there_by_hand_is_used_and_a_wrong_one_refused(
    serving, content, tmp_path, monkeypatch
):
    names.cache_folder().mkdir()
    cached().write_bytes(content)
    assert len(segmenter.read_weights(Path("voc12"))[1]["class_names"]) == 21
    cached().write_bytes(port_file(tmp_path, classes=5))
    with pytest.raises(UserError, match=r"holds a network .*5\), .* get it again from"):
        segmenter.load("voc12")
    cached("imagenet-resnet50").write_bytes(imagenet(tmp_path, monkeypatch)[:-1] + b"\1")
    with pytest.raises(UserError, match="has the SHA-256"):
        names.resolve("imagenet-resnet50")
    assert serving.asked == []


def test_a_file_or_network_of_the_name_wins_but_no_folder_of_photographs(serving, content):
    Path("camvid/JPEGImages").mkdir(parents=True)
    assert names.resolve("camvid").parent == names.BUNDLED
    Path("camvid/config.json").touch()
    assert names.resolve("camvid") == Path("camvid")
    Path("voc12").write_bytes(content)
    assert len(segmenter.read_weights(Path("voc12"))[1]["class_names"]) == 21
    assert serving.asked == []


def test_what_is_no_file_and_no_name_is_told_with_the_names(serving, monkeypatch):
    with pytest.raises(UserError, match=r"no file or folder voc13; .*voc12, cocostuff10k"):
        names.resolve("voc13")
    with pytest.raises(UserError, match="give prototxt_and_model.zip/init.caffemodel"):
        names.resolve("coco-resnet101")
    Path("file").touch()
    monkeypatch.setenv(names.CACHE_VARIABLE, "file/cache")
    with pytest.raises(UserError, match=f"set {names.CACHE_VARIABLE} to another folder"):
        names.resolve("voc12")


PROGRAM = """
import sys
from dataclasses import replace
from deeplab_jax.weights import names
names.NAMES["voc12"] = replace(names.NAMES["voc12"], folder=sys.argv[1])
print(names.resolve("voc12"))
"""


def test_two_processes_at_once_download_once(serving, content):
    serving.silent = 3
    command = [sys.executable, "-c", PROGRAM, names.NAMES["voc12"].folder]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    for process in both:
        assert process.communicate()[0].splitlines()[-1] == str(cached())
        assert process.returncode == 0
    assert serving.asked == [None]
    assert cached().read_bytes() == content


def test_every_name_is_a_known_published_file():
    for name, named in names.NAMES.items():
        assert named.address.startswith("https://")
        assert named in published.KNOWN, name
        assert named.sha256 is None or named.sha256 in named.file


def test_the_list_is_printed_by_predict(script, capsys):
    assert script("predict", "--list-weights") == 0
    out = capsys.readouterr().out
    assert all(name in out for name in (*names.NAMES, *names.BY_HAND))
    assert "76.65 %" in out


def test_training_starts_from_a_name(serving, tmp_path, monkeypatch):
    serving.content = imagenet(tmp_path, monkeypatch)
    data = DataConfig(root=tmp_path, train_split="train")
    weights = Path("imagenet-resnet50")
    started, given, *_ = start.resolve(Config(data=data, weights=weights, workdir=tmp_path / "run"))
    assert started.fresh_head
    assert started.model.stride_placement == "torch"
    expected, _ = sources.read(cached("imagenet-resnet50"))
    assert given.keys() == expected.keys()
