"""Published weights compute in our network what they compute in their own.

The reference is the source's network in NumPy (source_networks.py), fed from the same file's
arrays under the source's names, in float64. Photographs have odd and even sizes.
"""

import importlib.util

import jax
import numpy as np
import pytest
import source_networks as theirs
import weight_files

from deeplab_jax import train
from deeplab_jax.models.deeplab import DeepLabV2
from deeplab_jax.weights import files, sources

STAGES = (1, 2, 1, 1)
WIDTH = 4
CHANNELS = 32 * WIDTH
RATES = (1, 2, 3, 4)
CLASSES = 5
MEAN_BGR = np.array([104.008, 116.669, 122.675])
PHOTOGRAPH = np.random.default_rng(0).integers(0, 256, (2, 37, 46, 3), np.uint8)
ALIGNED = np.random.default_rng(1).integers(0, 256, (1, 33, 65, 3), np.uint8)
QUICK = {"xla_backend_optimization_level": 0}


def ours(path, photograph, dtype, *, head=None, extra=None, **fields):
    """Logits of our network with the weights of `path`, NHWC."""
    flat, header = sources.read(path, head=head or sources.Head(RATES))
    flat |= extra or {}
    model_fields = header["model"] | {"dtype": dtype} | fields
    classes = len(sources.class_names(flat))
    with jax.enable_x64(dtype == "float64"):
        model = DeepLabV2(num_classes=classes, **model_fields)
        shapes = jax.eval_shape(lambda: train.init_variables(model, jax.random.key(0)))
        blank = jax.tree.map(lambda leaf: np.zeros(leaf.shape, dtype), shapes)
        variables = files.fill(blank, flat)
        inputs = photograph[..., ::-1].astype(dtype) - np.array(model.mean_bgr, dtype)
        apply = jax.jit(model.apply).lower(variables, inputs).compile(QUICK)
        return np.asarray(apply(variables, inputs)).astype(np.float64)


def bgr(photograph, dtype, mean=MEAN_BGR):
    return photograph[..., ::-1].transpose(0, 3, 1, 2).astype(dtype) - mean[:, None, None].astype(
        dtype
    )


def standardised(photograph):
    """What torchvision's networks see."""
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    return ((photograph / 255 - mean) / std).transpose(0, 3, 1, 2)


def assert_same(path, photograph, reference, **options):
    """float64 agrees to 1e-9; float32 errs by no more than three times the reference's float32."""
    exact = reference(np.float64).transpose(0, 2, 3, 1)
    np.testing.assert_allclose(
        ours(path, photograph, "float64", **options), exact, rtol=1e-9, atol=1e-9 * abs(exact).max()
    )
    error = ours(path, photograph, "float32", **options) - exact
    their_error = reference(np.float32).transpose(0, 2, 3, 1) - exact
    assert np.sqrt(np.mean(error**2)) <= 3 * np.sqrt(np.mean(their_error**2))


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

    assert_same(path, ALIGNED, reference, head=sources.Head())


def vgg_head(rng, end: str, width: int) -> dict[str, np.ndarray]:
    shapes = {"fc6": (16, 8 * width, 3, 3), "fc7": (16, 16, 1, 1), "fc8_voc12": (CLASSES, 16, 1, 1)}
    weights = {}
    for name, shape in shapes.items():
        weights[f"{name}{end}/weights"] = theirs.random_kernel(rng, shape)
        weights[f"{name}{end}/biases"] = rng.normal(0, 0.2, shape[0]).astype(np.float32)
    return weights


def vgg_branch(x, weights, end: str, rate: int):
    def layer(x, name, rate=1):
        return theirs.conv(
            x, weights[f"{name}{end}/weights"], weights[f"{name}{end}/biases"], rate=rate
        )

    return layer(theirs.relu(layer(theirs.relu(layer(x, "fc6", rate)), "fc7")), "fc8_voc12")


def layers_of(weights) -> dict[str, list[np.ndarray]]:
    names = dict.fromkeys(name.split("/")[0] for name in weights)
    return {name: [weights[f"{name}/weights"], weights[f"{name}/biases"]] for name in names}


def test_the_release_of_vgg_with_aspp_computes_the_same(tmp_path):
    rng = np.random.default_rng(5)
    weights = theirs.random_vgg(rng, 2, "conv{}_{}".format)
    for i in range(1, 5):
        weights |= vgg_head(rng, f"_{i}", 2)
    path = tmp_path / "w.caffemodel"
    path.write_bytes(
        b"".join(
            weight_files.layer(name, "Convolution", blobs, dilation=2 * int(name[-1]))
            for name, blobs in layers_of(weights).items()
        )
    )

    def reference(dtype):
        x = theirs.vgg(bgr(PHOTOGRAPH, dtype), weights)
        return sum(vgg_branch(x, weights, f"_{i}", 2 * i) for i in range(1, 5))

    assert_same(path, PHOTOGRAPH, reference, head=sources.Head())


