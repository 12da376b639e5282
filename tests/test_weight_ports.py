"""Weights of every port compute in our network what they compute in their own.

The reference is the port's network in NumPy (source_networks.py), fed with what its file holds, in
float64. Each port is written down from what is known of it. Photographs have odd and even sizes.
"""

from collections.abc import Callable
from dataclasses import dataclass

import jax
import numpy as np
import pytest
import source_networks as theirs
import weight_files

from deeplab_jax import train
from deeplab_jax.models.deeplab import build
from deeplab_jax.weights import branches, files, sources

STAGES, WIDTH = (1, 2, 1, 1), 4
CHANNELS = 32 * WIDTH
RATES, CLASSES = (1, 2, 3, 4), 5
CAFFE_MEAN = (104.008, 116.669, 122.675)
PORTS_MEAN = (104.00698793, 116.66876762, 122.67891434)
MMCV_MEAN = (103.53, 116.28, 123.675)
PHOTOGRAPH = np.random.default_rng(0).integers(0, 256, (2, 37, 46, 3), np.uint8)
ALIGNED = np.random.default_rng(1).integers(0, 256, (1, 33, 65, 3), np.uint8)
QUICK = {"xla_backend_optimization_level": 0}


def ours(path, photograph, dtype, *, answers=None, extra=None, kept=None, **fields):
    """Logits of our network with the weights of `path`, NHWC, its branches `kept` alone."""
    flat, header = sources.read(path, answers=answers or sources.Answers(RATES))
    flat, header = branches.choose(flat, header, kept)
    flat |= extra or {}
    with jax.enable_x64(dtype == "float64"):
        model = build(num_classes=CLASSES, **header["model"] | {"dtype": dtype} | fields)
        shapes = train.variable_shapes(model)
        blank = jax.tree.map(lambda leaf: np.zeros(leaf.shape, dtype), shapes)
        variables = files.fill(blank, flat)
        inputs = photograph[..., ::-1].astype(dtype) - np.array(model.mean_bgr, dtype)
        apply = jax.jit(model.apply).lower(variables, inputs).compile(QUICK)
        return np.asarray(apply(variables, inputs)).astype(np.float64)


def assert_same(path, photograph, reference, **options):
    """float64 agrees to 1e-9; float32 errs by no more than three times the reference's float32."""
    exact = reference(np.float64).transpose(0, 2, 3, 1)
    found = ours(path, photograph, "float64", **options)
    np.testing.assert_allclose(found, exact, rtol=1e-9, atol=1e-9 * abs(exact).max())
    error = ours(path, photograph, "float32", **options) - exact
    their_error = reference(np.float32).transpose(0, 2, 3, 1) - exact
    assert np.sqrt(np.mean(error**2)) <= 3 * np.sqrt(np.mean(their_error**2))


def bgr(photograph, dtype, mean=CAFFE_MEAN):
    return (photograph[..., ::-1].astype(dtype) - np.array(mean, dtype)).transpose(0, 3, 1, 2)


def standardised(photograph, dtype):
    """What torchvision's networks see."""
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    return ((photograph / 255 - mean) / std).transpose(0, 3, 1, 2).astype(dtype)


def without_head(kernel):
    """Options for weights of ImageNet, which get a classifier of one 1x1 convolution."""
    bias = np.zeros(CLASSES)
    last = {"head/fc8_1/kernel": kernel.transpose(2, 3, 1, 0), "head/fc8_1/bias": bias}
    return {"extra": last, "scales": (1.0,)}


