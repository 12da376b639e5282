"""Networks with the names of those that are read are told by what is in the file, or asked for."""

import hashlib

import numpy as np
import pytest
import source_networks as theirs
import weight_files
from weight_logits import CLASSES, PHOTOGRAPH, assert_same, bgr, last_layer

from deeplab_jax.types import UserError
from deeplab_jax.weights import first_layer, published, sources

STAGES = (1, 2, 1, 1)
WIDTH = 4
CHANNELS = 32 * WIDTH
PLAIN = {"aspp_rates": (1,), "head_kernel_size": 1, "scales": (1.0,)}
MMCV_MEAN_BGR = np.array([103.53, 116.28, 123.675])


def torch_resnet(*, inputs=1, seed=0):
    rng = np.random.default_rng(seed)
    return theirs.random_torch_resnet(rng, theirs.torch_names, STAGES, WIDTH, inputs=inputs)


def folded(weights):
    """Batch norm as Detectron keeps it: a scale and a shift, mean 0 and variance 1."""
    weights = dict(weights)
    for name in [n.removesuffix(".running_mean") for n in weights if n.endswith(".running_mean")]:
        scale = weights[f"{name}.weight"] / np.sqrt(weights[f"{name}.running_var"] + 1e-5)
        weights[f"{name}.bias"] = weights[f"{name}.bias"] - weights[f"{name}.running_mean"] * scale
        weights[f"{name}.weight"] = scale
        weights[f"{name}.running_mean"] = np.zeros_like(scale)
        weights[f"{name}.running_var"] = np.ones_like(scale)
    return weights


def refusal(path, answers=None) -> str:
    with pytest.raises(UserError) as error:
        sources.read(path, answers=answers)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("statistics", [dict, folded])
def test_mmcvs_resnets_in_caffes_style_are_recognised_and_compute_the_same(tmp_path, statistics):
    """resnet50_caffe, resnet101_caffe, resnet50_msra: BGR in 0..255, strides in the first 1x1."""
    weights = statistics(torch_resnet(inputs=theirs.PIXELS))
    path = weight_files.write_pth(tmp_path / "resnet50_caffe-788b5fa3.pth", weights)
    kernel = theirs.random_kernel(np.random.default_rng(1), (CLASSES, CHANNELS, 1, 1))
    normalised = theirs.torch_normalised(weights, theirs.torch_names, STAGES, WIDTH)

    def reference(dtype):
        x = bgr(PHOTOGRAPH, dtype, MMCV_MEAN_BGR)
        return theirs.conv(theirs.resnet(x, STAGES, normalised, stride_in="reduce"), kernel)

    assert_same(path, PHOTOGRAPH, reference, extra=last_layer(kernel), **PLAIN)
    assert "inputs as caffe's" in sources.read(path)[1]["source"]["convention"]


def test_a_plain_resnet_is_known_by_the_sha_in_its_name_and_asked_for_elsewhere(tmp_path):
    """timm's resnetblur50 and resnetaa50 have the very names and shapes of resnet50."""
    path = weight_files.write_pth(tmp_path / "w.pth", torch_resnet())
    digest = hashlib.sha256(path.read_bytes()).hexdigest()[:8]
    for name in (f"resnet50-{digest}.pth", f"gluon_resnet50_v1b-{digest}.pth"):
        _, header = sources.read(path.rename(tmp_path / name))
        path = tmp_path / name
        assert header["model"]["stride_placement"] == "torch"
    other = (
        "w.pth",
        f"resnetblur50-{digest}.pth",
        "resnet50-12345678.pth",
        f"resnetaa50-{digest}.pth",
    )
    for name in other:
        path = path.rename(tmp_path / name)
        assert "resnetblur50 and resnetaa50" in refusal(path)
        assert "--read-as torchvision" in refusal(path)
    expected = sources.read(path, answers=sources.Answers(read_as="torchvision"))[1]
    assert expected["model"] == header["model"]


