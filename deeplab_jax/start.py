"""From what was asked to what is trained: the one place where a config is completed."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
from jaxtyping import Float

from deeplab_jax import config as configs
from deeplab_jax import losses, segmenter, train, workdir
from deeplab_jax.config import Config, completed, result_fields, with_runtime_fields
from deeplab_jax.data import builders, folders, layouts
from deeplab_jax.data.folders import Folder, Place
from deeplab_jax.models import crf_layer, deeplab
from deeplab_jax.models.deeplab import DeepLabV2
from deeplab_jax.types import UserError
from deeplab_jax.weights import files, first_layer, sources


class Request(NamedTuple):
    """What a command line asks for."""

    config: Config
    preset: str
    """Name of the preset whose values stand where nothing was typed."""
    command: str = ""
    """What was typed."""


class Start(NamedTuple):
    """What a run begins with, or goes on with."""

    config: Config
    """Completed: its fields are None only where that is their value."""
    weights: files.Flat | None
    """Arrays to start from; None from scratch, and where a checkpoint has them."""
    class_names: tuple[str, ...]
    """Classes that the weights were trained for; empty where they name none."""
    data: Folder | None = None
    """The data set to train on, where it was opened."""


def resolve(asked: Config) -> Start:
    """What is trained where `asked` is asked for.

    A run that goes on has the values it began with; one that begins gets the conventions of its
    weights, and of the data what only the data tells. What was taken from them is printed.

    Raises:
      UserError: the work folder holds another run, or the options contradict each other, the
        weights or the data.
    """
    if asked.model_file is not None:
        asked = replace(asked, model_file=str(Path(asked.model_file).absolute()))
    assert asked.workdir is not None  # the command line gives one
    if workdir.is_begun(asked.workdir):
        begun = Start(resume(asked, asked.workdir), None, ())
    else:
        begun = begin(asked)
    config = begun.config
    configs.check(config)
    if config.model_file is None:
        refuse_frozen_from_scratch(config, deeplab.build(**asdict(config.model)))
    return begun


def resume(asked: Config, folder: Path) -> Config:
    """The config of the run in a work folder, carried out as it is asked now.

    Raises:
      UserError: a field that the result depends on was neither asked nor used before.
    """
    run = workdir.read_run(folder)
    if run.record["version"] != configs.VERSION:
        raise UserError(
            f"{folder} holds a run of an earlier version of this software, which can be scored and "
            "predicted with but not go on; choose another --workdir (--weights takes the old one)"
        )
    before = configs.from_dict(Config, run.record["asked"])
    taken = (dict(result_fields(before)), dict(result_fields(run.config)))
    for name, value in result_fields(asked):
        if value not in (taken[0][name], taken[1][name]):
            raise UserError(
                f"{folder} holds a run with {name} {taken[1][name]}, and {value} was asked for; "
                "give the old value to go on with it, or another --workdir"
            )
    return with_runtime_fields(run.config, asked)


def begin(asked: Config) -> Start:
    """What a new run starts from."""
    config, data = with_train_split(asked)
    weights, meta = None, {"model": {}, "class_names": ()}
    if config.weights is not None:
        weights, meta = read_start_weights(config)
        # A network of ImageNet has no last layer that could fit.
        config = replace(config, fresh_head=config.fresh_head or not meta["class_names"])
    brought = {n: v for n, v in meta["model"].items() if n in configs.FROM_SCRATCH}
    if config.data.channels is not None or meta.get("bands"):
        config, data, brought["mean_bgr"] = _with_channels(config, data, weights, meta)
    model = completed(config.model, brought)
    for name, value in result_fields(model):
        theirs = brought.get(name, value)
        if list(np.atleast_1d(theirs)) != list(np.atleast_1d(value)):
            print(f"model.{name} is {value}; {config.weights} was trained with {theirs}")
        elif name in brought and getattr(config.model, name) is None and config.weights:
            print(f"model.{name} is {value}, as {config.weights} was trained with")
    return Start(replace(config, model=model), weights, tuple(meta["class_names"]), data)


def read_start_weights(config: Config) -> tuple[files.Flat, dict[str, Any]]:
    """What --weights names, as `segmenter.read_weights` gives it."""
    assert config.weights is not None  # callers have checked that there are some
    model = config.model
    answers = sources.Answers(
        model.aspp_rates, model.head_kernel_size, model.head_width, fresh_head=config.fresh_head
    )
    return segmenter.read_weights(config.weights, answers=answers)


AUGMENTED = {"train_aug": (10_582, "train", 1_464), "trainval_aug": (12_031, "trainval", 2_913)}
"""Splits of VOC 2012 with SBD's masks: number of photographs; VOC's own split, and its number."""


def refuse_without_data(config: Config) -> None:
    """Raises a UserError where no photographs are named, and none are drawn."""
    if config.data.root is None and not config.data.num_scenes:
        raise UserError(
            "no photographs to train on: give --data.root FOLDER (VOC layout), or try the preset "
            "quickstart, which draws its own"
        )


def with_train_split(config: Config) -> tuple[Config, Folder | None]:
    """The config with a split to train on; and the data set, where only that tells which.

    Where no split is named it is the paper's train_aug of PASCAL VOC 2012, train of other data.

    Raises:
      UserError: there are no data, or the split has masks of SBD, and the data are VOC 2012 without
        SBD.
    """
    refuse_without_data(config)
    data, split, folder = config.data, config.data.train_split, None
    if data.root is not None and split in (None, *AUGMENTED):
        folder = open_training(config)
        if layouts.is_voc2012(folder):
            split = split or "train_aug"
            config = replace(config, data=replace(data, train_split=split))
            if split not in folder.splits:  # SBD may lie there as an archive
                folder = open_training(config)
            if split not in folder.splits:
                number, own, own_number = AUGMENTED[split]
                raise UserError(
                    f"{data.root} holds PASCAL VOC 2012 without SBD, whose masks the paper trains "
                    f"on too ({split}, {number:,} photographs): `python "
                    f"experiments/download_data.py voc_aug {data.root}` fetches them, or give "
                    f"--data.train-split {own} to train on VOC's own {own_number:,}"
                )
    return replace(config, data=replace(data, train_split=split or "train")), folder


def open_training(config: Config) -> Folder:
    """The data set to train on, with the masks that are given; the run's own scenes are drawn."""
    data, split = config.data, config.data.train_split or "train"
    place = Place(
        data.root,
        config.prepared_dir,
        data.range,
        data.channels,
        data.masks,
        data.val_fraction,
        data.val_groups,
        num_scenes=data.num_scenes,
    )
    folder = builders.open_folder(place, (split,) if data.val_root else (split, data.val_split))
    given = data.train_masks and folders.GivenMasks(split, data.train_masks)
    return replace(folder, given_masks=given)


