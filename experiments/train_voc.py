"""Train DeepLab v2 on PASCAL VOC 2012, or on any folder in its layout.

    python experiments/train_voc.py quickstart
    python experiments/train_voc.py resnet101_aspp_msc --data.root VOCdevkit --weights W.safetensors
    python experiments/train_voc.py small --data.root photographs --num-steps 2000

The first argument names a preset (resnet101_aspp_msc where there is none); options change its
fields. The work folder, runs/<preset> or --workdir, then holds checkpoints, metrics.jsonl,
score.json, pictures, and report.html with all of it. The same command typed again goes on where
it was.
"""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass

import cli
import jax
import numpy as np
from flax.traverse_util import flatten_dict
from PIL import Image as PILImage

from deeplab_jax import (
    checkpoints,
    compilation,
    diagnosis,
    evaluation,
    figures,
    hosts,
    metrics,
    optim,
    paper,
    report,
    segmenter,
    start,
    storage,
    train,
    visualization,
    workdir,
)
from deeplab_jax import config as configs
from deeplab_jax.data import folders, loader
from deeplab_jax.interruption import Interruption, Stopped, watch
from deeplab_jax.presets import DEFAULT_PRESET, PRESETS
from deeplab_jax.progress import Logger, Progress
from deeplab_jax.start import Request, Setup, batches, parallel_step
from deeplab_jax.types import UserError

SHEET_ROWS = 6
MAX_SKIPPED = 5
"""Updates in a row that may be skipped, being not finite, before a run stops."""


def main(request: Request, *, loggers: Sequence[Logger] = ()) -> None:
    """Trains and scores; `loggers` get the values as well (loggers.md)."""
    asked = request.config
    jax.config.update("jax_default_matmul_precision", asked.precision)
    if asked.deterministic:
        compilation.make_deterministic(asked.workdir / "programs")
    hosts.join(asked.distributed)
    if jax.process_count() > 1:
        checkpoints.stop_comparing_folders()
    with watch() as interruption, contextlib.ExitStack() as lock:
        if asked.dry_run:
            return print("\n".join(plan(request)))
        setup = Setup(start.resolve(asked))
        setup.check()
        if hosts.is_first():
            lock.enter_context(workdir.hold(setup.folder))
            workdir.record_run(
                setup.folder,
                asked,
                setup.config,
                setup.dataset.class_names,
                preset=request.preset,
                command=request.command,
                photographs=setup.dataset.identity,
                accumulation=setup.accumulation,
                device=hosts.describe(setup.devices),
                split_sizes={name: len(split) for name, split in setup.dataset.splits.items()},
                class_colors=setup.dataset.class_colors,
            )
        scored = train_and_score(setup, interruption, loggers)
        if hosts.is_first():
            with storage.writing(setup.folder):
                finish(setup, scored)


def plan(request: Request) -> Iterator[str]:
    """Lines on what a run would train: network, data, start, and the paper's score."""
    config, trained = start.with_train_split(request.config)
    if config.data.root is not None:
        trained = trained or start.open_training(config)
    model, data, optimizer = config.model, config.data, config.optim
    yield f"preset        {request.preset}"
    kernel = f"{model.head_kernel_size}x{model.head_kernel_size}"
    yield (
        f"network       {config.model_file or model.backbone}, {kernel} at rates "
        f"{', '.join(map(str, model.aspp_rates))}, scales {', '.join(map(str, model.scales))}"
    )
    scored, split = trained, data.val_split
    if data.val_root is not None:
        scored = start.open_scored(config, (split,), root=data.val_root)
    used = (("trained on", trained, data.train_split or "train"), ("scored on", scored, split))
    for title, folder, split in used:
        counted = "drawn scenes"
        if folder is not None:
            number = len(folders.read_split(folder, split))
            counted = f"{number:,} photographs of {folder.place.root}"
        yield f"{title:13} {split}: {counted}"
    yield f"augmentation  scales {', '.join(map(str, data.augmentation_scales))}"
    yield f"crop          {data.crop_size}"
    yield (
        f"updates       {config.num_steps:,} of {config.batch_size} photographs, rate "
        f"{optimizer.learning_rate:g}, {optimizer.policy}"
    )
    rows = [row for row in paper.ROWS if row.preset == request.preset]
    wanted = f" (the paper starts from {rows[0].start})" if rows else ""
    scratch = "--weights is missing" if model.norm == "frozen" else "from scratch"
    yield f"start         {config.weights or scratch}{wanted}"
    yield f"alignment     {model.alignment or 'that of --weights, or cells'}"
    for row in rows:
        yield f"paper         Table {row.table}, {row.label}: {row.scores}"
        yield from (f"guess         {guess}" for guess in row.guesses)


