"""What kind a file or folder is, told from its content; what is none gets a sentence of its own."""

import json
import struct
import zipfile

import numpy as np
import pytest
import source_networks as theirs
import weight_files

from deeplab_jax import segmenter as segmenters
from deeplab_jax.types import UserError
from deeplab_jax.weights import names, sources


@pytest.fixture(scope="module")
def layers():
    """The layers of a small start from COCO."""
    layers = theirs.random_caffe_resnet(np.random.default_rng(0), (1, 1, 1, 1), 1)
    return layers | {"fc1_coco": [np.ones((91, 32, 1, 1), np.float32), np.ones(91, np.float32)]}


@pytest.mark.parametrize("first_byte", range(0, 256, 24))
def test_a_safetensors_file_is_known_whatever_the_first_byte_of_its_headers_length(
    tmp_path, first_byte
):
    """Headers are padded to a multiple of 8 bytes, so the length begins with one of 32 bytes."""
    rng = np.random.default_rng(0)
    weights = theirs.random_torch_resnet(rng, theirs.torch_names, (1, 1, 1, 1), 1)
    path = weight_files.write_safetensors(tmp_path / "w.safetensors", weights)
    whole = path.read_bytes()
    (length,) = struct.unpack("<Q", whole[:8])
    header, data = whole[8 : 8 + length], whole[8 + length :]
    padding = (first_byte - length) % 256
    assert json.loads(header + b" " * padding) == json.loads(header)
    path.write_bytes(struct.pack("<Q", length + padding) + header + b" " * padding + data)
    assert path.read_bytes()[0] == first_byte
    assert "trunk/res5_1/branch2c/var" in sources.read(path)[0]


FILES = {
    "nothing": ("w.pth", b"", "is empty; download it again"),
    "a pointer": (
        "w.pth",
        b"version https://git-lfs.github.com/spec/v1\noid sha256:0",
        "git lfs pull",
    ),
    "a page": ("w.pth", b"\n<!DOCTYPE html><html>", "is a web page"),
    "a refusal in XML": ("w.pth", b"<?xml version='1.0'?><Error>", "is a web page"),
    "MXNet": ("resnet-0000.params", b"\x12\x01" + bytes(20), "of MXNet"),
    "Paddle": ("resnet.pdparams", b"\x80\x04}q\x00.", "of Paddle"),
    "Detectron": ("R-50.pkl", b"\x80\x02}q\x00.", "such as Detectron's"),
    "TensorFlow's index": ("model.ckpt-20000.index", bytes(40), "checkpoint of TensorFlow"),
    "TensorFlow's data": (
        "model.ckpt.data-00000-of-00001",
        b"\x0a\x01",
        "checkpoint of TensorFlow",
    ),
    "TensorFlow's graph": ("frozen.pb", b"\x0a\x0f\x0a\x01", "graph of TensorFlow"),
    "TensorFlow's list": ("checkpoint", b'model_checkpoint_path: "m"', "list of checkpoints"),
    "Keras": ("resnet.h5", b"\x89HDF\r\n\x1a\n", "such as Keras writes"),
    "LiteRT": ("w.tflite", b"\x1c\0\0\0TFL3", "program of LiteRT"),
    "ONNX": ("w.onnx", b"\x08\x07\x12\x07pytorch\x1a\x03", "ONNX program"),
    "MATLAB": ("w.mat", b"MATLAB 5.0 MAT-file", "file of MATLAB"),
    "one array": ("w.npy", b"\x93NUMPY\x01\0", "as .npz"),
    "gzip": ("w.tar.gz", b"\x1f\x8b\x08", "is an archive; unpack it"),
    "tar": ("w.tar", b"w/" + bytes(255) + b"ustar", "is an archive; unpack it"),
    "prototxt": ("train.prototxt", b'# comment\nname: "net"\nlayer {', "is text"),
    "something else": ("w.bin", b"something else", "like none of the files"),
}


@pytest.mark.parametrize("kind", FILES)
def test_a_file_that_is_no_weights_is_told_what_it_is(tmp_path, kind):
    name, content, part = FILES[kind]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=part) as error:
        segmenters.load(tmp_path / name)
    assert str(tmp_path / name) in str(error.value)
    assert "\n" not in str(error.value)


FOLDERS = {
    "SavedModel": (["saved_model.pb", "variables/variables.index"], "SavedModel of TensorFlow"),
    "TensorFlow": (["checkpoint", "model.index"], "holds a checkpoint of TensorFlow"),
    "Orbax": (["_CHECKPOINT_METADATA", "default/_METADATA"], "give the work folder of the run"),
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
        segmenters.load(tmp_path / "f")
    assert "\n" not in str(error.value)


@pytest.fixture
def archive(tmp_path, layers):
    """The authors' prototxt_and_model.zip."""
    path = tmp_path / "prototxt_and_model.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as made:
        for name in ("init", "train_iter_20000"):
            file = weight_files.write_msc_caffemodel(tmp_path / "made", layers, ())
            made.write(file, f"release/{name}.caffemodel")
            file.unlink()
        made.writestr("release/train.prototxt", "layer {}")
    return path


def test_a_network_in_the_authors_zip_is_read_by_its_name(tmp_path, archive, layers):
    plain = weight_files.write_msc_caffemodel(tmp_path / "init.caffemodel", layers, ())
    flat, header = sources.read(plain)
    for member in ("init.caffemodel", "release/init.caffemodel"):
        assert names.resolve(archive / member) == archive / member
        found, of_zip = sources.read(archive / member)
        assert sources.sha256(archive / member) == header["source"]["sha256"]
        assert of_zip == header
        assert header["source"]["trained_on"] == "ImageNet and MS-COCO (91 classes)"
        assert found.keys() == flat.keys()
        for name, array in flat.items():
            np.testing.assert_array_equal(found[name], array)


def test_a_zip_of_one_network_needs_no_name(tmp_path, layers):
    file = weight_files.write_msc_caffemodel(tmp_path / "init.caffemodel", layers, ())
    with zipfile.ZipFile(tmp_path / "one.zip", "w") as made:
        made.write(file, "init.caffemodel")
    assert sources.read(tmp_path / "one.zip")[1] == sources.read(file)[1]


def test_a_zip_of_several_networks_asks_for_one(tmp_path, archive):
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
