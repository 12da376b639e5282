"""The networks of the paper in plain PyTorch, for network.py to be compared with.

Layers have the names of ours, so that both compute with the same weights. Needs torch and numpy
alone.
"""

from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from paced import leave, serve
from torch import nn

NAMES = {"kernel": "conv.weight", "scale": "norm.weight"}
NAMES |= {"mean": "norm.running_mean", "var": "norm.running_var"}
"""PyTorch's names of a layer's arrays; a bias is the norm's where there is one."""


class Layer(nn.Module):
    """Convolution with a bias, or with a batch norm that is not trained."""

    def __init__(self, channels, features, size=1, stride=1, rate=1, norm=False):
        super().__init__()
        padding = rate * (size - 1) // 2
        self.conv = nn.Conv2d(channels, features, size, stride, padding, rate, bias=not norm)
        self.norm = nn.BatchNorm2d(features).requires_grad_(False) if norm else nn.Identity()

    def forward(self, x):
        return self.norm(self.conv(x))


class Bottleneck(nn.Module):
    def __init__(self, channels, width, stride, rate, project):
        super().__init__()
        out = 4 * width
        self.branch1 = Layer(channels, out, 1, stride, norm=True) if project else nn.Identity()
        self.branch2a = Layer(channels, width, 1, stride, norm=True)
        self.branch2b = Layer(width, width, 3, 1, rate, norm=True)
        self.branch2c = Layer(width, out, norm=True)

    def forward(self, x):
        shortcut = self.branch1(x)
        x = F.relu(self.branch2a(x), inplace=True)
        x = F.relu(self.branch2b(x), inplace=True)
        return F.relu(self.branch2c(x).add_(shortcut), inplace=True)


def pool(stride):
    return nn.MaxPool2d(3, stride, 1, ceil_mode=True)


def resnet101():
    layers = {"conv1": Layer(3, 64, 7, 2, norm=True), "relu1": nn.ReLU(True), "pool1": pool(2)}
    channels = 64
    stages = zip((3, 4, 23, 3), (1, 2, 1, 1), (1, 1, 2, 4), strict=True)
    for i, (number, stride, rate) in enumerate(stages):
        for j in range(number):
            first = stride if j == 0 else 1
            block = Bottleneck(channels, 64 * 2**i, first, rate, project=j == 0)
            layers[f"res{i + 2}_{j + 1}"], channels = block, 256 * 2**i
    return nn.Sequential(OrderedDict(layers))


def vgg16():
    layers, channels = {}, 3
    stages = zip((2, 2, 3, 3, 3), (64, 128, 256, 512, 512), (2, 2, 2, 1, 1), strict=True)
    for i, (number, width, stride) in enumerate(stages, 1):
        for j in range(1, number + 1):
            layers[f"conv{i}_{j}"] = Layer(channels, width, 3, rate=2 if i == 5 else 1)
            layers[f"relu{i}_{j}"], channels = nn.ReLU(True), width
        layers[f"pool{i}"] = pool(stride)
    return nn.Sequential(OrderedDict(layers))


class Head(nn.ModuleDict):
    """The classifiers of all rates, summed; VGG's have fc6 and fc7 before them."""

    def __init__(self, rates, vgg):
        super().__init__()
        self.branches = range(1, len(rates) + 1)
        for i, rate in enumerate(rates, 1):
            if vgg:
                self[f"fc6_{i}"] = Layer(512, 1024, 3, rate=rate)
                self[f"fc7_{i}"] = Layer(1024, 1024)
            self[f"fc8_{i}"] = Layer(1024, 21) if vgg else Layer(2048, 21, 3, rate=rate)

    def forward(self, x):
        return sum(self.branch(x, i) for i in self.branches)

    def branch(self, x, i):
        for name in (f"fc6_{i}", f"fc7_{i}"):
            x = F.relu(self[name](x), inplace=True) if name in self else x
        return self[f"fc8_{i}"](x)


