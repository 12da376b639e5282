"""Train DeepLab v2 on PASCAL VOC 2012, or on any folder in its layout.

    python experiments/train_voc.py quickstart
    python experiments/train_voc.py resnet101_aspp_msc --data.root VOCdevkit --weights init.safetensors
    python experiments/train_voc.py small --data.root photographs --num-steps 2000

The first argument names a preset (resnet101_aspp_msc where there is none); options change its
fields. The work folder, runs/<preset> or --workdir, then holds checkpoints, metrics.jsonl,
score.json, curves.png and sheet.png. The same command typed again goes on where it was.
"""

import math
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, replace

import cli
import jax
import numpy as np
import optax
from PIL import Image as PILImage
from tensorboardX import SummaryWriter
from tqdm import tqdm

from deeplab_jax import config as configs
from deeplab_jax import evaluation, metrics, optim, runs, train, visualization
from deeplab_jax.config import Config
from deeplab_jax.data import builders, loader, scenes
from deeplab_jax.models.conv import formulation_for
from deeplab_jax.models.deeplab import DeepLabV2
from deeplab_jax.types import UserError
from deeplab_jax.weights import files

NUM_VAL_SCENES = 100
SCENE_SIZE = 128
SHEET_ROWS = 6


def main(config: Config) -> None:
    config, given = with_weights(config)
    configs.check(config)
    devices = choose_devices(config.num_devices)
    dataset = open_data(config)
    lock = runs.hold(config.workdir)
    runs.record_config(config.workdir, config, dataset.class_names)

    model = DeepLabV2(
        num_classes=len(dataset.class_names),
        axis_name=train.AXIS,
        formulation=config.formulation or formulation_for(jax.default_backend()),
        **asdict(config.model),
    )
    schedule = make_schedule(config.optim, config.num_steps)
    optimizer = make_optimizer(config.optim, schedule)
    variables = train.init_variables(model, jax.random.key(config.seed))
    if given is not None:
        variables = files.fill(variables, given, fresh_head=config.fresh_head)
    checkpoints = runs.open_checkpoints(config.workdir, keep_newest=config.keep_checkpoints)
    state = runs.restore(checkpoints, train.init_state(variables, optimizer))
    start = int(state.step)
    runs.forget_metrics_after(config.workdir, start)
    if start:
        print(f"going on in {config.workdir} after update {start}")

    val = dataset.splits[config.data.val_split]
    untrained = score(config, model, variables, val, devices) if config.score_untrained else None
    step = train.make_step(
        model,
        optimizer,
        seed=config.seed,
        batch_size=config.batch_size,
        group_size=configs.group_size(config),
    )
    batches = loader.batches(
        dataset.splits[config.data.train_split],
        seed=config.seed,
        start=start,
        stop=config.num_steps,
        batch_size=config.batch_size,
        crop_size=config.data.crop_size,
        scales=config.data.augmentation_scales,
        mirror=config.data.mirror,
        devices=len(devices),
        accumulation=accumulation(config, len(devices)),
        workers=config.workers,
    )
    with Report(config, schedule, start) as report:

        def after_step(number: int, state: train.TrainState, values: train.Metrics) -> None:
            report.step(number, values)
            evaluating = config.evaluate_every and number % config.evaluate_every == 0
            results = None
            if evaluating:
                results = metrics.scores(score(config, model, variables_of(state), val, devices))
                report.score(number, results)
            if evaluating or number % config.save_every == 0 or number == config.num_steps:
                report.require_finite()
                runs.save(checkpoints, state, score=results)

        state = train.fit(
            train.on_devices(step, devices), state, batches, start=start, after_step=after_step
        )
    checkpoints.wait_until_finished()
    finish(config, model, variables_of(state), dataset, untrained, devices)
    lock.close()


def with_weights(config: Config) -> tuple[Config, files.Flat | None]:
    """The arrays of --weights, and the config with the alignment they were trained with."""
    if config.weights is None:
        return config, None
    _, variables, meta = runs.load(config.weights)
    alignment = meta["model"]["alignment"]
    if alignment != config.model.alignment:
        print(f"{config.weights} was trained with model.alignment {alignment}: so is this run")
        config = replace(config, model=replace(config.model, alignment=alignment))
    return config, files.flatten(variables)


def choose_devices(number: int | None) -> list[jax.Device]:
    devices = jax.local_devices()
    if number is not None and not 1 <= number <= len(devices):
        raise UserError(f"num_devices is {number}, and this machine has {len(devices)}")
    return devices[:number]


