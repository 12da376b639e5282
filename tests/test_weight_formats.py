"""What kind a file or folder is, told from its content; what is none gets a sentence of its own.

A file may lie in a zip, and have other things beside the weights.
"""

import argparse
import json
import pathlib
import pickle
import struct
import zipfile

import numpy as np
import pytest
import source_networks as theirs
import weight_files
from safetensors.numpy import save_file

from deeplab_jax import segmenter
from deeplab_jax.types import UserError
from deeplab_jax.weights import formats, names, sources


@pytest.fixture(scope="module")
def layers():
    """The layers of a small start from COCO."""
    layers = theirs.as_caffe(theirs.draw_units(np.random.default_rng(0), width=1))
    return layers | {"fc1_coco": [np.ones((91, 32, 1, 1), np.float32), np.ones(91, np.float32)]}


@pytest.mark.parametrize("first_byte", range(0, 256, 24))
def test_a_safetensors_file_is_known_whatever_the_first_byte_of_its_headers_length(
    tmp_path, first_byte
):
    """Headers are padded to a multiple of 8 bytes, so the length begins with one of 32 bytes."""
    weights = theirs.kazuto(np.random.default_rng(0), width=1)
    path = tmp_path / "w.safetensors"
    save_file(weights, path)
    whole = path.read_bytes()
    (length,) = struct.unpack("<Q", whole[:8])
    header, data = whole[8 : 8 + length], whole[8 + length :]
    padding = (first_byte - length) % 256
    assert json.loads(header + b" " * padding) == json.loads(header)
    path.write_bytes(struct.pack("<Q", length + padding) + header + b" " * padding + data)
    assert path.read_bytes()[0] == first_byte
    assert "trunk/res5_1/branch2c/var" in sources.read(path)[0]


def test_every_format_gives_the_same_arrays(tmp_path):
    weights = theirs.kazuto(np.random.default_rng(3))
    weight_files.write_pth(tmp_path / "zip", weights)
    weight_files.write_legacy_pth(tmp_path / "legacy", weights)
    save_file(weights, tmp_path / "safetensors")
    np.savez(tmp_path / "w.npz", **weights)
    kernel = weights["base.layer3.block1.conv3x3.conv.weight"].transpose(2, 3, 1, 0)
    variance = weights["base.layer1.conv1.bn.running_var"]
    for path in tmp_path.iterdir():
        flat, _ = sources.read(path)
        np.testing.assert_array_equal(flat["trunk/res3_1/branch2b/kernel"], kernel)
        np.testing.assert_array_equal(flat["trunk/conv1/var"], variance)


FILES = {
    "w.pth": [
        (b"", "is empty; download it again"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "git lfs pull"),
        (b"\n<!DOCTYPE html><html>", "is a web page"),
        (b"<?xml version='1.0'?><Error>", "is a web page"),
    ],
    "resnet-0000.params": [(b"\x12\x01" + bytes(20), "of MXNet")],
    "resnet.pdparams": [(b"\x80\x04}q\x00.", "of Paddle")],
    "R-50.pkl": [(b"\x80\x02}q\x00.", "such as Detectron's")],
    "model.ckpt-20000.index": [(bytes(40), "TensorFlow's checkpoint")],
    "model.ckpt.data-00000-of-00001": [(b"\x0a\x01", "TensorFlow's checkpoint")],
    "frozen.pb": [(b"\x0a\x0f\x0a\x01", "graph of TensorFlow")],
    "checkpoint": [(b'model_checkpoint_path: "m"', "list of checkpoints")],
    "resnet.h5": [(b"\x89HDF\r\n\x1a\n", "such as Keras writes")],
    "w.tflite": [(b"\x1c\0\0\0TFL3", "program of LiteRT")],
    "w.onnx": [(b"\x08\x07\x12\x07pytorch\x1a\x03", "ONNX, whose weights")],
    "w.mat": [(b"MATLAB 5.0 MAT-file", "file of MATLAB")],
    "w.npy": [(b"\x93NUMPY\x01\0", "as .npz")],
    "w.tar": [
        (b"\x1f\x8b\x08", "is an archive; unpack it"),
        (b"w/" + bytes(255) + b"ustar", "is an archive; unpack it"),
    ],
    "train.prototxt": [(b'# comment\nname: "net"\nlayer {', "is text")],
    "w.bin": [(b"something else", "like none of the files")],
}


