"""VGG-16 weights compute in our network what they compute in their own."""

import numpy as np
import source_networks as theirs
import weight_files
from weight_logits import CLASSES, PHOTOGRAPH, assert_same, bgr, last_layer, standardised

from deeplab_jax.weights import sources

PLACES = (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)
"""Of the convolutions among torchvision's features."""


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

    assert_same(path, PHOTOGRAPH, reference, answers=sources.Answers())


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

    assert_same(path, PHOTOGRAPH, reference, answers=sources.Answers((2,)))


def random_torchvision_vgg(rng, width=2, features=32) -> dict[str, np.ndarray]:
    """Keys of torchvision's vgg16; fc6 sees 7 x 7 of pool5."""
    caffe = theirs.random_vgg(rng, width, "conv{}_{}".format)
    weights = {}
    for place, (stage, number) in zip(PLACES, theirs.VGG, strict=True):
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
    flat, header = sources.read(path, answers=sources.Answers((2, 4), 3, 8, "torchvision"))

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
    answers = sources.Answers((2,), 7, 32, "torchvision")
    kernel = theirs.random_kernel(rng, (CLASSES, 32, 1, 1))

    trunk = {}
    for place, (stage, number) in zip(PLACES, theirs.VGG, strict=True):
        trunk[f"conv{stage}_{number}/weights"] = weights[f"features.{place}.weight"]
        trunk[f"conv{stage}_{number}/biases"] = weights[f"features.{place}.bias"]
    fc6 = weights["classifier.0.weight"].reshape(32, 16, 7, 7)
    fc7 = weights["classifier.3.weight"][:, :, None, None]

    def reference(dtype):
        x = theirs.vgg(standardised(PHOTOGRAPH).astype(dtype), trunk)
        x = theirs.relu(theirs.conv(x, fc6, weights["classifier.0.bias"], rate=2))
        x = theirs.relu(theirs.conv(x, fc7, weights["classifier.3.bias"]))
        return theirs.conv(x, kernel)

    options = {"answers": answers, "extra": last_layer(kernel), "scales": (1.0,)}
    assert_same(path, PHOTOGRAPH, reference, **options)