def accumulation(config: Config, num_devices: int) -> int:
    """Steps that gradients are summed over, so that no device exceeds max_per_device."""
    return -(-config.batch_size // (num_devices * config.max_per_device))


def open_data(config: Config) -> builders.Dataset:
    root = config.data.root
    if root is None and not config.data.num_scenes:
        raise UserError(
            "no photographs to train on: give --data.root FOLDER (VOC layout), or try the preset "
            "quickstart, which draws its own"
        )
    if root is None:
        root = config.prepared_dir / f"scenes-{config.data.num_scenes}"
        scenes.write_scenes(
            root,
            num_train=config.data.num_scenes,
            num_val=NUM_VAL_SCENES,
            size=SCENE_SIZE,
            seed=0,
        )
    splits = (config.data.train_split, config.data.val_split)
    return builders.open_dataset(root, prepared_dir=config.prepared_dir, splits=splits)


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
        if self.last is not None:
            self._log(*self.last)
        self.bar.close()
        self.writer.close()

    def step(self, number: int, values: train.Metrics) -> None:
        last, self.last = self.last, (number, values)
        if last is not None:
            jax.block_until_ready(last[1])
            self._log(*last)
        self.bar.update()

    def score(self, number: int, results: dict[str, float]) -> None:
        runs.append_metrics(self.config.workdir, {"step": number, **results})
        self.writer.add_scalar("mean_iou", results["mean_iou"], number)
        self.bar.write(f"update {number}: mean IoU {results['mean_iou']:.4f}")
        self.since = (number, time.monotonic())

    def require_finite(self) -> None:
        """Raises a UserError where the newest loss is no number: that state is never saved."""
        number, values = self.last
        if not math.isfinite(float(values["loss"])):
            raise UserError(
                f"the loss of update {number} is not finite; the newest checkpoint in "
                f"{self.config.workdir} is whole: lower --optim.learning-rate in a new --workdir"
            )

    def _log(self, number: int, values: train.Metrics) -> None:
        self.last = None if self.last and self.last[0] == number else self.last
        if number % self.config.log_every and number != self.config.num_steps:
            return
        before, then = self.since
        self.since = (number, time.monotonic())
        record = {
            "step": number,
            "loss": float(values["loss"]),
            "gradient_norm": float(values["gradient_norm"]),
            "learning_rate": float(self.schedule(number - 1)),
            "images_per_second": (number - before)
            * self.config.batch_size
            / (self.since[1] - then),
        }
        runs.append_metrics(self.config.workdir, record)
        for name, value in record.items():
            self.writer.add_scalar(name, value, number)
        self.bar.set_postfix(
            loss=f"{record['loss']:.3f}", images_per_s=f"{record['images_per_second']:.1f}"
        )


def score(
    config: Config,
    model: DeepLabV2,
    variables: dict,
    source: Sequence,
    devices: list[jax.Device],
) -> metrics.Confusion:
    def progress(numbers):
        return tqdm(numbers, desc="evaluating", unit="image", leave=False, dynamic_ncols=True)

    single = model.clone(axis_name=None)
    return evaluation.evaluate(
        single, variables, source, **asdict(config.eval), devices=devices, progress=progress
    )


def finish(
    config: Config,
    model: DeepLabV2,
    variables: dict,
    dataset: builders.Dataset,
    untrained: metrics.Confusion | None,
    devices: list[jax.Device],
) -> None:
    """Scores the trained network; leaves score.json, curves.png and sheet.png."""
    workdir, val = config.workdir, dataset.splits[config.data.val_split]
    confusion = score(config, model, variables, val, devices)
    results = metrics.report(confusion, dataset.class_names)
    print(metrics.table(confusion, dataset.class_names))
    if untrained is not None:
        results["untrained_mean_iou"] = metrics.mean_iou(untrained)
        print(f"mean IoU of the untrained network: {results['untrained_mean_iou']:.4f}")
    runs.write_score(workdir / "score.json", results)
    visualization.save_curves(workdir / "curves.png", runs.read_metrics(workdir))
    items = [val[i] for i in np.linspace(0, len(val) - 1, SHEET_ROWS).astype(int)]
    single = model.clone(axis_name=None)
    rows = [
        (
            item["image"],
            item["labels"],
            evaluation.predict(
                single, variables, item["image"], pad_to=config.eval.pad_to
            ).argmax(-1),
        )
        for item in items
    ]
    picture = visualization.sheet(rows, dataset.class_names)
    PILImage.fromarray(picture).save(workdir / "sheet.png")
    print(f"mean IoU {results['mean_iou']:.4f}; score, curves and pictures are in {workdir}")


if __name__ == "__main__":
    cli.run(main, cli.parse_preset(configs.PRESETS, configs.DEFAULT_PRESET, __doc__))
    sys.stdout.flush()
