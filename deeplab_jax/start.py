"""From what was asked to what is trained: the one place where a config is completed, and what a
run works with by it: devices, data, network, update and batches."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache, cached_property, partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
from jaxtyping import Float

from deeplab_jax import config as configs
from deeplab_jax import evaluation, hosts, losses, segmenter, train, workdir
from deeplab_jax.config import Config, completed, result_fields, with_runtime_fields
from deeplab_jax.data import builders, checks, folders, layouts, loader
from deeplab_jax.data.folders import Folder, Place
from deeplab_jax.models import crf_layer, deeplab
from deeplab_jax.models.deeplab import DeepLabV2
from deeplab_jax.ops.xla import remat_options
from deeplab_jax.types import Batch, UserError, padding_pixel
from deeplab_jax.weights import files, first_layer, sources

NUM_CHECKED = 20
"""Photographs of each split that are looked at before training, as check_data.py does."""
MEMORY_USED = 0.95
"""Part of a device's memory that the compiled update may use; the rest is for libraries."""


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
    """Completed: where a field is None, nothing is to be filled in."""
    weights: files.Flat | None = None
    """Arrays to start from; None from scratch, and where a checkpoint has them."""
    class_names: tuple[str, ...] = ()
    """Classes that the weights were trained for; empty where they name none."""
    data: Folder | None = None
    """The data set to train on, where it was opened."""


def resolve(asked: Config) -> Start:
    """What is trained where `asked` is asked for.

    A run that goes on has the values it began with; one that begins gets the conventions of its
    weights, and of the data what only the data tells. What was taken from them is printed. Options
    that contradict each other, the weights, the data or the run in the work folder are a UserError.
    """
    if asked.model_file is not None:
        asked = replace(asked, model_file=str(Path(asked.model_file).absolute()))
    assert asked.workdir is not None  # the command line gives one
    goes_on = workdir.is_begun(asked.workdir)
    begun = Start(resume(asked, asked.workdir)) if goes_on else begin(asked)
    configs.check(begun.config)
    if begun.config.model_file is None:
        refuse_frozen_from_scratch(begun.config, deeplab.build(**asdict(begun.config.model)))
    return begun


