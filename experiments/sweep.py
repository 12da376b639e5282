"""Train presets, changes of them or a table of the paper, with several seeds: one table of scores.

    python experiments/sweep.py --presets small --root camvid --vary optim.learning-rate 0.01 0.03
    python experiments/sweep.py --presets small --root camvid --seeds 0 1 \\
        --vary model.aspp-rates "6 12 18 24" "2 4 8 12" -- --num-steps 400
    python experiments/sweep.py --table 4 --root data/voc --coco init.caffemodel --dry-run
    python experiments/sweep.py --root data/voc --trimap 40 --crf-normalization per_pixel \\
        --presets table3_aspp_l table4_msc_coco_aug_aspp

--vary names an option of train_voc.py, then its values; a value of several words stands in quotes.
Each run is one train_voc.py command, printed as it could be pasted, in a process of its own, one
a device; options behind "--" go to all of them. The same command typed again, after a kill too,
goes on where it was. Leaves table.md, runs.csv and figure.png.

--table trains the rows of a table of the paper: 1 to 4, 6, 7 and 9, or of a test server, 5 (PASCAL
VOC) and 8 (Cityscapes). VOC 2012 and SBD are downloaded to --root where they are not there. The
CRF's parameters are searched for each network that the paper refines, and its numbers stand beside
ours where they compare. For a server the masks of the test split are written. The paper starts from
VGG_ILSVRC_16_layers.caffemodel and MSRA's ResNet-101-model.caffemodel, and from init.caffemodel of
its release, which MS-COCO was learnt with.

--dry-run prints the plan: commands, disk, and for a table hours by a few timed updates here.
"""

import json
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from itertools import product
from pathlib import Path
from typing import Annotated, Literal

import cli
import jax
import numpy as np
import tyro

from deeplab_jax import config as configs
from deeplab_jax import (
    figures,
    paper,
    presets,
    receptive_field,
    segmenter,
    start,
    sweeps,
    train,
    workdir,
)
from deeplab_jax.choices import CRFNormalization
from deeplab_jax.config import Config, ModelConfig
from deeplab_jax.data import builders, layouts, prepare
from deeplab_jax.data.downloads import DATA_SETS
from deeplab_jax.models.deeplab import OUTPUT_STRIDE, build
from deeplab_jax.types import IGNORE_LABEL, Batch, UserError
from deeplab_jax.weights import published, sources

EXPERIMENTS = Path(__file__).parent
DOWNLOADS = {"voc_aug": 3.3, "voc_test": 1.9}
"""Data sets of download_data.py and the gigabytes of their archives."""
PREPARED_GB = 4.5
"""About the size of VOC 2012 and SBD, unpacked and prepared."""
OWN = ("seed", "workdir", "data.root", "prepared-dir", "weights")
"""Options of train_voc.py that a sweep has itself."""


@dataclass(frozen=True)
class Options:
    common: Annotated[tuple[str, ...], tyro.conf.Positional] = ()
    """Behind "--": options of all train_voc.py commands."""
    table: Literal["1", "2", "3", "4", "5", "6", "7", "8", "9"] | None = None
    """Table of the paper, whose rows are trained."""
    presets: tuple[str, ...] = ()
    """Without --table: networks and recipes; quickstart where none are given."""
    vary: tyro.conf.UseAppendAction[tuple[tuple[str, ...], ...]] = ()
    """An option of train_voc.py and its values; may be given several times."""
    root: Path | None = None
    """Data set of all runs; the drawn scenes of the preset quickstart where none is given."""
    vgg: str = "imagenet-vgg16"
    """Weights of ImageNet that the paper's rows of VGG-16 start from: a file, a name, or none."""
    resnet: str = "imagenet-resnet101"
    """Those of ResNet-101, likewise."""
    coco: str | None = None
    """Weights of MS-COCO for rows that start from them, which are left out where none are given."""
    seeds: tuple[int, ...] | None = None
    """Each row is trained once with each seed, and the spread is shown; None: 0 1 2, or 0 for
    --table."""
    crf: bool = True
    """Score after the fully connected CRF too; of a table those rows that the paper refines."""
    search: int | None = None
    """Photographs of val that the CRF's parameters are searched on, 0: none; None: 100 for --table,
    else 0."""
    crf_params: str | None = None
    """Without a search: file of search_crf.py or name of published parameters; None: learnt, or the
    network's."""
    crf_normalization: CRFNormalization | None = None
    """None: per_pixel for --table, as the authors, else symmetric, as pydensecrf."""
    trimap: int | None = None
    """Score within 1 to so many pixels of a boundary too, and draw all rows (Figure 10)."""
    output: Path | None = None
    """Folder of the work folders, the table and the figure; under runs/ by default."""
    parallel: int | None = None
    """Runs at a time; None: one a device."""
    prepared_dir: Path = Path("prepared")
    """Where prepared data sets are kept."""
    dry_run: bool = False
    """Print the plan and run nothing."""
    timed: bool = True
    """Time updates of each network of a table for the plan."""


