"""Score a trained network: mean IoU and the IoU of each class.

    python experiments/evaluate_voc.py runs/small
    python experiments/evaluate_voc.py runs/resnet101_aspp_msc --flip --scales 0.75 1.0 1.25
    python experiments/evaluate_voc.py init.safetensors --root VOCdevkit --crf
    python experiments/evaluate_voc.py runs/vgg16_aspp_l --crf --trimap 40

Reads a work folder or a weight file. Photographs are padded as the run says (513 in the release),
or taken at their own size with --native-size; large ones can be scored in overlapping tiles
(--tile 513), as the paper does on Cityscapes. With --crf both scores are printed. --trimap draws
the mean IoU near object boundaries, in bands of 1 pixel to so many: the paper's Figure 10.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import cli
import numpy as np
import tyro

from deeplab_jax import evaluation, figures, metrics, workdir
from deeplab_jax.choices import Boundary
from deeplab_jax.data import public
from deeplab_jax.types import UserError
from deeplab_jax.weights import published


@dataclass(frozen=True)
class Options(cli.NetworkOptions):
    source: Annotated[Path, tyro.conf.Positional]
    """Work folder of a run, a weight file, or a name of published weights such as voc12."""
    split: str | None = None
    """List to score on; the run's val split where none is given."""
    pad_to: int | None = None
    """Pad photographs to this many rows and columns; as the run says where none is given."""
    native_size: bool = False
    """Every photograph at its own size."""
    without: tuple[str, ...] = ()
    """Classes to leave out of a further mean IoU, such as terrain truck train, which SYNTHIA
    lacks."""
    trimap: int | None = None
    """Draw the mean IoU within 1 to so many pixels of a boundary, to trimap.png and trimap.csv."""
    boundary: Boundary = "void"
    """What the trimap's bands lie around: void pixels, as the authors have it, or for data without
    void outlines pixels of another class (classes)."""
    output: Path | None = None
    """JSON file of the scores; evaluation.json in the work folder where none is given."""


def main(options: Options) -> None:
    cli.check_positive(trimap=options.trimap)
    found, config = options.load(options.source)
    class_names, num_classes = found.class_names, found.model.num_classes
    metrics.check_class_names(options.without, class_names)
    split = options.split or config.data.val_split
    val = options.open_split(config, split, class_names)
    print(f"scored on the split {split}: {len(val)} photographs")
    how = replace(
        options.inference(config),
        pad_to=None if options.native_size else options.pad_to or config.eval.pad_to,
    )
    refine = options.refine(found, config)
    names = ("network", "network + CRF")[: 1 if refine is None else 2]
    tallies = dict.fromkeys(names, metrics.empty_tally(num_classes))
    of_bands = partial(
        metrics.trimap_confusions, num_classes=num_classes, boundary=options.boundary
    )
    bands: dict[str, Any] = dict.fromkeys(tallies, 0)
    bar = partial(cli.progress, what="evaluated")
    for item, maps in evaluation.each_prediction(*found[:2], val, refine, how, progress=bar):
        for name, labels in zip(tallies, maps, strict=True):
            one = metrics.tally(item["labels"], labels, num_classes=num_classes)
            tallies[name] = metrics.add(tallies[name], one)
            if options.trimap is not None:
                bands[name] += of_bands(item["labels"], labels, max_width=options.trimap)
    for name, tally in tallies.items():
        print(f"{name}:\n{metrics.table(tally, class_names)}\n")
    if remark := published.remark(found.meta, split):
        print(remark)
    scores: dict[str, Any] = {"split": split, "num_photographs": len(val)}
    for name, tally in tallies.items():
        scores[name] = describe(name, tally, class_names, options.without)
    is_folder = (options.source / "config.json").is_file()
    folder = options.source if is_folder else options.source.parent
    output = options.output or folder / "evaluation.json"
    workdir.write_score(output, scores)
    print(f"written to {output}")
    if options.trimap is not None:
        draw_trimap(options, bands, output.with_name("trimap.png"))


def describe(
    name: str, tally: metrics.Tally, class_names: Sequence[str], without: Sequence[str]
) -> dict[str, Any]:
    """The scores as evaluation.json holds them; prints those that the table does not show."""
    report = metrics.report(tally, class_names)
    if tuple(class_names) == tuple(public.CITYSCAPES.values()):
        found = metrics.category_iou(tally.confusion, class_names, public.CITYSCAPES_CATEGORIES)
        mean = float(np.nanmean(list(found.values())))
        print(f"{name}: mean IoU of Cityscapes' {len(found)} categories {mean:.4f}")
        report["category_iou"] = {"mean_iou": mean, **found}
    if without:
        value = metrics.mean_iou_without(tally.confusion, class_names, without)
        print(f"{name}: mean IoU without {', '.join(without)} {value:.4f}")
        report["mean_iou_without"] = {"classes": without, "mean_iou": value}
    return report


def draw_trimap(options: Options, bands: dict[str, Any], output: Path) -> None:
    """The figure of the confusion matrices by width, and its numbers beside it as CSV.

    Raises a UserError where the split has no boundary of this kind.
    """
    if not bands["network"].any():
        other = "classes" if options.boundary == "void" else "void"
        raise UserError(
            f"the masks of {options.source} have no {options.boundary} boundaries; try "
            f"--boundary {other}"
        )
    sides = [np.array([metrics.mean_iou(band) for band in side]) for side in bands.values()]
    name = options.source.name
    figures.save(figures.trimap({name: sides}, boundary=options.boundary), output)
    lines = ["width,crf,mean_iou"]
    for side, values in enumerate(sides):
        lines += [f"{width},{bool(side)},{value}" for width, value in enumerate(values, 1)]
        crf = " after the CRF" if side else ""
        print(
            f"mean IoU{crf} {values[0]:.4f} within 1 pixel, {values[-1]:.4f} within {len(values)}"
        )
    output.with_suffix(".csv").write_text("\n".join(lines) + "\n")
    print(f"written to {output} and {output.with_suffix('.csv')}")


if __name__ == "__main__":
    cli.run(main, cli.parse(Options, __doc__))
