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
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import cli

from deeplab_jax.presets import DEFAULT_PRESET, PRESETS

if __name__ == "__main__":  # before the imports below, which take seconds
    cli.answer_signals()
    given = cli.parse_preset(PRESETS, DEFAULT_PRESET, __doc__)

import jax
import numpy as np
import optax
import splits
from PIL import Image as PILImage
from tqdm import tqdm

from deeplab_jax import (
    checkpoints,
    compilation,
    diagnosis,
    evaluation,
    figures,
    hosts,
    losses,
    metrics,
    optim,
    paper,
    report,
    runs,
    train,
    visualization,
)
from deeplab_jax import config as configs
from deeplab_jax.config import Config, Request
from deeplab_jax.data import builders, checks, folders, images, loader
from deeplab_jax.interruption import Interruption, Stopped, watch
from deeplab_jax.models import crf_layer
from deeplab_jax.models.deeplab import DeepLabV2
from deeplab_jax.ops.xla import remat_options
from deeplab_jax.progress import Logger, Progress
from deeplab_jax.types import Batch, UserError, padding_pixel
from deeplab_jax.weights import files, first_layer

SHEET_ROWS = 6
MEMORY_USED = 0.95
"""Part of a device's memory that the compiled update may use; the rest is for libraries."""


@dataclass(frozen=True)
class Hooks:
    """Functions that a caller adds to a run, to watch it or to inject faults in tests."""

    batches: Callable[[int, Iterator[Batch]], Iterator[Batch]] = lambda start, batches: batches
    """(updates done before, batches) -> the batches that the network sees."""
    scored: Callable[[Iterable[int]], Iterable[int]] = iter
    """Numbers of the photographs that are scored pass through it."""
    saving: checkpoints.OnStage = lambda stage, path: None
    """Called before each stage of a save."""


@dataclass(frozen=True)
class Setup:
    """What a run works with."""

    config: Config
    devices: list[jax.Device]
    dataset: builders.Dataset
    model: DeepLabV2
    hooks: Hooks = Hooks()
    class_weights: np.ndarray | None = None
    """Weight of each class in the loss, a constant of the compiled update; None: all alike."""

    @property
    def trained(self) -> DeepLabV2 | crf_layer.WithCRF:
        return runs.trained_network(self.config, self.model.num_classes)

    @property
    def train(self) -> builders.Source:
        return self.dataset.splits[self.config.data.train_split]

    @property
    def val(self) -> builders.Source:
        return self.dataset.splits[self.config.data.val_split]

    @property
    def local_devices(self) -> list[jax.Device]:
        return [d for d in self.devices if d.process_index == jax.process_index()]


@dataclass(frozen=True)
class Scored:
    """A score over the val split."""

    split: metrics.Tally
    average: metrics.Tally | None
    """Of the averaged parameters, where the run keeps them (ema_decay)."""
    picture: np.ndarray | None
    """Photographs beside truth and prediction; process 0 draws them."""


def main(request: Request, *, loggers: Sequence[Logger] = (), hooks: Hooks = Hooks()) -> None:
    """Trains and scores; `loggers` get the values as well (loggers.md)."""
    config = runs.continued(request)
    if config.model_file is not None:
        config = replace(config, model_file=str(Path(config.model_file).absolute()))
    compilation.choose_precision(config.precision)
    if config.deterministic:
        compilation.make_deterministic(config.workdir / "programs")
    hosts.join(config.coordinator, config.num_processes, config.process_id)
    with watch() as interruption, contextlib.ExitStack() as lock:
        config = splits.with_train_split(config)
        if config.dry_run:
            return print("\n".join(plan(request, config)))
        config, given, given_classes = runs.start_point(request, config)
        configs.check(config)
        config = splits.with_bands(config)
        devices = hosts.choose_devices(config.num_devices)
        dataset = open_data(config)
        runs.refuse_other_classes(config, given_classes, dataset.class_names)
        model = runs.network(
            asdict(config.model), len(dataset.class_names), model_file=config.model_file
        )
        refuse_other_channels(config, model)
        setup = Setup(config, devices, dataset, model, hooks)
        setup = with_share(replace(setup, class_weights=class_weights(setup)))
        if hosts.is_first():
            lock.enter_context(runs.hold(config.workdir))
            runs.record_config(
                config.workdir,
                setup.config,
                request.preset,
                dataset.class_names,
                photographs=dataset.identity,
                accumulation=accumulation(setup),
                decoder=images.decoder(),
                command=request.command,
                device=hosts.describe(setup.devices),
                split_sizes={name: len(split) for name, split in dataset.splits.items()},
                class_colors=dataset.class_colors,
            )
            measure_masks(config)
        train_and_score(setup, given, interruption, loggers)


