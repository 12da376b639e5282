"""Find CRF parameters for a trained network by the paper's cross-validation.

    python experiments/search_crf.py runs/resnet101_aspp_msc
    python experiments/search_crf.py runs/small --num-photographs 20 --grid.sigma-xy 20 40 60
    python experiments/evaluate_voc.py runs/small --crf --crf-params runs/small/crf/params.json

Probabilities of some photographs of the val split are computed once. A coarse grid is tried on
them, then finer steps around its best. The same command typed again goes on where it was. The
folder, SOURCE/crf or --output, then holds params.json for evaluate_voc.py and predict.py,
trials.jsonl, table.md and map.png. The paper's grid takes 128 trials of 100 photographs: about
two hours on two cores for photographs of 375x500.
"""

import json
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from itertools import product
from pathlib import Path
from typing import Annotated

import cli
import numpy as np
import tyro
from matplotlib.figure import Figure

from deeplab_jax import crf, evaluation, figures, load, metrics, segmenter, storage, workdir
from deeplab_jax.types import UserError


@dataclass(frozen=True)
class Grid:
    """Values to try of each parameter, ascending and evenly spaced; every combination counts.

    The paper cross-validates three parameters and keeps weight and width of the smoothness kernel
    at 3. The values that its authors publish show that those two were searched as well.
    """

    appearance_weight: tuple[float, ...] = (3.0, 4.0, 5.0, 6.0)
    """w1 (Section 4.1.1)."""
    sigma_xy: tuple[float, ...] = (30.0, 40.0, 50.0, 60.0, 70.0, 80.0, 90.0, 100.0)
    """Sigma alpha in pixels (Section 4.1.1)."""
    sigma_rgb: tuple[float, ...] = (3.0, 4.0, 5.0, 6.0)
    """Sigma beta in colour steps (Section 4.1.1)."""
    smoothness_weight: tuple[float, ...] = ()
    """w2; none: it stays fixed."""
    sigma_smoothness: tuple[float, ...] = ()
    """Sigma gamma in pixels; none: it stays fixed."""


@dataclass(frozen=True)
class Options(cli.ScoringOptions):
    source: Annotated[Path, tyro.conf.Positional]
    """Work folder of a run, or a weight file."""
    split: str | None = None
    """List to draw photographs from; the run's val split where none is given."""
    num_photographs: int = 100
    """Photographs to search on, drawn at random (Section 4.1.1)."""
    every: int | None = None
    """Take every Nth photograph of the list instead of --num-photographs; the authors' script can
    take every 8th."""
    seed: int = 0
    """Seed of the choice of photographs."""
    grid: Grid = Grid()
    """Values of the first round."""
    rounds: int = 2
    """Number of rounds; each after the first halves the steps around the best so far."""
    smoothness_weight: float = 3.0
    """w2 (Section 4.1.1), where the grid has no values of it."""
    sigma_smoothness: float = 3.0
    """Sigma gamma in pixels (Section 4.1.1), where the grid has no values of it."""
    num_iterations: int = 10
    """Iterations of mean field (Section 4.1.1)."""
    output: Path | None = None
    """Folder of the search; SOURCE/crf where none is given."""


def main(options: Options) -> None:
    cli.check_positive(every=options.every)
    found = load(options.source)
    config = segmenter.config_of(options.source, found.meta)
    split = options.split or config.data.val_split
    source = options.open_split(config, split, found.class_names)
    at = options.source
    beside = at / "crf" if (at / "config.json").is_file() else at.with_suffix(".crf")
    folder = options.output or beside
    with workdir.hold(folder):
        remember(folder, options, split=split, step=found.meta.get("step"))
        chosen, how = choose(len(source), options), options.inference(config)
        cache_probs(folder, found.model, found.variables, source, chosen.tolist(), how)
        refine = options.refining(segmenter.crf_bands(config))
        refine = partial(refine, num_iterations=options.num_iterations)
        score = partial(mean_iou, folder, source, chosen, refine)
        before = score(None)
        report(folder, run_trials(folder, options, score), before, num_images=len(chosen))


