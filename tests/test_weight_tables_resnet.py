"""ResNet weights compute in our network what they compute in their own."""

import jax
import numpy as np
import pytest
import source_networks as theirs
import weight_files
from weight_logits import (
    ALIGNED,
    CLASSES,
    PHOTOGRAPH,
    PORTS_MEAN_BGR,
    RATES,
    assert_same,
    bgr,
    last_layer,
    standardised,
)

from deeplab_jax import train
from deeplab_jax.models.deeplab import build
from deeplab_jax.weights import files, sources

STAGES = (1, 2, 1, 1)
WIDTH = 4
CHANNELS = 32 * WIDTH
PLAIN = {"aspp_rates": (1,), "head_kernel_size": 1, "scales": (1.0,)}


def random_head(rng, name, *, branches=4, size=3):
    """Classifiers `name` formatted with 0, 1, ... as PyTorch has them."""
    weights = {}
    for i in range(branches):
        weights[name.format(i) + ".weight"] = theirs.random_kernel(
            rng, (CLASSES, CHANNELS, size, size)
        )
        weights[name.format(i) + ".bias"] = rng.normal(size=CLASSES).astype(np.float32)
    return weights


def torch_deeplab(weights, x, names, head, *, rates=RATES):
    normalised = theirs.torch_normalised(weights, names, STAGES, WIDTH)
    x = theirs.resnet(x, STAGES, normalised, stride_in="reduce")
    return sum(
        theirs.conv(
            x, weights[head.format(i) + ".weight"], weights[head.format(i) + ".bias"], rate=rate
        )
        for i, rate in enumerate(rates)
    )


@pytest.mark.parametrize("write", [weight_files.write_pth, weight_files.write_legacy_pth])
def test_kazutos_checkpoints_compute_the_same(tmp_path, write):
    rng = np.random.default_rng(2)
    weights = theirs.random_torch_resnet(rng, theirs.kazuto_names, STAGES, WIDTH)
    weights |= random_head(rng, "aspp.c{}")
    path = write(tmp_path / "w.pth", {f"base.{name}": array for name, array in weights.items()})

    def reference(dtype):
        def network(x):
            return torch_deeplab(weights, x, theirs.kazuto_names, "aspp.c{}")

        return theirs.largest_of_scales(network, bgr(PHOTOGRAPH, dtype), aligned=False)

    assert_same(path, PHOTOGRAPH, reference)


def test_speedinghzls_checkpoints_compute_the_same(tmp_path):
    rng = np.random.default_rng(3)
    weights = theirs.random_torch_resnet(rng, theirs.torch_names, STAGES, WIDTH)
    head = "layer5.conv2d_list.{}"
    weights |= random_head(rng, head)
    path = weight_files.write_legacy_pth(tmp_path / "w.pth", weights)

    def reference(dtype):
        x = bgr(ALIGNED, dtype, PORTS_MEAN_BGR)
        return torch_deeplab(weights, x, theirs.torch_names, head)

    assert_same(path, ALIGNED, reference)


def test_isht7s_checkpoints_compute_the_same(tmp_path):
    rng = np.random.default_rng(3)
    weights = theirs.random_torch_resnet(rng, theirs.torch_names, STAGES, WIDTH)
    head = "layer5.conv2d_list.{}"
    weights |= random_head(rng, head)
    named = {f"Scale.{n}": a for n, a in weights.items() if "num_batches" not in n}
    path = weight_files.write_legacy_pth(tmp_path / "w.pth", named)

    def reference(dtype):
        def network(x):
            return torch_deeplab(weights, x, theirs.torch_names, head)

        return theirs.largest_of_scales(network, bgr(ALIGNED, dtype), aligned=True)

    assert_same(path, ALIGNED, reference)