@pytest.mark.parametrize("inputs", [18, 40])
def test_inputs_that_the_first_layer_does_not_tell_are_asked_for(tmp_path, inputs):
    path = weight_files.write_pth(tmp_path / "w.pth", torch_resnet(inputs=inputs))
    message = refusal(path)
    assert "the first layer of this torchvision ResNet file is not made for" in message
    for read_as, stride in (("torchvision", "torch"), ("caffe", "caffe")):
        header = sources.read(path, answers=sources.Answers(read_as=read_as))[1]
        assert header["model"]["stride_placement"] == stride


def test_a_port_whose_inputs_are_standardised_is_asked_for_and_read_so(tmp_path):
    weights = torch_resnet()
    for i in range(4):
        kernel = theirs.random_kernel(np.random.default_rng(i), (CLASSES, CHANNELS, 3, 3))
        weights[f"layer5.conv2d_list.{i}.weight"] = kernel
        weights[f"layer5.conv2d_list.{i}.bias"] = np.zeros(CLASSES, np.float32)
    path = weight_files.write_pth(tmp_path / "w.pth", weights)
    assert "is not made for BGR in 0..255" in refusal(path)
    flat, header = sources.read(path, answers=sources.Answers(read_as="torchvision"))
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


def torch_vgg():
    weights = {}
    caffe = theirs.random_vgg(np.random.default_rng(3), 2, "conv{}_{}".format)
    places = (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)
    for place, (stage, number) in zip(places, theirs.VGG, strict=True):
        weights[f"features.{place}.weight"] = caffe[f"conv{stage}_{number}/weights"]
        weights[f"features.{place}.bias"] = caffe[f"conv{stage}_{number}/biases"]
    return weights


def test_a_vgg_is_known_by_its_sha_alone(tmp_path, monkeypatch):
    """Copies of Caffe's VGG-16 have torchvision's names, and no batch norm that tells."""
    path = weight_files.write_pth(tmp_path / "vgg16_caffe.pth", torch_vgg())
    assert "torchvision's VGG-16 or a copy of Caffe's" in refusal(path)
    flat, header = sources.read(path, answers=sources.Answers(read_as="caffe"))
    assert header["model"]["mean_bgr"] == (103.939, 116.779, 123.68)
    expected = torch_vgg()["features.0.weight"].transpose(2, 3, 1, 0)
    np.testing.assert_array_equal(flat["trunk/conv1_1/kernel"], expected)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()[:8]
    known = published.Published("vgg16.pth", "vgg", "ImageNet", sha256=digest)
    monkeypatch.setattr(published, "KNOWN", (known,))
    assert sources.read(path)[1]["model"]["mean_bgr"] == (103.53, 116.28, 123.675)


def kazuto(head):
    rng = np.random.default_rng(4)
    weights = theirs.random_torch_resnet(rng, theirs.kazuto_names, STAGES, WIDTH)
    for name, size in head.items():
        weights[f"{name}.weight"] = theirs.random_kernel(rng, (CLASSES, CHANNELS, size, size))
        weights[f"{name}.bias"] = np.zeros(CLASSES, np.float32)
    return weights


def test_kazutos_v1_has_one_scale(tmp_path):
    path = weight_files.write_pth(tmp_path / "w.pth", kazuto({"fc": 1}))
    model = sources.read(path)[1]["model"]
    assert (model["scales"], model["alignment"]) == ((1.0,), "ports")
    assert (model["aspp_rates"], model["head_kernel_size"]) == ((1,), 1)


def test_kazutos_v2_outside_of_its_msc_module_is_asked_for_its_scales(tmp_path):
    weights = kazuto({f"aspp.c{i}": 3 for i in range(4)})
    path = weight_files.write_pth(tmp_path / "w.pth", weights)
    assert "--scales 1.0, or --scales 1.0 0.75 0.5" in refusal(path)
    model = sources.read(path, answers=sources.Answers(scales=(1.0,)))[1]["model"]
    assert model["scales"] == (1.0,)
    wrapped = {f"base.{name}": array for name, array in weights.items()}
    model = sources.read(weight_files.write_pth(path, wrapped))[1]["model"]
    assert model["scales"] == (1.0, 0.75, 0.5)


def renamed(weights, *pairs):
    for old, new in pairs:
        weights = {name.replace(old, new): array for name, array in weights.items()}
    return weights


