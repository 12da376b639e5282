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
from deeplab_jax import figures, paper, receptive_field, segmenter, start, sweeps, train, workdir
from deeplab_jax import report as reports
from deeplab_jax.choices import CRFNormalization
from deeplab_jax.config import Config, ModelConfig
from deeplab_jax.data import builders, layouts, prepare
from deeplab_jax.data.downloads import DATA_SETS
from deeplab_jax.data.folders import Place
from deeplab_jax.models.deeplab import OUTPUT_STRIDE, build
from deeplab_jax.presets import PRESETS
from deeplab_jax.types import Batch, UserError
from deeplab_jax.weights import published, sources

DOWNLOADS = {"voc_aug": 3.3, "voc_test": 1.9}
"""Data sets of download_data.py and the gigabytes of their archives."""
PREPARED_GB = 4.5
"""About the size of VOC 2012 and SBD, unpacked and prepared."""
ON_VOC = tuple("12345")
"""Tables of VOC 2012."""
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
    """Each row is trained with each seed; None: 0 1 2, or 0 for --table."""
    crf: bool = True
    """Score after the fully connected CRF too; of a table those rows that the paper refines."""
    search: int | None = None
    """Photographs of val to search the CRF's parameters on, 0: none; None: 100 for --table."""
    crf_params: str | None = None
    """Without a search: file of search_crf.py or name of published parameters."""
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


@dataclass(frozen=True)
class Entry:
    """A row of the table: a preset of train_voc.py, and the options that make this row."""

    label: str
    preset: str
    arguments: tuple[str, ...] = ()
    row: paper.Row | None = None
    """The row of the paper that it is."""


Jobs = Mapping[tuple[Entry, int], sweeps.Job]
"""By row and seed."""


def main(options: Options) -> None:
    if options.table is None:
        varied = [read_varied(words) for words in options.vary]
        name = "_".join(["sweep", *(pairs[0][0] for pairs in varied)])
        return run(options, entries_of(options.presets or ("quickstart",), varied), name)
    if options.presets or options.vary:
        raise UserError("--table has rows of its own: leave out --presets and --vary")
    data = paper.DATA[options.table]
    if options.root is None:
        raise UserError(f"give --root FOLDER, where {data.name} is or is to be; see data/README.md")
    rows = paper.rows(options.table)
    run(options, [Entry(row.label, row.preset, (), row) for row in rows], data.folder)


def read_varied(words: Sequence[str]) -> list[tuple[str, str]]:
    """An option with each of its values, as they were typed behind --vary."""
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
        rows = [row for row in paper.ROWS if row.preset == preset and not varied]
        row = min(rows, key=lambda row: row.server is not None, default=None)
        entries.append(Entry(label, preset, tuple(words), row))
    return entries


def run(options: Options, entries: Sequence[Entry], name: str) -> None:
    """Runs what is missing; leaves table.md, runs.csv and figure.png in --output or runs/`name`."""
    cli.check_positive(parallel=options.parallel, trimap=options.trimap)
    of_table = {"seeds": (0,), "search": 100, "crf_normalization": "per_pixel"}
    others = {"seeds": (0, 1, 2), "search": 0, "crf_normalization": "symmetric"}
    defaults = {"output": Path("runs") / name, **(of_table if options.table else others)}
    missing = {name: v for name, v in defaults.items() if getattr(options, name) in (None, ())}
    options = replace(options, **missing)
    if not options.crf and any(entry.row and entry.row.server for entry in entries):
        raise UserError("the rows of Tables 5 and 8 are refined by the CRF: leave out --no-crf")
    labels = [entry.label for entry in entries]
    if twice := [label for label in labels if labels.count(label) > 1]:
        raise UserError(f"{twice[0]} is asked for twice")
    reasons = {entry: why_left_out(entry, options) for entry in entries}
    notes = [f"{entry.label}: left out: {reason}" for entry, reason in reasons.items() if reason]
    for note in notes:
        print(note)
    planned = {entry: check(entry, options) for entry in entries if not reasons[entry]}
    if not planned:
        raise UserError("no row is left to train")
    jobs = {(e, seed): make_job(e, seed, options) for seed in options.seeds for e in planned}
    if options.dry_run:
        return print("\n".join(plan(options, planned, jobs)))
    for data_set in downloads(options):
        command = script("download_data.py", data_set, options.root)
        print(sweeps.pasteable(command), flush=True)
        if subprocess.run(command).returncode:
            raise UserError("the data could not be downloaded, see above")
    device, slots = sweeps.find_devices(options.parallel)
    print(f"{len(jobs)} runs, {len(slots)} at a time, on {device}; output in {options.output}")
    failed = sweeps.run(list(jobs.values()), slots, device=device)
    told = [f"{folder}: failed: {reason}" for folder, reason in failed.items()]
    done = {key: job for key, job in jobs.items() if job.finished and job.folder not in failed}
    if done:
        report(options, done, notes + told)
    if failed:
        raise UserError(f"{len(failed)} of {len(jobs)} runs failed: {'; '.join(told)}")


