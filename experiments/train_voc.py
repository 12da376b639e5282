"""Train DeepLab v2 on PASCAL VOC 2012, or on any folder in its layout.

    python experiments/train_voc.py quickstart
    python experiments/train_voc.py resnet101_aspp_msc --data.root VOCdevkit --weights W.safetensors
    python experiments/train_voc.py small --data.root photographs --num-steps 2000

The first argument names a preset (resnet101_aspp_msc where there is none); options change its
fields. The work folder, runs/<preset> or --workdir, then holds checkpoints, metrics.jsonl,
score.json, pictures, and report.html with all of it. The same command typed again goes on where
it was.
"""

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import cli
import jax
import numpy as np
import optax
from PIL import Image as PILImage
from tensorboardX import SummaryWriter
from tqdm import tqdm

from deeplab_jax import config as configs
from deeplab_jax import (
    evaluation,
    figures,
    losses,
    metrics,
    optim,
    report,
    runs,
    train,
    visualization,
)
from deeplab_jax.config import Config
from deeplab_jax.data import builders, checks, decoding, loader, scenes
from deeplab_jax.models.conv import formulation_for
from deeplab_jax.models.deeplab import DeepLabV2
from deeplab_jax.types import Batch, UserError
from deeplab_jax.weights import files, sources

NUM_VAL_SCENES = 100
SCENE_SIZE = 128
SHEET_ROWS = 6


@dataclass(frozen=True)
class Setup:
    """What a run works with."""

    config: Config
    devices: list[jax.Device]
    dataset: builders.Dataset
    model: DeepLabV2

    @property
    def val(self) -> Sequence:
        return self.dataset.splits[self.config.data.val_split]


def main(config: Config) -> None:
    config, given = with_weights(config)
    configs.check(config)
    devices = choose_devices(config.num_devices)
    dataset = open_data(config)
    model = DeepLabV2(
        num_classes=len(dataset.class_names),
        axis_name=train.AXIS,
        formulation=config.formulation or formulation_for(jax.default_backend()),
        **asdict(config.model),
    )
    setup = Setup(config, devices, dataset, model)
    with runs.hold(config.workdir):
        runs.record_config(
            config.workdir,
            config,
            dataset.class_names,
            accumulation=accumulation(setup),
            decoder=decoding.decoder(),
        )
        train_and_score(setup, start_variables(config, model, given))


def train_and_score(setup: Setup, variables: dict) -> None:
    """Goes on from the newest checkpoint, or starts from `variables`; leaves the results."""
    config = setup.config
    schedule = make_schedule(config.optim, config.num_steps)
    optimizer = make_optimizer(config.optim, schedule)
    checkpoints = runs.open_checkpoints(config.workdir, keep_newest=config.keep_checkpoints)
    untrained = score(setup, variables) if config.score_untrained else None
    state = runs.restore(checkpoints, train.init_state(variables, optimizer))
    start = int(state.step)
    runs.forget_metrics_after(config.workdir, start)
    if start:
        print(f"going on in {config.workdir} after update {start}")
    with Report(config, schedule, start) as report:

        def after_step(number: int, state: train.TrainState, values: train.Metrics) -> None:
            report.step(number, values)
            results = None
            if config.evaluate_every and number % config.evaluate_every == 0:
                results = metrics.scores(score(setup, variables_of(state)))
                report.score(number, results, draw_sheet(setup, variables_of(state)))
            if results or number % config.save_every == 0 or number == config.num_steps:
                report.flush()  # its line is on disk, and its loss is a number, before it is saved
                runs.save(checkpoints, state, score=results)

        state = train.fit(
            make_step(setup, optimizer),
            state,
            batches(setup, start),
            start=start,
            after_step=after_step,
        )
        checkpoints.wait_until_finished()
        trained = score(setup, variables_of(state))
        picture = draw_sheet(setup, variables_of(state))
        report.score(config.num_steps, metrics.scores(trained), picture)
    finish(config, setup.dataset.class_names, trained, untrained, picture)


def make_step(setup: Setup, optimizer: optax.GradientTransformation) -> train.Step:
    """The update of the recipe, over all devices of the run."""
    config = setup.config
    step = train.make_step(
        setup.model,
        optimizer,
        seed=config.seed,
        batch_size=config.batch_size,
        group_size=configs.group_size(config),
        class_weights=class_weights(setup),
        crf_iterations=config.crf_iterations,
    )
    return train.on_devices(step, setup.devices)


