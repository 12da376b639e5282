"""Weights that a training framework saved with other things, and files of other networks."""

import argparse
import io
import pathlib
import pickle

import numpy as np
import pytest
import source_networks as theirs
import weight_files

from deeplab_jax.types import UserError
from deeplab_jax.weights import pickles, pth, sources

STAGES = (1, 1, 1, 1)
WIDTH = 2


def kazuto(rng):
    weights = theirs.random_torch_resnet(rng, theirs.kazuto_names, STAGES, WIDTH)
    for i in range(4):
        weights[f"aspp.c{i}.weight"] = theirs.random_kernel(rng, (3, 32 * WIDTH, 3, 3))
        weights[f"aspp.c{i}.bias"] = np.ones(3, np.float32)
    return weights


def torchvision(rng, *, width=WIDTH):
    return theirs.random_torch_resnet(rng, theirs.torch_names, STAGES, width)


def prefixed(weights, prefix):
    return {prefix + name: array for name, array in weights.items()}


def ones(*shape):
    return np.ones(shape, np.float32)


PREFIXES = ("module.", "model.", "net.", "backbone.", "model.module.", "module.net.model.backbone.")


@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize("own", ["base.", ""])
def test_prefixes_of_frameworks_are_taken_off_in_any_order(tmp_path, prefix, own):
    weights = kazuto(np.random.default_rng(0))
    expected, _ = sources.read(weight_files.write_pth(tmp_path / "plain.pth", weights))
    path = weight_files.write_pth(tmp_path / "w.pth", prefixed(weights, prefix + own))
    found, header = sources.read(path)
    assert header["source"]["convention"] == "kazuto1011/deeplab-pytorch"
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_array_equal(found[name], array)


def test_a_prefix_that_only_some_names_have_stays_and_is_refused(tmp_path):
    weights = kazuto(np.random.default_rng(0))
    both = prefixed(weights, "model.") | prefixed(weights, "ema.")
    with pytest.raises(UserError, match="e.g. 'ema.aspp.c0.bias'"):
        sources.read(weight_files.write_pth(tmp_path / "w.pth", both))


def test_class_weights_of_a_loss_are_listed_as_skipped(tmp_path):
    weights = prefixed(kazuto(np.random.default_rng(1)), "model.")
    path = weight_files.write_pth(tmp_path / "w.pth", weights | {"criterion.weight": ones(3)})
    flat, header = sources.read(path)
    assert header["skipped"][sources.LOSS_REASON] == ["criterion.weight"]
    assert "trunk/conv1/kernel" in flat


class Stranger:
    """A class that no reader may import."""

    def __init__(self):
        self.field = {"a": [1, 2, {3}]}


BESIDE = {
    "namespace": argparse.Namespace(lr=2.5e-4, sizes=(321, 321), deep={"a": argparse.Namespace()}),
    "numpy scalar": np.float64(0.7),
    "numpy array": np.arange(4.0),
    "path": pathlib.PurePosixPath("runs/1"),
    "a class": argparse.Namespace,
    "sets": {1, 2, frozenset("ab")},
    "object": Stranger(),
    "keyed by classes": {argparse.Namespace: 1, None: 2, 0.5: 3, True: 4, "a": 5},
    "exception": ValueError("x"),
}


@pytest.mark.parametrize("protocol", range(5))
@pytest.mark.parametrize("kind", BESIDE)
def test_other_values_beside_the_weights_are_skipped_and_never_built(
    tmp_path, monkeypatch, kind, protocol
):
    arrays = {"conv1.weight": ones(2, 3)}
    inner = weight_files.state_dict(arrays, legacy=False)[2:-1]
    value = pickle.dumps(BESIDE[kind], protocol)[2 if protocol >= 2 else 0 : -1]
    if protocol == 4:  # a frame's length stands before what follows
        value = value[9:] if value[:1] == b"\x95" else value
    items = weight_files.text("hyper_parameters") + value + weight_files.text("state_dict") + inner
    path = tmp_path / "w.ckpt"
    weight_files.write_pth(path, arrays, pickled=b"\x80\x02}(" + items + b"u.")
    monkeypatch.setattr(Stranger, "__new__", lambda *_: pytest.fail("it was built"))
    found = pth.read(path)
    assert list(found) == ["conv1.weight"]
    np.testing.assert_array_equal(found["conv1.weight"], arrays["conv1.weight"])