def resume(asked: Config, folder: Path) -> Config:
    """The config of the run in a work folder, its runtime fields as asked now. A UserError where
    any other field is asked for with a value that the run neither was asked for nor has."""
    run = workdir.read_run(folder)
    if run.record["version"] != configs.VERSION:
        raise UserError(
            f"{folder} holds a run of an earlier version of this software, which can be scored and "
            "predicted with but not go on; choose another --workdir (--weights takes the old one)"
        )
    before = dict(result_fields(configs.from_dict(Config, run.record["asked"])))
    used = dict(result_fields(run.config))
    for name, value in result_fields(asked):
        if value not in (before[name], used[name]):
            raise UserError(
                f"{folder} holds a run with {name} {used[name]}, and {value} was asked for; give "
                "the old value to go on with it, or another --workdir"
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
    for name, theirs in brought.items():
        value = getattr(model, name)
        if configs.as_tuple(theirs) != value:
            print(f"model.{name} is {value}; {config.weights} was trained with {theirs}")
        elif getattr(config.model, name) is None and config.weights:
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
    """Refuses to train where neither a folder nor drawn scenes were asked for."""
    if config.data.root is None and not config.data.num_scenes:
        raise UserError(
            "no photographs to train on: give --data.root FOLDER (VOC layout), or try the preset "
            "quickstart, which draws its own"
        )


def with_train_split(config: Config) -> tuple[Config, Folder | None]:
    """The config with a split to train on; and the data set, where only that tells which.

    Where no split is named it is the paper's train_aug of PASCAL VOC 2012, train of other data.
    VOC 2012 without SBD, whose masks the split has, is a UserError.
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
    """The data set to train on, data.train_masks in place of its own masks; or drawn scenes."""
    data, split = config.data, config.data.train_split or "train"
    splits = (split,) if data.val_root else (split, data.val_split)
    folder = _open_folder(config, splits, data.root, config.prepared_dir)
    given = data.train_masks and folders.GivenMasks(split, data.train_masks)
    return replace(folder, given_masks=given)


def _open_folder(
    config: Config, splits: Sequence[str], root: Path | None, prepared_dir: Path
) -> Folder:
    """The data set at `root`, read by the run's options; any but the run's keeps its splits."""
    data = config.data
    place = Place(
        root,
        prepared_dir,
        data.range,
        data.channels,
        data.masks,
        data.val_fraction,
        data.val_groups,
        may_have_splits=root != data.root,
        num_scenes=data.num_scenes,
    )
    return builders.open_folder(place, splits)


def _with_channels(
    config: Config, folder: Folder | None, weights: files.Flat | None, meta: Mapping[str, Any]
) -> tuple[Config, Folder | None, tuple[float, ...]]:
    """The config with the range of each channel; the data set, if it was opened for that; and the
    mean of each channel, in the order of the network's inputs.

    Range and mean are as typed, of weights that were trained on as many channels, or measured over
    the training split. Weights for channels of which the data names none are a UserError.
    """
    data, told = config.data, meta.get("bands") or {}
    channels, theirs = data.channels, told.get("data.channels")
    if channels is None:
        raise UserError(
            f"{config.weights} was trained on photographs of {theirs} channels; give "
            f"--data.channels {theirs}, or other weights"
        )
    if weights is not None and theirs == channels:
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
    config: Config, splits: Sequence[str], *, root: Path | None, prepared_dir: Path | None = None
) -> Folder:
    """The data set to score a run on: that at `root`; where `root` is None the run's own, whose
    scenes are drawn again. It is prepared in `prepared_dir`, or where the run's was. A UserError
    where it is not there."""
    known = root or config.data.val_root or config.data.root
    if known is None and not config.data.num_scenes:
        raise UserError("no photographs to score on: give --root FOLDER")
    if known is not None and root is None and not known.exists():
        raise UserError(
            f"the run read its photographs from {known}, which is not there; give "
            "--root FOLDER, where they are"
        )
    return _open_folder(config, splits, known, prepared_dir or config.prepared_dir)


def open_split(
    config: Config,
    split: str,
    *,
    root: Path | None,
    prepared_dir: Path,
    class_names: tuple[str, ...],
) -> builders.Source:
    """A split to score a run on, see `open_scored`; a UserError where its classes are others."""
    folder = open_scored(config, (split,), root=root, prepared_dir=prepared_dir)
    return builders.open_dataset(folder, (split,), class_names=class_names).splits[split]


def refuse_frozen_from_scratch(config: Config, model: DeepLabV2) -> None:
    """Refuses to train a frozen batch norm that has no weights to be frozen with."""
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
    """
    numbered = all(name == f"class {i}" for i, name in enumerate(given))
    if config.fresh_head or numbered or len(given) != len(class_names):
        return
    for i, (theirs, ours) in enumerate(zip(given, class_names, strict=True)):
        if theirs.casefold() != ours.casefold():
            raise UserError(
                f"{config.weights} was trained for other classes: its class {i} is {theirs!r}, and "
                f"that of the data set is {ours!r}; give --fresh-head to start the last layer from "
                "scratch, or, if they mean the same, write the names of the weights into labels.txt"
            )


def update_of(
    config: Config,
    trained: DeepLabV2 | crf_layer.WithCRF,
    optimizer: optax.GradientTransformation,
    *,
    class_weights: Float[np.ndarray, " c"] | None = None,
    axis_name: str | None = train.AXIS,
) -> train.Step:
    """The update of a run for one device, by its losses; see train.make_step.

    `trained` is what segmenter.trained_network gives, and `class_weights` weigh the pixels of each
    class (losses.balanced_weights).
    """
    make_loss = segmenter.own_function(config.model_file, "make_loss")
    pixel_losses = {"cross_entropy": losses.cross_entropy, "focal": losses.focal}
    pixel_loss = partial(pixel_losses[config.pixel_loss], class_weights=class_weights)
    dense_crf = partial(
        losses.dense_crf, alignment=config.model.alignment, **asdict(config.crf_loss)
    )
    batch_losses = {"dice": losses.dice, "lovasz": losses.lovasz_softmax, "dense_crf": dense_crf}
    return train.make_step(
        trained,
        optimizer,
        seed=config.seed,
        batch_size=config.batch_size,
        group_size=config.loss_group_size or config.batch_size,
        axis_name=axis_name,
        pixel_loss=make_loss(class_weights) if make_loss else pixel_loss,
        batch_loss=batch_losses[config.batch_loss] if config.batch_loss else None,
    )


@dataclass(frozen=True)
class Setup:
    """What a run works with; each part is made when it is first asked for."""

    start: Start

    @property
    def config(self) -> Config:
        return self.start.config

    @property
    def folder(self) -> Path:
        """The work folder."""
        assert self.config.workdir is not None  # a completed config has one
        return self.config.workdir

    @cached_property
    def devices(self) -> list[jax.Device]:
        return hosts.choose_devices(self.config.num_devices)

    @property
    def local_devices(self) -> list[jax.Device]:
        return [d for d in self.devices if d.process_index == jax.process_index()]

    @cached_property
    def dataset(self) -> builders.Dataset:
        """The prepared training split and val split, which may be another data set's, after a look
        at a sample of them; a fault ends the run."""
        config, asked = self.config, self.config.data
        data = self.start.data or open_training(config)
        assert asked.train_split is not None  # a completed config has one
        parts = [(data, tuple(dict.fromkeys((asked.train_split, asked.val_split))))]
        if asked.val_root is not None:
            others = open_scored(config, (asked.val_split,), root=asked.val_root)
            parts = [(data, (asked.train_split,)), (others, (asked.val_split,))]
        opened = []
        for folder, names in parts:
            found = checks.check_dataset(folder, names, sample=NUM_CHECKED, seed=config.seed)
            for line in checks.describe_notes(found):
                print(line)
            checks.refuse_faults(found, asked.bad_data)
            classes = opened[0].class_names if opened else None
            options = {"class_names": classes, "bad_data": asked.bad_data}
            opened.append(builders.open_dataset(folder, names, **options))
        return builders.both(*opened) if len(opened) > 1 else opened[0]

    @property
    def train(self) -> builders.Source:
        return self.dataset.splits[self.config.data.train_split or "train"]

    @property
    def val(self) -> builders.Source:
        return self.dataset.splits[self.config.data.val_split]

    @property
    def has_seen_val(self) -> bool:
        """Whether the photographs of val are trained on too, as for VOC's test server."""
        data = self.config.data
        with_val = data.train_split in ("trainval", "trainval_aug") and data.val_root is None
        return with_val and data.val_split == "val"

    @cached_property
    def model(self) -> DeepLabV2:
        options, number = asdict(self.config.model), len(self.dataset.class_names)
        return segmenter.network(options, number, model_file=self.config.model_file)

    @cached_property
    def trained(self) -> DeepLabV2 | crf_layer.WithCRF:
        """The network, or the network that ends in a CRF."""
        return segmenter.trained_network(self.config, len(self.dataset.class_names))

    @cached_property
    def class_weights(self) -> np.ndarray | None:
        """Weight of each class in the loss by its share of the train split; None: all alike."""
        exponent = self.config.class_balance
        if not exponent:
            return None
        source, counts = hosts.ProcessShard(self.train), np.zeros(256, np.int64)
        for number in range(len(source)):
            counts += np.bincount(source[number]["labels"].ravel(), minlength=256)
        counts = hosts.all_reduce_sum(counts)[: self.model.num_classes]
        return losses.balanced_weights(counts, exponent=exponent)

    @property
    def depends_on_share(self) -> bool:
        """Whether the result depends on how many photographs a device works on at once."""
        config = self.config
        return config.model.norm == "trained" or config.batch_loss in ("dice", "lovasz")

    @cached_property
    def accumulation(self) -> int:
        """Steps that an update is split into, so that a device works on few photographs at once.

        On accelerators these are its share of the batch, halved until the compiled update fits the
        device's memory. Where the result depends on the number (a trained batch norm, a batch
        loss), memory does not choose it, and a share that does not fit is a UserError. A run that
        goes on keeps its steps.
        """
        config, depends = self.config, self.depends_on_share
        share = -(-config.batch_size // len(self.devices))
        if config.max_per_device is not None:
            return -(-share // config.max_per_device)
        if workdir.is_begun(self.folder):
            return workdir.read_run(self.folder).record["accumulation"]
        if jax.default_backend() == "cpu":
            few = 10 if config.model.backbone == "vgg" else 1
            return -(-share // (config.batch_size if depends else few))
        memory = self.local_devices[0].memory_stats()["bytes_limit"]
        print("compiling the update to see what fits (about a minute, once)", flush=True)
        needed = cache(lambda at_once: needed_bytes(self, -(-share // at_once)))
        room = int(MEMORY_USED * memory)
        if depends and share > 1 and needed(share) > room:
            raise UserError(
                f"the update with {share} photographs on a device needs {needed(share) / 1e9:.1f} "
                f"GB of {memory / 1e9:.1f} GB; a trained batch norm and a batch loss are computed "
                "over the photographs that a device works on at once: give --max-per-device, fewer "
                "--batch-size, or --remat"
            )
        at_once = evaluation.largest_fitting(share, needed, room)
        print(
            f"{at_once} of a device's {share} photographs at once: the compiled update needs "
            f"{needed(at_once) / 1e9:.1f} GB of {memory / 1e9:.1f} GB"
        )
        return -(-share // at_once)

    def check(self) -> None:
        """Refuses data that do not fit the network, its weights, or the run that goes on, with a
        UserError."""
        refuse_other_classes(self.config, self.start.class_names, self.dataset.class_names)
        refuse_frozen_from_scratch(self.config, self.model)
        channels = self.config.data.channels or 3
        if self.model.num_channels != channels:
            raise UserError(
                f"the network takes photographs of {self.model.num_channels} channels, the number "
                f"of values in its mean_bgr, and the data has {channels}; give {channels} values"
            )
        if not workdir.is_begun(self.folder):
            return
        before = workdir.read_run(self.folder).record
        now = {
            "photographs": ("photographs and masks", self.dataset.identity),
            "class_names": ("the classes", list(self.dataset.class_names)),
        }
        if self.depends_on_share:
            name = "accumulation steps (--num-devices, --max-per-device)"
            now["accumulation"] = (name, self.accumulation)
        for key, (name, value) in now.items():
            if before[key] != value:
                raise UserError(
                    f"{self.folder} holds a run with {name} {before[key]}, and these are {value}; "
                    "give the old ones to go on with it, or another --workdir"
                )


def needed_bytes(setup: Setup, accumulation: int) -> int:
    """Memory of a device that the compiled update needs."""
    config, devices = setup.config, setup.devices
    _, optimizer = segmenter.solver_of(config)
    state = train.state_shapes(setup.trained, optimizer)
    slots = loader.place_samples(config.batch_size, devices=len(devices), accumulation=accumulation)
    padding = padding_pixel(setup.model.mean_bgr)
    batch = loader.assemble((), np.full_like(slots, -1), config.data.crop_size, padding)
    step = parallel_step(setup, optimizer, keep_state=False)
    return train.peak_bytes(step, *train.shapes_on(devices, state, batch))


def variables(setup: Setup) -> dict:
    """The variables before the first update: from scratch, or of the weights."""
    config, weights, model = setup.config, setup.start.weights, setup.trained
    if weights is None and config.weights is not None:  # no checkpoint could be read
        weights, _ = read_start_weights(config)
    key = jax.random.key(config.seed)
    if weights is None:
        return train.init_variables(model, key)
    if config.crf_iterations:
        weights = crf_layer.start_weights() | weights
    if config.data.channels is not None:
        print(first_layer.describe(weights, model.num_channels))
    weights = first_layer.fit(weights, model.num_channels)
    if not config.fresh_head:
        return files.fill(train.variable_shapes(model), weights)
    whole_head = config.model.backbone == "vgg" and not files.has_head(weights)
    shapes = (train.init_variables if whole_head else train.init_last_layer)(model, key)
    return files.fill(shapes, weights, fresh_head=True)


def parallel_step(
    setup: Setup, optimizer: optax.GradientTransformation, *, keep_state: bool
) -> train.Step:
    """The update of the recipe, over all devices of the run; see train.on_devices."""
    config = setup.config
    return train.on_devices(
        update_of(config, setup.trained, optimizer, class_weights=setup.class_weights),
        setup.devices,
        keep_state=keep_state,
        compiler_options=remat_options(jax.default_backend()) if config.remat else None,
    )


def batches(setup: Setup, begin: int, end: int, *, of: Sequence[jax.Device]) -> Iterator[Batch]:
    """Batches of the devices `of` for updates `begin` to `end - 1`."""
    config = setup.config
    return loader.batches(
        setup.train,
        seed=config.seed,
        start=begin,
        stop=end,
        batch_size=config.batch_size,
        crop_size=config.data.crop_size,
        scales=config.data.augmentation_scales,
        flip=config.data.flip,
        augment=segmenter.own_augment(config.model_file),
        devices=len(setup.devices),
        accumulation=setup.accumulation,
        workers=config.workers,
        mine=[i for i, device in enumerate(setup.devices) if device in of],
        padding=padding_pixel(setup.model.mean_bgr),
    )