@pytest.mark.parametrize("name", FILES)
def test_a_file_that_is_no_weights_is_told_what_it_is(tmp_path, name):
    for content, part in FILES[name]:
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match=part) as error:
            segmenter.load(tmp_path / name)
        assert str(tmp_path / name) in str(error.value)
        assert "\n" not in str(error.value)


FOLDERS = {
    "SavedModel": (["saved_model.pb", "variables/variables.index"], "SavedModel of TensorFlow"),
    "TensorFlow": (["checkpoint", "model.index"], "holds TensorFlow's checkpoint"),
    "Orbax": (["_CHECKPOINT_METADATA", "default/_METADATA"], "give the work folder of its run"),
    "a step of a run": (["model/_METADATA", "optimizer/_METADATA"], "give the work folder"),
    "an item of a step": (["_METADATA", "manifest.ocdbt"], "give the work folder"),
    "nothing": (["a.txt"], "is not a work folder"),
}


@pytest.mark.parametrize("kind", FOLDERS)
def test_a_folder_that_is_no_run_is_told_what_it_is(tmp_path, kind):
    files, part = FOLDERS[kind]
    for name in files:
        (tmp_path / "f" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "f" / name).touch()
    with pytest.raises(UserError, match=part) as error:
        segmenter.load(tmp_path / "f")
    assert "\n" not in str(error.value)


@pytest.fixture
def archive(tmp_path, layers):
    """The authors' prototxt_and_model.zip."""
    path = tmp_path / "prototxt_and_model.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as made:
        for name in ("init", "train_iter_20000"):
            file = weight_files.write_msc_caffemodel(tmp_path / "made", layers, ())
            made.write(file, f"release/{name}.caffemodel")
        made.writestr("release/train.prototxt", "layer {}")
    return path


def test_a_network_in_the_authors_zip_is_read_by_its_name(tmp_path, archive, layers):
    plain = weight_files.write_msc_caffemodel(tmp_path / "init.caffemodel", layers, ())
    flat, header = sources.read(plain)
    assert header["source"]["trained_on"] == "ImageNet and MS-COCO (91 classes)"
    with zipfile.ZipFile(tmp_path / "one.zip", "w") as made:
        made.write(plain, "init.caffemodel")
    named = (archive / "init.caffemodel", archive / "release/init.caffemodel")
    for path in (*named, tmp_path / "one.zip"):  # a zip of one network needs no name
        found, of_zip = sources.read(path)
        assert names.resolve(path) == path
        assert formats.sha256(path) == header["source"]["sha256"]
        assert of_zip == header
        assert found.keys() == flat.keys()
        for name, array in flat.items():
            np.testing.assert_array_equal(found[name], array)


def test_a_zip_of_several_networks_asks_for_one(archive):
    several = "holds release/init.caffemodel, release/train_iter_20000.caffemodel"
    with pytest.raises(UserError, match=f"{several}; name one, as in {archive}/init.caffemodel"):
        sources.read(archive)
    with pytest.raises(UserError, match="and not one other.caffemodel"):
        sources.read(archive / "other.caffemodel")
    with zipfile.ZipFile(archive, "a") as made:
        made.writestr("vgg/init.caffemodel", b"")
    with pytest.raises(UserError, match="and not one init.caffemodel"):
        sources.read(archive / "init.caffemodel")


