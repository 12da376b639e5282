"""Every number of an experiment, with the paper's as defaults.

Fields are passed on under their own names; tests/test_config.py finds one that nobody reads. A
field made by `runtime` may differ when a run goes on; every other field is part of the result.
Functions below `segmenter` take the numbers, never a Config. None where a value depends on the data
or the weights: `start.resolve` puts it in.
"""

import dataclasses
import json
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from deeplab_jax.choices import (
    MEAN_BGR,
    Alignment,
    Backbone,
    BadData,
    BatchLossName,
    Norm,
    PixelLossName,
    Policy,
    Precision,
    StridePlacement,
)
from deeplab_jax.models import deeplab
from deeplab_jax.ops import resize
from deeplab_jax.types import UserError


def runtime(default: Any) -> Any:
    """A field that says how a run is carried out and leaves its result alone."""
    return field(default=default, metadata={"runtime": True})


@dataclass(frozen=True)
class ModelConfig:
    """The network; see models.deeplab.build."""

    backbone: Backbone = "resnet"
    """Trunk: ResNet bottlenecks or VGG's plain convolutions."""
    stage_sizes: tuple[int, ...] = (3, 4, 23, 3)
    """Blocks (ResNet: res2 to res5) or convolutions (VGG: conv1 to conv5) of each stage."""
    width: int = 64
    """Channels of the first convolution; every other trunk width is a multiple of it."""
    norm: Norm = "frozen"
    """Batch norm: none (VGG), frozen (with pretrained weights), trained (from scratch)."""
    stride_placement: StridePlacement | None = None
    """A stage's stride in its first 1x1 convolution (caffe) or in its 3x3 (torch); None: as the
    weights were trained, caffe from scratch."""
    aspp_rates: tuple[int, ...] = (6, 12, 18, 24)
    """Rates of the parallel branches (Section 3.2); a single rate is LargeFOV."""
    head_kernel_size: int = 3
    """Kernel of the head's first convolution; 1 gives the plain network, 4 and 7 Table 1's."""
    head_width: int = 1024
    """Channels of fc6 and fc7; VGG only."""
    pool5a: bool = False
    """3x3 average before fc6, as in the first LargeFOV release; VGG only."""
    dropout: float = 0.5
    """Part of fc6 and fc7 dropped in training; VGG only."""
    scales: tuple[float, ...] = (1.0, 0.75, 0.5)
    """Multi-scale inputs fused by the maximum (Section 4.1.2); 1.0 alone is a single scale."""
    alignment: Alignment | None = None
    """Every resizing, and the labels: jax.image.resize, moved to where the network looks (cells) or
    not (half_pixel), the PyTorch ports' (ports), or Caffe's Interp (corners; corners_v1 of the 4x4
    network of the first release, with its 2x2 pools); see ops/resize.py. None: as the weights were
    trained, cells from scratch."""
    mean_bgr: tuple[float, ...] | None = None
    """Mean pixel taken off photographs, 0..255. With data.channels the mean of each channel in the
    order of the files (BGR of three). None: that of the weights; from scratch the paper's, or with
    data.channels what is measured over the training split."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """What convolutions compute in; parameters and loss are float32."""


@dataclass(frozen=True)
class DataConfig:
    """Photographs, masks and what is done to them before training (Section 4)."""

    root: Path | None = runtime(None)
    """Folder of the data set, or of the archives of one; see data/layouts.py."""
    num_scenes: int = 0
    """Where no root is given: this many training scenes are drawn by the project itself."""
    train_split: str | None = None
    """Split to train on, such as a list under ImageSets/Segmentation. None: the paper's train_aug
    where the data are PASCAL VOC 2012, train of all others."""
    val_split: str = "val"
    """Split to evaluate on."""
    val_fraction: float | None = None
    """Where the data has one split only: the part of its photographs that becomes the split val."""
    val_groups: str | None = None
    """Regular expression: photographs in whose names it matches the same text, such as the number
    of a sequence, are all trained on or all in val."""
    channels: int | None = None
    """Channels of the photographs: TIFF of many bands, .npy [rows, columns, channels], or grey for
    1. None: photographs are read as RGB."""
    range: tuple[float, ...] | None = None
    """The values that become black and white in photographs of more than 8 bits a channel: LOW
    HIGH, or such a pair for each channel. With data.channels they are measured over the training
    split where none are given."""
    shown_bands: tuple[int, ...] | None = runtime(None)
    """Channels that pictures show as red, green and blue, or one as grey, counted from 0. None: the
    first three, or the first."""
    val_root: Path | None = runtime(None)
    """Folder of other data, with the same classes, that the split to evaluate on comes from."""
    masks: str | None = None
    """Which files are the masks, where several may be: the name of a folder of masks or of a COCO
    JSON, or the end of the masks' names, such as _gt.png."""
    train_masks: Path | None = runtime(None)
    """Folder of masks to train on in place of those of the training split, as weak supervision
    makes them: class ids, 255 where nothing counts, under the names of the photographs."""
    crop_size: int = 321
    """Rows and columns of a training crop."""
    augmentation_scales: tuple[float, ...] = (0.5, 0.75, 1.0, 1.25, 1.5)
    """One is drawn for each photograph; 1.0 alone is no scaling."""
    flip: bool = True
    """Flip every second photograph, by chance."""
    bad_data: BadData = "raise"
    """Photographs or masks that cannot be used end the run (raise), or are named, counted and left
    out (skip)."""