def test_the_first_large_fov_release_computes_the_same(tmp_path):
    rng = np.random.default_rng(6)
    weights = theirs.random_vgg(rng, 2, "conv{}_{}".format) | vgg_head(rng, "", 2)
    path = tmp_path / "w.caffemodel"
    layers = [weight_files.v1_layer(name, 4, blobs) for name, blobs in layers_of(weights).items()]
    pools = [weight_files.v1_layer(name, 17) for name in ("pool5", "pool5a")]
    path.write_bytes(b"".join(layers + pools))

    def reference(dtype):
        x = theirs.vgg(bgr(PHOTOGRAPH, dtype), weights)
        x = theirs.pool(x, stride=1, reduce=np.mean)
        return vgg_branch(x, weights, "", 2)

    assert_same(path, PHOTOGRAPH, reference, head=sources.Head((2,)))


@pytest.mark.parametrize("write", ["pth", "safetensors", "npz"])
def test_torchvisions_resnet_computes_the_same(tmp_path, write):
    rng = np.random.default_rng(7)
    weights = theirs.random_torch_resnet(rng, theirs.torch_names, STAGES, WIDTH)
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
    features = theirs.resnet(standardised(PHOTOGRAPH), STAGES, normalised, stride_in="3x3")
    exact = theirs.conv(features, kernel).transpose(0, 2, 3, 1)

    extra = {
        "head/fc8_1/kernel": kernel.transpose(2, 3, 1, 0),
        "head/fc8_1/bias": np.zeros(CLASSES),
    }
    head = {"aspp_rates": (1,), "head_kernel_size": 1, "scales": (1.0,)}
    found = ours(path, PHOTOGRAPH, "float64", extra=extra, **head)
    np.testing.assert_allclose(found, exact, rtol=1e-9, atol=1e-9 * abs(exact).max())


def random_torchvision_vgg(rng, width=2, features=32) -> dict[str, np.ndarray]:
    """Keys of torchvision's vgg16; fc6 sees 7 x 7 of pool5."""
    caffe = theirs.random_vgg(rng, width, "conv{}_{}".format)
    places = (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)
    weights = {}
    for place, (stage, number) in zip(places, theirs.VGG, strict=True):
        weights[f"features.{place}.weight"] = caffe[f"conv{stage}_{number}/weights"]
        weights[f"features.{place}.bias"] = caffe[f"conv{stage}_{number}/biases"]
    sizes = ((0, features, 8 * width * 49), (3, features, features), (6, 1000, features))
    for place, o, i in sizes:
        weights[f"classifier.{place}.weight"] = theirs.random_kernel(rng, (o, i))
        weights[f"classifier.{place}.bias"] = rng.normal(size=o).astype(np.float32)
    return weights


def test_imagenets_vgg_is_thinned_to_every_fourth_feature_and_third_tap(tmp_path):
    weights = random_torchvision_vgg(np.random.default_rng(8))
    path = weight_files.write_pth(tmp_path / "w.pth", weights)
    flat, header = sources.read(path, head=sources.Head((2, 4), 3, 8))

    fc6 = weights["classifier.0.weight"].reshape(32, 16, 7, 7)
    for o, i, h, w in np.ndindex(8, 16, 3, 3):
        assert flat["head/fc6_2/kernel"][h, w, i, o] == fc6[4 * o, i, 3 * h, 3 * w]
    expected = weights["classifier.3.weight"][::4, ::4]
    np.testing.assert_array_equal(flat["head/fc7_1/kernel"][0, 0].T, expected)
    np.testing.assert_array_equal(flat["head/fc6_1/bias"], weights["classifier.0.bias"][::4])
    assert header["model"]["aspp_rates"] == (2, 4)
    assert header["class_names"] == ()


