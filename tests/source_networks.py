"""The networks that published weights belong to, drawn and computed with NumPy.

Arrays are NCHW and kernels OIHW, as in Caffe and PyTorch; everything runs in the dtype of the
input. A ResNet is drawn as `Units`, random and distinct for each channel, and named as its source
names it.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

import numpy as np
import reference

Weights = dict[str, np.ndarray]
Layers = dict[str, list[np.ndarray]]
"""Blobs by layer, as Caffe keeps them."""


class Unit(NamedTuple):
    """A convolution with batch norm; stage 1 is the stem."""

    stage: int
    block: int
    branch: str


Units = dict[Unit, tuple[np.ndarray, ...]]
"""Kernel, scale, shift, mean, variance."""

PIXELS = 100
"""What the first kernel is divided by where inputs are 0..255 in place of standardised."""


def shapes(stage_sizes: tuple[int, ...], width: int) -> Iterator[tuple[Unit, tuple[int, ...]]]:
    yield Unit(1, 1, ""), (width, 3, 7, 7)
    channels = width
    for stage, blocks in enumerate(stage_sizes, 2):
        mid = width * 2 ** (stage - 2)
        for block in range(1, blocks + 1):
            if block == 1:
                yield Unit(stage, block, "shortcut"), (4 * mid, channels, 1, 1)
            yield Unit(stage, block, "reduce"), (mid, channels, 1, 1)
            yield Unit(stage, block, "3x3"), (mid, mid, 3, 3)
            yield Unit(stage, block, "expand"), (4 * mid, mid, 1, 1)
            channels = 4 * mid


def random_kernel(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    return (rng.normal(size=shape) * np.sqrt(2 / np.prod(shape[1:]))).astype(np.float32)


def draw_units(rng, stage_sizes=(1, 1, 1, 1), width: int = 2, *, inputs: int = PIXELS) -> Units:
    drawn = {}
    for unit, shape in shapes(stage_sizes, width):
        kernel, channels = random_kernel(rng, shape), shape[0]
        if unit.stage == 1:
            kernel /= inputs
        norm = (
            rng.uniform(0.4, 0.9, channels),
            rng.normal(0, 0.2, channels),
            rng.normal(0, 0.3, channels),
            rng.uniform(0.5, 1.5, channels),
        )
        drawn[unit] = (kernel, *(array.astype(np.float32) for array in norm))
    return drawn


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


def as_torch(units: Units, names: Callable[[Unit], tuple[str, str]] = torch_names) -> Weights:
    weights = {}
    for unit, (kernel, *norm) in units.items():
        conv, of_norm = names(unit)
        weights[f"{conv}.weight"] = kernel
        roles = ("weight", "bias", "running_mean", "running_var")
        weights |= {f"{of_norm}.{r}": array for r, array in zip(roles, norm, strict=True)}
        weights[f"{of_norm}.num_batches_tracked"] = np.array([20000], np.int64)
    return weights


def as_caffe(units: Units) -> Layers:
    """BatchNorm keeps mean * f, variance * f and f; long stages are a, b1, b2, others a, b, c."""
    layers = {}
    for i, ((stage, block, branch), drawn) in enumerate(units.items()):
        kernel, gamma, beta, mean, variance = drawn
        letter = f"b{block - 1}" if stage in (3, 4) and block > 1 else "abcdef"[block - 1]
        end = {"shortcut": "1", "reduce": "2a", "3x3": "2b", "expand": "2c"}.get(branch)
        unit = f"{stage}{letter}_branch{end}"
        names = [part + unit for part in ("res", "bn", "scale")]
        factor = np.array([2.0 ** (i % 10)], np.float32)
        blobs = [kernel], [mean * factor, variance * factor, factor], [gamma, beta]
        if stage == 1:
            names = ["conv1", "bn_conv1", "scale_conv1"]
        layers |= zip(names, blobs, strict=True)
    return layers


def draw_head(rng, classes: int, channels: int, *, branches: int = 4, size: int = 3) -> list:
    """Kernel and bias of each branch."""
    return [
        (
            random_kernel(rng, (classes, channels, size, size)),
            rng.normal(size=classes).astype(np.float32),
        )
        for _ in range(branches)
    ]


def name_head(head: list, name: str) -> Weights:
    """A head in PyTorch; `name` is formatted with 0, 1, ..."""
    weights = {}
    for i, (kernel, bias) in enumerate(head):
        weights |= {f"{name.format(i)}.weight": kernel, f"{name.format(i)}.bias": bias}
    return weights


def kazuto(
    rng, stages=(1, 1, 1, 1), width: int = 2, *, classes: int = 3, prefix="base."
) -> Weights:
    """A checkpoint of kazuto1011's v2."""
    weights = as_torch(draw_units(rng, stages, width), kazuto_names)
    weights |= name_head(draw_head(rng, classes, 32 * width), "aspp.c{}")
    return {prefix + name: array for name, array in weights.items()}