def refuse_other_channels(config: Config, model: DeepLabV2) -> None:
    """Refuses a network of one's own that takes other photographs than the data has.

    Raises:
      UserError
    """
    channels = 3 if config.data.channels is None else config.data.channels
    if model.num_channels != channels:
        raise UserError(
            f"the network takes photographs of {model.num_channels} channels, the number of values "
            f"in its mean_bgr, and the data has {channels}; give {channels} values"
        )


def plan(request: Request, config: Config) -> Iterator[str]:
    """Lines on what a run would train: network, data, start, and the paper's score."""
    model, data, optimizer = config.model, config.data, config.optim
    yield f"preset        {request.preset}"
    kernel = f"{model.head_kernel_size}x{model.head_kernel_size}"
    yield (
        f"network       {config.model_file or model.backbone}, {kernel} at rates "
        f"{', '.join(map(str, model.aspp_rates))}, scales {', '.join(map(str, model.scales))}"
    )
    names = [(data.root, data.train_split), (data.val_root or data.root, data.val_split)]
    for title, (root, split) in zip(("trained on", "scored on"), names, strict=True):
        counted = "drawn scenes"
        if root is not None:
            folder = builders.open_folder(
                root, config.prepared_dir, (split,), splits.reading_of(config)
            )
            counted = f"{len(folders.read_split(folder, split)):,} photographs of {root}"
        yield f"{title:13} {split}: {counted}"
    yield f"augmentation  scales {', '.join(map(str, data.augmentation_scales))}"
    yield f"crop          {data.crop_size}"
    yield (
        f"updates       {config.num_steps:,} of {config.batch_size} photographs, rate "
        f"{optimizer.learning_rate:g}, {optimizer.policy}"
    )
    expected = [row.start for row in paper.ROWS if row.preset == request.preset]
    wanted = f" (the paper starts from {expected[0]})" if expected else ""
    scratch = "--weights is missing" if model.norm == "frozen" else "from scratch"
    yield f"start         {config.weights or scratch}{wanted}"
    free = "model.alignment" not in request.typed | request.fixed
    yield f"alignment     {model.alignment}" + (", or that of --weights" if free else "")
    for row in (row for row in paper.ROWS if row.preset == request.preset):
        scores = [f"{score:.2f}" for score in (row.before, row.after) if score is not None]
        yield f"paper         Table {row.table}, {row.label}: {' -> '.join(scores)}"
        yield from (f"guess         {guess}" for guess in row.guesses)


def train_and_score(
    setup: Setup,
    given: files.Flat | None,
    interruption: Interruption,
    loggers: Sequence[Logger] = (),
) -> None:
    """Goes on from the newest checkpoint, or starts from `given`; leaves the results."""
    config = setup.config
    schedule, optimizer = runs.solver_of(config)
    state = hosts.broadcast_from_first(first_state(setup, optimizer, given))
    state = train.replicate(state, setup.devices)
    start = int(state.step)
    with Keeper(setup, schedule, start, interruption, loggers) as keeper:
        keeper.score_if_it_is_missing(state)
        keeper.progress.begin()
        state = train.fit(
            make_step(setup, optimizer),
            state,
            batches(setup, start, config.num_steps, of=setup.local_devices),
            start=start,
            after_step=keeper.after_step,
            finished=keeper.wait,
        )
        scored = keeper.end(state)
    if hosts.is_first():
        with runs.writing(config.workdir):
            finish(setup, scored)