def test_the_release_of_resnet_computes_the_same(tmp_path):
    rng = np.random.default_rng(4)
    layers = theirs.random_caffe_resnet(rng, STAGES, WIDTH) | theirs.random_caffe_head(
        rng, CLASSES, CHANNELS
    )
    path = weight_files.write_msc_caffemodel(tmp_path / "w.caffemodel", layers, RATES)

    def network(x):
        normalised = theirs.caffe_normalised(layers, STAGES, WIDTH)
        x = theirs.resnet(x, STAGES, normalised, stride_in="reduce")
        heads = [(layers[f"fc1_voc12_c{i}"], rate) for i, rate in enumerate(RATES)]
        return sum(theirs.conv(x, *blobs, rate=rate) for blobs, rate in heads)

    def reference(dtype):
        return theirs.largest_of_scales(network, bgr(ALIGNED, dtype), aligned=True)

    assert_same(path, ALIGNED, reference, answers=sources.Answers())


@pytest.mark.parametrize("write", ["pth", "safetensors", "npz"])
def test_torchvisions_resnet_computes_the_same(tmp_path, write):
    rng = np.random.default_rng(7)
    weights = theirs.random_torch_resnet(rng, theirs.torch_names, STAGES, WIDTH, inputs=1)
    classifier = {
        "fc.weight": np.ones((1000, CHANNELS), np.float32),
        "fc.bias": np.ones(1000, np.float32),
    }
    path = tmp_path / f"w.{write}"
    if write == "npz":
        np.savez(path, **weights, **classifier)
    else:
        getattr(weight_files, f"write_{write}")(path, weights | classifier)
    kernel = theirs.random_kernel(rng, (CLASSES, CHANNELS, 1, 1))

    normalised = theirs.torch_normalised(weights, theirs.torch_names, STAGES, WIDTH)

    def reference(dtype):
        x = standardised(PHOTOGRAPH).astype(dtype)
        return theirs.conv(theirs.resnet(x, STAGES, normalised, stride_in="3x3"), kernel)

    answers = sources.Answers(read_as="torchvision")
    assert_same(path, PHOTOGRAPH, reference, extra=last_layer(kernel), answers=answers, **PLAIN)


def test_a_voc_checkpoint_of_kazutos_has_632_entries_and_all_are_used_or_skipped(tmp_path):
    rng = np.random.default_rng(11)
    stages, width = (3, 4, 23, 3), 1
    weights = theirs.random_torch_resnet(rng, theirs.kazuto_names, stages, width)
    for i in range(4):
        weights[f"aspp.c{i}.weight"] = theirs.random_kernel(rng, (21, 32, 3, 3))
        weights[f"aspp.c{i}.bias"] = rng.normal(size=21).astype(np.float32)
    assert len(weights) == 632
    named = {f"base.{name}": array for name, array in weights.items()}
    flat, header = sources.read(weight_files.write_pth(tmp_path / "w.pth", named))
    (skipped,) = header["skipped"].values()
    assert len(flat) == 632 - 104 == 632 - len(skipped)
    assert header["model"]["stage_sizes"] == stages
    assert header["class_names"][15] == "person"
    model = build(num_classes=21, **header["model"])
    shapes = jax.eval_shape(lambda: train.init_variables(model, jax.random.key(0)))
    files.check(shapes, flat)


def test_an_msc_caffemodel_has_324_convolutions_and_a_third_is_used(tmp_path):
    rng = np.random.default_rng(12)
    layers = theirs.random_caffe_resnet(rng, (3, 4, 23, 3), 1) | theirs.random_caffe_head(
        rng, 21, 32
    )
    path = weight_files.write_msc_caffemodel(tmp_path / "w.caffemodel", layers, RATES)
    flat, header = sources.read(path)
    kernels = [name for name in flat if name.endswith("/kernel")]
    (skipped,) = header["skipped"].values()
    assert len(kernels) == 324 / 3
    assert len(skipped) == 2 * len(flat)
    assert header["model"]["aspp_rates"] == RATES
    np.testing.assert_array_equal(
        flat["trunk/res4_23/branch2b/kernel"],
        layers["res4b22_branch2b"][0].transpose(2, 3, 1, 0),
    )
