"""Score a trained network: mean IoU and the IoU of each class.

    python experiments/evaluate_voc.py runs/small
    python experiments/evaluate_voc.py runs/resnet101_aspp_msc --flip --scales 0.75 1.0 1.25
    python experiments/evaluate_voc.py init.safetensors --root VOCdevkit --crf

Reads a work folder or a weight file. Photographs are padded as the run says (513 in the paper),
or taken at their own size with --native-size. With --crf both scores are printed.
"""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated

import cli
import tyro
from tqdm import tqdm

from deeplab_jax import crf, evaluation, metrics, runs
from deeplab_jax.config import Config
from deeplab_jax.data import builders
from deeplab_jax.types import UserError
from deeplab_jax.weights import published


@dataclass(frozen=True)
class Options:
    source: Annotated[Path, tyro.conf.Positional]
    """Work folder of a run, or a weight file."""
    root: Path | None = None
    """Data set; that of the run where none is given."""
    split: str | None = None
    """List to score on; the run's val split where none is given."""
    pad_to: int | None = None
    """Pad photographs to this many rows and columns; as the run says where none is given."""
    native_size: bool = False
    """Every photograph at its own size; compiles once for each size."""
    scales: tuple[float, ...] = (1.0,)
    """Average the probabilities of the network run at these sizes."""
    flip: bool = False
    """Average with the mirrored photograph."""
    crf: bool = False
    """Score again after the fully connected CRF (the paper's ResNet-101 parameters)."""
    baseline: bool = False
    """Score what copies the mask of the most similar training photograph, too."""
    prepared_dir: Path = Path("prepared")
    """Where prepared data sets are kept."""
    output: Path | None = None
    """JSON file of the scores; evaluation.json in the work folder where none is given."""


def main(options: Options) -> None:
    model, variables, meta = runs.load(options.source)
    config = run_config(options.source)
    dataset = open_data(options, config, meta["class_names"])
    val = dataset.splits[options.split or config.data.val_split]
    settings = {
        "pad_to": None if options.native_size else options.pad_to or config.eval.pad_to,
        "scales": options.scales,
        "flip": options.flip,
        "progress": partial(tqdm, desc="evaluating", unit="image", leave=False),
    }
    if options.crf:
        before, after = evaluation.evaluate_refined(model, variables, val, crf.refine, **settings)
        confusions = {"network": before, "network + CRF": after}
    else:
        confusions = {"network": evaluation.evaluate(model, variables, val, **settings)}
    if options.baseline:
        confusions["nearest training photograph"] = evaluation.copy_nearest_frame(
            dataset.splits[config.data.train_split], val, num_classes=model.num_classes
        )
    for name, confusion in confusions.items():
        print(f"{name}:\n{metrics.table(confusion, meta['class_names'])}\n")
    remark = published.remark(meta, options.split or config.data.val_split)
    if remark:
        print(remark)
    output = options.output or default_output(options.source)
    reports = {name: metrics.report(c, meta["class_names"]) for name, c in confusions.items()}
    runs.write_score(output, reports)
    print(f"written to {output}")


def run_config(source: Path) -> Config:
    """The run's options; the paper's for a weight file."""
    return runs.read_config(source)[0] if source.is_dir() else Config()


def open_data(options: Options, config: Config, class_names: tuple[str, ...]) -> builders.Dataset:
    root = options.root or config.data.root
    if root is None and config.data.num_scenes:
        root = options.prepared_dir / f"scenes-{config.data.num_scenes}"
    if root is None:
        raise UserError("no photographs to score on: give --root FOLDER")
    splits = [options.split or config.data.val_split]
    if options.baseline:
        splits.append(config.data.train_split)
    dataset = builders.open_dataset(root, prepared_dir=options.prepared_dir, splits=splits)
    if tuple(dataset.class_names) != tuple(class_names):
        raise UserError(
            f"the network knows the classes {', '.join(class_names)}, and {root} has "
            f"{', '.join(dataset.class_names)}; the two must be the same, in the same order"
        )
    return dataset


def default_output(source: Path) -> Path:
    return (source if source.is_dir() else source.parent) / "evaluation.json"


if __name__ == "__main__":
    cli.run(main, cli.parse(Options, __doc__))