@dataclass(frozen=True)
class Entry:
    """A row of the table: a preset of train_voc.py, and the options that make this row."""

    label: str
    preset: str
    arguments: tuple[str, ...] = ()
    row: paper.Row | None = None
    """The row of the paper that it is."""


def main(options: Options) -> None:
    if options.table is None:
        varied = [read_varied(words) for words in options.vary]
        name = "_".join(["sweep", *(pairs[0][0] for pairs in varied)])
        return run(options, entries_of(options.presets or ("quickstart",), varied), name)
    if options.presets or options.vary:
        raise UserError("--table has rows of its own: leave out --presets and --vary")
    if options.root is None:
        data = paper.DATA[options.table].name
        raise UserError(f"give --root FOLDER, where {data} is or is to be; see data/README.md")
    rows = [Entry(row.label, row.preset, (), row) for row in paper.rows(options.table)]
    options = replace(
        options,
        seeds=options.seeds or (0,),
        search=100 if options.search is None else options.search,
        crf_normalization=options.crf_normalization or "per_pixel",
    )
    run(options, rows, paper.DATA[options.table].folder)


def read_varied(words: Sequence[str]) -> list[tuple[str, str]]:
    """An option with each of its values, as they were typed behind --vary.

    Raises:
      UserError: the sweep has this option itself, it has no value, or one value twice.
    """
    if len(words) < 2:
        raise UserError("--vary needs an option and values, such as --vary batch-size 5 10")
    option, values = words[0].removeprefix("--").replace("_", "-"), words[1:]
    if option in OWN:
        raise UserError(f"--vary {option}: a sweep sets this itself, see --help")
    return [(option, value) for value in values]


def entries_of(names: Sequence[str], varied: Sequence[list[tuple[str, str]]]) -> list[Entry]:
    """An entry for each preset and combination of values; a preset alone may be a paper's row."""
    entries = []
    for preset, *pairs in product(names, *varied):
        changes = ", ".join(f"{option.rpartition('.')[2]} {value}" for option, value in pairs)
        label = " ".join(filter(None, [preset if len(names) > 1 or not varied else "", changes]))
        words = [word for option, value in pairs for word in (f"--{option}", *shlex.split(value))]
        rows = [row for row in paper.ROWS if row.preset == preset]
        row = min(rows, key=lambda row: row.server is not None, default=None)
        entries.append(Entry(label, preset, tuple(words), None if varied else row))
    return entries


