"""Score a trained network: mean IoU and the IoU of each class.

    python experiments/evaluate_voc.py runs/small
    python experiments/evaluate_voc.py runs/resnet101_aspp_msc --flip --scales 0.75 1.0 1.25
    python experiments/evaluate_voc.py init.safetensors --root VOCdevkit --crf

Reads a work folder or a weight file. Photographs are padded as the run says (513 in the paper),
or taken at their own size with --native-size; large ones can be scored in overlapping tiles
(--tile 513), as the paper does on Cityscapes. With --crf both scores are printed.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import cli
import tyro
from crf_options import CRFOptions

from deeplab_jax.choices import OVERLAP


@dataclass(frozen=True)
class Options(CRFOptions):
    source: Annotated[Path, tyro.conf.Positional]
    """Work folder of a run, a weight file, or a name of published weights such as voc12."""
    average: bool = False
    """Score with the averaged parameters of a run that was trained with --ema-decay."""
    root: Path | None = None
    """Data set; that of the run where none is given."""
    split: str | None = None
    """List to score on; the run's val split where none is given."""
    pad_to: int | None = None
    """Pad photographs to this many rows and columns; as the run says where none is given."""
    native_size: bool = False
    """Every photograph at its own size."""
    scales: tuple[float, ...] | None = None
    """Average the probabilities of the network run at these sizes; as the run says where none is
    given."""
    flip: bool = False
    """Average with the mirrored photograph; on by default if the run is scored so."""
    tile: int | None = None
    """Score photographs that a square of this side does not cover in such tiles; as the run says
    where none is given."""
    overlap: float = OVERLAP
    """Part of its side that a tile shares at least with the next."""
    crf: bool = False
    """Score again after the fully connected CRF."""
    crf_params: str | None = None
    """File that search_crf.py left, or the name of a published set of parameters; where none is
    given, what the run learnt (--crf-iterations), else the set published for its network."""
    without: tuple[str, ...] = ()
    """Classes to leave out of a further mean IoU, such as terrain truck train, which SYNTHIA
    lacks."""
    baseline: bool = False
    """Also score a baseline that copies the mask of the most similar training photograph."""
    prepared_dir: Path = Path("prepared")
    """Where prepared data sets are kept."""
    output: Path | None = None
    """JSON file of the scores; evaluation.json in the work folder where none is given."""


if __name__ == "__main__":  # before the imports below, which take seconds
    cli.answer_signals()
    given = cli.parse(Options, __doc__)

import numpy as np
import splits
from tqdm import tqdm

from deeplab_jax import crf, evaluation, metrics, runs
from deeplab_jax.config import Config
from deeplab_jax.data import builders, public
from deeplab_jax.models.deeplab import DeepLabV2
from deeplab_jax.types import UserError
from deeplab_jax.weights import published


def main(options: Options) -> None:
    model, variables, meta = runs.load(options.source, average=options.average)
    params = crf.choose_params(options.crf_params, learnt=meta.get("crf"), model=meta["model"])
    metrics.check_class_names(options.without, meta["class_names"])
    config = runs.config_of(options.source, meta)
    if options.baseline and config.data.val_root is not None:
        raise UserError("--baseline copies masks of the data set it scores on; leave it out here")
    if options.baseline:
        data = replace(config.data, root=options.root or config.data.root)
        config = splits.with_train_split(replace(config, data=data))
    split = options.split or config.data.val_split
    dataset = builders.open_dataset(
        splits.find_root(config, options.root, options.prepared_dir),
        prepared_dir=options.prepared_dir,
        splits=[split, config.data.train_split] if options.baseline else [split],
        class_names=meta["class_names"],
        reading=splits.reading_of(config, options.root),
    )
    val = dataset.splits[split]
    refine = None
    if options.crf:
        crf_options = splits.crf_options(options.of_refine(), config)
        refine = partial(cli.refine_function(), params=params, **crf_options)
    tallies = score(model, variables, val, inference_options(options, config), refine)
    if options.baseline:
        tallies["nearest training photograph"] = evaluation.copy_nearest_frame(
            dataset.splits[config.data.train_split], val, num_classes=model.num_classes
        )
    for name, tally in tallies.items():
        print(f"{name}:\n{metrics.table(tally, meta['class_names'])}\n")
    remark = published.remark(meta, split)
    if remark:
        print(remark)
    reports = {
        name: describe(name, tally, meta["class_names"], options.without)
        for name, tally in tallies.items()
    }
    output = options.output or default_output(options.source)
    runs.write_score(output, reports)
    print(f"written to {output}")


def inference_options(options: Options, config: Config) -> evaluation.InferenceOptions:
    """The typed options, and for all others those that the run was scored with."""
    return evaluation.InferenceOptions(
        pad_to=None if options.native_size else options.pad_to or config.eval.pad_to,
        scales=options.scales or config.eval.scales,
        flip=options.flip or config.eval.flip,
        tile=options.tile or config.eval.tile,
        overlap=options.overlap,
    )


def score(
    model: DeepLabV2,
    variables: Any,
    source: builders.Source,
    how: evaluation.InferenceOptions,
    refine: evaluation.Refine | None,
) -> dict[str, metrics.Tally]:
    """The network's tally and, with `refine`, that of the refined labels, by their names."""
    bar = partial(tqdm, desc="evaluating", unit="image", leave=False)
    if refine is None:
        return {"network": evaluation.evaluate(model, variables, source, how, progress=bar)}
    before, after = evaluation.evaluate_refined(model, variables, source, refine, how, progress=bar)
    return {"network": before, "network + CRF": after}


def describe(
    name: str, tally: metrics.Tally, class_names: Sequence[str], without: Sequence[str]
) -> dict[str, Any]:
    """The scores as evaluation.json holds them; prints those that the table does not show."""
    report = metrics.report(tally, class_names)
    if tuple(class_names) == tuple(public.CITYSCAPES.values()):
        found = metrics.category_iou(tally.confusion, class_names, public.CITYSCAPES_CATEGORIES)
        known = {group: None if np.isnan(v) else v for group, v in found.items()}
        mean = float(np.nanmean(list(found.values())))
        print(f"{name}: mean IoU of Cityscapes' {len(found)} categories {mean:.4f}")
        report["category_iou"] = {"mean_iou": mean, **known}
    if without:
        value = metrics.mean_iou_without(tally.confusion, class_names, without)
        print(f"{name}: mean IoU without {', '.join(without)} {value:.4f}")
        report["mean_iou_without"] = {"classes": without, "mean_iou": value}
    return report


def default_output(source: Path) -> Path:
    return (source if source.is_dir() else source.parent) / "evaluation.json"


if __name__ == "__main__":
    cli.run(main, given)