class DeepLab(nn.Module):
    def __init__(self, network, msc):
        super().__init__()
        vgg, large_fov = network.startswith("vgg"), network == "vgg16_large_fov"
        self.trunk = vgg16() if vgg else resnet101()
        self.head = Head((12,) if large_fov else (6, 12, 18, 24), vgg)
        self.before_head = nn.AvgPool2d(3, 1, 1) if large_fov else nn.Identity()
        self.scales = (1.0, 0.75, 0.5) if msc else (1.0,)

    def forward(self, x):
        """The maps that take a loss, the fused one first."""
        maps = [self.single(x if s == 1 else resize(x, scale_factor=s)) for s in self.scales]
        if len(maps) == 1:
            return maps
        enlarged = [maps[0]] + [resize(m, size=maps[0].shape[2:]) for m in maps[1:]]
        fused = torch.stack(enlarged).amax(0)
        return [fused, enlarged[0], enlarged[1], maps[2]]

    def single(self, x):
        return self.head(self.before_head(self.trunk(x)))


def resize(x, **size):
    return F.interpolate(x, **size, mode="bilinear", align_corners=False)


def load(model: DeepLab, data: Mapping[str, np.ndarray]) -> None:
    """Ours are named by layer, and a kernel is [rows, columns, channels, features]."""
    weights = {}
    for name, values in data.items():
        layer, _, kind = name.rpartition("/")
        if layer:  # and no photographs
            bias = "norm.bias" if f"{layer}/scale" in data else "conv.bias"
            values = values.transpose(3, 2, 0, 1) if kind == "kernel" else values
            theirs = f"{layer.replace('/', '.')}.{NAMES.get(kind, bias)}"
            weights[theirs] = torch.from_numpy(values)
    model.load_state_dict(weights)


def parameter_groups(model: DeepLab, rate: float) -> list[dict]:
    """The recipe's: biases twice as fast and not decayed, the classifier ten times."""
    groups = []
    for name, value in model.named_parameters():
        if value.requires_grad:
            bias = name.endswith("bias")
            factor = (2 if bias else 1) * (10 if ".fc8_" in name else 1)
            decay = 0.0 if bias else 5e-4
            groups.append({"params": [value], "lr": rate * factor, "weight_decay": decay})
    return groups


def total_loss(maps: list[torch.Tensor], labels: torch.Tensor) -> torch.Tensor:
    """Of each map the mean over its labelled pixels."""
    losses = []
    for logits in maps:
        size = logits.shape[2:]
        target = F.interpolate(labels[:, None].float(), size=size, mode="nearest-exact")[:, 0]
        losses.append(F.cross_entropy(logits.float(), target.long(), ignore_index=255))
    return sum(losses)


def prepare(case: dict, folder: Path):
    torch.manual_seed(0)
    if case["threads"]:  # 0: an accelerator's
        torch.set_num_threads(case["threads"])
    torch.backends.cudnn.benchmark = True
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    known = {"version": f"torch {torch.__version__}"}
    if device.type == "cuda":
        known["device"] = torch.cuda.get_device_name()
        known["memory"] = torch.cuda.max_memory_allocated
    form = case["form"]
    layout = torch.contiguous_format if form == "eager" else torch.channels_last
    compiled = torch.compile if form == "compiled" else (lambda f: f)
    finish = torch.cuda.synchronize if device.type == "cuda" else (lambda: None)
    half = torch.autocast(device.type, torch.bfloat16, enabled=case["dtype"] == "bfloat16")
    data = np.load(folder / "work.npz")
    model = DeepLab(case["network"], case["msc"])
    load(model, data)
    model = model.to(device).to(memory_format=layout).eval()
    inputs = torch.from_numpy(data["inputs"]).permute(0, 3, 1, 2).to(device)
    inputs = inputs.contiguous(memory_format=layout)
    if case["work"] == "forward":
        net = compiled(model)

        def forward():
            with torch.no_grad(), half:
                result = net(inputs)[0]
            finish()
            leave(result.float().permute(0, 2, 3, 1).cpu().numpy(), folder, case)
            return 0.0

        return forward, known
    labels = torch.from_numpy(data["labels"].astype(np.int64)).to(device)
    optimizer = torch.optim.SGD(parameter_groups(model, case["rate"]), lr=0, momentum=0.9)
    loss_of = compiled(lambda inputs: total_loss(model(inputs), labels))

    def train():
        optimizer.zero_grad(set_to_none=True)
        with half:
            loss = loss_of(inputs)
        loss.backward()
        optimizer.step()
        finish()
        return float(loss.detach())

    return train, known


if __name__ == "__main__":
    serve(prepare)