Scored = tuple[metrics.Tally, metrics.Tally | None, np.ndarray | None]
"""Of the val split: the score, that of the averaged parameters, where the run keeps them
(ema_decay), and photographs beside truth and prediction, which process 0 draws."""


def train_and_score(
    setup: Setup, interruption: Interruption, loggers: Sequence[Logger]
) -> Scored | None:
    """Goes on from the newest checkpoint, or starts; the score at the end, None where val was
    trained on.

    Raises:
      Stopped: there are updates left; the last one done is saved.
    """
    config, folder = setup.config, setup.folder
    schedule, optimizer = segmenter.solver_of(config)
    shapes = train.state_shapes(setup.trained, optimizer)
    state = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes)
    if hosts.is_first():  # the other processes hold zeros until it sends them its state
        found = workdir.restore(folder, state)
        workdir.forget_metrics_after(folder, int(found.step) if found else 0)
        if found is None:
            state = train.init_state(start.variables(setup), optimizer)
        else:
            state = found
            print(f"going on in {folder} after update {int(state.step)}")
    state = train.replicate(hosts.broadcast_from_first(state), setup.devices)
    done = int(state.step)
    progress = Progress(
        folder if hosts.is_first() else None,
        start=done,
        num_steps=config.num_steps,
        batch_size=config.batch_size,
        log_every=config.log_every,
        rate=lambda number: schedule(number - 1),
        loggers=loggers,
        options=flatten_dict(configs.to_dict(config), sep="."),
    )
    saver = checkpoints.Saver(folder / workdir.CHECKPOINTS, keep_newest=config.keep_checkpoints)
    with saver, progress:
        keeper = Keeper(setup, saver, progress, interruption)
        if keeper.is_scored_after(done) and not hosts.broadcast_from_first(
            np.int32(workdir.is_scored(folder, done))
        ):
            keeper.score(state)  # the run was killed before the score
        progress.begin()
        state = train.fit(
            parallel_step(setup, optimizer, keep_state=keeper.may_drop),
            state,
            batches(setup, done, config.num_steps, of=setup.local_devices),
            start=done,
            after_step=keeper.after_step,
            finished=keeper.wait,
        )
        last = int(state.step)
        if last > done and not keeper.is_saved_after(last):
            keeper.save(state)
        saver.wait()
        if last < config.num_steps:
            raise Stopped(f"update {last} is saved")
        interruption.restore()
        return None if setup.has_seen_val else keeper.score(state)