class Keeper:
    """Saves, scores and stops a run between its updates."""

    def __init__(
        self,
        setup: Setup,
        schedule: optax.Schedule,
        start: int,
        interruption: Interruption,
        loggers: Sequence[Logger] = (),
    ):
        config = setup.config
        self.setup, self.start, self.interruption = setup, start, interruption
        self.checkpoints = runs.open_checkpoints(
            config.workdir, keep_newest=config.keep_checkpoints, on_stage=setup.hooks.saving
        )
        self.progress = Progress(
            config.workdir if hosts.is_first() else None,
            start=start,
            num_steps=config.num_steps,
            batch_size=config.batch_size,
            log_every=config.log_every,
            rate=lambda number: schedule(number - 1),
            loggers=loggers,
            options=dict(report.flat(configs.to_dict(config))),
        )

    def __enter__(self) -> "Keeper":
        self.opened = contextlib.ExitStack()
        self.opened.enter_context(self.checkpoints)
        self.opened.enter_context(self.progress)
        return self

    def __exit__(self, *error) -> bool | None:
        return self.opened.__exit__(*error)

    def score_if_it_is_missing(self, state: train.TrainState) -> None:
        """Scores a checkpoint whose run was killed before the score."""
        config = self.setup.config
        if is_scored_after(config, self.start) and not hosts.broadcast_from_first(
            np.int32(runs.is_scored(config.workdir, self.start))
        ):
            self.score(state)

    def after_step(self, number: int, state: train.TrainState, values: train.Metrics) -> bool:
        """Whether the run is to end after this update, as train.fit asks."""
        self.interruption.defer()
        raise_if_diverged(self.setup, self.progress.step(number, values), state)
        self.checkpoints.check()
        if is_saved_after(self.setup.config, number):
            self.save(state)
        if is_scored_after(self.setup.config, number):
            self.checkpoints.wait()
            self.interruption.restore()
            self.score(state)
        return self.interruption.should_stop()

    def wait(self, values: train.Metrics) -> bool:
        """Waits for an update on CPUs; returns False if a signal drops it.

        Accelerators start the next update before this one ends. On CPUs that gains nothing, and
        several processes hang when one of them is an update ahead. Since an accumulated update may
        take long there, a signal drops it.
        """
        if jax.default_backend() != "cpu":
            return True
        if accumulation(self.setup) > 1:
            return self.interruption.wait_or_stop(values)
        return jax.block_until_ready(values) is not None

    def save(self, state: train.TrainState) -> None:
        # Metrics are on disk before the checkpoint is.
        raise_if_diverged(self.setup, self.progress.flush(), state)
        if hosts.is_first():
            runs.save(self.checkpoints, state)

    def score(self, state: train.TrainState) -> Scored:
        return report_score(self.setup, self.progress, state, self.interruption)

    def end(self, state: train.TrainState) -> Scored:
        """The last checkpoint and score.

        Raises:
          Stopped: there are updates left; the last one done is saved.
        """
        config, done = self.setup.config, int(state.step)
        if done > self.start and not is_saved_after(config, done):
            self.save(state)
        self.checkpoints.wait()
        if done < config.num_steps:
            raise Stopped(f"update {done} is saved")
        self.interruption.restore()
        return self.score(state)


def first_state(
    setup: Setup, optimizer: optax.GradientTransformation, given: files.Flat | None
) -> train.TrainState:
    """The newest checkpoint's, or that before the first update, which is scored if asked for.

    Only process 0 knows it; others give zeros of its shape.
    """
    config = setup.config
    shapes = train.variable_shapes(setup.trained)
    like = jax.eval_shape(lambda variables: train.init_state(variables, optimizer), shapes)
    if not hosts.is_first():
        return jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), like)
    state = runs.restore(config.workdir, like)
    runs.forget_metrics_after(config.workdir, int(state.step) if state else 0)
    if state is not None:
        print(f"going on in {config.workdir} after update {int(state.step)}")
        return state
    variables = start_variables(config, setup.trained, given)
    if config.score_untrained and not runs.is_scored(config.workdir, 0):
        untrained = metrics.split_scores(score(setup, variables, setup.val))
        runs.append_metrics(config.workdir, {"step": 0, **untrained})
    return train.init_state(variables, optimizer)