def test_torchvisions_vgg_computes_the_same(tmp_path):
    rng = np.random.default_rng(9)
    weights = random_torchvision_vgg(rng)
    path = weight_files.write_pth(tmp_path / "w.pth", weights)
    head = sources.Head((2,), 7, 32)
    kernel = theirs.random_kernel(rng, (CLASSES, 32, 1, 1))

    caffe = {}
    places = (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)
    for place, (stage, number) in zip(places, theirs.VGG, strict=True):
        caffe[f"conv{stage}_{number}/weights"] = weights[f"features.{place}.weight"]
        caffe[f"conv{stage}_{number}/biases"] = weights[f"features.{place}.bias"]
    x = theirs.vgg(standardised(PHOTOGRAPH), caffe)
    fc6 = weights["classifier.0.weight"].reshape(32, 16, 7, 7)
    x = theirs.relu(theirs.conv(x, fc6, weights["classifier.0.bias"], rate=2))
    fc7 = weights["classifier.3.weight"][:, :, None, None]
    x = theirs.relu(theirs.conv(x, fc7, weights["classifier.3.bias"]))
    exact = theirs.conv(x, kernel).transpose(0, 2, 3, 1)

    extra = {
        "head/fc8_1/kernel": kernel.transpose(2, 3, 1, 0),
        "head/fc8_1/bias": np.zeros(CLASSES),
    }
    found = ours(path, PHOTOGRAPH, "float64", head=head, extra=extra, scales=(1.0,))
    np.testing.assert_allclose(found, exact, rtol=1e-9, atol=1e-9 * abs(exact).max())


@pytest.mark.skipif(importlib.util.find_spec("h5py") is None, reason="needs h5py")
def test_keras_resnet_computes_the_same(tmp_path):
    import h5py

    rng = np.random.default_rng(10)
    arrays = {}
    for unit in theirs.units(STAGES, WIDTH):
        conv, norm = theirs.keras_names(unit)
        arrays[f"{conv}/kernel"] = theirs.random_kernel(rng, unit.shape).transpose(2, 3, 1, 0)
        arrays[f"{conv}/bias"] = rng.normal(size=unit.shape[0]).astype(np.float32)
        roles = ("gamma", "beta", "moving_mean", "moving_variance")
        values = theirs.random_norm(rng, unit.shape[0])
        arrays |= {f"{norm}/{role}": a for role, a in zip(roles, values, strict=True)}
    path = tmp_path / "w.h5"
    with h5py.File(path, "w") as file:
        for name, array in arrays.items():
            file[f"{name.split('/')[0]}/{name}:0"] = array
        file["probs/probs/kernel:0"] = np.zeros((CHANNELS, 1000), np.float32)

    by_key = {unit[:3]: theirs.keras_names(unit) for unit in theirs.units(STAGES, WIDTH)}

    def normalised(key, x, stride, rate):
        conv, norm = by_key[key]
        kernel = arrays[f"{conv}/kernel"].transpose(3, 2, 0, 1)
        x = theirs.conv(x, kernel, arrays[f"{conv}/bias"], stride=stride, rate=rate)
        roles = ("gamma", "beta", "moving_mean", "moving_variance")
        return theirs.batch_norm(x, *(arrays[f"{norm}/{r}"] for r in roles), epsilon=1.001e-5)

    mean = np.array([103.939, 116.779, 123.68])
    x = bgr(PHOTOGRAPH, np.float64, mean)
    features = theirs.resnet(x, STAGES, normalised, stride_in="reduce")
    kernel = theirs.random_kernel(rng, (CLASSES, CHANNELS, 1, 1))
    exact = theirs.conv(features, kernel).transpose(0, 2, 3, 1)
    extra = {
        "head/fc8_1/kernel": kernel.transpose(2, 3, 1, 0),
        "head/fc8_1/bias": np.zeros(CLASSES),
    }
    head = {"aspp_rates": (1,), "head_kernel_size": 1, "scales": (1.0,)}
    found = ours(path, PHOTOGRAPH, "float64", extra=extra, **head)
    np.testing.assert_allclose(found, exact, rtol=1e-9, atol=1e-9 * abs(exact).max())


def test_a_voc_checkpoint_of_kazutos_has_632_entries_and_all_are_used_or_skipped(tmp_path):
    rng = np.random.default_rng(11)
    stages, width = (3, 4, 23, 3), 1
    weights = theirs.random_torch_resnet(rng, theirs.kazuto_names, stages, width)
    for i in range(4):
        weights[f"aspp.c{i}.weight"] = theirs.random_kernel(rng, (21, 32, 3, 3))
        weights[f"aspp.c{i}.bias"] = rng.normal(size=21).astype(np.float32)
    assert len(weights) == 632
    path = weight_files.write_pth(tmp_path / "w.pth", weights)
    flat, header = sources.read(path)
    (skipped,) = header["skipped"].values()
    assert len(flat) == 632 - 104 == 632 - len(skipped)
    assert header["model"]["stage_sizes"] == stages
    assert header["class_names"][15] == "person"
    model = DeepLabV2(num_classes=21, **header["model"])
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
