"""Mean IoU near object boundaries, in bands of 1 to 40 pixels: the paper's Figure 10.

    python experiments/trimap.py runs/vgg16_aspp_l runs/resnet101_aspp_msc --crf
    python experiments/trimap.py runs/small --crf --boundary classes

Several runs go into one figure, each before and, with --crf, after the fully connected CRF. A
band of width w holds the pixels within w pixels of a void one, as the authors' evaluation has it;
--boundary classes is for data without void outlines and measures from pixels of another class.
Leaves a picture, and the numbers beside it as CSV.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import cli
import tyro
from crf_options import CRFOptions

from deeplab_jax.choices import Boundary


@dataclass(frozen=True)
class Options(CRFOptions):
    workdirs: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Work folders of runs; each is scored on its own val split."""
    root: Path | None = None
    """Folder of the photographs; that of the run where none is given."""
    crf: bool = False
    """Score after the fully connected CRF too."""
    crf_params: str | None = None
    """File of search_crf.py or name of published parameters; None: learnt, or the network's."""
    boundary: Boundary = "void"
    """What the bands lie around: void pixels, or pixels of another class."""
    max_width: int = 40
    """Pixels of the widest band."""
    prepared_dir: Path = Path("prepared")
    """Where prepared data sets are kept."""
    output: Path | None = None
    """Picture; trimap.png in the work folder of a single run, else in this folder."""


if __name__ == "__main__":  # before the imports below, which take seconds
    cli.answer_signals()
    given = cli.parse(Options, __doc__)

import numpy as np
import splits

from deeplab_jax import figures, metrics, tables
from deeplab_jax.types import UserError


def main(options: Options) -> None:
    cli.check_positive(max_width=options.max_width)
    workdirs = splits.named(options.workdirs)
    bands = {name: bands_of(workdir, options) for name, workdir in workdirs.items()}
    output = options.output or (
        options.workdirs[0] / "trimap.png" if len(bands) == 1 else Path("trimap.png")
    )
    figures.save(figures.trimap(bands, boundary=options.boundary), output)
    lines = [
        {"run": name, "width": width, "crf": bool(side), "mean_iou": value}
        for name, run in bands.items()
        for side, values in enumerate(run)
        for width, value in enumerate(values, 1)
    ]
    tables.write_csv(output.with_suffix(".csv"), lines)
    for name, run in bands.items():
        scores = " -> ".join(f"{values[0]:.4f}" for values in run)
        whole = " -> ".join(f"{values[-1]:.4f}" for values in run)
        print(f"{name}: mean IoU {scores} within 1 pixel, {whole} within {options.max_width}")
    print(f"written to {output} and {output.with_suffix('.csv')}")


def bands_of(workdir: Path, options: Options) -> list[np.ndarray]:
    """Mean IoU by width, before and after the CRF.

    Raises:
      UserError: the split has no boundary of this kind.
    """
    num_classes, predictions = splits.predictions(
        workdir,
        root=options.root,
        with_crf=options.crf,
        given_options=options.of_refine(),
        crf_params=options.crf_params,
        prepared_dir=options.prepared_dir,
    )
    settings = {"max_width": options.max_width, "boundary": options.boundary}
    total = sum(
        np.stack(
            [
                metrics.trimap_confusions(
                    item["labels"], labels, num_classes=num_classes, **settings
                )
                for labels in maps
            ]
        )
        for item, maps in predictions
    )
    if not total.any():
        other = "classes" if options.boundary == "void" else "void"
        raise UserError(
            f"the masks {workdir} is scored on have no {options.boundary} boundaries; try "
            f"--boundary {other}"
        )
    return [np.array([metrics.mean_iou(band) for band in run]) for run in total]


if __name__ == "__main__":
    cli.run(main, given)
