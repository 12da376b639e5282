"""What sweep.py, sweep_aspp.py and ablations.py share: from entries to runs, tables, a figure."""

import json
import re
import shlex
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import cli
import jax
import numpy as np
import options as names
import splits
from sweep_options import Options

from deeplab_jax import config as configs
from deeplab_jax import figures, paper, presets, runs, sweeps, tables
from deeplab_jax.config import Config
from deeplab_jax.data import builders
from deeplab_jax.models.deeplab import OUTPUT_STRIDE, DeepLabV2
from deeplab_jax.types import VOC_CLASS_NAMES, UserError

EXPERIMENTS = Path(__file__).parent

Settings = Callable[[Config, DeepLabV2], Mapping[str, str]]


@dataclass(frozen=True)
class Entry:
    """A row of the table: a preset of train_voc.py, and the options that make this row."""

    label: str
    preset: str
    arguments: tuple[str, ...]


@dataclass(frozen=True)
class Table:
    """The rows that a script compares."""

    title: str
    entries: Sequence[Entry]
    settings: Settings
    """Reads the columns that tell rows apart from a trained run."""
    published: Mapping[str, tuple[float | None, float | None]]
    """The paper's mean IoU in percent by row: before the CRF, after it."""
    source: str
    """Where those stand in the paper; "" where the paper has no such table."""
    starts: Mapping[str, paper.Start] = field(default_factory=dict)
    """What the paper's network of a row starts from."""
    photographs: tuple[int, int] = (10_582, 1449)
    """Numbers of photographs in the splits that the paper trains and scores on."""
    num_classes: int = 21
    data: str = "trainaug to val of PASCAL VOC 2012"
    """Those splits, in words, for the text under the table."""


def jobs_of(
    entries: Sequence[Entry], options: Options, output: Path, common: tuple[str, ...]
) -> dict[tuple[str, int], sweeps.Job]:
    """A job for each row and seed; all rows have their first seed before any has its second.

    Raises:
      UserError: an option behind "--" is one that the table varies, or its preset is unknown.
    """
    for entry in entries:
        own, all_rows = (names.typed_fields(w) for w in (entry.arguments, in_full(common)))
        # The weights of a row replace those of all rows.
        if twice := (own - {"weights"}) & all_rows:
            option = min(twice).replace("_", "-")
            raise UserError(f"--{option} is set by the table: take it out from behind --")
        if entry.preset not in presets.PRESETS:
            raise UserError(
                f"there is no preset {entry.preset}; choose from {', '.join(presets.PRESETS)}"
            )
        if [other.label for other in entries].count(entry.label) > 1:
            raise UserError(f"{entry.label} is asked for twice")
    return {
        (entry.label, seed): make_job(entry, seed, options, output, common)
        for seed in options.seeds
        for entry in entries
    }


def in_full(arguments: Sequence[str]) -> list[str]:
    """Options of train_voc.py under their whole names."""
    return names.canonical(Config, arguments)


def make_job(
    entry: Entry, seed: int, options: Options, output: Path, common: tuple[str, ...]
) -> sweeps.Job:
    """Train, then score."""
    folder = output / f"{re.sub(r'[^a-zA-Z0-9.-]+', '_', entry.label)}_seed{seed}"
    data = ("--data.root", str(options.root)) if options.root else ()
    shared = ("--prepared-dir", str(options.prepared_dir))
    train_it = ("train_voc.py", entry.preset, *common, *entry.arguments, "--seed", str(seed), *data)
    refine = ["--crf"] * options.crf
    if options.crf and options.crf_params:
        refine += ["--crf-params", options.crf_params]
    if options.crf and options.crf_normalization != "symmetric":
        refine += ["--crf-normalization", options.crf_normalization]
    score_it = ("evaluate_voc.py", str(folder), *refine)
    return sweeps.Job(
        folder,
        (
            script(*train_it, "--workdir", str(folder), *shared),
            script(*score_it, *shared),
        ),
        result="evaluation.json",
    )


def script(name: str, *arguments: str) -> tuple[str, ...]:
    """A script of this folder as a command, with a path that can be typed from here."""
    path = EXPERIMENTS / name
    here = Path.cwd()
    return (
        sys.executable,
        str(path.relative_to(here) if path.is_relative_to(here) else path),
        *arguments,
    )