def why_left_out(entry: Entry, options: Options) -> str:
    """What a row needs that is not given, or ""."""
    row = entry.row
    if row is None:
        return ""
    if row.start == "COCO" and not (options.coco or "weights" in typed(options.common)):
        return "it starts from MS-COCO: give --coco FILE, the init.caffemodel of the release"
    if options.table in (None, *ON_VOC):  # whose data may still have to be downloaded
        return ""
    data = PRESETS[entry.preset].data
    wanted = [data.train_split or "train", data.val_split, *(["test"] if row.server else [])]
    folder = builders.open_folder(Place(options.root, options.prepared_dir), wanted)
    missing = [split for split in wanted if split not in folder.splits]
    return f"{options.root} has no split {missing[0]}" if missing else ""


def downloads(options: Options) -> list[str]:
    """Names of the data sets that a table needs and --root lacks."""
    if options.table not in ON_VOC:
        return []
    needs = {"voc_aug": "train_aug"} | ({"voc_test": "test"} if options.table == "5" else {})
    if not options.root.is_dir():
        return list(needs)
    folder = layouts.find_folder(options.root)
    there = folder.splits if folder is not None and layouts.is_voc2012(folder) else ()
    archives = {path.name for path in prepare.find_archives(options.root)}
    return [
        name
        for name, split in needs.items()
        if split not in there and not {a.name for a in DATA_SETS[name]} <= archives
    ]


def typed(words: Sequence[str]) -> set[str]:
    """Names of the options among words, without their dashes."""
    names = (word.removeprefix("--") for word in words if word.startswith("--"))
    return {name.partition("=")[0].replace("_", "-") for name in names}


def check(entry: Entry, options: Options) -> Config:
    """The config of a row's training, refused before the start where train_voc.py would refuse it.

    A misspelt option ends the process.
    """
    if twice := typed(entry.arguments) & typed(options.common):
        raise UserError(f"--{min(twice)} is set by the table: take it out from behind --")
    if entry.preset not in PRESETS:
        raise UserError(cli.no_preset(entry.preset, PRESETS))
    own = {} if entry.row is None else {"weights": None}  # the first stage is still to run
    config = tyro.cli(
        Config,
        default=replace(PRESETS[entry.preset], **own),
        args=training(entry.preset, entry, options, weights_of(entry, options), Path(), 0)[3:],
        prog="train_voc.py",
        config=(tyro.conf.AvoidSubcommands,),
    )
    config = replace(config, model=configs.completed(config.model))
    try:
        configs.check(config)
        start_of(config.weights)
        start.refuse_without_data(config)
        if config.model_file is None:
            start.refuse_frozen_from_scratch(config, build(**asdict(config.model)))
    except UserError as error:
        raise UserError(f"{entry.label}: {error}") from None
    return config


TORCHVISION = """it starts from torchvision's weights of ImageNet, with another mean and scale of
colours, a ResNet also with the strides in its 3x3 and rates 1 and 2 in the first 3x3 of res4 and
res5; the paper's are VGG_ILSVRC_16_layers.caffemodel and MSRA's ResNet-101-model.caffemodel
""".strip().replace("\n", " ")


@cache
def start_of(weights: Path | None) -> tuple[str, str]:
    """What weights were trained on, ImageNet, COCO, scratch or what else they say; and how they
    differ from the paper's, or ""."""
    if weights is None:
        return "scratch", ""
    named = published.NAMES.get(str(weights))
    if named is not None and not weights.exists():  # downloaded when a run wants it
        source = {"trained_on": named.trained_on, "convention": "torchvision"}
        class_names = named.class_names
    else:
        _, meta = segmenter.read_weights(weights, answers=sources.Answers(fresh_head=True))
        source, class_names = meta.get("source") or {}, meta["class_names"]
    trained_on = source.get("trained_on") or ""
    if "COCO" in trained_on and "VOC" not in trained_on:
        return "COCO", ""
    if class_names and not trained_on.startswith("ImageNet"):
        return trained_on or f"{weights}, whose training is not known", ""
    convention = source.get("convention", "")
    of_torchvision = convention.startswith("torchvision") and "as caffe's" not in convention
    return "ImageNet", TORCHVISION if of_torchvision else ""