def _with_channels(
    config: Config, folder: Folder | None, weights: files.Flat | None, meta: Mapping[str, Any]
) -> tuple[Config, Folder | None, tuple[float, ...]]:
    """The config with the range of each channel, the data set, where it was opened, and the
    channels' mean, in the order of inputs.

    Range and mean are as typed, of weights that were trained on as many channels, or measured over
    the training split; what becomes of a first layer for other channels is printed.

    Raises:
      UserError: the weights are for other channels than the data, and not for RGB.
    """
    data, told = config.data, meta.get("bands") or {}
    channels, theirs = data.channels, told.get("data.channels")
    if channels is None:
        raise UserError(
            f"{config.weights} was trained on photographs of {theirs} channels; give "
            f"--data.channels {theirs}, or other weights"
        )
    if weights is not None and theirs != channels:
        print(first_layer.describe(weights, channels))
    elif weights is not None:
        data = replace(data, range=data.range or tuple(told["data.range"]))
        print(f"range and mean of the {channels} channels are those of {config.weights}, or typed")
        return replace(config, data=data), None, meta["model"]["mean_bgr"]
    if config.model.mean_bgr is not None:
        return config, folder, config.model.mean_bgr
    folder = folder or open_training(config)
    pairs = folders.read_split(folder, data.train_split or "train")
    folder, found = builders.measured(folder, pairs, data.bad_data)
    mean = found.mean[::-1] if channels == 3 else found.mean
    return replace(config, data=replace(data, range=folder.place.range)), folder, mean


def open_scored(
    config: Config, splits: Sequence[str], *, root: Path | None, prepared_dir: Path
) -> Folder:
    """The data set to score a run on: that at `root`, or where it is None of the run's own.

    Other data than the run was trained on may have splits of their own. A run's own scenes are
    drawn again.

    Raises:
      UserError: there is no such data set, or that of the run is not there.
    """
    data = config.data
    known = root or data.val_root or data.root
    if known is None and not data.num_scenes:
        raise UserError("no photographs to score on: give --root FOLDER")
    if known is not None and root is None and not known.exists():
        raise UserError(
            f"the run read its photographs from {known}, which is not there; give "
            "--root FOLDER, where they are"
        )
    place = Place(
        known,
        prepared_dir,
        data.range,
        data.channels,
        data.masks,
        data.val_fraction,
        data.val_groups,
        may_have_splits=known != data.root,
        num_scenes=data.num_scenes,
    )
    return builders.open_folder(place, splits)


