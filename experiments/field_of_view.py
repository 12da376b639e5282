"""The receptive fields of trained networks' scores, theoretical and effective.

    python experiments/field_of_view.py runs/sweep_aspp/*_seed0

One panel a run: the mean gradient of the middle score of the winning class with respect to the
pixels of a few photographs of the val split, the square outside of which no pixel can change the
score, and the one that holds 90% of the gradient. Smaller photographs are padded with the mean
colour, as in evaluation. Takes seconds for small networks.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import cli
import tyro


@dataclass(frozen=True)
class Options:
    workdirs: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Work folders of runs on one data set."""
    root: Path | None = None
    """Folder of the photographs; that of the run where none is given."""
    num_photographs: int = 8
    """Photographs averaged, evenly spread over the val split."""
    side: int | None = None
    """Side of the middle of the photographs that is shown, 16k + 1 pixels; where none is given, the
    widest theoretical field, 513 at most."""
    prepared_dir: Path = Path("prepared")
    """Where prepared data sets are kept."""
    output: Path | None = None
    """Picture; field_of_view.png in the work folder of a single run, else in this folder."""


if __name__ == "__main__":  # before the imports below, which take seconds
    cli.answer_signals()
    given = cli.parse(Options, __doc__)

import numpy as np
import splits

from deeplab_jax import figures, receptive_field, runs
from deeplab_jax.models.deeplab import DeepLabV2
from deeplab_jax.types import Image, UserError

LARGEST = 513
"""Side that photographs are padded to (Section 4.1)."""


def main(options: Options) -> None:
    cli.check_positive(num_photographs=options.num_photographs)
    workdirs = splits.named(options.workdirs)
    loaded = {name: runs.load(workdir) for name, workdir in workdirs.items()}
    networks = {
        name: (segmenter.model.clone(scales=(1.0,)), segmenter.variables)
        for name, segmenter in loaded.items()
    }
    side = choose_side(options.side, [model for model, _ in networks.values()])
    images = some_photographs(options)
    fields = {}
    for name, (model, variables) in networks.items():
        field = receptive_field.effective(model, variables, images, side=side)
        sides = receptive_field.theoretical(model), receptive_field.side_holding(0.9, field)
        label = f"{name}: rates {', '.join(map(str, model.head.rates))}"
        fields[label] = (field, *sides)
        print(f"{label}: theoretical {sides[0]} pixels, 90% of the gradient in {sides[1]}")
    output = options.output or (
        options.workdirs[0] / "field_of_view.png" if len(fields) == 1 else Path("field_of_view.png")
    )
    figures.save(figures.field_of_view(fields), output)
    print(f"written to {output}")


def choose_side(side: int | None, models: list[DeepLabV2]) -> int:
    """`side`, or where none is given the largest theoretical field, at most LARGEST.

    Raises:
      UserError: no score would stand in the middle.
    """
    if side is None:
        widest = max(map(receptive_field.theoretical, models))
        return min(LARGEST, -(-(widest - 1) // 16) * 16 + 1)
    if side < 1 or side % 16 != 1:
        near = max(side, 0) // 16 * 16 + 1
        raise UserError(f"--side {side} must be a multiple of 16 plus 1, such as {near}")
    return side


def some_photographs(options: Options) -> list[Image]:
    """Photographs of the first run's val split."""
    source = splits.open_val(
        options.workdirs[0], root=options.root, prepared_dir=options.prepared_dir
    )
    numbers = np.unique(np.linspace(0, len(source) - 1, options.num_photographs).astype(int))
    return [source[number]["image"] for number in numbers.tolist()]


if __name__ == "__main__":
    cli.run(main, given)