def weights_of(entry: Entry, options: Options) -> str | None:
    """What a row of the paper starts from; None where that stands behind "--", or for no row."""
    if entry.row is None or "weights" in typed(options.common):
        return None
    if entry.row.start == "COCO":
        return options.coco
    given = options.vgg if PRESETS[entry.preset].model.backbone == "vgg" else options.resnet
    return None if given == "none" else given


def script(name: str, *arguments: object) -> tuple[str, ...]:
    """A script of this folder as a command, with a path that can be typed from here."""
    path, here = Path(__file__).parent / name, Path.cwd()
    shown = path.relative_to(here) if path.is_relative_to(here) else path
    return (sys.executable, *map(str, (shown, *arguments)))


def training(
    preset: str, entry: Entry, options: Options, weights: object, folder: Path, seed: int
) -> tuple[str, ...]:
    """The command that trains a preset with the options of a row."""
    start = ("--weights", weights) if weights else ()
    data = ("--data.root", options.root) if options.root else ()
    own = (*options.common, *entry.arguments, *start, "--seed", seed, *data)
    kept = ("--workdir", folder, "--prepared-dir", options.prepared_dir)
    return script("train_voc.py", preset, *own, *kept)


def make_job(entry: Entry, seed: int, options: Options) -> sweeps.Job:
    """Train, search the CRF's parameters where they are wanted, and score or predict.

    A second stage for a test server starts from the run of the first and keeps its CRF, since its
    own network has seen val.
    """
    row, weights = entry.row, weights_of(entry, options)
    name = entry.preset if row else re.sub(r"[^a-zA-Z0-9.-]+", "_", entry.label)
    folder = searched = options.output / f"{name}_seed{seed}"
    commands = []
    first = PRESETS[entry.preset].weights if row and row.server else None
    if first is not None:
        searched = options.output / f"{first.name}_seed{seed}"
        commands.append(training(first.name, entry, options, weights, searched, seed))
        weights = searched
    commands.append(training(entry.preset, entry, options, weights, folder, seed))
    prepared, refine = ("--prepared-dir", options.prepared_dir), ()
    if options.crf and not (options.table and row.after is None):
        params = searched / "crf/params.json" if options.search else options.crf_params
        kind = ("--crf-normalization", options.crf_normalization)
        refine = ("--crf", *kind, *(("--crf-params", params) if params else ()))
        if options.search:
            number = ("--num-photographs", options.search)
            commands.insert(1, script("search_crf.py", searched, *number, *kind, *prepared))
    if row is None or row.server is None:
        bands = ("--trimap", options.trimap) if options.trimap else ()
        score = script("evaluate_voc.py", folder, *refine, *bands, *prepared)
        return sweeps.Job(folder, (*commands, score), "evaluation.json")
    given, archive = ("--submission", row.server, "--root", options.root), ""
    for wanted, used in ((row.before, ()), (row.after, refine)):
        if wanted is not None:
            to = "submission_crf" if used else "submission"
            words = (*given, *used, *prepared, "--output", folder / to)
            commands.append(script("predict.py", folder, *words))
            archive = f"{to}/results.{'tar' if row.server == 'voc' else 'zip'}"
    return sweeps.Job(folder, tuple(commands), archive)


def plan(options: Options, planned: Mapping[Entry, Config], jobs: Jobs) -> Iterator[str]:
    """Commands, disk and hours, in lines; `planned` has the config of each row."""
    disk, hours = PREPARED_GB if options.table in ON_VOC else 0.0, 0.0
    for name in downloads(options):
        disk += DOWNLOADS[name]
        yield f"download {name} to {options.root}: {DOWNLOADS[name]} GB"
    for (entry, seed), job in jobs.items():
        config = planned[entry]
        values = 2 * num_parameters(config.model, config.model_file, 21)  # with the momentum
        disk += (config.keep_checkpoints + 1) * 4 * values / 1e9
        yield f"{entry.label}, seed {seed}: {config.num_steps:,} updates of {config.batch_size}"
        if entry.row:
            where = f" (test server of {entry.row.server})" if entry.row.server else ""
            yield f"  the paper has {entry.row.scores}{where}"
            yield from (f"  {line}" for line in remarks(entry.row, config.weights))
        if options.table:
            stages = sum(command[1].endswith("train_voc.py") for command in job.commands)
            seconds = config.batch_size * seconds_a_photograph(config.model, config.data.crop_size)
            took = stages * config.num_steps * seconds / 3600
            hours += took
            yield f"  {seconds:,.2f} s an update here: {took:,.1f} hours"
        yield from (f"  {sweeps.pasteable(command)}" for command in job.commands)
    of_data = " and data" if options.table in ON_VOC else ""
    yield f"disk: about {disk:.1f} GB for checkpoints{of_data}"
    if hours:
        kind = jax.devices()[0].device_kind
        yield f"training: about {hours:,.0f} hours on one {kind}; scoring and searching come on top"