def run(options: Options, entries: Sequence[Entry], name: str) -> None:
    """Runs what is missing; leaves table.md, runs.csv and figure.png in --output or runs/`name`."""
    cli.check_positive(parallel=options.parallel, trimap=options.trimap)
    options = replace(
        options,
        output=options.output or Path("runs") / name,
        seeds=options.seeds or (0, 1, 2),
        crf_normalization=options.crf_normalization or "symmetric",
    )
    labels = [entry.label for entry in entries]
    if twice := [label for label in labels if labels.count(label) > 1]:
        raise UserError(f"{twice[0]} is asked for twice")
    reasons = {entry.label: why_left_out(entry, options) for entry in entries}
    entries = [entry for entry in entries if not reasons[entry.label]]
    left_out = [f"{label}: left out: {reason}" for label, reason in reasons.items() if reason]
    print(*left_out, sep="\n", end="\n" * bool(left_out))
    if not entries:
        raise UserError("no row is left to train")
    planned = {entry.label: check(entry, options) for entry in entries}
    jobs = {(e.label, seed): make_job(e, seed, options) for seed in options.seeds for e in entries}
    if options.dry_run:
        return print("\n".join(plan(options, planned, jobs)))
    for data_set in downloads(options):
        command = script("download_data.py", data_set, str(options.root))
        print(sweeps.pasteable(command), flush=True)
        if subprocess.run(command).returncode:
            raise UserError("the data could not be downloaded, see above")
    device, slots = sweeps.find_devices(options.parallel)
    print(f"{len(jobs)} runs, {len(slots)} at a time, on {device}; output in {options.output}")
    with cli.signals_raise():
        failed = sweeps.run(list(jobs.values()), slots, device=device)
    done = {key: job for key, job in jobs.items() if job.finished and job.folder not in failed}
    if done:
        notes = left_out + [f"{folder}: failed: {reason}" for folder, reason in failed.items()]
        report(options, entries, done, notes)
    if failed:
        reasons = "; ".join(f"{folder}: {reason}" for folder, reason in failed.items())
        raise UserError(f"{len(failed)} of {len(jobs)} runs failed: {reasons}")


def why_left_out(entry: Entry, options: Options) -> str:
    """What a row needs that is not given, or ""."""
    row = entry.row
    if row is None:
        return ""
    if row.start == "COCO" and not (options.coco or "weights" in typed(options.common)):
        return "it starts from MS-COCO: give --coco FILE, the init.caffemodel of the release"
    if options.table in (None, *"12345"):
        return ""
    assert options.root is not None  # `main` has asked for it
    data = presets.PRESETS[entry.preset].data
    wanted = [data.train_split or "train", data.val_split, *(["test"] if row.server else [])]
    folder = builders.open_folder(options.root, options.prepared_dir, wanted)
    missing = [split for split in wanted if split not in folder.splits]
    return f"{options.root} has no split {missing[0]}" if missing else ""


def downloads(options: Options) -> list[str]:
    """Names of the data sets that a table needs and --root lacks."""
    if options.table not in tuple("12345"):
        return []
    assert options.root is not None  # `main` has asked for it
    needs = {"train_aug": "voc_aug"} | ({"test": "voc_test"} if options.table == "5" else {})
    if not options.root.is_dir():
        return list(needs.values())
    folder = layouts.find_folder(options.root)
    there = folder.splits if folder is not None and layouts.is_voc2012(folder) else ()
    archives = {path.name for path in prepare.find_archives(options.root)}
    return [
        name
        for split, name in needs.items()
        if split not in there and not {a.name for a in DATA_SETS[name]} <= archives
    ]


def typed(words: Sequence[str]) -> set[str]:
    """Names of the options among words, without their dashes."""
    return {
        word.removeprefix("--").partition("=")[0].replace("_", "-")
        for word in words
        if word.startswith("--")
    }


def check(entry: Entry, options: Options) -> Config:
    """The config of a row's training, refused before the start where train_voc.py would refuse it.

    Raises:
      UserError: an option behind "--" is one that the row sets, the preset or the weights are not
        there, or the combination cannot be trained. A misspelt option ends the process.
    """
    if twice := typed(entry.arguments) & typed(options.common):
        raise UserError(f"--{min(twice)} is set by the table: take it out from behind --")
    if entry.preset not in presets.PRESETS:
        known = ", ".join(presets.PRESETS)
        raise UserError(f"there is no preset {entry.preset}; choose from {known}")
    given = weights_of(entry, options)
    config = tyro.cli(
        Config,
        default=presets.PRESETS[entry.preset],
        args=training(entry.preset, entry, options, given, Path(), 0)[3:],
        prog="train_voc.py",
        config=(tyro.conf.AvoidSubcommands,),
    )
    if entry.row is not None and "weights" not in typed(options.common):  # not its first stage
        config = replace(config, weights=Path(given) if given else None)
    config = replace(config, model=configs.completed(config.model))
    try:
        configs.check(config)
        start_of(config.weights)
        if config.data.root is None:
            start.with_train_split(config)
        if config.model_file is None:
            start.refuse_frozen_from_scratch(config, build(**asdict(config.model)))
    except UserError as error:
        raise UserError(f"{entry.label}: {error}") from None
    return config


