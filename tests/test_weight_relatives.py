"""Networks with the names of those that are read are told by what is in the file, or asked for."""

import hashlib

import numpy as np
import pytest
import source_networks as theirs
import weight_files

from deeplab_jax.types import UserError
from deeplab_jax.weights import first_layer, published, sources
from deeplab_jax.weights.sources import Answers


def torch_resnet(*, inputs=1):
    return theirs.as_torch(theirs.draw_units(np.random.default_rng(0), inputs=inputs))


def torch_vgg():
    return theirs.torch_vgg(theirs.draw_vgg(np.random.default_rng(3)))


def model_of(path, **answers):
    return sources.read(path, answers=Answers(**answers))[1]["model"]


def refusal(path, **answers) -> str:
    with pytest.raises(UserError) as error:
        sources.read(path, answers=Answers(**answers))
    assert "\n" not in str(error.value)
    return str(error.value)


def test_mmcvs_resnets_are_recognised_where_batch_norm_is_folded_too(tmp_path):
    """As Detectron keeps it: a scale and a shift, mean 0 and variance 1."""
    weights = torch_resnet(inputs=theirs.PIXELS)
    for name in [n.removesuffix(".running_mean") for n in weights if n.endswith(".running_mean")]:
        scale = weights[f"{name}.weight"] / np.sqrt(weights[f"{name}.running_var"] + 1e-5)
        weights[f"{name}.bias"] -= weights[f"{name}.running_mean"] * scale
        weights[f"{name}.weight"] = scale
        weights[f"{name}.running_mean"] = np.zeros_like(scale)
        weights[f"{name}.running_var"] = np.ones_like(scale)
    _, header = sources.read(weight_files.write_pth(tmp_path / "w.pth", weights))
    assert "inputs as caffe's" in header["source"]["convention"]


def test_a_plain_resnet_is_known_by_the_sha_in_its_name_and_asked_for_elsewhere(tmp_path):
    """timm's resnetblur50 and resnetaa50 have the very names and shapes of resnet50."""
    path = weight_files.write_pth(tmp_path / "w.pth", torch_resnet())
    digest = hashlib.sha256(path.read_bytes()).hexdigest()[:8]
    for name in (f"resnet50-{digest}.pth", f"gluon_resnet50_v1b-{digest}.pth"):
        path = path.rename(tmp_path / name)
        known = model_of(path)
        assert known["stride_placement"] == "torch"
    blurred = (f"resnetblur50-{digest}.pth", f"resnetaa50-{digest}.pth")
    for name in ("w.pth", "resnet50-12345678.pth", *blurred):
        path = path.rename(tmp_path / name)
        assert "resnetblur50 and resnetaa50" in refusal(path)
        assert "--read-as torchvision" in refusal(path)
    assert model_of(path, read_as="torchvision") == known


@pytest.mark.parametrize("inputs", [25, 40])
def test_inputs_that_the_first_layer_does_not_tell_are_asked_for(tmp_path, inputs):
    path = weight_files.write_pth(tmp_path / "w.pth", torch_resnet(inputs=inputs))
    assert "names of a torchvision ResNet file and may be another, because its" in refusal(path)
    for read_as, stride in (("torchvision", "torch"), ("caffe", "caffe")):
        assert model_of(path, read_as=read_as)["stride_placement"] == stride


def test_a_port_whose_inputs_are_standardised_is_asked_for_and_read_so(tmp_path):
    head = theirs.draw_head(np.random.default_rng(0), 5, 64)
    weights = torch_resnet() | theirs.name_head(head, "layer5.conv2d_list.{}")
    path = weight_files.write_pth(tmp_path / "w.pth", weights)
    assert "because its first layer gives" in refusal(path)
    flat, header = sources.read(path, answers=Answers(read_as="torchvision"))
    assert header["model"]["stride_placement"] == "torch"
    kernel = weights["conv1.weight"].transpose(2, 3, 1, 0)[:, :, ::-1]
    expected = kernel / (255 * np.array([0.225, 0.224, 0.229]))[:, None]
    np.testing.assert_allclose(flat["trunk/conv1/kernel"], expected, rtol=1e-6)


def test_the_gain_is_the_deviation_of_the_first_layers_output():
    rng = np.random.default_rng(2)
    flat = {
        "trunk/conv1/kernel": rng.normal(size=(7, 7, 3, 5)),
        "trunk/conv1/scale": np.array([0.5, 2.0, 1.0, 1e-9, 3.0]),  # one is dead
        "trunk/conv1/var": np.array([1.0, 4.0, 9.0, 1.0, 0.25]),
    }
    noise = rng.normal(size=(200_000, 147))
    outputs = noise @ flat["trunk/conv1/kernel"].reshape(147, 5)
    outputs *= flat["trunk/conv1/scale"] / np.sqrt(flat["trunk/conv1/var"])
    expected = np.median(outputs.std(0)[[0, 1, 2, 4]])
    np.testing.assert_allclose(first_layer.gain(flat), expected, rtol=0.01)