@dataclass(frozen=True)
class OptimConfig:
    """The solver; see optim.caffe_sgd."""

    learning_rate: float = 2.5e-4
    """Rate of the first update for trunk kernels."""
    policy: Policy = "poly"
    """poly: (1 - t / T) ** power; step: times gamma after every `step_every` updates."""
    power: float = 0.9
    """Of the poly policy (Section 4.1.2)."""
    step_every: int = 2000
    """Of the step policy: updates between two drops."""
    gamma: float = 0.1
    """Of the step policy: what a drop multiplies by."""
    momentum: float = 0.9
    weight_decay: float = 5e-4
    """Of kernels; biases and batch norm do not decay."""
    classifier_multiplier: float = 10.0
    """Learning rate of the last layer over that of the trunk."""


@dataclass(frozen=True)
class CRFLossConfig:
    """Of batch_loss dense_crf (losses.dense_crf); the authors' values, for crops of 513."""

    weight: float = 2e-9
    """What the loss is multiplied by; it grows with the square of a crop's pixels."""
    sigma_xy: float = 100.0
    """Reach of the kernel in pixels."""
    sigma_rgb: float = 15.0
    """Reach of the kernel in colour steps."""
    scale: float = 0.5
    """Size at which pixels are compared: 1 over a whole number."""


@dataclass(frozen=True)
class EvalConfig:
    """How a score is measured (Section 4.1)."""

    pad_to: int | None = runtime(513)
    """Photographs are padded to this size, as in the release; None: each at its own size."""
    scales: tuple[float, ...] = runtime((1.0,))
    """Sizes at which the whole network is run; probabilities are averaged."""
    tile: int | None = runtime(None)
    """Photographs that a square of this side does not cover are scored in such tiles."""