@cache
def start_of(weights: Path | None) -> tuple[str, str]:
    """What weights were trained on, ImageNet, COCO, scratch or what else they say; and how they
    differ from the paper's, or "".

    Raises:
      UserError: there is no such file or name.
    """
    if weights is None:
        return "scratch", ""
    named = published.NAMES.get(str(weights))
    if named is not None and not weights.exists():  # downloaded when a run wants it
        trained_on, class_names = named.trained_on, named.class_names
        convention = f"torchvision {named.backbone}"
    else:
        _, meta = segmenter.read_weights(weights, answers=sources.Answers(fresh_head=True))
        told, class_names = meta.get("source") or {}, meta["class_names"]
        trained_on, convention = told.get("trained_on") or "", told.get("convention", "")
    difference = ""
    if convention.startswith("torchvision") and not class_names:
        difference = TORCHVISION["ResNet" if "resnet" in convention.lower() else "VGG-16"]
    if "COCO" in trained_on and "VOC" not in trained_on:
        return "COCO", difference
    if trained_on.startswith("ImageNet") or not class_names:
        return "ImageNet", difference
    return trained_on or f"{weights}, whose training is not known", difference


TORCHVISION = {
    "VGG-16": "it starts from torchvision's VGG-16, which has another mean and scale of colours; "
    "the paper's is VGG_ILSVRC_16_layers.caffemodel",
    "ResNet": "it starts from torchvision's ResNet, whose stride is in the 3x3, so that the first "
    "blocks of res4 and res5 have other rates, and which has another mean and scale of colours; "
    "the paper's is MSRA's ResNet-101-model.caffemodel",
}


def weights_of(entry: Entry, options: Options) -> str | None:
    """What a row of the paper starts from; None where that stands behind "--", or for no row."""
    if entry.row is None or "weights" in typed(options.common):
        return None
    if entry.row.start == "COCO":
        return options.coco
    backbone = presets.PRESETS[entry.preset].model.backbone
    given = options.vgg if backbone == "vgg" else options.resnet
    return None if given == "none" else given


def script(name: str, *arguments: str) -> tuple[str, ...]:
    """A script of this folder as a command, with a path that can be typed from here."""
    path, here = EXPERIMENTS / name, Path.cwd()
    shown = path.relative_to(here) if path.is_relative_to(here) else path
    return (sys.executable, str(shown), *arguments)


def training(
    preset: str, entry: Entry, options: Options, weights: object, folder: Path, seed: int
) -> tuple[str, ...]:
    """The command that trains a preset with the options of a row."""
    start = ("--weights", str(weights)) if weights else ()
    data = ("--data.root", str(options.root)) if options.root else ()
    own = (*options.common, *entry.arguments, *start, "--seed", str(seed), *data)
    kept = ("--workdir", str(folder), "--prepared-dir", str(options.prepared_dir))
    return script("train_voc.py", preset, *own, *kept)


def make_job(entry: Entry, seed: int, options: Options) -> sweeps.Job:
    """Train, search the CRF's parameters where they are wanted, and score or predict.

    A second stage for a test server starts from the run of the first and keeps its CRF, since its
    own network has seen val.
    """
    assert options.output is not None  # `run` has put it in
    row, output = entry.row, options.output
    name = entry.preset if row else re.sub(r"[^a-zA-Z0-9.-]+", "_", entry.label)
    folder = searched = output / f"{name}_seed{seed}"
    weights: object = weights_of(entry, options)
    first = presets.PRESETS[entry.preset].weights if row and row.server else None
    commands = []
    if first is not None:
        searched = output / f"{first.name}_seed{seed}"
        commands = [training(first.name, entry, options, weights, searched, seed)]
        weights = searched
    second = training(entry.preset, entry, options, weights, folder, seed)
    prepared = ("--prepared-dir", str(options.prepared_dir))
    normalization = ("--crf-normalization", str(options.crf_normalization))
    refine: tuple[str, ...] = ("--crf", *normalization)
    if not options.crf or (options.table and row and row.after is None):
        refine = ()
    elif options.search:
        number = ("--num-photographs", str(options.search))
        search = script("search_crf.py", str(searched), *number, *normalization, *prepared)
        commands += [search, second] if first else [second, search]
        refine += ("--crf-params", str(searched / "crf/params.json"))
    elif options.crf_params:
        refine += ("--crf-params", options.crf_params)
    if second not in commands:
        commands.append(second)
    if row is None or row.server is None:
        bands = ("--trimap", str(options.trimap)) if options.trimap else ()
        score = script("evaluate_voc.py", str(folder), *refine, *bands, *prepared)
        return sweeps.Job(folder, (*commands, score), "evaluation.json")
    archive = ""
    for wanted, used in ((row.before, ()), (row.after, refine)):
        if wanted is not None:
            to = "submission_crf" if used else "submission"
            given = ("--submission", row.server, "--root", str(options.root), *used, *prepared)
            command = ("predict.py", str(folder), *given, "--output", str(folder / to))
            commands.append(script(*command))
            archive = f"{to}/results.{'tar' if row.server == 'voc' else 'zip'}"
    return sweeps.Job(folder, tuple(commands), archive)


