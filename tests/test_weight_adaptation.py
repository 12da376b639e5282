"""Checkpoints of domain adaptation compute in our network what they compute in their own.

Each port's network is written down from what is known of it: torchvision's names, Caffe's strides,
and classifiers `X.conv2d_list.0` to `.3` of which the port sums four or only the first two.
"""

import numpy as np
import pytest
import source_networks as theirs
import weight_files
from weight_logits import CLASSES, PHOTOGRAPH, PORTS_MEAN_BGR, RATES, assert_same, bgr

from deeplab_jax import segmenter
from deeplab_jax.types import UserError
from deeplab_jax.weights import branches, sources

STAGES = (1, 2, 1, 1)
WIDTH = 4
CHANNELS = 32 * WIDTH


def classifier(rng, module, channels, *, trained=4):
    """Kernels and biases as PyTorch's ports draw them; those of `trained` branches have moved."""
    weights = {}
    bound = 1 / np.sqrt(channels * 9)
    for i in range(4):
        kernel = rng.normal(0, 0.01, (CLASSES, channels, 3, 3))
        bias = rng.uniform(-bound, bound, CLASSES)
        if i < trained:  # some classes more than others
            kernel, bias = kernel * np.arange(1, 6)[:, None, None, None], bias + rng.normal(size=5)
        weights[f"{module}.conv2d_list.{i}.weight"] = kernel.astype(np.float32)
        weights[f"{module}.conv2d_list.{i}.bias"] = bias.astype(np.float32)
    return weights


def resnet(rng):
    return theirs.random_torch_resnet(rng, theirs.torch_names, STAGES, WIDTH)


