"""The networks that published weights belong to, written with NumPy from their own sources.

Arrays are NCHW and kernels OIHW, as in Caffe and PyTorch; everything runs in the dtype of the
input. `Weights` are under the names of the source, random and distinct for each channel.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

Weights = dict[str, np.ndarray]


class Unit(NamedTuple):
    """A convolution with batch norm; stage 1 is the stem."""

    stage: int
    block: int
    branch: str
    shape: tuple[int, int, int, int]


def units(stage_sizes: tuple[int, ...], width: int) -> Iterator[Unit]:
    yield Unit(1, 1, "", (width, 3, 7, 7))
    channels = width
    for stage, blocks in enumerate(stage_sizes, 2):
        mid = width * 2 ** (stage - 2)
        for block in range(1, blocks + 1):
            if block == 1:
                yield Unit(stage, block, "shortcut", (4 * mid, channels, 1, 1))
            yield Unit(stage, block, "reduce", (mid, channels, 1, 1))
            yield Unit(stage, block, "3x3", (mid, mid, 3, 3))
            yield Unit(stage, block, "expand", (4 * mid, mid, 1, 1))
            channels = 4 * mid


def caffe_names(unit: Unit, *, numbered: bool) -> tuple[str, str, str]:
    """Convolution, BatchNorm and Scale layer; long stages are a, b1, b2, others a, b, c."""
    if unit.stage == 1:
        return "conv1", "bn_conv1", "scale_conv1"
    letter = f"b{unit.block - 1}" if numbered else "abcdef"[unit.block - 1]
    letter = "a" if unit.block == 1 else letter
    branch = {"shortcut": "1", "reduce": "2a", "3x3": "2b", "expand": "2c"}[unit.branch]
    return tuple(f"{part}{unit.stage}{letter}_branch{branch}" for part in ("res", "bn", "scale"))


def kazuto_names(unit: Unit) -> tuple[str, str]:
    if unit.stage == 1:
        return "layer1.conv1.conv", "layer1.conv1.bn"
    branch = {"3x3": "conv3x3", "expand": "increase"}.get(unit.branch, unit.branch)
    return tuple(f"layer{unit.stage}.block{unit.block}.{branch}.{part}" for part in ("conv", "bn"))


def torch_names(unit: Unit) -> tuple[str, str]:
    if unit.stage == 1:
        return "conv1", "bn1"
    block = f"layer{unit.stage - 1}.{unit.block - 1}"
    if unit.branch == "shortcut":
        return f"{block}.downsample.0", f"{block}.downsample.1"
    place = {"reduce": 1, "3x3": 2, "expand": 3}[unit.branch]
    return f"{block}.conv{place}", f"{block}.bn{place}"


def random_kernel(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    fan_in = np.prod(shape[1:])
    return (rng.normal(size=shape) * np.sqrt(2 / fan_in)).astype(np.float32)


def random_norm(rng: np.random.Generator, channels: int) -> tuple[np.ndarray, ...]:
    """Scale, shift, mean, variance."""
    drawn = (
        rng.uniform(0.4, 0.9, channels),
        rng.normal(0, 0.2, channels),
        rng.normal(0, 0.3, channels),
        rng.uniform(0.5, 1.5, channels),
    )
    return tuple(array.astype(np.float32) for array in drawn)


def random_torch_norm(rng: np.random.Generator, name: str, channels: int) -> Weights:
    roles = ("weight", "bias", "running_mean", "running_var")
    norm = dict(zip(roles, random_norm(rng, channels), strict=True))
    counter = {"num_batches_tracked": np.array([20000], np.int64)}
    return {f"{name}.{role}": array for role, array in (norm | counter).items()}


PIXELS = 100
"""What the first kernel is divided by where inputs are 0..255 in place of standardised."""


def random_torch_resnet(
    rng, names: Callable[[Unit], tuple[str, str]], stage_sizes, width: int, *, inputs: int = PIXELS
) -> Weights:
    weights = {}
    for unit in units(stage_sizes, width):
        conv, norm = names(unit)
        weights[f"{conv}.weight"] = random_kernel(rng, unit.shape)
        if unit.stage == 1:
            weights[f"{conv}.weight"] /= inputs
        weights |= random_torch_norm(rng, norm, unit.shape[0])
    return weights


def random_caffe_resnet(rng, stages, width: int) -> dict[str, list[np.ndarray]]:
    """Blobs by layer; BatchNorm keeps mean * f, variance * f and f."""
    layers = {}
    for unit in units(stages, width):
        convolution, norm, scale = caffe_names(unit, numbered=unit.stage in (3, 4))
        gamma, beta, mean, variance = random_norm(rng, unit.shape[0])
        factor = np.array([rng.uniform(1, 1000)], np.float32)
        layers[convolution] = [random_kernel(rng, unit.shape)]
        if unit.stage == 1:
            layers[convolution][0] /= PIXELS
        layers[norm] = [mean * factor, variance * factor, factor]
        layers[scale] = [gamma, beta]
    return layers


def random_caffe_head(rng, classes: int, channels: int) -> dict[str, list[np.ndarray]]:
    return {
        f"fc1_voc12_c{i}": [
            random_kernel(rng, (classes, channels, 3, 3)),
            rng.normal(size=classes).astype(np.float32),
        ]
        for i in range(4)
    }


def conv(x, kernel, bias=None, *, stride: int = 1, rate: int = 1) -> np.ndarray:
    """Zero padded to keep the size, floor of the size divided by the stride."""
    kernel = kernel.astype(x.dtype)
    size = kernel.shape[2]
    pad = rate * (size - 1) // 2
    h, w = x.shape[2:]
    x = np.pad(x, ((0, 0), (0, 0), (pad, pad), (pad, pad)))
    total = 0
    for i in range(size):
        for j in range(size):
            shifted = x[:, :, i * rate : i * rate + h : stride, j * rate : j * rate + w : stride]
            total = total + np.einsum("oi,bihw->bohw", kernel[:, :, i, j], shifted)
    return total if bias is None else total + bias.astype(x.dtype)[:, None, None]


def batch_norm(x, scale, shift, mean, variance, *, epsilon: float = 1e-5) -> np.ndarray:
    scale, shift, mean, variance = (
        a.astype(x.dtype)[:, None, None] for a in (scale, shift, mean, variance)
    )
    return (x - mean) / np.sqrt(variance + x.dtype.type(epsilon)) * scale + shift


def relu(x) -> np.ndarray:
    return np.maximum(x, 0)


def pool(x, *, stride: int, reduce=np.max) -> np.ndarray:
    """3x3 windows around every stride-th pixel, as many as it takes to see every pixel."""
    h, w = x.shape[2:]
    fill = -np.inf if reduce is np.max else 0
    x = np.pad(x, ((0, 0), (0, 0), (1, 3), (1, 3)), constant_values=fill)
    rows, columns = (-(-(n - 1) // stride) + 1 for n in (h, w))
    windows = np.lib.stride_tricks.sliding_window_view(x, (3, 3), (2, 3))
    return reduce(windows[:, :, ::stride, ::stride][:, :, :rows, :columns], axis=(-1, -2))


def resize(x, size: tuple[int, int], *, aligned: bool, step: float | None = None) -> np.ndarray:
    """Bilinear, two taps; `aligned` corners, or half-pixel centres."""
    for axis, out in zip((2, 3), size, strict=True):
        n = x.shape[axis]
        place = np.arange(out)
        if aligned:
            place = place * (n - 1) / max(out - 1, 1)
        else:
            place = (place + 0.5) * (step or n / out) - 0.5
        place = place.clip(0, n - 1)
        low = np.minimum(np.floor(place).astype(int), max(n - 2, 0))
        shape = [1] * 4
        shape[axis] = out
        part = (place - low).reshape(shape).astype(x.dtype)
        upper = np.take(x, np.minimum(low + 1, n - 1), axis)
        x = np.take(x, low, axis) * (1 - part) + upper * part
    return x


def resnet(x, stage_sizes, normalised, *, stride_in: str) -> np.ndarray:
    """`normalised(unit_key, x, stride, rate)` is a convolution and its batch norm.

    `stride_in` is the branch that has a stage's stride: "reduce" (Caffe and the ports of it), or
    "3x3" (torchvision with replace_stride_with_dilation).
    """
    x = pool(relu(normalised((1, 1, ""), x, 2, 1)), stride=2)
    strides, rates = (1, 2, 1, 1), (1, 1, 2, 4)
    before = 1
    for stage, blocks in enumerate(stage_sizes, 2):
        for block in range(1, blocks + 1):
            stride = strides[stage - 2] if block == 1 else 1
            rate = rates[stage - 2]
            if block == 1 and stride_in == "3x3":
                rate = before
            first, second = (stride, 1) if stride_in == "reduce" else (1, stride)
            y = relu(normalised((stage, block, "reduce"), x, first, 1))
            y = relu(normalised((stage, block, "3x3"), y, second, rate))
            y = normalised((stage, block, "expand"), y, 1, 1)
            if block == 1:
                x = normalised((stage, block, "shortcut"), x, stride, 1)
            x = relu(x + y)
        before = rates[stage - 2]
    return x


def torch_normalised(weights: Weights, names, stage_sizes, width: int):
    """`normalised` of networks whose arrays are named as in PyTorch."""
    by_key = {unit[:3]: names(unit) for unit in units(stage_sizes, width)}

    def normalised(key, x, stride, rate):
        convolution, norm = by_key[key]
        x = conv(x, weights[f"{convolution}.weight"], stride=stride, rate=rate)
        roles = ("weight", "bias", "running_mean", "running_var")
        return batch_norm(x, *(weights[f"{norm}.{role}"] for role in roles))

    return normalised


def caffe_normalised(layers: dict[str, list[np.ndarray]], stage_sizes, width: int):
    """`normalised` of Caffe's layers; BatchNorm divides its sums by their factor."""
    by_key = {
        unit[:3]: caffe_names(unit, numbered=unit.stage in (3, 4))
        for unit in units(stage_sizes, width)
    }

    def normalised(key, x, stride, rate):
        convolution, norm, scale = by_key[key]
        x = conv(x, layers[convolution][0], stride=stride, rate=rate)
        mean, variance, factor = (blob.astype(x.dtype) for blob in layers[norm])
        gamma, beta = layers[scale]
        return batch_norm(x, gamma, beta, mean / factor, variance / factor)

    return normalised