Jobs = Mapping[tuple[str, int], sweeps.Job]
"""By row and seed."""


def plan(options: Options, planned: Mapping[str, Config], jobs: Jobs) -> Iterator[str]:
    """Commands, disk and hours, in lines; `planned` has the config of each row."""
    missing = downloads(options)
    yield from (f"download {name} to {options.root}: {DOWNLOADS[name]} GB" for name in missing)
    of_voc = PREPARED_GB if options.table in tuple("12345") else 0.0
    disk, hours = of_voc + sum(DOWNLOADS[name] for name in missing), 0.0
    rows = {row.label: row for row in paper.rows(options.table or "")}
    for (label, seed), job in jobs.items():
        config = planned[label]
        values = 2 * num_parameters(
            config.model, config.model_file, 21
        )  # with the momentum, float32
        disk += (config.keep_checkpoints + 1) * 4 * values / 1e9
        yield f"{label}, seed {seed}: {config.num_steps:,} updates of {config.batch_size}"
        if label in rows:
            where = f" (test server of {rows[label].server})" if rows[label].server else ""
            yield f"  the paper has {numbers_of(rows[label])}{where}"
            yield from (f"  {line}" for line in remarks(rows[label], config))
        if options.table and options.timed:
            stages = sum(command[1].endswith("train_voc.py") for command in job.commands)
            size = config.data.crop_size
            seconds = config.batch_size * seconds_a_photograph(config.model, size)
            took = stages * config.num_steps * seconds / 3600
            hours += took
            yield f"  {seconds:.3g} s an update here: {took:,.1f} hours"
        yield from (f"  {sweeps.pasteable(command)}" for command in job.commands)
    yield f"disk: about {disk:.1f} GB for checkpoints{' and data' if of_voc else ''}"
    if hours:
        kind = jax.devices()[0].device_kind
        yield f"training: about {hours:,.0f} hours on one {kind}; scoring and searching come on top"


def numbers_of(row: paper.Row) -> str:
    scores = ((row.before, "before the CRF"), (row.after, "after the CRF"))
    return " and ".join(f"{score:g} {when}" for score, when in scores if score is not None)


def remarks(row: paper.Row, config: Config) -> list[str]:
    """What of a row is a guess, and what else differs from the paper."""
    _, difference = start_of(config.weights)
    told = [f"guess: {guess}" for guess in row.guesses]
    return [*told, f"differs: {difference}"] if difference else told


@cache
def num_parameters(model: ModelConfig, model_file: str | None, num_classes: int) -> int:
    network = segmenter.network(asdict(model), num_classes, model_file=model_file)
    params = train.variable_shapes(network)["params"]
    return sum(leaf.size for leaf in jax.tree.leaves(params))