@dataclass(frozen=True)
class Port:
    """A DeepLab on a ResNet whose strides are Caffe's."""

    head: str = "layer5.conv2d_list.{}"
    names: Callable = theirs.torch_names
    prefix: str = ""
    mean: tuple[float, ...] = PORTS_MEAN
    aligned: bool | None = None
    """How scales of the input are resized; None: there is one."""
    summed: int = 4
    """Branches that are trained and summed; the others keep their start."""
    auxiliary: bool = False
    """Whether layer5 is a head on res4, for training alone."""
    counted: bool = True
    """Whether its PyTorch counted batches."""
    write: Callable = weight_files.write_legacy_pth

    def weights(self, rng):
        units = theirs.draw_units(rng, STAGES, WIDTH)
        head = theirs.draw_head(rng, CLASSES, CHANNELS)
        for i in range(self.summed, 4):
            head[i] = rng.normal(0, 0.01, head[i][0].shape).astype(np.float32), head[i][1]
        weights = theirs.as_torch(units, self.names) | theirs.name_head(head, self.head)
        if self.auxiliary:
            of_res4 = theirs.draw_head(rng, CLASSES, CHANNELS // 2)
            weights |= theirs.name_head(of_res4, "layer5.conv2d_list.{}")
        kept = {n: a for n, a in weights.items() if self.counted or "num_batches" not in n}
        return units, head, {self.prefix + name: array for name, array in kept.items()}


PORTS = {
    "kazuto": Port("aspp.c{}", theirs.kazuto_names, "base.", CAFFE_MEAN, aligned=False),
    "speedinghzl": Port(),
    "isht7": Port(prefix="Scale.", mean=CAFFE_MEAN, aligned=True, counted=False),
    "ADVENT, one level": Port("layer6.conv2d_list.{}", write=weight_files.write_pth),
    "ADVENT": Port("layer6.conv2d_list.{}", auxiliary=True, write=weight_files.write_pth),
    "AdaptSegNet": Port("layer6.conv2d_list.{}", summed=2, auxiliary=True),
    "AdaptSegNet, one level": Port(summed=2, write=weight_files.write_pth),  # and AdvSemiSeg
}


def network_of(units, head):
    def network(x):
        x = theirs.resnet(x, units, stride_in="reduce")
        pairs = zip(head, RATES, strict=False)
        return sum(theirs.conv(x, *layer, rate=rate) for layer, rate in pairs)

    return network


@pytest.mark.parametrize("name", PORTS)
def test_every_port_of_deeplab_computes_the_same(tmp_path, name):
    port = PORTS[name]
    units, head, weights = port.weights(np.random.default_rng(2))
    path = port.write(tmp_path / "w.pth", weights)
    network = network_of(units, head[: port.summed])
    photograph = ALIGNED if port.aligned else PHOTOGRAPH

    def reference(dtype):
        x = bgr(photograph, dtype, port.mean)
        if port.aligned is None:
            return network(x)
        return theirs.largest_of_scales(network, x, aligned=port.aligned)

    kept = range(port.summed) if port.summed < 4 else None
    assert_same(path, photograph, reference, kept=kept)


def test_the_release_of_resnet_computes_the_same(tmp_path):
    rng = np.random.default_rng(4)
    units, head = theirs.draw_units(rng, STAGES, WIDTH), theirs.draw_head(rng, CLASSES, CHANNELS)
    layers = theirs.as_caffe(units) | weight_files.caffe_head(head)
    path = weight_files.write_msc_caffemodel(tmp_path / "w.caffemodel", layers, RATES)

    def reference(dtype):
        x = bgr(ALIGNED, dtype)
        return theirs.largest_of_scales(network_of(units, head), x, aligned=True)

    assert_same(path, ALIGNED, reference, answers=sources.Answers())
    flat, header = sources.read(path)
    (skipped,) = header["skipped"].values()
    assert len(skipped) == 2 * len(flat)  # the two smaller scales
    assert header["model"]["aspp_rates"] == RATES


@pytest.mark.parametrize("style", ["torchvision", "caffe"])
def test_resnets_of_torchvision_and_of_mmcv_compute_the_same(tmp_path, style):
    """mmcv's resnet50_caffe, resnet101_caffe, resnet50_msra: BGR in 0..255, strides in the first
    1x1."""
    rng, of_mmcv = np.random.default_rng(7), style == "caffe"
    inputs = theirs.PIXELS if of_mmcv else 1
    units = theirs.draw_units(rng, (1, 1, 2, 2), WIDTH, inputs=inputs)
    path = weight_files.write_pth(tmp_path / "resnet50_caffe-788b5fa3.pth", theirs.as_torch(units))
    kernel = theirs.random_kernel(rng, (CLASSES, CHANNELS, 1, 1))

    def reference(dtype):
        seen = standardised(PHOTOGRAPH, dtype)
        x = bgr(PHOTOGRAPH, dtype, MMCV_MEAN) if of_mmcv else seen
        stride_in = "reduce" if of_mmcv else "3x3"
        return theirs.conv(theirs.resnet(x, units, stride_in=stride_in), kernel)

    answers = sources.Answers(read_as=None if of_mmcv else "torchvision")
    options = without_head(kernel) | {"aspp_rates": (1,), "head_kernel_size": 1}
    assert_same(path, PHOTOGRAPH, reference, answers=answers, **options)


def vgg_head(rng, width=2):
    shapes = {"fc6": (16, 8 * width, 3, 3), "fc7": (16, 16, 1, 1), "fc8_voc12": (CLASSES, 16, 1, 1)}
    return {
        name: (theirs.random_kernel(rng, shape), rng.normal(0, 0.2, shape[0]).astype(np.float32))
        for name, shape in shapes.items()
    }


def vgg_branch(x, head, rate):
    fc6, fc7, fc8 = head.values()
    return theirs.conv(
        theirs.relu(theirs.conv(theirs.relu(theirs.conv(x, *fc6, rate=rate)), *fc7)), *fc8
    )


def caffe_vgg(drawn):
    return {f"conv{stage}_{number}": blobs for (stage, number), blobs in drawn.items()}


def test_the_release_of_vgg_with_aspp_computes_the_same(tmp_path):
    rng = np.random.default_rng(5)
    drawn, heads = theirs.draw_vgg(rng), [vgg_head(rng) for _ in range(4)]
    layers = [weight_files.layer(n, "Convolution", blobs) for n, blobs in caffe_vgg(drawn).items()]
    for i, head in enumerate(heads, 1):
        for name, blobs in head.items():
            told = {"dilation": 2 * i if name == "fc6" else None}
            layers.append(weight_files.layer(f"{name}_{i}", "Convolution", blobs, **told))
    (tmp_path / "w.caffemodel").write_bytes(b"".join(layers))

    def reference(dtype):
        x = theirs.vgg(bgr(PHOTOGRAPH, dtype), drawn)
        return sum(vgg_branch(x, head, 2 * i) for i, head in enumerate(heads, 1))

    assert_same(tmp_path / "w.caffemodel", PHOTOGRAPH, reference, answers=sources.Answers())


def test_the_first_large_fov_release_computes_the_same(tmp_path):
    rng = np.random.default_rng(6)
    drawn, head = theirs.draw_vgg(rng), vgg_head(rng)
    all_layers = caffe_vgg(drawn) | head
    layers = [weight_files.v1_layer(name, 4, blobs) for name, blobs in all_layers.items()]
    pools = [weight_files.v1_layer(name, 17) for name in ("pool5", "pool5a")]
    (tmp_path / "w.caffemodel").write_bytes(b"".join(layers + pools))

    def reference(dtype):
        x = theirs.vgg(bgr(PHOTOGRAPH, dtype), drawn)
        return vgg_branch(theirs.pool(x, stride=1, how="mean"), head, 2)

    answers = sources.Answers((2,))
    assert_same(tmp_path / "w.caffemodel", PHOTOGRAPH, reference, answers=answers)


def imagenet_vgg(rng, features=32):
    """torchvision's vgg16 and what is in it; fc6 sees 7 x 7 of pool5."""
    drawn, fc = theirs.draw_vgg(rng), {}
    for place, o, i in ((0, features, 16 * 49), (3, features, features), (6, 1000, features)):
        fc[f"classifier.{place}.weight"] = theirs.random_kernel(rng, (o, i))
        fc[f"classifier.{place}.bias"] = rng.normal(size=o).astype(np.float32)
    fc6 = fc["classifier.0.weight"].reshape(features, 16, 7, 7)
    return drawn, fc, fc6


def test_torchvisions_vgg_computes_the_same(tmp_path):
    rng = np.random.default_rng(9)
    drawn, fc, fc6 = imagenet_vgg(rng)
    path = weight_files.write_pth(tmp_path / "w.pth", theirs.torch_vgg(drawn) | fc)
    kernel = theirs.random_kernel(rng, (CLASSES, 32, 1, 1))
    fc7 = fc["classifier.3.weight"][:, :, None, None]

    def reference(dtype):
        x = theirs.vgg(standardised(PHOTOGRAPH, dtype), drawn)
        x = theirs.relu(theirs.conv(x, fc6, fc["classifier.0.bias"], rate=2))
        x = theirs.relu(theirs.conv(x, fc7, fc["classifier.3.bias"]))
        return theirs.conv(x, kernel)

    answers = sources.Answers((2,), 7, 32, "torchvision")
    assert_same(path, PHOTOGRAPH, reference, answers=answers, **without_head(kernel))


@pytest.mark.parametrize("of", ["torchvision", "caffe"])
def test_imagenets_vgg_is_thinned_to_every_fourth_feature_and_third_tap(tmp_path, of):
    drawn, fc, fc6 = imagenet_vgg(np.random.default_rng(8))
    path = tmp_path / "w"
    if of == "torchvision":
        weight_files.write_pth(path, theirs.torch_vgg(drawn) | fc)
    else:
        pairs = [(fc[f"classifier.{i}.weight"], fc[f"classifier.{i}.bias"]) for i in (0, 3, 6)]
        of_fc = dict(zip(("fc6", "fc7", "fc8"), pairs, strict=True))
        layers = [weight_files.v1_layer(n, 4, blobs) for n, blobs in caffe_vgg(drawn).items()]
        layers += [weight_files.v1_layer(name, 14, blobs) for name, blobs in of_fc.items()]
        path.write_bytes(b"".join(layers))
    flat, header = sources.read(path, answers=sources.Answers((2, 4), 3, 8, of))
    for o, i, h, w in np.ndindex(8, 16, 3, 3):
        assert flat["head/fc6_2/kernel"][h, w, i, o] == fc6[4 * o, i, 3 * h, 3 * w]
    expected = fc["classifier.3.weight"][::4, ::4]
    np.testing.assert_array_equal(flat["head/fc7_1/kernel"][0, 0].T, expected)
    np.testing.assert_array_equal(flat["head/fc6_1/bias"], fc["classifier.0.bias"][::4])
    assert header["model"]["aspp_rates"] == (2, 4)
    assert header["class_names"] == ()
    assert header["model"]["mean_bgr"] == {"caffe": (103.939, 116.779, 123.68)}.get(of, MMCV_MEAN)


def test_msras_resnet50_has_a_bias_in_its_first_convolution(tmp_path):
    rng, flats = np.random.default_rng(5), []
    layers = theirs.as_caffe(theirs.draw_units(rng))
    bias = rng.normal(size=2).astype(np.float32)
    path = tmp_path / "ResNet-50-model.caffemodel"
    for extra in ([], [bias]):
        all_layers = layers | {"conv1": [*layers["conv1"], *extra]}
        encoded = [weight_files.layer(n, weight_files.kind_of(n), b) for n, b in all_layers.items()]
        path.write_bytes(b"".join(encoded))
        flat, header = sources.read(path)
        flats.append(flat)
    mean = "trunk/conv1/mean"
    np.testing.assert_allclose(flats[1].pop(mean), flats[0].pop(mean) - bias)
    assert flats[0].keys() == flats[1].keys()
    assert header["source"]["trained_on"] == "ImageNet"
    assert header["model"]["stride_placement"] == "caffe"
    assert header["class_names"] == ()