def is_scored_after(config: Config, number: int) -> bool:
    """Whether the val split is scored after that many updates, before the end."""
    every = config.evaluate_every
    return bool(every) and number % every == 0 and 0 < number < config.num_steps


def is_saved_after(config: Config, number: int) -> bool:
    last = number == config.num_steps
    return last or number % config.save_every == 0 or is_scored_after(config, number)


def raise_if_diverged(
    setup: Setup, logged: dict[str, float] | None, state: train.TrainState
) -> None:
    """Stops the run, with what is known, where too many updates in a row were not finite."""
    config = setup.config
    if logged is None or logged["skipped_in_a_row"] < config.max_skipped:
        return
    number = logged["number"]
    batch = next(batches(setup, number - 1, number, of=setup.devices))
    layer = diagnosis.first_non_finite_layer(setup.model, train.variables_of(state), batch)
    names = loader.names_of(setup.train, number - 1, seed=config.seed, batch_size=config.batch_size)
    raise UserError(
        f"{config.max_skipped} updates in a row were not finite and skipped, the last of them "
        f"{number}, of the photographs {', '.join(names)}; the first layer whose output is not "
        f"finite is {layer or 'none, only its gradient'}; the checkpoints in {config.workdir} are "
        "from before: look at these photographs, or try a lower --optim.learning-rate in a new "
        "--workdir"
    )


def make_step(setup: Setup, optimizer: optax.GradientTransformation) -> train.Step:
    """The update of the recipe, over all devices of the run."""
    weights = setup.class_weights
    return train.on_devices(
        runs.make_step(setup.config, setup.trained, optimizer, class_weights=weights),
        setup.devices,
        keep_state=accumulation(setup) > 1 and jax.default_backend() == "cpu",
        compiler_options=remat_options(jax.default_backend()) if setup.config.remat else None,
    )


def class_weights(setup: Setup) -> np.ndarray | None:
    """Weights by the classes' shares of the train split, where the run balances them."""
    exponent = setup.config.class_balance
    if not exponent:
        return None
    counts = metrics.class_counts(
        hosts.ProcessShard(setup.train), num_classes=setup.model.num_classes
    )
    return losses.balanced_weights(hosts.all_reduce_sum(counts), exponent=exponent)


def batches(setup: Setup, start: int, stop: int, *, of: Sequence[jax.Device]) -> Iterator[Batch]:
    """Batches of the devices `of` for updates `start` to `stop - 1`."""
    config = setup.config
    found = loader.batches(
        setup.train,
        seed=config.seed,
        start=start,
        stop=stop,
        batch_size=config.batch_size,
        crop_size=config.data.crop_size,
        scales=config.data.augmentation_scales,
        mirror=config.data.mirror,
        devices=len(setup.devices),
        accumulation=accumulation(setup),
        workers=config.workers,
        mine=[i for i, device in enumerate(setup.devices) if device in of],
        padding=padding_pixel(setup.model.mean_bgr),
    )
    return setup.hooks.batches(start, found)