@cache
def seconds_a_photograph(model: ModelConfig, crop_size: int) -> float:
    """Estimate: the faster of two updates of one random photograph."""
    config = Config(model=model, batch_size=1)
    network = segmenter.trained_network(config, 21)
    _, optimizer = segmenter.solver_of(config)
    step = jax.jit(start.update_of(config, network, optimizer, axis_name=None))
    pixels = (1, 1, crop_size, crop_size)
    image = np.random.default_rng(0).integers(0, 256, (*pixels, 3), np.uint8)
    labels = np.full(pixels, IGNORE_LABEL, np.uint8)
    labels[..., ::8, ::8] = 1
    batch = Batch(image, labels, np.zeros((1, 1), np.int32))
    zeros = jax.tree.map(lambda s: np.zeros(s.shape, s.dtype), train.variable_shapes(network))
    state = train.init_state(zeros, optimizer)
    jax.block_until_ready(step(state, batch))
    times = [time.monotonic()]
    for _ in range(2):
        jax.block_until_ready(step(state, batch))
        times.append(time.monotonic())
    return min(np.diff(times))


def report(options: Options, entries: Sequence[Entry], jobs: Jobs, notes: list[str]) -> None:
    """Leaves and prints the table of what has finished, and its figures."""
    assert options.output is not None  # `run` has put it in
    results, numbers, lines, told = [], {}, [], {}
    columns = columns_of(entries, [job.folder for job in jobs.values()])
    for entry in entries:
        own = [job for (label, _), job in jobs.items() if label == entry.label]
        if own and own[0].result == "evaluation.json":
            results += [read_result(entry.label, job.folder, columns) for job in own]
            numbers[entry.label], remarks_of_row = beside(entry, own[0].folder, options)
            for remark in remarks_of_row:
                told.setdefault(remark, []).append(entry.label)
        notes += [for_server(entry, job) for job in own if job.result != "evaluation.json"]
    if results:
        sweeps.write_csv(options.output / "runs.csv", results)
        figures.save(figures.sweep(sweeps.scores(results)), options.output / "figure.png")
        device = sweeps.either(result.device for result in results)
        lines = [sweeps.markdown(results, published=numbers)]
        lines += [f"Mean and deviation over seeds, on {device}. {data_of(jobs)}", ""]
        lines += [DAGGER] if "†" in lines[0] else []
        for remark, labels in told.items():
            rows = "all rows" if len(labels) == len(numbers) > 1 else "; ".join(labels)
            notes.append(f"{rows}: {remark}")
        notes += sweeps.comparisons(results)
        notes += ["runs.csv has the command, seconds and device of each run; folders, report.html"]
    if results and options.trimap:
        curves = {
            f"{row}, seed {seed}": read_bands(job.folder) for (row, seed), job in jobs.items()
        }
        figures.save(figures.trimap(curves), options.output / "trimap.png")
    title = f"# Table {options.table} of the paper" if options.table else "# Sweep"
    lines = [title, "", *lines, *(f"* {note}" for note in notes), ""]
    text = "\n".join([*lines, "```", shlex.join(["python", *sys.argv]), "```", ""])
    (options.output / "table.md").write_text(text)
    print(f"\n{text}\nwritten to {options.output}")


DAGGER = """† as large as the score map of a training crop, or larger: every tap of the kernel but
the middle one reads padding, which makes it a 1x1.
"""


def for_server(entry: Entry, job: sweeps.Job) -> str:
    """What stands beside the paper's numbers of a test server."""
    assert entry.row is not None  # free sweeps have results of their own
    return (
        f"{entry.label}: {job.folder / job.result} is for the test server of {entry.row.server}; "
        f"the paper's {numbers_of(entry.row)} stands beside its answer alone"
    )


def columns_of(entries: Sequence[Entry], folders: Sequence[Path]) -> list[str]:
    """Options that the rows set, and those in which the runs differ."""
    own = {name.replace("-", "_") for entry in entries for name in typed(entry.arguments)}
    runs = [dict(configs.result_fields(workdir.read_run(folder).config)) for folder in folders]
    differ = {name for name in runs[0] if len({repr(run[name]) for run in runs}) > 1}
    return [name for name in runs[0] if name in (own | differ) - {"seed", "fresh_head"}]