def advent_multi(rng):
    auxiliary = classifier(rng, "layer5", CHANNELS // 2)
    return resnet(rng) | auxiliary | classifier(rng, "layer6", CHANNELS), "layer6", 4


def advent_single(rng):
    return resnet(rng) | classifier(rng, "layer6", CHANNELS), "layer6", 4


def adaptsegnet_multi(rng):
    auxiliary = classifier(rng, "layer5", CHANNELS // 2, trained=2)
    return resnet(rng) | auxiliary | classifier(rng, "layer6", CHANNELS, trained=2), "layer6", 2


def adaptsegnet_single(rng):
    return resnet(rng) | classifier(rng, "layer5", CHANNELS, trained=2), "layer5", 2


def advsemiseg(rng):
    """Saved by a PyTorch that did not count batches yet."""
    weights, module, number = adaptsegnet_single(rng)
    kept = {n: a for n, a in weights.items() if not n.endswith("num_batches_tracked")}
    return kept, module, number


PORTS = [advent_multi, advent_single, adaptsegnet_multi, adaptsegnet_single, advsemiseg]


def logits(weights, x, module, number):
    """The port's forward pass: its loop over the branches ends after `number` of them."""
    normalised = theirs.torch_normalised(weights, theirs.torch_names, STAGES, WIDTH)
    x = theirs.resnet(x, STAGES, normalised, stride_in="reduce")
    total = 0
    for i in range(number):
        name = f"{module}.conv2d_list.{i}"
        total += theirs.conv(x, weights[f"{name}.weight"], weights[f"{name}.bias"], rate=RATES[i])
    return total


@pytest.mark.parametrize("port", PORTS)
def test_every_port_computes_the_same_with_the_branches_it_sums(tmp_path, port):
    weights, module, number = port(np.random.default_rng(0))
    path = weight_files.write_pth(tmp_path / "w.pth", weights)

    def reference(dtype):
        return logits(weights, bgr(PHOTOGRAPH, dtype, PORTS_MEAN_BGR), module, number)

    kept = range(number) if number < 4 else None
    assert_same(path, PHOTOGRAPH, reference, kept=kept)


@pytest.mark.parametrize("port", [adaptsegnet_multi, adaptsegnet_single, advsemiseg])
def test_untrained_branches_are_named_and_summed_only_on_request(tmp_path, port):
    weights, *_ = port(np.random.default_rng(1))
    path = weight_files.write_pth(tmp_path / "w.pth", weights)
    flat, header = sources.read(path)
    assert header["untrained_branches"] == (2, 3)
    with pytest.raises(UserError, match=r"branches 2 3 are still .*--branches 0 1, or .*0 1 2 3"):
        branches.choose(path, flat, header, None)
    with pytest.raises(UserError, match="random start"):
        segmenter.load(path)
    everything, told = branches.choose(path, flat, header, (0, 1, 2, 3))
    assert everything.keys() == flat.keys()
    assert "untrained_branches" not in told


def test_the_auxiliary_head_is_listed_as_skipped(tmp_path):
    weights, *_ = advent_multi(np.random.default_rng(2))
    _, header = sources.read(weight_files.write_pth(tmp_path / "w.pth", weights))
    (names,) = [names for why, names in header["skipped"].items() if "auxiliary" in why]
    assert sorted(names) == sorted(name for name in weights if name.startswith("layer5."))
    assert header["model"]["alignment"] == "corners"
    assert header["model"]["scales"] == (1.0,)


def test_the_kept_branches_keep_their_rates(tmp_path):
    weights, *_ = adaptsegnet_single(np.random.default_rng(3))
    path = weight_files.write_pth(tmp_path / "w.pth", weights)
    flat, header = sources.read(path)
    kept, told = branches.choose(path, flat, header, (3, 1))
    assert told["model"]["aspp_rates"] == (12, 24)
    np.testing.assert_array_equal(kept["head/fc8_2/kernel"], flat["head/fc8_4/kernel"])
    assert "head/fc8_3/kernel" not in kept
    assert told["skipped"][branches.LEFT_OUT] == ["branch 0 (rate 6)", "branch 2 (rate 18)"]


@pytest.mark.parametrize("asked", [(), (0, 4), (1, 1), (-1, 0)])
def test_branches_that_the_head_does_not_have_are_refused(tmp_path, asked):
    weights, *_ = advent_single(np.random.default_rng(4))
    path = weight_files.write_pth(tmp_path / "w.pth", weights)
    with pytest.raises(UserError, match=r"a head of 4 branches, .*give some of 0 1 2 3"):
        branches.choose(path, *sources.read(path), asked)


def test_two_heads_on_the_same_features_are_refused(tmp_path):
    """As in networks with two classifiers on res5, which ADVENT does not have."""
    rng = np.random.default_rng(5)
    weights = (
        resnet(rng) | classifier(rng, "layer5", CHANNELS) | classifier(rng, "layer6", CHANNELS)
    )
    path = weight_files.write_pth(tmp_path / "w.pth", weights)
    with pytest.raises(UserError, match="layer5 and layer6 on 128 and 128 channels"):
        sources.read(path)


def test_a_multi_level_file_without_its_output_is_refused(tmp_path):
    rng = np.random.default_rng(6)
    weights = resnet(rng) | classifier(rng, "layer5", CHANNELS // 2)
    path = weight_files.write_pth(tmp_path / "w.pth", weights)
    with pytest.raises(UserError, match="head/fc8_1/kernel has shape"):
        segmenter.load(path)


def adaptsegnet_vgg(rng):
    """VGG-16's features without pool4 and pool5, then fc6 and fc7 at positions 29 and 31."""
    weights, channels = {}, 3
    positions = (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 23, 25, 27)
    for position, (stage, _) in zip(positions, theirs.VGG, strict=True):
        features = 2 * (1, 2, 4, 8, 8)[stage - 1]
        weights[f"features.{position}.weight"] = theirs.random_kernel(
            rng, (features, channels, 3, 3)
        )
        weights[f"features.{position}.bias"] = np.zeros(features, np.float32)
        channels = features
    for position in (29, 31):
        weights[f"features.{position}.weight"] = theirs.random_kernel(rng, (32, channels, 3, 3))
        weights[f"features.{position}.bias"] = np.zeros(32, np.float32)
        channels = 32
    return weights | classifier(rng, "classifier", 32)


def test_adaptsegnets_vgg_is_refused_with_the_reason(tmp_path):
    path = weight_files.write_pth(tmp_path / "w.pth", adaptsegnet_vgg(np.random.default_rng(7)))
    with pytest.raises(UserError, match=r"AdaptSegNet's VGG-16, whose pools are 2x2"):
        sources.read(path)


STARTS = {
    "normal": lambda rng, shape: rng.normal(0, 0.01, shape),
    "another deviation": lambda rng, shape: rng.normal(0, 0.05, shape),
    "PyTorch's own": lambda rng, shape: rng.uniform(-0.04, 0.04, shape),
    "decayed": lambda rng, shape: 0.3 * rng.normal(0, 0.01, shape),
    "truncated": lambda rng, shape: rng.normal(0, 0.01, shape).clip(-0.02, 0.02),
}
TRAINED = {
    "classes of other sizes": lambda kernel: kernel * np.linspace(1, 2, kernel.shape[-1]),
    "taps of other sizes": lambda kernel: kernel * np.linspace(1, 2, 3)[:, None, None, None],
    "classes alike": lambda kernel: kernel + 0.5 * kernel[..., :1],
    "taps alike": lambda kernel: kernel + 0.5 * kernel[:1, :1],
    "one class preferred": lambda kernel: kernel + 0.5 * kernel.std() * (np.arange(5) == 2),
}


@pytest.mark.parametrize("start", STARTS)
def test_a_branch_is_untrained_where_its_numbers_are_independent_draws(start):
    kernel = STARTS[start](np.random.default_rng(8), (3, 3, 256, 5))
    assert branches.is_start(kernel)
    for name, train in TRAINED.items():
        assert not branches.is_start(train(kernel)), name
    assert not branches.is_start(np.zeros_like(kernel))


def test_draws_are_taken_for_trained_in_no_case_of_200():
    rng = np.random.default_rng(10)
    assert all(branches.is_start(rng.normal(0, 0.01, (3, 3, 128, 21))) for _ in range(200))


def test_a_head_of_which_no_branch_is_trained_is_left_as_it_is():
    rng = np.random.default_rng(9)
    flat = {f"head/fc8_{i}/kernel": rng.normal(0, 0.01, (3, 3, 64, 5)) for i in range(1, 5)}
    assert branches.untrained(flat) == ()
    flat["head/fc8_2/kernel"] *= np.arange(1, 6)
    assert branches.untrained(flat) == (0, 2, 3)