def accumulation(setup: Setup) -> int:
    """Steps an update is split into, so that no device works on more than max_per_device."""
    at_once = len(setup.devices) * setup.config.max_per_device
    return -(-setup.config.batch_size // at_once)


def with_share(setup: Setup) -> Setup:
    """The setup with the number of photographs at once on a device, where it is not given.

    On accelerators that is a device's share of the batch, halved until the compiled update fits the
    device's memory. Where the result depends on the number (a trained batch norm, a batch loss),
    memory does not choose it.

    Raises:
      UserError: a share that the result depends on does not fit.
    """
    config = setup.config
    share = -(-config.batch_size // len(setup.devices))
    if config.max_per_device is not None:
        return setup
    if jax.default_backend() == "cpu":
        return with_at_once(setup, min(share, configs.at_once_on_cpus(config)))
    room = setup.local_devices[0].memory_stats()["bytes_limit"]
    print("compiling the update to see what fits (about a minute, once)", flush=True)
    at_once, need = share, needed_bytes(with_at_once(setup, share))
    while need > MEMORY_USED * room and at_once > 1:
        if configs.depends_on_share(config):
            raise UserError(
                f"the update with {share} photographs on a device needs {need / 1e9:.1f} GB of "
                f"{room / 1e9:.1f} GB; a trained batch norm and a batch loss are computed over the "
                "photographs that a device works on at once: give --max-per-device, fewer "
                "--batch-size, or --remat"
            )
        at_once = -(-at_once // 2)
        need = needed_bytes(with_at_once(setup, at_once))
    print(
        f"{at_once} of a device's {share} photographs at once: the compiled update needs "
        f"{need / 1e9:.1f} GB of {room / 1e9:.1f} GB"
    )
    return with_at_once(setup, at_once)


def with_at_once(setup: Setup, number: int) -> Setup:
    return replace(setup, config=replace(setup.config, max_per_device=number))


def needed_bytes(setup: Setup) -> int:
    """Memory of a device that the compiled update needs."""
    _, optimizer = runs.solver_of(setup.config)
    state = jax.eval_shape(
        lambda variables: train.init_state(variables, optimizer),
        train.variable_shapes(setup.trained),
    )
    padding = padding_pixel(setup.model.mean_bgr)
    batch = loader.assemble((), empty_slots(setup), setup.config.data.crop_size, padding)
    step = make_step(setup, optimizer)
    return train.peak_bytes(step, *train.shapes_on(setup.devices, state, batch))


def empty_slots(setup: Setup) -> np.ndarray:
    """The slots of an update, all of them empty."""
    slots = loader.place_samples(
        setup.config.batch_size, devices=len(setup.devices), accumulation=accumulation(setup)
    )
    return np.full_like(slots, -1)


def start_variables(
    config: Config, model: DeepLabV2 | crf_layer.WithCRF, given: files.Flat | None
) -> dict:
    """From scratch, or the arrays of --weights."""
    if given is None and config.weights is not None:  # all checkpoints are damaged
        given, _ = runs.read_given_weights(config)
    key = jax.random.key(config.seed)
    if given is None:
        return train.init_variables(model, key)
    if config.crf_iterations:
        given = crf_layer.start_weights() | given
    kept = first_layer.fit(given, model.num_channels, fresh=config.fresh_first_layer)
    fresh, given = given.keys() - kept.keys(), kept
    if config.fresh_head or fresh:
        whole_head = config.fresh_head and config.model.backbone == "vgg"
        whole_head = whole_head and not files.has_head(given)
        start = train.init_variables if whole_head else partial(train.init_head, fresh=fresh)
        return files.fill(start(model, key), given, fresh_head=config.fresh_head, fresh=fresh)
    return files.fill(train.variable_shapes(model), given)


def open_data(config: Config) -> builders.Dataset:
    """The training split and the val split, which may be another data set's."""
    root = splits.training_root(config)
    train_split, val_split = config.data.train_split, config.data.val_split
    if config.data.val_root is None:
        return open_splits(config, root, tuple(dict.fromkeys((train_split, val_split))))
    train = open_splits(config, root, (train_split,))
    val = open_splits(config, config.data.val_root, (val_split,), class_names=train.class_names)
    return builders.join(train, val)


def open_splits(
    config: Config, root: Path, names: tuple[str, ...], *, class_names: Sequence[str] | None = None
) -> builders.Dataset:
    check_data(root, names, config)
    return builders.open_dataset(
        root,
        prepared_dir=config.prepared_dir,
        splits=names,
        class_names=class_names,
        bad_data=config.data.bad_data,
        reading=reading_for(config, names),
    )


def reading_for(config: Config, names: Sequence[str]) -> folders.Reading:
    """How splits are read; only the training split has given masks."""
    if config.data.train_split in names:
        return splits.training_reading(config)
    return splits.reading_of(config, config.data.val_root)


def measure_masks(config: Config) -> None:
    """Prints and records the quality of the masks that replace the data set's own."""
    path, masks = config.workdir / report.MASKS, config.data.train_masks
    if masks is None or path.exists():
        return
    folder = builders.open_folder(
        splits.training_root(config),
        config.prepared_dir,
        (config.data.train_split,),
        splits.reading_of(config),
    )
    pairs = builders.truth_and_given(folder, config.data.train_split, masks)
    bar = tqdm(pairs, desc="masks", unit="mask", leave=False, disable=None)
    quality = metrics.mask_quality(bar, folder.class_names)
    print(metrics.describe_masks(quality))
    runs.write_score(path, quality)


def check_data(root: Path, names: Sequence[str], config: Config) -> None:
    """Prints notes on a sample of the photographs and masks; a fault ends the run."""
    found = checks.check_dataset(
        root,
        prepared_dir=config.prepared_dir,
        splits=names,
        reading=reading_for(config, names),
        sample=config.data.num_checked,
        seed=config.seed,
        allow_one_class=config.data.allow_one_class,
    )
    for line in checks.describe_notes(found):
        print(line)
    faults = found.findings if config.data.bad_data == "raise" else found.single_class
    checks.refuse_faults(faults)


def report_score(
    setup: Setup, progress: Progress, state: train.TrainState, interruption: Interruption
) -> Scored:
    """Scores the parameters and, where there is one, their average; reports it to `progress`."""

    def tally(params):
        variables = train.variables_of(state.replace(params=params))
        share, longest = hosts.ProcessShard(setup.val), -(-len(setup.val) // jax.process_count())
        asking = partial(interruption.between, longest=longest)
        return metrics.Tally(*map(hosts.all_reduce_sum, score(setup, variables, share, asking)))

    split, averaged = tally(state.params), optim.average_of(state.optimizer)
    average = None if averaged is None else tally(averaged)
    picture = draw_sheet(setup, train.variables_of(state)) if hosts.is_first() else None
    results = metrics.split_scores(split)
    if average is not None:
        results |= {f"ema_{name}": v for name, v in metrics.split_scores(average).items()}
    progress.score(int(state.step), results, picture)
    return Scored(split, average, picture)


def score(
    setup: Setup, variables: dict, source: Sequence, asking: Callable = iter
) -> metrics.Tally:
    """Tally of a source, by the devices of this process."""

    def bar(numbers):
        return tqdm(
            setup.hooks.scored(asking(numbers)),
            desc="evaluating",
            total=len(numbers),
            unit="image",
            leave=False,
            dynamic_ncols=True,
            disable=None if hosts.is_first() else True,
        )

    return evaluation.evaluate(
        setup.model,
        variables,
        source,
        evaluation.InferenceOptions(**asdict(setup.config.eval)),
        devices=setup.local_devices,
        progress=bar,
    )


def draw_sheet(setup: Setup, variables: dict) -> np.ndarray:
    """Photographs of the val split, evenly spread over it, beside truth and prediction."""
    model, pad_to = setup.model, setup.config.eval.pad_to
    bands = runs.shown_bands(setup.config)
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


def finish(setup: Setup, scored: Scored) -> None:
    """Prints the table; leaves score.json, the pictures, and report.html with all of them."""
    split = scored.split
    workdir, class_names = setup.config.workdir, setup.dataset.class_names
    results = metrics.report(split, class_names)
    print(metrics.table(split, class_names))
    records = runs.read_metrics(workdir)
    untrained = [r["mean_iou"] for r in records if r["step"] == 0 and "mean_iou" in r]
    if untrained:
        results["untrained_mean_iou"] = untrained[0]
        print(f"mean IoU of the untrained network: {results['untrained_mean_iou']:.4f}")
    if scored.average is not None:
        results["ema"] = metrics.report(scored.average, class_names)
        print(f"mean IoU of the averaged parameters: {results['ema']['mean_iou']:.4f}")
    runs.write_score(workdir / "score.json", results)
    figures.save(figures.curves(records), workdir / "curves.png")
    figures.save(figures.confusion(split.confusion, class_names), workdir / "confusion.png")
    bars = figures.class_bars({"network": metrics.iou(split.confusion)}, class_names)
    figures.save(bars, workdir / "classes.png")
    PILImage.fromarray(scored.picture).save(workdir / "sheet.png")
    report.write(workdir)
    print(f"mean IoU {results['mean_iou']:.4f}; score, curves and pictures are in {workdir}")


if __name__ == "__main__":
    cli.run(main, given)