@dataclass(frozen=True)
class Config:
    """A training run."""

    model: ModelConfig = ModelConfig()
    data: DataConfig = DataConfig()
    optim: OptimConfig = OptimConfig()
    eval: EvalConfig = EvalConfig()
    num_steps: int = 20_000
    """Updates of the parameters."""
    batch_size: int = 10
    """Photographs an update, over all devices and accumulation steps."""
    loss_group_size: int | None = 1
    """Photographs whose loss is divided by their labelled pixels together, as a batch of Caffe's:
    1 in the paper's ResNet-101, which sums ten of them an update. None: all of an update."""
    pixel_loss: PixelLossName = "cross_entropy"
    """Loss of each pixel: cross_entropy is the paper's; focal gives pixels that are already
    right less weight (losses.focal, gamma 2)."""
    batch_loss: BatchLossName | None = None
    """A second loss, added to the first: dice or lovasz (losses.lovasz_softmax), computed over the
    photographs that a device works on at once, so that max_per_device is part of the result, or
    dense_crf, for scribbles, whose options are those of crf_loss."""
    crf_loss: CRFLossConfig = CRFLossConfig()
    class_balance: float = 0.0
    """Exponent: a pixel counts as its class's share of the train split to the minus this; 0,
    the paper's, counts all alike. It weights pixel_loss, not batch_loss."""
    ema_decay: float = 0.0
    """Keep an exponential moving average of the parameters, of this decay (such as 0.999), and
    score it beside them; 0 keeps none. Batch norm's statistics stay those of the parameters."""
    crf_iterations: int = 0
    """Train through this many mean-field iterations of a CRF after the network, and learn the
    weights of its kernels; 0, the paper's, leaves the CRF out of training."""
    seed: int = 0
    """Of initial weights, order, augmentation and dropout."""
    weights: Path | None = runtime(None)
    """Start from these: a work folder, a weight file, or a name of published weights such as
    imagenet-resnet101. None: from scratch."""
    model_file: str | None = None
    """FILE.py:FUNCTION of yours; FUNCTION(num_classes) gives the network, and the options of
    `model` are not used. The file may define make_loss, make_optimizer and augment too; see
    experiments/extend.md. Whoever loads the run needs it in its place."""
    crf_bands: tuple[int, ...] | None = None
    """Channels that the CRF compares in place of colours, 1 to 6 of them, in training and later.
    None: those that pictures show."""
    fresh_head: bool = False
    """Start the last layer from scratch where the weights have one; weights of ImageNet have none,
    so that theirs always does."""
    workdir: Path | None = runtime(None)
    """Where the run lives; runs/<preset> by default."""
    prepared_dir: Path = runtime(Path("prepared"))
    """Where prepared data sets are kept."""
    workers: int = runtime(0)
    """Processes that read photographs; 0: threads of this one."""
    num_devices: int | None = runtime(None)
    """Accelerators to use; None: all."""
    max_per_device: int | None = runtime(None)
    """Photographs a device works on at once; the rest of its share is accumulated. None: on
    accelerators all that the compiled update finds memory for, on CPUs 10 for VGG and 1 for a
    ResNet. A trained batch norm, dice and lovasz are computed over these, so that None then is a
    device's whole share everywhere."""
    log_every: int = runtime(10)
    """Updates between two lines of metrics.jsonl."""
    save_every: int = runtime(500)
    """Updates between two checkpoints."""
    evaluate_every: int = runtime(0)
    """Updates between two scores on the val split; 0: only at the end."""
    dry_run: bool = runtime(False)
    """Print what would be trained, on what and from what, and do nothing."""
    precision: Precision = "default"
    """What float32 convolutions and products are computed in. default: bfloat16 (8 bits) on TPUs,
    TF32 (10 bits) on GPUs from Ampere on; high: three bfloat16 products on TPUs, TF32 on GPUs;
    highest: float32 everywhere. CPUs always compute in float32."""
    deterministic: bool = runtime(False)
    """The same bits when a run goes on, on GPUs too: its programs are kept in the work folder."""
    remat: bool = runtime(False)
    """Recompute the inside of each block for the gradient instead of keeping it: ResNet-101's step
    at crop 321 then needs half of the memory and a quarter more time (measured on a CPU)."""
    keep_checkpoints: int = runtime(2)
    """Newest checkpoints kept."""
    distributed: bool = runtime(False)
    """This is one of several processes of a run: JAX finds the others by the cluster (Slurm, Open
    MPI, a TPU pod), or by JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID."""


FROM_SCRATCH = {"alignment": "cells", "stride_placement": "caffe", "mean_bgr": MEAN_BGR}
"""Conventions of a network that no weights bring any for."""


def completed(model: ModelConfig, brought: Mapping[str, Any] = FROM_SCRATCH) -> ModelConfig:
    """The model with the conventions of weights, such as `alignment`, where it names none."""
    conventions = {**FROM_SCRATCH, **brought}
    missing = {name: conventions[name] for name in FROM_SCRATCH if getattr(model, name) is None}
    return replace(model, **{name: as_tuple(value) for name, value in missing.items()})


def as_tuple(value: Any) -> Any:
    """A tuple of a JSON list; other values as they are."""
    return tuple(value) if isinstance(value, list) else value


def check(config: Config) -> None:
    """Refuses combinations that cannot be trained, of a config that `start.resolve` has completed,
    with a UserError that names the fields."""
    data, model = config.data, config.model
    _check_numbers(config)
    _check_channels(config)
    if data.train_split == data.val_split and (data.val_root or data.train_masks):
        raise UserError(
            f"data.train_split and data.val_split are both {data.val_split}; splits of two data "
            "sets (data.val_root), or with masks of one's own (data.train_masks), need two names"
        )
    if config.model_file is not None:
        return
    deeplab.build(**dataclasses.asdict(model))  # refuses what contradicts itself
    assert model.alignment is not None  # it is completed
    upper = resize.closing_size(
        data.crop_size, alignment=model.alignment, num_scales=len(model.scales)
    )
    if data.crop_size != upper:
        step = 32 if len(model.scales) > 1 else 8
        raise UserError(
            f"data.crop_size {data.crop_size} does not close over the scales {model.scales} with "
            f"aligned corners: it must be a multiple of {step} plus {upper % step}, such as "
            f"{upper - step} or {upper}"
        )
    if config.crf_iterations and model.alignment == "corners_v1":
        raise UserError(
            "crf_iterations cannot be trained with model.alignment corners_v1, whose scores in "
            "training have no pixels of their own; give another alignment"
        )