@dataclass(frozen=True)
class Keeper:
    """Saves, scores and stops a run between its updates."""

    setup: Setup
    saver: checkpoints.Saver
    progress: Progress
    interruption: Interruption

    @property
    def may_drop(self) -> bool:
        """Whether a signal drops an update under way: on CPUs an accumulated one may take long."""
        return jax.default_backend() == "cpu" and self.setup.accumulation > 1

    def is_scored_after(self, number: int) -> bool:
        """Whether the val split is scored after that many updates, before the end."""
        every = 0 if self.setup.has_seen_val else self.setup.config.evaluate_every
        return bool(every) and number % every == 0 and 0 < number < self.setup.config.num_steps

    def is_saved_after(self, number: int) -> bool:
        config = self.setup.config
        last = number == config.num_steps
        return last or number % config.save_every == 0 or self.is_scored_after(number)

    def wait(self, values: train.Metrics) -> bool:
        """Waits for an update on CPUs; returns False if a signal drops it.

        Accelerators start the next update before this one ends. On CPUs that gains nothing, and
        several processes hang when one of them is an update ahead.
        """
        if self.may_drop:
            return self.interruption.wait_or_stop(values)
        if jax.default_backend() == "cpu":
            jax.block_until_ready(values)
        return True

    def after_step(self, number: int, state: train.TrainState, values: train.Metrics) -> bool:
        """Whether the run is to end after this update, as train.fit asks."""
        self.interruption.defer()
        raise_if_diverged(self.setup, self.progress.step(number, values), state)
        self.saver.check()
        if self.is_saved_after(number):
            self.save(state)
        if self.is_scored_after(number):
            self.saver.wait()
            self.interruption.restore()
            self.score(state)
        return self.interruption.should_stop()

    def save(self, state: train.TrainState) -> None:
        # Metrics are on disk before the checkpoint is.
        raise_if_diverged(self.setup, self.progress.flush(), state)
        if hosts.is_first():
            workdir.save(self.saver, state)

    def score(self, state: train.TrainState) -> Scored:
        """Scores the parameters and, where there is one, their average, and reports it."""
        split, averaged = self.tally(train.variables_of(state)), optim.average_of(state.optimizer)
        average, picture = None, None
        if averaged is not None:
            average = self.tally(train.variables_of(state.replace(params=averaged)))
        if hosts.is_first():
            picture = draw_sheet(self.setup, train.variables_of(state))
        results = metrics.scores(split)
        if average is not None:
            results |= {f"ema_{name}": v for name, v in metrics.scores(average).items()}
        self.progress.score(int(state.step), results, picture)
        return split, average, picture

    def tally(self, variables: dict) -> metrics.Tally:
        """That of the val split, of which each process takes its shard."""
        setup, longest = self.setup, -(-len(self.setup.val) // jax.process_count())

        def bar(numbers):
            asking = self.interruption.between(numbers, longest=longest)
            first = hosts.is_first()
            return cli.progress(asking, len(numbers), what="evaluated") if first else asking

        mine = evaluation.evaluate(
            setup.model,
            variables,
            hosts.ProcessShard(setup.val),
            evaluation.InferenceOptions(**asdict(setup.config.eval)),
            devices=setup.local_devices,
            progress=bar,
        )
        return metrics.Tally(*map(hosts.all_reduce_sum, mine))


def raise_if_diverged(
    setup: Setup, logged: dict[str, float] | None, state: train.TrainState
) -> None:
    """Stops the run, with what is known, where too many updates in a row were not finite."""
    if logged is None or logged["skipped_in_a_row"] < MAX_SKIPPED:
        return
    config, number = setup.config, logged["number"]
    batch = next(batches(setup, number - 1, number, of=setup.devices))
    layer = diagnosis.first_non_finite_layer(setup.model, train.variables_of(state), batch)
    names = loader.names_of(setup.train, number - 1, seed=config.seed, batch_size=config.batch_size)
    raise UserError(
        f"{MAX_SKIPPED} updates in a row were not finite and skipped, the last of them "
        f"{number}, of the photographs {', '.join(names)}; the first layer whose output is not "
        f"finite is {layer or 'none, only its gradient'}; the checkpoints in {setup.folder} are "
        "from before: look at these photographs, or try a lower --optim.learning-rate in a new "
        "--workdir"
    )


def draw_sheet(setup: Setup, variables: dict) -> np.ndarray:
    """Photographs of the val split, evenly spread over it, beside truth and prediction."""
    model, pad_to = setup.model, setup.config.eval.pad_to
    bands = segmenter.shown_bands(setup.config)
    numbers = np.unique(np.linspace(0, len(setup.val) - 1, SHEET_ROWS).astype(int))
    rows = []
    for item in (setup.val[number] for number in numbers.tolist()):
        probs = evaluation.predict(model, variables, item["image"], pad_to=pad_to)
        shown, found = visualization.show_bands(item["image"], bands), probs.argmax(-1)
        wrong = visualization.error_map(shown, found, item["labels"])
        rows.append((shown, item["labels"], found, wrong))
    names = setup.dataset.class_names
    colors = visualization.palette(names, setup.dataset.class_colors)
    photograph = visualization.title_of_bands(model.num_channels, bands)
    titles = (photograph, "truth", "prediction", "wrong pixels")
    return visualization.sheet(rows, names, titles=titles, colors=colors)


def finish(setup: Setup, scored: Scored | None) -> None:
    """Prints the table; leaves score.json, the pictures, and report.html with all of them."""
    folder, class_names = setup.folder, setup.dataset.class_names
    figures.save(figures.curves(workdir.read_metrics(folder)), folder / "curves.png")
    if scored is None:
        report.write(folder)
        return print(f"no score: val was trained on; curves and checkpoints are in {folder}")
    split, average, sheet = scored
    results = metrics.report(split, class_names)
    print(metrics.table(split, class_names))
    if average is not None:
        results["ema"] = metrics.report(average, class_names)
        print(f"mean IoU of the averaged parameters: {results['ema']['mean_iou']:.4f}")
    workdir.write_score(folder / "score.json", results)
    figures.save(figures.confusion(split.confusion, class_names), folder / "confusion.png")
    bars = figures.class_bars({"network": metrics.iou(split.confusion)}, class_names)
    figures.save(bars, folder / "classes.png")
    PILImage.fromarray(sheet).save(folder / "sheet.png")
    report.write(folder)
    print(
        f"mean IoU {results['mean_iou']:.4f} on {setup.config.data.val_split}; score, curves and "
        f"pictures are in {folder}"
    )


if __name__ == "__main__":
    cli.run(main, cli.parse_preset(PRESETS, DEFAULT_PRESET, __doc__))
