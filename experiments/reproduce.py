"""From nothing to a table of the paper: data, training, search of the CRF, scores.

    python experiments/reproduce.py table4 --root data/voc --coco init.caffemodel
    python experiments/reproduce.py table3 --root data/voc --dry-run
    python experiments/reproduce.py test_vgg --root data/voc

table1 to table4; figure10, the trimap curves of VGG-16 and ResNet-101; test_vgg and test_resnet,
the two stages for PASCAL VOC's test server. VOC 2012 and SBD are downloaded to --root where they
are not there, and checked. Each row is trained by its preset, the CRF's parameters are searched for
each network that the paper refines, and all are scored as the paper scores, per-pixel normalization
of the CRF included. The same command typed again goes on where it was, after a kill too. Leaves the
paper's table with ours beside it, such as table4.md, and a link to the report of each run.

--dry-run prints the plan: commands, disk, and hours by a few timed updates on this machine. Options
behind "--" go to every train_voc.py. One run of ResNet-101 takes days on a CPU.
"""

import json
import subprocess
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import bench
import cli
import jax
import numpy as np
import sweep_options
import tyro

from deeplab_jax import paper, presets, runs, sweeps, tables, train
from deeplab_jax.config import Config
from deeplab_jax.data import layouts, prepare
from deeplab_jax.types import IGNORE_LABEL, Batch, UserError

Target = Literal["table1", "table2", "table3", "table4", "figure10", "test_vgg", "test_resnet"]
ROWS = {
    "figure10": ("table3_aspp_l", "table4_msc_coco_aug_aspp"),
    "test_vgg": ("table3_aspp_l", "test_vgg16"),
    "test_resnet": ("table4_msc_coco_aug_aspp", "test_resnet101"),
}
"""Presets of the targets other than tables, in the order they are trained in."""

DOWNLOAD_GB, PREPARED_GB = 3.3, 4.5
"""Size of the archives of VOC 2012 and SBD; about the size of the unpacked and prepared data."""
TIMED_UPDATES = 2


@dataclass(frozen=True)
class Options:
    target: Annotated[Target, tyro.conf.Positional]
    """What to reproduce."""
    root: Path
    """Folder of PASCAL VOC 2012 with SBD; they are downloaded to it where it lacks them."""
    vgg: str = "imagenet-vgg16"
    """Weights of ImageNet for VGG-16: a file, a name, or none to start from scratch."""
    resnet: str = "imagenet-resnet101"
    """Weights of ImageNet for ResNet-101, likewise."""
    coco: str | None = None
    """Weights of MS-COCO for ResNet-101, such as the authors' init.caffemodel; rows that start from
    them are left out where none are given."""
    seeds: tuple[int, ...] = (0,)
    """Each row is trained once with each seed."""
    num_photographs: int = 100
    """Photographs that the CRF's parameters are searched on; 0: the published parameters."""
    output: Path | None = None
    """Folder of all runs and the table; runs/reproduce where none is given, so that targets share
    their runs."""
    parallel: int | None = None
    """Runs at a time; None: one a device."""
    prepared_dir: Path = Path("prepared")
    """Where prepared data sets are kept."""
    dry_run: bool = False
    """Print the plan and do nothing."""
    timed: bool = True
    """Time updates of each network for the plan."""


def main(options: Options, common: tuple[str, ...]) -> None:
    output = options.output or Path("runs/reproduce")
    rows = wanted_rows(options)
    jobs = {
        (row.label, seed): make_job(row, seed, options, output, common)
        for seed in options.seeds
        for row in rows
    }
    bench.check_commands(jobs)
    if options.dry_run:
        return print("\n".join(plan(options, rows, jobs)))
    output.mkdir(parents=True, exist_ok=True)
    prepare_data(options)
    device, slots = sweeps.find_devices(options.parallel)
    print(f"{len(jobs)} runs, {len(slots)} at a time, on {device}; output in {output}", flush=True)
    failed: dict[Path, str] = {}
    for stage in stages(options, rows):  # a second stage starts from a run of the first
        of_stage = [job for (label, _), job in jobs.items() if label in stage]
        failed |= sweeps.run(of_stage, slots, device=device)
    done = {key: job for key, job in jobs.items() if job.finished and job.folder not in failed}
    if done:
        report(options, rows, done, output, device)
    if options.target == "figure10" and not failed:
        draw_trimaps(done, options, output)
    if failed:
        reasons = "; ".join(f"{folder}: {reason}" for folder, reason in failed.items())
        raise UserError(f"{len(failed)} of {len(jobs)} runs failed: {reasons}")