def run(table: Table, options: Options, common: tuple[str, ...], *, output: Path) -> None:
    """Runs what is missing; leaves table.md, table.csv, runs.csv and figure.png in `output`."""
    cli.check_positive(parallel=options.parallel)
    jobs = jobs_of(table.entries, options, output, common)
    if not jobs:
        raise UserError("there is nothing to run: give seeds and rows")
    check_commands(jobs)
    if options.dry_run:
        for job in jobs.values():
            print("\n".join(sweeps.pasteable(command) for command in job.commands))
        return
    device, slots = sweeps.find_devices(options.parallel)
    print(f"{len(jobs)} runs, {len(slots)} at a time, on {device}; output in {output}", flush=True)
    try:
        with cli.signals_raise():
            failed = sweeps.run(list(jobs.values()), slots, device=device)
    except KeyboardInterrupt:
        done = sum(job.finished for job in jobs.values())
        cli.stop(f", {done} of {len(jobs)} runs are finished and the others have saved their work")
    finished = {key: job for key, job in jobs.items() if job.finished and job.folder not in failed}
    results = [
        read_result(row, job.folder, table.settings)
        for entry in table.entries
        for (row, _), job in finished.items()
        if row == entry.label
    ]
    if results:
        conditions, same_data = describe([job.folder for job in finished.values()], options, table)
        reasons = differences(table, finished, same_data=same_data)
        write(table, results, output, conditions=conditions, reasons=reasons, failed=failed)
    if failed:
        reasons = "; ".join(f"{folder}: {reason}" for folder, reason in failed.items())
        raise UserError(f"{len(failed)} of {len(jobs)} runs failed: {reasons}")


def check_commands(jobs: Mapping[tuple[str, int], sweeps.Job]) -> None:
    """Refuses before the start what train_voc.py would refuse, with one check for each row.

    Raises:
      UserError: a combination that cannot be trained. A misspelt option ends the process.
    """
    for label, command in {label: job.commands[0] for (label, _), job in jobs.items()}.items():
        _, script, preset, *arguments = command
        config = cli.read_config(presets.PRESETS[preset], in_full(arguments), script=script)
        try:
            configs.check(config)
        except UserError as error:
            raise UserError(f"{label}: {error}") from None


def read_result(label: str, folder: Path, settings: Settings) -> tables.Result:
    """What a finished run gave, and what was trained, from its work folder."""
    model, variables, _ = runs.load(folder)
    config, _ = runs.read_config(folder)
    scores = json.loads((folder / "evaluation.json").read_text())
    entry = json.loads((folder / "entry.json").read_text())
    speed = [r for r in runs.read_metrics(folder) if "images_per_second" in r]
    steps = np.diff([0, *(r["step"] for r in speed)])
    rates = np.array([r["images_per_second"] for r in speed])
    return tables.Result(
        label=label,
        seed=config.seed,
        settings=settings(config, model),
        parameters=sum(leaf.size for leaf in jax.tree.leaves(variables["params"])),
        images_per_second=float(np.median(rates)),
        seconds=float((steps * config.batch_size / rates).sum()),
        before=scores["network"]["mean_iou"],
        after=scores.get("network + CRF", {}).get("mean_iou"),
        command=entry["command"],
        device=entry["device"],
    )