def read_result(label: str, folder: Path, columns: Sequence[str]) -> sweeps.Result:
    """What a finished run gave, and what was trained, from its work folder."""
    run, entry = workdir.read_run(folder), json.loads((folder / "entry.json").read_text())
    scores = json.loads((folder / "evaluation.json").read_text())
    network = run.config.model, run.config.model_file
    speed = [r for r in workdir.read_metrics(folder) if "images_per_second" in r]
    rates = np.array([r["images_per_second"] for r in speed])
    steps = np.diff([0, *(r["step"] for r in speed)])
    return sweeps.Result(
        row=label,
        seed=run.config.seed,
        settings=settings(run.config, columns),
        parameters=num_parameters(*network, len(run.class_names)),
        training_images_per_second=float(np.median(rates)),
        training_seconds=float((steps * run.config.batch_size / rates).sum()),
        mean_iou=scores["network"]["mean_iou"],
        mean_iou_after_crf=scores.get("network + CRF", {}).get("mean_iou"),
        command=entry["command"],
        device=entry["device"],
    )


def settings(config: Config, columns: Sequence[str]) -> dict[str, str]:
    """The columns of a run; where rates are one, the fields of view of the head and the network.

    A rate has a dagger where it leaves the score map.
    """
    values = dict(configs.result_fields(config))
    shown = {
        name: ", ".join(map(str, values[name]))
        if isinstance(values[name], tuple)
        else str(values[name])
        for name in columns
    }
    if "model.aspp_rates" in columns and config.model_file is None:
        side = -(-config.data.crop_size // OUTPUT_STRIDE)
        rates = config.model.aspp_rates
        shown["model.aspp_rates"] = ", ".join(f"{r}†" if r >= side else f"{r}" for r in rates)
        model = build(**asdict(config.model))
        shown["field of view (pixels)"] = f"{receptive_field.as_in_table_1(model)}"
        shown["receptive field (pixels)"] = f"{receptive_field.theoretical(model)}"
    return shown


def beside(
    entry: Entry, folder: Path, options: Options
) -> tuple[tuple[float | None, float | None], list[str]]:
    """The paper's numbers that compare with a run, before and after the CRF; and lines that say
    why not, what of the row is a guess, and what else differs."""
    row = entry.row
    if row is None or row.server is not None:
        return (None, None), []
    run, data = workdir.read_run(folder), paper.DATA[row.table]
    known, _ = start_of(run.config.weights)
    preset = replace(presets.PRESETS[entry.preset], seed=run.config.seed)
    preset = replace(preset, model=configs.completed(preset.model))
    wanted = dict(configs.result_fields(preset))
    free = {"data.train_split", "fresh_head", "model.stride_placement"}
    other = [
        f"{name} is {value}, the paper's row has {wanted[name]}"
        for name, value in configs.result_fields(run.config)
        if name not in free and value != wanted[name]
    ]
    sizes = tuple(run.record["split_sizes"].values())
    if (sizes, len(run.class_names)) != (data.photographs, data.num_classes):
        other.insert(0, f"the data are others than {data.name}")
    elif known != row.start:
        other.insert(0, f"the start is {known}, the paper's is {row.start}")
    lines = remarks(row, run.config)
    if other:
        return (None, None), [f"not beside the paper: {other[0]}", *lines]
    if row.after is None or (options.search and options.crf_normalization == "per_pixel"):
        return (row.before, row.after), lines
    reason = "after the CRF not beside the paper: its parameters were not searched, or its "
    reason += "messages are not normalised per pixel"
    return (row.before, None), [reason, *lines]


def data_of(jobs: Jobs) -> str:
    """What the runs were trained and scored on, as a sentence."""
    run = workdir.read_run(next(iter(jobs.values())).folder)
    sizes = run.record["split_sizes"].items()
    told = " and scored on ".join(f"{split} ({size:,} photographs)" for split, size in sizes)
    return f"Trained on {told} of {run.config.data.root or 'drawn scenes'}."


def read_bands(folder: Path) -> list[np.ndarray]:
    """Mean IoU by width of the band, before and after the CRF, as evaluate_voc.py left them."""
    lines = [line.split(",") for line in (folder / "trimap.csv").read_text().splitlines()[1:]]
    sides = ([float(line[2]) for line in lines if line[1] == side] for side in ("False", "True"))
    return [np.array(side) for side in sides if side]


if __name__ == "__main__":
    cli.run(main, cli.parse(Options, __doc__))