def wanted_rows(options: Options) -> list[paper.Row]:
    """The rows of the target whose weights to start from are given."""
    if options.target.startswith("table"):
        rows = list(paper.rows(options.target.removeprefix("table")))
    else:
        chosen = ROWS[options.target]
        rows = [next(row for row in paper.ROWS if row.preset == name) for name in chosen]
    there = [row for row in rows if row.start != "COCO" or options.coco]
    if len(there) < len(rows) and not options.target.startswith("table"):
        raise UserError(
            f"{options.target} starts from weights of MS-COCO: give --coco FILE, such as the "
            "authors' init.caffemodel"
        )
    return there


def stages(options: Options, rows: Sequence[paper.Row]) -> list[set[str]]:
    """Labels of the rows that may be trained at the same time."""
    if options.target.startswith("test"):
        return [{row.label} for row in rows]
    return [{row.label for row in rows}]


def folder_of(row: paper.Row, seed: int, output: Path) -> Path:
    return output / f"{row.preset}_seed{seed}"


def make_job(
    row: paper.Row, seed: int, options: Options, output: Path, common: tuple[str, ...]
) -> sweeps.Job:
    """Train, search the CRF where the paper has one, score, and report."""
    folder = folder_of(row, seed, output)
    weights = weights_of(row, seed, options, output)
    start = () if weights in (None, "none") else ("--weights", str(weights))
    prepared = ("--prepared-dir", str(options.prepared_dir))
    data = ("--data.root", str(options.root), "--seed", str(seed))
    commands = [
        bench.script(
            *("train_voc.py", row.preset, *start, *common, *data),
            *("--workdir", str(folder), *prepared),
        )
    ]
    score = ["evaluate_voc.py", str(folder)]
    normalization = ("--crf-normalization", "per_pixel")
    if row.after is not None:
        score += ["--crf", *normalization]
        if options.num_photographs:
            grid = ("--num-photographs", str(options.num_photographs), *normalization)
            commands.append(bench.script("search_crf.py", str(folder), *grid, *prepared))
            score += ["--crf-params", str(folder / "crf/params.json")]
    commands.append(bench.script("make_report.py", str(folder), *prepared))
    commands.append(bench.script(*score, *prepared))
    return sweeps.Job(folder, tuple(commands), result="evaluation.json")


def weights_of(row: paper.Row, seed: int, options: Options, output: Path) -> Path | str | None:
    """What a row starts from: published weights, or the run of its first stage."""
    if row.table == "test":
        first = presets.PRESETS[row.preset].weights.name
        return output / f"{first}_seed{seed}"
    if row.start == "COCO":
        return options.coco
    backbone = presets.PRESETS[row.preset].model.backbone
    return options.vgg if backbone == "vgg" else options.resnet


def has_data(root: Path) -> bool:
    """Whether VOC 2012 and SBD are there, unpacked or as archives."""
    if not root.is_dir():
        return False
    folder = layouts.find_folder(root)
    if folder is not None and layouts.is_voc2012(folder) and "train_aug" in folder.splits:
        return True
    return len(prepare.find_archives(root)) > 1


def prepare_data(options: Options) -> None:
    """Downloads what is missing, and looks for faults in a sample of the photographs."""
    if not has_data(options.root):
        run(bench.script("download_data.py", "voc_aug", str(options.root)))
    splits = ("--splits", "train_aug", "val", "--sample", "200")
    prepared = ("--prepared-dir", str(options.prepared_dir))
    run(bench.script("check_data.py", str(options.root), *splits, *prepared))


def run(command: tuple[str, ...]) -> None:
    """A command in a process of its own.

    Raises:
      UserError: it failed; it has said why.
    """
    print(sweeps.pasteable(command), flush=True)
    if status := subprocess.run(command).returncode:
        raise UserError(f"{sweeps.pasteable(command)} ended with status {status}, see above")


def draw_trimaps(jobs: dict[tuple[str, int], sweeps.Job], options: Options, output: Path) -> None:
    """Figure 10: both networks, each with the parameters published for it."""
    folders = [str(job.folder) for (_, seed), job in jobs.items() if seed == options.seeds[0]]
    refined = ("--crf", "--crf-normalization", "per_pixel")
    paths = (
        "--output",
        str(output / "figure10.png"),
        "--prepared-dir",
        str(options.prepared_dir),
    )
    run(bench.script("trimap.py", *folders, *refined, *paths))