def test_a_zip_that_expands_or_lists_too_much_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "w.zip", "w", zipfile.ZIP_DEFLATED) as made:
        made.writestr("w.caffemodel", bytes(10**6))
    with pytest.raises(UserError, match="far more than weights compress by"):
        sources.read(tmp_path / "w.zip")
    with zipfile.ZipFile(tmp_path / "many.zip", "w") as made:
        for i in range(45_000):
            made.writestr(f"{i:060d}", b"")
    with pytest.raises(UserError, match="a directory of .* bytes, too many"):
        sources.read(tmp_path / "many.zip")


PREFIXES = ("module.", "model.module.", "module.net.model.backbone.")


@pytest.mark.parametrize("prefix", PREFIXES)
def test_prefixes_of_frameworks_are_taken_off_in_any_order(tmp_path, prefix):
    weights = theirs.kazuto(np.random.default_rng(0))
    expected, _ = sources.read(weight_files.write_pth(tmp_path / "plain.pth", weights))
    weights = {prefix + name: array for name, array in weights.items()}
    weights["criterion.weight"] = np.ones(3, np.float32)
    found, header = sources.read(weight_files.write_pth(tmp_path / "w.pth", weights))
    assert header["source"]["convention"] == "kazuto1011/deeplab-pytorch"
    assert header["skipped"][sources.LOSS_REASON] == ["criterion.weight"]
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_array_equal(found[name], array)


def test_a_prefix_that_only_some_names_have_stays_and_is_refused(tmp_path):
    weights = theirs.kazuto(np.random.default_rng(0))
    both = {p + name: array for p in ("model.", "ema.") for name, array in weights.items()}
    with pytest.raises(UserError, match="e.g. 'ema.base.aspp.c0.bias'"):
        sources.read(weight_files.write_pth(tmp_path / "w.pth", both))


class Stranger:
    """A class that no reader may import."""

    def __init__(self):
        self.field = {"a": [1, 2, {3}]}


class Strangers(list):
    """A list that no reader may fill."""


BESIDE = {
    "namespace": argparse.Namespace(lr=2.5e-4, sizes=(321, 321), deep={"a": argparse.Namespace()}),
    "numpy scalar": np.float64(0.7),
    "numpy array": np.arange(4.0),
    "path": pathlib.PurePosixPath("runs/1"),
    "a class": argparse.Namespace,
    "sets": {1, 2, frozenset("ab")},
    "object": Stranger(),
    "list": Strangers([1, 2, 3]),
    "keyed by classes": {argparse.Namespace: 1, None: 2, 0.5: 3, True: 4, (1, 2): 5, "a": 6},
    "exception": ValueError("x"),
}


@pytest.mark.parametrize("protocol", range(5))
@pytest.mark.parametrize("kind", BESIDE)
def test_other_values_beside_the_weights_are_skipped_and_never_built(
    tmp_path, monkeypatch, kind, protocol
):
    arrays = {"conv1.weight": np.ones((2, 3), np.float32)}
    inner = weight_files.state_dict(arrays, legacy=False)[2:-1]
    value = pickle.dumps(BESIDE[kind], protocol)[2 if protocol >= 2 else 0 : -1]
    if protocol == 4:  # a frame's length stands before what follows
        value = value[9:] if value[:1] == b"\x95" else value
    items = weight_files.text("hyper_parameters") + value + weight_files.text("state_dict") + inner
    path = tmp_path / "w.ckpt"
    weight_files.write_pth(path, arrays, pickled=b"\x80\x02}(" + items + b"u.")
    monkeypatch.setattr(Stranger, "__new__", lambda *_: pytest.fail("it was built"))
    found = formats.read(path).arrays
    assert list(found) == ["conv1.weight"]
    np.testing.assert_array_equal(found["conv1.weight"], arrays["conv1.weight"])


def test_a_network_saved_whole_is_refused_by_the_name_of_its_class(tmp_path):
    path = weight_files.write_pth(tmp_path / "w.pth", {}, pickled=pickle.dumps(Stranger(), 2))
    with pytest.raises(UserError, match=r"an object of \w*test_weight_formats.Stranger"):
        formats.read(path)