def remarks(row: paper.Row, weights: Path | None) -> list[str]:
    """What of a row is a guess, and what else differs from the paper."""
    _, difference = start_of(weights)
    told = [f"guess: {guess}" for guess in row.guesses]
    return [*told, f"differs: {difference}"] if difference else told


@cache
def num_parameters(model: ModelConfig, model_file: str | None, num_classes: int) -> int:
    network = segmenter.network(asdict(model), num_classes, model_file=model_file)
    params = train.variable_shapes(network)["params"]
    return sum(leaf.size for leaf in jax.tree.leaves(params))


@cache
def seconds_a_photograph(model: ModelConfig, crop_size: int) -> float:
    """Estimate: the faster of two updates of one photograph."""
    config = Config(model=model, batch_size=1)
    network = segmenter.trained_network(config, 21)
    _, optimizer = segmenter.solver_of(config)
    step = jax.jit(start.update_of(config, network, optimizer, axis_name=None))
    pixels = np.zeros((1, 1, crop_size, crop_size, 3), np.uint8)
    batch = Batch(pixels, pixels[..., 0], np.zeros((1, 1), np.int32))
    shapes = train.state_shapes(network, optimizer)
    state = jax.tree.map(lambda s: np.zeros(s.shape, s.dtype), shapes)
    times = []
    for _ in range(3):  # the first one compiles
        jax.block_until_ready(step(state, batch))
        times.append(time.monotonic())
    return min(np.diff(times))


def report(options: Options, jobs: Jobs, notes: list[str]) -> None:
    """Leaves and prints the table of what has finished, and its figures."""
    scored = {key: job for key, job in jobs.items() if job.result == "evaluation.json"}
    for (entry, seed), job in jobs.items():
        if (entry, seed) in scored:
            continue
        row, start = entry.row, weights_of(entry, options)
        notes.append(
            f"{entry.label}: {job.folder / job.result} is for the test server of {row.server}; the "
            f"paper's {row.scores} stands beside its answer alone"
        )
        if row.after is not None and not refined_as_the_paper(options):
            notes.append(f"{entry.label}: after the CRF it does not compare: {OTHER_CRF}")
        notes += [f"{entry.label}: {line}" for line in remarks(row, Path(start) if start else None)]
    lines = [f"# Table {options.table} of the paper" if options.table else "# Sweep", ""]
    if scored:
        lines += table_of(options, scored, notes)
    lines += [*(f"* {note}" for note in notes), ""]
    text = "\n".join([*lines, "```", shlex.join(["python", *sys.argv]), "```", ""])
    (options.output / "table.md").write_text(text)
    print(f"\n{text}\nwritten to {options.output}")


def table_of(options: Options, jobs: Jobs, notes: list[str]) -> list[str]:
    """The table in lines, with `notes` to it; leaves runs.csv and the figures."""
    rows: dict[Entry, list[Path]] = {}
    for (entry, _), job in jobs.items():
        rows.setdefault(entry, []).append(job.folder)
    columns = columns_of(rows)
    results = [read_result(row.label, f, columns) for row, own in rows.items() for f in own]
    compared = {row.label: beside(row, own[0], options) for row, own in rows.items()}
    for remark in dict.fromkeys(line for _, told in compared.values() for line in told):
        about = [label for label, (_, told) in compared.items() if remark in told]
        notes.append(f"{'all rows' if len(about) == len(rows) > 1 else '; '.join(about)}: {remark}")
    notes += sweeps.comparisons(results)
    notes += ["runs.csv has the command, seconds and device of each run; folders, report.html"]
    sweeps.write_csv(options.output / "runs.csv", results)
    figures.save(figures.sweep(sweeps.scores(results)), options.output / "figure.png")
    if options.trimap:
        curves = {}
        for (row, seed), job in jobs.items():  # before the CRF, then after it
            values = np.loadtxt(job.folder / "trimap.csv", delimiter=",", skiprows=1, usecols=2)
            curves[f"{row.label}, seed {seed}"] = [*values.reshape(-1, options.trimap)]
        figures.save(figures.trimap(curves), options.output / "trimap.png")
    table = sweeps.markdown(results, published={row: pair for row, (pair, _) in compared.items()})
    device = sweeps.either(result.device for result in results)
    run = workdir.read_run(next(iter(jobs.values())).folder)
    sizes = run.record["split_sizes"].items()
    told = " and scored on ".join(f"{split} ({size:,} photographs)" for split, size in sizes)
    about = f"Mean and deviation over seeds, on {device}. Trained on {told} of "
    about += f"{run.config.data.root or 'drawn scenes'}."
    return [table, about, "", *([DAGGER] if "†" in table else [])]


