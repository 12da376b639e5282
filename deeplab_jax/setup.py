"""What a run works with, by its completed config: devices, data, network, update and batches."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path

import jax
import numpy as np
import optax

from deeplab_jax import config as configs
from deeplab_jax import hosts, losses, metrics, segmenter, start, train, workdir
from deeplab_jax.config import Config
from deeplab_jax.data import builders, checks, loader
from deeplab_jax.data.folders import Folder
from deeplab_jax.models import crf_layer
from deeplab_jax.models.deeplab import DeepLabV2
from deeplab_jax.ops.xla import remat_options
from deeplab_jax.types import Batch, UserError, padding_pixel

NUM_CHECKED = 20
"""Photographs of each split that are looked at before training, as check_data.py does."""
MEMORY_USED = 0.95
"""Part of a device's memory that the compiled update may use; the rest is for libraries."""


@dataclass(frozen=True)
class Setup:
    """What a run works with; each part is made when it is first asked for."""

    config: Config
    """As start.resolve completes it."""
    data: Folder | None = None
    """The data set to train on, where start.resolve has opened it."""

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
        return open_data(self.config, self.data)

    @property
    def train(self) -> builders.Source:
        assert self.config.data.train_split is not None  # a completed config has one
        return self.dataset.splits[self.config.data.train_split]

    @property
    def val(self) -> builders.Source:
        return self.dataset.splits[self.config.data.val_split]

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
        source = hosts.ProcessShard(self.train)
        counts = metrics.class_counts(source, num_classes=self.model.num_classes)
        return losses.balanced_weights(hosts.all_reduce_sum(counts), exponent=exponent)

    @cached_property
    def accumulation(self) -> int:
        """Steps that an update is split into."""
        return choose_accumulation(self)

    def check(self, class_names: tuple[str, ...]) -> None:
        """Refuses data that do not fit the network, or weights of the classes named, or the run
        that goes on.

        Raises:
          UserError
        """
        start.refuse_other_classes(self.config, class_names, self.dataset.class_names)
        start.refuse_frozen_from_scratch(self.config, self.model)
        channels = self.config.data.channels or 3
        if self.model.num_channels != channels:
            raise UserError(
                f"the network takes photographs of {self.model.num_channels} channels, the number "
                f"of values in its mean_bgr, and the data has {channels}; give {channels} values"
            )
        refuse_another_result(self)


def open_data(config: Config, data: Folder | None = None) -> builders.Dataset:
    """The training split and the val split, which may be another data set's.

    `data` is the data set to train on, where it was opened before.
    """
    data = data or start.open_training(config)
    train_split, val_split, val_root = (
        config.data.train_split,
        config.data.val_split,
        config.data.val_root,
    )
    assert train_split is not None  # start.resolve put it in
    if val_root is None:
        return open_splits(config, data, tuple(dict.fromkeys((train_split, val_split))))
    train = open_splits(config, data, (train_split,))
    others = start.open_scored(
        config, (val_split,), root=val_root, prepared_dir=config.prepared_dir
    )
    val = open_splits(config, others, (val_split,))
    if val.class_names != train.class_names:
        raise UserError(
            f"{data.place.root} has the classes {', '.join(train.class_names)}, and {val_root} has "
            f"{', '.join(val.class_names)}; the two must be the same, in the same order"
        )
    return builders.both(train, val)


def open_splits(config: Config, data: Folder, names: tuple[str, ...]) -> builders.Dataset:
    """Prepared splits, after a look at a sample of them; a fault ends the run."""
    bad_data = config.data.bad_data
    found = checks.check_dataset(data, names, sample=NUM_CHECKED, seed=config.seed)
    for line in checks.describe_notes(found):
        print(line)
    checks.refuse_faults(found, bad_data)
    return builders.open_dataset(data, names, bad_data=bad_data)


def refuse_another_result(setup: Setup) -> None:
    """Refuses to go on with other photographs, masks or classes than the run began with.

    Raises:
      UserError
    """
    if not workdir.is_begun(setup.folder):
        return
    before = workdir.read_run(setup.folder).record
    now = {
        "photographs": ("photographs and masks", setup.dataset.identity),
        "class_names": ("the classes", list(setup.dataset.class_names)),
    }
    if configs.depends_on_share(setup.config):
        number = setup.accumulation
        now["accumulation"] = ("accumulation steps (--num-devices, --max-per-device)", number)
    for key, (name, value) in now.items():
        if before[key] != value:
            raise UserError(
                f"{setup.folder} holds a run with {name} {before[key]}, and these are {value}; "
                "give the old ones to go on with it, or another --workdir"
            )


def choose_accumulation(setup: Setup) -> int:
    """Steps that an update is split into, so that a device works on few photographs at once.

    On accelerators these are its share of the batch, halved until the compiled update fits the
    device's memory. Where the result depends on the number (a trained batch norm, a batch loss),
    memory does not choose it. A run that goes on keeps its steps.

    Raises:
      UserError: a share that the result depends on does not fit.
    """
    config = setup.config
    share = -(-config.batch_size // len(setup.devices))
    if config.max_per_device is not None:
        return -(-share // config.max_per_device)
    if workdir.is_begun(setup.folder):
        return workdir.read_run(setup.folder).record["accumulation"]
    if jax.default_backend() == "cpu":
        return -(-share // configs.at_once_on_cpus(config))
    room = memory_of(setup.local_devices[0])
    print("compiling the update to see what fits (about a minute, once)", flush=True)
    at_once, need = share, needed_bytes(setup, 1)
    while need > MEMORY_USED * room and at_once > 1:
        if configs.depends_on_share(config):
            raise UserError(
                f"the update with {share} photographs on a device needs {need / 1e9:.1f} GB of "
                f"{room / 1e9:.1f} GB; a trained batch norm and a batch loss are computed over the "
                "photographs that a device works on at once: give --max-per-device, fewer "
                "--batch-size, or --remat"
            )
        at_once = -(-at_once // 2)
        need = needed_bytes(setup, -(-share // at_once))
    print(
        f"{at_once} of a device's {share} photographs at once: the compiled update needs "
        f"{need / 1e9:.1f} GB of {room / 1e9:.1f} GB"
    )
    return -(-share // at_once)


def memory_of(device: jax.Device) -> int:
    """Bytes that an accelerator has."""
    return device.memory_stats()["bytes_limit"]


def needed_bytes(setup: Setup, accumulation: int) -> int:
    """Memory of a device that the compiled update needs."""
    config, devices = setup.config, setup.devices
    _, optimizer = segmenter.solver_of(config)
    state = jax.eval_shape(
        lambda variables: train.init_state(variables, optimizer),
        train.variable_shapes(setup.trained),
    )
    slots = loader.place_samples(config.batch_size, devices=len(devices), accumulation=accumulation)
    padding = padding_pixel(setup.model.mean_bgr)
    batch = loader.assemble((), np.full_like(slots, -1), config.data.crop_size, padding)
    step = parallel_step(setup, optimizer, keep_state=False)
    return train.peak_bytes(step, *train.shapes_on(devices, state, batch))


def parallel_step(
    setup: Setup, optimizer: optax.GradientTransformation, *, keep_state: bool
) -> train.Step:
    """The update of the recipe, over all devices of the run; see train.on_devices."""
    config = setup.config
    return train.on_devices(
        start.update_of(config, setup.trained, optimizer, class_weights=setup.class_weights),
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