def test_a_vgg_is_known_by_its_sha_alone(tmp_path, monkeypatch):
    """Copies of Caffe's VGG-16 have torchvision's names, and no batch norm that tells."""
    path = weight_files.write_pth(tmp_path / "vgg16_caffe.pth", torch_vgg())
    assert "copies of Caffe's VGG-16 have the names of torchvision's" in refusal(path)
    flat, header = sources.read(path, answers=Answers(read_as="caffe"))
    assert header["model"]["mean_bgr"] == (103.939, 116.779, 123.68)
    expected = torch_vgg()["features.0.weight"].transpose(2, 3, 1, 0)
    np.testing.assert_array_equal(flat["trunk/conv1_1/kernel"], expected)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()[:8]
    known = published.Published("vgg16.pth", "vgg", "ImageNet", sha256=digest)
    monkeypatch.setattr(published, "KNOWN", (known,))
    assert model_of(path)["mean_bgr"] == (103.53, 116.28, 123.675)


def test_kazutos_v1_has_one_scale(tmp_path):
    rng = np.random.default_rng(4)
    weights = theirs.as_torch(theirs.draw_units(rng), theirs.kazuto_names)
    weights |= theirs.name_head(theirs.draw_head(rng, 5, 64, branches=1, size=1), "fc")
    model = model_of(weight_files.write_pth(tmp_path / "w.pth", weights))
    assert (model["scales"], model["alignment"]) == ((1.0,), "ports")
    assert (model["aspp_rates"], model["head_kernel_size"]) == ((1,), 1)


def test_kazutos_v2_outside_of_its_msc_module_is_asked_for_its_scales(tmp_path):
    rng = np.random.default_rng(4)
    path = weight_files.write_pth(tmp_path / "w.pth", theirs.kazuto(rng, prefix=""))
    assert "--scales 1.0, or --scales 1.0 0.75 0.5" in refusal(path)
    assert model_of(path, scales=(1.0,))["scales"] == (1.0,)
    weight_files.write_pth(path, theirs.kazuto(rng))
    assert model_of(path)["scales"] == (1.0, 0.75, 0.5)


def test_a_v2s_file_is_asked_for_its_rates(tmp_path):
    weights = theirs.kazuto(np.random.default_rng(3))
    path = weight_files.write_pth(tmp_path / "deeplabv2s_resnet101_msc.pth", weights)
    for rates in (None, (6, 12, 18, 24)):
        assert "v2-S by its name" in refusal(path, aspp_rates=rates)
    assert model_of(path, aspp_rates=(3, 6, 9, 12))["aspp_rates"] == (3, 6, 9, 12)
    for name in ("deeplabv2_resnet101_msc-vocaug.pth", "v2.safetensors", "v2sky"):
        path = path.rename(tmp_path / name)
        assert model_of(path)["aspp_rates"] == (6, 12, 18, 24)


def ones(*shape):
    return np.ones(shape, np.float32)


WIDE = {"layer1.0.conv1.weight": ones(8, 2, 1, 1), "layer1.0.conv2.weight": ones(8, 8, 3, 3)}
OTHERS = {
    "gluon's v1c and v1s": (
        lambda w: {"conv1.0.weight" if n == "conv1.weight" else n: a for n, a in w.items()},
        "holds conv1.0.weight.* lacks conv1.weight",
    ),
    "ResNeXt": (
        lambda w: w | {"layer1.0.conv2.weight": ones(8, 1, 3, 3)},
        "is a ResNeXt or a wide ResNet.*8 features of 1 inputs",
    ),
    "a wide ResNet": (
        lambda w: w | WIDE,
        "is a ResNeXt or a wide ResNet.*8 features of 8 inputs, and 2 of 2",
    ),
    "SE-ResNet": (lambda w: w | {"layer1.0.se.fc1.weight": ones(2, 8)}, "holds layer1.0.se.fc1"),
    "ResNet-18": (
        lambda w: {n: a for n, a in w.items() if "conv3" not in n and "bn3" not in n},
        "lacks layer1.0.bn3.bias",
    ),
    "Detectron2": (
        lambda w: {f"backbone.bottom_up.{n}".replace("layer", "res"): a for n, a in w.items()},
        "in no known way",
    ),
    "VGG-19": (
        lambda w: torch_vgg() | {"features.16.weight": ones(2, 2, 3, 3)},
        "holds features.16.weight",
    ),
}


@pytest.mark.parametrize("kind", OTHERS)
def test_other_networks_with_names_like_these_are_refused(tmp_path, kind):
    change, part = OTHERS[kind]
    path = weight_files.write_pth(tmp_path / "w.pth", change(torch_resnet()))
    with pytest.raises(UserError, match=part):
        sources.read(path)