def choose(number: int, options: Options) -> np.ndarray:
    """Numbers of the photographs that are searched on."""
    if options.every is not None:
        return np.arange(0, number, options.every)
    return np.random.default_rng(options.seed).permutation(number)[: options.num_photographs]


def remember(folder: Path, options: Options, **found) -> None:
    """Refuses a folder that holds a search for something else."""
    free = {"grid", "rounds", "prepared_dir", "output"}
    values = {k: v for k, v in asdict(options).items() if k not in free} | found
    now = json.loads(json.dumps(values, default=str))
    path = folder / "search.json"
    before = json.loads(path.read_text()) if path.exists() else now
    defaults = asdict(Options(options.source))
    for name, value in now.items():
        if (was := before.get(name, defaults.get(name))) != value:
            raise UserError(
                f"{folder} holds a search with {name} {was}, and {value} was asked for; choose "
                "another --output"
            )
    path.write_text(json.dumps(now, indent=2) + "\n")


def combinations(grid: Grid, fixed: crf.CRFParams) -> list[crf.CRFParams]:
    """All combinations; what the grid has no values of is that of `fixed`."""
    values = (getattr(grid, name) or (value,) for name, value in asdict(fixed).items())
    return [crf.CRFParams(*chosen) for chosen in product(*values)]


def finer(grid: Grid, best: crf.CRFParams) -> Grid:
    """Half a step of `grid` to either side of `best`; an axis of one value stays as it is."""

    def around(values: tuple[float, ...], value: float) -> tuple[float, ...]:
        if len(values) < 2:
            return values
        step = (values[1] - values[0]) / 2
        return tuple(v for v in (value - step, value, value + step) if v > 0)

    return Grid(*map(around, vars(grid).values(), vars(best).values()))


def probs_path(folder: Path, number: int) -> Path:
    return folder / "probs" / f"{number:05d}.npy"


def cache_probs(
    folder: Path, model, variables, source, chosen: list[int], how: evaluation.InferenceOptions
) -> None:
    """Leaves the probabilities of each chosen photograph as float16."""
    (folder / "probs").mkdir(exist_ok=True)
    missing = [n for n in chosen if not probs_path(folder, n).exists()]
    print(f"the network runs on {len(missing)} photographs", flush=True)
    photographs = ((n, source[n]["image"]) for n in cli.progress(missing, what="network"))
    for number, probs in evaluation.outputs_of(model, variables, photographs, how, what="probs"):
        path = probs_path(folder, number)
        with storage.written_whole(path) as part:
            np.save(part, probs.astype(np.float16))


def mean_iou(
    folder: Path, source, chosen, refine: evaluation.Refine, params: crf.CRFParams | None
) -> float:
    """Mean IoU over the chosen photographs; without `params` that of the network alone."""
    confusion = 0
    for number in cli.progress(chosen, what=label(params)):
        item, probs = source[number], np.load(probs_path(folder, number)).astype(np.float32)
        if params is not None:
            probs = refine(item["image"], probs, params)
        confusion += metrics.confusion_matrix(
            item["labels"], probs.argmax(-1), num_classes=probs.shape[-1]
        )
    return metrics.mean_iou(confusion)


def label(params: crf.CRFParams | None) -> str:
    if params is None:
        return "without CRF"
    names = ("w1", "alpha", "beta", "w2", "gamma")
    return " ".join(map("{} {:g}".format, names, vars(params).values()))