def open_split(
    config: Config,
    split: str,
    *,
    root: Path | None,
    prepared_dir: Path,
    class_names: tuple[str, ...],
) -> builders.Source:
    """A split to score a run on, see `open_scored`.

    Raises:
      UserError: there is no such data set, or its classes are not `class_names`.
    """
    folder = open_scored(config, (split,), root=root, prepared_dir=prepared_dir)
    return builders.open_dataset(folder, (split,), class_names=class_names).splits[split]


def refuse_frozen_from_scratch(config: Config, model: DeepLabV2) -> None:
    """Refuses to train a frozen batch norm that has no weights to be frozen with.

    Raises:
      UserError
    """
    if config.weights is None and train.has_frozen_norm(model):
        raise UserError(
            "from scratch a frozen batch norm is the identity and a deep ResNet explodes: give "
            "--weights FILE, or a norm that is trained (--model.norm trained) to train from scratch"
        )


def refuse_other_classes(
    config: Config, given: tuple[str, ...], class_names: tuple[str, ...]
) -> None:
    """Refuses to keep a last layer that was trained for other classes of the same number.

    Weights whose classes are only numbered are accepted; another number of classes is refused
    where the arrays are compared.

    Raises:
      UserError: names that both have, and that differ.
    """
    numbered = all(name == f"class {i}" for i, name in enumerate(given))
    if config.fresh_head or numbered or len(given) != len(class_names):
        return
    pairs = enumerate(zip(given, class_names, strict=True))
    first = next((i for i, (a, b) in pairs if a.casefold() != b.casefold()), None)
    if first is None:
        return
    raise UserError(
        f"{config.weights} was trained for other classes: its class {first} is {given[first]!r}, "
        f"and that of the data set is {class_names[first]!r}; give --fresh-head to start the last "
        "layer from scratch, or, if they mean the same, write the names of the weights into "
        "labels.txt"
    )


def variables(
    config: Config, model: DeepLabV2 | crf_layer.WithCRF, weights: files.Flat | None
) -> dict:
    """The variables before the first update: from scratch, or of the weights."""
    if weights is None and config.weights is not None:  # no checkpoint could be read
        weights, _ = read_start_weights(config)
    key = jax.random.key(config.seed)
    if weights is None:
        return train.init_variables(model, key)
    if config.crf_iterations:
        weights = crf_layer.start_weights() | weights
    weights = first_layer.fit(weights, model.num_channels)
    if not config.fresh_head:
        return files.fill(train.variable_shapes(model), weights)
    whole_head = config.model.backbone == "vgg" and not files.has_head(weights)
    shapes = (train.init_variables if whole_head else train.init_head)(model, key)
    return files.fill(shapes, weights, fresh_head=True)


def update_of(
    config: Config,
    trained: DeepLabV2 | crf_layer.WithCRF,
    optimizer: optax.GradientTransformation,
    *,
    class_weights: Float[np.ndarray, " c"] | None = None,
    axis_name: str | None = train.AXIS,
    check_finite: bool = True,
) -> train.Step:
    """The update of a run for one device, by its losses; see train.make_step.

    `trained` is what segmenter.trained_network gives, and `class_weights` weigh the pixels of each
    class (losses.balanced_weights).
    """
    make_loss = segmenter.own_function(config.model_file, "make_loss")
    pixel_loss = losses.focal if config.pixel_loss == "focal" else losses.cross_entropy
    pixel_loss = partial(pixel_loss, class_weights=class_weights)
    dense_crf = partial(
        losses.dense_crf, alignment=config.model.alignment, **asdict(config.crf_loss)
    )
    batch_losses = {
        None: None,
        "dice": losses.dice,
        "lovasz": losses.lovasz_softmax,
        "dense_crf": dense_crf,
    }
    return train.make_step(
        trained,
        optimizer,
        seed=config.seed,
        batch_size=config.batch_size,
        group_size=config.loss_group_size or config.batch_size,
        axis_name=axis_name,
        check_finite=check_finite,
        pixel_loss=make_loss(class_weights) if make_loss else pixel_loss,
        batch_loss=batch_losses[config.batch_loss],
    )