def draw_vgg(rng, width: int = 2) -> dict[tuple[int, int], tuple[np.ndarray, np.ndarray]]:
    """Kernels and biases of the 13 convolutions by stage and number."""
    drawn, channels = {}, 3
    for stage, number in VGG:
        features = width * (1, 2, 4, 8, 8)[stage - 1]
        kernel = random_kernel(rng, (features, channels, 3, 3))
        drawn[stage, number] = kernel, rng.normal(0, 0.2, features).astype(np.float32)
        channels = features
    return drawn


VGG = [(1, 1), (1, 2), (2, 1), (2, 2), *((s, n) for s in (3, 4, 5) for n in (1, 2, 3))]


def torch_vgg(drawn: dict) -> Weights:
    """The names of torchvision's features."""
    places = (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)
    weights = {}
    for place, (kernel, bias) in zip(places, drawn.values(), strict=True):
        weights |= {f"features.{place}.weight": kernel, f"features.{place}.bias": bias}
    return weights


def conv(x, kernel, bias=None, *, stride: int = 1, rate: int = 1) -> np.ndarray:
    """Zero padded to keep the size, floor of the size divided by the stride."""
    kernel = kernel.astype(x.dtype)
    size = kernel.shape[2]
    pad = rate * (size - 1) // 2
    h, w = x.shape[2:]
    x = np.pad(x, ((0, 0), (0, 0), (pad, pad), (pad, pad)))
    total = 0
    for i, j in np.ndindex(size, size):
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


def each(function, x) -> np.ndarray:
    """A function of one photograph `[rows, columns, channels]` of a batch."""
    found = [function(photograph) for photograph in x.transpose(0, 2, 3, 1)]
    return np.array(found, x.dtype).transpose(0, 3, 1, 2)


def pool(x, *, stride: int, how: str = "max") -> np.ndarray:
    return each(partial(reference.pool, stride=stride, how=how), x)


def resnet(x, units: Units, *, stride_in: str) -> np.ndarray:
    """`stride_in` is the branch that has a stage's stride: "reduce" (Caffe and the ports of it), or
    "3x3" (torchvision with replace_stride_with_dilation)."""

    def normalised(*unit, x, stride=1, rate=1):
        kernel, *norm = units[Unit(*unit)]
        return batch_norm(conv(x, kernel, stride=stride, rate=rate), *norm)

    x = pool(relu(normalised(1, 1, "", x=x, stride=2)), stride=2)
    strides, rates = (1, 2, 1, 1), (1, 1, 2, 4)
    before = 1
    for stage, block in [unit[:2] for unit in units if unit.branch == "reduce"]:
        stride = strides[stage - 2] if block == 1 else 1
        rate = rates[stage - 2]
        first, second = (stride, 1) if stride_in == "reduce" else (1, stride)
        y = relu(normalised(stage, block, "reduce", x=x, stride=first))
        of_3x3 = before if block == 1 and stride_in == "3x3" else rate
        y = relu(normalised(stage, block, "3x3", x=y, stride=second, rate=of_3x3))
        y = normalised(stage, block, "expand", x=y)
        if block == 1:
            x = normalised(stage, block, "shortcut", x=x, stride=stride)
        x, before = relu(x + y), rate
    return x


def largest_of_scales(network, x, *, aligned: bool) -> np.ndarray:
    """MSC: the maximum over the scores at sizes 1, 3/4 and 1/2."""
    alignment = "corners" if aligned else "half_pixel"
    maps = [network(x)]
    size = maps[0].shape[2:]
    for factor in (0.75, 0.5):
        if aligned:
            small = [int((n - 1) * factor) + 1 for n in x.shape[2:]]
            shrink = partial(reference.resize, size=small, alignment="corners")
        else:
            places = [(np.arange(int(n * factor)) + 0.5) / factor - 0.5 for n in x.shape[2:]]
            shrink = partial(reference.bilinear, rows=places[0], columns=places[1])
        enlarge = partial(reference.resize, size=size, alignment=alignment)
        maps.append(each(enlarge, network(each(shrink, x))))
    return np.max(maps, 0)


def vgg(x, drawn: dict) -> np.ndarray:
    """The Caffe release's trunk."""
    for (stage, number), (kernel, bias) in drawn.items():
        x = relu(conv(x, kernel, bias, rate=2 if stage == 5 else 1))
        if (stage, number) in ((1, 2), (2, 2), (3, 3), (4, 3), (5, 3)):
            x = pool(x, stride=2 if stage < 4 else 1)
    return x
