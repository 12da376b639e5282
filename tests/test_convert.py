"""convert_weights.py as a user meets it: one file written, or one sentence and nothing written."""

import os
import re
import subprocess
import sys

import convert_weights
import numpy as np
import pytest
import source_networks as theirs
import weight_files
from runs_with_faults import EXPERIMENTS

from deeplab_jax.types import UserError
from deeplab_jax.weights import files, formats, published, sources

STAGES = (1, 1, 1, 1)
WIDTH = 2


@pytest.fixture(scope="module")
def weights():
    return theirs.kazuto(np.random.default_rng(0), STAGES, WIDTH, classes=21)


@pytest.fixture
def source(tmp_path, weights):
    return weight_files.write_pth(tmp_path / "w.pth", weights)


@pytest.fixture
def dest(tmp_path):
    (tmp_path / "out").mkdir()
    return tmp_path / "out" / "w.safetensors"


def convert(source, dest, **options):
    own = {name: options.pop(name) for name in ("num_classes", "alignment") if name in options}
    answers = sources.Answers(**options)
    convert_weights.main(convert_weights.Options(source, dest, answers=answers, **own))


def refusal(source, dest, **options) -> str:
    """The sentence a conversion ends with; nothing is left behind."""
    with pytest.raises(UserError) as error:
        convert(source, dest, **options)
    assert list(dest.parent.iterdir()) == []
    assert "\n" not in str(error.value)
    return str(error.value)


def test_the_file_holds_what_the_source_holds_and_says_where_it_comes_from(source, dest):
    convert(source, dest)
    arrays, header = sources.read(dest)
    expected, _ = sources.read(source)
    assert arrays.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_array_equal(arrays[name], array)
    assert header["source"]["sha256"] == formats.sha256(source)
    assert header["model"]["mean_bgr"] == [104.008, 116.669, 122.675]
    assert header["model"]["alignment"] == "ports"
    assert len(header["class_names"]) == 21


def test_a_fresh_head_leaves_the_last_layer_out_and_nothing_else(source, dest):
    convert(source, dest, num_classes=3, fresh_head=True)
    arrays, header = sources.read(dest)
    expected, _ = sources.read(source)
    assert expected.keys() - arrays.keys() == {n for n in expected if files.is_classifier(n)}
    assert header["class_names"] == []


def test_the_coco_init_file_keeps_its_91_classes(tmp_path, dest):
    layers = theirs.as_caffe(theirs.draw_units(np.random.default_rng(1), STAGES, WIDTH))
    layers["fc1_coco"] = [np.ones((91, 64, 1, 1), np.float32), np.ones(91, np.float32)]
    source = weight_files.write_msc_caffemodel(tmp_path / "init.caffemodel", layers, ())
    convert(source, dest)
    _, header = sources.read(dest)
    assert header["model"]["aspp_rates"] == [1]
    assert header["model"]["head_kernel_size"] == 1
    assert len(header["class_names"]) == 91
    assert "COCO" in header["source"]["trained_on"]


def renamed(weights):
    return {
        n.replace("layer3.block1.conv3x3", "layer3.block1.conv9x9"): a for n, a in weights.items()
    }


def changed(weights, name, change):
    return weights | {name: np.ascontiguousarray(change(weights[name]))}


def poisoned(array):
    array = array.copy()
    array.flat[5] = np.nan
    return array


KERNEL = "base.layer4.block1.conv3x3.conv.weight"