def run_trials(
    folder: Path, options: Options, score: Callable[[crf.CRFParams], float]
) -> dict[crf.CRFParams, float]:
    """Mean IoU of every trial, those of an earlier start read from trials.jsonl."""
    path = folder / "trials.jsonl"
    tried = read_trials(path)
    fixed = crf.CRFParams(
        smoothness_weight=options.smoothness_weight, sigma_smoothness=options.sigma_smoothness
    )
    grid, seen = options.grid, []
    for number in range(1, options.rounds + 1):
        planned = combinations(grid, fixed)
        bar = cli.progress(planned, what=f"round {number}", unit="trials")
        for count, params in enumerate(bar, 1):
            if params in tried:
                continue
            tried[params] = score(params)
            with path.open("a") as file:
                file.write(as_line(params, tried[params]))
            if not sys.stderr.isatty():  # a log file gets lines beside the bar
                done = f"round {number}, trial {count} of {len(planned)}"
                print(f"{done}: {label(params)}: mean IoU {tried[params]:.4f}", flush=True)
        seen += planned
        grid = finer(grid, max(seen, key=tried.__getitem__))
    return tried


def as_line(params: crf.CRFParams, value: float) -> str:
    return json.dumps({**asdict(params), "mean_iou": value}) + "\n"


def read_trials(path: Path) -> dict[crf.CRFParams, float]:
    """What trials.jsonl holds; a line that was cut off by a kill is removed from it."""
    lines = workdir.read_lines(path)
    values = [line.pop("mean_iou") for line in lines]
    tried = dict(zip((crf.CRFParams(**line) for line in lines), values, strict=True))
    path.write_text("".join(map(as_line, tried, values)))
    return tried


def report(
    folder: Path, tried: dict[crf.CRFParams, float], before: float, *, num_images: int
) -> None:
    """Prints the best ten; leaves them as table.md, the best as params.json, all as map.png."""
    tried = dict(sorted(tried.items(), key=lambda trial: -trial[1]))
    names = ("w1", "sigma alpha", "sigma beta", "w2", "sigma gamma", "mean IoU", "change")
    rows = [f"| {' | '.join(names)} |", "|---" * len(names) + "|"]
    for params, value in list(tried.items())[:10]:
        axes = " | ".join(f"{number:g}" for number in asdict(params).values())
        rows.append(f"| {axes} | {value:.4f} | {value - before:+.4f} |")
    note = f"{len(tried)} trials on {num_images} photographs; without CRF {before:.4f}."
    table = "\n".join([note, "", *rows]) + "\n"
    (folder / "table.md").write_text(table)
    crf.write_params(folder / "params.json", next(iter(tried)))
    draw_map(folder / "map.png", tried, before)
    print(table)
    print(f"best parameters: {folder / 'params.json'}; all trials: {folder / 'map.png'}")


def draw_map(path: Path, tried: dict[crf.CRFParams, float], before: float) -> None:
    """Mean IoU over both sigmas, a panel for each weight w1; a star marks the best trial, which is
    the first."""
    weights = sorted({params.appearance_weight for params in tried})
    best, top, least = next(iter(tried)), max(tried.values()), min(tried.values())
    figure = Figure(figsize=(3.4 * len(weights) + 1, 4), layout="constrained")
    axes = figure.subplots(1, len(weights), squeeze=False, sharex=True, sharey=True)
    style = {"vmin": least, "vmax": top, "marker": "s", "s": 110, "cmap": "viridis"}
    for axis, weight in zip(axes[0], weights, strict=True):
        here = {p: value for p, value in tried.items() if p.appearance_weight == weight}
        places = [p.sigma_xy for p in here], [p.sigma_rgb for p in here]
        shades = axis.scatter(*places, c=list(here.values()), **style)
        if weight == best.appearance_weight:
            axis.plot(best.sigma_xy, best.sigma_rgb, "*", color="red", markersize=13)
        axis.set(title=f"w1 = {weight:g}", xlabel="sigma alpha (pixels)")
        axis.margins(0.12)
    axes[0, 0].set_ylabel("sigma beta (colour steps)")
    figure.colorbar(shades, ax=axes, label="mean IoU")
    figure.suptitle(f"best {top:.4f}, without CRF {before:.4f}")
    figures.save(figure, path, dpi=110)


if __name__ == "__main__":
    cli.run(main, cli.parse(Options, __doc__))
