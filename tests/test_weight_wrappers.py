"""Weights that a training framework saved with other things."""

import argparse
import pathlib
import pickle

import numpy as np
import pytest
import source_networks as theirs
import weight_files

from deeplab_jax.types import UserError
from deeplab_jax.weights import pth, sources

STAGES = (1, 1, 1, 1)
WIDTH = 2


def kazuto(rng):
    weights = theirs.random_torch_resnet(rng, theirs.kazuto_names, STAGES, WIDTH)
    for i in range(4):
        weights[f"aspp.c{i}.weight"] = theirs.random_kernel(rng, (3, 32 * WIDTH, 3, 3))
        weights[f"aspp.c{i}.bias"] = np.ones(3, np.float32)
    return prefixed(weights, "base.")


def prefixed(weights, prefix):
    return {prefix + name: array for name, array in weights.items()}


PREFIXES = ("module.", "model.", "net.", "backbone.", "model.module.", "module.net.model.backbone.")


@pytest.mark.parametrize("prefix", PREFIXES)
def test_prefixes_of_frameworks_are_taken_off_in_any_order(tmp_path, prefix):
    weights = kazuto(np.random.default_rng(0))
    expected, _ = sources.read(weight_files.write_pth(tmp_path / "plain.pth", weights))
    path = weight_files.write_pth(tmp_path / "w.pth", prefixed(weights, prefix))
    found, header = sources.read(path)
    assert header["source"]["convention"] == "kazuto1011/deeplab-pytorch"
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_array_equal(found[name], array)


def test_a_prefix_that_only_some_names_have_stays_and_is_refused(tmp_path):
    weights = kazuto(np.random.default_rng(0))
    both = prefixed(weights, "model.") | prefixed(weights, "ema.")
    with pytest.raises(UserError, match="e.g. 'ema.base.aspp.c0.bias'"):
        sources.read(weight_files.write_pth(tmp_path / "w.pth", both))


def test_class_weights_of_a_loss_are_listed_as_skipped(tmp_path):
    weights = prefixed(kazuto(np.random.default_rng(1)), "model.")
    weights["criterion.weight"] = np.ones(3, np.float32)
    flat, header = sources.read(weight_files.write_pth(tmp_path / "w.pth", weights))
    assert header["skipped"][sources.LOSS_REASON] == ["criterion.weight"]
    assert "trunk/conv1/kernel" in flat


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
    found = pth.read(path)
    assert list(found) == ["conv1.weight"]
    np.testing.assert_array_equal(found["conv1.weight"], arrays["conv1.weight"])


def test_a_network_saved_whole_is_refused_by_the_name_of_its_class(tmp_path):
    pickled = pickle.dumps(Stranger(), 2)
    path = weight_files.write_pth(
        tmp_path / "w.pth", {"a": np.ones(1, np.float32)}, pickled=pickled
    )
    with pytest.raises(UserError, match=r"an object of \w*test_weight_wrappers.Stranger"):
        pth.read(path)


def test_a_v2s_file_is_asked_for_its_rates(tmp_path):
    weights = kazuto(np.random.default_rng(3))
    path = weight_files.write_pth(tmp_path / "deeplabv2s_resnet101_msc.pth", weights)
    for answers in (None, sources.Answers((6, 12, 18, 24))):
        with pytest.raises(UserError, match="v2-S by its name.*give --aspp-rates"):
            sources.read(path, answers=answers)
    _, header = sources.read(path, answers=sources.Answers((3, 6, 9, 12)))
    assert header["model"]["aspp_rates"] == (3, 6, 9, 12)


@pytest.mark.parametrize("name", ["deeplabv2_resnet101_msc-vocaug.pth", "v2.safetensors", "v2sky"])
def test_a_file_of_another_name_is_not_taken_for_v2s(tmp_path, name):
    path = weight_files.write_pth(tmp_path / name, kazuto(np.random.default_rng(4)))
    assert sources.read(path)[1]["model"]["aspp_rates"] == (6, 12, 18, 24)