DAGGER = """† as large as the score map of a training crop, or larger: every tap of the kernel but
the middle one reads padding, which makes it a 1x1.
"""


def columns_of(rows: Mapping[Entry, list[Path]]) -> list[str]:
    """Options that the rows set, and those in which the runs differ."""
    own = {name.replace("-", "_") for entry in rows for name in typed(entry.arguments)}
    folders = [folder for of_row in rows.values() for folder in of_row]
    runs = [dict(configs.result_fields(workdir.read_run(folder).config)) for folder in folders]
    differ = {name for name in runs[0] if len({repr(run[name]) for run in runs}) > 1}
    return [name for name in runs[0] if name in (own | differ) - {"seed", "fresh_head"}]


def read_result(label: str, folder: Path, columns: Sequence[str]) -> sweeps.Result:
    """What a finished run gave, and what was trained, from its work folder."""
    run, entry = workdir.read_run(folder), json.loads((folder / "entry.json").read_text())
    scores = json.loads((folder / "evaluation.json").read_text())
    rates = [r.get("images_per_second") for r in workdir.read_metrics(folder)]
    return sweeps.Result(
        row=label,
        seed=run.config.seed,
        settings=settings(run.config, columns),
        parameters=num_parameters(run.config.model, run.config.model_file, len(run.class_names)),
        training_images_per_second=float(np.median([rate for rate in rates if rate])),
        training_seconds=reports.training_seconds(folder, run.record),
        mean_iou=scores["network"]["mean_iou"],
        mean_iou_after_crf=scores.get("network + CRF", {}).get("mean_iou"),
        command=entry["command"],
        device=entry["device"],
    )


def settings(config: Config, columns: Sequence[str]) -> dict[str, str]:
    """The columns of a run; where rates are one, the fields of view of the head and the network.

    A rate has a dagger where it leaves the score map.
    """
    values = ((name, value) for name, value in configs.result_fields(config) if name in columns)
    shown = {n: ", ".join(map(str, v if isinstance(v, tuple) else (v,))) for n, v in values}
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
    row, run = entry.row, workdir.read_run(folder)
    if row is None:
        return (None, None), []
    lines = remarks(row, run.config.weights)
    if reason := next(differences(row, run), None):
        return (None, None), [f"not beside the paper: {reason}", *lines]
    if row.after is None or refined_as_the_paper(options):
        return (row.before, row.after), lines
    return (row.before, None), [f"after the CRF not beside the paper: {OTHER_CRF}", *lines]


OTHER_CRF = "it was left out or not searched, or its messages are not normalised per pixel"


def refined_as_the_paper(options: Options) -> bool:
    """Whether the paper's numbers after the CRF compare with ours."""
    return bool(options.crf and options.search) and options.crf_normalization == "per_pixel"


def differences(row: paper.Row, run: workdir.Run) -> Iterator[str]:
    """In what a run is another than that of the paper's row: data, start, options."""
    data, (known, _) = paper.DATA[row.table], start_of(run.config.weights)
    sizes = tuple(run.record["split_sizes"].values())
    if (sizes, len(run.class_names)) != (data.photographs, data.num_classes):
        yield f"the data are others than {data.name}"
    if known != row.start:
        yield f"the start is {known}, the paper's is {row.start}"
    preset = PRESETS[row.preset]
    wanted = dict(configs.result_fields(replace(preset, model=configs.completed(preset.model))))
    free = {"seed", "data.train_split", "fresh_head", "model.stride_placement"}
    for name, value in configs.result_fields(run.config):
        if name not in free and value != wanted[name]:
            yield f"{name} is {value}, the paper's row has {wanted[name]}"
    for name, value in asdict(run.config.eval).items():
        if value != (its := getattr(preset.eval, name)):
            yield f"eval.{name} is {value}, the paper's row has {its}"
    if run.config.data.train_masks is not None:
        yield f"it is trained on the masks in {run.config.data.train_masks}"


if __name__ == "__main__":
    cli.run(main, cli.parse(Options, __doc__))