def ones(*shape):
    return np.ones(shape, np.float32)


OTHERS = {
    "gluon's v1c and v1s": (
        lambda w: {"conv1.0.weight" if n == "conv1.weight" else n: a for n, a in w.items()},
        "holds conv1.0.weight.* lacks conv1.weight",
    ),
    "gluon's v1d": (
        lambda w: renamed(w, ("downsample.1", "downsample.2"), ("downsample.0", "downsample.1")),
        "holds layer1.0.downsample.2.* lacks layer1.0.downsample.0",
    ),
    "mmsegmentation's v1c": (
        lambda w: w | {"stem.0.weight": ones(2, 3, 3, 3)},
        "holds stem.0.weight",
    ),
    "ResNeXt": (
        lambda w: w | {"layer1.0.conv2.weight": ones(8, 1, 3, 3)},
        "is a ResNeXt or a wide ResNet.*8 features of 1 inputs",
    ),
    "a wide ResNet": (
        lambda w: (
            w
            | {"layer1.0.conv1.weight": ones(8, 4, 1, 1), "layer1.0.conv2.weight": ones(8, 8, 3, 3)}
        ),
        "is a ResNeXt or a wide ResNet.*8 features of 8 inputs, and 4 of 4",
    ),
    "SE-ResNet": (
        lambda w: w | {"layer1.0.se.fc1.weight": ones(2, 16, 1, 1)},
        "holds layer1.0.se.fc1.weight",
    ),
    "Res2Net": (
        lambda w: renamed(w, ("layer1.0.conv2.", "layer1.0.convs.0.")),
        "holds layer1.0.convs.0.weight.* lacks layer1.0.conv2.weight",
    ),
    "group norm": (
        lambda w: {n: a for n, a in w.items() if "running" not in n},
        "lacks bn1.running_mean",
    ),
    "ResNet-18": (
        lambda w: {n: a for n, a in w.items() if "conv3" not in n and "bn3" not in n},
        "lacks layer1.0.bn3.bias",
    ),
    "Detectron2": (
        lambda w: renamed({f"backbone.bottom_up.{n}": a for n, a in w.items()}, ("layer", "res")),
        "in no way that is known",
    ),
    "a detector's trunk": (
        lambda w: {f"backbone.body.{n}": a for n, a in w.items()} | {"rpn.weight": ones(1)},
        "in no way that is known",
    ),
    "VGG-19": (
        lambda w: torch_vgg() | {"features.16.weight": ones(2, 2, 3, 3)},
        "holds features.16.weight",
    ),
    "VGG-16 with batch norm": (
        lambda w: torch_vgg() | {"features.1.running_mean": ones(2)},
        "holds features.1.running_mean",
    ),
}


@pytest.mark.parametrize("kind", OTHERS)
def test_other_networks_with_names_like_these_are_refused(tmp_path, kind):
    change, part = OTHERS[kind]
    path = weight_files.write_pth(tmp_path / "w.pth", change(torch_resnet()))
    with pytest.raises(UserError, match=part):
        sources.read(path)


def test_msras_resnet50_has_a_bias_in_its_first_convolution(tmp_path):
    rng = np.random.default_rng(5)
    layers = theirs.random_caffe_resnet(rng, STAGES, WIDTH)
    bias = rng.normal(size=WIDTH).astype(np.float32)
    path = tmp_path / "ResNet-50-model.caffemodel"
    flats = []
    for extra in ([], [bias]):
        all_layers = layers | {"conv1": [layers["conv1"][0], *extra]}
        path.write_bytes(
            b"".join(
                weight_files.layer(name, weight_files.kind_of(name), blobs)
                for name, blobs in all_layers.items()
            )
        )
        flat, header = sources.read(path)
        flats.append(flat)
    np.testing.assert_allclose(
        flats[1].pop("trunk/conv1/mean"), flats[0].pop("trunk/conv1/mean") - bias
    )
    assert flats[0].keys() == flats[1].keys()
    assert header["source"]["trained_on"] == "ImageNet"
    assert header["model"]["stride_placement"] == "caffe"
    assert header["class_names"] == ()