def report(
    options: Options,
    rows: Sequence[paper.Row],
    jobs: dict[tuple[str, int], sweeps.Job],
    output: Path,
    device: str,
) -> None:
    """Prints and leaves the paper's table with ours beside it."""
    conditions, same_data = bench.describe(
        [job.folder for job in jobs.values()],
        sweep_options.Options(root=options.root, prepared_dir=options.prepared_dir),
    )
    table = bench.Table(
        options.target,
        [bench.Entry(row.label, row.preset, ()) for row in rows],
        settings=lambda config, model: {},
        published={row.label: (row.before, row.after) for row in rows},
        source=options.target,
        starts={row.label: row.start for row in rows},
    )
    reasons = bench.differences(table, jobs, same_data=same_data)
    lines = [
        f"# {options.target} of the paper",
        "",
        "| row | paper | here | paper, CRF | here, CRF | runs |",
        "|---|---|---|---|---|---|",
        *(line(row, jobs, reasons, output) for row in rows),
        "",
        f"Mean IoU in percent, over seeds where there are several, on {device}. {conditions}",
        "",
        *(f"* {label}: not beside the paper: {why}" for label, why in reasons.items()),
        *(f"* {row.label}: a guess: {guess}" for row in rows for guess in row.guesses),
    ]
    text = "\n".join(lines) + "\n"
    (output / f"{options.target}.md").write_text(text)
    print(f"\n{text}\nwritten to {output / f'{options.target}.md'}")


def line(
    row: paper.Row,
    jobs: dict[tuple[str, int], sweeps.Job],
    reasons: dict[str, str],
    output: Path,
) -> str:
    folders = [job.folder for (label, _), job in jobs.items() if label == row.label]
    scores = [json.loads((folder / "evaluation.json").read_text()) for folder in folders]
    published = [row.before, row.after] if row.label not in reasons else [None, None]
    cells = []
    for number, name in zip(published, ("network", "network + CRF"), strict=True):
        ours = [score[name]["mean_iou"] for score in scores if name in score]
        cells.append("" if number is None else f"{number:.2f}")
        cells.append(tables.percent(ours) if ours else "")
    links = [f"[{f.name}]({(f / 'report.html').relative_to(output)})" for f in folders]
    return f"| {row.label} | {' | '.join(cells)} | {' '.join(links)} |"


def plan(
    options: Options, rows: Sequence[paper.Row], jobs: dict[tuple[str, int], sweeps.Job]
) -> Iterator[str]:
    """Commands, disk and hours, in lines."""
    if not has_data(options.root):
        yield f"download VOC 2012 and SBD to {options.root}: {DOWNLOAD_GB} GB"
    disk = PREPARED_GB + (0 if has_data(options.root) else DOWNLOAD_GB)
    seconds: dict[str, float] = {}
    hours = 0.0
    for (label, seed), job in jobs.items():
        row = next(row for row in rows if row.label == label)
        config = config_of(job)
        disk += checkpoint_gb(config)
        yield f"{row.preset}, seed {seed}: {config.num_steps:,} updates of {config.batch_size}"
        if options.timed:
            key = repr((config.model, config.data.crop_size, config.batch_size))
            if key not in seconds:
                seconds[key] = seconds_an_update(config)
            took = config.num_steps * seconds[key] / 3600
            hours += took
            yield f"  {seconds[key]:.3g} s an update here: {took:.3g} hours"
        yield from (f"  {sweeps.pasteable(command)}" for command in job.commands)
    yield f"disk: about {disk:.1f} GB"
    if options.timed:
        yield (
            f"training: about {hours:.3g} hours on one {jax.devices()[0].device_kind}; scoring and "
            "the search of the CRF come on top"
        )


def config_of(job: sweeps.Job) -> Config:
    """The config of the job's train_voc.py."""
    _, _, preset, *arguments = job.commands[0]
    return tyro.cli(Config, default=presets.PRESETS[preset], args=arguments, config=cli.STYLE)


def checkpoint_gb(config: Config) -> float:
    """Checkpoints of a run: parameters and momentum, float32."""
    shapes = train.variable_shapes(runs.trained_network(config, 21))
    count = sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(shapes))
    return (config.keep_checkpoints + 1) * 2 * 4 * count / 1e9


def seconds_an_update(config: Config) -> float:
    """Estimate: the fastest of a few updates of one random photograph, times the batch size."""
    model = runs.trained_network(config, 21)
    _, optimizer = runs.solver_of(config)
    one = replace(config, batch_size=1, micro_batch_size=1)
    step = jax.jit(runs.make_step(one, model, optimizer, axis_name=None))
    side = config.data.crop_size
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (1, 1, side, side, 3), np.uint8)
    labels = np.full((1, 1, side, side), IGNORE_LABEL, np.uint8)
    labels[..., ::8, ::8] = 1
    batch = Batch(image, labels, np.zeros((1, 1), np.int32))
    shapes = train.variable_shapes(model)
    state = train.init_state(jax.tree.map(lambda s: np.zeros(s.shape, s.dtype), shapes), optimizer)
    jax.block_until_ready(step(state, batch))
    times = []
    for _ in range(TIMED_UPDATES):
        since = time.monotonic()
        jax.block_until_ready(step(state, batch))
        times.append(time.monotonic() - since)
    return min(times) * config.batch_size


if __name__ == "__main__":
    common = cli.split_arguments()
    cli.run(partial(main, common=common), cli.parse(Options, __doc__))