def rates_column(config: Config, model: DeepLabV2) -> str:
    """The rates of the trained model, with a dagger where they leave its score map."""
    return tables.mark_rates(model.head.rates, -(-config.data.crop_size // OUTPUT_STRIDE))


def differences(
    table: Table, jobs: Mapping[tuple[str, int], sweeps.Job], *, same_data: bool
) -> dict[str, str]:
    """Why the paper's number of a row cannot stand beside ours, by row; only rows that have one.

    They compare where data and splits, the weights to start from, and the number of updates are
    the same.
    """
    found = {}
    for (label, _), job in jobs.items():
        if label not in table.published:
            continue
        config, _ = runs.read_config(job.folder)
        entry = next(entry for entry in table.entries if entry.label == label)
        recipe, start = presets.PRESETS[entry.preset], start_of(config.weights)
        wanted = table.starts.get(label)
        if not same_data:
            found[label] = f"the data are others than {table.data}"
        elif wanted is not None and start != wanted:
            found[label] = f"the start is {start}, the paper's is {wanted}"
        elif (config.num_steps, config.batch_size) != (recipe.num_steps, recipe.batch_size):
            found[label] = (
                f"{config.num_steps:,} updates of {config.batch_size}, the paper's are "
                f"{recipe.num_steps:,} of {recipe.batch_size}"
            )
    return found


@cache
def start_of(weights: Path | None) -> str:
    """What a run started from: ImageNet, COCO, scratch, or what else its weights say."""
    if weights is None:
        return "scratch"
    try:
        _, meta = runs.read_weights(weights)
    except UserError:
        return f"{weights}, which is not there any more"
    trained_on = (meta.get("source") or {}).get("trained_on") or ""
    if "COCO" in trained_on and "VOC" not in trained_on:
        return "COCO"
    if trained_on.startswith("ImageNet") or not meta["class_names"]:
        return "ImageNet"
    return trained_on or f"{weights}, whose training is not known"


def describe(
    folders: Sequence[Path], options: Options, table: Table | None = None
) -> tuple[str, bool]:
    """How the runs were trained, as a sentence, and whether on the data of the paper's table.

    Where no table is given those are trainaug, 10,582 photographs, and val, 1,449, of PASCAL VOC
    2012.
    """
    wanted = table or Table("", (), lambda config, model: {}, {}, "")
    all_configs = [runs.read_config(folder)[0] for folder in folders]
    config, class_names = runs.read_config(folders[0])
    data = config.data
    names = (data.train_split, data.val_split)
    name, same = "drawn scenes", False
    if data.root is not None:
        dataset = builders.open_dataset(
            data.root,
            prepared_dir=options.prepared_dir,
            splits=names,
            reading=splits.reading_of(config),
        )
        name, sizes = dataset.name, tuple(len(dataset.splits[split]) for split in names)
        same = len(class_names) == wanted.num_classes and sizes == wanted.photographs
        if wanted.num_classes == len(VOC_CLASS_NAMES):
            same = same and tuple(class_names) == VOC_CLASS_NAMES
    starts = (f"from {c.weights.name}" if c.weights else "from scratch" for c in all_configs)
    sentence = (
        f"Trained {either(starts)} on {names[0]} and scored on {names[1]} of {name}; crop "
        f"{either(c.data.crop_size for c in all_configs)}, "
        f"{either(f'{c.num_steps:,}' for c in all_configs)} updates of "
        f"{either(c.batch_size for c in all_configs)} photographs."
    )
    return sentence, same


def either(values: Iterable[object]) -> str:
    """Each value once, in order."""
    return " or ".join(dict.fromkeys(map(str, values)))


def write(
    table: Table,
    results: Sequence[tables.Result],
    output: Path,
    *,
    conditions: str,
    reasons: Mapping[str, str],
    failed: Mapping[Path, str],
) -> None:
    """Tables and figure of what has finished."""
    published = {k: v for k, v in table.published.items() if k not in reasons}
    if not table.source:
        beside = ""
    elif published:
        beside = f" The paper's numbers, {table.source}, stand where they compare: {table.data}."
    else:
        beside = (
            f" The paper's {table.source} is not shown, since it does not compare; it is of "
            f"{table.data}."
        )
    lines = [
        f"# {table.title}",
        "",
        tables.markdown(results, published=published),
        f"Mean and standard deviation over seeds, on {either(r.device for r in results)}. "
        f"{conditions}{beside}",
    ]
    if any("†" in value for result in results for value in result.settings.values()):
        lines += [
            "",
            "† as large as the score map of a training crop, or larger: every tap of the kernel "
            "but the middle one reads padding, which makes it a 1x1.",
        ]
    lines += ["", *(f"* {label}: not beside the paper: {why}" for label, why in reasons.items())]
    lines += ["", *(f"* {sentence}" for sentence in tables.verdicts(results))]
    lines += [f"* {folder}: failed: {reason}" for folder, reason in failed.items()]
    lines += ["", "runs.csv has the command, seconds and device of each run.", ""]
    lines += ["```", shlex.join(["python", *sys.orig_argv[1:]]), "```", ""]
    text = "\n".join(lines)
    (output / "table.md").write_text(text)
    tables.write_csv(output / "table.csv", tables.summaries(results))
    tables.write_csv(output / "runs.csv", tables.records(results))
    groups = {
        label: ([r.before for r in rows], [r.after for r in rows if r.after is not None])
        for label, rows in tables.group(results).items()
    }
    figures.save(figures.sweep(groups), output / "figure.png")
    print(f"\n{text}\ntables and figure are in {output}")