BAD = {
    "renamed": (renamed, "base.layer3.block1.conv9x9.*lacks base.layer3.block1.conv3x3.*renamed"),
    "missing": (
        lambda w: {n: a for n, a in w.items() if n != KERNEL},
        f"lacks {KERNEL}",
    ),
    "transposed": (
        lambda w: changed(w, "base.aspp.c0.weight", lambda a: a.transpose(2, 3, 1, 0)),
        "a head with 64 x 21 taps, and a square was expected",
    ),
    "nan": (lambda w: changed(w, KERNEL, poisoned), f"{KERNEL} that are not finite"),
    "one stranger": (lambda w: w | {"extra": np.ones(3, np.float32)}, "holds extra"),
    "flat": (lambda w: changed(w, KERNEL, np.ravel), "axes oihw were expected"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_file_is_told_in_one_sentence_and_nothing_is_written(tmp_path, dest, weights, case):
    spoil, pattern = BAD[case]
    source = weight_files.write_pth(tmp_path / "w.pth", spoil(weights))
    assert re.search(pattern, refusal(source, dest))


def test_another_number_of_classes_is_refused_without_a_fresh_head(source, dest):
    message = refusal(source, dest, num_classes=5)
    assert "has 21 classes" in message
    assert "--fresh-head" in message


def test_files_that_hold_no_weights_are_refused(tmp_path, dest, weights):
    whole = weight_files.write_pth(tmp_path / "w.pth", weights).read_bytes()
    source = tmp_path / "bad"
    cases = {
        whole[: len(whole) // 2]: "cannot be read as a PyTorch checkpoint",
        b"\x0anonsense": "as a .caffemodel: it is damaged",
        b"\x80\x02nonsense": "cannot be read as a PyTorch checkpoint",
        b"\x00\x01\x00\x00\x00\x00\x00\x00{": "cannot be read as a safetensors file",
    }
    for data, part in cases.items():
        source.write_bytes(data)
        assert part in refusal(source, dest)
    assert "there is no file or folder" in refusal(tmp_path / "nowhere", dest)


def test_a_path_that_cannot_be_written_is_refused_before_anything_is_read(source, tmp_path):
    before = source.read_bytes()
    cases = {
        tmp_path: "is a folder",
        tmp_path / "nowhere" / "w": f"there is no folder {tmp_path / 'nowhere'}",
        source: "is the file to read from",
    }
    for place, part in cases.items():
        with pytest.raises(UserError, match=part):
            convert(source, place)
    assert source.read_bytes() == before
    assert list(tmp_path.iterdir()) == [source]


def test_an_older_file_is_replaced(source, dest):
    dest.write_text("older")
    convert(source, dest)
    assert sources.read(dest)
    assert list(dest.parent.iterdir()) == [dest]


def test_rates_that_contradict_the_file_are_refused(source, dest):
    assert "with the rates (6, 12, 18, 24)" in refusal(source, dest, aspp_rates=(1, 2))
    convert(source, dest, aspp_rates=(1, 2, 3, 4))  # a .pth does not say its rates
    assert sources.read(dest)[1]["model"]["aspp_rates"] == [1, 2, 3, 4]
    other = dest.with_name("other")
    with pytest.raises(UserError, match=r"with the rates \(1, 2, 3, 4\)"):
        convert(dest, other, aspp_rates=(6, 12, 18, 24))
    assert not other.exists()


def test_what_a_file_leaves_open_is_answered_by_options(tmp_path, dest, weights):
    rng = np.random.default_rng(3)
    plain = theirs.as_torch(theirs.draw_units(rng, STAGES, WIDTH, inputs=1))
    source = weight_files.write_pth(tmp_path / "w.pth", plain)
    assert "--read-as torchvision" in refusal(source, dest)
    convert(source, dest, read_as="torchvision")
    assert sources.read(dest)[1]["model"]["stride_placement"] == "torch"
    alone = {name.removeprefix("base."): array for name, array in weights.items()}
    source = weight_files.write_pth(tmp_path / "w.pth", alone)
    dest.unlink()
    assert "--scales 1.0, or" in refusal(source, dest)
    convert(source, dest, scales=(1.0,), alignment="corners")
    model = sources.read(dest)[1]["model"]
    assert (model["scales"], model["alignment"]) == ([1.0], "corners")


def test_weights_that_saw_val_say_so_beside_their_score():
    def header(file, backbone="resnet"):
        source = {"file": file, "sha256": "0" * 64}
        return {"model": {"backbone": backbone}, "source": source}

    seen = published.remark(header("train2_iter_20000.caffemodel"), "val")
    assert "has seen the photographs of val" in seen
    expected = published.remark(header("train_iter_20000.caffemodel"), "val")
    assert "76.35" in expected
    assert published.remark(header("train2_iter_20000.caffemodel"), "test") is None
    assert published.remark(header("mine.pth"), "val") is None
    assert published.remark({"model": {}, "source": "runs/small"}, "val") is None
    port = published.remark(header("deeplabv2_resnet101_msc-vocaug.pth"), "val")
    assert "has seen the photographs of val" in port
    assert "recognised by its name" in port


@pytest.mark.parametrize("split", ["trainval", "trainval_aug", "val"])
def test_a_run_trained_on_val_says_so_beside_its_score(split):
    source = {"file": "runs/voc", "sha256": "0" * 64, "trained_on": split}
    header = {"model": {"backbone": "resnet"}, "source": source}
    assert f"runs/voc was trained on {split}: it has seen" in published.remark(header, "val")
    assert published.remark(header, "test") is None
    source["trained_on"] = "train_aug"
    assert published.remark(header, "val") is None


MEASURED = """
import sys, time
sys.path[:0] = sys.argv[1:3]
import convert_weights as script
from pathlib import Path
from paced import peak_memory  # ru_maxrss of a child begins at its parent's
before, started = peak_memory(), time.process_time()  # a clock tells of other processes, too
script.main(script.Options(Path(sys.argv[3]), Path(sys.argv[4])))
print(peak_memory() - before, time.process_time() - started)
"""


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["pth", "caffemodel"])
def test_converting_a_resnet101_takes_10_seconds_and_3_times_its_size(tmp_path, dest, kind):
    rng = np.random.default_rng(2)
    if kind == "pth":
        weights = theirs.kazuto(rng, (3, 4, 23, 3), 64, classes=21)
        source = weight_files.write_pth(tmp_path / "w.pth", weights)
    else:
        layers = theirs.as_caffe(theirs.draw_units(rng, (3, 4, 23, 3), 64))
        layers |= weight_files.caffe_head(theirs.draw_head(rng, 21, 2048))
        source = tmp_path / "w.caffemodel"
        with open(source, "wb") as file:
            for name, blobs in layers.items():
                file.write(weight_files.layer(name, weight_files.kind_of(name), blobs))
    folders = [str(EXPERIMENTS), str(EXPERIMENTS / "benchmarks")]
    command = [sys.executable, "-c", MEASURED, *folders, str(source), str(dest)]
    out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    memory, seconds = map(float, out.splitlines()[-1].split())
    size = os.path.getsize(source)
    assert memory <= 3 * size
    assert seconds <= 10