def class_weights(setup: Setup) -> np.ndarray | None:
    """By the classes' shares of the train split, where the run balances them."""
    exponent = setup.config.class_balance
    if not exponent:
        return None
    source = setup.dataset.splits[setup.config.data.train_split]
    counts = metrics.class_counts(source, num_classes=setup.model.num_classes)
    return losses.balanced_weights(counts, exponent=exponent)


def batches(setup: Setup, start: int) -> Iterator[Batch]:
    """The batches of the updates that are still to do."""
    config = setup.config
    return loader.batches(
        setup.dataset.splits[config.data.train_split],
        seed=config.seed,
        start=start,
        stop=config.num_steps,
        batch_size=config.batch_size,
        crop_size=config.data.crop_size,
        scales=config.data.augmentation_scales,
        mirror=config.data.mirror,
        devices=len(setup.devices),
        accumulation=accumulation(setup),
        workers=config.workers,
    )


def accumulation(setup: Setup) -> int:
    """Steps an update is split into, so that no device works on more than max_per_device."""
    at_once = len(setup.devices) * setup.config.max_per_device
    return -(-setup.config.batch_size // at_once)


def start_variables(config: Config, model: DeepLabV2, given: files.Flat | None) -> dict:
    """From scratch, or the arrays of --weights."""
    variables = train.init_variables(model, jax.random.key(config.seed))
    if given is not None:
        variables = files.fill(variables, given, fresh_head=config.fresh_head)
    return train.with_crf(variables) if config.crf_iterations else variables


def with_weights(config: Config) -> tuple[Config, files.Flat | None]:
    """The arrays of --weights, and the config with the conventions they were trained with."""
    if config.weights is None:
        return config, None
    model = config.model
    head = sources.Head(model.aspp_rates, model.head_kernel_size, model.head_width)
    given, meta = runs.read_weights(config.weights, head=head)
    for name in ("alignment", "stride_placement", "mean_bgr"):
        theirs = meta["model"].get(name, getattr(config.model, name))
        theirs = tuple(theirs) if isinstance(theirs, list) else theirs
        if theirs != getattr(config.model, name):
            print(f"model.{name} is {theirs}, as {config.weights} was trained with")
            config = replace(config, model=replace(config.model, **{name: theirs}))
    # A network of ImageNet has no last layer that could fit.
    return replace(config, fresh_head=config.fresh_head or not meta["class_names"]), given


def choose_devices(number: int | None) -> list[jax.Device]:
    devices = jax.local_devices()
    if number is not None and not 1 <= number <= len(devices):
        raise UserError(f"num_devices is {number}, and this machine has {len(devices)}")
    return devices[:number]


def open_data(config: Config) -> builders.Dataset:
    root = config.data.root
    if root is None:
        root = config.prepared_dir / f"scenes-{config.data.num_scenes}"
        scenes.write_scenes(
            root,
            num_train=config.data.num_scenes,
            num_val=NUM_VAL_SCENES,
            size=SCENE_SIZE,
            seed=0,
        )
    splits = tuple(dict.fromkeys((config.data.train_split, config.data.val_split)))
    if config.data.num_checked:
        check_data(root, splits, config)
    return builders.open_dataset(root, prepared_dir=config.prepared_dir, splits=splits)


def check_data(root: Path, splits: Sequence[str], config: Config) -> None:
    """Prints what is odd in a sample of the photographs and masks; a fault ends the run."""
    report = checks.check_dataset(
        root,
        prepared_dir=config.prepared_dir,
        splits=splits,
        sample=config.data.num_checked,
        seed=config.seed,
    )
    for line in checks.describe_notes(report):
        print(line)
    checks.refuse_faults(report)


def make_schedule(config: configs.OptimConfig, num_steps: int) -> optax.Schedule:
    if config.policy == "poly":
        return optim.poly(config.learning_rate, num_steps, power=config.power)
    return optim.step(config.learning_rate, every=config.step_every, gamma=config.gamma)


def make_optimizer(
    config: configs.OptimConfig, schedule: optax.Schedule
) -> optax.GradientTransformation:
    return optim.caffe_sgd(
        schedule,
        momentum=config.momentum,
        weight_decay=config.weight_decay,
        classifier_multiplier=config.classifier_multiplier,
        momentum_order=config.momentum_order,
    )


def variables_of(state: train.TrainState) -> dict:
    return {"params": state.params, "batch_stats": state.batch_stats}


class Report:
    """Progress bar, metrics.jsonl and TensorBoard, an update late so that none waits for it."""

    def __init__(self, config: Config, schedule: optax.Schedule, start: int):
        self.config, self.schedule = config, schedule
        self.writer = SummaryWriter(str(config.workdir / "tensorboard"))
        self.bar = tqdm(
            total=config.num_steps, initial=start, unit="update", dynamic_ncols=True, smoothing=0.1
        )
        self.last: tuple[int, train.Metrics] | None = None
        self.since = (start, time.monotonic())

    def __enter__(self) -> "Report":
        return self

    def __exit__(self, *_) -> None:
        self.flush()
        self.bar.close()
        self.writer.close()

    def step(self, number: int, values: train.Metrics) -> None:
        """Logs the update before this one, when it is done."""
        self.flush()
        self.last = (number, values)
        self.bar.update()

    def flush(self) -> None:
        """Logs the newest update, when it is done."""
        if self.last is not None:
            number, values = self.last
            self.last = None
            jax.block_until_ready(values)
            self._log(number, {name: float(value) for name, value in values.items()})

    def score(self, number: int, results: dict[str, float], picture: np.ndarray) -> None:
        """A score on the val split, and photographs beside truth and prediction."""
        self.flush()
        if not any(
            r["step"] == number and "mean_iou" in r for r in runs.read_metrics(self.config.workdir)
        ):
            runs.append_metrics(self.config.workdir, {"step": number, **results})
        self.writer.add_scalar("mean_iou", results["mean_iou"], number)
        self.writer.add_image("val", picture, number, dataformats="HWC")
        self.bar.write(f"update {number}: mean IoU {results['mean_iou']:.4f}")
        self.since = (number, time.monotonic())

    def _log(self, number: int, values: dict[str, float]) -> None:
        if not math.isfinite(values["loss"]):
            raise UserError(
                f"the loss of update {number} is not finite; checkpoints in {self.config.workdir} "
                "are from before it: try a lower --optim.learning-rate in a new --workdir"
            )
        if number % self.config.log_every and number != self.config.num_steps:
            return
        before, then = self.since
        self.since = (number, time.monotonic())
        images = (number - before) * self.config.batch_size
        record = {
            "step": number,
            **values,
            "learning_rate": float(self.schedule(number - 1)),
            "images_per_second": images / (self.since[1] - then),
        }
        runs.append_metrics(self.config.workdir, record)
        for name, value in record.items():
            self.writer.add_scalar(name, value, number)
        self.bar.set_postfix(
            loss=f"{record['loss']:.3f}", images_per_s=f"{record['images_per_second']:.1f}"
        )


def score(setup: Setup, variables: dict) -> metrics.Confusion:
    """Confusion matrix over the val split."""

    def progress(numbers):
        return tqdm(numbers, desc="evaluating", unit="image", leave=False, dynamic_ncols=True)

    return evaluation.evaluate(
        setup.model.clone(axis_name=None),
        variables,
        setup.val,
        **asdict(setup.config.eval),
        devices=setup.devices,
        progress=progress,
    )


def draw_sheet(setup: Setup, variables: dict) -> np.ndarray:
    """Photographs of the val split, evenly spread over it, beside truth and prediction."""
    model, pad_to = setup.model.clone(axis_name=None), setup.config.eval.pad_to
    numbers = np.unique(np.linspace(0, len(setup.val) - 1, SHEET_ROWS).astype(int))
    rows = []
    for item in (setup.val[number] for number in numbers.tolist()):
        probs = evaluation.predict(model, variables, item["image"], pad_to=pad_to)
        rows.append((item["image"], item["labels"], probs.argmax(-1)))
    return visualization.sheet(rows, setup.dataset.class_names)


def finish(
    config: Config,
    class_names: Sequence[str],
    confusion: metrics.Confusion,
    untrained: metrics.Confusion | None,
    picture: np.ndarray,
) -> None:
    """Prints the table; leaves score.json, the pictures, and report.html with all of them."""
    workdir = config.workdir
    results = metrics.report(confusion, class_names)
    print(metrics.table(confusion, class_names))
    if untrained is not None:
        results["untrained_mean_iou"] = metrics.mean_iou(untrained)
        print(f"mean IoU of the untrained network: {results['untrained_mean_iou']:.4f}")
    runs.write_score(workdir / "score.json", results)
    figures.save(figures.curves(runs.read_metrics(workdir)), workdir / "curves.png")
    figures.save(figures.confusion(confusion, class_names), workdir / "confusion.png")
    bars = figures.class_bars({"network": metrics.iou(confusion)}, class_names)
    figures.save(bars, workdir / "classes.png")
    PILImage.fromarray(picture).save(workdir / "sheet.png")
    report.write(workdir)
    print(f"mean IoU {results['mean_iou']:.4f}; score, curves and pictures are in {workdir}")


if __name__ == "__main__":
    cli.run(main, cli.parse_preset(configs.PRESETS, configs.DEFAULT_PRESET, __doc__))