def test_a_network_saved_whole_is_refused_by_the_name_of_its_class(tmp_path):
    pickled = pickle.dumps(Stranger(), 2)
    path = weight_files.write_pth(tmp_path / "w.pth", {"a": ones(1)}, pickled=pickled)
    with pytest.raises(UserError, match=r"an object of \w*test_weight_wrappers.Stranger"):
        pth.read(path)


def test_a_call_with_a_class_of_the_pickle_as_function_builds_nothing():
    value = pickles.load(io.BytesIO(pickle.dumps(BESIDE["object"], 2)))
    assert type(value) is pickles.Opaque
    assert str(value).endswith("test_weight_wrappers.Stranger")


VGG_FEATURES = (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)
DEEPER = (0, 2, 5, 7, 10, 12, 14, 16, 19, 21, 23, 25, 28, 30, 32, 34)  # VGG-19


def features(positions):
    return {f"features.{i}.weight": ones(2, 2, 3, 3) for i in positions}


def basic_blocks(rng):
    weights = torchvision(rng)
    weights["layer1.0.conv1.weight"] = ones(2, 2, 3, 3)
    return {name: a for name, a in weights.items() if "conv3" not in name}


def segmentation(rng, head):
    return prefixed(torchvision(rng), "backbone.") | head


OTHERS = {
    "an FCN of torchvision": lambda rng: segmentation(
        rng, {"classifier.0.weight": ones(2, 2, 3, 3), "classifier.4.weight": ones(3, 2, 1, 1)}
    ),
    "a DeepLab v3 of torchvision": lambda rng: segmentation(
        rng, {"classifier.0.convs.0.0.weight": ones(2, 2, 1, 1), "classifier.4.bias": ones(3)}
    ),
    "a network of mmsegmentation": lambda rng: segmentation(
        rng, {"decode_head.conv_seg.weight": ones(3, 2, 1, 1)}
    ),
    "a ResNet with three 3x3 convolutions for a stem": lambda rng: prefixed(
        torchvision(rng) | {"stem.0.weight": ones(2, 3, 3, 3)}, "backbone."
    ),
    "a ResNet-18 or ResNet-34": basic_blocks,
    "a ResNeXt": lambda rng: torchvision(rng) | {"layer1.0.conv2.weight": ones(4, 1, 3, 3)},
    "a wide ResNet": lambda rng: torchvision(rng) | {"layer1.0.conv1.weight": ones(4, 2, 1, 1)},
    "a DeepLab v3 of kazuto1011": lambda rng: (
        kazuto(rng) | {"aspp.stages.c0.conv.weight": ones(2, 2, 1, 1)}
    ),
    "a network with other features than VGG-16": lambda rng: features(DEEPER),
}


@pytest.mark.parametrize("kind", OTHERS)
@pytest.mark.parametrize("prefix", ["", "module."])
def test_another_network_is_refused_by_its_kind(tmp_path, kind, prefix):
    weights = prefixed(OTHERS[kind](np.random.default_rng(2)), prefix)
    path = weight_files.write_pth(tmp_path / "w.pth", weights)
    with pytest.raises(UserError, match=f"holds {kind}.*; a DeepLab v2, or an ImageNet"):
        sources.read(path)


def test_a_v2s_file_is_asked_for_its_rates(tmp_path):
    weights = kazuto(np.random.default_rng(3))
    path = weight_files.write_pth(tmp_path / "deeplabv2s_resnet101_msc.pth", weights)
    for head in (None, sources.Answers(), sources.Answers((6, 12, 18, 24))):
        with pytest.raises(UserError, match="v2-S by its name.*give --aspp-rates"):
            sources.read(path, answers=head)
    _, header = sources.read(path, answers=sources.Answers((3, 6, 9, 12)))
    assert header["model"]["aspp_rates"] == (3, 6, 9, 12)


@pytest.mark.parametrize("name", ["deeplabv2_resnet101_msc-vocaug.pth", "v2.safetensors", "v2sky"])
def test_a_file_of_another_name_is_not_taken_for_v2s(tmp_path, name):
    path = weight_files.write_pth(tmp_path / name, kazuto(np.random.default_rng(4)))
    assert sources.read(path)[1]["model"]["aspp_rates"] == (6, 12, 18, 24)