def _check_numbers(config: Config) -> None:
    counts = ("batch_size", "save_every", "log_every", "keep_checkpoints", "max_per_device")
    for name in (*counts, "loss_group_size"):
        if (count := getattr(config, name)) is not None and count < 1:
            raise UserError(f"{name} {count} must be at least 1")
    if not 0 <= config.ema_decay < 1:
        raise UserError(f"ema_decay {config.ema_decay} must be at least 0 and less than 1")
    loss = config.crf_loss
    if not (loss.weight >= 0 and min(loss.sigma_xy, loss.sigma_rgb) > 0 and 0 < loss.scale <= 1):
        raise UserError(f"crf_loss needs sigmas above 0 and a scale of at most 1, got {loss}")
    if abs(1 / loss.scale - round(1 / loss.scale)) > 1e-3:
        raise UserError(f"crf_loss.scale {loss.scale} must be 1 over a whole number, such as 0.25")
    if config.batch_size % (config.loss_group_size or config.batch_size):
        raise UserError(
            f"batch_size {config.batch_size} cannot be split into groups of "
            f"{config.loss_group_size}; choose a loss_group_size that divides it"
        )


def _check_channels(config: Config) -> None:
    data, mean = config.data, config.model.mean_bgr
    channels = 3 if data.channels is None else data.channels
    if channels < 1:
        raise UserError(f"data.channels {channels} must be at least 1")
    for name, bands in (("data.shown_bands", data.shown_bands), ("crf_bands", config.crf_bands)):
        if bands is not None and not (bands and all(0 <= band < channels for band in bands)):
            raise UserError(
                f"{name} {bands} must be numbers from 0 to {channels - 1}, those of the channels"
            )
    if data.shown_bands is not None and len(data.shown_bands) not in (1, 3):
        raise UserError(f"data.shown_bands {data.shown_bands} must be one channel, or three")
    if mean is not None and len(mean) != channels and config.model_file is None:
        raise UserError(
            f"model.mean_bgr has {len(mean)} values, and photographs have {channels} channels; "
            "give one for each, or leave it out"
        )


VERSION = 3
"""Of the options in config.json. Runs of version 2 can be read, not resumed."""


def to_dict(config: Any) -> dict:
    """Nested dictionaries of JSON values."""
    return json.loads(json.dumps(dataclasses.asdict(config), default=str))


def from_dict(kind: type, values: Mapping[str, Any], *, strict: bool = True) -> Any:
    """The dataclass `kind` of what `to_dict` gave.

    Unknown names are a KeyError; those of another version are left out where not `strict`.
    """
    hints = typing.get_type_hints(kind)
    known = values if strict else {name: v for name, v in values.items() if name in hints}
    return kind(**{name: _parse(hints[name], v, strict) for name, v in known.items()})


def _parse(hint: Any, value: Any, strict: bool) -> Any:
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        return from_dict(hint, value, strict=strict)
    is_path = isinstance(value, str) and Path in (hint, *typing.get_args(hint))
    return Path(value) if is_path else as_tuple(value)


def result_fields(config: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Name and value of each field that the result depends on, nested ones with dots."""
    for f in dataclasses.fields(config):
        value = getattr(config, f.name)
        if dataclasses.is_dataclass(value):
            yield from result_fields(value, f"{prefix}{f.name}.")
        elif not f.metadata.get("runtime"):
            yield prefix + f.name, value


def with_runtime_fields(config: Any, asked: Any) -> Any:
    """`config` with the fields that leave the result alone from `asked`."""
    changes = {}
    for f in dataclasses.fields(config):
        here, there = getattr(config, f.name), getattr(asked, f.name)
        if dataclasses.is_dataclass(here):
            changes[f.name] = with_runtime_fields(here, there)
        elif f.metadata.get("runtime"):
            changes[f.name] = there
    return replace(config, **changes)