def largest_of_scales(network, x, *, aligned: bool) -> np.ndarray:
    """MSC: the maximum over the scores at sizes 1, 3/4 and 1/2."""
    maps = [network(x)]
    size = maps[0].shape[2:]
    for factor in (0.75, 0.5):
        if aligned:
            small = [int((n - 1) * factor) + 1 for n in x.shape[2:]]
            scaled = resize(x, small, aligned=True)
        else:
            small = [int(n * factor) for n in x.shape[2:]]
            scaled = resize(x, small, aligned=False, step=1 / factor)
        maps.append(resize(network(scaled), size, aligned=aligned))
    return np.max(maps, 0)


VGG = [(1, 1), (1, 2), (2, 1), (2, 2), *((s, n) for s in (3, 4, 5) for n in (1, 2, 3))]


def random_vgg(rng, width: int, names: Callable[[int, int], str]) -> Weights:
    """`<name>/weights` and `<name>/biases` of the 13 convolutions."""
    weights, channels = {}, 3
    for stage, number in VGG:
        features = width * (1, 2, 4, 8, 8)[stage - 1]
        name = names(stage, number)
        weights[f"{name}/weights"] = random_kernel(rng, (features, channels, 3, 3))
        weights[f"{name}/biases"] = rng.normal(0, 0.2, features).astype(np.float32)
        channels = features
    return weights


def vgg(x, weights: Weights) -> np.ndarray:
    """The Caffe release's trunk, names as in Caffe."""
    for stage, number in VGG:
        name = f"conv{stage}_{number}"
        rate = 2 if stage == 5 else 1
        x = relu(conv(x, weights[f"{name}/weights"], weights[f"{name}/biases"], rate=rate))
        if (stage, number) in ((1, 2), (2, 2), (3, 3), (4, 3), (5, 3)):
            x = pool(x, stride=2 if stage < 4 else 1)
    return x
